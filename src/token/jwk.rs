//! JWK Sets (RFC 7517), parsed strictly and key by key: usable keys are kept, and the others are
//! reported.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithms::{Algorithm, Algorithms, Family};
use super::claims::parse_object;
use super::excerpt::Excerpt;
use super::keys::{Key, KeyError, KeySet};
use super::rsa::RsaFault;

impl KeySet {
    /// Parses a JWK Set. Keys that cannot or must not be used are left out, each with a reason (RFC
    /// 7517 §5 requires ignoring keys that cannot be used). The set may end up empty, which the
    /// caller has to check. Each key is restricted to those of `algorithms` that suit its type, its
    /// curve and its `alg`.
    ///
    /// # Errors
    ///
    /// A [`KeyError`] if the bytes are not a JWK Set at all. It says what they are instead.
    pub fn from_jwks(
        bytes: &[u8],
        algorithms: Algorithms,
    ) -> Result<(Self, Vec<LeftOut>), KeyError> {
        let members = key_members(bytes)?;
        let mut left_out = Vec::new();
        let mut usable: Vec<(usize, Key, Vec<u8>)> = Vec::new();
        for (index, member) in members.iter().enumerate() {
            let kid = member.as_object().and_then(|jwk| jwk.get("kid")).and_then(Value::as_str);
            match read_key(member, algorithms) {
                Ok((key, public)) => match usable
                    .iter_mut()
                    .find(|(_, earlier, known)| is_same(earlier, known, &key, &public))
                {
                    // The same key listed twice, or once per `alg`, is one key.
                    Some((_, earlier, _)) => earlier.join(key),
                    None => usable.push((index, key, public)),
                },
                Err(reason) => left_out.push(LeftOut { index, kid: kid.map(Excerpt::new), reason }),
            }
        }
        // Two different keys with the same `kid` and type: whoever added the second may want it to
        // pass for the first. Neither is used.
        let mut namesakes: HashMap<(Box<str>, u8), usize> = HashMap::new();
        for (_, key, _) in &usable {
            if let Some(kid) = key.kid() {
                *namesakes.entry((kid.into(), family_index(key.family()))).or_default() += 1;
            }
        }
        let mut set = Self::default();
        for (index, key, _) in usable {
            match key.kid() {
                Some(kid)
                    if namesakes.get(&(kid.into(), family_index(key.family()))) != Some(&1) =>
                {
                    left_out.push(LeftOut {
                        index,
                        kid: Some(Excerpt::new(kid)),
                        reason: LeftOutReason::DuplicateKid,
                    });
                }
                _ => set.add(key),
            }
        }
        left_out.sort_by_key(|left| left.index);
        Ok((set, left_out))
    }
}

/// A key of a JWK Set that is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {index}{} of the set is not used: {reason}", kid.as_ref().map(|kid| format!(" (kid {kid})")).unwrap_or_default())]
pub struct LeftOut {
    /// Its index in `keys`, from 0.
    pub index: usize,
    /// Its `kid`, if it has one.
    pub kid: Option<Excerpt>,
    /// Why it is not used.
    pub reason: LeftOutReason,
}

impl LeftOutReason {
    /// Whether a well-kept set may contain such keys: they are for another purpose, or for clients
    /// with other algorithms.
    pub const fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::Use(_)
                | Self::KeyOps
                | Self::KeyType(_)
                | Self::Curve(_)
                | Self::Algorithm(_)
                | Self::NotConfigured { .. }
        )
    }
}

