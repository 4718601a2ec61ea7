//! The serde mirror of `gateway.toml`: what is written, not what runs.
//!
//! Every value that compiling may reject is [`Spanned`], so that a problem can point at it.
//! Durations, sizes, networks and words of a choice are text here;
//! [`Snapshot::compile`](crate::gateway::Snapshot::compile) judges them, so that all problems come
//! together. The doc comments are the reference: `portcullis schema` prints them for editors.
//!
//! No `untagged`, internally tagged or `flatten` here: serde buffers those, and the spans are lost.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::identity::Identity;
use super::value::{ClaimName, OneOrMany, Scalar, SecretRef, Unsupported};

/// A text value with its place in the file.
pub type Text = Spanned<String>;

/// The whole file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The public listener.
    pub server: Server,
    /// The second listener: health, readiness and metrics.
    pub admin: Admin,
    /// What is written to standard output.
    pub log: Log,
    /// What outlives the process: accounts, sessions, signing keys, revocations. Absent: none,
    /// unless there is `[identity]`.
    #[schemars(with = "Option<Store>")]
    pub store: Option<Spanned<Store>>,
    /// Whose tokens are accepted, by a name of your choice.
    #[schemars(with = "BTreeMap<String, Issuer>")]
    pub issuer: BTreeMap<Text, Issuer>,
    /// What is remembered of tokens that were verified.
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
    /// Header = claim: what upstreams are told about the caller. Absent: the five defaults.
    #[schemars(with = "Option<BTreeMap<String, ClaimName>>")]
    pub identity_headers: Option<BTreeMap<Text, Spanned<ClaimName>>>,
    /// Requests and the decision that is expected for each: run by `check` and before every start
    /// and reload.
    #[schemars(with = "Vec<Test>")]
    pub test: Vec<Spanned<Test>>,
    /// Which requests go where, and who may make them. Order never counts.
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
    /// CIDR blocks whose forwarding header is believed. Default: none.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<Text>,
    /// Accept a block in `trusted_proxies` that covers every address.
    pub insecure_trust_every_proxy: bool,
    /// The one header that is read from trusted proxies: `"x-forwarded-for"` (default) or
    /// `"forwarded"`.
    #[schemars(with = "Option<String>")]
    pub forwarded: Option<Text>,
    /// Not supported yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub proxy_protocol: Option<Spanned<Unsupported>>,
    /// HTTP/2 with prior knowledge on cleartext. Default true.
    pub h2c: Option<bool>,
    /// How long `/readyz` says 503 while requests are still served, after SIGTERM. Default `"5s"`.
    #[schemars(with = "Option<String>")]
    pub drain_delay: Option<Text>,
    /// How long exchanges and tunnels may take to finish after that. Default `"30s"`.
    #[schemars(with = "Option<String>")]
    pub drain_timeout: Option<Text>,
    /// Also reload when the file, or a file it names, changes. Default false.
    pub watch: bool,
    /// The cookie that may hold a token. Default `"__Host-portcullis"`.
    #[schemars(with = "Option<String>")]
    pub token_cookie: Option<Text>,
    /// The query parameter that may hold a token. Default `"access_token"`.
    #[schemars(with = "Option<String>")]
    pub token_query: Option<Text>,
    /// Certificate and key of the public listener. Absent: cleartext.
    #[schemars(with = "Option<ServerTls>")]
    pub tls: Option<Spanned<ServerTls>>,
    /// What one client may ask of the gateway.
    pub limits: ServerLimits,
}

/// `[server.tls]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// PEM file: the certificate, then its intermediates. For example `"tls.crt"`.
    #[schemars(with = "String")]
    pub certificate: Text,
    /// The certificate's private key: `{ file = "tls.key" }` or `{ env = "NAME" }`, PEM.
    #[schemars(with = "SecretRef")]
    pub private_key: Spanned<SecretRef>,
    /// Not supported yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub client_ca: Option<Spanned<Unsupported>>,
}

/// `[server.limits]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerLimits {
    /// Connections at a time. Default 10000.
    #[schemars(with = "Option<u32>")]
    pub max_connections: Option<Spanned<i64>>,
    /// Connections of one client at a time: an IPv4 address, or an IPv6 network of 64 bits.
    /// Default 0: no limit.
    #[schemars(with = "Option<u32>")]
    pub max_connections_per_client: Option<Spanned<i64>>,
    /// From the first byte of a request head to its last. Default `"10s"`.
    #[schemars(with = "Option<String>")]
    pub header_timeout: Option<Text>,
    /// Keep-alive between requests. Default `"75s"`.
    #[schemars(with = "Option<String>")]
    pub idle_timeout: Option<Text>,
    /// Bytes of a request head. Default `"32KiB"`.
    #[schemars(with = "Option<String>")]
    pub max_header_bytes: Option<Text>,
    /// Fields of a request head. Default 100.
    #[schemars(with = "Option<u32>")]
    pub max_headers: Option<Spanned<i64>>,
    /// Bytes of a request body, or `"unlimited"`, the default.
    #[schemars(with = "Option<String>")]
    pub max_body: Option<Text>,
    /// Between bytes of a request body. Default `"30s"`.
    #[schemars(with = "Option<String>")]
    pub body_idle_timeout: Option<Text>,
}

