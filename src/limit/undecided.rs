//! Requests of a limit on failures whose outcome is not known yet, and those that wait for it.
//!
//! A request may find the budget of its key used up by requests of which none has failed yet. It
//! waits until one of them is decided: if that one did not fail, the first that waits takes its
//! cell. Once the budget is used up by failures, all are refused. Guesses in parallel gain nothing,
//! because each of them still needs a cell.
//!
//! A request waits a few seconds at most. A key may use only a fraction of the free places, so filling
//! the places of many keys still leaves some for the next key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{MutexGuard as TurnGuard, Notify};

use super::store::Key;

/// The undecided requests of one limit.
#[derive(Debug)]
pub(super) struct Undecided {
    hasher: RandomState,
    shards: [Mutex<HashMap<Key, Pending>>; SHARDS],
    /// How many more requests may wait.
    free: AtomicUsize,
}

/// The undecided requests of one key.
#[derive(Debug, Default)]
struct Pending {
    /// How many hold a cell.
    held: usize,
    /// How many wait for one.
    waiting: usize,
    line: Option<Arc<Line>>,
}

/// Those who wait, in order of arrival.
#[derive(Debug, Default)]
struct Line {
    /// The first one has it.
    turn: tokio::sync::Mutex<()>,
    decided: Notify,
}

/// Says that a request holds a cell. It is decided when this is dropped.
#[derive(Debug)]
pub struct Held {
    undecided: Arc<Undecided>,
    key: Key,
    /// Whether dropping this wakes the first waiter. Not while that waiter holds it: it would wake
    /// itself.
    tells: bool,
}

/// A place among those who wait, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    undecided: Arc<Undecided>,
    key: Key,
    line: Arc<Line>,
}

