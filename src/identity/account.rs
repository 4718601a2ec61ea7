//! Accounts: who may log in, and with which roles.
//!
//! The endpoints and the command line use the same operations. A change that takes something away
//! is complete when the call returns: one step of the store writes it together with the revocation
//! of everything issued before, and this process's list already has that revocation. Other
//! processes read it from the store; a command waits until they have.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::email::Email;
use super::link::{LinkToken, Purpose};
use super::password::StoredHash;
use super::policy::Policy;
use crate::revocation::{Revocations, row};
use crate::store::{AccountChange, AccountOrder, AccountRow, LinkRow, Store, StoreError};
use crate::token::{Revocation, RevokedBy, Scope};

/// All accounts.
#[derive(Clone, Debug)]
pub struct Accounts {
    pub(super) store: Store,
    /// This process's list. `None` in a command: the gateway reads its changes from the store.
    pub(super) revocations: Option<Arc<Revocations>>,
}

/// An account to be created.
#[derive(Debug)]
pub struct NewAccount {
    /// The e-mail address.
    pub email: Email,
    /// The owner's display name.
    pub name: Option<String>,
    /// `None`: no login is possible until a password is set by mail.
    pub password: Option<StoredHash>,
    /// Each passes [`is_role`].
    pub roles: Vec<String>,
    /// Whether the owner has proved that the address is theirs.
    pub email_verified: bool,
}

