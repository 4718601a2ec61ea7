//! Verification keys, and the algorithms that each may be used with.
//!
//! The key determines the algorithm (RFC 8725 §3.1): every [`Key`] carries the set of algorithms
//! that it may be used with, and a token's `alg` is only ever looked up in that set.

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};

use super::algorithms::{Algorithm, Algorithms, Family};
use super::excerpt::Excerpt;
use super::invalid::{AlgorithmFault, InvalidToken, JsonFault};
use super::rsa::{self, RsaFault};

/// One verification key, with the `kid` by which tokens may name it and the algorithms that it may
/// be used with.
///
/// It is parsed once: for each of its algorithms, it holds the form that the library verifies with.
pub struct Key {
    kid: Option<Box<str>>,
    family: Family,
    ready: Vec<(Algorithm, Ready)>,
}

/// A key that is ready to verify with exactly one algorithm.
enum Ready {
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

impl Key {
    /// The `kid` of the key. A key without one (PEM, secret) is tried for any `kid` of a token.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The family of the key.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The algorithms that the key may be used with.
    pub fn algorithms(&self) -> Algorithms {
        self.ready.iter().map(|(algorithm, _)| *algorithm).collect()
    }

    pub(super) fn named(self, kid: Option<Box<str>>) -> Self {
        Self { kid, ..self }
    }

    /// Restricts the key to `allowed`. Returns `None` if no algorithm remains.
    pub(super) fn restricted(mut self, allowed: Algorithms) -> Option<Self> {
        self.ready.retain(|(algorithm, _)| allowed.contains(*algorithm));
        (!self.ready.is_empty()).then_some(self)
    }

    /// Adds the algorithms of another listing of the same key.
    pub(super) fn join(&mut self, same: Self) {
        for (algorithm, ready) in same.ready {
            if self.ready_for(algorithm).is_none() {
                self.ready.push((algorithm, ready));
            }
        }
    }

    /// A shared secret, used as the HMAC key byte for byte (RFC 7518 §3.2).
    fn secret(secret: &[u8]) -> Self {
        let hashes = [
            (Algorithm::HS256, hmac::HMAC_SHA256),
            (Algorithm::HS384, hmac::HMAC_SHA384),
            (Algorithm::HS512, hmac::HMAC_SHA512),
        ];
        let ready = hashes.map(|(algorithm, hash)| {
            (algorithm, Ready::Secret(Box::new(hmac::Key::new(hash, secret))))
        });
        Self { kid: None, family: Family::Hmac, ready: ready.into() }
    }

    pub(super) fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, RsaFault> {
        let parsed = rsa::parsed(modulus, exponent)?;
        let ready =
            parsed.into_iter().map(|(algorithm, key)| (algorithm, Ready::Public(key))).collect();
        Ok(Self { kid: None, family: Family::Rsa, ready })
    }

    /// A key on the curve that `algorithm` implies, from an uncompressed point (SEC 1 §2.3.3).
    /// Returns `None` if the point is not on the curve.
    pub(super) fn elliptic(algorithm: Algorithm, point: &[u8]) -> Option<Self> {
        let curve: &'static dyn VerificationAlgorithm = match algorithm {
            Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &ECDSA_P384_SHA384_FIXED,
            _ => return None,
        };
        let key = ParsedPublicKey::new(curve, point).ok()?;
        Some(Self { kid: None, family: Family::Ec, ready: vec![(algorithm, Ready::Public(key))] })
    }

    /// An Ed25519 key from its 32 bytes (RFC 8032 §5.1.5). Also returns `None` for the points of
    /// small order, for which anyone can sign.
    pub(super) fn edwards(public: &[u8]) -> Option<Self> {
        let (&last, rest) = public.split_last()?;
        // The highest bit is the sign of the other coordinate. A point and its opposite have the
        // same order.
        let weak =
            SMALL_ORDER.iter().any(|point| point.split_last() == Some((&(last & 0x7f), rest)));
        if public.len() != 32 || weak {
            return None;
        }
        let key = ParsedPublicKey::new(&ED25519, public).ok()?;
        Some(Self {
            kid: None,
            family: Family::Ed,
            ready: vec![(Algorithm::EdDSA, Ready::Public(key))],
        })
    }

