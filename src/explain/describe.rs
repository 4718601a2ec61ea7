//! Descriptions of the result of each step.

use http::Method;
use http::request::Parts;

use crate::gateway::client::ClientAddress;
use crate::gateway::constant_headers::ConstantHeaders;
use crate::gateway::dialect::Dialect;
use crate::gateway::route::{HostPattern, Methods, Route, Segment};
use crate::gateway::second_target::SecondTarget;
use crate::gateway::target::Target;
use crate::reason::Reason;
use crate::token::VerifiedToken;

pub(super) fn asked(dialect: Dialect, parts: &Parts) -> String {
    let host = parts.headers.get(http::header::HOST).map_or_else(String::new, |host| {
        format!(" for host `{}`", String::from_utf8_lossy(host.as_bytes()))
    });
    format!("{} asks about {} {}{host}", dialect.as_str(), parts.method, parts.uri)
}

pub(super) fn client(client: &ClientAddress) -> String {
    format!("{} over {}: {}", client.ip(), client.scheme().as_str(), client.through())
}

pub(super) fn target(target: &Target) -> String {
    let relaxed = target.relaxed().to_string();
    let read = if relaxed.is_empty() { String::new() } else { format!(", read with {relaxed}") };
    format!(
        "host `{}`, path `{}`{read}, received as `{}`",
        target.host(),
        target.path(),
        target.sent()
    )
}

pub(super) fn second(second: &SecondTarget<'_>) -> String {
    format!(
        "`{}` names the path `{}`: route `{}`, decided as {} for the same caller",
        second.field(),
        second.target().path(),
        second.route().name,
        second.method()
    )
}

pub(super) fn route(route: &Route) -> String {
    let host = match &route.pattern.host {
        HostPattern::Exact(name) => format!("host `{name}`"),
        HostPattern::Suffix(name) => format!("hosts `*{name}`"),
        HostPattern::Any => "any host".to_owned(),
    };
    let kind = if route.pattern.subtree { "longest matching subtree" } else { "exact path" };
    let methods = match &route.pattern.methods {
        Methods::All => "any method".to_owned(),
        Methods::Only(methods) => methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", "),
    };
    let literal = route
        .pattern
        .segments
        .iter()
        .filter(|segment| matches!(segment, Segment::Literal(_)))
        .count();
    let plural = if literal == 1 { "" } else { "s" };
    format!("`{}`: {host}, {kind} ({literal} literal segment{plural}), {methods}", route.name)
}

/// The names of constant fields; `None`: there are none.
pub(super) fn names(constant: &ConstantHeaders) -> Option<String> {
    let names: Vec<String> = constant.names().map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

pub(super) fn caller(caller: &VerifiedToken) -> String {
    let roles = if caller.roles().is_empty() {
        "no roles".to_owned()
    } else {
        format!("roles {}", caller.roles().join(", "))
    };
    format!("`{}` of issuer `{}`, {roles}", caller.subject(), caller.issuer_name())
}

pub(super) fn permit(reason: Reason) -> &'static str {
    match reason {
        Reason::Public => "the route is public",
        Reason::Anonymous => "credentials are optional, and none were sent",
        Reason::Authenticated => "any authenticated caller is allowed",
        _ => "the caller meets the requirements of the route",
    }
}
