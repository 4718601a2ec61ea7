//! Request and trace ids, and the `traceparent` header (W3C Trace Context, level 1).
//!
//! The ids are unique, not secret. A fast generator in each thread creates them, seeded by the
//! cryptography library.

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use aws_lc_rs::rand;

/// An id in lower-case hexadecimal digits; its type gives the length.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hex<const DIGITS: usize>([u8; DIGITS]);

impl<const DIGITS: usize> Hex<DIGITS> {
    /// The digits.
    pub fn as_str(&self) -> &str {
        // Only hexadecimal digits are ever stored, so the other arm is never taken.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The digits.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Creates a random id that is not all zeros, which W3C Trace Context forbids.
    fn random() -> Self {
        const { assert!(DIGITS > 0 && DIGITS.is_multiple_of(16)) };
        let mut digits = [b'0'; DIGITS];
        GENERATOR.with_borrow_mut(|generator| {
            let mut zero = true;
            while zero {
                for chunk in digits.as_chunks_mut::<16>().0 {
                    let bits = generator.next();
                    zero &= bits == 0;
                    let text = [hexadecimal((bits >> 32) as u32), hexadecimal(bits as u32)];
                    chunk.copy_from_slice(text.as_flattened());
                }
            }
        });
        Self(digits)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let digits: [u8; DIGITS] = text.try_into().ok()?;
        digits
            .iter()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
            .then_some(Self(digits))
    }

    fn is_zero(&self) -> bool {
        self.0.iter().all(|digit| *digit == b'0')
    }
}

impl<const DIGITS: usize> AsRef<str> for Hex<DIGITS> {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl<const DIGITS: usize> fmt::Display for Hex<DIGITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const DIGITS: usize> fmt::Debug for Hex<DIGITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Creates an id for a request: `X-Request-Id`, and `request_id` in the log.
pub fn request_id() -> Hex<32> {
    Hex::random()
}

/// Creates an id for a trace.
pub fn trace_id() -> Hex<32> {
    Hex::random()
}

/// Creates an id for a span: one hop of a trace.
pub fn span_id() -> Hex<16> {
    Hex::random()
}

/// The content of `traceparent`: the trace that a request belongs to, and the span that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    trace_id: Hex<32>,
    parent_id: Hex<16>,
    sampled: bool,
}

impl Traceparent {
    /// Starts a new trace. It is marked as sampled: otherwise applications that follow their
    /// parent's decision, which is OpenTelemetry's default, would record nothing behind the
    /// gateway.
    pub fn begin() -> Self {
        Self { trace_id: trace_id(), parent_id: span_id(), sampled: true }
    }

    /// The trace's id.
    pub fn trace_id(&self) -> Hex<32> {
        self.trace_id
    }

    /// The id of the span that sent the request.
    pub fn parent_id(&self) -> Hex<16> {
        self.parent_id
    }

    /// Whether the sender may have recorded its span.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The header's value for a new span of the same trace: 55 ASCII characters. It always has
    /// version 00, whatever was received, because these are the rules that we follow (W3C Trace
    /// Context §4.3).
    pub fn child(&self) -> [u8; VERSION_00_LENGTH] {
        Self { parent_id: span_id(), ..*self }.header()
    }

