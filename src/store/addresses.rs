//! Who gets an address. An unconfirmed, unused registration gives way to an account whose owner has
//! proved the address.

use super::accounts::{change_account, insert_account};
use super::connections::WriteTransaction;
use super::mail::queue_mail;
use super::providers::bind_person;
use super::{AccountChange, AccountRow, NewMail, RevocationRow, Store, StoreError};

/// What becomes of a registration if somebody else proves its address.
#[derive(Clone, Debug)]
pub enum Unconfirmed {
    /// It keeps the address.
    Stays,
    /// Its account is deleted, unless somebody has used it, or an operator has changed it since. The
    /// revocation is for the subject of that account; its value and time are replaced.
    GivesWay(RevocationRow),
}

/// An account that gave way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its id.
    pub account: String,
    /// What was issued to it at or before this time, in Unix seconds, is revoked.
    pub cutoff: i64,
}

/// An account that got another address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// What was issued to it at or before this time, in Unix seconds, is revoked.
    pub cutoff: i64,
    /// The registration that had the address.
    pub gone: Option<Gone>,
}

/// Another account has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressTaken;

impl Store {
    /// Adds an account, in place of a registration that gives way, and lets `person` log in to it: an
    /// issuer and a subject there. Writes nothing if the address is taken, or if the person already
    /// has an account.
    pub async fn insert_account_over(
        &self,
        account: &AccountRow,
        person: Option<(&str, &str)>,
        unconfirmed: &Unconfirmed,
    ) -> Result<Result<Option<Gone>, AddressTaken>, StoreError> {
        let mut writing = self.connections.write().await?;
        let now = account.created_at;
        let gone = give_way(&mut writing, &account.email, unconfirmed, now).await?;
        let mut is_added = insert_account(&mut writing, account).await?;
        if let (true, Some(person)) = (is_added, person) {
            // Nothing was issued to it yet.
            let whose = (&*account.id, i64::MAX);
            is_added = bind_person(&mut writing, whose, person, now).await?;
        }
        if !is_added {
            return Ok(Err(AddressTaken));
        }
        writing.commit().await?;
        Ok(Ok(gone))
    }

    /// Sets another address, which is proved, and revokes what was issued to the account before, at
    /// `now` in Unix seconds. `revocation` is for the account's subject. `None`: there is no such
    /// account, or another one has the address. Writes nothing then, or on an error.
    pub async fn set_email(
        &self,
        id: &str,
        email: &str,
        (revocation, unconfirmed): (RevocationRow, &Unconfirmed),
        now: i64,
    ) -> Result<Option<Moved>, StoreError> {
        let mut writing = self.connections.write().await?;
        let moved = set_email(&mut writing, id, email, (revocation, unconfirmed), now).await?;
        if moved.is_some() {
            writing.commit().await?;
        }
        Ok(moved)
    }

    /// Adds an account and queues a mail to its owner, or another mail if the address is taken:
    /// neither without the other, and always both writes, so that timing does not reveal which.
    /// Returns false, and writes nothing, if `most` mails are already waiting.
    pub async fn register(
        &self,
        account: &AccountRow,
        (welcome, taken): (NewMail<'_>, NewMail<'_>),
        most: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let is_new = insert_account(&mut writing, account).await?;
        let mail = if is_new { welcome } else { taken };
        if !queue_mail(&mut writing, mail, most, account.created_at).await? {
            return Ok(false);
        }
        writing.commit().await?;
        Ok(true)
    }
}

/// Sets another address, in a transaction that the caller commits. `None`: it must not be committed.
pub(super) async fn set_email(
    writing: &mut WriteTransaction,
    id: &str,
    email: &str,
    (revocation, unconfirmed): (RevocationRow, &Unconfirmed),
    now: i64,
) -> Result<Option<Moved>, StoreError> {
    let gone = give_way(writing, email, unconfirmed, now).await?;
    // It has the address already.
    if gone.as_ref().is_some_and(|gone| gone.account == id) {
        return Ok(None);
    }
    let changed = change_account(writing, id, AccountChange::Email(email), revocation, now).await?;
    Ok(changed.map(|cutoff| Moved { cutoff, gone }))
}

