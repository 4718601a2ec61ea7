//! The route table: which requests go where, and who may make them.
//!
//! Host, then path, then method: an exact host before a wildcard before none, an exact path before
//! a subtree, longer before shorter, a literal before `{x}`. The order in the file never matters,
//! and a method never falls through to a less specific path.

use std::collections::HashMap;
use std::sync::Arc;

use fnv::FnvHashMap;
use http::{HeaderValue, Method};
use prometheus_client::metrics::counter::Counter;

use super::constant_headers::ConstantHeaders;
use super::cors::Cors;
use super::guard::{Guard, RecentDemands};
use super::headers::IdentityHeaders;
use super::redirect::Redirect;
use super::stream_rule::StreamRule;
use super::target::{Ambiguity, Relaxations, Target};
use super::upstream::Upstream;
use crate::identity::Mount;
use crate::limit::Limit;
use crate::telemetry::metrics::RouteMetrics;

/// A route of the table.
#[derive(Debug)]
pub struct Route {
    /// The index in the table; set by [`RouteTable::new`].
    pub index: usize,
    /// Log field and metric label.
    pub name: Arc<str>,
    /// The requests that it matches.
    pub pattern: Pattern,
    /// Its requirements for callers.
    pub guard: Guard,
    /// Checked before authentication, or after it for a limit by subject.
    pub limit: Option<Arc<Limit>>,
    /// Counts how often `limit` was exceeded.
    pub limited: Option<Counter>,
    /// The destination of its requests.
    pub destination: Destination,
    /// What the upstream learns about the caller.
    pub identity_headers: Arc<IdentityHeaders>,
    /// What else the upstream receives.
    pub set_headers: ConstantHeaders,
    /// What every response has.
    pub response_headers: ConstantHeaders,
    /// The pages of other origins that may read the responses.
    pub cors: Option<Box<Cors>>,
    /// Forward `Authorization`.
    pub forward_authorization: bool,
    /// The number of leading path segments to remove.
    pub strip_segments: usize,
    /// The ambiguities that the application needs.
    pub permitted: Relaxations,
    /// Forward method override fields, and decide for both methods.
    pub method_override: bool,
    /// How long its streams may last.
    pub streams: StreamRule,
    /// The counters of the route.
    pub metrics: RouteMetrics,
}

impl Route {
    /// Refuses a request of the wrong listener: external routes are decided on the `[verify]`
    /// listener, and no others are.
    ///
    /// # Errors
    /// [`NoRoute::OtherListener`].
    pub fn check_listener(&self, is_verify: bool) -> Result<(), NoRoute> {
        let is_external = matches!(self.destination, Destination::External);
        if is_external == is_verify {
            return Ok(());
        }
        Err(NoRoute::OtherListener(Arc::clone(&self.name), is_external))
    }

    /// Counts that its limit was exceeded.
    pub fn count_limited(&self) {
        if let Some(limited) = &self.limited {
            limited.inc();
        }
    }
}

/// The destination of a route.
#[derive(Clone, Debug)]
pub enum Destination {
    /// An application.
    Upstream(Arc<Upstream>),
    /// The built-in issuer.
    Identity(Mount),
    /// An application to which another proxy forwards the request after it has asked.
    External,
    /// Another address, which the client gets.
    Redirect(Redirect),
}

impl Destination {
    /// The application, if the destination is one.
    pub fn upstream(&self) -> Option<&Arc<Upstream>> {
        match self {
            Self::Upstream(upstream) => Some(upstream),
            Self::Identity(_) | Self::External | Self::Redirect(_) => None,
        }
    }
}

/// The requests that a route matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The host.
    pub host: HostPattern,
    /// The segments of the path, decoded.
    pub segments: Vec<Segment>,
    /// Whether the route also matches everything below its path.
    pub subtree: bool,
    /// The methods.
    pub methods: Methods,
    /// Whether paths are compared case-insensitively.
    pub fold_case: bool,
}

/// The host of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This name, in lower case.
    Exact(Box<str>),
    /// Every name that ends with this, such as `.example.com`.
    Suffix(Box<str>),
    /// Every host.
    Any,
}

