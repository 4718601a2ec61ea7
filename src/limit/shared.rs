//! Limits that several gateways share: the budgets are in a store, which counts on its own clock.
//!
//! The counters of the process come first, with the whole budget: what exceeds it here exceeds it
//! everywhere, so a flood does not reach the store. A key that the store has refused is refused
//! here until it can pass again. While the store cannot be asked, each gateway grants its part of
//! the budget, from counters of their own: never the whole budget each, and never everything.

use std::fmt::{self, Write as _};
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{
    Cell, Count, Counters, Exceeded, Held, Key, Limit, NoCell, OF_BLOCKS, OF_GROUPS, Place, Share,
    Shares, emission_interval, of_level,
};

/// A store that counts for several gateways.
pub trait SharedStore: fmt::Debug + Send + Sync {
    /// Takes one cell of each budget, or none of them, by GCRA on the store's own clock. Answers or
    /// fails within a fraction of a second.
    fn take<'a>(
        &'a self,
        budgets: &'a [Budget],
    ) -> Pin<Box<dyn Future<Output = Result<Verdict, Unavailable>> + Send + 'a>>;

    /// Returns what is left of cells. Does not wait; `held` is dropped when that is done.
    fn give_back(&self, returned: Vec<Returned>, held: Option<Held>);

    /// Whether it can be asked at present.
    fn is_available(&self) -> bool;

    /// The place of this gateway among those that use it, as last known.
    fn place(&self) -> Place;
}

/// One budget in a store: the parameters of GCRA, and the name of its counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The name of its counter, in printable ASCII. It contains no account and no subject in clear.
    pub name: String,
    /// The time in which one cell is replenished, in nanoseconds.
    pub interval: u64,
    /// How far in the future the theoretical arrival time (TAT) may be for a request to pass, in
    /// nanoseconds.
    pub tolerance: u64,
}

/// What a store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A cell of each budget was taken. The TAT of each afterwards, in nanoseconds since 1970 on
    /// the store's clock.
    Taken(Vec<u64>),
    /// A budget is exhausted; nothing was taken. The time after which a request can pass.
    Exceeded(Duration),
}

/// The store did not answer, or cannot count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store of shared limits cannot be asked")]
pub struct Unavailable;

/// One cell of a budget that is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// The budget.
    pub budget: Budget,
    /// The TAT after the cell was taken, in nanoseconds since 1970. Not more of the cell is given
    /// back than is left of it at that time.
    pub until: u64,
}

/// What a cell has taken outside the counters of the process.
#[derive(Debug)]
pub(super) enum Elsewhere {
    /// From the store.
    Shared(Vec<Returned>),
    /// From this gateway's part of the budget.
    Part(Arc<Part>, Shares),
}

/// The shared part of a limit.
#[derive(Debug)]
pub(super) struct Sharing {
    store: Arc<dyn SharedStore>,
    refused: Refused,
    part: Mutex<Option<Arc<Part>>>,
}

/// This gateway's part of the budgets, while the store cannot be asked.
#[derive(Debug)]
pub(super) struct Part {
    /// Among how many the budgets are divided.
    granting: NonZeroU32,
    /// `None`: nothing is left for this gateway.
    counters: Option<Counters>,
}

impl Sharing {
    pub(super) fn new(store: Arc<dyn SharedStore>) -> Self {
        Self { store, refused: Refused::new(), part: Mutex::new(None) }
    }

    pub(super) fn is_alone(&self) -> bool {
        !self.store.is_available()
    }

    /// Refuses a key that the store has just refused.
    pub(super) fn check_refused(&self, limit: &Limit, key: &Key) -> Result<(), Exceeded> {
        match self.refused.remaining(key, limit.timer.elapsed()) {
            // The store may have lost its counters, or this gateway its store.
            Some(retry_after) if self.store.is_available() => Err(Exceeded { retry_after }),
            _ => Ok(()),
        }
    }

