//! Sessions of the built-in issuer: rotation, reuse, end (CONTRACT §5; RFC 9700 §4.14).

use std::collections::HashSet;

use serde_json::json;

use crate::by_mail::sqlite;
use crate::harness::accounts::{PASSWORD, Tokens, limited, open};
use crate::harness::client::Request;
use crate::harness::{Connection, Gateway, mint, within};
use crate::store::run;

const OPERATOR: &str = "the-token-of-the-operators";

#[tokio::test]
async fn a_refresh_token_works_once_and_its_reuse_ends_the_session() {
    let gateway = Gateway::start(&open("refresh_reuse_interval = '0s'")).await;
    gateway.register("ann@example.com").await;
    let (first, bystander) =
        (gateway.login("ann@example.com").await, gateway.login("ann@example.com").await);
    let second = Tokens::of(&gateway.refresh(&first.refresh).await);
    assert_eq!(second.claims()["sid"], first.claims()["sid"]);
    assert_ne!(second.claims()["jti"], first.claims()["jti"]);
    assert_eq!(
        (gateway.reaches(&first.access).await, gateway.reaches(&second.access).await),
        (200, 200)
    );

    gateway.refresh(&first.refresh).await.is(401, "invalid_grant");
    gateway.refresh(&second.refresh).await.is(401, "invalid_grant");
    for tokens in [&first, &second] {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
    }
    let output = gateway
        .log()
        .until("the reuse is logged", |line| line["message"] == "refresh_reused")
        .await;
    assert_eq!(output["account"], first.claims()["sub"]);
    assert_eq!(gateway.metric_value("portcullis_refresh_total", &["reused"]).await, Some(1.0));
    // Another session of the account is not affected.
    assert_eq!(gateway.reaches(&bystander.access).await, 200);
    assert_eq!(gateway.refresh(&bystander.refresh).await.status, 200);
}

/// As after a restore, or when Redis comes back older than it was.
#[tokio::test]
async fn a_refresh_token_that_the_store_has_forgotten_ends_the_session() {
    let gateway = Gateway::start(&open("refresh_reuse_interval = '0s'")).await;
    gateway.register("ann@example.com").await;
    let first = gateway.login("ann@example.com").await;
    let second = Tokens::of(&gateway.refresh(&first.refresh).await);
    run(&gateway, &["UPDATE sessions SET counter = 0"]).await;
    gateway.refresh(&second.refresh).await.is(401, "invalid_grant");
    let words = "a session was ended because its refresh token is newer than what the store knows: the store was restored, or has lost its last changes";
    gateway.log().until("it is logged", |line| line["message"] == words).await;
    gateway.refresh(&first.refresh).await.is(401, "invalid_grant");
    for tokens in [&first, &second] {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
    }
}

#[tokio::test]
async fn a_repeated_refresh_within_the_grace_period_gets_the_same_successor() {
    let gateway = Gateway::start(&open("refresh_reuse_interval = '1m'")).await;
    gateway.register("ann@example.com").await;
    let first = gateway.login("ann@example.com").await;
    let second = Tokens::of(&gateway.refresh(&first.refresh).await);
    let again = Tokens::of(&gateway.refresh(&first.refresh).await);
    assert_eq!(again.refresh, second.refresh);
    let third = Tokens::of(&gateway.refresh(&second.refresh).await);
    assert_ne!(third.refresh, second.refresh);
    // Also after the successor was used, and each time with a valid access token.
    let late = Tokens::of(&gateway.refresh(&first.refresh).await);
    assert_eq!((late.refresh, gateway.reaches(&late.access).await), (second.refresh.clone(), 200));
    assert_eq!(Tokens::of(&gateway.refresh(&second.refresh).await).refresh, third.refresh);
    assert_eq!(gateway.refresh(&third.refresh).await.status, 200, "the session goes on");
}

