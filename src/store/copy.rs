//! Copies a store into another database, row by row, whatever kind each of them is.
//!
//! Secrets stay sealed: the copy needs the same `[store] key`. What the target gets first is a mark
//! that the copy is not complete, so no gateway starts on half of one. Rows that are there already
//! are skipped, so a copy that was interrupted goes on when it is started again.

use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row};

use super::connections::{Connections, WriteTransaction};
use super::{
    Database, FACTS_STEP, INSERT_FACT, SELECT_FACT, STORE_ID, Store, StoreError, StoreSettings,
    install_drivers, migrate, postgres, sqlite,
};

/// Why a store is not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A database failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// There is nothing to copy.
    #[error("{0} is not a database of portcullis, or is empty")]
    NoSource(String),
    /// What a gateway writes in the meantime would be missing.
    #[error("{}", in_use(*gateways))]
    InUse {
        /// How many run on it.
        gateways: usize,
    },
    /// An earlier copy was completed.
    #[error("{0} is already a complete copy of this database; nothing was copied")]
    Complete(String),
    /// The copy would be mixed with something else.
    #[error("{database} is not empty: its table `{table}` has rows; name an empty database")]
    NotEmpty {
        /// The target.
        database: String,
        /// A table with rows.
        table: &'static str,
    },
    /// An earlier copy was interrupted.
    #[error("{0} holds a part of a copy that was interrupted; run the command again with --resume")]
    Interrupted(String),
    /// A part of another copy is there.
    #[error("{0} holds a part of a copy of another database; name an empty database")]
    OtherCopy(String),
    /// The copy is not what the source is now.
    #[error(
        "the table `{table}` of {database} is not that of the database that is copied: one of the two has changed since the copy began; copy into an empty database while nothing writes to either"
    )]
    Differs {
        /// The target.
        database: String,
        /// The table.
        table: &'static str,
    },
}

impl From<sqlx::Error> for CopyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

fn in_use(gateways: usize) -> String {
    let (who, them) = match gateways {
        1 => ("a gateway runs".to_owned(), "it"),
        _ => (format!("{gateways} gateways run"), "them"),
    };
    format!(
        "{who} on the database that is copied, and what is written now would be lost; stop {them} first"
    )
}