    /// See [`Limit::confirm`].
    pub(super) async fn confirm(&self, limit: &Limit, cell: Cell) -> Result<Cell, NoCell> {
        // Checked before asking the store: a request that is decided meanwhile then wakes the waiter.
        let can_wait = cell.held.as_ref().is_some_and(Held::has_others);
        let budgets = budgets(limit, &cell.shares);
        let exceeded = match self.store.take(&budgets).await {
            Ok(Verdict::Taken(until)) => {
                let taken = budgets.into_iter().zip(until);
                let taken = taken.map(|(budget, until)| Returned { budget, until }).collect();
                return Ok(with(cell, Elsewhere::Shared(taken)));
            }
            Ok(Verdict::Exceeded(retry_after)) => {
                if !can_wait {
                    self.note_refused(limit, &cell.shares.key.key, retry_after);
                }
                Exceeded { retry_after }
            }
            Err(Unavailable) => match self.take_part(limit, &cell.shares) {
                Ok(part) => return Ok(with(cell, part)),
                Err(exceeded) => exceeded,
            },
        };
        limit.own.give_back(&cell.shares);
        Err(NoCell { exceeded, wanted: can_wait.then_some(cell.shares) })
    }

    fn note_refused(&self, limit: &Limit, key: &Key, retry_after: Duration) {
        // A failure that is still being counted may be given back at any time.
        let known = match limit.settings.count {
            Count::All => retry_after,
            Count::Failures => retry_after.min(RECHECK),
        };
        self.refused.note(key, limit.timer.elapsed(), known);
    }

    pub(super) fn give_back(&self, elsewhere: Elsewhere, held: Option<Held>) {
        match elsewhere {
            Elsewhere::Shared(returned) => self.store.give_back(returned, held),
            Elsewhere::Part(part, shares) => {
                if let Some(counters) = &part.counters {
                    counters.give_back(&shares);
                }
            }
        }
    }

    pub(super) fn prune(&self) {
        let part = self.part.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(counters) = part.as_ref().and_then(|part| part.counters.as_ref()) {
            counters.prune();
        }
    }

    fn take_part(&self, limit: &Limit, shares: &Shares) -> Result<Elsewhere, Exceeded> {
        let part = self.current_part(limit);
        let Some(counters) = &part.counters else {
            return Err(Exceeded { retry_after: emission_interval(&limit.settings) });
        };
        let groups = shares.groups.iter().map(|share| (share.level, share.key));
        let taken = counters.take(shares.key.key, shares.client, groups)?;
        Ok(Elsewhere::Part(part, taken))
    }

    /// The counters of this gateway's part. They outlive an outage, so that a store that comes and
    /// goes does not give fresh budgets.
    fn current_part(&self, limit: &Limit) -> Arc<Part> {
        let place = self.store.place();
        let (granting, grants) = Part::of(limit, place);
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        match &*part {
            Some(part) if part.granting == granting && part.counters.is_some() == grants => {
                Arc::clone(part)
            }
            _ => Arc::clone(part.insert(Arc::new(Part::new(limit, place)))),
        }
    }
}

impl Part {
    /// Among how many gateways the budgets are divided, and whether this one gets a part. Of a budget
    /// with fewer requests than there are gateways, the first ones grant one request each, and the
    /// others none.
    fn of(limit: &Limit, place: Place) -> (NonZeroU32, bool) {
        let granting = place.gateways.min(limit.settings.requests);
        (granting, granting == place.gateways || place.rank < granting.get())
    }

    /// The rate is divided exactly, and the burst is rounded down: together, the gateways never grant
    /// more than the budget.
    fn new(limit: &Limit, place: Place) -> Self {
        let (granting, grants) = Self::of(limit, place);
        let interval = emission_interval(&limit.settings).saturating_mul(granting.get());
        let burst = limit.settings.requests.get() / granting;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let most = limit.settings.max_clients;
        let counters = grants.then(|| Counters::new(interval, burst, most, &limit.timer));
        Self { granting, counters }
    }
}

/// Keys that the store has refused, and until when. It remembers the latest in each place, so its
/// size is fixed; what it forgets is asked again.
struct Refused {
    /// Randomly seeded, so that nobody can aim at the place of another key.
    hasher: RandomState,
    /// The upper bits: part of the key's hash; the lower bits: milliseconds of the limit's timer.
    places: Box<[AtomicU64]>,
}

impl Refused {
    fn new() -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { hasher: RandomState::new(), places }
    }

    fn note(&self, key: &Key, now: Duration, remaining: Duration) {
        let until = millis(now).saturating_add(millis(remaining)).min(TIME);
        let (place, tag) = self.place(key);
        place.store(tag | until, Ordering::Relaxed);
    }

    fn remaining(&self, key: &Key, now: Duration) -> Option<Duration> {
        let (place, tag) = self.place(key);
        let noted = place.load(Ordering::Relaxed);
        let until = Duration::from_millis(noted & TIME);
        if noted & !TIME != tag {
            return None;
        }
        until.checked_sub(now).filter(|remaining| !remaining.is_zero())
    }

    fn place(&self, key: &Key) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(key);
        (&self.places[hash as usize % PLACES], hash & !TIME)
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").finish_non_exhaustive()
    }
}

