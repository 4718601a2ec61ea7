//! Escaping of untrusted text in log lines: JSON strings and quoted text that can neither end the
//! line nor forge another.

use std::cell::Cell;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

/// Appends `text` as a JSON string (RFC 8259 §7), quotes included.
pub(super) fn json(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    // There is no early exit, so that the compiler can check many bytes at once: nearly every text
    // is plain.
    if rest.iter().fold(true, |all, &byte| all & is_plain(byte)) {
        out.extend_from_slice(rest);
        out.push(b'"');
        return;
    }
    while let Some(at) = rest.iter().position(|&byte| !is_plain(byte)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => print(out, format_args!("\\u{control:04x}")),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends a word that needs no escaping as a JSON string, quotes included.
pub(super) fn word(out: &mut Vec<u8>, word: &str) {
    debug_assert!(word.bytes().all(is_plain));
    out.push(b'"');
    out.extend_from_slice(word.as_bytes());
    out.push(b'"');
}

/// Whether a byte needs no escaping in a JSON string.
fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// Appends `text` in quotes, for people. Characters that move a terminal's cursor or reorder its
/// letters are written as `\u{…}`.
pub(super) fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text);
    out.push(b'"');
}

/// Like [`quoted`], without the quotes.
pub(super) fn escaped(out: &mut Vec<u8>, text: &str) {
    let mut utf8 = [0; 4];
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend_from_slice(&[b'\\', letter as u8]),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            // C0, DEL and C1 controls; line and paragraph separators; characters that reorder text
            // (Unicode UAX 9).
            _ if letter.is_control()
                || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                print(out, format_args!("{}", letter.escape_unicode()));
            }
            _ => out.extend_from_slice(letter.encode_utf8(&mut utf8).as_bytes()),
        }
    }
}

/// Appends a time since 1970 in RFC 3339 format, in UTC with six decimals: 27 characters for every
/// four-digit year.
pub(super) fn timestamp(out: &mut Vec<u8>, since_1970: Duration) {
    let since_1970 = since_1970.min(END_OF_9999);
    let second = since_1970.as_secs();
    let mut stamp = SECOND.get();
    if stamp.0 != Some(second) {
        // The calendar date is computed once per second, not once per line.
        let mut text = [0; 19];
        let written =
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(second)).to_string();
        text.iter_mut().zip(written.bytes()).for_each(|(to, from)| *to = from);
        stamp = (Some(second), text);
        SECOND.set(stamp);
    }
    out.extend_from_slice(&stamp.1);
    out.push(b'.');
    decimals::<6>(out, since_1970.subsec_micros());
    out.push(b'Z');
}

/// Appends a duration in milliseconds with three decimals.
pub(super) fn milliseconds(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    number(out, micros / 1_000);
    out.push(b'.');
    decimals::<3>(out, (micros % 1_000) as u32);
}

/// Appends a number.
pub(super) fn number(out: &mut Vec<u8>, mut number: u64) {
    if let Some(&(digits, count)) = usize::try_from(number).ok().and_then(|small| SMALL.get(small))
    {
        // Copy all four bytes at once: the compiler knows the length of the copy.
        out.extend_from_slice(&digits);
        out.truncate(out.len() - (digits.len() - usize::from(count)));
        return;
    }
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// The digits and lengths of the numbers of one byte and of the HTTP statuses.
const SMALL: [([u8; 4], u8); 600] = {
    let mut numbers = [([0; 4], 0); 600];
    let mut number = 0;
    while number < numbers.len() {
        let (hundreds, tens, ones) = (
            b'0' + (number / 100) as u8,
            b'0' + (number / 10 % 10) as u8,
            b'0' + (number % 10) as u8,
        );
        numbers[number] = match number {
            0..10 => ([ones, 0, 0, 0], 1),
            10..100 => ([tens, ones, 0, 0], 2),
            _ => ([hundreds, tens, ones, 0], 3),
        };
        number += 1;
    }
    numbers
};

/// Appends the last digits of a number, including leading zeros.
fn decimals<const DIGITS: usize>(out: &mut Vec<u8>, mut number: u32) {
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits);
}

/// Appends an address as its `Display` implementation does.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    let IpAddr::V4(v4) = address else { return print(out, format_args!("{address}")) };
    for (at, part) in v4.octets().into_iter().enumerate() {
        if at > 0 {
            out.push(b'.');
        }
        number(out, part.into());
    }
}

/// Appends formatted text.
pub(super) fn print(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a vector cannot fail.
    let _ = out.write_fmt(text);
}

thread_local! {
    /// The second that this thread formatted last, and its text.
    static SECOND: Cell<(Option<u64>, [u8; 19])> = const { Cell::new((None, [0; 19])) };
}

const END_OF_9999: Duration = Duration::from_secs(253_402_300_799);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_and_durations() {
        assert_eq!(
            written(|out| timestamp(out, Duration::from_micros(1_700_000_000_000_001))),
            "2023-11-14T22:13:20.000001Z"
        );
        assert_eq!(written(|out| timestamp(out, Duration::MAX)), "9999-12-31T23:59:59.000000Z");
        assert_eq!(written(|out| milliseconds(out, Duration::from_micros(1_002_003))), "1002.003");
        assert_eq!(written(|out| milliseconds(out, Duration::from_nanos(999))), "0.000");
        assert_eq!(written(|out| milliseconds(out, Duration::from_micros(1_000_040))), "1000.040");
        for second in [0, 59, 60, 951_782_400, 1_700_000_000, 1_700_000_001, 1_700_000_000] {
            let time = Duration::new(second, 120_034_999);
            let expected = humantime::format_rfc3339_micros(UNIX_EPOCH + time).to_string();
            assert_eq!(written(|out| timestamp(out, time)), expected);
        }
    }

    #[test]
    fn addresses_and_numbers_are_written_as_they_display() {
        for text in ["0.0.0.0", "192.0.2.1", "255.255.255.255", "::1", "2001:db8::7"] {
            assert_eq!(written(|out| address(out, text.parse().unwrap())), text);
        }
        for value in (0..1_010).chain([12_345, u64::MAX]) {
            assert_eq!(written(|out| number(out, value)), value.to_string());
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let text = written(|out| quoted(out, "a\"b\\\r\n\u{1b}[2J\u{9b}\u{202e}\u{2028}é\0"));
        assert_eq!(text, r#""a\"b\\\r\n\u{1b}[2J\u{9b}\u{202e}\u{2028}é\u{0}""#);
    }

    proptest! {
        #[test]
        fn json_strings_round_trip(text in any::<String>()) {
            let line = written(|out| json(out, &text));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
            prop_assert!(!line.bytes().any(|byte| byte < 0x20));
        }

        #[test]
        fn quoted_text_contains_no_line_breaks(text in any::<String>()) {
            let line = written(|out| quoted(out, &text));
            prop_assert!(!line.chars().any(char::is_control));
        }
    }
}
