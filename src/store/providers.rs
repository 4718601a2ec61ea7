//! The tables of people who log in at OpenID providers, and of their sessions there.

use std::collections::HashSet;
use std::fmt;

use sqlx::Any;
use sqlx::any::AnyArguments;
use sqlx::query::Query;
use zeroize::Zeroizing;

use super::accounts::account_columns;
use super::connections::WriteTransaction;
use super::{AccountRow, LOGINS_ENDED, NamedThere, Store, StoreError};

/// The part of a session that the provider knows about.
#[derive(Clone)]
pub struct ProviderSessionRow {
    /// The id of our session.
    pub session: String,
    /// Its account.
    pub account: String,
    /// The generation of the account when the session began.
    pub generation: i64,
    /// The name of the provider's section.
    pub idp: String,
    /// Unix seconds: when the session began.
    pub created_at: i64,
    /// The `iss` of the provider.
    pub issuer: String,
    /// The person's `sub` at the provider.
    pub subject: String,
    /// The provider's name for its session; empty: none.
    pub sid: String,
    /// The provider's tokens. They are sealed in the database.
    pub tokens: Zeroizing<String>,
    /// Unix seconds: when the provider is to be asked again; `None`: it cannot be asked.
    pub due_at: Option<i64>,
}

/// Omits who it is, and the tokens.
impl fmt::Debug for ProviderSessionRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderSessionRow").field("session", &self.session).finish_non_exhaustive()
    }
}

/// A live session that a provider has ended or is asked about.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct SessionAtProvider {
    /// The id of our session.
    pub session: String,
    /// Its account.
    pub account: String,
    /// The section of the provider that it began at.
    pub idp: String,
    /// The `iss` of the provider.
    pub issuer: String,
    /// Unix seconds: until when a process has claimed it for a request to the provider. 0: the last
    /// request was answered.
    pub claimed_until: i64,
}

impl SessionAtProvider {
    /// Whether the answer to the last request is not known: the provider may have accepted the
    /// refresh token, and it is then no longer valid.
    pub fn is_in_doubt(&self) -> bool {
        self.claimed_until > 0
    }
}

/// When a session is due for a check at its provider, all in Unix seconds: at or before `now`, or
/// after the farthest time that a clock which is right can have noted. Without these bounds, a clock
/// that was ahead for a moment would stop the checks until that date.
#[derive(Clone, Copy, Debug)]
pub struct RecheckDue {
    /// The time.
    pub now: i64,
    /// The latest time at which a session can be due next.
    pub farthest: i64,
    /// The latest time until which a session can be claimed.
    pub longest_claim: i64,
}

#[derive(sqlx::FromRow)]
struct Sealed {
    session: String,
    account: String,
    generation: i64,
    idp: String,
    issuer: String,
    subject: String,
    sid: String,
    tokens: String,
    created_at: i64,
    due_at: Option<i64>,
}

impl Store {
    /// The account of a person of a provider.
    pub async fn account_of_person(
        &self,
        issuer: &str,
        subject: &str,
    ) -> Result<Option<AccountRow>, StoreError> {
        let asking = sqlx::query_as(ACCOUNT_OF_PERSON).bind(issuer).bind(subject);
        self.connections.first(asking).await
    }

    /// Lets a person of a provider log in to an existing account, at `now` in Unix seconds. Returns
    /// false if the person already has one, if another person of this provider has that one, or if
    /// what was issued to the account was revoked after `began`: the number of the last revocation
    /// when the login began.
    pub async fn link_person(
        &self,
        account: &str,
        person: (&str, &str),
        began: i64,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let is_linked = bind_person(&mut writing, (account, began), person, now).await?;
        writing.commit().await?;
        Ok(is_linked)
    }

    /// The people of providers that log in to an account: the issuer and subject of each, in order.
    pub async fn people_of_account(
        &self,
        account: &str,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let asking = sqlx::query_as(
            "SELECT issuer, subject FROM provider_people WHERE account = $1 ORDER BY issuer, subject",
        );
        self.connections.all(asking.bind(account)).await
    }

    /// The accounts that people of providers log in to.
    pub async fn accounts_of_people(&self) -> Result<HashSet<String>, StoreError> {
        let asking = sqlx::query_as("SELECT DISTINCT account FROM provider_people");
        let rows: Vec<(String,)> = self.connections.all(asking).await?;
        Ok(rows.into_iter().map(|(account,)| account).collect())
    }

