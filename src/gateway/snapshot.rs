//! A snapshot: everything that one configuration file means, checked and ready to run.
//!
//! [`crate::compile`] makes it; nothing changes it afterwards.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::client::TrustedProxies;
use super::headers::HeaderRules;
use super::logout::LogoutPaths;
use super::route::RouteTable;
use super::upstream::Upstream;
use crate::config::FileVersion;
use crate::config::value::SecretBytes;
use crate::identity::Policy;
use crate::keys::Keys;
use crate::limit::Limit;
use crate::store::StoreSettings;
use crate::telemetry::log::Format;
use crate::token::{CacheBounds, Issuers};

/// A compiled configuration file.
#[derive(Debug)]
pub struct Snapshot {
    /// What is read at start only.
    pub start: StartSettings,
    /// What one client may ask of the gateway.
    pub limits: ConnectionLimits,
    /// Certificate and key of the public listener; `None`: cleartext.
    pub tls: Option<Arc<Tls>>,
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
    pub files: Vec<(PathBuf, Option<FileVersion>)>,
    /// The settings that weaken a guarantee, in words.
    pub weakened: Vec<String>,
}

/// What is read at start only: a reload that changes one of these is refused.
#[derive(Clone, Debug)]
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
    /// Of them, those of one client; 0: all.
    pub max_connections_per_client: usize,
    /// From the first byte of a request head to its last.
    pub header_timeout: Duration,
    /// Keep-alive between requests.
    pub idle_timeout: Duration,
    /// Bytes of a request head, 8 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// Fields of a request head.
    pub max_headers: usize,
}

/// The public listener's certificate: the ready configuration, and what it was made from.
#[derive(Debug)]
pub struct Tls {
    /// For the acceptor.
    pub config: Arc<rustls::ServerConfig>,
    /// Its PEM text.
    pub certificate: Vec<u8>,
    /// SHA-256 of the private key.
    pub key_digest: [u8; 32],
}
