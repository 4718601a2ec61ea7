//! The table of accounts.

use uuid::Uuid;

use super::connections::WriteTransaction;
use super::revocations::{
    END_LOGINS_OF, LOGINS_ENDED, REVOKE_ACCOUNTS, end_of_logins, write_revocations,
};
use super::second_factors::forget_unconfirmed;
use super::{RevocationRow, Store, StoreError};

/// A row: an account.
#[derive(Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AccountRow {
    /// Its id, the `sub` of its tokens.
    pub id: String,
    /// The email address, in canonical form.
    pub email: String,
    /// The display name.
    pub name: Option<String>,
    /// The hash of the password.
    pub password: String,
    /// The roles, separated by spaces.
    pub roles: String,
    /// 1: the account is disabled. It cannot log in and has no session.
    pub disabled: i16,
    /// 1: the address was shown to belong to the account's owner.
    pub email_verified: i16,
    /// The current generation. Sessions of another generation have ended.
    pub generation: i64,
    /// Unix seconds: access tokens issued at or before this time are revoked.
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

/// In which order all accounts are read, a page at a time.
#[derive(Clone, Copy, Debug)]
pub enum AccountOrder {
    /// As people look for them. An account whose address changes meanwhile may be passed over.
    Email,
    /// By the id, which never changes: no account is passed over.
    Id,
}

