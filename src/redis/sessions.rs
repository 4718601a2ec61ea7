//! Sessions of the built-in issuer: a hash for each, which expires with it, and one script for each
//! transition, so that no two gateways can both make a successor of the same refresh token.
//!
//! Whether the account of a session lets it go on is not known here: the database decides that.

use std::collections::HashMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script};

use super::connection::describe;
use super::{Redis, SessionUse, SessionsAway, StoredSession};

/// The scripts, with their digests.
pub(super) struct SessionScripts {
    open: Script,
    rotate: Script,
    end: Script,
}

impl SessionScripts {
    pub(super) fn new() -> Self {
        Self { open: Script::new(OPEN), rotate: Script::new(ROTATE), end: Script::new(END) }
    }
}

impl Redis {
    /// Stores a new session, for as long as it lasts if it is not used again.
    ///
    /// # Errors
    /// It is unknown whether it was stored; nobody knows its refresh token.
    pub async fn open_session(
        &self,
        session: &StoredSession,
        life: Duration,
    ) -> Result<(), SessionsAway> {
        let mut opening = self.sessions.open.prepare_invoke();
        opening.key(key(&session.id)).key(index(&session.account)).arg(&session.id);
        opening.arg(millis(life)).arg(session.created_at);
        opening.arg("account").arg(&session.account).arg("generation").arg(session.generation);
        opening.arg("counter").arg(session.counter).arg("created").arg(session.created_at);
        opening.arg("rotated").arg(session.rotated_at).arg("address").arg(&session.address);
        opening.arg("agent").arg(&session.user_agent);
        opening.arg("closed").arg(u8::from(session.until_closed));
        opening.arg("idp").arg(&session.idp).arg("acr").arg(&session.acr);
        opening.arg("proved").arg(session.auth_time);
        self.ask(async |connection| opening.invoke_async(connection).await).await
    }

    /// Uses up a refresh token: of any number of attempts, on any number of gateways, one succeeds.
    ///
    /// A server that was stopped, or a network that holds messages back, may get the question long
    /// after the client was told to try again. It then uses up nothing: the client's repetition
    /// would come too late to count as one, and end the session.
    ///
    /// # Errors
    /// It is unknown whether it was used up, but if so, it was a moment ago.
    pub async fn rotate_session(
        &self,
        id: &str,
        account: &str,
        used: SessionUse<'_>,
    ) -> Result<bool, SessionsAway> {
        let mut rotating = self.sessions.rotate.prepare_invoke();
        rotating.key(key(id)).key(index(account)).arg(used.counter).arg(used.at);
        rotating.arg(used.address).arg(used.user_agent).arg(used.created_after);
        rotating.arg(used.rotated_after).arg(used.used_after).arg(millis(used.life));
        rotating.arg(self.deadline());
        self.ask(async |connection| rotating.invoke_async(connection).await).await
    }

    /// Ends a session of `account` at this time in Unix seconds. It is remembered for as long as it
    /// would have lasted.
    ///
    /// # Errors
    /// It is unknown whether it was ended.
    pub async fn end_session(&self, id: &str, account: &str, at: i64) -> Result<(), SessionsAway> {
        let mut ending = self.sessions.end.prepare_invoke();
        ending.key(key(id)).arg(account).arg(at);
        self.ask(async |connection| ending.invoke_async(connection).await).await
    }

