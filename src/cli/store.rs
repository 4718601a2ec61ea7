//! `portcullis store`: the database behind the gateways.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::{Failure, print};
use crate::clock::Clock;
use crate::config::value::{CreateFiles, SecretBytes};
use crate::process;
use crate::redis::{Redis, RedisSettings};
use crate::store::{
    CopyError, Database, Postgres, Store, StoreSettings, StoreStatus, UrlError, copy,
};
use crate::telemetry::metrics::Metrics;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Copy accounts, keys, sessions and revocations to another database. Stop the gateways first.
    /// The copy needs the same `[store] key`.
    Copy(Copy),
    /// Show which database the file names, and which gateways use it.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Copy {
    /// The database to copy: `sqlite:PATH` or `postgres://…`. The variable keeps a password off the
    /// command line.
    #[arg(long, value_name = "URL", env = "PORTCULLIS_COPY_FROM", hide_env_values = true)]
    from: String,
    /// The database to copy to. It must be empty.
    #[arg(long, value_name = "URL", env = "PORTCULLIS_COPY_TO", hide_env_values = true)]
    to: String,
    /// Go on with a copy that was interrupted.
    #[arg(long)]
    resume: bool,
    /// Connect to PostgreSQL on another machine without checking its certificate.
    #[arg(long)]
    insecure_database_tls: bool,
}

pub(super) fn store(path: &Path, command: &Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Copy(arguments) => runtime.block_on(copy_store(arguments)),
        Command::Status { json } => runtime.block_on(status(path, *json)),
    }
}

async fn copy_store(arguments: &Copy) -> Result<(), Failure> {
    let from = settings(&arguments.from, arguments.insecure_database_tls)?;
    let to = settings(&arguments.to, arguments.insecure_database_tls)?;
    let is_watched = std::io::stderr().is_terminal();
    let progress = |table: &'static str, rows: u64| {
        if is_watched {
            eprint!("\r{table}: {rows} rows\x1b[K");
        }
    };
    let copied = copy(&from, &to, arguments.resume, progress).await;
    if is_watched {
        eprintln!();
    }
    let counted = match copied {
        // Run again by a script that does not know how far the last one came.
        Err(complete @ CopyError::Complete(_)) => return print(&format!("{complete}\n")),
        copied => copied.map_err(|error| Failure::Other(error.to_string()))?,
    };
    let lines = counted.into_iter().map(|(table, rows)| format!("{rows:>10} {table}\n"));
    let text: String = lines.collect();
    print(&format!(
        "copied {} to {}; both have the same number of rows:\n{text}Now let `[store] database` name the copy, keep the key, and start the gateways.\n",
        from.database, to.database
    ))
}

/// Copying needs no key: sealed secrets are copied as they are.
fn settings(url: &str, permits_unverified: bool) -> Result<StoreSettings, Failure> {
    let database = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let parsed = Postgres::parse(url, false, permits_unverified);
        Database::Postgres(parsed.map_err(|error| match error {
            UrlError::File { .. } => Failure::Usage(error.to_string()),
            error => Failure::Usage(format!(
                "{error}; add `?sslmode=verify-full` for another machine, or give --insecure-database-tls"
            )),
        })?)
    } else if let Some(path) = url.strip_prefix("sqlite:") {
        Database::File(path.strip_prefix("//").unwrap_or(path).into())
    } else {
        return Err(Failure::Usage(
            "a database is `sqlite:PATH` or `postgres://USER@HOST/DATABASE`".to_owned(),
        ));
    };
    let (key, poll) = (SecretBytes::new(Vec::new()), Duration::from_millis(50));
    Ok(StoreSettings { database, key, made_key: None, first_start: None, poll })
}

