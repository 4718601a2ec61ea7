//! HTTP/2 with prior knowledge over cleartext, through the same pipeline as HTTP/1.1 (CONTRACT §2,
//! `h2c`).

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;

use crate::harness::h2::{self, get};
use crate::harness::upstream::write;
use crate::harness::{Gateway, Step, mint};

const PROTECTED: &str = "[[route]]\npath = '/*'\nupstream = 'app'\n[[route]]\npath = '/public/*'\nupstream = 'app'\naccess = 'public'";

fn with_token(target: &str) -> http::request::Builder {
    Request::get(target).header("authorization", format!("Bearer {}", mint::token(&["auditor"])))
}

#[tokio::test]
async fn h2c_with_prior_knowledge_is_supported() {
    let gateway = Gateway::start(PROTECTED).await;
    let mut client = h2::Connection::open(&gateway).await;
    let answer = client.send(get("http://app.test/a?b=c")).await;
    assert_eq!((answer.status, answer.reason().as_str()), (401, "credentials_missing"));
    assert!(answer.headers.contains_key("www-authenticate"));
    let request = with_token("http://app.test:8080/a?b=c")
        .header("x-auth-user", "root")
        .header("x_auth_roles", "admin")
        .header("te", "trailers");
    let answer = client.send(request.body(Full::default()).unwrap()).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ok"[..]));
    let received = gateway.upstream().last();
    assert_eq!(
        (received.target.as_str(), received.header("host"), received.header("x-forwarded-host")),
        ("/a?b=c", Some("app.test:8080"), Some("app.test:8080"))
    );
    assert_eq!(
        (
            received.header("x-auth-user"),
            received.header("x-auth-roles"),
            received.header("x_auth_roles")
        ),
        (Some("u-17"), Some("auditor"), None)
    );
    assert_eq!(
        (received.header("authorization"), received.header("x-forwarded-proto")),
        (None, Some("http"))
    );
}

#[tokio::test]
async fn cookie_fields_are_joined() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', token_from = ['cookie'] }]")
            .await;
    let mut client = h2::Connection::open(&gateway).await;
    let ours = format!("__Host-portcullis={}", mint::token(&[]));
    let request = Request::get("http://app.test/")
        .header("cookie", "a=1")
        .header("cookie", &ours)
        .header("cookie", "b=2");
    assert_eq!(client.send(request.body(Full::default()).unwrap()).await.status, 200);
    assert_eq!(gateway.upstream().last().header("cookie"), Some("a=1; b=2"));
    let request = Request::get("http://app.test/").header("cookie", &ours).header("cookie", &ours);
    let answer = client.send(request.body(Full::default()).unwrap()).await;
    assert_eq!((answer.status, answer.reason().as_str()), (400, "credentials_ambiguous"));
}

#[tokio::test]
async fn cookies_of_the_application_are_joined_on_public_routes_too() {
    let gateway = Gateway::start(PROTECTED).await;
    let mut client = h2::Connection::open(&gateway).await;
    let request =
        Request::get("http://app.test/public").header("cookie", "a=1").header("cookie", "b=2");
    assert_eq!(client.send(request.body(Full::default()).unwrap()).await.status, 200);
    assert_eq!(gateway.upstream().last().header("cookie"), Some("a=1; b=2"));
}

#[tokio::test]
async fn authority_and_host_must_agree() {
    let gateway = Gateway::start(PROTECTED).await;
    let mut client = h2::Connection::open(&gateway).await;
    for (host, status) in [("app.test", 200), ("APP.test", 200), ("other.test", 400)] {
        let request =
            Request::get("http://app.test/public").version(Version::HTTP_2).header("host", host);
        assert_eq!(
            client.send(request.body(Full::default()).unwrap()).await.status,
            status,
            "{host}"
        );
    }
    for target in [
        "http://user@app.test/public",
        "http://app.test/public/%2e%2e/a",
        "http://app.test/public//a",
        "http://app.test/public/a;b",
    ] {
        assert_eq!(client.send(get(target)).await.status, 400, "{target}");
    }
}

