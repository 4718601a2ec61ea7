//! The state of one worker. No other core touches it while requests are served.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};

use super::exchange::View;
use super::snapshot::Snapshot;
use super::token_memo::TokenMemo;
use crate::token::TokenCache;

/// The state of one worker. The locks are never contended: they exist only because a connection's
/// future must be `Send`.
#[derive(Debug)]
#[repr(align(128))]
pub struct Worker {
    index: usize,
    view: Mutex<Arc<View>>,
    tokens: Mutex<TokenCache<TokenMemo>>,
}

impl Worker {
    /// Creates the worker for this view.
    pub(super) fn new(view: View) -> Self {
        let (snapshot, metrics) = (&view.snapshot, &view.telemetry.metrics);
        let tokens = TokenCache::new(
            snapshot.token_cache.share(snapshot.start.workers),
            metrics.token_cache(),
        );
        Self { index: view.worker, view: Mutex::new(Arc::new(view)), tokens: Mutex::new(tokens) }
    }

    /// The index of the worker, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The tokens that this worker has verified.
    pub(super) fn tokens(&self) -> &Mutex<TokenCache<TokenMemo>> {
        &self.tokens
    }

    /// The view for a request that starts now.
    pub(super) fn view(&self, current: &ArcSwap<Snapshot>) -> Arc<View> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let current = current.load();
        if !Arc::ptr_eq(&current, &view.snapshot) {
            let (telemetry, worker) = (Arc::clone(&view.telemetry), view.worker);
            let (snapshot, streams) = (Guard::into_inner(current), Arc::clone(&view.streams));
            *view = Arc::new(View { snapshot, telemetry, streams, worker });
        }
        Arc::clone(&view)
    }

    /// Periodic maintenance: drops a replaced snapshot, and old connections and tokens, and applies
    /// the cache bounds after a reload.
    pub(super) fn tidy(&self, current: &ArcSwap<Snapshot>) {
        let view = self.view(current);
        let snapshot = &view.snapshot;
        for upstream in &snapshot.upstreams {
            upstream.sweep(self.index);
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.set_bounds(snapshot.token_cache.share(snapshot.start.workers));
        tokens.sweep(&snapshot.issuers, view.telemetry.clock.unix_seconds());
    }
}
