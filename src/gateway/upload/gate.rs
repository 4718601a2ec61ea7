//! `Expect: 100-continue`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use super::{IdleTimer, locked, set_waker};

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

    pub(super) fn poll_open(&self, timer: &mut IdleTimer, cx: &mut Context<'_>) -> Poll<()> {
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
