//! The built-in issuer: registration, login, passwords, and what responses reveal (CONTRACT §5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use base64::Engine;
use serde_json::{Value, json};

use crate::by_mail::sqlite;
use crate::harness::accounts::{PASSWORD, Tokens, limited, open};
use crate::harness::{Gateway, mint};

#[tokio::test]
async fn a_new_account_can_log_in_and_is_known_to_the_application() {
    let gateway = Gateway::start(&open("")).await;
    let body = json!({ "email": " Ann@Example.COM", "password": PASSWORD, "name": "Ann Ott", "unknown": 1 });
    let registered = gateway.post("/auth/register", &body).send().await;
    assert_eq!(registered.status, 201, "{registered:?}");
    let account = registered.json();
    assert_eq!(
        (&account["email"], &account["name"], &account["roles"]),
        (&json!("ann@example.com"), &json!("Ann Ott"), &json!(["user"]))
    );

    let login = gateway.try_login("ANN@example.com", PASSWORD).await;
    assert_eq!(login.header("cache-control"), Some("no-store"));
    assert!(login.headers("set-cookie").is_empty());
    let tokens = Tokens::of(&login);
    assert_eq!(login.json()["expires_in"], 900);
    let claims = tokens.claims();
    assert_eq!(claims["sub"], account["id"]);
    assert_eq!(
        (&claims["iss"], &claims["aud"]),
        (&json!("http://app.test/auth"), &json!(["portcullis"]))
    );
    assert_eq!(
        (&claims["email"], &claims["name"], &claims["roles"]),
        (&json!("ann@example.com"), &json!("Ann Ott"), &json!(["user"]))
    );
    assert!(claims.get("email_verified").is_none());
    for name in ["jti", "sid"] {
        assert!(claims[name].as_str().is_some_and(|text| text.len() == 36), "{claims}");
    }

    assert_eq!(gateway.reaches(&tokens.access).await, 200);
    let seen = gateway.upstream().last();
    assert_eq!(seen.header("x-auth-user"), account["id"].as_str());
    assert_eq!(seen.header("x-auth-email"), Some("ann@example.com"));
    assert_eq!(seen.header("x-auth-roles"), Some("user"));
    let me = gateway.get("/auth/me").bearer(&tokens.access).send().await.json();
    assert_eq!((&me["id"], &me["email_verified"]), (&account["id"], &json!(false)));
    assert!(me["last_login_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(gateway.metric_value("portcullis_logins_total", &["succeeded"]).await, Some(1.0));
}

#[tokio::test]
async fn forms_are_parsed_like_json() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let form = |body: &str| {
        gateway
            .request("POST", "/auth/login")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(body)
    };
    let password = PASSWORD.replace(' ', "+");
    assert_eq!(
        form(&format!("email=ann%40example.com&password={password}")).send().await.status,
        200
    );
    form(&format!("email=ann%40example.com&email=bob%40example.com&password={password}"))
        .send()
        .await
        .is(400, "request_invalid");
    for (content_type, body) in [
        ("application/json", "{"),
        ("application/json", "[]"),
        ("application/json", "{\"email\": 1, \"password\": \"x\"}"),
        ("application/json", "{\"email\": \"ann@example.com\"}"),
        (
            "application/json",
            "{\"email\":\"a@b.example\",\"email\":\"b@b.example\",\"password\":\"x\"}",
        ),
        ("text/plain", "{\"email\": \"ann@example.com\", \"password\": \"x\"}"),
        ("application/x-www-form-urlencoded", "{\"email\": \"ann@example.com\"}"),
    ] {
        let response = gateway
            .request("POST", "/auth/login")
            .header("Content-Type", content_type)
            .body(body)
            .send()
            .await;
        response.is(400, "request_invalid");
    }
    gateway.request("POST", "/auth/login").body("").send().await.is(400, "request_invalid");
    let long = format!("{{\"email\":\"ann@example.com\",\"password\":\"{}\"}}", "a".repeat(20_000));
    gateway
        .request("POST", "/auth/login")
        .header("Content-Type", "application/json")
        .body(long)
        .send()
        .await
        .is(413, "body_too_large");
}

#[tokio::test]
async fn only_the_documented_paths_and_methods_exist() {
    let gateway = Gateway::start(&open("")).await;
    for path in ["/auth/nothing", "/auth/login/", "/auth/LOGIN", "/auth/sessions/a/b"] {
        gateway.request("PATCH", path).send().await.is(404, "route_not_found");
    }
    let response = gateway.request("PUT", "/auth/me").send().await;
    response.is(405, "method_not_allowed");
    assert_eq!(response.header("allow"), Some("DELETE, GET, HEAD, PATCH"));
}

#[tokio::test]
async fn registration_is_closed_by_default() {
    let gateway = Gateway::start(&open("").replace("registration = 'open'\n", "")).await;
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    gateway.post("/auth/register", &body).send().await.is(403, "registration_closed");
    let gateway = Gateway::start(&open("default_roles = ['reader', 'a,b']")).await;
    let account = gateway.register("ann@example.com").await;
    assert_eq!(account["roles"], json!(["reader", "a,b"]));
    gateway
        .post("/auth/register", &json!({ "email": "ANN@example.com", "password": PASSWORD }))
        .send()
        .await
        .is(409, "account_exists");
    for email in ["", "ann", "ann@", "ann@example.com\u{0}"] {
        gateway
            .post("/auth/register", &json!({ "email": email, "password": PASSWORD }))
            .send()
            .await
            .is(400, "request_invalid");
    }
    let named = json!({ "email": "bob@example.com", "password": PASSWORD, "name": "B\u{7}b" });
    gateway.post("/auth/register", &named).send().await.is(400, "request_invalid");
}

#[tokio::test]
async fn weak_passwords_are_refused_with_a_reason() {
    let gateway = Gateway::start(&open("password_min_length = 10")).await;
    for password in ["", "short", "password123", "aaaaaaaaaaaaaaaa", "ann@example.com"] {
        let response = gateway
            .post("/auth/register", &json!({ "email": "ann@example.com", "password": password }))
            .send()
            .await;
        response.is(422, "password_rejected");
        assert!(
            response.json()["detail"].as_str().is_some_and(|detail| detail.len() > 20),
            "{response:?}"
        );
    }
}

/// A wrong password, an unknown account and a disabled one get the same response.
#[tokio::test]
async fn a_failed_login_reveals_nothing() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let without_id = |response: crate::harness::Response| {
        response.is(401, "login_failed");
        assert_eq!(response.header("www-authenticate"), Some("Bearer realm=\"portcullis\""));
        let mut body = response.json();
        body.as_object_mut().unwrap().remove("request_id");
        body
    };
    let wrong = without_id(gateway.try_login("ann@example.com", "another password 1").await);
    for (email, password) in
        [("bob@example.com", PASSWORD), ("no address", PASSWORD), ("ann@example.com", ""), ("", "")]
    {
        assert_eq!(without_id(gateway.try_login(email, password).await), wrong);
    }
    let log = gateway
        .log()
        .until("the log tells who it was", |line| line["message"] == "login_failed")
        .await;
    assert_eq!(
        (&log["reason"], &log["client.address"]),
        (&json!("wrong_password"), &json!("127.0.0.1"))
    );
    assert!(log["account"].is_string());
    gateway.log().until("an unknown one too", |line| line["reason"] == "unknown_account").await;
    assert_eq!(gateway.metric_value("portcullis_logins_total", &["failed"]).await, Some(5.0));
}

