//! The tables of queued mail, of the links in it, and of how many went to each address.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;

use super::accounts::{account_columns, change_account};
use super::addresses::set_email;
use super::connections::WriteTransaction;
use super::personal_tokens::revoke_all_tokens;
use super::{AccountChange, AccountRow, Moved, RevocationRow, Store, StoreError, Unconfirmed};

/// A row: a mail to send.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct MailRow {
    /// The kind: `reset`, `verify`, `changed` or `exists`.
    pub kind: String,
    /// The recipient's address, in canonical form.
    pub email: String,
    /// Unix seconds.
    pub requested_at: i64,
    /// How often sending it was tried.
    pub attempts: i64,
    /// How often it was requested since it was last sent.
    pub asked: i64,
    /// The path on this site to go on to after its link; empty: none.
    pub return_to: String,
    /// The name of a language, or empty.
    pub language: String,
    /// The login that it is about: the browser or program, and the address; otherwise empty.
    pub login: String,
}

/// A mail to queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewMail<'a> {
    /// The kind, as in [`MailRow`].
    pub kind: &'a str,
    /// The recipient's address, in canonical form.
    pub email: &'a str,
    /// The path on this site to go on to after its link; empty: none.
    pub return_to: &'a str,
    /// The name of a language, or empty.
    pub language: &'a str,
    /// The login that it is about, as in [`MailRow`].
    pub login: &'a str,
}

/// A row: a link that works once.
#[derive(Clone, Debug)]
pub struct LinkRow<'a> {
    /// The digest of its token.
    pub digest: &'a str,
    /// The purpose: `reset`, `verify` or `change`.
    pub purpose: &'a str,
    /// The address that a `change` sets.
    pub new_email: Option<&'a str>,
    /// The account that it is for, as it is when the link is made.
    pub account: &'a AccountRow,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
}

impl Store {
    /// Queues a mail to an address, whether or not an account has it: always one write, so that
    /// timing does not reveal it. Returns false if `most` mails are already waiting.
    pub async fn queue_mail(
        &self,
        mail: NewMail<'_>,
        most: i64,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let is_queued = queue_mail(&mut writing, mail, most, now).await?;
        writing.commit().await?;
        Ok(is_queued)
    }

    /// Some of the mail that is due now, the one that has waited longest first. It includes mail
    /// that was queued or tried while the clock was ahead. Mail that was never tried is not due after
    /// [`LONGEST_WAIT`], which is undone if the clock turns out to be ahead. Passes over mail to addresses in or below
    /// the `busy` domains, at most [`MOST_BUSY`] of them: however much of it waits, the rest is found.
    pub async fn due_mail(&self, now: i64, busy: &[&str]) -> Result<Vec<MailRow>, StoreError> {
        let mut asking =
            sqlx::query_as(DUE).bind(now).bind(now + MAX_AHEAD).bind(now - LONGEST_WAIT);
        for place in 0..MOST_BUSY {
            // An empty pattern matches no address.
            let patterns = busy.get(place).map_or_else(Default::default, |domain| {
                (format!("%@{domain}"), format!("%.{domain}"))
            });
            asking = asking.bind(patterns.0).bind(patterns.1);
        }
        self.connections.all(asking).await
    }

    /// Drops due mail to addresses without an account, all at once: a flood of it must not keep other
    /// mail waiting.
    pub async fn drop_mail_to_nobody(&self, now: i64) -> Result<(), StoreError> {
        self.write(sqlx::query(DROP_TO_NOBODY).bind(now)).await?;
        Ok(())
    }

    /// Drops mail that was never tried in [`LONGEST_WAIT`] before a settled time, and returns its kinds.
    pub async fn drop_untried_mail(&self, settled: i64) -> Result<Vec<String>, StoreError> {
        let mut writing = self.connections.write().await?;
        let dropping = sqlx::query_as(DROP_UNTRIED).bind(settled - LONGEST_WAIT);
        let dropped: Vec<(String,)> = writing.all(dropping).await?;
        writing.commit().await?;
        Ok(dropped.into_iter().map(|(kind,)| kind).collect())
    }

