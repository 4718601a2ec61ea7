//! HTTP/2 connections to an application: few of them, each with many requests.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::Poll;
use std::time::Duration;

use http::uri::{Authority, Parts, Scheme};
use http::{Request, Uri, header};
use http_body::Body as _;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::io::{InspectReader, InspectWriter};
use tokio_util::task::AbortOnDropHandle;

use super::ConnectError;
use super::failure::{MAX_HEAD, UpstreamFailure};
use super::greeting::Greeting;
use crate::gateway::grpc;
use crate::gateway::upload::{ClientBody, Upload, Window, WindowFrames, locked};
use crate::gateway::watched_socket::{SocketState, WatchedSocket};

/// The HTTP/2 connections of one worker to one application. All bodies of a connection share its
/// window, and one that is not read can use it up, so requests share only with their kind.
pub(super) struct Http2 {
    /// For requests without a body, which keep no other one from arriving.
    plain: Pool,
    /// For calls of gRPC: most servers open the window again whether they read or not.
    calls: Pool,
    /// For other bodies. Each has a connection for itself as long as it is sent and answered.
    bodies: Pool,
}

/// The connections for one kind of requests.
pub(super) struct Pool {
    /// How many requests share a connection at most.
    most: usize,
    open: Mutex<Vec<Arc<Multiplexed>>>,
    /// Held while connecting: requests that arrive meanwhile share the new connection.
    connecting: tokio::sync::Mutex<()>,
    /// How many attempts to connect have succeeded.
    connected: AtomicUsize,
    /// How many attempts to connect have timed out.
    timeouts: AtomicUsize,
}

/// A connection that carries many requests. It is closed when the last of them has ended and it
/// has left the list.
struct Multiplexed {
    sender: SendRequest<ClientBody>,
    /// Each request in flight has a clone.
    in_flight: Arc<()>,
    /// Whether an upload went on for too long after its exchange had ended.
    is_given_up: AtomicBool,
    window: Arc<Window>,
    socket: SocketState,
    /// Whether a response has arrived.
    has_answered: AtomicBool,
    /// Reads how many requests the application permits now. `None`: the connection has ended.
    permitted: Box<dyn Fn() -> Option<usize> + Send + Sync>,
    greeting: Greeting,
    /// The address that accepted it.
    peer: Option<SocketAddr>,
    unanswered: Mutex<Unanswered>,
    idle_since: Mutex<Instant>,
    /// What drives the connection.
    driver: Tasks,
    _task: AbortOnDropHandle<()>,
}

/// The tasks of a connection. The first one drives it.
#[derive(Clone, Default)]
struct Tasks(Arc<OnceLock<AbortHandle>>);

/// The first request since bytes last arrived.
struct Unanswered {
    /// How often bytes had arrived when it was sent.
    arrived: usize,
    since: Instant,
}

/// One request on a connection, until its response has ended.
pub(super) struct Stream {
    /// Its place among those in flight. If its upload goes on, that keeps one too: the application
    /// still counts it. Dropped before the connection, which looks at them then.
    place: Arc<()>,
    connection: Arc<Multiplexed>,
    /// Its body, which ends with it.
    upload: Option<Arc<Upload>>,
    /// Whether the response was read to its end.
    is_finished: bool,
}

impl Default for Http2 {
    fn default() -> Self {
        let shared = || Pool::new(MAX_STREAMS);
        Self { plain: shared(), calls: shared(), bodies: Pool::new(1) }
    }
}

impl Http2 {
    /// The connections for requests like this one.
    pub(super) fn pool_for(&self, request: &Request<ClientBody>) -> &Pool {
        if grpc::has_its_type(request.headers()) {
            &self.calls
        } else if request.body().is_end_stream() {
            &self.plain
        } else {
            &self.bodies
        }
    }

    /// Closes the connections that have been without a request for this long.
    pub(super) fn sweep(&self, keep_idle: Duration, now: Instant) {
        for pool in [&self.plain, &self.calls, &self.bodies] {
            pool.sweep(keep_idle, now);
        }
    }
}

impl Pool {
    /// No connections yet. At most `most` requests share one.
    fn new(most: usize) -> Self {
        Self {
            most,
            open: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            connected: AtomicUsize::new(0),
            timeouts: AtomicUsize::new(0),
        }
    }

    /// A place on an open connection, if one has room. The first one is filled first.
    pub(super) fn take(&self) -> Option<Stream> {
        let mut open = self.open();
        open.retain(|connection| !connection.is_over());
        open.iter().find_map(|connection| Stream::on(connection, self.most))
    }

