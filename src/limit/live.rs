//! By how many gateways a budget is divided while its store is away, and which of them this one is.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A gateway among those that share a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// How many gateways there are, this one included.
    pub gateways: NonZeroU32,
    /// How many of them come before this one, in an order that all of them know.
    pub rank: u32,
}

impl Place {
    /// The only gateway.
    pub const ALONE: Self = Self { gateways: NonZeroU32::MIN, rank: 0 };
}

/// How many gateways were live when they were last counted.
///
/// A smaller number is believed only when it has lasted: a server that has just come back has not
/// heard from every gateway yet, and may go away again at once.
#[derive(Debug, Default)]
pub struct LiveGateways(Mutex<Option<Counted>>);

#[derive(Clone, Copy, Debug)]
struct Counted {
    place: Place,
    at: Instant,
}

impl LiveGateways {
    /// Notes how many were counted just now, this one included, and how many come before it.
    pub fn note(&self, counted: u32, rank: u32) {
        self.note_at(counted, rank, Instant::now());
    }

    /// The place of this one, once they were counted.
    pub fn known(&self) -> Option<Place> {
        self.last().map(|last| last.place)
    }

    fn note_at(&self, counted: u32, rank: u32, now: Instant) {
        let gateways = NonZeroU32::new(counted).unwrap_or(NonZeroU32::MIN);
        let mut last = self.last();
        let is_believed = last.is_none_or(|last| {
            gateways >= last.place.gateways || now.duration_since(last.at) >= DOUBTED
        });
        if is_believed {
            *last = Some(Counted { place: Place { gateways, rank }, at: now });
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After how long without a beat a gateway no longer counts, and how long a smaller number is
/// doubted.
const DOUBTED: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_number_is_believed_when_it_lasts() {
        let (live, start) = (LiveGateways::default(), Instant::now());
        assert_eq!(live.known(), None);
        for (second, (counted, rank), known) in [
            (0, (1, 0), (1, 0)),
            (1, (3, 2), (3, 2)),
            (2, (3, 1), (3, 1)),
            (3, (1, 0), (3, 1)),
            (11, (2, 0), (3, 1)),
            (12, (2, 0), (2, 0)),
            (13, (3, 0), (3, 0)),
        ] {
            live.note_at(counted, rank, start + Duration::from_secs(second));
            let place = live.known().map(|place| (place.gateways.get(), place.rank));
            assert_eq!(place, Some(known), "in second {second}");
        }
    }
}
