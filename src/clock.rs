//! The time: the system's, or one that a test sets.
//!
//! This is the only module that asks the operating system for the time of day, which may jump when
//! the system's clock is set. It also tells how long the process has run, which does not jump. Code
//! that measures short durations uses `std::time::Instant`.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time of day. Clones always show the same time, even after one of them was moved.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { made: Instant },
    Fixed(Arc<Fixed>),
}

#[derive(Debug)]
struct Fixed {
    /// Nanoseconds since 1970.
    time: AtomicU64,
    /// Nanoseconds.
    running: AtomicU64,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Source::System { made: Instant::now() })
    }

    /// A clock that stays at `unix_seconds` (seconds since 1970, up to the year 2554) until it is
    /// moved, for tests.
    pub fn fixed(unix_seconds: u64) -> Self {
        let time = AtomicU64::new(unix_seconds.saturating_mul(NANOS_PER_SECOND));
        Self(Source::Fixed(Arc::new(Fixed { time, running: AtomicU64::new(0) })))
    }

    /// Sets the time of day of a fixed clock and all its clones, as an operator corrects a wrong
    /// clock: no time passes. It does nothing on the system's clock.
    pub fn set(&self, unix_seconds: u64) {
        if let Source::Fixed(fixed) = &self.0 {
            fixed.time.store(unix_seconds.saturating_mul(NANOS_PER_SECOND), Ordering::Release);
        }
    }

    /// Moves a fixed clock and all its clones forward by `duration` (at most 584 years in total).
    /// It does nothing on the system's clock.
    pub fn advance(&self, duration: Duration) {
        if let Source::Fixed(fixed) = &self.0 {
            let by = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            let move_on = |now: u64| Some(now.saturating_add(by));
            // Cannot fail: the closure never returns `None`.
            let _ = fixed.time.fetch_update(Ordering::AcqRel, Ordering::Acquire, move_on);
            let _ = fixed.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, move_on);
        }
    }

    /// The time since this clock, or the one it was cloned from, was created, by the monotonic
    /// clock: setting the time of day does not change it. The time while a machine is suspended
    /// does not count.
    pub fn running(&self) -> Duration {
        match &self.0 {
            Source::System { made } => made.elapsed(),
            Source::Fixed(fixed) => Duration::from_nanos(fixed.running.load(Ordering::Acquire)),
        }
    }

    /// Whole seconds since 1970, as `exp` and `iat` of a token count them.
    pub fn unix_seconds(&self) -> u64 {
        self.unix_time().as_secs()
    }

    /// The time since 1970 at `moment`, for callers that have just read the monotonic clock. The
    /// system's time of day is read once a second per thread, so a step in it is noticed up to a
    /// second later.
    pub fn unix_time_at(&self, moment: Instant) -> Duration {
        let Source::System { .. } = &self.0 else { return self.unix_time() };
        let known = ANCHOR.get().and_then(|(asked, then)| {
            let since = moment.checked_duration_since(asked)?;
            (since < ANCHOR_HOLDS).then(|| then + since)
        });
        known.unwrap_or_else(|| {
            let now = self.unix_time();
            ANCHOR.set(Some((moment, now)));
            now
        })
    }

    /// The time since 1970, at the system's resolution; zero if its clock is before 1970.
    pub fn unix_time(&self) -> Duration {
        match &self.0 {
            Source::System { .. } => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "this is the Clock that all other code uses"
                )]
                let now = SystemTime::now();
                now.duration_since(UNIX_EPOCH).unwrap_or_default()
            }
            Source::Fixed(fixed) => Duration::from_nanos(fixed.time.load(Ordering::Acquire)),
        }
    }
}

/// The time of day by which expired rows are deleted.
///
/// A machine may start with a clock that is years ahead and correct it within minutes, but deleted
/// rows do not come back. This is therefore the earliest time that the clock has shown in the last
/// hour, measured by the monotonic clock. A process has none in its first hour.
#[derive(Debug, Default)]
pub struct SettledTime {
    /// By [`Clock::running`]: the last look that is an hour old, and those since.
    seen: VecDeque<(Duration, Duration)>,
}

