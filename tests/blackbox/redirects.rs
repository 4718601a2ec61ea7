//! Routes that redirect.

use serde_json::{Value, json};

use crate::harness::{Gateway, mint};

const MOVED: &str = "[[route]]\nname = 'caldav'\npath = '/.well-known/caldav'\nredirect = { to = '/remote.php/dav', status = 301 }\naccess = 'public'\n\
    [[route]]\nname = 'old'\nhost = 'old.test'\npath = '/*'\nredirect = { to = 'https://new.example.com{path}' }\naccess = 'public'\ninsecure_path = ['merge_slashes']\n\
    [[route]]\nname = 'staff'\npath = '/staff/*'\nredirect = { to = 'https://staff.example.com/x{path}', status = 302 }\nroles = ['staff']\nstrip_prefix = true\ntoken_from = ['header', 'query']\n\
    [[route]]\nname = 'www'\npath = '/www/*'\nmethods = ['GET']\nredirect = { to = 'https://www.{host}:8443{path}', status = 307 }\naccess = 'public'\n\
    [[test]]\nrequest = 'PROPFIND /.well-known/caldav'\nexpect = { status = 301, reason = 'public', route = 'caldav' }\n";

#[tokio::test]
async fn a_redirect_answers_every_method_with_its_address() {
    let gateway = Gateway::start(MOVED).await;
    for method in ["GET", "HEAD", "PROPFIND", "POST", "DELETE"] {
        let response = gateway.request(method, "/.well-known/caldav?a=1").send().await;
        assert_eq!(
            (response.status, response.header("location"), response.body.len()),
            (301, Some("/remote.php/dav?a=1"), 0),
            "{method}"
        );
        assert_eq!(response.header("cache-control"), None);
    }
    let line = gateway.access("/.well-known/caldav").await;
    assert_eq!(
        (&line["reason"], &line["outcome"], &line["http.route"]),
        (&json!("public"), &json!("allowed"), &json!("caldav"))
    );
    for (path, location) in [
        ("/", "https://new.example.com/"),
        ("/a%20b/c%2Ed?x=%2F&y", "https://new.example.com/a%20b/c%2Ed?x=%2F&y"),
        ("//evil.example/x", "https://new.example.com/evil.example/x"),
    ] {
        let response = gateway.get(path).host("old.test").send().await;
        assert_eq!((response.status, response.header("location")), (308, Some(location)));
    }
    gateway.get("/a/../b").host("old.test").send().await.is(400, "target_ambiguous");
    let response = gateway.get("/www/a").host("App.test:80").send().await;
    assert_eq!(
        (response.status, response.header("location")),
        (307, Some("https://www.app.test:8443/www/a"))
    );
    gateway.request("POST", "/www/a").send().await.is(405, "method_not_allowed");
    let mut connection = gateway.connect().await;
    connection.write("GET /www HTTP/1.0\r\n\r\n").await;
    assert!(connection.closed().await.starts_with(b"HTTP/1.0 400 "), "no host to redirect to");
    // A body that is not read does not become the next request.
    let mut connection = gateway.connect().await;
    let body = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
    let request = gateway.request("POST", "/.well-known/caldav").body(body);
    assert_eq!(request.send_on(&mut connection).await.status, 301);
    let next = gateway.get("/www/a").send_on(&mut connection).await;
    assert_eq!(next.status, 307);
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_protected_redirect_is_decided_like_any_route() {
    let gateway = Gateway::start(MOVED).await;
    gateway.get("/staff/a").send().await.is(401, "credentials_missing");
    gateway.get("/staff/a").bearer(&mint::token(&["user"])).send().await.is(403, "role_missing");
    let token = mint::token(&["staff"]);
    let response = gateway.get(&format!("/staff/a/b?x=1&access_token={token}")).send().await;
    assert_eq!(
        (response.status, response.header("location")),
        (302, Some("https://staff.example.com/x/a/b?x=1"))
    );
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let line = gateway.access("/staff/a/b").await;
    assert_eq!((&line["reason"], &line["subject"]), (&json!("authorized"), &json!("u-17")));
    let (code, told, _) =
        gateway.command(&["explain", "GET", "/staff/a", "--token", &token, "--json"]).await;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (code, &told["verdict"], &told["status"], &told["target"]),
        (0, &json!("allow"), &json!(302), &json!("/staff/a"))
    );
    let last = told["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["step"], &last["detail"]),
        (&json!("redirect"), &json!("302 to https://staff.example.com/x/a"))
    );
}

#[tokio::test]
async fn a_redirect_that_makes_no_sense_is_an_error_of_the_file() {
    let gateway = Gateway::start(MOVED).await;
    let told = async |lines: &str| {
        gateway.write(&format!("[[route]]\npath = '/a/*'\naccess = 'public'\n{lines}"));
        let (code, _, told) = gateway.command(&["check"]).await;
        (code, told)
    };
    for (lines, why) in [
        ("redirect = { to = '{path}' }", "neither a URL nor a path"),
        ("redirect = { to = '//evil.example' }", "leads to another host"),
        ("redirect = { to = 'https://x.example/{path}' }", "begins with a slash of its own"),
        ("redirect = { to = 'https://x.example/{query}' }", "not a valid address"),
        ("redirect = { to = 'https://x.example{host}/' }", "a request could choose how"),
        (
            "redirect = { to = 'https://x.example', status = 303 }",
            "303 is not the status of a redirect",
        ),
        ("redirect = { status = 301 }", "the redirect has no `to`"),
        ("redirect = { to = '/a/b' }", "redirected forever"),
        ("redirect = { to = '/a{path}' }", "redirected forever"),
        ("redirect = { to = '/b' }\nupstream = 'app'", "contradict each other"),
        (
            "redirect = { to = '/b' }\nset_headers = { X-A = 'x' }",
            "`set_headers` has no effect on a route that redirects",
        ),
        (
            "redirect = { to = '/b' }\nforward_authorization = true",
            "`forward_authorization` has no effect on a route that redirects",
        ),
    ] {
        let (code, told) = told(lines).await;
        assert_eq!(code, 78, "{lines}: {told}");
        assert!(told.contains(why), "{lines}: {told}");
    }
    let (code, warned) = told("redirect = { to = 'https://{host}{path}' }").await;
    assert!(code == 0 && warned.contains("unless another server answers there"), "{warned}");
    let (code, silent) = told("redirect = { to = '/b' }").await;
    assert!(code == 0 && !silent.contains("redirected forever"), "{silent}");
}
