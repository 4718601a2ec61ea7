//! Sessions: opened by a login, continued by refresh tokens, ended by logout or token reuse.
//!
//! A refresh token is the session's id, a counter and a MAC over both. The store keeps only the
//! counter: nothing in it can be replayed, and a successor can be computed again. A client that
//! repeats a refresh within `refresh_reuse_interval` thus gets the same successor.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use uuid::Uuid;

use super::device::device;
use super::policy::Policy;
use super::session_store::SessionStore;
use crate::revocation::{Revocations, row, written};
use crate::store::{
    AccountRow, Issued, LoginProof, LogoutTokenRow, MAX_AHEAD, NamedThere, ProviderSessionRow,
    SessionAtProvider, SessionRow, StaleBefore, StoreError,
};
use crate::token::{Revocation, RevokedBy, Scope};

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    store: SessionStore,
    revocations: Arc<Revocations>,
    key: hmac::Key,
    /// For each session, the last use of a token that the store did not acknowledge. The store may
    /// have used it up although the client never received its successor.
    in_doubt: Mutex<HashMap<Uuid, Use>>,
}

/// The client of a session.
#[derive(Clone, Debug)]
pub struct Device {
    /// The client's address.
    pub address: IpAddr,
    /// Its `User-Agent`, cut to [`LONGEST_USER_AGENT`].
    pub user_agent: String,
}

impl Device {
    /// The device that sends a request with these fields from this address.
    pub fn new(address: IpAddr, headers: &HeaderMap) -> Self {
        let user_agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let user_agent = user_agent.unwrap_or_default().chars().take(LONGEST_USER_AGENT).collect();
        Self { address, user_agent }
    }
}

/// How long a browser keeps the cookies of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As long as the session can last.
    Lasting,
    /// Until the browser is closed.
    UntilClosed,
}

/// An active session, and the access token issued to it.
#[derive(Debug)]
pub struct SessionGrant {
    /// The account as it was when the token was issued.
    pub account: AccountRow,
    /// The id of the session.
    pub sid: String,
    /// The next refresh token.
    pub refresh_token: String,
    /// The token's `iat` in Unix seconds: after every earlier revocation, and not after the cut-off
    /// of a later one.
    pub issued_at: u64,
    /// How long a browser keeps its cookies.
    pub keep: Keep,
    /// How the session began.
    pub proof: LoginProof,
}

/// How a session begins.
#[derive(Debug)]
pub struct Began {
    /// How the person has logged in.
    pub proof: LoginProof,
    /// What the provider knows about the session, if they logged in at one, and the number of the last
    /// revocation when that login began.
    pub provider: Option<(ProviderSessionRow, i64)>,
}

/// Who presents a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presenter {
    /// A program, in the body.
    Program,
    /// A browser, in a cookie. Another tab may have received newer tokens meanwhile.
    Browser,
    /// A browser to which the successor has never been sent, nor to anybody else.
    Unanswered,
}

/// Why a refresh token was rejected.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// It is not one of our tokens, or its session has ended.
    #[error("the refresh token is not valid, or its session has ended")]
    Invalid,
    /// It was already used. Its session was ended.
    #[error("the refresh token of session {sid} was reused: the session was ended")]
    Reused {
        /// The session.
        sid: String,
        /// Its account.
        account: String,
    },
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// What became of a session, or a personal access token, that was to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The account has no such session. Nothing was written.
    Unknown,
    /// It had ended before, and its revocation is in force. Nothing was written.
    Before,
    /// It has ended.
    Now,
}

