//! Compiles a configuration file into a [`Snapshot`].
//!
//! Compiling *is* validation: `check`, start and reload come through [`Snapshot::compile`], which
//! reports every problem of a file at once.

mod admin;
mod brand;
mod constant_headers;
mod cookie_domain;
mod cors;
mod demands;
mod destination;
mod expectations;
mod hidden_login;
mod identity;
mod issuers;
mod keys;
mod logins;
mod logouts;
mod mail;
mod patterns;
mod redirects;
mod routes;
mod server;
mod store;
mod tls;
mod upstreams;
mod verify;
mod warnings;
mod webdav;

use std::path::PathBuf;
use std::sync::Arc;

pub use self::server::DEFAULT_MAX_CONNECTIONS;
use crate::config::value::CreateFiles;
use crate::config::{File, FileVersion, Loaded, Problem, Problems, Severity, Source};
use crate::gateway::headers::{HeaderRules, OwnedNames};
use crate::gateway::snapshot::{ConnectionLimits, Snapshot, StartSettings};
use crate::identity::Policy;
use crate::telemetry::metrics::Metrics;

/// The context in which a file is compiled.
#[derive(Debug)]
pub struct CompileOptions<'a> {
    /// The running snapshot, on a reload.
    pub previous: Option<&'a Snapshot>,
    /// Whether to create the files that have `create = true`.
    pub create: CreateFiles,
    /// Holds the routes' counters.
    pub metrics: &'a Metrics,
    /// Unix seconds: the time used for `[[test]]` blocks and for keys saved on disk.
    pub now: u64,
}

/// The result of compiling a file.
#[derive(Debug)]
pub struct Compiled {
    /// The snapshot to run.
    pub snapshot: Snapshot,
    /// Warnings for the operator.
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
        // A rejected file creates nothing: the file to create may come from a misspelt key.
        let create = if problems.iter().any(|problem| problem.severity == Severity::Error) {
            CreateFiles::No
        } else {
            *create
        };
        let previous = *previous;
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
            shares_database: false,
        };
        let snapshot = compiler.snapshot();
        let Compiler { mut problems, .. } = compiler;
        if let Some(snapshot) = &snapshot
            && !problems.iter().any(|problem| problem.severity == Severity::Error)
        {
            problems.extend(expectations::unmet(&file, snapshot, now));
        }
        let mut problems = Problems::new(source, problems);
        match snapshot {
            Some(snapshot) if !problems.has_errors() => {
                Ok(Compiled { snapshot, warnings: problems })
            }
            _ => {
                // A warning next to an error often follows from it.
                problems.list.retain(|problem| problem.severity == Severity::Error);
                Err(problems)
            }
        }
    }
}

/// The compilation in progress: the problems so far, and what was read.
struct Compiler<'a> {
    source: &'a Source,
    file: &'a File,
    previous: Option<&'a Snapshot>,
    create: CreateFiles,
    metrics: &'a Metrics,
    now: u64,
    problems: Vec<Problem>,
    files: Vec<(PathBuf, Option<FileVersion>)>,
    weakened: Vec<String>,
    /// Whether replicas may share the database, once `[store]` is compiled.
    shares_database: bool,
}

impl Compiler<'_> {
    /// The snapshot, or `None` if something essential is missing. Collects problems on the way.
    fn snapshot(&mut self) -> Option<Snapshot> {
        let start = self.start();
        let limits = self.connection_limits();
        let tls = self.server_tls();
        let proxies = self.proxies();
        let token_names = self.token_names();
        let identity = self.identity(&token_names);
        let folder = self.lasting_folder(start.as_ref());
        let providers = self.logins(&folder);
        let (issuers, keys) = self.issuers(identity.as_ref(), &folder);
        let issuers = self.accept_certificates(issuers, tls.as_deref());
        let keys = keys.and(providers.iter().map(|provider| Arc::clone(provider.keys())));
        let identity = identity.map(|policy| Policy { providers, ..policy });
        let counters = self.limits();
        let upstreams = self.upstreams(start.as_ref().map_or(1, |start| start.workers));
        let (routes, identity_names) = self.routes(&issuers, &counters, &upstreams);
        let owned = OwnedNames::new(&identity_names);
        let askers = self.askers(identity_names);
        let identity = identity.map(|policy| self.sharing_its_login(policy, &routes));
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
            proxy_protocol: self.proxy_protocol(),
            askers,
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

    /// Returns a checked value, or reports its problem.
    fn ok_or_report<T>(&mut self, checked: Result<T, Problem>) -> Option<T> {
        checked.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// Records a file that is about to be read, so that a watch sees it change.
    fn named_file(&mut self, path: PathBuf) -> PathBuf {
        self.files.push((path.clone(), FileVersion::current(&path)));
        path
    }
}
