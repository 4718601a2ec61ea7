//! Opens an SQLite database: one file, for the processes of one machine.
//!
//! SQLite allows one writer at a time, and readers alongside it. A connection that reads is
//! `query_only`, so a statement that writes fails there.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, StatxAttributes, StatxFlags, access, fallocate, statx,
};
use rustix::io::Errno;
use rustix::process::Signal;
use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyConnection, Connection, Executor};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::connections::{Connections, Engine, Statements};
use super::files::OpenFiles;
use super::{ALL_STEPS, StoreError, copy, migrate, wal, with_suffix};

/// Opens the database at this path, creates it if there is none (mode 0600), and brings its schema
/// up to date. `is_first`: an earlier start may have been killed before it made the tables.
pub(super) async fn open(path: &Path, is_first: bool) -> Result<Connections, StoreError> {
    let Alone { mut first, files, _lock } = open_alone(path, is_first).await?;
    warn_if_remote(path);
    migrate(&mut first, &path.display(), ALL_STEPS).await?;
    let connections = connect(&url(path), files).await?;
    // Only after the others were opened: with its last connection, a database loses its `-wal`.
    first.close().await?;
    Ok(connections)
}

/// If the database has no tables, marks it as an incomplete copy of the database `id`, and returns
/// true. Creates the file if it is missing.
pub(super) async fn begin_copy(path: &Path, id: &str) -> Result<bool, StoreError> {
    let Alone { mut first, files, _lock } = open_alone(path, true).await?;
    let (tables, _) = count_tables(&mut first).await?;
    if tables == 0 {
        let mut transaction = first.begin_with(ENGINE.begin).await?;
        copy::mark(&mut transaction, &path.display(), id).await?;
        transaction.commit().await?;
    }
    first.close().await?;
    drop(files);
    Ok(tables == 0)
}

/// The first connection to a database, whose schema no other process changes meanwhile.
struct Alone {
    first: AnyConnection,
    files: OpenFiles,
    /// Released with its handle, however the function ends that holds it.
    _lock: File,
}

async fn open_alone(path: &Path, is_first: bool) -> Result<Alone, StoreError> {
    let was_written = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
    create_private(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    check_name(path)?;
    check_kind(path)?;
    // SQLite serialises statements, not schema steps: if two processes began them at the same
    // time, one would fail.
    let lock = lock(path, LOCK_TIMEOUT).await?;
    wal::check(path)?;
    let (first, files) = probe(path, &url(path), was_written && !is_first).await?;
    Ok(Alone { first, files, _lock: lock })
}

/// Opens an existing database to read it. `None`: nothing was ever written to it.
pub(super) async fn open_read_only(path: &Path) -> Result<Option<Connections>, StoreError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    check_name(path)?;
    check_kind(path)?;
    wal::check(path)?;
    let pool = pool(1).connect(&format!("{}?mode=ro", url(path))).await?;
    if let (_, 0) = count_tables(&pool).await? {
        return Err(StoreError::Foreign { database: path.display().to_string() });
    }
    Ok(Some(Connections {
        statements: Statements::new(ENGINE),
        writer: pool.clone(),
        readers: pool.clone(),
        follower: pool.clone(),
        apart: pool,
        files: None,
    }))
}

/// Opens one more connection to a database that is in use, and reads all of it. `None`: it is
/// damaged.
pub(super) async fn open_if_intact(path: &Path) -> Result<Option<AnyConnection>, StoreError> {
    // One that could write would empty the `-wal` if it were the last one.
    let mut looking = AnyConnection::connect(&format!("{}?mode=ro", url(path))).await?;
    let checking = sqlx::query_as("PRAGMA integrity_check(1)");
    let (found,): (String,) = checking.fetch_one(&mut looking).await?;
    Ok((found == "ok").then_some(looking))
}

/// Replaces every connection. There is always one, or the database would lose its `-wal`: so this
/// needs another one that is open meanwhile.
pub(super) async fn renew(connections: &Connections) -> Result<(), StoreError> {
    let Connections { writer, follower, readers, .. } = connections;
    for (pool, count) in [(writer, 1), (follower, 1), (readers, READERS)] {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(pool.acquire().await?);
        }
        for connection in all {
            connection.close().await?;
        }
        drop(pool.acquire().await?);
    }
    Ok(())
}