/// One successor, no fork, and the session continues.
#[tokio::test]
async fn two_hundred_concurrent_refreshes_have_one_successor() {
    let gateway = Gateway::start(&format!("server.workers = 4\n{}", open(""))).await;
    gateway.register("ann@example.com").await;
    let mut token = gateway.login("ann@example.com").await.refresh;
    for _ in 0..2 {
        let request = gateway.post("/auth/refresh", &json!({ "refresh_token": token })).bytes();
        let mut connections = Vec::new();
        for _ in 0..200 {
            connections.push(gateway.connect().await);
        }
        for connection in &mut connections {
            connection.write(&request).await;
        }
        let mut successors = HashSet::new();
        for connection in &mut connections {
            successors.insert(Tokens::of(&connection.response().await).refresh);
        }
        assert_eq!(successors.len(), 1, "{successors:?}");
        token = successors.into_iter().next().unwrap();
    }
    assert_eq!(gateway.refresh(&token).await.status, 200);
}

#[tokio::test]
async fn invalid_refresh_tokens_are_an_invalid_grant() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let mut forged = tokens.refresh.clone().into_bytes();
    *forged.last_mut().unwrap() ^= 4;
    for token in [
        "",
        "x",
        &tokens.access,
        std::str::from_utf8(&forged).unwrap(),
        &format!("{}A", tokens.refresh),
    ] {
        gateway.refresh(token).await.is(401, "invalid_grant");
    }
    gateway.request("POST", "/auth/refresh").body("").send().await.is(401, "invalid_grant");
    // The session is not affected.
    assert_eq!(gateway.refresh(&tokens.refresh).await.status, 200);
}

#[tokio::test]
async fn a_logout_takes_effect_at_once() {
    let gateway = Gateway::start(&format!("server.workers = 4\n{}", open(""))).await;
    gateway.register("ann@example.com").await;
    let (tokens, other) =
        (gateway.login("ann@example.com").await, gateway.login("ann@example.com").await);
    // Every worker has verified the token, so that each has it in its cache.
    for _ in 0..20 {
        assert_eq!(gateway.reaches(&tokens.access).await, 200);
    }
    let response =
        gateway.request("POST", "/auth/logout").bearer(&tokens.access).body("").send().await;
    assert_eq!(response.status, 204);
    for _ in 0..20 {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
    }
    gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    assert_eq!(gateway.reaches(&other.access).await, 200);
    // With only the refresh token.
    let next = Tokens::of(&gateway.refresh(&other.refresh).await);
    let response =
        gateway.post("/auth/logout", &json!({ "refresh_token": other.refresh })).send().await;
    assert_eq!(response.status, 204);
    for tokens in [&other, &next] {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
    }
    gateway.refresh(&next.refresh).await.is(401, "invalid_grant");
    // Without credentials there is nothing to end; invalid ones are refused with their reason.
    gateway.request("POST", "/auth/logout").body("").send().await.is(401, "credentials_missing");
    gateway
        .request("POST", "/auth/logout")
        .bearer(&next.access)
        .body("")
        .send()
        .await
        .is(401, "token_revoked");
}

/// An invalid refresh token does not prevent the end of the caller's session, and if two sessions
/// are named, both end.
#[tokio::test]
async fn a_logout_ends_the_session_that_its_token_names() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    for unreadable in ["x", ""] {
        let tokens = gateway.login("ann@example.com").await;
        let request = gateway.post("/auth/logout", &json!({ "refresh_token": unreadable }));
        assert_eq!(request.bearer(&tokens.access).send().await.status, 204);
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
        gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    }
    let (one, two) =
        (gateway.login("ann@example.com").await, gateway.login("ann@example.com").await);
    let request = gateway.post("/auth/logout", &json!({ "refresh_token": two.refresh }));
    assert_eq!(request.bearer(&one.access).send().await.status, 204);
    for tokens in [&one, &two] {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
        gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    }
    gateway
        .post("/auth/logout", &json!({ "refresh_token": "x" }))
        .send()
        .await
        .is(401, "credentials_missing");
}

