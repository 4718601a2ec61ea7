//! Opens a PostgreSQL database, which several replicas share.
//!
//! Everything here also works through a pooler that gives each transaction another connection
//! (PgBouncer in transaction mode): nothing is kept in a connection between two transactions, and
//! locks end with theirs.

use std::io;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyConnection, Connection, Executor, Row, Transaction};

use super::connections::{Connections, Engine, Statements};
use super::database::Postgres;
use super::{ALL_STEPS, StoreError, copy, migrate};

/// Opens a database and brings its schema up to date. Of several processes that start at once, one
/// does that while the others wait.
pub(super) async fn open(database: &Postgres) -> Result<Connections, StoreError> {
    let shown = database.to_string();
    let mut first = probe(database).await?;
    let mut transaction = begin_alone(&mut first, database).await?;
    let (tables, steps) = count_tables(&mut *transaction).await?;
    if tables > 0 && steps == 0 {
        return Err(StoreError::Foreign { database: shown });
    }
    if tables == 0 {
        tracing::warn!(
            database = shown,
            "the database is empty: creating the tables; if there were accounts, [store] database names another database"
        );
    }
    migrate(&mut transaction, &shown, ALL_STEPS).await?;
    end_alone(transaction, database).await?;
    first.close().await?;
    connect(database)
}

/// If the database has no tables, marks it as an incomplete copy of the database `id`, and returns
/// true.
pub(super) async fn begin_copy(database: &Postgres, id: &str) -> Result<bool, StoreError> {
    let mut first = probe(database).await?;
    let mut transaction = begin_alone(&mut first, database).await?;
    let (tables, _) = count_tables(&mut *transaction).await?;
    if tables == 0 {
        copy::mark(&mut transaction, database, id).await?;
    }
    end_alone(transaction, database).await?;
    first.close().await?;
    Ok(tables == 0)
}

/// Begins a transaction that may change the schema, as no other process does meanwhile.
async fn begin_alone<'connection>(
    connection: &'connection mut AnyConnection,
    database: &Postgres,
) -> Result<Transaction<'connection, Any>, StoreError> {
    let mut transaction = connection.begin().await?;
    transaction.execute(WAIT_FOR_MIGRATION).await.map_err(|error| {
        match code(&error).as_deref() {
            Some(LOCK_NOT_AVAILABLE) => StoreError::Migrating { database: database.to_string() },
            _ => error.into(),
        }
    })?;
    if !database.caches_statements() {
        // Behind a pooler, another process may have used the same names on this connection.
        transaction.execute("DEALLOCATE ALL").await?;
    }
    Ok(transaction)
}

async fn end_alone(
    mut transaction: Transaction<'_, Any>,
    database: &Postgres,
) -> Result<(), StoreError> {
    if !database.caches_statements() {
        transaction.execute("DEALLOCATE ALL").await?;
    }
    Ok(transaction.commit().await?)
}

/// Opens an existing database to read it. `None`: it has no tables.
pub(super) async fn open_read_only(database: &Postgres) -> Result<Option<Connections>, StoreError> {
    let shown = database.to_string();
    let mut first = probe(database).await?;
    let found = count_tables(&mut first).await?;
    first.close().await?;
    match found {
        (0, _) => Ok(None),
        (_, 0) => Err(StoreError::Foreign { database: shown }),
        _ => Ok(Some(connect(database)?)),
    }
}

/// Opens one connection, to see at once why that fails: a pool retries for a long time and does not
/// report the reason.
///
/// # Errors
/// The server cannot be reached, or is a standby.
pub(super) async fn probe(database: &Postgres) -> Result<AnyConnection, StoreError> {
    let late = |_| sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
    let connecting = AnyConnection::connect(database.url());
    let asking = async {
        let mut connection = connecting.await?;
        let row = connection.fetch_one("SELECT CAST(pg_is_in_recovery() AS INTEGER)").await?;
        Ok((connection, row.try_get::<i32, _>(0)? == 1))
    };
    let asked = tokio::time::timeout(PROBE_TIMEOUT, asking).await.map_err(late).flatten();
    match asked {
        Ok((connection, false)) => Ok(connection),
        Ok((_, true)) => Err(StoreError::Standby { database: database.to_string() }),
        Err(source) => Err(StoreError::Unreachable {
            database: database.to_string(),
            source: Box::new(source),
        }),
    }
}

fn connect(database: &Postgres) -> Result<Connections, StoreError> {
    let url = database.url();
    let is_pooled = !database.caches_statements();
    let reading = |count| {
        pool(count)
            .after_release(|connection, _| Box::pin(is_primary(connection)))
            .connect_lazy(url)
    };
    let writing = |count| {
        pool(count).after_release(|connection, _| Box::pin(can_write(connection))).connect_lazy(url)
    };
    Ok(Connections {
        statements: Statements::new(Engine {
            begin: BEGIN,
            order: Some(ORDER),
            begin_reading: BEGIN_READING,
            is_pooled,
            reads_begin: true,
            patience: Some(PATIENCE),
            release: Some(RELEASE_TIMEOUT),
        }),
        writer: writing(1)?,
        readers: reading(READERS)?,
        follower: reading(1)?,
        apart: writing(APART)?,
        files: None,
    })
}

