//! How many requests a client, or a caller, may make in a time: GCRA by `governor`, in this
//! process.
//!
//! A `Limit` owns its counters, and there is one for all workers, so that the budget holds for the
//! process. It bounds both the rate of each key and the number of keys that it remembers (`store`).
//! It never sleeps and never queues: a request is let through or told when to come again.
//!
//! A client that can make up keys could take every place that the limit has, and lock everybody else
//! out. So keys that one client can make up share a budget as well, [`GROUP`] times that of one key:
//! all networks of an IPv6 /48, and all accounts that one address names. It is taken first, and a
//! request that exceeds it takes no key.
//!
//! With `count = "failures"` the cell is taken on entry and given back when the answer was none, so
//! that guesses made in parallel gain nothing. No more is given back than is left of the cell: a
//! request that was held open until its cell had been replenished anyway must not pay for a guess
//! made since.

use std::cell::Cell as Slot;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use governor::clock::{Clock as _, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter};

use self::store::{Asked, Key, Store};

mod store;

/// What a limit allows, and of whom. Two limits of equal settings may share their counters across a
/// reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many requests of one key may come at once, and in each `per`.
    pub requests: NonZeroU32,
    /// The time in which all `requests` are replenished, one after the other; taken as 1 ms to 366
    /// days.
    pub per: Duration,
    /// How many leading bits of an IPv6 address name a client: 0 to 128, more counts as 128.
    pub ipv6_prefix: u8,
    /// Which requests count.
    pub count: Count,
    /// Whom a request is counted against.
    pub key: KeyKind,
    /// Count and log, refuse nothing. The limit itself answers alike: it is for its caller to let
    /// the request through.
    pub observe: bool,
    /// How many keys are remembered at the same time, at least 1. Each costs about 50 bytes. When
    /// this many are remembered, keys that are not among them are refused.
    pub max_clients: usize,
}

/// Which requests count against a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Every request.
    All,
    /// Those that failed: of the others, the cell is to be given back.
    Failures,
}

/// Whom a request is counted against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// The client's address: before authentication, by [`Limit::take_client`].
    Client,
    /// The caller: after authentication, by [`Limit::take_subject`].
    Subject,
    /// The client's address together with the account that it names: by
    /// [`Limit::take_client_and_account`]. Requests that name none do not count.
    ClientAndAccount,
}

/// A budget of requests for each client or caller.
#[derive(Debug)]
pub struct Limit {
    name: Box<str>,
    settings: Settings,
    /// Of each key.
    keys: Budgets,
    /// Of all the keys that one client can make up.
    groups: Budgets,
}

/// One budget for each of its keys.
#[derive(Debug)]
struct Budgets {
    limiter: RateLimiter<Asked, Store, Timer, NoOpMiddleware<Nanos>>,
    store: Store,
}

impl Settings {
    /// Whether it bounds what one address may do, whatever the outcome.
    pub fn bounds_each_client(&self) -> bool {
        self.key == KeyKind::Client && self.count == Count::All && !self.observe
    }
}

impl Limit {
    /// A limit whose counters all stand at zero. `name` is the section's, for logs and metrics.
    pub fn new(name: &str, settings: Settings) -> Self {
        Self::with_timer(name, settings, Timer::Monotonic(Instant::now()))
    }

    /// As [`Limit::new`], but time passes only when `clock` is moved, for tests.
    pub fn with_clock(name: &str, settings: Settings, clock: FakeRelativeClock) -> Self {
        Self::with_timer(name, settings, Timer::Set { start: clock.now(), clock })
    }

    fn with_timer(name: &str, settings: Settings, timer: Timer) -> Self {
        let interval = emission_interval(&settings);
        let (requests, most) = (settings.requests, settings.max_clients);
        let of_group = (interval / GROUP.get()).max(Duration::from_nanos(1));
        Self {
            name: name.into(),
            keys: Budgets::new(interval, requests, most, timer.clone()),
            groups: Budgets::new(of_group, requests.saturating_mul(GROUP), most, timer),
            settings,
        }
    }

    /// The section's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made of.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether it only counts: a request that exceeds it is let through nevertheless.
    pub fn observes(&self) -> bool {
        self.settings.observe
    }

    /// Takes one cell for the client at `ip`. An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`)
    /// is that IPv4 address; IPv6 addresses count by their prefix.
    pub fn take_client(&self, ip: IpAddr) -> Result<Cell, Exceeded> {
        self.take(self.client(ip), [self.network(ip), None])
    }

    /// Takes one cell for the client at `ip` as far as it tries `account`, in the account's one
    /// form.
    pub fn take_client_and_account(&self, ip: IpAddr, account: &str) -> Result<Cell, Exceeded> {
        let client = self.client(ip);
        let address: &[u8] = match &client {
            Key::V4(ip) => ip,
            Key::V6(ip) | Key::Network(ip) | Key::Digest(ip) => ip,
        };
        let digest = digest(&[address, account.as_bytes()]);
        self.take(Key::Digest(digest), [self.network(ip), Some(client)])
    }

    /// Takes one cell for `account`, whoever tries it.
    pub fn take_account(&self, account: &str) -> Result<Cell, Exceeded> {
        self.take(Key::Digest(digest(&[account.as_bytes()])), [None, None])
    }

    /// Takes one cell for the caller that is known as `subject` at `issuer`.
    pub fn take_subject(&self, issuer: &str, subject: &str) -> Result<Cell, Exceeded> {
        let digest = digest(&[issuer.as_bytes(), subject.as_bytes()]);
        self.take(Key::Digest(digest), [None, None])
    }

    /// Gives a cell back, as though the request had not been made, as far as it has not been
    /// replenished meanwhile.
    #[expect(clippy::needless_pass_by_value, reason = "a cell can be given back only once")]
    pub fn give_back(&self, cell: Cell) {
        self.keys.give_back(&cell.key);
        self.give_back_to_groups(&cell.groups);
    }

