//! Personal access tokens: made, listed and revoked by their owner.

mod page;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

pub(in crate::identity) use self::page::{Section, created_page, new_page};
use super::caller;
use crate::identity::bodies::{day, time};
use crate::identity::error::{IdentityError, RequestFault};
use crate::identity::hasher::HashError;
use crate::identity::outcome::{Answered, Outcome};
use crate::identity::personal_tokens::{
    CreatedToken, DEFAULT_TTL, NewToken, TokenError, parse_ttl,
};
use crate::identity::request::Request;
use crate::identity::session::Ended;
use crate::identity::{Identity, Policy, audit};
use crate::store::PersonalTokenRow;

impl Identity {
    pub(super) async fn list_tokens(&self, request: &Request) -> Answered {
        let account = self.account_of(request).await?;
        Ok(Outcome::Tokens(self.personal_tokens.of_account(&account.id).await?))
    }

    pub(super) async fn create_token(&self, request: &Request) -> Answered {
        let body: NewPersonalToken = request.parse_body()?;
        let account = self.account_of(request).await?;
        let caller = caller(request)?;
        let new = NewToken {
            name: body.name,
            roles: body.roles,
            ttl: parse_ttl(body.ttl.as_deref().unwrap_or(DEFAULT_TTL))?,
        };
        // Every access token has a session. Without one, nothing could tell that it has ended.
        let session = self.sessions.bound(caller.sid().ok_or(IdentityError::NoCaller)?);
        let now = self.clock.unix_seconds();
        let created = self.personal_tokens.add(&account, new, session, now).await?;
        audit::record("token_created", request.client, &account.id, "");
        Ok(Outcome::TokenCreated(Box::new(created)))
    }

    pub(super) async fn revoke_token(&self, request: &Request, policy: &Policy) -> Answered {
        let account = caller(request)?.subject();
        let id = request.parameter.as_deref().unwrap_or_default();
        let _turn = self.turn_to_end(&format!("{account} {id}")).await;
        let now = self.clock.unix_seconds();
        match self.personal_tokens.revoke(id, account, policy, now).await? {
            Ended::Unknown => return Err(IdentityError::NoToken.into()),
            Ended::Before => {}
            Ended::Now => audit::record("token_revoked", request.client, account, ""),
        }
        Ok(Outcome::TokenRevoked)
    }
}

impl From<TokenError> for IdentityError {
    fn from(error: TokenError) -> Self {
        Self::Request(match error {
            TokenError::Name => RequestFault::TokenName,
            TokenError::NameTaken => RequestFault::TokenNameTaken,
            TokenError::Roles => RequestFault::TokenRoles,
            TokenError::Ttl => RequestFault::TokenTtl,
            TokenError::TooMany => RequestFault::TooManyTokens,
            TokenError::NoAccount => return Self::NoCaller,
            TokenError::Random(_) => return Self::Overloaded(HashError::Failed),
            TokenError::Store(error) => return Self::Store(error),
        })
    }
}

/// A personal access token to be made.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "name": "laptop", "roles": ["user"], "ttl": "180d" }))]
pub struct NewPersonalToken {
    /// Its name, by which its owner recognises it.
    pub name: String,
    /// The roles that it is limited to, of those that the account has. Absent: all roles of the
    /// account. In a form, they are separated by spaces.
    #[serde(default, deserialize_with = "roles")]
    pub roles: Option<Vec<String>>,
    /// How long it is valid: from `1s` to `10y`. Default: `180d`.
    pub ttl: Option<String>,
}

/// A list, or words separated by spaces, as a form sends them. A form without any means all roles.
fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        List(Vec<String>),
        Words(String),
    }
    Ok(match Option::<Written>::deserialize(deserializer)? {
        None => None,
        Some(Written::List(roles)) => Some(roles),
        Some(Written::Words(words)) => {
            let roles: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            Some(roles).filter(|roles| !roles.is_empty())
        }
    })
}

/// The personal access tokens of the caller.
#[derive(Serialize, JsonSchema)]
#[schemars(example = json!({ "tokens": [token_example()] }))]
pub struct TokenList {
    /// Those that are not revoked, the newest in front.
    pub tokens: Vec<PersonalToken>,
}

/// A personal access token.
#[derive(Serialize, JsonSchema)]
#[schemars(example = token_example())]
pub struct PersonalToken {
    /// Its id, which the log of an application may have as `jti`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The roles that it is limited to. `null`: it has all roles of the account.
    pub roles: Option<Vec<String>>,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub created_at: String,
    /// The day of its last use, in UTC. `null`: it was not used.
    #[schemars(extend("format" = "date"))]
    pub last_used_on: Option<String>,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: String,
}

/// A personal access token that was just made.
#[derive(Serialize, JsonSchema)]
#[schemars(example = new_token_example())]
pub struct CreatedPersonalToken {
    /// The token. It is not shown again.
    pub token: String,
    /// Everything else about it.
    #[serde(flatten)]
    pub about: PersonalToken,
}

impl PersonalToken {
    /// Describes a row to its owner.
    pub fn from_row(row: PersonalTokenRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            roles: row.roles.map(|roles| roles.split_whitespace().map(str::to_owned).collect()),
            created_at: time(row.created_at),
            last_used_on: row.last_used_at.map(day),
            expires_at: time(row.expires_at),
        }
    }
}

impl CreatedPersonalToken {
    /// Describes a new token to its owner.
    pub fn new(created: CreatedToken) -> Self {
        Self { token: created.token.to_string(), about: PersonalToken::from_row(created.row) }
    }
}

pub(in crate::identity::actions) fn token_example() -> Value {
    json!({
        "id": "0b0a7a4e-8f5e-4c1d-9d0c-6f3a2b1c4d5e",
        "name": "laptop",
        "roles": ["user"],
        "created_at": "2026-03-14T09:26:53Z",
        "last_used_on": "2026-03-15",
        "expires_at": "2026-09-10T09:26:53Z",
    })
}

fn new_token_example() -> Value {
    let mut example = token_example();
    example["token"] = json!("pct_Zk3v0Qb2l8m1o3T7dLk0v9yQe4cHs6uXaRfJpNwZ1m9");
    example["last_used_on"] = Value::Null;
    example
}
