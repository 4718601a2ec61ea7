//! The decision for one request, told: the steps of [`Gateway::pass`](super::Gateway) with what
//! each one found. Nothing is sent.
//!
//! `explain` on the command line prints it, and `[[test]]` blocks are held against it. Every step
//! calls what the data path calls.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use serde_json::{Map, Value, json};

use super::authenticate::{Caller, Place, Unauthenticated, Verifier, authenticate};
use super::authorize::{Permit, authorize};
use super::client::{ClientAddress, Peer};
use super::identity::Visit;
use super::navigation::led;
use super::outgoing::{ExchangeIds, Outgoing};
use super::reason::Reason;
use super::refusal::Refusal;
use super::route::{Access, Destination, HostPattern, Methods, Route, Segment};
use super::snapshot::Snapshot;
use super::target::{Ambiguity, Target};
use super::{overridden, permit};
use crate::identity::endpoints::CallerNeeded;
use crate::token::{RevocationList, VerifiedToken};

/// A request that is not made.
#[derive(Clone, Debug)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// An absolute URL, or a path alone.
    pub url: String,
    /// Header fields.
    pub headers: HeaderMap,
    /// The socket's other end.
    pub peer: IpAddr,
    /// A caller that is taken for verified.
    pub assumed: Option<Arc<VerifiedToken>>,
    /// What tokens are held against.
    pub revoked: Arc<RevocationList>,
}

/// What was decided, and how.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Whether the request would be passed on.
    pub allow: bool,
    /// 200, or the status of the refusal.
    pub status: u16,
    /// Why.
    pub reason: Reason,
    /// The name of the route.
    pub route: Option<String>,
    /// The decoded path that was matched.
    pub target: Option<String>,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Who is calling.
    pub caller: Option<Arc<VerifiedToken>>,
    /// Every field that the upstream would see.
    pub sent: HeaderMap,
    /// What the upstream would see that differs from what the client sent.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that the upstream would not see.
    pub removed: Vec<HeaderName>,
    /// What was done, in order.
    pub steps: Vec<Step>,
}

/// One step of the line.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub step: &'static str,
    /// `ok`, `refused` or `skipped`.
    pub outcome: &'static str,
    /// In words.
    pub detail: String,
}

impl Explanation {
    /// As JSON (CONTRACT §1).
    pub fn to_json(&self) -> Value {
        let mut set = Map::new();
        for (name, value) in &self.set {
            set.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into());
        }
        json!({
            "verdict": if self.allow { "allow" } else { "refuse" },
            "status": self.status,
            "reason": self.reason.as_str(),
            "route": self.route,
            "target": self.target,
            "client": self.client.map(|client| client.to_string()),
            "issuer": self.caller.as_ref().map(|caller| caller.issuer_name().to_string()),
            "subject": self.caller.as_ref().map(|caller| caller.subject()),
            "roles": self.caller.as_ref().map(|caller| caller.roles()),
            "headers": { "set": set, "removed": self.removed.iter().map(HeaderName::as_str).collect::<Vec<_>>() },
            "steps": self.steps.iter().map(|step| json!({ "step": step.step, "outcome": step.outcome, "detail": step.detail })).collect::<Vec<_>>(),
        })
    }
}

/// Walks the line for a question. `now` is in Unix seconds.
pub fn explain(snapshot: &Snapshot, question: &Question, now: u64) -> Explanation {
    let mut told = Explanation {
        allow: false,
        status: 0,
        reason: Reason::Public,
        route: None,
        target: None,
        client: None,
        caller: question.assumed.clone(),
        sent: HeaderMap::new(),
        set: Vec::new(),
        removed: Vec::new(),
        steps: Vec::new(),
    };
    let verdict = walk(snapshot, question, now, &mut told);
    told.reason = match &verdict {
        Ok(reason) => *reason,
        Err((step, refusal)) => {
            told.steps.push(Step { step, outcome: "refused", detail: refusal.to_string() });
            refusal.reason()
        }
    };
    told.allow = verdict.is_ok();
    told.status = match &verdict {
        Ok(_) => 200,
        Err((_, refusal)) => refusal.status().as_u16(),
    };
    told
}

/// Routes that also match and are told of.
const RIVALS: usize = 20;

