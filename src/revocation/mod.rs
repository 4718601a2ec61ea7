//! The owner of all revocations: the list that the request pipeline reads, and the table in the
//! store behind it.
//!
//! There is one per process. A revocation is written to the store first and then to the list, so
//! that an acknowledged revocation survives a restart and no worker accepts the token any longer.
//! What other processes write (`portcullis revoke`, other replicas) is read from the store every
//! `[store] poll`, and a command waits for that ([`Presence`]). Without a store, only the list exists. No request ever
//! waits for anything here.

mod ahead;
mod list;
mod pulse;
mod retention;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, SettledTime};
use crate::redis::Redis;
use crate::store::{
    BEAT, Feed, LOGINS_ENDED, LOWERED, LogoutTokenRow, News, OlderThan, Presence, REVOCATIONS_PAGE,
    RevocationRow, Store, StoreError,
};
use crate::telemetry::metrics::Metrics;
use crate::token::{Issuers, Revocation, RevokedBy};

pub use self::list::RevocationList;
use self::pulse::Pulse;
pub use self::retention::Retention;
use self::rows::{read_scope, revocation};
pub use self::rows::{row, write_rows, written};

/// The owner of all revocations. The process has one.
#[derive(Debug)]
pub struct Revocations {
    list: Arc<RevocationList>,
    store: Option<Store>,
    clock: Clock,
    metrics: Metrics,
    /// The runtime that uses the store. Workers wait for its tasks.
    background: Handle,
    /// Writes in progress. They complete even if the caller stops waiting.
    writes: TaskTracker,
    /// The last row of the table that the list contains.
    seen: AtomicI64,
    pulse: Pulse,
    counted: Mutex<Counted>,
    /// The time by which received logout tokens are forgotten.
    settled: Mutex<SettledTime>,
    retention: RwLock<Retention>,
    /// Announces what is written to other gateways; set at most once.
    redis: OnceLock<Arc<Redis>>,
}

/// How many seconds gateways have run on the store, as this process last recorded it, and when that
/// was by [`Clock::running`]. It never exceeds the time that has really passed.
#[derive(Debug)]
struct Counted {
    seconds: i64,
    at: Duration,
}

impl Revocations {
    /// Loads the revocations from the store. Call it before the first request, and run its tasks,
    /// on the background runtime.
    ///
    /// # Errors
    /// The store cannot be read. Nothing may be served without its revocations.
    pub async fn load(
        store: Option<Store>,
        retention: Retention,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Arc<Self>, StoreError> {
        let seconds = match &store {
            Some(store) => {
                store.compare_clocks(&clock).await?;
                store.running_seconds().await?
            }
            None => 0,
        };
        let revocations = Self {
            list: Arc::new(RevocationList::new(clock.clone())),
            counted: Mutex::new(Counted { seconds, at: clock.running() }),
            store,
            clock,
            metrics,
            background: Handle::current(),
            writes: TaskTracker::new(),
            seen: AtomicI64::new(0),
            pulse: Pulse::default(),
            settled: Mutex::default(),
            retention: RwLock::new(retention),
            redis: OnceLock::new(),
        };
        revocations.catch_up().await?;
        Ok(Arc::new(revocations))
    }

    /// From now on, announces what is written to the other gateways, and reads what they announce
    /// at once. Call it before [`Revocations::follow`].
    pub fn announce_through(&self, redis: &Arc<Redis>) {
        if self.store.is_some() {
            self.redis.get_or_init(|| Arc::clone(redis)).will_listen();
        }
    }

    fn announce(&self) {
        if let Some(redis) = self.redis.get() {
            redis.announce();
        }
    }

    /// Waits for what another gateway announces.
    async fn announced(&self) {
        match self.redis.get() {
            Some(redis) => redis.announced().await,
            None => std::future::pending().await,
        }
    }

    /// The list that the request pipeline checks.
    pub fn list(&self) -> &Arc<RevocationList> {
        &self.list
    }

    /// Whether revocations survive the process.
    pub fn is_durable(&self) -> bool {
        self.store.is_some()
    }

    /// Revokes tokens. For a subject, this covers every token that was accepted here, including
    /// those whose `iat` is ahead of our clock. When this returns, the revocation is in the store
    /// and no worker accepts such a token. It can be called on any runtime.
    ///
    /// # Errors
    /// The store failed. As far as it can tell, the revocation is neither in the store nor in the
    /// list.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), StoreError> {
        self.revoke_all(vec![revocation]).await
    }

