//! Start, signals, reload and drain: the only place where everything is put together.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{self, Control, Readiness};
use crate::clock::Clock;
use crate::compile::{CompileOptions, Compiled};
use crate::config::value::CreateFiles;
use crate::config::{self, Problems};
use crate::descriptors::{self, Shortage};
use crate::gateway::client::Door;
use crate::gateway::snapshot::StartSettings;
use crate::gateway::{Gateway, Snapshot, Telemetry};
use crate::identity::{self, Identity};
use crate::keys::{Background, Health};
use crate::redis::Redis;
use crate::revocation::{Retention, Revocations};
use crate::server::{Claim, Given, Server, bind, bind_one};
use crate::store::{Feed, Presence, Store, StoreError};
use crate::telemetry::log;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::writer::{LogGuard, LogWriter};
use crate::token;

use self::addresses::ListenedAddresses;
use self::helper::on_helper_thread;
use self::retired::Retired;
use self::sharing::Sharing;
use self::tasks::BackgroundTasks;
use self::watch::Watch;

mod addresses;
mod helper;
mod retired;
mod service;
mod sharing;
mod streams;
mod tasks;
mod watch;

/// How often the files are checked if `watch` is on.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How often unused configurations are looked for.
const DROP_UNUSED_INTERVAL: Duration = Duration::from_secs(1);

/// How long streams may take to close at the drain deadline.
const STREAMS_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often limits remove clients that no longer need to be remembered.
const PRUNE_INTERVAL: Duration = Duration::from_secs(30);

/// The maximum time for writes that are in progress at the end.
const FINAL_WRITES_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the gateway did not start, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(Box<Problems>),
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}\n  help: {}", listen_help(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// A socket was passed for which there is no listener.
    #[error(
        "a socket for {0} was passed to the process, and no `listen` of the file names that address\n  help: write it in [server], [admin] or [verify], or remove it from the socket unit; `ListenStream=8080` of systemd is the address `[::]:8080`"
    )]
    Given(SocketAddr),
    /// The database failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The built-in issuer failed to start.
    #[error("the built-in issuer cannot start: {0}")]
    Identity(#[from] identity::StartError),
    /// Threads, signals or the log failed.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// A background task panicked, and everything in progress was finished without it.
    #[error(
        "a background task panicked; its message is on standard error\n  help: start the gateway again, and report the message with the log lines before it"
    )]
    Panicked,
    /// A second signal arrived before every exchange had finished.
    #[error("ended by a second signal before every exchange had finished")]
    Interrupted,
}

fn listen_help(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process uses this port; stop it, or choose another port in [server], [admin] or [verify]"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher port, or grant it"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; `ip address` lists its addresses"
        }
        _ => "check `listen` in [server], [admin] and [verify], and `redirect_http`",
    }
}

/// Loads and compiles a file.
///
/// # Errors
/// All problems of the file.
pub fn compile(
    path: &Path,
    previous: Option<&Snapshot>,
    create: CreateFiles,
    metrics: &Metrics,
    clock: &Clock,
) -> Result<Compiled, Problems> {
    let loaded = config::load(path)?;
    Snapshot::compile(
        loaded,
        &CompileOptions { previous, create, metrics, now: clock.unix_seconds() },
    )
}

