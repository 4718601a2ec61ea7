//! The request target, parsed once (RFC 9112 §3.2, RFC 3986 §3.3).
//!
//! A [`Target`] is the proof that host and path have exactly one meaning. The decision uses the
//! decoded path; the upstream gets the received bytes. Anything that can be read in two ways is
//! refused, never repaired: if the gateway reads a path in one way and the application in another,
//! the check can be bypassed.

use std::fmt;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

/// A host and a path with exactly one meaning.
#[derive(Clone, Debug)]
pub struct Target {
    /// The authority as received: the value of `Host` and `X-Forwarded-Host` for the upstream.
    authority: HeaderValue,
    /// The length of the host in `authority`; the rest is `:port`.
    host_len: usize,
    /// The host in lower case, if it differs from the received bytes.
    lower_host: Option<Box<str>>,
    /// The received path and query.
    sent: PathAndQuery,
    /// The path for matching routes, if it differs from the received bytes.
    matched: Option<Box<str>>,
    /// The relaxations needed to get `matched`.
    relaxed: Relaxations,
}

impl Target {
    /// Parses the target of a request.
    ///
    /// # Errors
    /// [`TargetError`], if the host or path is missing, malformed or ambiguous, or the method is
    /// never forwarded.
    pub fn parse(
        method: &Method,
        uri: &Uri,
        version: Version,
        headers: &HeaderMap,
    ) -> Result<Self, TargetError> {
        if method == Method::CONNECT || method == Method::TRACE {
            return Err(TargetError::Method);
        }
        let authority = without_final_dot(authority(uri, version, headers)?);
        // An HTTP/1.0 request may omit the host; then it matches only routes without one.
        let host_len = match authority.as_bytes() {
            b"" if version == Version::HTTP_10 && !headers.contains_key(header::HOST) => 0,
            authority => authority_host_len(authority)?,
        };
        let host = authority
            .to_str()
            .map_err(|_| Ambiguity::HostMalformed)?
            .get(..host_len)
            .ok_or(Ambiguity::HostMalformed)?;
        let lower_host = host
            .bytes()
            .any(|byte| byte.is_ascii_uppercase())
            .then(|| host.to_ascii_lowercase().into_boxed_str());
        let sent = match uri.path_and_query() {
            // An absolute-form target without a path means "/" (RFC 9112 §3.2.1).
            None => PathAndQuery::from_static("/"),
            Some(sent) if sent.path().starts_with('/') => sent.clone(),
            Some(_) => return Err(Ambiguity::NoPath.into()),
        };
        let (matched, relaxed) = canonical(sent.path())?;
        Ok(Self { authority, host_len, lower_host, sent, matched, relaxed })
    }

    /// Another path on the same host, parsed like this one.
    ///
    /// # Errors
    /// [`Ambiguity`], as for any target.
    pub(super) fn sibling(&self, sent: PathAndQuery) -> Result<Self, Ambiguity> {
        let (matched, relaxed) = canonical(sent.path())?;
        Ok(Self { sent, matched, relaxed, ..self.clone() })
    }

    /// The host in lower case, without the port.
    pub fn host(&self) -> &str {
        if let Some(host) = &self.lower_host {
            return host;
        }
        let authority = self.authority.to_str().unwrap_or_default();
        authority.get(..self.host_len).unwrap_or_default()
    }

    /// The host and port as received.
    pub fn authority(&self) -> &HeaderValue {
        &self.authority
    }

    /// The decoded path, which routes are matched against.
    pub fn path(&self) -> &str {
        self.matched.as_deref().unwrap_or_else(|| self.sent.path())
    }

    /// The received path, without the query.
    pub fn received_path(&self) -> &str {
        self.sent.path()
    }

