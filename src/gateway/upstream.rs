//! An application behind the gateway: its address, its timeouts, and the connections that are kept
//! to it.
//!
//! Each worker keeps its own connections, so that no connection is touched by two cores. A
//! connection is reused only after its response was read to the end. If a request is cancelled, its
//! connection is closed, so that a response can never reach the wrong request.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::body::{BodyError, ClientBody, IdleTimer, LONG_AFTER, Upload, UploadFailure};
pub use super::dial::ConnectError;
use super::dial::Dialer;
use super::framing::FramingFault;
use super::headers::strip_trailers;
use super::watched_socket::{SocketState, WatchedSocket};
use crate::coalesce::Coalescing;
use crate::reason::Reason;
use crate::telemetry::fold::Fold;

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
    /// Whether the application folds case in paths.
    pub folds_case: bool,
    /// The PEM text to verify its certificate against; `None`: the root certificates of the system.
    pub ca: Option<Vec<u8>>,
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
    /// After requests without a body.
    WithoutBody,
    /// Also after requests with a body, if the method defines a meaning for it: the application
    /// reads each of them to its end.
    Always,
}

/// The address of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Application {
    /// Reached over HTTP/1.1.
    Http {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whether to use TLS.
        tls: bool,
    },
    /// The built-in application, which responds with what it received.
    Echo,
}

impl Application {
    /// The scheme of the URLs by which it is addressed.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Http { tls: true, .. } => "https",
            Self::Http { tls: false, .. } | Self::Echo => "http",
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
            Self::Echo => f.write_str("the built-in application"),
        }
    }
}

