//! `portcullis key`: what the built-in issuer signs with.

use std::path::Path;

use clap::Subcommand;

use super::issuer::{Issuer, Use, table, with_issuer};
use super::{Failure, print};
use crate::config::value::CreateFiles;
use crate::identity::bodies::time;
use crate::identity::issue::{KeyState, key_states, rotate};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The keys that are published, and which of them signs.
    List,
    /// Make another key. Every gateway that runs on the store publishes it when the command ends,
    /// and signs with it when every verifier has had the time to fetch it.
    Rotate {
        /// Sign with it at once, and forget the others: when the command ends, what they signed is
        /// refused. Sessions go on: clients refresh, and browsers are led through a renewal. For
        /// keys that somebody may have seen.
        #[arg(long)]
        compromised: bool,
    },
}

pub(super) fn key(path: &Path, command: &Command) -> Result<(), Failure> {
    let usage =
        if matches!(command, Command::List) { Use::Reads } else { Use::Writes(CreateFiles::Yes) };
    let told = with_issuer(path, usage, async |issuer| match command {
        Command::List => list(issuer).await,
        Command::Rotate { compromised } => {
            let made =
                rotate(&issuer.store, issuer.policy.algorithm, *compromised, issuer.now).await?;
            Ok(match made {
                Some(key) => format!(
                    "made {} ({}); it signs from {}{}.\n",
                    key.kid,
                    key.algorithm,
                    time(key.signs_from),
                    if *compromised { ", and the others are forgotten" } else { "" }
                ),
                None => {
                    return Err(Failure::Other("another process made a key at the same time; look at `portcullis key list`".to_owned()));
                }
            })
        }
    })?;
    print(&told)
}

async fn list(issuer: &Issuer) -> Result<String, Failure> {
    let keys = key_states(&issuer.store, issuer.now).await?;
    if keys.is_empty() {
        return Ok(
            "there is no key yet: the gateway makes the first one when it starts\n".to_owned()
        );
    }
    let mut rows = vec![["KEY", "ALGORITHM", "MADE", "SIGNS FROM", ""].map(str::to_owned).to_vec()];
    for (key, state) in keys {
        let state = match state {
            KeyState::Next => "published, does not sign yet".to_owned(),
            KeyState::Signs => "signs".to_owned(),
            KeyState::Remembered { until } => {
                format!("verifies until {}", time(until.cast_signed()))
            }
        };
        rows.push(vec![key.kid, key.algorithm, time(key.created_at), time(key.signs_from), state]);
    }
    Ok(table(&rows))
}
