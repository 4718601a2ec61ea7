use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

fn settings(requests: u32, per: Duration) -> Settings {
    Settings {
        requests: NonZeroU32::new(requests).unwrap(),
        per,
        ipv6_prefix: 64,
        count: Count::All,
        key: KeyKind::Client,
        observe: false,
        shared: false,
        max_clients: 10_000,
    }
}

fn limit(settings: Settings) -> (Limit, FakeRelativeClock) {
    let clock = FakeRelativeClock::default();
    (Limit::with_clock("test", settings, clock.clone()), clock)
}

fn passes(limit: &Limit, ip: &str) -> bool {
    limit.take_client(ip.parse().unwrap()).is_ok()
}

#[test]
fn a_burst_passes_then_the_budget_is_replenished_evenly() {
    let (limit, clock) = limit(settings(5, Duration::from_mins(1)));
    let passed = (0..10).filter(|_| passes(&limit, "192.0.2.1")).count();
    assert_eq!(passed, 5);
    let exceeded = limit.take_client("192.0.2.1".parse().unwrap()).unwrap_err();
    assert_eq!(exceeded.retry_after, Duration::from_secs(12));
    clock.advance(Duration::from_millis(11_999));
    let exceeded = limit.take_client("192.0.2.1".parse().unwrap()).unwrap_err();
    assert_eq!(exceeded.retry_after_seconds(), 1);
    clock.advance(Duration::from_millis(1));
    assert!(passes(&limit, "192.0.2.1"));
    assert!(!passes(&limit, "192.0.2.1"));
    assert!(passes(&limit, "192.0.2.2"), "another client has a budget of its own");
}

#[test]
fn retry_after_is_rounded_up_and_never_zero() {
    let seconds =
        |millis| Exceeded { retry_after: Duration::from_millis(millis) }.retry_after_seconds();
    assert_eq!([0, 1, 999, 1_000, 1_001, 59_500].map(seconds), [1, 1, 1, 1, 2, 60]);
    assert_eq!(Exceeded { retry_after: Duration::MAX }.retry_after_seconds(), u64::MAX);
}

#[test]
fn addresses_are_folded_to_clients() {
    let (limit, _) = limit(settings(1, Duration::from_mins(1)));
    assert!(passes(&limit, "192.0.2.1"));
    assert!(!passes(&limit, "::ffff:192.0.2.1"), "the same host over a dual-stack socket");
    assert!(!passes(&limit, "64:ff9b::192.0.2.1"), "through a translator");
    assert!(passes(&limit, "64:ff9b::192.0.2.2"), "and its neighbour");
    assert!(passes(&limit, "64:ff9b:1::192.0.2.1"), "a local prefix stands for anything");
    assert!(passes(&limit, "2001:db8:0:1::1"));
    assert!(!passes(&limit, "2001:db8:0:1:ffff::2"), "the same /64");
    assert!(passes(&limit, "2001:db8:0:2::1"));
}

/// One subscriber has all networks of a /48. They must not be an endless source of new budgets, and
/// must use few of the limit's slots.
#[test]
fn the_networks_of_a_site_share_a_budget() {
    let (limit, clock) = limit(settings(5, Duration::from_mins(1)));
    let from = |site: u128, network: u128| {
        let ip = Ipv6Addr::from(0x2001_0db8 << 96 | site << 80 | network << 64);
        limit.take_client(ip.into())
    };
    let passed = (0..10_000).filter(|&network| from(1, network).is_ok()).count();
    assert_eq!(passed, 5 * 32);
    assert_eq!(limit.len(), passed, "a request that is refused takes no place");
    assert!(from(2, 0).is_ok() && passes(&limit, "192.0.2.1"), "others are not refused");
    clock.advance(Duration::from_secs(12));
    assert_eq!((0..10_000).filter(|&network| from(1, network).is_ok()).count(), 32);
}

#[test]
fn a_refused_network_does_not_use_the_budget_of_its_site() {
    let (limit, _) = limit(settings(1, Duration::from_mins(1)));
    assert!(passes(&limit, "2001:db8:0:1::1"));
    for _ in 0..1_000 {
        assert!(!passes(&limit, "2001:db8:0:1::1"));
    }
    assert!(passes(&limit, "2001:db8:0:2::1"));
}