impl SettledTime {
    /// Looks at the clock. To be called every few minutes.
    pub fn look(&mut self, clock: &Clock) -> Option<Duration> {
        let running = clock.running();
        self.seen.push_back((running, clock.unix_time()));
        let is_old = |(at, _): &(Duration, Duration)| running.saturating_sub(*at) >= SETTLES_IN;
        while self.seen.get(1).is_some_and(is_old) {
            self.seen.pop_front();
        }
        self.seen.front().filter(|first| is_old(first))?;
        self.seen.iter().map(|(_, time)| *time).min()
    }
}

thread_local! {
    /// A time of the monotonic clock, and the time of day at that moment.
    static ANCHOR: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// How long an anchor is used.
const ANCHOR_HOLDS: Duration = Duration::from_secs(1);

/// How long the clock must have run before rows are deleted by it.
const SETTLES_IN: Duration = Duration::from_hours(1);

const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_clock_moves_only_when_set_and_with_its_clones() {
        let clock = Clock::fixed(1_700_000_000);
        let clone = clock.clone();
        assert_eq!(clock.unix_time(), Duration::from_secs(1_700_000_000));
        clone.advance(Duration::from_millis(1_500));
        assert_eq!(clock.unix_seconds(), 1_700_000_001);
        assert_eq!(clock.unix_time(), Duration::from_millis(1_700_000_001_500));
        clone.set(1_800_000_000);
        assert_eq!(clock.unix_seconds(), 1_800_000_000);
        assert_eq!(clock.running(), Duration::from_millis(1_500), "no time has passed");
    }

    #[test]
    fn the_time_of_day_follows_the_monotonic_clock() {
        let clock = Clock::system();
        let begun = Instant::now();
        let then = clock.unix_time_at(begun);
        assert!(clock.unix_time() < then + Duration::from_secs(10));
        // Within the second, the time follows the monotonic clock; before and after it, the
        // system's clock.
        assert_eq!(
            clock.unix_time_at(begun + Duration::from_millis(900)),
            then + Duration::from_millis(900)
        );
        assert!(
            clock.unix_time_at(begun + Duration::from_secs(100)) < then + Duration::from_secs(50)
        );
        let fixed = Clock::fixed(1_700_000_000);
        assert_eq!(
            fixed.unix_time_at(begun + Duration::from_secs(7)),
            Duration::from_secs(1_700_000_000)
        );
    }

    #[test]
    fn a_time_settles_within_an_hour_of_running() {
        const NOW: u64 = 1_800_000_000;
        let (clock, mut settled) = (Clock::fixed(NOW), SettledTime::default());
        let minutes = |number: u64| Duration::from_mins(number);
        for _ in 0..12 {
            assert_eq!(settled.look(&clock), None);
            clock.advance(minutes(5));
        }
        assert_eq!(settled.look(&clock), Some(Duration::from_secs(NOW)));
        clock.advance(minutes(5));
        assert_eq!(settled.look(&clock), Some(Duration::from_secs(NOW) + minutes(5)));
        // Far ahead for less than an hour, and set right again.
        clock.set(2 * NOW);
        for _ in 0..11 {
            clock.advance(minutes(5));
            assert!(settled.look(&clock).unwrap() < Duration::from_secs(NOW) + minutes(66));
        }
        clock.set(NOW + 7200);
        for _ in 0..13 {
            clock.advance(minutes(5));
            assert!(settled.look(&clock).unwrap() < Duration::from_secs(NOW) + minutes(126));
        }
        assert!(settled.seen.len() <= 13, "{}", settled.seen.len());
    }

    #[test]
    fn extreme_times_saturate() {
        let clock = Clock::fixed(u64::MAX);
        clock.advance(Duration::MAX);
        assert_eq!(clock.unix_time(), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn the_system_clock_is_plausible_and_cannot_be_set() {
        let clock = Clock::system();
        let before = clock.unix_seconds();
        clock.advance(Duration::from_secs(1_000_000));
        assert!(before > 1_600_000_000 && clock.unix_seconds() < before + 1_000);
    }
}
