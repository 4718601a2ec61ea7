//! Route choice: by host, then path, then method; the order in the file never matters (CONTRACT §2,
//! rules 3 and 4).

use crate::harness::h2;
use crate::harness::{Gateway, Setup};

/// A gateway with public routes, which return their names: `host path methods`. Tests both orders
/// of the file.
fn public(routes: &[(&str, &str, &str)]) -> [Setup; 2] {
    [false, true].map(|reversed| {
        let mut routes: Vec<String> = routes
            .iter()
            .map(|(host, path, methods)| {
                let host_line = if host.is_empty() { String::new() } else { format!("host = '{host}'\n") };
                let methods_line = if methods.is_empty() { String::new() } else { format!("methods = {methods}\n") };
                format!(
                    "[[route]]\nname = \"{host}{path}{}\"\n{host_line}path = '{path}'\n{methods_line}upstream = 'app'\naccess = 'public'\n",
                    methods.replace('\'', "")
                )
            })
            .collect();
        if reversed {
            routes.reverse();
        }
        Gateway::setup(&routes.concat())
    })
}

/// The route of each request, or the status of its refusal.
async fn taken(gateway: &Gateway, method: &str, host: &str, path: &str) -> String {
    let response = gateway.request(method, path).host(host).send().await;
    let id = match response.status {
        200 => gateway.upstream().last().header("x-request-id").unwrap().to_owned(),
        _ => response.json()["request_id"].as_str().unwrap().to_owned(),
    };
    let line = gateway
        .log()
        .until("an access line", |line| line["request_id"] == id && line["url.path"].is_string())
        .await;
    match response.status {
        200 => line["http.route"].as_str().unwrap().to_owned(),
        status => format!("{status} {}", line["reason"].as_str().unwrap()),
    }
}

#[tokio::test]
async fn the_most_specific_route_wins_in_any_order() {
    let routes = [
        ("", "/*", ""),
        ("", "/reports", ""),
        ("", "/reports/*", ""),
        ("", "/reports/{id}", ""),
        ("", "/reports/latest/*", ""),
        ("", "/{any}/x/y", ""),
        ("", "/reports/{id}/y", ""),
        ("", "/exact/", ""),
        ("a.test", "/reports/*", ""),
        ("*.test", "/w/*", ""),
        ("*.b.test", "/w/*", ""),
    ];
    for setup in public(&routes) {
        let gateway = setup.start().await;
        for (host, path, route) in [
            ("x", "/", "/*"),
            ("x", "/reports", "/reports"),
            ("x", "/reports/", "/reports/*"),
            ("x", "/reports/7", "/reports/{id}"),
            ("x", "/reports/%37", "/reports/{id}"),
            ("x", "/reports/latest", "/reports/{id}"),
            ("x", "/reports/latest/z", "/reports/latest/*"),
            ("x", "/reports/x/y", "/reports/{id}/y"),
            ("x", "/q/x/y", "/{any}/x/y"),
            ("x", "/reportsx", "/*"),
            ("x", "/Reports", "/*"),
            ("x", "/exact/", "/exact/"),
            ("x", "/exact", "/*"),
            ("a.test", "/reports", "a.test/reports/*"),
            ("A.TEST:8080", "/reports/7", "a.test/reports/*"),
            ("a.test", "/w/1", "*.test/w/*"),
            ("c.b.test", "/w", "*.b.test/w/*"),
            ("d.c.b.test", "/w", "*.b.test/w/*"),
            ("b.test", "/w", "*.test/w/*"),
            ("a.test", "/other", "/*"),
            ("test", "/w/1", "/*"),
            ("xtest", "/w/1", "/*"),
        ] {
            assert_eq!(taken(&gateway, "GET", host, path).await, route, "{host}{path}");
        }
    }
}

#[tokio::test]
async fn a_request_without_a_route_is_a_404() {
    for setup in public(&[("a.test", "/a/*", ""), ("*.test", "/b", "")]) {
        let gateway = setup.start().await;
        for (host, path) in [
            ("a.test", "/"),
            ("a.test", "/ab"),
            ("other", "/a"),
            ("a.test", "/b/c"),
            ("test", "/b"),
            ("127.0.0.1", "/a"),
        ] {
            gateway.get(path).host(host).send().await.is(404, "route_not_found");
        }
        assert_eq!(taken(&gateway, "GET", "a.test", "/b").await, "*.test/b");
    }
}

