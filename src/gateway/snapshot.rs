//! A snapshot: everything that one configuration file specifies, checked and ready to run.
//!
//! [`crate::compile`] makes it; it never changes afterwards.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Door, TrustedProxies};
use super::dialect::Askers;
use super::headers::HeaderRules;
use super::logout::LogoutPaths;
use super::route::RouteTable;
use super::upstream::Upstream;
use crate::config::FileVersion;
use crate::config::value::SecretBytes;
use crate::identity::Policy;
use crate::keys::Keys;
use crate::limit::Limit;
use crate::redis::RedisSettings;
use crate::store::StoreSettings;
use crate::telemetry::log::Format;
use crate::tls::CertifiedPair;
use crate::token::{CacheBounds, Issuers};

/// A compiled configuration file.
#[derive(Debug)]
pub struct Snapshot {
    /// Settings that are read only at start.
    pub start: StartSettings,
    /// Limits for connections and request heads.
    pub limits: ConnectionLimits,
    /// The certificate and key of the public listener; `None`: cleartext.
    pub tls: Option<Arc<Tls>>,
    /// Accept HTTP/2 with prior knowledge on cleartext.
    pub h2c: bool,
    /// The trusted proxies.
    pub proxies: TrustedProxies,
    /// Whether trusted proxies must start each connection with a PROXY header.
    pub proxy_protocol: bool,
    /// The proxies that may ask the `[verify]` listener; `None`: there is no such listener.
    pub askers: Option<Askers>,
    /// The issuers whose tokens are accepted.
    pub issuers: Arc<Issuers>,
    /// The keys of the issuers, kept up to date.
    pub keys: Keys,
    /// The number of verified tokens that all workers together cache.
    pub token_cache: CacheBounds,
    /// The settings of the built-in issuer; `None`: there is none.
    pub identity: Option<Arc<Policy>>,
    /// The issuers whose logouts are accepted, and their paths.
    pub logouts: LogoutPaths,
    /// The route table.
    pub routes: RouteTable,
    /// Rules for every outgoing request.
    pub rules: HeaderRules,
    /// All upstreams, each with its connections.
    pub upstreams: Vec<Arc<Upstream>>,
    /// All limits, each with its counters.
    pub counters: Vec<Arc<Limit>>,
    /// The longest request body, in bytes.
    pub max_body: u64,
    /// The longest pause between bytes of a request body.
    pub body_idle_timeout: Duration,
    /// The token required to change state through the second listener; `None`: nobody can change
    /// it.
    pub admin_token: Option<SecretBytes>,
    /// Log one line per request.
    pub access_log: bool,
    /// How long `/readyz` returns 503 while requests are still served.
    pub drain_delay: Duration,
    /// How long exchanges and tunnels may then take to finish.
    pub drain_timeout: Duration,
    /// Reload when one of `files` changes.
    pub watch: bool,
    /// The configuration file and every file that it names, each with the version that was read.
    pub files: Vec<(PathBuf, Option<FileVersion>)>,
    /// Descriptions of the settings that weaken a guarantee.
    pub weakened: Vec<String>,
}

impl Snapshot {
    /// Whether a peer of this listener connects on behalf of many clients.
    pub fn trusts(&self, door: Door, peer: IpAddr) -> bool {
        match door {
            Door::Public | Door::Redirect => self.proxies.trusts(peer),
            Door::Verify => self.askers.as_ref().is_some_and(|askers| askers.trust(peer)),
        }
    }
}

/// Settings that are read only at start: a reload that changes one of them is refused.
#[derive(Clone, Debug)]
pub struct StartSettings {
    /// The addresses of the public listener.
    pub listen: Vec<SocketAddr>,
    /// The address of the second listener.
    pub admin: SocketAddr,
    /// The addresses of the `[verify]` listener; empty: there is none.
    pub verify: Vec<SocketAddr>,
    /// The addresses of the listener that redirects to https.
    pub redirect: Vec<SocketAddr>,
    /// The number of worker threads, at least 1.
    pub workers: usize,
    /// The format of log lines.
    pub log_format: Format,
    /// The least severe level that is logged.
    pub log_level: tracing::Level,
    /// The store, which outlives the process; `None`: nothing does.
    pub store: Option<StoreSettings>,
    /// What several gateways share besides the store; `None`: there is no Redis.
    pub redis: Option<RedisSettings>,
    /// Whether there is a built-in issuer.
    pub has_identity: bool,
}

/// Limits for connections and request heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Concurrent connections.
    pub max_connections: usize,
    /// Concurrent connections of one client; 0: all.
    pub max_connections_per_client: usize,
    /// The time from the first byte of a request head to its last.
    pub header_timeout: Duration,
    /// The keep-alive time between requests.
    pub idle_timeout: Duration,
    /// The size of a request head in bytes, 8 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// The number of fields in a request head.
    pub max_headers: usize,
}

/// TLS on the public listener: the ready configuration, and its sources.
#[derive(Debug)]
pub struct Tls {
    /// The configuration for the acceptor.
    pub config: Arc<rustls::ServerConfig>,
    /// What it was made from.
    pub source: TlsSource,
    /// The certificates, in the order of the file.
    pub certificates: Vec<ServedCertificate>,
}

impl Tls {
    /// The digest of the authorities of client certificates, if clients may show one.
    pub fn authority(&self) -> Option<&[u8; 32]> {
        self.source.clients.as_ref().map(|clients| &clients.digest)
    }
}

/// The files that a TLS configuration was made from.
#[derive(Debug, PartialEq, Eq)]
pub struct TlsSource {
    /// Each certificate as PEM, with the SHA-256 of its private key.
    pub pairs: Vec<(Vec<u8>, [u8; 32])>,
    /// Who issues the certificates of clients.
    pub clients: Option<ClientAuthority>,
}

/// Who issues the certificates of clients.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientAuthority {
    /// Their certificates as PEM.
    pub pem: Vec<u8>,
    /// The SHA-256 of that.
    pub digest: [u8; 32],
    /// Whether every client must show a certificate.
    pub required: bool,
}

/// A certificate that the gateway serves.
#[derive(Clone, Debug)]
pub struct ServedCertificate {
    /// Its first DNS name, otherwise another of its names.
    pub name: String,
    /// Its last second, since 1970.
    pub expires_at: u64,
}

impl ServedCertificate {
    /// What is shown of this pair.
    pub fn new(pair: &CertifiedPair) -> Self {
        let facts = pair.facts();
        let name = facts.dns_names.first().map_or(facts.holder(), String::as_str);
        Self { name: name.to_owned(), expires_at: facts.not_after }
    }
}
