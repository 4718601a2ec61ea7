//! The blacklist of an existing application: which of its keys exist.
//!
//! One task for each list learns the keys on a connection of its own. It first subscribes to
//! notifications, then reads all keys (`SCAN`), and reads all of them again each minute and after
//! each connection. What a notification says is not trusted: the server is asked about the key.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, PushKind, RedisResult};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

use super::Redis;
use super::connection::describe;
use crate::token::{KeyPattern, RevokedKeys};

impl Redis {
    /// Keeps the list of an issuer's section up to date until it is dropped. Only the first call
    /// for a list has an effect.
    pub fn learn(self: &Arc<Self>, issuer: &str, keys: &Arc<RevokedKeys>) {
        if keys.follow() {
            let (redis, keys) = (Arc::clone(self), Arc::downgrade(keys));
            self.tasks.spawn_on(follow(redis, issuer.to_owned(), keys), &self.background);
        }
    }

    /// Which `CONFIG SET` makes the server send the notifications that [`Redis::learn`] needs.
    /// `None`: it sends them.
    ///
    /// # Errors
    /// The server cannot be asked, or does not say.
    pub async fn missing_notifications(&self) -> Result<Option<String>, String> {
        let mut connection = self.connect().await.map_err(|error| describe(&error))?;
        let flags = notifications(&mut connection).await.map_err(|error| describe(&error))?;
        Ok(missing(&flags))
    }
}

