//! What a decision may wait for, and the one place where authentication waits.
//!
//! A request with a token that is known to be valid never waits. `explain` and `[[test]]` decide
//! without this, by what is in memory.

use std::sync::Arc;

use http::Method;

use super::authenticate::{
    AccessRequest, Caller, Unauthenticated, Verifier, authenticate, renewable, unusable_token,
};
use super::guard::Access;
use super::origin::is_navigation;
use super::step_up::{Insufficient, StepUp};
use crate::clock::Clock;
use crate::identity::personal_tokens::{LookUpError, Unusable};
use crate::identity::session::Device;
use crate::identity::{Identity, IdentityError, NotRenewed, Policy, Renewed};
use crate::keys::{Keys, Renewal};
use crate::token::{InvalidToken, RevokedBy};

/// What a decision may wait for.
#[derive(Clone, Copy, Debug)]
pub struct Online<'a> {
    /// The keys of each issuer.
    pub keys: &'a Keys,
    /// The time, also after waiting.
    pub clock: &'a Clock,
    /// The built-in issuer and its settings, for credentials that only its store can resolve;
    /// `None`: there is none.
    pub identity: Option<(&'a Arc<Identity>, &'a Arc<Policy>)>,
    /// Whether sessions are renewed. If not, because the response cannot set their cookies, a live
    /// session is only lent an access token for the request.
    pub renews: bool,
}

