//! OpenID Connect back-channel logout (CONTRACT §5): an issuer reports that a user has logged out
//! there.

use jsonwebtoken::Algorithm::ES256;
use serde_json::{Value, json};

use crate::harness::client::Request;
use crate::harness::mint::{self, claims, keys, now};
use crate::harness::{Gateway, Response, within};

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

const CONFIG: &str = "server.workers = 2\nstore = {}\n\
     route = [{ name = 'all', path = '/*', upstream = 'app' }]\n\
     issuer.corp = { issuer = 'https://login.test/corp', audience = ['reports'], logout_audience = ['client-1'], algorithms = ['HS256'], secret = { file = 'corp.secret' }, backchannel_logout = '/logout/corp' }\n\
     issuer.other = { issuer = 'other', audience = ['reports'], algorithms = ['ES256'], public_keys = ['p256.pem'], backchannel_logout = '/logout/other' }";

async fn start() -> Gateway {
    Gateway::setup(CONFIG).file("p256.pem", &keys().p256.public).start().await
}

/// A logout token of `[issuer.corp]` with these claims in addition to the usual ones; null removes
/// one.
fn logout_token(change: Value) -> String {
    mint::hmac().token(json!({ "typ": "logout+jwt" }), usual(change))
}

fn usual(change: Value) -> Value {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let jti = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut claims = json!({ "aud": "client-1", "jti": format!("l-{jti}"), "exp": now() + 120, "events": { EVENT: {} } });
    claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    claims
}

fn form(gateway: &Gateway, path: &str, form: &str) -> Request {
    gateway
        .request("POST", path)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form)
}

async fn send(gateway: &Gateway, path: &str, token: &str) -> Response {
    form(gateway, path, &format!("logout_token={token}")).send().await
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.get("/").bearer(token).send().await.status
}

fn is_done(response: &Response) {
    assert_eq!(
        (response.status, response.header("cache-control"), response.body.len()),
        (200, Some("no-store"), 0),
        "{response:?}"
    );
}

fn is_refused(response: &Response) {
    response.is(400, "request_invalid");
    assert_eq!(response.json()["error"], "invalid_request", "{response:?}");
}

#[tokio::test]
async fn a_session_that_ends_at_the_issuer_ends_here() {
    let mut gateway = start().await;
    let (gone, stays) = (claims(json!({ "sid": "s-1" })), claims(json!({ "sid": "s-2" })));
    assert_eq!((status(&gateway, &gone).await, status(&gateway, &stays).await), (200, 200));
    let form = format!("logout_token={}", logout_token(json!({ "sid": "s-1" })));
    is_done(&self::form(&gateway, "/logout/corp", &form).send().await);
    gateway.get("/").bearer(&gone).send().await.is(401, "token_revoked");
    assert_eq!(status(&gateway, &stays).await, 200, "the subject's other session");
    // Nothing reaches an application, and the logout is logged.
    assert!(gateway.upstream().seen().requests.iter().all(|request| request.target == "/"));
    let line = gateway.access("/logout/corp").await;
    assert_eq!(
        (&line["outcome"], &line["reason"], &line["http.route"]),
        (&"allowed".into(), &"public".into(), &Value::Null),
        "{line}"
    );
    assert_eq!(line["bytes_in"], form.len(), "{line}");
    let output = gateway
        .log()
        .until("it is logged", |line| line["message"] == "logged out at the issuer")
        .await;
    assert_eq!(
        (&output["issuer"], &output["by"], &output["value"]),
        (&"corp".into(), &"sid".into(), &"s-1".into())
    );
    gateway.kill_and_restart().await;
    gateway.get("/").bearer(&gone).send().await.is(401, "token_revoked");
}

#[tokio::test]
async fn a_logout_without_sid_ends_everything_of_the_subject() {
    let gateway = start().await;
    let (one, undated, other) = (
        claims(json!({ "sid": "s-1" })),
        claims(json!({ "iat": null })),
        claims(json!({ "sub": "u-18" })),
    );
    is_done(&send(&gateway, "/logout/corp", &logout_token(json!({}))).await);
    for token in [&one, &undated] {
        gateway.get("/").bearer(token).send().await.is(401, "token_revoked");
    }
    assert_eq!(status(&gateway, &other).await, 200);
    // A new login is not affected.
    assert_eq!(status(&gateway, &claims(json!({ "iat": now() + 5 }))).await, 200);
    // Nor is the same subject of another issuer.
    let theirs = keys().p256.signs(ES256).token(json!({}), json!({ "iss": "other" }));
    assert_eq!(status(&gateway, &theirs).await, 200);
}

