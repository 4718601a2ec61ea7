//! How long revocations are kept.

use std::collections::HashMap;
use std::time::Duration;

use crate::token::{IssuerSettings, Issuers, Revocation, RevokedBy, Scope};

/// How long revocations are kept: as long as a token that they apply to could still be accepted,
/// according to the current file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Seconds, per issuer.
    pub(super) by_scope: HashMap<Scope, u64>,
    /// Seconds, for revocations for every issuer, and for issuers that are not in the file now.
    pub(super) longest: u64,
    /// The scope of the issuer whose sessions are in the store.
    built_in: Option<Scope>,
}

impl Retention {
    /// The retention that these issuers require.
    pub fn for_issuers(issuers: &Issuers) -> Self {
        let by_scope: HashMap<_, _> = issuers
            .iter()
            .chain(issuers.certificates())
            .map(|issuer| {
                (
                    Scope::for_issuer(issuer.settings()),
                    Self::for_issuer(issuer.settings()).as_secs(),
                )
            })
            .collect();
        let longest = by_scope.values().copied().max().unwrap_or(0).max(MIN_RETENTION.as_secs());
        let built_in = issuers
            .iter()
            .find(|issuer| issuer.settings().is_built_in)
            .map(|issuer| Scope::for_issuer(issuer.settings()));
        Self { by_scope, longest, built_in }
    }

    /// A token that is accepted now has an `iat` at most `leeway` in the future and an `exp` at
    /// most `max_token_lifetime` after that, and is accepted for another `leeway`.
    fn for_issuer(settings: &IssuerSettings) -> Duration {
        settings
            .max_token_lifetime
            .saturating_add(settings.leeway.saturating_mul(2))
            .saturating_add(Duration::from_secs(1))
    }

    /// The longer retention of the two, for each scope.
    pub(super) fn max(mut self, other: Self) -> Self {
        for (scope, seconds) in other.by_scope {
            let kept = self.by_scope.entry(scope).or_default();
            *kept = seconds.max(*kept);
        }
        self.longest = self.longest.max(other.longest);
        self.built_in = other.built_in.or(self.built_in);
        self
    }

    /// Keeps revocations of the built-in issuer at least this long: its sessions are elsewhere, and
    /// one that is revoked by its id does not end with it.
    pub(super) fn keep_for_sessions(&mut self, lifetime: Duration) {
        let Some(scope) = self.built_in.clone() else { return };
        let seconds = lifetime.as_secs().saturating_add(1);
        let kept = self.by_scope.entry(scope).or_default();
        *kept = seconds.max(*kept);
        self.longest = seconds.max(self.longest);
    }

    /// How many seconds a revocation with this scope is kept.
    pub fn seconds(&self, scope: &Scope) -> u64 {
        self.by_scope.get(scope).copied().unwrap_or(self.longest)
    }

    /// Whether the revocation also ends a session or a personal access token of the built-in
    /// issuer, which may outlive the entry of the revocation.
    pub(super) fn is_for_good(&self, Revocation { scope, by, .. }: &Revocation) -> bool {
        matches!(by, RevokedBy::Sid | RevokedBy::Jti)
            && self
                .built_in
                .as_ref()
                .is_some_and(|built_in| *scope == Scope::Every || scope == built_in)
    }
}

/// The minimum retention of revocations for every issuer: a section may be removed from the file
/// and put back.
const MIN_RETENTION: Duration = Duration::from_hours(24);
