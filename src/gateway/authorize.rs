//! A caller and a route make a permit: the proof that this request may pass.

use std::sync::Arc;

use http::{HeaderMap, header};

use super::authenticate::{Caller, Place};
use super::demands::Demands;
use super::kept::Kept;
use super::reason::Reason;
use super::route::{Access, Route};
use crate::token::VerifiedToken;

/// The proof that a request may take its route, and as whom.
#[derive(Debug)]
pub struct Permit<'route> {
    route: &'route Route,
    caller: Option<Caller>,
    reason: Reason,
}

impl<'route> Permit<'route> {
    /// The route that it is for.
    pub fn route(&self) -> &'route Route {
        self.route
    }

    /// Who may; `None` where nobody is known. The upstream is told of nobody else.
    pub fn caller(&self) -> Option<&Arc<VerifiedToken>> {
        self.caller.as_ref().map(|caller| &caller.token)
    }

    /// Whether `Authorization` may go on where the route forwards it: a credential that nobody has
    /// verified never stands beside an identity, or where an application would take it for
    /// verified. Where credentials are optional and nobody is known, that is what could be read as
    /// a token by an application that reads carelessly: only a password's schemes go on.
    pub fn vouches_for_authorization(&self, headers: &HeaderMap) -> bool {
        match &self.caller {
            Some(caller) => caller.place == Place::Header,
            None if self.reason == Reason::Anonymous => {
                self.route.token_from.header && is_a_passwords(headers)
            }
            None => self.reason == Reason::Public,
        }
    }

    /// Why: one of the reasons of a pass, or the refusal's own on a route that does not enforce.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// A permit for nobody, on a route that only counts its refusals.
    ///
    /// `None` where the route enforces, or the reason is none that may be softened.
    pub fn unenforced(route: &'route Route, reason: Reason) -> Option<Self> {
        let softened = matches!(reason.status().as_u16(), 401 | 403)
            && reason != Reason::OriginForeign
            || reason == Reason::KeysUnavailable;
        (!route.enforce && softened).then_some(Self { route, caller: None, reason })
    }
}

/// Whether `Authorization` is there once, of a scheme that proves a password (RFC 7617, RFC 7616,
/// RFC 4559), and written as such.
fn is_a_passwords(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let scheme =
        line.to_str().ok().and_then(|line| line.split_once(' ')).map_or("", |(scheme, _)| scheme);
    ["basic", "digest", "negotiate", "ntlm"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

/// What a caller lacks.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denied {
    /// There is none, and the route needs one.
    #[error("no caller")]
    Nobody,
    /// The route takes callers of other issuers.
    #[error("issuer `{0}` is not among the route's issuers")]
    Issuer(Arc<str>),
    /// None of `roles`, or not all of `all_roles`.
    #[error("the caller lacks the role {0}")]
    Role(String),
    /// Not all of `scopes`.
    #[error("the caller lacks the scope `{0}`")]
    Scope(String),
    /// A claim without any of its values.
    #[error("the claim `{0}` has none of the values asked for")]
    Claim(String),
}

/// Decides whether a caller, or nobody, may take a route.
///
/// # Errors
/// [`Denied`]
pub fn authorize(route: &Route, caller: Option<Caller>) -> Result<Permit<'_>, Denied> {
    let reason = match &caller {
        None => match route.access {
            Access::Public => Reason::Public,
            Access::Optional => Reason::Anonymous,
            // Authentication has refused already; this door does not rely on it.
            Access::Authenticated => return Err(Denied::Nobody),
        },
        Some(caller) => {
            meets_once(&route.demands, &caller.token)?;
            if route.demands.any() { Reason::Authorized } else { Reason::Authenticated }
        }
    };
    Ok(Permit { route, caller, reason })
}

/// [`meets`], which is asked once of a caller that is remembered.
fn meets_once(demands: &Arc<Demands>, caller: &VerifiedToken) -> Result<(), Denied> {
    if demands.is_nothing() {
        return Ok(());
    }
    let Some(mut kept) = Kept::of(caller) else { return meets(demands, caller) };
    if !kept.meets(demands) {
        meets(demands, caller)?;
        kept.met(demands);
    }
    Ok(())
}

fn meets(demands: &Demands, caller: &VerifiedToken) -> Result<(), Denied> {
    if let Some(issuers) = &demands.issuers
        && !issuers.contains(caller.issuer_name())
    {
        return Err(Denied::Issuer(Arc::clone(caller.issuer_name())));
    }
    let holds = |role: &String| caller.roles().contains(role);
    if !demands.any_role.is_empty() && !demands.any_role.iter().any(holds) {
        return Err(Denied::Role(listed(&demands.any_role)));
    }
    if let Some(role) = demands.all_roles.iter().find(|role| !holds(role)) {
        return Err(Denied::Role(listed(std::slice::from_ref(role))));
    }
    if let Some(scope) = demands.scopes.iter().find(|scope| !caller.scopes().contains(scope)) {
        return Err(Denied::Scope(scope.clone()));
    }
    for (path, wanted) in &demands.claims {
        let found = caller.claim(path);
        let has = |value: &serde_json::Value| wanted.iter().any(|wanted| wanted.matches(value));
        let meets = match found {
            Some(serde_json::Value::Array(values)) => values.iter().any(has),
            Some(value) => has(value),
            None => false,
        };
        if !meets {
            return Err(Denied::Claim(path.to_string()));
        }
    }
    Ok(())
}

fn listed(roles: &[String]) -> String {
    roles.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(" or ")
}
