//! The tunnel after a 101: splices two streams until either one ends or both are idle, or until the
//! gateway ends it with a close frame in both directions.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};

use super::exchange::Exchange;
use super::streams::{End, Stream, StreamBytes};
use super::upstream::Lease;
use super::websocket::{Frames, close_frame};

/// How long the rest of a frame and the close frame may take to pass.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(600);

/// How long the client may then take to close its side.
const LINGER: Duration = Duration::from_millis(300);

/// Runs a tunnel to its end. When this returns or is dropped, the record is written and the
/// upstream connection is closed.
pub(super) async fn run(
    client: OnUpgrade,
    upstream: OnUpgrade,
    stream: Option<Arc<Stream>>,
    bytes: Arc<StreamBytes>,
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
    let closing = Closing::default();
    let mut client = Watched::new(client, &bytes.up, &activity, &closing, true);
    let mut upstream = Watched::new(upstream, &bytes.down, &activity, &closing, false);
    let is_told = {
        let mut copying = pin!(tokio::io::copy_bidirectional(&mut client, &mut upstream));
        tokio::select! {
            // First, so that nothing more passes once it was told.
            biased;
            end = told(stream.as_deref()) => {
                closing.begin(&end);
                // Both sides read the close frame in place of what their peer sends next.
                let _ = timeout(CLOSE_TIMEOUT, copying).await;
                true
            }
            // Either side may close first, even abruptly; there is no one left to inform.
            _ = &mut copying => false,
            () = activity.silence(idle) => false,
        }
    };
    if is_told {
        // A socket that is closed with bytes unread is reset, and the client would lose the frame.
        let mut discarded = [0; 1024];
        let reading = async { while matches!(client.io.read(&mut discarded).await, Ok(1..)) {} };
        let _ = timeout(LINGER, reading).await;
    }
    drop((lease, exchange));
}

/// Returns when the gateway ends the stream.
async fn told(stream: Option<&Stream>) -> End {
    match stream {
        Some(stream) => std::future::poll_fn(|cx| stream.poll_end(cx).map(Clone::clone)).await,
        None => std::future::pending().await,
    }
}

/// The close that is sent in both directions, once there is one.
#[derive(Debug, Default)]
struct Closing(OnceLock<(u16, &'static str)>);

impl Closing {
    fn begin(&self, end: &End) {
        // It begins once.
        let _ = self.0.set((end.close_code(), end.as_str()));
    }
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

/// One side of a tunnel. It counts the bytes read from it, and at the end yields a close frame in
/// their place.
struct Watched<'a> {
    io: TokioIo<Upgraded>,
    read: &'a AtomicU64,
    activity: &'a Activity,
    closing: &'a Closing,
    is_client: bool,
    frames: Frames,
    /// What is left of the close frame, while it is passed on.
    close: Option<Vec<u8>>,
}

impl<'a> Watched<'a> {
    fn new(
        io: Upgraded,
        read: &'a AtomicU64,
        activity: &'a Activity,
        closing: &'a Closing,
        is_client: bool,
    ) -> Self {
        let (io, frames) = (TokioIo::new(io), Frames::default());
        Self { io, read, activity, closing, is_client, frames, close: None }
    }

    /// Reads what is left of the current frame, then the close frame, then the end.
    fn poll_close(
        &mut self,
        (code, reason): (u16, &str),
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.frames.to_boundary();
        if left > 0 && self.close.is_none() {
            let mut chunk = [0; 4096];
            let room = left.min(buf.remaining()).min(chunk.len());
            let mut rest = ReadBuf::new(&mut chunk[..room]);
            let polled = self.poll_counted(cx, &mut rest);
            buf.put_slice(rest.filled());
            return polled;
        }
        let has_closed = self.frames.has_closed();
        let is_client = self.is_client;
        let close = self.close.get_or_insert_with(|| {
            if has_closed { Vec::new() } else { close_frame(code, reason, is_client) }
        });
        let length = close.len().min(buf.remaining());
        buf.put_slice(&close[..length]);
        close.drain(..length);
        Poll::Ready(Ok(()))
    }

    fn poll_counted(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            self.read.fetch_add(read.len() as u64, Ordering::Relaxed);
            self.activity.note();
            self.frames.pass(read);
        }
        polled
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let closing = self.closing.0.get().copied();
        match closing {
            None => self.poll_counted(cx, buf),
            Some(close) => self.poll_close(close, cx, buf),
        }
    }
}

impl AsyncWrite for Watched<'_> {
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
