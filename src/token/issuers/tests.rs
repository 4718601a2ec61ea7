//! Tests of what is accepted and what is not, rule by rule.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::token::samples::*;
use crate::token::*;

/// The first word of the variant, for tables.
fn outcome(result: &Result<VerifiedToken, InvalidToken>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(InvalidToken::Malformed(_)) => "malformed",
        Err(InvalidToken::Algorithm(_)) => "algorithm",
        Err(InvalidToken::NoKeys) => "no keys",
        Err(InvalidToken::KeyUnknown { .. }) => "key unknown",
        Err(InvalidToken::Signature) => "signature",
        Err(InvalidToken::Unknown) => "unknown",
        Err(InvalidToken::Expired { .. }) => "expired",
        Err(InvalidToken::NotYetValid { .. }) => "not yet valid",
        Err(InvalidToken::Issuer(_)) => "issuer",
        Err(InvalidToken::Audience(_)) => "audience",
        Err(InvalidToken::Claims(_)) => "claims",
        Err(InvalidToken::Lifetime { .. }) => "lifetime",
        Err(InvalidToken::Revoked(_)) => "revoked",
    }
}

/// The changes to good claims, and the expected result of each.
fn table(issuers: &Issuers, cases: impl IntoIterator<Item = (Value, &'static str)>) {
    for (change, expected) in cases {
        let result = issuers.verify(&token(change.clone()), NOW);
        assert_eq!(outcome(&result), expected, "{change}: {result:?}");
    }
}

fn payload() -> String {
    claims().to_string()
}

#[test]
fn a_valid_token_identifies_its_caller() {
    let token = token(
        json!({"scope": "read write", "scp": ["write", "admin"], "jti": "t-1", "sid": "s-1", "email": "a@b.example"}),
    );
    let verified = issuers(|_| {}).verify(&token, NOW).unwrap();
    assert_eq!(&**verified.issuer_name(), "corp");
    assert_eq!(verified.issuer(), Some("https://corp.example"));
    assert_eq!(verified.subject(), "u-17");
    assert_eq!(verified.roles(), ["auditor"]);
    assert_eq!(verified.scopes(), ["read", "write", "admin"]);
    assert_eq!((verified.expires_at(), verified.issued_at()), (NOW + 600, Some(NOW)));
    assert_eq!((verified.jti(), verified.sid()), (Some("t-1"), Some("s-1")));
    assert_eq!(verified.claim(&ClaimPath::new(["email"])), Some(&json!("a@b.example")));
    assert_eq!(format!("{verified:?}"), "VerifiedToken { issuer_name: \"corp\", .. }");
}

#[test]
fn a_token_has_three_parts_of_strict_base64url() {
    let good = token(json!({}));
    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let cases = [
        (String::new(), "malformed"),
        ("..".to_owned(), "malformed"),
        ("x".to_owned(), "malformed"),
        (format!("{header}.{claims}"), "malformed"),
        (format!("{good}."), "malformed"),
        (format!("{good}.x.y"), "malformed"),
        (format!(" {good}"), "malformed"),
        (format!("{good}\n"), "malformed"),
        (format!("{header}=.{claims}.{signature}"), "malformed"),
        (format!("{header}.{claims}=.{signature}"), "malformed"),
        (format!("{header}.{claims}.{signature}="), "malformed"),
        (format!("{header}.{claims}.{}+", &signature[1..]), "malformed"),
        (format!("{header}..{signature}"), "malformed"),
        (format!(".{claims}.{signature}"), "malformed"),
        (format!("{header}.{claims}."), "signature"),
        (format!("{header}.{claims}.{}", &signature[..42]), "malformed"),
        (format!("{header}.{claims}.{}", &signature[..40]), "signature"),
        (good.clone(), "ok"),
    ];
    for (text, expected) in cases {
        assert_eq!(outcome(&issuers(|_| {}).verify(&text, NOW)), expected, "{text}");
    }
}

/// HMAC tags have 32 bytes in 43 letters, which leaves two unused bits. A parser that ignores them
/// accepts four spellings of one token.
#[test]
fn leftover_bits_are_refused() {
    let good = token(json!({}));
    let (start, last) = good.split_at(good.len() - 1);
    let same_tag = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".as_bytes();
    let place = same_tag.iter().position(|letter| *letter == last.as_bytes()[0]).unwrap();
    for letter in &same_tag[place + 1..place + 4] {
        let spelling = format!("{start}{}", *letter as char);
        assert_eq!(outcome(&issuers(|_| {}).verify(&spelling, NOW)), "malformed");
    }
}

#[test]
fn a_long_token_is_not_parsed() {
    let issuers = issuers(|_| {});
    let of_length = |length: usize| issuers.verify(&"a".repeat(length), NOW).unwrap_err();
    assert_eq!(
        of_length(16 * 1024 + 1),
        InvalidToken::Malformed(Malformed::TooLong { length: 16 * 1024 + 1, most: 16 * 1024 })
    );
    assert_eq!(of_length(16 * 1024), InvalidToken::Malformed(Malformed::Parts { count: 1 }));
}

#[test]
fn an_encrypted_token_is_recognised() {
    assert_eq!(
        issuers(|_| {}).verify("e30.a.b.c.d", NOW).unwrap_err(),
        InvalidToken::Malformed(Malformed::Encrypted)
    );
}

#[test]
fn headers() {
    let cases = [
        (r#"{"alg":"HS256"}"#, "ok"),
        (r#"{"alg":"HS256","typ":"JWT"}"#, "ok"),
        (r#"{"alg":"HS256","typ":"jwt"}"#, "ok"),
        (r#"{"alg":"HS256","typ":"at+jwt"}"#, "ok"),
        (r#"{"alg":"HS256","typ":"AT+JWT"}"#, "ok"),
        (r#"{"alg":"HS256","typ":"application/at+jwt"}"#, "ok"),
        (r#"{"alg":"HS256","typ":"Application/AT+jwt"}"#, "ok"),
        (r#"{"alg":"HS256","kid":"whatever"}"#, "ok"),
        (r#"{"alg":"HS256","b64":true}"#, "ok"),
        (r#"{"alg":"HS256","typ":"logout+jwt"}"#, "malformed"),
        (r#"{"alg":"HS256","typ":"dpop+jwt"}"#, "malformed"),
        (r#"{"alg":"HS256","typ":""}"#, "malformed"),
        (r#"{"alg":"HS256","typ":1}"#, "malformed"),
        (r#"{"alg":"HS256","typ":null}"#, "malformed"),
        (r#"{"alg":"HS256","kid":1}"#, "malformed"),
        (r#"{"alg":"HS256","kid":null}"#, "malformed"),
        (r#"{"alg":"HS256","kid":["a"]}"#, "malformed"),
        (r#"{"alg":"HS256","b64":false}"#, "malformed"),
        (r#"{"alg":"HS256","alg":"HS256"}"#, "malformed"),
        (r#"{"alg":"none","alg":"HS256"}"#, "malformed"),
        (r#"{"alg":"HS256","x":{"a":1,"a":2}}"#, "malformed"),
        (r#"{"alg":["HS256"]}"#, "malformed"),
        (r#"{"alg":null}"#, "malformed"),
        (r#"["HS256"]"#, "malformed"),
        ("", "malformed"),
        ("{", "malformed"),
        (r"{}", "algorithm"),
        (r#"{"alg":"none"}"#, "algorithm"),
        (r#"{"alg":"None"}"#, "algorithm"),
        (r#"{"alg":"nOnE"}"#, "algorithm"),
        (r#"{"alg":""}"#, "algorithm"),
        (r#"{"alg":"hs256"}"#, "algorithm"),
        (r#"{"alg":"HS256\u0000"}"#, "algorithm"),
        (r#"{"alg":"ES512"}"#, "algorithm"),
        (r#"{"alg":"Ed25519"}"#, "algorithm"),
        (r#"{"alg":"HS384"}"#, "algorithm"),
        (r#"{"alg":"RS256"}"#, "algorithm"),
    ];
    for (header, expected) in cases {
        let result = issuers(|_| {}).verify(&signed(header, &payload()), NOW);
        assert_eq!(outcome(&result), expected, "{header}: {result:?}");
    }
}

#[test]
fn crit_is_refused_whatever_it_lists() {
    for crit in ["[]", r#"["exp"]"#, r#"["b64"]"#, "null", "false", r#""x""#] {
        let token = signed(&format!(r#"{{"alg":"HS256","crit":{crit}}}"#), &payload());
        assert_eq!(
            issuers(|_| {}).verify(&token, NOW).unwrap_err(),
            InvalidToken::Malformed(Malformed::Critical),
            "{crit}"
        );
    }
}

/// RFC 8725 §3.10: a signature by a key that the token itself contains proves nothing.
#[test]
fn keys_within_the_token_are_never_used() {
    let stranger = Minter::from_private_pem(&key_file("p256.pem")).unwrap();
    let settings = settings(Algorithm::ES256.into());
    let keys = KeySet::from_jwks(
        json!({"keys": [p256_jwk()]}).to_string().as_bytes(),
        Algorithm::ES256.into(),
    )
    .unwrap()
    .0;
    let issuers = Issuers::new(vec![Arc::new(Issuer::new(settings, keys))]).unwrap();
    let token = stranger.sign(Algorithm::ES256, None, "JWT", &object(claims())).unwrap();
    assert_eq!(issuers.verify(&token, NOW).unwrap_err(), InvalidToken::Signature);
    // With our own signature such members are ignored, not followed.
    let own = signed(
        r#"{"alg":"HS256","jku":"http://evil.example/","x5u":"http://evil.example/","jwk":{"kty":"oct","k":"AA"},"x5c":["AA"]}"#,
        &payload(),
    );
    assert!(super::super::samples::issuers(|_| {}).verify(&own, NOW).is_ok());
}

/// The public key used as an HMAC secret: the classic algorithm confusion (RFC 8725 §2.1).
#[test]
fn a_public_key_is_not_accepted_as_a_secret() {
    let pem = key_file("rsa-public.pem");
    let keys = KeySet::from_keys(vec![key_from_pem(&pem).unwrap().0], Algorithms::all()).unwrap();
    let issuers =
        Issuers::new(vec![Arc::new(Issuer::new(settings(Algorithms::all()), keys))]).unwrap();
    let forged = Minter::from_secret(&pem)
        .unwrap()
        .sign(Algorithm::HS256, None, "JWT", &object(claims()))
        .unwrap();
    let fault = AlgorithmFault::NotTheKeys { found: "HS256" };
    assert_eq!(issuers.verify(&forged, NOW).unwrap_err(), InvalidToken::Algorithm(fault));
}

#[test]
fn the_payload_is_one_object_without_duplicates() {
    let cases = [
        "",
        "null",
        "[]",
        "\"text\"",
        "{\"sub\":",
        r#"{"iss":"https://corp.example","iss":"https://corp.example"}"#,
        r#"{"iss":"https://corp.example","roles":["a"],"roles":["root"]}"#,
        r#"{"iss":"https://corp.example","realm_access":{"roles":[],"roles":["root"]}}"#,
    ];
    for text in cases {
        assert_eq!(
            outcome(&issuers(|_| {}).verify(&signed(r#"{"alg":"HS256"}"#, text), NOW)),
            "malformed",
            "{text}"
        );
    }
}

#[test]
fn iss_chooses_the_issuer() {
    table(
        &issuers(|_| {}),
        [
            (json!({}), "ok"),
            (json!({"iss": null}), "issuer"), // absent
            (json!({"iss": "https://corp.example/"}), "issuer"),
            (json!({"iss": "https://CORP.example"}), "issuer"),
            (json!({"iss": ""}), "issuer"),
            (json!({"iss": "https://other.example"}), "issuer"),
            (json!({"iss": 42}), "claims"),
            (json!({"iss": true}), "claims"),
        ],
    );
}

/// jsonwebtoken accepts an `iss` that is an array with the expected value.
#[test]
fn iss_as_an_array_is_refused() {
    table(
        &issuers(|_| {}),
        [(json!({"iss": ["https://corp.example"]}), "claims"), (json!({"iss": {}}), "claims")],
    );
    let null = payload().replace("\"https://corp.example\"", "null");
    assert_eq!(
        outcome(&issuers(|_| {}).verify(&signed(r#"{"alg":"HS256"}"#, &null), NOW)),
        "claims"
    );
}

#[test]
fn any_issuer_takes_only_tokens_without_iss() {
    let any = issuers(|settings| settings.issuer = None);
    table(
        &any,
        [
            (json!({"iss": null}), "ok"),
            (json!({}), "issuer"),
            (json!({"iss": ""}), "issuer"),
            (json!({"iss": 1}), "claims"),
        ],
    );
    let verified = any.verify(&token(json!({"iss": null})), NOW).unwrap();
    assert_eq!(verified.issuer(), None);
}

#[test]
fn a_key_verifies_only_tokens_of_its_own_issuer() {
    let algorithms = Algorithms::from(Algorithm::HS256);
    let issuer = |name: &str, iss: Option<&str>, secret: &[u8]| {
        let settings = IssuerSettings {
            name: name.into(),
            issuer: iss.map(str::to_owned),
            ..settings(algorithms)
        };
        Arc::new(Issuer::new(settings, KeySet::from_secret(secret, algorithms).unwrap()))
    };
    install_crypto();
    let issuers = Issuers::new(vec![
        issuer("corp", Some("https://corp.example"), SECRET),
        issuer("other", Some("https://other.example"), b"other"),
        issuer("any", None, b"third"),
    ])
    .unwrap();
    assert_eq!(&**issuers.verify(&token(json!({})), NOW).unwrap().issuer_name(), "corp");
    table(
        &issuers,
        [
            (json!({"iss": "https://other.example"}), "signature"),
            (json!({"iss": null}), "signature"),
        ],
    );

    let twice = vec![issuer("a", Some("x"), SECRET), issuer("b", Some("x"), SECRET)];
    let error = Issuers::new(twice).unwrap_err();
    assert_eq!((&*error.first, &*error.second, error.issuer.as_deref()), ("a", "b", Some("x")));
    assert!(
        Issuers::new(vec![issuer("a", None, SECRET), issuer("b", None, SECRET)])
            .unwrap_err()
            .issuer
            .is_none()
    );
}

/// jsonwebtoken accepts a token without `aud` although an audience is set, unless `aud` is also
/// required.
#[test]
fn audiences() {
    table(
        &issuers(|_| {}),
        [
            (json!({"aud": "reports"}), "ok"),
            (json!({"aud": "archive"}), "ok"),
            (json!({"aud": ["x", "archive"]}), "ok"),
            (json!({"aud": null}), "audience"),
            (json!({"aud": []}), "audience"),
            (json!({"aud": ""}), "audience"),
            (json!({"aud": "Reports"}), "audience"),
            (json!({"aud": "reports archive"}), "audience"),
            (json!({"aud": ["x"]}), "audience"),
            (json!({"aud": 42}), "claims"),
            (json!({"aud": {"reports": true}}), "claims"),
            (json!({"aud": ["reports", 42]}), "claims"),
        ],
    );
    let any = issuers(|settings| settings.audience = None);
    table(
        &any,
        [(json!({"aud": null}), "ok"), (json!({"aud": "x"}), "ok"), (json!({"aud": 42}), "claims")],
    );
}

#[test]
fn times() {
    table(
        &issuers(|_| {}),
        [
            (json!({"exp": NOW - 29}), "ok"),
            (json!({"exp": NOW - 30}), "expired"),
            (json!({"exp": 0}), "expired"),
            (json!({"exp": NOW as f64 + 600.9}), "ok"),
            (json!({"exp": NOW as f64 - 29.1}), "expired"), // floored to NOW - 30
            (json!({"nbf": NOW + 30}), "ok"),
            (json!({"nbf": NOW + 31}), "not yet valid"),
            (json!({"nbf": NOW as f64 + 30.9}), "ok"),
            (json!({"iat": NOW + 30}), "ok"),
            (json!({"iat": NOW + 31}), "not yet valid"),
            (json!({"iat": null}), "ok"),
        ],
    );
}

/// jsonwebtoken does not check `nbf` by default.
#[test]
fn nbf_is_checked() {
    table(&issuers(|_| {}), [(json!({"nbf": NOW + 3600}), "not yet valid")]);
}

/// jsonwebtoken does not check `iat`.
#[test]
fn iat_is_checked() {
    table(&issuers(|_| {}), [(json!({"iat": NOW + 300, "exp": NOW + 600}), "not yet valid")]);
}

/// jsonwebtoken still accepts a token during the second of its `exp`; RFC 7519 §4.1.4 does not.
#[test]
fn without_leeway_a_token_ends_at_its_exp() {
    let strict = issuers(|settings| settings.leeway = Duration::ZERO);
    table(
        &strict,
        [
            (json!({"exp": NOW + 1}), "ok"),
            (json!({"exp": NOW}), "expired"),
            (json!({"nbf": NOW}), "ok"),
            (json!({"nbf": NOW + 1}), "not yet valid"),
        ],
    );
}

/// jsonwebtoken subtracts the leeway without checking for overflow.
#[test]
fn extreme_times_do_not_overflow() {
    let wide = issuers(|settings| settings.leeway = Duration::MAX);
    let result = wide.verify(&token(json!({"exp": 0, "iat": 0, "nbf": 0})), u64::MAX - 1);
    assert_eq!(outcome(&result), "ok");
    assert_eq!(outcome(&wide.verify(&token(json!({"exp": 1, "iat": (1_u64 << 53) - 1})), 0)), "ok");
    let strict = issuers(|settings| settings.leeway = Duration::ZERO);
    assert_eq!(outcome(&strict.verify(&token(json!({})), u64::MAX)), "expired");
    assert_eq!(outcome(&strict.verify(&token(json!({})), 0)), "not yet valid");
}

#[test]
fn times_are_numbers() {
    for name in ["exp", "nbf", "iat"] {
        let wrong = [
            json!("1800000600"),
            json!(-1),
            json!(-0.5),
            json!(1e300),
            json!(1_u64 << 53),
            json!(u64::MAX),
            json!(true),
            json!([NOW]),
            json!({}),
        ];
        table(&issuers(|_| {}), wrong.into_iter().map(|value| (json!({name: value}), "claims")));
        let null = Value::Object(claims_with(json!({name: "NULL"})))
            .to_string()
            .replace("\"NULL\"", "null");
        assert_eq!(
            outcome(&issuers(|_| {}).verify(&signed(r#"{"alg":"HS256"}"#, &null), NOW)),
            "claims",
            "{name}: null"
        );
    }
    table(&issuers(|_| {}), [(json!({"exp": null}), "claims")]);
}

/// jsonwebtoken has no maximum lifetime.
#[test]
fn lifetimes_are_bounded() {
    let day = 24 * 3600;
    table(
        &issuers(|_| {}),
        [
            (json!({"exp": NOW + day}), "ok"),
            (json!({"exp": NOW + day + 1}), "lifetime"),
            (json!({"iat": NOW - day, "exp": NOW + 1}), "lifetime"),
            (json!({"iat": null, "exp": NOW + day}), "ok"),
            (json!({"iat": null, "exp": NOW + day + 1}), "lifetime"),
            (json!({"exp": (1_u64 << 53) - 1}), "lifetime"),
            (json!({"iat": NOW + 20, "exp": NOW + 10}), "ok"),
        ],
    );
}

#[test]
fn subjects() {
    table(
        &issuers(|_| {}),
        [
            (json!({"sub": null}), "claims"),
            (json!({"sub": ""}), "claims"),
            (json!({"sub": true}), "claims"),
            (json!({"sub": ["u-17"]}), "claims"),
            (json!({"sub": 1.5}), "claims"),
            (json!({"sub": 1e300}), "claims"),
            (json!({"sub": 42}), "ok"),
            (json!({"sub": -1}), "ok"),
        ],
    );
    assert_eq!(issuers(|_| {}).verify(&token(json!({"sub": 42})), NOW).unwrap().subject(), "42");
    // Two accounts that a parser with doubles would confuse.
    let huge = payload().replace("\"u-17\"", "18446744073709551617");
    assert_eq!(
        outcome(&issuers(|_| {}).verify(&signed(r#"{"alg":"HS256"}"#, &huge), NOW)),
        "claims"
    );

    let elsewhere = issuers(|settings| settings.subject = ClaimPath::new(["user", "id"]));
    table(
        &elsewhere,
        [
            (json!({}), "claims"),
            (json!({"user": {"id": 7}, "sub": null}), "ok"),
            (json!({"user": {"id": 7}, "sub": {}}), "claims"),
        ],
    );

    let by_email = issuers(|settings| settings.subject = ClaimPath::new(["email"]));
    table(
        &by_email,
        [
            (json!({"email": "a@b.example"}), "ok"),
            (json!({"email": "a@b.example", "email_verified": true}), "ok"),
            (json!({"email": "a@b.example", "email_verified": false}), "claims"),
            (json!({"email": "a@b.example", "email_verified": "false"}), "claims"),
        ],
    );
}

#[test]
fn roles_and_scopes() {
    table(
        &issuers(|_| {}),
        [
            (json!({"realm_access": null}), "ok"),
            (json!({"realm_access": "x"}), "ok"),
            (json!({"realm_access": {"roles": "a b"}}), "ok"),
            (json!({"realm_access": {"roles": [1]}}), "claims"),
            (json!({"realm_access": {"roles": {"a": 1}}}), "claims"),
            (json!({"realm_access": {"roles": true}}), "claims"),
            (json!({"scope": ["a"]}), "ok"),
            (json!({"scope": true}), "claims"),
            (json!({"scp": [1]}), "claims"),
            (json!({"jti": 1}), "claims"),
            (json!({"sid": 1}), "claims"),
        ],
    );
    let roles = |change| issuers(|_| {}).verify(&token(change), NOW).unwrap().roles().to_vec();
    assert_eq!(roles(json!({"realm_access": {"roles": "a b"}})), ["a", "b"]);
    assert_eq!(roles(json!({"realm_access": {"roles": ["a b", "c"]}})), ["a b", "c"]);
    assert!(roles(json!({"realm_access": {}})).is_empty());
}

#[test]
fn an_unverified_email_is_not_shown() {
    let verified = issuers(|_| {})
        .verify(&token(json!({"email": "a@b.example", "email_verified": false})), NOW)
        .unwrap();
    assert_eq!(verified.claim(&ClaimPath::new(["email"])), None);
    assert!(verified.claims().contains_key("email"));
}

#[test]
fn assumed_claims_pass_the_same_checks() {
    let issuers = issuers(|_| {});
    let verified = |assumed: AssumedToken| assumed.as_if_verified().clone();
    let assume = |claims: Value| issuers.assume("corp", object(claims), NOW).map(verified);
    let assumed = assume(json!({"sub": "x", "realm_access": {"roles": ["a"]}})).unwrap();
    assert_eq!(
        (assumed.subject(), assumed.roles(), assumed.expires_at()),
        ("x", &["a".to_owned()][..], NOW + 300)
    );
    assert_eq!(assumed.issuer(), Some("https://corp.example"));
    assert_eq!(outcome(&assume(json!({}))), "claims");
    assert_eq!(outcome(&assume(json!({"sub": "x", "exp": NOW - 60}))), "expired");
    assert_eq!(outcome(&assume(json!({"sub": "x", "aud": "y"}))), "audience");
    assert_eq!(outcome(&assume(json!({"sub": "x", "iss": "y"}))), "issuer");
    assert_eq!(outcome(&assume(json!({"sub": "x", "iss": 1}))), "claims");
    assert_eq!(
        outcome(&issuers.assume("nobody", object(json!({"sub": "x"})), NOW).map(verified)),
        "issuer"
    );

    let by_roles = issuers.assume_roles("corp", &["a".to_owned(), "b".to_owned()], NOW);
    let by_roles = by_roles.map(verified).unwrap();
    assert_eq!(
        (by_roles.subject(), by_roles.roles()),
        ("test", &["a".to_owned(), "b".to_owned()][..])
    );
    let short = super::super::samples::issuers(|settings| {
        settings.max_token_lifetime = Duration::from_secs(10);
    });
    assert_eq!(short.assume_roles("corp", &[], NOW).map(verified).unwrap().expires_at(), NOW + 10);
    let any = super::super::samples::issuers(|settings| settings.issuer = None);
    assert!(any.assume_roles("corp", &[], NOW).is_ok());
}

/// Messages to operators contain no bytes of the token, and a token cannot forge them.
#[test]
fn messages_contain_no_hostile_text() {
    let good = token(json!({}));
    let hostile = token(json!({"iss": format!("\u{1b}[31m\n{}", "x".repeat(500))}));
    let message = issuers(|_| {}).verify(&hostile, NOW).unwrap_err().to_string();
    assert!(
        message.starts_with("the token's issuer is not accepted: \"\\u{1b}[31m\\nxxx")
            && message.len() < 200,
        "{message}"
    );
    let wrong = issuers(|settings| settings.algorithms = Algorithm::HS512.into())
        .verify(&good, NOW)
        .unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "the token's algorithm is not accepted: HS256 is not one of the issuer's algorithms: HS512"
    );
    let late = issuers(|_| {}).verify(&good, NOW + 1000).unwrap_err();
    assert_eq!(late.to_string(), format!("the token expired at {}, 400 s ago", NOW + 600));
}

proptest! {
    /// A token with one changed letter is never accepted.
    #[test]
    fn a_changed_character_never_verifies(place in any::<prop::sample::Index>(), letter in 0_u8..128) {
        let good = token(json!({}));
        let mut bytes = good.clone().into_bytes();
        let place = place.index(bytes.len());
        prop_assume!(bytes[place] != letter);
        bytes[place] = letter;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert!(issuers(|_| {}).verify(&changed, NOW).is_err(), "{changed}");
    }

    /// Every input gets a result.
    #[test]
    fn any_text_is_parsed_or_refused(text in "[A-Za-z0-9_.-]{0,200}|\\PC{0,100}", header in "\\PC{0,60}", payload in "\\PC{0,60}") {
        let issuers = issuers(|_| {});
        prop_assert!(issuers.verify(&text, NOW).is_err());
        prop_assert!(issuers.verify(&signed(&header, &payload), NOW).is_err());
        let _ = inspect(&text);
    }
}
