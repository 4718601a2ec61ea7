//! Authorization: roles, scopes, claims, issuers, and routes that do not enforce (CONTRACT §2,
//! rules 7 and 9).

use serde_json::json;

use crate::harness::Gateway;
use crate::harness::mint::{claims, now, token};

#[tokio::test]
async fn one_of_the_roles_is_enough() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', roles = ['auditor', 'admin'] }]")
            .await;
    for (roles, passes) in [
        (json!(["auditor"]), true),
        (json!(["x", "admin"]), true),
        (json!("x admin"), true),
        (json!(["Admin"]), false),
        (json!(["admin x"]), false),
        (json!([]), false),
        (json!(null), false),
    ] {
        let response = gateway.get("/").bearer(&claims(json!({ "roles": roles }))).send().await;
        assert_eq!(response.status, if passes { 200 } else { 403 }, "{roles}");
        if !passes {
            response.is(403, "role_missing");
            assert_eq!(
                response.header("www-authenticate"),
                Some("Bearer realm=\"portcullis\", error=\"insufficient_scope\"")
            );
            assert!(!response.text().contains("auditor"), "a client learns no role name");
        }
    }
    assert_eq!(gateway.access("/").await["reason"], "authorized");
}

#[tokio::test]
async fn every_requirement_of_a_route_must_be_met() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\nroles = ['a', 'b']\nall_roles = ['c', 'd']\nscopes = ['read', 'write']\nclaims = { tenant = ['acme', 7], 'org.level' = [3], staff = [true] }",
    )
    .await;
    let whole = json!({ "roles": ["a", "c", "d"], "scope": "read", "scp": ["write"], "tenant": "acme", "org": { "level": 3 }, "staff": true });
    for (change, status, reason) in [
        (json!({}), 200, ""),
        (json!({ "roles": ["b", "c", "d"] }), 200, ""),
        (json!({ "scope": "x write read", "scp": null }), 200, ""),
        (json!({ "tenant": 7 }), 200, ""),
        (json!({ "tenant": ["other", "acme"] }), 200, ""),
        (json!({ "roles": ["c", "d"] }), 403, "role_missing"),
        (json!({ "roles": ["a", "c"] }), 403, "role_missing"),
        (json!({ "scope": "rea", "scp": null }), 403, "scope_missing"),
        (json!({ "scp": null }), 403, "scope_missing"),
        (json!({ "tenant": "evil" }), 403, "claim_mismatch"),
        (json!({ "tenant": "7" }), 403, "claim_mismatch"),
        (json!({ "tenant": null }), 403, "claim_mismatch"),
        (json!({ "tenant": { "acme": 1 } }), 403, "claim_mismatch"),
        (json!({ "org": 3 }), 403, "claim_mismatch"),
        (json!({ "staff": "true" }), 403, "claim_mismatch"),
    ] {
        let mut all = whole.clone();
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let response = gateway.get("/").bearer(&claims(all)).send().await;
        assert_eq!(response.status, status, "{change}: {response:?}");
        if status != 200 {
            response.is(403, reason);
        }
    }
}

#[tokio::test]
async fn roles_are_read_from_the_configured_claim() {
    for (at, held) in [
        ("'realm_access.roles'", json!({ "realm_access": { "roles": ["admin"] } })),
        ("['https://example.com/roles']", json!({ "https://example.com/roles": ["admin"] })),
        ("'groups'", json!({ "groups": "user admin" })),
    ] {
        let gateway = Gateway::start(&format!(
            "route = [{{ path = '/*', upstream = 'app', roles = ['admin'] }}]\n[issuer.corp]\nissuer = 'https://login.test/corp'\naudience = ['reports']\n\
             algorithms = ['HS256']\nsecret = {{ file = 'corp.secret' }}\nroles = {at}"
        ))
        .await;
        assert_eq!(gateway.get("/").bearer(&claims(held)).send().await.status, 200, "{at}");
        gateway.get("/").bearer(&token(&["admin"])).send().await.is(403, "role_missing");
    }
}

#[tokio::test]
async fn a_route_that_does_not_enforce_counts_and_forwards() {
    let gateway = Gateway::start(
        "[[route]]\nname = 'soft'\npath = '/*'\nupstream = 'app'\nroles = ['admin']\nenforce = false\nforward_authorization = true\ntoken_from = ['header', 'cookie']",
    )
    .await;
    let expired = claims(json!({ "iat": now() - 100, "exp": now() - 60 }));
    for (path, bearer, reason) in [
        ("/none", None, "credentials_missing"),
        ("/role", Some(token(&["user"])), "role_missing"),
        ("/old", Some(expired), "token_expired"),
    ] {
        let request = bearer.iter().fold(gateway.get(path), |request, token| request.bearer(token));
        let response = request.header("X-Auth-User", "root").send().await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
        let received = gateway.upstream().last();
        for name in ["authorization", "x-auth-user", "x-auth-roles", "x-auth-issuer"] {
            assert_eq!(received.header(name), None, "{path}");
        }
        let line = gateway.access(path).await;
        assert_eq!(
            (&line["outcome"], &line["reason"]),
            (&json!("would_refuse"), &json!(reason)),
            "{line}"
        );
        let labels =
            ["route=\"soft\"", "outcome=\"would_refuse\"", &format!("reason=\"{reason}\"")];
        assert_eq!(
            gateway.metric_value("portcullis_auth_decisions_total", &labels).await,
            Some(1.0)
        );
    }
    assert_eq!(gateway.get("/good").bearer(&token(&["admin"])).send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-user"), Some("u-17"));
    assert!(gateway.upstream().last().header("authorization").is_some());
}

#[tokio::test]
async fn malformed_requests_and_foreign_origins_are_always_refused() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\nenforce = false\ntoken_from = ['header', 'cookie']\nlimit = 'few'\n[limit.few]\nrequests = 4\nper = '1h'",
    )
    .await;
    let cookie = format!("__Host-portcullis={}", token(&[]));
    gateway
        .get("/")
        .header("Authorization", "Bearer")
        .send()
        .await
        .is(400, "credentials_malformed");
    gateway
        .get("/")
        .bearer("a.b.c")
        .header("Cookie", &cookie)
        .send()
        .await
        .is(400, "credentials_ambiguous");
    gateway
        .request("POST", "/")
        .header("Cookie", &cookie)
        .header("Origin", "https://evil.test")
        .send()
        .await
        .is(403, "origin_foreign");
    assert_eq!(gateway.get("/").send().await.status, 200);
    gateway.get("/").send().await.is(429, "rate_limited");
    gateway.get("/../a").send().await.is(400, "target_ambiguous");
}
