//! Whose read is next. There are few connections that read, and clients cause reads: without turns,
//! one that sends many requests would keep them all, and nobody could log in.
//!
//! Reads for clients take turns, one for each connection, and wait in a [`Queue`]: a client delays
//! mainly itself. Other reads need no turn, since nobody outside causes them.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::AnyPool;
use tokio::sync::oneshot;

use super::StoreError;
use crate::limit::{Queue, Queued};

tokio::task_local! {
    static CLIENT: IpAddr;
}

/// Does work for a client: what it reads from a store waits behind the reads of clients that have
/// fewer waiting.
pub async fn for_client<T>(client: IpAddr, work: impl Future<Output = T>) -> T {
    CLIENT.scope(client, work).await
}

/// The turns of a database. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Reads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    waiting: Queue<oneshot::Sender<Turn>>,
}

#[derive(Debug, Default)]
struct State {
    /// How many have their turn.
    busy: u32,
    /// When the database last answered one.
    answered: Option<Instant>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
struct Turn(Option<Arc<Shared>>);

impl Reads {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), waiting: Queue::new(MOST_WAITING) }))
    }

    /// Reads by `reading` through `pool`: for a client, when it is its turn.
    pub(super) async fn take_turns<T>(
        &self,
        pool: &AnyPool,
        reading: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let Ok(client) = CLIENT.try_with(|client| *client) else { return reading.await };
        let most = pool.options().get_max_connections();
        let _turn = self.turn(client, most, LONGEST_WAIT).await?;
        let read = reading.await;
        if read.is_ok() {
            self.0.state().answered = Some(Instant::now());
        }
        read
    }

    /// Waits for one of `most` turns, at most for `longest`.
    async fn turn(&self, client: IpAddr, most: u32, longest: Duration) -> Result<Turn, StoreError> {
        let begun = Instant::now();
        let given = {
            let mut state = self.0.state();
            if state.busy < most {
                state.busy += 1;
                return Ok(Turn(Some(Arc::clone(&self.0))));
            }
            let (give, given) = oneshot::channel();
            if let Queued::Full(_) = self.0.waiting.push(client, give) {
                return Err(StoreError::TooManyReads);
            }
            given
        };
        match tokio::time::timeout(longest, given).await {
            Ok(Ok(turn)) => Ok(turn),
            // Others have answers: this client has too many reads.
            Err(_) if self.0.state().answered.is_none_or(|answered| answered < begun) => {
                Err(sqlx::Error::PoolTimedOut.into())
            }
            // A client with fewer took its place.
            Err(_) | Ok(Err(_)) => Err(StoreError::TooManyReads),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        let mut state = shared.state();
        let mut turn = Self(Some(Arc::clone(&shared)));
        while let Some(next) = shared.waiting.try_pop() {
            match next.send(turn) {
                Ok(()) => return,
                // It no longer waits.
                Err(unused) => turn = unused,
            }
        }
        turn.0 = None;
        state.busy -= 1;
    }
}

/// How many reads wait, at most. So many take about as long as [`LONGEST_WAIT`].
const MOST_WAITING: usize = 4096;

/// How long a read waits for its turn before it fails: as long as it then waits for a connection.
const LONGEST_WAIT: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::store::{Store, test_settings};

    const LONG: Duration = Duration::from_mins(1);
    const EVE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const ANN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

    #[tokio::test]
    async fn one_client_with_many_reads_does_not_hold_up_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        let pool = &store.connections.readers;
        let connections = pool.options().get_max_connections();
        let mut held = Vec::new();
        for _ in 0..connections {
            held.push(pool.acquire().await.unwrap());
        }
        let done = Arc::new(Mutex::new(Vec::new()));
        // Tasks of this runtime begin in their order.
        let mut reads = JoinSet::new();
        for client in std::iter::repeat_n(EVE, 60).chain([ANN]) {
            let (store, done) = (store.clone(), Arc::clone(&done));
            let reading = async move {
                store.account("x").await.unwrap();
                done.lock().unwrap().push(client);
            };
            reads.spawn(for_client(client, reading));
        }
        tokio::task::yield_now().await;
        drop(held);
        reads.join_all().await;
        let place = done.lock().unwrap().iter().position(|client| *client == ANN).unwrap();
        // After those that had their turn, one that came before her, and those that overtake.
        assert!(place <= 2 * usize::try_from(connections).unwrap() + 1, "{place}");
        assert_eq!(store.connections.statements.reads.0.state().busy, 0);
        store.close().await;
    }

    #[tokio::test]
    async fn reads_that_no_longer_wait_keep_no_turn() {
        let reads = Reads::new();
        let turn = async |longest| reads.turn(EVE, 1, longest).await;
        let first = turn(LONG).await.unwrap();
        let mut given_up: Vec<_> = (0..9).map(|_| Box::pin(turn(LONG))).collect();
        for waiting in &mut given_up {
            assert!(tokio::time::timeout(Duration::ZERO, waiting).await.is_err());
        }
        drop(given_up);
        drop(first);
        assert_eq!(reads.0.state().busy, 0);

        // What the wait was in vain for: a database that does not answer, or too many reads.
        let first = turn(LONG).await.unwrap();
        let error = turn(Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, StoreError::Database(sqlx::Error::PoolTimedOut)), "{error}");
        reads.0.state().answered = Some(Instant::now() + LONG);
        let error = turn(Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, StoreError::TooManyReads), "{error}");
        drop(first);
        assert_eq!(reads.0.state().busy, 0);
    }

    #[tokio::test]
    async fn a_client_with_many_reads_makes_room_for_others() {
        let reads = Reads::new();
        let turn = async |client| reads.turn(client, 1, LONG).await;
        let first = turn(EVE).await.unwrap();
        let mut waiting: Vec<_> = (0..MOST_WAITING).map(|_| Box::pin(turn(EVE))).collect();
        for waiting in &mut waiting {
            assert!(tokio::time::timeout(Duration::ZERO, waiting).await.is_err());
        }
        assert!(matches!(turn(EVE).await, Err(StoreError::TooManyReads)));
        let mut ann = Box::pin(turn(ANN));
        assert!(tokio::time::timeout(Duration::ZERO, &mut ann).await.is_err());
        let last = waiting.pop().unwrap();
        assert!(matches!(last.await, Err(StoreError::TooManyReads)));
        drop(waiting);
        drop(first);
        ann.await.unwrap();
    }
}
