//! Which header fields belong to the gateway, in any spelling that an application may read as them.
//!
//! CGI, WSGI, Rack and PHP turn `X-Auth-User` into `HTTP_X_AUTH_USER`, and some turn `X_Auth_User`,
//! `X.Auth.User` or `X~Auth~User` into the same. So names are compared folded: in lower case, with
//! every character other than letters and digits as `-`.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::Value;

use super::token_names::TokenNames;
use crate::token::{ClaimPath, VerifiedToken};

/// The trace that a client says its request belongs to (W3C Trace Context).
pub const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// The names that are removed from every request, whatever its route (CONTRACT §4), folded.
const ALWAYS_REMOVED: [&str; 13] = [
    "authorization",
    // Hop by hop (RFC 9110 §7.6.1).
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    // Set by the gateway.
    "x-request-id",
    // Set again with the second target as it was decided.
    "if",
];

/// Fields that could change the application's view of the request, folded. The configurations that
/// are written for other proxies remove them too.
pub const VIEW: [&str; 17] = [
    "x-original-url",
    "x-original-uri",
    "x-original-host",
    "x-original-method",
    "x-rewrite-url",
    "x-rewrite-uri",
    "forwarded",
    "x-real-ip",
    "client-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-cluster-client-ip",
    "proxy",
    // RFC 8470 §5.1: only the gateway's own TLS could say it.
    "early-data",
    // A second target (RFC 4918 §10.3), which only the gateway decides about and sets again.
    "destination",
    // RFC 7540 §3.2.1: with an upgrade to HTTP/2, which is for one hop.
    "http2-settings",
];

/// Fields that are genuine, but must not appear in another spelling: CGI has only one
/// `CONTENT_LENGTH`.
pub const EXACT_SPELLING: [&str; 2] = ["content-length", "content-type"];

/// Kept if the route sets `method_override = true`, folded.
pub const METHOD_OVERRIDES: [&str; 3] =
    ["x-http-method-override", "x-http-method", "x-method-override"];

/// Every folded name that starts with this is removed.
const FORWARDED_PREFIX: &[u8] = b"x-forwarded";

/// The longest reserved name, in bytes.
pub const MAX_NAME: usize = 256;

/// The default `[identity_headers]`: header and claim.
pub const DEFAULT_IDENTITY: [(&str, &str); 5] = [
    ("x-auth-user", "sub"),
    ("x-auth-email", "email"),
    ("x-auth-name", "name"),
    ("x-auth-roles", "roles"),
    ("x-auth-issuer", "iss"),
];

/// Every name that a client cannot send through.
#[derive(Clone, Debug)]
pub struct OwnedNames(FoldedNames);

impl OwnedNames {
    /// The fixed names, and the identity headers.
    pub fn new<'a>(identity: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        let mut names = FoldedNames::new(identity);
        for name in ALWAYS_REMOVED
            .into_iter()
            .chain(TRACE)
            .chain(VIEW)
            .chain(EXACT_SPELLING)
            .chain(METHOD_OVERRIDES)
        {
            names.insert(name.as_bytes());
        }
        Self(names)
    }

    /// Whether an application may read a field of this name as a reserved one.
    pub fn contains(&self, name: &HeaderName) -> bool {
        let name = name.as_str().as_bytes();
        if is_forwarded(name) {
            return true;
        }
        self.0.contains_bytes(name) && !EXACT_SPELLING.iter().any(|spelt| spelt.as_bytes() == name)
    }
}

/// Whether a folded name starts with [`FORWARDED_PREFIX`].
fn is_forwarded(name: &[u8]) -> bool {
    let start = name.get(..FORWARDED_PREFIX.len());
    start.is_some_and(|start| {
        start.iter().zip(FORWARDED_PREFIX).all(|(byte, prefix)| fold(*byte) == *prefix)
    })
}

/// The default identity headers, and these, each once and in order.
pub fn identity_names<'a>(configured: impl IntoIterator<Item = &'a HeaderName>) -> Vec<HeaderName> {
    let mut names: BTreeSet<&str> = DEFAULT_IDENTITY.iter().map(|(name, _)| *name).collect();
    names.extend(configured.into_iter().map(HeaderName::as_str));
    names.into_iter().filter_map(|name| name.parse().ok()).collect()
}

/// Names that are compared folded.
#[derive(Clone, Debug)]
pub struct FoldedNames {
    /// Folded names by length: a name is compared only with the few of its own length.
    by_length: Box<[Vec<Box<[u8]>>; MAX_NAME + 1]>,
    /// For each length, the first letters of its names: most fields need no folding.
    first_letters: Box<[u64; MAX_NAME + 1]>,
}

