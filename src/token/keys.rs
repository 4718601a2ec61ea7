//! Verification keys: which there are, and which algorithms each may be used with.
//!
//! The key chooses the algorithm (RFC 8725 §3.1): every [`Key`] carries the set that it may be used
//! with, and a token's `alg` is only ever looked up in that set.

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

/// One verification key, with the `kid` that tokens may name it by and the algorithms that it may
/// be used with.
///
/// It is read once: for each of its algorithms, the key stands ready as the library verifies with
/// it.
pub struct Key {
    kid: Option<Box<str>>,
    family: Family,
    ready: Vec<(Algorithm, Ready)>,
}

/// A key that is ready to verify by one algorithm, and by no other.
enum Ready {
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

impl Key {
    /// The name that tokens use for the key. A key without one (PEM, secret) is tried whatever
    /// `kid` a token has.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What kind of key it is.
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

    /// The key, for `allowed` only; without what is left when that is nothing.
    pub(super) fn restricted(mut self, allowed: Algorithms) -> Option<Self> {
        self.ready.retain(|(algorithm, _)| allowed.contains(*algorithm));
        (!self.ready.is_empty()).then_some(self)
    }

    /// What the same key may be used with by another listing of it.
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

    /// A key on the curve that fixes `algorithm`, from an uncompressed point (SEC 1 §2.3.3); `None`
    /// when the point is not on the curve.
    pub(super) fn elliptic(algorithm: Algorithm, point: &[u8]) -> Option<Self> {
        let curve: &'static dyn VerificationAlgorithm = match algorithm {
            Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &ECDSA_P384_SHA384_FIXED,
            _ => return None,
        };
        let key = ParsedPublicKey::new(curve, point).ok()?;
        Some(Self { kid: None, family: Family::Ec, ready: vec![(algorithm, Ready::Public(key))] })
    }

    /// An Ed25519 key from its 32 bytes (RFC 8032 §5.1.5); `None` also for the points of small
    /// order, for which anyone can sign.
    pub(super) fn edwards(public: &[u8]) -> Option<Self> {
        let (&last, rest) = public.split_last()?;
        // The highest bit is the sign of the other coordinate; a point and its opposite have the
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

    /// Whether this key made `signature` over `message` by `algorithm`, which must be one of the
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
    /// The set of one shared secret, used as the HMAC key byte for byte. Whether it is long enough
    /// is the caller's decision: [`secret_is_short`].
    ///
    /// # Errors
    ///
    /// [`KeyError::SecretEmpty`]; [`KeyError::NotForAlgorithms`] when `algorithms` holds no HMAC
    /// algorithm.
    pub fn from_secret(secret: &[u8], algorithms: Algorithms) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::SecretEmpty);
        }
        Self::from_keys(vec![Key::secret(secret)], algorithms)
    }

    /// The set of these keys, each for those of `algorithms` that suit it.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotForAlgorithms`] when a key suits none of them.
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

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
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

    /// The signature step: whether a key that the token may use made `signature` over
    /// `signing_input`.
    ///
    /// A `kid` that the set knows leaves only the keys of exactly that name; one that it does not
    /// know, only keys without a name.
    ///
    /// # Errors
    ///
    /// [`InvalidToken::NoKeys`] when there is none; [`InvalidToken::KeyUnknown`] when no key comes
    /// into question, also when a set with named keys has no key of this name and no unnamed key
    /// fits; [`InvalidToken::Algorithm`] when the keys that do are for other algorithms;
    /// [`InvalidToken::Signature`].
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
        // A name that a set with names does not know may be that of a newer key, even if some older
        // key has no name.
        if kid.is_some() && named.is_none() && !self.by_kid.is_empty() {
            Err(unknown())
        } else {
            Err(InvalidToken::Signature)
        }
    }
}

/// The length in bytes that a secret for these algorithms needs, if `length` is below it: as long
/// as the hash (RFC 7518 §3.2).
pub fn secret_is_short(length: usize, algorithms: Algorithms) -> Option<usize> {
    let needed = algorithms.iter().map(|algorithm| match algorithm {
        Algorithm::HS256 => 32,
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 0,
    });
    needed.max().filter(|&needed| length < needed)
}