    /// The query as received, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.sent.query()
    }

    /// The received path and query, byte for byte.
    pub fn sent(&self) -> &PathAndQuery {
        &self.sent
    }

    /// The relaxations that were used; a route must permit each of them.
    pub fn relaxed(&self) -> Relaxations {
        self.relaxed
    }

    /// The path and query to send after removing `segments` leading segments and the query
    /// parameter `parameter`.
    ///
    /// Removes whole received segments; the rest starts with exactly one `/`.
    ///
    /// # Errors
    /// [`Ambiguity::EncodedSlash`], if the part to remove contains an encoded slash: the segment
    /// would have to be split.
    pub fn rewritten(
        &self,
        segments: usize,
        parameter: Option<&str>,
    ) -> Result<PathAndQuery, Ambiguity> {
        let has_parameter = parameter.is_some_and(|name| {
            self.query().is_some_and(|query| query_values(query, name).next().is_some())
        });
        if segments == 0 && !has_parameter {
            return Ok(self.sent.clone());
        }
        let mut text = String::with_capacity(self.sent.as_str().len());
        text.push('/');
        text.push_str(without_segments(self.sent.path(), segments)?);
        if let Some(query) = self.query() {
            let kept: Vec<&str> = match parameter {
                Some(name) if has_parameter => {
                    query.split('&').filter(|pair| !names(pair, name)).collect()
                }
                _ => vec![query],
            };
            if !(has_parameter && kept.is_empty()) {
                text.push('?');
                text.push_str(&kept.join("&"));
            }
        }
        // Every byte comes from an accepted target.
        PathAndQuery::try_from(text).map_err(|_| Ambiguity::PathByte)
    }
}

/// The values of the query parameter `name`, still encoded.
pub fn query_values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter(move |pair| names(pair, name))
        .map(|pair| pair.split_once('=').map_or("", |(_, value)| value))
}

/// Whether a `name=value` pair has this name, as read by an application that decodes it.
fn names(pair: &str, name: &str) -> bool {
    let found = pair.split_once('=').map_or(pair, |(name, _)| name);
    found == name
        || (found.contains(['%', '+']) && decode_form(found).as_deref() == Some(name.as_bytes()))
}

/// Decodes one part of a query (`application/x-www-form-urlencoded`); `None` if an escape is
/// broken.
pub fn decode_form(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                out.push(escape(bytes, at)?);
                at += 2;
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    Some(out)
}

/// The received path without its first `count` segments and without a leading slash.
///
/// Counts segments as they were matched: an empty one, or one with only a parameter, was merged
/// away and does not count.
fn without_segments(path: &str, count: usize) -> Result<&str, Ambiguity> {
    let mut rest = path.trim_start_matches('/');
    let mut left = count;
    while left > 0 && !rest.is_empty() {
        let (segment, after) = rest.split_once('/').unwrap_or((rest, ""));
        if segment.as_bytes().windows(3).any(|window| window.eq_ignore_ascii_case(b"%2f")) {
            return Err(Ambiguity::EncodedSlash);
        }
        if !segment.split(';').next().unwrap_or_default().is_empty() {
            left -= 1;
        }
        rest = after.trim_start_matches('/');
    }
    Ok(rest)
}

/// The ways in which an accepted path deviated from the canonical form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relaxations(u8);

impl Relaxations {
    /// None.
    pub const NONE: Self = Self(0);
    /// `//` read as `/`.
    pub const MERGE_SLASHES: Self = Self(1);
    /// `;x=1` at the end of a segment, ignored.
    pub const PARAMETERS: Self = Self(2);
    /// `%2F` read as `/`.
    pub const ENCODED_SLASH: Self = Self(4);
    /// `%3B` read as a `;` that does not start a parameter.
    pub const ENCODED_SEMICOLON: Self = Self(8);
    /// `%5C` read as a `\` that does not separate segments.
    pub const ENCODED_BACKSLASH: Self = Self(16);
    /// `%25` before two hexadecimal digits read as `%`, and not decoded again.
    pub const ENCODED_PERCENT: Self = Self(32);

    /// Each relaxation with its word in `insecure_path`.
    pub const WORDS: [(&'static str, Self); 6] = [
        ("merge_slashes", Self::MERGE_SLASHES),
        ("parameters", Self::PARAMETERS),
        ("encoded_slash", Self::ENCODED_SLASH),
        ("encoded_semicolon", Self::ENCODED_SEMICOLON),
        ("encoded_backslash", Self::ENCODED_BACKSLASH),
        ("encoded_percent", Self::ENCODED_PERCENT),
    ];

    /// The union of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `permitted` includes all of `self`.
    pub const fn within(self, permitted: Self) -> bool {
        self.0 & !permitted.0 == 0
    }

    /// Whether `self` includes `one`.
    pub const fn uses(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }

    /// The first relaxation that is used but not permitted, as an ambiguity.
    pub fn first_beyond(self, permitted: Self) -> Option<Ambiguity> {
        let beyond = Self(self.0 & !permitted.0);
        [
            (Self::MERGE_SLASHES, Ambiguity::EmptySegment),
            (Self::PARAMETERS, Ambiguity::Parameters),
            (Self::ENCODED_SLASH, Ambiguity::EncodedSlash),
            (Self::ENCODED_SEMICOLON, Ambiguity::EncodedSemicolon),
            (Self::ENCODED_BACKSLASH, Ambiguity::EncodedBackslash),
            (Self::ENCODED_PERCENT, Ambiguity::DoubleEncoding),
        ]
        .into_iter()
        .find_map(|(one, ambiguity)| beyond.uses(one).then_some(ambiguity))
    }
}

impl fmt::Display for Relaxations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (word, one) in Self::WORDS {
            if self.uses(one) {
                f.write_str(if first { "" } else { ", " })?;
                f.write_str(word)?;
                first = false;
            }
        }
        Ok(())
    }
}