/// `[token_cache]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenCache {
    /// Verified tokens that all workers together remember; 0: none. Default 100000.
    #[schemars(with = "Option<u32>")]
    pub max_entries: Option<Spanned<i64>>,
    /// About how much memory they may take. Default `"64MiB"`.
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
    /// What changes state asks for it as a bearer token: `{ file = "admin.token" }` or `{ env =
    /// "NAME" }`, at least 16 bytes. Absent: nothing can be changed from there.
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
    /// One line for each request. Default true.
    pub access: Option<bool>,
}

/// `[store]`: what outlives the process.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `"sqlite:PATH"`, or `{ env = "DATABASE_URL" }`. Default `"sqlite:portcullis.db"`. Read at
    /// start.
    #[schemars(with = "Option<SecretRef>")]
    pub database: Option<Spanned<SecretRef>>,
    /// Seals signing keys and the refresh key in the database; made at first start, mode 0600.
    /// Default `{ file = "portcullis.key" }`. Read at start.
    #[schemars(with = "Option<SecretRef>")]
    pub key: Option<Spanned<SecretRef>>,
    /// Not supported yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub redis: Option<Spanned<Unsupported>>,
}

/// `[issuer.NAME]`: whose tokens are accepted.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Issuer {
    /// The `iss` that its tokens hold, byte for byte.
    #[schemars(with = "Option<String>")]
    pub issuer: Option<Text>,
    /// Accept tokens without `iss` (and no others): at most one such section, and `issuer` is then
    /// not given.
    #[schemars(with = "bool")]
    pub insecure_any_issuer: Option<Spanned<bool>>,
    /// The audiences of which a token must name at least one.
    #[schemars(with = "Option<Vec<String>>")]
    pub audience: Option<Spanned<Vec<Text>>>,
    /// Accept tokens without `aud`, or with any.
    #[schemars(with = "bool")]
    pub insecure_any_audience: Option<Spanned<bool>>,
    /// Signature algorithms: HS256 HS384 HS512 RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384
    /// EdDSA.
    #[schemars(with = "Option<Vec<String>>")]
    pub algorithms: Option<Spanned<Vec<Text>>>,
    /// The secret of HMAC tokens.
    #[schemars(with = "Option<SecretRef>")]
    pub secret: Option<Spanned<SecretRef>>,
    /// Accept a secret that is shorter than the hash (RFC 7518 §3.2).
    pub insecure_short_secret: bool,
    /// Accept a secret that is written in the file itself.
    pub insecure_inline_secret: bool,
    /// PEM files with public keys.
    #[schemars(with = "Option<Vec<String>>")]
    pub public_keys: Option<Spanned<Vec<Text>>>,
    /// A file with a JWK Set (RFC 7517).
    #[schemars(with = "Option<String>")]
    pub jwks_file: Option<Text>,
    /// Where a JWK Set is fetched from: `https://`, or `http://` on this machine.
    #[schemars(with = "Option<String>")]
    pub jwks_url: Option<Text>,
    /// Fetch the JWK Set from where the metadata of `issuer` says (OpenID Connect Discovery, RFC
    /// 8414). Default false.
    #[schemars(with = "Option<bool>")]
    pub discovery: Option<Spanned<bool>>,
    /// PEM file with the certificates that are trusted when keys are fetched. Default: the
    /// system's.
    #[schemars(with = "Option<String>")]
    pub ca: Option<Text>,
    /// Fetch keys over `http://` from other machines as well.
    #[schemars(with = "bool")]
    pub insecure_http_keys: Option<Spanned<bool>>,
    /// The claim that holds the roles. Default `"roles"`.
    #[schemars(with = "Option<ClaimName>")]
    pub roles: Option<Spanned<ClaimName>>,
    /// The claim that names the user. Default `"sub"`.
    #[schemars(with = "Option<ClaimName>")]
    pub subject: Option<Spanned<ClaimName>>,
    /// Clock skew that is forgiven, at most `"5m"`. Default `"30s"`.
    #[schemars(with = "Option<String>")]
    pub leeway: Option<Text>,
    /// The longest `exp - iat`. Default `"24h"`.
    #[schemars(with = "Option<String>")]
    pub max_token_lifetime: Option<Text>,
    /// How often keys are fetched, at least. Default `"5m"`.
    #[schemars(with = "Option<String>")]
    pub jwks_refresh: Option<Text>,
    /// How long after a fetch for a key that was lacking there is no other one. Default `"10s"`.
    #[schemars(with = "Option<String>")]
    pub jwks_refetch_cooldown: Option<Text>,
    /// How long keys are used after they were fetched, when the issuer is away. Default `"24h"`.
    #[schemars(with = "Option<String>")]
    pub jwks_max_stale: Option<Text>,
    /// The path of the public listener where the issuer tells of logouts (OpenID Connect
    /// Back-Channel Logout). Absent: it cannot.
    #[schemars(with = "Option<String>")]
    pub backchannel_logout: Option<Text>,
    /// The audiences of which a logout token must name one: the client's id. Absent: those of
    /// `audience`.
    #[schemars(with = "Option<Vec<String>>")]
    pub logout_audience: Option<Spanned<Vec<Text>>>,
}