impl HostPattern {
    /// Whether this pattern matches a request's host.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            Self::Any => true,
        }
    }

    /// The rank of the host: the greater rank wins.
    fn rank(&self) -> (u8, usize) {
        match self {
            Self::Exact(_) => (2, 0),
            Self::Suffix(suffix) => (1, suffix.len()),
            Self::Any => (0, 0),
        }
    }
}

/// A segment of a route's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// This text.
    Literal(Box<str>),
    /// `{x}`: any text that is not empty.
    Any,
}

/// A set of methods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Every method.
    All,
    /// These methods; `GET` includes `HEAD`.
    Only(Vec<Method>),
}

impl Methods {
    /// These methods, and `HEAD` if `GET` is among them.
    pub fn only(mut methods: Vec<Method>) -> Self {
        if methods.contains(&Method::GET) && !methods.contains(&Method::HEAD) {
            methods.push(Method::HEAD);
        }
        Self::Only(methods)
    }

    /// Whether `method` is among them.
    pub fn contain(&self, method: &Method) -> bool {
        match self {
            Self::All => true,
            Self::Only(methods) => methods.contains(method),
        }
    }

    /// Whether both sets have a method in common.
    pub fn overlap(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, Self::Only(methods)) | (Self::Only(methods), Self::All) => {
                !methods.is_empty()
            }
            (Self::All, Self::All) => true,
            (Self::Only(one), Self::Only(other)) => one.iter().any(|method| other.contains(method)),
        }
    }
}

/// Why no route matches a request.
#[derive(Debug, thiserror::Error)]
pub enum NoRoute {
    /// No route matches this host and path.
    #[error("no route has this host and path")]
    NotFound,
    /// The listener does not decide about this route.
    #[error("{}", other_listener(.0, *.1))]
    OtherListener(Arc<str>, bool),
    /// No route of this path accepts the method.
    #[error("the path has routes, but none for this method")]
    Method {
        /// The value of the `Allow` field in the response.
        allow: HeaderValue,
    },
    /// The route does not permit a relaxation that was needed to match it.
    #[error("{0}, which route `{1}` does not permit")]
    NotPermitted(Ambiguity, Arc<str>),
    /// No route matches, and the path is not canonical.
    #[error("{0}")]
    Ambiguous(Ambiguity),
}

fn other_listener(name: &str, is_external: bool) -> String {
    if is_external {
        format!("route `{name}` is external: only the [verify] listener decides about it")
    } else {
        format!("route `{name}` is not external: the [verify] listener does not decide about it")
    }
}

/// All routes of a snapshot.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    exact: FnvHashMap<Box<str>, HostTable>,
    suffix: FnvHashMap<Box<str>, HostTable>,
    any: HostTable,
    /// The mounts of the built-in issuer, by host.
    mounts: Vec<(HostPattern, Mount)>,
}

/// Two routes that match the same requests: the index of the earlier one, and of the one that
/// cannot be added.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The route that is kept.
    pub taken: usize,
    /// The route that could never be chosen.
    pub refused: usize,
}

impl RouteTable {
    /// Builds the table. Of routes that match the same requests ([`conflicts`]), it keeps the first
    /// in the file.
    pub fn new(mut routes: Vec<Route>) -> Self {
        let mut table = Self::default();
        let mut demands = RecentDemands::default();
        for (index, route) in routes.iter_mut().enumerate() {
            route.index = index;
            route.guard.demands = demands.deduplicate(&route.guard.demands);
            let host = match &route.pattern.host {
                HostPattern::Exact(name) => table.exact.entry(name.clone()).or_default(),
                HostPattern::Suffix(name) => table.suffix.entry(name.clone()).or_default(),
                HostPattern::Any => &mut table.any,
            };
            if let Destination::Identity(mount) = &route.destination {
                table.mounts.push((route.pattern.host.clone(), mount.clone()));
            }
            let trie = if route.pattern.fold_case { &mut host.folded } else { &mut host.literal };
            trie.insert(&route.pattern, index);
        }
        table.routes = routes;
        table
    }