/// Serves until a signal ends it.
///
/// `started` is called once with the addresses of the listeners.
///
/// # Errors
/// The gateway cannot start, fails, or is ended by a second signal.
pub fn run(
    path: &Path,
    create: CreateFiles,
    started: impl FnOnce(&[SocketAddr]),
) -> Result<(), ProcessError> {
    token::install_crypto();
    let (clock, metrics) = (Clock::system(), Metrics::new());
    let compiled = compile(path, None, create, &metrics, &clock)
        .map_err(|problems| ProcessError::Config(Box::new(problems)))?;
    let start = compiled.snapshot.start.clone();
    let (log, guard) = start_log(&start, &clock, &metrics)?;
    let shortage = make_room(&compiled.snapshot);
    let runtime = background_runtime()?;
    metrics.runtime("portcullis-background", &runtime);
    let Bound { sets, claims, admin } = runtime.block_on(async { listen(&start) })?;
    let (store, presence) = runtime.block_on(open_store(&start))?;
    log_warnings(&compiled);
    let retention = Retention::for_issuers(&compiled.snapshot.issuers);
    let (at, counts) = (clock.clone(), metrics.clone());
    let loading = Revocations::load(store.clone(), retention, at, counts);
    let revocations = runtime.block_on(loading)?;
    let telemetry = Telemetry::new(metrics.clone(), clock.clone(), log, start.log_format);
    let mut tasks = BackgroundTasks::of(runtime.handle());
    let known = (&clock, &metrics);
    let sharing = Sharing::start(&mut tasks, &start, store.as_ref(), &revocations, known);
    let identity = runtime.block_on(start_identity(
        &compiled.snapshot,
        store.as_ref().map(|store| (store, sharing.redis.as_ref())),
        &revocations,
        &clock,
        &metrics,
    ))?;
    let background = Background {
        runtime: runtime.handle().clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
    };
    compiled.snapshot.keys.start(&background);
    sharing.begin(&compiled.snapshot);
    sharing.share(identity.iter().flat_map(|identity| identity.budgets().all()));
    let gateway = Arc::new(
        Gateway::new(compiled.snapshot, telemetry, Arc::clone(&revocations))
            .with_identity(identity.clone()),
    );
    let server = Arc::new(Server::new(
        Arc::clone(&gateway),
        shortage.map(|shortage| shortage.connections()),
    ));
    let listening = ListenedAddresses::of(&sets);
    let workers = start_workers(&server, sets, &metrics)?;

    let control = Arc::new(Control::new(&revocations, gateway.streams(), clock.clone()));
    let readiness = Arc::new(readiness(&gateway, store.clone(), sharing.redis.clone(), &clock));
    let life = Process {
        path: path.to_owned(),
        gateway,
        revocations,
        control,
        server,
        metrics,
        clock,
        readiness,
        background,
        sharing,
    };
    let bound = (admin, claims, &listening);
    let ended = runtime.block_on(life.serve(bound, tasks, presence, started));
    if ended.is_ok() {
        for worker in workers {
            // A worker's panic message is already on standard error.
            let _ = worker.join();
        }
    }
    close(runtime, identity, store);
    tracing::info!("stopped");
    // When this returns, all earlier log lines are on their way out.
    drop(guard);
    ended
}

fn start_log(
    start: &StartSettings,
    clock: &Clock,
    metrics: &Metrics,
) -> io::Result<(LogWriter, LogGuard)> {
    let (log, guard) = LogWriter::start(io::stdout())?;
    metrics.show_dropped_lines(log.dropped());
    let stamp = clock.clone();
    // If a process runs this twice, as tests do, the first subscriber stays.
    let _ = log::init(start.log_format, start.log_level, log.clone(), move || stamp.unix_time());
    Ok((log, guard))
}

/// Raises the limit of open files to suit `max_connections`, and logs a warning if that is not
/// possible.
fn make_room(snapshot: &Snapshot) -> Option<Shortage> {
    let shortage = descriptors::make_room(snapshot.limits.max_connections)?;
    tracing::warn!(
        limit = shortage.limit,
        needed = shortage.needed,
        connections = shortage.connections(),
        "the limit of open files is too low for max_connections; raise it (ulimit -Hn, LimitNOFILE=)"
    );
    Some(shortage)
}

fn background_runtime() -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().thread_name("portcullis-background").build()
}

/// The listeners of a worker.
type Listening = Vec<(Door, std::net::TcpListener)>;

/// All listeners of the file.
struct Bound {
    /// Those of each worker.
    sets: Vec<Listening>,
    claims: Vec<Claim>,
    admin: std::net::TcpListener,
}

