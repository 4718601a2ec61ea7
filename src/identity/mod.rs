//! The built-in issuer: accounts, sessions, signing keys, and the endpoints that people log in at.
//!
//! [`Identity`] lives as long as the process; a [`Policy`] per configuration determines how it
//! behaves. It receives a request, the client's address and the policy, and does not know the
//! gateway. It works on the background runtime, in a task that finishes even if the client goes
//! away: writes are complete, and a worker that serves other requests never waits for the store or
//! a hash.
//!
//! Contents: the table of endpoints ([`endpoints`]), what each does ([`actions`]), and the
//! responses made from the outcome (`programs`, `people`); accounts ([`account`]), sessions
//! ([`session`]), personal access tokens ([`personal_tokens`]) and signing keys ([`issue`]) as
//! operations on the store; passwords ([`password`],
//! [`hasher`], [`strength`]); cookies ([`cookie`]) and the path to return to ([`return_to`]). A
//! change that takes something away is written before it is acknowledged, in one step with the
//! revocation of everything issued before. A process that is killed at any moment has done all of
//! it or nothing.

pub mod account;
mod account_of_person;
pub mod actions;
pub mod addresses;
mod answer;
mod audit;
pub mod bodies;
pub mod brand;
mod budgets;
pub mod compat;
pub mod cookie;
mod device;
pub mod email;
pub mod endpoints;
pub mod error;
pub mod hasher;
pub mod import;
pub mod issue;
pub mod link;
pub mod mail;
mod mount;
pub mod outbox;
mod outcome;
mod owner_endpoints;
pub mod pages;
pub mod password;
mod people;
pub mod personal_tokens;
pub mod policy;
mod programs;
pub mod provider;
mod provider_endpoints;
mod renewals;
pub mod request;
pub mod return_to;
pub mod second_factor;
pub mod session;
pub mod session_store;
pub mod strength;
pub mod texts;
pub mod ticket;
mod turns;
mod under_way;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::account::Accounts;
pub use self::account_of_person::{address_of, is_unconfirmed, is_verified};
pub use self::brand::Brand;
pub use self::budgets::Budgets;
pub use self::compat::Compat;
pub use self::email::{Email, NoEmail};
pub use self::error::IdentityError;
use self::hasher::Hasher;
use self::issue::{KeysError, SigningKeys};
pub use self::mail::MailSettings;
pub use self::mount::Mount;
use self::outbox::Outbox;
pub use self::outcome::Refused;
use self::personal_tokens::PersonalTokens;
pub use self::policy::{Policy, Registration};
use self::provider::flight::Flights;
use self::renewals::Renewals;
pub use self::renewals::{NotRenewed, Renewed};
pub use self::request::{Origin, Request};
use self::second_factor::SecondFactors;
use self::session::Sessions;
use self::session_store::SessionStore;
use self::ticket::Tickets;
use self::turns::Turns;
use crate::clock::{Clock, SettledTime};
use crate::redis::Redis;
use crate::revocation::Revocations;
use crate::store::{Feed, Presence, Store, StoreError, for_client};
use crate::telemetry::metrics::Metrics;
use crate::token::LiveKeys;

/// The built-in issuer. There is one per process.
#[derive(Debug)]
pub struct Identity {
    store: Store,
    accounts: Accounts,
    sessions: Sessions,
    renewals: Renewals,
    keys: SigningKeys,
    hasher: Hasher,
    /// For each account, the one request that lists its sessions.
    listing: Turns,
    /// For each account, the one request that renews a session.
    renewing: Turns,
    /// For each session, token or account, the one request that ends it.
    ending: Turns,
    second_factors: SecondFactors,
    personal_tokens: PersonalTokens,
    tickets: Tickets,
    flights: Flights,
    outbox: Arc<Outbox>,
    budgets: Budgets,
    clock: Clock,
    metrics: Metrics,
    /// The runtime for everything except looking up endpoints.
    background: Handle,
    /// Requests in progress.
    tasks: TaskTracker,
    /// The process stops: nothing may be waited for much longer.
    stopping: CancellationToken,
}