async fn status(path: &Path, json: bool) -> Result<(), Failure> {
    let compiled =
        process::compile(path, None, CreateFiles::No, &Metrics::new(), &Clock::system())?;
    let start = compiled.snapshot.start;
    let settings = start.store.ok_or_else(|| {
        Failure::Other("this file has no [store] and no [identity]: nothing is stored".to_owned())
    })?;
    let database = settings.database.to_string();
    let Some(store) = Store::open_read_only(&settings).await? else {
        return Err(Failure::Other(format!("there is no database {database} yet")));
    };
    let status = store.status(&settings).await?;
    let redis = match &start.redis {
        Some(settings) => Some(ask_redis(settings, &store).await?),
        None => None,
    };
    store.close().await;
    if json {
        return print(&format!("{:#}\n", as_json(&database, &status, redis.as_ref())));
    }
    let kind = if status.is_shared { "PostgreSQL" } else { "SQLite" };
    let seen = match status.silence {
        Some(seconds) => format!(", the last one {seconds} s ago"),
        None => String::new(),
    };
    let (server, sessions) = match &redis {
        None => (String::new(), format!("{} open", status.sessions)),
        Some(redis) => (redis.row(), redis.sessions(&status)),
    };
    print(&format!(
        "database      {database} ({kind})\n{server}schema        step {}\ngateways      {} running{seen}; {} have not read the last revocation\n\
         accounts      {}\nsessions      {sessions}\nrevocations   {}, the last with number {}\nsigning keys  {}\n",
        status.schema,
        status.gateways,
        status.behind,
        status.accounts,
        status.revocations,
        status.last_revocation,
        status.signing_keys,
    ))
}

/// The Redis of the file, as far as it answers.
struct InRedis {
    address: String,
    /// Why it cannot be used.
    problem: Option<String>,
    /// Whether the sessions are there.
    holds_sessions: bool,
    /// How many are open there. `None`: that is not known.
    open: Option<usize>,
}

async fn ask_redis(settings: &RedisSettings, store: &Store) -> Result<InRedis, Failure> {
    crate::token::install_crypto();
    let mut asked = InRedis {
        address: settings.address().to_owned(),
        problem: None,
        holds_sessions: settings.holds_sessions(),
        open: None,
    };
    let Some(redis) = Redis::start(settings, &Clock::system(), &Metrics::new()) else {
        return Ok(asked);
    };
    if let Err(away) = redis.connect_once().await {
        asked.problem = Some(away.to_string());
    } else if asked.holds_sessions {
        match redis.open_sessions().await {
            Ok(sessions) => {
                let current = store.generations().await?;
                let is_open = |(account, generation): &&(String, i64)| {
                    current.get(account) == Some(generation)
                };
                asked.open = Some(sessions.iter().filter(is_open).count());
            }
            Err(away) => asked.problem = Some(away.to_string()),
        }
    }
    Ok(asked)
}

impl InRedis {
    fn row(&self) -> String {
        let state = self.problem.as_deref().unwrap_or("answers");
        format!("redis         {} ({state})\n", self.address)
    }

    fn sessions(&self, status: &StoreStatus) -> String {
        match (self.holds_sessions, self.open) {
            (false, _) => format!("{} open, in the database", status.sessions),
            (true, Some(open)) => format!("{open} open, in Redis"),
            (true, None) => "in Redis, which cannot be asked".to_owned(),
        }
    }
}

fn as_json(database: &str, status: &StoreStatus, redis: Option<&InRedis>) -> serde_json::Value {
    let in_redis = redis.filter(|redis| redis.holds_sessions);
    json!({
        "database": database,
        "kind": if status.is_shared { "postgresql" } else { "sqlite" },
        "schema": status.schema,
        "replicas": status.gateways,
        "replicas_behind": status.behind,
        "lag_seconds": status.silence,
        "accounts": status.accounts,
        "sessions": in_redis.map_or(json!(status.sessions), |redis| json!(redis.open)),
        "sessions_in": if in_redis.is_some() { "redis" } else { "database" },
        "redis": redis.map(|redis| json!({ "address": redis.address, "problem": redis.problem })),
        "revocations": status.revocations,
        "last_revocation": status.last_revocation,
        "signing_keys": status.signing_keys,
    })
}
