//! Sessions: opened by a login, carried on by refresh tokens, ended by logout or reuse.
//!
//! A refresh token is the session's id, a counter and a MAC over both. The store keeps the counter alone, so that nothing there can be
//! replayed, and a successor can be made again: whoever repeats a refresh within `refresh_reuse_interval` gets the same one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::policy::Policy;
use crate::revocation::{Revocations, row};
use crate::store::{AccountRow, SessionRow, Stale, Store, StoreError};
use crate::token::{Revocation, RevokedBy, Scope};

/// Every session.
#[derive(Debug)]
pub struct Sessions {
    store: Store,
    revocations: Arc<Revocations>,
    key: hmac::Key,
}

/// From where, and with what, a session is used.
#[derive(Clone, Debug)]
pub struct Device {
    /// The client's address.
    pub address: IpAddr,
    /// What it says of itself; cut to [`LONGEST_USER_AGENT`].
    pub user_agent: String,
}

/// A session, and its account as it is now.
#[derive(Debug)]
pub struct Continued {
    /// Whose it is.
    pub account: AccountRow,
    /// Its id.
    pub sid: String,
    /// The refresh token that is good next.
    pub refresh_token: String,
    /// A moment before `account` was read: what an access token may say that it was issued at. A change of the account after that has a
    /// cut-off at or after this moment, so that a token of the old account is revoked with it.
    pub read_at: Duration,
}

