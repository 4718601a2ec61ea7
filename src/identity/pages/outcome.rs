//! The page for a request to an application that was refused or that failed.

use askama::Template;

use super::forms::Link;
use super::words::Complaint;
use super::{Sheet, Site, fine_print, rendered};
use crate::identity::texts::{Language, Outcome, Texts, filled, preferred};
use crate::identity::{Brand, Mount, Policy, return_to};
use crate::reason::Reason;

/// What happened to the request of a person.
#[derive(Debug)]
pub struct Happened<'a> {
    /// The reason.
    pub reason: Reason,
    /// Whole seconds until a retry makes sense.
    pub retry_after: Option<u64>,
    /// The path and query of the request, if it can be repeated.
    pub again: Option<&'a str>,
    /// The path of the page that the person came from, if it is one of this site.
    pub from: Option<&'a str>,
    /// Who is logged in.
    pub caller: Option<&'a str>,
    /// The id of the request.
    pub request_id: &'a str,
    /// `Accept-Language`.
    pub languages: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "pages/outcome.html")]
struct OutcomePage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    text: String,
    check: Option<&'a str>,
    who: Option<String>,
    fine_print: String,
    links: Vec<Link>,
}

/// The page that says what happened, and what to do. `policy`: of the built-in issuer, if there is
/// one. `mount`: where the host has it; without, the page offers no login and contains its style
/// sheet.
pub fn happened(happened: &Happened<'_>, policy: Option<&Policy>, mount: Option<&Mount>) -> Sheet {
    let every = Language::ALL.map(|(_, language)| language);
    let offered = policy.map_or(&every[..], |policy| &policy.languages);
    let issuer = policy.zip(mount);
    let brand = policy.map_or(Brand::unnamed(), |policy| &policy.brand);
    let texts = preferred(offered, happened.languages).texts();
    let words = &texts.outcome;
    let Outcome { title, text } = described(happened.reason, texts);
    let wait = texts.wait(happened.retry_after.unwrap_or(1));
    let who = happened.caller.map(|who| filled(&words.you_are, &[("who", who)]));
    let link = |text: &'static str, path: &str| Link { before: None, text, path: path.to_owned() };
    let mut links = Vec::new();
    if let (Some(path), true) = (happened.again, is_temporary(happened.reason)) {
        links.push(link(&words.again, path));
    }
    if let Some((policy, mount)) =
        issuer.filter(|_| helps_to_log_in(happened.reason, who.is_some()))
    {
        let login = mount.path("/login");
        let login =
            happened.again.map_or(login.clone(), |path| return_to::remembering(&login, path));
        links.push(match (&who, happened.reason) {
            (None, _) => link(&words.log_in, &login),
            // The only provider knows the person, and would log them in again as who they are.
            (Some(_), _) if policy.only_provider().is_some() => {
                link(&texts.logout.here, &mount.path("/logout"))
            }
            (Some(_), Reason::LoginMethod) => link(&words.other_way, &login),
            (Some(_), _) => link(&words.other_login, &login),
        });
    }
    links.push(link(&words.back, return_to::local(happened.from)));
    let may_have_arrived = happened.again.is_none() && is_sent_on(happened.reason);
    let page = rendered(&OutcomePage {
        site: match issuer {
            Some((policy, mount)) => Site::new(policy, mount, texts),
            None => Site::elsewhere(brand, texts),
        },
        title,
        notice: None,
        complaints: Vec::new(),
        text: filled(text, &[("wait", &wait)]),
        check: may_have_arrived.then_some(words.check.as_str()),
        who,
        fine_print: fine_print(happened.reason, happened.request_id, texts),
        links,
    });
    if issuer.is_some() { page } else { page.styled_by(brand) }
}

/// Whether another login may make a difference.
fn helps_to_log_in(reason: Reason, is_logged_in: bool) -> bool {
    if reason == Reason::OriginForeign {
        // A page of another site sent it with their login.
        false
    } else if is_logged_in {
        matches!(reason.status().as_u16(), 401 | 403)
    } else {
        !is_temporary(reason)
    }
}

/// Whether the application may have received some or all of the request.
fn is_sent_on(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::UpstreamUnreachable
            | Reason::UpstreamFailed
            | Reason::UpstreamTimeout
            | Reason::Draining
    )
}

/// Whether the same request may succeed later.
fn is_temporary(reason: Reason) -> bool {
    matches!(reason.status().as_u16(), 429 | 502..=504)
}

fn described(reason: Reason, texts: &'static Texts) -> &'static Outcome {
    let texts = &texts.outcome;
    match reason {
        Reason::TargetAmbiguous => &texts.target,
        Reason::CredentialsMalformed | Reason::CredentialsAmbiguous => &texts.login,
        Reason::OriginForeign => &texts.foreign,
        Reason::LoginMethod => &texts.way,
        Reason::StepUpRequired => &texts.step_up,
        Reason::RouteNotFound => &texts.not_found,
        Reason::MethodNotAllowed => &texts.method,
        Reason::BodyTooLarge | Reason::HeadersTooLarge => &texts.too_large,
        Reason::RateLimited => &texts.limited,
        Reason::UpstreamUnreachable => &texts.unreachable,
        Reason::UpstreamFailed => &texts.failed,
        Reason::UpstreamTimeout => &texts.timeout,
        Reason::Overloaded => &texts.overloaded,
        Reason::Draining => &texts.cut_off,
        other => match other.status().as_u16() {
            401 => &texts.logged_out,
            403 => &texts.denied,
            503 => &texts.unavailable,
            _ => &texts.request,
        },
    }
}
