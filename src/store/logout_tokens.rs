//! The table of received logout tokens, so that each one counts only once.

use super::providers::{OF_PERSON, forget_provider_session};
use super::revocations::{END_SESSION, end_of_logins, write_revocations};
use super::{RevocationRow, SessionAtProvider, Store, StoreError};

/// The name of a logout token, and how long to remember it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutTokenRow {
    /// A digest of its issuer and its `jti`.
    pub name: String,
    /// Unix seconds: from then on, the token is rejected because of its time.
    pub expires_at: i64,
}

/// What a logout token names at its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedThere<'a> {
    /// One session there (`sid`).
    Session(&'a str),
    /// A person (`sub`).
    Person(&'a str),
}

impl NamedThere<'_> {
    /// The same among the names of all providers. An issuer contains no space.
    pub(super) fn at(self, issuer: &str) -> String {
        match self {
            Self::Session(sid) => format!("{issuer} sid {sid}"),
            Self::Person(subject) => format!("{issuer} sub {subject}"),
        }
    }
}

impl Store {
    /// Writes what a logout token revokes, together with the token, and returns the time as
    /// written. `None`: the token was received before, and nothing was written. Also writes nothing
    /// on an error.
    pub async fn revoke_once(
        &self,
        token: &LogoutTokenRow,
        row: &RevocationRow,
    ) -> Result<Option<i64>, StoreError> {
        let mut writing = self.connections.write().await?;
        let receiving = sqlx::query(RECEIVE).bind(&token.name).bind(token.expires_at);
        if writing.execute(receiving).await? == 0 {
            return Ok(None);
        }
        let written = write_revocations(&mut writing, std::slice::from_ref(row)).await?;
        writing.commit().await?;
        Ok(written.first().copied())
    }

    /// Ends the sessions and the logins in progress that a logout token of the provider `issuer`
    /// names, stores the token with them, and returns the sessions. `revocation` is that of each, but
    /// for its value. `None`: the token was received before, and nothing was written. Also writes
    /// nothing on an error.
    pub async fn end_sessions_once(
        &self,
        token: &LogoutTokenRow,
        (issuer, named): (&str, NamedThere<'_>),
        revocation: &RevocationRow,
    ) -> Result<Option<Vec<SessionAtProvider>>, StoreError> {
        let mut writing = self.connections.write().await?;
        let receiving = sqlx::query(RECEIVE).bind(&token.name).bind(token.expires_at);
        if writing.execute(receiving).await? == 0 {
            return Ok(None);
        }
        let naming = match named {
            NamedThere::Session(sid) => sqlx::query_as(OF_SID).bind(issuer).bind(sid),
            NamedThere::Person(subject) => sqlx::query_as(OF_PERSON).bind(issuer).bind(subject),
        };
        let sessions: Vec<SessionAtProvider> = writing.all(naming).await?;
        let logins = end_of_logins(named.at(issuer), revocation.revoked_at);
        write_revocations(&mut writing, &[logins]).await?;
        for SessionAtProvider { session, .. } in &sessions {
            let ending = sqlx::query(END_SESSION).bind(revocation.revoked_at).bind(session);
            writing.execute(ending).await?;
            writing.execute(forget_provider_session(session)).await?;
            let row = RevocationRow { value: session.clone(), ..revocation.clone() };
            write_revocations(&mut writing, &[row]).await?;
        }
        writing.commit().await?;
        Ok(Some(sessions))
    }

    /// Deletes the logout tokens that have expired at `now`, in Unix seconds.
    pub async fn prune_logout_tokens(&self, now: i64) -> Result<(), StoreError> {
        self.prune(|most| sqlx::query(PRUNE).bind(now).bind(most)).await
    }
}

const RECEIVE: &str =
    "INSERT INTO logout_tokens (name, over_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";

const OF_SID: &str = "SELECT session, account, idp, issuer, claimed_until FROM provider_sessions WHERE issuer = $1 AND sid = $2";

const PRUNE: &str = "DELETE FROM logout_tokens WHERE name IN (SELECT name FROM logout_tokens WHERE over_at <= $1 LIMIT $2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_settings as settings;

    #[tokio::test]
    async fn a_token_counts_once_in_all_processes_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (
            Store::open(&settings(folder.path())).await.unwrap(),
            Store::open(&settings(folder.path())).await.unwrap(),
        );
        let token = |name: &str| LogoutTokenRow { name: name.into(), expires_at: 100 };
        let row = |revoked_at| RevocationRow {
            kind: "subject".into(),
            value: "u".into(),
            scope: "*".into(),
            revoked_at,
            seq: 0,
        };
        assert_eq!(here.revoke_once(&token("a"), &row(10)).await.unwrap(), Some(10));
        assert_eq!(there.revoke_once(&token("a"), &row(20)).await.unwrap(), None);
        assert_eq!(there.revoke_once(&token("b"), &row(15)).await.unwrap(), Some(15));
        let cutoffs: Vec<_> = here
            .revocations_after(0)
            .await
            .unwrap()
            .into_iter()
            .map(|row| row.revoked_at)
            .collect();
        assert_eq!(cutoffs, [15], "the repeated one has moved nothing");
        here.prune_logout_tokens(99).await.unwrap();
        assert_eq!(here.revoke_once(&token("a"), &row(20)).await.unwrap(), None);
        here.prune_logout_tokens(100).await.unwrap();
        assert_eq!(here.revoke_once(&token("a"), &row(20)).await.unwrap(), Some(20));
    }
}
