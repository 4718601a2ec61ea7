//! Response bodies of HTTP/2 streams, and the timeout for clients that do not read them.
//!
//! On HTTP/1.1, a client that does not read stalls its socket, and the socket has a timeout. On
//! HTTP/2, the client withholds flow-control window from a single stream: hyper then keeps one
//! frame and does not poll for more, so a timer inside the body would never run. This timer runs
//! outside.
//!
//! For the same reason, hyper would not learn that the gateway has ended such a stream. Only
//! dropping the task of the stream resets it at once.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::stream::Busy;
use super::unsent::{Ticket, Unsent};
use crate::gateway::body::BodyError;
use crate::gateway::exchange::{Look, RecordedBody};
use crate::gateway::streams::Unread;

/// The active response bodies of one connection.
#[derive(Debug)]
pub(super) struct Stalls {
    begun: Instant,
    bodies: Mutex<Vec<Weak<Watched>>>,
    /// The stream whose task hyper spawns next.
    opened: Mutex<Option<Arc<Watched>>>,
    pub(super) unsent: Unsent,
}

/// A body, and since when it has been waiting for the client.
#[derive(Debug)]
struct Watched {
    body: Mutex<Option<ActiveBody>>,
    /// When the last frame was yielded, in milliseconds since the connection began, plus one; or, if
    /// there was none, when the first had to wait. 0: hyper is polling for the next frame.
    yielded: AtomicU64,
    /// The task in which hyper sends the body.
    task: OnceLock<AbortHandle>,
}

/// A stream that has no response yet.
#[derive(Debug)]
pub(super) struct OpenedStream(Arc<Watched>);

/// Spawns the tasks of a connection's streams for hyper.
#[derive(Clone, Debug)]
pub(super) struct StreamTasks(pub(super) Arc<Stalls>);

/// Resets a stream that the gateway has ended.
struct Cutter(Weak<Watched>);

/// The rest of a body, and the exchange that it keeps busy.
#[derive(Debug)]
struct ActiveBody {
    body: RecordedBody,
    /// The rest of a frame that was too large to yield at once.
    rest: Bytes,
    _busy: Busy,
}

/// The maximum number of bytes to yield at once. A client that takes fewer within `idle_timeout`
/// counts as not reading.
const MAX_FRAME: usize = 16 * 1024;

/// A body that releases the upstream when the client stops reading.
#[derive(Debug)]
pub(super) struct WatchedBody {
    watched: Arc<Watched>,
    stalls: Arc<Stalls>,
    ticket: Ticket,
    /// Whether someone looks at it from time to time.
    is_looked_at: bool,
}

impl Stalls {
    /// Creates an empty list.
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            bodies: Mutex::default(),
            opened: Mutex::default(),
            unsent: Unsent::default(),
        }
    }

    /// Begins a stream. hyper must spawn its task next.
    pub(super) fn open(&self) -> OpenedStream {
        let opened = Arc::new(Watched {
            body: Mutex::default(),
            yielded: AtomicU64::new(0),
            task: OnceLock::new(),
        });
        let mut next = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        *next = Some(Arc::clone(&opened));
        OpenedStream(opened)
    }

    /// Watches the body of a stream's response. `busy` ends with it.
    pub(super) fn watch(
        self: &Arc<Self>,
        OpenedStream(watched): OpenedStream,
        body: RecordedBody,
        busy: Busy,
    ) -> WatchedBody {
        let active = ActiveBody { body, rest: Bytes::new(), _busy: busy };
        *watched.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(active);
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        if bodies.len() == bodies.capacity() {
            // Before the list grows, remove the bodies that have ended.
            bodies.retain(|body| body.strong_count() > 0);
        }
        bodies.push(Arc::downgrade(&watched));
        let stalls = Arc::clone(self);
        WatchedBody { watched, stalls, ticket: Ticket::default(), is_looked_at: false }
    }

    /// Drops every body whose last frame has waited for `timeout`, and with it the connection to
    /// the upstream, and resets its stream. Never returns.
    pub(super) async fn end_stalled(&self, timeout: Duration) {
        let mut ticks = tokio::time::interval((timeout / 4).max(Duration::from_millis(100)));
        loop {
            ticks.tick().await;
            let bodies: Vec<_> = {
                let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
                bodies.retain(|body| body.strong_count() > 0);
                bodies.iter().filter_map(Weak::upgrade).collect()
            };
            let now = elapsed(self.begun);
            for watched in bodies {
                let yielded = watched.yielded.load(Ordering::SeqCst);
                if yielded > 0 && u128::from(now.saturating_sub(yielded)) >= timeout.as_millis() {
                    let stalled =
                        watched.body.lock().unwrap_or_else(PoisonError::into_inner).take();
                    watched.cut();
                    tracing::debug!(
                        ended = stalled.is_some(),
                        "a client does not read its response"
                    );
                }
            }
        }
    }
}