#[test]
fn accounts_named_by_one_address_share_a_budget() {
    let (limit, _) = limit(Settings {
        key: KeyKind::ClientAndAccount,
        max_clients: 1_000,
        ..settings(5, Duration::from_mins(15))
    });
    let tries = |ip: &str, account: &str| {
        limit.take_client_and_account(ip.parse().unwrap(), account).is_ok()
    };
    let passed = (0..2_000).filter(|index| tries("192.0.2.1", &format!("u{index}"))).count();
    assert_eq!(passed, 5 * 32);
    assert!((0..10).all(|index| tries(&format!("198.51.100.{index}"), "u1")));
    for attempt in 0..7 {
        assert_eq!(tries("203.0.113.1", "ann"), attempt < 5);
    }
    // Returned cells are returned to all of these.
    for _ in 0..1_000 {
        let cell = limit.take_client_and_account("203.0.113.2".parse().unwrap(), "ann").unwrap();
        limit.give_back(cell);
    }
}

#[test]
fn every_prefix_length_is_accepted() {
    let all: Ipv6Addr = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
    assert_eq!(masked(all, 0), [0; 16]);
    assert_eq!(masked(all, 1)[0], 0x80);
    assert_eq!(masked(all, 127)[15], 0xfe);
    assert_eq!(masked(all, 128), [0xff; 16]);
    assert_eq!(masked(all, 255), [0xff; 16]);
}

#[test]
fn subjects_of_different_issuers_are_counted_separately() {
    let (limit, _) = limit(settings(1, Duration::from_mins(1)));
    assert!(limit.take_subject("ab", "c").is_ok());
    assert!(limit.take_subject("a", "bc").is_ok());
    assert!(limit.take_subject("", "abc").is_ok());
    assert!(limit.take_subject("ab", "c").is_err());
}

#[test]
fn a_cell_given_back_can_be_taken_again() {
    let (limit, _) = limit(settings(2, Duration::from_mins(1)));
    let ip = "192.0.2.1".parse().unwrap();
    for _ in 0..100 {
        let cell = limit.take_client(ip).unwrap();
        limit.give_back(cell);
    }
    assert!(limit.is_empty(), "whose budget is whole is forgotten");
    let first = limit.take_client(ip).unwrap();
    let _second = limit.take_client(ip).unwrap();
    assert!(limit.take_client(ip).is_err());
    limit.give_back(first);
    assert!(limit.take_client(ip).is_ok());
    assert!(limit.take_client(ip).is_err());
}

#[test]
fn open_requests_do_not_refund_later_guesses() {
    let (limit, clock) = limit(settings(5, Duration::from_mins(1)));
    let ip = "192.0.2.1".parse().unwrap();
    let held: Vec<_> = (0..5).map(|_| limit.take_client(ip).unwrap()).collect();
    clock.advance(Duration::from_mins(1));
    let guesses = (0..10).filter(|_| limit.take_client(ip).is_ok()).count();
    assert_eq!(guesses, 5);
    for cell in held {
        limit.give_back(cell);
    }
    assert!(limit.take_client(ip).is_err());
}

/// Whoever has a block from a registry has all networks in it.
#[test]
fn the_sites_of_a_block_share_a_budget() {
    let (limit, _) = limit(settings(5, Duration::from_mins(1)));
    let from = |block: u128, site: u128| {
        let ip = Ipv6Addr::from(block << 96 | site << 80);
        limit.take_client(ip.into()).is_ok()
    };
    let passed = (0..10_000).filter(|&site| from(0x2001_0db8, site)).count();
    assert_eq!(passed, 5 * 32 * 32);
    assert_eq!(limit.len(), passed, "a request that is refused takes no place");
    assert!(from(0x2001_0db9, 0));
}

