//! What people are answered: pages, and the way to the next one. What is done is done by the same
//! verbs as for programs.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use serde::de::DeserializeOwned;

use super::actions::{Answered, email, login, second_factor, session};
use super::answer::{page, see_other, with_cookies};
use super::endpoints::Action;
use super::error::IdentityError;
use super::link::{Purpose, digest_of};
use super::pages::{self, Filled, Page};
use super::request::Request;
use super::{Identity, Policy, Refused, Registration, cookie, return_to};

impl Identity {
    /// Does what is asked for, and leads a browser on.
    pub(super) async fn answer_people(&self, request: &Request, policy: &Policy) -> Answered {
        let mount = &request.mount;
        let endpoint = request.endpoint;
        if endpoint.method == "GET" {
            return match endpoint.action {
                Action::Sessions => self.show_sessions(request, policy).await,
                _ => self.act(request, policy).await,
            };
        }
        if endpoint.action == Action::VerifyEmail {
            return self.confirm_and_log_in(request, policy).await;
        }
        let done = match self.act(request, policy).await {
            Err(refused) if endpoint.action == Action::ConfirmTotp => {
                return Err(self.enrolment_again(request, policy, refused).await);
            }
            done => done?,
        };
        let next = match endpoint.action {
            Action::Register => return Ok(self.after_registration(request, policy).await),
            Action::Logout => "/logout",
            Action::LogoutAll => "/login?done=everywhere",
            // One's own cookies are taken away with it.
            Action::EndSession if done.headers().contains_key(header::SET_COOKIE) => "/logout",
            Action::EndSession => "/sessions?done=ended",
            Action::ChangePassword | Action::ResetPassword => "/login?done=password",
            Action::ForgotPassword => "/password/forgot?done=sent",
            Action::ResendEmail => "/login?done=sent",
            Action::RemoveTotp => "/sessions?done=totp_off",
            // What these show, they show once.
            Action::BeginTotp => {
                return read(&done)
                    .map(|enrolment| page(second_factor::enrolment(&enrolment, policy, mount)));
            }
            Action::ConfirmTotp => {
                return read(&done)
                    .map(|codes| page(second_factor::recovery_codes(codes, policy, mount)));
            }
            _ => return Ok(done),
        };
        Ok(with_cookies(see_other(&mount.path(next)), cookies(&done)))
    }

    /// Whoever has just registered is logged in, unless their address has to be confirmed first.
    async fn after_registration(&self, request: &Request, policy: &Policy) -> Response<Bytes> {
        let back = request.read::<login::Login>().ok().and_then(|body| body.return_to);
        let login = |done: &str| {
            let path = request.mount.path(&format!("/login?done={done}"));
            match return_to::local(back.as_deref()) {
                "/" => see_other(&path),
                back => see_other(&return_to::remembering(&path, back)),
            }
        };
        if policy.verify_email {
            return login("verify");
        }
        // The account is there, whatever comes of this.
        self.login(request, policy).await.unwrap_or_else(|_| login("registered"))
    }

    /// Whoever has opened the link and knows the password, or has set one, is logged in.
    async fn confirm_and_log_in(&self, request: &Request, policy: &Policy) -> Answered {
        let body: email::VerifyEmail = request.read()?;
        let login = |done: &str| see_other(&request.mount.path(&format!("/login?done={done}")));
        let account = match self.confirm_address(&body, request, policy).await {
            Err(IdentityError::AlreadyConfirmed) => return Ok(login("confirmed")),
            confirmed => confirmed?,
        };
        // The address is confirmed, whatever comes of this: a login may ask for a code besides.
        match self.open(&account, None, request, policy).await {
            Ok(session) => self.lead_in(session, "/", request, policy).await,
            Err(_) => Ok(login("verified")),
        }
    }

    /// The page that a mailed link leads to.
    pub(super) async fn show_link(
        &self,
        (shown, purpose): (Page, Purpose),
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        let link = digest_of(&request.parameter_of_query("token").unwrap_or_default());
        let account = self.accounts.by_link(&link, purpose, self.clock.unix_seconds()).await?;
        if account.is_none()
            && purpose == Purpose::Verify
            && self.accounts.is_confirmed_by_now(&link).await?
        {
            return Ok(see_other(&request.mount.path("/login?done=confirmed")));
        }
        show_page(shown, account.map(|account| account.email), request, policy)
    }

    /// The page to change the password.
    pub(super) async fn show_change(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        show_page(Page::Change, Some(account.email), request, policy)
    }

    /// The page that turns the second factor on, or off where it is on.
    pub(super) async fn show_totp(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let shown = match self.second_factors.has(&account.id).await? {
            true => Page::RemoveTotp,
            false if policy.totp => Page::Totp,
            false => return Err(IdentityError::NotOffered.into()),
        };
        show_page(shown, Some(account.email), request, policy)
    }

    async fn show_sessions(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let current = request.caller.as_deref().and_then(|caller| caller.sid());
        let sessions = self.sessions.of(&account.id, policy, self.clock.unix_time()).await?;
        let filled = Filled::from_query(request.query.as_deref());
        let codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        Ok(page(session::sessions_page(
            (&account, codes_left),
            sessions,
            current,
            self.clock.unix_seconds(),
            &filled,
            policy,
            &request.mount,
        )))
    }
}

/// A page whose content is in the request and the policy; `username` is the address of the account
/// that its passwords are of.
pub(super) fn show_page(
    shown: Page,
    username: Option<String>,
    request: &Request,
    policy: &Policy,
) -> Answered {
    let mut filled = Filled::from_query(request.query.as_deref());
    filled.username = username.unwrap_or_default();
    let shown = match shown {
        Page::Register if policy.registration == Registration::Closed => {
            return Err(IdentityError::RegistrationClosed.into());
        }
        // A browser whose access cookie has expired is logged in still.
        Page::Logout
            if request.caller.is_none() && cookie::refresh_token(&request.headers).is_none() =>
        {
            Page::LoggedOut
        }
        shown => shown,
    };
    Ok(page(pages::show(shown, &filled, policy, &request.mount)))
}

/// What an endpoint told, in its own words.
fn read<T: DeserializeOwned>(done: &Response<Bytes>) -> Result<T, Refused> {
    serde_json::from_slice(done.body()).map_err(|_| IdentityError::Stopping.into())
}

fn cookies(response: &Response<Bytes>) -> Vec<HeaderValue> {
    response.headers().get_all(header::SET_COOKIE).iter().cloned().collect()
}
