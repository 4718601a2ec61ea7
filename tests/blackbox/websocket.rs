//! Tunnels: only WebSocket over HTTP/1.1 (CONTRACT §2, rule 11).

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tokio_tungstenite::tungstenite::{self, Message};

use crate::harness::upstream::write;
use crate::harness::{Gateway, Step, mint};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A WebSocket server that sends every message back.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
        while let Ok(message) = socket.read() {
            if socket.send(message).is_err() {
                break;
            }
        }
    });
    address
}

#[tokio::test]
async fn messages_pass_in_both_directions() {
    let gateway = Gateway::start(&format!(
        "route = [{{ path = '/*', upstream = 'app' }}]\nupstream.app.url = 'http://{}'",
        echo_server()
    ))
    .await;
    let (address, token) = (gateway.address(), mint::token(&[]));
    let echoed = tokio::task::spawn_blocking(move || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut request =
            tungstenite::client::IntoClientRequest::into_client_request("ws://app.test/ws")
                .unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let (mut socket, _) = tungstenite::client(request, stream).unwrap();
        let messages =
            [Message::text("hello"), Message::binary(vec![7; 1_000_000]), Message::text("")];
        let echoed = messages.clone().map(|message| {
            socket.send(message).unwrap();
            socket.read().unwrap()
        });
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
        echoed == messages
    });
    assert!(echoed.await.unwrap());
    let line = gateway.access("/ws").await;
    assert_eq!(
        (&line["http.response.status_code"], &line["subject"]),
        (&101.into(), &"u-17".into())
    );
    assert!(
        line["bytes_in"].as_u64().unwrap() > 1_000_000
            && line["bytes_out"].as_u64().unwrap() > 1_000_000,
        "{line}"
    );
}

#[tokio::test]
async fn the_websocket_handshake_is_forwarded_with_the_caller() {
    let gateway = Gateway::start("route = [{ path = '/*', upstream = 'app' }]").await;
    gateway.upstream().does(vec![write(SWITCHING), Step::Echo]);
    let mut connection = gateway.connect().await;
    connection
        .write(HANDSHAKE.replace(
            "\r\n\r\n",
            &format!("\r\nSec-WebSocket-Protocol: chat\r\nX-Auth-User: root\r\nAuthorization: Bearer {}\r\n\r\n", mint::token(&[])),
        ))
        .await;
    let response = connection.response().await;
    assert_eq!(
        (response.status, response.header("upgrade"), response.header("sec-websocket-accept")),
        (101, Some("websocket"), Some("x"))
    );
    let received = gateway.upstream().last();
    for (name, value) in [
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
        ("x-auth-user", "u-17"),
    ] {
        assert_eq!(received.header(name), Some(value));
    }
    assert!(received.header("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    assert_eq!(
        (received.header("sec-websocket-key"), received.header("authorization")),
        (Some("dGhlIHNhbXBsZSBub25jZQ=="), None)
    );
    connection.write("any bytes").await;
    assert_eq!(connection.exactly(9).await.unwrap(), b"any bytes");
    assert_eq!(gateway.metric_value("portcullis_tunnels", &[]).await, Some(1.0));
    connection.shut_down().await;
    assert!(connection.closed().await.is_empty());
    gateway.upstream().until(|seen| seen.closed == 1).await;
}

#[tokio::test]
async fn bytes_right_after_the_handshake_are_not_lost() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(vec![write(&format!("{SWITCHING}greeting")), Step::Echo]);
    let mut connection = gateway.connect().await;
    connection.write(format!("{HANDSHAKE}early")).await;
    assert_eq!(connection.response().await.status, 101);
    let both = connection.exactly(13).await.unwrap();
    assert_eq!(both, b"greetingearly");
}

