//! Tests the contract from outside: the built binary, real sockets, and an upstream that records
//! every byte.
//!
//! One module per capability, on top of `harness`. No test imports `portcullis::`. Tests never
//! sleep to wait for an event: they wait for a byte, a log line or the end of a connection.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    reason = "a test that fails should panic, its tasks end with its runtime, and `json!` is passed as it is written"
)]
#![expect(unreachable_pub, reason = "`pub` marks what tests use of the harness")]

mod harness;

mod accessible;
mod accounts;
mod admin;
mod agreement;
mod attacks;
mod bearer;
mod by_mail;
mod chaos;
mod client_certificates;
mod commands;
mod compat;
mod connections;
mod constant_headers;
mod cookie_domain;
mod cookies;
mod cors;
mod drain;
mod grpc;
mod headers;
mod http2;
mod http2_upstreams;
mod jwks;
mod killed;
mod limits;
mod logout;
mod malformed;
mod outcomes;
mod pages;
mod peers;
mod people;
mod personal_tokens;
mod providers;
mod proxy_protocol;
mod rare;
mod redirects;
mod reload;
mod renewal;
mod replicas;
mod revocation;
mod revoked_keys;
mod roles;
mod routing;
mod second_factor;
mod sessions;
mod sessions_in_redis;
mod shared_limits;
mod smtp;
mod store;
mod store_faults;
mod streaming;
mod streams;
mod target;
mod tls;
mod token_cache;
mod upstreams;
mod verify;
mod webdav;
mod websocket;
