//! Sessions that last: a request whose access token no longer counts is renewed in place (CONTRACT
//! §15.1, §15.2).

use std::time::{Duration, Instant};

use serde_json::json;

use crate::by_mail::sqlite;
use crate::harness::accounts::open;
use crate::harness::jar::{ACCESS, Jar, SESSION, log_in, logged_in, navigates};
use crate::harness::upstream::write;
use crate::harness::{Connection, Gateway, Response, Step, within};

const OWN: (&str, &str) = ("Origin", "http://app.test");

/// How many refreshes had this outcome.
async fn refreshes(gateway: &Gateway, outcome: &str) -> u64 {
    let label = format!("{{outcome=\"{outcome}\"}}");
    let lines = gateway.metric("portcullis_refresh_total").await;
    let value = lines
        .iter()
        .find(|line| line.contains(&label))
        .and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_default()
}

/// The jar with what a response sets, as a browser keeps it.
#[track_caller]
fn renewed(response: &Response) -> Jar {
    let jar = Jar::of(response);
    assert!(!jar.access.is_empty() && !jar.session.is_empty(), "not renewed: {response:?}");
    jar
}

#[tokio::test]
async fn every_kind_of_request_is_renewed_in_place() {
    let gateway = Gateway::start(&open("access_token_ttl = '1s'")).await;
    let first = logged_in(&gateway).await;
    let access_only =
        || gateway.get("/reports").header("Cookie", &format!("{ACCESS}={}", first.access));
    within(async { while access_only().send().await.status == 200 {} }).await;
    access_only().send().await.is(401, "token_expired");
    assert_eq!(refreshes(&gateway, "succeeded").await, 0, "nothing was asked before");

    // The access cookie stays the one that has expired, as in a tab that slept.
    let mut jar = first.clone();
    let large = vec![b'x'; 3 << 20];
    for (method, path, fields, body) in [
        ("GET", "/reports", vec![("Sec-Fetch-Mode", "cors")], &b""[..]),
        ("GET", "/reports?a=b", vec![("Sec-Fetch-Mode", "navigate"), ("Accept", "text/html")], b""),
        ("HEAD", "/reports", vec![], b""),
        ("POST", "/form", vec![OWN, ("Content-Type", "multipart/form-data; boundary=x")], &large),
        ("DELETE", "/reports/7", vec![("Sec-Fetch-Site", "same-origin")], b""),
        ("GET", "/auth/me", vec![], b""),
        ("GET", "/auth/sessions", vec![("Accept", "text/html")], b""),
    ] {
        let mut request = jar.send(gateway.request(method, path));
        for (name, value) in &fields {
            request = request.header(name, value);
        }
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request.send().await;
        assert_eq!(response.status, 200, "{method} {path} {response:?}");
        jar.session = renewed(&response).session;
        if path == "/form" {
            assert_eq!(gateway.upstream().last().body.len(), large.len());
        }
        if !path.starts_with("/auth") {
            let seen = gateway.upstream().last();
            assert_eq!(seen.header("cookie"), Some("theme=dark"));
            assert_eq!(seen.header("x-auth-email"), Some("ann@example.com"));
        }
    }
    // Without an access cookie too: a browser may have dropped it.
    jar.access.clear();
    let cookie = format!("{SESSION}={}", jar.session);
    let response = gateway.get("/reports").header("Cookie", &cookie).send().await;
    assert_eq!(response.status, 200);
    let line = gateway.access("/form").await;
    assert_eq!((&line["subject"].is_string(), &line["reason"]), (&true, &json!("authenticated")));
    let tokens = [&first.access, &first.session, &jar.session];
    assert!(
        gateway
            .log()
            .lines()
            .iter()
            .all(|line| !tokens.iter().any(|token| line.to_string().contains(*token))),
        "no cookie is logged"
    );
}

