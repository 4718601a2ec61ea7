//! Finds what must never be printed: secrets in the configuration file itself, even if the file is
//! not TOML.
//!
//! This module reads text, not the parsed tree: a message about a missing quote shows a file that
//! has no tree. In case of doubt it hides too much.
//!
//! The lexer of the TOML library (`toml_parser`) cannot replace it. That lexer ends each token
//! where TOML ends it, and recovers from an error in the way that finds the next error best. A
//! secret extends to where its author meant it to end: past a quote inside it, to the end of the
//! line if the quotes are missing, to the end of the file after three quotes that are never closed.
//! Most of this file handles these cases. Deriving them from the lexer's recovery would depend on
//! behaviour that a later version may change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

/// The byte ranges of secrets, in order and disjoint.
pub(super) fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut scanner = Scanner { text, found: Vec::new(), names: RefCell::default() };
    scanner.keys_and_values();
    scanner.assignments();
    scanner.passwords_in_urls();
    let mut found = scanner.found;
    found.retain(|range| !range.is_empty());
    found.sort_by_key(|range| range.start);
    let mut apart: Vec<Range<usize>> = Vec::with_capacity(found.len());
    for range in found {
        match apart.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}

/// The byte ranges of passwords in URLs only: for messages, which are not TOML.
pub(super) fn secrets_in_urls(text: &str) -> Vec<Range<usize>> {
    let mut scanner = Scanner { text, found: Vec::new(), names: RefCell::default() };
    scanner.passwords_in_urls();
    scanner.found
}

/// Replaces each character in the ranges, which must be in order, with `*`. Line ends stay.
pub(super) fn masked(text: &str, offset: usize, secrets: &[Range<usize>]) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut next = secrets.partition_point(|secret| secret.end <= offset);
    for (at, c) in text.char_indices() {
        while secrets.get(next).is_some_and(|secret| secret.end <= offset + at) {
            next += 1;
        }
        let hidden = secrets.get(next).is_some_and(|secret| secret.contains(&(offset + at)));
        shown.push(if hidden && !matches!(c, '\n' | '\r') { '*' } else { c });
    }
    shown
}

/// What the position of a value implies.
#[derive(Clone, Copy, Default)]
struct Context {
    /// Strings here are secret, except the `env` and `file` of a reference.
    secret: bool,
    /// In `[store]`, where `key` is a secret.
    store: bool,
}

/// The position of a walk over the file.
#[derive(Default)]
struct Walk {
    section: Context,
    /// The open arrays and inline tables.
    frames: Vec<Context>,
    /// What the last key implies for its value, until the line or the item ends.
    value: Option<Context>,
    /// Whether part of the value was seen.
    value_seen: bool,
}

impl Walk {
    fn here(&self) -> Context {
        self.value.or(self.frames.last().copied()).unwrap_or(self.section)
    }

    fn expect_value(&mut self, context: Context) {
        self.value = Some(context);
        self.value_seen = false;
    }
}

struct Scanner<'a> {
    text: &'a str,
    found: Vec<Range<usize>>,
    /// Cached results for names: even a long file has few, and each is compared with several words.
    names: RefCell<HashMap<&'a str, bool>>,
}

impl<'a> Scanner<'a> {
    fn is_secret(&self, name: &'a str) -> bool {
        *self.names.borrow_mut().entry(name).or_insert_with(|| is_secret(name))
    }

    /// Walks over keys and values, following the structure of the file.
    fn keys_and_values(&mut self) {
        let bytes = self.text.as_bytes();
        let end = bytes.len();
        let mut walk = Walk::default();
        let mut line_start = true;
        let mut at = 0;
        while at < end {
            let byte = bytes[at];
            let started_line = std::mem::take(&mut line_start);
            match byte {
                b'\n' => {
                    line_start = true;
                    if walk.value_seen {
                        walk.value = None;
                    }
                    at += 1;
                }
                b' ' | b'\t' | b'\r' => {
                    line_start = started_line;
                    at += 1;
                }
                b'#' => at = self.line_end(at),
                b'[' if started_line && self.header(at, end).is_some() => {
                    let (section, stop) =
                        self.header(at, end).expect("the header was just checked");
                    walk = Walk { section, value_seen: walk.value_seen, ..Walk::default() };
                    at = stop;
                }
                b'[' | b'{' => {
                    walk.frames.push(walk.here());
                    walk.value = None;
                    at += 1;
                }
                b']' | b'}' => {
                    walk.value = walk.frames.pop();
                    walk.value_seen = true;
                    at += 1;
                }
                b',' => {
                    walk.value = None;
                    at += 1;
                }
                b'"' | b'\'' | b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => {
                    at = self.word(at, end, &mut walk);
                }
                _ => at = self.sign(at, end, &mut walk),
            }
        }
    }

