//! Sessions: refreshed, listed and ended.

mod page;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(in crate::identity) use self::page::sessions as sessions_page;
use super::caller;
use crate::identity::account::AccountError;
use crate::identity::bodies::{REFRESH_TOKEN, time};
use crate::identity::error::IdentityError;
use crate::identity::outcome::{Answered, Outcome, Refused, Sessions};
use crate::identity::pages::{Content, Filled, Form, Link};
use crate::identity::request::{Origin, Request};
use crate::identity::session::{Device, Ended, Presenter, RefreshError, SessionGrant};
use crate::identity::turns::Turn;
use crate::identity::{Identity, Mount, Policy, audit, cookie};
use crate::store::{SessionRow, StoreError};

impl Identity {
    pub(super) async fn refresh(&self, request: &Request, policy: &Policy) -> Answered {
        let body: Refresh = request.parse_body()?;
        let in_body =
            policy.compat.refresh_token(body.refresh_token.as_deref(), body.camel_case.as_ref());
        let from_cookie = in_body.is_err();
        let in_cookie = cookie::refresh_token(&request.headers, policy);
        // A caller identified by a cookie must come from our own pages; otherwise nothing is done.
        if from_cookie && in_cookie.is_some() && request.origin != Origin::Own {
            return Err(IdentityError::ForeignOrigin.into());
        }
        let token = in_body.or_else(|missing| in_cookie.ok_or(missing));
        let token = match token {
            Ok(token) => token,
            Err(missing) => {
                self.metrics.refresh("failed");
                let cookies = cookie::clear(policy).to_vec();
                return Err(Refused { cookies, ..IdentityError::NoRefreshToken(missing).into() });
            }
        };
        // The successor may be in the response to another request, which is still on its way.
        let unsent = self.unsent_successor(token, policy).filter(|_| from_cookie);
        let presenter = match &unsent {
            Some(_) => Presenter::Unanswered,
            None if from_cookie => Presenter::Browser,
            None => Presenter::Program,
        };
        let session = match self.refresh_session(token, presenter, &request.device(), policy).await
        {
            Ok(session) => session,
            Err(error) => {
                let cookies = if from_cookie && error_is_final(&error) {
                    cookie::clear(policy).to_vec()
                } else {
                    Vec::new()
                };
                return Err(Refused { cookies, ..error.into() });
            }
        };
        let tokens = self.tokens(session, policy).await?;
        if let Some(renewed) = unsent {
            renewed.sent(self.clock.running());
        }
        Ok(Outcome::Refreshed { tokens, in_cookies: from_cookie })
    }

    /// Exchanges a refresh token and records the result.
    pub(in crate::identity) async fn refresh_session(
        &self,
        token: &str,
        presenter: Presenter,
        device: &Device,
        policy: &Policy,
    ) -> Result<SessionGrant, IdentityError> {
        let now = self.clock.unix_time();
        let granted = self.sessions.refresh(token, presenter, device, policy, now).await;
        let is_confirmed = granted.as_ref().is_ok_and(|session| session.is_confirmed(policy));
        let outcome = match &granted {
            Ok(_) if is_confirmed => "succeeded",
            Ok(_) | Err(RefreshError::Invalid) => "failed",
            Err(RefreshError::Reused { account, .. }) => {
                audit::record("refresh_reused", device.address, account, "invalid_grant");
                "reused"
            }
            Err(RefreshError::Store(_)) => "unavailable",
        };
        self.metrics.refresh(outcome);
        self.confirmed(granted?, policy).await
    }

    /// Ends a session that may have no more tokens, because its owner has not confirmed the address.
    pub(in crate::identity) async fn confirmed(
        &self,
        session: SessionGrant,
        policy: &Policy,
    ) -> Result<SessionGrant, IdentityError> {
        if session.is_confirmed(policy) {
            return Ok(session);
        }
        let SessionGrant { sid, account, .. } = &session;
        self.sessions.end(sid, &account.id, policy, self.clock.unix_time()).await?;
        Err(IdentityError::EmailUnverified)
    }

