//! Tokens that die before their `exp`: what was revoked, as the request line asks for it.
//!
//! The list is in memory, one for the process. Reading takes no lock and, while nothing is revoked,
//! touches one counter for each kind. It is written by its owner
//! ([`Revocations`](crate::revocation::Revocations)), which keeps what stands here in the store as
//! well. Each kind is spread over many small maps that are copied when they change, so that one
//! more revocation costs the same with ten entries and with half a million.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::ahead::Ahead;
use super::issuers::{IssuerSettings, VerifiedToken};
use crate::clock::Clock;

/// What a revocation goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RevokedBy {
    /// One token, by its `jti`.
    Jti,
    /// Every token of a session, by their `sid`.
    Sid,
    /// Every token of a subject that was issued at the time of the revocation or before, or does
    /// not say when.
    Subject,
    /// As [`RevokedBy::Subject`], by the claim `sub` where the section's `subject` is another one:
    /// what a logout token names.
    Sub,
}

impl RevokedBy {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Jti, Self::Sid, Self::Subject, Self::Sub];

    /// The word for it, in the store, in requests and in what operators read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jti => "jti",
            Self::Sid => "sid",
            Self::Subject => "subject",
            Self::Sub => "sub",
        }
    }
}

impl fmt::Display for RevokedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose tokens a revocation is about.
///
/// Not by the section's name: a section that is renamed must not bring revoked tokens back to life,
/// and one whose `issuer` changes accepts none of them anyway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every issuer's.
    Every,
    /// Those with this `iss`; empty: those without.
    Issuer(Arc<str>),
}

impl Scope {
    /// The tokens that an issuer's section accepts.
    pub fn for_issuer(settings: &IssuerSettings) -> Self {
        // An `issuer` is never empty, so that tokens without `iss` cannot be mistaken for those of
        // another section.
        Self::Issuer(settings.issuer.as_deref().unwrap_or_default().into())
    }

    pub(super) fn covers(&self, iss: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Issuer(own) => **own == *iss,
        }
    }
}

/// One revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Whose tokens.
    pub scope: Scope,
    /// By what.
    pub by: RevokedBy,
    /// The `jti`, `sid` or subject.
    pub value: Arc<str>,
    /// When it was revoked, in Unix seconds: the cut-off of a subject.
    pub at: u64,
}

/// Everything that is revoked. Owned by the process.
pub struct RevocationList {
    tables: [Table; 4],
    /// Chooses the map of a value. Its keys are random, so that nobody can choose values that meet
    /// in one map.
    hasher: RandomState,
    /// Whoever writes holds it.
    writing: Mutex<()>,
    /// Tokens that a cut-off has to hit although it is before their `iat`.
    ahead: Ahead,
    clock: Clock,
}

/// The revocations of one kind.
struct Table {
    /// How many there are: nothing else is looked at while it is zero.
    count: AtomicUsize,
    shards: Box<[ArcSwap<Shard>]>,
}

type Shard = HashMap<Arc<str>, Marks>;

/// Of whom a value is revoked, and since when. Nearly always one.
type Marks = Arc<[Mark]>;

#[derive(Clone, Debug)]
struct Mark {
    scope: Scope,
    at: u64,
    /// When `at` became known here, in seconds of [`Clock::running`].
    noted: u32,
}

impl RevocationList {
    /// Nothing is revoked.
    pub fn new(clock: Clock) -> Self {
        Self {
            tables: RevokedBy::ALL.map(|_| Table::new()),
            hasher: RandomState::new(),
            writing: Mutex::new(()),
            ahead: Ahead::default(),
            clock,
        }
    }

    /// A token is about to be held against the list at `now`, in Unix seconds: if it is accepted, a
    /// cut-off that is added from now on hits it ([`RevocationList::with_cutoff`]), also where its `iat`
    /// is ahead of the time.
    pub fn note_if_early(&self, token: &VerifiedToken, now: u64) {
        let Some(issued_at) = token.issued_at().filter(|issued_at| *issued_at > now) else {
            return;
        };
        if token.is_ours() {
            // The built-in issuer notes in the store what it has issued, in the transaction that
            // issues it: a cut-off hits just that.
            return;
        }
        let iss = token.issuer().unwrap_or_default();
        self.ahead.note(RevokedBy::Subject, iss, token.subject(), issued_at, now);
        if let Some(sub) = token.sub() {
            self.ahead.note(RevokedBy::Sub, iss, &sub, issued_at, now);
        }
    }

