//! File descriptors: as many as the connections need.

use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Resource, getrlimit, setrlimit};

/// The limit of open files is lower than what is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The limit.
    pub limit: u64,
    /// What `max_connections` needs.
    pub needed: u64,
}

/// Raises the limit of open files to what this many connections need, as far as the system lets it.
pub fn make_room(connections: usize) -> Option<Shortage> {
    // Each has a client's socket and an upstream's.
    let needed = (connections as u64).saturating_mul(2).saturating_add(OWN);
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return None;
    }
    limit.current = Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed)));
    // Where it fails, the limit is as it was.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile)
        .current
        .filter(|current| *current < needed)
        .map(|limit| Shortage { limit, needed })
}

/// Whether a socket has one of the last descriptors, which are for probes, the store and the log.
/// The system gives the lowest number that is free (POSIX.1-2024, `socket`): the number tells how
/// many are open.
pub fn is_among_the_last(socket: &impl AsFd) -> bool {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    u64::try_from(socket.as_fd().as_raw_fd()).is_ok_and(|number| number >= limit - reserved(limit))
}

/// How many of so many are reserved.
fn reserved(limit: u64) -> u64 {
    (limit / 8).min(64)
}

impl Shortage {
    /// How many connections the limit leaves room for: more would use up what probes, the store and
    /// upstreams need.
    pub fn connections(&self) -> usize {
        let most = (self.limit.saturating_sub(OWN) / 2).max(self.limit / 4);
        usize::try_from(most).unwrap_or(usize::MAX)
    }
}

/// What the process has open besides connections: listeners, the store, the log, threads' wake-ups.
const OWN: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_cannot_be_raised_enough_is_reported() {
        let before = getrlimit(Resource::Nofile);
        assert_eq!(make_room(0), None);
        if let Some(maximum) = before.maximum {
            let shortage = Shortage { limit: maximum, needed: u64::MAX };
            assert_eq!(make_room(usize::MAX), Some(shortage));
        }
    }

    #[test]
    fn the_last_descriptors_are_reserved() {
        for (limit, number) in [(64, 8), (1_024, 64), (u64::MAX, 64)] {
            assert_eq!(reserved(limit), number, "{limit}");
        }
        assert!(!is_among_the_last(&std::io::stdin()));
    }

    #[test]
    fn a_low_limit_reserves_descriptors_besides_connections() {
        for (limit, most) in [(60, 15), (1_024, 384), (20_000, 9_872)] {
            assert_eq!(Shortage { limit, needed: 20_256 }.connections(), most, "{limit}");
        }
    }
}
