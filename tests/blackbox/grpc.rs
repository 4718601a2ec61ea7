//! HTTP/2 to applications, and gRPC (CONTRACT §16.2), with grpcio on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::harness::certificates::authority;
use crate::harness::peers::Peer;
use crate::harness::upstream::write;
use crate::harness::{Gateway, Step, h2, mint};

/// A gateway in front of the service at this port.
async fn gateway(port: &Value, more: &str) -> Gateway {
    Gateway::start(&format!(
        "upstream.app = {{ url = 'http://127.0.0.1:{port}', http2 = true }}\nlimit.few = {{ requests = 3, per = '1h', count = 'failures' }}\nroute = [\
         {{ path = '/shop.Inventory/*', upstream = 'app' }}, \
         {{ path = '/shop.Inventory/Down', upstream = 'app', roles = ['admin'] }}, \
         {{ path = '/shop.Inventory/Up', upstream = 'app', limit = 'few' }}]\n{more}"
    ))
    .await
}

fn ask(peer: &mut Peer, gateway: &Gateway, kind: &str, token: &str, messages: &[&str]) -> Value {
    peer.ask(json!({
        "call": kind,
        "address": gateway.address().to_string(),
        "metadata": { "authorization": format!("Bearer {token}"), "x-auth-user": "root" },
        "messages": messages,
    }))
}

#[tokio::test]
async fn all_four_kinds_of_calls_pass_with_trailers() {
    let (Some(mut service), Some(mut client)) = (Peer::start("calls.py"), Peer::start("calls.py"))
    else {
        return;
    };
    let port = service.ask(json!({ "serve": true }))["port"].clone();
    let gateway = gateway(&port, "").await;
    let token = mint::token(&["admin"]);
    let mut call =
        |kind: &str, messages: &[&str]| ask(&mut client, &gateway, kind, &token, messages);
    let unary = call("Unary", &["one"]);
    assert_eq!((&unary["code"], &unary["messages"]), (&json!(0), &json!(["one|u-17"])), "{unary}");
    assert_eq!(unary["trailers"]["x-end"], "of unary", "{unary}");
    let down = call("Down", &["3"]);
    assert_eq!(down["messages"], json!(["0|u-17", "1|u-17", "2|u-17"]), "{down}");
    assert_eq!(down["trailers"]["x-end"], "of down", "{down}");
    assert_eq!(call("Up", &["a", "b", "c"])["messages"], json!(["a b c|u-17"]));
    // The service answers each message before the client sends the next one.
    let both = call("Both", &["a", "b", "c"]);
    assert_eq!(both["messages"], json!(["a|u-17", "b|u-17", "c|u-17"]), "{both}");
    assert_eq!(both["code"], 0, "{both}");
    let failed = call("Unary", &["fail"]);
    assert_eq!((&failed["code"], &failed["details"]), (&json!(15), &json!("it failed")));
    assert_eq!(failed["trailers"]["x-why"], "asked to", "{failed}");
    let large = call("Unary", &["large"]);
    assert_eq!((&large["code"], &large["initial"]["x-large"]), (&json!(0), &json!(40_000)));
}

#[tokio::test]
async fn refusals_are_a_status_of_grpc() {
    let (Some(mut service), Some(mut client)) = (Peer::start("calls.py"), Peer::start("calls.py"))
    else {
        return;
    };
    let port = service.ask(json!({ "serve": true }))["port"].clone();
    let gateway = gateway(&port, "").await;
    let token = mint::token(&[]);
    let mut refused = |kind: &str, token: &str, code: u16, reason: &str| {
        let answer = ask(&mut client, &gateway, kind, token, &["1"]);
        assert_eq!((&answer["code"], &answer["details"]), (&json!(code), &json!(reason)), "{kind}");
    };
    refused("Unary", "a b", 3, "credentials_malformed");
    refused("Unary", "a.b.c", 16, "token_malformed");
    refused("Down", &token, 7, "role_missing");
    refused("Up", "x", 16, "token_malformed");
    refused("Up", "x", 16, "token_malformed");
    refused("Up", "x", 16, "token_malformed");
    refused("Up", &token, 8, "rate_limited");
    assert!(service.ask(json!({ "stop": true })).is_object());
    refused("Unary", &token, 14, "upstream_unreachable");
    let unknown = h2::Connection::open(&gateway)
        .await
        .send(grpc_request("http://app.test/other.Service/Call", &token))
        .await;
    assert_eq!((unknown.status, &unknown.body[..]), (200, &b""[..]));
    assert_eq!(unknown.headers["grpc-status"], "12");
    assert_eq!(unknown.headers["grpc-message"], "route_not_found");
    assert_eq!(unknown.headers["content-type"], "application/grpc");
    let line = gateway.access("/other.Service/Call").await;
    assert_eq!(line["reason"], "route_not_found");
    // Other clients of the same route get the usual refusal.
    let request = gateway.request("POST", "/shop.Inventory/Unary");
    request.header("Content-Type", "application/grpc").send().await.is(401, "credentials_missing");
}