    /// Revokes all of them or none.
    ///
    /// # Errors
    /// Fails as [`Revocations::revoke`] does.
    pub async fn revoke_all(&self, revocations: Vec<Revocation>) -> Result<(), StoreError> {
        let (store, list, metrics, retention) =
            (self.store.clone(), Arc::clone(&self.list), self.metrics.clone(), self.retention());
        // A client that disconnects while it waits must not leave a revocation that is in the store
        // but not in the list.
        let write = async move {
            let mut wanted: Vec<_> =
                revocations.into_iter().map(|revocation| list.with_cutoff(revocation)).collect();
            // Repeat while tokens were accepted in the meantime that the cut-off does not cover.
            while !wanted.is_empty() {
                let kept = match &store {
                    Some(store) => write_rows(store, wanted, &retention).await?,
                    None => wanted,
                };
                wanted = add(&list, kept);
            }
            metrics.revocations(list.len());
            Ok(())
        };
        self.finish(write).await
    }

    /// Applies a logout token. Returns false, and changes nothing, if it was received before.
    /// Without a store, this function does not detect a repeated token.
    ///
    /// # Errors
    /// Fails as [`Revocations::revoke`] does.
    pub async fn revoke_once(
        &self,
        revocation: Revocation,
        token: LogoutTokenRow,
    ) -> Result<bool, StoreError> {
        let (store, list, metrics) =
            (self.store.clone(), Arc::clone(&self.list), self.metrics.clone());
        let write = async move {
            let revocation = list.with_cutoff(revocation);
            let at = match &store {
                Some(store) => match store.revoke_once(&token, &row(&revocation)).await? {
                    Some(at) => at.cast_unsigned(),
                    None => return Ok(false),
                },
                None => revocation.at,
            };
            apply_stored(&list, store.as_ref(), vec![Revocation { at, ..revocation }]).await?;
            metrics.revocations(list.len());
            Ok(true)
        };
        self.finish(write).await
    }

