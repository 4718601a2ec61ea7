//! The table of revocations. The gateway and `portcullis revoke` write it, and every process that
//! has it open follows it.

use sqlx::Any;
use sqlx::any::AnyArguments;
use sqlx::query::QueryAs;

use super::connections::WriteTransaction;
use super::identity::DatabaseIdentity;
use super::personal_tokens::revoke_token;
use super::{Store, StoreError, postgres};

/// A row: which tokens are revoked, and since when.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct RevocationRow {
    /// `jti`, `sid` or `subject`.
    pub kind: String,
    /// The value of that claim.
    pub value: String,
    /// `*`, or `=` and an `iss`.
    pub scope: String,
    /// Unix seconds.
    pub revoked_at: i64,
    /// Its place in the order of writes, assigned when it is written.
    pub seq: i64,
}

/// What followers read.
#[derive(Debug)]
pub enum News {
    /// The next rows, in the order of writes, at most [`REVOCATIONS_PAGE`].
    Rows(Vec<RevocationRow>),
    /// The database has another history than the one that was read so far, with this name: it was
    /// restarted or restored, or a standby has taken over. It may lack what was acknowledged last.
    OtherHistory(String),
}

/// Which revocations are old. Both conditions must hold.
#[derive(Clone, Copy, Debug)]
pub struct OlderThan {
    /// Revoked before this time, in Unix seconds.
    pub revoked_at: i64,
    /// Written before gateways had run on the database for this many seconds: a clock that is ahead
    /// does not make a row old by this measure.
    pub noted_at: i64,
}

impl Store {
    /// Writes revocations, all or none. One that already exists keeps the later time, and followers
    /// read it again. Returns the times as written: a subject's cut-off is at or after the `iat` of
    /// every token that was issued to it here. Writes nothing on an error.
    pub async fn revoke(&self, rows: &[RevocationRow]) -> Result<Vec<i64>, StoreError> {
        self.revoke_for_good(rows, &[]).await
    }

    /// Does the same as [`Store::revoke`], and in the same transaction ends what could be used to
    /// continue: of the revocations in `for_good`, the sessions with these `sid`s and the personal
    /// access tokens with these `jti`s. Writes nothing on an error.
    pub async fn revoke_for_good(
        &self,
        rows: &[RevocationRow],
        for_good: &[RevocationRow],
    ) -> Result<Vec<i64>, StoreError> {
        let mut writing = self.connections.write().await?;
        let written = write_revocations(&mut writing, rows).await?;
        for RevocationRow { kind, value, revoked_at, .. } in for_good {
            if kind == "jti" {
                revoke_token(&mut writing, value, *revoked_at).await?;
            } else {
                writing.execute(sqlx::query(END_SESSION).bind(revoked_at).bind(value)).await?;
            }
        }
        writing.commit().await?;
        Ok(written)
    }

    /// The number of the last revocation that was written, or 0 if there is none.
    pub async fn last_revocation(&self) -> Result<i64, StoreError> {
        let (seq,): (i64,) = self
            .connections
            .one(sqlx::query_as("SELECT COALESCE(MAX(seq), 0) FROM revocations"))
            .await?;
        Ok(seq)
    }

    /// The rows that were written after `seq`, if the database still has the history that was read
    /// so far.
    ///
    /// # Errors
    /// [`StoreError::Lost`] or [`StoreError::OtherDatabase`] if the database is no longer the one
    /// that was opened.
    pub async fn news_after(&self, seq: i64) -> Result<News, StoreError> {
        self.connections.look_again().await?;
        let read = self.read_news(seq).await;
        if let (Err(StoreError::Database(error)), Some(identity)) =
            (&read, self.connections.identity())
            && postgres::leaves_open_why(error)
        {
            identity.diagnose().await?;
        }
        read
    }