impl Undecided {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
            free: AtomicUsize::new(MOST_WAITING),
        })
    }

    /// Takes a cell of this key. Of those who come while others wait, none is served before them:
    /// `place` is that of the first one. Otherwise returns the refusal, if `take` was asked, and
    /// whether there are undecided requests that may give a cell back.
    pub(super) fn take<T, E>(
        self: &Arc<Self>,
        key: Key,
        place: Option<&Waiting>,
        take: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Held), (Option<E>, bool)> {
        let mut shard = self.shard(&key);
        let known = shard.get(&key);
        if place.is_none() && known.is_some_and(|pending| pending.waiting > 0) {
            return Err((None, true));
        }
        let is_undecided = known.is_some_and(|pending| pending.held > 0);
        let taken = take().map_err(|refused| (Some(refused), is_undecided))?;
        shard.entry(key).or_default().held += 1;
        let undecided = Arc::clone(self);
        Ok((taken, Held { undecided, key, tells: place.is_none() }))
    }

    /// Joins the line for a cell of this key. Returns `None` if no place is free.
    pub(super) fn line_up(self: &Arc<Self>, key: Key) -> Option<Waiting> {
        let mut shard = self.shard(&key);
        let waiting = shard.get(&key).map_or(0, |pending| pending.waiting);
        let place = |free: usize| (waiting < free / SHARE).then(|| free - 1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place).ok()?;
        let pending = shard.entry(key).or_default();
        pending.waiting += 1;
        let line = Arc::clone(pending.line.get_or_insert_default());
        Some(Waiting { undecided: Arc::clone(self), key, line })
    }

    /// Changes what is known of a key, and forgets it if that is nothing.
    fn change(&self, key: &Key, change: impl FnOnce(&mut Pending)) {
        let mut shard = self.shard(key);
        if let Entry::Occupied(mut entry) = shard.entry(*key) {
            let pending = entry.get_mut();
            change(pending);
            if pending.waiting == 0 {
                pending.line = None;
                if pending.held == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// No panic can happen between two related writes, so a poisoned shard is still consistent.
    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Pending>> {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Whether other requests of its key are undecided.
    pub(super) fn has_others(&self) -> bool {
        self.undecided.shard(&self.key).get(&self.key).is_some_and(|pending| pending.held > 1)
    }

    /// Nothing more can refuse it.
    pub(super) fn confirmed(&mut self) {
        self.tells = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let tells = self.tells;
        self.undecided.change(&self.key, |pending| {
            pending.held = pending.held.saturating_sub(1);
            if let (Some(line), true) = (&pending.line, tells) {
                line.decided.notify_one();
            }
        });
    }
}

impl Waiting {
    /// Waits until it is the first.
    pub(super) async fn turn(&self) -> TurnGuard<'_, ()> {
        self.line.turn.lock().await
    }

    /// Waits until another request is decided. Also returns for one that was decided since the last
    /// call. Only the first may wait.
    pub(super) async fn decided(&self) {
        self.line.decided.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.undecided.change(&self.key, |pending| {
            pending.waiting = pending.waiting.saturating_sub(1);
        });
        self.undecided.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// How long a request waits at most.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How many requests of a limit wait at most.
const MOST_WAITING: usize = 1024;

/// Which part of the free places one key may have.
const SHARE: usize = 8;

const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::num::NonZeroU32;

    use governor::clock::FakeRelativeClock;

    use tokio::time::timeout;

    use super::super::{Cell, Count, Exceeded, KeyKind, Limit, Settings};
    use super::*;

    fn limit(requests: u32) -> Limit {
        let settings = Settings {
            requests: NonZeroU32::new(requests).unwrap(),
            per: Duration::from_mins(1),
            ipv6_prefix: 64,
            count: Count::Failures,
            key: KeyKind::Client,
            observe: false,
            shared: false,
            max_clients: 10_000,
        };
        Limit::with_clock("test", settings, FakeRelativeClock::default())
    }

    async fn take(limit: &Limit, ip: &str) -> Result<Cell, Exceeded> {
        limit.confirm(limit.take_client(ip.parse::<IpAddr>().unwrap())?).await
    }

    /// Begins to wait for a cell.
    async fn begin<'a>(
        limit: &'a Limit,
        ip: &'a str,
    ) -> Result<
        Result<Cell, Exceeded>,
        std::pin::Pin<Box<dyn Future<Output = Result<Cell, Exceeded>> + 'a>>,
    > {
        let mut taking: std::pin::Pin<Box<dyn Future<Output = _>>> = Box::pin(take(limit, ip));
        match timeout(Duration::ZERO, &mut taking).await {
            Ok(taken) => Ok(taken),
            Err(_) => Err(taking),
        }
    }

    fn nothing_is_left(limit: &Limit) {
        let undecided = limit.undecided.as_ref().unwrap();
        assert!(undecided.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
        assert_eq!(undecided.free.load(Ordering::Relaxed), MOST_WAITING);
    }

    #[tokio::test]
    async fn those_who_wait_are_served_in_turn_and_before_those_who_come() {
        let limit = limit(1);
        let held = take(&limit, "192.0.2.1").await.unwrap();
        let first = begin(&limit, "192.0.2.1").await.unwrap_err();
        let mut second = begin(&limit, "192.0.2.1").await.unwrap_err();
        drop(take(&limit, "192.0.2.2").await.unwrap());
        limit.give_back(held);
        let mut third = begin(&limit, "192.0.2.1").await.unwrap_err();
        let first = first.await.unwrap();
        for waiting in [&mut second, &mut third] {
            assert!(timeout(Duration::ZERO, waiting).await.is_err());
        }
        limit.give_back(first);
        let second = second.await.unwrap();
        drop(third);
        limit.give_back(second);
        limit.give_back(take(&limit, "192.0.2.1").await.unwrap());
        nothing_is_left(&limit);
    }

    /// Each guess needs a cell, so waiting gains none.
    #[tokio::test]
    async fn guesses_in_parallel_gain_nothing() {
        let limit = limit(5);
        let mut held = Vec::new();
        let mut waiting = Vec::new();
        for _ in 0..60 {
            match begin(&limit, "192.0.2.1").await {
                Ok(taken) => held.push(taken.unwrap()),
                Err(taking) => waiting.push(taking),
            }
        }
        assert_eq!((held.len(), waiting.len()), (5, 55));
        // One of the five was right.
        limit.give_back(held.remove(0));
        drop(held);
        let mut checked = 5;
        for taking in waiting {
            checked += usize::from(taking.await.is_ok());
        }
        assert_eq!(checked, 6);
        assert!(take(&limit, "192.0.2.1").await.is_err());
        nothing_is_left(&limit);
    }

    /// Filling the places of some keys leaves places for other keys.
    #[tokio::test]
    async fn no_key_takes_the_places_of_others() {
        let limit = limit(1);
        let ips: Vec<String> = (0..40).map(|index| format!("192.0.2.{index}")).collect();
        let (mut held, mut waiting) = (Vec::new(), Vec::new());
        let mut places = Vec::new();
        for ip in &ips {
            held.push(take(&limit, ip).await.unwrap());
            let before = waiting.len();
            while let Err(taking) = begin(&limit, ip).await {
                waiting.push(taking);
            }
            places.push(waiting.len() - before);
        }
        assert!(waiting.len() < MOST_WAITING, "{places:?}");
        assert!(places[0] < MOST_WAITING / SHARE + 1 && places[39] > 0, "{places:?}");
        drop((held, waiting));
        nothing_is_left(&limit);
    }
}
