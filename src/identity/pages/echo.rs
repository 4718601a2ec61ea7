//! The page of the built-in application, which shows the request that it received.

use askama::Template;

use super::forms::Link;
use super::words::Complaint;
use super::{Sheet, Site, rendered};
use crate::identity::texts::{EchoTexts, Language, preferred};
use crate::identity::{Brand, Mount, Policy};

/// A request as an application receives it.
#[derive(Debug)]
pub struct Echoed {
    /// Method and target.
    pub request: String,
    /// The identity headers.
    pub caller: Vec<(String, String)>,
    /// The other header fields.
    pub fields: Vec<(String, String)>,
    /// Paths of this host that lead to the application, and the names of their routes.
    pub pages: Vec<(String, String)>,
    /// `Accept-Language`.
    pub languages: Option<String>,
}

#[derive(Template)]
#[template(path = "pages/echo.html")]
struct EchoPage<'a> {
    site: Site<'a>,
    title: &'static str,
    notice: Option<&'static str>,
    complaints: Vec<Complaint>,
    words: &'static EchoTexts,
    request: String,
    caller: Vec<(String, String)>,
    fields: Vec<(String, String)>,
    pages: Vec<(String, String)>,
    links: Vec<Link>,
}

/// The page. `issuer`: the built-in issuer, if the host has it.
pub fn echo(echoed: Echoed, issuer: Option<(&Policy, &Mount)>) -> Sheet {
    let Echoed { request, caller, fields, pages, languages } = echoed;
    let every = Language::ALL.map(|(_, language)| language);
    let offered = issuer.map_or(&every[..], |(policy, _)| &policy.languages);
    let texts = preferred(offered, languages.as_deref()).texts();
    let words = &texts.echo;
    let link = |text: &'static str, path: String| Link { before: None, text, path };
    let links = issuer.map_or_else(Vec::new, |(_, mount)| {
        vec![
            link(&words.account, mount.path("/account")),
            link(&words.sessions, mount.path("/sessions")),
            link(&words.log_out, mount.path("/logout")),
        ]
    });
    let page = rendered(&EchoPage {
        site: match issuer {
            Some((policy, mount)) => Site::new(policy, mount, texts),
            None => Site::elsewhere(Brand::unnamed(), texts),
        },
        title: &words.title,
        notice: None,
        complaints: Vec::new(),
        words,
        request,
        caller,
        fields,
        pages,
        links,
    });
    if issuer.is_some() { page } else { page.styled_by(Brand::unnamed()) }
}
