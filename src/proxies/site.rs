//! What a written configuration depends on: the file, and the arguments of `proxy-config`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::uri::Uri;

use crate::gateway::Snapshot;
use crate::gateway::dialect::PASSED;
use crate::gateway::headers::{EXACT_SPELLING, METHOD_OVERRIDES, TRACE, VIEW};
use crate::gateway::route::{Destination, HostPattern};
use crate::reason::Reason;

/// The arguments of `proxy-config`.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// The URL of the application.
    pub upstream: String,
    /// The certificates that an application with `https` is verified with: a path.
    pub upstream_ca: Option<String>,
    /// The hosts that it serves; empty: those of the external routes.
    pub hosts: Vec<String>,
    /// Where it reaches the `[verify]` listener; `None`: at the address of the file.
    pub verify: Option<SocketAddr>,
}

/// Why a configuration cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unwritable {
    /// No `[verify]` section.
    #[error("the file has no [verify] section: add one with `trusted_proxies`")]
    NoVerify,
    /// The port is chosen at start.
    #[error("the port of [verify] is chosen at start: set it, or give --verify")]
    NoPort,
    /// No external route.
    #[error("no route is external: add `external = true` to the routes that this proxy forwards")]
    NoRoute,
    /// No external route has this host.
    #[error("no external route has the host `{0}`")]
    Host(String),
    /// Not a URL of an application.
    #[error(
        "`{0}` is not the URL of an application: write http://HOST:PORT or https://HOST:PORT, without a path"
    )]
    Upstream(String),
    /// A certificate that not every proxy can verify.
    #[error(
        "`{0}` is an address: with https, give the application by a name in its certificate, which is what proxies verify"
    )]
    Address(String),
    /// An application outside the cluster.
    #[error(
        "`{0}` is not a Service, and only Envoy Gateway has another kind of backend: write http://NAME:PORT or http://NAME.NAMESPACE:PORT"
    )]
    Elsewhere(String),
    /// A path that cannot be written into every configuration.
    #[error("the path `{0}` has a character that not every configuration can hold: rename it")]
    Ca(String),
    /// A name that not every proxy can handle.
    #[error(
        "the identity header `{0}` has characters other than letters, digits and `-`, which proxies handle in different ways: rename it"
    )]
    Name(String),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// A name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Authority {
    /// Whether the host is an IP address.
    pub fn is_address(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The application as Kubernetes knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service<'s> {
    /// The name of the Service, or `app` if the application is not one.
    pub name: &'s str,
    /// Its namespace, unless it is the one that manifests are applied to.
    pub namespace: Option<&'s str>,
    /// Whether the application is not a Service of the cluster.
    pub is_elsewhere: bool,
}

/// The name of a header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// In lower case.
    pub fn lower(&self) -> &str {
        &self.0
    }

    /// As in the names of nginx's variables.
    pub fn variable(&self) -> String {
        self.0.replace('-', "_")
    }

    /// A regular expression for every spelling, in lower case.
    pub fn pattern(&self) -> String {
        self.0.replace('-', "[^a-z0-9]")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut begins = true;
        for letter in self.0.chars() {
            let letter = if begins { letter.to_ascii_uppercase() } else { letter };
            write!(f, "{letter}")?;
            begins = letter == '-';
        }
        Ok(())
    }
}

/// The system's trusted certificates, where Debian and Alpine keep them.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What a configuration contains.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// Where it asks.
    pub verify: SocketAddr,
    /// The application.
    pub upstream: Authority,
    /// With `https`, the certificates that it is verified with: a path.
    pub upstream_ca: Option<String>,
    /// The hosts that it serves: names, or `*.` and a suffix; empty: every host.
    pub hosts: Vec<String>,
    /// The fields that the application gets from the answer: the identity headers of all routes,
    /// and the id of the request.
    pub names: Vec<Name>,
}

