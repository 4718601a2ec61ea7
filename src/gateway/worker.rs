//! What one worker keeps for itself. No other core touches it while requests are served.

use std::sync::{Mutex, PoisonError};

use super::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;
use crate::token::TokenCache;

/// One worker's own things. The lock is never contended: it is there because a connection's future has to be `Send`.
#[derive(Debug)]
#[repr(align(128))]
pub struct Worker {
    index: usize,
    tokens: Mutex<TokenCache>,
}

impl Worker {
    /// The worker of this index, from 0.
    pub fn new(index: usize, snapshot: &Snapshot, metrics: &Metrics) -> Self {
        let tokens = TokenCache::new(snapshot.token_cache.share(snapshot.start.workers), metrics.token_cache());
        Self { index, tokens: Mutex::new(tokens) }
    }

    /// Its index, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The tokens that it has verified.
    pub(super) fn tokens(&self) -> &Mutex<TokenCache> {
        &self.tokens
    }

    /// What is to be done from time to time: connections and tokens that have had their time are let go, and a reload's bounds are taken.
    pub(super) fn tidy(&self, snapshot: &Snapshot, now: u64) {
        for upstream in &snapshot.upstreams {
            upstream.sweep(self.index);
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.bound(snapshot.token_cache.share(snapshot.start.workers));
        tokens.tidy(&snapshot.issuers, now);
    }
}
