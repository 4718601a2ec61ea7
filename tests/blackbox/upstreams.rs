//! How applications are reached: sockets of this machine, certificates, limits and deadlines
//! (CONTRACT §16 `[upstream.*]`).

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::task::JoinSet;

use crate::harness::certificates::{Authority, authority};
use crate::harness::upstream::{answer, write};
use crate::harness::{Gateway, Step, Upstream, h2, within};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn an_application_can_listen_on_a_unix_socket() {
    let setup = Gateway::setup(&format!("upstream.app.url = 'unix:app.sock'\n{PUBLIC}"));
    let listener = UnixListener::bind(setup.path().join("app.sock")).unwrap();
    let application = tokio::spawn(async move {
        let mut heads = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(OK.as_bytes()).await.unwrap();
            heads.push(String::from_utf8(head).unwrap());
            if heads.len() == 2 {
                return heads;
            }
        }
    });
    let gateway = setup.start().await;
    for path in ["/a", "/b"] {
        assert_eq!(gateway.get(path).send().await.text(), "ok");
    }
    let heads = within(application).await.unwrap();
    assert!(heads[0].starts_with("GET /a HTTP/1.1\r\n"), "{heads:?}");
    assert!(heads[0].to_lowercase().contains("\r\nhost: app.test\r\n"), "{heads:?}");
    // Nobody listens any more.
    gateway.get("/c").send().await.is(502, "upstream_unreachable");
    let nowhere = format!("upstream.app.url = 'unix:'\n{PUBLIC}");
    assert_eq!(gateway.reload(&nowhere).await["level"], "error");
}

/// As with TCP, where the system waits.
#[tokio::test]
async fn an_application_may_accept_late_on_a_unix_socket() {
    let config =
        format!("upstream.app = {{ url = 'unix:app.sock', connect_timeout = '50ms' }}\n{PUBLIC}");
    let setup = Gateway::setup(&config);
    let path = setup.path().join("app.sock");
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(&path).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = UnixStream::connect(&path).await {
        queued.push(stream);
    }
    let gateway = setup.start().await;
    gateway.get("/").send().await.is(504, "upstream_timeout");
    let cause = gateway.log().until("the cause is named", |line| line["cause"].is_string()).await;
    assert!(cause["cause"].as_str().unwrap().contains("backlog"), "{cause}");
    drop(listener);
}

#[tokio::test]
async fn an_application_can_ask_for_a_certificate_and_another_name() {
    let clients = Authority::new();
    let upstream =
        Upstream::start_tls(authority().issue(&["app.internal"]).server_for(&clients)).await;
    let own = clients.issue_to(vec![], "gateway");
    let config = |tls: &str| {
        format!(
            "upstream.app = {{ url = 'https://$UPSTREAM', tls = {{ ca = 'ca.pem'{tls} }} }}\n{PUBLIC}"
        )
    };
    let shown = ", certificate = 'own.crt', private_key = { file = 'own.key' }";
    let named = ", server_name = 'app.internal'";
    let gateway = Gateway::setup(&config(&format!("{shown}{named}")))
        .file("ca.pem", &authority().pem)
        .file("own.crt", &own.chain)
        .file("own.key", &own.key)
        .upstream(upstream.clone())
        .start()
        .await;
    assert_eq!(gateway.get("/").send().await.text(), "ok");
    for (tls, what) in [(shown, "the wrong name"), (named, "no certificate")] {
        assert_eq!(gateway.reload(&config(tls)).await["message"], "reloaded");
        let status = gateway.get("/").send().await.status;
        assert_eq!(status, 502, "{what}");
    }
    // A key that does not belong to the certificate is found before anything is sent.
    let other = clients.issue_to(vec![], "other");
    std::fs::write(gateway.path("own.key"), other.key).unwrap();
    assert_eq!(gateway.reload(&config(shown)).await["level"], "error");
}

