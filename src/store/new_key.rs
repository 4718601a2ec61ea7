//! A key that was made for a database that is not there yet.
//!
//! A key without its database is what remains where the database was lost, and no gateway starts on
//! that. So a first start that fails must leave no key behind.

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
    /// A key that is made at this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path, is_kept: AtomicBool::new(false) }
    }

    /// Something was written to the database: it needs the key from now on.
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
