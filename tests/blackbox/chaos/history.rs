//! What clients have sent and got, and what was disrupted meanwhile.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::harness::accounts::Tokens;

/// Everything that has happened, in no order.
#[derive(Default)]
pub struct History {
    pub entries: Mutex<Vec<Entry>>,
    pub faults: Mutex<Vec<Fault>>,
    /// The clients for whom a gateway counted alone for a while, which its log says.
    pub counted_apart: Mutex<HashSet<String>>,
    /// How long heartbeats took while nothing was disrupted: the upper bound of each bucket in
    /// seconds, and how many were at most that long.
    pub beats: Mutex<Vec<(f64, f64)>>,
}

/// A request and its answer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `None`: a command.
    pub gateway: Option<usize>,
    pub sent: Instant,
    pub answered: Instant,
    /// `None`: it is unknown what became of it. A command that succeeds has 200.
    pub status: Option<u16>,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Register {
        email: String,
        password: String,
    },
    Login {
        email: String,
        password: String,
    },
    /// Changes the password to this one.
    Change {
        email: String,
        password: String,
    },
    /// Uses an access token.
    Access {
        token: String,
    },
    /// Exchanges a refresh token, and what for.
    Refresh {
        token: String,
        made: Option<Tokens>,
    },
    /// Revokes these access tokens. `ends`: the refresh tokens that end with them.
    Revoke {
        tokens: Vec<String>,
        ends: Option<String>,
    },
    /// Asks for what is limited, as this client.
    Limited {
        client: String,
    },
}

/// Something was killed or stopped, until everything worked again.
#[derive(Clone, Debug)]
pub struct Fault {
    pub what: &'static str,
    /// Which gateways could not hear from the database meanwhile.
    pub cuts_off: [bool; 3],
    /// Whether counters were lost: a gateway's, or those of Redis.
    pub forgets: Option<Forgets>,
    pub from: Instant,
    pub until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    Gateway,
    Redis,
}

impl Fault {
    pub fn overlaps(&self, from: Instant, until: Instant) -> bool {
        self.from <= until && self.until.is_none_or(|end| end >= from)
    }
}

impl History {
    pub fn note(&self, entry: Entry) {
        self.entries.lock().unwrap().push(entry);
    }

    pub fn begin(&self, fault: Fault) {
        self.faults.lock().unwrap().push(fault);
    }

    pub fn end_fault(&self) {
        self.faults.lock().unwrap().last_mut().unwrap().until = Some(Instant::now());
    }

    pub fn add_beats(&self, buckets: Vec<(f64, f64)>) {
        let mut beats = self.beats.lock().unwrap();
        if beats.is_empty() {
            *beats = buckets;
        } else {
            beats.iter_mut().zip(buckets).for_each(|(sum, (_, count))| sum.1 += count);
        }
    }
}

/// The value below which this part of them are. Sorts them.
pub fn quantile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (times.len() as f64 * part).ceil() as usize;
    times.get(index.saturating_sub(1)).copied().unwrap_or_default()
}
