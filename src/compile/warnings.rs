//! Warnings about valid configurations that are probably not intended.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use http::Method;
use percent_encoding::percent_decode_str;
use toml::Spanned;

use super::Compiler;
use super::cookie_domain::takes_cookies;
use super::destination::leads_to_identity;
use super::routes::Named;
use crate::config::Problem;
use crate::config::file::{Route as Written, Text};
use crate::gateway::guard::Access;
use crate::gateway::route::{Destination, HostPattern, Route, RouteTable};
use crate::gateway::upstream::Upstream;
use crate::identity::policy::is_this_machine;
use crate::identity::{Mount, endpoints};
use crate::limit::Limit;

impl Compiler<'_> {
    pub(super) fn warn_about_unused(&mut self, upstreams: &Named<Upstream>, limits: &Named<Limit>) {
        let used = |of: fn(&Written) -> Option<&Text>| -> HashSet<&str> {
            self.file
                .route
                .iter()
                .filter_map(|row| of(row.get_ref()))
                .map(|name| name.get_ref().as_str())
                .collect()
        };
        let (used_upstreams, used_limits) =
            (used(|route| route.upstream.as_ref()), used(|route| route.limit.as_ref()));
        let unused_upstreams = self.file.upstream.keys().filter(|name| {
            upstreams.contains_key(name.get_ref())
                && !used_upstreams.contains(name.get_ref().as_str())
        });
        let unused_limits = self.file.limit.keys().filter(|name| {
            limits.contains_key(name.get_ref()) && !used_limits.contains(name.get_ref().as_str())
        });
        let (unused_upstreams, unused_limits) = (
            unused_upstreams.map(|name| ("upstream", name)),
            unused_limits.map(|name| ("limit", name)),
        );
        let unused: Vec<_> = unused_upstreams.chain(unused_limits).collect();
        for (kind, name) in unused {
            self.problems.push(
                Problem::warning(name.span(), format!("no route uses {kind} `{}`", name.get_ref()))
                    .help("remove it, or name it in a route"),
            );
        }
    }

    /// Warns about valid configurations that are probably not intended (CONTRACT §2, rules 3 and
    /// 7).
    pub(super) fn warn_about_routes(&mut self, table: &RouteTable, written: &[&Spanned<Written>]) {
        self.warn_about_every_issuer(table, written);
        self.warn_about_public_neighbours(table, written);
    }

    /// Routes that accept callers of every issuer although there are several.
    fn warn_about_every_issuer(&mut self, table: &RouteTable, written: &[&Spanned<Written>]) {
        if self.file.issuer_names().len() < 2 {
            return;
        }
        for route in table.routes() {
            let takes_tokens = !matches!(route.guard.access, Access::Public | Access::Certificate);
            if takes_tokens && route.guard.demands.issuers.is_none() {
                self.problems.push(
                    Problem::warning(path_of(written, route.index), format!("route `{}` accepts callers of every issuer", route.name))
                        .help("name them with `issuers = […]`: the same subject or role may mean someone else at another issuer"),
                );
            }
        }
    }

    /// Public routes that capture, or surround, requests that a protected route should protect.
    fn warn_about_public_neighbours(&mut self, table: &RouteTable, written: &[&Spanned<Written>]) {
        let place = |index: usize| path_of(written, index);
        // Indexed by path, so that a table of many thousand routes is scanned once.
        let mut with_host: HashMap<(String, bool), &Route> = HashMap::new();
        let mut subtrees: HashMap<(&str, &HostPattern, String), &Route> = HashMap::new();
        for route in table.routes().iter().filter(|route| route.guard.access == Access::Public) {
            let shape = route.pattern.shape(route.pattern.segments.len());
            // Whoever follows a redirect meets the route there.
            let exposes = !matches!(route.destination, Destination::Redirect(_));
            if exposes && route.pattern.host != HostPattern::Any {
                with_host.insert((shape.clone(), route.pattern.subtree), route);
            }
            if let (true, Some(upstream)) = (route.pattern.subtree, route.destination.upstream()) {
                subtrees.insert((&upstream.settings().name, &route.pattern.host, shape), route);
            }
        }
        let undecided: HashSet<&str> = self
            .file
            .upstream
            .iter()
            .filter(|(_, upstream)| upstream.path_case.is_none() && upstream.builtin.is_none())
            .map(|(name, _)| name.get_ref().as_str())
            .collect();
        for route in table.routes().iter().filter(|route| route.guard.access != Access::Public) {
            let upstream =
                route.destination.upstream().map_or("", |upstream| &upstream.settings().name);
            let length = route.pattern.segments.len();
            for depth in 0..=length {
                let shape = route.pattern.shape(depth);
                let subtree = with_host.get(&(shape.clone(), true));
                let exact =
                    if depth == length { with_host.get(&(shape.clone(), false)) } else { None };
                if let (Some(public), HostPattern::Any) = (subtree.or(exact), &route.pattern.host) {
                    self.problems.push(
                        Problem::warning(
                            place(public.index),
                            format!("on its host, this public route captures requests of the protected route `{}`", route.name),
                        )
                        .related(place(route.index), "protected on every host")
                        .help("add this host to the protected route if it should apply there"),
                    );
                }
                if depth == length || !undecided.contains(upstream) || !route.pattern.has_letters()
                {
                    continue;
                }
                // If its own host lacks a path, a request falls through to the routes for every
                // host.
                let own = subtrees.get(&(upstream, &route.pattern.host, shape.clone()));
                if let Some(public) =
                    own.or_else(|| subtrees.get(&(upstream, &HostPattern::Any, shape)))
                {
                    self.problems.push(
                        Problem::warning(
                            place(public.index),
                            format!("this public subtree surrounds the protected route `{}`", route.name),
                        )
                        .related(place(route.index), "an application that ignores case would treat other spellings as this path")
                        .help("set `path_case = \"insensitive\"` in the upstream's section if it does, or \"sensitive\" if it does not"),
                    );
                }
            }
        }
    }

    /// Mailed links, `jwks_uri` and the metadata start with `issuer`, so a route has to lead from
    /// there to the built-in issuer.
    pub(super) fn warn_about_mounts(&mut self, table: &RouteTable, written: &[&Spanned<Written>]) {
        let Some(section) = &self.file.identity else { return };
        let mounts: Vec<(&Route, &Mount)> = table
            .routes()
            .iter()
            .filter_map(|route| match &route.destination {
                Destination::Identity(mount) => Some((route, mount)),
                Destination::Upstream(_) | Destination::External | Destination::Redirect(_) => None,
            })
            .collect();
        let Some(&(first, _)) = mounts.first() else {
            // A route with a problem of its own is not in the table.
            if !self.file.route.iter().any(|route| leads_to_identity(route.get_ref())) {
                self.problems.push(
                    Problem::warning(
                        section.span(),
                        "no route leads to the built-in issuer: login is impossible, and its links are broken",
                    )
                    .help("add a `[[route]]` with `path = \"/auth/*\"` and `identity = true`, where `issuer` ends in \"/auth\""),
                );
            }
            return;
        };
        self.warn_about_methods(&mounts, written);
        let Some(issuer) = &section.get_ref().issuer else { return };
        // An invalid URL is reported elsewhere.
        let Ok(url) = issuer.get_ref().parse::<http::Uri>() else { return };
        let Some(host) = url.host() else { return };
        let path = percent_decode_str(url.path().trim_end_matches('/')).decode_utf8_lossy();
        let wanted = Mount::new(path.split('/').skip(1));
        let answers = |(route, mount): &(&Route, &Mount)| {
            **mount == wanted && route.pattern.host.matches(&host.to_ascii_lowercase())
        };
        if !mounts.iter().any(answers) {
            let place = written
                .get(first.index)
                .map_or(0..0, |row| row.get_ref().path.as_ref().map_or(row.span(), Spanned::span));
            self.problems.push(
                Problem::warning(
                    issuer.span(),
                    "the built-in issuer is not reachable at its URL: mailed links and `jwks_uri` are broken",
                )
                .related(place, "it is reachable below this path")
                .help("write the URL of that route: its host, and its path without `/*`"),
            );
        }
    }

    /// Browsers that come to the gateway itself by http keep no login of an issuer on https.
    pub(super) fn warn_about_plain_http(&mut self, table: &RouteTable) {
        let written =
            self.file.identity.as_ref().and_then(|section| section.get_ref().issuer.as_ref());
        let elsewhere = |issuer: &&Text| {
            let uri = issuer.get_ref().parse::<http::Uri>().unwrap_or_default();
            uri.scheme_str() == Some("https") && !uri.host().is_some_and(is_this_machine)
        };
        let Some(issuer) = written.filter(elsewhere) else { return };
        let server = &self.file.server;
        // A proxy in front may terminate TLS, or ask by itself.
        let is_behind_proxy = !server.trusted_proxies.is_empty() || self.file.verify.is_some();
        if server.tls.is_some() || is_behind_proxy || !table.routes().iter().any(takes_cookies) {
            return;
        }
        self.problems.push(
            Problem::warning(
                issuer.span(),
                "the gateway serves http:// only, and no proxy in front of it is known: browsers that come this way keep no login",
            )
            .help(
                "set `[server] tls`, or list the proxy that terminates TLS in `trusted_proxies`; to try it out, write \"http://localhost:8080/auth\"",
            ),
        );
    }

    /// Without an interval, the tabs of a browser end their own session.
    pub(super) fn warn_about_single_use(&mut self, table: &RouteTable) {
        let written = self.file.identity.as_ref().map(Spanned::get_ref);
        let Some(interval) = written.and_then(|written| written.refresh_reuse_interval.as_ref())
        else {
            return;
        };
        let is_zero =
            humantime::parse_duration(interval.get_ref()).is_ok_and(|time| time.is_zero());
        if is_zero && table.routes().iter().any(takes_cookies) {
            self.problems.push(
                Problem::warning(
                    interval.span(),
                    "two requests of a browser at the same moment end its session, and the person is logged out",
                )
                .help("remove it for the default of 10 seconds; \"0s\" is for clients that send one refresh at a time"),
            );
        }
    }

    /// Each endpoint has its own method. Methods that no route of a mount allows make endpoints
    /// unreachable.
    fn warn_about_methods(&mut self, mounts: &[(&Route, &Mount)], written: &[&Spanned<Written>]) {
        for (at, (route, mount)) in mounts.iter().enumerate() {
            let is_same = |other: &&(&Route, &Mount)| {
                other.1 == *mount && other.0.pattern.host == route.pattern.host
            };
            if mounts[..at].iter().any(|other| is_same(&other)) {
                continue;
            }
            let lets_through = |method: &Method| {
                mounts[at..]
                    .iter()
                    .filter(is_same)
                    .any(|(route, _)| route.pattern.methods.contain(method))
            };
            let missing = [Method::GET, Method::POST, Method::DELETE]
                .into_iter()
                .filter(|method| !lets_through(method));
            for method in missing {
                let lost: BTreeSet<&str> = endpoints::all()
                    .filter(|lost| lost.method == method.as_str())
                    .map(|lost| lost.path)
                    .collect();
                let lost =
                    lost.into_iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ");
                let row = written.get(route.index).map(|row| row.get_ref());
                let span =
                    row.and_then(|row| row.methods.as_ref().map(Spanned::span)).unwrap_or_default();
                self.problems.push(
                    Problem::warning(span, format!("the built-in issuer receives no {method} here: {lost} cannot be reached"))
                        .help("remove `methods`, since the endpoints check the method themselves, or add the missing ones"),
                );
            }
        }
    }
}

/// The position of a route's path in the file.
fn path_of(written: &[&Spanned<Written>], index: usize) -> Range<usize> {
    written
        .get(index)
        .map_or(0..0, |row| row.get_ref().path.as_ref().map_or(row.span(), Spanned::span))
}
