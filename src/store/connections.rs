//! The connections to the database: one that writes, a few that read, one that follows the
//! revocations, and with PostgreSQL some for rows that have no order.
//!
//! [`WriteTransaction`] is the only way to write: a transaction whose commit is checked. Writers run
//! one after the other, over all processes that share the database: SQLite allows one at a time, and
//! with PostgreSQL each takes a lock first. So commits are in the order of the numbers that they
//! give, and what a transaction has read stays true until it ends.
//!
//! SQLite commits outside a transaction when a statement is reset, and the driver drops an error of
//! `sqlite3_reset`: on a full disk, `INSERT … RETURNING` would return its row although nothing was
//! written. PostgreSQL answers a commit after a failed statement with a rollback that is no error.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{Any, AnyPool, AssertSqlSafe, Executor, FromRow};

use super::files::{DatabaseFiles, OpenFiles};
use super::identity::DatabaseIdentity;
use super::pooled::PooledTransaction;
use super::reads::Reads;
use super::{StoreError, sqlite};

/// Clones share the connections.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) statements: Statements,
    pub(super) writer: AnyPool,
    pub(super) readers: AnyPool,
    pub(super) follower: AnyPool,
    /// For statements that need no order among writers. With SQLite, nothing uses it.
    pub(super) apart: AnyPool,
    /// The files of an SQLite database.
    pub(super) files: Option<Arc<OpenFiles>>,
}

/// How the kinds of databases differ for a statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engine {
    /// Begins a transaction that writes.
    pub(super) begin: &'static str,
    /// Waits until no other transaction writes.
    pub(super) order: Option<&'static str>,
    /// Begins a transaction that reads.
    pub(super) begin_reading: &'static str,
    /// Whether a statement that reads alone needs one too.
    pub(super) reads_begin: bool,
    /// A pooler may give each transaction another connection: no statement may be prepared in one
    /// transaction and run in another.
    pub(super) is_pooled: bool,
    /// The longest time to wait for an answer. `None`: the database limits it itself.
    pub(super) patience: Option<Duration>,
    /// The longest time that a connection may take to return to its pool. `None`: nothing bounds it.
    pub(super) release: Option<Duration>,
}

/// Runs statements, and notes what their errors say about the database.
#[derive(Clone, Debug)]
pub(super) struct Statements {
    pub(super) engine: Engine,
    /// Whose read is next.
    pub(super) reads: Reads,
    /// Set once the database is open.
    identity: Arc<OnceLock<DatabaseIdentity>>,
}

impl Statements {
    /// Runs statements on a database that is not open yet.
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, reads: Reads::new(), identity: Arc::default() }
    }

    /// Waits for an answer, but not forever: a server that was stopped never gives one. If a statement
    /// finds damage, nothing more is written to the database.
    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let done = match self.engine.patience {
            None => work.await,
            Some(patience) => {
                let late = |_| {
                    let text = format!("no answer within {} seconds", patience.as_secs());
                    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, text))
                };
                tokio::time::timeout(patience, work).await.map_err(late).flatten()
            }
        };
        let done = done.map_err(StoreError::from);
        if let (Err(error), Some(identity)) = (&done, self.identity.get())
            && error.is_damage()
        {
            identity.record_damage();
        }
        done
    }

    async fn begin(
        &self,
        pool: &AnyPool,
        begin: &'static str,
    ) -> Result<PooledTransaction, sqlx::Error> {
        PooledTransaction::begin(pool, begin, self.engine.release).await
    }

    async fn fetch<Row>(
        &self,
        pool: &AnyPool,
        begin: &'static str,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Vec<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        let fetching = async {
            if !self.engine.reads_begin {
                return statement.fetch_all(pool).await;
            }
            let mut transaction = self.begin(pool, begin).await?;
            let statement = statement.persistent(!self.engine.is_pooled);
            let rows = statement.fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(rows)
        };
        self.bounded(fetching).await
    }
}

impl Connections {
    /// Reads all rows of a statement.
    pub(super) async fn all<Row>(
        &self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Vec<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        let begin = self.statements.engine.begin_reading;
        let reading = self.statements.fetch(&self.readers, begin, statement);
        self.statements.reads.take_turns(&self.readers, reading).await
    }

    /// Reads all rows of a statement as they are.
    pub(super) async fn rows(
        &self,
        statement: Query<'_, Any, AnyArguments>,
    ) -> Result<Vec<AnyRow>, StoreError> {
        let engine = self.statements.engine;
        let reading = async {
            let mut transaction =
                self.statements.begin(&self.readers, engine.begin_reading).await?;
            let statement = statement.persistent(!engine.is_pooled);
            let rows = statement.fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(rows)
        };
        let reading = self.statements.bounded(reading);
        self.statements.reads.take_turns(&self.readers, reading).await
    }

    /// Reads the first row of a statement that returns few.
    pub(super) async fn first<Row>(
        &self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Option<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        Ok(self.all(statement).await?.into_iter().next())
    }

    /// Reads the row of a statement that returns one.
    pub(super) async fn one<Row>(
        &self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Row, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        Ok(self.first(statement).await?.ok_or(sqlx::Error::RowNotFound)?)
    }

    /// Runs one statement of PostgreSQL that writes, without waiting for other writers.
    pub(super) async fn apart<Row>(
        &self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Vec<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        self.statements.fetch(&self.apart, "BEGIN", statement).await
    }

    /// Begins to read on the connection that follows the table of revocations. Nothing else can
    /// occupy it.
    pub(super) async fn follow(&self) -> Result<ReadTransaction, StoreError> {
        let statements = self.statements.clone();
        let beginning = statements.begin(&self.follower, statements.engine.begin_reading);
        let transaction = statements.bounded(beginning).await?;
        Ok(ReadTransaction { transaction, statements })
    }