    /// Claims a row for an attempt, and schedules the next attempt at `again_at` in case nothing
    /// more is heard. Returns the row as it is now. `None`: another process has it.
    pub async fn claim_mail(
        &self,
        row: &MailRow,
        again_at: i64,
    ) -> Result<Option<MailRow>, StoreError> {
        let statement = sqlx::query_as(CLAIM)
            .bind(again_at)
            .bind(&row.kind)
            .bind(&row.email)
            .bind(row.attempts);
        let mut writing = self.connections.write().await?;
        let claimed = writing.first(statement).await?;
        writing.commit().await?;
        Ok(claimed)
    }

    /// Schedules the next attempt for a row.
    pub async fn postpone_mail(&self, row: &MailRow, next_at: i64) -> Result<(), StoreError> {
        let postponing =
            sqlx::query("UPDATE mail_outbox SET next_at = $1 WHERE kind = $2 AND email = $3");
        self.write(postponing.bind(next_at).bind(&row.kind).bind(&row.email)).await?;
        Ok(())
    }

    /// Finishes a row as it was when it was claimed: requests that have come since start afresh.
    pub async fn remove_mail(&self, row: &MailRow, now: i64) -> Result<(), StoreError> {
        let statement =
            sqlx::query("DELETE FROM mail_outbox WHERE kind = $1 AND email = $2 AND asked = $3");
        let mut writing = self.connections.write().await?;
        let removing = statement.bind(&row.kind).bind(&row.email).bind(row.asked);
        if writing.execute(removing).await? == 0 {
            let statement =
                sqlx::query(BEGIN_ANEW).bind(now).bind(row.asked).bind(&row.kind).bind(&row.email);
            writing.execute(statement).await?;
        }
        writing.commit().await?;
        Ok(())
    }

