//! Malformed requests, slow clients, and too many clients (CONTRACT §2 `[server.limits]`, §3).

use std::time::{Duration, Instant};

use crate::harness::upstream::{answer, write};
use crate::harness::{Gateway, Step, within};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";

fn limits(lines: &str) -> String {
    format!("server.limits = {{ {lines} }}\n{PUBLIC}")
}

/// The response to these bytes, until the gateway closes or has responded once.
async fn status(gateway: &Gateway, bytes: &[u8]) -> Option<u16> {
    let mut connection = gateway.connect().await;
    connection.write(bytes).await;
    connection.try_response_to("GET").await.map(|response| response.status)
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let gateway = Gateway::start(PUBLIC).await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: a\r\nA B: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\x00Y: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
        b"GET / HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"G\xcbT / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = status(&gateway, bytes).await;
        assert!(
            matches!(answer, None | Some(400 | 505 | 501)),
            "{answer:?}: {:?}",
            String::from_utf8_lossy(bytes)
        );
    }
    assert_eq!(gateway.upstream().count(), 0);
    assert_eq!(gateway.get("/").send().await.status, 200);
}

#[tokio::test]
async fn conflicting_framing_never_smuggles_a_request() {
    let gateway = Gateway::start(PUBLIC).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";
    for (headers, body) in [
        ("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", format!("0\r\n\r\n{smuggled}")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 60\r\n", format!("0\r\n\r\n{smuggled}")),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            format!("0\r\n\r\n{smuggled}"),
        ),
        (
            "Transfer-Encoding: identity, chunked\r\nContent-Length: 4\r\n",
            format!("0\r\n\r\n{smuggled}"),
        ),
        ("Transfer-Encoding: gzip, chunked\r\n", format!("0\r\n\r\n{smuggled}")),
        ("Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n", format!("0\r\n\r\n{smuggled}")),
        ("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", format!("0\r\n\r\n{smuggled}")),
        ("Content-Length: 0\r\nContent_Length: 60\r\n", smuggled.to_owned()),
        ("Transfer-Encoding: \x0bchunked\r\nContent-Length: 4\r\n", format!("0\r\n\r\n{smuggled}")),
    ] {
        let mut connection = gateway.connect().await;
        connection
            .write(format!("POST /outer HTTP/1.1\r\nHost: app.test\r\n{headers}\r\n{body}"))
            .await;
        connection.try_response_to("POST").await;
        for request in gateway.upstream().seen().requests {
            let framings = [request.header("content-length"), request.header("transfer-encoding")]
                .into_iter()
                .flatten()
                .count();
            assert!(framings < 2, "{headers:?}: {request:?}");
            assert!(request.body.len() <= 5, "{headers:?}: {request:?}");
        }
    }
    let _ = gateway.get("/").send().await;
    // A request that follows is decided on its own. With both framings, hyper closes the connection
    // instead.
    let both = gateway
        .upstream()
        .seen()
        .requests
        .iter()
        .filter(|request| request.target == "/smuggled")
        .count();
    assert!(both <= 3, "{both}");
}

