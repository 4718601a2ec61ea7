//! Rate limits: how many requests a client or caller may make in a period. GCRA, by `governor`,
//! within this process; with several gateways, also in a store that they share (`shared`).
//!
//! A `Limit` owns its counters, which all workers share, so that the budget applies to the process.
//! It bounds both the rate per key and the number of keys that it remembers (`store`). A request is
//! allowed, or refused with the time of a retry. Only [`Limit::confirm`] waits: for the store of a
//! shared limit, and for requests that may not have failed (`undecided`).
//!
//! A client that can invent keys could use up all places of a limit and lock everyone else out. Keys
//! that one client can invent therefore also share the budget of a group, [`GROUP`] times that of
//! one key: all networks of an IPv6 /48, and all accounts that one address names. The groups of an
//! IPv6 /32, which an operator may have whole, share that of a block, [`GROUP`] times as large. The
//! widest budget is taken first, and a request that exceeds it takes no place in the others.
//!
//! Those who have enough networks to take all places all the same lock nobody else out: IPv4 and
//! IPv6 clients have places of their own, and whoever finds none is counted together with its
//! neighbours ([`Key::rest`]).
//!
//! With `count = "failures"`, the cell is taken when the request arrives and returned if it did not
//! fail, so that parallel guesses gain nothing. Only what is left of the cell is returned: a
//! request that was held open until its cell was replenished anyway must not compensate for a guess
//! made since. While all cells of a key are taken and some of these requests are undecided, further
//! ones wait.

use std::cell::Cell as Slot;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use governor::clock::{Clock as _, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter};
use tokio::time::timeout;

pub use self::live::{LiveGateways, Place};
pub use self::queue::{Queue, Queued};
pub use self::shared::{Budget, Returned, SharedStore, Unavailable, Verdict};
use self::shared::{Elsewhere, Sharing};
use self::store::{Asked, Key, Store};
pub use self::undecided::Held;
use self::undecided::{LONGEST_WAIT, Undecided, Waiting};

mod live;
mod queue;
mod shared;
mod store;
mod undecided;

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
    /// The maximum number of keys that are remembered for IPv6 clients, and for others; at least 1.
    /// Each takes about 50 bytes. When this many are remembered, new ones share budgets.
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
    /// `None`: no request waits for others.
    undecided: Option<Arc<Undecided>>,
    /// Set once, for a limit that several gateways share.
    sharing: OnceLock<Sharing>,
}

/// The counters of one limit.
#[derive(Debug)]
struct Counters {
    /// Of IPv6 clients, each of whom may have many addresses.
    v6: Levels,
    others: Levels,
    /// The number of budgets that are shared by those who find no place.
    rests: u32,
}

/// Budgets of keys, of groups and of blocks.
#[derive(Debug)]
struct Levels([Budgets; 3]);

/// Budgets of one size.
#[derive(Debug)]
struct Budgets {
    limiter: RateLimiter<Asked, Store, Timer, NoOpMiddleware<Nanos>>,
    store: Store,
}

impl Settings {
    /// Whether requests wait for others that may not have failed. Those of a subject do not: it was
    /// decided that they may pass, and that must not be late.
    fn waits(&self) -> bool {
        self.count == Count::Failures && !self.observe && self.key != KeyKind::Subject
    }

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
        let undecided = settings.waits().then(Undecided::new);
        Self { name: name.into(), settings, own, timer, undecided, sharing: OnceLock::new() }
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

    /// Takes one cell for the client at `ip`. An IPv6 address that stands for an IPv4 address
    /// ([`behind_translator`]) counts as that one; other IPv6 addresses count by their prefix.
    pub fn take_client(&self, ip: IpAddr) -> Result<Cell, Exceeded> {
        let client = self.client(ip);
        self.take(client, client, self.networks(client))
    }

    /// Takes one cell for attempts by the client at `ip` on `account`, which must be in its
    /// canonical form.
    pub fn take_client_and_account(&self, ip: IpAddr, account: &str) -> Result<Cell, Exceeded> {
        let client = self.client(ip);
        let digest = digest(&[client.bytes(), account.as_bytes()]);
        self.take(Key::Digest(digest), client, self.networks(client).chain([(OF_GROUPS, client)]))
    }

    /// Takes one cell for `account`, whoever tries it. The caller has counted the request by its
    /// address, which bounds how many accounts a client can invent.
    pub fn take_account(&self, account: &str) -> Result<Cell, Exceeded> {
        self.take_digest(&[account.as_bytes()])
    }

