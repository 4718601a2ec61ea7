//! Password hashing on a few dedicated threads with a short queue. New passwords are checked on
//! another thread with its own queue, so that no login waits for that.
//!
//! A hash takes tens of milliseconds and megabytes. There are few hashing threads, they run at a
//! lower priority than those that proxy, and work that would wait too long is refused at once: a
//! flood of logins slows logins down, not requests. Each account has one job in the queue at a time
//! ([`Turns`]), and clients with many jobs wait behind the others ([`Queue`]).

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use tokio::sync::oneshot;

use super::email::Email;
use super::password::{Password, StoredHash};
use super::strength::{RejectedPassword, check_strength};
use super::turns::{Turn, Turns};
use crate::limit::{Queue, Queued};
use crate::priority::lower_priority;

/// Hashes and verifies passwords. Clones share the threads, which end when the last clone is
/// dropped.
#[derive(Clone)]
pub struct Hasher {
    hashing: Pool,
    checking: Pool,
    turns: Turns,
    dummies: Arc<ArcSwap<DummyHashes>>,
    key: Arc<hmac::Key>,
}

/// Why nothing was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// More logins at a time than the threads can handle promptly.
    #[error("too many passwords are waiting to be hashed")]
    Overloaded,
    /// The system is out of memory or random numbers.
    #[error("cannot hash a password: the system is out of memory or random numbers")]
    Failed,
}

/// The result of verifying a password.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The password is wrong.
    Wrong,
    /// The password is right.
    Right {
        /// A new hash to store, if the old one does not use the current parameters.
        renewed: Option<StoredHash>,
    },
}

/// Why a new password was not hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NewPasswordError {
    /// It is too easy to guess.
    #[error(transparent)]
    Rejected(#[from] RejectedPassword),
    /// It was not checked.
    #[error(transparent)]
    NotHashed(#[from] HashError),
}

impl Hasher {
    /// Starts the threads: half as many as there are cores, at least one.
    ///
    /// `key` selects the dummy hash of each unknown address; keep it the same for as long as the
    /// accounts exist.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(key: &[u8]) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads((cores / 2).max(1), key)
    }

    fn with_threads(threads: usize, key: &[u8]) -> io::Result<Self> {
        Ok(Self {
            hashing: Pool::start("hash", threads)?,
            checking: Pool::start("check", 1)?,
            turns: Turns::default(),
            dummies: Arc::new(ArcSwap::from_pointee(DummyHashes::default())),
            key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key)),
        })
    }

    /// Judges and hashes a new password for a client. `personal` holds texts that are known about
    /// its owner. It takes no turn of an account: registrations with somebody else's address would
    /// delay the owner's logins.
    pub async fn renew(
        &self,
        client: IpAddr,
        password: Password,
        least: usize,
        personal: &[&str],
    ) -> Result<StoredHash, NewPasswordError> {
        let personal: Vec<String> = personal.iter().map(|&text| text.to_owned()).collect();
        let checked = password.clone();
        self.checking
            .run(client, move || {
                let personal: Vec<&str> = personal.iter().map(String::as_str).collect();
                check_strength(&checked, least, &personal)
            })
            .await??;
        let hash = self.hashing.run(client, move || StoredHash::hash(&password)).await?;
        hash.map_err(|_| HashError::Failed.into())
    }

    /// Verifies a password that a client sent against the hash of the account with this address.
    pub async fn verify(
        &self,
        client: IpAddr,
        whose: &Email,
        password: Password,
        hash: StoredHash,
    ) -> Result<Verdict, HashError> {
        let _turn = self.turn(whose).await?;
        let work = move || {
            if !hash.matches(&password) {
                return Verdict::Wrong;
            }
            // The password is right even if no new hash can be made.
            Verdict::Right {
                renewed: hash.is_outdated().then(|| StoredHash::hash(&password).ok()).flatten(),
            }
        };
        self.hashing.run(client, work).await
    }

    /// Takes as long as [`Hasher::verify`] takes for a wrong password. For an address without an
    /// account, or an account without a password.
    pub async fn hash_dummy(
        &self,
        client: IpAddr,
        password: Password,
        email: &Email,
    ) -> Result<(), HashError> {
        let digest = hmac::sign(&self.key, email.as_str().as_bytes());
        let dummy = self.dummies.load().choose(digest.as_ref());
        let _turn = self.turn(email).await?;
        let work = move || {
            let _ = dummy.matches(&password);
        };
        self.hashing.run(client, work).await
    }

    /// Adapts the dummy hashes to the accounts: the cost of each kind of hash
    /// ([`StoredHash::cost`]), and the number of hashes with that cost. Imported hashes take a
    /// different time than ours.
    pub fn set_known_costs(&self, costs: &[(String, u64)]) {
        self.dummies.store(Arc::new(DummyHashes::new(costs)));
    }

    async fn turn(&self, whose: &Email) -> Result<Turn, HashError> {
        self.turns.wait(whose.as_str(), LONGEST_WAIT).await.map_err(|_| HashError::Overloaded)
    }
}

