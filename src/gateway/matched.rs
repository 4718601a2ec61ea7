//! A request matched to the configuration: its client, its target and its route.
//!
//! [`Match::resolve`] and [`Matched::asked`] are the first step of the decision and the only makers
//! of [`Matched`]. They read everything that the later steps rely on once: the client's address, the
//! number of fields, the framing, the target, the logout endpoints, the route, the method override,
//! the issuer's endpoint.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, header};

use super::authenticate::{AccessRequest, Unauthenticated, Verifier};
use super::body::Body;
use super::client::{ClientAddress, Peer};
use super::cors::{Cors, asked_method};
use super::dialect::{Asked, Asker};
use super::framing::check_request;
use super::guard::{Access, Guard};
use super::headers::{METHOD_OVERRIDES, same_folded};
use super::observer::Observer;
use super::origin::{loses_login, origin_of};
use super::refusal::Refusal;
use super::route::{Destination, NoRoute, Route};
use super::second_target::{SecondTarget, SecondTargets};
use super::snapshot::Snapshot;
use super::target::{Target, TargetError};
use crate::identity::Origin;
use crate::identity::endpoints::{self, CallerNeeded, Endpoint, Found};
use crate::token::Issuer;

/// The destination of a request.
pub enum Match<'s> {
    /// To a route.
    Route(Matched<'s>),
    /// To the back-channel logout of an issuer.
    Logout(LogoutRequest<'s>),
    /// From a browser, which asks whether a page may send a request.
    Preflight(Preflight<'s>),
}

/// A request and its one route. Only [`Match::resolve`] and [`Matched::asked`] make one.
///
/// ```
/// fn route_of<'a>(matched: &'a portcullis::gateway::matched::Matched<'_>) -> &'a str {
///     &matched.route().name
/// }
/// ```
/// No other code can put a request on a route:
/// ```compile_fail
/// fn reroute<'s>(
///     matched: &mut portcullis::gateway::matched::Matched<'s>,
///     route: &'s portcullis::gateway::route::Route,
/// ) {
///     matched.0.route = route;
/// }
/// ```
///
/// In one block on the heap: the steps after it hand it on, and moving a request head each time
/// would cost more than the block.
#[derive(Debug)]
pub struct Matched<'s>(Box<MatchedParts<'s>>);

/// What a matched request consists of.
#[derive(Debug)]
pub(super) struct MatchedParts<'s> {
    pub(super) parts: Parts,
    pub(super) target: Target,
    pub(super) client: ClientAddress,
    route: &'s Route,
    overriding: Option<Box<Overriding<'s>>>,
    pub(super) second: Option<Box<SecondTargets<'s>>>,
    pub(super) endpoint: Option<Box<Result<MatchedEndpoint, Refusal>>>,
}

/// What an application sees that honours a method override: the other method, and its route.
#[derive(Debug)]
pub(super) struct Overriding<'s> {
    method: Method,
    route: &'s Route,
}

/// The endpoint of the built-in issuer that a request is for.
#[derive(Debug)]
pub struct MatchedEndpoint {
    endpoint: &'static Endpoint,
    parameter: Option<String>,
    origin: Origin,
    /// Whether it would change something for a page of another origin.
    is_forbidden: bool,
    guard: Guard,
}

/// A request to the back-channel logout of an issuer.
#[derive(Debug)]
pub struct LogoutRequest<'s> {
    parts: Box<Parts>,
    issuer: &'s Issuer,
}

/// The question of a browser whether a page of another origin may send a request with this method.
#[derive(Debug)]
pub struct Preflight<'s> {
    cors: &'s Cors,
    method: Method,
}

/// A refused request, and the reason.
#[derive(Debug)]
pub struct Stopped<'s> {
    /// The request.
    pub matched: Matched<'s>,
    /// Why.
    pub refusal: Refusal,
}

impl<'s> Stopped<'s> {
    /// Refuses this request for this reason.
    pub fn new(matched: Matched<'s>, refusal: Refusal) -> Self {
        Self { matched, refusal }
    }

