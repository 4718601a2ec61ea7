//! The running exchanges that someone may lose: tunnels, event streams, and everything else that
//! still runs some time after its response has begun.
//!
//! A stream is registered with its worker's list when it turns out to be one, so a short request
//! costs nothing here. It is found by what a revocation names (`jti`, `sid`, subject), by its id,
//! and by the time when it must end, without looking at any other. Taking access away only
//! signals the stream ([`Stream::poll_end`]); the task that forwards its bytes ends it, with the
//! close of its protocol.
//!
//! A stream belongs to the session of its token: when a newer token of the session is used, it
//! takes the place of the old one.

mod judge;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;

use self::judge::{admits, route_of};
use self::stream::Held;
pub use self::stream::{End, Kind, Opened, Stream, StreamBytes};
use super::snapshot::Snapshot;
use super::stream_rule::StreamRule;
use super::token_memo::TokenMemo;
use crate::clock::Clock;
use crate::identity::Policy;
use crate::revocation::RevocationList;
use crate::telemetry::metrics::{Metrics, Open};
use crate::token::{Remembered, RevokedBy, VerifiedToken};

/// The streams of all workers.
pub struct Streams {
    /// One list per worker: no list is contended while streams begin and end.
    lists: Box<[Mutex<List>]>,
    open: AtomicUsize,
    last: AtomicU64,
    /// Makes ids that no other process has given, and keys that nobody can choose.
    hasher: RandomState,
    current: Arc<ArcSwap<Snapshot>>,
    revoked: Arc<RevocationList>,
    clock: Clock,
    metrics: Metrics,
}

/// A response whose client may stop reading, so that nothing polls its body.
pub trait Unread: Send + Sync {
    /// Looks at it. Returns whether to look again.
    fn look(self: Arc<Self>) -> bool;
}

/// The streams of one worker.
#[derive(Default)]
struct List {
    streams: BTreeMap<u64, Arc<Stream>>,
    /// (hash of a kind and a value, id): what a revocation would name.
    names: BTreeSet<(u64, u64)>,
    /// (Unix seconds, id): when streams must end.
    deadlines: BTreeSet<(u64, u64)>,
    /// Responses that are no streams yet, or whose exchange must end at some time.
    unread: Vec<Weak<dyn Unread>>,
}

/// A registered stream. Dropping it removes it from the list.
#[derive(Debug)]
pub struct Registered {
    stream: Arc<Stream>,
    list: usize,
    streams: Arc<Streams>,
    _gauge: Open,
}

impl Registered {
    /// The stream.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut list = self.streams.list(self.list);
        list.streams.remove(&self.stream.id);
        self.streams.forget(&mut list, &self.stream);
        drop(list);
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The id by which it can be ended.
    pub id: String,
    /// What it carries.
    pub kind: &'static str,
    /// The name of its route.
    pub route: Arc<str>,
    /// The received path, without the query.
    pub path: String,
    /// The subject of its caller.
    pub subject: Option<String>,
    /// The issuer section of its caller.
    pub issuer: Option<Arc<str>>,
    /// The session of its caller.
    pub sid: Option<String>,
    /// The address of its client.
    pub client: String,
    /// When its request began (RFC 3339).
    pub since: String,
    /// The bytes that it has carried, in both directions.
    pub bytes: u64,
}

impl Streams {
    /// No streams yet. `current` is the snapshot for new requests.
    pub fn new(
        current: Arc<ArcSwap<Snapshot>>,
        revoked: Arc<RevocationList>,
        clock: Clock,
        metrics: Metrics,
    ) -> Arc<Self> {
        let workers = current.load().start.workers.max(1);
        let streams = Arc::new(Self {
            lists: (0..workers).map(|_| Mutex::default()).collect(),
            open: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            hasher: RandomState::new(),
            current,
            revoked,
            clock,
            metrics,
        });
        let watching = Arc::downgrade(&streams);
        streams.revoked.watch(move |revoked| {
            if let Some(streams) = watching.upgrade() {
                streams.revoked(revoked);
            }
        });
        streams
    }

