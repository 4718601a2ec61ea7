//! Generation of signing keys for the built-in issuer.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use aws_lc_rs::{digest, encoding::AsDer};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pem::{EncodeConfig, LineEnding, Pem};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::algorithms::{Algorithm, Algorithms};
use super::keys::KeyError;
use super::pem::PrivateKey;

/// Why a key could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The cryptography library or the random number generator failed.
    #[error("a cryptographic operation failed")]
    Crypto,
    /// Keys can only be generated for ES256, RS256 and EdDSA.
    #[error("keys cannot be generated for {0}")]
    Algorithm(&'static str),
}

/// Generates a private key for `algorithm` (ES256, RS256 or EdDSA) as PKCS#8 in PEM. Generating an
/// RSA key takes a while: do not call this on a thread that others wait for.
///
/// # Errors
/// [`GenerateError::Algorithm`] for any other algorithm.
pub fn generate_private_pem(algorithm: Algorithm) -> Result<Zeroizing<String>, GenerateError> {
    let failed = |_| GenerateError::Crypto;
    let der: Zeroizing<Vec<u8>> = match algorithm {
        Algorithm::ES256 => {
            let made = EcdsaKeyPair::generate_pkcs8(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &SystemRandom::new(),
            )
            .map_err(failed)?;
            Zeroizing::new(made.as_ref().to_vec())
        }
        Algorithm::EdDSA => Zeroizing::new(
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?.as_ref().to_vec(),
        ),
        Algorithm::RS256 => {
            let made = RsaKeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
            Zeroizing::new(
                AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&made)
                    .map_err(failed)?
                    .as_ref()
                    .to_vec(),
            )
        }
        other => return Err(GenerateError::Algorithm(Algorithms::name(other))),
    };
    let block = Pem::new("PRIVATE KEY", der.as_slice());
    Ok(Zeroizing::new(pem::encode_config(
        &block,
        EncodeConfig::new().set_line_ending(LineEnding::LF),
    )))
}

/// The public part of a private key in PEM, as a JWK for `algorithm` only (RFC 7517). Its `kid` is
/// its thumbprint (RFC 7638).
///
/// # Errors
/// A [`KeyError`] that says what the PEM contains instead.
pub fn public_jwk(private_pem: &str, algorithm: Algorithm) -> Result<Map<String, Value>, KeyError> {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    // The members of the thumbprint, in its order: by name.
    let members = match PrivateKey::from_pem(private_pem.as_bytes())? {
        PrivateKey::Elliptic(Algorithm::ES256, pair) => {
            let (x, y) = pair
                .public_key()
                .as_ref()
                .get(1..)
                .and_then(|point| point.split_at_checked(32))
                .ok_or(KeyError::Unreadable)?;
            json!({ "crv": "P-256", "kty": "EC", "x": text(x), "y": text(y) })
        }
        PrivateKey::Edwards(pair) => {
            json!({ "crv": "Ed25519", "kty": "OKP", "x": text(pair.public_key().as_ref()) })
        }
        PrivateKey::Rsa(pair) => {
            let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
            json!({ "e": text(e.big_endian_without_leading_zero()), "kty": "RSA", "n": text(n.big_endian_without_leading_zero()) })
        }
        PrivateKey::Elliptic(..) => return Err(KeyError::Unsupported("EC P-384")),
    };
    let Value::Object(mut jwk) = members else { return Err(KeyError::Unreadable) };
    let thumbprint =
        digest::digest(&digest::SHA256, Value::Object(jwk.clone()).to_string().as_bytes());
    jwk.insert("kid".to_owned(), text(thumbprint.as_ref()).into());
    jwk.insert("use".to_owned(), "sig".into());
    jwk.insert("alg".to_owned(), Algorithms::name(algorithm).into());
    Ok(jwk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{KeySet, Minter};

    #[test]
    fn a_generated_key_verifies_its_own_signatures() {
        crate::token::install_crypto();
        for algorithm in [Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA] {
            let private = generate_private_pem(algorithm).unwrap();
            let jwk = public_jwk(&private, algorithm).unwrap();
            assert!(!jwk.contains_key("d") && jwk["kid"].as_str().unwrap().len() == 43);
            let (set, left_out) = KeySet::from_jwks(
                json!({ "keys": [jwk] }).to_string().as_bytes(),
                Algorithms::all(),
            )
            .unwrap();
            assert_eq!((set.len(), left_out), (1, vec![]));
            let kid = set.keys()[0].kid();
            let token = Minter::from_private_pem(private.as_bytes())
                .unwrap()
                .sign(algorithm, kid, "at+jwt", &Map::new())
                .unwrap();
            let (input, signature) = crate::token::samples::signed_parts(&token);
            assert_eq!(
                set.verify_signature(input.as_bytes(), &signature, algorithm, kid),
                Ok(()),
                "{algorithm:?}"
            );
        }
        assert!(matches!(
            generate_private_pem(Algorithm::HS256),
            Err(GenerateError::Algorithm("HS256"))
        ));
    }

    /// RFC 7638 §3.1.
    #[test]
    fn jwk_members_are_in_thumbprint_order() {
        let members = json!({ "n": "n", "kty": "RSA", "e": "AQAB" });
        assert_eq!(members.to_string(), r#"{"e":"AQAB","kty":"RSA","n":"n"}"#);
    }
}