#[tokio::test]
async fn every_session_of_an_account_can_be_ended() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    gateway.register("bob@example.com").await;
    let bob = gateway.login("bob@example.com").await;
    let sessions = [gateway.login("ann@example.com").await, gateway.login("ann@example.com").await];
    let response = gateway
        .request("POST", "/auth/logout-all")
        .bearer(&sessions[0].access)
        .body("")
        .send()
        .await;
    assert_eq!(response.status, 204);
    for tokens in &sessions {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
        gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    }
    assert_eq!(gateway.reaches(&bob.access).await, 200);
    let again = gateway.login("ann@example.com").await;
    assert_eq!(gateway.reaches(&again.access).await, 200);
}

#[tokio::test]
async fn sessions_are_listed_and_ended_one_by_one() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    gateway.register("bob@example.com").await;
    let bob = gateway.login("bob@example.com").await;
    let (here, there) =
        (gateway.login("ann@example.com").await, gateway.login("ann@example.com").await);
    Tokens::of(
        &gateway
            .post("/auth/refresh", &json!({ "refresh_token": here.refresh }))
            .header("User-Agent", "a telephone")
            .send()
            .await,
    );
    let listed = gateway.get("/auth/sessions").bearer(&here.access).send().await.json();
    let sessions = listed["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    let (first, second) = (&sessions[0], &sessions[1]);
    assert_eq!(
        (&first["sid"], &first["current"], &first["user_agent"]),
        (&here.claims()["sid"], &json!(true), &json!("a telephone"))
    );
    assert_eq!(
        (&second["sid"], &second["current"], &second["address"]),
        (&there.claims()["sid"], &json!(false), &json!("127.0.0.1"))
    );
    assert!(
        ["created_at", "last_used_at"]
            .iter()
            .all(|name| first[name].as_str().unwrap().ends_with('Z'))
    );

    let end = |sid: &str, access: &str| {
        gateway.request("DELETE", &format!("/auth/sessions/{sid}")).bearer(access)
    };
    let sid = there.claims()["sid"].as_str().unwrap().to_owned();
    // For bob, a session of another account does not exist.
    end(&sid, &bob.access).send().await.is(404, "route_not_found");
    end("nothing", &here.access).send().await.is(404, "route_not_found");
    assert_eq!(gateway.reaches(&there.access).await, 200);
    assert_eq!(end(&sid, &here.access).send().await.status, 204);
    gateway.get("/reports").bearer(&there.access).send().await.is(401, "token_revoked");
    gateway.refresh(&there.refresh).await.is(401, "invalid_grant");
    let listed = gateway.get("/auth/sessions").bearer(&here.access).send().await.json();
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_hundred_most_recently_used_sessions_are_listed() {
    let gateway = Gateway::start(&open("")).await;
    let account = gateway.register("ann@example.com").await;
    let first = gateway.login("ann@example.com").await;
    let sid = first.claims()["sid"].as_str().unwrap().to_owned();
    // This many logins would take a minute.
    sqlite(
        &gateway.path("portcullis.db"),
        &format!(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 102) \
             INSERT INTO sessions SELECT 'later-' || n, account, generation, counter, created_at, rotated_at + n, address, 'program ' || n, ended_at, until_closed, idp, acr, auth_time \
             FROM sessions, numbers WHERE id = '{sid}' AND account = '{}'",
            account["id"].as_str().unwrap()
        ),
    )
    .await;
    let listed = gateway.get("/auth/sessions").bearer(&first.access).send().await.json();
    let sessions = listed["sessions"].as_array().unwrap();
    assert_eq!((sessions.len(), &listed["more"]), (100, &json!(3)));
    assert_eq!(
        (&sessions[0]["sid"], &sessions[99]["sid"]),
        (&json!("later-102"), &json!("later-3"))
    );
    let page = gateway.get("/auth/sessions").bearer(&first.access).header("Accept", "text/html");
    let page = page.send().await.text();
    assert!(page.contains("3 more sessions, used earlier, are not listed"), "{page}");
    assert_eq!(page.matches("program ").count() / 2, 100, "{page}");

    let ended = gateway.command(&["user", "end-sessions", "ann@example.com"]).await;
    assert_eq!(ended.0, 0, "{ended:?}");
    let second = gateway.login("ann@example.com").await;
    let listed = gateway.get("/auth/sessions").bearer(&second.access).send().await.json();
    assert_eq!((listed["sessions"].as_array().unwrap().len(), &listed["more"]), (1, &json!(0)));
}

