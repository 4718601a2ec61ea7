//! A transaction on a connection of a pool.
//!
//! sqlx asks a connection that returns to its pool whether it still works, and waits for the answer
//! without a limit. A server that has vanished never answers, and a pool of one connection would have
//! none for good. So what is here gives connections back itself, in bounded time: one that does not
//! answer is closed, and the pool opens another.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::any::AnyTransactionManager;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::runtime::Handle;

/// A transaction that is rolled back if it is dropped before [`PooledTransaction::commit`] ends.
pub(super) struct PooledTransaction {
    connection: PoolConnection<Any>,
    is_open: bool,
    /// How long the connection may take to return. `None`: the database is no server.
    release: Option<Duration>,
}

impl PooledTransaction {
    /// Begins one with this statement.
    pub(super) async fn begin(
        pool: &AnyPool,
        statement: &'static str,
        release: Option<Duration>,
    ) -> Result<Self, sqlx::Error> {
        // Open from the start: the statement may arrive although nobody waits for its answer.
        let mut begun = Self { connection: pool.acquire().await?, is_open: true, release };
        AnyTransactionManager::begin(&mut begun, Some(statement.into_sql_str())).await?;
        Ok(begun)
    }

    /// Commits it.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        AnyTransactionManager::commit(&mut self).await?;
        self.is_open = false;
        Ok(())
    }
}

impl Deref for PooledTransaction {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.connection
    }
}

impl DerefMut for PooledTransaction {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }
}

impl Drop for PooledTransaction {
    fn drop(&mut self) {
        if self.is_open {
            AnyTransactionManager::start_rollback(&mut self.connection);
        }
        let Some(release) = self.release else { return };
        // Whoever drops this closes the connection and gives its place in the pool back.
        let returning = self.connection.return_to_pool();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(tokio::time::timeout(release, returning));
        }
    }
}
