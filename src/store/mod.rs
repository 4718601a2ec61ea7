//! The state that must outlive the process: one database, opened once, migrated at start.
//!
//! One SQL dialect for SQLite now and PostgreSQL later (CONTRACT §8): `TEXT`, `BIGINT` (Unix
//! seconds) and `SMALLINT` (0, 1) columns, `$1` placeholders, no vendor functions. The methods for
//! each table are in a file of their own, as `impl Store`; methods that need the time take `now`.
//! All writes go through a `WriteTransaction`, a transaction on the one connection that may write;
//! its commit is checked before anything is acknowledged. Secrets are sealed with `[store] key`
//! before they are written ([`Sealer`]): a leaked backup of the database cannot be used to forge
//! anything.
//!
//! The store lives as long as the process, and its tasks run on the background runtime: the request
//! pipeline never waits for it, except for a login and for a personal access token that is not
//! remembered.

mod accounts;
mod ahead;
mod connections;
mod files;
mod first_start;
mod logout_tokens;
mod mail;
mod personal_tokens;
mod presence;
mod revocations;
mod seal;
mod second_factors;
mod sessions;
mod signing_keys;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use rustix::io::Errno;
use sqlx::any::AnyArguments;
use sqlx::migrate::MigrateError;
use sqlx::query::Query;
use sqlx::{Any, Connection};
use tokio::time::Instant;
use uuid::Uuid;

pub use self::accounts::{AccountChange, AccountRow};
use self::ahead::Ahead;
pub use self::ahead::LOWERED;
use self::connections::{Connections, count_tables, probe};
use self::files::DatabaseFiles;
pub use self::first_start::FirstStart;
pub use self::logout_tokens::LogoutTokenRow;
pub use self::mail::{LinkRow, MailRow};
pub use self::personal_tokens::{AddedToken, PersonalTokenRow};
pub use self::presence::{Feed, GATEWAY_TIMEOUT, Presence};
pub use self::revocations::{OlderThan, REVOCATIONS_PAGE, RevocationRow};
pub use self::seal::{SealError, Sealer};
pub use self::second_factors::SecondFactor;
pub use self::sessions::{Issued, SessionRow, StaleBefore};
pub use self::signing_keys::SigningKeyRow;
use crate::config::value::SecretBytes;

/// A checked `[store]` section. Read at start.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The database file.
    pub database: PathBuf,
    /// The key that seals the secrets in it.
    pub key: SecretBytes,
    /// The first start, if that has not created the database yet.
    pub first_start: Option<FirstStart>,
}

impl StoreSettings {
    /// The folder of the database, where other files that outlive the process may be kept.
    pub fn folder(&self) -> &Path {
        self.database.parent().unwrap_or(Path::new("."))
    }
}

/// The database, and the key that seals its secrets. Clones share both.
#[derive(Clone)]
pub struct Store {
    connections: Connections,
    sealer: Sealer,
    last_failure: Arc<Mutex<Option<String>>>,
    ahead: Ahead,
}

