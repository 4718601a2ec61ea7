//! A first start that has not created its database yet.
//!
//! A key without its database usually means that the database was lost, and no gateway starts then.
//! A first start makes the key before the database, and may fail or be killed in between. So it
//! leaves a marker next to the key until the database exists: where the marker is, the next start
//! goes on.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::with_suffix;

/// A first start, marked by a file next to the key.
#[derive(Clone, Debug)]
pub struct FirstStart {
    marker: PathBuf,
}

impl FirstStart {
    /// Marks that this key is about to be made, and the database after it.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn begin(key: &Path) -> io::Result<Self> {
        let marker = marker(key);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&marker)?;
        file.write_all(NOTE)?;
        Ok(Self { marker })
    }

    /// The first start that made this key, if it has not created the database.
    pub fn unfinished(key: &Path) -> Option<Self> {
        let marker = marker(key);
        marker.exists().then_some(Self { marker })
    }

    /// Removes the marker: the database exists, and needs the key from now on.
    pub(super) fn finish(&self) {
        match fs::remove_file(&self.marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.marker.display(), cause = %error, "cannot remove the marker of a first start; remove it, or a lost database would be created again at the next start");
            }
            _ => {}
        }
    }
}

fn marker(key: &Path) -> PathBuf {
    with_suffix(key, "-first-start")
}

/// What the marker says to a person who finds it.
const NOTE: &[u8] =
    b"The first start has made the key and not yet the database. The next start goes on from here.\n";
