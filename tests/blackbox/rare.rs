//! What only few clients do, but HTTP permits: HTTP/1.0, `Expect`, half-closed connections,
//! `OPTIONS *`.

use std::time::Duration;

use crate::harness::upstream::{answer, write};
use crate::harness::{Gateway, Step};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";

/// HTTP/1.0 has no chunks: the end of the connection is the end of the body (RFC 9112 §7.1).
#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks_and_the_connection_closes() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at("/chunked", answer(CHUNKED));
    let mut connection = gateway.connect().await;
    connection.write("GET /chunked HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    let head = connection.head().await.unwrap();
    assert_eq!((head.status, head.header("transfer-encoding")), (200, None), "{head:?}");
    assert_eq!(connection.closed().await, b"hello world");
}

/// With `Connection: keep-alive`, one connection carries several requests if each response has a
/// length.
#[tokio::test]
async fn a_client_of_http_1_0_may_keep_its_connection() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    let mut connection = gateway.connect().await;
    for _ in 0..2 {
        connection
            .write("POST / HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello")
            .await;
        let response = connection.response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        assert_eq!(response.header("connection"), Some("keep-alive"));
        assert_eq!(gateway.upstream().last().body, b"hello");
    }
    connection.write("GET / HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    assert_eq!(connection.response().await.status, 200);
    assert_eq!(connection.closed().await, b"");
}

/// A client of HTTP/1.0 does not know 100 (RFC 9110 §10.1.1).
#[tokio::test]
async fn an_expectation_of_http_1_0_is_ignored() {
    let gateway = Gateway::start(PUBLIC).await;
    let mut connection = gateway.connect().await;
    connection
        .write("POST / HTTP/1.0\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
        .await;
    let response = connection.response().await;
    assert_eq!((response.status, response.informational.len()), (200, 0), "{response:?}");
    assert_eq!(gateway.upstream().last().body, b"hello");
}

/// The client does not have to wait for 100, and the body that it sends at once arrives.
#[tokio::test]
async fn a_body_may_be_sent_without_waiting_for_100() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway
        .upstream()
        .does(vec![Step::ReadBody, write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]);
    let mut connection = gateway.connect().await;
    for _ in 0..2 {
        connection
            .write("POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
            .await;
        assert_eq!(connection.response().await.status, 200);
        assert_eq!(gateway.upstream().last().body, b"hello");
    }
}

/// A refused client that waits sends no body; one that does not wait must not have its body read
/// as the next request.
#[tokio::test]
async fn the_body_of_a_refused_expectation_is_no_request() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', roles = ['admin'] }]").await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";
    let mut connection = gateway.connect().await;
    connection
        .write(format!(
            "POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n{smuggled}",
            smuggled.len()
        ))
        .await;
    let response = connection.response().await;
    response.is(401, "credentials_missing");
    assert_eq!(response.header("connection"), Some("close"));
    let rest = connection.closed().await;
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

/// A client may close its side once it has sent its request.
#[tokio::test]
async fn a_half_closed_client_gets_its_response() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does_at(
        "/slow",
        vec![
            Step::ReadBody,
            Step::Hold,
            write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst"),
            Step::Wait(Duration::from_secs(1)),
            write("-last"),
        ],
    );
    for body in ["", "hello"] {
        let mut connection = gateway.connect().await;
        let length = body.len();
        connection
            .write(format!(
                "POST /slow HTTP/1.1\r\nHost: app.test\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
            .await;
        connection.shut_down().await;
        gateway
            .upstream()
            .until(|seen| seen.requests.last().is_some_and(|last| last.body.len() == length))
            .await;
        gateway.upstream().release();
        let response = connection.response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "first-last"));
        assert_eq!(connection.closed().await, b"");
    }
}

/// The application learns that a client is gone although nothing is written to it.
#[tokio::test]
async fn a_half_closed_client_does_not_hold_an_exchange_for_long() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(vec![Step::ReadBody, Step::Hold]);
    let mut connection = gateway.connect().await;
    connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    connection.shut_down().await;
    gateway.upstream().until(|seen| seen.closed == 1).await;
    assert_eq!(gateway.access("/").await["http.response.status_code"], 499);
}

/// `*` asks the server, not a resource: no route matches it, and nothing is forwarded.
#[tokio::test]
async fn options_of_the_server_is_refused() {
    let gateway = Gateway::start(PUBLIC).await;
    for host in ["app.test", "other.test"] {
        let response = gateway.raw(format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        response.is(400, "target_ambiguous");
    }
    assert_eq!(gateway.upstream().count(), 0);
}
