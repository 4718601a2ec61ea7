//! The page for whoever sent something to an application that does not know (any more) who they
//! are.

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

/// What was sent did not arrive, and how it will. `login` is a path: it opens in another tab, since
/// this one remembers what was typed.
pub fn unsent(login: String, policy: &Policy, mount: &Mount) -> Sheet {
    let told = "You are not logged in, or were away for too long: what you sent was not passed on, and nothing was changed.";
    rendered(&UnsentPage {
        site: Site::new(policy, mount),
        title: "Log in and send it again",
        notice: None,
        complaints: vec![Complaint { field: None, text: told.to_owned() }],
        login,
        links: Vec::new(),
    })
}
