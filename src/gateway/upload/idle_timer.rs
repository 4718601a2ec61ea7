//! A timeout that costs nothing while bytes flow.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

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
