//! Response bodies of HTTP/2 streams, and the clock of clients that do not read them.
//!
//! On HTTP/1.1 a client that does not read stalls its socket, and the socket has a clock. On HTTP/2 it withholds window from a single
//! stream: hyper then keeps one frame and asks for no more, so no timer inside the body would ever run. This one runs outside.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::stream::Busy;
use crate::gateway::body::BodyError;
use crate::gateway::exchange::RecordedBody;

/// The bodies of one connection that are under way.
#[derive(Debug)]
pub(super) struct Stalls {
    begun: Instant,
    bodies: Mutex<Vec<Weak<Held>>>,
}

/// A body, and since when its last frame has not been taken.
#[derive(Debug)]
struct Held {
    body: Mutex<Option<(RecordedBody, Busy)>>,
    /// Milliseconds from the connection's beginning, plus one; 0: the next frame is being asked for.
    yielded: AtomicU64,
}

/// A body that lets go of the upstream when the client stops reading.
#[derive(Debug)]
pub(super) struct WatchedBody {
    held: Arc<Held>,
    begun: Instant,
}

impl Stalls {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), bodies: Mutex::new(Vec::new()) }
    }

    /// Watches a body. `busy` ends with it.
    pub(super) fn watch(&self, body: RecordedBody, busy: Busy) -> WatchedBody {
        let held = Arc::new(Held { body: Mutex::new(Some((body, busy))), yielded: AtomicU64::new(0) });
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        if bodies.len() == bodies.capacity() {
            // Before it grows: what has ended is forgotten.
            bodies.retain(|body| body.strong_count() > 0);
        }
        bodies.push(Arc::downgrade(&held));
        WatchedBody { held, begun: self.begun }
    }

    /// Drops every body whose last frame has waited for `patience`, and with it the connection to the upstream. Never returns.
    pub(super) async fn end_stalled(&self, patience: Duration) {
        let mut looks = tokio::time::interval((patience / 4).max(Duration::from_millis(100)));
        loop {
            looks.tick().await;
            let bodies: Vec<_> = {
                let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
                bodies.retain(|body| body.strong_count() > 0);
                bodies.iter().filter_map(Weak::upgrade).collect()
            };
            let now = elapsed(self.begun);
            for held in bodies {
                let yielded = held.yielded.load(Ordering::Acquire);
                if yielded > 0 && u128::from(now.saturating_sub(yielded)) >= patience.as_millis() {
                    let stalled = held.body.lock().unwrap_or_else(PoisonError::into_inner).take();
                    tracing::debug!(ended = stalled.is_some(), "a client does not read its response");
                }
            }
        }
    }
}

/// Milliseconds since then, plus one.
fn elapsed(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut body = self.held.body.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((body, _)) = &mut *body else { return Poll::Ready(Some(Err(BodyError::Unread))) };
        let polled = Pin::new(body).poll_frame(cx);
        let yielded = if matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data()) { elapsed(self.begun) } else { 0 };
        self.held.yielded.store(yielded, Ordering::Release);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let body = self.held.body.lock().unwrap_or_else(PoisonError::into_inner);
        body.as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.held.body.lock().unwrap_or_else(PoisonError::into_inner);
        body.as_ref().map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}
