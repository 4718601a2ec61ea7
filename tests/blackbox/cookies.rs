//! Browsers: cookies, the redirect to the login and back, and requests from other sites (CONTRACT
//! §2 rule 10).

use serde_json::json;

use crate::harness::Gateway;
use crate::harness::accounts::{PASSWORD, open};
use crate::harness::jar::{ACCESS, Jar, SESSION, logged_in, navigates};

#[tokio::test]
async fn a_cookie_login_reaches_the_application_without_its_cookies() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let request = jar
        .send(gateway.get("/reports"))
        .header("Cookie", &format!("{SESSION}={}; a=b", jar.session));
    assert_eq!(request.send().await.status, 200);
    let seen = gateway.upstream().last();
    assert_eq!(seen.header("cookie"), Some("theme=dark; a=b"));
    assert_eq!(seen.header("x-auth-email"), Some("ann@example.com"));
    // The issuer's own endpoints accept them too.
    let me = jar.send(gateway.get("/auth/me")).send().await;
    assert_eq!((me.status, &me.json()["email"]), (200, &json!("ann@example.com")));
    let head = jar.send(gateway.request("HEAD", "/auth/me")).send().await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    // An application cannot set them.
    gateway.upstream().answers(&format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: {ACCESS}=x; Path=/\r\nSet-Cookie: {SESSION}=x; Path=/\r\nSet-Cookie: own=1\r\n\r\n"
    ));
    let response = jar.send(gateway.get("/reports")).send().await;
    assert_eq!(response.headers("set-cookie"), ["own=1"]);
}

/// Who may change something: method, `Origin`, `Sec-Fetch-Site`.
#[tokio::test]
async fn requests_by_cookie_must_come_from_our_own_pages() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    for (method, fields, may) in [
        ("GET", vec![("Origin", "http://evil.test")], true),
        ("POST", vec![("Origin", "http://app.test")], true),
        ("POST", vec![("Origin", "http://APP.test:80")], true),
        ("POST", vec![("Sec-Fetch-Site", "same-origin")], true),
        ("POST", vec![], false),
        ("POST", vec![("Origin", "https://app.test")], false),
        ("POST", vec![("Origin", "http://evil.test")], false),
        ("POST", vec![("Origin", "http://app.test.evil.test")], false),
        ("POST", vec![("Origin", "null"), ("Sec-Fetch-Site", "same-origin")], false),
        ("POST", vec![("Origin", "http://app.test"), ("Origin", "http://app.test")], false),
        ("POST", vec![("Sec-Fetch-Site", "same-site")], false),
        ("POST", vec![("Sec-Fetch-Site", "cross-site")], false),
        ("DELETE", vec![("Sec-Fetch-Site", "none")], false),
    ] {
        let mut request = jar.send(gateway.request(method, "/reports"));
        for (name, value) in &fields {
            request = request.header(name, value);
        }
        let response = request.send().await;
        if may {
            assert_eq!(response.status, 200, "{method} {fields:?}");
        } else {
            response.is(403, "origin_foreign");
        }
    }
}

#[tokio::test]
async fn endpoints_that_change_state_refuse_another_origin() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let body =
        json!({ "email": "ann@example.com", "password": PASSWORD, "cookie": true }).to_string();
    for (method, path) in [
        ("POST", "/auth/register"),
        ("POST", "/auth/login"),
        ("POST", "/auth/refresh"),
        ("POST", "/auth/logout"),
        ("POST", "/auth/logout-all"),
        ("POST", "/auth/password/change"),
        ("DELETE", "/auth/sessions/x"),
    ] {
        for (name, value) in [
            ("Origin", "http://evil.test"),
            ("Origin", "null"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "same-site"),
        ] {
            let request = gateway
                .request(method, path)
                .header("Content-Type", "application/json")
                .header(name, value);
            let response = jar.send(request).body(&body).send().await;
            response.is(403, "origin_foreign");
            assert!(response.headers("set-cookie").is_empty());
        }
        if path == "/auth/refresh" || path == "/auth/logout" || path == "/auth/logout-all" {
            // Identified by a cookie only, and the origin of the request is unknown.
            jar.send(gateway.request(method, path)).body("").send().await.is(403, "origin_foreign");
        }
    }
    // The session has not ended.
    assert_eq!(jar.send(gateway.get("/reports")).send().await.status, 200);
}

