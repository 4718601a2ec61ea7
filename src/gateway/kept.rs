//! What the line makes of a remembered token once, and finds again at its next request.
//!
//! It lies beside the token, in one block: with many callers, what a request costs is how many
//! places in memory it has to look at.

use std::any::Any;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderValue;

use crate::token::VerifiedToken;

/// Something of a snapshot, known by its address. It is held, so that nothing else can have that
/// address.
type Owner = Arc<dyn Any + Send + Sync>;

/// What is kept beside one token.
#[derive(Default)]
pub(super) struct Kept {
    /// The demands that it was last found to meet, the latest first.
    met: [Option<Owner>; 2],
    /// The identity headers that it was last told in, and their values.
    headers: Option<Owner>,
    values: [Option<HeaderValue>; IN_PLACE],
    more_values: Vec<Option<HeaderValue>>,
}

/// The values for which there is room in the block itself. The default is five identity headers.
const IN_PLACE: usize = 6;

impl Kept {
    /// What is kept beside this token.
    pub(super) fn of(token: &VerifiedToken) -> Option<MutexGuard<'_, Self>> {
        let kept = token.beside(Mutex::<Self>::default)?;
        Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the token was found to meet these very demands. Neither of them ever changes.
    pub(super) fn meets<T>(&self, demands: &Arc<T>) -> bool {
        self.met.iter().flatten().any(|met| is(met, demands))
    }

    /// It was found to meet these demands.
    pub(super) fn met<T: Any + Send + Sync>(&mut self, demands: &Arc<T>) {
        self.met.swap(0, 1);
        self.met[0] = Some(Arc::clone(demands) as Owner);
    }

    /// Hands the values of these headers for the token to `each`, one for each: made by `make` if
    /// others were asked for last, and kept if they take no more than `room` bytes.
    pub(super) fn values<T: Any + Send + Sync>(
        &mut self,
        headers: &Arc<T>,
        room: impl FnOnce() -> usize,
        make: impl FnOnce() -> Vec<Option<HeaderValue>>,
        each: impl FnMut(Option<&HeaderValue>),
    ) {
        if !self.headers.as_ref().is_some_and(|kept| is(kept, headers)) {
            let values = make();
            let text: usize = values.iter().flatten().map(HeaderValue::len).sum();
            if text + values.len().saturating_sub(IN_PLACE) * size_of::<Option<HeaderValue>>()
                > room()
            {
                return values.iter().map(Option::as_ref).for_each(each);
            }
            let mut values = values.into_iter();
            self.values = std::array::from_fn(|_| values.next().flatten());
            self.more_values = values.collect();
            self.headers = Some(Arc::clone(headers) as Owner);
        }
        self.values.iter().chain(&self.more_values).map(Option::as_ref).for_each(each);
    }
}

fn is<T>(owner: &Owner, other: &Arc<T>) -> bool {
    ptr::addr_eq(Arc::as_ptr(owner), Arc::as_ptr(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_by_itself_and_the_two_latest_are_kept() {
        let demands: Vec<Arc<u8>> = vec![Arc::new(1), Arc::new(1), Arc::new(1)];
        let mut kept = Kept::default();
        assert!(!kept.meets(&demands[0]));
        for one in &demands {
            kept.met(one);
        }
        assert_eq!(
            demands.iter().map(|one| kept.meets(one)).collect::<Vec<_>>(),
            [false, true, true]
        );
    }

    #[test]
    fn values_are_made_once_for_each_owner_however_many_they_are() {
        let owners: Vec<Arc<u8>> = vec![Arc::new(0), Arc::new(0)];
        let mut kept = Kept::default();
        let value = |number: usize| (number % 3 != 1).then(|| HeaderValue::from(number));
        let mut calls = 0;
        for (owner, count, expected) in [(0, 9, 1), (0, 9, 1), (1, 2, 2), (1, 2, 2), (0, 9, 3)] {
            let mut values = Vec::new();
            let make = || {
                calls += 1;
                (0..count).map(value).collect()
            };
            kept.values(&owners[owner], || 1_000, make, |value| values.push(value.cloned()));
            values.truncate(count);
            assert_eq!(values, (0..count).map(value).collect::<Vec<_>>());
            assert_eq!(calls, expected);
        }
    }

    #[test]
    fn what_has_no_room_is_made_each_time() {
        let (small, large): (Arc<u8>, Arc<u8>) = (Arc::new(0), Arc::new(0));
        let mut kept = Kept::default();
        for (owner, length, expected) in
            [(&small, 9, 1), (&large, 11, 1), (&small, 9, 0), (&large, 11, 1)]
        {
            let (mut calls, mut told) = (0, Vec::new());
            let make = || {
                calls += 1;
                vec![None, Some(HeaderValue::from_str(&"x".repeat(length)).unwrap())]
            };
            kept.values(owner, || 10, make, |value| told.push(value.map(HeaderValue::len)));
            told.truncate(2);
            assert_eq!((calls, told), (expected, vec![None, Some(length)]));
        }
    }
}
