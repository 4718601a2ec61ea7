//! What the requests of one route count.
//!
//! A route has few series and many requests. Its series are chains that only grow: a request walks the chain of its
//! method, a handful of entries, to its counter. No lock is taken but when the first request of a route, or the first of
//! a kind, adds an entry.

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

    /// Counts an exchange that has ended. `method` becomes one of those that RFC 9110 and RFC 5789 define, or `other`;
    /// `status` is `other` outside of 100 to 599; `seconds` is the time it took, `upstream_seconds` that to the head of
    /// the upstream's answer, if one was asked. Negative times count as zero.
    pub fn request(&self, method: &str, status: u16, seconds: f64, upstream_seconds: Option<f64>) {
        let series = self.series();
        let status = if (100..600).contains(&status) { status } else { OTHER_STATUS };
        series.requests[method_index(method)].count(status);
        series.duration.observe(seconds);
        if let Some(seconds) = upstream_seconds {
            series.upstream_duration.observe(seconds);
        }
    }

    /// Counts a decision about a caller. Both words are from the closed vocabularies of the reference.
    pub fn decision(&self, outcome: &'static str, reason: &'static str) {
        self.series().decisions.count((outcome, reason));
    }

    fn series(&self) -> &Series {
        self.series.get_or_init(|| {
            let mut routes = self.routes.lock();
            Arc::clone(routes.entry(Arc::clone(&self.name)).or_default())
        })
    }
}

/// The series of one route.
#[derive(Debug, Default)]
pub(super) struct Series {
    requests: [Chain<u16>; METHODS.len()],
    decisions: Chain<(&'static str, &'static str)>,
    duration: Histogram,
    upstream_duration: Histogram,
}

/// Writes the families of all `routes`, one after the other.
pub(super) fn encode(routes: &[(Arc<str>, Arc<Series>)], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Exchanges that have ended.";
    let mut metric = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for (route, series) in routes {
        for (method, chain) in METHODS.iter().zip(&series.requests) {
            for (status, count) in chain.entries() {
                let status = if status == OTHER_STATUS { "other".to_owned() } else { status.to_string() };
                let labels = [("route", &**route), ("method", method), ("status", &status)];
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
    }
    let help = "Decisions about callers.";
    let mut metric = encoder.encode_descriptor("auth_decisions", help, None, MetricType::Counter)?;
    for (route, series) in routes {
        for ((outcome, reason), count) in series.decisions.entries() {
            let labels = [("route", &**route), ("outcome", outcome), ("reason", reason)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    let help = "Time from the first byte of a request to the end of its answer.";
    let mut metric = encoder.encode_descriptor("request_duration_seconds", help, None, MetricType::Histogram)?;
    for (route, series) in routes {
        series.duration.encode(route, &mut metric)?;
    }
    let help = "Time from sending a request upstream to the head of the answer.";
    let mut metric = encoder.encode_descriptor("upstream_duration_seconds", help, None, MetricType::Histogram)?;
    for (route, series) in routes {
        series.upstream_duration.encode(route, &mut metric)?;
    }
    Ok(())
}

/// Counters by key, each made when its key is first seen, in a list that only grows.
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
            // When two threads meet at the end, one adds its key and the other finds it, its own or not.
            let link = chain.0.get_or_init(|| Box::new(Link { key, count: AtomicU64::new(0), next: Self::default() }));
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

/// A histogram without a lock: the library's takes one for each observation.
#[derive(Debug, Default)]
struct Histogram {
    /// One for each bound, and one for what is above all of them.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// 584 years of it fit.
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, seconds: f64) {
        // NaN becomes zero as well.
        let seconds = seconds.max(0.0);
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_sign_loss, reason = "it is not negative")]
        let nanoseconds = (seconds * 1e9).round() as u64;
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Writes nothing for a route that has no observation, such as one without an upstream.
    fn encode(&self, route: &str, metric: &mut MetricEncoder<'_>) -> fmt::Result {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = BOUNDS.iter().copied().chain([f64::INFINITY]).zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return Ok(());
        }
        let sum = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        metric.encode_family(&[("route", route)])?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// The place of a method in `METHODS`. Methods are case-sensitive (RFC 9110 §9.1).
fn method_index(method: &str) -> usize {
    METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1)
}

const METHODS: [&str; 10] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "other"];
const OTHER_STATUS: u16 = 0;
/// In seconds: fine where a gateway's own work is, coarse where an application's is.
const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn words_of_a_client_or_an_upstream_do_not_make_series() {
        let metrics = Metrics::new();
        let route = metrics.route("");
        for method in ["get", "BREW", "", "GET\n"] {
            route.request(method, 600, 0.0, None);
        }
        route.request("PATCH", 99, 0.0, None);
        let text = metrics.encode();
        assert!(text.contains(r#"requests_total{route="",method="other",status="other"} 4"#), "{text}");
        assert!(text.contains(r#"requests_total{route="",method="PATCH",status="other"} 1"#), "{text}");
        assert!(!text.contains("upstream_duration_seconds_count"));
    }

    #[test]
    fn observations_fall_into_their_buckets() {
        let histogram = Histogram::default();
        for seconds in [-1.0, f64::NAN, 0.0005, 0.000_500_1, 10.0, 10.1, f64::INFINITY] {
            histogram.observe(seconds);
        }
        let counts: Vec<u64> = histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn nothing_is_lost_when_threads_meet() {
        let metrics = Metrics::new();
        let route = metrics.route("a");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for number in 0..8_000_u16 {
                        route.request("GET", 200 + number % 8, 0.001, Some(0.001));
                        route.decision("allowed", ["public", "authorized"][usize::from(number % 2)]);
                    }
                });
            }
        });
        let series = route.series();
        assert_eq!(series.requests[0].entries().map(|(_, count)| count).collect::<Vec<_>>(), [8_000; 8]);
        assert_eq!(series.decisions.entries().map(|(_, count)| count).sum::<u64>(), 64_000);
        assert_eq!(series.duration.nanoseconds.load(Ordering::Relaxed), 64_000_000_000);
    }

    #[test]
    fn a_route_is_small_before_its_first_request() {
        assert!(size_of::<RouteMetrics>() <= 48);
        assert!(size_of::<Series>() <= 512);
    }
}
