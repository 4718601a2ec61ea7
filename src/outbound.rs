//! Fetching small documents of others over HTTP: key sets and issuers' metadata.
//!
//! One GET on a connection of its own, bounded in everything: the time to connect, the time in all
//! (so that a body that drips is cut), the bytes. A redirect is followed only to the same scheme,
//! host and port, since whoever answers for that place answers for the document; the proxy
//! variables of the environment are not read. No error shows the query of a URL, which may hold
//! somebody's credentials.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, LOCATION,
    USER_AGENT,
};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// The most bytes of a document that are read.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// How long one fetch may take from the look-up of the name to the last byte, redirects included.
pub const TOTAL_TIME: Duration = Duration::from_secs(10);

/// How long one address may take to accept a connection; the next one is tried then.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 3;

/// The longest response head, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// An absolute `http` or `https` URL without user name, password or fragment.
///
/// Read by the parser of `http` and not by `url`, which repairs what it reads as browsers do: it
/// takes `0x7f.1` for 127.0.0.1 and `\\` for `/`, and what was checked would not be what was
/// written.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    is_https: bool,
    host: String,
    port: u16,
    target: PathAndQuery,
}

/// Why a text is no such URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It does not begin with `http://` or `https://`.
    #[error("it does not begin with https:// or http://")]
    Scheme,
    /// A user name or password.
    #[error("it holds a user name or password")]
    UserInfo,
    /// A fragment, which no server sees.
    #[error("it has a `#`")]
    Fragment,
    /// The rest.
    #[error("its host, port or path cannot be read")]
    Malformed,
}

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`UrlError`]
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(UrlError::Scheme),
        };
        // The parser drops a fragment without a word.
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let parts = text.parse::<Uri>().map_err(|_| UrlError::Malformed)?.into_parts();
        let authority = parts.authority.ok_or(UrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        // A port that is none is dropped as well.
        let has_port = authority.as_str().len() > authority.host().len();
        if authority.host().is_empty()
            || (has_port && authority.port_u16().is_none_or(|port| port == 0))
        {
            return Err(UrlError::Malformed);
        }
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let target = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { is_https, host: authority.host().to_ascii_lowercase(), port, target })
    }

    /// Whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Whether it leads to this machine and nowhere else.
    pub fn is_loopback(&self) -> bool {
        self.address().map_or(self.host == "localhost", |ip| ip.to_canonical().is_loopback())
    }

    /// The path, without query.
    pub fn path(&self) -> &str {
        self.target.path()
    }

    /// The query.
    pub fn query(&self) -> Option<&str> {
        self.target.query()
    }

    /// Another document of the same place; `None` where `path` cannot be a path.
    pub fn with_path(&self, path: &str) -> Option<Self> {
        let target = path.parse().ok().filter(|_| path.starts_with('/'))?;
        Some(Self { target, ..self.clone() })
    }

    /// Where a `Location` leads, if that is the same place: a reference to be resolved (RFC 9110
    /// §10.2.2, RFC 3986 §5.2).
    fn redirected(&self, location: &str) -> Option<Self> {
        // The library would repair these, and what is ambiguous is refused here.
        if !location.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return None;
        }
        let scheme = if self.is_https { "https" } else { "http" };
        let base = format!("{scheme}://{}{}", self.authority(), self.target);
        let mut there = url::Url::parse(&base).ok()?.join(location).ok()?;
        // For browsers.
        there.set_fragment(None);
        let same_place = |other: &Self| {
            (other.is_https, &other.host, other.port) == (self.is_https, &self.host, self.port)
        };
        Self::parse(there.as_str()).ok().filter(same_place)
    }

    fn address(&self) -> Option<std::net::IpAddr> {
        self.bare_host().parse().ok()
    }

    /// The host as a resolver and a certificate know it: an IPv6 address has no brackets there.
    pub fn bare_host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }

    /// The port, which the scheme may imply.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port, without a port that the scheme implies.
    fn authority(&self) -> String {
        if self.port == if self.is_https { 443 } else { 80 } {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Without the query.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Fetches documents.
#[derive(Clone)]
pub struct Outbound {
    tls: Option<tokio_rustls::TlsConnector>,
}

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The name could not be looked up.
    #[error("the name {host} cannot be looked up: {source}")]
    Name {
        /// The name.
        host: String,
        /// What the system says.
        source: io::Error,
    },
    /// No address of the name accepted a connection.
    #[error("no connection to {address}: {source}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The host's certificate was not accepted, or it spoke no TLS.
    #[error("TLS with {host} failed: {source}")]
    Tls {
        /// The host.
        host: String,
        /// What rustls says.
        source: io::Error,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("the answer broke off or was no HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// It took too long.
    #[error("it took longer than {} s", TOTAL_TIME.as_secs())]
    Timeout,
    /// Another status than 200.
    #[error("{url} answered {status}")]
    Status {
        /// What was asked for.
        url: Url,
        /// The status.
        status: u16,
    },
    /// A redirect to another scheme, host or port, or to nowhere.
    #[error(
        "{url} redirects to another place; redirects are followed within the same scheme, host and port only"
    )]
    Redirect {
        /// What was asked for.
        url: Url,
    },
    /// One redirect after the other.
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    /// It is too large.
    #[error("the answer is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// It is compressed, although that was not asked for.
    #[error("the answer is compressed, although that was not asked for")]
    Encoded,
}

impl FetchError {
    /// The error as one word of a closed set, for a metric's label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Name { .. } | Self::Connect { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Http(_) => "broken",
            Self::Timeout => "timeout",
            Self::Status { .. } => "status",
            Self::Redirect { .. } | Self::Redirects => "redirect",
            Self::TooLarge => "too_large",
            Self::Encoded => "invalid",
        }
    }

    /// Whether the server says that there is no such document.
    pub const fn is_absent(&self) -> bool {
        // 408 and 429 ask for patience.
        matches!(self, Self::Status { status: 400..=499, .. })
            && !matches!(self, Self::Status { status: 408 | 429, .. })
    }
}