/// Why a key of a JWK Set is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftOutReason {
    /// An element of `keys` that is not an object.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// `kty` is `oct`: anyone who can read the set could sign.
    #[error(
        "it is a shared secret (kty oct), which a key set must not publish; put a secret in `secret`"
    )]
    Symmetric,
    /// It has a member that only private keys have (RFC 7518 §6.2.2, §6.3.2): anyone who can read
    /// the set can sign.
    #[error(
        "it contains its private part, so anyone who reads the set can sign with it. Publish the public part of a new key"
    )]
    Private,
    /// `use` is not `sig` (RFC 7517 §4.2).
    #[error("its use is {0}, not sig")]
    Use(Excerpt),
    /// `key_ops` lacks `verify` (RFC 7517 §4.3).
    #[error("its key_ops do not include verify")]
    KeyOps,
    /// No supported algorithm uses this `kty`.
    #[error("its kty {0} is not supported")]
    KeyType(Excerpt),
    /// No supported algorithm uses this `crv`.
    #[error("its crv {0} is not supported")]
    Curve(Excerpt),
    /// `alg` is not a configured algorithm, or does not suit the key.
    #[error("its alg {0} is not configured for this issuer, or does not suit the key")]
    Algorithm(Excerpt),
    /// None of the configured algorithms suits the key.
    #[error("it is for {own}, and none of these is configured for this issuer")]
    NotConfigured {
        /// What the key could be used with.
        own: Algorithms,
    },
    /// A member that the key type requires is absent.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A member has the wrong type, or is not base64url without padding.
    #[error("its {0} is invalid")]
    Member(&'static str),
    /// The coordinates are not a point on the curve, or have the wrong length.
    #[error("its coordinates are not a point on the curve")]
    Point,
    /// The RSA key is too weak or malformed.
    #[error("{0}")]
    Rsa(#[from] RsaFault),
    /// Another key in the set has the same `kid` and type; neither is used.
    #[error("another key in the set has the same kid")]
    DuplicateKid,
}

/// The elements of `keys`, or an error that says what the document is instead.
fn key_members(bytes: &[u8]) -> Result<Vec<Value>, KeyError> {
    if bytes.len() > MAX_SET_BYTES {
        return Err(KeyError::TooLarge { length: bytes.len(), most: MAX_SET_BYTES });
    }
    let text = bytes.trim_ascii();
    match text {
        [] => return Err(KeyError::Empty),
        [b'<', ..] => return Err(KeyError::Html),
        _ if text.starts_with(b"-----BEGIN") => return Err(KeyError::PemNotJson),
        _ => {}
    }
    let mut document = parse_object(text).map_err(KeyError::Json)?;
    match document.remove("keys") {
        Some(Value::Array(keys)) if keys.len() > MAX_KEYS => {
            Err(KeyError::TooManyKeys { count: keys.len(), most: MAX_KEYS })
        }
        Some(Value::Array(keys)) => Ok(keys),
        _ if document.contains_key("kty") => Err(KeyError::SingleJwk),
        _ if document.contains_key("jwks_uri") => Err(KeyError::DiscoveryDocument),
        _ => Err(KeyError::NotAKeySet),
    }
}

/// A key, and the numbers that identify it.
fn read_key(member: &Value, configured: Algorithms) -> Result<(Key, Vec<u8>), LeftOutReason> {
    let jwk = Jwk(member.as_object().ok_or(LeftOutReason::NotAnObject)?);
    let kty = jwk.text("kty")?.ok_or(LeftOutReason::Missing("kty"))?;
    if kty == "oct" {
        return Err(LeftOutReason::Symmetric);
    }
    if let Some(purpose) = jwk.text("use")?.filter(|purpose| *purpose != "sig") {
        return Err(LeftOutReason::Use(Excerpt::new(purpose)));
    }
    jwk.check_operations()?;
    let kid = jwk.text("kid")?.map(Into::into);
    let alg = jwk.text("alg")?;
    let (key, public) = match kty {
        "RSA" => {
            let (n, e) = (jwk.bytes("n")?, jwk.bytes("e")?);
            (Key::rsa(&n, &e)?, [&n.len().to_be_bytes()[..], &n, &e].concat())
        }
        "EC" => elliptic(&jwk)?,
        "OKP" => match jwk.text("crv")?.ok_or(LeftOutReason::Missing("crv"))? {
            "Ed25519" => {
                let x = jwk.bytes("x")?;
                (Key::edwards(&x).ok_or(LeftOutReason::Point)?, x)
            }
            other => return Err(LeftOutReason::Curve(Excerpt::new(other))),
        },
        other => return Err(LeftOutReason::KeyType(Excerpt::new(other))),
    };
    // `d` is the private part for all three types; no public member has this name.
    if jwk.get("d").is_some() {
        return Err(LeftOutReason::Private);
    }
    let own = key.algorithms();
    let allowed = match alg {
        Some(name) => {
            let unusable = || LeftOutReason::Algorithm(Excerpt::new(name));
            let named = Algorithms::parse(name).map(Algorithms::from).ok_or_else(unusable)?;
            if named.intersection(own).intersection(configured).is_empty() {
                return Err(unusable());
            }
            named.intersection(configured)
        }
        None => configured,
    };
    Ok((key.restricted(allowed).ok_or(LeftOutReason::NotConfigured { own })?.named(kid), public))
}

/// RFC 7518 §6.2.1: both coordinates have the full length of the curve's field, including leading
/// zeros.
fn elliptic(jwk: &Jwk<'_>) -> Result<(Key, Vec<u8>), LeftOutReason> {
    let (algorithm, length) = match jwk.text("crv")?.ok_or(LeftOutReason::Missing("crv"))? {
        "P-256" => (Algorithm::ES256, 32),
        "P-384" => (Algorithm::ES384, 48),
        other => return Err(LeftOutReason::Curve(Excerpt::new(other))),
    };
    let (x, y) = (jwk.bytes("x")?, jwk.bytes("y")?);
    if x.len() != length || y.len() != length {
        return Err(LeftOutReason::Point);
    }
    let point = [&[UNCOMPRESSED], &x[..], &y[..]].concat();
    Ok((Key::elliptic(algorithm, &point).ok_or(LeftOutReason::Point)?, point))
}

/// Whether two members of a set are the same key with the same `kid`.
fn is_same(one: &Key, one_public: &[u8], other: &Key, other_public: &[u8]) -> bool {
    one.kid().is_some()
        && one.kid() == other.kid()
        && one.family() == other.family()
        && one_public == other_public
}

/// One JWK, with readers for the types that its members must have. Unknown members are ignored (RFC
/// 7517 §4). A member that is `null` counts as absent, since some serializers write it so.
struct Jwk<'a>(&'a Map<String, Value>);