/// A logout token has no `email`: it names the user by `sub`, even if the section takes the subject
/// from another claim.
#[tokio::test]
async fn a_logout_by_sub_ends_subjects_taken_from_another_claim() {
    let gateway =
        Gateway::start(&CONFIG.replacen("algorithms", "subject = 'email', algorithms", 1).replace(
            "'ES256'], public_keys = ['p256.pem']",
            "'HS256'], secret = { file = 'corp.secret' }",
        ))
        .await;
    let of = |sub: Value, email: &str| claims(json!({ "sub": sub, "email": email }));
    let (gone, stays, without) = (
        of(json!("u-17"), "ann@app.test"),
        of(json!("u-18"), "u-17"),
        of(Value::Null, "bob@app.test"),
    );
    for token in [&gone, &stays, &without] {
        assert_eq!(status(&gateway, token).await, 200);
    }
    is_done(&send(&gateway, "/logout/corp", &logout_token(json!({}))).await);
    gateway.get("/").bearer(&gone).send().await.is(401, "token_revoked");
    assert_eq!((status(&gateway, &stays).await, status(&gateway, &without).await), (200, 200));
    let output = gateway
        .log()
        .until("it is logged", |line| line["message"] == "logged out at the issuer")
        .await;
    assert_eq!((&output["by"], &output["value"]), (&"sub".into(), &"u-17".into()));
    is_refused(&send(&gateway, "/logout/corp", &logout_token(json!({ "sub": null }))).await);
}

#[tokio::test]
async fn every_rule_of_logout_tokens_is_enforced() {
    let gateway = start().await;
    let token = claims(json!({ "sid": "s-1" }));
    for change in [
        json!({ "events": null }),
        json!({ "events": { "http://schemas.openid.net/event/other": {} } }),
        json!({ "events": EVENT }),
        json!({ "nonce": "n" }),
        json!({ "iss": "other" }),
        json!({ "iss": null }),
        json!({ "aud": "client-2" }),
        json!({ "aud": null }),
        json!({ "exp": null }),
        json!({ "exp": now() - 60 }),
        json!({ "iat": null }),
        json!({ "iat": now() + 300 }),
        json!({ "jti": null }),
        json!({ "sid": "" }),
        json!({ "sid": null, "sub": null }),
    ] {
        let mut all = json!({ "sid": "s-1" });
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        is_refused(&send(&gateway, "/logout/corp", &logout_token(all)).await);
    }
    let signed_by_a_stranger = keys()
        .p256
        .signs(ES256)
        .token(json!({ "typ": "logout+jwt" }), usual(json!({ "sid": "s-1" })));
    let of_another_kind =
        mint::hmac().token(json!({ "typ": "at+jwt" }), usual(json!({ "sid": "s-1" })));
    let unsigned =
        format!("{}.", logout_token(json!({ "sid": "s-1" })).rsplit_once('.').unwrap().0);
    for bad in [signed_by_a_stranger.as_str(), &of_another_kind, &unsigned, "a.b.c", "", &token] {
        is_refused(&send(&gateway, "/logout/corp", bad).await);
    }
    // The path of another issuer does not accept it.
    is_refused(&send(&gateway, "/logout/other", &logout_token(json!({ "sid": "s-1" }))).await);
    assert_eq!(status(&gateway, &token).await, 200);
    let why = gateway
        .log()
        .until("the cause is logged", |line| {
            line["reason"] == "request_invalid" && line["cause"].is_string()
        })
        .await;
    assert!(why["cause"].as_str().unwrap().contains("events"), "{why}");
    for typ in [json!("logout+jwt"), json!("JWT"), Value::Null] {
        is_done(
            &send(
                &gateway,
                "/logout/corp",
                &mint::hmac().token(json!({ "typ": typ }), usual(json!({ "sid": "s-1" }))),
            )
            .await,
        );
    }
}

#[tokio::test]
async fn a_logout_token_works_once_and_is_not_an_access_token() {
    let mut gateway = start().await;
    let token = logout_token(json!({}));
    is_done(&send(&gateway, "/logout/corp", &token).await);
    is_refused(&send(&gateway, "/logout/corp", &token).await);
    // Replaying it does not end sessions that have begun since.
    gateway.kill_and_restart().await;
    is_refused(&send(&gateway, "/logout/corp", &token).await);
    // Its issuer signed it for an accepted audience, and with the usual `typ` it looks like an
    // access token.
    for typ in [json!("JWT"), Value::Null] {
        let token = mint::hmac().token(json!({ "typ": typ }), usual(json!({ "sub": "u-19" })));
        gateway.get("/").bearer(&token).send().await.is(401, "token_claims");
    }
    gateway
        .get("/")
        .bearer(&logout_token(json!({ "sub": "u-19" })))
        .send()
        .await
        .is(401, "token_malformed");
}

