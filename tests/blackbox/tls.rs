//! TLS on both sides (CONTRACT §2 `[server.tls]`, `[upstream.*] tls`).

use http::Request;
use http_body_util::Full;
use rustls::ProtocolVersion;
use rustls::version::{TLS12, TLS13};

use crate::harness::certificates::{Authority, Client, authority, connect, facts, self_signed};
use crate::harness::gateway::is_reload;
use crate::harness::{Connection, Gateway, Setup, Upstream, h2};

const TLS: &str = "server.tls = { certificate = 'tls.crt', private_key = { file = 'tls.key' } }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]";

fn setup() -> Setup {
    let certificate = authority().issue(&["app.test"]);
    Gateway::setup(TLS).file("tls.crt", certificate.chain).file("tls.key", certificate.key)
}

#[tokio::test]
async fn both_tls_versions_and_both_protocols_are_supported() {
    let gateway = setup().start().await;
    for (versions, version) in
        [(vec![&TLS12], ProtocolVersion::TLSv1_2), (vec![&TLS13], ProtocolVersion::TLSv1_3)]
    {
        for (offered, chosen) in [
            (vec![], None),
            (vec!["http/1.1"], Some("http/1.1")),
            (vec!["http/1.0"], Some("http/1.0")),
            (vec!["h2", "http/1.1"], Some("h2")),
        ] {
            let stream = Client { alpn: offered, versions: versions.clone() }
                .connect(&gateway)
                .await
                .unwrap();
            let (_, spoken, alpn) = facts(&stream);
            assert_eq!((spoken, alpn.as_deref()), (version, chosen.map(str::as_bytes)));
            if chosen == Some("h2") {
                let request = Request::get("https://app.test/h2").body(Full::default()).unwrap();
                assert_eq!(h2::Connection::over(stream).await.send(request).await.status, 200);
            } else {
                assert_eq!(
                    gateway.get("/h1").send_on(&mut Connection::over(stream)).await.status,
                    200
                );
            }
            let received = gateway.upstream().last();
            assert_eq!(
                (received.header("x-forwarded-proto"), received.header("host")),
                (Some("https"), Some("app.test"))
            );
        }
    }
}

#[tokio::test]
async fn the_own_origin_is_https_behind_tls() {
    let certificate = authority().issue(&["app.test"]);
    let gateway = Gateway::setup(&TLS.replace("access = 'public'", "token_from = ['cookie']"))
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key)
        .start()
        .await;
    let cookie = format!("__Host-portcullis={}", crate::harness::mint::token(&[]));
    for (origin, status) in [("https://app.test", 200), ("http://app.test", 403)] {
        let request = gateway
            .request("POST", "/")
            .header("Cookie", &cookie)
            .header("Origin", origin)
            .body("x");
        assert_eq!(request.send_on(&mut connect(&gateway).await).await.status, status, "{origin}");
    }
}

#[tokio::test]
async fn cleartext_and_unknown_protocols_fail_the_handshake() {
    let gateway = setup().start().await;
    let mut connection = gateway.connect().await;
    connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let answer = connection.closed().await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    assert!(Client { alpn: vec!["spdy/3"], ..Client::default() }.connect(&gateway).await.is_err());
    assert_eq!(gateway.get("/").send_on(&mut connect(&gateway).await).await.status, 200);
    assert_eq!(gateway.upstream().count(), 1);
}

#[tokio::test]
async fn sighup_loads_a_new_certificate_but_not_a_broken_pair() {
    let gateway = setup().start().await;
    let shown = async || facts(&Client::default().connect(&gateway).await.unwrap()).0;
    let first = shown().await;
    let mut kept = connect(&gateway).await;
    assert_eq!(gateway.get("/").send_on(&mut kept).await.status, 200);
    let (second, third) = (authority().issue(&["app.test"]), authority().issue(&["app.test"]));
    std::fs::write(gateway.path("tls.crt"), &second.chain).unwrap();
    let output = gateway.hang_up().await;
    assert_eq!(output["level"], "error", "{output}");
    assert_eq!(shown().await, first);
    std::fs::write(gateway.path("tls.key"), &second.key).unwrap();
    assert_eq!(gateway.hang_up().await["message"], "reloaded");
    let now = shown().await;
    assert_ne!(now, first);
    assert_eq!(gateway.get("/").send_on(&mut kept).await.status, 200);
    for (name, broken) in [("tls.crt", "no certificate"), ("tls.key", third.key.as_str())] {
        let good = std::fs::read(gateway.path(name)).unwrap();
        std::fs::write(gateway.path(name), broken).unwrap();
        assert_eq!(gateway.hang_up().await["level"], "error", "{name}");
        assert_eq!(shown().await, now);
        std::fs::write(gateway.path(name), good).unwrap();
    }
}