    /// Whether this key made `signature` over `message` with `algorithm`, which must be one of the
    /// key's own.
    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match self.ready_for(algorithm) {
            Some(Ready::Secret(key)) => hmac::verify(key, message, signature).is_ok(),
            Some(Ready::Public(key)) => key.verify_sig(message, signature).is_ok(),
            None => false,
        }
    }

    fn ready_for(&self, algorithm: Algorithm) -> Option<&Ready> {
        self.ready.iter().find(|(own, _)| *own == algorithm).map(|(_, ready)| ready)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kid = self.kid().map(Excerpt::new);
        f.debug_struct("Key")
            .field("kid", &kid)
            .field("algorithms", &self.algorithms())
            .finish_non_exhaustive()
    }
}

/// The keys of one issuer.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    by_kid: HashMap<Box<str>, Vec<usize>>,
}

impl KeySet {
    /// A set with one shared secret, used as the HMAC key byte for byte. The caller decides whether
    /// it is long enough, with [`secret_is_short`].
    ///
    /// # Errors
    ///
    /// [`KeyError::SecretEmpty`] for an empty secret; [`KeyError::NotForAlgorithms`] if
    /// `algorithms` contains no HMAC algorithm.
    pub fn from_secret(secret: &[u8], algorithms: Algorithms) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::SecretEmpty);
        }
        Self::from_keys(vec![Key::secret(secret)], algorithms)
    }

    /// A set of these keys, each restricted to those of `algorithms` that suit it.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotForAlgorithms`] if a key suits none of them.
    pub fn from_keys(keys: Vec<Key>, algorithms: Algorithms) -> Result<Self, KeyError> {
        let mut set = Self::default();
        for key in keys {
            let own = key.algorithms();
            set.add(
                key.restricted(algorithms)
                    .ok_or(KeyError::NotForAlgorithms { own, configured: algorithms })?,
            );
        }
        Ok(set)
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    pub(super) fn add(&mut self, key: Key) {
        let index = self.keys.len();
        if let Some(kid) = &key.kid {
            self.by_kid.entry(kid.clone()).or_default().push(index);
        }
        self.keys.push(key);
    }

    /// Verifies a signature: whether a key that the token may use made `signature` over
    /// `signing_input`.
    ///
    /// If the set knows the token's `kid`, only keys with exactly that `kid` are tried; otherwise
    /// only keys without a `kid`.
    ///
    /// # Errors
    ///
    /// [`InvalidToken::NoKeys`] if the set is empty. [`InvalidToken::KeyUnknown`] if no key
    /// qualifies, or if the set has keys with a `kid`, none with this one, and no key without a
    /// `kid` fits. [`InvalidToken::Algorithm`] if the keys that qualify are for other algorithms.
    /// [`InvalidToken::Signature`] if none of them made the signature.
    pub(super) fn verify_signature(
        &self,
        signing_input: &[u8],
        signature: &[u8],
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Result<(), InvalidToken> {
        let unknown = || InvalidToken::KeyUnknown { kid: kid.map(Excerpt::new) };
        let named = kid.and_then(|kid| self.by_kid.get(kid));
        let others: &[Key] = if named.is_some() { &[] } else { &self.keys };
        let candidates = || {
            let of_name = named.into_iter().flatten().filter_map(|&index| self.keys.get(index));
            of_name.chain(others.iter().filter(|key| kid.is_none() || key.kid.is_none()))
        };
        if candidates().next().is_none() {
            return Err(if self.keys.is_empty() { InvalidToken::NoKeys } else { unknown() });
        }
        let mut fitting = candidates()
            .filter(|key| key.ready_for(algorithm).is_some())
            .take(MAX_TRIED)
            .peekable();
        if fitting.peek().is_none() {
            return Err(AlgorithmFault::NotTheKeys { found: Algorithms::name(algorithm) }.into());
        }
        if fitting.any(|key| key.verifies(algorithm, signing_input, signature)) {
            return Ok(());
        }
        // In a set with named keys, an unknown `kid` may be that of a newer key, even if some older
        // key has no `kid`.
        if kid.is_some() && named.is_none() && !self.by_kid.is_empty() {
            Err(unknown())
        } else {
            Err(InvalidToken::Signature)
        }
    }
}

/// The length in bytes that a secret for these algorithms needs, if `length` is shorter: as long as
/// the hash (RFC 7518 §3.2).
pub fn secret_is_short(length: usize, algorithms: Algorithms) -> Option<usize> {
    let needed = algorithms.iter().map(|algorithm| match algorithm {
        Algorithm::HS256 => 32,
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 0,
    });
    needed.max().filter(|&needed| length < needed)
}

/// Why a key or key set cannot be loaded. The texts are for the author of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An empty secret.
    #[error("the secret is empty")]
    SecretEmpty,
    /// The key suits none of the configured algorithms.
    #[error("the key is for {own}, but the issuer's algorithms are {configured}")]
    NotForAlgorithms {
        /// What the key could be used with.
        own: Algorithms,
        /// The algorithms of the section.
        configured: Algorithms,
    },
    /// The file is empty or contains only white space.
    #[error("the file is empty")]
    Empty,
    /// The file exceeds the maximum size of its kind.
    #[error("the file has {length} bytes; the maximum is {most}")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
        /// The maximum, in bytes.
        most: usize,
    },
    /// No PEM block was found.
    #[error("the file is not PEM: it has no \"-----BEGIN PUBLIC KEY-----\"")]
    NotPem,
    /// A key in DER.
    #[error(
        "the file looks like a key in DER; convert it: openssl pkey -pubin -inform DER -in key.der -pubout -out key.pem"
    )]
    Der,
    /// An OpenSSH key.
    #[error("the file is an OpenSSH key; convert it: ssh-keygen -e -m PKCS8 -f key.pub > key.pem")]
    OpenSsh,
    /// A JWK or JWK Set where PEM was expected.
    #[error("the file is JSON, not PEM; put a JWK Set in jwks_file")]
    JsonNotPem,
    /// The PEM block cannot be decoded.
    #[error("the PEM block is damaged: its base64 or its BEGIN and END lines are wrong")]
    PemDamaged,
    /// More than one PEM block.
    #[error(
        "the file has {count} PEM blocks, but one key is expected; put each key in its own file and list all files"
    )]
    Several {
        /// How many blocks there are.
        count: usize,
    },
    /// An X.509 certificate.
    #[error(
        "the file is a certificate, not a key; extract the public key: openssl x509 -in cert.pem -pubkey -noout > key.pem"
    )]
    Certificate,
    /// A private key that is encrypted with a password.
    #[error(
        "the file is an encrypted private key; only the public key is needed: openssl pkey -in key.pem -pubout -out public.pem"
    )]
    EncryptedPrivateKey,
    /// A PEM block of another kind.
    #[error("the PEM block is a {0}; expected a \"PUBLIC KEY\"")]
    Label(Excerpt),
    /// A key type or curve that no supported algorithm uses.
    #[error(
        "{0} keys are not supported; use RSA of at least 2048 bits, EC on P-256 or P-384, or Ed25519"
    )]
    Unsupported(&'static str),
    /// The PEM block contains no key that can be parsed.
    #[error(
        "the key cannot be read: it is damaged, or of an unsupported kind (RSA, EC on P-256 or P-384, Ed25519)"
    )]
    Unreadable,
    /// An RSA key that must not be trusted.
    #[error("the key is refused: {0}")]
    Rsa(#[from] RsaFault),
    /// A web page.
    #[error(
        "the document is HTML, not a JWK Set: the address is that of a web page (a login page, or an error page)"
    )]
    Html,
    /// PEM where a JWK Set was expected.
    #[error("the document is PEM, not a JWK Set; put a PEM key in public_keys")]
    PemNotJson,
    /// Not one JSON object with distinct member names.
    #[error("the JWK Set {0}")]
    Json(JsonFault),
    /// One key instead of a set.
    #[error("the document is a single JWK; wrap it in a set: {{\"keys\": [ … ]}}")]
    SingleJwk,
    /// An OpenID Connect discovery document.
    #[error(
        "the document is a discovery document, not a JWK Set; set discovery = true, or use its jwks_uri"
    )]
    DiscoveryDocument,
    /// A JSON object without an array `keys`.
    #[error("the document is not a JWK Set (RFC 7517, section 5): it has no array \"keys\"")]
    NotAKeySet,
    /// The set has too many keys.
    #[error("the JWK Set has {count} keys; the maximum is {most}")]
    TooManyKeys {
        /// How many it has.
        count: usize,
        /// The maximum.
        most: usize,
    },
}

