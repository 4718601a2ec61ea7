//! The state that must outlive the process: one database, opened once, migrated at start.
//!
//! One SQL text for SQLite and PostgreSQL: `TEXT`, `BIGINT` (Unix seconds) and `SMALLINT` (0, 1)
//! columns, `$1` placeholders, no vendor functions. The methods for each table are in a file of
//! their own, as `impl Store`; methods that need the time take `now`. All writes go through a
//! `WriteTransaction`; its commit is checked before anything is acknowledged. Secrets are sealed
//! with `[store] key` before they are written ([`Sealer`]): a leaked backup of the database cannot
//! be used to forge anything.
//!
//! The store lives as long as the process, and its tasks run on the background runtime: the request
//! pipeline never waits for it, except for a login and for a personal access token that is not
//! remembered.

mod accounts;
mod addresses;
mod ahead;
mod command_events;
mod connections;
mod copy;
mod counters;
mod database;
mod error;
mod files;
mod first_start;
mod identity;
mod logout_tokens;
mod mail;
mod personal_tokens;
mod pooled;
mod postgres;
mod presence;
mod providers;
mod reads;
mod replicas;
mod revocations;
mod seal;
mod second_factors;
mod sessions;
mod signing_keys;
mod sqlite;
mod status;
#[cfg(test)]
mod testing;
mod wal;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sqlx::any::AnyArguments;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection};
use uuid::Uuid;

pub use self::accounts::{AccountChange, AccountOrder, AccountRow};
pub use self::addresses::{AddressTaken, Gone, Moved, Unconfirmed};
use self::ahead::Ahead;
pub use self::ahead::LOWERED;
pub use self::command_events::CommandEvent;
use self::connections::Connections;
pub use self::copy::{CopyError, copy};
pub use self::counters::SharedCounters;
pub use self::database::{Database, Postgres, UrlError};
pub use self::error::StoreError;
use self::error::format_time;
use self::files::{DatabaseFiles, OpenFiles, is_before};
pub use self::first_start::FirstStart;
use self::identity::{DatabaseIdentity, ServerIdentity};
pub use self::logout_tokens::{LogoutTokenRow, NamedThere};
pub use self::mail::{LinkRow, MOST_BUSY, MailRow, NewMail};
pub use self::personal_tokens::{AddedToken, PersonalTokenRow};
pub use self::presence::{Feed, GATEWAY_TIMEOUT, Presence};
pub use self::providers::{ProviderSessionRow, RecheckDue, SessionAtProvider};
pub use self::reads::for_client;
pub use self::revocations::{BEAT, LOGINS_ENDED, News, OlderThan, REVOCATIONS_PAGE, RevocationRow};
pub use self::seal::{SealError, Sealer};
pub use self::second_factors::SecondFactor;
pub use self::sessions::{Issued, LoginProof, MAX_AHEAD, NotRotated, SessionRow, StaleBefore};
pub use self::signing_keys::SigningKeyRow;
pub use self::status::StoreStatus;
#[cfg(test)]
pub(crate) use self::testing::test_settings;
use crate::config::value::SecretBytes;
use crate::limit::LiveGateways;

/// A checked `[store]` section. Read at start.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Which database it is.
    pub database: Database,
    /// The key that seals the secrets in it.
    pub key: SecretBytes,
    /// The file of the key, if it was made when the configuration was read.
    pub made_key: Option<PathBuf>,
    /// The first start, if that has not created the database yet.
    pub first_start: Option<FirstStart>,
    /// How often a gateway reads what other processes revoked: between 10 ms and 1 s.
    pub poll: Duration,
}

