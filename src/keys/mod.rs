//! Keeps issuers' keys up to date: where they come from, when they are read or fetched again, and
//! what applies while they cannot be.
//!
//! Each issuer section has one [`IssuerKeys`], the owner of the [`LiveKeys`] that verify its
//! tokens. Files are checked twice a second. Remote key sets are fetched in the background, never
//! within a request, and the last good set is kept in memory and on disk (`disk`). A request whose
//! token names an unknown key may wait for one fetch ([`IssuerKeys::with_newest`]). A reload that
//! leaves a section unchanged carries its owner over with everything it knows. The owner of a
//! removed section stops updating its keys, and its task ends with the last snapshot that uses it.
//!
//! Nothing here makes a decision about a request or trusts a token.

mod discovery;
mod disk;
mod files;
mod remote;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use self::discovery::{Metadata, MetadataFault, NoMetadata};
pub use self::disk::{Cache, CacheFault};
pub use self::files::digest;
use crate::clock::Clock;
use crate::outbound::{Outbound, Url};
use crate::telemetry::metrics::Metrics;
use crate::token::{Algorithms, Issuer, Issuers, KeySet, LeftOut, LiveKeys};

/// Longer than it takes to verify a token.
const VERIFICATION_MARGIN: Duration = Duration::from_secs(1);

/// The maximum time that a request waits for newer keys.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Whose keys they are, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySettings {
    /// The section's name.
    pub name: Arc<str>,
    /// The `iss` of its tokens.
    pub issuer: Option<String>,
    /// The allowed signature algorithms.
    pub algorithms: Algorithms,
    /// The source of the keys.
    pub source: Source,
}

/// The source of an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A shared secret, identified by its digest. It only changes with a reload.
    Secret([u8; 32]),
    /// PEM files with one public key each.
    Pem(Vec<PathBuf>),
    /// A file with a JWK Set.
    JwksFile(PathBuf),
    /// A JWK Set that is fetched from the issuer.
    Remote(Remote),
}

/// A JWK Set that is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its address, or where to discover it.
    pub place: Place,
    /// The maximum time between two fetches.
    pub refresh: Duration,
    /// The minimum time between two fetches for missing keys.
    pub cooldown: Duration,
    /// How long keys may be used after they were fetched.
    pub max_stale: Duration,
    /// The trusted certificates as PEM; `None` for the system's.
    pub ca: Option<Vec<u8>>,
    /// Whether it may be fetched over `http://` from another machine.
    pub allow_http: bool,
    /// The folder for the last good set.
    pub folder: PathBuf,
}

/// The location of a remote JWK Set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At this URL.
    Jwks(Url),
    /// At the `jwks_uri` in this issuer's metadata.
    Discovery(Url),
}

/// A JWK Set as it was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastGood {
    /// The response body.
    pub document: Bytes,
    /// When the request was sent, in Unix seconds.
    pub fetched_at: u64,
}

/// The resources that the owners' tasks use.
#[derive(Debug, Clone)]
pub struct Background {
    /// The runtime for the tasks.
    pub runtime: Handle,
    /// The clock.
    pub clock: Clock,
    /// The metrics that count fetches.
    pub metrics: Metrics,
}

/// The result of asking for newer keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The keys are as new as allowed: the decision is final.
    Current,
    /// A fetch has ended that began before the keys were asked for: the keys may be newer, and
    /// another one may have been published since.
    Joined,
    /// It is unknown whether there are newer keys: the issuer does not respond.
    Unavailable,
}

/// The keys of one issuer section. They are kept up to date after [`IssuerKeys::start`].
#[derive(Debug)]
pub struct IssuerKeys {
    shared: Arc<Shared>,
    outbound: Option<Outbound>,
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// The state that the owner shares with its task.
#[derive(Debug)]
struct Shared {
    settings: KeySettings,
    live: Arc<LiveKeys>,
    state: Mutex<State>,
    /// Wakes the task for an unscheduled fetch.
    wake: Notify,
    /// Counts completed fetches.
    ended: watch::Sender<u64>,
    /// The running configuration no longer uses it; it only serves requests that began earlier.
    is_replaced: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The digest of the files that the keys were read from.
    contents_digest: [u8; 32],
    /// The source of the remote keys; `None` if there are none, or if they became too old.
    good: Option<LastGood>,
    /// The keys of the set that are not used.
    left_out: Vec<LeftOut>,
    /// Why the last attempt failed; `None` if it succeeded.
    failing: Option<String>,
    /// The number of failures since the last success.
    failures: u32,
    /// Whether a fetch is in progress.
    is_fetching: bool,
    /// Whether a fetch was requested but has not begun.
    is_asked: bool,
    /// When a token last caused a fetch.
    asked_at: Option<Instant>,
    /// When this process last confirmed that the current set is the issuer's.
    good_since: Option<Instant>,
    /// When the next scheduled fetch is due.
    due: Option<Instant>,
    /// When the last fetch ended.
    ended_at: Option<Instant>,
}

impl IssuerKeys {
    /// Creates the owner of keys from the configuration or from files that were just read.
    /// `contents_digest` is the [`digest`] of their contents.
    pub fn local(
        settings: KeySettings,
        keys: KeySet,
        left_out: Vec<LeftOut>,
        contents_digest: [u8; 32],
    ) -> Self {
        Self::new(settings, keys, None, State { contents_digest, left_out, ..State::default() })
    }

