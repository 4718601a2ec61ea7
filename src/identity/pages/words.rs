//! The messages on the pages: what is wrong, and what to do.

use super::forms::{Filled, Page};
use crate::identity::actions::second_factor::Enrolment;
use crate::identity::{Email, account};
use crate::reason::Reason;

/// Why a form was refused, as every client learns it.
#[derive(Clone, Copy, Debug)]
pub struct Why<'a> {
    /// The reason.
    pub reason: Reason,
    /// A sentence of ours with more detail.
    pub detail: Option<&'a str>,
    /// Whole seconds until a retry makes sense.
    pub retry_after: Option<u64>,
    /// The second factor that still waits for its first code.
    pub enrolment: Option<&'a Enrolment>,
}

impl Why<'_> {
    /// Whether no caller was identified.
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

/// A message about one field, or about the whole form.
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

/// Whether the same form can never succeed.
pub(super) fn is_final(page: Page, why: &Why<'_>) -> bool {
    matches!(
        why.reason,
        Reason::LinkInvalid
            | Reason::RegistrationClosed
            | Reason::RouteNotFound
            | Reason::MethodNotAllowed
    ) || (needs_caller(page) && why.is_about_credentials())
}

/// The messages for a refused request, page by page.
pub(super) fn complaints(page: Page, why: &Why<'_>, filled: &Filled) -> Vec<Complaint> {
    let complaint = match why.reason {
        Reason::LoginFailed => login_failed(page, filled),
        // The password was right, so nothing is wrong yet.
        Reason::CodeRequired if page == Page::Login => return Vec::new(),
        Reason::CodeRequired => no_code(),
        Reason::AccountExists => Complaint::at(
            "email",
            "This address already has an account. Log in, or reset your password.",
        ),
        Reason::PasswordRejected => password_rejected(page, why.detail),
        Reason::RequestInvalid if page == Page::NewToken => new_token_invalid(why.detail, filled),
        Reason::RequestInvalid => return request_invalid(page, filled),
        Reason::RateLimited => {
            let wait = wait(why.retry_after.unwrap_or(60));
            Complaint::whole(format!("Too many attempts. Try again in {wait}."))
        }
        Reason::LinkInvalid if page == Page::VerifyEmail => Complaint::whole(
            "This link was already used or has expired, and the address is not confirmed. Log in to get a new link.",
        ),
        reason => Complaint::whole(about_the_whole(reason)),
    };
    vec![complaint]
}

/// For an app that is set up, or being set up: recovery codes do not apply here.
pub(in crate::identity) fn wrong_code() -> Complaint {
    Complaint::at("code", "The code is wrong. Enter the code that the app shows now.")
}

/// The same, for a missing code.
pub(in crate::identity) fn no_code() -> Complaint {
    Complaint::at("code", "Enter the code that your authenticator app shows.")
}

/// What is wrong with a login, or with a password that confirms the caller.
fn login_failed(page: Page, filled: &Filled) -> Complaint {
    match page {
        Page::Login if filled.with_code => {
            Complaint::at("password", "The e-mail address, the password or the code is wrong.")
        }
        Page::Login => Complaint::at("password", "The e-mail address or the password is wrong."),
        Page::VerifyEmail => Complaint::at(
            "password",
            "The password is wrong. If someone else created the account, or you forgot the password, set a new one.",
        ),
        Page::RemoveTotp => Complaint::at("current_password", "The password or the code is wrong."),
        Page::ConfirmTotp => wrong_code(),
        Page::ChangeEmail => Complaint::at("password", "The password is wrong."),
        Page::Register
        | Page::Logout
        | Page::LoggedOut
        | Page::Forgot
        | Page::Reset
        | Page::Change
        | Page::Totp
        | Page::NewToken
        | Page::Sessions
        | Page::Other => Complaint::at("current_password", "The password is wrong."),
    }
}

/// Why a new password was rejected, at its field.
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
            vec![Complaint::whole("Two-factor login is already on.")]
        }
        page => incomplete(page, filled),
    }
}

/// What is wrong with a new token, at its field.
fn new_token_invalid(detail: Option<&str>, filled: &Filled) -> Complaint {
    if filled.name.trim().is_empty() {
        return Complaint::at("name", "Enter a name.");
    }
    let text =
        detail.map_or_else(|| "Fill in every field.".to_owned(), |detail| detail.replace('`', ""));
    match ["name", "roles", "ttl"]
        .into_iter()
        .find(|field| detail.is_some_and(|detail| detail.contains(&format!("`{field}`"))))
    {
        Some(field) => Complaint::at(field, text),
        None => Complaint::whole(text),
    }
}

/// A message that belongs to no field.
fn about_the_whole(reason: Reason) -> &'static str {
    match reason {
        Reason::EmailUnverified => {
            "Your e-mail address is not confirmed yet. Open the link in the mail that we sent you."
        }
        Reason::LinkInvalid => "This link was already used or has expired.",
        Reason::RegistrationClosed => {
            "Registration is closed. Ask the administrator of this site for an account."
        }
        Reason::OriginForeign => {
            "This form was sent from another site and was rejected. Fill it in here."
        }
        Reason::Overloaded => "The server is busy. Try again in a moment.",
        Reason::StoreUnavailable | Reason::Draining => {
            "The service is temporarily unavailable. Try again in a moment."
        }
        Reason::BodyTooLarge => "The text is too long.",
        Reason::RouteNotFound | Reason::MethodNotAllowed => "Page not found.",
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
            "Your session has expired, and nothing was changed. Open the page again."
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
        | Reason::VerifyRequestInvalid
        | Reason::VerifyPeerUntrusted
        | Reason::DestinationRefused
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
        found.push(Complaint::at("name", "The name must have at most 200 characters."));
    }
    if found.is_empty() {
        found.push(Complaint::whole("Fill in every field."));
    }
    found
}

/// The notice about what was just done.
pub(in crate::identity) fn notice(done: &str) -> Option<&'static str> {
    Some(match done {
        "registered" => "Your account has been created. Log in.",
        "verify" => {
            "Your account has been created. Open the link in the mail that we sent you, and enter your password there."
        }
        "verified" => "Your address is confirmed. Log in.",
        "confirmed" => {
            "This link was already used or has expired. Your address is confirmed: log in."
        }
        "sent" => {
            "If this address has an account, we have sent a mail to it. Check your spam folder."
        }
        "password" => "Your password was changed. Log in with the new one.",
        "everywhere" => "You are logged out everywhere.",
        "ended" => "The session was ended.",
        "revoked" => "The token was revoked.",
        "totp_off" => "Two-factor login is off.",
        "changed" => "Your account was changed.",
        "email_asked" => {
            "We have sent a mail to the new address. Your address changes when you open the link in it. Check your spam folder."
        }
        "email" => "Your address was changed. You log in with the new one from now on.",
        "deleted" => "Your account was deleted.",
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
            | Page::NewToken
            | Page::Other
    )
}

/// With an initial capital and a full stop.
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
