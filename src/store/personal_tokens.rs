//! The table of personal access tokens.
//!
//! A token is looked up by its digest. Its use issues an access token to its account, with the same
//! `iat` rule as a login: whatever ends access tokens also ends what a token was used for.

use super::accounts::account_columns;
use super::connections::WriteTransaction;
use super::revocations::write_revocations;
use super::sessions::issue_to;
use super::{AccountRow, Issued, RevocationRow, Store, StoreError};

/// A row: a personal access token.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct PersonalTokenRow {
    /// Its id, the `jti` of what it proves.
    pub id: String,
    /// The account that it belongs to.
    pub account: String,
    /// Its name, unique among the account's tokens that are not revoked.
    pub name: String,
    /// SHA-256 of the token.
    pub digest: String,
    /// The roles that it is limited to, separated by spaces. `None`: it has all roles of the
    /// account.
    pub roles: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
    /// Unix seconds: the start of the day of its last use.
    pub last_used_at: Option<i64>,
    /// Unix seconds.
    pub revoked_at: Option<i64>,
}

/// The result of adding a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddedToken {
    /// It was added.
    Added,
    /// The account has a token of this name.
    NameTaken,
    /// The account has too many tokens.
    TooMany,
    /// The account does not exist or is disabled, or the session is not live.
    NoAccount,
}

impl Store {
    /// Adds a token. `session`: only if this session of the account is live, so that a caller who
    /// was logged out in the meantime adds nothing. `most`: how many tokens an account may have.
    /// Writes nothing unless it returns [`AddedToken::Added`].
    pub async fn add_personal_token(
        &self,
        token: &PersonalTokenRow,
        (session, generation): (Option<&str>, i64),
        most: i64,
    ) -> Result<AddedToken, StoreError> {
        let mut writing = self.connections.write().await?;
        let now = token.created_at;
        // An expired token does not keep its name from another one.
        let ending = sqlx::query(END_EXPIRED).bind(&token.account).bind(&token.name).bind(now);
        writing.execute(ending).await?;
        let counting = sqlx::query_as(COUNT).bind(&token.account).bind(&token.name);
        let (count, of_name): (i64, i64) = writing.one(counting).await?;
        if of_name > 0 {
            return Ok(AddedToken::NameTaken);
        }
        if count >= most {
            return Ok(AddedToken::TooMany);
        }
        let adding = sqlx::query(INSERT)
            .bind(&token.id)
            .bind(&token.account)
            .bind(&token.name)
            .bind(&token.digest)
            .bind(&token.roles)
            .bind(now)
            .bind(token.expires_at)
            .bind(session)
            .bind(generation);
        if writing.execute(adding).await? == 0 {
            return Ok(AddedToken::NoAccount);
        }
        let forgetting = sqlx::query(FORGET).bind(&token.account).bind(most);
        writing.execute(forgetting).await?;
        writing.commit().await?;
        Ok(AddedToken::Added)
    }

    /// The tokens of an account that are not revoked, the newest first.
    pub async fn personal_tokens_of(
        &self,
        account: &str,
    ) -> Result<Vec<PersonalTokenRow>, StoreError> {
        self.connections.all(sqlx::query_as(OF_ACCOUNT).bind(account)).await
    }

    /// The token with this digest, even if it is revoked or expired.
    pub async fn personal_token(
        &self,
        digest: &str,
    ) -> Result<Option<PersonalTokenRow>, StoreError> {
        self.connections.first(sqlx::query_as(BY_DIGEST).bind(digest)).await
    }

    /// Uses a token: notes the day, and issues an access token to its account. `None`: it is
    /// revoked or expired at `now`, or its account is disabled. `scope` is that of the built-in
    /// issuer.
    pub async fn use_personal_token(
        &self,
        id: &str,
        scope: &str,
        now: i64,
    ) -> Result<Option<(PersonalTokenRow, Issued)>, StoreError> {
        let mut writing = self.connections.write().await?;
        let token: Option<PersonalTokenRow> =
            writing.first(sqlx::query_as(USABLE).bind(id).bind(now)).await?;
        let Some(token) = token else { return Ok(None) };
        let account: Option<AccountRow> =
            writing.first(sqlx::query_as(OWNER).bind(&token.account)).await?;
        let Some(account) = account else { return Ok(None) };
        let issued = issue_to(&mut writing, account, scope, now).await?;
        writing.execute(sqlx::query(USED).bind(now - now.rem_euclid(DAY)).bind(id)).await?;
        writing.commit().await?;
        Ok(Some((token, issued)))
    }