#[tokio::test]
async fn bodies_and_trailers_pass() {
    let gateway = Gateway::start(PROTECTED).await;
    gateway
        .upstream()
        .answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\nGrpc-Status: 0\r\n\r\n");
    let mut client = h2::Connection::open(&gateway).await;
    let body = Bytes::from(vec![b'x'; 300_000]);
    let request = Request::post("http://app.test/public")
        .header("te", "trailers")
        .body(Full::new(body.clone()))
        .unwrap();
    let answer = client.send(request).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hello"[..]));
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    assert!(
        !answer.headers.contains_key("connection")
            && !answer.headers.contains_key("transfer-encoding")
    );
    assert_eq!(gateway.upstream().last().body, body);
}

#[tokio::test]
async fn streams_of_one_connection_do_not_wait_for_each_other() {
    let gateway = Gateway::start(PROTECTED).await;
    gateway.upstream().does_at(
        "/public/slow",
        vec![Step::ReadBody, Step::Hold, write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")],
    );
    let mut client = h2::Connection::open(&gateway).await;
    let mut other = client.clone();
    let slow = tokio::spawn(async move { other.send(get("http://app.test/public/slow")).await });
    gateway.upstream().until(|seen| seen.requests.len() == 1).await;
    assert_eq!(client.send(get("http://app.test/public/fast")).await.body, b"ok");
    gateway.upstream().release();
    assert_eq!(slow.await.unwrap().body, b"slow");
}

#[tokio::test]
async fn a_cancelled_stream_closes_the_connection_to_the_upstream() {
    let gateway = Gateway::start(PROTECTED).await;
    gateway.upstream().does_at("/public/slow", vec![Step::ReadBody, Step::Hold]);
    let mut client = h2::Connection::open(&gateway).await;
    let mut other = client.clone();
    let slow =
        tokio::spawn(async move { other.send(get("http://app.test/public/slow")).await.status });
    gateway.upstream().until(|seen| seen.requests.len() == 1).await;
    slow.abort();
    gateway.upstream().until(|seen| seen.closed == 1).await;
    assert_eq!(client.send(get("http://app.test/public/a")).await.status, 200);
}

/// The bytes of a request with these fields, each as a literal (RFC 9113 §6.2, RFC 7541 §6.2.2).
fn frames(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        &length[1..],
        b"\x01\x05\0\0\0\x01",
        block.as_slice(),
    ]
    .concat()
}

/// The type of the first frame in response to the first stream: HEADERS (1), RST_STREAM (3), GOAWAY
/// (7); 0 if the connection ends without one.
async fn answer_to(gateway: &Gateway, fields: &[(&str, &str)]) -> u8 {
    let mut connection = gateway.connect().await;
    connection.write(frames(fields)).await;
    while let Some(head) = connection.exactly(9).await {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        if matches!(head[3], 1 | 3 | 7) {
            return head[3];
        }
        connection.exactly(length as usize).await;
    }
    0
}

#[tokio::test]
async fn invalid_http_2_requests_never_reach_the_upstream() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', access = 'public' }]").await;
    let usual =
        [(":method", "GET"), (":scheme", "http"), (":authority", "app.test"), (":path", "/")];
    let without =
        |name: &str| usual.into_iter().filter(|(found, _)| *found != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| {
        [without(name).as_slice(), &[(name, value)]].concat()
    };
    for fields in [
        with("transfer-encoding", "chunked"),
        with("connection", "x"),
        with("upgrade", "websocket"),
        with("proxy-connection", "x"),
        with("te", "gzip"),
        with("X-Upper", "1"),
        with("x", "1\r\nx-auth-user: root"),
        with("x", "1\0"),
        with("x\r\ny", "1"),
        with("x y", "1"),
        with("", "1"),
        with(":unknown", "1"),
        with(":path", ""),
        with(":path", "a"),
        with(":path", "*"),
        with(":path", "/a b"),
        with(":path", "/a\r\nx: y"),
        with(":path", "http://app.test/"),
        with(":path", "/../a"),
        with(":scheme", "ftp"),
        with(":authority", ""),
        with(":authority", "user@app.test"),
        with(":authority", "app.test/x"),
        with(":method", "G T"),
        with(":method", "TRACE"),
        without(":path"),
        without(":method"),
        without(":scheme"),
        without(":authority"),
        [usual.as_slice(), &[(":path", "/b")]].concat(),
        [usual.as_slice(), &[(":authority", "b.test")]].concat(),
        [usual.as_slice(), &[("host", "b.test")]].concat(),
        [usual.as_slice(), &[("host", "app.test"), ("host", "app.test")]].concat(),
        [&[("x", "1")], usual.as_slice()].concat(),
        [usual.as_slice(), &[("content-length", "5")]].concat(),
        [usual.as_slice(), &[("content-length", "0"), ("content-length", "5")]].concat(),
        [usual.as_slice(), &[("content-length", "0"), ("content-length", "0")]].concat(),
        [usual.as_slice(), &[("content-length", "0, 0")]].concat(),
    ] {
        let answer = answer_to(&gateway, &fields).await;
        assert_eq!(
            gateway.upstream().count(),
            0,
            "{fields:?} was answered by a frame of type {answer}: {:?}",
            gateway.upstream().seen()
        );
    }
    assert_eq!(answer_to(&gateway, &usual).await, 1);
    assert_eq!(gateway.upstream().count(), 1);
}

