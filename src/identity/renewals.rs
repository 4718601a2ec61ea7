//! Sessions of browsers that are renewed, or lent an access token, while a request waits.
//!
//! A page that was open when its access token expired sends many requests at once. They wait for
//! one rotation, and those that are a little late get its outcome too. What is remembered is
//! bounded, and gone after seconds, or with the lent token: the store decides about everything else.
//!
//! An application may be slow, and a browser may go away before the response: then nobody has
//! received the new cookies. Until somebody does, the browser's old cookie is as good as before. It
//! is no reuse, since no two have tokens of the session.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::watch;
use uuid::Uuid;

use super::error::IdentityError;
use super::session::{Device, Presenter, RefreshError, RefreshToken};
use super::turns::Turn;
use super::{Identity, Policy};
use crate::store::for_client;

/// A session with a new access token.
pub struct Renewed {
    access_token: String,
    /// `Set-Cookie` with both new tokens; empty if the token was lent.
    cookies: Vec<HeaderValue>,
    session: Uuid,
    /// The counter of the refresh token that the browser then has.
    counter: i64,
    /// When the cookies were sent first, by the monotonic clock.
    sent: OnceLock<Duration>,
}

/// Why a session was not renewed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotRenewed {
    /// The cookie is not one of ours, or its session has ended.
    #[error("the session has ended")]
    Ended,
    /// The store or the signing keys failed.
    #[error(transparent)]
    Unavailable(Arc<IdentityError>),
}

type Outcome = Result<Arc<Renewed>, NotRenewed>;

/// The recent attempts.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    rotated: Mutex<Known>,
    lent: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last attempt for each session.
    attempts: HashMap<Uuid, Attempt>,
    /// Since when each has been kept, the oldest first. A session has one entry: however often
    /// somebody tries theirs, those of others are not forgotten for it.
    kept: BTreeSet<(Duration, Uuid)>,
}

/// An attempt to renew a session with one refresh token.
#[derive(Clone, Debug)]
struct Attempt {
    used: i64,
    /// By the monotonic clock.
    begun: Duration,
    /// When it began, or was last found to be unsent.
    kept: Duration,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Identity {
    /// Whether a request with this cookie has just learned that its session has ended. Costs no I/O.
    pub fn is_known_to_have_ended(&self, cookie: &str) -> bool {
        let Some(token) = self.sessions.parse(cookie) else { return false };
        let now = self.clock.running();
        [&self.renewals.rotated, &self.renewals.lent].into_iter().any(|known| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.attempts.get(&token.session).is_some_and(|last| last.has_ended(token, now))
        })
    }

    /// Renews the session of a cookie. Requests with the same cookie share one rotation and, for
    /// `refresh_reuse_interval` after its cookies were first sent, its outcome; `stale` is an outcome
    /// that no longer helps, because its access token has been revoked or has expired since. A forged
    /// cookie costs no I/O, and the same cookie of a session that has ended is looked up once in
    /// [`ENDED_FOR`].
    ///
    /// # Errors
    /// The session has ended, or the store is not available.
    pub async fn renew(
        self: &Arc<Self>,
        cookie: &str,
        stale: Option<&Arc<Renewed>>,
        device: impl FnOnce() -> Device,
        policy: &Arc<Policy>,
    ) -> Outcome {
        let token = self.sessions.parse(cookie).ok_or(NotRenewed::Ended)?;
        let presenter = match self.unsent_successor(cookie, policy) {
            Some(_) => Presenter::Unanswered,
            None => Presenter::Browser,
        };
        let work = || {
            let (identity, policy) = (Arc::clone(self), Arc::clone(policy));
            let (cookie, device) = (cookie.to_owned(), device());
            for_client(device.address, async move {
                let _turn = identity.turn_to_renew(token).await?;
                identity.renew_now(&cookie, presenter, &device, &policy).await
            })
        };
        let shared_for = policy.refresh_reuse_interval;
        self.share(&self.renewals.rotated, token, stale, shared_for, work).await
    }

    /// Gives the session of a cookie an access token and changes nothing else, for a response that
    /// cannot set cookies. Requests with the same cookie share the token until it expires. Costs as
    /// little as [`Identity::renew`] for forged cookies and for sessions that have ended.
    ///
    /// # Errors
    /// The session has ended, or the store is not available.
    pub async fn lend(
        self: &Arc<Self>,
        cookie: &str,
        stale: Option<&Arc<Renewed>>,
        client: IpAddr,
        policy: &Arc<Policy>,
    ) -> Outcome {
        let token = self.sessions.parse(cookie).ok_or(NotRenewed::Ended)?;
        let work = || {
            let (identity, policy) = (Arc::clone(self), Arc::clone(policy));
            let cookie = cookie.to_owned();
            for_client(client, async move {
                let _turn = identity.turn_to_renew(token).await?;
                identity.lend_now(&cookie, token, &policy).await
            })
        };
        self.share(&self.renewals.lent, token, stale, policy.access_token_ttl, work).await
    }