/// Why an account could not be created or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The address already has an account.
    #[error("this address already has an account")]
    Taken,
    /// No such account exists.
    #[error("no such account exists")]
    Unknown,
    /// The store failed.
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
    /// [`AccountError::Taken`] if another account has the address.
    pub async fn add(&self, new: NewAccount, now: u64) -> Result<AccountRow, AccountError> {
        let account = new.into_row(now);
        if self.store.insert_account(&account).await? {
            Ok(account)
        } else {
            Err(AccountError::Taken)
        }
    }

    /// Adds all of these accounts or none. Returns the index of the first whose address is taken.
    pub async fn add_all(
        &self,
        new: Vec<NewAccount>,
        now: u64,
    ) -> Result<Result<(), usize>, StoreError> {
        let accounts: Vec<AccountRow> = new.into_iter().map(|new| new.into_row(now)).collect();
        self.store.insert_accounts(&accounts).await
    }

    /// The account with this address.
    pub async fn by_email(&self, email: &Email) -> Result<Option<AccountRow>, StoreError> {
        self.store.account_by_email(email.as_str()).await
    }

    /// The account with this id.
    pub async fn by_id(&self, id: &str) -> Result<Option<AccountRow>, StoreError> {
        self.store.account(id).await
    }

    /// The next accounts in this order, after `last`. None: there are no more.
    pub async fn after(
        &self,
        order: AccountOrder,
        last: Option<&AccountRow>,
    ) -> Result<Vec<AccountRow>, StoreError> {
        self.store.accounts_after(order, last).await
    }

    /// Changes the roles of an account. Its access tokens are revoked. Its sessions continue, and
    /// their next tokens hold the new roles.
    pub async fn set_roles(
        &self,
        id: &str,
        roles: &[String],
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        let change = AccountChange::Roles { roles: &roles.join(" "), began: i64::MAX };
        self.change(id, change, policy, now).await
    }

    /// Disables an account and ends its sessions, or enables it again.
    pub async fn set_disabled(
        &self,
        id: &str,
        disabled: bool,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        self.change(id, AccountChange::Disabled(disabled), policy, now).await
    }

    /// Sets another display name, or none. The access tokens of the account are revoked, since they
    /// may contain the old one. Its sessions continue.
    pub async fn set_name(
        &self,
        id: &str,
        name: Option<&str>,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        self.change(id, AccountChange::Name(name), policy, now).await
    }

    /// Sets the name that the owner of an account chose, or none. Tokens contain the old one until
    /// they are renewed. Returns false if the account does not exist.
    pub async fn rename(&self, id: &str, name: Option<&str>) -> Result<bool, StoreError> {
        self.store.rename_account(id, name).await
    }

    /// Deletes an account, its sessions and everything else that belongs to it, and revokes its
    /// tokens. `generation`: only while the account has it.
    ///
    /// # Errors
    /// [`AccountError::Unknown`] also if it has another generation.
    pub async fn delete(
        &self,
        id: &str,
        generation: Option<i64>,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        self.change(id, AccountChange::Delete(generation), policy, now).await
    }

    /// Makes a link with this token valid: it sets a new password for the account. An operator
    /// hands it over.
    pub async fn accept_reset_link(
        &self,
        token: &LinkToken,
        account: &AccountRow,
        lifetime: Duration,
        now: u64,
    ) -> Result<(), StoreError> {
        let row = LinkRow {
            digest: &token.digest(),
            purpose: Purpose::Reset.as_str(),
            new_email: None,
            account,
            created_at: now.cast_signed(),
            expires_at: now.saturating_add(lifetime.as_secs()).cast_signed(),
        };
        self.store.insert_link(&row, row.created_at, i64::MAX).await?;
        Ok(())
    }

    /// Sets a new password and ends every session of the account, unless its sessions were ended
    /// since `account` was read.
    ///
    /// # Errors
    /// [`AccountError::Unknown`] also if its sessions were ended since.
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

    /// Uses up a mailed link: sets a new password for its account, ends the account's sessions and
    /// confirms its address. Returns false if the link is not valid (any longer), or the account
    /// has changed since it was read.
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

    /// Uses up a mailed link that confirms the address of its account. Returns false if the link is
    /// not valid (any longer), or the account has changed since it was read.
    pub async fn verify_email(
        &self,
        account: &AccountRow,
        link: &str,
        now: u64,
    ) -> Result<bool, StoreError> {
        self.store.verify_email(link, account, now.cast_signed()).await
    }

    /// Whether a link that is no longer valid was sent to confirm an address, and that address is
    /// confirmed now.
    pub async fn is_confirmed_by_now(&self, link: &str) -> Result<bool, StoreError> {
        self.store.is_confirmed_by_now(link).await
    }

    /// The account of a valid mailed link. Does not use the link up.
    pub async fn by_link(
        &self,
        link: &str,
        purpose: Purpose,
        now: u64,
    ) -> Result<Option<AccountRow>, StoreError> {
        self.store.account_of_link(link, purpose.as_str(), now.cast_signed()).await
    }

    /// Ends every session of an account.
    pub async fn end_sessions(
        &self,
        id: &str,
        policy: &Policy,
        now: u64,
    ) -> Result<(), AccountError> {
        self.change(id, AccountChange::EndSessions, policy, now).await
    }

    /// Ends every session of an account, unless that was done since it had this generation. Returns
    /// whether it was not. Either way, no token from before is accepted here when this returns, even
    /// if another gateway ended them.
    pub async fn end_sessions_since(
        &self,
        id: &str,
        generation: i64,
        policy: &Policy,
        now: u64,
    ) -> Result<bool, AccountError> {
        match self.by_id(id).await? {
            Some(account) if account.generation > generation => {
                self.revoked(revocation(id, policy, now), account.not_before);
                Ok(false)
            }
            _ => self.end_sessions(id, policy, now).await.map(|()| true),
        }
    }

    /// Ends the sessions of these accounts, all or none.
    pub async fn end_sessions_of(
        &self,
        accounts: &[AccountRow],
        policy: &Policy,
        now: u64,
    ) -> Result<(), StoreError> {
        let revocation = row(&revocation("", policy, now));
        self.store.end_sessions_of(accounts, &revocation, now.cast_signed()).await
    }

    /// Ends every session of an account and allows a new login at once, although its tokens were
    /// cut off until a time ahead of `now`; `elsewhere`: the ids of those that are not in the database.
    /// Returns false, and does nothing, if they were not.
    pub async fn end_sessions_now(
        &self,
        id: &str,
        elsewhere: &[String],
        policy: &Policy,
        now: u64,
    ) -> Result<bool, StoreError> {
        let revocation = row(&revocation(id, policy, now));
        self.store.move_cutoff_back(id, elsewhere, &revocation, now.cast_signed()).await
    }

    /// Stores a new hash of the current password of `account`.
    pub async fn renew_hash(
        &self,
        account: &AccountRow,
        renewed: &StoredHash,
    ) -> Result<(), StoreError> {
        self.store.rehash_password(&account.id, &account.password, renewed.as_str()).await
    }

    /// A sample of stored password hashes, large enough to represent all accounts.
    pub async fn some_hashes(&self) -> Result<Vec<StoredHash>, StoreError> {
        Ok(self
            .store
            .sample_password_hashes()
            .await?
            .iter()
            .filter_map(|hash| hash.parse().ok())
            .collect())
    }

    /// A text that changes with every import of accounts.
    pub async fn last_import(&self) -> Result<Option<String>, StoreError> {
        self.store.last_import().await
    }

    pub(super) async fn change(
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

    /// Adds a written revocation to this process's list.
    pub(super) fn revoked(&self, revocation: Revocation, cutoff: i64) {
        if let Some(revocations) = &self.revocations {
            revocations.written(Revocation { at: cutoff.cast_unsigned(), ..revocation });
        }
    }
}

