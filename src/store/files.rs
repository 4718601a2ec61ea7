//! Checks whether the database is still the one that was opened.
//!
//! A file that is deleted or replaced stays open: SQLite keeps writing to it, and nothing will ever
//! read that again. So writes are acknowledged only while the files are where they were. The files
//! are looked up by name and never opened here: closing a file of a database drops the locks that
//! SQLite holds on it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{StoreError, wal, with_suffix};

/// The files of an open database, and its random id.
#[derive(Debug)]
pub(super) struct DatabaseFiles {
    files: Vec<(PathBuf, FileId)>,
    /// The index of the `-wal`.
    index: Option<Arc<File>>,
    id: String,
    /// How long the database was when it was last looked at.
    length: AtomicU64,
    is_truncated: AtomicBool,
    /// The content is that of another database, or of an older copy.
    is_other: AtomicBool,
    is_damaged: AtomicBool,
}

/// The file that a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl DatabaseFiles {
    /// The files as they are now. Call this while the database is open.
    pub(super) fn record(
        database: &Path,
        id: String,
        index: Option<Arc<File>>,
    ) -> io::Result<Self> {
        let files = files(database).into_iter().map(|path| {
            let (file, _) = FileId::read(&path)?;
            Ok((path, file))
        });
        let files = files.collect::<io::Result<_>>()?;
        Ok(Self {
            files,
            index,
            id,
            length: AtomicU64::new(0),
            is_truncated: AtomicBool::new(false),
            is_other: AtomicBool::new(false),
            is_damaged: AtomicBool::new(false),
        })
    }

    /// The name that gateways and commands use for the database while they have the same one open.
    /// Another copy of it has another name.
    pub(super) fn name(&self) -> String {
        let inodes = self.files.iter().map(|(_, file)| file.inode);
        format!("{}/{}", self.id, joined(inodes))
    }

    /// What follows the id in the [`name`](Self::name) of a database that is opened now.
    pub(super) fn inodes_now(database: &Path) -> String {
        joined(
            files(database).iter().map(|path| FileId::read(path).map_or(0, |(file, _)| file.inode)),
        )
    }

    /// Checks that everything is where it was. Costs a few system calls.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let lost = |path: &Path, how| Err(StoreError::Lost { path: path.to_owned(), how });
        for (path, opened) in &self.files {
            match FileId::read(path) {
                Ok((file, _)) if file != *opened => return lost(path, "replaced"),
                // The other two are sometimes empty.
                Ok((_, 0)) if path == &self.files[0].0 => return lost(path, "emptied"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return lost(path, "deleted or moved away");
                }
                Err(source) => return Err(StoreError::Open { path: path.clone(), source }),
            }
        }
        let [(database, _), (log, _), _] = &self.files[..] else { return Ok(()) };
        if self.is_truncated.load(Ordering::Relaxed) {
            return lost(database, "truncated");
        }
        if let Some(index) = &self.index
            && wal::is_truncated(log, index)
                .map_err(|source| StoreError::Open { path: log.clone(), source })?
        {
            return lost(log, "truncated");
        }
        if self.is_other.load(Ordering::Relaxed) {
            return lost(database, "overwritten");
        }
        if self.is_damaged.load(Ordering::Relaxed) {
            return lost(database, "damaged");
        }
        Ok(())
    }

    /// Notes that a part of the database cannot be read. The database counts as damaged until an
    /// intact one is opened.
    pub(super) fn record_damage(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
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
        self.is_other.store(id != Some(&self.id) || last < seen, Ordering::Relaxed);
        // Only `VACUUM` makes a database shorter, and then it says so.
        let (_, now) = FileId::read(&self.files[0].0)?;
        let known = self.length.load(Ordering::Relaxed).max(now);
        let known = known.min(u64::try_from(length).unwrap_or(0));
        self.length.store(known, Ordering::Relaxed);
        self.is_truncated.store(now < known, Ordering::Relaxed);
        Ok(())
    }
}

/// The database, and the files through which its users share what is not in it yet. SQLite makes
/// the others anew where they are missing, and then two users do not see what the other one writes.
fn files(database: &Path) -> [PathBuf; 3] {
    [database.to_owned(), with_suffix(database, "-wal"), with_suffix(database, "-shm")]
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

    use crate::store::{Store, test_settings};

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
        // Closing the file has dropped the locks that SQLite holds on it.
        drop(database);
        store.close().await;
    }
}
