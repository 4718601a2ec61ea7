//! The owner of all revocations: the list that the request pipeline reads, and the table in the
//! store behind it.
//!
//! There is one per process. A revocation is written to the store first and then to the list, so
//! that an acknowledged revocation survives a restart and no worker accepts the token any longer.
//! What other processes write (`portcullis revoke`) is read from the store four times a second, and
//! a command waits for that ([`Presence`]). Without a store, only the list exists. No request ever
//! waits for anything here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::store::{
    LOWERED, LogoutTokenRow, News, Older, Presence, REVOCATIONS_PAGE, RevocationRow, Store,
    StoreError,
};
use crate::telemetry::metrics::Metrics;
use crate::token::{IssuerSettings, Issuers, Revocation, RevocationList, RevokedBy, Scope};

/// How long revocations are kept: as long as a token that they apply to could still be accepted,
/// according to the current file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Seconds, per issuer.
    by_scope: HashMap<Scope, u64>,
    /// Seconds, for revocations for every issuer, and for issuers that are not in the file now.
    longest: u64,
    /// The scope of the issuer whose sessions are in the store.
    built_in: Option<Scope>,
}

impl Retention {
    /// The retention that these issuers require.
    pub fn for_issuers(issuers: &Issuers) -> Self {
        let by_scope: HashMap<_, _> = issuers
            .iter()
            .map(|issuer| {
                (
                    Scope::for_issuer(issuer.settings()),
                    Self::for_issuer(issuer.settings()).as_secs(),
                )
            })
            .collect();
        let longest = by_scope.values().copied().max().unwrap_or(0).max(MIN_RETENTION.as_secs());
        let built_in = issuers
            .iter()
            .find(|issuer| issuer.settings().is_built_in)
            .map(|issuer| Scope::for_issuer(issuer.settings()));
        Self { by_scope, longest, built_in }
    }

    /// A token that is accepted now has an `iat` at most `leeway` in the future and an `exp` at
    /// most `max_token_lifetime` after that, and is accepted for another `leeway`.
    fn for_issuer(settings: &IssuerSettings) -> Duration {
        settings
            .max_token_lifetime
            .saturating_add(settings.leeway.saturating_mul(2))
            .saturating_add(Duration::from_secs(1))
    }

    /// The longer retention of the two, for each scope.
    fn max(mut self, other: Self) -> Self {
        for (scope, seconds) in other.by_scope {
            let kept = self.by_scope.entry(scope).or_default();
            *kept = seconds.max(*kept);
        }
        self.longest = self.longest.max(other.longest);
        self.built_in = other.built_in.or(self.built_in);
        self
    }

    /// How many seconds a revocation with this scope is kept.
    pub fn seconds(&self, scope: &Scope) -> u64 {
        self.by_scope.get(scope).copied().unwrap_or(self.longest)
    }