    /// A revocation whose cut-off hits every token that was accepted so far. To be asked before it
    /// is added, and after: a token that was accepted meanwhile raises it again.
    pub fn with_cutoff(&self, revocation: Revocation) -> Revocation {
        let Revocation { scope, by, value, at } = &revocation;
        let at = match by {
            RevokedBy::Jti | RevokedBy::Sid => *at,
            RevokedBy::Subject | RevokedBy::Sub => self.ahead.latest(*by, scope, value).max(*at),
        };
        Revocation { at, ..revocation }
    }

    /// By what a token is revoked, if it is. Asked on every request, also where the token was
    /// verified earlier.
    pub fn revoked_by(&self, token: &VerifiedToken) -> Option<RevokedBy> {
        if self.tables.iter().all(|table| table.count.load(Ordering::Acquire) == 0) {
            return None;
        }
        let iss = token.issuer().unwrap_or_default();
        if let Some(jti) = token.jti()
            && self.latest(RevokedBy::Jti, iss, jti).is_some()
        {
            return Some(RevokedBy::Jti);
        }
        if let Some(sid) = token.sid()
            && self.latest(RevokedBy::Sid, iss, sid).is_some()
        {
            return Some(RevokedBy::Sid);
        }
        let is_old = |cutoff: u64| token.issued_at().is_none_or(|issued| issued <= cutoff);
        if self.latest(RevokedBy::Subject, iss, token.subject()).is_some_and(is_old) {
            return Some(RevokedBy::Subject);
        }
        if self.table(RevokedBy::Sub).count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.latest(RevokedBy::Sub, iss, &token.sub()?)
            .is_some_and(is_old)
            .then_some(RevokedBy::Sub)
    }

    /// Whether every token of this `iss` with this `jti` or `sid` is revoked.
    pub fn contains(&self, by: RevokedBy, iss: &str, value: &str) -> bool {
        self.latest(by, iss, value).is_some()
    }

    /// The cut-off of a subject: a token of this `iss` that is to be accepted must be issued after
    /// it.
    pub fn cutoff(&self, iss: &str, subject: &str) -> Option<u64> {
        self.latest(RevokedBy::Subject, iss, subject)
    }

    /// Whether this is in the list already, at its time or later.
    pub fn covers(&self, revocation: &Revocation) -> bool {
        let Revocation { scope, by, value, at } = revocation;
        let shard = self.table(*by).shards[self.place(value)].load();
        shard
            .get(value)
            .is_some_and(|marks| marks.iter().any(|mark| mark.scope == *scope && mark.at >= *at))
    }

    /// When this value was last revoked for tokens of this `iss`.
    fn latest(&self, by: RevokedBy, iss: &str, value: &str) -> Option<u64> {
        let table = self.table(by);
        if table.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let shard = table.shards[self.place(value)].load();
        shard.get(value)?.iter().filter(|mark| mark.scope.covers(iss)).map(|mark| mark.at).max()
    }

    /// Adds revocations. When this returns, whoever asks is told of them. What is there already
    /// keeps the later time.
    pub fn add(&self, revocations: impl IntoIterator<Item = Revocation>) {
        let mut of_shards: HashMap<(RevokedBy, usize), Vec<Revocation>> = HashMap::new();
        for revocation in revocations {
            of_shards
                .entry((revocation.by, self.place(&revocation.value)))
                .or_default()
                .push(revocation);
        }
        let noted = self.running();
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for ((by, place), revocations) in of_shards {
            let table = self.table(by);
            let mut shard = Shard::clone(&table.shards[place].load());
            let added = revocations
                .into_iter()
                .map(|revocation| usize::from(insert(&mut shard, revocation, noted)))
                .sum();
            table.shards[place].store(Arc::new(shard));
            table.count.fetch_add(added, Ordering::Release);
        }
    }

