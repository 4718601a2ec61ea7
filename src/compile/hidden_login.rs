//! Detects login pages that other routes of their host hide: a browser that is sent there would be
//! redirected forever.

use std::collections::BTreeSet;

use http::{HeaderMap, Method, Uri, Version};
use toml::Spanned;

use super::Compiler;
use super::routes::place;
use crate::config::Problem;
use crate::config::file::Route as Written;
use crate::gateway::guard::Access;
use crate::gateway::route::{Destination, HostPattern, Route, RouteTable, Segment};
use crate::gateway::target::Target;
use crate::identity::Mount;

/// A host label and a path segment that no configuration uses.
const UNUSED: &str = "portcullis-check";

impl Compiler<'_> {
    /// Looks up, on each host, the route of the login page that browsers are redirected to.
    /// Comparing patterns instead would duplicate the order in which routes are chosen.
    pub(super) fn refuse_hidden_logins(
        &mut self,
        table: &RouteTable,
        written: &[&Spanned<Written>],
    ) {
        let redirecting: Vec<&Route> =
            table.routes().iter().filter(|route| redirects(route)).collect();
        if redirecting.is_empty() {
            return;
        }
        let span = |route: &Route| written.get(route.index).map_or(0..0, |row| place(row));
        let hosts: BTreeSet<String> =
            table.routes().iter().map(|route| example(&route.pattern.host)).collect();
        // Report each pair once, however many hosts have it.
        let mut reported: BTreeSet<(usize, usize)> = BTreeSet::new();
        for host in hosts {
            let Some(mount) = table.mount(&host) else { continue };
            let login = mount.path("/login");
            let Some(winner) = winner(table, &host, &login) else { continue };
            if matches!(winner.destination, Destination::Identity(_)) {
                continue;
            }
            let Some(redirecting) = redirecting
                .iter()
                .find(|route| winner_is(table, &host, route))
                .filter(|route| reported.insert((winner.index, route.index)))
            else {
                continue;
            };
            let mut problem = Problem::error(
                span(winner),
                format!("route `{}` hides the login page `{login}` on its host", winner.name),
            )
            .help(format!(
                "add a route with `{}path = \"{}\"` and `identity = true`",
                at(winner),
                subtree(mount)
            ));
            let identity = table.routes().iter().find(
                |route| matches!(&route.destination, Destination::Identity(found) if found == mount),
            );
            if let Some(identity) = identity {
                problem = problem.related(span(identity), "the login page belongs to this route");
            }
            if redirecting.index != winner.index {
                problem = problem.related(span(redirecting), "this route redirects browsers to it");
            }
            self.error(problem);
        }
    }
}

/// Whether a route redirects a navigation without a session to the login page.
fn redirects(route: &Route) -> bool {
    !matches!(route.destination, Destination::Identity(_))
        && route.guard.access != Access::Public
        && route.guard.token_from.cookie
        && route.guard.enforce
        && route.pattern.methods.contain(&Method::GET)
}

/// A host that a pattern matches; for a wildcard, one that no other pattern names.
pub(super) fn example(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Suffix(suffix) => format!("{UNUSED}{suffix}"),
        HostPattern::Any => format!("{UNUSED}.invalid"),
    }
}

/// Whether this route handles its own path on this host.
fn winner_is(table: &RouteTable, host: &str, route: &Route) -> bool {
    winner(table, host, &example_path(route)).is_some_and(|winner| winner.index == route.index)
}

/// A path that a route matches; below a subtree, one that no other route names.
pub(super) fn example_path(route: &Route) -> String {
    let segments = route.pattern.segments.iter().map(|segment| match segment {
        Segment::Literal(text) => &**text,
        Segment::Any => UNUSED,
    });
    // A mount percent-encodes its segments, as every path requires.
    let path = Mount::new(segments.chain(route.pattern.subtree.then_some(UNUSED))).path("");
    if path.is_empty() { "/".to_owned() } else { path }
}

/// The route for `GET path` on this host.
fn winner<'t>(table: &'t RouteTable, host: &str, path: &str) -> Option<&'t Route> {
    table.find_route(&Method::GET, &target(host, path)?).ok()
}

/// The target of a request for this path on this host.
pub(super) fn target(host: &str, path: &str) -> Option<Target> {
    let uri = Uri::builder().scheme("http").authority(host).path_and_query(path).build().ok()?;
    Target::parse(&Method::GET, &uri, Version::HTTP_2, &HeaderMap::new()).ok()
}

/// The `host` of a route, to be repeated in another one.
fn at(route: &Route) -> String {
    match &route.pattern.host {
        HostPattern::Exact(name) => format!("host = \"{name}\"`, `"),
        HostPattern::Suffix(suffix) => format!("host = \"*{suffix}\"`, `"),
        HostPattern::Any => String::new(),
    }
}

/// The path of the route that leads to the login page.
fn subtree(mount: &Mount) -> String {
    percent_encoding::percent_decode_str(&mount.path("/*")).decode_utf8_lossy().into_owned()
}
