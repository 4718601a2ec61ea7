//! Asks providers, in the background, whether people may still log in, and for their roles. No
//! request waits for this, and no outage ends a session.
//!
//! A provider may accept a refresh token once. If its answer is lost, it refuses the token as it
//! refuses that of a person who is disabled. So a token is sent only to a provider that has just
//! responded, and the answer is waited for patiently. A session whose answer was lost all the same
//! is in doubt: if its token is then refused, the person must log in at the provider again. An answer
//! that has arrived is never taken for a lost one, even if the store fails: new tokens end the doubt
//! as they are written, and a refusal is remembered until the session has ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use tokio::task::JoinSet;

use super::arrival::sealed_form;
use crate::identity::error::IdentityError;
use crate::identity::provider::{NotGranted, Provider, Renewed, SaidAgain, SetOfTokens};
use crate::identity::{Identity, Policy, interval};
use crate::outbound::TOTAL_TIME;
use crate::store::{MAX_AHEAD, RecheckDue, SessionAtProvider, for_client};

impl Identity {
    /// Asks about every session that is due, until the future is dropped. `policy` returns the
    /// current policy.
    pub(in crate::identity) async fn recheck(
        self: Arc<Self>,
        policy: &impl Fn() -> Option<Arc<Policy>>,
    ) {
        let mut looks = interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            let Some(policy) = policy().filter(|policy| !policy.providers.is_empty()) else {
                continue;
            };
            if let Err(error) = self.recheck_what_is_due(&policy).await {
                tracing::warn!(cause = %error, "sessions cannot be checked at their providers");
            }
        }
    }

    async fn recheck_what_is_due(
        self: &Arc<Self>,
        policy: &Arc<Policy>,
    ) -> Result<(), IdentityError> {
        let due = self.store.sessions_to_recheck(self.recheck_due(policy), AT_A_TIME).await?;
        let mut asking = JoinSet::new();
        let mut away = BTreeMap::new();
        for session in due {
            let provider = policy.provider_of(&session.idp, &session.issuer).cloned();
            let Some(provider) = provider else {
                // The section is gone or names another provider, which must not see these tokens.
                // The session lasts as long as any other.
                let due_at = self.shared_seconds() + WAIT_FOR_SECTION;
                self.store.finish_recheck(&session.session, None, due_at).await?;
                continue;
            };
            if away.contains_key(&session.issuer) {
                continue;
            }
            if asking.len() >= AT_ONCE
                && let Some(Ok(Some((issuer, provider)))) = asking.join_next().await
            {
                away.insert(issuer, provider);
            }
            let (identity, policy) = (Arc::clone(self), Arc::clone(policy));
            let (issuer, asked_one) = (session.issuer.clone(), Arc::clone(&provider));
            let work = async move { identity.recheck_one(&provider, &session, &policy).await };
            // It finishes even if the gateway stops: an answer may hold the only refresh token that
            // is still valid.
            let asked = self.tasks.spawn_on(work, &self.background);
            asking.spawn(async move {
                // It waits on, but the others do not wait for it.
                let answered = tokio::time::timeout(LONG, asked).await;
                let is_away = if let Ok(asked) = answered {
                    asked.unwrap_or(false)
                } else {
                    let login = &*asked_one.settings().name;
                    tracing::warn!(
                        login,
                        "a provider takes long to respond about a session; it is waited for"
                    );
                    true
                };
                is_away.then_some((issuer, asked_one))
            });
        }
        while let Some(asked) = asking.join_next().await {
            away.extend(asked.ok().flatten());
        }
        for (issuer, provider) in away {
            // One request in a while is enough to find out that it is back.
            let due = self.recheck_due(policy);
            self.store.postpone_rechecks(&issuer, due, self.soon(&provider)).await?;
        }
        Ok(())
    }

    /// Asks about one session. Returns whether the provider is away.
    async fn recheck_one(
        self: &Arc<Self>,
        provider: &Provider,
        session: &SessionAtProvider,
        policy: &Arc<Policy>,
    ) -> bool {
        let Unchecked { error, is_in_doubt } =
            match self.recheck_claimed(provider, session, policy).await {
                Ok(()) => return false,
                Err(unchecked) => unchecked,
            };
        let IdentityError::Provider(error) = error else {
            tracing::warn!(cause = %error, "the check of a session was not finished");
            return false;
        };
        let (login, sid) = (&*provider.settings().name, &*session.session);
        tracing::warn!(login, sid, cause = %error, "cannot check a session at its provider; the session continues");
        let due_at = if error.is_outage() {
            self.soon(provider)
        } else {
            // It has responded: asking again at once would not change its mind.
            self.next_recheck(provider)
        };
        let ended = if is_in_doubt {
            self.store.abandon_recheck(sid, due_at).await
        } else {
            self.store.finish_recheck(sid, None, due_at).await
        };
        if let Err(error) = ended {
            self.store.record_failure(&error);
        }
        error.is_outage()
    }

    async fn recheck_claimed(
        self: &Arc<Self>,
        provider: &Provider,
        session: &SessionAtProvider,
        policy: &Arc<Policy>,
    ) -> Result<(), Unchecked> {
        let sid = &session.session;
        let due = self.recheck_due(policy);
        if !self.store.claim_recheck(sid, due, due.now + LEASE).await? {
            return Ok(());
        }
        if !self.sessions.goes_on(sid).await? {
            self.store.delete_provider_session(sid).await?;
            return Ok(());
        }
        // Read after the claim: another process may have received newer tokens before it.
        let Some(row) = self.store.provider_session(sid).await? else { return Ok(()) };
        let tokens: SetOfTokens = serde_json::from_str(&row.tokens).unwrap_or_default();
        if tokens.refresh.is_none() {
            let login = &*provider.settings().name;
            tracing::warn!(login, sid, "a person did not log in at the provider again in time");
            return Ok(self.end_from_provider(session, policy).await?);
        }
        let last_id = tokens.id.clone();
        let began = self.store.last_revocation().await?;
        let renewed = match self.renew_patiently(provider, sid, tokens).await {
            Some(Ok(renewed)) => renewed,
            Some(Err(failed)) if failed.error.is_invalid_grant() => {
                if session.is_in_doubt() {
                    return Ok(self.await_person(provider, sid, last_id).await?);
                }
                self.end_refused(session, policy).await;
                return Ok(());
            }
            Some(Err(failed)) => {
                let is_in_doubt = failed.may_be_spent || session.is_in_doubt();
                return Err(Unchecked { error: failed.error.into(), is_in_doubt });
            }
            // The claim is never finished, which leaves the session in doubt.
            None => return Ok(()),
        };
        // The answer is known from here on, whatever fails: then the provider is asked again.
        let again_at = self.shared_seconds() + LEASE;
        self.store.finish_recheck(sid, Some(&sealed_form(&renewed.tokens())), again_at).await?;
        let SaidAgain { person, tokens } =
            provider.ask_again(renewed, &row.subject, &self.clock).await?;
        if let Some(person) = person {
            let person = self.weighed(provider, person, policy).await?;
            match &person.allowed {
                Ok(()) => self.bring_up_to_date(provider, (&person, began), policy).await?,
                Err(cause) => {
                    let login = &*provider.settings().name;
                    tracing::warn!(login, sid, %cause, "a person may no longer log in");
                    return Ok(self.take_away(provider, &person, policy).await?);
                }
            }
        }
        let due_at = self.next_recheck(provider);
        self.store.finish_recheck(sid, Some(&sealed_form(&tokens)), due_at).await?;
        Ok(())
    }

    /// Ends a session whose refresh token was refused. If the store fails, this is tried again until
    /// it succeeds: the claim would be taken for one whose answer was lost.
    async fn end_refused(self: &Arc<Self>, session: &SessionAtProvider, policy: &Arc<Policy>) {
        let Err(error) = self.end_from_provider(session, policy).await else { return };
        tracing::warn!(cause = %error, "the check of a session was not finished");
        let (identity, session, policy) = (Arc::clone(self), session.clone(), Arc::clone(policy));
        let ending = async move {
            let mut given_up = std::pin::pin!(identity.given_up());
            let mut wait = LOOK_EVERY;
            loop {
                tokio::select! {
                    () = &mut given_up => return,
                    () = tokio::time::sleep(wait) => wait = WAIT.min(wait * 2),
                }
                match identity.end_from_provider(&session, &policy).await {
                    Ok(()) => return,
                    Err(error) => identity.store.record_failure(&error),
                }
            }
        };
        self.tasks.spawn_on(ending, &self.background);
    }

    /// Waits until the process stops, and a little longer.
    async fn given_up(&self) {
        self.stopping.cancelled().await;
        tokio::time::sleep(TOTAL_TIME).await;
    }

    /// Exchanges the refresh token of a session and holds its claim meanwhile. `None`: the process
    /// stops, and the answer is not known.
    async fn renew_patiently(
        &self,
        provider: &Provider,
        sid: &str,
        tokens: SetOfTokens,
    ) -> Option<Result<Renewed, NotGranted>> {
        let mut renewing = std::pin::pin!(provider.renew(tokens, &self.clock));
        let mut given_up = std::pin::pin!(self.given_up());
        loop {
            tokio::select! {
                renewed = &mut renewing => return Some(renewed),
                () = &mut given_up => return None,
                () = tokio::time::sleep(HOLD_EVERY) => {}
            }
            let until = self.shared_seconds() + LEASE;
            if let Err(error) = self.store.hold_claim(sid, until).await {
                self.store.record_failure(&error);
            }
        }
    }

    /// The refresh token of a session was refused, and it was perhaps spent when an answer was lost.
    /// The session continues for a while without it, until the person logs in at the provider again.
    async fn await_person(
        &self,
        provider: &Provider,
        sid: &str,
        last_id: Option<String>,
    ) -> Result<(), IdentityError> {
        let without = sealed_form(&SetOfTokens { refresh: None, id: last_id });
        let wait = provider.settings().recheck * INTERVALS_IN_DOUBT;
        let due_at = self.shared_seconds().saturating_add(wait.as_secs().cast_signed());
        self.store.finish_recheck(sid, Some(&without), due_at).await?;
        let login = &*provider.settings().name;
        tracing::warn!(
            login,
            sid,
            "a refresh token was lost; the person must log in at the provider again"
        );
        Ok(())
    }

    /// Returns the name of the provider at which the person must log in again, because the refresh
    /// token of their session was lost. `None` if it was not, or if the provider does not respond.
    ///
    /// # Errors
    /// The store is not available.
    pub async fn must_log_in_again(
        &self,
        cookie: &str,
        client: IpAddr,
        policy: &Policy,
    ) -> Result<Option<String>, IdentityError> {
        if policy.providers.is_empty() {
            return Ok(None);
        }
        let Some(sid) = self.sessions.sid_of(cookie) else { return Ok(None) };
        for_client(client, self.login_for(sid, policy)).await
    }

    /// Where the person of a session must log in again.
    async fn login_for(
        &self,
        sid: String,
        policy: &Policy,
    ) -> Result<Option<String>, IdentityError> {
        let Some(row) = self.store.provider_session(&sid).await? else { return Ok(None) };
        let tokens: SetOfTokens = serde_json::from_str(&row.tokens).unwrap_or_default();
        if row.due_at.is_none() || tokens.refresh.is_some() || !self.sessions.goes_on(&sid).await? {
            return Ok(None);
        }
        Ok(match policy.provider_of(&row.idp, &row.issuer) {
            Some(provider) if provider.responds().await => {
                Some(provider.settings().name.to_string())
            }
            _ => None,
        })
    }

    /// The time by the clock that all gateways share: with another, one that is behind would take what
    /// the others have just asked about for what a clock that was ahead has noted.
    fn shared_seconds(&self) -> i64 {
        self.store.shared_time(self.clock.unix_time()).as_secs().cast_signed()
    }

    /// Which sessions are due now.
    fn recheck_due(&self, policy: &Policy) -> RecheckDue {
        let now = self.shared_seconds();
        let longest = policy.providers.iter().map(|provider| provider.settings().recheck).max();
        let longest = longest.unwrap_or_default().saturating_mul(INTERVALS_IN_DOUBT);
        let longest = longest.as_secs().cast_signed().max(WAIT_FOR_SECTION).max(LEASE);
        // Another gateway's clock may be ahead a little.
        let (farthest, longest_claim) = (now + longest + MAX_AHEAD, now + LEASE + MAX_AHEAD);
        RecheckDue { now, farthest, longest_claim }
    }

    /// When to ask a provider again that is away, in Unix seconds.
    fn soon(&self, provider: &Provider) -> i64 {
        let wait = provider.settings().recheck.min(WAIT);
        self.shared_seconds().saturating_add(wait.as_secs().cast_signed())
    }

    /// When to ask the provider about a session again, in Unix seconds: a little later than
    /// `recheck`, at random, so that sessions that began together are not checked together.
    pub(super) fn next_recheck(&self, provider: &Provider) -> i64 {
        let mut byte = [0];
        // Without random numbers, use the time itself.
        let _ = rand::fill(&mut byte);
        let interval = provider.settings().recheck;
        let wait = interval + interval.mul_f64(f64::from(byte[0]) / 255.0 / 10.0);
        self.shared_seconds().saturating_add(wait.as_secs().cast_signed())
    }
}

