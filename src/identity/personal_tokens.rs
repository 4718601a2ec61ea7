//! Personal access tokens: what programs without a browser log in with.
//!
//! A token is 256 random bits behind a prefix that secret scanners can find. It is shown once; the
//! store keeps a digest. To use one is to issue an access token to its account that never leaves
//! the process: the same claims and lifetime, and ended by the same revocations. So the gateway
//! remembers a used token as it remembers an access token, and looks it up again when that has
//! expired or was revoked together with others of its account.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::account::{self, is_role};
use super::issue::claims_about;
use super::link::{LinkToken, NoRandom, digest_of};
use super::policy::Policy;
use super::session::{Ended, scope};
use super::turns::{Turn, Turns};
use super::{Identity, is_unconfirmed};
use crate::revocation::{Revocations, row};
use crate::store::{AccountRow, AddedToken, PersonalTokenRow, Store, StoreError, for_client};
use crate::token::{Revocation, RevokedBy, Scope};

/// All personal access tokens.
#[derive(Debug)]
pub struct PersonalTokens {
    store: Store,
    /// This process's list. `None` in a command: the gateway reads its changes from the store.
    revocations: Option<Arc<Revocations>>,
    /// What became of digests that were looked up.
    seen: Mutex<HashMap<String, Seen>>,
    turns: Turns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It was valid, so it is no guess: the limit on guesses does not apply to it.
    Worked,
    /// Refused for good: a client that repeats it costs the store nothing. With the number of
    /// attempts.
    Unknown(u8),
    /// Likewise.
    Revoked,
}

/// A token to be made.
#[derive(Debug)]
pub struct NewToken {
    /// Its name.
    pub name: String,
    /// The roles that it is limited to. `None`: all roles of the account, whatever they are when it
    /// is used.
    pub roles: Option<Vec<String>>,
    /// How long it is valid.
    pub ttl: Duration,
}

/// A token that was just made.
pub struct CreatedToken {
    /// The token. It cannot be shown again.
    pub token: Zeroizing<String>,
    /// Everything else about it.
    pub row: PersonalTokenRow,
}

/// Why a token cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The name is empty, too long, or has characters that are not allowed.
    #[error("the name must have 1 to 200 characters and no invisible ones")]
    Name,
    /// The account has a token of this name.
    #[error("the account already has a token with this name")]
    NameTaken,
    /// The account does not have a role that was named.
    #[error("the account does not have one of these roles")]
    Roles,
    /// The lifetime is not a duration, or out of range.
    #[error("the lifetime must be from 1s to 10y, for example 180d")]
    Ttl,
    /// The account has too many tokens.
    #[error("the account has {MOST_TOKENS} tokens; revoke one that is no longer used")]
    TooMany,
    /// The account does not exist or is disabled, or the caller was logged out.
    #[error("the account does not exist or is disabled")]
    NoAccount,
    /// The random number generator failed.
    #[error("{0}")]
    Random(#[from] NoRandom),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no such token.
    #[error("there is no such personal access token")]
    Unknown,
    /// It has expired.
    #[error("the personal access token expired at {at}")]
    Expired {
        /// Unix seconds.
        at: u64,
    },
    /// It was revoked, or its account is disabled, or must confirm its address first.
    #[error(
        "the personal access token was revoked, or its account is disabled or has not confirmed its address"
    )]
    Revoked,
    /// The store failed. The token may be valid.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Why a look-up found nothing.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// The token proves nothing, or the store failed.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// Too many failed attempts by the client's address.
    #[error("limit `{limit}` is used up for this client")]
    Limited {
        /// The name of the limit.
        limit: String,
        /// Whole seconds until a retry makes sense.
        retry_after: u64,
    },
}

impl Identity {
    /// The turn of a token ([`PersonalTokens::turn`]).
    pub async fn turn_of_token(&self, token: &str) -> Option<Turn> {
        self.personal_tokens.turn(token).await
    }

