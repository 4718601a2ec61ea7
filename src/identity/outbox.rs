//! The queue of outgoing mail: it is in the store, and one task sends it, several messages at a
//! time.
//!
//! A request for mail is acknowledged when it is queued, before anyone looks up whether the address
//! has an account: neither the response nor its timing reveals that. Queued mail survives a
//! restart. The link is made together with the message, so that its lifetime starts then and its
//! token exists only in the message; a retried message gets a new link.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::account_of_person::has_address;
use super::addresses::may_give_way;
use super::email::Email;
use super::link::{INVITATION, LinkToken, NoRandom, Purpose};
use super::mail::{self, Letter, Mailer};
use super::policy::Policy;
use super::return_to;
use super::texts::{Mail, filled, preferred};
use super::under_way::{MOST_AT_ONCE, UnderWay};
use crate::clock::Clock;
use crate::store::{AccountRow, LinkRow, MailRow, NewMail, Store, StoreError};
use crate::telemetry::log::AUDIT;

/// Queued mail, and the signal that wakes the sender.
#[derive(Debug)]
pub struct Outbox {
    store: Store,
    clock: Clock,
    wake: Notify,
}

/// The kinds of mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailKind {
    /// A link to set a new password, if the account exists.
    Reset,
    /// A link that confirms the address, if the account exists and needs it.
    Verify,
    /// A notice that the password was changed.
    Changed,
    /// A notice that someone tried to register with an address that has an account, with a link to
    /// set a new password.
    Exists,
    /// A link with which someone who was invited sets their password.
    Invite,
    /// A link that sets this address for the account that is named in the queue, if no other
    /// account has the address.
    NewEmail,
    /// A notice that another address was requested.
    EmailChangeAsked,
    /// A notice to the address that an account no longer has.
    EmailChanged,
    /// A notice that the account was used to log in from a new browser or program.
    NewLogin,
    /// A notice that logins require codes now.
    SecondFactorOn,
    /// A notice that they no longer do.
    SecondFactorOff,
}

impl MailKind {
    const ALL: [Self; 11] = [
        Self::Reset,
        Self::Verify,
        Self::Changed,
        Self::Exists,
        Self::Invite,
        Self::NewEmail,
        Self::EmailChangeAsked,
        Self::EmailChanged,
        Self::NewLogin,
        Self::SecondFactorOn,
        Self::SecondFactorOff,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Verify => "verify",
            Self::Changed => "changed",
            Self::Exists => "exists",
            Self::Invite => "invite",
            Self::NewEmail => "new_email",
            Self::EmailChangeAsked => "email_change_asked",
            Self::EmailChanged => "email_changed",
            Self::NewLogin => "new_login",
            Self::SecondFactorOn => "second_factor_on",
            Self::SecondFactorOff => "second_factor_off",
        }
    }
}

/// Why mail was not queued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The queue is full.
    #[error("the mail queue is full ({MOST_WAITING} messages); see `mail_not_sent` in the log")]
    Full,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a message cannot be written now.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] NoRandom),
}

