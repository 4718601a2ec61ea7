//! A signal that all connections receive once, and that costs hardly anything until then.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use tokio_util::sync::CancellationToken;

/// A signal that is triggered once and stays triggered.
///
/// Checking a [`CancellationToken`] takes a lock, and a connection checks at each poll: workers
/// would contend for that lock. Here they read a flag that is not written until the signal is
/// triggered.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    is_triggered: AtomicBool,
    token: CancellationToken,
}

impl Shutdown {
    /// Triggers the signal.
    pub(super) fn trigger(&self) {
        self.is_triggered.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Returns once the signal is triggered.
    pub(super) async fn triggered(&self) {
        let mut cancelled = pin!(self.token.cancelled());
        let mut waits_for: Option<Waker> = None;
        poll_fn(|cx| {
            if self.is_triggered.load(Ordering::Acquire) {
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
    async fn waiting_and_later_tasks_receive_the_signal() {
        let shutdown = Arc::new(Shutdown::default());
        let waiting = tokio_util::task::TaskTracker::new();
        for _ in 0..3 {
            let shutdown = Arc::clone(&shutdown);
            waiting.spawn(async move { shutdown.triggered().await });
        }
        waiting.close();
        tokio::task::yield_now().await;
        assert_eq!(waiting.len(), 3);
        shutdown.trigger();
        waiting.wait().await;
        shutdown.triggered().await;
    }

    #[test]
    fn only_the_waker_of_the_last_poll_is_woken() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let counts = [Arc::new(Count(0.into())), Arc::new(Count(0.into()))];
        let shutdown = Shutdown::default();
        let mut waiting = pin!(shutdown.triggered());
        for count in &counts {
            for _ in 0..2 {
                let waker = Waker::from(Arc::clone(count));
                assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
        }
        shutdown.trigger();
        assert_eq!(counts.map(|count| count.0.load(Ordering::Relaxed)), [0, 1]);
        assert!(waiting.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