/// Why the store cannot be used. `Display` says what to do if something can be done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be created or opened.
    #[error("the database {} cannot be opened: {source}; {}", path.display(), remedy(source))]
    Open {
        /// The database file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is of another kind.
    #[error("{} is not an SQLite database; name another file in `[store] database`, or restore a backup", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote the database.
    #[error("the database {} was made by a newer version of portcullis (its schema has step {step}, which this version does not know); start the newer version, or restore a backup", path.display())]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The first unknown schema step.
        step: i64,
    },
    /// Another process has been bringing the schema up to date for a long time.
    #[error("another process has kept {} locked for too long, as if it were updating the database's schema; find it with `fuser` and stop it", path.display())]
    Locked {
        /// The file that is locked in the meantime.
        path: PathBuf,
    },
    /// The database belongs to another program.
    #[error("the database {} has no tables of portcullis; if it belongs to another program, name another file in `[store] database`; if it was just being created, try again", path.display())]
    Foreign {
        /// The database file.
        path: PathBuf,
    },
    /// An older version wrote the database, and a command that only reads does not bring it up to
    /// date.
    #[error("the database {} was made by an older version of portcullis; start the gateway, which updates it, then try again", path.display())]
    Older {
        /// The database file.
        path: PathBuf,
    },
    /// The schema cannot be brought up to date.
    #[error("the database's schema cannot be updated: {0}")]
    Migrate(#[source] MigrateError),
    /// A statement failed.
    #[error("the database failed: {0}{advice}", advice = advice(.0))]
    Database(#[from] sqlx::Error),
    /// The file is no longer the one that was opened.
    #[error("the file {} was {how} while it was in use, so new writes would be lost; stop the gateway, restore the database, and start the gateway again", path.display())]
    Lost {
        /// The file.
        path: PathBuf,
        /// What happened to it.
        how: &'static str,
    },
    /// A gateway uses a different database from the one that a command has opened.
    #[error("a running gateway has a different file open than the one that is now at {}, or another `-wal` or `-shm` next to it, so it would not see the change; restart the gateway, and try again", path.display())]
    DifferentDatabase {
        /// The database file.
        path: PathBuf,
    },
    /// Any token issued now would be cut off.
    #[error("the account's tokens are revoked until {}, which is ahead of this machine's clock; correct the clock that is wrong, then run `portcullis user end-sessions EMAIL --now`", format_time(*until))]
    CutOffAhead {
        /// The id of the account.
        account: String,
        /// Unix seconds.
        until: i64,
    },
    /// The process is about to end.
    #[error("the gateway is shutting down")]
    Closed,
    /// Something sealed in the database cannot be opened.
    #[error("{0}")]
    Seal(#[from] SealError),
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
        let path = &settings.database;
        create_private(path).map_err(|source| StoreError::Open { path: path.clone(), source })?;
        check_kind(path)?;
        // SQLite serialises statements, not schema steps: if two processes began them at the same
        // time, one would fail. The lock is released with its handle when this function ends,
        // however it ends.
        let _alone = lock(path, LOCK_TIMEOUT).await?;
        let url = url(path);
        let (mut first, shared) = probe(path, &url).await?;
        MIGRATIONS.run(&mut first).await.map_err(|error| match error {
            MigrateError::VersionMissing(step) => StoreError::Newer { path: path.clone(), step },
            error => StoreError::Migrate(error),
        })?;
        let store = Self::new(Connections::open(&url, shared).await?, settings);
        // Only after the others were opened: with its last connection, a database loses its `-wal`.
        first.close().await?;
        store.check_key().await?;
        let files = DatabaseFiles::record(path, store.database_id().await?);
        let files = files.map_err(|source| StoreError::Open { path: path.clone(), source })?;
        store.connections.bind_to(files);
        Ok(store)
    }

    /// Whether the database was made: the file exists and is not empty. The size of a folder
    /// depends on the file system and says nothing.
    fn database_exists(settings: &StoreSettings) -> bool {
        std::fs::metadata(&settings.database)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
    }

    /// Opens an existing database to read it. Creates and changes nothing. `None` if there is no
    /// database, or if nothing was ever written to it.
    pub async fn open_read_only(settings: &StoreSettings) -> Result<Option<Self>, StoreError> {
        match std::fs::metadata(&settings.database) {
            Ok(metadata) if metadata.len() == 0 => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        check_kind(&settings.database)?;
        install_drivers();
        let connections = Connections::open_read_only(&url(&settings.database)).await?;
        if let (_, 0) = count_tables(connections.reader()).await? {
            return Err(StoreError::Foreign { path: settings.database.clone() });
        }
        let steps: Vec<(i64,)> =
            sqlx::query_as("SELECT version FROM _sqlx_migrations ORDER BY version")
                .fetch_all(connections.reader())
                .await?;
        let path = || settings.database.clone();
        if let Some(&(step,)) = steps.iter().find(|(step,)| !MIGRATIONS.version_exists(*step)) {
            return Err(StoreError::Newer { path: path(), step });
        }
        if steps.len() < MIGRATIONS.iter().count() {
            return Err(StoreError::Older { path: path() });
        }
        Ok(Some(Self::new(connections, settings)))
    }

    fn new(connections: Connections, settings: &StoreSettings) -> Self {
        Self {
            connections,
            sealer: Sealer::new(settings.key.expose()),
            last_failure: Arc::default(),
            ahead: Ahead::default(),
        }
    }

    /// Writes with one statement, and returns the number of rows that it changed.
    async fn write(&self, statement: Query<'_, Any, AnyArguments>) -> Result<u64, StoreError> {
        let mut writing = self.connections.write().await?;
        let changed = writing.execute(statement).await?;
        writing.commit().await?;
        Ok(changed)
    }

    /// Notes an error that was reported as an unavailable store: the store is in trouble until
    /// [`Store::retry_write`] finds that it is not.
    pub fn record_failure(&self, error: &StoreError) {
        match error {
            StoreError::Database(cause) => {
                if matches!(result_code(cause).map(|code| code & 0xff), Some(11 | 26)) {
                    self.connections.record_damage();
                }
                *self.last_failure() = Some(error.to_string());
            }
            StoreError::Lost { .. } => *self.last_failure() = Some(error.to_string()),
            StoreError::CutOffAhead { account, until } => self.ahead.note(account, *until),
            _ => {}
        }
    }

    /// Why the store cannot be written, in words for the operator: files that are not where they
    /// were, or the last error that was noted.
    pub fn problem(&self) -> Option<String> {
        match self.connections.check() {
            Err(error) => Some(error.to_string()),
            Ok(()) => self.last_failure().clone(),
        }
    }

    /// Which accounts cannot log in because the clock was ahead, in words for the operator.
    pub fn clock_problem(&self) -> Option<String> {
        self.ahead.problem()
    }

    /// Tests whether the database can be written again, if it could not be.
    pub async fn retry_write(&self) {
        if self.last_failure().is_none() {
            return;
        }
        // A few pages more than a login writes: on a full disk, the `-wal` may still have room for
        // one page.
        let trying = sqlx::query(WRITE_TRIAL).bind("-".repeat(TRIAL_BYTES));
        match self.write(trying).await {
            Ok(_) => {
                *self.last_failure() = None;
                tracing::info!("the database can be written again");
            }
            Err(error) => self.record_failure(&error),
        }
    }

    fn last_failure(&self) -> MutexGuard<'_, Option<String>> {
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
        let (sealed,): (String,) = reading.fetch_one(self.connections.reader()).await?;
        self.sealer.open(KEY_CHECK, &sealed)?;
        Ok(())
    }

    /// Keeps every other task of the process from writing.
    #[cfg(test)]
    pub(crate) async fn hold_writer(&self) -> sqlx::pool::PoolConnection<Any> {
        self.connections.writer().acquire().await.unwrap()
    }

    /// Waits for pending work and closes the database.
    pub async fn close(&self) {
        self.connections.close().await;
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

fn format_time(seconds: i64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(
        UNIX_EPOCH + Duration::from_secs(seconds.max(0).cast_unsigned()),
    )
}

/// The extended result code of an SQLite error.
fn result_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code)?;
    code.parse().ok()
}

/// What to do about an SQLite error, by its primary result code
/// (https://www.sqlite.org/rescode.html).
fn advice(error: &sqlx::Error) -> &'static str {
    let code = result_code(error);
    match code.map(|code| code & 0xff) {
        Some(5 | 6) => {
            "; another process has locked the file of `[store] database`: find it with `fuser` and stop it"
        }
        Some(8) => {
            "; allow the user that runs the gateway to write to the file of `[store] database` and to its folder"
        }
        Some(10) if code == Some(778) => {
            "; the disk that holds `[store] database` has an I/O error, or a file size limit was reached (`ulimit -f`, LimitFSIZE=): see the system log"
        }
        Some(10) => "; the disk that holds `[store] database` has an I/O error: see the system log",
        Some(11 | 26) => {
            "; the file of `[store] database` is damaged: stop every gateway that uses it, and restore a backup"
        }
        Some(13) => "; the disk that holds `[store] database` is full: free some space",
        Some(14) => {
            "; allow the user that runs the gateway to open the file of `[store] database` and to write to its folder"
        }
        _ => "",
    }
}

