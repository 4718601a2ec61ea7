//! The table of sessions: one row is one family of refresh tokens.

use super::accounts::account_columns;
use super::connections::WriteTransaction;
use super::revocations::{latest_cutoff, write_revocations};
use super::{AccountRow, RevocationRow, Store, StoreError};

/// A row: one session of an account.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct SessionRow {
    /// Its id, the `sid` of its access tokens.
    pub id: String,
    /// The account that it belongs to.
    pub account: String,
    /// The generation of the account when the session began.
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
    /// 1: its cookies last until the browser is closed.
    pub until_closed: i16,
    /// How it began.
    #[sqlx(flatten)]
    pub proof: LoginProof,
}

/// How somebody logged in.
#[derive(Clone, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct LoginProof {
    /// The name of a provider, or `password`.
    pub idp: String,
    /// How they proved who they are; empty: not known.
    pub acr: String,
    /// When they did, in Unix seconds; 0: not known.
    pub auth_time: i64,
}

/// What makes a session too old: it began, or was last used, at or before these times. One that began
/// while the clock was ahead is too old as well: it would outlast its lifetime by as much. Also what
/// makes a repeated refresh token too old.
#[derive(Clone, Copy, Debug)]
pub struct StaleBefore {
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds: a session that began at or after this time began while the clock was ahead.
    pub ahead: i64,
    /// Unix milliseconds.
    pub rotated_at: i64,
    /// Unix milliseconds: a refresh token that was used at or before this time is not accepted
    /// again.
    pub used_at: i64,
}

/// An account as it is when an access token is issued to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// What the token says about the account.
    pub account: AccountRow,
    /// The `iat` of the token, in Unix seconds: past everything that was revoked before. Whatever
    /// is revoked from now on has a cut-off at or after it.
    pub issued_at: i64,
    /// Whether it is issued to a session whose cookies last until the browser is closed.
    pub until_closed: bool,
    /// How that session began.
    pub proof: LoginProof,
}

/// Why a refresh token was not used up.
#[derive(Debug)]
pub struct NotRotated {
    /// What failed.
    pub error: StoreError,
    /// Whether it may have been used up all the same: it is not known how the transaction ended.
    pub may_be_used: bool,
}

impl<E: Into<StoreError>> From<E> for NotRotated {
    fn from(error: E) -> Self {
        Self { error: error.into(), may_be_used: false }
    }
}

impl Store {
    /// Opens a session and issues an access token with it, if the account is still as it was when
    /// its password was checked: of this generation and not disabled. `scope` is that of the
    /// token's `iss` in revocations.
    pub async fn open_session(
        &self,
        session: &SessionRow,
        scope: &str,
    ) -> Result<Option<Issued>, StoreError> {
        let mut writing = self.connections.write().await?;
        let opening = sqlx::query(OPEN)
            .bind(&session.id)
            .bind(&session.account)
            .bind(session.generation)
            .bind(session.counter)
            .bind(session.created_at)
            .bind(session.rotated_at)
            .bind(&session.address)
            .bind(&session.user_agent)
            .bind(session.until_closed)
            .bind(&session.proof.idp)
            .bind(&session.proof.acr)
            .bind(session.proof.auth_time);
        if writing.execute(opening).await? == 0 {
            return Ok(None);
        }
        let noting = sqlx::query("UPDATE accounts SET last_login_at = $1 WHERE id = $2");
        writing.execute(noting.bind(session.created_at).bind(&session.account)).await?;
        let issued = issue(&mut writing, &session.id, scope, session.created_at).await?;
        writing.commit().await?;
        Ok(issued)
    }

    /// Notes a login of an account whose sessions are elsewhere, and issues an access token, if it
    /// is still of this generation and not disabled.
    pub async fn log_in(
        &self,
        account: &str,
        generation: i64,
        scope: &str,
        now: i64,
    ) -> Result<Option<Issued>, StoreError> {
        let mut writing = self.connections.write().await?;
        let issued = issue_in(&mut writing, account, generation, scope, now).await?;
        if issued.is_none() {
            return Ok(None);
        }
        let noting = sqlx::query("UPDATE accounts SET last_login_at = $1 WHERE id = $2");
        writing.execute(noting.bind(now).bind(account)).await?;
        writing.commit().await?;
        Ok(issued)
    }

