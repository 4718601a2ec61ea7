//! Limits that several gateways share in Redis, and what holds while it cannot be used (CONTRACT
//! §9.4, §9.5).

use std::time::Instant;

use serde_json::json;

use crate::harness::accounts;
use crate::harness::{Gateway, Redis, within};

/// A limit of this many requests an hour with these lines on a public route; the peer is a trusted
/// proxy.
fn limited(redis: &Redis, requests: u32, lines: &str) -> String {
    format!(
        "server.trusted_proxies = ['127.0.0.1/32']\nstore.redis = '{}'\n[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\n\
         limit = 'few'\n[limit.few]\nrequests = {requests}\nper = '1h'\n{lines}",
        redis.url()
    )
}

async fn from(gateway: &Gateway, client: &str) -> u16 {
    gateway.get("/").header("X-Forwarded-For", client).send().await.status
}

/// How many of these requests pass.
async fn passed(gateway: &Gateway, client: &str, requests: usize) -> usize {
    let mut passed = 0;
    for _ in 0..requests {
        passed += usize::from(from(gateway, client).await == 200);
    }
    passed
}

/// Waits until the limit is counted in Redis (0) or by this gateway alone (1).
async fn in_mode(gateway: &Gateway, mode: f64) {
    within(async {
        let current = || gateway.metric_value("portcullis_limiter_mode", &["limit=\"few\""]);
        while current().await != Some(mode) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let up = gateway.metric_value("portcullis_store_up", &["store=\"redis\""]).await;
    assert_eq!(up, Some(1.0 - mode));
}

/// Waits until each of this many gateways knows of the others.
async fn know_each_other(redis: &Redis, gateways: usize) {
    let now = || redis.run(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap();
    let beats = |after: u64| {
        let after = format!("({after}");
        redis.run(&["ZCOUNT", "portcullis:gateways", &after, "+inf"]).parse::<usize>().unwrap()
    };
    within(async {
        while beats(0) < gateways {
            tokio::task::yield_now().await;
        }
        let all = now();
        while beats(all) < gateways {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn three_gateways_share_one_budget() {
    let Some(redis) = Redis::start(&[]) else { return };
    let file = limited(&redis, 10, "");
    let gateways =
        [Gateway::start(&file).await, Gateway::start(&file).await, Gateway::start(&file).await];
    for gateway in &gateways {
        in_mode(gateway, 0.0).await;
    }
    for client in ["198.51.100.1", "2001:db8::1"] {
        let [first, second, third] = &gateways;
        let all = tokio::join!(
            passed(first, client, 10),
            passed(second, client, 10),
            passed(third, client, 10),
            passed(first, client, 10)
        );
        assert_eq!(all.0 + all.1 + all.2 + all.3, 10, "{all:?}");
    }
    // A reload keeps the budget, and a restart does too.
    gateways[0].reload(&format!("{file}max_clients = 5000\n")).await;
    assert_eq!(from(&gateways[0], "198.51.100.1").await, 429);
    let [mut first, ..] = gateways;
    first.kill_and_restart().await;
    in_mode(&first, 0.0).await;
    assert_eq!(from(&first, "198.51.100.1").await, 429);
    let refused = first.get("/").header("X-Forwarded-For", "198.51.100.1").send().await;
    refused.is(429, "rate_limited");
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test]
async fn a_local_limit_and_failures_are_counted_as_configured() {
    let Some(redis) = Redis::start(&[]) else { return };
    let file = limited(&redis, 2, "store = 'local'");
    let (one, other) = (Gateway::start(&file).await, Gateway::start(&file).await);
    for gateway in [&one, &other] {
        assert_eq!(passed(gateway, "198.51.100.1", 5).await, 2);
        assert_eq!(gateway.metric_value("portcullis_limiter_mode", &[]).await, None);
    }
    let file = limited(&redis, 2, "count = 'failures'").replace("access = 'public'\n", "");
    let (one, other) = (Gateway::start(&file).await, Gateway::start(&file).await);
    for gateway in [&one, &other] {
        in_mode(gateway, 0.0).await;
        assert_eq!(from(gateway, "198.51.100.1").await, 401);
    }
    for gateway in [&one, &other] {
        assert_eq!(from(gateway, "198.51.100.1").await, 429);
    }
    let public = limited(&redis, 2, "count = 'failures'");
    let public = Gateway::start(&public).await;
    in_mode(&public, 0.0).await;
    assert_eq!(passed(&public, "198.51.100.2", 9).await, 9, "a success gives its cell back");
}

#[tokio::test]
async fn the_built_in_limits_are_shared() {
    let Some(redis) = Redis::start(&[]) else { return };
    let file = accounts::limited(&format!("[store]\nredis = '{}'", redis.url()));
    let (one, other) = (Gateway::start(&file).await, Gateway::start(&file).await);
    let log_in = async |gateway: &Gateway, account: usize| {
        let body = json!({ "email": format!("{account}@example.com"), "password": "guess-guess" });
        gateway.post("/auth/login", &body).send().await
    };
    for gateway in [&one, &other] {
        within(async {
            while gateway.metric_value("portcullis_store_up", &["redis"]).await != Some(1.0) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let (begun, mut tried) = (Instant::now(), 0);
    for account in 0..12 {
        let gateway = if account % 2 == 0 { &one } else { &other };
        let response = log_in(gateway, account).await;
        tried += u64::from(response.status == 401);
        assert!(matches!(response.status, 401 | 429), "{response:?}");
    }
    // Five, and one more for each twelve seconds that hashing took.
    let most = 5 + begun.elapsed().as_secs() / 12;
    assert!((5..=most).contains(&tried), "{tried} of {most}");
    let names = redis.run(&["KEYS", "portcullis:limit:*"]);
    assert!(names.contains("portcullis:limit:identity-login:"), "{names}");
    assert!(!names.contains("example.com"), "{names}");
}

/// Nobody is refused because of the outage, nobody gets more than the gateway's part, and what comes
/// back comes back by itself.
#[tokio::test]
async fn without_redis_each_gateway_grants_its_part() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let file = limited(&redis, 10, "");
    let (one, other) = (Gateway::start(&file).await, Gateway::start(&file).await);
    in_mode(&one, 0.0).await;
    in_mode(&other, 0.0).await;
    know_each_other(&redis, 2).await;
    assert_eq!(passed(&one, "198.51.100.1", 20).await, 10);
    redis.kill();
    for gateway in [&one, &other] {
        assert_eq!(passed(gateway, "198.51.100.2", 20).await, 5);
        in_mode(gateway, 1.0).await;
    }
    let degraded = async {
        loop {
            let ready = one.admin("/readyz").await;
            if let Some(problem) = ready.json()["problems"]["redis"].as_str() {
                assert_eq!(ready.status, 200);
                assert_eq!(ready.json()["status"], "degraded");
                break problem.to_owned();
            }
        }
    };
    let problem = within(degraded).await;
    assert!(
        problem.contains(&redis.port().to_string()) && problem.contains("refused"),
        "{problem}"
    );
    redis.restart_empty();
    for gateway in [&one, &other] {
        in_mode(gateway, 0.0).await;
    }
    assert_eq!(one.admin("/readyz").await.json()["status"], "ready");
    assert_eq!(
        passed(&one, "198.51.100.2", 20).await + passed(&other, "198.51.100.2", 20).await,
        10
    );
    let events = one.log().lines();
    let outages = events.iter().filter(|line| {
        line["message"].as_str().is_some_and(|text| text.starts_with("Redis cannot be used"))
    });
    assert_eq!(outages.count(), 1, "one event for each outage");
}

/// A stopped server costs one request a tenth of a second, and the next ones nothing.
#[tokio::test]
async fn a_stopped_redis_delays_nobody_for_long() {
    let Some(redis) = Redis::start(&[]) else { return };
    let gateway = Gateway::start(&limited(&redis, 100, "")).await;
    in_mode(&gateway, 0.0).await;
    redis.signal("STOP");
    let begun = Instant::now();
    assert_eq!(passed(&gateway, "198.51.100.1", 20).await, 20);
    assert!(begun.elapsed().as_millis() < 5_000, "{:?}", begun.elapsed());
    in_mode(&gateway, 1.0).await;
    redis.signal("CONT");
    in_mode(&gateway, 0.0).await;
}

/// What does not fail does not count, with Redis or without.
#[tokio::test]
async fn a_stopped_redis_does_not_make_failures_of_successes() {
    let Some(redis) = Redis::start(&[]) else { return };
    let file = limited(&redis, 10, "count = 'failures'").replace("'1h'", "'1s'");
    let gateway = Gateway::start(&file).await;
    in_mode(&gateway, 0.0).await;
    redis.signal("STOP");
    assert_eq!(passed(&gateway, "198.51.100.1", 50).await, 50);
    in_mode(&gateway, 1.0).await;
    redis.signal("CONT");
}

#[tokio::test]
async fn a_redis_that_cannot_be_written_is_named_with_its_remedy() {
    let Some(redis) = Redis::start(&[]) else { return };
    let gateway = Gateway::start(&limited(&redis, 10, "")).await;
    in_mode(&gateway, 0.0).await;
    for (broken, mended, remedy) in [
        (
            &["CONFIG", "SET", "maxmemory", "1"][..],
            &["CONFIG", "SET", "maxmemory", "0"][..],
            "raise its `maxmemory`",
        ),
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], "name the primary server"),
    ] {
        let mark = gateway.log().mark();
        redis.run(broken);
        in_mode(&gateway, 1.0).await;
        let event =
            gateway.log().after(mark, "the outage is logged", |line| line["cause"].is_string());
        let cause = event.await["cause"].as_str().unwrap().to_owned();
        assert!(cause.contains(remedy), "{cause}");
        assert!(passed(&gateway, "198.51.100.1", 1).await <= 1);
        redis.run(mended);
        in_mode(&gateway, 0.0).await;
    }
}

#[tokio::test]
async fn a_gateway_starts_without_redis() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    redis.kill();
    let gateway = Gateway::start(&limited(&redis, 30, "")).await;
    in_mode(&gateway, 1.0).await;
    assert_eq!(passed(&gateway, "198.51.100.1", 40).await, 3, "there may be ten of them");
    redis.restart_empty();
    in_mode(&gateway, 0.0).await;
    assert_eq!(passed(&gateway, "198.51.100.2", 40).await, 30);
}
