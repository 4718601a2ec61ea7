//! `[server]`, `[admin]`, `[log]` and `[limit.*]`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::{Compiler, ConnectionLimits, StartSettings};
use crate::config::Problem;
use crate::config::file::Text;
use crate::config::value::{self, OneOrMany, SecretRef};
use crate::gateway::client::{ForwardingHeader, TrustedProxies};
use crate::gateway::scheme::Scheme;
use crate::gateway::token_names::{DOMAIN_COOKIE, OwnOrigin, TokenNames};
use crate::limit::{Count, KeyKind, Limit, Settings};
use crate::store::StoreSettings;
use crate::telemetry::log::Format;
use crate::token::CacheBounds;

/// The default of `max_connections`.
pub const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

const DAY: Duration = Duration::from_hours(24);

impl Compiler<'_> {
    pub(super) fn start(&mut self) -> Option<StartSettings> {
        let file = self.file;
        let listen = match &file.server.listen {
            None => Some(vec![([127, 0, 0, 1], 8080).into()]),
            Some(listen) => self.listen(listen),
        };
        let admin = match &file.admin.listen {
            None => Some(([127, 0, 0, 1], 9901).into()),
            Some(text) => self
                .ok_or_report(value::listen(text))
                .and_then(|addresses| addresses.first().copied()),
        };
        let verify = self.verify_addresses();
        let redirect = match &file.server.redirect_http {
            None => Some(Vec::new()),
            Some(text) => self.ok_or_report(value::listen(text)),
        };
        let workers = match &file.server.workers {
            None => Some(0),
            Some(workers) => self.number(workers, 0, 1024),
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let log_format = match &file.log.format {
            None => Some(Format::Json),
            Some(text) => self.ok_or_report(value::choice(
                text,
                &[("json", Format::Json), ("text", Format::Text)],
            )),
        };
        let log_level = match &file.log.level {
            None => Some(tracing::Level::INFO),
            Some(text) => self.ok_or_report(value::choice(
                text,
                &[
                    ("error", tracing::Level::ERROR),
                    ("warn", tracing::Level::WARN),
                    ("info", tracing::Level::INFO),
                    ("debug", tracing::Level::DEBUG),
                    ("trace", tracing::Level::TRACE),
                ],
            )),
        };
        let workers = workers.map(|workers| if workers == 0 { cores() } else { workers });
        let (store, redis) = (self.store(), self.redis());
        let start = StartSettings {
            listen: listen?,
            admin: admin?,
            verify: verify?,
            redirect: redirect?,
            workers: workers?,
            log_format: log_format?,
            log_level: log_level?,
            store: store?,
            redis: redis?,
            has_identity: file.identity.is_some(),
        };
        self.refuse_shared_addresses(&start);
        self.refuse_changed_start(&start);
        Some(start)
    }

    /// Refuses one address for two listeners. Where the system chooses the port, it chooses two.
    fn refuse_shared_addresses(&mut self, start: &StartSettings) {
        let [listen, admin, verify, redirect] =
            self.changed_listeners(start, start).map(|(_, key, span)| (key, span));
        let listeners = [
            (&start.listen[..], listen),
            (std::slice::from_ref(&start.admin), admin),
            (&start.verify, verify),
            (&start.redirect, redirect),
        ];
        for (at, (addresses, (key, span))) in listeners.iter().enumerate() {
            for (others, (other, elsewhere)) in &listeners[..at] {
                let shared =
                    |address: &&SocketAddr| address.port() != 0 && others.contains(address);
                let Some(address) = addresses.iter().find(shared) else { continue };
                let message = format!("`{key}` and `{other}` have the same address, {address}");
                // One of the two may be a default.
                let (here, there) =
                    if span.is_empty() { (elsewhere, span) } else { (span, elsewhere) };
                let mut problem = Problem::error(here.clone(), message);
                if !there.is_empty() {
                    problem = problem.related(there.clone(), "the other");
                }
                self.error(problem.help("give each listener an address or a port of its own"));
            }
        }
    }

    fn listen(&mut self, listen: &Spanned<OneOrMany>) -> Option<Vec<SocketAddr>> {
        let items = &listen.get_ref().0;
        if items.is_empty() {
            self.error(
                Problem::error(listen.span(), "there is no address to listen on")
                    .help("write `listen = \"127.0.0.1:8080\"`"),
            );
        }
        let mut addresses = Vec::new();
        for text in items {
            for address in self.ok_or_report(value::listen(text)).into_iter().flatten() {
                if addresses.contains(&address) && address.port() != 0 {
                    self.error(
                        Problem::error(text.span(), format!("`{address}` is listed twice"))
                            .help("list each address once"),
                    );
                }
                addresses.push(address);
            }
        }
        (addresses.len() >= items.len() && !addresses.is_empty()).then_some(addresses)
    }

    /// Sockets, threads and the log are set up only at start.
    fn refuse_changed_start(&mut self, start: &StartSettings) {
        let Some(previous) = self.previous.map(|previous| &previous.start) else { return };
        let file = self.file;
        let span_of = |text: &Option<Text>| text.as_ref().map_or(0..0, Spanned::span);
        let store =
            |store: &Option<StoreSettings>| store.as_ref().map(|store| store.database.clone());
        let key = |store: &Option<StoreSettings>| store.as_ref().map(|store| store.key.clone());
        let poll = |store: &Option<StoreSettings>| store.as_ref().map(|store| store.poll);
        let section = file.store.as_ref();
        let written = section.map(Spanned::get_ref);
        let span_in = |value: Option<&Spanned<SecretRef>>| {
            value.map(Spanned::span).or(section.map(Spanned::span)).unwrap_or(0..0)
        };
        let changes: [(bool, &str, Range<usize>); 8] = [
            (
                start.workers != previous.workers,
                "server.workers",
                file.server.workers.as_ref().map_or(0..0, Spanned::span),
            ),
            (start.log_format != previous.log_format, "log.format", span_of(&file.log.format)),
            (start.log_level != previous.log_level, "log.level", span_of(&file.log.level)),
            (
                store(&start.store) != store(&previous.store),
                "store.database",
                span_in(written.and_then(|written| written.database.as_ref())),
            ),
            (
                poll(&start.store) != poll(&previous.store),
                "store.poll",
                written
                    .and_then(|written| written.poll.as_ref())
                    .map_or(section.map_or(0..0, Spanned::span), Spanned::span),
            ),
            (
                start.has_identity != previous.has_identity,
                "identity",
                file.identity.as_ref().map_or(0..0, Spanned::span),
            ),
            (
                key(&start.store) != key(&previous.store),
                "store.key",
                span_in(written.and_then(|written| written.key.as_ref())),
            ),
            (
                start.redis != previous.redis,
                "store.redis (or store.sessions)",
                span_in(written.and_then(|written| written.redis.as_ref())),
            ),
        ];
        let changes = self.changed_listeners(start, previous).into_iter().chain(changes);
        for (_, key, span) in changes.filter(|(changed, ..)| *changed) {
            self.error(
                Problem::error(
                    span,
                    format!("`{key}` is read at start and cannot be changed by a reload"),
                )
                .help("restart the gateway to change it, or restore the old value"),
            );
        }
    }

    /// Of each listener: whether its addresses have changed, its key, and where that is.
    fn changed_listeners(
        &self,
        start: &StartSettings,
        previous: &StartSettings,
    ) -> [(bool, &'static str, Range<usize>); 4] {
        let file = self.file;
        let span_of = |text: &Option<Text>| text.as_ref().map_or(0..0, Spanned::span);
        [
            (
                start.listen != previous.listen,
                "server.listen",
                file.server.listen.as_ref().map_or(0..0, Spanned::span),
            ),
            (start.admin != previous.admin, "admin.listen", span_of(&file.admin.listen)),
            (
                start.verify != previous.verify,
                "verify.listen",
                file.verify.as_ref().map_or(0..0, |section| {
                    section.get_ref().listen.as_ref().map_or(section.span(), Spanned::span)
                }),
            ),
            (
                start.redirect != previous.redirect,
                "server.redirect_http",
                span_of(&file.server.redirect_http),
            ),
        ]
    }

    pub(super) fn connection_limits(&mut self) -> ConnectionLimits {
        let limits = &self.file.server.limits;
        let max_connections = limits
            .max_connections
            .as_ref()
            .and_then(|number| self.number(number, 1, 1_000_000))
            .unwrap_or(DEFAULT_MAX_CONNECTIONS);
        let max_connections_per_client = limits
            .max_connections_per_client
            .as_ref()
            .and_then(|number| self.number(number, 0, 1_000_000))
            .unwrap_or(0);
        let max_headers = limits
            .max_headers
            .as_ref()
            .and_then(|number| self.number(number, 10, 10_000))
            .unwrap_or(100);
        let max_header_bytes = limits.max_header_bytes.as_ref().and_then(|text| {
            let bytes = self.ok_or_report(value::size(text))?;
            if (8 * 1024..=1024 * 1024).contains(&bytes) {
                return usize::try_from(bytes).ok();
            }
            self.error(
                Problem::error(text.span(), "a request head must be allowed between 8KiB and 1MiB")
                    .help("the default is \"32KiB\""),
            );
            None
        });
        ConnectionLimits {
            max_connections,
            max_connections_per_client,
            header_timeout: self.timeout(limits.header_timeout.as_ref(), "10s"),
            idle_timeout: self.timeout(limits.idle_timeout.as_ref(), "75s"),
            max_header_bytes: max_header_bytes.unwrap_or(32 * 1024),
            max_headers,
        }
    }

    pub(super) fn token_cache(&mut self) -> CacheBounds {
        let written = &self.file.token_cache;
        let entries = written
            .max_entries
            .as_ref()
            .and_then(|number| self.number(number, 0, 100_000_000))
            .unwrap_or(100_000);
        let bytes = written
            .max_bytes
            .as_ref()
            .and_then(|text| self.ok_or_report(value::size(text)))
            .unwrap_or(64 << 20);
        CacheBounds { entries, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }
    }

    pub(super) fn max_body(&mut self) -> u64 {
        match &self.file.server.limits.max_body {
            None => u64::MAX,
            Some(text) if text.get_ref() == "unlimited" => u64::MAX,
            Some(text) => self.ok_or_report(value::size(text)).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn proxies(&mut self) -> TrustedProxies {
        let server = &self.file.server;
        let mut networks = Vec::new();
        for text in &server.trusted_proxies {
            let Some(network) = self.ok_or_report(value::network(text)) else { continue };
            if network.prefix_len() == 0 && !server.insecure_trust_every_proxy {
                self.error(
                    Problem::error(text.span(), "every peer would be trusted to name the client")
                        .help("name the networks of your load balancers, or set `insecure_trust_every_proxy = true`"),
                );
            }
            networks.push(network);
        }
        if server.insecure_trust_every_proxy {
            self.weakened
                .push("server.insecure_trust_every_proxy: any peer may name the client".to_owned());
        }
        let words = [
            ("x-forwarded-for", ForwardingHeader::XForwardedFor),
            ("forwarded", ForwardingHeader::Forwarded),
        ];
        let header = server
            .forwarded
            .as_ref()
            .and_then(|text| self.ok_or_report(value::choice(text, &words)));
        TrustedProxies::new(networks, header.unwrap_or_default())
    }

    /// Whether trusted proxies must send a PROXY header.
    pub(super) fn proxy_protocol(&mut self) -> bool {
        let server = &self.file.server;
        let Some(written) = server.proxy_protocol.as_ref().filter(|written| *written.get_ref())
        else {
            return false;
        };
        if server.trusted_proxies.is_empty() {
            self.error(
                Problem::error(written.span(), "no address is trusted to send a PROXY header")
                    .help("name the addresses of your load balancers in `trusted_proxies`"),
            );
        }
        true
    }

    pub(super) fn token_names(&mut self) -> TokenNames {
        let (server, mut names) = (&self.file.server, TokenNames::default());
        names.domain = self.cookie_domain();
        if names.domain.is_some() {
            names.name_cookies(DOMAIN_COOKIE);
        }
        if let Some(cookie) = self.token_name(server.token_cookie.as_ref(), "cookie") {
            names.name_cookies(&cookie);
        }
        if let Some(query) = self.token_name(server.token_query.as_ref(), "query parameter") {
            names.query = query;
        }
        names.issuer = self.own_origin();
        names
    }

    /// The name of a cookie or query parameter that the file gives.
    fn token_name(&mut self, written: Option<&Text>, what: &str) -> Option<String> {
        let name = written?.get_ref();
        let is_token = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte));
        if is_token {
            return Some(name.clone());
        }
        let message = format!("`{}` is not a valid name for a {what}", name.escape_debug());
        self.error(
            Problem::error(written?.span(), message)
                .help("use letters, digits, `-`, `_`, `.` and `~`"),
        );
        None
    }

    /// The origin of our own pages: the scheme and authority of `[identity] issuer`.
    fn own_origin(&self) -> Option<OwnOrigin> {
        let issuer = self.file.identity.as_ref()?.get_ref().issuer.as_ref()?.get_ref();
        let (scheme, rest) = issuer.split_once("://")?;
        let scheme = match scheme {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return None,
        };
        Some(OwnOrigin { scheme, authority: rest.split('/').next().unwrap_or_default().into() })
    }

    pub(super) fn limits(&mut self) -> BTreeMap<String, Arc<Limit>> {
        let mut limits = BTreeMap::new();
        for (name, written) in &self.file.limit {
            let Some(settings) = self.limit(written) else { continue };
            let previous = self.previous.into_iter().flat_map(|previous| &previous.counters);
            let kept = previous
                .into_iter()
                .find(|limit| limit.name() == name.get_ref() && *limit.settings() == settings);
            // An unchanged limit keeps its counters: a reload must not give an attacker new
            // attempts.
            let limit =
                kept.cloned().unwrap_or_else(|| Arc::new(Limit::new(name.get_ref(), settings)));
            // The series starts at zero, so that an alert on its rate sees the first refusal.
            self.metrics.rate_limited(name.get_ref());
            limits.insert(name.get_ref().clone(), limit);
        }
        limits
    }

    fn limit(&mut self, written: &crate::config::file::Limit) -> Option<Settings> {
        let requests = self.number(&written.requests, 1, 1_000_000_000);
        let per =
            self.ok_or_report(value::duration(&written.per, Duration::from_secs(1)..=DAY * 31));
        let key = match &written.key {
            None => Some(KeyKind::Client),
            Some(text) => {
                let words = [
                    ("client", KeyKind::Client),
                    ("subject", KeyKind::Subject),
                    ("client+account", KeyKind::ClientAndAccount),
                ];
                self.ok_or_report(value::choice(text, &words))
            }
        };
        let count = match &written.count {
            None => Some(Count::All),
            Some(text) => self.ok_or_report(value::choice(
                text,
                &[("all", Count::All), ("failures", Count::Failures)],
            )),
        };
        let ipv6_prefix =
            written.ipv6_prefix.as_ref().map_or(Some(64), |number| self.number(number, 1, 128));
        let max_clients = written
            .max_clients
            .as_ref()
            .map_or(Some(100_000), |number| self.number(number, 1_000, 100_000_000));
        let shared = self.is_shared(written)?;
        Some(Settings {
            requests: NonZeroU32::new(u32::try_from(requests?).ok()?)?,
            per: per?,
            ipv6_prefix: u8::try_from(ipv6_prefix?).ok()?,
            count: count?,
            key: key?,
            observe: written.observe,
            max_clients: max_clients?,
            shared,
        })
    }

    /// Whether all gateways on the store have one budget for this limit.
    fn is_shared(&mut self, written: &crate::config::file::Limit) -> Option<bool> {
        let redis = self.file.store.as_ref().is_some_and(|store| store.get_ref().redis.is_some());
        let has_store = redis || self.shares_database;
        let Some(text) = &written.store else { return Some(has_store) };
        let shared =
            self.ok_or_report(value::choice(text, &[("shared", true), ("local", false)]))?;
        if shared && !has_store {
            self.error(
                Problem::error(text.span(), "a shared limit needs PostgreSQL or Redis")
                    .help("name a PostgreSQL database in `[store] database` or a Redis server in `[store] redis`, or remove `store`: the limit then holds for this process"),
            );
            return None;
        }
        Some(shared)
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, number: &Spanned<i64>, least: i64, most: i64) -> Option<usize> {
        if (least..=most).contains(number.get_ref()) {
            return usize::try_from(*number.get_ref()).ok();
        }
        let message = format!("{} is out of range", number.get_ref());
        self.error(
            Problem::error(number.span(), message)
                .help(format!("write a whole number from {least} to {most}")),
        );
        None
    }

    /// A timeout. Zero would expire at once.
    pub(super) fn timeout(&mut self, text: Option<&Text>, default: &str) -> Duration {
        let timeout = self.duration(text, default);
        if let (Some(text), true) = (text, timeout.is_zero()) {
            self.error(
                Problem::error(text.span(), "a timeout of zero would fail every request")
                    .help(format!("the default is \"{default}\"")),
            );
        }
        timeout
    }

    /// A duration, or its default. Zero is allowed.
    pub(super) fn duration(&mut self, text: Option<&Text>, default: &str) -> Duration {
        let parsed =
            text.and_then(|text| self.ok_or_report(value::duration(text, Duration::ZERO..=DAY)));
        parsed.or_else(|| humantime::parse_duration(default).ok()).unwrap_or_default()
    }
}
