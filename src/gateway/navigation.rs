//! What a person gets instead of a bare refusal. A browser is redirected to the login, or through a
//! renewal, and back. A form cannot be carried along, so the response to one is a page that says
//! what to do.

use http::{HeaderMap, Method, header};

use super::authenticate::{Unauthenticated, has_token_cookie};
use super::guard::Access;
use super::matched::{Matched, Stopped};
use super::refusal::Refusal;
use super::route::Destination;
use super::snapshot::Snapshot;
use crate::identity::pages::{self, Asked, Why};
use crate::identity::{Mount, Policy, return_to};
use crate::token::InvalidToken;

/// Returns the refusal of a request, or what a person gets instead (CONTRACT §2, rule 10): a
/// redirect to the login, or a page with the same status.
///
/// Only navigations are redirected, and only where cookies are read and the host has a login. A
/// script gets its 401 and renews with `POST /refresh`.
pub(super) fn redirect_or_explain(stopped: Stopped<'_>, snapshot: &Snapshot) -> Refusal {
    let Stopped { matched, refusal } = stopped;
    match &matched.route().destination {
        Destination::Upstream(_) if asks_for_page(&matched.parts().method) => {
            redirect(snapshot, &matched, refusal)
        }
        Destination::Upstream(_) => explain_unsent_form(snapshot, &matched, refusal),
        Destination::Identity(mount) => {
            let needs_caller = matched.access().guard.access == Access::Authenticated;
            let refusal = if needs_caller && asks_for_page(&matched.parts().method) {
                redirect(snapshot, &matched, refusal)
            } else {
                refusal
            };
            explain_at_endpoint(snapshot, &matched, mount, refusal)
        }
    }
}

fn redirect(snapshot: &Snapshot, matched: &Matched<'_>, refusal: Refusal) -> Refusal {
    let Some((mount, page)) = login_page_for(snapshot, matched, &refusal) else { return refusal };
    let location = return_to::remembering(&mount.path(page), matched.target().sent().as_str());
    Refusal::Redirect { location, refusal: Box::new(refusal) }
}

/// If a person sends a form to an application, shows a page: where to log in meanwhile, and that
/// their input is not lost. A redirect would lose it.
fn explain_unsent_form(snapshot: &Snapshot, matched: &Matched<'_>, refusal: Refusal) -> Refusal {
    let Some(policy) = &snapshot.identity else { return refusal };
    let Some((mount, page)) = login_page_for(snapshot, matched, &refusal) else { return refusal };
    // Not back to the target of the form: it may accept nothing but forms.
    let page = pages::unsent(mount.path(page), policy, mount);
    Refusal::Page { page, refusal: Box::new(refusal) }
}

/// If a person sent the request to an endpoint of the built-in issuer, shows its page again with
/// the error.
fn explain_at_endpoint(
    snapshot: &Snapshot,
    matched: &Matched<'_>,
    mount: &Mount,
    refusal: Refusal,
) -> Refusal {
    match (asked_by(matched), &snapshot.identity) {
        (Some(asked), Some(policy)) => as_page(&asked, policy, mount, refusal),
        _ => refusal,
    }
}

/// What a person requests from an endpoint of the built-in issuer; `None`: the client is a program.
pub(super) fn asked_by(matched: &Matched<'_>) -> Option<Asked> {
    let (parts, query) = (matched.parts(), matched.target().query());
    let mut asked = Asked::by(&parts.method, &parts.headers, query)?;
    if let Some(Ok(endpoint)) = matched.endpoint() {
        asked.reached(endpoint.endpoint());
    }
    Some(asked)
}

/// Turns a refusal into a page of the same status. A redirect is left alone.
pub(super) fn as_page(asked: &Asked, policy: &Policy, mount: &Mount, refusal: Refusal) -> Refusal {
    if matches!(refusal, Refusal::Redirect { .. }) {
        return refusal;
    }
    let detail = refusal.detail();
    let why = Why {
        reason: refusal.reason(),
        detail: detail.as_deref(),
        retry_after: refusal.retry_after(),
        enrolment: refusal.enrolment(),
    };
    let page = pages::refused(asked, &why, policy, mount);
    Refusal::Page { page, refusal: Box::new(refusal) }
}

/// Whether a method requests a page and can be repeated.
fn asks_for_page(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The page where an unauthenticated person can log in.
fn login_page_for<'a>(
    snapshot: &'a Snapshot,
    matched: &Matched<'_>,
    refusal: &Refusal,
) -> Option<(&'a Mount, &'static str)> {
    let Refusal::Unauthenticated(unauthenticated) = refusal else { return None };
    let (headers, target) = (&matched.parts().headers, matched.target());
    let places = matched.access().guard.token_from;
    // A client that logs in with the field needs the status, not a page. If the field is for the
    // application, it says nothing about the login here.
    let logs_in_otherwise =
        places.reads_authorization() && headers.contains_key(header::AUTHORIZATION);
    if !places.cookie || !is_navigation(headers) || logs_in_otherwise {
        return None;
    }
    let mount = snapshot.routes.mount(target.host())?;
    let has_cookie = has_token_cookie(headers, &snapshot.rules.token_names);
    let page = match unauthenticated {
        Unauthenticated::Missing => "/login",
        // A token that was valid can be renewed, even after its key was removed as compromised. If
        // it was revoked together with its session, the renewal leads to the login.
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

/// Whether a person navigates to another page. Browsers say so over https and to localhost;
/// elsewhere, they only ask for HTML.
pub(super) fn is_navigation(headers: &HeaderMap) -> bool {
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|line| line.to_str().is_ok_and(|line| line.contains("text/html"))),
    }
}
