//! The question that another proxy would ask about a request, with the configuration that
//! `proxy-config` writes.

use http::{HeaderName, header};

use super::Question;
use super::wire::{Head, Requested};
use crate::gateway::dialect::{Askers, Dialect, PASSED, is_forwarding};
use crate::gateway::refusal::Refusal;

/// Builds the head of the verification request.
///
/// # Errors
/// [`Refusal::Target`], as for a request that is sent directly.
pub(super) fn head(
    question: &Question,
    dialect: Dialect,
    askers: &Askers,
) -> Result<Head, Refusal> {
    let Requested { tls, authority, target } = Requested::parse(question)?;
    let (method, client) = (question.method.as_str(), question.peer.to_string());
    let proto = if tls { "https" } else { "http" };
    let name = dialect.as_str();
    let line = match dialect {
        Dialect::Nginx => "GET /nginx HTTP/1.0".to_owned(),
        Dialect::Envoy => format!("{method} /envoy{target} HTTP/1.1"),
        _ => format!("GET /{name} HTTP/1.1"),
    };
    let mut head = Head::begin(&line, false);
    let named = match dialect {
        Dialect::Nginx => Named {
            uri: "x-original-uri",
            method: "x-original-method",
            host: "host",
            client: "x-forwarded-for",
            proto: "x-forwarded-proto",
        },
        Dialect::Haproxy => Named {
            uri: "x-portcullis-uri",
            method: "x-portcullis-method",
            host: "x-portcullis-host",
            client: "x-portcullis-client",
            proto: "x-portcullis-proto",
        },
        Dialect::Caddy | Dialect::Traefik | Dialect::Envoy => Named {
            uri: "x-forwarded-uri",
            method: "x-forwarded-method",
            host: if dialect == Dialect::Envoy { "host" } else { "x-forwarded-host" },
            client: "x-forwarded-for",
            proto: "x-forwarded-proto",
        },
    };
    if dialect != Dialect::Envoy {
        head.field(named.uri, target.as_bytes());
        head.field(named.method, method.as_bytes());
    }
    head.field(named.client, client.as_bytes());
    head.field(named.proto, proto.as_bytes());
    let hosts: Vec<_> = question.headers.get_all(header::HOST).iter().collect();
    if hosts.is_empty() {
        head.field(named.host, authority.as_bytes());
    }
    for host in hosts {
        head.field(named.host, host.as_bytes());
    }
    for (name, value) in &question.headers {
        if passes(dialect, name, askers) {
            head.field(name.as_str(), value.as_bytes());
        }
    }
    Ok(head.end())
}

/// The fields in which a dialect says what the request is.
struct Named {
    uri: &'static str,
    method: &'static str,
    host: &'static str,
    client: &'static str,
    proto: &'static str,
}

/// Whether the proxy passes a field of the client along when it asks.
fn passes(dialect: Dialect, name: &HeaderName, askers: &Askers) -> bool {
    const HOP_OR_BODY: [HeaderName; 7] = [
        header::HOST,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
    ];
    let plain = name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match dialect {
        Dialect::Traefik | Dialect::Envoy | Dialect::Haproxy => PASSED.contains(&name.as_str()),
        // nginx drops every other name, and Caddy can remove names only as they are written.
        Dialect::Nginx if !plain => false,
        Dialect::Nginx | Dialect::Caddy => {
            let removed = plain && (askers.own(name) || is_forwarding(name));
            !removed && !HOP_OR_BODY.contains(name)
        }
    }
}