    /// Makes a link. Returns false, and writes nothing, if `most` links for its purpose were made
    /// for the account, or for the same address, after `since`. Those that were made while the clock
    /// was ahead do not count. Those for an address are counted whatever becomes of the account.
    pub async fn insert_link(
        &self,
        link: &LinkRow<'_>,
        since: i64,
        most: i64,
    ) -> Result<bool, StoreError> {
        let to = link.new_email.unwrap_or(&link.account.email);
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.sealer.derive(RECIPIENTS).as_ref());
        let recipient = BASE64_STANDARD_NO_PAD.encode(hmac::sign(&key, to.as_bytes()));
        let counting = sqlx::query(COUNT_RECIPIENT)
            .bind(recipient)
            .bind(link.purpose)
            .bind(link.created_at)
            .bind(since)
            .bind(most);
        let making = sqlx::query(INSERT_LINK)
            .bind(link.digest)
            .bind(link.purpose)
            .bind(&link.account.id)
            .bind(&link.account.email)
            .bind(link.account.generation)
            .bind(link.created_at)
            .bind(link.expires_at)
            .bind(link.new_email)
            .bind(since)
            .bind(most);
        let mut writing = self.connections.write().await?;
        if writing.execute(counting).await? == 0 || writing.execute(making).await? == 0 {
            return Ok(false);
        }
        writing.commit().await?;
        Ok(true)
    }

    /// The account that a link is valid for at `now`. Does not use the link up.
    pub async fn account_of_link(
        &self,
        digest: &str,
        purpose: &str,
        now: i64,
    ) -> Result<Option<AccountRow>, StoreError> {
        self.connections
            .first(sqlx::query_as(ACCOUNT_OF_LINK).bind(digest).bind(purpose).bind(now))
            .await
    }

    /// Uses a link up, sets another password for its account, notes that the address belongs to its
    /// owner, and revokes what was issued to the account, in one transaction. Returns the cut-off.
    /// `revocation` is for the account's subject. `None`: the link is invalid or no longer valid,
    /// or the account has changed since it was read. Writes nothing on an error.
    pub async fn reset_password(
        &self,
        digest: &str,
        purpose: &str,
        account: &AccountRow,
        hash: &str,
        revocation: RevocationRow,
        now: i64,
    ) -> Result<Option<i64>, StoreError> {
        let mut writing = self.connections.write().await?;
        let using = sqlx::query(USE_LINK).bind(now).bind(digest).bind(purpose).bind(&account.id);
        if writing.execute(using).await? == 0 {
            return Ok(None);
        }
        // Reading the mail proves that the address belongs to the reader.
        let confirming = sqlx::query(VERIFIED).bind(&account.id).bind(account.generation);
        writing.execute(confirming).await?;
        let change = AccountChange::Password { hash, generation: account.generation };
        let changed = change_account(&mut writing, &account.id, change, revocation, now).await?;
        let Some(cutoff) = changed else { return Ok(None) };
        // Someone else may have had the account.
        revoke_all_tokens(&mut writing, &account.id, now).await?;
        writing.commit().await?;
        Ok(Some(cutoff))
    }

    /// Uses a link up, and notes that the account's address was shown to belong to its owner.
    /// Returns false if the link is invalid or no longer valid, or if the account has changed since
    /// it was read. Writes nothing on an error.
    pub async fn verify_email(
        &self,
        digest: &str,
        account: &AccountRow,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut writing = self.connections.write().await?;
        let using = sqlx::query(USE_LINK).bind(now).bind(digest).bind("verify").bind(&account.id);
        if writing.execute(using).await? == 0 {
            return Ok(false);
        }
        let confirming = sqlx::query(VERIFIED).bind(&account.id).bind(account.generation);
        if writing.execute(confirming).await? == 0 {
            return Ok(false);
        }
        writing.commit().await?;
        Ok(true)
    }

    /// Uses up a link that changes the address of its account, sets that address, and revokes what
    /// was issued to the account, in one transaction. `revocation` is for the account's subject.
    /// `None`: the link is invalid or no longer valid, the account has changed since it was read, or
    /// another account has the address. Writes nothing on an error.
    pub async fn change_email(
        &self,
        digest: &str,
        account: &AccountRow,
        (revocation, unconfirmed): (RevocationRow, &Unconfirmed),
        now: i64,
    ) -> Result<Option<Moved>, StoreError> {
        let mut writing = self.connections.write().await?;
        let using = sqlx::query(USE_LINK).bind(now).bind(digest).bind("change").bind(&account.id);
        if writing.execute(using).await? == 0 {
            return Ok(None);
        }
        let reading = sqlx::query_as("SELECT new_email FROM mail_links WHERE digest = $1");
        let (email,): (Option<String>,) = writing.one(reading.bind(digest)).await?;
        let Some(email) = email else { return Ok(None) };
        let how = (revocation, unconfirmed);
        let Some(moved) = set_email(&mut writing, &account.id, &email, how, now).await? else {
            return Ok(None);
        };
        writing.commit().await?;
        Ok(Some(moved))
    }

    /// Whether a link was sent to an address that has been shown to belong to its owner by now. The
    /// link may have been used or be too old.
    pub async fn is_confirmed_by_now(&self, digest: &str) -> Result<bool, StoreError> {
        let found: Option<(i64,)> =
            self.connections.first(sqlx::query_as(CONFIRMED_BY_NOW).bind(digest)).await?;
        Ok(found.is_some())
    }

    /// Deletes the links that expired before this time, and the counts of mail from before `counted`.
    pub async fn prune_links(&self, before: i64, counted: i64) -> Result<(), StoreError> {
        self.prune(|most| sqlx::query(PRUNE_LINKS).bind(before).bind(most)).await?;
        self.prune(|most| sqlx::query(PRUNE_RECIPIENTS).bind(counted).bind(most)).await
    }
}

/// Queues a mail, in a transaction that the caller commits. Returns false if `most` mails are already
/// waiting.
pub(super) async fn queue_mail(
    writing: &mut WriteTransaction,
    mail: NewMail<'_>,
    most: i64,
    now: i64,
) -> Result<bool, StoreError> {
    let NewMail { kind, email, return_to, language, login } = mail;
    let statement = sqlx::query(QUEUE).bind(kind).bind(email).bind(now).bind(most);
    let statement = statement.bind(return_to).bind(language).bind(login);
    Ok(writing.execute(statement).await? == 1)
}

/// A mail that is already waiting is written too.
const QUEUE: &str = "INSERT INTO mail_outbox (kind, email, requested_at, next_at, attempts, asked, return_to, language, login) \
    SELECT $1, $2, $3, $3, 0, 1, $5, $6, $7 WHERE (SELECT COUNT(*) FROM mail_outbox) < $4 \
    ON CONFLICT (kind, email) DO UPDATE SET asked = mail_outbox.asked + 1, return_to = excluded.return_to, language = excluded.language, \
    login = excluded.login";

const DROP_TO_NOBODY: &str = "DELETE FROM mail_outbox WHERE kind IN ('reset', 'verify') AND attempts = 0 AND next_at <= $1 \
    AND NOT EXISTS (SELECT 1 FROM accounts WHERE accounts.email = mail_outbox.email)";