/// Threads and their queue. Clones share both; the threads end when the last clone is dropped.
#[derive(Clone)]
struct Pool {
    entrance: Arc<Entrance>,
}

/// Where jobs enter a queue. The queue is closed when this is dropped.
struct Entrance {
    queue: Arc<Queue<Job>>,
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Pool {
    fn start(name: &str, threads: usize) -> io::Result<Self> {
        let entrance = Entrance { queue: Arc::new(Queue::new(threads * QUEUED_PER_THREAD)) };
        for index in 0..threads {
            let queue = Arc::clone(&entrance.queue);
            thread::Builder::new()
                .name(format!("portcullis-{name}-{index}"))
                .spawn(move || work(&queue))?;
        }
        Ok(Self { entrance: Arc::new(entrance) })
    }

    async fn run<T: Send + 'static>(
        &self,
        client: IpAddr,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashError> {
        let (answer, answered) = oneshot::channel();
        let waiting_since = Instant::now();
        let job = Box::new(move |turn| {
            // The caller has gone, or would get the result too late. Skip it, so that the next one
            // is served sooner.
            if answer.is_closed() {
                return;
            }
            if turn == JobTurn::Refused || waiting_since.elapsed() > LONGEST_WAIT {
                let _ = answer.send(Err(HashError::Overloaded));
                return;
            }
            let _ = answer.send(Ok(work()));
        });
        match self.entrance.queue.push(client, job) {
            Queued::Waits => {}
            Queued::InPlaceOf(job) | Queued::Full(job) => job(JobTurn::Refused),
        }
        answered.await.unwrap_or(Err(HashError::Failed))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").finish_non_exhaustive()
    }
}

type Job = Box<dyn FnOnce(JobTurn) + Send>;

/// What a job does when it leaves the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum JobTurn {
    /// Its work, on the thread that took it.
    Has,
    /// It reports that the queue has no room for it.
    Refused,
}

/// The loop of one thread: runs jobs until the queue is closed.
fn work(jobs: &Queue<Job>) {
    lower_priority("hashing");
    while let Some(job) = jobs.pop() {
        if catch_unwind(AssertUnwindSafe(|| job(JobTurn::Has))).is_err() {
            tracing::error!("the password hashing thread panicked; see standard error");
        }
    }
}

/// Hashes to verify against for addresses without an account.
#[derive(Debug)]
struct DummyHashes {
    /// A hash, and the number of accounts with its cost or that of an earlier entry.
    ranges: Vec<(StoredHash, u64)>,
}

impl Default for DummyHashes {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl DummyHashes {
    fn new(costs: &[(String, u64)]) -> Self {
        let mut total = 0;
        let known = costs.iter().filter_map(|(cost, count)| {
            let hash = StoredHash::dummy(cost)?;
            total += count;
            Some((hash, total))
        });
        Self { ranges: known.collect() }
    }

