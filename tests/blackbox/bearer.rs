//! Authentication: one credential, from the places that the route allows, and the reasons of
//! refusals (CONTRACT §3, "Which is which").

use jsonwebtoken::Algorithm::{
    self, ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
};
use serde_json::json;

use crate::harness::mint::{self, claims, encode, hmac, keys, now, payload, secret};
use crate::harness::{Gateway, Response};

const PROTECTED: &str = "route = [{ name = 'all', path = '/*', upstream = 'app' }]";

const EVERYWHERE: &str =
    "route = [{ path = '/*', upstream = 'app', token_from = ['header', 'cookie', 'query'] }]";

async fn bearer(gateway: &Gateway, token: &str) -> Response {
    gateway.get("/").bearer(token).send().await
}

#[tokio::test]
async fn a_valid_token_identifies_the_caller() {
    let gateway = Gateway::start(PROTECTED).await;
    let token =
        claims(json!({ "roles": ["auditor"], "email": "a@b.test", "name": "Ann", "sid": "s-1" }));
    assert_eq!(bearer(&gateway, &token).await.status, 200);
    let received = gateway.upstream().last();
    for (name, value) in [
        ("user", "u-17"),
        ("roles", "auditor"),
        ("email", "a@b.test"),
        ("name", "Ann"),
        ("issuer", mint::ISSUER),
    ] {
        assert_eq!(received.header(&format!("x-auth-{name}")), Some(value));
    }
    assert_eq!(received.header("authorization"), None);
    let line = gateway.access("/").await;
    for (name, value) in [
        ("outcome", "allowed"),
        ("reason", "authenticated"),
        ("issuer", "corp"),
        ("subject", "u-17"),
        ("sid", "s-1"),
        ("http.route", "all"),
    ] {
        assert_eq!(line[name], value, "{line}");
    }
    assert!(!line.to_string().contains(&token));
}

