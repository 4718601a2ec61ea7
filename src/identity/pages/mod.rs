//! The login pages. They work without scripts: every form is a POST to the endpoint that programs
//! use as well. The response is a redirect, or the form again with an error.
//!
//! The content security policy of a page permits nothing but the page itself, its style sheet and
//! its logo, and forms that are sent here or, after a login, on to the application. A rejected form
//! shows again what was typed, but never passwords or codes.

mod again;
pub mod colour;
mod echo;
mod forms;
mod outcome;
pub(super) mod overview;
mod table;
mod unsent;
mod words;

use askama::Template;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use self::again::Again;
pub use self::again::shown_again;
pub use self::echo::{Echoed, echo};
pub(super) use self::forms::{Content, Field, Form, Link, Way};
pub use self::forms::{Filled, Page};
pub use self::outcome::{Happened, happened};
pub use self::table::ENDPOINTS;
pub use self::unsent::{Unsent, unsent};
pub use self::words::Why;
use self::words::complaints;
pub(super) use self::words::{Complaint, no_code, notice, wrong_code};
use super::actions::second_factor;
use super::endpoints::Endpoint;
use super::request::{is_form, is_sent_over_http};
use super::texts::{Language, Texts, filled, preferred};
use super::{Brand, Mount, Policy};
use crate::reason::Reason;

/// A rendered page.
#[derive(Debug)]
pub struct Sheet {
    html: Bytes,
    /// Whether a form on it leads to the application.
    leads_on: bool,
    /// The content security policy, if the page contains its style sheet.
    with_style: Option<HeaderValue>,
    /// Where a browser shows it instead, if it is the response to a login.
    again: Option<Box<Again>>,
}

/// The frame of each page.
pub(super) struct Site<'a> {
    pub(super) name: &'a str,
    pub(super) logo: Option<String>,
    /// The URLs of icon and style sheet; `None` on a host that does not serve them.
    pub(super) files: Option<(String, String)>,
    /// The style sheet, for a page on such a host.
    pub(super) style: &'a str,
    pub(super) texts: &'static Texts,
}

impl<'a> Site<'a> {
    pub(super) fn new(policy: &'a Policy, mount: &Mount, texts: &'static Texts) -> Self {
        let brand = &policy.brand;
        let versioned = |path: &str, version: &str| format!("{}?v={version}", mount.path(path));
        Self {
            name: &brand.name,
            logo: brand.logo.as_ref().map(|logo| versioned(LOGO, &logo.version)),
            files: Some((
                versioned(ICON, &brand.icon.version),
                versioned(STYLE, &brand.style.version),
            )),
            style: "",
            texts,
        }
    }

    /// The frame of a page on a host without the built-in issuer.
    pub(super) fn elsewhere(brand: &'a Brand, texts: &'static Texts) -> Self {
        // The style sheet is our template, filled in with colours: ASCII.
        let style = std::str::from_utf8(&brand.style.bytes).unwrap_or_default();
        Self { name: &brand.name, logo: None, files: None, style, texts }
    }
}

#[derive(Template)]
#[template(path = "pages/form.html")]
struct FormPage<'a> {
    site: Site<'a>,
    title: &'a str,
    lead: Option<String>,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    ways: Vec<Way>,
    forms: Vec<Form>,
    links: Vec<Link>,
    /// The reason and the id of a request that was refused.
    fine_print: Option<String>,
}

/// Renders a requested page.
pub fn show(page: Page, filled: &Filled, policy: &Policy, mount: &Mount) -> Sheet {
    let content = page.content(filled, policy, mount);
    let notice = filled.done.as_deref().and_then(|done| notice(done, filled.texts));
    form_page(content, notice, (Vec::new(), None), filled.texts, policy, mount)
}

/// What a person requested, as far as it is known. A refused request shows the same page again.
#[derive(Debug)]
pub struct Asked {
    page: Page,
    filled: Filled,
    /// `Accept-Language`.
    languages: Option<HeaderValue>,
    /// Whether a browser sent a form, and says so.
    is_form_of_browser: bool,
    /// Whether the browser keeps no login, because it came by http.
    loses_logins: bool,
}

impl Asked {
    /// `None`: a program, not a person.
    pub fn by(method: &Method, headers: &HeaderMap, query: Option<&str>) -> Option<Self> {
        let is_person =
            wanted(headers) && (matches!(*method, Method::GET | Method::HEAD) || is_form(headers));
        is_person.then(|| Self {
            page: Page::Other,
            filled: Filled::from_query(query, Language::English.texts()),
            languages: headers.get(header::ACCEPT_LANGUAGE).cloned(),
            is_form_of_browser: again::is_form_of_browser(method, headers),
            loses_logins: is_sent_over_http(headers),
        })
    }

    /// Records the endpoint of the request.
    pub fn reached(&mut self, endpoint: &Endpoint) {
        self.page = Page::for_endpoint(endpoint);
    }

    /// Records the values of its form.
    pub fn filled(&mut self, form: &[u8]) {
        if !form.is_empty() {
            self.filled = Filled::from_form(form, self.filled.texts);
        }
    }
}