/// Copies everything that lasts, and returns the number of rows of each table. With `resumes`, goes
/// on with a copy that was interrupted. `progress` is called with a table and how many of its rows
/// were read.
///
/// # Errors
/// The target is then not used by any gateway, unless nothing was written to it.
pub async fn copy(
    from: &StoreSettings,
    to: &StoreSettings,
    resumes: bool,
    mut progress: impl FnMut(&'static str, u64),
) -> Result<Vec<(&'static str, i64)>, CopyError> {
    let no_source = || CopyError::NoSource(from.database.to_string());
    let source = Store::open_read_only(from).await?.ok_or_else(no_source)?;
    let running = source.running_gateways(from).await?;
    if running > 0 {
        return Err(CopyError::InUse { gateways: running });
    }
    let source = source.connections;
    let part: Option<(String,)> = source.first(fact(UNFINISHED)).await?;
    if part.is_some() {
        return Err(StoreError::UnfinishedCopy { database: from.database.to_string() }.into());
    }
    let (id,): (String,) = source.first(fact(STORE_ID)).await?.ok_or_else(no_source)?;
    Store::check_gateways(to)?;
    install_drivers();
    let (is_new, target) = match &to.database {
        Database::File(path) => {
            (sqlite::begin_copy(path, &id).await?, sqlite::open(path, true).await?)
        }
        Database::Postgres(database) => {
            (postgres::begin_copy(database, &id).await?, postgres::open(database).await?)
        }
    };
    if !is_new && begin(&target, to, &id, resumes).await? == Begun::Complete {
        compare(&source, &target, to).await?;
        return Err(CopyError::Complete(to.database.to_string()));
    }
    for table in &TABLES {
        copy_table(table, &source, &target, |rows| progress(table.name, rows)).await?;
    }
    let counted = compare(&source, &target, to).await?;
    target.write_one(sqlx::query("DELETE FROM facts WHERE name = $1").bind(UNFINISHED)).await?;
    source.close().await;
    target.close().await;
    Ok(counted)
}

/// Makes the first table in an empty target, and the mark in it, in a transaction of the caller. All
/// other tables follow later, and a gateway that finds some of them finds the mark.
pub(super) async fn mark(
    connection: &mut AnyConnection,
    database: &impl Display,
    id: &str,
) -> Result<(), StoreError> {
    migrate(connection, database, FACTS_STEP).await?;
    let marking = sqlx::query(INSERT_FACT).bind(UNFINISHED).bind(id);
    marking.persistent(false).execute(connection).await?;
    Ok(())
}

/// Checks that both hold the same, and returns the number of rows of each table.
async fn compare(
    source: &Connections,
    target: &Connections,
    to: &StoreSettings,
) -> Result<Vec<(&'static str, i64)>, CopyError> {
    let mut counted = Vec::with_capacity(TABLES.len());
    for table in &TABLES {
        let (rows, copied) = (table.contents(source).await?, table.contents(target).await?);
        if rows != copied {
            let database = to.database.to_string();
            return Err(CopyError::Differs { database, table: table.name });
        }
        counted.push((table.name, rows.count));
    }
    Ok(counted)
}

/// What a target holds of a copy.
#[derive(PartialEq, Eq)]
enum Begun {
    /// A part, perhaps nothing.
    Part,
    /// All of it, as the source was then.
    Complete,
}

/// Checks that a target with tables has no rows, or a part of this copy, and marks it.
async fn begin(
    target: &Connections,
    to: &StoreSettings,
    id: &str,
    resumes: bool,
) -> Result<Begun, CopyError> {
    let database = to.database.to_string();
    let marked: Option<(String,)> = target.first(fact(UNFINISHED)).await?;
    match marked {
        Some((of,)) if of != id => return Err(CopyError::OtherCopy(database)),
        Some(_) if !resumes => return Err(CopyError::Interrupted(database)),
        Some(_) => return Ok(Begun::Part),
        None => {}
    }
    let known: Option<(String,)> = target.first(fact(STORE_ID)).await?;
    if resumes && known.is_some_and(|(known,)| known == id) {
        return Ok(Begun::Complete);
    }
    for table in &TABLES {
        if table.count(target).await? > 0 {
            return Err(CopyError::NotEmpty { database, table: table.name });
        }
    }
    target.write_one(sqlx::query(INSERT_FACT).bind(UNFINISHED).bind(id)).await?;
    Ok(Begun::Part)
}

async fn copy_table(
    table: &Table,
    source: &Connections,
    target: &Connections,
    mut progress: impl FnMut(u64),
) -> Result<(), CopyError> {
    let (mut read, mut last) = (0, None);
    loop {
        let page = table.page_after(source, last.as_ref()).await?;
        if page.is_empty() {
            return Ok(());
        }
        let mut writing = target.write().await?;
        for row in &page {
            table.insert(row, &mut writing).await?;
        }
        writing.commit().await?;
        read += page.len() as u64;
        progress(read);
        last = page.into_iter().last();
    }
}

/// What is in a table. Databases sort text in different orders, so the order does not count.
#[derive(Default, PartialEq, Eq)]
struct Contents {
    count: i64,
    /// Of the hashes of all rows.
    sum: u64,
}

/// A table that is copied.
struct Table {
    name: &'static str,
    /// The first ones are the primary key.
    columns: &'static [(&'static str, Kind)],
    key: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    BigInt,
    SmallInt,
}

impl Table {
    async fn count(&self, database: &Connections) -> Result<i64, CopyError> {
        let marks = if self.name == "facts" {
            " WHERE name NOT IN ('copy_unfinished', 'trial')"
        } else {
            ""
        };
        let counting = format!("SELECT COUNT(*) FROM {}{marks}", self.name);
        let (count,): (i64,) = database.one(sqlx::query_as(AssertSqlSafe(counting))).await?;
        Ok(count)
    }

    /// Reads all rows. Which facts change without a change of the store does not count.
    async fn contents(&self, database: &Connections) -> Result<Contents, CopyError> {
        let (mut contents, mut last) = (Contents::default(), None);
        loop {
            let page = self.page_after(database, last.as_ref()).await?;
            for row in &page {
                let passes = self.name == "facts" && PASSING.contains(&row.try_get(0)?);
                if !passes {
                    contents.count += 1;
                    contents.sum = contents.sum.wrapping_add(self.hash(row)?);
                }
            }
            last = page.into_iter().last();
            if last.is_none() {
                return Ok(contents);
            }
        }
    }

