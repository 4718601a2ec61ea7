//! `portcullis stream`: the exchanges that run for long in the running gateway.

use std::path::Path;

use clap::Subcommand;
use http::Method;
use serde::Deserialize;

use super::admin::{Answer, ask};
use super::issuer::table;
use super::{Failure, print};
use crate::clock::Clock;
use crate::config::value::CreateFiles;
use crate::process;
use crate::telemetry::metrics::Metrics;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the WebSockets, event streams and other long exchanges of the running gateway.
    List {
        /// Print JSON, with every member that `GET /streams` has.
        #[arg(long)]
        json: bool,
    },
    /// End a stream. Its caller keeps access and may come back; to take that away, revoke.
    End {
        /// The id, from `stream list`.
        #[arg(value_name = "ID")]
        id: String,
    },
}

pub(super) fn stream(path: &Path, command: &Command) -> Result<(), Failure> {
    match command {
        Command::List { json } => list(path, *json),
        Command::End { id } => end(path, id),
    }
}

/// A stream, as the admin listener describes it.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    kind: String,
    route: String,
    subject: Option<String>,
    client: String,
    since: String,
    bytes: u64,
}

fn list(path: &Path, json: bool) -> Result<(), Failure> {
    let answer = ask(path, &Method::GET, "/streams", None)?;
    if answer.status != 200 {
        return Err(unexpected(&answer));
    }
    if json {
        let text = String::from_utf8_lossy(&answer.body);
        return print(&format!("{}\n", text.trim_end()));
    }
    let streams: Vec<Listed> = serde_json::from_slice(&answer.body)
        .map_err(|error| Failure::Other(format!("the answer is not a list of streams: {error}")))?;
    if streams.is_empty() {
        return print("no streams are open\n");
    }
    let head = ["ID", "KIND", "ROUTE", "SUBJECT", "CLIENT", "SINCE", "BYTES"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(streams.into_iter().map(|stream| {
        let subject = stream.subject.as_deref().unwrap_or("-").escape_debug().to_string();
        let Listed { id, kind, route, client, since, bytes, .. } = stream;
        vec![id, kind, route, subject, client, since, bytes.to_string()]
    }));
    print(&table(&rows))
}

fn end(path: &Path, id: &str) -> Result<(), Failure> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::Usage(format!(
            "`{}` is not the id of a stream; `portcullis stream list` shows them",
            id.escape_debug()
        )));
    }
    let token = operator_token(path)?;
    let answer = ask(path, &Method::DELETE, &format!("/streams/{id}"), Some(&token))?;
    match answer.status {
        204 => print(&format!("ended {id}\n")),
        404 => Err(Failure::Other(format!("no stream has the id {id}; it may have ended"))),
        401 => Err(Failure::Other(
            "the gateway refused the token of [admin]; it may run on an older file: reload it"
                .to_owned(),
        )),
        _ => Err(unexpected(&answer)),
    }
}

/// The token of `[admin]`.
fn operator_token(path: &Path) -> Result<String, Failure> {
    let (metrics, clock) = (Metrics::new(), Clock::system());
    let snapshot = process::compile(path, None, CreateFiles::No, &metrics, &clock)?.snapshot;
    let token = snapshot
        .admin_token
        .as_ref()
        .and_then(|token| std::str::from_utf8(token.expose()).ok().map(ToOwned::to_owned));
    token.ok_or_else(|| {
        Failure::Other(
            "there is no `token` in [admin], so the gateway takes no orders; add `token = { file = \"admin.token\" }`"
                .to_owned(),
        )
    })
}

fn unexpected(answer: &Answer) -> Failure {
    let body = String::from_utf8_lossy(&answer.body);
    Failure::Other(format!(
        "the admin listener answered {}: {}",
        answer.status,
        body.trim().escape_debug()
    ))
}