    /// Whether a token of `account` is revoked. `None`: there is no such token.
    pub async fn is_revoked(&self, id: &str, account: &str) -> Result<Option<bool>, StoreError> {
        let asking =
            sqlx::query_as("SELECT revoked_at FROM personal_tokens WHERE id = $1 AND account = $2");
        let found: Option<(Option<i64>,)> =
            self.connections.first(asking.bind(id).bind(account)).await?;
        Ok(found.map(|(revoked_at,)| revoked_at.is_some()))
    }

    /// Revokes a token of `account` and writes its revocation, in one transaction. Returns false,
    /// and writes nothing, if there is no such token. One that is already revoked is revoked again.
    pub async fn revoke_personal_token(
        &self,
        id: &str,
        account: &str,
        revocation: &RevocationRow,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        if writing.execute(sqlx::query(REVOKE).bind(now).bind(id).bind(account)).await? == 0 {
            return Ok(false);
        }
        write_revocations(&mut writing, std::slice::from_ref(revocation)).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Deletes the tokens that were revoked or expired before this time, in Unix seconds.
    pub async fn prune_personal_tokens(&self, before: i64) -> Result<(), StoreError> {
        self.prune(|most| sqlx::query(PRUNE).bind(before).bind(most)).await
    }
}

/// Revokes every token of an account, in a transaction that also cuts off what was issued to it.
pub(super) async fn revoke_all_tokens(
    writing: &mut WriteTransaction,
    account: &str,
    now: i64,
) -> Result<(), StoreError> {
    writing.execute(sqlx::query(REVOKE_ALL).bind(now).bind(account)).await?;
    Ok(())
}

/// Revokes the token with this id, if there is one.
pub(super) async fn revoke_token(
    writing: &mut WriteTransaction,
    id: &str,
    now: i64,
) -> Result<(), StoreError> {
    let revoking =
        "UPDATE personal_tokens SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL";
    writing.execute(sqlx::query(revoking).bind(now).bind(id)).await?;
    Ok(())
}

const DAY: i64 = 24 * 60 * 60;

const END_EXPIRED: &str = "UPDATE personal_tokens SET revoked_at = expires_at \
    WHERE account = $1 AND name = $2 AND expires_at <= $3 AND revoked_at IS NULL";

const COUNT: &str = "SELECT COUNT(*), COALESCE(SUM(CASE WHEN name = $2 THEN 1 ELSE 0 END), 0) FROM personal_tokens \
    WHERE account = $1 AND revoked_at IS NULL";

const INSERT: &str = "INSERT INTO personal_tokens (id, account, name, digest, roles, created_at, expires_at) \
    SELECT $1, $2, $3, $4, $5, $6, $7 FROM accounts WHERE id = $2 AND disabled = 0 AND generation = $9 AND ($8 IS NULL OR EXISTS (SELECT 1 FROM sessions \
    WHERE sessions.id = $8 AND sessions.account = $2 AND sessions.ended_at IS NULL AND sessions.generation = accounts.generation))";

/// Of the revoked tokens of an account, only the latest are kept.
const FORGET: &str = "DELETE FROM personal_tokens WHERE account = $1 AND revoked_at IS NOT NULL AND id NOT IN \
    (SELECT id FROM personal_tokens WHERE account = $1 AND revoked_at IS NOT NULL ORDER BY created_at DESC LIMIT $2)";

/// The columns of a [`PersonalTokenRow`], by name as those of an account.
macro_rules! token_columns {
    () => {
        "id, account, name, digest, roles, created_at, expires_at, last_used_at, revoked_at"
    };
}

const BY_DIGEST: &str =
    concat!("SELECT ", token_columns!(), " FROM personal_tokens WHERE digest = $1");

const OF_ACCOUNT: &str = concat!(
    "SELECT ",
    token_columns!(),
    " FROM personal_tokens WHERE account = $1 AND revoked_at IS NULL ORDER BY created_at DESC, name"
);

const USABLE: &str = concat!(
    "SELECT ",
    token_columns!(),
    " FROM personal_tokens WHERE id = $1 AND expires_at > $2 AND revoked_at IS NULL"
);

const OWNER: &str =
    concat!("SELECT ", account_columns!(), " FROM accounts WHERE id = $1 AND disabled = 0");

const USED: &str = "UPDATE personal_tokens SET last_used_at = $1 WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $1)";

const REVOKE: &str = "UPDATE personal_tokens SET revoked_at = CASE WHEN revoked_at IS NULL THEN $1 ELSE revoked_at END WHERE id = $2 AND account = $3";

const REVOKE_ALL: &str =
    "UPDATE personal_tokens SET revoked_at = $1 WHERE account = $2 AND revoked_at IS NULL";

const PRUNE: &str = "DELETE FROM personal_tokens WHERE id IN (SELECT id FROM personal_tokens WHERE revoked_at < $1 OR expires_at < $1 LIMIT $2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_settings as settings;
    use crate::store::{AccountChange, SessionRow};

