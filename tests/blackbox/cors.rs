//! Pages of other origins (CONTRACT §16 `cors`).

use crate::harness::client::Response;
use crate::harness::{Gateway, mint};

const CONFIG: &str = "[[route]]\npath = '/api/*'\nmethods = ['GET', 'PUT']\nupstream = 'app'\ncors = { origins = ['https://app.example.com', 'http://localhost:5173'], headers = ['Authorization', 'X-Own'], credentials = true, max_age = '1m' }\n[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\n";

async fn preflight(gateway: &Gateway, path: &str, origin: &str, method: &str) -> Response {
    gateway
        .request("OPTIONS", path)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", method)
        .header("Access-Control-Request-Headers", "authorization")
        .send()
        .await
}

#[tokio::test]
async fn preflights_are_answered_for_the_listed_origins_alone() {
    let gateway = Gateway::start(CONFIG).await;
    for (origin, method) in [("https://app.example.com", "PUT"), ("http://localhost:5173", "GET")] {
        let answer = preflight(&gateway, "/api/x", origin, method).await;
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{answer:?}");
        for (name, value) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", method),
            ("access-control-allow-headers", "authorization, x-own"),
            ("access-control-max-age", "60"),
            ("vary", "origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
    }
    for origin in [
        "https://evil.test",
        "null",
        "https://app.example.com.evil.test",
        "https://APP.example.com",
        "https://app.example.com:8443",
        "http://app.example.com",
        "http://localhost",
    ] {
        let refused = preflight(&gateway, "/api/x", origin, "PUT").await;
        refused.is(403, "origin_foreign");
        assert_eq!(refused.header("access-control-allow-origin"), None, "{origin}");
    }
    assert_eq!(gateway.upstream().count(), 0);
    // A method that the route does not have is not its own, and another route keeps its OPTIONS.
    let other = preflight(&gateway, "/other", "https://evil.test", "PUT").await;
    assert_eq!(other.status, 200);
    assert_eq!(gateway.upstream().last().method, "OPTIONS");
    let delete = preflight(&gateway, "/api/x", "https://app.example.com", "DELETE").await;
    delete.is(405, "method_not_allowed");
    let plain = gateway.request("OPTIONS", "/api/x").send().await;
    plain.is(405, "method_not_allowed");
    let line = gateway.access("/api/x").await;
    assert_eq!(
        (line["http.route"].as_str(), line["reason"].as_str()),
        (Some("/api/*"), Some("public"))
    );
}

#[tokio::test]
async fn every_response_of_the_route_says_who_may_read_it() {
    let gateway = Gateway::start(CONFIG).await;
    gateway.upstream().answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: X-Total\r\nVary: accept\r\n\r\nok");
    let token = mint::token(&[]);
    let get = async |origin: Option<&str>, token: &str| {
        let mut request = gateway.get("/api/x").bearer(token);
        if let Some(origin) = origin {
            request = request.header("Origin", origin);
        }
        request.send().await
    };
    let ours = Some("https://app.example.com");
    for (origin, token, status, permitted) in [
        (ours, &*token, 200, ours),
        (ours, "a.b.c", 401, ours),
        (Some("https://evil.test"), &token, 200, None),
        (None, &token, 200, None),
    ] {
        let response = get(origin, token).await;
        assert_eq!(response.status, status);
        assert_eq!(response.header("access-control-allow-origin"), permitted, "{origin:?}");
        let credentials = response.header("access-control-allow-credentials");
        assert_eq!(credentials, permitted.map(|_| "true"));
        assert!(response.headers("vary").contains(&"origin"), "{response:?}");
        if status == 200 {
            assert_eq!(response.header("access-control-expose-headers"), Some("X-Total"));
        }
    }
    // Elsewhere the application speaks for itself.
    let elsewhere = gateway.get("/other").header("Origin", "https://app.example.com").send().await;
    assert_eq!(elsewhere.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn an_origin_that_no_browser_sends_is_an_error_of_the_file() {
    let gateway = Gateway::start(CONFIG).await;
    for origin in [
        "*",
        "null",
        "app.example.com",
        "https://app.example.com/",
        "https://App.example.com",
        "https://app.example.com:443",
        "ftp://app.example.com",
        "https://*.example.com",
    ] {
        let config = CONFIG.replace("https://app.example.com", origin);
        assert_eq!(gateway.reload(&config).await["level"], "error", "{origin}");
    }
    let none = CONFIG.replace("'https://app.example.com', 'http://localhost:5173'", "");
    assert_eq!(gateway.reload(&none).await["level"], "error");
}
