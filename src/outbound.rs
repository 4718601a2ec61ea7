//! Fetches small documents over HTTP: key sets, issuers' metadata, and what a provider that people
//! log in at says about them.
//!
//! Each fetch is one request on its own connection. The connect time, the total time (so that a
//! slow drip of data is cut off) and the size are bounded. Redirects are followed only without
//! credentials, and only within the same scheme, host and port, where the same party is responsible
//! for the document. The proxy variables of the environment are ignored. Errors never show the query
//! of a URL, which may contain credentials.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_TYPE, HOST, LOCATION, USER_AGENT,
};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// The maximum size of a document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// The maximum time of one fetch, from the DNS lookup to the last byte, including redirects.
pub const TOTAL_TIME: Duration = Duration::from_secs(10);

/// The maximum time to connect to one address before the next one is tried.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// The maximum number of redirects.
const MAX_REDIRECTS: usize = 3;

/// The maximum size of a response head, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// An absolute `http` or `https` URL without user name, password or fragment.
///
/// Parsed with `http` and not with `url`, which repairs its input as browsers do: it reads `0x7f.1`
/// as 127.0.0.1 and `\\` as `/`, so the checked URL would differ from the written one.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    is_https: bool,
    host: String,
    port: u16,
    target: PathAndQuery,
}

/// Why a text is not such a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It does not begin with `http://` or `https://`.
    #[error("it does not begin with https:// or http://")]
    Scheme,
    /// It contains a user name or password.
    #[error("it contains a user name or password")]
    UserInfo,
    /// It has a fragment, which no server sees.
    #[error("it has a `#`")]
    Fragment,
    /// Any other error.
    #[error("its host, port or path cannot be read")]
    Malformed,
}

impl Url {
    /// Parses a URL.
    ///
    /// # Errors
    /// A [`UrlError`] that says which part is not allowed or cannot be parsed.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(UrlError::Scheme),
        };
        // The parser silently drops a fragment.
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let parts = text.parse::<Uri>().map_err(|_| UrlError::Malformed)?.into_parts();
        let authority = parts.authority.ok_or(UrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        // It also drops an invalid port.
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

    /// Whether the scheme is `https`.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Whether the host is always this machine.
    pub fn is_loopback(&self) -> bool {
        self.address().map_or(self.host == "localhost", |ip| ip.to_canonical().is_loopback())
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.path()
    }

    /// The query.
    pub fn query(&self) -> Option<&str> {
        self.target.query()
    }

    /// The URL of another document at the same host; `None` if `path` is not a valid path.
    pub fn with_path(&self, path: &str) -> Option<Self> {
        let target = path.parse().ok().filter(|_| path.starts_with('/'))?;
        Some(Self { target, ..self.clone() })
    }

    /// Resolves a `Location` (RFC 9110 §10.2.2, RFC 3986 §5.2). Returns `None` if it leads to
    /// another scheme, host or port.
    fn redirected(&self, location: &str) -> Option<Self> {
        // The library would repair these, but ambiguous input is refused here.
        if !location.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return None;
        }
        let scheme = if self.is_https { "https" } else { "http" };
        let base = format!("{scheme}://{}{}", self.authority(), self.target);
        let mut there = url::Url::parse(&base).ok()?.join(location).ok()?;
        // A fragment is for browsers only.
        there.set_fragment(None);
        let same_place = |other: &Self| {
            (other.is_https, &other.host, other.port) == (self.is_https, &self.host, self.port)
        };
        Self::parse(there.as_str()).ok().filter(same_place)
    }

    /// The whole URL, with its query and with these parameters after it.
    pub fn with_parameters(&self, parameters: &[(&str, &str)]) -> String {
        let joint = match self.query() {
            _ if parameters.is_empty() => "",
            None => "?",
            Some("") => "",
            Some(_) => "&",
        };
        let query = self.query().map_or_else(String::new, |query| format!("?{query}"));
        let added: String =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        format!("{self}{query}{joint}{added}")
    }

    fn address(&self) -> Option<std::net::IpAddr> {
        self.bare_host().parse().ok()
    }

    /// The host as a resolver and a certificate expect it: an IPv6 address without brackets.
    pub fn bare_host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }

    /// The port; the scheme's default if the URL has none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port; a default port is omitted.
    fn authority(&self) -> String {
        if self.port == if self.is_https { 443 } else { 80 } {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Omits the query.
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

/// What is sent to a URL.
#[derive(Clone, Default)]
struct Sent {
    method: Method,
    authorization: Option<HeaderValue>,
    /// The fields of a form, encoded.
    form: Option<Bytes>,
}

/// Fetches documents.
#[derive(Clone)]
pub struct Outbound {
    tls: Option<tokio_rustls::TlsConnector>,
}

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The DNS lookup failed.
    #[error("cannot resolve {host}: {source}")]
    Name {
        /// The host name.
        host: String,
        /// The system's error.
        source: io::Error,
    },
    /// No address of the host accepted a connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The server's certificate was rejected, or it does not speak TLS.
    #[error("TLS with {host} failed: {source}")]
    Tls {
        /// The host.
        host: String,
        /// The error of rustls.
        source: io::Error,
    },
    /// The connection broke, or the response was not valid HTTP.
    #[error("the response is incomplete or not valid HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The fetch took too long.
    #[error("it took longer than {} s", .0.as_secs())]
    Timeout(Duration),
    /// The status was not 200.
    #[error("{url} answered {status}")]
    Status {
        /// The requested URL.
        url: Url,
        /// The status.
        status: u16,
    },
    /// A redirect to another scheme, host or port, or without a usable target.
    #[error(
        "{url} redirects elsewhere; redirects are only followed within the same scheme, host and port"
    )]
    Redirect {
        /// The requested URL.
        url: Url,
    },
    /// Too many redirects.
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    /// The document is too large.
    #[error("the response is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// The response is compressed, although the request did not allow it.
    #[error("the response is compressed, although the request did not allow it")]
    Encoded,
}

