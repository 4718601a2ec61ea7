//! Checks whether the database is still the one that was opened.
//!
//! A file that is deleted or replaced stays open: SQLite keeps writing to it, and nothing will ever
//! read that again. So writes are acknowledged only while the files are where they were. The files
//! are looked up by name and never opened here: closing a file of a database drops the locks that
//! SQLite holds on it.
//!
//! A copy that is written over the database leaves the files where they were, and SQLite does not
//! notice it: what it has in memory and in the `-wal` counts as newer. So each transaction increases
//! a number in the header of the database (`user_version`), which is never lower than it was, and
//! never higher than the last one in the `-wal`. The last one that was acknowledged is also in the
//! `-lock`, for the next start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sqlx::Connection;
use tokio::sync::Mutex;

use super::error::DAMAGED;
use super::{StoreError, sqlite, wal, with_suffix};

/// The files of an open database, and its random id.
#[derive(Debug)]
pub(super) struct DatabaseFiles {
    files: Vec<(PathBuf, FileId)>,
    opened: Arc<OpenFiles>,
    id: String,
    /// How long the database was when it was last looked at.
    length: AtomicU64,
    is_truncated: AtomicBool,
    /// The number of the last transaction, as of the last one of this process.
    written: AtomicI32,
    /// The highest one that was in the file itself, which lacks what is still in the `-wal`.
    copied: AtomicI32,
    /// What has happened to the content, until an intact database is opened.
    spoiled: OnceLock<&'static str>,
    /// How often SQLite has found damage since the database was last known to be intact.
    damage: AtomicU64,
    /// When to look again whether there is damage. Locked by who is looking.
    next_look: Mutex<Option<Instant>>,
}

/// The files that are read without SQLite. They are closed last: that drops the locks that SQLite
/// holds on them.
#[derive(Debug)]
pub(super) struct OpenFiles {
    pub(super) database: File,
    /// The `-wal` and its index, if there are any.
    pub(super) log: Option<(File, File)>,
    /// The `-lock`.
    pub(super) noted: File,
}

