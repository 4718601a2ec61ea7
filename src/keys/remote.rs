//! Fetched JWK Sets: discovery, the schedule, and what happens to the keys while the issuer is
//! unavailable.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::discovery::{Metadata, NoMetadata};
use super::disk::Cache;
use super::{Background, LastGood, Place, Remote, Shared};
use crate::clock::Clock;
use crate::outbound::{FetchError, Outbound, Url};
use crate::telemetry::metrics::Metrics;
use crate::token::{Excerpt, KeyError, KeySet, LeftOut};

/// The delay before the first retry. It doubles after each further failure.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The maximum delay between two retries.
const MAX_BACK_OFF: Duration = Duration::from_mins(1);

/// Ages are whole seconds, so the true age may be up to this much more.
const WHOLE_SECOND: Duration = Duration::from_secs(1);

/// The longest time for which the clock is assumed to run undisturbed.
const MAX_CLOCK_TRUST: Duration = Duration::from_mins(1);

/// The maximum number of `kid`s in a log event.
const MAX_KIDS_LOGGED: usize = 10;

/// Why a new set is not available.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("{0}")]
    Metadata(NoMetadata),
    #[error("the response of {url} cannot be used: {fault}")]
    Set { url: Url, fault: KeyError },
}

impl From<NoMetadata> for Failure {
    fn from(error: NoMetadata) -> Self {
        match error {
            NoMetadata::Fetch(error) => Self::Fetch(error),
            unusable @ NoMetadata::Unusable { .. } => Self::Metadata(unusable),
        }
    }
}

impl Failure {
    /// The label of the metric, a word of a closed set.
    const fn label(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.label(),
            Self::Metadata(_) | Self::Set { .. } => "invalid",
        }
    }
}

/// Fetches the set on schedule and on request, as long as its keys are in use.
pub(super) async fn run(
    shared: Arc<Shared>,
    remote: Remote,
    outbound: Outbound,
    background: Background,
) {
    let Background { clock, metrics, .. } = background;
    let cache = Cache::new(&shared.settings, &remote);
    let mut fetcher = Fetcher {
        shared: &shared,
        remote: &remote,
        outbound,
        jwks: None,
        has_metadata: true,
        asked_between: None,
    };
    let (mut due, mut failures, mut cannot_write) = (Instant::now(), 0_u32, false);
    metrics.jwks_fetched(&shared.settings.name, SUCCEEDED, 0);
    loop {
        let too_old = shared.until_too_old(&remote, &clock);
        let is_scheduled = tokio::select! {
            () = shared.scheduled(due) => true,
            () = shared.wake.notified() => false,
            () = wait(too_old) => {
                shared.forget_if_too_old(&remote, &clock);
                continue;
            }
        };
        shared.begin();
        let (begun, fetched_at) = (Instant::now(), clock.unix_seconds());
        let Attempt { result, is_whole } = fetcher.fetch(is_scheduled).await;
        let kept = match result {
            Ok(Fetched { document, keys, left_out }) => {
                metrics.jwks_fetched(&shared.settings.name, SUCCEEDED, 1);
                failures = 0;
                if is_scheduled || is_whole {
                    due = begun + with_jitter(remote.refresh);
                }
                let good = LastGood { document, fetched_at };
                shared.take_fetched(good.clone(), keys, left_out, begun);
                Some(good)
            }
            Err(failure) => {
                failures += 1;
                let again = Instant::now() + with_jitter(back_off(failures));
                // An unscheduled fetch does not postpone a scheduled one.
                due = if is_scheduled { again } else { due.min(again) };
                shared.note_failure(&failure, due, &metrics);
                shared.forget_if_too_old(&remote, &clock);
                None
            }
        };
        shared.end(due);
        if let Some(good) = kept {
            save_to_disk(&shared, &cache, good, &mut cannot_write).await;
        }
    }
}

/// Discovers and fetches the key set of one issuer.
struct Fetcher<'a> {
    shared: &'a Shared,
    remote: &'a Remote,
    outbound: Outbound,
    /// The last `jwks_uri` that the metadata gave.
    jwks: Option<Url>,
    /// Whether the metadata could be read the last time.
    has_metadata: bool,
    /// When the metadata was last read by an unscheduled fetch.
    asked_between: Option<Instant>,
}

/// The result of one attempt.
struct Attempt {
    result: Result<Fetched, Failure>,
    /// Whether everything on the way to the set was read again.
    is_whole: bool,
}