#[test]
fn a_million_addresses_stay_within_the_cap() {
    let (limit, clock) = limit(settings(5, Duration::from_mins(1)));
    let mut refused = 0_u32;
    for number in 0..1_000_000_u32 {
        // An odd factor visits every address once, in an order with no pattern in the hash.
        let ip = Ipv4Addr::from(number.wrapping_mul(2_654_435_761));
        refused += u32::from(limit.take_client(ip.into()).is_err());
        if number % 1_000 == 0 {
            assert!(limit.len() <= 10_000);
            clock.advance(Duration::from_millis(10));
        }
    }
    assert!(limit.len() <= 10_000);
    assert!(refused > 500_000, "{refused}");
    clock.advance(Duration::from_mins(1));
    assert!(passes(&limit, "192.0.2.1"), "room is made without a timer");
    limit.prune();
    assert_eq!(limit.len(), 1);
    clock.advance(Duration::from_mins(1));
    limit.prune();
    assert!(limit.is_empty());
}

#[test]
fn a_full_store_serves_known_clients_and_counts_new_ones_with_their_neighbours() {
    let (limit, clock) = limit(Settings { max_clients: 2, ..settings(2, Duration::from_mins(1)) });
    assert!(passes(&limit, "192.0.2.1"));
    clock.advance(Duration::from_secs(10));
    assert!(passes(&limit, "192.0.2.2"));
    let passed = (3..=255).filter(|index| passes(&limit, &format!("192.0.2.{index}"))).count();
    assert_eq!(passed, 2 * 32);
    let exceeded = limit.take_client("192.0.2.3".parse().unwrap()).unwrap_err();
    assert_eq!(exceeded.retry_after, Duration::from_secs(30) / 32);
    assert!(passes(&limit, "192.0.2.2"));
    assert!(!passes(&limit, "192.0.2.2"));
    clock.advance(Duration::from_secs(20));
    assert_eq!((0..9).filter(|_| passes(&limit, "192.0.2.3")).count(), 2, "the first is forgotten");
    assert_eq!(limit.len(), 2);
}

/// Those who have networks enough to take all places do not keep others from the gateway.
#[test]
fn a_flood_of_networks_counts_only_its_neighbours_together() {
    let settings = Settings { max_clients: 1_000, ..settings(1, Duration::from_mins(1)) };
    let (limit, clock) = limit(settings);
    let v6 = |block: u32, site: u32| {
        let ip = Ipv6Addr::from(u128::from(block) << 96 | u128::from(site) << 80);
        limit.take_client(ip.into()).is_ok()
    };
    let flood = || (0..8).map(|block| (0..2_000).filter(|&site| v6(block, site)).count());
    assert!(flood().all(|passed| passed == 32 * 32));
    assert_eq!(limit.len(), 1_000);
    for index in 0..1_000 {
        assert!(passes(&limit, &format!("10.{}.{}.1", index / 250, index % 250)), "{index}");
    }
    assert!((0..9).all(|site| v6(100, site)), "a network of another block");
    // All places for IPv4 are taken now.
    assert_eq!(limit.len(), 2_000);
    assert_eq!((0..250).filter(|index| passes(&limit, &format!("192.0.2.{index}"))).count(), 32);
    assert!((0..9).all(|index| passes(&limit, &format!("192.0.3.{index}"))), "another network");
    for _ in 0..1_000 {
        let cell = limit.take_client("198.51.100.1".parse().unwrap()).unwrap();
        limit.give_back(cell);
    }
    clock.advance(Duration::from_mins(1));
    limit.prune();
    assert!(limit.is_empty());
}

/// Nobody can guess more often because there is no place for an account.
#[test]
fn accounts_without_a_place_share_budgets_of_one() {
    let (limit, _) = limit(Settings { max_clients: 1_000, ..settings(5, Duration::from_mins(1)) });
    let tries = |account: usize| limit.take_account(&account.to_string()).is_ok();
    assert!((0..1_000).all(tries));
    assert_eq!((0..9).filter(|_| tries(5_000)).count(), 5);
    let passed = (1_000..4_000).map(|account| (0..9).filter(|_| tries(account)).count());
    let passed: Vec<_> = passed.collect();
    assert!(passed.iter().all(|passed| *passed <= 5));
    assert!(passed[..10].iter().all(|passed| *passed > 0), "others are not refused");
    assert!(passed.iter().sum::<usize>() <= 250 * 5);
}

