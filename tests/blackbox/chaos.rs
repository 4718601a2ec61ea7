//! Three gateways on one database while everything is killed and stopped at random, and a check of
//! what clients have seen: nothing is accepted after it was revoked, no two tokens succeed one, no
//! account is lost, and an outage is never a 401.
//!
//! `PORTCULLIS_CHAOS_SECONDS` sets how long it runs, `PORTCULLIS_CHAOS_SEED` repeats the same
//! choices.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::RwLock;

use crate::harness::accounts::{PASSWORD, Tokens};
use crate::harness::postgres::PostgresServer;
use crate::harness::{Gateway, PATIENCE, Request, Response, within};
use crate::replicas::{KEY, setup};

struct World {
    gateways: [RwLock<Gateway>; 3],
    /// Odd while something is disrupted.
    disruptions: AtomicU64,
    dice: Mutex<u64>,
    revoked: Mutex<Vec<String>>,
    until: Instant,
}

impl World {
    /// A number below `sides` (SplitMix64).
    fn roll(&self, sides: u64) -> u64 {
        let mut state = self.dice.lock().unwrap();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn any(&self) -> usize {
        usize::try_from(self.roll(3)).unwrap()
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// `None`: the gateway was killed before it had answered.
    async fn ask(
        &self,
        gateway: usize,
        make: impl FnOnce(&Gateway) -> Request,
    ) -> Option<Response> {
        let request = make(&*self.gateways[gateway].read().await);
        tokio::spawn(request.send()).await.ok()
    }

    async fn post(&self, gateway: usize, path: &str, body: serde_json::Value) -> Option<Response> {
        self.ask(gateway, |gateway| gateway.post(path, &body)).await
    }

    /// Repeats a request at any gateway until one of them answers it with something else than an
    /// outage.
    async fn insist(&self, path: &str, body: serde_json::Value) -> Response {
        within(async {
            loop {
                match self.post(self.any(), path, body.clone()).await {
                    Some(response) if response.status != 503 => return response,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await
    }

    async fn access(&self, gateway: usize, token: &str) -> Option<u16> {
        let response = self.ask(gateway, |gateway| gateway.get("/reports").bearer(token)).await;
        response.map(|response| response.status)
    }

    /// Checks that every gateway refuses a token, within the bound if nothing is disrupted.
    async fn is_revoked(&self, token: &str, acknowledged: Instant, disruptions: u64) {
        for gateway in 0..3 {
            loop {
                let asked = Instant::now();
                let status = self.access(gateway, token).await;
                if status == Some(401) {
                    break;
                }
                let is_calm = disruptions.is_multiple_of(2)
                    && self.disruptions.load(Ordering::SeqCst) == disruptions;
                let late = asked.duration_since(acknowledged);
                assert!(
                    !(is_calm && status == Some(200) && late > BOUND),
                    "accepted {late:?} after it was revoked"
                );
                assert!(late < PATIENCE, "{status:?} {late:?} after it was revoked");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.revoked.lock().unwrap().push(token.to_owned());
    }

    /// Refreshes at two gateways at once. `None`: there was no answer while a repetition is allowed.
    async fn refresh(&self, token: &str) -> Option<Tokens> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) {
            let body = || json!({ "refresh_token": token });
            let (one, other) = tokio::join!(
                self.post(self.any(), "/auth/refresh", body()),
                self.post(self.any(), "/auth/refresh", body())
            );
            let answers: Vec<_> = [one, other].into_iter().flatten().collect();
            let is_in_time = begun.elapsed() < Duration::from_secs(8);
            for answer in &answers {
                let is_known = matches!(answer.status, 200 | 503) || !is_in_time;
                assert!(is_known, "a refresh got {answer:?}");
            }
            let made: Vec<_> =
                answers.iter().filter(|answer| answer.status == 200).map(Tokens::of).collect();
            if let [one, other] = &made[..] {
                assert_eq!(one.refresh, other.refresh, "two successors");
            }
            if let Some(tokens) = made.into_iter().next() {
                return Some(tokens);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }
}

/// Logs in, uses, refreshes and ends sessions until the time is over. Returns the last tokens, if
/// their session goes on.
async fn client(world: Arc<World>, email: String) -> Option<Tokens> {
    let account = json!({ "email": email, "password": PASSWORD });
    let registered = world.insist("/auth/register", account.clone()).await;
    // It may have been made by an attempt without an answer.
    assert!(matches!(registered.status, 201 | 409), "{registered:?}");
    while !world.is_over() {
        let login = world.insist("/auth/login", account.clone()).await;
        assert_eq!(login.status, 200, "an acknowledged account is lost: {login:?}");
        let mut tokens = Tokens::of(&login);
        loop {
            let status = world.access(world.any(), &tokens.access).await;
            assert!(!matches!(status, Some(401 | 403)), "an outage is no refusal: {status:?}");
            if world.is_over() {
                return Some(tokens);
            }
            match world.roll(6) {
                0 => {
                    let disruptions = world.disruptions.load(Ordering::SeqCst);
                    let body = json!({ "refresh_token": tokens.refresh });
                    let ended = world.insist("/auth/logout", body).await;
                    assert!(ended.status < 300, "{ended:?}");
                    world.is_revoked(&tokens.access, Instant::now(), disruptions).await;
                    break;
                }
                1 => {
                    let disruptions = world.disruptions.load(Ordering::SeqCst);
                    let role = format!("r{}", world.roll(1000));
                    let command = ["user", "set-roles", &email, &role];
                    let gateway = world.gateways[world.any()].read().await;
                    let (code, ..) = gateway.command(&command).await;
                    drop(gateway);
                    // It may be done although the command could not say so.
                    if code == 0 {
                        world.is_revoked(&tokens.access, Instant::now(), disruptions).await;
                    }
                    let Some(next) = world.refresh(&tokens.refresh).await else { break };
                    tokens = next;
                }
                2..4 => {
                    let Some(next) = world.refresh(&tokens.refresh).await else { break };
                    tokens = next;
                }
                _ => {}
            }
        }
    }
    None
}

/// Disrupts something, and waits until everything works again.
async fn disrupt(world: &World, server: &mut PostgresServer) {
    world.disruptions.fetch_add(1, Ordering::SeqCst);
    let gateway = &world.gateways[world.any()];
    match world.roll(5) {
        0 => gateway.write().await.kill_and_restart().await,
        1 => {
            let gateway = gateway.read().await;
            gateway.freeze().await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            gateway.signal("CONT");
        }
        2 => {
            server.crash();
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.run();
        }
        3 => {
            server.pause();
            tokio::time::sleep(Duration::from_millis(1500)).await;
            server.resume();
        }
        _ => {
            // Every connection at once.
            let ending = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'portcullis'";
            server.sql("app", ending);
        }
    }
    for gateway in &world.gateways {
        let gateway = gateway.read().await;
        within(async {
            while gateway.admin("/readyz").await.json()["status"] != "ready" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    world.disruptions.fetch_add(1, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_and_stops_open_nothing_and_lose_nothing() {
    let Some(mut server) = PostgresServer::start() else { return };
    let url = server.create_database("app");
    let start = async || RwLock::new(setup(&url, "", KEY).start().await);
    let (one, two, three) = tokio::join!(start(), start(), start());
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seconds = number("PORTCULLIS_CHAOS_SECONDS").unwrap_or(15);
    let seed = number("PORTCULLIS_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("PORTCULLIS_CHAOS_SEED={seed}");
    let world = Arc::new(World {
        gateways: [one, two, three],
        disruptions: AtomicU64::new(0),
        dice: Mutex::new(seed),
        revoked: Mutex::default(),
        until: Instant::now() + Duration::from_secs(seconds),
    });
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..4 {
        clients.spawn(client(Arc::clone(&world), format!("p{index}@example.com")));
    }
    while !world.is_over() {
        disrupt(&world, &mut server).await;
        tokio::time::sleep(Duration::from_millis(500 + world.roll(1000))).await;
    }
    for tokens in clients.join_all().await.into_iter().flatten() {
        for gateway in 0..3 {
            assert_eq!(world.access(gateway, &tokens.access).await, Some(200));
        }
    }
    let revoked = std::mem::take(&mut *world.revoked.lock().unwrap());
    eprintln!(
        "{} tokens were revoked, {} disruptions",
        revoked.len(),
        world.disruptions.load(Ordering::SeqCst) / 2
    );
    for token in &revoked {
        assert_eq!(world.access(world.any(), token).await, Some(401), "valid again");
    }
}

/// How long a revoked token may be accepted while nothing is disrupted: the contract's bound, on a
/// machine that runs other tests as well.
const BOUND: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(4) } else { Duration::from_secs(1) };
