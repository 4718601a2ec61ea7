//! The table of accounts.

use sqlx::AnyConnection;

use super::revocations::write_revocations;
use super::{RevocationRow, Store, StoreError};

/// A row: somebody who may log in.
#[derive(Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AccountRow {
    /// Its id, the `sub` of its tokens.
    pub id: String,
    /// The address, in its one form.
    pub email: String,
    /// What to call them.
    pub name: Option<String>,
    /// The hash.
    pub password: String,
    /// Separated by spaces.
    pub roles: String,
    /// 1: no login, no session.
    pub disabled: i16,
    /// 1: the address was shown to be its owner's.
    pub email_verified: i16,
    /// Sessions of another generation are over.
    pub generation: i64,
    /// Unix seconds: access tokens issued then or before are revoked.
    pub not_before: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub last_login_at: Option<i64>,
}

impl std::fmt::Debug for AccountRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccountRow").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A change of an account that must hold at once.
#[derive(Clone, Debug)]
pub enum AccountChange<'a> {
    /// Other roles. Sessions go on, and get them with their next token.
    Roles(&'a str),
    /// No login and no session, or again.
    Disabled(bool),
    /// Another password; every session ends.
    Password(&'a str),
    /// Every session ends.
    EndSessions,
}

impl Store {
    /// Adds an account. False: the address is taken, and nothing was written.
    ///
    /// # Errors
    /// [`StoreError::Database`]
    pub async fn insert_account(&self, account: &AccountRow) -> Result<bool, StoreError> {
        let written = insert_account(&mut *self.pool.acquire().await?, account).await?;
        Ok(written)
    }

    /// Adds all of these accounts, or none: the index of the first whose address is taken.
    ///
    /// # Errors
    /// [`StoreError::Database`]; nothing was then written.
    pub async fn insert_accounts(&self, accounts: &[AccountRow]) -> Result<Result<(), usize>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        for (index, account) in accounts.iter().enumerate() {
            if !insert_account(&mut transaction, account).await? {
                transaction.rollback().await?;
                return Ok(Err(index));
            }
        }
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// The account with this address.
    ///
    /// # Errors
    /// [`StoreError::Database`]
    pub async fn account_by_email(&self, email: &str) -> Result<Option<AccountRow>, StoreError> {
        Ok(sqlx::query_as("SELECT * FROM accounts WHERE email = $1").bind(email).fetch_optional(&self.pool).await?)
    }

    /// The account with this id.
    ///
    /// # Errors
    /// [`StoreError::Database`]
    pub async fn account(&self, id: &str) -> Result<Option<AccountRow>, StoreError> {
        Ok(sqlx::query_as("SELECT * FROM accounts WHERE id = $1").bind(id).fetch_optional(&self.pool).await?)
    }

    /// Every account, by address.
    ///
    /// # Errors
    /// [`StoreError::Database`]
    pub async fn accounts(&self) -> Result<Vec<AccountRow>, StoreError> {
        Ok(sqlx::query_as("SELECT * FROM accounts ORDER BY email").fetch_all(&self.pool).await?)
    }

    /// Changes an account and revokes what was issued to it before, in one step: `revocation` is of its subject, and gets the cut-off that
    /// is returned, at or after `now`. `None`: there is no such account.
    ///
    /// # Errors
    /// [`StoreError::Database`]; nothing was then written.
    pub async fn change_account(
        &self,
        id: &str,
        change: AccountChange<'_>,
        revocation: RevocationRow,
        now: i64,
    ) -> Result<Option<i64>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let changed = change_account(&mut transaction, id, change, revocation, now).await?;
        transaction.commit().await?;
        Ok(changed)
    }

    /// The hashes of as many accounts as tell what all are like. Ids are random, so these are a sample.
    ///
    /// # Errors
    /// [`StoreError::Database`]
    pub async fn some_passwords(&self) -> Result<Vec<String>, StoreError> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT password FROM accounts ORDER BY id LIMIT 10000").fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(|(hash,)| hash).collect())
    }

    /// Writes another hash of the same password, if it is still the one that `old` is of.
    ///
    /// # Errors
    /// [`StoreError::Database`]
    pub async fn rehash_password(&self, id: &str, old: &str, new: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE accounts SET password = $1 WHERE id = $2 AND password = $3")
            .bind(new)
            .bind(id)
            .bind(old)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Changes an account and writes the revocation, within a transaction that the caller commits. `None`: there is no such account.
pub(super) async fn change_account(
    connection: &mut AnyConnection,
    id: &str,
    change: AccountChange<'_>,
    revocation: RevocationRow,
    now: i64,
) -> Result<Option<i64>, StoreError> {
    let statement = match change {
        AccountChange::Roles(roles) => sqlx::query_as(SET_ROLES).bind(now).bind(id).bind(roles.to_owned()),
        AccountChange::Disabled(disabled) => sqlx::query_as(SET_DISABLED).bind(now).bind(id).bind(i16::from(disabled)),
        AccountChange::Password(hash) => sqlx::query_as(SET_PASSWORD).bind(now).bind(id).bind(hash.to_owned()),
        AccountChange::EndSessions => sqlx::query_as(END_SESSIONS).bind(now).bind(id),
    };
    let changed: Option<(i64,)> = statement.fetch_optional(&mut *connection).await?;
    let Some((cutoff,)) = changed else { return Ok(None) };
    write_revocations(connection, &[RevocationRow { revoked_at: cutoff, ..revocation }]).await?;
    Ok(Some(cutoff))
}

/// False: the address is taken.
async fn insert_account(connection: &mut AnyConnection, account: &AccountRow) -> Result<bool, StoreError> {
    let statement = sqlx::query(INSERT)
        .bind(&account.id)
        .bind(&account.email)
        .bind(&account.name)
        .bind(&account.password)
        .bind(&account.roles)
        .bind(account.disabled)
        .bind(account.email_verified)
        .bind(account.generation)
        .bind(account.not_before)
        .bind(account.created_at)
        .bind(account.last_login_at);
    Ok(statement.execute(connection).await?.rows_affected() == 1)
}

const INSERT: &str = "INSERT INTO accounts (id, email, name, password, roles, disabled, email_verified, generation, not_before, \
    created_at, last_login_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (email) DO NOTHING";

/// The cut-off is past every token of the account: one that was minted past the last cut-off has an `iat` of one second more.
const SET_ROLES: &str = "UPDATE accounts SET not_before = CASE WHEN not_before >= $1 THEN not_before + 1 ELSE $1 END, roles = $3 WHERE id = $2 RETURNING not_before";

const SET_DISABLED: &str = "UPDATE accounts SET not_before = CASE WHEN not_before >= $1 THEN not_before + 1 ELSE $1 END, \
    generation = generation + 1, disabled = $3 WHERE id = $2 RETURNING not_before";

const SET_PASSWORD: &str = "UPDATE accounts SET not_before = CASE WHEN not_before >= $1 THEN not_before + 1 ELSE $1 END, \
    generation = generation + 1, password = $3 WHERE id = $2 RETURNING not_before";

const END_SESSIONS: &str = "UPDATE accounts SET not_before = CASE WHEN not_before >= $1 THEN not_before + 1 ELSE $1 END, \
    generation = generation + 1 WHERE id = $2 RETURNING not_before";