    async fn read_news(&self, seq: i64) -> Result<News, StoreError> {
        let mut reading = self.connections.follow().await?;
        match self.connections.identity() {
            Some(DatabaseIdentity::Files(files)) => {
                let found: Vec<(Option<String>, i64, i64)> =
                    reading.all(sqlx::query_as(SELECT_IDENTITY)).await?;
                let (id, last, length) = found.into_iter().next().unwrap_or_default();
                files.check()?;
                let compared = files.compare(id.as_deref(), last, seq, length);
                compared.map_err(|error| StoreError::Database(error.into()))?;
                files.check()?;
            }
            Some(DatabaseIdentity::Server(server)) => {
                let found: Vec<(Option<String>, i64, String)> =
                    reading.all(sqlx::query_as(SELECT_SERVER)).await?;
                let (id, last, history) = found.into_iter().next().unwrap_or_default();
                if !server.compare(id.as_deref(), &history)? || last < seq {
                    reading.end().await?;
                    return Ok(News::OtherHistory(history));
                }
                server.accept(&history);
            }
            None => {}
        }
        let rows = reading.all(after(seq)).await?;
        reading.end().await?;
        Ok(News::Rows(rows))
    }

    /// The rows that were written after `seq`, in the order of writes, at most
    /// [`REVOCATIONS_PAGE`], whatever the database's history.
    pub async fn revocations_after(&self, seq: i64) -> Result<Vec<RevocationRow>, StoreError> {
        let mut reading = self.connections.follow().await?;
        let rows = reading.all(after(seq)).await?;
        reading.end().await?;
        Ok(rows)
    }

    /// From now on, followers read this history.
    pub fn accept_history(&self, history: &str) {
        if let Some(DatabaseIdentity::Server(server)) = self.connections.identity() {
            server.accept(history);
        }
    }

    /// Writes the heartbeat of this replica among the revocations, and returns its number: whoever
    /// reads that number has also read every revocation before it. `None`: this process is not one
    /// of several replicas.
    pub async fn beat(&self, now: i64) -> Result<Option<i64>, StoreError> {
        let Some(id) = self.replica_id() else { return Ok(None) };
        let row = RevocationRow {
            kind: BEAT.to_owned(),
            value: id.to_owned(),
            scope: "*".to_owned(),
            revoked_at: now,
            seq: 0,
        };
        let mut writing = self.connections.write().await?;
        write_revocations(&mut writing, std::slice::from_ref(&row)).await?;
        let reading = sqlx::query_as("SELECT seq FROM revocations WHERE kind = $1 AND value = $2");
        let (seq,): (i64,) = writing.one(reading.bind(BEAT).bind(id)).await?;
        writing.commit().await?;
        self.count_replicas().await?;
        Ok(Some(seq))
    }

    /// Deletes the old revocations of this scope, or of every scope for `None`.
    pub async fn prune_revocations(
        &self,
        scope: Option<&str>,
        OlderThan { revoked_at, noted_at }: OlderThan,
    ) -> Result<(), StoreError> {
        self.prune(|most| {
            let query = sqlx::query(if scope.is_some() { PRUNE_SCOPE } else { PRUNE });
            let query = query.bind(revoked_at).bind(noted_at).bind(most);
            match scope {
                Some(scope) => query.bind(scope),
                None => query,
            }
        })
        .await
    }

    /// For how many seconds gateways have run on this database, as far as noted.
    pub async fn running_seconds(&self) -> Result<i64, StoreError> {
        let (seconds,): (i64,) = self.connections.one(sqlx::query_as(RUNNING)).await?;
        Ok(seconds)
    }

    /// Notes that gateways have run on this database for this many seconds, unless more are noted.
    /// Returns what is noted now. Each revocation is written with this number.
    pub async fn record_running_seconds(&self, seconds: i64) -> Result<i64, StoreError> {
        let mut writing = self.connections.write().await?;
        let (noted,): (i64,) = writing.one(sqlx::query_as(RUNNING)).await?;
        let seconds = seconds.max(noted);
        writing.execute(sqlx::query(RECORD_RUNNING).bind(seconds.to_string())).await?;
        writing.commit().await?;
        Ok(seconds)
    }
}

