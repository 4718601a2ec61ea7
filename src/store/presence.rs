//! Which gateways run on a database, and how much of its revocations and signing keys each of them
//! knows.
//!
//! A command that revokes ends when every running gateway rejects what was revoked, and one that
//! makes a signing key ends when every running gateway has it. With PostgreSQL, each gateway has a
//! row ([`Replica`]). With SQLite, each has a file next to the database, which holds the numbers of the
//! last revocation and signing key that the gateway has read, and the name of the database that it
//! has open. The file is locked as long as the gateway runs: the system releases the lock when the
//! process ends, however it ends. So nothing is written while nothing is revoked, a gateway that was
//! killed can be distinguished from a slow one, and no command waits if no gateway runs.
//!
//! A gateway whose database was overwritten reads nothing more, and its numbers may be those that the
//! older copy is about to give again. So it takes the name of its database back, and no command
//! writes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::files::DatabaseFiles;
use super::identity::DatabaseIdentity;
use super::replicas::Replica;
use super::{Store, StoreError, StoreSettings, with_suffix};

/// A running gateway, as commands see it. Ends when it is dropped, and with PostgreSQL when the
/// store is closed.
#[derive(Debug)]
pub struct Presence(Kind);

#[derive(Debug)]
enum Kind {
    File(Box<PresenceFile>),
    Row(Box<Replica>),
}

/// The file of a gateway.
#[derive(Debug)]
struct PresenceFile {
    store: Store,
    database: PathBuf,
    announced: Mutex<Announced>,
}

/// The file, and what it says.
#[derive(Debug)]
struct Announced {
    path: PathBuf,
    file: File,
    /// The name of the database.
    name: String,
    /// What was read, indexed by [`Feed`].
    read: [i64; 2],
}

/// What a gateway reads from the store while it runs, and what commands wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Revocations, by their `seq`.
    Revocations,
    /// Keys of the built-in issuer, by their number.
    SigningKeys,
}

impl Feed {
    /// The offset of its line in the file.
    fn offset(self) -> u64 {
        self as u64 * LINE as u64
    }
}

/// The length of a line in bytes.
const LINE: usize = 42;

/// The offset of the name of the database that the process has open, after one line for each kind
/// of news.
const NAME_AT: u64 = 2 * LINE as u64;

impl Presence {
    /// Makes commands wait for this process from now on. Call this before reading the revocations,
    /// so that commands also wait for what is written in the meantime.
    pub async fn announce(store: &Store, settings: &StoreSettings) -> Result<Self, StoreError> {
        Ok(Self(match settings.database.file() {
            Some(file) => Kind::File(Box::new(PresenceFile::announce(store, file)?)),
            None => Kind::Row(Box::new(Replica::announce(store).await?)),
        }))
    }

    /// Announces that this gateway knows and acts on everything of this kind up to the number
    /// `last`. If that cannot be written, commands wait in vain, and say so.
    pub async fn report_read(&self, feed: Feed, last: i64) {
        match &self.0 {
            Kind::File(file) => file.report_read(feed, last),
            Kind::Row(replica) => replica.report_read(feed, last).await,
        }
    }
}

impl PresenceFile {
    fn announce(store: &Store, database: &Path) -> Result<Self, StoreError> {
        let own = |source| StoreError::Open { path: database.to_owned(), source };
        let database = database.canonicalize().map_err(own)?;
        let failed = |source| StoreError::Open { path: prefixed(&database, "…"), source };
        let announced = Announced::new(&database, &own_name(store)).map_err(failed)?;
        Ok(Self { store: store.clone(), database, announced: Mutex::new(announced) })
    }

    fn report_read(&self, feed: Feed, last: i64) {
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.try_report(&mut announced, feed, last) {
            tracing::debug!(cause = %error, "cannot report to commands what this gateway has read");
        }
    }

    fn try_report(&self, announced: &mut Announced, feed: Feed, last: i64) -> io::Result<()> {
        let name = own_name(&self.store);
        if !announced.is_there() {
            let again = Announced::new(&self.database, &name)?;
            tracing::warn!(file = %announced.path.display(), "the file through which commands wait for this gateway was deleted while it was in use; it is made again, but a command may have ended before this gateway knew of it");
            let known = announced.read;
            *announced = again;
            for feed in [Feed::Revocations, Feed::SigningKeys] {
                announced.write_read(feed, known[feed as usize])?;
            }
        }
        announced.write_name(name)?;
        announced.write_read(feed, last)
    }
}

