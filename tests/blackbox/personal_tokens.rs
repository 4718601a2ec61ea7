//! Personal access tokens: made, used as a bearer token or a password, taken away (CONTRACT §15.3).

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::by_mail;
use crate::harness::accounts::{PASSWORD, limited};
use crate::harness::client::Request;
use crate::harness::{Gateway, Response, within};

/// Everyone who is logged in at `/`, admins at `/admin/*`, programs and browsers at `/dav/*`.
const SITE: &str = "server.workers = 2
identity = { issuer = 'http://app.test/auth', registration = 'open', default_roles = ['user'], mail = { folder = 'mail' } }
limit.wide = { requests = 100000, per = '1s' }
route = [
    { path = '/auth/*', identity = true, limit = 'wide' },
    { path = '/*', upstream = 'app', token_from = ['header', 'basic'] },
    { path = '/admin/*', upstream = 'app', token_from = ['header', 'basic'], roles = ['admin'] },
    { path = '/dav/*', upstream = 'app', token_from = ['header', 'cookie', 'basic'] },
    { path = '/bearer/*', upstream = 'app', forward_authorization = true },
    { path = '/public/*', upstream = 'app', access = 'public', forward_authorization = true },
]";

const RESET: &str = "http://app.test/auth/password/reset?token=";

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn with(gateway: &Gateway, path: &str, authorization: &str) -> Request {
    gateway.get(path).header("Authorization", authorization)
}

/// Status and reason of a refusal that may have two challenges.
#[track_caller]
fn refused(response: &Response, status: u16, reason: &str) {
    assert_eq!(
        (response.status, response.json()["reason"].as_str()),
        (status, Some(reason)),
        "{response:?}"
    );
}

async fn refuses(gateway: &Gateway, token: &str, status: u16, reason: &str) {
    for _ in 0..4 {
        for authorization in [format!("Bearer {token}"), basic("ann", token)] {
            refused(&with(gateway, "/", &authorization).send().await, status, reason);
        }
    }
}

/// Ann's access token.
async fn ann(gateway: &Gateway) -> String {
    gateway.register("ann@example.com").await;
    gateway.login("ann@example.com").await.access
}

async fn create(gateway: &Gateway, access: &str, body: Value) -> Value {
    let response = gateway.post("/auth/tokens", &body).bearer(access).send().await;
    assert_eq!(response.status, 201, "{response:?}");
    assert_eq!(response.header("cache-control"), Some("no-store"));
    response.json()
}

