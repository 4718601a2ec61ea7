//! Configurations for other proxies, so that they ask the `[verify]` listener as it expects.
//!
//! Each is complete and starts as it is. It removes what a client could use to be taken for somebody
//! else, in every spelling that this proxy would pass on, and turns refusals into the gateway's own
//! answer. The templates are the files beside this one.

mod site;

use askama::Template;

pub use self::site::{Authority, Name, Request, Service, Site, Unwritable};
use crate::gateway::dialect::Dialect;

/// A file of a configuration: its name and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The name, without a folder.
    pub name: &'static str,
    /// The content.
    pub text: String,
}

/// Every file that is written begins with this, after the mark of a comment.
pub const MARK: &str = "Written by `portcullis proxy-config";

#[derive(Template)]
#[template(path = "nginx.conf", escape = "none")]
struct Nginx<'s> {
    site: &'s Site,
}

#[derive(Template)]
#[template(path = "Caddyfile", escape = "none")]
struct Caddy<'s> {
    site: &'s Site,
}

#[derive(Template)]
#[template(path = "traefik.yaml", escape = "none")]
struct Traefik<'s> {
    site: &'s Site,
}

#[derive(Template)]
#[template(path = "dynamic.yaml", escape = "none")]
struct TraefikRules<'s> {
    site: &'s Site,
}

#[derive(Template)]
#[template(path = "envoy.yaml", escape = "none")]
struct Envoy<'s> {
    site: &'s Site,
}

#[derive(Template)]
#[template(path = "haproxy.cfg", escape = "none")]
struct Haproxy<'s> {
    site: &'s Site,
}

#[derive(Template)]
#[template(path = "portcullis.lua", escape = "none")]
struct HaproxyLua<'s> {
    site: &'s Site,
}

#[derive(Template)]
#[template(path = "gateway-api.yaml", escape = "none")]
struct GatewayApi<'s> {
    site: &'s Site,
    service: Service<'s>,
}

#[derive(Template)]
#[template(path = "external-auth.yaml", escape = "none")]
struct ExternalAuth<'s> {
    site: &'s Site,
    service: Service<'s>,
}

#[derive(Template)]
#[template(path = "traefik-middleware.yaml", escape = "none")]
struct TraefikMiddleware<'s> {
    site: &'s Site,
    service: Service<'s>,
}

/// What serves the Gateway API in a Kubernetes cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// Envoy Gateway, with its `SecurityPolicy`.
    EnvoyGateway,
    /// Any with the `ExternalAuth` filter of `HTTPRoute`.
    ExternalAuth,
    /// Traefik, with its `Middleware`.
    Traefik,
}

/// Renders manifests for a Kubernetes cluster.
///
/// # Errors
/// [`Unwritable::Elsewhere`].
pub fn manifests(implementation: Implementation, site: &Site) -> Result<Written, Unwritable> {
    let service = site.service();
    if service.is_elsewhere && implementation != Implementation::EnvoyGateway {
        return Err(Unwritable::Elsewhere(site.upstream.host.clone()));
    }
    let text = match implementation {
        Implementation::EnvoyGateway => GatewayApi { site, service }.render(),
        Implementation::ExternalAuth => ExternalAuth { site, service }.render(),
        Implementation::Traefik => TraefikMiddleware { site, service }.render(),
    };
    Ok(file("gateway-api.yaml", text))
}

/// The command that starts a proxy with what was written to the working directory.
pub const fn start_command(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Nginx => "nginx -p . -e error.log -c nginx.conf",
        Dialect::Caddy => "caddy run --config Caddyfile --adapter caddyfile",
        Dialect::Traefik => "traefik --configFile=traefik.yaml",
        Dialect::Envoy => "envoy -c envoy.yaml --disable-hot-restart",
        Dialect::Haproxy => "haproxy -db -f haproxy.cfg",
    }
}

/// Renders the files for a proxy.
pub fn render(dialect: Dialect, site: &Site) -> Vec<Written> {
    match dialect {
        Dialect::Nginx => vec![file("nginx.conf", Nginx { site }.render())],
        Dialect::Caddy => vec![file("Caddyfile", Caddy { site }.render())],
        Dialect::Traefik => vec![
            file("traefik.yaml", Traefik { site }.render()),
            file("dynamic.yaml", TraefikRules { site }.render()),
        ],
        Dialect::Envoy => vec![file("envoy.yaml", Envoy { site }.render())],
        Dialect::Haproxy => vec![
            file("haproxy.cfg", Haproxy { site }.render()),
            file("portcullis.lua", HaproxyLua { site }.render()),
        ],
    }
}

fn file(name: &'static str, text: askama::Result<String>) -> Written {
    // The templates contain nothing that can fail: text, lists and numbers. A template ends without
    // the newline of its last line.
    Written { name, text: text.map(|text| text + "\n").unwrap_or_default() }
}
