//! What each endpoint does: one file a capability, with what it reads and answers.

pub mod account;
pub mod email;
pub mod login;
pub mod password;
mod published;
pub mod second_factor;
pub mod session;

use bytes::Bytes;
use http::Response;

use self::published::{MAX_AGE, metadata};
use super::answer::{asset, public, see_other};
use super::endpoints::Action;
use super::error::IdentityError;
use super::link::Purpose;
use super::pages::Page;
use super::people::show_page;
use super::request::Request;
use super::{Identity, Policy, Refused};
use crate::store::AccountRow;
use crate::token::VerifiedToken;

pub(in crate::identity) type Answered = Result<Response<Bytes>, Refused>;

impl Identity {
    pub(in crate::identity) async fn act(&self, request: &Request, policy: &Policy) -> Answered {
        match request.endpoint.action {
            Action::Register => self.register(request, policy).await,
            Action::Login => self.login(request, policy).await,
            Action::Refresh => self.refresh(request, policy).await,
            Action::Renew => self.renew(request, policy).await,
            Action::Logout => self.logout(request, policy).await,
            Action::LogoutAll => self.logout_all(request, policy).await,
            Action::Me => self.me(request).await,
            Action::Sessions => self.list_sessions(request, policy).await,
            Action::EndSession => self.end_session(request, policy).await,
            Action::ChangePassword => self.change_password(request, policy).await,
            Action::ForgotPassword => self.forgot_password(request, policy).await,
            Action::ResetPassword => self.reset_password(request, policy).await,
            Action::VerifyEmail => self.verify_email(request, policy).await,
            Action::ResendEmail => self.resend_email(request, policy).await,
            Action::BeginTotp => self.begin_totp(request, policy).await,
            Action::ConfirmTotp => self.confirm_totp(request, policy).await,
            Action::RemoveTotp => self.remove_totp(request).await,
            Action::Keys => Ok(public(self.keys.published(), MAX_AGE)),
            Action::Metadata => Ok(metadata(policy, &self.keys.algorithms())),
            Action::Page(Page::Totp) => self.show_totp(request, policy).await,
            Action::Page(Page::Change) => self.show_change(request, policy).await,
            Action::Page(page @ Page::Reset) => {
                self.show_link((page, Purpose::Reset), request, policy).await
            }
            Action::Page(page @ Page::VerifyEmail) => {
                self.show_link((page, Purpose::Verify), request, policy).await
            }
            Action::Page(page) => show_page(page, None, request, policy),
            Action::Style => Ok(asset(&policy.brand.style, request)),
            Action::Logo => policy
                .brand
                .logo
                .as_ref()
                .map(|logo| asset(logo, request))
                .ok_or_else(|| IdentityError::NoLogo.into()),
            Action::Icon => Ok(asset(&policy.brand.icon, request)),
            Action::Home => Ok(see_other(&request.mount.path("/sessions"))),
        }
    }

    /// The account of whoever calls.
    pub(in crate::identity) async fn account_of(
        &self,
        request: &Request,
    ) -> Result<AccountRow, IdentityError> {
        let account = self.accounts.by_id(caller(request)?.subject()).await?;
        account.filter(|account| account.disabled == 0).ok_or(IdentityError::Nobody)
    }
}

/// Whoever calls: the gateway lets nobody else to an endpoint that needs a caller.
pub(in crate::identity) fn caller(request: &Request) -> Result<&VerifiedToken, IdentityError> {
    request.caller.as_deref().ok_or(IdentityError::Nobody)
}