    /// Looks a token up ([`PersonalTokens::look_up`]). An unknown token counts as a failed login of
    /// the client's address. One that was revoked or has expired does not, and neither does one
    /// that is repeated again and again: nobody guesses like that, and a forgotten program must not
    /// lock out those who share its address. One that has worked here is looked up even if others at
    /// its address have used the limit up. May be called on any runtime.
    pub async fn look_up_token(
        self: &Arc<Self>,
        token: &str,
        client: IpAddr,
        policy: &Arc<Policy>,
    ) -> Result<Map<String, Value>, LookUpError> {
        if self.personal_tokens.is_stale(token) {
            return Err(Unusable::Unknown.into());
        }
        let counted = if self.personal_tokens.has_worked(token) {
            None
        } else {
            let (limit, guess) = self.budgets.guess(client);
            let cell = self.counted(limit, guess).await.map_err(|exceeded| {
                let retry_after = exceeded.retry_after_seconds();
                LookUpError::Limited { limit: limit.name().to_owned(), retry_after }
            })?;
            Some((limit, cell))
        };
        let (identity, policy) = (Arc::clone(self), Arc::clone(policy));
        let token = Zeroizing::new(token.to_owned());
        let work = async move {
            let now = identity.clock.unix_seconds();
            identity.personal_tokens.look_up(&token, &policy, now).await
        };
        let found = self.tasks.spawn_on(for_client(client, work), &self.background).await;
        let found = found.unwrap_or(Err(Unusable::Store(StoreError::Closed)));
        if let Err(Unusable::Store(error)) = &found {
            self.store.record_failure(error);
        }
        if let (Some((limit, cell)), false) = (counted, matches!(found, Err(Unusable::Unknown))) {
            limit.give_back(cell);
        }
        Ok(found?)
    }
}

impl PersonalTokens {
    /// The tokens in this store.
    pub fn new(store: Store, revocations: Option<Arc<Revocations>>) -> Self {
        Self { store, revocations, seen: Mutex::default(), turns: Turns::default() }
    }

    /// Makes a token for an account. `session`: the caller's session, if this is not a command; it
    /// must still be live. `now` is in Unix seconds.
    pub async fn add(
        &self,
        account: &AccountRow,
        new: NewToken,
        session: Option<&str>,
        now: u64,
    ) -> Result<CreatedToken, TokenError> {
        let name = account::name(&new.name).ok().flatten().ok_or(TokenError::Name)?;
        let has = |role: &String| is_role(role) && account.roles.split(' ').any(|own| own == role);
        if !new.roles.iter().flatten().all(has) {
            return Err(TokenError::Roles);
        }
        if !(SHORTEST_TTL..=LONGEST_TTL).contains(&new.ttl) {
            return Err(TokenError::Ttl);
        }
        let token = Zeroizing::new(format!("{PREFIX}{}", LinkToken::generate()?.expose()));
        let row = PersonalTokenRow {
            id: Uuid::new_v4().to_string(),
            account: account.id.clone(),
            name,
            digest: digest_of(&token),
            roles: new.roles.map(|roles| roles.join(" ")),
            created_at: now.cast_signed(),
            expires_at: now.saturating_add(new.ttl.as_secs()).cast_signed(),
            last_used_at: None,
            revoked_at: None,
        };
        match self
            .store
            .add_personal_token(&row, (session, account.generation), MOST_TOKENS)
            .await?
        {
            AddedToken::Added => Ok(CreatedToken { token, row }),
            AddedToken::NameTaken => Err(TokenError::NameTaken),
            AddedToken::TooMany => Err(TokenError::TooMany),
            AddedToken::NoAccount => Err(TokenError::NoAccount),
        }
    }

    /// The tokens of an account that are not revoked, the newest first.
    pub async fn of_account(&self, account: &str) -> Result<Vec<PersonalTokenRow>, StoreError> {
        self.store.personal_tokens_of(account).await
    }

    /// Revokes a token of an account. When this returns, this process no longer accepts it. Revoking
    /// it again writes nothing.
    pub async fn revoke(
        &self,
        id: &str,
        account: &str,
        policy: &Policy,
        now: u64,
    ) -> Result<Ended, StoreError> {
        let Some(is_revoked) = self.store.is_revoked(id, account).await? else {
            return Ok(Ended::Unknown);
        };
        let is_in_force = |revocations: &Arc<Revocations>| {
            revocations.list().contains(RevokedBy::Jti, &policy.issuer, id)
        };
        if is_revoked && self.revocations.as_ref().is_some_and(is_in_force) {
            return Ok(Ended::Before);
        }
        let revocation = Revocation {
            scope: Scope::Issuer(policy.issuer.as_str().into()),
            by: RevokedBy::Jti,
            value: id.into(),
            at: now,
        };
        let at = now.cast_signed();
        if !self.store.revoke_personal_token(id, account, &row(&revocation), at).await? {
            return Ok(Ended::Unknown);
        }
        if let Some(revocations) = &self.revocations {
            revocations.written(revocation);
        }
        Ok(Ended::Now)
    }

