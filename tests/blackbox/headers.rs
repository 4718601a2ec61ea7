//! Header fields sent to the upstream and received from it (CONTRACT §4).

use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

use crate::harness::upstream::write;
use crate::harness::{Gateway, Step, mint};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";
const PROTECTED: &str = "route = [{ path = '/*', upstream = 'app' }]";

/// Trusts the peer as a proxy.
const BEHIND_A_PROXY: &str = "server = { trusted_proxies = ['127.0.0.1/32', '10.0.0.0/8'] }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]";

/// A name as an application could read it.
fn folded(name: &str) -> String {
    name.chars()
        .map(
            |letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' },
        )
        .collect()
}

#[tokio::test]
async fn clients_cannot_send_identity_headers_in_any_spelling() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\n[[route]]\npath = '/public/*'\nupstream = 'app'\naccess = 'public'\n\
         [[route]]\npath = '/other/*'\nupstream = 'app'\nidentity_headers = { X-Remote-User = 'sub' }",
    )
    .await;
    let token = mint::token(&["auditor"]);
    for name in [
        "X-Auth-User",
        "x-auth-user",
        "X-AUTH-USER",
        "X_Auth_User",
        "X.Auth.User",
        "X-Auth_User",
        "x~auth~user",
        "X!Auth|User",
        "X-Auth-User",
        "X-Auth-Email",
        "X_AUTH_ROLES",
        "x-auth-name",
        "X-Auth-Issuer",
        "X-Remote-User",
        "X_Remote_User",
        "x.remote.user",
    ] {
        for (path, user) in [("/a", Some("u-17")), ("/public/a", None), ("/other/a", None)] {
            let response = gateway
                .get(path)
                .bearer(&token)
                .header(name, "root")
                .header(name, "root")
                .send()
                .await;
            assert_eq!(response.status, 200);
            let received = gateway.upstream().last();
            assert!(
                !received.headers.iter().any(|(_, value)| value == "root"),
                "{name} {path}: {received:?}"
            );
            assert_eq!(received.header("x-auth-user"), user, "{name} {path}");
        }
    }
}

#[tokio::test]
async fn connection_cannot_remove_an_identity_header() {
    let gateway = Gateway::start(PROTECTED).await;
    for connection in [
        "X-Auth-User",
        "close, x-auth-user",
        "X-Auth-User, X-Auth-Roles, X-Forwarded-For, X-Request-Id, Host",
    ] {
        let response = gateway
            .get("/")
            .bearer(&mint::token(&["auditor"]))
            .header("Connection", connection)
            .header("X-Auth-User", "root")
            .send()
            .await;
        assert_eq!(response.status, 200);
        let received = gateway.upstream().last();
        assert_eq!(
            (received.header("x-auth-user"), received.header("x-auth-roles")),
            (Some("u-17"), Some("auditor"))
        );
        assert_eq!(
            (received.header("x-forwarded-for"), received.header("host")),
            (Some("127.0.0.1"), Some("app.test"))
        );
    }
}

#[tokio::test]
async fn hop_by_hop_fields_and_fields_named_by_connection_are_removed() {
    let gateway = Gateway::start(PUBLIC).await;
    let request = gateway
        .get("/")
        .header("Connection", "keep-alive, X-Private, x-gone")
        .header("X-Private", "1")
        .header("X-Gone", "1");
    let request = request
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "close")
        .header("Proxy-Authorization", "Basic eDp5");
    let request = request
        .header("TE", "gzip")
        .header("Trailer", "X-Checksum")
        .header("Proxy-Authenticate", "x")
        .header("X-Kept", "1")
        .header("Accept", "*/*");
    assert_eq!(request.send().await.status, 200);
    let received = gateway.upstream().last();
    for name in [
        "connection",
        "x-private",
        "x-gone",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "te",
        "upgrade",
    ] {
        assert_eq!(received.header(name), None, "{received:?}");
    }
    assert_eq!((received.header("x-kept"), received.header("accept")), (Some("1"), Some("*/*")));
}

