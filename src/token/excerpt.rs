//! Short, escaped excerpts of names from tokens and key files, for messages.

use std::fmt;

/// A short, escaped copy of a name that came from outside (a `kid`, `iss`, `alg` or member name),
/// for messages to operators.
///
/// At most 64 characters are kept. Control characters, quotes and invisible characters are escaped,
/// so a token can neither forge a log line nor recolour a terminal.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// Copies and escapes the beginning of `text`.
    pub fn new(text: &str) -> Self {
        let mut kept: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
        if text.chars().nth(MAX_CHARS).is_some() {
            kept.push('…');
        }
        Self(kept.into())
    }

    /// The escaped text, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The maximum length, in characters of the original.
const MAX_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_hostile_names_are_escaped_and_shortened() {
        assert_eq!(Excerpt::new("key-1").to_string(), "\"key-1\"");
        assert_eq!(
            Excerpt::new("a\nb\u{1b}[31m\"\u{202e}").to_string(),
            "\"a\\nb\\u{1b}[31m\\\"\\u{202e}\""
        );
        let long = Excerpt::new(&"x".repeat(5000)).to_string();
        assert_eq!(long.chars().count(), 64 + 1 + 2);
    }
}