impl Watched {
    /// Resets the stream if hyper keeps a frame that the client does not take. Otherwise hyper is
    /// polling the body, which reports the end itself.
    fn cut(&self) {
        if self.yielded.load(Ordering::SeqCst) > 0
            && let Some(task) = self.task.get()
        {
            task.abort();
        }
    }
}

impl Unread for Watched {
    fn look(self: Arc<Self>) -> bool {
        let mut active = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ActiveBody { body, .. }) = &mut *active else { return false };
        if self.yielded.load(Ordering::SeqCst) == 0 {
            // hyper is polling it.
            return !body.is_told();
        }
        let look = body.look();
        body.also_tell(|| Waker::from(Arc::new(Cutter(Arc::downgrade(&self)))));
        if look == Look::Over {
            *active = None;
            self.cut();
        }
        look == Look::Again
    }
}

impl Wake for Cutter {
    fn wake(self: Arc<Self>) {
        if let Some(watched) = self.0.upgrade() {
            watched.cut();
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamTasks {
    #[expect(
        clippy::disallowed_methods,
        reason = "hyper ends the task with its connection: the stream has an error then"
    )]
    fn execute(&self, task: F) {
        let opened = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        let task = tokio::spawn(task);
        if let Some(opened) = opened {
            let _ = opened.task.set(task.abort_handle());
        }
    }
}

/// Milliseconds since `begun`, plus one.
fn elapsed(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { watched, stalls, ticket, is_looked_at } = self.get_mut();
        let mut active = watched.body.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(active) = &mut *active else {
            return Poll::Ready(Some(Err(BodyError::Unread)));
        };
        let begins = active.rest.is_empty() && !active.body.is_ended();
        if begins && stalls.unsent.poll_turn(ticket, cx).is_pending() {
            if watched.yielded.load(Ordering::SeqCst) == 0 {
                watched.yielded.store(elapsed(stalls.begun), Ordering::SeqCst);
            }
            return Poll::Pending;
        }
        let polled = active.poll_chunk(cx);
        let data = match &polled {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref(),
            _ => None,
        };
        let yielded = if data.is_some() { elapsed(stalls.begun) } else { 0 };
        stalls.unsent.taken(data.map_or(0, Bytes::len));
        watched.yielded.store(yielded, Ordering::SeqCst);
        active.body.also_tell(|| Waker::from(Arc::new(Cutter(Arc::downgrade(watched)))));
        if yielded > 0 && !*is_looked_at && !active.is_end_stream() {
            *is_looked_at = true;
            let unread: Weak<Watched> = Arc::downgrade(watched);
            active.body.look_from_time_to_time(unread);
        }
        if yielded > 0 && active.body.is_ended() {
            // It was ended while the frame was on its way, perhaps before `yielded` said so.
            return Pin::new(&mut active.body).poll_frame(cx);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let active = self.watched.body.lock().unwrap_or_else(PoisonError::into_inner);
        active.as_ref().is_some_and(ActiveBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let active = self.watched.body.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(active) = active.as_ref() else { return SizeHint::default() };
        let (left, rest) = (active.body.size_hint(), active.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(left.lower() + rest);
        if let Some(upper) = left.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.stalls.unsent.leave(&self.ticket);
    }
}

impl ActiveBody {
    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// Polls for the next frame, of at most [`MAX_FRAME`] bytes.
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx))
                .map(|frame| frame.map(Frame::into_data))
            {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(self.rest.len().min(MAX_FRAME))))))
    }
}