    /// Walks over a key or a value, and returns where it ends.
    fn word(&mut self, at: usize, end: usize, walk: &mut Walk) -> usize {
        let here = walk.here();
        let key = self.key(at, end);
        let context = self.context(&key, &walk.frames, walk.section);
        if key.assigned {
            walk.expect_value(context);
            return key.end + 1;
        }
        if walk.value.is_none() && !here.secret && self.names_secret(&key) && walk.frames.is_empty()
        {
            // `secret "…"` and `secret: "…"`: not TOML, but still private.
            walk.expect_value(context);
            return key.end;
        }
        walk.value_seen = true;
        if matches!(self.text.as_bytes()[at], b'"' | b'\'') {
            return self.string(at, end, here);
        }
        if !here.secret {
            return key.end;
        }
        // A bare value of a secret is not TOML: its author meant the whole line.
        let stop = self.line_end(at);
        self.found.push(at..stop);
        stop
    }

    /// Walks over a character that begins neither a key nor a value, and returns where the next one
    /// begins.
    fn sign(&mut self, at: usize, end: usize, walk: &mut Walk) -> usize {
        let mut stop = at + 1;
        if walk.here().secret && !matches!(self.text.as_bytes()[at], b'=' | b':') {
            stop = self.line_end(at);
        }
        if stop > at + 1 {
            self.found.push(at..stop);
            walk.value_seen = true;
        }
        while stop < end && !self.text.is_char_boundary(stop) {
            stop += 1;
        }
        stop
    }

    /// Walks over a string, and returns where it ends.
    fn string(&mut self, at: usize, end: usize, here: Context) -> usize {
        let (content, mut stop) = self.quoted(at, end);
        if here.secret {
            self.found.push(content);
            // `"ab"cd"`: a quote inside the secret.
            let clean = matches!(
                self.text.as_bytes().get(stop),
                None | Some(b' ' | b'\t' | b'\r' | b'\n' | b',' | b'}' | b']')
            );
            if !clean {
                let line = self.line_end(stop);
                self.found.push(stop..line);
                stop = line;
            }
        }
        stop
    }

    /// The content of the string that begins here, and where it ends. A string that is never closed
    /// ends with its line. A string of three quotes after the name of a secret ends with the file,
    /// so that a secret is not hidden only in part.
    fn quoted(&self, at: usize, end: usize) -> (Range<usize>, usize) {
        let bytes = self.text.as_bytes();
        let quote = bytes[at];
        let escapes = quote == b'"';
        let three = bytes[at..end].starts_with(&[quote; 3]);
        let start = at + if three { 3 } else { 1 };
        let mut i = start;
        while i < end {
            match bytes[i] {
                b'\\' if escapes && (three || bytes.get(i + 1) != Some(&b'\n')) => i += 1,
                b'\n' if !three => return (start..i, i),
                byte if byte == quote && !three => return (start..i, i + 1),
                byte if byte == quote && bytes[i..end].starts_with(&[quote; 3]) => {
                    // Up to two more quotes belong to the content.
                    let more =
                        bytes[i + 3..end].iter().take(2).take_while(|byte| **byte == quote).count();
                    return (start..i + more, i + 3 + more);
                }
                _ => {}
            }
            i += 1;
        }
        let unclosed =
            if three && !self.follows_secret(at) { self.line_end(start).min(end) } else { end };
        (start..unclosed.max(start), unclosed.max(start))
    }

    /// Whether the line so far names a secret.
    fn follows_secret(&self, at: usize) -> bool {
        let line = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        self.text[line..at]
            .split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-')))
            .any(|word| self.is_secret(word) || word == "key")
    }

