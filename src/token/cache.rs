//! A cache of verified tokens. Each worker has its own, which no other thread touches.
//!
//! A hit decides exactly as a fresh verification would at that moment. Whatever can change in
//! between is checked again each time: that the same issuer is still accepted, that the key set
//! that verified the signature is still current, and the time. Everything else depends only on the
//! token's bytes and the issuer's section. The caller checks for revocation, after a hit as after a
//! miss.
//!
//! **The key** is a 128-bit SipHash-2-4 of the whole token, under a 128-bit secret that is created
//! with the cache. Neither the secret nor a digest ever leaves it. SipHash is a message
//! authentication code: without the secret, an attacker can only guess. Two tokens with the same
//! digest would give one caller the other's identity; nobody can construct such a pair (2^-128 for
//! each attempt and entry), aim at a slot of the table, or learn anything from the time that a
//! comparison takes. The token itself is not stored, so nothing in memory can be presented as a
//! credential. Using the token's bytes as the key would be cheaper but would leave thousands of
//! valid bearer tokens in every core dump; HMAC-SHA-256 would give the same guarantee at more than
//! twice the cost (docs/benchmarks.md).
//!
//! **Bounds.** Only verified tokens are stored, so a flood of garbage neither grows the cache nor
//! evicts anything. When the cache is full, it evicts an entry that has not been used since the
//! clock hand last passed it (CLOCK).

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use aws_lc_rs::rand;
use siphasher::sip128::{Hasher128, SipHasher24};

use super::invalid::InvalidToken;
use super::issuers::{Issuers, VerifiedToken};
use super::jws::MAX_TOKEN_BYTES;
use super::keys::KeySet;
use crate::telemetry::metrics::TokenCacheCounts;

/// The capacity of a cache. With zero entries or bytes, it stores nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBounds {
    /// The number of tokens.
    pub entries: usize,
    /// The approximate memory, in bytes.
    pub bytes: usize,
}

impl CacheBounds {
    /// The share of each of `workers`, so that together they stay within these bounds.
    #[must_use]
    pub fn share(self, workers: usize) -> Self {
        Self { entries: self.entries / workers.max(1), bytes: self.bytes / workers.max(1) }
    }
}

/// Verified tokens, by a digest of their bytes.
pub struct TokenCache<M = ()> {
    secret: [u8; 16],
    bounds: CacheBounds,
    /// The issuers of the last lookup. Entries that were checked against them need no second check.
    issuers: Arc<Issuers>,
    generation: u64,
    /// The index in `entries` of each digest.
    places: HashMap<Digest, usize, BuildHasherDefault<Prehashed>>,
    entries: Vec<Entry<M>>,
    /// The clock hand: the next candidate for eviction.
    clock_hand: usize,
    /// The next entry that [`TokenCache::sweep`] looks at.
    sweep_cursor: usize,
    bytes: usize,
    counts: Arc<TokenCacheCounts>,
}

struct Entry<M> {
    digest: Digest,
    token: Arc<Remembered<M>>,
    keys: Arc<KeySet>,
    /// The `generation` in which its issuer was last known to be accepted.
    generation: u64,
    bytes: usize,
    referenced: bool,
}

type Digest = u128;

/// The result of a lookup that found nothing.
pub struct CacheMiss<'token> {
    token: &'token [u8],
    /// `None` if the token would not be stored anyway.
    digest: Option<Digest>,
}

/// A verified token, and a memo that its user keeps with it while it is remembered.
///
/// The memo comes first, next to the counter of the [`Arc`] and the first members of the token, so
/// that a request with a remembered token touches few cache lines.
#[derive(Debug)]
#[repr(C)]
pub struct Remembered<M> {
    memo: M,
    token: VerifiedToken,
}

/// Data that is stored with a remembered token.
pub trait Memo: Default {
    /// An upper bound of the heap memory that it takes for this token, in bytes.
    fn max_heap_bytes(token: &VerifiedToken) -> usize;
}

impl Memo for () {
    fn max_heap_bytes(_: &VerifiedToken) -> usize {
        0
    }
}

impl<M> Remembered<M> {
    /// The memo.
    pub fn memo(&self) -> &M {
        &self.memo
    }
}