fn pool(connections: u32) -> AnyPoolOptions {
    let pool = AnyPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE);
    pool.after_connect(|connection, _| {
        Box::pin(async { connection.execute(NO_STANDBY).await.map(drop) })
    })
}

/// Returns true if a connection can be used again: its server answers, is not a standby, and has no
/// open transaction. sqlx does not notice one that was cancelled while it began.
async fn is_primary(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    let question =
        "SELECT CASE WHEN pg_is_in_recovery() OR now() <> statement_timestamp() THEN 0 ELSE 1 END";
    says_yes(connection, question).await
}

/// The same, and whether the connection could write. It keeps the default of the time when it was
/// opened, which an operator may have changed for a while.
async fn can_write(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    let question = "SELECT CASE WHEN pg_is_in_recovery() OR now() <> statement_timestamp() \
        OR current_setting('default_transaction_read_only') = 'on' THEN 0 ELSE 1 END";
    says_yes(connection, question).await
}

async fn says_yes(
    connection: &mut AnyConnection,
    question: &'static str,
) -> Result<bool, sqlx::Error> {
    Ok(connection.fetch_one(question).await?.try_get::<i32, _>(0)? == 1)
}

/// The number of tables in the schema, and how many of them are the table of schema steps.
async fn count_tables(
    executor: impl Executor<'_, Database = Any>,
) -> Result<(i64, i64), sqlx::Error> {
    let count = "SELECT COUNT(*), COALESCE(SUM(CASE WHEN tablename = '_sqlx_migrations' THEN 1 ELSE 0 END), 0) \
        FROM pg_tables WHERE schemaname = current_schema()";
    sqlx::query_as(count).persistent(false).fetch_one(executor).await
}

/// The SQLSTATE of an error of PostgreSQL.
pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    let is_postgres = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some();
    is_postgres.then(|| error.code().map(std::borrow::Cow::into_owned)).flatten()
}

/// Whether only a new connection can tell what is behind an error: the server may be a standby.
pub(super) fn leaves_open_why(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut) || code(error).as_deref() == Some(IN_RECOVERY)
}

/// What to do about an error, by its SQLSTATE (PostgreSQL's documentation, appendix A).
pub(super) fn advice(code: &str) -> &'static str {
    match code {
        "25006" => {
            "; the server only reads: let `[store] database` name the primary, or see why `default_transaction_read_only` is on"
        }
        "28000" | "28P01" => "; check user and password in the URL of `[store] database`",
        "3D000" => "; create the database that the URL of `[store] database` names",
        "42501" => "; let the user of `[store] database` own its tables, or create them",
        "53100" => "; the disk of the database server is full: free some space",
        "53300" => {
            "; raise `max_connections` of PostgreSQL, or put a pooler in front: each gateway uses up to 9 connections"
        }
        LOCK_NOT_AVAILABLE | "57014" => {
            "; another gateway or command has been writing for too long: see `pg_stat_activity`"
        }
        "26000" | "42P05" | "08P01" => {
            "; behind a pooler in transaction mode, set `statement_cache = false` in [store]"
        }
        _ => "",
    }
}

/// Serializes writers over all processes, until the transaction ends; PostgreSQL makes a commit
/// visible before it releases the lock. A writer that was stopped must not stop the others, so
/// PostgreSQL ends it after a while. Under a stricter isolation level, it would read what was
/// committed before it waited for the lock.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '4s'; SET LOCAL statement_timeout = '8s'; \
    SET LOCAL idle_in_transaction_session_timeout = '4s'";

/// What is acknowledged must survive a crash, even if the server's default is otherwise. Fails on a
/// standby: some transactions find that there is nothing to write.
const ORDER: &str = "SELECT pg_advisory_xact_lock(1886352500, 1), \
    CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) ELSE '' END, \
    CASE WHEN pg_is_in_recovery() THEN set_config('transaction_read_only', 'off', true) ELSE '' END";

/// Without the notice that the table of schema steps exists, which would be logged at every start.
const WAIT_FOR_MIGRATION: &str = "SET LOCAL client_min_messages = 'warning'; SET LOCAL lock_timeout = '60s'; SELECT pg_advisory_xact_lock(1886352500, 2)";

/// Fails on a standby, which may be far behind.
const NO_STANDBY: &str = "BEGIN READ WRITE; COMMIT";

/// Likewise. A pooler may give each transaction a connection to another server.
const BEGIN_READING: &str = "BEGIN READ WRITE; SET TRANSACTION READ ONLY";

/// The SQLSTATE of [`BEGIN_READING`] on a standby, among others.
const IN_RECOVERY: &str = "0A000";

/// The SQLSTATE of a lock that could not be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The number of connections for reading.
const READERS: u32 = 3;

/// The number of connections for rows without an order among writers.
const APART: u32 = 4;

/// How long a call waits for a connection before it fails.
const ACQUIRE: Duration = Duration::from_secs(4);

