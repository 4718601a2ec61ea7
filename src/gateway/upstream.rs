//! An application behind the gateway: its address, its timeouts, and the connections that are kept
//! to it.
//!
//! Each worker keeps its own connections, so that no connection is touched by two cores. A
//! connection is reused only after its response was read to the end. If a request is cancelled, its
//! connection is closed, so that a response can never reach the wrong request.

mod connection;
mod failure;
mod health;
mod http2;
mod repeat;
mod response;
mod settings;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, header};
use http_body::Body as _;
use hyper::body::Incoming;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use self::connection::Connection;
pub use self::failure::UpstreamFailure;
use self::health::Health;
use self::http2::{Http2Connection, Lost};
use self::repeat::Repeat;
use self::response::Held;
pub use self::response::{Lease, UpstreamBody};
pub use self::settings::{Application, KeepAlive, UpstreamSettings};
pub use super::dial::ConnectError;
use super::dial::{self, Dialer};
use super::upload::{ClientBody, IdleTimer, Upload};
use crate::coalesce::Coalescing;
use crate::reason::Reason;
use crate::telemetry::fold::Fold;

/// An application and the connections to it.
pub struct Upstream {
    settings: UpstreamSettings,
    tls: Option<Tls>,
    dialer: Dialer,
    health: Health,
    folds: Folds,
    /// One list per worker, oldest first.
    idle: Box<[Mutex<VecDeque<Idle>>]>,
    /// A permit for each response that was passed on and whose stream has yet to end.
    ending: Arc<Semaphore>,
    /// The number of requests in flight, if that is limited.
    in_flight: Arc<AtomicUsize>,
}

/// How to speak TLS to an application.
struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    name: ServerName<'static>,
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
    connection: Held,
    since: Instant,
    /// How long it may wait.
    keep: Duration,
}

/// One of the `max_requests` of an upstream. It is free when this is dropped.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often a request is sent over HTTP/2 to an application that does not act on it.
const MOST_ATTEMPTS: u32 = 3;

/// The maximum number of idle connections from one worker to one upstream.
const MAX_IDLE: usize = 2048;

impl Upstream {
    /// Creates an upstream for this many workers. Pass `tls` for `https://`, and only then.
    pub fn new(
        settings: UpstreamSettings,
        tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
        workers: usize,
    ) -> Self {
        let tls = tls.map(|(config, name)| {
            let mut offering = (*config).clone();
            offering.alpn_protocols = vec![b"h2".to_vec()];
            Tls { http1: config.into(), http2: Arc::new(offering).into(), name }
        });
        let workers = workers.max(1);
        Self {
            tls,
            dialer: Dialer::default(),
            health: Health::default(),
            folds: Folds::default(),
            idle: (0..workers).map(|_| Mutex::new(VecDeque::new())).collect(),
            ending: Arc::new(Semaphore::new(response::MOST_ENDING)),
            in_flight: Arc::default(),
            settings,
        }
    }

