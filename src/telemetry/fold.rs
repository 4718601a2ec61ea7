//! A log event that comes in floods: the first is written at once, then one every ten seconds.

use std::sync::atomic::{AtomicU64, Ordering};

/// The state of one such event, owned by whoever writes it.
#[derive(Debug, Default)]
pub struct Fold {
    /// In Unix seconds. Nothing is written before.
    next: AtomicU64,
    folded: AtomicU64,
}

impl Fold {
    /// Returns `Some` if the event is due at `now`, in Unix seconds. The number is how many events
    /// were dropped since the last one that was written.
    pub fn admit(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        // A clock that was set back must not silence the line.
        let is_due = now >= next || next > now + INTERVAL;
        let is_ours = is_due
            && self
                .next
                .compare_exchange(next, now + INTERVAL, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_ours {
            return Some(self.folded.swap(0, Ordering::Relaxed));
        }
        self.folded.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// Seconds between two equal events.
const INTERVAL: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_event_in_ten_seconds_with_a_count_of_the_rest() {
        let fold = Fold::default();
        assert_eq!(fold.admit(1_000), Some(0));
        assert_eq!((fold.admit(1_000), fold.admit(1_009)), (None, None));
        assert_eq!(fold.admit(1_010), Some(2));
        assert_eq!(fold.admit(1_011), None);
        assert_eq!(fold.admit(900), Some(1), "the clock was set back");
    }
}