/// The page for a refused request: the same page with an error.
pub fn refused(asked: &Asked, why: &Why<'_>, policy: &Policy, mount: &Mount) -> Sheet {
    let Asked { page, filled, languages, .. } = asked;
    let languages = languages.as_ref().and_then(|value| value.to_str().ok());
    let texts = preferred(&policy.languages, languages).texts();
    let filled = &Filled {
        texts,
        return_to: why.back.unwrap_or(&filled.return_to).to_owned(),
        ..filled.clone()
    };
    if let Some(enrolment) = why.enrolment {
        return second_factor::enrolment(enrolment, Some(why.reason), texts, policy, mount);
    }
    let wrong = if why.reason == Reason::OriginForeign && asked.loses_logins {
        vec![Complaint::whole(&texts.login.loses_logins)]
    } else {
        complaints(*page, why, filled)
    };
    let (page, filled) = match why.ticket {
        Some(ticket) => {
            (&Page::Code, &Filled { ticket: ticket.expose().to_owned(), ..filled.clone() })
        }
        None => (page, filled),
    };
    let mut content = if words::is_final(*page, why) {
        page.without_form(why, filled, policy, mount)
    } else {
        page.content(filled, policy, mount)
    };
    content.point_at(&wrong);
    if why.reason == Reason::EmailUnverified {
        content.forms.push(Form::resend(filled, policy, mount));
    }
    // With a form, the page says what to change.
    let fine_print =
        content.forms.is_empty().then(|| fine_print(why.reason, why.request_id, texts));
    Sheet {
        again: Again::for_failed(asked, why, policy, mount).map(Box::new),
        ..form_page(content, None, (wrong, fine_print), texts, policy, mount)
    }
}

fn form_page(
    content: Content,
    notice: Option<&str>,
    (complaints, fine_print): (Vec<Complaint>, Option<String>),
    texts: &'static Texts,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    let Content { title, lead, ways, forms, links } = content;
    let leads_on = forms.iter().any(|form| form.leads_on);
    let page = FormPage {
        site: Site::new(policy, mount, texts),
        title,
        lead,
        notice,
        complaints,
        ways,
        forms,
        links,
        fine_print,
    };
    Sheet { leads_on, ..rendered(&page) }
}

/// What an operator asks for: the reason and the id of the request.
fn fine_print(reason: Reason, request_id: &str, texts: &Texts) -> String {
    let values = [("reason", reason.as_str()), ("request", request_id)];
    filled(&texts.outcome.fine_print, &values)
}

/// Rendering into a string cannot fail. If it did, an empty page could not be mistaken for a login.
pub(super) fn rendered<T: Template>(page: &T) -> Sheet {
    Sheet {
        html: page.render().unwrap_or_default().into(),
        leads_on: false,
        with_style: None,
        again: None,
    }
}

/// Whether the response is for a person: the client accepts HTML.
pub fn wanted(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|range| {
        let media = range.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case("text/html")
            || media.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

impl Sheet {
    /// The page with the content security policy that permits the style sheet in it.
    fn styled_by(self, brand: &Brand) -> Self {
        Self { with_style: Some(brand.inline_policy.clone()), ..self }
    }

    /// Lets its forms lead to another site: a logout goes on to the provider of the login.
    pub(super) fn leading_on(self, leads_on: bool) -> Self {
        Self { leads_on: self.leads_on || leads_on, ..self }
    }

    /// Sets the header fields of a response with this page, and returns its body.
    pub fn answered_with(self, headers: &mut HeaderMap) -> Bytes {
        let fields = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
            (
                header::CONTENT_SECURITY_POLICY,
                if self.leads_on { POLICY_LEADING_ON } else { POLICY },
            ),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // The URL of a page may contain a secret, so other sites learn only the host. With
            // `no-referrer`, browsers would send `Origin: null` with our own forms (Fetch §3.2), as
            // a page of another site might.
            (header::REFERRER_POLICY, "strict-origin"),
        ];
        for (name, value) in fields {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Some(policy) = self.with_style {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        if let Some(again) = self.again {
            headers.insert(header::REFRESH, again.refresh);
            headers.append(header::SET_COOKIE, again.cookie);
        }
        self.html
    }
}

/// Loads and runs only what is listed here.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The policy of a page whose form leads to the application, which may redirect anywhere. Chromium
/// and WebKit apply `form-action` to every redirect after a form (w3c/webappsec-csp, issue 8), so a
/// login would silently go nowhere. Little is lost: the form actions are ours, values from the
/// request are escaped, no script could add another form, and what was typed stays here, since a
/// browser follows our 303 with a GET.
const POLICY_LEADING_ON: &str =
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The path of the style sheet, below the mount.
pub const STYLE: &str = "/style.css";

/// The path of the logo, below the mount.
pub const LOGO: &str = "/logo";

/// The path of the icon, below the mount. Without it, browsers request `/favicon.ico`, which
/// belongs to the application.
pub const ICON: &str = "/icon";