/// Its credentials cost nothing: neither a signature nor a wait for unknown keys.
#[tokio::test]
async fn a_request_from_another_origin_is_refused_before_its_credentials_are_read() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let looked_up = async || {
        let mut sum = 0;
        for result in ["hits", "misses"] {
            let lines = gateway.metric(&format!("portcullis_token_cache_{result}_total")).await;
            sum += lines[0].rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        }
        sum
    };
    let before = looked_up().await;
    let sent = jar.send(gateway.request("POST", "/auth/logout"));
    sent.header("Origin", "https://evil.example").send().await.is(403, "origin_foreign");
    assert_eq!(looked_up().await, before);
    let sent = jar.send(gateway.request("POST", "/auth/logout"));
    assert_eq!(sent.header("Origin", "http://app.test").send().await.status, 204);
    assert_eq!(looked_up().await, before + 1);
}

/// Requests every endpoint from another origin with a logged-in browser: it is refused before it
/// has any effect.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one walk over every operation")]
async fn a_request_from_another_origin_does_not_change_the_store() {
    let gateway = Gateway::start(&open("totp = true\nmail = { folder = 'mail' }")).await;
    let jar = logged_in(&gateway).await;
    let (_, document, _) = gateway.command(&["openapi"]).await;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let mut database =
        super::revocation::open(gateway.path("portcullis.db").to_str().unwrap()).await;
    // It grows with each write of another connection.
    let mut version = async || {
        sqlx::query_scalar::<_, i64>("PRAGMA data_version").fetch_one(&mut database).await.unwrap()
    };
    let body = json!({
        "email": "bob@example.com", "password": PASSWORD, "current_password": PASSWORD, "new_password": "grape comet tenant 82",
        "name": "Bob", "token": "x", "code": "000000", "cookie": true,
    });
    let form = "email=ann%40example.com&password=plum+orbit+tenant+71&current_password=plum+orbit+tenant+71&new_password=grape+comet+82";
    let before = version().await;
    let mut changing = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = format!(
            "/auth{}",
            path.replace("{sid}", "x").replace("{id}", "x").replace("{name}", "x")
        );
        for (method, _) in methods
            .as_object()
            .unwrap()
            .iter()
            .filter(|(method, _)| ["get", "post", "delete"].contains(&method.as_str()))
        {
            let ask = |origin: (&str, &str)| {
                jar.send(gateway.request(&method.to_uppercase(), &path).header(origin.0, origin.1))
            };
            for origin in [
                ("Origin", "http://evil.test"),
                ("Origin", "null"),
                ("Sec-Fetch-Site", "cross-site"),
                ("Sec-Fetch-Site", "same-site"),
            ] {
                if method == "get" {
                    // By a script.
                    let response = ask(origin).header("Sec-Fetch-Mode", "cors").send().await;
                    assert_ne!(response.status, 403, "{path} {origin:?}: {response:?}");
                } else {
                    let request = || ask(origin);
                    request()
                        .header("Content-Type", "application/json")
                        .body(body.to_string())
                        .send()
                        .await
                        .is(403, "origin_foreign");
                    request().body("").send().await.is(403, "origin_foreign");
                    let page = request()
                        .header("Accept", "text/html")
                        .header("Content-Type", "application/x-www-form-urlencoded")
                        .body(form);
                    assert_eq!(page.send().await.status, 403, "{path}");
                    changing += 1;
                }
                assert_eq!(version().await, before, "{method} {path} {origin:?}");
            }
            // Identified by a cookie, from an unknown origin: actions that need a caller are
            // refused too.
            if [
                "/auth/refresh",
                "/auth/logout",
                "/auth/logout-all",
                "/auth/password/change",
                "/auth/sessions/x",
                "/auth/totp",
            ]
            .contains(&path.as_str())
                && method != "get"
            {
                ask(("Sec-Fetch-Site", "none"))
                    .header("Content-Type", "application/json")
                    .body(body.to_string())
                    .send()
                    .await
                    .is(403, "origin_foreign");
                assert_eq!(version().await, before, "{method} {path}");
            }
        }
    }
    assert!(changing >= 4 * 14, "{changing}");
    assert_eq!(
        gateway
            .metric("portcullis_refresh_total")
            .await
            .iter()
            .filter(|line| !line.ends_with(" 0"))
            .count(),
        0
    );
    // The browser is still logged in.
    let response = jar
        .send(gateway.request("POST", "/auth/refresh").header("Origin", "http://app.test"))
        .body("")
        .send()
        .await;
    assert_eq!(response.status, 200, "{response:?}");
    assert!(version().await > before);
}