    /// The outcome of the attempt in progress, of one that began less than `shared_for` ago, or of a
    /// new one, which finishes even if its client goes away.
    async fn share<W: Future<Output = Outcome> + Send + 'static>(
        &self,
        known: &Mutex<Known>,
        token: RefreshToken,
        stale: Option<&Arc<Renewed>>,
        shared_for: Duration,
        work: impl FnOnce() -> W,
    ) -> Outcome {
        let mut outcome = {
            let now = self.clock.running();
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.forget_before(now.saturating_sub(ENDED_FOR.max(shared_for)), now);
            match known.attempts.get(&token.session) {
                Some(attempt) if attempt.serves(token, stale, now, shared_for) => {
                    attempt.outcome.clone()
                }
                _ => {
                    let (report, outcome) = watch::channel(None);
                    known.insert(token, now, outcome.clone());
                    let work = work();
                    let work = async move {
                        // Everyone who waited may have gone away.
                        let _ = report.send(Some(work.await));
                    };
                    self.tasks.spawn_on(work, &self.background);
                    outcome
                }
            }
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(NotRenewed::Ended)),
            // The task is gone with the runtime.
            Err(_) => Err(NotRenewed::Unavailable(Arc::new(IdentityError::Stopping))),
        }
    }

    /// Waits until the same session, and no other one of its account, is renewed. The store writes one
    /// thing at a time, and an account may have any number of sessions. Tokens of a session that has
    /// ended do not fill the connections that read, either.
    async fn turn_to_renew(&self, token: RefreshToken) -> Result<[Turn; 2], NotRenewed> {
        let wait = async |whose: &str| {
            let turn = self.renewing.wait(whose, LONGEST_WAIT).await;
            turn.map_err(|_| IdentityError::TooManyRenewals)
        };
        let turns = async {
            let session = token.session.to_string();
            let first = wait(&session).await?;
            let account = self.sessions.account_of(&session).await?;
            let account = account.ok_or(RefreshError::Invalid)?.id;
            Ok([first, wait(&account).await?])
        };
        turns.await.map_err(|error| self.not_renewed(error))
    }

    async fn renew_now(
        &self,
        cookie: &str,
        presenter: Presenter,
        device: &Device,
        policy: &Policy,
    ) -> Outcome {
        let renewed = async {
            let session = self.refresh_session(cookie, presenter, device, policy).await?;
            let next = self.sessions.parse(&session.refresh_token);
            let RefreshToken { session: id, counter } = next.ok_or(RefreshError::Invalid)?;
            let tokens = self.tokens(session, policy).await?;
            let cookies = tokens.cookies(policy).to_vec();
            Ok(Arc::new(Renewed::new(tokens.access_token, cookies, id, counter)))
        };
        renewed.await.map_err(|error| self.not_renewed(error))
    }

    async fn lend_now(&self, cookie: &str, token: RefreshToken, policy: &Policy) -> Outcome {
        let lent = async {
            let session = self.sessions.lend(cookie, policy, self.clock.unix_time()).await?;
            let session = self.confirmed(session, policy).await?;
            let access_token = self.tokens(session, policy).await?.access_token;
            let lent = Renewed::new(access_token, Vec::new(), token.session, token.counter);
            // There is nothing to send.
            lent.sent(self.clock.running());
            Ok(Arc::new(lent))
        };
        lent.await.map_err(|error| self.not_renewed(error))
    }

    /// The renewal whose cookies hold the successor of this refresh token, if nobody has received
    /// them yet, or has had them for longer than `refresh_reuse_interval`.
    pub(super) fn unsent_successor(&self, token: &str, policy: &Policy) -> Option<Arc<Renewed>> {
        let token = self.sessions.parse(token)?;
        let known = self.renewals.rotated.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = known.attempts.get(&token.session)?;
        let Some(Ok(renewed)) = &*attempt.outcome.borrow() else { return None };
        let is_successor = token.counter == attempt.used && renewed.counter == token.counter + 1;
        let (now, interval) = (self.clock.running(), policy.refresh_reuse_interval);
        let is_unsent = is_successor && renewed.may_be_sent_again(now, interval);
        is_unsent.then(|| Arc::clone(renewed))
    }

    /// Whether the cookies of a renewal are still the newest of a session that goes on.
    ///
    /// # Errors
    /// The store is not available.
    pub async fn is_newest(
        &self,
        renewed: &Renewed,
        policy: &Policy,
    ) -> Result<bool, IdentityError> {
        let token = RefreshToken { session: renewed.session, counter: renewed.counter };
        Ok(self.sessions.is_newest(token, policy, self.clock.unix_time()).await?)
    }

    fn not_renewed(&self, error: IdentityError) -> NotRenewed {
        if let IdentityError::Grant(_) | IdentityError::EmailUnverified = error {
            return NotRenewed::Ended;
        }
        if let IdentityError::Store(error) = &error {
            self.store.record_failure(error);
        }
        NotRenewed::Unavailable(Arc::new(error))
    }
}

