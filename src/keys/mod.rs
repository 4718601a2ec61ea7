//! Keeping issuers' keys up to date: where they come from, when they are read or fetched again, and
//! what holds while they cannot be.
//!
//! Each issuer section has one [`IssuerKeys`], the owner of the [`LiveKeys`] that its tokens are
//! verified with. Files are looked at twice a second; what is remote is fetched in the background,
//! never in somebody's request, and the last good set is kept in memory and on disk (`disk`). A
//! request whose token names a key that is not known may wait for one fetch
//! ([`IssuerKeys::with_newest`]). An owner that a reload leaves unchanged is carried over with
//! everything it knows; one that it leaves out keeps nothing up to date any more, and its task ends
//! with the last snapshot that holds it.
//!
//! Nothing here decides about a request, and nothing here believes a token.

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

pub use self::disk::{Cache, CacheFault};
pub use self::files::digest;
use crate::clock::Clock;
use crate::outbound::{Outbound, Url};
use crate::telemetry::metrics::Metrics;
use crate::token::{Algorithms, Issuer, Issuers, KeySet, LeftOut, LiveKeys};

/// Longer than it takes to verify a token.
const VERIFICATION_MARGIN: Duration = Duration::from_secs(1);

/// How long a request waits for newer keys.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Whose keys they are, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySettings {
    /// The section's name.
    pub name: Arc<str>,
    /// The `iss` of its tokens.
    pub issuer: Option<String>,
    /// What its tokens may be signed with.
    pub algorithms: Algorithms,
    /// Where the keys come from.
    pub source: Source,
}

/// Where keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A shared secret, told apart by its digest. It changes with a reload only.
    Secret([u8; 32]),
    /// PEM files with one public key each.
    Pem(Vec<PathBuf>),
    /// A file with a JWK Set.
    JwksFile(PathBuf),
    /// A JWK Set of the issuer's.
    Remote(Remote),
}

/// A JWK Set that is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where it is, or where that is said.
    pub place: Place,
    /// How often it is fetched, at least.
    pub refresh: Duration,
    /// How long after a fetch for a key that was lacking there is no other one.
    pub cooldown: Duration,
    /// How long keys are used after they were fetched.
    pub max_stale: Duration,
    /// The certificates that are trusted, as PEM; `None`: the system's.
    pub ca: Option<Vec<u8>>,
    /// Whether it may come over `http://` from another machine.
    pub allow_http: bool,
    /// Where the last good set is kept.
    pub folder: PathBuf,
}

/// Where a remote JWK Set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Here.
    Jwks(Url),
    /// Where the metadata of this issuer says.
    Discovery(Url),
}

/// A JWK Set as it was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastGood {
    /// What was answered.
    pub document: Bytes,
    /// When it was asked for, in Unix seconds.
    pub fetched_at: u64,
}

/// What the owners' tasks need.
#[derive(Debug, Clone)]
pub struct Background {
    /// The runtime that they run on.
    pub runtime: Handle,
    /// The time.
    pub clock: Clock,
    /// Where fetches are counted.
    pub metrics: Metrics,
}

/// What came of asking for newer keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The keys are as new as may be asked for: what they say stands.
    Current,
    /// A fetch has ended that had begun before it was asked for: the keys may be newer, and one may
    /// have been published since.
    Joined,
    /// Nobody can say whether there are newer ones: the issuer does not answer.
    Unavailable,
}

/// The keys of one issuer section, kept up to date once it is started.
#[derive(Debug)]
pub struct IssuerKeys {
    shared: Arc<Shared>,
    outbound: Option<Outbound>,
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// What the owner and its task both know.
#[derive(Debug)]
struct Shared {
    settings: KeySettings,
    live: Arc<LiveKeys>,
    state: Mutex<State>,
    /// Wakes the task for a fetch before its time.
    wake: Notify,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
    /// The running configuration does without it: it is there for requests that began before.
    is_replaced: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// What the keys of files were read from, as a digest.
    contents_digest: [u8; 32],
    /// What remote keys were read from; `None`: there are none, or they were too old.
    good: Option<LastGood>,
    /// What was not taken from it.
    left_out: Vec<LeftOut>,
    /// Why the last attempt failed; `None`: it did not.
    failing: Option<String>,
    /// How many have failed since the last one that did not.
    failures: u32,
    /// An attempt is under way.
    is_fetching: bool,
    /// One is about to begin.
    is_asked: bool,
    /// When one was last asked for by a token.
    asked_at: Option<Instant>,
    /// When the set that holds was last found to be the issuer's, by this process.
    good_since: Option<Instant>,
    /// When the next one is due by itself.
    due: Option<Instant>,
    /// When the last one ended.
    ended_at: Option<Instant>,
}

impl IssuerKeys {
    /// Keys from the configuration or from files that were just read: `read` is the [`digest`] of
    /// their contents.
    pub fn local(
        settings: KeySettings,
        keys: KeySet,
        left_out: Vec<LeftOut>,
        contents_digest: [u8; 32],
    ) -> Self {
        Self::new(settings, keys, None, State { contents_digest, left_out, ..State::default() })
    }

