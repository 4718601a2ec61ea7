//! `portcullis key`: the signing keys of the built-in issuer.

use std::path::Path;

use clap::Subcommand;

use super::Failure;
use super::issuer::{Issuer, Use, table, with_issuer};
use crate::config::value::CreateFiles;
use crate::identity::bodies::time;
use crate::identity::issue::{KeyState, key_states, rotate};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the published keys, and which of them signs.
    List,
    /// Create a new key. When the command ends, every gateway that runs on the store publishes it;
    /// they sign with it once every verifier has had time to fetch it.
    Rotate {
        /// Sign with it at once, and discard the other keys: when the command ends, tokens signed
        /// with them are refused. Sessions continue: clients refresh, and browsers are redirected
        /// through a renewal. Use it for keys that may have been exposed.
        #[arg(long)]
        compromised: bool,
    },
}

pub(super) fn key(path: &Path, command: &Command) -> Result<(), Failure> {
    let usage =
        if matches!(command, Command::List) { Use::Reads } else { Use::Writes(CreateFiles::Yes) };
    with_issuer(path, usage, async |issuer| match command {
        Command::List => list(issuer).await,
        Command::Rotate { compromised } => {
            let made = rotate(&issuer.store, issuer.policy.algorithm, *compromised, issuer.now);
            let made = made.await.map_err(|error| match compromised {
                true => Failure::Other(format!("{error}; tokens of the other keys may still be accepted: run the command again, or see `portcullis key list`")),
                false => error.into(),
            })?;
            Ok(match made {
                Some(key) => format!(
                    "created {} ({}); it signs from {}{}.\n",
                    key.kid,
                    key.algorithm,
                    time(key.signs_from),
                    if *compromised { ", and the others are discarded" } else { "" }
                ),
                None => {
                    return Err(Failure::Other(
                        "another process created a key at the same time; see `portcullis key list`"
                            .to_owned(),
                    ));
                }
            })
        }
    })
}

async fn list(issuer: &Issuer) -> Result<String, Failure> {
    let keys = key_states(&issuer.store, issuer.now).await?;
    if keys.is_empty() {
        return Ok("there is no key yet: the gateway creates the first one at start\n".to_owned());
    }
    let mut rows =
        vec![["KEY", "ALGORITHM", "CREATED", "SIGNS FROM", ""].map(str::to_owned).to_vec()];
    for (key, state) in keys {
        let state = match state {
            KeyState::Next => "published, not signing yet".to_owned(),
            KeyState::Signs => "signs".to_owned(),
            KeyState::Remembered { until } => {
                format!("verifies until {}", time(until.cast_signed()))
            }
        };
        rows.push(vec![key.kid, key.algorithm, time(key.created_at), time(key.signs_from), state]);
    }
    Ok(table(&rows))
}