    /// `[a.b]` or `[[a.b]]`: what it implies for its keys, and where it ends. A list of strings at
    /// the start of a line is not a header.
    fn header(&self, at: usize, end: usize) -> Option<(Context, usize)> {
        let bytes = self.text.as_bytes();
        let mut start = at + 1;
        while start < end && matches!(bytes[start], b'[' | b' ' | b'\t') {
            start += 1;
        }
        if !bytes.get(start)?.is_ascii_alphabetic() {
            return None;
        }
        let key = self.key(start, end);
        let words: Vec<&'a str> = key.words.iter().map(|word| &self.text[word.clone()]).collect();
        if matches!(words.as_slice(), ["true" | "false" | "inf" | "nan"]) {
            return None;
        }
        let first = words.first().copied().unwrap_or_default();
        // `[issuer.token]` is an issuer with that name; `[issuer.corp.secret]` is a secret.
        let named =
            usize::from(matches!(first, "issuer" | "limit" | "upstream" | "route" | "test"));
        let secret = words.iter().skip(1 + named).any(|word| self.is_secret(word))
            || (first == "store" && words.get(1) == Some(&"key"));
        Some((Context { secret, store: first == "store" }, self.line_or_bracket(key.end, end)))
    }

    fn line_or_bracket(&self, from: usize, end: usize) -> usize {
        let rest = &self.text.as_bytes()[from..end];
        let mut stop = from + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        while stop < end && self.text.as_bytes()[stop] == b']' {
            stop += 1;
        }
        stop
    }

    /// The dotted name that begins here.
    fn key(&self, at: usize, end: usize) -> Key {
        let bytes = self.text.as_bytes();
        let blanks = |mut i: usize| {
            while i < end && matches!(bytes[i], b' ' | b'\t') {
                i += 1;
            }
            i
        };
        let mut words = Vec::new();
        let mut i = at;
        loop {
            let start = i;
            if bytes[i..end].starts_with(b"\"\"\"") || bytes[i..end].starts_with(b"'''") {
                // No name has three quotes; the content of such a string is checked elsewhere.
                return Key { words, end: i, assigned: false };
            }
            if i < end && matches!(bytes[i], b'"' | b'\'') {
                let (content, stop) = self.quoted(i, end);
                words.push(content);
                i = stop;
            } else {
                while i < end
                    && (bytes[i].is_ascii_alphanumeric() || matches!(bytes[i], b'_' | b'-'))
                {
                    i += 1;
                }
                words.push(start..i);
            }
            let next = blanks(i);
            if next < end && bytes[next] == b'.' {
                i = blanks(next + 1);
            } else {
                let assigned = next < end && bytes[next] == b'=';
                return Key { words, end: if assigned { next } else { i }, assigned };
            }
        }
    }

    /// What a key implies for its value.
    fn context(&self, key: &Key, frames: &[Context], section: Context) -> Context {
        let outer = frames.last().copied().unwrap_or(section);
        let words: Vec<&'a str> =
            key.words.iter().map(|word| self.text.get(word.clone()).unwrap_or_default()).collect();
        let last = words.last().copied().unwrap_or_default();
        let store = outer.store || words.first() == Some(&"store");
        let in_secret = outer.secret
            || words[..words.len().saturating_sub(1)].iter().any(|word| self.is_secret(word));
        let reference = in_secret && matches!(last, "env" | "file" | "create");
        Context {
            secret: !reference && (in_secret || self.is_secret(last) || (store && last == "key")),
            store,
        }
    }

    fn names_secret(&self, key: &Key) -> bool {
        key.words.last().is_some_and(|word| {
            self.text.get(word.clone()).is_some_and(|word| self.is_secret(word))
        })
    }

    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |found| at + found)
    }

    /// Finds `secret = …` anywhere: in a comment, or after a quote that was never closed, where the
    /// structure is lost.
    fn assignments(&mut self) {
        let text = self.text;
        for (sign, _) in text.match_indices(['=', ':']) {
            let before = text[..sign].trim_end_matches([' ', '\t', '"', '\'']);
            let name = before
                .bytes()
                .rev()
                .take(65)
                .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
                .count();
            if !self.is_secret(&before[before.len() - name..]) {
                continue;
            }
            let after = &text[sign + 1..];
            let at = sign + 1 + (after.len() - after.trim_start_matches([' ', '\t']).len());
            match text.as_bytes().get(at) {
                None | Some(b'{' | b'[' | b'\n' | b'\r' | b'#') => {}
                Some(b'"' | b'\'') => {
                    let (content, _) = self.quoted(at, text.len());
                    self.found.push(content);
                }
                Some(_) => self.found.push(at..self.line_end(at)),
            }
        }
    }

    /// Finds `scheme://user:password@host` anywhere.
    fn passwords_in_urls(&mut self) {
        let text = self.text;
        for (scheme_end, _) in text.match_indices("://") {
            let start = scheme_end + 3;
            let rest = &text[start..];
            let rest = &rest[..rest
                .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ','))
                .unwrap_or(rest.len())];
            let Some(colon) = rest.find(':') else { continue };
            let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
            // A password may contain a `/` that should have been encoded; a port has only digits.
            let after = &rest[colon + 1..];
            let port = after
                .find(['/', '?', '#'])
                .is_some_and(|slash| after[..slash].bytes().all(|byte| byte.is_ascii_digit()));
            let last = if port || authority.contains('@') {
                authority.rfind('@')
            } else {
                rest.rfind('@')
            };
            if let Some(last) = last.filter(|last| *last > colon) {
                self.found.push(start + colon + 1..start + last);
            }
        }
    }
}

