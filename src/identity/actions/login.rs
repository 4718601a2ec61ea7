//! Login: a password, and a code if the account has a second factor.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use crate::identity::bodies::{ACCESS_TOKEN, REFRESH_TOKEN, Secret};
use crate::identity::error::{IdentityError, NoLogin};
use crate::identity::hasher::Verdict;
use crate::identity::outcome::{Answered, Outcome, SessionTokens};
use crate::identity::pages::{Content, Field, Filled, Form, Link};
use crate::identity::password::{Password, StoredHash};
use crate::identity::request::Request;
use crate::identity::session::SessionGrant;
use crate::identity::{Email, Identity, Mount, Policy, Registration, audit};
use crate::reason::Reason;
use crate::store::AccountRow;

impl Identity {
    pub(super) async fn login(&self, request: &Request, policy: &Policy) -> Answered {
        let body: Login = request.parse_body()?;
        let tokens = self.log_in(&body, request, policy).await?;
        Ok(Outcome::LoggedIn { tokens, in_cookies: body.cookie, return_to: body.return_to })
    }

    /// Opens a session for the address and password in a body.
    pub(super) async fn log_in(
        &self,
        body: &Login,
        request: &Request,
        policy: &Policy,
    ) -> Result<SessionTokens, IdentityError> {
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
                self.open(account, body.code.as_ref(), request, policy).await
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
                return Err(error);
            }
        };
        self.tokens(session, policy).await
    }

    /// Opens a session after the password was checked.
    pub(super) async fn open(
        &self,
        account: &AccountRow,
        code: Option<&Secret>,
        request: &Request,
        policy: &Policy,
    ) -> Result<SessionGrant, IdentityError> {
        if policy.verify_email && account.email_verified == 0 {
            return Err(IdentityError::EmailUnverified);
        }
        self.check_code(account, code).await?;
        let opened =
            self.sessions.open(account, &request.device(), policy, self.clock.unix_time()).await?;
        let opened = opened.ok_or(IdentityError::Login(NoLogin::Changed))?;
        self.metrics.login("succeeded");
        audit::record("login_succeeded", request.client, &opened.account.id, "");
        Ok(opened)
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
        audit::record("login_failed", request.client, account, reason);
    }

    /// Mints the tokens of a session.
    pub(in crate::identity) async fn tokens(
        &self,
        session: SessionGrant,
        policy: &Policy,
    ) -> Result<SessionTokens, IdentityError> {
        let minted =
            self.keys.mint(policy, &session.account, &session.sid, session.issued_at).await?;
        Ok(SessionTokens {
            access_token: minted.token,
            expires_in: minted.expires_in,
            refresh_token: session.refresh_token,
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
    let email = Field::email(filled);
    let password = Field::password("password", "Password");
    let mut fields = if filled.email.is_empty() {
        vec![email.focused(), password]
    } else {
        vec![email, password.focused()]
    };
    if filled.with_code {
        fields.push(Field::code());
    }
    let mut form = Form { leads_on: true, ..Form::new(mount, "/login", fields, "Log in") };
    form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
    let mut links = Vec::new();
    if policy.mail.is_some() {
        links.push(Link {
            before: None,
            text: "Forgot your password?",
            path: filled.onwards(&mount.path("/password/forgot"), policy),
        });
    }
    if policy.registration == Registration::Open {
        links.push(Link {
            before: Some("Don't have an account?"),
            text: "Register",
            path: filled.onwards(&mount.path("/register"), policy),
        });
    }
    let lead = policy.loses_logins().then(|| LOSES_LOGINS.to_owned());
    Content { title: "Log in", lead, forms: vec![form], links }
}

/// Without it, people would log in again and again without learning why.
const LOSES_LOGINS: &str = "Your browser will not keep this login, because the address of this site begins with http://. Ask its operator to set up https://.";

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
