//! Where sessions are: in the database, or in Redis. Accounts are always in the database, and so is
//! every revocation: what ends access does not depend on Redis.

use std::sync::Arc;
use std::time::Duration;

use crate::redis::{Redis, SessionUse, SessionsAway, StoredSession};
use crate::revocation::row;
use crate::store::{
    AccountRow, Issued, LoginProof, NotRotated, SessionAtProvider, SessionRow, StaleBefore, Store,
    StoreError,
};
use crate::token::Revocation;

/// All sessions of the built-in issuer.
#[derive(Clone, Debug)]
pub struct SessionStore {
    store: Store,
    redis: Option<Arc<Redis>>,
}

impl SessionStore {
    /// `redis`: where the sessions are; `None`: in the database.
    pub fn new(store: Store, redis: Option<Arc<Redis>>) -> Self {
        Self { store, redis: redis.filter(|redis| redis.holds_sessions()) }
    }

    /// The database.
    pub(super) fn database(&self) -> &Store {
        &self.store
    }

    /// See [`Store::shared_time`].
    pub(super) fn shared_time(&self, now: Duration) -> Duration {
        self.store.shared_time(now)
    }

    /// See [`Store::open_session`].
    pub(super) async fn open(
        &self,
        session: &SessionRow,
        stale: StaleBefore,
        scope: &str,
    ) -> Result<Option<Issued>, StoreError> {
        let Some(redis) = &self.redis else { return self.store.open_session(session, scope).await };
        let opened = StoredSession {
            id: session.id.clone(),
            account: session.account.clone(),
            generation: session.generation,
            counter: session.counter,
            created_at: session.created_at,
            rotated_at: session.rotated_at,
            address: session.address.clone(),
            user_agent: session.user_agent.clone(),
            ended_at: None,
            until_closed: session.until_closed == 1,
            idp: session.proof.idp.clone(),
            acr: session.proof.acr.clone(),
            auth_time: session.proof.auth_time,
            used: Vec::new(),
        };
        // A session whose account has changed is never lived: its refresh token is unknown.
        redis.open_session(&opened, life(session.created_at, session.rotated_at, stale)).await?;
        let (account, generation) = (&session.account, session.generation);
        let issued = self.store.log_in(account, generation, scope, session.created_at).await?;
        let (until_closed, proof) = (opened.until_closed, session.proof.clone());
        Ok(issued.map(|issued| Issued { until_closed, proof, ..issued }))
    }

    /// See [`Store::rotate_session`].
    pub(super) async fn rotate(
        &self,
        used: &SessionRow,
        stale: StaleBefore,
        scope: &str,
        now: i64,
    ) -> Result<Option<Issued>, NotRotated> {
        let Some(redis) = &self.redis else {
            return self.store.rotate_session(used, stale, scope, now).await;
        };
        let Some(session) = redis.session(&used.id).await? else { return Ok(None) };
        let is_ahead = session.created_at >= stale.ahead;
        if session.ended_at.is_some() || is_ahead || session.counter != used.counter {
            return Ok(None);
        }
        // The token is issued first: a gateway that fails in between has used nothing up. It can be
        // issued in vain, but its cut-off is noted like any other.
        let Some(issued) = self.issue(&session, scope, now).await? else { return Ok(None) };
        let rotation = SessionUse {
            counter: used.counter,
            at: used.rotated_at,
            address: &used.address,
            user_agent: &used.user_agent,
            created_after: stale.created_at,
            rotated_after: stale.rotated_at,
            used_after: stale.used_at,
            life: life(session.created_at, used.rotated_at, stale),
        };
        match redis.rotate_session(&used.id, &session.account, rotation).await {
            Ok(is_used) => Ok(is_used.then_some(issued)),
            Err(away) => Err(NotRotated { error: away.into(), may_be_used: true }),
        }
    }

    /// See [`Store::used_at`].
    pub(super) async fn used_at(&self, id: &str, counter: i64) -> Result<Option<i64>, StoreError> {
        let Some(redis) = &self.redis else { return self.store.used_at(id, counter).await };
        let session = redis.session(id).await?;
        let mut used = session.into_iter().flat_map(|session| session.used);
        Ok(used.find(|(number, _)| *number == counter).map(|(_, at)| at))
    }

    /// See [`Store::issue_again`].
    pub(super) async fn issue_again(
        &self,
        id: &str,
        scope: &str,
        now: i64,
    ) -> Result<Option<Issued>, StoreError> {
        let Some(redis) = &self.redis else { return self.store.issue_again(id, scope, now).await };
        match redis.session(id).await? {
            Some(session) if session.ended_at.is_none() => self.issue(&session, scope, now).await,
            _ => Ok(None),
        }
    }

    /// See [`Store::live_session`].
    pub(super) async fn live(&self, id: &str) -> Result<Option<SessionRow>, StoreError> {
        if self.redis.is_none() {
            return self.store.live_session(id).await;
        }
        Ok(self.live_with_account(id).await?.map(|(session, _)| session.into()))
    }

    /// See [`Store::account_of_session`].
    pub(super) async fn account_of(&self, id: &str) -> Result<Option<AccountRow>, StoreError> {
        if self.redis.is_none() {
            return self.store.account_of_session(id).await;
        }
        Ok(self.live_with_account(id).await?.map(|(_, account)| account))
    }

    /// See [`Store::user_agents_of`].
    pub(super) async fn user_agents_of(&self, account: &str) -> Result<Vec<String>, StoreError> {
        let Some(redis) = &self.redis else { return self.store.user_agents_of(account).await };
        let sessions = redis.sessions_of(account).await?;
        Ok(sessions.into_iter().take(MOST_LISTED).map(|session| session.user_agent).collect())
    }

