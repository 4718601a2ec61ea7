//! How long a write to the store takes to come back to this process, measured by a heartbeat that
//! takes the way of the revocations.
//!
//! A replica measures with its own clock only, so clocks that differ do not matter. The channel is
//! the same for what other replicas write.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::telemetry::metrics::Metrics;

/// The heartbeat of this process.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Beats>);

#[derive(Debug, Default)]
struct Beats {
    /// The last one that was acknowledged, and when, until it is heard.
    sent: Option<(i64, Instant)>,
    /// The last one that was heard. It may be heard before it is acknowledged.
    heard: i64,
}

impl Pulse {
    /// Notes that the write with this number was acknowledged.
    pub(super) fn sent(&self, seq: i64, metrics: &Metrics) {
        let mut beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if beats.heard == seq {
            metrics.revocation_lag(0.0);
        } else {
            beats.sent = Some((seq, Instant::now()));
        }
    }

    /// Notes that the write with this number was read back.
    pub(super) fn heard(&self, seq: i64, metrics: &Metrics) {
        let mut beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        beats.heard = seq;
        if let Some((_, at)) = beats.sent.take_if(|(sent, _)| *sent <= seq) {
            metrics.revocation_lag(at.elapsed().as_secs_f64());
        }
    }
}
