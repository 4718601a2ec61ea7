//! What people are answered: pages, and the way to the next one. What is done is done by the same
//! verbs as for programs.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use serde::de::DeserializeOwned;

use super::actions::Answered;
use super::answer::{page, see_other, with_cookies};
use super::endpoints::Action;
use super::error::IdentityError;
use super::pages::{self, Filled, Page};
use super::request::Request;
use super::{Identity, Policy, Refused, Registration, cookie};

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
            Action::VerifyEmail => "/login?done=verified",
            Action::ResendEmail => "/login?done=sent",
            Action::RemoveTotp => "/sessions?done=totp_off",
            // What these show, they show once.
            Action::BeginTotp => {
                return read(&done)
                    .map(|enrolment| page(pages::enrolment(&enrolment, policy, mount)));
            }
            Action::ConfirmTotp => {
                return read(&done).map(|codes| page(pages::recovery_codes(codes, policy, mount)));
            }
            _ => return Ok(done),
        };
        Ok(with_cookies(see_other(&mount.path(next)), cookies(&done)))
    }

    /// Whoever has just registered is logged in, unless their address has to be confirmed first.
    async fn after_registration(&self, request: &Request, policy: &Policy) -> Response<Bytes> {
        let login = request.mount.path("/login");
        if policy.verify_email {
            return see_other(&format!("{login}?done=verify"));
        }
        // The account is there, whatever comes of this.
        self.login(request, policy)
            .await
            .unwrap_or_else(|_| see_other(&format!("{login}?done=registered")))
    }

    /// The page that turns the second factor on, or off where it is on.
    pub(super) async fn show_totp(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let shown = match self.second_factors.has(&account.id).await? {
            true => Page::RemoveTotp,
            false if policy.totp => Page::Totp,
            false => return Err(IdentityError::NotOffered.into()),
        };
        show_page(shown, request, policy)
    }

    async fn show_sessions(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let current = request.caller.as_deref().and_then(|caller| caller.sid());
        let sessions = self.sessions.of(&account.id, policy, self.clock.unix_time()).await?;
        let filled = Filled::from_query(request.query.as_deref());
        Ok(page(pages::sessions(
            &account,
            sessions,
            current,
            self.clock.unix_seconds(),
            &filled,
            policy,
            &request.mount,
        )))
    }
}

/// A page whose content is in the request and the policy.
pub(super) fn show_page(shown: Page, request: &Request, policy: &Policy) -> Answered {
    let filled = Filled::from_query(request.query.as_deref());
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