    /// Whether the revocation also ends a session of the built-in issuer, which may outlive the
    /// entry of the revocation.
    fn ends_session(&self, Revocation { scope, by, .. }: &Revocation) -> bool {
        *by == RevokedBy::Sid
            && self
                .built_in
                .as_ref()
                .is_some_and(|built_in| *scope == Scope::Every || scope == built_in)
    }
}

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
    counted: Mutex<Counted>,
    retention: RwLock<Retention>,
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
            Some(store) => store.running().await?,
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
            retention: RwLock::new(retention),
        };
        revocations.catch_up().await?;
        Ok(Arc::new(revocations))
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
                    Some(store) => keep(store, wanted, &retention).await?,
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
        if let (Err(error), Some(store)) = (&done, &self.store) {
            store.note_trouble(error);
        }
        done
    }

    /// Applies a revocation that the caller has written to the store together with other rows, as
    /// its [`row`].
    pub fn written(&self, revocation: Revocation) {
        self.list.add([revocation]);
        self.metrics.revocations(self.list.len());
    }

    /// Extends the retention to what these issuers need, after a file was installed. It never
    /// becomes shorter: a later file may restore what this one removed, and tokens that were
    /// revoked in between must not become valid again.
    pub fn extend_retention(&self, issuers: &Issuers) {
        let mut retention = self.retention.write().unwrap_or_else(PoisonError::into_inner);
        *retention = std::mem::take(&mut *retention).max(Retention::for_issuers(issuers));
    }

    /// Follows the store and removes obsolete revocations, until it is dropped. `presence` reports
    /// progress to commands that revoke.
    pub async fn follow(self: Arc<Self>, presence: Option<Arc<Presence>>) {
        self.follow_and_prune(presence, PRUNE_INTERVAL).await;
    }

    async fn follow_and_prune(&self, presence: Option<Arc<Presence>>, prune_interval: Duration) {
        // Apart from each other: a write may wait for seconds until others have written.
        tokio::join!(self.keep_reading(presence.as_deref()), self.keep_pruning(prune_interval));
    }

    async fn keep_reading(&self, presence: Option<&Presence>) {
        let Some(store) = &self.store else { return };
        let mut polls = interval(POLL_INTERVAL);
        let mut is_behind = false;
        loop {
            if let Some(presence) = presence {
                presence.knows(News::Revocations, self.seen.load(Ordering::Relaxed));
            }
            polls.tick().await;
            match self.catch_up().await {
                Ok(()) if is_behind => {
                    is_behind = false;
                    tracing::info!(
                        active = self.list.len(),
                        "revocations can be read from the store again"
                    );
                }
                Err(error) => {
                    store.note_trouble(&error);
                    if !is_behind {
                        is_behind = true;
                        tracing::warn!(cause = %error, "revocations by other processes cannot be read; those known so far remain in force");
                    }
                }
                Ok(()) => {}
            }
        }
    }

    /// Prunes, and tries whether a store that was in trouble can be written again.
    async fn keep_pruning(&self, prune_interval: Duration) {
        let (mut prunes, mut trials) = (interval(prune_interval), interval(TRIAL_INTERVAL));
        loop {
            tokio::select! {
                _ = prunes.tick() => {
                    if let (Err(error), Some(store)) = (self.prune().await, &self.store) {
                        store.note_trouble(&error);
                    }
                }
                _ = trials.tick() => {
                    if let Some(store) = &self.store {
                        store.look_again().await;
                    }
                }
            }
        }
    }

    /// Adds the rows to the list that are new in the store.
    pub(crate) async fn catch_up(&self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        loop {
            let rows = store.revocations_after(self.seen.load(Ordering::Relaxed)).await?;
            let (Some(last), is_last_page) =
                (rows.last().map(|row| row.seq), rows.len() < REVOCATIONS_PAGE)
            else {
                return Ok(());
            };
            // A revocation by another process must cover what was accepted here; the raised cut-off
            // is written back for processes that start later. Our own revocations are known: a
            // token that was accepted after one was issued after it.
            let unknown = rows
                .iter()
                .filter(|row| row.kind != LOWERED)
                .filter_map(revocation)
                .filter(|revocation| !self.list.covers(revocation))
                .collect();
            apply_stored(&self.list, Some(store), unknown).await?;
            self.lower(&rows);
            self.seen.store(last, Ordering::Relaxed);
            self.metrics.revocations(self.list.len());
            if is_last_page {
                return Ok(());
            }
        }
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
        store.prune_logout_tokens(now.cast_signed()).await?;
        let counted = self.count(store).await?;
        let before = |seconds: u64| {
            let seconds = seconds.cast_signed();
            Older {
                revoked_at: now.cast_signed().saturating_sub(seconds),
                noted_at: counted - MAX_COUNTED_AT_ONCE.as_secs().cast_signed() - seconds,
            }
        };
        for (scope, &seconds) in &retention.by_scope {
            store.prune_revocations(Some(&written(scope)), before(seconds)).await?;
        }
        store.prune_revocations(None, before(retention.longest)).await
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
        let seconds = store.note_running(counted).await?;
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

/// Writes revocations to the store only; processes with a list follow it. Sessions of the built-in
/// issuer end with them. Returns the revocations as they were written: a cut-off may be later than
/// requested ([`Store::revoke`]).
///
/// # Errors
/// The store failed; none of them was written.
pub async fn keep(
    store: &Store,
    revocations: Vec<Revocation>,
    retention: &Retention,
) -> Result<Vec<Revocation>, StoreError> {
    let rows: Vec<_> = revocations.iter().map(row).collect();
    let sessions: Vec<_> = revocations
        .iter()
        .filter(|revocation| retention.ends_session(revocation))
        .map(row)
        .collect();
    let written = store.revoke_sessions(&rows, &sessions).await?;
    Ok(revocations
        .into_iter()
        .zip(written)
        .map(|(revocation, at)| Revocation { at: at.cast_unsigned(), ..revocation })
        .collect())
}

/// A revocation as a row of the store.
pub fn row(revocation: &Revocation) -> RevocationRow {
    let Revocation { scope, by, value, at } = revocation;
    RevocationRow {
        kind: by.as_str().to_owned(),
        value: value.to_string(),
        scope: written(scope),
        revoked_at: at.cast_signed(),
        seq: 0,
    }
}

fn revocation(row: &RevocationRow) -> Option<Revocation> {
    let by = RevokedBy::ALL.into_iter().find(|by| by.as_str() == row.kind);
    let (Some(by), Some(scope)) = (by, read_scope(&row.scope)) else {
        tracing::error!(
            kind = row.kind,
            scope = row.scope,
            "a revocation in the store cannot be read"
        );
        return None;
    };
    Some(Revocation {
        scope,
        by,
        value: row.value.as_str().into(),
        at: row.revoked_at.cast_unsigned(),
    })
}

fn read_scope(written: &str) -> Option<Scope> {
    if written == "*" {
        return Some(Scope::Every);
    }
    written.strip_prefix('=').map(|iss| Scope::Issuer(iss.into()))
}

/// A scope as text in the table.
pub fn written(scope: &Scope) -> String {
    match scope {
        Scope::Every => "*".to_owned(),
        Scope::Issuer(iss) => format!("={iss}"),
    }
}

/// How often the store is polled for what other processes wrote. Commands wait for it.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

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

/// The minimum retention of revocations for every issuer: a section may be removed from the file
/// and put back.
const MIN_RETENTION: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::SecretBytes;
    use crate::store::StoreSettings;
    use crate::token::{Algorithm, Algorithms, ClaimPath, Issuer, KeySet};

    const NOW: u64 = 1_800_000_000;

    fn issuers(lifetime: Duration) -> Issuers {
        let algorithms = Algorithms::from(Algorithm::HS256);
        let settings = IssuerSettings {
            name: "corp".into(),
            issuer: Some("corp".to_owned()),
            audience: None,
            algorithms,
            roles: ClaimPath::new(["roles"]),
            subject: ClaimPath::new(["sub"]),
            leeway: Duration::from_secs(30),
            max_token_lifetime: lifetime,
            logout_audience: None,
            is_built_in: false,
        };
        let keys = KeySet::from_secret(b"a secret for tests", algorithms).unwrap();
        Issuers::new(vec![Arc::new(Issuer::new(settings, keys))]).unwrap()
    }

    async fn store(folder: &tempfile::TempDir) -> Store {
        let key = SecretBytes::new(b"a key for tests, long enough to be one".to_vec());
        Store::open(&StoreSettings { database: folder.path().join("test.db"), key, new_key: None })
            .await
            .unwrap()
    }

    async fn load(store: Option<Store>, clock: &Clock) -> Arc<Revocations> {
        let retention = Retention::for_issuers(&issuers(Duration::from_hours(1)));
        Revocations::load(store, retention, clock.clone(), Metrics::new()).await.unwrap()
    }

    fn sid(value: &str, scope: Scope, at: u64) -> Revocation {
        Revocation { scope, by: RevokedBy::Sid, value: value.into(), at }
    }

    fn corp() -> Scope {
        Scope::Issuer("corp".into())
    }

    /// Pruning waits for the one connection that writes; a revocation that another process has
    /// written does not wait for pruning.
    #[tokio::test]
    async fn revocations_are_read_while_pruning_waits() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (store(&folder).await, store(&folder).await);
        let revocations = load(Some(own.clone()), &Clock::system()).await;
        let _held = own.hold_writer().await;
        let written = sid("s", Scope::Every, 1);
        let known = async {
            other.revoke(&[row(&written)]).await.unwrap();
            while !revocations.list().covers(&written) {
                tokio::task::yield_now().await;
            }
        };
        // Pruning comes first, and gives up after ten seconds.
        tokio::select! {
            () = revocations.follow_and_prune(None, Duration::from_millis(1)) => unreachable!(),
            known = tokio::time::timeout(Duration::from_secs(5), known) => known.unwrap(),
        }
    }

    #[tokio::test]
    async fn what_was_revoked_survives_and_is_seen_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW);
        let here = load(Some(store(&folder).await), &clock).await;
        let there = load(Some(store(&folder).await), &clock).await;
        let all: Vec<_> =
            [Scope::Every, corp(), Scope::Issuer("".into()), Scope::Issuer("*".into())]
                .into_iter()
                .enumerate()
                .flat_map(|(index, scope)| {
                    RevokedBy::ALL.map(|by| Revocation {
                        scope: scope.clone(),
                        by,
                        value: "v".into(),
                        at: NOW + index as u64,
                    })
                })
                .collect();
        here.revoke_all(all.clone()).await.unwrap();
        assert_eq!((here.list().len(), there.list().len()), (16, 0));
        there.catch_up().await.unwrap();
        let later = load(Some(store(&folder).await), &clock).await;
        for list in [there.list(), later.list()] {
            assert_eq!(list.len(), 16);
            assert_eq!(
                (list.cutoff("corp", "v"), list.cutoff("", "v"), list.cutoff("*", "v")),
                (Some(NOW + 1), Some(NOW + 2), Some(NOW + 3))
            );
            assert_eq!(list.cutoff("another", "v"), Some(NOW));
        }
    }

    /// A token that was accepted before its `iat` is covered by the cut-off, whoever revokes, and
    /// after a restart.
    #[tokio::test]
    async fn a_token_from_the_future_is_revoked_with_its_subject() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW);
        let kept = store(&folder).await;
        let (here, there) =
            (load(Some(kept.clone()), &clock).await, load(Some(kept.clone()), &clock).await);
        let unkept = load(None, &clock).await;
        let issuers = issuers(Duration::from_hours(1));
        let token = |subject: &str, iat: u64| {
            let claims =
                serde_json::json!({ "iss": "corp", "sub": subject, "iat": iat, "exp": NOW + 600 });
            let claims = claims.as_object().unwrap().clone();
            issuers.assume("corp", claims, NOW).unwrap().as_if_verified().clone()
        };
        let subject = |value: &str| Revocation {
            scope: Scope::Every,
            by: RevokedBy::Subject,
            value: value.into(),
            at: NOW,
        };
        for revocations in [&here, &there, &unkept] {
            for name in ["operator", "command", "logout"] {
                revocations.list().note_if_early(&token(name, NOW + 20), NOW);
            }
        }
        for revocations in [&here, &unkept] {
            revocations.revoke(subject("operator")).await.unwrap();
            let logout = LogoutTokenRow { name: "t".into(), over_at: i64::MAX };
            assert!(revocations.revoke_once(subject("logout"), logout).await.unwrap());
            for name in ["operator", "logout"] {
                assert!(revocations.list().revoked_by(&token(name, NOW + 20)).is_some(), "{name}");
                assert!(
                    revocations.list().revoked_by(&token(name, NOW + 21)).is_none(),
                    "{name}: it is issued later"
                );
            }
        }
        keep(&kept, vec![subject("command")], &Retention::default()).await.unwrap();
        here.catch_up().await.unwrap();
        let later = load(Some(kept), &clock).await;
        for (name, revocations) in
            [("command", &here), ("command", &later), ("operator", &later), ("logout", &later)]
        {
            assert!(revocations.list().revoked_by(&token(name, NOW + 20)).is_some(), "{name}");
        }
        there.catch_up().await.unwrap();
        assert!(there.list().revoked_by(&token("operator", NOW + 20)).is_some());
    }

    /// A revocation made here is also read back from the store. It must not affect what was issued
    /// since.
    #[tokio::test]
    async fn what_is_issued_after_a_cut_off_lives_on() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW);
        let here = load(Some(store(&folder).await), &clock).await;
        let issuers = issuers(Duration::from_hours(1));
        let token = |iat: u64| {
            let claims =
                serde_json::json!({ "iss": "corp", "sub": "u", "iat": iat, "exp": NOW + 600 });
            let claims = claims.as_object().unwrap().clone();
            issuers.assume("corp", claims, NOW).unwrap().as_if_verified().clone()
        };
        let subject =
            Revocation { scope: Scope::Every, by: RevokedBy::Subject, value: "u".into(), at: NOW };
        here.list().note_if_early(&token(NOW + 5), NOW);
        here.revoke(subject).await.unwrap();
        let (before, after) = (token(NOW + 5), token(NOW + 6));
        here.list().note_if_early(&after, NOW);
        for _ in 0..2 {
            assert!(here.list().revoked_by(&before).is_some());
            assert!(here.list().revoked_by(&after).is_none());
            here.catch_up().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_failing_store_revokes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let revocations = load(Some(store.clone()), &Clock::fixed(NOW)).await;
        store.close().await;
        assert!(revocations.revoke(sid("s", Scope::Every, NOW)).await.is_err());
        assert!(revocations.list().is_empty());
    }

    #[tokio::test]
    async fn whoever_goes_away_leaves_nothing_half_done() {
        let folder = tempfile::tempdir().unwrap();
        let revocations = load(Some(store(&folder).await), &Clock::fixed(NOW)).await;
        let asking = revocations.revoke(sid("s", Scope::Every, NOW));
        // Polled once and dropped.
        let _ = tokio::time::timeout(Duration::ZERO, asking).await;
        revocations.writes.close();
        revocations.writes.wait().await;
        assert_eq!(revocations.list().len(), 1);
    }

    #[tokio::test]
    async fn many_pages_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let here = load(Some(store(&folder).await), &Clock::fixed(NOW)).await;
        let count = REVOCATIONS_PAGE * 2;
        here.revoke_all((0..count).map(|index| sid(&index.to_string(), corp(), NOW)).collect())
            .await
            .unwrap();
        assert_eq!(load(Some(store(&folder).await), &Clock::fixed(NOW)).await.list().len(), count);
    }

    #[tokio::test]
    async fn revocations_are_kept_as_long_as_a_token_could_be_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW);
        let revocations = load(Some(store(&folder).await), &clock).await;
        revocations
            .revoke_all(vec![
                sid("a", corp(), NOW),
                sid("b", Scope::Every, NOW),
                sid("c", Scope::Issuer("gone".into()), NOW),
            ])
            .await
            .unwrap();
        // One hour, and half a minute of leeway at both ends.
        clock.advance(Duration::from_mins(61));
        revocations.prune().await.unwrap();
        assert_eq!(revocations.list().len(), 3);
        // A longer lifetime that is configured later applies to existing entries.
        revocations.extend_retention(&issuers(Duration::from_hours(3)));
        // A shorter one does not: the lifetime may be raised again.
        revocations.extend_retention(&issuers(Duration::from_secs(1)));
        clock.advance(Duration::from_hours(2));
        revocations.prune().await.unwrap();
        assert_eq!(revocations.list().len(), 3);
        clock.advance(Duration::from_secs(2));
        revocations.prune().await.unwrap();
        assert_eq!(
            revocations.list().len(),
            2,
            "revocations for every issuer, and for one that is not in the file, stay for a day"
        );
        let pass = async |hours| {
            for _ in 0..hours {
                clock.advance(Duration::from_hours(1));
                revocations.prune().await.unwrap();
            }
        };
        pass(3).await;
        assert_eq!(load(Some(store(&folder).await), &clock).await.list().len(), 2);
        pass(24).await;
        assert!(revocations.list().is_empty());
        let later = load(Some(store(&folder).await), &clock).await;
        assert_eq!(later.list().len(), 1, "the last row stays, so that no number is used twice");
    }

    /// Whether a clock is ahead at the start or later, for a minute or for longer, the row and the
    /// entry stay until the time has really passed. Restarts do not add up to more.
    #[tokio::test]
    async fn a_clock_that_was_ahead_brings_no_revoked_token_back() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW);
        let revocations = load(Some(store(&folder).await), &clock).await;
        revocations.revoke_all(vec![sid("a", corp(), NOW), sid("b", corp(), NOW)]).await.unwrap();
        clock.set(NOW + 2 * 24 * 3600);
        revocations.prune().await.unwrap();
        assert_eq!(revocations.list().len(), 2);
        for _ in 0..20 {
            // Another process, whose own clock starts at zero.
            let ahead = Clock::fixed(NOW + 2 * 24 * 3600);
            let again = load(Some(store(&folder).await), &ahead).await;
            again.prune().await.unwrap();
            ahead.advance(Duration::from_mins(1));
            again.prune().await.unwrap();
            assert_eq!(again.list().len(), 2);
        }
        clock.set(NOW);
        let again = load(Some(store(&folder).await), &clock).await;
        assert!(again.list().covers(&sid("a", corp(), NOW)));
        // A gateway that is restarted often still removes entries.
        for hour in 1..=4 {
            let restarted = Clock::fixed(NOW + hour * 3600);
            let again = load(Some(store(&folder).await), &restarted).await;
            restarted.advance(Duration::from_hours(1));
            again.prune().await.unwrap();
        }
        let again = load(Some(store(&folder).await), &clock).await;
        assert_eq!(again.list().len(), 1);
    }

    #[tokio::test]
    async fn without_a_store_the_list_is_all_there_is() {
        let revocations = load(None, &Clock::fixed(NOW)).await;
        revocations.revoke(sid("a", corp(), NOW)).await.unwrap();
        assert!(revocations.list().len() == 1 && !revocations.is_durable());
        assert!(load(None, &Clock::fixed(NOW)).await.list().is_empty());
    }
}
