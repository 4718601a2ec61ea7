//! Personal access tokens in `Authorization`: as a bearer token, or as the password of Basic.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, header};

use crate::identity::personal_tokens::{is_personal, is_well_formed};

/// What a field of credentials holds.
enum Written<'a> {
    /// The token of `Bearer`.
    Bearer(&'a [u8]),
    /// The password of `Basic`, or nothing if it cannot be decoded.
    Basic(Option<Vec<u8>>),
}

/// The password of `Authorization: Basic` (RFC 7617). The user name does not matter. `None`: the
/// field has another scheme. `Some(None)`: it is not base64, or there is no colon.
#[expect(clippy::option_option, reason = "outer: the scheme; inner: whether it can be read")]
pub(super) fn basic_password(line: &[u8]) -> Option<Option<Vec<u8>>> {
    match read(line)? {
        Written::Basic(password) => Some(password),
        Written::Bearer(_) => None,
    }
}

/// The token after `Bearer` (RFC 6750 §2.1); `None` for another scheme.
pub(super) fn bearer(line: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = split(line);
    scheme.eq_ignore_ascii_case(b"bearer").then_some(rest)
}

/// What is meant as a personal access token in `Authorization`, whether or not a route takes it.
pub fn personal_token(headers: &HeaderMap) -> Option<String> {
    let token = tokens(headers).find(|token| is_personal(token))?;
    Some(String::from_utf8_lossy(&token).into_owned())
}

/// Whether `Authorization` has a token that may be one of ours. A credential of an application may
/// begin like one.
pub(super) fn has_personal_token(headers: &HeaderMap) -> bool {
    tokens(headers).any(|token| is_well_formed(&token))
}

/// The bearer token, or the password of Basic, of each field.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = Cow<'_, [u8]>> {
    headers.get_all(header::AUTHORIZATION).iter().filter_map(|line| match read(line.as_bytes())? {
        Written::Bearer(token) => Some(Cow::Borrowed(token)),
        Written::Basic(password) => password.map(Cow::Owned),
    })
}

fn read(line: &[u8]) -> Option<Written<'_>> {
    let (scheme, rest) = split(line);
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Written::Bearer(rest));
    }
    scheme.eq_ignore_ascii_case(b"basic").then(|| {
        let decoded = BASE64.decode(rest).ok();
        Written::Basic(decoded.and_then(|mut decoded| {
            let colon = decoded.iter().position(|&byte| byte == b':')?;
            Some(decoded.split_off(colon + 1))
        }))
    })
}

/// A scheme, which is case-insensitive (RFC 9110 §11.1), and what follows it.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.trim_ascii();
    let end = line.iter().position(|&byte| byte == b' ' || byte == b'\t').unwrap_or(line.len());
    let (scheme, rest) = line.split_at(end);
    (scheme, rest.trim_ascii())
}

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whether this is a `token68` (RFC 9110 §11.2).
pub(super) fn is_token68(token: &[u8]) -> bool {
    let unpadded = token.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    let allowed = |byte: u8| {
        let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        // The digits follow `-`, `.` and `/` (RFC 20).
        letter || byte.wrapping_sub(b'-') < 13 || byte == b'_' || byte == b'~' || byte == b'+'
    };
    // No early exit, so that the compiler can check many bytes at once: nearly every token is well
    // formed.
    unpadded > 0 && token[..unpadded].iter().fold(true, |all, &byte| all & allowed(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_password_of_basic_is_what_follows_the_first_colon() {
        let read = |line: &str| {
            basic_password(line.as_bytes())
                .map(|password| password.map(|password| String::from_utf8(password).unwrap()))
        };
        for (line, password) in [
            // RFC 7617 §2.
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "open sesame"),
            ("bAsIc  QWxhZGRpbjpvcGVuIHNlc2FtZQ ", "open sesame"),
            ("Basic OmE6Yg==", "a:b"),
            ("Basic YTo=", ""),
        ] {
            assert_eq!(read(line), Some(Some(password.to_owned())), "{line}");
        }
        for malformed in ["Basic", "Basic YWI=", "Basic !", "Basic YTpi YTpi", "Basic YTpi="] {
            assert_eq!(read(malformed).map(|read| read.is_none()), Some(true), "{malformed}");
        }
        for other in ["Bearer a.b.c", "Digest YTpi", "", "Basicx YTpi"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_personal_access_token_is_found_in_both_schemes() {
        let found = |line: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(line));
            personal_token(&headers)
        };
        assert_eq!(found("bearer pct_abc").as_deref(), Some("pct_abc"));
        assert_eq!(found("Basic YW5uOnBjdF9hYmM=").as_deref(), Some("pct_abc"));
        assert_eq!(found("Basic cGN0X2FiYzp4"), None, "a user name is no token");
        assert_eq!(found("Bearer a.b.c"), None);
    }
}
