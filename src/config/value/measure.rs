//! Durations and sizes.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::words::quoted;
use crate::config::file::Text;
use crate::config::problem::Problem;

/// Parses a duration: `"30s"`, `"1m 30s"`, `"24h"`.
pub fn duration(text: &Text, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let written = text.get_ref().trim();
    let Ok(duration) = humantime::parse_duration(written) else {
        let problem = Problem::error(text.span(), format!("{} is not a duration", quoted(written)));
        return Err(match written.parse::<u64>() {
            Ok(_) => problem.help(format!(
                "add a unit: `\"{written}s\"`, `\"{written}ms\"`, `\"{written}m\"` (minutes)"
            )),
            Err(_) => problem
                .help("write a number and a unit: `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`"),
        });
    };
    let limit = |word: &str, limit: Duration| {
        Problem::error(text.span(), format!("{} is too {word}", quoted(written)))
            .help(format!(
                "write a value from `\"{}\"` to `\"{}\"`",
                plain(*range.start()),
                plain(*range.end())
            ))
            .label(format!("the limit is {}", plain(limit)))
    };
    if duration < *range.start() {
        return Err(limit("short", *range.start()));
    }
    if duration > *range.end() {
        return Err(limit("long", *range.end()));
    }
    Ok(duration)
}

/// A duration as people would write it: in the largest unit that fits exactly, and one day as
/// hours.
fn plain(duration: Duration) -> String {
    let millis = duration.as_millis();
    let is_whole = |unit: u128| millis > 0 && millis.is_multiple_of(unit);
    match millis {
        _ if is_whole(86_400_000) && millis > 86_400_000 => format!("{}d", millis / 86_400_000),
        _ if is_whole(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if is_whole(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

/// Parses a size in bytes: `"32KiB"`, `"1MB"`, `"1024"`.
pub fn size(text: &Text) -> Result<u64, Problem> {
    let written = text.get_ref().trim();
    let help =
        "write a whole number and a unit: `\"512\"` (bytes), `\"32KiB\"`, `\"10MiB\"`, `\"1GB\"`";
    let problem = || Problem::error(text.span(), format!("{} is not a size", quoted(written)));
    let digits = written.len() - written.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = written.split_at(digits);
    let unit = unit.trim_start();
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        letter @ ("k" | "m" | "g" | "t") if !number.is_empty() => {
            let letter = letter.to_ascii_uppercase();
            return Err(
                problem().help(format!("write `\"{number}{letter}iB\"` (powers of 1024) or `\"{number}{letter}B\"` (powers of 1000)"))
            );
        }
        _ => return Err(problem().help(help)),
    };
    if number.is_empty() {
        return Err(problem().help(help));
    }
    // Only digits are left, so only the range can be wrong.
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(|| {
        Problem::error(text.span(), format!("{} is too large", quoted(written))).help(help)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{message_of, text};
    use super::*;

    #[test]
    fn durations() {
        let range = Duration::from_secs(1)..=Duration::from_mins(5);
        for (written, seconds) in [("30s", 30), ("1m 30s", 90), (" 5m ", 300), ("1000ms", 1)] {
            assert_eq!(
                duration(&text(written), range.clone()).ok(),
                Some(Duration::from_secs(seconds)),
                "{written}"
            );
        }
        for (written, wanted) in [
            (
                "30",
                "`\"30\"` is not a duration; add a unit: `\"30s\"`, `\"30ms\"`, `\"30m\"` (minutes)",
            ),
            (
                "soon",
                "`\"soon\"` is not a duration; write a number and a unit: `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`",
            ),
            (
                "",
                "`\"\"` is not a duration; write a number and a unit: `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`",
            ),
            ("6m", "`\"6m\"` is too long; write a value from `\"1s\"` to `\"5m\"`"),
            ("0s", "`\"0s\"` is too short; write a value from `\"1s\"` to `\"5m\"`"),
        ] {
            assert_eq!(message_of(duration(&text(written), range.clone())), wanted, "{written}");
        }
    }

    #[test]
    fn bounds_are_printed_in_the_syntax_of_the_file() {
        let day = Duration::from_hours(24);
        let told_of = |written: &str, range| message_of(duration(&text(written), range));
        assert_eq!(
            told_of("4000d", Duration::from_hours(1)..=day * 3650),
            "`\"4000d\"` is too long; write a value from `\"1h\"` to `\"3650d\"`"
        );
        assert_eq!(
            told_of("2d", Duration::ZERO..=day),
            "`\"2d\"` is too long; write a value from `\"0s\"` to `\"24h\"`"
        );
        assert_eq!(
            told_of("2m", Duration::from_millis(1)..=Duration::from_secs(90)),
            "`\"2m\"` is too long; write a value from `\"1ms\"` to `\"90s\"`"
        );
    }

    #[test]
    fn sizes() {
        for (written, bytes) in [
            ("1024", 1024),
            ("32KiB", 32768),
            ("1MB", 1_000_000),
            ("10 MiB", 10 << 20),
            ("7b", 7),
            ("1gib", 1 << 30),
            ("0", 0),
        ] {
            assert_eq!(size(&text(written)).ok(), Some(bytes), "{written}");
        }
        let help = "write a whole number and a unit: `\"512\"` (bytes), `\"32KiB\"`, `\"10MiB\"`, `\"1GB\"`";
        for (written, wanted) in [
            ("10M", "`\"10M\"` is not a size; write `\"10MiB\"` (powers of 1024) or `\"10MB\"` (powers of 1000)".to_owned()),
            ("1.5MiB", format!("`\"1.5MiB\"` is not a size; {help}")),
            ("-1", format!("`\"-1\"` is not a size; {help}")),
            ("", format!("`\"\"` is not a size; {help}")),
            ("KiB", format!("`\"KiB\"` is not a size; {help}")),
            ("99999999TiB", format!("`\"99999999TiB\"` is too large; {help}")),
        ] {
            assert_eq!(message_of(size(&text(written))), wanted, "{written}");
        }
    }
}
