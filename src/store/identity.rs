//! Whether the database is still the one that was opened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::database::Postgres;
use super::files::DatabaseFiles;
use super::{StoreError, postgres};

/// What an open database is recognized by.
#[derive(Debug)]
pub(super) enum DatabaseIdentity {
    /// Its files.
    Files(DatabaseFiles),
    /// What the server says.
    Server(ServerIdentity),
}

impl DatabaseIdentity {
    /// Checks that writes go where they went before.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self {
            Self::Files(files) => files.check(),
            Self::Server(server) => server.check(),
        }
    }

    /// The files of an SQLite database.
    pub(super) fn files(&self) -> Option<&DatabaseFiles> {
        match self {
            Self::Files(files) => Some(files),
            Self::Server(_) => None,
        }
    }

    /// Finds out why no connection could be had: a pool does not say it.
    ///
    /// # Errors
    /// The reason. None: there is a connection by now.
    pub(super) async fn diagnose(&self) -> Result<(), StoreError> {
        match self {
            Self::Files(_) => Ok(()),
            Self::Server(server) => postgres::probe(&server.database).await.map(drop),
        }
    }

    /// Notes that SQLite found the database damaged: what is written now may be lost.
    pub(super) fn record_damage(&self) {
        if let Self::Files(files) = self {
            files.record_damage();
        }
    }
}

/// A database of PostgreSQL: its random id, and the server process that answers for it.
///
/// A standby that takes over may lack the last second of what was acknowledged. It is another server
/// process, as is one that was restarted or restored, so its history must be compared with what is
/// known here. The number of the last revocation alone would not show it: the new server may have
/// given the same numbers again.
#[derive(Debug)]
pub(super) struct ServerIdentity {
    database: Postgres,
    id: String,
    is_other: AtomicBool,
    /// The history that is known here. `None`: nothing was read yet.
    history: Mutex<Option<String>>,
}

impl ServerIdentity {
    /// `id` is the random id of the database.
    pub(super) fn new(database: Postgres, id: String) -> Self {
        Self { database, id, is_other: AtomicBool::new(false), history: Mutex::default() }
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.is_other.load(Ordering::Relaxed) {
            return Err(StoreError::OtherDatabase { database: self.database.to_string() });
        }
        Ok(())
    }

    /// Takes what the server says: the random id of its database, and which history it is. Returns
    /// whether that is the history that is known here.
    ///
    /// # Errors
    /// It is another database.
    pub(super) fn compare(&self, id: Option<&str>, history: &str) -> Result<bool, StoreError> {
        self.is_other.store(id != Some(&self.id), Ordering::Relaxed);
        self.check()?;
        Ok(self.history().as_deref().is_none_or(|known| known == history))
    }

    /// Notes that this history is known here.
    pub(super) fn accept(&self, history: &str) {
        let mut known = self.history();
        if known.as_deref() != Some(history) {
            *known = Some(history.to_owned());
        }
    }

    /// The history that is known here, or nothing.
    pub(super) fn known_history(&self) -> String {
        self.history().clone().unwrap_or_default()
    }

    fn history(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