impl<M: Default> From<VerifiedToken> for Remembered<M> {
    fn from(token: VerifiedToken) -> Self {
        Self { memo: M::default(), token }
    }
}

impl<M> Deref for Remembered<M> {
    type Target = VerifiedToken;

    fn deref(&self) -> &VerifiedToken {
        &self.token
    }
}

impl<M: Memo> TokenCache<M> {
    /// The memory of an entry apart from its token: its slots in both tables, their spare capacity,
    /// and the memo itself.
    const ENTRY_OVERHEAD: usize =
        2 * (size_of::<Entry<M>>() + size_of::<Digest>() + size_of::<usize>()) + size_of::<M>();

    /// Creates an empty cache that counts into `counts`.
    pub fn new(bounds: CacheBounds, counts: Arc<TokenCacheCounts>) -> Self {
        let mut secret = [0; 16];
        // Without randomness nothing may be stored: an attacker could aim at digests.
        let bounds = if rand::fill(&mut secret).is_ok() {
            bounds
        } else {
            CacheBounds { entries: 0, bytes: 0 }
        };
        Self {
            secret,
            bounds,
            issuers: Arc::default(),
            generation: 0,
            places: HashMap::default(),
            entries: Vec::new(),
            clock_hand: 0,
            sweep_cursor: 0,
            bytes: 0,
            counts,
        }
    }

