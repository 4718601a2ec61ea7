//! The second listener (CONTRACT §5, §6).

use crate::harness::client::Request;
use crate::harness::{Gateway, mint, within};

const ROUTES: &str = "[[route]]\nname = 'in'\npath = '/in/*'\nupstream = 'app'\n[[route]]\nname = 'all'\npath = '/*'\nupstream = 'app'\naccess = 'public'\nlimit = 'few'\n\
                      [limit.few]\nrequests = 100\nper = '1h'";

#[tokio::test]
async fn health_and_readiness_are_reported() {
    let gateway = Gateway::start(ROUTES).await;
    assert_eq!(gateway.admin("/livez").await.status, 200);
    let ready = gateway.admin("/readyz").await;
    assert_eq!((ready.status, ready.header("content-type")), (200, Some("application/json")));
    assert_eq!(
        (&ready.json()["status"], &ready.json()["problems"]),
        (&"ready".into(), &serde_json::json!({}))
    );
    for path in ["/", "/in", "/revoke"] {
        gateway.admin(path).await.is(404, "route_not_found");
    }
    let post = Request::new(gateway.admin_address(), "POST", "/readyz").send().await;
    assert_eq!(
        (post.refusal(), post.header("allow")),
        ((405, "method_not_allowed".to_owned()), Some("GET, HEAD"))
    );
    assert_eq!(Request::new(gateway.admin_address(), "HEAD", "/readyz").send().await.status, 200);
}

#[tokio::test]
async fn the_public_listener_has_no_admin_endpoint() {
    let gateway =
        Gateway::start("route = [{ path = '/a', upstream = 'app', access = 'public' }]").await;
    for path in ["/livez", "/readyz", "/metrics"] {
        gateway.get(path).send().await.is(404, "route_not_found");
    }
    let gateway = Gateway::start(ROUTES).await;
    assert_eq!(gateway.get("/metrics").send().await.text(), "ok");
}

#[tokio::test]
async fn metrics_have_the_documented_names_and_labels() {
    let gateway = Gateway::start(ROUTES).await;
    assert_eq!(gateway.get("/a").send().await.status, 200);
    assert_eq!(gateway.request("POST", "/a").send().await.status, 200);
    gateway.get("/in").send().await.is(401, "credentials_missing");
    gateway.get("/in").bearer(&mint::token(&[])).send().await;
    gateway.get("/a/../b").send().await.is(400, "target_ambiguous");
    gateway.access("/a/../b").await;
    for (family, labels, value) in [
        ("requests_total", &["route=\"all\"", "method=\"GET\"", "status=\"200\""][..], 1.0),
        ("requests_total", &["route=\"all\"", "method=\"POST\"", "status=\"200\""], 1.0),
        ("requests_total", &["route=\"in\"", "method=\"GET\"", "status=\"401\""], 1.0),
        ("requests_total", &["route=\"\"", "status=\"400\""], 1.0),
        ("request_duration_seconds_count", &["route=\"all\""], 2.0),
        ("upstream_duration_seconds_count", &["route=\"all\""], 2.0),
        ("upstream_duration_seconds_count", &["route=\"in\""], 1.0),
        (
            "auth_decisions_total",
            &["route=\"in\"", "outcome=\"refused\"", "reason=\"credentials_missing\""],
            1.0,
        ),
        (
            "auth_decisions_total",
            &["route=\"in\"", "outcome=\"allowed\"", "reason=\"authenticated\""],
            1.0,
        ),
        (
            "auth_decisions_total",
            &["route=\"all\"", "outcome=\"allowed\"", "reason=\"public\""],
            2.0,
        ),
        ("config_last_reload_success", &[], 1.0),
        ("tunnels", &[], 0.0),
        ("build_info", &["version="], 1.0),
    ] {
        let found = gateway.metric_value(&format!("portcullis_{family}"), labels).await;
        assert_eq!(
            found,
            Some(value),
            "{family} {labels:?}\n{}",
            gateway.admin("/metrics").await.text()
        );
    }
    assert!(
        gateway.metric_value("portcullis_config_last_reload_timestamp_seconds", &[]).await.unwrap()
            > 1.7e9
    );
}

#[tokio::test]
async fn connections_are_counted_until_they_end() {
    let gateway = Gateway::start(ROUTES).await;
    let connections = async || gateway.metric_value("portcullis_connections", &[]).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(gateway.connect().await);
        gateway.get("/a").send_on(open.last_mut().unwrap()).await;
    }
    assert!(connections().await >= 5.0);
    drop(open);
    within(async { while connections().await > 0.0 {} }).await;
}

#[tokio::test]
async fn every_listener_is_served() {
    let gateway =
        Gateway::start(&format!("server.listen = ['127.0.0.1:0', '[::1]:0']\n{ROUTES}")).await;
    let ready = gateway.log().until("it is ready", |line| line["message"] == "ready").await;
    let addresses: Vec<std::net::SocketAddr> = ready["listen"]
        .as_str()
        .unwrap()
        .split(' ')
        .map(|address| address.parse().unwrap())
        .collect();
    assert!(addresses.len() == 2 && addresses[1].is_ipv6());
    for (address, client) in addresses.into_iter().zip(["127.0.0.1", "::1"]) {
        assert_eq!(Request::new(address, "GET", "/a").send().await.status, 200);
        assert_eq!(gateway.upstream().last().header("x-forwarded-for"), Some(client));
    }
}

#[tokio::test]
async fn metrics_are_openmetrics_and_bounded_whatever_clients_send() {
    let gateway = Gateway::start(ROUTES).await;
    for index in 0..20 {
        let method = format!("METHOD{index}");
        gateway
            .request(&method, &format!("/path-{index}"))
            .host(&format!("host-{index}.test"))
            .send()
            .await;
    }
    let metrics = gateway.admin("/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = metrics.text();
    assert!(text.ends_with("# EOF\n"));
    for written in ["path-", "host-", "METHOD7"] {
        assert!(!text.contains(written), "{written}");
    }
}

/// The Prometheus text format has neither the types of OpenMetrics nor its end marker.
#[tokio::test]
async fn metrics_are_prometheus_text_if_preferred() {
    let gateway = Gateway::start(ROUTES).await;
    assert_eq!(gateway.get("/open").send().await.status, 200);
    let request = Request::new(gateway.admin_address(), "GET", "/metrics");
    let metrics = request.header("Accept", "text/plain; version=0.0.4").send().await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = metrics.text();
    for line in [
        "# TYPE portcullis_requests_total counter",
        "# TYPE portcullis_build_info gauge",
        "# TYPE process_cpu_seconds_total counter",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line}:\n{text}");
    }
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}:\n{text}")).parse().unwrap()
    };
    // The gateway of a test is this process.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_secs_f64() - value("process_start_time_seconds");
    assert!((-1.0..3600.0).contains(&age), "{age}");
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
    assert!((3.0..value("process_max_fds")).contains(&value("process_open_fds")));
    // The system counts hundredths of a second. A new test process may have used less, so the loop
    // itself uses CPU.
    let used = async || {
        let metrics = Request::new(gateway.admin_address(), "GET", "/metrics").send().await.text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
        line.expect("the family is always there").parse::<f64>().unwrap()
    };
    let mut asked = 0;
    while used().await == 0.0 {
        asked += 1;
        assert!(asked < 10_000, "the CPU time of the process stays at zero");
    }
}