#[tokio::test]
async fn a_websocket_handshake_is_renewed_and_its_answer_carries_the_cookies() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let handshake = |origin: &str| {
        format!(
            "GET /ws HTTP/1.1\r\nHost: app.test\r\nOrigin: {origin}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nCookie: {SESSION}={}\r\n\r\n",
            jar.session
        )
    };
    gateway.raw(handshake("http://evil.test")).await.is(403, "origin_foreign");
    assert_eq!(refreshes(&gateway, "succeeded").await, 0);
    gateway.upstream().does(vec![
        write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"),
        Step::Echo,
    ]);
    let mut connection = gateway.connect().await;
    connection.write(handshake("http://app.test")).await;
    let response = connection.response().await;
    assert_eq!(response.status, 101, "{response:?}");
    renewed(&response);
}

/// The page of an application was open when its account got another role.
#[tokio::test]
async fn a_hundred_requests_at_once_make_one_successor() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    crate::commands::done(
        &gateway,
        &["user", "set-roles", "ann@example.com", "user", "editor"],
        "",
    );
    within(async {
        let access = format!("{ACCESS}={}", jar.access);
        while gateway.get("/reports").header("Cookie", &access).send().await.status == 200 {}
    })
    .await;
    let requests = (0..100).map(|index| {
        let request = jar.send(gateway.request(["GET", "POST"][index % 2], "/reports"));
        tokio::spawn(request.header(OWN.0, OWN.1).send())
    });
    let mut answers = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        answers.push(request.await.unwrap());
    }
    let first = renewed(&answers[0]);
    for answer in &answers {
        assert_eq!((answer.status, &Jar::of(answer)), (200, &first));
    }
    assert_eq!(refreshes(&gateway, "succeeded").await, 1);
    assert!(gateway.upstream().last().header("x-auth-roles").unwrap().contains("editor"));
    // A tab that comes a little later, with the old cookies or the new session alone.
    for cookie in [&jar.session, &first.session] {
        let cookie = format!("{SESSION}={cookie}");
        let late = gateway.get("/reports").header("Cookie", &cookie).send().await;
        assert_eq!((late.status, Jar::of(&late)), (200, first.clone()));
    }
    assert_eq!(refreshes(&gateway, "succeeded").await, 1);
    // What is remembered does not outlive another change of the account.
    crate::commands::done(&gateway, &["user", "set-roles", "ann@example.com", "user"], "");
    within(async {
        let access = format!("{ACCESS}={}", first.access);
        while gateway.get("/reports").header("Cookie", &access).send().await.status == 200 {}
    })
    .await;
    for jar in [&jar, &first] {
        let response = jar.send(gateway.get("/reports")).send().await;
        assert_eq!(response.status, 200, "{response:?}");
        assert!(!gateway.upstream().last().header("x-auth-roles").unwrap().contains("editor"));
        assert_ne!(renewed(&response).access, first.access);
    }
}

#[tokio::test]
async fn a_session_of_a_forgotten_key_is_renewed() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    crate::commands::done(&gateway, &["key", "rotate", "--compromised"], "");
    let access = format!("{ACCESS}={}", jar.access);
    let reports = || gateway.get("/reports");
    reports().header("Cookie", &access).send().await.is(401, "token_key_unknown");
    let response = jar.send(reports()).send().await;
    assert_eq!(response.status, 200);
    assert_eq!(renewed(&response).send(reports()).send().await.status, 200);
}

#[tokio::test]
async fn a_session_that_was_ended_leads_to_the_login() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let logout = jar.send(gateway.request("POST", "/auth/logout").header(OWN.0, OWN.1)).body("");
    let response = logout.send().await;
    assert_eq!(response.status, 204);
    assert!(Jar::is_cleared_by(&response));
    ends(&gateway, &jar).await;
    // As is one that an operator ends.
    let jar = log_in(&gateway).await;
    let sessions = jar.send(gateway.get("/auth/sessions")).send().await.json();
    let sid = sessions["sessions"][0]["sid"].as_str().unwrap();
    assert_eq!(gateway.command(&["revoke", "--session", sid]).await.0, 0);
    ends(&gateway, &jar).await;
}

