//! Responses for people: a page, or a redirect to the next one.

use bytes::Bytes;
use http::Response;

use super::actions::{second_factor, session};
use super::answer::{page, see_other, with_cookies};
use super::link::Purpose;
use super::outcome::{Outcome, SessionTokens};
use super::pages::Filled;
use super::request::Request;
use super::{Policy, cookie, programs, return_to};

/// The response for a person.
pub(super) fn render(outcome: Outcome, request: &Request, policy: &Policy) -> Response<Bytes> {
    let mount = &request.mount;
    let to = |path: &str| see_other(&mount.path(path));
    let ended = |path: &str| with_cookies(to(path), cookie::clear(policy));
    match outcome {
        Outcome::Registered { tokens: Some(tokens), return_to, .. }
        | Outcome::LoggedIn { tokens, return_to, .. } => {
            lead_in(&tokens, return_to::local(return_to.as_deref()), policy)
        }
        Outcome::Registered { tokens: None, return_to, .. } => {
            let done = if policy.verify_email { "verify" } else { "registered" };
            let login = mount.path(&format!("/login?done={done}"));
            match return_to::local(return_to.as_deref()) {
                "/" => see_other(&login),
                back => see_other(&return_to::remembering(&login, back)),
            }
        }
        Outcome::LoggedOut | Outcome::SessionEnded { own: true } => ended("/logout"),
        Outcome::SessionEnded { own: false } => to("/sessions?done=ended"),
        Outcome::LoggedOutEverywhere => ended("/login?done=everywhere"),
        Outcome::PasswordChanged => ended("/login?done=password"),
        Outcome::LinkPromised(Purpose::Reset) => to("/password/forgot?done=sent"),
        Outcome::LinkPromised(Purpose::Verify | Purpose::Change) => to("/login?done=sent"),
        Outcome::EmailVerified { tokens: Some(tokens) } => lead_in(&tokens, "/", policy),
        Outcome::EmailVerified { tokens: None } => to("/login?done=verified"),
        Outcome::TotpBegun(enrolment) => {
            page(second_factor::enrolment(&enrolment, None, policy, mount))
        }
        Outcome::TotpConfirmed(codes) => page(second_factor::recovery_codes(codes, policy, mount)),
        Outcome::AccountDeleted => ended("/login?done=deleted"),
        Outcome::AccountChanged { asked_for_email: true, .. } => to("/sessions?done=email_asked"),
        Outcome::AccountChanged { asked_for_email: false, .. } => to("/sessions?done=changed"),
        Outcome::EmailChanged => to("/sessions?done=email"),
        Outcome::TotpRemoved => to("/sessions?done=totp_off"),
        Outcome::Sessions(sessions) => {
            let filled = Filled::from_query(request.query.as_deref());
            page(session::sessions_page(*sessions, &filled, policy, mount))
        }
        // These have no page, or already are one.
        Outcome::Refreshed { .. }
        | Outcome::Account(_)
        | Outcome::Exported(_)
        | Outcome::AlreadyVerified
        | Outcome::Published(_)
        | Outcome::Shown(..)
        | Outcome::File(_)
        | Outcome::Home => programs::render(outcome, request, policy),
    }
}

/// Redirects a browser, with the cookies of its session.
fn lead_in(tokens: &SessionTokens, back: &str, policy: &Policy) -> Response<Bytes> {
    with_cookies(see_other(back), tokens.cookies(policy))
}
