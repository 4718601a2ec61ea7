//! Writes small messages in one piece.
//!
//! hyper passes a head and the beginning of a body to the socket as two buffers. For the kernel,
//! gathering two small buffers costs more than it costs us to copy them together.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, Take};

/// The maximum number of bytes per read from a socket. The memory for a peer that does not read is
/// a multiple of it.
///
/// It is one less than 32 KiB because hyper doubles its buffer for the next read after a full one.
pub const MAX_READ: u64 = 32 * 1024 - 1;

/// Reads at most [`MAX_READ`] bytes. Few buffers have room for more, and the others need no limit.
pub fn poll_read_some<T: AsyncRead + Unpin>(
    io: &mut Take<T>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    if buf.remaining() as u64 <= MAX_READ {
        return Pin::new(io.get_mut()).poll_read(cx, buf);
    }
    io.set_limit(MAX_READ);
    Pin::new(io).poll_read(cx, buf)
}

/// Messages of up to this many bytes are copied together.
const SMALL: usize = 1024;

thread_local! {
    /// Where a worker copies a message together. A local array would be filled with zeros each time.
    static TOGETHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A stream that writes small messages in one piece.
#[derive(Debug)]
pub struct Coalescing<T>(pub T);

impl<T: AsyncRead + Unpin> AsyncRead for Coalescing<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalescing<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.0);
        if let [one] = bufs {
            return io.poll_write(cx, one);
        }
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > SMALL {
            return io.poll_write_vectored(cx, bufs);
        }
        TOGETHER.with_borrow_mut(|together| {
            together.clear();
            for buf in bufs {
                together.extend_from_slice(buf);
            }
            io.poll_write(cx, together)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Accepts a limited number of bytes per write, and records the buffers of each write.
    struct Noted {
        most: usize,
        writes: Vec<Vec<Vec<u8>>>,
    }

    impl AsyncWrite for Noted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.most);
            self.writes.push(vec![buf[..taken].to_vec()]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.writes.push(bufs.iter().map(|buf| buf.to_vec()).collect());
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn written(most: usize, bufs: &[&[u8]]) -> (usize, Vec<Vec<Vec<u8>>>) {
        let mut stream = Coalescing(Noted { most, writes: Vec::new() });
        let slices: Vec<_> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let count =
            poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &slices)).await.unwrap();
        (count, stream.0.writes)
    }

    #[tokio::test]
    async fn small_writes_are_coalesced() {
        let whole = |text: &[u8]| vec![vec![text.to_vec()]];
        assert_eq!(written(9, &[b"head", b"", b"body"]).await, (8, whole(b"headbody")));
        // A socket that accepts less says so, and the rest is written again.
        assert_eq!(written(6, &[b"head", b"body"]).await, (6, whole(b"headbo")));
        assert_eq!(written(9, &[]).await, (0, whole(b"")));
        let (fits, beyond) = ([b'x'; SMALL - 4], [b'x'; SMALL - 3]);
        assert_eq!(written(SMALL, &[b"head", &fits]).await.0, SMALL);
        assert_eq!(
            written(SMALL, &[b"head", &beyond]).await,
            (SMALL + 1, vec![vec![b"head".to_vec(), beyond.to_vec()]])
        );
        // A single buffer needs no gathering, however long it is.
        assert_eq!(written(9_000, &[&[b'x'; 9_000]]).await.0, 9_000);
    }
}