    /// Refuses it for this reason instead.
    pub(super) fn instead(self, refusal: Refusal) -> Self {
        Self { refusal, ..self }
    }
}

impl<'s> Match<'s> {
    /// Parses a request and finds its route. `verifier` and `now`, in Unix seconds: for the name of
    /// the person who reads that there is none.
    ///
    /// # Errors
    /// [`Refusal`]: too many fields, invalid framing, a target that is malformed or ambiguous, no
    /// route, a method override that is not one method or has no route, or a second target that is
    /// not one target or has no route to the same upstream.
    pub fn resolve(
        snapshot: &'s Snapshot,
        peer: &Peer,
        parts: Parts,
        (verifier, now): (&Verifier<'_>, u64),
        observer: &mut impl Observer,
    ) -> Result<Self, Refusal> {
        let client = snapshot.proxies.client(peer, &parts.headers);
        let for_person = |refusal: Refusal| refusal.for_person(&parts.headers, verifier, now);
        let target = read_head(snapshot, &client, &parts, observer).map_err(for_person)?;
        if let Some(issuer) = snapshot.logouts.issuer_at(&parts.method, &target)? {
            observer.logout(issuer);
            return Ok(Self::Logout(LogoutRequest { parts: Box::new(parts), issuer }));
        }
        if let Some(preflight) = Preflight::resolve(snapshot, &parts, &target, observer)? {
            return Ok(Self::Preflight(preflight));
        }
        let route = find_route(snapshot, &parts, &target, observer).map_err(for_person)?;
        route.check_listener(false)?;
        let overriding = Overriding::resolve(snapshot, route, &parts, &target)?.map(Box::new);
        let endpoint = match &route.destination {
            Destination::Upstream(_) | Destination::External | Destination::Redirect(_) => None,
            Destination::Identity(_) => {
                Some(Box::new(MatchedEndpoint::resolve(snapshot, route, &parts, &target, &client)))
            }
        };
        let second = SecondTargets::resolve(&snapshot.routes, route, &parts.headers, &target)?;
        let matched = MatchedParts { parts, target, client, route, overriding, second, endpoint };
        Ok(Self::Route(Matched(Box::new(matched))))
    }
}

impl<'s> Matched<'s> {
    /// Reads the request that a proxy asks about, and finds its route, which must be external.
    /// `announced`: the declared length of the verification request's body, in bytes.
    ///
    /// # Errors
    /// [`Refusal`]: the proxy did not ask as it should, and as for [`Match::resolve`].
    pub fn asked(
        snapshot: &'s Snapshot,
        asker: Asker<'_>,
        parts: Parts,
        announced: Option<u64>,
        observer: &mut impl Observer,
    ) -> Result<Self, Refusal> {
        let Asked { parts, client } = asker.read(parts, announced)?;
        observer.asked(asker.dialect(), &parts);
        let target = read_head(snapshot, &client, &parts, observer)?;
        let route = find_route(snapshot, &parts, &target, observer)?;
        route.check_listener(true)?;
        let second = SecondTargets::resolve(&snapshot.routes, route, &parts.headers, &target)?;
        let (overriding, endpoint) = (None, None);
        let matched = MatchedParts { parts, target, client, route, overriding, second, endpoint };
        Ok(Self(Box::new(matched)))
    }

    /// The route.
    pub fn route(&self) -> &'s Route {
        self.0.route
    }

    /// Host and path.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// The client.
    pub fn client(&self) -> &ClientAddress {
        &self.0.client
    }

    /// The head as it was received.
    pub fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// The endpoint of the built-in issuer, if the route leads to it, or the refusal to reach it.
    pub fn endpoint(&self) -> Option<Result<&MatchedEndpoint, &Refusal>> {
        self.0.endpoint.as_deref().map(Result::as_ref)
    }