impl Site {
    /// Checks the arguments against the file.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub fn new(snapshot: &Snapshot, request: &Request) -> Result<Self, Unwritable> {
        let askers = snapshot.askers.as_ref().ok_or(Unwritable::NoVerify)?;
        let listener = snapshot.start.verify.first().copied().ok_or(Unwritable::NoVerify)?;
        let verify = match request.verify {
            Some(verify) => verify,
            None if listener.port() == 0 => return Err(Unwritable::NoPort),
            None => reachable(listener),
        };
        let mut names = Vec::new();
        for name in askers.names() {
            let is_plain =
                name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if !is_plain {
                return Err(Unwritable::Name(name.to_string()));
            }
            names.push(Name(name.as_str().to_owned()));
        }
        names.push(Name("x-request-id".to_owned()));
        let (is_https, upstream) = authority(&request.upstream)
            .ok_or_else(|| Unwritable::Upstream(request.upstream.clone()))?;
        if is_https && upstream.is_address() {
            return Err(Unwritable::Address(upstream.host));
        }
        let ca = request.upstream_ca.as_deref().unwrap_or(SYSTEM_CA);
        if !ca.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+=@".contains(&byte)) {
            return Err(Unwritable::Ca(ca.to_owned()));
        }
        Ok(Self {
            listen: request.listen,
            verify,
            upstream,
            upstream_ca: is_https.then(|| ca.to_owned()),
            hosts: hosts(snapshot, &request.hosts)?,
            names,
        })
    }

    /// The URL of the application.
    pub fn upstream_url(&self) -> String {
        let scheme = if self.upstream_ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.upstream)
    }

    /// The application as a Service: its host is `NAME`, `NAME.NAMESPACE` or
    /// `NAME.NAMESPACE.svc…`.
    pub fn service(&self) -> Service<'_> {
        let mut labels = self.upstream.host.split('.');
        let (name, namespace) = (labels.next().unwrap_or_default(), labels.next());
        let is_label = |label: &str| {
            label.starts_with(|first: char| first.is_ascii_alphabetic())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let is_service = is_label(name)
            && namespace.is_none_or(is_label)
            && labels.next().is_none_or(|label| label == "svc");
        if is_service {
            Service { name, namespace, is_elsewhere: false }
        } else {
            Service { name: "app", namespace: None, is_elsewhere: true }
        }
    }

    /// Names of the client that an application could take for the proxy's word.
    pub fn removed(&self) -> Vec<Name> {
        let names = VIEW.iter().chain(&METHOD_OVERRIDES).chain(&TRACE);
        names.map(|name| Name((*name).to_owned())).collect()
    }

    /// The fields that decide about a request.
    pub fn passed(&self) -> Vec<Name> {
        PASSED.iter().map(|name| Name((*name).to_owned())).collect()
    }

    /// Forwarding fields that nginx does not set for the `[verify]` listener.
    pub fn claims(&self) -> Vec<Name> {
        CLAIMS.iter().map(|name| Name((*name).to_owned())).collect()
    }

    /// Regular expressions for everything that a client must not say, in lower case.
    pub fn patterns(&self) -> Vec<String> {
        let names = self.names.iter().cloned().chain(self.removed());
        // All but those that the proxy sets.
        let forwarded = ["x[^a-z0-9-]forwarded.*", "x-forwarded([^-].*)?"].map(str::to_owned);
        let others = format!("x-forwarded-({})", all_but(&["for", "proto"]));
        let names = names.map(|name| name.pattern()).chain(misspelt());
        names.chain(forwarded).chain([others]).collect()
    }

    /// The same for Traefik, in one expression. It sets X-Real-Ip and more of X-Forwarded itself.
    pub fn taken(&self) -> String {
        let removed = self.removed().into_iter().filter(|name| name.lower() != "x-real-ip");
        let names = self.names.iter().cloned().chain(removed).map(|name| name.pattern());
        let names: Vec<String> = names.chain(misspelt()).collect();
        let own = all_but(&["for", "host", "port", "proto", "server"]);
        format!(
            "(?i)^(authorization|cookie|{}|x[^a-z0-9-]real[^a-z0-9]ip|x-real[^a-z0-9-]ip|x[^a-z0-9-]forwarded.*|x-forwarded([^-].*)?|x-forwarded-({own}))$",
            names.join("|")
        )
    }

    /// Fields that say what the request was, which nginx neither sets nor removes for another
    /// reason.
    pub fn unsaid(&self) -> Vec<Name> {
        let removed = self.removed();
        let is_set = |name: &Name| name.lower() == "x-forwarded-host" || removed.contains(name);
        self.claims().into_iter().filter(|name| !is_set(name)).collect()
    }

    /// Spellings with `_`, which many applications read as `-`: as many as a filter of the Gateway
    /// API may remove.
    pub fn underscored(&self) -> Vec<String> {
        let overrides = METHOD_OVERRIDES.iter().map(|name| Name((*name).to_owned()));
        let names = self.names.iter().cloned().chain(overrides);
        names.map(|name| name.variable()).take(MAX_REMOVED).collect()
    }

    /// The statuses of refusals other than 403, with their titles.
    pub fn statuses(&self) -> Vec<(u16, &'static str)> {
        let mut statuses: Vec<(u16, &'static str)> = Reason::ALL
            .into_iter()
            .map(Reason::status)
            .filter(|status| ANSWERED.contains(&status.as_u16()))
            .map(|status| (status.as_u16(), status.canonical_reason().unwrap_or("Refused")))
            .collect();
        statuses.sort_unstable();
        statuses.dedup();
        statuses
    }

    /// Whether a host is that of all below a domain.
    pub fn has_wildcard(&self) -> bool {
        self.hosts.iter().any(|host| host.starts_with('*'))
    }

    /// Caddy's site addresses. Its own wildcards stand for one label.
    pub fn addresses(&self) -> String {
        let port = self.listen.port();
        if self.hosts.is_empty() || self.has_wildcard() {
            return format!("http://:{port}");
        }
        let addresses: Vec<String> =
            self.hosts.iter().map(|host| format!("http://{host}:{port}")).collect();
        addresses.join(", ")
    }

    /// A regular expression for the hosts.
    pub fn host_pattern(&self) -> String {
        let of = |host: &String| host.replace('.', "\\.").replace('*', ".+");
        self.hosts.iter().map(of).collect::<Vec<_>>().join("|")
    }

    /// nginx's `server_name`.
    pub fn server_names(&self) -> String {
        if self.hosts.is_empty() { "_".to_owned() } else { self.hosts.join(" ") }
    }

    /// Traefik's rule.
    pub fn rule(&self) -> String {
        let rules: Vec<String> = self
            .hosts
            .iter()
            .map(|host| match host.strip_prefix('*') {
                None => format!("Host(`{host}`)"),
                Some(suffix) => format!("HostRegexp(`^.+{}$`)", suffix.replace('.', "\\.")),
            })
            .collect();
        if rules.is_empty() { "PathPrefix(`/`)".to_owned() } else { rules.join(" || ") }
    }

    /// Envoy's domains.
    pub fn domains(&self) -> String {
        let domains: Vec<String> = match self.hosts.as_slice() {
            [] => vec!["\"*\"".to_owned()],
            hosts => hosts.iter().map(|host| format!("\"{host}\"")).collect(),
        };
        domains.join(", ")
    }

    /// HAProxy's conditions: the kind of a match, and its value.
    pub fn matches(&self) -> Vec<(&'static str, &str)> {
        self.hosts
            .iter()
            .map(|host| match host.strip_prefix('*') {
                None => ("str", host.as_str()),
                Some(suffix) => ("end", suffix),
            })
            .collect()
    }

    /// The names as a list.
    pub fn copied(&self) -> String {
        self.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// The most names that `RequestHeaderModifier` may remove.
const MAX_REMOVED: usize = 16;

/// The statuses that the `[verify]` listener answers with, other than 200, 302 and 403.
const ANSWERED: [u16; 7] = [400, 401, 404, 405, 429, 431, 503];

/// Forwarding fields of other dialects, and of proxies in front of this one.
const CLAIMS: [&str; 31] = [
    "x-forwarded-uri",
    "x-forwarded-method",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-forwarded-by",
    "x-forwarded-user",
    "x-forwarded-email",
    "x-forwarded-groups",
    "x-forwarded-preferred-username",
    "x-forwarded-access-token",
    "x-forwarded-path",
    "x-forwarded-protocol",
    // Istio's and Traefik's word about a client certificate.
    "x-forwarded-client-cert",
    "x-forwarded-tls-client-cert",
    "x-forwarded-tls-client-cert-info",
    "x-original-url",
    "x-original-host",
    "x-rewrite-url",
    "x-rewrite-uri",
    "x-real-ip",
    "forwarded",
    "x-portcullis-uri",
    "x-portcullis-method",
    "x-portcullis-host",
    "x-portcullis-client",
    "x-portcullis-proto",
    "x-portcullis-status",
];

/// Regular expressions for the other spellings of fields that are the proxy's own.
fn misspelt() -> Vec<String> {
    let names = EXACT_SPELLING.iter().chain(&["transfer-encoding"]);
    names.map(|name| name.replace('-', "[^a-z0-9-]")).collect()
}

/// A regular expression for every text but these, which consist of lower-case letters. RE2 cannot
/// look ahead.
fn all_but(kept: &[&str]) -> String {
    let mut starts: BTreeSet<&str> = BTreeSet::new();
    for name in kept {
        starts.extend((0..=name.len()).map(|end| &name[..end]));
    }
    let mut others = Vec::new();
    for start in starts {
        let next: BTreeSet<char> =
            kept.iter().filter_map(|name| name.strip_prefix(start)?.chars().next()).collect();
        if !start.is_empty() && !kept.contains(&start) {
            others.push(start.to_owned());
        }
        others.push(if next.is_empty() {
            format!("{start}.+")
        } else {
            format!("{start}[^{}].*", next.iter().collect::<String>())
        });
    }
    others.join("|")
}

/// The address by which a proxy on the same machine reaches a listener.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        // It listens on IPv4 too.
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

/// Whether a URL without a path is `https://`, and its authority.
fn authority(url: &str) -> Option<(bool, Authority)> {
    let url: Uri = url.parse().ok()?;
    let has_path = url.path_and_query().is_some_and(|path| path.as_str() != "/");
    let (is_https, port) = match url.scheme_str()? {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return None,
    };
    if has_path {
        return None;
    }
    let authority = url.authority()?;
    let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_name = bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if authority.as_str().contains('@') || !(is_name || bare.parse::<Ipv6Addr>().is_ok()) {
        return None;
    }
    let port = authority.port_u16().unwrap_or(port);
    Some((is_https, Authority { host: bare.to_owned(), port }))
}

/// The hosts to serve: those asked for, each of which an external route must have, or those of the
/// external routes.
fn hosts(snapshot: &Snapshot, asked: &[String]) -> Result<Vec<String>, Unwritable> {
    let external: Vec<&HostPattern> = snapshot
        .routes
        .routes()
        .iter()
        .filter(|route| matches!(route.destination, Destination::External))
        .map(|route| &route.pattern.host)
        .collect();
    if external.is_empty() {
        return Err(Unwritable::NoRoute);
    }
    let mut hosts: Vec<String> = Vec::new();
    for host in asked {
        let host = host.to_ascii_lowercase();
        let example = host.strip_prefix("*.").map_or(host.clone(), |rest| format!("x.{rest}"));
        let is_name =
            example.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !is_name || !external.iter().any(|pattern| pattern.matches(&example)) {
            return Err(Unwritable::Host(host));
        }
        hosts.push(host);
    }
    if asked.is_empty() && !external.contains(&&HostPattern::Any) {
        hosts.extend(external.iter().filter_map(|pattern| match pattern {
            HostPattern::Exact(name) => Some(name.to_string()),
            HostPattern::Suffix(suffix) => Some(format!("*{suffix}")),
            HostPattern::Any => None,
        }));
    }
    hosts.sort_unstable();
    hosts.dedup();
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_authority_of_an_application_is_taken() {
        let of = |url: &str| authority(url).map(|(_, authority)| authority.to_string());
        assert_eq!(of("http://127.0.0.1:3000").as_deref(), Some("127.0.0.1:3000"));
        assert_eq!(of("http://app.internal/").as_deref(), Some("app.internal:80"));
        assert_eq!(of("http://[::1]:80").as_deref(), Some("[::1]:80"));
        assert_eq!(of("https://app").as_deref(), Some("app:443"));
        for url in
            ["ftp://app", "app:80", "http://app/x", "http://u@app", "http://a{b", "http://a;b"]
        {
            assert_eq!(of(url), None, "{url}");
        }
    }

    #[test]
    fn an_application_in_a_cluster_is_a_service() {
        let of = |host: &str| {
            let site = Site {
                listen: SocketAddr::from(([0, 0, 0, 0], 80)),
                verify: SocketAddr::from(([127, 0, 0, 1], 9902)),
                upstream: Authority { host: host.to_owned(), port: 80 },
                upstream_ca: None,
                hosts: Vec::new(),
                names: Vec::new(),
            };
            let of = site.service();
            (!of.is_elsewhere).then(|| (of.name.to_owned(), of.namespace.map(str::to_owned)))
        };
        assert_eq!(of("app"), Some(("app".to_owned(), None)));
        let in_shop = Some(("app".to_owned(), Some("shop".to_owned())));
        assert_eq!(of("app.shop"), in_shop);
        assert_eq!(of("app.shop.svc.cluster.local"), in_shop);
        for other in ["127.0.0.1", "::1", "app.example.com", "app_1", "1app"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn every_other_text_matches() {
        assert_eq!(
            all_but(&["for", "fo"]),
            "[^f].*|f|f[^o].*|fo[^r].*|for.+",
            "`fo` itself is kept"
        );
        assert_eq!(all_but(&["a", "bc"]), "[^ab].*|a.+|b|b[^c].*|bc.+");
    }

    #[test]
    fn a_name_has_its_spellings() {
        let name = Name("x-auth-user".to_owned());
        assert_eq!(name.to_string(), "X-Auth-User");
        assert_eq!(name.variable(), "x_auth_user");
        assert_eq!(name.pattern(), "x[^a-z0-9]auth[^a-z0-9]user");
    }
}
