//! Rate limits: per address or caller, for the whole process, across reloads (CONTRACT §2
//! `[limit.*]`, rules 6 and 8).

use serde_json::json;

use crate::harness::upstream::write;
use crate::harness::{Connection, Gateway, Step, mint, within};

/// A limit of this many requests an hour, with these lines, on a public route; the peer is a
/// trusted proxy.
fn limited(requests: u32, lines: &str) -> String {
    format!(
        "server.trusted_proxies = ['127.0.0.1/32']\n[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\nlimit = 'few'\n\
         [limit.few]\nrequests = {requests}\nper = '1h'\n{lines}"
    )
}

async fn from(gateway: &Gateway, client: &str) -> u16 {
    gateway.get("/").header("X-Forwarded-For", client).send().await.status
}

#[tokio::test]
async fn an_exceeded_limit_sends_retry_after() {
    let gateway = Gateway::start(&limited(3, "")).await;
    for _ in 0..3 {
        assert_eq!(gateway.get("/").send().await.status, 200);
    }
    let refused = gateway.get("/").send().await;
    refused.is(429, "rate_limited");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1100..=1200).contains(&seconds), "a third of an hour: {seconds}");
    let output = gateway.log().until("the limit is named", |line| {
        line["reason"] == "rate_limited" && line["cause"].is_string()
    });
    let output = output.await;
    assert_eq!(
        (output["level"].as_str(), output["cause"].as_str()),
        (Some("info"), Some("this client has exceeded limit `few`"))
    );
    assert_eq!(gateway.upstream().count(), 3);
    assert_eq!(
        gateway.metric_value("portcullis_rate_limited_total", &["limit=\"few\""]).await,
        Some(1.0)
    );
}

