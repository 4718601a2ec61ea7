//! The serde mirror of `gateway.toml`: what is written, not what runs.
//!
//! Every value that compiling may reject is [`Spanned`], so that a problem can point at it.
//! Durations, sizes, networks and words of a choice are strings here;
//! [`Snapshot::compile`](crate::gateway::Snapshot::compile) checks them, so that all problems are
//! reported together. The doc comments are the reference that `portcullis schema` prints for
//! editors.
//!
//! Do not use `untagged`, internally tagged or `flatten` here: serde buffers those, which loses the
//! spans.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::identity::Identity;
use super::value::{ClaimName, OneOrMany, Scalar, SecretRef, TextOrSecret};
use super::verify::Verify;

/// A string with its place in the file.
pub type Text = Spanned<String>;

/// The whole file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The public listener.
    pub server: Server,
    /// The second listener: health, readiness and metrics.
    pub admin: Admin,
    /// The listener that other proxies ask before they forward a request. Absent: none.
    #[schemars(with = "Option<Verify>")]
    pub verify: Option<Spanned<Verify>>,
    /// What is written to standard output.
    pub log: Log,
    /// The data that outlives the process: accounts, sessions, signing keys, revocations. Absent:
    /// no store, unless there is `[identity]`.
    #[schemars(with = "Option<Store>")]
    pub store: Option<Spanned<Store>>,
    /// The accepted token issuers, by a name of your choice.
    #[schemars(with = "BTreeMap<String, Issuer>")]
    pub issuer: BTreeMap<Text, Issuer>,
    /// The cache of verified tokens.
    pub token_cache: TokenCache,
    /// The built-in issuer. Absent: none.
    #[schemars(with = "Option<Identity>")]
    pub identity: Option<Spanned<Identity>>,
    /// Rate limits, by a name that routes refer to.
    #[schemars(with = "BTreeMap<String, Limit>")]
    pub limit: BTreeMap<Text, Limit>,
    /// The applications behind the gateway, by a name that routes refer to.
    #[schemars(with = "BTreeMap<String, Upstream>")]
    pub upstream: BTreeMap<Text, Upstream>,
    /// Header = claim: the information about the caller that upstreams receive. Absent: the five
    /// defaults.
    #[schemars(with = "Option<BTreeMap<String, ClaimName>>")]
    pub identity_headers: Option<BTreeMap<Text, Spanned<ClaimName>>>,
    /// Requests and the expected decision for each: run by `check` and before every start and
    /// reload.
    #[schemars(with = "Vec<Test>")]
    pub test: Vec<Spanned<Test>>,
    /// Which requests go where, and who may make them. The order does not matter.
    #[schemars(with = "Vec<Route>")]
    pub route: Vec<Spanned<Route>>,
}

impl File {
    /// The names of all issuers: of the sections, and of the built-in one.
    pub fn issuer_names(&self) -> Vec<&str> {
        let built_in = self.identity.as_ref().map(|_| super::identity::NAME);
        self.issuer.keys().map(|name| name.get_ref().as_str()).chain(built_in).collect()
    }
}

