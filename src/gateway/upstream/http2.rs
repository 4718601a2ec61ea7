//! One HTTP/2 connection to an application. It carries one request at a time, like one of HTTP/1.1.
//!
//! Requests that share a connection share its windows and the application's limits for it, and h2
//! ends a connection that has carried too many resets or small frames. A client that does not read,
//! or gives up often, would hold up or end the requests of others.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;

use http::uri::{Authority, Parts, Scheme};
use http::{Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_util::io::InspectReader;
use tokio_util::task::AbortOnDropHandle;

use super::ConnectError;
use super::failure::MAX_HEAD;
use crate::gateway::upload::{ClientBody, IdleTimer, locked};
use crate::gateway::watched_socket::{SocketState, WatchedSocket};

/// A connection to the application. Dropping it closes the connection.
pub(super) struct Http2Connection {
    sender: SendRequest<ClientBody>,
    /// Whether anything has arrived, and whether the application has closed it.
    pub(super) socket: SocketState,
    /// The timer for the response head.
    pub(super) timer: IdleTimer,
    /// The address that accepted it.
    pub(super) peer: Option<SocketAddr>,
    /// How many of the first bytes are those of [`HTTP1`].
    begins_as_http1: Arc<AtomicUsize>,
    /// Whether the application permits no requests at present.
    permits_none: Box<dyn Fn() -> bool + Send + Sync>,
    /// How many requests were sent.
    requests: u32,
    driver: Tasks,
    _task: AbortOnDropHandle<()>,
}

/// The tasks of a connection. The first one drives it.
#[derive(Clone, Default)]
struct Tasks(Arc<OnceLock<AbortHandle>>);

impl Http2Connection {
    /// Begins HTTP/2 on an open stream. Boxed, since each request moves its connection a few times.
    pub(super) async fn new(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<SocketAddr>,
    ) -> Result<Box<Self>, ConnectError> {
        let socket = SocketState::default();
        let io = WatchedSocket::for_http2(io, socket.clone());
        let begins_as_http1 = Arc::<AtomicUsize>::default();
        let noted = Arc::clone(&begins_as_http1);
        let mut is_decided = false;
        let io = InspectReader::new(io, move |bytes: &[u8]| {
            for byte in bytes {
                let so_far = noted.load(Ordering::Relaxed);
                is_decided |= HTTP1.get(so_far) != Some(byte);
                if is_decided {
                    break;
                }
                noted.store(so_far + 1, Ordering::Relaxed);
            }
        });
        let driver = Tasks::default();
        let (sender, connection) = Builder::new(driver.clone())
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .handshake(TokioIo::new(io))
            .await?;
        let connection = Arc::new(Mutex::new(Some(connection)));
        let running = Arc::clone(&connection);
        #[expect(
            clippy::disallowed_methods,
            reason = "the handle is kept with the sender and ends the task with it"
        )]
        let task = tokio::spawn(poll_fn(move |cx| {
            let mut connection = locked(&running);
            let Some(open) = connection.as_mut() else { return Poll::Ready(()) };
            // Errors go to the task that waits for the response.
            let ended = Pin::new(open).poll(cx).map(|_| ());
            if ended.is_ready() {
                *connection = None;
            }
            ended
        }));
        let permits_none = move || {
            let connection = locked(&connection);
            connection.as_ref().is_some_and(|open| open.current_max_send_streams() == 0)
        };
        Ok(Box::new(Self {
            sender,
            socket,
            timer: IdleTimer::default(),
            peer,
            begins_as_http1,
            permits_none: Box::new(permits_none),
            requests: 0,
            driver,
            _task: AbortOnDropHandle::new(task),
        }))
    }

    /// Whether it is to carry no more requests.
    pub(super) fn is_over(&self) -> bool {
        self.sender.is_closed()
            || self.socket.has_ended()
            || self.requests >= MOST_REQUESTS
            || (self.permits_none)()
    }

    /// Sends a request.
    pub(super) fn send(
        &mut self,
        request: Request<ClientBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<ClientBody>>>> + use<>
    {
        self.requests += 1;
        self.sender.try_send_request(request)
    }

    /// Whether it can carry a request now.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether the application responded in HTTP/1.1.
    pub(super) fn is_http1(&self) -> bool {
        self.begins_as_http1.load(Ordering::Relaxed) == HTTP1.len()
    }
}

impl Drop for Http2Connection {
    /// hyper would wait for an upload that goes on, and the application may never take it.
    fn drop(&mut self) {
        if let Some(driver) = self.driver.0.get() {
            driver.abort();
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

/// How a request without a response was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The application has not acted on it (RFC 9113 §8.7).
    Refused,
    /// Its connection ended.
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
            Some(cause) if cause.is_go_away() && cause.is_remote() => Some(Self::Refused),
            Some(cause) if cause.is_go_away() => Some(Self::Connection),
            // So some applications end the streams of a connection that they close.
            Some(cause) if cause.reason() == Some(h2::Reason::NO_ERROR) => Some(Self::Connection),
            Some(cause) if cause.reason() == Some(h2::Reason::REFUSED_STREAM) => {
                Some(Self::Refused)
            }
            _ => None,
        }
    }
}

/// The start of every response of HTTP/1.1. As HTTP/2, it would be a frame of 4.7 million bytes,
/// which no application sends unasked.
const HTTP1: &[u8] = b"HTTP/1";

/// The number of bytes of a response that the application may send ahead of the client.
const WINDOW: u32 = 64 * 1024;

/// The same for the connection. h2 ends a connection whose unread frames are many and small, by a
/// measure that grows with this: frames of 6 bytes in [`WINDOW`] do not reach it.
const CONNECTION_WINDOW: u32 = WINDOW * 100;

/// h2 ends a connection that has brought more than 100 empty frames that end nothing. A response may
/// have one.
const MOST_REQUESTS: u32 = 64;

/// The maximum number of request bytes that are buffered.
const SEND_BUFFER: usize = 64 * 1024;
