//! Login: a password, and a code if the account has a second factor.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use crate::identity::bodies::{ACCESS_TOKEN, LINK_TOKEN, REFRESH_TOKEN, Secret};
use crate::identity::device::device;
use crate::identity::error::{IdentityError, NoLogin};
use crate::identity::hasher::Verdict;
use crate::identity::outcome::{Answered, Outcome, Refused, SessionTokens};
use crate::identity::pages::{Content, Field, Filled, Form, Link, Way};
use crate::identity::password::{Password, StoredHash};
use crate::identity::provider::Provider;
use crate::identity::request::Request;
use crate::identity::session::{Began, Device, Keep, PASSWORD_LOGIN, SessionGrant};
use crate::identity::{Email, Identity, Mount, Policy, Registration, audit, cookie, texts};
use crate::reason::Reason;
use crate::store::{AccountRow, LoginProof};

impl Identity {
    pub(super) async fn login(&self, request: &Request, policy: &Policy) -> Answered {
        let body: Login = request.parse_body()?;
        let tokens = self.log_in(&body, request, policy).await?;
        self.end_earlier(body.cookie, request, policy).await;
        Ok(Outcome::LoggedIn { tokens, in_cookies: body.cookie, return_to: body.return_to })
    }

    /// A refused login. If only the code is missing, a person gets a ticket for the page that asks for
    /// it. It is for the account as it was when the password was checked: the password may have been
    /// changed since.
    fn refused_login(
        &self,
        checked: Option<&AccountRow>,
        error: IdentityError,
        request: &Request,
    ) -> Refused {
        let is_ticket_due = matches!(error, IdentityError::CodeRequired) && request.is_for_people();
        let now = self.clock.unix_seconds();
        let ticket = checked
            .filter(|_| is_ticket_due)
            .and_then(|account| self.tickets.issue(account, now))
            .map(Box::new);
        Refused { ticket, ..error.into() }
    }

    /// Finishes a login with a code. The ticket proves that the password was right.
    pub(super) async fn login_with_code(&self, request: &Request, policy: &Policy) -> Answered {
        let body: CodeLogin = request.parse_body()?;
        let named = self.tickets.read(body.ticket.expose(), self.clock.unix_seconds());
        let account = match &named {
            Some((id, _)) => self.accounts.by_id(id).await?,
            None => None,
        };
        let email = Email::parse(&body.email).ok();
        // The limits of failures have counted the address of the form, so it must be the account's.
        let is_valid = |account: &AccountRow| {
            account.disabled == 0
                && named.as_ref().is_some_and(|(_, generation)| *generation == account.generation)
                && email.as_ref().is_some_and(|email| email.as_str() == account.email)
        };
        let opened = match account.as_ref().filter(|account| is_valid(account)) {
            Some(account) => {
                let keep = Keep::asked(body.keep, request);
                self.open(account, Some(&body.code), keep, request, policy).await
            }
            None => Err(IdentityError::Login(NoLogin::Expired)),
        };
        let session = opened.inspect_err(|error| {
            self.login_failed(request, account.as_ref().map_or("", |account| &account.id), error);
        })?;
        let tokens = self.tokens(session, policy).await?;
        self.end_earlier(body.cookie, request, policy).await;
        Ok(Outcome::LoggedIn { tokens, in_cookies: body.cookie, return_to: body.return_to })
    }

    /// Ends the session whose cookies a login replaces: nothing would end it otherwise.
    pub(super) async fn end_earlier(&self, in_cookies: bool, request: &Request, policy: &Policy) {
        if !in_cookies && !request.is_for_people() {
            return;
        }
        let earlier = cookie::refresh_token(&request.headers, policy);
        let Some(sid) = earlier.and_then(|token| self.sessions.named_by(token)) else { return };
        // The login has succeeded, whatever becomes of the earlier session.
        if let Err(error) = self.end_named(&sid, request, policy).await {
            tracing::warn!(cause = %error, "the session that a login replaces was not ended");
        }
    }

    /// Opens a session for the address and password in a body.
    async fn log_in(
        &self,
        body: &Login,
        request: &Request,
        policy: &Policy,
    ) -> Result<SessionTokens, Refused> {
        // An address that is not valid has no account and takes just as long.
        let email = Email::parse(&body.email).ok();
        let known = match &email {
            Some(email) => self.accounts.by_email(email).await?,
            None => None,
        };
        let checked = self
            .check(request.client, known.as_ref(), email.as_ref(), body.password.password())
            .await;
        let opened = match (checked, &known) {
            (Ok(()), Some(account)) => {
                let keep = Keep::asked(body.keep, request);
                self.open(account, body.code.as_ref(), keep, request, policy).await
            }
            (Ok(()), None) => Err(IdentityError::Login(NoLogin::Unknown)),
            (Err(error), _) => Err(error),
        };
        let session = match opened {
            Ok(session) => session,
            Err(error) => {
                self.login_failed(
                    request,
                    known.as_ref().map_or("", |account| &account.id),
                    &error,
                );
                return Err(self.refused_login(known.as_ref(), error, request));
            }
        };
        Ok(self.tokens(session, policy).await?)
    }

