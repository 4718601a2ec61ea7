//! The connection to Redis, the task that owns it, and its log events.

use std::convert::Infallible;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, ProtocolVersion, PushInfo,
    PushKind, RedisError, RedisResult,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::RedisSettings;
use super::limits::{NEVER, Scripts};
use super::sessions::SessionScripts;
use crate::clock::Clock;
use crate::limit::{LiveGateways, Place};
use crate::telemetry::metrics::Metrics;

/// The Redis of this process.
///
/// Anything may ask it through the current connection. While there is none, every question fails at
/// once: requests never wait for a server that is known to be away.
pub struct Redis {
    client: Client,
    address: String,
    /// Names this gateway among those that use the server.
    id: String,
    clock: Clock,
    metrics: Metrics,
    /// The runtime that owns the connection.
    pub(super) background: Handle,
    current: ArcSwapOption<MultiplexedConnection>,
    /// Whether connections subscribe to what other gateways announce.
    listens: AtomicBool,
    announced: Arc<Notify>,
    /// The owner is told that a question failed.
    failed: Notify,
    state: Mutex<State>,
    /// By how many milliseconds the server's clock is ahead of [`Clock::running`]; 0: not known.
    ahead: AtomicU64,
    /// The gateways that use the server.
    gateways: LiveGateways,
    /// Those that use the database, which may be known when the server has never answered.
    replicas: OnceLock<Arc<LiveGateways>>,
    /// Whether anything is kept in it. A server that is only read may be read-only.
    writes: AtomicBool,
    pub(super) scripts: Arc<Scripts>,
    pub(super) sessions: SessionScripts,
    holds_sessions: bool,
    /// Cells that are being given back, and lists of revoked keys that are kept up to date.
    pub(super) tasks: TaskTracker,
}

#[derive(Debug)]
struct State {
    is_up: bool,
    /// When the server last answered, by [`Clock::running`].
    heard_at: Duration,
    /// Why it does not answer.
    cause: String,
}

