//! What the gateway works out about a remembered token once, and finds again at its next request.
//!
//! It is in one block with the token: with many callers, what a request costs is how many places in
//! memory it has to look at.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::guard::Demands;
use super::headers::IdentityHeaders;
use crate::token::{Memo, Remembered, VerifiedToken};

/// What is kept with one token.
#[derive(Debug, Default)]
pub struct TokenMemo {
    found: Mutex<Found>,
    logged: OnceLock<Box<str>>,
}

impl Memo for TokenMemo {
    fn max_heap_bytes(token: &VerifiedToken) -> usize {
        // The log names the subject, and adds names of members, the issuer, a session's id.
        header_room(token) + token.subject().len() + LOGGED
    }
}

impl TokenMemo {
    /// Whether the token meets these demands: `check` is asked once for each of the last two.
    /// Neither the token nor the demands ever change.
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

    /// What the access log says about the caller: written when it is first asked for.
    pub(super) fn logged(&self, write: impl FnOnce() -> Box<str>) -> &str {
        self.logged.get_or_init(write)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets one value of each identity header, and none where the claim is absent or an object. The
/// values are made once for a caller that is remembered.
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
        || header_room(caller),
        || identity.values(caller),
        |value| set(names.next(), value),
    );
}

/// The most bytes that the values of identity headers may take for a token: what its claims say
/// once more, and something for what they have to be written in.
fn header_room(token: &VerifiedToken) -> usize {
    ROOM + token.text_bytes()
}

/// What was found about one token.
#[derive(Debug, Default)]
struct Found {
    /// The demands that it was last found to meet, the latest first.
    met: [Option<Arc<Demands>>; 2],
    /// The identity headers that were last made for it, and their values.
    headers: Option<Arc<IdentityHeaders>>,
    values: [Option<HeaderValue>; IN_PLACE],
    more_values: Vec<Option<HeaderValue>>,
}

/// The values for which there is room in the block itself. The default is five identity headers.
const IN_PLACE: usize = 6;

/// What may be kept for a token that says nothing.
const ROOM: usize = 256;

/// What the log says of a token besides its subject.
const LOGGED: usize = 160;

impl Found {
    /// Whether the token was found to meet these very demands.
    fn meets(&self, demands: &Arc<Demands>) -> bool {
        self.met.iter().flatten().any(|met| Arc::ptr_eq(met, demands))
    }

    /// It was found to meet these demands.
    fn met(&mut self, demands: &Arc<Demands>) {
        self.met.swap(0, 1);
        self.met[0] = Some(Arc::clone(demands));
    }

    /// Hands the values of these headers for the token to `each`, one for each: made by `make` if
    /// others were asked for last, and kept if they take no more than `room` bytes.
    fn values(
        &mut self,
        headers: &Arc<IdentityHeaders>,
        room: impl FnOnce() -> usize,
        make: impl FnOnce() -> Vec<Option<HeaderValue>>,
        each: impl FnMut(Option<&HeaderValue>),
    ) {
        if !self.headers.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, headers)) {
            let values = make();
            let text: usize = values.iter().flatten().map(HeaderValue::len).sum();
            let more = values.len().saturating_sub(IN_PLACE) * size_of::<Option<HeaderValue>>();
            if text + more > room() {
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
    fn each_is_known_by_itself_and_the_two_latest_are_kept() {
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
    fn values_are_made_once_for_each_owner_however_many_they_are() {
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
    fn what_has_no_room_is_made_each_time() {
        let (small, large): (Arc<IdentityHeaders>, Arc<IdentityHeaders>) = Default::default();
        let mut found = Found::default();
        for (owner, length, expected) in
            [(&small, 9, 1), (&large, 11, 1), (&small, 9, 0), (&large, 11, 1)]
        {
            let (mut calls, mut told) = (0, Vec::new());
            let make = || {
                calls += 1;
                vec![None, Some(HeaderValue::from_str(&"x".repeat(length)).unwrap())]
            };
            found.values(owner, || 10, make, |value| told.push(value.map(HeaderValue::len)));
            told.truncate(2);
            assert_eq!((calls, told), (expected, vec![None, Some(length)]));
        }
    }
}
