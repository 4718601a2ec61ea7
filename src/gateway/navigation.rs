//! What a person gets instead of a bare refusal. A browser is redirected to the login and back. A
//! form cannot be carried along, so the response to one is a page that says what to do.

use http::{HeaderMap, Method, header};

use super::authenticate::{Unauthenticated, has_own_cookie};
use super::guard::Access;
use super::matched::{Matched, Stopped};
use super::origin::own_referer;
use super::refusal::Refusal;
use super::route::{Destination, Route, Segment};
use super::snapshot::Snapshot;
use crate::identity::pages::{self, Asked, Why};
use crate::identity::{Mount, Policy, cookie, return_to};

/// Returns the refusal of a request, or what a person gets instead: a redirect to the login, or a
/// page with the same status.
///
/// Only navigations are redirected, and only where cookies are read and the host has a login. A
/// live session would have been renewed before, so a login is what is left.
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
    let Some((mount, policy)) = login_for(snapshot, matched, &refusal) else { return refusal };
    let location = return_to::remembering(&mount.path("/login"), matched.target().sent().as_str());
    let cookies = if has_own_cookie(&matched.parts().headers, &snapshot.rules.token_names) {
        cookie::clear(policy).to_vec()
    } else {
        Vec::new()
    };
    Refusal::Redirect { location, cookies, refusal: Box::new(refusal) }
}

/// If a person sends a form to an application, shows a page: where to log in meanwhile, and that
/// their input is not lost. A redirect would lose it.
fn explain_unsent_form(snapshot: &Snapshot, matched: &Matched<'_>, refusal: Refusal) -> Refusal {
    let Some((mount, policy)) = login_for(snapshot, matched, &refusal) else { return refusal };
    // Not back to the target of the form: it may accept nothing but forms.
    let (parts, names) = (matched.parts(), &snapshot.rules.token_names);
    let form = own_referer(&parts.headers, matched.target(), matched.client(), names);
    let back = form.map_or_else(|| home_of(matched.route()), str::to_owned);
    let login = return_to::remembering(&mount.path("/login"), &back);
    Refusal::Page { page: pages::unsent(login, policy, mount), refusal: Box::new(refusal) }
}

/// The path at which an application probably begins.
fn home_of(route: &Route) -> String {
    let segments = route.pattern.segments.iter().map_while(|segment| match segment {
        Segment::Literal(text) => Some(&**text),
        Segment::Any => None,
    });
    if route.pattern.subtree { Mount::new(segments).path("/") } else { "/".to_owned() }
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

/// Where an unauthenticated person can log in.
fn login_for<'a>(
    snapshot: &'a Snapshot,
    matched: &Matched<'_>,
    refusal: &Refusal,
) -> Option<(&'a Mount, &'a Policy)> {
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
    match unauthenticated {
        Unauthenticated::Missing => {}
        Unauthenticated::Invalid(_) if has_own_cookie(headers, &snapshot.rules.token_names) => {}
        _ => return None,
    }
    Some((snapshot.routes.mount(target.host())?, snapshot.identity.as_deref()?))
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
