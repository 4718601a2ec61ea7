//! All metrics of the gateway, and the content of `/metrics`.
//!
//! Labels come from the configuration (route, limit) and from closed vocabularies, never from a
//! request, so a client cannot create a series. The counters for a request are resolved once per
//! route (`route`) and need no lock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use self::format::Format;
use self::process::Process;
pub use self::route::RouteMetrics;
use self::route::Series;
pub use self::tokens::TokenCacheCounts;

mod certificates;
mod format;
mod keys;
mod limits;
mod process;
mod route;
mod tasks;
mod tokens;

/// The kinds of malformed heads, as the reference names them.
const MALFORMED: [&str; 8] =
    ["method", "target", "version", "header", "too_large", "proxy_header", "not_tls", "other"];

/// Why the gateway ends streams, as the reference names it.
pub const STREAM_ENDS: [&str; 7] =
    ["revoked", "expired", "max_age", "not_allowed", "route_gone", "operator", "draining"];

/// All metric families. Clones share the counters.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Families>);

#[derive(Debug, Default)]
struct Families {
    registry: Registry,
    /// The families without a prefix.
    process: Registry,
    routes: Arc<Routes>,
    dropped_lines: Arc<DroppedLines>,
    token_caches: Arc<tokens::Caches>,
    rate_limited: Family<[(&'static str, String); 1], Counter>,
    jwks_fetches: Family<[(&'static str, String); 2], Counter>,
    key_ages: Arc<keys::KeyAges>,
    limiter_modes: Arc<limits::LimiterModes>,
    certificates: Arc<certificates::Certificates>,
    tasks: Arc<tasks::Tasks>,
    reloads: Family<[(&'static str, &'static str); 1], Counter>,
    last_reload_success: Gauge,
    last_reload_timestamp: Gauge,
    connections: Gauge,
    connections_refused: Counter,
    malformed: Family<[(&'static str, &'static str); 1], Counter>,
    verified: Family<[(&'static str, &'static str); 2], Counter>,
    tunnels: Gauge,
    streams: Gauge,
    streams_ended: Family<[(&'static str, &'static str); 1], Counter>,
    revocations: Gauge,
    revocation_lag: OnceLock<Histogram>,
    stores: Family<[(&'static str, &'static str); 1], Gauge>,
    logins: Family<[(&'static str, &'static str); 1], Counter>,
    refreshes: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Families {
    /// Registers all families under their names.
    fn registered(&self) -> Registry {
        let mut registry = Registry::with_prefix("portcullis");
        // The library appends a full stop to each sentence, `_total` to counters and `_info` to
        // infos.
        registry.register_collector(Box::new(Arc::clone(&self.routes)));
        registry.register_collector(Box::new(Arc::clone(&self.dropped_lines)));
        registry.register_collector(Box::new(Arc::clone(&self.token_caches)));
        registry.register_collector(Box::new(Arc::clone(&self.key_ages)));
        registry.register_collector(Box::new(Arc::clone(&self.limiter_modes)));
        let help = "Whether a store that the gateway needs can be used";
        registry.register("store_up", help, self.stores.clone());
        registry.register_collector(Box::new(Arc::clone(&self.certificates)));
        registry.register_collector(Box::new(Arc::clone(&self.tasks)));
        registry.register(
            "rate_limited",
            "Requests that exceeded a limit, including one that only observes",
            self.rate_limited.clone(),
        );
        registry.register(
            "jwks_fetch",
            "Attempts to fetch the keys of an issuer, by outcome",
            self.jwks_fetches.clone(),
        );
        registry.register(
            "config_reloads",
            "Attempts to reload the configuration file, by outcome",
            self.reloads.clone(),
        );
        registry.register(
            "config_last_reload_success",
            "Whether the last attempt to load the configuration succeeded",
            self.last_reload_success.clone(),
        );
        registry.register(
            "config_last_reload_timestamp_seconds",
            "When the running configuration was loaded, in seconds since 1970",
            self.last_reload_timestamp.clone(),
        );
        self.register_connections(&mut registry);
        for kind in MALFORMED {
            // Starts at zero, so that an alert on its rate sees the first one.
            drop(self.malformed.get_or_create(&[("kind", kind)]));
        }
        registry.register(
            "requests_malformed",
            "Requests whose head could not be read, by what is wrong with it",
            self.malformed.clone(),
        );
        registry.register(
            "verify_requests",
            "Requests that other proxies asked about, by dialect and outcome",
            self.verified.clone(),
        );
        registry.register("revocations_active", "Revocations in force", self.revocations.clone());
        let help = "Logins at the built-in issuer, by outcome";
        registry.register("logins", help, self.logins.clone());
        self.register_stores(&mut registry);
        registry.register(
            "refresh",
            "Refreshes at the built-in issuer, by outcome",
            self.refreshes.clone(),
        );
        registry.register(
            "build",
            "The running version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry
    }

    fn register_stores(&self, registry: &mut Registry) {
        let lag = self.revocation_lag.get_or_init(|| Histogram::new(LAG_BUCKETS)).clone();
        registry.register_with_unit(
            "revocation_lag",
            "Time from a write that is acknowledged until this gateway has read it back",
            Unit::Seconds,
            lag,
        );
    }

    /// Registers what counts connections and streams.
    fn register_connections(&self, registry: &mut Registry) {
        registry.register("connections", "Open client connections", self.connections.clone());
        registry.register(
            "connections_refused",
            "Connections that were closed at once because of a connection limit",
            self.connections_refused.clone(),
        );
        registry.register("tunnels", "Open tunnels, such as WebSockets", self.tunnels.clone());
        registry.register(
            "streams",
            "Exchanges that run for long: tunnels, event streams, long downloads and uploads",
            self.streams.clone(),
        );
        for reason in STREAM_ENDS {
            drop(self.streams_ended.get_or_create(&[("reason", reason)]));
        }
        registry.register(
            "streams_ended",
            "Streams that the gateway ended, by reason",
            self.streams_ended.clone(),
        );
    }
}

impl Metrics {
    /// Creates all families at zero. The process has one instance.
    pub fn new() -> Self {
        let mut process = Registry::default();
        process.register_collector(Box::new(Process));
        let mut families = Families { process, ..Families::default() };
        families.registry = families.registered();
        for outcome in [RELOADED, REJECTED] {
            drop(families.reloads.get_or_create(&[("outcome", outcome)]));
        }
        Self(Arc::new(families))
    }

    /// The counters for the requests of the route with this name; the empty name is for requests
    /// that matched no route. This is cheap: before the first request, only the name is allocated.
    /// Equal names share their counters, so counters survive a reload.
    pub fn route(&self, route: &str) -> RouteMetrics {
        RouteMetrics::new(Arc::clone(&self.0.routes), route)
    }

    /// The counter of requests that exceeded the limit with this name. Get it once per limit, not
    /// per request.
    pub fn rate_limited(&self, limit: &str) -> Counter {
        self.0.rate_limited.get_or_create_owned(&[("limit", limit.to_owned())])
    }

    /// Exports whether a limit is counted by this process alone, while `is_alone` returns
    /// something.
    pub fn show_limiter_mode(
        &self,
        limit: &str,
        is_alone: impl Fn() -> Option<bool> + Send + Sync + 'static,
    ) {
        self.0.limiter_modes.show(limit, is_alone);
    }

    /// Records whether a store can be used. `store` is a word from the reference.
    pub fn store_up(&self, store: &'static str, is_up: bool) {
        self.0.stores.get_or_create(&[("store", store)]).set(is_up.into());
    }

    /// The counters for one worker's cache of verified tokens.
    pub fn token_cache(&self) -> Arc<TokenCacheCounts> {
        self.0.token_caches.add()
    }

    /// Counts a login. `outcome` is a word from the reference.
    pub fn login(&self, outcome: &'static str) {
        self.0.logins.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Counts a refresh. `outcome` is a word from the reference.
    pub fn refresh(&self, outcome: &'static str) {
        self.0.refreshes.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Counts attempts to fetch the keys of the issuer with this name. `outcome` is a word of a
    /// closed set.
    pub fn jwks_fetched(&self, issuer: &str, outcome: &str, attempts: u64) {
        self.0
            .jwks_fetches
            .get_or_create_owned(&[("issuer", issuer.to_owned()), ("outcome", outcome.to_owned())])
            .inc_by(attempts);
    }

    /// Exports the age in seconds of the keys of the issuer with this name, while `age` returns
    /// one.
    pub fn show_key_age(
        &self,
        issuer: &str,
        age: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) {
        self.0.key_ages.show(issuer, age);
    }

    /// Exports how long each of these certificates is still valid. `expiries`: name, and last
    /// second since 1970; `now`: the time, likewise.
    pub fn certificates(
        &self,
        expiries: impl IntoIterator<Item = (String, u64)>,
        now: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.0.certificates.replace(expiries, now);
    }

    /// Exports the number of tasks on this runtime. `thread`: the name of its thread.
    pub fn runtime(&self, thread: &str, runtime: &tokio::runtime::Runtime) {
        self.0.tasks.add(thread.to_owned(), runtime.metrics());
    }

    /// Records that the initial configuration was loaded.
    pub fn started(&self, unix_seconds: u64) {
        self.0.last_reload_success.set(1);
        self.0.last_reload_timestamp.set(unix_seconds.cast_signed());
    }

    /// Records a successful reload.
    pub fn reloaded(&self, unix_seconds: u64) {
        self.started(unix_seconds);
        self.0.reloads.get_or_create(&[("outcome", RELOADED)]).inc();
    }

    /// Records a rejected reload. The running configuration and its timestamp stay.
    pub fn reload_rejected(&self) {
        self.0.last_reload_success.set(0);
        self.0.reloads.get_or_create(&[("outcome", REJECTED)]).inc();
    }

    /// Counts a connection as open until the returned value is dropped.
    pub fn connection(&self) -> Open {
        Open::new(&self.0.connections)
    }

    /// Counts a connection that was closed at once.
    pub fn connection_refused(&self) {
        self.0.connections_refused.inc();
    }

    /// Counts a request whose head could not be read. `kind` is a word from the reference.
    pub fn malformed(&self, kind: &'static str) {
        self.0.malformed.get_or_create(&[("kind", kind)]).inc();
    }

    /// Counts a request that a proxy asked about. Both words are from the reference.
    pub fn verified(&self, dialect: &'static str, outcome: &'static str) {
        self.0.verified.get_or_create(&[("dialect", dialect), ("outcome", outcome)]).inc();
    }

    /// Counts a tunnel as open until the returned value is dropped.
    pub fn tunnel(&self) -> Open {
        Open::new(&self.0.tunnels)
    }

    /// Counts a stream as open until the returned value is dropped.
    pub fn stream(&self) -> Open {
        Open::new(&self.0.streams)
    }

    /// Counts a stream that the gateway ended. `reason` is a word from the reference.
    pub fn stream_ended(&self, reason: &'static str) {
        self.0.streams_ended.get_or_create(&[("reason", reason)]).inc();
    }

    /// Records the number of revocations.
    pub fn revocations(&self, active: usize) {
        self.0.revocations.set(i64::try_from(active).unwrap_or(i64::MAX));
    }

    /// Records how long a write took to come back from the store, in seconds.
    pub fn revocation_lag(&self, seconds: f64) {
        if let Some(lag) = self.0.revocation_lag.get() {
            lag.observe(seconds);
        }
    }

    /// Exports `dropped` as `log_lines_dropped_total`. Only the first call has an effect.
    pub fn show_dropped_lines(&self, dropped: Arc<AtomicU64>) {
        // Another counter could only belong to a second log, which does not exist.
        let _ = self.0.dropped_lines.0.set(dropped);
    }

    /// Encodes all series in a format.
    pub fn encode_as(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.encode(),
            Format::Prometheus => format::prometheus(&self.encode()),
        }
    }

    /// Encodes all series in OpenMetrics.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail, and the encoders have no other failure.
        let _ = text::encode_registry(&mut out, &self.0.registry)
            .and_then(|()| text::encode_registry(&mut out, &self.0.process))
            .and_then(|()| text::encode_eof(&mut out));
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The upper bounds in seconds for [`Metrics::revocation_lag`].
const LAG_BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Something that is counted while it is open.
#[derive(Debug)]
#[must_use = "it counts as open only as long as this lives"]
pub struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The series of all routes that have had a request, by name.
#[derive(Debug, Default)]
struct Routes(Mutex<BTreeMap<Arc<str>, Arc<Series>>>);

impl Routes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Series>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Routes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Requests continue in the meantime: the lock is held only while the list is copied.
        let routes: Vec<_> = self
            .lock()
            .iter()
            .map(|(name, series)| (Arc::clone(name), Arc::clone(series)))
            .collect();
        route::encode(&routes, &mut encoder)
    }
}

/// The counter of the log writer, once it exists.
#[derive(Debug, Default)]
struct DroppedLines(OnceLock<Arc<AtomicU64>>);

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let dropped = self.0.get().map_or(0, |dropped| dropped.load(Ordering::Relaxed));
        let help = "Log lines that were dropped because they were not read in time.";
        let encoder =
            encoder.encode_descriptor("log_lines_dropped", help, None, MetricType::Counter)?;
        prometheus_client::encoding::EncodeMetric::encode(&ConstCounter::new(dropped), encoder)
    }
}

const RELOADED: &str = "succeeded";
const REJECTED: &str = "rejected";

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(metrics: &Metrics, series: &str) -> Option<String> {
        let text = metrics.encode();
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned))
    }

    #[test]
    fn metric_names_are_the_documented_ones() {
        let metrics = Metrics::new();
        let route = metrics.route("reports");
        route.request(0, "GET", 200, 0.003, Some(0.002));
        route.decision(0, "allowed", "authorized");
        metrics.rate_limited("login").inc();
        metrics.connection_refused();
        metrics.reloaded(1_700_000_000);
        let _tunnel = metrics.tunnel();
        drop(metrics.connection());
        metrics.revocations(3);
        metrics.show_dropped_lines(Arc::new(AtomicU64::new(7)));
        let version = concat!("portcullis_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
        for (series, value) in [
            (r#"portcullis_requests_total{route="reports",method="GET",status="200"}"#, "1"),
            (r#"portcullis_request_duration_seconds_count{route="reports"}"#, "1"),
            (r#"portcullis_request_duration_seconds_sum{route="reports"}"#, "0.003"),
            (r#"portcullis_request_duration_seconds_bucket{le="0.005",route="reports"}"#, "1"),
            (r#"portcullis_request_duration_seconds_bucket{le="+Inf",route="reports"}"#, "1"),
            (r#"portcullis_upstream_duration_seconds_count{route="reports"}"#, "1"),
            (
                r#"portcullis_auth_decisions_total{route="reports",outcome="allowed",reason="authorized"}"#,
                "1",
            ),
            (r#"portcullis_rate_limited_total{limit="login"}"#, "1"),
            ("portcullis_config_last_reload_success", "1"),
            ("portcullis_config_last_reload_timestamp_seconds", "1700000000"),
            (r#"portcullis_config_reloads_total{outcome="succeeded"}"#, "1"),
            (r#"portcullis_config_reloads_total{outcome="rejected"}"#, "0"),
            ("portcullis_connections", "0"),
            ("portcullis_connections_refused_total", "1"),
            ("portcullis_tunnels", "1"),
            ("portcullis_revocations_active", "3"),
            ("portcullis_log_lines_dropped_total", "7"),
            (version, "1"),
        ] {
            assert_eq!(
                value_of(&metrics, series).as_deref(),
                Some(value),
                "{series}\n{}",
                metrics.encode()
            );
        }
        let text = metrics.encode();
        assert!(
            text.ends_with("# EOF\n") && !text.contains("_total_total") && !text.contains("..")
        );
    }

    #[test]
    fn a_rejected_reload_keeps_the_time_of_the_last_success() {
        let metrics = Metrics::new();
        metrics.started(100);
        metrics.reload_rejected();
        assert_eq!(
            value_of(&metrics, "portcullis_config_last_reload_success").as_deref(),
            Some("0")
        );
        assert_eq!(
            value_of(&metrics, "portcullis_config_last_reload_timestamp_seconds").as_deref(),
            Some("100")
        );
        assert_eq!(
            value_of(&metrics, r#"portcullis_config_reloads_total{outcome="rejected"}"#).as_deref(),
            Some("1")
        );
        metrics.reloaded(200);
        assert_eq!(
            value_of(&metrics, "portcullis_config_last_reload_success").as_deref(),
            Some("1")
        );
        assert_eq!(
            value_of(&metrics, "portcullis_config_last_reload_timestamp_seconds").as_deref(),
            Some("200")
        );
    }

    #[test]
    fn a_route_name_cannot_forge_a_series() {
        let metrics = Metrics::new();
        metrics.route("a\"} 1\nforged\\").request(0, "GET", 200, 0.0, None);
        let text = metrics.encode();
        assert!(
            text.contains(r#"{route="a\"} 1\nforged\\",method="GET",status="200"} 1"#),
            "{text}"
        );
    }

    #[test]
    fn routes_count_across_reloads() {
        let metrics = Metrics::new();
        let series = r#"portcullis_requests_total{route="a",method="GET",status="200"}"#;
        metrics.route("a").request(0, "GET", 200, 0.0, None);
        let idle = metrics.route("idle");
        metrics.route("a").request(0, "GET", 200, 0.0, None);
        assert_eq!(value_of(&metrics, series).as_deref(), Some("2"));
        assert!(!metrics.encode().contains("idle"), "a route without requests has no series");
        idle.request(0, "GET", 200, 0.0, None);
        assert!(metrics.encode().contains("idle"));
    }
}