impl Outbound {
    /// Trusts whom this configuration trusts; without one, nobody.
    pub fn new(tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { tls: tls.map(Into::into) }
    }

    /// The document at `url`.
    ///
    /// # Errors
    /// [`FetchError`]
    pub async fn get(&self, url: &Url) -> Result<Bytes, FetchError> {
        tokio::time::timeout(TOTAL_TIME, self.follow(url)).await.unwrap_or(Err(FetchError::Timeout))
    }

    async fn follow(&self, url: &Url) -> Result<Bytes, FetchError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (response, _connection) = self.ask(&url).await?;
            match response.status().as_u16() {
                200 => return read_body(response).await,
                301 | 302 | 303 | 307 | 308 => {
                    let location = response
                        .headers()
                        .get(LOCATION)
                        .and_then(|location| location.to_str().ok());
                    url = location
                        .and_then(|location| url.redirected(location))
                        .ok_or(FetchError::Redirect { url })?;
                }
                status => return Err(FetchError::Status { url, status }),
            }
        }
        Err(FetchError::Redirects)
    }

    /// One request and the head of its answer. The connection ends with what is returned beside it.
    async fn ask(
        &self,
        url: &Url,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), FetchError> {
        let stream = dial(url).await?;
        if !url.is_https {
            return exchange(stream, url).await;
        }
        let failed = |source| FetchError::Tls { host: url.host.clone(), source };
        let name = ServerName::try_from(url.bare_host().to_owned())
            .map_err(|error| failed(io::Error::other(error)))?;
        let tls = self
            .tls
            .as_ref()
            .ok_or_else(|| failed(io::Error::other("no certificate is trusted")))?;
        exchange(tls.connect(name, stream).await.map_err(failed)?, url).await
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").finish_non_exhaustive()
    }
}

