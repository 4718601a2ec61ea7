//! A line of the log that comes in floods: written at once, and then once a minute.

use std::sync::atomic::{AtomicU64, Ordering};

/// Owned by whatever writes the line.
#[derive(Debug, Default)]
pub struct Fold {
    /// Unix seconds: before then nothing is written.
    next: AtomicU64,
    folded: AtomicU64,
}

impl Fold {
    /// Whether the line is to be written at `now`, in Unix seconds: then with how many times it was
    /// not, since it was written last.
    pub fn admit(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        // A clock that was set back does not keep it silent.
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

/// Seconds between two of the same.
const INTERVAL: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_a_minute_that_counts_the_others() {
        let fold = Fold::default();
        assert_eq!(fold.admit(1_000), Some(0));
        assert_eq!((fold.admit(1_000), fold.admit(1_059)), (None, None));
        assert_eq!(fold.admit(1_060), Some(2));
        assert_eq!(fold.admit(1_061), None);
        assert_eq!(fold.admit(900), Some(1), "the clock was set back");
    }
}
