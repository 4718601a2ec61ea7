//! Which database the store uses: an SQLite file, or PostgreSQL for several replicas.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use zeroize::Zeroizing;

/// A database, as `[store] database` names it. `Display` shows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// An SQLite file.
    File(PathBuf),
    /// A PostgreSQL database.
    Postgres(Postgres),
}

impl Database {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Postgres(_) => None,
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Postgres(postgres) => postgres.fmt(f),
        }
    }
}

/// The URL of a PostgreSQL database, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Postgres {
    url: Zeroizing<String>,
    shown: String,
    caches_statements: bool,
}

/// Why a URL of a PostgreSQL database is refused. `Display` shows no part of the URL that may be
/// secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It cannot be read.
    #[error("the URL of the database cannot be read")]
    Unreadable,
    /// A file of the URL is missing, or cannot be read.
    #[error("`{parameter}` names `{file}`, which cannot be read: {cause}")]
    File {
        /// The parameter.
        parameter: String,
        /// The file that it names.
        file: String,
        /// Why.
        cause: String,
    },
    /// The connection to another machine would not check who answers.
    #[error("the connection to PostgreSQL on `{host}` would not check the server's certificate")]
    Unverified {
        /// The other machine.
        host: String,
    },
}

impl Postgres {
    /// Reads a URL. `caches_statements` is false behind a pooler that gives each transaction another
    /// connection. With `permits_unverified`, the server on another machine need not prove its
    /// identity.
    pub fn parse(
        url: &str,
        caches_statements: bool,
        permits_unverified: bool,
    ) -> Result<Self, UrlError> {
        if url.contains('#') {
            return Err(UrlError::Unreadable);
        }
        let options: PgConnectOptions = url.parse().map_err(|_| UrlError::Unreadable)?;
        let host = options.get_host().trim_matches(['[', ']']);
        let is_local = options.get_socket().is_some()
            || host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        let is_verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
        if !is_local && !is_verified && !permits_unverified {
            return Err(UrlError::Unverified { host: host.to_owned() });
        }
        check_files(url)?;
        let place = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let database = options.get_database().unwrap_or(options.get_username());
        let shown = format!("postgres://{place}/{database}");
        let mut url = Zeroizing::new(url.to_owned());
        let mut add = |parameter: &str| {
            let separator = if url.contains('?') { '&' } else { '?' };
            url.push(separator);
            url.push_str(parameter);
        };
        if options.get_application_name().is_none() {
            add("application_name=portcullis");
        }
        if !caches_statements {
            add("statement-cache-capacity=0");
        }
        Ok(Self { url, shown, caches_statements })
    }

    /// The URL to connect to.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Whether a connection keeps its prepared statements.
    pub(super) fn caches_statements(&self) -> bool {
        self.caches_statements
    }
}

/// Whether each file that a URL names can be read: a first connection would report it much later,
/// and each one that follows.
fn check_files(url: &str) -> Result<(), UrlError> {
    let Some((_, query)) = url.split_once('?') else { return Ok(()) };
    for (parameter, file) in form_urlencoded::parse(query.as_bytes()) {
        if FILES.contains(&&*parameter)
            && let Err(error) = std::fs::File::open(&*file)
        {
            let (parameter, file) = (parameter.into_owned(), file.into_owned());
            return Err(UrlError::File { parameter, file, cause: error.to_string() });
        }
    }
    Ok(())
}

/// The parameters that name a file, with their other spellings.
const FILES: [&str; 7] =
    ["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown.fmt(f)
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("shown", &self.shown).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_must_prove_its_identity() {
        let parse = |url: &str| Postgres::parse(url, true, false);
        for local in [
            "postgres://me@127.0.0.1/app",
            "postgres://me@[::1]:6432/app?sslmode=disable",
            "postgresql://localhost/app",
            "postgres:///app?host=/run/postgresql",
            "postgres://me@db.example/app?sslmode=verify-full",
        ] {
            assert!(parse(local).is_ok(), "{local}");
        }
        for (remote, host) in [
            ("postgres://me@db.example/app", "db.example"),
            ("postgres://me@db.example/app?sslmode=verify-ca", "db.example"),
            ("postgres://me@db.example/app?sslmode=require", "db.example"),
            ("postgres://me@localhost/app?host=db.example", "db.example"),
            ("postgres://me@127.0.0.1/app?hostaddr=192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(parse(remote).err(), Some(UrlError::Unverified { host: host.into() }));
            assert!(Postgres::parse(remote, true, true).is_ok());
        }
        assert_eq!(parse("postgres://me@localhost:none/app").err(), Some(UrlError::Unreadable));
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let url = "postgres://me@db.example/app?sslmode=verify-full&sslrootcert=";
        let error = Postgres::parse(&format!("{url}%2Fnope.pem"), true, false).unwrap_err();
        assert!(error.to_string().starts_with("`sslrootcert` names `/nope.pem`, which cannot"));
        let there = tempfile::NamedTempFile::new().unwrap();
        assert!(Postgres::parse(&format!("{url}{}", there.path().display()), true, false).is_ok());
    }

    #[test]
    fn a_password_is_never_shown() {
        let url = "postgres://me:se%23cret@127.0.0.1:6432/app?password=secret";
        let database = Database::Postgres(Postgres::parse(url, false, false).unwrap());
        assert_eq!(database.to_string(), "postgres://127.0.0.1:6432/app");
        assert!(!format!("{database:?}").contains("secret"));
    }
}
