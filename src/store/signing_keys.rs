//! The table of signing keys. They are numbered, so that processes on one database agree on which
//! comes next.

use zeroize::Zeroizing;

use super::connections::WriteTransaction;
use super::{Store, StoreError};

/// A key that the built-in issuer signs with, or has signed with before.
#[derive(Clone)]
pub struct SigningKeyRow {
    /// Its place in the sequence of keys.
    pub number: i64,
    /// Its name in tokens and in the key set.
    pub kid: String,
    /// `ES256`, `RS256` or `EdDSA`.
    pub algorithm: String,
    /// PKCS#8 as PEM.
    pub private: Zeroizing<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds: the key signs from then until the next one does.
    pub signs_from: i64,
}

impl std::fmt::Debug for SigningKeyRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeyRow").field("kid", &self.kid).finish_non_exhaustive()
    }
}

#[derive(sqlx::FromRow)]
struct Sealed {
    number: i64,
    kid: String,
    algorithm: String,
    private: String,
    created_at: i64,
    signs_from: i64,
}

impl Store {
    /// Every key, in order.
    ///
    /// # Errors
    /// [`StoreError::Seal`] if a key does not open.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, StoreError> {
        let rows: Vec<Sealed> = self
            .connections
            .all(sqlx::query_as("SELECT number, kid, algorithm, private, created_at, signs_from FROM signing_keys ORDER BY number"))
            .await?;
        rows.into_iter()
            .map(|row| {
                let opened = self.sealer.open(&place(&row.kid), &row.private)?;
                let private = Zeroizing::new(String::from_utf8_lossy(&opened).into_owned());
                let Sealed { number, kid, algorithm, created_at, signs_from, .. } = row;
                Ok(SigningKeyRow { number, kid, algorithm, private, created_at, signs_from })
            })
            .collect()
    }

    /// The numbers of all keys, in order. They show whether another process has added or removed
    /// one.
    pub async fn signing_key_numbers(&self) -> Result<Vec<i64>, StoreError> {
        let rows: Vec<(i64,)> = self
            .connections
            .all(sqlx::query_as("SELECT number FROM signing_keys ORDER BY number"))
            .await?;
        Ok(rows.into_iter().map(|(number,)| number).collect())
    }

    /// Adds a key. Returns false if another process has already added one with its number.
    pub async fn insert_signing_key(&self, key: &SigningKeyRow) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let is_added = self.add_signing_key(&mut writing, key).await?;
        writing.commit().await?;
        Ok(is_added)
    }

    /// Adds a key in place of all others. Returns false, and deletes none, if another process has
    /// already added one with its number.
    pub async fn replace_signing_keys(&self, key: &SigningKeyRow) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let is_added = self.add_signing_key(&mut writing, key).await?;
        if is_added {
            let deleting = sqlx::query("DELETE FROM signing_keys WHERE number <> $1");
            writing.execute(deleting.bind(key.number)).await?;
        }
        writing.commit().await?;
        Ok(is_added)
    }

    async fn add_signing_key(
        &self,
        writing: &mut WriteTransaction,
        key: &SigningKeyRow,
    ) -> Result<bool, StoreError> {
        let sealed = self.sealer.seal(&place(&key.kid), key.private.as_bytes())?;
        let adding = sqlx::query(INSERT)
            .bind(key.number)
            .bind(&key.kid)
            .bind(&key.algorithm)
            .bind(sealed)
            .bind(key.created_at)
            .bind(key.signs_from);
        Ok(writing.execute(adding).await? == 1)
    }

    /// Deletes a key whose last token has expired.
    pub async fn delete_signing_key(&self, number: i64) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM signing_keys WHERE number = $1").bind(number)).await?;
        Ok(())
    }

    /// The key that determines how an address without an account imitates one with an account.
    pub fn dummy_account_key(&self) -> Zeroizing<[u8; 32]> {
        self.sealer.derive("stand-ins of accounts")
    }

    /// The key that signs refresh tokens. It is derived from the store's key, so that a leaked
    /// database cannot be used to forge one.
    pub fn refresh_key(&self) -> Zeroizing<[u8; 32]> {
        self.sealer.derive("refresh tokens")
    }
}

/// The place that a key is sealed for.
fn place(kid: &str) -> String {
    format!("signing_keys/{kid}")
}

const INSERT: &str = "INSERT INTO signing_keys (number, kid, algorithm, private, created_at, signs_from) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (number) DO NOTHING";

#[cfg(test)]
mod tests {
    use sqlx::Executor;

    use super::*;
    use crate::store::test_settings;

    /// Keys that may have been exposed must not outlive what the command says.
    #[tokio::test]
    async fn a_key_replaces_all_others_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        if settings.database.file().is_none() {
            return;
        }
        let store = Store::open(&settings).await.unwrap();
        let key = |number: i64| SigningKeyRow {
            number,
            kid: format!("k{number}"),
            algorithm: "ES256".into(),
            private: String::from("p").into(),
            created_at: 1,
            signs_from: 1,
        };
        let numbers = async || store.signing_key_numbers().await.unwrap();
        for number in [1, 2] {
            assert!(store.insert_signing_key(&key(number)).await.unwrap());
        }
        let fails = "CREATE TRIGGER fails BEFORE DELETE ON signing_keys BEGIN SELECT RAISE(ABORT, 'full'); END";
        store.connections.writer().execute(fails).await.unwrap();
        store.replace_signing_keys(&key(3)).await.unwrap_err();
        assert_eq!(numbers().await, [1, 2]);
        store.connections.writer().execute("DROP TRIGGER fails").await.unwrap();
        assert!(!store.replace_signing_keys(&key(2)).await.unwrap());
        assert_eq!(numbers().await, [1, 2], "another process was first");
        assert!(store.replace_signing_keys(&key(3)).await.unwrap());
        assert_eq!(numbers().await, [3]);
        store.close().await;
    }
}