/// Why a refresh token is not good.
#[derive(Debug, thiserror::Error)]
pub enum NotContinued {
    /// It is none of ours, or its session is over.
    #[error("the refresh token is none, or its session has ended")]
    Invalid,
    /// It was used before: its session is over now.
    #[error("the refresh token of session {sid} came a second time: the session was ended")]
    Reused {
        /// The session.
        sid: String,
        /// Whose it was.
        account: String,
    },
    /// The store.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl Sessions {
    /// Sessions in this store.
    pub fn new(store: Store, revocations: Arc<Revocations>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, store.refresh_key().as_ref());
        Self { store, revocations, key }
    }

    /// Opens a session for an account as it was when its password was checked. `None`: it has changed since.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn open(&self, account: &AccountRow, device: &Device, now: Duration) -> Result<Option<Continued>, StoreError> {
        let token = RefreshToken { session: Uuid::new_v4(), counter: 0 };
        let session = SessionRow {
            id: token.session.to_string(),
            account: account.id.clone(),
            generation: account.generation,
            counter: token.counter,
            created_at: seconds(now),
            rotated_at: millis(now),
            address: device.address.to_string(),
            user_agent: device.user_agent.clone(),
            ended_at: None,
        };
        if !self.store.open_session(&session).await? {
            return Ok(None);
        }
        let account = self.store.account_of_session(&session.id).await?;
        Ok(account.map(|account| Continued { account, sid: session.id, refresh_token: token.encode(&self.key), read_at: now }))
    }

    /// Exchanges a refresh token for its successor.
    ///
    /// # Errors
    /// [`NotContinued`]
    pub async fn continued(&self, token: &str, device: &Device, policy: &Policy, now: Duration) -> Result<Continued, NotContinued> {
        let token = RefreshToken::decode(token, &self.key).ok_or(NotContinued::Invalid)?;
        let (sid, stale) = (token.session.to_string(), stale(policy, now));
        self.check_revoked(&sid, policy, now).await?;
        let used = SessionRow {
            id: sid.clone(),
            account: String::new(),
            generation: 0,
            counter: token.counter,
            created_at: 0,
            rotated_at: millis(now),
            address: device.address.to_string(),
            user_agent: device.user_agent.clone(),
            ended_at: None,
        };
        if !self.store.rotate_session(&used, stale).await? {
            self.repeated(token, &sid, policy, stale, now).await?;
        }
        let account = self.store.account_of_session(&sid).await?.ok_or(NotContinued::Invalid)?;
        let successor = RefreshToken { counter: token.counter + 1, ..token };
        Ok(Continued { account, sid, refresh_token: successor.encode(&self.key), read_at: now })
    }

    /// Ends a session whose tokens are revoked: every successor would be born dead, and a browser led from one to the next for ever.
    async fn check_revoked(&self, sid: &str, policy: &Policy, now: Duration) -> Result<(), NotContinued> {
        if !self.revocations.list().has(RevokedBy::Sid, &policy.issuer, sid) {
            return Ok(());
        }
        if let Some(session) = self.store.live_session(sid).await? {
            self.end(sid, &session.account, policy, now).await?;
        }
        Err(NotContinued::Invalid)
    }

    /// Whether a token that is not the one that is good next may have its successor again.
    async fn repeated(&self, token: RefreshToken, sid: &str, policy: &Policy, stale: Stale, now: Duration) -> Result<(), NotContinued> {
        let session = self.store.live_session(sid).await?.ok_or(NotContinued::Invalid)?;
        let is_stale = session.created_at <= stale.created_at || session.rotated_at <= stale.rotated_at;
        // A counter above the store's is of a database that was put back since.
        if is_stale || token.counter >= session.counter {
            return Err(NotContinued::Invalid);
        }
        let since = u64::try_from(millis(now).saturating_sub(session.rotated_at)).unwrap_or(0);
        if token.counter + 1 == session.counter && Duration::from_millis(since) < policy.refresh_reuse_interval {
            return Ok(());
        }
        self.end(sid, &session.account, policy, now).await?;
        Err(NotContinued::Reused { sid: sid.to_owned(), account: session.account })
    }

    /// The session of a refresh token of ours, whether it is good or not.
    pub fn named_by(&self, token: &str) -> Option<String> {
        RefreshToken::decode(token, &self.key).map(|token| token.session.to_string())
    }

    /// Whose a session is that goes on.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn account_of(&self, sid: &str) -> Result<Option<AccountRow>, StoreError> {
        self.store.account_of_session(sid).await
    }

    /// The account of a session, and the cut-off that its next access token has to be past.
    ///
    /// A cut-off that the account as it was read knows nothing of may be that of a change of it. It is then read once more, after the cut-off
    /// was looked up: else a token with what was taken away would be minted past the very cut-off that was to end it.
    ///
    /// # Errors
    /// [`NotContinued`]: the session has ended meanwhile.
    pub async fn as_it_is(&self, session: &Continued, issuer: &str) -> Result<(AccountRow, u64), NotContinued> {
        let cutoff = self.revocations.list().cutoff(issuer, &session.account.id).unwrap_or(0);
        let is_newer = cutoff > session.account.not_before.cast_unsigned() && cutoff >= session.read_at.as_secs();
        if !is_newer {
            return Ok((session.account.clone(), cutoff));
        }
        let account = self.store.account_of_session(&session.sid).await?.ok_or(NotContinued::Invalid)?;
        Ok((account, cutoff))
    }

    /// Has no worker accept the access tokens of a session any more, whatever became of it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn revoke(&self, sid: &str, policy: &Policy, now: Duration) -> Result<(), StoreError> {
        self.revocations.revoke(ended(sid, policy, now)).await
    }

    /// Ends a session of `account`: its refresh tokens are over, and its access tokens are accepted by no worker any more. False: the
    /// account has no such session.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn end(&self, sid: &str, account: &str, policy: &Policy, now: Duration) -> Result<bool, StoreError> {
        let revocation = ended(sid, policy, now);
        let ended = self.store.end_session(sid, account, &row(&revocation), seconds(now)).await?;
        if ended {
            self.revocations.written(revocation);
        }
        Ok(ended)
    }

    /// The sessions of an account that go on, the one used last in front.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn of(&self, account: &str, policy: &Policy, now: Duration) -> Result<Vec<SessionRow>, StoreError> {
        self.store.sessions_of(account, stale(policy, now)).await
    }

    /// Forgets sessions that nobody can use any more.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn prune(&self, policy: &Policy, now: Duration) -> Result<(), StoreError> {
        self.store.prune_sessions(stale(policy, now)).await
    }
}

/// A refresh token, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RefreshToken {
    session: Uuid,
    counter: i64,
}

impl RefreshToken {
    fn encode(self, key: &hmac::Key) -> String {
        let named = self.named();
        let mac = hmac::sign(key, &named);
        URL_SAFE_NO_PAD.encode([&named[..], mac.as_ref()].concat())
    }

