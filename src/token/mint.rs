//! Signing tokens: for `portcullis token mint`, and for tests.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde_json::{Map, Value, json};

use super::algorithms::{Algorithm, Algorithms, Family};
use super::keys::KeyError;
use super::pem::PrivateKey;

/// A key that signs tokens.
pub struct Minter {
    key: EncodingKey,
    algorithms: Algorithms,
    default: Algorithm,
}

impl Minter {
    /// A minter with a shared secret, used byte for byte.
    ///
    /// # Errors
    ///
    /// [`KeyError::SecretEmpty`].
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::SecretEmpty);
        }
        let algorithms = Algorithms::of_family(Family::Hmac);
        Ok(Self { key: EncodingKey::from_secret(secret), algorithms, default: Algorithm::HS256 })
    }

    /// A minter with the one private key in a PEM file: PKCS#8, PKCS#1 (RSA) or SEC 1 (EC).
    ///
    /// # Errors
    ///
    /// A [`KeyError`] that says what the file is instead.
    pub fn from_private_pem(file: &[u8]) -> Result<Self, KeyError> {
        let unreadable = |_| KeyError::Unreadable;
        // What `jsonwebtoken` signs with: PKCS#1 for RSA; for the others PKCS#8, which is written anew because it reads fewer forms.
        Ok(match PrivateKey::from_pem(file)? {
            PrivateKey::Rsa(_) => Self {
                key: EncodingKey::from_rsa_pem(file).map_err(|_| KeyError::Unreadable)?,
                algorithms: Algorithms::of_family(Family::Rsa),
                default: Algorithm::RS256,
            },
            PrivateKey::Elliptic(algorithm, pair) => Self {
                key: EncodingKey::from_ec_der(pair.to_pkcs8v1().map_err(unreadable)?.as_ref()),
                algorithms: algorithm.into(),
                default: algorithm,
            },
            PrivateKey::Edwards(pair) => Self {
                key: EncodingKey::from_ed_der(pair.to_pkcs8v1().map_err(unreadable)?.as_ref()),
                algorithms: Algorithm::EdDSA.into(),
                default: Algorithm::EdDSA,
            },
        })
    }

    /// The algorithm to use when none is asked for: HS256, RS256, that of the curve, or EdDSA.
    pub fn default_algorithm(&self) -> Algorithm {
        self.default
    }

    /// The algorithms that the key can be used with.
    pub fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    /// A signed token in compact form, with these claims exactly: nothing is added or checked.
    ///
    /// # Errors
    ///
    /// [`MintError`].
    pub fn sign(&self, algorithm: Algorithm, kid: Option<&str>, typ: &str, claims: &Map<String, Value>) -> Result<String, MintError> {
        if !self.algorithms.contains(algorithm) {
            return Err(MintError::Algorithm { asked: Algorithms::name(algorithm), own: self.algorithms });
        }
        let mut header = Map::new();
        header.insert("alg".to_owned(), json!(Algorithms::name(algorithm)));
        header.insert("typ".to_owned(), json!(typ));
        if let Some(kid) = kid {
            header.insert("kid".to_owned(), json!(kid));
        }
        let encode = |part: &Map<String, Value>| serde_json::to_vec(part).map(|json| URL_SAFE_NO_PAD.encode(json));
        let signing_input = format!("{}.{}", encode(&header)?, encode(claims)?);
        let signature = jsonwebtoken::crypto::sign(signing_input.as_bytes(), &self.key, algorithm).map_err(|_| MintError::Signing)?;
        Ok(format!("{signing_input}.{signature}"))
    }
}

impl std::fmt::Debug for Minter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minter").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

/// Why a token could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The key is for other algorithms.
    #[error("the key cannot sign with {asked}; it is for {own}")]
    Algorithm {
        /// What was asked for.
        asked: &'static str,
        /// What the key is for.
        own: Algorithms,
    },
    /// The header or the claims could not be written as JSON.
    #[error("the claims could not be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The library could not sign.
    #[error("signing failed")]
    Signing,
}
