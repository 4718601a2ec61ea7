//! The proof that a token was verified.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::IssuerSettings;
use super::check::Checked;
use crate::token::claims::{ClaimPath, find_believable};

/// A token that its issuer signed, that is meant for us, and that is valid now. Only [`super::Issuers`] makes one.
pub struct VerifiedToken {
    issuer_name: Arc<str>,
    checked: Checked,
    claims: Map<String, Value>,
}

impl VerifiedToken {
    pub(super) fn new(settings: &IssuerSettings, checked: Checked, claims: Map<String, Value>) -> Self {
        Self { issuer_name: settings.name.clone(), checked, claims }
    }

    /// The name of the issuer's section.
    pub fn issuer_name(&self) -> &Arc<str> {
        &self.issuer_name
    }

    /// `iss`; `None` when the token came by a section with `insecure_any_issuer`.
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// Whom the token is about, by the section's `subject`; never empty. Unique within the issuer only.
    pub fn subject(&self) -> &str {
        &self.checked.subject
    }

    /// The roles, by the section's `roles`; empty when the claim is absent.
    pub fn roles(&self) -> &[String] {
        &self.checked.roles
    }

    /// The scopes of `scope` and `scp`, each once.
    pub fn scopes(&self) -> &[String] {
        &self.checked.scopes
    }

    /// The claim at `path`. `email` counts as absent when `email_verified` is there and not true.
    pub fn claim(&self, path: &ClaimPath) -> Option<&Value> {
        find_believable(&self.claims, path)
    }

    /// `exp`, in Unix seconds, without leeway.
    pub fn expires_at(&self) -> u64 {
        self.checked.expires_at
    }

    /// `iat`, in Unix seconds.
    pub fn issued_at(&self) -> Option<u64> {
        self.checked.issued_at
    }

    /// `jti`: the token's own name, if it has one.
    pub fn jti(&self) -> Option<&str> {
        self.text("jti")
    }

    /// `sid`: the session that the token belongs to, if it names one.
    pub fn sid(&self) -> Option<&str> {
        self.text("sid")
    }

    /// Every claim, as the issuer wrote it (an unverified `email` included).
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }
}

impl fmt::Debug for VerifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedToken").field("issuer_name", &self.issuer_name).finish_non_exhaustive()
    }
}
