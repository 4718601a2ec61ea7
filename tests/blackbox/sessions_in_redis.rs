//! Sessions in Redis (CONTRACT §9.2, §9.5, §9.6): two gateways, one of each, and what holds when
//! Redis is away or has lost its data.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::accounts::{Tokens, open};
use crate::harness::mint::claims;
use crate::harness::{Fate, Gateway, Link, Redis, certificates, within};

const ANN: &str = "ann@example.com";

/// Two gateways on one database, whose sessions are in this server.
async fn gateways(redis: &Redis) -> (Gateway, Gateway) {
    let store = format!("redis = '{}'\nsessions = 'redis'", redis.url());
    let one = Gateway::start(&open(&format!("[store]\n{store}"))).await;
    let (database, key) = (one.path("portcullis.db"), one.path("portcullis.key"));
    let (database, key) = (database.display(), key.display());
    let other =
        format!("[store]\ndatabase = 'sqlite:{database}'\nkey = {{ file = '{key}' }}\n{store}");
    let other = Gateway::start(&open(&other)).await;
    for gateway in [&one, &other] {
        up(gateway).await;
    }
    (one, other)
}

async fn up(gateway: &Gateway) {
    within(async {
        while gateway.metric_value("portcullis_store_up", &["redis"]).await != Some(1.0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn dies(gateway: &Gateway, access: &str) {
    within(async { while gateway.reaches(access).await == 200 {} }).await;
    assert_eq!(gateway.reaches(access).await, 401);
}

#[tokio::test]
async fn a_session_is_the_same_on_every_gateway() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (one, other) = gateways(&redis).await;
    one.register(ANN).await;
    let first = one.login(ANN).await;
    let sid = first.claims()["sid"].as_str().unwrap().to_owned();
    let second = Tokens::of(&other.refresh(&first.refresh).await);
    let third = Tokens::of(&one.refresh(&second.refresh).await);
    assert_eq!(
        (other.reaches(&third.access).await, third.claims()["sid"].as_str()),
        (200, Some(&*sid))
    );
    let life: i64 = redis.run(&["PTTL", &format!("portcullis:session:{sid}")]).parse().unwrap();
    assert!(life > 3_600_000, "{life}");
    assert!(
        !redis.run(&["HGETALL", &format!("portcullis:session:{sid}")]).contains(&third.refresh)
    );

    // The owner and the operator see it; nothing of it is in the database.
    let listed = other.get("/auth/sessions").bearer(&third.access).send().await.json();
    assert!(listed.to_string().contains(&sid), "{listed}");
    let (code, shown, errors) = one.command(&["user", "show", ANN]).await;
    assert!(code == 0 && shown.contains(&sid), "{shown}{errors}");
    let database = format!("sqlite:{}", one.path("portcullis.db").display());
    let pool = sqlx::SqlitePool::connect(&database).await.unwrap();
    let (rows,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM sessions").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, 0);
    pool.close().await;

    // A logout ends it everywhere.
    let logout = json!({ "refresh_token": third.refresh });
    assert_eq!(other.post("/auth/logout", &logout).send().await.status, 204);
    one.refresh(&third.refresh).await.is(401, "invalid_grant");
    dies(&one, &third.access).await;
    assert_eq!(one.reaches(&third.access).await, 401);

    // One that is revoked by its id cannot be used to continue, and is not listed.
    let (gone, here) = (one.login(ANN).await, one.login(ANN).await);
    let gone_sid = gone.claims()["sid"].as_str().unwrap().to_owned();
    let (code, _, errors) = one.command(&["revoke", "--session", &gone_sid]).await;
    assert_eq!(code, 0, "{errors}");
    dies(&other, &gone.access).await;
    let listed = other.get("/auth/sessions").bearer(&here.access).send().await.json().to_string();
    assert!(
        !listed.contains(&gone_sid) && listed.contains(here.claims()["sid"].as_str().unwrap()),
        "{listed}"
    );
    other.refresh(&gone.refresh).await.is(401, "invalid_grant");
}

#[tokio::test]
async fn without_redis_sessions_wait_and_access_can_still_be_taken_away() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let (one, other) = gateways(&redis).await;
    for account in [ANN, "bob@example.com"] {
        one.register(account).await;
    }
    let (ann, bob) = (one.login(ANN).await, other.login("bob@example.com").await);
    let ended = one.login("bob@example.com").await;
    let logout = json!({ "refresh_token": ended.refresh });
    assert_eq!(one.post("/auth/logout", &logout).send().await.status, 204);
    redis.kill();
    for gateway in [&one, &other] {
        let refused = gateway.refresh(&ann.refresh).await;
        refused.is(503, "store_unavailable");
        assert!(refused.header("retry-after").is_some());
        gateway
            .try_login(ANN, crate::harness::accounts::PASSWORD)
            .await
            .is(503, "store_unavailable");
        assert_eq!(gateway.reaches(&ann.access).await, 200, "what was issued goes on");
    }
    let logout = json!({ "refresh_token": bob.refresh });
    other.post("/auth/logout", &logout).send().await.is(503, "store_unavailable");
    let (code, _, errors) = one.command(&["user", "end-sessions", ANN]).await;
    assert_eq!(code, 0, "{errors}");
    for gateway in [&one, &other] {
        dies(gateway, &ann.access).await;
    }
    let (code, _, errors) = one.command(&["user", "show", ANN]).await;
    assert!(code == 1 && errors.contains("the sessions in Redis cannot be used"), "{errors}");

    // What it has lost is gone, and what was revoked stays revoked.
    redis.restart_empty();
    for gateway in [&one, &other] {
        up(gateway).await;
        gateway.refresh(&bob.refresh).await.is(401, "invalid_grant");
        assert_eq!(
            [
                gateway.reaches(&bob.access).await,
                gateway.reaches(&ended.access).await,
                gateway.reaches(&ann.access).await
            ],
            [200, 401, 401]
        );
    }
    let again = other.login(ANN).await;
    assert_eq!(one.refresh(&again.refresh).await.status, 200);
}

/// The account decides, whatever Redis remembers.
#[tokio::test]
async fn an_account_that_changes_ends_its_sessions() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (one, other) = gateways(&redis).await;
    one.register(ANN).await;
    for change in [&["user", "end-sessions", ANN][..], &["user", "disable", ANN]] {
        let tokens = other.login(ANN).await;
        assert_eq!(status(&one).await["sessions"], 1);
        let (code, _, errors) = one.command(change).await;
        assert_eq!(code, 0, "{errors}");
        assert_eq!(status(&one).await["sessions"], 0, "{change:?}");
        for gateway in [&one, &other] {
            dies(gateway, &tokens.access).await;
            gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
        }
    }
    one.command(&["user", "enable", ANN]).await;
    // A token that is used twice, too late, ends the session.
    let file = std::fs::read_to_string(one.path("gateway.toml")).unwrap();
    assert!(!file.contains("refresh_reuse_interval"));
    let tokens = one.login(ANN).await;
    let next = Tokens::of(&other.refresh(&tokens.refresh).await);
    let again = Tokens::of(&one.refresh(&tokens.refresh).await);
    assert_eq!(next.refresh, again.refresh, "a repeated token gets the same successor");
}

async fn status(gateway: &Gateway) -> serde_json::Value {
    let (code, output, errors) = gateway.command(&["store", "status", "--json"]).await;
    assert_eq!(code, 0, "{errors}");
    serde_json::from_str(&output).unwrap()
}

/// Sessions are counted where they are.
#[tokio::test]
async fn the_status_names_redis_and_counts_its_sessions() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (one, other) = gateways(&redis).await;
    one.register(ANN).await;
    one.login(ANN).await;
    let ended = other.login(ANN).await;
    let logout = json!({ "refresh_token": ended.refresh });
    assert_eq!(other.post("/auth/logout", &logout).send().await.status, 204);
    let address = format!("127.0.0.1:{}", redis.port());
    let shown = status(&one).await;
    assert_eq!(
        (&shown["sessions"], &shown["sessions_in"], &shown["redis"]),
        (&json!(1), &json!("redis"), &json!({ "address": address, "problem": null })),
        "{shown}"
    );
    let (_, output, _) = one.command(&["store", "status"]).await;
    assert!(output.contains(&format!("\nredis         {address} (answers)\n")), "{output}");
    assert!(output.contains("\nsessions      1 open, in Redis\n"), "{output}");
    redis.signal("STOP");
    let shown = status(&one).await;
    let (_, output, _) = one.command(&["store", "status"]).await;
    redis.signal("CONT");
    assert!(shown["sessions"].is_null() && shown["redis"]["problem"].is_string(), "{shown}");
    assert!(output.contains("\nsessions      in Redis, which cannot be asked\n"), "{output}");
}

/// Makes the user `gateway`.
fn run_commands_of_the_guide(redis: &Redis) {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/several-replicas.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let commands: Vec<_> = guide.lines().filter(|line| line.starts_with("ACL SETUSER")).collect();
    assert_eq!(commands.len(), 2);
    for command in commands {
        assert_eq!(redis.run(&command.split(' ').collect::<Vec<_>>()), "OK", "{command}");
    }
}

/// The commands of the guide, in a server that speaks TLS.
#[tokio::test]
async fn the_documented_rights_are_enough_over_tls() {
    let authority = certificates::authority();
    let certificate = authority.issue(&["localhost"]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, chain) = (file("ca.pem", &authority.pem), file("tls.crt", &certificate.chain));
    let key = file("tls.key", &certificate.key);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = port.to_string();
    let Some(redis) = Redis::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &chain,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
        "--notify-keyspace-events",
        "KA",
    ]) else {
        return;
    };
    run_commands_of_the_guide(&redis);
    let config = open(&format!(
        "[store]\nredis = 'rediss://gateway:PASSWORD@localhost:{port}'\ninsecure_inline_secret = true\nsessions = 'redis'\n[issuer.corp]\n\
         issuer = 'https://login.test/corp'\naudience = ['reports']\nalgorithms = ['HS256']\nsecret = {{ file = 'corp.secret' }}\n\
         revoked_keys = 'bl_{{jti}}'"
    ));
    let config = config.replace("issuers = ['identity']", "issuers = ['identity', 'corp']");
    let gateway = Gateway::setup(&config).variable("SSL_CERT_FILE", &ca).start().await;
    up(&gateway).await;
    gateway.register(ANN).await;
    let tokens = gateway.login(ANN).await;
    let next = Tokens::of(&gateway.refresh(&tokens.refresh).await);
    let listed = gateway.get("/auth/sessions").bearer(&next.access).send().await;
    assert_eq!(listed.status, 200);
    let logout = json!({ "refresh_token": next.refresh });
    assert_eq!(gateway.post("/auth/logout", &logout).send().await.status, 204);
    let corp = claims(json!({ "sub": "u-17", "jti": "t-1" }));
    within(async { while gateway.reaches(&corp).await == 503 {} }).await;
    redis.run(&["SET", "bl_t-1", "1"]);
    dies(&gateway, &corp).await;
    up(&gateway).await;
    let warnings: Vec<_> = gateway
        .log()
        .lines()
        .into_iter()
        .filter(|line| line["cause"].to_string().contains("NOPERM"))
        .collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    let (code, output, errors) = gateway.command(&["check", "--live"]).await;
    assert_eq!(code, 0, "{output}{errors}");

    // Without the certificate of the authority there is no connection.
    let stranger = Gateway::start(&config).await;
    let cause = stranger.log().until("the cause is logged", |line| line["redis"].is_string());
    let cause = cause.await["cause"].as_str().unwrap().to_owned();
    assert!(
        cause.to_lowercase().contains("certificate") || cause.contains("UnknownIssuer"),
        "{cause}"
    );
}

