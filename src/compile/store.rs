//! `[store]`: the location of persistent data.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::Compiler;
use super::issuers::Inline;
use crate::config::Problem;
use crate::config::file;
use crate::config::value::{self, CreateFiles, SecretRef};
use crate::redis::RedisSettings;
use crate::store::{Database, FirstStart, Postgres, StoreSettings, UrlError};

impl Compiler<'_> {
    /// Outer `None`: a problem was found; inner: there is no store.
    #[expect(
        clippy::option_option,
        reason = "outer: a problem was found; inner: no store is configured"
    )]
    pub(super) fn store(&mut self) -> Option<Option<StoreSettings>> {
        let file = self.file;
        if file.store.is_none() && file.identity.is_none() {
            return Some(None);
        }
        let written = file.store.as_ref().map(Spanned::get_ref);
        let database = match written.and_then(|written| written.database.as_ref()) {
            None => Some(Database::File(self.source.folder().join("portcullis.db"))),
            Some(url) => self.database(url, written.unwrap_or(&file::Store::default())),
        };
        let poll = written.and_then(|written| written.poll.as_ref()).and_then(|text| {
            self.ok_or_report(value::duration(text, SHORTEST_POLL..=LONGEST_POLL))
        });
        let key = match written.and_then(|written| written.key.as_ref()) {
            None => Spanned::new(0..0, SecretRef::created_file("portcullis.key")),
            Some(written) => Spanned::new(written.span(), written.get_ref().created()),
        };
        let of_file = database.as_ref().and_then(Database::file).map(Path::to_owned);
        if self.key_is_lost(&key, database.as_ref()) {
            return None;
        }
        let mut first_start = None;
        if let Some(database) = of_file.as_deref()
            && let Some(file) = key.get_ref().file(self.source.folder())
            && self.previous.is_none()
            && self.create != CreateFiles::No
        {
            first_start = self.first_start(database, &file, key.span())?;
        }
        let key_file = key.get_ref().file(self.source.folder()).filter(|file| !file.exists());
        let key = self.read_secret(&key, Inline::Never);
        let (database, key) = (database?, key?);
        let made_key = key_file.filter(|_| self.create != CreateFiles::No);
        if key.expose().len() < SHORTEST_KEY {
            let span = written.and_then(|written| written.key.as_ref()).map_or(0..0, Spanned::span);
            self.error(
                Problem::error(span, format!("the key has {} bytes; it needs at least {SHORTEST_KEY}", key.expose().len()))
                    .help("name a file that does not exist, and the gateway creates it; or make one with `openssl rand -base64 48`"),
            );
            return None;
        }
        let poll = poll.unwrap_or(DEFAULT_POLL);
        Some(Some(StoreSettings { database, key, made_key, first_start, poll }))
    }

    /// Whether this start makes the database and its key. Outer `None`: the database is lost, or it
    /// is unknown whether it is there, which is reported.
    #[expect(
        clippy::option_option,
        reason = "outer: a problem was found; inner: it is not the first start"
    )]
    fn first_start(
        &mut self,
        database: &Path,
        key: &Path,
        span: Range<usize>,
    ) -> Option<Option<FirstStart>> {
        if let Err(error) = database.try_exists() {
            let message =
                format!("the database `{}` cannot be looked at: {error}", database.display());
            self.error(Problem::error(span, message).help(
                "give the user that runs the gateway access to it, and to the folders above it",
            ));
            return None;
        }
        let has_key = key.exists();
        let mut first_start = FirstStart::unfinished(key);
        if !has_key && !is_in_use(database) {
            // Where the marker cannot be created, the key cannot either, which is reported.
            first_start = FirstStart::begin(key).ok();
        }
        // The database is looked at last: another process may just have finished its first start.
        if has_key
            && first_start.is_none()
            && self.create == CreateFiles::Yes
            && !is_in_use(database)
        {
            self.database_is_lost(database, key, span);
            return None;
        }
        Some(first_start)
    }

    /// `[store] redis`. Outer `None`: a problem was found; inner: there is none.
    #[expect(
        clippy::option_option,
        reason = "outer: a problem was found; inner: no Redis is configured"
    )]
    pub(super) fn redis(&mut self) -> Option<Option<RedisSettings>> {
        let section = self.file.store.as_ref().map(Spanned::get_ref);
        let sessions = section.and_then(|section| section.sessions.as_ref());
        let in_redis = match sessions {
            None => Some(false),
            Some(text) => {
                self.ok_or_report(value::choice(text, &[("database", false), ("redis", true)]))
            }
        };
        let Some(written) = section.and_then(|section| section.redis.as_ref()) else {
            if let (Some(text), Some(true)) = (sessions, in_redis) {
                self.error(
                    Problem::error(text.span(), "`sessions = \"redis\"` needs Redis")
                        .help("name a server in `[store] redis`, or remove `sessions`"),
                );
                return None;
            }
            return Some(None);
        };
        let read = self.read_secret(written, Inline::Permitted)?;
        let url = std::str::from_utf8(read.expose()).unwrap_or_default();
        self.check_inline_password(written, url, "REDIS_URL")?;
        match RedisSettings::parse(url) {
            Ok(settings) => Some(Some(settings.with_sessions(in_redis?))),
            Err(error) => {
                self.error(Problem::error(written.span(), error.to_string()).help(
                    "write `redis = { env = \"REDIS_URL\" }`, with a URL such as `redis://127.0.0.1:6379/0`",
                ));
                None
            }
        }
    }

    /// Whether the key of a database in use is missing, which is reported. A new key could not open
    /// the database, and a backup might keep that key instead.
    fn key_is_lost(&mut self, key: &Spanned<SecretRef>, database: Option<&Database>) -> bool {
        // One in a folder that cannot be entered is reported when it is read.
        let is_missing = |file: &PathBuf| file.try_exists().is_ok_and(|exists| !exists);
        let missing = key.get_ref().file(self.source.folder()).filter(is_missing);
        let (Some(file), Some(database)) = (missing, database) else { return false };
        let is_in_use = match database {
            Database::File(path) => is_in_use(path),
            // Whether a server's database is in use is known only where a gateway runs on it.
            Database::Postgres(_) => self.previous.is_some_and(|previous| {
                previous.start.store.as_ref().is_some_and(|store| store.database == *database)
            }),
        };
        if is_in_use {
            let message =
                format!("the key `{}` of the database `{database}` is missing", file.display());
            self.error(Problem::error(key.span(), message).help(
                "restore the key from its backup; to start over, without any account or session, move the database away",
            ));
        }
        is_in_use
    }

    /// The key is made at the first start, together with the database.
    fn database_is_lost(&mut self, database: &Path, key: &Path, span: Range<usize>) {
        let state = if database.exists() { "empty" } else { "missing" };
        let (database, key) = (database.display(), key.display());
        let message = format!("the database `{database}` is {state}, but its key `{key}` exists");
        self.error(Problem::error(span, message).help(
            "restore the database, or mount its volume; to start without any account, session or revocation: `portcullis run --new-store` \
             (also a flag of `user add`, `user invite`, `user import` and `revoke`)",
        ));
    }

    /// The database that a URL names.
    fn database(
        &mut self,
        written: &Spanned<SecretRef>,
        section: &file::Store,
    ) -> Option<Database> {
        // The URL of a database without a password is not secret.
        let read = self.read_secret(written, Inline::Permitted)?;
        let help = "write `database = \"sqlite:portcullis.db\"`, whose relative path starts at this file's folder, \
            or `database = { env = \"DATABASE_URL\" }` with `postgres://USER:PASSWORD@HOST/DATABASE`";
        let Ok(url) = std::str::from_utf8(read.expose()) else {
            self.error(Problem::error(written.span(), "the database URL is not UTF-8").help(help));
            return None;
        };
        let url = url.trim();
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return self.postgres(url, written, section);
        }
        let path = url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
        let problem = match path {
            Some("" | ":memory:") => {
                "the database must be a file: an in-memory database would be lost at a restart"
            }
            Some(path) if path.contains('?') => "parameters in a `sqlite:` URL are not supported",
            Some(path) => return Some(Database::File(self.source.folder().join(path))),
            None => "not a supported database",
        };
        self.error(Problem::error(written.span(), problem).help(help));
        None
    }

    /// A URL in the file itself must not have a password. `None`: it has one, which is reported.
    fn check_inline_password(
        &mut self,
        written: &Spanned<SecretRef>,
        url: &str,
        variable: &str,
    ) -> Option<()> {
        if !written.get_ref().is_inline() || !has_password(url) {
            return Some(());
        }
        let section = self.file.store.as_ref().map(Spanned::get_ref);
        if section.is_some_and(|section| section.insecure_inline_secret) {
            let weakened =
                "store.insecure_inline_secret: a password is in the configuration file".to_owned();
            if !self.weakened.contains(&weakened) {
                self.weakened.push(weakened);
            }
            return Some(());
        }
        let problem = Problem::error(
            written.span(),
            "the URL has a password, and is in the configuration file",
        );
        self.error(problem.help(format!(
            "write `{{ env = \"{variable}\" }}` or `{{ file = \"path\" }}`; to keep it here, set `insecure_inline_secret = true` in this section"
        )));
        None
    }

    fn postgres(
        &mut self,
        url: &str,
        written: &Spanned<SecretRef>,
        section: &file::Store,
    ) -> Option<Database> {
        let caches_statements = section.statement_cache.unwrap_or(true);
        let permits_unverified = section.insecure_database_tls;
        self.check_inline_password(written, url, "DATABASE_URL")?;
        if permits_unverified {
            self.weakened.push(
                "store.insecure_database_tls: who can redirect the connection to the database can read and change every account"
                    .to_owned(),
            );
        }
        match Postgres::parse(url, caches_statements, permits_unverified) {
            Ok(database) => {
                self.shares_database = true;
                Some(Database::Postgres(database))
            }
            Err(error) => {
                let help = match error {
                    UrlError::Unreadable => {
                        "write `postgres://USER:PASSWORD@HOST/DATABASE`, with special characters of the password encoded (`%40` for `@`)"
                    }
                    UrlError::File { .. } => {
                        "put it there, or correct the path, which is relative to the folder in which the gateway starts"
                    }
                    UrlError::Unverified { .. } => {
                        "add `?sslmode=verify-full` to the URL, and `&sslrootcert=/path/ca.pem` for a certificate authority of your own; \
                         in a network that you trust, set `insecure_database_tls = true`"
                    }
                };
                self.error(Problem::error(written.span(), error.to_string()).help(help));
                None
            }
        }
    }
}

/// Whether the part of a URL before the host has a password, or a parameter is one.
fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let user = rest.split(['/', '?']).next().and_then(|part| part.rsplit_once('@'));
    user.is_some_and(|(user, _)| user.contains(':')) || url.contains("password=")
}

/// Whether anything was ever written to a database.
fn is_in_use(database: &Path) -> bool {
    std::fs::metadata(database).is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
}

/// How often other processes' revocations may be read: more often is only load, and more rarely
/// would not keep the bound on revocations.
const SHORTEST_POLL: Duration = Duration::from_millis(10);
const LONGEST_POLL: Duration = Duration::from_secs(1);
const DEFAULT_POLL: Duration = Duration::from_millis(50);

/// A little more than 128 bits in base64url.
const SHORTEST_KEY: usize = 32;