/// How long a call waits for an answer before it fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection that returns to its pool may take to answer.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the first connection may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    dead_code,
    unreachable_pub,
    reason = "the black-box tests use more of it"
)]
#[path = "../../tests/blackbox/harness/postgres.rs"]
mod server;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    dead_code,
    unreachable_pub,
    reason = "the black-box tests use more of it"
)]
#[path = "../../tests/blackbox/harness/link.rs"]
mod link;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::process::Command;
    use std::task::Poll;

    use super::link::{Fate, Link};
    use super::server::PostgresServer;
    use crate::store::accounts::tests::account;
    use crate::store::testing::{SERVER, postgres};
    use crate::store::{Database, Postgres, Store, StoreError, StoreSettings, test_settings};

    /// An operator lets a database only read for a while, for example before a switchover.
    #[tokio::test]
    async fn a_connection_that_could_only_read_is_replaced() {
        let Some(server) = PostgresServer::start() else { return };
        let folder = tempfile::tempdir().unwrap();
        let database = postgres(&server.url(), folder.path());
        let run = |sql: &str| {
            let mut psql = Command::new("psql");
            psql.args([database.url(), "-qc", sql])
                .env("PGOPTIONS", "-c default_transaction_read_only=off");
            assert!(psql.status().unwrap().success(), "{sql}");
        };
        let set = |value: &str| {
            run(&format!(
                "DO 'BEGIN EXECUTE format(''ALTER DATABASE %I SET default_transaction_read_only = {value}'', current_database()); END'"
            ));
        };
        let settings = StoreSettings {
            database: Database::Postgres(database.clone()),
            ..test_settings(folder.path())
        };
        let store = Store::open(&settings).await.unwrap();
        set("on");
        run(
            "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()",
        );
        // The connections that were ended are noticed first.
        let mut told = String::new();
        while !told.contains("only reads") {
            told =
                store.insert_account(&account("a", "a@x.example")).await.unwrap_err().to_string();
        }
        set("off");
        assert!(store.insert_account(&account("a", "a@x.example")).await.unwrap());
    }

    /// The server vanishes between the last two questions on a connection.
    #[tokio::test]
    async fn a_connection_without_an_answer_as_it_returns_is_replaced() {
        let Some(server) = PostgresServer::start() else { return };
        let folder = tempfile::tempdir().unwrap();
        server.create_database("app");
        let link = Link::to(server.port());
        let url = format!("postgres://portcullis@127.0.0.1:{}/app", link.port());
        let settings = StoreSettings {
            database: Database::Postgres(Postgres::parse(&url, true, false).unwrap()),
            ..test_settings(folder.path())
        };
        let store = Store::open(&settings).await.unwrap();
        let write = async |number: u32| {
            let id = number.to_string();
            store.insert_account(&account(&id, &id)).await
        };
        let follow = async |_| store.news_after(0).await.map(|_| true);
        // The next write, or the next look at the revocations, waits for this connection.
        lose(&link, "default_transaction_read_only", write).await;
        lose(&link, "<> statement_timestamp", follow).await;
        store.close().await;
    }

    /// Loses a connection at what follows this question, and goes on.
    async fn lose(
        link: &Link,
        question: &str,
        work: impl AsyncFn(u32) -> Result<bool, StoreError>,
    ) {
        link.strike(question, Fate::NextUnanswered);
        let mut failures = 0;
        for number in 0.. {
            let is_lost = link.struck() > 0;
            if is_lost {
                link.mend();
            }
            match work(number).await {
                Ok(_) if is_lost => return,
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => {
                    failures += 1;
                    assert!(failures < 3, "{error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_read_that_is_cancelled_while_it_begins_spoils_no_other() {
        let Some(server) = PostgresServer::start() else { return };
        let folder = tempfile::tempdir().unwrap();
        let settings = StoreSettings {
            database: Database::Postgres(postgres(&server.url(), folder.path())),
            ..test_settings(folder.path())
        };
        let store = Store::open(&settings).await.unwrap();
        // Somewhere in between, it waits for the answer to BEGIN.
        for polls in 1..60 {
            store.last_revocation().await.unwrap();
            let mut reading = Box::pin(store.last_revocation());
            for _ in 0..polls {
                if poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_ready())).await {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// The tests of everything that uses the store run once more, on PostgreSQL.
    #[test]
    fn the_tests_of_the_store_pass_on_postgresql() {
        let Some(server) = PostgresServer::start() else { return };
        let mut tests = Command::new(std::env::current_exe().unwrap());
        tests.env(SERVER, server.url());
        tests.args(["store::", "revocation::", "identity::issue", "identity::session"]);
        tests.args(["identity::personal_tokens", "--test-threads=4"]);
        // What only a file has.
        for only_file in ["sqlite", "files", "wal", "presence", "first_start", "postgres"] {
            tests.args(["--skip", &format!("store::{only_file}::")]);
        }
        let done = tests.output().unwrap();
        let output = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{output}{}", String::from_utf8_lossy(&done.stderr));
        assert!(output.contains("store::accounts::") && output.contains("revocation::tests::"));
    }
}