/// `portcullis revoke --session` or `POST /revoke`: a session whose tokens are all revoked has
/// ended.
#[tokio::test]
async fn a_revoked_session_cannot_be_refreshed() {
    let gateway =
        Gateway::setup(&format!("{}[admin]\ntoken = {{ file = 'admin.token' }}\n", open("")))
            .file("admin.token", OPERATOR)
            .start()
            .await;
    gateway.register("ann@example.com").await;
    let sid = |tokens: &Tokens| tokens.claims()["sid"].as_str().unwrap().to_owned();
    let bystander = gateway.login("ann@example.com").await;
    for issuer in [None, Some("identity")] {
        let tokens = gateway.login("ann@example.com").await;
        let body = json!({ "sid": sid(&tokens), "issuer": issuer }).to_string();
        let revoked = Request::new(gateway.admin_address(), "POST", "/revoke")
            .bearer(OPERATOR)
            .body(body)
            .send()
            .await;
        assert_eq!(revoked.status, 204);
        gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
    }
    let by_command = gateway.login("ann@example.com").await;
    assert_eq!(
        gateway
            .command(&["revoke", "--session", &sid(&by_command), "--issuer", "identity"])
            .await
            .0,
        0
    );
    gateway.refresh(&by_command.refresh).await.is(401, "invalid_grant");
    // The end lasts longer than the revocation is kept, which is the lifetime of an access token.
    let mut database =
        super::revocation::open(gateway.path("portcullis.db").to_str().unwrap()).await;
    let live = "SELECT COUNT(*) FROM sessions WHERE ended_at IS NULL";
    assert_eq!(sqlx::query_scalar::<_, i64>(live).fetch_one(&mut database).await.unwrap(), 1);
    // Only a revocation was written, as in earlier versions.
    let tokens = gateway.login("ann@example.com").await;
    let row = "INSERT INTO revocations (kind, value, scope, revoked_at, seq) \
               SELECT 'sid', $1, '*', $2, MAX(seq) + 1 FROM revocations";
    sqlx::query(row)
        .bind(sid(&tokens))
        .bind(mint::now().cast_signed())
        .execute(&mut database)
        .await
        .unwrap();
    within(async { while gateway.reaches(&tokens.access).await == 200 {} }).await;
    gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    assert_eq!(sqlx::query_scalar::<_, i64>(live).fetch_one(&mut database).await.unwrap(), 1);
    // Another session of the account is not affected. Revoking a subject revokes its tokens, not
    // its sessions.
    let next = Tokens::of(&gateway.refresh(&bystander.refresh).await);
    let subject = next.claims()["sub"].as_str().unwrap().to_owned();
    assert_eq!(gateway.command(&["revoke", "--subject", &subject]).await.0, 0);
    assert_eq!(gateway.reaches(&next.access).await, 401);
    let next = Tokens::of(&gateway.refresh(&next.refresh).await);
    assert_eq!(gateway.reaches(&next.access).await, 200);
}

/// A login right after a revocation gets a token with an `iat` after the cut-off. A revocation in
/// the same second covers that token too.
#[tokio::test]
async fn a_token_issued_after_a_cut_off_can_be_revoked() {
    let config =
        format!("server.workers = 4\n{}[admin]\ntoken = {{ file = 'admin.token' }}\n", open(""));
    let gateway =
        Gateway::setup(&config).file("admin.token", "the-token-of-operators").start().await;
    let body = json!({ "current_password": PASSWORD, "new_password": "cactus ferry lamp 12" });
    for (index, end) in [
        "logout-all",
        "password/change",
        "revoke",
        "set-roles",
        "disable",
        "end-sessions",
        "command",
    ]
    .into_iter()
    .enumerate()
    {
        let email = format!("ann{index}@example.com");
        let id = gateway.register(&email).await["id"].as_str().unwrap().to_owned();
        let revoke = || {
            let body = json!({ "subject": id }).to_string();
            Request::new(gateway.admin_address(), "POST", "/revoke")
                .bearer("the-token-of-operators")
                .body(body)
                .send()
        };
        assert_eq!(revoke().await.status, 204);
        let tokens = gateway.login(&email).await;
        assert_eq!(gateway.reaches(&tokens.access).await, 200, "it is past the cut-off");
        let ended = match end {
            "logout-all" | "password/change" => {
                gateway
                    .post(&format!("/auth/{end}"), &body)
                    .bearer(&tokens.access)
                    .send()
                    .await
                    .status
                    == 204
            }
            "revoke" => revoke().await.status == 204,
            "command" => {
                gateway.command(&["revoke", "--subject", &id, "--issuer", "identity"]).await.0 == 0
            }
            command => gateway.command(&["user", command, &email]).await.0 == 0,
        };
        assert!(ended, "{end}");
        for _ in 0..8 {
            gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
        }
    }
}

