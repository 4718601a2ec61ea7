//! What a route, or an endpoint of the built-in issuer, requires of its callers.

use std::collections::VecDeque;
use std::sync::Arc;

use super::step_up::{Insufficient, StepUp};
use crate::reason::Reason;
use crate::token::{ClaimPath, VerifiedToken};

/// How callers are authenticated, and what they must have.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Who may pass.
    pub access: Access,
    /// Where a token may be.
    pub token_from: TokenPlaces,
    /// What a caller must have.
    pub demands: Arc<Demands>,
    /// false: refusals by authentication and authorization are only counted.
    pub enforce: bool,
}

/// Who may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everyone; no credentials are read.
    Public,
    /// Everyone without credentials, and callers with valid ones.
    Optional,
    /// Everyone; callers with valid credentials are recognised, other credentials count as none.
    /// Endpoints of the built-in issuer only: the endpoint then decides what to do.
    Lenient,
    /// Callers with valid credentials.
    Authenticated,
    /// Callers who show a client certificate. No other credentials are read.
    Certificate,
}

/// Where a token may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPlaces {
    /// `Authorization: Bearer`.
    pub header: bool,
    /// The token cookie.
    pub cookie: bool,
    /// The token query parameter.
    pub query: bool,
    /// The password of `Authorization: Basic`: personal access tokens only.
    pub basic: bool,
}

impl TokenPlaces {
    /// Whether `Authorization` may contain a credential for the gateway. If not, the field belongs
    /// to the application.
    pub fn reads_authorization(self) -> bool {
        self.header || self.basic
    }

    /// Whether tokens are read from this place.
    pub(super) fn include(self, place: Place) -> bool {
        match place {
            Place::Header => self.header,
            Place::Cookie => self.cookie,
            Place::Query => self.query,
            Place::Basic => self.basic,
            Place::Certificate => false,
        }
    }
}

/// The place of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `Authorization: Bearer`.
    Header,
    /// The token cookie.
    Cookie,
    /// The token query parameter.
    Query,
    /// The password of `Authorization: Basic`.
    Basic,
    /// No token: the client's certificate.
    Certificate,
}

impl Guard {
    /// Whether it takes a caller that was proved from this place.
    pub(super) fn takes(&self, place: Place) -> bool {
        match self.access {
            Access::Public => false,
            Access::Certificate => place == Place::Certificate,
            Access::Optional | Access::Lenient | Access::Authenticated => {
                self.token_from.include(place)
            }
        }
    }
}

/// What a caller must have; all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demands {
    /// At least one of these roles; empty: no role is required.
    pub any_role: Vec<String>,
    /// Every one of these roles.
    pub all_roles: Vec<String>,
    /// Every one of these scopes.
    pub scopes: Vec<String>,
    /// Each claim must have one of its values.
    pub claims: Vec<(ClaimPath, Vec<crate::config::value::Scalar>)>,
    /// Only callers of these issuer sections; `None`: of all.
    pub issuers: Option<Vec<Arc<str>>>,
    /// Only callers who logged in at the built-in issuer in one of these ways; empty: in any.
    pub logins: Vec<String>,
    /// How strongly and how recently the caller must have logged in.
    pub step_up: StepUp,
}

impl Demands {
    /// Requires a caller of this issuer section, and nothing else.
    pub fn issuer(name: &str) -> Self {
        Self { issuers: Some(vec![name.into()]), ..Self::default() }
    }

    /// Whether every caller meets them.
    pub fn is_empty(&self) -> bool {
        self.issuers.is_none() && self.step_up.is_empty() && !self.requires_authorization()
    }

