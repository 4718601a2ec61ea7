//! The output of `explain`: each step of the decision, as it happens.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName};

use super::describe;
use super::wire::MalformedRequest;
use super::{Explanation, Step};
use crate::gateway::Snapshot;
use crate::gateway::authenticate::Caller;
use crate::gateway::authorize::Permit;
use crate::gateway::client::ClientAddress;
use crate::gateway::constant_headers::shown;
use crate::gateway::decide::{Decided, Reply};
use crate::gateway::dialect::Dialect;
use crate::gateway::exchange_ids::ExchangeIds;
use crate::gateway::guard::Access;
use crate::gateway::observer::{LimitKey, Observer};
use crate::gateway::outgoing::Outgoing;
use crate::gateway::refusal::Refusal;
use crate::gateway::route::{Destination, Route};
use crate::gateway::second_target::SecondTarget;
use crate::gateway::target::Target;
use crate::gateway::verdict::Allow;
use crate::limit::{KeyKind, Limit};
use crate::reason::Reason;
use crate::token::{Issuer, VerifiedToken};

/// The maximum number of other matching routes that are listed.
const MAX_RIVALS: usize = 20;

/// Records a decision while it is made.
pub(super) struct Narrator<'s> {
    snapshot: &'s Snapshot,
    explanation: Explanation,
    received: HeaderMap,
    ids: Option<ExchangeIds>,
    leads_to_identity: bool,
    /// The field whose target is decided.
    deciding: Option<HeaderName>,
}

impl<'s> Narrator<'s> {
    pub(super) fn new(snapshot: &'s Snapshot) -> Self {
        Self {
            snapshot,
            explanation: Explanation::default(),
            received: HeaderMap::new(),
            ids: None,
            leads_to_identity: false,
            deciding: None,
        }
    }

    /// The request would be allowed.
    pub(super) fn allowed(mut self, decided: &Decided<'_>) -> Explanation {
        let mut status = 200;
        match decided {
            Decided::Forward(outgoing, upstream) => {
                self.describe_outgoing(outgoing, &upstream.settings().name);
            }
            Decided::Answer(Reply::Endpoint(permit, _)) => self.describe_endpoint(permit),
            Decided::Answer(Reply::Redirect(redirected)) => {
                status = redirected.status().as_u16();
                let address = String::from_utf8_lossy(redirected.address().as_bytes());
                self.ok("redirect", format!("{status} to {address}"));
            }
            Decided::Answer(Reply::Preflight(preflight)) => {
                status = 204;
                let method = preflight.method();
                self.ok("cors", format!("pages of this origin may send {method} here"));
                self.explanation.reason = Reason::Public;
            }
            Decided::Answer(Reply::Logout(request)) => {
                let name = &request.issuer().settings().name;
                let detail = format!(
                    "back-channel logout of issuer `{name}`: the logout token in the body, which is not read here, decides"
                );
                self.ok("logout", detail);
                self.explanation.reason = Reason::Public;
            }
        }
        Explanation { allow: true, status, ..self.explanation }
    }

    /// The asking proxy may forward the request.
    pub(super) fn answered(mut self, allow: &Allow) -> Explanation {
        self.explanation.set =
            allow.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        self.explanation.sent = allow.headers().clone();
        self.ok("answer", "200: the proxy forwards the request with these headers".to_owned());
        Explanation { allow: true, status: 200, ..self.explanation }
    }

    /// The request would be refused.
    pub(super) fn refused(mut self, refusal: &Refusal) -> Explanation {
        let step = self.step_of(refusal);
        self.step(step, "refused", refusal.to_string());
        let (status, reason) = (refusal.status().as_u16(), refusal.reason());
        Explanation { allow: false, status, reason, ..self.explanation }
    }

    /// The HTTP server would not accept it as a request.
    pub(super) fn malformed(mut self, malformed: &MalformedRequest) -> Explanation {
        self.step("head", "refused", malformed.cause.clone());
        let &MalformedRequest { status, reason, .. } = malformed;
        Explanation { allow: false, status, reason, ..self.explanation }
    }