#[tokio::test]
async fn a_drain_sends_goaway_and_finishes_the_streams() {
    let gateway = Gateway::start(PROTECTED).await;
    gateway.upstream().does_at(
        "/public/slow",
        vec![Step::ReadBody, Step::Hold, write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")],
    );
    let mut client = h2::Connection::open(&gateway).await;
    let mut other = client.clone();
    let slow = tokio::spawn(async move { other.send(get("http://app.test/public/slow")).await });
    gateway.upstream().until(|seen| seen.requests.len() == 1).await;
    gateway.signal("TERM");
    gateway.log().until("it drains", |line| line["message"] == "draining").await;
    gateway.upstream().release();
    assert_eq!(slow.await.unwrap().body, b"slow");
    client.closed().await;
    assert_eq!(gateway.exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_broken_response_resets_only_its_stream() {
    let gateway = Gateway::start(PROTECTED).await;
    gateway.upstream().does_at(
        "/public/cut",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"), Step::Close],
    );
    let mut client = h2::Connection::open(&gateway).await;
    let head = client.head(get("http://app.test/public/cut")).await.unwrap();
    assert!(http_body_util::BodyExt::collect(head.into_body()).await.is_err());
    assert_eq!(client.send(get("http://app.test/public")).await.status, 200);
}

#[tokio::test]
async fn an_upgrade_over_http_2_is_refused() {
    let gateway = Gateway::start(PROTECTED).await;
    let mut client = h2::Connection::open(&gateway).await;
    let request = Request::get("http://app.test/public").header("sec-websocket-key", "x");
    assert_eq!(client.send(request.body(Full::default()).unwrap()).await.status, 200);
    assert_eq!(gateway.upstream().last().header("upgrade"), None);
    let answer = client.send(Request::connect("app.test:443").body(Full::default()).unwrap()).await;
    assert_eq!((answer.status, answer.reason().as_str()), (405, "method_not_allowed"));
}

#[tokio::test]
async fn the_idle_timeout_closes_idle_connections_only() {
    let gateway = Gateway::start(&format!(
        "server.limits = {{ idle_timeout = '400ms', header_timeout = '400ms' }}\n{PROTECTED}"
    ))
    .await;
    gateway.upstream().does_at(
        "/public/slow",
        vec![
            Step::ReadBody,
            Step::Wait(std::time::Duration::from_millis(1200)),
            write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow"),
        ],
    );
    let mut client = h2::Connection::open(&gateway).await;
    assert_eq!(client.send(get("http://app.test/public/slow")).await.body, b"slow");
    client.closed().await;
    let mut silent = h2::Connection::open(&gateway).await;
    silent.closed().await;
}

/// RFC 9113 §8.2.1. The application uses HTTP/1.1, which would remove the spaces.
#[tokio::test]
async fn values_with_leading_or_trailing_spaces_are_refused() {
    let gateway = Gateway::start(PROTECTED).await;
    let mut client = h2::Connection::open(&gateway).await;
    for value in [" a", "a ", "\ta"] {
        let request = Request::get("http://app.test/public")
            .header("x", http::HeaderValue::from_str(value).unwrap())
            .body(Full::default())
            .unwrap();
        let answer = client.send(request).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (400, "framing_invalid"),
            "{value:?}"
        );
    }
    assert_eq!(client.send(get("http://app.test/public")).await.status, 200);
}

/// A POST of which only the first part has arrived.
fn upload(path: &str) -> Vec<u8> {
    let mut upload = frames(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "app.test"),
        (":path", path),
    ]);
    // END_HEADERS without END_STREAM: the stream continues.
    upload[HEADERS + 4] = 4;
    upload.extend_from_slice(b"\0\0\x05\0\0\0\0\0\x01begun");
    upload
}

