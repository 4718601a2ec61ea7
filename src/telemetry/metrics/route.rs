//! The metrics of one route's requests.
//!
//! A route has few series and many requests. Its series are append-only chains: a request follows
//! the chain of its method, a handful of entries, to its counter. A lock is taken only when the
//! first request of a route adds its name. Each worker counts in its own share, so that no two
//! cores write to the same cache line; a scrape adds the shares up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Routes;

/// Counts the requests of one route.
#[derive(Debug)]
pub struct RouteMetrics {
    routes: Arc<Routes>,
    name: Arc<str>,
    series: OnceLock<Arc<Series>>,
}

impl RouteMetrics {
    pub(super) fn new(routes: Arc<Routes>, name: &str) -> Self {
        Self { routes, name: name.into(), series: OnceLock::new() }
    }

    /// Counts a completed exchange. `method` becomes one of those that RFC 9110 and RFC 5789
    /// define, or `other`; `status` is `other` outside of 100 to 599; `seconds` is the total time,
    /// and `upstream_seconds` the time to the head of the upstream's response, if there was one.
    /// Negative times count as zero. `worker` is the index of the calling worker.
    pub fn request(
        &self,
        worker: usize,
        method: &str,
        status: u16,
        seconds: f64,
        upstream_seconds: Option<f64>,
    ) {
        let share = self.series().share(worker);
        let status = if (100..600).contains(&status) { status } else { OTHER_STATUS };
        share.requests[method_index(method)].count(status);
        share.duration.observe(seconds);
        if let Some(seconds) = upstream_seconds {
            share.upstream_duration.observe(seconds);
        }
    }

    /// Counts a decision about a caller. Both words are from the closed vocabularies of the
    /// reference.
    pub fn decision(&self, worker: usize, outcome: &'static str, reason: &'static str) {
        self.series().share(worker).decisions.count((outcome, reason));
    }

    fn series(&self) -> &Series {
        self.series.get_or_init(|| {
            let mut routes = self.routes.lock();
            Arc::clone(routes.entry(Arc::clone(&self.name)).or_default())
        })
    }
}

/// The series of one route, in shares. A share is created when its first worker counts something.
#[derive(Debug, Default)]
pub(super) struct Series {
    shares: [OnceLock<Box<Share>>; SHARES],
}

impl Series {
    fn share(&self, worker: usize) -> &Share {
        self.shares[worker % SHARES].get_or_init(Box::default)
    }

    fn shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.iter().filter_map(|share| share.get().map(|share| &**share))
    }

    /// The totals of all shares, by key.
    fn sum<K: Ord + Copy + PartialEq>(&self, of: impl Fn(&Share) -> &Chain<K>) -> BTreeMap<K, u64> {
        let mut sum = BTreeMap::new();
        for (key, count) in self.shares().flat_map(|share| of(share).entries()) {
            *sum.entry(key).or_default() += count;
        }
        sum
    }
}

/// What one worker counted. If there are more than [`SHARES`] workers, some share one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Share {
    requests: [Chain<u16>; METHODS.len()],
    decisions: Chain<(&'static str, &'static str)>,
    duration: Histogram,
    upstream_duration: Histogram,
}