    /// Opens a session after the password was checked.
    pub(super) async fn open(
        &self,
        account: &AccountRow,
        code: Option<&Secret>,
        keep: Keep,
        request: &Request,
        policy: &Policy,
    ) -> Result<SessionGrant, IdentityError> {
        if !policy.password_login {
            return Err(IdentityError::NoPasswordLogin);
        }
        if policy.verify_email && account.email_verified == 0 {
            return Err(IdentityError::EmailUnverified);
        }
        let acr = self.check_code(account, code).await?;
        let device = request.device();
        let is_new_device =
            policy.mail.is_some() && self.sessions.is_new_device(&account.id, &device).await?;
        let now = self.clock.unix_time();
        let proof = LoginProof {
            idp: PASSWORD_LOGIN.to_owned(),
            acr: acr.to_owned(),
            auth_time: now.as_secs().cast_signed(),
        };
        let began = Began { proof, provider: None };
        let opened = self.sessions.open(account, (&device, keep, began), policy, now).await?;
        let opened = opened.ok_or(IdentityError::Login(NoLogin::Changed))?;
        self.metrics.login("succeeded");
        audit::login("login_succeeded", request.client, &opened.account.id, (PASSWORD_LOGIN, ""));
        if is_new_device {
            self.notify_of_login(&opened, &device, request, policy).await;
        }
        Ok(opened)
    }

    /// Mails the owner of an account about a login from a new browser or program.
    async fn notify_of_login(
        &self,
        opened: &SessionGrant,
        used: &Device,
        request: &Request,
        policy: &Policy,
    ) {
        let SessionGrant { account, sid, .. } = opened;
        let Ok(email) = Email::parse(&account.email) else { return };
        let texts = request.texts(policy);
        let login =
            format!("{}, {}", device(&used.user_agent).in_words(&texts.sessions), used.address);
        if let Err(error) = self.outbox.enqueue_login(sid, &email, &login, &texts.language).await {
            tracing::warn!(cause = %error, account = account.id, "cannot notify the owner of an account by mail");
        }
    }

    /// Whether this is the password of an account that may log in. Takes just as long if it is not.
    pub(super) async fn check(
        &self,
        client: IpAddr,
        account: Option<&AccountRow>,
        email: Option<&Email>,
        password: Password,
    ) -> Result<(), IdentityError> {
        let hash = account.and_then(|account| account.password.parse::<StoredHash>().ok());
        let nobody = Email::parse("nobody@localhost");
        let Some(email) = email.or(nobody.as_ref().ok()) else {
            return Err(IdentityError::Login(NoLogin::Unknown));
        };
        let (Some(account), Some(hash)) = (account, hash) else {
            self.hasher.hash_dummy(client, password, email).await?;
            return Err(IdentityError::Login(NoLogin::Unknown));
        };
        match self.hasher.verify(client, email, password, hash).await? {
            Verdict::Wrong => Err(IdentityError::Login(NoLogin::Password)),
            Verdict::Right { .. } if account.disabled == 1 => {
                Err(IdentityError::Login(NoLogin::Disabled))
            }
            Verdict::Right { renewed } => {
                if let Some(renewed) = renewed {
                    self.accounts.renew_hash(account, &renewed).await?;
                }
                Ok(())
            }
        }
    }

    fn login_failed(&self, request: &Request, account: &str, error: &IdentityError) {
        let (outcome, reason) = match error {
            IdentityError::Login(why) => ("failed", why.as_str()),
            IdentityError::EmailUnverified => ("failed", Reason::EmailUnverified.as_str()),
            IdentityError::CodeRequired => return self.metrics.login("code_required"),
            _ => return self.metrics.login("unavailable"),
        };
        self.metrics.login(outcome);
        audit::login("login_failed", request.client, account, (PASSWORD_LOGIN, reason));
    }

    /// Mints the tokens of a session.
    pub(in crate::identity) async fn tokens(
        &self,
        session: SessionGrant,
        policy: &Policy,
    ) -> Result<SessionTokens, IdentityError> {
        let minted = self
            .keys
            .mint(policy, &session.account, (&session.sid, &session.proof), session.issued_at)
            .await?;
        Ok(SessionTokens {
            access_token: minted.token,
            expires_in: minted.expires_in,
            refresh_token: session.refresh_token,
            keep: session.keep,
        })
    }
}

/// A login.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "email": "ann@example.com", "password": "plum orbit tenant 71" }))]
pub struct Login {
    /// The e-mail address.
    #[schemars(extend("format" = "email"))]
    pub email: String,
    /// The password.
    pub password: Secret,
    /// A code of the authenticator app, or a recovery code. Required if the account has a second
    /// factor.
    pub code: Option<Secret>,
    /// true: set the tokens as cookies and leave them out of the body.
    #[serde(default, deserialize_with = "flag")]
    pub cookie: bool,
    /// false: the cookies last until the browser is closed. Default true; the page sends it if its
    /// box is ticked.
    #[serde(default, deserialize_with = "some_flag")]
    pub keep: Option<bool>,
    /// Where to go after login: a path on this site, or a page of a host that shares the login.
    pub return_to: Option<String>,
}

