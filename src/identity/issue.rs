//! Signing keys, and minting tokens with them.
//!
//! Keys are in the store, sealed and numbered: if two processes make the next key at once, one
//! succeeds and the other reads that key. A key is published before it signs, and stays published
//! until the last token that it signed has expired. The gateway's verification keys are replaced
//! before anything is signed with a new key.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account_of_person::has_address;
use super::policy::{LONGEST_ACCESS_TOKEN, Policy};
use crate::clock::Clock;
use crate::store::{AccountRow, LoginProof, SigningKeyRow, Store, StoreError};
use crate::token::{
    Algorithm, Algorithms, GenerateError, KeyError, KeySet, LiveKeys, MintError, Minter,
    generate_private_pem, public_jwk,
};

/// The keys of the built-in issuer, as known to this process.
#[derive(Debug)]
pub struct SigningKeys {
    store: Store,
    clock: Clock,
    /// The keys that the gateway verifies our tokens with.
    live: Arc<LiveKeys>,
    ring: ArcSwap<Ring>,
    /// Held to load them: what was read first must not replace what was read later.
    loading: tokio::sync::Mutex<()>,
    /// The last early key that was reported.
    reported: AtomicI64,
}

/// All published keys.
#[derive(Debug, Default)]
struct Ring {
    keys: Vec<SigningKey>,
    /// The JWK Set (RFC 7517 §5).
    published: Bytes,
}

#[derive(Debug)]
struct SigningKey {
    number: i64,
    kid: String,
    algorithm: Algorithm,
    signs_from: u64,
    minter: Minter,
}

