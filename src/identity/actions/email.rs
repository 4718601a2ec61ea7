//! Confirmation of e-mail addresses, and requests for mail.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::show_page;
use crate::identity::account::NewAccount;
use crate::identity::bodies::{LINK_TOKEN, Secret};
use crate::identity::error::{IdentityError, RequestFault};
use crate::identity::link::{Purpose, digest_of};
use crate::identity::outbox::MailKind;
use crate::identity::outcome::{Answered, Outcome};
use crate::identity::pages::{Content, Field, Filled, Form, Link, Page};
use crate::identity::request::Request;
use crate::identity::session::Keep;
use crate::identity::{Email, Identity, Mount, Policy, audit};
use crate::store::AccountRow;

impl Identity {
    pub(super) async fn resend_email(&self, request: &Request, policy: &Policy) -> Answered {
        self.promise_link(Purpose::Verify, request, policy).await
    }

    /// Queues a mail with a link, which is sent only if such an account exists.
    pub(super) async fn promise_link(
        &self,
        purpose: Purpose,
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        let (kind, event) = match purpose {
            Purpose::Reset => (MailKind::Reset, "password_reset_asked"),
            Purpose::Verify | Purpose::Change => (MailKind::Verify, "email_link_asked"),
        };
        let body: Address = request.parse_body()?;
        match Email::parse(&body.email) {
            Ok(email) => {
                self.mail(kind, &email, body.return_to.as_deref(), request, policy).await?;
            }
            // The response is always the same: an address that is not valid has no account either.
            // For a person it is a likely typing error, so they get an error.
            Err(_) if request.is_for_people() => {
                return Err(IdentityError::Request(RequestFault::Email).into());
            }
            Err(_) => {}
        }
        audit::record(event, request.client, "", "");
        Ok(Outcome::LinkPromised(purpose))
    }

    pub(super) async fn verify_email(&self, request: &Request, policy: &Policy) -> Answered {
        let body: VerifyEmail = request.parse_body()?;
        let confirmed = self.confirm_address(&body, request, policy).await;
        if !request.is_for_people() {
            return confirmed.map(|_| Outcome::EmailVerified { tokens: None }).map_err(Into::into);
        }
        let account = match confirmed {
            Err(IdentityError::AlreadyConfirmed) => return Ok(Outcome::AlreadyVerified),
            confirmed => confirmed?,
        };
        // The address is confirmed, even if this login fails: it may also require a code.
        let tokens = match self.open(&account, None, Keep::Lasting, request, policy).await {
            Ok(session) => Some(self.tokens(session, policy).await?),
            Err(_) => None,
        };
        Ok(Outcome::EmailVerified { tokens })
    }

    /// The page behind a mailed link.
    pub(super) async fn show_link(
        &self,
        (page, purpose): (Page, Purpose),
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        let link = digest_of(&request.parameter_of_query("token").unwrap_or_default());
        let account = self.accounts.by_link(&link, purpose, self.clock.unix_seconds()).await?;
        if account.is_none()
            && purpose == Purpose::Verify
            && self.accounts.is_confirmed_by_now(&link).await?
        {
            return Ok(Outcome::AlreadyVerified);
        }
        // Say so before somebody types a password in vain.
        let account = account.ok_or(IdentityError::Link)?;
        show_page(page, Some(account), request, policy)
    }

    /// Confirms an address by a mailed link and returns the account. A stranger may have created
    /// the account. So whoever opens the link either proves that they know its password or replaces
    /// it: a password that a stranger chose never becomes usable.
    pub(super) async fn confirm_address(
        &self,
        body: &VerifyEmail,
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
        // As it is once the address is confirmed. A new password counts its generation up; what else
        // has ended its sessions since also ends the login that follows.
        let confirmed = AccountRow {
            email_verified: 1,
            generation: account.generation + i64::from(body.new_password.is_some()),
            ..account.clone()
        };
        let is_confirmed = match (&body.password, &body.new_password) {
            (Some(password), None) => {
                self.check_behind_link(&account, password, request).await?;
                self.accounts.verify_email(&account, &link, self.clock.unix_seconds()).await?
            }
            (None, Some(new)) => {
                let new = new.password();
                let hash = self
                    .new_hash(request.client, new, &email, account.name.as_deref(), policy)
                    .await?;
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
        Ok(confirmed)
    }

    /// Creates an account and mails its owner a link. If the address already has an account, its
    /// owner is mailed that instead, and the response is the same.
    pub(super) async fn register_by_mail(
        &self,
        new: NewAccount,
        return_to: Option<&str>,
        request: &Request,
        policy: &Policy,
    ) -> Result<AccountRow, IdentityError> {
        let account = new.into_row(self.clock.unix_seconds());
        let language = &request.texts(policy).language;
        self.outbox.register(&account, return_to, language).await?;
        Ok(account)
    }

    pub(super) async fn mail(
        &self,
        kind: MailKind,
        email: &Email,
        return_to: Option<&str>,
        request: &Request,
        policy: &Policy,
    ) -> Result<(), IdentityError> {
        if policy.mail.is_none() {
            tracing::warn!("a mail was requested but not sent: [identity] has no mail");
            return Ok(());
        }
        let language = &request.texts(policy).language;
        Ok(self.outbox.enqueue_with_way_back(kind, email, return_to, language).await?)
    }
}

/// The recipient of a mail.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "email": "ann@example.com" }))]
pub struct Address {
    /// The e-mail address. The response is the same for every address.
    pub email: String,
    /// The path on this site to go on to after the mailed link.
    pub return_to: Option<String>,
}

/// A confirmation of an address: with exactly one of `password` and `new_password`.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "token": LINK_TOKEN, "password": "plum orbit tenant 71" }))]
pub struct VerifyEmail {
    /// The token of the mailed link.
    pub token: Secret,
    /// The current password of the account.
    pub password: Option<Secret>,
    /// A new password that replaces the current one.
    pub new_password: Option<Secret>,
}

/// A stranger may have created the account and chosen its password: ask for the password, or
/// replace it.
pub(in crate::identity) fn verify_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let words = &filled.texts.confirm;
    let form = |field: Field, button| {
        let mut form = Form::new(mount, "/email/verify", vec![field], button).of_account(filled);
        form.hidden.push(("token", filled.token.clone()));
        form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
        Form { leads_on: true, ..form }
    };
    let confirm =
        form(Field::password("password", &filled.texts.login.password).focused(), &words.button);
    let replace = form(
        Field::new_password("new_password", &filled.texts.password.new, filled, policy),
        &words.replace,
    );
    Content {
        title: &words.title,
        lead: Some(words.lead.clone()),
        ways: Vec::new(),
        forms: vec![confirm, Form { look: "quiet", ..replace }],
        links: vec![Link::to_login(filled, policy, mount)],
    }
}