impl Online<'_> {
    /// Whether memory alone has decided about the credential.
    pub(super) fn is_settled(
        &self,
        access: &AccessRequest<'_>,
        verifier: &Verifier<'_>,
        decided: &Result<Option<Caller>, Unauthenticated>,
    ) -> bool {
        match decided {
            Err(Unauthenticated::Invalid(refused)) if refused.concerns_key() => false,
            Err(Unauthenticated::NotLookedUp) => false,
            _ => self.identity.is_none() || renewable(access, verifier, decided).is_none(),
        }
    }

    /// Does what it takes to resolve the credential. Waits a few seconds at most.
    pub(super) async fn resolve(
        self,
        access: &AccessRequest<'_>,
        verifier: &Verifier<'_>,
        mut decided: Result<Option<Caller>, Unauthenticated>,
    ) -> Result<Option<Caller>, Unauthenticated> {
        if matches!(&decided, Err(Unauthenticated::Invalid(refused)) if refused.concerns_key()) {
            decided = self.with_newest_keys(access, verifier, decided).await;
        }
        if matches!(&decided, Err(Unauthenticated::NotLookedUp)) {
            return self.look_up(access, verifier).await;
        }
        match (renewable(access, verifier, &decided), self.identity) {
            (Some(cookie), Some(issuer)) => {
                self.with_renewed_session(access, verifier, decided, cookie, issuer).await
            }
            _ => decided,
        }
    }

    /// [`authenticate`] again with the new access token of the session in this cookie, if it is
    /// live.
    async fn with_renewed_session(
        self,
        access: &AccessRequest<'_>,
        verifier: &Verifier<'_>,
        decided: Result<Option<Caller>, Unauthenticated>,
        cookie: &str,
        (identity, policy): (&Arc<Identity>, &Arc<Policy>),
    ) -> Result<Option<Caller>, Unauthenticated> {
        // A page, and not what it loads: the way there and back would lose a form.
        let can_log_in = *access.method == Method::GET
            && access.guard.access == Access::Authenticated
            && is_navigation(access.headers);
        let client = access.client.ip();
        if can_log_in
            && !identity.is_known_to_have_ended(cookie)
            && let Some(login) =
                identity.must_log_in_again(cookie, client, policy).await.map_err(unavailable)?
        {
            return Err(Unauthenticated::MustLogInAgain(Box::new(Insufficient {
                wanted: StepUp::default(),
                is_strong: true,
                idp: Some(login),
                who: None,
            })));
        }
        let mut stale = None;
        loop {
            let device = || Device::new(client, access.headers);
            let outcome = if self.renews {
                identity.renew(cookie, stale.as_ref(), device, policy).await
            } else {
                identity.lend(cookie, stale.as_ref(), client, policy).await
            };
            let renewed = match outcome {
                Ok(renewed) => renewed,
                Err(NotRenewed::Ended) => return decided,
                Err(NotRenewed::Unavailable(error)) => {
                    return Err(Unauthenticated::Unavailable(error));
                }
            };
            let verifier = verifier.with_renewed(&renewed);
            match authenticate(access, &verifier, self.clock.unix_seconds()) {
                // A renewal that other requests caused: its access token has been revoked since.
                Err(Unauthenticated::Invalid(_)) if stale.is_none() => stale = Some(renewed),
                decided => return decided,
            }
        }
    }

    /// Whether the cookies of a renewal are still the newest of their session. An old pair would
    /// overwrite the browser's newer one and, when it comes back, look stolen. If the store is away,
    /// they are not sent: without them, the browser's own are as good as before.
    pub(super) async fn is_newest(self, renewed: &Renewed) -> bool {
        let Some((identity, policy)) = self.identity else { return false };
        identity.is_newest(renewed, policy).await.unwrap_or(false)
    }

    /// Authenticates the caller of a personal access token that is not remembered: looks it up. Of
    /// requests that come at once with the same token, one looks it up.
    async fn look_up(
        self,
        access: &AccessRequest<'_>,
        verifier: &Verifier<'_>,
    ) -> Result<Option<Caller>, Unauthenticated> {
        let Some(credential) = verifier.credential(access)? else {
            return Err(Unauthenticated::Missing);
        };
        let Some((identity, policy)) = self.identity else {
            return Err(unusable_token(&Unusable::Unknown, 0));
        };
        let bytes = credential.personal()?.unwrap_or_default();
        let token = String::from_utf8_lossy(bytes);
        let Some(_turn) = identity.turn_of_token(&token).await else {
            return Err(Unauthenticated::NotLookedUp);
        };
        let client = access.client.ip();
        let mut attempts = 0;
        loop {
            let decided = authenticate(access, verifier, self.clock.unix_seconds());
            let decided = match decided {
                Err(Unauthenticated::NotLookedUp) => {
                    let found = identity.look_up_token(&token, client, policy).await;
                    let now = self.clock.unix_seconds();
                    let claims = found.map_err(|error| match error {
                        LookUpError::Unusable(Unusable::Store(error)) => unavailable(error.into()),
                        LookUpError::Unusable(unusable) => unusable_token(&unusable, now),
                        LookUpError::Limited { limit, retry_after } => {
                            Unauthenticated::Limited { limit, retry_after }
                        }
                    })?;
                    verifier.found(bytes, credential.place(), claims, now).map(Some)
                }
                decided => return decided,
            };
            attempts += 1;
            match decided {
                // Its account was changed while it was looked up.
                Err(Unauthenticated::Invalid(InvalidToken::Revoked(by)))
                    if by != RevokedBy::Jti && attempts < MOST_LOOK_UPS => {}
                decided => return decided,
            }
        }
    }

    /// [`authenticate`] again with newer keys: a key that was just published must not cause a
    /// refusal.
    async fn with_newest_keys(
        self,
        access: &AccessRequest<'_>,
        verifier: &Verifier<'_>,
        decided: Result<Option<Caller>, Unauthenticated>,
    ) -> Result<Option<Caller>, Unauthenticated> {
        let again = || authenticate(access, verifier, self.clock.unix_seconds());
        let Ok(Some(credential)) = verifier.credential(access) else { return decided };
        let Ok(token) = credential.text() else { return decided };
        let Some(owner) = verifier
            .issuer_lacking_key(&token, &decided)
            .and_then(|issuer| self.keys.for_issuer(&issuer))
        else {
            return decided;
        };
        // Without newer keys, garbage is verified only once.
        let is_garbage = matches!(&decided, Err(Unauthenticated::Invalid(InvalidToken::Signature)))
            && owner.is_settled();
        let lacks_key =
            |decided: &Result<_, _>| verifier.issuer_lacking_key(&token, decided).is_some();
        let (decided, renewal) = if owner.is_fetched() && !is_garbage {
            owner.with_newest(again, lacks_key).await
        } else {
            (decided, Renewal::Current)
        };
        match &decided {
            Err(Unauthenticated::Invalid(InvalidToken::NoKeys)) => {}
            Err(Unauthenticated::Invalid(InvalidToken::KeyUnknown { .. }))
                if renewal == Renewal::Unavailable => {}
            _ => return decided,
        }
        Err(Unauthenticated::KeysUnavailable {
            issuer: Arc::clone(&owner.settings().name),
            retry_after: owner.retry_after(),
        })
    }
}

fn unavailable(error: IdentityError) -> Unauthenticated {
    Unauthenticated::Unavailable(Arc::new(error))
}

/// How often a token is looked up for one request, whose account changes again and again.
const MOST_LOOK_UPS: u32 = 3;