    /// Issues an access token to a session that is elsewhere, if its account is still of this
    /// generation and not disabled.
    pub async fn issue_to_generation(
        &self,
        account: &str,
        generation: i64,
        scope: &str,
        now: i64,
    ) -> Result<Option<Issued>, StoreError> {
        let mut writing = self.connections.write().await?;
        let issued = issue_in(&mut writing, account, generation, scope, now).await?;
        writing.commit().await?;
        Ok(issued)
    }

    /// Uses up the refresh token `counter` of a session, in one statement: of any number of
    /// attempts, one succeeds. Records when it was used, and deletes the records of this session's
    /// tokens that were used at or before `stale.used_at`. Issues an access token with it, at `now`
    /// in Unix seconds.
    pub async fn rotate_session(
        &self,
        used: &SessionRow,
        stale: StaleBefore,
        scope: &str,
        now: i64,
    ) -> Result<Option<Issued>, NotRotated> {
        let mut writing = self.connections.write().await?;
        let rotating = sqlx::query(ROTATE)
            .bind(used.rotated_at)
            .bind(&used.id)
            .bind(used.counter)
            .bind(stale.created_at)
            .bind(stale.rotated_at)
            .bind(&used.address)
            .bind(&used.user_agent)
            .bind(stale.ahead);
        if writing.execute(rotating).await? == 0 {
            return Ok(None);
        }
        let forgetting =
            sqlx::query("DELETE FROM used_refresh_tokens WHERE session = $1 AND used_at <= $2")
                .bind(&used.id);
        writing.execute(forgetting.bind(stale.used_at)).await?;
        let noting = sqlx::query(
            "INSERT INTO used_refresh_tokens (session, counter, used_at) VALUES ($1, $2, $3)",
        )
        .bind(&used.id);
        writing.execute(noting.bind(used.counter).bind(used.rotated_at)).await?;
        let issued = issue(&mut writing, &used.id, scope, now).await?;
        match writing.commit().await {
            Ok(()) => Ok(issued),
            Err(error) => Err(NotRotated { error, may_be_used: true }),
        }
    }

    /// When the refresh token `counter` of a session was used, in Unix milliseconds. `None`: it was
    /// not used, or too long ago.
    pub async fn used_at(&self, session: &str, counter: i64) -> Result<Option<i64>, StoreError> {
        let asking = sqlx::query_as(
            "SELECT used_at FROM used_refresh_tokens WHERE session = $1 AND counter = $2",
        );
        let used: Option<(i64,)> =
            self.connections.first(asking.bind(session).bind(counter)).await?;
        Ok(used.map(|(at,)| at))
    }

    /// Issues another access token to a live session. `None`: the session is not live.
    pub async fn issue_again(
        &self,
        session: &str,
        scope: &str,
        now: i64,
    ) -> Result<Option<Issued>, StoreError> {
        let mut writing = self.connections.write().await?;
        let issued = issue(&mut writing, session, scope, now).await?;
        writing.commit().await?;
        Ok(issued)
    }

    /// A live session: it has not ended, its generation is that of its account, and the account is
    /// not disabled.
    pub async fn live_session(&self, id: &str) -> Result<Option<SessionRow>, StoreError> {
        self.connections.first(sqlx::query_as(LIVE).bind(id)).await
    }

    /// The account of a live session.
    pub async fn account_of_session(&self, id: &str) -> Result<Option<AccountRow>, StoreError> {
        self.connections.first(sqlx::query_as(ACCOUNT).bind(id)).await
    }

    /// The user agents of the last hundred sessions of an account, whether they go on or not.
    pub async fn user_agents_of(&self, account: &str) -> Result<Vec<String>, StoreError> {
        let rows: Vec<(String,)> = self
            .connections
            .all(sqlx::query_as(USER_AGENTS).bind(account).bind(MAX_LISTED))
            .await?;
        Ok(rows.into_iter().map(|(user_agent,)| user_agent).collect())
    }

