//! Real proxies ask the gateway, from the configurations that `proxy-config` writes: nginx, Caddy,
//! Traefik, Envoy and HAProxy.
//!
//! What a request does is seen at a recording application behind the proxy, and compared with a
//! gateway that forwards the same requests itself.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    reason = "a test that fails should panic, its tasks end with its runtime, and `json!` is passed as it is written"
)]
#![expect(unreachable_pub, reason = "`pub` marks what tests use of the harness")]

mod attack;
#[path = "../blackbox/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the other tests use the rest")]
mod harness;
mod load;
mod manifests;
mod proxy;

use std::time::Duration;

use crate::harness::certificates::{self, Authority};
use crate::harness::client::Request;
use crate::harness::upstream::{Received, write};
use crate::harness::{Connection, Gateway, Port, Response, Step, Upstream, mint};
use crate::proxy::Proxy;

const KINDS: [&str; 5] = ["nginx", "caddy", "traefik", "envoy", "haproxy"];

/// The routes; `$DESTINATION` is `external = true`, or an upstream.
const ROUTES: &str = r"
[limit.few]
requests = 2
per = '1h'
[store]
[identity]
issuer = 'http://wiki.test/auth'
[[route]]
name = 'wiki'
host = 'wiki.test'
path = '/*'
$DESTINATION
roles = ['editor']
issuers = ['corp']
token_from = ['header', 'cookie']
[[route]]
name = 'open'
host = 'wiki.test'
path = '/open/*'
$DESTINATION
access = 'public'
[[route]]
name = 'limited'
host = 'part.test'
path = '/limited/*'
methods = ['GET']
$DESTINATION
access = 'public'
limit = 'few'
[[route]]
name = 'remote'
host = 'part.test'
path = '/remote/*'
$DESTINATION
issuers = ['corp']
identity_headers = { X-Remote-User = 'sub' }
[[route]]
name = 'dav'
host = 'part.test'
path = '/dav/*'
$DESTINATION
token_from = ['header', 'basic']
[[route]]
name = 'wild'
host = '*.wild.test'
path = '/*'
$DESTINATION
access = 'public'
[[route]]
name = 'auth'
host = 'wiki.test'
path = '/auth/*'
identity = true
";

/// A proxy, the gateway that it asks, and the application behind it.
struct Seam {
    gateway: Gateway,
    application: Upstream,
    proxy: Proxy,
    _verify: Port,
}

