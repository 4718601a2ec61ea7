//! Connections to applications: kept, lost during a request, and replaced (`keep_idle`, CONTRACT
//! §16).

use std::time::Duration;

use tokio::task::JoinSet;

use crate::harness::client::Request;
use crate::harness::h2;
use crate::harness::upstream::{answer, write};
use crate::harness::{Gateway, Step, within};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Closes a connection on its second request.
fn ends(how: Step) -> Vec<Step> {
    [vec![Step::IfKept(Box::new(how))], answer(OK)].concat()
}

#[tokio::test]
async fn a_repeatable_request_is_sent_again_if_its_kept_connection_ends() {
    let gateway = Gateway::start(PUBLIC).await;
    for how in [Step::Close, Step::Reset] {
        gateway.upstream().does(ends(how.clone()));
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
            assert_eq!(gateway.get("/warm").send().await.status, 200);
            let before = gateway.upstream().seen();
            let response = gateway.request(method, "/again").header("X-A", "1").send().await;
            assert_eq!(response.status, 200, "{method} {how:?}");
            let seen = gateway.upstream().seen();
            assert_eq!(seen.accepted, before.accepted + 1, "{method} {how:?}");
            let [first, second] = &seen.requests[before.requests.len()..] else {
                panic!("not sent twice: {method} {how:?}: {seen:?}")
            };
            assert_eq!(
                (&first.method, &first.target, &first.headers),
                (&second.method, &second.target, &second.headers)
            );
            gateway.upstream().until(|seen| seen.closed + 1 >= seen.accepted).await;
        }
    }
}

/// It is unknown whether the application has acted on it.
#[tokio::test]
async fn a_request_that_must_not_be_repeated_is_sent_once() {
    let gateway = Gateway::start(&format!("upstream.app.keep_alive = true\n{PUBLIC}")).await;
    let begun = [vec![Step::IfKept(Box::new(write("HTTP/1.1 200 O")))], ends(Step::Close)].concat();
    for (steps, request) in [
        (ends(Step::Close), gateway.request("POST", "/once")),
        (ends(Step::Close), gateway.request("PATCH", "/once")),
        (ends(Step::Close), gateway.request("PUT", "/once").body("a body")),
        (begun, gateway.get("/once")),
    ] {
        gateway.upstream().does(steps);
        assert_eq!(gateway.get("/warm").send().await.status, 200);
        let before = gateway.upstream().count();
        request.send().await.is(502, "upstream_failed");
        assert_eq!(gateway.upstream().count(), before + 1);
    }
    // If a new connection fails, its first request fails too.
    gateway.upstream().does(vec![Step::Close]);
    let before = gateway.upstream().count();
    gateway.get("/once").send().await.is(502, "upstream_failed");
    assert_eq!(gateway.upstream().count(), before + 1);
}

#[tokio::test]
async fn an_upload_is_not_lost_with_a_kept_connection() {
    let gateway = Gateway::start(PUBLIC).await;
    gateway.upstream().does(ends(Step::Close));
    for method in ["POST", "PUT", "PATCH"] {
        assert_eq!(gateway.get("/warm").send().await.status, 200);
        let before = gateway.upstream().count();
        assert_eq!(gateway.request(method, "/once").body("a body").send().await.status, 200);
        assert_eq!(gateway.upstream().count(), before + 1, "{method}");
    }
}

#[tokio::test]
async fn an_unused_connection_is_kept_for_keep_idle() {
    for (keep_idle, kept) in [("0s", false), ("1h", true)] {
        let gateway =
            Gateway::start(&format!("upstream.app.keep_idle = '{keep_idle}'\n{PUBLIC}")).await;
        for _ in 0..3 {
            assert_eq!(gateway.get("/").send().await.status, 200);
        }
        assert_eq!(gateway.upstream().seen().accepted, if kept { 1 } else { 3 }, "{keep_idle}");
        let said = gateway.upstream().last().header("connection").map(str::to_owned);
        assert_eq!(said.as_deref(), if kept { None } else { Some("close") }, "{keep_idle}");
    }
    // By default, the gateway closes it before an application with a timeout of two seconds does.
    let gateway = Gateway::start(PUBLIC).await;
    assert_eq!(gateway.get("/").send().await.status, 200);
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(gateway.get("/").send().await.status, 200);
    assert_eq!(gateway.upstream().seen().accepted, 2);
}

/// One connection of HTTP/2 carries many requests, and each of them holds a connection to the
/// application: a limit of connections does not bound those.
#[tokio::test]
async fn probes_respond_while_requests_use_all_file_descriptors() {
    let gateway = Gateway::setup(PUBLIC).open_files(128).start().await;
    gateway.upstream().does_at("/held", vec![Step::Hold]);
    let mut answers = JoinSet::new();
    for _ in 0..3 {
        let client = h2::Connection::open(&gateway).await;
        for _ in 0..60 {
            let mut client = client.clone();
            answers.spawn(async move { client.send(h2::get("http://app.test/held")).await.status });
        }
    }
    // The first response is the refusal.
    assert_eq!(within(answers.join_next()).await.unwrap().unwrap(), 502);
    for path in ["/livez", "/readyz", "/metrics"] {
        let probe = Request::new(gateway.admin_address(), "GET", path);
        assert_eq!(probe.send().await.status, 200, "{path}");
    }
}