/// `[limit.NAME]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Requests that are let through in each `per`, all at once at first. For example `5`.
    #[schemars(with = "u32")]
    pub requests: Spanned<i64>,
    /// The time in which they are earned back. For example `"1m"`.
    #[schemars(with = "String")]
    pub per: Text,
    /// Whose requests are counted together: `"client"` (default), `"subject"`, or
    /// `"client+account"` on routes with `identity`.
    #[schemars(with = "Option<String>")]
    pub key: Option<Text>,
    /// IPv6 addresses with these leading bits in common are one client. 1 to 128, default 64.
    #[schemars(with = "Option<u8>")]
    pub ipv6_prefix: Option<Spanned<i64>>,
    /// `"all"` (default) or `"failures"`: 401, 403 and 429.
    #[schemars(with = "Option<String>")]
    pub count: Option<Text>,
    /// Count and log, refuse nothing. Default false.
    #[serde(default)]
    pub observe: bool,
    /// Clients that are remembered at a time; while so many are, new ones are refused. Default
    /// 100000.
    #[schemars(with = "Option<u32>")]
    pub max_clients: Option<Spanned<i64>>,
}

/// `[upstream.NAME]`: an application behind the gateway.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// `http://` or `https://`, host and port, no path.
    #[schemars(with = "Option<String>")]
    pub url: Option<Text>,
    /// `"echo"`: the application that is built in for trying things out.
    #[schemars(with = "Option<String>")]
    pub builtin: Option<Text>,
    /// The `Host` that is sent. Default: as received.
    #[schemars(with = "Option<String>")]
    pub host: Option<Text>,
    /// Until connected, TLS included. Default `"2s"`.
    #[schemars(with = "Option<String>")]
    pub connect_timeout: Option<Text>,
    /// Until the response head, counted from the last byte of the request. Default `"60s"`.
    #[schemars(with = "Option<String>")]
    pub response_timeout: Option<Text>,
    /// Between bytes of a response body or tunnel. Default `"5m"`.
    #[schemars(with = "Option<String>")]
    pub idle_timeout: Option<Text>,
    /// How long an unused connection is kept, and less where the application says so in
    /// `Keep-Alive`. Default `"1500ms"`.
    #[schemars(with = "Option<String>")]
    pub keep_idle: Option<Text>,
    /// Not supported yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub http2: Option<Spanned<Unsupported>>,
    /// How the application's certificate is checked.
    #[schemars(with = "Option<UpstreamTls>")]
    pub tls: Option<Spanned<UpstreamTls>>,
    /// `"sensitive"` (default), or `"insensitive"` where the application folds case: the gateway
    /// then does when it matches.
    #[schemars(with = "Option<String>")]
    pub path_case: Option<Text>,
}