#[tokio::test]
async fn a_limit_is_replenished_over_time() {
    let gateway = Gateway::start(&limited(1, "").replace("'1h'", "'1s'")).await;
    assert_eq!(gateway.get("/").send().await.status, 200);
    let refused = gateway.get("/").send().await;
    refused.is(429, "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("1"));
    within(async { while gateway.get("/").send().await.status == 429 {} }).await;
}

#[tokio::test]
async fn addresses_are_counted_separately_and_cannot_be_forged() {
    let gateway = Gateway::start(&limited(2, "")).await;
    for client in ["198.51.100.1", "6.6.6.6, 198.51.100.1"] {
        assert_eq!(from(&gateway, client).await, 200);
    }
    assert_eq!(from(&gateway, "7.7.7.7, 198.51.100.1").await, 429);
    assert_eq!(from(&gateway, "::ffff:198.51.100.1").await, 429);
    assert_eq!(from(&gateway, "198.51.100.2").await, 200);
    let stranger = Gateway::start(&limited(2, "").replace("127.0.0.1/32", "10.0.0.0/8")).await;
    for (client, status) in [("1.1.1.1", 200), ("2.2.2.2", 200), ("3.3.3.3", 429)] {
        assert_eq!(from(&stranger, client).await, status);
    }
}

#[tokio::test]
async fn ipv6_addresses_are_counted_by_prefix() {
    let gateway = Gateway::start(&limited(1, "")).await;
    for (client, status) in [
        ("2001:db8::1", 200),
        ("2001:db8::ffff:1", 429),
        ("2001:db8:0:1::1", 200),
        ("198.51.100.1", 200),
        ("198.51.100.2", 200),
    ] {
        assert_eq!(from(&gateway, client).await, status, "{client}");
    }
    let gateway = Gateway::start(&limited(1, "ipv6_prefix = 48")).await;
    for (client, status) in [("2001:db8::1", 200), ("2001:db8:0:1::1", 429), ("2001:db8:1::1", 200)]
    {
        assert_eq!(from(&gateway, client).await, status, "{client}");
    }
}

#[tokio::test]
async fn failed_attempts_count_before_authentication() {
    let gateway = Gateway::start(&limited(2, "").replace("access = 'public'\n", "")).await;
    for _ in 0..2 {
        gateway.get("/").bearer("a.b.c").send().await.is(401, "token_malformed");
    }
    gateway.get("/").bearer(&mint::token(&[])).send().await.is(429, "rate_limited");
}

#[tokio::test]
async fn callers_are_counted_by_issuer_and_subject() {
    let gateway =
        Gateway::start(&limited(1, "key = 'subject'").replace("access = 'public'\n", "")).await;
    for (subject, status) in [("ann", 200), ("bob", 200), ("ann", 429)] {
        assert_eq!(
            gateway.get("/").bearer(&mint::claims(json!({ "sub": subject }))).send().await.status,
            status,
            "{subject}"
        );
    }
    gateway.get("/").send().await.is(401, "credentials_missing");
}

#[tokio::test]
async fn count_failures_counts_failed_responses_only() {
    let gateway = Gateway::start(&limited(2, "count = 'failures'")).await;
    for status in [200, 204, 302, 404, 500, 200, 200] {
        gateway.upstream().answers(&format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(gateway.get("/").send().await.status, status);
    }
    gateway.upstream().answers("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    for status in [401, 401, 429] {
        assert_eq!(gateway.get("/").send().await.status, status);
    }
    assert_eq!(gateway.upstream().count(), 9);
}

#[tokio::test]
async fn parallel_guesses_gain_no_attempts() {
    let gateway =
        Gateway::start(&format!("server.workers = 2\n{}", limited(3, "count = 'failures'"))).await;
    gateway.upstream().does(vec![
        Step::ReadBody,
        Step::Hold,
        write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let mut waiting = Vec::new();
    for _ in 0..12 {
        let mut connection = gateway.connect().await;
        connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        waiting.push(connection);
    }
    let mut statuses = Vec::new();
    // The nine others wait until the three are decided, and are refused because they failed.
    gateway.upstream().until(|seen| seen.requests.len() == 3).await;
    for _ in 0..3 {
        gateway.upstream().release();
    }
    for connection in &mut waiting {
        statuses.push(connection.response().await.status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![401; 3], vec![429; 9]].concat());
    assert_eq!(gateway.upstream().count(), 3);
}

#[tokio::test]
async fn all_workers_share_one_budget() {
    let gateway = Gateway::start(&format!("server.workers = 4\n{}", limited(10, ""))).await;
    let mut passed = 0;
    for _ in 0..40 {
        passed += usize::from(gateway.get("/").send().await.status == 200);
    }
    assert_eq!(passed, 10);
}

#[tokio::test]
async fn an_observing_limit_logs_and_refuses_nothing() {
    let gateway = Gateway::start(&limited(1, "observe = true")).await;
    for _ in 0..3 {
        assert_eq!(gateway.get("/").send().await.status, 200);
    }
    gateway.log().until("the limit is logged", |line| line["limit"] == "few").await;
    assert_eq!(
        gateway.metric_value("portcullis_rate_limited_total", &["limit=\"few\""]).await,
        Some(2.0)
    );
}

#[tokio::test]
async fn counters_survive_a_reload_that_does_not_change_them() {
    let gateway = Gateway::start(&limited(2, "")).await;
    assert_eq!(gateway.get("/").send().await.status, 200);
    assert_eq!(gateway.get("/").send().await.status, 200);
    gateway.reload(&format!("{}\n[limit.other]\nrequests = 9\nper = '1s'", limited(2, ""))).await;
    gateway.get("/").send().await.is(429, "rate_limited");
    gateway.reload(&limited(3, "")).await;
    assert_eq!(gateway.get("/").send().await.status, 200);
}

#[tokio::test]
async fn a_limit_is_shared_by_the_routes_that_name_it() {
    let gateway = Gateway::start(
        "[[route]]\npath = '/a'\nupstream = 'app'\naccess = 'public'\nlimit = 'few'\n[[route]]\npath = '/b'\nupstream = 'app'\naccess = 'public'\nlimit = 'few'\n\
         [[route]]\npath = '/c'\nupstream = 'app'\naccess = 'public'\n[limit.few]\nrequests = 2\nper = '1h'",
    )
    .await;
    for (path, status) in [("/a", 200), ("/b", 200), ("/a", 429), ("/b", 429), ("/c", 200)] {
        assert_eq!(gateway.get(path).send().await.status, status, "{path}");
    }
}

#[tokio::test]
async fn clients_beyond_the_remembered_ones_are_counted_with_their_neighbours() {
    let gateway = Gateway::start(&limited(1, "max_clients = 1000")).await;
    let mut connection = gateway.connect().await;
    for index in 0..1250 {
        let client = format!("198.51.{}.{}", index / 250, index % 250);
        let response =
            gateway.get("/").header("X-Forwarded-For", &client).send_on(&mut connection).await;
        assert_eq!(response.status, if index < 1032 { 200 } else { 429 }, "{client}");
    }
    for client in ["203.0.113.1", "2001:db8::1"] {
        assert_eq!(from(&gateway, client).await, 200, "{client}");
    }
}

#[tokio::test]
async fn a_refused_upload_keeps_the_connection_in_sync() {
    let gateway = Gateway::start(&limited(1, "")).await;
    let mut connection: Connection = gateway.connect().await;
    let post = "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello";
    connection.write(post).await;
    assert_eq!(connection.response().await.status, 200);
    connection.write(post).await;
    connection.response().await.is(429, "rate_limited");
    connection.try_write(post).await.ok();
    if let Some(response) = connection.try_response_to("POST").await {
        response.is(429, "rate_limited");
    }
}
