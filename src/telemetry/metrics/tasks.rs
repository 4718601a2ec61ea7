//! How many tasks run on each thread that handles connections, read on each scrape.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::RuntimeMetrics;

/// The runtimes of the process, each with the name of its thread.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<Vec<(String, RuntimeMetrics)>>);

impl Tasks {
    pub(super) fn add(&self, thread: String, runtime: RuntimeMetrics) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((thread, runtime));
    }
}

impl Collector for Tasks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let runtimes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Tasks that have not ended, by thread.";
        let mut family = encoder.encode_descriptor("tasks", help, None, MetricType::Gauge)?;
        for (thread, runtime) in &*runtimes {
            ConstGauge::new(runtime.num_alive_tasks() as u64)
                .encode(family.encode_family(&[("thread", thread.as_str())])?)?;
        }
        Ok(())
    }
}
