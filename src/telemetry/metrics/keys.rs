//! The age of issuers' keys, computed on each scrape so that it is always current.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// The age functions, by issuer.
#[derive(Default)]
pub(super) struct KeyAges(Mutex<BTreeMap<String, Age>>);

/// Returns the seconds since the keys of an issuer were fetched, or `None` while there are none.
struct Age(Box<dyn Fn() -> Option<u64> + Send + Sync>);

impl KeyAges {
    pub(super) fn show(&self, issuer: &str, age: impl Fn() -> Option<u64> + Send + Sync + 'static) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(issuer.to_owned(), Age(Box::new(age)));
    }
}

impl fmt::Debug for KeyAges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAges").finish_non_exhaustive()
    }
}

impl Collector for KeyAges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<(&String, u64)> =
            ages.iter().filter_map(|(issuer, age)| Some((issuer, (age.0)()?))).collect();
        if known.is_empty() {
            return Ok(());
        }
        let help = "Seconds since the keys of an issuer were fetched.";
        let mut family =
            encoder.encode_descriptor("jwks_age_seconds", help, None, MetricType::Gauge)?;
        for (issuer, age) in known {
            ConstGauge::new(age.cast_signed())
                .encode(family.encode_family(&[("issuer", issuer.as_str())])?)?;
        }
        Ok(())
    }
}