/// A dotted name, and whether `=` follows it (then `end` is the position of that `=`).
struct Key {
    words: Vec<Range<usize>>,
    end: usize,
    assigned: bool,
}

/// Whether the value of a key with this name is a secret, or would be one if the name were spelled
/// correctly.
fn is_secret(name: &str) -> bool {
    if name.len() > 64 || name.contains(char::is_whitespace) {
        return false;
    }
    let name = name.to_ascii_lowercase().replace('-', "_");
    if name.starts_with("insecure_") || ["password_min_length", "password_login"].contains(&&*name)
    {
        return false;
    }
    let exact = ["secret", "password", "passwd", "private_key", "api_key"]
        .iter()
        .any(|word| name.contains(word))
        || name == "token"
        || name.ends_with("_token")
        || name == "authorization";
    let length = name.chars().count();
    let close = |word: &str, errors: usize| {
        length.abs_diff(word.len()) <= errors && strsim::osa_distance(&name, word) <= errors
    };
    exact
        || close("secret", 2)
        || close("password", 2)
        || close("private_key", 3)
        || close("token", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hide(text: &str) -> String {
        masked(text, 0, &secrets(text))
    }

    #[test]
    fn only_secrets_are_masked() {
        let cases = [
            ("secret = \"hunter2\"", "secret = \"*******\""),
            ("  secret='hünter' # why", "  secret='******' # why"),
            ("\"secret\" = \"a\\\"b\"", "\"secret\" = \"****\""),
            (
                "secret = \"\"\"\nab\ncd\"\"\"\nname = \"x\"",
                "secret = \"\"\"\n**\n**\"\"\"\nname = \"x\"",
            ),
            ("secret = '''ab'c'''\nname = \"x\"", "secret = '''****'''\nname = \"x\""),
            ("secret = { env = \"NAME\" }", "secret = { env = \"NAME\" }"),
            (
                "secret = { file = \"a.b\", create = true }",
                "secret = { file = \"a.b\", create = true }",
            ),
            ("secret = { value = \"hunter2\" }", "secret = { value = \"*******\" }"),
            ("secret = [\"a\",\n \"b\"]\nname = \"x\"", "secret = [\"*\",\n \"*\"]\nname = \"x\""),
            (
                "secret.env = \"NAME\"\nsecret.value = \"v\"",
                "secret.env = \"NAME\"\nsecret.value = \"*\"",
            ),
            (
                "[issuer.corp.secret]\nvalue = \"v\"\nenv = \"NAME\"",
                "[issuer.corp.secret]\nvalue = \"*\"\nenv = \"NAME\"",
            ),
            ("[issuer.token]\nissuer = \"x\"", "[issuer.token]\nissuer = \"x\""),
            (
                "[server.tls]\nprivate_key = \"-----BEGIN\"",
                "[server.tls]\nprivate_key = \"**********\"",
            ),
            ("[admin]\ntoken = \"abc\"", "[admin]\ntoken = \"***\""),
            (
                "[store]\nkey = \"abc\"\n[limit.x]\nkey = \"client\"",
                "[store]\nkey = \"***\"\n[limit.x]\nkey = \"client\"",
            ),
            (
                "store = { key = \"abc\" }\nstore.key = \"abc\"",
                "store = { key = \"***\" }\nstore.key = \"***\"",
            ),
            (
                "token_from = [\"header\"]\ntoken_cookie = \"c\"",
                "token_from = [\"header\"]\ntoken_cookie = \"c\"",
            ),
            ("insecure_inline_secret = true", "insecure_inline_secret = true"),
            ("password_login = false", "password_login = false"),
            ("public_keys = [\"a.pem\"]", "public_keys = [\"a.pem\"]"),
            (
                "headers = { Authorization = \"Bearer x\", Accept = \"y\" }",
                "headers = { Authorization = \"********\", Accept = \"y\" }",
            ),
        ];
        for (text, wanted) in cases {
            assert_eq!(hide(text), wanted, "{text}");
        }
    }

    #[test]
    fn secrets_are_masked_in_invalid_toml() {
        let cases = [
            ("secret = \"hunter2\nname = \"x\"", "secret = \"*******\nname = \"x\""),
            ("secret = hunter2!@x y\nname = \"x\"", "secret = ************\nname = \"x\""),
            ("secret = $a\nname = \"x\"", "secret = **\nname = \"x\""),
            ("secret = \"ab\"cd\"\nname = \"x\"", "secret = \"**\"***\nname = \"x\""),
            ("secret \"hunter2\"", "secret \"*******\""),
            ("secret: \"hunter2\"", "secret: \"*******\""),
            ("\"secret\": \"hunter2\",", "\"secret\": \"*******\","),
            ("secret =\n  \"hunter2\"", "secret =\n  \"*******\""),
            ("secret = \"\"\"\nhunter2", "secret = \"\"\"\n*******"),
            (
                "name = \"\"\"oops\nsecret = \"hunter2\"\n",
                "name = \"\"\"oops\nsecret = \"*******\"\n",
            ),
            (
                "name = '''oops\nsecret = \"\"\"\nhunter2\n\"\"\"",
                "name = '''oops\nsecret = \"\"\"\n*******\n\"\"\"",
            ),
            (
                "name = \"\"\"oops\nsecret = \"\"\"\nhunter2\n\"\"\"\nb = 1",
                "name = \"\"\"oops\nsecret = \"\"\"\n*******\n\"\"\"\nb = 1",
            ),
            ("sercet = \"hunter2\"", "sercet = \"*******\""),
            ("jwt_secret = \"hunter2\"", "jwt_secret = \"*******\""),
            ("private-key = \"hunter2\"", "private-key = \"*******\""),
            ("roles = [\"a\"\nsecret = \"hunter2\"", "roles = [\"a\"\nsecret = \"*******\""),
            ("# secret = \"hunter2\"", "# secret = \"*******\""),
            ("[store\nkey = \"abc\"", "[store\nkey = \"***\""),
        ];
        for (text, wanted) in cases {
            assert_eq!(hide(text), wanted, "{text}");
        }
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        let cases = [
            ("postgres://u:pw@h/db", "postgres://u:**@h/db"),
            ("redis://:pw@h", "redis://:**@h"),
            ("a = \"postgres://u:p/w@h\"", "a = \"postgres://u:***@h\""),
            (
                "a = \"http://u:p@w@h/x\" # http://h:80/a@b",
                "a = \"http://u:***@h/x\" # http://h:80/a@b",
            ),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("http://user@h", "http://user@h"),
        ];
        for (text, wanted) in cases {
            assert_eq!(hide(text), wanted, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_secret_is_masked_anywhere_on_a_line(
            before in "([a=.,#\\[\\]{}:\n\\\\ ]|\"|\"\"\"|'''|'|secret|env){0,12}",
            after in "(\n|\"|\"\"\"|'''|'|=|secret){0,8}",
        ) {
            for written in ["secret = \"hunter2\"", "secret = 'hunter2'", "secret = \"\"\"\nhunter2\n\"\"\""] {
                let text = format!("{before}\n{written}\n{after}");
                assert!(!hide(&text).contains("hunter2"), "{text}\n---\n{}", hide(&text));
            }
        }

        #[test]
        fn any_text_can_be_masked(text in "[a-z=\\[\\]{}\"'#.,:/@\n\\\\ ü]{0,60}(secret ?= ?[\"'{]{1,3}[ü\n\"]{0,4})?") {
            let shown = hide(&text);
            assert_eq!(shown.chars().count(), text.chars().count());
        }
    }
}
