//! The decision: every step in order, and what happens to the request then.
//!
//! The gateway carries it out; `explain` and `[[test]]` blocks describe it. There is no second copy
//! of this order.

use std::sync::Arc;

use http::request::Parts;

use super::authenticate::Verifier;
use super::authorize::{Authenticated, Permit};
use super::certificate::ClientCertificate;
use super::client::Peer;
use super::counted::Counted;
use super::dialect::Asker;
use super::matched::{LogoutRequest, Match, Matched, Preflight, Stopped};
use super::navigation::redirect_or_explain;
use super::observer::Observer;
use super::online::Online;
use super::outgoing::Outgoing;
use super::redirected::Redirected;
use super::refusal::Refusal;
use super::route::{Destination, NoRoute};
use super::snapshot::Snapshot;
use super::upstream::Upstream;
use super::verdict::Allow;
use crate::identity::Mount;
use crate::identity::request::LONGEST_BODY;
use crate::reason::Reason;

/// What a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Decider<'s> {
    /// One configuration for the whole decision.
    pub snapshot: &'s Snapshot,
    /// The accepted tokens.
    pub verifier: Verifier<'s>,
    /// When the request arrived, in Unix seconds.
    pub now: u64,
    /// What to wait for; `None`: decide by what is in memory.
    pub online: Option<Online<'s>>,
}

/// What may happen to a request.
#[derive(Debug)]
pub enum Decided<'s> {
    /// It is sent to this application.
    Forward(Outgoing<'s>, &'s Arc<Upstream>),
    /// It is answered here.
    Answer(Reply<'s>),
}

/// What answers a request that is not sent to an application.
#[derive(Debug)]
pub enum Reply<'s> {
    /// An endpoint of the built-in issuer handles it.
    Endpoint(Permit<'s>, &'s Mount),
    /// The client is sent elsewhere.
    Redirect(Redirected),
    /// It is a back-channel logout, decided by the token in its body.
    Logout(LogoutRequest<'s>),
    /// It is the question of a browser, and the answer is yes.
    Preflight(Preflight<'s>),
}

impl<'s> Decider<'s> {
    /// Also knows the certificate that the client has shown.
    #[must_use]
    pub fn with_certificate(self, shown: Option<&'s Arc<ClientCertificate>>) -> Self {
        let authority = self.snapshot.tls.as_ref().and_then(|tls| tls.authority());
        Self { verifier: self.verifier.with_certificate(shown, authority), ..self }
    }

    /// Decides what happens to a request. `announced`: its declared body length in bytes. The head is
    /// matched at once, so that no future has to keep it.
    pub fn decide<O: Observer>(
        &self,
        peer: &Peer,
        parts: Parts,
        announced: Option<u64>,
        observer: &mut O,
    ) -> impl Future<Output = Result<Decided<'s>, Refusal>> {
        let known = (&self.verifier, self.now);
        let matched = Match::resolve(self.snapshot, peer, parts, known, observer);
        async move {
            let matched = match matched? {
                Match::Route(matched) => matched,
                Match::Logout(request) => return Ok(Decided::Answer(Reply::Logout(request))),
                Match::Preflight(preflight) => {
                    return Ok(Decided::Answer(Reply::Preflight(preflight)));
                }
            };
            let permit = self
                .permit(matched, observer)
                .await
                .map_err(|stopped| self.refused(stopped, observer))?;
            match &permit.route().destination {
                Destination::Identity(mount) => {
                    let most = self.snapshot.max_body.min(LONGEST_BODY);
                    if announced.is_some_and(|bytes| bytes > most) {
                        let stopped = permit.stop(Refusal::BodyTooLarge);
                        return Err(self.refused(stopped, observer));
                    }
                    Ok(Decided::Answer(Reply::Endpoint(permit, mount)))
                }
                Destination::Redirect(redirect) => {
                    let names = &self.snapshot.rules.token_names;
                    Redirected::new(&permit, redirect, names)
                        .map(|redirected| Decided::Answer(Reply::Redirect(redirected)))
                }
                Destination::Upstream(upstream) => {
                    let (rules, max_body) = (&self.snapshot.rules, self.snapshot.max_body);
                    let outgoing =
                        Outgoing::prepare(permit, announced, observer.ids(), rules, max_body)?;
                    Ok(Decided::Forward(outgoing, upstream))
                }
                Destination::External => Err(NoRoute::NotFound.into()),
            }
        }
    }

    /// Decides whether a proxy that asks may forward a request. `announced`: the declared length of
    /// the verification request's body, in bytes.
    pub async fn verify(
        &self,
        asker: Asker<'_>,
        parts: Parts,
        announced: Option<u64>,
        observer: &mut impl Observer,
    ) -> Result<Allow, Refusal> {
        let matched = Matched::asked(self.snapshot, asker, parts, announced, observer)?;
        let permit = self
            .permit(matched, observer)
            .await
            .map_err(|stopped| self.refused(stopped, observer))?;
        Ok(Allow::new(permit, &self.snapshot.rules.token_names))
    }

    /// The refusal of a request, or what a person gets instead.
    fn refused(&self, stopped: Stopped<'_>, observer: &mut impl Observer) -> Refusal {
        let Stopped { matched, refusal } = stopped;
        let refusal = if refusal.reason() == Reason::OriginForeign {
            // Nobody was authenticated.
            refusal.for_person(&matched.parts().headers, &self.verifier, self.now)
        } else {
            refusal
        };
        let request_id = observer.ids().request_id.to_str().unwrap_or_default();
        redirect_or_explain(Stopped { matched, refusal }, self.snapshot, request_id)
    }

    async fn permit(
        &self,
        matched: Matched<'s>,
        observer: &mut impl Observer,
    ) -> Result<Permit<'s>, Stopped<'s>> {
        let counted = Counted::by_client(matched, observer).await?;
        Authenticated::new(counted, &self.verifier, self.now, self.online.as_ref())
            .await?
            .authorize(observer)
            .await
    }
}
