//! Several gateways on one PostgreSQL database, directly and through a pooler, and a database that
//! is away, slow, restarted or behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::accounts::open;
use crate::harness::pooler::Pooler;
use crate::harness::postgres::PostgresServer;
use crate::harness::{Gateway, Setup, within};

pub const KEY: &str = "the same key on every replica, long enough";

fn config(lines: &str) -> String {
    // Keys of [store], then sections.
    let (keys, sections) = lines.find("[[").map_or((lines, ""), |at| lines.split_at(at));
    format!(
        "server.trusted_proxies = ['127.0.0.1/32']\n[store]\ndatabase = {{ env = 'DATABASE_URL' }}\nkey = {{ file = 'key' }}\n{keys}\n{}\n{sections}",
        open("")
    )
}

pub fn setup(url: &str, lines: &str, key: &str) -> Setup {
    Gateway::setup(&config(lines)).file("key", key).variable("DATABASE_URL", url)
}

/// Three replicas that start at the same time.
async fn three(url: &str, lines: &str) -> [Gateway; 3] {
    let start = || setup(url, lines, KEY).start();
    tokio::join!(start(), start(), start()).into()
}

/// Waits until the request gets this status, and returns how long that took.
pub async fn until_reaches(gateway: &Gateway, access: &str, status: u16) -> Duration {
    let begun = Instant::now();
    within(async { while gateway.reaches(access).await != status {} }).await;
    begun.elapsed()
}

/// Whether the gateway reports that the database can be used.
async fn up(gateway: &Gateway) -> Option<f64> {
    gateway.metric_value("portcullis_store_up", &["store=\"database\""]).await
}

/// What holds for replicas of one database.
async fn replicas_act_as_one(replicas: &[Gateway; 3]) {
    let [one, two, three] = replicas;
    let mut sets = Vec::new();
    for gateway in replicas {
        sets.push(gateway.get("/auth/.well-known/jwks.json").send().await.text());
    }
    assert!(sets[0].contains("\"kid\"") && sets.iter().all(|set| *set == sets[0]), "{sets:?}");

    one.register("ann@example.com").await;
    let tokens = two.login("ann@example.com").await;
    for gateway in replicas {
        assert_eq!(gateway.reaches(&tokens.access).await, 200);
    }
    let next = crate::harness::accounts::Tokens::of(&three.refresh(&tokens.refresh).await);
    one.post("/auth/logout", &json!({ "refresh_token": next.refresh })).send().await;
    for gateway in replicas {
        let took = until_reaches(gateway, &next.access, 401).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(gateway.reaches(&tokens.access).await, 401, "of the same session");
    }

    let other = two.login("ann@example.com").await;
    let jti = other.claims()["jti"].as_str().unwrap().to_owned();
    let (code, output, error) = three.command(&["revoke", "--jti", &jti]).await;
    assert!(code == 0 && output.contains("Every gateway"), "{output}{error}");
    for gateway in replicas {
        assert_eq!(gateway.reaches(&other.access).await, 401, "the command has waited for it");
    }
    for gateway in replicas {
        within(async {
            while gateway.metric_value("portcullis_revocation_lag_seconds_count", &[]).await
                == Some(0.0)
            {}
        })
        .await;
        assert_eq!(up(gateway).await, Some(1.0));
    }
}

