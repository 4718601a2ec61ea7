//! Sessions of browsers that are renewed, or lent an access token, while a request waits.
//!
//! A page that was open when its access token expired sends many requests at once. They wait for
//! one rotation, and those that are a little late get its outcome too. What is remembered is
//! bounded, and gone after seconds, or with the lent token: the store decides about everything else.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::watch;
use uuid::Uuid;

use super::error::IdentityError;
use super::session::{Device, RefreshToken};
use super::{Identity, Policy};

/// A session with a new access token.
pub struct Renewed {
    access_token: String,
    /// `Set-Cookie` with both new tokens; empty if the token was lent.
    cookies: Vec<HeaderValue>,
    /// The counter of the refresh token that the browser then has.
    counter: i64,
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
    /// When each began, the oldest first.
    begun: VecDeque<(Duration, Uuid)>,
}

/// An attempt to renew a session with one refresh token.
#[derive(Clone, Debug)]
struct Attempt {
    used: i64,
    /// By the monotonic clock.
    begun: Duration,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Identity {
    /// Renews the session of a cookie. Requests with the same cookie share one rotation and, for
    /// `refresh_reuse_interval`, its outcome; `stale` is an outcome that no longer helps, because
    /// its access token has been revoked or has expired since. A forged cookie costs no I/O, and
    /// the cookie of a session that has ended is looked up once in [`ENDED_FOR`].
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
        let work = || {
            let (identity, policy) = (Arc::clone(self), Arc::clone(policy));
            let (cookie, device) = (cookie.to_owned(), device());
            async move { identity.renew_now(&cookie, &device, &policy).await }
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
        policy: &Arc<Policy>,
    ) -> Outcome {
        let token = self.sessions.parse(cookie).ok_or(NotRenewed::Ended)?;
        let work = || {
            let (identity, policy) = (Arc::clone(self), Arc::clone(policy));
            let cookie = cookie.to_owned();
            async move { identity.lend_now(&cookie, token, &policy).await }
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
            known.forget_before(now.saturating_sub(ENDED_FOR.max(shared_for)));
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

    async fn renew_now(&self, cookie: &str, device: &Device, policy: &Policy) -> Outcome {
        let renewed = async {
            let session = self.refresh_session(cookie, true, device, policy).await?;
            let next = self.sessions.parse(&session.refresh_token);
            let counter = next.map_or(0, |token| token.counter);
            let tokens = self.tokens(session, policy).await?;
            let cookies = tokens.cookies(policy).to_vec();
            Ok(Arc::new(Renewed { access_token: tokens.access_token, cookies, counter }))
        };
        renewed.await.map_err(|error| self.not_renewed(error))
    }

    async fn lend_now(&self, cookie: &str, token: RefreshToken, policy: &Policy) -> Outcome {
        let lent = async {
            let session = self.sessions.lend(cookie, policy, self.clock.unix_time()).await?;
            let access_token = self.tokens(session, policy).await?.access_token;
            let counter = token.counter;
            Ok(Arc::new(Renewed { access_token, cookies: Vec::new(), counter }))
        };
        lent.await.map_err(|error| self.not_renewed(error))
    }

    fn not_renewed(&self, error: IdentityError) -> NotRenewed {
        if let IdentityError::Grant(_) = error {
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
                (token.counter == self.used || token.counter == renewed.counter)
                    && age < shared_for
                    && !stale.is_some_and(|stale| Arc::ptr_eq(stale, renewed))
            }
            Some(Err(NotRenewed::Ended)) => token.counter == self.used && age < ENDED_FOR,
            Some(Err(NotRenewed::Unavailable(_))) => false,
        }
    }
}

impl Known {
    fn insert(
        &mut self,
        token: RefreshToken,
        now: Duration,
        outcome: watch::Receiver<Option<Outcome>>,
    ) {
        self.attempts.insert(token.session, Attempt { used: token.counter, begun: now, outcome });
        self.begun.push_back((now, token.session));
        if self.begun.len() > MOST {
            self.forget_oldest();
        }
    }

    /// Forgets the attempts that began before this time.
    fn forget_before(&mut self, time: Duration) {
        while self.begun.front().is_some_and(|(begun, _)| *begun < time) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((begun, session)) = self.begun.pop_front() else { return };
        // The session may have been renewed again since.
        if self.attempts.get(&session).is_some_and(|attempt| attempt.begun == begun) {
            self.attempts.remove(&session);
        }
    }
}

impl Renewed {
    /// The new access token, not yet verified.
    pub fn access_token(&self) -> &str {
        &self.access_token
    }

    /// The `Set-Cookie` fields with both new tokens; empty if the token was lent.
    pub fn cookies(&self) -> &[HeaderValue] {
        &self.cookies
    }
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// How long it is remembered that a session has ended, at least.
const ENDED_FOR: Duration = Duration::from_secs(10);

/// How many attempts are remembered. Beyond that, the store decides about the oldest ones again.
const MOST: usize = 10_000;
