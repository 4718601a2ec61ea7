//! How an application begins an HTTP/2 connection, which tells whether it speaks HTTP/2 at all, and
//! whether anything has arrived since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The start of every response of HTTP/1.1. As HTTP/2, it would be a frame of 4.7 million bytes,
/// which no application sends unasked.
const HTTP1: &[u8] = b"HTTP/1";

/// [`Greeting`]: bytes that do not start as HTTP/1.1 does. Smaller numbers count the bytes that do.
const OTHER: u8 = u8::MAX;

/// What has arrived on a connection so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Greeting(Arc<Arrived>);

#[derive(Debug, Default)]
struct Arrived {
    /// How many of the first bytes are those of [`HTTP1`], or [`OTHER`].
    start: AtomicU8,
    /// How often bytes have arrived.
    times: AtomicUsize,
    /// Notified when the first bytes have arrived.
    first: Notify,
}

impl Greeting {
    /// Whether nothing has arrived.
    pub(super) fn is_missing(&self) -> bool {
        self.0.start.load(Ordering::Relaxed) == 0
    }

    /// Waits for the first bytes.
    pub(super) async fn arrived(&self) {
        let arrived = self.0.first.notified();
        if self.is_missing() {
            arrived.await;
        }
    }

    /// How often bytes have arrived so far.
    pub(super) fn times(&self) -> usize {
        self.0.times.load(Ordering::Relaxed)
    }

    /// Whether a response of HTTP/1.1 has arrived.
    pub(super) fn is_http1(&self) -> bool {
        usize::from(self.0.start.load(Ordering::Relaxed)) == HTTP1.len()
    }

    /// Notes bytes as they arrive.
    pub(super) fn note(&self, bytes: &[u8]) {
        self.0.times.fetch_add(1, Ordering::Relaxed);
        let mut state = self.0.start.load(Ordering::Relaxed);
        if usize::from(state) >= HTTP1.len() {
            return;
        }
        for byte in bytes {
            match HTTP1.get(usize::from(state)) {
                Some(expected) if expected == byte => state += 1,
                Some(_) => state = OTHER,
                None => break,
            }
        }
        if self.0.start.swap(state, Ordering::Relaxed) == 0 {
            self.0.first.notify_waiters();
        }
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
            greeting.note(&[*byte]);
            assert!(!greeting.is_http1() && !greeting.is_missing());
        }
        greeting.note(b"1.1 400 Bad Request");
        assert!(greeting.is_http1());
        let settings = Greeting::default();
        settings.note(b"\0\0\0\x04\0");
        assert!(!settings.is_http1() && !settings.is_missing());
    }
}
