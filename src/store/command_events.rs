//! The table of what commands did to accounts. A command has no log of its own: the next gateway
//! that reads a row removes it and writes it to its log.

use uuid::Uuid;

use super::{Store, StoreError};

/// A row: something that a command did.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct CommandEvent {
    /// Unix seconds.
    pub done_at: i64,
    /// The message in the log.
    pub event: String,
    /// The id of the account; empty: several accounts.
    pub account: String,
    /// How many accounts.
    pub accounts: i64,
    /// The user of the machine who ran the command.
    pub uid: i64,
}

impl Store {
    /// Adds a row.
    pub async fn add_command_event(&self, event: &CommandEvent) -> Result<(), StoreError> {
        let adding = sqlx::query(ADD)
            // Ids of one second have their order too.
            .bind(Uuid::now_v7().to_string())
            .bind(event.done_at)
            .bind(&event.event)
            .bind(&event.account)
            .bind(event.accounts)
            .bind(event.uid);
        self.write(adding).await?;
        Ok(())
    }

    /// Removes some rows, the oldest ones, and returns them in order. Of several processes, one gets
    /// each row. Writes nothing if there are none.
    pub async fn take_command_events(&self) -> Result<Vec<CommandEvent>, StoreError> {
        let oldest: Vec<(String,)> = self.connections.all(sqlx::query_as(OLDEST)).await?;
        if oldest.is_empty() {
            return Ok(Vec::new());
        }
        let mut writing = self.connections.write().await?;
        let mut taken = Vec::with_capacity(oldest.len());
        for (id,) in oldest {
            taken.extend(writing.first(sqlx::query_as(TAKE).bind(id)).await?);
        }
        writing.commit().await?;
        Ok(taken)
    }
}

const ADD: &str = "INSERT INTO command_events (id, done_at, event, account, accounts, uid) VALUES ($1, $2, $3, $4, $5, $6)";

const OLDEST: &str = "SELECT id FROM command_events ORDER BY done_at, id LIMIT 100";

const TAKE: &str =
    "DELETE FROM command_events WHERE id = $1 RETURNING done_at, event, account, accounts, uid";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_settings;

    #[tokio::test]
    async fn each_event_is_taken_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        assert_eq!(store.take_command_events().await.unwrap(), []);
        let event = |event: &str, done_at| CommandEvent {
            done_at,
            event: event.to_owned(),
            account: "a".to_owned(),
            accounts: 1,
            uid: 1000,
        };
        let events =
            [event("registered", 7), event("token_created", 7), event("account_deleted", 8)];
        for event in &events {
            store.add_command_event(event).await.unwrap();
        }
        let (one, other) = tokio::join!(store.take_command_events(), store.take_command_events());
        let mut taken = [one.unwrap(), other.unwrap()];
        taken.sort_by_key(Vec::len);
        assert_eq!((taken[0].as_slice(), taken[1].as_slice()), ([].as_slice(), events.as_slice()));
        store.close().await;
    }
}