    /// See [`Store::sessions_of`].
    ///
    /// # Errors
    /// The sessions cannot be read.
    pub async fn of_account(
        &self,
        account: &str,
        stale: StaleBefore,
    ) -> Result<(Vec<SessionRow>, i64), StoreError> {
        let Some(redis) = &self.redis else { return self.store.sessions_of(account, stale).await };
        let Some(owner) = self.store.account(account).await?.filter(|owner| owner.disabled == 0)
        else {
            return Ok((Vec::new(), 0));
        };
        let is_live = |session: &StoredSession| {
            session.ended_at.is_none()
                && session.generation == owner.generation
                && session.created_at > stale.created_at
                && session.created_at < stale.ahead
                && session.rotated_at > stale.rotated_at
        };
        let mut live = redis.sessions_of(account).await?;
        live.retain(is_live);
        live.sort_by_key(|session| std::cmp::Reverse(session.rotated_at));
        let more = live.len().saturating_sub(MOST_LISTED);
        live.truncate(MOST_LISTED);
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        Ok((live.into_iter().map(SessionRow::from).collect(), more))
    }

    /// The ids of the sessions of an account that are not in the database, whether they have ended
    /// or not.
    ///
    /// # Errors
    /// The sessions cannot be read.
    pub async fn ids_elsewhere(&self, account: &str) -> Result<Vec<String>, StoreError> {
        let Some(redis) = &self.redis else { return Ok(Vec::new()) };
        let sessions = redis.sessions_of(account).await?;
        Ok(sessions.into_iter().map(|session| session.id).collect())
    }

    /// See [`Store::has_ended`].
    pub(super) async fn has_ended(
        &self,
        id: &str,
        account: &str,
    ) -> Result<Option<bool>, StoreError> {
        let Some(redis) = &self.redis else { return self.store.has_ended(id, account).await };
        let session = redis.session(id).await?.filter(|session| session.account == account);
        Ok(session.map(|session| session.ended_at.is_some()))
    }

    /// Ends a session of `account`. Returns whether its revocation was written with that; otherwise
    /// it has yet to be written.
    pub(super) async fn end(
        &self,
        id: &str,
        account: &str,
        revocation: &Revocation,
        now: i64,
    ) -> Result<bool, StoreError> {
        let Some(redis) = &self.redis else {
            return self.store.end_session(id, account, &row(revocation), now).await;
        };
        redis.end_session(id, account, now).await?;
        Ok(false)
    }

    /// Ends sessions outside the database whose ends and revocations are written. Those that cannot
    /// be reached end when they are used.
    pub(super) async fn end_elsewhere(&self, ended: &[SessionAtProvider], now: i64) {
        let Some(redis) = &self.redis else { return };
        for SessionAtProvider { session, account, .. } in ended {
            // Redis reports itself that it is away.
            let _ = redis.end_session(session, account, now).await;
        }
    }

    /// The session that a new personal access token is bound to in the database. `None`: it is not
    /// there, and only the generation of the account tells whether it has ended.
    pub(super) fn bound<'s>(&self, session: &'s str) -> Option<&'s str> {
        self.redis.is_none().then_some(session)
    }

    /// Deletes the sessions that can no longer be used. Those in Redis expire.
    pub(super) async fn prune(&self, stale: StaleBefore) -> Result<(), StoreError> {
        self.store.prune_sessions(stale).await
    }

    async fn live_with_account(
        &self,
        id: &str,
    ) -> Result<Option<(StoredSession, AccountRow)>, StoreError> {
        let Some(redis) = &self.redis else { return Ok(None) };
        let session = redis.session(id).await?.filter(|session| session.ended_at.is_none());
        let Some(session) = session else { return Ok(None) };
        let account = self.store.account(&session.account).await?;
        let account = account
            .filter(|account| account.disabled == 0 && account.generation == session.generation);
        Ok(account.map(|account| (session, account)))
    }

    async fn issue(
        &self,
        session: &StoredSession,
        scope: &str,
        now: i64,
    ) -> Result<Option<Issued>, StoreError> {
        let (account, generation) = (&session.account, session.generation);
        let issued = self.store.issue_to_generation(account, generation, scope, now).await?;
        let (until_closed, proof) = (session.until_closed, proof(session));
        Ok(issued.map(|issued| Issued { until_closed, proof, ..issued }))
    }
}

impl From<StoredSession> for SessionRow {
    fn from(session: StoredSession) -> Self {
        let proof = proof(&session);
        Self {
            id: session.id,
            account: session.account,
            generation: session.generation,
            counter: session.counter,
            created_at: session.created_at,
            rotated_at: session.rotated_at,
            address: session.address,
            user_agent: session.user_agent,
            ended_at: session.ended_at,
            until_closed: i16::from(session.until_closed),
            proof,
        }
    }
}

fn proof(session: &StoredSession) -> LoginProof {
    LoginProof { idp: session.idp.clone(), acr: session.acr.clone(), auth_time: session.auth_time }
}

impl From<SessionsAway> for StoreError {
    fn from(away: SessionsAway) -> Self {
        Self::Sessions { cause: away.to_string() }
    }
}

/// How long a session that began and was used at these times lasts.
fn life(created_at: i64, rotated_at: i64, stale: StaleBefore) -> Duration {
    let whole = (created_at - stale.created_at).saturating_mul(1000);
    let unused = rotated_at - stale.rotated_at;
    Duration::from_millis(u64::try_from(whole.min(unused)).unwrap_or_default())
}

/// The maximum number of sessions of an account to list.
const MOST_LISTED: usize = 100;
