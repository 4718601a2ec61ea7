//! The tables of second factors: the secret that codes are computed from, and the recovery codes in
//! case it is lost.

use zeroize::Zeroizing;

use super::connections::WriteTransaction;
use super::{Store, StoreError};

/// The second factor of an account.
#[derive(Clone)]
pub struct SecondFactor {
    /// The secret that codes are computed from.
    pub secret: Zeroizing<Vec<u8>>,
    /// Whether logins require a code.
    pub is_confirmed: bool,
    /// When setting it up began, in Unix seconds.
    pub begun_at: i64,
    /// The session that began it; empty: not known.
    pub begun_in: String,
    /// The time step of the last accepted code.
    pub last_step: i64,
    /// The secret as it is stored. It identifies the secret that a confirmation is for.
    sealed: String,
}

impl std::fmt::Debug for SecondFactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecondFactor")
            .field("is_confirmed", &self.is_confirmed)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The second factor of an account, confirmed or not.
    pub async fn second_factor(&self, account: &str) -> Result<Option<SecondFactor>, StoreError> {
        let row: Option<(String, i64, String, Option<i64>, i64)> =
            self.connections.first(sqlx::query_as(READ).bind(account)).await?;
        let Some((sealed, begun_at, begun_in, confirmed_at, last_step)) = row else {
            return Ok(None);
        };
        let secret = self.sealer.open(&place(account), &sealed)?;
        let is_confirmed = confirmed_at.is_some();
        Ok(Some(SecondFactor { secret, is_confirmed, begun_at, begun_in, last_step, sealed }))
    }

    /// The ids of all accounts with a confirmed second factor.
    pub async fn second_factor_owners(&self) -> Result<Vec<String>, StoreError> {
        let owners: Vec<(String,)> = self.connections.all(sqlx::query_as(OWNERS)).await?;
        Ok(owners.into_iter().map(|(account,)| account).collect())
    }

    /// Writes another secret for an account of this generation, to be confirmed by `session`. Returns
    /// false if it has a confirmed one, or another generation.
    pub async fn begin_second_factor(
        &self,
        (account, generation): (&str, i64),
        session: &str,
        secret: &[u8],
        now: i64,
    ) -> Result<bool, StoreError> {
        let sealed = self.sealer.seal(&place(account), secret)?;
        let beginning = sqlx::query(BEGIN).bind(account).bind(sealed).bind(now).bind(generation);
        Ok(self.write(beginning.bind(session)).await? == 1)
    }

    /// From now on, logins of the account require codes of this secret. `recovery` holds the
    /// digests of the codes that work once. Returns false if the secret was replaced or confirmed
    /// in the meantime, or the account has another generation. Writes nothing on an error.
    pub async fn confirm_second_factor(
        &self,
        (account, generation): (&str, i64),
        factor: &SecondFactor,
        step: i64,
        recovery: &[String],
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let confirming =
            sqlx::query(CONFIRM).bind(now).bind(step).bind(account).bind(&factor.sealed);
        if writing.execute(confirming.bind(generation)).await? == 0 {
            return Ok(false);
        }
        replace_codes(&mut writing, account, recovery).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Replaces the recovery codes of an account by those with these digests. Returns false if its
    /// logins require no codes, or it has another generation. Writes nothing on an error.
    pub async fn replace_recovery_codes(
        &self,
        (account, generation): (&str, i64),
        recovery: &[String],
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let asking = sqlx::query_as(IS_CONFIRMED).bind(account.to_owned()).bind(generation);
        let confirmed: Option<(String,)> = writing.first(asking).await?;
        if confirmed.is_none() {
            return Ok(false);
        }
        replace_codes(&mut writing, account, recovery).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Accepts the code of a time step. Of any number of attempts with it, one succeeds, and none
    /// succeeds later with an earlier code. A last step after `ahead` does not count: the clock was
    /// ahead then.
    pub async fn take_code(
        &self,
        account: &str,
        step: i64,
        ahead: i64,
    ) -> Result<bool, StoreError> {
        Ok(self.write(sqlx::query(TAKE).bind(step).bind(account).bind(ahead)).await? == 1)
    }

    /// How many unused recovery codes an account has.
    pub async fn recovery_codes_left(&self, account: &str) -> Result<i64, StoreError> {
        let (count,): (i64,) = self
            .connections
            .one(
                sqlx::query_as("SELECT COUNT(*) FROM recovery_codes WHERE account = $1")
                    .bind(account),
            )
            .await?;
        Ok(count)
    }

    /// Uses a recovery code up. Returns false if the account does not, or no longer, have it.
    pub async fn use_recovery_code(&self, account: &str, digest: &str) -> Result<bool, StoreError> {
        let statement =
            sqlx::query("DELETE FROM recovery_codes WHERE account = $1 AND digest = $2");
        let mut writing = self.connections.write().await?;
        if writing.execute(statement.bind(account).bind(digest)).await? == 0 {
            return Ok(false);
        }
        let statement = sqlx::query(
            "UPDATE second_factors SET failures = 0, blocked_until = 0 WHERE account = $1",
        );
        writing.execute(statement.bind(account)).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Counts a code as wrong, until [`take_code`](Self::take_code) or
    /// [`use_recovery_code`](Self::use_recovery_code) finds that it is right. After `most` in a row,
    /// this returns false for `block` seconds from `now`: no code may be checked.
    pub async fn count_code(
        &self,
        account: &str,
        most: i64,
        now: i64,
        block: i64,
    ) -> Result<bool, StoreError> {
        let counting = sqlx::query(COUNT).bind(account).bind(most).bind(now + block);
        Ok(self.write(counting.bind(now).bind(now + 2 * block)).await? == 1)
    }

    /// Removes the second factor of an account and its recovery codes. With a generation, does so only
    /// while the account has that one. Returns whether anything was removed. Writes nothing on an error.
    pub async fn remove_second_factor(
        &self,
        account: &str,
        generation: Option<i64>,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        if writing.execute(sqlx::query(REMOVE).bind(account).bind(generation)).await? == 0 {
            return Ok(false);
        }
        writing.execute(sqlx::query(FORGET_CODES).bind(account)).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// The key for the tickets of logins that wait for a code.
    pub fn ticket_key(&self) -> Zeroizing<[u8; 32]> {
        self.sealer.derive("portcullis login tickets v1")
    }

    /// The key for the digests of recovery codes.
    pub fn recovery_key(&self) -> Zeroizing<[u8; 32]> {
        self.sealer.derive("portcullis recovery codes v1")
    }
}

/// Forgets a secret of an account that is not confirmed, in a transaction that sets another password.
pub(super) async fn forget_unconfirmed(
    writing: &mut WriteTransaction,
    account: &str,
) -> Result<(), StoreError> {
    writing.execute(sqlx::query(FORGET_UNCONFIRMED).bind(account)).await?;
    Ok(())
}

async fn replace_codes(
    writing: &mut WriteTransaction,
    account: &str,
    digests: &[String],
) -> Result<(), StoreError> {
    writing.execute(sqlx::query(FORGET_CODES).bind(account.to_owned())).await?;
    for digest in digests {
        let adding = sqlx::query("INSERT INTO recovery_codes (account, digest) VALUES ($1, $2)");
        writing.execute(adding.bind(account.to_owned()).bind(digest.clone())).await?;
    }
    Ok(())
}

/// The place that a secret is sealed for.
fn place(account: &str) -> String {
    format!("second_factors.secret/{account}")
}

const READ: &str = "SELECT secret, created_at, session, confirmed_at, last_step FROM second_factors WHERE account = $1";

const OWNERS: &str = "SELECT account FROM second_factors WHERE confirmed_at IS NOT NULL";

const BEGIN: &str = "INSERT INTO second_factors (account, secret, created_at, confirmed_at, last_step, failures, blocked_until, session) \
    SELECT id, $2, $3, NULL, 0, 0, 0, $5 FROM accounts WHERE id = $1 AND generation = $4 AND disabled = 0 ON CONFLICT (account) DO UPDATE SET secret = excluded.secret, created_at = excluded.created_at, session = excluded.session \
    WHERE second_factors.confirmed_at IS NULL";

const CONFIRM: &str = "UPDATE second_factors SET confirmed_at = $1, last_step = $2 \
    WHERE account = $3 AND secret = $4 AND confirmed_at IS NULL \
    AND EXISTS (SELECT 1 FROM accounts WHERE id = $3 AND generation = $5 AND disabled = 0)";

const REMOVE: &str = "DELETE FROM second_factors WHERE account = $1 \
    AND ($2 IS NULL OR EXISTS (SELECT 1 FROM accounts WHERE id = $1 AND generation = $2 AND disabled = 0))";

const IS_CONFIRMED: &str = "SELECT account FROM second_factors WHERE account = $1 AND confirmed_at IS NOT NULL \
    AND EXISTS (SELECT 1 FROM accounts WHERE id = $1 AND generation = $2 AND disabled = 0)";

const FORGET_UNCONFIRMED: &str =
    "DELETE FROM second_factors WHERE account = $1 AND confirmed_at IS NULL";

const FORGET_CODES: &str = "DELETE FROM recovery_codes WHERE account = $1";

const TAKE: &str = "UPDATE second_factors SET last_step = $1, failures = 0, blocked_until = 0 \
    WHERE account = $2 AND confirmed_at IS NOT NULL AND (last_step < $1 OR last_step > $3)";

/// A block from when the clock was ahead must not last for longer than ever. Clocks of replicas may
/// differ by a little.
const COUNT: &str = "UPDATE second_factors SET failures = CASE WHEN failures + 1 >= $2 THEN 0 ELSE failures + 1 END, \
    blocked_until = CASE WHEN failures + 1 >= $2 THEN $3 ELSE blocked_until END \
    WHERE account = $1 AND (blocked_until <= $4 OR blocked_until >= $5)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::AccountChange;
    use crate::store::accounts::tests::{account, revocation};
    use crate::store::test_settings as settings;

    /// The password may have waited to be hashed until the sessions of the caller had ended.
    #[tokio::test]
    async fn nothing_changes_for_a_caller_whose_sessions_have_ended() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        let begin = async |generation| {
            store.begin_second_factor(("a", generation), "s", b"secret", 1).await.unwrap()
        };
        let end = async || {
            let change = AccountChange::EndSessions;
            store.change_account("a", change, revocation("subject", "a"), 9).await.unwrap();
        };
        assert!(begin(0).await);
        let factor = store.second_factor("a").await.unwrap().unwrap();
        end().await;
        assert!(!begin(0).await, "begun");
        let confirm = async |factor: &SecondFactor, generation| {
            let codes = ["digest".to_owned()];
            store.confirm_second_factor(("a", generation), factor, 5, &codes, 2).await.unwrap()
        };
        assert!(!confirm(&factor, 0).await, "confirmed");
        assert!(confirm(&factor, 1).await);
        end().await;
        let renew = async |generation| {
            let codes = ["other".to_owned(), "more".to_owned()];
            store.replace_recovery_codes(("a", generation), &codes).await.unwrap()
        };
        assert!(!renew(1).await, "new codes");
        assert!(!store.remove_second_factor("a", Some(1)).await.unwrap(), "removed");
        assert_eq!(store.recovery_codes_left("a").await.unwrap(), 1);
        assert!(renew(2).await);
        assert!(store.remove_second_factor("a", Some(2)).await.unwrap());
        assert_eq!(store.recovery_codes_left("a").await.unwrap(), 0);
        assert!(begin(2).await && store.remove_second_factor("a", None).await.unwrap());
        let delete = async |generation| {
            let change = AccountChange::Delete(generation);
            store.change_account("a", change, revocation("subject", "a"), 9).await.unwrap()
        };
        assert_eq!(delete(Some(1)).await, None, "deleted");
        assert!(delete(Some(2)).await.is_some());
    }

    #[tokio::test]
    async fn another_password_forgets_what_is_not_confirmed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("a", "a@x.example")).await.unwrap();
        for (generation, is_confirmed) in [(0, false), (1, true)] {
            assert!(store.begin_second_factor(("a", generation), "s", b"secret", 1).await.unwrap());
            let factor = store.second_factor("a").await.unwrap().unwrap();
            assert_eq!((factor.begun_at, factor.begun_in.as_str()), (1, "s"));
            if is_confirmed {
                let of = ("a", generation);
                assert!(store.confirm_second_factor(of, &factor, 5, &[], 2).await.unwrap());
            }
            let change = AccountChange::Password { hash: "new", generation };
            let subject = revocation("subject", "a");
            assert!(store.change_account("a", change, subject, 9).await.unwrap().is_some());
            assert_eq!(store.second_factor("a").await.unwrap().is_some(), is_confirmed);
        }
    }
}