    /// Takes one cell for the caller `subject` of `issuer`.
    pub fn take_subject(&self, issuer: &str, subject: &str) -> Result<Cell, Exceeded> {
        self.take_digest(&[issuer.as_bytes(), subject.as_bytes()])
    }

    /// Returns a cell as if the request had not been made, as far as it has not been replenished
    /// since.
    pub fn give_back(&self, cell: Cell) {
        self.own.give_back(&cell.shares);
        if let (Some(sharing), Some(elsewhere)) = (self.sharing.get(), cell.elsewhere) {
            sharing.give_back(*elsewhere, cell.held);
        }
    }

    /// The number of remembered keys.
    pub fn len(&self) -> usize {
        [&self.own.v6, &self.own.others].map(|levels| levels.at(OF_KEYS).store.len()).iter().sum()
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
    /// has counted the request, or nothing has because it has to wait for others.
    pub fn is_unconfirmed(&self, cell: &Cell) -> bool {
        cell.due.is_some() || cell.elsewhere.is_none() && self.sharing.get().is_some()
    }

    /// Whether the store of a shared limit cannot be asked at present, so that this process grants
    /// its part of the budget by itself. `None`: the limit is not shared.
    pub fn is_alone(&self) -> Option<bool> {
        self.sharing.get().map(Sharing::is_alone)
    }

    /// Also takes the cell from the budget that all gateways share. Waits for the store, which
    /// answers or fails within a fraction of a second. If it fails, the budget is divided by the
    /// number of gateways.
    ///
    /// If undecided requests of this process hold the cells, waits for them, for a few seconds at
    /// most. Returns at once if there is nothing to wait for.
    ///
    /// # Errors
    /// The budget is exhausted. Nothing is taken then, in this process either.
    pub async fn confirm(&self, cell: Cell) -> Result<Cell, Exceeded> {
        match self.confirm_once(cell).await {
            Ok(cell) => Ok(cell),
            Err(NoCell { exceeded, wanted: None }) => Err(exceeded),
            // Boxed: few requests wait.
            Err(NoCell { exceeded, wanted: Some(wanted) }) => {
                Box::pin(self.wait(exceeded, wanted)).await
            }
        }
    }

    async fn confirm_once(&self, cell: Cell) -> Result<Cell, NoCell> {
        if let Some(exceeded) = cell.due {
            return Err(NoCell { exceeded, wanted: Some(cell.shares) });
        }
        match self.sharing.get() {
            Some(sharing) if cell.elsewhere.is_none() => sharing.confirm(self, cell).await,
            _ => Ok(cell),
        }
    }

    /// Waits for undecided requests until one gives back a cell like `wanted`.
    async fn wait(&self, exceeded: Exceeded, mut wanted: Shares) -> Result<Cell, Exceeded> {
        let key = wanted.key.key;
        let place = self.undecided.as_ref().and_then(|undecided| undecided.line_up(key));
        let Some(place) = place else { return Err(exceeded) };
        let waiting = async {
            let _turn = place.turn().await;
            loop {
                let groups: Vec<_> =
                    wanted.groups.iter().map(|share| (share.level, share.key)).collect();
                let counted = match self.take_cell((key, wanted.client), groups, Some(&place)) {
                    Ok(cell) => self.confirm_once(cell).await,
                    Err(refused) => Err(refused),
                };
                match counted {
                    Ok(mut cell) => {
                        cell.held.iter_mut().for_each(Held::confirmed);
                        return Ok(cell);
                    }
                    Err(NoCell { exceeded, wanted: None }) => return Err(exceeded),
                    Err(NoCell { exceeded, wanted: Some(again) }) => {
                        wanted = again;
                        // Or until it is replenished.
                        let _ = timeout(exceeded.retry_after, place.decided()).await;
                    }
                }
            }
        };
        timeout(LONGEST_WAIT, waiting).await.unwrap_or(Err(exceeded))
    }

    fn client(&self, ip: IpAddr) -> Key {
        match behind_translator(ip) {
            IpAddr::V4(ip) => Key::V4(ip.octets()),
            IpAddr::V6(ip) => Key::V6(masked(ip, self.settings.ipv6_prefix)),
        }
    }

    /// The block and the network of an IPv6 client, if they contain more than one client.
    fn networks(&self, client: Key) -> impl Iterator<Item = (u8, Key)> + Clone + use<> {
        let prefix = self.settings.ipv6_prefix;
        let network = move |level, length| match client {
            Key::V6(ip) if prefix > length => {
                Some((level, Key::Network(masked(ip.into(), length))))
            }
            _ => None,
        };
        [network(OF_BLOCKS, BLOCK), network(OF_GROUPS, NETWORK)].into_iter().flatten()
    }

    fn take_digest(&self, parts: &[&[u8]]) -> Result<Cell, Exceeded> {
        let key = Key::Digest(digest(parts));
        self.take(key, key, None)
    }

    /// Takes a cell, or finds that [`Limit::confirm`] has to wait for one.
    fn take(
        &self,
        key: Key,
        client: Key,
        groups: impl IntoIterator<Item = (u8, Key)> + Clone,
    ) -> Result<Cell, Exceeded> {
        if let Some(sharing) = self.sharing.get() {
            sharing.check_refused(self, &key)?;
        }
        self.take_cell((key, client), groups, None).or_else(|refused| match refused {
            NoCell { exceeded, wanted: None } => Err(exceeded),
            NoCell { exceeded, wanted: Some(shares) } => {
                Ok(Cell { shares, elsewhere: None, held: None, due: Some(exceeded) })
            }
        })
    }

    fn take_cell(
        &self,
        (key, client): (Key, Key),
        groups: impl IntoIterator<Item = (u8, Key)> + Clone,
        place: Option<&Waiting>,
    ) -> Result<Cell, NoCell> {
        let cell = |shares, held| Cell { shares, elsewhere: None, held, due: None };
        let Some(undecided) = &self.undecided else {
            let taken = self.own.take(key, client, groups);
            return taken.map(|shares| cell(shares, None)).map_err(NoCell::from);
        };
        let wanted = groups.clone();
        let taken = undecided.take(key, place, || self.own.take(key, client, groups));
        taken.map(|(shares, held)| cell(shares, Some(held))).map_err(|(refused, is_undecided)| {
            let soon = Exceeded { retry_after: emission_interval(&self.settings) };
            NoCell {
                exceeded: refused.unwrap_or(soon),
                wanted: is_undecided.then(|| Shares::wanted(key, client, wanted)),
            }
        })
    }
}

impl Counters {
    fn new(interval: Duration, requests: NonZeroU32, most: usize, timer: &Timer) -> Self {
        let levels = || {
            Levels([OF_KEYS, OF_GROUPS, OF_BLOCKS].map(|level| {
                let (interval, requests) = of_level(level, interval, requests);
                Budgets::new(interval, requests, most, timer)
            }))
        };
        let rests = u32::try_from(most / KEYS_PER_REST).unwrap_or(u32::MAX).max(1);
        Self { v6: levels(), others: levels(), rests }
    }