/// An application and the connections to it.
pub struct Upstream {
    settings: UpstreamSettings,
    tls: Option<(tokio_rustls::TlsConnector, ServerName<'static>)>,
    dialer: Dialer,
    folds: Folds,
    /// One list per worker, oldest first.
    idle: Box<[Mutex<VecDeque<Idle>>]>,
}

/// One fold for each event and reason that is logged for an upstream.
#[derive(Debug, Default)]
struct Folds {
    unreachable: Fold,
    failed: Fold,
    timeout: Fold,
    broke_off: Fold,
    idle: Fold,
}

/// A connection that waits for its next request.
struct Idle {
    connection: Connection,
    since: Instant,
    /// How long it may wait.
    keep: Duration,
}

/// A connection to the application. Dropping it closes the connection.
struct Connection {
    sender: SendRequest<ClientBody>,
    /// Whether a response has begun, and whether the socket is full.
    socket: SocketState,
    /// The timer for the response head. It is kept across exchanges, since it need not be set anew
    /// for each.
    timer: IdleTimer,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Prepares the connection for a request that is about to be sent.
    fn prepare(&self, upload: Option<&Upload>) {
        self.socket.reset();
        if let Some(upload) = upload {
            upload.sent_over(&self.socket);
        }
    }
}

/// Why there was no response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamFailure {
    /// No address, no connection, or no TLS session.
    #[error("no connection: {0}")]
    Unreachable(#[source] ConnectError),
    /// The connection broke, or the received bytes were not HTTP.
    #[error("{}", describe_failure(.0))]
    Failed(#[source] hyper::Error),
    /// A 101 that the client did not request, or for another protocol.
    #[error("the upstream switched to a protocol that was not requested")]
    Protocol,
    /// A response whose length cannot be determined.
    #[error("the upstream's response cannot be forwarded: {0}")]
    Framing(#[from] FramingFault),
    /// No response head in time.
    #[error("the upstream did not respond within its response_timeout")]
    Timeout,
    /// The request body did not arrive.
    #[error("{0}")]
    Upload(#[from] UploadFailure),
}

/// The maximum size of a response head, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// The maximum number of fields in a response head. This is hyper's own limit, up to which it does
/// not allocate memory for them.
const MAX_FIELDS: usize = 100;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The maximum number of idle connections from one worker to one upstream.
const MAX_IDLE: usize = 2048;

impl Upstream {
    /// Creates an upstream for this many workers. Pass `tls` for `https://`, and only then.
    pub fn new(
        settings: UpstreamSettings,
        tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
        workers: usize,
    ) -> Self {
        let tls = tls.map(|(config, name)| (tokio_rustls::TlsConnector::from(config), name));
        let idle = (0..workers.max(1)).map(|_| Mutex::new(VecDeque::new())).collect();
        Self { settings, tls, dialer: Dialer::default(), folds: Folds::default(), idle }
    }

    /// The settings of its section.
    pub fn settings(&self) -> &UpstreamSettings {
        &self.settings
    }

    /// The fold for requests that got no response for this reason.
    pub fn no_response(&self, reason: Reason) -> &Fold {
        match reason {
            Reason::UpstreamUnreachable => &self.folds.unreachable,
            Reason::UpstreamTimeout => &self.folds.timeout,
            _ => &self.folds.failed,
        }
    }

    /// The fold for responses that broke off for this reason.
    pub fn broke_off(&self, reason: Reason) -> &Fold {
        match reason {
            Reason::UpstreamTimeout => &self.folds.idle,
            _ => &self.folds.broke_off,
        }
    }

    /// Closes the connections that have been idle for too long. Returns the number of those left.
    pub fn sweep(&self, worker: usize) -> usize {
        let now = Instant::now();
        let mut idle = self.idle(worker);
        idle.retain(|idle| {
            !idle.connection.sender.is_closed() && now.duration_since(idle.since) < idle.keep
        });
        idle.len()
    }

    /// Sends a request and waits for the response head.
    ///
    /// A kept connection may end while a request is in flight. The request is sent again if no byte
    /// of it had left. It is also sent once more, on a new connection, if it may be repeated (RFC
    /// 9110 §9.2.2) and no byte of a response had arrived. `now` is when it is first sent.
    ///
    /// # Errors
    /// [`UpstreamFailure::Upload`] if the client's body is at fault, and another
    /// [`UpstreamFailure`] otherwise.
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        worker: usize,
        mut request: Request<ClientBody>,
        upload: Option<&Upload>,
        now: Instant,
    ) -> Result<(Response<Incoming>, Lease), UpstreamFailure> {
        let is_alone = self.sends_alone(&request);
        if is_alone && !request.headers().contains_key(header::UPGRADE) {
            let has_te = request.headers().contains_key(header::TE);
            let options = HeaderValue::from_static(if has_te { "te, close" } else { "close" });
            request.headers_mut().insert(header::CONNECTION, options);
        }
        // A kept connection that ends now would lose a request that may not be repeated.
        while !is_alone && let Some(mut connection) = self.take_idle(worker, now) {
            let again = repeatable(&request);
            connection.prepare(upload);
            let response = connection.sender.try_send_request(request);
            match self.exchange(response, &mut connection.timer, upload, now).await? {
                Ok(response) => return Ok((response, self.lease(worker, connection, false))),
                Err(mut error) => match (error.take_message(), again) {
                    (Some(unsent), _) => request = unsent,
                    (None, Some(again)) if !connection.socket.has_received() => {
                        request = again;
                        break;
                    }
                    (None, _) => return Err(failure(error.into_error(), upload)),
                },
            }
        }
        let connected =
            tokio::time::timeout(self.settings.connect_timeout, Box::pin(self.connect())).await;
        let mut connection = connected
            .unwrap_or(Err(ConnectError::Timeout))
            .map_err(UpstreamFailure::Unreachable)?;
        connection.prepare(upload);
        let response = connection.sender.send_request(request);
        match self.exchange(response, &mut connection.timer, upload, Instant::now()).await? {
            Ok(response) => Ok((response, self.lease(worker, connection, is_alone))),
            Err(error) => Err(failure(error, upload)),
        }
    }

    /// Waits for the response head. The timeout counts from the last byte of the request.
    async fn exchange<T>(
        &self,
        response: impl Future<Output = T>,
        timer: &mut IdleTimer,
        upload: Option<&Upload>,
        begun: Instant,
    ) -> Result<T, UpstreamFailure> {
        let mut response = std::pin::pin!(response);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(response) = response.as_mut().poll(cx) {
                return Poll::Ready(Ok(response));
            }
            if let Some(failure) = upload.and_then(Upload::failure) {
                return Poll::Ready(Err(failure.into()));
            }
            loop {
                let since = last_progress(begun, upload);
                ready!(timer.poll_until(since + self.settings.response_timeout, cx));
                // The upstream is not at fault if the client pauses in its upload: the client's own
                // timeout is running.
                match upload {
                    Some(upload) if upload.awaits_client() => {
                        ready!(
                            timer.poll_until(Instant::now() + self.settings.response_timeout, cx)
                        );
                    }
                    _ if last_progress(begun, upload) <= since => {
                        return Poll::Ready(Err(UpstreamFailure::Timeout));
                    }
                    _ => {}
                }
            }
        })
        .await
    }

    fn idle(&self, worker: usize) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle[worker % self.idle.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the most recently used connection that is ready for a request.
    fn take_idle(&self, worker: usize, now: Instant) -> Option<Connection> {
        let mut idle = self.idle(worker);
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let candidate = idle.get(at)?;
            if candidate.connection.sender.is_closed()
                || now.duration_since(candidate.since) >= candidate.keep
            {
                idle.remove(at);
            } else if candidate.connection.sender.is_ready() {
                return idle.remove(at).map(|idle| idle.connection);
            }
        }
        None
    }

    /// Whether a request gets a connection of its own, on which no other request follows.
    fn sends_alone(&self, request: &Request<ClientBody>) -> bool {
        let has_body = !request.body().is_end_stream();
        match self.settings.keep_alive {
            _ if self.settings.keep_idle.is_zero() => true,
            KeepAlive::Never => true,
            KeepAlive::WithoutBody => has_body,
            KeepAlive::Always => {
                has_body
                    // Many applications do not read such a body (RFC 9110 §9.3).
                    && matches!(
                        *request.method(),
                        Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS
                    )
            }
        }
    }

    fn lease(self: &Arc<Self>, worker: usize, connection: Connection, is_alone: bool) -> Lease {
        let keep_for = if is_alone { Duration::ZERO } else { self.settings.keep_idle };
        Lease { upstream: Arc::clone(self), worker, connection: Some(connection), keep_for }
    }

    async fn connect(&self) -> Result<Connection, ConnectError> {
        let Application::Http { host, port, .. } = &self.settings.application else {
            return Err(ConnectError::NoAddress);
        };
        let stream = self.dialer.dial(host, *port).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => handshake(Coalescing(stream)).await,
            Some((connector, name)) => {
                handshake(connector.connect(name.clone(), stream).await?).await
            }
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// When the request last made progress.
fn last_progress(begun: Instant, upload: Option<&Upload>) -> Instant {
    upload.map_or(begun, |upload| upload.last_progress().max(begun))
}

/// A copy of a request, if it may be sent twice: it has no body, and its method is idempotent.
fn repeatable(request: &Request<ClientBody>) -> Option<Request<ClientBody>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(ClientBody::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// How long to keep a connection after a response with these fields: not as long as the application
/// announces (`Keep-Alive: timeout=5`), so that the application does not close it first.
fn keep_alive_time(keep_idle: Duration, headers: &HeaderMap) -> Duration {
    let announced =
        headers.get(KEEP_ALIVE).and_then(|value| value.to_str().ok()).and_then(|value| {
            value
                .split(',')
                .find_map(|part| part.trim().strip_prefix("timeout=")?.trim().parse::<u32>().ok())
        });
    announced
        .map_or(keep_idle, |seconds| keep_idle.min(Duration::from_secs(u64::from(seconds)) * 3 / 4))
}

async fn handshake(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Connection, ConnectError> {
    let socket = SocketState::default();
    let io = WatchedSocket::new(io, socket.clone());
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .handshake(TokioIo::new(io))
        .await?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the handle is kept with the sender and ends the task with it"
    )]
    let task = tokio::spawn(async move {
        // Errors go to the task that waits for the response.
        let _ = connection.with_upgrades().await;
    });
    Ok(Connection {
        sender,
        socket,
        timer: IdleTimer::default(),
        _task: AbortOnDropHandle::new(task),
    })
}

fn describe_failure(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return format!(
            "the head of the upstream's response has more than {} KiB or {MAX_FIELDS} fields",
            MAX_HEAD / 1024
        );
    }
    let error = error.to_string();
    // hyper has no other error for the bytes that an HTTP/2 server sends at once.
    if error.contains("invalid HTTP version") {
        return "the upstream did not respond in HTTP/1.1; if it expects HTTP/2, which the gateway does not use for upstreams, configure it to listen for HTTP/1.1".to_owned();
    }
    format!("the upstream broke off the exchange: {error}")
}

/// A broken exchange is the client's fault if its body broke off, otherwise the upstream's.
fn failure(error: hyper::Error, upload: Option<&Upload>) -> UpstreamFailure {
    match upload.and_then(Upload::failure) {
        Some(failure) => failure.into(),
        None => UpstreamFailure::Failed(error),
    }
}

/// The connection that a response is being read from. It is kept when the response ends, and closed
/// when this is dropped before that.
pub struct Lease {
    upstream: Arc<Upstream>,
    worker: usize,
    connection: Option<Connection>,
    keep_for: Duration,
}

impl Lease {
    /// Reads from these fields how long the upstream keeps the connection.
    pub fn observe(&mut self, headers: &HeaderMap) {
        self.keep_for = keep_alive_time(self.keep_for, headers);
    }

    /// Closes the connection when the response has been read.
    pub fn close_after(&mut self) {
        self.keep_for = Duration::ZERO;
    }

    /// The longest silence that the settings of the upstream allow.
    pub fn idle_timeout(&self) -> Duration {
        self.upstream.settings.idle_timeout
    }

    /// Puts the connection back, idle since `now`.
    fn keep(&mut self, now: Instant) {
        let Some(connection) = self.connection.take() else { return };
        if self.keep_for.is_zero() || connection.sender.is_closed() {
            return;
        }
        let mut idle = self.upstream.idle(self.worker);
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { connection, since: now, keep: self.keep_for });
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// The body of an upstream's response.
#[derive(Debug)]
pub struct UpstreamBody {
    inner: Incoming,
    lease: Lease,
    timer: IdleTimer,
    /// Whether the client accepts trailers (`TE: trailers`, RFC 9110 §10.1.4).
    trailers: bool,
    /// When its head arrived.
    begun: Instant,
    /// Whether it was waited for once [`LONG_AFTER`] had passed since then.
    is_long: bool,
    /// The error that cut the body off. It is reported once the bytes before it have been written.
    broken: Option<hyper::Error>,
    ended: Option<Instant>,
}

impl UpstreamBody {
    /// Streams `inner`, whose head arrived at `now`, and keeps the connection when it ends.
    pub fn new(inner: Incoming, mut lease: Lease, trailers: bool, now: Instant) -> Self {
        let ended = inner.is_end_stream().then_some(now);
        if ended.is_some() {
            lease.keep(now);
        }
        Self {
            inner,
            lease,
            timer: IdleTimer::default(),
            trailers,
            begun: now,
            is_long: false,
            broken: None,
            ended,
        }
    }

    /// When its last byte arrived.
    pub(super) fn ended(&self) -> Option<std::time::Instant> {
        self.ended.map(Into::into)
    }

    /// Whether it was waited for some time after its head.
    pub(super) fn is_long(&self) -> bool {
        self.is_long
    }

    /// Ready once the upstream has sent nothing for `idle`. Wakes the task once before, when the
    /// body turns out to be long: the one timer serves both.
    fn poll_idle(&mut self, idle: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let since = self.timer.since();
        let deadline = since + idle;
        if !self.is_long {
            let long = self.begun + LONG_AFTER;
            if since < long {
                ready!(self.timer.poll_until(long.min(deadline), cx));
            }
            self.is_long = true;
        }
        self.timer.poll_until(deadline, cx)
    }

    fn end(&mut self) {
        let now = Instant::now();
        self.ended = Some(now);
        self.lease.keep(now);
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        if let Some(error) = body.broken.take() {
            return Poll::Ready(Some(Err(BodyError::Upstream(error))));
        }
        let Poll::Ready(frame) = Pin::new(&mut body.inner).poll_frame(cx) else {
            let idle_timeout = body.lease.upstream.settings.idle_timeout;
            ready!(body.poll_idle(idle_timeout, cx));
            return Poll::Ready(Some(Err(BodyError::Idle(idle_timeout))));
        };
        body.timer.reset();
        Poll::Ready(match frame {
            None => {
                body.end();
                None
            }
            Some(Err(error)) => {
                body.lease.connection = None;
                body.broken = Some(error);
                // When a body fails, hyper drops what it has not written, and a client that
                // receives nothing at all may retry by itself. So let hyper write first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Ok(frame)) => {
                if body.inner.is_end_stream() {
                    body.end();
                }
                match frame.into_trailers() {
                    Err(data) => Some(Ok(data)),
                    Ok(mut trailers) if body.trailers => {
                        strip_trailers(&mut trailers);
                        Some(Ok(Frame::trailers(trailers)))
                    }
                    Ok(_) => None,
                }
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_kept_no_longer_than_keep_alive_says() {
        let kept = |fields: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(KEEP_ALIVE, HeaderValue::from_static(field));
            }
            keep_alive_time(Duration::from_millis(1500), &headers).as_millis()
        };
        for (fields, milliseconds) in [
            (&[][..], 1500),
            (&["timeout=5"], 1500),
            (&["timeout=2, max=100"], 1500),
            (&["max=100, timeout=1"], 750),
            (&["timeout=0"], 0),
            (&["timeout=soon"], 1500),
            (&["timeout=4294967295"], 1500),
        ] {
            assert_eq!(kept(fields), milliseconds, "{fields:?}");
        }
    }
}