/// Why keys cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A key could not be generated.
    #[error("cannot generate a signing key: {0}")]
    Generate(#[from] GenerateError),
    /// A stored key cannot be used.
    #[error("cannot use signing key {kid} in the store: {source}")]
    Unusable {
        /// Its `kid`.
        kid: String,
        /// Why.
        source: KeyError,
    },
    /// Signing failed.
    #[error("cannot sign a token: {0}")]
    Mint(#[from] MintError),
    /// The process stopped while a key was generated.
    #[error("the gateway is shutting down")]
    Closed,
}

/// An access token and its lifetime.
#[derive(Debug)]
pub struct AccessToken {
    /// In compact form.
    pub token: String,
    /// Lifetime in seconds.
    pub expires_in: u64,
}

impl SigningKeys {
    /// Loads the keys, and makes the first one if there is none.
    pub async fn load(
        store: Store,
        live: Arc<LiveKeys>,
        clock: Clock,
        policy: &Policy,
    ) -> Result<Self, KeysError> {
        let (ring, reported) = (ArcSwap::default(), AtomicI64::new(0));
        let loading = tokio::sync::Mutex::default();
        let keys = Self { store, clock, live, ring, loading, reported };
        if !keys.reload().await? {
            let now = keys.clock.unix_seconds();
            // If another process made it meanwhile, that key is loaded.
            add_key(&keys.store, policy.algorithm, 1, now, now).await?;
            keys.reload().await?;
        }
        keys.tend(policy).await?;
        Ok(keys)
    }

    /// Reads changes by other processes, and makes the next key when it is due. On an error, the
    /// known keys stay in use.
    pub async fn tend(&self, policy: &Policy) -> Result<(), KeysError> {
        let known = self.ring.load().keys.iter().map(|key| key.number).collect::<Vec<_>>();
        if self.store.signing_key_numbers().await? != known {
            self.reload().await?;
        }
        let now = self.clock.unix_seconds();
        let ring = self.ring.load_full();
        self.report_early(&ring, now);
        let Some(newest) = ring.keys.iter().rfind(|key| !key.is_early(now)) else { return Ok(()) };
        let soon = now.saturating_add(lead(policy));
        let due = newest.signs_from.saturating_add(policy.key_rotation.as_secs());
        let has_other_algorithm = newest.algorithm != policy.algorithm && newest.signs_from <= now;
        if has_other_algorithm || due <= soon {
            self.make_next(&ring, policy, now).await?;
        }
        Ok(())
    }

    /// Deletes keys whose tokens have all expired by a settled time. If every key is early, as after
    /// a first start with a clock that was ahead, makes one that is not: no other would ever be due.
    pub async fn clean(&self, policy: &Policy, settled: u64) -> Result<(), KeysError> {
        let ring = self.ring.load_full();
        let now = self.clock.unix_seconds();
        if !ring.keys.is_empty() && ring.keys.iter().all(|key| key.is_early(now)) {
            self.make_next(&ring, policy, now).await?;
        }
        let starts: Vec<u64> = ring.keys.iter().map(|key| key.signs_from).collect();
        let is_over = |index| verifies_until(&starts, index).is_some_and(|until| until < settled);
        let keys = ring.keys.iter().enumerate();
        let over: Vec<i64> =
            keys.filter(|(index, _)| is_over(*index)).map(|(_, key)| key.number).collect();
        for &number in &over {
            self.store.delete_signing_key(number).await?;
        }
        if !over.is_empty() {
            self.reload().await?;
        }
        Ok(())
    }

    /// Makes the next key, which signs once verifiers have had time to fetch it.
    async fn make_next(&self, ring: &Ring, policy: &Policy, now: u64) -> Result<(), KeysError> {
        let number = ring.keys.last().map_or(0, |key| key.number) + 1;
        let signs_from = now.saturating_add(lead(policy));
        if add_key(&self.store, policy.algorithm, number, signs_from, now).await? {
            tracing::info!(
                algorithm = Algorithms::name(policy.algorithm),
                signs_from,
                "a signing key was made"
            );
        }
        self.reload().await?;
        Ok(())
    }

    /// Reports a key that is early, once.
    fn report_early(&self, ring: &Ring, now: u64) {
        let Some(early) = ring.keys.iter().rfind(|key| key.is_early(now)) else { return };
        if self.reported.swap(early.number, Ordering::Relaxed) != early.number {
            tracing::warn!(
                kid = early.kid,
                signs_from = early.signs_from,
                "a signing key is to sign far in the future: it was made while a clock was ahead, or the clock here is behind; keys are rotated as if it did not exist, and portcullis key rotate makes the next one now"
            );
        }
    }

    /// Loads the keys again. Returns false if there are none.
    async fn reload(&self) -> Result<bool, KeysError> {
        let _loading = self.loading.lock().await;
        let (ring, set) = Ring::load(&self.store).await?;
        let is_some = !ring.keys.is_empty();
        // Update verification before signing, so that every minted token is accepted.
        self.live.replace(set);
        self.ring.store(Arc::new(ring));
        Ok(is_some)
    }

    /// The number of the newest key; 0 if there is none.
    pub fn newest(&self) -> i64 {
        self.ring.load().keys.last().map_or(0, |key| key.number)
    }

    /// The JWK Set.
    pub fn published(&self) -> Bytes {
        self.ring.load().published.clone()
    }

    /// The algorithms of all published keys without repetition: past, current and next.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for key in &self.ring.load().keys {
            let name = Algorithms::name(key.algorithm);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Mints the access token that was issued to a session of `account` at `issued_at`. That time
    /// may be in the future: after a cut-off.
    pub async fn mint(
        &self,
        policy: &Policy,
        account: &AccountRow,
        (sid, proof): (&str, &LoginProof),
        issued_at: u64,
    ) -> Result<AccessToken, KeysError> {
        let now = self.clock.unix_seconds();
        // After several logins and cut-offs within one second, the token would be too far in the
        // future to be accepted.
        let ahead = issued_at.saturating_sub(now.saturating_add(AHEAD));
        if ahead > 0 {
            tokio::time::sleep(Duration::from_secs(ahead)).await;
        }
        let ttl = policy.access_token_ttl.as_secs();
        let roles = account.roles.split_whitespace();
        let expires_at = issued_at.saturating_add(ttl);
        let mut claims = claims_about(policy, account, roles, issued_at, expires_at);
        claims.insert("jti".to_owned(), json!(Uuid::new_v4().to_string()));
        claims.insert("sid".to_owned(), json!(sid));
        claims.insert("idp".to_owned(), json!(proof.idp));
        if !proof.acr.is_empty() {
            claims.insert("acr".to_owned(), json!(proof.acr));
        }
        if proof.auth_time > 0 {
            claims.insert("auth_time".to_owned(), json!(proof.auth_time));
        }
        let ring = self.ring.load();
        let signer = ring
            .keys
            .iter()
            .rfind(|key| key.signs_from <= now)
            .or(ring.keys.first())
            .ok_or(MintError::Signing)?;
        let token = signer.minter.sign(signer.algorithm, Some(&signer.kid), "at+jwt", &claims)?;
        Ok(AccessToken { token, expires_in: ttl })
    }
}

/// The claims of an access token about an account, without the ids of the token and its session.
/// The times are in Unix seconds.
pub(super) fn claims_about<'a>(
    policy: &Policy,
    account: &AccountRow,
    roles: impl Iterator<Item = &'a str>,
    issued_at: u64,
    expires_at: u64,
) -> Map<String, Value> {
    let mut claims = Map::new();
    let mut set = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    set("iss", json!(policy.issuer));
    set("sub", json!(account.id));
    set("aud", json!(policy.audience));
    set("exp", json!(expires_at));
    set("iat", json!(issued_at));
    set("roles", roles.collect());
    if policy.includes_email && has_address(account) {
        set("email", json!(account.email));
        if policy.verify_email {
            set("email_verified", json!(account.email_verified == 1));
        }
    }
    if let (true, Some(name)) = (policy.includes_name, &account.name) {
        set("name", json!(name));
    }
    claims
}