/// `[server]`: the public listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port, or a list of them; `":8080"` means every address. Default
    /// `"127.0.0.1:8080"`. Read at start.
    #[schemars(with = "Option<OneOrMany>")]
    pub listen: Option<Spanned<OneOrMany>>,
    /// Worker threads. Default 0: one per core. Read at start.
    #[schemars(with = "Option<u32>")]
    pub workers: Option<Spanned<i64>>,
    /// CIDR blocks of the proxies whose forwarding header is trusted. Default: none.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<Text>,
    /// Accept a block in `trusted_proxies` that covers every address.
    pub insecure_trust_every_proxy: bool,
    /// The forwarding header that trusted proxies set: `"x-forwarded-for"` (default) or
    /// `"forwarded"`.
    #[schemars(with = "Option<String>")]
    pub forwarded: Option<Text>,
    /// Whether trusted proxies must start each connection with a header of the PROXY protocol,
    /// version 1 or 2, which names the client. Others must not. Default false.
    #[schemars(with = "bool")]
    pub proxy_protocol: Option<Spanned<bool>>,
    /// Address and port of a second listener, without TLS, that redirects every request to the same
    /// target on https. Absent: none. Read at start.
    #[schemars(with = "Option<String>")]
    pub redirect_http: Option<Text>,
    /// HTTP/2 with prior knowledge on cleartext connections. Default true.
    pub h2c: Option<bool>,
    /// How long `/readyz` returns 503 after SIGTERM while requests are still served. Default
    /// `"5s"`.
    #[schemars(with = "Option<String>")]
    pub drain_delay: Option<Text>,
    /// How long exchanges and tunnels may then take to finish. Default `"30s"`.
    #[schemars(with = "Option<String>")]
    pub drain_timeout: Option<Text>,
    /// Also reload when the file, or a file that it names, changes. Default false.
    pub watch: bool,
    /// The name of the cookie that may carry a token. Default `"__Host-portcullis"`.
    #[schemars(with = "Option<String>")]
    pub token_cookie: Option<Text>,
    /// The name of the query parameter that may carry a token. Default `"access_token"`.
    #[schemars(with = "Option<String>")]
    pub token_query: Option<Text>,
    /// The certificate and key of the public listener. Absent: cleartext.
    #[schemars(with = "Option<ServerTls>")]
    pub tls: Option<Spanned<ServerTls>>,
    /// Limits for clients' connections and requests.
    pub limits: ServerLimits,
}

/// `[server.tls]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTls {
    /// PEM file: the certificate, then its intermediates. For example `"tls.crt"`.
    #[schemars(with = "Option<String>")]
    pub certificate: Option<Text>,
    /// The certificate's private key: `{ file = "tls.key" }` or `{ env = "NAME" }`, PEM.
    #[schemars(with = "Option<SecretRef>")]
    pub private_key: Option<Spanned<SecretRef>>,
    /// More certificates, each with its private key. The name that the client asks for (SNI)
    /// chooses; the first of all is for every other name. Default: none.
    #[schemars(with = "Vec<CertificatePair>")]
    pub certificates: Vec<CertificatePair>,
    /// PEM file with the authorities of client certificates. Absent: clients are not asked for one.
    #[schemars(with = "Option<String>")]
    pub client_ca: Option<Text>,
    /// Whether a client must show a certificate: `"optional"` (default) or `"required"`.
    #[schemars(with = "Option<String>")]
    pub client_certificate: Option<Text>,
}

/// One of `certificates` in `[server.tls]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificatePair {
    /// PEM file: the certificate, then its intermediates. For example `"tls.crt"`.
    #[schemars(with = "String")]
    pub certificate: Text,
    /// The certificate's private key: `{ file = "tls.key" }` or `{ env = "NAME" }`, PEM.
    #[schemars(with = "SecretRef")]
    pub private_key: Spanned<SecretRef>,
}

/// `[server.limits]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerLimits {
    /// The maximum number of connections. Default 10000.
    #[schemars(with = "Option<u32>")]
    pub max_connections: Option<Spanned<i64>>,
    /// The maximum number of connections per client: an IPv4 address or an IPv6 /64 network.
    /// Default 0: no limit.
    #[schemars(with = "Option<u32>")]
    pub max_connections_per_client: Option<Spanned<i64>>,
    /// The maximum time from the first byte of a request head to its last. Default `"10s"`.
    #[schemars(with = "Option<String>")]
    pub header_timeout: Option<Text>,
    /// The maximum idle time of a keep-alive connection between requests. Default `"75s"`.
    #[schemars(with = "Option<String>")]
    pub idle_timeout: Option<Text>,
    /// The maximum size of a request head. Default `"32KiB"`.
    #[schemars(with = "Option<String>")]
    pub max_header_bytes: Option<Text>,
    /// The maximum number of fields in a request head. Default 100.
    #[schemars(with = "Option<u32>")]
    pub max_headers: Option<Spanned<i64>>,
    /// The maximum size of a request body, or `"unlimited"`, the default.
    #[schemars(with = "Option<String>")]
    pub max_body: Option<Text>,
    /// The maximum time between two reads of a request body. Default `"30s"`.
    #[schemars(with = "Option<String>")]
    pub body_idle_timeout: Option<Text>,
}