async fn follow(redis: Arc<Redis>, issuer: String, keys: Weak<RevokedKeys>) {
    let mut follower = Follower { redis, issuer, run: None, is_warned: false, is_behind: false };
    while let Some(list) = keys.upgrade() {
        if let Err(error) = follower.read(&list, &keys).await {
            drop(list);
            if !std::mem::replace(&mut follower.is_behind, true) {
                tracing::warn!(
                    issuer = follower.issuer,
                    cause = describe(&error),
                    "the revoked keys cannot be read from Redis; those known so far remain in force"
                );
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

struct Follower {
    redis: Arc<Redis>,
    issuer: String,
    /// Which run of the server was last read completely.
    run: Option<String>,
    /// Whether missing notifications were reported.
    is_warned: bool,
    /// Whether an error was reported.
    is_behind: bool,
}

/// Keys that were found, with the time at which they expire.
type Found = HashMap<Arc<str>, Duration>;

impl Follower {
    /// Connects and keeps the list up to date until the connection fails or nobody uses the list.
    async fn read(&mut self, list: &RevokedKeys, used: &Weak<RevokedKeys>) -> RedisResult<()> {
        let pattern = list.pattern();
        let client = self.redis.client();
        let database = client.get_connection_info().redis_settings().db();
        let (sender, mut events) = unbounded_channel();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_push_sender(sender);
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let channel = format!("__keyspace@{database}__:");
        connection.psubscribe(format!("{channel}{}", pattern.glob())).await?;
        self.check_notifications(&mut connection).await;
        // The list itself holds one reference here, and snapshots hold the others.
        while used.strong_count() > 1 {
            self.read_all(list, &mut connection, &channel, &mut events).await?;
            let next = Instant::now() + RESCAN;
            while Instant::now() < next && used.strong_count() > 1 {
                match tokio::time::timeout(BEAT, events.recv()).await {
                    Ok(Some(event)) => {
                        let events = ready(event, &mut events);
                        self.ask(list, &mut connection, &channel, events, None).await?;
                    }
                    // A silent connection may be a dead one.
                    Ok(None) | Err(_) => redis::cmd("PING").exec_async(&mut connection).await?,
                }
            }
        }
        Ok(())
    }

    /// Reads all keys, and meanwhile what happens to them.
    async fn read_all(
        &mut self,
        list: &RevokedKeys,
        connection: &mut MultiplexedConnection,
        channel: &str,
        events: &mut UnboundedReceiver<PushInfo>,
    ) -> RedisResult<()> {
        let pattern = list.pattern();
        let glob = pattern.glob();
        let (mut found, mut cursor) = (Found::new(), 0_u64);
        let run = run_id(connection).await;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&glob).arg("COUNT").arg(SCANNED_AT_ONCE);
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(connection).await?;
            let values = values(pattern, keys.iter().map(Vec::as_slice));
            let known = self.expiries(pattern, connection, values).await?;
            list.record(
                known
                    .iter()
                    .filter(|(value, expires)| {
                        // Only what is new: the rest is replaced at once in the end.
                        expires.is_some() && list.is_known() && !list.contains(value)
                    })
                    .cloned(),
            );
            note(&mut found, known);
            if let Ok(event) = events.try_recv() {
                let events = ready(event, events);
                self.ask(list, connection, channel, events, Some(&mut found)).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        let is_lossy = self.run.is_some() && self.run != run;
        let (before, is_first) = (list.len(), !list.is_known());
        list.replace(found, is_lossy, self.redis.running());
        self.run = run;
        if is_first || std::mem::take(&mut self.is_behind) {
            tracing::info!(
                issuer = self.issuer,
                keys = list.len(),
                "the revoked keys were read from Redis"
            );
        }
        if is_lossy {
            tracing::warn!(
                issuer = self.issuer,
                before,
                keys = list.len(),
                "Redis was restarted or replaced; revoked keys that it lost remain in force until they would have expired"
            );
        }
        Ok(())
    }

    /// Asks the server about the keys that events name.
    async fn ask(
        &self,
        list: &RevokedKeys,
        connection: &mut MultiplexedConnection,
        channel: &str,
        events: Vec<PushInfo>,
        found: Option<&mut Found>,
    ) -> RedisResult<()> {
        if events.iter().any(|event| event.kind == PushKind::Disconnection) {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let keys = events.iter().filter_map(|event| match event.data.get(1) {
            Some(redis::Value::BulkString(name)) if event.kind == PushKind::PMessage => {
                name.strip_prefix(channel.as_bytes())
            }
            _ => None,
        });
        let values = values(list.pattern(), keys);
        let known = self.expiries(list.pattern(), connection, values).await?;
        list.record(known.iter().cloned());
        if let Some(found) = found {
            note(found, known);
        }
        Ok(())
    }

    /// When the keys of these values expire; `None`: they do not exist.
    async fn expiries(
        &self,
        pattern: &KeyPattern,
        connection: &mut MultiplexedConnection,
        values: Vec<Arc<str>>,
    ) -> RedisResult<Vec<(Arc<str>, Option<Duration>)>> {
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for value in &values {
            pipe.cmd("PTTL").arg(pattern.key(value));
        }
        let lives: Vec<i64> = pipe.query_async(connection).await?;
        let now = self.redis.running();
        let expiry = |life: i64| match u64::try_from(life) {
            Ok(millis) => Some(now + Duration::from_millis(millis)),
            // It has no expiry, or does not exist.
            Err(_) => (life == -1).then_some(Duration::MAX),
        };
        Ok(values.into_iter().zip(lives.into_iter().map(expiry)).collect())
    }

    async fn check_notifications(&mut self, connection: &mut MultiplexedConnection) {
        // A server that does not permit CONFIG may still send them.
        let Ok(flags) = notifications(connection).await else { return };
        let missing = missing(&flags);
        let Some(command) = &missing else {
            self.is_warned = false;
            return;
        };
        if !std::mem::replace(&mut self.is_warned, true) {
            tracing::warn!(
                issuer = self.issuer,
                command,
                "Redis does not send all notifications of revoked keys, so they are read once a minute; run this command, and set the same in its configuration"
            );
        }
    }
}

/// This event, and those that have arrived since.
fn ready(event: PushInfo, events: &mut UnboundedReceiver<PushInfo>) -> Vec<PushInfo> {
    let mut ready = vec![event];
    while let (true, Ok(event)) = (ready.len() < SCANNED_AT_ONCE, events.try_recv()) {
        ready.push(event);
    }
    ready
}

/// The values in these keys, each once.
fn values<'k>(pattern: &KeyPattern, keys: impl Iterator<Item = &'k [u8]>) -> Vec<Arc<str>> {
    let mut values: Vec<Arc<str>> = keys
        .filter_map(|key| pattern.value(std::str::from_utf8(key).ok()?))
        .map(Arc::from)
        .collect();
    values.sort_unstable();
    values.dedup();
    values
}

fn note(found: &mut Found, known: Vec<(Arc<str>, Option<Duration>)>) {
    for (value, expires) in known {
        match expires {
            Some(expires) => found.insert(value, expires),
            None => found.remove(&value),
        };
    }
}

/// Tells a server that was restarted or replaced from the one before. `None`: it does not say.
async fn run_id(connection: &mut MultiplexedConnection) -> Option<String> {
    let info: String = redis::cmd("INFO").arg("server").query_async(connection).await.ok()?;
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::to_owned)
}

async fn notifications(connection: &mut MultiplexedConnection) -> RedisResult<String> {
    let mut asking = redis::cmd("CONFIG");
    asking.arg("GET").arg(SETTING);
    let mut settings: HashMap<String, String> = asking.query_async(connection).await?;
    Ok(settings.remove(SETTING).unwrap_or_default())
}

/// The command that adds what these flags lack: notifications by key, of every class of events that
/// can make or remove a key, whatever its type. The server shows all classes as `A`.
fn missing(flags: &str) -> Option<String> {
    let has_all = flags.contains('A') || CLASSES.chars().all(|class| flags.contains(class));
    let added = match (flags.contains('K'), has_all) {
        (true, true) => return None,
        (true, false) => "A",
        (false, true) => "K",
        (false, false) => "KA",
    };
    Some(format!("CONFIG SET {SETTING} '{flags}{added}'"))
}

/// Commands for every type, texts, lists, sets, hashes, sorted sets, streams, and expired and evicted
/// keys. The application chooses the type: only whether the key exists counts.
const CLASSES: &str = "g$lshztxe";

const SETTING: &str = "notify-keyspace-events";

/// How often all keys are read.
const RESCAN: Duration = Duration::from_mins(1);

/// How often a silent connection is tested, and whether anybody uses the list.
const BEAT: Duration = Duration::from_secs(1);

/// How long an answer may take. Nobody waits for it.
const TIMEOUT: Duration = Duration::from_secs(2);

const RETRY: Duration = Duration::from_millis(250);

const SCANNED_AT_ONCE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_adds_what_is_missing() {
        for (flags, command) in [
            ("", Some("CONFIG SET notify-keyspace-events 'KA'")),
            ("xE", Some("CONFIG SET notify-keyspace-events 'xEKA'")),
            ("AE", Some("CONFIG SET notify-keyspace-events 'AEK'")),
            ("g$xeK", Some("CONFIG SET notify-keyspace-events 'g$xeKA'")),
            ("g$lshzxeK", Some("CONFIG SET notify-keyspace-events 'g$lshzxeKA'")),
            ("AK", None),
            ("AKE", None),
            ("AKEm", None),
            ("g$lshztxeK", None),
        ] {
            assert_eq!(missing(flags).as_deref(), command, "{flags}");
        }
    }
}