/// The file that a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl DatabaseFiles {
    /// The files as they are now. Call this while the database is open.
    pub(super) fn record(database: &Path, id: String, opened: Arc<OpenFiles>) -> io::Result<Self> {
        let files = files(database).into_iter().map(|path| {
            let (file, _) = FileId::read(&path)?;
            Ok((path, file))
        });
        let files = files.collect::<io::Result<_>>()?;
        // What the file says is not higher than what SQLite says.
        let copied = stored_number(&opened.database)?.unwrap_or_default();
        Ok(Self {
            files,
            opened,
            id,
            length: AtomicU64::new(0),
            is_truncated: AtomicBool::new(false),
            written: AtomicI32::new(copied),
            copied: AtomicI32::new(copied),
            spoiled: OnceLock::new(),
            damage: AtomicU64::new(0),
            next_look: Mutex::default(),
        })
    }

    /// The name that gateways and commands use for the database while they have the same one open.
    /// Another copy of it has another name, and so has what is lost.
    pub(super) fn name(&self) -> String {
        if self.spoiled.get().is_some()
            || self.damage() > 0
            || self.is_truncated.load(Ordering::Relaxed)
        {
            return format!("{}/lost", self.id);
        }
        let inodes = self.files.iter().map(|(_, file)| file.inode);
        format!("{}/{}", self.id, joined(inodes))
    }

    /// What follows the id in the [`name`](Self::name) of a database that is opened now.
    pub(super) fn inodes_now(database: &Path) -> String {
        joined(
            files(database).iter().map(|path| FileId::read(path).map_or(0, |(file, _)| file.inode)),
        )
    }

    /// Checks that everything is where it was, and that nothing was found damaged. Costs a few system
    /// calls.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.check_files()?;
        self.check_damage()
    }

    /// The same, whatever was found damaged.
    fn check_files(&self) -> Result<(), StoreError> {
        let lost = |path: &Path, how| Err(StoreError::Lost { path: path.to_owned(), how });
        for (path, opened) in &self.files {
            match FileId::read(path) {
                Ok((file, _)) if file != *opened => return lost(path, "replaced"),
                // The others are sometimes empty.
                Ok((_, 0)) if path == &self.files[0].0 => return lost(path, "emptied"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return lost(path, "deleted or moved away");
                }
                Err(source) => return Err(StoreError::Open { path: path.clone(), source }),
            }
        }
        self.check_content()
    }

    /// Checks what is in the files that were opened, wherever they are now.
    fn check_content(&self) -> Result<(), StoreError> {
        let [(database, _), (log, _), ..] = &self.files[..] else { return Ok(()) };
        let lost = |path: &Path, how| Err(StoreError::Lost { path: path.to_owned(), how });
        if self.is_truncated.load(Ordering::Relaxed) {
            return lost(database, "truncated");
        }
        if let Some((wal, index)) = &self.opened.log
            && wal::is_truncated(wal, index)
                .map_err(|source| StoreError::Open { path: log.clone(), source })?
        {
            return lost(log, "truncated");
        }
        let compared = self.compare_copied();
        compared.map_err(|source| StoreError::Open { path: database.clone(), source })?;
        self.spoiled.get().map_or(Ok(()), |how| lost(database, how))
    }

    fn check_damage(&self) -> Result<(), StoreError> {
        match self.damage() {
            0 => Ok(()),
            _ => Err(StoreError::Lost { path: self.files[0].0.clone(), how: DAMAGED }),
        }
    }

    /// Whether SQLite may copy the `-wal` into the database, as it does when it closes it. It may
    /// also do that with a `-wal` that was deleted: what is in there is then not lost.
    pub(super) fn may_be_closed(&self) -> bool {
        let is_there = |(path, opened): &(PathBuf, FileId)| match FileId::read(path) {
            Ok((file, _)) => file == *opened,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        // One that is gone has no length.
        let length = FileId::read(&self.files[0].0).map_or(0, |(_, length)| length);
        let is_whole = length > 0 && length >= self.length.load(Ordering::Relaxed);
        let continues = || {
            let Some((wal, index)) = &self.opened.log else { return true };
            wal::continues(&self.opened.database, wal, Some(index)).unwrap_or(false)
        };
        is_whole
            && self.files.iter().all(is_there)
            && self.check_content().is_ok()
            && self.check_damage().is_ok()
            && continues()
    }

    fn spoil(&self, how: &'static str) {
        // What was noticed first is nearest to the cause.
        let _ = self.spoiled.set(how);
    }

    /// Takes the number of the last transaction. Call this while no other can write.
    pub(super) fn compare_written(&self, number: i32) {
        self.compare_numbers(number, self.written.swap(number, Ordering::Relaxed));
    }

    /// Reads that number from the file.
    fn compare_copied(&self) -> io::Result<()> {
        // First what is known: another thread may learn of a higher one in between.
        let known = self.copied.load(Ordering::Acquire);
        let Some(copied) = stored_number(&self.opened.database)? else { return Ok(()) };
        self.compare_numbers(copied, known);
        if copied != known {
            // What was copied is still in the `-wal`, until something newer is.
            if let Some((wal, index)) = &self.opened.log
                && let Some(last) = wal::last_number(wal, index)?
            {
                self.compare_numbers(last, copied);
            }
            let newer = |known: i32| is_before(known, copied).then_some(copied);
            let _ = self.copied.fetch_update(Ordering::Release, Ordering::Relaxed, newer);
        }
        Ok(())
    }

    fn compare_numbers(&self, number: i32, known: i32) {
        if is_before(number, known) {
            self.spoil("overwritten");
        }
    }

    /// Notes the number of a transaction that is about to be acknowledged.
    pub(super) fn note_written(&self, number: i32) {
        let text = format!("{} {number:011}\n", self.id);
        // Without it, the next start knows of an earlier one.
        let _ = self.opened.noted.write_all_at(text.as_bytes(), 0);
    }

    /// Notes that a part of the database cannot be read. The database counts as damaged until
    /// [`look_again`](Self::look_again) finds it intact.
    pub(super) fn record_damage(&self) {
        self.damage.fetch_add(1, Ordering::Relaxed);
    }

    fn damage(&self) -> u64 {
        self.damage.load(Ordering::Relaxed)
    }

    /// Reads a database that was found damaged in full, and uses it again if it is intact: SQLite also
    /// reports damage when a read from the disk fails. Its caches may be wrong then, so `renew` opens
    /// new connections.
    pub(super) async fn look_again<Renewed>(
        &self,
        renew: impl FnOnce() -> Renewed,
    ) -> Result<(), StoreError>
    where
        Renewed: Future<Output = Result<(), StoreError>>,
    {
        let known = self.damage();
        let Ok(mut next_look) = self.next_look.try_lock() else { return Ok(()) };
        let is_early = next_look.is_some_and(|next| Instant::now() < next);
        if known == 0 || is_early || self.check_files().is_err() {
            return Ok(());
        }
        let begun = Instant::now();
        let looked = sqlite::open_if_intact(&self.files[0].0).await;
        // A large file takes long, and is to be read seldom.
        *next_look = Some(Instant::now() + (begun.elapsed() * 10).max(LOOK_INTERVAL));
        // Why it cannot be read is what reading says next.
        let Ok(Some(looking)) = looked else { return Ok(()) };
        renew().await?;
        looking.close().await?;
        // Unless one of the earlier connections has found some meanwhile.
        if self.check_files().is_ok()
            && self.damage.compare_exchange(known, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::warn!(file = %self.files[0].0.display(), "the database is intact and is used again: what looked like damage came from the disk, which has failed for a moment: see the system log");
        }
        Ok(())
    }

    /// Takes what the database says about itself: its id, the number of its last revocation, which
    /// must be at least `seen`, and its length with what is still in the `-wal`.
    pub(super) fn compare(
        &self,
        id: Option<&str>,
        last: i64,
        seen: i64,
        length: i64,
    ) -> io::Result<()> {
        // The content is that of another database, or of an older copy.
        if id != Some(&self.id) || last < seen {
            self.spoil("overwritten");
        }
        // Only `VACUUM` makes a database shorter, and then it says so.
        let (_, now) = FileId::read(&self.files[0].0)?;
        let known = self.length.load(Ordering::Relaxed).max(now);
        let known = known.min(u64::try_from(length).unwrap_or(0));
        self.length.store(known, Ordering::Relaxed);
        self.is_truncated.store(now < known, Ordering::Relaxed);
        Ok(())
    }
}

