//! Attacks that once succeeded, each with a test that they no longer do.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;

use crate::harness::client::Response;
use crate::harness::h2::{self, get};
use crate::harness::upstream::{answer, write};
use crate::harness::{Gateway, Step, mint};

#[tokio::test]
async fn a_segment_with_only_a_parameter_is_not_part_of_the_prefix() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/s/t/*'\nupstream = 'app'\naccess = 'public'\nstrip_prefix = true\ninsecure_path = ['parameters', 'merge_slashes']\n\
         [[route]]\npath = '/s/t/t/*'\nupstream = 'app'\nstrip_prefix = true\ninsecure_path = ['parameters', 'merge_slashes']",
    )
    .await;
    gateway.get("/s/t/t/admin").send().await.is(401, "credentials_missing");
    for target in
        ["/;x/s/t/admin", "/;/s/t/admin", "/s/;/t/admin", "/;x/;x/s/t/admin", "/s//t/admin"]
    {
        assert_eq!(gateway.get(target).send().await.status, 200, "{target}");
        assert_eq!(gateway.upstream().last().target, "/admin", "{target}");
    }
}

/// An application that does not read the body of such a request would parse it as the next one.
#[tokio::test]
async fn a_connection_ends_after_a_body_that_the_application_may_not_read() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    gateway.upstream().answers("HTTP/1.1 204 No Content\r\n\r\n");
    let hidden = "GET /admin/delete-all HTTP/1.1\r\nHost: a\r\nX-Auth-User: root\r\n\r\n";
    let length = format!("Content-Length: {}\r\n\r\n{hidden}", hidden.len());
    let chunks =
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PATCH"] {
        for (upgrade, body) in [("", &length), ("", &chunks), (UPGRADE, &length)] {
            let mut connection = gateway.connect().await;
            connection
                .write(format!("{method} / HTTP/1.1\r\nHost: app.test\r\n{upgrade}{body}"))
                .await;
            assert_eq!(connection.response_to(method).await.status, 204, "{method} {body}");
            let received = gateway.upstream().last();
            assert_eq!(received.header("connection"), Some("close"), "{method} {body}");
            assert_eq!(received.header("upgrade"), None, "{method} {body}");
            gateway.upstream().until(|seen| seen.closed == seen.accepted).await;
        }
    }
}

/// Which requests are the last on their connection, and how many connections the application gets.
#[tokio::test]
async fn keep_alive_decides_after_which_requests_a_connection_is_used_again() {
    for (keep_alive, said, connections) in [
        ("", [None, Some("close"), Some("close"), None, Some("close"), None], 4),
        ("upstream.app.keep_alive = true\n", [None, None, None, None, Some("close"), None], 2),
        ("upstream.app.keep_alive = false\n", [Some("close"); 6], 6),
    ] {
        let gateway = Gateway::start(&format!(
            "{keep_alive}route = [{{ path = '/*', upstream = 'app', access = 'public' }}]"
        ))
        .await;
        let requests = [
            gateway.get("/"),
            gateway.request("POST", "/").body("x"),
            gateway.request("POST", "/").body(""),
            gateway.get("/"),
            gateway.request("DELETE", "/").body("x"),
            gateway.get("/"),
        ];
        for (request, said) in requests.into_iter().zip(said) {
            assert_eq!(request.send().await.status, 200);
            assert_eq!(gateway.upstream().last().header("connection"), said, "{keep_alive}");
        }
        assert_eq!(gateway.upstream().seen().accepted, connections, "{keep_alive}");
    }
}

const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\n";

/// An upstream announces a body that is not allowed and writes it late. It must not be read as the
/// response to another request.
#[tokio::test]
async fn a_late_body_is_never_the_response_to_the_next_request() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    let poison = "HTTP/1.1 200 OK\r\nX-Poison: 1\r\nContent-Length: 6\r\n\r\nPOISON";
    let late = |head: &str| vec![write(head), Step::Hold, write(poison)];
    gateway.upstream().does_at("/head", late("HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\n"));
    gateway
        .upstream()
        .does_at("/204", late("HTTP/1.1 204 No Content\r\nContent-Length: 80\r\n\r\n"));
    gateway
        .upstream()
        .does_at("/304", late("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"));
    for (method, target, status) in
        [("HEAD", "/head", 200), ("GET", "/204", 204), ("GET", "/304", 304)]
    {
        let mut connection = gateway.connect().await;
        let request = gateway.request(method, target).bytes();
        connection.write(request).await;
        assert_eq!(connection.response_to(method).await.status, status, "{target}");
        let before = gateway.upstream().seen().accepted;
        gateway.upstream().release();
        let next = gateway.get("/next").send().await;
        assert_eq!(
            (next.status, next.header("x-poison"), next.text().as_str()),
            (200, None, "ok"),
            "{target}"
        );
        assert_eq!(
            gateway.upstream().seen().accepted,
            before + 1,
            "{target}: on a connection of its own"
        );
    }
}

#[tokio::test]
async fn authorization_is_forwarded_only_if_it_was_verified() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/*'\nupstream = 'app'\ntoken_from = ['header', 'cookie', 'query']\nforward_authorization = true\n\
         [[route]]\npath = '/optional/*'\nupstream = 'app'\naccess = 'optional'\nforward_authorization = true\n\
         [[route]]\npath = '/public/*'\nupstream = 'app'\naccess = 'public'\nforward_authorization = true",
    )
    .await;
    let token = mint::token(&[]);
    let cookie = format!("__Host-portcullis={token}");
    let seen = |response: Response| {
        assert_eq!(response.status, 200, "{response:?}");
        gateway.upstream().last().header("authorization").map(str::to_owned)
    };
    let forged = mint::hmac().raw(r#"{"alg":"none"}"#, &json!({ "sub": "admin" }).to_string());
    let forged = format!("Bearer {forged}");
    for (other, is_a_passwords) in [
        ("Basic YTpi", true),
        ("negotiate YTpi", true),
        ("JWT a.b.c", false),
        ("Bearerx a.b.c", false),
        ("Bearer:a.b.c", false),
        ("Basic", false),
    ] {
        assert_eq!(
            seen(
                gateway
                    .get("/")
                    .header("Cookie", &cookie)
                    .header("Authorization", other)
                    .send()
                    .await
            ),
            None,
            "{other}"
        );
        assert_eq!(
            seen(
                gateway
                    .get(&format!("/?access_token={token}"))
                    .header("Authorization", other)
                    .send()
                    .await
            ),
            None,
            "{other}"
        );
        // Without a caller, a password scheme belongs to the application and is forwarded, but
        // nothing that could be taken for a token is forwarded unverified.
        let passed = seen(gateway.get("/optional").header("Authorization", other).send().await);
        assert_eq!(passed.as_deref(), is_a_passwords.then_some(other));
        assert_eq!(
            seen(gateway.get("/public").header("Authorization", other).send().await).as_deref(),
            Some(other)
        );
    }
    assert_eq!(
        seen(gateway.get("/optional").bearer(&token).send().await),
        Some(format!("Bearer {token}"))
    );
    gateway
        .get("/optional")
        .header("Authorization", &forged)
        .send()
        .await
        .is(401, "token_algorithm");
}

#[tokio::test]
async fn an_unused_length_is_not_forwarded() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    gateway
        .upstream()
        .does_at("/two", answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nabcdefgh\r\n0\r\n\r\n"));
    let response = gateway.get("/two").send().await;
    assert_eq!((response.header("content-length"), response.text().as_str()), (None, "abcdefgh"));
    let mut client = h2::Connection::open(&gateway).await;
    let answer = client.send(get("http://app.test/two")).await;
    assert_eq!(
        (answer.headers.get("content-length"), answer.body.as_slice()),
        (None, &b"abcdefgh"[..])
    );
}

#[tokio::test]
async fn max_headers_applies_to_http2() {
    let gateway =
        Gateway::start("server = { limits = { max_headers = 20 } }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    let mut client = h2::Connection::open(&gateway).await;
    let with = |count: usize| {
        let fields = (0..count).fold(Request::get("http://app.test/"), |request, index| {
            request.header(format!("x-{index}"), "v")
        });
        fields.body(Full::<Bytes>::default()).unwrap()
    };
    assert_eq!(client.send(with(10)).await.status, 200);
    let answer = client.send(with(40)).await;
    assert_eq!((answer.status, answer.reason().as_str()), (431, "headers_too_large"));
    assert_eq!(gateway.upstream().count(), 1);
}

/// A client that opens streams and no window must not hold the connections to the upstream.
#[tokio::test]
async fn unread_streams_release_the_upstream() {
    let gateway =
        Gateway::start("server = { limits = { idle_timeout = '400ms' } }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]")
            .await;
    gateway.upstream().does_at(
        "/flood",
        vec![write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n"), Step::Flood],
    );
    let mut client = h2::Connection::open(&gateway).await;
    // The client keeps the streams without reading: it never opens the window again.
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(client.head(get("http://app.test/flood")).await.unwrap());
    }
    gateway.upstream().until(|seen| seen.accepted == 5 && seen.closed == 5).await;
    drop(held);
}

#[tokio::test]
async fn other_spellings_of_content_fields_are_removed() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    let response = gateway
        .request("POST", "/")
        .header("Content_Length", "99")
        .header("Content.Type", "text/evil")
        .header("X-Original-URI", "/admin")
        .header("Content-Type", "text/plain")
        .body("body")
        .send()
        .await;
    assert_eq!(response.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(
        (received.header("content-length"), received.header("content-type")),
        (Some("4"), Some("text/plain"))
    );
    for name in ["content_length", "content.type", "x-original-uri"] {
        assert_eq!(received.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn separate_cookie_fields_count_as_one() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    let mut client = h2::Connection::open(&gateway).await;
    let crumbs = (0..150).fold(Request::get("http://app.test/"), |request, index| {
        request.header("cookie", format!("c{index}=v"))
    });
    assert_eq!(client.send(crumbs.body(Full::<Bytes>::default()).unwrap()).await.status, 200);
}

#[tokio::test]
async fn a_method_override_counts_once() {
    let gateway = Gateway::start(
        "[limit.few]\nrequests = 3\nper = '1h'\nkey = 'subject'\n[[route]]\npath = '/*'\nupstream = 'app'\nlimit = 'few'\nmethod_override = true",
    )
    .await;
    let token = mint::token(&[]);
    for expected in [200, 200, 200, 429] {
        assert_eq!(
            gateway.get("/").bearer(&token).header("X-HTTP-Method", "GET").send().await.status,
            expected
        );
    }
}

/// Large frames are split: no byte is lost, and the announced length is correct.
#[tokio::test]
async fn large_responses_arrive_whole_over_http2() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    let body = "abcdefghijklmnopqrstuvwxyz".repeat(8_000);
    gateway.upstream().does_at(
        "/large",
        answer(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())),
    );
    gateway.upstream().does_at(
        "/chunked",
        answer(&format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )),
    );
    let mut client = h2::Connection::open(&gateway).await;
    for target in ["http://app.test/large", "http://app.test/chunked"] {
        let answer = client.send(get(target)).await;
        assert!(answer.body == body.as_bytes(), "{target}: {} bytes", answer.body.len());
    }
}
