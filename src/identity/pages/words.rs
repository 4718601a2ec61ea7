//! What people are told: what is wrong, and what to do.

use super::forms::{Filled, Page};
use crate::identity::actions::second_factor::Enrolment;
use crate::identity::{Email, account};
use crate::reason::Reason;

/// Why a form is refused, as every client is told it.
#[derive(Clone, Copy, Debug)]
pub struct Why<'a> {
    /// The reason.
    pub reason: Reason,
    /// A sentence of ours that says more.
    pub detail: Option<&'a str>,
    /// Whole seconds until it is worth trying again.
    pub retry_after: Option<u64>,
    /// The second factor that still waits for its first code.
    pub enrolment: Option<&'a Enrolment>,
}

impl Why<'_> {
    /// Whether nobody was recognised.
    pub(super) fn is_about_credentials(&self) -> bool {
        self.reason.is_about_token()
            || matches!(
                self.reason,
                Reason::CredentialsMissing
                    | Reason::CredentialsAmbiguous
                    | Reason::CredentialsMalformed
                    | Reason::InvalidGrant
            )
    }
}

/// A sentence about a field, or about the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::identity) struct Complaint {
    pub(in crate::identity) field: Option<&'static str>,
    pub(in crate::identity) text: String,
}

impl Complaint {
    fn at(field: &'static str, text: impl Into<String>) -> Self {
        Self { field: Some(field), text: text.into() }
    }

    fn whole(text: impl Into<String>) -> Self {
        Self { field: None, text: text.into() }
    }
}

/// Whether the same form can never be accepted.
pub(super) fn is_final(page: Page, why: &Why<'_>) -> bool {
    matches!(
        why.reason,
        Reason::LinkInvalid
            | Reason::RegistrationClosed
            | Reason::RouteNotFound
            | Reason::MethodNotAllowed
    ) || (needs_caller(page) && why.is_about_credentials())
}

/// What to tell a person whose request was refused, page by page.
pub(super) fn complaints(page: Page, why: &Why<'_>, filled: &Filled) -> Vec<Complaint> {
    let complaint = match why.reason {
        Reason::LoginFailed => login_failed(page, filled),
        // With the right password, nothing is wrong yet.
        Reason::CodeRequired if page == Page::Login => return Vec::new(),
        Reason::CodeRequired => no_code(),
        Reason::AccountExists => Complaint::at(
            "email",
            "There is an account with this address. Log in, or reset its password.",
        ),
        Reason::PasswordRejected => password_rejected(page, why.detail),
        Reason::RequestInvalid => return request_invalid(page, filled),
        Reason::RateLimited => {
            let wait = wait(why.retry_after.unwrap_or(60));
            Complaint::whole(format!("These were too many attempts. Try again in {wait}."))
        }
        Reason::LinkInvalid if page == Page::VerifyEmail => Complaint::whole(
            "This link was used already, or is too old, and the address is not confirmed. Log in, and another link is offered to you.",
        ),
        reason => Complaint::whole(about_the_whole(reason)),
    };
    vec![complaint]
}

/// Of an app that was set up, or is being set up: no recovery code is spoken of here.
pub(in crate::identity) fn wrong_code() -> Complaint {
    Complaint::at("code", "The code is wrong. Enter the one that the app shows now.")
}

/// The same, where none was sent.
pub(in crate::identity) fn no_code() -> Complaint {
    Complaint::at("code", "Enter the code that your authenticator app shows.")
}

/// What is wrong with a login, or with a password that confirms who asks.
fn login_failed(page: Page, filled: &Filled) -> Complaint {
    match page {
        Page::Login if filled.with_code => {
            Complaint::at("password", "The e-mail address, the password or the code is wrong.")
        }
        Page::Login => Complaint::at("password", "The e-mail address or the password is wrong."),
        Page::VerifyEmail => Complaint::at(
            "password",
            "The account has another password. If somebody else made the account, or you have forgotten the password, set a new one.",
        ),
        Page::RemoveTotp => Complaint::at("current_password", "The password or the code is wrong."),
        Page::ConfirmTotp => wrong_code(),
        Page::Register
        | Page::Logout
        | Page::LoggedOut
        | Page::Forgot
        | Page::Reset
        | Page::Change
        | Page::Totp
        | Page::Sessions
        | Page::Other => Complaint::at("current_password", "This is not your password."),
    }
}