/// Where people also log in at a provider, which may have to see them again.
#[tokio::test]
async fn a_session_that_was_ended_is_looked_up_at_its_provider_once() {
    let provider = "[identity.login.corp]\nissuer = 'https://login.invalid'\nclient_id = 'x'\nclient_secret = { file = 'secret' }";
    let gateway = Gateway::setup(&open(provider)).file("secret", "a secret").start().await;
    let jar = logged_in(&gateway).await;
    let logout = jar.send(gateway.request("POST", "/auth/logout").header(OWN.0, OWN.1)).body("");
    assert_eq!(logout.send().await.status, 204);
    for _ in 0..3 {
        let response = jar.send(navigates(gateway.get("/reports"))).send().await;
        let login = Some("/auth/login?return_to=%2Freports");
        assert_eq!((response.status, response.header("location")), (303, login), "{response:?}");
        // From now on, whoever looks there fails.
        let gone = "DROP TABLE IF EXISTS provider_sessions";
        sqlite(&gateway.path("portcullis.db"), gone).await;
    }
}

/// What a browser learns that has kept the cookies of such a session.
async fn ends(gateway: &Gateway, jar: &Jar) {
    let before = refreshes(gateway, "failed").await;
    for _ in 0..20 {
        let response = jar.send(navigates(gateway.get("/reports?a=b"))).send().await;
        assert_eq!(
            (response.status, response.header("location")),
            (303, Some("/auth/login?return_to=%2Freports%3Fa%3Db"))
        );
        assert!(Jar::is_cleared_by(&response), "{response:?}");
    }
    let script = jar.send(gateway.get("/reports")).header("Sec-Fetch-Mode", "cors").send().await;
    script.is(401, "token_revoked");
    assert!(script.headers("set-cookie").is_empty());
    // What was typed into a form is on the page before, and the login leads back to that page.
    let form = navigates(gateway.request("POST", "/reports/7"))
        .header(OWN.0, OWN.1)
        .header("Referer", "http://app.test/reports/7/edit?a=b")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body("text=long");
    let response = jar.send(form).send().await;
    assert_eq!(response.status, 401);
    assert!(
        response.text().contains("href=\"/auth/login?return_to=%2Freports%2F7%2Fedit%3Fa%3Db\""),
        "{}",
        response.text()
    );
    // The store is not asked about it again and again.
    assert!(refreshes(gateway, "failed").await <= before + 1);
}

#[tokio::test]
async fn a_forged_session_costs_nothing() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let other = |forged: &str| {
        gateway.get("/reports").header("Cookie", &format!("{SESSION}={forged}")).send()
    };
    let flipped = if jar.session.starts_with('A') { "B" } else { "A" };
    let flipped = format!("{flipped}{}", &jar.session[1..]);
    for forged in ["", "x", &jar.session[1..], &flipped, &format!("{}A", jar.session)] {
        other(forged).await.is(401, "credentials_missing");
    }
    // Two are as good as none: one of them is not of this login.
    let two = format!("{SESSION}={0}; {SESSION}={0}", jar.session);
    gateway.get("/reports").header("Cookie", &two).send().await.is(401, "credentials_missing");
    for outcome in ["succeeded", "failed", "reused"] {
        assert_eq!(refreshes(&gateway, outcome).await, 0, "{outcome}");
    }
    // It is not a bearer token, and an access token is not a session.
    gateway.get("/reports").bearer(&jar.session).send().await.is(401, "token_malformed");
    other(&jar.access).await.is(401, "credentials_missing");
}

#[tokio::test]
async fn only_our_own_pages_renew_a_session_by_an_unsafe_request() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let cookie = format!("{SESSION}={}", jar.session);
    for fields in [
        vec![],
        vec![("Origin", "http://evil.test")],
        vec![("Origin", "null")],
        vec![("Sec-Fetch-Site", "same-site")],
    ] {
        let mut request = gateway.request("POST", "/reports").header("Cookie", &cookie);
        for (name, value) in fields {
            request = request.header(name, value);
        }
        let response = request.send().await;
        response.is(403, "origin_foreign");
        assert!(response.headers("set-cookie").is_empty());
    }
    assert_eq!(gateway.upstream().count(), 0);
    assert_eq!(refreshes(&gateway, "succeeded").await, 0);
    // A link from anywhere leads to the application.
    let link = navigates(gateway.get("/reports")).header("Cookie", &cookie);
    assert_eq!(link.send().await.status, 200);
}