const DUE: &str = "SELECT kind, email, requested_at, attempts, asked, return_to, language, login FROM mail_outbox WHERE (next_at <= $1 OR next_at > $2) \
    AND (attempts > 0 OR requested_at >= $3) AND email NOT LIKE $4 AND email NOT LIKE $5 AND email NOT LIKE $6 AND email NOT LIKE $7 ORDER BY next_at LIMIT 50";

const DROP_UNTRIED: &str =
    "DELETE FROM mail_outbox WHERE attempts = 0 AND requested_at < $1 RETURNING kind";

const PRUNE_RECIPIENTS: &str = "DELETE FROM mail_recipients WHERE sent_at IN (SELECT sent_at FROM mail_recipients WHERE sent_at <= $1 LIMIT $2)";

const PRUNE_LINKS: &str = "DELETE FROM mail_links WHERE digest IN (SELECT digest FROM mail_links WHERE expires_at < $1 LIMIT $2)";

/// The maximum number of seconds that mail waits for its first try. It waits, for example, while the
/// configuration has no `mail`.
const LONGEST_WAIT: i64 = 4 * 3600;

/// How many domains [`DUE`] can pass over. No pattern needs an escape: domains are letters, digits and
/// hyphens.
pub const MOST_BUSY: usize = 2;

/// Seconds to the next attempt at most: the longest pause is a quarter of an hour.
const MAX_AHEAD: i64 = 3600;

const CLAIM: &str = "UPDATE mail_outbox SET attempts = attempts + 1, next_at = $1 WHERE kind = $2 AND email = $3 AND attempts = $4 \
    RETURNING kind, email, requested_at, attempts, asked, return_to, language, login";

const BEGIN_ANEW: &str = "UPDATE mail_outbox SET attempts = 0, requested_at = $1, next_at = $1, asked = asked - $2 \
    WHERE kind = $3 AND email = $4";

const INSERT_LINK: &str = "INSERT INTO mail_links (digest, purpose, account, email, generation, created_at, expires_at, new_email) \
    SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE \
    (SELECT COUNT(*) FROM mail_links WHERE account = $3 AND purpose = $2 AND created_at > $9 AND created_at <= $6) < $10";

const COUNT_RECIPIENT: &str = "INSERT INTO mail_recipients (recipient, purpose, sent_at) SELECT $1, $2, $3 WHERE \
    (SELECT COUNT(*) FROM mail_recipients WHERE recipient = $1 AND purpose = $2 AND sent_at > $4 AND sent_at <= $3) < $5";

/// What the key of the digests of recipients is derived for.
const RECIPIENTS: &str = "portcullis mail recipients v1";

const VERIFIED: &str = "UPDATE accounts SET email_verified = 1 WHERE id = $1 AND generation = $2";

const CONFIRMED_BY_NOW: &str = "SELECT accounts.created_at FROM accounts JOIN mail_links ON mail_links.account = accounts.id \
    AND mail_links.email = accounts.email WHERE mail_links.digest = $1 AND mail_links.purpose = 'verify' AND accounts.email_verified = 1";

/// A link to reset a password or to change the address dies with the password that it was requested
/// for. A link to verify an address dies when the address is verified. One that was made while the
/// clock was ahead does not last until that date: it is not valid yet if it is farther ahead than it
/// was to last.
const ACCOUNT_OF_LINK: &str = concat!(
    "SELECT ",
    account_columns!(),
    " FROM accounts JOIN mail_links ON mail_links.account = accounts.id \
     AND mail_links.email = accounts.email AND (CASE mail_links.purpose WHEN 'verify' THEN accounts.email_verified = 0 ELSE mail_links.generation = accounts.generation END) \
     WHERE mail_links.digest = $1 AND mail_links.purpose = $2 AND mail_links.used_at IS NULL AND mail_links.expires_at > $3 \
     AND mail_links.created_at * 2 - mail_links.expires_at <= $3 AND accounts.disabled = 0"
);

