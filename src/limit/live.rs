//! By how many gateways a budget is divided while its store is away.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many gateways were live when they were last counted.
///
/// A smaller number is believed only when it has lasted: a server that has just come back has not
/// heard from every gateway yet, and may go away again at once.
#[derive(Debug, Default)]
pub struct LiveGateways(Mutex<Option<Counted>>);

#[derive(Clone, Copy, Debug)]
struct Counted {
    gateways: NonZeroU32,
    at: Instant,
}

impl LiveGateways {
    /// Notes how many were counted just now, this one included.
    pub fn note(&self, counted: u32) {
        self.note_at(counted, Instant::now());
    }

    /// The number, once they were counted.
    pub fn known(&self) -> Option<NonZeroU32> {
        self.last().map(|last| last.gateways)
    }

    fn note_at(&self, counted: u32, now: Instant) {
        let gateways = NonZeroU32::new(counted).unwrap_or(NonZeroU32::MIN);
        let mut last = self.last();
        let is_believed = last
            .is_none_or(|last| gateways >= last.gateways || now.duration_since(last.at) >= DOUBTED);
        if is_believed {
            *last = Some(Counted { gateways, at: now });
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
        for (second, counted, known) in
            [(0, 1, 1), (1, 3, 3), (2, 3, 3), (3, 1, 3), (11, 2, 3), (12, 2, 2), (13, 3, 3)]
        {
            live.note_at(counted, start + Duration::from_secs(second));
            assert_eq!(live.known().map(NonZeroU32::get), Some(known), "in second {second}");
        }
    }
}
