//! Streams end with what admitted them (CONTRACT §5, §16.1): with their token, session, account,
//! route or role; with the close of their protocol.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use futures_util::{SinkExt, StreamExt};

use crate::commands::done;
use crate::harness::accounts::open;
use crate::harness::client::Request;
use crate::harness::jar::{ACCESS, Jar, SESSION, logged_in};
use crate::harness::mint::{claims, now};
use crate::harness::upstream::write;
use crate::harness::{Connection, Gateway, Step, h2, within};

const OPERATOR: &str = "the-token-of-the-operators";

/// How soon a stream must have ended.
const SOON: Duration = Duration::from_secs(1);

const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n";

/// How many seconds after `exp` a token is still accepted, by default.
const LEEWAY: u64 = 30;

type WebSocket = WebSocketStream<TcpStream>;

/// A WebSocket server that sends every message back, and the close frames that it receives.
struct EchoServer {
    address: SocketAddr,
    closes: mpsc::Receiver<Option<(u16, String)>>,
}

impl EchoServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, closes) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    let mut socket = tungstenite::accept(stream).unwrap();
                    loop {
                        match socket.read() {
                            Ok(Message::Close(frame)) => {
                                let close = frame
                                    .map(|frame| (frame.code.into(), frame.reason.to_string()));
                                let _ = sender.send(close);
                            }
                            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                                if socket.send(message).is_err() {
                                    break;
                                }
                            }
                            Ok(_) => {}
                            Err(_) => break,
                        }
                    }
                });
            }
        });
        Self { address, closes }
    }

    /// What the last close frame said.
    fn close(&self) -> (u16, String) {
        self.closes.recv_timeout(Duration::from_secs(10)).unwrap().expect("a code")
    }
}

/// A gateway in front of a WebSocket server, with the token of an operator.
async fn start(config: &str) -> (Gateway, EchoServer) {
    let server = EchoServer::start();
    let config = format!("{config}\n[upstream.ws]\nurl = 'http://{}'\n", server.address);
    let setup = Gateway::setup(&config).file("admin.token", format!("{OPERATOR}\n"));
    (setup.start().await, server)
}

const ROUTES: &str = "admin.token = { file = 'admin.token' }\n\
    route = [{ name = 'all', path = '/*', upstream = 'app' }, { name = 'ws', path = '/ws/*', upstream = 'ws' }]";

