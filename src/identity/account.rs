//! Accounts: who may log in, and as what.
//!
//! Endpoints and the command line use these verbs alike. What a change takes away is gone when it
//! returns: it is one step of the store with the revocation of what was issued before, and this
//! process's list has it then. Other processes read it from the store; a command waits until they
//! have.

use std::sync::Arc;

use uuid::Uuid;

use super::email::Email;
use super::link::Purpose;
use super::password::StoredHash;
use super::policy::Policy;
use crate::revocation::{Revocations, row};
use crate::store::{AccountChange, AccountRow, Store, StoreError};
use crate::token::{Revocation, RevokedBy, Scope};

/// Every account.
#[derive(Clone, Debug)]
pub struct Accounts {
    store: Store,
    /// This process's list; `None` for a command, whose changes the gateway reads from the store.
    revocations: Option<Arc<Revocations>>,
}

/// An account that is about to be.
#[derive(Debug)]
pub struct NewAccount {
    /// Its address.
    pub email: Email,
    /// What to call its owner.
    pub name: Option<String>,
    /// `None`: nobody can log in before a password is set by mail.
    pub password: Option<StoredHash>,
    /// Each [`is_role`].
    pub roles: Vec<String>,
    /// Whether the address was shown to be its owner's.
    pub email_verified: bool,
}

/// Why an account is not as it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The address has an account.
    #[error("there is an account with this address")]
    Taken,
    /// There is no such account.
    #[error("there is no such account")]
    Unknown,
    /// The store.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl Accounts {
    /// Accounts in this store.
    pub fn new(store: Store, revocations: Option<Arc<Revocations>>) -> Self {
        Self { store, revocations }
    }

    /// Adds an account. `now` is in Unix seconds.
    ///
    /// # Errors
    /// [`AccountError::Taken`], [`AccountError::Store`]
    pub async fn add(&self, new: NewAccount, now: u64) -> Result<AccountRow, AccountError> {
        let account = new.into_row(now);
        if self.store.insert_account(&account).await? {
            Ok(account)
        } else {
            Err(AccountError::Taken)
        }
    }

    /// Adds all of these accounts, or none: the index of the first whose address is taken.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn add_all(
        &self,
        new: Vec<NewAccount>,
        now: u64,
    ) -> Result<Result<(), usize>, StoreError> {
        let accounts: Vec<AccountRow> = new.into_iter().map(|new| new.into_row(now)).collect();
        self.store.insert_accounts(&accounts).await
    }

    /// The account with this address.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn by_email(&self, email: &Email) -> Result<Option<AccountRow>, StoreError> {
        self.store.account_by_email(email.as_str()).await
    }

    /// The account with this id.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn by_id(&self, id: &str) -> Result<Option<AccountRow>, StoreError> {
        self.store.account(id).await
    }

    /// The next accounts in the order of their addresses, after that of `last`. None: there are
    /// no more.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn after(&self, last: Option<&AccountRow>) -> Result<Vec<AccountRow>, StoreError> {
        self.store.accounts_after(last.map_or("", |last| &last.email)).await
    }

    /// Gives an account other roles. Its access tokens end; its sessions go on, and their next
    /// tokens hold the new roles.
    ///
    /// # Errors
    /// [`AccountError::Unknown`], [`AccountError::Store`]
    pub async fn set_roles(
        &self,
        id: &str,
        roles: &[String],
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        self.change(id, AccountChange::Roles(&roles.join(" ")), policy, now).await
    }

    /// Disables an account and ends its sessions, or lets it log in again.
    ///
    /// # Errors
    /// As [`Accounts::set_roles`].
    pub async fn set_disabled(
        &self,
        id: &str,
        disabled: bool,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        self.change(id, AccountChange::Disabled(disabled), policy, now).await
    }

    /// Gives an account another password and ends its sessions, if nothing has ended them since
    /// `account` was read.
    ///
    /// # Errors
    /// As [`Accounts::set_roles`]; [`AccountError::Unknown`] also where something has.
    pub async fn set_password(
        &self,
        account: &AccountRow,
        password: &StoredHash,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        let change =
            AccountChange::Password { hash: password.as_str(), generation: account.generation };
        self.change(&account.id, change, policy, now).await
    }

    /// Uses a mailed link up: gives the account that it is good for another password and ends its
    /// sessions; its address is then confirmed. False: it is good for nothing (any more), or the
    /// account has changed since it was read.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn reset_password(
        &self,
        account: &AccountRow,
        (link, purpose): (&str, Purpose),
        password: &StoredHash,
        policy: &Policy,
        now: u64,
    ) -> Result<bool, StoreError> {
        let revocation = revocation(&account.id, policy, now);
        let changed = self
            .store
            .reset_password(
                link,
                purpose.as_str(),
                account,
                password.as_str(),
                row(&revocation),
                now.cast_signed(),
            )
            .await?;
        Ok(changed.is_some_and(|cutoff| {
            self.revoked(revocation, cutoff);
            true
        }))
    }

    /// Uses a mailed link up: the address of the account that it is good for was shown to be its
    /// owner's. False: it is good for nothing (any more), or the account has changed since it was
    /// read.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn verify_email(
        &self,
        account: &AccountRow,
        link: &str,
        now: u64,
    ) -> Result<bool, StoreError> {
        self.store.verify_email(link, account, now.cast_signed()).await
    }

    /// Whether a link that is good for nothing any more was sent to confirm an address, and that is
    /// confirmed by now.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn is_confirmed_by_now(&self, link: &str) -> Result<bool, StoreError> {
        self.store.is_confirmed_by_now(link).await
    }

    /// The account that a mailed link is good for. Nothing is used up.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn by_link(
        &self,
        link: &str,
        purpose: Purpose,
        now: u64,
    ) -> Result<Option<AccountRow>, StoreError> {
        self.store.account_of_link(link, purpose.as_str(), now.cast_signed()).await
    }

    /// Ends every session of an account.
    ///
    /// # Errors
    /// As [`Accounts::set_roles`].
    pub async fn end_sessions(
        &self,
        id: &str,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        self.change(id, AccountChange::EndSessions, policy, now).await
    }

    /// Ends the sessions of these accounts, all or none.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn end_sessions_of(
        &self,
        accounts: &[AccountRow],
        policy: &Policy,
        now: u64,
    ) -> Result<(), StoreError> {
        let revocation = row(&revocation("", policy, now));
        self.store.end_sessions_of(accounts, &revocation, now.cast_signed()).await
    }

    /// Ends every session of an account, and lets it log in at once although its tokens were cut off
    /// until a time that is ahead of `now`. False: they are not, and nothing was done.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn end_sessions_now(
        &self,
        id: &str,
        policy: &Policy,
        now: u64,
    ) -> Result<bool, StoreError> {
        let revocation = row(&revocation(id, policy, now));
        self.store.move_cutoff_back(id, &revocation, now.cast_signed()).await
    }

    /// Stores another hash of the password that `account` has.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn renew_hash(
        &self,
        account: &AccountRow,
        renewed: &StoredHash,
    ) -> Result<(), StoreError> {
        self.store.rehash_password(&account.id, &account.password, renewed.as_str()).await
    }

    /// Hashes of passwords, of as many accounts as tell what all are like.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn some_hashes(&self) -> Result<Vec<StoredHash>, StoreError> {
        Ok(self.store.some_passwords().await?.iter().filter_map(|hash| hash.parse().ok()).collect())
    }

    /// What is another text after accounts were imported.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn last_import(&self) -> Result<Option<String>, StoreError> {
        self.store.last_import().await
    }

    async fn change(
        &self,
        id: &str,
        change: AccountChange<'_>,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        let revocation = revocation(id, policy, now);
        let changed =
            self.store.change_account(id, change, row(&revocation), now.cast_signed()).await?;
        self.revoked(revocation, changed.ok_or(AccountError::Unknown)?);
        Ok(())
    }

    /// Has this process's list know what was written.
    fn revoked(&self, revocation: Revocation, cutoff: i64) {
        if let Some(revocations) = &self.revocations {
            revocations.written(Revocation { at: cutoff.cast_unsigned(), ..revocation });
        }
    }
}

