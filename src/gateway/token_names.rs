//! Names under which a token may be outside `Authorization`.

use super::client::Scheme;
use crate::identity::cookie::REFRESH_COOKIE;

/// Names under which a token may stand outside `Authorization`.
#[derive(Clone, Debug)]
pub struct TokenNames {
    /// The cookie.
    pub cookie: String,
    /// The query parameter.
    pub query: String,
    /// Where our own pages are, by `[identity] issuer`.
    pub issuer: Option<OwnOrigin>,
}

/// The origin of a URL (RFC 6454 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnOrigin {
    /// Its scheme.
    pub scheme: Scheme,
    /// Host, and port where there is one.
    pub authority: Box<str>,
}

impl Default for TokenNames {
    fn default() -> Self {
        Self {
            cookie: "__Host-portcullis".to_owned(),
            query: "access_token".to_owned(),
            issuer: None,
        }
    }
}

impl TokenNames {
    /// Whether a `name=value` pair is a cookie of ours: never sent to an upstream, never set by
    /// one.
    ///
    /// A cookie without a name is read by its value: a browser that was given `=a=b` sends `a=b`
    /// (RFC 6265bis §5.6).
    pub fn own_cookie(&self, pair: &[u8]) -> bool {
        let blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'=';
        let start = pair.iter().position(|byte| !blank(byte)).unwrap_or(pair.len());
        let name =
            pair[start..].split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
        [self.cookie.as_bytes(), b"__Host-portcullis", REFRESH_COOKIE.as_bytes()]
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
    }
}