    /// All routes, in the order of the file.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Finds the one route for a request.
    pub fn find_route(&self, method: &Method, target: &Target) -> Result<&Route, NoRoute> {
        let not_canonical = || target.relaxed().first_beyond(Relaxations::NONE);
        let Some(terminal) = self.hosts(target.host()).find_map(|host| host.find(target.path()))
        else {
            return Err(not_canonical().map_or(NoRoute::NotFound, NoRoute::Ambiguous));
        };
        let chosen = terminal
            .routes
            .iter()
            .filter_map(|&index| self.routes.get(index))
            .find(|route| route.pattern.methods.contain(method));
        let Some(route) = chosen else {
            return Err(not_canonical().map_or_else(
                || NoRoute::Method { allow: self.allow(terminal) },
                NoRoute::Ambiguous,
            ));
        };
        match target.relaxed().first_beyond(route.permitted) {
            Some(ambiguity) => Err(NoRoute::NotPermitted(ambiguity, Arc::clone(&route.name))),
            None => Ok(route),
        }
    }

    /// The mount of the built-in issuer on a host; `None`: the host has none. An empty host, which
    /// is not known, has the only one.
    pub fn mount(&self, host: &str) -> Option<&Mount> {
        if let (true, [(_, mount)]) = (host.is_empty(), &self.mounts[..]) {
            return Some(mount);
        }
        let here = self.mounts.iter().filter(|(pattern, _)| pattern.matches(host));
        here.max_by_key(|(pattern, _)| pattern.rank()).map(|(_, mount)| mount)
    }

    /// The other routes that match this host and path, for `explain`, each with the reason why
    /// `chosen` wins over it.
    pub fn rivals<'a>(
        &'a self,
        chosen: &'a Route,
        target: &'a Target,
    ) -> impl Iterator<Item = (&'a Route, &'static str)> {
        let rivals = self
            .routes
            .iter()
            .filter(move |route| route.index != chosen.index && route.pattern.matches(target));
        rivals.map(move |rival| (rival, chosen.pattern.beats(&rival.pattern)))
    }

    /// The tables to search for a host, the most specific first.
    fn hosts<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a HostTable> {
        let suffixes = host.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| &host[at..]);
        let wildcards = if self.suffix.is_empty() {
            None
        } else {
            Some(suffixes.filter_map(|suffix| self.suffix.get(suffix)))
        };
        self.exact
            .get(host)
            .into_iter()
            .chain(wildcards.into_iter().flatten())
            .chain(std::iter::once(&self.any))
    }

    fn allow(&self, terminal: &Terminal) -> HeaderValue {
        let mut names: Vec<&str> = Vec::new();
        for route in terminal.routes.iter().filter_map(|&index| self.routes.get(index)) {
            if let Methods::Only(methods) = &route.pattern.methods {
                names.extend(methods.iter().map(Method::as_str));
            }
        }
        names.sort_unstable();
        HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""))
    }
}

/// Finds every pattern that matches the same requests as an earlier one.
pub fn conflicts(patterns: &[&Pattern]) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    let mut by_shape: HashMap<(&HostPattern, String, bool), Vec<usize>> = HashMap::new();
    for (index, pattern) in patterns.iter().enumerate() {
        let rivals = by_shape
            .entry((&pattern.host, pattern.shape(usize::MAX), pattern.subtree))
            .or_default();
        if let Some(&taken) = rivals.iter().find(|&&rival| collide(patterns[rival], pattern)) {
            conflicts.push(Conflict { taken, refused: index });
        }
        rivals.push(index);
    }
    conflicts
}

/// Whether two patterns with the same host and the same folded shape both match some request.
fn collide(one: &Pattern, other: &Pattern) -> bool {
    one.methods.overlap(&other.methods)
        && (one.fold_case || other.fold_case || one.segments == other.segments)
}

/// Folds a text as an application that ignores case may do: in upper case, as in Java, `ſ` equals
/// `s` and `ı` equals `i`; in lower case they do not.
fn fold_case(text: &str) -> String {
    text.to_uppercase().to_lowercase()
}