type Failed = (&'static str, Refusal);

fn walk(
    snapshot: &Snapshot,
    question: &Question,
    now: u64,
    told: &mut Explanation,
) -> Result<Reason, Failed> {
    let (parts, tls) =
        request(question).map_err(|ambiguity| ("target", Refusal::Target(ambiguity.into())))?;
    let peer = Peer { address: question.peer.to_canonical(), tls };
    let client = snapshot.proxies.client(&peer, &parts.headers);
    told.client = Some(client.ip());
    told.ok("client", describe_client(&client));

    let target = Target::parse(&parts.method, &parts.uri, parts.version, &parts.headers)
        .map_err(|error| ("target", error.into()))?;
    told.target = Some(target.path().to_owned());
    told.ok("target", describe_target(&target));

    if let Some(issuer) =
        snapshot.logouts.find(&parts.method, &target).map_err(|fault| ("logout", fault.into()))?
    {
        told.ok(
            "logout",
            format!(
                "back-channel logout of issuer `{}`: its logout token decides",
                issuer.settings().name
            ),
        );
        return Ok(Reason::Public);
    }
    let route =
        snapshot.routes.find(&parts.method, &target).map_err(|error| ("route", error.into()))?;
    told.route = Some(route.name.to_string());
    told.ok("route", describe_route(route));
    for (rival, why) in snapshot.routes.rivals(route, &target).take(RIVALS) {
        told.skipped("route", format!("not `{}`: {why}", rival.name));
    }
    let also =
        overridden(snapshot, route, &parts, &target).map_err(|refusal| ("route", refusal))?;
    match &route.limit {
        Some(limit) => told.skipped(
            "limit",
            format!("`{}` would count this request; nothing is counted offline", limit.name()),
        ),
        None => told.skipped("limit", "the route has none".to_owned()),
    }

    if let Some((also, parts)) = &also {
        let caller = recognise(snapshot, also, question, parts, &target, &client, now);
        let missed = missed(also, &caller);
        let permit = permit(also, caller).map_err(|refusal| ("authorize", refusal))?;
        told.passed(&permit, missed, format!("route `{}`, for the overriding method", also.name));
    }
    let caller = recognise(snapshot, route, question, &parts, &target, &client, now);
    match &caller {
        Ok(Some(caller)) => {
            told.ok("authenticate", describe_caller(&caller.token));
            told.caller = Some(Arc::clone(&caller.token));
        }
        Ok(None) if route.access == Access::Public => {
            told.skipped("authenticate", "the route is public".to_owned());
        }
        Ok(None) => told.ok("authenticate", "no credentials, and none are asked for".to_owned()),
        Err(_) => {}
    }
    let step = if caller.is_ok() { "authorize" } else { "authenticate" };
    let missed = missed(route, &caller);
    let permit = permit(route, caller).map_err(|refusal| {
        (step, led(snapshot, route.token_from.cookie, &parts, &target, refusal))
    })?;
    told.passed(&permit, missed, describe_permit(permit.reason()).to_owned());

    let upstream = match &route.destination {
        Destination::Upstream(upstream) => upstream,
        Destination::Identity(mount) => {
            let verifier = verifier(snapshot, question);
            let visit =
                Visit { snapshot, route, mount, target: &target, client: &client, verifier, now };
            visited(&visit, question, &parts, told).map_err(|refusal| ("identity", refusal))?;
            return Ok(permit.reason());
        }
    };
    let before = parts.headers.clone();
    let ids = ExchangeIds::new(&parts.headers, &client);
    let outgoing = Outgoing::prepare(parts, &target, &client, &permit, &ids, &snapshot.rules)
        .map_err(|error| ("outgoing", error.into()))?;
    // What was taken away and set again is ours, also where the client had written the same.
    let differs = |name: &HeaderName, value: &HeaderValue| {
        outgoing.removed().contains(name) || !before.get_all(name).iter().any(|sent| sent == value)
    };
    told.set = outgoing
        .headers()
        .iter()
        .filter(|(name, value)| differs(name, value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    told.sent = outgoing.headers().clone();
    told.removed = outgoing.removed().to_vec();
    told.ok(
        "outgoing",
        format!(
            "{} {} to upstream `{}`",
            outgoing.method(),
            outgoing.target(),
            upstream.settings().name
        ),
    );
    Ok(permit.reason())
}

/// What is asked at an endpoint of the built-in issuer before it does something. What it then finds
/// in the store is not told.
fn visited(
    visit: &Visit<'_>,
    question: &Question,
    parts: &Parts,
    told: &mut Explanation,
) -> Result<(), Refusal> {
    let (endpoint, _) = visit.endpoint(parts)?;
    let origin = visit.origin(endpoint, parts)?;
    match visit.caller(endpoint, parts, origin, question.assumed.as_ref()) {
        Ok(None) => {}
        Ok(Some(caller)) => {
            told.ok("identity", format!("the caller is {}", describe_caller(&caller.token)));
            told.caller = Some(caller.token);
        }
        Err(refusal) if endpoint.caller == CallerNeeded::Yes => {
            return Err(led(visit.snapshot, true, parts, visit.target, refusal));
        }
        Err(refusal) => {
            told.skipped("identity", format!("a caller is welcome, and there is none: {refusal}"));
        }
    }
    told.ok(
        "identity",
        format!(
            "the built-in issuer answers {} {}: {}",
            parts.method,
            visit.target.path(),
            endpoint.summary
        ),
    );
    Ok(())
}

fn verifier<'a>(snapshot: &'a Snapshot, question: &'a Question) -> Verifier<'a> {
    Verifier {
        names: &snapshot.rules.token_names,
        issuers: &snapshot.issuers,
        known: None,
        revoked: &question.revoked,
    }
}

fn recognise(
    snapshot: &Snapshot,
    route: &Route,
    question: &Question,
    parts: &Parts,
    target: &Target,
    client: &ClientAddress,
    now: u64,
) -> Result<Option<Caller>, Refusal> {
    let verifier = verifier(snapshot, question);
    match &question.assumed {
        Some(token) if route.access != Access::Public => {
            let token = verifier.hold(Arc::clone(token)).map_err(Unauthenticated::from)?;
            Ok(Some(Caller { token, place: Place::Header }))
        }
        _ => authenticate(route, parts, target, client, verifier, now).map_err(Refusal::from),
    }
}

/// What of the two steps is refused, softened or not. Without a caller the second one judges
/// nobody.
fn missed(route: &Route, caller: &Result<Option<Caller>, Refusal>) -> Vec<(&'static str, String)> {
    let denied =
        |caller| authorize(route, caller).err().map(|denied| ("authorize", denied.to_string()));
    match caller {
        Ok(caller) => denied(caller.clone()).into_iter().collect(),
        Err(refusal) => [Some(("authenticate", refusal.to_string())), denied(None)]
            .into_iter()
            .flatten()
            .collect(),
    }
}

/// The request as hyper would hand it over, and whether it came over TLS.
fn request(question: &Question) -> Result<(Parts, bool), Ambiguity> {
    // hyper drops a fragment before anybody sees it, so it must be looked for in the text.
    if question.url.contains('#') {
        return Err(Ambiguity::Fragment);
    }
    let (scheme, rest) = question.url.split_once("://").unwrap_or(("http", &question.url));
    let at =
        if question.url.contains("://") { rest.find(['/', '?']).unwrap_or(rest.len()) } else { 0 };
    let (authority, target) = rest.split_at(at);
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let uri: Uri = target.parse().map_err(|_| Ambiguity::PathByte)?;
    let mut request = Request::new(());
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = uri;
    request.headers_mut().clone_from(&question.headers);
    if !request.headers().contains_key(header::HOST) {
        let authority = if authority.is_empty() { "localhost" } else { authority };
        let host = HeaderValue::from_str(authority).map_err(|_| Ambiguity::HostMalformed)?;
        request.headers_mut().insert(header::HOST, host);
    }
    Ok((request.into_parts().0, scheme.eq_ignore_ascii_case("https")))
}

impl Explanation {
    fn ok(&mut self, step: &'static str, detail: String) {
        self.steps.push(Step { step, outcome: "ok", detail });
    }

    /// Both steps let it pass; or a route that does not enforce does, and what it `missed` is told.
    fn passed(&mut self, permit: &Permit<'_>, missed: Vec<(&'static str, String)>, detail: String) {
        let (route, reason) = (permit.route(), permit.reason());
        if reason.is_pass() {
            return self.ok("authorize", detail);
        }
        self.steps.extend(missed.into_iter().map(|(step, detail)| Step {
            step,
            outcome: "refused",
            detail,
        }));
        self.ok(
            "enforce",
            format!(
                "would be refused ({}), but route `{}` does not enforce",
                reason.as_str(),
                route.name
            ),
        );
    }

    fn skipped(&mut self, step: &'static str, detail: String) {
        self.steps.push(Step { step, outcome: "skipped", detail });
    }
}

fn describe_client(client: &ClientAddress) -> String {
    format!("{} over {}: {}", client.ip(), client.scheme().as_str(), client.through())
}

fn describe_target(target: &Target) -> String {
    let relaxed = target.relaxed().to_string();
    let read = if relaxed.is_empty() { String::new() } else { format!(", read with {relaxed}") };
    format!(
        "host `{}`, path `{}`{read}; `{}` is what is sent",
        target.host(),
        target.path(),
        target.sent()
    )
}

fn describe_route(route: &Route) -> String {
    let host = match &route.pattern.host {
        HostPattern::Exact(name) => format!("the exact host `{name}`"),
        HostPattern::Suffix(name) => format!("the wildcard host `*{name}`"),
        HostPattern::Any => "every host".to_owned(),
    };
    let kind = if route.pattern.subtree { "the longest subtree" } else { "an exact path" };
    let methods = match &route.pattern.methods {
        Methods::All => "every method".to_owned(),
        Methods::Only(methods) => methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", "),
    };
    let literal = route
        .pattern
        .segments
        .iter()
        .filter(|segment| matches!(segment, Segment::Literal(_)))
        .count();
    format!("`{}`: {host}, {kind} with {literal} literal segments, {methods}", route.name)
}

fn describe_caller(caller: &VerifiedToken) -> String {
    let roles = if caller.roles().is_empty() {
        "no roles".to_owned()
    } else {
        format!("roles {}", caller.roles().join(", "))
    };
    format!("`{}` of issuer `{}`, {roles}", caller.subject(), caller.issuer_name())
}

fn describe_permit(reason: Reason) -> &'static str {
    match reason {
        Reason::Public => "everybody may",
        Reason::Anonymous => "credentials are optional here",
        Reason::Authenticated => "every caller may",
        _ => "the caller holds what the route asks for",
    }
}
