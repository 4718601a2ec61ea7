//! How other proxies ask the `[verify]` listener about a request (forward authentication).
//!
//! A dialect is a path of that listener and a fixed set of fields, which the proxy overwrites in
//! every request that it asks about. Each is read exactly once. A client can write every other
//! field, so nothing else says what the request is, and whatever looks like it is refused.

use std::net::IpAddr;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};
use ipnet::IpNet;

use super::client::{ClientAddress, Peer, address};
use super::headers::{FoldedNames, OwnedNames, connection_names, fold};
use super::scheme::Scheme;
use super::target::{Ambiguity, TargetError};

/// A proxy's way of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// nginx: `auth_request`.
    Nginx,
    /// Caddy: `forward_auth`.
    Caddy,
    /// Traefik: `forwardAuth`.
    Traefik,
    /// Envoy: `ext_authz` over HTTP.
    Envoy,
    /// HAProxy: the Lua action that `proxy-config` writes.
    Haproxy,
}

/// A field that a dialect reads.
#[derive(Clone, Copy, Debug)]
struct Field {
    name: &'static str,
    /// The line of the proxy's configuration that sends it.
    line: &'static str,
}

/// What a dialect reads.
#[derive(Clone, Copy, Debug)]
struct Fields {
    /// `None`: the target is that of the request line, after the dialect's path.
    uri: Option<Field>,
    /// `None`: the method is that of the request line.
    method: Option<Field>,
    host: Field,
    client: Field,
    proto: Field,
    /// Forwarding fields that the proxy writes too, and that are not read.
    unread: &'static [&'static str],
}

const fn field(name: &'static str, line: &'static str) -> Field {
    Field { name, line }
}

impl Dialect {
    /// All dialects.
    pub const ALL: [Self; 5] =
        [Self::Nginx, Self::Caddy, Self::Traefik, Self::Envoy, Self::Haproxy];

    /// The word for it: in the path, the log and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Caddy => "caddy",
            Self::Traefik => "traefik",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
        }
    }

    /// The dialect of a path of the listener.
    pub fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| match path.strip_prefix('/') {
            Some(path) if *dialect == Self::Envoy => {
                path.strip_prefix("envoy").is_some_and(|rest| rest.starts_with(['/', '*']))
            }
            Some(path) => path == dialect.as_str(),
            None => false,
        })
    }

    /// Whether the proxy passes on nothing of a refusal's body.
    pub fn drops_bodies(self) -> bool {
        self == Self::Nginx
    }

    const fn fields(self) -> Fields {
        match self {
            Self::Nginx => NGINX,
            Self::Caddy => CADDY,
            Self::Traefik => TRAEFIK,
            Self::Envoy => ENVOY,
            Self::Haproxy => HAPROXY,
        }
    }

    /// What to change so that this field no longer reaches the listener.
    fn removal(self, name: &HeaderName) -> String {
        match self {
            Self::Nginx => {
                format!("add `proxy_set_header {name} \"\";` to `location = /_portcullis`")
            }
            Self::Caddy => format!("add `request_header -{name}` before `forward_auth`"),
            Self::Traefik => format!("remove `{name}` from `authRequestHeaders`"),
            Self::Envoy => format!("remove `{name}` from `allowed_headers` of ext_authz"),
            Self::Haproxy => format!("remove `{name}` from the fields that portcullis.lua sends"),
        }
    }
}

const NGINX: Fields = Fields {
    uri: Some(field("x-original-uri", "proxy_set_header X-Original-URI $request_uri;")),
    method: Some(field("x-original-method", "proxy_set_header X-Original-Method $request_method;")),
    host: field("host", "proxy_set_header Host $http_host;"),
    client: field("x-forwarded-for", "proxy_set_header X-Forwarded-For $remote_addr;"),
    proto: field("x-forwarded-proto", "proxy_set_header X-Forwarded-Proto $scheme;"),
    unread: &[],
};

const CADDY: Fields = Fields {
    uri: Some(field("x-forwarded-uri", BY_CADDY)),
    method: Some(field("x-forwarded-method", BY_CADDY)),
    host: field("x-forwarded-host", BY_CADDY),
    client: field("x-forwarded-for", BY_CADDY),
    proto: field("x-forwarded-proto", BY_CADDY),
    unread: &[],
};

const TRAEFIK: Fields = Fields {
    uri: Some(field("x-forwarded-uri", BY_TRAEFIK)),
    method: Some(field("x-forwarded-method", BY_TRAEFIK)),
    host: field("x-forwarded-host", BY_TRAEFIK),
    client: field("x-forwarded-for", BY_TRAEFIK),
    proto: field("x-forwarded-proto", BY_TRAEFIK),
    unread: &["x-forwarded-port"],
};