/// Connects to the first address that answers.
async fn dial(url: &Url) -> Result<TcpStream, FetchError> {
    let named = |source| FetchError::Name { host: url.host.clone(), source };
    let addresses: Vec<SocketAddr> = match url.address() {
        Some(ip) => vec![SocketAddr::new(ip, url.port)],
        None => {
            tokio::net::lookup_host((url.host.as_str(), url.port)).await.map_err(named)?.collect()
        }
    };
    let mut last = named(io::Error::other("it has no address"));
    for address in addresses {
        let connected = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(source) => last = FetchError::Connect { address, source },
        }
    }
    Err(last)
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Url,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), FetchError> {
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).handshake(TokioIo::new(io)).await?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the handle is returned and ends the task with the answer"
    )]
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong is told to whoever waits for the answer.
        let _ = connection.await;
    }));
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = Uri::from(url.target.clone());
    let headers = request.headers_mut();
    // A host that was parsed as one can be a field's value.
    headers.insert(
        HOST,
        HeaderValue::from_str(&url.authority()).unwrap_or_else(|_| HeaderValue::from_static("")),
    );
    headers.insert(
        ACCEPT,
        HeaderValue::from_static("application/json, application/jwk-set+json, */*;q=0.5"),
    );
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("portcullis/", env!("CARGO_PKG_VERSION"))),
    );
    Ok((sender.send_request(request).await?, task))
}

/// The body, as far as it is not too large.
async fn read_body(response: Response<Incoming>) -> Result<Bytes, FetchError> {
    if response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(FetchError::Encoded);
    }
    let announced = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_DOCUMENT_BYTES as u64) {
        return Err(FetchError::TooLarge);
    }
    match Limited::new(response.into_body(), MAX_DOCUMENT_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(FetchError::Http(*error)),
            Err(_) => Err(FetchError::TooLarge),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, shown) in [
            ("https://login.test", "https://login.test/"),
            ("HTTPS://Login.Test:443/a?secret=1", "https://login.test/a"),
            ("http://127.0.0.1:8080/keys.json", "http://127.0.0.1:8080/keys.json"),
            ("https://[::1]:8443/", "https://[::1]:8443/"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), shown);
        }
        for (text, error) in [
            ("login.test/keys", UrlError::Scheme),
            ("file:///etc/passwd", UrlError::Scheme),
            ("https://user:pw@login.test/", UrlError::UserInfo),
            ("https://login.test/#keys", UrlError::Fragment),
            ("https://", UrlError::Malformed),
            ("https://login.test:0/", UrlError::Malformed),
            ("https://login.test:99999/", UrlError::Malformed),
            ("https://login.test:/", UrlError::Malformed),
            ("https://login test/", UrlError::Malformed),
        ] {
            assert_eq!(Url::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn loopback_is_this_machine_only() {
        for (text, expected) in [
            ("http://localhost/", true),
            ("http://127.8.8.8/", true),
            ("http://[::1]/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("http://localhost.test/", false),
            ("http://10.0.0.1/", false),
            ("http://0.0.0.0/", false),
        ] {
            assert_eq!(Url::parse(text).unwrap().is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn redirects_stay_in_their_place() {
        let url = Url::parse("https://login.test/a/b?c").unwrap();
        for (location, expected) in [
            ("/keys?x=1", Some("https://login.test/keys")),
            ("https://login.test:443/keys#top", Some("https://login.test/keys")),
            ("http://login.test/keys", None),
            ("https://login.test:8443/keys", None),
            ("https://evil.test/keys", None),
            ("//evil.test/keys", None),
            ("https://user@login.test/", None),
            ("//login.test/keys", Some("https://login.test/keys")),
            ("//login.test:8443/keys", None),
            ("//user@login.test/keys", None),
            ("keys", Some("https://login.test/a/keys")),
            ("./keys", Some("https://login.test/a/keys")),
            ("../keys", Some("https://login.test/keys")),
            ("../../../keys", Some("https://login.test/keys")),
            ("/x/./y/../keys", Some("https://login.test/x/keys")),
            ("..", Some("https://login.test/")),
            (".", Some("https://login.test/a/")),
            ("a//b", Some("https://login.test/a/a//b")),
            ("?x=../y", Some("https://login.test/a/b")),
            ("", Some("https://login.test/a/b")),
            ("mailto:keys", None),
            ("evil.test:443/keys", None),
            ("a b", None),
        ] {
            assert_eq!(
                url.redirected(location).map(|url| url.to_string()).as_deref(),
                expected,
                "{location}"
            );
        }
        for (location, query) in [
            ("/keys?x=1", Some("x=1")),
            ("?x=../y", Some("x=../y")),
            ("", Some("c")),
            ("keys", None),
        ] {
            assert_eq!(url.redirected(location).unwrap().query(), query, "{location}");
        }
    }
}
