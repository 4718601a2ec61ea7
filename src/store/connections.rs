//! The connections to the database: one that writes, a few that read, and one that follows the
//! revocations.
//!
//! SQLite allows one writer at a time, and readers alongside it. A connection that reads is
//! `query_only`, so a statement that writes fails there. [`WriteTransaction`] is the only way to
//! write: a transaction whose commit is checked. Outside a transaction, SQLite commits when a
//! statement is reset, and the driver drops an error of `sqlite3_reset`: on a full disk, `INSERT …
//! RETURNING` would return its row although nothing was written.

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

use super::files::DatabaseFiles;
use super::{StoreError, with_suffix};

/// Clones share the connections.
#[derive(Clone)]
pub(super) struct Connections {
    writer: AnyPool,
    readers: AnyPool,
    follower: AnyPool,
    /// Set once the database is open.
    files: Arc<OnceLock<DatabaseFiles>>,
    /// Closed last, because closing it drops the locks that SQLite holds on the file.
    _shared: Option<Arc<File>>,
}

impl Connections {
    /// Opens the existing database at this URL.
    pub(super) async fn open(url: &str, shared: Option<File>) -> Result<Self, sqlx::Error> {
        let read_only = |count| {
            pool(count)
                .after_connect(|connection, _| {
                    Box::pin(async {
                        configure(connection).await?;
                        connection.execute("PRAGMA query_only = ON").await.map(drop)
                    })
                })
                .connect_lazy(url)
        };
        let writer = pool(1)
            .after_connect(|connection, _| Box::pin(configure(connection)))
            .after_release(|connection, _| Box::pin(has_no_transaction(connection)));
        Ok(Self {
            writer: writer.connect(url).await?,
            readers: read_only(READERS)?,
            follower: read_only(1)?,
            files: Arc::default(),
            _shared: shared.map(Arc::new),
        })
    }

    /// Opens a database read-only.
    pub(super) async fn open_read_only(url: &str) -> Result<Self, sqlx::Error> {
        let pool = pool(1).connect(&format!("{url}?mode=ro")).await?;
        Ok(Self {
            writer: pool.clone(),
            readers: pool.clone(),
            follower: pool,
            files: Arc::default(),
            _shared: None,
        })
    }

    /// The connections for reading.
    pub(super) fn reader(&self) -> &AnyPool {
        &self.readers
    }

    /// The connection that follows the table of revocations. Nothing else can occupy it.
    pub(super) fn follower(&self) -> &AnyPool {
        &self.follower
    }

    /// From now on, a write is acknowledged only if it went to these files.
    pub(super) fn bind_to(&self, files: DatabaseFiles) {
        // A database is opened only once.
        let _ = self.files.set(files);
    }

    pub(super) fn files(&self) -> Option<&DatabaseFiles> {
        self.files.get()
    }

    /// Checks that the database is still where it was.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.files().map_or(Ok(()), DatabaseFiles::check)
    }

    /// Notes that SQLite found the database damaged: what is written now may be lost.
    pub(super) fn record_damage(&self) {
        if let Some(files) = self.files() {
            files.record_damage();
        }
    }

    /// Begins a write transaction.
    pub(super) async fn write(&self) -> Result<WriteTransaction, StoreError> {
        self.check()?;
        // `IMMEDIATE` is specific to SQLite. It takes the lock now: a transaction that reads first
        // and writes later would fail if another process wrote in between.
        let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(WriteTransaction { transaction, files: Arc::clone(&self.files) })
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

/// A transaction. Its writes count once [`WriteTransaction::commit`] returns, and are discarded if
/// it is never called.
pub(super) struct WriteTransaction {
    transaction: Transaction<'static, Any>,
    files: Arc<OnceLock<DatabaseFiles>>,
}

impl WriteTransaction {
    /// Runs a statement and returns the number of rows that it changed.
    pub(super) async fn execute(
        &mut self,
        statement: Query<'_, Any, AnyArguments>,
    ) -> Result<u64, StoreError> {
        Ok(statement.execute(&mut *self.transaction).await?.rows_affected())
    }

    /// Runs a statement to its end and returns its first row.
    pub(super) async fn first<Row>(
        &mut self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Option<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        // Fetch all rows: if only the first one is fetched, an error after it is dropped.
        Ok(self.all(statement).await?.into_iter().next())
    }

    /// Runs a statement and returns all of its rows.
    pub(super) async fn all<Row>(
        &mut self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Vec<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        Ok(statement.fetch_all(&mut *self.transaction).await?)
    }

    /// Runs a statement that returns one row.
    pub(super) async fn one<Row>(
        &mut self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Row, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        Ok(self.first(statement).await?.ok_or(sqlx::Error::RowNotFound)?)
    }

    /// Commits what was written.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await?;
        // A write to a file that was deleted in the meantime is lost.
        self.files.get().map_or(Ok(()), DatabaseFiles::check)
    }
}

