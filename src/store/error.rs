//! Why the store cannot be used, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::io::Errno;
use sqlx::migrate::MigrateError;

use super::{SealError, postgres, with_suffix};

/// Why the store cannot be used. `Display` says what to do if something can be done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database or a file next to it cannot be created or opened.
    #[error("the file {} cannot be opened or created: {source}; {}", path.display(), remedy(source))]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The sessions are in Redis, which cannot be used.
    #[error("the sessions in Redis cannot be used: {cause}")]
    Sessions {
        /// Why, and what to do.
        cause: String,
    },
    /// The file is of another kind.
    #[error("{} is not an SQLite database; name another file in `[store] database`, or restore a backup", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// The files next to the database are not the same for everyone who uses it.
    #[error("the database {} {how}: under another name, other files are next to it, and changes that were acknowledged would be lost", path.display())]
    OtherName {
        /// The file.
        path: PathBuf,
        /// Why it has another name, and what to do.
        how: &'static str,
    },
    /// The tables were in a `-wal` that is lost, or were never made.
    #[error("the database {} has no tables: what was in it is lost; restore a backup, or move it away and start with `portcullis run --new-store`, without any account, session or revocation", path.display())]
    NoTables {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote the database.
    #[error(
        "the database {database} was made by a newer version of portcullis (its schema has step {step}, which this version does not know); start the newer version, or restore a backup"
    )]
    Newer {
        /// The database.
        database: String,
        /// The first unknown schema step.
        step: i64,
    },
    /// Another process has been bringing the schema up to date for a long time.
    #[error("another process has kept {} locked for too long, as if it were updating the database's schema; find it with `fuser` and stop it", path.display())]
    Locked {
        /// The file that is locked in the meantime.
        path: PathBuf,
    },
    /// The database belongs to another program.
    #[error(
        "the database {database} has no tables of portcullis; if it belongs to another program, name another one in `[store] database`; if it was just being created, try again"
    )]
    Foreign {
        /// The database.
        database: String,
    },
    /// An older version wrote the database, and a command that only reads does not bring it up to
    /// date.
    #[error(
        "the database {database} was made by an older version of portcullis; start the gateway, which updates it, then try again"
    )]
    Older {
        /// The database.
        database: String,
    },
    /// PostgreSQL does not answer, or refuses the connection.
    #[error("the database {database} cannot be reached: {source}{advice}", advice = advice(source))]
    Unreachable {
        /// The database.
        database: String,
        /// Why.
        source: Box<sqlx::Error>,
    },
    /// Another process has been bringing the schema up to date for a long time.
    #[error(
        "another process has been updating the schema of {database} for more than a minute; see `pg_stat_activity`, and try again"
    )]
    Migrating {
        /// The database.
        database: String,
    },
    /// The name leads to another database than before.
    #[error(
        "{database} is no longer the database that was opened: it has another id; restore that one, or restart the gateway to use this one"
    )]
    OtherDatabase {
        /// The database.
        database: String,
    },
    /// The server repeats what another one writes, with a delay that nobody bounds.
    #[error(
        "the server of {database} is a standby, which may be far behind; let `[store] database` name the primary"
    )]
    Standby {
        /// The database.
        database: String,
    },
    /// `store copy` was interrupted.
    #[error(
        "the database {database} holds a part of a copy; run `portcullis store copy` again with --resume"
    )]
    UnfinishedCopy {
        /// The database.
        database: String,
    },
    /// The schema cannot be brought up to date.
    #[error("the database's schema cannot be updated: {0}{advice}", advice = advice_on(.0))]
    Migrate(#[source] MigrateError),
    /// A statement failed.
    #[error("the database failed: {0}{advice}", advice = advice(.0))]
    Database(#[from] sqlx::Error),
    /// The file is no longer the one that was opened.
    #[error("the file {} was {how} while it was in use, so new writes would be lost; {}", path.display(), remedy_of_loss(path, how))]
    Lost {
        /// The file.
        path: PathBuf,
        /// What happened to it.
        how: &'static str,
    },
    /// The last process that used the database was killed, and the `-wal` is not as it left it.
    #[error("the file {} is missing or damaged: it held changes that were acknowledged before a process was killed; put it back, or restore a backup; to go on without these changes, which may be revocations, delete {} and {}", with_suffix(path, "-wal").display(), with_suffix(path, "-shm").display(), with_suffix(path, "-lock").display())]
    LostChanges {
        /// The database file.
        path: PathBuf,
    },
    /// The database is older than when it was last used.
    #[error("the database {} lacks changes that were acknowledged: it is an older copy, or its `-wal` was deleted after a process was killed; put the right file back; to go on without these changes, which may be revocations, delete {}", path.display(), with_suffix(path, "-lock").display())]
    Behind {
        /// The database file.
        path: PathBuf,
    },
    /// The `-wal` does not continue the database.
    #[error("the database {} is not what the file {} continues, such as a copy that was put back: both together would be corrupted; put the right file back; to use this one without what is in the other, which may be revocations, delete {1}, {} and {}", path.display(), with_suffix(path, "-wal").display(), with_suffix(path, "-shm").display(), with_suffix(path, "-lock").display())]
    OtherCopy {
        /// The database file.
        path: PathBuf,
    },
    /// A gateway uses a different database from the one that a command has opened, or has lost its own.
    #[error("a running gateway has a different file open than the one that is now at {}, or another `-wal`, `-shm` or `-lock` next to it, or what it had open was overwritten, so it would not see the change; see its `/readyz`, restart it, and try again", path.display())]
    DifferentDatabase {
        /// The database file.
        path: PathBuf,
    },
    /// Any token issued now would be cut off.
    #[error("the account's tokens are revoked until {}, which is ahead of this machine's clock; correct the clock that is wrong, then run `portcullis user end-sessions EMAIL --now`", format_time(*until))]
    CutOffAhead {
        /// The id of the account.
        account: String,
        /// Unix seconds.
        until: i64,
    },
    /// The client has more reads waiting than the database answers in time.
    #[error("the client has too many requests at once that read from the database")]
    TooManyReads,
    /// The process is about to end.
    #[error("the gateway is shutting down")]
    Closed,
    /// Something sealed in the database cannot be opened.
    #[error("{0}")]
    Seal(#[from] SealError),
}

impl StoreError {
    /// Whether `[store] key` is not the key of the database.
    pub fn is_wrong_key(&self) -> bool {
        matches!(self, Self::Seal(SealError::WrongKey))
    }

    /// Whether SQLite found the database damaged.
    pub(super) fn is_damage(&self) -> bool {
        let Self::Database(cause) = self else { return false };
        matches!(result_code(cause).map(|code| code & 0xff), Some(11 | 26))
    }
}

pub(super) fn format_time(seconds: i64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(
        UNIX_EPOCH + Duration::from_secs(seconds.max(0).cast_unsigned()),
    )
}

/// The extended result code of an SQLite error.
pub(super) fn result_code(error: &sqlx::Error) -> Option<u32> {
    if postgres::code(error).is_some() {
        return None;
    }
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code)?;
    code.parse().ok()
}

/// What to do about an error: with SQLite, by its primary result code
/// (https://www.sqlite.org/rescode.html).
fn advice(error: &sqlx::Error) -> &'static str {
    if let Some(code) = postgres::code(error) {
        return postgres::advice(&code);
    }
    let code = result_code(error);
    match code.map(|code| code & 0xff) {
        Some(5 | 6) => {
            "; another process has locked the file of `[store] database`: find it with `fuser` and stop it"
        }
        Some(8) => {
            "; allow the user that runs the gateway to write to the file of `[store] database` and to its folder"
        }
        Some(10) if code == Some(778) => {
            "; the disk that holds `[store] database` has an I/O error, or a file size limit was reached (`ulimit -f`, LimitFSIZE=): see the system log"
        }
        Some(10) => "; the disk that holds `[store] database` has an I/O error: see the system log",
        Some(11 | 26) => {
            "; the file of `[store] database` is damaged, or the disk has failed for a moment: restore a backup if this comes again"
        }
        Some(13) => "; the disk that holds `[store] database` is full: free some space",
        Some(14) => {
            "; allow the user that runs the gateway to open the file of `[store] database` and to write to its folder"
        }
        _ => "",
    }
}