/// Refreshes again and again, at one gateway and then at the other. An unavailable store is
/// tried again with the same token; anything else is a failure. Returns how often it was served,
/// and how often it was not.
async fn refresh_until(
    gateways: [&Gateway; 2],
    mut token: String,
    is_over: &AtomicBool,
) -> (usize, usize) {
    let (mut served, mut unserved) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        let gateway = gateways[(served + unserved) % 2];
        let response = gateway.refresh(&token).await;
        if response.status == 503 {
            assert!(response.header("retry-after").is_some());
            unserved += 1;
            continue;
        }
        // Whoever repeats it, also at the other gateway, gets the same successor.
        let next = Tokens::of(&response).refresh;
        let again = gateways[(served + unserved + 1) % 2].refresh(&token).await;
        if again.status != 503 {
            assert_eq!(Tokens::of(&again).refresh, next, "there are two successors");
        }
        (served, token) = (served + 1, next);
    }
    (served, unserved)
}

/// A server that stops, goes on and drops connections: nobody is logged out, no token has two
/// successors, and a request that needs no session never notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_redis_log_nobody_out() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (one, other) = gateways(&redis).await;
    one.register(ANN).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(one.login(ANN).await);
    }
    let access = sessions[0].access.clone();
    let is_over = AtomicBool::new(false);
    let faults = async {
        for _ in 0..12 {
            redis.signal("STOP");
            tokio::time::sleep(Duration::from_millis(250)).await;
            redis.signal("CONT");
            tokio::time::sleep(Duration::from_millis(200)).await;
            redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
            for gateway in [&one, &other] {
                up(gateway).await;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let requests = async {
        while !is_over.load(Ordering::Relaxed) {
            for gateway in [&one, &other] {
                assert_eq!(gateway.reaches(&access).await, 200);
            }
        }
    };
    let refresh =
        |session: &Tokens| refresh_until([&one, &other], session.refresh.clone(), &is_over);
    let (first, second, third, (), ()) = tokio::join!(
        refresh(&sessions[0]),
        refresh(&sessions[1]),
        refresh(&sessions[2]),
        faults,
        requests
    );
    let served = first.0 + second.0 + third.0;
    let unserved = first.1 + second.1 + third.1;
    assert!(served > 20 && unserved > 0, "{served} served, {unserved} not");
}

/// Without a time in which a token may be repeated: an answer that was lost is given once, and an
/// outage makes no token valid that was used before it.
#[tokio::test]
async fn a_lost_answer_is_given_once_and_an_outage_gives_none() {
    let Some(redis) = Redis::start(&[]) else { return };
    let link = Link::to(redis.port());
    let url = format!("redis://127.0.0.1:{}", link.port());
    let store = format!("[store]\nredis = '{url}'\nsessions = 'redis'");
    let gateway = Gateway::start(&open(&format!("refresh_reuse_interval = '0s'\n{store}"))).await;
    up(&gateway).await;
    gateway.register(ANN).await;
    let refresh = async |tokens: &Tokens| {
        let body = json!({ "refresh_token": tokens.refresh });
        gateway.post("/auth/refresh", &body).header("User-Agent", "unlucky").send().await
    };
    // Redis knows the script from then on.
    let first = Tokens::of(&refresh(&gateway.login(ANN).await).await);
    link.strike("unlucky", Fate::Unanswered);
    refresh(&first).await.is(503, "store_unavailable");
    assert_eq!(link.struck(), 1);
    link.mend();
    up(&gateway).await;
    let second = Tokens::of(&refresh(&first).await);
    assert_eq!(gateway.reaches(&second.access).await, 200);
    refresh(&first).await.is(401, "invalid_grant");
    refresh(&second).await.is(401, "invalid_grant");

    let used = gateway.login(ANN).await;
    let newest = Tokens::of(&refresh(&used).await);
    link.lead_to(1);
    refresh(&used).await.is(503, "store_unavailable");
    link.lead_to(redis.port());
    up(&gateway).await;
    refresh(&used).await.is(401, "invalid_grant");
    refresh(&newest).await.is(401, "invalid_grant");
}
