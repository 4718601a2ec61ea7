//! A login that failed, carried in a cookie to the page that a browser shows instead of the response
//! to the form: Back would ask a person to send the form again.

use form_urlencoded::Serializer;
use http::{HeaderMap, HeaderValue, Method, header};

use super::forms::{Filled, Page};
use super::words::Why;
use super::{Asked, Sheet, refused};
use crate::identity::cookie::{AGAIN, only};
use crate::identity::{Mount, Policy};
use crate::reason::Reason;

/// Seconds within which the browser has to request the page.
const LIFETIME: u64 = 60;

/// The longest value that is read, in bytes: more than an address and a ticket.
const LONGEST: usize = 2048;

/// The page that a browser shows instead of the response to a login that failed.
#[derive(Debug)]
pub(super) struct Again {
    /// `Refresh`: at once, which takes the place of the response in the history of the browser.
    pub(super) refresh: HeaderValue,
    /// `Set-Cookie`: what the page shows.
    pub(super) cookie: HeaderValue,
}

impl Again {
    /// `None`: the response is the page.
    ///
    /// Browsers say where a request comes from over https and to localhost only, which is also
    /// where they keep the cookie.
    pub(super) fn for_failed(
        asked: &Asked,
        why: &Why<'_>,
        policy: &Policy,
        mount: &Mount,
    ) -> Option<Self> {
        let is_login = matches!(asked.page, Page::Login | Page::Code);
        if !is_login || !asked.is_form_of_browser || !can_be_corrected(why.reason) {
            return None;
        }
        let Filled { email, keep, ticket, .. } = &asked.filled;
        let ticket = why.ticket.map_or(ticket.as_str(), |ticket| ticket.expose());
        let mut pairs = Serializer::new(String::new());
        pairs.append_pair("reason", why.reason.as_str()).append_pair("email", email);
        if *keep {
            pairs.append_pair("keep", "true");
        }
        if let Some(wait) = why.retry_after {
            pairs.append_pair("wait", &wait.to_string());
        }
        if !ticket.is_empty() {
            pairs.append_pair("ticket", ticket);
        }
        let value = pairs.finish();
        let location = asked.filled.onwards(&mount.path("/login"), policy);
        Some(Self {
            refresh: HeaderValue::try_from(format!("0; url={location}")).ok()?,
            cookie: cookie(&value, LIFETIME).filter(|_| value.len() <= LONGEST)?,
        })
    }
}

/// The page for the login that failed just before, if the cookie of a request says so, and the
/// cookie that forgets it.
pub fn shown_again(
    headers: &HeaderMap,
    filled: &Filled,
    policy: &Policy,
    mount: &Mount,
) -> Option<(Sheet, HeaderValue)> {
    let value = only(headers, AGAIN).filter(|value| value.len() <= LONGEST)?;
    let failed = Filled::from_form(value.as_bytes(), filled.texts);
    let mut reason = None;
    let mut retry_after = None;
    for (name, value) in form_urlencoded::parse(value.as_bytes()) {
        match &*name {
            "reason" => reason = Reason::ALL.into_iter().find(|known| known.as_str() == value),
            "wait" => retry_after = value.parse().ok(),
            _ => {}
        }
    }
    let reason = reason.filter(|reason| can_be_corrected(*reason))?;
    let page = if failed.ticket.is_empty() { Page::Login } else { Page::Code };
    let filled = Filled { return_to: filled.return_to.clone(), ..failed };
    let languages = headers.get(header::ACCEPT_LANGUAGE).cloned();
    let asked = Asked { page, filled, languages, is_form_of_browser: false, loses_logins: false };
    let why = Why {
        reason,
        fault: None,
        rejected: None,
        retry_after,
        enrolment: None,
        ticket: None,
        back: None,
        request_id: "",
    };
    Some((refused(&asked, &why, policy, mount), cookie("", 0)?))
}

/// Whether the method and the fields are those of a form that a browser sends.
pub(super) fn is_form_of_browser(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::POST && headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
}

/// Whether the same person can do something about it on the login page.
const fn can_be_corrected(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::LoginFailed
            | Reason::CodeRequired
            | Reason::EmailUnverified
            | Reason::RateLimited
            | Reason::Overloaded
            | Reason::StoreUnavailable
    )
}

/// With `__Host-`, neither an application nor another host of the domain can plant one.
fn cookie(value: &str, lifetime: u64) -> Option<HeaderValue> {
    let text =
        format!("{AGAIN}={value}; Path=/; Max-Age={lifetime}; HttpOnly; Secure; SameSite=Lax");
    HeaderValue::try_from(text).ok()
}