impl OpenFiles {
    /// The number of the last transaction that was noted for the database with this id.
    pub(super) fn noted(&self, id: &str) -> Option<i32> {
        let mut text = [0; 64];
        let length = self.noted.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        text.strip_prefix(id)?.trim().parse().ok()
    }
}

/// The number of the last transaction that is in the file itself, which lacks what is still in the
/// `-wal`. `None`: the file is empty.
pub(super) fn stored_number(database: &File) -> io::Result<Option<i32>> {
    let read = || {
        let mut number = [0; 4];
        match database.read_exact_at(&mut number, NUMBER_AT as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(|()| Some(i32::from_be_bytes(number))),
        }
    };
    loop {
        // SQLite may be writing it.
        let first = read()?;
        if read()? == first {
            return Ok(first);
        }
    }
}

/// Whether one number of a transaction is before another. They wrap around.
pub(super) fn is_before(number: i32, other: i32) -> bool {
    number.wrapping_sub(other) < 0
}

/// How long to wait at least before a database is read again that was found damaged.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Where the number is in a database (SQLite's file format, §1.3).
pub(super) const NUMBER_AT: usize = 60;

/// The database, and the files through which its users share what is not in it yet. The others are
/// made anew where they are missing, and then two users do not see what the other one writes.
fn files(database: &Path) -> [PathBuf; 4] {
    ["", "-wal", "-shm", "-lock"].map(|suffix| with_suffix(database, suffix))
}

fn joined(inodes: impl Iterator<Item = u64>) -> String {
    inodes.map(|inode| inode.to_string()).collect::<Vec<_>>().join("-")
}