const ENVOY: Fields = Fields {
    uri: None,
    method: None,
    host: field("host", "ext_authz sends Host by itself"),
    client: field(
        "x-forwarded-for",
        "use_remote_address: true, and x-forwarded-for in allowed_headers",
    ),
    proto: field(
        "x-forwarded-proto",
        "use_remote_address: true, and x-forwarded-proto in allowed_headers",
    ),
    unread: &[],
};

const HAPROXY: Fields = Fields {
    uri: Some(field("x-portcullis-uri", BY_LUA)),
    method: Some(field("x-portcullis-method", BY_LUA)),
    host: field("x-portcullis-host", BY_LUA),
    client: field("x-portcullis-client", BY_LUA),
    proto: field("x-portcullis-proto", BY_LUA),
    unread: &[],
};

const BY_CADDY: &str = "`forward_auth` writes it: let no `header_up` change it";
const BY_TRAEFIK: &str = "`forwardAuth` writes it with `trustForwardHeader: false`";
const BY_LUA: &str = "portcullis.lua writes it: use the file that `proxy-config haproxy` writes";

/// Names that say what a request was before a proxy, in one dialect or another. A name belongs to
/// them if it is one of these, or begins with one that ends in `-`, once folded.
const FORWARDING: [&str; 7] = [
    "forwarded",
    "x-forwarded",
    "x-forwarded-",
    "x-original-",
    "x-rewrite-",
    "x-real-ip",
    "x-portcullis-",
];

/// Whether a field of this name, in any spelling, could be taken for what a proxy says about a
/// request.
pub fn is_forwarding(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    FORWARDING.iter().any(|known| {
        let fits = known.ends_with('-') || name.len() == known.len();
        fits && name.len() >= known.len()
            && name.iter().zip(known.bytes()).all(|(byte, known)| fold(*byte) == known)
    })
}

/// The fields of the client that decide about it. Proxies that pass on only what is listed list
/// these.
pub const PASSED: [&str; 12] = [
    "authorization",
    "cookie",
    "accept",
    "accept-language",
    "origin",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-dest",
    "user-agent",
    "sec-websocket-key",
    "sec-websocket-version",
    "upgrade",
];

/// The longest method, in bytes.
const LONGEST_METHOD: usize = 32;

/// The longest host with a port, in bytes (RFC 1035 §2.3.4).
const LONGEST_HOST: usize = 253 + 6;

/// The longest target, in bytes: that of a request line.
const LONGEST_TARGET: usize = u16::MAX as usize - 1;

/// Why a verification request is not read.
#[derive(Debug, thiserror::Error)]
pub enum VerifyFault {
    /// The peer may not ask.
    #[error("{0} may not ask: it is not in `trusted_proxies` of [verify]")]
    Peer(IpAddr),
    /// The path belongs to no dialect.
    #[error(
        "nothing is decided at this path: the paths are /nginx, /caddy, /traefik, /envoy/… and /haproxy"
    )]
    Path,
    /// The request is not what the dialect's configuration sends.
    #[error("{}: {flaw}", .dialect.as_str())]
    Flaw {
        /// The dialect.
        dialect: Dialect,
        /// What is wrong, and how to mend it.
        flaw: Flaw,
    },
    /// The target that the client sent is malformed.
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// What is wrong with a verification request. Each text names the line of the proxy's configuration
/// to mend.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// A field of the dialect is missing.
    #[error("`{0}` is missing; it comes from: {1}")]
    Missing(&'static str, &'static str),
    /// A field of the dialect is repeated.
    #[error("`{0}` is repeated; only one may arrive, from: {1}")]
    Repeated(&'static str, &'static str),
    /// The value of a field is empty, malformed or too long.
    #[error("`{0}` is empty, malformed or too long; it comes from: {1}")]
    Malformed(&'static str, &'static str),
    /// A forwarding field that this dialect does not have.
    #[error("`{0}` is not a field of this dialect, so the client may have sent it; {1}")]
    Foreign(HeaderName, String),
    /// An identity header, in any spelling.
    #[error("the identity header `{0}` of a client reached the listener; {1}")]
    Identity(HeaderName, String),
    /// An identity header is named in `Connection`.
    #[error(
        "`Connection` names the identity header `{0}`: the proxy must not pass the client's `Connection` along"
    )]
    InConnection(HeaderName),
    /// An upgrade to something else than WebSocket.
    #[error(
        "`Upgrade` is not one `websocket` in a GET: behind another protocol, nothing is asked about, so the proxy must not forward it"
    )]
    Upgrade,
    /// A body.
    #[error("the verification request has a body: the proxy must ask without it")]
    Body,
    /// A method other than GET.
    #[error("the verification request is not a GET")]
    Method,
    /// A version of HTTP that the proxy does not use to ask.
    #[error("the verification request uses {0:?}")]
    Version(Version),
}