/// A change to an account that must take effect at once.
#[derive(Clone, Debug)]
pub enum AccountChange<'a> {
    /// Sets other roles. Sessions continue, and get the new roles with their next token.
    Roles {
        /// The roles, separated by spaces.
        roles: &'a str,
        /// The number of the last revocation when they were asked for: nothing is changed if what was
        /// issued to the account was revoked after it, because the answer is then perhaps older.
        began: i64,
    },
    /// Disables the account (no login, no session), or enables it again.
    Disabled(bool),
    /// Sets another password and ends every session, but only if the account still has the
    /// generation that it had when the password was checked: a user who was logged out or disabled
    /// in the meantime cannot set a password.
    Password {
        /// The hash of the password.
        hash: &'a str,
        /// [`AccountRow::generation`].
        generation: i64,
    },
    /// Ends every session.
    EndSessions,
    /// Sets another address, unless another account has it. The operator or a mailed link vouches
    /// for it. Sessions continue, and get the new address with their next token.
    Email(&'a str),
    /// Sets another display name. Sessions continue, and get the new name with their next token.
    Name(Option<&'a str>),
    /// Deletes the account with everything that belongs to it; if a generation is given, only while
    /// the account has it, as for a password.
    Delete(Option<i64>),
}

impl Store {
    /// Adds an account. Returns false, and writes nothing, if the address is taken.
    pub async fn insert_account(&self, account: &AccountRow) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let written = insert_account(&mut writing, account).await?;
        writing.commit().await?;
        Ok(written)
    }

    /// Adds all of these accounts or none. The inner `Err` holds the index of the first account
    /// whose address is taken. Writes nothing on an error.
    pub async fn insert_accounts(
        &self,
        accounts: &[AccountRow],
    ) -> Result<Result<(), usize>, StoreError> {
        let mut writing = self.connections.write().await?;
        writing.execute(sqlx::query(RECORD_IMPORT).bind(Uuid::new_v4().to_string())).await?;
        for (index, account) in accounts.iter().enumerate() {
            if !insert_account(&mut writing, account).await? {
                return Ok(Err(index));
            }
        }
        writing.commit().await?;
        Ok(Ok(()))
    }

    /// A text that changes whenever several accounts are added at once, because they may differ
    /// from the earlier ones.
    pub async fn last_import(&self) -> Result<Option<String>, StoreError> {
        let noted: Option<(String,)> = self
            .connections
            .first(sqlx::query_as("SELECT value FROM facts WHERE name = 'last_import'"))
            .await?;
        Ok(noted.map(|(value,)| value))
    }

    /// The account with this address.
    pub async fn account_by_email(&self, email: &str) -> Result<Option<AccountRow>, StoreError> {
        self.connections.first(sqlx::query_as(BY_EMAIL).bind(email)).await
    }

    /// The account with this id.
    pub async fn account(&self, id: &str) -> Result<Option<AccountRow>, StoreError> {
        self.connections.first(sqlx::query_as(BY_ID).bind(id)).await
    }

    /// The first thousand accounts in this order, after `last`.
    pub async fn accounts_after(
        &self,
        order: AccountOrder,
        last: Option<&AccountRow>,
    ) -> Result<Vec<AccountRow>, StoreError> {
        let page = i64::try_from(ACCOUNTS_PAGE).unwrap_or(i64::MAX);
        let (reading, key) = match order {
            AccountOrder::Email => (AFTER_EMAIL, last.map(|last| &last.email)),
            AccountOrder::Id => (AFTER_ID, last.map(|last| &last.id)),
        };
        let key = key.map_or("", String::as_str);
        self.connections.all(sqlx::query_as(reading).bind(key).bind(page)).await
    }

    /// Changes an account and revokes what was issued to it before, in one transaction.
    /// `revocation` is for the account's subject, and gets the returned cut-off, which is at or
    /// after `now`. `None`: there is no such account. Writes nothing on an error.
    pub async fn change_account(
        &self,
        id: &str,
        change: AccountChange<'_>,
        revocation: RevocationRow,
        now: i64,
    ) -> Result<Option<i64>, StoreError> {
        let mut writing = self.connections.write().await?;
        let changed = change_account(&mut writing, id, change, revocation, now).await?;
        writing.commit().await?;
        Ok(changed)
    }

    /// Ends the sessions of these accounts, a page in the order of [`AccountOrder::Id`], and revokes what
    /// was issued to them, for all of them or none. `revocation` is for the subject of each account; its
    /// value is replaced. Writes nothing on an error.
    pub async fn end_sessions_of(
        &self,
        accounts: &[AccountRow],
        revocation: &RevocationRow,
        now: i64,
    ) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (accounts.first(), accounts.last()) else { return Ok(()) };
        let (first, last) = (&first.id, &last.id);
        let mut writing = self.connections.write().await?;
        // One statement for all of them: others wait, and each statement takes a while to get there.
        writing.execute(sqlx::query(END_SESSIONS_OF).bind(now).bind(first).bind(last)).await?;
        let RevocationRow { kind, scope, .. } = revocation;
        let revoking = sqlx::query(REVOKE_ACCOUNTS).bind(first).bind(last);
        writing.execute(revoking.bind(kind).bind(scope)).await?;
        let ending = sqlx::query(END_LOGINS_OF).bind(first).bind(last);
        writing.execute(ending.bind(LOGINS_ENDED).bind(now)).await?;
        writing.commit().await
    }

    /// The password hashes of enough accounts to show what all of them are like. Ids are random, so
    /// these accounts are a sample.
    pub async fn sample_password_hashes(&self) -> Result<Vec<String>, StoreError> {
        let rows: Vec<(String,)> = self
            .connections
            .all(sqlx::query_as("SELECT password FROM accounts ORDER BY id LIMIT 10000"))
            .await?;
        Ok(rows.into_iter().map(|(hash,)| hash).collect())
    }

    /// Sets another display name, which the next tokens of the account contain. Returns false if
    /// there is no such account.
    pub async fn rename_account(&self, id: &str, name: Option<&str>) -> Result<bool, StoreError> {
        let renaming = sqlx::query("UPDATE accounts SET name = $1 WHERE id = $2");
        Ok(self.write(renaming.bind(name.map(str::to_owned)).bind(id)).await? == 1)
    }

    /// Writes another hash of the same password, if the stored hash is still `old`.
    pub async fn rehash_password(&self, id: &str, old: &str, new: &str) -> Result<(), StoreError> {
        let renewing =
            sqlx::query("UPDATE accounts SET password = $1 WHERE id = $2 AND password = $3");
        self.write(renewing.bind(new).bind(id).bind(old)).await?;
        Ok(())
    }
}

