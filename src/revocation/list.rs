//! The list of revoked tokens, as the request pipeline checks it.
//!
//! The process has one list, in memory. Reading it takes no lock, and while nothing is revoked, it
//! only reads one counter per kind. Its owner ([`Revocations`](super::Revocations))
//! writes it and also keeps it in the store. Each kind is spread over many small maps that are
//! copied when they change, so adding a revocation costs the same with ten entries as with half a
//! million.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;

use super::ahead::Ahead;
use crate::clock::Clock;
use crate::token::{Revocation, RevokedBy, Scope, VerifiedToken};

/// All revocations. The process owns one.
pub struct RevocationList {
    tables: [Table; 4],
    /// Selects the map for a value. Its keys are random, so nobody can choose values that all end
    /// up in one map.
    hasher: RandomState,
    /// Held while writing.
    writing: Mutex<()>,
    /// Early tokens, which a cut-off must revoke although it is before their `iat`.
    ahead: Ahead,
    clock: Clock,
    watcher: OnceLock<Watcher>,
}

/// Told what was revoked, by kind and value, once the list contains it.
type Watcher = Box<dyn Fn(&[(RevokedBy, Arc<str>)]) + Send + Sync>;

/// The revocations of one kind.
struct Table {
    /// The number of entries. While it is zero, nothing else is read.
    count: AtomicUsize,
    shards: Box<[ArcSwap<Shard>]>,
}

type Shard = HashMap<Arc<str>, Marks>;

/// The issuers for which a value is revoked, and since when. Nearly always one.
type Marks = Arc<[Mark]>;

#[derive(Clone, Debug)]
struct Mark {
    scope: Scope,
    at: u64,
    /// When `at` became known here, in seconds of [`Clock::running`].
    noted: u32,
}

impl RevocationList {
    /// Creates an empty list.
    pub fn new(clock: Clock) -> Self {
        Self {
            tables: RevokedBy::ALL.map(|_| Table::new()),
            hasher: RandomState::new(),
            writing: Mutex::new(()),
            ahead: Ahead::default(),
            clock,
            watcher: OnceLock::new(),
        }
    }

