//! Bodies are streamed, and the causes of broken exchanges are distinguished (CONTRACT §3, §2
//! `[server.limits]`, `[upstream.*]`).

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpSocket;

use crate::harness::certificates::authority;
use crate::harness::h2;
use crate::harness::upstream::{answer, write};
use crate::harness::{Connection, Gateway, Port, Response, Step, Upstream, mint, within};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";
const PROTECTED: &str = "route = [{ path = '/*', upstream = 'app' }]";

/// A public route, with these lines in the sections.
fn with(server_limits: &str, upstream: &str) -> String {
    format!("{PUBLIC}\n[server.limits]\n{server_limits}\n[upstream.app]\n{upstream}")
}

/// Writes until the other side accepts no bytes for a while. Returns how many it accepted.
async fn write_until_stalled(connection: &mut Connection, most: usize) -> usize {
    let (chunk, mut written) = (vec![b'x'; 64 * 1024], 0);
    while written < most {
        match tokio::time::timeout(Duration::from_millis(500), connection.write_some(&chunk)).await
        {
            Ok(Ok(length)) => written += length,
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => return written,
        }
    }
    written
}

#[tokio::test]
async fn an_unread_upload_stalls_the_client() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(
        [vec![Step::Hold], answer("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nread")].concat(),
    );
    let mut connection = gateway.connect().await;
    let whole = 64 * 1024 * 1024;
    connection
        .write(format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: {whole}\r\n\r\n"))
        .await;
    let written = write_until_stalled(&mut connection, whole).await;
    assert!(written < whole / 2, "{written} bytes were taken in although nobody read them");
    gateway.upstream().release();
    let rest = vec![b'y'; whole - written];
    connection.write(&rest).await;
    assert_eq!(connection.response().await.text(), "read");
    assert_eq!(gateway.upstream().last().body.len(), whole);
}

#[tokio::test]
async fn an_unread_download_stalls_the_upstream() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(vec![
        Step::ReadBody,
        write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        Step::Hold,
        write("1\r\nd\r\n0\r\n\r\n"),
    ]);
    let mut connection = gateway.connect().await;
    connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let mut response = connection.head().await.unwrap();
    // The first chunk arrives while the upstream is still writing.
    assert_eq!(connection.chunk(&mut response).await.unwrap(), b"abc");
    gateway.upstream().release();
    assert_eq!(connection.chunk(&mut response).await.unwrap(), b"d");
    assert_eq!(connection.chunk(&mut response).await, None);
    assert!(response.complete);
}