fn pool(connections: u32) -> AnyPoolOptions {
    // Never close a connection for its age: when the last one closes, SQLite removes the `-wal`.
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// Allocates disk space for the index of the `-wal`, which SQLite maps into memory: on a full disk,
/// a write to a hole in that file would end the process (SIGBUS). SQLite fills it in steps of 4 KiB
/// with one byte each, which leaves holes if blocks are smaller.
fn preallocate_index(database: &Path) -> io::Result<Option<File>> {
    let path = with_suffix(database, "-shm");
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match fallocate(&file, FallocateFlags::empty(), 0, SHARED_BYTES) {
        // The file system does not support this.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(Some(file)),
        Err(error) => Err(error.into()),
    }
}

/// Opens one connection, to see at once why that fails: a pool retries for a long time and does not
/// report the reason.
pub(super) async fn probe(
    path: &Path,
    url: &str,
) -> Result<(AnyConnection, Option<File>), StoreError> {
    // With this, a write beyond the file size limit (RLIMIT_FSIZE) fails instead of ending the
    // process.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map_err(sqlx::Error::Io)?);
    let mut first = AnyConnection::connect(url).await?;
    // Check this before anything is written to the database.
    if matches!(count_tables(&mut first).await?, (1.., 0)) {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    configure(&mut first).await?;
    // From here on, the files next to it exist.
    count_tables(&mut first).await?;
    let shared = preallocate_index(path)
        .map_err(|source| StoreError::Open { path: with_suffix(path, "-shm"), source })?;
    Ok((first, shared))
}

/// The number of tables and other schema objects, and how many of them are the table of schema
/// steps.
pub(super) async fn count_tables(
    executor: impl Executor<'_, Database = Any>,
) -> Result<(i64, i64), sqlx::Error> {
    let count = "SELECT COUNT(*), COALESCE(SUM(CASE WHEN name = '_sqlx_migrations' THEN 1 ELSE 0 END), 0) FROM sqlite_master";
    sqlx::query_as(count).fetch_one(executor).await
}

/// Sets up a new connection.
async fn configure(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    for pragma in PRAGMAS {
        connection.execute(pragma).await?;
    }
    Ok(())
}

/// Whether a returned connection has no open transaction; if it has one, it is closed.
///
/// When the disk is full, SQLite rolls back by itself. The driver's own ROLLBACK then fails, and
/// the driver still counts a transaction that does not exist. Its next one would be a savepoint
/// within no transaction, or within one that is never committed: acknowledged, but lost when the
/// process ends.
async fn has_no_transaction(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    // The connection's own thread rolls back what was dropped, in order, so the reply to this ping
    // comes afterwards.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Space for the index of 32,000 pages. SQLite empties its `-wal` from 1,000 pages on.
const SHARED_BYTES: u64 = 256 << 10;

/// The number of connections for reading.
const READERS: u32 = 3;

/// How long a call waits for a connection before it fails.
pub(super) const ACQUIRE: Duration = Duration::from_secs(10);

/// `synchronous = FULL`: acknowledged writes survive a power loss.
const PRAGMAS: [&str; 4] = [
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
];
