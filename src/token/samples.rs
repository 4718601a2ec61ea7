//! Keys, tokens and issuers shared by the tests of this folder.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::*;

/// The current time in all tests, in Unix seconds.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(super) const SECRET: &[u8] =
    b"a secret of exactly 64 bytes, long enough for each HMAC there is";

/// A file below `tests/vectors`.
pub(super) fn file(path: &str) -> Vec<u8> {
    install_crypto();
    std::fs::read(format!("{}/tests/vectors/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A file below `tests/vectors`, as JSON.
pub(super) fn json_file(path: &str) -> Value {
    serde_json::from_slice(&file(path)).unwrap()
}

pub(super) fn key_file(name: &str) -> Vec<u8> {
    file(&format!("keys/{name}"))
}

pub(super) fn rsa_modulus() -> Vec<u8> {
    let jwk =
        &json_file("wycheproof/rsa_signature_2048_sha256_test.json")["testGroups"][0]["keyJwk"];
    URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap()
}

/// An ES256 key as a JWK, from Wycheproof.
pub(super) fn p256_jwk() -> Value {
    json!({"kty": "EC", "crv": "P-256", "x": "KSexBRK64-3c_kZ4KBKLrSkDJpkZ9whgacjE32xzKDg", "y": "x3h5ZOqsAOWSH7FJimD0YGdms9loUAFVjRqXTnNBUT4"})
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    let Value::Object(members) = value else { panic!("expected an object") };
    members
}

/// The settings of an issuer `corp` whose `iss` is `https://corp.example`, for the audience
/// `reports`.
pub(super) fn settings(algorithms: Algorithms) -> IssuerSettings {
    IssuerSettings {
        name: "corp".into(),
        issuer: Some("https://corp.example".to_owned()),
        audience: Some(vec!["reports".to_owned(), "archive".to_owned()]),
        algorithms,
        roles: ClaimPath::new(["realm_access", "roles"]),
        subject: ClaimPath::new(["sub"]),
        leeway: Duration::from_secs(30),
        max_token_lifetime: Duration::from_hours(24),
        logout_audience: None,
        is_built_in: false,
    }
}

/// One issuer with [`SECRET`] and HS256, and with its settings changed by `change`.
pub(crate) fn issuers(change: impl FnOnce(&mut IssuerSettings)) -> Issuers {
    install_crypto();
    let algorithms = Algorithms::from(Algorithm::HS256);
    let mut settings = settings(algorithms);
    change(&mut settings);
    Issuers::new(vec![Arc::new(Issuer::new(
        settings,
        KeySet::from_secret(SECRET, algorithms).unwrap(),
    ))])
    .unwrap()
}

/// Claims that every check accepts at [`NOW`].
pub(super) fn claims() -> Value {
    json!({"iss": "https://corp.example", "aud": "reports", "sub": "u-17", "iat": NOW, "exp": NOW + 600, "realm_access": {"roles": ["auditor"]}})
}

/// [`claims`] with the members of `change` on top; `null` removes a member.
pub(crate) fn claims_with(change: Value) -> Map<String, Value> {
    let mut claims = object(claims());
    for (name, value) in object(change) {
        if value.is_null() {
            claims.remove(&name)
        } else {
            claims.insert(name, value)
        };
    }
    claims
}

/// A token made of these texts, signed with [`SECRET`] by HS256 whatever they say.
pub(super) fn signed(header: &str, payload: &str) -> String {
    install_crypto();
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(input.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{input}.{signature}")
}

pub(super) fn token(change: Value) -> String {
    signed(r#"{"alg":"HS256","typ":"JWT"}"#, &Value::Object(claims_with(change)).to_string())
}

/// The input of a token's signature, and the signature.
pub(super) fn signed_parts(token: &str) -> (&str, Vec<u8>) {
    let (input, signature) = token.rsplit_once('.').unwrap();
    (input, URL_SAFE_NO_PAD.decode(signature).unwrap())
}
