//! People change, export and delete their own account.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use super::account::{Account, account_example};
use super::personal_token::{PersonalToken, token_example};
use super::session::{Session, SessionList, session_example};
use crate::identity::account;
use crate::identity::bodies::{LINK_TOKEN, Secret, time};
use crate::identity::error::{IdentityError, RequestFault};
use crate::identity::link::{Purpose, digest_of};
use crate::identity::outbox::MailKind;
use crate::identity::outcome::{Answered, Outcome};
use crate::identity::pages::{Content, Field, Filled, Form, Link};
use crate::identity::request::Request;
use crate::identity::{Email, Identity, Mount, Policy, audit};
use crate::store::AccountRow;

impl Identity {
    pub(super) async fn change_account(&self, request: &Request, policy: &Policy) -> Answered {
        let body: ChangeAccount = request.parse_body()?;
        let account = self.account_of(request).await?;
        let name = body.name.map(|name| account::name(name.as_deref().unwrap_or_default()));
        let name = name.transpose().map_err(|_| IdentityError::Request(RequestFault::Name))?;
        let email = body.email.map(|email| Email::parse(&email)).transpose();
        let email = email.map_err(|_| IdentityError::Request(RequestFault::Email))?;
        let email = email.filter(|email| email.as_str() != account.email);
        if email.is_some() && policy.mail.is_none() {
            return Err(IdentityError::Request(RequestFault::NoMail).into());
        }
        if let Some(name) = name.filter(|name| *name != account.name) {
            if !self.accounts.rename(&account.id, name.as_deref()).await? {
                return Err(IdentityError::NoCaller.into());
            }
            audit::record("name_changed", request.client, &account.id, "");
        }
        let asked_for_email = email.is_some();
        if let Some(email) = email {
            self.outbox.enqueue_new_email(&account.id, &email).await?;
            self.notify(MailKind::EmailChangeAsked, &account, policy).await;
            audit::record("email_change_asked", request.client, &account.id, "");
        }
        let account = self.account_of(request).await?;
        let codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        let account = Account::from_row(&account, codes_left);
        Ok(Outcome::AccountChanged { account, asked_for_email })
    }

    /// Changes the address of the account that a mailed link names. The link proves that the address
    /// belongs to its reader; the password, that the account does, too: someone who found a browser
    /// logged in has only the link.
    pub(super) async fn change_email(&self, request: &Request, policy: &Policy) -> Answered {
        let body: ChangeEmail = request.parse_body()?;
        let (link, now) = (digest_of(body.token.expose()), self.clock.unix_seconds());
        let account =
            self.accounts.by_link(&link, Purpose::Change, now).await?.ok_or(IdentityError::Link)?;
        self.check_again(&account, &body.password, request).await?;
        let now = self.clock.unix_seconds();
        if !self.accounts.change_email(&account, &link, policy, now).await? {
            return Err(IdentityError::Link.into());
        }
        audit::record("email_changed", request.client, &account.id, "");
        self.notify(MailKind::EmailChanged, &account, policy).await;
        Ok(Outcome::EmailChanged)
    }

    pub(super) async fn delete_account(&self, request: &Request, policy: &Policy) -> Answered {
        let body: DeleteAccount = request.parse_body()?;
        let account = self.account_of(request).await?;
        self.check_again(&account, &body.password, request).await?;
        self.check_code(&account, body.code.as_ref()).await?;
        self.accounts.delete(&account.id, policy, self.clock.unix_seconds()).await?;
        audit::record("account_deleted", request.client, &account.id, "");
        Ok(Outcome::AccountDeleted)
    }

    pub(super) async fn export(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        let now = self.clock.unix_time();
        let (rows, more) = self.sessions.of_account(&account.id, policy, now).await?;
        let current = request.caller.as_deref().and_then(|caller| caller.sid());
        let sessions = rows.into_iter().map(|row| Session::from_row(row, current)).collect();
        let tokens = self.personal_tokens.of_account(&account.id).await?;
        Ok(Outcome::Exported(Box::new(Export {
            exported_at: time(now.as_secs().cast_signed()),
            account: Account::from_row(&account, codes_left),
            sessions: SessionList { sessions, more },
            tokens: tokens.into_iter().map(PersonalToken::from_row).collect(),
        })))
    }

    /// Mails a notice to the present address of an account. What it is about stands even if the mail
    /// fails.
    pub(super) async fn notify(&self, kind: MailKind, account: &AccountRow, policy: &Policy) {
        if let (Ok(email), true) = (Email::parse(&account.email), policy.mail.is_some())
            && let Err(error) = self.outbox.enqueue(kind, &email).await
        {
            tracing::warn!(cause = %error, account = account.id, "cannot notify the owner of a change by mail");
        }
    }
}

/// A change of the caller's account. Absent members stay as they are.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "name": "Ann Ott", "email": "ann.ott@example.com" }))]
pub struct ChangeAccount {
    /// Display name; null or an empty one removes it.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<String>")]
    pub name: Option<Option<String>>,
    /// Another address. It counts once the link that is mailed to it was used.
    #[schemars(extend("format" = "email"))]
    pub email: Option<String>,
}

#[expect(clippy::option_option, reason = "outer: whether it is present; inner: null")]
fn present<'de, D: Deserializer<'de>>(name: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(name).map(Some)
}

/// The use of a link that was mailed to a new address.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "token": LINK_TOKEN, "password": "plum orbit tenant 71" }))]
pub struct ChangeEmail {
    /// The token of the mailed link.
    pub token: Secret,
    /// The password of the account.
    pub password: Secret,
}

/// The deletion of the caller's account.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "password": "plum orbit tenant 71" }))]
pub struct DeleteAccount {
    /// The current password.
    pub password: Secret,
    /// A code of the authenticator app, or a recovery code. Required if the account has a second
    /// factor.
    pub code: Option<Secret>,
}

/// Everything that is stored about an account, except secrets.
#[derive(Serialize, JsonSchema)]
#[schemars(example = json!({ "exported_at": "2026-03-14T12:00:00Z", "account": account_example(), "sessions": { "sessions": [session_example()], "more": 0 }, "tokens": [token_example()] }))]
pub struct Export {
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub exported_at: String,
    /// The account.
    pub account: Account,
    /// Its sessions.
    pub sessions: SessionList,
    /// Its personal access tokens, without their secrets.
    pub tokens: Vec<PersonalToken>,
}

/// The page behind the link that was mailed to a new address.
pub(in crate::identity) fn change_email_page(filled: &Filled, mount: &Mount) -> Content {
    let fields = vec![Field::password("password", "Password").focused()];
    let mut form =
        Form::new(mount, "/email/change", fields, "Use the new address").of_account(filled);
    form.hidden.push(("token", filled.token.clone()));
    Content {
        title: "Confirm your new e-mail address",
        lead: Some(
            "Enter the password of your account. From then on you log in with the new address."
                .to_owned(),
        ),
        forms: vec![form],
        links: vec![Link::to_sessions(mount)],
    }
}
