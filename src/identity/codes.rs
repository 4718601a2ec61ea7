//! What is done with second factors: set up, asked for at a login, taken away.

use http::StatusCode;

use super::actions::Answered;
use super::answer::{done, json};
use super::bodies::{self, Secret};
use super::error::{IdentityError, NoLogin};
use super::request::Request;
use super::second_factor::Checked;
use super::{Email, Identity, Policy, Refused, audit, pages};
use crate::store::AccountRow;

impl Identity {
    pub(super) async fn begin_totp(&self, request: &Request, policy: &Policy) -> Answered {
        if !policy.totp {
            return Err(IdentityError::NotOffered.into());
        }
        let body: bodies::BeginTotp = request.read()?;
        let account = self.account_of(request).await?;
        self.check_again(&account, &body.current_password, request).await?;
        let enrolment = self
            .second_factors
            .begin(&account.id, &policy.brand.name, &account.email, self.clock.unix_time())
            .await;
        let enrolment = enrolment.map_err(IdentityError::from)?;
        Ok(json(StatusCode::OK, &bodies::Enrolment::of(&enrolment)))
    }

    pub(super) async fn confirm_totp(&self, request: &Request, policy: &Policy) -> Answered {
        if !policy.totp {
            return Err(IdentityError::NotOffered.into());
        }
        let body: bodies::ConfirmTotp = request.read()?;
        let account = self.account_of(request).await?;
        let codes = self
            .second_factors
            .confirm(&account.id, body.code.expose(), self.clock.unix_time())
            .await;
        let codes = codes.map_err(IdentityError::from)?;
        audit::record("totp_confirmed", request.client, &account.id, "");
        Ok(json(
            StatusCode::OK,
            &bodies::RecoveryCodes {
                recovery_codes: codes.iter().map(|code| code.to_string()).collect(),
            },
        ))
    }

    /// The same page once more for a code that was not taken, with the secret that waits: whoever
    /// has not scanned it yet still can.
    pub(super) async fn enrolment_again(
        &self,
        request: &Request,
        policy: &Policy,
        refused: Refused,
    ) -> Refused {
        let is_about_the_code =
            matches!(&refused.error, IdentityError::Login(_) | IdentityError::Request(_));
        let (true, Ok(account)) = (is_about_the_code, self.account_of(request).await) else {
            return refused;
        };
        let begun =
            self.second_factors.begun(&account.id, &policy.brand.name, &account.email).await;
        // Where none waits, the plain page of the refusal leads to another beginning.
        let Ok(Some(enrolment)) = begun else { return refused };
        let is_wrong = matches!(&refused.error, IdentityError::Login(_));
        let page = pages::enrolment_again(
            &bodies::Enrolment::of(&enrolment),
            is_wrong,
            policy,
            &request.mount,
        );
        Refused { page: Some(Box::new(page)), ..refused }
    }

    pub(super) async fn remove_totp(&self, request: &Request) -> Answered {
        let body: bodies::RemoveTotp = request.read()?;
        let account = self.account_of(request).await?;
        self.check_again(&account, &body.current_password, request).await?;
        self.check_code(&account, body.code.as_ref()).await?;
        if self.second_factors.remove(&account.id).await? {
            audit::record("totp_removed", request.client, &account.id, "");
        }
        Ok(done())
    }

    /// Whether somebody who knows the password may go on, as far as a second factor says.
    pub(super) async fn check_code(
        &self,
        account: &AccountRow,
        code: Option<&Secret>,
    ) -> Result<(), IdentityError> {
        match self
            .second_factors
            .check(&account.id, code.map(Secret::expose), self.clock.unix_time())
            .await?
        {
            Checked::NotNeeded | Checked::Right => Ok(()),
            Checked::Missing => Err(IdentityError::CodeRequired),
            Checked::Wrong => Err(IdentityError::Login(NoLogin::Code)),
        }
    }

    /// Whoever holds a session of an account proves that they know its password as well.
    async fn check_again(
        &self,
        account: &AccountRow,
        password: &Secret,
        request: &Request,
    ) -> Result<(), IdentityError> {
        let email = Email::parse(&account.email).ok();
        let checked = self.check(Some(account), email.as_ref(), password.password()).await;
        if let Err(IdentityError::Login(why)) = &checked {
            audit::record("password_check_failed", request.client, &account.id, why.as_str());
        }
        checked
    }
}