/// Changes an account and writes the revocation, in a transaction that the caller commits. `None`:
/// the account does not exist, has changed since, or another one has the address.
pub(super) async fn change_account(
    writing: &mut WriteTransaction,
    id: &str,
    change: AccountChange<'_>,
    revocation: RevocationRow,
    now: i64,
) -> Result<Option<i64>, StoreError> {
    let ends_sessions = matches!(
        change,
        AccountChange::Disabled(_) | AccountChange::Password { .. } | AccountChange::EndSessions
    );
    let sets_password = matches!(change, AccountChange::Password { .. });
    let statement = match change {
        AccountChange::Roles { roles, began } => {
            sqlx::query_as(SET_ROLES).bind(now).bind(id).bind(roles.to_owned()).bind(began)
        }
        AccountChange::Disabled(disabled) => {
            sqlx::query_as(SET_DISABLED).bind(now).bind(id).bind(i16::from(disabled))
        }
        AccountChange::Password { hash, generation } => {
            sqlx::query_as(SET_PASSWORD).bind(now).bind(id).bind(hash.to_owned()).bind(generation)
        }
        AccountChange::EndSessions => sqlx::query_as(END_SESSIONS).bind(now).bind(id),
        AccountChange::Email(email) => {
            sqlx::query_as(SET_EMAIL).bind(now).bind(id).bind(email.to_owned())
        }
        AccountChange::Name(name) => {
            sqlx::query_as(SET_NAME).bind(now).bind(id).bind(name.map(str::to_owned))
        }
        AccountChange::Delete(generation) => {
            sqlx::query_as(DELETE).bind(now).bind(id).bind(generation)
        }
    };
    let changed: Option<(i64,)> = writing.first(statement).await?;
    let Some((not_before,)) = changed else { return Ok(None) };
    let written =
        write_revocations(writing, &[RevocationRow { revoked_at: not_before, ..revocation }])
            .await?;
    if ends_sessions {
        end_logins(writing, id, now).await?;
    }
    if sets_password {
        forget_unconfirmed(writing, id).await?;
    }
    Ok(written.first().copied())
}

/// Ends the logins in progress of an account, if anybody logs in to it at a provider.
pub(super) async fn end_logins(
    writing: &mut WriteTransaction,
    account: &str,
    now: i64,
) -> Result<(), StoreError> {
    let asking = sqlx::query_as("SELECT COUNT(*) FROM provider_people WHERE account = $1");
    let (people,): (i64,) = writing.one(asking.bind(account)).await?;
    if people > 0 {
        write_revocations(writing, &[end_of_logins(account.to_owned(), now)]).await?;
    }
    Ok(())
}

/// Returns false if the address is taken.
pub(super) async fn insert_account(
    writing: &mut WriteTransaction,
    account: &AccountRow,
) -> Result<bool, StoreError> {
    let statement = sqlx::query_as(INSERT)
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
    let (id,): (String,) = writing.one(statement).await?;
    Ok(id == account.id)
}

/// The maximum number of accounts to read at a time, or to change in one transaction.
const ACCOUNTS_PAGE: usize = 1000;

/// The columns of an [`AccountRow`]. With `*`, a column that a newer version adds would break the
/// statements that this one has prepared.
macro_rules! account_columns {
    () => {
        "accounts.id, accounts.email, accounts.name, accounts.password, accounts.roles, accounts.disabled, accounts.email_verified, \
         accounts.generation, accounts.not_before, accounts.created_at, accounts.last_login_at"
    };
}
pub(super) use account_columns;

const BY_EMAIL: &str = concat!("SELECT ", account_columns!(), " FROM accounts WHERE email = $1");

const BY_ID: &str = concat!("SELECT ", account_columns!(), " FROM accounts WHERE id = $1");