    /// The route of the overriding method, until that is taken.
    pub(super) fn overriding_route(&self) -> Option<&'s Route> {
        self.0.overriding.as_ref().map(|overriding| overriding.route)
    }

    /// The second targets.
    pub fn second_targets(&self) -> &[SecondTarget<'s>] {
        self.0.second.as_deref().map_or(&[], SecondTargets::as_slice)
    }

    /// The access question for a second target.
    pub(super) fn second_access<'a>(&'a self, second: &'a SecondTarget<'s>) -> AccessRequest<'a> {
        let route = second.route();
        AccessRequest {
            target: second.target(),
            ..self.access_with(route, &route.guard, second.method())
        }
    }

    /// The access question for the request's own method.
    pub(super) fn access(&self) -> AccessRequest<'_> {
        let guard = match self.0.endpoint.as_deref() {
            Some(Ok(endpoint)) => &endpoint.guard,
            _ => &self.0.route.guard,
        };
        self.access_with(self.0.route, guard, &self.0.parts.method)
    }

    /// Takes the overriding method and its route.
    pub(super) fn take_overriding(&mut self) -> Option<Overriding<'s>> {
        self.0.overriding.take().map(|overriding| *overriding)
    }

    /// The access question for the overriding method.
    pub(super) fn overriding_access<'a>(
        &'a self,
        Overriding { method, route }: &'a Overriding<'s>,
    ) -> AccessRequest<'a> {
        self.access_with(route, &route.guard, method)
    }

    fn access_with<'a>(
        &'a self,
        route: &'a Route,
        guard: &'a Guard,
        method: &'a Method,
    ) -> AccessRequest<'a> {
        AccessRequest {
            route,
            guard,
            method,
            headers: &self.0.parts.headers,
            target: &self.0.target,
            client: &self.0.client,
        }
    }

    /// Takes the refusal of an unknown endpoint, or of a foreign origin.
    pub(super) fn take_endpoint_refusal(&mut self) -> Option<Refusal> {
        match self.0.endpoint.as_deref() {
            Some(Err(_)) => self.0.endpoint.take().and_then(|endpoint| endpoint.err()),
            Some(Ok(endpoint)) if endpoint.is_forbidden => {
                Some(Unauthenticated::ForeignOrigin.into())
            }
            _ => None,
        }
    }

    /// Returns what it consists of.
    pub(super) fn into_parts(self) -> Box<MatchedParts<'s>> {
        self.0
    }
}

impl MatchedEndpoint {
    fn resolve(
        snapshot: &Snapshot,
        route: &Route,
        parts: &Parts,
        target: &Target,
        client: &ClientAddress,
    ) -> Result<Self, Refusal> {
        let below = below(target.path(), route.pattern.segments.len());
        let (endpoint, parameter) = match endpoints::find_endpoint(parts.method.as_str(), below) {
            Found::Endpoint(endpoint, parameter) => (endpoint, parameter),
            Found::OtherMethods(allow) => {
                let allow = HeaderValue::try_from(allow).unwrap_or(HeaderValue::from_static(""));
                return Err(NoRoute::Method { allow }.into());
            }
            Found::Nowhere => return Err(NoRoute::NotFound.into()),
        };
        let names = &snapshot.rules.token_names;
        let origin = origin_of(&parts.headers, target, client, names);
        let access = match endpoint.caller {
            CallerNeeded::No => Access::Public,
            CallerNeeded::Welcome => Access::Lenient,
            CallerNeeded::Yes => Access::Authenticated,
        };
        let guard = Guard { access, ..route.guard.clone() };
        let is_forbidden = endpoint.changes_something() && origin == Origin::Foreign
            || endpoint.opens_session() && loses_login(&parts.headers, names);
        Ok(Self { endpoint, parameter, origin, is_forbidden, guard })
    }

    /// The row of the table of endpoints.
    pub fn endpoint(&self) -> &'static Endpoint {
        self.endpoint
    }

    /// The origin of the request.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The value of `{…}` in its path.
    pub fn into_parameter(self) -> Option<String> {
        self.parameter
    }
}

