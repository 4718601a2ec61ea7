//! Forward authentication: other proxies ask the `[verify]` listener (CONTRACT §10). What real
//! proxies do with the answers is tested in `tests/proxies`.

use std::fmt::Write as _;

use serde_json::json;
use tokio::net::TcpSocket;

use crate::harness::accounts::PASSWORD;
use crate::harness::{Connection, Gateway, Response, mint, within};

const FILE: &str = r"
[verify]
trusted_proxies = ['127.0.0.1/32']
[server]
trusted_proxies = ['127.0.0.1/32']
[limit.few]
requests = 2
per = '1h'
[[route]]
name = 'wiki'
host = 'wiki.test'
path = '/*'
external = true
roles = ['editor']
token_from = ['header', 'cookie']
[[route]]
name = 'open'
host = 'wiki.test'
path = '/open/*'
external = true
access = 'public'
[[route]]
name = 'soft'
host = 'wiki.test'
path = '/soft/*'
external = true
enforce = false
identity_headers = { X-Remote-User = 'sub' }
[[route]]
name = 'limited'
host = 'wiki.test'
path = '/limited/*'
external = true
access = 'public'
limit = 'few'
methods = ['GET']
[[route]]
name = 'app'
host = 'app.test'
path = '/*'
upstream = 'app'
access = 'public'
";

const DIALECTS: [&str; 5] = ["nginx", "caddy", "traefik", "envoy", "haproxy"];

/// What a proxy asks about.
#[derive(Clone)]
struct Question {
    dialect: &'static str,
    method: &'static str,
    uri: String,
    host: String,
    fields: Vec<(String, String)>,
    /// Fields of the dialect that are left out.
    without: Vec<&'static str>,
    /// What follows the head.
    body: &'static str,
    version: Option<&'static str>,
}

