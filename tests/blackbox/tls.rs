//! TLS on both sides (CONTRACT §2 `[server.tls]`, `[upstream.*] tls`).

use std::time::{Duration, UNIX_EPOCH};

use http_body_util::Full;
use rustls::ProtocolVersion;
use rustls::version::{TLS12, TLS13};

use crate::harness::certificates::{Authority, Client, authority, connect, facts, self_signed};
use crate::harness::client::Request;
use crate::harness::gateway::is_reload;
use crate::harness::{Connection, Gateway, Setup, Upstream, h2, mint};

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
            let client = Client { alpn: offered, versions: versions.clone(), ..Client::default() };
            let stream = client.connect(&gateway).await.unwrap();
            let (_, spoken, alpn) = facts(&stream);
            assert_eq!((spoken, alpn.as_deref()), (version, chosen.map(str::as_bytes)));
            if chosen == Some("h2") {
                let request =
                    http::Request::get("https://app.test/h2").body(Full::default()).unwrap();
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
async fn plain_http_gets_a_400_that_says_so() {
    let gateway = setup().start().await;
    for request in [gateway.get("/"), gateway.request("POST", "/").body("x".repeat(40_000))] {
        let response = request.send().await;
        response.is(400, "request_invalid");
        assert!(response.text().contains("use https://"), "{}", response.text());
    }
    assert_eq!(gateway.upstream().count(), 0);
    let labels = ["kind=\"not_tls\""];
    let counted = gateway.metric_value("portcullis_requests_malformed_total", &labels).await;
    assert_eq!(counted, Some(2.0));
}

#[tokio::test]
async fn unknown_protocols_fail_the_handshake() {
    let gateway = setup().start().await;
    let mut connection = gateway.connect().await;
    connection.write("\x00\x01\x02\x03\x04\x05\x06\x07").await;
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

#[tokio::test]
async fn the_name_that_the_client_asks_for_chooses_the_certificate() {
    let config = TLS.replace(
        "' } }",
        "' }, certificates = [{ certificate = 'b.crt', private_key = { file = 'b.key' } }, { certificate = 'c.crt', private_key = { file = 'c.key' } }] }",
    );
    let first = authority().issue(&["app.test", "b.test"]);
    let [b, c] =
        [&["b.test", "*.b.test"], &["c.test", "A.B.test"]].map(|names| authority().issue(names));
    let gateway = Gateway::setup(&config)
        .file("tls.crt", &first.chain)
        .file("tls.key", &first.key)
        .file("b.crt", &b.chain)
        .file("b.key", &b.key)
        .file("c.crt", &c.chain)
        .file("c.key", &c.key)
        .start()
        .await;
    for (name, expected) in [
        ("app.test", &first),
        ("b.test", &first),
        ("x.b.test", &b),
        ("a.b.test", &c),
        ("c.test", &c),
    ] {
        let client = Client { name, ..Client::default() };
        let shown = facts(&client.connect(&gateway).await.unwrap()).0;
        assert_eq!(shown, expected.der(), "{name}");
    }
    // For every other name, the first one is shown, and the client rejects it.
    for name in ["y.x.b.test", "other.test"] {
        let client = Client { name, ..Client::default() };
        assert!(client.connect(&gateway).await.is_err(), "{name}");
    }
    let names = gateway.metric("portcullis_tls_certificate_expiry_seconds").await;
    assert_eq!(names.len(), 3, "{names:?}");
}

#[tokio::test]
async fn a_certificate_that_expires_is_reported_before_and_after() {
    for (days, code, message) in [
        (40, 0, None),
        (10, 0, Some("warning: the certificate expires in 9 days")),
        (-1, 78, Some("error: the certificate expired at")),
    ] {
        // The beginning of that day.
        let until = (i64::try_from(mint::now()).unwrap() / 86_400 + days) * 86_400;
        let left = until - i64::try_from(mint::now()).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(until.unsigned_abs());
        let date = humantime::format_rfc3339_seconds(time).to_string();
        let part = |from: usize, to: usize| date[from..to].parse::<u16>().unwrap();
        let until = (part(0, 4).into(), part(5, 7) as u8, part(8, 10) as u8);
        let name = rcgen::SanType::DnsName("app.test".try_into().unwrap());
        let certificate = authority().issue_until(vec![name], "app.test", until);
        let gateway = Gateway::setup(TLS)
            .file("tls.crt", certificate.chain)
            .file("tls.key", certificate.key)
            .start()
            .await;
        let (found, output, errors) = gateway.command(&["check"]).await;
        assert_eq!(found, code, "{output}{errors}");
        match message {
            Some(message) => assert!(errors.contains(message), "{errors}"),
            None => assert!(!errors.contains("the certificate expire"), "{errors}"),
        }
        let family = "portcullis_tls_certificate_expiry_seconds";
        let shown = gateway.metric_value(family, &["name=\"app.test\""]).await.unwrap();
        assert!((shown - left as f64).abs() < 60.0, "{shown} {left}");
        // It is served nevertheless.
        let warned = gateway.log().lines().iter().any(|line| {
            line["problem"].as_str().is_some_and(|text| text.starts_with("the certificate expire"))
        });
        assert_eq!(warned, message.is_some());
    }
}

#[tokio::test]
async fn the_second_listener_only_redirects_to_https() {
    let certificate = authority().issue(&["app.test"]);
    let gateway = Gateway::setup(&format!("server.redirect_http = '127.0.0.1:0'\n{TLS}"))
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key)
        .start()
        .await;
    let send = async |method: &str, target: &str, host: &str| {
        Request::new(gateway.redirect_address(), method, target).host(host).send().await
    };
    for (method, target, host, location) in [
        ("GET", "/", "app.test", "https://app.test/"),
        ("GET", "/a%20b?q=%2F&x", "App.test:8080", "https://app.test/a%20b?q=%2F&x"),
        ("POST", "/auth/login", "app.test", "https://app.test/auth/login"),
        ("HEAD", "/", "[::1]:80", "https://[::1]/"),
    ] {
        let response = send(method, target, host).await;
        assert_eq!((response.status, response.header("location")), (308, Some(location)));
        assert_eq!(response.body, b"");
    }
    for (target, host) in [("/a/../b", "app.test"), ("/", "evil.test/x"), ("/", "")] {
        send("GET", target, host).await.is(400, "target_ambiguous");
    }
    assert_eq!(gateway.upstream().count(), 0);
}
