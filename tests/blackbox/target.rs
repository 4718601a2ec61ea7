//! Targets with one meaning are forwarded byte for byte; all others are refused (CONTRACT §2, rules
//! 2 to 5).

use crate::harness::Gateway;

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";

#[tokio::test]
async fn a_path_with_two_meanings_is_refused() {
    let gateway = Gateway::start(PUBLIC).await;
    for target in [
        "/a/../b",
        "/..",
        "/./a",
        "/a/.",
        "/a/..",
        "/../../etc/passwd",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "/a/.%2e",
        "/%2e",
        "/a/..%2fb",
        "/a%2f..%2fb",
        "/..;/a",
        "/a/..;x=1/b",
        "//",
        "//a",
        "/a//b",
        "/a/b//",
        "/a;x=1",
        "/;",
        "/a;",
        "/a/;/b",
        "/a\\b",
        "/..\\a",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a%5C..",
        "/a%3bx",
        "/a%3B",
        "/a%00",
        "/a%00.txt",
        "/a%0a",
        "/a%0d%0aX: y",
        "/a%09",
        "/a%1f",
        "/a%7f",
        "/a%C2%80",
        "/%2561",
        "/%252e%252e",
        "/%25252e",
        "/%25%32%65",
        "/%2%65",
        "/%",
        "/a%",
        "/a%4",
        "/a%zz",
        "/%u0041",
        "/a%C0%AF",
        "/%c0%ae%c0%ae/a",
        "/%E0%80%AF",
        "/%ED%A0%80",
        "/%F5%80%80%80",
        "/%ff",
        "/%E9",
        "/a\"b",
        "/a<b>",
        "/a{b}",
        "/a`b",
    ] {
        let response = gateway.get(target).send().await;
        assert_eq!(response.status, 400, "{target}: {response:?}");
        // For a byte that hyper itself rejects in a target, the response has no body.
        assert!(
            response.body.is_empty() || response.reason() == "target_ambiguous",
            "{target}: {response:?}"
        );
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn refusals_have_the_documented_members() {
    let gateway = Gateway::start(PUBLIC).await;
    let response = gateway.get("/a/../b?secret=1").header("X-Request-Id", "mine").send().await;
    response.is(400, "target_ambiguous");
    assert_eq!(response.json()["title"], "Bad Request");
    let line = gateway.access("/a/../b").await;
    assert_eq!(line["request_id"], response.json()["request_id"]);
    assert_eq!(
        (&line["outcome"], &line["reason"]),
        (&"refused".into(), &"target_ambiguous".into())
    );
    assert!(!line.to_string().contains("secret"));
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_are_refused() {
    let gateway = Gateway::start(PUBLIC).await;
    for path in [&b"/\xff"[..], b"/\xc3\xa9", b"/a\x01b", b"/a\x7fb", b"/a\x00b"] {
        let request = [b"GET ", path, b" HTTP/1.1\r\nHost: app.test\r\n\r\n"].concat();
        assert_eq!(gateway.raw(request).await.status, 400, "{path:?}");
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn the_matched_path_is_forwarded_byte_for_byte() {
    let gateway = Gateway::start(PUBLIC).await;
    for target in [
        "/",
        "/a",
        "/a/",
        "/a.b/..c/...",
        "/-_~!$&'()*+,=:@",
        "/%61",
        "/caf%C3%A9",
        "/caf%c3%a9",
        "/a%20b",
        "/100%25",
        "/%7Bx%7D",
        "/%7e",
        "/?",
        "/?a=//../;%2f%00%zz",
        "/a?b?c=/../",
        "/a?%",
        "/a?x=|{}^`[]",
        "/a?a=1&a=2&&=",
        "/a?\\",
        "/A?B",
    ] {
        assert_eq!(gateway.get(target).send().await.status, 200, "{target}");
        assert_eq!(gateway.upstream().last().target, target);
    }
}

#[tokio::test]
async fn an_encoded_form_of_a_protected_path_is_protected() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\n[[route]]\npath = '/admin/*'\nupstream = 'app'\nroles = ['admin']",
    )
    .await;
    for target in [
        "/admin",
        "/admin/",
        "/admin/x",
        "/%61dmin/x",
        "/%61%64%6d%69%6E",
        "/admin/%78",
        "/admin?x",
    ] {
        gateway.get(target).send().await.is(401, "credentials_missing");
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_fragment_is_neither_matched_nor_forwarded() {
    let gateway = Gateway::start(PUBLIC).await;
    let response = gateway.get("/a#/../b").send().await;
    if response.status == 200 {
        assert_eq!(gateway.upstream().last().target, "/a");
    } else {
        assert_eq!(response.status, 400);
    }
}

#[tokio::test]
async fn an_invalid_host_is_refused() {
    let gateway = Gateway::start(PUBLIC).await;
    for hosts in [
        "",
        "Host: \r\n",
        "Host: a.test\r\nHost: a.test\r\n",
        "Host: a.test\r\nHost: b.test\r\n",
        "Host: user@a.test\r\n",
        "Host: user:x@a.test\r\n",
        "Host: a.test/x\r\n",
        "Host: a.test:\r\n",
        "Host: a.test:x\r\n",
        "Host: a.test:65536\r\n",
        "Host: a.test:-1\r\n",
        "Host: a b\r\n",
        "Host: a.test, b.test\r\n",
        "Host: a.test#\r\n",
        "Host: a.test?\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: [a]\r\n",
        "Host: a.test\\\r\n",
        "Host: %61.test\r\n",
        "Host: a.test..\r\n",
        "Host: .a.test\r\n",
        "Host: \u{e9}.test\r\n",
    ] {
        let response = gateway.raw(format!("GET / HTTP/1.1\r\n{hosts}\r\n")).await;
        assert_eq!(response.status, 400, "{hosts:?}: {response:?}");
        assert!(
            response.body.is_empty() || response.reason() == "target_ambiguous",
            "{hosts:?}: {response:?}"
        );
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn every_valid_host_is_accepted_unchanged() {
    let gateway = Gateway::start(PUBLIC).await;
    for host in [
        "app.test",
        "APP.test:8080",
        "127.0.0.1",
        "[::1]:80",
        "localhost",
        "a_b.test",
        "xn--caf-dma.test",
    ] {
        assert_eq!(gateway.get("/").host(host).send().await.status, 200, "{host}");
        let received = gateway.upstream().last();
        assert_eq!(
            (received.header("host"), received.header("x-forwarded-host")),
            (Some(host), Some(host))
        );
    }
}

/// `app.test.` is the same name, and the application receives the name without the dot.
#[tokio::test]
async fn a_final_dot_of_the_host_is_ignored() {
    let gateway = Gateway::start(
        "route = [{ host = 'app.test', path = '/*', upstream = 'app', access = 'public' }]",
    )
    .await;
    for (host, sent) in [("app.test.", "app.test"), ("app.test.:81", "app.test:81")] {
        assert_eq!(gateway.get("/").host(host).send().await.status, 200, "{host}");
        assert_eq!(gateway.upstream().last().header("host"), Some(sent));
    }
    gateway.get("/").host("app.test..").send().await.is(400, "target_ambiguous");
}

#[tokio::test]
async fn the_absolute_form_must_agree_with_host() {
    let gateway = Gateway::start(PUBLIC).await;
    for (target, host, status) in [
        ("http://app.test/a", "app.test", 200),
        ("http://APP.test/a", "app.test", 200),
        ("http://app.test:80/a", "app.test", 200),
        ("http://app.test/a", "other.test", 400),
        ("http://app.test:81/a", "app.test", 400),
        ("http://user@app.test/a", "app.test", 400),
        ("http://app.test/../a", "app.test", 400),
        ("ftp://app.test/a", "app.test", 400),
        ("app.test/a", "app.test", 400),
        ("a", "app.test", 400),
        ("*", "app.test", 400),
    ] {
        let response = gateway.get(target).host(host).send().await;
        assert_eq!(response.status, status, "{target} {host}: {response:?}");
        if status == 200 {
            assert_eq!(gateway.upstream().last().target, "/a", "{target}");
        }
    }
    assert_eq!(gateway.get("http://app.test").send().await.status, 200);
    assert_eq!(gateway.upstream().last().target, "/");
    assert_eq!(gateway.raw("GET http://app.test/a HTTP/1.1\r\n\r\n").await.status, 400);
}

#[tokio::test]
async fn http_1_0_may_omit_the_host() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/a'\nupstream = 'app'\naccess = 'public'\n\
         [[route]]\nhost = 'app.test'\npath = '/b'\nupstream = 'app'\naccess = 'public'",
    )
    .await;
    for (request, status) in [
        ("GET /a HTTP/1.0\r\n\r\n", " 200 "),
        ("GET /b HTTP/1.0\r\n\r\n", " 404 "),
        ("GET /a HTTP/1.0\r\nHost:\r\n\r\n", " 400 "),
    ] {
        let mut connection = gateway.connect().await;
        connection.write(request).await;
        let answer = String::from_utf8(connection.closed().await).unwrap();
        assert!(answer.contains(status), "{request}: {answer}");
    }
    assert_eq!(gateway.upstream().last().header("host"), Some(""));
    let mut connection = gateway.connect().await;
    connection.write("GET /a HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    let answer = String::from_utf8(connection.closed().await).unwrap();
    assert!(answer.contains(" 200 ") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test]
async fn connect_trace_and_a_star_are_never_forwarded() {
    let gateway = Gateway::start(PUBLIC).await;
    for (method, target) in
        [("TRACE", "/"), ("TRACE", "/a"), ("CONNECT", "app.test:443"), ("CONNECT", "app.test")]
    {
        let response = gateway.request(method, target).send().await;
        assert_eq!(response.status, 405, "{method} {target}: {response:?}");
        response.is(405, "method_not_allowed");
        assert!(
            response.header("allow").is_some_and(|allow| !allow.contains(method)),
            "{response:?}"
        );
    }
    gateway.request("OPTIONS", "*").send().await.is(400, "target_ambiguous");
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_relaxed_route_matches_the_path_as_its_application_reads_it() {
    let gateway = Gateway::start(
        "[[route]]\nname = 'old'\npath = '/old/*'\nupstream = 'app'\naccess = 'public'\ninsecure_path = ['merge_slashes', 'parameters', 'encoded_slash']\n\
         [[route]]\nname = 'admin'\npath = '/old/admin/*'\nupstream = 'app'\ninsecure_path = ['merge_slashes', 'parameters', 'encoded_slash']\n\
         [[route]]\nname = 'strict'\npath = '/old/strict/*'\nupstream = 'app'\naccess = 'public'\n\
         [[route]]\nname = 'merging'\npath = '/merging/*'\nupstream = 'app'\naccess = 'public'\ninsecure_path = ['merge_slashes']",
    )
    .await;
    for (target, status) in [
        ("/old//a", 200),
        ("//old/a", 200),
        ("/old;x=1/a;y", 200),
        ("/old%2fa", 200),
        ("/old/a%2Fb;x//c", 200),
        ("/old//admin/x", 401),
        ("/old/admin;x=1/x", 401),
        ("/old%2Fadmin%2Fx", 401),
        ("/old/%2Fadmin", 401),
        ("//old;a//;b/admin", 401),
        ("/old/../a", 400),
        ("/old/..;x/a", 400),
        ("/old/..%2fa", 400),
        ("/old%2f..%2fadmin", 400),
        ("/old/.;/a", 400),
        ("/old/a%5c", 400),
        ("/old//strict/a", 400),
        ("/old/strict;x/a", 400),
        ("/old/strict%2Fa", 400),
        ("/old/strict/a", 200),
        ("/merging//a", 200),
        ("/merging/a;x", 400),
        ("/merging/a%2fb", 400),
        ("/old/a;%2F..", 400),
    ] {
        let response = gateway.get(target).send().await;
        assert_eq!(response.status, status, "{target}: {response:?}");
        if status == 200 {
            assert_eq!(gateway.upstream().last().target, target);
        }
    }
}

/// File names that a browser encodes, and some that it does not.
#[tokio::test]
async fn a_file_can_have_any_name() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/files/*'\nupstream = 'app'\naccess = 'public'\ninsecure_path = ['encoded_semicolon', 'encoded_backslash', 'encoded_percent']\n\
         [[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'",
    )
    .await;
    for (name, elsewhere) in [
        ("a%3Bb", 400),
        ("a%5Cb", 400),
        ("100%2541", 400),
        ("report[1].pdf", 200),
        ("a|b", 200),
        ("a^b", 200),
    ] {
        for (target, status) in [(format!("/files/{name}"), 200), (format!("/{name}"), elsewhere)] {
            let response = gateway.get(&target).send().await;
            assert_eq!(response.status, status, "{target}: {response:?}");
            if status == 200 {
                assert_eq!(gateway.upstream().last().target, target);
            }
        }
    }
    for target in ["/files/..%5Cx", "/files/..%3Bx/y", "/files/%252e%252e/x", "/files/a%252Fb"] {
        gateway.get(target).send().await.is(400, "target_ambiguous");
    }
}

#[tokio::test]
async fn strip_prefix_removes_whole_segments_as_received() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/reports/*'\nupstream = 'app'\naccess = 'public'\nstrip_prefix = true\n\
         [[route]]\npath = '/a/{b}/*'\nupstream = 'app'\naccess = 'public'\nstrip_prefix = true\n\
         [[route]]\npath = '/reports/admin/*'\nupstream = 'app'\n\
         [[route]]\npath = '/old/*'\nupstream = 'app'\naccess = 'public'\nstrip_prefix = true\ninsecure_path = ['merge_slashes', 'encoded_slash']",
    )
    .await;
    for (target, sent) in [
        ("/reports/q3", "/q3"),
        ("/reports", "/"),
        ("/reports/", "/"),
        ("/reports?x=/y", "/?x=/y"),
        ("/%72eports/q%33?", "/q%33?"),
        ("/reports/reports", "/reports"),
        ("/a/%62/c/d", "/c/d"),
        ("/old///a//b", "/a//b"),
        ("//old//", "/"),
        ("/old/%2Fevil.test", "/%2Fevil.test"),
    ] {
        assert_eq!(gateway.get(target).send().await.status, 200, "{target}");
        assert_eq!(gateway.upstream().last().target, sent, "{target}");
    }
    gateway.get("/reports/admin").send().await.is(401, "credentials_missing");
    gateway.get("/old%2Fa/b").send().await.is(400, "target_ambiguous");
}