#[tokio::test]
async fn a_method_never_falls_through() {
    let routes = [
        ("", "/a", "['GET']"),
        ("", "/a", "['POST', 'PUT']"),
        ("", "/*", ""),
        ("h.test", "/a", "['POST']"),
        ("", "/p", "['PURGE']"),
    ];
    for setup in public(&routes) {
        let gateway = setup.start().await;
        for (method, host, path, route) in [
            ("GET", "x", "/a", "/a[GET]"),
            ("HEAD", "x", "/a", "/a[GET]"),
            ("PUT", "x", "/a", "/a[POST, PUT]"),
            ("DELETE", "x", "/a", "405 method_not_allowed"),
            ("get", "x", "/a", "405 method_not_allowed"),
            ("GET", "h.test", "/a", "405 method_not_allowed"),
            ("POST", "h.test", "/a", "h.test/a['POST']"),
            ("PURGE", "x", "/p", "/p['PURGE']"),
            ("OPTIONS", "x", "/a", "405 method_not_allowed"),
            ("OPTIONS", "x", "/b", "/*"),
        ] {
            assert_eq!(
                taken(&gateway, method, host, path).await.replace('\'', ""),
                route.replace('\'', ""),
                "{method} {host}{path}"
            );
        }
        let refused = gateway.request("DELETE", "/a").send().await;
        let mut allowed: Vec<&str> =
            refused.header("allow").unwrap().split(',').map(str::trim).collect();
        allowed.sort_unstable();
        assert_eq!(allowed, ["GET", "HEAD", "POST", "PUT"]);
    }
}

#[tokio::test]
async fn a_head_request_gets_no_body() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }, { path = '/in', upstream = 'app' }]").await;
    gateway.upstream().answers("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\n");
    let mut connection = gateway.connect().await;
    let response = gateway.request("HEAD", "/").send_on(&mut connection).await;
    assert_eq!(
        (response.status, response.header("content-length"), response.header("x-a")),
        (200, Some("5"), Some("1"))
    );
    assert_eq!(gateway.upstream().last().method, "HEAD");
    // Also for a refusal: the next response on the connection is complete.
    let response = gateway.request("HEAD", "/in").send_on(&mut connection).await;
    assert_eq!(
        (response.status, response.header("content-type")),
        (401, Some("application/problem+json"))
    );
    assert_eq!(gateway.request("HEAD", "/").send_on(&mut connection).await.status, 200);
    // HTTP/2 allows no body there.
    let mut client = h2::Connection::open(&gateway).await;
    for (path, status, length) in
        [("/", 200, "5"), ("/in", 401, response.header("content-length").unwrap())]
    {
        let request = http::Request::head(format!("http://app.test{path}"))
            .body(bytes::Bytes::new().into())
            .unwrap();
        let answer = client.send(request).await;
        assert_eq!(
            (answer.status, answer.headers["content-length"].to_str().unwrap(), answer.body.len()),
            (status, length, 0)
        );
    }
}

#[tokio::test]
async fn an_application_that_folds_case_is_matched_folded() {
    let gateway = Gateway::start(
        "[upstream.iis]\nurl = 'http://$UPSTREAM'\npath_case = 'insensitive'\n\
         [[route]]\nname = 'all'\npath = '/*'\nupstream = 'iis'\naccess = 'public'\n\
         [[route]]\nname = 'admin'\npath = '/Admin/*'\nupstream = 'iis'\nroles = ['admin']\n\
         [[route]]\nname = 'static'\npath = '/static/*'\nupstream = 'app'\naccess = 'public'\n\
         [[route]]\nname = 'umlaut'\npath = '/Überblick'\nupstream = 'iis'\nroles = ['admin']",
    )
    .await;
    for (path, route) in [
        ("/admin", "401 credentials_missing"),
        ("/ADMIN/x", "401 credentials_missing"),
        ("/%61dMin/x", "401 credentials_missing"),
        ("/%C3%BCberblick", "401 credentials_missing"),
        ("/%C3%9CBERBLICK", "401 credentials_missing"),
        ("/static/a", "static"),
        ("/STATIC/a", "all"),
        ("/other", "all"),
    ] {
        assert_eq!(taken(&gateway, "GET", "x", path).await, route, "{path}");
    }
    assert_eq!(gateway.get("/OtherPath").send().await.status, 200);
    assert_eq!(gateway.upstream().last().target, "/OtherPath");
}

#[tokio::test]
async fn the_forwarded_host_can_be_set() {
    let gateway = Gateway::start(
        "[upstream.app]\nurl = 'http://$UPSTREAM'\nhost = 'legacy.internal'\n[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'",
    )
    .await;
    assert_eq!(gateway.get("/").send().await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(
        (received.header("host"), received.header("x-forwarded-host")),
        (Some("legacy.internal"), Some("app.test"))
    );
}

#[tokio::test]
async fn the_built_in_application_echoes_the_request() {
    let gateway = Gateway::start(
        "upstream.app = { builtin = 'echo' }\nroute = [{ path = '/*', upstream = 'app' }]",
    )
    .await;
    let response = gateway
        .request("POST", "/a?b=c")
        .bearer(&crate::harness::mint::token(&["x"]))
        .body("hello")
        .send()
        .await;
    let echoed = response.json();
    assert_eq!(
        (&echoed["method"], &echoed["target"], &echoed["body"]),
        (&"POST".into(), &"/a?b=c".into(), &"hello".into())
    );
    assert_eq!(echoed["headers"]["x-auth-user"], "u-17");
    assert_eq!(echoed["headers"].get("authorization"), None);
}
