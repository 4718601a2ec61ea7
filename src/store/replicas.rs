//! Which replicas run on a PostgreSQL database, and how much of its revocations and signing keys
//! each of them knows. With SQLite, [`Presence`](super::Presence) keeps this in files.
//!
//! Each replica has a row. It is written whenever the replica has read something new, and once a
//! second to show that the replica runs: one that can no longer read must not look as if it had ended,
//! because it still accepts what it does not know to be revoked. The row is named by the replica and the history
//! that it has read: a standby that takes over gives some numbers again, and what a replica has read
//! of the other history says nothing about them. The times are those of the database, whose
//! clock is the only one that all replicas share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::identity::DatabaseIdentity;
use super::presence::Feed;
use super::revocations::history;
use super::{Store, StoreError};
use crate::clock::Clock;
use crate::limit::LiveGateways;

/// The row of this replica, as it was last written.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) store: Store,
    reported: tokio::sync::Mutex<Reported>,
}

/// What a replica has read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reported {
    history: String,
    /// Indexed by [`Feed`].
    read: [i64; 2],
}

impl Replica {
    /// Makes commands wait for this process from now on.
    pub(super) async fn announce(store: &Store) -> Result<Self, StoreError> {
        let _ = store.replica.set(Uuid::new_v4().to_string());
        let nothing = Reported { history: String::new(), read: [-1, -1] };
        let replica =
            Self { store: store.clone(), reported: tokio::sync::Mutex::new(nothing.clone()) };
        replica.write(&nothing).await?;
        store.count_replicas().await?;
        Ok(replica)
    }

    /// Announces that this replica knows everything of this kind up to the number `last`.
    pub(super) async fn report_read(&self, feed: Feed, last: i64) {
        let mut reported = self.reported.lock().await;
        let mut read = reported.clone();
        let history = self.store.known_history();
        if read.history != history {
            read = Reported { history, read: [-1, -1] };
        }
        read.read[feed as usize] = last;
        if *reported == read {
            return;
        }
        match self.write(&read).await {
            Ok(()) => *reported = read,
            Err(error) => {
                tracing::debug!(cause = %error, "cannot report to commands what this gateway has read");
            }
        }
    }

    async fn write(&self, reported: &Reported) -> Result<(), StoreError> {
        let Some(id) = self.store.replica_id() else { return Ok(()) };
        let ([revocations, keys], name) = (reported.read, format!("{id}/{}", reported.history));
        let writing = sqlx::query_as(REPORT).bind(name).bind(revocations).bind(keys);
        let writing = writing.bind(format!("{id}/%"));
        let _: Vec<(i64,)> = self.store.connections.apart(writing).await?;
        Ok(())
    }
}

impl Store {
    /// The id of this gateway among the replicas of the database, if it is one of several.
    pub fn replica_id(&self) -> Option<&str> {
        self.replica.get().map(String::as_str)
    }

    /// How many replicas were seen in the last ten seconds, as last read, for limits here and in
    /// Redis.
    pub fn live_replicas(&self) -> &Arc<LiveGateways> {
        &self.known_replicas
    }