    /// Counts requests together with `previous`, which it replaces: those that are in flight are at
    /// the same application.
    #[must_use]
    pub fn succeeding(self, previous: &Self) -> Self {
        Self { in_flight: Arc::clone(&previous.in_flight), ..self }
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
            !idle.connection.is_over() && now.duration_since(idle.since) < idle.keep
        });
        idle.len()
    }

    /// Closes those of all workers.
    pub fn sweep_all(&self) {
        for worker in 0..self.idle.len() {
            self.sweep(worker);
        }
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
    pub(super) fn dispatch(
        self: &Arc<Self>,
        worker: usize,
        request: Request<ClientBody>,
        upload: Option<&Arc<Upload>>,
        now: Instant,
    ) -> impl Future<Output = Result<(Response<Incoming>, Lease), UpstreamFailure>> {
        // Boxed: it has space for the request, and each of the functions around this one would copy
        // that.
        let attempt = Box::pin(self.attempt(worker, request, upload, now));
        async move {
            let slot = self.slot()?;
            let Some(total) = self.settings.total_timeout else {
                let (response, lease) = attempt.await?;
                return Ok((response, lease.bounded(slot, None)));
            };
            let attempted = Box::pin(timeout_at(now + total, attempt)).await;
            let (response, lease) = attempted.unwrap_or(Err(UpstreamFailure::Total))?;
            Ok((response, lease.bounded(slot, Some(now + total))))
        }
    }

    /// One of the `max_requests`; `Ok(None)`: they are not limited.
    fn slot(self: &Arc<Self>) -> Result<Option<Slot>, UpstreamFailure> {
        let Some(most) = self.settings.max_requests else { return Ok(None) };
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(Arc::clone(&self.in_flight));
        if before < most { Ok(Some(slot)) } else { Err(UpstreamFailure::Busy) }
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "an async function keeps a second copy of a parameter that it changes"
    )]
    fn attempt(
        self: &Arc<Self>,
        worker: usize,
        mut request: Request<ClientBody>,
        upload: Option<&Arc<Upload>>,
        now: Instant,
    ) -> impl Future<Output = Result<(Response<Incoming>, Lease), UpstreamFailure>> {
        async move {
            let upload = upload.map(Arc::as_ref);
            // A WebSocket needs HTTP/1.1.
            if self.settings.http2 && !request.headers().contains_key(header::UPGRADE) {
                return Box::pin(self.attempt_http2(worker, request, upload, now)).await;
            }
            let is_alone = self.sends_alone(&request);
            if is_alone && !request.headers().contains_key(header::UPGRADE) {
                let has_te = request.headers().contains_key(header::TE);
                let options = HeaderValue::from_static(if has_te { "te, close" } else { "close" });
                request.headers_mut().insert(header::CONNECTION, options);
            }
            // A kept connection that ends now would lose a request that may not be repeated.
            while !is_alone && let Some(Held::Http1(mut connection)) = self.take_idle(worker, now) {
                let may_be_repeated = repeat::is_allowed(&request);
                connection.prepare(upload, may_be_repeated);
                let response = pin!(connection.sender.try_send_request(request));
                match self.exchange(response, &mut connection.timer, upload, now).await? {
                    Ok(response) => {
                        return Ok((response, self.lease(worker, Held::Http1(connection), false)));
                    }
                    Err(mut error) => {
                        if let Some(unsent) = error.take_message() {
                            request = unsent;
                            continue;
                        }
                        let is_lost = may_be_repeated && !connection.socket.has_received();
                        let Some(again) =
                            is_lost.then(|| repeat::parsed(&connection.socket.head())).flatten()
                        else {
                            return Err(failure(error.into_error(), upload));
                        };
                        request = again;
                        break;
                    }
                }
            }
            let mut connection = self.timely(Box::pin(self.connect())).await?;
            connection.prepare(upload, false);
            let response = pin!(connection.sender.send_request(request));
            let exchange = self.exchange(response, &mut connection.timer, upload, Instant::now());
            let answered = exchange.await.inspect_err(|failure| {
                if matches!(failure, UpstreamFailure::Timeout) && !connection.socket.has_received()
                {
                    self.avoid(connection.peer, upload);
                }
            });
            match answered? {
                Ok(response) => {
                    Ok((response, self.lease(worker, Held::Http1(connection), is_alone)))
                }
                Err(error) => {
                    if !connection.socket.has_received() {
                        self.avoid(connection.peer, upload);
                    }
                    Err(failure(error, upload))
                }
            }
        }
    }

    /// Sends a request over HTTP/2, and again, [`MOST_ATTEMPTS`] times in all, if the application did
    /// not act on it, or if its connection was lost and it may be repeated.
    async fn attempt_http2(
        self: &Arc<Self>,
        worker: usize,
        mut request: Request<ClientBody>,
        upload: Option<&Upload>,
        now: Instant,
    ) -> Result<(Response<Incoming>, Lease), UpstreamFailure> {
        http2::translate(&mut request, self.settings.application.scheme());
        let mut attempts = 1;
        loop {
            // Where one kept connection is lost, the others may be too.
            let kept = if attempts == 1 { self.take_idle(worker, now) } else { None };
            let (mut connection, is_kept) = match kept {
                Some(Held::Http2(connection)) => (connection, true),
                _ => (self.timely(Box::pin(self.connect_http2())).await?, false),
            };
            let again = Repeat::of(&request);
            let response = pin!(connection.send(request));
            let exchange = self.exchange(response, &mut connection.timer, upload, Instant::now());
            let exchanged = exchange.await;
            let is_silent = !connection.socket.has_received();
            let mut error = match exchanged {
                Ok(Ok(response)) => {
                    return Ok((response, self.lease(worker, Held::Http2(connection), false)));
                }
                Ok(Err(error)) => error,
                Err(failure) => {
                    if is_silent && matches!(failure, UpstreamFailure::Timeout) {
                        self.avoid(connection.peer, upload);
                    }
                    return Err(failure);
                }
            };
            if connection.is_http1() {
                return Err(UpstreamFailure::NotHttp2);
            }
            if is_silent {
                self.avoid(connection.peer, upload);
            }
            let is_last = attempts == MOST_ATTEMPTS;
            let lost = Lost::by(error.error());
            request = match (error.take_message(), again) {
                // It never left.
                (Some(unsent), _) if is_kept => {
                    request = unsent;
                    continue;
                }
                (Some(unsent), _) if !is_last => unsent,
                (None, Some(again))
                    if !is_last && lost.is_some_and(|lost| again.is_allowed_after(lost)) =>
                {
                    again.rebuilt()
                }
                _ if is_silent && upload.is_none_or(|upload| upload.failure().is_none()) => {
                    return Err(UpstreamFailure::NoGreeting(error.into_error()));
                }
                _ => return Err(failure(error.into_error(), upload)),
            };
            attempts += 1;
        }
    }

    /// Limits the time that a request waits for a connection.
    async fn timely<T>(
        &self,
        connecting: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, UpstreamFailure> {
        let attempt = self.health.attempt().map_err(UpstreamFailure::Unreachable)?;
        let connected = timeout(self.settings.connect_timeout, connecting).await;
        let connected = connected.unwrap_or(Err(ConnectError::Timeout));
        attempt.ended(&connected);
        connected.map_err(UpstreamFailure::Unreachable)
    }

    /// Waits for the response head. The timeout counts from the last byte of the request.
    async fn exchange<T>(
        &self,
        mut response: Pin<&mut impl Future<Output = T>>,
        timer: &mut IdleTimer,
        upload: Option<&Upload>,
        begun: Instant,
    ) -> Result<T, UpstreamFailure> {
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
    fn take_idle(&self, worker: usize, now: Instant) -> Option<Held> {
        let mut idle = self.idle(worker);
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let candidate = idle.get(at)?;
            if candidate.connection.is_over()
                || now.duration_since(candidate.since) >= candidate.keep
            {
                idle.remove(at);
            } else if candidate.connection.is_ready() {
                return idle.remove(at).map(|idle| idle.connection);
            }
        }
        None
    }

    /// Whether a request gets a connection of its own, on which no other request follows.
    fn sends_alone(&self, request: &Request<ClientBody>) -> bool {
        let has_body = !request.body().is_end_stream();
        match self.settings.keep_alive {
            // Only a WebSocket uses HTTP/1.1 here.
            _ if self.settings.http2 => true,
            _ if self.settings.keep_idle.is_zero() => true,
            KeepAlive::Never => true,
            KeepAlive::Repeatable => !repeat::is_allowed(request),
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

    fn lease(self: &Arc<Self>, worker: usize, connection: Held, is_alone: bool) -> Lease {
        let keep_for = if is_alone { Duration::ZERO } else { self.settings.keep_idle };
        Lease::new(self, worker, connection, keep_for)
    }

    async fn connect(&self) -> Result<Box<Connection>, ConnectError> {
        let Application::Unix { path } = &self.settings.application else {
            return self.dialed(|stream| self.http1_over(stream)).await;
        };
        let stream = dial::open_unix(path, self.settings.connect_timeout).await?;
        Connection::new(Coalescing(stream), None).await
    }

    async fn http1_over(&self, stream: TcpStream) -> Result<Box<Connection>, ConnectError> {
        let peer = stream.peer_addr().ok();
        let Some(Tls { http1, name, .. }) = &self.tls else {
            return Connection::new(Coalescing(stream), peer).await;
        };
        Connection::new(http1.connect(name.clone(), stream).await?, peer).await
    }

    async fn connect_http2(&self) -> Result<Box<Http2Connection>, ConnectError> {
        let Application::Unix { path } = &self.settings.application else {
            return self.dialed(|stream| self.http2_over(stream)).await;
        };
        let stream = dial::open_unix(path, self.settings.connect_timeout).await?;
        Http2Connection::new(stream, None).await
    }

    async fn http2_over(&self, stream: TcpStream) -> Result<Box<Http2Connection>, ConnectError> {
        let peer = stream.peer_addr().ok();
        dial::notice_loss(&stream)?;
        let Some(Tls { http2, name, .. }) = &self.tls else {
            return Http2Connection::new(stream, peer).await;
        };
        let stream = http2.connect(name.clone(), stream).await.map_err(no_protocol)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ConnectError::NotHttp2);
        }
        Http2Connection::new(stream, peer).await
    }

    /// Dials, and begins a connection over the stream. If that fails, tries another address: nothing
    /// of a request has left.
    async fn dialed<T, F: Future<Output = Result<T, ConnectError>>>(
        &self,
        over: impl Fn(TcpStream) -> F,
    ) -> Result<T, ConnectError> {
        let mut tried = Vec::new();
        loop {
            let stream = self.dial().await?;
            let peer = stream.peer_addr().ok();
            let trial = self.dialer.trial(&stream);
            let begun = over(stream).await;
            trial.ended(begun.is_ok());
            // The others may refuse, so that the same one accepts again.
            let is_again = peer.is_none_or(|peer| tried.contains(&peer));
            if begun.is_ok() || is_again || !self.dialer.knows_another() {
                return begun;
            }
            tried.extend(peer);
        }
    }

    /// Notes that this address accepted a connection, and then sent no byte: unless the client's body
    /// was at fault.
    fn avoid(&self, peer: Option<SocketAddr>, upload: Option<&Upload>) {
        let is_clients = upload.is_some_and(|upload| upload.failure().is_some());
        if let Some(peer) = peer.filter(|_| !is_clients) {
            self.dialer.avoid(peer);
        }
    }

    async fn dial(&self) -> Result<TcpStream, ConnectError> {
        let Application::Http { host, port, .. } = &self.settings.application else {
            return Err(ConnectError::NoAddress);
        };
        let stream = self.dialer.dial(host, *port).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The error of a TLS handshake that offered HTTP/2 only.
fn no_protocol(error: std::io::Error) -> ConnectError {
    use rustls::{AlertDescription::NoApplicationProtocol, Error::AlertReceived};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    if matches!(cause, Some(AlertReceived(NoApplicationProtocol))) {
        return ConnectError::NotHttp2;
    }
    error.into()
}

/// When the request last made progress.
fn last_progress(begun: Instant, upload: Option<&Upload>) -> Instant {
    upload.map_or(begun, |upload| upload.last_progress().max(begun))
}

/// A broken exchange is the client's fault if its body broke off, otherwise the upstream's.
fn failure(error: hyper::Error, upload: Option<&Upload>) -> UpstreamFailure {
    match upload.and_then(Upload::failure) {
        Some(failure) => failure.into(),
        None => UpstreamFailure::Failed(error),
    }
}