/// A fetched document and the keys in it.
struct Fetched {
    document: Bytes,
    keys: KeySet,
    left_out: Vec<LeftOut>,
}

impl Fetcher<'_> {
    async fn fetch(&mut self, is_scheduled: bool) -> Attempt {
        match &self.remote.place {
            Place::Jwks(url) => Attempt { result: self.set(url).await, is_whole: true },
            Place::Discovery(issuer) => match self.jwks.clone() {
                Some(known) if !is_scheduled => self.fetch_unscheduled(issuer, known).await,
                known => self.fetch_with_discovery(issuer, known).await,
            },
        }
    }

    /// Reads the metadata, then fetches the set from there. While the metadata is unavailable, it
    /// uses the last known address.
    async fn fetch_with_discovery(&mut self, issuer: &Url, known: Option<Url>) -> Attempt {
        let (url, is_whole) = match (self.metadata(issuer).await, known) {
            (Ok(url), _) => (url, true),
            (Err(Failure::Fetch(_)), Some(known)) => (known, true),
            // Metadata that was fetched counts, even if it is invalid.
            (Err(failure), _) => return Attempt { result: Err(failure), is_whole: true },
        };
        let result = self.set(&url).await;
        self.jwks = Some(url);
        Attempt { result, is_whole }
    }

    /// An unscheduled fetch uses the last known address if the set there has changed. Otherwise the
    /// set may have moved, and the metadata is read again, at most once a minute.
    async fn fetch_unscheduled(&mut self, issuer: &Url, known: Url) -> Attempt {
        let result = self.set(&known).await;
        if result.as_ref().is_ok_and(|fetched| self.shared.is_news(&fetched.document)) {
            return Attempt { result, is_whole: false };
        }
        // Anyone can make up unknown key ids. They must not double the number of requests to the
        // issuer.
        if self.asked_between.is_some_and(|at| at.elapsed() < METADATA_RETRY_INTERVAL) {
            return Attempt { result, is_whole: false };
        }
        self.asked_between = Some(Instant::now());
        match self.metadata(issuer).await {
            Ok(url) if url != known => {
                let result = self.set(&url).await;
                self.jwks = Some(url);
                Attempt { result, is_whole: true }
            }
            read => Attempt { result, is_whole: read.is_ok() },
        }
    }

    /// Calls [`Fetcher::discover`]. Logs once that the metadata is unavailable while its set is
    /// not.
    async fn metadata(&mut self, issuer: &Url) -> Result<Url, Failure> {
        let found = self.discover(issuer).await;
        if let (Err(Failure::Fetch(cause)), true, Some(jwks)) =
            (&found, self.has_metadata, &self.jwks)
        {
            let issuer = self.shared.name();
            tracing::warn!(issuer, %cause, jwks_uri = %jwks, "the metadata cannot be fetched; keys are fetched from the last known jwks_uri");
        }
        self.has_metadata = found.is_ok();
        found
    }

    async fn set(&self, url: &Url) -> Result<Fetched, Failure> {
        let document = self.outbound.get(url).await?;
        match KeySet::from_jwks(&document, self.shared.settings.algorithms) {
            Ok((keys, left_out)) => Ok(Fetched { document, keys, left_out }),
            Err(fault) => Err(Failure::Set { url: url.clone(), fault }),
        }
    }

    /// The address of the set according to the issuer's metadata.
    async fn discover(&self, issuer: &Url) -> Result<Url, Failure> {
        let written = self.shared.settings.issuer.as_deref().unwrap_or_default();
        let found = Metadata::discover(&self.outbound, issuer, written).await?;
        let url = found.endpoint("jwks_uri", issuer.is_https(), self.remote.allow_http);
        Ok(url.map_err(|fault| NoMetadata::Unusable { url: found.url().clone(), fault })?)
    }
}