fn with(cell: Cell, elsewhere: Elsewhere) -> Cell {
    Cell { elsewhere: Some(Box::new(elsewhere)), ..cell }
}

/// The budgets in the store that correspond to these shares: the groups, then the key. The store has
/// a place for each.
fn budgets(limit: &Limit, shares: &Shares) -> Vec<Budget> {
    shares.groups.iter().chain([&shares.key]).map(|share| budget(limit, share)).collect()
}

fn budget(limit: &Limit, share: &Share) -> Budget {
    let (interval, requests) =
        of_level(share.level, emission_interval(&limit.settings), limit.settings.requests);
    let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    let kind = match share.level {
        OF_BLOCKS => "block",
        OF_GROUPS => "group",
        _ => "key",
    };
    let word = match share.key {
        Key::V4(_) | Key::V6(_) => "ip",
        Key::Network(_) => "network",
        Key::Digest(_) => "digest",
        Key::Rest(_) => "rest",
    };
    let mut name = format!("{}:{kind}:{word}:", limit.name);
    for byte in share.key.bytes() {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    Budget { name, interval, tolerance: interval.saturating_mul(u64::from(requests.get() - 1)) }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long a key is refused without asking the store if it counts failures only.
const RECHECK: Duration = Duration::from_millis(100);

/// The number of refused keys that are remembered.
const PLACES: usize = 4096;

/// The bits of a place that hold a time: 34 years in milliseconds.
const TIME: u64 = (1 << 40) - 1;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, AtomicU32};

    use governor::clock::FakeRelativeClock;

    use super::super::{KeyKind, Settings};
    use super::*;

    /// A store in memory whose clock stands still.
    #[derive(Debug, Default)]
    struct InMemory {
        tats: Mutex<HashMap<String, u64>>,
        is_away: AtomicBool,
        asked: AtomicU32,
    }

    const NOW: u64 = 1_000_000_000_000;

    impl SharedStore for InMemory {
        fn take<'a>(
            &'a self,
            budgets: &'a [Budget],
        ) -> Pin<Box<dyn Future<Output = Result<Verdict, Unavailable>> + Send + 'a>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let verdict = if self.is_away.load(Ordering::Relaxed) {
                Err(Unavailable)
            } else {
                let mut tats = self.tats.lock().unwrap();
                let tat = |tats: &HashMap<_, _>, budget: &Budget| {
                    tats.get(&budget.name).copied().unwrap_or(NOW)
                };
                let wait = budgets.iter().map(|budget| tat(&tats, budget) - budget.tolerance);
                let wait = wait.max().unwrap().saturating_sub(NOW);
                Ok(if wait > 0 {
                    Verdict::Exceeded(Duration::from_nanos(wait))
                } else {
                    Verdict::Taken(
                        budgets
                            .iter()
                            .map(|budget| {
                                let until = tat(&tats, budget) + budget.interval;
                                tats.insert(budget.name.clone(), until);
                                until
                            })
                            .collect(),
                    )
                })
            };
            Box::pin(std::future::ready(verdict))
        }

        fn give_back(&self, returned: Vec<Returned>, _: Option<Held>) {
            let mut tats = self.tats.lock().unwrap();
            for Returned { budget, .. } in returned {
                *tats.get_mut(&budget.name).unwrap() -= budget.interval;
            }
        }

        fn is_available(&self) -> bool {
            !self.is_away.load(Ordering::Relaxed)
        }

        fn place(&self) -> Place {
            Place::ALONE
        }
    }

    /// A gateway of two that use the same store.
    #[derive(Debug)]
    struct OneOfTwo(Arc<InMemory>, u32);

    impl SharedStore for OneOfTwo {
        fn take<'a>(
            &'a self,
            budgets: &'a [Budget],
        ) -> Pin<Box<dyn Future<Output = Result<Verdict, Unavailable>> + Send + 'a>> {
            self.0.take(budgets)
        }

        fn give_back(&self, returned: Vec<Returned>, held: Option<Held>) {
            self.0.give_back(returned, held);
        }

        fn is_available(&self) -> bool {
            self.0.is_available()
        }

        fn place(&self) -> Place {
            Place { gateways: NonZeroU32::new(2).unwrap(), rank: self.1 }
        }
    }

    /// Two gateways with the same limit, on one store.
    fn gateways(requests: u32, count: Count) -> ([Limit; 2], Arc<InMemory>, FakeRelativeClock) {
        let settings = Settings {
            requests: NonZeroU32::new(requests).unwrap(),
            per: Duration::from_secs(u64::from(requests)),
            ipv6_prefix: 64,
            count,
            key: KeyKind::Client,
            observe: false,
            shared: true,
            max_clients: 10_000,
        };
        let (store, clock) = (Arc::new(InMemory::default()), FakeRelativeClock::default());
        let limits = [0, 1].map(|rank| {
            let shared: Arc<dyn SharedStore> = Arc::new(OneOfTwo(store.clone(), rank));
            let limit = Limit::with_clock("test", settings.clone(), clock.clone());
            limit.share(&shared);
            limit
        });
        (limits, store, clock)
    }

    async fn take(limit: &Limit, ip: &str) -> Result<Cell, Exceeded> {
        limit.confirm(limit.take_client(ip.parse().unwrap())?).await
    }

    async fn passed(limit: &Limit, ip: &str, requests: usize) -> usize {
        let mut passed = 0;
        for _ in 0..requests {
            passed += usize::from(take(limit, ip).await.is_ok());
        }
        passed
    }

    #[tokio::test]
    async fn one_budget_is_for_all_gateways() {
        let ([one, other], store, _) = gateways(5, Count::All);
        for ip in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!((passed(&one, ip, 3).await, passed(&other, ip, 10).await), (3, 2), "{ip}");
            assert_eq!(passed(&one, ip, 10).await, 0, "{ip}");
        }
        let names: Vec<String> = store.tats.lock().unwrap().keys().cloned().collect();
        assert!(names.contains(&"test:key:ip:c0000201".to_owned()), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("test:group:network:")), "{names:?}");
    }

    /// A flood costs the store one question for each time in which the key cannot pass anyway.
    #[tokio::test]
    async fn what_the_store_has_refused_is_not_asked_again() {
        let ([one, other], store, clock) = gateways(5, Count::All);
        assert_eq!(passed(&one, "192.0.2.1", 5).await, 5);
        assert_eq!(passed(&other, "192.0.2.1", 1000).await, 0);
        assert_eq!(store.asked.load(Ordering::Relaxed), 6);
        clock.advance(Duration::from_millis(999));
        assert_eq!(take(&other, "192.0.2.1").await.unwrap_err().retry_after_seconds(), 1);
        assert_eq!(store.asked.load(Ordering::Relaxed), 6);
        // The refused attempts have used up nothing here.
        clock.advance(Duration::from_millis(1));
        store.tats.lock().unwrap().clear();
        assert_eq!(passed(&other, "192.0.2.1", 10).await, 5);
    }

    #[tokio::test]
    async fn cells_of_requests_that_did_not_fail_are_given_back_everywhere() {
        let ([one, other], _, clock) = gateways(2, Count::Failures);
        let cells = [take(&one, "192.0.2.1").await, take(&one, "192.0.2.1").await];
        assert_eq!(passed(&other, "192.0.2.1", 3).await, 0, "both may be failures");
        for cell in cells {
            one.give_back(cell.unwrap());
        }
        clock.advance(RECHECK);
        assert_eq!(passed(&other, "192.0.2.1", 3).await, 2);
    }

    #[tokio::test]
    async fn without_the_store_each_gateway_grants_its_part() {
        let ([one, other], store, clock) = gateways(5, Count::All);
        assert_eq!(passed(&one, "192.0.2.1", 10).await, 5);
        assert_eq!(passed(&other, "192.0.2.1", 10).await, 0);
        store.is_away.store(true, Ordering::Relaxed);
        assert_eq!(one.is_alone(), Some(true));
        for ip in ["192.0.2.2", "192.0.2.3"] {
            assert_eq!((passed(&one, ip, 9).await, passed(&other, ip, 9).await), (2, 2), "{ip}");
        }
        assert_eq!(passed(&other, "192.0.2.1", 10).await, 2, "its refusal may be out of date");
        clock.advance(Duration::from_secs(2));
        assert_eq!(
            (passed(&one, "192.0.2.2", 9).await, passed(&one, "192.0.2.4", 9).await),
            (1, 2)
        );
        // A store that comes and goes does not give fresh budgets.
        store.is_away.store(false, Ordering::Relaxed);
        assert_eq!(passed(&one, "192.0.2.5", 1).await, 1);
        store.is_away.store(true, Ordering::Relaxed);
        assert_eq!(passed(&one, "192.0.2.2", 9).await, 0);
    }

    /// The counters of a part begin later than the limit does.
    #[tokio::test]
    async fn a_part_gets_back_what_did_not_fail_and_keeps_what_did() {
        let ([one, _], store, clock) = gateways(5, Count::Failures);
        clock.advance(Duration::from_hours(1));
        store.is_away.store(true, Ordering::Relaxed);
        for _ in 0..20 {
            one.give_back(take(&one, "192.0.2.1").await.unwrap());
        }
        assert_eq!(passed(&one, "192.0.2.1", 9).await, 2);
        clock.advance(Duration::from_secs(1));
        one.prune();
        assert_eq!(passed(&one, "192.0.2.1", 9).await, 0, "what was used up is not forgotten");
    }

    /// A request waits for the undecided requests of this gateway, with the store and without it.
    #[tokio::test]
    async fn what_undecided_requests_hold_is_waited_for() {
        let ([one, other], store, _) = gateways(2, Count::Failures);
        for (is_away, ip) in [(false, "192.0.2.1"), (true, "192.0.2.2")] {
            store.is_away.store(is_away, Ordering::Relaxed);
            let first = take(&one, ip).await.unwrap();
            if !is_away {
                let _failed = take(&other, ip).await.unwrap();
            }
            let mut next = Box::pin(take(&one, ip));
            assert!(tokio::time::timeout(Duration::ZERO, &mut next).await.is_err(), "{ip}");
            one.give_back(first);
            let next = next.await.unwrap();
            let mut last = Box::pin(take(&one, ip));
            assert!(tokio::time::timeout(Duration::ZERO, &mut last).await.is_err(), "{ip}");
            drop(next);
            last.await.unwrap_err();
            take(&one, ip).await.unwrap_err();
        }
    }

    /// Counters that begin anew would grant a second budget.
    #[tokio::test]
    async fn another_rank_gives_no_fresh_budget() {
        let ([one, _], store, _) = gateways(8, Count::All);
        let place = |rank| Place { gateways: NonZeroU32::new(2).unwrap(), rank };
        store.is_away.store(true, Ordering::Relaxed);
        assert_eq!(passed(&one, "192.0.2.1", 9).await, 4);
        assert_eq!(Part::of(&one, place(0)), Part::of(&one, place(1)));
    }

    /// One request for two gateways: the first one grants it, at the whole rate.
    #[tokio::test]
    async fn a_small_budget_is_granted_by_the_first_gateways() {
        let ([one, other], store, clock) = gateways(1, Count::All);
        store.is_away.store(true, Ordering::Relaxed);
        for ip in ["192.0.2.1", "192.0.2.2"] {
            assert_eq!((passed(&one, ip, 9).await, passed(&other, ip, 9).await), (1, 0), "{ip}");
        }
        let refused = take(&other, "192.0.2.1").await.unwrap_err();
        assert_eq!(refused.retry_after_seconds(), 1);
        clock.advance(Duration::from_millis(999));
        assert_eq!(passed(&one, "192.0.2.1", 9).await, 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(passed(&one, "192.0.2.1", 9).await, 1);
        store.is_away.store(false, Ordering::Relaxed);
        assert_eq!(passed(&other, "192.0.2.3", 9).await, 1, "the store counts again");
    }

    /// Never more than the budget, whatever the number of gateways.
    #[test]
    fn the_parts_of_all_gateways_are_not_more_than_the_budget() {
        for requests in [1, 2, 3, 5, 8, 100] {
            let ([limit, _], ..) = gateways(requests, Count::All);
            for count in [1, 2, 3, 4, 7, 20] {
                let gateways = NonZeroU32::new(count).unwrap();
                let key = Key::V4([192, 0, 2, 1]);
                let granted: usize = (0..count)
                    .filter_map(|rank| Part::new(&limit, Place { gateways, rank }).counters)
                    .map(|part| (0..200).take_while(|_| part.take(key, key, []).is_ok()).count())
                    .sum();
                let what = format!("{requests} requests, {count} gateways: {granted}");
                assert!(granted <= requests as usize, "{what}");
                assert!(granted + count as usize > requests as usize, "{what}");
            }
        }
    }
}