    /// Registers a stream of this worker, whose request was decided under `snapshot`. If its
    /// caller has lost access since then, it is told to end at once.
    pub fn register(
        self: &Arc<Self>,
        worker: usize,
        opened: Opened,
        snapshot: &Arc<Snapshot>,
    ) -> Registered {
        let list = worker % self.lists.len();
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream::new(self.hasher.hash_one(number), opened));
        self.open.fetch_add(1, Ordering::Relaxed);
        let registered = Registered {
            stream: Arc::clone(&stream),
            list,
            streams: Arc::clone(self),
            _gauge: self.metrics.stream(),
        };
        {
            let mut list = self.list(list);
            self.note(&mut list, &stream);
            list.streams.insert(stream.id, Arc::clone(&stream));
        }
        // A change of access updates the lists of what is allowed first and then looks for streams:
        // it finds this one, or this sees the change.
        self.end_if_revoked(&stream);
        if !Arc::ptr_eq(&self.current.load(), snapshot) {
            self.judge(&stream, &self.current.load_full());
        }
        registered
    }

    /// The number of streams.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// All streams, the oldest first.
    pub fn listed(&self) -> Vec<Listed> {
        let mut all = self.all();
        all.sort_by_key(|stream| stream.begun);
        all.iter().map(|stream| listed(stream)).collect()
    }

    /// Ends the stream with this id. Returns whether there is one.
    pub fn end(&self, id: &str) -> bool {
        let Ok(id) = u64::from_str_radix(id, 16) else { return false };
        let found = (0..self.lists.len()).find_map(|at| self.list(at).streams.get(&id).cloned());
        if let Some(stream) = &found {
            self.tell(stream, End::Operator);
        }
        found.is_some()
    }

    /// Ends every stream: the gateway stops.
    pub fn end_all(&self) {
        for stream in self.all() {
            self.tell(&stream, End::Draining);
        }
    }

    /// Looks at a response of this worker from time to time, for as long as it exists.
    pub fn look_at(&self, worker: usize, unread: Weak<dyn Unread>) {
        self.list(worker % self.lists.len()).unread.push(unread);
    }

    fn look_at_unread(&self) {
        for at in 0..self.lists.len() {
            let mut unread = std::mem::take(&mut self.list(at).unread);
            unread.retain(|unread| unread.upgrade().is_some_and(Unread::look));
            self.list(at).unread.append(&mut unread);
        }
    }

    /// Ends the streams whose time has come, or whose token an application has blacklisted. Call it
    /// a few times a second, not on a worker.
    pub fn end_overdue(&self) {
        self.look_at_unread();
        if self.open() == 0 {
            return;
        }
        self.end_blacklisted();
        let now = self.clock.unix_seconds();
        for at in 0..self.lists.len() {
            let due: Vec<_> = {
                let list = self.list(at);
                let due = list.deadlines.range(..(now.saturating_add(1), 0));
                due.filter_map(|(_, id)| list.streams.get(id).cloned()).collect()
            };
            for stream in due {
                let deadline = stream.held().deadline.clone();
                if let Some((_, end)) = deadline.filter(|(at, _)| *at <= now) {
                    self.tell(&stream, end);
                }
            }
        }
    }

    /// Ends streams that the blacklist of an existing application names. Nobody says what is new in
    /// it, so each stream of such an issuer is looked up.
    fn end_blacklisted(&self) {
        let has_keys = |token: &VerifiedToken| token.revoked_keys().is_some();
        let current = self.current.load();
        if !current.issuers.iter().any(|issuer| issuer.revoked_keys().is_some()) {
            return;
        }
        for stream in self.all() {
            let is_one = stream.held().caller.as_ref().is_some_and(|(token, _)| has_keys(token));
            if is_one {
                self.end_if_revoked(&stream);
            }
        }
    }

    /// Asks of every stream whether the routes that are in force now would admit it. Call it after
    /// a reload, not on a worker.
    pub fn review(&self) {
        let current = self.current.load_full();
        let ended = self.all().iter().filter(|stream| self.judge(stream, &current)).count();
        if ended > 0 {
            tracing::info!(streams = ended, "ended streams without a route or access");
        }
    }

    /// Moves the streams of a session to a newer token of it. Call it with a token that was just
    /// accepted.
    pub fn follow(&self, token: &Arc<Remembered<TokenMemo>>) {
        if self.open() == 0 || !token.is_ours() || token.is_personal() {
            return;
        }
        let Some(sid) = token.sid() else { return };
        let name = self.name(RevokedBy::Sid, sid);
        let mut moved = Vec::new();
        for at in 0..self.lists.len() {
            let mut list = self.list(at);
            for stream in list.named(name) {
                if !is_newer(token, &stream) {
                    continue;
                }
                self.forget(&mut list, &stream);
                if let Some((held, _)) = &mut stream.held().caller {
                    *held = Arc::clone(token);
                }
                self.note(&mut list, &stream);
                moved.push(stream);
            }
        }
        for stream in moved {
            self.end_if_revoked(&stream);
            self.judge(&stream, &self.current.load_full());
        }
    }

    /// Ends the streams that one of these revocations names.
    fn revoked(&self, revoked: &[(RevokedBy, Arc<str>)]) {
        if self.open() == 0 {
            return;
        }
        let mut ended = 0;
        for (by, value) in revoked {
            let name = self.name(*by, value);
            for at in 0..self.lists.len() {
                let named = self.list(at).named(name);
                ended += named.iter().filter(|stream| self.end_if_revoked(stream)).count();
            }
        }
        if ended > 0 {
            tracing::info!(streams = ended, "ended streams whose token was revoked");
        }
    }

    /// Whether a token that was accepted has been revoked since.
    pub fn is_revoked(&self, token: &VerifiedToken) -> bool {
        self.revoked.revoked_by(token).is_some()
    }

    fn end_if_revoked(&self, stream: &Stream) -> bool {
        let is_revoked = {
            let held = stream.held();
            held.caller.as_ref().is_some_and(|(token, _)| self.is_revoked(token))
        };
        is_revoked && self.tell(stream, End::Revoked)
    }

    /// Ends a stream that these routes would not admit. Returns whether it did.
    fn judge(&self, stream: &Arc<Stream>, snapshot: &Snapshot) -> bool {
        let verdict = route_of(stream, snapshot).and_then(|route| {
            admits(route, &stream.held(), snapshot)?;
            Ok(route)
        });
        match verdict {
            Ok(route) => {
                self.regulate(stream, &route.name, route.streams);
                false
            }
            Err(end) => self.tell(stream, end),
        }
    }

    /// Applies what a reload changed about the route of a stream.
    fn regulate(&self, stream: &Arc<Stream>, route: &Arc<str>, rule: StreamRule) {
        let is_same = {
            let held = stream.held();
            held.route == *route && held.rule == rule
        };
        if is_same {
            return;
        }
        for at in 0..self.lists.len() {
            let mut list = self.list(at);
            if list.streams.contains_key(&stream.id) {
                self.forget(&mut list, stream);
                let mut held = stream.held();
                (held.route, held.rule) = (Arc::clone(route), rule);
                drop(held);
                self.note(&mut list, stream);
            }
        }
    }

    fn tell(&self, stream: &Stream, end: End) -> bool {
        let word = end.as_str();
        let is_first = stream.tell(end);
        if is_first {
            self.metrics.stream_ended(word);
        }
        is_first
    }

    fn all(&self) -> Vec<Arc<Stream>> {
        let lists = 0..self.lists.len();
        lists.flat_map(|at| self.list(at).streams.values().cloned().collect::<Vec<_>>()).collect()
    }

    fn list(&self, at: usize) -> MutexGuard<'_, List> {
        self.lists[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, by: RevokedBy, value: &str) -> u64 {
        self.hasher.hash_one((by, value))
    }

    /// Adds a stream under everything by which it is looked for.
    fn note(&self, list: &mut List, stream: &Stream) {
        for name in self.names(stream) {
            list.names.insert((name, stream.id));
        }
        let current = self.current.load();
        let mut held = stream.held();
        held.deadline = deadline(stream.begun, &held, current.identity.as_deref());
        if let Some((at, _)) = &held.deadline {
            list.deadlines.insert((*at, stream.id));
        }
    }

    /// Undoes [`Streams::note`].
    fn forget(&self, list: &mut List, stream: &Stream) {
        for name in self.names(stream) {
            list.names.remove(&(name, stream.id));
        }
        if let Some((at, _)) = &stream.held().deadline {
            list.deadlines.remove(&(*at, stream.id));
        }
    }

    /// What a revocation of its token would name.
    fn names(&self, stream: &Stream) -> impl Iterator<Item = u64> + use<> {
        let held = stream.held();
        let token: Option<&VerifiedToken> = held.caller.as_ref().map(|(token, _)| &***token);
        let names = token.map(|token| {
            [
                token.jti().map(|jti| self.name(RevokedBy::Jti, jti)),
                token.sid().map(|sid| self.name(RevokedBy::Sid, sid)),
                Some(self.name(RevokedBy::Subject, token.subject())),
                token.sub().map(|sub| self.name(RevokedBy::Sub, &sub)),
            ]
        });
        names.into_iter().flatten().flatten()
    }
}

