//! `portcullis attack`

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::explain::assume;
use super::{Failure, has_colours, print};
use crate::attack::{
    Case, Echo, Oracle, Outcome, Report, Sender, Verdict, attack as run, duration,
};
use crate::clock::Clock;
use crate::config::value::CreateFiles;
use crate::gateway::Snapshot;
use crate::gateway::dialect::Dialect;
use crate::outbound::Url;
use crate::process;
use crate::telemetry::metrics::Metrics;
use crate::tls::client_config;
use crate::token::{self, AssumedToken};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The URL of the proxy, without a path. Nothing is sent to any other address.
    #[arg(long, value_name = "URL", value_parser = through)]
    through: Url,
    /// Confirm that you may attack a proxy that is not on this machine.
    #[arg(long)]
    i_own_this: bool,
    /// A token that the gateway accepts, for the cases that need a caller.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// The issuer section of the token; required if there are several and the token has no `iss`.
    #[arg(long, value_name = "NAME", requires = "token")]
    issuer: Option<String>,
    /// Answer at this address as the application behind the proxy, with what reaches it.
    #[arg(long, value_name = "ADDRESS")]
    echo: Option<SocketAddr>,
    /// The certificates that are trusted for https, as PEM. Default: those of the system.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The URL of a proxy.
fn through(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.path() != "/" || url.query().is_some() {
        return Err("write it without a path: the file says which paths there are".to_owned());
    }
    Ok(url)
}

/// Attacks a proxy, and fails if anything gets through.
pub(super) fn attack(path: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let clock = Clock::system();
    let snapshot = process::compile(path, None, CreateFiles::No, &Metrics::new(), &clock)?.snapshot;
    let now = clock.unix_seconds();
    let oracle = Oracle {
        // The dialects differ in how a proxy asks, and not in what is decided.
        via: snapshot.askers.is_some().then_some(Dialect::Traefik),
        host: arguments.through.bare_host().to_owned(),
        is_https: arguments.through.is_https(),
        token: assumed(arguments, &snapshot, now)?,
        now,
        snapshot: &snapshot,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run_beside_echo(arguments, &oracle))?;
    if arguments.json {
        print(&format!("{:#}\n", report.to_json()))?;
    } else {
        print(&summary(&report, oracle.token.is_some()))?;
    }
    match report.through().count() {
        0 => Ok(()),
        1 => Err(Failure::Other("1 case got through".to_owned())),
        count => Err(Failure::Other(format!("{count} cases got through"))),
    }
}

async fn run_beside_echo(arguments: &Arguments, oracle: &Oracle<'_>) -> Result<Report, Failure> {
    let tls = if arguments.through.is_https() { Some(trust(arguments)?) } else { None };
    let sender = Sender::new(&arguments.through, tls, arguments.i_own_this).await;
    let sender = sender.map_err(|error| Failure::Other(error.to_string()))?;
    let began = |cases| {
        eprintln!("sending {cases} requests, for at least {} s", duration(cases).as_secs());
    };
    let each = |outcome: &Outcome| {
        if !arguments.json {
            // A reader that has gone does not end the attack: the exit code still tells.
            let _ = print(&line(outcome));
        }
    };
    let attacking = async {
        let report = run(oracle, &sender, began, each).await;
        report.map_err(|error| Failure::Other(error.to_string()))
    };
    let Some(address) = arguments.echo else { return attacking.await };
    let echo = Echo::listen(address).await;
    let echo =
        echo.map_err(|error| Failure::Other(format!("cannot listen on {address}: {error}")))?;
    tokio::select! {
        report = attacking => report,
        () = echo.serve() => Err(Failure::Other("the echo application has ended".to_owned())),
    }
}

fn trust(arguments: &Arguments) -> Result<Arc<rustls::ClientConfig>, Failure> {
    let read = |path: &PathBuf| {
        fs::read(path)
            .map_err(|error| Failure::Other(format!("cannot read {}: {error}", path.display())))
    };
    let ca = arguments.ca.as_ref().map(read).transpose()?;
    let config = client_config(ca.as_deref(), None);
    config.map(Arc::new).map_err(|error| Failure::Other(error.to_string()))
}

/// The token, and what it says. Whether it is valid shows when it is sent.
fn assumed(
    arguments: &Arguments,
    snapshot: &Snapshot,
    now: u64,
) -> Result<Option<(String, AssumedToken)>, Failure> {
    let Some(token) = &arguments.token else { return Ok(None) };
    let inspected = token::inspect(token)
        .map_err(|error| Failure::Usage(format!("--token is not a token: {error}")))?;
    let claims = inspected.claims.ok_or_else(|| {
        Failure::Usage("--token is encrypted: what it says cannot be read".to_owned())
    })?;
    let assumed = assume(claims, arguments.issuer.as_deref(), snapshot, now)?;
    Ok(Some((token.clone(), assumed)))
}

/// One line for a case that did not hold.
fn line(outcome: &Outcome) -> String {
    let (word, style, why) = match &outcome.verdict {
        Verdict::Held => return String::new(),
        Verdict::Through(why) => ("through", "1;31", why),
        Verdict::Unclear(why) => ("unclear", "2", why),
    };
    let word = if has_colours(&std::io::stdout()) {
        format!("\x1b[{style}m{word}\x1b[0m")
    } else {
        word.to_owned()
    };
    let Case { family, .. } = &outcome.case;
    format!("{word}  {:<11}  {}: {why}\n", family.as_str(), outcome.case.shown())
}

fn summary(report: &Report, has_token: bool) -> String {
    let (cases, through, unclear) =
        (report.outcomes.len(), report.through().count(), report.unclear().count());
    let held = cases - through - unclear;
    let mut text =
        format!("{cases} cases: {through} got through, {unclear} unclear, {held} held\n");
    if !report.echoes {
        text += "The application does not echo what it gets, so fields that reach it cannot be seen: let the proxy forward to --echo ADDRESS.\n";
    }
    if !has_token {
        text += "Cases that need a caller were left out: give --token.\n";
    }
    if through > 0 {
        text +=
            "Compare the configuration of the proxy with what `portcullis proxy-config` writes.\n";
    }
    text
}