impl Pattern {
    /// The first `length` segments, folded and without the names of parameters: patterns with
    /// different shapes never collide.
    pub fn shape(&self, length: usize) -> String {
        let mut shape = String::new();
        for segment in self.segments.iter().take(length) {
            shape.push('/');
            match segment {
                Segment::Literal(text) => shape.push_str(&fold_case(text)),
                // No literal contains a NUL: targets and route paths with one are refused.
                Segment::Any => shape.push('\0'),
            }
        }
        shape
    }

    /// Whether the host and path of a request match, whatever its method.
    fn matches(&self, target: &Target) -> bool {
        let host = self.host.matches(target.host());
        let mut rest = target.path().strip_prefix('/').map(|path| path.split('/'));
        let mut next = || rest.as_mut().and_then(Iterator::next);
        let fits = |segment: &Segment, received: &str| match segment {
            Segment::Any => !received.is_empty(),
            Segment::Literal(text) if self.fold_case => fold_case(text) == fold_case(received),
            Segment::Literal(text) => **text == *received,
        };
        host && self
            .segments
            .iter()
            .all(|segment| next().is_some_and(|received| fits(segment, received)))
            && (self.subtree || next().is_none())
    }

    /// Why this chosen pattern wins over another one that also matches.
    fn beats(&self, other: &Self) -> &'static str {
        match (self.rank(), other.rank()) {
            _ if self.host.rank() != other.host.rank() => "its host is less specific",
            (own, theirs) if own.exact != theirs.exact => {
                "it is a subtree, and an exact path goes first"
            }
            (own, theirs) if own.segments != theirs.segments => "its path is shorter",
            (own, theirs) if own.literals != theirs.literals => {
                "it has a parameter where the other has a literal"
            }
            _ => "it is for other methods",
        }
    }

    /// Whether the path contains a letter, and so could be written in another case.
    pub fn has_letters(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Literal(text) if text.chars().any(char::is_alphabetic)))
    }

    fn rank(&self) -> Rank {
        let literals = self.segments.iter().take(64).enumerate().fold(0, |mask, (at, segment)| {
            mask | if matches!(segment, Segment::Literal(_)) { 1 << (63 - at) } else { 0 }
        });
        Rank { exact: !self.subtree, segments: self.segments.len(), literals }
    }
}

/// The routes of one host: those with exact comparison, and those that ignore case.
#[derive(Debug, Default)]
struct HostTable {
    literal: Trie,
    folded: Trie,
}

impl HostTable {
    fn find(&self, path: &str) -> Option<&Terminal> {
        let as_written = self.literal.find(path);
        if self.folded.is_empty() {
            return as_written;
        }
        let in_lower_case = self.folded.find(&fold_case(path));
        match (as_written, in_lower_case) {
            (Some(one), Some(other)) => Some(if one.rank >= other.rank { one } else { other }),
            (one, other) => one.or(other),
        }
    }
}

/// How specific a match is; the greater wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    exact: bool,
    segments: usize,
    /// Bit 63 is for the first segment: from the left, a literal wins over `{x}`.
    literals: u64,
}

/// Routes with the same path, which differ in their methods.
#[derive(Debug, Default)]
struct Terminal {
    rank: Rank,
    routes: Vec<usize>,
}

/// A tree of paths by segment.
#[derive(Debug, Default)]
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// Clients can look up what they like, but only the file adds names: a simple hash is enough.
    literal: FnvHashMap<Box<str>, usize>,
    any: Option<usize>,
    exact: Option<Terminal>,
    subtree: Option<Terminal>,
}

