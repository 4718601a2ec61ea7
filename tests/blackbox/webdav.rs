//! WebDAV: `Destination` and the tags of `If` are targets too (RFC 4918).

use serde_json::json;

use crate::harness::{Gateway, mint};

/// Users may write below /dav, but only admins below /dav/admin, and nobody below /dav/read.
const DAV: &str = "[[route]]\nname = 'dav'\npath = '/dav/*'\nupstream = 'app'\nroles = ['user']\ntoken_from = ['header', 'cookie']\n\
    [[route]]\nname = 'admin'\npath = '/dav/admin/*'\nupstream = 'app'\nroles = ['admin']\ntoken_from = ['header', 'cookie']\n\
    [[route]]\nname = 'read'\npath = '/dav/read/*'\nmethods = ['GET', 'PROPFIND']\nupstream = 'app'\n\
    [[route]]\nname = 'cookie'\npath = '/dav/cookie/*'\nupstream = 'app'\ntoken_from = ['cookie']\n\
    [[route]]\nname = 'other'\npath = '/other/*'\nupstream = 'other'\n\
    [[route]]\nname = 'open'\npath = '/open/*'\nupstream = 'app'\naccess = 'public'\n\
    [upstream.other]\nbuiltin = 'echo'\n";

#[tokio::test]
async fn a_destination_is_decided_for_the_same_caller() {
    let gateway = Gateway::start(DAV).await;
    let user = mint::token(&["user"]);
    for (method, destination, status, reason) in [
        ("COPY", "/dav/admin/plan.txt", 403, "role_missing"),
        ("MOVE", "http://app.test/dav/admin/plan.txt", 403, "role_missing"),
        ("MOVE", "/dav/%61dmin/plan.txt", 403, "role_missing"),
        ("REBIND", "/dav/admin", 403, "role_missing"),
        ("GET", "/dav/admin", 403, "role_missing"),
        ("COPY", "/dav/read/a", 403, "destination_refused"),
        ("COPY", "/nowhere", 403, "destination_refused"),
        ("COPY", "/other/a", 403, "destination_refused"),
        ("COPY", "/dav/cookie/a", 401, "credentials_missing"),
        ("COPY", "/dav/x/../admin/a", 400, "target_ambiguous"),
        ("COPY", "/dav/%2e%2e/a", 400, "target_ambiguous"),
        ("COPY", "/dav//admin/a", 400, "target_ambiguous"),
        ("COPY", "//app.test/dav/a", 400, "target_ambiguous"),
        ("COPY", "http://other.test/dav/a", 400, "target_ambiguous"),
        ("COPY", "http://app.test:81/dav/a", 400, "target_ambiguous"),
        ("COPY", "http://u:p@app.test/dav/a", 400, "target_ambiguous"),
        ("COPY", "ftp://app.test/dav/a", 400, "target_ambiguous"),
        ("COPY", "/dav/%zz", 400, "target_ambiguous"),
        ("COPY", "/dav/a#b", 400, "target_ambiguous"),
        ("COPY", "dav/a", 400, "target_ambiguous"),
        ("COPY", "", 400, "target_ambiguous"),
    ] {
        let request = gateway.request(method, "/dav/a").bearer(&user);
        let response = request.header("Destination", destination).send().await;
        assert_eq!(
            (response.status, response.reason().as_str()),
            (status, reason),
            "{method} {destination}"
        );
    }
    let twice = gateway.request("COPY", "/dav/a").bearer(&user).header("Destination", "/dav/b");
    twice.header("Destination", "/dav/c").send().await.is(400, "target_ambiguous");
    assert_eq!(gateway.upstream().count(), 0, "nothing of this was sent");
    let line = gateway
        .log()
        .until("the refusal is logged", |line| {
            line["reason"] == "role_missing" && line["cause"].is_string()
        })
        .await;
    assert!(line["cause"].as_str().unwrap().starts_with("`destination`: "), "{line}");

    for (method, token, destination) in [
        ("COPY", &user, "/dav/b"),
        ("MOVE", &user, "http://app.test/dav/b%20c"),
        ("MOVE", &user, "https://app.test:443/open/b"),
        ("COPY", &mint::token(&["user", "admin"]), "/dav/admin/plan.txt"),
    ] {
        let request = gateway.request(method, "/dav/a").bearer(token).header("Overwrite", "F");
        let response = request.header("Depth", "0").header("Destination", destination).send().await;
        assert_eq!(response.status, 200, "{destination}: {response:?}");
        let received = gateway.upstream().last();
        let path = destination.split_once(".test").map_or(destination, |(_, path)| path);
        let path = path.trim_start_matches(":443");
        let wanted = format!("http://app.test{path}");
        assert_eq!(received.header("destination"), Some(wanted.as_str()));
        assert_eq!(
            (received.header("overwrite"), received.header("depth")),
            (Some("F"), Some("0"))
        );
    }
    // Whoever needs no credentials at the first target is nobody at the second.
    let stranger = gateway.request("COPY", "/open/a").bearer(&user);
    stranger.header("Destination", "/dav/a").send().await.is(401, "credentials_missing");
    // A field for one hop, or in a trailer, is not passed on undecided.
    let request =
        gateway.request("COPY", "/dav/a").bearer(&user).header("Connection", "destination");
    request.header("Destination", "/dav/admin/a").send().await.is(403, "role_missing");
}