fn listen(start: &StartSettings) -> Result<Bound, ProcessError> {
    let mut sets: Vec<Listening> = (0..start.workers).map(|_| Vec::new()).collect();
    let mut claims = Vec::new();
    let mut given = Given::from_environment()?;
    for (door, addresses) in [
        (Door::Public, &start.listen),
        (Door::Verify, &start.verify),
        (Door::Redirect, &start.redirect),
    ] {
        let bound = bind(addresses, start.workers, &mut given)
            .map_err(|(address, source)| ProcessError::Listen { address, source })?;
        claims.extend(bound.claims);
        for (set, listeners) in sets.iter_mut().zip(bound.sets) {
            set.extend(listeners.into_iter().map(|listener| (door, listener)));
        }
    }
    let (admin, claim) = bind_one(start.admin, &mut given)
        .map_err(|source| ProcessError::Listen { address: start.admin, source })?;
    claims.extend(claim);
    if let Some(unused) = given.unused() {
        return Err(ProcessError::Given(unused));
    }
    Ok(Bound { sets, claims, admin })
}

/// Opens the store and registers this gateway in it.
async fn open_store(
    start: &StartSettings,
) -> Result<(Option<Store>, Option<Arc<Presence>>), StoreError> {
    let Some(settings) = &start.store else { return Ok((None, None)) };
    let store = Store::open(settings).await?;
    let presence = Presence::announce(&store, settings).await?;
    Ok((Some(store), Some(Arc::new(presence))))
}

/// Completes and acknowledges everything in progress, then closes the store.
fn close(runtime: Runtime, identity: Option<Arc<Identity>>, store: Option<Store>) {
    if let Some(identity) = identity {
        runtime.block_on(identity.finish());
    }
    if let Some(store) = store {
        runtime.block_on(store.close());
    }
    // A DNS lookup may take long, and nobody waits for its result any longer.
    runtime.shutdown_timeout(FINAL_WRITES_TIMEOUT);
}

/// Starts the built-in issuer if the file has one.
async fn start_identity(
    snapshot: &Snapshot,
    store: Option<(&Store, Option<&Arc<Redis>>)>,
    revocations: &Arc<Revocations>,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<Option<Arc<Identity>>, ProcessError> {
    let built_in = snapshot.issuers.iter().find(|issuer| issuer.settings().is_built_in);
    let (Some(policy), Some(built_in), Some((store, redis))) =
        (&snapshot.identity, built_in, store)
    else {
        return Ok(None);
    };
    let (keys, revocations) = (Arc::clone(built_in.keys()), Arc::clone(revocations));
    Ok(Some(
        Identity::start(
            (store.clone(), redis.cloned()),
            keys,
            revocations,
            policy,
            clock.clone(),
            metrics.clone(),
        )
        .await?,
    ))
}

/// Checks the snapshot that is current at that moment.
fn readiness(
    gateway: &Arc<Gateway>,
    store: Option<Store>,
    redis: Option<Arc<Redis>>,
    clock: &Clock,
) -> Readiness {
    let (gateway, clock) = (Arc::clone(gateway), clock.clone());
    Readiness::new(move || {
        let current = gateway.current();
        let mut health = Health::check(&current.issuers, &current.keys, &clock);
        let problem = store.as_ref().and_then(Store::lasting_problem);
        health.problems.extend(problem.map(|problem| ("store".to_owned(), problem)));
        let problem = redis.as_deref().and_then(Redis::problem);
        health.problems.extend(problem.map(|problem| ("redis".to_owned(), problem)));
        let problem = store.as_ref().and_then(Store::clock_problem);
        health.problems.extend(problem.map(|problem| ("clock".to_owned(), problem)));
        health
    })
}

/// Returns when every worker serves, or the error of the first one that fails.
fn start_workers(
    server: &Arc<Server>,
    sets: Vec<Listening>,
    metrics: &Metrics,
) -> io::Result<Vec<JoinHandle<()>>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let spawn = |(worker, listeners): (usize, Listening)| {
        let (server, sender) = (Arc::clone(server), sender.clone());
        let (name, metrics) = (format!("portcullis-{worker}"), metrics.clone());
        std::thread::Builder::new().name(name.clone()).spawn(move || {
            let ready = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .and_then(|runtime| {
                    let entered = runtime.enter();
                    let listeners = listeners
                        .into_iter()
                        .map(|(door, listener)| Ok((door, TcpListener::from_std(listener)?)))
                        .collect::<io::Result<Vec<_>>>()?;
                    drop(entered);
                    Ok((runtime, listeners))
                });
            match ready {
                Ok((runtime, listeners)) => {
                    metrics.runtime(&name, &runtime);
                    let _ = sender.send(Ok(()));
                    runtime.block_on(server.serve(worker, listeners));
                }
                // Nobody is waiting if another worker failed earlier.
                Err(error) => drop(sender.send(Err(error))),
            }
        })
    };
    let workers: Vec<_> = sets.into_iter().enumerate().map(spawn).collect::<io::Result<_>>()?;
    for _ in &workers {
        receiver.recv().map_err(io::Error::other)??;
    }
    Ok(workers)
}