#[tokio::test]
async fn fields_that_could_change_the_applications_view_are_removed() {
    let gateway = Gateway::start(PUBLIC).await;
    for name in [
        "Authorization",
        "X-Original-URL",
        "X-Original-Host",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "Forwarded",
        "X-Real-IP",
        "Client-IP",
        "X-Client-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "Proxy",
        "X-Forwarded",
        "X-Forwarded-Server",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-User",
        "X-Forwarded-Anything",
        "X_Forwarded_Proto",
        "X_Original_URL",
        "x.rewrite.url",
        "X_HTTP_Method_Override",
        "X_Real_IP",
        "Client_IP",
        "True.Client.IP",
        "X_Request_ID",
        "X_Forwarded_Host",
        "Transfer_Encoding",
        "TraceParent",
        "TraceState",
    ] {
        assert_eq!(gateway.get("/").header(name, "evil").send().await.status, 200, "{name}");
        let received = gateway.upstream().last();
        assert!(
            !received.headers.iter().any(|(_, value)| value.contains("evil")),
            "{name}: {received:?}"
        );
    }
}

#[tokio::test]
async fn similar_cookie_names_are_forwarded() {
    let gateway = Gateway::start(PUBLIC).await;
    for name in [
        "X-Auth-Users",
        "X-AuthUser",
        "X-Forward",
        "XForwardedFor",
        "X-Requested-With",
        "X-Original",
        "Proxy-Hint",
        "X-Auth",
        "User",
    ] {
        assert_eq!(gateway.get("/").header(name, "1").send().await.status, 200);
        assert_eq!(gateway.upstream().last().header(name), Some("1"));
    }
}

