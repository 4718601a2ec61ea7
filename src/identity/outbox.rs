//! Mail that is to leave: it waits in the store, and one task sends it, several messages at a time.
//!
//! Whoever asks for a mail is answered when the kind is written, and by that time nobody has looked
//! whether the address has an account: neither the answer nor its time can tell. A kind survives a
//! restart. The link is made when the message is, so that its time runs from then, and its token
//! stands in the message and nowhere else; a message that is tried again gets another link.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::email::Email;
use super::link::{LinkToken, NoRandom, Purpose};
use super::mail::{self, Letter, Mailer};
use super::policy::Policy;
use crate::clock::Clock;
use crate::store::{AccountRow, LinkRow, MailRow, Store, StoreError};
use crate::telemetry::log::AUDIT;

/// What waits, and who is told that something does.
#[derive(Debug)]
pub struct Outbox {
    store: Store,
    clock: Clock,
    wake: Notify,
}

/// What somebody is to be mailed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailKind {
    /// A link to set another password, if there is an account.
    Reset,
    /// A link that shows the address to be its owner's, if there is an account that needs it.
    Verify,
    /// That the password was changed.
    Changed,
    /// That somebody wanted to register with an address that has an account, with a link to set
    /// another password.
    Exists,
}

impl MailKind {
    const ALL: [Self; 4] = [Self::Reset, Self::Verify, Self::Changed, Self::Exists];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Verify => "verify",
            Self::Changed => "changed",
            Self::Exists => "exists",
        }
    }
}

/// Why a kind was not taken.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// More wait than leave.
    #[error("{MOST_WAITING} messages wait already; look at `mail_not_sent` in the log")]
    Full,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a letter cannot be written now.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] NoRandom),
}