/// `[token_cache]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenCache {
    /// The maximum number of verified tokens that all workers together remember; 0: none. Default
    /// 100000.
    #[schemars(with = "Option<u32>")]
    pub max_entries: Option<Spanned<i64>>,
    /// The approximate memory that they may take. Default `"64MiB"`.
    #[schemars(with = "Option<String>")]
    pub max_bytes: Option<Text>,
}

/// `[admin]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address and port of `/livez`, `/readyz` and `/metrics`. Default `"127.0.0.1:9901"`. Read at
    /// start.
    #[schemars(with = "Option<String>")]
    pub listen: Option<Text>,
    /// The bearer token that requests must send to change state: `{ file = "admin.token" }` or `{
    /// env = "NAME" }`, at least 16 bytes. Absent: nothing can be changed through this listener.
    #[schemars(with = "Option<SecretRef>")]
    pub token: Option<Spanned<SecretRef>>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `"json"` (default) or `"text"`. Read at start.
    #[schemars(with = "Option<String>")]
    pub format: Option<Text>,
    /// `"error"`, `"warn"`, `"info"` (default), `"debug"` or `"trace"`. Read at start.
    #[schemars(with = "Option<String>")]
    pub level: Option<Text>,
    /// Write one line per request. Default true.
    pub access: Option<bool>,
}

/// `[store]`: the data that outlives the process.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `"sqlite:PATH"`, or `{ env = "DATABASE_URL" }` with a `postgres://` URL, for several
    /// replicas. Default `"sqlite:portcullis.db"`. Read at start.
    #[schemars(with = "Option<SecretRef>")]
    pub database: Option<Spanned<SecretRef>>,
    /// The key that encrypts signing keys and the refresh key in the database; created at the first
    /// start, mode 0600. The same on every replica. Default `{ file = "portcullis.key" }`. Read at
    /// start.
    #[schemars(with = "Option<SecretRef>")]
    pub key: Option<Spanned<SecretRef>>,
    /// How often revocations by other processes are read: 10ms to 1s. Default `"50ms"`. Read at
    /// start.
    #[schemars(with = "Option<String>")]
    pub poll: Option<Text>,
    /// Connect to PostgreSQL on another machine without checking its certificate
    /// (`sslmode=verify-full`).
    pub insecure_database_tls: bool,
    /// Accept a password in `database` or `redis` that is written in the configuration file itself.
    pub insecure_inline_secret: bool,
    /// Keep prepared statements on connections to PostgreSQL. False behind a pooler in transaction
    /// mode, such as PgBouncer before 1.21. Default true. Read at start.
    pub statement_cache: Option<bool>,
    /// The Redis or Valkey server that several gateways share: `{ env = "REDIS_URL" }` or `{ file =
    /// "redis.url" }` with a URL `redis://` or, for TLS, `rediss://`. Absent: none. Read at start.
    #[schemars(with = "Option<SecretRef>")]
    pub redis: Option<Spanned<SecretRef>>,
    /// Where the sessions of the built-in issuer are: `"database"` (default) or `"redis"`. Read at
    /// start.
    #[schemars(with = "Option<String>")]
    pub sessions: Option<Text>,
}

