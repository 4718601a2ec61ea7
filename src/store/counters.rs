//! Budgets of limits that replicas share, in PostgreSQL: GCRA in one statement, on the database's
//! clock.
//!
//! These rows have no order among writers, and need not survive a crash of the server: nothing waits
//! for other writers, or for the disk.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{PRUNED_AT_ONCE, Store, StoreError};
use crate::limit::{Budget, Held, Place, Returned, SharedStore, Unavailable, Verdict};

/// The budgets in a PostgreSQL store.
#[derive(Debug)]
pub struct SharedCounters {
    store: Store,
    /// The runtime that uses the store. Workers wait for its tasks.
    background: Handle,
    returning: TaskTracker,
    started: Instant,
    /// Milliseconds since `started` before which the store is not asked again; 0: it answers.
    away_until: AtomicU64,
}

impl SharedCounters {
    /// The budgets of this store, which must be one that replicas share. Call it on the background
    /// runtime.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            background: Handle::current(),
            returning: TaskTracker::new(),
            started: Instant::now(),
            away_until: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn ask(&self, budgets: Vec<Budget>) -> Result<Verdict, Unavailable> {
        let store = self.store.clone();
        let asking = async move {
            tokio::time::timeout(PATIENCE, store.take_cells(&budgets)).await.ok()?.ok()
        };
        // It ends even if the client does not wait for it: what it took is taken.
        let asked = self.returning.spawn_on(asking, &self.background).await.ok().flatten();
        let away_until = if asked.is_some() { 0 } else { self.now() + RETRY };
        self.away_until.store(away_until, Ordering::Relaxed);
        asked.ok_or(Unavailable)
    }
}

impl SharedStore for SharedCounters {
    fn take<'a>(
        &'a self,
        budgets: &'a [Budget],
    ) -> Pin<Box<dyn Future<Output = Result<Verdict, Unavailable>> + Send + 'a>> {
        Box::pin(async {
            if !self.store.answers() {
                return Err(Unavailable);
            }
            let away_until = self.away_until.load(Ordering::Relaxed);
            if away_until > 0 {
                let now = self.now();
                // One request in a while finds out whether the store answers again.
                let asks = now >= away_until
                    && self
                        .away_until
                        .compare_exchange(
                            away_until,
                            now + RETRY,
                            Ordering::Relaxed,
                            Ordering::Relaxed,
                        )
                        .is_ok();
                if !asks {
                    return Err(Unavailable);
                }
            }
            self.ask(budgets.to_vec()).await
        })
    }

    /// A cell that cannot be given back stays taken until it is replenished.
    fn give_back(&self, returned: Vec<Returned>, held: Option<Held>) {
        let store = self.store.clone();
        let returning = async move {
            let _ = tokio::time::timeout(PATIENCE, store.give_back_cells(&returned)).await;
            drop(held);
        };
        self.returning.spawn_on(returning, &self.background);
    }

    fn is_available(&self) -> bool {
        self.store.answers() && self.away_until.load(Ordering::Relaxed) == 0
    }

    fn place(&self) -> Place {
        self.store.live_replicas().known().unwrap_or(Place::ALONE)
    }
}

impl Store {
    /// Takes one cell of each budget, or none of them.
    async fn take_cells(&self, budgets: &[Budget]) -> Result<Verdict, StoreError> {
        let mut taken = Vec::with_capacity(budgets.len());
        for budget in budgets {
            let (interval, tolerance) = (signed(budget.interval), signed(budget.tolerance));
            let taking = sqlx::query_as(TAKE).bind(&budget.name).bind(interval).bind(tolerance);
            let rows: Vec<(i64, i64, i64)> = self.connections.apart(taking).await?;
            let (has_room, tat, now) = rows.into_iter().next().ok_or(sqlx::Error::RowNotFound)?;
            if has_room == 1 {
                taken.push(Returned { budget: budget.clone(), until: tat.cast_unsigned() });
                continue;
            }
            self.give_back_cells(&taken).await?;
            let wait = tat.saturating_sub(tolerance).saturating_sub(now).max(1);
            return Ok(Verdict::Exceeded(Duration::from_nanos(wait.cast_unsigned())));
        }
        Ok(Verdict::Taken(taken.into_iter().map(|cell| cell.until).collect()))
    }

    async fn give_back_cells(&self, returned: &[Returned]) -> Result<(), StoreError> {
        for Returned { budget, until } in returned {
            let giving = sqlx::query_as(GIVE_BACK).bind(&budget.name);
            let giving = giving.bind(signed(budget.interval)).bind(signed(*until));
            let _: Vec<(i64,)> = self.connections.apart(giving).await?;
        }
        Ok(())
    }

    /// Forgets budgets that are full again.
    pub async fn prune_counters(&self) -> Result<(), StoreError> {
        let most = PRUNED_AT_ONCE.cast_signed();
        // Writers do not wait for these rows, so no pause is needed.
        while self.connections.apart::<(i64,)>(sqlx::query_as(PRUNE).bind(most)).await? == [(most,)]
        {
        }
        Ok(())
    }
}

fn signed(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(i64::MAX)
}

/// How long a request waits for the store.
const PATIENCE: Duration = Duration::from_millis(250);

/// For how many milliseconds a store that did not answer is not asked again.
const RETRY: u64 = 500;