/// What is wrong with its own credentials, and not that they are missing for a second target.
#[tokio::test]
async fn a_request_is_refused_before_its_second_targets() {
    let gateway = Gateway::start(DAV).await;
    let user = mint::token(&["user"]);
    let cookie = format!("__Host-portcullis={user}");
    let expired =
        format!("__Host-portcullis={}", mint::claims(json!({ "exp": mint::now() - 900 })));
    for (credentials, origin, field, status, reason) in [
        (&cookie, Some("http://evil.test"), "Destination", 403, "origin_foreign"),
        (&cookie, None, "Destination", 403, "origin_foreign"),
        (&cookie, None, "If", 403, "origin_foreign"),
        (&expired, Some("http://app.test"), "Destination", 401, "token_expired"),
    ] {
        let request = gateway.request("COPY", "/dav/a").host("app.test");
        let request = request.header("Cookie", credentials);
        let value = if field == "If" { "</dav/b> (<urn:x>)" } else { "/dav/b" };
        let request = request.header(field, value);
        let request =
            origin.into_iter().fold(request, |request, origin| request.header("Origin", origin));
        request.send().await.is(status, reason);
    }
}

#[tokio::test]
async fn the_tags_of_conditions_are_targets() {
    let gateway = Gateway::start(DAV).await;
    let user = mint::token(&["user"]);
    for (condition, status, reason) in [
        ("</dav/admin/a> (<urn:x>)", 403, "role_missing"),
        ("</dav/a> (<urn:x>) <http://app.test/dav/admin/> ([\"e\"])", 403, "role_missing"),
        ("</other/a> (<urn:x>)", 403, "destination_refused"),
        ("<http://other.test/dav/a> (<urn:x>)", 400, "target_ambiguous"),
        ("</dav/../a> (<urn:x>)", 400, "target_ambiguous"),
        ("</dav/a>", 400, "target_ambiguous"),
        ("(<urn:x>) </dav/admin/a> (<urn:x>)", 400, "target_ambiguous"),
    ] {
        let request = gateway.request("PUT", "/dav/a").bearer(&user).body("x");
        let response = request.header("If", condition).send().await;
        assert_eq!((response.status, response.reason().as_str()), (status, reason), "{condition}");
    }
    let many = "</dav/a> (<urn:x>) ".repeat(33);
    let request = gateway.request("PUT", "/dav/a").bearer(&user).header("If", many.trim_end());
    request.send().await.is(400, "target_ambiguous");
    for (condition, sent) in [
        ("(<opaquelocktoken:1> [\"</dav/admin>\"])", "(<opaquelocktoken:1> [\"</dav/admin>\"])"),
        (
            "<https://app.test/dav/read/b%20c> (Not <urn:x>)</dav/a>([W/\"(\"])",
            "<http://app.test/dav/read/b%20c> (Not <urn:x>)<http://app.test/dav/a>([W/\"(\"])",
        ),
    ] {
        let request = gateway.request("MOVE", "/dav/a").bearer(&user).header("If", condition);
        let request = request.header("Lock-Token", "<urn:x>").header("Timeout", "Second-10");
        let response = request.header("Destination", "/dav/b").send().await;
        assert_eq!(response.status, 200, "{condition}: {response:?}");
        let received = gateway.upstream().last();
        assert_eq!(received.header("if"), Some(sent));
        assert_eq!(received.header("destination"), Some("http://app.test/dav/b"));
        assert_eq!(received.header("lock-token"), Some("<urn:x>"));
        assert_eq!(received.header("timeout"), Some("Second-10"));
    }
}

#[tokio::test]
async fn a_second_target_is_sent_as_the_application_knows_it() {
    let gateway = Gateway::start(
        "[upstream.app]\nhost = 'files.internal:81'\n\
         [[route]]\npath = '/dav/*'\nupstream = 'app'\nstrip_prefix = true\naccess = 'public'\n\
         [[route]]\npath = '/token/*'\nupstream = 'app'\ntoken_from = ['query']",
    )
    .await;
    let token = mint::token(&[]);
    let target = format!("/token/a?access_token={token}");
    for (target, destination, sent) in [
        ("/dav/a", "http://app.test/dav/b/c?x", "http://files.internal:81/b/c?x".to_owned()),
        ("/dav/a", "/dav", "http://files.internal:81/".to_owned()),
        (&target, "/token/b?access_token=t&x=1", "http://files.internal:81/token/b?x=1".to_owned()),
    ] {
        let response =
            gateway.request("COPY", target).header("Destination", destination).send().await;
        assert_eq!(response.status, 200, "{response:?}");
        let received = gateway.upstream().last();
        assert_eq!(received.header("destination"), Some(sent.as_str()));
        assert_eq!(received.header("host"), Some("files.internal:81"));
    }
}