    /// Waits until no other request looks this token up: of many that come at once, one looks it up
    /// and the others find it remembered. `None`: it takes too long.
    pub async fn turn(&self, token: &str) -> Option<Turn> {
        self.turns.wait(&digest_of(token), LONGEST_TURN).await.ok()
    }

    /// The claims that a token proves, as an access token that is issued at `now` would hold them.
    /// Notes the day of the use.
    pub async fn look_up(
        &self,
        token: &str,
        policy: &Policy,
        now: u64,
    ) -> Result<Map<String, Value>, Unusable> {
        if !is_well_formed(token.as_bytes()) {
            return Err(Unusable::Unknown);
        }
        let digest = digest_of(token);
        match self.seen().get_mut(&digest) {
            Some(Seen::Unknown(attempts)) => {
                *attempts = attempts.saturating_add(1);
                return Err(Unusable::Unknown);
            }
            Some(Seen::Revoked) => return Err(Unusable::Revoked),
            Some(Seen::Worked) | None => {}
        }
        let row = match self.find(&digest, now).await {
            Err(Unusable::Unknown) => {
                self.note(digest, Seen::Unknown(1));
                return Err(Unusable::Unknown);
            }
            Err(Unusable::Revoked) => {
                self.note(digest, Seen::Revoked);
                return Err(Unusable::Revoked);
            }
            found => found?,
        };
        // A refusal that may end costs no write either.
        self.owner(&row, policy).await?;
        let used =
            self.store.use_personal_token(&row.id, &scope(policy), now.cast_signed()).await?;
        let (row, issued) = used.ok_or(Unusable::Revoked)?;
        self.note(digest, Seen::Worked);
        Ok(claims(&row, &issued.account, policy, issued.issued_at.cast_unsigned()))
    }

    /// Whether an unknown token was repeated so often that it is no guess.
    fn is_stale(&self, token: &str) -> bool {
        matches!(self.seen().get(&digest_of(token)), Some(Seen::Unknown(attempts)) if *attempts >= MOST_GUESSES)
    }

    /// Whether this token was good when it was last looked up.
    fn has_worked(&self, token: &str) -> bool {
        self.seen().get(&digest_of(token)) == Some(&Seen::Worked)
    }

    /// The same claims, without a use: nothing is written.
    pub async fn peek(
        &self,
        token: &str,
        policy: &Policy,
        now: u64,
    ) -> Result<Map<String, Value>, Unusable> {
        if !is_well_formed(token.as_bytes()) {
            return Err(Unusable::Unknown);
        }
        let row = self.find(&digest_of(token), now).await?;
        let account = self.owner(&row, policy).await?;
        let cutoff = self.store.cutoff(&account.id, &scope(policy)).await?.max(account.not_before);
        let issued_at = now.max(cutoff.cast_unsigned().saturating_add(1));
        Ok(claims(&row, &account, policy, issued_at))
    }

    /// Forgets tokens that were revoked or have expired long ago. `now` is in Unix seconds.
    pub async fn prune(&self, now: u64) -> Result<(), StoreError> {
        self.store.prune_personal_tokens(now.saturating_sub(KEPT.as_secs()).cast_signed()).await
    }

    /// The account of a token, if it may log in: it is enabled, and no stranger's registration.
    async fn owner(&self, row: &PersonalTokenRow, policy: &Policy) -> Result<AccountRow, Unusable> {
        let account = self.store.account(&row.account).await?.ok_or(Unusable::Revoked)?;
        if account.disabled == 1 || (policy.verify_email && is_unconfirmed(&account)) {
            return Err(Unusable::Revoked);
        }
        Ok(account)
    }

    async fn find(&self, digest: &str, now: u64) -> Result<PersonalTokenRow, Unusable> {
        let row = self.store.personal_token(digest).await?.ok_or(Unusable::Unknown)?;
        let expires_at = row.expires_at.cast_unsigned();
        if expires_at <= now {
            return Err(Unusable::Expired { at: expires_at });
        }
        if row.revoked_at.is_some() { Err(Unusable::Revoked) } else { Ok(row) }
    }

