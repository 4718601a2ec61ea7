//! What the gateway derives once from a cached token and reuses for its next request.
//!
//! It shares one block of memory with the token: with many callers, the cost of a request is the
//! number of places in memory that it touches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::guard::Demands;
use super::headers::IdentityHeaders;
use crate::token::{Memo, Remembered, VerifiedToken};

/// Derived values of one token.
#[derive(Debug, Default)]
pub struct TokenMemo {
    found: Mutex<Found>,
    logged: OnceLock<Box<str>>,
    is_used: AtomicBool,
}

impl Memo for TokenMemo {
    fn max_heap_bytes(token: &VerifiedToken) -> usize {
        // The log contains the subject, plus member names, the issuer and a session id.
        max_header_bytes(token) + token.subject().len() + LOGGED_BYTES
    }
}

impl TokenMemo {
    /// Whether the token meets these demands. Skips `check` for the two demands that the token met
    /// most recently. Neither the token nor the demands ever change.
    pub(super) fn meets<E>(
        &self,
        demands: &Arc<Demands>,
        check: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut found = self.found();
        if !found.meets(demands) {
            check()?;
            found.met(demands);
        }
        Ok(())
    }

    /// The access log fields of the caller, written on first use.
    pub(super) fn logged(&self, write: impl FnOnce() -> Box<str>) -> &str {
        self.logged.get_or_init(write)
    }

    /// Whether this is the first call for this token.
    pub(super) fn is_first_use(&self) -> bool {
        !self.is_used.load(Ordering::Relaxed) && !self.is_used.swap(true, Ordering::Relaxed)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets one value for each identity header, and none if the claim is absent or an object. For a
/// cached caller, the values are made only once.
pub(super) fn set_identity_headers(
    identity: &Arc<IdentityHeaders>,
    caller: &Remembered<TokenMemo>,
    headers: &mut HeaderMap,
) {
    let mut names = identity.names();
    let mut set = |name: Option<&HeaderName>, value: Option<&HeaderValue>| {
        if let (Some(name), Some(value)) = (name, value) {
            headers.insert(name.clone(), value.clone());
        }
    };
    caller.memo().found().values(
        identity,
        || max_header_bytes(caller),
        || identity.values(caller),
        |value| set(names.next(), value),
    );
}

/// The largest size of a token's identity header values in bytes: the text of its claims, plus some
/// overhead for their encoding.
fn max_header_bytes(token: &VerifiedToken) -> usize {
    BASE_BYTES + token.text_bytes()
}

/// What is known about one token.
#[derive(Debug, Default)]
struct Found {
    /// The demands that it most recently met, the latest first.
    met: [Option<Arc<Demands>>; 2],
    /// The identity headers that were last made for it, and their values.
    headers: Option<Arc<IdentityHeaders>>,
    values: [Option<HeaderValue>; INLINE_VALUES],
    more_values: Vec<Option<HeaderValue>>,
}

/// The number of values that fit in the block itself. The default is five identity headers.
const INLINE_VALUES: usize = 6;

/// The bytes allowed for a token with empty claims.
const BASE_BYTES: usize = 256;

/// The size of a token's log fields without its subject.
const LOGGED_BYTES: usize = 160;

impl Found {
    /// Whether the token is known to meet exactly these demands.
    fn meets(&self, demands: &Arc<Demands>) -> bool {
        self.met.iter().flatten().any(|met| Arc::ptr_eq(met, demands))
    }

    /// Records that the token meets these demands.
    fn met(&mut self, demands: &Arc<Demands>) {
        self.met.swap(0, 1);
        self.met[0] = Some(Arc::clone(demands));
    }

    /// Calls `each` with the token's value for each of these headers. Calls `make` if the kept
    /// values belong to other headers, and keeps the new ones if they take no more than `max_bytes`
    /// bytes.
    fn values(
        &mut self,
        headers: &Arc<IdentityHeaders>,
        max_bytes: impl FnOnce() -> usize,
        make: impl FnOnce() -> Vec<Option<HeaderValue>>,
        each: impl FnMut(Option<&HeaderValue>),
    ) {
        if !self.headers.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, headers)) {
            let values = make();
            let text: usize = values.iter().flatten().map(HeaderValue::len).sum();
            let more =
                values.len().saturating_sub(INLINE_VALUES) * size_of::<Option<HeaderValue>>();
            if text + more > max_bytes() {
                return values.iter().map(Option::as_ref).for_each(each);
            }
            let mut values = values.into_iter();
            self.values = std::array::from_fn(|_| values.next().flatten());
            self.more_values = values.collect();
            self.headers = Some(Arc::clone(headers));
        }
        self.values.iter().chain(&self.more_values).map(Option::as_ref).for_each(each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_latest_demands_are_remembered() {
        let demands: Vec<Arc<Demands>> = vec![Arc::default(), Arc::default(), Arc::default()];
        let mut found = Found::default();
        assert!(!found.meets(&demands[0]));
        for one in &demands {
            found.met(one);
        }
        assert_eq!(
            demands.iter().map(|one| found.meets(one)).collect::<Vec<_>>(),
            [false, true, true]
        );
    }

    #[test]
    fn values_are_computed_once_per_set_of_headers() {
        let owners: Vec<Arc<IdentityHeaders>> = vec![Arc::default(), Arc::default()];
        let mut found = Found::default();
        let value = |number: usize| (number % 3 != 1).then(|| HeaderValue::from(number));
        let mut calls = 0;
        for (owner, count, expected) in [(0, 9, 1), (0, 9, 1), (1, 2, 2), (1, 2, 2), (0, 9, 3)] {
            let mut values = Vec::new();
            let make = || {
                calls += 1;
                (0..count).map(value).collect()
            };
            found.values(&owners[owner], || 1_000, make, |value| values.push(value.cloned()));
            values.truncate(count);
            assert_eq!(values, (0..count).map(value).collect::<Vec<_>>());
            assert_eq!(calls, expected);
        }
    }

    #[test]
    fn values_that_exceed_the_bound_are_computed_each_time() {
        let (small, large): (Arc<IdentityHeaders>, Arc<IdentityHeaders>) = Default::default();
        let mut found = Found::default();
        for (owner, length, expected) in
            [(&small, 9, 1), (&large, 11, 1), (&small, 9, 0), (&large, 11, 1)]
        {
            let (mut calls, mut seen) = (0, Vec::new());
            let make = || {
                calls += 1;
                vec![None, Some(HeaderValue::from_str(&"x".repeat(length)).unwrap())]
            };
            found.values(owner, || 10, make, |value| seen.push(value.map(HeaderValue::len)));
            seen.truncate(2);
            assert_eq!((calls, seen), (expected, vec![None, Some(length)]));
        }
    }
}