    /// Runs a write to its end, whether or not the caller still waits for it.
    async fn finish<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let task = self.writes.spawn_on(write, &self.background);
        let done = task.await.unwrap_or(Err(StoreError::Closed));
        if done.is_ok() {
            self.announce();
        }
        if let (Err(error), Some(store)) = (&done, &self.store) {
            store.record_failure(error);
        }
        done
    }

    /// Applies a revocation that the caller has written to the store together with other rows, as
    /// its [`row`].
    pub fn written(&self, revocation: Revocation) {
        self.list.add([revocation]);
        self.metrics.revocations(self.list.len());
        self.announce();
    }

    /// Extends the retention to what these issuers need, after a file was installed. It never
    /// becomes shorter: a later file may restore what this one removed, and tokens that were
    /// revoked in between must not become valid again.
    pub fn extend_retention(&self, issuers: &Issuers) {
        let mut retention = self.retention.write().unwrap_or_else(PoisonError::into_inner);
        *retention = std::mem::take(&mut *retention).max(Retention::for_issuers(issuers));
    }

    /// Keeps revocations of the built-in issuer for as long as one of its sessions can last, because
    /// those are in Redis and do not end in the same transaction.
    pub fn keep_for_sessions(&self, lifetime: Duration) {
        let mut retention = self.retention.write().unwrap_or_else(PoisonError::into_inner);
        retention.keep_for_sessions(lifetime);
    }

    /// Follows the store and removes obsolete revocations, until it is dropped. `presence` reports
    /// progress to commands that revoke.
    pub async fn follow(self: Arc<Self>, presence: Option<Arc<Presence>>) {
        Box::pin(self.follow_and_prune(presence, PRUNE_INTERVAL)).await;
    }

    async fn follow_and_prune(&self, presence: Option<Arc<Presence>>, prune_interval: Duration) {
        // Apart from each other: a write may wait for seconds until others have written, and much may be
        // pruned.
        tokio::join!(
            self.keep_reading(presence.as_deref()),
            self.keep_beating(),
            self.keep_present(),
            self.keep_pruning(prune_interval),
            self.keep_trying()
        );
    }

    async fn keep_reading(&self, presence: Option<&Presence>) {
        let Some(store) = &self.store else { return };
        let mut polls = interval(store.poll());
        let mut is_behind = false;
        loop {
            if let Some(presence) = presence {
                let seen = self.seen.load(Ordering::Relaxed);
                let report = presence.report_read(Feed::Revocations, seen);
                // Reading does not wait for a report: the next round repeats it.
                let _ = tokio::time::timeout(REPORT_TIMEOUT, report).await;
            }
            tokio::select! {
                _ = polls.tick() => {}
                () = self.announced() => {}
            }
            let read = self.catch_up().await;
            store.note_answer(read.is_ok());
            if let Err(error) = &read {
                store.record_failure(error);
            }
            self.metrics.store_up("database", store.problem().is_none());
            match read {
                Ok(()) if is_behind => {
                    is_behind = false;
                    tracing::info!(
                        active = self.list.len(),
                        "revocations can be read from the store again"
                    );
                }
                Err(error) if !is_behind => {
                    is_behind = true;
                    tracing::warn!(cause = %error, "revocations by other processes cannot be read; those known so far remain in force");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Writes a heartbeat among the revocations, to measure how long they take.
    async fn keep_beating(&self) {
        let Some(store) = self.store.as_ref().filter(|store| store.is_shared()) else { return };
        let mut beats = interval(BEAT_INTERVAL);
        loop {
            beats.tick().await;
            if let Err(error) = store.compare_clocks(&self.clock).await {
                store.record_failure(&error);
            }
            match store.beat(self.clock.unix_seconds().cast_signed()).await {
                Ok(Some(seq)) => {
                    self.pulse.sent(seq, &self.metrics);
                    self.announce();
                }
                Ok(None) => {}
                Err(error) => store.record_failure(&error),
            }
        }
    }

    /// Shows commands that this gateway runs, also while it cannot read: they say that it does not know
    /// their change.
    async fn keep_present(&self) {
        let Some(store) = self.store.as_ref().filter(|store| store.is_shared()) else { return };
        let mut ticks = interval(BEAT_INTERVAL);
        loop {
            ticks.tick().await;
            if let Err(error) = store.stay_present().await {
                tracing::debug!(cause = %error, "cannot show commands that this gateway runs");
            }
        }
    }

    async fn keep_pruning(&self, prune_interval: Duration) {
        let mut prunes = interval(prune_interval);
        loop {
            prunes.tick().await;
            if let (Err(error), Some(store)) = (self.prune().await, &self.store) {
                store.record_failure(&error);
            }
        }
    }

    /// Tries whether a store that was in trouble can be written again.
    async fn keep_trying(&self) {
        let Some(store) = &self.store else { return };
        let mut trials = interval(TRIAL_INTERVAL);
        loop {
            trials.tick().await;
            store.retry_write().await;
        }
    }

    /// Adds the rows to the list that are new in the store.
    pub(crate) async fn catch_up(&self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        loop {
            match store.news_after(self.seen.load(Ordering::Relaxed)).await? {
                News::Rows(rows) => {
                    self.take(store, &rows).await?;
                    if rows.len() < REVOCATIONS_PAGE {
                        return Ok(());
                    }
                }
                News::OtherHistory(history) => self.reconcile(store, &history).await?,
            }
        }
    }

    /// Reads everything again, and writes back what the store has lost: a standby that takes over,
    /// or a backup, may lack revocations that were acknowledged.
    async fn reconcile(&self, store: &Store, history: &str) -> Result<(), StoreError> {
        let mut stored = HashMap::new();
        self.seen.store(0, Ordering::Relaxed);
        loop {
            let rows = store.revocations_after(self.seen.load(Ordering::Relaxed)).await?;
            self.take(store, &rows).await?;
            let is_last_page = rows.len() < REVOCATIONS_PAGE;
            stored.extend(
                rows.into_iter().map(|row| ((row.kind, row.value, row.scope), row.revoked_at)),
            );
            if is_last_page {
                break;
            }
        }
        let mut lost = self.list.all();
        lost.retain(|revocation| {
            let RevocationRow { kind, value, scope, revoked_at, .. } = row(revocation);
            stored.get(&(kind, value, scope)).is_none_or(|&stored| stored < revoked_at)
        });
        if !lost.is_empty() {
            tracing::warn!(
                revocations = lost.len(),
                "the database had lost acknowledged revocations, as after a failover or a restore; they are written again, but sessions that were ended and accounts that were disabled since may be back: run portcullis user end-sessions --all, and disable those accounts again"
            );
            write_rows(store, lost, &self.retention()).await?;
        }
        store.accept_history(history);
        Ok(())
    }

    /// Adds rows of the store to the list.
    async fn take(&self, store: &Store, rows: &[RevocationRow]) -> Result<(), StoreError> {
        let Some(last) = rows.last() else { return Ok(()) };
        // A revocation by another process must cover what was accepted here; the raised cut-off
        // is written back for processes that start later. Our own revocations are known: a
        // token that was accepted after one was issued after it.
        let unknown = rows
            .iter()
            .filter(|row| ![LOWERED, BEAT, LOGINS_ENDED].contains(&row.kind.as_str()))
            .filter_map(revocation)
            .filter(|revocation| !self.list.covers(revocation))
            .collect();
        apply_stored(&self.list, Some(store), unknown).await?;
        self.lower(rows);
        self.seen.store(last.seq, Ordering::Relaxed);
        self.metrics.revocations(self.list.len());
        if let Some(beat) = rows
            .iter()
            .rfind(|row| row.kind == BEAT && Some(row.value.as_str()) == store.replica_id())
        {
            self.pulse.heard(beat.seq, &self.metrics);
        }
        Ok(())
    }

    /// Lowers cut-offs that were lowered in the store: earlier rows revoke what they covered. One
    /// that was written later stays.
    fn lower(&self, rows: &[RevocationRow]) {
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.kind == LOWERED) {
            let is_cut_off_again = rows[index..]
                .iter()
                .any(|later| later.kind == RevokedBy::Subject.as_str() && later.value == row.value);
            if let (Some(scope), false) = (read_scope(&row.scope), is_cut_off_again) {
                self.list.lower_cutoff(&scope, &row.value, row.revoked_at.cast_unsigned());
            }
        }
    }

    /// Removes entries that are old both by the time of day and by the time that has really passed.
    /// Otherwise a clock that is ahead for a minute would make revoked tokens valid again.
    async fn prune(&self) -> Result<(), StoreError> {
        let (now, retention) = (self.clock.unix_seconds(), self.retention());
        self.list.prune(|scope, at, known| {
            let kept = retention.seconds(scope);
            at.saturating_add(kept) < now && kept < known
        });
        self.metrics.revocations(self.list.len());
        let Some(store) = &self.store else { return Ok(()) };
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner).look(&self.clock);
        // What cannot be pruned does not keep the rest from it.
        let mut done = Ok(());
        if let Some(settled) = settled {
            done = done.and(store.prune_logout_tokens(settled.as_secs().cast_signed()).await);
        }
        if store.is_shared() {
            done = done.and(store.prune_counters().await);
        }
        let counted = self.count(store).await?;
        let before = |seconds: u64| {
            let seconds = seconds.cast_signed();
            OlderThan {
                revoked_at: now.cast_signed().saturating_sub(seconds),
                noted_at: counted - MAX_COUNTED_AT_ONCE.as_secs().cast_signed() - seconds,
            }
        };
        for (scope, &seconds) in &retention.by_scope {
            done = done.and(store.prune_revocations(Some(&written(scope)), before(seconds)).await);
        }
        done.and(store.prune_revocations(None, before(retention.longest)).await)
    }

    /// Adds the time since the last call, and returns how many seconds gateways have run on the
    /// store.
    async fn count(&self, store: &Store) -> Result<i64, StoreError> {
        let now = self.clock.running();
        let counted = {
            let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            // Rows that are written in the meantime are recorded with the earlier count.
            let passed = now.saturating_sub(counted.at).min(MAX_COUNTED_AT_ONCE);
            counted.seconds.saturating_add(passed.as_secs().cast_signed())
        };
        let seconds = store.record_running_seconds(counted).await?;
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Counted { seconds, at: now };
        Ok(seconds)
    }

    fn retention(&self) -> Retention {
        self.retention.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Adds revocations to the list. Returns those whose cut-off must be raised because of tokens that
/// were accepted in the meantime.
fn add(list: &RevocationList, revocations: Vec<Revocation>) -> Vec<Revocation> {
    list.add(revocations.iter().cloned());
    let raised =
        revocations.into_iter().map(|revocation| (revocation.at, list.with_cutoff(revocation)));
    raised.filter_map(|(at, raised)| (raised.at > at).then_some(raised)).collect()
}

/// Adds revocations from the store to the list. If a cut-off must be raised because of tokens that
/// were accepted in the meantime, it is also raised in the store.
async fn apply_stored(
    list: &RevocationList,
    store: Option<&Store>,
    revocations: Vec<Revocation>,
) -> Result<(), StoreError> {
    let mut higher = add(list, revocations);
    while !higher.is_empty() {
        if let Some(store) = store {
            store.revoke(&higher.iter().map(row).collect::<Vec<_>>()).await?;
        }
        higher = add(list, higher);
    }
    Ok(())
}

/// How often a replica writes its heartbeat.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a report of what was read may take.
const REPORT_TIMEOUT: Duration = Duration::from_millis(250);

/// How often obsolete entries are removed.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);

/// How often a store that is in trouble is tried.
const TRIAL_INTERVAL: Duration = Duration::from_secs(1);

/// Ticks whose first comes after one `period`.
fn interval(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The maximum time that is counted at once. A row may be recorded with a count of this age, and is
/// then kept for that much longer.
const MAX_COUNTED_AT_ONCE: Duration = Duration::from_hours(1);