/// Why a key, or a set of keys, cannot be loaded. The texts are for whoever wrote the
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret of no bytes.
    #[error("the secret is empty")]
    SecretEmpty,
    /// The key and the configured algorithms have nothing in common.
    #[error("the key is for {own}, but the configured algorithms are {configured}")]
    NotForAlgorithms {
        /// What the key could be used with.
        own: Algorithms,
        /// What the section lists.
        configured: Algorithms,
    },
    /// No bytes, or only white space.
    #[error("there is no key: the file is empty")]
    Empty,
    /// More bytes than a key file of this kind has.
    #[error("the file has {length} bytes; at most {most} are read")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
        /// The most that is read, in bytes.
        most: usize,
    },
    /// No PEM block was found.
    #[error("this is not PEM: no \"-----BEGIN PUBLIC KEY-----\" was found")]
    NotPem,
    /// A key in DER.
    #[error(
        "this looks like a key in DER; convert it: openssl pkey -pubin -inform DER -in key.der -pubout -out key.pem"
    )]
    Der,
    /// An OpenSSH key.
    #[error("this is an OpenSSH key; convert it: ssh-keygen -e -m PKCS8 -f key.pub > key.pem")]
    OpenSsh,
    /// A JWK or JWK Set where PEM was expected.
    #[error("this is JSON, not PEM; a JWK Set belongs in jwks_file")]
    JsonNotPem,
    /// The PEM block cannot be decoded.
    #[error("the PEM block is damaged: its base64 or its BEGIN and END lines are wrong")]
    PemDamaged,
    /// More than one PEM block.
    #[error(
        "the file has {count} PEM blocks where one key is expected; put each key in a file of its own and list them all"
    )]
    Several {
        /// How many blocks there are.
        count: usize,
    },
    /// An X.509 certificate.
    #[error(
        "this is a certificate, not a key; take the public key out of it: openssl x509 -in cert.pem -pubkey -noout > key.pem"
    )]
    Certificate,
    /// A private key under a password.
    #[error(
        "this is an encrypted private key; only the public key is needed: openssl pkey -in key.pem -pubout -out public.pem"
    )]
    EncryptedPrivateKey,
    /// A PEM block of another kind.
    #[error("the PEM block is a {0}; a \"PUBLIC KEY\" is expected")]
    Label(Excerpt),
    /// A key type or curve that no supported algorithm uses.
    #[error(
        "{0} keys are not supported; use RSA of at least 2048 bits, EC on P-256 or P-384, or Ed25519"
    )]
    Unsupported(&'static str),
    /// The content of the PEM block is not a key that can be read.
    #[error(
        "the key cannot be read: it is damaged, or of a kind that is not supported (RSA, EC on P-256 or P-384, Ed25519)"
    )]
    Unreadable,
    /// An RSA key that must not be trusted.
    #[error("the key is refused: {0}")]
    Rsa(#[from] RsaFault),
    /// A web page.
    #[error(
        "this is HTML, not a JWK Set: the address leads to a web page (a login page, or an error page)"
    )]
    Html,
    /// PEM where a JWK Set was expected.
    #[error("this is PEM, not a JWK Set; a PEM key belongs in public_keys")]
    PemNotJson,
    /// Not one JSON object with distinct member names.
    #[error("the JWK Set {0}")]
    Json(JsonFault),
    /// One key instead of a set.
    #[error("this is a single JWK; wrap it into a set: {{\"keys\": [ … ]}}")]
    SingleJwk,
    /// An OpenID Connect discovery document.
    #[error(
        "this is a discovery document, not a JWK Set; set discovery = true, or use the address in its jwks_uri"
    )]
    DiscoveryDocument,
    /// A JSON object without an array `keys`.
    #[error("this is no JWK Set (RFC 7517, section 5): it has no array \"keys\"")]
    NotAKeySet,
    /// More keys than are read.
    #[error("the JWK Set has {count} keys; at most {most} are read")]
    TooManyKeys {
        /// How many it has.
        count: usize,
        /// The most that are read.
        most: usize,
    },
}

/// How many keys are tried for a token that names none: an issuer has two or three at a time, and
/// each try costs a signature check.
const MAX_TRIED: usize = 16;

/// The encodings, less the sign, of the Ed25519 points whose order divides eight: 0, 1, two of
/// order eight, p - 1, p and p + 1, for the coordinate y. Under such a key a signature over one
/// message is one over many.
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
    fn points_of_small_order_are_no_keys() {
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
    fn debug_shows_no_secret() {
        let set = KeySet::from_secret(SECRET, Algorithms::all()).unwrap();
        assert!(!format!("{set:?}").contains("secret of"), "{set:?}");
        assert!(!format!("{set:?}").contains("97, 32"), "{set:?}");
    }

    /// The rules by which a token's `kid` and `alg` lead to keys. The minter's key is `p256`;
    /// `p256_jwk` is a stranger's.
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

    /// A key may be pinned to one algorithm of its family; the others are then not its own.
    #[test]
    fn a_pinned_key_refuses_its_familys_other_algorithms() {
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