impl Trie {
    fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn insert(&mut self, pattern: &Pattern, route: usize) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for segment in &pattern.segments {
            let next = self.nodes.len();
            let node = &mut self.nodes[at];
            let child = match segment {
                Segment::Literal(text) => {
                    let text = if pattern.fold_case {
                        fold_case(text).into_boxed_str()
                    } else {
                        text.clone()
                    };
                    *node.literal.entry(text).or_insert(next)
                }
                Segment::Any => *node.any.get_or_insert(next),
            };
            if child == next {
                self.nodes.push(Node::default());
            }
            at = child;
        }
        let node = &mut self.nodes[at];
        let terminal = if pattern.subtree { &mut node.subtree } else { &mut node.exact };
        let terminal =
            terminal.get_or_insert_with(|| Terminal { rank: pattern.rank(), routes: Vec::new() });
        terminal.routes.push(route);
    }

    fn find(&self, path: &str) -> Option<&Terminal> {
        let mut best = None;
        self.search(self.nodes.first()?, path.strip_prefix('/'), &mut best);
        best
    }

    /// Searches below `node` for a match of `rest`; returns true once no better one can be found.
    fn search<'a>(
        &'a self,
        node: &'a Node,
        rest: Option<&str>,
        best: &mut Option<&'a Terminal>,
    ) -> bool {
        if let Some(subtree) = &node.subtree
            && best.is_none_or(|best| best.rank < subtree.rank)
        {
            *best = Some(subtree);
        }
        let Some(rest) = rest else {
            if let Some(exact) = &node.exact {
                // Literals are searched first, so the first exact match is the most specific one.
                *best = Some(exact);
            }
            return node.exact.is_some();
        };
        // Most segments are so short that a faster search would take longer to begin.
        let (segment, after) = match rest.bytes().position(|byte| byte == b'/') {
            Some(end) => (&rest[..end], Some(&rest[end + 1..])),
            None => (rest, None),
        };
        let literal = node.literal.get(segment).and_then(|&child| self.nodes.get(child));
        if literal.is_some_and(|child| self.search(child, after, best)) {
            return true;
        }
        let any = if segment.is_empty() {
            None
        } else {
            node.any.and_then(|child| self.nodes.get(child))
        };
        any.is_some_and(|child| self.search(child, after, best))
    }
}

impl Pattern {
    /// Parses the path of a route as written in the file.
    ///
    /// # Errors
    /// Says what is wrong with the path, in words that can follow "the path".
    pub fn parse_path(path: &str) -> Result<(Vec<Segment>, bool), &'static str> {
        let Some(below) = path.strip_prefix('/') else { return Err("must begin with `/`") };
        let (body, subtree) = match below.strip_suffix('*') {
            Some("") => return Ok((Vec::new(), true)),
            Some(body) => (
                body.strip_suffix('/')
                    .ok_or("may have `*` only as its last segment, as in `/reports/*`")?,
                true,
            ),
            None => (below, false),
        };
        let mut segments = Vec::new();
        for segment in body.split('/') {
            segments.push(match segment {
                "." | ".." => return Err("has a dot segment; requests with one are refused"),
                "" if subtree || segments.len() + 1 < body.split('/').count() => {
                    return Err("has an empty segment; requests with one are refused, or read as if it were not there");
                }
                _ if segment.starts_with('{')
                    && segment.ends_with('}')
                    && segment.len() > 2
                    && !segment[1..segment.len() - 1].contains(['{', '}']) =>
                {
                    Segment::Any
                }
                _ if segment.contains(['{', '}']) => return Err("may have `{x}` only as a whole segment"),
                _ if segment.contains('*') => return Err("may have `*` only as its last segment, as in `/reports/*`"),
                _ if segment.contains(['\\', ';', '?', '#']) || segment.chars().any(char::is_control) => {
                    return Err("has a character that no request path can have after decoding");
                }
                _ => Segment::Literal(segment.into()),
            });
        }
        if segments.len() > 64 {
            return Err("has more than 64 segments");
        }
        Ok((segments, subtree))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::gateway::guard::{Access, TokenPlaces};
    use crate::gateway::upstream::{Application, KeepAlive, UpstreamSettings};
    use crate::telemetry::metrics::Metrics;
    use http::{HeaderMap, Uri, Version};
    use std::time::Duration;

