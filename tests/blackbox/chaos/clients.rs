//! What clients do: they log in, use and refresh their tokens, change passwords and roles, log out,
//! and exceed limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::history::What;
use super::world::World;
use crate::harness::accounts::{PASSWORD, Tokens};

pub struct Client {
    world: Arc<World>,
    index: usize,
    accounts: Vec<Account>,
    revoked: Vec<String>,
}

pub struct Account {
    pub email: String,
    pub password: String,
    /// Passwords that it had before.
    pub earlier: Vec<String>,
}

/// What a client knows at its end.
pub struct Ended {
    pub accounts: Vec<Account>,
    /// Access tokens whose revocation was acknowledged.
    pub revoked: Vec<String>,
    /// Access tokens that are valid.
    pub live: Vec<String>,
}

/// A session of one account.
struct Session {
    account: usize,
    tokens: Tokens,
    /// All access tokens that were issued to it and not revoked.
    issued: Vec<String>,
}

impl Client {
    pub fn new(world: Arc<World>, index: usize) -> Self {
        Self { world, index, accounts: Vec::new(), revoked: Vec::new() }
    }

    /// Does one thing after the other until the time is over.
    pub async fn live(mut self) -> Ended {
        let mut live = Vec::new();
        while !self.world.is_over() {
            if self.accounts.is_empty() || self.world.roll(6) == 0 {
                self.register().await;
            }
            let Some(mut session) = self.log_in().await else { continue };
            let mut goes_on = true;
            while goes_on && !self.world.is_over() {
                self.world.access(self.world.any(), &session.tokens.access).await;
                goes_on = match self.world.roll(12) {
                    0 => self.log_out(&session).await,
                    1 => self.change_roles(&mut session).await,
                    2 => self.change_password(&session).await,
                    3..8 => self.refresh(&mut session).await,
                    _ => true,
                };
            }
            if goes_on {
                live.extend(session.issued);
            }
        }
        let Self { accounts, revoked, .. } = self;
        Ended { accounts, revoked, live }
    }

    async fn register(&mut self) {
        let email = format!("p{}-{}@example.com", self.index, self.accounts.len());
        let password = PASSWORD.to_owned();
        let body = json!({ "email": email, "password": password });
        let what = What::Register { email: email.clone(), password: password.clone() };
        self.world.insist("/auth/register", body, what).await;
        self.accounts.push(Account { email, password, earlier: Vec::new() });
    }

    async fn log_in(&mut self) -> Option<Session> {
        let number = self.world.roll(self.accounts.len() as u64);
        let index = usize::try_from(number).unwrap();
        let account = &mut self.accounts[index];
        let mut login = self.world.login(&account.email, &account.password).await;
        if login.status == 401
            && let Some(earlier) = account.earlier.pop()
        {
            // The last change of the password was not acknowledged.
            account.password = earlier;
            login = self.world.login(&account.email, &account.password).await;
        }
        if login.status == 429 {
            // A failure that is still counted, or was when Redis went away.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let tokens = (login.status == 200).then(|| Tokens::of(&login))?;
        Some(Session { account: index, issued: vec![tokens.access.clone()], tokens })
    }

    async fn log_out(&mut self, session: &Session) -> bool {
        let body = json!({ "refresh_token": session.tokens.refresh });
        let what = revocation(session, true);
        if self.world.insist("/auth/logout", body, what).await.status < 300 {
            self.is_revoked(session).await;
        }
        false
    }

    async fn change_roles(&mut self, session: &mut Session) -> bool {
        let role = format!("r{}", self.world.roll(1000));
        let email = &self.accounts[session.account].email;
        let command = ["user", "set-roles", email, &role];
        if self.world.command(&command, revocation(session, false)).await {
            self.is_revoked(session).await;
        }
        session.issued.clear();
        self.refresh(session).await
    }

    async fn change_password(&mut self, session: &Session) -> bool {
        let account = &mut self.accounts[session.account];
        let password = format!("plum orbit tenant {}", self.world.roll(u64::MAX));
        let body = json!({ "current_password": account.password, "new_password": password });
        let sent = Instant::now();
        let gateway = self.world.any();
        let what = What::Change { email: account.email.clone(), password: password.clone() };
        let access = &session.tokens.access;
        let done = self.world.change(gateway, access, body, what).await;
        account.earlier.push(std::mem::replace(&mut account.password, password));
        self.world.note_again(gateway, sent, done, revocation(session, true));
        if done == Some(204) {
            self.is_revoked(session).await;
        }
        false
    }

    async fn is_revoked(&mut self, session: &Session) {
        self.world.until_refused(&session.tokens.access).await;
        self.revoked.extend(session.issued.iter().cloned());
    }

    /// Refreshes at two gateways at once, until there is an answer or a repetition is no longer
    /// allowed. Returns whether the session goes on.
    async fn refresh(&mut self, session: &mut Session) -> bool {
        let (begun, world) = (Instant::now(), &self.world);
        while begun.elapsed() < REPEATED_FOR {
            let token = &session.tokens.refresh;
            let (one, other) =
                tokio::join!(world.refresh(world.any(), token), world.refresh(world.any(), token));
            let answers: Vec<_> = [one, other].into_iter().flatten().collect();
            let made: Vec<_> =
                answers.iter().filter(|answer| answer.status == 200).map(Tokens::of).collect();
            session.issued.extend(made.iter().map(|tokens| tokens.access.clone()));
            if let Some(tokens) = made.into_iter().next() {
                session.tokens = tokens;
                return true;
            }
            if answers.iter().any(|answer| answer.status != 503) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }
}

fn revocation(session: &Session, ends: bool) -> What {
    let ends = ends.then(|| session.tokens.refresh.clone());
    What::Revoke { tokens: session.issued.clone(), ends }
}

/// Asks three times for what the limit grants, at all gateways at once, as one new client after the
/// other.
pub async fn exceed_limits(world: Arc<World>) {
    let mut round = 0_u32;
    while !world.is_over() {
        round += 1;
        let [.., high, low] = round.to_be_bytes();
        let client = format!("10.{high}.{low}.1");
        let at = async |gateway| {
            for _ in 0..super::BUDGET {
                world.limited(gateway, &client).await;
            }
        };
        let marks = world.marks().await;
        tokio::join!(at(0), at(1), at(2));
        if world.has_counted_apart(marks).await {
            world.history.counted_apart.lock().unwrap().insert(client);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Less than `refresh_reuse_interval`, by what a request may take.
pub const REPEATED_FOR: Duration = Duration::from_secs(8);
