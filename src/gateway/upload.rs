//! The body of a request on its way to the upstream.
//!
//! It is not collected. A frame is passed on when the upstream asks for one, so an upstream that reads
//! slowly slows down the client (back-pressure).

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::watched_socket::SocketState;
use crate::reason::Reason;

/// A timer that runs only while something is awaited, and is moved only when it fires.
///
/// Resetting a timer for every frame costs more than the frame. This one checks the time when it
/// fires, and sleeps on.
#[derive(Debug, Default)]
pub struct IdleTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    waiting_since: Option<Instant>,
}

impl IdleTimer {
    /// Call it while pending. Ready once that has lasted for `idle` without a
    /// [`reset`](Self::reset).
    pub fn poll(&mut self, idle: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let since = self.since();
        self.poll_until(since + idle, cx)
    }

    /// Ready at `long`, or at once if the wait began after it; after `idle` at the latest.
    pub fn poll_long(&mut self, long: Instant, idle: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let since = self.since();
        if since < long { self.poll_until(long.min(since + idle), cx) } else { Poll::Ready(()) }
    }

    /// Since when something is awaited: since now, if nothing was before.
    fn since(&mut self) -> Instant {
        *self.waiting_since.get_or_insert_with(Instant::now)
    }

    /// Ready at `deadline`, which may change from call to call.
    pub fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }

    /// Notes that what was awaited has arrived.
    pub fn reset(&mut self) {
        self.waiting_since = None;
    }
}

/// The state of a request body that is being sent. It is shared between the body, which the
/// connection to the upstream owns, and the exchange that waits for the response.
#[derive(Debug)]
pub struct Upload {
    /// The client's body. `None` once the upload has ended.
    inner: Mutex<Option<RequestBody>>,
    begun: Instant,
    /// Milliseconds from `begun` to the last byte.
    last: AtomicU64,
    bytes: AtomicU64,
    failure: AtomicU8,
    complete: AtomicBool,
    /// Whether the upload is waiting for the client.
    awaits_client: AtomicBool,
    /// Whether it runs for long.
    is_long: AtomicBool,
    /// The task that waits for the response. It is woken when the upload turns out to be long.
    waiting: Mutex<Option<Waker>>,
    /// The connection that carries it.
    socket: Mutex<Option<SocketState>>,
    /// The task that reads the body, while it waits for the client.
    reading: Mutex<Option<Waker>>,
    handed: Mutex<Handed>,
}

/// What hyper still has of an upload.
#[derive(Debug, Default)]
struct Handed {
    /// Whether it has dropped the body: all of it was handed over, or none is sent any more.
    is_dropped: bool,
    /// The frames that are not written yet, if they are [counted](ClientBody::count_frames).
    frames: usize,
    /// What counts the upload among those that go on although their response is over.
    lingering: Option<Arc<AtomicUsize>>,
}

impl Handed {
    fn is_over(&self) -> bool {
        self.is_dropped && self.frames == 0
    }

    fn changed(&mut self) {
        if self.is_over()
            && let Some(lingering) = self.lingering.take()
        {
            lingering.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A frame that is counted until it is written.
struct CountedFrame {
    data: Bytes,
    upload: Arc<Upload>,
}

impl AsRef<[u8]> for CountedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for CountedFrame {
    fn drop(&mut self) {
        let mut handed = locked(&self.upload.handed);
        handed.frames -= 1;
        handed.changed();
    }
}

/// A frame of the client's body, and whether it holds the last announced byte.
type Polled = (Option<Result<Frame<Bytes>, UploadFailure>>, bool);

/// Why a request body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadFailure {
    /// More bytes than `max_body`.
    TooLarge,
    /// No byte for `body_idle_timeout`.
    Idle,
    /// The client broke its framing, or disconnected.
    Broken,
    /// The response is over.
    Unwanted,
}

impl UploadFailure {
    /// The reason that the client and the log are given.
    pub const fn reason(self) -> Reason {
        match self {
            Self::TooLarge => Reason::BodyTooLarge,
            Self::Idle | Self::Broken | Self::Unwanted => Reason::FramingInvalid,
        }
    }
}

impl fmt::Display for UploadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the body is larger than max_body",
            Self::Idle => "the client stopped in the middle of the body",
            Self::Broken => "the client aborted the body",
            Self::Unwanted => "the response ended before the body",
        })
    }
}

