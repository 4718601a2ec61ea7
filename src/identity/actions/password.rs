//! New passwords: changed by their owner, or reset by a mailed link.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::identity::account::AccountError;
use crate::identity::bodies::{LINK_TOKEN, Secret};
use crate::identity::error::{IdentityError, NoLogin};
use crate::identity::link::{Purpose, digest_of};
use crate::identity::outbox::MailKind;
use crate::identity::outcome::{Answered, Outcome};
use crate::identity::pages::{Content, Field, Filled, Form, Link};
use crate::identity::password::{Password, StoredHash};
use crate::identity::request::Request;
use crate::identity::strength::RejectedPassword;
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
        if body.current_password.expose() == body.new_password.expose() {
            return Err(IdentityError::Password(RejectedPassword::Same).into());
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
        self.notify(MailKind::Changed, &account, request, policy).await;
        Ok(Outcome::PasswordChanged)
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
        self.notify(MailKind::Changed, &account, request, policy).await;
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
        Ok(self.hasher.renew(client, password, policy.password_min_length, &personal).await?)
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
    let words = &filled.texts.password;
    let form = || {
        let fields = vec![Field::email(filled).focused()];
        let mut form = Form::new(mount, "/password/forgot", fields, &words.send);
        form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
        form
    };
    let (lead, forms) = if policy.mail.is_some() {
        (&words.forgot_lead, vec![form()])
    } else {
        (&words.no_mail, Vec::new())
    };
    Content {
        title: &words.forgot_title,
        lead: Some(lead.clone()),
        ways: Vec::new(),
        forms,
        links: vec![Link::to_login(filled, policy, mount)],
    }
}

/// The page behind a mailed reset link.
pub(in crate::identity) fn reset_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let words = &filled.texts.password;
    let fields = vec![Field::new_password("password", &words.new, filled, policy).focused()];
    let mut form = Form::new(mount, "/password/reset", fields, &words.set).of_account(filled);
    form.hidden.push(("token", filled.token.clone()));
    form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
    let (title, lead) = if filled.is_first {
        // The page with an error says the same.
        form.hidden.push(("first", "true".to_owned()));
        (&words.first_title, &words.first_lead)
    } else {
        (&words.reset_title, &words.reset_lead)
    };
    Content {
        title,
        lead: Some(lead.clone()),
        ways: Vec::new(),
        forms: vec![form],
        links: vec![Link::to_login(filled, policy, mount)],
    }
}

/// The page that changes the password.
pub(in crate::identity) fn change_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let words = &filled.texts.password;
    let fields = vec![
        Field::password("current_password", &words.current).focused(),
        Field::new_password("new_password", &words.new, filled, policy),
    ];
    let form = Form::new(mount, "/password/change", fields, &words.change).of_account(filled);
    Content {
        title: &words.change_title,
        lead: Some(words.change_lead.clone()),
        ways: Vec::new(),
        forms: vec![form],
        links: vec![Link::to_account(filled, mount)],
    }
}
