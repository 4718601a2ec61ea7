//! An upstream's socket, which notes whether a response has begun, is read to its end even when it
//! accepts no more writes, and limits how much is read at once.
//!
//! A kept connection can end while a request is in flight. hyper then reports an error without
//! saying whether bytes of a response arrived before it. The request may be sent again only if none
//! did. hyper takes a request apart when it sends it, so its head is kept here as it was written: that
//! costs less than a copy of its fields.
//!
//! An application may reject a request early (413, 401): it responds and closes in the middle of an
//! upload. From then on, writes fail while the response waits in the socket to be read (RFC 9112
//! §9.5), and hyper gives up a connection when a write fails. So a failed write is held back here,
//! and the reader gets the response first, then the reason why the connection ended.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Sleep, sleep};

use crate::coalesce::{MAX_READ, poll_read_some};

/// What [`WatchedSocket`] has observed on its socket.
#[derive(Clone, Debug, Default)]
pub(super) struct SocketState(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    has_received: AtomicBool,
    has_ended: AtomicBool,
    is_full: AtomicBool,
    /// Whether the next write is the head of a request, which is kept.
    keeps_head: AtomicBool,
    head: Mutex<Vec<u8>>,
}

impl SocketState {
    /// Forgets what arrived before. Call it when a request is about to be sent. `keeps_head`: whether
    /// [`head`](Self::head) will be its head.
    pub(super) fn reset(&self, keeps_head: bool) {
        self.0.has_received.store(false, Ordering::Relaxed);
        self.0.keeps_head.store(keeps_head, Ordering::Relaxed);
        if keeps_head {
            let mut head = self.lock_head();
            head.clear();
            head.shrink_to(USUAL_HEAD);
        }
    }

