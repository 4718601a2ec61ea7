//! Rate limits: how many requests a client or caller may make in a period. GCRA, by `governor`,
//! within this process; with several gateways, also in a store that they share (`shared`).
//!
//! A `Limit` owns its counters, which all workers share, so that the budget applies to the process.
//! It bounds both the rate per key and the number of keys that it remembers (`store`). It never
//! queues: a request is allowed, or refused with the time of a retry. Only [`Limit::confirm`] waits,
//! for the store of a shared limit.
//!
//! A client that can invent keys could use up all slots of a limit and lock everyone else out. Keys
//! that one client can invent therefore also share a group budget, [`GROUP`] times that of one key:
//! all networks of an IPv6 /48, and all accounts that one address names. The group's cell is taken
//! first, and a request that exceeds it takes no key.
//!
//! With `count = "failures"`, the cell is taken when the request arrives and returned if it did not
//! fail, so that parallel guesses gain nothing. Only what is left of the cell is returned: a
//! request that was held open until its cell was replenished anyway must not compensate for a guess
//! made since.

use std::cell::Cell as Slot;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use governor::clock::{Clock as _, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter};

pub use self::live::{LiveGateways, Place};
pub use self::shared::{Budget, Returned, SharedStore, Unavailable, Verdict};
use self::shared::{Elsewhere, Sharing};
use self::store::{Asked, Key, Store};

mod live;
mod shared;
mod store;

/// What a limit allows, and for whom. Two limits with equal settings may share their counters
/// across a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The number of requests per key in each `per`. They may all come at once.
    pub requests: NonZeroU32,
    /// The time in which all `requests` are replenished, one by one. Clamped to between 1 ms and
    /// 366 days.
    pub per: Duration,
    /// The prefix length that identifies a client by its IPv6 address: 0 to 128; larger values
    /// count as 128.
    pub ipv6_prefix: u8,
    /// Which requests count.
    pub count: Count,
    /// The key that requests are counted by.
    pub key: KeyKind,
    /// Count and log, but refuse nothing. The limit itself gives the same results; its caller lets
    /// the request through.
    pub observe: bool,
    /// Whether several gateways share the budgets, once [`Limit::share`] has named their store.
    pub shared: bool,
    /// The maximum number of remembered keys, at least 1. Each takes about 50 bytes. When this many
    /// are remembered, new keys are refused.
    pub max_clients: usize,
}

/// Which requests count against a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Every request.
    All,
    /// Failed requests only: the caller returns the cell of the others.
    Failures,
}

/// The key that requests are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// The client's address: before authentication, with [`Limit::take_client`].
    Client,
    /// The caller: after authentication, with [`Limit::take_subject`].
    Subject,
    /// The client's address together with the account that it names: with
    /// [`Limit::take_client_and_account`]. Requests that name no account do not count.
    ClientAndAccount,
}

/// A request budget for each client or caller.
#[derive(Debug)]
pub struct Limit {
    name: Box<str>,
    settings: Settings,
    own: Counters,
    timer: Timer,
    /// Set once, for a limit that several gateways share.
    sharing: OnceLock<Sharing>,
}

/// The counters of one limit.
#[derive(Debug)]
struct Counters {
    /// Per key.
    keys: Budgets,
    /// For all keys that one client can invent.
    groups: Budgets,
}

/// Budgets per key.
#[derive(Debug)]
struct Budgets {
    limiter: RateLimiter<Asked, Store, Timer, NoOpMiddleware<Nanos>>,
    store: Store,
}

impl Settings {
    /// Whether it bounds the requests of one address, whatever their outcome.
    pub fn bounds_each_client(&self) -> bool {
        self.key == KeyKind::Client && self.count == Count::All && !self.observe
    }
}

impl Limit {
    /// Creates a limit with full budgets. `name` is the section's name, for logs and metrics.
    pub fn new(name: &str, settings: Settings) -> Self {
        Self::with_timer(name, settings, Timer::Monotonic(Instant::now()))
    }

    /// Like [`Limit::new`], but time only passes when `clock` is advanced, for tests.
    pub fn with_clock(name: &str, settings: Settings, clock: FakeRelativeClock) -> Self {
        Self::with_timer(name, settings, Timer::Set { start: clock.now(), clock })
    }

