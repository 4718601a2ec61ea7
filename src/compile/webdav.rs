//! Warns where a WebDAV method acts on whole collections and so passes over the route of a part.

use std::collections::{BTreeSet, HashMap};

use http::Method;
use toml::Spanned;

use super::Compiler;
use super::routes::place;
use crate::config::Problem;
use crate::config::file::Route as Written;
use crate::gateway::guard::{Access, Guard};
use crate::gateway::route::{HostPattern, Methods, Route, RouteTable};

/// Methods that act on everything below their target (RFC 4918 §9.1, §9.6.1, §9.8.3, §9.9.2).
const RECURSIVE: [&str; 4] = ["COPY", "MOVE", "DELETE", "PROPFIND"];

/// An upstream speaks WebDAV if a route to it names one of these.
const WEBDAV: [&str; 7] = ["COPY", "MOVE", "PROPFIND", "PROPPATCH", "MKCOL", "LOCK", "MKCALENDAR"];

/// An upstream, a host, and the folded first segments of a path.
type Place<'t> = (&'t str, &'t HostPattern, String);

impl Compiler<'_> {
    /// Routes that allow such a method on a path below which a stricter route is: the application
    /// would do there what that route forbids.
    pub(super) fn warn_about_recursive_methods(
        &mut self,
        table: &RouteTable,
        written: &[&Spanned<Written>],
    ) {
        let upstreams: BTreeSet<&str> = table
            .routes()
            .iter()
            .filter(|route| names_webdav(route))
            .filter_map(upstream)
            .collect();
        if upstreams.is_empty() {
            return;
        }
        let speaks_webdav =
            |route: &&Route| upstream(route).is_some_and(|name| upstreams.contains(name));
        let mut by_place: HashMap<Place<'_>, Vec<&Route>> = HashMap::new();
        for route in table.routes().iter().filter(speaks_webdav) {
            let length = route.pattern.segments.len();
            by_place.entry(key(route, &route.pattern.host, length)).or_default().push(route);
        }
        let mut reported: BTreeSet<usize> = BTreeSet::new();
        for inner in table.routes().iter().filter(speaks_webdav) {
            let length = inner.pattern.segments.len();
            let here = key(inner, &inner.pattern.host, length);
            let peers = by_place.get(&here).map_or(&[][..], Vec::as_slice);
            for depth in 0..length {
                let own = by_place.get(&key(inner, &inner.pattern.host, depth));
                let every = (inner.pattern.host != HostPattern::Any)
                    .then(|| by_place.get(&key(inner, &HostPattern::Any, depth)))
                    .flatten();
                for outer in own.into_iter().chain(every).flatten() {
                    let methods = unchecked(outer, peers);
                    if methods.is_empty() || !reported.insert(outer.index) {
                        continue;
                    }
                    self.warn_about_collection(outer, inner, &methods, written);
                }
            }
        }
    }

    fn warn_about_collection(
        &mut self,
        outer: &Route,
        inner: &Route,
        methods: &[&str],
        written: &[&Spanned<Written>],
    ) {
        let span = |route: &Route| written.get(route.index).map_or(0..0, |row| place(row));
        let message = format!(
            "{} on a collection of this route also acts on what is below it, without the checks of route `{}`",
            methods.join(", "),
            inner.name
        );
        self.error(
            Problem::warning(span(outer), message)
                .related(span(inner), "this route is stricter")
                .help("allow these methods to the same callers on both routes, or keep the stricter collection elsewhere"),
        );
    }
}

/// The recursive methods with which a caller of `outer` passes over `inner`: the routes of one path
/// below it.
fn unchecked(outer: &Route, inner: &[&Route]) -> Vec<&'static str> {
    let allows = |route: &Route, name: &str| {
        Method::from_bytes(name.as_bytes())
            .is_ok_and(|method| route.pattern.methods.contain(&method))
    };
    let passes_over = |name: &&str| {
        allows(outer, name)
            && match inner.iter().find(|route| allows(route, name)) {
                Some(route) => is_stricter(&route.guard, &outer.guard),
                None => true,
            }
    };
    RECURSIVE.into_iter().filter(|name| passes_over(name)).collect()
}

/// Whether some caller who may pass `outer` may not pass `inner`.
fn is_stricter(inner: &Guard, outer: &Guard) -> bool {
    let openness = |access: Access| match access {
        Access::Authenticated | Access::Certificate => 0,
        Access::Optional | Access::Lenient => 1,
        Access::Public => 2,
    };
    openness(inner.access) < openness(outer.access)
        || (inner.enforce && !outer.enforce)
        || (!inner.demands.is_empty() && inner.demands != outer.demands)
}

fn names_webdav(route: &Route) -> bool {
    match &route.pattern.methods {
        Methods::All => false,
        Methods::Only(methods) => methods.iter().any(|method| WEBDAV.contains(&method.as_str())),
    }
}

fn upstream(route: &Route) -> Option<&str> {
    route.destination.upstream().map(|upstream| upstream.settings().name.as_str())
}

fn key<'t>(route: &'t Route, host: &'t HostPattern, depth: usize) -> Place<'t> {
    (upstream(route).unwrap_or_default(), host, route.pattern.shape(depth))
}