#[tokio::test]
async fn only_a_form_with_one_token_is_accepted() {
    let gateway = start().await;
    let token = logout_token(json!({ "sid": "s-1" }));
    for (body, expected) in [
        (String::new(), "no `logout_token`"),
        ("logout=x".to_owned(), "no `logout_token`"),
        (format!("logout_token={token}&logout_token={token}"), "more than one `logout_token`"),
        (format!("logout_token={}", "a".repeat(70 * 1024)), "too large"),
    ] {
        is_refused(&form(&gateway, "/logout/corp", &body).send().await);
        gateway
            .log()
            .until(expected, |line| {
                line["cause"].as_str().is_some_and(|cause| cause.contains(expected))
            })
            .await;
    }
    let form = format!("logout_token={token}");
    is_refused(&gateway.request("POST", "/logout/corp").body(&form).send().await);
    is_refused(
        &gateway
            .request("POST", "/logout/corp")
            .header("Content-Type", "application/json")
            .body(&form)
            .send()
            .await,
    );
    for method in ["GET", "PUT", "OPTIONS"] {
        let response = gateway.request(method, "/logout/corp").send().await;
        assert_eq!(
            (response.refusal(), response.header("allow")),
            ((405, "method_not_allowed".to_owned()), Some("POST"))
        );
    }
    // A charset does not change the type and a query does not change the path, but another spelling
    // of the path does.
    let typed = gateway
        .request("POST", "/logout/%63orp?x=1")
        .header("Content-Type", "application/x-www-form-urlencoded; charset=utf-8");
    is_done(&typed.body(&form).send().await);
    send(&gateway, "/Logout/corp", &token).await.is(401, "credentials_missing");
    send(&gateway, "//logout/corp", &token).await.is(400, "target_ambiguous");
    send(&gateway, "/logout/corp/", &token).await.is(401, "credentials_missing");
}

#[tokio::test]
async fn a_failing_store_lets_the_issuer_send_the_logout_again() {
    let gateway = start().await;
    let token = logout_token(json!({ "sid": "s-1" }));
    let lock =
        within(super::revocation::hold(gateway.path("portcullis.db").to_str().unwrap())).await;
    send(&gateway, "/logout/corp", &token).await.is(503, "store_unavailable");
    drop(lock);
    is_done(&send(&gateway, "/logout/corp", &token).await);
}

#[tokio::test]
async fn a_logout_path_belongs_to_one_issuer_and_no_route() {
    let gateway = start().await;
    for (from, to, output) in [
        ("'/logout/other'", "'/logout/corp'", "two issuers have the same path"),
        ("'/logout/other'", "'/'", "not a valid path for back-channel logout"),
        ("'/logout/other'", "'logout'", "not a valid path for back-channel logout"),
        ("'/logout/other'", "'/logout/*'", "not a valid path for back-channel logout"),
        ("'/logout/other'", "'/a/../b'", "not a valid path for back-channel logout"),
        ("'/logout/other'", "'/a//b'", "not a valid path for back-channel logout"),
        (
            "path = '/*', upstream",
            "path = '/Logout/Other', host = 'a.test', upstream",
            "this path is taken by a route",
        ),
        ("issuer = 'other'", "insecure_any_issuer = true", "a logout token names its issuer"),
    ] {
        let rejected = gateway.reload(&CONFIG.replacen(from, to, 1)).await;
        assert!(rejected["problems"].to_string().contains(output), "{to}: {rejected}");
    }
    let (code, _, warnings) = gateway.command(&["check"]).await;
    assert_eq!(code, 78, "{warnings}");
    gateway.write(&CONFIG.replace("store = {}\n", ""));
    let (code, _, warnings) = gateway.command(&["check"]).await;
    assert!(
        code == 0 && warnings.contains("a back-channel logout revokes in memory only"),
        "{warnings}"
    );
    // `explain` knows the path.
    let (_, output, _) = gateway.command(&["explain", "POST", "/logout/corp"]).await;
    assert!(
        output.contains("back-channel logout of issuer `corp`")
            && output.contains("allow: 200 public"),
        "{output}"
    );
    let (_, output, _) = gateway.command(&["explain", "GET", "/logout/corp"]).await;
    assert!(output.contains("refuse: 405 method_not_allowed"), "{output}");
}