impl FileId {
    fn read(path: &Path) -> io::Result<(Self, u64)> {
        let metadata = fs::metadata(path)?;
        Ok((Self { device: metadata.dev(), inode: metadata.ino() }, metadata.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use sqlx::Executor;

    use crate::store::{News, RevocationRow, Store, test_settings, with_suffix};

    /// The reader that finds it need not be the one that follows the revocations.
    #[tokio::test]
    async fn damage_that_one_reader_finds_ends_all_writes() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let writer = store.connections.writer();
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
        let database = settings.database.file().unwrap();
        let database = std::fs::OpenOptions::new().write(true).open(database).unwrap();
        for page in 1..database.metadata().unwrap().len() / 4096 {
            database.write_all_at(&[0xff; 4096], page * 4096).unwrap();
        }
        assert_eq!(store.problem(), None);
        store.account_by_email("ann@example.com").await.unwrap_err();
        let problem = store.problem().unwrap_or_default();
        assert!(problem.contains("was damaged while it was in use"), "{problem}");
        assert!(problem.contains("if not, stop it, restore the database"), "{problem}");
        // Closing the file has dropped the locks that SQLite holds on it.
        drop(database);
        store.close().await;
    }

    /// As if the disk had returned something else for a moment: the file was always intact.
    #[tokio::test]
    async fn what_only_looked_damaged_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let store = Store::open(&settings).await.unwrap();
        let other = Store::open(&settings).await.unwrap();
        store.news_after(0).await.unwrap();
        store.connections.writer().execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
        let path = settings.database.file().unwrap();
        let intact = std::fs::read(path).unwrap();
        let database = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        for page in 1..intact.len() as u64 / 4096 {
            database.write_all_at(&[0xff; 4096], page * 4096).unwrap();
        }
        store.account_by_email("ann@example.com").await.unwrap_err();
        for _ in 0..2 {
            store.news_after(0).await.unwrap_err();
            let files = store.connections.identity().unwrap().files().unwrap();
            assert!(files.next_look.lock().await.take().is_some(), "it has looked");
            let problem = store.problem().unwrap_or_default();
            assert!(problem.contains("was damaged while it was in use"), "{problem}");
        }

        database.write_all_at(&intact, 0).unwrap();
        store.news_after(0).await.unwrap();
        assert_eq!(store.problem(), None);
        // What was read before is forgotten.
        assert_eq!(store.account_by_email("ann@example.com").await.unwrap(), None);
        let row = RevocationRow {
            kind: "jti".into(),
            value: "t".into(),
            scope: "*".into(),
            revoked_at: 1,
            seq: 0,
        };
        other.revoke(std::slice::from_ref(&row)).await.unwrap();
        let News::Rows(rows) = store.news_after(0).await.unwrap() else {
            panic!("another history")
        };
        assert_eq!(rows.len(), 1);
        store.revoke(&[RevocationRow { value: "u".into(), ..row }]).await.unwrap();
        assert_eq!(other.revocations_after(0).await.unwrap().len(), 2);
        drop(database);
    }

    /// As long as the database itself is untouched, what is only in the `-wal` is saved in the end.
    #[tokio::test]
    async fn a_deleted_wal_is_copied_when_the_database_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let database = settings.database.file().unwrap().to_owned();
        let wal = with_suffix(&database, "-wal");
        for copy_is_put_back in [false, true] {
            let store = Store::open(&settings).await.unwrap();
            store.connections.writer().execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
            let older = std::fs::read(&database).unwrap();
            store.record_running_seconds(7).await.unwrap();
            if copy_is_put_back {
                store.connections.writer().execute("PRAGMA wal_checkpoint").await.unwrap();
            }
            std::fs::remove_file(&wal).unwrap();
            assert!(store.problem().unwrap_or_default().contains("-wal was deleted"));
            if copy_is_put_back {
                std::fs::write(&database, &older).unwrap();
            }
            store.close().await;
            drop(store);
            if copy_is_put_back {
                assert!(std::fs::read(&database).unwrap() == older, "nothing is mixed into it");
                Store::open(&settings).await.unwrap_err();
            } else {
                let store = Store::open(&settings).await.unwrap();
                assert_eq!(store.running_seconds().await.unwrap(), 7);
                store.close().await;
            }
        }
    }
}
