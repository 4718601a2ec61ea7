//! How an application begins an HTTP/2 connection, which tells whether it speaks HTTP/2 at all.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The start of every response of HTTP/1.1. As HTTP/2, it would be a frame of 4.7 million bytes,
/// which no application sends unasked.
const HTTP1: &[u8] = b"HTTP/1";

/// [`Greeting`]: bytes that do not start as HTTP/1.1 does. Smaller numbers count the bytes that do.
const OTHER: u8 = u8::MAX;

/// What has arrived on a connection so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Greeting(Arc<AtomicU8>);

impl Greeting {
    /// Whether nothing has arrived.
    pub(super) fn is_missing(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whether a response of HTTP/1.1 has arrived.
    pub(super) fn is_http1(&self) -> bool {
        usize::from(self.0.load(Ordering::Relaxed)) == HTTP1.len()
    }

    /// Notes bytes as they arrive. Returns whether more of them are needed.
    fn note(&self, bytes: &[u8]) -> bool {
        let mut state = self.0.load(Ordering::Relaxed);
        for byte in bytes {
            match HTTP1.get(usize::from(state)) {
                Some(expected) if expected == byte => state += 1,
                Some(_) => state = OTHER,
                None => break,
            }
        }
        self.0.store(state, Ordering::Relaxed);
        usize::from(state) < HTTP1.len()
    }
}

/// A stream that notes how it begins.
#[derive(Debug)]
pub(super) struct Greeted<T> {
    io: T,
    greeting: Greeting,
    is_beginning: bool,
}

impl<T> Greeted<T> {
    pub(super) fn new(io: T, greeting: Greeting) -> Self {
        Self { io, greeting, is_beginning: true }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Greeted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if self.is_beginning {
            let read = buf.filled().get(before..).unwrap_or_default();
            self.is_beginning = self.greeting.note(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Greeted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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
    use super::*;

    #[test]
    fn a_response_of_http_1_is_recognized_byte_by_byte() {
        let greeting = Greeting::default();
        assert!(greeting.is_missing());
        for byte in b"HTTP/" {
            assert!(greeting.note(&[*byte]));
            assert!(!greeting.is_http1() && !greeting.is_missing());
        }
        assert!(!greeting.note(b"1.1 400 Bad Request"));
        assert!(greeting.is_http1());
        let settings = Greeting::default();
        assert!(!settings.note(b"\0\0\0\x04\0"));
        assert!(!settings.is_http1() && !settings.is_missing());
    }
}