impl Announced {
    fn new(database: &Path, name: &str) -> io::Result<Self> {
        loop {
            let path = prefixed(database, &Uuid::new_v4().to_string());
            // Before the file was locked, a command may have taken it for that of a process that has
            // ended.
            if let Some(announced) = Self::at(&path, name)? {
                return Ok(announced);
            }
        }
    }

    fn at(path: &Path, name: &str) -> io::Result<Option<Self>> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let path = path.to_owned();
        // If the disk is full, it is removed when this is dropped.
        let mut announced = Self { path, file, name: String::new(), read: [-1, -1] };
        announced.file.lock()?;
        announced.write_name(name.to_owned())?;
        Ok(announced.is_there().then_some(announced))
    }

    fn is_there(&self) -> bool {
        let there = fs::metadata(&self.path);
        there.is_ok_and(|there| self.file.metadata().is_ok_and(|file| file.ino() == there.ino()))
    }

    fn write_name(&mut self, name: String) -> io::Result<()> {
        if self.name != name {
            let line = format!("{name}\n");
            self.file.write_all_at(line.as_bytes(), NAME_AT)?;
            // Nothing stays of a longer one.
            self.file.set_len(NAME_AT + line.len() as u64)?;
            self.name = name;
        }
        Ok(())
    }

    fn write_read(&mut self, feed: Feed, last: i64) -> io::Result<()> {
        if self.read[feed as usize] != last {
            // Twice, so that a reader notices when it has read only half of it.
            let line = format!("{last:020} {last:020}\n");
            self.file.write_all_at(line.as_bytes(), feed.offset())?;
            self.read[feed as usize] = last;
        }
        Ok(())
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        // If it stays, the next command removes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// Waits until every gateway that runs on the database knows what has been revoked so far, and
    /// the newest signing key, but at most [`GATEWAY_TIMEOUT`]. Returns how many do not know it by
    /// then.
    ///
    /// # Errors
    /// [`StoreError::DifferentDatabase`] if one of them will never know. After any other error, it
    /// is unknown whether they know.
    pub async fn wait_for_gateways(&self, settings: &StoreSettings) -> Result<usize, StoreError> {
        let revocation = self.last_revocation().await?;
        let key = self.signing_key_numbers().await?.last().copied();
        let until = Instant::now() + GATEWAY_TIMEOUT;
        loop {
            let behind = self.gateways_behind(settings, revocation, key.unwrap_or(-1)).await?;
            if behind == 0 || Instant::now() >= until {
                return Ok(behind);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// How many running gateways do not know everything that was written, up to these numbers. A
    /// negative number of a key: there is none.
    pub(super) async fn gateways_behind(
        &self,
        settings: &StoreSettings,
        revocation: i64,
        key: i64,
    ) -> Result<usize, StoreError> {
        let Some(file) = settings.database.file() else {
            return self.replicas_behind(revocation, key).await;
        };
        let own = own_name(self);
        let mut written = vec![(Feed::Revocations, revocation)];
        written.extend((key >= 0).then_some((Feed::SigningKeys, key)));
        // One that opened the database only to read it does not know its name.
        let is_own = |name: &str| own.is_empty() || name == own;
        elsewhere(file, behind(file, &written, is_own))
    }

    /// How many gateways run on the database: with PostgreSQL, those seen in the last ten seconds.
    pub async fn running_gateways(&self, settings: &StoreSettings) -> Result<usize, StoreError> {
        match settings.database.file() {
            Some(_) => self.gateways_behind(settings, i64::MAX, i64::MAX).await,
            None => Ok(usize::try_from(self.count_replicas().await?).unwrap_or(usize::MAX)),
        }
    }

    /// Checks that every running gateway has the database open that is there now. Call this before
    /// a command opens another one: SQLite would then remove the gateways' `-wal`, which has the
    /// same name.
    ///
    /// # Errors
    /// [`StoreError::DifferentDatabase`] if a gateway has another file open.
    pub fn check_gateways(settings: &StoreSettings) -> Result<(), StoreError> {
        let Some(file) = settings.database.file() else { return Ok(()) };
        let inodes = DatabaseFiles::inodes_now(file);
        let is_there = |name: &str| name.split_once('/').is_some_and(|(_, named)| named == inodes);
        elsewhere(file, behind(file, &[], is_there)).map(drop)
    }
}

/// The name of the database that this process has open.
fn own_name(store: &Store) -> String {
    let files = store.connections.identity().and_then(DatabaseIdentity::files);
    files.map(DatabaseFiles::name).unwrap_or_default()
}

fn elsewhere(database: &Path, behind: io::Result<Option<usize>>) -> Result<usize, StoreError> {
    let folder = || database.parent().unwrap_or(Path::new(".")).to_owned();
    behind
        .map_err(|source| StoreError::Open { path: folder(), source })?
        .ok_or_else(|| StoreError::DifferentDatabase { path: database.to_owned() })
}

/// How many running processes do not know everything that was written, up to the number of each
/// kind. Removes the files of processes that have ended. `None`: one of them has another database
/// open.
fn behind(
    database: &Path,
    written: &[(Feed, i64)],
    is_own: impl Fn(&str) -> bool,
) -> io::Result<Option<usize>> {
    // As for SQLite, the file counts, whatever name or link leads to it.
    let database = match database.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = database.parent().filter(|folder| *folder != Path::new(""));
            let folder = folder.unwrap_or(Path::new(".")).canonicalize()?;
            folder.join(database.file_name().unwrap_or_default())
        }
        found => found?,
    };
    let folder = database.parent().unwrap_or(Path::new("/"));
    let prefix = prefixed(Path::new(database.file_name().unwrap_or_default()), "").into_os_string();
    let mut behind = 0;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let path = folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            // The process has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => {
                let _ = fs::remove_file(&path);
            }
            Err(TryLockError::WouldBlock) => {
                if database_name(&file).is_some_and(|name| !is_own(&name)) {
                    return Ok(None);
                }
                let knows_all = written
                    .iter()
                    .all(|&(feed, last)| last_read(&file, feed).is_some_and(|known| known >= last));
                behind += usize::from(!knows_all);
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(Some(behind))
}

/// Which database the owner of a file has open. `None`: it has not written that yet.
fn database_name(file: &File) -> Option<String> {
    let mut written = [0; 128];
    let length = file.read_at(&mut written, NAME_AT).ok()?;
    let name = std::str::from_utf8(&written[..length]).ok()?.strip_suffix('\n')?;
    Some(name.to_owned())
}

/// What the owner of a file knows. `None`: it has not written that yet.
fn last_read(file: &File, feed: Feed) -> Option<i64> {
    let mut written = [0; LINE - 1];
    file.read_exact_at(&mut written, feed.offset()).ok()?;
    let (first, second) = std::str::from_utf8(&written).ok()?.split_once(' ')?;
    if first == second { first.parse().ok() } else { None }
}

/// The file of one gateway, next to the database, as SQLite's own files are.
fn prefixed(database: &Path, name: &str) -> PathBuf {
    with_suffix(database, &format!("-gateway-{name}"))
}

/// How long a command waits. A gateway reads the store at least once a second.
pub const GATEWAY_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a command looks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_settings as settings;
    use crate::store::{RevocationRow, SigningKeyRow};

    fn file(settings: &StoreSettings) -> &Path {
        settings.database.file().unwrap()
    }

    fn revocations_behind(database: &Path, seq: i64) -> io::Result<usize> {
        behind(database, &[(Feed::Revocations, seq)], |_| true).map(Option::unwrap)
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder)
            .unwrap()
            .filter(|entry| {
                entry.as_ref().unwrap().file_name().to_string_lossy().contains("-gateway-")
            })
            .count()
    }

    #[tokio::test]
    async fn commands_wait_for_running_gateways_only() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let row = RevocationRow {
            kind: "jti".into(),
            value: "t".into(),
            scope: "*".into(),
            revoked_at: 1,
            seq: 0,
        };
        store.revoke(std::slice::from_ref(&row)).await.unwrap();
        store.revoke(&[row]).await.unwrap();
        let database = file(&settings);
        assert_eq!(store.wait_for_gateways(&settings).await.unwrap(), 0, "there is none");

        let (one, two) = (
            PresenceFile::announce(&store, file(&settings)).unwrap(),
            PresenceFile::announce(&store, file(&settings)).unwrap(),
        );
        assert_eq!(revocations_behind(database, 2).unwrap(), 2, "they have read nothing yet");
        one.report_read(Feed::Revocations, 2);
        two.report_read(Feed::Revocations, 1);
        assert_eq!(
            (
                revocations_behind(database, 1).unwrap(),
                revocations_behind(database, 2).unwrap(),
                revocations_behind(database, 3).unwrap()
            ),
            (0, 1, 2)
        );
        let waiting = tokio::join!(store.wait_for_gateways(&settings), async {
            two.report_read(Feed::Revocations, 2);
        });
        assert_eq!(waiting.0.unwrap(), 0);
        drop(one);
        assert_eq!(files(folder.path()), 1);

        // Killed: its file stays, but belongs to no process.
        let killed = prefixed(database, "killed");
        fs::write(&killed, "0").unwrap();
        assert_eq!(revocations_behind(database, 2).unwrap(), 0);
        assert!(!killed.exists() && files(folder.path()) == 1);
        // A half-written line does not count.
        let half = b"00000000000000000003";
        two.announced.lock().unwrap().file.write_all_at(half, 0).unwrap();
        assert_eq!(revocations_behind(database, 2).unwrap(), 1);
        // Under another name, it is the same database.
        let link = folder.path().join("link.db");
        std::os::unix::fs::symlink(database, &link).unwrap();
        assert_eq!(revocations_behind(&link, 2).unwrap(), 1);
        let here = std::env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        assert_eq!(
            revocations_behind(&up.join(database.strip_prefix("/").unwrap()), 2).unwrap(),
            1,
            "relative"
        );
        // Another database in the same folder does not count.
        let another = folder.path().join("another.db");
        fs::write(&another, "").unwrap();
        assert_eq!(revocations_behind(&another, 2).unwrap(), 0);
        // A folder that cannot be read does not count as one without gateways.
        assert!(revocations_behind(&folder.path().join("none/none.db"), 2).is_err());
    }

    #[tokio::test]
    async fn a_copy_at_the_path_of_the_database_is_another_database() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let _gateway = PresenceFile::announce(&store, file(&settings)).unwrap();
        Store::check_gateways(&settings).unwrap();
        let copy = folder.path().join("copy");
        fs::copy(file(&settings), &copy).unwrap();
        fs::rename(&copy, file(&settings)).unwrap();
        let error = Store::check_gateways(&settings).unwrap_err().to_string();
        assert!(error.contains("has a different file open"), "{error}");
        fs::remove_file(file(&settings)).unwrap();
        Store::check_gateways(&settings).unwrap_err();
        let renewed = Store::open(&settings).await.unwrap();
        assert!(matches!(
            renewed.wait_for_gateways(&settings).await,
            Err(StoreError::DifferentDatabase { .. })
        ));
    }

    #[tokio::test]
    async fn a_file_that_is_deleted_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let gateway = PresenceFile::announce(&store, file(&settings)).unwrap();
        gateway.report_read(Feed::SigningKeys, 1);
        fs::remove_file(&gateway.announced.lock().unwrap().path).unwrap();
        gateway.report_read(Feed::Revocations, 2);
        for (written, late) in [([2, 1], 0), ([3, 1], 1), ([2, 2], 1)] {
            let written = [(Feed::Revocations, written[0]), (Feed::SigningKeys, written[1])];
            let own = own_name(&store);
            let behind = behind(file(&settings), &written, |name| name == own);
            assert_eq!(behind.unwrap(), Some(late), "{written:?}");
        }
        drop(gateway);
        assert_eq!(files(folder.path()), 0);
    }

    /// It may know numbers that an older copy gives again.
    #[tokio::test]
    async fn a_gateway_that_has_lost_its_database_keeps_commands_from_writing() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let command = Store::open(&settings).await.unwrap();
        let gateway = PresenceFile::announce(&store, file(&settings)).unwrap();
        gateway.report_read(Feed::Revocations, 3);
        Store::check_gateways(&settings).unwrap();
        assert_eq!(command.wait_for_gateways(&settings).await.unwrap(), 0);
        store.connections.identity().unwrap().record_damage();
        gateway.report_read(Feed::Revocations, 3);
        for error in [
            Store::check_gateways(&settings).unwrap_err(),
            command.wait_for_gateways(&settings).await.unwrap_err(),
        ] {
            assert!(error.to_string().contains("what it had open was overwritten"), "{error}");
        }
    }

    #[tokio::test]
    async fn commands_wait_until_gateways_know_a_signing_key() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let gateway = PresenceFile::announce(&store, file(&settings)).unwrap();
        gateway.report_read(Feed::Revocations, 0);
        assert_eq!(store.wait_for_gateways(&settings).await.unwrap(), 0, "there is no key");
        let key = SigningKeyRow {
            number: 7,
            kid: "k".into(),
            algorithm: "ES256".into(),
            private: String::from("p").into(),
            created_at: 1,
            signs_from: 1,
        };
        assert!(store.insert_signing_key(&key).await.unwrap());
        gateway.report_read(Feed::SigningKeys, 6);
        let written = [(Feed::Revocations, 0), (Feed::SigningKeys, 7)];
        assert_eq!(behind(file(&settings), &written, |_| true).unwrap(), Some(1));
        let waiting = tokio::join!(store.wait_for_gateways(&settings), async {
            gateway.report_read(Feed::SigningKeys, 7);
        });
        assert_eq!(waiting.0.unwrap(), 0);
    }
}