/// Who may ask, and what must not arrive.
#[derive(Clone, Debug)]
pub struct Askers {
    networks: Vec<IpNet>,
    names: Vec<HeaderName>,
    identity: FoldedNames,
    owned: OwnedNames,
}

/// A trusted proxy that asks in a dialect. Only [`Askers::asker`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'s> {
    askers: &'s Askers,
    dialect: Dialect,
}

/// The request that a proxy asks about. Only [`Asker::read`] makes one.
#[derive(Debug)]
pub struct Asked {
    /// Its head, as the client sent it to the proxy.
    pub(super) parts: Parts,
    /// Its client.
    pub(super) client: ClientAddress,
}

impl Askers {
    /// Peers in these networks may ask. `names`: the identity headers of every route.
    pub fn new(networks: Vec<IpNet>, names: Vec<HeaderName>) -> Self {
        Self { networks, identity: FoldedNames::new(&names), owned: OwnedNames::new(&names), names }
    }

    /// The identity headers of every route, and the default ones.
    pub fn names(&self) -> &[HeaderName] {
        &self.names
    }

    /// The networks whose peers may ask.
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// Whether this peer may ask.
    pub fn trust(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }

    /// Whether a field of this name, in any spelling, is an identity header.
    pub fn own(&self, name: &HeaderName) -> bool {
        self.identity.contains(name)
    }

    /// Whether a field of this name is a reserved one in a spelling that no proxy is told to
    /// remove. Some application would read it as the reserved one.
    fn is_disguised(&self, name: &HeaderName) -> bool {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !name.as_str().bytes().all(is_plain) && self.owned.contains(name)
    }

    /// The asking proxy, if this peer may ask and the path belongs to a dialect.
    ///
    /// # Errors
    /// [`VerifyFault::Peer`], [`VerifyFault::Path`].
    pub fn asker(&self, peer: &Peer, dialect: Option<Dialect>) -> Result<Asker<'_>, VerifyFault> {
        if !self.trust(peer.address) {
            return Err(VerifyFault::Peer(peer.address));
        }
        Ok(Asker { askers: self, dialect: dialect.ok_or(VerifyFault::Path)? })
    }
}

impl Asker<'_> {
    /// The dialect.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Reads the request that is asked about. `announced`: the declared length of the verification
    /// request's body, in bytes.
    ///
    /// # Errors
    /// [`VerifyFault::Flaw`] if the proxy did not ask as its configuration should make it;
    /// [`VerifyFault::Target`] if the client's own target is malformed.
    pub(super) fn read(
        &self,
        mut parts: Parts,
        announced: Option<u64>,
    ) -> Result<Asked, VerifyFault> {
        let dialect = self.dialect;
        let flaw = |flaw| VerifyFault::Flaw { dialect, flaw };
        let is_old = parts.version == Version::HTTP_10 && dialect == Dialect::Nginx;
        if parts.version != Version::HTTP_11 && !is_old {
            return Err(flaw(Flaw::Version(parts.version)));
        }
        if announced != Some(0) {
            return Err(flaw(Flaw::Body));
        }
        let fields = dialect.fields();
        self.check_names(&parts.headers, &fields).map_err(flaw)?;
        let method = match &fields.method {
            None => parts.method.clone(),
            Some(_) if parts.method != Method::GET => return Err(flaw(Flaw::Method)),
            Some(field) => method(&parts.headers, field).map_err(flaw)?,
        };
        if !stays_in_sight(&method, &parts.headers) {
            return Err(flaw(Flaw::Upgrade));
        }
        let host = host(&parts.headers, &fields.host).map_err(flaw)?;
        let client = client(&parts.headers, &fields.client, dialect).map_err(flaw)?;
        let scheme = scheme(&parts.headers, &fields.proto).map_err(flaw)?;
        let uri = match &fields.uri {
            None => rest_of(&parts.uri)?,
            Some(field) => {
                let value = only(&parts.headers, field).map_err(flaw)?;
                if value.is_empty() || value.len() > LONGEST_TARGET {
                    return Err(flaw(field.malformed()));
                }
                target(value)?
            }
        };
        parts.method = method;
        parts.uri = Uri::from(uri);
        parts.version = Version::HTTP_11;
        parts.headers.insert(header::HOST, host);
        // Traefik asks about an upgrade without `Upgrade`, which is for one hop. Every browser sends
        // this key (RFC 6455 §4.1), and the written configurations pass it on.
        if parts.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        Ok(Asked { parts, client: ClientAddress::named(client, scheme) })
    }

    /// Refuses whatever a client could have sent to be taken for the proxy's word.
    fn check_names(&self, headers: &HeaderMap, fields: &Fields) -> Result<(), Flaw> {
        let five = [Some(&fields.host), Some(&fields.client), Some(&fields.proto)];
        let read = |name: &HeaderName| {
            five.into_iter()
                .chain([fields.uri.as_ref(), fields.method.as_ref()])
                .flatten()
                .any(|field| field.name == name.as_str())
                || fields.unread.contains(&name.as_str())
        };
        for name in headers.keys() {
            if self.askers.own(name) {
                return Err(Flaw::Identity(name.clone(), self.dialect.removal(name)));
            }
            if (is_forwarding(name) && !read(name)) || self.askers.is_disguised(name) {
                return Err(Flaw::Foreign(name.clone(), self.dialect.removal(name)));
            }
        }
        match connection_names(headers).into_iter().find(|name| self.askers.own(name)) {
            Some(name) => Err(Flaw::InConnection(name)),
            None => Ok(()),
        }
    }
}