impl Outbox {
    /// The queue in this store.
    pub fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, wake: Notify::new() }
    }

    /// Queues a mail. Takes just as long for an address without an account.
    pub async fn enqueue(
        &self,
        kind: MailKind,
        email: &Email,
        language: &str,
    ) -> Result<(), EnqueueError> {
        self.queue(NewMail {
            kind: kind.as_str(),
            email: email.as_str(),
            language,
            ..NewMail::default()
        })
        .await
    }

    /// Queues the notice of the login that opened session `sid`. `login`: the browser or program,
    /// and the address.
    pub async fn enqueue_login(
        &self,
        sid: &str,
        email: &Email,
        login: &str,
        language: &str,
    ) -> Result<(), EnqueueError> {
        // One notice for each login, even if several wait.
        let kind = format!("{}:{sid}", MailKind::NewLogin.as_str());
        let (kind, email) = (kind.as_str(), email.as_str());
        self.queue(NewMail { kind, email, language, login, ..NewMail::default() }).await
    }

    /// Queues a mail whose link leads on to `return_to` afterwards, a path on this site.
    pub async fn enqueue_with_way_back(
        &self,
        kind: MailKind,
        email: &Email,
        return_to: Option<&str>,
        language: &str,
    ) -> Result<(), EnqueueError> {
        let (kind, email) = (kind.as_str(), email.as_str());
        let return_to = return_to::in_mail(return_to);
        self.queue(NewMail { kind, email, return_to, language, ..NewMail::default() }).await
    }

    /// Adds an account and queues the mail to its owner, both or neither: a mail with the link that
    /// confirms the address. If the address is taken, its owner gets a notice instead.
    pub async fn register(
        &self,
        account: &AccountRow,
        return_to: Option<&str>,
        language: &str,
    ) -> Result<(), EnqueueError> {
        let mail = |kind: MailKind| NewMail {
            kind: kind.as_str(),
            email: &account.email,
            return_to: return_to::in_mail(return_to),
            language,
            ..NewMail::default()
        };
        let mails = (mail(MailKind::Verify), mail(MailKind::Exists));
        if !self.store.register(account, mails, MOST_WAITING).await? {
            return Err(EnqueueError::Full);
        }
        self.wake.notify_one();
        Ok(())
    }

    async fn queue(&self, mail: NewMail<'_>) -> Result<(), EnqueueError> {
        let now = self.clock.unix_seconds().cast_signed();
        if !self.store.queue_mail(mail, MOST_WAITING, now).await? {
            return Err(EnqueueError::Full);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Queues the mail with the link that gives an account this address.
    pub async fn enqueue_new_email(
        &self,
        account: &str,
        email: &Email,
        language: &str,
    ) -> Result<(), EnqueueError> {
        let kind = format!("{}:{account}", MailKind::NewEmail.as_str());
        let (kind, email) = (kind.as_str(), email.as_str());
        self.queue(NewMail { kind, email, language, ..NewMail::default() }).await
    }

    /// Sends queued mail, now and whenever more arrives, until the future is dropped. `policy`
    /// returns the current policy.
    pub async fn deliver(self: Arc<Self>, policy: impl Fn() -> Option<Arc<Policy>>) {
        let mut mailer: Option<Arc<Mailer>> = None;
        let mut under_way = UnderWay::new();
        let mut is_behind = false;
        loop {
            let is_full = under_way.is_full();
            let sent = tokio::select! {
                Some(sent) = under_way.next() => sent.unwrap_or(Ok(())),
                // Another process may have queued mail, and failed mail is retried.
                _ = tokio::time::timeout(LOOK_EVERY, self.wake.notified()),
                    if !is_full => Ok(()),
            };
            let begun = match policy() {
                Some(policy) => self.send_due(&mut mailer, &policy, &mut under_way).await,
                None => Ok(()),
            };
            match sent.and(begun) {
                Ok(()) => is_behind = false,
                Err(error) if !is_behind => {
                    is_behind = true;
                    tracing::warn!(cause = %error, "mail delivery is delayed by an error of the store or the system");
                }
                Err(_) => {}
            }
        }
    }

    /// Deletes links that had expired long before a settled time, in Unix seconds, and mail that had
    /// waited for long without a try.
    pub async fn prune(&self, settled: i64) -> Result<(), StoreError> {
        for queued in self.store.drop_untried_mail(settled).await? {
            let (kind, _) = kind_and_account(&queued);
            tracing::error!(target: AUDIT, kind, tries = 0, "mail_given_up");
        }
        self.store.prune_links(settled - KEEP_LINKS, settled - ENOUGH_WITHIN).await
    }

    /// Begins to send what is due, as far as there is room: a server that is slow for one message
    /// does not hold the others up.
    async fn send_due(
        self: &Arc<Self>,
        mailer: &mut Option<Arc<Mailer>>,
        policy: &Arc<Policy>,
        under_way: &mut UnderWay<Result<(), NotWritten>>,
    ) -> Result<(), NotWritten> {
        let Some(settings) = &policy.mail else { return Ok(()) };
        if mailer.as_ref().is_none_or(|mailer| mailer.settings() != settings) {
            *mailer = Mailer::new(settings)
                .inspect_err(|error| tracing::error!(cause = %error, "cannot send mail"))
                .ok()
                .map(Arc::new);
        }
        let Some(mailer) = mailer else { return Ok(()) };
        let mut goes_on = true;
        while goes_on && !under_way.is_full() {
            let mut due = self.store.due_mail(self.now(), &under_way.busy()).await?;
            if due.len() > MOST_AT_ONCE {
                self.store.drop_mail_to_nobody(self.now()).await?;
                due = self.store.due_mail(self.now(), &under_way.busy()).await?;
            }
            due.retain(|row| under_way.has_room_for(&row.email));
            goes_on = !due.is_empty();
            for row in due {
                if !under_way.has_room_for(&row.email) {
                    continue;
                }
                // Longer than a server may take: nobody else tries meanwhile.
                let Some(row) = self.store.claim_mail(&row, self.now() + LONGEST_TRY).await? else {
                    continue;
                };
                let (outbox, mailer, policy) =
                    (Arc::clone(self), Arc::clone(mailer), Arc::clone(policy));
                let email = row.email.clone();
                under_way.begin(&email, async move { outbox.send(&row, &mailer, &policy).await });
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
        let (kind, _) = kind_and_account(&row.kind);
        let Some((account, letter)) = self.write(row, policy).await? else {
            return Ok(self.store.remove_mail(row, self.now()).await?);
        };
        let tries = row.attempts;
        match mailer.send(&letter, self.clock.unix_time()).await {
            Ok(()) => {
                tracing::info!(target: AUDIT, kind, account, "mail_sent");
                self.store.remove_mail(row, self.now()).await?;
            }
            Err(error) if error.is_for_good() || tries >= MOST_TRIES => {
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

    /// Writes the message, and returns it with the id of its account, if it has one. `None`: there
    /// is nothing to send to this address.
    async fn write(
        &self,
        row: &MailRow,
        policy: &Policy,
    ) -> Result<Option<(Option<String>, Letter)>, NotWritten> {
        let (kind, of) = kind_and_account(&row.kind);
        let kind = MailKind::ALL.into_iter().find(|known| known.as_str() == kind);
        let (Some(kind), Ok(to)) = (kind, Email::parse(&row.email)) else { return Ok(None) };
        let owner = self.store.account_by_email(&row.email).await?;
        let account = match (kind, of) {
            (MailKind::EmailChanged, _) => {
                let (subject, text) = in_words(kind, row, &to, "", policy);
                return Ok(Some((None, Letter { to, subject, text })));
            }
            (MailKind::NewEmail, Some(id)) => self.store.account(id).await?,
            _ => owner.clone(),
        };
        let Some(account) = account.filter(|account| account.disabled == 0) else {
            return Ok(None);
        };
        // A link that sets a password would be a way past the provider.
        let is_of_provider = account.password.is_empty()
            && matches!(kind, MailKind::Reset | MailKind::Exists | MailKind::Verify)
            && !self.store.people_of_account(&account.id).await?.is_empty();
        if is_of_provider || !has_address(&account) {
            return Ok(None);
        }
        let is_taken =
            owner.is_some_and(|owner| owner.id != account.id && !may_give_way(&owner, policy));
        // Nobody has proved that the account is theirs: the owner of the address can take it over.
        let is_unproved = account.email_verified == 0;
        let kind = if kind == MailKind::Exists && is_unproved { MailKind::Verify } else { kind };
        let link = match kind {
            MailKind::Reset | MailKind::Exists => {
                self.link(&account, Purpose::Reset, Purpose::Reset.lifetime(), row, policy).await?
            }
            MailKind::Verify if is_unproved => {
                self.link(&account, Purpose::Verify, Purpose::Verify.lifetime(), row, policy)
                    .await?
            }
            MailKind::Invite => {
                self.link(&account, Purpose::Reset, INVITATION, row, policy).await?
            }
            MailKind::NewEmail => {
                let lifetime = Purpose::Change.lifetime();
                let link = self.link(&account, Purpose::Change, lifetime, row, policy).await?;
                // A notice that the address is taken has no link, but counts like one.
                link.map(|link| if is_taken { String::new() } else { link })
            }
            MailKind::Changed
            | MailKind::EmailChangeAsked
            | MailKind::NewLogin
            | MailKind::SecondFactorOn
            | MailKind::SecondFactorOff => Some(format!("{}/password/forgot", policy.issuer)),
            MailKind::Verify | MailKind::EmailChanged => None,
        };
        let Some(link) = link else { return Ok(None) };
        let (subject, text) = in_words(kind, row, &to, &link, policy);
        Ok(Some((Some(account.id), Letter { to, subject, text })))
    }

    /// Makes a link. `None`: enough links were sent to the account or the address recently. A retried
    /// message may get a new link.
    async fn link(
        &self,
        account: &AccountRow,
        purpose: Purpose,
        lifetime: Duration,
        mail: &MailRow,
        policy: &Policy,
    ) -> Result<Option<String>, NotWritten> {
        let now = self.now();
        let token = LinkToken::generate()?;
        let expires_at = now + i64::try_from(lifetime.as_secs()).unwrap_or(0);
        let row = LinkRow {
            digest: &token.digest(),
            purpose: purpose.as_str(),
            new_email: (purpose == Purpose::Change).then_some(mail.email.as_str()),
            account,
            created_at: now,
            expires_at,
        };
        // No stranger can ask for an invitation, so none can keep one from being mailed.
        let is_invitation = mail.kind == MailKind::Invite.as_str();
        let most = if is_invitation || mail.attempts > 1 { i64::MAX } else { ENOUGH };
        if !self.store.insert_link(&row, now - ENOUGH_WITHIN, most).await? {
            tracing::info!(target: AUDIT, kind = purpose.as_str(), account = account.id, "mail_withheld");
            return Ok(None);
        }
        let url = token.url(&policy.issuer, purpose);
        Ok(Some(match mail.return_to.as_str() {
            "" => url,
            back => return_to::remembering(&url, back),
        }))
    }

    fn now(&self) -> i64 {
        self.clock.unix_seconds().cast_signed()
    }
}

/// Subject and text of a mail. `link` is empty if it has none.
fn in_words(
    kind: MailKind,
    row: &MailRow,
    to: &Email,
    link: &str,
    policy: &Policy,
) -> (String, String) {
    let words = &preferred(&policy.languages, Some(&row.language)).texts().mail;
    let Mail { subject, text } = match kind {
        MailKind::Reset => &words.reset,
        MailKind::Verify => &words.verify,
        MailKind::Exists => &words.exists,
        MailKind::Invite => &words.invite,
        MailKind::Changed => &words.changed,
        MailKind::NewEmail if link.is_empty() => &words.email_taken,
        MailKind::NewEmail => &words.new_email,
        MailKind::EmailChangeAsked => &words.email_change_asked,
        MailKind::EmailChanged => &words.email_changed,
        MailKind::NewLogin => &words.new_login,
        MailKind::SecondFactorOn => &words.second_factor_on,
        MailKind::SecondFactorOff => &words.second_factor_off,
    };
    let sessions = format!("{}/sessions", policy.issuer);
    let values = [
        ("site", policy.brand.name.as_str()),
        ("address", to.as_str()),
        ("link", link),
        ("sessions", &sessions),
        ("login", &row.login),
    ];
    (filled(subject, &values), filled(text, &values))
}

/// The kind of a queued mail, and the id of its account or session if the kind names one. An account
/// is then not that of the address.
fn kind_and_account(queued: &str) -> (&str, Option<&str>) {
    queued.split_once(':').map_or((queued, None), |(kind, account)| (kind, Some(account)))
}

/// Seconds until the next attempt, after this many.
fn pause(tries: i64) -> i64 {
    match tries {
        ..=1 => 15,
        2 => 60,
        3 => 300,
        _ => 900,
    }
}

/// The longest queue. It bounds the cost of a flood of requests; a mail server that is down for
/// long loses no queued mail.
const MOST_WAITING: i64 = 10_000;

/// How often to check the store for mail that other processes queued, and for retries that are due.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Seconds after which an attempt without a result is over. The mail server's timeouts are shorter.
const LONGEST_TRY: i64 = mail::LONGEST.as_secs().cast_signed() + 30;

/// How often to try a message. Twenty tries take about four hours, after which a link is of little use.
/// The time of day does not matter, because the clock may be wrong for a moment.
const MOST_TRIES: i64 = 20;

/// Links of one kind that an account, and an address, gets within [`ENOUGH_WITHIN`]. More would let
/// someone flood another person's mailbox.
const ENOUGH: i64 = 5;
const ENOUGH_WITHIN: i64 = 15 * 60;

/// Seconds for which an expired link is kept.
const KEEP_LINKS: i64 = 24 * 3600;