impl FetchError {
    /// The label of the metric, a word of a closed set.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Name { .. } | Self::Connect { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Http(_) => "broken",
            Self::Timeout(_) => "timeout",
            Self::Status { .. } => "status",
            Self::Redirect { .. } | Self::Redirects => "redirect",
            Self::TooLarge => "too_large",
            Self::Encoded => "invalid",
        }
    }

    /// Whether the request may have reached the server.
    pub const fn may_have_arrived(&self) -> bool {
        !matches!(self, Self::Name { .. } | Self::Connect { .. } | Self::Tls { .. })
    }

    /// Whether the server says that the document does not exist.
    pub const fn is_absent(&self) -> bool {
        // 408 and 429 mean: try again later.
        matches!(self, Self::Status { status: 400..=499, .. })
            && !matches!(self, Self::Status { status: 408 | 429, .. })
    }
}

impl Outbound {
    /// Trusts the certificates of this TLS configuration; without one, `https` always fails.
    pub fn new(tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { tls: tls.map(Into::into) }
    }

    /// Fetches the document at `url`.
    ///
    /// # Errors
    /// A [`FetchError`] if it cannot be fetched within the limits above.
    pub async fn get(&self, url: &Url) -> Result<Bytes, FetchError> {
        let asking = tokio::time::timeout(TOTAL_TIME, self.follow(url));
        asking.await.unwrap_or(Err(FetchError::Timeout(TOTAL_TIME)))
    }

    /// Fetches the document at `url` with credentials, whatever the status of the response. No
    /// redirect is followed.
    ///
    /// # Errors
    /// A [`FetchError`] if there is no complete response within the limits above.
    pub async fn get_with(
        &self,
        url: &Url,
        authorization: HeaderValue,
    ) -> Result<(u16, Bytes), FetchError> {
        let sent = Sent { authorization: Some(authorization), ..Sent::default() };
        self.once(url, sent, TOTAL_TIME).await
    }

    /// Sends a form to `url` and returns the response, whatever its status. It may take as long as
    /// `patience`. No redirect is followed.
    ///
    /// # Errors
    /// A [`FetchError`] if there is no complete response within that time and the limits above.
    pub async fn post(
        &self,
        url: &Url,
        form: String,
        authorization: Option<HeaderValue>,
        patience: Duration,
    ) -> Result<(u16, Bytes), FetchError> {
        let form = Some(form.into());
        self.once(url, Sent { method: Method::POST, authorization, form }, patience).await
    }

    async fn once(
        &self,
        url: &Url,
        sent: Sent,
        patience: Duration,
    ) -> Result<(u16, Bytes), FetchError> {
        let asking = async {
            let (response, _connection) = self.ask(url, &sent).await?;
            let status = response.status().as_u16();
            if (300..400).contains(&status) {
                return Err(FetchError::Redirect { url: url.clone() });
            }
            Ok((status, read_body(response).await?))
        };
        let answered = tokio::time::timeout(patience, asking).await;
        answered.unwrap_or(Err(FetchError::Timeout(patience)))
    }

    async fn follow(&self, url: &Url) -> Result<Bytes, FetchError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (response, _connection) = self.ask(&url, &Sent::default()).await?;
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

    /// Sends one request and returns the head of the response. The connection ends when the
    /// returned handle is dropped.
    async fn ask(
        &self,
        url: &Url,
        sent: &Sent,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), FetchError> {
        let stream = dial(url).await?;
        if !url.is_https {
            return exchange(stream, url, sent).await;
        }
        let failed = |source| FetchError::Tls { host: url.host.clone(), source };
        let name = ServerName::try_from(url.bare_host().to_owned())
            .map_err(|error| failed(io::Error::other(error)))?;
        let tls =
            self.tls.as_ref().ok_or_else(|| failed(io::Error::other("no trusted certificates")))?;
        exchange(tls.connect(name, stream).await.map_err(failed)?, url, sent).await
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").finish_non_exhaustive()
    }
}

/// Connects to the first address that accepts.
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
    sent: &Sent,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), FetchError> {
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).handshake(TokioIo::new(io)).await?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the handle is returned, so the task ends with the response"
    )]
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        // Errors reach the caller through the response.
        let _ = connection.await;
    }));
    let mut request = Request::new(Full::new(sent.form.clone().unwrap_or_default()));
    *request.uri_mut() = Uri::from(url.target.clone());
    *request.method_mut() = sent.method.clone();
    let headers = request.headers_mut();
    if let Some(authorization) = &sent.authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    if sent.form.is_some() {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
    }
    // A parsed host is always a valid field value.
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

/// Reads the body, up to the maximum size.
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
    fn only_loopback_addresses_count_as_loopback() {
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
    fn redirects_stay_within_their_origin() {
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