#[tokio::test]
async fn forwarding_headers_describe_the_received_request() {
    let gateway = Gateway::start(PUBLIC).await;
    let request = gateway
        .get("/")
        .host("App.test:8080")
        .header("X-Forwarded-For", "6.6.6.6")
        .header("X-Forwarded-Proto", "https");
    let request = request
        .header("X-Forwarded-Host", "evil.test")
        .header("Forwarded", "for=6.6.6.6")
        .header("X-Forwarded-For", "7.7.7.7");
    assert_eq!(
        request
            .header("X-Request-Id", "spoofed")
            .header("Traceparent", TRACEPARENT)
            .send()
            .await
            .status,
        200
    );
    let received = gateway.upstream().last();
    assert_eq!(received.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(received.header("x-forwarded-proto"), Some("http"));
    assert_eq!(received.header("x-forwarded-host"), Some("App.test:8080"));
    assert_eq!(received.header("host"), Some("App.test:8080"));
    assert_eq!(received.header("forwarded"), None);
    assert_ne!(received.header("x-request-id").unwrap(), "spoofed");
    assert!(!received.header("traceparent").unwrap().contains("0af7651916cd43dd8448eb211c80319c"));
    let line = gateway.access("/").await;
    assert_eq!(line["client.address"], "127.0.0.1");
    assert_eq!(line["request_id"], received.header("x-request-id").unwrap());
    assert!(received.header("traceparent").unwrap().contains(line["trace_id"].as_str().unwrap()));
}

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_trusted_proxy_is_believed_up_to_the_first_untrusted_address() {
    let gateway = Gateway::start(BEHIND_A_PROXY).await;
    for (lines, client) in [
        (&["198.51.100.1"][..], "198.51.100.1"),
        (&["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        (&["6.6.6.6", "198.51.100.1, 10.1.1.1"], "198.51.100.1"),
        (&["10.1.1.1"], "10.1.1.1"),
        (&["198.51.100.1, nonsense"], "127.0.0.1"),
        (&["[2001:db8::1]:99"], "2001:db8::1"),
        (&["::ffff:198.51.100.1"], "198.51.100.1"),
        (&[], "127.0.0.1"),
    ] {
        let mut request =
            gateway.get("/").header("Forwarded", "for=6.6.6.6").header("X-Real-IP", "6.6.6.6");
        for line in lines {
            request = request.header("X-Forwarded-For", line);
        }
        assert_eq!(request.header("X-Forwarded-Proto", "https").send().await.status, 200);
        let received = gateway.upstream().last();
        assert_eq!(received.header("x-forwarded-for"), Some(client), "{lines:?}");
        assert_eq!(
            (received.header("x-forwarded-proto"), received.header("x-real-ip")),
            (Some("https"), None)
        );
    }
}

#[tokio::test]
async fn forwarding_header_can_select_forwarded() {
    let gateway =
        Gateway::start(&BEHIND_A_PROXY.replace("] }", "], forwarded = 'forwarded' }")).await;
    let request = gateway.get("/").header("X-Forwarded-For", "6.6.6.6");
    let request = request.header(
        "Forwarded",
        "for=7.7.7.7, for=\"[2001:db8::1]:99\";proto=https;host=evil.test, For=10.1.1.1",
    );
    assert_eq!(request.send().await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(
        (received.header("x-forwarded-for"), received.header("forwarded")),
        (Some("2001:db8::1"), None)
    );
    assert_eq!(
        (received.header("x-forwarded-proto"), received.header("x-forwarded-host")),
        (Some("https"), Some("app.test"))
    );
}

#[tokio::test]
async fn request_id_and_trace_are_kept_from_a_trusted_proxy_only() {
    let gateway = Gateway::start(BEHIND_A_PROXY).await;
    let request = gateway
        .get("/kept")
        .header("X-Request-Id", "abc-123")
        .header("Traceparent", TRACEPARENT)
        .header("Tracestate", "a=b");
    assert_eq!(request.send().await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(received.header("x-request-id"), Some("abc-123"));
    assert!(
        received.header("traceparent").unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
        "{received:?}"
    );
    assert_eq!(received.header("tracestate"), Some("a=b"));
    assert_eq!(gateway.access("/kept").await["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    // Invalid and repeated ids are replaced.
    for ids in [&["a b"][..], &["one", "two"], &[""]] {
        let mut request = gateway.get("/").header("Traceparent", "00-zz");
        for id in ids {
            request = request.header("X-Request-Id", id);
        }
        assert_eq!(request.send().await.status, 200);
        let received = gateway.upstream().last();
        assert!(!ids.contains(&received.header("x-request-id").unwrap()));
        assert_ne!(received.header("traceparent"), Some("00-zz"));
    }
}

#[tokio::test]
async fn a_method_override_needs_access_for_both_methods() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nmethods = ['POST']\nupstream = 'app'\naccess = 'public'\nmethod_override = true\n\
         [[route]]\npath = '/*'\nmethods = ['DELETE']\nupstream = 'app'\nroles = ['admin']",
    )
    .await;
    let post = || gateway.request("POST", "/");
    assert_eq!(post().header("X-HTTP-Method-Override", "POST").send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-http-method-override"), Some("POST"));
    post().header("X-HTTP-Method-Override", "DELETE").send().await.is(401, "credentials_missing");
    post()
        .header("X-Method-Override", "delete")
        .bearer(&mint::token(&[]))
        .send()
        .await
        .is(403, "role_missing");
    post().header("X_HTTP_Method", "DELETE").send().await.is(401, "credentials_missing");
    assert_eq!(
        post()
            .header("X-HTTP-Method", "DELETE")
            .bearer(&mint::token(&["admin"]))
            .send()
            .await
            .status,
        200
    );
    post()
        .header("X-HTTP-Method", "POST")
        .header("X-Method-Override", "DELETE")
        .send()
        .await
        .is(400, "request_invalid");
    post().header("X-HTTP-Method", "PATCH").send().await.is(405, "method_not_allowed");
}

#[tokio::test]
async fn an_overriding_method_is_decided_like_the_method_itself() {
    let gateway = Gateway::start("route = [{ path = '/*', upstream = 'app', token_from = ['cookie'], method_override = true }]").await;
    let get = |name: &str, method: &str| {
        gateway
            .get("/")
            .header("Cookie", &format!("__Host-portcullis={}", mint::token(&[])))
            .header(name, method)
    };
    assert_eq!(get("X-HTTP-Method", "HEAD").send().await.status, 200);
    // Identified by a cookie, with an unsafe method: it needs the gateway's own origin, whatever
    // the override says.
    get("X-HTTP-Method-Override", "DELETE").send().await.is(403, "origin_foreign");
    assert_eq!(
        get("X-HTTP-Method-Override", "DELETE")
            .header("Origin", "http://app.test")
            .send()
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_override_cannot_use_a_method_that_is_never_forwarded() {
    let gateway = Gateway::start(
        "route = [{ path = '/*', upstream = 'app', access = 'public', method_override = true }]",
    )
    .await;
    for method in ["TRACE", "CONNECT", "trace"] {
        let response =
            gateway.request("POST", "/").header("X-Method-Override", method).send().await;
        assert!(matches!(response.status, 400 | 405), "{method}: {response:?}");
    }
}

#[tokio::test]
async fn authorization_is_forwarded_only_if_the_route_says_so() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\n[[route]]\npath = '/kept/*'\nupstream = 'app'\nforward_authorization = true\n\
         [[route]]\npath = '/public/*'\nupstream = 'app'\naccess = 'public'\nforward_authorization = true",
    )
    .await;
    let token = mint::token(&[]);
    let line = format!("Bearer {token}");
    for (path, kept) in
        [("/", None), ("/kept", Some(line.as_str())), ("/public", Some(line.as_str()))]
    {
        assert_eq!(
            gateway.get(path).bearer(&token).header("X_Authorization", "x").send().await.status,
            200
        );
        assert_eq!(gateway.upstream().last().header("authorization"), kept, "{path}");
    }
}

#[tokio::test]
async fn a_route_that_reads_no_authorization_passes_on_the_applications_own() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\ntoken_from = ['cookie', 'query']\nforward_authorization = true\n\
         [[route]]\npath = '/optional/*'\nupstream = 'app'\naccess = 'optional'\ntoken_from = ['cookie']\nforward_authorization = true\n\
         [[route]]\npath = '/soft/*'\nupstream = 'app'\nroles = ['admin']\nenforce = false\ntoken_from = ['cookie']\nforward_authorization = true\n\
         [[route]]\npath = '/dropped/*'\nupstream = 'app'\ntoken_from = ['cookie']",
    )
    .await;
    let token = mint::token(&[]);
    let cookie = format!("__Host-portcullis={token}");
    let own = "Bearer the-applications-own";
    let passed = async |path: &str, cookie: Option<&str>, line: &str| {
        let mut request = gateway.get(path).header("Authorization", line);
        if let Some(cookie) = cookie {
            request = request.header("Cookie", cookie);
        }
        let response = request.header("X_Authorization", "x").send().await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
        let received = gateway.upstream().last();
        (
            received.header("authorization").map(str::to_owned),
            received.header("x-auth-user").map(str::to_owned),
        )
    };
    let user = Some("u-17".to_owned());
    // The last two begin like one of our personal access tokens, and are none.
    for line in [own, "Basic YTpi", "JWT a.b.c", "Bearer pct_x", "Basic YTpwY3RfeA=="] {
        let kept = Some(line.to_owned());
        assert_eq!(passed("/", Some(&cookie), line).await, (kept.clone(), user.clone()));
        let by_query = format!("/?access_token={token}");
        assert_eq!(passed(&by_query, None, line).await, (kept.clone(), user.clone()));
        assert_eq!(passed("/optional", None, line).await, (kept.clone(), None));
        assert_eq!(passed("/optional", Some(&cookie), line).await, (kept.clone(), user.clone()));
        assert_eq!(passed("/soft", Some(&cookie), line).await, (kept, None));
        assert_eq!(passed("/dropped", Some(&cookie), line).await, (None, user.clone()));
    }
    let ours = format!("Bearer pct_{}", "a-_Z0".repeat(8) + "xyz");
    assert_eq!(passed("/", Some(&cookie), &ours).await, (None, user));
    gateway.get("/").header("Authorization", own).send().await.is(401, "credentials_missing");
}

#[tokio::test]
async fn values_of_identity_headers_are_exact() {
    let gateway = Gateway::start(
        "route = [{ path = '/*', upstream = 'app' }]\n[identity_headers]\nX-Auth-User = 'sub'\nX-Value = 'value'\nX-Deep = 'a.b'\nX-Exact = ['a.b']\nX-Auth-Roles = 'roles'",
    )
    .await;
    for (value, expected) in [
        (json!("alice"), Some("alice")),
        (json!("a b"), Some("a b")),
        (json!(" a "), Some("%20a%20")),
        (json!("100%"), Some("100%25")),
        (json!("a\r\nX-Auth-Roles: admin"), Some("a%0D%0AX-Auth-Roles: admin")),
        (json!("é"), Some("%C3%A9")),
        (json!("\u{0}\u{7f}\t"), Some("%00%7F%09")),
        (json!("a,b"), Some("a,b")),
        (json!(["a", "b,c", 3, true, " d"]), Some("a,b%2Cc,3,true,%20d")),
        (json!(17), Some("17")),
        (json!(1.5), Some("1.5")),
        (json!(false), Some("false")),
        (json!({ "x": 1 }), None),
    ] {
        let token = mint::claims(json!({ "value": value }));
        assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
        assert_eq!(gateway.upstream().last().header("x-value"), expected, "{value}");
    }
    let token = mint::claims(
        json!({ "a": { "b": "deep" }, "a.b": "exact", "roles": ["x", "y,z"], "sub": "u\u{e9}" }),
    );
    assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(
        (received.header("x-deep"), received.header("x-exact")),
        (Some("deep"), Some("exact"))
    );
    assert_eq!(
        (received.header("x-auth-roles"), received.header("x-auth-user")),
        (Some("x,y%2Cz"), Some("u%C3%A9"))
    );
}

#[tokio::test]
async fn an_email_counts_only_when_it_is_verified() {
    let gateway = Gateway::start(PROTECTED).await;
    for (verified, expected) in
        [(json!(true), Some("a@b.test")), (json!(false), None), (json!(null), Some("a@b.test"))]
    {
        let token =
            mint::claims(json!({ "email": "a@b.test", "name": "Ann", "email_verified": verified }));
        assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
        let received = gateway.upstream().last();
        assert_eq!(received.header("x-auth-email"), expected, "{verified}");
        assert_eq!(
            (received.header("x-auth-name"), received.header("x-auth-issuer")),
            (Some("Ann"), Some(mint::ISSUER))
        );
    }
}

#[tokio::test]
async fn only_declared_trailers_are_forwarded() {
    let gateway = Gateway::start(PROTECTED).await;
    let token = mint::token(&[]);
    let mut connection = gateway.connect().await;
    connection
        .write(format!(
            "POST / HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X-Checksum, X-Auth-User, X_Auth_Roles, X-Forwarded-For, Authorization, Content-Length, Host\r\n\r\n\
             3\r\nabc\r\n0\r\nX-Checksum: 1\r\nX-Undeclared: 1\r\nX-Auth-User: root\r\nX_Auth_Roles: admin\r\nX.Auth.User: root\r\n\
             X-Forwarded-For: 6.6.6.6\r\nAuthorization: x\r\nHost: evil.test\r\n\r\n"
        ))
        .await;
    assert_eq!(connection.response().await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(received.body, b"abc");
    assert_eq!(received.trailers.len(), 1, "{received:?}");
    assert!(
        received.trailers[0].0.eq_ignore_ascii_case("x-checksum") && received.trailers[0].1 == "1"
    );
    assert!(
        received
            .header("trailer")
            .is_none_or(|declared| declared.eq_ignore_ascii_case("x-checksum"))
    );
}

#[tokio::test]
async fn hop_by_hop_response_fields_are_removed() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().answers(
        "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nProxy-Connection: close\r\nUpgrade: h2c\r\nTrailer: X-T\r\n\
         TE: x\r\nProxy-Authenticate: Basic\r\nX-Kept: 1\r\nServer: app\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
    );
    let response = gateway.get("/").send().await;
    for name in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "te",
        "proxy-authenticate",
        "trailer",
    ] {
        assert_eq!(response.header(name), None, "{response:?}");
    }
    assert_eq!((response.header("x-kept"), response.header("server")), (Some("1"), Some("app")));
    assert_eq!(response.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
}

#[tokio::test]
async fn an_upstream_cannot_set_our_cookie() {
    let gateway =
        Gateway::start("server = { token_cookie = 'sess' }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    gateway.upstream().answers(
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: __Host-portcullis=x; Secure\r\nSet-Cookie: sess=1\r\nSet-Cookie:  SESS =1\r\nset-cookie: b=sess=1\r\n\
         Content-Length: 0\r\n\r\n",
    );
    assert_eq!(gateway.get("/").send().await.headers("set-cookie"), ["a=1; Path=/", "b=sess=1"]);
}

#[tokio::test]
async fn expect_and_early_data_of_a_client_are_not_repeated_blindly() {
    let gateway = Gateway::start(PUBLIC).await;
    assert_eq!(
        gateway
            .get("/")
            .header("Early-Data", "1")
            .header("Expect", "200-maybe")
            .send()
            .await
            .status,
        200
    );
    let received = gateway.upstream().last();
    assert_eq!((received.header("early-data"), received.header("expect")), (None, None));
}

#[tokio::test]
async fn informational_responses_do_not_end_the_exchange() {
    let gateway = Gateway::start(PUBLIC).await;
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    gateway.upstream().does(vec![
        Step::ReadBody,
        write(early),
        write(early),
        write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ]);
    let response = gateway.get("/").send().await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
}

#[tokio::test]
async fn values_pass_byte_for_byte() {
    let gateway = Gateway::start(PUBLIC).await;
    let request = b"GET / HTTP/1.1\r\nHost: app.test\r\nX-Latin: J\xfcrgen\r\nX-Utf8: J\xc3\xbcrgen\r\nX-Empty:\r\nX-Tab: a\tb\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n";
    assert_eq!(gateway.raw(request).await.status, 200);
    let received = gateway.upstream().last();
    for (name, value) in [
        ("x-latin", "J\u{fc}rgen"),
        ("x-utf8", "J\u{c3}\u{bc}rgen"),
        ("x-empty", ""),
        ("x-tab", "a\tb"),
    ] {
        assert_eq!(received.header(name), Some(value));
    }
    assert_eq!(
        received.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-two")).count(),
        2
    );
}

/// Names in cookies of other applications: Latin-1, UTF-8, a tab.
const NAMES: [&[u8]; 3] = [b"J\xfcrgen", b"J\xc3\xbcrgen", b"a\tb"];

/// The bytes as characters, as the harness returns them.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

#[tokio::test]
async fn cookies_of_the_application_are_forwarded_byte_for_byte() {
    let gateway = Gateway::start(PUBLIC).await;
    for name in NAMES {
        for (sent, expected) in [
            ([b"name=", name, b"; b=2"].concat(), [b"name=", name, b"; b=2"].concat()),
            (
                [b"__Host-portcullis=x; name=", name, b"; b=2"].concat(),
                [b"name=", name, b"; b=2"].concat(),
            ),
            ([b"a=1\r\nCookie: name=", name].concat(), [b"a=1; name=", name].concat()),
        ] {
            let response = gateway
                .raw(
                    [b"GET / HTTP/1.1\r\nHost: app.test\r\nCookie: ", sent.as_slice(), b"\r\n\r\n"]
                        .concat(),
                )
                .await;
            assert_eq!(response.status, 200);
            assert_eq!(gateway.upstream().last().header("cookie"), Some(latin(&expected).as_str()));
        }
    }
}

#[tokio::test]
async fn a_cookie_of_another_application_does_not_hide_ours() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', token_from = ['cookie'] }]")
            .await;
    let ours = format!("; __Host-portcullis={}", mint::token(&[]));
    for name in NAMES {
        let request = [
            b"GET / HTTP/1.1\r\nHost: app.test\r\nCookie: name=",
            name,
            ours.as_bytes(),
            b"\r\n\r\n",
        ]
        .concat();
        assert_eq!(gateway.raw(request).await.status, 200, "{}", latin(name));
        assert_eq!(gateway.upstream().last().header("x-auth-user"), Some("u-17"));
    }
}

#[tokio::test]
async fn connection_cannot_change_the_framing() {
    let gateway = Gateway::start(PUBLIC).await;
    let request = gateway
        .request("POST", "/")
        .header("Connection", "Content-Length, Transfer-Encoding, Content-Type")
        .header("Content-Type", "text/plain");
    assert_eq!(request.body("hello").send().await.status, 200);
    assert_eq!(gateway.upstream().last().body, b"hello");
    let mut connection = gateway.connect().await;
    connection
        .write("POST / HTTP/1.1\r\nHost: a\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    assert_eq!(connection.response().await.status, 200);
    assert_eq!(gateway.upstream().last().body, b"hello");
    gateway
        .upstream()
        .answers("HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(gateway.get("/").send_on(&mut connection).await.text(), "ok");
}

#[tokio::test]
async fn a_nameless_cookie_cannot_imitate_ours() {
    let gateway =
        Gateway::start("server = { token_cookie = 'sess' }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    // Browsers store these without a name and send them as `sess=evil` (RFC 6265bis §5.6).
    gateway.upstream().answers("HTTP/1.1 200 OK\r\nSet-Cookie: =sess=evil\r\nSet-Cookie:  = __Host-portcullis=evil; Secure\r\nSet-Cookie: =a=1\r\nContent-Length: 0\r\n\r\n");
    let response = gateway.get("/").send().await;
    assert!(
        !response.headers("set-cookie").iter().any(|line| line.contains("evil")),
        "{response:?}"
    );
}

/// Whatever a client sends, each identity header reaches the upstream once with the gateway's
/// value, or never.
#[test]
fn no_spelling_of_an_identity_header_is_forwarded() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gateway = runtime.block_on(Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\n[[route]]\npath = '/public/*'\nupstream = 'app'\naccess = 'public'\n\
         [[route]]\npath = '/soft/*'\nupstream = 'app'\nroles = ['nobody']\nenforce = false",
    ));
    let token = mint::token(&["auditor"]);
    let mut runner =
        TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let headers = proptest::collection::vec((name(), value()), 0..8);
    let trailers = proptest::collection::vec((name(), value()), 0..4);
    let path = prop_oneof![Just("/a"), Just("/public/a"), Just("/soft/a")];
    runner
        .run(&(path, headers, trailers, any::<bool>()), |(path, headers, trailers, declared)| {
            let mut request =
                format!("POST {path} HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n");
            for (name, value) in &headers {
                write!(request, "{name}: {value}\r\n").unwrap();
            }
            if declared {
                for (name, _) in &trailers {
                    write!(request, "Trailer: {name}\r\n").unwrap();
                }
            }
            request += "\r\n1\r\nx\r\n0\r\n";
            for (name, value) in &trailers {
                write!(request, "{name}: {value}\r\n").unwrap();
            }
            request += "\r\n";
            let response = runtime.block_on(gateway.raw(&request));
            prop_assert_eq!(response.status, 200, "{:?}\n{}", response, request);
            let received = gateway.upstream().last();
            let known = path == "/a";
            for (name, ours) in [
                ("x-auth-user", Some("u-17")),
                ("x-auth-roles", Some("auditor")),
                ("x-auth-issuer", Some(mint::ISSUER)),
                ("x-auth-email", None),
                ("x-auth-name", None),
            ] {
                let found: Vec<&str> = received
                    .headers
                    .iter()
                    .chain(&received.trailers)
                    .filter(|(found, _)| folded(found) == name)
                    .map(|(_, value)| value.as_str())
                    .collect();
                let expected: Vec<&str> = if known { ours.into_iter().collect() } else { Vec::new() };
                prop_assert_eq!(found, expected, "{}: {}\n{:?}", name, request, received);
            }
            for name in ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id", "traceparent"] {
                let found = received.headers.iter().chain(&received.trailers).filter(|(found, _)| folded(found) == name).count();
                prop_assert_eq!(found, 1, "{}: {}\n{:?}", name, request, received);
            }
            Ok(())
        })
        .unwrap();
}

/// Names that are read as a reserved name, or nearly so.
fn name() -> impl Strategy<Value = String> {
    let ours = prop_oneof![
        Just("x-auth-user"),
        Just("x-auth-roles"),
        Just("x-auth-email"),
        Just("x-auth-name"),
        Just("x-auth-issuer"),
        Just("x-forwarded-for"),
        Just("x-forwarded-host"),
        Just("x-request-id"),
        Just("traceparent"),
        Just("x-real-ip"),
        Just("connection"),
        Just("x-auth-userx"),
        Just("xauth-user"),
    ];
    (
        ours,
        proptest::collection::vec(
            (any::<bool>(), prop::sample::select(b"-_.~!|*+'`^#$%&".to_vec())),
            24,
        ),
    )
        .prop_map(|(name, how)| {
            if name == "connection" {
                return name.to_owned();
            }
            let how = how.into_iter().cycle();
            name.chars()
                .zip(how)
                .map(|(letter, (upper, sign))| match letter {
                    '-' => char::from(sign),
                    letter if upper => letter.to_ascii_uppercase(),
                    letter => letter,
                })
                .collect()
        })
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("root".to_owned()),
        Just("X-Auth-User".to_owned()),
        Just("x-auth-roles, x_auth_user".to_owned()),
        "[ -~]{0,12}".prop_map(|text| text.trim().to_owned())
    ]
}
