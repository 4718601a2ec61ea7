//! What several gateways do while PostgreSQL or Redis is slow, full or behind, or loses answers, and
//! while their clocks differ (CONTRACT §9.3 to §9.6). `replicas`, `shared_limits` and
//! `sessions_in_redis` have those that are away.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::accounts::{PASSWORD, Tokens, open};
use crate::harness::pooler::Pooler;
use crate::harness::postgres::PostgresServer;
use crate::harness::{Fate, Gateway, Link, Redis, within};
use crate::replicas::{
    KEY, an_outage_is_no_refusal, know_each_other, passed, setup, until_degraded, until_reaches,
    until_ready,
};

const ANN: &str = "ann@example.com";

fn url(link: &Link, user: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{}/app", link.port())
}

/// Each answer takes five seconds.
#[tokio::test]
async fn a_slow_database_opens_and_ends_nothing() {
    let Some(server) = PostgresServer::start() else { return };
    let direct = server.create_database("app");
    let link = Link::to(server.port());
    let gateway = setup(&url(&link, "portcullis"), "", KEY).start().await;
    let other = setup(&direct, "", KEY).start().await;
    gateway.register(ANN).await;
    let (tokens, ended) = (gateway.login(ANN).await, gateway.login(ANN).await);
    until_reaches(&other, &ended.access, 200).await;

    link.slow(Duration::from_secs(5));
    let begun = Instant::now();
    an_outage_is_no_refusal(&gateway, &tokens.access, &tokens.refresh).await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // What another gateway revokes meanwhile.
    other.post("/auth/logout", &json!({ "refresh_token": ended.refresh })).send().await;
    link.mend();
    until_ready(&gateway).await;
    until_reaches(&gateway, &ended.access, 401).await;
    // It may have been used up by the attempt without an answer, which is too long ago by now: the
    // database has not committed that.
    Tokens::of(&gateway.refresh(&tokens.refresh).await);
    gateway.login(ANN).await;
}

