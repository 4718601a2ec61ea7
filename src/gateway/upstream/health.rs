//! Whether an application accepts connections at all.
//!
//! Each request to a machine that does not respond would wait for `connect_timeout`, with a file
//! descriptor. After a few such timeouts in a row, one request at a time tries again, and the
//! others fail at once. As soon as a connection succeeds or is refused, all of them connect.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::ConnectError;

/// How many connection attempts in a row must time out.
const TIMEOUTS: u32 = 3;

/// The state of an application's connections, for the whole process.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// How many attempts in a row have timed out.
    timeouts: AtomicU32,
    is_probing: AtomicBool,
}

/// A permitted attempt to connect.
pub(super) struct Attempt<'a> {
    health: &'a Health,
    is_probe: bool,
}

impl Health {
    /// Permits an attempt.
    ///
    /// # Errors
    /// [`ConnectError::Suspended`] if the last ones timed out and another one is under way.
    pub(super) fn attempt(&self) -> Result<Attempt<'_>, ConnectError> {
        let is_probe = self.timeouts.load(Ordering::Relaxed) >= TIMEOUTS;
        if is_probe && self.is_probing.swap(true, Ordering::Acquire) {
            return Err(ConnectError::Suspended);
        }
        Ok(Attempt { health: self, is_probe })
    }
}

impl Attempt<'_> {
    /// Notes the result.
    pub(super) fn ended<T>(self, result: &Result<T, ConnectError>) {
        match result {
            Err(error) if error.is_timeout() => {
                self.health.timeouts.fetch_add(1, Ordering::Relaxed);
            }
            // Even a refusal means that the machine responds.
            _ if self.health.timeouts.load(Ordering::Relaxed) > 0 => {
                self.health.timeouts.store(0, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.health.is_probing.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_timeouts_one_attempt_at_a_time_is_permitted() {
        let health = Health::default();
        let timeout = Err::<(), _>(ConnectError::Timeout);
        for _ in 0..TIMEOUTS {
            health.attempt().unwrap().ended(&timeout);
        }
        let probe = health.attempt().unwrap();
        assert!(matches!(health.attempt(), Err(ConnectError::Suspended)));
        probe.ended(&timeout);
        // A client that goes away takes its attempt with it.
        drop(health.attempt().unwrap());
        let probe = health.attempt().unwrap();
        probe.ended(&Err::<(), _>(ConnectError::NoAddress));
        let both = [health.attempt(), health.attempt()];
        assert!(both.iter().all(Result::is_ok));
    }
}
