//! Names of tokens outside `Authorization`.

use http::{HeaderMap, HeaderValue, header};
use memchr::memchr;

use super::scheme::Scheme;
use crate::identity::cookie::{AGAIN, Cookies, LOGINS};

/// Names of tokens outside `Authorization`.
#[derive(Clone, Debug)]
pub struct TokenNames {
    /// The cookie with an access token.
    pub cookie: String,
    /// The cookie with the refresh token of a session.
    pub session: String,
    /// The query parameter.
    pub query: String,
    /// The domain that the cookies are set for: `[identity] cookie_domain`. `None`: for one host.
    pub domain: Option<Box<str>>,
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
        let [cookie, session, ..] = DEFAULTS.map(str::to_owned);
        Self { cookie, session, query: "access_token".to_owned(), domain: None, issuer: None }
    }
}

impl TokenNames {
    /// Names both cookies after the one with an access token.
    pub fn name_cookies(&mut self, access: &str) {
        access.clone_into(&mut self.cookie);
        self.session = format!("{access}-session");
    }

    /// The cookies as the built-in issuer sets them.
    pub fn cookies(&self) -> Cookies {
        let Self { cookie, session, domain, .. } = self.clone();
        Cookies { access: cookie, session, domain }
    }

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
        let is = |own: &str| name.eq_ignore_ascii_case(own.as_bytes());
        let may_be_default = || name.starts_with(b"__");
        is(&self.cookie)
            || is(&self.session)
            || (may_be_default() && DEFAULTS.iter().any(|own| is(own)))
    }
}

/// The names without `token_cookie`; also ours where it names others, so that a changed file leaves
/// no tokens to upstreams.
const DEFAULTS: [&str; 6] = [
    "__Host-portcullis",
    "__Host-portcullis-session",
    "__Secure-portcullis",
    "__Secure-portcullis-session",
    LOGINS,
    AGAIN,
];

/// The name of the access cookie that is set for a domain: `__Host-` is for one host only.
pub const DOMAIN_COOKIE: &str = "__Secure-portcullis";

/// The values of a cookie, in any number of fields (RFC 9113 §8.2.3). Other cookies may hold any
/// bytes.
pub(super) fn cookie_values<'a>(
    headers: &'a HeaderMap,
    name: &'a str,
) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(cookie_pairs);
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        if pair[..at].trim_ascii() != name.as_bytes() {
            return None;
        }
        let value = pair[at + 1..].trim_ascii();
        Some(value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value))
    })
}

/// The `name=value` pairs of one `Cookie` field. Most of its bytes are tokens, which must not be
/// looked at one by one.
pub(super) fn cookie_pairs(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line.as_bytes());
    std::iter::from_fn(move || {
        let pairs = rest?;
        let end = memchr(b';', pairs);
        rest = end.map(|end| &pairs[end + 1..]);
        Some(&pairs[..end.unwrap_or(pairs.len())])
    })
}

/// Whether a request has a cookie of ours, valid or not.
pub(super) fn has_own_cookie(headers: &HeaderMap, names: &TokenNames) -> bool {
    [&names.cookie, &names.session]
        .into_iter()
        .any(|name| cookie_values(headers, name).next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_field_is_split_at_every_semicolon() {
        for (line, pairs) in
            [("a=1", &["a=1"][..]), ("a=1; b=2", &["a=1", " b=2"]), (";a;;", &["", "a", "", ""])]
        {
            let line = HeaderValue::from_static(line);
            let split: Vec<&[u8]> = cookie_pairs(&line).collect();
            assert_eq!(split, pairs.iter().map(|pair| pair.as_bytes()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn our_cookies_are_known_in_any_case_and_by_every_name() {
        let mut names = TokenNames::default();
        names.name_cookies("app");
        for own in [
            "app=1",
            " APP-session =1",
            "__host-Portcullis=1",
            "__Secure-portcullis-session",
            AGAIN,
        ] {
            assert!(names.own_cookie(own.as_bytes()), "{own}");
        }
        for other in ["apps=1", "theme=app", "__Host-other=1", "_app=1", ""] {
            assert!(!names.own_cookie(other.as_bytes()), "{other}");
        }
    }
}
