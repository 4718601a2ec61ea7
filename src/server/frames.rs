//! Tracks the frames of an HTTP/2 client by their headers. hyper has no timeout for a header block
//! that never ends, and no limit on frames that only ask for a reply.
//!
//! Nothing is decoded. Rejecting malformed frames is left to hyper.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The length in bytes of the preface, which comes before the first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// The length in bytes of a frame header (RFC 9113 §4.1).
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 4;

/// The number of PING, SETTINGS, PRIORITY and unknown frames that may arrive within [`FLOOD_TIME`].
/// Clients that measure the bandwidth of a fast network also send many pings, but not ten per
/// millisecond.
const FLOOD: u32 = 1000;

const FLOOD_TIME: Duration = Duration::from_millis(100);

/// A client's position in its stream of frames.
#[derive(Debug)]
pub(super) struct Frames {
    /// The header of the current frame. Its first `have` bytes have arrived.
    head: [u8; HEAD],
    have: usize,
    /// The number of bytes left in the preface or in the current frame.
    left: usize,
    is_data: bool,
    in_headers: bool,
    /// Since when a header block, or a frame other than DATA, has been unfinished.
    unfinished_since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// The number of frames since `flood_since` that only ask for a reply.
    without_content: u32,
    flood_since: Option<Instant>,
}

/// A client sends far too many frames that carry nothing.
#[derive(Debug, thiserror::Error)]
#[error("more than {FLOOD} PING, SETTINGS or PRIORITY frames in {FLOOD_TIME:?}")]
pub(super) struct Flood;

impl Frames {
    /// The position before the first byte of the preface.
    pub(super) fn new() -> Self {
        Self {
            head: [0; HEAD],
            have: 0,
            left: PREFACE,
            is_data: false,
            in_headers: false,
            unfinished_since: None,
            sleep: None,
            without_content: 0,
            flood_since: None,
        }
    }

    /// Tracks the frames in the bytes that were read.
    pub(super) fn track(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        if bytes.is_empty() {
            return Ok(());
        }
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEAD {
                self.begin_frame()?;
            }
        }
        let is_unfinished = self.have > 0 || self.in_headers || (self.left > 0 && !self.is_data);
        if !is_unfinished {
            self.unfinished_since = None;
        } else if self.unfinished_since.is_none() {
            self.unfinished_since = Some(Instant::now());
        }
        Ok(())
    }

    fn begin_frame(&mut self) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.have = 0;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.is_data = kind == DATA;
        match kind {
            HEADERS | CONTINUATION => self.in_headers = flags & END_HEADERS == 0,
            DATA | RST_STREAM | WINDOW_UPDATE => {}
            _ => return self.count(),
        }
        Ok(())
    }

    /// Counts a frame. Reads the clock only once per [`FLOOD`] frames.
    fn count(&mut self) -> Result<(), Flood> {
        self.without_content += 1;
        if self.without_content < FLOOD {
            return Ok(());
        }
        self.without_content = 0;
        let now = Instant::now();
        let earlier = self.flood_since.replace(now);
        match earlier {
            Some(earlier) if now.duration_since(earlier) < FLOOD_TIME => Err(Flood),
            _ => Ok(()),
        }
    }

    /// Ready once a frame or a header block has been unfinished for `timeout`. Call it when there
    /// is nothing to read.
    pub(super) fn poll_overdue(&mut self, timeout: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let Some(since) = self.unfinished_since else {
            self.sleep = None;
            return Poll::Pending;
        };
        let deadline = since + timeout;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    /// Checks whether the clock runs after each of these steps, whatever the size of the pieces.
    #[tokio::test]
    async fn the_clock_runs_while_a_header_block_is_unfinished() {
        let preface = [b'x'; PREFACE];
        let settings = frame(4, 0, &[0; 6]);
        let steps: &[(&[u8], bool)] = &[
            (&preface[..10], true),
            (&preface[10..], false),
            (&settings[..5], true),
            (&settings[5..], false),
            (&frame(HEADERS, 0, b"abc"), true),
            (&frame(CONTINUATION, 0, b""), true),
            (&frame(CONTINUATION, END_HEADERS, b"d"), false),
            (&frame(HEADERS, END_HEADERS, b"abc")[..10], true),
            (b"bc", false),
            // The body has its own clock.
            (&frame(DATA, 0, b"abcdef")[..12], false),
            (b"def", false),
        ];
        for size in [1, 2, 7, 1000] {
            let mut frames = Frames::new();
            for (index, (bytes, is_unfinished)) in steps.iter().enumerate() {
                for piece in bytes.chunks(size) {
                    frames.track(piece).unwrap();
                }
                let is_running = frames.unfinished_since.is_some();
                assert_eq!(is_running, *is_unfinished, "step {index} in pieces of {size}");
            }
        }
    }

    #[tokio::test]
    async fn only_a_flood_of_control_frames_is_rejected() {
        let (ping, data) = (frame(6, 0, &[0; 8]), frame(DATA, 0, b"abc"));
        let mut frames = Frames::new();
        frames.track(&[b'x'; PREFACE]).unwrap();
        for _ in 0..10 * FLOOD {
            frames.track(&data).unwrap();
        }
        for _ in 0..10 {
            (0..FLOOD).for_each(|_| frames.track(&ping).unwrap());
            frames.flood_since = Instant::now().checked_sub(FLOOD_TIME);
        }
        let all = (0..2 * FLOOD).try_for_each(|_| frames.track(&ping));
        assert!(all.is_err());
    }
}