    /// A place on a connection that has room by now, or on a new one from `connect`, which limits its
    /// own time. Waits for other requests that are connecting, but not longer than `patience` for
    /// each, and shares the timeout of one that does not succeed.
    pub(super) async fn take_or_connect(
        &self,
        patience: Duration,
        connect: impl Future<Output = Result<Connected, UpstreamFailure>>,
    ) -> Result<Stream, UpstreamFailure> {
        if self.most == 1 {
            // No other request can share it.
            let Connected(connection) = connect.await?;
            return Ok(self.add(connection));
        }
        let timed_out = || UpstreamFailure::Unreachable(ConnectError::Timeout);
        let before = self.timeouts.load(Ordering::Relaxed);
        let mut turn = pin!(self.connecting.lock());
        let _turn = loop {
            let connected = self.connected.load(Ordering::Relaxed);
            if let Ok(turn) = timeout(patience, turn.as_mut()).await {
                break turn;
            }
            if self.connected.load(Ordering::Relaxed) == connected {
                return Err(timed_out());
            }
        };
        if let Some(stream) = self.take() {
            return Ok(stream);
        }
        if self.timeouts.load(Ordering::Relaxed) != before {
            return Err(timed_out());
        }
        let connected = connect.await;
        if let Err(UpstreamFailure::Unreachable(error)) = &connected
            && error.is_timeout()
        {
            self.timeouts.fetch_add(1, Ordering::Relaxed);
        }
        let Connected(connection) = connected?;
        self.connected.fetch_add(1, Ordering::Relaxed);
        // It says first how many requests it permits (RFC 9113 §3.4). Those that wait here would
        // otherwise all take a place on it.
        let _ = timeout(GREETING, connection.greeting.arrived()).await;
        Ok(self.add(connection))
    }

    /// Adds a connection to the list, and returns its first place.
    fn add(&self, connection: Arc<Multiplexed>) -> Stream {
        let stream = Stream::new(&connection);
        self.open().push(connection);
        stream
    }

    /// Takes a connection that was lost from the list before its own task has noticed: the next
    /// attempt would be lost on it too. It is closed when its requests have ended.
    pub(super) fn forget(&self, stream: &Stream) {
        self.open().retain(|connection| !Arc::ptr_eq(connection, &stream.connection));
    }

    /// Waits for the response to a request. A connection on which nothing has arrived for `patience`
    /// when the wait ends, whoever ends it, gets no other request: it may be dead although new ones
    /// work.
    pub(super) async fn watch<T>(
        &self,
        stream: &Stream,
        patience: Duration,
        response: impl Future<Output = T>,
    ) -> T {
        stream.connection.sends();
        let _wait = Wait { pool: self, stream, patience };
        response.await
    }

    /// What the timeout of a request says about its connection. One that permits no requests may do
    /// so for good: it gets no other.
    pub(super) fn timed_out(&self, stream: &Stream) -> UpstreamFailure {
        if (stream.connection.permitted)() == Some(0) {
            self.forget(stream);
            return UpstreamFailure::NonePermitted;
        }
        UpstreamFailure::Timeout
    }

    fn sweep(&self, keep_idle: Duration, now: Instant) {
        self.open().retain(|connection| {
            let is_used = connection.in_flight() > 0;
            !connection.is_over()
                && (is_used || now.duration_since(*connection.idle_since()) < keep_idle)
        });
    }

    fn open(&self) -> MutexGuard<'_, Vec<Arc<Multiplexed>>> {
        locked(&self.open)
    }
}

/// A connection that was just opened, for its first request.
pub(super) struct Connected(Arc<Multiplexed>);

impl Connected {
    /// Begins HTTP/2 on an open stream.
    pub(super) async fn new(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<SocketAddr>,
    ) -> Result<Self, ConnectError> {
        let (greeting, window, socket) =
            (Greeting::default(), Arc::<Window>::default(), SocketState::default());
        let io = WatchedSocket::ending_late(io, socket.clone());
        let (mut sent, used) = (WindowFrames::sent(), Arc::clone(&window));
        let io = InspectWriter::new(io, move |bytes: &[u8]| sent.note(bytes, &used));
        let (mut received, granted) = (WindowFrames::received(), Arc::clone(&window));
        let noted = greeting.clone();
        let io = InspectReader::new(io, move |bytes: &[u8]| {
            noted.note(bytes);
            received.note(bytes, &granted);
        });
        let driver = Tasks::default();
        let (sender, connection) = Builder::new(driver.clone())
            .initial_max_send_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(ALL_WINDOWS)
            .max_send_buf_size(SEND_BUFFER)
            .handshake(TokioIo::new(io))
            .await?;
        let connection = Arc::new(Mutex::new(Some(connection)));
        let running = Arc::clone(&connection);
        #[expect(
            clippy::disallowed_methods,
            reason = "the handle is kept with the sender and ends the task with it"
        )]
        let task = tokio::spawn(async move {
            poll_fn(|cx| {
                let mut connection = locked(&running);
                let Some(open) = connection.as_mut() else { return Poll::Ready(()) };
                // Errors go to the tasks that wait for a response.
                let ended = Pin::new(open).poll(cx).map(|_| ());
                if ended.is_ready() {
                    // Requests that wait for their turn in it learn that it has ended.
                    *connection = None;
                }
                ended
            })
            .await;
        });
        let permitted = move || {
            let connection = locked(&connection);
            Some(connection.as_ref()?.current_max_send_streams().min(MAX_STREAMS))
        };
        Ok(Self(Arc::new(Multiplexed {
            sender,
            in_flight: Arc::default(),
            is_given_up: AtomicBool::new(false),
            window,
            socket,
            has_answered: AtomicBool::new(false),
            permitted: Box::new(permitted),
            unanswered: Mutex::new(Unanswered { arrived: greeting.times(), since: Instant::now() }),
            greeting,
            peer,
            idle_since: Mutex::new(Instant::now()),
            driver,
            _task: AbortOnDropHandle::new(task),
        })))
    }
}

