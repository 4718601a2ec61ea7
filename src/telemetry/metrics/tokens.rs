//! The counters of the token caches: one set per worker, added up on each scrape.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The counters of one cache. Only one thread writes them, so no lock is needed, and they share no
/// cache line with other threads' counters.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TokenCacheCounts {
    hits: AtomicU64,
    misses: AtomicU64,
    entries: AtomicU64,
}

impl TokenCacheCounts {
    /// Counts a token that was in the cache.
    pub fn hit(&self) {
        add_one(&self.hits);
    }

    /// Counts a token that was not in the cache and had to be verified.
    pub fn miss(&self) {
        add_one(&self.misses);
    }

    /// Records the number of cached tokens.
    pub fn holds(&self, entries: usize) {
        self.entries.store(entries as u64, Ordering::Relaxed);
    }
}

/// For the single writer: avoids the locked instruction of `fetch_add`.
fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The counters of all caches that have ever existed.
#[derive(Debug, Default)]
pub(super) struct Caches(Mutex<Vec<Arc<TokenCacheCounts>>>);

impl Caches {
    pub(super) fn add(&self) -> Arc<TokenCacheCounts> {
        let counts = Arc::<TokenCacheCounts>::default();
        self.lock().push(Arc::clone(&counts));
        counts
    }

    fn sum(&self, of: impl Fn(&TokenCacheCounts) -> &AtomicU64) -> u64 {
        self.lock().iter().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<TokenCacheCounts>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Caches {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Tokens whose signature had been checked before.";
        let metric =
            encoder.encode_descriptor("token_cache_hits", help, None, MetricType::Counter)?;
        ConstCounter::new(self.sum(|counts| &counts.hits)).encode(metric)?;
        let help = "Tokens whose signature had to be checked, valid or not.";
        let metric =
            encoder.encode_descriptor("token_cache_misses", help, None, MetricType::Counter)?;
        ConstCounter::new(self.sum(|counts| &counts.misses)).encode(metric)?;
        let help = "Verified tokens that are remembered.";
        let metric =
            encoder.encode_descriptor("token_cache_entries", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.sum(|counts| &counts.entries).cast_signed()).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    #[test]
    fn the_caches_of_all_workers_are_added_up() {
        let metrics = Metrics::new();
        assert!(metrics.encode().contains("portcullis_token_cache_hits_total 0\n"));
        let (one, other) = (metrics.token_cache(), metrics.token_cache());
        one.hit();
        other.hit();
        other.miss();
        one.holds(3);
        other.holds(4);
        let text = metrics.encode();
        for line in [
            "portcullis_token_cache_hits_total 2",
            "portcullis_token_cache_misses_total 1",
            "portcullis_token_cache_entries 7",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{text}");
        }
    }
}