    fn note(&self, digest: String, what: Seen) {
        let mut seen = self.seen();
        if seen.len() >= MOST_SEEN {
            seen.retain(|_, what| *what == Seen::Worked);
        }
        if seen.len() >= MOST_SEEN {
            seen.clear();
        }
        seen.insert(digest, what);
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedToken").field("row", &self.row).finish_non_exhaustive()
    }
}

/// What a token proves at `issued_at`, in Unix seconds.
fn claims(
    row: &PersonalTokenRow,
    account: &AccountRow,
    policy: &Policy,
    issued_at: u64,
) -> Map<String, Value> {
    let roles = account.roles.split_whitespace().filter(|role| {
        row.roles.as_ref().is_none_or(|named| named.split_whitespace().any(|named| named == *role))
    });
    let expires_at = issued_at
        .saturating_add(policy.access_token_ttl.as_secs())
        .min(row.expires_at.cast_unsigned());
    let mut claims = claims_about(policy, account, roles, issued_at, expires_at);
    claims.insert("jti".to_owned(), json!(row.id));
    claims
}

/// Whether a credential is meant as a personal access token.
pub fn is_personal(credential: &[u8]) -> bool {
    credential.starts_with(PREFIX.as_bytes())
}

/// Parses a lifetime, such as `180d`.
///
/// # Errors
/// [`TokenError::Ttl`]
pub fn parse_ttl(written: &str) -> Result<Duration, TokenError> {
    humantime::parse_duration(written.trim()).map_err(|_| TokenError::Ttl)
}

/// Whether a credential has the form of a personal access token.
pub fn is_well_formed(token: &[u8]) -> bool {
    token.strip_prefix(PREFIX.as_bytes()).is_some_and(|rest| {
        rest.len() == 43
            && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    })
}

/// What every token begins with, for secret scanners and people.
pub const PREFIX: &str = "pct_";

/// The lifetime of a token whose maker does not say.
pub const DEFAULT_TTL: &str = "180d";

/// How many tokens an account may have.
pub const MOST_TOKENS: i64 = 100;

const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// Ten years of 365.25 days, as in `10y`.
const LONGEST_TTL: Duration = Duration::from_hours(10 * 8766);

/// For how long a token that was revoked or has expired is refused as such, before it is unknown.
const KEPT: Duration = Duration::from_hours(30 * 24);

/// How many digests are remembered, in about 100 bytes each.
const MOST_SEEN: usize = 10_000;

/// How often the same unknown token counts as a guess.
const MOST_GUESSES: u8 = 20;

/// How long a request waits for others that look up the same token.
const LONGEST_TURN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::policy::tests::policy;
    use crate::store::test_settings;

    #[test]
    fn a_token_is_a_prefix_and_43_characters() {
        let right = format!("pct_{}", "aZ0-_".repeat(8) + "xyz");
        assert!(is_well_formed(right.as_bytes()) && is_personal(right.as_bytes()));
        for wrong in [
            "",
            "pct_",
            &right[..46],
            &format!("{right}A"),
            &right.replace('-', "+"),
            &right.replace("pct_", "PCT_"),
        ] {
            assert!(!is_well_formed(wrong.as_bytes()), "{wrong}");
        }
    }

    /// A program whose account was deleted repeats its token for ever. Others share its address.
    #[tokio::test]
    async fn an_unknown_token_is_a_guess_until_it_was_repeated_often() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        let (tokens, policy) = (PersonalTokens::new(store, None), policy());
        let unknown = |letter: &str| format!("pct_{}", letter.repeat(43));
        for attempt in 0..MOST_GUESSES {
            assert!(!tokens.is_stale(&unknown("A")), "{attempt}");
            let found = tokens.look_up(&unknown("A"), &policy, 100).await;
            assert!(matches!(found, Err(Unusable::Unknown)), "{attempt}");
        }
        assert!(tokens.is_stale(&unknown("A")) && !tokens.is_stale(&unknown("B")));
        assert!(!tokens.is_stale("the password of the account"), "it is not even remembered");
    }

    #[test]
    fn a_lifetime_is_a_duration() {
        assert_eq!(parse_ttl(" 180d ").unwrap(), Duration::from_hours(180 * 24));
        assert_eq!(parse_ttl("10y").unwrap(), LONGEST_TTL);
        for wrong in ["", "180", "d", "-1d", "forever"] {
            assert!(parse_ttl(wrong).is_err(), "{wrong}");
        }
    }
}
