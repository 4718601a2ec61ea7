//! What a person gets instead of a bare refusal. A browser is redirected to the login and back. A
//! form cannot be carried along, so the response to one is a page that says what to do.

use http::{Method, StatusCode, header};

use super::authenticate::Unauthenticated;
use super::guard::{Access, Denied};
use super::matched::{Matched, Stopped};
use super::origin::{is_navigation, own_referer};
use super::refusal::Refusal;
use super::route::{Destination, Route, Segment};
use super::scheme::Scheme;
use super::snapshot::Snapshot;
use super::step_up::Insufficient;
use super::target::same_authority;
use super::token_names::has_own_cookie;
use crate::identity::pages::{self, Asked, Unsent, Why};
use crate::identity::session::{PASSWORD_ACR, SECOND_FACTOR_ACR};
use crate::identity::{Compat, Mount, Policy, cookie, return_to};

/// Returns the refusal of a request, or what a person gets instead: a redirect to the login, or a
/// page with the same status.
///
/// Only navigations are redirected, and only where cookies are read and the host has a login. A
/// live session would have been renewed before, so a login is what is left.
pub(super) fn redirect_or_explain(
    stopped: Stopped<'_>,
    snapshot: &Snapshot,
    request_id: &str,
) -> Refusal {
    let Stopped { matched, refusal } = stopped;
    let places = matched.access().guard.token_from;
    let destination = &matched.route().destination;
    if !places.cookie && !places.basic && !matches!(destination, Destination::Identity(_)) {
        // The route is for programs.
        return refusal;
    }
    let asks_for_password =
        refusal.status() == StatusCode::UNAUTHORIZED && places.basic && !is_browsing(&matched);
    if asks_for_password {
        return Refusal::AskForPassword(Box::new(refusal));
    }
    match destination {
        Destination::Upstream(_) | Destination::Redirect(_)
            if asks_for_page(&matched.parts().method) =>
        {
            redirect(snapshot, &matched, refusal)
        }
        Destination::Upstream(_) | Destination::Redirect(_) => {
            explain_unsent_form(snapshot, &matched, refusal, request_id)
        }
        Destination::External if asks_for_page(&matched.parts().method) => {
            redirect_through_proxy(snapshot, &matched, refusal)
        }
        Destination::External => refusal,
        Destination::Identity(mount) => {
            let needs_caller = matched.access().guard.access == Access::Authenticated;
            let refusal = if needs_caller && asks_for_page(&matched.parts().method) {
                redirect(snapshot, &matched, refusal)
            } else {
                refusal
            };
            match &snapshot.identity {
                Some(policy) => {
                    let asked = asked_by(&matched);
                    for_client(asked.as_ref(), policy, mount, refusal, request_id)
                }
                None => refusal,
            }
        }
    }
}

fn redirect(snapshot: &Snapshot, matched: &Matched<'_>, refusal: Refusal) -> Refusal {
    let Some(login) = login_for(snapshot, matched, &refusal) else { return refusal };
    let path = matched.target().sent();
    let location = login.after(&refusal, path.as_str());
    let is_over = again(&refusal).is_none();
    let cookies =
        if is_over && has_own_cookie(&matched.parts().headers, &snapshot.rules.token_names) {
            cookie::clear(login.policy).to_vec()
        } else {
            Vec::new()
        };
    Refusal::Redirect {
        status: StatusCode::SEE_OTHER,
        location,
        cookies,
        refusal: Box::new(refusal),
    }
}