impl Connected {
    /// Its first request is the only one.
    pub(super) fn alone(self) -> Stream {
        Stream::new(&self.0)
    }
}

/// A request that waits for its response. It is dropped when the response has arrived, and when its
/// client or a timeout ends the wait.
struct Wait<'a> {
    pool: &'a Pool,
    stream: &'a Stream,
    patience: Duration,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.stream.connection.is_silent_for(self.patience) {
            self.pool.forget(self.stream);
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    #[expect(
        clippy::disallowed_methods,
        reason = "hyper ends the tasks with their connection, and this can end the connection"
    )]
    fn execute(&self, task: F) {
        let task = tokio::spawn(task);
        self.0.get_or_init(|| task.abort_handle());
    }
}

impl Drop for Multiplexed {
    /// hyper would wait for the uploads that go on, and the application may never take them.
    fn drop(&mut self) {
        if self.in_flight() > 0
            && let Some(driver) = self.driver.0.get()
        {
            driver.abort();
        }
    }
}

impl Multiplexed {
    /// Whether it gets no more requests. It is closed when the last of them has ended.
    fn is_over(&self) -> bool {
        self.sender.is_closed()
            || self.socket.has_ended()
            || self.is_given_up.load(Ordering::Relaxed)
    }

    /// The number of requests in flight.
    fn in_flight(&self) -> usize {
        Arc::strong_count(&self.in_flight) - 1
    }

    /// Whether what is sent now would arrive only once the application has read what was sent before,
    /// if it ever does.
    fn is_blocked(&self) -> bool {
        self.window.is_used_up() || self.socket.is_full()
    }

    /// Notes that a request is sent.
    fn sends(&self) {
        let arrived = self.greeting.times();
        let mut unanswered = locked(&self.unanswered);
        if unanswered.arrived != arrived {
            *unanswered = Unanswered { arrived, since: Instant::now() };
        }
    }

    /// Whether nothing has arrived since a request that was sent this long ago.
    fn is_silent_for(&self, patience: Duration) -> bool {
        let unanswered = locked(&self.unanswered);
        unanswered.arrived == self.greeting.times() && unanswered.since.elapsed() >= patience
    }

    fn idle_since(&self) -> MutexGuard<'_, Instant> {
        locked(&self.idle_since)
    }
}

impl Stream {
    fn new(connection: &Arc<Multiplexed>) -> Self {
        let place = Arc::clone(&connection.in_flight);
        Self { place, connection: Arc::clone(connection), upload: None, is_finished: false }
    }

    /// A place on this connection, if it has room and fewer than `most` requests.
    fn on(connection: &Arc<Multiplexed>, most: usize) -> Option<Self> {
        if connection.in_flight() >= most || connection.is_blocked() {
            return None;
        }
        let permitted = match (connection.permitted)()? {
            // It may permit some later, and a new connection would not be better off.
            0 if !connection.has_answered.load(Ordering::Relaxed) => MAX_STREAMS,
            permitted => permitted,
        };
        (connection.in_flight() < permitted).then(|| Self::new(connection))
    }

    /// Notes that a request with this upload is about to be sent. The upload ends with this.
    pub(super) fn carries(&mut self, upload: Option<&Arc<Upload>>) {
        self.upload = upload.cloned();
    }

    /// Notes that the request was never sent.
    pub(super) fn has_returned(&mut self) {
        self.upload = None;
    }

    /// Notes that a response has arrived.
    pub(super) fn answered(&self) {
        self.connection.has_answered.store(true, Ordering::Relaxed);
    }

    /// Notes that the response was read to its end.
    pub(super) fn finish(mut self) {
        self.is_finished = true;
    }

