//! Signs tokens, for `portcullis token mint` and for tests.

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
    /// Creates a minter from a shared secret, used byte for byte.
    ///
    /// # Errors
    ///
    /// [`KeyError::SecretEmpty`] if the secret is empty.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::SecretEmpty);
        }
        let algorithms = Algorithms::of_family(Family::Hmac);
        Ok(Self { key: EncodingKey::from_secret(secret), algorithms, default: Algorithm::HS256 })
    }

    /// Creates a minter from the single private key in a PEM file: PKCS#8, PKCS#1 (RSA) or SEC 1
    /// (EC).
    ///
    /// # Errors
    ///
    /// A [`KeyError`] that says what the file contains instead.
    pub fn from_private_pem(file: &[u8]) -> Result<Self, KeyError> {
        let unreadable = |_| KeyError::Unreadable;
        // `jsonwebtoken` signs with PKCS#1 for RSA, and with PKCS#8 for the others. PKCS#8 is
        // encoded again here because it reads fewer forms.
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

    /// The algorithm to use by default: HS256, RS256, the one of the curve, or EdDSA.
    pub fn default_algorithm(&self) -> Algorithm {
        self.default
    }

    /// The algorithms that the key can be used with.
    pub fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    /// Signs a token in compact form with exactly these claims; nothing is added or checked.
    ///
    /// # Errors
    ///
    /// [`MintError::Algorithm`] if the key cannot be used with `algorithm`.
    pub fn sign(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        typ: &str,
        claims: &Map<String, Value>,
    ) -> Result<String, MintError> {
        if !self.algorithms.contains(algorithm) {
            return Err(MintError::Algorithm {
                asked: Algorithms::name(algorithm),
                own: self.algorithms,
            });
        }
        let mut header = Map::new();
        header.insert("alg".to_owned(), json!(Algorithms::name(algorithm)));
        header.insert("typ".to_owned(), json!(typ));
        if let Some(kid) = kid {
            header.insert("kid".to_owned(), json!(kid));
        }
        let encode = |part: &Map<String, Value>| {
            serde_json::to_vec(part).map(|json| URL_SAFE_NO_PAD.encode(json))
        };
        let signing_input = format!("{}.{}", encode(&header)?, encode(claims)?);
        let signature = jsonwebtoken::crypto::sign(signing_input.as_bytes(), &self.key, algorithm)
            .map_err(|_| MintError::Signing)?;
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
        /// The requested algorithm.
        asked: &'static str,
        /// The algorithms of the key.
        own: Algorithms,
    },
    /// The header or the claims could not be serialized.
    #[error("the claims could not be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The library could not sign.
    #[error("signing failed")]
    Signing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::samples::{SECRET, claims, key_file, object, signed_parts};
    use crate::token::{KeySet, key_from_pem};

    #[test]
    fn minted_tokens_verify() {
        for file in [
            "rsa.pem",
            "rsa-pkcs1.pem",
            "p256.pem",
            "p256-sec1.pem",
            "p384.pem",
            "ed25519.pem",
            "ed25519-v2.pem",
        ] {
            let minter = Minter::from_private_pem(&key_file(file)).unwrap();
            let set = KeySet::from_keys(
                vec![key_from_pem(&key_file(file)).unwrap().0],
                Algorithms::all(),
            )
            .unwrap();
            assert!(minter.algorithms().contains(minter.default_algorithm()));
            for algorithm in minter.algorithms().iter() {
                let token = minter.sign(algorithm, Some("k"), "at+jwt", &object(claims())).unwrap();
                let (input, signature) = signed_parts(&token);
                assert_eq!(
                    set.verify_signature(input.as_bytes(), &signature, algorithm, None),
                    Ok(()),
                    "{file}, {algorithm:?}"
                );
            }
        }
        let secret = Minter::from_secret(SECRET).unwrap();
        let set = KeySet::from_secret(SECRET, Algorithms::all()).unwrap();
        for algorithm in secret.algorithms().iter() {
            let token = secret.sign(algorithm, None, "JWT", &object(claims())).unwrap();
            let (input, signature) = signed_parts(&token);
            assert_eq!(
                set.verify_signature(input.as_bytes(), &signature, algorithm, None),
                Ok(()),
                "{algorithm:?}"
            );
        }
    }

    #[test]
    fn a_minter_refuses_algorithms_that_its_key_cannot_use() {
        let minter = Minter::from_private_pem(&key_file("p256.pem")).unwrap();
        let refused = minter.sign(Algorithm::ES384, None, "JWT", &object(claims())).unwrap_err();
        assert_eq!(refused.to_string(), "the key cannot sign with ES384; it is for ES256");
        assert_eq!(Minter::from_secret(b"").unwrap_err(), KeyError::SecretEmpty);
        assert!(matches!(
            Minter::from_private_pem(&key_file("p256-public.pem")),
            Err(KeyError::Label(_))
        ));
        assert_eq!(
            Minter::from_private_pem(&key_file("encrypted.pem")).unwrap_err(),
            KeyError::EncryptedPrivateKey
        );
        assert!(!format!("{minter:?}").contains("key:"));
    }
}
