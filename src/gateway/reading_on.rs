//! An upstream's socket that is read to its end also when it takes nothing any more.
//!
//! An application that has heard enough (413, 401) answers and closes in the middle of an upload.
//! What is written from then on fails, while its answer waits in the socket to be read (RFC 9112
//! §9.5); hyper gives a connection up when a write fails. So a write that fails is left pending
//! here, and whoever reads learns the end: the answer, then why there is no more.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes do not fail as long as there may be something to read: where the other
/// side takes nothing any more they wait, and the end of what it has sent is the error.
#[derive(Debug)]
pub(super) struct ReadingOn<T> {
    io: T,
    /// Whether a write has failed.
    is_deaf: bool,
    /// Whether all was read that the other side has sent.
    has_ended: bool,
    /// Why, as long as nobody was told.
    cause: Option<io::Error>,
}

impl<T> ReadingOn<T> {
    pub(super) const fn new(io: T) -> Self {
        Self { io, is_deaf: false, has_ended: false, cause: None }
    }

    /// Whoever writes also reads, and is woken by that: no other waker is needed.
    fn wait_if_deaf(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error)) if !self.has_ended => {
                self.is_deaf = true;
                self.cause = Some(error);
                Poll::Pending
            }
            other => other,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadingOn<T> {
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
            if let Some(cause) = self.cause.take() {
                return Poll::Ready(Err(cause));
            }
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadingOn<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_deaf {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wait_if_deaf(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (ReadingOn<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (ReadingOn::new(near.unwrap()), far.unwrap().0)
    }

    /// Until the other side is known to take nothing: an error, or none within a moment where it
    /// waits.
    async fn write_on(near: &mut ReadingOn<TcpStream>) -> Option<io::Error> {
        loop {
            match tokio::time::timeout(Duration::from_millis(200), near.write(&[0; 4096])).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Some(error),
                Err(_) => return None,
            }
        }
    }

    #[tokio::test]
    async fn what_was_said_before_the_end_is_read_and_then_why_it_ended() {
        let (mut near, mut far) = pair().await;
        far.write_all(b"enough").await.unwrap();
        near.write_all(b"unread").await.unwrap();
        far.readable().await.unwrap();
        // With something unread: it is reset.
        drop(far);
        assert!(write_on(&mut near).await.is_none());
        let mut said = Vec::new();
        near.read_to_end(&mut said).await.unwrap_err();
        assert_eq!(said, b"enough");
    }

    /// As in a tunnel, one direction of which has ended.
    #[tokio::test]
    async fn where_nothing_is_left_to_read_a_write_fails_at_once() {
        let (mut near, mut far) = pair().await;
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        near.write_all(b"unread").await.unwrap();
        far.readable().await.unwrap();
        drop(far);
        assert!(write_on(&mut near).await.is_some());
    }
}