    fn decode(text: &str, key: &hmac::Key) -> Option<Self> {
        if text.len() != ENCODED {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (named, mac) = bytes.split_at_checked(NAMED)?;
        // Compared in constant time.
        hmac::verify(key, named, mac).ok()?;
        let (session, counter) = named.split_at_checked(16)?;
        let counter = i64::from_be_bytes(counter.try_into().ok()?);
        (0..i64::MAX).contains(&counter).then_some(Self { session: Uuid::from_slice(session).ok()?, counter })
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
    Revocation { scope: Scope::Issuer(policy.issuer.as_str().into()), by: RevokedBy::Sid, value: sid.into(), at: now.as_secs() }
}

fn stale(policy: &Policy, now: Duration) -> Stale {
    Stale {
        created_at: seconds(now.saturating_sub(policy.session_lifetime)),
        rotated_at: millis(now.saturating_sub(policy.refresh_token_ttl)),
    }
}

fn seconds(time: Duration) -> i64 {
    time.as_secs().cast_signed()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Characters of a `User-Agent` that are kept.
pub const LONGEST_USER_AGENT: usize = 256;

/// Bytes of a token's id and counter.
const NAMED: usize = 24;

/// Characters of a token: 24 bytes and a MAC of 32, in base64url.
const ENCODED: usize = 75;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_token_is_ours_to_the_last_bit() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a key");
        let token = RefreshToken { session: Uuid::new_v4(), counter: 7 };
        let text = token.encode(&key);
        assert_eq!(text.len(), ENCODED);
        assert_eq!(RefreshToken::decode(&text, &key), Some(token));
        assert_eq!(text, token.encode(&key), "the same again");
        assert_ne!(text, RefreshToken { counter: 8, ..token }.encode(&key));
        assert_eq!(RefreshToken::decode(&text, &hmac::Key::new(hmac::HMAC_SHA256, b"another")), None);
        for at in 0..ENCODED {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(RefreshToken::decode(std::str::from_utf8(&changed).unwrap(), &key), None, "{at}");
        }
        for text in ["", "a", &text[1..], &format!("{text}A"), &format!("{}=", &text[..ENCODED - 1])] {
            assert_eq!(RefreshToken::decode(text, &key), None, "{text}");
        }
    }

    /// A change between reading the account and minting: its cut-off must not be what the token of the old account is minted past.
    #[tokio::test]
    async fn an_account_that_changed_since_it_was_read_is_read_again() {
        use crate::clock::Clock;
        use crate::config::value::SecretBytes;
        use crate::revocation::Retention;
        use crate::store::{AccountChange, StoreSettings};
        use crate::telemetry::metrics::Metrics;

        const NOW: u64 = 1_800_000_000;
        const ISSUER: &str = "https://app.example/auth";
        let folder = tempfile::tempdir().unwrap();
        let key = SecretBytes::new(b"a key for tests, long enough to be one".to_vec());
        let store = Store::open(&StoreSettings { database: folder.path().join("test.db"), key }).await.unwrap();
        let revocations = Revocations::load(Some(store.clone()), Retention::default(), Clock::fixed(NOW), Metrics::new()).await.unwrap();
        let sessions = Sessions::new(store.clone(), Arc::clone(&revocations));
        let account = AccountRow {
            id: "u-1".to_owned(),
            email: "ann@app.example".to_owned(),
            name: None,
            password: String::new(),
            roles: "admin".to_owned(),
            disabled: 0,
            email_verified: 0,
            generation: 0,
            not_before: 0,
            created_at: 0,
            last_login_at: None,
        };
        assert!(store.insert_account(&account).await.unwrap());
        let device = Device { address: [127, 0, 0, 1].into(), user_agent: String::new() };
        let opened = sessions.open(&account, &device, Duration::from_secs(NOW)).await.unwrap().unwrap();
        assert_eq!(sessions.as_it_is(&opened, ISSUER).await.unwrap().1, 0);

        let of_subject = |at| Revocation { scope: Scope::Issuer(ISSUER.into()), by: RevokedBy::Subject, value: "u-1".into(), at };
        let change = async |change: AccountChange<'_>| {
            let cutoff = store.change_account("u-1", change, row(&of_subject(NOW)), NOW.cast_signed()).await.unwrap().unwrap();
            revocations.written(of_subject(cutoff.cast_unsigned()));
            cutoff.cast_unsigned()
        };
        let cutoff = change(AccountChange::Roles("user")).await;
        let (account, past) = sessions.as_it_is(&opened, ISSUER).await.unwrap();
        assert_eq!((account.roles.as_str(), past), ("user", cutoff), "past the cut-off there are only the new roles");
        change(AccountChange::EndSessions).await;
        assert!(matches!(sessions.as_it_is(&opened, ISSUER).await, Err(NotContinued::Invalid)), "and no session that has ended");
    }
}
