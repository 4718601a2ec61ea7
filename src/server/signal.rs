//! A signal that all connections receive once, and that costs hardly anything until then.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use tokio_util::sync::CancellationToken;

/// A signal that is given once and stays given.
///
/// Checking a [`CancellationToken`] takes a lock, and a connection checks at each poll: workers
/// would contend for that lock. Here they read a flag that is not written until the signal is
/// given.
#[derive(Debug, Default)]
pub(super) struct Signal {
    given: AtomicBool,
    token: CancellationToken,
}

impl Signal {
    /// Gives the signal.
    pub(super) fn give(&self) {
        self.given.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Returns once the signal is given.
    pub(super) async fn given(&self) {
        let mut cancelled = pin!(self.token.cancelled());
        let mut waits_for: Option<Waker> = None;
        poll_fn(|cx| {
            if self.given.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            // The token still holds this waker, so there is no need to register it again.
            if waits_for.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            waits_for = Some(cx.waker().clone());
            cancelled.as_mut().poll(cx)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Context;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_hears_it_and_whoever_comes_later() {
        let signal = Arc::new(Signal::default());
        let waiting = tokio_util::task::TaskTracker::new();
        for _ in 0..3 {
            let signal = Arc::clone(&signal);
            waiting.spawn(async move { signal.given().await });
        }
        waiting.close();
        tokio::task::yield_now().await;
        assert_eq!(waiting.len(), 3);
        signal.give();
        waiting.wait().await;
        signal.given().await;
    }

    #[test]
    fn the_waker_that_polled_last_is_woken() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let counts = [Arc::new(Count(0.into())), Arc::new(Count(0.into()))];
        let signal = Signal::default();
        let mut waiting = pin!(signal.given());
        for count in &counts {
            for _ in 0..2 {
                let waker = Waker::from(Arc::clone(count));
                assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
        }
        signal.give();
        assert_eq!(counts.map(|count| count.0.load(Ordering::Relaxed)), [0, 1]);
        assert!(waiting.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