/// GCRA, as `governor` does it: a request passes if the theoretical arrival time (TAT) is at most
/// the tolerance ahead, and moves it by the interval. The inserted row is what the TAT becomes for a
/// full budget, so the time is that row's less the interval. A TAT that is farther ahead than a full
/// budget counts as exhausted: the limit was larger before.
const TAKE: &str = "INSERT INTO limit_counters (name, tat, has_room) \
    SELECT $1, clock.now + $2, 1 FROM (SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) * 1000 AS now, \
    set_config('synchronous_commit', 'off', true) AS mode) AS clock WHERE clock.mode = 'off' \
    ON CONFLICT (name) DO UPDATE SET \
    has_room = CASE WHEN limit_counters.tat - $3 <= excluded.tat - $2 THEN 1 ELSE 0 END, \
    tat = CASE WHEN limit_counters.tat - $3 <= excluded.tat - $2 THEN GREATEST(limit_counters.tat, excluded.tat - $2) + $2 \
    ELSE LEAST(limit_counters.tat, excluded.tat + $3) END \
    RETURNING has_room, tat, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) * 1000";

/// Gives back what is left of a cell: nothing of what has been replenished since.
const GIVE_BACK: &str = "UPDATE limit_counters SET tat = tat - GREATEST(0, LEAST($2, $3 - clock.now)) \
    FROM (SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) * 1000 AS now, \
    set_config('synchronous_commit', 'off', true) AS mode) AS clock WHERE name = $1 AND clock.mode = 'off' RETURNING tat";

/// The outer condition is for a row that was written meanwhile.
const PRUNE: &str = "WITH clock AS (SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) * 1000 AS now), \
    gone AS (DELETE FROM limit_counters USING clock WHERE tat < clock.now \
    AND name IN (SELECT name FROM limit_counters, clock WHERE tat < clock.now LIMIT $1) RETURNING 1) SELECT COUNT(*) FROM gone";

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    use super::*;
    use crate::limit::{Count, KeyKind, Limit, Settings};
    use crate::store::{Store, test_settings};

    const INTERVAL: u64 = 60_000_000_000;

    /// `None` on SQLite: these tests run with those of the store, on PostgreSQL.
    async fn store(folder: &tempfile::TempDir) -> Option<Store> {
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        store.is_shared().then_some(store)
    }

    fn budget(name: &str, requests: u32) -> Budget {
        let tolerance = INTERVAL * u64::from(requests - 1);
        Budget { name: name.into(), interval: INTERVAL, tolerance }
    }

    async fn take(store: &Store, budget: &Budget) -> Option<Returned> {
        match store.take_cells(std::slice::from_ref(budget)).await.unwrap() {
            Verdict::Taken(until) => Some(Returned { budget: budget.clone(), until: until[0] }),
            Verdict::Exceeded(_) => None,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        GiveBack,
        /// Half intervals: the real time that passes in the test is far less.
        Pass(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => Just(Step::Take),
            1 => Just(Step::GiveBack),
            2 => (1..6_u32).prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 1..40)
    }

    /// Time passes by moving the counter, since the database's clock cannot be set.
    async fn verdicts(store: &Store, name: &str, requests: u32, steps: &[Step]) {
        let settings = Settings {
            requests: NonZeroU32::new(requests).unwrap(),
            per: Duration::from_nanos(INTERVAL * u64::from(requests)),
            ipv6_prefix: 64,
            count: Count::All,
            key: KeyKind::Client,
            observe: false,
            shared: true,
            max_clients: 1000,
        };
        let clock = FakeRelativeClock::default();
        let limit = Limit::with_clock("test", settings, clock.clone());
        let (client, budget) = ("192.0.2.1".parse().unwrap(), budget(name, requests));
        let mut taken = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            match step {
                Step::Take => {
                    let (own, shared) = (limit.take_client(client), take(store, &budget).await);
                    assert_eq!(own.is_ok(), shared.is_some(), "step {index} of {steps:?}");
                    taken.extend(own.ok().zip(shared));
                }
                Step::GiveBack => {
                    let Some((own, shared)) = taken.pop() else { continue };
                    limit.give_back(own);
                    store.give_back_cells(&[shared]).await.unwrap();
                }
                Step::Pass(halves) => {
                    let passed = u64::from(*halves) * INTERVAL / 2;
                    clock.advance(Duration::from_nanos(passed));
                    let moving =
                        "UPDATE limit_counters SET tat = tat - $2 WHERE name = $1 RETURNING tat";
                    let moving = sqlx::query_as(moving).bind(name).bind(signed(passed));
                    let _: Vec<(i64,)> = store.connections.apart(moving).await.unwrap();
                    for (_, shared) in &mut taken {
                        shared.until -= passed;
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn verdicts_are_those_of_governor() {
        let folder = tempfile::tempdir().unwrap();
        let Some(store) = store(&folder).await else { return };
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        for case in 0..60 {
            let (requests, steps) = (1..6_u32, steps()).new_tree(&mut runner).unwrap().current();
            verdicts(&store, &format!("case {case}"), requests, &steps).await;
        }
        store.close().await;
    }

    #[tokio::test]
    async fn of_many_at_once_exactly_the_budget_passes() {
        let folder = tempfile::tempdir().unwrap();
        let Some(one) = store(&folder).await else { return };
        let other = store(&folder).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..60 {
            let store = if index % 2 == 0 { one.clone() } else { other.clone() };
            tasks.spawn(async move { take(&store, &budget("many", 20)).await.is_some() });
        }
        let passed = tasks.join_all().await.into_iter().filter(|passed| *passed).count();
        assert_eq!(passed, 20);
        // A budget that is exhausted keeps nothing of the one before it.
        let both = [budget("full", 2), budget("many", 20)];
        for _ in 0..3 {
            let verdict = one.take_cells(&both).await.unwrap();
            assert!(matches!(verdict, Verdict::Exceeded(wait) if wait <= Duration::from_mins(1)));
        }
        assert!(take(&one, &budget("full", 2)).await.is_some());
        one.prune_counters().await.unwrap();
        assert!(take(&one, &budget("many", 20)).await.is_none(), "only full budgets are forgotten");
        one.close().await;
        other.close().await;
    }
}
