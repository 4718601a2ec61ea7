//! What a route asks of whoever calls.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::token::ClaimPath;

/// What a caller must hold; all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demands {
    /// Any one of these roles; empty: none is asked for.
    pub any_role: Vec<String>,
    /// Every one of these roles.
    pub all_roles: Vec<String>,
    /// Every one of these scopes.
    pub scopes: Vec<String>,
    /// Each claim must have one of its values.
    pub claims: Vec<(ClaimPath, Vec<crate::config::value::Scalar>)>,
    /// Callers of these issuer sections only; `None`: of all.
    pub issuers: Option<Vec<Arc<str>>>,
}

impl Demands {
    /// Whether every caller meets them.
    pub fn is_nothing(&self) -> bool {
        self.issuers.is_none() && !self.any()
    }

    /// Whether a role, scope or claim is asked for.
    pub fn any(&self) -> bool {
        !(self.any_role.is_empty()
            && self.all_roles.is_empty()
            && self.scopes.is_empty()
            && self.claims.is_empty())
    }
}

/// Finds demands that are the same: what a caller was found to meet on one route need not be asked
/// again on the next.
#[derive(Debug, Default)]
pub struct SameDemands(VecDeque<Arc<Demands>>);

/// How many different demands one is compared with: a table of 50,000 routes must not compare each
/// with each.
const COMPARED: usize = 16;

impl SameDemands {
    /// The very demands of one of the last few that were asked for, where they equal `wanted`;
    /// otherwise `wanted`.
    pub fn same_as(&mut self, wanted: &Arc<Demands>) -> Arc<Demands> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_demands_become_the_very_same() {
        let of = |role: usize| {
            Arc::new(Demands { any_role: vec![role.to_string()], ..Demands::default() })
        };
        let mut known = SameDemands::default();
        let first = known.same_as(&of(0));
        assert!(Arc::ptr_eq(&first, &known.same_as(&of(0))));
        assert!(!Arc::ptr_eq(&first, &known.same_as(&of(1))));
        // Beyond the last few they are kept apart, and equal all the same.
        let later: Vec<_> = (1..=COMPARED).map(|role| known.same_as(&of(role))).collect();
        assert_eq!(later.len(), COMPARED);
        let again = known.same_as(&of(0));
        assert!(!Arc::ptr_eq(&first, &again) && first == again);
    }
}
