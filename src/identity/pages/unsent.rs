//! The page for a form that was sent to an application without a valid session.

use askama::Template;

use super::forms::Link;
use super::words::Complaint;
use super::{Sheet, Site, rendered};
use crate::identity::texts::{UnsentTexts, preferred};
use crate::identity::{Mount, Policy};

#[derive(Template)]
#[template(path = "pages/unsent.html")]
struct UnsentPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    login: String,
    words: &'static UnsentTexts,
    links: Vec<Link>,
}

/// Says that the form did not arrive, and how to send it again. `login` is a path, which opens in
/// another tab because this tab still has what was typed. `languages`: `Accept-Language`.
pub fn unsent(login: String, languages: Option<&str>, policy: &Policy, mount: &Mount) -> Sheet {
    let texts = preferred(&policy.languages, languages).texts();
    let words = &texts.unsent;
    let (brand, is_elsewhere) = (&policy.brand, mount.is_elsewhere());
    let page = rendered(&UnsentPage {
        site: if is_elsewhere {
            Site::elsewhere(brand, texts)
        } else {
            Site::new(policy, mount, texts)
        },
        title: &words.title,
        notice: None,
        complaints: vec![Complaint { field: None, text: words.told.clone() }],
        login,
        words,
        links: Vec::new(),
    });
    if is_elsewhere { page.styled_by(brand) } else { page }
}