    fn with_timer(name: &str, settings: Settings, timer: Timer) -> Self {
        let interval = emission_interval(&settings);
        let own = Counters::new(interval, settings.requests, settings.max_clients, &timer);
        Self { name: name.into(), settings, own, timer, sharing: OnceLock::new() }
    }

    /// The section's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether it only counts, so that the caller lets requests through even if they exceed it.
    pub fn observes(&self) -> bool {
        self.settings.observe
    }

    /// Takes one cell for the client at `ip`. An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`)
    /// counts as the IPv4 address; other IPv6 addresses count by their prefix.
    pub fn take_client(&self, ip: IpAddr) -> Result<Cell, Exceeded> {
        self.take(self.client(ip), self.network(ip))
    }

    /// Takes one cell for attempts by the client at `ip` on `account`, which must be in its
    /// canonical form.
    pub fn take_client_and_account(&self, ip: IpAddr, account: &str) -> Result<Cell, Exceeded> {
        let client = self.client(ip);
        let digest = digest(&[client.bytes(), account.as_bytes()]);
        self.take(Key::Digest(digest), self.network(ip).into_iter().chain([client]))
    }

    /// Takes one cell for `account`, whoever tries it.
    pub fn take_account(&self, account: &str) -> Result<Cell, Exceeded> {
        self.take(Key::Digest(digest(&[account.as_bytes()])), None)
    }

    /// Takes one cell for the caller `subject` of `issuer`.
    pub fn take_subject(&self, issuer: &str, subject: &str) -> Result<Cell, Exceeded> {
        let digest = digest(&[issuer.as_bytes(), subject.as_bytes()]);
        self.take(Key::Digest(digest), None)
    }

    /// Returns a cell as if the request had not been made, as far as it has not been replenished
    /// since.
    pub fn give_back(&self, cell: Cell) {
        self.own.give_back(&cell.shares);
        if let (Some(sharing), Some(elsewhere)) = (self.sharing.get(), cell.elsewhere) {
            sharing.give_back(*elsewhere);
        }
    }

    /// The number of remembered keys, at most `max_clients`.
    pub fn len(&self) -> usize {
        self.own.keys.store.len()
    }

    /// Whether no keys are remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes keys with a full budget, and frees their memory. Call it from a timer, about every
    /// minute.
    pub fn prune(&self) {
        self.own.prune();
        if let Some(sharing) = self.sharing.get() {
            sharing.prune();
        }
    }

    /// Shares the budgets with every gateway on this store, if the settings say so. Only the first
    /// call has an effect.
    pub fn share(&self, store: &Arc<dyn SharedStore>) {
        if self.settings.shared {
            self.sharing.get_or_init(|| Sharing::new(Arc::clone(store)));
        }
    }

    /// Whether [`Limit::confirm`] has yet to be called for this cell: until then, only this process
    /// has counted the request.
    pub fn is_unconfirmed(&self, cell: &Cell) -> bool {
        cell.elsewhere.is_none() && self.sharing.get().is_some()
    }

    /// Whether the store of a shared limit cannot be asked at present, so that this process grants
    /// its part of the budget by itself. `None`: the limit is not shared.
    pub fn is_alone(&self) -> Option<bool> {
        self.sharing.get().map(Sharing::is_alone)
    }

    /// Also takes the cell from the budget that all gateways share. Waits for the store, which
    /// answers or fails within a fraction of a second. If it fails, the budget is divided by the
    /// number of gateways. Returns at once if the limit is not shared.
    ///
    /// # Errors
    /// The shared budget is exhausted. Nothing is taken then, in this process either.
    pub async fn confirm(&self, cell: Cell) -> Result<Cell, Exceeded> {
        match self.sharing.get() {
            Some(sharing) if cell.elsewhere.is_none() => sharing.confirm(self, cell).await,
            _ => Ok(cell),
        }
    }

    fn client(&self, ip: IpAddr) -> Key {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Key::V4(ip.octets()),
            IpAddr::V6(ip) => Key::V6(masked(ip, self.settings.ipv6_prefix)),
        }
    }

    /// The network of an IPv6 address, if it contains more than one client.
    fn network(&self, ip: IpAddr) -> Option<Key> {
        match ip.to_canonical() {
            IpAddr::V6(ip) if self.settings.ipv6_prefix > NETWORK => {
                Some(Key::Network(masked(ip, NETWORK)))
            }
            _ => None,
        }
    }

    fn take(&self, key: Key, groups: impl IntoIterator<Item = Key>) -> Result<Cell, Exceeded> {
        if let Some(sharing) = self.sharing.get() {
            sharing.check_refused(self, &key)?;
        }
        let shares = self.own.take(key, groups)?;
        Ok(Cell { shares, elsewhere: None })
    }
}