#[tokio::test]
async fn an_access_token_has_the_configured_lifetime() {
    let gateway = Gateway::start(&open("access_token_ttl = '1s'")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    within(async { while gateway.reaches(&tokens.access).await == 200 {} }).await;
    gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_expired");
    let next = Tokens::of(&gateway.refresh(&tokens.refresh).await);
    assert_eq!(gateway.reaches(&next.access).await, 200);
}

/// An unused session ends, and a used one continues.
#[tokio::test]
async fn a_session_lasts_while_it_is_used() {
    let gateway = Gateway::start(&open("refresh_token_ttl = '2s'")).await;
    gateway.register("ann@example.com").await;
    let idle = gateway.login("ann@example.com").await;
    let mut used = gateway.login("ann@example.com").await;
    within(async {
        loop {
            used = Tokens::of(&gateway.refresh(&used.refresh).await);
            let listed = gateway.get("/auth/sessions").bearer(&used.access).send().await.json();
            if listed["sessions"].as_array().unwrap().len() == 1 {
                break;
            }
        }
    })
    .await;
    gateway.refresh(&idle.refresh).await.is(401, "invalid_grant");
    assert_eq!(gateway.refresh(&used.refresh).await.status, 200);
}

#[tokio::test]
async fn a_session_has_a_maximum_lifetime() {
    let gateway = Gateway::start(&open("session_lifetime = '2s'")).await;
    gateway.register("ann@example.com").await;
    let mut token = gateway.login("ann@example.com").await.refresh;
    let ended = within(async {
        loop {
            let response = gateway.refresh(&token).await;
            if response.status != 200 {
                return response;
            }
            token = Tokens::of(&response).refresh;
        }
    })
    .await;
    ended.is(401, "invalid_grant");
}

/// The session has ended, unused or with its account, but its access token is still valid.
#[tokio::test]
async fn a_logout_also_works_after_the_session_was_deleted() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let mut database =
        super::revocation::open(gateway.path("portcullis.db").to_str().unwrap()).await;
    sqlx::query("DELETE FROM sessions").execute(&mut database).await.unwrap();
    assert_eq!(gateway.reaches(&tokens.access).await, 200);
    assert_eq!(
        gateway.post("/auth/logout", &json!({})).bearer(&tokens.access).send().await.status,
        204
    );
    gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
}

/// Another process has the store's only writer for as long as this test asks.
#[tokio::test]
async fn a_repeated_or_unknown_end_does_not_wait_for_the_writer() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let here = gateway.login("ann@example.com").await;
    let (there, gone) =
        (gateway.login("ann@example.com").await, gateway.login("ann@example.com").await);
    let created = gateway.post("/auth/tokens", &json!({ "name": "laptop" })).bearer(&here.access);
    let token = format!("/auth/tokens/{}", created.send().await.json()["id"].as_str().unwrap());
    let session = format!("/auth/sessions/{}", there.claims()["sid"].as_str().unwrap());
    let end =
        async |path: &str| gateway.request("DELETE", path).bearer(&here.access).send().await.status;
    let logout = async || {
        let body = json!({ "refresh_token": gone.refresh });
        gateway.post("/auth/logout", &body).send().await.status
    };
    let mark = gateway.log().mark();
    let first = [end(&session).await, end(&token).await, logout().await];
    assert_eq!(first, [204; 3]);
    for tokens in [&there, &gone] {
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
    }

    let mut writer = super::revocation::open(gateway.path("portcullis.db").to_str().unwrap()).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut writer).await.unwrap();
    for _ in 0..3 {
        assert_eq!([end(&session).await, end(&token).await, logout().await], [204; 3]);
        assert_eq!([end("/auth/sessions/x").await, end("/auth/tokens/x").await], [404; 2]);
    }
    sqlx::query("ROLLBACK").execute(&mut writer).await.unwrap();
    // Each is recorded once, before what comes later.
    gateway.login("ann@example.com").await;
    gateway.log().after(mark, "a later event", |line| line["message"] == "login_succeeded").await;
    for event in ["session_ended", "token_revoked", "logged_out"] {
        let lines = gateway.log().lines();
        let count = lines.iter().filter(|line| line["message"] == event).count();
        assert_eq!(count, 1, "{event}");
    }
}