/// Why a target was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// It can be read in more than one way.
    #[error("{0}")]
    Ambiguous(#[from] Ambiguity),
    /// CONNECT and TRACE are never forwarded.
    #[error("the method is never forwarded")]
    Method,
}

/// The ambiguity of a target.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Ambiguity {
    /// No `Host`, and no host in the target.
    #[error("the host is missing")]
    HostMissing,
    /// More than one `Host`.
    #[error("there is more than one Host")]
    HostRepeated,
    /// A host that is not a name, an IPv4 address or a bracketed IPv6 address with an optional
    /// port; or one with userinfo.
    #[error("the host is malformed")]
    HostMalformed,
    /// `Host` and the target's authority differ.
    #[error("the target's authority differs from Host")]
    HostDisagrees,
    /// Neither origin-form nor absolute-form with http or https.
    #[error("the target has no path")]
    NoPath,
    /// `.` or `..` as a segment, plain or encoded.
    #[error("the path has a dot segment")]
    DotSegment,
    /// `//`.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// `;`.
    #[error("the path has a parameter")]
    Parameters,
    /// `%2F`.
    #[error("the path has an encoded slash")]
    EncodedSlash,
    /// `%3B`.
    #[error("the path has an encoded semicolon")]
    EncodedSemicolon,
    /// `%5C`.
    #[error("the path has an encoded backslash")]
    EncodedBackslash,
    /// NUL or another control character.
    #[error("the path has an encoded control character")]
    Control,
    /// Text that is still an escape after one decoding.
    #[error("the path is encoded twice")]
    DoubleEncoding,
    /// `%` without two hexadecimal digits.
    #[error("the path has a broken percent-encoding")]
    BrokenEncoding,
    /// Not UTF-8 after decoding; overlong forms do not count as UTF-8.
    #[error("the decoded path is not UTF-8")]
    NotUtf8,
    /// A byte that RFC 3986 does not allow in a path.
    #[error("the path has a byte that is not allowed there")]
    PathByte,
    /// `#`: everything from here on would be dropped.
    #[error("the target has a fragment")]
    Fragment,
}

/// The authority of the request, if all places that name one agree.
fn authority(uri: &Uri, version: Version, headers: &HeaderMap) -> Result<HeaderValue, Ambiguity> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Ambiguity::HostRepeated);
    }
    let Some(in_target) = uri.authority() else {
        let none = (version == Version::HTTP_10).then(|| HeaderValue::from_static(""));
        return host.cloned().or(none).ok_or(Ambiguity::HostMissing);
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(Ambiguity::NoPath);
    }
    match host {
        Some(host)
            if same_authority(
                host.as_bytes(),
                in_target.as_str().as_bytes(),
                uri.scheme_str() == Some("https"),
            ) =>
        {
            Ok(host.clone())
        }
        Some(_) => Err(Ambiguity::HostDisagrees),
        // HTTP/2 has only `:authority` (RFC 9113 §8.3.1); HTTP/1.1 always has Host (RFC 9112 §3.2).
        None if version >= Version::HTTP_2 => {
            HeaderValue::from_str(in_target.as_str()).map_err(|_| Ambiguity::HostMalformed)
        }
        None => Err(Ambiguity::HostMissing),
    }
}

/// Removes the final dot of a fully qualified name (`a.test.`), to get the usual form. The
/// application gets it too, since it may know its own name only in that form.
pub(super) fn without_final_dot(authority: HeaderValue) -> HeaderValue {
    let bytes = authority.as_bytes();
    let end = bytes.iter().position(|&byte| byte == b':').unwrap_or(bytes.len());
    match bytes[..end].split_last() {
        Some((b'.', name)) if !name.is_empty() => {
            let shorter = [name, &bytes[end..]].concat();
            HeaderValue::from_bytes(&shorter).unwrap_or(authority)
        }
        _ => authority,
    }
}