async fn token(gateway: &Gateway, access: &str) -> String {
    let created = create(gateway, access, json!({ "name": "laptop" })).await;
    created["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_is_a_bearer_token_and_the_password_of_any_user_name() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    let created = create(&gateway, &access, json!({ "name": " laptop ", "ttl": "90d" })).await;
    let token = created["token"].as_str().unwrap();
    let rest = token.strip_prefix("pct_").unwrap();
    assert!(
        rest.len() == 43
            && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    );
    assert_eq!((&created["name"], &created["roles"]), (&json!("laptop"), &Value::Null));

    let mark = gateway.log().mark();
    for authorization in [
        format!("Bearer {token}"),
        basic("ann@example.com", token),
        basic("x", token),
        basic("", token).trim_end_matches('=').to_owned(),
    ] {
        assert_eq!(with(&gateway, "/calendar", &authorization).send().await.status, 200);
        let seen = gateway.upstream().last();
        assert_eq!(seen.header("x-auth-roles"), Some("user"));
        assert_eq!(seen.header("x-auth-email"), Some("ann@example.com"));
        assert_eq!(seen.header("x-auth-issuer"), Some("http://app.test/auth"));
        assert_eq!(seen.header("authorization"), None);
    }
    let line = gateway.log().after(mark, "access", |line| line["url.path"] == "/calendar").await;
    assert_eq!((&line["issuer"], &line["sid"]), (&json!("identity"), &Value::Null));
    assert!(line["subject"].is_string());
    // Not even where the route forwards the field.
    for path in ["/bearer/x", "/public/x"] {
        for authorization in [format!("Bearer {token}"), basic("x", token)] {
            let status = with(&gateway, path, &authorization).send().await.status;
            if status == 200 {
                assert_eq!(gateway.upstream().last().header("authorization"), None);
            } else {
                assert_eq!((status, path), (401, "/bearer/x"), "Basic is not taken there");
            }
        }
    }
    let log: String = gateway.log().lines().iter().map(Value::to_string).collect();
    assert!(!log.contains(token) && log.contains("token_created"));

    let listed = gateway.get("/auth/tokens").bearer(&access).send().await.json();
    let listed = &listed["tokens"][0];
    assert_eq!((&listed["id"], &listed["token"]), (&created["id"], &Value::Null));
    assert_eq!(listed["last_used_on"].as_str().unwrap().len(), "2026-03-14".len());
    // Once it is known, the store is not asked.
    let known = gateway.metric_value("portcullis_token_cache_hits_total", &[]).await.unwrap();
    for _ in 0..10 {
        assert_eq!(with(&gateway, "/", &basic("x", token)).send().await.status, 200);
    }
    let hits = gateway.metric_value("portcullis_token_cache_hits_total", &[]).await.unwrap();
    assert!(hits >= known + 9.0, "{known} {hits}");
}

#[tokio::test]
async fn fifty_first_requests_at_once_all_pass() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    let token = token(&gateway, &access).await;
    let request = with(&gateway, "/", &basic("x", &token)).bytes();
    let mut connections = Vec::new();
    for _ in 0..50 {
        connections.push(gateway.connect().await);
    }
    for connection in &mut connections {
        connection.write(&request).await;
    }
    for connection in &mut connections {
        assert_eq!(connection.response().await.status, 200);
    }
}

#[tokio::test]
async fn its_roles_are_those_named_that_the_account_still_has() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    let set = async |roles: &[&str]| {
        let arguments = [&["user", "set-roles", "ann@example.com"], roles].concat();
        let (code, _, errors) = gateway.command(&arguments).await;
        assert_eq!(code, 0, "{errors}");
    };
    let unknown = json!({ "name": "x", "roles": ["user", "admin"] });
    gateway.post("/auth/tokens", &unknown).bearer(&access).send().await.is(400, "request_invalid");
    set(&["user", "admin"]).await;
    let access = gateway.login("ann@example.com").await.access;
    let limited = create(&gateway, &access, json!({ "name": "one", "roles": ["user"] })).await;
    let all = create(&gateway, &access, json!({ "name": "all" })).await;
    let none = create(&gateway, &access, json!({ "name": "none", "roles": [] })).await;
    let roles = async |created: &Value| {
        let authorization = basic("x", created["token"].as_str().unwrap());
        assert_eq!(with(&gateway, "/", &authorization).send().await.status, 200);
        gateway.upstream().last().header("x-auth-roles").unwrap_or_default().to_owned()
    };
    assert_eq!(
        (roles(&limited).await, roles(&all).await, roles(&none).await),
        ("user".into(), "user,admin".into(), String::new())
    );
    let authorization = basic("x", limited["token"].as_str().unwrap());
    with(&gateway, "/admin/", &authorization).send().await.is(403, "role_missing");
    // A change is in force when the command ends, in both directions.
    set(&["admin"]).await;
    for _ in 0..4 {
        assert_eq!((roles(&limited).await, roles(&all).await), (String::new(), "admin".into()));
    }
    set(&["user"]).await;
    for _ in 0..4 {
        assert_eq!((roles(&limited).await, roles(&all).await), ("user".into(), "user".into()));
    }
}