    /// Returns the same hash for the same digest while the accounts stay the same. Each kind is
    /// chosen as often as it occurs among the accounts.
    fn choose(&self, digest: &[u8]) -> StoredHash {
        let total = self.ranges.last().map_or(0, |(_, total)| *total).max(1);
        let at = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
            % total;
        let chosen =
            self.ranges.iter().find(|(_, until)| at < *until).map(|(hash, _)| hash.clone());
        chosen
            .or_else(|| StoredHash::dummy(CURRENT_COST))
            .expect("the current cost parses as that of a hash")
    }
}

/// The cost of hashes that are made today.
const CURRENT_COST: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

/// Queued passwords for each thread: about two seconds of work.
const QUEUED_PER_THREAD: usize = 64;

/// A caller that has waited longer has gone away, or will retry.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    fn ann() -> Email {
        Email::parse("ann@example.com").unwrap()
    }

    #[tokio::test]
    async fn passwords_are_hashed_verified_and_renewed() {
        let hasher = Hasher::start(b"key").unwrap();
        let hash = hasher.renew(HERE, password("correct horse battery"), 8, &[]).await.unwrap();
        assert_eq!(hash.cost(), CURRENT_COST);
        assert_eq!(
            hasher.verify(HERE, &ann(), password("correct horse battery"), hash.clone()).await,
            Ok(Verdict::Right { renewed: None })
        );
        assert_eq!(
            hasher.verify(HERE, &ann(), password("correct horse"), hash).await,
            Ok(Verdict::Wrong)
        );
        let rejected = hasher.renew(HERE, password("password"), 8, &[]).await.unwrap_err();
        assert_eq!(rejected, NewPasswordError::Rejected(RejectedPassword::Common));

        let imported: StoredHash =
            bcrypt::hash("correct horse battery", 4).unwrap().parse().unwrap();
        let Verdict::Right { renewed: Some(renewed) } =
            hasher.verify(HERE, &ann(), password("correct horse battery"), imported).await.unwrap()
        else {
            panic!("an imported hash is renewed");
        };
        assert!(renewed.matches(&password("correct horse battery")) && !renewed.is_outdated());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_drains() {
        let hasher = Hasher::with_threads(1, b"key").unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let mut first = Box::pin(hasher.hashing.run(HERE, move || held.recv().is_err()));
        assert!(tokio::time::timeout(Duration::ZERO, &mut first).await.is_err());
        // One runs; the others fill the queue.
        let (mut accepted, mut refused) = (Vec::new(), 0);
        for _ in 0..QUEUED_PER_THREAD + 10 {
            let mut one = Box::pin(hasher.hashing.run(HERE, || ()));
            match tokio::time::timeout(Duration::ZERO, &mut one).await {
                Ok(result) => {
                    assert_eq!(result, Err(HashError::Overloaded));
                    refused += 1;
                }
                Err(_) => accepted.push(one),
            }
        }
        // The thread may not have taken the first one yet.
        assert!((10..=11).contains(&refused), "{} accepted, {refused} refused", accepted.len());
        drop(release);
        assert_eq!(first.await, Ok(true));
        for one in accepted {
            assert_eq!(one.await, Ok(()));
        }
        assert_eq!(
            hasher.hashing.run(HERE, || 7).await,
            Ok(7),
            "and afterwards it works as before"
        );
    }

    #[tokio::test]
    async fn cancelled_jobs_are_skipped_and_a_panic_does_not_stop_the_thread() {
        let hasher = Hasher::with_threads(1, b"key").unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let busy = hasher.hashing.run(HERE, move || held.recv().is_err());
        let gone = hasher.hashing.run(HERE, move || sender.send(()));
        let mut busy = Box::pin(busy);
        // Each enters the queue; the second is cancelled there.
        assert!(tokio::time::timeout(Duration::ZERO, &mut busy).await.is_err());
        assert!(tokio::time::timeout(Duration::ZERO, gone).await.is_err());
        drop(release);
        assert_eq!(
            hasher.hashing.run(HERE, || -> () { panic!("as a test of what follows") }).await,
            Err(HashError::Failed)
        );
        assert_eq!(hasher.hashing.run(HERE, || 7).await, Ok(7));
        assert!(receiver.try_recv().is_err(), "the cancelled job did not run");
    }

    #[tokio::test]
    async fn a_client_that_fills_the_queue_makes_room_for_others() {
        let hasher = Hasher::with_threads(1, b"key").unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (sender, started) = std::sync::mpsc::channel::<()>();
        let mut busy = Box::pin(hasher.hashing.run(HERE, move || {
            sender.send(()).unwrap();
            held.recv().is_err()
        }));
        assert!(tokio::time::timeout(Duration::ZERO, &mut busy).await.is_err());
        started.recv().unwrap();
        let mut flood: Vec<_> =
            (0..QUEUED_PER_THREAD).map(|_| Box::pin(hasher.hashing.run(HERE, || ()))).collect();
        for one in &mut flood {
            assert!(tokio::time::timeout(Duration::ZERO, one).await.is_err(), "it waits");
        }
        let elsewhere = "192.0.2.1".parse().unwrap();
        let mut other = Box::pin(hasher.hashing.run(elsewhere, || 7));
        assert!(tokio::time::timeout(Duration::ZERO, &mut other).await.is_err(), "it waits");
        assert_eq!(flood.pop().unwrap().await, Err(HashError::Overloaded));
        drop(release);
        assert_eq!(other.await, Ok(7));
        for one in flood {
            assert_eq!(one.await, Ok(()));
        }
    }

    /// An account with many requests at once has one place in the queue, and new passwords are
    /// checked elsewhere, so others can log in meanwhile.
    #[tokio::test]
    async fn one_account_does_not_fill_the_queue() {
        let hasher = Hasher::with_threads(1, b"key").unwrap();
        let hash = hasher.renew(HERE, password("correct horse battery"), 8, &[]).await.unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let mut busy = Box::pin(hasher.hashing.run(HERE, move || held.recv().is_err()));
        assert!(tokio::time::timeout(Duration::ZERO, &mut busy).await.is_err());
        let mut of_ann = Vec::new();
        for _ in 0..QUEUED_PER_THREAD * 2 {
            let ann = ann();
            let (hasher, hash) = (hasher.clone(), hash.clone());
            let mut one =
                Box::pin(async move { hasher.verify(HERE, &ann, password("wrong"), hash).await });
            assert!(tokio::time::timeout(Duration::ZERO, &mut one).await.is_err());
            of_ann.push(one);
        }
        let bob = Email::parse("bob@example.com").unwrap();
        let rejected = hasher.renew(HERE, password("password"), 8, &[]).await.unwrap_err();
        assert_eq!(rejected, NewPasswordError::Rejected(RejectedPassword::Common));
        let mut of_bob = Box::pin(hasher.hash_dummy(HERE, password("x"), &bob));
        assert!(tokio::time::timeout(Duration::ZERO, &mut of_bob).await.is_err(), "it waits");
        drop((of_ann, release));
        assert_eq!(of_bob.await, Ok(()));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn hashing_threads_have_a_lower_priority() {
        let here = rustix::process::getpriority_process(None).unwrap();
        let hasher = Hasher::with_threads(1, b"key").unwrap();
        let there = hasher
            .hashing
            .run(HERE, || rustix::process::getpriority_process(None).unwrap())
            .await
            .unwrap();
        assert_eq!(there, (here + crate::priority::NICENESS).min(19));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), here, "and only they");
    }

    #[tokio::test]
    async fn dummy_hashes_have_the_costs_of_real_ones() {
        let hasher = Hasher::with_threads(1, b"key").unwrap();
        let chosen = |hasher: &Hasher, index: usize| {
            let digest = hmac::sign(&hasher.key, format!("{index}@example.com").as_bytes());
            hasher.dummies.load().choose(digest.as_ref()).cost().to_owned()
        };
        assert_eq!(chosen(&hasher, 0), CURRENT_COST);
        hasher.set_known_costs(&[
            ("$2b$10$".into(), 3000),
            (CURRENT_COST.into(), 1000),
            ("$9$".into(), 5000),
        ]);
        let bcrypt = (0..1000).filter(|&index| chosen(&hasher, index) == "$2b$10$").count();
        assert!((690..810).contains(&bcrypt), "{bcrypt} of 1000");
        assert_eq!(chosen(&hasher, 7), chosen(&hasher, 7));
        hasher.hash_dummy(HERE, password("x"), &ann()).await.unwrap();
    }
}
