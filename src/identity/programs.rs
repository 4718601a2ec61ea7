//! Responses for programs: JSON, or an empty body.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};

use super::actions::login::Tokens;
use super::actions::personal_token::{CreatedPersonalToken, PersonalToken, TokenList};
use super::actions::session::{Session, SessionList};
use super::answer::{
    accepted, asset, done, download, found, json, page, public, received, see_other, with_cookies,
};
use super::compat::{Compat, ExpressTokens};
use super::outcome::{Outcome, SessionTokens, Sessions, Step};
use super::pages::{Filled, Page, overview};
use super::request::Request;
use super::{Policy, cookie, pages, return_to};

/// The response for a program.
pub(super) fn render(outcome: Outcome, request: &Request, policy: &Policy) -> Response<Bytes> {
    let mount = &request.mount;
    match outcome {
        Outcome::Registered { tokens: Some(tokens), .. } => {
            json(StatusCode::CREATED, &express(&tokens))
        }
        Outcome::Registered { account, .. } => json(StatusCode::CREATED, &account),
        Outcome::LoggedIn { tokens, in_cookies, .. }
        | Outcome::Refreshed { tokens, in_cookies } => render_tokens(tokens, in_cookies, policy),
        Outcome::Step(step) => redirect(step, policy),
        Outcome::LoggedOutThere => received(),
        Outcome::LoggedOut
        | Outcome::LoggedOutVia(_)
        | Outcome::LoggedOutEverywhere
        | Outcome::SessionEnded { own: true }
        | Outcome::AccountDeleted
        | Outcome::PasswordChanged => with_cookies(done(), cookie::clear(policy)),
        Outcome::SessionEnded { own: false }
        | Outcome::TokenRevoked
        | Outcome::EmailVerified { .. }
        | Outcome::EmailChanged
        | Outcome::TotpRemoved => done(),
        Outcome::Account(account) | Outcome::AccountChanged { account, .. } => {
            json(StatusCode::OK, &account)
        }
        Outcome::Exported(export) => download(&*export, "account.json"),
        Outcome::Sessions(sessions) => json(StatusCode::OK, &list(*sessions)),
        Outcome::Tokens(rows) => {
            let tokens = rows.into_iter().map(PersonalToken::from_row).collect();
            json(StatusCode::OK, &TokenList { tokens })
        }
        Outcome::TokenCreated(created) => {
            json(StatusCode::CREATED, &CreatedPersonalToken::new(*created))
        }
        Outcome::LinkPromised(_) => accepted(),
        Outcome::TotpBegun(enrolment) => json(StatusCode::OK, &enrolment),
        Outcome::TotpConfirmed(codes) | Outcome::RecoveryCodes(codes) => {
            json(StatusCode::OK, &codes)
        }
        Outcome::Overview(overview) => page(overview::page(&overview, request, policy)),
        Outcome::Published(document) => public(document, MAX_AGE),
        Outcome::AlreadyVerified => see_other(&mount.path("/login?done=confirmed")),
        Outcome::Home => see_other(&mount.path("/account")),
        Outcome::Shown(Page::Login, filled) => login_page(&filled, request, policy),
        Outcome::Shown(shown, filled) => page(pages::show(shown, &filled, policy, mount)),
        Outcome::File(file) => asset(&file, request),
    }
}

/// The login page, with what was wrong with the login that failed just before.
fn login_page(filled: &Filled, request: &Request, policy: &Policy) -> Response<Bytes> {
    let mount = &request.mount;
    match pages::shown_again(&request.headers, filled, policy, mount) {
        Some((sheet, forget)) => with_cookies(page(sheet), [forget]),
        None => page(pages::show(Page::Login, filled, policy, mount)),
    }
}

fn redirect(step: Step, policy: &Policy) -> Response<Bytes> {
    match step {
        Step::ToProvider(path) => see_other(&path),
        Step::Home(url) => see_other(&url),
        Step::Away { location, cookie } => with_cookies(found(&location), [cookie]),
        Step::In { tokens, to, cookie } => {
            let to = return_to::allowed(Some(&to), policy);
            with_cookies(with_cookies(see_other(to), tokens.cookies(policy)), [cookie])
        }
        Step::On { to, cookie } => {
            with_cookies(see_other(return_to::allowed(Some(&to), policy)), cookie)
        }
    }
}

/// Puts the tokens in the body, or in cookies that no script can read.
fn render_tokens(tokens: SessionTokens, in_cookies: bool, policy: &Policy) -> Response<Bytes> {
    let expires_in = tokens.expires_in;
    if in_cookies {
        let cookies = tokens.cookies(policy);
        let body = Tokens { access_token: None, token_type: None, expires_in, refresh_token: None };
        return with_cookies(json(StatusCode::OK, &body), cookies);
    }
    if policy.compat == Compat::Express {
        return json(StatusCode::OK, &express(&tokens));
    }
    let body = Tokens {
        access_token: Some(tokens.access_token),
        token_type: Some("Bearer"),
        expires_in,
        refresh_token: Some(tokens.refresh_token),
    };
    json(StatusCode::OK, &body)
}

fn express(tokens: &SessionTokens) -> ExpressTokens<'_> {
    ExpressTokens { access_token: &tokens.access_token, refresh_token: &tokens.refresh_token }
}

fn list(sessions: Sessions) -> SessionList {
    let Sessions { rows, more, current, .. } = sessions;
    let sessions = rows.into_iter().map(|row| Session::from_row(row, current.as_deref())).collect();
    SessionList { sessions, more }
}

/// Shorter than the time for which a key is published before it signs.
const MAX_AGE: HeaderValue = HeaderValue::from_static("public, max-age=300");