impl Attempt {
    /// Whether a request with this token may wait for this attempt, or have its outcome.
    fn serves(
        &self,
        token: RefreshToken,
        stale: Option<&Arc<Renewed>>,
        now: Duration,
        shared_for: Duration,
    ) -> bool {
        let age = now.saturating_sub(self.begun);
        match &*self.outcome.borrow() {
            None => token.counter == self.used && self.outcome.has_changed().is_ok(),
            Some(Ok(renewed)) => {
                let is_used =
                    token.counter == self.used && renewed.may_be_sent_again(now, shared_for);
                (is_used || token.counter == renewed.counter && age < shared_for)
                    && !stale.is_some_and(|stale| Arc::ptr_eq(stale, renewed))
            }
            Some(Err(NotRenewed::Ended)) => self.has_ended(token, now),
            Some(Err(NotRenewed::Unavailable(_))) => false,
        }
    }
}

impl Attempt {
    /// Whether it lately found that the session of this token has ended.
    fn has_ended(&self, token: RefreshToken, now: Duration) -> bool {
        token.counter == self.used
            && now.saturating_sub(self.begun) < ENDED_FOR
            && matches!(*self.outcome.borrow(), Some(Err(NotRenewed::Ended)))
    }

    /// Whether its cookies have not been sent before this time.
    fn is_unsent_since(&self, time: Duration) -> bool {
        matches!(&*self.outcome.borrow(), Some(Ok(renewed))
            if renewed.sent.get().is_none_or(|sent| *sent >= time))
    }
}

impl Known {
    fn insert(
        &mut self,
        token: RefreshToken,
        now: Duration,
        outcome: watch::Receiver<Option<Outcome>>,
    ) {
        let attempt = Attempt { used: token.counter, begun: now, kept: now, outcome };
        self.keep(token.session, attempt);
        if self.kept.len() > MOST {
            self.forget_oldest();
        }
    }

    fn keep(&mut self, session: Uuid, attempt: Attempt) {
        if let Some(before) = self.attempts.get(&session) {
            self.kept.remove(&(before.kept, session));
        }
        self.kept.insert((attempt.kept, session));
        self.attempts.insert(session, attempt);
    }

    /// Forgets the attempts that have been kept since before this time, and whose cookies were sent
    /// before it.
    fn forget_before(&mut self, time: Duration, now: Duration) {
        while self.kept.first().is_some_and(|(kept, _)| *kept < time)
            && let Some((session, attempt)) = self.forget_oldest()
        {
            if attempt.is_unsent_since(time) {
                self.keep(session, Attempt { kept: now, ..attempt });
            }
        }
    }

    fn forget_oldest(&mut self) -> Option<(Uuid, Attempt)> {
        let (_, session) = self.kept.pop_first()?;
        self.attempts.remove_entry(&session)
    }
}

impl Renewed {
    fn new(access_token: String, cookies: Vec<HeaderValue>, session: Uuid, counter: i64) -> Self {
        Self { access_token, cookies, session, counter, sent: OnceLock::new() }
    }

    /// The new access token, not yet verified.
    pub fn access_token(&self) -> &str {
        &self.access_token
    }

    /// The `Set-Cookie` fields with both new tokens; empty if the token was lent.
    pub fn cookies(&self) -> &[HeaderValue] {
        &self.cookies
    }

    /// Notes that a response sets the cookies. `now`: by the monotonic clock.
    pub fn sent(&self, now: Duration) {
        // The first time counts.
        let _ = self.sent.set(now);
    }

    /// Whether a request that still has the cookies from before may get these: nobody else can have
    /// them, or they were sent less than `interval` ago.
    fn may_be_sent_again(&self, now: Duration, interval: Duration) -> bool {
        !interval.is_zero()
            && self.sent.get().is_none_or(|sent| now.saturating_sub(*sent) < interval)
    }
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// How long a renewal waits for others of its account.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long it is remembered that a session has ended, at least.
const ENDED_FOR: Duration = Duration::from_secs(10);

/// How many attempts are remembered. Beyond that, the store decides about the oldest ones again.
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Two cookies of a session that has ended, one after the other: each is a new attempt.
    #[test]
    fn however_often_one_session_is_tried_no_other_is_forgotten() {
        let (ann, eve) = (Uuid::new_v4(), Uuid::new_v4());
        let (_report, outcome) = watch::channel(None);
        let mut known = Known::default();
        let mut insert = |session, counter, at| {
            let token = RefreshToken { session, counter };
            known.insert(token, Duration::from_micros(at), outcome.clone());
        };
        insert(ann, 1, 0);
        for at in 0..12_000 {
            insert(eve, i64::try_from(at % 2).unwrap(), at);
        }
        assert!(known.attempts.contains_key(&ann));
        assert_eq!((known.attempts.len(), known.kept.len()), (2, 2));
    }
}