    /// The head of the request as it was written; empty if it was not.
    pub(super) fn head(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lock_head())
    }

    fn lock_head(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is about to be written. hyper hands over a head in one write, even if the socket
    /// takes only a part of it.
    fn note_write(&self, written: &[IoSlice<'_>]) {
        if self.0.keeps_head.load(Ordering::Relaxed) {
            self.0.keeps_head.store(false, Ordering::Relaxed);
            let mut head = self.lock_head();
            for part in written {
                head.extend_from_slice(part);
            }
        }
    }

    /// Whether a byte has arrived since [`reset`](Self::reset).
    pub(super) fn has_received(&self) -> bool {
        self.0.has_received.load(Ordering::Relaxed)
    }

    /// Whether the application has closed the connection, or accepts no more on it.
    pub(super) fn has_ended(&self) -> bool {
        self.0.has_ended.load(Ordering::Relaxed)
    }

    /// Whether bytes are waiting for the application to read them. If so, the body is not polled,
    /// since hyper would collect it in memory.
    pub(super) fn is_full(&self) -> bool {
        self.0.is_full.load(Ordering::Relaxed)
    }
}

/// A stream that notes when bytes are read from it, and reads at most [`MAX_READ`] bytes at once.
///
/// Its writes do not fail as long as there may be something to read. When the peer accepts no more,
/// the error is reported at the end of what the peer has sent.
#[derive(Debug)]
pub(super) struct WatchedSocket<T> {
    io: Take<T>,
    state: SocketState,
    /// Whether a write has failed.
    write_failed: bool,
    /// Whether h2 uses it.
    is_http2: bool,
    /// The end, until it is reported.
    end: Option<End>,
    /// Whether it was reported that the peer sends no more.
    has_ended: bool,
    /// Why the write failed, until that is reported.
    write_error: Option<io::Error>,
}

/// That the peer sends no more.
#[derive(Debug)]
struct End {
    /// When to report it; `None`: at once.
    at: Option<Pin<Box<Sleep>>>,
    how: io::Result<()>,
}

impl<T: AsyncRead> WatchedSocket<T> {
    pub(super) fn new(io: T, state: SocketState) -> Self {
        let io = io.take(MAX_READ);
        Self {
            io,
            state,
            write_failed: false,
            is_http2: false,
            end: None,
            has_ended: false,
            write_error: None,
        }
    }

    /// For h2. The end of what the peer sent is reported a moment later: when h2 learns that a
    /// connection has ended, it drops what it has read of whole responses and not passed on.
    pub(super) fn for_http2(io: T, state: SocketState) -> Self {
        Self { is_http2: true, ..Self::new(io, state) }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> WatchedSocket<T> {
    /// Writes. If that fails, nothing more can be sent, and the connection carries no other request.
    /// While there may be something to read, the failed write and later ones stay pending: the task
    /// that writes also reads, and is woken by that. h2 reads only while it can write, so its bytes
    /// are dropped instead, and `dropped` is the result.
    fn hold_error<R>(
        &mut self,
        dropped: R,
        write: impl FnOnce(Pin<&mut T>) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if !self.write_failed {
            match write(Pin::new(self.io.get_mut())) {
                Poll::Ready(Err(error)) if !self.has_ended => {
                    self.state.0.has_ended.store(true, Ordering::Relaxed);
                    self.write_failed = true;
                    self.write_error = Some(error);
                }
                other => return other,
            }
        }
        match (self.has_ended, self.is_http2) {
            (true, _) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            (false, true) => Poll::Ready(Ok(dropped)),
            (false, false) => Poll::Pending,
        }
    }

    fn note_if_full(&self, written: &Poll<io::Result<usize>>) {
        if written.is_pending() {
            self.state.0.is_full.store(true, Ordering::Relaxed);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedSocket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            let before = buf.filled().len();
            let polled = ready!(poll_read_some(&mut self.io, cx, buf));
            if buf.filled().len() > before {
                self.state.0.has_received.store(true, Ordering::Relaxed);
                return Poll::Ready(polled);
            }
            if self.has_ended || buf.remaining() == 0 {
                return Poll::Ready(polled);
            }
            self.state.0.has_ended.store(true, Ordering::Relaxed);
            let at = self.is_http2.then(|| Box::pin(sleep(DELAY)));
            self.end = Some(End { at, how: polled });
        }
        if let Some(End { at: Some(at), .. }) = &mut self.end {
            ready!(at.as_mut().poll(cx));
        }
        self.has_ended = true;
        let ended = self.end.take().map_or(Ok(()), |end| end.how);
        Poll::Ready(ended.and_then(|()| self.write_error.take().map_or(Ok(()), Err)))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedSocket<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.state.note_write(&[IoSlice::new(buf)]);
        let written = self.hold_error(buf.len(), |io| io.poll_write(cx, buf));
        self.note_if_full(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.state.note_write(bufs);
        let length = bufs.iter().map(|buf| buf.len()).sum();
        let written = self.hold_error(length, |io| io.poll_write_vectored(cx, bufs));
        self.note_if_full(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    /// TLS writes what it has buffered here.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.hold_error((), |io| io.poll_flush(cx));
        self.state.0.is_full.store(flushed.is_pending(), Ordering::Relaxed);
        flushed
    }

    /// Fails at once: after closing, the connection is not read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io.get_mut()).poll_shutdown(cx)
    }
}

/// How late an end is reported to h2.
const DELAY: Duration = Duration::from_millis(50);

/// Heads up to this length need no new memory on the same connection, in bytes.
const USUAL_HEAD: usize = 2048;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (WatchedSocket<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (WatchedSocket::new(near.unwrap(), SocketState::default()), far.unwrap().0)
    }

    /// Writes until the peer accepts no more. Returns the error, or `None` if the write is still
    /// pending after a moment.
    async fn write_on(near: &mut WatchedSocket<TcpStream>) -> Option<io::Error> {
        loop {
            match tokio::time::timeout(Duration::from_millis(200), near.write(&[0; 4096])).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Some(error),
                Err(_) => return None,
            }
        }
    }

    #[tokio::test]
    async fn received_bytes_are_read_before_the_write_error_is_reported() {
        let (mut near, mut far) = pair().await;
        far.write_all(b"enough").await.unwrap();
        near.write_all(b"unread").await.unwrap();
        far.readable().await.unwrap();
        // Dropping it with unread bytes resets the connection.
        drop(far);
        assert!(write_on(&mut near).await.is_none());
        let mut received = Vec::new();
        near.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(received, b"enough");
        near.write_all(b"more").await.unwrap_err();
    }

    #[tokio::test]
    async fn the_head_of_a_request_is_kept_even_if_the_peer_is_gone() {
        let (mut near, far) = pair().await;
        let state = near.state.clone();
        state.reset(true);
        near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        near.write_all(b"more").await.unwrap();
        assert_eq!(state.head(), b"GET / HTTP/1.1\r\n\r\n");
        state.reset(false);
        near.write_all(b"POST").await.unwrap();
        assert!(state.head().is_empty());
        drop(far);
        assert!(write_on(&mut near).await.is_none());
        state.reset(true);
        let write = near.write_all(b"GET /b HTTP/1.1\r\n\r\n");
        tokio::time::timeout(Duration::from_millis(50), write).await.unwrap_err();
        assert_eq!(state.head(), b"GET /b HTTP/1.1\r\n\r\n");
    }

    /// h2 would wait for good: it reads only while it can write.
    #[tokio::test]
    async fn what_h2_writes_is_dropped_until_the_end_was_read() {
        let (near, mut far) = pair().await;
        let mut near = WatchedSocket::for_http2(near.io.into_inner(), SocketState::default());
        far.write_all(b"enough").await.unwrap();
        near.write_all(b"unread").await.unwrap();
        far.readable().await.unwrap();
        drop(far);
        while !near.write_failed {
            near.write_all(&[0; 4096]).await.unwrap();
        }
        near.write_all(&[0; 4096]).await.unwrap();
        near.flush().await.unwrap();
        assert!(near.state.has_ended());
        let mut received = Vec::new();
        near.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(received, b"enough");
        near.write_all(b"more").await.unwrap_err();
    }

    /// As in a tunnel of which one direction has ended.
    #[tokio::test]
    async fn a_write_fails_at_once_after_the_end_of_input() {
        let (mut near, mut far) = pair().await;
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        near.write_all(b"unread").await.unwrap();
        far.readable().await.unwrap();
        drop(far);
        assert!(write_on(&mut near).await.is_some());
    }
}