    /// From now on, a write is acknowledged only if it went to this database.
    pub(super) fn bind_to(&self, identity: DatabaseIdentity) {
        // A database is opened only once.
        let _ = self.statements.identity.set(identity);
    }

    pub(super) fn identity(&self) -> Option<&DatabaseIdentity> {
        self.statements.identity.get()
    }

    /// Checks that the database is still the one that was opened.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.identity().map_or(Ok(()), DatabaseIdentity::check)
    }

    /// Looks again at a database that was found damaged.
    pub(super) async fn look_again(&self) -> Result<(), StoreError> {
        match self.identity().and_then(DatabaseIdentity::files) {
            Some(files) => files.look_again(|| sqlite::renew(self)).await,
            None => Ok(()),
        }
    }

    /// Writes with one statement, and returns the number of rows that it changed.
    pub(super) async fn write_one(
        &self,
        statement: Query<'_, Any, AnyArguments>,
    ) -> Result<u64, StoreError> {
        let mut writing = self.write().await?;
        let changed = writing.execute(statement).await?;
        writing.commit().await?;
        Ok(changed)
    }

    /// Begins a write transaction.
    pub(super) async fn write(&self) -> Result<WriteTransaction, StoreError> {
        self.check()?;
        let statements = self.statements.clone();
        let engine = statements.engine;
        let transaction = statements.bounded(statements.begin(&self.writer, engine.begin)).await?;
        let mut writing =
            WriteTransaction { transaction, statements, has_failed: false, number: None };
        if let Some(order) = engine.order {
            self.statements.bounded(writing.transaction.execute(order)).await?;
        }
        if let Some(files) = self.identity().and_then(DatabaseIdentity::files) {
            writing.number(files).await?;
        }
        Ok(writing)
    }

    #[cfg(test)]
    pub(super) fn writer(&self) -> &AnyPool {
        &self.writer
    }

    pub(super) async fn close(&self) {
        let files = self.identity().and_then(DatabaseIdentity::files);
        if files.is_some_and(|files| !files.may_be_closed()) {
            // With its last connection, SQLite would copy the `-wal` into what has taken the place of
            // the database. So they stay open until the process ends, as if it were killed, and the
            // next start refuses both files.
            std::mem::forget(self.clone());
            return;
        }
        let closing = async {
            self.readers.close().await;
            self.follower.close().await;
            self.apart.close().await;
            self.writer.close().await;
            Ok(())
        };
        // A server that does not answer does not keep the process from ending.
        let _ = self.statements.bounded(closing).await;
    }
}

/// A transaction that reads.
pub(super) struct ReadTransaction {
    transaction: PooledTransaction,
    statements: Statements,
}

impl ReadTransaction {
    /// Reads all rows of a statement.
    pub(super) async fn all<Row>(
        &mut self,
        statement: QueryAs<'_, Any, Row, AnyArguments>,
    ) -> Result<Vec<Row>, StoreError>
    where
        Row: Send + Unpin + for<'row> FromRow<'row, AnyRow>,
    {
        let statement = statement.persistent(!self.statements.engine.is_pooled);
        self.statements.bounded(statement.fetch_all(&mut *self.transaction)).await
    }

    /// Ends it.
    pub(super) async fn end(self) -> Result<(), StoreError> {
        self.statements.bounded(self.transaction.commit()).await
    }
}

/// A transaction that writes. Its writes count once [`WriteTransaction::commit`] returns, and are
/// discarded if it is never called.
pub(super) struct WriteTransaction {
    transaction: PooledTransaction,
    statements: Statements,
    has_failed: bool,
    /// In an SQLite database.
    number: Option<i32>,
}

impl WriteTransaction {
    /// Gives it the next number, in the header of the database.
    async fn number(&mut self, files: &DatabaseFiles) -> Result<(), StoreError> {
        let (last,): (i32,) = self.one(sqlx::query_as("PRAGMA user_version")).await?;
        files.compare_written(last);
        files.check()?;
        // A pragma takes no parameters.
        let next = last.wrapping_add(1);
        let text = AssertSqlSafe(format!("PRAGMA user_version = {next}"));
        self.statements.bounded(self.transaction.execute(text)).await?;
        self.number = Some(next);
        Ok(())
    }

    /// Runs a statement and returns the number of rows that it changed.
    pub(super) async fn execute(
        &mut self,
        statement: Query<'_, Any, AnyArguments>,
    ) -> Result<u64, StoreError> {
        let statement = statement.persistent(!self.statements.engine.is_pooled);
        let done = self.statements.bounded(statement.execute(&mut *self.transaction)).await;
        self.has_failed |= done.is_err();
        Ok(done?.rows_affected())
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
        let statement = statement.persistent(!self.statements.engine.is_pooled);
        let done = self.statements.bounded(statement.fetch_all(&mut *self.transaction)).await;
        self.has_failed |= done.is_err();
        done
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
    ///
    /// # Errors
    /// A statement has failed, so nothing is written; or it is unknown whether everything is.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        if self.has_failed {
            // PostgreSQL would roll back and report success.
            return Err(sqlx::Error::Protocol("a statement failed earlier".into()).into());
        }
        let identity = self.statements.identity.get();
        if let Some(identity) = identity {
            // With some commits, SQLite copies the `-wal` into the database.
            identity.check()?;
        }
        self.statements.bounded(self.transaction.commit()).await?;
        let Some(identity) = identity else { return Ok(()) };
        // A write to a file that was deleted in the meantime is lost.
        identity.check()?;
        if let (Some(files), Some(number)) = (identity.files(), self.number) {
            files.note_written(number);
        }
        Ok(())
    }
}