/// Opens the connections to the existing database at this URL.
async fn connect(url: &str, files: OpenFiles) -> Result<Connections, sqlx::Error> {
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
    let writer = writer.connect(url).await?;
    Ok(Connections {
        statements: Statements::new(ENGINE),
        readers: read_only(READERS)?,
        follower: read_only(1)?,
        apart: writer.clone(),
        writer,
        files: Some(Arc::new(files)),
    })
}

/// `IMMEDIATE` takes the lock now: a transaction that reads first and writes later would fail if
/// another process wrote in between.
const ENGINE: Engine = Engine {
    begin: "BEGIN IMMEDIATE",
    order: None,
    begin_reading: "BEGIN",
    reads_begin: false,
    is_pooled: false,
    patience: None,
    release: None,
};

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
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let Some(file) = wal::found(opened)? else { return Ok(None) };
    match fallocate(&file, FallocateFlags::empty(), 0, SHARED_BYTES) {
        // The file system does not support this.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(Some(file)),
        Err(error) => Err(error.into()),
    }
}

/// Opens one connection, to see at once why that fails: a pool retries for a long time and does not
/// report the reason.
async fn probe(
    path: &Path,
    url: &str,
    had_tables: bool,
) -> Result<(AnyConnection, OpenFiles), StoreError> {
    // With this, a write beyond the file size limit (RLIMIT_FSIZE) fails instead of ending the
    // process.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map_err(sqlx::Error::Io)?);
    let mut first = AnyConnection::connect(url).await?;
    // Check this before anything is written to the database.
    match count_tables(&mut first).await? {
        (1.., 0) => return Err(StoreError::Foreign { database: path.display().to_string() }),
        (0, _) if had_tables => return Err(StoreError::NoTables { path: path.to_owned() }),
        _ => {}
    }
    configure(&mut first).await?;
    // From here on, the files next to it exist.
    count_tables(&mut first).await?;
    let index = preallocate_index(path)
        .map_err(|source| StoreError::Open { path: with_suffix(path, "-shm"), source })?;
    let wal = with_suffix(path, "-wal");
    let log = wal::found(File::open(&wal));
    let log = log.map_err(|source| StoreError::Open { path: wal, source })?.zip(index);
    let database =
        File::open(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    let lock = with_suffix(path, "-lock");
    let noted = OpenOptions::new().read(true).write(true).open(&lock);
    let noted = noted.map_err(|source| StoreError::Open { path: lock, source })?;
    Ok((first, OpenFiles { database, log, noted }))
}

/// The number of tables and other schema objects, and how many of them are the table of schema
/// steps.
async fn count_tables(
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

/// Creates the file for its owner only. SQLite gives the files next to it (`-wal`, `-shm`) the same
/// mode.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // SQLite would open one that must not be written, and give its mode to the files next to
            // it: the error would name one of those.
            access(path, Access::READ_OK | Access::WRITE_OK)?;
            let metadata = std::fs::metadata(path)?;
            if metadata.permissions().mode() & 0o077 != 0 {
                tracing::warn!(file = %path.display(), "other users can access the database; chmod 600 it");
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Checks that everyone who uses the file finds its `-wal`, `-shm` and `-lock`: they are next to its
/// name, in one folder. Who comes by another way makes other ones, and sees nothing of what is in
/// the first. A container that mounts the file alone loses them when it ends.
fn check_name(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
    let how = if metadata.is_symlink() {
        "is a symbolic link; name the file that it leads to"
    } else if metadata.is_file() && metadata.nlink() > 1 {
        "has another name (a hard link); delete that one"
    } else if is_mounted(path) {
        "is mounted without its folder; mount the folder instead"
    } else {
        return Ok(());
    };
    Err(StoreError::OtherName { path: path.to_owned(), how })
}

/// Whether the file itself is mounted, as far as the system says.
fn is_mounted(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Logs a warning if the file is on a network file system, whose locks and memory maps do not reach
/// other machines: SQLite would corrupt it if two of them used it.
fn warn_if_remote(path: &Path) {
    let Ok(found) = rustix::fs::statfs(path) else { return };
    if REMOTE.contains(&found.f_type) {
        tracing::warn!(file = %path.display(), "the database is on a network file system: it must not be used from two machines, which would corrupt it; use PostgreSQL for several replicas");
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

/// The types of network file systems (statfs(2)): NFS, SMB, SMB 2, CIFS, 9P, Ceph, AFS.
const REMOTE: [rustix::fs::FsWord; 7] =
    [0x6969, 0x517B, 0xFE53_4D42, 0xFF53_4D42, 0x0102_1997, 0x00C3_6400, 0x5346_414F];

/// The first bytes of a database (SQLite's file format, §1.3.1).
const MAGIC: &[u8] = b"SQLite format 3\0";

/// How long a process may take to bring the schema up to date while others wait.
const LOCK_TIMEOUT: Duration = Duration::from_mins(1);

/// How long they wait before they say so.
const LOCK_WARNING_AFTER: Duration = Duration::from_secs(2);

const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LogoutTokenRow, RevocationRow, Store, StoreSettings, test_settings};

    fn file(settings: &StoreSettings) -> &Path {
        settings.database.file().unwrap()
    }

    #[tokio::test]
    async fn a_store_is_private_and_durable_and_can_be_opened_twice() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
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
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        let metadata = std::fs::metadata(folder.path().join("a b%.db-shm")).unwrap();
        assert!(metadata.len() >= 256 << 10, "{}", metadata.len());
        assert!(metadata.blocks() * 512 >= metadata.len(), "{metadata:?}");
        store.close().await;
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_database_is_reported_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        for bytes in ["a", "# portcullis\n[server]\nlisten = \":8080\"\n"] {
            std::fs::write(file(&settings), bytes).unwrap();
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
        std::fs::write(file(&settings), "").unwrap();
        Store::open(&settings).await.unwrap().close().await;
    }

    /// As on a full disk: SQLite rolls back by itself, and the driver's own ROLLBACK fails.
    #[tokio::test]
    async fn acknowledged_writes_survive_a_transaction_that_sqlite_rolled_back() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
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
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        for pool in [&store.connections.readers, &store.connections.follower] {
            let error = pool.execute("INSERT INTO facts VALUES ('a', 'b')").await.unwrap_err();
            assert!(error.to_string().contains("readonly"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_full_disk_loses_nothing_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
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

    #[tokio::test]
    async fn a_store_reports_write_failures_until_a_write_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        store.retry_write().await;
        assert_eq!(store.problem(), None);
        let mut other = AnyConnection::connect(&url(file(&settings))).await.unwrap();
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
        let settings = test_settings(folder.path());
        std::fs::write(file(&settings), "").unwrap();
        let mut other = AnyConnection::connect(&url(file(&settings))).await.unwrap();
        other.execute("CREATE TABLE theirs (name TEXT)").await.unwrap();
        other.close().await.unwrap();
        let before = std::fs::read(file(&settings)).unwrap();
        for error in [
            Store::open(&settings).await.unwrap_err(),
            Store::open_read_only(&settings).await.unwrap_err(),
        ] {
            assert!(error.to_string().contains("has no tables of portcullis"), "{error}");
        }
        assert!(std::fs::read(file(&settings)).unwrap() == before);
    }

    #[tokio::test]
    async fn a_database_with_another_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        Store::open(&settings).await.unwrap().close().await;
        let other = folder.path().join("other.db");
        let is_refused = async |how: &str| {
            for error in [
                Store::open(&settings).await.unwrap_err(),
                Store::open_read_only(&settings).await.unwrap_err(),
            ] {
                assert!(error.to_string().contains(how), "{error}");
            }
        };
        std::fs::hard_link(file(&settings), &other).unwrap();
        is_refused("has another name (a hard link)").await;
        std::fs::remove_file(file(&settings)).unwrap();
        std::os::unix::fs::symlink(&other, file(&settings)).unwrap();
        is_refused("is a symbolic link").await;
        std::fs::rename(&other, file(&settings)).unwrap();
        Store::open(&settings).await.unwrap().close().await;
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
        let settings = test_settings(folder.path());
        Store::open(&settings).await.unwrap().close().await;
        let mut bytes = std::fs::read(file(&settings)).unwrap();
        bytes.iter_mut().skip(MAGIC.len() + 84).for_each(|byte| *byte = 0x5a);
        std::fs::write(file(&settings), bytes).unwrap();
        let begun = std::time::Instant::now();
        let error = Store::open(&settings).await.unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert!(begun.elapsed() < ACQUIRE, "{:?}", begun.elapsed());
    }
}