/// Writes revocations along with the other changes of a transaction, and returns their times as
/// written.
pub(super) async fn write_revocations(
    writing: &mut WriteTransaction,
    rows: &[RevocationRow],
) -> Result<Vec<i64>, StoreError> {
    let mut written = Vec::with_capacity(rows.len());
    for row in rows {
        let statement = sqlx::query_as(INSERT)
            .bind(&row.kind)
            .bind(&row.value)
            .bind(&row.scope)
            .bind(row.revoked_at);
        let (revoked_at,): (i64,) = writing.one(statement).await?;
        written.push(revoked_at);
    }
    Ok(written)
}

/// The latest cut-off of an account's tokens whose `iss` has this scope, or 0 if there is none. No
/// other cut-off can be written before the transaction ends.
pub(super) async fn latest_cutoff(
    writing: &mut WriteTransaction,
    account: &str,
    scope: &str,
) -> Result<i64, StoreError> {
    let (cutoff,): (i64,) = writing.one(sqlx::query_as(CUTOFF).bind(account).bind(scope)).await?;
    Ok(cutoff)
}

impl Store {
    /// The same, for one who only reads.
    pub async fn cutoff(&self, account: &str, scope: &str) -> Result<i64, StoreError> {
        let asking = sqlx::query_as(CUTOFF).bind(account).bind(scope);
        let (cutoff,): (i64,) = self.connections.one(asking).await?;
        Ok(cutoff)
    }
}

fn after(seq: i64) -> QueryAs<'static, Any, RevocationRow, AnyArguments> {
    let page = i64::try_from(REVOCATIONS_PAGE).unwrap_or(i64::MAX);
    sqlx::query_as(AFTER).bind(seq).bind(page)
}

/// The kind of a row that revokes nothing: the heartbeat of the replica that is its value.
pub const BEAT: &str = "beat";

/// The kind of a row that revokes nothing: logins at a provider that began before it was written fail.
/// Its value is an account, or a person or session at the provider.
pub const LOGINS_ENDED: &str = "login";

/// Ends the logins in progress of an account, or of a person or session at a provider.
pub(super) fn end_of_logins(value: String, now: i64) -> RevocationRow {
    let kind = LOGINS_ENDED.to_owned();
    RevocationRow { kind, value, scope: "*".to_owned(), revoked_at: now, seq: 0 }
}

/// The maximum number of rows to read at a time.
pub const REVOCATIONS_PAGE: usize = 10_000;

/// Numbers several rows, in this order, and notes for how long gateways have run.
macro_rules! next_numbers {
    ($order:literal) => {
        concat!(
            "(SELECT COALESCE(MAX(seq), 0) FROM revocations) + ROW_NUMBER() OVER (ORDER BY ",
            $order,
            "), COALESCE((SELECT CAST(value AS BIGINT) FROM facts WHERE name = 'running_seconds'), 0)"
        )
    };
}

/// A row that exists gets the new number, and keeps the later time.
macro_rules! keep_later {
    () => {
        "ON CONFLICT (kind, value, scope) DO UPDATE SET seq = excluded.seq, noted_at = excluded.noted_at, revoked_at = CASE \
         WHEN excluded.revoked_at > revocations.revoked_at THEN excluded.revoked_at ELSE revocations.revoked_at END"
    };
}

/// A subject that is an account of this store may have a token that was issued past an earlier
/// cut-off, with an `iat` ahead of the current time. `WHERE true` tells SQLite's parser that
/// `ON CONFLICT` is not a join.
const INSERT: &str = concat!(
    "INSERT INTO revocations (kind, value, scope, revoked_at, seq, noted_at) \
     SELECT $1, $2, $3, COALESCE((SELECT issued_at FROM accounts WHERE id = $2 AND issued_at > $4 AND $1 = 'subject'), $4), \
     COALESCE(MAX(seq), 0) + 1, COALESCE((SELECT CAST(value AS BIGINT) FROM facts WHERE name = 'running_seconds'), 0) FROM revocations WHERE true ",
    keep_later!(),
    " RETURNING revoked_at"
);

/// The same for accounts between two ids that have just been cut off.
pub(super) const REVOKE_ACCOUNTS: &str = concat!(
    "INSERT INTO revocations (kind, value, scope, revoked_at, seq, noted_at) SELECT $3, id, $4, not_before, ",
    next_numbers!("id"),
    " FROM accounts WHERE id >= $1 AND id <= $2 ",
    keep_later!()
);

