//! Client certificates: as callers, and as proof of possession for tokens (CONTRACT §16).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use http_body_util::Full;
use rcgen::SanType;
use serde_json::json;

use crate::harness::certificates::{Authority, Certificate, Client, authority};
use crate::harness::upstream::write;
use crate::harness::{Connection, Gateway, Setup, Step, h2, mint};

const TLS: &str = "server.tls = { certificate = 'tls.crt', private_key = { file = 'tls.key' }, client_ca = 'clients.pem' }";

const ROUTES: &str = "route = [{ path = '/cert/*', upstream = 'app', access = 'certificate' }, { path = '/token/*', upstream = 'app' }, { path = '/public/*', upstream = 'app', access = 'public' }]";

fn setup(config: &str, clients: &Authority) -> Setup {
    let certificate = authority().issue(&["app.test"]);
    Gateway::setup(config)
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key)
        .file("clients.pem", &clients.pem)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

async fn connect(gateway: &Gateway, own: Option<&Certificate>) -> Connection {
    let client = Client { own: own.cloned(), ..Client::default() };
    Connection::over(client.connect(gateway).await.unwrap())
}

#[tokio::test]
async fn a_certificate_is_the_caller_of_its_routes_only() {
    let clients = Authority::new();
    let gateway = setup(&format!("{TLS}\n{ROUTES}"), &clients).start().await;
    let robot = clients.issue_to(vec![uri("spiffe://example.com/robot")], "Robot");
    let plain = clients.issue_to(vec![], "plain");
    for (own, subject, name) in
        [(&robot, "spiffe://example.com/robot", Some("Robot")), (&plain, "CN=plain", Some("plain"))]
    {
        let mut connection = connect(&gateway, Some(own)).await;
        for _ in 0..2 {
            let request = gateway
                .get("/cert/jobs")
                .header("X-Auth-User", "root")
                .header("X-Auth-Issuer", "corp");
            assert_eq!(request.send_on(&mut connection).await.status, 200);
            let received = gateway.upstream().last();
            assert_eq!(received.header("x-auth-user"), Some(subject));
            assert_eq!(received.header("x-auth-issuer"), Some("certificate"));
            assert_eq!(received.header("x-auth-name"), name);
            assert_eq!(received.header("x-auth-roles"), None);
        }
        // It is no token, and a token is no certificate.
        let refused = gateway.get("/token/x").send_on(&mut connection).await;
        refused.is(401, "credentials_missing");
        let public = gateway.get("/public/x").send_on(&mut connection).await;
        assert_eq!(public.status, 200);
        assert_eq!(gateway.upstream().last().header("x-auth-user"), None);
    }
    let mut without = connect(&gateway, None).await;
    let token = mint::token(&[]);
    let refused = gateway.get("/cert/jobs").bearer(&token).send_on(&mut without).await;
    refused.is(401, "credentials_missing");
    let passed = gateway.get("/token/x").bearer(&token).send_on(&mut without).await;
    assert_eq!(passed.status, 200);
    let line = gateway.access("/cert/jobs").await;
    assert_eq!(
        (line["issuer"].as_str(), line["reason"].as_str()),
        (Some("certificate"), Some("authenticated"))
    );
    assert_eq!(line["subject"], "spiffe://example.com/robot");

    let client = Client { own: Some(robot), alpn: vec!["h2"], ..Client::default() };
    let mut connection = h2::Connection::over(client.connect(&gateway).await.unwrap()).await;
    let request = Request::get("https://app.test/cert/h2").body(Full::default()).unwrap();
    assert_eq!(connection.send(request).await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-user"), Some("spiffe://example.com/robot"));
}

#[tokio::test]
async fn a_certificate_of_another_authority_fails_the_handshake() {
    let (clients, others) = (Authority::new(), Authority::new());
    let stranger = others.issue_to(vec![], "stranger");
    for required in [false, true] {
        let word = if required { "required" } else { "optional" };
        let tls =
            TLS.replace("'clients.pem'", &format!("'clients.pem', client_certificate = '{word}'"));
        let gateway = setup(&format!("{tls}\n{ROUTES}"), &clients).start().await;
        let answer = async |own: Option<&Certificate>| {
            let client = Client { own: own.cloned(), ..Client::default() };
            let mut connection = Connection::over(client.connect(&gateway).await.ok()?);
            connection.try_write(gateway.get("/public/x").bytes()).await.ok()?;
            connection.try_response_to("GET").await.map(|response| response.status)
        };
        assert_eq!(answer(Some(&stranger)).await, None, "{word}");
        assert_eq!(answer(None).await, (!required).then_some(200), "{word}");
        let known = clients.issue_to(vec![], "known");
        assert_eq!(answer(Some(&known)).await, Some(200), "{word}");
    }
}

#[tokio::test]
async fn access_ends_when_its_authority_or_subject_is_taken_away() {
    let (clients, others) = (Authority::new(), Authority::new());
    let config = format!("admin.token = {{ file = 'admin.token' }}\n{TLS}\n{ROUTES}");
    let gateway = setup(&config, &clients).file("admin.token", "0123456789abcdef").start().await;
    std::fs::set_permissions(
        gateway.path("admin.token"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let robot = clients.issue_to(vec![uri("spiffe://example.com/robot")], "Robot");
    let mut open = connect(&gateway, Some(&robot)).await;
    let ask = async |connection: &mut Connection| gateway.get("/cert/x").send_on(connection).await;
    assert_eq!(ask(&mut open).await.status, 200);
    // Another authority replaces the first one, and the connection stays open.
    std::fs::write(gateway.path("clients.pem"), &others.pem).unwrap();
    assert_eq!(gateway.hang_up().await["message"], "reloaded");
    ask(&mut open).await.is(401, "credentials_missing");
    std::fs::write(gateway.path("clients.pem"), &clients.pem).unwrap();
    assert_eq!(gateway.hang_up().await["message"], "reloaded");
    let mut open = connect(&gateway, Some(&robot)).await;
    assert_eq!(ask(&mut open).await.status, 200);
    let revocation = json!({ "issuer": "certificate", "subject": "spiffe://example.com/robot" });
    let response = crate::harness::client::Request::new(gateway.admin_address(), "POST", "/revoke")
        .header("Content-Type", "application/json")
        .bearer("0123456789abcdef")
        .body(revocation.to_string())
        .send()
        .await;
    assert_eq!(response.status, 204, "{response:?}");
    ask(&mut open).await.is(401, "token_revoked");
    // Someone else is not concerned.
    let plain = clients.issue_to(vec![], "plain");
    assert_eq!(ask(&mut connect(&gateway, Some(&plain)).await).await.status, 200);
}

/// A browser sends the certificate for every page that asks.
#[tokio::test]
async fn a_page_of_another_origin_cannot_use_the_certificate() {
    let clients = Authority::new();
    let gateway = setup(&format!("{TLS}\n{ROUTES}"), &clients).start().await;
    let robot = clients.issue_to(vec![], "robot");
    let mut connection = connect(&gateway, Some(&robot)).await;
    for (method, origin, status) in [
        ("POST", Some("https://evil.test"), 403),
        ("POST", Some("https://app.test"), 200),
        ("POST", None, 200),
        ("GET", Some("https://evil.test"), 200),
    ] {
        let mut request = gateway.request(method, "/cert/x");
        if let Some(origin) = origin {
            request = request.header("Origin", origin);
        }
        let response = request.send_on(&mut connection).await;
        assert_eq!(response.status, status, "{method} {origin:?}");
    }
}

#[tokio::test]
async fn a_bound_token_needs_its_certificate() {
    let clients = Authority::new();
    let gateway = setup(&format!("{TLS}\n{ROUTES}"), &clients).start().await;
    let (own, other) = (clients.issue_to(vec![], "own"), clients.issue_to(vec![], "other"));
    let thumbprint = |certificate: &Certificate| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate.der());
        URL_SAFE_NO_PAD.encode(digest)
    };
    let bound = mint::claims(json!({ "cnf": { "x5t#S256": thumbprint(&own) } }));
    for round in 0..2 {
        for (shown, status) in [(Some(&own), 200), (Some(&other), 401), (None, 401)] {
            let mut connection = connect(&gateway, shown).await;
            let response = gateway.get("/token/x").bearer(&bound).send_on(&mut connection).await;
            if status == 401 {
                response.is(401, "token_claims");
            }
            assert_eq!(response.status, status, "{round}");
        }
    }
    let mut connection = connect(&gateway, Some(&own)).await;
    for (confirmation, status) in [
        (json!({ "jkt": "x" }), 200),
        (json!({ "x5t#S256": "x" }), 401),
        (json!({ "x5t#S256": 1 }), 401),
        (json!("x"), 401),
        (json!([]), 401),
    ] {
        let token = mint::claims(json!({ "cnf": confirmation }));
        let response = gateway.get("/token/x").bearer(&token).send_on(&mut connection).await;
        assert_eq!(response.status, status, "{confirmation}");
    }
}

#[tokio::test]
async fn checks_and_tests_know_callers_with_a_certificate() {
    let clients = Authority::new();
    let test = |issuer: &str, status: u16| {
        format!(
            "[[test]]\nrequest = 'GET /cert/x'\nissuer = '{issuer}'\nclaims = {{ sub = 'CN=robot' }}\nexpect = {{ status = {status} }}\n"
        )
    };
    let config = format!("{TLS}\n{ROUTES}\n{}{}", test("certificate", 200), test("corp", 401));
    let gateway = setup(&config, &clients).start().await;
    let (code, output, errors) = gateway.command(&["check"]).await;
    assert_eq!(code, 0, "{output}{errors}");
    let claims = r#"{"sub":"CN=robot"}"#;
    let question = ["explain", "GET", "/cert/x", "--claims", claims, "--issuer", "certificate"];
    let (_, output, errors) = gateway.command(&question).await;
    assert!(output.contains("allow: 200 authenticated"), "{output}{errors}");
    assert!(output.contains("x-auth-issuer: certificate"), "{output}");
}

#[tokio::test]
async fn a_tunnel_ends_with_the_authority_of_its_certificate() {
    let (clients, others) = (Authority::new(), Authority::new());
    let config = format!("{TLS}\n{ROUTES}");
    let gateway = setup(&config, &clients).start().await;
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    gateway.upstream().does(vec![write(switch), Step::Echo]);
    let robot = clients.issue_to(vec![], "robot");
    let mut tunnel = connect(&gateway, Some(&robot)).await;
    let request = gateway
        .get("/cert/socket")
        .header("Upgrade", "websocket")
        .header("Connection", "Upgrade")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Version", "13");
    tunnel.write(request.bytes()).await;
    assert_eq!(tunnel.head().await.unwrap().status, 101);
    for _ in 0..3 {
        let change = format!("log.access = false\n{config}");
        assert_eq!(gateway.reload(&change).await["message"], "reloaded");
        tunnel.write("ping").await;
        assert_eq!(tunnel.exactly(4).await.unwrap(), b"ping");
    }
    std::fs::write(gateway.path("clients.pem"), &others.pem).unwrap();
    assert_eq!(gateway.hang_up().await["message"], "reloaded");
    tunnel.closed().await;
}