impl SigningKey {
    /// Whether it signs so late that it was made while a clock was ahead, if ours is right.
    fn is_early(&self, now: u64) -> bool {
        self.signs_from > now.saturating_add(LATEST.as_secs())
    }
}

/// For how many seconds the next key is published before it signs.
fn lead(policy: &Policy) -> u64 {
    LEAD.min(policy.key_rotation / 4).as_secs()
}

/// When the tokens of a key have all expired, which signs until any later one does. `starts` is
/// from when each key signs. `None`: there is no later one.
fn verifies_until(starts: &[u64], index: usize) -> Option<u64> {
    let ends = starts.get(index + 1..)?.iter().min()?;
    Some(ends.saturating_add(REMEMBERED.as_secs()))
}

impl Ring {
    /// Loads the keys of a store, and the set that verifies their tokens.
    async fn load(store: &Store) -> Result<(Self, KeySet), KeysError> {
        let mut ring = Self::default();
        let mut jwks = Vec::new();
        for row in store.signing_keys().await? {
            let unusable = |source| KeysError::Unusable { kid: row.kid.clone(), source };
            let Some(algorithm) = Algorithms::parse(&row.algorithm) else {
                return Err(unusable(KeyError::Unreadable));
            };
            jwks.push(Value::Object(public_jwk(&row.private, algorithm).map_err(unusable)?));
            ring.keys.push(SigningKey {
                number: row.number,
                kid: row.kid.clone(),
                algorithm,
                signs_from: row.signs_from.cast_unsigned(),
                minter: Minter::from_private_pem(row.private.as_bytes()).map_err(unusable)?,
            });
        }
        let published = json!({ "keys": jwks }).to_string();
        let unusable = |source| KeysError::Unusable { kid: "set".to_owned(), source };
        let (set, left_out) =
            KeySet::from_jwks(published.as_bytes(), Algorithms::all()).map_err(unusable)?;
        if !left_out.is_empty() {
            return Err(unusable(KeyError::Unreadable));
        }
        ring.published = Bytes::from(published);
        Ok((ring, set))
    }
}

/// The keys that verify tokens signed with the keys of a store, for commands.
pub async fn verifying_keys(store: &Store) -> Result<KeySet, KeysError> {
    Ok(Ring::load(store).await?.1)
}

/// Generates a key and adds it under this number. Returns false if another process was first.
async fn add_key(
    store: &Store,
    algorithm: Algorithm,
    number: i64,
    signs_from: u64,
    now: u64,
) -> Result<bool, KeysError> {
    let row = generate(algorithm, number, signs_from, now).await?;
    Ok(store.insert_signing_key(&row).await?)
}

async fn generate(
    algorithm: Algorithm,
    number: i64,
    signs_from: u64,
    now: u64,
) -> Result<SigningKeyRow, KeysError> {
    // Generating an RSA key takes time.
    let made = tokio::task::spawn_blocking(move || generate_private_pem(algorithm))
        .await
        .map_err(|_| KeysError::Closed)?;
    let private = made?;
    let unusable = |source| KeysError::Unusable { kid: "new".to_owned(), source };
    let jwk = public_jwk(&private, algorithm).map_err(unusable)?;
    let kid = jwk.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (created_at, signs_from) = (now.cast_signed(), signs_from.cast_signed());
    Ok(SigningKeyRow {
        number,
        kid,
        algorithm: Algorithms::name(algorithm).to_owned(),
        private,
        created_at,
        signs_from,
    })
}

