//! An upstream's socket that is read to its end even when it accepts no more writes.
//!
//! An application may reject a request early (413, 401): it responds and closes in the middle of an
//! upload. From then on, writes fail while the response waits in the socket to be read (RFC 9112
//! §9.5), and hyper gives up a connection when a write fails. So a failed write stays pending here,
//! and the reader gets the response first, then the reason why the connection ended.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes do not fail as long as there may be something to read. When the peer
/// accepts no more, writes stay pending, and the error is reported at the end of what the peer has
/// sent.
#[derive(Debug)]
pub(super) struct ReadAfterWriteError<T> {
    io: T,
    /// Whether a write has failed.
    write_failed: bool,
    /// Whether everything that the peer sent was read.
    has_ended: bool,
    /// Why the write failed, until that is reported.
    write_error: Option<io::Error>,
}

impl<T> ReadAfterWriteError<T> {
    pub(super) const fn new(io: T) -> Self {
        Self { io, write_failed: false, has_ended: false, write_error: None }
    }

    /// Leaves a failed write pending while there may be something to read. The task that writes
    /// also reads, and is woken by that: no other waker is needed.
    fn hold_error(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error)) if !self.has_ended => {
                self.write_failed = true;
                self.write_error = Some(error);
                Poll::Pending
            }
            other => other,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAfterWriteError<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = polled
            && buf.filled().len() == before
            && buf.remaining() > 0
        {
            self.has_ended = true;
            if let Some(write_error) = self.write_error.take() {
                return Poll::Ready(Err(write_error));
            }
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAfterWriteError<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.hold_error(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.hold_error(written)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (ReadAfterWriteError<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (ReadAfterWriteError::new(near.unwrap()), far.unwrap().0)
    }

    /// Writes until the peer accepts no more. Returns the error, or `None` if the write is still
    /// pending after a moment.
    async fn write_on(near: &mut ReadAfterWriteError<TcpStream>) -> Option<io::Error> {
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