fn grpc_request(target: &str, token: &str) -> http::Request<Full<Bytes>> {
    http::Request::post(target)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::default())
        .unwrap()
}

/// An application that speaks nothing but HTTP/2.
struct Service {
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Service {
    /// With `once`, each connection takes one request and is then closed in order.
    async fn start(once: bool, tls: Option<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) =
            (Arc::clone(&service.connections), Arc::clone(&service.requests));
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let requests = Arc::clone(&requests);
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, once, requests).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            serve(stream, once, requests).await;
                        }
                    }
                });
            }
        });
        service
    }
}

async fn serve(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    once: bool,
    requests: Arc<AtomicUsize>,
) {
    let answered = Arc::new(Semaphore::new(0));
    let ends = Arc::clone(&answered);
    let answer = move |request: http::Request<Incoming>| {
        let answered = Arc::clone(&answered);
        requests.fetch_add(1, Ordering::SeqCst);
        async move {
            let shown = format!(
                "{} {} {:?}",
                request.method(),
                request.uri(),
                request.headers().get("connection")
            );
            let body = request.into_body().collect().await?.to_bytes();
            answered.add_permits(1);
            let mut trailers = HeaderMap::new();
            trailers.insert("x-trailer", "end".parse().unwrap());
            let text = Bytes::from([shown.as_bytes(), b" ", &body].concat());
            // Without an announced length, for which HTTP/1.1 has no trailers.
            let body = Full::new(text)
                .map_frame(|frame| frame)
                .with_trailers(async { Some(Ok(trailers)) });
            let response = Response::builder().header("trailer", "x-trailer").body(body);
            Ok::<_, hyper::Error>(response.unwrap())
        }
    };
    let mut connection = std::pin::pin!(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(io), hyper::service::service_fn(answer))
    );
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = ends.acquire(), if once => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

fn config(scheme: &str, service: &Service, more: &str) -> String {
    format!(
        "upstream.app = {{ url = '{scheme}://127.0.0.1:{}', http2 = true{more} }}\nroute = [{{ path = '/*', upstream = 'app', access = 'public' }}]",
        service.port
    )
}

#[tokio::test]
async fn clients_of_http_1_reach_an_application_that_speaks_http_2() {
    let service = Service::start(false, None).await;
    let gateway = Gateway::start(&config("http", &service, "")).await;
    for (method, body) in [("GET", ""), ("POST", "hello"), ("PUT", "")] {
        let mut request = gateway.request(method, "/a%20b?q=1").header("TE", "trailers");
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request.header("Connection", "TE").send().await;
        let expected = format!("{method} http://app.test/a%20b?q=1 None {body}");
        assert_eq!((response.status, response.text()), (200, expected));
        assert_eq!(response.trailers, [("x-trailer".to_owned(), "end".to_owned())]);
    }
    assert_eq!(service.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn http_2_is_chosen_by_alpn_over_tls() {
    let certificate = authority().issue(&["127.0.0.1"]);
    for (alpn, status) in [("h2", 200), ("http/1.1", 502)] {
        let mut tls = certificate.server();
        tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let service = Service::start(false, Some(tls)).await;
        let gateway = Gateway::setup(&config("https", &service, ", tls = { ca = 'ca.pem' }"))
            .file("ca.pem", &authority().pem)
            .start()
            .await;
        assert_eq!(gateway.get("/").send().await.status, status, "{alpn}");
    }
}

#[tokio::test]
async fn no_request_is_lost_when_the_application_closes_its_connection() {
    let service = Service::start(true, None).await;
    let gateway = Gateway::start(&config("http", &service, "")).await;
    for round in 0..20 {
        assert_eq!(gateway.get("/").send().await.status, 200, "{round}");
        let posted = gateway.request("POST", "/").body("x").send().await;
        assert_eq!(posted.status, 200, "{round}");
    }
    assert!(service.connections.load(Ordering::SeqCst) > 5);
}

/// The connections of a process that crashes are reset, without GOAWAY.
#[tokio::test]
async fn a_request_is_sent_again_only_if_it_may_be_when_its_connection_is_reset() {
    let service = Service::start(false, None).await;
    for (method, body, status) in [("GET", "", 200), ("PUT", "", 200), ("POST", "x", 502)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = ("127.0.0.1", service.port);
        let before = service.requests.load(Ordering::SeqCst);
        tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            reset_at_request(&mut first).await;
            drop(first);
            let (mut second, _) = listener.accept().await.unwrap();
            let mut service = tokio::net::TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut second, &mut service).await;
        });
        let gateway = Gateway::start(&format!(
            "upstream.app = {{ url = 'http://127.0.0.1:{port}', http2 = true }}\nroute = [{{ path = '/*', upstream = 'app', access = 'public' }}]"
        ))
        .await;
        let response = gateway.request(method, "/").body(body).send().await;
        assert_eq!(response.status, status, "{method}: {}", gateway.log().errors());
        let sent = service.requests.load(Ordering::SeqCst) - before;
        assert_eq!(sent, usize::from(status == 200), "{method}");
    }
}