impl Counters {
    fn new(interval: Duration, requests: NonZeroU32, most: usize, timer: &Timer) -> Self {
        let of_group = of_group(interval);
        Self {
            keys: Budgets::new(interval, requests, most, timer.clone()),
            groups: Budgets::new(of_group, requests.saturating_mul(GROUP), most, timer.clone()),
        }
    }

    /// Takes a cell from each group, then from the key. If one is exhausted, none is taken: a
    /// refused client uses up nothing of its neighbours' budget.
    fn take(&self, key: Key, groups: impl IntoIterator<Item = Key>) -> Result<Shares, Exceeded> {
        let mut taken = Vec::new();
        for group in groups {
            match self.groups.take(group) {
                Ok(share) => taken.push(share),
                Err(exceeded) => {
                    self.give_back_to_groups(&taken);
                    return Err(exceeded);
                }
            }
        }
        match self.keys.take(key) {
            Ok(key) => Ok(Shares { key, groups: taken }),
            Err(exceeded) => {
                self.give_back_to_groups(&taken);
                Err(exceeded)
            }
        }
    }

    fn give_back(&self, shares: &Shares) {
        self.keys.give_back(&shares.key);
        self.give_back_to_groups(&shares.groups);
    }

    fn give_back_to_groups(&self, groups: &[Share]) {
        for share in groups {
            self.groups.give_back(share);
        }
    }

    fn prune(&self) {
        self.keys.prune();
        self.groups.prune();
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

/// One request's share of a budget. Dropping it keeps it taken.
#[derive(Debug)]
#[must_use = "a cell that is not given back stays taken: make that explicit with `drop`"]
pub struct Cell {
    shares: Shares,
    /// What a shared limit has counted besides this process; `None`: not confirmed, or not shared.
    elsewhere: Option<Box<Elsewhere>>,
}

/// What a cell takes from the counters of one limit.
#[derive(Debug)]
struct Shares {
    key: Share,
    /// None for most clients.
    groups: Vec<Share>,
}

/// What a cell takes from one budget.
#[derive(Debug)]
struct Share {
    key: Key,
    /// The theoretical arrival time after taking the cell, in nanoseconds of the limiter's clock.
    until: u64,
}

/// The budget is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rate limit exceeded; retry in {retry_after:?}")]
pub struct Exceeded {
    /// The time after which a request can pass, unless another one takes its place.
    pub retry_after: Duration,
}

impl Exceeded {
    /// The value of `Retry-After` (RFC 9110 §10.2.3): whole seconds, at least 1, rounded up so that
    /// a client that waits is not refused again.
    pub fn retry_after_seconds(&self) -> u64 {
        let part = u64::from(self.retry_after.subsec_nanos() > 0);
        self.retry_after.as_secs().saturating_add(part).max(1)
    }
}

/// The limiter's own clock. It is monotonic, so setting the time of day neither opens nor closes a
/// limit. It starts at zero because governor passes the time since the limiter was created to its
/// store.
#[derive(Clone, Debug)]
enum Timer {
    Monotonic(Instant),
    Set { clock: FakeRelativeClock, start: Nanos },
}

impl Timer {
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(governor::clock::Clock::now(self).as_u64())
    }
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

/// The time in which one cell of a group is replenished.
fn of_group(interval: Duration) -> Duration {
    (interval / GROUP.get()).max(Duration::from_nanos(1))
}

fn masked(ip: Ipv6Addr, prefix: u8) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(prefix))).unwrap_or(0);
    (u128::from(ip) & mask).to_be_bytes()
}

/// Half of the SHA-256 of the parts, each preceded by its length, so that no two lists have the
/// same input. Finding another list with somebody's digest takes 2^128 attempts.
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

/// How many times the budget of one key is shared by all keys that one client can invent.
pub const GROUP: NonZeroU32 = NonZeroU32::new(32).expect("not zero");

/// The prefix length of an IPv6 site (RFC 6177): one subscriber may have all networks in it.
const NETWORK: u8 = 48;

const MIN_PER: Duration = Duration::from_millis(1);
const MAX_PER: Duration = Duration::from_hours(366 * 24);

#[cfg(test)]
mod tests;
