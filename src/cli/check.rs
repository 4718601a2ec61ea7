//! `portcullis check`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, has_colours, print};
use crate::clock::Clock;
use crate::compile::{CompileOptions, Compiled};
use crate::config::value::CreateFiles;
use crate::config::{self, Severity};
use crate::gateway::Snapshot;
use crate::gateway::route::Destination;
use crate::identity::Budgets;
use crate::redis::Redis;
use crate::telemetry::metrics::Metrics;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration file; takes precedence over --config and its variable.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Also ask the Redis server that the file names
    #[arg(long)]
    live: bool,
}

pub(super) fn check(path: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.file.as_deref().unwrap_or(path);
    let loaded = config::load(path)?;
    let tests = loaded.file.test.len();
    let options = CompileOptions {
        previous: None,
        create: CreateFiles::No,
        metrics: &Metrics::new(),
        now: Clock::system().unix_seconds(),
    };
    let Compiled { snapshot, mut warnings } = Snapshot::compile(loaded, &options)?;
    if warnings.list.iter().any(|problem| problem.fails_check) {
        warnings.list.retain(|problem| problem.fails_check);
        for problem in &mut warnings.list {
            problem.severity = Severity::Error;
        }
        return Err(warnings.into());
    }
    if !warnings.list.is_empty() {
        eprint!("{}", warnings.draw(has_colours(&std::io::stderr())));
    }
    let (counted, limited) = (summary(&snapshot, tests), identity_limits(&snapshot));
    print(&format!("{}: {counted}\n{limited}{}", path.display(), weakened_guarantees(&snapshot)))?;
    if arguments.live { check_redis(&snapshot) } else { Ok(()) }
}

/// Asks the Redis server whether it can be used for what the file needs.
fn check_redis(snapshot: &Snapshot) -> Result<(), Failure> {
    let Some(settings) = &snapshot.start.redis else { return print("no Redis to ask\n") };
    crate::token::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let address = settings.address();
    runtime.block_on(async {
        let (clock, metrics) = (Clock::system(), Metrics::new());
        let Some(redis) = Redis::start(settings, &clock, &metrics) else { return Ok(()) };
        let needs = snapshot.issuers.iter().any(|issuer| issuer.revoked_keys().is_some());
        let asked = if needs {
            redis.missing_notifications().await
        } else {
            redis.connect_once().await.map(|()| None).map_err(|away| away.to_string())
        };
        let away = |cause| Failure::Other(format!("Redis at {address}: {cause}"));
        match asked.map_err(away)? {
            None => print(&format!("Redis at {address}: ok\n")),
            Some(command) => Err(Failure::Other(format!(
                "Redis at {address} does not send all notifications of revoked keys, so they are read once a minute\n  help: run `{command}`, and set the same in its configuration"
            ))),
        }
    })
}

/// The limits of the built-in issuer, some of which apply whatever the file says.
fn identity_limits(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for route in snapshot.routes.routes() {
        if matches!(route.destination, Destination::Identity(_)) {
            let lines = Budgets::in_force(route.limit.as_deref());
            let _ = writeln!(text, "limits of route `{}`:\n  {}", route.name, lines.join("\n  "));
        }
    }
    text
}

fn summary(snapshot: &Snapshot, tests: usize) -> String {
    let parts = [
        (snapshot.routes.routes().len(), "route"),
        (snapshot.issuers.iter().count(), "issuer"),
        (snapshot.upstreams.len(), "upstream"),
        (snapshot.counters.len(), "limit"),
    ];
    let parts =
        parts.map(|(count, noun)| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }));
    let tests = match tests {
        0 => "no tests".to_owned(),
        1 => "1 test passed".to_owned(),
        _ => format!("{tests} tests passed"),
    };
    format!("ok: {}, {tests}", parts.join(", "))
}

/// All settings that weaken a guarantee, so that a reviewer sees them in one place.
fn weakened_guarantees(snapshot: &Snapshot) -> String {
    if snapshot.weakened.is_empty() {
        return String::new();
    }
    format!("weakened guarantees:\n  {}\n", snapshot.weakened.join("\n  "))
}