    fn hash(&self, row: &AnyRow) -> Result<u64, sqlx::Error> {
        let mut hasher = DefaultHasher::new();
        for (index, (_, kind)) in self.columns.iter().enumerate() {
            match kind {
                Kind::Text => row.try_get::<Option<String>, _>(index)?.hash(&mut hasher),
                Kind::BigInt => row.try_get::<Option<i64>, _>(index)?.hash(&mut hasher),
                Kind::SmallInt => row.try_get::<Option<i16>, _>(index)?.hash(&mut hasher),
            }
        }
        Ok(hasher.finish())
    }

    /// The next rows in the order of the primary key.
    async fn page_after(
        &self,
        source: &Connections,
        last: Option<&AnyRow>,
    ) -> Result<Vec<AnyRow>, CopyError> {
        let (columns, key) = (names(self.columns), names(&self.columns[..self.key]));
        let after = match last {
            Some(_) => format!("WHERE ({key}) > ({})", placeholders(self.key)),
            None => String::new(),
        };
        let text =
            format!("SELECT {columns} FROM {} {after} ORDER BY {key} LIMIT {PAGE}", self.name);
        let mut reading = sqlx::query(AssertSqlSafe(text));
        if let Some(last) = last {
            reading = self.bind(reading, last, self.key)?;
        }
        Ok(source.rows(reading).await?)
    }

    async fn insert(&self, row: &AnyRow, writing: &mut WriteTransaction) -> Result<(), CopyError> {
        let columns = names(self.columns);
        let text = format!(
            "INSERT INTO {} ({columns}) VALUES ({}) ON CONFLICT DO NOTHING",
            self.name,
            placeholders(self.columns.len())
        );
        let inserting = sqlx::query(AssertSqlSafe(text));
        writing.execute(self.bind(inserting, row, self.columns.len())?).await?;
        Ok(())
    }

    /// Binds the first columns of a row.
    fn bind<'q>(
        &self,
        mut statement: Query<'q, Any, AnyArguments>,
        row: &AnyRow,
        columns: usize,
    ) -> Result<Query<'q, Any, AnyArguments>, sqlx::Error> {
        for (index, (_, kind)) in self.columns[..columns].iter().enumerate() {
            statement = match kind {
                Kind::Text => statement.bind(row.try_get::<Option<String>, _>(index)?),
                Kind::BigInt => statement.bind(row.try_get::<Option<i64>, _>(index)?),
                Kind::SmallInt => statement.bind(row.try_get::<Option<i16>, _>(index)?),
            };
        }
        Ok(statement)
    }
}