#[tokio::test]
async fn a_changed_certificate_is_reloaded() {
    let certificate = authority().issue(&["app.test"]);
    let gateway = Gateway::setup(&format!("server.watch = true\n{TLS}"))
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key)
        .start()
        .await;
    let first = facts(&Client::default().connect(&gateway).await.unwrap()).0;
    let mark = gateway.log().mark();
    let next = authority().issue(&["app.test"]);
    std::fs::write(gateway.path("tls.key"), &next.key).unwrap();
    std::fs::write(gateway.path("tls.crt"), &next.chain).unwrap();
    gateway
        .log()
        .after(mark, "the new pair is loaded", |line| {
            is_reload(line) && line["message"] == "reloaded"
        })
        .await;
    assert_ne!(facts(&Client::default().connect(&gateway).await.unwrap()).0, first);
}

#[tokio::test]
async fn upstreams_can_use_tls() {
    let upstream =
        Upstream::start_tls(authority().issue(&["127.0.0.1", "localhost"]).server()).await;
    let config = "route = [{ path = '/*', upstream = 'app', access = 'public' }]\nupstream.app = { url = 'https://$UPSTREAM', tls = { ca = 'ca.pem' } }";
    let gateway = Gateway::setup(config)
        .file("ca.pem", &authority().pem)
        .upstream(upstream.clone())
        .start()
        .await;
    for _ in 0..2 {
        assert_eq!(gateway.get("/").send().await.text(), "ok");
    }
    assert_eq!(upstream.seen().accepted, 1);
    assert_eq!(gateway.request("POST", "/").body("hello").send().await.text(), "ok");
    assert_eq!(upstream.last().body, b"hello");
    let named = config.replace("$UPSTREAM", &format!("localhost:{}", upstream.address().port()));
    assert_eq!(gateway.reload(&named).await["message"], "reloaded");
    assert_eq!(gateway.get("/").send().await.status, 200);
}

#[tokio::test]
async fn an_upstream_without_a_valid_certificate_gets_no_request() {
    let other = Authority::new();
    for (what, names, ca) in [
        ("wrong authority", vec!["127.0.0.1"], other.pem.as_str()),
        ("wrong name", vec!["other.test"], authority().pem.as_str()),
    ] {
        let upstream = Upstream::start_tls(authority().issue(&names).server()).await;
        let config = "route = [{ path = '/*', upstream = 'app', access = 'public' }]\nupstream.app = { url = 'https://$UPSTREAM', tls = { ca = 'ca.pem' } }";
        let gateway =
            Gateway::setup(config).file("ca.pem", ca).upstream(upstream.clone()).start().await;
        let response = gateway.get("/").send().await;
        assert_eq!(response.refusal(), (502, "upstream_unreachable".to_owned()), "{what}");
        assert_eq!(upstream.count(), 0);
    }
}

#[tokio::test]
async fn a_slow_handshake_is_cut() {
    let certificate = authority().issue(&["app.test"]);
    let gateway = Gateway::setup(&format!("server.limits.header_timeout = '400ms'\n{TLS}"))
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key)
        .start()
        .await;
    gateway.connect().await.closed().await;
    let mut half = gateway.connect().await;
    half.write(b"\x16\x03\x01").await;
    half.closed().await;
}

#[tokio::test]
async fn too_many_tls_connections_are_closed() {
    let certificate = authority().issue(&["app.test"]);
    let gateway = Gateway::setup(&format!("server.limits.max_connections = 1\n{TLS}"))
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key)
        .start()
        .await;
    let mut first = connect(&gateway).await;
    assert_eq!(gateway.get("/").send_on(&mut first).await.status, 200);
    assert!(Client::default().connect(&gateway).await.is_err());
    assert_eq!(gateway.get("/").send_on(&mut first).await.status, 200);
}

/// The advice of the guide for a certificate made with one openssl command.
#[tokio::test]
async fn a_self_signed_certificate_is_trusted_if_it_is_configured() {
    let [right, another, elsewhere, expired] = [
        self_signed(&["127.0.0.1"], false),
        self_signed(&["127.0.0.1"], false),
        self_signed(&["other.test"], false),
        self_signed(&["127.0.0.1"], true),
    ];
    for (shown, named, status) in [
        (&right, &right, 200),
        (&right, &another, 502),
        (&elsewhere, &elsewhere, 502),
        (&expired, &expired, 502),
    ] {
        let upstream = Upstream::start_tls(shown.server()).await;
        let url = format!("https://{}", upstream.address());
        let gateway = Gateway::setup(&format!(
            "upstream.app = {{ url = '{url}', tls = {{ ca = 'app.crt' }} }}\nroute = [{{ path = '/*', upstream = 'app', access = 'public' }}]"
        ))
        .file("app.crt", &named.chain)
        .upstream(upstream)
        .start()
        .await;
        assert_eq!(gateway.get("/").send().await.status, status);
    }
}