/// The log never contains a secret or an email address.
#[tokio::test]
async fn the_log_contains_no_secret() {
    let gateway =
        Gateway::start(&open("").replace("[identity]", "[log]\nlevel = 'trace'\n[identity]")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    gateway.try_login("ann@example.com", "a wrong password").await.is(401, "login_failed");
    let next = Tokens::of(&gateway.refresh(&tokens.refresh).await);
    assert_eq!(gateway.reaches(&next.access).await, 200);
    gateway.access("/reports").await;
    let log: String = gateway.log().lines().iter().map(Value::to_string).collect();
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let secrets = [
        PASSWORD.to_owned(),
        "a wrong password".into(),
        tokens.refresh.clone(),
        next.refresh.clone(),
        signature(&next.access),
    ];
    for secret in secrets.iter().map(String::as_str).chain(["ann@example.com"]) {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn the_built_in_limits_apply_to_a_route_without_a_limit() {
    let proxied = format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", limited(""));
    let gateway = Gateway::start(&proxied).await;
    let login = |client: String, email: &'static str, password: &'static str| {
        let request = gateway.post("/auth/login", &json!({ "email": email, "password": password }));
        let request = request.header("X-Forwarded-For", &client);
        async move { request.send().await }
    };
    // By address, for any account.
    for index in 0..5 {
        let email =
            ["a@x.example", "b@x.example", "c@x.example", "d@x.example", "e@x.example"][index];
        login("198.51.100.1".into(), email, "wrong").await.is(401, "login_failed");
    }
    login("198.51.100.1".into(), "f@x.example", "wrong").await.is(429, "rate_limited");
    // By account, from any address and in any spelling.
    for (index, email) in [
        "ann@example.com",
        "ANN@example.com",
        " ann@example.com",
        "Ann@Example.com",
        "ann@EXAMPLE.com",
    ]
    .into_iter()
    .enumerate()
    {
        login(format!("203.0.113.{index}"), email, "wrong").await.is(401, "login_failed");
    }
    login("203.0.113.99".into(), "ann@example.com", "wrong").await.is(429, "rate_limited");
    assert_eq!(
        gateway
            .metric_value("portcullis_rate_limited_total", &["limit=\"identity-login-account\""])
            .await,
        Some(1.0)
    );
    assert_eq!(
        gateway.metric_value("portcullis_rate_limited_total", &["limit=\"identity-login\""]).await,
        Some(1.0)
    );
    // Registrations.
    let register = |index: usize| {
        gateway.post(
            "/auth/register",
            &json!({ "email": format!("u{index}@x.example"), "password": PASSWORD }),
        )
    };
    for index in 0..5 {
        assert_eq!(register(index).send().await.status, 201);
    }
    register(5).send().await.is(429, "rate_limited");
}

/// Guesses of the current password are bounded for the account, and in one session even more: so a
/// stolen one always leaves one to its owner.
#[tokio::test]
async fn a_stolen_session_does_not_keep_its_owner_from_changing_the_password() {
    let config = format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", limited(""));
    let gateway = Gateway::start(&config).await;
    let mut sessions = Vec::new();
    for email in ["ann@example.com", "bob@example.com"] {
        gateway.register(email).await;
        sessions.push([gateway.login(email).await, gateway.login(email).await]);
    }
    let change = async |tokens: &Tokens, password: &str, number: usize| {
        let body = json!({ "current_password": password, "new_password": "cactus ferry lamp 12" });
        let request = gateway.post("/auth/password/change", &body).bearer(&tokens.access);
        let client = format!("203.0.113.{number}");
        request.header("X-Forwarded-For", &client).send().await.status
    };
    let guess = async |sessions: &[Tokens]| {
        let mut wrong = 0;
        for (number, tokens) in sessions.iter().cycle().take(12).enumerate() {
            match change(tokens, "wrong", number).await {
                401 => wrong += 1,
                status => assert_eq!(status, 429),
            }
        }
        wrong
    };
    let [stolen, own] = &sessions[0];
    // One more if the machine is slow: they come back with time.
    assert!((4..=5).contains(&guess(std::slice::from_ref(stolen)).await));
    assert_eq!(change(own, PASSWORD, 99).await, 204);
    let labels = ["limit=\"identity-password-session\""];
    let refused = gateway.metric_value("portcullis_rate_limited_total", &labels).await;
    assert!(refused.is_some_and(|refused| refused >= 7.0), "{refused:?}");
    // Several sessions have no more than the account.
    assert!((5..=6).contains(&guess(&sessions[1]).await));
}

/// Successful logins are not counted as failures of the account.
#[tokio::test]
async fn logins_that_succeed_do_not_lock_an_account() {
    let gateway =
        Gateway::start(&format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", limited("")))
            .await;
    gateway.register("ann@example.com").await;
    for index in 0..8 {
        let body = json!({ "email": "ann@example.com", "password": PASSWORD });
        let response = gateway
            .post("/auth/login", &body)
            .header("X-Forwarded-For", &format!("203.0.113.{index}"))
            .send()
            .await;
        assert_eq!(response.status, 200, "{index}");
    }
}

#[tokio::test]
async fn a_limit_counts_by_client_and_account() {
    let gateway = Gateway::start(&by_client_and_account("requests = 2\nper = '1h'")).await;
    for (email, status) in [
        ("a@x.example", 401),
        ("b@x.example", 401),
        ("A@x.example", 401),
        ("a@x.example", 429),
        ("b@x.example", 401),
    ] {
        assert_eq!(gateway.try_login(email, "wrong").await.status, status, "{email}");
    }
    assert_eq!(
        gateway.metric_value("portcullis_rate_limited_total", &["limit=\"tries\""]).await,
        Some(1.0)
    );
}

/// The built-in issuer with this limit on its route; the peer is a trusted proxy.
fn by_client_and_account(lines: &str) -> String {
    format!(
        "server.trusted_proxies = ['127.0.0.1/32']\n{}limit = 'tries'\n[limit.tries]\nkey = 'client+account'\n{lines}\n",
        limited("")
    )
}

/// Tries to log in with a wrong password, as a client with this address.
async fn guess(gateway: &Gateway, client: &str, email: &str) -> u16 {
    let body = json!({ "email": email, "password": "wrong" });
    gateway.post("/auth/login", &body).header("X-Forwarded-For", client).send().await.status
}

/// Guessing is slow from one address at many accounts, and from many addresses at one account.
#[tokio::test]
async fn a_route_limit_does_not_replace_the_built_in_login_limits() {
    let gateway = Gateway::start(&by_client_and_account("requests = 5\nper = '15m'")).await;
    for index in 0..6 {
        let status = guess(&gateway, "198.51.100.1", &format!("u{index}@x.example")).await;
        assert_eq!(status, if index < 5 { 401 } else { 429 }, "one address, account {index}");
    }
    for index in 0..6 {
        let status = guess(&gateway, &format!("203.0.113.{index}"), "ann@x.example").await;
        assert_eq!(status, if index < 5 { 401 } else { 429 }, "address {index}, one account");
    }
    // A limit by address can allow more requests, but not more guesses.
    let config = format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", open(""));
    let gateway = Gateway::start(&config).await;
    gateway.register("ann@example.com").await;
    for _ in 0..8 {
        gateway.login("ann@example.com").await;
    }
    for index in 0..6 {
        let status = guess(&gateway, "198.51.100.1", &format!("u{index}@x.example")).await;
        assert_eq!(status, if index < 5 { 401 } else { 429 }, "one address, account {index}");
    }
    for index in 0..6 {
        let status = guess(&gateway, &format!("203.0.113.{index}"), "ann@x.example").await;
        assert_eq!(status, if index < 5 { 401 } else { 429 }, "address {index}, one account");
    }
    // A limit that refuses nothing stores no key.
    let gateway = Gateway::start(&format!("{config}observe = true\n")).await;
    for index in 0..6 {
        let status = guess(&gateway, "198.51.100.1", &format!("u{index}@x.example")).await;
        assert_eq!(status, if index < 5 { 401 } else { 429 }, "account {index}");
    }
}

/// Of many logins at once from one address and with one account, all with the right password pass,
/// and only five guesses are tried.
#[tokio::test]
async fn logins_at_once_wait_for_each_other() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let log_in = async |password: &str| {
        let mut logins = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let body = json!({ "email": "ann@example.com", "password": password });
            let request = gateway.post("/auth/login", &body);
            logins.spawn(async { request.send().await.status });
        }
        logins.join_all().await
    };
    assert_eq!(log_in(PASSWORD).await, [200; 8]);
    let begun = Instant::now();
    let guesses = log_in("wrong").await;
    let tried = guesses.iter().filter(|status| **status == 401).count() as u64;
    // Five, and one more for each twelve seconds that hashing took.
    assert!((5..=5 + begun.elapsed().as_secs() / 12).contains(&tried), "{guesses:?}");
    assert!(guesses.iter().all(|status| matches!(status, 401 | 429)), "{guesses:?}");
}

/// Guesses that wait for other requests of their address, and whose client goes away, use up nothing of
/// the account.
#[tokio::test]
async fn guesses_that_were_not_tried_lock_nobody_out() {
    let config = format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", open(""));
    let gateway = Gateway::start(&config).await;
    for email in ["ann@example.com", "eve@example.com"] {
        gateway.register(email).await;
    }
    let log_in = |email: &str, password: &str, from: &str| {
        let body = json!({ "email": email, "password": password });
        let request = gateway.post("/auth/login", &body).header("X-Forwarded-For", from);
        async { request.send().await.status }
    };
    let mut own = tokio::task::JoinSet::new();
    for _ in 0..40 {
        own.spawn(log_in("eve@example.com", PASSWORD, "198.51.100.1"));
    }
    assert_eq!(own.join_next().await.unwrap().unwrap(), 200);
    let mut guesses = tokio::task::JoinSet::new();
    for _ in 0..5 {
        guesses.spawn(log_in("ann@example.com", "wrong", "198.51.100.1"));
    }
    // They have arrived by then.
    for _ in 0..2 {
        own.join_next().await.unwrap().unwrap();
    }
    guesses.shutdown().await;
    assert_eq!(log_in("ann@example.com", PASSWORD, "198.51.100.2").await, 200);
}

/// Several routes with identity endpoints give no more guesses than one, whatever their limits.
#[tokio::test]
async fn routes_with_different_limits_share_the_budget_of_failed_logins() {
    let other = "[[route]]\npath = '/other/*'\nidentity = true\n";
    let config = format!("server.trusted_proxies = ['127.0.0.1/32']\n{}{other}", open(""));
    for paths in [["/auth/login", "/other/login"], ["/other/login", "/auth/login"]] {
        let gateway = Gateway::start(&config).await;
        let guess = async |path: &str, account: usize| {
            let body = json!({ "email": format!("u{account}@x.example"), "password": "wrong" });
            let request = gateway.post(path, &body).header("X-Forwarded-For", "198.51.100.1");
            request.send().await.status
        };
        for account in 0..5 {
            assert_eq!(guess(paths[account % 2], account).await, 401);
        }
        for path in paths {
            assert_eq!(guess(path, 5).await, 429, "{path} of {paths:?}");
        }
    }
}

/// Invented accounts of one address do not use up the limit of others.
#[tokio::test]
async fn attempts_with_unknown_accounts_lock_no_account() {
    let config = by_client_and_account("requests = 5\nper = '15m'\nmax_clients = 1000")
        .replace("registration = 'open'\n", "");
    let gateway = Gateway::start(&config).await;
    let mut connection = gateway.connect().await;
    for index in 0..1100 {
        let email = format!("invented{index}@x.example");
        let request = gateway
            .post("/auth/register", &json!({ "email": email, "password": PASSWORD }))
            .header("X-Forwarded-For", "198.51.100.1");
        request.send_on(&mut connection).await.is(403, "registration_closed");
    }
    for index in 0..1100 {
        let email = format!("invented{index}@x.example");
        let request = gateway
            .post("/auth/password/forgot", &json!({ "email": email }))
            .header("X-Forwarded-For", "198.51.100.1");
        let status = request.send_on(&mut connection).await.status;
        assert_eq!(status, if index < 5 { 202 } else { 429 }, "{email}");
    }
    for index in 0..10 {
        let client = format!("203.0.113.{index}");
        assert_eq!(guess(&gateway, &client, &format!("u{index}@x.example")).await, 401);
    }
}

/// Otherwise, registrations with an address would keep its owner from logging in.
#[tokio::test]
async fn registrations_with_an_address_delay_none_of_its_logins() {
    let config = format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", limited(""));
    let gateway = Gateway::start(&config).await;
    gateway.register("ann@example.com").await;
    let ended = Arc::new(AtomicUsize::new(0));
    let mut registrations = tokio::task::JoinSet::new();
    for index in 0..40 {
        let body = json!({ "email": "ann@example.com", "password": PASSWORD });
        let client = format!("198.51.{index}.1");
        let request = gateway.post("/auth/register", &body).header("X-Forwarded-For", &client);
        let ended = Arc::clone(&ended);
        registrations.spawn(async move {
            request.send().await.is(409, "account_exists");
            ended.fetch_add(1, Ordering::SeqCst);
        });
    }
    while ended.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    let login = gateway.post("/auth/login", &body).header("X-Forwarded-For", "203.0.113.1");
    assert_eq!(login.send().await.status, 200);
    assert!(ended.load(Ordering::SeqCst) < 40, "the login came last");
    registrations.join_all().await;
}

/// Otherwise, guesses at one account from very many addresses would keep everybody from logging in.
#[tokio::test]
async fn an_attempt_refused_for_its_account_does_not_count_for_its_address() {
    let config = format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", limited(""));
    let gateway = Gateway::start(&config).await;
    for index in 0..5 {
        assert_eq!(guess(&gateway, &format!("203.0.113.{index}"), "ann@x.example").await, 401);
    }
    for _ in 0..8 {
        assert_eq!(guess(&gateway, "198.51.100.1", "ann@x.example").await, 429);
    }
    for index in 0..6 {
        let status = guess(&gateway, "198.51.100.1", &format!("u{index}@x.example")).await;
        assert_eq!(status, if index < 5 { 401 } else { 429 }, "account {index}");
    }
}

/// Requests that name no account are refused for that and do not count as attempts.
#[tokio::test]
async fn requests_that_name_no_account_do_not_count() {
    let gateway = Gateway::start(&limited("")).await;
    for _ in 0..6 {
        let request = gateway.post("/auth/login", &json!({ "password": "wrong" }));
        request.send().await.is(400, "request_invalid");
    }
    // An impossible address costs a hash and counts.
    for index in 0..6 {
        let status = gateway.try_login("no address", "wrong").await.status;
        assert_eq!(status, if index < 5 { 401 } else { 429 });
    }
}

/// Requests that cost a hash without a failure of the account count against the address.
#[tokio::test]
async fn password_checks_of_authenticated_callers_are_limited_by_address() {
    let gateway = Gateway::start(&limited("totp = true")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let change = json!({ "current_password": PASSWORD, "new_password": "short" });
    for index in 0..11 {
        let request = gateway.post("/auth/password/change", &change).bearer(&tokens.access);
        let response = request.send().await;
        match index {
            ..10 => response.is(422, "password_rejected"),
            _ => response.is(429, "rate_limited"),
        }
    }
    let remove = json!({ "current_password": PASSWORD });
    let request = gateway.post("/auth/totp/remove", &remove).bearer(&tokens.access);
    request.send().await.is(429, "rate_limited");
}

#[tokio::test]
async fn a_password_change_requires_the_current_password() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let (one, other) =
        (gateway.login("ann@example.com").await, gateway.login("ann@example.com").await);
    let change = |current: &str, new: &str| {
        let request = gateway.post(
            "/auth/password/change",
            &json!({ "current_password": current, "new_password": new }),
        );
        let request = request.bearer(&one.access);
        async move { request.send().await }
    };
    let new = "cactus ferry lamp 12";
    change("wrong", new).await.is(401, "login_failed");
    change(PASSWORD, "short").await.is(422, "password_rejected");
    assert_eq!(gateway.reaches(&one.access).await, 200);
    assert_eq!(change(PASSWORD, new).await.status, 204);
    for tokens in [&one, &other] {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
        gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    }
    gateway.try_login("ann@example.com", PASSWORD).await.is(401, "login_failed");
    // At once, because the new token is issued after the cut-off.
    let tokens = Tokens::of(&gateway.try_login("ann@example.com", new).await);
    assert_eq!(gateway.reaches(&tokens.access).await, 200);
}

#[tokio::test]
async fn endpoints_accept_only_tokens_of_the_built_in_issuer() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    for path in ["/auth/me", "/auth/sessions"] {
        gateway.get(path).send().await.is(401, "credentials_missing");
        gateway.get(path).bearer(&mint::token(&[])).send().await.is(403, "issuer_not_allowed");
        gateway.get(path).bearer(&tokens.refresh).send().await.is(401, "token_malformed");
        assert_eq!(gateway.get(path).bearer(&tokens.access).send().await.status, 200);
    }
    // The application's route also accepts callers of the built-in issuer.
    gateway.get("/reports").bearer(&mint::token(&[])).send().await.is(403, "issuer_not_allowed");
}

#[tokio::test]
async fn keys_and_metadata_are_published() {
    for (algorithm, kty) in [("ES256", "EC"), ("EdDSA", "OKP"), ("RS256", "RSA")] {
        let gateway = Gateway::start(&open(&format!("algorithm = '{algorithm}'"))).await;
        let metadata = gateway.get("/auth/.well-known/openid-configuration").send().await;
        assert_eq!(metadata.header("content-type"), Some("application/json"));
        assert_eq!(metadata.json()["issuer"], "http://app.test/auth");
        assert_eq!(metadata.json()["jwks_uri"], "http://app.test/auth/.well-known/jwks.json");
        let set = gateway.get("/auth/.well-known/jwks.json").send().await;
        assert!(set.header("cache-control").unwrap().contains("max-age="));
        let keys = set.json()["keys"].clone();
        assert_eq!(
            (keys.as_array().unwrap().len(), &keys[0]["kty"], &keys[0]["alg"]),
            (1, &json!(kty), &json!(algorithm))
        );
        assert!(keys[0].get("d").is_none());
        gateway.register("ann@example.com").await;
        let tokens = gateway.login("ann@example.com").await;
        assert_eq!(gateway.reaches(&tokens.access).await, 200, "{algorithm}");
        let header = base64::prelude::BASE64_URL_SAFE_NO_PAD
            .decode(tokens.access.split('.').next().unwrap())
            .unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(
            (&header["typ"], &header["alg"], &header["kid"]),
            (&json!("at+jwt"), &json!(algorithm), &keys[0]["kid"])
        );
    }
}

#[tokio::test]
async fn claims_are_included_as_configured() {
    let gateway =
        Gateway::start(&open("token_claims = []\naudience = ['portcullis', 'reports']")).await;
    gateway.register("ann@example.com").await;
    let claims = gateway.login("ann@example.com").await.claims();
    assert!(claims.get("email").is_none() && claims.get("name").is_none(), "{claims}");
    assert_eq!(claims["aud"], json!(["portcullis", "reports"]));
}

#[tokio::test]
async fn accounts_sessions_and_keys_outlive_the_process() {
    let first = Gateway::start(&open("")).await;
    let account = first.register("ann@example.com").await;
    let tokens = first.login("ann@example.com").await;
    let database = std::fs::read(first.path("portcullis.db")).unwrap();
    first.signal("TERM");
    assert!(first.exited().await.success());
    let text = String::from_utf8_lossy(&database);
    assert!(!text.contains("PRIVATE KEY") && !text.contains(&tokens.refresh));
    let again = Gateway::setup(&open(""));
    for name in ["portcullis.db", "portcullis.key"] {
        std::fs::copy(first.path(name), again.path().join(name)).unwrap();
    }
    let again = again.start().await;
    assert_eq!(again.reaches(&tokens.access).await, 200);
    let next = Tokens::of(&again.refresh(&tokens.refresh).await);
    assert_eq!(next.claims()["sub"], account["id"]);
    assert_eq!(again.login("ann@example.com").await.claims()["sub"], account["id"]);
}

#[tokio::test]
async fn a_reload_can_change_the_policy_but_not_remove_the_issuer() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let before = gateway.login("ann@example.com").await;
    assert_eq!(
        gateway.reload(&open("access_token_ttl = '5m'\ntoken_claims = []")).await["message"],
        "reloaded"
    );
    let login = gateway.try_login("ann@example.com", PASSWORD).await;
    assert_eq!(login.json()["expires_in"], 300);
    assert!(Tokens::of(&login).claims().get("email").is_none());
    // Keys and sessions are unchanged.
    assert_eq!(gateway.reaches(&before.access).await, 200);
    assert_eq!(gateway.refresh(&before.refresh).await.status, 200);
    let without = "[store]\n[[route]]\npath = '/*'\nupstream = 'app'";
    let output = gateway.reload(without).await;
    assert!(output["problems"].to_string().contains("`identity` is read at start"), "{output}");
    assert_eq!(gateway.reaches(&before.access).await, 200);
}

/// Whoever sets `verify_email` wants those out who have not confirmed their address.
#[tokio::test]
async fn verify_email_also_holds_for_what_began_before() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let browser = gateway.login("ann@example.com").await;
    let asking = gateway.post("/auth/tokens", &json!({ "name": "backup" }));
    let made = asking.bearer(&tokens.access).send().await;
    let personal = made.json()["token"].as_str().unwrap().to_owned();
    let verifying = open("verify_email = true\nmail = { folder = 'mail' }");
    assert_eq!(gateway.reload(&verifying).await["message"], "reloaded");
    gateway.refresh(&tokens.refresh).await.is(403, "email_unverified");
    gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    gateway.get("/reports").bearer(&personal).send().await.is(401, "token_revoked");
    let cookie = format!("__Host-portcullis-session={}", browser.refresh);
    let page = gateway.get("/reports").header("Accept", "text/html").header("Cookie", &cookie);
    assert_eq!(page.header("Sec-Fetch-Mode", "navigate").send().await.status, 303);
    sqlite(&gateway.path("portcullis.db"), "UPDATE accounts SET email_verified = 1").await;
    assert_eq!(gateway.reaches(&personal).await, 200);
    gateway.login("ann@example.com").await;
}