/// Neither neighbours on the same address, nor whoever has another session or a used up refresh
/// token, keeps anybody from ending access.
#[tokio::test]
async fn no_limit_keeps_anybody_from_logging_out() {
    let gateway = Gateway::start(&limited("")).await;
    gateway.register("ann@example.com").await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(gateway.login("ann@example.com").await);
    }
    let [stolen, browser, program, here] = &sessions[..] else { panic!("four sessions") };
    let named = |tokens: &Tokens| json!({ "refresh_token": tokens.refresh });
    for _ in 0..70 {
        let neighbour = gateway.post("/auth/logout", &json!({})).send().await;
        neighbour.is(401, "credentials_missing");
        let thief = gateway.request("DELETE", "/auth/sessions/x").bearer(&stolen.access);
        assert_eq!(thief.send().await.status, 404);
    }
    // The access token of a browser expires while nobody uses it.
    let cookie = format!("__Host-portcullis-session={}", browser.refresh);
    let request = gateway.request("POST", "/auth/logout").body("").header("Cookie", &cookie);
    assert_eq!(request.header("Origin", "http://app.test").send().await.status, 204);
    for _ in 0..70 {
        assert_eq!(gateway.post("/auth/logout", &named(program)).send().await.status, 204);
    }
    let path = format!("/auth/sessions/{}", stolen.claims()["sid"].as_str().unwrap());
    let request = gateway.request("DELETE", &path).bearer(&here.access);
    assert_eq!(request.send().await.status, 204);
    let request = gateway.request("POST", "/auth/logout-all").bearer(&here.access);
    assert_eq!(request.body("").send().await.status, 204);
    for tokens in &sessions {
        assert_eq!(gateway.reaches(&tokens.access).await, 401);
    }
}

/// The head of a request is accepted, and its body is held back until the session has ended.
#[tokio::test]
async fn a_body_that_arrives_after_the_end_of_its_session_does_nothing() {
    let gateway = Gateway::start(&open("totp = true")).await;
    gateway.register("ann@example.com").await;
    for ends_everywhere in [false, true] {
        let tokens = gateway.login("ann@example.com").await;
        let hold = async |method: &str, path: &str, body: serde_json::Value| {
            hold(&gateway, &tokens.access, &format!("{method} /auth{path}"), body.to_string()).await
        };
        let waiting = [
            hold("POST", "/tokens", json!({ "name": "late", "ttl": "10y" })).await,
            hold("POST", "/totp", json!({ "current_password": PASSWORD })).await,
            hold("PATCH", "/me", json!({ "name": "Late" })).await,
            hold("GET", "/me/export", json!({})).await,
            hold("GET", "/sessions", json!({})).await,
            hold("POST", "/logout-all", json!({})).await,
        ];
        let (mut silent, _) = hold("POST", "/tokens", json!({ "name": "never" })).await;
        let welcome = hold("POST", "/logout", json!({ "refresh_token": tokens.refresh })).await;
        if ends_everywhere {
            let ended = gateway.command(&["user", "end-sessions", "ann@example.com"]).await;
            assert_eq!(ended.0, 0, "{ended:?}");
        } else {
            let logout = json!({ "refresh_token": tokens.refresh });
            assert_eq!(gateway.post("/auth/logout", &logout).send().await.status, 204);
        }
        let own = gateway.login("ann@example.com").await;
        for (mut connection, body) in waiting {
            connection.write(body).await;
            connection.response().await.is(401, "token_revoked");
        }
        silent.response().await.is(401, "token_revoked");
        // A logout needs no caller.
        let (mut connection, body) = welcome;
        connection.write(body).await;
        assert_eq!(connection.response().await.status, 204);
        let me = gateway.get("/auth/me").bearer(&own.access).send().await;
        assert_eq!((me.status, &me.json()["name"]), (200, &json!(null)));
        let made = gateway.get("/auth/tokens").bearer(&own.access).send().await;
        assert_eq!(made.json()["tokens"], json!([]));
    }
}

