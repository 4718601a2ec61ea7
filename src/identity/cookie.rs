//! Our two cookies: the access token for every path, and the refresh token for the mount only.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};

use super::mount::Mount;
use super::policy::Policy;

/// The cookie that holds a refresh token. Because of its prefix, browsers reject it if it could
/// have been set over cleartext.
pub const REFRESH_COOKIE: &str = "__Secure-portcullis-refresh";

/// The cookies of an active session. They outlive the access token, so that an expired one can be
/// renewed at `/renew`.
pub fn set(
    access_token: &str,
    refresh_token: &str,
    policy: &Policy,
    mount: &Mount,
) -> [HeaderValue; 2] {
    let lifetime = policy.refresh_token_ttl.min(policy.session_lifetime);
    [
        cookie(&policy.access_cookie, access_token, "/", Some(lifetime)),
        cookie(REFRESH_COOKIE, refresh_token, mount.cookie_path(), Some(lifetime)),
    ]
}

/// Removes both cookies.
pub fn clear(policy: &Policy, mount: &Mount) -> [HeaderValue; 2] {
    [
        cookie(&policy.access_cookie, "", "/", None),
        cookie(REFRESH_COOKIE, "", mount.cookie_path(), None),
    ]
}

/// `SameSite=Lax`: a link from another site arrives with the cookie, a form or a script of another
/// site sends requests without it.
fn cookie(name: &str, value: &str, path: &str, lifetime: Option<Duration>) -> HeaderValue {
    let seconds = lifetime.map_or(0, |lifetime| lifetime.as_secs());
    let text =
        format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly; Secure; SameSite=Lax");
    // Names and paths come from the configuration, where they are checked; tokens are base64url and
    // dots.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// The refresh token in the cookie of a request. `None` if there is none, or more than one.
pub fn refresh_token(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut values = lines.flat_map(|line| line.split(';')).filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name.trim() == REFRESH_COOKIE).then(|| value.trim())
    });
    let value = values.next();
    if values.next().is_some() { None } else { value }
}