/// Ends the logins in progress of accounts between two ids, if anybody logs in to them at a provider.
pub(super) const END_LOGINS_OF: &str = concat!(
    "INSERT INTO revocations (kind, value, scope, revoked_at, seq, noted_at) SELECT $3, account, '*', $4, ",
    next_numbers!("account"),
    " FROM (SELECT DISTINCT account FROM provider_people WHERE account >= $1 AND account <= $2) AS people WHERE true ",
    keep_later!()
);

const CUTOFF: &str = "SELECT COALESCE(MAX(revoked_at), 0) FROM revocations WHERE kind = 'subject' AND value = $1 AND scope IN ('*', $2)";

pub(super) const END_SESSION: &str =
    "UPDATE sessions SET ended_at = $1 WHERE id = $2 AND ended_at IS NULL";

const AFTER: &str = "SELECT kind, value, scope, revoked_at, seq FROM revocations WHERE seq > $1 ORDER BY seq LIMIT $2";

const SELECT_IDENTITY: &str = "SELECT (SELECT value FROM facts WHERE name = 'store_id'), (SELECT COALESCE(MAX(seq), 0) FROM revocations), \
    (SELECT page_count * page_size FROM pragma_page_count, pragma_page_size)";

/// The history of a database is named by its server process and its table.
macro_rules! history {
    () => {
        "CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) AS TEXT) || '/' || CAST(CAST(CAST('revocations' AS regclass) AS oid) AS TEXT)"
    };
}
pub(super) use history;

const SELECT_SERVER: &str = concat!(
    "SELECT (SELECT value FROM facts WHERE name = 'store_id'), (SELECT COALESCE(MAX(seq), 0) FROM revocations), ",
    history!()
);

const PRUNE: &str = "DELETE FROM revocations WHERE seq IN (SELECT seq FROM revocations WHERE revoked_at < $1 AND noted_at < $2 \
    AND seq < (SELECT MAX(seq) FROM revocations) LIMIT $3)";

const PRUNE_SCOPE: &str = "DELETE FROM revocations WHERE seq IN (SELECT seq FROM revocations WHERE revoked_at < $1 AND noted_at < $2 \
    AND scope = $4 AND seq < (SELECT MAX(seq) FROM revocations) LIMIT $3)";

const RUNNING: &str =
    "SELECT COALESCE(MAX(CAST(value AS BIGINT)), 0) FROM facts WHERE name = 'running_seconds'";

