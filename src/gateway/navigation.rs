//! A browser on its way to a page that it may not see yet: it is led to the login, or through a
//! renewal, and back. What a person sends with a form cannot be led along: they are told what to
//! do.

use http::request::Parts;
use http::{HeaderMap, Method, header};

use super::authenticate::{Unauthenticated, has_token_cookie};
use super::refusal::Refusal;
use super::snapshot::Snapshot;
use super::target::Target;
use crate::identity::{Mount, pages, return_to};
use crate::token::InvalidToken;

/// The refusal of a request that nobody was recognised for, or where a browser goes instead
/// (CONTRACT §2, rule 10).
///
/// Only a navigation is led away, only where cookies are taken and the host has a login. A script's
/// request gets its 401 and renews by `POST /refresh`.
pub fn led(
    snapshot: &Snapshot,
    takes_cookies: bool,
    parts: &Parts,
    target: &Target,
    refusal: Refusal,
) -> Refusal {
    if !asks(&parts.method) {
        return refusal;
    }
    let Some((mount, page)) = way_in(snapshot, takes_cookies, parts, target, &refusal) else {
        return refusal;
    };
    let location = return_to::remembering(&mount.path(page), target.sent().as_str());
    Refusal::Led { location, refusal: Box::new(refusal) }
}

/// The same for a request to an application. A form that a person sent to it is answered with a
/// page: where to log in meanwhile, and that what they typed is not lost. Were they led away, it
/// would be.
pub fn led_or_told(
    snapshot: &Snapshot,
    takes_cookies: bool,
    parts: &Parts,
    target: &Target,
    refusal: Refusal,
) -> Refusal {
    if asks(&parts.method) {
        return led(snapshot, takes_cookies, parts, target, refusal);
    }
    let Some(policy) = &snapshot.identity else { return refusal };
    let Some((mount, page)) = way_in(snapshot, takes_cookies, parts, target, &refusal) else {
        return refusal;
    };
    // Not back to where the form was sent to: it may answer nothing but forms.
    Refusal::Page {
        page: pages::unsent(mount.path(page), policy, mount),
        refusal: Box::new(refusal),
    }
}

/// Whether a method asks for a page, and can be asked again.
fn asks(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Where a person comes in, who was not recognised.
fn way_in<'a>(
    snapshot: &'a Snapshot,
    takes_cookies: bool,
    parts: &Parts,
    target: &Target,
    refusal: &Refusal,
) -> Option<(&'a Mount, &'static str)> {
    let Refusal::Unauthenticated(unauthenticated) = refusal else { return None };
    if !takes_cookies
        || !is_navigation(&parts.headers)
        || parts.headers.contains_key(header::AUTHORIZATION)
    {
        return None;
    }
    let mount = snapshot.routes.mount(target.host())?;
    let has_cookie = has_token_cookie(&parts.headers, &snapshot.rules.token_names);
    let page = match unauthenticated {
        Unauthenticated::Missing => "/login",
        // What has been good may be again, also after its key was forgotten as compromised. A token
        // that was revoked with its session leads to the login from there.
        Unauthenticated::Invalid(
            InvalidToken::Expired { .. }
            | InvalidToken::Revoked(_)
            | InvalidToken::KeyUnknown { .. },
        ) if has_cookie => "/renew",
        Unauthenticated::Invalid(_) if has_cookie => "/login",
        _ => return None,
    };
    Some((mount, page))
}

/// Whether a person goes somewhere. Browsers say so over https and to localhost; elsewhere, that
/// they would like HTML.
fn is_navigation(headers: &HeaderMap) -> bool {
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|line| line.to_str().is_ok_and(|line| line.contains("text/html"))),
    }
}