#[tokio::test]
async fn an_endless_download_uses_bounded_memory() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway
        .upstream()
        .does(vec![write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"), Step::Flood]);
    let mut connection = gateway.connect().await;
    connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert_eq!(connection.head().await.unwrap().status, 200);
    for _ in 0..1024 {
        assert!(connection.exactly(64 * 1024).await.is_some());
    }
    drop(connection);
    gateway.upstream().until(|seen| seen.closed == 1).await;
    let line = gateway.access("/").await;
    let out = line["bytes_out"].as_u64().unwrap();
    assert!((64 << 20..256 << 20).contains(&out), "{out}");
}

/// In both directions: if one side does not read, the other side is stalled.
#[tokio::test]
async fn peers_that_do_not_read_use_little_memory() {
    const CONNECTIONS: usize = 100;
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at(
        "/down",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"), Step::Flood],
    );
    gateway.upstream().does_at("/up", vec![Step::Hold]);
    assert_eq!(gateway.get("/").send().await.status, 200);
    let mut connections = Vec::new();
    for (target, head) in [("/down", "GET"), ("/up", "POST")] {
        let before = gateway.resident();
        for _ in 0..CONNECTIONS {
            let mut connection = gateway.connect().await;
            connection
                .write(format!(
                    "{head} {target} HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}\r\n\r\n",
                    if head == "GET" { 0 } else { 1 << 30 }
                ))
                .await;
            if head == "POST" {
                let (brief, chunk) = (Duration::from_millis(20), vec![b'x'; 64 * 1024]);
                while let Ok(Ok(_)) =
                    tokio::time::timeout(brief, connection.write_some(&chunk)).await
                {
                }
            }
            connections.push(connection);
        }
        let each = settled(&gateway).await.saturating_sub(before) / CONNECTIONS;
        assert!(each < 200, "{target}: {each} KiB a connection");
    }
}

/// A connection of a client whose system takes few bytes before the client reads.
async fn connect_with_small_buffer(gateway: &Gateway) -> Connection {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    Connection::over(within(socket.connect(gateway.address())).await.unwrap())
}

/// The memory in KiB once all buffers are full and no byte moves.
async fn settled(gateway: &Gateway) -> usize {
    within(async {
        let mut last = 0;
        loop {
            let now = gateway.resident();
            if now == std::mem::replace(&mut last, now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await
}

/// The bytes of an HTTP/2 client that asks for `/down` on [`STREAMS`] streams with this window, and
/// grants the connection the largest one.
fn ask(window: u32) -> Vec<u8> {
    let settings = [&[0, 4], &window.to_be_bytes()[..]].concat();
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &settings));
    sent.extend(grant(0, (1 << 31) - 1 - 65_535));
    // GET, http, and a literal path and authority (RFC 7541 §6).
    let head = b"\x82\x86\x04\x05/down\x01\x08app.test";
    sent.extend((0..STREAMS).flat_map(|number| frame(1, 5, 2 * number + 1, head)));
    sent
}

const STREAMS: u32 = 100;

fn grant(stream: u32, bytes: u32) -> Vec<u8> {
    frame(8, 0, stream, &bytes.to_be_bytes())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads DATA of this stream until there were so many bytes.
async fn read_data(connection: &mut Connection, stream: u32, bytes: usize) {
    let mut read = 0;
    while read < bytes {
        let head = connection.exactly(9).await.unwrap();
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
        connection.exactly(length).await.unwrap();
        if head[3] == 0 && head[5..] == stream.to_be_bytes() {
            read += length;
        }
    }
}

#[tokio::test]
async fn an_http_2_client_that_does_not_read_uses_little_memory_for_each_response() {
    const CONNECTIONS: usize = 3;
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at(
        "/down",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"), Step::Flood],
    );
    assert_eq!(gateway.get("/").send().await.status, 200);
    let before = gateway.resident();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = connect_with_small_buffer(&gateway).await;
        connection.write(ask(1 << 20)).await;
        connections.push(connection);
    }
    let each = settled(&gateway).await.saturating_sub(before) / CONNECTIONS / 100;
    assert!(each < 100, "{each} KiB a response");
    // All continue.
    for stream in [1, 2 * STREAMS - 1] {
        read_data(&mut connections[0], stream, 256 * 1024).await;
    }
}

#[tokio::test]
async fn responses_without_a_window_do_not_hold_up_others() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at(
        "/down",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"), Step::Flood],
    );
    let mut connection = connect_with_small_buffer(&gateway).await;
    connection.write(ask(0)).await;
    settled(&gateway).await;
    for stream in [2 * STREAMS - 1, 1, STREAMS + 1] {
        connection.write(grant(stream, 1 << 20)).await;
        read_data(&mut connection, stream, 1 << 20).await;
    }
}

#[tokio::test]
async fn unread_responses_of_an_http_2_application_do_not_hold_up_others() {
    const CONNECTIONS: usize = 20;
    let application = Gateway::start(PUBLIC).await;
    application.upstream().does_at(
        "/down",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"), Step::Flood],
    );
    let address = application.address();
    let gateway = Gateway::start(&format!(
        "upstream.app = {{ url = 'http://{address}', http2 = true }}\n{PUBLIC}"
    ))
    .await;
    assert_eq!(gateway.get("/").send().await.status, 200);
    let before = gateway.resident();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = connect_with_small_buffer(&gateway).await;
        connection.write("GET /down HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        connections.push(connection);
    }
    let each = settled(&gateway).await.saturating_sub(before) / CONNECTIONS;
    assert!(each < 200, "{each} KiB a connection");
    assert_eq!(gateway.get("/").send().await.status, 200);
}

#[tokio::test]
async fn an_upload_is_forwarded_while_it_arrives() {
    let gateway = Gateway::start(PUBLIC).await;
    let mut connection = gateway.connect().await;
    connection
        .write(
            "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        )
        .await;
    gateway
        .upstream()
        .until(|seen| seen.requests.last().is_some_and(|request| request.body == b"abc"))
        .await;
    connection.write("1\r\nd\r\n0\r\n\r\n").await;
    assert_eq!(connection.response().await.status, 200);
    assert_eq!(gateway.upstream().last().body, b"abcd");
    assert_eq!(gateway.access("/").await["bytes_in"], 4);
}

#[tokio::test]
async fn the_framing_of_a_body_is_preserved() {
    let gateway = Gateway::start(PUBLIC).await;
    assert_eq!(gateway.request("POST", "/").body("hello").send().await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(
        (
            received.header("content-length"),
            received.header("transfer-encoding"),
            received.body.as_slice()
        ),
        (Some("5"), None, &b"hello"[..])
    );
    assert_eq!(gateway.request("POST", "/").body("").send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("content-length"), Some("0"));
    assert_eq!(gateway.get("/").send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("content-length"), None);
    assert_eq!(gateway.get("/").body("a body of a GET").send().await.status, 200);
    assert_eq!(gateway.upstream().last().body, b"a body of a GET");
}

#[tokio::test]
async fn a_response_has_one_length() {
    let gateway = Gateway::start(PUBLIC).await;
    for (fields, status) in [
        ("Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", 200),
        ("Content-Length: 2, 2\r\n\r\nok", 200),
        ("Transfer-Encoding: identity\r\nConnection: close\r\n\r\nok", 200),
        ("Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", 502),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502),
        ("Transfer-Encoding: gzip\r\nConnection: close\r\n\r\nok", 502),
    ] {
        gateway
            .upstream()
            .does([answer(&format!("HTTP/1.1 200 OK\r\n{fields}")), vec![Step::Close]].concat());
        for method in ["GET", "HEAD"] {
            let response = gateway.request(method, "/").send().await;
            let is_two = fields.contains(": 2") && status == 200;
            if method == "HEAD" && fields.contains(": 3") {
                continue;
            }
            assert_eq!(response.status, status, "{method} {fields:?}: {response:?}");
            assert_eq!(
                response.headers("content-length") == ["2"],
                is_two,
                "{method} {fields:?}: {response:?}"
            );
            let request = http::Request::builder()
                .method(method)
                .uri("http://app.test/")
                .body(bytes::Bytes::new().into())
                .unwrap();
            let answer = h2::Connection::open(&gateway).await.send(request).await;
            assert_eq!(answer.status, status, "{method} {fields:?}");
        }
    }
}

#[tokio::test]
async fn response_trailers_are_sent_if_the_client_accepts_them() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().answers("HTTP/1.1 200 OK\r\nTrailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Checksum: 1\r\nSet-Cookie: a=1\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\nContent-Length: 9\r\n\r\n");
    for (te, trailers) in [(Some("trailers"), 1), (Some("gzip;q=0.5, trailers"), 1), (None, 0)] {
        let request = te.iter().fold(gateway.get("/"), |request, te| {
            request.header("TE", te).header("Connection", "TE")
        });
        let response = request.send().await;
        assert_eq!(response.text(), "ok");
        assert!(response.complete);
        assert_eq!(response.trailers.len(), trailers, "{te:?}: {response:?}");
        assert_eq!(gateway.upstream().last().header("te"), te.map(|_| "trailers"));
    }
}

#[tokio::test]
async fn the_body_is_requested_only_after_authorization() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', roles = ['admin'] }]").await;
    gateway.upstream().does(vec![
        write("HTTP/1.1 100 Continue\r\n\r\n"),
        Step::ReadBody,
        write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ]);
    let head = |token: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    let mut connection = gateway.connect().await;
    connection.write(head(&mint::token(&["user"]))).await;
    let refused = connection.response().await;
    refused.is(403, "role_missing");
    assert!(refused.informational.is_empty());
    let mut connection = gateway.connect().await;
    connection.write(head(&mint::token(&["admin"]))).await;
    assert_eq!(connection.next_head().await.unwrap().status, 100);
    assert!(gateway.upstream().last().body.is_empty());
    connection.write("hello").await;
    assert_eq!(connection.response().await.status, 200);
    assert_eq!(gateway.upstream().last().body, b"hello");
}

#[tokio::test]
async fn an_early_refusal_saves_the_client_the_upload() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(vec![
        write("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!"),
        Step::Hold,
    ]);
    let mut connection = gateway.connect().await;
    connection.write("POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    let response = connection.response().await;
    assert_eq!(
        (response.status, response.text().as_str(), response.informational.len()),
        (413, "no!", 0)
    );
}

#[tokio::test]
async fn an_upstream_without_100_continue_gets_the_body() {
    let gateway = Gateway::start(PUBLIC).await;
    let mut connection = gateway.connect().await;
    connection.write("POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(connection.next_head().await.unwrap().status, 100);
    connection.write("hello").await;
    assert_eq!(connection.response().await.status, 200);
}

#[tokio::test]
async fn a_response_before_the_end_of_the_upload_reaches_the_client() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway
        .upstream()
        .does(vec![write("HTTP/1.1 409 Conflict\r\nContent-Length: 4\r\n\r\nstop"), Step::Hold]);
    let mut connection = gateway.connect().await;
    connection
        .write("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000000\r\n\r\nsome")
        .await;
    let response = connection.response().await;
    assert_eq!((response.status, response.text().as_str()), (409, "stop"));
}

/// Many clients write the body apart from the head, and repeat a refused request with credentials.
#[tokio::test]
async fn a_connection_serves_the_next_request_after_a_body_that_was_refused_unread() {
    let gateway = Gateway::start(PROTECTED).await;
    let mut connection = gateway.connect().await;
    let lengths = ["Content-Length: 5\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"];
    for (length, body) in lengths.into_iter().zip(["hello", "5\r\nhello\r\n0\r\n\r\n"]) {
        connection.write(format!("POST / HTTP/1.1\r\nHost: app.test\r\n{length}")).await;
        let response = connection.response().await;
        assert_eq!((response.status, response.header("connection")), (401, None));
        connection.write(body).await;
        connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        assert_eq!(connection.response().await.status, 401);
    }
}

/// The client may send the body or not, so what follows cannot be read as a request.
#[tokio::test]
async fn a_connection_closes_if_the_client_waits_to_send_a_body_that_is_refused() {
    let gateway = Gateway::start(PROTECTED).await;
    for head in ["Expect: 100-continue\r\nContent-Length: 5", "Content-Length: 100000000"] {
        let mut connection = gateway.connect().await;
        connection.write(format!("POST / HTTP/1.1\r\nHost: app.test\r\n{head}\r\n\r\n")).await;
        let response = connection.response().await;
        let seen = (response.status, response.header("connection"), response.informational.len());
        assert!(matches!(seen, (401 | 413, Some("close"), 0)), "{head}: {seen:?}");
        assert!(connection.closed().await.is_empty(), "{head}");
    }
}

#[tokio::test]
async fn an_early_response_reaches_the_client_although_the_upstream_closes() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(vec![
        write("HTTP/1.1 409 Conflict\r\nConnection: close\r\nContent-Length: 4\r\n\r\nstop"),
        Step::Close,
    ]);
    let mut connection = gateway.connect().await;
    connection
        .write("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000000\r\n\r\nsome")
        .await;
    assert_eq!(connection.response().await.status, 409);
}