    /// Creates the owner of keys that `outbound` fetches. Until the first fetch has ended, the keys
    /// of `last` are used.
    pub fn remote(settings: KeySettings, outbound: Outbound, last: Option<LastGood>) -> Self {
        let read = last.and_then(|last| {
            Some((KeySet::from_jwks(&last.document, settings.algorithms).ok()?, last))
        });
        let ((keys, left_out), good) = match read {
            Some((read, last)) => (read, Some(last)),
            None => (<(KeySet, Vec<LeftOut>)>::default(), None),
        };
        // The task begins with a fetch, so a request that arrives earlier waits for that one.
        Self::new(
            settings,
            keys,
            Some(outbound),
            State { good, left_out, is_asked: true, ..State::default() },
        )
    }

    fn new(settings: KeySettings, keys: KeySet, outbound: Option<Outbound>, state: State) -> Self {
        let (live, state) = (Arc::new(LiveKeys::new(keys)), Mutex::new(state));
        let shared = Shared {
            settings,
            live,
            state,
            wake: Notify::new(),
            ended: watch::Sender::default(),
            is_replaced: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), outbound, task: OnceLock::new() }
    }

    /// Whose keys they are, and where they come from.
    pub fn settings(&self) -> &KeySettings {
        &self.shared.settings
    }

    /// The current keys.
    pub fn live(&self) -> &Arc<LiveKeys> {
        &self.shared.live
    }

    /// The [`digest`] of the files that the keys were read from.
    pub fn contents_digest(&self) -> [u8; 32] {
        self.shared.lock().contents_digest
    }

    /// The set that the remote keys were read from.
    pub fn last_good(&self) -> Option<LastGood> {
        self.shared.lock().good.clone()
    }

    /// Starts keeping the keys up to date, until this is dropped. Calling it again has no effect.
    pub fn start(&self, background: &Background) {
        let (shared, outbound, for_task) =
            (Arc::clone(&self.shared), self.outbound.clone(), background.clone());
        match (&self.shared.settings.source, outbound) {
            (Source::Secret(_), _) => {}
            (Source::Remote(remote), Some(outbound)) => {
                let shown = Arc::downgrade(&self.shared);
                let clock = background.clock.clone();
                background
                    .metrics
                    .show_key_age(&self.shared.settings.name, move || shown.upgrade()?.age(&clock));
                let remote = remote.clone();
                self.task.get_or_init(|| {
                    spawn(background, remote::run(shared, remote, outbound, for_task))
                });
            }
            _ => {
                self.task.get_or_init(|| spawn(background, files::watch(shared)));
            }
        }
    }

    /// Whether the keys are fetched from the issuer, so that newer ones can be requested.
    pub fn is_fetched(&self) -> bool {
        matches!(self.shared.settings.source, Source::Remote(_))
    }

    /// Makes a decision with keys that are as new as allowed. While the decision lacks a key, this
    /// waits for the fetch in progress, or starts one unless there was one within the cooldown. It
    /// waits a few seconds at most. The result says whether the decision is final.
    pub async fn with_newest<T>(
        &self,
        mut decide: impl FnMut() -> T,
        lacks_key: impl Fn(&T) -> bool,
    ) -> (T, Renewal) {
        let (mut renewal, patience) = (Renewal::Joined, Instant::now() + MAX_WAIT);
        loop {
            // Keys may arrive before and during the decision, so the number of fetches is read
            // first.
            let fetches = *self.shared.ended.borrow();
            let decided = decide();
            if renewal != Renewal::Joined || !lacks_key(&decided) {
                return (decided, renewal);
            }
            renewal = match &self.shared.settings.source {
                Source::Remote(remote) => {
                    tokio::time::timeout_at(patience, self.shared.renew(remote, fetches))
                        .await
                        .unwrap_or(Renewal::Unavailable)
                }
                _ => Renewal::Current,
            };
            // No keys have arrived since, so the decision was made with the current ones.
            if renewal != Renewal::Joined && *self.shared.ended.borrow() == fetches {
                return (decided, renewal);
            }
        }
    }