    /// Tells `watcher` what is added from now on, on the thread that adds it. Only the first call
    /// has an effect.
    pub fn watch(&self, watcher: impl Fn(&[(RevokedBy, Arc<str>)]) + Send + Sync + 'static) {
        // A second watcher could only belong to a second gateway, which does not exist.
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// Call this before a token is checked against the list at `now`, in Unix seconds. If the token
    /// is accepted although its `iat` is in the future, a cut-off that is added later revokes it
    /// ([`RevocationList::with_cutoff`]).
    pub fn note_if_early(&self, token: &VerifiedToken, now: u64) {
        let Some(issued_at) = token.issued_at().filter(|issued_at| *issued_at > now) else {
            return;
        };
        if token.is_ours() {
            // The built-in issuer records in the store what it issues, in the transaction that
            // issues it, and a cut-off covers exactly that.
            return;
        }
        let iss = token.issuer().unwrap_or_default();
        self.ahead.note(RevokedBy::Subject, iss, token.subject(), issued_at, now);
        if let Some(sub) = token.sub() {
            self.ahead.note(RevokedBy::Sub, iss, &sub, issued_at, now);
        }
    }

    /// Raises the cut-off of a revocation so that it covers every token that was accepted so far.
    /// Call it before adding the revocation and again afterwards: a token that was accepted in
    /// between raises the cut-off again.
    pub fn with_cutoff(&self, revocation: Revocation) -> Revocation {
        let Revocation { scope, by, value, at } = &revocation;
        let at = match by {
            RevokedBy::Jti | RevokedBy::Sid => *at,
            RevokedBy::Subject | RevokedBy::Sub => self.ahead.latest(*by, scope, value).max(*at),
        };
        Revocation { at, ..revocation }
    }

    /// What revokes this token, if anything. Checked for every request, including those with a
    /// cached token.
    pub fn revoked_by(&self, token: &VerifiedToken) -> Option<RevokedBy> {
        if let Some(by) = token.revoked_keys().and_then(|keys| keys.revoked_by(token)) {
            return Some(by);
        }
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

    /// Whether every token with this `iss` and this `jti` or `sid` is revoked.
    pub fn contains(&self, by: RevokedBy, iss: &str, value: &str) -> bool {
        self.latest(by, iss, value).is_some()
    }

    /// The cut-off of a subject: only tokens with this `iss` that were issued after it are
    /// accepted.
    pub fn cutoff(&self, iss: &str, subject: &str) -> Option<u64> {
        self.latest(RevokedBy::Subject, iss, subject)
    }

    /// Whether the list already contains this revocation, with the same or a later time.
    pub fn covers(&self, revocation: &Revocation) -> bool {
        let Revocation { scope, by, value, at } = revocation;
        let shard = self.table(*by).shards[self.place(value)].load();
        shard
            .get(value)
            .is_some_and(|marks| marks.iter().any(|mark| mark.scope == *scope && mark.at >= *at))
    }

    /// When this value was last revoked for tokens with this `iss`.
    fn latest(&self, by: RevokedBy, iss: &str, value: &str) -> Option<u64> {
        let table = self.table(by);
        if table.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let shard = table.shards[self.place(value)].load();
        shard.get(value)?.iter().filter(|mark| mark.scope.covers(iss)).map(|mark| mark.at).max()
    }

    /// Adds revocations. They take effect before this returns. Of two revocations of the same
    /// value, the later time is kept.
    pub fn add(&self, revocations: impl IntoIterator<Item = Revocation>) {
        let watcher = self.watcher.get();
        let mut added = Vec::new();
        let mut of_shards: HashMap<(RevokedBy, usize), Vec<Revocation>> = HashMap::new();
        for revocation in revocations {
            if watcher.is_some() {
                added.push((revocation.by, Arc::clone(&revocation.value)));
            }
            of_shards
                .entry((revocation.by, self.place(&revocation.value)))
                .or_default()
                .push(revocation);
        }
        self.insert_all(of_shards);
        if let Some(watcher) = watcher {
            watcher(&added);
        }
    }

    fn insert_all(&self, of_shards: HashMap<(RevokedBy, usize), Vec<Revocation>>) {
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

    /// Lowers the cut-off of an issuer's subject to `to` if it is far later: it was set while the
    /// clock was ahead, and other revocations cover those tokens now.
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

    /// Removes obsolete entries. `is_over` is called with the scope of each entry, the time of its
    /// revocation, and the number of seconds for which it has been known here, which does not
    /// depend on the time of day.
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

    /// All revocations.
    pub fn all(&self) -> Vec<Revocation> {
        let mut all = Vec::with_capacity(self.len());
        for (table, by) in RevokedBy::ALL.into_iter().map(|by| (self.table(by), by)) {
            for shard in &table.shards {
                for (value, marks) in shard.load().iter() {
                    all.extend(marks.iter().map(|mark| Revocation {
                        scope: mark.scope.clone(),
                        by,
                        value: Arc::clone(value),
                        at: mark.at,
                    }));
                }
            }
        }
        all
    }

    /// The number of revocations.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|table| table.count.load(Ordering::Relaxed)).sum()
    }

    /// Whether the list is empty.
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

/// Returns whether the number of entries grew.
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

/// In seconds. A correct cut-off that arrives while another is being lowered is not affected.
const FAR_AHEAD: u64 = 10;

/// The number of maps per kind. With half a million entries, adding one copies about a hundred and
/// twenty.
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

    /// A token of `https://corp.example` for `u-17`, with these claims instead of the default ones.
    fn token(change: Value) -> VerifiedToken {
        issuers(|_| {}).assume("corp", claims_with(change), NOW).unwrap().as_if_verified().clone()
    }

    fn find(list: &RevocationList, change: Value) -> Option<RevokedBy> {
        list.revoked_by(&token(change))
    }

    #[test]
    fn only_a_cut_off_far_ahead_is_moved_back() {
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
    fn a_token_is_revoked_by_jti_session_or_subject() {
        let usual = || json!({"jti": "t", "sid": "s"});
        let list = RevocationList::default();
        assert_eq!(find(&list, usual()), None);
        for (by, value) in
            [(RevokedBy::Jti, "t"), (RevokedBy::Sid, "s"), (RevokedBy::Subject, "u-17")]
        {
            let list = RevocationList::default();
            // The value only matches its own kind.
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
    fn a_subject_revocation_covers_tokens_up_to_its_time() {
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
        // An earlier cut-off changes nothing; a later one does.
        list.add([revocation(RevokedBy::Subject, "u-17", of("https://corp.example"), NOW - 100)]);
        assert!(find(&list, json!({"iat": NOW})).is_some());
        list.add([revocation(RevokedBy::Subject, "u-17", of("https://corp.example"), NOW + 1)]);
        assert!(find(&list, json!({"iat": NOW + 1})).is_some());
        assert_eq!((list.len(), list.cutoff("https://corp.example", "u-17")), (1, Some(NOW + 1)));
        assert_eq!(list.cutoff("https://other.example", "u-17"), None);
    }

    #[test]
    fn a_revocation_is_for_one_issuer_or_for_all() {
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
        // Tokens without `iss` have their own scope.
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
    fn only_expired_revocations_are_dropped() {
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

    /// A token from the future existed before the cut-off, whatever its `iat` says. One that was
    /// never presented is taken at its word.
    #[test]
    fn a_cut_off_covers_tokens_accepted_before_their_iat() {
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

    /// Readers see every revocation that was added before they ask, whatever is being written at
    /// the same time.
    #[test]
    fn concurrent_readers_and_writers_work() {
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