    /// A route without a real destination, for tests of the table.
    pub(in crate::gateway) fn route(
        host: &str,
        path: &str,
        methods: &[&str],
        fold_case: bool,
    ) -> Route {
        let (segments, subtree) = Pattern::parse_path(path).unwrap();
        let host = match host {
            "" => HostPattern::Any,
            _ => host.strip_prefix('*').map_or_else(
                || HostPattern::Exact(host.into()),
                |suffix| HostPattern::Suffix(suffix.into()),
            ),
        };
        let methods = match methods {
            [] => Methods::All,
            _ => Methods::only(methods.iter().map(|method| method.parse().unwrap()).collect()),
        };
        let second = Duration::from_secs(1);
        let upstream = UpstreamSettings {
            name: "echo".into(),
            application: Application::Echo,
            host: None,
            connect_timeout: second,
            response_timeout: second,
            idle_timeout: second,
            keep_idle: Duration::ZERO,
            keep_alive: KeepAlive::Never,
            http2: false,
            max_requests: None,
            total_timeout: None,
            folds_case: fold_case,
            ca: None,
            own_certificate: None,
            server_name: None,
        };
        Route {
            index: 0,
            name: path.into(),
            pattern: Pattern { host, segments, subtree, methods, fold_case },
            guard: Guard {
                access: Access::Authenticated,
                token_from: TokenPlaces { header: true, cookie: false, query: false, basic: false },
                demands: Arc::default(),
                enforce: true,
            },
            limit: None,
            limited: None,
            destination: Destination::Upstream(Arc::new(Upstream::new(upstream, None, 1))),
            identity_headers: Arc::new(IdentityHeaders::default()),
            set_headers: ConstantHeaders::default(),
            response_headers: ConstantHeaders::default(),
            cors: None,
            forward_authorization: false,
            strip_segments: 0,
            permitted: Relaxations::NONE,
            method_override: false,
            streams: StreamRule::default(),
            metrics: Metrics::new().route(path),
        }
    }