/// A running gateway.
struct Process {
    path: PathBuf,
    gateway: Arc<Gateway>,
    revocations: Arc<Revocations>,
    control: Arc<Control>,
    server: Arc<Server>,
    metrics: Metrics,
    clock: Clock,
    readiness: Arc<Readiness>,
    background: Background,
    sharing: Sharing,
}

impl Process {
    fn log_ready(&self, listening: &ListenedAddresses, admin: SocketAddr) {
        let [verify, redirect_http] = [&listening.verify, &listening.redirect]
            .map(|bound| (!bound.is_empty()).then(|| words(bound)));
        tracing::info!(listen = words(&listening.public), verify, redirect_http, admin = %admin, workers = self.gateway.current().start.workers, version = env!("CARGO_PKG_VERSION"), "ready");
    }

    async fn serve(
        &self,
        (admin, claims, listening): (std::net::TcpListener, Vec<Claim>, &ListenedAddresses),
        mut tasks: BackgroundTasks,
        presence: Option<Arc<Presence>>,
        started: impl FnOnce(&[SocketAddr]),
    ) -> Result<(), ProcessError> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let admin = TcpListener::from_std(admin)?;
        let admin_address = admin.local_addr()?;
        let snapshot = self.gateway.current();
        self.control.permit(snapshot.admin_token.as_ref(), &snapshot.issuers);
        drop(snapshot);
        let admin = self.serve_admin(admin);
        tasks.start(Arc::clone(&self.revocations).follow(presence.clone()));
        tasks.start(self.end_overdue_streams());
        let gateway = Arc::clone(&self.gateway);
        if let (Some(presence), None) = (&presence, self.gateway.identity()) {
            // Do not let anything wait for keys that this process no longer uses.
            presence.report_read(Feed::SigningKeys, i64::MAX).await;
        }
        if let Some(identity) = self.gateway.identity() {
            let policy = move || gateway.current().identity.clone();
            tasks.start(Arc::clone(identity).tend(policy, presence));
        }
        self.metrics.started(self.clock.unix_seconds());
        self.readiness.ready();
        self.log_ready(listening, admin_address);
        service::ready();
        started(&listening.public);