/// Redirects a browser whose request another proxy asked about: to the login at the issuer's own
/// URL, which another listener serves.
fn redirect_through_proxy(snapshot: &Snapshot, matched: &Matched<'_>, refusal: Refusal) -> Refusal {
    let Some(policy) = &snapshot.identity else { return refusal };
    if !leads_to_login(snapshot, matched, &refusal) {
        return refusal;
    }
    // The cookie of another host's login is sent with requests to this one only if they share it.
    let origin = if is_on_issuers_origin(snapshot, matched) {
        Some(String::new())
    } else {
        let is_https = matched.client().scheme() == Scheme::Https;
        policy.sites.origin(matched.target().host()).filter(|_| is_https)
    };
    let Some(origin) = origin else { return refusal };
    let login = LoginPage::of_issuer(policy, origin);
    let path = matched.target().sent();
    let location = login.after(&refusal, path.as_str());
    // The proxy would lose cookies that are set here.
    let cookies = Vec::new();
    Refusal::Redirect { status: StatusCode::FOUND, location, cookies, refusal: Box::new(refusal) }
}

/// Whether a request is for the origin of the built-in issuer's pages.
fn is_on_issuers_origin(snapshot: &Snapshot, matched: &Matched<'_>) -> bool {
    let Some(own) = &snapshot.rules.token_names.issuer else { return false };
    let asked = matched.target().authority().as_bytes();
    own.scheme == matched.client().scheme()
        && same_authority(own.authority.as_bytes(), asked, own.scheme == Scheme::Https)
}

/// If a person sends a form to an application, shows a page: where to log in meanwhile, and that
/// their input is not lost. A redirect would lose it.
fn explain_unsent_form(
    snapshot: &Snapshot,
    matched: &Matched<'_>,
    refusal: Refusal,
    request_id: &str,
) -> Refusal {
    let Some(login) = login_for(snapshot, matched, &refusal) else { return refusal };
    // Not back to the target of the form: it may accept nothing but forms.
    let (parts, names) = (matched.parts(), &snapshot.rules.token_names);
    let form = own_referer(&parts.headers, matched.target(), matched.client(), names);
    let back = form.map_or_else(|| home_of(matched.route()), str::to_owned);
    let languages =
        parts.headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let unsent = Unsent {
        reason: refusal.reason(),
        who: again(&refusal).and_then(|lacks| lacks.who.as_deref()),
        login: login.after(&refusal, &back),
        request_id,
        languages,
    };
    let page = pages::unsent(&unsent, login.policy, &login.mount);
    Refusal::Page { page, refusal: Box::new(refusal) }
}

/// A login page, and where it leads back to.
struct LoginPage<'a> {
    policy: &'a Policy,
    mount: Mount,
    /// The origin of the requested page, if it is not that of the login.
    origin: String,
}

impl<'a> LoginPage<'a> {
    /// The page at the issuer's own URL, which leads back to this origin; empty: to its own.
    fn of_issuer(policy: &'a Policy, origin: String) -> Self {
        Self { policy, mount: Mount::at_issuer(&policy.issuer), origin }
    }

    /// The URL of a login that is strong and recent enough, which leads back to this path: at the
    /// provider that the caller came from, or at the page.
    fn again(&self, lacks: &Insufficient, path: &str) -> String {
        let back = format!("{}{path}", self.origin);
        let by_password = |acr: &String| [PASSWORD_ACR, SECOND_FACTOR_ACR].contains(&&**acr);
        let wants_provider = !self.policy.password_login
            || (!lacks.wanted.acr.is_empty() && !lacks.wanted.acr.iter().any(by_password));
        let of_caller = lacks.idp.as_deref().and_then(|idp| self.policy.provider(idp));
        let any = self.policy.providers.first().filter(|_| wants_provider);
        let Some(provider) = of_caller.or(any) else {
            return return_to::remembering(&self.mount.path("/login?done=step_up"), &back);
        };
        let mut there = self.mount.path(&format!("/login/{}", provider.settings().name));
        let parameters = lacks.wanted.parameters();
        if !parameters.is_empty() {
            let mut query = form_urlencoded::Serializer::new(String::new());
            there = format!("{there}?{}", query.extend_pairs(&parameters).finish());
        }
        return_to::remembering(&there, &back)
    }

    /// The URL at which a person gets past this refusal, which leads back to this path.
    fn after(&self, refusal: &Refusal, path: &str) -> String {
        match again(refusal) {
            Some(lacks) => self.again(lacks, path),
            None => self.and_back_to(path),
        }
    }

