//! A key that was made for a database that does not exist yet.
//!
//! A key without its database is what remains after the database was lost, and no gateway starts
//! with that. So a first start that fails must not leave a key behind.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// The file of the key. Dropping this removes the file, unless [`NewKey::keep`] was called.
#[derive(Debug)]
pub struct NewKey {
    path: PathBuf,
    is_kept: AtomicBool,
}

impl NewKey {
    /// A key that was made at this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path, is_kept: AtomicBool::new(false) }
    }

    /// Keeps the file: something was written to the database, which needs the key from now on.
    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for NewKey {
    fn drop(&mut self) {
        if !*self.is_kept.get_mut() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