    fn step_of(&self, refusal: &Refusal) -> &'static str {
        match refusal {
            Refusal::HeadersTooLarge | Refusal::Framing(_) => "head",
            Refusal::Verify(_) => "ask",
            Refusal::Target(_) => "target",
            Refusal::NoRoute(_) | Refusal::MethodOverride if !self.leads_to_identity => "route",
            Refusal::NoRoute(_) | Refusal::Identity(_) => "identity",
            Refusal::Logout(_) => "logout",
            Refusal::Limited { .. } => "limit",
            Refusal::Denied(_) => "authorize",
            Refusal::BodyTooLarge => "body",
            Refusal::Redirect { refusal, .. }
            | Refusal::Page { refusal, .. }
            | Refusal::ToPerson { refusal, .. }
            | Refusal::Lacking { refusal, .. }
            | Refusal::ForExpress(refusal)
            | Refusal::AskForPassword(refusal) => self.step_of(refusal),
            Refusal::Unauthenticated(_) => "authenticate",
            Refusal::NoSecondTarget(_) | Refusal::SecondTarget { .. } => "destination",
            _ => "outgoing",
        }
    }

    fn describe_outgoing(&mut self, outgoing: &Outgoing<'_>, upstream: &str) {
        // A field that was removed and set again counts as ours, even if the client had sent the
        // same value.
        let is_new = |name: &HeaderName, value| {
            outgoing.removed().contains(name)
                || !self.received.get_all(name).iter().any(|received| received == value)
        };
        self.explanation.set = outgoing
            .headers()
            .iter()
            .filter(|(name, value)| is_new(name, *value))
            .map(|(name, value)| (name.clone(), shown(value)))
            .collect();
        self.explanation.sent = outgoing.headers().clone();
        self.explanation.sent.values_mut().for_each(|value| *value = shown(value));
        self.explanation.removed = outgoing.removed().to_vec();
        let (method, target) = (outgoing.method(), outgoing.target());
        self.ok("outgoing", format!("{method} {target} to upstream `{upstream}`"));
    }

    fn describe_endpoint(&mut self, permit: &Permit<'_>) {
        let matched = permit.matched();
        let Some(Ok(endpoint)) = matched.endpoint() else { return };
        let row = endpoint.endpoint();
        if row.budget.is_some() {
            self.skipped(
                "limit",
                "the built-in limits of this endpoint are not counted".to_owned(),
            );
        }
        let (method, path) = (&matched.parts().method, matched.target().path());
        let mut detail = format!("the built-in issuer handles {method} {path}: {}", row.summary);
        if row.changes_something() {
            detail.push_str(
                " The response depends on the body and the store, which are not read here.",
            );
        }
        self.ok("identity", detail);
    }

    fn ok(&mut self, step: &'static str, detail: String) {
        self.step(step, "ok", detail);
    }

    fn skipped(&mut self, step: &'static str, detail: String) {
        self.step(step, "skipped", detail);
    }

    fn step(&mut self, step: &'static str, outcome: &'static str, detail: String) {
        self.explanation.steps.push(Step { step, outcome, detail });
    }
}

