//! How long the served certificates are still valid, computed on each scrape so that it is always
//! current.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// The certificates of the current snapshot.
#[derive(Default)]
pub(super) struct Certificates(Mutex<Option<Served>>);

struct Served {
    /// The last second of each since 1970, by name.
    expiries: BTreeMap<String, u64>,
    /// The time in seconds since 1970.
    now: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Certificates {
    /// Replaces them. Of two with the same name, the one that expires first is shown.
    pub(super) fn replace(
        &self,
        served: impl IntoIterator<Item = (String, u64)>,
        now: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let mut expiries = BTreeMap::new();
        for (name, expires_at) in served {
            let first = expiries.entry(name).or_insert(expires_at);
            *first = expires_at.min(*first);
        }
        let served = Served { expiries, now: Box::new(now) };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(served);
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(served) = shown.as_ref().filter(|served| !served.expiries.is_empty()) else {
            return Ok(());
        };
        let help =
            "Seconds until a certificate of the public listener expires; negative afterwards.";
        let name = "tls_certificate_expiry_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let now = (served.now)().cast_signed();
        for (name, expires_at) in &served.expiries {
            ConstGauge::new(expires_at.cast_signed().saturating_sub(now))
                .encode(family.encode_family(&[("name", name.as_str())])?)?;
        }
        Ok(())
    }
}