/// Encodes the families of all `routes`, one after the other.
pub(super) fn encode(
    routes: &[(Arc<str>, Arc<Series>)],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let help = "Completed exchanges.";
    let mut metric = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for (route, series) in routes {
        for (index, method) in METHODS.iter().enumerate() {
            for (status, count) in series.sum(|share| &share.requests[index]) {
                let status =
                    if status == OTHER_STATUS { "other".to_owned() } else { status.to_string() };
                let labels = [("route", &**route), ("method", method), ("status", &status)];
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
    }
    let help = "Decisions about callers.";
    let mut metric =
        encoder.encode_descriptor("auth_decisions", help, None, MetricType::Counter)?;
    for (route, series) in routes {
        for ((outcome, reason), count) in series.sum(|share| &share.decisions) {
            let labels = [("route", &**route), ("outcome", outcome), ("reason", reason)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    let help = "Time from the first byte of a request to the end of its response.";
    let mut metric =
        encoder.encode_descriptor("request_duration_seconds", help, None, MetricType::Histogram)?;
    for (route, series) in routes {
        Histogram::encode(series.shares().map(|share| &share.duration), route, &mut metric)?;
    }
    let help = "Time from sending a request upstream to the head of the response.";
    let mut metric = encoder.encode_descriptor(
        "upstream_duration_seconds",
        help,
        None,
        MetricType::Histogram,
    )?;
    for (route, series) in routes {
        Histogram::encode(
            series.shares().map(|share| &share.upstream_duration),
            route,
            &mut metric,
        )?;
    }
    Ok(())
}

/// Counters by key, in an append-only list. Each is created when its key is first seen.
#[derive(Debug)]
struct Chain<K>(OnceLock<Box<Link<K>>>);

#[derive(Debug)]
struct Link<K> {
    key: K,
    count: AtomicU64,
    next: Chain<K>,
}

impl<K> Default for Chain<K> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<K: Copy + PartialEq> Chain<K> {
    fn count(&self, key: K) {
        let mut chain = self;
        loop {
            // If two threads meet at the end, one appends its key and the other finds that entry,
            // which may or may not have its own key.
            let link = chain.0.get_or_init(|| {
                Box::new(Link { key, count: AtomicU64::new(0), next: Self::default() })
            });
            if link.key == key {
                link.count.fetch_add(1, Ordering::Relaxed);
                return;
            }
            chain = &link.next;
        }
    }

    fn entries(&self) -> impl Iterator<Item = (K, u64)> {
        let links = std::iter::successors(self.0.get(), |link| link.next.0.get());
        links.map(|link| (link.key, link.count.load(Ordering::Relaxed)))
    }
}

/// A histogram without a lock; the library's takes one for each observation.
#[derive(Debug, Default)]
struct Histogram {
    /// One per bound, and one for values above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In nanoseconds, which overflow after 584 years.
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, seconds: f64) {
        // NaN also becomes zero.
        let seconds = seconds.max(0.0);
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_sign_loss, reason = "it is not negative")]
        let nanoseconds = (seconds * 1e9).round() as u64;
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Encodes several as one. Writes nothing for a route without observations, such as one without
    /// an upstream.
    fn encode<'a>(
        several: impl Iterator<Item = &'a Self>,
        route: &str,
        metric: &mut MetricEncoder<'_>,
    ) -> fmt::Result {
        let mut buckets = BOUNDS.map(|bound| (bound, 0)).to_vec();
        buckets.push((f64::INFINITY, 0));
        let mut nanoseconds = 0_u64;
        for histogram in several {
            for ((_, sum), bucket) in buckets.iter_mut().zip(&histogram.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
            nanoseconds = nanoseconds.wrapping_add(histogram.nanoseconds.load(Ordering::Relaxed));
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return Ok(());
        }
        let sum = nanoseconds as f64 / 1e9;
        metric
            .encode_family(&[("route", route)])?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// The number of shares of each route's series.
const SHARES: usize = 16;

/// The index of a method in `METHODS`. Methods are case-sensitive (RFC 9110 §9.1).
fn method_index(method: &str) -> usize {
    METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1)
}

const METHODS: [&str; 10] =
    ["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "other"];
const OTHER_STATUS: u16 = 0;
/// In seconds: fine in the range of a gateway's own work, coarse in that of an application.
const BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn clients_and_upstreams_cannot_create_series() {
        let metrics = Metrics::new();
        let route = metrics.route("");
        for method in ["get", "BREW", "", "GET\n"] {
            route.request(0, method, 600, 0.0, None);
        }
        route.request(1, "PATCH", 99, 0.0, None);
        let text = metrics.encode();
        assert!(
            text.contains(r#"requests_total{route="",method="other",status="other"} 4"#),
            "{text}"
        );
        assert!(
            text.contains(r#"requests_total{route="",method="PATCH",status="other"} 1"#),
            "{text}"
        );
        assert!(!text.contains("upstream_duration_seconds_count"));
    }

    #[test]
    fn observations_fall_into_their_buckets() {
        let histogram = Histogram::default();
        for seconds in [-1.0, f64::NAN, 0.0005, 0.000_500_1, 10.0, 10.1, f64::INFINITY] {
            histogram.observe(seconds);
        }
        let counts: Vec<u64> =
            histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn concurrent_observations_are_all_counted() {
        let metrics = Metrics::new();
        let route = metrics.route("a");
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let route = &route;
                scope.spawn(move || {
                    for number in 0..8_000_u16 {
                        // Half of them share.
                        route.request(worker / 2, "GET", 200 + number % 8, 0.001, Some(0.001));
                        route.decision(
                            worker / 2,
                            "allowed",
                            ["public", "authorized"][usize::from(number % 2)],
                        );
                    }
                });
            }
        });
        let series = route.series();
        assert_eq!(series.shares().count(), 4);
        assert_eq!(
            series.sum(|share| &share.requests[0]).into_values().collect::<Vec<_>>(),
            [8_000; 8]
        );
        assert_eq!(series.sum(|share| &share.decisions).into_values().sum::<u64>(), 64_000);
        let text = metrics.encode();
        for line in [
            "request_duration_seconds_sum{route=\"a\"} 64.0",
            "request_duration_seconds_count{route=\"a\"} 64000",
            "upstream_duration_seconds_bucket{le=\"0.001\",route=\"a\"} 64000",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn a_route_is_small_before_its_first_request() {
        assert!(size_of::<RouteMetrics>() <= 48);
        assert!(size_of::<Series>() + size_of::<Share>() <= 768);
    }
}
