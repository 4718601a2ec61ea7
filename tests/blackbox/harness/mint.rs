//! Tokens of issuers and of attackers.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

/// The secret of `[issuer.corp]`: long enough for HS512.
pub const SECRET: &[u8] = b"a-secret-of-the-corp-that-is-long-enough-for-each-of-the-three-hashes";

/// `[issuer.corp]`, which [`super::gateway::complete`] adds.
pub const CORP: &str = r#"
issuer = "https://login.test/corp"
audience = ["reports"]
algorithms = ["HS256"]
secret = { file = "corp.secret" }
"#;

/// The `iss` of `[issuer.corp]`.
pub const ISSUER: &str = "https://login.test/corp";

/// A token of `[issuer.corp]` for `u-17` with these roles.
pub fn token(roles: &[&str]) -> String {
    claims(json!({ "roles": roles }))
}

/// A token of `[issuer.corp]` for `u-17` with these claims in addition to the usual ones; null
/// removes one.
pub fn claims(claims: Value) -> String {
    hmac().token(json!({}), claims)
}

/// The usual claims with these changes; null removes one.
pub fn payload(claims: &Value) -> Value {
    let mut all = json!({ "iss": ISSUER, "aud": "reports", "sub": "u-17", "iat": now() - 10, "exp": now() + 600 });
    for (name, value) in claims.as_object().unwrap() {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(name);
        } else {
            all[name] = value.clone();
        }
    }
    all
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A key pair of an issuer that publishes its public keys.
pub struct Published {
    kid: String,
    signer: Signer,
    public: Vec<u8>,
}

impl Published {
    /// A new ES256 key of this name.
    pub fn new(kid: &str) -> Self {
        install();
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self {
            kid: kid.to_owned(),
            signer: Signer { algorithm: Algorithm::ES256, key },
            public: pair.public_key_raw().to_vec(),
        }
    }

    /// As a member of a JWK Set: an uncompressed point is 4, x, y.
    pub fn jwk(&self) -> Value {
        let (x, y) = (encode(&self.public[1..33]), encode(&self.public[33..]));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid, "x": x, "y": y })
    }

    /// A token of this key, with these claims in addition to the usual ones.
    pub fn token(&self, claims: Value) -> String {
        self.signer.token(json!({ "kid": self.kid }), claims)
    }

    /// The same without `kid`.
    pub fn unnamed_token(&self, claims: Value) -> String {
        self.signer.token(json!({}), claims)
    }
}

/// The key that signs.
pub struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    /// A signed token. `header` is merged with `alg` and `typ`.
    pub fn token(&self, header: Value, claims: Value) -> String {
        let mut all = json!({ "alg": format!("{:?}", self.algorithm), "typ": "JWT" });
        for (name, value) in header.as_object().unwrap() {
            if value.is_null() {
                all.as_object_mut().unwrap().remove(name);
            } else {
                all[name] = value.clone();
            }
        }
        self.raw(&all.to_string(), &payload(&claims).to_string())
    }

    /// Signs any header and payload.
    pub fn raw(&self, header: &str, payload: &str) -> String {
        self.parts(&encode(header), &encode(payload))
    }

    /// Signs any encoded header and payload.
    pub fn parts(&self, header: &str, payload: &str) -> String {
        let input = format!("{header}.{payload}");
        let signature =
            jsonwebtoken::crypto::sign(input.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{input}.{signature}")
    }
}

/// base64url without padding.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// HS256 with [`SECRET`].
pub fn hmac() -> Signer {
    secret(Algorithm::HS256, SECRET)
}

/// An HMAC with any secret.
pub fn secret(algorithm: Algorithm, secret: &[u8]) -> Signer {
    install();
    Signer { algorithm, key: EncodingKey::from_secret(secret) }
}

/// Key pairs, generated once.
pub struct Keys {
    pub rsa: Pair,
    pub p256: Pair,
    pub p384: Pair,
    pub ed25519: Pair,
}

/// A private key, and the public key as PEM.
pub struct Pair {
    private: EncodingKey,
    pub public: String,
}

impl Pair {
    pub fn signs(&self, algorithm: Algorithm) -> Signer {
        Signer { algorithm, key: self.private.clone() }
    }
}

pub fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        install();
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let ec = |key: KeyPair| Pair {
            private: EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap(),
            public: key.public_key_pem(),
        };
        let ed25519 = Ed25519KeyPair::generate().unwrap();
        let ed25519_private = ed25519.to_pkcs8v1().unwrap();
        Keys {
            rsa: Pair {
                private: EncodingKey::from_rsa_pem(rsa.serialize_pem().as_bytes()).unwrap(),
                public: rsa.public_key_pem(),
            },
            p256: ec(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()),
            p384: ec(KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()),
            ed25519: Pair {
                private: EncodingKey::from_ed_der(ed25519_private.as_ref()),
                public: pem("PUBLIC KEY", ed25519.public_key().as_der().unwrap().as_ref()),
            },
        }
    })
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn install() {
    portcullis::token::install_crypto();
}
