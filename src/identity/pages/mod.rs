//! The pages that people log in at. They work without scripts: every form is a POST to the endpoint
//! that programs use too, and is answered with a redirect, or with the form again and what is wrong
//! with it.
//!
//! What a page may do is said in its policy: nothing but show itself, its style sheet and its mark,
//! and send its forms here, or, after a login, go where the application leads. What was typed is
//! shown again where a form is refused, passwords and codes never.

pub mod colour;
mod forms;
mod table;
mod unsent;
mod words;

use askama::Template;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

pub(super) use self::forms::{Content, Field, Form, Link};
pub use self::forms::{Filled, Page};
pub use self::table::ENDPOINTS;
pub use self::unsent::unsent;
pub use self::words::Why;
use self::words::complaints;
pub(super) use self::words::{Complaint, no_code, notice, wrong_code};
use super::actions::second_factor;
use super::endpoints::Endpoint;
use super::request::is_form;
use super::{Mount, Policy};
use crate::reason::Reason;

/// A page, as it is sent.
#[derive(Debug)]
pub struct Sheet {
    html: Bytes,
    /// Whether a form on it leads on to the application.
    leads_on: bool,
}

/// What stands around each page.
pub(super) struct Site<'a> {
    pub(super) name: &'a str,
    pub(super) logo: Option<String>,
    pub(super) icon: String,
    pub(super) style: String,
}

impl<'a> Site<'a> {
    pub(super) fn new(policy: &'a Policy, mount: &Mount) -> Self {
        let brand = &policy.brand;
        let versioned = |path: &str, version: &str| format!("{}?v={version}", mount.path(path));
        Self {
            name: &brand.name,
            logo: brand.logo.as_ref().map(|logo| versioned(LOGO, &logo.version)),
            icon: versioned(ICON, &brand.icon.version),
            style: versioned(STYLE, &brand.style.version),
        }
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
    forms: Vec<Form>,
    links: Vec<Link>,
}

/// A page that somebody asks for.
pub fn show(page: Page, filled: &Filled, policy: &Policy, mount: &Mount) -> Sheet {
    let content = page.content(filled, policy, mount);
    let notice = filled.done.as_deref().and_then(notice);
    form_page(content, notice, Vec::new(), policy, mount)
}

/// What a person asked for, as far as it is known: where a request is refused, its page is shown
/// again.
#[derive(Debug)]
pub struct Asked {
    page: Page,
    filled: Filled,
}

impl Asked {
    /// `None`: no person asks, but a program.
    pub fn by(method: &Method, headers: &HeaderMap, query: Option<&str>) -> Option<Self> {
        let is_person =
            wanted(headers) && (matches!(*method, Method::GET | Method::HEAD) || is_form(headers));
        is_person.then(|| Self { page: Page::Other, filled: Filled::from_query(query) })
    }

    /// The request leads to this endpoint.
    pub fn reached(&mut self, endpoint: &Endpoint) {
        self.page = Page::for_endpoint(endpoint);
    }

    /// Its form is filled in like this.
    pub fn filled(&mut self, form: &[u8]) {
        if !form.is_empty() {
            self.filled = Filled::from_form(form);
        }
    }
}

/// The page of a request that was refused: itself again, with what is wrong.
pub fn refused(asked: &Asked, why: &Why<'_>, policy: &Policy, mount: &Mount) -> Sheet {
    let Asked { page, filled } = asked;
    if let Some(enrolment) = why.enrolment {
        return second_factor::enrolment(enrolment, Some(why.reason), policy, mount);
    }
    let wrong = complaints(*page, why, filled);
    let filled = Filled {
        with_code: filled.with_code || why.reason == Reason::CodeRequired,
        ..filled.clone()
    };
    let mut content = if words::is_final(*page, why) {
        page.without_form(why, policy, mount)
    } else {
        page.content(&filled, policy, mount)
    };
    content.point_at(&wrong);
    if why.reason == Reason::EmailUnverified {
        content.forms.push(Form::resend(&filled, mount));
    }
    // With the right password, nothing is wrong yet.
    let notice = (why.reason == Reason::CodeRequired)
        .then_some("Enter your password again, and a code besides.");
    form_page(content, notice, wrong, policy, mount)
}

fn form_page(
    content: Content,
    notice: Option<&str>,
    complaints: Vec<Complaint>,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    let Content { title, lead, forms, links } = content;
    let leads_on = forms.iter().any(|form| form.leads_on);
    let page =
        FormPage { site: Site::new(policy, mount), title, lead, notice, complaints, forms, links };
    Sheet { leads_on, ..rendered(&page) }
}

/// Writing a page into a string cannot fail; were it to, nobody would take an empty page for a
/// login.
pub(super) fn rendered<T: Template>(page: &T) -> Sheet {
    Sheet { html: page.render().unwrap_or_default().into(), leads_on: false }
}

/// Whether an answer is for people: whoever asks says that they read HTML.
pub fn wanted(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|range| {
        let media = range.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case("text/html")
            || media.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

impl Sheet {
    /// Sets the fields of an answer that is this page, and hands over its body.
    pub fn answered_with(self, headers: &mut HeaderMap) -> Bytes {
        let fields = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
            (
                header::CONTENT_SECURITY_POLICY,
                if self.leads_on { POLICY_LEADING_ON } else { POLICY },
            ),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // The URL of a page may hold a secret: of it, nobody learns more than the host.
            // `no-referrer` would have browsers send `Origin: null` with our own forms (Fetch
            // §3.2), which is what a foreign page could send too.
            (header::REFERRER_POLICY, "strict-origin"),
        ];
        for (name, value) in fields {
            headers.insert(name, HeaderValue::from_static(value));
        }
        self.html
    }
}

/// Nothing is loaded or run but what stands here.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The same for a page whose form leads on to the application, which may lead on to anywhere:
/// Chromium and WebKit hold `form-action` against every redirect that follows a form
/// (w3c/webappsec-csp, issue 8), and a login would silently go nowhere. Little is lost: the actions
/// of its forms are ours, what is shown of a request is escaped, there is no script that could add
/// another form, and what was typed goes no further than here, since after our 303 a browser only
/// asks.
const POLICY_LEADING_ON: &str =
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Where the style sheet is, below the mount.
pub const STYLE: &str = "/style.css";

/// Where the mark is, below the mount.
pub const LOGO: &str = "/logo";

/// Where the icon is, below the mount. Browsers ask for `/favicon.ico` where a page names none, and
/// that is the application's.
pub const ICON: &str = "/icon";