impl Seam {
    /// `None`, loudly, where the proxy is not installed.
    async fn start(kind: &str) -> Option<Self> {
        let program = proxy::program(kind)?;
        let (application, verify) = (Upstream::start().await, Port::reserve());
        let file = format!(
            "[verify]\nlisten = '{}'\ntrusted_proxies = ['127.0.0.1/32']\n{}",
            verify.address(),
            ROUTES.replace("$DESTINATION", "external = true")
        );
        let gateway = Gateway::start(&file).await;
        let proxy = Proxy::start(kind, &program, &gateway, application.address()).await;
        let seam = Self { gateway, application, proxy, _verify: verify };
        // Some listen before they know their routes.
        for attempt in 0.. {
            let response = seam.get("/open/ready").send().await;
            if response.status == 200 {
                break;
            }
            assert!(attempt < 200, "{kind} does not serve: {response:?}\n{}", seam.proxy.errors());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(seam)
    }

    fn get(&self, target: &str) -> Request {
        Request::new(self.proxy.address(), "GET", target).host("wiki.test")
    }

    /// Sends bytes, and takes what comes: a proxy may close without an answer.
    async fn raw(&self, bytes: &[u8]) -> Option<Response> {
        let mut connection = Connection::open(self.proxy.address()).await;
        connection.try_write(bytes).await.ok()?;
        connection.try_response_to("GET").await
    }

    /// What the application got for requests whose target contains this.
    fn reached(&self, mark: &str) -> Vec<Received> {
        let seen = self.application.seen();
        seen.requests.into_iter().filter(|request| request.target.contains(mark)).collect()
    }
}

fn folded(name: &str) -> String {
    let fold = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    name.to_ascii_lowercase().chars().map(fold).collect()
}

/// Runs a test for each proxy, one after another.
async fn with_each(test: impl AsyncFn(&str, Seam)) {
    for kind in KINDS {
        if let Some(seam) = Seam::start(kind).await {
            test(kind, seam).await;
        }
    }
}

#[tokio::test]
async fn callers_get_in_and_the_application_learns_who_they_are() {
    with_each(async |kind, seam| {
        let editor = mint::claims(serde_json::json!({ "roles": ["editor"], "email": "e@x.test" }));
        let allowed = seam
            .get("/pages/1?a=%2F&b=c")
            .bearer(&editor)
            .header("Cookie", "a=1; __Host-portcullis-x=2; b=3")
            .header("X-HTTP-Method-Override", "DELETE")
            .header("X-Original-URL", "/admin")
            .header("X-Forwarded-For", "203.0.113.9")
            .header("True-Client-IP", "203.0.113.9")
            .header("X-Forwarded-Client-Cert", "By=evil")
            .header("X-Request-Id", "of-the-client")
            .header("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .send()
            .await;
        assert_eq!(allowed.status, 200, "{kind}: {allowed:?}\n{}", seam.proxy.errors());
        let received = seam.application.last();
        assert_eq!(received.target, "/pages/1?a=%2F&b=c", "{kind}: byte for byte");
        assert_eq!(received.header("host"), Some("wiki.test"), "{kind}");
        assert_eq!(received.header("x-auth-user"), Some("u-17"), "{kind}");
        assert_eq!(received.header("x-auth-roles"), Some("editor"), "{kind}");
        assert_eq!(received.header("x-auth-email"), Some("e@x.test"), "{kind}");
        assert_eq!(received.header("x-auth-name").unwrap_or_default(), "", "{kind}");
        assert_eq!(received.header("cookie"), Some("a=1; __Host-portcullis-x=2; b=3"), "{kind}");
        for name in [
            "authorization",
            "x-http-method-override",
            "x-original-url",
            "true-client-ip",
            "x-forwarded-client-cert",
            "traceparent",
        ] {
            assert_eq!(received.header(name).unwrap_or_default(), "", "{kind}: {name}");
        }
        let forwarded = received.header("x-forwarded-for").unwrap_or_default().to_owned();
        assert!(!forwarded.contains("203.0.113.9"), "{kind}: {forwarded}");
        let id = received.header("x-request-id").unwrap_or_default().to_owned();
        let line = seam.gateway.access("/pages/1").await;
        assert_eq!(line["request_id"], id.as_str(), "{kind}: the id of the gateway");

        let cookie = format!("a=1; __Host-portcullis={}; b=3", mint::token(&["editor"]));
        assert_eq!(seam.get("/pages/2").header("Cookie", &cookie).send().await.status, 200);
        assert_eq!(seam.application.last().header("cookie"), Some("a=1; b=3"), "{kind}");
        let body = Request::new(seam.proxy.address(), "POST", "/open/posted").host("wiki.test");
        assert_eq!(body.body("hello").send().await.status, 200, "{kind}");
        assert_eq!(seam.application.last().body, b"hello", "{kind}");
        let remote = seam.get("/remote/").host("part.test:8080").bearer(&editor).send().await;
        assert_eq!(remote.status, 200, "{kind}: a host with a port");
        assert_eq!(seam.application.last().header("x-remote-user"), Some("u-17"), "{kind}");
    })
    .await;
}

#[tokio::test]
async fn refusals_arrive_as_the_gateway_would_write_them() {
    with_each(async |kind, seam| {
        let reader = mint::token(&["reader"]);
        let before = seam.application.count();
        let get = |target: &str| seam.get(target);
        for (request, status, reason) in [
            (get("/pages"), 401, "credentials_missing"),
            (get("/pages").bearer(&reader), 403, "role_missing"),
            (get("/pages").bearer("x.y.z"), 401, "token_malformed"),
            (get("/open/%2e%2e/pages"), 400, "target_ambiguous"),
            (get("/nowhere").host("part.test"), 404, "route_not_found"),
        ] {
            let response = request.send().await;
            assert_eq!(response.refusal(), (status, reason.to_owned()), "{kind}");
        }
        let post = Request::new(seam.proxy.address(), "POST", "/limited/").host("part.test");
        let post = post.body("").send().await;
        assert_eq!(post.refusal(), (405, "method_not_allowed".to_owned()), "{kind}");
        assert_eq!(post.header("allow"), Some("GET, HEAD"), "{kind}");
        assert_eq!(seam.application.count(), before, "{kind}");
        for _ in 0..2 {
            assert_eq!(get("/limited/").host("part.test").send().await.status, 200, "{kind}");
        }
        let limited = get("/limited/").host("part.test").send().await;
        assert_eq!(limited.refusal(), (429, "rate_limited".to_owned()), "{kind}");
        let seconds: u64 = limited.header("retry-after").unwrap().parse().unwrap();
        assert!(seconds > 1, "{kind}: {seconds}");

        let page = get("/pages?x=1").header("Accept", "text/html").send().await;
        let location = "http://wiki.test/auth/login?return_to=%2Fpages%3Fx%3D1";
        assert_eq!((page.status, page.header("location")), (302, Some(location)), "{kind}");
        let dav = get("/dav/").host("part.test").send().await;
        let challenges = ["Bearer realm=\"portcullis\"", "Basic realm=\"portcullis\""];
        assert_eq!(
            (dav.status, dav.headers("www-authenticate")),
            (401, challenges.to_vec()),
            "{kind}"
        );
        for (host, status) in [
            ("unknown.test", 404),
            ("wild.test", 404),
            ("xwild.test", 404),
            ("a.wild.test", 200),
            ("A.B.wild.test:8080", 200),
        ] {
            let response = get("/").host(host).send().await;
            assert_eq!(response.status, status, "{kind}: {host}: {response:?}");
        }
    })
    .await;
}

/// nginx drops the bodies of refusals, so it has none to pass on.
#[tokio::test]
async fn people_get_pages_and_programs_do_not() {
    with_each(async |kind, seam| {
        let reader = mint::token(&["reader"]);
        let asked = |accept: &str| seam.get("/pages").bearer(&reader).header("Accept", accept);
        let page = asked("text/html,*/*;q=0.8").header("Accept-Language", "de").send().await;
        assert_eq!(page.status, 403, "{kind}");
        let is_page = page.header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        assert_eq!(is_page, kind != "nginx", "{kind}: {page:?}");
        if is_page {
            assert!(page.text().contains("<html lang=\"de\""), "{kind}: {}", page.text());
            assert!(page.header("content-security-policy").is_some(), "{kind}");
        }
        asked("application/json").send().await.is(403, "role_missing");
    })
    .await;
}

/// The certificate of an application is verified by its name and its authority.
#[tokio::test]
async fn applications_with_https_are_verified() {
    for kind in KINDS {
        let Some(program) = proxy::program(kind) else { continue };
        let application =
            Upstream::start_tls(certificates::authority().issue(&["localhost"]).server());
        let (application, verify) = (application.await, Port::reserve());
        let listen = format!(
            "[verify]\nlisten = '{}'\ntrusted_proxies = ['127.0.0.1/32']",
            verify.address()
        );
        let routes = ROUTES.replace("$DESTINATION", "external = true");
        let file = |name: &str, pem: &str| {
            let path =
                std::env::temp_dir().join(format!("portcullis-{}-{name}.pem", std::process::id()));
            std::fs::write(&path, pem).unwrap();
            path.display().to_string()
        };
        let gateway = Gateway::start(&format!("{listen}\n{routes}")).await;
        let url = format!("https://localhost:{}", application.address().port());
        let strange = Authority::new();
        for (ca, is_trusted) in [
            (file("own", &certificates::authority().pem), true),
            (file("strange", &strange.pem), false),
        ] {
            let arguments = ["--upstream", &url, "--upstream-ca", &ca];
            let proxy = Proxy::start_edited(kind, &program, &gateway, &arguments, &[]).await;
            let before = application.count();
            for attempt in 0.. {
                let get = Request::new(proxy.address(), "GET", "/open/secure").host("wiki.test");
                let response = get.send().await;
                // Some listen before they know their routes.
                if response.status == 404 && attempt < 200 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                assert_eq!(
                    response.status == 200,
                    is_trusted,
                    "{kind}: {response:?}\n{}",
                    proxy.errors()
                );
                assert!(is_trusted || response.status >= 500, "{kind}: {response:?}");
                break;
            }
            assert_eq!(application.count() - before, usize::from(is_trusted), "{kind}");
            if is_trusted {
                assert_eq!(application.last().header("host"), Some("wiki.test"), "{kind}");
            }
            std::fs::remove_file(ca).unwrap();
        }
    }
}

#[tokio::test]
async fn no_client_can_send_an_identity_header() {
    with_each(async |kind, seam| {
        let editor = mint::token(&["editor"]);
        let signs = ["-", "_", ".", "~", "!", "*", "+", "|", "^", "`", "'", "$", "%", "&", "#"];
        let mut number = 0;
        for words in [["X", "Auth", "User"], ["x", "auth", "roles"], ["X", "REMOTE", "User"]] {
            for sign in signs {
                for (path, token) in [("/open", None), ("/pages", Some(&editor))] {
                    number += 1;
                    let target = format!("{path}/spoofed-{number}");
                    let name = words.join(sign);
                    let mixed = format!("{}-{}{sign}{}", words[0], words[1], words[2]);
                    let mut request = seam.get(&target);
                    request = request.header(&name, "evil").header(&mixed, "evil");
                    if let Some(token) = token {
                        request = request.bearer(token);
                    }
                    seam.raw(&request.bytes()).await;
                    for received in seam.reached(&format!("spoofed-{number}")) {
                        for (name, value) in &received.headers {
                            let is_identity =
                                ["x-auth-", "x-remote-user"].iter().any(|own| folded(name).starts_with(own));
                            assert!(!is_identity || value != "evil", "{kind}: {name}: {value}");
                        }
                    }
                }
            }
        }
        // By the names of hop-by-hop fields, and after the body.
        for (mark, extra, body) in [
            ("by-connection", "Connection: close, X-Auth-User\r\n", ""),
            ("by-connection-2", "Connection: X-Auth-User, X-Auth-Roles\r\nX-Auth-User: evil\r\n", ""),
            ("by-trailer", "Transfer-Encoding: chunked\r\nTrailer: X-Auth-User\r\n", "0\r\nX-Auth-User: evil\r\n\r\n"),
        ] {
            let method = if body.is_empty() { "GET" } else { "POST" };
            let bytes = format!(
                "{method} /pages/{mark} HTTP/1.1\r\nHost: wiki.test\r\nAuthorization: Bearer {editor}\r\n{extra}\r\n{body}"
            );
            seam.raw(bytes.as_bytes()).await;
            for received in seam.reached(&format!("/{mark}")) {
                assert_eq!(received.header("x-auth-user"), Some("u-17"), "{kind}: {mark}");
                let trailers: Vec<_> =
                    received.trailers.iter().filter(|(name, _)| folded(name).starts_with("x-auth")).collect();
                assert!(trailers.is_empty(), "{kind}: {trailers:?}");
            }
        }
    })
    .await;
}

/// Targets around `/open/*`, which everyone may, and `/pages`, which only editors may.
fn targets() -> Vec<String> {
    let dots = ["..", ".", "%2e%2e", "%2E.", ".%2e", "..;", "%252e%252e", "..%00", "%c0%ae%c0%ae"];
    let slashes = ["/", "//", "\\", "%2f", "%5c", ";/", "/;x=1/", "%252f", "/./"];
    let mut targets = Vec::new();
    for dot in dots {
        for slash in slashes {
            targets.push(format!("/open{slash}{dot}{slash}pages"));
            targets.push(format!("/open/x{slash}{dot}/{dot}/pages"));
        }
        targets.push(format!("/{dot}/pages"));
    }
    for target in [
        "//pages",
        "/pages",
        "/open",
        "/open/",
        "/open/x",
        "/OPEN/x",
        "/open/a%",
        "/open/a%zz",
        "/open/a b",
        "/open/a#/../../pages",
        "/open/?x=/../pages",
        "/open/x?../pages",
        "/open/\u{e4}",
        "/open/%e4",
        "/open/%00",
        "/open/%0a",
        "/open/%7f",
        "/open/;x",
        "/open/x;y=z",
        "/pages;/open/",
        "http://wiki.test/pages",
        "http://part.test/open/",
        "*",
        "open/x",
        "/open/[x]",
        "/open/a|b",
        "/open/%2561",
        "/open/a%2fb",
        "/pages/../open/",
        "/pages%2f..%2fopen/",
        "/\\open/",
    ] {
        targets.push(target.to_owned());
    }
    targets
}

#[tokio::test]
async fn no_target_gets_in_that_the_gateway_refuses() {
    let direct_application = Upstream::start().await;
    let file = ROUTES.replace("$DESTINATION", "upstream = 'app'");
    let direct = Gateway::setup(&file).upstream(direct_application.clone()).start().await;
    let editor = mint::token(&["editor"]);
    with_each(async |kind, seam| {
        for (number, target) in targets().into_iter().enumerate() {
            for (host, bearer) in [
                ("wiki.test", ""),
                ("wiki.test", editor.as_str()),
                ("wiki.test, part.test", editor.as_str()),
                ("part.test", ""),
            ] {
                let credentials = match bearer {
                    "" => String::new(),
                    token => format!("Authorization: Bearer {token}\r\n"),
                };
                let mark = format!("{kind}-{number}-{host}-{}", bearer.len());
                let request = |target: &str, host: &str| {
                    format!(
                        "GET {target} HTTP/1.1\r\nHost: {host}\r\nX-Mark: {mark}\r\n{credentials}Connection: close\r\n\r\n"
                    )
                };
                let marked = |application: &Upstream| {
                    let seen = application.seen();
                    let of = |request: &&Received| request.header("x-mark") == Some(&mark);
                    seen.requests.iter().find(of).cloned()
                };
                seam.raw(request(&target, host).as_bytes()).await;
                direct.raw(request(&target, host).as_bytes()).await;
                let (through, directly) = (marked(&seam.application), marked(&direct_application));
                let is_plain = ["/open/", "/open/x", "/pages"].contains(&target.as_str());
                assert!(through.is_some() || directly.is_none() || !is_plain, "{kind}: {target}");
                let (Some(written), None) = (through, directly) else { continue };
                // A proxy may encode what the client did not, or take the host of an absolute-form
                // target: what the application then gets must be let in as it is.
                let written_host = written.header("host").unwrap_or_default();
                let is_rewritten = written.target != target || written_host != host;
                assert!(is_rewritten, "{kind} lets in what the gateway refuses: {target} {host}");
                direct.raw(request(&written.target, written_host).as_bytes()).await;
                let same = marked(&direct_application);
                assert!(same.is_some(), "{kind} makes {written:?} of {target} for {host}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn upgrades_by_cookie_need_our_origin() {
    with_each(async |kind, seam| {
        let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
        seam.application.does_at("/ws/own", vec![write(switching), Step::Echo]);
        let cookie = format!("__Host-portcullis={}", mint::token(&["editor"]));
        let handshake = |target: &str, origin: &str| {
            seam.get(target)
                .header("Upgrade", "websocket")
                .header("Connection", "Upgrade")
                .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header("Sec-WebSocket-Version", "13")
                .header("Cookie", &cookie)
                .header("Origin", origin)
        };
        let foreign = seam.raw(&handshake("/ws/foreign", "http://evil.test").bytes()).await.unwrap();
        foreign.is(403, "origin_foreign");
        assert!(seam.reached("/ws/foreign").is_empty(), "{kind}");
        // Without the key, it is refused, or the application gets no `Upgrade`.
        let keyless = seam.get("/ws/keyless").header("Upgrade", "websocket");
        let keyless = keyless.header("Connection", "Upgrade").header("Cookie", &cookie);
        let answer = seam.raw(&keyless.header("Origin", "http://evil.test").bytes()).await;
        assert_ne!(answer.map(|answer| answer.status), Some(101), "{kind}");
        let mut reached = seam.reached("/ws/keyless").into_iter();
        assert!(reached.all(|received| received.header("upgrade").is_none()), "{kind}");
        let mut connection = Connection::open(seam.proxy.address()).await;
        connection.write(handshake("/ws/own", "http://wiki.test").bytes()).await;
        assert_eq!(connection.head().await.unwrap().status, 101, "{kind}\n{}", seam.proxy.errors());
        connection.write("to and fro").await;
        assert_eq!(connection.exactly(10).await.as_deref(), Some(&b"to and fro"[..]), "{kind}");
        let posted = Request::new(seam.proxy.address(), "POST", "/pages/foreign").host("wiki.test");
        let posted = posted.header("Cookie", &cookie).header("Origin", "http://evil.test").body("x");
        posted.send().await.is(403, "origin_foreign");
        assert!(seam.reached("/pages/foreign").is_empty(), "{kind}");
    })
    .await;
}

#[tokio::test]
async fn nothing_gets_in_while_the_gateway_is_away_or_reloads() {
    let editor = &mint::token(&["editor"]);
    with_each(async |kind, mut seam| {
        // Reloads refuse nothing and let nothing in.
        let requests = async {
            for number in 0..60 {
                let refused = seam.get("/pages/refused").send().await;
                assert_eq!(refused.status, 401, "{kind}, request {number}");
                let allowed = seam.get("/pages/allowed").bearer(editor).send().await;
                assert_eq!(allowed.status, 200, "{kind}, request {number}");
            }
        };
        let reloads = async {
            for _ in 0..20 {
                assert_eq!(seam.gateway.hang_up().await["message"], "reloaded");
            }
        };
        tokio::join!(requests, reloads);
        seam.gateway.signal("KILL");
        seam.gateway.exited().await;
        for token in ["", editor] {
            let request = match token {
                "" => seam.get("/pages/killed"),
                token => seam.get("/pages/killed").bearer(token),
            };
            let response = seam.raw(&request.bytes()).await;
            assert!(response.as_ref().is_none_or(|response| response.status >= 500), "{kind}");
            if kind == "nginx" || kind == "envoy" {
                assert_eq!(response.unwrap().header("retry-after"), Some("1"), "{kind}");
            }
        }
        assert!(seam.reached("killed").is_empty() && seam.reached("refused").is_empty(), "{kind}");
        seam.gateway.kill_and_restart().await;
        let allowed = seam.get("/pages/again").bearer(editor).send().await;
        assert_eq!(allowed.status, 200, "{kind}: after a restart");
    })
    .await;
}

/// A gateway that has stopped answers nothing: what it would refuse must wait or fail.
#[tokio::test]
async fn nothing_gets_in_while_the_gateway_is_stopped() {
    let tests = KINDS.map(async |kind| {
        let Some(seam) = Seam::start(kind).await else { return };
        seam.gateway.freeze().await;
        let request = seam.get("/pages/stopped").bytes();
        let answer = tokio::time::timeout(Duration::from_secs(14), seam.raw(&request)).await;
        seam.gateway.signal("CONT");
        if let Ok(Some(response)) = answer {
            assert!(response.status >= 500, "{kind}: {response:?}");
        }
        assert_eq!(seam.get("/pages").send().await.status, 401, "{kind}");
        assert!(seam.reached("stopped").is_empty(), "{kind}");
    });
    Box::pin(futures(tests)).await;
}

/// Waits for all of them at once.
async fn futures<F: Future<Output = ()>>(all: [F; 5]) {
    let [one, two, three, four, five] = all;
    tokio::join!(one, two, three, four, five);
}
