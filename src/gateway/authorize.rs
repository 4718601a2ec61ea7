//! Authorization: from a caller to a permit, the proof that this request may pass.

use std::sync::Arc;

use http::{HeaderMap, header};

use super::authenticate::{
    AccessRequest, Caller, Unauthenticated, Verifier, authenticate, renewable,
};
use super::counted::Counted;
use super::guard::{Access, Denied, Place};
use super::matched::{Matched, Overriding, Stopped};
use super::observer::Observer;
use super::online::Online;
use super::personal::has_personal_token;
use super::refusal::Refusal;
use super::route::{Destination, Route};
use super::token_memo::TokenMemo;
use crate::reason::Reason;
use crate::token::Remembered;

/// The proof that a request may take its route, and with which caller. It owns the request. Only
/// [`Authenticated::authorize`] makes one.
///
/// ```
/// fn reason(permit: &portcullis::gateway::authorize::Permit<'_>) -> &'static str {
///     permit.reason().as_str()
/// }
/// ```
/// A matched request alone does not make one:
/// ```compile_fail
/// use portcullis::gateway::authorize::Permit;
/// use portcullis::gateway::matched::Matched;
/// use portcullis::reason::Reason;
/// fn forge(matched: Matched<'_>) -> Permit<'_> {
///     Permit { matched, grant: unreachable!(), overriding: None, second: Vec::new() }
/// }
/// ```
#[derive(Debug)]
pub struct Permit<'s> {
    matched: Matched<'s>,
    grant: Grant,
    /// The permit for the overriding method. None of it is used; its existence is the point.
    #[expect(dead_code, reason = "a permit without it cannot be made")]
    overriding: Option<Grant>,
    /// The permits for the second targets, likewise.
    #[expect(dead_code, reason = "a permit without them cannot be made")]
    second: Vec<Grant>,
}

/// The result of one access question.
#[derive(Debug)]
struct Grant {
    caller: Option<Caller>,
    reason: Reason,
    /// Why the credentials count as none, if the endpoint decides for itself.
    rejected: Option<Box<Refusal>>,
}

/// A request whose credentials were read: for its own method, for an overriding one, and for its
/// second targets.
#[derive(Debug)]
pub struct Authenticated<'s> {
    matched: Matched<'s>,
    caller: Result<Option<Caller>, Unauthenticated>,
    overriding: Option<Box<AuthenticatedOverriding<'s>>>,
    /// Whether a live session would renew the credentials, which was not asked.
    renewable: bool,
    /// Unix seconds.
    now: u64,
    second: Vec<Result<Option<Caller>, Unauthenticated>>,
}

/// An overriding method, and the caller as its route authenticates it.
#[derive(Debug)]
struct AuthenticatedOverriding<'s> {
    overriding: Overriding<'s>,
    caller: Result<Option<Caller>, Unauthenticated>,
}

impl<'s> AuthenticatedOverriding<'s> {
    /// `own`: the caller for the request's own method.
    async fn new(
        overriding: Overriding<'s>,
        matched: &Matched<'s>,
        own: Option<&Caller>,
        verifier: &Verifier<'_>,
        now: u64,
        online: Option<&Online<'_>>,
    ) -> Box<Self> {
        // A session is renewed once for both.
        let renewed = own.and_then(Caller::renewed);
        let verifier = renewed.map_or(*verifier, |renewed| verifier.with_renewed(renewed));
        let access = matched.overriding_access(&overriding);
        let caller = recognize(&access, &verifier, now, online).await;
        Box::new(Self { overriding, caller })
    }
}

