//! Tokens that are accepted although their `iat` is ahead of our clock, within the `leeway` for
//! clock skew.
//!
//! A subject's cut-off must revoke them too: they existed before it, whatever their `iat` says. The
//! latest `iat` of each subject is therefore remembered until that time has passed, which takes
//! seconds. Nothing is remembered for an issuer whose clock agrees with ours.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::token::{RevokedBy, Scope};

/// The tokens that were accepted before their `iat`.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// By the kind of subject and `iss`.
    latest: Mutex<HashMap<(RevokedBy, Arc<str>), Subjects>>,
    /// Whether a token was ever recorded.
    is_used: AtomicBool,
}

/// The latest `iat` of each subject of an issuer.
#[derive(Debug, Default)]
struct Subjects {
    latest: HashMap<Arc<str>, u64>,
    /// Before this time, looking for subjects to forget would free nothing.
    full_until: u64,
}

impl Subjects {
    /// Whether this subject can be recorded. Forgets subjects whose time has passed if the table is
    /// full.
    fn has_room(&mut self, subject: &str, now: u64) -> bool {
        if self.latest.len() >= MAX_SUBJECTS
            && !self.latest.contains_key(subject)
            && now >= self.full_until
        {
            self.latest.retain(|_, issued_at| *issued_at > now);
            self.full_until = now + 1;
        }
        self.latest.len() < MAX_SUBJECTS || self.latest.contains_key(subject)
    }
}

impl Ahead {
    /// Records that a token of this `iss` and subject was accepted at `now`, before its `iat`.
    pub(super) fn note(&self, by: RevokedBy, iss: &str, subject: &str, issued_at: u64, now: u64) {
        self.is_used.store(true, Ordering::Release);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let of_issuer = latest.entry((by, iss.into())).or_default();
        // When the table is full, the entry covers every subject of the issuer: for a few seconds
        // too much is revoked, never too little.
        let subject = if of_issuer.has_room(subject, now) { subject } else { ALL_SUBJECTS };
        let noted = of_issuer.latest.entry(subject.into()).or_default();
        *noted = issued_at.max(*noted);
    }

    /// The latest `iat` of an early token that was accepted for this subject, or 0 if there was
    /// none.
    pub(super) fn latest(&self, by: RevokedBy, scope: &Scope, subject: &str) -> u64 {
        if !self.is_used.load(Ordering::Acquire) {
            return 0;
        }
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let covered = latest.iter().filter(|((of, iss), _)| *of == by && scope.covers(iss));
        covered
            .flat_map(|(_, of_issuer)| {
                [of_issuer.latest.get(subject), of_issuer.latest.get(ALL_SUBJECTS)]
            })
            .flatten()
            .copied()
            .max()
            .unwrap_or(0)
    }
}

/// How many subjects are remembered per issuer.
const MAX_SUBJECTS: usize = 10_000;

/// Covers all subjects of an issuer. The empty string is free: a subject is never empty.
const ALL_SUBJECTS: &str = "";

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn the_latest_iat_is_kept_per_issuer_and_subject() {
        let ahead = Ahead::default();
        let of = |iss: &str| Scope::Issuer(iss.into());
        assert_eq!(ahead.latest(RevokedBy::Subject, &Scope::Every, "u"), 0);
        for (iss, subject, issued_at) in
            [("x", "u", NOW + 9), ("x", "u", NOW + 5), ("y", "u", NOW + 7), ("x", "v", NOW + 20)]
        {
            ahead.note(RevokedBy::Subject, iss, subject, issued_at, NOW);
        }
        for (scope, subject, latest) in [
            (of("x"), "u", NOW + 9),
            (of("y"), "u", NOW + 7),
            (Scope::Every, "u", NOW + 9),
            (Scope::Every, "v", NOW + 20),
            (of("y"), "v", 0),
            (of(""), "u", 0),
        ] {
            assert_eq!(
                ahead.latest(RevokedBy::Subject, &scope, subject),
                latest,
                "{scope:?} {subject}"
            );
            assert_eq!(ahead.latest(RevokedBy::Sub, &scope, subject), 0);
        }
    }

    #[test]
    fn the_list_is_bounded_and_drops_past_times_first() {
        let ahead = Ahead::default();
        let note = |subject: &str, issued_at, now| {
            ahead.note(RevokedBy::Subject, "x", subject, issued_at, now);
        };
        let latest = |subject: &str| ahead.latest(RevokedBy::Subject, &Scope::Every, subject);
        for index in 0..MAX_SUBJECTS {
            note(&index.to_string(), NOW + 1 + index as u64 % 2, NOW);
        }
        note("u", NOW + 9, NOW + 1);
        assert_eq!(
            (latest("u"), latest("0"), latest("1"), latest("nobody")),
            (NOW + 9, 0, NOW + 2, 0)
        );
        for index in 0..=MAX_SUBJECTS {
            note(&format!("more {index}"), NOW + 8, NOW + 1);
        }
        assert_eq!(
            (latest("u"), latest("nobody")),
            (NOW + 9, NOW + 8),
            "too much rather than too little"
        );
        assert!(
            ahead
                .latest
                .lock()
                .unwrap()
                .values()
                .all(|of_issuer| of_issuer.latest.len() <= MAX_SUBJECTS + 1)
        );
        // Once their time has passed, there is room again.
        note("late", NOW + 30, NOW + 8);
        assert_eq!((latest("late"), latest("nobody")), (NOW + 30, 0));
    }
}