    pub(super) async fn logout(&self, request: &Request, policy: &Policy) -> Answered {
        let body: Logout = request.parse_body()?;
        let from_cookie = cookie::refresh_token(&request.headers, policy);
        // A caller who presents both a token and a cookie wants both sessions to end.
        let in_body =
            policy.compat.refresh_token(body.refresh_token.as_deref(), body.camel_case.as_ref());
        let by_token = in_body.ok().and_then(|token| self.sessions.named_by(token));
        let by_caller =
            request.caller.as_deref().and_then(|caller| caller.sid()).map(str::to_owned);
        let mut named: Vec<String> = by_token.into_iter().chain(by_caller).collect();
        named.dedup();
        if named.is_empty() {
            if from_cookie.is_some() && request.origin != Origin::Own {
                return Err(IdentityError::ForeignOrigin.into());
            }
            named.extend(from_cookie.and_then(|token| self.sessions.named_by(token)));
        }
        if named.is_empty() {
            let cookies = cookie::clear(policy).to_vec();
            let error = in_body.err().map_or(IdentityError::NoCaller, IdentityError::NothingToEnd);
            return Err(Refused { cookies, ..error.into() });
        }
        let mut there = None;
        for sid in &named {
            if request.is_for_people() && there.is_none() {
                there = self.logout_at_provider(sid, policy).await?;
            }
            self.end_named(sid, request, policy).await?;
        }
        Ok(there.map_or(Outcome::LoggedOut, Outcome::LoggedOutVia))
    }

    /// Ends the session that its own token names.
    pub(super) async fn end_named(
        &self,
        sid: &str,
        request: &Request,
        policy: &Policy,
    ) -> Result<(), IdentityError> {
        let _turn = self.turn_to_end(sid).await;
        if let Some(account) = self.sessions.account_of(sid).await? {
            let now = self.clock.unix_time();
            if self.sessions.end(sid, &account.id, policy, now).await? == Ended::Now {
                audit::record("logged_out", request.client, &account.id, "");
            }
        } else if !self.sessions.is_revoked(sid, policy) {
            // The session has already ended, perhaps because it was not used: an access token may
            // outlive it.
            self.sessions.revoke(sid, policy, self.clock.unix_time()).await?;
        }
        Ok(())
    }

    pub(super) async fn logout_all(&self, request: &Request, policy: &Policy) -> Answered {
        let caller = caller(request)?;
        let id = caller.subject();
        let before = self.accounts.by_id(id).await?.ok_or(AccountError::Unknown)?.generation;
        let _turn = self.turn_to_end(id).await;
        // Of many requests at once, one ends them.
        let now = self.clock.unix_seconds();
        if self.accounts.end_sessions_since(id, before, policy, now).await? {
            audit::record("logged_out_everywhere", request.client, id, "");
        }
        Ok(Outcome::LoggedOutEverywhere)
    }

    /// Waits until no other request ends the same. What has ended is not ended again, so many requests
    /// at once write once.
    pub(super) async fn turn_to_end(&self, what: &str) -> Option<Turn> {
        self.ending.wait(what, LONGEST_WAIT).await.ok()
    }

    pub(super) async fn list_sessions(&self, request: &Request, policy: &Policy) -> Answered {
        let caller = caller(request)?;
        let account = self.account_of(request).await?;
        let now = self.clock.unix_time();
        let (rows, more) = self.sessions_of(&account.id, policy, now).await?;
        let current = caller.sid().map(str::to_owned);
        let now = now.as_secs();
        let tokens = self.personal_tokens.of_account(&account.id).await?;
        let sessions = Sessions { rows, more, current, now, account, tokens };
        Ok(Outcome::Sessions(Box::new(sessions)))
    }