/// RFC 9112 §6.1, §6.3: bytes after a request of uncertain length are not the next request.
#[tokio::test]
async fn invalid_framing_ends_the_connection() {
    let gateway = Gateway::start(PUBLIC).await;
    for fields in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
    ] {
        for method in ["GET", "POST"] {
            let mut connection = gateway.connect().await;
            connection
                .write(format!(
                    "{method} /outer HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n\r\n0\r\n\r\n\
                     GET /behind HTTP/1.1\r\nHost: app.test\r\n\r\n"
                ))
                .await;
            let response = connection.response().await;
            response.is(400, "framing_invalid");
            assert_eq!(response.header("connection"), Some("close"), "{fields}");
            assert!(connection.closed().await.is_empty(), "{fields}");
        }
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_bad_chunk_is_refused_and_ends_the_connection() {
    let gateway = Gateway::start(PUBLIC).await;
    for body in [
        "zz\r\n",
        "1\r\nxx\r\n0\r\n\r\n",
        "-1\r\nx\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nx",
        "1;\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
    ] {
        let mut connection = gateway.connect().await;
        connection
            .write(format!(
                "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /after HTTP/1.1\r\nHost: app.test\r\n\r\n"
            ))
            .await;
        let response = connection.try_response_to("POST").await;
        assert!(
            response.as_ref().is_none_or(|response| response.status == 400),
            "{body:?}: {response:?}"
        );
        if let Some(response) = response.filter(|response| !response.body.is_empty()) {
            response.is(400, "framing_invalid");
        }
        connection.closed().await;
    }
    let seen = gateway.upstream().seen();
    assert!(
        seen.requests.iter().all(|request| !request.complete && request.target == "/"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn an_oversized_head_is_a_431() {
    let gateway = Gateway::start(&limits("max_header_bytes = '8KiB', max_headers = 20")).await;
    let line = |length: usize| "x".repeat(length);
    assert_eq!(gateway.get("/").header("X", &line(6000)).send().await.status, 200);
    assert_eq!(gateway.get("/").header("X", &line(9000)).send().await.status, 431);
    assert_eq!(gateway.get(&format!("/{}", line(9000))).send().await.status / 100, 4);
    let many = |count: usize| {
        (0..count)
            .fold(gateway.get("/"), |request, index| request.header(&format!("X-{index}"), "1"))
    };
    assert_eq!(many(19).send().await.status, 200);
    assert_eq!(many(40).send().await.status, 431);
    assert_eq!(gateway.upstream().count(), 2);
}

#[tokio::test]
async fn unreadable_requests_are_counted_and_logged() {
    let gateway = Gateway::start(&limits("max_header_bytes = '8KiB'")).await;
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9000));
    for (bytes, kind) in [
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "method"),
        ("GET /?<\"> HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", "version"),
        ("GET / HTTP/1.1\r\nHost: a\r\nA B: 1\r\n\r\n", "header"),
        (&large, "too_large"),
    ] {
        let mark = gateway.log().mark();
        status(&gateway, bytes.as_bytes()).await;
        let output = gateway
            .log()
            .after(mark, "it is logged", |line| line["message"] == "the request could not be read")
            .await;
        assert_eq!(
            (&output["kind"], &output["peer"]),
            (&kind.into(), &"127.0.0.1".into()),
            "{output}"
        );
        let label = format!("kind=\"{kind}\"");
        let family = "portcullis_requests_malformed_total";
        assert_eq!(gateway.metric_value(family, &[&label]).await, Some(1.0), "{kind}");
    }
    // A client that connects and disconnects has sent no request.
    let mark = gateway.log().mark();
    drop(gateway.connect().await);
    assert_eq!(gateway.get("/").send().await.status, 200);
    assert!(
        gateway.log().lines()[mark..]
            .iter()
            .all(|line| line["message"] != "the request could not be read")
    );
}

#[tokio::test]
async fn a_slow_head_is_cut_after_header_timeout() {
    let gateway = Gateway::start(&limits("header_timeout = '400ms', idle_timeout = '1h'")).await;
    for begun in ["G", "GET / HTTP/1.1\r\nHost: a", "PRI * HTTP/2.0\r\n"] {
        let mut connection = gateway.connect().await;
        let since = Instant::now();
        connection.write(begun).await;
        connection.closed().await;
        assert!(
            (Duration::from_millis(390)..Duration::from_secs(5)).contains(&since.elapsed()),
            "{begun:?}: {:?}",
            since.elapsed()
        );
    }
    // Sending one byte at a time does not help.
    let mut connection = gateway.connect().await;
    let since = Instant::now();
    while connection.try_write("X").await.is_ok() && since.elapsed() < Duration::from_secs(10) {
        if tokio::time::timeout(Duration::from_millis(50), connection.closed()).await.is_ok() {
            break;
        }
    }
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    // Nor does an earlier request.
    let mut connection = gateway.connect().await;
    assert_eq!(gateway.get("/").send_on(&mut connection).await.status, 200);
    let since = Instant::now();
    connection.write("GET").await;
    connection.closed().await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_idle_timeout() {
    let gateway =
        Gateway::start(&limits("header_timeout = '200ms', idle_timeout = '1500ms'")).await;
    let mut connection = gateway.connect().await;
    assert_eq!(gateway.get("/").send_on(&mut connection).await.status, 200);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(gateway.get("/").send_on(&mut connection).await.status, 200);
    let since = Instant::now();
    assert!(connection.closed().await.is_empty());
    assert!(
        (Duration::from_millis(1400)..Duration::from_secs(10)).contains(&since.elapsed()),
        "{:?}",
        since.elapsed()
    );
    // A connection that sends nothing is idle too.
    let since = Instant::now();
    gateway.connect().await.closed().await;
    assert!(since.elapsed() > Duration::from_millis(1400), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_slow_upstream_does_not_trigger_the_header_timeout() {
    let gateway = Gateway::start(&limits("header_timeout = '200ms', idle_timeout = '200ms'")).await;
    gateway.upstream().does(
        [
            vec![crate::harness::Step::Wait(Duration::from_millis(800))],
            answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ]
        .concat(),
    );
    assert_eq!(gateway.get("/").send().await.status, 200);
    let mut connection = gateway.connect().await;
    connection.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
    for byte in ["b", "o", "d", "y"] {
        tokio::time::sleep(Duration::from_millis(150)).await;
        connection.write(byte).await;
    }
    assert_eq!(connection.response().await.status, 200);
}

/// Some applications would read it as an octal number.
#[tokio::test]
async fn a_length_with_leading_zeros_is_written_anew() {
    let gateway = Gateway::start(&limits("")).await;
    let mut connection = gateway.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0010\r\n\r\n";
    connection.write(format!("{head}0123456789")).await;
    assert_eq!(connection.response().await.status, 200);
    let received = gateway.upstream().last();
    assert_eq!(received.header("content-length"), Some("10"));
    assert_eq!(received.body, b"0123456789");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_503() {
    let gateway = Gateway::start(&limits("max_connections = 2")).await;
    let (mut one, mut two) = (gateway.connect().await, gateway.connect().await);
    assert_eq!(gateway.get("/").send_on(&mut one).await.status, 200);
    assert_eq!(gateway.get("/").send_on(&mut two).await.status, 200);
    let mut three = gateway.connect().await;
    let refused = three.response().await;
    refused.is(503, "overloaded");
    assert_eq!(refused.header("connection"), Some("close"));
    three.closed().await;
    // The other connections are not affected, and a slot can be used again.
    assert_eq!(gateway.get("/").send_on(&mut one).await.status, 200);
    drop(two);
    within(async {
        loop {
            let mut next = gateway.connect().await;
            if next.try_write(gateway.get("/").bytes()).await.is_ok()
                && next.try_response_to("GET").await.is_some_and(|response| response.status == 200)
            {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_gets_connections_up_to_its_limit() {
    for (proxies, is_counted) in [("", true), ("server.trusted_proxies = ['127.0.0.0/8']\n", false)]
    {
        let gateway =
            Gateway::start(&format!("{proxies}{}", limits("max_connections_per_client = 2"))).await;
        gateway.upstream().does_at(
            "/ws",
            vec![
                write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
                Step::Echo,
            ],
        );
        let mut held = gateway.connect().await;
        assert_eq!(gateway.get("/").send_on(&mut held).await.status, 200);
        // A tunnel counts as well.
        let mut tunnel = gateway.connect().await;
        tunnel.write("GET /ws HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
        assert_eq!(tunnel.response().await.status, 101);
        let mut more = gateway.connect().await;
        if is_counted {
            more.response().await.is(503, "overloaded");
        } else {
            assert_eq!(gateway.get("/").send_on(&mut more).await.status, 200);
        }
        drop(tunnel);
        within(async {
            loop {
                let mut next = gateway.connect().await;
                if next.try_write(gateway.get("/").bytes()).await.is_ok()
                    && next.try_response_to("GET").await.is_some_and(|next| next.status == 200)
                {
                    break;
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_refusal_before_the_body_keeps_the_connection_in_sync() {
    let gateway =
        Gateway::start("[[route]]\npath = '/in'\nupstream = 'app'\n[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'").await;
    let mut connection = gateway.connect().await;
    connection.write("POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    connection.response().await.is(401, "credentials_missing");
    connection.try_write("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await.ok();
    let next = connection.try_response_to("GET").await;
    assert!(next.is_none_or(|response| response.status == 200));
    assert!(gateway.upstream().seen().requests.iter().all(|request| request.target == "/next"));
}
