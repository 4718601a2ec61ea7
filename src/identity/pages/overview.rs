//! The page of an account: what is known about it, and what its owner can do.

use askama::Template;

use super::forms::Link;
use super::words::Complaint;
use super::{Filled, Sheet, Site, notice, rendered};
use crate::identity::Policy;
use crate::identity::outcome::Overview;
use crate::identity::request::Request;
use crate::identity::texts::{AccountTexts, filled};

#[derive(Template)]
#[template(path = "pages/overview.html")]
struct OverviewPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    rows: Vec<Row>,
    logout: String,
    words: &'static AccountTexts,
    links: Vec<Link>,
}

struct Row {
    label: &'static str,
    value: String,
    /// The text of a link, what it is about for a screen reader, and its path.
    links: Vec<(&'static str, &'static str, String)>,
}

/// The page.
pub(in crate::identity) fn page(overview: &Overview, request: &Request, policy: &Policy) -> Sheet {
    let mount = &request.mount;
    let texts = request.texts(policy);
    let words = &texts.account;
    let Overview { account, recovery_codes_left } = overview;
    let row = |label: &'static str, value: String, links: &[(&'static str, &str)]| Row {
        label,
        value,
        links: links.iter().map(|(text, path)| (*text, label, mount.path(path))).collect(),
    };
    let mut rows = vec![row(
        &words.name,
        account.name.clone().unwrap_or_else(|| words.none.clone()),
        &[(&words.change, "/account/name")],
    )];
    let email: &[(&'static str, &str)] =
        if policy.mail.is_some() { &[(&words.change, "/account/email")] } else { &[] };
    rows.push(row(&words.email, account.email.clone(), email));
    // Whoever logs in at a provider has no password here.
    let has_password = policy.password_login && !account.password.is_empty();
    if has_password {
        rows.push(row(
            &words.password,
            words.password_is.clone(),
            &[(&words.change, "/password/change")],
        ));
    }
    match recovery_codes_left {
        Some(left) => {
            let left = filled(&words.second_factor_on, &[("codes", &left.to_string())]);
            let links =
                [(words.new_codes.as_str(), "/totp/codes"), (words.turn_off.as_str(), "/totp")];
            rows.push(row(&words.second_factor, left, &links));
        }
        None if policy.totp && has_password => {
            let off = words.second_factor_off.clone();
            rows.push(row(&words.second_factor, off, &[(&words.turn_on, "/totp")]));
        }
        None => {}
    }
    rows.push(row(&words.sessions, words.sessions_are.clone(), &[(&words.show, "/sessions")]));
    rows.push(row(&words.data, words.data_is.clone(), &[(&words.download, "/me/export")]));
    rows.push(row(
        &words.deletion,
        words.deletion_is.clone(),
        &[(&words.delete, "/account/delete")],
    ));
    let done = Filled::from_query(request.query.as_deref(), texts).done;
    let back = Link { before: None, text: &words.back, path: "/".to_owned() };
    rendered(&OverviewPage {
        site: Site::new(policy, mount, texts),
        title: &words.title,
        notice: done.as_deref().and_then(|done| notice(done, texts)),
        complaints: Vec::new(),
        rows,
        logout: mount.path("/logout"),
        words,
        links: vec![back],
    })
    .leading_on(!policy.providers.is_empty())
}
