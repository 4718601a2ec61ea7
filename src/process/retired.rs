//! What becomes of configurations that were replaced.

use std::sync::Arc;

use super::helper::start_helper_thread;
use crate::gateway::Snapshot;

/// Configurations that were replaced. Dropping a large one takes milliseconds, so a thread that
/// proxies must not do it when its request was the last to use one.
#[derive(Default)]
pub(super) struct Retired(Vec<Arc<Snapshot>>);

impl Retired {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, snapshot: Arc<Snapshot>) {
        self.0.push(snapshot);
    }

    /// Drops those that nothing else uses, and closes the idle connections of the others.
    pub(super) fn drop_unused(&mut self) {
        let unused: Vec<_> =
            self.0.extract_if(.., |snapshot| Arc::strong_count(snapshot) == 1).collect();
        if !unused.is_empty() {
            // Without a thread, the closure is dropped here, and the snapshots with it.
            let _ = start_helper_thread(move || drop(unused));
        }
        for upstream in self.0.iter().flat_map(|snapshot| &snapshot.upstreams) {
            upstream.sweep_all();
        }
    }
}
