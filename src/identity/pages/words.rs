//! The messages on the pages: what is wrong, and what to do.

use super::forms::{Filled, Page};
use crate::identity::actions::second_factor::Enrolment;
use crate::identity::error::RequestFault;
use crate::identity::password::LONGEST_PASSWORD as MOST_BYTES;
use crate::identity::strength::{RejectedPassword, Weakness};
use crate::identity::texts::{self, Texts, WrongTexts};
use crate::identity::ticket::Ticket;
use crate::identity::{Email, account};
use crate::reason::Reason;

/// Why a form was refused, as every client learns it.
#[derive(Clone, Copy, Debug)]
pub struct Why<'a> {
    /// The reason.
    pub reason: Reason,
    /// What is wrong with the request.
    pub fault: Option<RequestFault>,
    /// Why a new password was rejected.
    pub rejected: Option<RejectedPassword>,
    /// Whole seconds until a retry makes sense.
    pub retry_after: Option<u64>,
    /// The second factor that still waits for its first code.
    pub enrolment: Option<&'a Enrolment>,
    /// What the page that asks for the code of a login needs.
    pub ticket: Option<&'a Ticket>,
    /// Where the person was going, if the request does not say.
    pub back: Option<&'a str>,
    /// The id of the request.
    pub request_id: &'a str,
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

    pub(super) fn whole(text: impl Into<String>) -> Self {
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
    let words = &filled.texts.wrong;
    let complaint = match why.reason {
        Reason::LoginFailed if page == Page::Provider => Complaint::whole(&words.provider_failed),
        Reason::AccountExists if page == Page::Provider => Complaint::whole(&words.provider_taken),
        Reason::LoginFailed => login_failed(page, filled.texts),
        // The password was right, so nothing is wrong yet.
        Reason::CodeRequired if matches!(page, Page::Login | Page::Code) => return Vec::new(),
        Reason::CodeRequired => no_code(filled.texts),
        Reason::AccountExists => Complaint::at("email", &words.taken),
        Reason::PasswordRejected => password_rejected(page, why.rejected, filled.texts),
        Reason::RequestInvalid if page == Page::NewToken => new_token_invalid(why.fault, filled),
        Reason::RequestInvalid => return request_invalid(page, filled),
        Reason::RateLimited => {
            let wait = filled.texts.wait(why.retry_after.unwrap_or(60));
            Complaint::whole(texts::filled(&words.limited, &[("wait", &wait)]))
        }
        Reason::LinkInvalid if page == Page::VerifyEmail => {
            Complaint::whole(&words.link_unconfirmed)
        }
        Reason::MethodNotAllowed => Complaint::whole(&filled.texts.outcome.method.text),
        reason => Complaint::whole(about_the_whole(reason, words)),
    };
    vec![complaint]
}

/// For an app that is set up, or being set up: recovery codes do not apply here.
pub(in crate::identity) fn wrong_code(texts: &Texts) -> Complaint {
    Complaint::at("code", &texts.wrong.app_code)
}

/// The same, for a missing code.
pub(in crate::identity) fn no_code(texts: &Texts) -> Complaint {
    Complaint::at("code", &texts.wrong.no_app_code)
}

/// What is wrong with a login, or with a password that confirms the caller.
fn login_failed(page: Page, texts: &Texts) -> Complaint {
    let words = &texts.wrong;
    match page {
        Page::Login => Complaint::at("password", &words.login),
        Page::Code => Complaint::at("code", &words.login_code),
        Page::VerifyEmail => Complaint::at("password", &words.confirm),
        Page::ChangeEmail => Complaint::at("password", &words.password),
        Page::DeleteAccount => Complaint::at("password", &words.password_or_code),
        Page::RemoveTotp | Page::NewCodes => {
            Complaint::at("current_password", &words.password_or_code)
        }
        Page::ConfirmTotp => wrong_code(texts),
        _ => Complaint::at("current_password", &words.password),
    }
}

/// Why a new password was rejected, at its field.
fn password_rejected(page: Page, rejected: Option<RejectedPassword>, texts: &Texts) -> Complaint {
    let words = &texts.wrong;
    let is_new = matches!(page, Page::Change | Page::VerifyEmail);
    let field = if is_new { "new_password" } else { "password" };
    let text = match rejected {
        Some(RejectedPassword::TooShort { least }) => {
            texts::filled(&words.too_short, &[("least", &least.to_string())])
        }
        Some(RejectedPassword::TooLong) => {
            texts::filled(&words.password_too_long, &[("most", &MOST_BYTES.to_string())])
        }
        Some(RejectedPassword::Same) => words.same.clone(),
        Some(RejectedPassword::Common) | None => words.common.clone(),
        Some(RejectedPassword::Personal) => words.personal.clone(),
        Some(RejectedPassword::Guessable(weakness)) => {
            let why = match weakness {
                Weakness::Keyboard => &words.keyboard,
                Weakness::Repetition => &words.repetition,
                Weakness::Sequence => &words.sequence,
                Weakness::Date => &words.date,
                Weakness::Word => &words.word,
                Weakness::Short => &words.short,
            };
            texts::filled(&words.guessable, &[("why", why)])
        }
    };
    Complaint::at(field, text)
}