    /// Moves the cut-off of a subject of an issuer back, where it is far ahead of `to`: it was set
    /// while the clock was ahead, and other revocations hit those tokens now.
    pub fn lower_cutoff(&self, scope: &Scope, subject: &str, to: u64) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &self.table(RevokedBy::Subject).shards[self.place(subject)];
        let mut shard = Shard::clone(&place.load());
        let Some(marks) = shard.get_mut(subject) else { return };
        let lowered = marks.iter().cloned().map(|mark| {
            let is_meant = mark.scope == Scope::Every || mark.scope == *scope;
            let at = if is_meant && mark.at > to + FAR_AHEAD { to } else { mark.at };
            Mark { at, ..mark }
        });
        *marks = lowered.collect();
        place.store(Arc::new(shard));
    }

    /// Forgets what is of no more use: `is_over` is asked of each, with its scope, the time of its
    /// revocation, and for how many seconds it has been known here, which does not depend on the
    /// time of day.
    pub fn prune(&self, is_over: impl Fn(&Scope, u64, u64) -> bool) {
        let running = self.running();
        let is_over = |mark: &Mark| {
            is_over(&mark.scope, mark.at, u64::from(running.saturating_sub(mark.noted)))
        };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for table in &self.tables {
            if table.count.load(Ordering::Acquire) == 0 {
                continue;
            }
            for place in &table.shards {
                let shard = place.load();
                if !shard.values().any(|marks| marks.iter().any(is_over)) {
                    continue;
                }
                let mut kept = Shard::with_capacity(shard.len());
                for (value, marks) in shard.iter() {
                    let marks: Marks =
                        marks.iter().filter(|mark| !is_over(mark)).cloned().collect();
                    if !marks.is_empty() {
                        kept.insert(Arc::clone(value), marks);
                    }
                }
                let count = |shard: &Shard| shard.values().map(|marks| marks.len()).sum::<usize>();
                let gone = count(&shard) - count(&kept);
                place.store(Arc::new(kept));
                table.count.fetch_sub(gone, Ordering::Release);
            }
        }
    }

    /// How many revocations there are.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|table| table.count.load(Ordering::Relaxed)).sum()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn table(&self, by: RevokedBy) -> &Table {
        match by {
            RevokedBy::Jti => &self.tables[0],
            RevokedBy::Sid => &self.tables[1],
            RevokedBy::Subject => &self.tables[2],
            RevokedBy::Sub => &self.tables[3],
        }
    }

    fn running(&self) -> u32 {
        u32::try_from(self.clock.running().as_secs()).unwrap_or(u32::MAX)
    }

    fn place(&self, value: &str) -> usize {
        self.hasher.hash_one(value) as usize % SHARDS
    }
}

impl Default for RevocationList {
    fn default() -> Self {
        Self::new(Clock::system())
    }
}

impl fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationList").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Table {
    fn new() -> Self {
        let empty = Arc::new(Shard::new());
        Self {
            count: AtomicUsize::new(0),
            shards: (0..SHARDS).map(|_| ArcSwap::new(Arc::clone(&empty))).collect(),
        }
    }
}

/// Whether there is one more than before.
fn insert(shard: &mut Shard, revocation: Revocation, noted: u32) -> bool {
    let Revocation { scope, value, at, .. } = revocation;
    let Some(marks) = shard.get_mut(&value) else {
        shard.insert(value, Arc::new([Mark { scope, at, noted }]));
        return true;
    };
    let mut all = marks.to_vec();
    let known = all.iter_mut().find(|mark| mark.scope == scope);
    let is_new = known.is_none();
    match known {
        Some(mark) if mark.at < at => (mark.at, mark.noted) = (at, noted),
        Some(_) => {}
        None => all.push(Mark { scope, at, noted }),
    }
    *marks = all.into();
    is_new
}

/// Seconds. A cut-off of the right time, which comes as another is moved back, stays.
const FAR_AHEAD: u64 = 10;