impl List {
    /// The streams under this name.
    fn named(&self, name: u64) -> Vec<Arc<Stream>> {
        let ids = self.names.range((name, 0)..=(name, u64::MAX));
        ids.filter_map(|(_, id)| self.streams.get(id).cloned()).collect()
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("open", &self.open()).finish_non_exhaustive()
    }
}

/// When a stream that began at `begun` must end, in Unix seconds, and why.
fn deadline(begun: u64, held: &Held, policy: Option<&Policy>) -> Option<(u64, End)> {
    // A personal access token is good for longer than the claims that were found for it.
    let token = held.caller.as_ref().map(|(token, _)| token).filter(|token| !token.is_personal());
    let expiry = token
        .filter(|_| held.rule.ends_with_token)
        .map(|token| (token.accepted_until(), End::Expired));
    // The session has ended if it is not renewed until then: each renewal makes a newer token.
    let session = token.filter(|token| token.is_ours() && token.sid().is_some());
    let session = session.zip(policy).and_then(|(token, policy)| {
        let ends = token.issued_at()?.saturating_add(policy.refresh_token_ttl.as_secs());
        Some((ends.max(token.accepted_until()), End::Expired))
    });
    let age = held.rule.max_age.map(|age| {
        let seconds = age.as_secs() + u64::from(age.subsec_nanos() > 0);
        (begun.saturating_add(seconds), End::TooOld)
    });
    [expiry, session, age].into_iter().flatten().min_by_key(|(at, _)| *at)
}

/// Whether a token is a later one of the session that the stream belongs to.
fn is_newer(token: &VerifiedToken, stream: &Stream) -> bool {
    stream.held().caller.as_ref().is_some_and(|(held, _)| {
        held.is_ours()
            && !held.is_personal()
            && held.sid() == token.sid()
            && held.subject() == token.subject()
            && held.expires_at() < token.expires_at()
            && held.issued_at() <= token.issued_at()
    })
}

fn listed(stream: &Stream) -> Listed {
    let held = stream.held();
    let token = held.caller.as_ref().map(|(token, _)| token);
    let since = std::time::UNIX_EPOCH + Duration::from_secs(stream.begun);
    Listed {
        id: format!("{:016x}", stream.id),
        kind: held.kind.as_str(),
        route: Arc::clone(&held.route),
        path: stream.path.path().to_owned(),
        subject: token.map(|token| token.subject().to_owned()),
        issuer: token.map(|token| Arc::clone(token.issuer_name())),
        sid: token.and_then(|token| token.sid()).map(ToOwned::to_owned),
        client: stream.client.to_string(),
        since: humantime::format_rfc3339_seconds(since).to_string(),
        bytes: stream.carried(),
    }
}