#[tokio::test]
async fn what_takes_access_away_is_in_force_at_once() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    let command = async |arguments: &[&str]| {
        let (code, _, errors) = gateway.command(arguments).await;
        assert_eq!(code, 0, "{errors}");
    };
    let passes = async |token: &str| {
        for _ in 0..4 {
            assert_eq!(with(&gateway, "/", &basic("x", token)).send().await.status, 200);
        }
    };
    let laptop = token(&gateway, &access).await;
    let phone = create(&gateway, &access, json!({ "name": "phone" })).await;
    let (phone, phone_id) = (phone["token"].as_str().unwrap(), phone["id"].as_str().unwrap());
    let third = create(&gateway, &access, json!({ "name": "third" })).await;
    let (third, third_id) = (third["token"].as_str().unwrap(), third["id"].as_str().unwrap());
    for token in [&laptop, phone, third] {
        passes(token).await;
    }
    let path = format!("/auth/tokens/{phone_id}");
    let revoked = gateway.request("DELETE", &path).bearer(&access).send().await;
    assert_eq!(revoked.status, 204);
    refuses(&gateway, phone, 401, "token_revoked").await;
    command(&["revoke", "--jti", third_id]).await;
    refuses(&gateway, third, 401, "token_revoked").await;
    passes(&laptop).await;

    command(&["user", "disable", "ann@example.com"]).await;
    refuses(&gateway, &laptop, 401, "token_revoked").await;
    command(&["user", "enable", "ann@example.com"]).await;
    passes(&laptop).await;
    refuses(&gateway, phone, 401, "token_revoked").await;
    // What ends sessions leaves tokens.
    command(&["user", "end-sessions", "ann@example.com"]).await;
    passes(&laptop).await;
    let access = gateway.login("ann@example.com").await.access;
    let new = "cactus ferry lamp 12";
    let body = json!({ "current_password": PASSWORD, "new_password": new });
    let changed = gateway.post("/auth/password/change", &body).bearer(&access).send().await;
    assert_eq!(changed.status, 204, "{changed:?}");
    passes(&laptop).await;
    // A mailed reset does not: someone else may have had the account.
    let asked = json!({ "email": "ann@example.com" });
    assert_eq!(gateway.post("/auth/password/forgot", &asked).send().await.status, 202);
    let mails = by_mail::mails(&gateway, 2).await;
    let mail = mails.iter().find(|mail| mail.contains(RESET)).unwrap();
    let link = by_mail::token(mail, RESET);
    let body = json!({ "token": link, "password": "marble kettle orchid 5" });
    assert_eq!(gateway.post("/auth/password/reset", &body).send().await.status, 204);
    refuses(&gateway, &laptop, 401, "token_revoked").await;
}

