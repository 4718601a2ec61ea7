//! Names of tokens outside `Authorization`.

use super::client::Scheme;
use crate::identity::cookie::REFRESH_COOKIE;

/// Names of tokens outside `Authorization`.
#[derive(Clone, Debug)]
pub struct TokenNames {
    /// The cookie.
    pub cookie: String,
    /// The query parameter.
    pub query: String,
    /// The origin of our own pages, from `[identity] issuer`.
    pub issuer: Option<OwnOrigin>,
}

/// The origin of a URL (RFC 6454 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnOrigin {
    /// The scheme.
    pub scheme: Scheme,
    /// The host, and the port if there is one.
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
    /// Whether a `name=value` pair is one of our cookies: they are never sent to an upstream, and
    /// never set by one.
    ///
    /// A cookie without a name is identified by its value: a browser that received `=a=b` sends
    /// `a=b` (RFC 6265bis §5.6).
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
