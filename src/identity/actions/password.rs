//! New passwords: changed by their owner, or reset by a mailed link.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::show_page;
use crate::identity::account::AccountError;
use crate::identity::bodies::{LINK_TOKEN, Secret};
use crate::identity::error::{IdentityError, NoLogin};
use crate::identity::link::{Purpose, digest_of};
use crate::identity::outbox::MailKind;
use crate::identity::outcome::{Answered, Outcome};
use crate::identity::pages::{Content, Field, Filled, Form, Link, Page};
use crate::identity::password::{Password, StoredHash};
use crate::identity::request::Request;
use crate::identity::{Email, Identity, Mount, Policy, audit};

impl Identity {
    pub(super) async fn change_password(&self, request: &Request, policy: &Policy) -> Answered {
        let body: ChangePassword = request.parse_body()?;
        let account = self.account_of(request).await?;
        let email = Email::parse(&account.email).ok();
        if let Err(error) = self
            .check(request.client, Some(&account), email.as_ref(), body.current_password.password())
            .await
        {
            if let IdentityError::Login(why) = &error {
                audit::record("password_change_failed", request.client, &account.id, why.as_str());
            }
            return Err(error.into());
        }
        let email = email.ok_or(IdentityError::NoCaller)?;
        let new = body.new_password.password();
        let hash =
            self.new_hash(request.client, new, &email, account.name.as_deref(), policy).await?;
        let now = self.clock.unix_seconds();
        match self.accounts.set_password(&account, &hash, policy, now).await {
            Err(AccountError::Unknown) => return Err(IdentityError::Login(NoLogin::Changed).into()),
            set => set?,
        }
        audit::record("password_changed", request.client, &account.id, "");
        self.notify(MailKind::Changed, &account, policy).await;
        Ok(Outcome::PasswordChanged)
    }

    /// The page that changes the password.
    pub(super) async fn show_change(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        show_page(Page::Change, Some(account.email), request, policy)
    }

    /// Queues a mail with a link, which is sent only if such an account exists. The response is
    /// sent before the account is looked up.
    pub(super) async fn forgot_password(&self, request: &Request, policy: &Policy) -> Answered {
        self.promise_link(Purpose::Reset, request, policy).await
    }

    pub(super) async fn reset_password(&self, request: &Request, policy: &Policy) -> Answered {
        let body: ResetPassword = request.parse_body()?;
        let (link, now) = (digest_of(body.token.expose()), self.clock.unix_seconds());
        let account =
            self.accounts.by_link(&link, Purpose::Reset, now).await?.ok_or(IdentityError::Link)?;
        let email = Email::parse(&account.email).map_err(|_| IdentityError::Link)?;
        // A rejected password leaves the link valid.
        let hash = self
            .new_hash(
                request.client,
                body.password.password(),
                &email,
                account.name.as_deref(),
                policy,
            )
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
        self.notify(MailKind::Changed, &account, policy).await;
        Ok(Outcome::PasswordChanged)
    }

    /// Judges and hashes a new password.
    pub(super) async fn new_hash(
        &self,
        client: IpAddr,
        password: Password,
        email: &Email,
        name: Option<&str>,
        policy: &Policy,
    ) -> Result<StoredHash, IdentityError> {
        let personal = [email.as_str(), name.unwrap_or_default(), &policy.issuer];
        Ok(self
            .hasher
            .renew(client, email, password, policy.password_min_length, &personal)
            .await?)
    }
}

/// A change of password.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "current_password": "plum orbit tenant 71", "new_password": "cactus ferry lamp 12" }))]
pub struct ChangePassword {
    /// The current password.
    pub current_password: Secret,
    /// The new password.
    pub new_password: Secret,
}

/// A reset of a forgotten password.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "token": LINK_TOKEN, "password": "cactus ferry lamp 12" }))]
pub struct ResetPassword {
    /// The token of the mailed link.
    pub token: Secret,
    /// The new password.
    pub password: Secret,
}

/// The page that requests a reset link.
pub(in crate::identity) fn forgot_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let form = || {
        let fields = vec![Field::email(filled).focused()];
        let mut form = Form::new(mount, "/password/forgot", fields, "Send the link");
        form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
        form
    };
    let (lead, forms) = if policy.mail.is_some() {
        (
            "Enter your e-mail address. We will send you a link to set a new password. It is valid for 30 minutes.",
            vec![form()],
        )
    } else {
        ("This site cannot send mail. Ask its administrator for a new password.", Vec::new())
    };
    Content {
        title: "Reset your password",
        lead: Some(lead.to_owned()),
        forms,
        links: vec![Link::to_login(mount)],
    }
}

/// The page behind a mailed reset link.
pub(in crate::identity) fn reset_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let fields = vec![Field::new_password("password", "New password", policy).focused()];
    let mut form = Form::new(mount, "/password/reset", fields, "Set password").of_account(filled);
    form.hidden.push(("token", filled.token.clone()));
    form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
    Content {
        title: "Set a new password",
        lead: Some(
            "You will be logged out everywhere, and your personal access tokens will be revoked. Then log in with the new password."
                .to_owned(),
        ),
        forms: vec![form],
        links: vec![Link::to_login(mount)],
    }
}

/// The page that changes the password.
pub(in crate::identity) fn change_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let fields = vec![
        Field::password("current_password", "Current password").focused(),
        Field::new_password("new_password", "New password", policy),
    ];
    let lead =
        "You will be logged out everywhere, including here. Then log in with the new password.";
    let form = Form::new(mount, "/password/change", fields, "Change password").of_account(filled);
    Content {
        title: "Change your password",
        lead: Some(lead.to_owned()),
        forms: vec![form],
        links: vec![Link::to_sessions(mount)],
    }
}
