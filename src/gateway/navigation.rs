//! A browser on its way to a page that it may not see yet: it is led to the login, or through a renewal, and back.

use http::request::Parts;
use http::{HeaderMap, Method, header};

use super::authenticate::{Unauthenticated, has_token_cookie};
use super::refusal::Refusal;
use super::snapshot::Snapshot;
use super::target::Target;
use crate::identity::return_to;
use crate::token::InvalidToken;

/// The refusal of a request that nobody was recognised for, or where a browser goes instead (CONTRACT §2, rule 10).
///
/// Only a navigation is led away, only where cookies are taken and the host has a login. A script's request gets its 401 and renews
/// by `POST /refresh`.
pub fn led(snapshot: &Snapshot, takes_cookies: bool, parts: &Parts, target: &Target, refusal: Refusal) -> Refusal {
    let Refusal::Unauthenticated(unauthenticated) = &refusal else { return refusal };
    if !takes_cookies || !is_navigation(&parts.method, &parts.headers) || parts.headers.contains_key(header::AUTHORIZATION) {
        return refusal;
    }
    let Some(mount) = snapshot.routes.mount(target.host()) else { return refusal };
    let has_cookie = has_token_cookie(&parts.headers, &snapshot.rules.token_names);
    let page = match unauthenticated {
        Unauthenticated::Missing => "/login",
        // What has been good may be again. A token that was revoked with its session leads to the login from there.
        Unauthenticated::Invalid(InvalidToken::Expired { .. } | InvalidToken::Revoked(_)) if has_cookie => "/renew",
        Unauthenticated::Invalid(_) if has_cookie => "/login",
        _ => return refusal,
    };
    let location = return_to::remembering(&mount.path(page), target.sent().as_str());
    Refusal::Led { location, refusal: Box::new(refusal) }
}

/// Whether a person asks for a page. Browsers say so over https and to localhost; elsewhere, that they would like HTML.
fn is_navigation(method: &Method, headers: &HeaderMap) -> bool {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => headers.get_all(header::ACCEPT).iter().any(|line| line.to_str().is_ok_and(|line| line.contains("text/html"))),
    }
}
