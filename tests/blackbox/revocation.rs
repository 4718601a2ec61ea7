//! Revocation of tokens before they expire (CONTRACT §2 rule 13, §5): by jti, by session, by
//! subject; in every worker at once, and permanently.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::client::Request;
use crate::harness::mint::{claims, now, secret};
use crate::harness::{Gateway, Redis, Response, mint, within};
use crate::store::{FAIL, RECOVER, run};

const OPERATOR: &str = "the-token-of-the-operators";

const STORED: &str = "server.workers = 4\nadmin.token = { file = 'admin.token' }\nstore.database = 'sqlite:portcullis.db'\n\
                      route = [{ name = 'all', path = '/*', upstream = 'app' }]";

const TWO_ISSUERS: &str = "admin.token = { file = 'admin.token' }\nstore = {}\nroute = [{ path = '/*', upstream = 'app' }]\n\
     issuer.corp = { issuer = 'https://login.test/corp', audience = ['reports'], algorithms = ['HS256'], secret = { file = 'corp.secret' } }\n\
     issuer.app = { insecure_any_issuer = true, audience = ['reports'], algorithms = ['HS256'], secret = { file = 'corp.secret' } }";

async fn start(config: &str) -> Gateway {
    Gateway::setup(config).file("admin.token", format!("{OPERATOR}\n")).start().await
}

/// `POST /revoke` with this body, by an operator.
async fn revoke(gateway: &Gateway, body: Value) -> Response {
    post(gateway).bearer(OPERATOR).body(body.to_string()).send().await
}

fn post(gateway: &Gateway) -> Request {
    Request::new(gateway.admin_address(), "POST", "/revoke")
}

async fn get(gateway: &Gateway, token: &str) -> Response {
    gateway.get("/").bearer(token).send().await
}

/// Asserts that a revocation is acknowledged.
async fn revoked(gateway: &Gateway, body: Value) {
    let response = revoke(gateway, body).await;
    assert_eq!((response.status, response.body.len()), (204, 0), "{response:?}");
}

/// Asserts that the token is refused because it was revoked.
async fn is_dead(gateway: &Gateway, token: &str) {
    let response = get(gateway, token).await;
    response.is(401, "token_revoked");
    assert_eq!(
        response.header("www-authenticate"),
        Some("Bearer realm=\"portcullis\", error=\"invalid_token\"")
    );
}

async fn lives(gateway: &Gateway, token: &str) {
    let response = get(gateway, token).await;
    assert_eq!(response.status, 200, "{response:?}");
}

#[tokio::test]
async fn a_revoked_token_is_refused_by_every_worker_at_once() {
    let gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t-1", "sid": "s-1" }));
    // Each connection belongs to one worker, and each worker has verified and cached the token.
    let mut connections = Vec::new();
    for _ in 0..16 {
        connections.push(gateway.connect().await);
    }
    for connection in &mut connections {
        assert_eq!(gateway.get("/").bearer(&token).send_on(connection).await.status, 200);
    }
    revoked(&gateway, json!({ "jti": "t-1" })).await;
    for connection in &mut connections {
        gateway.get("/").bearer(&token).send_on(connection).await.is(401, "token_revoked");
    }
    assert_eq!(gateway.upstream().count(), 16);
    lives(&gateway, &claims(json!({ "jti": "t-2", "sid": "s-1" }))).await;
    assert_eq!(gateway.metric_value("portcullis_revocations_active", &[]).await, Some(1.0));
    assert!(
        gateway
            .metric_value(
                "portcullis_auth_decisions_total",
                &["reason=\"token_revoked\"", "outcome=\"refused\""]
            )
            .await
            >= Some(16.0)
    );
    let output = gateway
        .log()
        .until("the cause is logged", |line| {
            line["reason"] == "token_revoked" && line["cause"].is_string()
        })
        .await;
    assert!(output["cause"].as_str().unwrap().contains("by its jti"), "{output}");
}