const AFTER_EMAIL: &str = concat!(
    "SELECT ",
    account_columns!(),
    " FROM accounts WHERE email > $1 ORDER BY email LIMIT $2"
);

const AFTER_ID: &str =
    concat!("SELECT ", account_columns!(), " FROM accounts WHERE id > $1 ORDER BY id LIMIT $2");

const RECORD_IMPORT: &str = "INSERT INTO facts (name, value) VALUES ('last_import', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// A taken address also costs a write and returns a row, so timing does not reveal that it is
/// taken.
const INSERT: &str = "INSERT INTO accounts (id, email, name, password, roles, disabled, email_verified, generation, not_before, \
    created_at, last_login_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (email) DO UPDATE SET email = accounts.email RETURNING id";

/// The cut-off covers every token of the account: a token that was issued past an earlier cut-off
/// has an `iat` ahead of the current time.
const SET_ROLES: &str = "UPDATE accounts SET not_before = CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END, roles = $3 \
    WHERE id = $2 AND NOT EXISTS (SELECT 1 FROM revocations WHERE kind = 'subject' AND value = $2 AND seq > $4) RETURNING not_before";

const SET_DISABLED: &str = "UPDATE accounts SET not_before = CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END, \
    generation = generation + 1, disabled = $3 WHERE id = $2 RETURNING not_before";

const SET_PASSWORD: &str = "UPDATE accounts SET not_before = CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END, \
    generation = generation + 1, password = $3 WHERE id = $2 AND generation = $4 RETURNING not_before";

const END_SESSIONS: &str = "UPDATE accounts SET not_before = CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END, \
    generation = generation + 1 WHERE id = $2 RETURNING not_before";

const END_SESSIONS_OF: &str = "UPDATE accounts SET not_before = CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END, \
    generation = generation + 1 WHERE id >= $2 AND id <= $3";

const SET_EMAIL: &str = "UPDATE accounts SET not_before = CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END, email = $3, email_verified = 1 \
    WHERE id = $2 AND NOT EXISTS (SELECT 1 FROM accounts AS others WHERE others.email = $3 AND others.id <> $2) RETURNING not_before";

const SET_NAME: &str = "UPDATE accounts SET not_before = CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END, name = $3 WHERE id = $2 RETURNING not_before";