/// Opens a WebSocket with these fields.
async fn open_at(gateway: &Gateway, path: &str, fields: &[(&'static str, &str)]) -> WebSocket {
    let mut request = format!("ws://app.test{path}").into_client_request().unwrap();
    for (name, value) in fields {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    within(client_async(request, stream)).await.unwrap().0
}

async fn open_ws(gateway: &Gateway, token: &str) -> WebSocket {
    open_at(gateway, "/ws/chat", &[("authorization", &format!("Bearer {token}"))]).await
}

/// Asserts that a message comes back.
async fn echoes(socket: &mut WebSocket) {
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(within(socket.next()).await.unwrap().unwrap(), Message::text("hello"));
}

/// What the close frame says that the client gets, and that the connection ends after it.
async fn closed(socket: &mut WebSocket) -> (u16, String) {
    let begun = Instant::now();
    let close = loop {
        match within(socket.next()).await {
            Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                break (code.into(), reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("no close frame: {other:?}"),
        }
    };
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    match within(socket.next()).await {
        None | Some(Err(Error::ConnectionClosed)) => {}
        other => panic!("not closed: {other:?}"),
    }
    close
}

async fn revoke(gateway: &Gateway, body: Value) {
    let request = Request::new(gateway.admin_address(), "POST", "/revoke").bearer(OPERATOR);
    assert_eq!(request.body(body.to_string()).send().await.status, 204);
}

/// The open streams, once there are this many.
async fn listed(gateway: &Gateway, count: usize) -> Vec<Value> {
    within(async {
        loop {
            let streams = gateway.admin("/streams").await.json().as_array().unwrap().clone();
            if streams.len() == count {
                return streams;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

fn closes(code: u16, reason: &str) -> (u16, String) {
    (code, reason.to_owned())
}

#[tokio::test]
async fn a_revoked_websocket_is_closed_properly_on_both_sides() {
    for (name, value) in [("jti", "t-1"), ("sid", "s-1"), ("subject", "u-1")] {
        let (gateway, server) = start(ROUTES).await;
        let token = |number: u32| {
            claims(
                json!({ "sub": format!("u-{number}"), "jti": format!("t-{number}"), "sid": format!("s-{number}"), "iat": now() - 5 }),
            )
        };
        let mut one = open_ws(&gateway, &token(1)).await;
        let mut other = open_ws(&gateway, &token(2)).await;
        echoes(&mut one).await;
        revoke(&gateway, json!({ name: value })).await;
        assert_eq!(closed(&mut one).await, closes(1008, "revoked"), "{name}");
        assert_eq!(server.close(), closes(1008, "revoked"));
        echoes(&mut other).await;
        let line = gateway.access("/ws/chat").await;
        assert_eq!(
            (&line["reason"], &line["outcome"], &line["http.response.status_code"]),
            (&json!("token_revoked"), &json!("refused"), &json!(101))
        );
        let streams = listed(&gateway, 1).await;
        assert_eq!(
            (&streams[0]["subject"], &streams[0]["kind"]),
            (&json!("u-2"), &json!("websocket"))
        );
        assert_eq!(
            gateway.metric_value("portcullis_streams_ended_total", &["reason=\"revoked\""]).await,
            Some(1.0)
        );
    }
}

/// A close frame may not stand inside another frame: the rest of that one passes first.
#[tokio::test]
async fn a_frame_that_has_begun_passes_before_the_close() {
    let (gateway, _) = start(ROUTES).await;
    gateway.upstream().does(vec![
        write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ),
        Step::Write(vec![0x82, 6, b'a', b'b', b'c']),
        // The gateway closes this side at once, in the middle of the frame.
        Step::ReadToEnd,
        Step::Write([&b"def"[..], &[0x82, 3], b"not"].concat()),
        Step::Close,
    ]);
    let mut connection = gateway.connect().await;
    connection
        .write(format!(
            "GET /chat HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nAuthorization: Bearer {}\r\n\r\n",
            claims(json!({ "jti": "t" }))
        ))
        .await;
    assert_eq!(connection.response().await.status, 101);
    assert_eq!(connection.exactly(5).await.unwrap(), b"\x82\x06abc");
    revoke(&gateway, json!({ "jti": "t" })).await;
    assert_eq!(connection.closed().await, b"def\x88\x09\x03\xf0revoked");
}

/// Nor does a response reach whoever lost access while the application took its time.
#[tokio::test]
async fn a_response_that_comes_after_the_revocation_is_refused() {
    let (gateway, _) = start(ROUTES).await;
    gateway
        .upstream()
        .does(vec![Step::Hold, write("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")]);
    let mut connection = gateway.connect().await;
    let request = gateway.get("/poll").bearer(&claims(json!({ "jti": "t" })));
    connection.write(request.bytes()).await;
    gateway.upstream().until(|seen| !seen.requests.is_empty()).await;
    revoke(&gateway, json!({ "jti": "t" })).await;
    // What takes longer than this is long.
    tokio::time::sleep(Duration::from_millis(260)).await;
    gateway.upstream().release();
    connection.response().await.is(401, "token_revoked");
}

/// A response that is running ends without its end.
#[tokio::test]
async fn a_revoked_response_is_cut_on_either_protocol() {
    let (gateway, _) = start(&format!("{ROUTES}\nserver.h2c = true")).await;
    gateway.upstream().does_at("/events", vec![write(EVENTS), Step::Hold]);
    gateway.upstream().does_at(
        "/flood",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), Step::Flood],
    );
    let token = claims(json!({ "sid": "s" }));
    let mut events = event_stream(&gateway, &token).await;
    // This client does not read.
    let mut flood = gateway.connect().await;
    flood.write(gateway.get("/flood").bearer(&token).bytes()).await;
    assert_eq!(flood.head().await.unwrap().status, 200);
    let mut h2 = h2::Connection::open(&gateway).await;
    let mut request = h2::get("http://app.test/events");
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let answer = h2.head(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut answer = answer.into_body();
    let streams = listed(&gateway, 3).await;
    let kinds: Vec<_> = streams.iter().map(|stream| stream["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "event-stream").count(), 2, "{kinds:?}");
    let begun = Instant::now();
    revoke(&gateway, json!({ "sid": "s" })).await;
    assert_eq!(events.closed().await, b"");
    let error = loop {
        match within(http_body_util::BodyExt::frame(&mut answer)).await.expect("no end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(format!("{error:?}").contains("Reset"), "{error:?}");
    gateway.upstream().until(|seen| seen.closed == 3).await;
    listed(&gateway, 0).await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    flood.closed().await;
    // The HTTP/2 connection goes on.
    gateway
        .upstream()
        .does_at("/short", vec![write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]);
    let mut request = h2::get("http://app.test/short");
    let token = claims(json!({ "sid": "s2" }));
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    assert_eq!(h2.send(request).await.status, 200);
}

/// What hyper keeps until the client grants a window does not delay the reset.
#[tokio::test]
async fn a_revoked_response_is_reset_although_its_client_grants_no_window() {
    let (gateway, _) = start(&format!("{ROUTES}\nserver.h2c = true")).await;
    gateway.upstream().does_at(
        "/flood",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), Step::Flood],
    );
    let (token, other) = (claims(json!({ "sid": "s" })), claims(json!({ "sid": "other" })));
    let mut client = window_client(&gateway).await;
    let mut body = client.ask("/flood", &token).await;
    listed(&gateway, 1).await;
    let begun = Instant::now();
    revoke(&gateway, json!({ "sid": "s" })).await;
    assert_eq!(body.reset().await, Some(::h2::Reason::CANCEL));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    listed(&gateway, 0).await;
    gateway.upstream().until(|seen| seen.closed == 1).await;
    let line = gateway.access("/flood").await;
    assert_eq!(
        (&line["outcome"], &line["reason"]),
        (&json!("refused"), &json!("token_revoked")),
        "{line}"
    );
    // Others on the connection go on.
    let second = client.ask("/flood", &other).await;
    assert!(second.received > 0);
}

/// The window of most clients is smaller than what makes a response a stream.
#[tokio::test]
async fn a_response_whose_client_does_not_read_is_a_stream_before_long() {
    let config = format!("{ROUTES}\nserver.h2c = true\nupstream.app.max_requests = 1");
    let (gateway, _) = start(&config).await;
    gateway.upstream().does_at(
        "/flood",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), Step::Flood],
    );
    for (number, window) in [1, 16_384, 65_535].into_iter().enumerate() {
        let token = claims(json!({ "sid": "s", "jti": window.to_string() }));
        let mut client = window_client_of(&gateway, window).await;
        let mut body = client.ask("/flood", &token).await;
        listed(&gateway, 1).await;
        revoke(&gateway, json!({ "jti": window.to_string() })).await;
        assert_eq!(body.reset().await, Some(::h2::Reason::CANCEL), "{window}");
        listed(&gateway, 0).await;
        gateway.upstream().until(|seen| seen.closed == number + 1).await;
    }
}

/// So is one whose client does not read for `idle_timeout`; its connection goes on.
#[tokio::test]
async fn a_response_that_is_not_read_is_reset_after_the_idle_timeout() {
    let (gateway, _) =
        start(&format!("{ROUTES}\nserver.h2c = true\nserver.limits.idle_timeout = '1s'")).await;
    gateway.upstream().does_at(
        "/flood",
        vec![write("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), Step::Flood],
    );
    let token = claims(json!({ "sid": "s" }));
    let mut client = window_client(&gateway).await;
    let mut body = client.ask("/flood", &token).await;
    assert_eq!(body.reset().await, Some(::h2::Reason::CANCEL));
    gateway.upstream().until(|seen| seen.closed == 1).await;
    assert!(client.ask("/flood", &token).await.received > 0);
}

/// A client that grants each stream so many bytes and then no more.
struct WindowClient {
    sender: ::h2::client::SendRequest<bytes::Bytes>,
    window: usize,
}

/// More than a response may have that is not a stream.
const WINDOW: usize = 400_000;

/// The body of a response whose window is used up.
struct Unread {
    body: ::h2::RecvStream,
    received: usize,
}

async fn window_client(gateway: &Gateway) -> WindowClient {
    window_client_of(gateway, WINDOW).await
}

async fn window_client_of(gateway: &Gateway, window: usize) -> WindowClient {
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    let mut builder = ::h2::client::Builder::new();
    let of_connection = u32::try_from(10 * WINDOW).unwrap();
    builder.initial_window_size(u32::try_from(window).unwrap());
    builder.initial_connection_window_size(of_connection);
    let (sender, connection) = within(builder.handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    WindowClient { sender, window }
}

impl WindowClient {
    /// Asks, and receives until the window is used up.
    async fn ask(&mut self, path: &str, token: &str) -> Unread {
        let request = http::Request::get(format!("http://app.test{path}"))
            .header("authorization", format!("Bearer {token}"));
        let (answer, _) = self.sender.send_request(request.body(()).unwrap(), true).unwrap();
        let answer = within(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        let (mut body, mut received) = (answer.into_body(), 0);
        while received < self.window {
            received += within(body.data()).await.unwrap().unwrap().len();
        }
        Unread { body, received }
    }
}

impl Unread {
    /// Why the gateway resets the stream.
    async fn reset(&mut self) -> Option<::h2::Reason> {
        within(self.body.data()).await?.unwrap_err().reason()
    }
}

/// The head and the first event of an event stream.
async fn event_stream(gateway: &Gateway, token: &str) -> Connection {
    let mut connection = gateway.connect().await;
    connection.write(gateway.get("/events").bearer(token).bytes()).await;
    let mut head = connection.head().await.unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(connection.chunk(&mut head).await.unwrap(), b"data:");
    connection
}

/// An upload has no response yet: its client is told why.
#[tokio::test]
async fn a_revoked_upload_is_refused() {
    let (gateway, _) = start(ROUTES).await;
    gateway.upstream().does(vec![Step::ReadBody]);
    let token = claims(json!({ "jti": "t" }));
    let mut slow = gateway.connect().await;
    slow.write(format!(
        "POST /slow HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\nfirst"
    ))
    .await;
    let mut large = gateway.connect().await;
    large
        .write(format!(
            "POST /large HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000000\r\n\r\n{}",
            "x".repeat(500_000)
        ))
        .await;
    let streams = listed(&gateway, 2).await;
    assert!(streams.iter().all(|stream| stream["kind"] == "upload"), "{streams:?}");
    revoke(&gateway, json!({ "jti": "t" })).await;
    slow.response().await.is(401, "token_revoked");
    large.response().await.is(401, "token_revoked");
    gateway.upstream().until(|seen| seen.closed == 2).await;
    assert!(gateway.upstream().seen().requests.iter().all(|request| !request.complete));
    assert_eq!(gateway.access("/slow").await["reason"], "token_revoked");
    // One that ends in time is not a stream.
    gateway.upstream().answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let small = gateway.request("POST", "/").bearer(&claims(json!({}))).body("x".repeat(200_000));
    assert_eq!(small.send().await.status, 200);
    listed(&gateway, 0).await;
}

#[tokio::test]
async fn short_responses_are_not_streams() {
    let (gateway, _) = start(ROUTES).await;
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{}", "x".repeat(200_000));
    gateway.upstream().answers(&large);
    for _ in 0..20 {
        assert_eq!(gateway.get("/").bearer(&claims(json!({}))).send().await.status, 200);
    }
    listed(&gateway, 0).await;
    assert_eq!(gateway.metric_value("portcullis_streams", &[]).await, Some(0.0));
}

#[tokio::test]
async fn a_stream_ends_with_its_token_where_the_route_says_so() {
    let rules = ROUTES.replace("path = '/ws/*',", "path = '/ws/*', streams = 'token',");
    let (gateway, _) = start(&rules).await;
    let begun = Instant::now();
    let token = claims(json!({ "exp": now() - LEEWAY + 2 }));
    let mut events = {
        gateway.upstream().does_at("/events", vec![write(EVENTS), Step::Hold, write("0\r\n\r\n")]);
        event_stream(&gateway, &token).await
    };
    let mut socket = open_ws(&gateway, &token).await;
    echoes(&mut socket).await;
    assert_eq!(closed_later(&mut socket).await, closes(1008, "expired"));
    let lasted = begun.elapsed();
    assert!(lasted > Duration::from_millis(900) && lasted < Duration::from_secs(4), "{lasted:?}");
    let line = gateway.access("/ws/chat").await;
    assert_eq!(line["reason"], "token_expired");
    // The other route lets a stream outlive its token.
    gateway.upstream().release();
    assert_eq!(events.exactly(5).await.unwrap(), b"0\r\n\r\n");
}

/// As [`closed`], but it may take longer until the close.
async fn closed_later(socket: &mut WebSocket) -> (u16, String) {
    match within(socket.next()).await {
        Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
            (code.into(), reason.to_string())
        }
        other => panic!("no close frame: {other:?}"),
    }
}

#[tokio::test]
async fn a_stream_ends_at_the_age_that_the_route_sets() {
    let rules = ROUTES.replace("path = '/ws/*',", "path = '/ws/*', stream_max_age = '1s',");
    let (gateway, _) = start(&rules).await;
    let mut socket = open_ws(&gateway, &claims(json!({}))).await;
    assert_eq!(closed_later(&mut socket).await, closes(1008, "max_age"));
    // The decision about the request stands.
    assert_eq!(gateway.access("/ws/chat").await["outcome"], "allowed");
}

#[tokio::test]
async fn a_reload_ends_only_what_it_takes_away() {
    let route = |name: &str, more: &str| {
        format!("{{ name = '{name}', path = '/ws/{name}', upstream = 'ws'{more} }}")
    };
    let server = EchoServer::start();
    let config = |routes: &[String]| {
        format!("route = [{}]\nupstream.ws.url = 'http://{}'", routes.join(", "), server.address)
    };
    let all = ["a", "b", "c", "d"].map(|name| route(name, ""));
    let gateway = Gateway::start(&config(&all)).await;
    let token = crate::harness::mint::token(&["user"]);
    let mut sockets = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let bearer = format!("Bearer {token}");
        sockets
            .push(open_at(&gateway, &format!("/ws/{name}"), &[("authorization", &bearer)]).await);
    }
    let [mut a, mut b, mut c, mut d] = <[WebSocket; 4]>::try_from(sockets).unwrap();
    for _ in 0..10 {
        gateway.reload(&config(&all)).await;
    }
    for socket in [&mut a, &mut b, &mut c, &mut d] {
        echoes(socket).await;
    }
    // A new setting, a role that the caller has, one that it lacks, and no route any more.
    gateway
        .reload(&config(&[
            route("a", ", forward_authorization = true"),
            route("b", ", roles = ['user']"),
            route("c", ", roles = ['admin']"),
        ]))
        .await;
    assert_eq!(closed(&mut c).await, closes(1008, "not_allowed"));
    assert_eq!(closed(&mut d).await, closes(1001, "route_gone"));
    for socket in [&mut a, &mut b] {
        echoes(socket).await;
    }
    assert_eq!(gateway.access("/ws/c").await["reason"], "role_missing");
    assert_eq!(gateway.access("/ws/d").await["reason"], "route_not_found");
    // A route that is more specific, and the age of a route.
    gateway
        .reload(&config(&[
            route("*", ", stream_max_age = '1s'"),
            route("b", ", roles = ['admin']"),
        ]))
        .await;
    assert_eq!(closed(&mut b).await, closes(1008, "not_allowed"));
    assert_eq!(closed_later(&mut a).await, closes(1008, "max_age"));
}

#[tokio::test]
async fn the_drain_ends_streams_last_and_properly() {
    let (gateway, server) = start(&format!("{ROUTES}\nserver.drain_timeout = '500ms'")).await;
    let mut socket = open_ws(&gateway, &claims(json!({}))).await;
    gateway.signal("TERM");
    gateway.log().until("it drains", |line| line["message"] == "draining").await;
    echoes(&mut socket).await;
    assert_eq!(closed_later(&mut socket).await, closes(1001, "draining"));
    assert_eq!(server.close(), closes(1001, "draining"));
    assert_eq!(gateway.exited().await.code(), Some(0));
    assert_eq!(gateway.access("/ws/chat").await["outcome"], "allowed");
}

/// A page in a browser keeps its WebSocket through reloads, and while its session is renewed, until
/// it logs out.
#[tokio::test]
async fn a_websocket_moves_to_the_newer_tokens_of_its_session() {
    let server = EchoServer::start();
    let config = open("access_token_ttl = '4s'").replace(
        "token_from = ['header', 'cookie']",
        "token_from = ['header', 'cookie']\nstreams = 'token'",
    );
    let config = config.replace("upstream = 'app'", "upstream = 'ws'");
    let config = format!("{config}\n[upstream.ws]\nurl = 'http://{}'", server.address);
    let gateway = Gateway::start(&config).await;
    let mut jar = logged_in(&gateway).await;
    let cookie = |jar: &Jar| format!("{ACCESS}={}; {SESSION}={}", jar.access, jar.session);
    let own = ("origin", "http://app.test");
    let mut socket = open_at(&gateway, "/ws", &[own, ("cookie", &cookie(&jar))]).await;
    let mut lost = open_at(&gateway, "/ws", &[own, ("cookie", &cookie(&jar))]).await;
    // Each renewal comes before the token of the stream expires.
    let (mut renewals, mut reloads) = (0, 0);
    while renewals < 3 || reloads < 100 {
        let renew_at = tokio::time::Instant::now() + Duration::from_millis(1500);
        while reloads < 100 && tokio::time::Instant::now() < renew_at {
            let other =
                if reloads % 2 == 0 { "\n[limit.other]\nrequests = 1\nper = '1s'" } else { "" };
            assert_eq!(gateway.reload(&format!("{config}{other}")).await["message"], "reloaded");
            reloads += 1;
        }
        tokio::time::sleep_until(renew_at).await;
        let session = format!("{SESSION}={}", jar.session);
        let response = gateway.get("/auth/me").header("Cookie", &session).send().await;
        assert_eq!(response.status, 200, "{response:?}");
        jar = Jar::of(&response);
        renewals += 1;
        echoes(&mut socket).await;
    }
    echoes(&mut lost).await;
    let response = gateway
        .request("POST", "/auth/logout")
        .header("Cookie", &cookie(&jar))
        .header("Origin", "http://app.test")
        .send()
        .await;
    assert_eq!(response.status, 204, "{response:?}");
    assert_eq!(closed(&mut socket).await, closes(1008, "revoked"));
    assert_eq!(closed(&mut lost).await, closes(1008, "revoked"));
}

/// Nobody ends such a session; it just is not renewed any more.
#[tokio::test]
async fn a_websocket_ends_with_a_session_that_expires() {
    let server = EchoServer::start();
    let config = open("access_token_ttl = '1s'\nrefresh_token_ttl = '3s'")
        .replace("upstream = 'app'", "upstream = 'ws'");
    let gateway =
        Gateway::start(&format!("{config}\n[upstream.ws]\nurl = 'http://{}'", server.address))
            .await;
    let jar = logged_in(&gateway).await;
    let cookie = format!("{ACCESS}={}", jar.access);
    let fields = [("origin", "http://app.test"), ("cookie", &*cookie)];
    let mut socket = open_at(&gateway, "/ws", &fields).await;
    let begun = Instant::now();
    assert_eq!(closed_later(&mut socket).await, closes(1008, "expired"));
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_an_operator_takes_away_ends_streams() {
    let server = EchoServer::start();
    let config = open("").replace("upstream = 'app'", "upstream = 'ws'");
    let gateway =
        Gateway::start(&format!("{config}\n[upstream.ws]\nurl = 'http://{}'", server.address))
            .await;
    gateway.register("ann@example.com").await;
    for command in [
        &["user", "disable", "ann@example.com"][..],
        &["user", "set-roles", "ann@example.com", "user"],
    ] {
        let mut socket = open_ws(&gateway, &gateway.login("ann@example.com").await.access).await;
        echoes(&mut socket).await;
        done(&gateway, command, "");
        assert_eq!(closed(&mut socket).await, closes(1008, "revoked"), "{command:?}");
        if command[1] == "disable" {
            done(&gateway, &["user", "enable", "ann@example.com"], "");
        }
    }
}

#[tokio::test]
async fn an_operator_lists_streams_and_ends_one() {
    let (gateway, _) = start(ROUTES).await;
    let token = claims(json!({ "sub": "ann", "sid": "s" }));
    let mut one = open_ws(&gateway, &token).await;
    let mut other = open_ws(&gateway, &token).await;
    echoes(&mut one).await;
    let streams = listed(&gateway, 2).await;
    let stream = &streams[0];
    for (name, value) in [
        ("route", "ws"),
        ("subject", "ann"),
        ("sid", "s"),
        ("kind", "websocket"),
        ("path", "/ws/chat"),
        ("issuer", "corp"),
    ] {
        assert_eq!(stream[name], value, "{stream}");
    }
    assert!(stream["since"].as_str().unwrap().ends_with('Z'), "{stream}");
    assert!(streams.iter().any(|stream| stream["bytes"].as_u64() > Some(10)), "{streams:?}");
    let delete = |id: &str, token: &str| {
        Request::new(gateway.admin_address(), "DELETE", &format!("/streams/{id}")).bearer(token)
    };
    let id = stream["id"].as_str().unwrap();
    delete(id, "wrong").send().await.is(401, "credentials_missing");
    delete("0123456789abcdef", OPERATOR).send().await.is(404, "route_not_found");
    delete("no-id", OPERATOR).send().await.is(404, "route_not_found");
    echoes(&mut one).await;
    echoes(&mut other).await;
    assert_eq!(delete(id, OPERATOR).send().await.status, 204);
    let left = listed(&gateway, 1).await;
    assert_ne!(left[0]["id"], stream["id"]);
    let post = Request::new(gateway.admin_address(), "POST", "/streams");
    post.bearer(OPERATOR).send().await.is(405, "method_not_allowed");
}

#[tokio::test]
async fn the_command_line_lists_streams_and_ends_one() {
    let (gateway, _) = start(ROUTES).await;
    // The commands need the address that the gateway listens on.
    let written = std::fs::read_to_string(gateway.path("gateway.toml")).unwrap();
    let mut file: toml::Table = written.parse().unwrap();
    file["admin"]["listen"] = gateway.admin_address().to_string().into();
    std::fs::write(gateway.path("gateway.toml"), file.to_string()).unwrap();
    assert_eq!(done(&gateway, &["stream", "list"], ""), "no streams are open\n");
    let mut socket = open_ws(&gateway, &claims(json!({ "sub": "a\u{1b}nn" }))).await;
    echoes(&mut socket).await;
    let table = done(&gateway, &["stream", "list"], "");
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[1..5], ["websocket", "ws", "a\\u{1b}nn", "127.0.0.1"], "{table}");
    let listed: Value =
        serde_json::from_str(&done(&gateway, &["stream", "list", "--json"], "")).unwrap();
    assert_eq!((listed[0]["id"].as_str(), &listed[0]["path"]), (Some(row[0]), &json!("/ws/chat")));
    for (id, code, message) in [
        ("0123456789abcdef", 1, "no stream has the id"),
        ("../revoke", 2, "is not the id of a stream"),
    ] {
        let (found, _, error) = gateway.command(&["stream", "end", id]).await;
        assert!(found == code && error.contains(message), "{id}: {found} {error}");
    }
    assert_eq!(done(&gateway, &["stream", "end", row[0]], ""), format!("ended {}\n", row[0]));
    assert_eq!(closed(&mut socket).await, closes(1008, "operator"));
}