    /// The live sessions of an account, the last used first: the first hundred of them, and how
    /// many more there are.
    pub async fn sessions_of(
        &self,
        account: &str,
        stale: StaleBefore,
    ) -> Result<(Vec<SessionRow>, i64), StoreError> {
        let listing = sqlx::query_as(LIVE_OF_ACCOUNT)
            .bind(account)
            .bind(stale.created_at)
            .bind(stale.rotated_at)
            .bind(stale.ahead)
            .bind(MAX_LISTED);
        let listed: Vec<SessionRow> = self.connections.all(listing).await?;
        let count = i64::try_from(listed.len()).unwrap_or(i64::MAX);
        if count < MAX_LISTED {
            return Ok((listed, 0));
        }
        let counting = sqlx::query_as(COUNT_OF_ACCOUNT)
            .bind(account)
            .bind(stale.created_at)
            .bind(stale.rotated_at)
            .bind(stale.ahead);
        let (all,): (i64,) = self.connections.one(counting).await?;
        Ok((listed, (all - count).max(0)))
    }

    /// Whether a session of `account` has ended. `None`: there is no such session.
    pub async fn has_ended(&self, id: &str, account: &str) -> Result<Option<bool>, StoreError> {
        let asking = sqlx::query_as("SELECT ended_at FROM sessions WHERE id = $1 AND account = $2");
        let found: Option<(Option<i64>,)> =
            self.connections.first(asking.bind(id).bind(account)).await?;
        Ok(found.map(|(ended_at,)| ended_at.is_some()))
    }