/// What to do about a schema step that failed.
fn advice_on(error: &MigrateError) -> &'static str {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => advice(error),
        _ => "",
    }
}

/// What has happened to a file that SQLite finds damaged.
pub(super) const DAMAGED: &str = "damaged";

/// What to do about a file that was lost while it was in use.
fn remedy_of_loss(path: &Path, how: &str) -> &'static str {
    if how == DAMAGED {
        // SQLite also says so if the disk fails while it reads.
        "if the disk has only failed for a moment, the gateway soon goes on by itself; if not, stop it, restore the database, and start it again"
    } else if path.as_os_str().as_encoded_bytes().ends_with(b"-lock") {
        "stop the gateway, put the file back or leave it out, and start the gateway again"
    } else {
        "stop the gateway, restore the database, and start the gateway again"
    }
}

/// What to do about a file that cannot be opened or created.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk that holds it is full: free some space"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "its file system is mounted read-only: mount it writable, or name another file in `[store] database`"
        }
        _ if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
            "the disk that holds it has an I/O error: see the system log"
        }
        _ => "allow the user that runs the gateway to write to it and to its folder",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_error_has_a_fitting_remedy() {
        for (error, remedy) in [
            (Errno::NOSPC, "free some space"),
            (Errno::ROFS, "mount it writable"),
            (Errno::IO, "see the system log"),
            (Errno::ACCESS, "allow the user"),
        ] {
            let open = StoreError::Open { path: "a.db".into(), source: error.into() };
            assert!(open.to_string().contains(remedy), "{open}");
        }
    }
}