#[tokio::test]
async fn other_passwords_and_credentials_are_refused() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    let token = token(&gateway, &access).await;
    for malformed in ["Basic", "Basic !", "Basic YWI="] {
        refused(&with(&gateway, "/", malformed).send().await, 400, "credentials_malformed");
    }
    let unknown = format!("pct_{}", "A".repeat(43));
    for authorization in [basic("ann@example.com", PASSWORD), format!("Bearer {unknown}")] {
        refused(&with(&gateway, "/", &authorization).send().await, 401, "token_signature");
    }
    // A JSON Web Token is no password, not even one that is known.
    for _ in 0..4 {
        assert_eq!(gateway.reaches(&access).await, 200);
    }
    refused(&with(&gateway, "/", &basic("x", &access)).send().await, 401, "token_signature");
    let cookie = format!("__Host-portcullis={access}");
    let both = with(&gateway, "/dav/", &basic("x", &token)).header("Cookie", &cookie);
    refused(&both.send().await, 400, "credentials_ambiguous");
    let twice =
        with(&gateway, "/", &basic("x", &token)).header("Authorization", &basic("x", &token));
    refused(&twice.send().await, 400, "credentials_ambiguous");
    // Where Basic is not taken, it is no credential.
    refused(
        &with(&gateway, "/bearer/", &basic("x", &token)).send().await,
        401,
        "credentials_missing",
    );
    // A browser repeats passwords for pages of other sites, too.
    let foreign = gateway
        .request("POST", "/")
        .header("Authorization", &basic("x", &token))
        .header("Origin", "https://evil.test")
        .body("");
    refused(&foreign.send().await, 403, "origin_foreign");
    let own = gateway.request("POST", "/").header("Authorization", &basic("x", &token)).body("");
    assert_eq!(own.send().await.status, 200);
    // It expires.
    let short = create(&gateway, &access, json!({ "name": "short", "ttl": "1s" })).await;
    let short = basic("x", short["token"].as_str().unwrap());
    within(async {
        loop {
            let response = with(&gateway, "/", &short).send().await;
            if response.status != 200 {
                break refused(&response, 401, "token_expired");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn guesses_are_limited_by_address_and_known_tokens_pass() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    let token = token(&gateway, &access).await;
    assert_eq!(with(&gateway, "/", &basic("x", &token)).send().await.status, 200);
    let mut statuses = Vec::new();
    for guess in 0..8 {
        let password = match guess % 3 {
            0 => PASSWORD.to_owned(),
            1 => format!("pct_{}", "A".repeat(43)),
            _ => format!("pct_{guess}{}", "A".repeat(42)),
        };
        statuses.push(with(&gateway, "/", &basic("x", &password)).send().await.status);
    }
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429, 429]);
    let limited =
        gateway.metric_value("portcullis_rate_limited_total", &["identity-login-address"]).await;
    assert_eq!(limited, Some(3.0));
    // On either worker: one remembers it, the other one looks it up.
    for _ in 0..10 {
        assert_eq!(with(&gateway, "/", &basic("x", &token)).send().await.status, 200);
    }
}

#[tokio::test]
async fn a_refusal_asks_programs_for_a_password_and_browsers_not() {
    let gateway = Gateway::start(SITE).await;
    let challenges = async |request: Request| {
        let response = request.send().await;
        let challenges = response.headers("www-authenticate");
        let challenges: Vec<_> = challenges.into_iter().map(str::to_owned).collect();
        (response.status, challenges)
    };
    let (bearer, basic) = ("Bearer realm=\"portcullis\"", "Basic realm=\"portcullis\"");
    let both = (401, vec![bearer.to_owned(), basic.to_owned()]);
    assert_eq!(challenges(gateway.get("/dav/")).await, both);
    assert_eq!(challenges(gateway.request("PROPFIND", "/dav/")).await, both);
    assert_eq!(challenges(gateway.get("/")).await, both);
    let bearer = (401, vec![bearer.to_owned()]);
    assert_eq!(challenges(gateway.get("/bearer/")).await, bearer);
    let script = gateway.get("/dav/").header("Sec-Fetch-Mode", "cors");
    assert_eq!(challenges(script).await, bearer, "a browser would show its own dialog");
    assert_eq!(challenges(gateway.get("/").header("Accept", "text/html")).await, bearer);
    let navigation =
        gateway.get("/dav/").header("Accept", "text/html").header("Sec-Fetch-Mode", "navigate");
    assert_eq!(challenges(navigation).await.0, 303);
}

/// Otherwise a token that is limited to a role could make one that is not.
#[tokio::test]
async fn a_token_does_not_manage_its_account() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    let token = token(&gateway, &access).await;
    assert_eq!(gateway.get("/auth/me").bearer(&token).send().await.status, 200);
    for (method, path) in [
        ("GET", "/auth/tokens"),
        ("POST", "/auth/tokens"),
        ("GET", "/auth/sessions"),
        ("POST", "/auth/logout-all"),
        ("POST", "/auth/password/change"),
    ] {
        let request = gateway.request(method, path).bearer(&token).body("");
        request.send().await.is(403, "scope_missing");
    }
    let ended = gateway.request("POST", "/auth/logout").bearer(&token).body("").send().await;
    assert_eq!(ended.status, 401);
    // Tokens of others do not exist for me.
    gateway.register("bob@example.com").await;
    let bob = gateway.login("bob@example.com").await.access;
    let listed = gateway.get("/auth/tokens").bearer(&access).send().await.json();
    let path = format!("/auth/tokens/{}", listed["tokens"][0]["id"].as_str().unwrap());
    gateway.request("DELETE", &path).bearer(&bob).send().await.is(404, "route_not_found");
    assert_eq!(gateway.reaches(&token).await, 200);
}