/// The issuer's URL is what browsers see, even behind a TLS terminator that sends no forwarding
/// header.
#[tokio::test]
async fn the_own_origin_is_that_of_the_issuer_if_the_host_is_the_same() {
    let gateway =
        Gateway::start(&open("").replace("http://app.test/auth", "https://app.test/auth")).await;
    let jar = logged_in_from(&gateway, "https://app.test").await;
    for (host, origin, may) in [
        ("app.test", "https://app.test", true),
        ("app.test:443", "https://app.test", true),
        ("app.test", "http://app.test", false),
        ("other.test", "http://other.test", true),
        ("other.test", "https://app.test", false),
    ] {
        let request = gateway.request("POST", "/reports").host(host).header("Origin", origin);
        let response = jar.send(request).send().await;
        assert_eq!(response.status, if may { 200 } else { 403 }, "{host} {origin}");
    }
}

async fn logged_in_from(gateway: &Gateway, origin: &str) -> Jar {
    gateway.register("ann@example.com").await;
    let body = json!({ "email": "ann@example.com", "password": PASSWORD, "cookie": true });
    Jar::of(&gateway.post("/auth/login", &body).header("Origin", origin).send().await)
}

#[tokio::test]
async fn a_navigation_is_redirected_to_the_login_and_a_script_gets_a_401() {
    let gateway = Gateway::start(&open("")).await;
    let response = navigates(gateway.get("/reports/q3?year=2026&x=%2F")).send().await;
    assert_eq!(response.status, 303);
    assert_eq!(
        response.header("location"),
        Some("/auth/login?return_to=%2Freports%2Fq3%3Fyear%3D2026%26x%3D%252F")
    );
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let line = gateway.access("/reports/q3").await;
    assert_eq!(
        (&line["http.response.status_code"], &line["reason"]),
        (&json!(303), &json!("credentials_missing"))
    );
    let broken = navigates(gateway.get("/reports/q4?code=hunter2"))
        .header("Cookie", &format!("{ACCESS}=broken"))
        .send()
        .await;
    assert!(broken.header("location").unwrap().contains("hunter2"));
    let output = gateway
        .log()
        .until("the cause is logged", |line| {
            line["cause"].as_str().is_some_and(|cause| cause.contains("is redirected to"))
        })
        .await;
    assert!(
        output["cause"].as_str().unwrap().ends_with("; the browser is redirected to /auth/login"),
        "{output}"
    );
    gateway.access("/reports/q4").await;
    assert!(
        gateway.log().lines().iter().all(|line| !line.to_string().contains("hunter2")),
        "no query is logged"
    );
    // Without TLS, browsers send less information.
    assert_eq!(gateway.get("/x").header("Accept", "text/html").send().await.status, 303);
    gateway.get("/x").send().await.is(401, "credentials_missing");
    gateway
        .get("/x")
        .header("Accept", "text/html")
        .header("Sec-Fetch-Mode", "cors")
        .send()
        .await
        .is(401, "credentials_missing");
    // A redirect would lose the submitted form, so the person gets an HTML page.
    let response = navigates(gateway.request("POST", "/x")).send().await;
    assert_eq!(
        (response.status, response.header("content-type")),
        (401, Some("text/html; charset=utf-8"))
    );
    // Who sends a token is not led to the login.
    assert_eq!(navigates(gateway.get("/x")).bearer("a.b.c").send().await.status, 401);
    let response =
        navigates(gateway.get("/x")).header("Cookie", &format!("{ACCESS}=broken")).send().await;
    assert_eq!(
        (response.status, response.header("location")),
        (303, Some("/auth/login?return_to=%2Fx"))
    );
    // Endpoints that need a caller also redirect there.
    let response = navigates(gateway.get("/auth/sessions")).send().await;
    assert_eq!(
        (response.status, response.header("location")),
        (303, Some("/auth/login?return_to=%2Fauth%2Fsessions"))
    );
    // On a route that reads no cookies, a login would not help.
    let gateway =
        Gateway::start(&open("").replace("token_from = ['header', 'cookie']\n", "")).await;
    navigates(gateway.get("/x")).send().await.is(401, "credentials_missing");
    // If the field belongs to the application, it is not a failed login here.
    let gateway = Gateway::start(&open("").replace("['header', 'cookie']", "['cookie']")).await;
    let response = navigates(gateway.get("/x")).bearer("a.b.c").send().await;
    assert_eq!(
        (response.status, response.header("location")),
        (303, Some("/auth/login?return_to=%2Fx"))
    );
}
