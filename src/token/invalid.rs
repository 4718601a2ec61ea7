//! Why a token was rejected: one variant per reason, with a detail for the operator.

use super::algorithms::Algorithms;
use super::excerpt::Excerpt;
use super::revocation::RevokedBy;

/// Why a token was rejected. Clients may learn the variant; the detail in it is for the log only.
///
/// No variant contains any part of the token except short, escaped excerpts of names ([`Excerpt`]).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It is not a JWS in compact form whose header and payload are JSON objects without duplicate
    /// members, or it requires a header extension (RFC 7515 §4.1.11, §7.1).
    #[error("the token cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// Its `alg` is missing, `none`, unknown, not allowed for its issuer, or does not match the key
    /// (RFC 8725 §3.1).
    #[error("the token's algorithm is not accepted: {0}")]
    Algorithm(#[from] AlgorithmFault),
    /// The issuer has no keys at all: its key set was never fetched, or is too old. The token is
    /// not at fault.
    #[error("the issuer has no key to verify the token with")]
    NoKeys,
    /// The issuer has no key with this `kid`. A remote key set may have a newer one.
    #[error("the issuer has no key with the token's kid {}", kid.as_ref().map_or("(it has none)", Excerpt::as_str))]
    KeyUnknown {
        /// The token's `kid`, if it has one.
        kid: Option<Excerpt>,
    },
    /// None of the issuer's keys made this signature.
    #[error("the token's signature was not made by the issuer's key")]
    Signature,
    /// It is not a personal access token that exists.
    #[error("there is no such personal access token")]
    Unknown,
    /// Its `exp`, with the leeway, has passed (RFC 7519 §4.1.4).
    #[error("the token expired at {at}, {} s ago", now.saturating_sub(*at))]
    Expired {
        /// Its `exp`, in Unix seconds.
        at: u64,
        /// The time of the check, in Unix seconds.
        now: u64,
    },
    /// Its `nbf` or `iat`, less the leeway, is in the future (RFC 7519 §4.1.5, §4.1.6).
    #[error("the token's {claim} is {} s in the future", at.saturating_sub(*now))]
    NotYetValid {
        /// `nbf` or `iat`.
        claim: &'static str,
        /// The claim, in Unix seconds.
        at: u64,
        /// The time of the check, in Unix seconds.
        now: u64,
    },
    /// No section accepts tokens from its issuer (RFC 7519 §4.1.1).
    #[error("the token's issuer is not accepted: {0}")]
    Issuer(#[from] IssuerFault),
    /// It is meant for another audience (RFC 7519 §4.1.3).
    #[error("the token is not for this audience: {0}")]
    Audience(#[from] AudienceFault),
    /// A required claim is missing, or a claim has the wrong type.
    #[error("the token's claims are invalid: {0}")]
    Claims(#[from] ClaimFault),
    /// Its `jti`, its session or its subject was revoked.
    #[error("the token was revoked by its {0}")]
    Revoked(RevokedBy),
    /// It is valid for longer than `max_token_lifetime` allows.
    #[error("the token is valid for {lifetime} s, more than the maximum of {most} s")]
    Lifetime {
        /// `exp` minus `iat`, or minus the time of the check if there is no `iat`, in seconds.
        lifetime: u64,
        /// The maximum of the issuer's section, in seconds.
        most: u64,
    },
}

impl InvalidToken {
    /// Whether a different key could have led to a different result.
    pub const fn concerns_key(&self) -> bool {
        matches!(
            self,
            Self::NoKeys
                | Self::KeyUnknown { .. }
                | Self::Signature
                | Self::Algorithm(AlgorithmFault::NotTheKeys { .. })
        )
    }
}

/// Why a token cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It exceeds the maximum length.
    #[error("it is {length} bytes long; the maximum is {most}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The maximum, in bytes.
        most: usize,
    },
    /// It does not consist of three parts.
    #[error("it has {count} part{}; a signed token has three", if *count == 1 { "" } else { "s" })]
    Parts {
        /// How many parts it has (counting stops at six).
        count: usize,
    },
    /// It is a JWE (RFC 7516 §7.1): five parts.
    #[error("it has five parts: an encrypted token (JWE); only signed tokens (JWS) are accepted")]
    Encrypted,
    /// A part is not base64url without padding (RFC 7515 §2).
    #[error("its {0} is not base64url without padding")]
    Base64(Part),
    /// A part is not one JSON object with distinct member names.
    #[error("its {0} {1}")]
    Json(Part, JsonFault),
    /// A header member has an invalid type or value.
    #[error("its header has an invalid {0}")]
    Header(&'static str),
    /// The header requires extensions (`crit`). None is implemented, so the token must be rejected
    /// (RFC 7515 §4.1.11).
    #[error("its header requires extensions (crit), and none is supported")]
    Critical,
    /// Its `typ` says that it is a different kind of token (RFC 8725 §3.11).
    #[error("its typ is {0}; expected JWT or at+jwt")]
    Type(Excerpt),
    /// A token of the built-in issuer whose `typ` is not `at+jwt`.
    #[error("its typ is not at+jwt, which every access token of the built-in issuer has")]
    NotAnAccessToken,
}

/// A part of a JWS in compact form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first part.
    Header,
    /// The second part.
    Payload,
    /// The third part.
    Signature,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Payload => "payload",
            Self::Signature => "signature",
        })
    }
}

