//! A short queue that is fair to clients.
//!
//! A job waits behind those of clients that have fewer jobs in the queue, and when the queue is
//! full, a client with many jobs makes room for one with few. So a client that sends many requests
//! delays mainly itself. Many addresses of one network also count together, since one attacker may
//! have all of them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::behind_translator;

/// A queue of at most `most` jobs.
#[derive(Debug)]
pub struct Queue<T> {
    most: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// Ordered by rank, then by arrival.
    waiting: BTreeMap<(usize, u64), (Client, T)>,
    /// The number of jobs that wait, for each prefix that has any.
    counts: HashMap<Prefix, usize>,
    arrived: u64,
    is_closed: bool,
}

/// Who a job is for: an address, its network, and the block that an operator got from a registry.
#[derive(Clone, Copy, Debug)]
struct Client([Prefix; LEVELS]);

/// A range of addresses. IPv4 addresses are written as IPv6 addresses (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    bits: u128,
    length: u8,
}

/// What happened to a job that was to be queued.
#[derive(Debug, PartialEq, Eq)]
pub enum Queued<T> {
    /// It waits.
    Waits,
    /// It waits, in the place of this one.
    InPlaceOf(T),
    /// It does not: the queue is full, and no other client has more jobs in it.
    Full(T),
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(most: usize) -> Self {
        let state = State {
            waiting: BTreeMap::new(),
            counts: HashMap::new(),
            arrived: 0,
            is_closed: false,
        };
        Self { most, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Queues a job for a client.
    pub fn push(&self, client: IpAddr, job: T) -> Queued<T> {
        let client = Client::of(client);
        let mut state = self.state();
        let rank = state.rank(client);
        let mut last = None;
        if state.waiting.len() >= self.most {
            match state.waiting.last_key_value() {
                Some((&(highest, _), _)) if highest > rank => last = state.remove_last(),
                _ => return Queued::Full(job),
            }
        }
        state.insert(rank, client, job);
        drop(state);
        self.changed.notify_one();
        last.map_or(Queued::Waits, Queued::InPlaceOf)
    }

    /// The next job, if one waits.
    pub fn try_pop(&self) -> Option<T> {
        self.state().remove_first()
    }

    /// Waits for a job. `None`: the queue was closed and is empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.remove_first() {
                return Some(job);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the wait of every [`pop`](Self::pop), once the queue is empty.
    pub fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// The rank of the next job of a client: the jobs of its address that wait, and with less weight
    /// those of its network and its block.
    fn rank(&self, client: Client) -> usize {
        let waiting = |prefix| self.counts.get(prefix).copied().unwrap_or(0);
        client.0.iter().zip(WEIGHTS).map(|(prefix, weight)| waiting(prefix) * weight).sum()
    }

    fn insert(&mut self, rank: usize, client: Client, job: T) {
        for prefix in client.0 {
            *self.counts.entry(prefix).or_default() += 1;
        }
        self.arrived += 1;
        self.waiting.insert((rank, self.arrived), (client, job));
    }

    fn remove_first(&mut self) -> Option<T> {
        let (_, (client, job)) = self.waiting.pop_first()?;
        self.forget(client);
        Some(job)
    }

    fn remove_last(&mut self) -> Option<T> {
        let (_, (client, job)) = self.waiting.pop_last()?;
        self.forget(client);
        Some(job)
    }

    fn forget(&mut self, client: Client) {
        for prefix in client.0 {
            if let Entry::Occupied(mut count) = self.counts.entry(prefix) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

impl Client {
    fn of(address: IpAddr) -> Self {
        let (bits, lengths) = match behind_translator(address) {
            // A /32, /24 and /16.
            IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), [128, 120, 112]),
            IpAddr::V6(ip) => (ip.to_bits(), [64, 48, 32]),
        };
        Self(lengths.map(|length| Prefix::of(bits, length)))
    }
}

impl Prefix {
    /// The first `length` of these bits: at least one.
    fn of(bits: u128, length: u8) -> Self {
        Self { bits: bits >> (128 - length), length }
    }
}

const LEVELS: usize = 3;

/// The weight of a waiting job, for others of the same address, network and block.
const WEIGHTS: [usize; LEVELS] = [64, 8, 1];

#[cfg(test)]
mod tests {
    use super::*;

    fn push<'a>(queue: &Queue<&'a str>, client: &str, job: &'a str) -> Queued<&'a str> {
        queue.push(client.parse().unwrap(), job)
    }

    fn rest<'a>(queue: &Queue<&'a str>) -> Vec<&'a str> {
        queue.close();
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn a_client_with_jobs_in_the_queue_waits_behind_those_without() {
        let queue = Queue::new(9);
        for job in ["a1", "a2", "a3"] {
            assert_eq!(push(&queue, "192.0.2.1", job), Queued::Waits);
        }
        push(&queue, "2001:db8::1", "b1");
        push(&queue, "2001:db8::2", "b2");
        push(&queue, "2001:db8:1::", "c1");
        push(&queue, "::ffff:192.0.2.1", "a4");
        assert_eq!(rest(&queue), ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]);
        assert!(queue.state().counts.is_empty());
    }

    #[test]
    fn a_full_queue_takes_from_those_who_have_much_and_gives_to_those_who_have_less() {
        let queue = Queue::new(3);
        for job in ["a1", "a2", "a3"] {
            push(&queue, "192.0.2.1", job);
        }
        assert_eq!(push(&queue, "192.0.2.1", "a4"), Queued::Full("a4"));
        assert_eq!(push(&queue, "198.51.100.1", "b1"), Queued::InPlaceOf("a3"));
        assert_eq!(push(&queue, "203.0.113.1", "c1"), Queued::InPlaceOf("a2"));
        assert_eq!(push(&queue, "198.51.100.1", "b2"), Queued::Full("b2"));
        assert_eq!(push(&queue, "198.18.0.1", "d1"), Queued::Full("d1"));
        assert_eq!(rest(&queue), ["a1", "b1", "c1"]);
    }

    #[test]
    fn the_addresses_of_a_network_do_not_fill_the_queue() {
        for (network, other) in [("192.0.2.", "192.0.3.1"), ("2001:db8::", "2001:db8:1::1")] {
            let queue = Queue::new(64);
            let address = |index| match network {
                "192.0.2." => format!("192.0.2.{index}"),
                _ => format!("2001:db8:0:{index}::1"),
            };
            for index in 0..64 {
                assert_eq!(push(&queue, &address(index), "flood"), Queued::Waits);
            }
            assert_eq!(push(&queue, &address(99), "flood"), Queued::Full("flood"));
            assert_eq!(push(&queue, other, "other"), Queued::InPlaceOf("flood"));
            let place = rest(&queue).iter().position(|job| *job == "other");
            assert_eq!(place, Some(8), "{network}");
        }
    }

    #[test]
    fn a_few_networks_do_not_fill_the_queue() {
        let queue = Queue::new(64);
        for index in 0..64 {
            let address = format!("198.51.{}.{index}", index % 8);
            assert_eq!(push(&queue, &address, "flood"), Queued::Waits);
        }
        assert_eq!(push(&queue, "203.0.113.1", "other"), Queued::InPlaceOf("flood"));
        assert_eq!(rest(&queue).iter().position(|job| *job == "other"), Some(1));
    }

    #[test]
    fn whoever_waits_for_a_job_gets_it_and_ends_with_the_queue() {
        let queue = Queue::new(1);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| (queue.pop(), queue.pop()));
            push(&queue, "192.0.2.1", "a");
            queue.close();
            assert_eq!(worker.join().unwrap(), (Some("a"), None));
        });
    }
}
