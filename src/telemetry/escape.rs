//! Text of strangers on a line of ours: JSON strings and quoted text in which nothing can end the line or forge another.

use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

/// Appends `text` as a JSON string (RFC 8259 §7), quotes included.
pub(super) fn json(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || matches!(*byte, b'"' | b'\\')) {
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

/// Appends `text` in quotes for people to read. Whatever moves a terminal's cursor or reorders its letters is written as
/// `\u{…}`.
pub(super) fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text);
    out.push(b'"');
}

/// As [`quoted`], without the quotes.
pub(super) fn escaped(out: &mut Vec<u8>, text: &str) {
    let mut utf8 = [0; 4];
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend_from_slice(&[b'\\', letter as u8]),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            // C0, DEL and C1 controls; line and paragraph separators; marks that reorder text (Unicode UAX 9).
            _ if letter.is_control()
                || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                print(out, format_args!("{}", letter.escape_unicode()));
            }
            _ => out.extend_from_slice(letter.encode_utf8(&mut utf8).as_bytes()),
        }
    }
}

/// Appends a time since 1970 as RFC 3339 has it, in UTC with six decimals: 27 characters for every year that has four digits.
pub(super) fn timestamp(out: &mut Vec<u8>, since_1970: Duration) {
    let time = UNIX_EPOCH + since_1970.min(END_OF_9999);
    print(out, format_args!("{}", humantime::format_rfc3339_micros(time)));
}

/// Appends a duration in milliseconds with three decimals.
pub(super) fn milliseconds(out: &mut Vec<u8>, duration: Duration) {
    let micros = duration.as_micros();
    print(out, format_args!("{}.{:03}", micros / 1_000, micros % 1_000));
}

/// Appends formatted text.
pub(super) fn print(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing into a vector cannot fail.
    let _ = out.write_fmt(text);
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
        assert_eq!(written(|out| timestamp(out, Duration::from_micros(1_700_000_000_000_001))), "2023-11-14T22:13:20.000001Z");
        assert_eq!(written(|out| timestamp(out, Duration::MAX)), "9999-12-31T23:59:59.000000Z");
        assert_eq!(written(|out| milliseconds(out, Duration::from_micros(1_002_003))), "1002.003");
        assert_eq!(written(|out| milliseconds(out, Duration::from_nanos(999))), "0.000");
    }

    #[test]
    fn people_see_what_a_terminal_would_obey() {
        let text = written(|out| quoted(out, "a\"b\\\r\n\u{1b}[2J\u{9b}\u{202e}\u{2028}é\0"));
        assert_eq!(text, r#""a\"b\\\r\n\u{1b}[2J\u{9b}\u{202e}\u{2028}é\u{0}""#);
    }

    proptest! {
        #[test]
        fn json_strings_are_read_back(text in any::<String>()) {
            let line = written(|out| json(out, &text));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
            prop_assert!(!line.bytes().any(|byte| byte < 0x20));
        }

        #[test]
        fn quoted_text_stays_on_its_line(text in any::<String>()) {
            let line = written(|out| quoted(out, &text));
            prop_assert!(!line.chars().any(char::is_control));
        }
    }
}