#[tokio::test]
async fn every_algorithm_is_verified() {
    let gateway = Gateway::setup(
        "route = [{ path = '/*', upstream = 'app' }]\n\
         issuer.hmac = { issuer = 'hmac', audience = ['reports'], algorithms = ['HS256', 'HS384', 'HS512'], secret = { file = 'corp.secret' } }\n\
         issuer.rsa = { issuer = 'rsa', audience = ['reports'], algorithms = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'], public_keys = ['rsa.pem'] }\n\
         issuer.ec = { issuer = 'ec', audience = ['reports'], algorithms = ['ES256', 'ES384'], public_keys = ['p256.pem', 'p384.pem'] }\n\
         issuer.ed = { issuer = 'ed', audience = ['reports'], algorithms = ['EdDSA'], public_keys = ['ed.pem'] }",
    )
    .file("rsa.pem", &keys().rsa.public)
    .file("p256.pem", &keys().p256.public)
    .file("p384.pem", &keys().p384.public)
    .file("ed.pem", &keys().ed25519.public)
    .start()
    .await;
    let hmacs = [HS256, HS384, HS512].map(|algorithm| ("hmac", secret(algorithm, mint::SECRET)));
    let rsas = [RS256, RS384, RS512, PS256, PS384, PS512]
        .map(|algorithm| ("rsa", keys().rsa.signs(algorithm)));
    let others = [
        ("ec", keys().p256.signs(ES256)),
        ("ec", keys().p384.signs(ES384)),
        ("ed", keys().ed25519.signs(EdDSA)),
    ];
    for (iss, signer) in hmacs.into_iter().chain(rsas).chain(others) {
        let token = signer.token(json!({}), json!({ "iss": iss }));
        assert_eq!(bearer(&gateway, &token).await.status, 200, "{token}");
        assert_eq!(gateway.upstream().last().header("x-auth-issuer"), Some(iss));
        // One changed bit makes the signature invalid.
        let (head, signature) = token.rsplit_once('.').unwrap();
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        bearer(&gateway, &format!("{head}.{flipped}{}", &signature[1..]))
            .await
            .is(401, "token_signature");
    }
    // The public key must not be accepted as a secret.
    let forged =
        secret(HS256, keys().rsa.public.as_bytes()).token(json!({}), json!({ "iss": "rsa" }));
    bearer(&gateway, &forged).await.is(401, "token_algorithm");
    let crossed = keys().rsa.signs(RS256).token(json!({}), json!({ "iss": "ed" }));
    bearer(&gateway, &crossed).await.is(401, "token_algorithm");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
async fn every_token_fault_has_its_own_reason() {
    let gateway = Gateway::start(PROTECTED).await;
    let with = |header, claims| hmac().token(header, claims);
    let standard = |claims| with(json!({}), claims);
    let plain = payload(&json!({})).to_string();
    let long = now() + 100 * 86_400;
    for (what, token, reason) in [
        (
            "alg none",
            format!("{}.{}.", encode(r#"{"alg":"none"}"#), encode(&plain)),
            "token_algorithm",
        ),
        ("alg None", with(json!({ "alg": "nOnE" }), json!({})), "token_algorithm"),
        ("alg missing", with(json!({ "alg": null }), json!({})), "token_algorithm"),
        ("alg unknown", with(json!({ "alg": "XS256" }), json!({})), "token_algorithm"),
        ("alg in another case", with(json!({ "alg": "hs256" }), json!({})), "token_algorithm"),
        (
            "alg not listed",
            secret(Algorithm::HS512, mint::SECRET).token(json!({}), json!({})),
            "token_algorithm",
        ),
        ("crit", with(json!({ "crit": ["exp"] }), json!({})), "token_malformed"),
        ("crit empty", with(json!({ "crit": [] }), json!({})), "token_malformed"),
        ("b64", with(json!({ "b64": false }), json!({})), "token_malformed"),
        ("typ of an ID token", with(json!({ "typ": "logout+jwt" }), json!({})), "token_malformed"),
        ("typ a number", with(json!({ "typ": 1 }), json!({})), "token_malformed"),
        (
            "duplicate header member",
            hmac().raw(r#"{"alg":"HS256","alg":"HS256"}"#, &plain),
            "token_malformed",
        ),
        (
            "duplicate claim",
            hmac().raw(r#"{"alg":"HS256"}"#, &plain.replacen('{', r#"{"sub":"root","#, 1)),
            "token_malformed",
        ),
        (
            "duplicate claim below",
            standard(json!({}))
                .split('.')
                .next()
                .map(|head| {
                    hmac().parts(head, &encode(plain.replacen('{', r#"{"x":{"a":1,"a":2},"#, 1)))
                })
                .unwrap(),
            "token_malformed",
        ),
        ("header no JSON", hmac().raw("{", &plain), "token_malformed"),
        ("payload no JSON", hmac().raw(r#"{"alg":"HS256"}"#, "{"), "token_malformed"),
        ("payload an array", hmac().raw(r#"{"alg":"HS256"}"#, "[]"), "token_malformed"),
        ("padding", format!("{}=", standard(json!({}))), "token_malformed"),
        ("standard base64", hmac().parts(&encode(r#"{"alg":"HS256"}"#), "+/+/"), "token_malformed"),
        ("two parts", "a.b".to_owned(), "token_malformed"),
        ("one part", "opaque".to_owned(), "token_malformed"),
        ("four parts", "a.b.c.d".to_owned(), "token_malformed"),
        (
            "encrypted",
            format!("{}.a.b.c.d", encode(r#"{"alg":"dir","enc":"A256GCM"}"#)),
            "token_malformed",
        ),
        (
            "another's key",
            secret(Algorithm::HS256, b"another secret that is just as long as ours")
                .token(json!({}), json!({})),
            "token_signature",
        ),
        (
            "no signature",
            format!("{}.{}.", encode(r#"{"alg":"HS256"}"#), encode(&plain)),
            "token_signature",
        ),
        ("expired", standard(json!({ "iat": now() - 100, "exp": now() - 40 })), "token_expired"),
        ("not yet", standard(json!({ "nbf": now() + 60 })), "token_not_yet_valid"),
        ("issued tomorrow", standard(json!({ "iat": now() + 60 })), "token_not_yet_valid"),
        ("iss missing", standard(json!({ "iss": null })), "token_issuer"),
        ("iss unknown", standard(json!({ "iss": "https://evil.test" })), "token_issuer"),
        (
            "iss with a slash",
            standard(json!({ "iss": format!("{}/", mint::ISSUER) })),
            "token_issuer",
        ),
        ("iss a number", standard(json!({ "iss": 42 })), "token_claims"),
        ("aud missing", standard(json!({ "aud": null })), "token_audience"),
        ("aud another's", standard(json!({ "aud": "payroll" })), "token_audience"),
        ("aud all others'", standard(json!({ "aud": ["payroll", "wiki"] })), "token_audience"),
        ("aud in another case", standard(json!({ "aud": "Reports" })), "token_audience"),
        ("aud a number", standard(json!({ "aud": 1 })), "token_claims"),
        ("exp missing", standard(json!({ "exp": null })), "token_claims"),
        ("exp a string", standard(json!({ "exp": (now() + 60).to_string() })), "token_claims"),
        ("exp negative", standard(json!({ "exp": -1 })), "token_claims"),
        ("iat a string", standard(json!({ "iat": "now" })), "token_claims"),
        ("sub missing", standard(json!({ "sub": null })), "token_claims"),
        ("sub empty", standard(json!({ "sub": "" })), "token_claims"),
        ("sub an object", standard(json!({ "sub": {} })), "token_claims"),
        ("roles an object", standard(json!({ "roles": { "admin": true } })), "token_claims"),
        ("a long life", standard(json!({ "exp": long })), "token_lifetime"),
        (
            "a long life without iat",
            standard(json!({ "iat": null, "exp": long })),
            "token_lifetime",
        ),
    ] {
        let response = bearer(&gateway, &token).await;
        assert_eq!(response.refusal(), (401, reason.to_owned()), "{what}");
        assert_eq!(
            response.header("www-authenticate"),
            Some("Bearer realm=\"portcullis\", error=\"invalid_token\""),
            "{what}"
        );
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn unusual_but_valid_tokens_are_accepted() {
    let gateway = Gateway::start(PROTECTED).await;
    for (what, header, claims) in [
        ("typ at+jwt", json!({ "typ": "at+jwt" }), json!({})),
        ("typ application/at+jwt", json!({ "typ": "application/AT+JWT" }), json!({})),
        ("no typ", json!({ "typ": null }), json!({})),
        ("an unknown header member", json!({ "x": 1, "jku": "https://evil.test/keys" }), json!({})),
        ("a kid where the key has none", json!({ "kid": "k1" }), json!({})),
        ("one of several audiences", json!({}), json!({ "aud": ["wiki", "reports"] })),
        ("a subject that is a number", json!({}), json!({ "sub": 17 })),
        ("no iat", json!({}), json!({ "iat": null })),
        ("expired within the leeway", json!({}), json!({ "exp": now() - 20 })),
        (
            "not yet valid within the leeway",
            json!({}),
            json!({ "nbf": now() + 20, "iat": now() + 20 }),
        ),
        ("a fraction of a second", json!({}), json!({ "exp": now() as f64 + 60.5 })),
    ] {
        assert_eq!(bearer(&gateway, &hmac().token(header, claims)).await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn credentials_are_missing_malformed_or_ambiguous() {
    let gateway = Gateway::start(PROTECTED).await;
    let token = mint::token(&[]);
    let missing = "Bearer realm=\"portcullis\"";
    let invalid = "Bearer realm=\"portcullis\", error=\"invalid_request\"";
    for (lines, status, reason, challenge) in [
        (vec![], 401, "credentials_missing", Some(missing)),
        (vec!["Basic dTpw".to_owned()], 401, "credentials_missing", Some(missing)),
        (vec![token.clone()], 401, "credentials_missing", Some(missing)),
        (vec![format!("Bearer{token}")], 401, "credentials_missing", Some(missing)),
        (vec!["Bearer".to_owned()], 400, "credentials_malformed", Some(invalid)),
        (vec!["Bearer ".to_owned()], 400, "credentials_malformed", Some(invalid)),
        (vec!["Bearer a b".to_owned()], 400, "credentials_malformed", Some(invalid)),
        (
            vec![format!("Bearer {token}, Bearer {token}")],
            400,
            "credentials_malformed",
            Some(invalid),
        ),
        (vec!["Bearer \"a\"".to_owned()], 400, "credentials_malformed", Some(invalid)),
        (vec!["Bearer a=.b.c".to_owned()], 400, "credentials_malformed", Some(invalid)),
        (vec!["Bearer ==".to_owned()], 400, "credentials_malformed", Some(invalid)),
        (
            vec![format!("Bearer {token}"), format!("Bearer {token}")],
            400,
            "credentials_ambiguous",
            Some(invalid),
        ),
        (
            vec!["Basic dTpw".to_owned(), format!("Bearer {token}")],
            400,
            "credentials_ambiguous",
            Some(invalid),
        ),
        (vec![format!("bearer {token}")], 200, "", None),
        (vec![format!("BEARER   {token}")], 200, "", None),
        (vec![format!("Bearer {token}  ")], 200, "", None),
    ] {
        let request = lines
            .iter()
            .fold(gateway.get("/"), |request, line| request.header("Authorization", line));
        let response = request.send().await;
        assert_eq!(response.status, status, "{lines:?}: {response:?}");
        assert_eq!(response.header("www-authenticate"), challenge, "{lines:?}");
        if status != 200 {
            response.is(status, reason);
        }
    }
}

#[tokio::test]
async fn a_token_over_16_kib_is_refused_unparsed() {
    let gateway = Gateway::start(PROTECTED).await;
    let of_size = |padding: usize| claims(json!({ "padding": "x".repeat(padding) }));
    let (small, large) = (of_size(11_500), of_size(12_500));
    assert!(small.len() < 16 * 1024 && large.len() > 16 * 1024);
    assert_eq!(bearer(&gateway, &small).await.status, 200);
    bearer(&gateway, &large).await.is(401, "token_malformed");
}

#[tokio::test]
async fn a_token_is_read_only_from_the_places_that_the_route_allows() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/header'\nupstream = 'app'\n[[route]]\npath = '/cookie'\nupstream = 'app'\ntoken_from = ['cookie']\n\
         [[route]]\npath = '/query'\nupstream = 'app'\ntoken_from = ['query']",
    )
    .await;
    let token = mint::token(&[]);
    let (cookie, line) = (format!("__Host-portcullis={token}"), format!("Bearer {token}"));
    for (path, header, cookie, query, passes) in [
        ("/header", Some(&line), None, false, true),
        ("/header", None, Some(&cookie), false, false),
        ("/header", None, None, true, false),
        ("/cookie", None, Some(&cookie), false, true),
        ("/cookie", Some(&line), None, false, false),
        ("/query", None, None, true, true),
        ("/query", Some(&line), None, false, false),
        ("/query", None, Some(&cookie), false, false),
    ] {
        let target = if query { format!("{path}?access_token={token}") } else { path.to_owned() };
        let request = header
            .into_iter()
            .fold(gateway.get(&target), |request, line| request.header("Authorization", line));
        let request =
            cookie.into_iter().fold(request, |request, line| request.header("Cookie", line));
        let response = request.send().await;
        assert_eq!(response.status, if passes { 200 } else { 401 }, "{path}: {response:?}");
        if !passes {
            response.is(401, "credentials_missing");
        }
    }
}

#[tokio::test]
async fn two_credentials_are_ambiguous_in_any_places() {
    let gateway = Gateway::start(EVERYWHERE).await;
    let token = mint::token(&[]);
    let (cookie, query) = (format!("__Host-portcullis={token}"), format!("/?access_token={token}"));
    for response in [
        gateway.get("/").bearer(&token).header("Cookie", &cookie).send().await,
        gateway.get(&query).bearer(&token).send().await,
        gateway.get(&query).header("Cookie", &cookie).send().await,
        gateway.get("/").header("Cookie", &format!("{cookie}; {cookie}")).send().await,
        gateway.get("/").header("Cookie", &cookie).header("Cookie", &cookie).send().await,
        gateway.get(&format!("{query}&access_token={token}")).send().await,
        gateway.get(&format!("{query}&access%5ftoken={token}")).send().await,
    ] {
        response.is(400, "credentials_ambiguous");
    }
    gateway.get("/?access_token=").send().await.is(400, "credentials_malformed");
    gateway.get("/?access_token=%zz").send().await.is(400, "credentials_malformed");
    gateway.get("/?access_token=opaque").send().await.is(401, "token_malformed");
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_token_in_the_query_is_not_forwarded() {
    let gateway =
        Gateway::start("server = { token_query = 't' }\nroute = [{ path = '/*', upstream = 'app', token_from = ['query'] }]").await;
    let token = mint::token(&[]);
    for (query, sent) in [
        ("?t=T", ""),
        ("?a=1&t=T", "?a=1"),
        ("?t=T&a=1&&b=%zz", "?a=1&&b=%zz"),
        ("?a=t&t=T&tt=2", "?a=t&tt=2"),
        ("?%74=T&x", "?x"),
    ] {
        let response = gateway.get(&format!("/q{}", query.replace('T', &token))).send().await;
        assert_eq!(response.status, 200, "{query}: {response:?}");
        assert_eq!(gateway.upstream().last().target, format!("/q{sent}"));
    }
    assert!(!gateway.access("/q").await.to_string().contains(&token));
}

#[tokio::test]
async fn no_credential_is_ever_logged() {
    let gateway = Gateway::start(
        "log.level = 'trace'\n[[route]]\npath = '/*'\nupstream = 'app'\ntoken_from = ['header', 'cookie', 'query']\n[[route]]\npath = '/admin'\nupstream = 'app'\nroles = ['admin']",
    )
    .await;
    let token = mint::token(&[]);
    let bad =
        hmac().token(json!({ "kid": "MARKER-kid" }), json!({ "exp": 1, "secret": "MARKER-claim" }));
    gateway
        .get("/a?x=MARKER-query")
        .bearer(&token)
        .header("Cookie", "s=MARKER-cookie")
        .header("X-Api-Key", "MARKER-header")
        .send()
        .await;
    gateway.get("/a").header("Cookie", &format!("__Host-portcullis={token}")).send().await;
    gateway.get(&format!("/a?access_token={token}")).send().await;
    gateway.get("/admin").bearer(&token).send().await.is(403, "role_missing");
    gateway.get("/a").bearer(&bad).send().await.is(401, "token_expired");
    gateway.get("/a").header("Authorization", "Basic MARKER-basic").send().await;
    gateway.request("POST", "/last").bearer(&token).body("MARKER-body").send().await;
    gateway.access("/last").await;
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    for line in gateway.log().lines() {
        let line = line.to_string();
        for secret in ["MARKER", &signature(&token), &signature(&bad)] {
            assert!(!line.contains(secret), "{line}");
        }
    }
    assert_eq!(gateway.log().errors().matches("MARKER").count(), 0);
}

#[tokio::test]
async fn our_cookie_is_not_forwarded_and_others_are() {
    let gateway = Gateway::start(
        "server = { token_cookie = 'sess' }\n[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\n\
         [[route]]\npath = '/in/*'\nupstream = 'app'\ntoken_from = ['cookie']",
    )
    .await;
    let token = mint::token(&[]);
    for (lines, sent) in [
        (vec!["a=1; sess=T; b=2"], Some("a=1; b=2")),
        (vec!["sess=T"], None),
        (vec!["a=1", "sess=T", "b=2"], Some("a=1; b=2")),
        (vec!["sess=T;c=\"x y\""], Some("c=\"x y\"")),
        (vec!["sess=T; __Host-portcullis=x; xsess=1"], Some("xsess=1")),
    ] {
        for path in ["/public", "/in"] {
            let request = lines.iter().fold(gateway.get(path), |request, line| {
                request.header("Cookie", &line.replace('T', &token))
            });
            let response = request.send().await;
            assert_eq!(response.status, 200, "{path} {lines:?}: {response:?}");
            assert_eq!(gateway.upstream().last().header("cookie"), sent, "{path} {lines:?}");
        }
    }
}

#[tokio::test]
async fn a_cookie_needs_our_origin_to_change_state() {
    let gateway = Gateway::start(
        "route = [{ path = '/*', upstream = 'app', token_from = ['cookie', 'header'] }]",
    )
    .await;
    let cookie = format!("__Host-portcullis={}", mint::token(&[]));
    for (method, fields, passes) in [
        ("GET", vec![], true),
        ("HEAD", vec![("Origin", "https://evil.test")], true),
        ("POST", vec![], false),
        ("DELETE", vec![], false),
        ("PURGE", vec![], false),
        ("POST", vec![("Origin", "http://app.test")], true),
        ("POST", vec![("Origin", "http://APP.test")], true),
        ("POST", vec![("Origin", "https://app.test")], false),
        ("POST", vec![("Origin", "http://app.test:8080")], false),
        ("POST", vec![("Origin", "http://evil.test")], false),
        ("POST", vec![("Origin", "null")], false),
        ("POST", vec![("Origin", "http://app.test.evil.test")], false),
        ("POST", vec![("Origin", "http://app.test"), ("Origin", "http://evil.test")], false),
        ("POST", vec![("Sec-Fetch-Site", "same-origin")], true),
        ("POST", vec![("Sec-Fetch-Site", "same-site")], false),
        ("POST", vec![("Sec-Fetch-Site", "none")], false),
        ("POST", vec![("Sec-Fetch-Site", "same-origin"), ("Origin", "http://evil.test")], false),
        ("POST", vec![("Referer", "http://app.test/")], false),
        ("GET", vec![("Upgrade", "websocket"), ("Connection", "upgrade")], false),
    ] {
        let request = fields.iter().fold(gateway.request(method, "/"), |request, (name, value)| {
            request.header(name, value)
        });
        let response = request.header("Cookie", &cookie).send().await;
        assert_eq!(
            response.status,
            if passes { 200 } else { 403 },
            "{method} {fields:?}: {response:?}"
        );
        if !passes {
            response.is(403, "origin_foreign");
        }
    }
    // A client that sends the header is not a browser under attack by another site.
    assert_eq!(
        gateway
            .request("POST", "/")
            .bearer(&mint::token(&[]))
            .header("Origin", "https://evil.test")
            .send()
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_expired_cookie_of_a_script_is_a_401() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', token_from = ['cookie'] }]")
            .await;
    let expired = claims(json!({ "iat": now() - 100, "exp": now() - 60 }));
    gateway
        .get("/")
        .header("Cookie", &format!("__Host-portcullis={expired}"))
        .send()
        .await
        .is(401, "token_expired");
}

#[tokio::test]
async fn optional_access_needs_no_token_but_refuses_a_bad_one() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'optional' }]").await;
    assert_eq!(gateway.get("/stranger").send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-user"), None);
    assert_eq!(gateway.access("/stranger").await["reason"], "anonymous");
    assert_eq!(
        gateway.get("/basic").header("Authorization", "Basic dTpw").send().await.status,
        200
    );
    assert_eq!(gateway.upstream().last().header("authorization"), None);
    assert_eq!(gateway.get("/known").bearer(&mint::token(&[])).send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-user"), Some("u-17"));
    gateway
        .get("/")
        .bearer(&claims(json!({ "iat": now() - 100, "exp": now() - 60 })))
        .send()
        .await
        .is(401, "token_expired");
    gateway
        .get("/")
        .header("Authorization", "Bearer")
        .send()
        .await
        .is(400, "credentials_malformed");
}

#[tokio::test]
async fn a_public_route_reads_no_credentials() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    for line in ["Bearer", "Bearer opaque", &format!("Bearer {}", mint::token(&[]))] {
        assert_eq!(gateway.get("/").header("Authorization", line).send().await.status, 200);
        let received = gateway.upstream().last();
        assert_eq!(
            (received.header("authorization"), received.header("x-auth-user")),
            (None, None)
        );
    }
    assert_eq!(gateway.access("/").await["reason"], "public");
}

#[tokio::test]
async fn iss_selects_the_issuer() {
    let gateway = Gateway::setup(
        "[[route]]\npath = '/*'\nupstream = 'app'\nissuers = ['one', 'two']\n[[route]]\npath = '/one/*'\nupstream = 'app'\nissuers = ['one']\n\
         [issuer.one]\nissuer = 'https://one.test'\naudience = ['reports']\nalgorithms = ['ES256']\npublic_keys = ['one.pem']\n\
         [issuer.two]\nissuer = 'https://two.test'\naudience = ['reports']\nalgorithms = ['EdDSA']\npublic_keys = ['two.pem']\nroles = 'realm_access.roles'",
    )
    .file("one.pem", &keys().p256.public)
    .file("two.pem", &keys().ed25519.public)
    .start()
    .await;
    let one = keys()
        .p256
        .signs(Algorithm::ES256)
        .token(json!({}), json!({ "iss": "https://one.test", "roles": ["a"] }));
    let two = keys().ed25519.signs(Algorithm::EdDSA).token(
        json!({}),
        json!({ "iss": "https://two.test", "realm_access": { "roles": ["b"] }, "roles": ["a"] }),
    );
    let stolen =
        keys().p256.signs(Algorithm::ES256).token(json!({}), json!({ "iss": "https://two.test" }));
    assert_eq!(gateway.get("/").bearer(&one).send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-roles"), Some("a"));
    assert_eq!(gateway.get("/").bearer(&two).send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-roles"), Some("b"));
    gateway.get("/").bearer(&stolen).send().await.is(401, "token_algorithm");
    assert_eq!(gateway.get("/one").bearer(&one).send().await.status, 200);
    gateway.get("/one").bearer(&two).send().await.is(403, "issuer_not_allowed");
}

#[tokio::test]
async fn keys_of_a_jwk_set_are_chosen_by_kid() {
    let numbers = |pem: &str| {
        let der = pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
        let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, der).unwrap();
        encode(&der[der.len() - 32..])
    };
    let jwks = json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "kid": "ours", "use": "sig", "x": numbers(&keys().ed25519.public) },
        { "kty": "oct", "kid": "oct", "k": encode(mint::SECRET) },
    ] });
    let gateway = Gateway::setup(
        "route = [{ path = '/*', upstream = 'app' }]\nissuer.corp = { issuer = 'https://login.test/corp', audience = ['reports'], algorithms = ['EdDSA'], jwks_file = 'keys.json' }",
    )
    .file("keys.json", jwks.to_string())
    .start()
    .await;
    let signer = keys().ed25519.signs(Algorithm::EdDSA);
    assert_eq!(
        bearer(&gateway, &signer.token(json!({ "kid": "ours" }), json!({}))).await.status,
        200
    );
    bearer(&gateway, &signer.token(json!({ "kid": "other" }), json!({})))
        .await
        .is(401, "token_key_unknown");
    bearer(&gateway, &hmac().token(json!({ "kid": "oct" }), json!({})))
        .await
        .is(401, "token_algorithm");
}

#[tokio::test]
async fn tokens_as_an_express_application_mints_them() {
    let gateway = Gateway::start(
        "route = [{ path = '/*', upstream = 'app' }]\n\
         issuer.app = { insecure_any_issuer = true, insecure_any_audience = true, algorithms = ['HS256'], secret = { file = 'corp.secret' }, subject = 'userId', roles = 'role' }",
    )
    .await;
    let express = json!({ "iss": null, "aud": null, "sub": null, "userId": 42, "role": "admin" });
    assert_eq!(bearer(&gateway, &claims(express.clone())).await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(
        (
            received.header("x-auth-user"),
            received.header("x-auth-roles"),
            received.header("x-auth-issuer")
        ),
        (Some("42"), Some("admin"), None)
    );
    let mut with_issuer = express;
    with_issuer["iss"] = json!("https://evil.test");
    bearer(&gateway, &claims(with_issuer)).await.is(401, "token_issuer");
}