fn request_invalid(page: Page, filled: &Filled) -> Vec<Complaint> {
    match page {
        Page::Totp | Page::ConfirmTotp => {
            vec![Complaint::whole(&filled.texts.wrong.second_factor_on)]
        }
        page => incomplete(page, filled),
    }
}

/// What is wrong with a new token, at its field.
fn new_token_invalid(fault: Option<RequestFault>, filled: &Filled) -> Complaint {
    let words = &filled.texts.tokens;
    match fault {
        _ if filled.name.trim().is_empty() => Complaint::at("name", &words.no_name),
        Some(RequestFault::TokenName) => Complaint::at("name", &words.bad_name),
        Some(RequestFault::TokenNameTaken) => Complaint::at("name", &words.taken),
        Some(RequestFault::TokenRoles) => Complaint::at("roles", &words.bad_role),
        Some(RequestFault::TokenTtl) => Complaint::at("ttl", &words.bad_ttl),
        Some(RequestFault::TooManyTokens) => Complaint::whole(&words.too_many),
        _ => Complaint::whole(&filled.texts.wrong.empty),
    }
}

/// A message that belongs to no field.
fn about_the_whole(reason: Reason, words: &WrongTexts) -> &str {
    match reason {
        Reason::EmailUnverified => &words.unconfirmed,
        Reason::LoginExpired => &words.provider_expired,
        Reason::LoginNotAllowed => &words.provider_not_allowed,
        Reason::GroupsOverage => &words.provider_overage,
        Reason::LoginMethod => &words.no_password_login,
        Reason::StepUpRequired => &words.step_up,
        Reason::KeysUnavailable => &words.provider_away,
        Reason::LinkInvalid => &words.link,
        Reason::RegistrationClosed => &words.registration_closed,
        Reason::OriginForeign => &words.foreign,
        Reason::Overloaded => &words.busy,
        Reason::StoreUnavailable | Reason::Draining => &words.unavailable,
        Reason::BodyTooLarge => &words.too_long,
        Reason::RouteNotFound => &words.not_found,
        Reason::CredentialsMissing
        | Reason::CredentialsMalformed
        | Reason::CredentialsAmbiguous
        | Reason::InvalidGrant => &words.session_over,
        reason if reason.is_about_token() => &words.session_over,
        _ => &words.other,
    }
}

/// What a form lacks.
fn incomplete(page: Page, filled: &Filled) -> Vec<Complaint> {
    let words = &filled.texts.wrong;
    let mut found = Vec::new();
    if matches!(page, Page::Login | Page::Register | Page::Forgot | Page::AskForEmail)
        && Email::parse(&filled.email).is_err()
    {
        found.push(Complaint::at("email", &words.email));
    }
    if matches!(page, Page::Register | Page::ChangeName) && account::name(&filled.name).is_err() {
        found.push(Complaint::at("name", &words.name));
    }
    if found.is_empty() {
        // Only where no mail can be sent is a valid address refused.
        let text = if page == Page::AskForEmail { &words.no_mail } else { &words.empty };
        found.push(Complaint::whole(text));
    }
    found
}

/// The notice about what was just done.
pub(in crate::identity) fn notice(done: &str, texts: &'static Texts) -> Option<&'static str> {
    let words = &texts.done;
    Some(match done {
        "registered" => &words.registered,
        "verify" => &words.verify,
        "verified" => &words.verified,
        "confirmed" => &words.confirmed,
        "sent" => &words.sent,
        "password" => &words.password,
        "everywhere" => &words.everywhere,
        "ended" => &words.ended,
        "revoked" => &words.revoked,
        "totp_off" => &words.totp_off,
        "changed" => &words.changed,
        "email_asked" => &words.email_asked,
        "email" => &words.email,
        "deleted" => &words.deleted,
        "step_up" => &texts.wrong.step_up,
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
            | Page::NewCodes
            | Page::Account
            | Page::ChangeName
            | Page::AskForEmail
            | Page::DeleteAccount
            | Page::Sessions
            | Page::NewToken
            | Page::Other
    )
}