#[tokio::test]
async fn a_store_that_is_away_is_no_reason_to_log_in() {
    let gateway = Gateway::start(&format!(
        "{}\n[[route]]\npath = '/open/*'\nupstream = 'app'\nenforce = false\ntoken_from = ['cookie']\n",
        open("")
    ))
    .await;
    let jar = logged_in(&gateway).await;
    super::store::run(&gateway, &super::store::FAIL).await;
    assert_eq!(jar.send(gateway.get("/reports")).send().await.status, 200, "it is not asked");
    let cookie = format!("{SESSION}={}", jar.session);
    let page = navigates(gateway.get("/reports")).header("Cookie", &cookie).send().await;
    assert_eq!((page.status, page.header("location")), (503, None), "{page:?}");
    let response = gateway.get("/reports").header("Cookie", &cookie).send().await;
    response.is(503, "store_unavailable");
    assert!(response.header("retry-after").is_some() && response.headers("set-cookie").is_empty());
    let tolerated = gateway.get("/open/x").header("Cookie", &cookie).send().await;
    assert_eq!(tolerated.status, 200, "a route that does not enforce harms nobody");
    super::store::run(&gateway, &super::store::RECOVER).await;
    let response = gateway.get("/reports").header("Cookie", &cookie).send().await;
    assert_eq!(response.status, 200);
    renewed(&response);
}

#[tokio::test]
async fn no_cache_keeps_the_cookies_of_a_session() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    gateway.upstream().answers(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: public, max-age=600, s-maxage=900\r\nCDN-Cache-Control: max-age=900\r\n\r\nok",
    );
    let response = jar.send(gateway.get("/logo.png")).send().await;
    assert_eq!(response.header("cache-control"), Some("public, max-age=600, s-maxage=900"));
    let cookie = format!("{SESSION}={}", jar.session);
    let response = gateway.get("/logo.png").header("Cookie", &cookie).send().await;
    renewed(&response);
    assert_eq!(response.header("cache-control"), Some("private, max-age=600"));
    assert_eq!(response.header("cdn-cache-control"), None);
}

/// The answer of an endpoint may take the cookies away: a renewal before it must not bring them
/// back.
#[tokio::test]
async fn a_logout_that_was_renewed_stays_a_logout() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let cookie = format!("{SESSION}={}", jar.session);
    let request = gateway.request("POST", "/auth/logout-all").header(OWN.0, OWN.1);
    let response = request.header("Cookie", &cookie).body("").send().await;
    assert_eq!(response.status, 204, "{response:?}");
    assert!(Jar::is_cleared_by(&response), "{response:?}");
    gateway.get("/reports").header("Cookie", &cookie).send().await.is(401, "credentials_missing");
}

/// Such a login is lost with the first request, and the person would log in again and again.
#[tokio::test]
async fn the_login_page_says_that_no_browser_keeps_a_login_without_tls() {
    for (issuer, loses) in [
        ("http://app.test/auth", true),
        ("http://192.0.2.7:8080/auth", true),
        ("https://app.test/auth", false),
        ("http://localhost:8080/auth", false),
        ("http://[::1]/auth", false),
    ] {
        let gateway = Gateway::start(&open("").replace("http://app.test/auth", issuer)).await;
        let page = navigates(gateway.get("/auth/login")).send().await.text();
        assert_eq!(page.contains("Your browser will not keep this login"), loses, "{issuer}");
    }
}