/// Why a new password is not accepted, at its field.
fn password_rejected(page: Page, detail: Option<&str>) -> Complaint {
    let is_new = matches!(page, Page::Change | Page::VerifyEmail);
    let field = if is_new { "new_password" } else { "password" };
    Complaint::at(
        field,
        detail.map_or_else(|| "This password is too easy to guess.".to_owned(), sentence),
    )
}

fn request_invalid(page: Page, filled: &Filled) -> Vec<Complaint> {
    match page {
        Page::Totp | Page::ConfirmTotp => {
            vec![Complaint::whole("Two-factor login is on already.")]
        }
        page => incomplete(page, filled),
    }
}

/// What to tell where no field is to blame.
fn about_the_whole(reason: Reason) -> &'static str {
    match reason {
        Reason::EmailUnverified => {
            "Your address is not confirmed yet: open the link in the mail that was sent to it."
        }
        Reason::LinkInvalid => "This link was used already, or is too old.",
        Reason::RegistrationClosed => {
            "Nobody can register here by themselves. Ask whoever runs this site for an account."
        }
        Reason::OriginForeign => {
            "This was sent from another site, and was not accepted. Enter it here."
        }
        Reason::Overloaded => "There is too much to do just now. Try again in a moment.",
        Reason::StoreUnavailable | Reason::Draining => {
            "This cannot be done just now. Try again in a moment."
        }
        Reason::BodyTooLarge => "This is too much text.",
        Reason::RouteNotFound | Reason::MethodNotAllowed => "There is nothing here.",
        Reason::CredentialsMissing
        | Reason::CredentialsMalformed
        | Reason::CredentialsAmbiguous
        | Reason::InvalidGrant
        | Reason::TokenMalformed
        | Reason::TokenAlgorithm
        | Reason::TokenKeyUnknown
        | Reason::TokenSignature
        | Reason::TokenExpired
        | Reason::TokenNotYetValid
        | Reason::TokenIssuer
        | Reason::TokenAudience
        | Reason::TokenClaims
        | Reason::TokenLifetime
        | Reason::TokenRevoked => {
            "You were away for too long, and nothing was changed. Open the page again."
        }
        Reason::Public
        | Reason::Anonymous
        | Reason::Authenticated
        | Reason::Authorized
        | Reason::TargetAmbiguous
        | Reason::FramingInvalid
        | Reason::RequestInvalid
        | Reason::LoginFailed
        | Reason::CodeRequired
        | Reason::AccountExists
        | Reason::PasswordRejected
        | Reason::RateLimited
        | Reason::RoleMissing
        | Reason::ScopeMissing
        | Reason::ClaimMismatch
        | Reason::IssuerNotAllowed
        | Reason::HeadersTooLarge
        | Reason::UpstreamUnreachable
        | Reason::UpstreamFailed
        | Reason::UpstreamTimeout
        | Reason::KeysUnavailable => "Try again.",
    }
}

/// What a form lacks.
fn incomplete(page: Page, filled: &Filled) -> Vec<Complaint> {
    let mut found = Vec::new();
    if matches!(page, Page::Login | Page::Register | Page::Forgot)
        && Email::parse(&filled.email).is_err()
    {
        found.push(Complaint::at("email", "Enter an e-mail address, such as name@example.com."));
    }
    if page == Page::Register && account::name(&filled.name).is_err() {
        found.push(Complaint::at("name", "A name has at most 200 characters."));
    }
    if found.is_empty() {
        found.push(Complaint::whole("Something is missing. Fill in every field."));
    }
    found
}

/// What was just done.
pub(in crate::identity) fn notice(done: &str) -> Option<&'static str> {
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
