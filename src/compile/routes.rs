//! `[[route]]` and `[identity_headers]`

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use http::HeaderName;
use toml::Spanned;

use super::Compiler;
use super::destination::leads_to_identity;
use crate::config::file::Route as Written;
use crate::config::file::Text;
use crate::config::value::{self, ClaimName};
use crate::config::{self, Problem};
use crate::gateway::guard::{Access, Demands, Guard};
use crate::gateway::headers::{
    Claim, IdentityHeaders, MAX_NAME, METHOD_OVERRIDES, identity_names, same_folded,
};
use crate::gateway::route::{Conflict, Pattern, Route, RouteTable, conflicts};
use crate::gateway::stream_rule::StreamRule;
use crate::gateway::target::Relaxations;
use crate::gateway::upstream::Upstream;
use crate::limit::{KeyKind, Limit};
use crate::token::Issuers;

/// Compiled sections by name.
pub(super) type Named<T> = BTreeMap<String, Arc<T>>;

/// The compiled sections that routes refer to by name.
struct Sections<'a> {
    issuers: &'a Issuers,
    limits: &'a Named<Limit>,
    upstreams: &'a Named<Upstream>,
    identity: Arc<IdentityHeaders>,
}

impl Compiler<'_> {
    pub(super) fn routes(
        &mut self,
        issuers: &Issuers,
        limits: &Named<Limit>,
        upstreams: &Named<Upstream>,
    ) -> (RouteTable, Vec<HeaderName>) {
        if self.file.route.is_empty() {
            self.error(
                Problem::error(0..0, "there are no routes: every request would get 404")
                    .help("add a `[[route]]`"),
            );
        }
        let identity = match &self.file.identity_headers {
            None => IdentityHeaders::default(),
            Some(table) => self.identity_headers(table),
        };
        let sections = Sections { issuers, limits, upstreams, identity: Arc::new(identity) };
        let mut routes = Vec::with_capacity(self.file.route.len());
        let mut written = Vec::with_capacity(self.file.route.len());
        let mut names: HashSet<String> = HashSet::new();
        let mut places: HashMap<Place<'_>, usize> = HashMap::new();
        for row in &self.file.route {
            *places.entry(host_and_path(row.get_ref())).or_default() += 1;
        }
        // Include routes that have another problem, so that every conflict is reported at once.
        let mut patterns: Vec<(Pattern, &Spanned<Written>)> =
            Vec::with_capacity(self.file.route.len());
        for row in &self.file.route {
            let pattern = self.pattern(row, upstreams);
            patterns.extend(pattern.clone().map(|pattern| (pattern, row)));
            if let Some(route) = self.route(row, pattern, &sections, &places) {
                if !names.insert(route.name.to_string()) {
                    let span =
                        row.get_ref().name.as_ref().map_or_else(|| place(row), Spanned::span);
                    self.error(
                        Problem::error(span, format!("another route is already named `{}`", route.name))
                            .help("give each route its own `name`: logs and metrics identify routes by it"),
                    );
                }
                routes.push(route);
                written.push(row);
            }
        }
        let names = identity_names(
            routes
                .iter()
                .flat_map(|route| route.identity_headers.names())
                .chain(sections.identity.names()),
        );
        self.refuse_reserved_headers(&names);
        let table = RouteTable::new(routes);
        for Conflict { taken, refused } in
            conflicts(&patterns.iter().map(|(pattern, _)| pattern).collect::<Vec<_>>())
        {
            let place = |index: usize| patterns.get(index).map_or(0..0, |(_, row)| place(row));
            self.error(
                Problem::error(place(refused), "two routes match the same requests")
                    .label("this route can never match")
                    .related(place(taken), "already taken here")
                    .help("give one of them a `host`, other `methods` or a longer path"),
            );
        }
        self.warn_about_routes(&table, &written);
        self.warn_about_recursive_methods(&table, &written);
        self.warn_about_mounts(&table, &written);
        self.warn_about_plain_http(&table);
        self.warn_about_single_use(&table);
        self.warn_about_logins(&table, &written);
        self.refuse_hidden_logins(&table, &written);
        self.refuse_redirects_to_themselves(&table, &written);
        self.warn_about_unused(upstreams, limits);
        (table, names)
    }

    fn route(
        &mut self,
        row: &Spanned<Written>,
        pattern: Option<Pattern>,
        sections: &Sections<'_>,
        places: &HashMap<Place<'_>, usize>,
    ) -> Option<Route> {
        let Sections { issuers, limits, upstreams, identity } = sections;
        let written = row.get_ref();
        let place = place(row);
        let access = match &written.access {
            None if leads_to_identity(written) => Some(Access::Public),
            None => Some(Access::Authenticated),
            Some(text) => self.ok_or_report(value::choice(
                text,
                &[
                    ("authenticated", Access::Authenticated),
                    ("optional", Access::Optional),
                    ("public", Access::Public),
                    ("certificate", Access::Certificate),
                ],
            )),
        };
        let destination = self.destination(row, pattern.as_ref(), upstreams);
        let limit =
            self.find_section(written.limit.as_ref(), limits, "limit", self.file.limit.keys());
        let token_from = self.token_places(written.token_from.as_ref(), leads_to_identity(written));
        let token_from = super::tls::token_places(access, token_from);
        let permitted = self.relaxations(written);
        let mut demands = self.demands(written, issuers, access);
        if leads_to_identity(written) {
            // The requirements of the endpoints; each endpoint says itself whether it needs a
            // caller.
            demands = demands.map(|_| Demands::issuer(config::identity::NAME));
        }
        self.warn_about_passwords(written, token_from, demands.as_ref());
        let identity_headers = match &written.identity_headers {
            None => Arc::clone(identity),
            Some(table) => Arc::new(self.identity_headers(table)),
        };
        let (set_headers, response_headers) =
            (self.set_headers(written), self.response_headers(written));
        let access = access?;
        if let (Access::Certificate, Some(text)) = (access, &written.access) {
            self.check_certificate_route(written, text.span());
        }
        let takes_tokens = !matches!(access, Access::Public | Access::Certificate);
        if takes_tokens && self.file.issuer.is_empty() && self.file.identity.is_none() {
            self.error(
                Problem::error(place.clone(), "the route requires a token, but no issuer is configured")
                    .help("add an `[issuer.NAME]` section, or `[identity]`; or open the route with `access = \"public\"`"),
            );
        }
        if access == Access::Public
            && let (Some(text), Some(limit)) = (&written.limit, &limit)
            && limit.settings().key == KeyKind::Subject
        {
            self.error(
                Problem::error(text.span(), "a public route has no subject to count")
                    .help("use a limit with `key = \"client\"`"),
            );
        }
        if let (Some(text), Some(limit), false) =
            (&written.limit, &limit, leads_to_identity(written))
            && limit.settings().key == KeyKind::ClientAndAccount
        {
            self.error(
                Problem::error(text.span(), "only requests to the built-in issuer name an account")
                    .help("use a limit with `key = \"client\"` or `key = \"subject\"`, or `identity = true`"),
            );
        }
        let strip = written.strip_prefix.as_ref().filter(|strip| *strip.get_ref());
        if let (Some(strip), Some(Pattern { subtree: false, .. })) = (strip, &pattern) {
            self.error(
                Problem::error(strip.span(), "`strip_prefix` needs a path that ends in `/*`")
                    .related(place.clone(), "this path is exact"),
            );
        }
        let streams = self.stream_rule(written);
        let name = self.route_name(row, places)?;
        self.note_weakened(&name, written, permitted);
        let pattern = pattern?;
        Some(Route {
            index: 0,
            metrics: self.metrics.route(&name),
            name: name.into(),
            strip_segments: if strip.is_some() { pattern.segments.len() } else { 0 },
            pattern,
            guard: Guard {
                access,
                token_from: token_from?,
                demands: Arc::new(demands?),
                enforce: written.enforce.as_ref().is_none_or(|flag| *flag.get_ref()),
            },
            limited: limit.as_ref().map(|limit| self.metrics.rate_limited(limit.name())),
            limit,
            destination: destination?,
            identity_headers,
            set_headers,
            response_headers,
            cors: self.cors(written),
            forward_authorization: written
                .forward_authorization
                .as_ref()
                .is_some_and(|flag| *flag.get_ref()),
            permitted,
            method_override: written.method_override.as_ref().is_some_and(|flag| *flag.get_ref()),
            streams,
        })
    }

    /// `streams` and `stream_max_age`.
    fn stream_rule(&mut self, written: &Written) -> StreamRule {
        let choices = [("session", false), ("token", true)];
        let ends_with_token = written
            .streams
            .as_ref()
            .and_then(|text| self.ok_or_report(value::choice(text, &choices)))
            .unwrap_or_default();
        let max_age = self.duration(written.stream_max_age.as_ref(), "0s");
        StreamRule { ends_with_token, max_age: Some(max_age).filter(|age| !age.is_zero()) }
    }

    /// Looks up a section by the name in a route.
    pub(super) fn find_section<'n, T>(
        &mut self,
        name: Option<&Text>,
        compiled: &Named<T>,
        kind: &str,
        known: impl Iterator<Item = &'n Text> + Clone,
    ) -> Option<Arc<T>> {
        let name = name?;
        if let Some(found) = compiled.get(name.get_ref()) {
            return Some(Arc::clone(found));
        }
        // An invalid section has already reported its own problem.
        let message = format!("there is no `[{kind}.{}]`", name.get_ref());
        // Several routes may name it: report one cause once.
        let is_reported = self.problems.iter().any(|problem| problem.message == message);
        if !is_reported && !known.clone().any(|known| known.get_ref() == name.get_ref()) {
            let names: Vec<&str> = known.map(|known| known.get_ref().as_str()).collect();
            let help = match value::nearest(name.get_ref(), names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => format!("add a section `[{kind}.{}]`", name.get_ref()),
                None => format!(
                    "there is {}",
                    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
                ),
            };
            self.error(Problem::error(name.span(), message).help(help));
        }
        None
    }

    fn relaxations(&mut self, written: &Written) -> Relaxations {
        let mut permitted = Relaxations::NONE;
        for text in &written.insecure_path {
            if let Some(one) = self.ok_or_report(value::choice(text, &Relaxations::WORDS)) {
                permitted = permitted.with(one);
            }
        }
        permitted
    }

    fn identity_headers(&mut self, table: &BTreeMap<Text, Spanned<ClaimName>>) -> IdentityHeaders {
        let mut headers = Vec::new();
        for (name, claim) in table {
            let segments = self.claim_segments(claim);
            let Some(parsed) = self.identity_name(name) else { continue };
            if headers.iter().any(|(other, _): &(HeaderName, Claim)| {
                same_folded(other.as_str(), parsed.as_str())
            }) {
                self.error(
                    Problem::error(
                        name.span(),
                        format!(
                            "an application may mistake `{}` for another header of this table",
                            name.get_ref()
                        ),
                    )
                    .help("choose names that differ in more than case and punctuation"),
                );
            }
            if let Some(segments) = segments {
                headers.push((parsed, Claim::new(segments)));
            }
        }
        IdentityHeaders::new(headers)
    }

    fn identity_name(&mut self, name: &Text) -> Option<HeaderName> {
        let Ok(parsed) = HeaderName::from_bytes(name.get_ref().as_bytes()) else {
            self.error(
                Problem::error(name.span(), "not a valid header name")
                    .help("use letters, digits and `-`, such as `X-Auth-User`"),
            );
            return None;
        };
        if parsed.as_str().len() > MAX_NAME {
            self.error(Problem::error(
                name.span(),
                format!("an identity header's name can have at most {MAX_NAME} bytes"),
            ));
            return None;
        }
        let own = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        let reserved = RESERVED
            .iter()
            .chain(&METHOD_OVERRIDES)
            .chain(&own)
            .any(|name| same_folded(name, parsed.as_str()));
        if reserved {
            self.error(
                Problem::error(
                    name.span(),
                    format!(
                        "`{}` has its own meaning in HTTP and cannot be an identity header",
                        name.get_ref()
                    ),
                )
                .help("choose a name such as `X-Auth-User`"),
            );
            return None;
        }
        Some(parsed)
    }

    fn route_name(
        &mut self,
        row: &Spanned<Written>,
        places: &HashMap<Place<'_>, usize>,
    ) -> Option<String> {
        let written = row.get_ref();
        match &written.name {
            Some(name)
                if name.get_ref().is_empty()
                    || name.get_ref().len() > 200
                    || name.get_ref().chars().any(char::is_control) =>
            {
                self.error(Problem::error(
                    name.span(),
                    "expected a route name of 1 to 200 printable characters",
                ));
                None
            }
            Some(name) => Some(name.get_ref().clone()),
            None => {
                let host = written.host.as_ref().map_or("", |host| host.get_ref().as_str());
                let mut name = format!("{host}{}", written.path.as_ref()?.get_ref());
                // Routes with the same path differ in their methods, so their names do too.
                if let Some(methods) = &written.methods
                    && places.get(&host_and_path(written)).is_some_and(|routes| *routes > 1)
                {
                    name.push(' ');
                    name.push_str(
                        &methods
                            .get_ref()
                            .iter()
                            .map(|method| method.get_ref().as_str())
                            .collect::<Vec<_>>()
                            .join(","),
                    );
                }
                Some(name)
            }
        }
    }

    fn note_weakened(&mut self, name: &str, written: &Written, permitted: Relaxations) {
        if permitted != Relaxations::NONE {
            self.weakened.push(format!("route `{name}`: insecure_path accepts {permitted}"));
        }
        if written.enforce.as_ref().is_some_and(|enforce| !*enforce.get_ref()) {
            self.weakened.push(format!(
                "route `{name}`: enforce = false lets refused requests through without an identity"
            ));
        }
        if written.method_override.as_ref().is_some_and(|flag| *flag.get_ref()) {
            self.weakened.push(format!(
                "route `{name}`: method_override lets the application use another method"
            ));
        }
        if written.access.as_ref().is_some_and(|access| access.get_ref() == "optional") {
            self.weakened.push(format!(
                "route `{name}`: access = \"optional\" lets requests without a token through"
            ));
        }
    }
}

/// The destination of a route.
pub(super) fn place(row: &Spanned<Written>) -> Range<usize> {
    row.get_ref().path.as_ref().map_or(row.span(), Spanned::span)
}

/// The host and path of a route, as written.
type Place<'a> = (Option<&'a str>, Option<&'a str>);

fn host_and_path(written: &Written) -> Place<'_> {
    (
        written.host.as_ref().map(|text| text.get_ref().as_str()),
        written.path.as_ref().map(|text| text.get_ref().as_str()),
    )
}

/// Names that frame, route or describe a message, including hop-by-hop names (RFC 9110 §7.6.1).
pub(super) const RESERVED: [&str; 38] = [
    "cf-connecting-ip",
    "client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "origin",
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "referer",
    "set-cookie",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-real-ip",
    "x-request-id",
];