/// Why bytes are not one JSON object with an unambiguous meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonFault {
    /// It is not JSON (RFC 8259), or not UTF-8.
    #[error("is not JSON")]
    Syntax,
    /// It is JSON, but not an object.
    #[error("is not a JSON object")]
    NotAnObject,
    /// A member name occurs twice in one object, at any depth. Parsers differ in which one they use
    /// (RFC 8725 §2.4 and §3.10).
    #[error("has the member {0} twice")]
    Duplicate(Excerpt),
    /// Objects and arrays are nested too deeply.
    #[error("is nested more than 32 deep")]
    TooDeep,
}

/// What is wrong with a token's algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlgorithmFault {
    /// The header has no `alg`.
    #[error("its header has no alg")]
    Missing,
    /// It is `none`, misspelled, or not supported.
    #[error("{0} is not a supported signature algorithm")]
    Unknown(Excerpt),
    /// The issuer's section does not list it.
    #[error("{found} is not one of the issuer's algorithms: {accepted}")]
    NotConfigured {
        /// The token's `alg`.
        found: &'static str,
        /// The issuer's `algorithms`.
        accepted: Algorithms,
    },
    /// The key that the token names, or every key of the issuer, is for other algorithms. The key
    /// determines the algorithm, not the token.
    #[error("the issuer's key is not for {found}")]
    NotTheKeys {
        /// The token's `alg`.
        found: &'static str,
    },
}

/// What is wrong with a token's issuer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssuerFault {
    /// The token has no `iss`, and no section has `insecure_any_issuer`.
    #[error("it has no iss")]
    Missing,
    /// No section has this `iss`. The comparison is exact: a trailing slash counts.
    #[error("{0} is not configured")]
    Unknown(Excerpt),
    /// The caller named a section that does not exist (only for assumed tokens, which are not
    /// verified).
    #[error("there is no issuer section named {0}")]
    NoSuchSection(Excerpt),
}

/// What is wrong with a token's audience.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AudienceFault {
    /// The token has no `aud`.
    #[error("it has no aud")]
    Missing,
    /// `aud` names only others; the first of them is shown.
    #[error("its aud names {0}, which is not an accepted audience")]
    Other(Excerpt),
    /// `aud` is an empty array.
    #[error("its aud is empty")]
    Empty,
}

/// What is wrong with a claim. `claim` is the claim's name, or its path joined by dots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    /// A required claim is absent.
    #[error("{claim} is missing")]
    Missing {
        /// Which claim.
        claim: Excerpt,
    },
    /// The claim has the wrong type, or a value out of range.
    #[error("{claim} is not {expected}")]
    Type {
        /// Which claim.
        claim: Excerpt,
        /// The expected type.
        expected: &'static str,
    },
}

impl ClaimFault {
    /// The token is bound to a client certificate that its sender has not shown.
    pub(crate) fn not_shown() -> Self {
        Self::not("cnf.x5t#S256", "the certificate that the client has shown")
    }

    pub(super) fn missing(claim: impl AsRef<str>) -> Self {
        Self::Missing { claim: Excerpt::new(claim.as_ref()) }
    }

    pub(super) fn not(claim: impl AsRef<str>, expected: &'static str) -> Self {
        Self::Type { claim: Excerpt::new(claim.as_ref()), expected }
    }
}