/// The second step of a login, with a code.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "email": "ann@example.com", "ticket": LINK_TOKEN, "code": "492039" }))]
pub struct CodeLogin {
    /// The e-mail address of the first step.
    #[schemars(extend("format" = "email"))]
    pub email: String,
    /// From the page of the first step.
    pub ticket: Secret,
    /// A code of the authenticator app, or a recovery code.
    pub code: Secret,
    /// true: set the tokens as cookies and leave them out of the body.
    #[serde(default, deserialize_with = "flag")]
    pub cookie: bool,
    /// As in the first step.
    #[serde(default, deserialize_with = "some_flag")]
    pub keep: Option<bool>,
    /// Where to go after login: a path on this site, or a page of a host that shares the login.
    pub return_to: Option<String>,
}

/// The tokens of a session. A response that sets cookies has the tokens there, and only
/// `expires_in` in the body.
#[derive(Serialize, JsonSchema)]
#[schemars(
    example = json!({ "access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 900, "refresh_token": REFRESH_TOKEN }),
    example = json!({ "expires_in": 900 })
)]
pub struct Tokens {
    /// For `Authorization: Bearer`.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// `Bearer`
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_type: Option<&'static str>,
    /// Seconds until the access token expires.
    pub expires_in: u64,
    /// For `POST /refresh`.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
}

pub(in crate::identity) fn login_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let words = &filled.texts.login;
    let email = Field::email(filled);
    let password = Field::password("password", &words.password);
    let fields = if filled.email.is_empty() {
        vec![email.focused(), password]
    } else {
        vec![email, password.focused()]
    };
    let mut form = Form {
        leads_on: true,
        keep: Some((&words.keep, filled.keep)),
        ..Form::new(mount, "/login", fields, &words.button)
    };
    form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
    let ways =
        policy.providers.iter().map(|provider| way(provider, filled, policy, mount)).collect();
    let lead = policy.loses_logins().then(|| words.loses_logins.clone());
    if !policy.password_login {
        return Content { title: &words.title, lead, ways, forms: Vec::new(), links: Vec::new() };
    }
    let mut links = Vec::new();
    if policy.mail.is_some() {
        links.push(Link {
            before: None,
            text: &words.forgot,
            path: filled.onwards(&mount.path("/password/forgot"), policy),
        });
    }
    if policy.registration == Registration::Open {
        links.push(Link {
            before: Some(&words.no_account),
            text: &words.register,
            path: filled.onwards(&mount.path("/register"), policy),
        });
    }
    Content { title: &words.title, lead, ways, forms: vec![form], links }
}

/// The button of a provider.
fn way(provider: &Provider, filled: &Filled, policy: &Policy, mount: &Mount) -> Way {
    let settings = provider.settings();
    let path = mount.path(&format!("/login/{}", settings.name));
    Way {
        text: texts::filled(&filled.texts.login.with, &[("name", &settings.title)]),
        path: filled.onwards(&path, policy),
    }
}

/// The way back to the login, for a login at a provider that failed.
pub(super) fn login_links(filled: &Filled, policy: &Policy, mount: &Mount) -> Vec<Link> {
    vec![Link {
        before: None,
        text: &filled.texts.login.start_again,
        path: filled.onwards(&mount.path("/login"), policy),
    }]
}

/// The page that asks for a code after the password.
pub(in crate::identity) fn code_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let words = &filled.texts.login;
    let fields = vec![Field::code(filled).focused()];
    let mut form =
        Form { leads_on: true, ..Form::new(mount, "/login/code", fields, &words.button) };
    form.hidden.push(("email", filled.email.clone()));
    form.hidden.push(("ticket", filled.ticket.clone()));
    if filled.keep {
        form.hidden.push(("keep", "true".to_owned()));
    }
    form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
    let again = Link {
        before: None,
        text: &words.start_again,
        path: filled.onwards(&mount.path("/login"), policy),
    };
    Content {
        title: &words.code_title,
        lead: None,
        ways: Vec::new(),
        forms: vec![form],
        links: vec![again],
    }
}

impl Keep {
    /// A box that is not ticked is not sent.
    fn asked(keep: Option<bool>, request: &Request) -> Self {
        if keep.unwrap_or(!request.is_for_people()) { Self::Lasting } else { Self::UntilClosed }
    }
}

fn some_flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    flag(deserializer).map(Some)
}

/// `true` in JSON, `true` or `on` in a form.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Text(String),
    }
    match Flag::deserialize(deserializer)? {
        Flag::Bool(flag) => Ok(flag),
        Flag::Text(text) if text == "true" || text == "on" => Ok(true),
        Flag::Text(text) if text == "false" || text.is_empty() => Ok(false),
        Flag::Text(_) => Err(serde::de::Error::custom("expected true or false")),
    }
}