    /// How the application has begun the connection.
    pub(super) fn greeting(&self) -> &Greeting {
        &self.connection.greeting
    }

    /// The address that has accepted the connection.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.connection.peer
    }

    /// What sends requests on the connection.
    pub(super) fn sender(&self) -> SendRequest<ClientBody> {
        self.connection.sender.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        *self.connection.idle_since() = Instant::now();
        if let Some(upload) = self.upload.take()
            && upload.keep(&self.place)
        {
            self.end(upload);
        }
    }
}

impl Stream {
    /// Ends the upload. A reset ends the whole connection in some applications, and most uploads are
    /// whole soon, so one whose response was read to its end has a little more time.
    fn end(&self, upload: Arc<Upload>) {
        let grace = if self.is_finished { GRACE } else { Duration::ZERO };
        let Ok(runtime) = Handle::try_current() else { return upload.end() };
        if grace.is_zero() {
            upload.end();
        }
        let connection = Arc::clone(&self.connection);
        runtime.spawn(async move {
            sleep(grace).await;
            upload.end();
            // The reset has to leave.
            sleep(GRACE).await;
            if !upload.is_over() {
                connection.is_given_up.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// Writes a request as HTTP/2 has it: the host in the target, and no fields for one connection (RFC
/// 9113 §8.2.2, §8.3.1).
pub(super) fn translate(request: &mut Request<ClientBody>, scheme: &str) {
    request.body_mut().count_frames();
    let host = request.headers_mut().remove(header::HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = Parts::default();
    parts.path_and_query = request.uri().path_and_query().cloned();
    (parts.scheme, parts.authority) = (Scheme::try_from(scheme).ok(), authority);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::EXPECT] {
        request.headers_mut().remove(name);
    }
}

/// What a request without a response has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Its turn: the application refused it.
    Turn,
    /// Its turn, and its connection: the application said goodbye before it (GOAWAY).
    Farewell,
    /// Its connection.
    Connection,
}

impl Lost {
    /// What this error says. `None`: the application has given up on the request itself.
    pub(super) fn by(error: &hyper::Error) -> Option<Self> {
        let cause = error.source();
        let is_connection = error.is_closed()
            || error.is_canceled()
            // The request was waiting for its turn: hyper drops it with the connection. Its other
            // errors of this kind are about bodies, and what is repeated has none.
            || error.is_user()
            // hyper unpacks the errors of a socket.
            || cause.is_some_and(<dyn std::error::Error>::is::<io::Error>);
        match cause.and_then(|cause| cause.downcast_ref::<h2::Error>()) {
            _ if is_connection => Some(Self::Connection),
            // h2 reports one that was received only for the streams after its last one.
            Some(cause) if cause.is_go_away() && cause.is_remote() => Some(Self::Farewell),
            Some(cause) if cause.is_go_away() => Some(Self::Connection),
            Some(cause) if cause.reason() == Some(h2::Reason::REFUSED_STREAM) => Some(Self::Turn),
            _ => None,
        }
    }
}

/// The maximum number of requests in flight on one connection. Another one is opened beyond it, or
/// beyond what the application permits.
const MAX_STREAMS: usize = 100;

/// How long to wait for the first bytes of a new connection, of an application that sends none by
/// itself.
const GREETING: Duration = Duration::from_millis(250);

/// How long an upload may go on after a response that was read to its end.
const GRACE: Duration = Duration::from_secs(1);

/// The number of bytes of a response that the application may send ahead of the client.
const WINDOW: u32 = 64 * 1024;

/// The same for a connection: responses that their clients do not read must not hold up others.
const ALL_WINDOWS: u32 = WINDOW * 100;

/// The maximum number of request bytes that are buffered per stream.
const SEND_BUFFER: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Together, the connections take longer than a request has patience for one.
    #[tokio::test]
    async fn requests_wait_while_others_connect() {
        let http2 = Pool::new(MAX_STREAMS);
        let open = Mutex::new(Vec::new());
        let request = || {
            let connect = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let (near, mut far) = tokio::io::duplex(4096);
                // SETTINGS: MAX_CONCURRENT_STREAMS is 1.
                far.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]).await?;
                locked(&open).push(far);
                Connected::new(near, None).await
            };
            let connect = async { connect.await.map_err(UpstreamFailure::Unreachable) };
            http2.take_or_connect(Duration::from_secs(1), connect)
        };
        let taken = tokio::join!(request(), request(), request(), request(), request());
        assert!(taken.0.is_ok() && taken.1.is_ok() && taken.2.is_ok() && taken.3.is_ok());
        assert!(taken.4.is_ok(), "{:?}", taken.4.err());
        assert_eq!(locked(&open).len(), 5);
    }
}