    /// Looks a token up, and checks again what may have changed since it was verified. `token` may
    /// be any bytes.
    ///
    /// # Errors
    ///
    /// Returns a [`CacheMiss`] for a token that is not in the cache: pass it to
    /// [`TokenCache::verify_and_insert`].
    pub fn get<'token>(
        &mut self,
        issuers: &Arc<Issuers>,
        token: &'token [u8],
        now: u64,
    ) -> Result<Result<Arc<Remembered<M>>, InvalidToken>, CacheMiss<'token>> {
        if self.bounds.entries == 0 || token.len() > MAX_TOKEN_BYTES {
            return Err(CacheMiss { token, digest: None });
        }
        self.use_issuers(issuers);
        let digest = self.digest(token);
        if let Some(&place) = self.places.get(&digest) {
            if self.is_current(place) {
                self.counts.hit();
                let entry = &mut self.entries[place];
                entry.referenced = true;
                let token = Arc::clone(&entry.token);
                return Ok(token.check_time(now).map(|()| token));
            }
            self.remove(place);
        }
        self.counts.miss();
        Err(CacheMiss { token, digest: Some(digest) })
    }

    /// Verifies a token that [`TokenCache::get`] did not find, and stores it if `text` is exactly
    /// the bytes that were looked up.
    ///
    /// # Errors
    ///
    /// Fails as [`Issuers::verify`] does. Refusals are not stored.
    #[expect(clippy::needless_pass_by_value, reason = "a miss is used only once")]
    pub fn verify_and_insert(
        &mut self,
        miss: CacheMiss<'_>,
        issuers: &Arc<Issuers>,
        text: &str,
        now: u64,
    ) -> Result<Arc<Remembered<M>>, InvalidToken> {
        let (token, keys) = issuers.verify_with_keys(text, now)?;
        let token = Arc::new(Remembered::from(token));
        // Storing another token under this digest would give one caller the other's identity.
        if let Some(digest) = miss.digest
            && miss.token == text.as_bytes()
        {
            self.insert(digest, Arc::clone(&token), keys);
        }
        Ok(token)
    }

    /// Stores what the look-up of a personal access token found, in the place of what an earlier
    /// look-up found. It counts until its keys are replaced, like a token that they signed.
    pub fn insert_found(&mut self, token: &[u8], found: VerifiedToken) -> Arc<Remembered<M>> {
        let found = Arc::new(Remembered::from(found));
        if self.bounds.entries > 0 && token.len() <= MAX_TOKEN_BYTES {
            let digest = self.digest(token);
            if let Some(&place) = self.places.get(&digest) {
                self.remove(place);
            }
            let keys = found.verified_for().keys().load();
            self.insert(digest, Arc::clone(&found), keys);
        }
        found
    }

    /// Changes the bounds and evicts what exceeds them.
    pub fn set_bounds(&mut self, bounds: CacheBounds) {
        if self.bounds != bounds {
            self.bounds = bounds;
            while self.entries.len() > bounds.entries || self.bytes > bounds.bytes {
                self.remove(self.entries.len() - 1);
            }
            self.entries.shrink_to_fit();
            self.places.shrink_to_fit();
        }
    }

    /// Evicts entries that can never be a hit again: expired tokens, and those whose keys were
    /// replaced or whose issuer is not in `issuers`. Call it from a timer. Each call looks at a few
    /// thousand entries only, so it does not block a worker for long.
    pub fn sweep(&mut self, issuers: &Arc<Issuers>, now: u64) {
        self.use_issuers(issuers);
        for _ in 0..self.entries.len().min(SWEEP_BATCH) {
            if self.sweep_cursor >= self.entries.len() {
                self.sweep_cursor = 0;
            }
            let Some(entry) = self.entries.get(self.sweep_cursor) else { return };
            let expired = matches!(entry.token.check_time(now), Err(InvalidToken::Expired { .. }));
            if expired || !self.is_current(self.sweep_cursor) {
                self.remove(self.sweep_cursor);
            } else {
                self.sweep_cursor += 1;
            }
        }
        if self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
            self.places.shrink_to(self.entries.len() * 2);
        }
    }

    /// The number of stored tokens.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Switches to these issuers: each entry must show again that its own is among them.
    fn use_issuers(&mut self, issuers: &Arc<Issuers>) {
        if !Arc::ptr_eq(&self.issuers, issuers) {
            self.issuers = Arc::clone(issuers);
            self.generation += 1;
        }
    }

    fn digest(&self, token: &[u8]) -> Digest {
        let mut code = SipHasher24::new_with_key(&self.secret);
        code.write(token);
        code.finish128().into()
    }

    /// Whether the entry's issuer is still accepted, with the same keys.
    fn is_current(&mut self, place: usize) -> bool {
        let entry = &mut self.entries[place];
        let issuer = entry.token.verified_for();
        if entry.generation != self.generation {
            if !self.issuers.contains(issuer) {
                return false;
            }
            entry.generation = self.generation;
        }
        issuer.keys().is_current(&entry.keys)
    }

    fn insert(&mut self, digest: Digest, token: Arc<Remembered<M>>, keys: Arc<KeySet>) {
        let bytes = token.footprint() + M::max_heap_bytes(&token) + Self::ENTRY_OVERHEAD;
        if bytes > self.bounds.bytes {
            return;
        }
        while self.entries.len() >= self.bounds.entries || self.bytes + bytes > self.bounds.bytes {
            self.make_room();
        }
        self.bytes += bytes;
        self.places.insert(digest, self.entries.len());
        self.entries.push(Entry {
            digest,
            token,
            keys,
            generation: self.generation,
            bytes,
            referenced: false,
        });
        self.counts.holds(self.entries.len());
    }

    /// Evicts one entry: the next that has not been used since the hand last passed it. The search
    /// is bounded; if every entry it passes is in use, it evicts one of them.
    fn make_room(&mut self) {
        for _ in 0..MAX_CLOCK_STEPS {
            self.clock_hand =
                if self.clock_hand >= self.entries.len() { 0 } else { self.clock_hand };
            match self.entries.get_mut(self.clock_hand) {
                Some(entry) if entry.referenced => entry.referenced = false,
                _ => break,
            }
            self.clock_hand += 1;
        }
        self.remove(self.clock_hand % self.entries.len());
    }

    fn remove(&mut self, place: usize) {
        let gone = self.entries.swap_remove(place);
        self.places.remove(&gone.digest);
        self.bytes -= gone.bytes;
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.digest, place);
        }
        self.counts.holds(self.entries.len());
    }
}

impl<M> fmt::Debug for TokenCache<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache")
            .field("bounds", &self.bounds)
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

/// Uses half of the digest as its hash: without the secret, digests are indistinguishable from
/// random.
#[derive(Default)]
struct Prehashed(u64);

impl Hasher for Prehashed {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// How many entries the hand may pass for each eviction.
const MAX_CLOCK_STEPS: usize = 64;
const SWEEP_BATCH: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::revocation::RevocationList;
    use crate::telemetry::metrics::Metrics;
    use crate::token::samples::{NOW, SECRET, issuers, settings, token};
    use crate::token::{
        Algorithm, Algorithms, Issuer, IssuerSettings, Revocation, RevokedBy, Scope,
    };