    fn account(id: &str) -> AccountRow {
        AccountRow {
            id: id.into(),
            email: format!("{id}@x.example"),
            name: None,
            password: String::new(),
            roles: "user admin".into(),
            disabled: 0,
            email_verified: 0,
            generation: 0,
            not_before: 0,
            created_at: 1,
            last_login_at: None,
        }
    }

    fn token(id: &str, name: &str) -> PersonalTokenRow {
        PersonalTokenRow {
            id: id.into(),
            account: "a".into(),
            name: name.into(),
            digest: format!("digest of {id}"),
            roles: Some("user".into()),
            created_at: 100,
            expires_at: 1_000_000,
            last_used_at: None,
            revoked_at: None,
        }
    }

    fn revocation(kind: &str, value: &str) -> RevocationRow {
        RevocationRow {
            kind: kind.into(),
            value: value.into(),
            scope: "=x".into(),
            revoked_at: 200,
            seq: 0,
        }
    }

    async fn opened() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a")).await.unwrap();
        store.insert_account(&account("b")).await.unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn names_are_unique_and_their_number_is_bounded() {
        let (_folder, store) = opened().await;
        let add = async |token: PersonalTokenRow| {
            store.add_personal_token(&token, (None, 0), 2).await.unwrap()
        };
        assert_eq!(add(token("1", "laptop")).await, AddedToken::Added);
        assert_eq!(add(token("2", "laptop")).await, AddedToken::NameTaken);
        assert_eq!(add(token("3", "phone")).await, AddedToken::Added);
        assert_eq!(add(token("4", "tablet")).await, AddedToken::TooMany);
        let of_b = PersonalTokenRow { account: "b".into(), ..token("5", "laptop") };
        assert_eq!(add(of_b).await, AddedToken::Added);
        let of_nobody = PersonalTokenRow { account: "c".into(), ..token("6", "laptop") };
        assert_eq!(add(of_nobody).await, AddedToken::NoAccount);
        // A name is free again once its token is revoked or expired.
        assert!(store.revoke_personal_token("1", "a", &revocation("jti", "1"), 200).await.unwrap());
        assert_eq!(add(token("7", "laptop")).await, AddedToken::Added);
        let later = PersonalTokenRow { created_at: 1_000_000, ..token("8", "laptop") };
        assert_eq!(add(later).await, AddedToken::Added);
        let names: Vec<_> = store
            .personal_tokens_of("a")
            .await
            .unwrap()
            .into_iter()
            .map(|token| (token.id, token.name))
            .collect();
        assert_eq!(names, [("8".into(), "laptop".into()), ("3".into(), "phone".into())]);
        // Of the revoked ones, as many are kept.
        for id in ["9", "10", "11"] {
            store.revoke_personal_token("8", "a", &revocation("jti", "8"), 200).await.unwrap();
            store.revoke_personal_token(id, "a", &revocation("jti", id), 200).await.unwrap();
            let name = format!("n{id}");
            let row = PersonalTokenRow { created_at: 2_000_000, ..token(id, &name) };
            assert_eq!(add(row).await, AddedToken::Added, "{id}");
            store.revoke_personal_token(id, "a", &revocation("jti", id), 200).await.unwrap();
        }
        assert_eq!(store.personal_token("digest of 1").await.unwrap(), None);
        assert!(store.personal_token("digest of 11").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_session_that_has_ended_adds_no_token() {
        let (_folder, store) = opened().await;
        let session = SessionRow {
            id: "s".into(),
            account: "a".into(),
            generation: 0,
            counter: 0,
            created_at: 100,
            rotated_at: 100_000,
            address: "192.0.2.1".into(),
            user_agent: String::new(),
            ended_at: None,
            until_closed: 0,
            proof: crate::store::LoginProof::default(),
        };
        store.open_session(&session, "=x").await.unwrap().unwrap();
        let add = async |id: &str, account: &str| {
            let row = PersonalTokenRow { account: account.into(), ..token(id, id) };
            store.add_personal_token(&row, (Some("s"), 0), 9).await.unwrap()
        };
        assert_eq!(add("1", "a").await, AddedToken::Added);
        assert_eq!(add("2", "b").await, AddedToken::NoAccount, "the session of another account");
        let change = AccountChange::EndSessions;
        store.change_account("a", change, revocation("subject", "a"), 200).await.unwrap();
        assert_eq!(add("3", "a").await, AddedToken::NoAccount);
        // Where sessions are elsewhere, the generation tells.
        for (generation, added) in [(0, AddedToken::NoAccount), (1, AddedToken::Added)] {
            let bound = (None, generation);
            assert_eq!(store.add_personal_token(&token("4", "4"), bound, 9).await.unwrap(), added);
        }
    }

    /// What was issued for a token ends with every cut-off, and the next use is past it.
    #[tokio::test]
    async fn a_use_is_past_every_cut_off_and_notes_the_day() {
        let (_folder, store) = opened().await;
        store.add_personal_token(&token("1", "laptop"), (None, 0), 9).await.unwrap();
        let (used, issued) = store.use_personal_token("1", "=x", 90_000).await.unwrap().unwrap();
        assert_eq!((used.roles.as_deref(), issued.issued_at), (Some("user"), 90_000));
        let change = AccountChange::Roles { roles: "user", began: i64::MAX };
        let cutoff =
            store.change_account("a", change, revocation("subject", "a"), 80_000).await.unwrap();
        assert_eq!(cutoff, Some(90_000), "the cut-off covers it although the clock was set back");
        let (_, issued) = store.use_personal_token("1", "=x", 90_000).await.unwrap().unwrap();
        assert_eq!((issued.issued_at, issued.account.roles.as_str()), (90_001, "user"));
        let row = store.personal_token("digest of 1").await.unwrap().unwrap();
        assert_eq!(row.last_used_at, Some(86_400));
        for (disabled, is_usable) in [(true, false), (false, true)] {
            let change = AccountChange::Disabled(disabled);
            store.change_account("a", change, revocation("subject", "a"), 90_000).await.unwrap();
            let used = store.use_personal_token("1", "=x", 90_000).await.unwrap();
            assert_eq!(used.is_some(), is_usable);
        }
        assert!(store.use_personal_token("1", "=x", 1_000_000).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_revoked_token_is_kept_for_a_while_and_never_usable() {
        let (_folder, store) = opened().await;
        for id in ["1", "2"] {
            store.add_personal_token(&token(id, id), (None, 0), 9).await.unwrap();
        }
        assert!(
            !store.revoke_personal_token("1", "b", &revocation("jti", "1"), 200).await.unwrap()
        );
        assert!(store.revocations_after(0).await.unwrap().is_empty());
        for at in [200, 300] {
            let row = revocation("jti", "1");
            assert!(store.revoke_personal_token("1", "a", &row, at).await.unwrap());
        }
        assert_eq!(store.revocations_after(0).await.unwrap().len(), 1);
        assert!(store.use_personal_token("1", "=x", 210).await.unwrap().is_none());
        // `portcullis revoke --jti` is for good as well.
        let rows = [revocation("jti", "2")];
        store.revoke_for_good(&rows, &rows).await.unwrap();
        assert!(store.use_personal_token("2", "=x", 210).await.unwrap().is_none());
        store.prune_personal_tokens(200).await.unwrap();
        let row = store.personal_token("digest of 1").await.unwrap().unwrap();
        assert_eq!(row.revoked_at, Some(200), "the first time counts");
        store.prune_personal_tokens(201).await.unwrap();
        assert_eq!(store.personal_token("digest of 1").await.unwrap(), None);
    }
}