/// A refusal after the renewal tells the browser its new cookies as well: the old ones are used up.
#[tokio::test]
async fn a_renewed_request_that_is_refused_keeps_its_session() {
    let gateway = Gateway::start(&format!(
        "{}\n[[route]]\npath = '/admin/*'\nupstream = 'app'\nroles = ['admin']\ntoken_from = ['cookie']\n\
         [[route]]\npath = '/optional'\nupstream = 'app'\naccess = 'optional'\ntoken_from = ['cookie']\n",
        open("")
    ))
    .await;
    let jar = logged_in(&gateway).await;
    let cookie = format!("{SESSION}={}", jar.session);
    let response = gateway.get("/admin/x").header("Cookie", &cookie).send().await;
    response.is(403, "role_missing");
    let jar = renewed(&response);
    assert_eq!(jar.send(gateway.get("/reports")).send().await.status, 200);
    // Who is logged in is known where nobody has to be.
    let cookie = format!("{SESSION}={}", jar.session);
    assert_eq!(gateway.get("/optional").header("Cookie", &cookie).send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-email"), Some("ann@example.com"));
}

/// A request to an application that does not respond yet. Its cookie is all that it has of a login.
async fn slow(gateway: &Gateway, cookie: &str) -> Connection {
    gateway.upstream().does_at(
        "/slow",
        vec![Step::Hold, write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")],
    );
    let mut connection = gateway.connect().await;
    connection.write(gateway.get("/slow").header("Cookie", cookie).bytes()).await;
    gateway.upstream().until(|seen| seen.requests.iter().any(|seen| seen.target == "/slow")).await;
    connection
}

/// They would overwrite the newer ones, and then look stolen.
#[tokio::test]
async fn a_slow_response_brings_no_older_cookies() {
    let gateway = Gateway::start(&open("")).await;
    let jar = logged_in(&gateway).await;
    let cookie = |session: &str| format!("{SESSION}={session}");
    let mut late = slow(&gateway, &cookie(&jar.session)).await;
    let begun = Instant::now();
    let refreshing = gateway.request("POST", "/auth/refresh").header(OWN.0, OWN.1);
    let response = refreshing.header("Cookie", &cookie(&jar.session)).body("").send().await;
    let second = renewed(&response);
    let refreshing = gateway.request("POST", "/auth/refresh").header(OWN.0, OWN.1);
    let response = refreshing.header("Cookie", &cookie(&second.session)).body("").send().await;
    let third = renewed(&response);
    assert_ne!(second.session, third.session);
    // A quick response may bring them: the interval for repetitions covers it.
    tokio::time::sleep(Duration::from_millis(1100).saturating_sub(begun.elapsed())).await;
    gateway.upstream().release();
    let response = late.response().await;
    assert_eq!((response.status, response.headers("set-cookie").len()), (200, 0));

    // The same after the end of the session: somebody else may have logged in since.
    let mut late = slow(&gateway, &cookie(&third.session)).await;
    let begun = Instant::now();
    let logout = gateway.request("POST", "/auth/logout").header(OWN.0, OWN.1);
    let response = logout.header("Cookie", &cookie(&third.session)).body("").send().await;
    assert_eq!(response.status, 204, "{response:?}");
    tokio::time::sleep(Duration::from_millis(1100).saturating_sub(begun.elapsed())).await;
    gateway.upstream().release();
    assert_eq!(late.response().await.headers("set-cookie").len(), 0);
}

/// An application may be slow, and a browser may go away: neither is theft.
#[tokio::test]
async fn cookies_that_nobody_has_received_use_nothing_up() {
    let gateway = Gateway::start(&open("refresh_reuse_interval = '1s'")).await;
    let jar = logged_in(&gateway).await;
    let cookie = format!("{SESSION}={}", jar.session);
    let interval = Duration::from_millis(1100);
    // It goes away.
    drop(slow(&gateway, &cookie).await);
    gateway.access("/slow").await;
    tokio::time::sleep(interval).await;
    let mut late = slow(&gateway, &cookie).await;
    tokio::time::sleep(interval).await;
    let response = gateway.get("/reports").header("Cookie", &cookie).send().await;
    assert_eq!(response.status, 200);
    let next = renewed(&response);
    gateway.upstream().release();
    assert_eq!(renewed(&late.response().await).session, next.session);
    assert_eq!(
        (refreshes(&gateway, "succeeded").await, refreshes(&gateway, "reused").await),
        (1, 0)
    );
    // From now on, somebody has them.
    tokio::time::sleep(interval).await;
    gateway.get("/reports").header("Cookie", &cookie).send().await.is(401, "credentials_missing");
    assert_eq!(refreshes(&gateway, "reused").await, 1);
    let cookie = format!("{SESSION}={}", next.session);
    gateway.get("/reports").header("Cookie", &cookie).send().await.is(401, "credentials_missing");
}