impl<'a> Jwk<'a> {
    fn get(&self, name: &'static str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &'static str) -> Result<Option<&'a str>, LeftOutReason> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(LeftOutReason::Member(name)),
        }
    }

    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, LeftOutReason> {
        let text = self.text(name)?.ok_or(LeftOutReason::Missing(name))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| LeftOutReason::Member(name))
    }

    fn check_operations(&self) -> Result<(), LeftOutReason> {
        match self.get("key_ops") {
            None => Ok(()),
            Some(Value::Array(operations))
                if operations.iter().any(|operation| operation == "verify") =>
            {
                Ok(())
            }
            Some(Value::Array(_)) => Err(LeftOutReason::KeyOps),
            Some(_) => Err(LeftOutReason::Member("key_ops")),
        }
    }
}

fn family_index(family: Family) -> u8 {
    match family {
        Family::Hmac => 0,
        Family::Rsa => 1,
        Family::Ec => 2,
        Family::Ed => 3,
    }
}

/// The first byte of an uncompressed point (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;
/// The maximum size of a JWK Set, in bytes.
const MAX_SET_BYTES: usize = 1024 * 1024;
/// The maximum number of keys in a JWK Set.
const MAX_KEYS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::samples::p256_jwk;
    use serde_json::json;

    fn p256_with(change: Value) -> Value {
        let mut jwk = p256_jwk();
        for (name, value) in crate::token::samples::object(change) {
            jwk[name] = value;
        }
        jwk
    }

    fn read(keys: &Value, algorithms: Algorithms) -> (KeySet, Vec<LeftOutReason>) {
        let (set, left_out) =
            KeySet::from_jwks(json!({"keys": keys}).to_string().as_bytes(), algorithms).unwrap();
        (set, left_out.into_iter().map(|left| left.reason).collect())
    }

    #[test]
    fn keys_that_must_not_be_used_are_ignored() {
        let x = p256_jwk()["x"].clone();
        let cases = [
            (json!(1), LeftOutReason::NotAnObject),
            (json!({"kty": "oct", "k": "AAAA", "alg": "ES256"}), LeftOutReason::Symmetric),
            (p256_with(json!({"use": "enc"})), LeftOutReason::Use(Excerpt::new("enc"))),
            (p256_with(json!({"key_ops": ["encrypt"]})), LeftOutReason::KeyOps),
            (p256_with(json!({"key_ops": []})), LeftOutReason::KeyOps),
            (p256_with(json!({"key_ops": "verify"})), LeftOutReason::Member("key_ops")),
            (p256_with(json!({"kid": 1})), LeftOutReason::Member("kid")),
            (p256_with(json!({"alg": "ES384"})), LeftOutReason::Algorithm(Excerpt::new("ES384"))),
            (p256_with(json!({"alg": "none"})), LeftOutReason::Algorithm(Excerpt::new("none"))),
            (p256_with(json!({"alg": "RS256"})), LeftOutReason::Algorithm(Excerpt::new("RS256"))),
            (p256_with(json!({"kty": "ec"})), LeftOutReason::KeyType(Excerpt::new("ec"))),
            (p256_with(json!({"kty": "RSA"})), LeftOutReason::Missing("n")),
            (
                p256_with(json!({"crv": "secp256k1"})),
                LeftOutReason::Curve(Excerpt::new("secp256k1")),
            ),
            (p256_with(json!({"crv": "P-384"})), LeftOutReason::Point),
            (p256_with(json!({"y": x})), LeftOutReason::Point),
            (p256_with(json!({"y": "AAAA"})), LeftOutReason::Point),
            (p256_with(json!({"y": "AAAA="})), LeftOutReason::Member("y")),
            (p256_with(json!({"d": x})), LeftOutReason::Private),
            (
                json!({"kty": "OKP", "crv": "Ed448", "x": x}),
                LeftOutReason::Curve(Excerpt::new("Ed448")),
            ),
            (
                json!({"kty": "OKP", "crv": "X25519", "x": x}),
                LeftOutReason::Curve(Excerpt::new("X25519")),
            ),
            (json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}), LeftOutReason::Point),
            (json!({"kty": "OKP", "x": x}), LeftOutReason::Missing("crv")),
            (json!({"crv": "P-256"}), LeftOutReason::Missing("kty")),
        ];
        for (jwk, expected) in cases {
            let (set, left_out) = read(&json!([jwk]), Algorithms::all());
            assert_eq!((set.len(), left_out), (0, vec![expected]), "{jwk}");
        }
        let (set, left_out) = read(
            &json!([p256_with(
                json!({"use": "sig", "key_ops": ["verify"], "alg": "ES256", "x5c": 1})
            )]),
            Algorithms::all(),
        );
        assert_eq!((set.len(), left_out), (1, vec![]));
    }

    #[test]
    fn a_key_is_for_configured_algorithms_only() {
        let (set, left_out) = read(&json!([p256_jwk()]), Algorithm::RS256.into());
        assert_eq!(
            (set.len(), left_out),
            (0, vec![LeftOutReason::NotConfigured { own: Algorithm::ES256.into() }])
        );
        let rsa = crate::token::samples::json_file(
            "wycheproof/rsa_signature_2048_sha256_test.json",
        )["testGroups"][0]["keyJwk"]
            .clone();
        let (set, _) = read(&json!([rsa]), Algorithms::all());
        assert_eq!(set.keys()[0].algorithms(), Algorithm::RS256.into());
    }

    /// jsonwebtoken's `JwkSet::find` returns the first of two keys with the same `kid`.
    #[test]
    fn two_keys_with_the_same_kid_are_both_ignored() {
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "a"});
        let other = json!({
            "kid": "a", "x": "CtmVACiNRmlAAx1yqfVEWk1DeEZAhVvwpph00t5f4QM", "y": "xQEebvLELc1Q1dPSn5mubrosgMkkT0xUIvCXn_DDul4",
        });
        let keys = json!([
            p256_with(json!({"kid": "a"})),
            ed,
            p256_with(json!({"kid": "b"})),
            p256_with(other)
        ]);
        let (set, left_out) =
            KeySet::from_jwks(json!({"keys": keys}).to_string().as_bytes(), Algorithms::all())
                .unwrap();
        let names: Vec<_> = set.keys().iter().map(|key| (key.kid(), key.family())).collect();
        assert_eq!(names, [(Some("a"), Family::Ed), (Some("b"), Family::Ec)]);
        let message = left_out.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            message[0],
            "key 0 (kid \"a\") of the set is not used: another key in the set has the same kid"
        );
        assert_eq!(left_out.iter().map(|left| left.index).collect::<Vec<_>>(), [0, 3]);
    }

    /// Listing the same key again does not impersonate another key.
    #[test]
    fn a_key_listed_twice_counts_once() {
        let a = p256_with(json!({"kid": "a"}));
        let (set, left_out) =
            read(&json!([a, a, p256_with(json!({"kid": "b"}))]), Algorithms::all());
        assert_eq!((set.len(), left_out), (2, vec![]));
        let rsa = crate::token::samples::json_file(
            "wycheproof/rsa_signature_2048_sha256_test.json",
        )["testGroups"][0]["keyJwk"]
            .clone();
        let for_alg = |alg: &str| {
            let mut jwk = rsa.clone();
            jwk["kid"] = json!("a");
            jwk["alg"] = json!(alg);
            jwk
        };
        let (set, left_out) = read(
            &json!([for_alg("RS256"), for_alg("RS512"), for_alg("RS256"), a]),
            Algorithms::all(),
        );
        assert_eq!(
            (set.len(), left_out),
            (2, vec![]),
            "an RSA and an EC key with the same kid are two keys"
        );
        assert_eq!(
            set.keys()[0].algorithms(),
            [Algorithm::RS256, Algorithm::RS512].into_iter().collect()
        );
        // With a different key of the same name, it is unclear which one is meant.
        let mut stranger = rsa.clone();
        stranger["kid"] = json!("a");
        stranger["e"] = json!("Aw");
        let (set, left_out) =
            read(&json!([for_alg("RS256"), stranger, for_alg("RS512")]), Algorithms::all());
        assert_eq!((set.len(), left_out), (0, vec![LeftOutReason::DuplicateKid; 2]));
    }

    #[test]
    fn a_member_that_is_null_is_absent() {
        let nulls =
            json!({"kid": null, "use": null, "key_ops": null, "alg": null, "d": null, "x5t": null});
        let (set, left_out) = read(&json!([p256_with(nulls)]), Algorithms::all());
        assert_eq!((set.len(), left_out), (1, vec![]));
        assert_eq!(set.keys()[0].kid(), None);
        let (_, left_out) = read(&json!([p256_with(json!({"x": null}))]), Algorithms::all());
        assert_eq!(left_out, [LeftOutReason::Missing("x")]);
    }

    #[test]
    fn an_invalid_set_is_reported() {
        let many = format!("{{\"keys\":[{}1]}}", "1,".repeat(1000));
        let cases: [(&str, KeyError); 14] = [
            ("", KeyError::Empty),
            ("<!DOCTYPE html><html>", KeyError::Html),
            ("  \n<html>", KeyError::Html),
            ("-----BEGIN PUBLIC KEY-----", KeyError::PemNotJson),
            ("not json", KeyError::Json(crate::token::JsonFault::Syntax)),
            ("[]", KeyError::Json(crate::token::JsonFault::NotAnObject)),
            (
                r#"{"keys":[],"keys":[]}"#,
                KeyError::Json(crate::token::JsonFault::Duplicate(Excerpt::new("keys"))),
            ),
            (
                r#"{"keys":[{"kty":"EC","kty":"RSA"}]}"#,
                KeyError::Json(crate::token::JsonFault::Duplicate(Excerpt::new("kty"))),
            ),
            (r#"{"kty":"RSA","n":"","e":""}"#, KeyError::SingleJwk),
            (r#"{"issuer":"x","jwks_uri":"y"}"#, KeyError::DiscoveryDocument),
            ("{}", KeyError::NotAKeySet),
            (r#"{"keys":{}}"#, KeyError::NotAKeySet),
            (r#"{"error":"not found"}"#, KeyError::NotAKeySet),
            (&many, KeyError::TooManyKeys { count: 1001, most: 1000 }),
        ];
        for (text, expected) in cases {
            assert_eq!(
                KeySet::from_jwks(text.as_bytes(), Algorithms::all()).map(|_| ()),
                Err(expected),
                "{text:.60}"
            );
        }
        let large = " ".repeat(1024 * 1024 + 1);
        assert!(matches!(
            KeySet::from_jwks(large.as_bytes(), Algorithms::all()),
            Err(KeyError::TooLarge { .. })
        ));
        let (set, left_out) = KeySet::from_jwks(br#"{"keys":[]}"#, Algorithms::all()).unwrap();
        assert!(set.is_empty() && left_out.is_empty());
    }
}
