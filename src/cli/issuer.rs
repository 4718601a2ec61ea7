//! What the commands for the built-in issuer share: its policy, and its part of the store.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;

use super::{Failure, print};
use crate::clock::Clock;
use crate::compile::{CompileOptions, Compiled};
use crate::config::value::CreateFiles;
use crate::config::{self, Problem, Problems};
use crate::gateway::Snapshot;
use crate::identity::session_store::SessionStore;
use crate::identity::{Accounts, Policy};
use crate::redis::Redis;
use crate::store::{CommandEvent, GATEWAY_TIMEOUT, Store, StoreError, StoreSettings};
use crate::telemetry::metrics::Metrics;
use crate::token::install_crypto;

/// The built-in issuer of a file, as commands use it.
pub(super) struct Issuer {
    pub(super) policy: Arc<Policy>,
    pub(super) store: Store,
    pub(super) sessions: SessionStore,
    pub(super) accounts: Accounts,
    pub(super) now: u64,
}

impl Issuer {
    /// Leaves an audit event for the log of a gateway: what was just done to an account.
    pub(super) async fn record(&self, event: &str, account: &str) -> Result<(), Failure> {
        self.record_for(event, account, 1).await
    }

    /// The same for what was done to several accounts at once.
    pub(super) async fn record_several(&self, event: &str, accounts: usize) -> Result<(), Failure> {
        self.record_for(event, "", i64::try_from(accounts).unwrap_or(i64::MAX)).await
    }

    async fn record_for(&self, event: &str, account: &str, accounts: i64) -> Result<(), Failure> {
        let event = CommandEvent {
            done_at: Clock::system().unix_seconds().cast_signed(),
            event: event.to_owned(),
            account: account.to_owned(),
            accounts,
            uid: user_of_machine().into(),
        };
        self.store.add_command_event(&event).await.map_err(|error| {
            Failure::Other(format!(
                "it is done, but no log will say so (`{}`): {error}",
                event.event
            ))
        })
    }
}

/// The user who logged in to the machine, also behind `sudo`; if the system does not know, the user
/// that the command runs as.
fn user_of_machine() -> u32 {
    // Linux keeps it for its audit log; the highest number means none.
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login = login.and_then(|text| text.trim().parse().ok()).filter(|uid| *uid != u32::MAX);
    login.unwrap_or_else(|| rustix::process::getuid().as_raw())
}

/// How a command uses the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It only reads: a missing database is not created.
    Reads,
    /// It may create the database.
    Writes(CreateFiles),
}

/// Runs `work` with the issuer of a file, and prints the text that it returns. Before that, waits
/// until every gateway that runs on its store knows the revocations and keys that it created.
///
/// # Errors
/// The file is wrong, has no built-in issuer, or its store cannot be used; or `work` fails; or a
/// gateway does not know what was done.
pub(super) fn with_issuer(
    path: &Path,
    usage: Use,
    work: impl AsyncFnOnce(&Issuer) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let now = Clock::system().unix_seconds();
    let loaded = config::load(path)?;
    let (source, section) =
        (loaded.source.clone(), loaded.file.store.as_ref().map_or(0..0, Spanned::span));
    let create = match usage {
        Use::Reads => CreateFiles::No,
        Use::Writes(create) => create,
    };
    let options = CompileOptions { previous: None, create, metrics: &Metrics::new(), now };
    let Compiled { snapshot, .. } = Snapshot::compile(loaded, &options)?;
    let (Some(policy), Some(settings)) = (snapshot.identity.clone(), snapshot.start.store.clone())
    else {
        let problem = Problem::error(
            section,
            "there is no `[identity]`, so this file has no built-in issuer and no accounts",
        )
        .help("add `[identity]` with `issuer = \"…\"`, and a route with `identity = true`");
        return Err(Problems::new(source, vec![problem]).into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = match usage {
            Use::Reads => {
                Store::open_read_only(&settings).await?.ok_or_else(|| absent(&settings))?
            }
            Use::Writes(_) => {
                Store::check_gateways(&settings)?;
                note_if_new(&settings);
                Store::open(&settings).await?
            }
        };
        let sessions = SessionStore::new(store.clone(), connect(&snapshot).await);
        let accounts = Accounts::new(store.clone(), None);
        let issuer = Issuer { policy, store, sessions, accounts, now };
        let act = async {
            let done = work(&issuer).await?;
            let known = match usage {
                Use::Reads => Ok(()),
                Use::Writes(_) => await_gateways(&issuer.store, &settings).await,
            };
            print(&done)?;
            known
        };
        let done = act.await;
        issuer.store.close().await;
        done
    })
}

/// The Redis of the file, if sessions are in it. What needs a server that is away reports that.
async fn connect(snapshot: &Snapshot) -> Option<Arc<Redis>> {
    let settings = snapshot.start.redis.as_ref().filter(|redis| redis.holds_sessions())?;
    install_crypto();
    let redis = Redis::start(settings, &Clock::system(), &Metrics::new())?;
    let _ = redis.connect_once().await;
    Some(redis)
}

fn absent(settings: &StoreSettings) -> Failure {
    Failure::Other(format!(
        "there is no database {}: a gateway creates it at start, as does `user add`; if there was one, `[store] database` names \
         another file, or its volume is not mounted",
        settings.database
    ))
}

/// Prints a note if the command is about to create the database, which usually exists.
pub(super) fn note_if_new(settings: &StoreSettings) {
    if settings.database.file().is_some_and(|file| !file.exists()) {
        eprintln!("note: there is no database {}: creating one", settings.database);
    }
}

/// Waits until every gateway that runs on the store has read what was written.
///
/// # Errors
/// One of them has not, uses another database, or it is unknown.
pub(super) async fn await_gateways(store: &Store, settings: &StoreSettings) -> Result<(), Failure> {
    let problem = match store.wait_for_gateways(settings).await {
        Ok(0) => return Ok(()),
        Err(error @ StoreError::DifferentDatabase { .. }) => return Err(error.into()),
        Ok(1) => format!(
            "a gateway that runs on this store has not read it within {} seconds",
            GATEWAY_TIMEOUT.as_secs()
        ),
        Ok(some) => format!(
            "{some} gateways that run on this store have not read it within {} seconds",
            GATEWAY_TIMEOUT.as_secs()
        ),
        Err(error) => {
            format!("it is unknown whether a gateway that runs on this store has read it: {error}")
        }
    };
    Err(Failure::Other(format!(
        "it is done, but {problem}; until then, it uses what it read before: see its `/readyz` and its log, and restart it if it \
         does not recover"
    )))
}

/// Formats columns, each as wide as its widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    format!("{}\n", lines.join("\n"))
}