/// Of whatever was issued to an account so far.
fn revocation(id: &str, policy: &Policy, now: u64) -> Revocation {
    Revocation {
        scope: Scope::Issuer(policy.issuer.as_str().into()),
        by: RevokedBy::Subject,
        value: id.into(),
        at: now,
    }
}

impl NewAccount {
    fn into_row(self, now: u64) -> AccountRow {
        AccountRow {
            id: Uuid::new_v4().to_string(),
            email: self.email.as_str().to_owned(),
            name: self.name,
            password: self.password.map_or_else(String::new, |hash| hash.as_str().to_owned()),
            roles: self.roles.join(" "),
            disabled: 0,
            email_verified: i16::from(self.email_verified),
            generation: 0,
            not_before: 0,
            created_at: now.cast_signed(),
            last_login_at: None,
        }
    }
}

/// Whether a word can be a role of an account: it is stored and told in lists, and must come out of
/// them as it went in.
pub fn is_role(word: &str) -> bool {
    (1..=100).contains(&word.len())
        && !word.chars().any(|letter| letter.is_whitespace() || letter.is_control())
}

/// A name as it is stored: `None` for one with nothing in it.
///
/// # Errors
/// It is longer than 200 characters, or holds some that cannot be seen.
pub fn name(written: &str) -> Result<Option<String>, NoName> {
    let name = written.trim();
    if name.chars().count() > 200
        || name.chars().any(|letter| letter.is_control() || is_invisible(letter))
    {
        return Err(NoName);
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

/// Whether a character is there and is not seen: one that turns or hides what stands beside it, so
/// that a name reads as another, or a line end. The general categories Cf, Zl and Zp of Unicode 17,
/// without the two joiners, which Persian and many scripts of India are spelled with.
fn is_invisible(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// What was written is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has at most 200 characters, and none that cannot be seen")]
pub struct NoName;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_is_seen() {
        for written in [
            "Ann",
            "Ann-Sofie O’Neill 3rd",
            "علی\u{200c}رضا",
            "क्\u{200d}ष",
            "👩\u{200d}🚀",
            "王 小明",
        ] {
            assert_eq!(name(&format!(" {written}\t")), Ok(Some(written.to_owned())));
        }
        assert_eq!((name(""), name(" \n ")), (Ok(None), Ok(None)));
        for hidden in [
            "\u{7}",
            "\u{7f}",
            "\u{9b}",
            "\u{ad}",
            "\u{61c}",
            "\u{200b}",
            "\u{200e}",
            "\u{2028}",
            "\u{2029}",
            "\u{2060}",
            "\u{206f}",
            "\u{feff}",
            "\u{e0041}",
        ] {
            assert_eq!(name(&format!("Ann{hidden}Bee")), Err(NoName), "{hidden:?}");
        }
        for turn in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert_eq!(name(&format!("Ann{turn}nimda")), Err(NoName), "{turn:?}");
        }
        assert!(name(&"é".repeat(200)).is_ok() && name(&"é".repeat(201)).is_err());
    }
}