/// Why a session was not checked.
struct Unchecked {
    error: IdentityError,
    /// Whether its refresh token may have been spent in vain.
    is_in_doubt: bool,
}

impl<E: Into<IdentityError>> From<E> for Unchecked {
    fn from(error: E) -> Self {
        Self { error: error.into(), is_in_doubt: false }
    }
}

/// How often to look for sessions that are due, and to try again to end one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many sessions are read at a time.
const AT_A_TIME: i64 = 200;

/// How many requests are sent to providers at the same time.
const AT_ONCE: usize = 8;

/// How long the sessions that are due next wait for a request: a little longer than it takes to find
/// out that the provider does not respond at all.
const LONG: Duration = TOTAL_TIME.saturating_add(Duration::from_secs(2));

/// How long a claim holds, in seconds, unless it is held on.
const LEASE: i64 = 60;

/// How often a claim is held on while the provider has not responded.
const HOLD_EVERY: Duration = Duration::from_secs(20);

/// How many intervals a session in doubt continues.
const INTERVALS_IN_DOUBT: u32 = 4;

/// How long a session waits while its provider or the store is away, at most.
const WAIT: Duration = Duration::from_secs(15);

/// How long a session waits whose provider is in no section of the file, in seconds.
const WAIT_FOR_SECTION: i64 = 60;
