//! What an operator asks about a store.

use std::collections::HashMap;

use super::{Store, StoreError, StoreSettings};

/// What is in a store, and who uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// Whether it is a PostgreSQL database, which several replicas may share.
    pub is_shared: bool,
    /// The last schema step.
    pub schema: i64,
    /// How many gateways use it: with PostgreSQL, those that were seen in the last ten seconds.
    pub gateways: usize,
    /// How many of them have not read the last revocation.
    pub behind: usize,
    /// Seconds since the gateway that is silent for longest was seen, on the database's clock.
    /// `None`: none runs, or the database is a file.
    pub silence: Option<i64>,
    /// The number of accounts.
    pub accounts: i64,
    /// The number of sessions in it that have not ended. Some of them may have expired.
    pub sessions: i64,
    /// The number of revocations.
    pub revocations: i64,
    /// The number of the last one.
    pub last_revocation: i64,
    /// The number of signing keys.
    pub signing_keys: i64,
}

impl Store {
    /// What is in the store, and who uses it.
    pub async fn status(&self, settings: &StoreSettings) -> Result<StoreStatus, StoreError> {
        let is_shared = self.is_shared();
        let (schema, accounts, sessions): (i64, i64, i64) =
            self.connections.one(sqlx::query_as(PEOPLE)).await?;
        let (revocations, last_revocation, signing_keys): (i64, i64, i64) =
            self.connections.one(sqlx::query_as(TOKENS)).await?;
        let gateways = self.running_gateways(settings).await?;
        let behind = self.gateways_behind(settings, last_revocation, -1).await?;
        let silence = if is_shared { self.longest_silence().await? } else { None };
        Ok(StoreStatus {
            is_shared,
            schema,
            gateways,
            behind,
            silence,
            accounts,
            sessions,
            revocations,
            last_revocation,
            signing_keys,
        })
    }

    /// The generation of each account that is not disabled: sessions of others have ended, wherever
    /// they are.
    pub async fn generations(&self) -> Result<HashMap<String, i64>, StoreError> {
        let rows: Vec<(String, i64)> = self.connections.all(sqlx::query_as(GENERATIONS)).await?;
        Ok(rows.into_iter().collect())
    }
}

const GENERATIONS: &str = "SELECT id, generation FROM accounts WHERE disabled = 0";

const PEOPLE: &str = "SELECT (SELECT MAX(version) FROM _sqlx_migrations), (SELECT COUNT(*) FROM accounts), \
    (SELECT COUNT(*) FROM sessions WHERE ended_at IS NULL AND generation = \
    (SELECT generation FROM accounts WHERE accounts.id = sessions.account AND disabled = 0))";

const TOKENS: &str = "SELECT (SELECT COUNT(*) FROM revocations WHERE kind IN ('jti', 'sid', 'subject', 'sub')), \
    (SELECT COALESCE(MAX(seq), 0) FROM revocations), (SELECT COUNT(*) FROM signing_keys)";
