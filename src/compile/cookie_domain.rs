//! `cookie_domain`: one login for several hosts.

use http::{HeaderMap, Method, Uri, Version};

use super::Compiler;
use crate::config::Problem;
use crate::gateway::guard::Access;
use crate::gateway::route::{Destination, HostPattern, Route, RouteTable};
use crate::gateway::target::Target;
use crate::identity::Policy;
use crate::identity::return_to::{Sites, within};

impl Compiler<'_> {
    /// The domain that the cookies are set for, in lower case. Browsers accept it only from hosts
    /// within it, so it must contain the host of the login.
    pub(super) fn cookie_domain(&mut self) -> Option<Box<str>> {
        let identity = self.file.identity.as_ref()?.get_ref();
        let text = identity.cookie_domain.as_ref()?;
        let domain = text.get_ref().to_ascii_lowercase();
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let is_domain = domain.contains('.')
            && domain.split('.').all(is_label)
            && domain.parse::<std::net::IpAddr>().is_err();
        if !is_domain {
            self.error(
                Problem::error(text.span(), "`cookie_domain` is not a domain name")
                    .help("write the name that your hosts end with, such as \"example.com\", without a dot in front, a scheme or a port"),
            );
            return None;
        }
        let issuer = identity.issuer.as_ref()?;
        let uri: Uri = issuer.get_ref().parse().ok()?;
        let host = uri.host()?.to_ascii_lowercase();
        if !within(&domain, &host) {
            self.error(
                Problem::error(
                    text.span(),
                    format!("`cookie_domain` does not contain `{host}`, where people log in"),
                )
                .help("browsers accept a cookie only for a domain that contains the host which sets it")
                .related(issuer.span(), "the host of the login"),
            );
            return None;
        }
        if uri.scheme_str() != Some("https") {
            self.error(
                Problem::error(text.span(), "`cookie_domain` needs an `issuer` with https://")
                    .help("write https://, even if a load balancer terminates TLS")
                    .related(issuer.span(), "the URL of the login"),
            );
            return None;
        }
        if let Some(name) = &self.file.server.token_cookie
            && name.get_ref().to_ascii_lowercase().starts_with("__host-")
        {
            self.error(
                Problem::error(
                    name.span(),
                    "a cookie whose name begins with `__Host-` cannot be set for a domain",
                )
                .help("begin it with `__Secure-`, or remove `cookie_domain`")
                .related(text.span(), "the domain"),
            );
            return None;
        }
        Some(domain.into())
    }

    /// The policy with the hosts of the routes that share its login.
    pub(super) fn sharing_its_login(&mut self, policy: Policy, table: &RouteTable) -> Policy {
        let Some(domain) = policy.cookies.domain.clone() else { return policy };
        let Some(written) = self.file.identity.as_ref().map(toml::Spanned::get_ref) else {
            return policy;
        };
        let (Some(text), Some(issuer)) = (&written.cookie_domain, &written.issuer) else {
            return policy;
        };
        let Ok(uri) = issuer.get_ref().parse::<Uri>() else { return policy };
        let login = format!("{}/login", uri.path().trim_end_matches('/'));
        if !answers_login(table, &uri, &login) {
            self.error(
                Problem::error(issuer.span(), format!("no route with `identity = true` answers {}/login", policy.issuer))
                    .help("browsers of every host within `cookie_domain` are redirected there: add such a route for this host and path"),
            );
        }
        for route in table.routes() {
            let (host, is_outside) = match &route.pattern.host {
                HostPattern::Exact(host) => (host, !within(&domain, host)),
                HostPattern::Suffix(suffix) => {
                    let suffix_host = suffix.trim_start_matches('.');
                    (suffix, !within(&domain, suffix_host) && !within(suffix_host, &domain))
                }
                HostPattern::Any => continue,
            };
            if is_outside && takes_cookies(route) {
                self.error(
                    Problem::warning(
                        text.span(),
                        format!("route `{}` takes cookies, but its host `{host}` is outside `{domain}`", route.name),
                    )
                    .help("browsers do not send it the cookies of this login: nobody can log in there"),
                );
            }
        }
        let hosts = || table.routes().iter().map(|route| &route.pattern.host);
        let names = hosts().filter_map(|host| match host {
            HostPattern::Exact(name) => Some(name.clone()),
            _ => None,
        });
        let suffixes = hosts().filter_map(|host| match host {
            HostPattern::Suffix(suffix) => Some(suffix.clone()),
            _ => None,
        });
        let port = uri.port_u16().filter(|port| *port != 443);
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let sites = Sites::new(&domain, &port, names, suffixes);
        Policy { sites, ..policy }
    }
}

/// Whether browsers are logged in on a route.
pub(super) fn takes_cookies(route: &Route) -> bool {
    matches!(route.destination, Destination::Upstream(_) | Destination::External)
        && route.guard.access != Access::Public
        && route.guard.token_from.cookie
}

/// Whether the built-in issuer answers at its own URL, by asking which route wins.
fn answers_login(table: &RouteTable, issuer: &Uri, login: &str) -> bool {
    let Some(host) = issuer.host() else { return false };
    let uri = Uri::builder().scheme("https").authority(host).path_and_query(login).build();
    let Ok(uri) = uri else { return false };
    Target::parse(&Method::GET, &uri, Version::HTTP_2, &HeaderMap::new())
        .ok()
        .and_then(|target| table.find_route(&Method::GET, &target).ok())
        .is_some_and(|route| matches!(route.destination, Destination::Identity(_)))
}