    const ROOM: CacheBounds = CacheBounds { entries: 8, bytes: 1 << 20 };

    struct Bench {
        cache: TokenCache,
        metrics: Metrics,
    }

    fn bench(bounds: CacheBounds) -> Bench {
        let metrics = Metrics::new();
        Bench { cache: TokenCache::new(bounds, metrics.token_cache()), metrics }
    }

    impl TokenCache {
        fn verify(
            &mut self,
            issuers: &Arc<Issuers>,
            token: &str,
            now: u64,
        ) -> Result<Arc<Remembered<()>>, InvalidToken> {
            match self.get(issuers, token.as_bytes(), now) {
                Ok(found) => found,
                Err(unknown) => self.verify_and_insert(unknown, issuers, token, now),
            }
        }
    }

    impl Bench {
        /// Hits, misses and entries, as `/metrics` reports them.
        fn counts(&self) -> [u64; 3] {
            let text = self.metrics.encode();
            ["hits_total", "misses_total", "entries"].map(|name| {
                let prefix = format!("portcullis_token_cache_{name} ");
                text.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap()
            })
        }

        /// Checks that the tables and the byte count agree with the entries.
        fn assert_sound(&self) {
            let cache = &self.cache;
            assert_eq!(cache.places.len(), cache.entries.len());
            assert_eq!(cache.bytes, cache.entries.iter().map(|entry| entry.bytes).sum::<usize>());
            assert!(
                cache.entries.len() <= cache.bounds.entries && cache.bytes <= cache.bounds.bytes
            );
            for (place, entry) in cache.entries.iter().enumerate() {
                assert_eq!(cache.places.get(&entry.digest), Some(&place));
            }
        }
    }

    fn numbered(number: u64) -> String {
        token(json!({"jti": number.to_string()}))
    }

    #[test]
    fn a_token_is_verified_once() {
        let (mut bench, issuers) = (bench(ROOM), Arc::new(issuers(|_| {})));
        let token = numbered(1);
        let first = bench.cache.verify(&issuers, &token, NOW).unwrap();
        let second = bench.cache.verify(&issuers, &token, NOW).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(bench.counts(), [1, 1, 1]);
    }

    #[test]
    fn a_token_is_cached_under_its_own_digest() {
        let (mut bench, issuers) = (bench(ROOM), Arc::new(issuers(|_| {})));
        let (one, other) = (numbered(1), numbered(2));
        let unknown = bench.cache.get(&issuers, one.as_bytes(), NOW).unwrap_err();
        bench.cache.verify_and_insert(unknown, &issuers, &other, NOW).unwrap();
        assert!(bench.cache.is_empty());
    }