#[tokio::test]
async fn replicas_that_start_together_act_as_one() {
    let Some(server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let replicas = three(&url, "").await;
    replicas_act_as_one(&replicas).await;
    assert_eq!(server.sql("app", "SELECT COUNT(*) FROM replicas"), "3");

    let [one, ..] = &replicas;
    std::fs::write(one.path("key"), "another key, which belongs to another database").unwrap();
    let (code, _, error) = one.command(&["user", "add", "bob@example.com"]).await;
    assert!(code != 0 && error.contains("`[store] key` cannot decrypt"), "{code} {error}");
}

#[tokio::test]
async fn replicas_act_as_one_behind_a_pooler_in_transaction_mode() {
    let Some(server) = PostgresServer::start() else { return };
    let Some(pooler) = Pooler::start(&server) else { return };
    server.create_database("app");
    let replicas = three(&pooler.url("app"), "statement_cache = false").await;
    replicas_act_as_one(&replicas).await;
    let failed = |gateway: &Gateway| {
        gateway.log().lines().iter().any(|line| line.to_string().contains("prepared statement"))
    };
    assert!(!replicas.iter().any(failed));
}

/// What a client and the operator see while the database is away.
pub async fn an_outage_is_no_refusal(gateway: &Gateway, access: &str, refresh: &str) {
    let begun = Instant::now();
    let response = gateway.refresh(refresh).await;
    response.is(503, "store_unavailable");
    assert!(response.header("Retry-After").is_some(), "{response:?}");
    gateway
        .try_login("ann@example.com", crate::harness::accounts::PASSWORD)
        .await
        .is(503, "store_unavailable");
    assert_eq!(gateway.reaches(access).await, 200, "tokens are verified without the database");
    within(async { while up(gateway).await != Some(0.0) {} }).await;
    until_degraded(gateway).await;
    // It was last heard from a moment before.
    assert!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// Waits until `/readyz` names the store, and returns what it says.
pub async fn until_degraded(gateway: &Gateway) -> String {
    within(async {
        loop {
            let answer = gateway.admin("/readyz").await.json();
            if let (Some("degraded"), Some(problem)) =
                (answer["status"].as_str(), answer["problems"]["store"].as_str())
            {
                return problem.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

pub async fn until_ready(gateway: &Gateway) {
    within(async { while gateway.admin("/readyz").await.json()["status"] != "ready" {} }).await;
}

#[tokio::test]
async fn a_database_that_crashes_or_hangs_opens_and_ends_nothing() {
    let Some(mut server) = PostgresServer::start() else { return };
    let gateway = setup(&server.create_database("app"), "", KEY).start().await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;

    server.crash();
    an_outage_is_no_refusal(&gateway, &tokens.access, &tokens.refresh).await;
    server.run();
    until_ready(&gateway).await;
    let tokens = crate::harness::accounts::Tokens::of(&gateway.refresh(&tokens.refresh).await);

    server.pause();
    an_outage_is_no_refusal(&gateway, &tokens.access, &tokens.refresh).await;
    server.resume();
    until_ready(&gateway).await;
    assert_eq!(gateway.login("ann@example.com").await.claims()["sub"], tokens.claims()["sub"]);
    let lines = gateway.log().lines();
    let is_about_reading = |line: &&Value| {
        line["message"]
            == "revocations by other processes cannot be read; those known so far remain in force"
    };
    // A restart may be over before a read fails.
    let count = lines.iter().filter(is_about_reading).count();
    assert!((1..=2).contains(&count), "one line for each outage: {count}");
}

/// A standby that takes over may lack the last second.
#[tokio::test]
async fn revocations_that_the_database_has_lost_are_written_again() {
    let Some(mut server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let (one, two) = tokio::join!(setup(&url, "", KEY).start(), setup(&url, "", KEY).start());
    one.register("ann@example.com").await;
    let tokens = one.login("ann@example.com").await;
    one.post("/auth/logout", &json!({ "refresh_token": tokens.refresh })).send().await;
    until_reaches(&two, &tokens.access, 401).await;
    let sid = tokens.claims()["sid"].as_str().unwrap().to_owned();
    let count = format!("SELECT COUNT(*) FROM revocations WHERE kind = 'sid' AND value = '{sid}'");
    assert_eq!(server.sql("app", &count), "1");

    // Its writers are away, so nothing can write it again before the restart.
    server.crash();
    server.run();
    server.sql("app", &format!("DELETE FROM revocations WHERE value = '{sid}'"));
    server.crash();
    server.run();
    within(async { while server.sql("app", &count) != "1" {} }).await;
    for gateway in [&one, &two] {
        until_ready(gateway).await;
        assert_eq!(gateway.reaches(&tokens.access).await, 401);
    }
    let started = setup(&url, "", KEY).start().await;
    assert_eq!(started.reaches(&tokens.access).await, 401);
}

/// Its connections are open and its rows are there, but it does not run.
#[tokio::test]
async fn a_replica_that_was_stopped_knows_what_was_revoked_when_it_goes_on() {
    let Some(server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let (one, two) = tokio::join!(setup(&url, "", KEY).start(), setup(&url, "", KEY).start());
    one.register("ann@example.com").await;
    let tokens = one.login("ann@example.com").await;
    two.freeze().await;
    // Nothing waits for what the stopped one holds.
    let logout = one.post("/auth/logout", &json!({ "refresh_token": tokens.refresh }));
    assert!(logout.send().await.status < 300);
    assert_eq!(one.login("ann@example.com").await.claims()["sub"], tokens.claims()["sub"]);
    let (code, _, error) = one.command(&["revoke", "--jti", "other"]).await;
    assert!(code == 1 && error.contains("has not read it within"), "{code} {error}");
    two.signal("CONT");
    let took = until_reaches(&two, &tokens.access, 401).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// How many of these requests pass.
pub async fn passed(gateway: &Gateway, client: &str, requests: usize) -> usize {
    let mut passed = 0;
    for _ in 0..requests {
        let response = gateway.get("/limited").header("X-Forwarded-For", client).send().await;
        passed += usize::from(response.status == 200);
    }
    passed
}

async fn in_mode(gateway: &Gateway, mode: f64) {
    let labels = &["limit=\"few\""];
    within(async {
        while gateway.metric_value("portcullis_limiter_mode", labels).await != Some(mode) {}
    })
    .await;
}

/// Waits until each of the replicas has counted the others.
pub async fn know_each_other(server: &PostgresServer, replicas: usize) {
    let last = || server.sql("app", "SELECT COALESCE(MAX(seq), 0) FROM revocations");
    for _ in 0..2 {
        let beats =
            format!("SELECT COUNT(*) FROM revocations WHERE kind = 'beat' AND seq > {}", last());
        within(async { while server.sql("app", &beats) != replicas.to_string() {} }).await;
    }
}

/// The budget is for all of them; while the database is away, each has a third of it.
#[tokio::test]
async fn replicas_share_limits_in_the_database() {
    let Some(mut server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let lines = "[[route]]\npath = '/limited'\nupstream = 'app'\naccess = 'public'\nlimit = 'few'\n\
                 [[route]]\npath = '/tiny'\nupstream = 'app'\naccess = 'public'\nlimit = 'tiny'\n\
                 [limit.few]\nrequests = 30\nper = '10h'\n[limit.tiny]\nrequests = 2\nper = '10h'";
    let replicas = three(&url, lines).await;
    let [one, two, three] = &replicas;
    let client = "192.0.2.1";
    let all =
        tokio::join!(passed(one, client, 15), passed(two, client, 15), passed(three, client, 15));
    assert_eq!(all.0 + all.1 + all.2, 30, "{all:?}");
    assert_eq!(passed(one, client, 1).await, 0);
    in_mode(one, 0.0).await;

    know_each_other(&server, 3).await;
    server.crash();
    for gateway in &replicas {
        in_mode(gateway, 1.0).await;
        assert_eq!(passed(gateway, "192.0.2.2", 20).await, 10);
    }
    // Of two requests, two replicas grant one each, and the third none.
    let mut granted = Vec::new();
    for gateway in &replicas {
        let mut passed = 0;
        for _ in 0..5 {
            passed += usize::from(gateway.get("/tiny").send().await.status == 200);
        }
        granted.push(passed);
    }
    granted.sort_unstable();
    assert_eq!(granted, [0, 1, 1]);
    server.run();
    for gateway in &replicas {
        in_mode(gateway, 0.0).await;
    }
    let client = "192.0.2.3";
    let all =
        tokio::join!(passed(one, client, 15), passed(two, client, 15), passed(three, client, 15));
    assert_eq!(all.0 + all.1 + all.2, 30, "{all:?}");
}

/// A backup might keep a key that opens nothing, or the next start take it for the right one.
#[tokio::test]
async fn a_replica_without_its_key_makes_no_other_one() {
    let Some(server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let gateway = Gateway::start(&open(&format!("[store]\ndatabase = '{url}'"))).await;
    let told = |line: &Value| line["message"].to_string().contains("already exists");
    assert!(!gateway.log().lines().iter().any(told), "no notice of the server");
    let (key, away) = (gateway.path("portcullis.key"), gateway.path("away.key"));
    std::fs::rename(&key, &away).unwrap();
    for command in [&["key", "rotate"][..], &["user", "end-sessions", "--all"], &["run"]] {
        let (code, _, error) = gateway.command(command).await;
        assert_eq!((code, key.exists()), (78, false), "{command:?}: {error}");
        assert!(error.contains("restore the key that belongs to this database"), "{error}");
    }
    // Nor does one that runs and reads its file again.
    let rejected = gateway.hang_up().await.to_string();
    assert!(rejected.contains("is missing") && !key.exists(), "{rejected}");
    std::fs::write(&key, "another key, which is long enough to be one").unwrap();
    let (code, ..) = gateway.command(&["key", "rotate"]).await;
    assert_eq!((code, key.exists()), (78, true), "it was not made here");
    std::fs::rename(&away, &key).unwrap();
    let (code, _, error) = gateway.command(&["key", "rotate"]).await;
    assert_eq!(code, 0, "{error}");
}

/// From one process with a file to several with a server, and nobody notices.
#[tokio::test]
async fn a_file_is_copied_to_a_server_and_sessions_go_on() {
    let Some(server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let before = Gateway::setup(&open("")).variable("PORTCULLIS_COPY_TO", &url).start().await;
    before.register("ann@example.com").await;
    let tokens = before.login("ann@example.com").await;
    let ended = before.login("ann@example.com").await;
    before.post("/auth/logout", &json!({ "refresh_token": ended.refresh })).send().await;

    let from = format!("sqlite:{}", before.path("portcullis.db").display());
    let copy = ["store", "copy", "--from", &from];
    let (code, _, error) = before.command(&copy).await;
    assert!(code == 1 && error.contains("stop it first"), "{code} {error}");
    before.signal("TERM");
    before.exited().await;

    // Interrupted after a part of it.
    let (code, output, error) = before.command(&copy).await;
    assert!(code == 0 && output.contains("1 accounts"), "{code} {output} {error}");
    server.sql("app", "DELETE FROM sessions");
    let mark = "INSERT INTO facts (name, value) SELECT 'copy_unfinished', value FROM facts WHERE name = 'store_id'";
    server.sql("app", mark);
    let (code, _, error) = before.command(&copy).await;
    assert!(code == 1 && error.contains("again with --resume"), "{code} {error}");
    let resumed: Vec<&str> = copy.iter().copied().chain(["--resume"]).collect();
    let (code, output, error) = before.command(&resumed).await;
    assert!(code == 0 && output.contains("2 sessions"), "{code} {output} {error}");
    let (code, output, error) = before.command(&resumed).await;
    assert!(code == 0 && output.contains("is already a complete copy"), "{code} {output} {error}");
    let (code, _, error) = before.command(&copy).await;
    assert!(code == 1 && error.contains("is not empty"), "{code} {error}");

    let key = std::fs::read_to_string(before.path("portcullis.key")).unwrap();
    let after = setup(&url, "", &key).start().await;
    assert_eq!(after.reaches(&tokens.access).await, 200);
    assert_eq!(after.reaches(&ended.access).await, 401, "it was revoked before");
    assert_eq!(after.refresh(&tokens.refresh).await.status, 200);
    after.login("ann@example.com").await;
    let (code, output, error) = after.command(&["store", "status", "--json"]).await;
    assert_eq!(code, 0, "{error}");
    let status: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(
        (&status["kind"], &status["replicas"], &status["accounts"], &status["sessions"]),
        (&json!("postgresql"), &json!(1), &json!(1), &json!(2)),
        "{status}"
    );
}

/// A stranger sends many requests that read, and the first ones keep all connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_of_one_client_do_not_hold_up_the_others() {
    let Some(server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let gateway = Arc::new(setup(&url, "", KEY).start().await);
    gateway.register("ann@example.com").await;
    let access = gateway.login("ann@example.com").await.access;
    let lock = "BEGIN; LOCK TABLE mail_links IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(60)";
    let mut locking = server.command("psql").args([&url, "-qc", lock]).spawn().unwrap();
    let end = |which: &str| {
        let ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event";
        server.sql("app", &format!("{ending}{which} LIMIT 1")) == "t"
    };
    let count = |which: &str| {
        server.sql("app", &format!("SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event{which}"))
    };
    while count(" = 'PgSleep'") != "1" {}
    let send = |client: &'static str, path: &'static str| {
        let (gateway, access) = (Arc::clone(&gateway), access.clone());
        let request = move || gateway.get(path).header("X-Forwarded-For", client).bearer(&access);
        tokio::spawn(async move { request().send().await.status })
    };
    let flood: Vec<_> =
        (0..60).map(|_| send("192.0.2.1", "/auth/password/reset?token=x")).collect();
    while count("_type = 'Lock'") != "3" {}
    let me = send("198.51.100.1", "/auth/me");
    // Each connection that ends makes room for one request.
    let mut ended = 0;
    while !me.is_finished() {
        ended += u32::from(end("_type = 'Lock'"));
    }
    assert_eq!(me.await.unwrap(), 200);
    assert!(ended < 30, "{ended}");
    assert!(end(" = 'PgSleep'"));
    for request in flood {
        request.await.unwrap();
    }
    locking.wait().unwrap();
}