impl Outbox {
    /// What waits in this store.
    pub fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, wake: Notify::new() }
    }

    /// Has something mailed. As quick for an address without an account.
    ///
    /// # Errors
    /// [`EnqueueError`]
    pub async fn enqueue(&self, kind: MailKind, email: &Email) -> Result<(), EnqueueError> {
        let now = self.clock.unix_seconds().cast_signed();
        if !self.store.queue_mail(kind.as_str(), email.as_str(), MOST_WAITING, now).await? {
            return Err(EnqueueError::Full);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Sends what waits, now and whenever more comes, until it is dropped. `policy` tells the
    /// policy that is in force.
    pub async fn deliver(self: Arc<Self>, policy: impl Fn() -> Option<Arc<Policy>>) {
        let mut mailer: Option<Arc<Mailer>> = None;
        let mut under_way = JoinSet::new();
        let mut is_behind = false;
        loop {
            let sent = tokio::select! {
                // The log says that a task panicked.
                Some(sent) = under_way.join_next() => sent.unwrap_or(Ok(())),
                // Another process may have written; and what did not leave is tried again.
                _ = tokio::time::timeout(LOOK_EVERY, self.wake.notified()),
                    if under_way.len() < MOST_AT_ONCE => Ok(()),
            };
            let begun = match policy() {
                Some(policy) => self.send_due(&mut mailer, &policy, &mut under_way).await,
                None => Ok(()),
            };
            match sent.and(begun) {
                Ok(()) => is_behind = false,
                Err(error) if !is_behind => {
                    is_behind = true;
                    tracing::warn!(cause = %error, "mail waits: the store or the system does not let it be sent");
                }
                Err(_) => {}
            }
        }
    }

    /// Forgets links that have long expired.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn prune(&self) -> Result<(), StoreError> {
        self.store.prune_links(self.now() - KEEP_LINKS).await
    }

    /// Begins to send what is due, as far as there is room: a server that is slow for one message
    /// does not hold the others up.
    async fn send_due(
        self: &Arc<Self>,
        mailer: &mut Option<Arc<Mailer>>,
        policy: &Arc<Policy>,
        under_way: &mut JoinSet<Result<(), NotWritten>>,
    ) -> Result<(), NotWritten> {
        let Some(settings) = &policy.mail else { return Ok(()) };
        if mailer.as_ref().is_none_or(|mailer| mailer.settings() != settings) {
            *mailer = Mailer::new(settings)
                .inspect_err(|error| tracing::error!(cause = %error, "mail cannot be sent"))
                .ok()
                .map(Arc::new);
        }
        let Some(mailer) = mailer else { return Ok(()) };
        while under_way.len() < MOST_AT_ONCE {
            let due = self.store.due_mail(self.now()).await?;
            if due.is_empty() {
                break;
            }
            for row in due.into_iter().take(MOST_AT_ONCE - under_way.len()) {
                // Longer than a server may take: nobody else tries meanwhile.
                let Some(row) = self.store.claim_mail(&row, self.now() + LONGEST_TRY).await? else {
                    continue;
                };
                let (outbox, mailer, policy) =
                    (Arc::clone(self), Arc::clone(mailer), Arc::clone(policy));
                under_way.spawn(async move { outbox.send(&row, &mailer, &policy).await });
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        row: &MailRow,
        mailer: &Mailer,
        policy: &Policy,
    ) -> Result<(), NotWritten> {
        let kind = row.kind.as_str();
        let is_stale = self.now() - row.requested_at > GIVE_UP_AFTER;
        if is_stale && row.attempts <= 1 {
            // Nothing was sent meanwhile, as while the file had no `mail`: nobody waits for it any
            // more.
            tracing::error!(target: AUDIT, kind, tries = 0, "mail_given_up");
            return Ok(self.store.remove_mail(row, self.now()).await?);
        }
        let Some((account, letter)) = self.write(row, policy).await? else {
            return Ok(self.store.remove_mail(row, self.now()).await?);
        };
        let tries = row.attempts;
        match mailer.send(&letter, self.clock.unix_time()).await {
            Ok(()) => {
                tracing::info!(target: AUDIT, kind, account, "mail_sent");
                self.store.remove_mail(row, self.now()).await?;
            }
            Err(error) if error.is_for_good() || is_stale => {
                tracing::error!(target: AUDIT, kind, account, tries, cause = %error, "mail_given_up");
                self.store.remove_mail(row, self.now()).await?;
            }
            Err(error) => {
                tracing::warn!(kind, account, tries, cause = %error, "mail_not_sent");
                self.store.postpone_mail(row, self.now() + pause(row.attempts)).await?;
            }
        }
        Ok(())
    }

    /// The letter that is wished for, and whose account it is about. `None`: there is nothing to
    /// say to this address.
    async fn write(
        &self,
        row: &MailRow,
        policy: &Policy,
    ) -> Result<Option<(String, Letter)>, NotWritten> {
        let kind = MailKind::ALL.into_iter().find(|kind| kind.as_str() == row.kind);
        let account =
            self.store.account_by_email(&row.email).await?.filter(|account| account.disabled == 0);
        let (Some(kind), Some(account), Ok(to)) = (kind, account, Email::parse(&row.email)) else {
            return Ok(None);
        };
        // Nobody has proved that the account is theirs: whoever owns the address can have it.
        let is_unproved = account.email_verified == 0;
        let kind = if kind == MailKind::Exists && is_unproved { MailKind::Verify } else { kind };
        let site = &policy.brand.name;
        let (subject, text) = match kind {
            MailKind::Reset => {
                let Some(link) = self.link(&account, Purpose::Reset, row.attempts, policy).await?
                else {
                    return Ok(None);
                };
                (
                    format!("A new password for {site}"),
                    format!(
                        "Somebody, hopefully you, asked for a new password for {to} at {site}.\n\n\
                         Open this link within 30 minutes and choose one:\n\n{link}\n\n\
                         It works once. If it was not you, ignore this message: nothing has changed.\n"
                    ),
                )
            }
            MailKind::Verify => {
                let link = if account.email_verified == 1 {
                    None
                } else {
                    self.link(&account, Purpose::Verify, row.attempts, policy).await?
                };
                let Some(link) = link else { return Ok(None) };
                (
                    format!("Confirm your e-mail address for {site}"),
                    format!(
                        "An account was made for {to} at {site}.\n\n\
                         Open this link within 24 hours to confirm that the address is yours:\n\n{link}\n\n\
                         It works once. If somebody else made the account, ignore this message, and nobody can log in to it; \
                         or open the link and set a password of your own.\n"
                    ),
                )
            }
            MailKind::Exists => {
                let Some(link) = self.link(&account, Purpose::Reset, row.attempts, policy).await?
                else {
                    return Ok(None);
                };
                (
                    format!("Your account at {site}"),
                    format!(
                        "Somebody, hopefully you, wanted to make an account for {to} at {site}. There is one already.\n\n\
                         If you have forgotten its password, open this link within 30 minutes and set another one:\n\n{link}\n\n\
                         It works once. If it was not you, ignore this message: nothing has changed.\n"
                    ),
                )
            }
            MailKind::Changed => (
                format!("Your password for {site} was changed"),
                format!(
                    "The password of {to} at {site} was changed, and every device was logged out.\n\n\
                     If it was not you, ask for a link to set another one, at once:\n\n{}/password/forgot\n",
                    policy.issuer
                ),
            ),
        };
        Ok(Some((account.id, Letter { to, subject, text })))
    }

    /// Makes a link. `None`: the account was sent enough of them just now. One that did not leave
    /// may be made anew.
    async fn link(
        &self,
        account: &AccountRow,
        purpose: Purpose,
        attempts: i64,
        policy: &Policy,
    ) -> Result<Option<String>, NotWritten> {
        let now = self.now();
        let token = LinkToken::generate()?;
        let expires_at = now + i64::try_from(purpose.lifetime().as_secs()).unwrap_or(0);
        let row = LinkRow {
            digest: &token.digest(),
            purpose: purpose.as_str(),
            account,
            created_at: now,
            expires_at,
        };
        let most = if attempts <= 1 { ENOUGH } else { i64::MAX };
        if !self.store.insert_link(&row, now - ENOUGH_WITHIN, most).await? {
            tracing::info!(target: AUDIT, kind = purpose.as_str(), account = account.id, "mail_withheld");
            return Ok(None);
        }
        Ok(Some(token.url(&policy.issuer, purpose)))
    }

    fn now(&self) -> i64 {
        self.clock.unix_seconds().cast_signed()
    }
}

/// Seconds until the next try, after so many.
fn pause(tries: i64) -> i64 {
    match tries {
        ..=1 => 15,
        2 => 60,
        3 => 300,
        _ => 900,
    }
}

/// Wishes that wait at most. A flood of them costs no more than this, and a mail server that is
/// away for long no kind that was taken.
const MOST_WAITING: i64 = 10_000;

/// How often the store is asked for what others wrote, and what is due again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How many messages are sent at a time.
const MOST_AT_ONCE: usize = 8;

/// Seconds after which a try that nothing was heard of is over: more than the mail server is given.
const LONGEST_TRY: i64 = mail::LONGEST.as_secs().cast_signed() + 30;

/// Seconds for which something is tried: nobody waits longer for a link.
const GIVE_UP_AFTER: i64 = 4 * 3600;

/// So many links of a kind within so many seconds are enough for an account: more would be somebody
/// filling another's mailbox.
const ENOUGH: i64 = 5;
const ENOUGH_WITHIN: i64 = 15 * 60;

/// Seconds for which a link that expired is remembered.
const KEEP_LINKS: i64 = 24 * 3600;
