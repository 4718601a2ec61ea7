//! The settings of an upstream, and where its application is.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;

/// The checked settings of an `[upstream.NAME]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// The section's name.
    pub name: String,
    /// The address of the application.
    pub application: Application,
    /// The `Host` to send instead of the received one.
    pub host: Option<HeaderValue>,
    /// The maximum time to connect, including TLS.
    pub connect_timeout: Duration,
    /// The maximum time from the last byte of the request to the response head.
    pub response_timeout: Duration,
    /// The maximum time between bytes of a response body or a tunnel.
    pub idle_timeout: Duration,
    /// How long to keep an unused connection.
    pub keep_idle: Duration,
    /// After which requests a connection is used again.
    pub keep_alive: KeepAlive,
    /// Whether to use HTTP/2.
    pub http2: bool,
    /// The maximum number of requests in flight; `None`: any number.
    pub max_requests: Option<usize>,
    /// The maximum time of an exchange, from its beginning to the end of its response.
    pub total_timeout: Option<Duration>,
    /// Whether the application folds case in paths.
    pub folds_case: bool,
    /// The PEM text to verify its certificate against; `None`: the root certificates of the system.
    pub ca: Option<Vec<u8>>,
    /// The certificate that it is shown as PEM, and the SHA-256 of the private key.
    pub own_certificate: Option<(Vec<u8>, [u8; 32])>,
    /// The name that it is asked for and that its certificate must have; `None`: the host.
    pub server_name: Option<String>,
}

impl UpstreamSettings {
    /// Whether it is the built-in application.
    pub fn is_builtin(&self) -> bool {
        self.application == Application::Echo
    }
}

/// After which requests a connection is used again.
///
/// An application that responds without reading the body, and keeps the connection open, parses the
/// body as the next request. The client can write that as it likes, identity headers included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// After none.
    Never,
    /// After requests that could be sent again if the connection were lost: without a body, with an
    /// idempotent method.
    Repeatable,
    /// After all but those with a body for which the method defines no meaning: the application reads
    /// each other body to its end.
    Always,
}

/// The address of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Application {
    /// Reached over HTTP.
    Http {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whether to use TLS.
        tls: bool,
    },
    /// Reached over HTTP on a socket of this machine (AF_UNIX).
    Unix {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The built-in application, which responds with what it received.
    Echo,
}

impl Application {
    /// The scheme of the URLs by which it is addressed.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Http { tls: true, .. } => "https",
            Self::Http { tls: false, .. } | Self::Unix { .. } | Self::Echo => "http",
        }
    }
}

impl std::fmt::Display for Application {
    /// Its URL.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { host, port, .. } => {
                let scheme = self.scheme();
                let is_ipv6 = host.contains(':');
                let (open, close) = if is_ipv6 { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}://{open}{host}{close}:{port}")
            }
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Echo => f.write_str("the built-in application"),
        }
    }
}
