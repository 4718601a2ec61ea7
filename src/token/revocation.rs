//! What a revocation matches: one token, a session or a subject, of one issuer or of every issuer.
//! The list that tokens are checked against is [`crate::revocation`].

use std::fmt;
use std::sync::Arc;

use super::issuers::IssuerSettings;

/// What a revocation matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RevokedBy {
    /// One token, by its `jti`.
    Jti,
    /// Every token of a session, by its `sid`.
    Sid,
    /// Every token of a subject that was issued at or before the time of the revocation, or that
    /// has no `iat`.
    Subject,
    /// Like [`RevokedBy::Subject`], but by the claim `sub`, for sections whose `subject` is another
    /// claim: logout tokens name `sub`.
    Sub,
}

impl RevokedBy {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Jti, Self::Sid, Self::Subject, Self::Sub];

    /// Its name in the store, in requests and in messages to operators.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jti => "jti",
            Self::Sid => "sid",
            Self::Subject => "subject",
            Self::Sub => "sub",
        }
    }
}

impl fmt::Display for RevokedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The issuers whose tokens a revocation applies to.
///
/// It does not use the section's name: renaming a section must not make revoked tokens valid again,
/// and a section whose `issuer` changes no longer accepts them anyway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every issuer.
    Every,
    /// The issuer with this `iss`; empty for tokens without `iss`.
    Issuer(Arc<str>),
}

impl Scope {
    /// The scope of the tokens that an issuer's section accepts.
    pub fn for_issuer(settings: &IssuerSettings) -> Self {
        // An `issuer` is never empty, so tokens without `iss` cannot be mistaken for those of
        // another section.
        Self::Issuer(settings.issuer.as_deref().unwrap_or_default().into())
    }

    /// Whether tokens with this `iss` are among them.
    pub fn covers(&self, iss: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Issuer(own) => **own == *iss,
        }
    }
}

/// One revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The issuers it applies to.
    pub scope: Scope,
    /// What it matches.
    pub by: RevokedBy,
    /// The `jti`, `sid` or subject.
    pub value: Arc<str>,
    /// When it was revoked, in Unix seconds. For a subject, this is the cut-off.
    pub at: u64,
}
