//! The blacklist of an existing application: a token is revoked while a key that names it exists in
//! a store of that application.
//!
//! The keys are learned in the background ([`crate::redis`]), so checking a token is a look-up in
//! memory. Until all of them were read once, nothing is known about any token.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{RevokedBy, VerifiedToken};

/// The names of the keys: a text that contains one of `{jti}`, `{sid}` and `{sub}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPattern {
    before: Box<str>,
    by: RevokedBy,
    after: Box<str>,
}

/// Why a text is not the pattern of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It does not contain exactly one placeholder.
    #[error("the pattern of the keys contains exactly one of `{{jti}}`, `{{sid}}` and `{{sub}}`")]
    Placeholder,
    /// It consists of the placeholder.
    #[error("every key would match this pattern")]
    Everything,
}

impl KeyPattern {
    /// Reads a pattern such as `bl_{jti}`.
    ///
    /// # Errors
    /// [`InvalidPattern`].
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let places =
            [("{jti}", RevokedBy::Jti), ("{sid}", RevokedBy::Sid), ("{sub}", RevokedBy::Sub)];
        let mut found = places.into_iter().filter_map(|(name, by)| {
            text.split_once(name).map(|(before, after)| Self {
                before: before.into(),
                by,
                after: after.into(),
            })
        });
        let (Some(pattern), None) = (found.next(), found.next()) else {
            return Err(InvalidPattern::Placeholder);
        };
        if [&pattern.before, &pattern.after].iter().any(|part| part.contains(['{', '}'])) {
            return Err(InvalidPattern::Placeholder);
        }
        if pattern.before.is_empty() && pattern.after.is_empty() {
            return Err(InvalidPattern::Everything);
        }
        Ok(pattern)
    }

    /// Every key that matches, as a glob of Redis.
    pub fn glob(&self) -> String {
        let escaped = |text: &str| {
            text.chars().fold(String::new(), |mut escaped, letter| {
                if matches!(letter, '*' | '?' | '[' | ']' | '^' | '\\') {
                    escaped.push('\\');
                }
                escaped.push(letter);
                escaped
            })
        };
        format!("{}*{}", escaped(&self.before), escaped(&self.after))
    }

    /// The key of a value.
    pub fn key(&self, value: &str) -> String {
        format!("{}{value}{}", self.before, self.after)
    }

    /// The value in a key, if it matches.
    pub fn value<'k>(&self, key: &'k str) -> Option<&'k str> {
        let value = key.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        (!value.is_empty()).then_some(value)
    }
}

/// The keys of one issuer that exist, as far as they are known.
pub struct RevokedKeys {
    pattern: KeyPattern,
    /// Whether something keeps the list up to date.
    is_followed: AtomicBool,
    /// Whether all keys were read once.
    is_known: AtomicBool,
    /// Selects the map of a value. Randomly seeded, so that nobody can choose values that end up in
    /// one map.
    hasher: RandomState,
    shards: Box<[ArcSwap<Shard>]>,
    /// Held while writing.
    writing: Mutex<()>,
}

/// Values, and when their keys expire, by the running time of the process.
type Shard = HashMap<Arc<str>, Duration>;