    /// Measures by how much the database's clock is ahead of this one.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn compare_clocks(&self, clock: &Clock) -> Result<(), StoreError> {
        if !self.is_shared() {
            return Ok(());
        }
        let asked = clock.unix_time();
        let (there,): (i64,) = self.connections.one(sqlx::query_as(TIME)).await?;
        let took = clock.unix_time().saturating_sub(asked);
        // An answer that took long says less than an earlier one.
        if took < QUICK {
            let here = i64::try_from((asked + took / 2).as_millis()).unwrap_or(i64::MAX);
            self.clock_ahead.store(there - here, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What the clock that all replicas share shows when ours shows `now`. Without replicas, that is
    /// ours.
    pub fn shared_time(&self, now: Duration) -> Duration {
        let ahead = self.clock_ahead.load(Ordering::Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { now.saturating_sub(by) } else { now.saturating_add(by) }
    }

    /// Reads how many replicas were seen in the last ten seconds.
    pub(super) async fn count_replicas(&self) -> Result<u32, StoreError> {
        // A command has no id, and comes before none of them.
        let own = self.replica_id().unwrap_or_default();
        let counting = sqlx::query_as(LIVE).bind(own);
        let (count, before): (i64, i64) = self.connections.one(counting).await?;
        let [count, before] = [count, before].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        self.known_replicas.note(count, before);
        Ok(count)
    }

    /// Seconds since the live replica that is silent for longest was seen. `None`: there is none.
    pub(super) async fn longest_silence(&self) -> Result<Option<i64>, StoreError> {
        let (seconds,) = self.connections.one(sqlx::query_as(SILENCE)).await?;
        Ok(seconds)
    }

    /// The history of a server that is known here, or nothing.
    fn known_history(&self) -> String {
        match self.connections.identity() {
            Some(DatabaseIdentity::Server(server)) => server.known_history(),
            _ => String::new(),
        }
    }

    /// Shows commands that this replica runs, whatever it has read.
    ///
    /// # Errors
    /// Its row cannot be written.
    pub async fn stay_present(&self) -> Result<(), StoreError> {
        let Some(id) = self.replica_id() else { return Ok(()) };
        let staying = sqlx::query_as(STAY).bind(format!("{id}/%"));
        let _: Vec<(i64,)> = self.connections.apart(staying).await?;
        Ok(())
    }

    /// How many live replicas do not know everything that was written, up to these numbers.
    pub(super) async fn replicas_behind(
        &self,
        revocation: i64,
        key: i64,
    ) -> Result<usize, StoreError> {
        let asking = sqlx::query_as(BEHIND).bind(revocation).bind(key);
        let (count,): (i64,) = self.connections.one(asking).await?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Makes commands stop waiting for this process.
    pub(super) async fn leave(&self) {
        let Some(id) = self.replica_id() else { return };
        // If it stays, it is forgotten after ten seconds.
        let leaving = sqlx::query_as("DELETE FROM replicas WHERE id LIKE $1 RETURNING seen_at");
        let leaving = self.connections.apart::<(i64,)>(leaving.bind(format!("{id}/%")));
        let _ = tokio::time::timeout(LEAVING_TIMEOUT, leaving).await;
    }
}

/// How long the last statement of a replica may take.
const LEAVING_TIMEOUT: Duration = Duration::from_secs(1);

/// Also forgets replicas that ended long ago, and what this one has read of another history. The row
/// need not survive a crash of the server, so nothing waits for the disk.
const REPORT: &str = "WITH fast AS (SELECT set_config('synchronous_commit', 'off', true) AS mode), \
    gone AS (DELETE FROM replicas WHERE seen_at < CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) - 3600 OR (id LIKE $4 AND id <> $1)) \
    INSERT INTO replicas (id, revocations_read, keys_read, seen_at) \
    SELECT $1, $2, $3, CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) FROM fast WHERE mode = 'off' \
    ON CONFLICT (id) DO UPDATE SET revocations_read = excluded.revocations_read, keys_read = excluded.keys_read, seen_at = excluded.seen_at \
    RETURNING seen_at";

/// What was read is left as it is: a report may be under way.
const STAY: &str = "WITH fast AS (SELECT set_config('synchronous_commit', 'off', true) AS mode) \
    UPDATE replicas SET seen_at = CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) \
    FROM fast WHERE mode = 'off' AND id LIKE $1 RETURNING seen_at";

const TIME: &str = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

/// How long an answer may take that compares clocks: twice the error.
const QUICK: Duration = Duration::from_millis(500);

/// How many there are, and how many come before this one.
const LIVE: &str = "SELECT COUNT(*), COALESCE(SUM(CASE WHEN id < $1 THEN 1 ELSE 0 END), 0) FROM replicas WHERE seen_at >= CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) - 10";

const SILENCE: &str = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) - MIN(seen_at) FROM replicas \
    WHERE seen_at >= CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) - 10";

/// A replica of an older version does not name the history.
const BEHIND: &str = concat!(
    "SELECT COUNT(*) FROM replicas WHERE seen_at >= CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) - 10 \
     AND (revocations_read < $1 OR keys_read < $2 OR (id LIKE '%/%' AND id NOT LIKE '%/' || ",
    history!(),
    "))"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_settings;

    /// A standby gives numbers again that the replica has read of the server before it.
    #[tokio::test]
    async fn what_was_read_of_another_history_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        if !store.is_shared() {
            return;
        }
        let replica = Replica::announce(&store).await.unwrap();
        assert_eq!(store.replicas_behind(0, -1).await.unwrap(), 1, "it has read nothing yet");
        store.news_after(0).await.unwrap();
        replica.report_read(Feed::Revocations, 5).await;
        replica.report_read(Feed::SigningKeys, 1).await;
        assert_eq!(store.replicas_behind(5, 1).await.unwrap(), 0);
        assert_eq!(store.replicas_behind(6, 1).await.unwrap(), 1);
        // As if the row came from another server.
        store.accept_history("another");
        replica.report_read(Feed::Revocations, 5).await;
        assert_eq!(store.replicas_behind(5, -1).await.unwrap(), 1);
        assert_eq!(store.count_replicas().await.unwrap(), 1);
        store.accept_history("a third");
        replica.report_read(Feed::SigningKeys, 1).await;
        let read = "SELECT revocations_read, keys_read FROM replicas";
        let rows: Vec<(i64, i64)> = store.connections.all(sqlx::query_as(read)).await.unwrap();
        assert_eq!(rows, [(-1, 1)], "each kind is read anew");
        store.close().await;
    }
}