#[tokio::test]
async fn a_revocation_covers_the_whole_session_or_subject() {
    let gateway = start(STORED).await;
    let (one, two) =
        (claims(json!({ "jti": "a", "sid": "s" })), claims(json!({ "jti": "b", "sid": "s" })));
    revoked(&gateway, json!({ "sid": "s" })).await;
    is_dead(&gateway, &one).await;
    is_dead(&gateway, &two).await;
    lives(&gateway, &claims(json!({ "sid": "S" }))).await;

    let iat = |iat: Value| claims(json!({ "sub": "u-1", "iat": iat }));
    let (old, undated) = (iat(json!(now() - 5)), iat(Value::Null));
    lives(&gateway, &old).await;
    lives(&gateway, &undated).await;
    revoked(&gateway, json!({ "subject": "u-1" })).await;
    is_dead(&gateway, &old).await;
    is_dead(&gateway, &undated).await;
    // A token issued after the cut-off. The issuer's clock may be ahead.
    lives(&gateway, &iat(json!(now() + 5))).await;
    lives(&gateway, &claims(json!({ "sub": "u-2" }))).await;
}

#[tokio::test]
async fn a_numeric_subject_is_revoked_by_its_digits() {
    let gateway = start(STORED).await;
    let token = claims(json!({ "sub": 17 }));
    lives(&gateway, &token).await;
    revoked(&gateway, json!({ "subject": "17" })).await;
    is_dead(&gateway, &token).await;
}

