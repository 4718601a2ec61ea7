//! The two cookies of a browser's session: the access token and the refresh token.
//!
//! Both are sent to every path, so that the gateway can renew a session wherever a request arrives.
//! Neither reaches an upstream, a log or a script.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};

use super::policy::Policy;
use super::provider::flight::LIFETIME;
use super::session::Keep;

/// The names of the cookies. Browsers reject a cookie with the prefix `__Host-` if it could have
/// been set over cleartext or by another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookies {
    /// Holds an access token: `[server] token_cookie`.
    pub access: String,
    /// Holds a refresh token: that name with `-session`.
    pub session: String,
    /// The domain that they are set for: `[identity] cookie_domain`. `None`: for one host.
    pub domain: Option<Box<str>>,
}

/// The cookies of an active session. The access cookie outlives its token: what it says is checked
/// anyway.
pub fn set(
    access_token: &str,
    refresh_token: &str,
    keep: Keep,
    policy: &Policy,
) -> [HeaderValue; 2] {
    let lifetime = match keep {
        Keep::Lasting => Some(policy.refresh_token_ttl.min(policy.session_lifetime)),
        Keep::UntilClosed => None,
    };
    [
        cookie(&policy.cookies.access, access_token, lifetime, policy),
        cookie(&policy.cookies.session, refresh_token, lifetime, policy),
    ]
}

/// Removes both cookies.
pub fn clear(policy: &Policy) -> [HeaderValue; 2] {
    [&policy.cookies.access, &policy.cookies.session]
        .map(|name| cookie(name, "", Some(Duration::ZERO), policy))
}

/// `SameSite=Lax`: a link from another site arrives with the cookie, a form or a script of another
/// site sends requests without it.
///
/// Without a lifetime, browsers keep it until they are closed.
fn cookie(name: &str, value: &str, lifetime: Option<Duration>, policy: &Policy) -> HeaderValue {
    let lifetime =
        lifetime.map_or_else(String::new, |time| format!("Max-Age={}; ", time.as_secs()));
    let domain = policy.cookies.domain.as_deref();
    let domain = domain.map_or_else(String::new, |domain| format!("Domain={domain}; "));
    let text = format!("{name}={value}; Path=/; {lifetime}{domain}HttpOnly; Secure; SameSite=Lax");
    // Names and the domain come from the configuration, where they are checked; tokens are
    // base64url and dots.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// The name of the cookie with a login that has just failed.
pub const AGAIN: &str = "__Host-portcullis-again";

/// The name of the cookie with a browser's logins in progress at providers. With `__Host-`, no
/// other host of the domain can plant a login of somebody else.
pub const LOGINS: &str = "__Host-portcullis-login";

/// The cookie [`LOGINS`], or its removal.
pub fn logins(value: Option<&str>) -> HeaderValue {
    let (value, lifetime) = value.map_or(("", 0), |value| (value, LIFETIME));
    let text =
        format!("{LOGINS}={value}; Path=/; Max-Age={lifetime}; HttpOnly; Secure; SameSite=Lax");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// The value of that cookie in a request. `None` if there is none, or more than one.
pub fn logins_in(headers: &HeaderMap) -> Option<&str> {
    only(headers, LOGINS)
}

/// The refresh token in the cookie of a request. `None` if there is none, or more than one.
pub fn refresh_token<'r>(headers: &'r HeaderMap, policy: &Policy) -> Option<&'r str> {
    only(headers, &policy.cookies.session)
}

/// The value of a cookie in a request. `None` if there is none, or more than one.
pub fn only<'r>(headers: &'r HeaderMap, wanted: &str) -> Option<&'r str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut values = lines.flat_map(|line| line.split(';')).filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name.trim() == wanted).then(|| value.trim())
    });
    let value = values.next();
    if values.next().is_some() { None } else { value }
}
