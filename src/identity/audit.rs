//! Account events for the log: who, from where, why; never a secret. They are written at every log
//! level.

use std::net::IpAddr;

use crate::telemetry::log::AUDIT;

/// Writes an event. `account` is an id, or empty if there is none; `reason` is one word.
pub(super) fn record(event: &'static str, client: IpAddr, account: &str, reason: &'static str) {
    let account = Some(account).filter(|account| !account.is_empty());
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    tracing::info!(target: AUDIT, { client.address = %client, account, reason }, "{event}");
}

/// Writes an event that a provider causes: about an account, the name of the provider's section, and
/// a session.
pub(super) fn from_provider(event: &'static str, account: &str, login: &str, sid: &str) {
    tracing::info!(target: AUDIT, { account, login, sid }, "{event}");
}