#[tokio::test]
async fn a_tunnel_needs_a_token_like_any_request() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', roles = ['admin'] }]").await;
    gateway.raw(HANDSHAKE).await.is(401, "credentials_missing");
    let user = HANDSHAKE.replace(
        "\r\n\r\n",
        &format!("\r\nAuthorization: Bearer {}\r\n\r\n", mint::token(&["user"])),
    );
    gateway.raw(user).await.is(403, "role_missing");
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_tunnel_by_cookie_needs_our_origin() {
    let gateway =
        Gateway::start("route = [{ path = '/*', upstream = 'app', token_from = ['cookie'] }]")
            .await;
    gateway.upstream().does(vec![write(SWITCHING), Step::Echo]);
    let cookie = format!("Cookie: __Host-portcullis={}", mint::token(&[]));
    for (origin, status) in [
        ("", 403),
        ("\r\nOrigin: http://evil.test", 403),
        ("\r\nOrigin: null", 403),
        ("\r\nOrigin: http://app.test", 101),
    ] {
        let response = gateway
            .raw(HANDSHAKE.replace("\r\n\r\n", &format!("\r\n{cookie}{origin}\r\n\r\n")))
            .await;
        assert_eq!(response.status, status, "{origin}");
    }
}

#[tokio::test]
async fn every_other_upgrade_is_removed() {
    let gateway = Gateway::start(PUBLIC).await;
    for (what, head) in [
        (
            "h2c",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        ),
        (
            "two",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        ),
        (
            "twice",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n",
        ),
        ("tls", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: TLS/1.2\r\n\r\n"),
        (
            "not a GET",
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        ),
        ("no connection", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"),
        ("1.0", "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    ] {
        let mut connection = gateway.connect().await;
        connection.write(head).await;
        if what == "1.0" {
            connection.shut_down().await;
            connection.closed().await;
        } else {
            assert_eq!(connection.response().await.status, 200, "{what}");
        }
        let received = gateway.upstream().last();
        for name in ["upgrade", "http2-settings"] {
            assert_eq!(received.header(name), None, "{what}");
        }
        let connection = (what == "not a GET").then_some("close");
        assert_eq!(received.header("connection"), connection, "{what}");
    }
}

#[tokio::test]
async fn an_unrequested_protocol_switch_is_an_upstream_failure() {
    let gateway = Gateway::start(PUBLIC).await;
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket, h2c\r\nConnection: upgrade\r\n\r\n",
    ] {
        gateway.upstream().does(vec![write(answer), Step::Echo]);
        gateway.raw(HANDSHAKE).await.is(502, "upstream_failed");
    }
}

#[tokio::test]
async fn an_upstream_can_decline_an_upgrade() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().answers("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nno");
    let mut connection = gateway.connect().await;
    connection.write(HANDSHAKE).await;
    let response = connection.response().await;
    assert_eq!((response.status, response.text().as_str()), (426, "no"));
    gateway.upstream().answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(gateway.get("/").send_on(&mut connection).await.status, 200);
}

#[tokio::test]
async fn a_silent_tunnel_ends_after_the_idle_timeout() {
    let gateway = Gateway::start(&format!("{PUBLIC}\nupstream.app.idle_timeout = '300ms'")).await;
    gateway.upstream().does(vec![write(SWITCHING), Step::Echo]);
    let mut connection = gateway.connect().await;
    connection.write(HANDSHAKE).await;
    assert_eq!(connection.response().await.status, 101);
    connection.closed().await;
    gateway.upstream().until(|seen| seen.closed == 1).await;
    gateway.access("/ws").await;
}

#[tokio::test]
async fn a_tunnel_outlives_the_timeouts_of_the_server() {
    let gateway = Gateway::start(&format!(
        "server.limits = {{ header_timeout = '200ms', idle_timeout = '200ms', body_idle_timeout = '200ms' }}\n{PUBLIC}"
    ))
    .await;
    gateway.upstream().does(vec![
        write(SWITCHING),
        Step::Wait(Duration::from_millis(700)),
        write("late"),
        Step::Echo,
    ]);
    let mut connection = gateway.connect().await;
    connection.write(HANDSHAKE).await;
    assert_eq!(connection.response().await.status, 101);
    assert_eq!(connection.exactly(4).await.unwrap(), b"late");
    connection.write("hello").await;
    assert_eq!(connection.exactly(5).await.unwrap(), b"hello");
}