/// `[issuer.NAME]`: an accepted token issuer.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Issuer {
    /// The `iss` of its tokens, compared byte for byte.
    #[schemars(with = "Option<String>")]
    pub issuer: Option<Text>,
    /// Accept tokens without `iss`, and no others. Only one section may have this, and it must not
    /// have `issuer`.
    #[schemars(with = "bool")]
    pub insecure_any_issuer: Option<Spanned<bool>>,
    /// The accepted audiences: a token must name at least one.
    #[schemars(with = "Option<Vec<String>>")]
    pub audience: Option<Spanned<Vec<Text>>>,
    /// Accept tokens without `aud`, or with any `aud`.
    #[schemars(with = "bool")]
    pub insecure_any_audience: Option<Spanned<bool>>,
    /// Signature algorithms: HS256 HS384 HS512 RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384
    /// EdDSA.
    #[schemars(with = "Option<Vec<String>>")]
    pub algorithms: Option<Spanned<Vec<Text>>>,
    /// The HMAC secret.
    #[schemars(with = "Option<SecretRef>")]
    pub secret: Option<Spanned<SecretRef>>,
    /// Accept a secret that is shorter than the hash (RFC 7518 §3.2).
    pub insecure_short_secret: bool,
    /// Accept a secret that is written in the configuration file itself.
    pub insecure_inline_secret: bool,
    /// PEM files with public keys.
    #[schemars(with = "Option<Vec<String>>")]
    pub public_keys: Option<Spanned<Vec<Text>>>,
    /// A file with a JWK Set (RFC 7517).
    #[schemars(with = "Option<String>")]
    pub jwks_file: Option<Text>,
    /// The URL of a JWK Set: `https://`, or `http://` on this machine.
    #[schemars(with = "Option<String>")]
    pub jwks_url: Option<Text>,
    /// Fetch the JWK Set from the `jwks_uri` in the metadata of `issuer` (OpenID Connect Discovery,
    /// RFC 8414). Default false.
    #[schemars(with = "Option<bool>")]
    pub discovery: Option<Spanned<bool>>,
    /// PEM file with the certificates that are trusted when keys are fetched. Default: the
    /// system's.
    #[schemars(with = "Option<String>")]
    pub ca: Option<Text>,
    /// Also fetch keys over `http://` from other machines.
    #[schemars(with = "bool")]
    pub insecure_http_keys: Option<Spanned<bool>>,
    /// The claim with the roles. Default `"roles"`.
    #[schemars(with = "Option<ClaimName>")]
    pub roles: Option<Spanned<ClaimName>>,
    /// The claim with the subject. Default `"sub"`.
    #[schemars(with = "Option<ClaimName>")]
    pub subject: Option<Spanned<ClaimName>>,
    /// The tolerated clock skew, at most `"5m"`. Default `"30s"`.
    #[schemars(with = "Option<String>")]
    pub leeway: Option<Text>,
    /// The maximum `exp - iat`. Default `"24h"`.
    #[schemars(with = "Option<String>")]
    pub max_token_lifetime: Option<Text>,
    /// The maximum time between two fetches of the keys. Default `"5m"`.
    #[schemars(with = "Option<String>")]
    pub jwks_refresh: Option<Text>,
    /// The minimum time between two fetches for a missing key. Default `"10s"`.
    #[schemars(with = "Option<String>")]
    pub jwks_refetch_cooldown: Option<Text>,
    /// How long keys are used after they were fetched if the issuer is unavailable. Default
    /// `"24h"`.
    #[schemars(with = "Option<String>")]
    pub jwks_max_stale: Option<Text>,
    /// The path on the public listener that receives the issuer's logout tokens (OpenID Connect
    /// Back-Channel Logout). Absent: none.
    #[schemars(with = "Option<String>")]
    pub backchannel_logout: Option<Text>,
    /// The names of the keys in `[store] redis` that revoke tokens while they exist: a text with one
    /// of `{jti}`, `{sid}` and `{sub}`, such as `"bl_{jti}"`. Absent: none.
    #[schemars(with = "Option<String>")]
    pub revoked_keys: Option<Text>,
    /// The accepted audiences of logout tokens, that is, the client id. Absent: those of
    /// `audience`.
    #[schemars(with = "Option<Vec<String>>")]
    pub logout_audience: Option<Spanned<Vec<Text>>>,
}

/// `[limit.NAME]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The number of requests allowed in each `per`, initially all at once. For example `5`.
    #[schemars(with = "u32")]
    pub requests: Spanned<i64>,
    /// The time in which they are replenished. For example `"1m"`.
    #[schemars(with = "String")]
    pub per: Text,
    /// What requests are counted by: `"client"` (default), `"subject"`, or `"client+account"` on
    /// routes with `identity`.
    #[schemars(with = "Option<String>")]
    pub key: Option<Text>,
    /// The IPv6 prefix length that identifies a client: 1 to 128, default 64.
    #[schemars(with = "Option<u8>")]
    pub ipv6_prefix: Option<Spanned<i64>>,
    /// Which requests count: `"all"` (default) or `"failures"`: 401, 403 and 429.
    #[schemars(with = "Option<String>")]
    pub count: Option<Text>,
    /// Count and log, refuse nothing. Default false.
    #[serde(default)]
    pub observe: bool,
    /// `"shared"`: one budget for all gateways on the same store; the default where `[store]` has
    /// `redis`. `"local"`: one for this process.
    #[schemars(with = "Option<String>")]
    pub store: Option<Text>,
    /// The maximum number of remembered IPv4 clients, and of IPv6 clients; beyond it, new ones are
    /// counted with their neighbours. Default 100000.
    #[schemars(with = "Option<u32>")]
    pub max_clients: Option<Spanned<i64>>,
}