const RECORD_RUNNING: &str = "INSERT INTO facts (name, value) VALUES ('running_seconds', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_settings as settings;

    fn row(kind: &str, value: &str, scope: &str, revoked_at: i64) -> RevocationRow {
        RevocationRow {
            kind: kind.into(),
            value: value.into(),
            scope: scope.into(),
            revoked_at,
            seq: 0,
        }
    }

    /// Old by the time of day. By the count, every row is old.
    fn older(revoked_at: i64) -> OlderThan {
        OlderThan { revoked_at, noted_at: 1 }
    }

    async fn read(store: &Store, after: i64) -> Vec<(String, i64, i64)> {
        let rows = store.revocations_after(after).await.unwrap();
        rows.into_iter()
            .map(|row| {
                (format!("{} {} {}", row.kind, row.value, row.scope), row.revoked_at, row.seq)
            })
            .collect()
    }

    #[tokio::test]
    async fn rows_are_returned_in_order_and_again_after_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.revoke(&[row("jti", "a", "*", 100), row("sid", "a", "=x", 100)]).await.unwrap();
        assert_eq!(
            read(&store, 0).await,
            [("jti a *".into(), 100, 1), ("sid a =x".into(), 100, 2)]
        );
        // Another process writes an older time: the later one stays.
        let other = Store::open(&settings(folder.path())).await.unwrap();
        other.revoke(&[row("jti", "a", "*", 90), row("jti", "a", "=", 90)]).await.unwrap();
        assert_eq!(read(&store, 2).await, [("jti a *".into(), 100, 3), ("jti a =".into(), 90, 4)]);
        other.revoke(&[row("jti", "a", "*", 110)]).await.unwrap();
        assert_eq!(read(&store, 4).await, [("jti a *".into(), 110, 5)]);
        store.revoke(&[]).await.unwrap();
        assert!(read(&store, 5).await.is_empty());
    }

    /// The account was issued a token past an earlier cut-off. Another cut-off in the same second
    /// covers that token, no matter who requests it.
    #[tokio::test]
    async fn the_cut_off_of_a_subject_covers_its_last_token() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let insert = "INSERT INTO accounts VALUES ('u', 'u@x.example', NULL, '', '', 0, 0, 0, 0, 0, NULL, $1)";
        sqlx::query(insert).bind(102_i64).execute(store.connections.writer()).await.unwrap();
        for (kind, value, scope, asked, written) in [
            ("subject", "u", "*", 100, 102),
            ("subject", "u", "=x", 101, 102),
            ("subject", "u", "=x", 103, 103),
            ("subject", "u", "=x", 100, 103),
            ("subject", "v", "=x", 100, 100),
            ("sid", "u", "=x", 100, 100),
        ] {
            assert_eq!(
                store.revoke(&[row(kind, value, scope, asked)]).await.unwrap(),
                [written],
                "{kind} {value} {scope} {asked}"
            );
        }
    }

    #[tokio::test]
    async fn pruning_never_makes_a_number_reusable() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store
            .revoke(&[
                row("jti", "a", "*", 100),
                row("jti", "b", "=x", 100),
                row("jti", "c", "=x", 100),
            ])
            .await
            .unwrap();
        store.prune_revocations(Some("=x"), older(100)).await.unwrap();
        assert_eq!(read(&store, 0).await.len(), 3, "as old as `before` is not older");
        store.prune_revocations(Some("=x"), older(101)).await.unwrap();
        assert_eq!(
            read(&store, 0).await,
            [("jti a *".into(), 100, 1), ("jti c =x".into(), 100, 3)]
        );
        store.prune_revocations(None, older(101)).await.unwrap();
        assert_eq!(read(&store, 0).await, [("jti c =x".into(), 100, 3)]);
        store.revoke(&[row("jti", "d", "*", 1)]).await.unwrap();
        assert_eq!(read(&store, 3).await, [("jti d *".into(), 1, 4)]);
    }

    #[tokio::test]
    async fn the_running_time_determines_age_and_pruning_works_in_steps() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        assert_eq!(store.running_seconds().await.unwrap(), 0);
        let many: Vec<_> = (0..5001).map(|index| row("jti", &index.to_string(), "*", 1)).collect();
        store.revoke(&many).await.unwrap();
        assert_eq!(store.record_running_seconds(100).await.unwrap(), 100);
        assert_eq!(store.record_running_seconds(60).await.unwrap(), 100, "it never goes back");
        store.revoke(&[row("jti", "0", "*", 1), row("jti", "late", "*", 1)]).await.unwrap();
        let old = |noted_at| OlderThan { revoked_at: 2, noted_at };
        store.prune_revocations(None, old(0)).await.unwrap();
        assert_eq!(read(&store, 0).await.len(), 5002);
        store.prune_revocations(None, old(100)).await.unwrap();
        assert_eq!(read(&store, 0).await.len(), 2, "written again is as new");
    }

    #[tokio::test]
    async fn concurrent_writers_get_different_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let writers: Vec<_> = (0..40)
            .map(|index| {
                let store = store.clone();
                async move {
                    store
                        .revoke(&[
                            row("jti", &index.to_string(), "*", 1),
                            row("sid", &index.to_string(), "*", 1),
                        ])
                        .await
                }
            })
            .collect();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in writers {
            tasks.spawn(writer);
        }
        while let Some(written) = tasks.join_next().await {
            written.unwrap().unwrap();
        }
        let seqs: Vec<i64> = read(&store, 0).await.into_iter().map(|(.., seq)| seq).collect();
        assert_eq!(seqs, (1..=80).collect::<Vec<_>>());
    }
}