    /// The session with this id, even if it has ended.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn session(&self, id: &str) -> Result<Option<StoredSession>, SessionsAway> {
        let fields = self.ask(async |connection| {
            redis::cmd("HGETALL").arg(key(id)).query_async(connection).await
        });
        Ok(parse(id, &fields.await?))
    }

    /// The sessions of an account that have not expired, the latest first, even if they have ended;
    /// at most a thousand.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn sessions_of(&self, account: &str) -> Result<Vec<StoredSession>, SessionsAway> {
        let ids: Vec<String> = self
            .ask(async |connection| {
                let mut listing = redis::cmd("ZREVRANGE");
                listing.arg(index(account)).arg(0).arg(MOST_LISTED - 1);
                listing.query_async(connection).await
            })
            .await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let all: Vec<HashMap<String, String>> = self
            .ask(async |connection| {
                let mut pipe = redis::pipe();
                for id in &ids {
                    pipe.cmd("HGETALL").arg(key(id));
                }
                pipe.query_async(connection).await
            })
            .await?;
        Ok(ids.iter().zip(all).filter_map(|(id, fields)| parse(id, &fields)).collect())
    }

    /// The account and the generation of each session that has not ended, for a command.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn open_sessions(&self) -> Result<Vec<(String, i64)>, SessionsAway> {
        // SCAN may name a key twice.
        let (mut open, mut cursor) = (HashMap::new(), 0_u64);
        loop {
            let (next, keys): (u64, Vec<String>) = self
                .ask(async |connection| {
                    let mut scan = redis::cmd("SCAN");
                    scan.arg(cursor).arg("MATCH").arg(key("*")).arg("COUNT").arg(SCANNED_AT_ONCE);
                    scan.query_async(connection).await
                })
                .await?;
            if !keys.is_empty() {
                let all: Vec<(Option<String>, Option<i64>, Option<i64>)> = self
                    .ask(async |connection| {
                        let mut pipe = redis::pipe();
                        for key in &keys {
                            pipe.cmd("HMGET").arg(key).arg(&["account", "generation", "ended"]);
                        }
                        pipe.query_async(connection).await
                    })
                    .await?;
                open.extend(keys.into_iter().zip(all).filter_map(|(key, fields)| match fields {
                    (Some(account), Some(generation), None) => Some((key, (account, generation))),
                    _ => None,
                }));
            }
            cursor = next;
            if cursor == 0 {
                return Ok(open.into_values().collect());
            }
        }
    }

    /// Connects once, for a command, which has no task that stays connected.
    ///
    /// # Errors
    /// The server cannot be used.
    pub async fn connect_once(&self) -> Result<(), SessionsAway> {
        let connection = self.connect().await.map_err(|error| {
            self.went_away(&error);
            SessionsAway(describe(&error))
        })?;
        self.offer(connection);
        Ok(())
    }

    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, SessionsAway> {
        let current = self.current().ok_or_else(|| SessionsAway(self.cause()))?;
        let mut connection = MultiplexedConnection::clone(&current);
        question(&mut connection).await.map_err(|error| {
            self.fail(&current, &error);
            SessionsAway(describe(&error))
        })
    }
}

/// Reads a hash. `None`: there is no such session.
fn parse(id: &str, fields: &HashMap<String, String>) -> Option<StoredSession> {
    let text = |name: &str| fields.get(name).cloned();
    let number = |name: &str| fields.get(name)?.parse().ok();
    let used = fields.iter().filter_map(|(name, at)| {
        Some((name.strip_prefix("used:")?.parse().ok()?, at.parse().ok()?))
    });
    Some(StoredSession {
        id: id.to_owned(),
        account: text("account")?,
        generation: number("generation")?,
        counter: number("counter")?,
        created_at: number("created")?,
        rotated_at: number("rotated")?,
        address: text("address")?,
        user_agent: text("agent")?,
        ended_at: number("ended"),
        until_closed: number("closed") == Some(1),
        idp: text("idp").unwrap_or_default(),
        acr: text("acr").unwrap_or_default(),
        auth_time: number("proved").unwrap_or_default(),
        used: used.collect(),
    })
}

fn key(id: &str) -> String {
    format!("portcullis:session:{id}")
}

fn index(account: &str) -> String {
    format!("portcullis:sessions:{account}")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

const MOST_LISTED: usize = 1000;

const SCANNED_AT_ONCE: usize = 500;

/// KEYS: the session, the index of its account. ARGV: its id, how long it lasts in milliseconds,
/// when it began, then fields and values.
const OPEN: &str = "
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1001)
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return 1
";

/// KEYS: the session, the index of its account. ARGV: as in `SessionUse`, then the time in
/// milliseconds at which the gateway stops waiting. Returns whether the token was valid, or an error
/// if it is too late.
const ROTATE: &str = "
local time = redis.call('TIME')
if tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000 > tonumber(ARGV[9]) then
  return redis.error_reply('LATE the gateway has stopped waiting')
end
local s = redis.call('HMGET', KEYS[1], 'counter', 'created', 'rotated', 'ended')
if not s[1] or s[4] or s[1] ~= ARGV[1] then return 0 end
if tonumber(s[2]) <= tonumber(ARGV[5]) or tonumber(s[3]) <= tonumber(ARGV[6]) then return 0 end
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 5) == 'used:' and tonumber(fields[i + 1]) <= tonumber(ARGV[7]) then
    redis.call('HDEL', KEYS[1], fields[i])
  end
end
redis.call('HINCRBY', KEYS[1], 'counter', 1)
redis.call('HSET', KEYS[1], 'rotated', ARGV[2], 'address', ARGV[3], 'agent', ARGV[4], 'used:' .. ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[8])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[8]) then redis.call('PEXPIRE', KEYS[2], ARGV[8]) end
return 1
";

/// KEYS: the session. ARGV: its account, the time. The first end counts.
const END: &str = "
if redis.call('HGET', KEYS[1], 'account') == ARGV[1] then
  redis.call('HSETNX', KEYS[1], 'ended', ARGV[2])
end
return 1
";
