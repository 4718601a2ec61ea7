//! Ends streams when their time has come, and after a reload.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::Process;
use super::helper::start_helper_thread;

/// How often streams are looked for whose time has come.
const STREAMS_INTERVAL: Duration = Duration::from_millis(250);

impl Process {
    /// Ends streams when their time has come.
    pub(super) fn end_overdue_streams(&self) -> impl Future<Output = ()> + Send + use<> {
        let streams = Arc::clone(self.gateway.streams());
        async move {
            let mut ticks = tokio::time::interval(STREAMS_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                streams.end_overdue();
            }
        }
    }

    /// Ends the streams that the new configuration would not admit.
    pub(super) fn review_streams(&self) {
        let streams = Arc::clone(self.gateway.streams());
        if streams.open() > 0 && start_helper_thread(move || streams.review()).is_err() {
            // Without a thread, the admin listener waits for it.
            self.gateway.streams().review();
        }
    }
}
