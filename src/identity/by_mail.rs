//! What is done by mail: another password, and addresses that are shown to be their owners'.

use uuid::Uuid;

use super::account::{AccountError, NewAccount};
use super::actions::Answered;
use super::answer::{accepted, done, with_cookies};
use super::error::{IdentityError, RequestFault};
use super::link::{Purpose, digest_of};
use super::outbox::Wish;
use super::request::Request;
use super::{Email, Identity, Policy, audit, bodies, cookie};
use crate::store::AccountRow;

impl Identity {
    /// Has a link mailed, if there is such an account. Nobody has looked for it when the answer is
    /// given.
    pub(super) async fn forgot_password(&self, request: &Request, policy: &Policy) -> Answered {
        self.wish(Wish::Reset, "password_reset_asked", request, policy).await
    }

    pub(super) async fn resend_email(&self, request: &Request, policy: &Policy) -> Answered {
        self.wish(Wish::Verify, "email_link_asked", request, policy).await
    }

    async fn wish(
        &self,
        wish: Wish,
        event: &'static str,
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        let body: bodies::Address = request.read()?;
        match Email::parse(&body.email) {
            Ok(email) => self.mail(wish, &email, policy).await?,
            // The answer is always the same: an address that none can be has no account either. A
            // person may have mistyped it.
            Err(_) if request.is_for_people() => {
                return Err(IdentityError::Request(RequestFault::Email).into());
            }
            Err(_) => {}
        }
        audit::record(event, request.client, "", "");
        Ok(accepted())
    }

    pub(super) async fn reset_password(&self, request: &Request, policy: &Policy) -> Answered {
        let body: bodies::ResetPassword = request.read()?;
        let (link, now) = (digest_of(body.token.expose()), self.clock.unix_seconds());
        let account =
            self.accounts.by_link(&link, Purpose::Reset, now).await?.ok_or(IdentityError::Link)?;
        let email = Email::parse(&account.email).map_err(|_| IdentityError::Link)?;
        // A password that is not taken leaves the link good.
        let hash = self
            .new_hash(body.password.password(), &email, account.name.as_deref(), policy)
            .await?;
        if !self
            .accounts
            .reset_password(
                &account,
                (&link, Purpose::Reset),
                &hash,
                policy,
                self.clock.unix_seconds(),
            )
            .await?
        {
            return Err(IdentityError::Link.into());
        }
        audit::record("password_reset", request.client, &account.id, "");
        self.tell_of_change(&account, policy).await;
        Ok(with_cookies(done(), cookie::clear(policy, &request.mount)))
    }

    pub(super) async fn verify_email(&self, request: &Request, policy: &Policy) -> Answered {
        let body: bodies::VerifyEmail = request.read()?;
        self.confirm_address(&body, request, policy).await?;
        Ok(done())
    }

    /// Shows an address to be the owner's, by a mailed link: the account. Whoever made the account
    /// may be a stranger to the address, and whoever opens the link proves that they know the
    /// password, or drops it: none that a stranger has chosen is ever good.
    pub(super) async fn confirm_address(
        &self,
        body: &bodies::VerifyEmail,
        request: &Request,
        policy: &Policy,
    ) -> Result<AccountRow, IdentityError> {
        let (link, now) = (digest_of(body.token.expose()), self.clock.unix_seconds());
        let Some(account) = self.accounts.by_link(&link, Purpose::Verify, now).await? else {
            let is_confirmed = self.accounts.is_confirmed_by_now(&link).await?;
            return Err(if is_confirmed {
                IdentityError::AlreadyConfirmed
            } else {
                IdentityError::Link
            });
        };
        let email = Email::parse(&account.email).map_err(|_| IdentityError::Link)?;
        let is_confirmed = match (&body.password, &body.new_password) {
            (Some(password), None) => {
                self.check(Some(&account), Some(&email), password.password()).await?;
                self.accounts.verify_email(&account, &link, self.clock.unix_seconds()).await?
            }
            (None, Some(new)) => {
                let new = new.password();
                let hash = self.new_hash(new, &email, account.name.as_deref(), policy).await?;
                let link = (link.as_str(), Purpose::Verify);
                let now = self.clock.unix_seconds();
                self.accounts.reset_password(&account, link, &hash, policy, now).await?
            }
            _ => return Err(IdentityError::Request(RequestFault::WhichPassword)),
        };
        if !is_confirmed {
            return Err(IdentityError::Link);
        }
        let how = if body.new_password.is_some() { "new_password" } else { "" };
        audit::record("email_verified", request.client, &account.id, how);
        self.accounts.by_id(&account.id).await?.ok_or(IdentityError::Link)
    }

    /// Makes an account whose owner is mailed a link. Where the address has one, they are mailed
    /// that, and whoever asked is told the same as anybody.
    pub(super) async fn register_by_mail(
        &self,
        new: NewAccount,
        policy: &Policy,
    ) -> Result<AccountRow, IdentityError> {
        let (email, now) = (new.email.clone(), self.clock.unix_seconds());
        let (name, roles) = (new.name.clone(), new.roles.join(" "));
        match self.accounts.add(new, now).await {
            Ok(account) => {
                self.mail(Wish::Verify, &email, policy).await?;
                Ok(account)
            }
            Err(AccountError::Taken) => {
                self.mail(Wish::Exists, &email, policy).await?;
                Ok(AccountRow {
                    id: Uuid::new_v4().to_string(),
                    email: email.as_str().to_owned(),
                    name,
                    password: String::new(),
                    roles,
                    disabled: 0,
                    email_verified: 0,
                    generation: 0,
                    not_before: 0,
                    created_at: now.cast_signed(),
                    last_login_at: None,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the owner that the password was changed. It was: what comes of the message does not
    /// matter to that.
    pub(super) async fn tell_of_change(&self, account: &AccountRow, policy: &Policy) {
        if let (Ok(email), true) = (Email::parse(&account.email), policy.mail.is_some())
            && let Err(error) = self.outbox.put(Wish::Changed, &email).await
        {
            tracing::warn!(cause = %error, account = account.id, "nobody was mailed that a password was changed");
        }
    }

    async fn mail(&self, wish: Wish, email: &Email, policy: &Policy) -> Result<(), IdentityError> {
        if policy.mail.is_none() {
            tracing::warn!("somebody asks for a mail, and [identity] has no mail: none is sent");
            return Ok(());
        }
        Ok(self.outbox.put(wish, email).await?)
    }
}
