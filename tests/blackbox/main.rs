//! The contract, from outside: the built binary, real sockets, and an upstream that records every
//! byte.
//!
//! One module a capability, over `harness`. Nothing here knows the gateway's code; `portcullis::`
//! is not imported. Tests never sleep to wait for something: they wait for the byte, the line of
//! the log or the end of the connection that says so.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    reason = "a test that fails should panic, its tasks end with its runtime, and `json!` is passed as it is written"
)]
#![expect(unreachable_pub, reason = "`pub` marks what tests use of the harness")]

mod harness;

mod accounts;
mod admin;
mod agreement;
mod attacks;
mod bearer;
mod by_mail;
mod commands;
mod connections;
mod cookies;
mod drain;
mod headers;
mod http2;
mod jwks;
mod killed;
mod limits;
mod logout;
mod malformed;
mod outcomes;
mod pages;
mod peers;
mod reload;
mod renewal;
mod revocation;
mod roles;
mod routing;
mod second_factor;
mod sessions;
mod smtp;
mod store;
mod streaming;
mod target;
mod tls;
mod token_cache;
mod websocket;