/// Whether two authorities name the same host and port; the default port of the scheme may be
/// omitted.
pub fn same_authority(one: &[u8], other: &[u8], https: bool) -> bool {
    let own: &[u8] = if https { b":443" } else { b":80" };
    let bare = |authority: &[u8]| -> Vec<u8> {
        // The rest must be a host alone: `a:8080:80` is not the authority `a:8080`.
        let host = authority
            .strip_suffix(own)
            .filter(|host| host.ends_with(b"]") || !host.contains(&b':'));
        host.unwrap_or(authority).to_ascii_lowercase()
    };
    one.eq_ignore_ascii_case(other) || bare(one) == bare(other)
}

/// Checks an authority and returns the length of its host.
///
/// Stricter than RFC 3986 §3.2.2: no percent-encoding, no sub-delims, and no empty label.
fn authority_host_len(authority: &[u8]) -> Result<usize, Ambiguity> {
    let (host_len, valid) = if authority.first() == Some(&b'[') {
        let end =
            authority.iter().position(|&byte| byte == b']').ok_or(Ambiguity::HostMalformed)?;
        let inside =
            std::str::from_utf8(&authority[1..end]).map_err(|_| Ambiguity::HostMalformed)?;
        (end + 1, inside.parse::<std::net::Ipv6Addr>().is_ok())
    } else {
        let end = authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len());
        let host = &authority[..end];
        let name =
            |&byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        (
            end,
            !host.is_empty()
                && host.iter().all(name)
                && host.last() != Some(&b'.')
                && host.first() != Some(&b'.'),
        )
    };
    let port_valid = match &authority[host_len..] {
        [] => true,
        [b':', digits @ ..] => {
            (1..=5).contains(&digits.len())
                && digits.iter().all(u8::is_ascii_digit)
                && port(digits) <= 65_535
        }
        _ => false,
    };
    if valid && port_valid { Ok(host_len) } else { Err(Ambiguity::HostMalformed) }
}

fn port(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |port, digit| port * 10 + u32::from(digit - b'0'))
}

/// Reads a received path as an application would; `None` if the result equals the received bytes.
fn canonical(path: &str) -> Result<(Option<Box<str>>, Relaxations), Ambiguity> {
    let bytes = path.as_bytes();
    if is_plain(bytes) {
        return Ok((None, Relaxations::NONE));
    }
    let Decoded { whole, path: kept, mut relaxed } = decoded(bytes)?;
    let whole = String::from_utf8(whole).map_err(|_| Ambiguity::NotUtf8)?;
    if whole.chars().any(char::is_control) {
        return Err(Ambiguity::Control);
    }
    if whole.as_bytes().windows(3).any(|window| {
        window[0] == b'%' && window[1].is_ascii_hexdigit() && window[2].is_ascii_hexdigit()
    }) {
        relaxed = relaxed.with(Relaxations::ENCODED_PERCENT);
        if !is_harmless_decoded_again(&whole) {
            return Err(Ambiguity::DoubleEncoding);
        }
    }
    let text = match kept {
        None => whole,
        Some(kept) => String::from_utf8(kept).map_err(|_| Ambiguity::NotUtf8)?,
    };
    // Checked last, on the result of the relaxations, to catch "/a/..;x/b", "/a%2F../b" and
    // "/a%5C..".
    if has_dot_segment(&text) {
        return Err(Ambiguity::DotSegment);
    }
    let text = if text.contains("//") {
        relaxed = relaxed.with(Relaxations::MERGE_SLASHES);
        merged(&text)
    } else {
        text
    };
    Ok(((text != path).then(|| text.into_boxed_str()), relaxed))
}

/// Whether an application could find a dot segment, even one that also separates at `\\` or cuts at
/// `;`.
fn has_dot_segment(path: &str) -> bool {
    // Bytes: as text, each segment costs a search of its own.
    let mut segments = path.as_bytes().split(|byte| matches!(byte, b'/' | b'\\'));
    segments.any(|segment| {
        segment.starts_with(b".")
            && matches!(segment.split(|&byte| byte == b';').next(), Some(b"." | b".."))
    })
}