    /// Takes a cell from each group, then from the key. If one is exhausted, none is taken: a
    /// refused client uses up nothing of its neighbours' budget. `client` says whose places they
    /// take.
    fn take(
        &self,
        key: Key,
        client: Key,
        groups: impl IntoIterator<Item = (u8, Key)>,
    ) -> Result<Shares, Exceeded> {
        let mut shares = Shares::wanted(key, client, None);
        match self.fill(&mut shares, groups) {
            Ok(()) => Ok(shares),
            Err(exceeded) => {
                self.give_back(&shares);
                Err(exceeded)
            }
        }
    }

    fn fill(
        &self,
        shares: &mut Shares,
        groups: impl IntoIterator<Item = (u8, Key)>,
    ) -> Result<(), Exceeded> {
        let levels = self.levels(&shares.client);
        for (level, key) in groups {
            shares.groups.push(levels.take(level, key)?);
        }
        shares.key = levels.take(OF_KEYS, shares.key.key)?;
        if shares.groups.iter().chain([&shares.key]).any(Share::has_no_place) {
            let (level, rest) = shares.client.rest(self.rests);
            shares.rest = Some(Box::new(levels.take(level, rest)?));
        }
        Ok(())
    }

    fn give_back(&self, shares: &Shares) {
        let levels = self.levels(&shares.client);
        for share in shares.groups.iter().chain([&shares.key]).chain(shares.rest.as_deref()) {
            levels.at(share.level).give_back(share);
        }
    }

    fn levels(&self, client: &Key) -> &Levels {
        if matches!(client, Key::V6(_)) { &self.v6 } else { &self.others }
    }

    fn prune(&self) {
        self.v6.0.iter().chain(&self.others.0).for_each(Budgets::prune);
    }
}

impl Levels {
    fn at(&self, level: u8) -> &Budgets {
        &self.0[usize::from(level)]
    }

    fn take(&self, level: u8, key: Key) -> Result<Share, Exceeded> {
        self.at(level).take(key).map(|until| Share { level, key, until })
    }
}

impl Budgets {
    fn new(interval: Duration, requests: NonZeroU32, most: usize, timer: &Timer) -> Self {
        let quota = Quota::with_period(interval).map(|quota| quota.allow_burst(requests));
        let quota = quota.expect("the emission interval is at least a nanosecond");
        let store = Store::new(interval, requests, most);
        Self { limiter: RateLimiter::new(quota, store.clone(), timer.restarted()), store }
    }

