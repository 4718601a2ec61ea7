//! Accounts whose cut-off is ahead of the current time: the clock was ahead when they logged in,
//! and their sessions were ended later. Any token issued to them now would be cut off.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::accounts::end_logins;
use super::revocations::{latest_cutoff, write_revocations};
use super::sessions::MAX_AHEAD;
use super::{RevocationRow, Store, StoreError, format_time};

/// The accounts that could not log in for this reason, and until when. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ahead(Arc<Mutex<BTreeMap<String, i64>>>);

impl Ahead {
    pub(super) fn note(&self, account: &str, until: i64) {
        let mut noted = self.noted();
        if noted.len() < MAX_NOTED || noted.contains_key(account) {
            noted.insert(account.to_owned(), until);
        }
    }

    /// The problem, in words for the operator.
    pub(super) fn problem(&self) -> Option<String> {
        let noted = self.noted();
        let (account, until) = noted.first_key_value()?;
        let others = match noted.len() - 1 {
            0 => String::new(),
            more => format!(" ({more} more accounts have the same problem)"),
        };
        Some(format!(
            "the account {account} cannot log in until {}: its tokens are revoked until then, because this machine's clock was ahead{others}; \
             correct the clock, then run `portcullis user end-sessions EMAIL --now`",
            format_time(*until)
        ))
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Forgets the accounts that can log in again.
    pub async fn forget_past_cutoffs(&self, now: i64) -> Result<(), StoreError> {
        let accounts: Vec<String> = self.ahead.noted().keys().cloned().collect();
        for account in accounts {
            let cutoff: Option<(i64,)> =
                self.connections.first(sqlx::query_as(LATEST).bind(&account)).await?;
            if cutoff.is_none_or(|(cutoff,)| cutoff < now + MAX_AHEAD) {
                self.ahead.noted().remove(&account);
            }
        }
        Ok(())
    }

    /// Ends every session of an account whose cut-off is ahead of `now`, and moves the cut-off back
    /// to `now`. What was issued to it with a later `iat` is revoked by its session instead, for as
    /// long as the cut-off would have held; `elsewhere`: sessions that are not in the database. `revocation` is for the subject. Returns false, and
    /// writes nothing, if the cut-off is not ahead. Also writes nothing on an error.
    pub async fn move_cutoff_back(
        &self,
        account: &str,
        elsewhere: &[String],
        revocation: &RevocationRow,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let noted: Option<(i64, i64)> = writing.first(sqlx::query_as(NOTED).bind(account)).await?;
        let Some((issued_at, not_before)) = noted else { return Ok(false) };
        let cutoff = latest_cutoff(&mut writing, account, &revocation.scope).await?;
        let ahead = issued_at.max(not_before).max(cutoff);
        if ahead <= now + MAX_AHEAD {
            return Ok(false);
        }
        let sessions: Vec<(String,)> = writing.all(sqlx::query_as(SESSIONS).bind(account)).await?;
        let of_session = |(session,): (String,)| RevocationRow {
            kind: "sid".to_owned(),
            value: session,
            revoked_at: ahead,
            ..revocation.clone()
        };
        let elsewhere = elsewhere.iter().map(|session| (session.clone(),));
        let mut rows: Vec<_> = sessions.into_iter().chain(elsewhere).map(of_session).collect();
        writing.execute(sqlx::query(END_ALL).bind(now).bind(account)).await?;
        writing.execute(sqlx::query(BEGIN_ANEW).bind(now).bind(account)).await?;
        let lowering = sqlx::query(LOWER).bind(now).bind(account).bind(&revocation.scope);
        writing.execute(lowering).await?;
        rows.push(RevocationRow { revoked_at: now, ..revocation.clone() });
        // Last: by then, every follower knows the others.
        rows.push(RevocationRow {
            kind: LOWERED.to_owned(),
            revoked_at: now,
            ..revocation.clone()
        });
        write_revocations(&mut writing, &rows).await?;
        end_logins(&mut writing, account, now).await?;
        writing.commit().await?;
        Ok(true)
    }
}

/// The kind of a row that revokes nothing: it says that the cut-offs of this subject were moved
/// back.
pub const LOWERED: &str = "lowered";

/// How many accounts to note: the operator needs to know of only one.
const MAX_NOTED: usize = 100;

const LATEST: &str = "SELECT CASE WHEN latest > not_before THEN latest ELSE not_before END FROM (SELECT not_before, \
    (SELECT COALESCE(MAX(revoked_at), 0) FROM revocations WHERE kind = 'subject' AND value = $1) AS latest FROM accounts WHERE id = $1) AS latest_of_both";

const NOTED: &str = "SELECT issued_at, not_before FROM accounts WHERE id = $1";

const SESSIONS: &str = "SELECT id FROM sessions WHERE account = $1";

const END_ALL: &str = "UPDATE sessions SET ended_at = $1 WHERE account = $2 AND ended_at IS NULL";

const BEGIN_ANEW: &str = "UPDATE accounts SET generation = generation + 1, not_before = $1, issued_at = $1 WHERE id = $2";

const LOWER: &str = "UPDATE revocations SET revoked_at = $1 WHERE kind = 'subject' AND value = $2 AND scope IN ('*', $3) AND revoked_at > $1";
