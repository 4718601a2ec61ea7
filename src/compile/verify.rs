//! `[verify]`, and routes with `external = true`.

use std::net::SocketAddr;
use std::ops::Range;

use http::HeaderName;
use ipnet::IpNet;
use toml::Spanned;

use super::Compiler;
use super::routes::place;
use crate::config::file::Route as Written;
use crate::config::{self, Problem, value};
use crate::gateway::dialect::Askers;
use crate::gateway::guard::Access;
use crate::gateway::route::{Destination, HostPattern, Route, RouteTable};

/// Whether another proxy forwards the requests of a route.
pub(super) fn is_external(written: &Written) -> bool {
    written.external.as_ref().is_some_and(|external| *external.get_ref())
}

impl Compiler<'_> {
    /// The addresses of the listener; empty without `[verify]`.
    pub(super) fn verify_addresses(&mut self) -> Option<Vec<SocketAddr>> {
        let Some(section) = &self.file.verify else { return Some(Vec::new()) };
        match &section.get_ref().listen {
            None => Some(vec![([127, 0, 0, 1], 9902).into()]),
            Some(text) => self.ok_or_report(value::listen(text)),
        }
    }

    /// The proxies that may ask.
    pub(super) fn askers(&mut self, names: Vec<HeaderName>) -> Option<Askers> {
        let section = self.file.verify.as_ref()?;
        let written = &section.get_ref().trusted_proxies;
        if written.is_empty() {
            self.error(
                Problem::error(section.span(), "`[verify]` has no `trusted_proxies`: nothing may ask")
                    .help("add the addresses of the proxies that ask: `trusted_proxies = [\"127.0.0.1/32\"]`"),
            );
        }
        if !self.file.route.iter().any(|row| is_external(row.get_ref())) {
            self.error(
                Problem::warning(section.span(), "no route is external: every question is refused")
                    .help("add `external = true` to the routes whose requests another proxy forwards, or remove `[verify]`"),
            );
        }
        let mut networks = Vec::new();
        for text in written {
            let Some(network) = self.ok_or_report(value::network(text)) else { continue };
            if network.prefix_len() == 0 {
                self.error(
                    Problem::error(text.span(), "every peer could ask, and name any client")
                        .help("name the addresses of your proxies"),
                );
            } else if is_wide(network) {
                self.error(
                    Problem::warning(
                        text.span(),
                        format!("`{network}` is a large network: each of its hosts may ask, and name any client"),
                    )
                    .help("name the addresses of your proxies"),
                );
            }
            networks.push(network);
        }
        Some(Askers::new(networks, names))
    }

    /// Refuses keys that only something that forwards requests could apply.
    pub(super) fn check_external(&mut self, row: &Spanned<Written>, external: Range<usize>) {
        let written = row.get_ref();
        if self.file.verify.is_none() {
            self.error(
                Problem::error(external.clone(), "an external route needs a `[verify]` section")
                    .help("add `[verify]` with `trusted_proxies = […]`, the proxies that ask about this route"),
            );
        }
        for (other, key) in [
            (written.upstream.as_ref().map(Spanned::span), "upstream"),
            (
                written.identity.as_ref().filter(|flag| *flag.get_ref()).map(Spanned::span),
                "identity",
            ),
            (written.redirect.as_ref().map(Spanned::span), "redirect"),
        ] {
            let Some(span) = other else { continue };
            self.error(
                Problem::error(span, format!("`{key}` and `external` contradict each other"))
                    .related(external.clone(), "another proxy forwards the requests of this route")
                    .help("keep one of them"),
            );
        }
        let query = written.token_from.iter().flat_map(Spanned::get_ref);
        let query = query.into_iter().find(|place| place.get_ref() == "query");
        let flag = |flag: &Option<Spanned<bool>>| {
            flag.as_ref().filter(|flag| *flag.get_ref()).map(Spanned::span)
        };
        for (span, what) in [
            (query.map(Spanned::span), "`token_from = [\"query\"]`"),
            (flag(&written.forward_authorization), "`forward_authorization`"),
            (flag(&written.strip_prefix), "`strip_prefix`"),
            (flag(&written.method_override), "`method_override`"),
            (written.set_headers.as_ref().map(Spanned::span), "`set_headers`"),
            (written.response_headers.as_ref().map(Spanned::span), "`response_headers`"),
            (written.streams.as_ref().map(Spanned::span), "`streams`"),
            (written.stream_max_age.as_ref().map(Spanned::span), "`stream_max_age`"),
        ] {
            let Some(span) = span else { continue };
            self.error(
                Problem::error(span, format!("{what} has no effect on an external route"))
                    .related(external.clone(), "another proxy forwards the requests of this route")
                    .help("remove it, and configure that proxy"),
            );
        }
    }

    /// Warns about external routes where nobody can log in: the cookies of the built-in issuer are
    /// for its own host, unless `cookie_domain` shares them.
    pub(super) fn warn_about_logins(&mut self, table: &RouteTable, written: &[&Spanned<Written>]) {
        let Some(identity) = self.file.identity.as_ref().map(Spanned::get_ref) else { return };
        let Some(issuer) = &identity.issuer else { return };
        let Ok(uri) = issuer.get_ref().parse::<http::Uri>() else { return };
        let (Some(login), None) = (uri.host(), &identity.cookie_domain) else { return };
        for route in table.routes() {
            let asks = matches!(route.destination, Destination::External)
                && route.guard.access != Access::Public
                && route.guard.token_from.cookie
                && accepts_built_in(route);
            let host = match &route.pattern.host {
                HostPattern::Exact(host) if !host.eq_ignore_ascii_case(login) => host.to_string(),
                HostPattern::Suffix(suffix) => format!("*{suffix}"),
                _ => continue,
            };
            if asks {
                let span = written.get(route.index).map_or(0..0, |row| place(row));
                self.error(
                    Problem::warning(
                        span,
                        format!("browsers do not send `{host}` the cookies of the login at `{login}`: nobody can log in to route `{}`", route.name),
                    )
                    .related(issuer.span(), "the login")
                    .help("set `cookie_domain` in [identity] to the domain that both are in"),
                );
            }
        }
    }
}

/// Whether a route accepts callers of the built-in issuer.
fn accepts_built_in(route: &Route) -> bool {
    let issuers = route.guard.demands.issuers.as_ref();
    issuers.is_none_or(|issuers| issuers.iter().any(|name| **name == *config::identity::NAME))
}

/// Whether a network has more addresses than the proxies of one site need.
fn is_wide(network: IpNet) -> bool {
    network.prefix_len() < if network.addr().is_ipv4() { 16 } else { 48 }
}