    /// Adds what the provider knows about a session that is about to begin. Returns false, and writes
    /// nothing, if the sessions of the account, or of the person or the session at the provider, were
    /// ended after `began`: the number of the last revocation when the login began.
    pub async fn insert_provider_session(
        &self,
        row: &ProviderSessionRow,
        began: i64,
    ) -> Result<bool, StoreError> {
        let named = [NamedThere::Person(&row.subject), NamedThere::Session(&row.sid)];
        let [person, session] = named.map(|named| named.at(&row.issuer));
        let adding = sqlx::query(INSERT_PROVIDER_SESSION)
            .bind(&row.session)
            .bind(&row.account)
            .bind(row.generation)
            .bind(&row.idp)
            .bind(&row.issuer)
            .bind(&row.subject)
            .bind(&row.sid)
            .bind(self.sealer.seal(&place(&row.session), row.tokens.as_bytes())?)
            .bind(row.created_at)
            .bind(row.due_at)
            .bind(began)
            .bind(person)
            .bind(session)
            .bind(LOGINS_ENDED);
        Ok(self.write(adding).await? == 1)
    }

    /// Forgets what the provider knows about a session that has ended. Most sessions did not begin at
    /// a provider: for those, nothing is written.
    pub async fn delete_provider_session(&self, session: &str) -> Result<(), StoreError> {
        let asking = sqlx::query_as("SELECT session FROM provider_sessions WHERE session = $1");
        let found: Option<(String,)> = self.connections.first(asking.bind(session)).await?;
        if found.is_none() {
            return Ok(());
        }
        self.write(forget_provider_session(session)).await?;
        Ok(())
    }

    /// What the provider knows about a session. `None`: it did not begin at a provider.
    ///
    /// # Errors
    /// [`StoreError::Seal`] if the tokens do not open.
    pub async fn provider_session(
        &self,
        session: &str,
    ) -> Result<Option<ProviderSessionRow>, StoreError> {
        let asking = sqlx::query_as(PROVIDER_SESSION).bind(session);
        let row: Option<Sealed> = self.connections.first(asking).await?;
        let Some(row) = row else { return Ok(None) };
        let opened = self.sealer.open(&place(&row.session), &row.tokens)?;
        Ok(Some(ProviderSessionRow {
            session: row.session,
            account: row.account,
            generation: row.generation,
            idp: row.idp,
            created_at: row.created_at,
            issuer: row.issuer,
            subject: row.subject,
            sid: row.sid,
            tokens: Zeroizing::new(String::from_utf8_lossy(&opened).into_owned()),
            due_at: row.due_at,
        }))
    }

    /// The live sessions about which a provider is to be asked now, those that have waited longest
    /// first.
    pub async fn sessions_to_recheck(
        &self,
        due: RecheckDue,
        most: i64,
    ) -> Result<Vec<SessionAtProvider>, StoreError> {
        let asking = sqlx::query_as(TO_RECHECK).bind(due.now).bind(due.farthest);
        self.connections.all(asking.bind(due.longest_claim).bind(most)).await
    }

    /// Claims a session for one request to its provider, until `until` in Unix seconds. Of several
    /// processes, one succeeds.
    pub async fn claim_recheck(
        &self,
        session: &str,
        due: RecheckDue,
        until: i64,
    ) -> Result<bool, StoreError> {
        let claiming = sqlx::query(CLAIM).bind(due.now).bind(due.farthest);
        let claiming = claiming.bind(due.longest_claim).bind(until).bind(session);
        Ok(self.write(claiming).await? == 1)
    }

    /// Holds a claim until `until`, in Unix seconds: the provider has not responded yet.
    pub async fn hold_claim(&self, session: &str, until: i64) -> Result<(), StoreError> {
        self.write(sqlx::query(HOLD).bind(session).bind(until)).await?;
        Ok(())
    }

    /// Ends a claim without knowing what the provider has done: it is asked again at `due_at`, and
    /// the session stays in doubt.
    pub async fn abandon_recheck(&self, session: &str, due_at: i64) -> Result<(), StoreError> {
        self.write(sqlx::query(ABANDON).bind(session).bind(due_at)).await?;
        Ok(())
    }