impl FoldedNames {
    /// These names.
    pub fn new<'a>(all: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        let mut names = Self {
            by_length: Box::new([const { Vec::new() }; MAX_NAME + 1]),
            first_letters: Box::new([0; MAX_NAME + 1]),
        };
        for name in all {
            names.insert(name.as_str().as_bytes());
        }
        names
    }

    fn insert(&mut self, name: &[u8]) {
        let folded: Box<[u8]> = name.iter().copied().map(fold).collect();
        let (Some(names), Some(first)) = (self.by_length.get_mut(folded.len()), folded.first())
        else {
            return;
        };
        self.first_letters[folded.len()] |= letter_bit(*first);
        if !names.contains(&folded) {
            names.push(folded);
        }
    }

    /// Whether a name is one of these, in any spelling.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.contains_bytes(name.as_str().as_bytes())
    }

    fn contains_bytes(&self, name: &[u8]) -> bool {
        let Some(first) = name.first() else { return false };
        if self
            .first_letters
            .get(name.len())
            .is_none_or(|letters| letters & letter_bit(fold(*first)) == 0)
        {
            return false;
        }
        let is =
            |folded: &[u8]| name.iter().zip(folded).all(|(byte, folded)| fold(*byte) == *folded);
        self.by_length.get(name.len()).is_some_and(|names| {
            // Most names are spelt as they are folded.
            names.iter().any(|folded| **folded == *name || is(folded))
        })
    }
}

fn letter_bit(letter: u8) -> u64 {
    1 << (letter & 63)
}

/// One byte of a folded name.
pub const fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

/// Whether two names are the same once folded.
pub fn same_folded(one: &str, other: &str) -> bool {
    one.len() == other.len()
        && one.bytes().zip(other.bytes()).all(|(one, other)| fold(one) == fold(other))
}

/// The names that `Connection` lists: they apply to this hop only (RFC 9110 §7.6.1). Without the two
/// options that most clients send: `close` is no field, and `Keep-Alive` is never forwarded.
pub fn connection_names(headers: &HeaderMap) -> Vec<HeaderName> {
    let is_option = |name: &&[u8]| {
        name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close")
    };
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !is_option(name))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect()
}

/// Removes fields that trailers must not contain, and fields for this hop only, from the trailers
/// of a response (RFC 9110 §6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    for name in connection_names(trailers) {
        trailers.remove(name);
    }
    for name in HOP_BY_HOP.into_iter().chain(NOT_IN_TRAILERS) {
        trailers.remove(name);
    }
}

/// Response fields for one hop (RFC 9110 §7.6.1). As text: a name is compared with eight of these
/// by its length, and with one by its letters.
pub const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields that frame, route, authenticate or describe a message (RFC 9110 §6.5.1).
pub const NOT_IN_TRAILERS: [&str; 16] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "content-range",
    "cookie",
    "set-cookie",
    "cache-control",
    "max-forwards",
    "range",
    "if-match",
    "if-none-match",
    "origin",
    "referer",
    "location",
    "sec-fetch-site",
];

/// Rules of one configuration for every outgoing request.
#[derive(Clone, Debug)]
pub struct HeaderRules {
    /// The names that no client can send through.
    pub owned: OwnedNames,
    /// Our cookie and query parameter.
    pub token_names: TokenNames,
}

/// The only value of a field; `None` when there is none, or more than one.
pub(super) fn single_value<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// What upstreams learn about a caller: header = claim.
#[derive(Clone, Debug)]
pub struct IdentityHeaders(Vec<(HeaderName, Claim)>);

/// The source of an identity header's value.
#[derive(Clone, Debug)]
pub enum Claim {
    /// What the issuer section takes as the subject.
    Subject,
    /// What the issuer section takes as the roles.
    Roles,
    /// Any other claim.
    Path(ClaimPath),
}

impl Claim {
    /// The claim that these segments name.
    pub fn new(segments: Vec<String>) -> Self {
        match segments.as_slice() {
            [one] if one == "sub" => Self::Subject,
            [one] if one == "roles" => Self::Roles,
            _ => Self::Path(ClaimPath::new(segments)),
        }
    }
}

impl Default for IdentityHeaders {
    fn default() -> Self {
        Self(
            DEFAULT_IDENTITY
                .map(|(name, claim)| {
                    (HeaderName::from_static(name), Claim::new(vec![claim.to_owned()]))
                })
                .to_vec(),
        )
    }
}

