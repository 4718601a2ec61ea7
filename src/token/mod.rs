//! Token verification.
//!
//! [`Issuers::verify`] turns the text of a bearer token into a [`VerifiedToken`], or into an
//! [`InvalidToken`] that says why it was rejected. It is the only way from a client's bytes to
//! claims that a decision may be based on. The steps are implemented here, so that each has one
//! place and one meaning; the cryptography library does the signature arithmetic, with keys that
//! were parsed once. `jsonwebtoken` signs tokens and names the algorithms. Its own claim validation
//! is not used: it accepts tokens that lack the claims that it was asked to check.
//!
//! This module parses JWS in compact form, strictly (`jws`, `claims`); holds keys and the
//! algorithms that each may be used with (`keys`, `pem`, `jwk`, `rsa`); chooses the issuer and
//! checks the claims (`issuers`); and remembers verified tokens (`cache`). Outside the request
//! pipeline, [`Minter`] signs tokens for testing, and [`inspect`] shows the content of a token
//! without verifying it.
//!
//! Nothing here does input or output, asks for the time, or knows HTTP: a token is `Expired`, and
//! the gateway decides what to tell the client. No error or `Debug` output contains a token, a
//! secret, or more of a claim's value than a short, escaped excerpt of a name.

mod algorithms;
mod cache;
mod claims;
mod excerpt;
mod generate;
mod inspect;
mod invalid;
mod issuers;
mod jwk;
mod jws;
mod keys;
mod mint;
mod pem;
mod revocation;
mod revoked_keys;
mod rsa;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod vectors;

pub use self::algorithms::{Algorithm, Algorithms, Family};
pub use self::cache::{CacheBounds, Memo, Remembered, TokenCache};
pub use self::claims::{ClaimPath, NotAList, parse_object, string_list};
pub use self::excerpt::Excerpt;
pub use self::generate::{GenerateError, generate_private_pem, public_jwk};
pub use self::inspect::{Inspected, inspect};
pub use self::invalid::{
    AlgorithmFault, AudienceFault, ClaimFault, InvalidToken, IssuerFault, JsonFault, Malformed,
    Part,
};
pub use self::issuers::{
    AssumedToken, CERTIFICATE, DuplicateIssuer, IdToken, IdTokenFor, Issuer, IssuerSettings,
    Issuers, LiveKeys, LogoutToken, VerifiedToken,
};
pub use self::jwk::{LeftOut, LeftOutReason};
pub use self::jws::MAX_TOKEN_BYTES;
pub use self::keys::{Key, KeyError, KeySet, secret_is_short};
pub use self::mint::{MintError, Minter};
pub use self::pem::{PemNote, key_from_pem};
pub use self::revocation::{Revocation, RevokedBy, Scope};
pub use self::revoked_keys::{InvalidPattern, KeyPattern, RevokedKeys};
pub use self::rsa::RsaFault;

/// Installs the cryptography provider that `jsonwebtoken` and `rustls` use in this process: aws-lc
/// for both.
///
/// `main` and every test that uses a token or TLS calls it first. Calling it again has no effect.
pub fn install_crypto() {
    // Both fail if a provider is already installed, which only this function does.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
