//! How shared limits are counted, computed on each scrape so that it is always current.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// The mode functions, by limit.
#[derive(Default)]
pub(super) struct LimiterModes(Mutex<BTreeMap<String, Mode>>);

/// Returns whether this process counts a limit alone, or `None` if the limit is not shared.
struct Mode(Box<dyn Fn() -> Option<bool> + Send + Sync>);

impl LimiterModes {
    pub(super) fn show(
        &self,
        limit: &str,
        is_alone: impl Fn() -> Option<bool> + Send + Sync + 'static,
    ) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(limit.to_owned(), Mode(Box::new(is_alone)));
    }
}

impl fmt::Debug for LimiterModes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimiterModes").finish_non_exhaustive()
    }
}

impl Collector for LimiterModes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let modes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<(&String, bool)> =
            modes.iter().filter_map(|(limit, mode)| Some((limit, (mode.0)()?))).collect();
        if known.is_empty() {
            return Ok(());
        }
        let help = "Whether this process counts a shared limit alone, with its part of the budget.";
        let mut family =
            encoder.encode_descriptor("limiter_mode", help, None, MetricType::Gauge)?;
        for (limit, is_alone) in known {
            ConstGauge::new(i64::from(is_alone))
                .encode(family.encode_family(&[("limit", limit.as_str())])?)?;
        }
        Ok(())
    }
}
