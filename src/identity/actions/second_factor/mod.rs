//! The second factor: set up, checked at login, removed.

mod page;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

pub(in crate::identity) use self::page::{
    codes_page, confirm_page, enrolment, recovery_codes, remove_page, totp_page,
};
use super::{caller, show_page};
use crate::identity::bodies::Secret;
use crate::identity::error::{IdentityError, NoLogin};
use crate::identity::outbox::MailKind;
use crate::identity::outcome::{Answered, Outcome, Refused};
use crate::identity::pages::Page;
use crate::identity::request::Request;
use crate::identity::second_factor::{self, Checked};
use crate::identity::session::{PASSWORD_ACR, SECOND_FACTOR_ACR};
use crate::identity::{Email, Identity, Policy, audit};
use crate::store::AccountRow;

impl Identity {
    pub(super) async fn begin_totp(&self, request: &Request, policy: &Policy) -> Answered {
        if !policy.totp {
            return Err(IdentityError::NotOffered.into());
        }
        let body: BeginTotp = request.parse_body()?;
        let account = self.account_of(request).await?;
        self.check_again(&account, &body.current_password, request).await?;
        let (session, now) = (session_of(request)?, self.clock.unix_time());
        let enrolment =
            self.second_factors.begin(&account, session, &policy.brand.name, now).await?;
        Ok(Outcome::TotpBegun(Enrolment::new(&enrolment)))
    }

    /// The page that turns it on, or off if it is on.
    pub(super) async fn show_totp(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let page = match self.second_factors.has(&account.id).await? {
            true => Page::RemoveTotp,
            false if policy.totp => Page::Totp,
            false => return Err(IdentityError::NotOffered.into()),
        };
        show_page(page, Some(account), request, policy)
    }

    pub(super) async fn confirm_totp(&self, request: &Request, policy: &Policy) -> Answered {
        match self.confirm_code(request, policy).await {
            Ok(codes) => Ok(Outcome::TotpConfirmed(codes)),
            Err(error) => {
                let enrolment = self.enrolment_after(&error, request, policy).await.map(Box::new);
                Err(Refused { enrolment, ..error.into() })
            }
        }
    }

    async fn confirm_code(
        &self,
        request: &Request,
        policy: &Policy,
    ) -> Result<RecoveryCodes, IdentityError> {
        if !policy.totp {
            return Err(IdentityError::NotOffered);
        }
        let body: ConfirmTotp = request.parse_body()?;
        let account = self.account_of(request).await?;
        let codes = self
            .second_factors
            .confirm(&account, session_of(request)?, body.code.expose(), self.clock.unix_time())
            .await?;
        audit::record("totp_confirmed", request.client, &account.id, "");
        self.notify(MailKind::SecondFactorOn, &account, request, policy).await;
        Ok(RecoveryCodes::new(&codes))
    }

    /// The secret that the session may still confirm, after a code was rejected: a person who has not
    /// scanned it yet can do so now. Without one, the page of the error offers to start again.
    async fn enrolment_after(
        &self,
        error: &IdentityError,
        request: &Request,
        policy: &Policy,
    ) -> Option<Enrolment> {
        let is_about_the_code =
            matches!(error, IdentityError::Login(_) | IdentityError::Request(_));
        if !is_about_the_code || !request.is_for_people() {
            return None;
        }
        let account = self.account_of(request).await.ok()?;
        let (session, now) = (session_of(request).ok()?, self.clock.unix_time());
        let begun = self.second_factors.begun(&account, session, &policy.brand.name, now).await;
        begun.ok().as_ref().map(Enrolment::new)
    }

    pub(super) async fn remove_totp(&self, request: &Request, policy: &Policy) -> Answered {
        let body: RemoveTotp = request.parse_body()?;
        let account = self.account_of(request).await?;
        self.check_again(&account, &body.current_password, request).await?;
        self.check_code(&account, body.code.as_ref()).await?;
        if self.second_factors.remove(&account.id, Some(account.generation)).await? {
            audit::record("totp_removed", request.client, &account.id, "");
            self.notify(MailKind::SecondFactorOff, &account, request, policy).await;
        } else if self.second_factors.has(&account.id).await? {
            return Err(IdentityError::TokenRevoked.into());
        }
        Ok(Outcome::TotpRemoved)
    }