    /// Keys that are fetched by `outbound`. Until the first fetch has ended those of `last` hold.
    pub fn remote(settings: KeySettings, outbound: Outbound, last: Option<LastGood>) -> Self {
        let read = last.and_then(|last| {
            Some((KeySet::from_jwks(&last.document, settings.algorithms).ok()?, last))
        });
        let ((keys, left_out), good) = match read {
            Some((read, last)) => (read, Some(last)),
            None => (<(KeySet, Vec<LeftOut>)>::default(), None),
        };
        // The task begins with a fetch: whoever comes before it has begun waits for that one.
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

    /// The keys that hold now.
    pub fn live(&self) -> &Arc<LiveKeys> {
        &self.shared.live
    }

    /// The [`digest`] of the files that the keys were read from.
    pub fn contents_digest(&self) -> [u8; 32] {
        self.shared.lock().contents_digest
    }

    /// The set that remote keys were read from.
    pub fn last_good(&self) -> Option<LastGood> {
        self.shared.lock().good.clone()
    }

    /// Begins to keep the keys up to date, until this is dropped. Once is enough.
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

    /// Whether they are fetched from the issuer, and newer ones may be had by asking.
    pub fn is_fetched(&self) -> bool {
        matches!(self.shared.settings.source, Source::Remote(_))
    }

    /// Decides something with keys that are as new as may be asked for, as long as it lacks a key:
    /// with those of the fetch that is under way, or of one that is asked for here unless there was
    /// one within the cooldown. It waits a few seconds at most. Beside the decision it says whether
    /// that is all there is to know.
    pub async fn with_newest<T>(
        &self,
        mut decide: impl FnMut() -> T,
        lacks_key: impl Fn(&T) -> bool,
    ) -> (T, Renewal) {
        let (mut renewal, patience) = (Renewal::Joined, Instant::now() + MAX_WAIT);
        loop {
            // The keys may have come since they were asked, and may come while they are: what was
            // fetched is counted before.
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
            // It was decided with the keys that hold: none have come since.
            if renewal != Renewal::Joined && *self.shared.ended.borrow() == fetches {
                return (decided, renewal);
            }
        }
    }

    /// Whether what was decided just now stands: no newer keys may be asked for yet, none are on
    /// their way, and none have come meanwhile.
    pub fn is_settled(&self) -> bool {
        let Source::Remote(remote) = &self.shared.settings.source else { return true };
        let state = self.shared.lock();
        let cools = state.asked_at.is_some_and(|at| at.elapsed() < remote.cooldown);
        let has_just_ended = state.ended_at.is_some_and(|at| at.elapsed() < VERIFICATION_MARGIN);
        cools && !has_just_ended && !state.is_asked && !state.is_fetching
    }

    /// Whole seconds until it is worth asking again.
    pub fn retry_after(&self) -> u64 {
        let Source::Remote(remote) = &self.shared.settings.source else { return 1 };
        let state = self.shared.lock();
        let cooled = state.asked_at.map(|at| at + remote.cooldown);
        let next = [state.due, cooled].into_iter().flatten().min();
        let left =
            next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
        left.as_secs().saturating_add(1).min(60)
    }

    /// What is wrong with the keys, in words for the operator.
    pub fn problem(&self, clock: &Clock) -> Option<String> {
        if self.task.get().is_some_and(AbortOnDropHandle::is_finished) {
            return Some("nothing keeps its keys up to date any more, which is a fault of the gateway: restart it".to_owned());
        }
        let state = self.shared.lock();
        let Source::Remote(remote) = &self.shared.settings.source else {
            return state.failing.clone();
        };
        match (&state.good, &state.failing) {
            (None, None) => Some("no keys yet: the first fetch has not ended".to_owned()),
            (None, Some(cause)) => Some(format!("no keys: {cause}")),
            (Some(_), _) if self.shared.live.load().is_empty() => {
                Some("no keys: its set has none that can be used".to_owned())
            }
            (Some(good), Some(cause)) if good.age(clock) > remote.refresh.as_secs() => {
                Some(format!("the keys are {} s old: {cause}", good.age(clock)))
            }
            (Some(_), _) => None,
        }
    }
}

impl Remote {
    /// Whether keys that were fetched so many seconds ago may not be used any more.
    pub fn is_too_old(&self, age: u64) -> bool {
        age > self.max_stale.as_secs()
    }
}

impl LastGood {
    /// Seconds since it was fetched.
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