/// What to do about a file that cannot be opened or created.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk that holds it is full: free some space"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "its file system is mounted read-only: mount it writable, or name another file in `[store] database`"
        }
        _ if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
            "the disk that holds it has an I/O error: see the system log"
        }
        _ => "allow the user that runs the gateway to write to it and to its folder",
    }
}

/// The path of the database with this suffix appended.
fn with_suffix(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Waits until no other process is bringing the schema of a database up to date. The file stays:
/// removing it might remove another process's lock.
async fn lock(database: &Path, timeout: Duration) -> Result<File, StoreError> {
    let path = with_suffix(database, "-lock");
    let failed = |source| StoreError::Open { path: path.clone(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let begun = Instant::now();
    let mut has_warned = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) if begun.elapsed() > timeout => {
                return Err(StoreError::Locked { path });
            }
            Err(TryLockError::WouldBlock) => {}
        }
        if !has_warned && begun.elapsed() > LOCK_WARNING_AFTER {
            has_warned = true;
            tracing::warn!(file = %path.display(), "waiting for another process that brings the database's schema up to date");
        }
        tokio::time::sleep(LOCK_POLL_INTERVAL).await;
    }
}

fn install_drivers() {
    static DRIVERS: Once = Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
}

/// Creates the file for its owner only. SQLite gives the files next to it (`-wal`, `-shm`) the same
/// mode.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = std::fs::metadata(path)?;
            if metadata.permissions().mode() & 0o077 != 0 {
                tracing::warn!(file = %path.display(), "other users can access the database; chmod 600 it");
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Checks that the file can be a database: the pool would retry for a long time to open one that is
/// not. An empty file becomes a database.
fn check_kind(path: &Path) -> Result<(), StoreError> {
    let mut start = Vec::with_capacity(MAGIC.len());
    let read =
        File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut start));
    read.map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    if start.is_empty() || start == MAGIC {
        Ok(())
    } else {
        Err(StoreError::NotADatabase { path: path.to_owned() })
    }
}