    /// Ends a claim, and with it the doubt: the provider has answered, and is asked again at `due_at`,
    /// with these tokens if they are new.
    pub async fn finish_recheck(
        &self,
        session: &str,
        tokens: Option<&str>,
        due_at: i64,
    ) -> Result<(), StoreError> {
        let sealed = match tokens {
            Some(tokens) => Some(self.sealer.seal(&place(session), tokens.as_bytes())?),
            None => None,
        };
        let finishing = sqlx::query(FINISH).bind(session).bind(due_at).bind(sealed);
        self.write(finishing).await?;
        Ok(())
    }

    /// Lets the sessions of a provider that are due before `until`, in Unix seconds, wait until then,
    /// so that they are due together; not those that are claimed.
    pub async fn postpone_rechecks(
        &self,
        issuer: &str,
        due: RecheckDue,
        until: i64,
    ) -> Result<(), StoreError> {
        let postponing = sqlx::query(POSTPONE).bind(due.now).bind(due.farthest);
        let postponing = postponing.bind(due.longest_claim).bind(until).bind(issuer);
        self.write(postponing).await?;
        Ok(())
    }

    /// The live sessions of a person of a provider.
    pub async fn sessions_of_person(
        &self,
        issuer: &str,
        subject: &str,
    ) -> Result<Vec<SessionAtProvider>, StoreError> {
        let asking = sqlx::query_as(OF_PERSON).bind(issuer).bind(subject);
        self.connections.all(asking).await
    }

    /// Forgets what providers know about sessions that cannot be used any more: they began at or
    /// before `before`, in Unix seconds, or their account has another generation.
    pub async fn prune_provider_sessions(&self, before: i64) -> Result<(), StoreError> {
        self.prune(|most| sqlx::query(PRUNE).bind(before).bind(most)).await
    }

    /// The key that seals logins in progress.
    pub fn flight_seal_key(&self) -> Zeroizing<[u8; 32]> {
        self.sealer.derive("portcullis login flights seal v1")
    }

    /// The key that the secrets of logins in progress are derived from.
    pub fn flight_secret_key(&self) -> Zeroizing<[u8; 32]> {
        self.sealer.derive("portcullis login flights secrets v1")
    }
}

/// The statement that forgets what the provider knows about a session.
pub(super) fn forget_provider_session(session: &str) -> Query<'_, Any, AnyArguments> {
    sqlx::query("DELETE FROM provider_sessions WHERE session = $1").bind(session)
}

/// Lets a person of a provider log in to an account, in a transaction that the caller commits: see
/// [`Store::link_person`].
pub(super) async fn bind_person(
    writing: &mut WriteTransaction,
    (account, began): (&str, i64),
    (issuer, subject): (&str, &str),
    now: i64,
) -> Result<bool, StoreError> {
    let binding = sqlx::query(INSERT_PERSON)
        .bind(issuer.to_owned())
        .bind(subject.to_owned())
        .bind(account.to_owned())
        .bind(now)
        .bind(began);
    Ok(writing.execute(binding).await? == 1)
}

/// What the tokens of a session are sealed for.
fn place(session: &str) -> String {
    format!("provider_sessions.tokens {session}")
}

const INSERT_PROVIDER_SESSION: &str = "INSERT INTO provider_sessions (session, account, generation, idp, issuer, subject, sid, tokens, created_at, due_at, claimed_until) \
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0 WHERE NOT EXISTS \
    (SELECT 1 FROM revocations WHERE kind = $14 AND value IN ($2, $12, $13) AND seq > $11)";

const PROVIDER_SESSION: &str = "SELECT session, account, generation, idp, issuer, subject, sid, tokens, created_at, due_at FROM provider_sessions WHERE session = $1";

/// Two subjects of an issuer are two people, so they share no account. Until somebody joins an account,
/// the end of its sessions leaves no [`LOGINS_ENDED`] row: what was issued to it is revoked.
const INSERT_PERSON: &str = "INSERT INTO provider_people (issuer, subject, account, created_at) SELECT $1, $2, $3, $4 \
    WHERE NOT EXISTS (SELECT 1 FROM provider_people WHERE issuer = $1 AND account = $3) \
    AND NOT EXISTS (SELECT 1 FROM revocations WHERE kind = 'subject' AND value = $3 AND seq > $5) ON CONFLICT (issuer, subject) DO NOTHING";