impl<'s> Preflight<'s> {
    /// Finds the route of the request that a page would send, if the request at hand is a
    /// preflight and that route answers it.
    ///
    /// # Errors
    /// [`Refusal`]: the page is of an origin that the route does not name.
    fn resolve(
        snapshot: &'s Snapshot,
        parts: &Parts,
        target: &Target,
        observer: &mut impl Observer,
    ) -> Result<Option<Self>, Refusal> {
        let Some(method) = asked_method(parts) else { return Ok(None) };
        let Ok(route) = snapshot.routes.find_route(&method, target) else { return Ok(None) };
        let Some(cors) = &route.cors else { return Ok(None) };
        route.check_listener(false)?;
        observer.routed(route, target, &parts.headers);
        if cors.permitted(&parts.headers).is_none() {
            return Err(Unauthenticated::ForeignOrigin.into());
        }
        Ok(Some(Self { cors, method }))
    }

    /// The method of the request that the page would send.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The answer: it may.
    pub(super) fn into_response(self) -> Response<Body> {
        self.cors.preflight(&self.method)
    }
}

impl<'s> LogoutRequest<'s> {
    /// The issuer whose endpoint it is.
    pub fn issuer(&self) -> &'s Issuer {
        self.issuer
    }

    /// The head as it was received.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }
}

impl<'s> Overriding<'s> {
    /// The route for the overriding method, if the chosen route allows such fields: both must let
    /// the request pass.
    fn resolve(
        snapshot: &'s Snapshot,
        route: &Route,
        parts: &Parts,
        target: &Target,
    ) -> Result<Option<Self>, Refusal> {
        if !route.method_override {
            return Ok(None);
        }
        let Some(method) = override_method(&parts.headers)? else { return Ok(None) };
        if method == Method::CONNECT || method == Method::TRACE {
            return Err(TargetError::Method.into());
        }
        let route = snapshot.routes.find_route(&method, target)?;
        Ok(Some(Self { method, route }))
    }
}

/// Checks a head, and parses its target.
pub(super) fn read_head(
    snapshot: &Snapshot,
    client: &ClientAddress,
    parts: &Parts,
    observer: &mut impl Observer,
) -> Result<Target, Refusal> {
    observer.arrived(client, &parts.headers);
    let max_headers = snapshot.limits.max_headers;
    // Few requests come near it: cookies are counted only then.
    if parts.headers.len() > max_headers && field_count(&parts.headers) > max_headers {
        return Err(Refusal::HeadersTooLarge);
    }
    check_request(parts.version, &parts.headers)?;
    let target = Target::parse(&parts.method, &parts.uri, parts.version, &parts.headers)
        .inspect_err(|_| observer.unrouted("", &parts.headers))?;
    observer.targeted(&target);
    Ok(target)
}

/// Finds the one route of a request.
fn find_route<'s>(
    snapshot: &'s Snapshot,
    parts: &Parts,
    target: &Target,
    observer: &mut impl Observer,
) -> Result<&'s Route, Refusal> {
    let route = snapshot
        .routes
        .find_route(&parts.method, target)
        .inspect_err(|_| observer.unrouted(target.host(), &parts.headers))?;
    observer.routed(route, target, &parts.headers);
    Ok(route)
}

/// The number of fields. hyper counts them on HTTP/1.1 only. On HTTP/2 a client may send each
/// cookie as a field of its own (RFC 9113 §8.2.3): those count as one.
fn field_count(headers: &HeaderMap) -> usize {
    let more_cookies = headers.get_all(header::COOKIE).iter().count().saturating_sub(1);
    headers.len() - more_cookies
}

fn override_method(headers: &HeaderMap) -> Result<Option<Method>, Refusal> {
    let mut found = None;
    for (name, value) in headers {
        if !METHOD_OVERRIDES.iter().any(|own| same_folded(own, name.as_str())) {
            continue;
        }
        let upper = value.as_bytes().trim_ascii().to_ascii_uppercase();
        let method = Method::from_bytes(&upper).map_err(|_| Refusal::MethodOverride)?;
        if found.replace(method.clone()).is_some_and(|earlier| earlier != method) {
            return Err(Refusal::MethodOverride);
        }
    }
    Ok(found)
}

/// The rest of a decoded path after this many segments.
fn below(path: &str, segments: usize) -> &str {
    let mut slashes = path.match_indices('/').map(|(at, _)| at);
    slashes.nth(segments).map_or("", |at| &path[at..])
}
