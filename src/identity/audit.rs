//! Account events for the log: who, from where, why; never a secret. They are written at every log
//! level.

use std::net::IpAddr;
use std::time::Duration;

use super::bodies::time;
use crate::store::{CommandEvent, Store};
use crate::telemetry::log::AUDIT;

/// Writes an event. `account` is an id, or empty if there is none; `reason` is one word.
pub(super) fn record(event: &'static str, client: IpAddr, account: &str, reason: &'static str) {
    let account = Some(account).filter(|account| !account.is_empty());
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    tracing::info!(target: AUDIT, { client.address = %client, account, reason }, "{event}");
}

/// Writes an event about an account that a request of somebody else has caused.
pub(super) fn of_account(event: &'static str, account: &str) {
    tracing::info!(target: AUDIT, { account }, "{event}");
}

/// Writes an event of a login: also the way of logging in, which is the name of a provider's section
/// or `password`.
pub(super) fn login(
    event: &'static str,
    client: IpAddr,
    account: &str,
    (login, reason): (&str, &'static str),
) {
    let account = Some(account).filter(|account| !account.is_empty());
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    tracing::info!(target: AUDIT, { client.address = %client, account, login, reason }, "{event}");
}

/// Writes an event that a provider causes: about an account, the name of the provider's section, and
/// a session.
pub(super) fn from_provider(event: &'static str, account: &str, login: &str, sid: &str) {
    tracing::info!(target: AUDIT, { account, login, sid }, "{event}");
}

/// Writes what commands do to accounts, until the future is dropped. Commands leave it in the store.
pub(super) async fn follow_commands(store: &Store) {
    let mut looks = super::interval(LOOK_EVERY);
    let mut is_behind = false;
    loop {
        looks.tick().await;
        match store.take_command_events().await {
            Ok(events) => {
                is_behind = false;
                events.iter().for_each(from_command);
            }
            Err(error) if !is_behind => {
                is_behind = true;
                tracing::warn!(cause = %error, "what commands do to accounts cannot be read from the store; it is logged later");
            }
            Err(_) => {}
        }
    }
}

fn from_command(done: &CommandEvent) {
    let CommandEvent { done_at, event, account, accounts, uid } = done;
    let at = time(*done_at);
    if account.is_empty() {
        tracing::info!(target: AUDIT, { accounts, uid, at }, "{event}");
    } else {
        tracing::info!(target: AUDIT, { account, uid, at }, "{event}");
    }
}

/// How often to look for what commands did.
const LOOK_EVERY: Duration = Duration::from_secs(1);
