//! Databases for tests: an SQLite file, or a database of the PostgreSQL server that
//! `PORTCULLIS_TEST_POSTGRES` names, so that the same tests run on both.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Database, Postgres, StoreSettings};
use crate::config::value::SecretBytes;

/// Names the server that the tests use instead of SQLite: a URL without a database.
pub(crate) const SERVER: &str = "PORTCULLIS_TEST_POSTGRES";

/// The settings of a database that belongs to this folder. The same folder has the same one.
#[expect(clippy::disallowed_methods, reason = "the server is named by the test that starts it")]
pub(crate) fn test_settings(folder: &Path) -> StoreSettings {
    let database = match std::env::var(SERVER) {
        Ok(server) => Database::Postgres(postgres(&server, folder)),
        Err(_) => Database::File(folder.join("a b%.db")),
    };
    StoreSettings {
        database,
        key: SecretBytes::new(b"a key for tests, long enough to be one".to_vec()),
        made_key: None,
        first_start: None,
        poll: Duration::from_millis(50),
    }
}

pub(super) fn postgres(server: &str, folder: &Path) -> Postgres {
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    let name = format!("t{:x}", hasher.finish());
    // Another store of the same folder may have made it.
    let creating = format!("CREATE DATABASE {name}");
    let made =
        Command::new("psql").args([&format!("{server}/postgres"), "-qc", &creating]).output();
    let made = made.unwrap();
    let error = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success() || error.contains("already exists"), "{error}");
    Postgres::parse(&format!("{server}/{name}"), true, false).unwrap()
}
