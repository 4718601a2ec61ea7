//! Who gets an address. With `verify_email`, an unconfirmed registration cannot be used. It gives way
//! when its address is proved in another way: otherwise a stranger could keep people from logging in
//! at a provider by registering their addresses.

use super::account::{AccountError, Accounts, NewAccount, revocation};
use super::{Email, Policy, audit, is_unconfirmed};
use crate::revocation::row;
use crate::store::{AccountRow, AddressTaken, Gone, Moved, StoreError, Unconfirmed};

/// Something was done for an account that now has an address.
#[derive(Debug)]
pub struct Done<T> {
    /// What.
    pub done: T,
    /// The id of the registration that gave way.
    pub gone: Option<String>,
}

impl Accounts {
    /// Adds an account whose address an operator vouches for. `now` is in Unix seconds.
    ///
    /// # Errors
    /// [`AccountError::Taken`] if another account has the address.
    pub async fn add_proved(
        &self,
        new: NewAccount,
        policy: &Policy,
        now: u64,
    ) -> Result<Done<AccountRow>, AccountError> {
        let account = new.into_row(now);
        let unconfirmed = unconfirmed(policy, now);
        let added = self.store.insert_account_over(&account, None, &unconfirmed).await?;
        let gone = added.map_err(|AddressTaken| AccountError::Taken)?;
        Ok(Done { done: account, gone: self.gone(gone, policy, now) })
    }

    /// Sets another address, which counts as confirmed. The access tokens of the account are
    /// revoked, since they may contain the old one. Its sessions continue.
    ///
    /// # Errors
    /// [`AccountError::Taken`] if another account has the address.
    pub async fn set_email(
        &self,
        id: &str,
        email: &Email,
        policy: &Policy,
        now: u64,
    ) -> Result<Done<()>, AccountError> {
        let how = (row(&revocation(id, policy, now)), &unconfirmed(policy, now));
        let moved = self.store.set_email(id, email.as_str(), how, now.cast_signed()).await?;
        match moved {
            Some(moved) => Ok(self.moved(id, moved, policy, now)),
            None if self.by_id(id).await?.is_some() => Err(AccountError::Taken),
            None => Err(AccountError::Unknown),
        }
    }

    /// Uses up a mailed link that sets another address, and revokes the access tokens of its
    /// account. Its sessions continue. Returns false if the link is not valid (any longer), the
    /// account has changed since it was read, or another account has the address by now.
    pub async fn change_email(
        &self,
        account: &AccountRow,
        link: &str,
        policy: &Policy,
        now: u64,
    ) -> Result<bool, StoreError> {
        let how = (row(&revocation(&account.id, policy, now)), &unconfirmed(policy, now));
        let moved = self.store.change_email(link, account, how, now.cast_signed()).await?;
        Ok(moved.map(|moved| self.moved(&account.id, moved, policy, now)).is_some())
    }

    fn moved(&self, id: &str, moved: Moved, policy: &Policy, now: u64) -> Done<()> {
        self.revoked(revocation(id, policy, now), moved.cutoff);
        Done { done: (), gone: self.gone(moved.gone, policy, now) }
    }

    /// Finishes the end of a registration that gave way: in this process, if it is a gateway. A command
    /// leaves the event in the store.
    pub(super) fn gone(&self, gone: Option<Gone>, policy: &Policy, now: u64) -> Option<String> {
        let Gone { account, cutoff } = gone?;
        self.revoked(revocation(&account, policy, now), cutoff);
        if self.revocations.is_some() {
            audit::of_account(GONE, &account);
        }
        Some(account)
    }
}

/// What becomes of the registration that has an address, if somebody else proves it. Without
/// `verify_email`, a registration is an account like others.
pub(super) fn unconfirmed(policy: &Policy, now: u64) -> Unconfirmed {
    if policy.verify_email {
        Unconfirmed::GivesWay(row(&revocation("", policy, now)))
    } else {
        Unconfirmed::Stays
    }
}

/// Whether an account will probably give way, as the store decides in the end.
pub fn may_give_way(account: &AccountRow, policy: &Policy) -> bool {
    let is_unused = account.last_login_at.is_none() && account.generation == 0;
    policy.verify_email && is_unconfirmed(account) && is_unused && account.not_before == 0
}

/// The event of a registration that gave way.
pub const GONE: &str = "registration_dropped";