/// hyper takes such a stream for one that has ended.
#[tokio::test]
async fn an_upload_that_is_reset_without_an_error_is_incomplete() {
    let gateway = Gateway::start(PROTECTED).await;
    for number in 0..20 {
        let mut connection = gateway.connect().await;
        connection.write(upload(&format!("/public/{number}"))).await;
        gateway.upstream().until(|seen| seen.requests.len() == number + 1).await;
        // DATA and RST_STREAM with NO_ERROR.
        connection.write(b"\0\0\x03\0\0\0\0\0\x01end\0\0\x04\x03\0\0\0\0\x01\0\0\0\0").await;
        gateway.upstream().until(|seen| seen.closed == number + 1).await;
    }
    let requests = gateway.upstream().seen().requests;
    assert_eq!(requests.iter().filter(|request| request.complete).count(), 0);
}

/// The offset of the first HEADERS frame in [`frames`]: after the preface and empty settings.
const HEADERS: usize = 24 + 9;

/// curl reports an error instead of the status if a stream is reset while it still sends.
#[tokio::test]
async fn an_upload_with_an_early_response_is_not_reset() {
    let gateway = Gateway::start(PROTECTED).await;
    gateway.upstream().does_at(
        "/public/full",
        vec![write("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nfull"), Step::Hold],
    );
    for path in ["/", "/public/full"] {
        let mut connection = gateway.connect().await;
        connection.write(upload(path)).await;
        let mut has_ended = false;
        while let Some(head) = connection.exactly(9).await {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            connection.exactly(length as usize).await.unwrap();
            let (kind, flags) = (head[3], head[4]);
            assert_ne!(kind, 3, "{path}: the stream was reset");
            match kind {
                0 if flags & 1 == 1 => {
                    has_ended = true;
                    connection.write(b"\0\0\x08\x06\0\0\0\0\0pingpong").await;
                }
                6 if flags & 1 == 1 => break,
                _ => {}
            }
        }
        assert!(has_ended, "{path}: the answer has ended");
        // The rest of the upload is read.
        connection.write(b"\0\0\x03\0\x01\0\0\0\x01end").await;
        connection.write(b"\0\0\x08\x06\0\0\0\0\0pingpong").await;
        assert!(connection.exactly(9).await.is_some(), "{path}: the connection goes on");
    }
}

#[tokio::test]
async fn an_unfinished_header_block_is_subject_to_the_header_timeout() {
    let gateway =
        Gateway::start(&format!("server.limits.header_timeout = '300ms'\n{PROTECTED}")).await;
    let whole = upload("/public");
    let mut open = whole.clone();
    open[HEADERS + 4] = 0;
    for (what, bytes) in [
        ("half a frame head", &whole[..HEADERS + 5]),
        ("half a frame", &whole[..HEADERS + 20]),
        ("no END_HEADERS", &open[..open.len() - 14]),
    ] {
        let begun = std::time::Instant::now();
        let mut connection = gateway.connect().await;
        connection.write(bytes).await;
        connection.closed().await;
        assert!(begun.elapsed() >= std::time::Duration::from_millis(300), "{what}");
    }
}

#[tokio::test]
async fn h2c_can_be_switched_off() {
    let gateway = Gateway::start(&format!("server.h2c = false\n{PROTECTED}")).await;
    let mut connection = gateway.connect().await;
    connection.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let answer = connection.closed().await;
    assert!(
        answer.is_empty()
            || answer.starts_with(b"HTTP/1.1 4")
            || answer.starts_with(b"HTTP/1.1 505"),
        "{answer:?}"
    );
    assert_eq!(gateway.get("/public").send().await.status, 200);
}

#[tokio::test]
async fn an_oversized_head_is_a_431_and_the_connection_stays_open() {
    let gateway =
        Gateway::start(&format!("server.limits.max_header_bytes = '8KiB'\n{PROTECTED}")).await;
    let mut client = h2::Connection::open(&gateway).await;
    let request = Request::get("http://app.test/public")
        .header("x", "x".repeat(9000))
        .body(Full::default())
        .unwrap();
    // The client may know the limit from the settings and send no request.
    if let Ok(answer) = client.head(request).await {
        assert_eq!(answer.status(), 431);
    }
    assert_eq!(client.send(get("http://app.test/public")).await.status, 200);
}
