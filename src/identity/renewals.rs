//! Sessions of browsers that are renewed while a request waits.
//!
//! A page that was open when its access token expired sends many requests at once. They wait for
//! one rotation, and those that are a little late get its outcome too. What is remembered is
//! bounded, and gone after seconds: the store decides about everything else.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::watch;
use uuid::Uuid;

use super::error::IdentityError;
use super::session::{Device, RefreshToken};
use super::{Identity, Policy};

/// A session that was renewed.
pub struct Renewed {
    access_token: String,
    cookies: [HeaderValue; 2],
    /// The counter of the refresh token in the cookie.
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

/// The renewals of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Renewals(Mutex<Known>);

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
        let mut outcome = self.attempt(cookie, token, stale, device, policy);
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(NotRenewed::Ended)),
            // The task is gone with the runtime.
            Err(_) => Err(NotRenewed::Unavailable(Arc::new(IdentityError::Stopping))),
        }
    }

    /// The attempt in progress or a recent one, otherwise a new one, which finishes even if its
    /// client goes away.
    fn attempt(
        self: &Arc<Self>,
        cookie: &str,
        token: RefreshToken,
        stale: Option<&Arc<Renewed>>,
        device: impl FnOnce() -> Device,
        policy: &Arc<Policy>,
    ) -> watch::Receiver<Option<Outcome>> {
        let now = self.clock.running();
        let mut known = self.renewals.known();
        known.forget_before(now.saturating_sub(ENDED_FOR.max(policy.refresh_reuse_interval)));
        if let Some(attempt) = known.attempts.get(&token.session)
            && attempt.serves(token, stale, now, policy)
        {
            return attempt.outcome.clone();
        }
        let (report, outcome) = watch::channel(None);
        known.insert(token, now, outcome.clone());
        drop(known);
        let (identity, policy, device) = (Arc::clone(self), Arc::clone(policy), device());
        let cookie = cookie.to_owned();
        let work = async move {
            let renewed = identity.renew_now(&cookie, &device, &policy).await;
            // Everyone who waited may have gone away.
            let _ = report.send(Some(renewed));
        };
        self.tasks.spawn_on(work, &self.background);
        outcome
    }

    async fn renew_now(&self, cookie: &str, device: &Device, policy: &Policy) -> Outcome {
        let renewed = async {
            let session = self.refresh_session(Some(cookie), true, device, policy).await?;
            let counter =
                self.sessions.parse(&session.refresh_token).map_or(0, |token| token.counter);
            let tokens = self.tokens(session, policy).await?;
            let cookies = tokens.cookies(policy);
            Ok(Arc::new(Renewed { access_token: tokens.access_token, cookies, counter }))
        };
        renewed.await.map_err(|error| match error {
            IdentityError::Grant(_) => NotRenewed::Ended,
            error => {
                if let IdentityError::Store(error) = &error {
                    self.store.record_failure(error);
                }
                NotRenewed::Unavailable(Arc::new(error))
            }
        })
    }
}

impl Attempt {
    /// Whether a request with this token may wait for this attempt, or have its outcome.
    fn serves(
        &self,
        token: RefreshToken,
        stale: Option<&Arc<Renewed>>,
        now: Duration,
        policy: &Policy,
    ) -> bool {
        let age = now.saturating_sub(self.begun);
        match &*self.outcome.borrow() {
            None => token.counter == self.used && self.outcome.has_changed().is_ok(),
            Some(Ok(renewed)) => {
                (token.counter == self.used || token.counter == renewed.counter)
                    && age < policy.refresh_reuse_interval
                    && !stale.is_some_and(|stale| Arc::ptr_eq(stale, renewed))
            }
            Some(Err(NotRenewed::Ended)) => token.counter == self.used && age < ENDED_FOR,
            Some(Err(NotRenewed::Unavailable(_))) => false,
        }
    }
}

impl Renewals {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The `Set-Cookie` fields with both new tokens.
    pub fn cookies(&self) -> &[HeaderValue; 2] {
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