impl Sessions {
    /// The sessions in this store.
    pub fn new(store: SessionStore, revocations: Arc<Revocations>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, store.database().refresh_key().as_ref());
        Self { store, revocations, key, in_doubt: Mutex::default() }
    }

    /// Opens a session for an account as it was when its password was checked. `None`: the account
    /// has changed since, or what a login at a provider would begin has ended meanwhile.
    pub async fn open(
        &self,
        account: &AccountRow,
        (device, keep, began): (&Device, Keep, Began),
        policy: &Policy,
        now: Duration,
    ) -> Result<Option<SessionGrant>, StoreError> {
        let token = RefreshToken { session: Uuid::new_v4(), counter: 0 };
        let session = SessionRow {
            id: token.session.to_string(),
            account: account.id.clone(),
            generation: account.generation,
            counter: token.counter,
            created_at: seconds(now),
            rotated_at: millis(self.store.shared_time(now)),
            address: device.address.to_string(),
            user_agent: device.user_agent.clone(),
            ended_at: None,
            until_closed: i16::from(keep == Keep::UntilClosed),
            proof: began.proof,
        };
        // Before the session: without its row, the provider would never be asked about it.
        if let Some((row, since)) = began.provider {
            let (id, account) = (session.id.clone(), session.account.clone());
            let row = ProviderSessionRow {
                session: id,
                account,
                generation: session.generation,
                created_at: session.created_at,
                ..row
            };
            if !self.store.database().insert_provider_session(&row, since).await? {
                return Ok(None);
            }
        }
        let issued = self.store.open(&session, self.stale(policy, now), &scope(policy)).await?;
        Ok(issued.map(|issued| SessionGrant::new(issued, session.id, token.encode(&self.key))))
    }

    /// Whether an account has logged in before, but never with a browser or program of this name.
    pub async fn is_new_device(&self, account: &str, used: &Device) -> Result<bool, StoreError> {
        let known = self.store.user_agents_of(account).await?;
        let name = device(&used.user_agent);
        Ok(!known.is_empty() && known.iter().all(|known| device(known) != name))
    }

    /// Exchanges a refresh token for its successor. A repeated token gets the same successor again
    /// if it is in time. In a browser, that successor would overwrite the newest token, so the newest
    /// one is returned instead.
    pub async fn refresh(
        &self,
        token: &str,
        presenter: Presenter,
        device: &Device,
        policy: &Policy,
        now: Duration,
    ) -> Result<SessionGrant, RefreshError> {
        let token = RefreshToken::decode(token, &self.key).ok_or(RefreshError::Invalid)?;
        let (sid, stale) = (token.session.to_string(), self.stale(policy, now));
        self.check_revoked(&sid, policy, now).await?;
        let used = SessionRow {
            id: sid.clone(),
            account: String::new(),
            generation: 0,
            counter: token.counter,
            created_at: 0,
            rotated_at: millis(self.store.shared_time(now)),
            address: device.address.to_string(),
            user_agent: device.user_agent.clone(),
            ended_at: None,
            until_closed: 0,
            proof: LoginProof::default(),
        };
        let rotated = self.store.rotate(&used, stale, &scope(policy), seconds(now)).await;
        let mut issued = rotated.map_err(|failed| {
            if failed.may_be_used {
                self.doubt(token.session, Use { counter: token.counter, at: used.rotated_at });
            }
            failed.error
        })?;
        let mut counter = token.counter + 1;
        if issued.is_none() {
            let session = self.store.live(&sid).await?.ok_or(RefreshError::Invalid)?;
            let settled = self.check_reuse(token, presenter, &session, policy, now).await?;
            counter = if presenter == Presenter::Program { counter } else { session.counter };
            let again = self.store.issue_again(&sid, &scope(policy), seconds(now)).await;
            issued = again.inspect_err(|_| {
                if let Some(unacknowledged) = settled {
                    self.doubt(token.session, unacknowledged);
                }
            })?;
        }
        let issued = issued.ok_or(RefreshError::Invalid)?;
        self.settle(token.session, |unacknowledged| unacknowledged.counter < counter);
        let successor = RefreshToken { counter, ..token };
        Ok(SessionGrant::new(issued, sid, successor.encode(&self.key)))
    }

    /// Issues an access token to the session of a refresh token, which stays as it is.
    pub async fn lend(
        &self,
        token: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<SessionGrant, RefreshError> {
        let token = RefreshToken::decode(token, &self.key).ok_or(RefreshError::Invalid)?;
        let (sid, stale) = (token.session.to_string(), self.stale(policy, now));
        self.check_revoked(&sid, policy, now).await?;
        let session = self.store.live(&sid).await?.ok_or(RefreshError::Invalid)?;
        let is_valid = !is_stale(&session, stale)
            && (token.counter == session.counter
                || self.is_repeated_in_time(token, &session, policy, now).await?);
        if !is_valid {
            return Err(RefreshError::Invalid);
        }
        let issued = self.store.issue_again(&sid, &scope(policy), seconds(now)).await?;
        let issued = issued.ok_or(RefreshError::Invalid)?;
        Ok(SessionGrant::new(issued, sid, token.encode(&self.key)))
    }

    /// Ends a session whose tokens are revoked. Every new token would be revoked too, and a browser
    /// would be redirected forever.
    async fn check_revoked(
        &self,
        sid: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<(), RefreshError> {
        if !self.is_revoked(sid, policy) {
            return Ok(());
        }
        if let Some(session) = self.store.live(sid).await? {
            self.end(sid, &session.account, policy, now).await?;
        }
        Err(RefreshError::Invalid)
    }

    /// Checks that a token other than the current one may get its successor again: within the
    /// interval after its own first use, or if nobody has received the successor. Otherwise the
    /// session ends. Returns the use in doubt that is settled by this: the next one is a reuse.
    async fn check_reuse(
        &self,
        token: RefreshToken,
        presenter: Presenter,
        session: &SessionRow,
        policy: &Policy,
        now: Duration,
    ) -> Result<Option<Use>, RefreshError> {
        if is_stale(session, self.stale(policy, now)) || token.counter == session.counter {
            return Err(RefreshError::Invalid);
        }
        if token.counter > session.counter {
            // What the store has forgotten it would accept again, from whoever presents it.
            tracing::warn!(
                sid = session.id,
                account = session.account,
                "a session was ended because its refresh token is newer than what the store knows: the store was restored, or has lost its last changes"
            );
            self.end(&session.id, &session.account, policy, now).await?;
            return Err(RefreshError::Invalid);
        }
        let is_last = token.counter + 1 == session.counter;
        let shown = Use { counter: token.counter, at: session.rotated_at };
        // Not an earlier use, nor that of another gateway: their successors were received.
        if is_last && self.settle(token.session, |unacknowledged| *unacknowledged == shown) {
            return Ok(Some(shown));
        }
        let is_unanswered = presenter == Presenter::Unanswered && is_last;
        if is_unanswered || self.is_repeated_in_time(token, session, policy, now).await? {
            return Ok(None);
        }
        self.end(&session.id, &session.account, policy, now).await?;
        Err(RefreshError::Reused { sid: session.id.clone(), account: session.account.clone() })
    }

    fn doubt(&self, session: Uuid, unacknowledged: Use) {
        let mut in_doubt = self.in_doubt();
        if in_doubt.len() >= MOST_IN_DOUBT {
            in_doubt.clear();
        }
        in_doubt.insert(session, unacknowledged);
    }

    /// Forgets a session's use in doubt if this applies to it. Of any number of callers, one learns
    /// that it did.
    fn settle(&self, session: Uuid, applies: impl FnOnce(&Use) -> bool) -> bool {
        let mut in_doubt = self.in_doubt();
        let is_it = in_doubt.get(&session).is_some_and(applies);
        if is_it {
            in_doubt.remove(&session);
        }
        is_it
    }

    fn in_doubt(&self) -> MutexGuard<'_, HashMap<Uuid, Use>> {
        self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Parses a refresh token of ours, whether it is still valid or not.
    pub(super) fn parse(&self, token: &str) -> Option<RefreshToken> {
        RefreshToken::decode(token, &self.key)
    }

    /// Returns the id of the session for which this gateway issued a refresh token, which may have
    /// expired.
    pub(super) fn sid_of(&self, token: &str) -> Option<String> {
        Some(self.parse(token)?.session.to_string())
    }

    /// Whether a token that was used was first used less than `refresh_reuse_interval` ago.
    async fn is_repeated_in_time(
        &self,
        token: RefreshToken,
        session: &SessionRow,
        policy: &Policy,
        now: Duration,
    ) -> Result<bool, StoreError> {
        let is_last = token.counter + 1 == session.counter;
        let used_at = if is_last {
            Some(session.rotated_at)
        } else {
            self.store.used_at(&session.id, token.counter).await?
        };
        // A clock that was ahead at the first use must not make the interval longer. With an interval
        // of zero nothing may be used twice, whatever the clocks of two requests say.
        let latest = millis(self.store.shared_time(now)).saturating_add(MAX_AHEAD * 1000);
        let in_time = self.stale(policy, now).used_at.saturating_add(1)..=latest;
        Ok(!policy.refresh_reuse_interval.is_zero()
            && used_at.is_some_and(|used_at| in_time.contains(&used_at)))
    }

    /// The session that a refresh token of ours names, whether it is valid or not.
    pub fn named_by(&self, token: &str) -> Option<String> {
        RefreshToken::decode(token, &self.key).map(|token| token.session.to_string())
    }

    /// The live session that a refresh token names, even if the token was used: this authenticates
    /// nobody. Nothing is changed.
    pub async fn live(
        &self,
        token: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<Option<SessionRow>, StoreError> {
        let Some(sid) = self.named_by(token) else { return Ok(None) };
        self.live_named(&sid, policy, now).await
    }

    async fn live_named(
        &self,
        sid: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<Option<SessionRow>, StoreError> {
        if self.is_revoked(sid, policy) {
            return Ok(None);
        }
        let session = self.store.live(sid).await?;
        Ok(session.filter(|session| !is_stale(session, self.stale(policy, now))))
    }

    /// Whether a refresh token is the newest of a session that goes on.
    pub(super) async fn is_newest(
        &self,
        token: RefreshToken,
        policy: &Policy,
        now: Duration,
    ) -> Result<bool, StoreError> {
        let session = self.live_named(&token.session.to_string(), policy, now).await?;
        Ok(session.is_some_and(|session| session.counter == token.counter))
    }

    /// Whether a session of this id goes on.
    pub async fn goes_on(&self, sid: &str) -> Result<bool, StoreError> {
        Ok(self.store.live(sid).await?.is_some())
    }

    /// The account of an active session.
    pub async fn account_of(&self, sid: &str) -> Result<Option<AccountRow>, StoreError> {
        self.store.account_of(sid).await
    }

    /// Whether the access tokens of a session are revoked by its id.
    pub fn is_revoked(&self, sid: &str, policy: &Policy) -> bool {
        self.revocations.list().contains(RevokedBy::Sid, &policy.issuer, sid)
    }

    /// Revokes the access tokens of a session, even if it has ended or never existed.
    pub async fn revoke(
        &self,
        sid: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<(), StoreError> {
        self.revocations.revoke(ended(sid, policy, now)).await
    }

    /// Ends a session of `account`: its refresh tokens are no longer valid, and its access tokens
    /// are revoked. Ending it again writes nothing.
    pub async fn end(
        &self,
        sid: &str,
        account: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<Ended, StoreError> {
        let Some(has_ended) = self.store.has_ended(sid, account).await? else {
            return Ok(Ended::Unknown);
        };
        let is_over = has_ended && self.is_revoked(sid, policy);
        if !is_over {
            let revocation = ended(sid, policy, now);
            if self.store.end(sid, account, &revocation, seconds(now)).await? {
                self.revocations.written(revocation);
            } else {
                self.revocations.revoke(revocation).await?;
            }
        }
        self.store.database().delete_provider_session(sid).await?;
        Ok(if is_over { Ended::Before } else { Ended::Now })
    }

    /// Ends the sessions that a logout token of the provider `issuer` names, and returns them. `None`:
    /// it was received before.
    pub(super) async fn end_once(
        &self,
        token: &LogoutTokenRow,
        there: (&str, NamedThere<'_>),
        policy: &Policy,
        now: Duration,
    ) -> Result<Option<Vec<SessionAtProvider>>, StoreError> {
        let each = row(&ended("", policy, now));
        let written = self.store.database().end_sessions_once(token, there, &each).await?;
        let Some(sessions) = written else { return Ok(None) };
        for session in &sessions {
            self.revocations.written(ended(&session.session, policy, now));
        }
        self.store.end_elsewhere(&sessions, seconds(now)).await;
        Ok(Some(sessions))
    }

    /// The sessions of an account that go on, the one used last in front, and how many more there
    /// are than are listed.
    pub async fn of_account(
        &self,
        account: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<(Vec<SessionRow>, i64), StoreError> {
        let (mut listed, more) = self.store.of_account(account, self.stale(policy, now)).await?;
        // One that was revoked by its id ends in Redis when it is used.
        let revoked = self.revocations.list();
        listed.retain(|row| !revoked.contains(RevokedBy::Sid, &policy.issuer, &row.id));
        Ok((listed, more))
    }

    /// The session that a new personal access token is bound to ([`SessionStore::bound`]).
    pub(super) fn bound<'s>(&self, session: &'s str) -> Option<&'s str> {
        self.store.bound(session)
    }

    /// When a session must have begun, and been used, to go on. Uses are compared on the clock that
    /// all replicas share: otherwise a repetition at a replica whose clock is ahead would come too
    /// late, and end the session.
    fn stale(&self, policy: &Policy, now: Duration) -> StaleBefore {
        let StaleBefore { created_at, ahead, .. } = stale(policy, now);
        StaleBefore { created_at, ahead, ..stale(policy, self.store.shared_time(now)) }
    }

    /// Deletes sessions that can no longer be used.
    pub async fn prune(&self, policy: &Policy, now: Duration) -> Result<(), StoreError> {
        self.store.prune(self.stale(policy, now)).await
    }
}

impl SessionGrant {
    /// Whether the session may have another access token. If `verify_email` was set after it began, it
    /// may not until its owner confirms the address. Providers answer for their own people.
    pub(super) fn is_confirmed(&self, policy: &Policy) -> bool {
        let is_by_password = self.proof.idp == PASSWORD_LOGIN;
        !(policy.verify_email && is_by_password && self.account.email_verified == 0)
    }

    fn new(issued: Issued, sid: String, refresh_token: String) -> Self {
        Self {
            account: issued.account,
            sid,
            refresh_token,
            issued_at: issued.issued_at.cast_unsigned(),
            keep: if issued.until_closed { Keep::UntilClosed } else { Keep::Lasting },
            proof: issued.proof,
        }
    }
}

/// The use of a refresh token, as the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    /// The counter of the token.
    counter: i64,
    /// Unix milliseconds.
    at: i64,
}

/// A decoded refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RefreshToken {
    /// The id of the session.
    pub(super) session: Uuid,
    /// How many tokens of the session came before.
    pub(super) counter: i64,
}

impl RefreshToken {
    fn encode(self, key: &hmac::Key) -> String {
        let named = self.named();
        let mac = hmac::sign(key, &named);
        URL_SAFE_NO_PAD.encode([&named[..], mac.as_ref()].concat())
    }

    fn decode(text: &str, key: &hmac::Key) -> Option<Self> {
        if text.len() != REFRESH_TOKEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (named, mac) = bytes.split_at_checked(NAMED)?;
        // Compared in constant time.
        hmac::verify(key, named, mac).ok()?;
        let (session, counter) = named.split_at_checked(16)?;
        let counter = i64::from_be_bytes(counter.try_into().ok()?);
        (0..i64::MAX)
            .contains(&counter)
            .then_some(Self { session: Uuid::from_slice(session).ok()?, counter })
    }

    fn named(self) -> [u8; NAMED] {
        let mut named = [0; NAMED];
        named[..16].copy_from_slice(self.session.as_bytes());
        named[16..].copy_from_slice(&self.counter.to_be_bytes());
        named
    }
}

/// The revocation of a session's access tokens.
fn ended(sid: &str, policy: &Policy, now: Duration) -> Revocation {
    Revocation {
        scope: Scope::Issuer(policy.issuer.as_str().into()),
        by: RevokedBy::Sid,
        value: sid.into(),
        at: now.as_secs(),
    }
}

/// The scope of our tokens, as the store has it.
pub(super) fn scope(policy: &Policy) -> String {
    written(&Scope::Issuer(policy.issuer.as_str().into()))
}

/// The times before which a session can no longer be used.
pub fn stale(policy: &Policy, now: Duration) -> StaleBefore {
    StaleBefore {
        created_at: seconds(now.saturating_sub(policy.session_lifetime)),
        // No less, since a clock that is behind for a while must not end sessions.
        ahead: seconds(now.saturating_add(policy.session_lifetime)),
        rotated_at: millis(now.saturating_sub(policy.refresh_token_ttl)),
        used_at: millis(now.saturating_sub(policy.refresh_reuse_interval)),
    }
}

/// Whether a session is too old, was not used for too long, or began while the clock was ahead.
fn is_stale(session: &SessionRow, stale: StaleBefore) -> bool {
    session.created_at <= stale.created_at
        || session.created_at >= stale.ahead
        || session.rotated_at <= stale.rotated_at
}

fn seconds(time: Duration) -> i64 {
    time.as_secs().cast_signed()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// The `idp` of a session that began with a password.
pub const PASSWORD_LOGIN: &str = "password";

/// The `acr` of a session that began with a password alone. The word is that of RFC 8176.
pub const PASSWORD_ACR: &str = "pwd";

/// The `acr` of a session that began with a password and a code. The word is that of RFC 8176.
pub const SECOND_FACTOR_ACR: &str = "mfa";

/// The longest stored `User-Agent`, in characters.
pub const LONGEST_USER_AGENT: usize = 256;

/// How many tokens in doubt are remembered, in about 50 bytes each.
const MOST_IN_DOUBT: usize = 10_000;

/// Bytes of a token's id and counter.
const NAMED: usize = 24;

/// Characters of a refresh token: 24 bytes and a MAC of 32, in base64url.
pub(super) const REFRESH_TOKEN: usize = 75;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::Clock;
    use crate::identity::Accounts;
    use crate::identity::account::NewAccount;
    use crate::identity::policy::tests::policy;
    use crate::redis::{Redis, RedisSettings};
    use crate::revocation::{Retention, write_rows};
    use crate::store::{Store, test_settings};
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn a_changed_refresh_token_is_rejected() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a key");
        let token = RefreshToken { session: Uuid::new_v4(), counter: 7 };
        let text = token.encode(&key);
        assert_eq!(text.len(), REFRESH_TOKEN);
        assert_eq!(RefreshToken::decode(&text, &key), Some(token));
        assert_eq!(text, token.encode(&key), "the same again");
        assert_ne!(text, RefreshToken { counter: 8, ..token }.encode(&key));
        assert_eq!(
            RefreshToken::decode(&text, &hmac::Key::new(hmac::HMAC_SHA256, b"another")),
            None
        );
        for at in 0..REFRESH_TOKEN {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                RefreshToken::decode(std::str::from_utf8(&changed).unwrap(), &key),
                None,
                "{at}"
            );
        }
        for text in
            ["", "a", &text[1..], &format!("{text}A"), &format!("{}=", &text[..REFRESH_TOKEN - 1])]
        {
            assert_eq!(RefreshToken::decode(text, &key), None, "{text}");
        }
    }

    const ISSUER: &str = "https://app.test/auth";

    /// What revokes the tokens of the one account.
    #[derive(Clone, Copy, Debug)]
    enum End {
        LogoutAll,
        Roles,
        Password,
        Disable,
        /// `POST /revoke` with or without an issuer.
        Operator(bool),
        /// `portcullis revoke`: this process has yet to read it.
        Command,
    }

    const ENDS: [End; 7] = [
        End::LogoutAll,
        End::Roles,
        End::Password,
        End::Disable,
        End::Operator(false),
        End::Operator(true),
        End::Command,
    ];

    /// A built-in issuer without its endpoints, in seconds that pass only where somebody waits for
    /// them.
    #[derive(Clone)]
    struct Issuer {
        store: Store,
        revocations: Arc<Revocations>,
        sessions: Arc<Sessions>,
        accounts: Accounts,
        policy: Arc<Policy>,
        now: Arc<AtomicU64>,
    }

    const NOW: u64 = 1_800_000_000;

    impl Issuer {
        async fn start(folder: &tempfile::TempDir) -> Self {
            Self::on(Store::open(&test_settings(folder.path())).await.unwrap()).await
        }

        /// With its own list of revocations.
        async fn on(store: Store) -> Self {
            let revocations = Revocations::load(
                Some(store.clone()),
                Retention::default(),
                Clock::fixed(NOW),
                Metrics::new(),
            )
            .await
            .unwrap();
            let sessions = SessionStore::new(store.clone(), redis().await);
            let sessions = Arc::new(Sessions::new(sessions, Arc::clone(&revocations)));
            let accounts = Accounts::new(store.clone(), Some(Arc::clone(&revocations)));
            let policy = Arc::new(Policy { issuer: ISSUER.to_owned(), ..policy() });
            Self {
                store,
                revocations,
                sessions,
                accounts,
                policy,
                now: Arc::new(AtomicU64::new(NOW)),
            }
        }

        async fn account(&self) -> String {
            self.accounts.add(NewAccount::verified("ann@example.com"), NOW).await.unwrap().id
        }

        fn now(&self) -> u64 {
            self.now.load(Ordering::SeqCst)
        }

        /// Logs in, if the account lets it: the `iat` and the refresh token. After many cut-offs in
        /// one second it is a later one.
        async fn login(&self, id: &str) -> Option<SessionGrant> {
            loop {
                let account = self.accounts.by_id(id).await.unwrap().unwrap();
                match self
                    .sessions
                    .open(
                        &account,
                        (
                            &device(),
                            Keep::Lasting,
                            Began { proof: LoginProof::default(), provider: None },
                        ),
                        &self.policy,
                        Duration::from_secs(self.now()),
                    )
                    .await
                {
                    Err(StoreError::CutOffAhead { .. }) => self.now.fetch_add(1, Ordering::SeqCst),
                    opened => return opened.unwrap(),
                };
            }
        }

        /// Returns when it is acknowledged.
        async fn end(&self, id: &str, end: End) {
            let policy = &self.policy;
            let by_subject = |scope| Revocation {
                scope,
                by: RevokedBy::Subject,
                value: id.into(),
                at: self.now(),
            };
            let hash =
                || "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW".parse().unwrap();
            match end {
                End::LogoutAll => self.accounts.end_sessions(id, policy, self.now()).await.unwrap(),
                End::Roles => self
                    .accounts
                    .set_roles(id, &["user".to_owned()], policy, self.now())
                    .await
                    .unwrap(),
                End::Password => {
                    // Another end may come between.
                    loop {
                        let account = self.accounts.by_id(id).await.unwrap().unwrap();
                        let now = self.now();
                        if self.accounts.set_password(&account, &hash(), policy, now).await.is_ok()
                        {
                            break;
                        }
                    }
                }
                End::Disable => {
                    self.accounts.set_disabled(id, true, policy, self.now()).await.unwrap();
                    self.accounts.set_disabled(id, false, policy, self.now()).await.unwrap();
                }
                End::Operator(false) => {
                    self.revocations.revoke(by_subject(Scope::Every)).await.unwrap();
                }
                End::Operator(true) => {
                    self.revocations
                        .revoke(by_subject(Scope::Issuer(ISSUER.into())))
                        .await
                        .unwrap();
                }
                End::Command => {
                    write_rows(&self.store, vec![by_subject(Scope::Every)], &Retention::default())
                        .await
                        .unwrap();
                    self.revocations.catch_up().await.unwrap();
                }
            }
        }

        /// The cut-off that the request line holds tokens against.
        fn cutoff(&self, id: &str) -> u64 {
            self.revocations.list().cutoff(ISSUER, id).unwrap_or(0)
        }
    }

    /// Names the Redis in which the sessions of these tests are; otherwise they are in the database.
    const REDIS: &str = "PORTCULLIS_TEST_REDIS";

    #[expect(clippy::disallowed_methods, reason = "the server is named by the test that starts it")]
    async fn redis() -> Option<Arc<Redis>> {
        let settings = RedisSettings::parse(&std::env::var(REDIS).ok()?).unwrap();
        let settings = settings.with_sessions(true);
        let redis = Redis::start(&settings, &Clock::system(), &Metrics::new()).unwrap();
        redis.connect_once().await.unwrap();
        Some(redis)
    }

    /// The tests of this file run once more, with the sessions in Redis.
    #[cfg(feature = "redis")]
    #[test]
    fn the_tests_of_sessions_pass_with_redis() {
        let Some(server) = crate::redis::server::Redis::start(&[]) else { return };
        let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
        tests.env(REDIS, server.url()).args(["identity::session::", "--test-threads=2"]);
        let done = tests.args(["--skip", "pass_with_redis"]).output().unwrap();
        let output = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{output}{}", String::from_utf8_lossy(&done.stderr));
        assert!(output.contains("a_repeated_token"), "{output}");
        let kept = server.run(&["KEYS", "portcullis:session:*"]);
        assert!(kept.lines().count() > 10, "{kept}");
    }

    /// Two gateways, one token, and no time in which it may be repeated: it is used up once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_any_number_of_attempts_one_gets_a_successor() {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy { refresh_reuse_interval: Duration::ZERO, ..policy() };
        let issuer = Issuer { policy: Arc::new(policy), ..Issuer::start(&folder).await };
        let other = SessionStore::new(issuer.store.clone(), redis().await);
        let other = Arc::new(Sessions::new(other, Arc::clone(&issuer.revocations)));
        let id = issuer.account().await;
        for round in 0..20 {
            let token = issuer.login(&id).await.unwrap().refresh_token;
            let mut attempts = tokio::task::JoinSet::new();
            for number in 0..6 {
                let gateway = if number % 2 == 0 { &issuer.sessions } else { &other };
                let (gateway, policy) = (Arc::clone(gateway), Arc::clone(&issuer.policy));
                let (token, now) = (token.clone(), Duration::from_secs(issuer.now()));
                attempts.spawn(async move {
                    gateway
                        .refresh(&token, Presenter::Program, &device(), &policy, now)
                        .await
                        .is_ok()
                });
            }
            let granted = attempts.join_all().await.into_iter().filter(|is_ok| *is_ok).count();
            assert_eq!(granted, 1, "in round {round}");
        }
    }

    /// Ending it again writes nothing, unless its revocation was pruned or never written.
    #[tokio::test]
    async fn a_session_ends_once_while_its_revocation_is_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&folder).await;
        let id = issuer.account().await;
        let sid = issuer.login(&id).await.unwrap().sid;
        let end = async |sid: &str, account: &str| {
            let now = Duration::from_secs(issuer.now());
            issuer.sessions.end(sid, account, &issuer.policy, now).await.unwrap()
        };
        let written = async || {
            issuer.store.revocations_after(0).await.unwrap().iter().map(|row| row.seq).max()
        };
        assert_eq!(end(&sid, "another").await, Ended::Unknown);
        assert_eq!(end(&Uuid::new_v4().to_string(), &id).await, Ended::Unknown);
        assert_eq!(written().await, None);
        assert_eq!(end(&sid, &id).await, Ended::Now);
        let first = written().await;
        for _ in 0..3 {
            assert_eq!(end(&sid, &id).await, Ended::Before);
        }
        assert_eq!((written().await, first), (first, Some(1)));
        issuer.revocations.list().prune(|_, _, _| true);
        assert_eq!(end(&sid, &id).await, Ended::Now);
        assert!(issuer.sessions.is_revoked(&sid, &issuer.policy) && written().await > first);
    }

    /// The store may have used a token up, and the client was told to try again. Without a time in
    /// which a token may be repeated, too, one repetition gets the successor.
    #[tokio::test]
    async fn a_use_that_was_not_acknowledged_is_no_reuse() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&folder).await;
        let id = issuer.account().await;
        for interval in [issuer.policy.refresh_reuse_interval, Duration::ZERO] {
            let policy = Policy { refresh_reuse_interval: interval, ..policy() };
            let policy = Policy { issuer: ISSUER.to_owned(), ..policy };
            let first = issuer.login(&id).await.unwrap().refresh_token;
            let refresh = async |sessions: &Sessions, later: u64| {
                let now = Duration::from_secs(NOW + later);
                sessions.refresh(&first, Presenter::Program, &device(), &policy, now).await
            };
            // What the store did without saying so.
            let other = SessionStore::new(issuer.store.clone(), redis().await);
            let other = Sessions::new(other, Arc::clone(&issuer.revocations));
            let second = refresh(&other, 0).await.unwrap().refresh_token;
            let token = issuer.sessions.parse(&first).unwrap();
            let at = millis(issuer.store.shared_time(Duration::from_secs(NOW)));
            issuer.sessions.doubt(token.session, Use { counter: token.counter, at });
            let again = refresh(&issuer.sessions, 3600).await.unwrap().refresh_token;
            assert_eq!(again, second);
            let late = refresh(&issuer.sessions, 3600).await;
            assert!(matches!(late, Err(RefreshError::Reused { .. })), "the successor was received");
        }
    }

    /// Whoever presents a token that its owner has used cannot make it valid by presenting it while
    /// the store is away.
    #[tokio::test]
    async fn an_outage_does_not_hide_a_reuse() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&folder).await;
        let settings = test_settings(folder.path());
        let Some(database) = settings.database.file() else { return };
        let away = folder.path().join("away");
        let id = issuer.account().await;
        let refresh = async |token: &str, later: u64| {
            let now = Duration::from_secs(NOW + later);
            let policy = &issuer.policy;
            issuer.sessions.refresh(token, Presenter::Program, &device(), policy, now).await
        };
        let first = issuer.login(&id).await.unwrap().refresh_token;
        let second = refresh(&first, 0).await.unwrap().refresh_token;
        // Nor does it take away what the owner's client was promised.
        let token = issuer.sessions.parse(&second).unwrap();
        let promised = Use { counter: token.counter, at: 0 };
        issuer.sessions.doubt(token.session, promised);
        std::fs::rename(database, &away).unwrap();
        assert!(matches!(refresh(&first, 3600).await, Err(RefreshError::Store(_))));
        std::fs::rename(&away, database).unwrap();
        assert_eq!(issuer.sessions.in_doubt().get(&token.session), Some(&promised));
        // Sessions in Redis have ended already.
        let stolen = refresh(&first, 3600).await;
        let is_refused = matches!(stolen, Err(RefreshError::Reused { .. } | RefreshError::Invalid));
        assert!(is_refused, "{stolen:?}");
        assert!(matches!(refresh(&second, 3600).await, Err(RefreshError::Invalid)));
    }

    /// Otherwise, a thief gets the token that its owner has for as long as the clock was ahead.
    #[tokio::test]
    async fn a_clock_that_was_ahead_does_not_hide_a_reuse() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&folder).await;
        let id = issuer.account().await;
        let ahead = MAX_AHEAD.cast_unsigned();
        for (used_at, is_repeated) in [(NOW + ahead, true), (NOW + ahead + 1, false)] {
            let first = issuer.login(&id).await.unwrap().refresh_token;
            let refresh = async |when: u64| {
                let now = Duration::from_secs(when);
                let policy = &issuer.policy;
                issuer.sessions.refresh(&first, Presenter::Program, &device(), policy, now).await
            };
            let second = refresh(used_at).await.unwrap().refresh_token;
            let lent = issuer.sessions.lend(&first, &issuer.policy, Duration::from_secs(NOW)).await;
            assert_eq!(lent.is_ok(), is_repeated, "{used_at}");
            match refresh(NOW).await {
                Ok(again) => assert!(is_repeated && again.refresh_token == second),
                Err(error) => {
                    assert!(!is_repeated && matches!(error, RefreshError::Reused { .. }));
                }
            }
        }
    }

    /// Otherwise, it could be used until the date that the clock showed.
    #[tokio::test]
    async fn a_session_from_a_clock_that_was_ahead_does_not_outlast_its_lifetime_by_much() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&folder).await;
        let id = issuer.account().await;
        let lifetime = issuer.policy.session_lifetime.as_secs();
        for (ahead, is_live) in [(lifetime - 1, true), (lifetime, false)] {
            issuer.now.store(NOW + ahead, Ordering::SeqCst);
            let token = issuer.login(&id).await.unwrap().refresh_token;
            let (policy, now) = (&issuer.policy, Duration::from_secs(NOW));
            assert_eq!(issuer.sessions.lend(&token, policy, now).await.is_ok(), is_live);
            assert_eq!(issuer.sessions.live(&token, policy, now).await.unwrap().is_some(), is_live);
            let refreshed =
                issuer.sessions.refresh(&token, Presenter::Program, &device(), policy, now).await;
            match refreshed {
                Ok(_) => assert!(is_live),
                Err(error) => assert!(!is_live && matches!(error, RefreshError::Invalid)),
            }
        }
    }

    fn device() -> Device {
        Device { address: [127, 0, 0, 1].into(), user_agent: String::new() }
    }

    /// Logins, refreshes and whatever ends tokens, one after the other in one second: every end
    /// hits what was issued before, and what is issued afterwards lives.
    #[tokio::test]
    async fn every_revocation_within_a_second_covers_earlier_tokens_only() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&folder).await;
        let id = issuer.account().await;
        // Pairs of ends, so that each comes after each, with and without a token between them.
        for (first, second) in ENDS.into_iter().flat_map(|first| ENDS.map(|second| (first, second)))
        {
            for mints in [&[0_usize, 1][..], &[1, 0], &[1, 1], &[2, 3]] {
                let mut refresh = None;
                for (end, &mints) in [first, second].into_iter().zip(mints) {
                    let mut minted = Vec::new();
                    for turn in 0..mints {
                        let granted = match refresh.take().filter(|_| turn > 0) {
                            Some(token) => {
                                let token: String = token;
                                issuer
                                    .sessions
                                    .refresh(
                                        &token,
                                        Presenter::Program,
                                        &device(),
                                        &issuer.policy,
                                        Duration::from_secs(issuer.now()),
                                    )
                                    .await
                                    .unwrap()
                            }
                            None => issuer.login(&id).await.unwrap(),
                        };
                        assert!(
                            granted.issued_at > issuer.cutoff(&id),
                            "a new token lives: {first:?} {second:?}"
                        );
                        minted.push(granted.issued_at);
                        refresh = Some(granted.refresh_token);
                    }
                    let before = issuer.cutoff(&id);
                    issuer.end(&id, end).await;
                    let cutoff = issuer.cutoff(&id);
                    assert!(
                        minted.iter().all(|issued_at| *issued_at <= cutoff),
                        "{first:?} {second:?}: {minted:?} {cutoff}"
                    );
                    assert!(
                        cutoff <= before.max(issuer.now()) + 1 + u64::from(mints == 0),
                        "no later than it has to be"
                    );
                }
            }
        }
    }

    /// The same at the same time: what was issued before an end was asked for is hit when it is
    /// acknowledged, and what is issued after that lives, until the next one.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_revocations_and_logins_keep_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&folder).await;
        let id: Arc<str> = issuer.account().await.into();
        let turn = Arc::new(AtomicU64::new(0));
        let next = |turn: &AtomicU64| turn.fetch_add(1, Ordering::SeqCst);
        let mut minting = tokio::task::JoinSet::new();
        let mut ending = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (issuer, id, turn) = (issuer.clone(), Arc::clone(&id), Arc::clone(&turn));
            minting.spawn(async move {
                let mut minted = Vec::new();
                for _ in 0..40 {
                    let begun = next(&turn);
                    if let Some(granted) = issuer.login(&id).await {
                        minted.push((begun, next(&turn), granted.issued_at));
                    }
                }
                minted
            });
        }
        for offset in 0..3 {
            let (issuer, id, turn) = (issuer.clone(), Arc::clone(&id), Arc::clone(&turn));
            ending.spawn(async move {
                let mut ended = Vec::new();
                for index in 0..28 {
                    let begun = next(&turn);
                    issuer.end(&id, ENDS[(index + offset * 2) % ENDS.len()]).await;
                    let cutoff = issuer.cutoff(&id);
                    ended.push((begun, next(&turn), cutoff));
                }
                ended
            });
        }
        let minted: Vec<_> = minting.join_all().await.into_iter().flatten().collect();
        let ended: Vec<_> = ending.join_all().await.into_iter().flatten().collect();
        for &(begun, done, issued_at) in &minted {
            for &(asked, acknowledged, cutoff) in &ended {
                assert!(
                    done > asked || issued_at <= cutoff,
                    "issued at {issued_at}, and ended at {cutoff} afterwards"
                );
                assert!(
                    begun < acknowledged || issued_at > cutoff,
                    "issued at {issued_at}, after the end at {cutoff}"
                );
            }
        }
        // How many logins lose against an end depends on the machine.
        assert!(minted.len() > 5, "{}", minted.len());
    }

    /// Two gateways are asked at once to end the sessions of an account.
    #[tokio::test]
    async fn what_another_gateway_has_ended_is_over_here_when_it_is_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let here = Issuer::start(&folder).await;
        // With a list of its own, which nothing follows.
        let there = Issuer::on(here.store.clone()).await;
        let id = here.account().await;
        let before = here.accounts.by_id(&id).await.unwrap().unwrap().generation;
        let end = async |issuer: &Issuer, since| {
            issuer.accounts.end_sessions_since(&id, since, &issuer.policy, NOW).await.unwrap()
        };
        assert!(end(&there, before).await);
        assert!(!end(&here, before).await, "it was done");
        assert!(there.cutoff(&id) > 0);
        assert_eq!(here.cutoff(&id), there.cutoff(&id));
        assert!(end(&here, before + 1).await, "there are new sessions");
    }

    /// Each refresh token is good again for as long since its own first use, however many came
    /// after it.
    #[tokio::test]
    async fn a_repeated_token_gets_its_successor_again_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer {
            policy: Arc::new(Policy {
                refresh_reuse_interval: Duration::from_secs(10),
                ..policy()
            }),
            ..Issuer::start(&folder).await
        };
        let id = issuer.account().await;
        let at = |millis: u64| Duration::from_secs(NOW) + Duration::from_millis(millis);
        let refresh = async |token: &str, presenter: Presenter, when: u64| {
            let granted = issuer
                .sessions
                .refresh(token, presenter, &device(), &issuer.policy, at(when))
                .await;
            granted.map(|granted| granted.refresh_token)
        };
        for presenter in [Presenter::Program, Presenter::Browser] {
            let mut tokens = vec![issuer.login(&id).await.unwrap().refresh_token];
            for when in [0, 4_000, 8_000, 9_000] {
                tokens.push(refresh(tokens.last().unwrap(), presenter, when).await.unwrap());
            }
            for (used, when) in [(0, 9_999), (1, 13_999), (2, 17_999), (3, 18_999), (2, 9_000)] {
                let wanted = match presenter {
                    Presenter::Program => &tokens[used + 1],
                    _ => &tokens[4],
                };
                assert_eq!(
                    refresh(&tokens[used], presenter, when).await.as_ref().unwrap(),
                    wanted,
                    "{used} at {when}"
                );
            }
            // What is used later takes nothing from the time of those before it, but for those
            // whose time is over.
            tokens.push(refresh(&tokens[4], presenter, 15_000).await.unwrap());
            assert!(refresh(&tokens[2], presenter, 17_999).await.is_ok());
            assert!(matches!(
                refresh(&tokens[1], presenter, 15_001).await,
                Err(RefreshError::Reused { .. })
            ));
            assert!(matches!(
                refresh(&tokens[5], presenter, 15_002).await,
                Err(RefreshError::Invalid)
            ));
        }
        // The one that was used last, to the millisecond; and never with an interval of none.
        let first = issuer.login(&id).await.unwrap().refresh_token;
        let second = refresh(&first, Presenter::Program, 0).await.unwrap();
        // Whoever has never been sent the successor is no thief, as long as nobody has used it.
        assert_eq!(refresh(&first, Presenter::Unanswered, 60_000).await.unwrap(), second);
        refresh(&second, Presenter::Browser, 60_000).await.unwrap();
        let stolen = refresh(&first, Presenter::Unanswered, 60_001).await;
        assert!(matches!(stolen, Err(RefreshError::Reused { .. })));
        let first = issuer.login(&id).await.unwrap().refresh_token;
        refresh(&first, Presenter::Program, 0).await.unwrap();
        let late = refresh(&first, Presenter::Program, 10_000).await;
        assert!(matches!(late, Err(RefreshError::Reused { .. })));
        let none = Policy { refresh_reuse_interval: Duration::ZERO, ..policy() };
        let second = issuer.login(&id).await.unwrap().refresh_token;
        let use_at = async |when: u64| {
            issuer.sessions.refresh(&second, Presenter::Program, &device(), &none, at(when)).await
        };
        assert!(use_at(1_000).await.is_ok());
        // Whoever read the clock before is no earlier than who was served first.
        assert!(matches!(use_at(999).await, Err(RefreshError::Reused { .. })));
    }
}
