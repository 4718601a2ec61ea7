//! An upstream's socket, which notes whether a response has begun, and limits how much is read at
//! once.
//!
//! A kept connection can end while a request is in flight. hyper then reports an error without
//! saying whether bytes of a response arrived before it. The request may be sent again only if none
//! did.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use crate::coalesce::MAX_READ;

/// What [`WatchedSocket`] has observed on its socket.
#[derive(Clone, Debug, Default)]
pub(super) struct SocketState(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    has_received: AtomicBool,
    is_full: AtomicBool,
}

impl SocketState {
    /// Forgets what arrived before. Call it when a request is about to be sent.
    pub(super) fn reset(&self) {
        self.0.has_received.store(false, Ordering::Relaxed);
    }

    /// Whether a byte has arrived since [`reset`](Self::reset).
    pub(super) fn has_received(&self) -> bool {
        self.0.has_received.load(Ordering::Relaxed)
    }

    /// Whether bytes are waiting for the application to read them. If so, the body is not polled,
    /// since hyper would collect it in memory.
    pub(super) fn is_full(&self) -> bool {
        self.0.is_full.load(Ordering::Relaxed)
    }

    fn after_write(&self, written: &Poll<io::Result<usize>>) {
        if written.is_pending() {
            self.0.is_full.store(true, Ordering::Relaxed);
        }
    }
}

/// A stream that notes when bytes are read from it, and reads at most [`MAX_READ`] bytes at once.
#[derive(Debug)]
pub(super) struct WatchedSocket<T> {
    io: Take<T>,
    state: SocketState,
}

impl<T: AsyncRead> WatchedSocket<T> {
    pub(super) fn new(io: T, state: SocketState) -> Self {
        Self { io: io.take(MAX_READ), state }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedSocket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        self.io.set_limit(MAX_READ);
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.state.0.has_received.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedSocket<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.io.get_mut()).poll_write(cx, buf);
        self.state.after_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.io.get_mut()).poll_write_vectored(cx, bufs);
        self.state.after_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(self.io.get_mut()).poll_flush(cx);
        self.state.0.is_full.store(flushed.is_pending(), Ordering::Relaxed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io.get_mut()).poll_shutdown(cx)
    }
}
