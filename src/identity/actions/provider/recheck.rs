//! Asks providers, in the background, whether people may still log in, and for their roles. No
//! request waits for this, and no outage ends a session.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use tokio::task::JoinSet;

use super::arrival::sealed_form;
use crate::identity::error::IdentityError;
use crate::identity::provider::{Provider, SaidAgain, SetOfTokens};
use crate::identity::{Identity, Policy};
use crate::store::SessionAtProvider;

impl Identity {
    /// Asks about every session that is due, until the future is dropped. `policy` returns the
    /// current policy.
    pub(in crate::identity) async fn recheck(
        self: Arc<Self>,
        policy: &impl Fn() -> Option<Arc<Policy>>,
    ) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
        let now = self.clock.unix_seconds().cast_signed();
        let due = self.store.sessions_to_recheck(now, AT_A_TIME).await?;
        let mut asking = JoinSet::new();
        let mut away = BTreeSet::new();
        for session in due {
            let provider = policy.provider_of(&session.idp, &session.issuer).cloned();
            let Some(provider) = provider else {
                // The section is gone or names another provider, which must not see these tokens.
                // The session lasts as long as any other.
                self.store.finish_recheck(&session.session, None, now + WAIT_FOR_SECTION).await?;
                continue;
            };
            if away.contains(&session.issuer) {
                continue;
            }
            if asking.len() >= AT_ONCE
                && let Some(Ok(Some(issuer))) = asking.join_next().await
            {
                away.insert(issuer);
            }
            let (identity, policy) = (Arc::clone(self), Arc::clone(policy));
            let work = async move {
                let is_away = identity.recheck_one(&provider, &session, &policy).await;
                is_away.then_some(session.issuer)
            };
            // It finishes even if the gateway stops: an answer may hold the only refresh token that
            // is still valid.
            let asked = self.tasks.spawn_on(work, &self.background);
            asking.spawn(async move { asked.await.ok().flatten() });
        }
        while let Some(asked) = asking.join_next().await {
            away.extend(asked.ok().flatten());
        }
        for issuer in away {
            // One request in a while is enough to find out that it is back.
            self.store.postpone_rechecks(&issuer, now, now + WAIT).await?;
        }
        Ok(())
    }

    /// Asks about one session. Returns whether the provider is away.
    async fn recheck_one(
        &self,
        provider: &Provider,
        session: &SessionAtProvider,
        policy: &Policy,
    ) -> bool {
        match self.recheck_claimed(provider, session, policy).await {
            Ok(()) => false,
            Err(IdentityError::Provider(error)) => {
                let (login, sid) = (&*provider.settings().name, &*session.session);
                tracing::warn!(login, sid, cause = %error, "cannot check a session at its provider; the session continues");
                let due_at = if error.is_outage() {
                    self.clock.unix_seconds().cast_signed() + WAIT
                } else {
                    // It has responded: asking again at once would not change its mind.
                    self.next_recheck(provider)
                };
                if let Err(error) = self.store.finish_recheck(sid, None, due_at).await {
                    self.store.record_failure(&error);
                }
                error.is_outage()
            }
            Err(error) => {
                tracing::warn!(cause = %error, "the check of a session was not finished");
                false
            }
        }
    }

    async fn recheck_claimed(
        &self,
        provider: &Provider,
        session: &SessionAtProvider,
        policy: &Policy,
    ) -> Result<(), IdentityError> {
        let sid = &session.session;
        let now = self.clock.unix_seconds().cast_signed();
        if !self.store.claim_recheck(sid, now, now + LEASE).await? {
            return Ok(());
        }
        if !self.sessions.goes_on(sid).await? {
            self.store.delete_provider_session(sid).await?;
            return Ok(());
        }
        // Read after the claim: another process may have received newer tokens before it.
        let Some(row) = self.store.provider_session(sid).await? else { return Ok(()) };
        let tokens: SetOfTokens = serde_json::from_str(&row.tokens).unwrap_or_default();
        let renewed = match provider.renew(tokens, &self.clock).await {
            Ok(renewed) => renewed,
            Err(error) if error.is_invalid_grant() => {
                return self.end_from_provider(session, "ended_by_provider", policy).await;
            }
            Err(error) => return Err(error.into()),
        };
        self.store.keep_tokens(sid, &sealed_form(&renewed.tokens())).await?;
        let SaidAgain { person, tokens } =
            provider.ask_again(renewed, &row.subject, &self.clock).await?;
        if let Some(person) = person {
            match &person.allowed {
                Ok(()) => self.bring_up_to_date(provider, &person, policy).await?,
                Err(cause) => {
                    let login = &*provider.settings().name;
                    tracing::warn!(login, sid, %cause, "a person may no longer log in");
                    return self.take_away(provider, &person, policy).await;
                }
            }
        }
        let due_at = self.next_recheck(provider);
        self.store.finish_recheck(sid, Some(&sealed_form(&tokens)), due_at).await?;
        Ok(())
    }

    /// When to ask the provider about a session again, in Unix seconds: a little later than
    /// `recheck`, at random, so that sessions that began together are not checked together.
    pub(super) fn next_recheck(&self, provider: &Provider) -> i64 {
        let mut byte = [0];
        // Without random numbers, use the time itself.
        let _ = rand::fill(&mut byte);
        let interval = provider.settings().recheck;
        let wait = interval + interval.mul_f64(f64::from(byte[0]) / 255.0 / 10.0);
        self.clock.unix_time().saturating_add(wait).as_secs().cast_signed()
    }
}

/// How often to look for sessions that are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many sessions are read at a time.
const AT_A_TIME: i64 = 200;

/// How many requests are sent to providers at the same time.
const AT_ONCE: usize = 8;

/// How long a claim holds, in seconds: longer than a provider may take to respond.
const LEASE: i64 = 60;

/// How long a session waits while its provider is away, in seconds.
const WAIT: i64 = 15;

/// How long a session waits whose provider is in no section of the file, in seconds.
const WAIT_FOR_SECTION: i64 = 60;