/// Deletes the registration that has an address, if it has to give way, with everything that belongs
/// to it: whoever made it keeps no link and no second factor.
async fn give_way(
    writing: &mut WriteTransaction,
    email: &str,
    unconfirmed: &Unconfirmed,
    now: i64,
) -> Result<Option<Gone>, StoreError> {
    let Unconfirmed::GivesWay(revocation) = unconfirmed else { return Ok(None) };
    let found: Option<(String,)> =
        writing.first(sqlx::query_as(UNCONFIRMED).bind(email.to_owned())).await?;
    let Some((account,)) = found else { return Ok(None) };
    let revocation = RevocationRow { value: account.clone(), ..revocation.clone() };
    let deleted =
        change_account(writing, &account, AccountChange::Delete(None), revocation, now).await?;
    Ok(deleted.map(|cutoff| Gone { account, cutoff }))
}

/// Somebody chose its password, has not confirmed its address, and has never logged in. Operators have
/// not changed it: their changes move its cut-off. An invited account has no password yet.
const UNCONFIRMED: &str = "SELECT id FROM accounts WHERE email = $1 AND email_verified = 0 AND password <> '' \
    AND last_login_at IS NULL AND generation = 0 AND not_before = 0 \
    AND NOT EXISTS (SELECT 1 FROM provider_people WHERE provider_people.account = accounts.id) \
    AND NOT EXISTS (SELECT 1 FROM personal_tokens WHERE personal_tokens.account = accounts.id)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::accounts::tests::account;
    use crate::store::test_settings as settings;
    use crate::store::{LinkRow, LoginProof, SessionRow};

    const EMAIL: &str = "ann@x.example";

    fn revocation(account: &str) -> RevocationRow {
        RevocationRow {
            kind: "subject".into(),
            value: account.into(),
            scope: "=x".into(),
            revoked_at: 0,
            seq: 0,
        }
    }

    fn gives_way() -> Unconfirmed {
        Unconfirmed::GivesWay(revocation(""))
    }

    async fn log_in(store: &Store, id: &str) {
        let session = SessionRow {
            id: "s".into(),
            account: id.into(),
            generation: 0,
            counter: 0,
            created_at: 100,
            rotated_at: 100_000,
            address: String::new(),
            user_agent: String::new(),
            ended_at: None,
            until_closed: 0,
            proof: LoginProof::default(),
        };
        store.open_session(&session, "=x").await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_registration_gives_way_with_all_that_belongs_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let squatter = account("squatter", EMAIL);
        let own = AccountRow { password: String::new(), ..account("own", EMAIL) };
        let link = LinkRow {
            digest: "link",
            purpose: "verify",
            new_email: None,
            account: &squatter,
            created_at: 1,
            expires_at: 1_000,
        };
        let is_gone = async |gone: Option<Gone>| {
            assert_eq!(gone.unwrap().account, "squatter");
            assert_eq!(store.account("squatter").await.unwrap(), None);
            assert!(store.account_of_link("link", "verify", 2).await.unwrap().is_none());
            assert!(store.second_factor("squatter").await.unwrap().is_none());
            store
                .change_account("own", AccountChange::Delete(None), revocation("own"), 3)
                .await
                .unwrap();
        };
        let squat = async || {
            assert!(store.insert_account(&squatter).await.unwrap());
            assert!(store.insert_link(&link, 0, 5).await.unwrap());
            assert!(store.begin_second_factor(("squatter", 0), "s", b"secret", 1).await.unwrap());
        };
        squat().await;
        is_gone(store.insert_account_over(&own, None, &gives_way()).await.unwrap().unwrap()).await;
        squat().await;
        let person = ("https://login.test", "u-1");
        let added = store.insert_account_over(&own, Some(person), &gives_way()).await;
        is_gone(added.unwrap().unwrap()).await;
        squat().await;
        assert!(store.insert_account(&account("own", "earlier@x.example")).await.unwrap());
        let moved = store.set_email("own", EMAIL, (revocation("own"), &gives_way()), 2).await;
        is_gone(moved.unwrap().unwrap().gone).await;
        // A link that is not valid frees no address.
        squat().await;
        assert!(store.insert_account(&account("own", "earlier@x.example")).await.unwrap());
        let of = account("own", "earlier@x.example");
        let tried = store.change_email("none", &of, (revocation("own"), &gives_way()), 2).await;
        assert_eq!(tried.unwrap(), None);
        let change = LinkRow {
            digest: "change",
            purpose: "change",
            new_email: Some(EMAIL),
            account: &of,
            ..link
        };
        assert!(store.insert_link(&change, 0, 5).await.unwrap());
        let changed = store.change_email("change", &of, (revocation("own"), &gives_way()), 2).await;
        is_gone(changed.unwrap().unwrap().gone).await;
    }

    #[tokio::test]
    async fn an_account_that_anybody_relies_on_keeps_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let stays = async |what: &str, unconfirmed: &Unconfirmed| {
            let own = account("own", EMAIL);
            let added = store.insert_account_over(&own, None, unconfirmed).await.unwrap();
            assert_eq!(added, Err(AddressTaken), "{what}");
            assert!(store.insert_account(&account("own", "own@x.example")).await.unwrap());
            let moved = store.set_email("own", EMAIL, (revocation("own"), unconfirmed), 2).await;
            assert_eq!(moved.unwrap(), None, "{what}");
            for id in ["own", "a"] {
                store
                    .change_account(id, AccountChange::Delete(None), revocation(id), 3)
                    .await
                    .unwrap();
            }
        };
        let plain = account("a", EMAIL);
        store.insert_account(&plain).await.unwrap();
        stays("without the rule", &Unconfirmed::Stays).await;
        store.insert_account(&AccountRow { email_verified: 1, ..plain.clone() }).await.unwrap();
        stays("confirmed", &gives_way()).await;
        store
            .insert_account(&AccountRow { password: String::new(), ..plain.clone() })
            .await
            .unwrap();
        stays("invited", &gives_way()).await;
        store.insert_account(&plain).await.unwrap();
        log_in(&store, "a").await;
        stays("used", &gives_way()).await;
        for change in [
            AccountChange::Roles { roles: "admin", began: i64::MAX },
            AccountChange::Disabled(true),
            AccountChange::Password { hash: "of an operator", generation: 0 },
        ] {
            store.insert_account(&plain).await.unwrap();
            let what = format!("{change:?}");
            store.change_account("a", change, revocation("a"), 2).await.unwrap().unwrap();
            stays(&what, &gives_way()).await;
        }
        store.insert_account(&plain).await.unwrap();
        assert!(store.link_person("a", ("https://login.test", "u-1"), i64::MAX, 2).await.unwrap());
        stays("of a person of a provider", &gives_way()).await;
    }

    #[tokio::test]
    async fn a_registration_whose_mail_finds_no_place_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let ann = account("ann", EMAIL);
        let mail = |kind| NewMail { kind, email: EMAIL, ..NewMail::default() };
        let mails = (mail("verify"), mail("exists"));
        assert!(!store.register(&ann, mails, 0).await.unwrap());
        assert_eq!(store.account("ann").await.unwrap(), None);
        assert!(store.register(&ann, mails, 1).await.unwrap());
        assert_eq!(store.due_mail(2, &[]).await.unwrap()[0].kind, "verify");
        let again = account("again", EMAIL);
        assert!(store.register(&again, mails, 2).await.unwrap());
        assert_eq!(store.account("again").await.unwrap(), None);
        let mut kinds: Vec<_> =
            store.due_mail(2, &[]).await.unwrap().into_iter().map(|row| row.kind).collect();
        kinds.sort();
        assert_eq!(kinds, ["exists", "verify"]);
    }
}
