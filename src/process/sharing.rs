//! What several gateways share at high rates: joins Redis or the database, the limits and the
//! metrics.

use std::sync::Arc;

use crate::clock::Clock;
use crate::gateway::Snapshot;
use crate::gateway::snapshot::StartSettings;
use crate::limit::{Limit, SharedStore};
use crate::redis::Redis;
use crate::revocation::Revocations;
use crate::store::{SharedCounters, Store};
use crate::telemetry::metrics::Metrics;
use crate::token::Issuers;

use super::tasks::BackgroundTasks;

/// What several gateways share at high rates.
pub(super) struct Sharing {
    pub(super) redis: Option<Arc<Redis>>,
    revocations: Arc<Revocations>,
    /// Counts in the database if there is no Redis.
    counters: Option<Arc<SharedCounters>>,
    metrics: Metrics,
}

impl Sharing {
    /// Connects to Redis, if the file names one, and does not wait for it. Revocations are announced
    /// through it.
    pub(super) fn start(
        tasks: &mut BackgroundTasks,
        start: &StartSettings,
        store: Option<&Store>,
        revocations: &Arc<Revocations>,
        (clock, metrics): (&Clock, &Metrics),
    ) -> Self {
        let entered = tasks.runtime().enter();
        let redis = start.redis.as_ref();
        let redis = redis.and_then(|settings| Redis::start(settings, clock, metrics));
        let store = store.filter(|store| store.is_shared());
        if let (Some(redis), Some(store)) = (&redis, store) {
            redis.count_replicas(store.live_replicas());
        }
        let store = store.filter(|_| redis.is_none());
        let counters = store.map(|store| Arc::new(SharedCounters::new(store.clone())));
        drop(entered);
        if let Some(redis) = &redis {
            revocations.announce_through(redis);
            tasks.start(Arc::clone(redis).tend());
        }
        let (revocations, metrics) = (Arc::clone(revocations), metrics.clone());
        Self { redis, revocations, counters, metrics }
    }

    /// Begins with what a new configuration shares. Call it before the first request is decided by
    /// it.
    pub(super) fn begin(&self, snapshot: &Snapshot) {
        if let (Some(redis), Some(policy)) = (&self.redis, &snapshot.identity)
            && redis.holds_sessions()
        {
            self.revocations.keep_for_sessions(policy.session_lifetime);
        }
        self.share(&snapshot.counters);
        self.learn(&snapshot.issuers);
    }

    /// Keeps the revoked keys of these issuers up to date.
    fn learn(&self, issuers: &Issuers) {
        let Some(redis) = &self.redis else { return };
        for issuer in issuers.iter() {
            if let Some(keys) = issuer.revoked_keys() {
                redis.learn(&issuer.settings().name, keys);
            }
        }
    }

    /// Shares those of the limits that are to be shared.
    pub(super) fn share<'a>(&self, limits: impl IntoIterator<Item = &'a Arc<Limit>>) {
        let store: Arc<dyn SharedStore> = match (&self.redis, &self.counters) {
            (Some(redis), _) => Arc::<Redis>::clone(redis),
            (None, Some(counters)) => Arc::<SharedCounters>::clone(counters),
            (None, None) => return,
        };
        for limit in limits.into_iter().filter(|limit| limit.settings().shared) {
            self.redis.iter().for_each(|redis| redis.will_write());
            limit.share(&store);
            let shown = Arc::downgrade(limit);
            self.metrics.show_limiter_mode(limit.name(), move || {
                shown.upgrade().and_then(|limit| limit.is_alone())
            });
        }
    }
}