    /// Whether a decision made just now is final: no newer keys may be requested yet, none are
    /// being fetched, and none have arrived in the meantime.
    pub fn is_settled(&self) -> bool {
        let Source::Remote(remote) = &self.shared.settings.source else { return true };
        let state = self.shared.lock();
        let cools = state.asked_at.is_some_and(|at| at.elapsed() < remote.cooldown);
        let has_just_ended = state.ended_at.is_some_and(|at| at.elapsed() < VERIFICATION_MARGIN);
        cools && !has_just_ended && !state.is_asked && !state.is_fetching
    }

    /// The number of seconds after which it makes sense to ask again.
    pub fn retry_after(&self) -> u64 {
        let Source::Remote(remote) = &self.shared.settings.source else { return 1 };
        let state = self.shared.lock();
        let cooled = state.asked_at.map(|at| at + remote.cooldown);
        let next = [state.due, cooled].into_iter().flatten().min();
        let left =
            next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
        left.as_secs().saturating_add(1).min(60)
    }

    /// What is wrong with the keys, for the operator.
    pub fn problem(&self, clock: &Clock) -> Option<String> {
        if self.task.get().is_some_and(AbortOnDropHandle::is_finished) {
            return Some("the task that updates its keys has ended, which is a bug in the gateway: restart it".to_owned());
        }
        let state = self.shared.lock();
        let Source::Remote(remote) = &self.shared.settings.source else {
            return state.failing.clone();
        };
        match (&state.good, &state.failing) {
            (None, None) => Some("no keys yet: the first fetch has not ended".to_owned()),
            (None, Some(cause)) => Some(format!("no keys: {cause}")),
            (Some(_), _) if self.shared.live.load().is_empty() => {
                Some("no keys: its key set contains no usable key".to_owned())
            }
            (Some(good), Some(cause)) if good.age(clock) > remote.refresh.as_secs() => {
                Some(format!("the keys are {} s old: {cause}", good.age(clock)))
            }
            (Some(_), _) => None,
        }
    }
}

impl Remote {
    /// Whether keys of this age, in seconds, may no longer be used.
    pub fn is_too_old(&self, age: u64) -> bool {
        age > self.max_stale.as_secs()
    }
}

impl LastGood {
    /// The age in seconds.
    pub fn age(&self, clock: &Clock) -> u64 {
        clock.unix_seconds().saturating_sub(self.fetched_at)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> &str {
        &self.settings.name
    }

    fn age(&self, clock: &Clock) -> Option<u64> {
        self.lock().good.as_ref().map(|good| good.age(clock))
    }

    /// Waits for newer keys, given that `fetches` fetches had ended before the decision. Returns at
    /// once if there is nothing to wait for.
    async fn renew(&self, remote: &Remote, fetches: u64) -> Renewal {
        let mut ended = self.ended.subscribe();
        let joined = {
            let mut state = self.lock();
            if *ended.borrow_and_update() != fetches {
                return Renewal::Joined;
            }
            // An issuer that does not respond must not fill the gateway with waiting requests.
            let has_failed = state.failures > u32::from(state.good.is_some());
            let waits = !has_failed && self.ended.receiver_count() <= MAX_WAITING;
            let cools = state.asked_at.is_some_and(|at| at.elapsed() < remote.cooldown);
            if !state.is_asked && !state.is_fetching {
                if cools {
                    return state.verdict(remote);
                }
                state.is_asked = true;
                state.asked_at = Some(Instant::now());
                self.wake.notify_one();
            }
            if !waits {
                return state.verdict(remote);
            }
            !state.is_asked
        };
        // We own the sender, so it cannot be dropped in the meantime.
        let _ = ended.changed().await;
        if joined { Renewal::Joined } else { self.lock().verdict(remote) }
    }

    /// Records the start of a fetch.
    fn begin(&self) {
        let mut state = self.lock();
        state.is_fetching = true;
        state.is_asked = false;
    }

    /// Records the end of a fetch and publishes its outcome.
    fn end(&self, due: Instant) {
        let mut state = self.lock();
        state.is_fetching = false;
        state.due = Some(due);
        state.ended_at = Some(Instant::now());
        // Done under the lock: whoever sees no fetch in progress must also see that this one has
        // ended.
        self.ended.send_modify(|ended| *ended += 1);
    }

    /// Logs which keys of a set are not used, once per change of the set.
    fn log_left_out(&self, before: &[LeftOut], now: &[LeftOut]) {
        if before == now {
            return;
        }
        for left_out in now.iter().take(MAX_LEFT_OUT_LOGGED) {
            // A set may contain keys for other purposes.
            if left_out.reason.is_ordinary() {
                tracing::info!(issuer = self.name(), cause = %left_out, "a key is not used");
            } else {
                tracing::warn!(issuer = self.name(), cause = %left_out, "a key is not used");
            }
        }
        if let more @ 1.. = now.len().saturating_sub(MAX_LEFT_OUT_LOGGED) {
            tracing::warn!(issuer = self.name(), more, "more keys are not used");
        }
    }
}

impl State {
    /// What is known without another fetch. A set that was fetched within the cooldown is as new as
    /// allowed. Later than that, or while the issuer does not respond, a missing key may exist.
    fn verdict(&self, remote: &Remote) -> Renewal {
        let is_fresh = self.good_since.is_some_and(|at| at.elapsed() <= remote.cooldown);
        if self.failing.is_none() || is_fresh { Renewal::Current } else { Renewal::Unavailable }
    }
}

fn spawn(
    background: &Background,
    task: impl Future<Output = ()> + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(background.runtime.spawn(task))
}

/// The owners of all issuer sections' keys.
#[derive(Debug, Default)]
pub struct Keys(Vec<Arc<IssuerKeys>>);

impl Keys {
    /// Creates the collection.
    pub fn new(owners: Vec<Arc<IssuerKeys>>) -> Self {
        Self(owners)
    }

