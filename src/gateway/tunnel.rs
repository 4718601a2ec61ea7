//! The tunnel after a 101: splices two streams until either one ends or both are idle, or until the
//! drain deadline.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::exchange::{Exchange, TunnelBytes};
use super::upstream::Lease;

/// Runs a tunnel to its end. When this returns or is dropped, the record is written and the
/// upstream connection is closed.
pub(super) async fn run(
    client: OnUpgrade,
    upstream: OnUpgrade,
    bytes: Arc<TunnelBytes>,
    lease: Lease,
    exchange: Box<Exchange>,
) {
    let idle = lease.idle_timeout();
    let (client, upstream) = match tokio::try_join!(client, upstream) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(cause = %error, "the upgrade was not completed");
            return;
        }
    };
    let activity = Activity::new();
    let mut client = Watched { io: TokioIo::new(client), read: &bytes.up, activity: &activity };
    let mut upstream =
        Watched { io: TokioIo::new(upstream), read: &bytes.down, activity: &activity };
    tokio::select! {
        // Either side may close first, even abruptly; there is no one left to inform.
        _ = tokio::io::copy_bidirectional(&mut client, &mut upstream) => {}
        () = activity.silence(idle) => {}
    }
    drop((lease, exchange));
}

/// The time of the last byte, in either direction.
struct Activity {
    begun: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0) }
    }

    fn note(&self) {
        self.last.store(
            u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// Returns once nothing has passed for `idle`.
    async fn silence(&self, idle: Duration) {
        loop {
            let deadline =
                self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
            if Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

/// A stream that counts the bytes read from it.
struct Watched<'a, T> {
    io: T,
    read: &'a AtomicU64,
    activity: &'a Activity,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.read.fetch_add(read as u64, Ordering::Relaxed);
            self.activity.note();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<'_, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