const ACCOUNT_OF_PERSON: &str = concat!(
    "SELECT ",
    account_columns!(),
    " FROM accounts JOIN provider_people ON provider_people.account = accounts.id \
     WHERE provider_people.issuer = $1 AND provider_people.subject = $2"
);

const TO_RECHECK: &str = "SELECT session, account, idp, issuer, claimed_until FROM provider_sessions \
    WHERE (due_at <= $1 OR due_at > $2) AND (claimed_until <= $1 OR claimed_until > $3) \
    AND generation = (SELECT generation FROM accounts WHERE accounts.id = account AND disabled = 0) ORDER BY due_at LIMIT $4";

const CLAIM: &str = "UPDATE provider_sessions SET claimed_until = $4 WHERE session = $5 \
    AND (due_at <= $1 OR due_at > $2) AND (claimed_until <= $1 OR claimed_until > $3)";

const HOLD: &str =
    "UPDATE provider_sessions SET claimed_until = $2 WHERE session = $1 AND claimed_until > 0";

const ABANDON: &str =
    "UPDATE provider_sessions SET claimed_until = $2, due_at = $2 WHERE session = $1";

const FINISH: &str = "UPDATE provider_sessions SET claimed_until = 0, due_at = $2, tokens = COALESCE($3, tokens) WHERE session = $1";

const POSTPONE: &str = "UPDATE provider_sessions SET due_at = $4 WHERE issuer = $5 \
    AND (due_at < $4 OR due_at > $2) AND (claimed_until <= $1 OR claimed_until > $3)";

pub(super) const OF_PERSON: &str = "SELECT session, account, idp, issuer, claimed_until FROM provider_sessions WHERE issuer = $1 AND subject = $2";