    /// The URL of the page, which leads back to this path.
    fn and_back_to(&self, path: &str) -> String {
        return_to::remembering(&self.mount.path("/login"), &format!("{}{path}", self.origin))
    }
}

/// What a caller lacks whose session continues when they log in again.
fn again(refusal: &Refusal) -> Option<&Insufficient> {
    match refusal {
        Refusal::Denied(Denied::StepUp(lacks))
        | Refusal::Unauthenticated(Unauthenticated::MustLogInAgain(lacks)) => Some(lacks),
        _ => None,
    }
}

/// The path at which an application probably begins.
fn home_of(route: &Route) -> String {
    let segments = route.pattern.segments.iter().map_while(|segment| match segment {
        Segment::Literal(text) => Some(&**text),
        Segment::Any => None,
    });
    if route.pattern.subtree { Mount::new(segments).path("/") } else { "/".to_owned() }
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

/// A refusal as the client of an endpoint reads it: a page of the same status for a person, and for a
/// program the names of members that the configuration gives it. A redirect is left alone.
pub(super) fn for_client(
    asked: Option<&Asked>,
    policy: &Policy,
    mount: &Mount,
    refusal: Refusal,
    request_id: &str,
) -> Refusal {
    if matches!(refusal, Refusal::Redirect { .. }) {
        return refusal;
    }
    let Some(asked) = asked else {
        return match policy.compat {
            Compat::None => refusal,
            Compat::Express => Refusal::ForExpress(Box::new(refusal)),
        };
    };
    let why = Why {
        reason: refusal.reason(),
        fault: refusal.request_fault(),
        rejected: refusal.rejected_password(),
        retry_after: refusal.retry_after(),
        enrolment: refusal.enrolment(),
        ticket: refusal.ticket(),
        back: refusal.back(),
        request_id,
    };
    let page = pages::refused(asked, &why, policy, mount);
    Refusal::Page { page, refusal: Box::new(refusal) }
}

/// Whether a method requests a page and can be repeated.
fn asks_for_page(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Where an unauthenticated person can log in, on the host that they asked for.
fn login_for<'a>(
    snapshot: &'a Snapshot,
    matched: &Matched<'_>,
    refusal: &Refusal,
) -> Option<LoginPage<'a>> {
    if !leads_to_login(snapshot, matched, refusal) {
        return None;
    }
    let (policy, host) = (snapshot.identity.as_deref()?, matched.target().host());
    Some(match snapshot.routes.mount(host) {
        Some(mount) => LoginPage { policy, mount: mount.clone(), origin: String::new() },
        None => LoginPage::of_issuer(policy, policy.sites.origin(host)?),
    })
}

/// Whether a person can log in to pass.
fn leads_to_login(snapshot: &Snapshot, matched: &Matched<'_>, refusal: &Refusal) -> bool {
    if again(refusal).is_some() {
        let headers = &matched.parts().headers;
        return matched.access().guard.token_from.cookie && is_navigation(headers);
    }
    let Refusal::Unauthenticated(unauthenticated) = refusal else { return false };
    let headers = &matched.parts().headers;
    let places = matched.access().guard.token_from;
    if !places.cookie || !is_navigation(headers) {
        return false;
    }
    // A client that logs in with the field needs the status, not a page. If the field is for the
    // application, it says nothing about the login here.
    if places.reads_authorization() && headers.contains_key(header::AUTHORIZATION) {
        return false;
    }
    match unauthenticated {
        Unauthenticated::Missing => true,
        Unauthenticated::Invalid(_) => has_own_cookie(headers, &snapshot.rules.token_names),
        _ => false,
    }
}

/// Whether a browser sent the request that would ask the person for a user name and a password. It
/// must not do that where people log in on a page, not even for a script of the application.
fn is_browsing(matched: &Matched<'_>) -> bool {
    let headers = &matched.parts().headers;
    let has_login = matched.access().guard.token_from.cookie;
    is_navigation(headers) || (has_login && headers.contains_key("sec-fetch-mode"))
}