impl StoreSettings {
    /// Removes a key that was just made, if the database has another one: a backup might keep it, or
    /// the next start take it for the right one.
    fn discard_made_key(&self, error: &StoreError) {
        let Some(file) = &self.made_key else { return };
        // Somebody may have put the right one there in the meantime.
        let is_ours = || {
            std::fs::read(file).is_ok_and(|written| written.trim_ascii_end() == self.key.expose())
        };
        if error.is_wrong_key() && is_ours() {
            // If it stays, the message still says what to do.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The database, and the key that seals its secrets. Clones share both.
#[derive(Clone)]
pub struct Store {
    connections: Connections,
    sealer: Sealer,
    last_failure: Arc<Mutex<Option<Failure>>>,
    ahead: Ahead,
    /// The id of this gateway among the replicas, once it has one.
    replica: Arc<OnceLock<String>>,
    poll: Duration,
    /// How many replicas were live when that was last read.
    known_replicas: Arc<LiveGateways>,
    /// By how many milliseconds the clock of the replicas' database is ahead of ours.
    clock_ahead: Arc<AtomicI64>,
    /// Whether the last attempt to read from it succeeded.
    answers: Arc<AtomicBool>,
    /// When an attempt to read from it last succeeded.
    heard_at: Arc<Mutex<Instant>>,
}

/// Why the store cannot be used.
#[derive(Debug)]
struct Failure {
    cause: String,
    /// When it was last heard from before that.
    since: Instant,
}

impl Store {
    /// Opens the database, creates it if there is none (mode 0600), and brings its schema up to
    /// date.
    ///
    /// Several processes may have it open: the gateway, and a command such as `user add`.
    pub async fn open(settings: &StoreSettings) -> Result<Self, StoreError> {
        let opened = Self::create_or_open(settings).await;
        if let Some(first_start) = &settings.first_start
            && Self::database_exists(settings)
        {
            first_start.finish();
        }
        opened
    }

    async fn create_or_open(settings: &StoreSettings) -> Result<Self, StoreError> {
        install_drivers();
        let connections = match &settings.database {
            Database::File(path) => sqlite::open(path, settings.first_start.is_some()).await?,
            Database::Postgres(database) => postgres::open(database).await?,
        };
        let store = Self::new(connections, settings);
        store.check_complete(settings).await?;
        if let Err(error) = store.check_key().await {
            settings.discard_made_key(&error);
            return Err(error);
        }
        let id = store.database_id().await?;
        let identity = match (&settings.database, &store.connections.files) {
            (Database::File(path), Some(files)) => {
                store.check_newest(path, &id, files).await?;
                let files = DatabaseFiles::record(path, id, Arc::clone(files));
                let open = |source| StoreError::Open { path: path.clone(), source };
                DatabaseIdentity::Files(files.map_err(open)?)
            }
            (Database::File(_), None) => return Ok(store),
            (Database::Postgres(database), _) => {
                DatabaseIdentity::Server(ServerIdentity::new(database.clone(), id))
            }
        };
        store.connections.bind_to(identity);
        Ok(store)
    }

    /// Whether the database was made: the file exists and is not empty. The size of a folder
    /// depends on the file system and says nothing.
    fn database_exists(settings: &StoreSettings) -> bool {
        settings.database.file().is_some_and(|file| {
            std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
        })
    }

    /// Opens an existing database to read it. Creates and changes nothing. `None` if there is no
    /// database, or if nothing was ever written to it.
    pub async fn open_read_only(settings: &StoreSettings) -> Result<Option<Self>, StoreError> {
        install_drivers();
        let opened = match &settings.database {
            Database::File(path) => sqlite::open_read_only(path).await?,
            Database::Postgres(database) => postgres::open_read_only(database).await?,
        };
        let Some(connections) = opened else { return Ok(None) };
        let steps: Vec<(i64,)> = connections
            .all(sqlx::query_as("SELECT version FROM _sqlx_migrations ORDER BY version"))
            .await?;
        let database = || settings.database.to_string();
        if let Some(&(step,)) = steps.iter().find(|(step,)| !migrator().version_exists(*step)) {
            return Err(StoreError::Newer { database: database(), step });
        }
        let store = Self::new(connections, settings);
        if steps.len() < migrator().iter().count() {
            if steps.contains(&(FACTS_STEP,)) {
                // A copy may have ended before all tables were made.
                store.check_complete(settings).await?;
            }
            return Err(StoreError::Older { database: database() });
        }
        Ok(Some(store))
    }

    /// Checks that an SQLite database has every transaction that was acknowledged.
    async fn check_newest(
        &self,
        path: &Path,
        id: &str,
        files: &OpenFiles,
    ) -> Result<(), StoreError> {
        // First what was noted: another process may write in between.
        let noted = files.noted(id);
        let (written,): (i32,) =
            self.connections.one(sqlx::query_as("PRAGMA user_version")).await?;
        match noted {
            Some(noted) if is_before(written, noted) => {
                Err(StoreError::Behind { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Checks that the database does not hold a part of a copy.
    async fn check_complete(&self, settings: &StoreSettings) -> Result<(), StoreError> {
        let reading = sqlx::query_as(SELECT_FACT).bind(copy::UNFINISHED);
        let marked: Option<(String,)> = self.connections.first(reading).await?;
        match marked {
            Some(_) => Err(StoreError::UnfinishedCopy { database: settings.database.to_string() }),
            None => Ok(()),
        }
    }

    fn new(connections: Connections, settings: &StoreSettings) -> Self {
        Self {
            connections,
            sealer: Sealer::new(settings.key.expose()),
            last_failure: Arc::default(),
            ahead: Ahead::default(),
            replica: Arc::default(),
            poll: settings.poll,
            known_replicas: Arc::default(),
            clock_ahead: Arc::default(),
            answers: Arc::new(AtomicBool::new(true)),
            heard_at: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// How often a gateway reads what other processes revoked.
    pub fn poll(&self) -> Duration {
        self.poll
    }

    /// Notes whether the last attempt to read from the store succeeded.
    pub fn note_answer(&self, answers: bool) {
        self.answers.store(answers, Ordering::Relaxed);
        if answers {
            *self.heard_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// Whether the last attempt to read from the store succeeded.
    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Whether several replicas may share the database.
    pub fn is_shared(&self) -> bool {
        self.connections.statements.engine.order.is_some()
    }

    /// Writes with one statement, and returns the number of rows that it changed.
    async fn write(&self, statement: Query<'_, Any, AnyArguments>) -> Result<u64, StoreError> {
        self.connections.write_one(statement).await
    }

    /// Deletes rows in steps, so that others can write in between: a statement deletes as many rows as
    /// it is given, until it finds no more.
    async fn prune<'q>(
        &self,
        deleting: impl Fn(i64) -> Query<'q, Any, AnyArguments>,
    ) -> Result<(), StoreError> {
        loop {
            let begun = Instant::now();
            if self.write(deleting(PRUNED_AT_ONCE.cast_signed())).await? < PRUNED_AT_ONCE {
                return Ok(());
            }
            // SQLite lets writers in by chance: half of the time is theirs.
            tokio::time::sleep(begun.elapsed()).await;
        }
    }

    /// Notes an error that was reported as an unavailable store: the store is in trouble until
    /// [`Store::retry_write`] finds that it is not.
    pub fn record_failure(&self, error: &StoreError) {
        match error {
            StoreError::Database(_)
            | StoreError::Lost { .. }
            | StoreError::OtherDatabase { .. }
            | StoreError::Standby { .. }
            | StoreError::Unreachable { .. } => self.note_failure(error),
            StoreError::CutOffAhead { account, until } => self.ahead.note(account, *until),
            _ => {}
        }
    }

    fn note_failure(&self, error: &StoreError) {
        let heard_at = *self.heard_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = self.last_failure();
        // The task that polls the database reports why it cannot connect.
        let says_why = !matches!(error, StoreError::Database(sqlx::Error::PoolTimedOut));
        if last.is_some() && !says_why {
            return;
        }
        let since = last.as_ref().map_or(heard_at, |failure| failure.since);
        *last = Some(Failure { cause: error.to_string(), since });
    }

    /// Why the store cannot be written, in words for the operator: files that are not where they
    /// were, or the last error that was noted.
    pub fn problem(&self) -> Option<String> {
        match self.connections.check() {
            Err(error) => Some(error.to_string()),
            Ok(()) => self.last_failure().as_ref().map(|failure| failure.cause.clone()),
        }
    }

    /// The same, but a server that other replicas use as well may be silent for ten seconds: all of
    /// them would report a restart that is soon over.
    pub fn lasting_problem(&self) -> Option<String> {
        let is_brief = |failure: &Failure| failure.since.elapsed() < SILENCE;
        let is_brief = self.last_failure().as_ref().is_some_and(is_brief);
        if is_brief && self.is_shared() && self.connections.check().is_ok() {
            return None;
        }
        self.problem()
    }

    /// Which accounts cannot log in because the clock was ahead, in words for the operator.
    pub fn clock_problem(&self) -> Option<String> {
        self.ahead.problem()
    }

    /// Tests whether the database can be written again, if it could not be. That does not end a failure
    /// to read: only a gateway that reads knows what is revoked.
    pub async fn retry_write(&self) {
        if self.last_failure().is_none() {
            return;
        }
        // A few pages more than a login writes: on a full disk, the `-wal` may still have room for
        // one page.
        let trying = sqlx::query(WRITE_TRIAL).bind("-".repeat(TRIAL_BYTES));
        match self.write(trying).await {
            Ok(_) if !self.answers() => {}
            Ok(_) => {
                *self.last_failure() = None;
                tracing::info!("the database can be written again");
            }
            Err(error) => self.record_failure(&error),
        }
    }

    fn last_failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The random id of the database, which is created with it.
    async fn database_id(&self) -> Result<String, StoreError> {
        let mut writing = self.connections.write().await?;
        let noting = sqlx::query(INSERT_FACT).bind(STORE_ID).bind(Uuid::new_v4().to_string());
        writing.execute(noting).await?;
        let (id,): (String,) = writing.one(sqlx::query_as(SELECT_FACT).bind(STORE_ID)).await?;
        writing.commit().await?;
        Ok(id)
    }

    /// Checks that this is the key that the database was first opened with: a lost key must be
    /// reported at start, not at the first login.
    async fn check_key(&self) -> Result<(), StoreError> {
        let sealed = self.sealer.seal(KEY_CHECK, b"")?;
        self.write(sqlx::query(INSERT_FACT).bind(KEY_CHECK).bind(sealed)).await?;
        let reading = sqlx::query_as(SELECT_FACT).bind(KEY_CHECK);
        let (sealed,): (String,) = self.connections.one(reading).await?;
        self.sealer.open(KEY_CHECK, &sealed)?;
        Ok(())
    }

    /// Keeps every other task of the process from writing.
    #[cfg(test)]
    pub(crate) async fn hold_writer(&self) -> sqlx::pool::PoolConnection<Any> {
        self.connections.writer.acquire().await.unwrap()
    }

    /// Waits for pending work and closes the database.
    pub async fn close(&self) {
        self.leave().await;
        self.connections.close().await;
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// The path of the database with this suffix appended.
fn with_suffix(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn install_drivers() {
    static DRIVERS: Once = Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
}

/// How many rows a transaction deletes at most: more would keep others from writing for a long time.
const PRUNED_AT_ONCE: u64 = 1000;

/// How long a server may be silent before operators are told.
const SILENCE: Duration = Duration::from_secs(10);

/// The fact that only the right key opens.
const KEY_CHECK: &str = "key_check";

/// The fact that identifies a database.
const STORE_ID: &str = "store_id";

const WRITE_TRIAL: &str = "INSERT INTO facts (name, value) VALUES ('trial', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// How many bytes to write to see whether the database can be written again.
const TRIAL_BYTES: usize = 64 << 10;

const INSERT_FACT: &str =
    "INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";

const SELECT_FACT: &str = "SELECT value FROM facts WHERE name = $1";

/// The schema step that makes the table of facts.
const FACTS_STEP: i64 = 1;

/// As the last schema step: all of them.
const ALL_STEPS: i64 = i64::MAX;

/// The schema steps. Whoever runs them holds a lock already.
fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("src/store/migrations");
    migrator.set_locking(false);
    migrator
}

/// Brings the schema up to date, as far as this step.
async fn migrate(
    connection: &mut AnyConnection,
    database: &impl Display,
    last: i64,
) -> Result<(), StoreError> {
    migrator().run_to(last, connection).await.map_err(|error| match error {
        MigrateError::VersionMissing(step) => {
            StoreError::Newer { database: database.to_string(), step }
        }
        error => StoreError::Migrate(error),
    })
}

#[cfg(test)]
mod tests {
    use sqlx::Executor;

    use super::accounts::tests::{account, session};
    use super::*;

    #[tokio::test]
    async fn another_key_is_refused_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        Store::open(&settings).await.unwrap().close().await;
        let other = StoreSettings {
            key: SecretBytes::new(b"another key, that belongs to another database".to_vec()),
            ..settings.clone()
        };
        let error = Store::open(&other).await.unwrap_err();
        assert!(error.to_string().contains("`[store] key`"), "{error}");
        Store::open(&settings).await.unwrap().close().await;
    }

    /// A write that succeeds says nothing about whether revocations can be read.
    #[tokio::test]
    async fn a_failure_to_read_lasts_until_a_read_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        store.note_answer(false);
        store.record_failure(&StoreError::Database(sqlx::Error::PoolTimedOut));
        store.retry_write().await;
        assert!(store.problem().is_some());
        store.note_answer(true);
        store.retry_write().await;
        assert_eq!(store.problem(), None);
    }

    /// What is read while much is deleted shows that it is deleted in several transactions.
    #[tokio::test]
    async fn others_can_write_while_much_is_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        let adding = "INSERT INTO sessions (id, account, generation, counter, created_at, rotated_at, address, user_agent) \
            WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 5001) \
            SELECT 's' || CAST(number AS TEXT), 'a', 0, 0, 1, 1, '', '' FROM numbers";
        assert_eq!(store.write(sqlx::query(adding)).await.unwrap(), 5001);
        let count = async || {
            let counting = sqlx::query_as("SELECT COUNT(*) FROM sessions");
            let (count,): (i64,) = store.connections.one(counting).await.unwrap();
            count
        };
        let stale = StaleBefore { created_at: 1, ahead: i64::MAX, rotated_at: 0, used_at: 0 };
        let mut pruning = std::pin::pin!(store.prune_sessions(stale));
        let mut seen = Vec::new();
        loop {
            tokio::select! {
                done = &mut pruning => break done.unwrap(),
                left = count() => seen.push(left),
            }
        }
        assert!(seen.iter().any(|left| (1..5001).contains(left)), "{seen:?}");
        assert_eq!(count().await, 0);
    }

    /// A newer version that runs beside this one adds columns.
    #[tokio::test]
    async fn a_column_that_is_added_meanwhile_disturbs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        let key = SigningKeyRow {
            number: 1,
            kid: "k".into(),
            algorithm: "ES256".into(),
            private: zeroize::Zeroizing::new("secret".into()),
            created_at: 1,
            signs_from: 1,
        };
        store.insert_signing_key(&key).await.unwrap();
        let token = PersonalTokenRow {
            id: "t".into(),
            account: "a".into(),
            name: "laptop".into(),
            digest: "digest".into(),
            roles: None,
            created_at: 1,
            expires_at: 1000,
            last_used_at: None,
            revoked_at: None,
        };
        store.add_personal_token(&token, (None, 0), 9).await.unwrap();
        store.open_session(&session("s", 0), "=x").await.unwrap().unwrap();
        let live = StaleBefore { created_at: 0, ahead: i64::MAX, rotated_at: 0, used_at: 0 };
        // As often as a connection needs to keep the statement.
        let read = async || {
            for _ in 0..8 {
                assert!(store.account("a").await.unwrap().is_some());
                assert!(store.account_by_email("a@x.example").await.unwrap().is_some());
                for order in [AccountOrder::Id, AccountOrder::Email] {
                    assert_eq!(store.accounts_after(order, None).await.unwrap().len(), 1);
                }
                assert!(store.live_session("s").await.unwrap().is_some());
                assert!(store.account_of_session("s").await.unwrap().is_some());
                assert_eq!(store.sessions_of("a", live).await.unwrap().0.len(), 1);
                assert!(store.issue_again("s", "=x", 9).await.unwrap().is_some());
                assert!(store.issue_to_generation("a", 0, "=x", 9).await.unwrap().is_some());
                assert_eq!(store.personal_tokens_of("a").await.unwrap().len(), 1);
                assert!(store.personal_token("digest").await.unwrap().is_some());
                assert!(store.use_personal_token("t", "=x", 9).await.unwrap().is_some());
                assert_eq!(store.signing_keys().await.unwrap().len(), 1);
                assert!(store.account_of_link("link", "reset", 9).await.unwrap().is_none());
                assert!(store.account_of_person("=x", "person").await.unwrap().is_none());
            }
        };
        read().await;
        for table in ["accounts", "sessions", "personal_tokens", "signing_keys"] {
            let adding = format!("ALTER TABLE {table} ADD COLUMN added TEXT NOT NULL DEFAULT ''");
            store.write(sqlx::query(sqlx::AssertSqlSafe(adding))).await.unwrap();
        }
        read().await;
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        store
            .connections
            .writer()
            .execute("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) SELECT 9999, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1")
            .await
            .unwrap();
        store.close().await;
        let error = Store::open(&settings).await.unwrap_err();
        assert!(matches!(error, StoreError::Newer { step: 9999, .. }), "{error}");
    }
}