    /// Makes new recovery codes. A second factor is required, so that a stolen password is not
    /// enough to replace it.
    pub(super) async fn renew_codes(&self, request: &Request) -> Answered {
        let body: RemoveTotp = request.parse_body()?;
        let account = self.account_of(request).await?;
        self.check_again(&account, &body.current_password, request).await?;
        self.check_code(&account, body.code.as_ref()).await?;
        let codes = self.second_factors.renew_codes(&account).await?;
        let codes = codes.ok_or(IdentityError::NotOffered)?;
        audit::record("recovery_codes_renewed", request.client, &account.id, "");
        Ok(Outcome::RecoveryCodes(RecoveryCodes::new(&codes)))
    }

    /// Checks the second factor of someone who knows the password. Returns the `acr` that both
    /// amount to.
    pub(super) async fn check_code(
        &self,
        account: &AccountRow,
        code: Option<&Secret>,
    ) -> Result<&'static str, IdentityError> {
        match self
            .second_factors
            .check(&account.id, code.map(Secret::expose), self.clock.unix_time())
            .await?
        {
            Checked::NotNeeded => Ok(PASSWORD_ACR),
            Checked::Right => Ok(SECOND_FACTOR_ACR),
            Checked::Missing => Err(IdentityError::CodeRequired),
            Checked::Wrong => Err(IdentityError::Login(NoLogin::Code)),
        }
    }

    /// Asks the owner of a session for the account's password as well.
    pub(super) async fn check_again(
        &self,
        account: &AccountRow,
        password: &Secret,
        request: &Request,
    ) -> Result<(), IdentityError> {
        let email = Email::parse(&account.email).ok();
        let checked =
            self.check(request.client, Some(account), email.as_ref(), password.password()).await;
        if let Err(IdentityError::Login(why)) = &checked {
            audit::record("password_check_failed", request.client, &account.id, why.as_str());
        }
        checked
    }

    /// The same of the reader of a mailed link. Only the link tells which account it is, so its
    /// failures are counted here.
    pub(in crate::identity::actions) async fn check_behind_link(
        &self,
        account: &AccountRow,
        password: &Secret,
        request: &Request,
    ) -> Result<(), IdentityError> {
        let (limit, guess) = self.budgets.guess_at(&account.id);
        let cell = self.counted(limit, guess).await.map_err(|exceeded| IdentityError::Limited {
            limit: limit.name().to_owned(),
            retry_after: exceeded.retry_after_seconds(),
        })?;
        let checked = self.check_again(account, password, request).await;
        if !matches!(checked, Err(IdentityError::Login(_))) {
            limit.give_back(cell);
        }
        checked
    }
}

/// The session of the caller.
fn session_of(request: &Request) -> Result<&str, IdentityError> {
    caller(request)?.sid().ok_or(IdentityError::NoCaller)
}

/// Starts setting up the second factor.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "current_password": "plum orbit tenant 71" }))]
pub struct BeginTotp {
    /// The current password.
    pub current_password: Secret,
}

/// Proof that the authenticator app has the secret.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "code": "492039" }))]
pub struct ConfirmTotp {
    /// A code of the authenticator app.
    pub code: Secret,
}

/// Removes the second factor, or replaces its recovery codes.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "current_password": "plum orbit tenant 71", "code": "492039" }))]
pub struct RemoveTotp {
    /// The current password.
    pub current_password: Secret,
    /// A code of the authenticator app, or a recovery code.
    pub code: Option<Secret>,
}

/// What an authenticator app needs.
#[derive(Serialize, JsonSchema)]
#[schemars(example = json!({ "secret": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "qr": "<svg xmlns=\"http://www.w3.org/2000/svg\">…</svg>",
    "uri": "otpauth://totp/Example:ann%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Example" }))]
pub struct Enrolment {
    /// To type in: base32.
    pub secret: String,
    /// To open: `otpauth://totp/…`.
    pub uri: String,
    /// To scan: an SVG image.
    pub qr: String,
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Enrolment([secret])")
    }
}

impl Enrolment {
    /// The answer about it.
    pub fn new(enrolment: &second_factor::Enrolment) -> Self {
        Self {
            secret: enrolment.secret.to_string(),
            uri: enrolment.uri.to_string(),
            qr: enrolment.qr.to_string(),
        }
    }
}

/// Codes to use when the authenticator app is lost.
#[derive(Serialize, JsonSchema)]
#[schemars(example = json!({ "recovery_codes": ["K7QX-2MVD-5TLN-WR3A", "P4HB-ZC6E-9SYU-GJ2F"] }))]
pub struct RecoveryCodes {
    /// Each is valid for one login.
    pub recovery_codes: Vec<String>,
}

impl RecoveryCodes {
    fn new(codes: &[Zeroizing<String>]) -> Self {
        Self { recovery_codes: codes.iter().map(|code| code.to_string()).collect() }
    }
}