#[tokio::test]
async fn requests_beyond_max_requests_are_refused_until_one_has_ended() {
    let config = format!("upstream.app.max_requests = 2\n{PUBLIC}");
    let gateway = Gateway::start(&config).await;
    let begun = write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    gateway.upstream().does(vec![begun, Step::Hold, write("ok")]);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = gateway.connect().await;
        connection.write(gateway.get("/held").bytes()).await;
        assert_eq!(connection.head().await.unwrap().status, 200);
        held.push(connection);
    }
    // The head has arrived, but the response has not ended.
    for _ in 0..2 {
        let refused = gateway.get("/more").send().await;
        refused.is(503, "overloaded");
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    // Those of a replaced section count too.
    gateway.reload(&format!("upstream.app.idle_timeout = '50s'\n{config}")).await;
    gateway.get("/more").send().await.is(503, "overloaded");
    assert_eq!(gateway.upstream().count(), 2);
    // One client leaves; the other one gets its response.
    drop(held.pop());
    gateway.upstream().answers(OK);
    within(async { while gateway.get("/next").send().await.status == 503 {} }).await;
    gateway.upstream().release();
    gateway.upstream().release();
    assert_eq!(held[0].exactly(2).await.unwrap(), b"ok");
    assert_eq!(gateway.get("/last").send().await.status, 200);
}

#[tokio::test]
async fn an_exchange_ends_after_total_timeout() {
    let gateway = Gateway::start(&format!("upstream.app.total_timeout = '500ms'\n{PUBLIC}")).await;
    gateway.upstream().does_at("/silent", vec![Step::Hold]);
    let mut dripping = vec![write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")];
    for _ in 0..100 {
        dripping.extend([Step::Wait(Duration::from_millis(50)), write("x")]);
    }
    gateway.upstream().does_at("/dripping", dripping);
    let begun = Instant::now();
    gateway.get("/silent").send().await.is(504, "upstream_timeout");
    let response = gateway.get("/dripping").send().await;
    assert_eq!((response.status, response.complete), (200, false));
    assert!(begun.elapsed() < Duration::from_secs(4));
    let line = gateway.access("/dripping").await;
    assert_eq!(
        (line["reason"].as_str(), line["outcome"].as_str()),
        (Some("upstream_timeout"), Some("failed"))
    );
    gateway.upstream().does(answer(OK));
    for _ in 0..3 {
        assert_eq!(gateway.get("/").send().await.text(), "ok");
    }
}

/// Nothing polls the body of such a response.
#[tokio::test]
async fn a_response_that_is_not_read_ends_after_total_timeout() {
    let config =
        "upstream.app = { url = 'http://$UPSTREAM', total_timeout = '500ms', max_requests = 1 }";
    let gateway = Gateway::start(&format!("{config}\nserver.h2c = true\n{PUBLIC}")).await;
    gateway.upstream().does_at(
        "/flood",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), Step::Flood],
    );
    gateway.upstream().does_at("/next", answer(OK));
    let mut unread = gateway.connect().await;
    unread.write("GET /flood HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert_eq!(unread.head().await.unwrap().status, 200);
    gateway.upstream().until(|seen| seen.closed == 1).await;
    // Its window stays closed.
    let mut unread = h2::Connection::open(&gateway).await;
    let head = unread.head(h2::get("http://app.test/flood")).await.unwrap();
    gateway.upstream().until(|seen| seen.closed == 2).await;
    assert_eq!(gateway.get("/next").send().await.status, 200);
    for _ in 0..2 {
        let line = gateway.access("/flood").await;
        assert_eq!(line["reason"], "upstream_timeout", "{line}");
    }
    drop(head);
}

/// A listener whose queue is full: connecting to it neither succeeds nor fails.
async fn silent() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        queued.push(stream.unwrap());
    }
    (listener, queued)
}

#[tokio::test]
async fn only_one_request_waits_for_an_application_that_does_not_respond() {
    let (listener, queued) = silent().await;
    let address = listener.local_addr().unwrap();
    let gateway = Gateway::start(&format!(
        "upstream.app = {{ url = 'http://{address}', connect_timeout = '400ms' }}\n{PUBLIC}"
    ))
    .await;
    for _ in 0..3 {
        gateway.get("/").send().await.is(504, "upstream_timeout");
    }
    let mut answers = JoinSet::new();
    for _ in 0..6 {
        let request = gateway.get("/");
        answers.spawn(async move { request.send().await.status });
    }
    let mut statuses = within(answers.join_all()).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [502, 502, 502, 502, 502, 504]);
    // It responds again: the next attempt finds that out, and all requests connect.
    drop(queued);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let _ = stream.write_all(OK.as_bytes()).await;
            });
        }
    });
    within(async { while gateway.get("/").send().await.status != 200 {} }).await;
    for _ in 0..6 {
        assert_eq!(gateway.get("/").send().await.status, 200);
    }
}