const USE_LINK: &str = "UPDATE mail_links SET used_at = $1 WHERE digest = $2 AND purpose = $3 AND account = $4 \
    AND used_at IS NULL AND expires_at > $1 AND created_at * 2 - expires_at <= $1 AND EXISTS (SELECT 1 FROM accounts WHERE accounts.id = mail_links.account \
    AND accounts.email = mail_links.email AND accounts.disabled = 0 \
    AND (CASE mail_links.purpose WHEN 'verify' THEN accounts.email_verified = 0 ELSE mail_links.generation = accounts.generation END))";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_settings as settings;

    const NOW: i64 = 1_800_000_000;

    fn account(id: &str) -> AccountRow {
        AccountRow {
            id: id.to_owned(),
            email: format!("{id}@example.com"),
            name: None,
            password: "old".to_owned(),
            roles: String::new(),
            disabled: 0,
            email_verified: 0,
            generation: 0,
            not_before: 0,
            created_at: NOW,
            last_login_at: None,
        }
    }

    fn revocation(account: &str) -> RevocationRow {
        RevocationRow {
            kind: "subject".into(),
            value: account.into(),
            scope: "=x".into(),
            revoked_at: NOW,
            seq: 0,
        }
    }

    fn link<'a>(digest: &'a str, purpose: &'a str, account: &'a AccountRow) -> LinkRow<'a> {
        LinkRow { digest, purpose, new_email: None, account, created_at: NOW, expires_at: NOW + 60 }
    }

    /// A mail to reset the password of an account.
    fn reset(email: &str) -> NewMail<'_> {
        NewMail { kind: "reset", email, language: "en", ..NewMail::default() }
    }

    #[tokio::test]
    async fn mail_to_nobody_does_not_wait_for_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        store.insert_account(&account("ann")).await.unwrap();
        let invited = NewMail { kind: "invite", ..reset("x@example.com") };
        for mail in [reset("x@example.com"), reset("ann@example.com"), invited] {
            assert!(store.queue_mail(mail, 10, NOW).await.unwrap());
        }
        let tried = reset("y@example.com");
        assert!(store.queue_mail(tried, 10, NOW - 1).await.unwrap());
        let tried = store.due_mail(NOW - 1, &[]).await.unwrap().remove(0);
        store.claim_mail(&tried, NOW).await.unwrap().unwrap();
        store.drop_mail_to_nobody(NOW).await.unwrap();
        let mut left = store.due_mail(NOW, &[]).await.unwrap();
        left.sort_by(|one, other| one.email.cmp(&other.email));
        let left: Vec<_> = left.iter().map(|row| (&*row.kind, &*row.email)).collect();
        assert_eq!(
            left,
            [("reset", "ann@example.com"), ("invite", "x@example.com"), ("reset", "y@example.com")]
        );
    }

    #[tokio::test]
    async fn queued_mail_waits_for_the_next_process_that_sends_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        assert!(store.queue_mail(reset("a@example.com"), 2, NOW).await.unwrap());
        assert!(store.queue_mail(reset("b@example.com"), 2, NOW + 1).await.unwrap());
        assert!(
            !store.queue_mail(reset("c@example.com"), 2, NOW).await.unwrap(),
            "two wait at most"
        );
        store.close().await;

        let store = Store::open(&settings(folder.path())).await.unwrap();
        assert_eq!(store.due_mail(NOW - 1, &[]).await.unwrap(), []);
        let after_clock_was_ahead = store.due_mail(NOW - 2 * MAX_AHEAD, &[]).await.unwrap();
        assert_eq!(after_clock_was_ahead.len(), 2);
        // Nor does a clock that is ahead for a moment drop any.
        assert_eq!(store.due_mail(NOW + LONGEST_WAIT + 2, &[]).await.unwrap(), []);
        let row = store.due_mail(NOW, &[]).await.unwrap().remove(0);
        let taken = store.claim_mail(&row, NOW + 60).await.unwrap().unwrap();
        assert_eq!((taken.email.as_str(), taken.attempts, taken.asked), ("a@example.com", 1, 1));
        assert!(
            store.claim_mail(&row, NOW + 60).await.unwrap().is_none(),
            "another process has it"
        );
        assert_eq!(store.due_mail(NOW, &[]).await.unwrap(), []);
        // Requested again while it is being sent: that is another request.
        store.remove_mail(&store.due_mail(NOW + 1, &[]).await.unwrap()[0], NOW).await.unwrap();
        assert!(store.queue_mail(reset("a@example.com"), 2, NOW + 5).await.unwrap());
        store.remove_mail(&taken, NOW + 6).await.unwrap();
        let again = store.due_mail(NOW + 6, &[]).await.unwrap();
        assert_eq!((again[0].attempts, again[0].asked, again[0].requested_at), (0, 1, NOW + 6));
        let taken = store.claim_mail(&again[0], NOW + 60).await.unwrap().unwrap();
        store.postpone_mail(&taken, NOW + 20).await.unwrap();
        assert_eq!(store.due_mail(NOW + 20, &[]).await.unwrap().len(), 1);
        store.remove_mail(&taken, NOW + 20).await.unwrap();
        assert_eq!(store.due_mail(NOW + 1000, &[]).await.unwrap(), []);
        for email in ["tried@example.com", "old@example.com"] {
            assert!(store.queue_mail(reset(email), 2, NOW).await.unwrap());
            if email == "tried@example.com" {
                let row = store.due_mail(NOW, &[]).await.unwrap().remove(0);
                store.claim_mail(&row, NOW + 60).await.unwrap().unwrap();
            }
        }
        assert!(store.drop_untried_mail(NOW + LONGEST_WAIT).await.unwrap().is_empty());
        assert_eq!(store.drop_untried_mail(NOW + LONGEST_WAIT + 1).await.unwrap(), ["reset"]);
        let left = store.due_mail(NOW + 2 * LONGEST_WAIT, &[]).await.unwrap();
        assert_eq!((left.len(), &*left[0].email), (1, "tried@example.com"));
    }

    #[tokio::test]
    async fn mail_behind_that_to_a_busy_domain_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        for number in 0..160 {
            let email = format!("p{number}@x{}slow.test", ["", "."][number % 2]);
            assert!(store.queue_mail(reset(&email), 1000, NOW).await.unwrap());
        }
        for email in ["ann@example.com", "slow.test@example.com"] {
            assert!(store.queue_mail(reset(email), 1000, NOW + 1).await.unwrap());
        }
        let found = async |busy: &[&str]| {
            let due = store.due_mail(NOW + 1, busy).await.unwrap();
            due.into_iter().map(|row| row.email).collect::<Vec<_>>()
        };
        assert!(found(&["slow.test"]).await.iter().all(|email| email.ends_with("@xslow.test")));
        let mut rest = found(&["slow.test", "xslow.test"]).await;
        rest.sort();
        assert_eq!(rest, ["ann@example.com", "slow.test@example.com"]);
    }

    #[tokio::test]
    async fn a_link_works_once_for_the_unchanged_account() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let ann = account("ann");
        store.insert_account(&ann).await.unwrap();
        for (digest, purpose) in
            [("r1", "reset"), ("r2", "reset"), ("v1", "verify"), ("v2", "verify")]
        {
            let link = link(digest, purpose, &ann);
            assert!(store.insert_link(&link, NOW - 1, 2).await.unwrap());
        }
        let third = link("r3", "reset", &ann);
        assert!(!store.insert_link(&third, NOW - 1, 2).await.unwrap(), "the limit is two");
        assert!(store.insert_link(&third, NOW, 1).await.unwrap(), "the others are older");
        let earlier = LinkRow { created_at: NOW - 1, ..link("r4", "reset", &ann) };
        assert!(store.insert_link(&earlier, NOW - 60, 1).await.unwrap(), "the clock was ahead");
        let is_valid = async |digest: &str, purpose: &str, now: i64| {
            store.account_of_link(digest, purpose, now).await.unwrap().is_some()
        };
        assert!(is_valid("r1", "reset", NOW + 59).await);
        assert!(is_valid("r1", "reset", NOW - 60).await, "the clock is behind");
        for (digest, purpose, now) in [
            ("r1", "verify", NOW),
            ("v1", "reset", NOW),
            ("none", "reset", NOW),
            ("r1", "reset", NOW + 60),
            // The clock was ahead.
            ("r1", "reset", NOW - 61),
        ] {
            assert!(!is_valid(digest, purpose, now).await, "{digest} {purpose} {now}");
        }

        // Of many attempts to use it, one succeeds.
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..16 {
            let (store, ann) = (store.clone(), ann.clone());
            let hash = format!("new {index}");
            tasks.spawn(async move {
                store
                    .reset_password("r1", "reset", &ann, &hash, revocation("ann"), NOW + 1)
                    .await
                    .unwrap()
            });
        }
        let won: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(won, [NOW + 1]);
        let changed = store.account("ann").await.unwrap().unwrap();
        assert_eq!(
            (changed.generation, changed.email_verified, changed.not_before),
            (1, 1, NOW + 1)
        );
        assert_eq!(
            store.revocations_after(0).await.unwrap().len(),
            1,
            "what was issued before is revoked in the same step"
        );
        // The other link was for the old password; the address is still the same.
        assert!(!is_valid("r2", "reset", NOW).await);
        assert_eq!(
            store
                .reset_password("r2", "reset", &changed, "x", revocation("ann"), NOW)
                .await
                .unwrap(),
            None
        );
        // The reset showed that the address belongs to its owner: no other link sets a password for
        // it.
        assert!(!is_valid("v1", "verify", NOW).await);
        assert!(!store.verify_email("v1", &changed, NOW).await.unwrap());
        let late = store.reset_password("v1", "verify", &changed, "x", revocation("ann"), NOW);
        assert_eq!(late.await.unwrap(), None);
        for (digest, is_confirmed) in [("v1", true), ("r1", false), ("none", false)] {
            assert_eq!(store.is_confirmed_by_now(digest).await.unwrap(), is_confirmed);
        }
        store.prune_links(NOW + 61, NOW).await.unwrap();
        assert!(!store.is_confirmed_by_now("v1").await.unwrap(), "it is forgotten");
    }

    /// Whoever deletes an account and makes another one mails no more to an address.
    #[tokio::test]
    async fn what_an_address_got_is_counted_whatever_becomes_of_the_account() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let eve = account("eve");
        let own = link("own", "reset", &eve);
        let to_ann = LinkRow { new_email: Some("ann@example.com"), ..link("ann", "change", &eve) };
        for is_withheld in [false, true] {
            assert!(store.insert_account(&eve).await.unwrap());
            for link in [&own, &to_ann] {
                let is_made = store.insert_link(link, NOW - 60, 1).await.unwrap();
                assert_eq!(is_made, !is_withheld, "{link:?}");
            }
            let delete = AccountChange::Delete(None);
            store.change_account("eve", delete, revocation("eve"), NOW).await.unwrap().unwrap();
        }
        // As a digest.
        let rows = "SELECT recipient FROM mail_recipients";
        let kept = async || -> Vec<(String,)> {
            store.connections.all(sqlx::query_as(rows)).await.unwrap()
        };
        assert!(kept().await.len() == 2 && !format!("{:?}", kept().await).contains("ann"));
        store.prune_links(NOW, NOW - 1).await.unwrap();
        assert_eq!(kept().await.len(), 2);
        store.prune_links(NOW, NOW).await.unwrap();
        assert_eq!(kept().await.len(), 0);
    }

    #[tokio::test]
    async fn an_address_is_confirmed_once_for_the_unchanged_account() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(folder.path())).await.unwrap();
        let bob = account("bob");
        store.insert_account(&bob).await.unwrap();
        for digest in ["v1", "v2", "v3"] {
            assert!(store.insert_link(&link(digest, "verify", &bob), 0, 3).await.unwrap());
        }
        assert!(!store.is_confirmed_by_now("v1").await.unwrap());
        // The password was right when it was read, and has been changed since.
        let set = AccountChange::Password { hash: "new", generation: 0 };
        store.change_account("bob", set, revocation("bob"), NOW).await.unwrap().unwrap();
        assert!(!store.verify_email("v1", &bob, NOW).await.unwrap());
        let changed = store.account("bob").await.unwrap().unwrap();
        assert_eq!(changed.email_verified, 0);
        let disabled = AccountChange::Disabled(true);
        store.change_account("bob", disabled, revocation("bob"), NOW).await.unwrap();
        let is_good = store.account_of_link("v1", "verify", NOW).await.unwrap().is_some();
        assert!(!is_good && !store.verify_email("v1", &changed, NOW).await.unwrap());
        let enabled = AccountChange::Disabled(false);
        store.change_account("bob", enabled, revocation("bob"), NOW).await.unwrap();
        let bob = store.account("bob").await.unwrap().unwrap();
        assert!(store.verify_email("v2", &bob, NOW).await.unwrap());
        assert!(!store.verify_email("v2", &bob, NOW).await.unwrap(), "it was used");
        assert!(!store.verify_email("v3", &bob, NOW).await.unwrap(), "nothing is left to confirm");
        assert!(store.is_confirmed_by_now("v3").await.unwrap());
    }
}