    #[test]
    fn every_byte_of_a_token_counts() {
        let (mut bench, issuers) = (bench(ROOM), Arc::new(issuers(|_| {})));
        let good = numbered(1);
        bench.cache.verify(&issuers, &good, NOW).unwrap();
        for at in 0..good.len() {
            let mut other = good.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).unwrap();
            assert!(bench.cache.verify(&issuers, &other, NOW).is_err(), "{at}");
        }
        for other in [
            format!("{good}A"),
            good[1..].to_owned(),
            good[..good.len() - 1].to_owned(),
            String::new(),
        ] {
            assert!(bench.cache.verify(&issuers, &other, NOW).is_err());
        }
        assert_eq!(bench.cache.len(), 1);
    }

    #[test]
    fn garbage_neither_grows_nor_evicts() {
        let (mut bench, issuers) = (bench(ROOM), Arc::new(issuers(|_| {})));
        let good: Vec<String> = (0..8).map(numbered).collect();
        for token in &good {
            bench.cache.verify(&issuers, token, NOW).unwrap();
        }
        let forged = crate::token::samples::signed(r#"{"alg":"HS384"}"#, "{}");
        for number in 0..1_000_usize {
            let stolen = format!("{}{number:04}", &good[0][..good[0].len() - 4]);
            for garbage in [
                &stolen,
                &forged,
                &"x".repeat(number),
                &token(json!({"exp": NOW - 600 - number as u64})),
            ] {
                assert!(bench.cache.verify(&issuers, garbage, NOW).is_err());
            }
        }
        let [hits, ..] = bench.counts();
        for token in &good {
            bench.cache.verify(&issuers, token, NOW).unwrap();
        }
        assert_eq!(bench.counts()[0], hits + 8);
        bench.assert_sound();
    }

    #[test]
    fn both_bounds_are_kept_and_used_tokens_stay() {
        let issuers = Arc::new(issuers(|_| {}));
        for bounds in
            [CacheBounds { entries: 16, ..ROOM }, CacheBounds { entries: 1_000, bytes: 32 << 10 }]
        {
            let mut bench = bench(bounds);
            let hot = numbered(0);
            let first = bench.cache.verify(&issuers, &hot, NOW).unwrap();
            for number in 1..200 {
                bench.cache.verify(&issuers, &numbered(number), NOW).unwrap();
                assert!(
                    Arc::ptr_eq(&first, &bench.cache.verify(&issuers, &hot, NOW).unwrap()),
                    "{number}"
                );
                bench.assert_sound();
            }
            assert!(bench.cache.len() >= 10, "{}", bench.cache.len());
            bench.cache.set_bounds(CacheBounds { entries: 3, ..ROOM });
            bench.assert_sound();
        }
        let mut none = bench(CacheBounds { entries: 0, ..ROOM });
        none.cache.verify(&issuers, &numbered(1), NOW).unwrap();
        assert!(none.cache.is_empty() && none.counts() == [0, 0, 0]);
        let mut small = bench(CacheBounds { entries: 8, bytes: 100 });
        small.cache.verify(&issuers, &numbered(1), NOW).unwrap();
        assert!(small.cache.is_empty());
    }

    #[test]
    fn sweeping_drops_tokens_that_cannot_be_hit_again() {
        let mut settings = settings(Algorithm::HS256.into());
        settings.leeway = Duration::from_secs(30);
        let table = |settings: &IssuerSettings| {
            Arc::new(Issuers::new(vec![Arc::new(issuer(settings, 0))]).unwrap())
        };
        let issuers = table(&settings);
        let mut bench = bench(ROOM);
        for number in 0..3 {
            bench.cache.verify(&issuers, &numbered(number), NOW).unwrap();
        }
        bench.cache.verify(&issuers, &token(json!({"exp": NOW + 60})), NOW).unwrap();
        bench.cache.sweep(&issuers, NOW + 89);
        assert_eq!(bench.cache.len(), 4);
        bench.cache.sweep(&issuers, NOW + 90);
        assert_eq!(bench.cache.len(), 3);
        bench.cache.sweep(&table(&settings), NOW);
        assert!(bench.cache.is_empty());

        bench.cache.verify(&issuers, &numbered(1), NOW).unwrap();
        issuers.iter().for_each(|issuer| issuer.keys().replace(keys(1)));
        bench.cache.sweep(&issuers, NOW);
        assert!(bench.cache.is_empty());
        bench.assert_sound();
    }

    /// The nth secret of a test. Tokens are signed with the first.
    fn keys(number: usize) -> KeySet {
        let secret =
            [SECRET, b"another secret of exactly 64 bytes, which no token was signed by"][number];
        KeySet::from_secret(secret, Algorithms::from(Algorithm::HS256)).unwrap()
    }

    fn issuer(settings: &IssuerSettings, secret: usize) -> Issuer {
        Issuer::new(settings.clone(), keys(secret))
    }

    /// What may happen between two requests.
    #[derive(Clone, Debug)]
    enum Event {
        /// A request with one of the tokens.
        Ask(usize),
        /// The clock moves, possibly backwards.
        Move(i64),
        /// The keys are replaced, by others or by equal ones.
        Rotate(usize),
        /// The file is reloaded, with or without a change in the section, keeping the issuer or
        /// not.
        Reload {
            leeway: u64,
            lifetime: u64,
            other_audience: bool,
            keep: bool,
        },
        /// The section is removed.
        Remove,
        /// One of the tokens is revoked by its `jti`, or all tokens of its subject up to now.
        Revoke(usize, bool),
        Tidy,
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            12 => (0..TOKENS.len()).prop_map(Event::Ask),
            2 => (-400_i64..400).prop_map(Event::Move),
            1 => (0..2_usize).prop_map(Event::Rotate),
            1 => (0_u64..60, 300_u64..1_200, prop::bool::weighted(0.2), any::<bool>())
                .prop_map(|(leeway, lifetime, other_audience, keep)| Event::Reload { leeway, lifetime, other_audience, keep }),
            1 => Just(Event::Remove),
            1 => (0..TOKENS.len(), prop::bool::weighted(0.2)).prop_map(|(which, all)| Event::Revoke(which, all)),
            1 => Just(Event::Tidy),
        ]
    }

    /// The claims that replace those of a good token, as times relative to `NOW`: (exp, nbf, iat).
    const TOKENS: [(i64, Option<i64>, Option<i64>); 8] = [
        (600, None, Some(0)),
        (600, None, None),
        (60, None, None),
        (1_000, Some(100), None),
        (500, None, Some(-300)),
        (900, Some(-50), Some(50)),
        (-100, None, None),
        (700, None, Some(200)),
    ];

    fn at(offset: i64) -> u64 {
        NOW.saturating_add_signed(offset)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Whatever happens, the cache gives exactly the result of a fresh verification at that
        /// moment.
        #[test]
        fn a_cache_hit_agrees_with_a_fresh_verification(events in prop::collection::vec(events(), 1..120), entries in 1..9_usize) {
            let tokens: Vec<String> = TOKENS.iter().zip('a'..).map(|(&(exp, nbf, iat), jti)| {
                token(json!({"exp": at(exp), "nbf": nbf.map(at), "iat": iat.map(at), "jti": jti.to_string()}))
            }).collect();
            let revoked = RevocationList::default();
            let mut settings = settings(Algorithm::HS256.into());
            let mut issuers = Arc::new(Issuers::new(vec![Arc::new(issuer(&settings, 0))]).unwrap());
            let mut bench = bench(CacheBounds { entries, bytes: 1 << 20 });
            let mut now = NOW;
            for event in events {
                match event {
                    Event::Ask(which) => {
                        let cached = bench.cache.verify(&issuers, &tokens[which], now);
                        let fresh = issuers.verify(&tokens[which], now);
                        match (&cached, &fresh) {
                            (Ok(cached), Ok(fresh)) => {
                                prop_assert_eq!((cached.subject(), cached.claims()), (fresh.subject(), fresh.claims()));
                                prop_assert!(Arc::ptr_eq(cached.verified_for(), fresh.verified_for()));
                                prop_assert_eq!(revoked.revoked_by(cached), revoked.revoked_by(fresh));
                            }
                            (Err(cached), Err(fresh)) => prop_assert_eq!(cached, fresh),
                            _ => prop_assert!(false, "the cache returned {:?}, a fresh verification {:?}", cached, fresh),
                        }
                    }
                    Event::Move(by) => now = now.saturating_add_signed(by),
                    Event::Rotate(secret) => issuers.iter().for_each(|issuer| issuer.keys().replace(keys(secret))),
                    Event::Reload { leeway, lifetime, other_audience, keep } => {
                        let kept = issuers.iter().next().cloned().filter(|_| keep);
                        settings.leeway = Duration::from_secs(leeway);
                        settings.max_token_lifetime = Duration::from_secs(lifetime);
                        settings.audience = Some(vec![if other_audience { "elsewhere" } else { "reports" }.to_owned()]);
                        let issuer = kept.unwrap_or_else(|| Arc::new(issuer(&settings, 0)));
                        issuers = Arc::new(Issuers::new(vec![issuer]).unwrap());
                    }
                    Event::Remove => issuers = Arc::default(),
                    Event::Revoke(which, all) => revoked.add([Revocation {
                        scope: Scope::Every,
                        by: if all { RevokedBy::Subject } else { RevokedBy::Jti },
                        value: if all { "u-17".into() } else { "abcdefgh"[which..=which].into() },
                        at: now,
                    }]),
                    Event::Tidy => bench.cache.sweep(&issuers, now),
                }
                bench.assert_sound();
            }
        }
    }
}