    fn find(table: &RouteTable, method: &str, host: &str, path: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_str(host).unwrap());
        let target =
            Target::parse(&Method::GET, &path.parse::<Uri>().unwrap(), Version::HTTP_11, &headers)
                .unwrap();
        match table.find_route(&method.parse().unwrap(), &target) {
            Ok(route) => format!("{} {}", host_text(&route.pattern.host), route.name),
            Err(NoRoute::Method { allow }) => format!("405 {}", allow.to_str().unwrap()),
            Err(NoRoute::NotFound) => "404".into(),
            Err(error) => error.to_string(),
        }
    }

    fn host_text(host: &HostPattern) -> String {
        match host {
            HostPattern::Any => "-".into(),
            HostPattern::Exact(name) => name.to_string(),
            HostPattern::Suffix(name) => format!("*{name}"),
        }
    }

    #[test]
    fn the_most_specific_route_wins_in_any_order_of_the_file() {
        let rows = [
            ("", "/*"),
            ("", "/reports"),
            ("", "/reports/*"),
            ("", "/reports/{id}"),
            ("", "/reports/latest/*"),
            ("", "/{any}/x/y"),
            ("", "/reports/{id}/y"),
            ("a.test", "/reports/*"),
            ("*.test", "/w/*"),
            ("*.b.test", "/w/*"),
        ];
        let cases = [
            ("x", "/", "- /*"),
            ("x", "/reports", "- /reports"),
            ("x", "/reports/", "- /reports/*"),
            ("x", "/reports/7", "- /reports/{id}"),
            // An exact path wins over a subtree, even if the subtree has more literals.
            ("x", "/reports/latest", "- /reports/{id}"),
            ("x", "/reports/latest/z", "- /reports/latest/*"),
            ("x", "/reports/x/y", "- /reports/{id}/y"),
            ("x", "/q/x/y", "- /{any}/x/y"),
            ("x", "/reportsx", "- /*"),
            ("a.test", "/reports", "a.test /reports/*"),
            ("a.test", "/reports/7", "a.test /reports/*"),
            ("a.test", "/w/1", "*.test /w/*"),
            ("c.b.test", "/w", "*.b.test /w/*"),
            ("b.test", "/w", "*.test /w/*"),
            ("a.test", "/other", "- /*"),
            ("test", "/w/1", "- /*"),
        ];
        for reversed in [false, true] {
            let mut routes: Vec<Route> =
                rows.iter().map(|(host, path)| route(host, path, &[], false)).collect();
            if reversed {
                routes.reverse();
            }
            assert_eq!(
                conflicts(&routes.iter().map(|route| &route.pattern).collect::<Vec<_>>()),
                []
            );
            let table = RouteTable::new(routes);
            for (host, path, expected) in cases {
                assert_eq!(find(&table, "GET", host, path), expected, "{host}{path}");
            }
        }
    }

    #[test]
    fn a_method_never_falls_through() {
        let routes = vec![
            route("", "/a", &["GET"], false),
            route("", "/a", &["POST", "PUT"], false),
            route("", "/*", &[], false),
        ];
        assert_eq!(conflicts(&routes.iter().map(|route| &route.pattern).collect::<Vec<_>>()), []);
        let table = RouteTable::new(routes);
        assert_eq!(find(&table, "HEAD", "x", "/a"), "- /a");
        assert_eq!(find(&table, "PUT", "x", "/a"), "- /a");
        assert_eq!(find(&table, "DELETE", "x", "/a"), "405 GET, HEAD, POST, PUT");
    }

    #[test]
    fn routes_that_match_the_same_requests_conflict() {
        for (one, other, conflict) in [
            (route("", "/a/{x}", &[], false), route("", "/a/{y}", &[], false), true),
            (route("", "/a", &["GET"], false), route("", "/a", &["HEAD"], false), true),
            (route("", "/a", &["GET"], false), route("", "/a", &["POST"], false), false),
            (route("", "/a", &[], false), route("", "/a/*", &[], false), false),
            (route("", "/a", &[], false), route("h", "/a", &[], false), false),
            (route("", "/A", &[], false), route("", "/a", &[], false), false),
            (route("", "/A", &[], true), route("", "/a", &[], false), true),
            (route("", "/a/b", &[], false), route("", "/a/{x}", &[], false), false),
        ] {
            let names = (one.name.clone(), other.name.clone());
            assert_eq!(
                !conflicts(&[&one.pattern, &other.pattern]).is_empty(),
                conflict,
                "{names:?}"
            );
        }
    }

    #[test]
    fn routes_that_ignore_case_compete_ignoring_case() {
        let table = RouteTable::new(vec![
            route("", "/*", &[], true),
            route("", "/Admin/*", &[], true),
            route("", "/static/*", &[], false),
        ]);

        assert_eq!(find(&table, "GET", "x", "/aDMIN/x"), "- /Admin/*");
        assert_eq!(find(&table, "GET", "x", "/adm%C4%B1n/x"), "- /Admin/*");
        assert_eq!(find(&table, "GET", "x", "/static/x"), "- /static/*");
        assert_eq!(find(&table, "GET", "x", "/STATIC/x"), "- /*");
    }

    #[test]
    fn relaxations_must_be_permitted_by_the_chosen_route() {
        let mut lenient = route("", "/old/*", &[], false);
        lenient.permitted = Relaxations::MERGE_SLASHES;
        let table = RouteTable::new(vec![lenient, route("", "/new/*", &[], false)]);
        assert_eq!(find(&table, "GET", "x", "//old//a"), "- /old/*");
        assert_eq!(
            find(&table, "GET", "x", "/old/a;b"),
            "the path has a parameter, which route `/old/*` does not permit"
        );
        assert_eq!(
            find(&table, "GET", "x", "/new//a"),
            "the path has an empty segment, which route `/new/*` does not permit"
        );
        assert_eq!(find(&table, "GET", "x", "//nowhere"), "the path has an empty segment");
    }

    #[test]
    fn route_paths_are_parsed_or_refused() {
        for path in ["/", "/*", "/a", "/a/", "/a/*", "/{x}", "/{x}/*", "/a b", "/é"] {
            assert!(Pattern::parse_path(path).is_ok(), "{path}");
        }
        for path in [
            "", "a", "/a*", "/*/a", "/a/../b", "/.", "//", "/a//b", "/a//*", "/a{x}", "/{}", "/{x",
            "/a;b", "/a?b", "/a\\b", "/{{x}}",
        ] {
            assert!(Pattern::parse_path(path).is_err(), "{path}");
        }
    }
}