/// Begins HTTP/2, reads until the head of a request, and makes the connection end with a reset.
async fn reset_at_request(stream: &mut tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const PREFACE: usize = 24;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    stream.read_exact(&mut [0; PREFACE]).await.unwrap();
    loop {
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).await.unwrap();
        if frame[3] == 1 {
            // What is unread resets the connection when it is closed.
            return;
        }
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        let length = usize::try_from(length).unwrap();
        stream.read_exact(&mut vec![0; length]).await.unwrap();
    }
}

/// The error names the setting, however such an application reacts to HTTP/2.
#[tokio::test]
async fn an_application_that_speaks_only_http_1_is_reported() {
    const BAD: &str = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    for (reaction, named) in [
        (BAD, "the upstream responded in HTTP/1.1, but its section has http2 = true"),
        ("", "the upstream closed the connection without a response in HTTP/2"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut preface = [0; 24];
                let _ = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut preface).await;
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, reaction.as_bytes()).await;
            }
        });
        let gateway = Gateway::start(&format!(
            "upstream.app = {{ url = 'http://127.0.0.1:{port}', http2 = true }}\nroute = [{{ path = '/*', upstream = 'app', access = 'public' }}]"
        ))
        .await;
        gateway.get("/").send().await.is(502, "upstream_failed");
        let mut cause = String::new();
        gateway
            .log()
            .until("the cause", |line| {
                line["cause"].as_str().unwrap_or_default().clone_into(&mut cause);
                line["reason"] == "upstream_failed" && !cause.is_empty()
            })
            .await;
        assert!(cause.starts_with(named) && cause.contains("remove "), "{cause}");
    }
}

#[tokio::test]
async fn an_application_without_http_2_over_tls_is_reported() {
    let mut tls = authority().issue(&["localhost", "127.0.0.1"]).server();
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        tls.alpn_protocols = protocols;
        let service = Service::start(false, Some(tls.clone())).await;
        let config = config("https", &service, ", tls = { ca = 'ca.pem' }");
        let gateway = Gateway::setup(&config).file("ca.pem", &authority().pem).start().await;
        gateway.get("/").send().await.is(502, "upstream_unreachable");
        gateway
            .log()
            .until("the setting is named", |line| {
                line["cause"].as_str().is_some_and(|cause| {
                    cause.contains("does not accept HTTP/2 over TLS")
                        && cause.contains("http2 = true")
                })
            })
            .await;
    }
}

/// Such requests have an HTTP/1.1 connection of their own, since the application need not know RFC
/// 8441.
#[tokio::test]
async fn a_websocket_reaches_an_application_that_speaks_http_2() {
    let gateway = Gateway::start(
        "upstream.app = { url = 'http://$UPSTREAM', http2 = true }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]",
    )
    .await;
    gateway.upstream().does(vec![
        write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ),
        Step::Echo,
    ]);
    let mut tunnel = gateway.connect().await;
    tunnel
        .write("GET /ws HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n")
        .await;
    assert_eq!(tunnel.response().await.status, 101);
    tunnel.write("frames").await;
    assert_eq!(tunnel.exactly(6).await.unwrap(), b"frames");
}