impl Observer for Narrator<'_> {
    fn asked(&mut self, dialect: Dialect, parts: &Parts) {
        self.ok("ask", describe::asked(dialect, parts));
    }

    fn arrived(&mut self, client: &ClientAddress, headers: &HeaderMap) {
        self.received.clone_from(headers);
        self.ids = Some(ExchangeIds::new(headers, client));
        self.explanation.client = Some(client.ip());
        self.ok("client", describe::client(client));
    }

    fn targeted(&mut self, target: &Target) {
        self.explanation.target = Some(target.path().to_owned());
        self.ok("target", describe::target(target));
    }

    fn logout(&mut self, _: &Issuer) {}

    fn unrouted(&mut self, _: &str, _: &HeaderMap) {}

    fn routed(&mut self, route: &Route, target: &Target, _: &HeaderMap) {
        self.explanation.route = Some(route.name.to_string());
        self.explanation.is_external = matches!(route.destination, Destination::External);
        self.leads_to_identity = matches!(route.destination, Destination::Identity(_));
        self.ok("route", describe::route(route));
        for (rival, why) in self.snapshot.routes.rivals(route, target).take(MAX_RIVALS) {
            self.skipped("route", format!("not `{}`: {why}", rival.name));
        }
        if let Some(names) = describe::names(&route.response_headers) {
            self.ok("response", format!("every response of this route has {names}"));
        }
        match &route.limit {
            None => self.skipped("limit", "the route has no limit".to_owned()),
            Some(limit) if limit.settings().key == KeyKind::ClientAndAccount => self.skipped(
                "limit",
                format!("limit `{}` would count the account named in the body", limit.name()),
            ),
            Some(_) => {}
        }
    }

    fn second(&mut self, second: &SecondTarget<'_>) {
        self.ok("destination", describe::second(second));
        self.deciding = Some(second.field().clone());
    }

    async fn confirm(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    fn count(&mut self, _: &Route, limit: &Arc<Limit>, key: LimitKey<'_>) -> Result<(), Refusal> {
        let by = match key {
            LimitKey::Client(client) => format!("client {}", client.ip()),
            LimitKey::Subject(caller) => format!("subject `{}`", caller.token().subject()),
        };
        let name = limit.name();
        self.skipped(
            "limit",
            format!("limit `{name}` would count this request by {by}; `explain` does not count it"),
        );
        Ok(())
    }

    fn authenticated(&mut self, route: &Route, caller: Option<&Caller>) {
        if self.deciding.is_some() {
            // The caller of the request, whom the other steps describe.
            return;
        }
        match caller {
            Some(caller) => {
                let token: &VerifiedToken = caller.token();
                self.ok("authenticate", describe::caller(token));
                self.explanation.caller = Some(Arc::new(token.clone()));
            }
            None if route.guard.access == Access::Public => {
                self.skipped("authenticate", "the route is public".to_owned());
            }
            None => self.ok(
                "authenticate",
                "no credentials, and the route does not require any".to_owned(),
            ),
        }
    }

    fn renewable(&mut self) {
        let detail = "the session cookie is not looked up here: if its session is live, it would be renewed and the request would have a caller";
        self.skipped("authenticate", detail.to_owned());
    }

    fn tolerated(&mut self, _: &Route, refusal: &Refusal) {
        let step = self.step_of(refusal);
        if self.leads_to_identity {
            self.skipped(
                step,
                format!(
                    "the request continues without a caller, which is optional here: {refusal}"
                ),
            );
        } else {
            self.step(step, "refused", refusal.to_string());
        }
    }

    fn granted(&mut self, route: &Route, reason: Reason) {
        // A refusal that was tolerated for another method or target is what operators look for.
        if self.explanation.reason.is_pass() {
            self.explanation.reason = reason;
        }
        let (name, word) = (&route.name, reason.as_str());
        if reason.is_pass() {
            let why = describe::permit(reason);
            let is_own = self.explanation.route.as_deref() == Some(&**name);
            let detail = match self.deciding.take() {
                Some(field) => format!("route `{name}`, for `{field}`: {why}"),
                None if is_own => why.to_owned(),
                None => format!("route `{name}`, for the overriding method: {why}"),
            };
            self.ok("authorize", detail);
        } else {
            self.deciding = None;
            self.ok(
                "enforce",
                format!("would be refused ({word}), but route `{name}` has `enforce = false`"),
            );
        }
    }

    fn ids(&mut self) -> &ExchangeIds {
        let client = self.explanation.client.unwrap_or([0, 0, 0, 0].into());
        self.ids.get_or_insert_with(|| ExchangeIds::begin(client))
    }
}
