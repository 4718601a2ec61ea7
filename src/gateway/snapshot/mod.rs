//! A snapshot: everything that one configuration file means, checked and ready to run.
//!
//! Compiling *is* validation: `check`, start and reload come through [`Snapshot::compile`], and
//! every problem of a file is told at once.

mod admin;
mod brand;
mod demands;
mod destination;
mod expectations;
mod identity;
mod issuers;
mod keys;
mod logouts;
mod mail;
mod routes;
mod server;
mod store;
mod upstreams;
mod warnings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::client::TrustedProxies;
use super::logout::LogoutPaths;
use super::outgoing::HeaderRules;
use super::route::RouteTable;
use super::upstream::Upstream;
use crate::config::value::{CreateFiles, SecretBytes};
use crate::config::{File, Loaded, Mark, Problem, Problems, Severity, Source};
use crate::identity::Policy;
use crate::keys::Keys;
use crate::limit::Limit;
use crate::store::StoreSettings;
use crate::telemetry::log::Format;
use crate::telemetry::metrics::Metrics;
use crate::token::{CacheBounds, Issuers};

/// A compiled configuration file.
#[derive(Debug)]
pub struct Snapshot {
    /// What is read at start only.
    pub start: StartSettings,
    /// What one client may ask of the gateway.
    pub limits: ConnectionLimits,
    /// Certificate and key of the public listener; `None`: cleartext.
    pub tls: Option<Arc<server::Tls>>,
    /// HTTP/2 with prior knowledge on cleartext.
    pub h2c: bool,
    /// Which peers are believed.
    pub proxies: TrustedProxies,
    /// Whose tokens are accepted.
    pub issuers: Arc<Issuers>,
    /// Who keeps their keys up to date.
    pub keys: Keys,
    /// How many verified tokens all workers together remember.
    pub token_cache: CacheBounds,
    /// How the built-in issuer behaves; `None`: there is none.
    pub identity: Option<Arc<Policy>>,
    /// Whose logouts are heard of, and where.
    pub logouts: LogoutPaths,
    /// Which requests go where.
    pub routes: RouteTable,
    /// What every outgoing request is held to.
    pub rules: HeaderRules,
    /// Every upstream, each with its connections.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Every limit, each with its counters.
    pub counters: Vec<Arc<Limit>>,
    /// Bytes of a request body.
    pub max_body: u64,
    /// Between bytes of a request body.
    pub body_idle_timeout: Duration,
    /// What those who may change state send to the second listener; `None`: nobody may.
    pub admin_token: Option<SecretBytes>,
    /// Write one line for each request.
    pub access_log: bool,
    /// How long `/readyz` says 503 while requests are still served.
    pub drain_delay: Duration,
    /// How long exchanges and tunnels may take to finish after that.
    pub drain_timeout: Duration,
    /// Reload when one of `files` changes.
    pub watch: bool,
    /// The configuration file and every file that it names, each with the version that was read.
    pub files: Vec<(PathBuf, Option<Mark>)>,
    /// The settings that weaken a guarantee, in words.
    pub weakened: Vec<String>,
}

/// What is read at start only: a reload that changes one of these is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartSettings {
    /// The public listener.
    pub listen: Vec<SocketAddr>,
    /// The second listener.
    pub admin: SocketAddr,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// How lines are written.
    pub log_format: Format,
    /// Which events are written.
    pub log_level: tracing::Level,
    /// What outlives the process; `None`: nothing does.
    pub store: Option<StoreSettings>,
    /// Whether there is a built-in issuer.
    pub has_identity: bool,
}

/// What one client may ask of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at a time.
    pub max_connections: usize,
    /// From the first byte of a request head to its last.
    pub header_timeout: Duration,
    /// Keep-alive between requests.
    pub idle_timeout: Duration,
    /// Bytes of a request head, 8 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// Fields of a request head.
    pub max_headers: usize,
}

/// What a file is compiled against.
#[derive(Debug)]
pub struct CompileOptions<'a> {
    /// What runs now, on a reload.
    pub previous: Option<&'a Snapshot>,
    /// Whether files with `create = true` are made.
    pub create: CreateFiles,
    /// Where the routes' counters are.
    pub metrics: &'a Metrics,
    /// Unix seconds: the time at which `[[test]]` blocks are judged, and keys that were kept on
    /// disk.
    pub now: u64,
}