/// The current use of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Published in advance, so that verifiers have it before it signs.
    Next,
    /// Signs new tokens.
    Signs,
    /// No longer signs; its tokens are still verified.
    Remembered {
        /// When it is deleted, in Unix seconds.
        until: u64,
    },
}

/// All published keys and their use.
pub async fn key_states(
    store: &Store,
    now: u64,
) -> Result<Vec<(SigningKeyRow, KeyState)>, KeysError> {
    let keys = store.signing_keys().await?;
    let starts: Vec<u64> = keys.iter().map(|key| key.signs_from.cast_unsigned()).collect();
    let signs = starts.iter().rposition(|start| *start <= now);
    let state = |index: usize| match signs {
        Some(signs) if index == signs => KeyState::Signs,
        Some(signs) if index < signs => {
            KeyState::Remembered { until: verifies_until(&starts, index).unwrap_or(now) }
        }
        _ => KeyState::Next,
    };
    Ok(keys.into_iter().enumerate().map(|(index, key)| (key, state(index))).collect())
}

/// Makes the next key. It signs once verifiers have had time to fetch it; if the others are
/// `compromised`, it signs at once and they are deleted. Returns `None` if another process made one
/// meanwhile.
pub async fn rotate(
    store: &Store,
    algorithm: Algorithm,
    compromised: bool,
    now: u64,
) -> Result<Option<SigningKeyRow>, KeysError> {
    let others = store.signing_key_numbers().await?;
    let number = others.last().copied().unwrap_or(0) + 1;
    let lead = if compromised || number == 1 { 0 } else { LEAD.as_secs() };
    let key = generate(algorithm, number, now.saturating_add(lead), now).await?;
    let is_added = if compromised {
        store.replace_signing_keys(&key).await?
    } else {
        store.insert_signing_key(&key).await?
    };
    Ok(is_added.then_some(key))
}

/// How long a key is published before it signs. Verifiers cache a key set for less.
const LEAD: Duration = Duration::from_mins(10);

/// How long after now a key may begin to sign: the clocks of gateways differ.
const LATEST: Duration = Duration::from_mins(70);

/// How long a key stays published after its successor has started to sign.
const REMEMBERED: Duration = Duration::from_secs(LONGEST_ACCESS_TOKEN.as_secs() + 60);