/// How many keys are tried for a token without a `kid`. An issuer has two or three keys at a time,
/// and each try costs a signature check.
const MAX_TRIED: usize = 16;

/// The encodings, without the sign bit, of the Ed25519 points whose order divides eight: the y
/// coordinates 0, 1, two of order eight, p - 1, p and p + 1. With such a key, a signature over one
/// message is valid for many.
#[rustfmt::skip]
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00],
    [0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00],
    [0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05],
    [0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a],
    [0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    [0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    [0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::samples::{SECRET, claims, key_file, object, p256_jwk, signed_parts};
    use crate::token::{Minter, key_from_pem};
    use serde_json::json;

    #[test]
    fn secrets() {
        let hs256 = Algorithms::from(Algorithm::HS256);
        assert_eq!(KeySet::from_secret(b"", hs256).map(|_| ()), Err(KeyError::SecretEmpty));
        let own = Algorithms::of_family(Family::Hmac);
        let configured = Algorithms::from(Algorithm::RS256);
        assert_eq!(
            KeySet::from_secret(SECRET, configured).map(|_| ()),
            Err(KeyError::NotForAlgorithms { own, configured })
        );
        assert_eq!(KeySet::from_secret(SECRET, hs256).map(|set| set.len()), Ok(1));

        assert_eq!(secret_is_short(31, hs256), Some(32));
        assert_eq!(secret_is_short(32, hs256), None);
        assert_eq!(secret_is_short(32, own), Some(64));
        assert_eq!(secret_is_short(0, configured), None);
    }

    #[test]
    fn points_of_small_order_are_rejected() {
        for point in SMALL_ORDER {
            let mut opposite = point;
            opposite[31] |= 0x80;
            assert!(
                Key::edwards(&point).is_none() && Key::edwards(&opposite).is_none(),
                "{point:?}"
            );
        }
        assert!(Key::edwards(&[]).is_none() && Key::edwards(&[1; 31]).is_none());
    }

    #[test]
    fn debug_output_contains_no_secret() {
        let set = KeySet::from_secret(SECRET, Algorithms::all()).unwrap();
        assert!(!format!("{set:?}").contains("secret of"), "{set:?}");
        assert!(!format!("{set:?}").contains("97, 32"), "{set:?}");
    }

    /// How a token's `kid` and `alg` select keys. The minter's key is `p256`; `p256_jwk` is a
    /// different key.
    #[test]
    #[expect(clippy::too_many_lines, reason = "one table of cases")]
    fn kid_and_alg_choose_the_keys() {
        crate::token::install_crypto();
        let minter = Minter::from_private_pem(&key_file("p256.pem")).unwrap();
        let key = |kid: Option<&str>| {
            key_from_pem(&key_file("p256-public.pem")).unwrap().0.named(kid.map(Into::into))
        };
        let rsa = |kid: Option<&str>| {
            key_from_pem(&key_file("rsa-public.pem")).unwrap().0.named(kid.map(Into::into))
        };
        let stranger = || {
            KeySet::from_jwks(
                json!({"keys": [p256_jwk()]}).to_string().as_bytes(),
                Algorithms::all(),
            )
            .unwrap()
            .0
            .keys
            .remove(0)
        };
        let not_the_keys = || InvalidToken::from(AlgorithmFault::NotTheKeys { found: "ES256" });
        let unknown = |kid: Option<&str>| InvalidToken::KeyUnknown { kid: kid.map(Excerpt::new) };

        let cases = [
            ("no key", vec![], None, Err(InvalidToken::NoKeys)),
            ("no key, kid", vec![], Some("a"), Err(InvalidToken::NoKeys)),
            ("its name", vec![stranger(), key(Some("a"))], Some("a"), Ok(())),
            ("another name", vec![key(Some("b"))], Some("a"), Err(unknown(Some("a")))),
            ("case counts", vec![key(Some("A"))], Some("a"), Err(unknown(Some("a")))),
            ("unnamed key, any kid", vec![key(None)], Some("a"), Ok(())),
            (
                "unnamed stranger, any kid",
                vec![stranger()],
                Some("a"),
                Err(InvalidToken::Signature),
            ),
            (
                "named beside unnamed",
                vec![key(Some("b")), stranger()],
                Some("a"),
                Err(unknown(Some("a"))),
            ),
            (
                "an exact name leaves no other key",
                vec![stranger().named(Some("a".into())), key(None)],
                Some("a"),
                Err(InvalidToken::Signature),
            ),
            (
                "no kid, all are tried",
                vec![rsa(Some("x")), stranger(), key(Some("b"))],
                None,
                Ok(()),
            ),
            (
                "no kid, none made it",
                vec![stranger(), rsa(None)],
                None,
                Err(InvalidToken::Signature),
            ),
            (
                "the named key is of another type",
                vec![rsa(Some("a")), key(Some("b"))],
                Some("a"),
                Err(not_the_keys()),
            ),
            ("one name, two types", vec![rsa(Some("a")), key(Some("a"))], Some("a"), Ok(())),
            ("no key of the type", vec![rsa(None)], None, Err(not_the_keys())),
            ("no key of the type, any kid", vec![rsa(None)], Some("a"), Err(not_the_keys())),
        ];
        for (what, keys, kid, expected) in cases {
            let set = KeySet::from_keys(keys, Algorithms::all()).unwrap();
            let token = minter.sign(Algorithm::ES256, kid, "JWT", &object(claims())).unwrap();
            let (input, signature) = signed_parts(&token);
            assert_eq!(
                set.verify_signature(input.as_bytes(), &signature, Algorithm::ES256, kid),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn a_token_without_kid_costs_a_bounded_number_of_checks() {
        crate::token::install_crypto();
        let minter = Minter::from_private_pem(&key_file("p256.pem")).unwrap();
        let token = minter.sign(Algorithm::ES256, None, "JWT", &object(claims())).unwrap();
        let (input, signature) = signed_parts(&token);
        for (before, found) in [(15, true), (16, false)] {
            let set = json!({"keys": vec![p256_jwk(); before]}).to_string();
            let (mut set, _) = KeySet::from_jwks(set.as_bytes(), Algorithms::all()).unwrap();
            set.add(key_from_pem(&key_file("p256-public.pem")).unwrap().0);
            assert_eq!(
                set.verify_signature(input.as_bytes(), &signature, Algorithm::ES256, None).is_ok(),
                found,
                "{before}"
            );
        }
    }

    /// A key may be pinned to one algorithm of its family; then it rejects the others.
    #[test]
    fn a_pinned_key_refuses_other_algorithms_of_its_family() {
        crate::token::install_crypto();
        let minter = Minter::from_private_pem(&key_file("rsa.pem")).unwrap();
        let set = KeySet::from_keys(
            vec![key_from_pem(&key_file("rsa-public.pem")).unwrap().0],
            Algorithm::PS256.into(),
        )
        .unwrap();
        for (algorithm, expected) in
            [(Algorithm::PS256, true), (Algorithm::RS256, false), (Algorithm::PS512, false)]
        {
            let token = minter.sign(algorithm, None, "JWT", &object(claims())).unwrap();
            let (input, signature) = signed_parts(&token);
            assert_eq!(
                set.verify_signature(input.as_bytes(), &signature, algorithm, None).is_ok(),
                expected,
                "{algorithm:?}"
            );
        }
    }
}
