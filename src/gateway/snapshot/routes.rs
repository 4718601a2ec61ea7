//! `[[route]]` and `[identity_headers]`

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use http::{HeaderName, Method};
use toml::Spanned;

use super::Compiler;
use crate::config::file::Route as Written;
use crate::config::file::Text;
use crate::config::value::{self, ClaimName};
use crate::config::{Problem, Severity};
use crate::gateway::headers::{Claim, IdentityHeaders, LONGEST, METHOD_OVERRIDES, OwnedNames};
use crate::gateway::route::{Access, Conflict, Demands, HostPattern, Methods, Pattern, Route, RouteTable, Segment, TokenPlaces};
use crate::gateway::target::Relaxations;
use crate::gateway::upstream::Upstream;
use crate::limit::{KeyKind, Limit};
use crate::token::{ClaimPath, Issuers};

type Named<T> = BTreeMap<String, Arc<T>>;

impl Compiler<'_> {
    pub(super) fn routes(&mut self, issuers: &Issuers, limits: &Named<Limit>, upstreams: &Named<Upstream>) -> (RouteTable, OwnedNames) {
        if self.file.route.is_empty() {
            self.error(Problem::error(0..0, "there are no routes: every request would be answered with 404").help("add a `[[route]]`"));
        }
        let identity = match &self.file.identity_headers {
            None => IdentityHeaders::default(),
            Some(table) => self.identity_headers(table),
        };
        let identity = Arc::new(identity);
        let mut routes = Vec::with_capacity(self.file.route.len());
        let mut written = Vec::with_capacity(self.file.route.len());
        let mut names: HashSet<String> = HashSet::new();
        let mut places: HashMap<Place<'_>, usize> = HashMap::new();
        for row in &self.file.route {
            *places.entry(place_of(row.get_ref())).or_default() += 1;
        }
        for row in &self.file.route {
            if let Some(route) = self.route(row, issuers, limits, upstreams, &identity, &places) {
                if !names.insert(route.name.to_string()) {
                    let span = row
                        .get_ref()
                        .name
                        .as_ref()
                        .map_or_else(|| row.get_ref().path.as_ref().map_or(row.span(), Spanned::span), Spanned::span);
                    self.error(
                        Problem::error(span, format!("a second route is called `{}`", route.name))
                            .help("give each route a `name` of its own: logs and metrics tell them apart by it"),
                    );
                }
                routes.push(route);
                written.push(row);
            }
        }
        let owned = OwnedNames::new(routes.iter().flat_map(|route| route.identity.names()).chain(identity.names()));
        let (table, conflicts) = RouteTable::new(routes);
        for Conflict { taken, refused } in conflicts {
            let place = |index: usize| written.get(index).map_or(0..0, |row| row.get_ref().path.as_ref().map_or(row.span(), Spanned::span));
            self.error(
                Problem::error(place(refused), "two routes match the same requests")
                    .label("this route can never be chosen")
                    .related(place(taken), "already taken here")
                    .help("give one of them a `host`, other `methods` or a longer path"),
            );
        }
        self.warn_about_routes(&table, &written);
        self.warn_about_unused(upstreams, limits);
        (table, owned)
    }

    fn route(
        &mut self,
        row: &Spanned<Written>,
        issuers: &Issuers,
        limits: &Named<Limit>,
        upstreams: &Named<Upstream>,
        identity: &Arc<IdentityHeaders>,
        places: &HashMap<Place<'_>, usize>,
    ) -> Option<Route> {
        let written = row.get_ref();
        let place = written.path.as_ref().map_or(row.span(), Spanned::span);
        let path = self.path(row);
        let host = match &written.host {
            None => Some(HostPattern::Any),
            Some(text) => self.host(text),
        };
        let methods = match &written.methods {
            None => Some(Methods::All),
            Some(methods) => self.methods(methods),
        };
        let access = match &written.access {
            None => Some(Access::Authenticated),
            Some(text) => self.take(value::choice(
                text,
                &[("authenticated", Access::Authenticated), ("optional", Access::Optional), ("public", Access::Public)],
            )),
        };
        let upstream = self.named(written.upstream.as_ref(), upstreams, "upstream", self.file.upstream.keys());
        if written.upstream.is_none() && written.identity.is_none() {
            self.error(
                Problem::error(place.clone(), "the route has no `upstream`")
                    .help("add `upstream = \"…\"` with the name of an `[upstream.NAME]`"),
            );
        }
        let limit = self.named(written.limit.as_ref(), limits, "limit", self.file.limit.keys());
        let token_from = self.token_places(written.token_from.as_ref());
        let permitted = self.relaxations(written);
        let demands = self.demands(written, issuers, access);
        let identity = match &written.identity_headers {
            None => Arc::clone(identity),
            Some(table) => Arc::new(self.identity_headers(table)),
        };
        let (segments, subtree) = path?;
        let access = access?;
        if access != Access::Public && self.file.issuer.is_empty() {
            self.error(
                Problem::error(place.clone(), "the route needs a caller, but there is no issuer whose tokens are accepted")
                    .help("add an `[issuer.NAME]` section, or open the route with `access = \"public\"`"),
            );
        }
        if access == Access::Public
            && let (Some(text), Some(limit)) = (&written.limit, &limit)
            && limit.settings().key == KeyKind::Subject
        {
            self.error(Problem::error(text.span(), "a public route has no subject to count").help("use a limit with `key = \"client\"`"));
        }
        let strip = written.strip_prefix.as_ref().filter(|strip| *strip.get_ref());
        if let (Some(strip), false) = (strip, subtree) {
            self.error(
                Problem::error(strip.span(), "`strip_prefix` needs a path that ends in `/*`").related(place.clone(), "this path is exact"),
            );
        }
        let name = self.route_name(row, places)?;
        self.note_weakened(&name, written, permitted);
        let upstream = upstream?;
        Some(Route {
            index: 0,
            metrics: self.metrics.route(&name),
            name: name.into(),
            pattern: Pattern {
                host: host?,
                segments: segments.clone(),
                subtree,
                methods: methods?,
                fold_case: upstream.settings().folds_case,
            },
            access,
            demands: demands?,
            token_from: token_from?,
            limit,
            upstream,
            identity,
            forward_authorization: written.forward_authorization,
            strip_segments: if strip.is_some() { segments.len() } else { 0 },
            permitted,
            method_override: written.method_override.as_ref().is_some_and(|flag| *flag.get_ref()),
            enforce: written.enforce.as_ref().is_none_or(|flag| *flag.get_ref()),
        })
    }

    fn path(&mut self, row: &Spanned<Written>) -> Option<(Vec<Segment>, bool)> {
        let Some(text) = &row.get_ref().path else {
            self.error(
                Problem::error(row.span(), "the route has no `path`")
                    .help("add `path = \"/*\"` for everything, or `path = \"/reports/*\"`"),
            );
            return None;
        };
        match Pattern::parse_path(text.get_ref()) {
            Ok(parsed) => {
                let decoded = text.get_ref();
                let escape = decoded.as_bytes().windows(3).any(|window| window[0] == b'%' && window[1..].iter().all(u8::is_ascii_hexdigit));
                if escape {
                    self.error(
                        Problem::error(text.span(), "route paths are written decoded")
                            .help("write the character itself instead of its percent-encoding"),
                    );
                    return None;
                }
                Some(parsed)
            }
            Err(wrong) => {
                self.error(
                    Problem::error(text.span(), format!("the path {wrong}"))
                        .help("a path is `/reports`, `/reports/*` or `/reports/{id}/pages`"),
                );
                None
            }
        }
    }

    fn host(&mut self, text: &Text) -> Option<HostPattern> {
        let lower = text.get_ref().to_ascii_lowercase();
        let valid = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && !name.ends_with('.')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        if let Some(suffix) = lower.strip_prefix('*') {
            if suffix.starts_with('.') && valid(&suffix[1..]) {
                return Some(HostPattern::Suffix(suffix.into()));
            }
        } else if valid(&lower) || (lower.starts_with('[') && lower.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>().is_ok()) {
            return Some(HostPattern::Exact(lower.into()));
        }
        self.error(
            Problem::error(text.span(), format!("`{}` is no host", text.get_ref().escape_debug()))
                .help("write `app.example.com` or `*.example.com`, without scheme, port, path or final dot"),
        );
        None
    }

    fn methods(&mut self, methods: &Spanned<Vec<Text>>) -> Option<Methods> {
        let mut found = Vec::new();
        for text in methods.get_ref() {
            let upper = text.get_ref().to_ascii_uppercase();
            match Method::from_bytes(upper.as_bytes()) {
                Ok(method) if method == Method::CONNECT || method == Method::TRACE => {
                    self.error(Problem::error(text.span(), format!("{method} is never forwarded")).help("remove it"));
                }
                Ok(method) if upper == *text.get_ref() => found.push(method),
                Ok(_) => self.error(Problem::error(text.span(), "methods are written in capitals").help(format!("write \"{upper}\""))),
                Err(_) => self.error(Problem::error(text.span(), "this is no method").help("write a method such as \"GET\" or \"POST\"")),
            }
        }
        if methods.get_ref().is_empty() {
            self.error(
                Problem::error(methods.span(), "`methods` is empty: the route would match nothing").help("remove it for every method"),
            );
        }
        (found.len() == methods.get_ref().len() && !found.is_empty()).then(|| Methods::only(found))
    }

    /// Looks a section up by the name that a route gives.
    fn named<'n, T>(
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
        // A section that was refused has told its own problem.
        if !known.clone().any(|known| known.get_ref() == name.get_ref()) {
            let names: Vec<&str> = known.map(|known| known.get_ref().as_str()).collect();
            let help = match value::nearest(name.get_ref(), names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => format!("add a section `[{kind}.{}]`", name.get_ref()),
                None => format!("there is {}", names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
            };
            self.error(Problem::error(name.span(), format!("there is no `[{kind}.{}]`", name.get_ref())).help(help));
        }
        None
    }

    fn token_places(&mut self, written: Option<&Spanned<Vec<Text>>>) -> Option<TokenPlaces> {
        let mut places = TokenPlaces { header: false, cookie: false, query: false };
        let Some(written) = written else { return Some(TokenPlaces { header: true, ..places }) };
        for text in written.get_ref() {
            match self.take(value::choice(text, &[("header", 'h'), ("cookie", 'c'), ("query", 'q')]))? {
                'h' => places.header = true,
                'c' => places.cookie = true,
                _ => places.query = true,
            }
        }
        if written.get_ref().is_empty() {
            self.error(
                Problem::error(written.span(), "`token_from` is empty: nobody could be recognised")
                    .help("remove it, or write `[\"header\"]`"),
            );
            return None;
        }
        Some(places)
    }

    fn relaxations(&mut self, written: &Written) -> Relaxations {
        let mut permitted = Relaxations::NONE;
        for text in &written.insecure_path {
            if let Some(one) = self.take(value::choice(text, &Relaxations::WORDS)) {
                permitted = permitted.with(one);
            }
        }
        permitted
    }

    fn demands(&mut self, written: &Written, issuers: &Issuers, access: Option<Access>) -> Option<Demands> {
        let before = self.problems.len();
        let asked = [&written.roles, &written.all_roles, &written.scopes, &written.issuers];
        for list in asked.into_iter().flatten() {
            if list.get_ref().is_empty() {
                self.error(
                    Problem::error(list.span(), "the list is empty: nobody could ever pass").help("remove it, or name at least one"),
                );
            }
            for text in list.get_ref().iter().filter(|text| text.get_ref().is_empty()) {
                self.error(Problem::error(text.span(), "an empty name, which no caller can hold").help("remove it"));
            }
        }
        let spans = asked.into_iter().flatten().map(Spanned::span).chain(written.claims.as_ref().map(Spanned::span));
        let spans: Vec<_> = spans.collect();
        match access {
            Some(Access::Public) => {
                for span in spans {
                    self.error(
                        Problem::error(span, "a public route asks nobody who they are").help("remove this, or `access = \"public\"`"),
                    );
                }
            }
            Some(Access::Optional) => {
                for span in spans {
                    self.problems.push(
                        Problem::warning(span, "a request without a token passes all the same")
                            .help("`access = \"optional\"` asks only callers with a token"),
                    );
                }
            }
            Some(Access::Authenticated) | None => {}
        }
        for text in written.scopes.iter().flat_map(toml::Spanned::get_ref).filter(|text| text.get_ref().contains(char::is_whitespace)) {
            self.error(
                Problem::error(text.span(), "a scope has no space in it (RFC 6749 §3.3): nobody could ever pass")
                    .help("write each scope as an item of its own"),
            );
        }
        let claims = self.claims(written);
        let issuers = self.route_issuers(written, issuers);
        let list = |list: &Option<Spanned<Vec<Text>>>| -> Vec<String> {
            list.iter().flat_map(toml::Spanned::get_ref).map(|text| text.get_ref().clone()).collect()
        };
        let sound = !self.problems[before..].iter().any(|problem| problem.severity == Severity::Error);
        sound.then(|| Demands {
            any_role: list(&written.roles),
            all_roles: list(&written.all_roles),
            scopes: list(&written.scopes),
            claims,
            issuers,
        })
    }

    fn claims(&mut self, written: &Written) -> Vec<(ClaimPath, Vec<value::Scalar>)> {
        let mut claims = Vec::new();
        for (name, values) in written.claims.iter().flat_map(toml::Spanned::get_ref) {
            let segments: Vec<String> = name.get_ref().split('.').map(str::to_owned).collect();
            if segments.iter().any(String::is_empty) {
                self.error(
                    Problem::error(name.span(), "a claim name with an empty part")
                        .help("write `tenant`, or `\"realm.tenant\"` for a nested claim"),
                );
            }
            if values.get_ref().is_empty() {
                self.error(Problem::error(values.span(), "the list is empty: nobody could ever pass").help("name at least one value"));
            }
            claims.push((ClaimPath::new(segments), values.get_ref().clone()));
        }
        claims
    }

    fn route_issuers(&mut self, written: &Written, issuers: &Issuers) -> Option<Vec<Arc<str>>> {
        let listed = written.issuers.as_ref()?;
        let mut found = Vec::new();
        for text in listed.get_ref() {
            match issuers.iter().map(|issuer| &issuer.settings().name).find(|name| ***name == **text.get_ref()) {
                Some(name) => found.push(Arc::clone(name)),
                None if self.file.issuer.keys().any(|name| name.get_ref() == text.get_ref()) => {}
                None => {
                    let names: Vec<&str> = self.file.issuer.keys().map(|name| name.get_ref().as_str()).collect();
                    let help = value::nearest(text.get_ref(), names.iter().copied())
                        .map_or_else(|| format!("the issuers are {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
                    self.error(Problem::error(text.span(), format!("there is no `[issuer.{}]`", text.get_ref())).help(help));
                }
            }
        }
        Some(found)
    }

    fn identity_headers(&mut self, table: &BTreeMap<Text, Spanned<ClaimName>>) -> IdentityHeaders {
        let mut headers = Vec::new();
        for (name, claim) in table {
            let segments = self.claim_segments(claim);
            let Some(parsed) = self.identity_name(name) else { continue };
            if let Some(segments) = segments {
                headers.push((parsed, Claim::new(segments)));
            }
        }
        IdentityHeaders::new(headers)
    }

    fn identity_name(&mut self, name: &Text) -> Option<HeaderName> {
        let Ok(parsed) = HeaderName::from_bytes(name.get_ref().as_bytes()) else {
            self.error(Problem::error(name.span(), "this is no header name").help("use letters, digits and `-`, such as `X-Auth-User`"));
            return None;
        };
        if parsed.as_str().len() > LONGEST {
            self.error(Problem::error(name.span(), format!("an identity header's name has at most {LONGEST} bytes")));
            return None;
        }
        let reserved = RESERVED.contains(&parsed.as_str())
            || METHOD_OVERRIDES.contains(&parsed.as_str())
            || ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"].contains(&parsed.as_str());
        if reserved {
            self.error(
                Problem::error(name.span(), format!("`{}` has a meaning of its own and cannot tell who is calling", name.get_ref()))
                    .help("choose a name such as `X-Auth-User`"),
            );
            return None;
        }
        Some(parsed)
    }

    fn route_name(&mut self, row: &Spanned<Written>, places: &HashMap<Place<'_>, usize>) -> Option<String> {
        let written = row.get_ref();
        match &written.name {
            Some(name) if name.get_ref().is_empty() || name.get_ref().len() > 200 || name.get_ref().chars().any(char::is_control) => {
                self.error(Problem::error(name.span(), "a route's name has 1 to 200 printable characters"));
                None
            }
            Some(name) => Some(name.get_ref().clone()),
            None => {
                let host = written.host.as_ref().map_or("", |host| host.get_ref().as_str());
                let mut name = format!("{host}{}", written.path.as_ref()?.get_ref());
                // Routes with one path are told apart by method, and so are their names.
                if let Some(methods) = &written.methods
                    && places.get(&place_of(written)).is_some_and(|routes| *routes > 1)
                {
                    name.push(' ');
                    name.push_str(&methods.get_ref().iter().map(|method| method.get_ref().as_str()).collect::<Vec<_>>().join(","));
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
            self.weakened.push(format!("route `{name}`: enforce = false lets refused requests through without an identity"));
        }
        if written.method_override.as_ref().is_some_and(|flag| *flag.get_ref()) {
            self.weakened.push(format!("route `{name}`: method_override lets the application read another method"));
        }
        if written.access.as_ref().is_some_and(|access| access.get_ref() == "optional") {
            self.weakened.push(format!("route `{name}`: access = \"optional\" lets requests without a token through"));
        }
    }

    fn warn_about_unused(&mut self, upstreams: &Named<Upstream>, limits: &Named<Limit>) {
        let used = |of: fn(&Written) -> Option<&Text>| -> HashSet<&str> {
            self.file.route.iter().filter_map(|row| of(row.get_ref())).map(|name| name.get_ref().as_str()).collect()
        };
        let (used_upstreams, used_limits) = (used(|route| route.upstream.as_ref()), used(|route| route.limit.as_ref()));
        let unused_upstreams = self
            .file
            .upstream
            .keys()
            .filter(|name| upstreams.contains_key(name.get_ref()) && !used_upstreams.contains(name.get_ref().as_str()));
        let unused_limits =
            self.file.limit.keys().filter(|name| limits.contains_key(name.get_ref()) && !used_limits.contains(name.get_ref().as_str()));
        let (unused_upstreams, unused_limits) =
            (unused_upstreams.map(|name| ("upstream", name)), unused_limits.map(|name| ("limit", name)));
        let unused: Vec<_> = unused_upstreams.chain(unused_limits).collect();
        for (kind, name) in unused {
            self.problems.push(
                Problem::warning(name.span(), format!("no route uses {kind} `{}`", name.get_ref()))
                    .help("remove it, or name it in a route"),
            );
        }
    }

    /// What compiles and may still not be what was meant (CONTRACT §2, rules 3 and 7).
    fn warn_about_routes(&mut self, table: &RouteTable, written: &[&Spanned<Written>]) {
        let place = |index: usize| written.get(index).map_or(0..0, |row| row.get_ref().path.as_ref().map_or(row.span(), Spanned::span));
        let several_issuers = self.file.issuer.len() > 1;
        for route in table.routes() {
            if several_issuers && route.access != Access::Public && route.demands.issuers.is_none() {
                self.problems.push(
                    Problem::warning(place(route.index), format!("route `{}` takes callers of every issuer", route.name))
                        .help("name them with `issuers = […]`: the same subject or role may mean somebody else at another issuer"),
                );
            }
        }
        // By path, so that a table of many thousand routes is looked through once.
        let mut with_host: HashMap<(String, bool), &Route> = HashMap::new();
        let mut subtrees: HashMap<(&str, String), &Route> = HashMap::new();
        for route in table.routes().iter().filter(|route| route.access == Access::Public) {
            let shape = route.pattern.shape(route.pattern.segments.len());
            if route.pattern.host != HostPattern::Any {
                with_host.insert((shape.clone(), route.pattern.subtree), route);
            }
            if route.pattern.subtree {
                subtrees.insert((&route.upstream.settings().name, shape), route);
            }
        }
        let undecided: HashSet<&str> = self
            .file
            .upstream
            .iter()
            .filter(|(_, upstream)| upstream.path_case.is_none() && upstream.builtin.is_none())
            .map(|(name, _)| name.get_ref().as_str())
            .collect();
        for route in table.routes().iter().filter(|route| route.access != Access::Public) {
            let upstream = route.upstream.settings().name.as_str();
            let length = route.pattern.segments.len();
            for shape in (0..=length).map(|length| route.pattern.shape(length)) {
                let whole = shape.len() == route.pattern.shape(length).len();
                let subtree = with_host.get(&(shape.clone(), true));
                let exact = if whole { with_host.get(&(shape.clone(), false)) } else { None };
                if let (Some(public), HostPattern::Any) = (subtree.or(exact), &route.pattern.host) {
                    self.problems.push(
                        Problem::warning(
                            place(public.index),
                            format!("on its host, this public route takes requests of the protected route `{}`", route.name),
                        )
                        .related(place(route.index), "protected, for every host")
                        .help("give the protected route this host as well if it should hold there"),
                    );
                }
                if let (Some(public), true, false) =
                    (subtrees.get(&(upstream, shape)), undecided.contains(upstream) && route.pattern.has_letters(), whole)
                {
                    self.problems.push(
                        Problem::warning(
                            place(public.index),
                            format!("this public subtree surrounds the protected route `{}`", route.name),
                        )
                        .related(place(route.index), "an application that folds case would read other spellings as this path")
                        .help("say `path_case = \"insensitive\"` in the upstream's section if it does, or \"sensitive\" if it does not"),
                    );
                }
            }
        }
    }
}

/// The host and path of a route, as written.
type Place<'a> = (Option<&'a str>, Option<&'a str>);

fn place_of(written: &Written) -> Place<'_> {
    (written.host.as_ref().map(|text| text.get_ref().as_str()), written.path.as_ref().map(|text| text.get_ref().as_str()))
}

/// Names that frame, route or describe a message; hop-by-hop names among them (RFC 9110 §7.6.1).
const RESERVED: [&str; 31] = [
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