impl Field {
    fn malformed(&self) -> Flaw {
        Flaw::Malformed(self.name, self.line)
    }
}

/// The one value of a field.
fn only<'a>(headers: &'a HeaderMap, field: &Field) -> Result<&'a HeaderValue, Flaw> {
    let mut values = headers.get_all(field.name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(Flaw::Missing(field.name, field.line)),
        (Some(_), Some(_)) => Err(Flaw::Repeated(field.name, field.line)),
    }
}

/// Whether the request asks for no upgrade, or for one to WebSocket (RFC 6455 §4.1). After an upgrade
/// to another protocol, such as HTTP/2, requests would bypass the gateway.
fn stays_in_sight(method: &Method, headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    let Some(protocol) = upgrades.next() else { return true };
    let is_websocket = protocol.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket");
    is_websocket && upgrades.next().is_none() && method == Method::GET
}

fn method(headers: &HeaderMap, field: &Field) -> Result<Method, Flaw> {
    let value = only(headers, field)?.as_bytes();
    let method = (value.len() <= LONGEST_METHOD).then(|| Method::from_bytes(value).ok()).flatten();
    method.ok_or_else(|| field.malformed())
}

/// What is wrong with the name itself is the client's doing, and is refused with the target.
fn host(headers: &HeaderMap, field: &Field) -> Result<HeaderValue, Flaw> {
    let value = only(headers, field)?;
    if value.is_empty() || value.len() > LONGEST_HOST {
        Err(field.malformed())
    } else {
        Ok(value.clone())
    }
}

/// Envoy appends the peer to the list that the client sent; the others send one address.
fn client(headers: &HeaderMap, field: &Field, dialect: Dialect) -> Result<IpAddr, Flaw> {
    let value = only(headers, field)?.as_bytes();
    let last = match dialect {
        Dialect::Envoy => value.rsplit(|&byte| byte == b',').next().unwrap_or_default(),
        _ => value,
    };
    address(last.trim_ascii()).ok_or_else(|| field.malformed())
}

fn scheme(headers: &HeaderMap, field: &Field) -> Result<Scheme, Flaw> {
    Scheme::parse(only(headers, field)?.as_bytes()).ok_or_else(|| field.malformed())
}

/// The target of a request line, as a field holds it. `http` cuts a fragment off, and an empty path
/// becomes `/`: neither may happen to what is forwarded as it was received.
fn target(value: &HeaderValue) -> Result<PathAndQuery, TargetError> {
    let bytes = value.as_bytes();
    if !bytes.starts_with(b"/") {
        return Err(Ambiguity::NoPath.into());
    }
    if bytes.contains(&b'#') {
        return Err(Ambiguity::Fragment.into());
    }
    PathAndQuery::try_from(bytes).map_err(|_| Ambiguity::PathByte.into())
}

/// The target after Envoy's `path_prefix`.
fn rest_of(uri: &Uri) -> Result<PathAndQuery, TargetError> {
    let sent = uri.path_and_query().map_or("", PathAndQuery::as_str);
    let rest = sent.strip_prefix("/envoy").filter(|rest| rest.starts_with('/'));
    let rest = rest.ok_or(Ambiguity::NoPath)?;
    PathAndQuery::try_from(rest).map_err(|_| Ambiguity::PathByte.into())
}
