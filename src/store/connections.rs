//! The connections to the database: one that writes, a few that read, and one that follows.
//!
//! SQLite has one writer at a time, and readers beside it. A connection that reads is `query_only`,
//! so a statement that writes fails there. [`Writing`] is the only way to write: a transaction whose
//! commit is checked. Outside a transaction SQLite commits when a statement is reset, and the driver
//! drops an error of `sqlite3_reset`: on a full disk `INSERT … RETURNING` would hand out its row, and
//! nothing would be written.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::process::Signal;
use sqlx::any::{AnyArguments, AnyPoolOptions, AnyRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor, FromRow, Transaction};
use tokio::signal::unix::{SignalKind, signal};

use super::place::Place;
use super::{StoreError, beside};

/// Clones share the connections.
#[derive(Clone)]
pub(super) struct Connections {
    writer: AnyPool,
    readers: AnyPool,
    follower: AnyPool,
    /// Known once the database is open.
    place: Arc<OnceLock<Place>>,
    /// Closed last: that drops the locks that SQLite holds on it.
    _shared: Option<Arc<File>>,
}

impl Connections {
    /// Opens the database of this URL, which exists.
    pub(super) async fn open(url: &str, shared: Option<File>) -> Result<Self, sqlx::Error> {
        let read_only = |count| {
            pool(count)
                .after_connect(|connection, _| {
                    Box::pin(async {
                        set_up(connection).await?;
                        connection.execute("PRAGMA query_only = ON").await.map(drop)
                    })
                })
                .connect_lazy(url)
        };
        let writer = pool(1)
            .after_connect(|connection, _| Box::pin(set_up(connection)))
            .after_release(|connection, _| Box::pin(is_settled(connection)));
        Ok(Self {
            writer: writer.connect(url).await?,
            readers: read_only(READERS)?,
            follower: read_only(1)?,
            place: Arc::default(),
            _shared: shared.map(Arc::new),
        })
    }

    /// Opens a database that nobody writes to.
    pub(super) async fn look(url: &str) -> Result<Self, sqlx::Error> {
        let pool = pool(1).connect(&format!("{url}?mode=ro")).await?;
        Ok(Self {
            writer: pool.clone(),
            readers: pool.clone(),
            follower: pool,
            place: Arc::default(),
            _shared: None,
        })
    }

    /// What verbs read with.
    pub(super) fn read(&self) -> &AnyPool {
        &self.readers
    }

    /// What follows the table of revocations: nobody else can hold it.
    pub(super) fn follow(&self) -> &AnyPool {
        &self.follower
    }

    /// From now on nothing is acknowledged that is not written there.
    pub(super) fn stay_at(&self, place: Place) {
        // A database is opened once.
        let _ = self.place.set(place);
    }

    pub(super) fn place(&self) -> Option<&Place> {
        self.place.get()
    }

    /// Whether the database is still where it was.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.place().map_or(Ok(()), Place::check)
    }

    /// SQLite has found the database damaged: what is written now may be lost.
    pub(super) fn note_damage(&self) {
        if let Some(place) = self.place() {
            place.note_damage();
        }
    }

    /// Begins to write.
    pub(super) async fn write(&self) -> Result<Writing, StoreError> {
        self.check()?;
        // SQLite's word. It takes the lock now: a transaction that reads first and writes later
        // would fail if somebody else wrote in between.
        let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Writing { transaction, place: Arc::clone(&self.place) })
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.follower.close().await;
        self.writer.close().await;
    }

    #[cfg(test)]
    pub(super) fn writer(&self) -> &AnyPool {
        &self.writer
    }
}

/// A transaction. What it has written counts when [`Writing::commit`] returns, and is gone if that
/// is never called.
pub(super) struct Writing {
    transaction: Transaction<'static, Any>,
    place: Arc<OnceLock<Place>>,
}