    /// Waits for newer keys, if it is known of `fetches` that have ended and there is one to wait
    /// for.
    async fn renew(&self, remote: &Remote, fetches: u64) -> Renewal {
        let mut ended = self.ended.subscribe();
        let joined = {
            let mut state = self.lock();
            if *ended.borrow_and_update() != fetches {
                return Renewal::Joined;
            }
            // An issuer that does not answer must not fill the gateway with requests that wait for
            // it.
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
        // The sender is ours: it is not dropped meanwhile.
        let _ = ended.changed().await;
        if joined { Renewal::Joined } else { self.lock().verdict(remote) }
    }

    /// A fetch begins.
    fn begin(&self) {
        let mut state = self.lock();
        state.is_fetching = true;
        state.is_asked = false;
    }

    /// A fetch has ended, and its outcome is known to all.
    fn end(&self, due: Instant) {
        let mut state = self.lock();
        state.is_fetching = false;
        state.due = Some(due);
        state.ended_at = Some(Instant::now());
        // Under the lock: who sees no fetch under way has seen that this one has ended.
        self.ended.send_modify(|ended| *ended += 1);
    }

    /// Tells what was not taken from a set, once for each change of it.
    fn log_left_out(&self, before: &[LeftOut], now: &[LeftOut]) {
        if before == now {
            return;
        }
        for left_out in now.iter().take(MAX_LEFT_OUT_LOGGED) {
            // A set may hold keys that are for other purposes.
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
    /// What can be said without another fetch. A set that was fetched within the cooldown is as new
    /// as may be asked for; beyond that, and while the issuer does not answer, a key that it lacks
    /// may well exist.
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

/// The owner of each issuer section's keys.
#[derive(Debug, Default)]
pub struct Keys(Vec<Arc<IssuerKeys>>);

impl Keys {
    /// These owners.
    pub fn new(owners: Vec<Arc<IssuerKeys>>) -> Self {
        Self(owners)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<IssuerKeys>> {
        self.0.iter()
    }

    /// The owner of this issuer's keys; `None` for the built-in issuer, who owns its own.
    pub fn for_issuer(&self, issuer: &Issuer) -> Option<&Arc<IssuerKeys>> {
        self.0.iter().find(|owner| Arc::ptr_eq(owner.live(), issuer.keys()))
    }

    /// Begins to keep all of them up to date.
    pub fn start(&self, background: &Background) {
        self.0.iter().for_each(|owner| owner.start(background));
    }

    /// Others hold from now on: the schedule of those that are not among them ends at once. A
    /// connection may keep them for hours.
    pub fn replaced_by(&self, others: &Self) {
        for owner in
            self.iter().filter(|owner| !others.iter().any(|other| Arc::ptr_eq(owner, other)))
        {
            owner.shared.is_replaced.store(true, Ordering::Relaxed);
        }
    }
}

/// What stands against verifying tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// By the name of the issuer's section, in words for the operator.
    pub problems: BTreeMap<String, String>,
    /// Whether tokens of all issuers there are would have to be refused.
    pub verifies_nothing: bool,
}

impl Health {
    /// That of these issuers, whose keys these are.
    pub fn check(issuers: &Issuers, keys: &Keys, clock: &Clock) -> Self {
        let has_keys = |issuer: &Arc<Issuer>| !issuer.keys().load().is_empty();
        let verifies_nothing = issuers.iter().next().is_some() && !issuers.iter().any(has_keys);
        let problem = |issuer: &Arc<Issuer>| match keys.for_issuer(issuer) {
            Some(owner) => owner.problem(clock),
            None => (!has_keys(issuer)).then(|| "no keys".to_owned()),
        };
        let problems = issuers
            .iter()
            .filter_map(|issuer| Some((issuer.settings().name.to_string(), problem(issuer)?)))
            .collect();
        Self { problems, verifies_nothing }
    }
}

/// Requests that wait for the keys of one issuer at a time; more are answered at once.
const MAX_WAITING: usize = 1000;

/// Keys of one set that are told of one by one when they are left out.
const MAX_LEFT_OUT_LOGGED: usize = 10;
