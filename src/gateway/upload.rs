//! The body of a request on its way to the upstream.
//!
//! It is not collected. A frame is passed on when the upstream asks for one, so an upstream that reads
//! slowly slows down the client (back-pressure).

mod client_body;
mod gate;
mod idle_timer;
mod request_body;

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

pub use self::client_body::ClientBody;
pub use self::gate::Gate;
pub use self::idle_timer::IdleTimer;
pub use self::request_body::{RequestBody, UnreadBodies};
use super::watched_socket::SocketState;
use crate::reason::Reason;

/// The state of a request body that is being sent. It is shared between the body, which the
/// connection to the upstream owns, and the exchange that waits for the response.
#[derive(Debug)]
pub struct Upload {
    /// The client's body. `None` once hyper has dropped its end of it.
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
    /// What hyper has and has not written: the body itself, and the frames of it that are
    /// [counted](ClientBody::count_frames).
    unwritten: AtomicUsize,
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
        self.upload.unwritten.fetch_sub(1, Ordering::Relaxed);
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
}

impl UploadFailure {
    /// The reason that the client and the log are given.
    pub const fn reason(self) -> Reason {
        match self {
            Self::TooLarge => Reason::BodyTooLarge,
            Self::Idle | Self::Broken => Reason::FramingInvalid,
        }
    }
}

impl fmt::Display for UploadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the body is larger than max_body",
            Self::Idle => "the client stopped in the middle of the body",
            Self::Broken => "the client aborted the body",
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
            unwritten: AtomicUsize::new(1),
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

    /// Whether hyper has written all that it has taken of it.
    pub(super) fn is_written(&self) -> bool {
        self.unwritten.load(Ordering::Relaxed) == 0
    }

    /// Polls the next frame of the client's body.
    fn poll_inner(&self, cx: &mut Context<'_>) -> Poll<Polled> {
        let mut inner = locked(&self.inner);
        let Some(body) = &mut *inner else { return Poll::Ready((None, true)) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        // On HTTP/2, the stream may end in a frame of its own.
        let is_last = body.is_end_stream() || body.size_hint().exact() == Some(0);
        let frame = match frame {
            // hyper reports a stream that was reset without an error as ended.
            None if body.is_http2 && !body.is_end_stream() => Some(Err(UploadFailure::Broken)),
            frame => frame.map(|frame| frame.map_err(|_| UploadFailure::Broken)),
        };
        Poll::Ready((frame, is_last))
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
        self.unwritten.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a frame until it is written.
    fn count(self: &Arc<Self>, data: Bytes) -> Bytes {
        self.unwritten.fetch_add(1, Ordering::Relaxed);
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
