//! The page for a form that was sent to an application without a valid session.

use askama::Template;

use super::forms::Link;
use super::words::Complaint;
use super::{Sheet, Site, fine_print, rendered};
use crate::identity::texts::{UnsentTexts, filled, preferred};
use crate::identity::{Mount, Policy};
use crate::reason::Reason;

/// A form that was not passed on.
#[derive(Debug)]
pub struct Unsent<'a> {
    /// Why.
    pub reason: Reason,
    /// Who is logged in, if their login is not strong or recent enough.
    pub who: Option<&'a str>,
    /// The path of a login. It opens in another tab, because this tab still has what was typed.
    pub login: String,
    /// The id of the request.
    pub request_id: &'a str,
    /// `Accept-Language`.
    pub languages: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "pages/unsent.html")]
struct UnsentPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    login: &'a str,
    words: &'static UnsentTexts,
    who: Option<String>,
    fine_print: String,
    links: Vec<Link>,
}

/// Says that the form did not arrive, and how to send it again.
pub fn unsent(unsent: &Unsent<'_>, policy: &Policy, mount: &Mount) -> Sheet {
    let texts = preferred(&policy.languages, unsent.languages).texts();
    let words = &texts.unsent;
    let (brand, is_elsewhere) = (&policy.brand, mount.is_elsewhere());
    let told = match unsent.reason {
        Reason::StepUpRequired => &words.step_up,
        _ => &words.told,
    };
    let page = rendered(&UnsentPage {
        site: if is_elsewhere {
            Site::elsewhere(brand, texts)
        } else {
            Site::new(policy, mount, texts)
        },
        title: &words.title,
        notice: None,
        complaints: vec![Complaint { field: None, text: told.clone() }],
        login: &unsent.login,
        words,
        who: unsent.who.map(|who| filled(&texts.outcome.you_are, &[("who", who)])),
        fine_print: fine_print(unsent.reason, unsent.request_id, texts),
        links: Vec::new(),
    });
    if is_elsewhere { page.styled_by(brand) } else { page }
}
