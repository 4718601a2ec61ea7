//! A session of the built-in issuer as Redis keeps it.

use std::time::Duration;

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredSession {
    /// Its id.
    pub id: String,
    /// The account that it belongs to.
    pub account: String,
    /// The generation of the account when it began.
    pub generation: i64,
    /// The number of the refresh token that is valid next.
    pub counter: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix milliseconds.
    pub rotated_at: i64,
    /// The address that it was last used from.
    pub address: String,
    /// The user agent that it was last used with.
    pub user_agent: String,
    /// Unix seconds.
    pub ended_at: Option<i64>,
    /// Whether its cookies last until the browser is closed.
    pub until_closed: bool,
    /// How the person logged in: the name of a provider, or `password`.
    pub idp: String,
    /// How they proved who they are; empty: not known.
    pub acr: String,
    /// When they did, in Unix seconds; 0: not known.
    pub auth_time: i64,
    /// The refresh tokens that were used lately, with the time in Unix milliseconds.
    pub used: Vec<(i64, i64)>,
}

/// The use of a refresh token. The session must have begun, and been used, after these times.
#[derive(Clone, Copy, Debug)]
pub struct SessionUse<'a> {
    /// The number of the token.
    pub counter: i64,
    /// Unix milliseconds.
    pub at: i64,
    /// The address that it is used from.
    pub address: &'a str,
    /// The user agent that it is used with.
    pub user_agent: &'a str,
    /// Unix seconds.
    pub created_after: i64,
    /// Unix milliseconds.
    pub rotated_after: i64,
    /// Unix milliseconds: tokens that were used at or before this time are forgotten.
    pub used_after: i64,
    /// How long it then lasts if it is not used again.
    pub life: Duration,
}

/// The server cannot be used; the text says why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SessionsAway(pub(super) String);