#[tokio::test]
async fn a_revocation_is_for_one_issuer_or_for_all() {
    let gateway = start(TWO_ISSUERS).await;
    let (corp, app) =
        (claims(json!({ "sub": "ann" })), claims(json!({ "sub": "ann", "iss": null })));
    revoked(&gateway, json!({ "subject": "ann", "issuer": "app" })).await;
    lives(&gateway, &corp).await;
    is_dead(&gateway, &app).await;
    revoked(&gateway, json!({ "subject": "ann", "issuer": "corp" })).await;
    is_dead(&gateway, &corp).await;
    let tokens = [claims(json!({ "sid": "s" })), claims(json!({ "sid": "s", "iss": null }))];
    revoked(&gateway, json!({ "sid": "s" })).await;
    for token in &tokens {
        is_dead(&gateway, token).await;
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_power_loss() {
    let mut gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t" }));
    for round in 0..3 {
        let next = claims(json!({ "sid": format!("s-{round}") }));
        lives(&gateway, &next).await;
        revoked(&gateway, json!({ "sid": format!("s-{round}") })).await;
        gateway.kill_and_restart().await;
        is_dead(&gateway, &next).await;
    }
    lives(&gateway, &token).await;
    assert_eq!(gateway.metric_value("portcullis_revocations_active", &[]).await, Some(3.0));
}

#[tokio::test]
async fn a_renamed_section_does_not_restore_revoked_tokens() {
    let gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t" }));
    revoked(&gateway, json!({ "jti": "t", "issuer": "corp" })).await;
    let renamed = format!("{STORED}\n[issuer.company]\n{}", mint::CORP);
    assert_eq!(gateway.reload(&renamed).await["message"], "reloaded");
    is_dead(&gateway, &token).await;
    // From now on, the new name is known and the old one is not.
    revoked(&gateway, json!({ "jti": "u", "issuer": "company" })).await;
    assert_eq!(
        revoke(&gateway, json!({ "jti": "u", "issuer": "corp" })).await.refusal(),
        (400, "request_invalid".to_owned())
    );
}

#[tokio::test]
async fn a_command_revokes_in_a_running_gateway() {
    let gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t" }));
    lives(&gateway, &token).await;
    let (code, output, errors) =
        gateway.command(&["revoke", "--jti", "t", "--issuer", "corp"]).await;
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        output.starts_with("revoked: the token with the jti `t` of issuer `corp`.")
            && output.contains("Every gateway that runs on this store refuses it now"),
        "{output}"
    );
    is_dead(&gateway, &token).await;
    is_dead(&gateway, &token).await;

    let session = claims(json!({ "sid": "s" }));
    let (code, output, _) = gateway.command(&["revoke", "--session", "s"]).await;
    assert!(
        code == 0 && output.contains("every token of the session `s` of every issuer"),
        "{output}"
    );
    is_dead(&gateway, &session).await;

    let subject = claims(json!({ "sub": "u-1" }));
    let (code, output, _) = gateway.command(&["revoke", "--subject", "u-1"]).await;
    assert!(
        code == 0
            && output.contains("every token of `u-1` of every issuer that was issued up to 20"),
        "{output}"
    );
    is_dead(&gateway, &subject).await;
}

#[tokio::test]
async fn a_command_revokes_for_a_gateway_that_starts_later() {
    let mut gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t" }));
    gateway.signal("TERM");
    gateway.exited().await;
    assert_eq!(gateway.command(&["revoke", "--jti", "t"]).await.0, 0);
    gateway.kill_and_restart().await;
    is_dead(&gateway, &token).await;
}

/// `leeway` admits a token whose `iat` is in the future. It was nevertheless issued before the
/// revocation.
#[tokio::test]
async fn a_token_with_a_future_iat_is_revoked_with_its_subject() {
    let mut gateway = start(STORED).await;
    let from_ahead =
        |subject: &str, seconds: u64| claims(json!({ "sub": subject, "iat": now() + seconds }));
    let (by_operator, by_command) = (from_ahead("u-1", 20), from_ahead("u-2", 20));
    for token in [&by_operator, &by_command] {
        lives(&gateway, token).await;
    }
    revoked(&gateway, json!({ "subject": "u-1", "issuer": "corp" })).await;
    assert_eq!(gateway.command(&["revoke", "--subject", "u-2"]).await.0, 0);
    for token in [&by_operator, &by_command] {
        for _ in 0..8 {
            is_dead(&gateway, token).await;
        }
    }
    lives(&gateway, &from_ahead("u-2", 28)).await;
    // For a subject without such a token, the cut-off is now.
    revoked(&gateway, json!({ "subject": "u-3" })).await;
    is_dead(&gateway, &claims(json!({ "sub": "u-3" }))).await;
    lives(&gateway, &from_ahead("u-3", 2)).await;
    gateway.kill_and_restart().await;
    for token in [&by_operator, &by_command] {
        is_dead(&gateway, token).await;
    }
}

#[tokio::test]
async fn the_revoke_command_reports_errors() {
    let gateway = start(TWO_ISSUERS).await;
    for (arguments, exit, expected) in [
        (&["revoke"][..], 2, "<--jti <JTI>|--session <SID>|--subject <SUBJECT>>"),
        (&["revoke", "--jti", "a", "--session", "b"], 2, "cannot be used with"),
        (&["revoke", "--jti", ""], 2, "the jti is empty"),
        (
            &["revoke", "--jti", "a", "--issuer", "crop"],
            2,
            "there is no [issuer.crop]; known issuers: app, corp",
        ),
    ] {
        let (code, _, errors) = gateway.command(arguments).await;
        assert!(code == exit && errors.contains(expected), "{arguments:?}: {code} {errors}");
    }
    let gateway = Gateway::start("route = [{ path = '/*', upstream = 'app' }]").await;
    let (code, _, errors) = gateway.command(&["revoke", "--jti", "a"]).await;
    assert!(
        code == 78
            && errors.contains("there is no `[store]`")
            && errors.contains("add a `[store]` section"),
        "{code} {errors}"
    );
}

#[tokio::test]
async fn explain_knows_revocations() {
    let gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t" }));
    let explain = async || {
        let (code, output, errors) =
            gateway.command(&["explain", "GET", "/", "--json", "--token", &token]).await;
        assert_eq!((code, errors.as_str()), (0, ""));
        serde_json::from_str::<Value>(&output).unwrap()["reason"].clone()
    };
    assert_eq!(explain().await, "authenticated");
    revoked(&gateway, json!({ "jti": "t" })).await;
    assert_eq!(explain().await, "token_revoked");
}

#[tokio::test]
async fn only_the_admin_token_can_revoke() {
    let gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t" }));
    let body = json!({ "jti": "t" }).to_string();
    for (line, error) in [
        (None, ""),
        (Some("Basic YTpi".to_owned()), ""),
        (Some("Bearer wrong".to_owned()), ", error=\"invalid_token\""),
        (Some(format!("Bearer {OPERATOR}x")), ", error=\"invalid_token\""),
        // A caller's token is not the admin token.
        (Some(format!("Bearer {token}")), ", error=\"invalid_token\""),
    ] {
        let request = post(&gateway).body(&body);
        let request = match &line {
            Some(line) => request.header("Authorization", line),
            None => request,
        };
        let response = request.send().await;
        response.is(401, "credentials_missing");
        assert_eq!(
            response.header("www-authenticate"),
            Some(format!("Bearer realm=\"portcullis\"{error}").as_str())
        );
    }
    lives(&gateway, &token).await;
    let get = Request::new(gateway.admin_address(), "GET", "/revoke").bearer(OPERATOR).send().await;
    assert_eq!(
        (get.refusal(), get.header("allow")),
        ((405, "method_not_allowed".to_owned()), Some("POST"))
    );
    // The public listener does not have this endpoint.
    let public = gateway.request("POST", "/revoke").bearer(OPERATOR).body(&body).send().await;
    public.is(401, "token_malformed");
    // The token is in no file.
    assert!(gateway.log().lines().iter().all(|line| !line.to_string().contains(OPERATOR)));
}

#[tokio::test]
async fn unclear_bodies_revoke_nothing() {
    let gateway = start(STORED).await;
    for (body, output) in [
        ("", "EOF"),
        ("{\"jti\":", "EOF"),
        ("[]", "not a JSON object"),
        ("{}", "one of `jti`, `sid` and `subject` is required"),
        ("{\"jti\":\"a\",\"subject\":\"b\"}", "only one of"),
        ("{\"sid\":\"\"}", "`sid` is empty"),
        ("{\"sid\":7}", "expected a string"),
        ("{\"subject\":\"u-17\",\"isuer\":\"corp\"}", "unknown field `isuer`"),
        (
            "{\"subject\":\"u-17\",\"issuer\":\"crop\"}",
            "there is no [issuer.crop]; known issuers: corp",
        ),
    ] {
        let response = post(&gateway).bearer(OPERATOR).body(body).send().await;
        response.is(400, "request_invalid");
        assert!(
            response.json()["detail"].as_str().unwrap().contains(output),
            "{body}: {response:?}"
        );
    }
    let large = format!("{{\"jti\":\"{}\"}}", "a".repeat(64 * 1024));
    post(&gateway).bearer(OPERATOR).body(large).send().await.is(413, "body_too_large");
    assert_eq!(gateway.metric_value("portcullis_revocations_active", &[]).await, Some(0.0));
    lives(&gateway, &mint::token(&[])).await;
}

#[tokio::test]
async fn without_an_admin_token_there_is_no_revoke_endpoint() {
    let gateway = start(&STORED.replace("admin.token = { file = 'admin.token' }\n", "")).await;
    assert_eq!(revoke(&gateway, json!({ "jti": "t" })).await.status, 404);
    // A reload can set, change and remove the token.
    gateway.reload(STORED).await;
    revoked(&gateway, json!({ "jti": "t" })).await;
    std::fs::write(gateway.path("admin.token"), "another-token-of-the-operators").unwrap();
    gateway.hang_up().await;
    assert_eq!(revoke(&gateway, json!({ "jti": "u" })).await.status, 401);
    gateway.reload(&STORED.replace("admin.token = { file = 'admin.token' }\n", "")).await;
    assert_eq!(revoke(&gateway, json!({ "jti": "u" })).await.status, 404);
}

#[tokio::test]
async fn an_admin_token_that_is_short_or_cannot_be_sent_is_refused() {
    for (token, expected) in
        [("short", "the token has 5 bytes"), ("two words of sixteen", "cannot be sent")]
    {
        let gateway = start(STORED).await;
        std::fs::write(gateway.path("admin.token"), token).unwrap();
        let rejected = gateway.hang_up().await;
        assert!(rejected["problems"].to_string().contains(expected), "{rejected}");
        assert_eq!(gateway.command(&["check"]).await.0, 78);
        revoked(&gateway, json!({ "jti": "t" })).await;
    }
}

#[tokio::test]
async fn a_failing_store_returns_503_and_revokes_nothing() {
    let gateway = start(STORED).await;
    let token = claims(json!({ "jti": "t" }));
    // Another process locks the database for longer than the timeout.
    let database = gateway.path("portcullis.db");
    let mode = std::fs::metadata(&database).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let lock = within(hold(database.to_str().unwrap())).await;
    let response = revoke(&gateway, json!({ "jti": "t" })).await;
    response.is(503, "store_unavailable");
    lives(&gateway, &token).await;
    drop(lock);
    revoked(&gateway, json!({ "jti": "t" })).await;
    is_dead(&gateway, &token).await;
}

#[tokio::test]
async fn without_a_store_revocations_last_until_the_process_ends() {
    let mut gateway = start(&STORED.replace("store.database = 'sqlite:portcullis.db'\n", "")).await;
    let (code, _, warnings) = gateway.command(&["check"]).await;
    assert!(code == 0 && warnings.contains("revokes in memory only"), "{warnings}");
    let token = claims(json!({ "jti": "t" }));
    revoked(&gateway, json!({ "jti": "t" })).await;
    is_dead(&gateway, &token).await;
    gateway.hang_up().await;
    is_dead(&gateway, &token).await;
    gateway.kill_and_restart().await;
    lives(&gateway, &token).await;
    let stored = start(STORED).await;
    assert!(!stored.command(&["check"]).await.2.contains("memory"));
}

#[tokio::test]
async fn a_forged_token_reveals_nothing_about_revocations() {
    let gateway = start(STORED).await;
    revoked(&gateway, json!({ "jti": "t" })).await;
    let forged =
        secret(jsonwebtoken::Algorithm::HS256, b"another secret, of whoever forges tokens")
            .token(json!({}), json!({ "jti": "t" }));
    get(&gateway, &forged).await.is(401, "token_signature");
    get(&gateway, &claims(json!({ "jti": "t", "exp": now() - 100 })))
        .await
        .is(401, "token_expired");
}

#[tokio::test]
async fn a_route_that_does_not_enforce_forwards_a_revoked_token_without_an_identity() {
    let gateway =
        start(&STORED.replace("upstream = 'app' }", "upstream = 'app', enforce = false }")).await;
    let token = claims(json!({ "jti": "t" }));
    revoked(&gateway, json!({ "jti": "t" })).await;
    lives(&gateway, &token).await;
    assert_eq!(gateway.upstream().last().header("x-auth-user"), None);
    let line = gateway.access("/").await;
    assert_eq!(
        (&line["outcome"], &line["reason"], &line["subject"]),
        (&"would_refuse".into(), &"token_revoked".into(), &Value::Null)
    );
}

/// Locks a database for writing, as another process would, until the returned value is dropped.
pub async fn hold(database: &str) -> sqlx::SqliteConnection {
    let mut connection = open(database).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
    connection
}

/// Opens a database as another process would.
pub async fn open(database: &str) -> sqlx::SqliteConnection {
    <sqlx::SqliteConnection as sqlx::Connection>::connect(&format!("sqlite://{database}"))
        .await
        .unwrap()
}

/// Also without a built-in issuer, whose logins would notice it.
#[tokio::test]
async fn a_failing_store_is_reported_until_it_works_again() {
    let gateway = start(STORED).await;
    run(&gateway, &FAIL).await;
    revoke(&gateway, json!({ "jti": "t" })).await.is(503, "store_unavailable");
    let answer = gateway.admin("/readyz").await.json();
    let problem = answer["problems"]["store"].as_str().unwrap_or_default();
    assert!(problem.contains("the database failed"), "{answer}");
    run(&gateway, &RECOVER).await;
    let works = |line: &Value| line["message"] == "the database can be written again";
    gateway.log().until("it works again", works).await;
    assert_eq!(gateway.admin("/readyz").await.json()["status"], "ready");
    revoked(&gateway, json!({ "jti": "t" })).await;
}

/// Without Redis the other gateway reads the table every second.
#[tokio::test]
async fn a_revocation_is_announced_through_redis() {
    let Some(redis) = Redis::start(&[]) else { return };
    let file = format!("store.redis = '{}'\nstore.poll = '1s'\n{STORED}", redis.url());
    let one = start(&file).await;
    let other = file.replace(
        "sqlite:portcullis.db",
        &format!("sqlite:{}", one.path("portcullis.db").display()),
    );
    let other =
        format!("store.key = {{ file = '{}' }}\n{other}", one.path("portcullis.key").display());
    let other = start(&other).await;
    for gateway in [&one, &other] {
        within(async {
            while gateway.metric_value("portcullis_store_up", &["redis"]).await != Some(1.0) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let mut times = Vec::new();
    for number in 0..15 {
        let jti = format!("t-{number}");
        let token = claims(json!({ "sub": "u-17", "jti": jti }));
        assert_eq!(get(&other, &token).await.status, 200);
        revoked(&one, json!({ "jti": jti })).await;
        let begun = std::time::Instant::now();
        within(async { while get(&other, &token).await.status == 200 {} }).await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    assert!(times[7].as_millis() < 200, "{times:?}");
}
