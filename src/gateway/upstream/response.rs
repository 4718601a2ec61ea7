//! The response of an upstream: its body, and the connection that it is read from.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, timeout};

use super::http2::Http2Connection;
use super::{Connection, Idle, MAX_IDLE, Slot, Upstream};
use crate::gateway::body::BodyError;
use crate::gateway::headers::strip_trailers;
use crate::gateway::upload::{IdleTimer, LONG_AFTER, Upload};

/// The connection that a response is being read from. It is kept when the response ends, and closed
/// when this is dropped before that.
pub struct Lease {
    upstream: Arc<Upstream>,
    worker: usize,
    held: Option<Held>,
    keep_for: Duration,
    /// Whether the response must not have a body, as one to HEAD.
    is_empty: bool,
    bounds: Option<Box<Bounds>>,
}

/// What an upstream with `max_requests` or `total_timeout` bounds. The others keep no space for it.
struct Bounds {
    /// One of the `max_requests`.
    slot: Option<Slot>,
    /// When the exchange must have ended.
    deadline: Option<Instant>,
}

/// A connection, in the protocol that it was opened for.
pub(super) enum Held {
    Http1(Box<Connection>),
    Http2(Box<Http2Connection>),
}

impl Held {
    /// Whether it is to carry no more requests.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.sender.is_closed(),
            Self::Http2(connection) => connection.is_over(),
        }
    }

    /// Whether it can carry one now.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.sender.is_ready(),
            Self::Http2(connection) => connection.is_ready(),
        }
    }

    /// Whether it has carried the whole of this upload.
    fn has_carried(&self, upload: &Upload) -> bool {
        upload.is_complete() && (matches!(self, Self::Http1(_)) || upload.is_written())
    }
}

impl Lease {
    /// Reads a response from here. The connection is kept for `keep_for` afterwards.
    pub(super) fn new(
        upstream: &Arc<Upstream>,
        worker: usize,
        held: Held,
        keep_for: Duration,
    ) -> Self {
        let upstream = Arc::clone(upstream);
        Self { upstream, worker, held: Some(held), keep_for, is_empty: false, bounds: None }
    }

    /// Also holds one of the `max_requests`, until `deadline` at the latest.
    #[must_use]
    pub(super) fn bounded(self, slot: Option<Slot>, deadline: Option<Instant>) -> Self {
        let is_bounded = slot.is_some() || deadline.is_some();
        Self { bounds: is_bounded.then(|| Box::new(Bounds { slot, deadline })), ..self }
    }

    /// The same lease, elsewhere. The exchange is over, so it is not bounded any more.
    fn take(&mut self) -> Self {
        let held = self.held.take();
        Self { held, bounds: None, upstream: Arc::clone(&self.upstream), ..*self }
    }

    /// Reads from these fields how long the upstream keeps the connection.
    pub fn observe(&mut self, headers: &HeaderMap) {
        self.keep_for = keep_alive_time(self.keep_for, headers);
    }

    /// Closes the connection when the response has been read, because more bytes may follow it. On
    /// HTTP/2, they would not be taken for another response.
    pub fn close_after(&mut self) {
        if matches!(self.held, Some(Held::Http1(_))) {
            self.keep_for = Duration::ZERO;
        }
    }

    /// Passes no body on, whatever the upstream sends: hyper does so on HTTP/1.1 only.
    pub fn expect_no_content(&mut self) {
        self.is_empty = true;
    }

    /// The longest silence that the settings of the upstream allow.
    pub fn idle_timeout(&self) -> Duration {
        self.upstream.settings.idle_timeout
    }