/// The revocation of everything issued to an account so far.
pub(super) fn revocation(id: &str, policy: &Policy, now: u64) -> Revocation {
    Revocation {
        scope: Scope::Issuer(policy.issuer.as_str().into()),
        by: RevokedBy::Subject,
        value: id.into(),
        at: now,
    }
}

impl NewAccount {
    /// An account without a password, for tests.
    #[cfg(test)]
    pub(super) fn verified(email: &str) -> Self {
        let email = Email::parse(email).expect("a valid address");
        Self { email, name: None, password: None, roles: Vec::new(), email_verified: true }
    }

    pub(super) fn into_row(self, now: u64) -> AccountRow {
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

/// Whether a word can be a role of an account. Roles are stored and printed in lists, so a role
/// must survive being joined and split.
pub fn is_role(word: &str) -> bool {
    (1..=100).contains(&word.len())
        && !word.chars().any(|letter| letter.is_whitespace() || letter.is_control())
}

/// Why an account cannot have all of these roles: they are in its access tokens, which must fit into
/// a cookie.
pub fn too_long<'a>(roles: impl IntoIterator<Item = &'a String>) -> Option<TooManyRoles> {
    let bytes: usize = roles.into_iter().map(|role| role.len() + 1).sum();
    (bytes > LONGEST_ROLES).then_some(TooManyRoles { bytes })
}

/// The roles of an account are too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the roles have {bytes} bytes in all, and {most} is the most: tokens with more do not fit into a cookie",
    most = LONGEST_ROLES
)]
pub struct TooManyRoles {
    bytes: usize,
}

/// The longest roles of an account, each with its separator, in bytes.
const LONGEST_ROLES: usize = 1024;

/// Normalizes a display name. Returns `None` if it is empty.
///
/// # Errors
/// The name is longer than 200 characters, or contains invisible characters.
pub fn name(written: &str) -> Result<Option<String>, NoName> {
    let name = written.trim();
    if name.chars().count() > 200
        || name.chars().any(|letter| letter.is_control() || is_invisible(letter))
    {
        return Err(NoName);
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

/// Whether a character is invisible: a line break, or one that reorders or hides its neighbours, so
/// that a name reads as another. These are the general categories Cf, Zl and Zp of Unicode 17,
/// except the two joiners, which Persian and many Indian scripts need.
fn is_invisible(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// The text is not a valid name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name must have at most 200 characters and no invisible ones")]
pub struct NoName;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_visible_characters_only() {
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
