//! Responses for people: a page, or a redirect to the next one.

use bytes::Bytes;
use http::Response;

use super::actions::{personal_token, second_factor, session};
use super::answer::{page, see_other, with_cookies};
use super::link::Purpose;
use super::outcome::{Outcome, SessionTokens};
use super::pages::Filled;
use super::request::Request;
use super::{Policy, cookie, programs, return_to};

/// The response for a person.
pub(super) fn render(outcome: Outcome, request: &Request, policy: &Policy) -> Response<Bytes> {
    let mount = &request.mount;
    let texts = request.texts(policy);
    let to = |path: &str| see_other(&mount.path(path));
    let ended_at = |url: &str| with_cookies(see_other(url), cookie::clear(policy));
    let ended = |path: &str| ended_at(&mount.path(path));
    let filled = match request.endpoint.method {
        "GET" => Filled::from_query(request.query.as_deref(), texts),
        _ => Filled::from_form(&request.body, texts),
    };
    let onwards = |path: &str| see_other(&filled.onwards(&mount.path(path), policy));
    match outcome {
        Outcome::Registered { tokens: Some(tokens), return_to, .. }
        | Outcome::LoggedIn { tokens, return_to, .. } => {
            lead_in(&tokens, return_to::allowed(return_to.as_deref(), policy), policy)
        }
        Outcome::Registered { tokens: None, .. } => {
            let done = if policy.verify_email { "verify" } else { "registered" };
            onwards(&format!("/login?done={done}"))
        }
        Outcome::LoggedOutVia(location) => ended_at(&location),
        Outcome::LoggedOut | Outcome::SessionEnded { own: true } => ended("/logout"),
        Outcome::SessionEnded { own: false } => to("/sessions?done=ended"),
        Outcome::Tokens(_) => to("/sessions#tokens"),
        Outcome::TokenCreated(created) => {
            page(personal_token::created_page(&created, texts, policy, mount))
        }
        Outcome::TokenRevoked => to("/sessions?done=revoked"),
        Outcome::LoggedOutEverywhere => ended("/login?done=everywhere"),
        Outcome::PasswordChanged => {
            with_cookies(onwards("/login?done=password"), cookie::clear(policy))
        }
        Outcome::LinkPromised(Purpose::Reset) => onwards("/password/forgot?done=sent"),
        Outcome::LinkPromised(Purpose::Verify | Purpose::Change) => onwards("/login?done=sent"),
        Outcome::EmailVerified { tokens: Some(tokens) } => {
            lead_in(&tokens, filled.way_back(policy).unwrap_or("/"), policy)
        }
        Outcome::EmailVerified { tokens: None } => onwards("/login?done=verified"),
        Outcome::AlreadyVerified => onwards("/login?done=confirmed"),
        Outcome::TotpBegun(enrolment) => {
            page(second_factor::enrolment(&enrolment, None, texts, policy, mount))
        }
        Outcome::TotpConfirmed(codes) => page(second_factor::recovery_codes(
            codes,
            Some(&texts.second_factor.is_on),
            texts,
            policy,
            mount,
        )),
        Outcome::RecoveryCodes(codes) => {
            page(second_factor::recovery_codes(codes, None, texts, policy, mount))
        }
        Outcome::AccountDeleted => ended("/login?done=deleted"),
        Outcome::AccountChanged { asked_for_email: true, .. } => to("/account?done=email_asked"),
        Outcome::AccountChanged { asked_for_email: false, .. } => to("/account?done=changed"),
        Outcome::EmailChanged => to("/account?done=email"),
        Outcome::TotpRemoved => to("/account?done=totp_off"),
        Outcome::Sessions(sessions) => {
            page(session::sessions_page(*sessions, &filled, policy, mount))
        }
        // These have no page, or already are one.
        Outcome::Refreshed { .. }
        | Outcome::Step(_)
        | Outcome::LoggedOutThere
        | Outcome::Account(_)
        | Outcome::Exported(_)
        | Outcome::Overview(_)
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