impl RevokedKeys {
    /// Knows no key yet.
    pub fn new(pattern: KeyPattern) -> Self {
        let empty = Arc::new(Shard::new());
        Self {
            pattern,
            is_followed: AtomicBool::new(false),
            is_known: AtomicBool::new(false),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| ArcSwap::new(Arc::clone(&empty))).collect(),
            writing: Mutex::new(()),
        }
    }

    /// The names of the keys.
    pub fn pattern(&self) -> &KeyPattern {
        &self.pattern
    }

    /// Announces that the caller keeps the list up to date from now on. Returns false if somebody
    /// does already.
    pub fn follow(&self) -> bool {
        !self.is_followed.swap(true, Ordering::AcqRel)
    }

    /// Whether the list can be relied on: all keys were read once, or nothing follows it because
    /// the decision is made without a store (`explain`).
    pub fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Acquire) || !self.is_followed.load(Ordering::Acquire)
    }

    /// What revokes this token, if its key exists.
    pub fn revoked_by(&self, token: &VerifiedToken) -> Option<RevokedBy> {
        let is_listed = match self.pattern.by {
            RevokedBy::Jti => self.contains(token.jti()?),
            RevokedBy::Sid => self.contains(token.sid()?),
            RevokedBy::Subject | RevokedBy::Sub => self.contains(&token.sub()?),
        };
        is_listed.then_some(self.pattern.by)
    }

    /// The number of known keys.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.load().len()).sum()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the key of this value is known.
    pub fn contains(&self, value: &str) -> bool {
        self.shards[self.place(value)].load().contains_key(value)
    }

    /// Records what is known about the keys of these values: when they expire, or `None` if they do
    /// not exist. It takes effect before this returns.
    pub fn record(&self, values: impl IntoIterator<Item = (Arc<str>, Option<Duration>)>) {
        let mut of_shards: HashMap<usize, Vec<_>> = HashMap::new();
        for (value, expires) in values {
            of_shards.entry(self.place(&value)).or_default().push((value, expires));
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, values) in of_shards {
            let mut shard = Shard::clone(&self.shards[place].load());
            for (value, expires) in values {
                match expires {
                    Some(expires) => drop(shard.insert(value, expires)),
                    None => drop(shard.remove(&value)),
                }
            }
            self.shards[place].store(Arc::new(shard));
        }
    }

    /// Replaces the list by all keys that exist. If the store has `lost` its data, keys that it no
    /// longer has stay until they would have expired; `now` is the running time of the process.
    pub fn replace(&self, existing: HashMap<Arc<str>, Duration>, lost: bool, now: Duration) {
        let mut of_shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::new()).collect();
        for (value, expires) in existing {
            of_shards[self.place(&value)].insert(value, expires);
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for (shard, mut next) in self.shards.iter().zip(of_shards) {
            if lost {
                let known = shard.load();
                let kept = known.iter().filter(|(_, expires)| **expires > now);
                for (value, expires) in kept {
                    next.entry(Arc::clone(value)).or_insert(*expires);
                }
            }
            shard.store(Arc::new(next));
        }
        self.is_known.store(true, Ordering::Release);
    }

    fn place(&self, value: &str) -> usize {
        self.hasher.hash_one(value) as usize % SHARDS
    }
}

impl fmt::Debug for RevokedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevokedKeys").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

/// The number of maps: adding a key to a hundred thousand copies about a hundred.
const SHARDS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::samples::{NOW, claims_with, issuers};
    use serde_json::json;

    #[test]
    fn a_pattern_names_one_claim() {
        let pattern = KeyPattern::parse("bl_{jti}").unwrap();
        assert_eq!(
            (pattern.value("bl_a"), pattern.value("bl_"), pattern.value("b_a")),
            (Some("a"), None, None)
        );
        let pattern = KeyPattern::parse("app:[1]*:{sid}:end").unwrap();
        assert_eq!(pattern.glob(), "app:\\[1\\]\\*:*:end");
        assert_eq!(pattern.value("app:[1]*:s:1:end"), Some("s:1"));
        for (text, error) in [
            ("bl_", InvalidPattern::Placeholder),
            ("bl_{jti}{sid}", InvalidPattern::Placeholder),
            ("bl_{jti}{jti}", InvalidPattern::Placeholder),
            ("{x}{jti}", InvalidPattern::Placeholder),
            ("bl_{iss}", InvalidPattern::Placeholder),
            ("{jti}", InvalidPattern::Everything),
        ] {
            assert_eq!(KeyPattern::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_token_is_revoked_while_its_key_exists() {
        let claims = || claims_with(json!({"jti": "t", "sid": "s", "sub": "u-17"}));
        let token = issuers(|_| {}).assume("corp", claims(), NOW).unwrap().as_if_verified().clone();
        for (text, value, by) in [
            ("bl_{jti}", "t", RevokedBy::Jti),
            ("bl_{sid}", "s", RevokedBy::Sid),
            ("bl_{sub}", "u-17", RevokedBy::Sub),
        ] {
            let keys = RevokedKeys::new(KeyPattern::parse(text).unwrap());
            assert_eq!(keys.revoked_by(&token), None);
            keys.record([(value.into(), Some(Duration::MAX))]);
            assert_eq!((keys.revoked_by(&token), keys.len()), (Some(by), 1));
            keys.record([(value.into(), None)]);
            assert_eq!((keys.revoked_by(&token), keys.is_empty()), (None, true));
        }
    }

    /// What was revoked does not become valid because a server was restarted empty.
    #[test]
    fn lost_keys_stay_until_they_would_have_expired() {
        let second = Duration::from_secs;
        let keys = RevokedKeys::new(KeyPattern::parse("bl_{jti}").unwrap());
        assert!(keys.is_known() && keys.follow() && !keys.follow() && !keys.is_known());
        let all = [("a".into(), second(10)), ("b".into(), second(20)), ("c".into(), Duration::MAX)];
        keys.replace(all.into(), false, second(0));
        assert!(keys.is_known());
        keys.replace([("d".into(), second(30))].into(), true, second(10));
        assert_eq!(
            ["a", "b", "c", "d"].map(|value| keys.contains(value)),
            [false, true, true, true]
        );
        keys.replace(HashMap::new(), false, second(10));
        assert!(keys.is_empty());
    }
}