impl Shared {
    /// Waits for the scheduled time, as long as the running configuration uses the keys.
    async fn scheduled(&self, due: Instant) {
        tokio::time::sleep_until(due).await;
        if self.is_replaced.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Whether this set differs from the current one.
    fn is_news(&self, document: &Bytes) -> bool {
        self.lock().good.as_ref().is_none_or(|good| good.document != *document)
    }

    /// Installs a fetched set. Keys that are not in it are no longer used.
    fn take_fetched(&self, good: LastGood, keys: KeySet, left_out: Vec<LeftOut>, since: Instant) {
        let mut state = self.lock();
        self.log_left_out(&state.left_out, &left_out);
        let is_new = state.good.as_ref().is_none_or(|before| before.document != good.document);
        let names: Vec<String> = keys
            .keys()
            .iter()
            .take(MAX_KIDS_LOGGED)
            .map(|key| key.kid().map_or("(none)".to_owned(), |kid| Excerpt::new(kid).to_string()))
            .collect();
        let (issuer, count) = (self.name(), keys.len());
        if is_new {
            self.live.replace(keys);
        }
        // Log it only once it is true.
        match (is_new || state.failing.is_some(), count) {
            (false, _) => tracing::debug!(issuer, "keys were fetched; they are unchanged"),
            (true, 0) => tracing::error!(
                issuer,
                "the issuer's key set contains no usable key: none of its tokens can be verified"
            ),
            (true, _) => {
                tracing::info!(issuer, keys = count, kids = names.join(", "), "keys were fetched");
            }
        }
        state.good = Some(good);
        state.good_since = Some(since);
        state.left_out = left_out;
        state.failing = None;
        state.failures = 0;
    }

    /// Records that no set could be fetched. The current keys are kept.
    fn note_failure(&self, failure: &Failure, due: Instant, metrics: &Metrics) {
        metrics.jwks_fetched(&self.settings.name, failure.label(), 1);
        let cause = failure.to_string();
        let next = due.saturating_duration_since(Instant::now()).as_secs();
        let has_keys = !self.live.load().is_empty();
        tracing::warn!(
            issuer = self.name(),
            cause,
            has_keys,
            next_try_seconds = next,
            "keys cannot be fetched"
        );
        let mut state = self.lock();
        state.failing = Some(cause);
        state.failures = state.failures.saturating_add(1);
    }

    /// How long the current keys may still be used, capped because the clock may be set and the
    /// machine may be suspended.
    fn until_too_old(&self, remote: &Remote, clock: &Clock) -> Option<Duration> {
        let age = self.age(clock)?;
        Some(
            (remote.max_stale + WHOLE_SECOND)
                .saturating_sub(Duration::from_secs(age))
                .min(MAX_CLOCK_TRUST),
        )
    }

    /// Drops keys that have gone unconfirmed for too long.
    fn forget_if_too_old(&self, remote: &Remote, clock: &Clock) {
        let mut state = self.lock();
        let Some(age) = state.good.as_ref().map(|good| good.age(clock)) else { return };
        if !remote.is_too_old(age) {
            return;
        }
        state.good = None;
        state.good_since = None;
        self.live.replace(KeySet::default());
        tracing::error!(
            issuer = self.name(),
            age_seconds = age,
            "the keys are older than jwks_max_stale: none of the issuer's tokens can be verified"
        );
    }
}

/// Stores the set for the next start. Logs once if it cannot be written.
async fn save_to_disk(shared: &Shared, cache: &Cache, good: LastGood, cannot_write: &mut bool) {
    let for_write = cache.clone();
    let Ok(written) = tokio::task::spawn_blocking(move || for_write.save(&good)).await else {
        return;
    };
    if let (Err(error), false) = (&written, *cannot_write) {
        let file = cache.path().display();
        tracing::warn!(issuer = shared.name(), file = %file, cause = %error, "keys cannot be stored on disk: there will be none after a restart during an outage of the issuer");
    }
    *cannot_write = written.is_err();
}

async fn wait(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// The minimum time between two reads of the metadata by unscheduled fetches.
const METADATA_RETRY_INTERVAL: Duration = Duration::from_mins(1);

/// Doubles with each failure. An issuer that is unavailable may be asked less often than one that
/// responds, however short `jwks_refresh` is.
fn back_off(failures: u32) -> Duration {
    let doubled = BACK_OFF.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(MAX_BACK_OFF)
}

/// A random, slightly shorter time, so that gateways that were started together do not fetch at the
/// same time.
fn with_jitter(time: Duration) -> Duration {
    let mut byte = [0];
    // Without random numbers, use the full time.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    time.mul_f64(1.0 - f64::from(byte[0]) / 255.0 / 5.0)
}

/// The outcome of a successful fetch.
const SUCCEEDED: &str = "succeeded";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_to_one_minute() {
        let seconds: Vec<u64> = (1..=8).map(|failures| back_off(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u32::MAX).as_secs(), 60);
        for _ in 0..100 {
            let shortened = with_jitter(Duration::from_secs(100));
            assert!((80.0..=100.0).contains(&shortened.as_secs_f64()), "{shortened:?}");
        }
    }
}