/// Why the built-in issuer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The signing keys cannot be loaded.
    #[error("{0}")]
    Keys(#[from] KeysError),
    /// The hashing threads cannot be started.
    #[error("cannot start the threads that hash passwords: {0}")]
    Threads(#[from] std::io::Error),
}

impl Identity {
    /// Reads the keys, or makes the first one; `live` is what the gateway verifies our tokens with.
    /// To be called on the background runtime.
    pub async fn start(
        (store, redis): (Store, Option<Arc<Redis>>),
        live: Arc<LiveKeys>,
        revocations: Arc<Revocations>,
        policy: &Policy,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Arc<Self>, StartError> {
        let keys = SigningKeys::load(store.clone(), live, clock.clone(), policy).await?;
        let hasher = Hasher::start(store.dummy_account_key().as_ref())?;
        let identity = Self {
            accounts: Accounts::new(store.clone(), Some(Arc::clone(&revocations))),
            second_factors: SecondFactors::new(store.clone()),
            personal_tokens: PersonalTokens::new(store.clone(), Some(Arc::clone(&revocations))),
            tickets: Tickets::new(&store),
            flights: Flights::new(store.flight_seal_key(), store.flight_secret_key().as_ref()),
            outbox: Arc::new(Outbox::new(store.clone(), clock.clone())),
            sessions: Sessions::new(SessionStore::new(store.clone(), redis), revocations),
            renewals: Renewals::default(),
            store,
            keys,
            hasher,
            listing: Turns::default(),
            renewing: Turns::default(),
            ending: Turns::default(),
            budgets: Budgets::default(),
            clock,
            metrics,
            background: Handle::current(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        identity.update_dummy_hashes().await?;
        for limit in identity.budgets.all() {
            // Start these series at zero, so that an alert on their rate sees the first refusal.
            identity.metrics.rate_limited(limit.name());
        }
        Ok(Arc::new(identity))
    }

    /// The limits that apply if a route has none of its own.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Responds to a request. May be called on any runtime; the work is done on the background
    /// runtime and always finishes.
    pub async fn answer(
        self: &Arc<Self>,
        request: Request,
        policy: Arc<Policy>,
    ) -> Result<Response<Bytes>, Box<Refused>> {
        let identity = Arc::clone(self);
        let client = request.client;
        let work = async move {
            let outcome = identity.act(&request, &policy).await?;
            Ok(if request.is_for_people() {
                people::render(outcome, &request, &policy)
            } else {
                programs::render(outcome, &request, &policy)
            })
        };
        let answered = self
            .tasks
            .spawn_on(for_client(client, work), &self.background)
            .await
            .unwrap_or_else(|_| Err(IdentityError::Stopping.into()));
        if let Err(Refused { error: IdentityError::Store(error), .. }) = &answered {
            self.store.record_failure(error);
        }
        answered.map_err(Box::new)
    }

    /// Follows changes that other processes make to the keys, makes the next key in time, sends
    /// mail, asks providers about sessions, logs what commands do and deletes expired data, until the future is dropped.
    /// `policy` returns the current policy. Through `presence`, commands that make a key learn which keys this process knows.
    pub async fn tend(
        self: Arc<Self>,
        policy: impl Fn() -> Option<Arc<Policy>>,
        presence: Option<Arc<Presence>>,
    ) {
        tokio::join!(
            self.look_after(&policy, presence.as_deref()),
            self.keep_clean(&policy),
            Arc::clone(&self.outbox).deliver(&policy),
            Arc::clone(&self).recheck(&policy),
            audit::follow_commands(&self.store)
        );
    }

    async fn look_after(
        &self,
        policy: impl Fn() -> Option<Arc<Policy>>,
        presence: Option<&Presence>,
    ) {
        let mut looks = interval(LOOK_EVERY);
        let (mut is_behind, mut last_import) = (false, None);
        loop {
            if let Some(presence) = presence {
                presence.report_read(Feed::SigningKeys, self.keys.newest()).await;
            }
            looks.tick().await;
            let Some(policy) = policy() else { continue };
            note(&mut is_behind, self.maintain(&policy, &mut last_import).await);
        }
    }

    /// Deletes what is over. There may be much of it, and the keys do not wait for that.
    async fn keep_clean(&self, policy: impl Fn() -> Option<Arc<Policy>>) {
        let mut cleanings = interval(CLEAN_EVERY);
        let (mut is_behind, mut settled) = (false, SettledTime::default());
        loop {
            cleanings.tick().await;
            let Some(policy) = policy() else { continue };
            note(&mut is_behind, self.clean(&policy, &mut settled).await);
        }
    }

    async fn maintain(
        &self,
        policy: &Policy,
        last_import: &mut Option<String>,
    ) -> Result<(), KeysError> {
        self.store.forget_past_cutoffs(self.clock.unix_seconds().cast_signed()).await?;
        self.keys.tend(policy).await?;
        let noted = self.accounts.last_import().await?;
        if noted != *last_import {
            self.update_dummy_hashes().await?;
            *last_import = noted;
        }
        Ok(())
    }

    async fn clean(&self, policy: &Policy, settled: &mut SettledTime) -> Result<(), KeysError> {
        let mut cleaned = Ok(());
        if let Some(now) = settled.look(&self.clock) {
            let seconds = now.as_secs().cast_signed();
            let long_ago = now.saturating_sub(policy.session_lifetime).as_secs().cast_signed();
            // A kind that fails does not keep the others from being cleaned.
            let done: [Result<(), KeysError>; 5] = [
                self.keys.clean(policy, now.as_secs()).await,
                self.sessions.prune(policy, now).await.map_err(KeysError::Store),
                self.personal_tokens.prune(now.as_secs()).await.map_err(KeysError::Store),
                self.store.prune_provider_sessions(long_ago).await.map_err(KeysError::Store),
                self.outbox.prune(seconds).await.map_err(KeysError::Store),
            ];
            cleaned = done.into_iter().collect();
        }
        for limit in self.budgets.all() {
            limit.prune();
        }
        cleaned.and(self.update_dummy_hashes().await.map_err(KeysError::Store))
    }

    /// Makes logins for unknown addresses take as long as those for known ones.
    async fn update_dummy_hashes(&self) -> Result<(), StoreError> {
        let mut costs: Vec<(String, u64)> = Vec::new();
        for hash in self.accounts.some_hashes().await? {
            match costs.iter_mut().find(|(cost, _)| cost == hash.cost()) {
                Some((_, count)) => *count += 1,
                None => costs.push((hash.cost().to_owned(), 1)),
            }
        }
        self.hasher.set_known_costs(&costs);
        Ok(())
    }

    /// Waits for the requests in progress.
    pub async fn finish(&self) {
        self.tasks.close();
        self.stopping.cancel();
        self.tasks.wait().await;
    }
}

/// The first tick is immediate. A late one delays those after it.
fn interval(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// Logs the first of several failures.
fn note(is_behind: &mut bool, done: Result<(), KeysError>) {
    let was_behind = std::mem::replace(is_behind, done.is_err());
    if let Err(error) = done
        && !was_behind
    {
        tracing::warn!(cause = %error, "maintenance of signing keys and sessions failed; the known ones stay in use");
    }
}

/// How often to check for new keys and imports. A key that another process adds is thus known here
/// within a second, before it signs.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often expired sessions and idle counters are deleted.
const CLEAN_EVERY: Duration = Duration::from_mins(5);

#[cfg(test)]
mod tests {
    use super::account::NewAccount;
    use super::personal_tokens::NewToken;
    use super::policy::tests::policy;
    use super::session::{Began, Device, Keep};
    use super::*;
    use crate::revocation::Retention;
    use crate::store::{LoginProof, NewMail, test_settings};
    use crate::token::KeySet;

    const NOW: u64 = 1_800_000_000;

    #[tokio::test]
    async fn a_clock_that_is_ahead_deletes_nothing() {
        crate::token::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        let (clock, metrics, policy) = (Clock::fixed(NOW), Metrics::new(), policy());
        let revocations = Revocations::load(
            Some(store.clone()),
            Retention::default(),
            clock.clone(),
            metrics.clone(),
        );
        let revocations = revocations.await.unwrap();
        let live = Arc::new(LiveKeys::new(KeySet::default()));
        let identity =
            Identity::start((store, None), live, revocations, &policy, clock.clone(), metrics);
        let identity = identity.await.unwrap();
        let new = NewAccount::verified("ann@example.com");
        let account = identity.accounts.add(new, NOW).await.unwrap();
        let device = Device { address: [127, 0, 0, 1].into(), user_agent: String::new() };
        let began = Began { proof: LoginProof::default(), provider: None };
        let how = (&device, Keep::Lasting, began);
        let now = Duration::from_secs(NOW);
        let session = identity.sessions.open(&account, how, &policy, now).await.unwrap().unwrap();
        let ttl = Duration::from_hours(24);
        let new = NewToken { name: "laptop".to_owned(), roles: None, ttl };
        identity.personal_tokens.add(&account, new, Some(&session.sid), NOW).await.unwrap();
        let store = identity.store.clone();
        issue::rotate(&store, policy.algorithm, false, NOW).await.unwrap();
        let mail = NewMail { kind: "reset", email: "ann@example.com", ..NewMail::default() };
        assert!(store.queue_mail(mail, 10, NOW.cast_signed()).await.unwrap());
        let count = async || {
            identity.keys.tend(&policy).await.unwrap();
            let tokens = identity.personal_tokens.of_account(&account.id).await.unwrap();
            let keys = store.signing_key_numbers().await.unwrap();
            let mails = store.due_mail(NOW.cast_signed(), &[]).await.unwrap().len();
            (identity.sessions.goes_on(&session.sid).await.unwrap(), tokens.len(), keys[0], mails)
        };

        let ahead = NOW + 10 * 365 * 24 * 3600;
        let mut settled = SettledTime::default();
        // At the start of a process, and while one runs.
        for _ in 0..2 {
            clock.set(ahead);
            identity.clean(&policy, &mut settled).await.unwrap();
            assert_eq!(count().await, (true, 1, 1, 1));
            clock.set(NOW);
            identity.clean(&policy, &mut settled).await.unwrap();
            clock.advance(Duration::from_hours(1));
            identity.clean(&policy, &mut settled).await.unwrap();
        }
        assert_eq!(count().await, (true, 1, 1, 1));
        // What is over is deleted in the end.
        clock.set(ahead);
        for _ in 0..2 {
            clock.advance(Duration::from_hours(1));
            identity.clean(&policy, &mut settled).await.unwrap();
        }
        assert_eq!(count().await, (false, 0, 2, 0));
    }
}