impl<'s> Authenticated<'s> {
    /// Authenticates the caller of a request. `now` is in Unix seconds. With `online` it waits a
    /// few seconds for what it does not know; without, it decides with what is in memory.
    ///
    /// # Errors
    /// The request, and why no caller can reach its endpoint of the built-in issuer: there is no
    /// such endpoint, or the request comes from another origin. No credentials are read then.
    pub async fn new(
        counted: Counted<Matched<'s>>,
        verifier: &Verifier<'_>,
        now: u64,
        online: Option<&Online<'_>>,
    ) -> Result<Self, Stopped<'s>> {
        let mut matched = counted.into_inner();
        if let Some(refusal) = matched.take_endpoint_refusal() {
            return Err(Stopped::new(matched, refusal));
        }
        let caller = recognize(&matched.access(), verifier, now, online).await;
        // The rare case is boxed, so that the usual one keeps no space for it.
        let overriding = match matched.take_overriding() {
            Some(overriding) => {
                let own = caller.as_ref().ok().and_then(Option::as_ref);
                let authenticated =
                    AuthenticatedOverriding::new(overriding, &matched, own, verifier, now, online);
                Some(Box::pin(authenticated).await)
            }
            None => None,
        };
        let renewable =
            online.is_none() && renewable(&matched.access(), verifier, &caller).is_some();
        let own = caller.as_ref().ok().and_then(Option::as_ref);
        let second = matched
            .second_targets()
            .iter()
            .map(|second| verifier.same_caller(&matched.second_access(second), own))
            .collect();
        Ok(Self { matched, caller, overriding, renewable, now, second })
    }

    /// Decides whether the caller may pass. Waits only for a limit that several gateways share.
    ///
    /// # Errors
    /// The request, and the refusal of authentication, of a limit by subject, or of authorization.
    pub fn authorize<O: Observer>(
        self,
        observer: &mut O,
    ) -> impl Future<Output = Result<Permit<'s>, Stopped<'s>>> {
        let decided = self.decide(observer);
        async move {
            // A refusal counts too: it may be a failure.
            match (observer.confirm().await, decided) {
                (Ok(()), decided) => decided,
                (Err(limited), Ok(permit)) => Err(permit.stop(limited)),
                (Err(limited), Err(stopped)) => Err(stopped.instead(limited)),
            }
        }
    }

    fn decide(self, observer: &mut impl Observer) -> Result<Permit<'s>, Stopped<'s>> {
        let Self { matched, caller, overriding, renewable, now, second } = self;
        if renewable {
            observer.renewable();
        }
        let overriding = overriding.map(|overriding| {
            let AuthenticatedOverriding { overriding, caller } = *overriding;
            grant(&matched.overriding_access(&overriding), caller, now, observer)
        });
        let overriding = match overriding.transpose() {
            Ok(overriding) => overriding,
            Err(refusal) => return Err(Stopped::new(matched, refusal)),
        };
        // Credentials that are refused say nothing about a second target, where they would be missing:
        // the client learns what is wrong with them.
        let (caller, tolerated) = match caller {
            Ok(caller) => (caller, None),
            refused => match grant(&matched.access(), refused, now, observer) {
                Ok(grant) => (None, Some(grant)),
                Err(refusal) => return Err(Stopped::new(matched, refusal)),
            },
        };
        let second = match grant_second(&matched, second, now, observer) {
            Ok(second) => second,
            Err(refusal) => return Err(Stopped::new(matched, refusal)),
        };
        let own = match tolerated {
            Some(grant) => Ok(grant),
            None => grant(&matched.access(), Ok(caller), now, observer),
        };
        match own {
            Ok(grant) => Ok(Permit { matched, grant, overriding, second }),
            Err(refusal) => Err(Stopped::new(matched, refusal)),
        }
    }
}

/// Authenticates the caller; with `online`, also if that takes more than what is in memory.
fn recognize<'a>(
    access: &'a AccessRequest<'_>,
    verifier: &'a Verifier<'_>,
    now: u64,
    online: Option<&'a Online<'_>>,
) -> impl Future<Output = Result<Option<Caller>, Unauthenticated>> + use<'a> {
    let caller = authenticate(access, verifier, now);
    let waits = online.filter(|online| !online.is_settled(access, verifier, &caller));
    async move {
        match waits {
            None => caller,
            // Boxed, so that a request keeps no space for what it need not wait for.
            Some(online) => Box::pin(online.resolve(access, verifier, caller)).await,
        }
    }
}

/// Decides every second target; `callers`: of each, in the same order.
fn grant_second(
    matched: &Matched<'_>,
    callers: Vec<Result<Option<Caller>, Unauthenticated>>,
    now: u64,
    observer: &mut impl Observer,
) -> Result<Vec<Grant>, Refusal> {
    let mut grants = Vec::with_capacity(callers.len());
    for (second, caller) in matched.second_targets().iter().zip(callers) {
        observer.second(second);
        let granted = grant(&matched.second_access(second), caller, now, observer);
        grants.push(granted.map_err(|refusal| Refusal::SecondTarget {
            field: second.field().clone(),
            refusal: Box::new(refusal),
        })?);
    }
    Ok(grants)
}