    /// Ends a session of `account` and revokes its access tokens, in one transaction. Returns
    /// false, and writes nothing, if there is no such session. One that has already ended is
    /// revoked again. Also writes nothing on an error.
    pub async fn end_session(
        &self,
        id: &str,
        account: &str,
        revocation: &RevocationRow,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let ending = sqlx::query(END).bind(now).bind(id).bind(account);
        if writing.execute(ending).await? == 0 {
            return Ok(false);
        }
        write_revocations(&mut writing, std::slice::from_ref(revocation)).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Deletes the sessions that can no longer be used.
    pub async fn prune_sessions(&self, stale: StaleBefore) -> Result<(), StoreError> {
        self.prune(|most| {
            sqlx::query(PRUNE).bind(stale.created_at).bind(stale.rotated_at).bind(most)
        })
        .await
    }
}

/// A live session's account, and what its token needs to know about the session.
#[derive(sqlx::FromRow)]
struct Owner {
    #[sqlx(flatten)]
    account: AccountRow,
    until_closed: i16,
    #[sqlx(flatten)]
    proof: LoginProof,
}

/// Issues an access token to a live session. `None`: the session is not live.
async fn issue(
    writing: &mut WriteTransaction,
    session: &str,
    scope: &str,
    now: i64,
) -> Result<Option<Issued>, StoreError> {
    let owner: Option<Owner> = writing.first(sqlx::query_as(ACCOUNT).bind(session)).await?;
    let Some(Owner { account, until_closed, proof }) = owner else { return Ok(None) };
    let issued = issue_to(writing, account, scope, now).await?;
    Ok(Some(Issued { until_closed: until_closed == 1, proof, ..issued }))
}

/// Issues an access token to an account of this generation that is not disabled.
async fn issue_in(
    writing: &mut WriteTransaction,
    account: &str,
    generation: i64,
    scope: &str,
    now: i64,
) -> Result<Option<Issued>, StoreError> {
    let owner = sqlx::query_as(OF_GENERATION).bind(account).bind(generation);
    match writing.first(owner).await? {
        Some(owner) => Ok(Some(issue_to(writing, owner, scope, now).await?)),
        None => Ok(None),
    }
}

/// Notes that an access token is issued to an account, and chooses its `iat`: past every cut-off in
/// force. Nothing else writes in the meantime: every revocation comes before it or after it.
///
/// # Errors
/// [`StoreError::CutOffAhead`] if the cut-off is too far ahead of the clock. The caller must then
/// discard what the transaction has written.
pub(super) async fn issue_to(
    writing: &mut WriteTransaction,
    account: AccountRow,
    scope: &str,
    now: i64,
) -> Result<Issued, StoreError> {
    let cutoff = latest_cutoff(writing, &account.id, scope).await?.max(account.not_before);
    let issued_at = now.max(cutoff.saturating_add(1));
    if issued_at > now.saturating_add(MAX_AHEAD) {
        return Err(StoreError::CutOffAhead { account: account.id, until: cutoff });
    }
    let noted = sqlx::query("UPDATE accounts SET issued_at = $1 WHERE id = $2 AND issued_at < $1")
        .bind(issued_at)
        .bind(&account.id);
    writing.execute(noted).await?;
    Ok(Issued { account, issued_at, until_closed: false, proof: LoginProof::default() })
}

/// How many seconds ahead of the clock a token may be issued: enough for a few cut-offs within one
/// second, by a replica whose clock is ten seconds ahead. If a cut-off is farther ahead, the clock
/// has been set back since, and waiting for it would take a long time.
pub const MAX_AHEAD: i64 = 15;

/// What the provider knows about a session is written before it, and is gone if the provider has ended
/// the session since.
const OPEN: &str = "INSERT INTO sessions (id, account, generation, counter, created_at, rotated_at, address, user_agent, until_closed, idp, acr, auth_time) \
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 FROM accounts WHERE id = $2 AND generation = $3 AND disabled = 0 \
    AND ($10 IN ('', 'password') OR EXISTS (SELECT 1 FROM provider_sessions WHERE session = $1))";

const ROTATE: &str = "UPDATE sessions SET counter = counter + 1, rotated_at = $1, address = $6, user_agent = $7 \
    WHERE id = $2 AND counter = $3 AND ended_at IS NULL AND created_at > $4 AND rotated_at > $5 AND created_at < $8 \
    AND generation = (SELECT generation FROM accounts WHERE accounts.id = sessions.account AND disabled = 0)";

const ACCOUNT: &str = concat!(
    "SELECT ",
    account_columns!(),
    ", sessions.until_closed, sessions.idp, sessions.acr, sessions.auth_time FROM accounts JOIN sessions ON sessions.account = accounts.id WHERE sessions.id = $1 \
     AND sessions.ended_at IS NULL AND sessions.generation = accounts.generation AND accounts.disabled = 0"
);

const OF_GENERATION: &str = concat!(
    "SELECT ",
    account_columns!(),
    " FROM accounts WHERE id = $1 AND generation = $2 AND disabled = 0"
);

/// The columns of a [`SessionRow`], by name as those of an account.
macro_rules! session_columns {
    () => {
        "id, account, generation, counter, created_at, rotated_at, address, user_agent, ended_at, until_closed, idp, acr, auth_time"
    };
}

const LIVE: &str = concat!(
    "SELECT ",
    session_columns!(),
    " FROM sessions WHERE id = $1 AND ended_at IS NULL \
     AND generation = (SELECT generation FROM accounts WHERE accounts.id = sessions.account AND disabled = 0)"
);

/// The maximum number of sessions of an account to list.
const MAX_LISTED: i64 = 100;

const USER_AGENTS: &str =
    "SELECT user_agent FROM sessions WHERE account = $1 ORDER BY created_at DESC LIMIT $2";

const LIVE_OF_ACCOUNT: &str = concat!(
    "SELECT ",
    session_columns!(),
    " FROM sessions WHERE account = $1 AND created_at > $2 AND rotated_at > $3 AND created_at < $4 AND ended_at IS NULL \
     AND generation = (SELECT generation FROM accounts WHERE accounts.id = sessions.account AND disabled = 0) ORDER BY rotated_at DESC LIMIT $5"
);

const COUNT_OF_ACCOUNT: &str = "SELECT COUNT(*) FROM sessions WHERE account = $1 AND created_at > $2 AND rotated_at > $3 AND created_at < $4 AND ended_at IS NULL \
    AND generation = (SELECT generation FROM accounts WHERE accounts.id = sessions.account AND disabled = 0)";

const END: &str = "UPDATE sessions SET ended_at = CASE WHEN ended_at IS NULL THEN $1 ELSE ended_at END WHERE id = $2 AND account = $3";

const PRUNE: &str = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE created_at <= $1 OR rotated_at <= $2 LIMIT $3)";
