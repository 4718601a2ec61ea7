//! The gateways, how to ask them, and who disrupts them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::RwLock;
use tokio::time::timeout;

use super::history::{Entry, Fault, Forgets, History, What};
use crate::harness::accounts::Tokens;
use crate::harness::pooler::Pooler;
use crate::harness::postgres::PostgresServer;
use crate::harness::{Gateway, PATIENCE, Redis, Request, Response, within};

pub struct World {
    pub gateways: [RwLock<Gateway>; 3],
    pub history: History,
    dice: Mutex<u64>,
    until: Instant,
}

/// What the gateways share.
pub struct Servers {
    pub server: PostgresServer,
    pub redis: Redis,
    pub pooler: Option<Pooler>,
}

impl World {
    pub fn new(gateways: [RwLock<Gateway>; 3], seed: u64, length: Duration) -> Self {
        let (history, dice) = (History::default(), Mutex::new(seed));
        Self { gateways, history, dice, until: Instant::now() + length }
    }

    /// A number below `sides` (SplitMix64).
    pub fn roll(&self, sides: u64) -> u64 {
        let mut state = self.dice.lock().unwrap();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }

    pub fn any(&self) -> usize {
        usize::try_from(self.roll(3)).unwrap()
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Sends a request and notes what comes of it. `None`: there was no answer.
    async fn ask(
        &self,
        gateway: usize,
        make: impl FnOnce(&Gateway) -> Request,
        what: impl FnOnce(Option<&Response>) -> What,
    ) -> Option<Response> {
        let request = make(&*self.gateways[gateway].read().await);
        let sent = Instant::now();
        // In a task of its own: the gateway may end in the middle of a head, which is an error.
        let response = tokio::spawn(request.try_send()).await.ok().flatten();
        let (status, what) =
            (response.as_ref().map(|response| response.status), what(response.as_ref()));
        self.history.note(Entry {
            gateway: Some(gateway),
            sent,
            answered: Instant::now(),
            status,
            what,
        });
        response
    }

    pub async fn post(
        &self,
        gateway: usize,
        path: &str,
        body: Value,
        what: What,
    ) -> Option<Response> {
        let from = self.address();
        let make = |gateway: &Gateway| gateway.post(path, &body).header("X-Forwarded-For", &from);
        self.ask(gateway, make, |_| what).await
    }

    /// An address of a client, so that the limits by address are not reached.
    fn address(&self) -> String {
        format!("172.{}.{}.{}", self.roll(256), self.roll(256), self.roll(256))
    }

    /// Repeats a request at any gateway until one of them answers with something else than an
    /// outage.
    pub async fn insist(&self, path: &str, body: Value, what: What) -> Response {
        let begun = Instant::now();
        loop {
            let gateway = self.any();
            let asked = self.post(gateway, path, body.clone(), what.clone());
            let response = timeout(PATIENCE, asked).await.ok().flatten();
            match response {
                Some(response) if response.status != 503 => return response,
                outage if begun.elapsed() > PATIENCE => {
                    let body = outage.map(|response| response.text());
                    let gateway = self.gateways[gateway].read().await;
                    let ready = gateway.admin("/readyz").await.text();
                    let lines = gateway.log().lines();
                    let last = lines.get(lines.len().saturating_sub(20)..);
                    panic!("{path}: {body:?}, {ready}\n{last:#?}");
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub async fn login(&self, email: &str, password: &str) -> Response {
        let (email, password) = (email.to_owned(), password.to_owned());
        let body = json!({ "email": email, "password": password });
        self.insist("/auth/login", body, What::Login { email, password }).await
    }

    pub async fn refresh(&self, gateway: usize, token: &str) -> Option<Response> {
        let body = json!({ "refresh_token": token });
        let what = |response: Option<&Response>| {
            let made = response.filter(|response| response.status == 200).map(Tokens::of);
            What::Refresh { token: token.to_owned(), made }
        };
        self.ask(gateway, |gateway| gateway.post("/auth/refresh", &body), what).await
    }

    pub async fn access(&self, gateway: usize, token: &str) -> Option<u16> {
        let what = What::Access { token: token.to_owned() };
        let make = |gateway: &Gateway| gateway.get("/reports").bearer(token);
        self.ask(gateway, make, |_| what).await.map(|response| response.status)
    }

    /// Changes a password. Returns the status.
    pub async fn change(
        &self,
        gateway: usize,
        access: &str,
        body: Value,
        what: What,
    ) -> Option<u16> {
        let from = self.address();
        let make = |gateway: &Gateway| {
            let request = gateway.post("/auth/password/change", &body).bearer(access);
            request.header("X-Forwarded-For", &from)
        };
        self.ask(gateway, make, |_| what).await.map(|response| response.status)
    }

    /// Notes what else a request has done that was sent at this time and is answered now.
    pub fn note_again(&self, gateway: usize, sent: Instant, status: Option<u16>, what: What) {
        let (gateway, answered) = (Some(gateway), Instant::now());
        self.history.note(Entry { gateway, sent, answered, status, what });
    }

    pub async fn limited(&self, gateway: usize, client: &str) {
        let what = What::Limited { client: client.to_owned() };
        let make = |gateway: &Gateway| gateway.get("/limited").header("X-Forwarded-For", client);
        self.ask(gateway, make, |_| what).await;
    }

    /// Runs a command at any gateway. Returns whether it says that it is done and that every gateway
    /// knows it.
    pub async fn command(&self, arguments: &[&str], what: What) -> bool {
        let sent = Instant::now();
        let running = self.gateways[self.any()].read().await.command(arguments);
        let (code, ..) = running.await;
        let (status, answered) = ((code == 0).then_some(200), Instant::now());
        self.history.note(Entry { gateway: None, sent, answered, status, what });
        code == 0
    }

    /// Asks every gateway until it refuses a token that was revoked.
    pub async fn until_refused(&self, token: &str) {
        let at = async |gateway| {
            while self.access(gateway, token).await != Some(401) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(async { tokio::join!(at(0), at(1), at(2)) }).await;
    }

    /// Waits until every gateway can use everything.
    pub async fn until_well(&self) {
        for gateway in &self.gateways {
            let gateway = gateway.read().await;
            within(async {
                while !is_well(&gateway).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
    }

    /// Lets everything run for a while, and notes how long the heartbeats take.
    pub async fn enjoy_the_calm(&self) {
        let before = self.beats().await;
        tokio::time::sleep(Duration::from_millis(500 + self.roll(2000))).await;
        let after = self.beats().await;
        for (before, after) in before.into_iter().zip(after) {
            let passed = before
                .into_iter()
                .zip(after)
                .map(|((_, before), (bound, after))| (bound, after - before));
            self.history.add_beats(passed.collect());
        }
    }

    /// How many lines each gateway has written.
    pub async fn marks(&self) -> [usize; 3] {
        let mut marks = [0; 3];
        for (mark, gateway) in marks.iter_mut().zip(&self.gateways) {
            *mark = gateway.read().await.log().mark();
        }
        marks
    }

    /// Whether a gateway has found Redis too slow since then. On a busy machine, that is no fault.
    pub async fn has_counted_apart(&self, marks: [usize; 3]) -> bool {
        let is_outage = |line: &Value| {
            line["message"].as_str().is_some_and(|text| text.starts_with("Redis cannot be used"))
        };
        for (mark, gateway) in marks.into_iter().zip(&self.gateways) {
            if gateway.read().await.log().count_after(mark, is_outage) > 0 {
                return true;
            }
        }
        false
    }

    async fn beats(&self) -> Vec<Vec<(f64, f64)>> {
        let mut all = Vec::new();
        for gateway in &self.gateways {
            let lines =
                gateway.read().await.metric("portcullis_revocation_lag_seconds_bucket").await;
            let bucket = |line: &String| {
                let (labels, count) = line.rsplit_once(' ').unwrap();
                let bound = labels.split('"').nth(1).unwrap();
                (bound.parse().unwrap_or(f64::INFINITY), count.parse().unwrap())
            };
            all.push(lines.iter().map(bucket).collect());
        }
        all
    }
}

async fn is_well(gateway: &Gateway) -> bool {
    let up = async |store| gateway.metric_value("portcullis_store_up", &[store]).await == Some(1.0);
    up("store=\"database\"").await
        && up("store=\"redis\"").await
        && gateway.metric_value("portcullis_limiter_mode", &["limit=\"few\""]).await == Some(0.0)
        && gateway.admin("/readyz").await.json()["status"] == "ready"
}

impl Servers {
    /// Disrupts something, and waits until everything works again.
    pub async fn disrupt(&mut self, world: &World) {
        let number = world.any();
        let gateway = &world.gateways[number];
        let only = std::array::from_fn(|index| index == number);
        let begin = |what, cuts_off, forgets| {
            let (from, until) = (Instant::now(), None);
            world.history.begin(Fault { what, cuts_off, forgets, from, until });
        };
        match world.roll(if self.pooler.is_some() { 9 } else { 7 }) {
            0 => {
                begin("a gateway is killed", only, Some(Forgets::Gateway));
                gateway.write().await.kill_and_restart().await;
            }
            1 => {
                begin("a gateway is stopped", only, None);
                let gateway = gateway.read().await;
                gateway.freeze().await;
                pause().await;
                gateway.signal("CONT");
            }
            2 => {
                begin("PostgreSQL is killed", [true; 3], None);
                self.server.kill();
                pause().await;
                self.server.run();
            }
            3 => {
                begin("PostgreSQL is stopped", [true; 3], None);
                self.server.pause();
                pause().await;
                self.server.resume();
            }
            4 => {
                begin("PostgreSQL ends every connection", [true; 3], None);
                self.server.sql("app", "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'portcullis'");
            }
            5 => {
                begin("Redis is killed", [false; 3], Some(Forgets::Redis));
                self.redis.kill();
                pause().await;
                self.redis.run_again();
            }
            6 => {
                begin("Redis is stopped", [false; 3], None);
                self.redis.signal("STOP");
                pause().await;
                self.redis.signal("CONT");
            }
            side => self.disrupt_pooler(side, &begin).await,
        }
        world.until_well().await;
        world.history.end_fault();
    }

    async fn disrupt_pooler(
        &mut self,
        side: u64,
        begin: &impl Fn(&'static str, [bool; 3], Option<Forgets>),
    ) {
        let Some(pooler) = &mut self.pooler else { return };
        if side == 7 {
            begin("PgBouncer is killed", [true; 3], None);
            pooler.kill();
            pause().await;
            pooler.run(&self.server);
        } else {
            begin("PgBouncer is stopped", [true; 3], None);
            pooler.signal("STOP");
            pause().await;
            pooler.signal("CONT");
        }
    }
}

/// Long enough that every gateway notices.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(1500)).await;
}