impl IdentityHeaders {
    /// These headers, and no others.
    pub fn new(headers: Vec<(HeaderName, Claim)>) -> Self {
        Self(headers)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// The value of each; `None` if the claim is absent or empty.
    pub(super) fn values(&self, caller: &VerifiedToken) -> Vec<Option<HeaderValue>> {
        // All in one allocation: a request of a cached caller finds them next to each other.
        let mut text = Vec::new();
        let spans: Vec<_> =
            self.0.iter().map(|(_, claim)| claim_span(claim, caller, &mut text)).collect();
        let text = Bytes::from(text);
        let value =
            |span: Option<Range<usize>>| HeaderValue::from_maybe_shared(text.slice(span?)).ok();
        spans.into_iter().map(value).collect()
    }
}

/// Appends the value of a header for a caller, and returns its range in `out`; `None` if it is
/// absent or empty.
fn claim_span(claim: &Claim, caller: &VerifiedToken, out: &mut Vec<u8>) -> Option<Range<usize>> {
    let begin = out.len();
    let says = match claim {
        Claim::Subject => text_value(caller.subject(), out),
        Claim::Roles => list_value(caller.roles().iter().map(String::as_str), out),
        Claim::Path(path) => caller.claim(path).is_some_and(|claim| claim_value(claim, out)),
    };
    says.then_some(begin..out.len())
}

/// Appends a claim as a header value; false for null, an object, and an empty list.
fn claim_value(claim: &Value, out: &mut Vec<u8>) -> bool {
    match claim {
        Value::Null | Value::Object(_) => false,
        Value::String(text) => text_value(text, out),
        Value::Bool(_) | Value::Number(_) => text_value(&claim.to_string(), out),
        Value::Array(items) => {
            let items: Vec<String> = items
                .iter()
                .filter_map(|item| match item {
                    Value::String(text) => Some(text.clone()),
                    Value::Bool(_) | Value::Number(_) => Some(item.to_string()),
                    Value::Null | Value::Object(_) | Value::Array(_) => None,
                })
                .collect();
            list_value(items.iter().map(String::as_str), out)
        }
    }
}

fn text_value(text: &str, out: &mut Vec<u8>) -> bool {
    encode(text, false, out);
    true
}

fn list_value<'a>(items: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) -> bool {
    let mut any = false;
    for item in items {
        if any {
            out.push(b',');
        }
        any = true;
        encode(item, true, out);
    }
    any
}

/// Writes a value so that nothing of it is lost or read as something else: `%`, control bytes,
/// bytes outside ASCII, a space at either end, and in a list the comma, are percent-encoded.
fn encode(text: &str, in_list: bool, out: &mut Vec<u8>) {
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let escaped = match byte {
            b'%' | 0..0x20 | 0x7f.. => true,
            b' ' => at == 0 || at == last,
            b',' => in_list,
            _ => false,
        };
        if escaped {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        } else {
            out.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn connection_names_fields_and_not_its_options() {
        let mut headers = HeaderMap::new();
        for line in ["Keep-Alive, X-Own", "close,,TE", "Keep-Alive-Not"] {
            headers.append(header::CONNECTION, HeaderValue::from_static(line));
        }
        assert_eq!(connection_names(&headers), ["x-own", "te", "keep-alive-not"]);
    }

    #[test]
    fn every_spelling_of_a_reserved_name_is_reserved() {
        let owned = OwnedNames::new(&identity_names([&HeaderName::from_static("x-remote-user")]));
        for name in [
            "x-auth-user",
            "x_auth_user",
            "x.auth.user",
            "x-auth_user",
            "x~auth~user",
            "x!auth|user",
            "x_remote_user",
            "authorization",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded-anything",
            "x-forwarded",
            "x.forwarded.host",
            "forwarded",
            "x_real_ip",
            "proxy",
            "x-original-url",
            "x_rewrite_url",
            "x-http-method-override",
            "x_http_method",
            "transfer_encoding",
            "x-request-id",
        ] {
            assert!(owned.contains(&HeaderName::from_static(name)), "{name}");
        }
        for name in [
            "host",
            "accept",
            "x-auth-users",
            "x-authuser",
            "x-requested-with",
            "cookie",
            "content-type",
            "x-forward",
            "xforwardedfor",
        ] {
            assert!(!owned.contains(&HeaderName::from_static(name)), "{name}");
        }
        let long = HeaderName::from_bytes(&[b'x'; 1000]).unwrap();
        assert!(!owned.contains(&long));
    }

    #[test]
    fn long_reserved_names_are_found() {
        let long = HeaderName::from_bytes(&[b'y'; 200]).unwrap();
        assert!(OwnedNames::new([&long]).contains(&long));
    }

    #[test]
    fn identity_header_values_are_exact() {
        for (claim, expected) in [
            (json!("alice"), Some("alice")),
            (json!("a b"), Some("a b")),
            (json!(" a "), Some("%20a%20")),
            (json!(" "), Some("%20")),
            (json!("100%"), Some("100%25")),
            (json!("a\r\nX: y"), Some("a%0D%0AX: y")),
            (json!("é"), Some("%C3%A9")),
            (json!("a,b"), Some("a,b")),
            (json!(17), Some("17")),
            (json!(1.5), Some("1.5")),
            (json!(true), Some("true")),
            (json!(["a", "b,c", 3, null, {"x": 1}]), Some("a,b%2Cc,3")),
            (json!([]), None),
            (json!(null), None),
            (json!({"a": 1}), None),
            (json!(""), Some("")),
        ] {
            let mut out = Vec::new();
            let says = claim_value(&claim, &mut out);
            assert_eq!(says.then_some(std::str::from_utf8(&out).unwrap()), expected, "{claim}");
        }
    }
}
