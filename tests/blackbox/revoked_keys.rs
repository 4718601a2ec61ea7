//! The blacklist of an existing application in Redis (CONTRACT §9.7): a token is revoked while its
//! key exists, and no request asks Redis.

use serde_json::json;

use crate::harness::mint::{claims, now};
use crate::harness::upstream::write;
use crate::harness::{Gateway, Redis, Step, within};

const NOTIFICATIONS: [&str; 2] = ["--notify-keyspace-events", "KA"];

fn file(redis: &Redis, pattern: &str) -> String {
    format!(
        "store.redis = '{}'\nroute = [{{ path = '/*', upstream = 'app' }}]\n[issuer.corp]\nissuer = 'https://login.test/corp'\n\
         audience = ['reports']\nalgorithms = ['HS256']\nsecret = {{ file = 'corp.secret' }}\nrevoked_keys = '{pattern}'\n",
        redis.url()
    )
}

fn token(jti: &str) -> String {
    claims(json!({ "sub": "u-17", "jti": jti, "sid": "s-1", "exp": now() + 3600 }))
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.get("/").bearer(token).send().await.status
}

/// Waits until the token gets this status. Until then it gets `before`, and nothing else.
async fn becomes(gateway: &Gateway, token: &str, before: u16, after: u16) {
    within(async {
        loop {
            match status(gateway, token).await {
                found if found == after => break,
                found => assert_eq!(found, before, "before it is {after}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_is_revoked_while_its_key_exists() {
    let Some(redis) = Redis::start(&NOTIFICATIONS) else { return };
    for (pattern, key) in
        [("bl_{jti}", "bl_t-1"), ("out:{sid}:app", "out:s-1:app"), ("[u]*{sub}", "[u]*u-17")]
    {
        let gateway = Gateway::start(&file(&redis, pattern)).await;
        becomes(&gateway, &token("t-1"), 503, 200).await;
        redis.run(&["SET", key, "1"]);
        becomes(&gateway, &token("t-1"), 200, 401).await;
        gateway.get("/").bearer(&token("t-1")).send().await.is(401, "token_revoked");
        redis.run(&["DEL", key]);
        becomes(&gateway, &token("t-1"), 401, 200).await;
        redis.run(&["SET", key, "1", "PX", "300"]);
        becomes(&gateway, &token("t-1"), 200, 401).await;
        becomes(&gateway, &token("t-1"), 401, 200).await;
        redis.run(&["HSET", "other", "a", "1"]);
        redis.run(&["RENAME", "other", key]);
        becomes(&gateway, &token("t-1"), 200, 401).await;
        redis.run(&["DEL", key]);
        becomes(&gateway, &token("t-1"), 401, 200).await;
        // Whatever its type: a second passes, not the minute until all keys are read again.
        for made in [
            &["HSET", key, "a", "1"][..],
            &["SADD", key, "a"],
            &["RPUSH", key, "a"],
            &["ZADD", key, "1", "a"],
            &["XADD", key, "*", "a", "1"],
        ] {
            redis.run(made);
            becomes(&gateway, &token("t-1"), 200, 401).await;
            redis.run(&["DEL", key]);
            becomes(&gateway, &token("t-1"), 401, 200).await;
        }
    }
}

#[tokio::test]
async fn a_stream_ends_when_its_key_appears() {
    let Some(redis) = Redis::start(&NOTIFICATIONS) else { return };
    let gateway = Gateway::start(&file(&redis, "bl_{jti}")).await;
    becomes(&gateway, &token("t-1"), 503, 200).await;
    let events =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    gateway.upstream().does_at("/events", vec![write(events), Step::Hold]);
    let mut connection = gateway.connect().await;
    connection.write(gateway.get("/events").bearer(&token("t-1")).bytes()).await;
    assert_eq!(connection.head().await.unwrap().status, 200);
    redis.run(&["SET", "bl_t-1", "1"]);
    assert_eq!(connection.closed().await, b"");
    assert_eq!(gateway.access("/events").await["reason"], "token_revoked");
}

/// What was revoked before the start is refused from the first request on.
#[tokio::test]
async fn keys_are_known_before_the_first_token_is_accepted() {
    let Some(mut redis) = Redis::start(&NOTIFICATIONS) else { return };
    let fill = "for i = 0, 2999 do redis.call('SET', 'bl_old-' .. i, '1') redis.call('SET', 'other-' .. i, '1') end";
    redis.run(&["EVAL", fill, "0"]);
    let gateway = Gateway::start(&file(&redis, "bl_{jti}")).await;
    becomes(&gateway, &token("old-2999"), 503, 401).await;
    assert_eq!(
        [status(&gateway, &token("old-0")).await, status(&gateway, &token("t-1")).await],
        [401, 200]
    );
    let read = |line: &serde_json::Value| line["keys"] == 3000;
    gateway.log().until("the number of keys is logged", read).await;
    // A section that changes keeps what is known.
    gateway.reload(&format!("{}leeway = '10s'\n", file(&redis, "bl_{jti}"))).await;
    assert_eq!(
        [status(&gateway, &token("old-0")).await, status(&gateway, &token("t-1")).await],
        [401, 200]
    );
    // Another list is read before the next token is accepted.
    redis.run(&["SET", "gone_t-1", "1"]);
    gateway.reload(&file(&redis, "gone_{jti}")).await;
    becomes(&gateway, &token("t-1"), 503, 401).await;

    redis.kill();
    let started = Gateway::start(&file(&redis, "bl_{jti}")).await;
    let refused = started.get("/").bearer(&token("t-1")).send().await;
    refused.is(503, "store_unavailable");
    assert!(refused.header("retry-after").is_some());
    let ready = started.admin("/readyz").await.json();
    assert_eq!(
        (&ready["status"], &ready["problems"]["corp"]),
        (&json!("degraded"), &json!("its revoked keys have not been read from Redis yet")),
        "{ready}"
    );
    redis.restart_empty();
    becomes(&started, &token("t-1"), 503, 200).await;
}

/// A server that is away or has lost its data makes no revoked token valid.
#[tokio::test]
async fn what_was_revoked_outlives_the_server() {
    let Some(mut redis) = Redis::start(&NOTIFICATIONS) else { return };
    let gateway = Gateway::start(&file(&redis, "bl_{jti}")).await;
    becomes(&gateway, &token("t-2"), 503, 200).await;
    redis.run(&["SET", "bl_t-1", "1", "EX", "3600"]);
    becomes(&gateway, &token("t-1"), 200, 401).await;
    redis.kill();
    assert_eq!(
        [status(&gateway, &token("t-1")).await, status(&gateway, &token("t-2")).await],
        [401, 200]
    );
    redis.restart_empty();
    gateway
        .log()
        .until("the loss is logged", |line| {
            line["message"].as_str().is_some_and(|text| text.starts_with("Redis was restarted"))
        })
        .await;
    assert_eq!(
        [status(&gateway, &token("t-1")).await, status(&gateway, &token("t-2")).await],
        [401, 200]
    );
    redis.run(&["SET", "bl_t-2", "1"]);
    becomes(&gateway, &token("t-2"), 200, 401).await;
}

#[tokio::test]
async fn a_server_without_notifications_is_named_with_the_command() {
    let Some(redis) = Redis::start(&["--notify-keyspace-events", "Ex"]) else { return };
    let gateway = Gateway::start(&file(&redis, "bl_{jti}")).await;
    let command = "CONFIG SET notify-keyspace-events 'xEKA'";
    gateway.log().until("the command is logged", |line| line["command"] == command).await;
    let (code, _, errors) = gateway.command(&["check", "--live"]).await;
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains(command), "{errors}");
    redis.run(&["CONFIG", "SET", "notify-keyspace-events", "KA"]);
    let (code, output, errors) = gateway.command(&["check", "--live"]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(output.contains(&format!("Redis at 127.0.0.1:{}: ok", redis.port())), "{output}");
    redis.signal("STOP");
    let (code, _, errors) = gateway.command(&["check", "--live"]).await;
    redis.signal("CONT");
    assert!(code == 1 && errors.contains("Redis at 127.0.0.1"), "{errors}");
}

#[tokio::test]
async fn a_pattern_or_server_that_is_missing_is_reported() {
    let Some(redis) = Redis::start(&[]) else { return };
    let gateway = Gateway::start(&file(&redis, "bl_{jti}")).await;
    for (text, problem) in [
        (file(&redis, "bl_{iss}"), "exactly one of `{jti}`, `{sid}` and `{sub}`"),
        (file(&redis, "{jti}"), "every key would match"),
        (
            file(&redis, "bl_{jti}")
                .replace(&format!("store.redis = '{}'\n", redis.url()), "store = {}\n"),
            "`revoked_keys` needs Redis",
        ),
    ] {
        let event = gateway.reload(&text).await;
        assert!(event.to_string().contains(problem), "{event}");
    }
}