/// `tls = { … }` of an upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// PEM file with the certificates that are trusted. Default: the system's.
    #[schemars(with = "Option<String>")]
    pub ca: Option<Text>,
    /// Not supported yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub certificate: Option<Spanned<Unsupported>>,
    /// Not supported yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub private_key: Option<Spanned<Unsupported>>,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Log field and metric label. Default: host and path.
    #[schemars(with = "Option<String>")]
    pub name: Option<Text>,
    /// `"app.example.com"` or `"*.example.com"`. Absent: every host.
    #[schemars(with = "Option<String>")]
    pub host: Option<Text>,
    /// `"/reports"` is exact; `"/reports/*"` is `/reports` and everything below; `{x}` is one
    /// segment. Written decoded.
    #[schemars(with = "String")]
    pub path: Option<Text>,
    /// The methods it is for. Absent: all. `GET` includes `HEAD`.
    #[schemars(with = "Option<Vec<String>>")]
    pub methods: Option<Spanned<Vec<Text>>>,
    /// The name of an `[upstream.NAME]`.
    #[schemars(with = "Option<String>")]
    pub upstream: Option<Text>,
    /// true: it leads to the built-in issuer instead of an upstream. Only for paths that end in
    /// `/*`. Default false.
    #[schemars(with = "bool")]
    pub identity: Option<Spanned<bool>>,
    /// `"authenticated"` (default), `"optional"` or `"public"`.
    #[schemars(with = "Option<String>")]
    pub access: Option<Text>,
    /// Any one of these roles.
    #[schemars(with = "Option<Vec<String>>")]
    pub roles: Option<Spanned<Vec<Text>>>,
    /// Every one of these roles.
    #[schemars(with = "Option<Vec<String>>")]
    pub all_roles: Option<Spanned<Vec<Text>>>,
    /// Every one of these scopes, from `scope` or `scp`.
    #[schemars(with = "Option<Vec<String>>")]
    pub scopes: Option<Spanned<Vec<Text>>>,
    /// Claim = the values of which it must have one. A dotted name is a path.
    #[schemars(with = "Option<BTreeMap<String, Vec<Scalar>>>")]
    pub claims: Option<Spanned<BTreeMap<Text, Spanned<Vec<Scalar>>>>>,
    /// Only callers of these issuers.
    #[schemars(with = "Option<Vec<String>>")]
    pub issuers: Option<Spanned<Vec<Text>>>,
    /// The name of a `[limit.NAME]`.
    #[schemars(with = "Option<String>")]
    pub limit: Option<Text>,
    /// Where a token may stand: `"header"` (the default), `"cookie"`, `"query"`.
    #[schemars(with = "Option<Vec<String>>")]
    pub token_from: Option<Spanned<Vec<Text>>>,
    /// Leave `Authorization` in the request. Default false.
    pub forward_authorization: bool,
    /// `/reports/q3` arrives as `/q3`. Only for paths that end in `/*`. Default false.
    #[schemars(with = "bool")]
    pub strip_prefix: Option<Spanned<bool>>,
    /// Ambiguities that the application needs: `"merge_slashes"`, `"parameters"`,
    /// `"encoded_slash"`, `"encoded_semicolon"`, `"encoded_backslash"`, `"encoded_percent"`.
    #[schemars(with = "Vec<String>")]
    pub insecure_path: Vec<Text>,
    /// Let `X-HTTP-Method-Override` and its like through; the decision is then made for both
    /// methods. Default false.
    #[schemars(with = "bool")]
    pub method_override: Option<Spanned<bool>>,
    /// false: a refusal is logged and counted, and the request goes through without identity
    /// headers. Default true.
    #[schemars(with = "Option<bool>")]
    pub enforce: Option<Spanned<bool>>,
    /// Not supported yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub streams: Option<Spanned<Unsupported>>,
    /// Replaces `[identity_headers]` for this route.
    #[schemars(with = "Option<BTreeMap<String, ClaimName>>")]
    pub identity_headers: Option<BTreeMap<Text, Spanned<ClaimName>>>,
}

/// `[[test]]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Test {
    /// `"GET http://app.example.com/path"`, or the path alone where the host does not matter.
    #[schemars(with = "String")]
    pub request: Option<Text>,
    /// Request header fields.
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<Text, Text>,
    /// The claims of the caller's token. Absent: no token.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub claims: Option<Spanned<toml::Table>>,
    /// Instead of `claims`: the roles of the caller, wherever the issuer keeps them.
    #[schemars(with = "Option<Vec<String>>")]
    pub roles: Option<Spanned<Vec<Text>>>,
    /// The issuer section of the token. May be left out where there is only one.
    #[schemars(with = "Option<String>")]
    pub issuer: Option<Text>,
    /// The peer's address. Default `"127.0.0.1"`.
    #[schemars(with = "Option<String>")]
    pub peer: Option<Text>,
    /// What must come out.
    #[schemars(with = "Expect")]
    pub expect: Option<Spanned<Expect>>,
}

/// `expect = { … }` of a `[[test]]`: each key that is given must hold.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The status: 200 where the request is passed on.
    #[schemars(with = "Option<u16>")]
    pub status: Option<Spanned<i64>>,
    /// The reason.
    #[schemars(with = "Option<String>")]
    pub reason: Option<Text>,
    /// The route's name.
    #[schemars(with = "Option<String>")]
    pub route: Option<Text>,
    /// Header fields that the upstream is sent; `""` is one that it is not sent.
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<Text, Text>,
}