/// What came of compiling a file.
#[derive(Debug)]
pub struct Compiled {
    /// What runs.
    pub snapshot: Snapshot,
    /// What an operator should look at.
    pub warnings: Problems,
}

impl Snapshot {
    /// Compiles a file. Reads the files that it names, never the network.
    ///
    /// Upstreams, limits and issuers whose sections are unchanged are carried over from the
    /// previous snapshot, with their connections, counters and keys.
    ///
    /// # Errors
    /// Every problem of the file, at once.
    pub fn compile(loaded: Loaded, options: &CompileOptions<'_>) -> Result<Compiled, Problems> {
        let Loaded { mark, source, file, problems } = loaded;
        let files = vec![(source.path().to_owned(), mark)];
        let CompileOptions { previous, create, metrics, now } = options;
        let (previous, create) = (*previous, *create);
        let (weakened, now) = (Vec::new(), *now);
        let mut compiler = Compiler {
            source: &source,
            file: &file,
            previous,
            create,
            metrics,
            now,
            problems,
            files,
            weakened,
        };
        let snapshot = compiler.snapshot();
        let Compiler { mut problems, .. } = compiler;
        if let Some(snapshot) = &snapshot
            && !problems.iter().any(|problem| problem.severity == Severity::Error)
        {
            problems.extend(expectations::unmet(&file, snapshot, now));
        }
        let problems = Problems::new(source, problems);
        match snapshot {
            Some(snapshot) if !problems.has_errors() => {
                Ok(Compiled { snapshot, warnings: problems })
            }
            _ => Err(problems),
        }
    }
}

/// The work under way: what was found wrong so far, and what was read.
struct Compiler<'a> {
    source: &'a Source,
    file: &'a File,
    previous: Option<&'a Snapshot>,
    create: CreateFiles,
    metrics: &'a Metrics,
    now: u64,
    problems: Vec<Problem>,
    files: Vec<(PathBuf, Option<Mark>)>,
    weakened: Vec<String>,
}

impl Compiler<'_> {
    /// The snapshot; `None` where what is missing leaves nothing to run. Problems are collected on
    /// the way.
    fn snapshot(&mut self) -> Option<Snapshot> {
        self.refuse_what_is_not_due();
        let start = self.start();
        let limits = self.connection_limits();
        let tls = self.server_tls();
        let proxies = self.proxies();
        let token_names = self.token_names();
        let identity = self.identity(&token_names);
        let folder = self.lasting_folder(start.as_ref());
        let (issuers, keys) = self.issuers(identity.as_ref(), &folder);
        let counters = self.limits();
        let upstreams = self.upstreams(start.as_ref().map_or(1, |start| start.workers));
        let (routes, owned) = self.routes(&issuers, &counters, &upstreams);
        let logouts = self.logouts(&issuers);
        let admin_token = self.admin_token();
        self.warn_about_revocations();
        let max_body = self.max_body();
        let body_idle_timeout =
            self.timeout(self.file.server.limits.body_idle_timeout.as_ref(), "30s");
        let drain_delay = self.duration(self.file.server.drain_delay.as_ref(), "5s");
        let drain_timeout = self.duration(self.file.server.drain_timeout.as_ref(), "30s");
        Some(Snapshot {
            start: start?,
            limits,
            tls,
            h2c: self.file.server.h2c.unwrap_or(true),
            proxies,
            issuers: Arc::new(issuers),
            keys,
            token_cache: self.token_cache(),
            identity: identity.map(Arc::new),
            logouts,
            routes,
            rules: HeaderRules { owned, token_names },
            upstreams: upstreams.into_values().collect(),
            counters: counters.into_values().collect(),
            max_body,
            body_idle_timeout,
            admin_token,
            access_log: self.file.log.access.unwrap_or(true),
            drain_delay,
            drain_timeout,
            watch: self.file.server.watch,
            files: std::mem::take(&mut self.files),
            weakened: std::mem::take(&mut self.weakened),
        })
    }

    fn error(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Takes a checked value, or notes what is wrong with it.
    fn take<T>(&mut self, checked: Result<T, Problem>) -> Option<T> {
        checked.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// Remembers a file that is about to be read, so that a watch sees it change.
    fn named_file(&mut self, path: PathBuf) -> PathBuf {
        self.files.push((path.clone(), Mark::of(&path)));
        path
    }
}