    /// The sessions of an account, and how many more there are. Requests for the same account take
    /// turns: an account with thousands of sessions could otherwise keep every connection to the store
    /// busy, and logins would wait.
    pub(super) async fn sessions_of(
        &self,
        account: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<(Vec<SessionRow>, i64), StoreError> {
        let _turn = self.listing.wait(account, LONGEST_WAIT).await;
        self.sessions.of_account(account, policy, now).await
    }

    pub(super) async fn end_session(&self, request: &Request, policy: &Policy) -> Answered {
        let caller = caller(request)?;
        let sid = request.parameter.as_deref().unwrap_or_default();
        // Anybody may name any session.
        let _turn = self.turn_to_end(&format!("{} {sid}", caller.subject())).await;
        match self.sessions.end(sid, caller.subject(), policy, self.clock.unix_time()).await? {
            Ended::Unknown => return Err(IdentityError::NoSession.into()),
            Ended::Before => {}
            Ended::Now => audit::record("session_ended", request.client, caller.subject(), ""),
        }
        Ok(Outcome::SessionEnded { own: caller.sid() == Some(sid) })
    }
}

/// Whether the same refresh token will never be valid again.
fn error_is_final(error: &IdentityError) -> bool {
    matches!(error, IdentityError::Grant(_) | IdentityError::EmailUnverified)
}

/// The session to refresh.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "refresh_token": REFRESH_TOKEN }))]
pub struct Refresh {
    /// The refresh token. Absent: the one in the cookie.
    pub refresh_token: Option<String>,
    /// Its name where `compat` is `express`.
    #[serde(rename = "refreshToken")]
    #[schemars(skip)]
    pub camel_case: Option<Value>,
}

/// The session to end.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "refresh_token": REFRESH_TOKEN }))]
pub struct Logout {
    /// A refresh token of the session. Absent: the session of the access token, or of the cookie.
    pub refresh_token: Option<String>,
    /// Its name where `compat` is `express`.
    #[serde(rename = "refreshToken")]
    #[schemars(skip)]
    pub camel_case: Option<Value>,
}

/// The sessions of the caller.
#[derive(Serialize, JsonSchema)]
#[schemars(example = json!({ "sessions": [session_example()], "more": 0 }))]
pub struct SessionList {
    /// The 100 that were used last, the latest in front.
    pub sessions: Vec<Session>,
    /// How many more there are.
    pub more: i64,
}

/// A session of an account.
#[derive(Serialize, JsonSchema)]
#[schemars(example = session_example())]
pub struct Session {
    /// The `sid` of its tokens.
    pub sid: String,
    /// The client address of its last use.
    pub address: String,
    /// The user agent of its last use.
    pub user_agent: String,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub created_at: String,
    /// RFC 3339: the time of the login, or of the last refresh.
    #[schemars(extend("format" = "date-time"))]
    pub last_used_at: String,
    /// How it began: the name of a login provider, or `password`.
    pub idp: String,
    /// Whether this is the session of the request.
    pub current: bool,
}

impl Session {
    /// Describes a row to the caller whose session is `current`.
    pub fn from_row(row: SessionRow, current: Option<&str>) -> Self {
        Self {
            current: current == Some(row.id.as_str()),
            sid: row.id,
            address: row.address,
            user_agent: row.user_agent,
            created_at: time(row.created_at),
            last_used_at: time(row.rotated_at / 1000),
            idp: row.proof.idp,
        }
    }
}

pub(in crate::identity::actions) fn session_example() -> Value {
    json!({
        "sid": "9268d4d0-91aa-4f38-af37-d84754059019",
        "address": "203.0.113.7",
        "user_agent": "curl/8.14.1",
        "created_at": "2026-03-14T09:26:53Z",
        "last_used_at": "2026-03-14T11:02:10Z",
        "idp": "password",
        "current": true,
    })
}

/// The page that logs out.
pub(in crate::identity) fn logout_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let words = &filled.texts.logout;
    let here = Form {
        // It goes on to the provider of the login.
        leads_on: !policy.providers.is_empty(),
        ..Form::new(mount, "/logout", Vec::new(), &words.here)
    };
    let everywhere = Form::new(mount, "/logout-all", Vec::new(), &words.everywhere);
    Content {
        title: &words.title,
        lead: Some(words.lead.clone()),
        ways: Vec::new(),
        forms: vec![here, Form { look: "quiet", ..everywhere }],
        links: vec![Link::to_sessions(filled, mount)],
    }
}

/// The page after logout.
pub(in crate::identity) fn logged_out_page(filled: &Filled, mount: &Mount) -> Content {
    Content {
        title: &filled.texts.logout.done_title,
        lead: None,
        ways: Vec::new(),
        forms: Vec::new(),
        links: vec![Link {
            before: None,
            text: &filled.texts.logout.again,
            path: mount.path("/login"),
        }],
    }
}

/// How long a request waits for others that list the sessions of the same account.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
