//! People change, export and delete their own account.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use super::account::{Account, account_example};
use super::personal_token::{PersonalToken, token_example};
use super::session::{Session, SessionList, session_example};
use super::show_page;
use crate::identity::account::{self, AccountError};
use crate::identity::account_of_person::has_address;
use crate::identity::bodies::{LINK_TOKEN, Secret, time};
use crate::identity::error::{IdentityError, RequestFault};
use crate::identity::link::{Purpose, digest_of};
use crate::identity::outbox::MailKind;
use crate::identity::outcome::{Answered, Outcome, Overview};
use crate::identity::pages::{Content, Field, Filled, Form, Link, Page};
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
            let language = &request.texts(policy).language;
            self.outbox.enqueue_new_email(&account.id, &email, language).await?;
            self.notify(MailKind::EmailChangeAsked, &account, request, policy).await;
            audit::record("email_change_asked", request.client, &account.id, "");
        }
        let account = self.account_of(request).await?;
        let codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        let account = Account::from_row(&account, codes_left);
        Ok(Outcome::AccountChanged { account, asked_for_email })
    }

    /// The page of the caller's account.
    pub(super) async fn show_account(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let recovery_codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        let people = self.store.people_of_account(&account.id).await?;
        let settings = policy.providers.iter().map(|provider| provider.settings());
        let providers = settings
            .filter(|settings| people.iter().any(|(issuer, _)| *issuer == settings.issuer))
            .map(|settings| settings.title.clone())
            .collect();
        Ok(Outcome::Overview(Box::new(Overview { account, recovery_codes_left, providers })))
    }

    /// A page with a form about the caller's account.
    pub(super) async fn show_own(
        &self,
        page: Page,
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        let account = self.account_of(request).await?;
        show_page(page, Some(account), request, policy)
    }

    /// Changes the address of the account that a mailed link names. The link proves that the address
    /// belongs to its reader; the password, that the account does, too: someone who found a browser
    /// logged in has only the link.
    pub(super) async fn change_email(&self, request: &Request, policy: &Policy) -> Answered {
        let body: ChangeEmail = request.parse_body()?;
        let (link, now) = (digest_of(body.token.expose()), self.clock.unix_seconds());
        let account =
            self.accounts.by_link(&link, Purpose::Change, now).await?.ok_or(IdentityError::Link)?;
        self.check_behind_link(&account, &body.password, request).await?;
        let now = self.clock.unix_seconds();
        if !self.accounts.change_email(&account, &link, policy, now).await? {
            return Err(IdentityError::Link.into());
        }
        audit::record("email_changed", request.client, &account.id, "");
        self.notify(MailKind::EmailChanged, &account, request, policy).await;
        Ok(Outcome::EmailChanged)
    }

    pub(super) async fn delete_account(&self, request: &Request, policy: &Policy) -> Answered {
        let body: DeleteAccount = request.parse_body()?;
        let account = self.account_of(request).await?;
        self.check_again(&account, &body.password, request).await?;
        self.check_code(&account, body.code.as_ref()).await?;
        let (generation, now) = (Some(account.generation), self.clock.unix_seconds());
        match self.accounts.delete(&account.id, generation, policy, now).await {
            Err(AccountError::Unknown) => return Err(IdentityError::TokenRevoked.into()),
            deleted => deleted?,
        }
        audit::record("account_deleted", request.client, &account.id, "");
        Ok(Outcome::AccountDeleted)
    }

    pub(super) async fn export(&self, request: &Request, policy: &Policy) -> Answered {
        let account = self.account_of(request).await?;
        let codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        let now = self.clock.unix_time();
        let (rows, more) = self.sessions_of(&account.id, policy, now).await?;
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
    pub(super) async fn notify(
        &self,
        kind: MailKind,
        account: &AccountRow,
        request: &Request,
        policy: &Policy,
    ) {
        let language = &request.texts(policy).language;
        if let (Ok(email), true) =
            (Email::parse(&account.email), policy.mail.is_some() && has_address(account))
            && let Err(error) = self.outbox.enqueue(kind, &email, language).await
        {
            tracing::warn!(cause = %error, account = account.id, "cannot notify the owner of an account by mail");
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
    let words = &filled.texts.confirm;
    let fields = vec![Field::password("password", &filled.texts.login.password).focused()];
    let mut form =
        Form::new(mount, "/email/change", fields, &words.change_button).of_account(filled);
    form.hidden.push(("token", filled.token.clone()));
    Content {
        title: &words.change_title,
        lead: Some(words.change_lead.clone()),
        ways: Vec::new(),
        forms: vec![form],
        links: vec![Link::to_account(filled, mount)],
    }
}

/// The page that changes the name.
pub(in crate::identity) fn name_page(filled: &Filled, mount: &Mount) -> Content {
    let words = &filled.texts.profile;
    let field = Field {
        capitals: "words",
        value: filled.name.clone(),
        required: false,
        hint: Some(words.name_hint.clone()),
        ..Field::text("name", &filled.texts.account.name, "name").focused()
    };
    Content {
        title: &words.name_title,
        lead: None,
        ways: Vec::new(),
        forms: vec![Form::new(mount, "/account/name", vec![field], &words.save)],
        links: vec![Link::to_account(filled, mount)],
    }
}

/// The page that requests another address.
pub(in crate::identity) fn email_page(filled: &Filled, mount: &Mount) -> Content {
    let words = &filled.texts.profile;
    let field = Field { autocomplete: "email", ..Field::email(filled).focused() };
    Content {
        title: &words.email_title,
        lead: Some(words.email_lead.clone()),
        ways: Vec::new(),
        forms: vec![Form::new(mount, "/account/email", vec![field], &filled.texts.password.send)],
        links: vec![Link::to_account(filled, mount)],
    }
}

/// The page that deletes the account. The code is asked for again if it is missing.
pub(in crate::identity) fn delete_page(filled: &Filled, mount: &Mount) -> Content {
    let words = &filled.texts.profile;
    let code = Field {
        hint: Some(words.delete_code_hint.clone()),
        required: false,
        ..Field::code(filled)
    };
    let fields = vec![Field::password("password", &filled.texts.login.password).focused(), code];
    let form = Form::new(mount, "/account/delete", fields, &words.delete).of_account(filled);
    Content {
        title: &words.delete_title,
        lead: Some(words.delete_lead.clone()),
        ways: Vec::new(),
        forms: vec![Form { look: "danger", ..form }],
        links: vec![Link::to_account(filled, mount)],
    }
}