/// How many seconds an `iat` may be ahead of our clock. Verification tolerates more.
const AHEAD: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::policy::tests::policy;
    use crate::store::test_settings;

    async fn store(folder: &tempfile::TempDir) -> Store {
        crate::token::install_crypto();
        Store::open(&test_settings(folder.path())).await.unwrap()
    }

    async fn load(store: &Store, clock: &Clock, policy: &Policy) -> SigningKeys {
        SigningKeys::load(
            store.clone(),
            Arc::new(LiveKeys::new(KeySet::default())),
            clock.clone(),
            policy,
        )
        .await
        .unwrap()
    }

    fn account() -> AccountRow {
        AccountRow {
            id: "a-1".into(),
            email: "ann@example.com".into(),
            name: None,
            password: String::new(),
            roles: "user admin".into(),
            disabled: 0,
            email_verified: 0,
            generation: 0,
            not_before: 0,
            created_at: 0,
            last_login_at: None,
        }
    }

    /// `kid` and claims of a token that is minted now.
    async fn minted(keys: &SigningKeys, policy: &Policy) -> (String, Map<String, Value>) {
        let token = keys
            .mint(
                policy,
                &account(),
                ("s-1", &LoginProof::default()),
                keys.clock.unix_seconds() + 1,
            )
            .await
            .unwrap()
            .token;
        let inspected = crate::token::inspect(&token).unwrap();
        (inspected.header["kid"].as_str().unwrap().to_owned(), inspected.claims.unwrap())
    }

    fn published(keys: &SigningKeys) -> Vec<String> {
        let set: Value = serde_json::from_slice(&keys.published()).unwrap();
        set["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["kid"].as_str().unwrap().to_owned())
            .collect()
    }

    #[tokio::test]
    async fn the_next_key_is_published_before_it_signs_and_the_last_one_after() {
        let folder = tempfile::tempdir().unwrap();
        let (store, clock, policy) = (store(&folder).await, Clock::fixed(1_900_000_000), policy());
        let keys = load(&store, &clock, &policy).await;
        let first = published(&keys);
        let (kid, claims) = minted(&keys, &policy).await;
        assert_eq!((first.len(), &kid), (1, &first[0]));
        let times = (claims["iat"].as_u64(), claims["exp"].as_u64());
        assert_eq!(
            (times, &claims["roles"]),
            ((Some(1_900_000_001), Some(1_900_000_901)), &json!(["user", "admin"]))
        );

        // Another process, with the first one's key.
        let other = load(&store, &clock, &policy).await;
        assert_eq!(published(&other), first);

        clock.advance(policy.key_rotation.saturating_sub(LEAD));
        let (one, another) = tokio::join!(keys.tend(&policy), other.tend(&policy));
        one.and(another).unwrap();
        keys.tend(&policy).await.unwrap();
        other.tend(&policy).await.unwrap();
        let both = published(&keys);
        assert_eq!(
            (both.len(), &both[0], published(&other)),
            (2, &first[0], both.clone()),
            "both agree on one next key"
        );
        assert_eq!(minted(&keys, &policy).await.0, first[0], "published, and not yet used");

        clock.advance(LEAD);
        for keys in [&keys, &other] {
            keys.tend(&policy).await.unwrap();
            assert_eq!(minted(keys, &policy).await.0, both[1]);
            assert_eq!(published(keys), both, "tokens of the first are still good");
        }
        clock.advance(REMEMBERED);
        keys.clean(&policy, clock.unix_seconds()).await.unwrap();
        assert_eq!(published(&keys), both);
        keys.clean(&policy, clock.unix_seconds() + 1).await.unwrap();
        assert_eq!(published(&keys), both[1..]);
        assert_eq!(keys.live.load().len(), 1);
    }

    #[tokio::test]
    async fn another_algorithm_comes_with_the_next_key() {
        let folder = tempfile::tempdir().unwrap();
        let (store, clock, mut policy) =
            (store(&folder).await, Clock::fixed(1_900_000_000), policy());
        let keys = load(&store, &clock, &policy).await;
        policy.algorithm = Algorithm::EdDSA;
        for _ in 0..3 {
            keys.tend(&policy).await.unwrap();
        }
        let both = published(&keys);
        assert_eq!((both.len(), &minted(&keys, &policy).await.0), (2, &both[0]));
        assert_eq!(keys.algorithms(), ["ES256", "EdDSA"], "what signs, and what will");
        clock.advance(LEAD);
        keys.tend(&policy).await.unwrap();
        assert_eq!((published(&keys).len(), &minted(&keys, &policy).await.0), (2, &both[1]));
    }

    /// At a start, and while a gateway runs.
    #[tokio::test]
    async fn a_key_that_was_made_while_the_clock_was_ahead_does_not_end_rotation() {
        const NOW: u64 = 1_900_000_000;
        const AHEAD: u64 = NOW + 10 * 365 * 24 * 3600;
        for is_first in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let (store, policy) = (store(&folder).await, policy());
            let clock = Clock::fixed(if is_first { AHEAD } else { NOW });
            let mut keys = load(&store, &clock, &policy).await;
            clock.set(AHEAD);
            keys.tend(&policy).await.unwrap();
            let before = published(&keys);
            assert_eq!(before.len(), if is_first { 1 } else { 2 });
            clock.set(NOW);
            keys = load(&store, &clock, &policy).await;
            assert_eq!(published(&keys), before, "nothing is due");
            if is_first {
                keys.clean(&policy, NOW).await.unwrap();
            } else {
                clock.advance(policy.key_rotation);
                keys.tend(&policy).await.unwrap();
            }
            let all = published(&keys);
            assert_eq!(all.len(), before.len() + 1);
            assert_eq!(minted(&keys, &policy).await.0, all[0]);
            clock.advance(LEAD);
            keys.tend(&policy).await.unwrap();
            let newest = all.last().unwrap();
            assert_eq!(minted(&keys, &policy).await.0, *newest);
            let states = key_states(&store, clock.unix_seconds()).await.unwrap();
            let until = clock.unix_seconds() + REMEMBERED.as_secs();
            for (_, state) in &states[..states.len() - 1] {
                assert_eq!(*state, KeyState::Remembered { until });
            }
            keys.clean(&policy, until + 1).await.unwrap();
            assert_eq!(published(&keys), [newest.as_str()]);
        }
    }
}