    /// The header's value for this span: 55 ASCII characters.
    pub fn header(&self) -> [u8; VERSION_00_LENGTH] {
        let mut text = *b"00-                                -                -00";
        text[3..35].copy_from_slice(&self.trace_id.0);
        text[36..52].copy_from_slice(&self.parent_id.0);
        text[54] += u8::from(self.sampled);
        text
    }
}

/// Parses a `traceparent` header as W3C Trace Context §3.2 and §4.3 require: version 00 exactly;
/// for later versions, the fields of version 00, if a dash separates them from what follows.
/// Returns `None` for anything else.
pub fn parse_traceparent(value: &[u8]) -> Option<Traceparent> {
    let (known, rest) = value.split_at_checked(VERSION_00_LENGTH)?;
    let version = &Hex::<2>::parse(&known[..2])?.0;
    let well_ended = match (version, rest) {
        (b"ff", _) => false,
        (_, []) => true,
        (b"00", _) => false,
        (_, rest) => rest[0] == b'-',
    };
    if !well_ended || [known[2], known[35], known[52]] != *b"---" {
        return None;
    }
    let trace_id = Hex::parse(&known[3..35])?;
    let parent_id = Hex::parse(&known[36..52])?;
    let flags = Hex::<2>::parse(&known[53..])?;
    if trace_id.is_zero() || parent_id.is_zero() {
        return None;
    }
    let low = (flags.0[1] as char).to_digit(16)?;
    Some(Traceparent { trace_id, parent_id, sampled: low & 1 == 1 })
}

thread_local! {
    static GENERATOR: RefCell<Generator> = RefCell::new(Generator::seeded());
}

/// xoshiro256++ by Blackman and Vigna (2019).
struct Generator([u64; 4]);

impl Generator {
    fn seeded() -> Self {
        let mut state = [0; 4];
        for word in &mut state {
            let mut seed = [0; 8];
            // If the cryptography library has no randomness, use the seed of std's hash maps: the
            // generator must not start with zeros, and these are ids, not secrets.
            *word = match rand::fill(&mut seed) {
                Ok(()) => u64::from_ne_bytes(seed),
                Err(_) => RandomState::new().hash_one(std::thread::current().id()),
            };
        }
        state[0] |= 1;
        Self(state)
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }
}

/// The eight digits of a number, computed in parallel: each has one byte of a word.
const fn hexadecimal(number: u32) -> [u8; 8] {
    let mut word = number as u64;
    word = (word | (word << 16)) & 0x0000_ffff_0000_ffff;
    word = (word | (word << 8)) & 0x00ff_00ff_00ff_00ff;
    word = (word | (word << 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    // 1 in each byte that is above 9.
    let letters = ((word + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (word + 0x3030_3030_3030_3030 + letters * (b'a' - b'0' - 10) as u64).to_be_bytes()
}

/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const VERSION_00_LENGTH: usize = 55;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_generator_is_xoshiro256_plus_plus() {
        // The first outputs of the reference implementation for the state 1, 2, 3, 4.
        let mut generator = Generator([1, 2, 3, 4]);
        let first: Vec<u64> = (0..4).map(|_| generator.next()).collect();
        assert_eq!(first, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn ids_do_not_repeat_within_or_across_threads() {
        let make = || (0..20_000).map(|_| request_id()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(make)).collect();
        let ids: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(ids.iter().all(
            |id| id.as_str().len() == 32 && id.as_str().bytes().all(|b| b.is_ascii_hexdigit())
        ));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 80_000);
    }

    #[test]
    fn the_example_of_the_specification_round_trips() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parsed = parse_traceparent(header.as_bytes()).unwrap();
        assert_eq!(parsed.header(), *header.as_bytes());
        assert_eq!(parsed.trace_id().as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(parsed.is_sampled());
        let child = parse_traceparent(&parsed.child()).unwrap();
        assert_eq!(child.trace_id(), parsed.trace_id());
        assert_ne!(child.parent_id(), parsed.parent_id());
        assert!(child.is_sampled());
    }

    #[test]
    fn traceparents_are_accepted_as_specified() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        for good in [
            format!("00-{id}-00"),
            format!("00-{id}-ff"),
            format!("01-{id}-01"),
            format!("cc-{id}-01-what-the-future"),
        ] {
            assert!(parse_traceparent(good.as_bytes()).is_some(), "{good}");
        }
        for bad in [
            String::new(),
            format!("00-{id}-0"),
            format!("00-{id}-01 "),
            format!("00-{id}-01-"),
            format!("00-{id}-01-extra"),
            format!("01-{id}-01extra"),
            format!("ff-{id}-01"),
            format!("0g-{id}-01"),
            format!("00-{}-01", id.to_uppercase()),
            format!("00_{id}-01"),
            format!("00-{id}-0G"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".into(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".into(),
        ] {
            assert!(parse_traceparent(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn hexadecimal_digits_are_correct(number: u32) {
            let digits = hexadecimal(number);
            prop_assert_eq!(std::str::from_utf8(&digits).unwrap(), format!("{number:08x}"));
        }

        #[test]
        fn accepted_traceparents_are_written_as_version_00(value in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(parse_traceparent(&value).is_none_or(|parsed| parse_traceparent(&parsed.header()) == Some(parsed)));
        }
    }
}
