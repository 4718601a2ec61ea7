//! The frames of a WebSocket (RFC 6455 §5.2), followed only as far as it takes to end one properly:
//! a close frame may stand between two frames, never inside one.

use aws_lc_rs::rand;
use http::{HeaderMap, header};

/// Whether a response with these fields accepts an upgrade to it.
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// One direction of a WebSocket.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The header that is being read, and how much of it has arrived.
    header: [u8; MAX_HEADER],
    arrived: usize,
    /// The bytes of the payload that are still to come.
    payload: u64,
    /// Whether a close frame has begun: none may follow it.
    has_closed: bool,
}

/// Two bytes, the extended length and the masking key.
const MAX_HEADER: usize = 14;

const OPCODE: u8 = 0x0F;
const CLOSE: u8 = 0x8;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7F;

impl Frames {
    /// Follows bytes that are passed on.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            if self.payload > 0 {
                let length =
                    usize::try_from(self.payload).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.payload -= length as u64;
                bytes = &bytes[length..];
                continue;
            }
            self.header[self.arrived] = first;
            self.arrived += 1;
            bytes = &bytes[1..];
            if self.arrived == self.header_length() {
                self.has_closed |= self.header[0] & OPCODE == CLOSE;
                self.payload = self.payload_length();
                self.arrived = 0;
            }
        }
    }

    /// How many bytes may be passed on before the next end of a frame could be missed; 0: this is
    /// the end of one.
    pub(super) fn to_boundary(&self) -> usize {
        match self.arrived {
            0 => usize::try_from(self.payload).unwrap_or(usize::MAX),
            arrived => self.header_length() - arrived,
        }
    }

    /// Whether a close frame was passed on.
    pub(super) fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// The length of the header, as far as is known: it has at least two bytes.
    fn header_length(&self) -> usize {
        if self.arrived < 2 {
            return 2;
        }
        let extended = match self.header[1] & LENGTH {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let key = if self.header[1] & MASKED == 0 { 0 } else { 4 };
        2 + extended + key
    }

    /// The length of the payload; the header is complete.
    fn payload_length(&self) -> u64 {
        let [_, length, extended @ ..] = &self.header;
        let number =
            |bytes: &[u8]| bytes.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        match length & LENGTH {
            126 => number(&extended[..2]),
            127 => number(&extended[..8]),
            length => u64::from(length),
        }
    }
}

/// A close frame with this code and reason. A client masks its frames (RFC 6455 §5.3); `is_masked`
/// is for those that are sent in its place.
pub(super) fn close_frame(code: u16, reason: &str, is_masked: bool) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(MAX_REASON)];
    let payload: Vec<u8> = code.to_be_bytes().iter().chain(reason).copied().collect();
    let length = payload.len() as u8;
    if !is_masked {
        return [&[FINAL | CLOSE, length], &*payload].concat();
    }
    // The key keeps a page's script from choosing bytes on the wire. These bytes are ours, so a
    // key of zeros does no harm where there is no randomness.
    let mut key = [0; 4];
    let _ = rand::fill(&mut key);
    let masked: Vec<u8> =
        payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    [&[FINAL | CLOSE, MASKED | length], &key[..], &masked].concat()
}

/// A control frame has at most 125 bytes, two of which are the code.
const MAX_REASON: usize = 123;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, length: usize, is_masked: bool) -> Vec<u8> {
        let mask = if is_masked { MASKED } else { 0 };
        let mut bytes = vec![FINAL | opcode];
        match length {
            0..126 => bytes.push(mask | length as u8),
            126..65536 => {
                bytes.push(mask | 0x7E);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 0x7F);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(if is_masked { &[1, 2, 3, 4][..] } else { &[] });
        bytes.extend(std::iter::repeat_n(0x88, length));
        bytes
    }

    #[test]
    fn the_end_of_each_frame_is_known_however_it_is_cut() {
        for is_masked in [false, true] {
            let frames: Vec<_> = [0, 1, 125, 126, 300, 65535, 65536, 70000]
                .map(|length| frame(2, length, is_masked))
                .into();
            for chunk in [1, 2, 3, 7, 1000, 8192] {
                let mut followed = Frames::default();
                for bytes in &frames {
                    assert_eq!(followed.to_boundary(), 0);
                    let mut left = &bytes[..];
                    while !left.is_empty() {
                        let length = chunk.min(left.len());
                        followed.pass(&left[..length]);
                        left = &left[length..];
                        assert!(followed.to_boundary() <= left.len());
                        assert_eq!(followed.to_boundary() == 0, left.is_empty());
                    }
                }
                assert!(!followed.has_closed());
            }
        }
    }

    #[test]
    fn bytes_up_to_the_boundary_never_pass_it() {
        let bytes = [frame(1, 70000, true), frame(8, 2, true)].concat();
        let (mut followed, mut at, mut ends) = (Frames::default(), 0, Vec::new());
        while at < bytes.len() {
            let length = followed.to_boundary().clamp(1, 4096).min(bytes.len() - at);
            followed.pass(&bytes[at..at + length]);
            at += length;
            if followed.to_boundary() == 0 {
                ends.push(at);
            }
        }
        assert_eq!(ends, [bytes.len() - 8, bytes.len()]);
        assert!(followed.has_closed());
    }

    #[test]
    fn a_close_frame_says_why() {
        assert_eq!(close_frame(1008, "revoked", false), b"\x88\x09\x03\xf0revoked");
        let masked = close_frame(1001, "x", true);
        let key = &masked[2..6];
        let plain: Vec<u8> =
            masked[6..].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        assert_eq!((&masked[..2], &*plain), (&b"\x88\x83"[..], &b"\x03\xe9x"[..]));
        let mut followed = Frames::default();
        followed.pass(&masked);
        assert!(followed.has_closed() && followed.to_boundary() == 0);
        assert_eq!(close_frame(1001, &"r".repeat(200), false).len(), 127);
    }
}
