//! Verifying what others, and we, signed.
//!
//! [`Issuers::verify`] turns the text of a bearer token into a [`VerifiedToken`], or into an
//! [`InvalidToken`] that says why not. It is the only way from bytes of a client to claims that
//! anything may be decided by. The steps are ours, so that each has one place and one meaning; the
//! crypto library does the signature arithmetic, with keys that were read once. `jsonwebtoken`
//! signs, and names the algorithms (its own claim validation accepts tokens without the claims that
//! it was told to check).
//!
//! Owned here: reading a JWS in compact form, strictly (`jws`, `claims`); keys and which algorithm
//! each may be used with (`keys`, `pem`, `jwk`, `rsa`); choosing the issuer and checking its claims
//! (`issuers`); remembering what was verified (`cache`). Beside the line stand [`Minter`], which
//! signs tokens for trying things out, and [`inspect`], which shows what a token says without
//! believing it.
//!
//! Nothing here does input or output, asks for the time, or knows of HTTP: a token is `Expired`,
//! and what that means to a client is the gateway's to say. No error or `Debug` form holds a token,
//! a secret, or the value of a claim beyond a short, escaped excerpt of a name.

mod ahead;
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
mod rsa;
#[cfg(test)]
mod samples;
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
    AssumedToken, DuplicateIssuer, Issuer, IssuerSettings, Issuers, LiveKeys, LogoutToken,
    VerifiedToken,
};
pub use self::jwk::{LeftOut, LeftOutReason};
pub use self::jws::MAX_TOKEN_BYTES;
pub use self::keys::{Key, KeyError, KeySet, secret_is_short};
pub use self::mint::{MintError, Minter};
pub use self::pem::{PemNote, key_from_pem};
pub use self::revocation::{Revocation, RevocationList, RevokedBy, Scope};
pub use self::rsa::RsaFault;

/// Installs the cryptography that `jsonwebtoken` and `rustls` use in this process: aws-lc in both.
///
/// `main` and every test that touches a token or TLS call it first. Calling it again changes
/// nothing.
pub fn install_crypto() {
    // Both answer with an error when a provider is already there; the only code that installs one
    // is this.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