/// Maps of each kind: with half a million entries, one more copies a hundred and twenty.
const SHARDS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::samples::{NOW, claims_with, issuers};
    use serde_json::{Value, json};

    fn revocation(by: RevokedBy, value: &str, scope: Scope, at: u64) -> Revocation {
        Revocation { scope, by, value: value.into(), at }
    }

    fn of(iss: &str) -> Scope {
        Scope::Issuer(iss.into())
    }

    /// A token of `https://corp.example` for `u-17`, with these claims in place of the usual ones.
    fn token(change: Value) -> VerifiedToken {
        issuers(|_| {}).assume("corp", claims_with(change), NOW).unwrap().as_if_verified().clone()
    }

    fn find(list: &RevocationList, change: Value) -> Option<RevokedBy> {
        list.revoked_by(&token(change))
    }

    #[test]
    fn a_cut_off_that_is_far_ahead_is_moved_back_and_no_other() {
        let list = RevocationList::default();
        let (one, other) = (of("https://corp.example"), of("https://other.example"));
        for scope in [&one, &other, &Scope::Every] {
            list.add([revocation(RevokedBy::Subject, "u", scope.clone(), NOW + 1000)]);
        }
        list.add([revocation(RevokedBy::Subject, "near", one.clone(), NOW + 10)]);
        for subject in ["u", "near", "nobody"] {
            list.lower_cutoff(&one, subject, NOW);
        }
        assert_eq!(list.cutoff("https://corp.example", "u"), Some(NOW));
        assert_eq!(list.cutoff("https://other.example", "u"), Some(NOW + 1000));
        assert_eq!(list.cutoff("https://corp.example", "near"), Some(NOW + 10));
        assert_eq!(list.len(), 4);
    }

    #[test]
    fn a_token_dies_by_its_jti_its_session_or_its_subject() {
        let usual = || json!({"jti": "t", "sid": "s"});
        let list = RevocationList::default();
        assert_eq!(find(&list, usual()), None);
        for (by, value) in
            [(RevokedBy::Jti, "t"), (RevokedBy::Sid, "s"), (RevokedBy::Subject, "u-17")]
        {
            let list = RevocationList::default();
            // The value counts for its own kind only.
            for other in
                RevokedBy::ALL.into_iter().filter(|other| *other != by && *other != RevokedBy::Sub)
            {
                list.add([revocation(other, value, Scope::Every, NOW)]);
            }
            assert_eq!(find(&list, usual()), None, "{by}");
            list.add([revocation(by, value, Scope::Every, NOW)]);
            assert_eq!(find(&list, usual()), Some(by));
            assert_eq!(
                find(&list, json!({"jti": "T", "sid": "S", "sub": "U-17"})),
                None,
                "{by}: case counts"
            );
            assert_eq!(
                find(&list, json!({"sub": "u-18"})),
                None,
                "{by}: a token without jti and sid"
            );
        }
    }

    #[test]
    fn a_subjects_cut_off_is_a_time() {
        let list = RevocationList::default();
        list.add([revocation(RevokedBy::Subject, "u-17", of("https://corp.example"), NOW)]);
        for (iat, dead) in [
            (json!(NOW - 1), true),
            (json!(NOW), true),
            (json!(NOW + 1), false),
            (json!(null), true),
        ] {
            assert_eq!(find(&list, json!({"iat": iat})).is_some(), dead, "{iat}");
        }
        // An earlier cut-off changes nothing, a later one does.
        list.add([revocation(RevokedBy::Subject, "u-17", of("https://corp.example"), NOW - 100)]);
        assert!(find(&list, json!({"iat": NOW})).is_some());
        list.add([revocation(RevokedBy::Subject, "u-17", of("https://corp.example"), NOW + 1)]);
        assert!(find(&list, json!({"iat": NOW + 1})).is_some());
        assert_eq!((list.len(), list.cutoff("https://corp.example", "u-17")), (1, Some(NOW + 1)));
        assert_eq!(list.cutoff("https://other.example", "u-17"), None);
    }

    #[test]
    fn a_revocation_is_of_one_issuer_or_of_every() {
        let session = || json!({"sid": "s"});
        for (scope, dead) in [
            (Scope::Every, true),
            (of("https://corp.example"), true),
            (of("https://corp.example/"), false),
            (of(""), false),
            (of("*"), false),
        ] {
            let list = RevocationList::default();
            list.add([
                revocation(RevokedBy::Sid, "s", of("https://other.example"), NOW),
                revocation(RevokedBy::Sid, "s", scope.clone(), NOW),
            ]);
            assert_eq!((find(&list, session()).is_some(), list.len()), (dead, 2), "{scope:?}");
        }
        // Tokens without `iss` have a scope of their own.
        let nameless = issuers(|settings| settings.issuer = None);
        let token =
            nameless.assume("corp", claims_with(json!({"iss": null, "sid": "s"})), NOW).unwrap();
        for (scope, dead) in
            [(Scope::Every, true), (of(""), true), (of("https://corp.example"), false)]
        {
            let list = RevocationList::default();
            list.add([revocation(RevokedBy::Sid, "s", scope.clone(), NOW)]);
            assert_eq!(list.revoked_by(token.as_if_verified()).is_some(), dead, "{scope:?}");
        }
    }

    #[test]
    fn what_is_over_is_forgotten_and_nothing_else() {
        let list = RevocationList::default();
        let all = |scope: &Scope| {
            (0..1_000_u64)
                .map(move |index| {
                    revocation(RevokedBy::Jti, &format!("t{index}"), scope.clone(), index)
                })
                .collect::<Vec<_>>()
        };
        list.add(all(&Scope::Every));
        list.add(all(&of("https://corp.example")));
        list.add(all(&of("https://corp.example")));
        assert_eq!(list.len(), 2_000);
        list.prune(|scope, at, _| *scope == Scope::Every && at < 600);
        assert_eq!(list.len(), 1_400);
        assert!(find(&list, json!({"jti": "t5"})).is_some(), "its issuer's own is kept");
        list.prune(|scope, at, _| *scope != Scope::Every || at < 600);
        assert_eq!((list.len(), list.is_empty()), (400, false));
        assert_eq!(
            (find(&list, json!({"jti": "t599"})), find(&list, json!({"jti": "t600"}))),
            (None, Some(RevokedBy::Jti))
        );
        list.prune(|_, _, _| true);
        assert!(list.is_empty());
    }

    /// A token from the future is there before the cut-off, whatever its `iat` says; one that
    /// nobody has brought yet is taken at its word.
    #[test]
    fn a_cut_off_hits_what_was_accepted_ahead_of_its_time() {
        let list = RevocationList::default();
        let revoke = |by: RevokedBy, value: &str, scope: Scope| {
            list.with_cutoff(revocation(by, value, scope, NOW)).at
        };
        list.note_if_early(&token(json!({"iat": NOW})), NOW);
        assert_eq!(revoke(RevokedBy::Subject, "u-17", Scope::Every), NOW);
        list.note_if_early(&token(json!({"iat": NOW + 20})), NOW);
        list.note_if_early(&token(json!({"iat": null})), NOW);
        for (by, value, scope, at) in [
            (RevokedBy::Subject, "u-17", Scope::Every, NOW + 20),
            (RevokedBy::Subject, "u-17", of("https://corp.example"), NOW + 20),
            (RevokedBy::Sub, "u-17", of("https://corp.example"), NOW + 20),
            (RevokedBy::Subject, "u-17", of("https://other.example"), NOW),
            (RevokedBy::Subject, "u-18", Scope::Every, NOW),
            (RevokedBy::Sid, "u-17", Scope::Every, NOW),
        ] {
            assert_eq!(revoke(by, value, scope.clone()), at, "{by} {value} {scope:?}");
        }
        list.add([list.with_cutoff(revocation(RevokedBy::Subject, "u-17", Scope::Every, NOW))]);
        assert!(
            find(&list, json!({"iat": NOW + 20})).is_some()
                && find(&list, json!({"iat": NOW + 21})).is_none()
        );
    }

    /// Readers see every revocation that was added before they ask, whatever else is being written.
    #[test]
    fn readers_and_writers_meet() {
        let list = RevocationList::default();
        std::thread::scope(|scope| {
            for writer in 0..4_u64 {
                let list = &list;
                scope.spawn(move || {
                    for index in 0..500 {
                        let value = format!("{writer}-{index}");
                        list.add([revocation(RevokedBy::Sid, &value, Scope::Every, NOW)]);
                        assert!(list.latest(RevokedBy::Sid, "", &value).is_some());
                        if index % 100 == 0 {
                            list.prune(|_, at, _| at < NOW);
                        }
                    }
                });
            }
        });
        assert_eq!(list.len(), 2_000);
    }
}
