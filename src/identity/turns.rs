//! One job at a time for each account.
//!
//! The hashing queue is short. Without turns, a client could fill it with requests for one account.
//! With them an account has one place in the queue, and its other requests wait here. Addresses
//! without an account take turns too, so the timing does not reveal which is which. Requests that list
//! the sessions of an account take turns as well, and those that renew them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::error::Elapsed;

/// The turns of every account that has a job. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

/// An account's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    account: String,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the account's turn, at most for `longest`.
    pub(super) async fn wait(&self, account: &str, longest: Duration) -> Result<Turn, Elapsed> {
        let lock = Arc::clone(self.waiting().entry(account.to_owned()).or_default());
        // Created before waiting, so that a cancelled request leaves nothing behind.
        let mut turn = Turn { turns: self.clone(), account: account.to_owned(), held: None };
        turn.held = Some(tokio::time::timeout(longest, lock.lock_owned()).await?);
        Ok(turn)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.turns.waiting();
        self.held = None;
        if let Entry::Occupied(entry) = waiting.entry(std::mem::take(&mut self.account))
            && Arc::strong_count(entry.get()) == 1
        {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_account_has_one_turn_at_a_time_and_leaves_nothing_behind() {
        let turns = Turns::default();
        let first = turns.wait("ann", Duration::from_mins(1)).await.unwrap();
        turns.wait("bob", Duration::ZERO).await.expect("another account does not wait");
        turns.wait("ann", Duration::ZERO).await.unwrap_err();
        let mut next = Box::pin(turns.wait("ann", Duration::from_mins(1)));
        assert!(tokio::time::timeout(Duration::ZERO, &mut next).await.is_err());
        drop(first);
        let next = next.await.unwrap();
        assert_eq!(turns.waiting().len(), 1);
        drop(next);
        assert!(turns.waiting().is_empty());
    }
}