impl Redis {
    /// Starts without a connection; [`Redis::tend`] makes it. Call it on the background runtime.
    /// `None` if the settings are not those of a server, which they were checked for.
    pub fn start(settings: &RedisSettings, clock: &Clock, metrics: &Metrics) -> Option<Arc<Self>> {
        let info = settings.url().into_connection_info().ok()?;
        // Notifications then arrive on the connection that also asks.
        let protocol = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(protocol)).ok()?;
        metrics.store_up(NAME, false);
        Some(Arc::new(Self {
            client,
            address: settings.address().to_owned(),
            id: Uuid::new_v4().to_string(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            background: Handle::current(),
            current: ArcSwapOption::empty(),
            listens: AtomicBool::new(false),
            announced: Arc::new(Notify::new()),
            failed: Notify::new(),
            state: Mutex::new(State {
                is_up: false,
                heard_at: clock.running(),
                cause: String::new(),
            }),
            ahead: AtomicU64::new(0),
            gateways: LiveGateways::default(),
            replicas: OnceLock::new(),
            writes: AtomicBool::new(settings.holds_sessions()),
            scripts: Arc::new(Scripts::new()),
            sessions: SessionScripts::new(),
            holds_sessions: settings.holds_sessions(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Connects, and connects again whenever the connection fails, until it is dropped.
    pub async fn tend(self: Arc<Self>) {
        loop {
            let ended = match self.connect().await {
                Ok(connection) => self.watch(connection).await,
                Err(error) => Some(error),
            };
            self.current.store(None);
            if let Some(error) = ended {
                self.went_away(&error);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Why the server cannot be used, in words for the operator, once that has lasted ten seconds.
    pub fn problem(&self) -> Option<String> {
        let state = self.state();
        let silent = self.clock.running().saturating_sub(state.heard_at);
        if state.is_up || silent < PATIENCE {
            return None;
        }
        let (address, seconds) = (&self.address, silent.as_secs());
        Some(format!("Redis at {address} cannot be used for {seconds} s: {}", state.cause))
    }

    /// From now on the server must accept writes to count as usable.
    pub fn will_write(&self) {
        self.writes.store(true, Ordering::Relaxed);
    }

    /// The replicas of the database count as gateways that use the server, whether it answers or not.
    pub fn count_replicas(&self, replicas: &Arc<LiveGateways>) {
        let _ = self.replicas.set(Arc::clone(replicas));
    }

    /// From the next connection on, hears what other gateways announce.
    pub fn will_listen(&self) {
        self.listens.store(true, Ordering::Relaxed);
    }

    /// Whether the sessions of the built-in issuer are in it.
    pub fn holds_sessions(&self) -> bool {
        self.holds_sessions
    }

    /// Offers a connection to whoever asks.
    pub(super) fn offer(&self, connection: MultiplexedConnection) {
        self.current.store(Some(Arc::new(connection)));
    }

    /// Why there is no connection.
    pub(super) fn cause(&self) -> String {
        match &*self.state().cause {
            "" => "there is no connection yet".to_owned(),
            cause => cause.to_owned(),
        }
    }

    /// Tells the other gateways that there is something to read in the database. Does not wait, and
    /// may be lost: they also read by themselves.
    pub fn announce(&self) {
        let Some(current) = self.current() else { return };
        let mut connection = MultiplexedConnection::clone(&current);
        self.tasks.spawn_on(
            async move {
                // The next question notices a server that is away.
                let _ =
                    redis::cmd("PUBLISH").arg(CHANNEL).arg("").exec_async(&mut connection).await;
            },
            &self.background,
        );
    }

    /// Waits until some gateway has announced something since the last call. One task may wait.
    pub async fn announced(&self) {
        self.announced.notified().await;
    }

    /// The server, for a connection of another kind.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// How long the process has run.
    pub(super) fn running(&self) -> Duration {
        self.clock.running()
    }

    /// The current connection.
    pub(super) fn current(&self) -> Option<Arc<MultiplexedConnection>> {
        self.current.load_full()
    }

    /// Reports that a question on this connection failed. Nothing asks on it any longer; its owner
    /// tries another one.
    pub(super) fn fail(&self, connection: &Arc<MultiplexedConnection>, error: &RedisError) {
        let known = self.current.load();
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, connection)) {
            self.current.store(None);
            self.went_away(error);
            self.failed.notify_one();
        }
    }

    /// The place of this gateway among those that use the server, as last known.
    pub(super) fn known_place(&self) -> Place {
        let replicas = self.replicas.get().and_then(|replicas| replicas.known());
        let counted = [self.gateways.known(), replicas].into_iter().flatten();
        counted.max_by_key(|place| place.gateways).unwrap_or(UNCOUNTED)
    }

    /// When this gateway stops waiting for the answer to a question that is asked now: the time on the
    /// server's clock, in Unix milliseconds. It never comes while that clock is not known.
    pub(super) fn deadline(&self) -> u64 {
        match self.ahead.load(Ordering::Relaxed) {
            0 => NEVER,
            ahead => millis(self.clock.running() + REPLY_TIMEOUT) + ahead,
        }
    }

    pub(super) async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(REPLY_TIMEOUT))
            .set_push_sender({
                let announced = Arc::clone(&self.announced);
                move |event: PushInfo| {
                    if event.kind == PushKind::Message {
                        announced.notify_one();
                    }
                    Ok::<_, Infallible>(())
                }
            });
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Offers a connection until it fails. `None`: a question on it failed, which was reported.
    async fn watch(&self, connection: MultiplexedConnection) -> Option<RedisError> {
        let mut beating = connection.clone();
        beating.set_response_timeout(BEAT_TIMEOUT);
        let connection = Arc::new(connection);
        // It is offered only when the server has shown that it can be used.
        if let Err(error) = self.beat(&mut beating).await {
            return Some(error);
        }
        if self.listens.load(Ordering::Relaxed)
            && let Err(error) = beating.subscribe(CHANNEL).await
        {
            let cause = describe(&error);
            tracing::warn!(
                redis = self.address,
                cause,
                "revocations cannot be announced through Redis; they are read from the database"
            );
        }
        // What was announced in the meantime.
        self.announced.notify_one();
        self.current.store(Some(connection));
        self.came_back();
        let mut ticks = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.failed.notified() => {
                    // Otherwise it was an earlier one.
                    if self.current.load().is_none() {
                        return None;
                    }
                }
                _ = ticks.tick() => {
                    if let Err(error) = self.beat(&mut beating).await {
                        return Some(error);
                    }
                    self.came_back();
                }
            }
        }
    }

    /// Asks the server for an answer, and counts the gateways if they share anything.
    async fn beat(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        if self.writes.load(Ordering::Relaxed) {
            let mut counting = self.scripts.beat.key(GATEWAYS);
            let counting = counting.arg(&self.id).arg(PATIENCE.as_secs());
            let asked = millis(self.clock.running());
            let (gateways, rank, seconds, micros): (u32, u32, u64, u64) =
                counting.invoke_async(connection).await?;
            self.gateways.note(gateways, rank);
            // Rather too far ahead, by what the question took.
            let ahead = (seconds * 1000 + micros / 1000).saturating_sub(asked);
            self.ahead.store(ahead, Ordering::Relaxed);
        } else {
            redis::cmd("PING").exec_async(connection).await?;
        }
        Ok(())
    }

    fn came_back(&self) {
        let mut state = self.state();
        state.heard_at = self.clock.running();
        if !std::mem::replace(&mut state.is_up, true) {
            self.metrics.store_up(NAME, true);
            state.cause.clear();
            tracing::info!(redis = self.address, "Redis can be used");
        }
    }

    pub(super) fn went_away(&self, error: &RedisError) {
        let cause = describe(error);
        let mut state = self.state();
        // One event for each outage, also for one that began before the start.
        if std::mem::replace(&mut state.is_up, false) || state.cause.is_empty() {
            self.metrics.store_up(NAME, false);
            tracing::warn!(
                redis = self.address,
                cause,
                "Redis cannot be used; it is tried again until it can"
            );
        }
        state.cause = cause;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What happened and what to do, without anything that a log must not contain.
pub(super) fn describe(error: &RedisError) -> String {
    let remedy = match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
            "; check the user and password in the URL of [store] redis"
        }
        (_, Some("NOPERM")) => {
            "; allow the user the keys, channels and commands of the gateway (ACL SETUSER)"
        }
        (_, Some("READONLY")) => {
            "; it is a read-only replica: let [store] redis name the primary server"
        }
        (_, Some("OOM")) => "; it is out of memory: raise its `maxmemory`, or remove keys",
        (_, Some("MISCONF")) => "; it cannot write its snapshots: see its log",
        _ => "",
    };
    format!("{error}{remedy}")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The label of its metrics.
const NAME: &str = "redis";

/// The gateways that use the server, each with the time of its last beat.
const GATEWAYS: &str = "portcullis:gateways";

/// Where gateways tell each other that there is something to read in the database.
const CHANNEL: &str = "portcullis:revoked";

/// How often the server is asked whether it can be used.
const BEAT: Duration = Duration::from_secs(1);

/// How long a beat may take: nobody waits for it.
const BEAT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a question may take: a request waits for it.
const REPLY_TIMEOUT: Duration = Duration::from_millis(100);

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The number of gateways to expect where nothing has counted them yet. Each grants its part only,
/// and one request of a smaller budget: without an order among them, none could let anybody in.
const UNCOUNTED: Place = Place { gateways: NonZeroU32::new(10).expect("ten is not zero"), rank: 0 };

/// The pause before the next attempt to connect.
const RETRY: Duration = Duration::from_millis(250);

/// How long a server may be silent before operators are told, and a gateway before it no longer
/// counts.
const PATIENCE: Duration = Duration::from_secs(10);