impl Question {
    fn new(dialect: &'static str, uri: &str) -> Self {
        Self {
            dialect,
            method: "GET",
            uri: uri.to_owned(),
            host: "wiki.test".to_owned(),
            fields: Vec::new(),
            without: Vec::new(),
            body: "",
            version: None,
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    fn bearer(self, token: &str) -> Self {
        self.with("Authorization", &format!("Bearer {token}"))
    }

    /// The fields that the dialect itself sends.
    fn own(&self) -> Vec<(&'static str, String)> {
        let (client, proto) = ("192.0.2.7".to_owned(), "https".to_owned());
        let (uri, method, host) = (self.uri.clone(), self.method.to_owned(), self.host.clone());
        match self.dialect {
            "nginx" => vec![
                ("X-Original-URI", uri),
                ("X-Original-Method", method),
                ("Host", host),
                ("X-Forwarded-For", client),
                ("X-Forwarded-Proto", proto),
            ],
            "envoy" => vec![
                ("Host", host),
                ("X-Forwarded-For", format!("203.0.113.1, {client}")),
                ("X-Forwarded-Proto", proto),
            ],
            "haproxy" => vec![
                ("X-Portcullis-Uri", uri),
                ("X-Portcullis-Method", method),
                ("X-Portcullis-Host", host),
                ("X-Portcullis-Client", client),
                ("X-Portcullis-Proto", proto),
            ],
            _ => vec![
                ("X-Forwarded-Uri", uri),
                ("X-Forwarded-Method", method),
                ("X-Forwarded-Host", host),
                ("X-Forwarded-For", client),
                ("X-Forwarded-Proto", proto),
            ],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let (method, path) = match self.dialect {
            "envoy" => (self.method, format!("/envoy{}", self.uri)),
            "caddy" => ("GET", "/caddy?access_token=x&url=/open/".to_owned()),
            dialect => ("GET", format!("/{dialect}")),
        };
        let usual = if self.dialect == "nginx" { "HTTP/1.0" } else { "HTTP/1.1" };
        let mut head = format!("{method} {path} {}\r\n", self.version.unwrap_or(usual));
        let own = self.own();
        if !own.iter().any(|(name, _)| *name == "Host") {
            head.push_str("Host: verify.test\r\n");
        }
        for (name, value) in own.iter().filter(|(name, _)| !self.without.contains(name)) {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        for (name, value) in &self.fields {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        format!("{head}\r\n{}", self.body).into_bytes()
    }

    async fn ask(&self, gateway: &Gateway) -> Response {
        ask(gateway, &self.bytes()).await
    }
}

async fn ask(gateway: &Gateway, bytes: &[u8]) -> Response {
    let mut connection = Connection::open(gateway.verify_address()).await;
    connection.write(bytes).await;
    let method = if bytes.starts_with(b"HEAD") { "HEAD" } else { "GET" };
    connection.response_to(method).await
}

/// The status and reason that the client gets from a proxy.
fn passed_on(response: &Response) -> (u16, String) {
    match response.header("x-portcullis-status") {
        Some(status) => {
            assert!(matches!(response.status, 401 | 403), "{response:?}");
            let reason = response.header("x-portcullis-reason").unwrap().to_owned();
            if status != "302" {
                assert_eq!(response.json()["reason"], reason.as_str());
            }
            (status.parse().unwrap(), reason)
        }
        None if response.status < 400 => (response.status, String::new()),
        None => response.refusal(),
    }
}

#[tokio::test]
async fn every_dialect_gets_the_decision_of_the_gateway() {
    let gateway = Gateway::start(FILE).await;
    let (editor, reader) = (mint::token(&["editor"]), mint::token(&["reader"]));
    for dialect in DIALECTS {
        let path = format!("/pages/{dialect}?x=1");
        let allowed = Question::new(dialect, &path).bearer(&editor).ask(&gateway).await;
        assert_eq!((allowed.status, allowed.body.len()), (200, 0), "{dialect}: {allowed:?}");
        assert_eq!(allowed.header("x-auth-user"), Some("u-17"));
        assert_eq!(allowed.header("x-auth-roles"), Some("editor"));
        assert_eq!(allowed.header("x-auth-email"), Some(""), "empty, not absent");
        let line = gateway.access(&format!("/pages/{dialect}")).await;
        assert_eq!(line["via"], dialect);
        assert_eq!(line["request_id"].as_str(), allowed.header("x-request-id"), "{dialect}");
        assert_eq!(line["client.address"], "192.0.2.7");
        assert_eq!(line["http.response.status_code"], 200);
        assert_eq!(
            gateway
                .metric_value(
                    "portcullis_verify_requests_total",
                    &[&format!("dialect=\"{dialect}\""), "outcome=\"allowed\""]
                )
                .await,
            Some(1.0)
        );

        let public = Question::new(dialect, "/open/").ask(&gateway).await;
        assert_eq!((public.status, public.header("x-auth-user")), (200, Some("")));

        let of = async |question: Question| passed_on(&question.ask(&gateway).await);
        let question = |uri: &str| Question::new(dialect, uri);
        for (question, status, reason) in [
            (question("/pages"), 401, "credentials_missing"),
            (question("/pages").bearer(&reader), 403, "role_missing"),
            (question("/pages").bearer("x.y.z"), 401, "token_malformed"),
            (question("/open/../pages"), 400, "target_ambiguous"),
            (question("/open/%2e%2e/pages"), 400, "target_ambiguous"),
            (question("//pages").bearer(&editor), 400, "target_ambiguous"),
            (Question { host: "wiki.test@evil".into(), ..question("/") }, 400, "target_ambiguous"),
            (Question { host: "app.test".into(), ..question("/") }, 404, "route_not_found"),
            (Question { host: "no.test".into(), ..question("/") }, 404, "route_not_found"),
            (Question { method: "POST", ..question("/limited/") }, 405, "method_not_allowed"),
        ] {
            assert_eq!(of(question).await, (status, reason.to_owned()), "{dialect}");
        }
        let twice = question("/pages").bearer(&editor).bearer(&editor);
        assert_eq!(of(twice).await, (400, "credentials_ambiguous".to_owned()), "{dialect}");
    }
}

#[tokio::test]
async fn nginx_gets_what_it_needs_to_give_the_real_answer() {
    let gateway = Gateway::start(FILE).await;
    let ask = async |uri: &str| Question::new("nginx", uri).ask(&gateway).await;
    let missing = ask("/pages").await;
    assert_eq!(missing.status, 401);
    assert_eq!(missing.header("www-authenticate"), Some("Bearer realm=\"portcullis\""));
    assert_eq!(missing.header("x-portcullis-challenge"), None);
    for _ in 0..2 {
        assert_eq!(ask("/limited/").await.status, 200);
    }
    let limited = ask("/limited/").await;
    assert_eq!((limited.status, limited.header("x-portcullis-status")), (403, Some("429")));
    assert!(limited.header("x-portcullis-retry-after").is_some_and(|seconds| seconds != "0"));
    assert_eq!(limited.header("x-portcullis-reason"), Some("rate_limited"));
    assert!(limited.header("x-portcullis-request-id").is_some());
    let line = gateway.log().until("the access line is written", |line| {
        line["url.path"] == "/limited/" && line["reason"] == "rate_limited"
    });
    assert_eq!(line.await["http.response.status_code"], 429);
    let posted = Question { method: "POST", ..Question::new("nginx", "/limited/") };
    let posted = posted.ask(&gateway).await;
    assert_eq!(posted.header("x-portcullis-allow"), Some("GET, HEAD"));
}

/// Fields that no question has.
const FOREIGN: [(&str, &str); 25] = [
    ("X-Auth-User", "root"),
    ("x_auth_user", "root"),
    ("X.Auth.User", "root"),
    ("X~Auth~User", "root"),
    ("X-Remote-User", "root"),
    ("x_remote-user", "root"),
    ("Connection", "close, X-Auth-User"),
    ("Connection", "x_auth_roles"),
    ("X-Real-IP", "192.0.2.1"),
    ("Forwarded", "for=192.0.2.1"),
    ("X-Original-URL", "/open/"),
    ("X-Rewrite-URL", "/open/"),
    ("X_Original_URI", "/open/"),
    ("X-Forwarded-Prefix", "/open"),
    ("X-Portcullis-Status", "200"),
    ("Upgrade", "h2c"),
    ("Upgrade", "h2c, websocket"),
    ("Upgrade", "websocket2"),
    ("Upgrade", "TLS/1.0"),
    ("Upgrade", ""),
    ("X~HTTP~Method~Override", "DELETE"),
    ("true~client~ip", "192.0.2.1"),
    ("content_length", "4"),
    ("Content-Length", "4"),
    ("Transfer-Encoding", "chunked"),
];

#[tokio::test]
async fn a_question_that_is_not_the_dialects_is_refused() {
    let gateway = Gateway::start(FILE).await;
    let editor = mint::token(&["editor"]);
    for dialect in DIALECTS {
        let good = Question::new(dialect, "/pages").bearer(&editor);
        assert_eq!(good.ask(&gateway).await.status, 200, "{dialect}");
        let mut bad = Vec::new();
        for (name, value) in good.own() {
            let without = vec![name];
            bad.push((format!("no {name}"), Question { without: without.clone(), ..good.clone() }));
            bad.push((format!("two {name}"), good.clone().with(name, &value)));
            let emptied = Question { without, ..good.clone() }.with(name, "");
            bad.push((format!("empty {name}"), emptied));
        }
        for (name, value) in FOREIGN {
            let body = match name {
                "Content-Length" => "body",
                "Transfer-Encoding" => "0\r\n\r\n",
                _ => "",
            };
            // HTTP/1.0 has no chunks.
            let version = (name == "Transfer-Encoding").then_some("HTTP/1.1");
            let question = Question { body, version, ..good.clone() }.with(name, value);
            bad.push((format!("{name}: {value}"), question));
        }
        let upgrade = good.clone().with("Upgrade", "WebSocket");
        assert_eq!(upgrade.ask(&gateway).await.status, 200, "{dialect}");
        for second in ["websocket", "h2c"] {
            let both = upgrade.clone().with("Upgrade", second);
            bad.push((format!("Upgrade twice, with {second}"), both));
        }
        bad.push(("Upgrade of a POST".to_owned(), Question { method: "POST", ..upgrade }));
        for other in DIALECTS {
            for (name, value) in (Question { dialect: other, ..good.clone() }).own() {
                let traefiks_port = name == "Host" && dialect != "nginx" && dialect != "envoy";
                if !good.own().iter().any(|(own, _)| *own == name) && !traefiks_port {
                    bad.push((format!("{name} of {other}"), good.clone().with(name, &value)));
                }
            }
        }
        if dialect != "nginx" {
            let old = Question { version: Some("HTTP/1.0"), ..good.clone() };
            bad.push(("HTTP/1.0".to_owned(), old));
        }
        for (what, question) in bad {
            let response = question.ask(&gateway).await;
            let refusal = passed_on(&response);
            assert_eq!(refusal, (403, "verify_request_invalid".to_owned()), "{dialect}: {what}");
            assert_eq!(response.header("connection"), Some("close"), "{dialect}: {what}");
        }
        if dialect != "envoy" {
            for method in ["HEAD", "POST", "OPTIONS"] {
                let text = String::from_utf8(good.bytes()).unwrap();
                let asked = ask(&gateway, text.replacen("GET", method, 1).as_bytes()).await;
                assert_eq!(asked.status, 403, "{dialect}: {method}");
            }
        }
    }
}

/// What a proxy could send by mistake, and what the log tells its operator to mend.
#[tokio::test]
async fn a_malformed_field_is_refused_and_the_log_names_its_line() {
    let gateway = Gateway::start(FILE).await;
    let editor = mint::token(&["editor"]);
    let long = |letter: &str, length| letter.repeat(length);
    for dialect in DIALECTS {
        let good = Question::new(dialect, "/pages").bearer(&editor);
        for (name, _) in good.own() {
            let line = match (dialect, name) {
                ("nginx", name) => format!("proxy_set_header {name} $"),
                ("caddy", _) => "let no `header_up` change it".to_owned(),
                ("traefik", _) => "`trustForwardHeader: false`".to_owned(),
                ("envoy", "Host") => "ext_authz sends Host by itself".to_owned(),
                ("envoy", _) => "use_remote_address: true".to_owned(),
                _ => "use the file that `proxy-config haproxy` writes".to_owned(),
            };
            let values = match name {
                "Host" | "X-Forwarded-Host" | "X-Portcullis-Host" => vec![long("a", 300)],
                "X-Original-Method" | "X-Forwarded-Method" | "X-Portcullis-Method" => {
                    vec!["GE T".to_owned(), long("A", 33), "GET, GET".to_owned()]
                }
                "X-Forwarded-For" | "X-Portcullis-Client" => {
                    vec!["unknown".to_owned(), "192.0.2.1, x".to_owned(), long("1", 300)]
                }
                "X-Forwarded-Proto" | "X-Portcullis-Proto" => {
                    vec!["ftp".to_owned(), "https, http".to_owned(), long("http", 99)]
                }
                // What a client sends as its target is the client's doing.
                _ => vec![],
            };
            for value in values {
                let mark = gateway.log().mark();
                let malformed = Question { without: vec![name], ..good.clone() };
                let response = malformed.with(name, &value).ask(&gateway).await;
                let refusal = passed_on(&response);
                let expected = (403, "verify_request_invalid".to_owned());
                assert_eq!(refusal, expected, "{dialect}: {name}: {value}");
                let told = gateway.log().after(mark, "the cause is logged", |line| {
                    let cause = line["cause"].as_str();
                    line["reason"] == "verify_request_invalid"
                        && cause.is_some_and(|cause| cause.starts_with(dialect))
                });
                let cause = told.await["cause"].as_str().unwrap().to_owned();
                assert!(cause.contains(&line), "{cause}");
            }
        }
        for uri in ["no-slash", "*", "/a%", "/open/\u{7f}", "//", "http://wiki.test/"] {
            let response = Question { uri: uri.into(), ..good.clone() }.ask(&gateway).await;
            assert!(response.status >= 400, "{dialect}: {uri}: {response:?}");
        }
        let endless = Question { uri: format!("/{}", long("a", 70_000)), ..good.clone() };
        assert!(endless.ask(&gateway).await.status >= 400, "{dialect}: an endless target");
        for extra in [("Upgrade", "websocket"), ("Upgrade", "h2c"), ("Expect", "100-continue")] {
            let question = Question::new(dialect, "/pages").with("Connection", "Upgrade");
            let response = question.with(extra.0, extra.1).ask(&gateway).await;
            assert!(passed_on(&response).0 >= 400, "{dialect}: {extra:?}: {response:?}");
        }
    }
}

#[tokio::test]
async fn other_paths_are_refused_and_the_log_says_what_to_mend() {
    let gateway = Gateway::start(FILE).await;
    let without = vec!["X-Original-URI"];
    Question { without, ..Question::new("nginx", "/") }.ask(&gateway).await;
    for path in ["/", "/livez", "/metrics", "/auth/login", "/nginx/", "/NGINX", "/envoyx", "/open/"]
    {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: wiki.test\r\n\r\n");
        let response = ask(&gateway, bytes.as_bytes()).await;
        response.is(403, "verify_request_invalid");
    }
    let told = gateway.log().until("the cause is logged", |line| {
        line["reason"] == "verify_request_invalid"
            && line["cause"].as_str().is_some_and(|cause| cause.contains("proxy_set_header"))
    });
    let cause = told.await["cause"].as_str().unwrap().to_owned();
    assert_eq!(
        cause,
        "nginx: `x-original-uri` is missing; it comes from: proxy_set_header X-Original-URI $request_uri;"
    );
}

#[tokio::test]
async fn only_trusted_proxies_may_ask() {
    let gateway = Gateway::start(FILE).await;
    let editor = mint::token(&["editor"]);
    for dialect in DIALECTS {
        for bytes in [
            Question::new(dialect, "/pages").bearer(&editor).bytes(),
            Question::new(dialect, "/open/").bytes(),
            format!("GET /{dialect}/what HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(),
        ] {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
            let stream = within(socket.connect(gateway.verify_address())).await.unwrap();
            let mut connection = Connection::over(stream);
            connection.write(bytes).await;
            let refused = passed_on(&connection.response().await);
            assert_eq!(refused, (403, "verify_peer_untrusted".to_owned()), "{dialect}");
        }
    }
}

#[tokio::test]
async fn external_routes_are_not_served_and_others_are_not_decided() {
    let gateway = Gateway::start(FILE).await;
    let editor = mint::token(&["editor"]);
    for path in ["/pages", "/open/", "/soft/"] {
        let direct = gateway.get(path).host("wiki.test").bearer(&editor).send().await;
        direct.is(404, "route_not_found");
    }
    // The public listener knows no dialect.
    let asked = Question { host: "app.test".into(), ..Question::new("nginx", "/") };
    let mut connection = gateway.connect().await;
    connection.write(asked.bytes()).await;
    assert_eq!(connection.response().await.status, 200, "the application's own answer");
    assert_eq!(gateway.upstream().count(), 1);
    let soft = Question::new("caddy", "/soft/x").bearer("no.token.x").ask(&gateway).await;
    assert_eq!((soft.status, soft.header("x-remote-user")), (200, Some("")));
    assert_eq!(soft.header("x-auth-user"), None, "an identity header of other routes");
    let line = gateway.access("/soft/x").await;
    assert_eq!(
        (&line["outcome"], &line["reason"]),
        (&json!("would_refuse"), &json!("token_malformed"))
    );
}

#[tokio::test]
async fn a_cookie_needs_our_origin_for_upgrades_and_unsafe_methods() {
    let gateway = Gateway::start(FILE).await;
    let cookie = format!("__Host-portcullis={}", mint::token(&["editor"]));
    for dialect in DIALECTS {
        let good = Question::new(dialect, "/pages").with("Cookie", &cookie);
        let foreign = good.clone().with("Origin", "https://evil.test");
        let own = good.clone().with("Origin", "https://wiki.test");
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        for (question, wanted) in [
            (good.clone(), 200),
            (foreign.clone(), 200),
            (foreign.clone().with("Sec-WebSocket-Key", key), 403),
            (foreign.clone().with("Upgrade", "websocket"), 403),
            (good.clone().with("Sec-WebSocket-Key", key), 403),
            (own.clone().with("Sec-WebSocket-Key", key), 200),
            (Question { method: "POST", ..foreign.clone() }, 403),
            (Question { method: "POST", ..own.clone() }, 200),
        ] {
            let response = question.ask(&gateway).await;
            assert_eq!(response.status, wanted, "{dialect}: {response:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_carries_many_questions_and_none_changes_the_next() {
    let gateway = Gateway::start(FILE).await;
    let editor = mint::token(&["editor"]);
    let mut connection = Connection::open(gateway.verify_address()).await;
    // Two at once, as no proxy sends them: each is decided for itself.
    let both = [
        Question::new("traefik", "/pages").bearer(&editor).bytes(),
        Question::new("traefik", "/pages").bytes(),
    ];
    connection.write(both.concat()).await;
    assert_eq!(connection.response().await.status, 200);
    connection.response().await.is(401, "credentials_missing");
    // A body that looks like a question is not read as one.
    let hidden = String::from_utf8(Question::new("traefik", "/open/").bytes()).unwrap();
    let with_body =
        Question::new("traefik", "/pages").with("Content-Length", &hidden.len().to_string());
    connection.write([with_body.bytes(), hidden.into_bytes()].concat()).await;
    connection.response().await.is(403, "verify_request_invalid");
    assert!(connection.closed().await.is_empty());
}

#[tokio::test]
async fn a_navigation_is_redirected_to_the_login_of_its_own_host() {
    let gateway = Gateway::start(
        r"
        [verify]
        trusted_proxies = ['127.0.0.1/32']
        [store]
        [identity]
        issuer = 'https://wiki.test/auth'
        [[route]]
        path = '/auth/*'
        identity = true
        host = 'wiki.test'
        [[route]]
        host = 'wiki.test'
        path = '/*'
        external = true
        issuers = ['identity']
        token_from = ['header', 'cookie']
        [[route]]
        host = 'other.test'
        path = '/*'
        external = true
        issuers = ['identity']
        token_from = ['header', 'cookie']
        ",
    )
    .await;
    let location = "https://wiki.test/auth/login?return_to=%2Fpages%3Fx%3D1";
    for dialect in DIALECTS {
        let question = Question::new(dialect, "/pages?x=1").with("Accept", "text/html");
        let response = question.ask(&gateway).await;
        let found = response.header("location").or(response.header("x-portcullis-location"));
        assert_eq!(found, Some(location), "{dialect}: {response:?}");
        assert_eq!(passed_on(&response).0, 302, "{dialect}");
        let script = Question::new(dialect, "/pages").ask(&gateway).await;
        assert_eq!(passed_on(&script).0, 401, "{dialect}: no navigation");
        let other = Question { host: "other.test".into(), ..question };
        let other = other.ask(&gateway).await;
        let status = other.header("x-portcullis-status").unwrap_or("401");
        let found = (other.status, status, other.header("location"));
        assert_eq!(found, (401, "401", None), "{dialect}: its cookie would not be sent there");
    }
}

#[tokio::test]
async fn a_live_session_is_accepted_and_not_renewed() {
    let gateway = Gateway::start(
        r"
        [verify]
        trusted_proxies = ['127.0.0.1/32']
        [store]
        [identity]
        issuer = 'https://login.example.com/auth'
        registration = 'open'
        cookie_domain = 'example.com'
        [[route]]
        host = 'login.example.com'
        path = '/auth/*'
        identity = true
        [[route]]
        host = 'wiki.example.com'
        path = '/*'
        external = true
        token_from = ['cookie']
        issuers = ['identity']
        ",
    )
    .await;
    let host = "login.example.com";
    let body = json!({ "email": "ann@example.com", "password": PASSWORD, "cookie": true });
    assert_eq!(gateway.post("/auth/register", &body).host(host).send().await.status, 201);
    let own = ("Origin", "https://login.example.com");
    let login = gateway.post("/auth/login", &body).host(host).header(own.0, own.1).send().await;
    let session = login.headers("set-cookie")[1].split_once(';').unwrap().0.to_owned();
    assert!(session.starts_with("__Secure-portcullis-session="), "{session}");
    let refreshed = async || {
        let lines = gateway.metric("portcullis_refresh_total").await;
        lines.iter().any(|line| !line.ends_with(" 0"))
    };
    let asks = |dialect, cookie: &str| Question {
        host: "wiki.example.com".into(),
        ..Question::new(dialect, "/pages").with("Cookie", cookie).with("Accept", "text/html")
    };
    for dialect in DIALECTS {
        let response = asks(dialect, &session).ask(&gateway).await;
        assert_eq!(response.status, 200, "{dialect}: {response:?}");
        assert_eq!(response.header("x-auth-email"), Some("ann@example.com"));
        assert!(response.headers("set-cookie").is_empty());
        // One that is forged, or none, leads to the login, which leads back.
        let response = asks(dialect, &format!("{session}A")).ask(&gateway).await;
        let found = response.header("location").or(response.header("x-portcullis-location"));
        let login =
            "https://login.example.com/auth/login?return_to=https%3A%2F%2Fwiki.example.com%2Fpages";
        assert_eq!(found, Some(login), "{dialect}: {response:?}");
    }
    assert!(!refreshed().await, "nothing was rotated");
    // The browser renews it where it can.
    let me = gateway.get("/auth/me").host(host).header("Cookie", &session).send().await;
    assert_eq!((me.status, me.headers("set-cookie").len()), (200, 2));
    assert!(refreshed().await);
    // The end of the session is its end here as well.
    let logout = gateway.request("POST", "/auth/logout").host(host).header(own.0, own.1);
    assert_eq!(logout.header("Cookie", &session).body("").send().await.status, 204);
    for dialect in DIALECTS {
        let script = Question {
            host: "wiki.example.com".into(),
            ..Question::new(dialect, "/pages").with("Cookie", &session)
        };
        assert_eq!(passed_on(&script.ask(&gateway).await).0, 401, "{dialect}");
    }
}

#[tokio::test]
async fn explain_and_tests_decide_as_the_listener_does() {
    let tests = r"
        [[test]]
        request = 'GET http://wiki.test/pages'
        roles = ['editor']
        expect = { status = 200, route = 'wiki', reason = 'authorized', headers = { X-Auth-Roles = 'editor', X-Auth-Email = '' } }
        [[test]]
        request = 'GET http://wiki.test/pages'
        headers = { X-Auth-User = 'root' }
        expect = { status = 401, route = 'wiki' }
        [[test]]
        request = 'GET http://app.test/'
        expect = { status = 200, route = 'app' }
    ";
    let gateway = Gateway::start(&format!("{FILE}{tests}")).await;
    let explain = async |arguments: &[&str]| {
        let (code, out, errors) =
            gateway.command(&[&["explain", "--json"], arguments].concat()).await;
        assert_eq!(code, 0, "{errors}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    let url = "https://wiki.test/pages";
    let claims = r#"{"sub":"alice","roles":["editor"]}"#;
    for kind in DIALECTS {
        let told =
            explain(&["GET", url, "--claims", claims, "--via", kind, "--peer", "192.0.2.9"]).await;
        assert_eq!(
            (&told["status"], &told["client"]),
            (&json!(200), &json!("192.0.2.9")),
            "{told}"
        );
        assert_eq!(told["headers"]["set"]["x-auth-user"], "alice");
        let told = explain(&["GET", url, "--via", kind, "-H", "X-Auth-User: root"]).await;
        assert_eq!(told["reason"], "credentials_missing", "the written configuration removes it");
        let told = explain(&["GET", "http://app.test/", "--via", kind]).await;
        assert_eq!(told["reason"], "route_not_found", "{told}");
        let odd = ["GET", url, "--claims", claims, "--via", kind, "-H", "X~Auth~User: root"];
        let expected = if kind == "caddy" { 403 } else { 200 };
        assert_eq!(explain(&odd).await["status"], expected, "{kind}");
    }
    let told = explain(&["GET", url, "--claims", claims]).await;
    assert_eq!((&told["status"], &told["reason"]), (&json!(404), &json!("route_not_found")));
}

#[tokio::test]
async fn the_listener_drains_and_reloads_with_the_others() {
    let gateway = Gateway::start(FILE).await;
    let question = Question::new("haproxy", "/open/");
    let told = gateway
        .reload(
            &FILE
                .replace("access = 'public'\n[[route]]\nname = 'soft'", "[[route]]\nname = 'soft'"),
        )
        .await;
    assert_eq!(told["message"], "reloaded", "{told}");
    question.ask(&gateway).await.is(401, "credentials_missing");
    let told =
        gateway.reload(&FILE.replace("[verify]\n", "[verify]\nlisten = '127.0.0.1:1'\n")).await;
    assert!(told["problems"].to_string().contains("read at start"), "{told}");
    gateway.signal("TERM");
    assert!(gateway.exited().await.success());
}

#[tokio::test]
async fn what_could_not_work_is_an_error_of_the_file() {
    let check = async |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("corp.secret"), mint::SECRET).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let output = command.args(["check", "--config"]).arg(&path).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let file = |verify: &str, route: &str| {
        format!(
            "{verify}\n[upstream.app]\nbuiltin = 'echo'\n[issuer.corp]{}\n[[route]]\npath = '/*'\n{route}",
            mint::CORP
        )
    };
    let verify = "[verify]\ntrusted_proxies = ['127.0.0.1/32']";
    for (text, code, message) in [
        (file(verify, "external = true"), 0, ""),
        (file("", "external = true"), 78, "an external route needs a `[verify]` section"),
        (file("[verify]", "external = true"), 78, "`[verify]` has no `trusted_proxies`"),
        (
            file("[verify]\ntrusted_proxies = ['0.0.0.0/0']", "external = true"),
            78,
            "every peer could ask",
        ),
        (
            file("[verify]\ntrusted_proxies = ['10.0.0.0/8']", "external = true"),
            0,
            "`10.0.0.0/8` is a large network",
        ),
        (file(verify, "upstream = 'app'"), 0, "no route is external"),
        (
            file(
                verify,
                "host = 'wiki.test'\nexternal = true\ntoken_from = ['cookie']\n[[route]]\npath = '/auth/*'\nidentity = true\nhost = 'login.test'\n[identity]\nissuer = 'https://login.test/auth'",
            ),
            0,
            "browsers do not send `wiki.test` the cookies of the login at `login.test`",
        ),
        (
            file(verify, "external = true\nupstream = 'app'"),
            78,
            "`upstream` and `external` contradict each other",
        ),
        (
            file(verify, "external = true\nidentity = true"),
            78,
            "`identity` and `external` contradict each other",
        ),
        (
            file(verify, "external = true\nstrip_prefix = true"),
            78,
            "`strip_prefix` has no effect on an external route",
        ),
        (
            file(verify, "external = true\nmethod_override = true"),
            78,
            "`method_override` has no effect on an external route",
        ),
        (
            file(verify, "external = true\nforward_authorization = true"),
            78,
            "`forward_authorization` has no effect on an external route",
        ),
        (
            file(verify, "external = true\ntoken_from = ['query']"),
            78,
            "`token_from = [\"query\"]` has no effect on an external route",
        ),
    ] {
        let (found, errors) = check(&text).await;
        assert_eq!(found, code, "{text}\n{errors}");
        assert!(errors.contains(message), "{text}\n{errors}");
    }
}