    /// Puts the connection back, idle since `now`, unless this upload still runs on it.
    fn keep(&mut self, now: Instant, upload: Option<&Upload>) {
        if let Some(bounds) = &mut self.bounds {
            bounds.slot = None;
        }
        let Some(connection) = self.held.take() else { return };
        let is_whole = upload.is_none_or(|upload| connection.has_carried(upload));
        if self.keep_for.is_zero() || connection.is_over() || !is_whole {
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
    /// `None` once this is dropped.
    inner: Option<Incoming>,
    lease: Lease,
    timer: IdleTimer,
    /// Ends at the deadline of the exchange.
    total: Option<Pin<Box<Sleep>>>,
    /// Whether the client accepts trailers (`TE: trailers`, RFC 9110 §10.1.4).
    trailers: bool,
    /// When its head arrived.
    begun: Instant,
    /// Whether it was waited for once [`LONG_AFTER`] had passed since then.
    is_long: bool,
    /// The request body, if it has one.
    upload: Option<Arc<Upload>>,
    /// The error that cut the body off. It is reported once the bytes before it have been written.
    broken: Option<BodyError>,
    ended: Option<Instant>,
}

impl UpstreamBody {
    /// Streams `inner`, whose head arrived at `now`, and keeps the connection when it ends.
    pub fn new(
        inner: Incoming,
        mut lease: Lease,
        upload: Option<Arc<Upload>>,
        trailers: bool,
        now: Instant,
    ) -> Self {
        let ended = inner.is_end_stream().then_some(now);
        if ended.is_some() {
            lease.keep(now, upload.as_deref());
        }
        let mut body = Self {
            inner: Some(inner),
            lease,
            timer: IdleTimer::default(),
            total: None,
            trailers,
            begun: now,
            is_long: false,
            upload,
            broken: None,
            ended,
        };
        body.total = body.deadline().map(|at| Box::pin(tokio::time::sleep_until(at)));
        body
    }

    /// When its last byte arrived.
    pub fn ended(&self) -> Option<std::time::Instant> {
        self.ended.map(Into::into)
    }

    /// Whether it was waited for some time after its head.
    pub fn is_long(&self) -> bool {
        self.is_long
    }

    /// Looks at the clock while nothing polls the body, because the client does not read.
    ///
    /// # Errors
    /// [`BodyError::Total`], if the exchange has taken too long. Its connection is closed.
    pub fn look(&mut self, now: Instant) -> Result<(), BodyError> {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.lease.held = None;
            return Err(BodyError::Total);
        }
        self.is_long |= now >= self.begun + LONG_AFTER;
        Ok(())
    }

    /// When it must have ended; `None`: it has, or may take any time.
    pub fn deadline(&self) -> Option<Instant> {
        let bounds = self.lease.bounds.as_ref().filter(|_| self.ended.is_none());
        bounds.and_then(|bounds| bounds.deadline)
    }

    /// Ready once the upstream has sent nothing for `idle`. Wakes the task once before, when the
    /// body turns out to be long: the one timer serves both.
    fn poll_idle(&mut self, idle: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_long {
            ready!(self.timer.poll_long(self.begun + LONG_AFTER, idle, cx));
            self.is_long = true;
        }
        self.timer.poll(idle, cx)
    }

    /// Whether its stream has ended before it: the upstream reset it without an error (`NO_ERROR`), as
    /// it may after a whole response to say that it needs no more of the request (RFC 9113 §8.1).
    fn is_unfinished(&self) -> bool {
        matches!(self.lease.held, Some(Held::Http2(_))) && !self.is_end_stream()
    }

    /// Reports an error at the next poll. When a body fails, hyper drops what it has not written,
    /// and a client that receives nothing at all may retry by itself. So hyper writes first.
    fn break_off(&mut self, error: BodyError, cx: &Context<'_>) {
        self.lease.held = None;
        self.broken = Some(error);
        cx.waker().wake_by_ref();
    }

    fn end(&mut self) {
        let now = Instant::now();
        self.ended = Some(now);
        self.lease.keep(now, self.upload.as_deref());
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
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(total) = &mut body.total
            && total.as_mut().poll(cx).is_ready()
        {
            body.lease.held = None;
            return Poll::Ready(Some(Err(BodyError::Total)));
        }
        let Some(inner) = &mut body.inner else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) else {
            let idle_timeout = body.lease.upstream.settings.idle_timeout;
            ready!(body.poll_idle(idle_timeout, cx));
            return Poll::Ready(Some(Err(BodyError::Idle(idle_timeout))));
        };
        body.timer.reset();
        Poll::Ready(match frame {
            None if body.is_unfinished() => {
                body.break_off(BodyError::Unfinished, cx);
                return Poll::Pending;
            }
            None => {
                body.end();
                None
            }
            // h2 itself refuses a body in response to HEAD.
            Some(Err(_)) if body.lease.is_empty => {
                body.lease.held = None;
                body.end();
                None
            }
            Some(Err(error)) => {
                body.break_off(BodyError::Upstream(error), cx);
                return Poll::Pending;
            }
            Some(Ok(frame))
                if body.lease.is_empty && frame.data_ref().is_some_and(|data| !data.is_empty()) =>
            {
                body.lease.held = None;
                body.end();
                None
            }
            Some(Ok(frame)) => {
                if body.is_end_stream() {
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
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for UpstreamBody {
    /// hyper drops a body whose announced bytes it has written. On HTTP/2, its stream may end in a
    /// frame of its own, after which the connection can carry the next request.
    fn drop(&mut self) {
        let Some(held @ Held::Http2(_)) = &self.lease.held else { return };
        let has_passed = self.lease.is_empty || self.size_hint().exact() == Some(0);
        let is_whole = self.upload.as_ref().is_none_or(|upload| held.has_carried(upload));
        if self.ended.is_some() || !has_passed || !is_whole || self.lease.keep_for.is_zero() {
            return;
        }
        let place = Arc::clone(&self.lease.upstream.ending).try_acquire_owned();
        let (Ok(place), Some(inner), Ok(runtime)) =
            (place, self.inner.take(), Handle::try_current())
        else {
            return;
        };
        let kept = keep_at_end(inner, self.lease.take(), self.upload.take());
        runtime.spawn(async move {
            let _ = timeout(LATE_END, kept).await;
            drop(place);
        });
    }
}

/// Waits for the end of a stream that carries no more data, and keeps its connection.
async fn keep_at_end(mut inner: Incoming, mut lease: Lease, upload: Option<Arc<Upload>>) {
    while let Some(Ok(frame)) = inner.frame().await {
        if frame.data_ref().is_some_and(|data| !data.is_empty()) {
            return;
        }
    }
    if inner.is_end_stream() {
        lease.keep(Instant::now(), upload.as_deref());
    }
}

/// How late the end of a stream may come after its last byte.
const LATE_END: Duration = Duration::from_millis(100);

/// For how many ends of streams an upstream waits at most. Nothing else counts their connections.
pub(super) const MOST_ENDING: usize = 64;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

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

#[cfg(test)]
mod tests {
    use http::HeaderValue;

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
