//! Whether the database is still the one that was opened.
//!
//! A file that is deleted or replaced stays open: SQLite goes on writing to it, and nobody will ever
//! read that again. So what was written is acknowledged only while the files are where they were.
//! They are looked at by name and never opened here: closing a file of a database drops the locks
//! that SQLite holds on it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{StoreError, beside};

/// The files of an open database, and its random id.
#[derive(Debug)]
pub(super) struct Place {
    files: Vec<(PathBuf, FileId)>,
    id: String,
    /// Its content is that of another database, or of an older copy.
    is_other: AtomicBool,
    is_damaged: AtomicBool,
}

/// Which file a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl Place {
    /// As the files are now; to be called while the database is open.
    pub(super) fn of(database: &Path, id: String) -> io::Result<Self> {
        let names = [database.to_owned(), beside(database, "-wal"), beside(database, "-shm")];
        let files = names.into_iter().map(|path| {
            let (file, _) = FileId::of(&path)?;
            Ok((path, file))
        });
        let files = files.collect::<io::Result<_>>()?;
        Ok(Self { files, id, is_other: AtomicBool::new(false), is_damaged: AtomicBool::new(false) })
    }

    /// What gateways and commands that have the same database open call it. Another copy of it has
    /// another name.
    pub(super) fn name(&self) -> String {
        let inode = self.files.first().map_or(0, |(_, file)| file.inode);
        format!("{}/{inode}", self.id)
    }

    /// Whether it is all where it was. A few calls of the system.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let lost = |path: &Path, how| Err(StoreError::Lost { path: path.to_owned(), how });
        for (path, opened) in &self.files {
            match FileId::of(path) {
                Ok((file, _)) if file != *opened => return lost(path, "replaced"),
                // The other two are empty at times.
                Ok((_, 0)) if path == &self.files[0].0 => return lost(path, "emptied"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return lost(path, "deleted or moved away");
                }
                Err(source) => return Err(StoreError::Open { path: path.clone(), source }),
            }
        }
        if self.is_other.load(Ordering::Relaxed) {
            return lost(&self.files[0].0, "overwritten");
        }
        if self.is_damaged.load(Ordering::Relaxed) {
            return lost(&self.files[0].0, "damaged");
        }
        Ok(())
    }

    /// A part of it cannot be read. It stays so until a whole one is opened.
    pub(super) fn note_damage(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    /// Told what the database says of itself: its id, and the number of its last revocation, which
    /// is at least `seen`.
    pub(super) fn met(&self, id: Option<&str>, last: i64, seen: i64) {
        self.is_other.store(id != Some(&self.id) || last < seen, Ordering::Relaxed);
    }
}

impl FileId {
    fn of(path: &Path) -> io::Result<(Self, u64)> {
        let metadata = fs::metadata(path)?;
        Ok((Self { device: metadata.dev(), inode: metadata.ino() }, metadata.len()))
    }
}
