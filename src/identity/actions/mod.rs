//! What each endpoint does: one file for each capability, with its request and response bodies.

pub mod account;
pub mod email;
pub mod login;
pub mod password;
pub mod personal_token;
pub mod profile;
pub mod provider;
mod published;
pub mod second_factor;
pub mod session;

use self::published::metadata;
use super::endpoints::Action;
use super::error::IdentityError;
use super::link::Purpose;
use super::outcome::{Answered, Outcome, Step};
use super::pages::{Filled, Page};
use super::request::Request;
use super::{Identity, Policy, Registration, cookie};
use crate::store::AccountRow;
use crate::token::VerifiedToken;

impl Identity {
    pub(super) async fn act(&self, request: &Request, policy: &Policy) -> Answered {
        if !policy.password_login && needs_password_login(request.endpoint.action) {
            return Err(IdentityError::NoPasswordLogin.into());
        }
        match request.endpoint.action {
            Action::Register => self.register(request, policy).await,
            Action::Login => self.login(request, policy).await,
            Action::LoginWithCode => self.login_with_code(request, policy).await,
            Action::Depart => self.depart(request, policy).await,
            Action::ComeBack => self.come_back(request, policy).await,
            Action::BackchannelLogout => self.backchannel_logout(request, policy).await,
            Action::Refresh => self.refresh(request, policy).await,
            Action::Logout => self.logout(request, policy).await,
            Action::LogoutAll => self.logout_all(request, policy).await,
            Action::Me => self.me(request).await,
            Action::ChangeAccount => self.change_account(request, policy).await,
            Action::Account => self.show_account(request, policy).await,
            Action::DeleteAccount => self.delete_account(request, policy).await,
            Action::Export => self.export(request, policy).await,
            Action::ChangeEmail => self.change_email(request, policy).await,
            Action::Sessions => self.list_sessions(request, policy).await,
            Action::EndSession => self.end_session(request, policy).await,
            Action::Tokens => self.list_tokens(request).await,
            Action::CreateToken => self.create_token(request).await,
            Action::RevokeToken => self.revoke_token(request, policy).await,
            Action::ChangePassword => self.change_password(request, policy).await,
            Action::ForgotPassword => self.forgot_password(request, policy).await,
            Action::ResetPassword => self.reset_password(request, policy).await,
            Action::VerifyEmail => self.verify_email(request, policy).await,
            Action::ResendEmail => self.resend_email(request, policy).await,
            Action::BeginTotp => self.begin_totp(request, policy).await,
            Action::ConfirmTotp => self.confirm_totp(request, policy).await,
            Action::RemoveTotp => self.remove_totp(request, policy).await,
            Action::RenewCodes => self.renew_codes(request).await,
            Action::Keys => Ok(Outcome::Published(self.keys.published())),
            Action::Metadata => Ok(Outcome::Published(metadata(policy, &self.keys.algorithms()))),
            Action::Page(Page::Totp) => self.show_totp(request, policy).await,
            Action::Page(
                page @ (Page::Change | Page::NewCodes | Page::ChangeName | Page::DeleteAccount),
            ) => self.show_own(page, request, policy).await,
            Action::Page(page @ Page::Reset) => {
                self.show_link((page, Purpose::Reset), request, policy).await
            }
            Action::Page(page @ Page::VerifyEmail) => {
                self.show_link((page, Purpose::Verify), request, policy).await
            }
            Action::Page(page @ Page::ChangeEmail) => {
                self.show_link((page, Purpose::Change), request, policy).await
            }
            Action::Page(page) => show_page(page, None, request, policy),
            Action::Style => Ok(Outcome::File(policy.brand.style.clone())),
            Action::Logo => match &policy.brand.logo {
                Some(logo) => Ok(Outcome::File(logo.clone())),
                None => Err(IdentityError::NoLogo.into()),
            },
            Action::Icon => Ok(Outcome::File(policy.brand.icon.clone())),
            Action::Home => Ok(Outcome::Home),
        }
    }

    /// The account of the caller, as long as the caller's token is not cut off. The generation in it
    /// is then that of the token's session: a change that is bound to it fails once the sessions have
    /// ended. The account says so before the list of revocations does, and wherever sessions are.
    pub(super) async fn account_of(&self, request: &Request) -> Result<AccountRow, IdentityError> {
        let caller = caller(request)?;
        let account = self.accounts.by_id(caller.subject()).await?;
        let account =
            account.filter(|account| account.disabled == 0).ok_or(IdentityError::NoCaller)?;
        let is_later = |issued_at: u64| issued_at.cast_signed() > account.not_before;
        if !caller.issued_at().is_some_and(is_later) {
            return Err(IdentityError::TokenRevoked);
        }
        Ok(account)
    }
}

/// Whether an action is a part of logging in with a password.
fn needs_password_login(action: Action) -> bool {
    matches!(
        action,
        Action::Register
            | Action::Login
            | Action::LoginWithCode
            | Action::ForgotPassword
            | Action::ResetPassword
            | Action::ChangePassword
            | Action::VerifyEmail
            | Action::ResendEmail
            | Action::Page(
                Page::Register | Page::Forgot | Page::Reset | Page::Change | Page::VerifyEmail
            )
    )
}

/// The caller. The gateway rejects requests without one before they reach an endpoint that needs
/// it.
fn caller(request: &Request) -> Result<&VerifiedToken, IdentityError> {
    request.caller.as_deref().ok_or(IdentityError::NoCaller)
}

/// A page that is rendered from the request and the policy. `account`: to whom its fields belong.
fn show_page(
    page: Page,
    account: Option<AccountRow>,
    request: &Request,
    policy: &Policy,
) -> Answered {
    let page = match page {
        Page::Register if policy.registration == Registration::Closed => {
            return Err(IdentityError::RegistrationClosed.into());
        }
        // A browser whose access cookie has expired is still logged in.
        Page::Logout
            if request.caller.is_none()
                && cookie::refresh_token(&request.headers, policy).is_none() =>
        {
            Page::LoggedOut
        }
        page => page,
    };
    let mut filled = Filled::from_query(request.query.as_deref(), request.texts(policy));
    // With one way to log in there is nothing to choose, unless there is something to read first.
    if let (Page::Login, Some(only), None) = (page, policy.only_provider(), &filled.done) {
        let path = request.mount.path(&format!("/login/{}", only.settings().name));
        return Ok(Outcome::Step(Step::ToProvider(filled.onwards(&path, policy))));
    }
    if let Some(account) = account {
        filled.is_first = account.password.is_empty();
        filled.username = account.email;
        filled.name = account.name.unwrap_or_default();
    }
    Ok(Outcome::Shown(page, Box::new(filled)))
}