    /// Checks that a caller meets them, except `step_up`, which depends on the time.
    pub fn check(&self, caller: &VerifiedToken) -> Result<(), Denied> {
        if let Some(issuers) = &self.issuers
            && !issuers.contains(caller.issuer_name())
        {
            return Err(Denied::Issuer(Arc::clone(caller.issuer_name())));
        }
        if !self.logins.is_empty() {
            let idp = caller.claims().get("idp").and_then(serde_json::Value::as_str);
            let idp = idp.filter(|_| caller.is_ours()).unwrap_or_default();
            if !self.logins.iter().any(|login| login == idp) {
                return Err(Denied::Login(idp.to_owned()));
            }
        }
        let holds = |role: &String| caller.roles().contains(role);
        if !self.any_role.is_empty() && !self.any_role.iter().any(holds) {
            return Err(Denied::Role(listed(&self.any_role)));
        }
        if let Some(role) = self.all_roles.iter().find(|role| !holds(role)) {
            return Err(Denied::Role(listed(std::slice::from_ref(role))));
        }
        if let Some(scope) = self.scopes.iter().find(|scope| !caller.scopes().contains(scope)) {
            return Err(Denied::Scope(scope.clone()));
        }
        for (path, wanted) in &self.claims {
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

    /// Whether a role, scope, claim or way of logging in is required.
    pub fn requires_authorization(&self) -> bool {
        !(self.any_role.is_empty()
            && self.logins.is_empty()
            && self.all_roles.is_empty()
            && self.scopes.is_empty()
            && self.claims.is_empty())
    }
}

/// What a caller lacks.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denied {
    /// There is no caller, and the route requires one.
    #[error("no caller")]
    NoCaller,
    /// The route accepts callers of other issuers.
    #[error("issuer `{0}` is not among the route's issuers")]
    Issuer(Arc<str>),
    /// None of `roles`, or not all of `all_roles`.
    #[error("the caller lacks the role {0}")]
    Role(String),
    /// Not all of `scopes`.
    #[error("the caller lacks the scope `{0}`")]
    Scope(String),
    /// The caller logged in in another way.
    #[error("the caller logged in by `{0}`, which is not among `login` of the route")]
    Login(String),
    /// The caller has to log in again.
    #[error("{0}")]
    StepUp(Box<Insufficient>),
    /// A claim without any of its values.
    #[error("the claim `{0}` has none of the required values")]
    Claim(String),
}

impl Denied {
    /// The reason of the refusal.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCaller => Reason::CredentialsMissing,
            Self::Issuer(_) => Reason::IssuerNotAllowed,
            Self::Role(_) => Reason::RoleMissing,
            Self::Scope(_) => Reason::ScopeMissing,
            Self::Claim(_) => Reason::ClaimMismatch,
            Self::Login(_) => Reason::LoginMethod,
            Self::StepUp(_) => Reason::StepUpRequired,
        }
    }
}

/// Finds equal requirements, so that a caller who met them on one route need not be checked again
/// on the next.
#[derive(Debug, Default)]
pub struct RecentDemands(VecDeque<Arc<Demands>>);

/// How many recent requirements to compare with: a table of 50,000 routes must not compare each
/// pair.
const COMPARED: usize = 16;

impl RecentDemands {
    /// One of the last few requirements if it equals `wanted`, otherwise `wanted`.
    pub fn deduplicate(&mut self, wanted: &Arc<Demands>) -> Arc<Demands> {
        if let Some(same) = self.0.iter().find(|known| *known == wanted) {
            return Arc::clone(same);
        }
        if self.0.len() == COMPARED {
            self.0.pop_front();
        }
        self.0.push_back(Arc::clone(wanted));
        Arc::clone(wanted)
    }
}

fn listed(roles: &[String]) -> String {
    roles.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_demands_share_one_allocation() {
        let of = |role: usize| {
            Arc::new(Demands { any_role: vec![role.to_string()], ..Demands::default() })
        };
        let mut known = RecentDemands::default();
        let first = known.deduplicate(&of(0));
        assert!(Arc::ptr_eq(&first, &known.deduplicate(&of(0))));
        assert!(!Arc::ptr_eq(&first, &known.deduplicate(&of(1))));
        // Beyond the last few they are separate, but still equal.
        let later: Vec<_> = (1..=COMPARED).map(|role| known.deduplicate(&of(role))).collect();
        assert_eq!(later.len(), COMPARED);
        let again = known.deduplicate(&of(0));
        assert!(!Arc::ptr_eq(&first, &again) && first == again);
    }
}