/// Rows of other tables that name the account are deleted with it.
const DELETE: &str = "DELETE FROM accounts WHERE id = $2 AND ($3 IS NULL OR generation = $3) \
    RETURNING CASE WHEN issued_at > $1 THEN issued_at ELSE $1 END";

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::test_settings as settings;
    use crate::store::{SessionRow, StaleBefore};

    pub(in crate::store) fn account(id: &str, email: &str) -> AccountRow {
        AccountRow {
            id: id.into(),
            email: email.into(),
            name: Some("Ann".into()),
            password: "old".into(),
            roles: "user".into(),
            disabled: 0,
            email_verified: 0,
            generation: 0,
            not_before: 0,
            created_at: 1,
            last_login_at: None,
        }
    }

    pub(in crate::store) fn session(id: &str, generation: i64) -> SessionRow {
        SessionRow {
            id: id.into(),
            account: "a".into(),
            generation,
            counter: 0,
            created_at: 100,
            rotated_at: 100_000,
            address: "192.0.2.1".into(),
            user_agent: String::new(),
            ended_at: None,
            until_closed: 0,
            proof: crate::store::LoginProof::default(),
        }
    }

    pub(in crate::store) fn revocation(kind: &str, value: &str) -> RevocationRow {
        RevocationRow {
            kind: kind.into(),
            value: value.into(),
            scope: "=x".into(),
            revoked_at: 0,
            seq: 0,
        }
    }

    const FRESH: StaleBefore =
        StaleBefore { created_at: 0, ahead: i64::MAX, rotated_at: 0, used_at: 0 };

    #[tokio::test]
    async fn an_address_has_one_account_and_an_import_is_all_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        assert!(store.insert_account(&account("a", "a@x.example")).await.unwrap());
        assert!(!store.insert_account(&account("b", "a@x.example")).await.unwrap());
        let several =
            [account("c", "c@x.example"), account("d", "a@x.example"), account("e", "e@x.example")];
        assert_eq!(store.insert_accounts(&several).await.unwrap(), Err(1));
        assert_eq!(store.last_import().await.unwrap(), None);
        let added = account("a", "a@x.example");
        for order in [AccountOrder::Email, AccountOrder::Id] {
            let read = store.accounts_after(order, None).await.unwrap();
            assert_eq!(read, std::slice::from_ref(&added));
            assert_eq!(store.accounts_after(order, Some(&added)).await.unwrap(), []);
        }
        let mut seen = None;
        for id in ["f", "g"] {
            assert_eq!(store.insert_accounts(&[account(id, id)]).await.unwrap(), Ok(()));
            let noted = store.last_import().await.unwrap();
            assert!(noted.is_some() && noted != seen);
            seen = noted;
        }
    }

    #[tokio::test]
    async fn no_account_is_passed_over_because_its_address_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let mut accounts: Vec<_> = (0..ACCOUNTS_PAGE)
            .map(|number| account(&format!("m{number:04}"), &format!("m{number:04}@x.example")))
            .collect();
        accounts.push(account("z", "z@x.example"));
        assert_eq!(store.insert_accounts(&accounts).await.unwrap(), Ok(()));
        let first = store.accounts_after(AccountOrder::Id, None).await.unwrap();
        let change = AccountChange::Email("a@x.example");
        store.change_account("z", change, revocation("subject", "z"), 9).await.unwrap().unwrap();
        let second = store.accounts_after(AccountOrder::Id, first.last()).await.unwrap();
        let read: Vec<_> = first.iter().chain(&second).map(|account| account.id.as_str()).collect();
        assert_eq!(read.len(), accounts.len());
        assert_eq!(read.last(), Some(&"z"));
    }

    /// A login whose password was checked before the change opens no session after it, and sessions
    /// that were open have ended.
    #[tokio::test]
    async fn a_change_ends_sessions_and_revokes_in_one_step() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        let mut latest = 0;
        for (change, ends, opens) in [
            (AccountChange::Roles { roles: "admin", began: i64::MAX }, false, true),
            (AccountChange::Password { hash: "new", generation: 0 }, true, true),
            (AccountChange::EndSessions, true, true),
            (AccountChange::Disabled(true), true, false),
            (AccountChange::Disabled(false), true, true),
        ] {
            let before = store.account("a").await.unwrap().unwrap();
            let what = format!("{change:?}");
            let (open, late) = (
                session(&format!("open {what}"), before.generation),
                session(&format!("late {what}"), before.generation),
            );
            let issued = store.open_session(&open, "=x").await.unwrap();
            let was_open = issued.is_some();
            assert_eq!(was_open, before.disabled == 0, "{what}");
            // While the account is disabled, no login succeeds, so there is no token to cut off.
            latest = issued.map_or(latest, |issued| issued.issued_at);
            assert!(latest > before.not_before || !was_open, "past the last cut-off: {what}");
            let cutoff = store
                .change_account("a", change, revocation("subject", "a"), 105)
                .await
                .unwrap()
                .unwrap();
            let after = store.account("a").await.unwrap().unwrap();
            assert_eq!(cutoff, after.not_before, "{what}");
            assert_eq!(
                cutoff,
                latest.max(105),
                "it covers what was issued after the last one, and is no later than necessary: {what}"
            );
            assert_eq!(
                store.live_session(&open.id).await.unwrap().is_some(),
                was_open && !ends,
                "{what}"
            );
            assert_eq!(
                store.rotate_session(&open, FRESH, "=x", 105).await.unwrap().is_some(),
                was_open && !ends,
                "{what}"
            );
            assert_eq!(store.open_session(&late, "=x").await.unwrap().is_some(), !ends, "{what}");
            let next = session(&format!("next {what}"), after.generation);
            assert_eq!(store.open_session(&next, "=x").await.unwrap().is_some(), opens, "{what}");
            let revoked = store.revocations_after(0).await.unwrap();
            assert_eq!((revoked.len(), revoked[0].revoked_at), (1, cutoff), "{what}");
        }
        assert_eq!(
            store
                .change_account(
                    "nobody",
                    AccountChange::EndSessions,
                    revocation("subject", "nobody"),
                    9
                )
                .await
                .unwrap(),
            None
        );
        assert_eq!(
            store.revocations_after(0).await.unwrap().len(),
            1,
            "nothing is revoked of whom there is not"
        );
    }

    #[tokio::test]
    async fn the_sessions_of_a_page_end_together_and_those_of_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        for id in ["a", "b", "c", "d"] {
            store.insert_account(&account(id, id)).await.unwrap();
        }
        let opened = SessionRow { account: "b".into(), ..session("s", 0) };
        store.open_session(&opened, "=x").await.unwrap().unwrap();
        let person = "INSERT INTO provider_people (issuer, subject, account, created_at) VALUES ('i', 'p', 'c', 1)";
        store.write(sqlx::query(person)).await.unwrap();
        let page = store.accounts_after(AccountOrder::Id, None).await.unwrap();
        for _ in 0..2 {
            store.end_sessions_of(&page[1..3], &revocation("subject", ""), 50).await.unwrap();
        }
        assert!(store.live_session("s").await.unwrap().is_none());
        let after = store.accounts_after(AccountOrder::Id, None).await.unwrap();
        let generations: Vec<_> = after.iter().map(|account| account.generation).collect();
        assert_eq!(generations, [0, 2, 2, 0]);
        let rows = store.revocations_after(0).await.unwrap();
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (&*row.kind, &*row.value, &*row.scope, row.revoked_at, row.seq))
            .collect();
        // The cut-off covers what was issued ahead of the clock.
        let written = [("subject", "b", "=x", 100, 4), ("subject", "c", "=x", 50, 5)];
        assert_eq!(rows[..2], written);
        assert_eq!(rows[2..], [(LOGINS_ENDED, "c", "*", 50, 6)]);
    }

    /// The current password was right when it was checked, but the account has changed by the time
    /// the new one is hashed.
    #[tokio::test]
    async fn a_password_change_in_progress_fails_when_sessions_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        for change in [
            AccountChange::EndSessions,
            AccountChange::Disabled(true),
            AccountChange::Disabled(false),
        ] {
            let checked = store.account("a").await.unwrap().unwrap();
            store.change_account("a", change, revocation("subject", "a"), 100).await.unwrap();
            let late = AccountChange::Password { hash: "late", generation: checked.generation };
            let set = store.change_account("a", late, revocation("subject", "a"), 101).await;
            assert_eq!(set.unwrap(), None);
            assert_eq!(store.account("a").await.unwrap().unwrap().password, "old");
        }
    }

    /// The clock was ahead when the account was cut off, and is right again.
    #[tokio::test]
    async fn a_cut_off_far_ahead_of_the_clock_prevents_logins_and_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        store.open_session(&session("s", 0), "=x").await.unwrap().unwrap();
        store
            .change_account(
                "a",
                AccountChange::Roles { roles: "admin", began: i64::MAX },
                revocation("subject", "a"),
                3_700,
            )
            .await
            .unwrap()
            .unwrap();
        let error = store.open_session(&session("t", 0), "=x").await.unwrap_err().to_string();
        assert!(
            error.contains("1970-01-01T01:01:40Z") && error.contains("correct the clock"),
            "{error}"
        );
        store.rotate_session(&session("s", 0), FRESH, "=x", 100).await.unwrap_err();
        // Nothing was written: the existing session works again once the clock gets there.
        assert!(store.live_session("t").await.unwrap().is_none());
        assert_eq!(store.live_session("s").await.unwrap().unwrap().counter, 0);
        assert_eq!(
            store
                .rotate_session(&session("s", 0), FRESH, "=x", 3_695)
                .await
                .unwrap()
                .unwrap()
                .issued_at,
            3_701
        );
    }

    /// What was issued before stays revoked: by its session if its `iat` is ahead.
    #[tokio::test]
    async fn a_cut_off_far_ahead_is_moved_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        let early = SessionRow { created_at: 5_000, ..session("early", 0) };
        let issued_at = store.open_session(&early, "=x").await.unwrap().unwrap().issued_at;
        assert_eq!(issued_at, 5_000);
        let subject = revocation("subject", "a");
        assert!(!store.move_cutoff_back("a", &[], &subject, 5_000).await.unwrap());
        store
            .change_account("a", AccountChange::EndSessions, subject.clone(), 100)
            .await
            .unwrap()
            .unwrap();
        store.revoke(&[RevocationRow { scope: "*".into(), ..subject.clone() }]).await.unwrap();
        assert!(store.move_cutoff_back("a", &[], &subject, 100).await.unwrap());
        let rows: Vec<_> = store
            .revocations_after(2)
            .await
            .unwrap()
            .into_iter()
            .map(|row| (row.kind, row.value, row.revoked_at))
            .collect();
        let row = |kind: &str, value: &str, at| (kind.to_owned(), value.to_owned(), at);
        assert_eq!(
            rows,
            [row("sid", "early", 5_000), row("subject", "a", 100), row("lowered", "a", 100)]
        );
        let every = store.revocations_after(1).await.unwrap();
        assert_eq!((every[0].scope.as_str(), every[0].revoked_at), ("*", 100));
        let opened = store.open_session(&session("late", 2), "=x").await.unwrap().unwrap();
        assert_eq!(opened.issued_at, 101);
        assert!(!store.move_cutoff_back("a", &[], &subject, 100).await.unwrap());
    }

    #[tokio::test]
    async fn only_its_account_can_end_a_session_and_it_is_revoked_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        store.insert_account(&account("b", "b@x.example")).await.unwrap();
        assert!(store.open_session(&session("s", 0), "=x").await.unwrap().is_some());
        assert!(!store.end_session("s", "b", &revocation("sid", "s"), 9).await.unwrap());
        assert!(store.revocations_after(0).await.unwrap().is_empty());
        assert!(store.end_session("s", "a", &revocation("sid", "s"), 9).await.unwrap());
        assert!(
            store.live_session("s").await.unwrap().is_none()
                && store.account_of_session("s").await.unwrap().is_none()
        );
        assert!(store.rotate_session(&session("s", 0), FRESH, "=x", 9).await.unwrap().is_none());
        assert_eq!(store.revocations_after(0).await.unwrap().len(), 1);
        // Too old if one of the two times is, and only then.
        store.open_session(&session("t", 0), "=x").await.unwrap();
        for (created_at, ahead, rotated_at, lives) in [
            (100, 200, 0, false),
            (0, 200, 100_000, false),
            (0, 100, 0, false),
            (99, 101, 99_999, true),
        ] {
            let stale = StaleBefore { created_at, ahead, rotated_at, used_at: 0 };
            assert_eq!(store.sessions_of("a", stale).await.unwrap().0.len(), usize::from(lives));
        }
        for stale in [StaleBefore { created_at: 100, ..FRESH }, StaleBefore { ahead: 100, ..FRESH }]
        {
            let used = session("t", 0);
            assert!(store.rotate_session(&used, stale, "=x", 9).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_refresh_token_can_be_used_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        store.open_session(&session("s", 0), "=x").await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let store = store.clone();
            tasks.spawn(async move {
                store.rotate_session(&session("s", 0), FRESH, "=x", 9).await.unwrap().is_some()
            });
        }
        assert_eq!(tasks.join_all().await.into_iter().filter(|rotated| *rotated).count(), 1);
        assert_eq!(store.live_session("s").await.unwrap().unwrap().counter, 1);
    }
}