    /// Returns the TAT after taking a cell; 0 if the key has no place, so that nothing was taken.
    fn take(&self, key: Key) -> Result<u64, Exceeded> {
        let asked = Asked { key, until: Slot::new(0) };
        match self.limiter.check_key(&asked) {
            Ok(()) => Ok(asked.until.get()),
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
    /// Until it is decided whether the request failed, if others wait for that.
    held: Option<Held>,
    /// Nothing was taken yet, because the request has to wait: the refusal if it cannot.
    due: Option<Exceeded>,
}

/// Why no cell was taken.
#[derive(Debug)]
struct NoCell {
    exceeded: Exceeded,
    /// What to wait for; `None`: nothing can be given back soon.
    wanted: Option<Shares>,
}

impl From<Exceeded> for NoCell {
    fn from(exceeded: Exceeded) -> Self {
        Self { exceeded, wanted: None }
    }
}

/// What a cell takes from the counters of one limit.
#[derive(Debug)]
struct Shares {
    /// Whose places they take.
    client: Key,
    key: Share,
    /// None for most clients.
    groups: Vec<Share>,
    /// In place of those that have no place.
    rest: Option<Box<Share>>,
}

impl Shares {
    /// Shares of which none is taken.
    fn wanted(key: Key, client: Key, groups: impl IntoIterator<Item = (u8, Key)>) -> Self {
        let share = |(level, key)| Share { level, key, until: 0 };
        let groups = groups.into_iter().map(share).collect();
        Self { client, key: share((OF_KEYS, key)), groups, rest: None }
    }
}

/// What a cell takes from one budget.
#[derive(Debug)]
struct Share {
    level: u8,
    key: Key,
    /// The theoretical arrival time after taking the cell, in nanoseconds of the limiter's clock. 0:
    /// nothing was taken, because there is no place for the key.
    until: u64,
}

impl Share {
    fn has_no_place(&self) -> bool {
        self.until == 0
    }
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
/// store: each limiter has one of its own ([`Timer::restarted`]).
#[derive(Clone, Debug)]
enum Timer {
    Monotonic(Instant),
    Set { clock: FakeRelativeClock, start: Nanos },
}

impl Timer {
    /// The same clock, starting at zero now.
    fn restarted(&self) -> Self {
        match self {
            Self::Monotonic(_) => Self::Monotonic(Instant::now()),
            Self::Set { clock, .. } => Self::Set { clock: clock.clone(), start: clock.now() },
        }
    }

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

/// The budgets of a level: the time in which one cell is replenished, and the number of cells.
fn of_level(level: u8, interval: Duration, requests: NonZeroU32) -> (Duration, NonZeroU32) {
    (0..level).fold((interval, requests), |(interval, requests), _| {
        let interval = (interval / GROUP.get()).max(Duration::from_nanos(1));
        (interval, requests.saturating_mul(GROUP))
    })
}

/// The client that an address stands for: the IPv4 address in an IPv4-mapped one
/// (`::ffff:192.0.2.1`), and in one that a translator between IPv4 and IPv6 makes (`64:ff9b::c000:201`,
/// RFC 6052 §2.1). In front of a server that has IPv6 only, all IPv4 clients would otherwise be one.
pub fn behind_translator(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if ip.to_bits() >> 32 == TRANSLATED => {
            let [.., a, b, c, d] = ip.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        ip => ip,
    }
}

/// The first 96 bits of the addresses that translators make.
const TRANSLATED: u128 = 0x0064_ff9b << 64;

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

/// How many times the budget of one key is shared by all keys that one client can invent, and how
/// many times the budget of such a group by all groups of a block.
pub const GROUP: NonZeroU32 = NonZeroU32::new(32).expect("not zero");

/// The prefix length of an IPv6 site (RFC 6177): one subscriber may have all networks in it.
const NETWORK: u8 = 48;

/// The prefix length of what an operator gets from a registry at least.
const BLOCK: u8 = 32;

/// The levels of budgets, each [`GROUP`] times as large as the one before.
const OF_KEYS: u8 = 0;
const OF_GROUPS: u8 = 1;
const OF_BLOCKS: u8 = 2;

/// For how many places there is one budget for those who find none.
const KEYS_PER_REST: usize = 4;

const MIN_PER: Duration = Duration::from_millis(1);
const MAX_PER: Duration = Duration::from_hours(366 * 24);

#[cfg(test)]
mod tests;