/// `[upstream.NAME]`: an application behind the gateway.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// The URL: `http://` or `https://`, host and port, without a path; or `unix:` and the path of a
    /// socket.
    #[schemars(with = "Option<String>")]
    pub url: Option<Text>,
    /// `"echo"`: the built-in application for testing.
    #[schemars(with = "Option<String>")]
    pub builtin: Option<Text>,
    /// The `Host` that is sent to the upstream. Default: as received.
    #[schemars(with = "Option<String>")]
    pub host: Option<Text>,
    /// The maximum time to connect, including TLS. Default `"2s"`.
    #[schemars(with = "Option<String>")]
    pub connect_timeout: Option<Text>,
    /// The maximum time from the last byte of the request to the response head. Default `"60s"`.
    #[schemars(with = "Option<String>")]
    pub response_timeout: Option<Text>,
    /// The maximum time between two reads of a response body or tunnel. Default `"5m"`.
    #[schemars(with = "Option<String>")]
    pub idle_timeout: Option<Text>,
    /// How long an unused connection is kept, or less if the application says so in `Keep-Alive`.
    /// Default `"1500ms"`.
    #[schemars(with = "Option<String>")]
    pub keep_idle: Option<Text>,
    /// Whether connections are used again. `true`: also after requests with a body, so the
    /// application must read each body to its end. `false`: one request a connection. Default:
    /// after requests without a body whose method is idempotent.
    #[schemars(with = "bool")]
    pub keep_alive: Option<bool>,
    /// Use HTTP/2: with prior knowledge for `http://` and `unix:`, by ALPN for `https://`. Default
    /// false.
    #[schemars(with = "bool")]
    pub http2: Option<bool>,
    /// The maximum number of requests in flight; more get 503. Default 0: no limit.
    #[schemars(with = "Option<u32>")]
    pub max_requests: Option<Spanned<i64>>,
    /// The maximum time from the beginning of an exchange to the end of its response. Default
    /// `"0s"`: no limit.
    #[schemars(with = "Option<String>")]
    pub total_timeout: Option<Text>,
    /// How the application's certificate is verified, and the certificate that it is shown.
    #[schemars(with = "Option<UpstreamTls>")]
    pub tls: Option<Spanned<UpstreamTls>>,
    /// `"sensitive"` (default), or `"insensitive"` if the application ignores case in paths: the
    /// gateway then does so when it matches routes.
    #[schemars(with = "Option<String>")]
    pub path_case: Option<Text>,
}