impl Writing {
    /// Runs a statement, and says how many rows it has changed.
    pub(super) async fn execute(
        &mut self,
        statement: Query<'_, Any, AnyArguments>,
    ) -> Result<u64, StoreError> {
        Ok(statement.execute(&mut *self.transaction).await?.rows_affected())
    }

    /// Runs a statement to its end, and hands out its first row.
    pub(super) async fn first<Row>(
        &mut self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Option<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        // All rows, since an error after the first one is dropped if that is all that is asked for.
        Ok(self.all(statement).await?.into_iter().next())
    }

    /// Runs a statement, and hands out all of its rows.
    pub(super) async fn all<Row>(
        &mut self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Vec<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        Ok(statement.fetch_all(&mut *self.transaction).await?)
    }

    /// Runs a statement that answers with one row.
    pub(super) async fn one<Row>(
        &mut self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Row, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        Ok(self.first(statement).await?.ok_or(sqlx::Error::RowNotFound)?)
    }

    /// Makes what was written count.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await?;
        // Written to a file that was deleted meanwhile, it is gone.
        self.place.get().map_or(Ok(()), Place::check)
    }
}

fn pool(connections: u32) -> AnyPoolOptions {
    // A connection is never closed for its age: where the last one is, SQLite removes its `-wal`.
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// Has the disk keep room for the index of the `-wal`, which SQLite maps into memory: a write to a
/// hole of that file on a full disk would end the process (SIGBUS). SQLite fills it in steps of
/// 4 KiB with one byte each, which leaves holes where blocks are smaller.
fn keep_room(database: &Path) -> io::Result<Option<File>> {
    let path = beside(database, "-shm");
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match fallocate(&file, FallocateFlags::empty(), 0, SHARED_BYTES) {
        // A file system without it.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(Some(file)),
        Err(error) => Err(error.into()),
    }
}

/// Opens one connection, to see at once why that fails: a pool tries for long, and does not say.
pub(super) async fn probe(
    path: &Path,
    url: &str,
) -> Result<(AnyConnection, Option<File>), StoreError> {
    // Beyond a limit of the size of files (RLIMIT_FSIZE) a write fails, and does not end the process.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map_err(sqlx::Error::Io)?);
    let mut first = AnyConnection::connect(url).await?;
    // Before anything is written to it.
    if matches!(tables(&mut first).await?, (1.., 0)) {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    set_up(&mut first).await?;
    // Now the files beside it are there.
    tables(&mut first).await?;
    let shared = keep_room(path)
        .map_err(|source| StoreError::Open { path: beside(path, "-shm"), source })?;
    Ok((first, shared))
}

/// How many tables and the like there are, and how many of them are that of our schema's steps.
pub(super) async fn tables(
    executor: impl Executor<'_, Database = Any>,
) -> Result<(i64, i64), sqlx::Error> {
    let count = "SELECT COUNT(*), COALESCE(SUM(CASE WHEN name = '_sqlx_migrations' THEN 1 ELSE 0 END), 0) FROM sqlite_master";
    sqlx::query_as(count).fetch_one(executor).await
}

/// What each connection begins with.
async fn set_up(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    for pragma in PRAGMAS {
        connection.execute(pragma).await?;
    }
    Ok(())
}

/// Whether a connection that comes back has no transaction any more; otherwise it is closed.
///
/// When the disk is full SQLite rolls back by itself, and the driver, whose own ROLLBACK then
/// fails, counts a transaction that is none. Its next one would be a savepoint within nothing, or
/// within one that nobody commits: acknowledged, and lost at the end of the process.
async fn is_settled(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    // What was dropped is rolled back by its own thread, in order: the answer to this comes after.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Room for the index of 32,000 pages: SQLite empties its `-wal` from 1,000 on.
const SHARED_BYTES: u64 = 256 << 10;

/// Connections that verbs read with.
const READERS: u32 = 3;

/// How long a verb waits for a connection before it fails.
pub(super) const ACQUIRE: Duration = Duration::from_secs(10);

/// `synchronous = FULL`: what was acknowledged survives a loss of power.
const PRAGMAS: [&str; 4] = [
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
];