fn names(columns: &[(&str, Kind)]) -> String {
    columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn placeholders(count: usize) -> String {
    (1..=count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

fn fact(name: &str) -> QueryAs<'_, Any, (String,), AnyArguments> {
    sqlx::query_as(SELECT_FACT).bind(name)
}

/// The fact that a copy is not complete: the id of its source.
pub(super) const UNFINISHED: &str = "copy_unfinished";

/// The facts that say how a database is used, not what is in it.
const PASSING: [&str; 3] = [UNFINISHED, "trial", "running_seconds"];

/// The number of rows of one transaction.
const PAGE: usize = 1000;

use Kind::{BigInt, SmallInt, Text};

/// What lasts, in an order in which each row comes after those that it refers to. Which replicas
/// run, and what limits have counted, stays behind.
const TABLES: [Table; 15] = [
    Table { name: "facts", key: 1, columns: &[("name", Text), ("value", Text)] },
    Table {
        name: "accounts",
        key: 1,
        columns: &[
            ("id", Text),
            ("email", Text),
            ("name", Text),
            ("password", Text),
            ("roles", Text),
            ("disabled", SmallInt),
            ("email_verified", SmallInt),
            ("generation", BigInt),
            ("not_before", BigInt),
            ("created_at", BigInt),
            ("last_login_at", BigInt),
            ("issued_at", BigInt),
        ],
    },
    Table {
        name: "sessions",
        key: 1,
        columns: &[
            ("id", Text),
            ("account", Text),
            ("generation", BigInt),
            ("counter", BigInt),
            ("created_at", BigInt),
            ("rotated_at", BigInt),
            ("address", Text),
            ("user_agent", Text),
            ("ended_at", BigInt),
            ("until_closed", SmallInt),
            ("idp", Text),
            ("acr", Text),
            ("auth_time", BigInt),
        ],
    },
    Table {
        name: "provider_people",
        key: 2,
        columns: &[("issuer", Text), ("subject", Text), ("account", Text), ("created_at", BigInt)],
    },
    Table {
        name: "provider_sessions",
        key: 1,
        columns: &[
            ("session", Text),
            ("account", Text),
            ("generation", BigInt),
            ("idp", Text),
            ("issuer", Text),
            ("subject", Text),
            ("sid", Text),
            ("tokens", Text),
            ("created_at", BigInt),
            ("due_at", BigInt),
            ("claimed_until", BigInt),
        ],
    },
    Table {
        name: "used_refresh_tokens",
        key: 2,
        columns: &[("session", Text), ("counter", BigInt), ("used_at", BigInt)],
    },
    Table {
        name: "signing_keys",
        key: 1,
        columns: &[
            ("number", BigInt),
            ("kid", Text),
            ("algorithm", Text),
            ("private", Text),
            ("created_at", BigInt),
            ("signs_from", BigInt),
        ],
    },
    Table {
        name: "mail_outbox",
        key: 2,
        columns: &[
            ("kind", Text),
            ("email", Text),
            ("requested_at", BigInt),
            ("next_at", BigInt),
            ("attempts", BigInt),
            ("asked", BigInt),
            ("return_to", Text),
            ("language", Text),
            ("login", Text),
        ],
    },
    Table {
        name: "mail_links",
        key: 1,
        columns: &[
            ("digest", Text),
            ("purpose", Text),
            ("account", Text),
            ("email", Text),
            ("generation", BigInt),
            ("created_at", BigInt),
            ("expires_at", BigInt),
            ("used_at", BigInt),
            ("new_email", Text),
        ],
    },
    Table {
        name: "second_factors",
        key: 1,
        columns: &[
            ("account", Text),
            ("secret", Text),
            ("created_at", BigInt),
            ("confirmed_at", BigInt),
            ("last_step", BigInt),
            ("failures", BigInt),
            ("blocked_until", BigInt),
            ("session", Text),
        ],
    },
    Table { name: "recovery_codes", key: 2, columns: &[("account", Text), ("digest", Text)] },
    Table { name: "logout_tokens", key: 1, columns: &[("name", Text), ("over_at", BigInt)] },
    Table {
        name: "personal_tokens",
        key: 1,
        columns: &[
            ("id", Text),
            ("account", Text),
            ("name", Text),
            ("digest", Text),
            ("roles", Text),
            ("created_at", BigInt),
            ("expires_at", BigInt),
            ("last_used_at", BigInt),
            ("revoked_at", BigInt),
        ],
    },
    Table {
        name: "revocations",
        key: 3,
        columns: &[
            ("kind", Text),
            ("value", Text),
            ("scope", Text),
            ("revoked_at", BigInt),
            ("seq", BigInt),
            ("noted_at", BigInt),
        ],
    },
    Table {
        name: "command_events",
        key: 1,
        columns: &[
            ("id", Text),
            ("done_at", BigInt),
            ("event", Text),
            ("account", Text),
            ("accounts", BigInt),
            ("uid", BigInt),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::iter::successors;
    use std::task::Poll;

    use super::*;
    use crate::store::test_settings;

    #[test]
    fn one_gateway_is_not_several() {
        let one = "a gateway runs on the database that is copied, and what is written now would be lost; stop it first";
        assert_eq!(in_use(1), one);
        let two = in_use(2);
        assert!(two.starts_with("2 gateways run on") && two.ends_with("stop them first"), "{two}");
    }

    /// A new column or table must be copied, or stay behind on purpose.
    #[tokio::test]
    async fn every_column_of_every_table_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let Some(_) = settings.database.file() else { return };
        let store = Store::open(&settings).await.unwrap();
        let text = "SELECT tables.name, columns.name, columns.type FROM sqlite_master AS tables \
            JOIN pragma_table_info(tables.name) AS columns WHERE tables.type = 'table' AND tables.name NOT LIKE '\\_%' ESCAPE '\\' \
            AND tables.name NOT IN ('replicas', 'limit_counters', 'mail_recipients') ORDER BY 1, 2";
        let found: Vec<(String, String, String)> =
            store.connections.all(sqlx::query_as(text)).await.unwrap();
        let mut known = Vec::new();
        for table in &TABLES {
            for (name, kind) in table.columns {
                let kind = match kind {
                    Text => "TEXT",
                    BigInt => "BIGINT",
                    SmallInt => "SMALLINT",
                };
                known.push((table.name.to_owned(), (*name).to_owned(), kind.to_owned()));
            }
        }
        known.sort();
        assert_eq!(found, known);
        store.close().await;
    }

    /// As if the command were killed: wherever it ends, no gateway starts on what it leaves, and the
    /// copy can go on.
    #[tokio::test]
    async fn no_gateway_starts_on_a_copy_that_ended_at_any_point() {
        let from_folder = tempfile::tempdir().unwrap();
        let from = test_settings(from_folder.path());
        let source = Store::open(&from).await.unwrap();
        let insert = "INSERT INTO accounts VALUES ('u', 'u@x.example', NULL, '', '', 0, 0, 0, 0, 0, NULL, 0)";
        source.write(sqlx::query(insert)).await.unwrap();
        source.close().await;
        let mut parts = 0;
        for steps in successors(Some(1), |steps| Some(steps + 1 + steps / 4)) {
            let folder = tempfile::tempdir().unwrap();
            let to = test_settings(folder.path());
            let mut left = steps;
            let mut copying = Box::pin(copy(&from, &to, false, |_, _| {}));
            let ended = poll_fn(|context| {
                if left == 0 {
                    return Poll::Ready(None);
                }
                left -= 1;
                copying.as_mut().poll(context).map(Some)
            });
            if let Some(done) = ended.await {
                done.unwrap();
                break;
            }
            drop(copying);
            // What is as it was before says nothing.
            if !matches!(Store::open_read_only(&to).await, Ok(None)) {
                if let Ok(store) = Store::open(&to).await {
                    let is_complete = store.account("u").await.unwrap().is_some();
                    assert!(is_complete, "after {steps} steps");
                    break;
                }
                parts += 1;
            }
            copy(&from, &to, true, |_, _| {}).await.unwrap();
            let store = Store::open(&to).await.unwrap();
            assert!(store.account("u").await.unwrap().is_some());
            store.close().await;
        }
        assert!(parts > 5, "{parts}");
    }

    /// The number of rows says nothing about a change, nor does the mark of an earlier copy.
    #[tokio::test]
    async fn a_copy_of_what_has_changed_since_is_not_complete() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [from, to] = folders.each_ref().map(|folder| test_settings(folder.path()));
        if from.database.file().is_none() {
            return;
        }
        let source = Store::open(&from).await.unwrap();
        let insert = "INSERT INTO accounts VALUES ('u', 'u@x.example', NULL, '', '', 0, 0, 0, 0, 0, NULL, 0)";
        source.write(sqlx::query(insert)).await.unwrap();
        copy(&from, &to, false, |_, _| {}).await.unwrap();
        let again = async || copy(&from, &to, true, |_, _| {}).await.unwrap_err().to_string();
        source.record_running_seconds(60).await.unwrap();
        assert!(again().await.contains("is already a complete copy"));
        source.write(sqlx::query("UPDATE accounts SET disabled = 1")).await.unwrap();
        let error = again().await;
        assert!(error.contains("the table `accounts` of"), "{error}");
        // Interrupted, and resumed after that.
        let target = Store::open(&to).await.unwrap();
        let mark = sqlx::query(
            "INSERT INTO facts SELECT 'copy_unfinished', value FROM facts WHERE name = 'store_id'",
        );
        target.write(mark).await.unwrap();
        target.close().await;
        let error = again().await;
        assert!(error.contains("the table `accounts` of"), "{error}");
        source.close().await;
    }
}