/// What it writes arrives, so it runs, but it may accept what was revoked since.
#[tokio::test]
async fn commands_say_so_while_a_gateway_cannot_read() {
    let Some(server) = PostgresServer::start() else { return };
    let direct = server.create_database("app");
    let link = Link::to(server.port());
    let gateway = setup(&url(&link, "portcullis"), "", KEY).start().await;
    let other = setup(&direct, "", KEY).start().await;
    link.strike("SET TRANSACTION READ ONLY", Fate::Unanswered);
    within(async {
        while link.struck() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // As if what it has read last were longer ago.
    server.sql("app", "UPDATE replicas SET seen_at = seen_at - 20");
    let replicas =
        "SELECT COUNT(*) FROM replicas WHERE seen_at >= EXTRACT(EPOCH FROM clock_timestamp()) - 10";
    within(async {
        while server.sql("app", replicas) != "2" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (code, _, error) = other.command(&["revoke", "--jti", "one"]).await;
    assert!(code == 1 && error.contains("has not read it within"), "{code} {error}");
    until_degraded(&gateway).await;
    link.mend();
    until_ready(&gateway).await;
    let (code, _, error) = other.command(&["revoke", "--jti", "two"]).await;
    assert_eq!(code, 0, "{error}");
}

/// Each answer of its database takes a while, and a page of accounts is a thousand.
#[tokio::test]
async fn others_write_while_a_command_far_away_ends_all_sessions() {
    let Some(server) = PostgresServer::start() else { return };
    let direct = server.create_database("app");
    let link = Link::to(server.port());
    let far = setup(&url(&link, "portcullis"), "", KEY).start().await;
    let other = setup(&direct, "", KEY).start().await;
    server.sql(
        "app",
        "INSERT INTO accounts (id, email, password, roles, disabled, email_verified, generation, not_before, created_at) \
         SELECT 'a' || n, 'a' || n || '@example.com', '', 'user', 0, 1, 0, 0, 1 FROM generate_series(1, 1500) AS n",
    );
    link.slow(Duration::from_millis(10));
    let writing = async {
        for number in 0.. {
            let (code, _, error) = other.command(&["revoke", "--jti", &number.to_string()]).await;
            assert_eq!(code, 0, "{error}");
        }
    };
    let (code, said, error) = tokio::select! {
        done = far.command(&["user", "end-sessions", "--all"]) => done,
        () = writing => unreachable!(),
    };
    assert!(code == 0 && said.contains("1500"), "{said} {error}");
    assert_eq!(server.sql("app", "SELECT COUNT(*) FROM accounts WHERE generation = 0"), "0");
    let revoked = "SELECT COUNT(DISTINCT seq) FROM revocations WHERE kind = 'subject'";
    assert_eq!(server.sql("app", revoked), "1500");
}

/// PostgreSQL refuses every new connection, and the gateway has none left.
#[tokio::test]
async fn a_database_without_connections_is_named_with_its_remedy() {
    let Some(server) = PostgresServer::start() else { return };
    server.create_database("app");
    server.sql("app", "CREATE ROLE few LOGIN CONNECTION LIMIT 20");
    server.sql("app", "ALTER DATABASE app OWNER TO few");
    let link = Link::to(server.port());
    let gateway = setup(&url(&link, "few"), "", KEY).start().await;
    gateway.register(ANN).await;
    let tokens = gateway.login(ANN).await;

    server.sql("app", "ALTER ROLE few CONNECTION LIMIT 0");
    link.lead_to(server.port());
    an_outage_is_no_refusal(&gateway, &tokens.access, &tokens.refresh).await;
    within(async {
        while !until_degraded(&gateway).await.contains("raise `max_connections`") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    server.sql("app", "ALTER ROLE few CONNECTION LIMIT 20");
    until_ready(&gateway).await;
    gateway.login(ANN).await;
}

/// A standby that lacks the last second of the primary first answers, and then takes over.
#[tokio::test]
async fn a_standby_without_the_last_second_takes_over() {
    let Some(mut primary) = PostgresServer::start() else { return };
    primary.create_database("app");
    let link = Link::to(primary.port());
    let start = async || setup(&url(&link, "portcullis"), "", KEY).start().await;
    let (one, other) = tokio::join!(start(), start());
    one.register(ANN).await;
    let (kept, ended) = (one.login(ANN).await, one.login(ANN).await);
    let mut standby = primary.start_standby();
    // From here on, nothing arrives there.
    standby.kill();
    one.post("/auth/logout", &json!({ "refresh_token": ended.refresh })).send().await;
    one.register("bob@example.com").await;
    until_reaches(&other, &ended.access, 401).await;
    primary.kill();
    standby.run();
    link.lead_to(standby.port());

    until_standby(&one).await;
    one.refresh(&kept.refresh).await.is(503, "store_unavailable");
    assert_eq!(one.reaches(&kept.access).await, 200);
    standby.sql("app", "SELECT pg_promote()");
    for gateway in [&one, &other] {
        until_ready(gateway).await;
        assert_eq!(gateway.reaches(&ended.access).await, 401, "it was revoked");
        assert_eq!(gateway.reaches(&kept.access).await, 200);
    }
    let sid = ended.claims()["sid"].as_str().unwrap().to_owned();
    let count = format!("SELECT COUNT(*) FROM revocations WHERE value = '{sid}'");
    within(async {
        while standby.sql("app", &count) != "1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let warns = |line: &Value| {
        line["message"].as_str().is_some_and(|text| text.contains("user end-sessions --all"))
    };
    // The first one to notice it writes them.
    tokio::select! {
        _ = one.log().until("what may be back is named", warns) => {}
        _ = other.log().until("what may be back is named", warns) => {}
    }
    // The session itself goes on in the standby, but for its revocation.
    assert_eq!(other.refresh(&ended.refresh).await.status, 401);
    Tokens::of(&other.refresh(&kept.refresh).await);
    // What is documented as lost.
    assert_eq!(one.try_login("bob@example.com", PASSWORD).await.status, 401);
    one.register("bob@example.com").await;
}

/// A name leads to a standby for a moment, and connections to it stay open.
#[tokio::test]
async fn a_gateway_that_met_a_standby_goes_back_to_the_primary() {
    let Some(primary) = PostgresServer::start() else { return };
    let direct = primary.create_database("app");
    let link = Link::to(primary.port());
    let gateway = setup(&url(&link, "portcullis"), "", KEY).start().await;
    let other = setup(&direct, "", KEY).start().await;
    gateway.register(ANN).await;
    let ended = gateway.login(ANN).await;
    let standby = primary.start_standby();
    link.lead_to(standby.port());
    until_standby(&gateway).await;
    // What is read there may be old.
    gateway.try_login(ANN, PASSWORD).await.is(503, "store_unavailable");
    assert_eq!(gateway.reaches(&ended.access).await, 200);
    other.post("/auth/logout", &json!({ "refresh_token": ended.refresh })).send().await;
    link.lead_new_to(primary.port());
    until_ready(&gateway).await;
    until_reaches(&gateway, &ended.access, 401).await;
    gateway.login(ANN).await;
    standby.sql("app", "SELECT pg_wal_replay_pause()");
    other.register("bob@example.com").await;
    for _ in 0..6 {
        gateway.login("bob@example.com").await;
    }
    assert_eq!(standby.sql("app", CONNECTIONS), "0");
}

/// The pooler keeps its connections to the standby.
#[tokio::test]
async fn behind_a_pooler_nothing_is_read_from_a_standby() {
    let Some(primary) = PostgresServer::start() else { return };
    let link = Link::to(primary.port());
    let Some(pooler) = Pooler::start_before(&primary, link.port()) else { return };
    primary.create_database("app");
    let gateway = setup(&pooler.url("app"), "statement_cache = false", KEY).start().await;
    gateway.register(ANN).await;
    let standby = primary.start_standby();
    link.lead_to(standby.port());
    until_standby(&gateway).await;
    gateway.try_login(ANN, PASSWORD).await.is(503, "store_unavailable");
    let (code, _, error) = gateway.command(&["user", "list"]).await;
    assert!(code != 0 && error.contains("is a standby"), "{code} {error}");
    link.lead_to(primary.port());
    until_ready(&gateway).await;
    gateway.login(ANN).await;
}

async fn until_standby(gateway: &Gateway) {
    within(async {
        while !until_degraded(gateway).await.contains("is a standby") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The connections of the gateways.
const CONNECTIONS: &str = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
    AND pid <> pg_backend_pid()";

/// Two gateways with their sessions in a Redis behind a link.
async fn with_sessions(server: &PostgresServer, link: &Link) -> [Gateway; 2] {
    let database = server.create_database("app");
    let keys = format!("redis = 'redis://127.0.0.1:{}'\nsessions = 'redis'\n", link.port());
    let lines = format!("{keys}{LIMITED}");
    let start = || setup(&database, &lines, KEY).start();
    let (one, other) = tokio::join!(start(), start());
    for gateway in [&one, &other] {
        until_up(gateway).await;
    }
    [one, other]
}

const LIMITED: &str = "[[route]]\npath = '/limited'\nupstream = 'app'\naccess = 'public'\nlimit = 'few'\n\
                       [limit.few]\nrequests = 30\nper = '10h'";

async fn until_up(gateway: &Gateway) {
    within(async {
        while gateway.metric_value("portcullis_store_up", &["redis"]).await != Some(1.0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Each answer takes five seconds.
#[tokio::test]
async fn a_slow_redis_delays_nobody_for_long() {
    let (Some(server), Some(redis)) = (PostgresServer::start(), Redis::start(&[])) else { return };
    let link = Link::to(redis.port());
    let [one, other] = with_sessions(&server, &link).await;
    one.register(ANN).await;
    let tokens = one.login(ANN).await;
    know_each_other(&server, 2).await;
    link.slow(Duration::from_secs(5));
    for gateway in [&one, &other] {
        let begun = Instant::now();
        assert_eq!(passed(gateway, "192.0.2.1", 20).await, 15, "its part");
        let response = gateway.refresh(&tokens.refresh).await;
        response.is(503, "store_unavailable");
        assert_eq!(gateway.reaches(&tokens.access).await, 200);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    link.mend();
    for gateway in [&one, &other] {
        until_up(gateway).await;
    }
    let next = Tokens::of(&other.refresh(&tokens.refresh).await);
    assert_eq!(one.reaches(&next.access).await, 200);
}

/// The answer is lost, and the client tries again as it was told to.
#[tokio::test]
async fn a_lost_answer_of_redis_ends_no_session() {
    let (Some(server), Some(redis)) = (PostgresServer::start(), Redis::start(&[])) else { return };
    let link = Link::to(redis.port());
    let [one, other] = with_sessions(&server, &link).await;
    one.register(ANN).await;
    let tokens = one.login(ANN).await;
    let refresh = async |gateway: &Gateway| {
        let body = json!({ "refresh_token": tokens.refresh });
        gateway.post("/auth/refresh", &body).header("User-Agent", "unlucky").send().await
    };
    link.strike("unlucky", Fate::Unanswered);
    refresh(&one).await.is(503, "store_unavailable");
    assert_eq!(link.struck(), 1);
    link.mend();
    until_up(&one).await;
    let next = Tokens::of(&refresh(&one).await);
    assert_eq!(Tokens::of(&refresh(&other).await).refresh, next.refresh, "two successors");
    assert_eq!(other.reaches(&next.access).await, 200);
    Tokens::of(&other.refresh(&next.refresh).await);
}

/// Redis gets the question when the client may no longer repeat it.
#[tokio::test]
async fn a_question_that_reaches_redis_late_uses_nothing_up() {
    let (Some(server), Some(redis)) = (PostgresServer::start(), Redis::start(&[])) else { return };
    let link = Link::to(redis.port());
    let [one, other] = with_sessions(&server, &link).await;
    one.register(ANN).await;
    let tokens = one.login(ANN).await;
    // Redis knows the script from now on.
    let tokens = Tokens::of(&one.refresh(&tokens.refresh).await);
    link.strike("unlucky", Fate::Held);
    let body = json!({ "refresh_token": tokens.refresh });
    let refresh = one.post("/auth/refresh", &body).header("User-Agent", "unlucky");
    refresh.send().await.is(503, "store_unavailable");
    assert_eq!(link.struck(), 1);
    // Longer than a gateway waits for its answer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    link.mend();
    within(async {
        while !redis.run(&["INFO", "errorstats"]).contains("errorstat_LATE") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let sid = tokens.claims()["sid"].as_str().unwrap().to_owned();
    let session = format!("portcullis:session:{sid}");
    assert_eq!(redis.run(&["HGET", &session, "counter"]), "1");
    let next = Tokens::of(&other.refresh(&tokens.refresh).await);
    assert_eq!(one.reaches(&next.access).await, 200);
}

/// Every write fails, every read succeeds.
#[tokio::test]
async fn a_redis_that_cannot_be_written_ends_no_session() {
    let (Some(server), Some(redis)) = (PostgresServer::start(), Redis::start(&[])) else { return };
    let link = Link::to(redis.port());
    let [one, other] = with_sessions(&server, &link).await;
    one.register(ANN).await;
    let mut tokens = one.login(ANN).await;
    for (broken, mended) in [
        (&["CONFIG", "SET", "maxmemory", "1"][..], &["CONFIG", "SET", "maxmemory", "0"][..]),
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ] {
        redis.run(broken);
        for gateway in [&one, &other] {
            gateway.refresh(&tokens.refresh).await.is(503, "store_unavailable");
            gateway.try_login(ANN, PASSWORD).await.is(503, "store_unavailable");
            assert_eq!(gateway.reaches(&tokens.access).await, 200);
        }
        redis.run(mended);
        for gateway in [&one, &other] {
            until_up(gateway).await;
        }
        tokens = Tokens::of(&other.refresh(&tokens.refresh).await);
        assert_eq!(one.reaches(&tokens.access).await, 200);
    }
}

/// Those that start while Redis is away know from the database how many they are.
#[tokio::test]
async fn gateways_that_start_without_redis_grant_their_parts() {
    let (Some(server), Some(mut redis)) = (PostgresServer::start(), Redis::start(&[])) else {
        return;
    };
    redis.kill();
    let database = server.create_database("app");
    let lines = format!("redis = '{}'\n{LIMITED}", redis.url());
    let start = || setup(&database, &lines, KEY).start();
    let (one, two, three) = tokio::join!(start(), start(), start());
    know_each_other(&server, 3).await;
    for gateway in [&one, &two, &three] {
        assert_eq!(passed(gateway, "192.0.2.1", 20).await, 10);
    }
}

/// The commands of the guide's last section but one, in the order of the page.
fn commands_of_the_guide() -> Vec<String> {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/several-replicas.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let (_, section) = guide.split_once("## Back up and restore").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    section.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect()
}

/// Both stores are restored on other servers, as the guide says.
#[tokio::test]
async fn both_stores_are_backed_up_and_restored_as_documented() {
    let (Some(server), Some(redis)) = (PostgresServer::start(), Redis::start(&[])) else { return };
    let database = server.create_database("portcullis");
    let keys = format!("redis = '{}'\nsessions = 'redis'\n", redis.url());
    let gateway = setup(&database, &keys, KEY).start().await;
    until_up(&gateway).await;
    gateway.register(ANN).await;
    let before = gateway.login(ANN).await;
    let commands = commands_of_the_guide();
    let [dump, dump_redis, create, restore, end_sessions, rotate] = &commands[..] else {
        panic!("the guide has other commands: {commands:?}")
    };
    let folder = gateway.path("");
    let redis_url = redis.url();
    let variables = [("DATABASE_URL", &*database), ("REDIS_URL", &*redis_url)];
    for command in [dump, dump_redis] {
        server.shell(&folder, command, &variables);
    }
    gateway.register("later@example.com").await;
    let ended = gateway.login(ANN).await;
    gateway.signal("TERM");
    gateway.exited().await;

    let (Some(server), Some(mut redis)) = (PostgresServer::start(), Redis::start(&[])) else {
        return;
    };
    redis.kill();
    std::fs::copy(gateway.path("portcullis.rdb"), redis.data().join("dump.rdb")).unwrap();
    redis.run_again();
    let database = format!("{}/portcullis", server.url());
    let variables = [("DATABASE_URL", &*database)];
    for command in [create, restore] {
        server.shell(&folder, command, &variables);
    }
    let keys = format!("redis = '{}'\nsessions = 'redis'\n", redis.url());
    let restored = setup(&database, &keys, KEY).start().await;
    until_up(&restored).await;
    // It is as it was, until the last commands.
    let next = Tokens::of(&restored.refresh(&before.refresh).await);
    assert_eq!(restored.refresh(&ended.refresh).await.status, 401, "it began afterwards");
    assert_eq!(restored.try_login("later@example.com", PASSWORD).await.status, 401);
    for command in [end_sessions, rotate] {
        let arguments: Vec<_> = command.split(' ').skip(1).collect();
        let (code, output, error) = restored.command(&arguments).await;
        assert_eq!(code, 0, "{command}: {output}{error}");
    }
    for token in [&before, &next, &ended] {
        assert_eq!(restored.reaches(&token.access).await, 401);
        assert_eq!(restored.refresh(&token.refresh).await.status, 401);
    }
    assert_eq!(restored.reaches(&restored.login(ANN).await.access).await, 200);
}

/// Two gateways on one SQLite file follow each other within the bound, and no session forks.
#[tokio::test]
async fn two_gateways_on_one_file_act_as_one() {
    let one = Gateway::start(&open("")).await;
    let (database, key) = (one.path("portcullis.db"), one.path("portcullis.key"));
    let (database, key) = (database.display(), key.display());
    let store = format!("[store]\ndatabase = 'sqlite:{database}'\nkey = {{ file = '{key}' }}");
    let other = Gateway::start(&open(&store)).await;
    one.register(ANN).await;
    for (from, to) in [(&one, &other), (&other, &one)] {
        for _ in 0..5 {
            let tokens = from.login(ANN).await;
            assert_eq!(to.reaches(&tokens.access).await, 200);
            let (here, there) =
                tokio::join!(from.refresh(&tokens.refresh), to.refresh(&tokens.refresh));
            let (here, there) = (Tokens::of(&here), Tokens::of(&there));
            assert_eq!(here.refresh, there.refresh, "two successors");
            let logout = from.post("/auth/logout", &json!({ "refresh_token": here.refresh }));
            assert!(logout.send().await.status < 300);
            let took = until_reaches(to, &there.access, 401).await;
            assert!(took < Duration::from_secs(1), "{took:?}");
            assert_eq!(to.refresh(&here.refresh).await.status, 401);
        }
    }
    // The command waits for both.
    let tokens = one.login(ANN).await;
    let (code, _, error) = other.command(&["user", "disable", ANN]).await;
    assert_eq!(code, 0, "{error}");
    for gateway in [&one, &other] {
        assert_eq!(gateway.reaches(&tokens.access).await, 401);
    }
}

/// Stopped for a minute: longer than it counts as one of them.
#[tokio::test]
#[ignore = "takes a minute; scripts/chaos runs it"]
async fn a_replica_that_was_stopped_for_a_minute_catches_up() {
    let (Some(server), Some(redis)) = (PostgresServer::start(), Redis::start(&[])) else { return };
    let database = server.create_database("app");
    let lines = format!("redis = '{}'\n{LIMITED}", redis.url());
    let start = || setup(&database, &lines, KEY).start();
    let (one, two) = tokio::join!(start(), start());
    one.register(ANN).await;
    let (kept, ended) = (one.login(ANN).await, one.login(ANN).await);
    assert_eq!(two.reaches(&ended.access).await, 200);
    two.freeze().await;
    let begun = Instant::now();
    one.post("/auth/logout", &json!({ "refresh_token": ended.refresh })).send().await;
    let replicas =
        "SELECT COUNT(*) FROM replicas WHERE seen_at >= EXTRACT(EPOCH FROM clock_timestamp()) - 10";
    while begun.elapsed() < Duration::from_mins(1) {
        // The other one goes on without it.
        one.login(ANN).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(server.sql("app", replicas), "1");
    let (code, _, error) = one.command(&["revoke", "--jti", "other"]).await;
    assert_eq!(code, 0, "it no longer counts: {error}");
    two.signal("CONT");
    let took = until_reaches(&two, &ended.access, 401).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(two.reaches(&kept.access).await, 200);
    Tokens::of(&two.refresh(&kept.refresh).await);
    until_ready(&two).await;
}

/// Where Debian has the library that shows a process another time.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// One gateway's clock is five seconds behind, and another's is five seconds ahead.
#[tokio::test]
async fn clocks_that_differ_by_seconds_refuse_and_open_nothing() {
    if !Path::new(FAKETIME).exists() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "libfaketime is not installed");
        eprintln!("SKIPPED: libfaketime is not installed: apt-get install faketime");
        return;
    }
    let (Some(server), Some(redis)) = (PostgresServer::start(), Redis::start(&[])) else { return };
    for (name, keys) in [
        ("database", String::new()),
        ("redis", format!("redis = '{}'\nsessions = 'redis'\n", redis.url())),
    ] {
        let database = server.create_database(name);
        let start = |offset: &str| {
            let gateway = setup(&database, &keys, KEY);
            let gateway = gateway.variable("LD_PRELOAD", FAKETIME).variable("FAKETIME", offset);
            gateway.variable("FAKETIME_DONT_FAKE_MONOTONIC", "1").start()
        };
        let (right, behind, ahead) = tokio::join!(start("+0"), start("-5"), start("+5"));
        let all = [&right, &behind, &ahead];
        if name == "redis" {
            for gateway in all {
                until_up(gateway).await;
            }
        }
        right.register(ANN).await;
        for from in all {
            for to in all {
                // A repeated refresh gets the same successor, wherever.
                let tokens = from.login(ANN).await;
                let response = to.get("/reports").bearer(&tokens.access).send().await;
                assert_eq!(response.status, 200, "{name}: {}: {response:?}", tokens.claims());
                let next = Tokens::of(&from.refresh(&tokens.refresh).await);
                let again = Tokens::of(&to.refresh(&tokens.refresh).await);
                assert_eq!(next.refresh, again.refresh, "{name}: two successors");
                let last = Tokens::of(&to.refresh(&next.refresh).await);
                // What is revoked at one is refused at the other.
                from.post("/auth/logout", &json!({ "refresh_token": last.refresh })).send().await;
                for token in [&tokens, &next, &again, &last] {
                    until_reaches(to, &token.access, 401).await;
                }
                let tokens = to.login(ANN).await;
                let (code, _, error) = from.command(&["user", "set-roles", ANN, "user"]).await;
                assert_eq!(code, 0, "{error}");
                until_reaches(to, &tokens.access, 401).await;
                let next = Tokens::of(&to.refresh(&tokens.refresh).await);
                assert_eq!(from.reaches(&next.access).await, 200, "{name}: issued afterwards");
            }
        }
    }
}
