//! The proof that a token was verified.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Issuer;
use super::check::{Checked, text};
use crate::token::claims::{ClaimPath, trusted_claim};
use crate::token::invalid::InvalidToken;
use crate::token::revoked_keys::RevokedKeys;

/// A token that its issuer signed, that is meant for us, and that is currently valid. Only
/// [`super::Issuers`] creates one.
///
/// The order of the members matters: a request with a remembered token reads only the first ones.
///
/// ```
/// fn subject(token: &portcullis::token::VerifiedToken) -> &str {
///     token.subject()
/// }
/// ```
/// Outside this crate, assumed claims cannot be turned into a verified token:
/// ```compile_fail
/// fn believe(assumed: &portcullis::token::AssumedToken) -> &portcullis::token::VerifiedToken {
///     assumed.as_if_verified()
/// }
/// ```
#[derive(Clone)]
#[repr(C)]
pub struct VerifiedToken {
    issuer: Arc<Issuer>,
    checked: Checked,
    claims: Map<String, Value>,
    is_personal: bool,
}

impl VerifiedToken {
    pub(super) fn new(issuer: &Arc<Issuer>, checked: Checked, claims: Map<String, Value>) -> Self {
        Self { issuer: Arc::clone(issuer), checked, claims, is_personal: false }
    }

    /// Marks it as found for a personal access token.
    pub(super) fn personal(self) -> Self {
        Self { is_personal: true, ..self }
    }

    /// Whether the caller presented a personal access token: nothing was signed, the built-in
    /// issuer found the claims in the store.
    pub fn is_personal(&self) -> bool {
        self.is_personal
    }

    /// Whether this same issuer verified it.
    pub fn is_from(&self, issuer: &Arc<Issuer>) -> bool {
        Arc::ptr_eq(&self.issuer, issuer)
    }

    /// The issuer that verified it: the claims were checked against its settings.
    pub(in crate::token) fn verified_for(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// Whether a fresh verification with the same keys would accept it at `now`, in Unix seconds.
    pub(in crate::token) fn check_time(&self, now: u64) -> Result<(), InvalidToken> {
        self.checked.times.check(&self.issuer.settings, now)
    }

    /// Its approximate size in memory, in bytes.
    pub(in crate::token) fn footprint(&self) -> usize {
        let Checked { subject, roles, scopes, times: _, bound_to } = &self.checked;
        let lists = roles
            .iter()
            .chain(scopes)
            .map(|word| size_of::<String>() + block(word.len()))
            .sum::<usize>();
        let bound = bound_to.as_ref().map_or(0, |digest| block(digest.len()));
        size_of::<Self>() + block(subject.len()) + lists + bound + members_footprint(&self.claims)
    }

    /// The total length of all strings in its claims, in bytes.
    pub fn text_bytes(&self) -> usize {
        self.claims.values().map(text_length).sum()
    }

    /// The name of the issuer's section.
    pub fn issuer_name(&self) -> &Arc<str> {
        &self.issuer.settings.name
    }

    /// The keys that revoke tokens of its issuer; `None`: there is no such list.
    pub fn revoked_keys(&self) -> Option<&RevokedKeys> {
        self.issuer.revoked_keys().map(|keys| &**keys)
    }

    /// Whether the built-in issuer signed it.
    pub fn is_ours(&self) -> bool {
        self.issuer.settings().is_built_in
    }

    /// `iss`; `None` if the token was accepted by a section with `insecure_any_issuer`.
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// The subject, from the claim that the section's `subject` names. Never empty; unique only
    /// within the issuer.
    pub fn subject(&self) -> &str {
        &self.checked.subject
    }

    /// What a person recognizes their account by.
    pub fn known_as(&self) -> &str {
        let claim = |name: &str| self.claim(&ClaimPath::new([name])).and_then(Value::as_str);
        claim("email").or_else(|| claim("name")).unwrap_or_else(|| self.subject())
    }

    /// `sub`, whatever claim the section's `subject` names.
    pub fn sub(&self) -> Option<String> {
        self.claims.get("sub").and_then(text)
    }

    /// The roles, from the claim that the section's `roles` names; empty if it is absent.
    pub fn roles(&self) -> &[String] {
        &self.checked.roles
    }

    /// The SHA-256 digest of the client certificate that must be shown with it (`cnf`, RFC 8705
    /// §3.1).
    pub fn bound_to(&self) -> Option<&[u8; 32]> {
        self.checked.bound_to.as_deref()
    }

    /// The scopes from `scope` and `scp`, without duplicates.
    pub fn scopes(&self) -> &[String] {
        &self.checked.scopes
    }

    /// The claim at `path`. `email` counts as absent when `email_verified` is present and not true.
    pub fn claim(&self, path: &ClaimPath) -> Option<&Value> {
        trusted_claim(&self.claims, path)
    }

    /// `exp`, in Unix seconds, without leeway.
    pub fn expires_at(&self) -> u64 {
        self.checked.times.expires_at
    }

    /// From when on a fresh verification would refuse it as expired, in Unix seconds.
    pub fn accepted_until(&self) -> u64 {
        self.checked.times.accepted_until(&self.issuer.settings)
    }

    /// `iat`, in Unix seconds.
    pub fn issued_at(&self) -> Option<u64> {
        self.checked.times.issued_at
    }

    /// `jti`: the token's own id, if it has one.
    pub fn jti(&self) -> Option<&str> {
        self.text("jti")
    }

    /// `sid`: the session that the token belongs to, if it names one.
    pub fn sid(&self) -> Option<&str> {
        self.text("sid")
    }

    /// All claims as the issuer wrote them, including an unverified `email`.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }
}

impl fmt::Debug for VerifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedToken")
            .field("issuer_name", self.issuer_name())
            .finish_non_exhaustive()
    }
}

/// The size of an allocation of this many bytes, including the allocator's overhead.
fn block(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + ALLOCATION).next_multiple_of(16) }
}

/// The total length of all strings in it, in bytes.
fn text_length(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_length).sum(),
        Value::Object(members) => members.values().map(text_length).sum(),
    }
}

fn value_footprint(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => block(text.capacity()),
        Value::Array(items) => {
            block(items.capacity() * size_of::<Value>())
                + items.iter().map(value_footprint).sum::<usize>()
        }
        Value::Object(members) => members_footprint(members),
    }
}

fn members_footprint(members: &Map<String, Value>) -> usize {
    let nodes = members.len().div_ceil(MEMBERS_IN_A_NODE) * block(NODE);
    nodes
        + members
            .iter()
            .map(|(name, value)| block(name.capacity()) + value_footprint(value))
            .sum::<usize>()
}

/// The allocator's overhead per block.
const ALLOCATION: usize = 8;
/// A B-tree node has room for eleven members; after splits, about six are in use.
const NODE: usize = 16 + 11 * (size_of::<String>() + size_of::<Value>());
const MEMBERS_IN_A_NODE: usize = 8;
