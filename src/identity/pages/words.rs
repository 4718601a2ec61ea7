//! What people are told: what is wrong, and what to do.

use super::forms::{Filled, Page};
use crate::identity::{Email, account};

/// Why a form is refused, as every client is told it.
#[derive(Clone, Copy, Debug)]
pub struct Why<'a> {
    /// A word of the one vocabulary of reasons.
    pub reason: &'a str,
    /// A sentence of ours that says more.
    pub detail: Option<&'a str>,
    /// Whole seconds until it is worth trying again.
    pub retry_after: Option<u64>,
}

impl Why<'_> {
    /// Whether nobody was recognised.
    pub(super) fn is_about_credentials(&self) -> bool {
        self.reason.starts_with("token_")
            || matches!(
                self.reason,
                "credentials_missing"
                    | "credentials_ambiguous"
                    | "credentials_malformed"
                    | "invalid_grant"
            )
    }
}

/// A sentence about a field, or about the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) field: Option<&'static str>,
    pub(super) text: String,
}

/// Whether the same form can never be accepted.
pub(super) fn is_final(page: Page, why: &Why<'_>) -> bool {
    matches!(
        why.reason,
        "link_invalid" | "registration_closed" | "route_not_found" | "method_not_allowed"
    ) || (needs_caller(page) && why.is_about_credentials())
}

pub(super) fn complaints(page: Page, why: &Why<'_>, filled: &Filled) -> Vec<Complaint> {
    let (field, text): (Option<&'static str>, String) = match (why.reason, page) {
        ("login_failed", Page::Login) if filled.with_code => {
            (Some("password"), "The e-mail address, the password or the code is wrong.".into())
        }
        ("login_failed", Page::Login) => {
            (Some("password"), "The e-mail address or the password is wrong.".into())
        }
        ("login_failed", Page::VerifyEmail) => (
            Some("password"),
            "The account has another password. If somebody else made the account, or you have forgotten the password, set a new one."
                .into(),
        ),
        ("login_failed", Page::RemoveTotp) => {
            (Some("current_password"), "The password or the code is wrong.".into())
        }
        ("login_failed", Page::ConfirmTotp) => return vec![wrong_code()],
        ("login_failed", _) => (Some("current_password"), "This is not your password.".into()),
        ("code_required", Page::Login) => return Vec::new(),
        ("code_required", _) => return vec![no_code()],
        ("email_unverified", _) => (
            None,
            "Your address is not confirmed yet: open the link in the mail that was sent to it."
                .into(),
        ),
        ("account_exists", _) => (
            Some("email"),
            "There is an account with this address. Log in, or reset its password.".into(),
        ),
        ("password_rejected", page) => {
            let is_new = matches!(page, Page::Change | Page::VerifyEmail);
            let field = if is_new { "new_password" } else { "password" };
            (
                Some(field),
                why.detail.map_or_else(|| "This password is too easy to guess.".into(), sentence),
            )
        }
        ("request_invalid", Page::Totp | Page::ConfirmTotp) => {
            (None, "Two-factor login is on already.".into())
        }
        ("request_invalid", _) => return incomplete(page, filled),
        ("rate_limited", _) => (
            None,
            format!(
                "These were too many attempts. Try again in {}.",
                wait(why.retry_after.unwrap_or(60))
            ),
        ),
        ("link_invalid", Page::VerifyEmail) => (
            None,
            "This link was used already, or is too old, and the address is not confirmed. Log in, and another link is offered to you."
                .into(),
        ),
        ("link_invalid", _) => (None, "This link was used already, or is too old.".into()),
        ("registration_closed", _) => (
            None,
            "Nobody can register here by themselves. Ask whoever runs this site for an account."
                .into(),
        ),
        ("origin_foreign", _) => {
            (None, "This was sent from another site, and was not accepted. Enter it here.".into())
        }
        ("overloaded", _) => {
            (None, "There is too much to do just now. Try again in a moment.".into())
        }
        ("store_unavailable" | "draining", _) => {
            (None, "This cannot be done just now. Try again in a moment.".into())
        }
        ("body_too_large", _) => (None, "This is too much text.".into()),
        ("route_not_found" | "method_not_allowed", _) => (None, "There is nothing here.".into()),
        _ if why.is_about_credentials() => (
            None,
            "You were away for too long, and nothing was changed. Open the page again.".into(),
        ),
        _ => (None, "Try again.".into()),
    };
    vec![Complaint { field, text }]
}

/// Of an app that was set up, or is being set up: no recovery code is spoken of here.
pub(super) fn wrong_code() -> Complaint {
    Complaint {
        field: Some("code"),
        text: "The code is wrong. Enter the one that the app shows now.".into(),
    }
}

/// The same, where none was sent.
pub(super) fn no_code() -> Complaint {
    Complaint {
        field: Some("code"),
        text: "Enter the code that your authenticator app shows.".into(),
    }
}

/// What a form lacks.
fn incomplete(page: Page, filled: &Filled) -> Vec<Complaint> {
    let mut found = Vec::new();
    if matches!(page, Page::Login | Page::Register | Page::Forgot)
        && Email::parse(&filled.email).is_err()
    {
        found.push(Complaint {
            field: Some("email"),
            text: "Enter an e-mail address, such as name@example.com.".into(),
        });
    }
    if page == Page::Register && account::name(&filled.name).is_err() {
        found.push(Complaint {
            field: Some("name"),
            text: "A name has at most 200 characters.".into(),
        });
    }
    if found.is_empty() {
        found.push(Complaint {
            field: None,
            text: "Something is missing. Fill in every field.".into(),
        });
    }
    found
}

/// What was just done.
pub(super) fn notice(done: &str) -> Option<&'static str> {
    Some(match done {
        "registered" => "Your account is there. Log in with it.",
        "verify" => {
            "Your account is there. Open the link in the mail that was sent to you, and enter your password there."
        }
        "verified" => "Your address is confirmed. Log in.",
        "confirmed" => {
            "This link was used already, or is too old. Your address is confirmed: log in."
        }
        "sent" => {
            "If there is an account with this address, a mail is on its way to it. Look among unwanted mail too."
        }
        "password" => "Your password was changed. Log in with the new one.",
        "everywhere" => "You are logged out everywhere.",
        "ended" => "The session was ended.",
        "totp_off" => "Two-factor login is off.",
        _ => return None,
    })
}

fn needs_caller(page: Page) -> bool {
    matches!(
        page,
        Page::Logout
            | Page::Change
            | Page::Totp
            | Page::ConfirmTotp
            | Page::RemoveTotp
            | Page::Sessions
            | Page::Other
    )
}

/// With a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    let stop = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{stop}", letters.as_str())
}

fn wait(seconds: u64) -> String {
    match seconds {
        0 | 1 => "a second".to_owned(),
        2..=90 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    }
}
