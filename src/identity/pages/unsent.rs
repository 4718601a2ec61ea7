//! The page for a form that was sent to an application without a valid session.

use askama::Template;

use super::forms::Link;
use super::words::Complaint;
use super::{Sheet, Site, rendered};
use crate::identity::{Mount, Policy};

#[derive(Template)]
#[template(path = "pages/unsent.html")]
struct UnsentPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    login: String,
    links: Vec<Link>,
}

/// Says that the form did not arrive, and how to send it again. `login` is a path, which opens in
/// another tab because this tab still has what was typed.
pub fn unsent(login: String, policy: &Policy, mount: &Mount) -> Sheet {
    let text = "You are not logged in, or your session has expired. What you sent was not passed on, and nothing was changed.";
    rendered(&UnsentPage {
        site: Site::new(policy, mount),
        title: "Log in and send it again",
        notice: None,
        complaints: vec![Complaint { field: None, text: text.to_owned() }],
        login,
        links: Vec::new(),
    })
}