    /// How many keys are remembered, at most `max_clients`.
    pub fn len(&self) -> usize {
        self.keys.store.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the keys whose budget is whole again, and returns their memory. For a timer, every
    /// minute or so.
    pub fn prune(&self) {
        self.keys.prune();
        self.groups.prune();
    }

    fn client(&self, ip: IpAddr) -> Key {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Key::V4(ip.octets()),
            IpAddr::V6(ip) => Key::V6(masked(ip, self.settings.ipv6_prefix)),
        }
    }

    /// The network of an IPv6 address, where that holds more than one client.
    fn network(&self, ip: IpAddr) -> Option<Key> {
        match ip.to_canonical() {
            IpAddr::V6(ip) if self.settings.ipv6_prefix > NETWORK => {
                Some(Key::Network(masked(ip, NETWORK)))
            }
            _ => None,
        }
    }

    /// Takes a cell of each group, then of the key. Where one has none left, none is taken: a client
    /// that is refused uses up nothing of its neighbours' budget.
    fn take(&self, key: Key, groups: [Option<Key>; 2]) -> Result<Cell, Exceeded> {
        let mut taken = [None, None];
        for (slot, group) in taken.iter_mut().zip(groups) {
            let Some(group) = group else { continue };
            match self.groups.take(group) {
                Ok(share) => *slot = Some(share),
                Err(exceeded) => {
                    self.give_back_to_groups(&taken);
                    return Err(exceeded);
                }
            }
        }
        match self.keys.take(key) {
            Ok(key) => Ok(Cell { key, groups: taken }),
            Err(exceeded) => {
                self.give_back_to_groups(&taken);
                Err(exceeded)
            }
        }
    }

    fn give_back_to_groups(&self, groups: &[Option<Share>; 2]) {
        groups.iter().flatten().for_each(|share| self.groups.give_back(share));
    }
}

impl Budgets {
    fn new(interval: Duration, requests: NonZeroU32, most: usize, timer: Timer) -> Self {
        let quota = Quota::with_period(interval).map(|quota| quota.allow_burst(requests));
        let quota = quota.expect("the emission interval is at least a nanosecond");
        let store = Store::new(interval, requests, most);
        Self { limiter: RateLimiter::new(quota, store.clone(), timer), store }
    }

    fn take(&self, key: Key) -> Result<Share, Exceeded> {
        let asked = Asked { key, until: Slot::new(0) };
        match self.limiter.check_key(&asked) {
            Ok(()) => Ok(Share { key, until: asked.until.get() }),
            Err(not_until) => {
                Err(Exceeded { retry_after: not_until.wait_time_from(self.limiter.clock().now()) })
            }
        }
    }

    fn give_back(&self, share: &Share) {
        self.store.give_back(&share.key, share.until, self.limiter.clock().now().as_u64());
    }

    fn prune(&self) {
        self.store.prune(self.limiter.clock().now().as_u64());
    }
}

/// One request's share of a budget. Dropping it leaves it taken.
#[derive(Debug)]
#[must_use = "what is not given back stays taken: say so with `drop`"]
pub struct Cell {
    key: Share,
    groups: [Option<Share>; 2],
}

/// What a cell takes from one budget.
#[derive(Debug)]
struct Share {
    key: Key,
    /// The theoretical arrival time that the cell left behind, in nanoseconds of the limiter's
    /// clock.
    until: u64,
}

/// There was no cell left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rate limit is exceeded, and has room again in {retry_after:?}")]
pub struct Exceeded {
    /// The time after which a request can pass, when nobody else takes its place before.
    pub retry_after: Duration,
}

impl Exceeded {
    /// The value of `Retry-After` (RFC 9110 §10.2.3): whole seconds, rounded up so that a client
    /// that waits for them is not refused again, and at least 1.
    pub fn retry_after_seconds(&self) -> u64 {
        let part = u64::from(self.retry_after.subsec_nanos() > 0);
        self.retry_after.as_secs().saturating_add(part).max(1)
    }
}

/// The limiter's own clock: monotonic, so that setting the time of day neither opens nor shuts a
/// limit. It begins at zero, because governor hands its store the time since the limiter was made.
#[derive(Clone, Debug)]
enum Timer {
    Monotonic(Instant),
    Set { clock: FakeRelativeClock, start: Nanos },
}

impl governor::clock::Clock for Timer {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        match self {
            Self::Monotonic(start) => Nanos::from(start.elapsed()),
            Self::Set { clock, start } => clock.now().saturating_sub(*start),
        }
    }
}

/// The time in which one cell is replenished.
fn emission_interval(settings: &Settings) -> Duration {
    let per = settings.per.clamp(MIN_PER, MAX_PER);
    (per / settings.requests.get()).max(Duration::from_nanos(1))
}

fn masked(ip: Ipv6Addr, prefix: u8) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(prefix))).unwrap_or(0);
    (u128::from(ip) & mask).to_be_bytes()
}

/// Half of SHA-256 over the parts with their lengths in front, so that no two lists read the same:
/// to find another one with the digest of somebody else takes 2^128 attempts.
fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut half = [0; 16];
    half.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    half
}

/// How many times the budget of one key the keys that one client can make up have together.
pub const GROUP: NonZeroU32 = NonZeroU32::new(32).expect("not zero");

/// The leading bits of an IPv6 address that name a site (RFC 6177): one subscriber can hold all the
/// networks below.
const NETWORK: u8 = 48;

const MIN_PER: Duration = Duration::from_millis(1);
const MAX_PER: Duration = Duration::from_hours(366 * 24);

#[cfg(test)]
mod tests;
