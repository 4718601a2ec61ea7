//! Three gateways on one PostgreSQL and one Redis while all of them are killed and stopped at
//! random, and a check of everything that clients have seen: nothing is accepted after it was
//! revoked, no two tokens succeed one, no account and no password is lost, no limit grants more than
//! the documents say, and an outage is never a 401.
//!
//! `scripts/chaos` runs them for five minutes each against the release binary.
//! `PORTCULLIS_CHAOS_SECONDS` sets how long they run, `PORTCULLIS_CHAOS_SEED` repeats the same
//! choices.

mod checker;
mod clients;
mod history;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;

use self::checker::Checked;
use self::clients::{Client, Ended};
use self::world::{Servers, World};
use crate::harness::Redis;
use crate::harness::pooler::Pooler;
use crate::harness::postgres::PostgresServer;
use crate::replicas::{KEY, setup};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_and_stops_open_nothing_and_lose_nothing() {
    let Some((server, redis)) = start(&[]) else { return };
    let url = server.create_database("app");
    run(Servers { server, redis, pooler: None }, &url, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_and_stops_open_nothing_behind_a_pooler() {
    let Some((server, redis)) = start(&[]) else { return };
    let Some(pooler) = Pooler::start(&server) else { return };
    server.create_database("app");
    let url = pooler.url("app");
    run(Servers { server, redis, pooler: Some(pooler) }, &url, "statement_cache = false\n").await;
}

/// Redis keeps what it has acknowledged, so no session may end by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_and_stops_end_no_session_in_redis() {
    let Some((server, redis)) = start(&["--appendonly", "yes"]) else { return };
    let url = server.create_database("app");
    run(Servers { server, redis, pooler: None }, &url, "sessions = 'redis'\n").await;
}

fn start(redis: &[&str]) -> Option<(PostgresServer, Redis)> {
    Some((PostgresServer::start()?, Redis::start(redis)?))
}

async fn run(mut servers: Servers, url: &str, keys: &str) {
    let lines = format!(
        "redis = '{}'\n{keys}[[route]]\npath = '/limited'\nupstream = 'app'\naccess = 'public'\nlimit = 'few'\n\
         [limit.few]\nrequests = {BUDGET}\nper = '10h'",
        servers.redis.url()
    );
    let start = async || RwLock::new(setup(url, &lines, KEY).start().await);
    let (one, two, three) = tokio::join!(start(), start(), start());
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seconds = number("PORTCULLIS_CHAOS_SECONDS").unwrap_or(15);
    let seed = number("PORTCULLIS_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("PORTCULLIS_CHAOS_SEED={seed}");
    let world = World::new([one, two, three], seed, Duration::from_secs(seconds));
    world.until_well().await;
    let world = Arc::new(world);
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..CLIENTS {
        clients.spawn(Client::new(Arc::clone(&world), index).live());
    }
    let limited = tokio::spawn(clients::exceed_limits(Arc::clone(&world)));
    while !world.is_over() {
        servers.disrupt(&world).await;
        world.enjoy_the_calm().await;
    }
    limited.await.unwrap();
    for ended in clients.join_all().await {
        look_back(&world, ended).await;
    }
    let Checked { report, violations } = world.check(seconds);
    eprintln!("{report}");
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
}

/// Everything that a client knows at its end is still so at every gateway.
async fn look_back(world: &World, ended: Ended) {
    for gateway in 0..3 {
        for token in ended.revoked.iter().chain(&ended.live) {
            world.access(gateway, token).await;
        }
    }
    for account in &ended.accounts {
        // An account has five failures a minute.
        for password in account.earlier.iter().rev().take(2).chain([&account.password]) {
            world.login(&account.email, password).await;
        }
    }
}

/// The number of requests that the limit grants in ten hours.
const BUDGET: usize = 30;

const CLIENTS: usize = 6;