#[test]
fn extreme_settings_neither_panic_nor_disable_the_limit() {
    for (requests, per, max_clients) in [
        (1, Duration::ZERO, 0),
        (u32::MAX, Duration::MAX, usize::MAX >> 20),
        (u32::MAX, Duration::ZERO, 1),
        (1, Duration::MAX, 1),
    ] {
        let (limit, clock) = limit(Settings { max_clients, ..settings(requests, per) });
        assert!(passes(&limit, "192.0.2.1"));
        if requests == 1 {
            assert!(!passes(&limit, "192.0.2.1"));
        }
        clock.advance(MAX_PER);
        assert!(passes(&limit, "192.0.2.1"));
    }
}

#[test]
fn threads_never_exceed_the_budget_together() {
    let limit = Limit::new("test", settings(100, MAX_PER));
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    let (inside, most, passed) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (limit, inside, most, passed) = (&limit, &inside, &most, &passed);
            scope.spawn(move || {
                let mut held = Vec::new();
                for turn in 0..20_000 {
                    if let Ok(cell) = limit.take_client(ip) {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        held.push(cell);
                    }
                    if turn % (7 + thread) == 0
                        && let Some(cell) = held.pop()
                    {
                        inside.fetch_sub(1, Ordering::SeqCst);
                        limit.give_back(cell);
                    }
                }
                passed.fetch_add(held.len() as u32, Ordering::SeqCst);
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= 100);
    assert!(passed.load(Ordering::SeqCst) <= 100);
}

/// The limit in its simplest form: a leaky bucket per key that never forgets a key.
#[derive(Default)]
struct Model {
    tats: HashMap<u8, u64>,
    now: u64,
}

impl Model {
    fn take(&mut self, key: u8, interval: u64, requests: u64) -> Result<u64, u64> {
        let tat = self.tats.entry(key).or_default();
        let level = tat.saturating_sub(self.now);
        let most = interval * (requests - 1);
        if level > most {
            return Err(level - most);
        }
        *tat = (*tat).max(self.now) + interval;
        Ok(*tat)
    }

    fn give_back(&mut self, key: u8, until: u64, interval: u64) {
        let left = until.saturating_sub(self.now).min(interval);
        self.tats.entry(key).and_modify(|tat| *tat = tat.saturating_sub(left));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(u8),
    GiveBack(usize),
    Wait(u64),
    Prune,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..4).prop_map(Step::Take),
        3 => any::<usize>().prop_map(Step::GiveBack),
        3 => (0_u64..3_000_000_000).prop_map(Step::Wait),
        1 => Just(Step::Prune),
    ]
}

proptest! {
    #[test]
    fn the_limit_agrees_with_the_model(
        requests in 1_u32..8,
        per_ms in 1_u64..10_000,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let settings = settings(requests, Duration::from_millis(per_ms));
        let interval = emission_interval(&settings).as_nanos() as u64;
        let (limit, clock) = limit(settings);
        let mut model = Model::default();
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Take(key) => {
                    let real = limit.take_client(IpAddr::from([192, 0, 2, key]));
                    match (real, model.take(key, interval, u64::from(requests))) {
                        (Ok(cell), Ok(until)) => held.push((key, until, cell)),
                        (Err(exceeded), Err(wait)) => prop_assert_eq!(exceeded.retry_after, Duration::from_nanos(wait)),
                        (real, model) => prop_assert!(false, "the limit said {real:?}, the model {model:?}"),
                    }
                }
                Step::GiveBack(index) if !held.is_empty() => {
                    let (key, until, cell) = held.swap_remove(index % held.len());
                    limit.give_back(cell);
                    model.give_back(key, until, interval);
                }
                Step::GiveBack(_) => {}
                Step::Wait(nanos) => {
                    clock.advance(Duration::from_nanos(nanos));
                    model.now += nanos;
                }
                Step::Prune => limit.prune(),
            }
        }
    }
}