/// `tls = { … }` of an upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// PEM file with the trusted certificates. Default: the system's.
    #[schemars(with = "Option<String>")]
    pub ca: Option<Text>,
    /// PEM file: the certificate that the application is shown if it asks, then its intermediates.
    #[schemars(with = "Option<String>")]
    pub certificate: Option<Text>,
    /// That certificate's private key: `{ file = "client.key" }` or `{ env = "NAME" }`, PEM.
    #[schemars(with = "Option<SecretRef>")]
    pub private_key: Option<Spanned<SecretRef>>,
    /// The name that the application is asked for (SNI) and that its certificate must have.
    /// Default: the host of `url`.
    #[schemars(with = "Option<String>")]
    pub server_name: Option<Text>,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// The name in logs and metrics. Default: host and path.
    #[schemars(with = "Option<String>")]
    pub name: Option<Text>,
    /// The host: `"app.example.com"` or `"*.example.com"`. Absent: every host.
    #[schemars(with = "Option<String>")]
    pub host: Option<Text>,
    /// The path: `"/reports"` is exact; `"/reports/*"` is `/reports` and everything below; `{x}` is
    /// one segment. Written in decoded form.
    #[schemars(with = "String")]
    pub path: Option<Text>,
    /// The methods. Absent: all. `GET` includes `HEAD`.
    #[schemars(with = "Option<Vec<String>>")]
    pub methods: Option<Spanned<Vec<Text>>>,
    /// The name of an `[upstream.NAME]`.
    #[schemars(with = "Option<String>")]
    pub upstream: Option<Text>,
    /// Send requests to the built-in issuer instead of an upstream. Only for paths that end in
    /// `/*`. Default false.
    #[schemars(with = "bool")]
    pub identity: Option<Spanned<bool>>,
    /// Instead of an upstream: another proxy forwards the request after it has asked the `[verify]`
    /// listener. Default false.
    #[schemars(with = "bool")]
    pub external: Option<Spanned<bool>>,
    /// Redirect requests instead of forwarding them.
    #[schemars(with = "Option<Redirect>")]
    pub redirect: Option<Spanned<Redirect>>,
    /// Who may access it: `"authenticated"` (default), `"optional"`, `"public"`, or `"certificate"`:
    /// callers with a client certificate.
    #[schemars(with = "Option<String>")]
    pub access: Option<Text>,
    /// The caller must have at least one of these roles.
    #[schemars(with = "Option<Vec<String>>")]
    pub roles: Option<Spanned<Vec<Text>>>,
    /// The caller must have all of these roles.
    #[schemars(with = "Option<Vec<String>>")]
    pub all_roles: Option<Spanned<Vec<Text>>>,
    /// The caller must have all of these scopes, from `scope` or `scp`.
    #[schemars(with = "Option<Vec<String>>")]
    pub scopes: Option<Spanned<Vec<Text>>>,
    /// Claim = the accepted values, of which the claim must have one. A dotted name is a path.
    #[schemars(with = "Option<BTreeMap<String, Vec<Scalar>>>")]
    pub claims: Option<Spanned<BTreeMap<Text, Spanned<Vec<Scalar>>>>>,
    /// Only accept callers of these issuers.
    #[schemars(with = "Option<Vec<String>>")]
    pub issuers: Option<Spanned<Vec<Text>>>,
    /// Only accept callers who logged in this way: the NAME of an `[identity.login.NAME]`, or
    /// `"password"`.
    #[schemars(with = "Option<Vec<String>>")]
    pub login: Option<Spanned<Vec<Text>>>,
    /// Only accept callers who proved who they are in one of these ways (`acr`, RFC 9470). People are
    /// led to log in again. A password is `"pwd"`, a password and a code `"mfa"`.
    #[schemars(with = "Option<Vec<String>>")]
    pub acr: Option<Spanned<Vec<Text>>>,
    /// How long ago the caller may have proved who they are (`auth_time`). People are led to log in
    /// again.
    #[schemars(with = "Option<String>")]
    pub max_age: Option<Text>,
    /// The name of a `[limit.NAME]`.
    #[schemars(with = "Option<String>")]
    pub limit: Option<Text>,
    /// Where a token may be sent: `"header"` (the default), `"cookie"`, `"query"`; `"basic"` is the
    /// password of HTTP Basic, which is then a personal access token.
    #[schemars(with = "Option<Vec<String>>")]
    pub token_from: Option<Spanned<Vec<Text>>>,
    /// Forward the `Authorization` header. Default false.
    #[schemars(with = "bool")]
    pub forward_authorization: Option<Spanned<bool>>,
    /// Remove the path prefix: `/reports/q3` is forwarded as `/q3`. Only for paths that end in
    /// `/*`. Default false.
    #[schemars(with = "bool")]
    pub strip_prefix: Option<Spanned<bool>>,
    /// Ambiguous path forms that the application needs: `"merge_slashes"`, `"parameters"`,
    /// `"encoded_slash"`, `"encoded_semicolon"`, `"encoded_backslash"`, `"encoded_percent"`.
    #[schemars(with = "Vec<String>")]
    pub insecure_path: Vec<Text>,
    /// Forward `X-HTTP-Method-Override` and similar headers; the decision is then made for both
    /// methods. Default false.
    #[schemars(with = "bool")]
    pub method_override: Option<Spanned<bool>>,
    /// false: log and count refusals, but forward the request, without identity headers. Default
    /// true.
    #[schemars(with = "Option<bool>")]
    pub enforce: Option<Spanned<bool>>,
    /// When tunnels, event streams and other long responses end: `"session"` (default): when their
    /// token, session or account loses access; `"token"`: also when the token expires.
    #[schemars(with = "Option<String>")]
    pub streams: Option<Text>,
    /// The longest time that such a stream may last. Default `"0s"`: any time.
    #[schemars(with = "Option<String>")]
    pub stream_max_age: Option<Text>,
    /// Replaces `[identity_headers]` for this route.
    #[schemars(with = "Option<BTreeMap<String, ClaimName>>")]
    pub identity_headers: Option<BTreeMap<Text, Spanned<ClaimName>>>,
    /// Header = constant value, or a secret, that the upstream receives. A client's field of that
    /// name, in any spelling, is removed.
    #[schemars(with = "Option<BTreeMap<String, TextOrSecret>>")]
    pub set_headers: Option<Spanned<BTreeMap<Text, Spanned<TextOrSecret>>>>,
    /// Header = constant value that every response of this route has, refusals included. It
    /// replaces the upstream's field of that name.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub response_headers: Option<Spanned<BTreeMap<Text, Text>>>,
    /// The other origins whose pages may read the responses of this route in a browser (CORS). The
    /// gateway answers their preflights. Absent: none.
    #[schemars(with = "Option<Cors>")]
    pub cors: Option<Spanned<Cors>>,
}