impl Error for UploadFailure {
    /// The code with which hyper resets the stream of an HTTP/2 application. By itself it says that
    /// the gateway has failed, which ends some applications (RFC 9113 §7).
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        static CANCEL: LazyLock<h2::Error> = LazyLock::new(|| h2::Reason::CANCEL.into());
        Some(&*CANCEL)
    }
}

impl Upload {
    fn new(inner: RequestBody) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Some(inner)),
            begun: Instant::now(),
            last: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failure: AtomicU8::new(0),
            complete: AtomicBool::new(false),
            awaits_client: AtomicBool::new(false),
            is_long: AtomicBool::new(false),
            waiting: Mutex::default(),
            socket: Mutex::default(),
            reading: Mutex::default(),
            handed: Mutex::default(),
        })
    }

    /// The number of bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When the last byte passed.
    pub fn last_progress(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Why the upload failed, if it did.
    pub fn failure(&self) -> Option<UploadFailure> {
        match self.failure.load(Ordering::Acquire) {
            1 => Some(UploadFailure::TooLarge),
            2 => Some(UploadFailure::Idle),
            3 => Some(UploadFailure::Broken),
            _ => None,
        }
    }

    /// Whether the last byte has passed.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether the upstream has taken everything that the client has sent so far, and there is more
    /// to come.
    pub fn awaits_client(&self) -> bool {
        self.awaits_client.load(Ordering::Acquire)
    }

    /// Whether the application has taken nothing of it for this long although there is more.
    pub(super) fn is_stuck_for(&self, patience: Duration) -> bool {
        let handed = locked(&self.handed);
        let has_more = handed.frames > 0 || !handed.is_dropped && !self.awaits_client();
        has_more && self.last_progress().elapsed() >= patience
    }

    /// Notes that its response is over. Returns whether it goes on all the same: it then counts as
    /// `lingering` until hyper has written or dropped all of it.
    pub(super) fn lingers(&self, lingering: &Arc<AtomicUsize>) -> bool {
        let mut handed = locked(&self.handed);
        if handed.is_over() {
            return false;
        }
        if handed.lingering.is_none() {
            lingering.fetch_add(1, Ordering::Relaxed);
            handed.lingering = Some(Arc::clone(lingering));
        }
        true
    }

    /// Ends it: otherwise the client could go on sending to an HTTP/2 application for as long as it
    /// likes. If hyper holds a part that the application does not take, it learns of that later.
    pub(super) fn end(&self) {
        let rest = locked(&self.inner).take();
        drop(rest);
        if let Some(reading) = locked(&self.reading).take() {
            reading.wake();
        }
    }

    /// Polls the next frame of the client's body. Returns `None` once the upload has ended.
    fn poll_inner(&self, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        let mut inner = locked(&self.inner);
        let Some(body) = &mut *inner else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            set_waker(&self.reading, cx);
            return Poll::Pending;
        };
        // On HTTP/2, the stream may end in a frame of its own.
        let is_last = body.is_end_stream() || body.size_hint().exact() == Some(0);
        let frame = match frame {
            // hyper reports a stream that was reset without an error as ended.
            None if body.is_http2 && !body.is_end_stream() => Some(Err(UploadFailure::Broken)),
            frame => frame.map(|frame| frame.map_err(|_| UploadFailure::Broken)),
        };
        Poll::Ready(Some((frame, is_last)))
    }

    fn is_end_stream(&self) -> bool {
        locked(&self.inner).as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        locked(&self.inner).as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }

    /// Notes that the body was dropped.
    fn dropped(&self) {
        let rest = locked(&self.inner).take();
        drop(rest);
        let mut handed = locked(&self.handed);
        handed.is_dropped = true;
        handed.changed();
    }

    /// Counts a frame until it is written.
    fn count(self: &Arc<Self>, data: Bytes) -> Bytes {
        locked(&self.handed).frames += 1;
        Bytes::from_owner(CountedFrame { data, upload: Arc::clone(self) })
    }

    /// Whether it runs for long. If not, the calling task is woken when it does.
    pub(super) fn is_long(&self, cx: &Context<'_>) -> bool {
        if self.is_long.load(Ordering::Acquire) {
            return true;
        }
        set_waker(&self.waiting, cx);
        self.is_long.load(Ordering::Acquire)
    }

    fn runs_long(&self) {
        if self.is_long.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(waiting) = locked(&self.waiting).take() {
            waiting.wake();
        }
    }

    /// Notes that the body is sent on this connection from now on.
    pub(super) fn sent_over(&self, socket: &SocketState) {
        *locked(&self.socket) = Some(socket.clone());
    }

    /// Whether earlier bytes still wait for the upstream to take them.
    fn is_blocked(&self) -> bool {
        locked(&self.socket).as_ref().is_some_and(SocketState::is_full)
    }

    fn progressed(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last.store(
            u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    fn fail(&self, failure: UploadFailure) -> UploadFailure {
        let code = match failure {
            UploadFailure::TooLarge => 1,
            UploadFailure::Idle => 2,
            UploadFailure::Broken => 3,
            // Not the client's fault.
            UploadFailure::Unwanted => 0,
        };
        self.failure.store(code, Ordering::Release);
        failure
    }
}

/// Locks what no panic can leave half-changed.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the calling task woken from here.
fn set_waker(waker: &Mutex<Option<Waker>>, cx: &Context<'_>) {
    match &mut *locked(waker) {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// An exchange that still runs this long after its body began, in either direction, is one from
/// which access can be taken.
pub(super) const LONG_AFTER: Duration = Duration::from_millis(250);

/// So is one that has carried this many bytes in one direction.
pub(super) const LONG_BYTES: u64 = 256 * 1024;

/// Takes the bodies of requests that were not read to the end.
pub trait UnreadBodies: std::fmt::Debug + Send + Sync {
    /// Takes the rest of a body.
    fn take(self: Arc<Self>, body: Incoming);
}

/// The body of a request, as the server passes it to the gateway.
///
/// If the server asks for it, the unread rest goes back to it when this is dropped.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    unread: Option<Arc<dyn UnreadBodies>>,
    is_http2: bool,
}

impl RequestBody {
    /// Creates a body whose unread rest goes to `unread`.
    pub fn with_unread(incoming: Incoming, unread: &Arc<impl UnreadBodies + 'static>) -> Self {
        let unread = (!incoming.is_end_stream()).then(|| Arc::clone(unread) as _);
        Self { incoming: Some(incoming), unread, is_http2: false }
    }

    /// Says that it came over HTTP/2.
    #[must_use]
    pub fn over_http2(mut self) -> Self {
        self.is_http2 = true;
        self
    }
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        Self { incoming: Some(incoming), unread: None, is_http2: false }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let (Some(unread), Some(incoming)) = (self.unread.take(), self.incoming.take())
            && !incoming.is_end_stream()
        {
            unread.take(incoming);
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.incoming {
            Some(incoming) => Pin::new(incoming).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

/// The client's body on its way to the upstream.
#[derive(Debug, Default)]
pub struct ClientBody(Option<Box<Streaming>>);

#[derive(Debug)]
struct Streaming {
    upload: Arc<Upload>,
    max: u64,
    idle: Duration,
    timer: IdleTimer,
    /// Trailer fields that may be forwarded (RFC 9110 §6.5).
    trailers: Vec<HeaderName>,
    gate: Option<Arc<Gate>>,
    counts_frames: bool,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.upload.dropped();
    }
}

impl ClientBody {
    /// Creates a body of at most `max` bytes, with at most `idle` between them. Trailer fields are
    /// forwarded if they are among `trailers`.
    pub fn new(
        inner: RequestBody,
        max: u64,
        idle: Duration,
        trailers: Vec<HeaderName>,
        gate: Option<Arc<Gate>>,
    ) -> (Self, Option<Arc<Upload>>) {
        if inner.is_end_stream() {
            return (Self(None), None);
        }
        let upload = Upload::new(inner);
        let streaming = Streaming {
            upload: Arc::clone(&upload),
            max,
            idle,
            timer: IdleTimer::default(),
            trailers,
            gate,
            counts_frames: false,
        };
        (Self(Some(Box::new(streaming))), Some(upload))
    }

    /// Counts the frames that hyper has taken and not written. Over HTTP/2, it drops a body that it has
    /// read to the end although the application has not taken all of it.
    pub(super) fn count_frames(&mut self) {
        if let Some(streaming) = &mut self.0 {
            streaming.counts_frames = true;
        }
    }

    /// Whether there is a body of unknown length.
    pub fn has_unknown_length(&self) -> bool {
        self.0.as_ref().is_some_and(|streaming| streaming.upload.size_hint().exact().is_none())
    }

    /// The announced number of bytes, if known.
    pub fn announced(&self) -> Option<u64> {
        self.0.as_ref().and_then(|streaming| streaming.upload.size_hint().exact())
    }
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = UploadFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadFailure>>> {
        match &mut self.0 {
            None => Poll::Ready(None),
            Some(streaming) => streaming.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|streaming| streaming.upload.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |streaming| streaming.upload.size_hint())
    }
}

impl Streaming {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadFailure>>> {
        if let Some(gate) = &self.gate {
            ready!(gate.poll_open(&mut self.timer, cx));
            self.gate = None;
            self.timer.reset();
        }
        if self.upload.is_blocked() {
            // hyper flushes next, and polls again as soon as the socket has taken everything.
            self.upload.awaits_client.store(false, Ordering::Release);
            self.timer.reset();
            return Poll::Pending;
        }
        let (frame, is_last) = match self.upload.poll_inner(cx) {
            Poll::Ready(None) => return Poll::Ready(Some(Err(UploadFailure::Unwanted))),
            Poll::Ready(Some(polled)) => polled,
            Poll::Pending => {
                self.upload.awaits_client.store(true, Ordering::Release);
                ready!(self.poll_idle(cx));
                return Poll::Ready(Some(Err(self.upload.fail(UploadFailure::Idle))));
            }
        };
        self.timer.reset();
        self.upload.awaits_client.store(false, Ordering::Release);
        Poll::Ready(match frame {
            None => {
                self.upload.complete.store(true, Ordering::Release);
                None
            }
            Some(Err(failure)) => Some(Err(self.upload.fail(failure))),
            Some(Ok(frame)) => self.pass(frame, is_last),
        })
    }

    /// Ready once the client has sent nothing for `idle`. The one timer also finds out that the
    /// upload runs for long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.upload.is_long.load(Ordering::Relaxed) {
            ready!(self.timer.poll_long(self.upload.begun + LONG_AFTER, self.idle, cx));
            self.upload.runs_long();
        }
        self.timer.poll(self.idle, cx)
    }

    fn pass(
        &mut self,
        frame: Frame<Bytes>,
        is_last: bool,
    ) -> Option<Result<Frame<Bytes>, UploadFailure>> {
        let frame = match frame.into_data() {
            Ok(data) if self.counts_frames && !data.is_empty() => {
                Frame::data(self.upload.count(data))
            }
            Ok(data) => Frame::data(data),
            Err(trailers) => trailers,
        };
        if let Some(data) = frame.data_ref() {
            self.upload.progressed(data.len());
            if self.upload.bytes() > self.max {
                return Some(Err(self.upload.fail(UploadFailure::TooLarge)));
            }
            if self.upload.bytes() > LONG_BYTES {
                self.upload.runs_long();
            }
            if is_last {
                self.upload.complete.store(true, Ordering::Release);
            }
            return Some(Ok(frame));
        }
        let trailers = frame.into_trailers().ok()?;
        self.upload.complete.store(true, Ordering::Release);
        let mut passed = HeaderMap::new();
        for name in &self.trailers {
            for value in trailers.get_all(name) {
                passed.append(name.clone(), value.clone());
            }
        }
        if passed.is_empty() { None } else { Some(Ok(Frame::trailers(passed))) }
    }
}

/// Holds back a request body until the upstream has sent `100 Continue` (RFC 9110 §10.1.1).
///
/// The client is asked for its body only when the body is read, so an upstream that rejects the
/// request at once saves the client the upload.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// How long to wait for an upstream that never sends `100 Continue`, which it need not do (RFC 9110
/// §10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

impl Gate {
    const OPEN: u8 = 1;
    const SHUT: u8 = 2;

    /// Lets the body pass: the upstream wants it.
    pub fn open(&self) {
        self.set(Self::OPEN);
    }

    /// Never lets the body pass: the upstream has responded without it. Returns whether the body
    /// had not begun.
    pub fn shut(&self) -> bool {
        self.set(Self::SHUT)
    }

    fn set(&self, state: u8) -> bool {
        let is_set =
            self.state.compare_exchange(0, state, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if is_set && let Some(waker) = locked(&self.waker).take() {
            waker.wake();
        }
        is_set
    }

    fn poll_open(&self, timer: &mut IdleTimer, cx: &mut Context<'_>) -> Poll<()> {
        set_waker(&self.waker, cx);
        match self.state.load(Ordering::Acquire) {
            Self::OPEN => Poll::Ready(()),
            Self::SHUT => Poll::Pending,
            _ => {
                ready!(timer.poll(CONTINUE_TIMEOUT, cx));
                self.open();
                if self.state.load(Ordering::Acquire) == Self::OPEN {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }
        }
    }
}