        let mut watch = Watch::new(&self.gateway.current());
        let mut looks = tokio::time::interval(WATCH_INTERVAL);
        let mut prunes = tokio::time::interval(PRUNE_INTERVAL);
        let mut retired = Retired::default();
        let mut partings = tokio::time::interval(DROP_UNUSED_INTERVAL);
        partings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (is_interactive, ended) = loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => break (false, Ok(())),
                _ = interrupt.recv() => break (io::stdin().is_terminal(), Ok(())),
                () = tasks.panicked() => {
                    tracing::error!("a background task panicked; its message is on standard error");
                    break (false, Err(ProcessError::Panicked));
                }
                _ = hangup.recv() => {
                    self.reload(&mut watch, &mut retired).await;
                }
                _ = looks.tick(), if self.gateway.current().watch => {
                    if watch.changed().await {
                        self.reload(&mut watch, &mut retired).await;
                    }
                }
                _ = partings.tick(), if !retired.is_empty() => retired.drop_unused(),
                _ = prunes.tick() => self.gateway.current().counters.iter().for_each(|limit| limit.prune()),
            }
        };
        let finish = self.drain(is_interactive, claims, admin);
        let finished = tokio::select! {
            () = finish => ended,
            _ = terminate.recv() => Err(ProcessError::Interrupted),
            _ = interrupt.recv() => Err(ProcessError::Interrupted),
        };
        self.server.stop_accepting();
        self.server.cut();
        finished
    }

    /// Serves the second listener until the handle is dropped.
    #[expect(
        clippy::disallowed_methods,
        reason = "the handle is returned, so the task ends with it"
    )]
    fn serve_admin(&self, listener: TcpListener) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(admin::serve(
            listener,
            Arc::clone(&self.readiness),
            self.metrics.clone(),
            Arc::clone(&self.control),
        )))
    }

    /// Reloads the file. An invalid file changes nothing.
    async fn reload(&self, watch: &mut Watch, retired: &mut Retired) {
        service::reloading();
        self.try_reload(watch, retired).await;
        service::ready();
    }

    async fn try_reload(&self, watch: &mut Watch, retired: &mut Retired) {
        let before = watch.current().await;
        let (path, metrics, clock) = (self.path.clone(), self.metrics.clone(), self.clock.clone());
        let current = self.gateway.current();
        let previous = Arc::clone(&current);
        let compiled = on_helper_thread(move || {
            compile(&path, Some(&previous), CreateFiles::Yes, &metrics, &clock)
        })
        .await;
        match compiled {
            Ok(Ok(compiled)) => {
                log_warnings(&compiled);
                let routes = compiled.snapshot.routes.routes().len();
                self.revocations.extend_retention(&compiled.snapshot.issuers);
                self.control
                    .permit(compiled.snapshot.admin_token.as_ref(), &compiled.snapshot.issuers);
                compiled.snapshot.keys.start(&self.background);
                self.sharing.begin(&compiled.snapshot);
                self.gateway.install(compiled.snapshot);
                current.keys.replaced_by(&self.gateway.current().keys);
                retired.add(current);
                *watch = Watch::new(&self.gateway.current());
                self.metrics.reloaded(self.clock.unix_seconds());
                tracing::info!(file = %self.path.display(), routes, "reloaded");
                self.review_streams();
            }
            Ok(Err(problems)) => {
                watch.rejected(before);
                self.metrics.reload_rejected();
                tracing::error!(file = %self.path.display(), problems = %problems.to_json(), "the file was rejected; the running configuration stays");
            }
            Err(error) => {
                watch.rejected(before);
                self.metrics.reload_rejected();
                tracing::error!(file = %self.path.display(), cause = %error, "the reload did not finish; the running configuration stays");
            }
        }
    }

    /// Drains: `/readyz` returns 503 and a successor may bind, then no new connections are
    /// accepted, then everything in flight finishes or is cut off at the deadline.
    async fn drain(
        &self,
        is_interactive: bool,
        mut claims: Vec<Claim>,
        admin: AbortOnDropHandle<()>,
    ) {
        let snapshot = self.gateway.current();
        self.readiness.draining();
        service::stopping();
        self.gateway.begin_drain();
        claims.iter_mut().for_each(Claim::leave);
        let connections = self.server.connections() + self.gateway.tunnels().len();
        // At a terminal, with no connections, there is no load balancer to wait for.
        let delay =
            if is_interactive && connections == 0 { Duration::ZERO } else { snapshot.drain_delay };
        tracing::info!(?delay, timeout = ?snapshot.drain_timeout, connections, "draining");
        tokio::time::sleep(delay).await;
        self.server.stop_accepting();
        // From now on a successor serves these addresses, or nothing does.
        drop(admin);
        if tokio::time::timeout(snapshot.drain_timeout, self.server.drained()).await.is_err() {
            tracing::warn!(
                connections = self.server.connections(),
                tunnels = self.gateway.tunnels().len(),
                "cut at the drain deadline"
            );
            self.gateway.streams().end_all();
            if self.gateway.streams().open() > 0 {
                let _ = tokio::time::timeout(STREAMS_CLOSE_TIMEOUT, self.server.drained()).await;
            }
        }
    }
}

/// Addresses as the log lists them.
fn words(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn log_warnings(compiled: &Compiled) {
    for warning in &compiled.warnings.list {
        tracing::warn!(problem = %warning, "configuration");
    }
    for weakened in &compiled.snapshot.weakened {
        tracing::warn!(setting = weakened, "a guarantee is weakened");
    }
}
