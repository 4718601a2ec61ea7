//! The page of an account: what is known about it, and what its owner can do.

use askama::Template;

use super::forms::Link;
use super::words::Complaint;
use super::{Filled, Sheet, Site, notice, rendered};
use crate::identity::Policy;
use crate::identity::account_of_person::has_address;
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
    let Overview { account, recovery_codes_left, providers } = overview;
    // People who log in only at a provider have no password here. Their name and address come from the
    // provider, and forms that ask for the password are useless to them.
    let is_own = !account.password.is_empty();
    let has_password = policy.password_login && is_own;
    let row = |label: &'static str, value: String, links: &[(&'static str, &str)]| Row {
        label,
        value,
        links: links.iter().map(|(text, path)| (*text, label, mount.path(path))).collect(),
    };
    let name = account.name.clone().unwrap_or_else(|| words.none.clone());
    let change = |path, may: bool| may.then_some((words.change.as_str(), path));
    let mut rows = vec![row(
        &words.name,
        name,
        change("/account/name", is_own || account.name.is_none()).as_slice(),
    )];
    let email = if has_address(account) { &account.email } else { &words.none };
    let links = change("/account/email", is_own && policy.mail.is_some());
    rows.push(row(&words.email, email.clone(), links.as_slice()));
    if !providers.is_empty() {
        let at = filled(&words.login_at, &[("name", &providers.join(", "))]);
        rows.push(row(&words.login, at, &[]));
    }
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
    if is_own {
        let links = [(words.delete.as_str(), "/account/delete")];
        rows.push(row(&words.deletion, words.deletion_is.clone(), &links));
    }
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