/// `cors = { … }` of a route.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// The origins: scheme, host and port as browsers write them. For example
    /// `["https://app.example.com"]`.
    #[schemars(with = "Vec<String>")]
    pub origins: Option<Spanned<Vec<Text>>>,
    /// The header fields that their requests may have. Default: those that need no permission.
    #[schemars(with = "Vec<String>")]
    pub headers: Vec<Text>,
    /// Whether their requests may have cookies and other credentials of the browser. Default false.
    pub credentials: bool,
    /// How long a browser may remember the answer to a preflight. Default `"10m"`.
    #[schemars(with = "Option<String>")]
    pub max_age: Option<Text>,
}

/// `redirect = { … }` of a route.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redirect {
    /// Where: a URL or a path. `{path}` is the received path, `{host}` the host of the request; the
    /// query is kept. For example `"https://dav.example.com{path}"`.
    #[schemars(with = "String")]
    pub to: Option<Text>,
    /// 301, 302, 307 or 308. Default 308.
    #[schemars(with = "Option<u16>")]
    pub status: Option<Spanned<i64>>,
}

/// `[[test]]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Test {
    /// `"GET http://app.example.com/path"`, or only the path if the host does not matter.
    #[schemars(with = "String")]
    pub request: Option<Text>,
    /// Request header fields.
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<Text, Text>,
    /// The claims of the caller's token. Absent: no token.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub claims: Option<Spanned<toml::Table>>,
    /// The caller's roles, instead of `claims`, whichever claim the issuer uses for them.
    #[schemars(with = "Option<Vec<String>>")]
    pub roles: Option<Spanned<Vec<Text>>>,
    /// The issuer section of the token. Optional if there is only one.
    #[schemars(with = "Option<String>")]
    pub issuer: Option<Text>,
    /// The peer's address. Default `"127.0.0.1"`.
    #[schemars(with = "Option<String>")]
    pub peer: Option<Text>,
    /// The expected decision.
    #[schemars(with = "Expect")]
    pub expect: Option<Spanned<Expect>>,
}

/// `expect = { … }` of a `[[test]]`: each given key must match.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The status: 200 if the request is forwarded.
    #[schemars(with = "Option<u16>")]
    pub status: Option<Spanned<i64>>,
    /// The reason.
    #[schemars(with = "Option<String>")]
    pub reason: Option<Text>,
    /// The route's name.
    #[schemars(with = "Option<String>")]
    pub route: Option<Text>,
    /// Header fields that the upstream receives; `""` means that it does not receive the field.
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<Text, Text>,
}
