//! An upstream's socket that is read to its end also when it takes nothing any more.
//!
//! An application that has heard enough (413, 401) answers and closes in the middle of an upload. What is written from then on fails, while
//! its answer waits in the socket to be read (RFC 9112 §9.5); hyper gives a connection up when a write fails. So a write that fails is
//! left pending here, and whoever reads learns the end: the answer, then why there is no more.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes never fail: where the other side takes nothing any more they wait, and the end of what it has sent is the error.
#[derive(Debug)]
pub(super) struct ReadingOn<T> {
    io: T,
    /// Whether a write has failed.
    is_deaf: bool,
    /// Why, as long as nobody was told.
    cause: Option<io::Error>,
}

impl<T> ReadingOn<T> {
    pub(super) const fn new(io: T) -> Self {
        Self { io, is_deaf: false, cause: None }
    }

    /// Whoever writes also reads, and is woken by that: no other waker is needed.
    fn wait_if_deaf(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error)) => {
                self.is_deaf = true;
                self.cause = Some(error);
                Poll::Pending
            }
            other => other,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadingOn<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.is_deaf
            && let Poll::Ready(Ok(())) = polled
            && buf.filled().len() == before
            && let Some(cause) = self.cause.take()
        {
            return Poll::Ready(Err(cause));
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadingOn<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_deaf {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wait_if_deaf(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.is_deaf {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wait_if_deaf(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
