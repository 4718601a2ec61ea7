//! How much of the bodies of requests an HTTP/2 application accepts on a connection (RFC 9113 §5.2.1).
//!
//! All bodies of a connection share this window, and some applications open it again only as they
//! read. A body that is not read can use it up, and then no other one arrives. h2 does not say how
//! much is left, so it is counted here, by the heads of the frames in both directions.

use std::sync::atomic::{AtomicU64, Ordering};

/// The window of one connection, in bytes.
#[derive(Debug)]
pub struct Window {
    /// The number of bytes that the application has accepted in advance.
    granted: AtomicU64,
    /// The number of bytes that were sent.
    used: AtomicU64,
}

impl Default for Window {
    fn default() -> Self {
        Self { granted: AtomicU64::new(INITIAL), used: AtomicU64::default() }
    }
}

impl Window {
    /// Whether so little is left that what is sent next may have to wait.
    pub fn is_used_up(&self) -> bool {
        let granted = self.granted.load(Ordering::Relaxed);
        granted.saturating_sub(self.used.load(Ordering::Relaxed)) < LITTLE
    }
}

/// Follows the frames in one direction of a connection, for its window.
#[derive(Debug)]
pub struct WindowFrames {
    direction: Direction,
    /// The first bytes of a frame: its head, and the increment of a `WINDOW_UPDATE`.
    start: [u8; HEAD + INCREMENT],
    have: usize,
    /// The number of bytes to pass over.
    left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Sent,
    Received,
}

impl WindowFrames {
    /// What is sent to the application.
    pub fn sent() -> Self {
        Self { left: PREFACE, ..Self::new(Direction::Sent) }
    }

    /// What the application sends.
    pub fn received() -> Self {
        Self::new(Direction::Received)
    }

    fn new(direction: Direction) -> Self {
        Self { direction, start: [0; HEAD + INCREMENT], have: 0, left: 0 }
    }

    /// Notes what these bytes mean for the window. They may begin and end anywhere in a frame.
    pub fn note(&mut self, mut bytes: &[u8], window: &Window) {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            let wanted = if self.have < HEAD { HEAD } else { HEAD + INCREMENT };
            let taken = (wanted - self.have).min(bytes.len());
            self.start[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if taken > 0 && self.have == wanted {
                self.read_start(window);
            }
        }
    }

    fn read_start(&mut self, window: &Window) {
        let [high, middle, low, kind, _, stream @ .., a, b, c, d] = self.start;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if self.have > HEAD {
            self.have = 0;
            // The first bit is reserved (RFC 9113 §6.9).
            let increment = u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> 1);
            window.granted.fetch_add(increment.into(), Ordering::Relaxed);
            return;
        }
        // The first bit is reserved here too (RFC 9113 §4.1).
        let is_of_connection = u32::from_be_bytes(stream) << 1 == 0;
        let is_update = kind == WINDOW_UPDATE && is_of_connection && length == INCREMENT;
        if is_update && self.direction == Direction::Received {
            return;
        }
        (self.have, self.left) = (0, length);
        if kind == DATA && self.direction == Direction::Sent {
            window.used.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

/// What an application accepts before it says anything (RFC 9113 §6.9.2).
const INITIAL: u64 = 65_535;

/// How many bytes are little. Applications open the window again when about half of it is used.
const LITTLE: u64 = 16 * 1024;

/// The length in bytes of what a client sends before its first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// The length in bytes of the head of a frame (RFC 9113 §4.1).
const HEAD: usize = 9;

/// The length in bytes of the increment of a window.
const INCREMENT: usize = 4;

const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: [&[u8]; 6] = [
        &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100], // SETTINGS
        &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x80, 0, 1, 2],      // WINDOW_UPDATE: 258, a reserved bit
        &[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 9, 9],         // of a stream
        &[0, 0, 0, 4, 1, 0, 0, 0, 0],                     // SETTINGS, without a payload
        &[0, 0, 5, 0, 0, 0, 0, 0, 1, 8, 8, 8, 8, 8],      // DATA
        &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0],         // WINDOW_UPDATE: 65,536
    ];

    #[test]
    fn frames_are_followed_in_pieces_of_any_size() {
        let received = FRAMES.concat();
        let sent = [&[b'P'; PREFACE][..], &received].concat();
        for size in 1..sent.len() {
            for (mut frames, bytes, granted, used) in [
                (WindowFrames::received(), &received, INITIAL + 258 + 65_536, 0),
                (WindowFrames::sent(), &sent, INITIAL, 5),
            ] {
                let window = Window::default();
                for piece in bytes.chunks(size) {
                    frames.note(piece, &window);
                }
                let found = (&window.granted, &window.used);
                let found = (found.0.load(Ordering::Relaxed), found.1.load(Ordering::Relaxed));
                assert_eq!(found, (granted, used), "in pieces of {size}");
            }
        }
    }

    #[test]
    fn a_window_is_used_up_before_nothing_is_left() {
        let window = Window::default();
        for (used, granted, is_used_up) in
            [(32_768, 0, false), (20_000, 0, true), (0, 4000, false), (20_000, 0, true)]
        {
            window.used.fetch_add(used, Ordering::Relaxed);
            window.granted.fetch_add(granted, Ordering::Relaxed);
            assert_eq!(window.is_used_up(), is_used_up, "{window:?}");
        }
    }
}
