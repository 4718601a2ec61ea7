//! The counters of a limit: a bounded number of keys, each with its theoretical arrival time (TAT).
//!
//! The TAT is the time at which the key's budget is full again; a key whose TAT has passed need not
//! be remembered. When a shard is full, such keys are removed. If there are none, there is no place
//! for a new key: removing a key that is in use would give a fresh budget to anyone who can send
//! from many addresses.

use std::cell::Cell as Slot;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::nanos::Nanos;
use governor::state::StateStore;
use hashbrown::HashTable;

use super::{OF_BLOCKS, OF_GROUPS, OF_KEYS};

/// The owner of a cell. Small, and of fixed size whatever the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    V4([u8; 4]),
    V6([u8; 16]),
    Network([u8; 16]),
    Digest([u8; 16]),
    /// Those who find no place.
    Rest([u8; 4]),
}

impl Key {
    /// What identifies the owner among those of its kind.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) | Self::Rest(bytes) => bytes,
            Self::V6(bytes) | Self::Network(bytes) | Self::Digest(bytes) => bytes,
        }
    }

    /// One of `count` budgets, and its level: for those who find no place, together with their
    /// neighbours. These are the clients of an IPv4 /24 or an IPv6 /32, as far as the number of
    /// budgets allows. Accounts and callers have no neighbours: a budget is shared by a few that
    /// chance chose, and is no larger than that of one, so that it never permits more guesses.
    pub(super) fn rest(&self, count: u32) -> (u8, Self) {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let (level, number) = match self {
            Self::V4(ip) => (OF_GROUPS, number(&ip[..3])),
            Self::V6(ip) | Self::Network(ip) => (OF_BLOCKS, number(&ip[..4])),
            Self::Digest(digest) => (OF_KEYS, number(&digest[..4])),
            Self::Rest(own) => (OF_KEYS, number(own)),
        };
        (level, Self::Rest((number % count).to_be_bytes()))
    }
}

impl Hash for Key {
    /// Each request hashes its key, and each part of a hash costs as much as the key: so neither the
    /// kind nor the length is part of it. Equal bytes of two kinds are rare.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.bytes());
    }
}

/// A key, and a slot in which the store leaves the TAT that it wrote, or nothing if it has no place
/// for the key: governor only returns yes or no.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) key: Key,
    pub(super) until: Slot<u64>,
}

impl PartialEq for Asked {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Asked {}

impl Hash for Asked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

/// The counters. Clones share the same store.
#[derive(Clone, Debug)]
pub(super) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Randomly seeded in each process, so that nobody can aim at one shard or bucket.
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    keys_per_shard: usize,
    /// How much one cell adds to the TAT, in nanoseconds.
    interval: u64,
    /// How long a shard is not searched again after a search that freed little, in nanoseconds.
    pause: u64,
}

#[derive(Debug)]
struct Shard {
    /// By the hash that also chose the shard: it is computed once for each request.
    tats: HashTable<(Key, u64)>,
    /// Before this time, the shard is not searched for keys to remove.
    next_search: u64,
}

impl Store {
    pub(super) fn new(interval: Duration, requests: NonZeroU32, max_keys: usize) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let whole = interval.saturating_mul(u64::from(requests.get()));
        let shards = shard_count(max_keys);
        let shard = || Mutex::new(Shard { tats: HashTable::new(), next_search: 0 });
        Self(Arc::new(Inner {
            shards: (0..shards).map(|_| shard()).collect(),
            keys_per_shard: max_keys.max(1) / shards,
            interval,
            pause: (whole / SEARCHES_PER_PERIOD).clamp(MIN_PAUSE, MAX_PAUSE),
            hasher: RandomState::new(),
        }))
    }

    pub(super) fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| lock(shard).tats.len()).sum()
    }

    pub(super) fn prune(&self, now: u64) {
        for shard in &self.0.shards {
            let mut shard = lock(shard);
            shard.tats.retain(|(_, tat)| *tat > now);
            // Keep room for twice as many, so that a steady load does not shrink and grow the map
            // each time.
            let room = shard.tats.len() * 2;
            shard.tats.shrink_to(room, |(key, _)| self.0.hash(key));
            shard.next_search = 0;
        }
    }

    /// Subtracts one interval from the TAT, but not more than is left of the cell that ends at
    /// `until`.
    pub(super) fn give_back(&self, key: &Key, until: u64, now: u64) {
        let refund = until.saturating_sub(now).min(self.0.interval);
        if refund == 0 {
            return;
        }
        let hash = self.0.hash(key);
        let mut shard = self.0.shard_of(hash);
        let Ok(mut entry) = shard.tats.find_entry(hash, |(known, _)| known == key) else { return };
        let (_, tat) = entry.get_mut();
        *tat = tat.saturating_sub(refund);
        if *tat <= now {
            entry.remove();
        }
    }
}

impl StateStore for Store {
    type Key = Asked;

    fn measure_and_replace<T, F, E>(&self, asked: &Asked, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let inner = &*self.0;
        let hash = inner.hash(&asked.key);
        let mut shard = inner.shard_of(hash);
        if let Some((_, tat)) = shard.tats.find_mut(hash, |(known, _)| *known == asked.key) {
            let (outcome, next) = decide(Some(Nanos::new(*tat)))?;
            *tat = next.as_u64();
            asked.until.set(*tat);
            return Ok(outcome);
        }
        let (outcome, next) = decide(None)?;
        // There are few of those who share a budget: they always have a place.
        if shard.tats.len() >= inner.keys_per_shard && !matches!(asked.key, Key::Rest(_)) {
            // A first cell ends one interval from now.
            let now = next.as_u64().saturating_sub(inner.interval);
            if !shard.makes_room(now, inner.keys_per_shard, inner.pause) {
                return Ok(outcome);
            }
        }
        let counted = (asked.key, next.as_u64());
        shard.tats.insert_unique(hash, counted, |(key, _)| inner.hash(key));
        asked.until.set(next.as_u64());
        Ok(outcome)
    }
}

impl Inner {
    fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }

    fn shard_of(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The table inside uses the lowest and highest bits of the hash; these are in between.
        lock(&self.shards[(hash >> 24) as usize & (self.shards.len() - 1)])
    }
}

impl Shard {
    /// Removes keys whose TAT has passed. Returns whether there is room then.
    ///
    /// A search visits every key of the shard. If it frees a quarter, the requests that fill it
    /// again pay for it. If it frees less, `pause` must pass before the next one, so that a flood
    /// of new keys does not cause a search for each.
    fn makes_room(&mut self, now: u64, capacity: usize, pause: u64) -> bool {
        if now >= self.next_search {
            let before = self.tats.len();
            self.tats.retain(|(_, tat)| *tat > now);
            let freed = before - self.tats.len();
            self.next_search = if freed * 4 >= before { now } else { now.saturating_add(pause) };
        }
        self.tats.len() < capacity
    }
}

/// No panic can happen between two related writes, so a poisoned shard is still consistent.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of shards: about a thousand keys each, so that they fill evenly; a power of two up to
/// 64.
fn shard_count(max_keys: usize) -> usize {
    let wanted = (max_keys / 1024).clamp(1, 64);
    1 << wanted.ilog2()
}

const SEARCHES_PER_PERIOD: u64 = 16;
const MIN_PAUSE: u64 = 10_000_000;
const MAX_PAUSE: u64 = 1_000_000_000;
