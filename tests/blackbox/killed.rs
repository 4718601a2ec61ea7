//! SIGKILL at random moments, during logins, refreshes and logouts: no acknowledged write is lost,
//! and no session forks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::accounts::{PASSWORD, Tokens, open};
use crate::harness::client::Request;
use crate::harness::{Connection, Gateway, Response, within};

/// A client that logs in and out, and remembers what was acknowledged.
struct Person {
    email: String,
    /// The tokens of the open session.
    session: Option<Tokens>,
    /// The last request, if it got no response.
    unanswered: Option<Asked>,
    /// Sessions with an acknowledged logout.
    ended: Vec<Tokens>,
    /// Each used refresh token of the open session that got a response.
    used: Vec<String>,
    steps: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Login,
    Refresh,
    Logout,
}

impl Person {
    fn new(index: usize) -> Self {
        let email = format!("person-{index}@example.com");
        Self {
            email,
            session: None,
            unanswered: None,
            ended: Vec::new(),
            used: Vec::new(),
            steps: 0,
        }
    }

    /// The next request: a login without a session, sometimes a logout, otherwise a refresh.
    fn next(&mut self) -> Asked {
        self.steps += 1;
        match &self.session {
            None => Asked::Login,
            Some(_) if self.steps.is_multiple_of(17) => Asked::Logout,
            Some(_) => Asked::Refresh,
        }
    }

    fn request(&self, asked: Asked, address: SocketAddr) -> Vec<u8> {
        let refresh = self.session.as_ref().map(|tokens| tokens.refresh.as_str());
        let (path, body) = match asked {
            Asked::Login => ("/auth/login", json!({ "email": self.email, "password": PASSWORD })),
            Asked::Refresh => ("/auth/refresh", json!({ "refresh_token": refresh })),
            Asked::Logout => ("/auth/logout", json!({ "refresh_token": refresh })),
        };
        Request::new(address, "POST", path)
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .bytes()
    }

    /// Records the response to the last request.
    fn answered(&mut self, asked: Asked, response: &Response) {
        match asked {
            Asked::Login | Asked::Refresh => {
                let next = Tokens::of(response);
                match self.session.replace(next) {
                    Some(before) if asked == Asked::Refresh => self.used.push(before.refresh),
                    _ => self.used.clear(),
                }
            }
            Asked::Logout => {
                assert_eq!(response.status, 204, "{response:?}");
                self.ended.extend(self.session.take());
                self.used.clear();
            }
        }
    }

    /// Sends requests until the connection breaks.
    async fn live(mut self, address: SocketAddr, answers: Arc<AtomicUsize>) -> Self {
        let mut connection = Connection::open(address).await;
        loop {
            let asked = self.next();
            self.unanswered = Some(asked);
            if connection.try_write(self.request(asked, address)).await.is_err() {
                return self;
            }
            // A response with an incomplete body does not count.
            let Some(response) =
                connection.try_response_to("POST").await.filter(|response| response.complete)
            else {
                return self;
            };
            self.answered(asked, &response);
            self.unanswered = None;
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Checks after a restart that the gateway has kept everything that it acknowledged.
    async fn check(&mut self, gateway: &Gateway) {
        for tokens in self.ended.drain(..) {
            gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
            gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
        }
        if let Some(tokens) = self.session.take() {
            let once = gateway.refresh(&tokens.refresh).await;
            if once.status == 401 {
                // Only a request without a response may have ended it, and then completely.
                assert_eq!(
                    self.unanswered,
                    Some(Asked::Logout),
                    "the session of {} is lost: {once:?}",
                    self.email
                );
                gateway
                    .get("/reports")
                    .bearer(&tokens.access)
                    .send()
                    .await
                    .is(401, "token_revoked");
                self.used.clear();
            } else {
                let (once, twice) =
                    (Tokens::of(&once), Tokens::of(&gateway.refresh(&tokens.refresh).await));
                assert_eq!(
                    once.refresh, twice.refresh,
                    "two successors of one token of {}",
                    self.email
                );
                assert_eq!(gateway.reaches(&once.access).await, 200);
                self.used.push(tokens.refresh);
                self.session = Some(once);
            }
        }
        self.unanswered = None;
        let login = gateway.login(&self.email).await;
        assert_eq!(gateway.reaches(&login.access).await, 200);
    }

    /// At the end, every used token still has the same successor.
    async fn look_back(&self, gateway: &Gateway) {
        for pair in self.used.windows(2) {
            assert_eq!(
                Tokens::of(&gateway.refresh(&pair[0]).await).refresh,
                pair[1],
                "two successors of one token of {}",
                self.email
            );
        }
    }

    /// Without a reuse interval, only the last token is valid, and a used one ends the session.
    async fn finish(self, gateway: &Gateway) {
        let (Some(tokens), [too_old, .., _]) = (&self.session, self.used.as_slice()) else {
            return;
        };
        gateway.refresh(too_old).await.is(401, "invalid_grant");
        gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
        gateway.get("/reports").bearer(&tokens.access).send().await.is(401, "token_revoked");
    }
}

/// Kills the gateway repeatedly until this many requests got a response, at moments chosen by
/// `seed`.
async fn live_through(
    answers_wanted: usize,
    most_between_kills: usize,
    people: usize,
    mut seed: u64,
) {
    let config = open("refresh_reuse_interval = '5m'")
        .replace("[identity]", "log.access = false\nserver.workers = 2\n[identity]");
    let mut gateway = Gateway::start(&config).await;
    let mut everybody: Vec<Person> = (0..people).map(Person::new).collect();
    for person in &everybody {
        gateway.register(&person.email).await;
    }
    let (mut answered, mut kills) = (0, 0);
    while answered < answers_wanted {
        // The generator of Numerical Recipes. The moments are the same in every run, but not what
        // they interrupt.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let until = 1 + (seed >> 33) as usize % most_between_kills;
        let answers = Arc::new(AtomicUsize::new(0));
        let mut living = JoinSet::new();
        for person in everybody.drain(..) {
            living.spawn(person.live(gateway.address(), Arc::clone(&answers)));
        }
        within(async {
            while answers.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        })
        .await;
        gateway.kill_and_restart().await;
        while let Some(person) = living.join_next().await {
            everybody.push(person.unwrap());
        }
        for person in &mut everybody {
            person.check(&gateway).await;
        }
        answered += answers.load(Ordering::Relaxed);
        kills += 1;
    }
    for person in &everybody {
        person.look_back(&gateway).await;
    }
    gateway.reload(&config.replace("'5m'", "'0s'")).await;
    for person in everybody {
        person.finish(&gateway).await;
    }
    println!("{answered} answers, {kills} kills");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_a_kill() {
    live_through(250, 80, 4, 1).await;
}

/// 10,000 requests: `scripts/killed`. More people than five could fail to log in at once, which their
/// address may not.
#[ignore = "takes minutes"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_ten_thousand_kills() {
    live_through(10_000, 400, 4, 2).await;
}