/// Whether a decoded path that still contains escapes keeps its segments if an application decodes
/// it again, any number of times.
fn is_harmless_decoded_again(path: &str) -> bool {
    let separators = |text: &str| text.matches(['/', '\\']).count();
    let mut text = path.to_owned();
    loop {
        let bytes = text.as_bytes();
        let mut again = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let decoded = if bytes[at] == b'%' { escape(bytes, at) } else { None };
            again.push(decoded.unwrap_or(bytes[at]));
            at += if decoded.is_some() { 3 } else { 1 };
        }
        match String::from_utf8(again) {
            Ok(again) if again == text => return true,
            Ok(again)
                if separators(&again) == separators(path)
                    && !has_dot_segment(&again)
                    && !again.chars().any(char::is_control) =>
            {
                text = again;
            }
            _ => return false,
        }
    }
}

/// Whether a path has no escapes and no ambiguity, so that it can be used as it is.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        match CLASS[usize::from(byte)] {
            Class::Plain => after_slash = false,
            Class::Dot | Class::Slash if after_slash => return false,
            Class::Dot => {}
            Class::Slash => after_slash = true,
            Class::Other => return false,
        }
    }
    true
}

/// A path with every escape decoded once.
struct Decoded {
    /// The whole path.
    whole: Vec<u8>,
    /// The path without parameters, if it has any.
    path: Option<Vec<u8>>,
    relaxed: Relaxations,
}

fn decoded(path: &[u8]) -> Result<Decoded, Ambiguity> {
    let mut whole = Vec::with_capacity(path.len());
    let mut kept: Option<Vec<u8>> = None;
    let mut relaxed = Relaxations::NONE;
    let mut in_parameter = false;
    let mut at = 0;
    while at < path.len() {
        let byte = path[at];
        at += 1;
        let decoded = match (CLASS[usize::from(byte)], byte) {
            (Class::Slash, _) => {
                in_parameter = false;
                byte
            }
            (Class::Plain | Class::Dot, _) => byte,
            (Class::Other, b';') => {
                relaxed = relaxed.with(Relaxations::PARAMETERS);
                in_parameter = true;
                kept.get_or_insert_with(|| whole.clone());
                byte
            }
            (Class::Other, b'%') => {
                let decoded = escape(path, at - 1).ok_or(Ambiguity::BrokenEncoding)?;
                at += 2;
                match decoded {
                    // Within a parameter, it is unknown which of the two the application cuts
                    // first.
                    b'\\' if in_parameter => return Err(Ambiguity::EncodedBackslash),
                    b';' if in_parameter => return Err(Ambiguity::EncodedSemicolon),
                    b'\\' => relaxed = relaxed.with(Relaxations::ENCODED_BACKSLASH),
                    b';' => relaxed = relaxed.with(Relaxations::ENCODED_SEMICOLON),
                    0..0x20 | 0x7f => return Err(Ambiguity::Control),
                    b'/' if in_parameter => return Err(Ambiguity::EncodedSlash),
                    b'/' => relaxed = relaxed.with(Relaxations::ENCODED_SLASH),
                    _ => {}
                }
                decoded
            }
            (Class::Other, _) => return Err(Ambiguity::PathByte),
        };
        whole.push(decoded);
        if let (Some(kept), false) = (&mut kept, in_parameter) {
            kept.push(decoded);
        }
    }
    Ok(Decoded { whole, path: kept, relaxed })
}

/// The byte that is encoded by the escape at `at`.
fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let digit =
        |offset: usize| bytes.get(at + offset).and_then(|&byte| char::from(byte).to_digit(16));
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

/// Merges runs of `/` into one.
fn merged(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !out.ends_with('/') {
            out.push(char);
        }
    }
    out
}

/// How the fast check treats a byte of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stands for itself.
    Plain,
    /// `.`: harmless, except at the start of a segment.
    Dot,
    /// `/`.
    Slash,
    /// Needs a closer look, or is not allowed.
    Other,
}