/// The URL of this path, with characters that are special in URLs encoded.
fn url(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut url = String::from("sqlite://");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// The first bytes of a database (SQLite's file format, §1.3.1).
const MAGIC: &[u8] = b"SQLite format 3\0";

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

/// How long a process may take to bring the schema up to date while others wait.
const LOCK_TIMEOUT: Duration = Duration::from_mins(1);

/// How long they wait before they say so.
const LOCK_WARNING_AFTER: Duration = Duration::from_secs(2);

const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/store/migrations");

#[cfg(test)]
mod tests {
    use sqlx::{AnyConnection, Executor};

    use super::connections::ACQUIRE;
    use super::*;

    pub(super) fn settings(folder: &Path) -> StoreSettings {
        StoreSettings {
            database: folder.join("a b%.db"),
            key: SecretBytes::new(b"a key for tests, long enough to be one".to_vec()),
            first_start: None,
        }
    }

    #[tokio::test]
    async fn a_store_is_private_and_durable_and_can_be_opened_twice() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let other = Store::open(&settings).await.unwrap();
        let mode = |name: &str| {
            std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("a b%.db"), mode("a b%.db-wal")), (0o600, 0o600));
        for (pragma, wanted) in
            [("PRAGMA synchronous", 2), ("PRAGMA foreign_keys", 1), ("PRAGMA busy_timeout", 5000)]
        {
            let (value,): (i64,) =
                sqlx::query_as(pragma).fetch_one(other.connections.writer()).await.unwrap();
            assert_eq!(value, wanted, "{pragma}");
        }
        let (journal,): (String,) = sqlx::query_as("PRAGMA journal_mode")
            .fetch_one(store.connections.writer())
            .await
            .unwrap();
        assert_eq!(journal, "wal");
        store.close().await;
        other.close().await;
    }

    /// SQLite maps it into memory, and a write to a hole in it would end the process.
    #[tokio::test]
    async fn the_mapped_file_is_allocated_on_disk() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let metadata = std::fs::metadata(folder.path().join("a b%.db-shm")).unwrap();
        assert!(metadata.len() >= 256 << 10, "{}", metadata.len());
        assert!(metadata.blocks() * 512 >= metadata.len(), "{metadata:?}");
        store.close().await;
    }

    #[tokio::test]
    async fn another_key_is_refused_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        Store::open(&settings).await.unwrap().close().await;
        let other = StoreSettings {
            key: SecretBytes::new(b"another key, that belongs to another database".to_vec()),
            ..settings.clone()
        };
        let error = Store::open(&other).await.unwrap_err();
        assert!(error.to_string().contains("`[store] key`"), "{error}");
        Store::open(&settings).await.unwrap().close().await;
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_database_is_reported_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        for bytes in ["a", "# portcullis\n[server]\nlisten = \":8080\"\n"] {
            std::fs::write(&settings.database, bytes).unwrap();
            let errors = [
                Store::open(&settings).await.unwrap_err(),
                Store::open_read_only(&settings).await.unwrap_err(),
            ];
            assert!(
                errors.iter().all(|error| error
                    .to_string()
                    .contains("is not an SQLite database; name another file")),
                "{errors:?}"
            );
        }
        std::fs::write(&settings.database, "").unwrap();
        Store::open(&settings).await.unwrap().close().await;
    }

    /// As on a full disk: SQLite rolls back by itself, and the driver's own ROLLBACK fails.
    #[tokio::test]
    async fn acknowledged_writes_survive_a_transaction_that_sqlite_rolled_back() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let full = "CREATE TRIGGER full BEFORE INSERT ON revocations WHEN NEW.value LIKE 'full%' BEGIN SELECT RAISE(ROLLBACK, 'full'); END";
        store.connections.writer().execute(full).await.unwrap();
        let row = |value: String| RevocationRow {
            kind: "sid".into(),
            value,
            scope: "*".into(),
            revoked_at: 1,
            seq: 0,
        };
        let token = LogoutTokenRow { name: "received".into(), expires_at: 1 };
        store.revoke_once(&token, &row("first".into())).await.unwrap().unwrap();
        for index in 0..8 {
            store.revoke(&[row(format!("full-{index}"))]).await.unwrap_err();
            // Rolled back by the store, after something was written.
            assert_eq!(store.revoke_once(&token, &row("again".into())).await.unwrap(), None);
            store.revoke(&[row(index.to_string())]).await.unwrap();
            // Another process that opens it sees only what was committed, and can write.
            let other = Store::open(&settings).await.unwrap();
            assert_eq!(other.revocations_after(0).await.unwrap().len(), index + 2);
            other.close().await;
        }
    }

    /// Outside a transaction, the driver would drop an error of the commit.
    #[tokio::test]
    async fn only_a_write_transaction_can_write() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        for pool in [store.connections.reader(), store.connections.follower()] {
            let error = pool.execute("INSERT INTO facts VALUES ('a', 'b')").await.unwrap_err();
            assert!(error.to_string().contains("readonly"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_full_disk_loses_nothing_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let writer = store.connections.writer();
        let (pages,): (i64,) = sqlx::query_as("PRAGMA page_count").fetch_one(writer).await.unwrap();
        let limit = |most: i64| sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {most}"));
        writer.execute(limit(pages + 2)).await.unwrap();
        let row = |index: usize| RevocationRow {
            kind: "jti".into(),
            value: format!("{index:0500}"),
            scope: "*".into(),
            revoked_at: 1,
            seq: 0,
        };
        let mut acknowledged = 0;
        let error = loop {
            match store.revoke(&[row(acknowledged)]).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        let is_full = |problem: &str| problem.contains("is full: free some space");
        assert!(is_full(&error.to_string()), "{error}");
        store.record_failure(&error);
        store.retry_write().await;
        assert!(
            store.problem().is_some_and(|problem| is_full(&problem)),
            "a page still fits, a login does not"
        );
        assert_eq!(store.revocations_after(0).await.unwrap().len(), acknowledged);
        writer.execute(limit(1000)).await.unwrap();
        store.revoke(&[row(acknowledged)]).await.unwrap();
        store.retry_write().await;
        assert_eq!(store.problem(), None);
    }

    #[test]
    fn each_system_error_has_a_fitting_remedy() {
        for (error, remedy) in [
            (Errno::NOSPC, "free some space"),
            (Errno::ROFS, "mount it writable"),
            (Errno::IO, "see the system log"),
            (Errno::ACCESS, "allow the user"),
        ] {
            let open = StoreError::Open { path: "a.db".into(), source: error.into() };
            assert!(open.to_string().contains(remedy), "{open}");
        }
    }

    #[tokio::test]
    async fn a_store_reports_write_failures_until_a_write_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        store.retry_write().await;
        assert_eq!(store.problem(), None);
        let mut other = AnyConnection::connect(&url(&settings.database)).await.unwrap();
        other.execute("BEGIN IMMEDIATE").await.unwrap();
        store.connections.writer().execute("PRAGMA busy_timeout = 1").await.unwrap();
        let error = store
            .revoke(&[RevocationRow {
                kind: "sid".into(),
                value: "a".into(),
                scope: "*".into(),
                revoked_at: 1,
                seq: 0,
            }])
            .await;
        store.record_failure(&error.unwrap_err());
        store.retry_write().await;
        assert!(
            store.problem().unwrap().contains("another process has locked the file"),
            "{:?}",
            store.problem()
        );
        other.execute("ROLLBACK").await.unwrap();
        store.retry_write().await;
        assert_eq!(store.problem(), None);
    }

    #[tokio::test]
    async fn a_database_of_another_program_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        std::fs::write(&settings.database, "").unwrap();
        let mut other = AnyConnection::connect(&url(&settings.database)).await.unwrap();
        other.execute("CREATE TABLE theirs (name TEXT)").await.unwrap();
        other.close().await.unwrap();
        let before = std::fs::read(&settings.database).unwrap();
        for error in [
            Store::open(&settings).await.unwrap_err(),
            Store::open_read_only(&settings).await.unwrap_err(),
        ] {
            assert!(error.to_string().contains("has no tables of portcullis"), "{error}");
        }
        assert!(std::fs::read(&settings.database).unwrap() == before);
    }

    /// A process that was stopped in the middle is reported, and the wait for it is limited.
    #[tokio::test]
    async fn waiting_for_the_lock_of_another_process_ends_with_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("test.db");
        let timeout = Duration::from_millis(50);
        let held = lock(&database, timeout).await.unwrap();
        let error = lock(&database, timeout).await.unwrap_err();
        assert!(error.to_string().contains("find it with `fuser`"), "{error}");
        drop(held);
        lock(&database, timeout).await.unwrap();
    }

    #[tokio::test]
    async fn a_damaged_database_is_reported_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        Store::open(&settings).await.unwrap().close().await;
        let mut bytes = std::fs::read(&settings.database).unwrap();
        bytes.iter_mut().skip(MAGIC.len() + 84).for_each(|byte| *byte = 0x5a);
        std::fs::write(&settings.database, bytes).unwrap();
        let begun = std::time::Instant::now();
        let error = Store::open(&settings).await.unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert!(begun.elapsed() < ACQUIRE, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        store
            .connections
            .writer()
            .execute("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', 1, x'00', 0)")
            .await
            .unwrap();
        store.close().await;
        let error = Store::open(&settings).await.unwrap_err();
        assert!(matches!(error, StoreError::Newer { step: 9999, .. }), "{error}");
    }
}