/// Otherwise a stolen token could keep its owner from revoking it.
#[tokio::test]
async fn a_token_uses_up_nothing_that_its_owner_needs() {
    let gateway = Gateway::start(&limited("")).await;
    gateway.register("ann@example.com").await;
    let access = gateway.login("ann@example.com").await.access;
    let made = gateway.post("/auth/tokens", &json!({ "name": "x", "roles": [] })).bearer(&access);
    let made = made.send().await.json();
    let (stolen, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    let revoked = format!("/auth/tokens/{id}");
    let change = json!({ "current_password": PASSWORD, "new_password": "cactus ferry lamp 12" });
    for _ in 0..70 {
        for request in [
            gateway.request("DELETE", &revoked),
            gateway.request("DELETE", "/auth/sessions/x"),
            gateway.post("/auth/password/change", &change),
            gateway.post("/auth/tokens", &json!({ "name": "y" })),
        ] {
            request.bearer(stolen).send().await.is(403, "scope_missing");
        }
    }
    let request = gateway.request("DELETE", &revoked).bearer(&access);
    assert_eq!(request.send().await.status, 204);
    let request = gateway.post("/auth/password/change", &change).bearer(&access);
    assert_eq!(request.send().await.status, 204);
}

#[tokio::test]
async fn the_body_of_a_new_token_is_checked() {
    let gateway = Gateway::start(SITE).await;
    let access = ann(&gateway).await;
    token(&gateway, &access).await;
    for (body, detail) in [
        (json!({}), "`name`"),
        (json!({ "name": " " }), "`name`"),
        (json!({ "name": "laptop" }), "another token"),
        (json!({ "name": "x", "roles": ["user admin"] }), "`roles`"),
        (json!({ "name": "x", "ttl": "0s" }), "`ttl`"),
        (json!({ "name": "x", "ttl": "11y" }), "`ttl`"),
        (json!({ "name": "x", "ttl": "180" }), "`ttl`"),
    ] {
        let response = gateway.post("/auth/tokens", &body).bearer(&access).send().await;
        response.is(400, "request_invalid");
        let told = response.json()["detail"].as_str().unwrap().to_owned();
        assert!(told.contains(detail), "{body}: {told}");
    }
}

#[tokio::test]
async fn the_command_line_makes_lists_and_revokes() {
    let gateway = Gateway::start(SITE).await;
    ann(&gateway).await;
    let (code, made, errors) = gateway
        .command(&["user", "token", "add", "Ann@example.com", "--name", "backup", "--role", "user"])
        .await;
    assert_eq!(code, 0, "{errors}");
    let token = made.strip_suffix('\n').unwrap();
    assert!(token.starts_with("pct_") && token.len() == 47 && !errors.contains(token), "{made}");
    assert!(errors.contains("`backup`") && errors.contains("roles user"), "{errors}");
    assert_eq!(with(&gateway, "/", &basic("x", token)).send().await.status, 200);
    let (_, listed, _) = gateway.command(&["user", "token", "list", "ann@example.com"]).await;
    assert!(listed.contains("backup") && !listed.contains("never"), "{listed}");
    let (_, listed, _) =
        gateway.command(&["user", "token", "list", "ann@example.com", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["roles"]), (&json!("backup"), &json!(["user"])));
    let (code, explained, _) =
        gateway.command(&["explain", "GET", "/calendar", "--token", token]).await;
    assert!(code == 0 && explained.contains("allow: 200 authenticated"), "{explained}");
    let (_, inspected, _) = gateway.command(&["token", "inspect", token]).await;
    assert!(inspected.contains("personal access token"), "{inspected}");
    let revoke = ["user", "token", "revoke", "ann@example.com", "backup"];
    assert_eq!(gateway.command(&revoke).await.0, 0);
    refuses(&gateway, token, 401, "token_revoked").await;
    let (_, explained, _) =
        gateway.command(&["explain", "GET", "/calendar", "--token", token]).await;
    assert!(explained.contains("refuse: 401 token_revoked"), "{explained}");
    let (code, _, errors) = gateway.command(&revoke).await;
    assert!(code == 1 && errors.contains("user token list ann@example.com"), "{errors}");
    for wrong in [["--role", "admin"], ["--ttl", "0s"]] {
        let arguments = ["user", "token", "add", "ann@example.com", "--name", "x"];
        let (code, made, _) = gateway.command(&[&arguments[..], &wrong].concat()).await;
        assert!(code != 0 && made.is_empty());
    }
}