#[tokio::test]
async fn a_cookie_writes_to_a_destination_only_from_our_own_pages() {
    let gateway = Gateway::start(DAV).await;
    let cookie = format!("__Host-portcullis={}", mint::token(&["user"]));
    let get = || gateway.get("/dav/a").header("Cookie", &cookie).header("Destination", "/dav/b");
    get().send().await.is(403, "origin_foreign");
    assert_eq!(get().header("Origin", "http://app.test").send().await.status, 200);
}

#[tokio::test]
async fn limits_and_tolerated_refusals_count_for_a_second_target() {
    let gateway = Gateway::start(
        "[limit.few]\nrequests = 1\nper = '1h'\n[limit.soft]\nrequests = 100\nper = '1h'\n\
         [[route]]\nname = 'dav'\npath = '/dav/*'\nupstream = 'app'\n\
         [[route]]\nname = 'few'\npath = '/dav/few/*'\nupstream = 'app'\nlimit = 'few'\n\
         [[route]]\nname = 'soft'\npath = '/dav/soft/*'\nupstream = 'app'\nroles = ['admin']\nenforce = false",
    )
    .await;
    let user = mint::token(&["user"]);
    let copy = async |from: &str, to: &str| {
        gateway.request("COPY", from).bearer(&user).header("Destination", to).send().await
    };
    assert_eq!(copy("/dav/1", "/dav/few/a").await.status, 200);
    copy("/dav/2", "/dav/few/a").await.is(429, "rate_limited");
    assert_eq!(copy("/dav/3", "/dav/soft/a").await.status, 200);
    let line = gateway.access("/dav/3").await;
    assert_eq!(
        (&line["outcome"], &line["reason"]),
        (&json!("would_refuse"), &json!("role_missing"))
    );
    assert_eq!(gateway.upstream().last().header("x-auth-user"), Some("u-17"));
}

#[tokio::test]
async fn explain_tells_of_second_targets() {
    let gateway = Gateway::start(DAV).await;
    let explain = async |roles: &str, destination: &str| {
        let field = format!("Destination: {destination}");
        let claims = format!("{{\"sub\":\"u-17\",\"roles\":[{roles}]}}");
        let arguments = [
            "explain",
            "COPY",
            "http://app.test/dav/a",
            "-H",
            &field,
            "--claims",
            &claims,
            "--issuer",
            "corp",
        ];
        gateway.command(&arguments).await.1
    };
    let told = explain("\"user\"", "/dav/admin/a").await;
    for wanted in [
        "ok  destination   `destination` names the path `/dav/admin/a`: route `admin`, decided as PUT for the same caller",
        "NO  destination   `destination`: the caller lacks the role `admin`",
        "refuse: 403 role_missing",
    ] {
        assert!(told.contains(wanted), "{told}");
    }
    let told = explain("\"user\"", "/dav/b").await;
    for wanted in [
        "ok  authorize     route `dav`, for `destination`: the caller meets the requirements of the route",
        "set           destination: http://app.test/dav/b",
        "allow: 200 authorized",
    ] {
        assert!(told.contains(wanted), "{told}");
    }
}

#[tokio::test]
async fn check_warns_about_methods_that_pass_over_a_stricter_route() {
    let warned = async |outer: &str, inner: &str| {
        let config = format!(
            "[[route]]\nname = 'outer'\npath = '/dav/*'\nupstream = 'app'\n{outer}\n\
             [[route]]\nname = 'inner'\npath = '/dav/admin/*'\nupstream = 'app'\n{inner}"
        );
        let gateway = Gateway::start(&config).await;
        let (code, _, told) = gateway.command(&["check"]).await;
        assert_eq!(code, 0, "{told}");
        let line = told.lines().find(|line| line.contains("on a collection of this route"));
        line.map(|line| {
            line.trim_start_matches("warning: ").split(" on a").next().unwrap().to_owned()
        })
    };
    let dav = "methods = ['GET', 'PUT', 'COPY', 'MOVE', 'DELETE', 'PROPFIND']";
    let user = format!("{dav}\nroles = ['user']");
    let admin = format!("{dav}\nroles = ['admin']");
    assert_eq!(warned(&user, &admin).await.as_deref(), Some("COPY, MOVE, DELETE, PROPFIND"));
    assert_eq!(
        warned(&user, "roles = ['admin']").await.as_deref(),
        Some("COPY, MOVE, DELETE, PROPFIND")
    );
    assert_eq!(
        warned(&user, "methods = ['GET', 'PROPFIND']\nroles = ['user']").await.as_deref(),
        Some("COPY, MOVE, DELETE")
    );
    assert_eq!(warned(&user, &user).await, None);
    assert_eq!(warned("methods = ['GET', 'PUT', 'MKCOL']", &admin).await, None);
    // Nothing says that this application speaks WebDAV.
    assert_eq!(warned("roles = ['user']", "roles = ['admin']").await, None);
}