const PRUNE: &str = "DELETE FROM provider_sessions WHERE session IN (SELECT session FROM provider_sessions WHERE created_at <= $1 \
    OR EXISTS (SELECT 1 FROM accounts WHERE accounts.id = provider_sessions.account AND accounts.generation <> provider_sessions.generation) LIMIT $2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::accounts::tests::{account, revocation, session};
    use crate::store::test_settings as settings;
    use crate::store::{
        AccountChange, AddressTaken, Gone, LoginProof, LogoutTokenRow, SessionRow, Unconfirmed,
    };

    const ISSUER: &str = "https://login.test";

    async fn store(folder: &tempfile::TempDir) -> Store {
        Store::open(&settings(folder.path())).await.unwrap()
    }

    /// What is due at this time.
    fn at(now: i64) -> RecheckDue {
        RecheckDue { now, farthest: now + 1000, longest_claim: now + 60 }
    }

    fn row(id: &str, due_at: Option<i64>) -> ProviderSessionRow {
        ProviderSessionRow {
            session: id.into(),
            account: "a".into(),
            generation: 0,
            idp: "corp".into(),
            created_at: 100,
            issuer: ISSUER.into(),
            subject: "u-1".into(),
            sid: format!("there {id}"),
            tokens: Zeroizing::new("secret tokens".into()),
            due_at,
        }
    }

    async fn open(store: &Store, id: &str, due_at: Option<i64>) {
        let row = row(id, due_at);
        assert!(store.insert_provider_session(&row, i64::MAX).await.unwrap());
    }

    async fn insert(
        store: &Store,
        account: &AccountRow,
        subject: &str,
    ) -> Result<Option<Gone>, AddressTaken> {
        let person = (ISSUER, subject);
        store.insert_account_over(account, Some(person), &Unconfirmed::Stays).await.unwrap()
    }

    fn names(sessions: &[SessionAtProvider]) -> Vec<&str> {
        sessions.iter().map(|found| found.session.as_str()).collect()
    }

    #[tokio::test]
    async fn a_person_has_one_account() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let first = account("a", "a@x.example");
        insert(&store, &first, "u-1").await.unwrap();
        for (other, subject) in
            [(account("b", "a@x.example"), "u-2"), (account("b", "b@x.example"), "u-1")]
        {
            assert_eq!(insert(&store, &other, subject).await, Err(AddressTaken));
            assert_eq!(store.account("b").await.unwrap(), None, "nothing was written");
        }
        assert!(store.link_person("a", ("https://other.test", "u-1"), 0, 5).await.unwrap());
        assert!(!store.link_person("a", (ISSUER, "u-1"), 0, 5).await.unwrap());
        assert!(!store.link_person("a", (ISSUER, "u-2"), 0, 5).await.unwrap(), "it is that of u-1");
        let found = store.account_of_person("https://other.test", "u-1").await.unwrap();
        assert_eq!(found, Some(first));
        assert_eq!(store.account_of_person(ISSUER, "u-2").await.unwrap(), None);
        let people = store.people_of_account("a").await.unwrap();
        assert_eq!(
            people,
            [ISSUER, "https://other.test"].map(|issuer| (issuer.to_owned(), "u-1".to_owned()))
        );
        let third = ("https://third.test", "u-1");
        let end = revocation("subject", "a");
        store.change_account("a", AccountChange::EndSessions, end, 9).await.unwrap();
        assert!(!store.link_person("a", third, 0, 5).await.unwrap(), "it was in progress");
        let began = store.last_revocation().await.unwrap();
        assert!(store.link_person("a", third, began, 5).await.unwrap());
    }

    #[tokio::test]
    async fn one_process_asks_the_provider_and_the_tokens_are_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (store(&folder).await, store(&folder).await);
        insert(&here, &account("a", "a@x.example"), "u-1").await.unwrap();
        open(&here, "s", Some(200)).await;
        open(&here, "t", None).await;
        assert!(here.sessions_to_recheck(at(199), 9).await.unwrap().is_empty());
        assert_eq!(names(&here.sessions_to_recheck(at(200), 9).await.unwrap()), ["s"]);
        let claims = tokio::join!(
            here.claim_recheck("s", at(200), 260),
            there.claim_recheck("s", at(200), 260),
            here.claim_recheck("s", at(200), 260)
        );
        let won = [claims.0, claims.1, claims.2].into_iter().filter(|won| *won.as_ref().unwrap());
        assert_eq!(won.count(), 1);
        assert!(here.sessions_to_recheck(at(259), 9).await.unwrap().is_empty());
        let found = there.sessions_to_recheck(at(260), 9).await.unwrap();
        assert!(found[0].is_in_doubt(), "the first one has died");
        assert!(there.claim_recheck("s", at(260), 320).await.unwrap());
        there.finish_recheck("s", Some("new tokens"), 320).await.unwrap();
        let row = here.provider_session("s").await.unwrap().unwrap();
        assert_eq!((row.tokens.as_str(), row.due_at), ("new tokens", Some(320)));
        assert!(here.sessions_to_recheck(at(319), 9).await.unwrap().is_empty());
        let found = here.sessions_to_recheck(at(320), 9).await.unwrap();
        assert!(!found[0].is_in_doubt(), "it has answered");
        there.finish_recheck("s", Some("newer tokens"), 400).await.unwrap();
        assert!(here.sessions_to_recheck(at(399), 9).await.unwrap().is_empty());
        assert!(!here.sessions_to_recheck(at(400), 9).await.unwrap()[0].is_in_doubt());
        assert!(here.claim_recheck("s", at(400), 460).await.unwrap());
        here.hold_claim("s", 900).await.unwrap();
        assert!(here.sessions_to_recheck(at(899), 9).await.unwrap().is_empty());
        here.abandon_recheck("s", 915).await.unwrap();
        assert!(here.sessions_to_recheck(at(914), 9).await.unwrap().is_empty());
        assert!(here.sessions_to_recheck(at(915), 9).await.unwrap()[0].is_in_doubt());
        there.finish_recheck("s", None, 400).await.unwrap();
        let row = here.provider_session("s").await.unwrap().unwrap();
        assert_eq!((row.tokens.as_str(), row.due_at), ("newer tokens", Some(400)));
        here.finish_recheck("s", None, 500).await.unwrap();
        let row = here.provider_session("s").await.unwrap().unwrap();
        assert_eq!((row.tokens.as_str(), row.due_at), ("newer tokens", Some(500)));
        let asking = sqlx::query_as("SELECT tokens FROM provider_sessions WHERE session = 's'");
        let (stored,): (String,) = here.connections.one(asking).await.unwrap();
        assert!(!stored.contains("tokens"));
        // The row of one session does not open as that of another.
        let moving = sqlx::query("UPDATE provider_sessions SET tokens = $1 WHERE session = 't'");
        here.write(moving.bind(stored)).await.unwrap();
        here.provider_session("t").await.unwrap_err();
    }

    #[tokio::test]
    async fn sessions_of_a_provider_that_is_away_wait_together() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        insert(&store, &account("a", "a@x.example"), "u-1").await.unwrap();
        for (id, due_at) in [("r", 190), ("s", 200), ("t", 210), ("u", 220)] {
            open(&store, id, Some(due_at)).await;
        }
        open(&store, "v", None).await;
        assert!(store.claim_recheck("r", at(200), 260).await.unwrap());
        store.postpone_rechecks("https://other.test", at(200), 215).await.unwrap();
        assert_eq!(names(&store.sessions_to_recheck(at(200), 9).await.unwrap()), ["s"]);
        store.postpone_rechecks(ISSUER, at(200), 215).await.unwrap();
        assert!(store.sessions_to_recheck(at(214), 9).await.unwrap().is_empty());
        assert_eq!(names(&store.sessions_to_recheck(at(219), 9).await.unwrap()), ["s", "t"]);
        assert_eq!(names(&store.sessions_to_recheck(at(259), 9).await.unwrap()), ["s", "t", "u"]);
    }

    /// When it was ahead, a session was opened, and another one claimed by a process that has died.
    #[tokio::test]
    async fn a_clock_that_was_ahead_stops_no_checks() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        insert(&store, &account("a", "a@x.example"), "u-1").await.unwrap();
        for (id, due_at) in [("s", 9_000), ("t", 200), ("u", 1_200)] {
            open(&store, id, Some(due_at)).await;
        }
        assert!(store.claim_recheck("t", at(9_000), 9_060).await.unwrap());
        let found = store.sessions_to_recheck(at(200), 9).await.unwrap();
        assert_eq!(names(&found), ["t", "s"], "and not one that is due in time");
        assert!(found[0].is_in_doubt());
        assert!(store.claim_recheck("s", at(200), 260).await.unwrap());
        assert!(!store.claim_recheck("s", at(200), 260).await.unwrap());
        assert!(!store.claim_recheck("u", at(200), 260).await.unwrap());
        store.postpone_rechecks(ISSUER, at(200), 215).await.unwrap();
        assert!(store.sessions_to_recheck(at(214), 9).await.unwrap().is_empty());
        assert_eq!(names(&store.sessions_to_recheck(at(215), 9).await.unwrap()), ["t"]);
    }

    #[tokio::test]
    async fn live_sessions_are_found_by_person() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        insert(&store, &account("a", "a@x.example"), "u-1").await.unwrap();
        open(&store, "s", Some(200)).await;
        open(&store, "t", Some(200)).await;
        assert_eq!(store.sessions_of_person(ISSUER, "u-1").await.unwrap().len(), 2);
        assert_eq!(store.sessions_of_person("https://other.test", "u-1").await.unwrap(), []);
        store.delete_provider_session("t").await.unwrap();
        assert_eq!(names(&store.sessions_of_person(ISSUER, "u-1").await.unwrap()), ["s"]);
        assert_eq!(names(&store.sessions_to_recheck(at(999), 9).await.unwrap()), ["s"]);
        store.prune_provider_sessions(99).await.unwrap();
        assert!(store.provider_session("s").await.unwrap().is_some());
        store.prune_provider_sessions(100).await.unwrap();
        assert!(store.provider_session("s").await.unwrap().is_none());
    }

    /// The person may have got the code long before, and who ends their sessions cannot know of it.
    #[tokio::test]
    async fn a_login_in_progress_ends_with_the_sessions_of_its_person() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        insert(&store, &account("a", "a@x.example"), "u-1").await.unwrap();
        let change = async |change| {
            store.change_account("a", change, revocation("subject", "a"), 9).await.unwrap();
        };
        let end = async |name: &str, issuer: &str, named: NamedThere<'_>| {
            let token = LogoutTokenRow { name: name.into(), expires_at: 100 };
            let each = revocation("sid", "");
            store.end_sessions_once(&token, (issuer, named), &each).await.unwrap().unwrap();
        };
        for (number, is_ended) in [false, false, true, true, true, true, true].iter().enumerate() {
            let began = store.last_revocation().await.unwrap();
            match number {
                0 => change(AccountChange::Roles { roles: "admin", began: i64::MAX }).await,
                1 => {
                    end("1", "https://other.test", NamedThere::Person("u-1")).await;
                    end("2", ISSUER, NamedThere::Session("u-1")).await;
                }
                2 => end("3", ISSUER, NamedThere::Person("u-1")).await,
                3 => end("4", ISSUER, NamedThere::Session("there 3")).await,
                4 => change(AccountChange::EndSessions).await,
                5 => change(AccountChange::Disabled(false)).await,
                _ => change(AccountChange::Password { hash: "new", generation: 2 }).await,
            }
            let row = row(&number.to_string(), None);
            let added = store.insert_provider_session(&row, began).await.unwrap();
            assert_eq!(added, !is_ended, "{number}");
            let began = store.last_revocation().await.unwrap();
            let later = ProviderSessionRow { session: format!("later {number}"), ..row };
            assert!(store.insert_provider_session(&later, began).await.unwrap(), "{number}");
        }
    }

    /// The provider's row is written before the session.
    #[tokio::test]
    async fn a_session_that_has_ended_at_its_provider_does_not_begin() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        insert(&store, &account("a", "a@x.example"), "u-1").await.unwrap();
        let proof = LoginProof { idp: "corp".into(), ..LoginProof::default() };
        let session = |id: &str| SessionRow { proof: proof.clone(), ..session(id, 0) };
        for (id, is_ended) in [("s", false), ("t", true)] {
            open(&store, id, None).await;
            if is_ended {
                let token = LogoutTokenRow { name: "1".into(), expires_at: 100 };
                let person = (ISSUER, NamedThere::Person("u-1"));
                let each = revocation("sid", "");
                store.end_sessions_once(&token, person, &each).await.unwrap().unwrap();
            }
            let opened = store.open_session(&session(id), "=x").await.unwrap();
            assert_eq!(opened.is_none(), is_ended, "{id}");
        }
    }

    /// Everything is written or nothing: the provider sends a token again whose receipt was not
    /// acknowledged, and never one that was.
    #[tokio::test]
    async fn a_logout_token_is_written_with_the_ends_of_its_sessions() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        insert(&store, &account("a", "a@x.example"), "u-1").await.unwrap();
        for id in ["s", "t", "u"] {
            store.open_session(&session(id, 0), "=x").await.unwrap().unwrap();
            open(&store, id, Some(200)).await;
        }
        let end = async |name: &str, issuer: &str, named: NamedThere<'_>| {
            let token = LogoutTokenRow { name: name.into(), expires_at: 100 };
            let each = revocation("sid", "");
            let ended = store.end_sessions_once(&token, (issuer, named), &each).await;
            ended.map(|ended| ended.map(|ended| names(&ended).join(" ")))
        };
        let revoked = async || {
            let rows = store.revocations_after(0).await.unwrap();
            let ended = rows.into_iter().filter(|row| row.kind == "sid");
            ended.map(|row| row.value).collect::<Vec<_>>().join(" ")
        };
        let person = NamedThere::Person("u-1");
        assert_eq!(end("1", "https://other.test", person).await.unwrap().as_deref(), Some(""));
        let one = NamedThere::Session("there t");
        assert_eq!(end("2", ISSUER, one).await.unwrap().as_deref(), Some("t"));
        assert_eq!(end("2", ISSUER, person).await.unwrap(), None);
        assert_eq!(revoked().await, "t");
        // The last statement fails.
        let renaming = |from, to| sqlx::AssertSqlSafe(format!("ALTER TABLE {from} RENAME TO {to}"));
        store.write(sqlx::query(renaming("revocations", "gone"))).await.unwrap();
        end("3", ISSUER, person).await.unwrap_err();
        store.write(sqlx::query(renaming("gone", "revocations"))).await.unwrap();
        assert!(store.live_session("s").await.unwrap().is_some());
        assert_eq!(end("3", ISSUER, person).await.unwrap().as_deref(), Some("s u"));
        assert_eq!(revoked().await, "t s u");
        for id in ["s", "t", "u"] {
            assert!(store.live_session(id).await.unwrap().is_none(), "{id}");
            assert!(store.provider_session(id).await.unwrap().is_none(), "{id}");
        }
    }
}