/// Sends the head of a request, and returns its body.
async fn hold(gateway: &Gateway, access: &str, target: &str, body: String) -> (Connection, String) {
    let mut connection = gateway.connect().await;
    connection
        .write(format!(
            "{target} HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer {access}\r\n\
             Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    // The body is asked for once the head was accepted.
    assert_eq!(connection.next_head().await.unwrap().status, 100);
    (connection, body)
}

#[tokio::test]
async fn a_body_that_arrives_after_its_token_has_expired_does_nothing() {
    let gateway = Gateway::start(&open("access_token_ttl = '1s'")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let name = json!({ "name": "Late" }).to_string();
    let (mut connection, body) = hold(&gateway, &tokens.access, "PATCH /auth/me", name).await;
    while gateway.reaches(&tokens.access).await == 200 {}
    connection.write(body).await;
    connection.response().await.is(401, "token_expired");
}

/// Another process has the store's only writer until all of them have arrived.
#[tokio::test]
async fn many_logouts_at_once_write_once() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    gateway.register("bob@example.com").await;
    let (ann, bob) =
        (gateway.login("ann@example.com").await, gateway.login("bob@example.com").await);
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(hold(&gateway, &ann.access, "POST /auth/logout-all", "{}".to_owned()).await);
    }
    let mark = gateway.log().mark();
    let mut writer = super::revocation::open(gateway.path("portcullis.db").to_str().unwrap()).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut writer).await.unwrap();
    for (connection, body) in &mut waiting {
        connection.write(std::mem::take(body)).await;
    }
    for _ in 0..50 {
        assert_eq!(gateway.get("/auth/me").bearer(&bob.access).send().await.status, 200);
    }
    sqlx::query("ROLLBACK").execute(&mut writer).await.unwrap();
    for (mut connection, _) in waiting {
        assert_eq!(connection.response().await.status, 204);
    }
    assert_eq!(gateway.reaches(&ann.access).await, 401);
    gateway.login("bob@example.com").await;
    gateway.log().after(mark, "a later event", |line| line["message"] == "login_succeeded").await;
    let is_end = |line: &serde_json::Value| line["message"] == "logged_out_everywhere";
    assert_eq!(gateway.log().count_after(mark, is_end), 1);
}

/// As if another gateway had just changed the roles: the sessions go on.
#[tokio::test]
async fn logging_out_everywhere_ends_sessions_whose_tokens_were_just_cut_off() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let cut_off = "UPDATE accounts SET not_before = issued_at";
    sqlite(&gateway.path("portcullis.db"), cut_off).await;
    let request = gateway.request("POST", "/auth/logout-all").bearer(&tokens.access);
    assert_eq!(request.body("").send().await.status, 204);
    gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
}

/// As if another gateway had just ended them: the account tells before its revocation is read.
#[tokio::test]
async fn a_token_that_is_cut_off_changes_nothing_before_its_revocation_is_known() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let ended = "UPDATE accounts SET generation = generation + 1, not_before = issued_at";
    sqlite(&gateway.path("portcullis.db"), ended).await;
    assert_eq!(gateway.reaches(&tokens.access).await, 200, "no revocation says so");
    let asked = gateway.post("/auth/tokens", &json!({ "name": "late" }));
    asked.bearer(&tokens.access).send().await.is(401, "token_revoked");
}