    /// Adds other owners.
    #[must_use]
    pub fn and(mut self, others: impl IntoIterator<Item = Arc<IssuerKeys>>) -> Self {
        self.0.extend(others);
        self
    }

    /// Iterates over the owners.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<IssuerKeys>> {
        self.0.iter()
    }

    /// The owner of this issuer's keys; `None` for the built-in issuer, which manages its own.
    pub fn for_issuer(&self, issuer: &Issuer) -> Option<&Arc<IssuerKeys>> {
        self.0.iter().find(|owner| Arc::ptr_eq(owner.live(), issuer.keys()))
    }

    /// Starts keeping all keys up to date.
    pub fn start(&self, background: &Background) {
        self.0.iter().for_each(|owner| owner.start(background));
    }

    /// Marks the owners that are not in `others` as replaced, which ends their schedules at once; a
    /// connection may keep a replaced owner alive for hours.
    pub fn replaced_by(&self, others: &Self) {
        for owner in
            self.iter().filter(|owner| !others.iter().any(|other| Arc::ptr_eq(owner, other)))
        {
            owner.shared.is_replaced.store(true, Ordering::Relaxed);
        }
    }
}

/// What currently prevents tokens from being verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Problems by the name of the issuer's section, for the operator.
    pub problems: BTreeMap<String, String>,
    /// Whether the tokens of every issuer would have to be refused.
    pub verifies_nothing: bool,
}

impl Health {
    /// Checks these issuers and their keys.
    pub fn check(issuers: &Issuers, keys: &Keys, clock: &Clock) -> Self {
        let has_keys = |issuer: &Arc<Issuer>| !issuer.keys().load().is_empty();
        let verifies_nothing = issuers.iter().next().is_some() && !issuers.iter().any(has_keys);
        let of_keys = |issuer: &Arc<Issuer>| match keys.for_issuer(issuer) {
            Some(owner) => owner.problem(clock),
            None => (!has_keys(issuer)).then(|| "no keys".to_owned()),
        };
        // Until then its tokens get 503.
        let of_revoked = |issuer: &Arc<Issuer>| {
            let is_unknown = issuer.revoked_keys().is_some_and(|keys| !keys.is_known());
            is_unknown.then(|| "its revoked keys have not been read from Redis yet".to_owned())
        };
        let problem = |issuer: &Arc<Issuer>| of_keys(issuer).or_else(|| of_revoked(issuer));
        let is_issuers = |owner: &Arc<IssuerKeys>| {
            issuers.iter().any(|issuer| Arc::ptr_eq(issuer.keys(), owner.live()))
        };
        let of_providers = keys
            .iter()
            .filter(|owner| !is_issuers(owner))
            .filter_map(|owner| Some((owner.settings().name.to_string(), owner.problem(clock)?)));
        let problems = issuers
            .iter()
            .filter_map(|issuer| Some((issuer.settings().name.to_string(), problem(issuer)?)))
            .chain(of_providers)
            .collect();
        Self { problems, verifies_nothing }
    }
}

/// How many requests may wait for the keys of one issuer; the rest are answered at once.
const MAX_WAITING: usize = 1000;

/// How many unused keys of a set are logged individually.
const MAX_LEFT_OUT_LOGGED: usize = 10;
