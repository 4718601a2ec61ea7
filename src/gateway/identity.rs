//! Handing a request to the built-in issuer: what the line knows of it, and nothing else.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::authenticate::{Caller, Place, Unauthenticated, Verifier, credential, origin_of};
use super::authorize::Denied;
use super::body::{Body, ClientBody};
use super::client::ClientAddress;
use super::exchange::Exchange;
use super::navigation::led;
use super::refusal::Refusal;
use super::route::{Destination, NoRoute, Route, TokenPlaces};
use super::snapshot::Snapshot;
use super::target::Target;
use super::{Gateway, count};
use crate::identity::endpoints::{self, Action, CallerNeeded, Endpoint, Found};
use crate::identity::pages::{self, Why};
use crate::identity::request::account_named;
use crate::identity::{Identity, IdentityError, Mount, Origin, Policy, Registration, Request};
use crate::limit::{Cell, Exceeded, KeyKind, Limit};
use crate::token::VerifiedToken;

/// A request that leads to the built-in issuer.
pub(super) struct Visit<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) route: &'a Route,
    pub(super) mount: &'a Mount,
    pub(super) target: &'a Target,
    pub(super) client: &'a ClientAddress,
    pub(super) verifier: Verifier<'a>,
    pub(super) now: u64,
}

impl Gateway {
    /// The endpoint's answer. Where a person asks, a refusal is a page of the same status that says
    /// what to do.
    pub(super) async fn visit(
        &self,
        visit: Visit<'_>,
        parts: Parts,
        body: Incoming,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Refusal> {
        let (policy, mount) = (visit.snapshot.identity.clone(), visit.mount);
        let mut asked = pages::Asked::by(&parts.method, &parts.headers, visit.target.query());
        let answered = self.reach(&visit, parts, body, asked.as_mut(), exchange).await;
        answered.map_err(|refusal| match (asked, policy) {
            (Some(asked), Some(policy)) => page(&asked, &policy, mount, refusal),
            _ => refusal,
        })
    }

    /// Finds the endpoint, and checks what can be checked here: origin, limits, caller, size. What
    /// is left is done on the background runtime.
    async fn reach(
        &self,
        visit: &Visit<'_>,
        parts: Parts,
        body: Incoming,
        mut asked: Option<&mut pages::Asked>,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Refusal> {
        let (Some(identity), Some(policy)) = (self.identity(), &visit.snapshot.identity) else {
            return Err(NoRoute::NotFound.into());
        };
        let (endpoint, parameter) = visit.endpoint(&parts)?;
        if let Some(asked) = &mut asked {
            asked.reached(endpoint);
        }
        let origin = visit.origin(endpoint, &parts)?;
        let (caller, why_nobody) = match visit.caller(endpoint, &parts, origin, None) {
            Ok(caller) => (caller, None),
            Err(refusal) if endpoint.caller == CallerNeeded::Yes => {
                return Err(led(visit.snapshot, true, &parts, visit.target, refusal));
            }
            Err(refusal) => (None, Some(refusal)),
        };
        if let Some(caller) = &caller {
            exchange.recognised(&caller.token);
        }
        let body = read(body, visit.snapshot, exchange).await?;
        if let Some(asked) = &mut asked {
            asked.filled(&body);
        }
        let account = match &caller {
            Some(caller) => Some(caller.token.subject().to_owned()),
            None => account_named(&parts.headers, &body),
        };
        self.count_visit(visit, identity, endpoint, account.as_deref(), exchange)?;
        let request = Request {
            endpoint,
            parameter,
            mount: visit.mount.clone(),
            query: visit.target.query().map(str::to_owned),
            headers: parts.headers,
            body,
            client: visit.client.ip(),
            origin,
            caller: caller.map(|caller| caller.token),
        };
        match identity.answer(request, Arc::clone(policy)).await {
            Ok(response) => Ok(response.map(Body::Bytes)),
            // Credentials that are no good are told from none at all.
            Err(refused)
                if matches!(refused.error, IdentityError::Nobody) && why_nobody.is_some() =>
            {
                Err(why_nobody.unwrap_or(Refusal::Identity(refused)))
            }
            Err(refused) => Err(Refusal::Identity(refused)),
        }
    }

    fn count_built_in(
        &self,
        limit: &Arc<Limit>,
        taken: Result<Cell, Exceeded>,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        let exceeds = || {
            self.telemetry.metrics.rate_limited(limit.name()).inc();
        };
        count(exceeds, limit, taken, exchange)
    }

    /// Counts a request against its address and the account that it names: by the built-in limits,
    /// and by the route's own. One that names no account where it has to, or asks for what the file
    /// does not offer, is refused anyway, costs nothing, and takes no place in a limit.
    fn count_visit(
        &self,
        visit: &Visit<'_>,
        identity: &Identity,
        endpoint: &Endpoint,
        account: Option<&str>,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        let Some(budget) = endpoint.budget else { return Ok(()) };
        let account = account.filter(|_| budget.names_account());
        let is_offered = endpoint.action != Action::Register || visit.may_register();
        if !is_offered || (budget.names_account() && account.is_none()) {
            return Ok(());
        }
        let client = visit.client.ip();
        let own = visit.route.limit.as_ref();
        if own.is_none_or(|limit| !limit.settings().bounds_each_client()) {
            let (limit, taken) = identity.budgets().by_address(budget, client);
            self.count_built_in(&limit, taken, exchange)?;
        }
        let Some(account) = account else { return Ok(()) };
        if let Some((limit, taken)) = identity.budgets().by_account(budget, account) {
            self.count_built_in(&limit, taken, exchange)?;
        }
        match own {
            Some(limit) if limit.settings().key == KeyKind::ClientAndAccount => count(
                || visit.route.count_limited(),
                limit,
                limit.take_client_and_account(client, account),
                exchange,
            ),
            _ => Ok(()),
        }
    }
}

impl Visit<'_> {
    /// Whether people make accounts themselves.
    fn may_register(&self) -> bool {
        let policy = self.snapshot.identity.as_ref();
        policy.is_some_and(|policy| policy.registration == Registration::Open)
    }

    /// The endpoint, and what stands for `{…}` in its path.
    pub(super) fn endpoint(
        &self,
        parts: &Parts,
    ) -> Result<(&'static Endpoint, Option<String>), Refusal> {
        let below = below(self.target.path(), self.route.pattern.segments.len());
        match endpoints::find(parts.method.as_str(), below) {
            Found::Endpoint(endpoint, parameter) => Ok((endpoint, parameter)),
            Found::OtherMethods(allow) => {
                let allow = HeaderValue::try_from(allow).unwrap_or(HeaderValue::from_static(""));
                Err(NoRoute::Method { allow }.into())
            }
            Found::Nowhere => Err(NoRoute::NotFound.into()),
        }
    }

    /// Where the request was made. Nothing that changes something is done for another origin.
    pub(super) fn origin(&self, endpoint: &Endpoint, parts: &Parts) -> Result<Origin, Refusal> {
        let origin = origin_of(parts, self.target, self.client, &self.snapshot.rules.token_names);
        // A person may follow a link from anywhere, and be led through a renewal. What a script of
        // another site asks for is no navigation; and one that says an origin was not made by a
        // link.
        let follows_link = || {
            let mode = parts.headers.get("sec-fetch-mode");
            !parts.headers.contains_key(header::ORIGIN)
                && mode.is_none_or(|mode| mode == "navigate")
        };
        let changes =
            endpoint.changes_something() || (endpoint.action == Action::Renew && !follows_link());
        if changes && origin == Origin::Foreign {
            Err(Unauthenticated::ForeignOrigin.into())
        } else {
            Ok(origin)
        }
    }

    /// Whoever calls, by an access token of ours in the header or the cookie; or by one that is
    /// `assumed`.
    pub(super) fn caller(
        &self,
        endpoint: &Endpoint,
        parts: &Parts,
        origin: Origin,
        assumed: Option<&Arc<VerifiedToken>>,
    ) -> Result<Option<Caller>, Refusal> {
        if endpoint.caller == CallerNeeded::No {
            return Ok(None);
        }
        let caller = if let Some(token) = assumed {
            let token = self.verifier.hold(Arc::clone(token)).map_err(Unauthenticated::from)?;
            Caller { token, place: Place::Header }
        } else {
            let places = TokenPlaces { header: true, cookie: true, query: false };
            let credential = credential(places, &parts.headers, self.target, self.verifier.names)?
                .ok_or(Unauthenticated::Missing)?;
            self.verifier.caller(&credential, self.now)?
        };
        if caller.place == Place::Cookie && endpoint.changes_something() && origin != Origin::Own {
            return Err(Unauthenticated::ForeignOrigin.into());
        }
        if !caller.token.is_ours() {
            return Err(Denied::Issuer(Arc::clone(caller.token.issuer_name())).into());
        }
        Ok(Some(caller))
    }
}

/// What a person is shown instead of a refusal that comes before the visit: nothing else where the
/// route does not lead here.
pub(super) fn shown(
    snapshot: &Snapshot,
    route: &Route,
    parts: &Parts,
    target: &Target,
    refusal: Refusal,
) -> Refusal {
    let (Destination::Identity(mount), Some(policy)) = (&route.destination, &snapshot.identity)
    else {
        return refusal;
    };
    let Some(mut asked) = pages::Asked::by(&parts.method, &parts.headers, target.query()) else {
        return refusal;
    };
    if let Found::Endpoint(endpoint, _) =
        endpoints::find(parts.method.as_str(), below(target.path(), route.pattern.segments.len()))
    {
        asked.reached(endpoint);
    }
    page(&asked, policy, mount, refusal)
}

/// The page of a refusal. A browser that is led elsewhere sees none.
fn page(asked: &pages::Asked, policy: &Policy, mount: &Mount, mut refusal: Refusal) -> Refusal {
    match &mut refusal {
        Refusal::Led { .. } => return refusal,
        Refusal::Identity(refused) => {
            if let Some(page) = refused.page.take() {
                return Refusal::Page { page: *page, refusal: Box::new(refusal) };
            }
        }
        _ => {}
    }
    let detail = refusal.detail();
    let why = Why {
        reason: refusal.reason().as_str(),
        detail: detail.as_deref(),
        retry_after: refusal.retry_after(),
    };
    Refusal::Page { page: pages::refused(asked, &why, policy, mount), refusal: Box::new(refusal) }
}

/// What is left of a decoded path below so many segments.
fn below(path: &str, segments: usize) -> &str {
    let mut slashes = path.match_indices('/').map(|(at, _)| at);
    slashes.nth(segments).map_or("", |at| &path[at..])
}

/// The whole body, which is short.
async fn read(
    body: Incoming,
    snapshot: &Snapshot,
    exchange: &mut Exchange,
) -> Result<Bytes, Refusal> {
    let most = snapshot.max_body.min(LONGEST_BODY);
    let (mut body, upload) =
        ClientBody::new(body, most, snapshot.body_idle_timeout, Vec::new(), None);
    if body.announced().is_some_and(|bytes| bytes > most) {
        return Err(Refusal::BodyTooLarge);
    }
    exchange.reads(upload);
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(super::upstream::UpstreamFailure::from)?.data_ref() {
            read.extend_from_slice(data);
        }
    }
    Ok(read.freeze())
}

/// Bytes of a body that an endpoint reads.
const LONGEST_BODY: u64 = 16 * 1024;