/// RFC 3986 §3.3 pchar without `%` and `;`, plus the bytes that browsers send raw anyway (WHATWG
/// URL, path percent-encode set).
const CLASS: [Class; 256] = {
    let mut table = [Class::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        let plain = b"-_~!$&'()*+,=:@[]|^";
        let mut at = 0;
        while at < plain.len() {
            if plain[at] as usize == byte {
                table[byte] = Class::Plain;
            }
            at += 1;
        }
        if (byte as u8).is_ascii_alphanumeric() && byte < 128 {
            table[byte] = Class::Plain;
        }
        byte += 1;
    }
    table[b'.' as usize] = Class::Dot;
    table[b'/' as usize] = Class::Slash;
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(target: &str, host: &[&str]) -> Result<Target, TargetError> {
        let mut headers = HeaderMap::new();
        for host in host {
            headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        Target::parse(&Method::GET, &target.parse().unwrap(), Version::HTTP_11, &headers)
    }

    fn path(path: &str) -> Result<Target, Ambiguity> {
        parse(path, &["app.example.com"]).map_err(|error| match error {
            TargetError::Ambiguous(ambiguity) => ambiguity,
            TargetError::Method => unreachable!(),
        })
    }

    #[test]
    fn plain_paths_are_unchanged() {
        for plain in [
            "/",
            "/a",
            "/a/",
            "/a.b/c",
            "/a/b..c",
            "/-_~!$&'()*+,=:@/x",
            "/report[1].pdf",
            "/a|b^c",
            "/a..",
            "/...",
        ] {
            let target = path(plain).unwrap();
            assert_eq!(target.path(), plain);
            assert_eq!(target.sent().as_str(), plain);
            assert_eq!(target.relaxed(), Relaxations::NONE);
        }
    }

    #[test]
    fn escapes_are_decoded_for_the_decision_and_forwarded_as_received() {
        for (received, matched) in [
            ("/%61dmin", "/admin"),
            ("/caf%C3%A9", "/café"),
            ("/a%20b", "/a b"),
            ("/100%25", "/100%"),
            ("/%7Bx%7D", "/{x}"),
            ("/.a/%2Ea", "/.a/.a"),
        ] {
            let target = path(received).unwrap();
            assert_eq!(target.path(), matched);
            assert_eq!(target.sent().as_str(), received);
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for (received, ambiguity) in [
            ("/a/../b", Ambiguity::DotSegment),
            ("/a/.", Ambiguity::DotSegment),
            ("/./a", Ambiguity::DotSegment),
            ("/..", Ambiguity::DotSegment),
            ("/a/%2e%2E/b", Ambiguity::DotSegment),
            ("/a/.%2e", Ambiguity::DotSegment),
            ("/a/..;/b", Ambiguity::DotSegment),
            ("/a/..;x=1/b", Ambiguity::DotSegment),
            ("/a/.;/b", Ambiguity::DotSegment),
            ("/a%2f../b", Ambiguity::DotSegment),
            ("/a%2F%2e%2e%2Fb", Ambiguity::DotSegment),
            ("/a%5c..%5cb", Ambiguity::DotSegment),
            ("/..%5cb", Ambiguity::DotSegment),
            ("/a/..%3bb", Ambiguity::DotSegment),
            ("/a;x=%5c", Ambiguity::EncodedBackslash),
            ("/a;x=%3b", Ambiguity::EncodedSemicolon),
            ("/a%00", Ambiguity::Control),
            ("/a%0a", Ambiguity::Control),
            ("/a%7f", Ambiguity::Control),
            ("/a%C2%85", Ambiguity::Control),
            ("/%252e", Ambiguity::DoubleEncoding),
            ("/%25%32%65", Ambiguity::DoubleEncoding),
            ("/%252e%252e/a", Ambiguity::DoubleEncoding),
            ("/%25252e", Ambiguity::DoubleEncoding),
            ("/a%252fb", Ambiguity::DoubleEncoding),
            ("/a%255cb", Ambiguity::DoubleEncoding),
            ("/a%2500", Ambiguity::DoubleEncoding),
            ("/a%25C0%25AFb", Ambiguity::DoubleEncoding),
            ("/%", Ambiguity::BrokenEncoding),
            ("/%4", Ambiguity::BrokenEncoding),
            ("/%zz", Ambiguity::BrokenEncoding),
            ("/%u0041", Ambiguity::BrokenEncoding),
            ("/%C0%AF", Ambiguity::NotUtf8),
            ("/%c0%ae%c0%ae/", Ambiguity::NotUtf8),
            ("/%E9", Ambiguity::NotUtf8),
            ("/%ED%A0%80", Ambiguity::NotUtf8),
            ("/;x=%2F", Ambiguity::EncodedSlash),
            ("/a;%f2b", Ambiguity::NotUtf8),
            ("/a;%252f", Ambiguity::DoubleEncoding),
            ("/a;%C2%85", Ambiguity::Control),
            ("/a\"b", Ambiguity::PathByte),
            ("/a{b}", Ambiguity::PathByte),
            ("/é", Ambiguity::PathByte),
        ] {
            assert_eq!(
                path(received).map(|target| target.path().to_owned()),
                Err(ambiguity),
                "{received}"
            );
        }
        assert_eq!(canonical("/a\\b"), Err(Ambiguity::PathByte));
        assert_eq!(canonical("/a b"), Err(Ambiguity::PathByte));
        assert_eq!(canonical("/a#b"), Err(Ambiguity::PathByte));
    }

    #[test]
    fn relaxations_are_applied_and_named() {
        for (received, matched, relaxed) in [
            ("//a", "/a", Relaxations::MERGE_SLASHES),
            ("/a///b", "/a/b", Relaxations::MERGE_SLASHES),
            ("/a//", "/a/", Relaxations::MERGE_SLASHES),
            ("/a;x=1/b;y", "/a/b", Relaxations::PARAMETERS),
            ("/a;x=.%2e/b", "/a/b", Relaxations::PARAMETERS),
            ("/a%2fb", "/a/b", Relaxations::ENCODED_SLASH),
            ("/a/;x/b", "/a/b", Relaxations::PARAMETERS.with(Relaxations::MERGE_SLASHES)),
            ("/a%2F/b", "/a/b", Relaxations::ENCODED_SLASH.with(Relaxations::MERGE_SLASHES)),
            ("/a%3Bb", "/a;b", Relaxations::ENCODED_SEMICOLON),
            ("/a%5cb", "/a\\b", Relaxations::ENCODED_BACKSLASH),
            ("/100%2541", "/100%41", Relaxations::ENCODED_PERCENT),
            ("/%25%34%31", "/%41", Relaxations::ENCODED_PERCENT),
        ] {
            let target = path(received).unwrap();
            assert_eq!((target.path(), target.relaxed()), (matched, relaxed), "{received}");
            assert!(!target.relaxed().within(Relaxations::NONE));
        }
    }

    #[test]
    fn hosts() {
        for (host, expected) in [
            ("App.Example.com:8080", "app.example.com"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("a_b.test", "a_b.test"),
            ("App.test.", "app.test"),
            ("app.test.:80", "app.test"),
        ] {
            assert_eq!(parse("/", &[host]).unwrap().host(), expected);
        }
        for host in [
            "", "a b", "a@b", "u:p@b", "a/b", "a,b", "a..", ".", ".a", "a:", "a:x", "a:70000",
            "a:1:2", "[::1", "[::1]x", "[x]", "%61", "a;b", "a\\b", "a?b", "a#b",
        ] {
            assert_eq!(parse("/", &[host]).unwrap_err(), Ambiguity::HostMalformed.into(), "{host}");
        }
        assert_eq!(parse("/", &[]).unwrap_err(), Ambiguity::HostMissing.into());
        assert_eq!(parse("/", &["a", "a"]).unwrap_err(), Ambiguity::HostRepeated.into());
    }

    #[test]
    fn the_absolute_form_and_host_must_agree() {
        for (target, host) in [
            ("http://a.test/x", "a.test"),
            ("http://A.test/x", "a.test"),
            ("http://a.test:80/x", "a.test"),
            ("https://a.test/x", "a.test:443"),
            ("http://a.test", "a.test"),
        ] {
            assert_eq!(parse(target, &[host]).unwrap().host(), "a.test", "{target}");
        }
        for (target, host) in [
            ("http://a.test/x", "b.test"),
            ("http://a.test:81/x", "a.test"),
            ("http://a.test:443/x", "a.test"),
        ] {
            assert_eq!(
                parse(target, &[host]).unwrap_err(),
                Ambiguity::HostDisagrees.into(),
                "{target}"
            );
        }
        assert_eq!(
            parse("http://u:p@a.test/", &["u:p@a.test"]).unwrap_err(),
            Ambiguity::HostMalformed.into()
        );
        assert_eq!(parse("ftp://a.test/", &["a.test"]).unwrap_err(), Ambiguity::NoPath.into());
        assert_eq!(parse("http://a.test/", &[]).unwrap_err(), Ambiguity::HostMissing.into());
        assert_eq!(parse("*", &["a.test"]).unwrap_err(), Ambiguity::NoPath.into());
    }

    #[test]
    fn authorities_differ_by_port() {
        for (one, other, https, same) in [
            ("a.test", "A.test", false, true),
            ("a.test:80", "a.test", false, true),
            ("a.test:443", "a.test", true, true),
            ("[::1]:80", "[::1]", false, true),
            ("a.test:8080", "a.test:8080", false, true),
            ("a.test:80", "a.test", true, false),
            ("a.test:8080:80", "a.test:8080", false, false),
            ("a.test:80:80", "a.test", false, false),
            ("a.test:80:80", "a.test:80", false, false),
            ("[::1]:80:80", "[::1]", false, false),
            ("[::1]:8080:80", "[::1]:8080", false, false),
        ] {
            assert_eq!(same_authority(one.as_bytes(), other.as_bytes(), https), same, "{one}");
            assert_eq!(same_authority(other.as_bytes(), one.as_bytes(), https), same, "{one}");
        }
    }

    #[test]
    fn http2_takes_the_host_from_the_authority() {
        let uri: Uri = "https://a.test/x".parse().unwrap();
        assert_eq!(
            Target::parse(&Method::GET, &uri, Version::HTTP_2, &HeaderMap::new()).unwrap().host(),
            "a.test"
        );
    }

    #[test]
    fn connect_and_trace_are_never_forwarded() {
        for method in [Method::CONNECT, Method::TRACE] {
            assert_eq!(
                Target::parse(&method, &Uri::from_static("/"), Version::HTTP_11, &HeaderMap::new())
                    .unwrap_err(),
                TargetError::Method
            );
        }
    }

    #[test]
    fn rewriting_removes_whole_segments_and_parameters() {
        for (received, segments, parameter, sent) in [
            ("/reports/q3?a=1", 1, None, "/q3?a=1"),
            ("/reports", 1, None, "/"),
            ("/reports/", 1, None, "/"),
            ("/a/b/c%2Fd", 2, None, "/c%2Fd"),
            ("/a//b//c", 1, None, "/b//c"),
            ("/a;x/b", 1, None, "/b"),
            ("/;x/s/t/admin", 2, None, "/admin"),
            ("/;/s/t/q", 2, None, "/q"),
            ("/s/;/t/q", 2, None, "/q"),
            ("/;x/;x/s/t/admin", 2, None, "/admin"),
            ("/a?access_token=t", 0, Some("access_token"), "/a"),
            ("/a?x=1&access_token=t&y=2", 0, Some("access_token"), "/a?x=1&y=2"),
            ("/a?access%5Ftoken=t&y", 0, Some("access_token"), "/a?y"),
            ("/a?", 0, Some("access_token"), "/a?"),
            ("/a/b?q?", 1, Some("access_token"), "/b?q?"),
        ] {
            assert_eq!(
                path(received).unwrap().rewritten(segments, parameter).unwrap().as_str(),
                sent,
                "{received}"
            );
        }
        assert_eq!(
            path("/a%2Fb/c").unwrap().rewritten(1, None).unwrap_err(),
            Ambiguity::EncodedSlash
        );
    }

    proptest::proptest! {
        #[test]
        fn the_forwarded_path_is_the_matched_path_without_its_prefix(text in "/([a-c;/]|%2f|%61){0,16}", count in 0_usize..4) {
            if let Ok(target) = path(&text) {
                let segments: Vec<&str> = target.path()[1..].split('/').collect();
                let matched = segments.len().checked_sub(count).map(|_| format!("/{}", segments[count..].join("/")));
                if let (Ok(sent), Some(matched)) = (target.rewritten(count, None), matched) {
                    let (read, _) = canonical(sent.path()).unwrap();
                    let read = read.as_deref().unwrap_or(sent.path()).to_owned();
                    proptest::prop_assert_eq!(read, matched, "{} less {}", text, count);
                }
            }
        }

        #[test]
        fn accepted_paths_have_one_meaning(text in "/[a-c./%;2eEfF5\\\\0-9]{0,24}") {
            if let Ok((matched, relaxed)) = canonical(&text) {
                let read = matched.as_deref().unwrap_or(&text);
                proptest::prop_assert!(read.starts_with('/'));
                proptest::prop_assert!(!read.contains("//"));
                proptest::prop_assert!(!read.contains('\\') || relaxed.uses(Relaxations::ENCODED_BACKSLASH));
                proptest::prop_assert!(!read.contains(';') || relaxed.uses(Relaxations::ENCODED_SEMICOLON));
                proptest::prop_assert!(!read.split('/').any(|segment| segment == "." || segment == ".."));
                // A second reading changes nothing: an application that decodes twice sees the same
                // path.
                let twice = read.bytes().any(|byte| matches!(byte, b'%' | b';' | b'\\'));
                if !twice { proptest::prop_assert_eq!(canonical(read).ok().and_then(|(again, _)| again), None); }
            }
        }
    }
}