/// Closing a socket with unread bytes resets the connection; what was sent before can still be
/// read.
#[tokio::test]
async fn an_early_response_reaches_the_client_although_the_upstream_resets() {
    respond_early_and_reset(Gateway::start(PUBLIC).await).await;
}

#[tokio::test]
async fn an_early_response_reaches_the_client_over_tls_too() {
    let upstream =
        Upstream::start_tls(authority().issue(&["localhost", "127.0.0.1"]).server()).await;
    let config = "route = [{ path = '/*', upstream = 'app', access = 'public' }]\nupstream.app = { url = 'https://$UPSTREAM', tls = { ca = 'ca.pem' } }";
    let gateway =
        Gateway::setup(config).file("ca.pem", &authority().pem).upstream(upstream).start().await;
    respond_early_and_reset(gateway).await;
}

async fn respond_early_and_reset(gateway: Gateway) {
    gateway.upstream().does(vec![
        write("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 4\r\n\r\nstop"),
        Step::Close,
    ]);
    let body = vec![b'x'; 8 * 1024 * 1024];
    for _ in 0..10 {
        let mut connection = gateway.connect().await;
        connection
            .write(format!(
                "POST /large HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))
            .await;
        // To the last byte, like a client that reads the response only then.
        connection.write(&body).await;
        let response = connection.response().await;
        assert_eq!(
            (response.status, response.text().as_str(), response.complete),
            (413, "stop", true)
        );
        let mut client = h2::Connection::open(&gateway).await;
        let request =
            http::Request::post("http://app.test/large").body(body.clone().into()).unwrap();
        assert_eq!(client.head(request).await.unwrap().status(), 413);
    }
}

#[tokio::test]
async fn a_refusal_during_an_upload_reaches_the_client() {
    let gateway = Gateway::start("[server.limits]\nmax_body = '1MiB'\n[[route]]\npath = '/*'\nupstream = 'app'\n[[route]]\npath = '/public'\nupstream = 'app'\naccess = 'public'").await;
    let body = vec![b'x'; 8 * 1024 * 1024];
    for (path, status, reason) in
        [("/", 401, "credentials_missing"), ("/public", 413, "body_too_large")]
    {
        let mut connection = gateway.connect().await;
        connection
            .write(format!(
                "POST {path} HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))
            .await;
        connection.write(&body).await;
        connection.response().await.is(status, reason);
        // The connection ends when the client closes.
        connection.shut_down().await;
        connection.closed().await;
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_client_disconnect_reaches_the_upstream() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at("/waits", vec![Step::ReadBody, Step::Hold]);
    gateway.upstream().does_at(
        "/streams",
        vec![
            Step::ReadBody,
            write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
            Step::Hold,
        ],
    );
    gateway.upstream().does_at("/reads", vec![Step::ReadBody, Step::Hold]);
    for (closed, (path, rest)) in
        [("/waits", "\r\n"), ("/streams", "\r\n"), ("/reads", "Content-Length: 9\r\n\r\nsome")]
            .into_iter()
            .enumerate()
    {
        let mut connection = gateway.connect().await;
        connection.write(format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{rest}")).await;
        gateway.upstream().until(|seen| seen.requests.len() == closed + 1).await;
        if path == "/streams" {
            connection.head().await.unwrap();
        }
        drop(connection);
        gateway.upstream().until(|seen| seen.closed == closed + 1).await;
        let line = gateway.access(path).await;
        // The outcome of an incomplete body may vary: its client is gone, or has only stopped
        // sending.
        let statuses: &[u64] = if path == "/streams" {
            &[200]
        } else if path == "/reads" {
            &[400, 499]
        } else {
            &[499]
        };
        assert!(statuses.contains(&line["http.response.status_code"].as_u64().unwrap()), "{line}");
    }
}

async fn timed(gateway: &Gateway, path: &str) -> (Response, Duration) {
    let begun = Instant::now();
    (gateway.get(path).send().await, begun.elapsed())
}

#[tokio::test]
async fn a_slow_upstream_is_a_504() {
    let gateway =
        Gateway::start(&with("", "response_timeout = '300ms'\nconnect_timeout = '300ms'")).await;
    gateway.upstream().does(vec![Step::ReadBody, Step::Hold]);
    let (response, took) = timed(&gateway, "/slow").await;
    response.is(504, "upstream_timeout");
    assert!((Duration::from_millis(290)..Duration::from_secs(5)).contains(&took), "{took:?}");
    assert_eq!(gateway.access("/slow").await["outcome"], "failed");
    gateway.upstream().until(|seen| seen.closed == 1).await;
    gateway.upstream().does(vec![Step::ReadBody, write("HTTP/1.1 200 OK\r\nX: "), Step::Hold]);
    timed(&gateway, "/half").await.0.is(504, "upstream_timeout");
}

#[tokio::test]
async fn the_response_timeout_counts_from_the_end_of_the_request() {
    let gateway = Gateway::start(&with("", "response_timeout = '400ms'")).await;
    let mut connection = gateway.connect().await;
    connection
        .write("POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        connection.write("1\r\nx\r\n").await;
    }
    connection.write("0\r\n\r\n").await;
    assert_eq!(connection.response().await.status, 200);
}

#[tokio::test]
async fn an_upload_that_pauses_is_not_an_upstream_timeout() {
    let gateway =
        Gateway::start(&with("body_idle_timeout = '20s'", "response_timeout = '300ms'")).await;
    let mut connection = gateway.connect().await;
    connection.write("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\n\r\nx").await;
    gateway
        .upstream()
        .until(|seen| seen.requests.last().is_some_and(|request| request.body == b"x"))
        .await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    connection.write("y").await;
    let response = connection.response().await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{response:?}");
}

#[tokio::test]
async fn an_upstream_that_does_not_read_the_upload_is_a_504() {
    let gateway = Gateway::start(&with("", "response_timeout = '300ms'")).await;
    gateway.upstream().does(vec![Step::Hold]);
    let mut connection = gateway.connect().await;
    connection
        .write("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100000000\r\n\r\n")
        .await;
    let begun = Instant::now();
    let chunk = vec![b'x'; 64 * 1024];
    // The client does not stop by itself, because buffers may still grow after the first stall.
    let response = within(async {
        loop {
            while let Ok(Ok(_)) =
                tokio::time::timeout(Duration::from_millis(50), connection.write_some(&chunk)).await
            {
            }
            if let Ok(response) =
                tokio::time::timeout(Duration::from_millis(50), connection.response()).await
            {
                return response;
            }
        }
    })
    .await;
    response.is(504, "upstream_timeout");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let gateway = Gateway::start(&format!("server.limits.idle_timeout = '500ms'\n{PUBLIC}")).await;
    gateway
        .upstream()
        .does(vec![write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"), Step::Flood]);
    let mut connection = gateway.connect().await;
    connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert_eq!(connection.head().await.unwrap().status, 200);
    gateway.upstream().until(|seen| seen.closed == 1).await;
    drop(connection);
}

#[tokio::test]
async fn an_unreachable_upstream_is_a_502_or_504() {
    let refused = Port::reserve();
    let port = refused.number();
    let gateway = Gateway::start(&format!(
        "[[route]]\npath = '/refused'\nupstream = 'app'\naccess = 'public'\n[[route]]\npath = '/silent'\nupstream = 'silent'\naccess = 'public'\n\
         [[route]]\npath = '/nowhere'\nupstream = 'nowhere'\naccess = 'public'\n[upstream.app]\nurl = 'http://127.0.0.1:{port}'\n\
         [upstream.silent]\nurl = 'https://$UPSTREAM'\nconnect_timeout = '300ms'\n[upstream.nowhere]\nurl = 'http://nowhere.invalid'"
    ))
    .await;
    gateway.get("/refused").send().await.is(502, "upstream_unreachable");
    let output =
        gateway.log().until("the cause is logged", |line| line["route"] == "/refused").await;
    assert_eq!(output["upstream"], format!("app at http://127.0.0.1:{port}"));
    gateway.get("/nowhere").send().await.is(502, "upstream_unreachable");
    // It accepts the connection but never starts TLS.
    let (response, took) = timed(&gateway, "/silent").await;
    response.is(504, "upstream_timeout");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_broken_upstream_connection_is_a_502() {
    // Equal events are folded, except at this level.
    let gateway = Gateway::start(&format!("{PUBLIC}\n[log]\nlevel = 'debug'")).await;
    for (path, steps) in [
        ("/close", vec![Step::ReadBody, Step::Close]),
        ("/reset", vec![Step::ReadBody, Step::Reset]),
        ("/close-at-once", vec![Step::Close]),
        ("/half", vec![Step::ReadBody, write("HTTP/1.1 200 O"), Step::Close]),
        ("/garbage", vec![Step::ReadBody, write("SSH-2.0-OpenSSH\r\n\r\n"), Step::Hold]),
        ("/http2", vec![Step::ReadBody, write("HTTP/2.0 200 OK\r\n\r\n"), Step::Hold]),
        (
            "/lengths",
            vec![
                Step::ReadBody,
                write("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
                Step::Hold,
            ],
        ),
        (
            "/fields",
            vec![
                Step::ReadBody,
                write(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: 1\r\n".repeat(101))),
                Step::Hold,
            ],
        ),
        (
            "/header",
            vec![
                Step::ReadBody,
                write("HTTP/1.1 200 OK\r\nA B: 1\r\nContent-Length: 0\r\n\r\n"),
                Step::Hold,
            ],
        ),
        (
            "/101",
            vec![
                Step::ReadBody,
                write(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
                ),
                Step::Hold,
            ],
        ),
    ] {
        gateway.upstream().does_at(path, steps);
        let response = gateway.get(path).send().await;
        assert_eq!(response.refusal(), (502, "upstream_failed".to_owned()), "{path}");
        let line = gateway.access(path).await;
        assert_eq!(
            (&line["outcome"], &line["reason"]),
            (&"failed".into(), &"upstream_failed".into()),
            "{line}"
        );
    }
    let output = gateway.log().until("the cause is logged", |line| {
        line["cause"].as_str().is_some_and(|cause| cause.contains("64 KiB or 100 fields"))
    });
    assert_eq!(output.await["reason"], "upstream_failed");
    assert_eq!(gateway.get("/").send().await.status, 200);
}

#[tokio::test]
async fn a_broken_response_is_recognisable_as_incomplete() {
    let gateway = Gateway::start(&with("", "idle_timeout = '300ms'")).await;
    for (path, head, reason) in [
        ("/length", "Content-Length: 10\r\n\r\nabc", "upstream_failed"),
        ("/chunked", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "upstream_failed"),
        ("/bad-chunk", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", "upstream_failed"),
        // A client that receives nothing may retry by itself.
        ("/nothing", "Content-Length: 10\r\n\r\n", "upstream_failed"),
        ("/silent", "Content-Length: 10\r\n\r\nabc", "upstream_timeout"),
    ] {
        let end = if path == "/silent" { Step::Hold } else { Step::Close };
        gateway
            .upstream()
            .does_at(path, vec![Step::ReadBody, write(&format!("HTTP/1.1 200 OK\r\n{head}")), end]);
        let response = gateway.get(path).send().await;
        assert_eq!(
            (response.status, response.text().as_str(), response.complete),
            (200, if path == "/nothing" { "" } else { "abc" }, false),
            "{path}"
        );
        let line = gateway.access(path).await;
        assert_eq!(
            (&line["outcome"], &line["reason"]),
            (&"failed".into(), &reason.into()),
            "{line}"
        );
    }
    let output = gateway.log().until("the cause is logged", |line| {
        line["cause"].as_str().is_some_and(|cause| cause.contains("300ms, its idle_timeout"))
    });
    assert_eq!(output.await["message"], "the response broke off");
    // Equal events are folded.
    let is_warning = |line: &&Value| {
        line["level"] == "warn"
            && line["message"] == "the response broke off"
            && line["reason"] == "upstream_failed"
    };
    assert_eq!(gateway.log().lines().iter().filter(is_warning).count(), 1);
}

/// The application sends its response while it reads the body.
#[tokio::test]
async fn a_client_that_breaks_off_its_upload_is_not_taken_for_a_broken_upstream() {
    let gateway = Gateway::start(&with("", "")).await;
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    gateway.upstream().does_at("/both", vec![write(head), Step::Hold]);
    let mut client = gateway.connect().await;
    let request =
        "POST /both HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    client.write(request).await;
    assert_eq!(client.head().await.unwrap().status, 200);
    client.write("zz\r\n").await;
    let line = gateway.access("/both").await;
    let said = (&line["outcome"], &line["reason"]);
    assert_eq!(said, (&"refused".into(), &"framing_invalid".into()), "{line}");
    assert!(gateway.log().lines().iter().all(|line| line["message"] != "the response broke off"));
}

/// Responds like an HTTP/2-only server: with its settings.
#[tokio::test]
async fn an_upstream_that_uses_http_2_is_reported() {
    let gateway = Gateway::start(&with("", "")).await;
    let settings = "\0\0\0\u{4}\0\0\0\0\0";
    gateway.upstream().does_at("/h2", vec![Step::ReadBody, write(settings), Step::Close]);
    gateway.get("/h2").send().await.is(502, "upstream_failed");
    gateway
        .log()
        .until("the protocol is named", |line| {
            line["cause"].as_str().is_some_and(|cause| {
                cause.contains("HTTP/2") && cause.ends_with("set http2 = true in its section")
            })
        })
        .await;
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let gateway = Gateway::start(&with("max_body = '1KiB'", "")).await;
    let refused = gateway.request("POST", "/").header("Content-Length", "1025").send().await;
    refused.is(413, "body_too_large");
    assert_eq!(gateway.upstream().count(), 0);
    assert_eq!(gateway.request("POST", "/").body([b'x'; 1024]).send().await.status, 200);
    let mut connection = gateway.connect().await;
    connection
        .write("POST /chunked HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    connection.write(format!("401\r\n{}\r\n0\r\n\r\n", "x".repeat(1025))).await;
    connection.response().await.is(413, "body_too_large");
    let seen = gateway.upstream().until(|seen| seen.closed > 0).await;
    assert!(
        !seen.requests.iter().any(|request| request.target == "/chunked" && request.complete),
        "an upload that is cut must not look whole"
    );
}

#[tokio::test]
async fn a_client_that_stops_sending_its_body_is_disconnected() {
    let gateway = Gateway::start(&with("body_idle_timeout = '300ms'", "")).await;
    for (path, framing) in [
        ("/length", "Content-Length: 9\r\n\r\nsome"),
        ("/chunked", "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"),
    ] {
        let mut connection = gateway.connect().await;
        connection.write(format!("POST {path} HTTP/1.1\r\nHost: app.test\r\n{framing}")).await;
        let response = connection.response().await;
        assert!(matches!(response.status, 400 | 408), "{response:?}");
        connection.closed().await;
    }
    let seen = gateway.upstream().until(|seen| seen.closed == 2).await;
    assert!(seen.requests.iter().all(|request| !request.complete));
}

#[tokio::test]
async fn connections_to_the_upstream_are_kept_and_dead_ones_are_not_used() {
    let gateway = Gateway::start(PUBLIC).await;
    for _ in 0..5 {
        assert_eq!(gateway.get("/").send().await.status, 200);
    }
    assert_eq!(gateway.upstream().seen().accepted, 1);
    // The upstream closes silently after its response: the next request gets a new connection.
    gateway.upstream().does(
        [answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), vec![Step::Close]].concat(),
    );
    for expected in 1..5 {
        assert_eq!(gateway.request("POST", "/").send().await.status, 200);
        gateway.upstream().until(|seen| seen.closed == expected).await;
    }
    assert_eq!(gateway.upstream().count(), 9, "no request was sent twice");
}

#[tokio::test]
async fn a_response_never_goes_to_another_request() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at(
        "/gone",
        vec![
            Step::ReadBody,
            Step::Hold,
            write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"),
        ],
    );
    let mut connection = gateway.connect().await;
    connection.write("GET /gone HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    gateway.upstream().until(|seen| seen.requests.len() == 1).await;
    drop(connection);
    gateway.upstream().until(|seen| seen.closed == 1).await;
    assert_eq!(gateway.get("/").send().await.text(), "ok");
    // Nor does an unrequested second response.
    gateway.upstream().answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
    for _ in 0..3 {
        assert_eq!(gateway.get("/").send().await.text(), "ok");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at("/1", answer("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"));
    gateway.upstream().does_at("/2", answer("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2"));
    let mut connection = gateway.connect().await;
    connection.write("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /../ HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(connection.response().await.text(), "1");
    assert_eq!(connection.response().await.status, 400);
    assert_eq!(connection.response().await.text(), "2");
}

#[tokio::test]
async fn a_response_without_a_length_ends_with_the_connection() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway
        .upstream()
        .does([answer("HTTP/1.0 200 OK\r\n\r\nall of it"), vec![Step::Close]].concat());
    let response = within(gateway.get("/").send()).await;
    assert_eq!((response.text().as_str(), response.complete), ("all of it", true));
    for status in ["204 No Content", "304 Not Modified"] {
        gateway.upstream().answers(&format!("HTTP/1.1 {status}\r\nETag: \"x\"\r\n\r\n"));
        let response = gateway.get("/").send().await;
        assert_eq!(
            (response.status.to_string().as_str(), response.header("etag")),
            (&status[..3], Some("\"x\""))
        );
    }
}