impl<'s> Permit<'s> {
    /// The request.
    pub fn matched(&self) -> &Matched<'s> {
        &self.matched
    }

    /// Its route.
    pub fn route(&self) -> &'s Route {
        self.matched.route()
    }

    /// The caller, if there is one. The upstream learns only about this one.
    pub fn caller(&self) -> Option<&Arc<Remembered<TokenMemo>>> {
        self.grant.caller.as_ref().map(Caller::token)
    }

    /// Whether `Authorization` is forwarded: the route says so, and it is safe.
    ///
    /// Where the route does not read the field, it is a credential for the application, whoever the
    /// caller is. Elsewhere a credential that was not verified is never forwarded together with an
    /// identity, or to an application that would trust it. If credentials are optional and there is
    /// no caller, an application might misread the field as a verified token, so only password
    /// schemes are forwarded. A personal access token is never forwarded: it is good for every
    /// route. What only begins like one is the application's own.
    pub fn forwards_authorization(&self) -> bool {
        let headers = &self.matched.parts().headers;
        if !self.route().forward_authorization || has_personal_token(headers) {
            return false;
        }
        if !self.route().guard.token_from.reads_authorization() {
            return true;
        }
        match &self.grant.caller {
            Some(caller) => caller.place() == Place::Header,
            None if self.reason() == Reason::Anonymous => has_password_scheme(headers),
            None => self.reason() == Reason::Public,
        }
    }

    /// The reason: one of the reasons of a pass, or that of the refusal on a route that does not
    /// enforce.
    pub fn reason(&self) -> Reason {
        self.grant.reason
    }

    /// Returns the request.
    pub(super) fn stop(self, refusal: Refusal) -> Stopped<'s> {
        Stopped::new(self.matched, refusal)
    }

    /// Returns the request, its caller, and why sent credentials count as none.
    pub(super) fn into_parts(self) -> (Matched<'s>, Option<Caller>, Option<Box<Refusal>>) {
        (self.matched, self.grant.caller, self.grant.rejected)
    }
}

/// Counts the caller, then decides. A refusal becomes a grant without a caller if the route does
/// not enforce, or if the endpoint decides for itself.
fn grant(
    access: &AccessRequest<'_>,
    caller: Result<Option<Caller>, Unauthenticated>,
    now: u64,
    observer: &mut impl Observer,
) -> Result<Grant, Refusal> {
    let counted = match caller {
        Ok(caller) => {
            observer.authenticated(access.route, caller.as_ref());
            Ok(Counted::by_subject(access, caller, observer)?)
        }
        Err(unauthenticated) => Err(Refusal::from(unauthenticated)),
    };
    let decided = counted.and_then(|counted| Ok(authorize(access, counted, now)?));
    match decided {
        Ok((caller, reason)) => {
            observer.granted(access.route, reason);
            Ok(Grant { caller, reason, rejected: None })
        }
        Err(refusal) if access.guard.access == Access::Lenient => {
            observer.tolerated(access.route, &refusal);
            observer.granted(access.route, Reason::Public);
            let rejected = Some(Box::new(refusal));
            Ok(Grant { caller: None, reason: Reason::Public, rejected })
        }
        Err(refusal) if !access.guard.enforce && is_tolerated(&refusal) => {
            let reason = refusal.reason();
            observer.tolerated(access.route, &refusal);
            observer.granted(access.route, reason);
            Ok(Grant { caller: None, reason, rejected: None })
        }
        Err(refusal) => Err(refusal),
    }
}

/// Whether `enforce = false` lets a request pass despite this refusal.
fn is_tolerated(refusal: &Refusal) -> bool {
    let reason = refusal.reason();
    let is_access = matches!(reason.status().as_u16(), 401 | 403);
    let is_outage = reason == Reason::KeysUnavailable
        || matches!(
            refusal,
            Refusal::Unauthenticated(
                Unauthenticated::Unavailable(_) | Unauthenticated::RevocationsUnknown { .. }
            )
        );
    is_access && reason != Reason::OriginForeign || is_outage
}

/// Whether there is exactly one `Authorization` field, with a well-formed password scheme (RFC
/// 7617, RFC 7616, RFC 4559).
fn has_password_scheme(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let scheme =
        line.to_str().ok().and_then(|line| line.split_once(' ')).map_or("", |(scheme, _)| scheme);
    ["basic", "digest", "negotiate", "ntlm"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

/// Decides whether a caller, or a request without one, may take a route.
fn authorize(
    access: &AccessRequest<'_>,
    counted: Counted<Option<Caller>>,
    now: u64,
) -> Result<(Option<Caller>, Reason), Denied> {
    let (guard, caller) = (access.guard, counted.into_inner());
    let reason = match &caller {
        None => match guard.access {
            Access::Public => Reason::Public,
            Access::Optional => Reason::Anonymous,
            // Authentication has already refused this; do not rely on it.
            Access::Authenticated | Access::Certificate | Access::Lenient => {
                return Err(Denied::NoCaller);
            }
        },
        Some(caller) => {
            let token = caller.token();
            if !guard.demands.is_empty() {
                token.memo().meets(&guard.demands, || guard.demands.check(token))?;
                if !guard.demands.step_up.is_empty() {
                    guard.demands.step_up.check(token, now).map_err(Denied::StepUp)?;
                }
            }
            match access.route.destination {
                // The endpoint decides what its caller may do.
                Destination::Identity(_) => Reason::Public,
                Destination::Upstream(_) | Destination::External | Destination::Redirect(_)
                    if guard.demands.requires_authorization() =>
                {
                    Reason::Authorized
                }
                Destination::Upstream(_) | Destination::External | Destination::Redirect(_) => {
                    Reason::Authenticated
                }
            }
        }
    };
    Ok((caller, reason))
}
