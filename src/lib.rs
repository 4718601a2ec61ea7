//! Portcullis: an authentication gateway.
//!
//! A reverse proxy in front of applications that have no login of their own. It decides who is
//! calling and whether they have access, and tells the application in headers that it can trust.
//!
//! A module uses only the layers below its own (`tests/structure.rs` checks this):
//!
//! | layer | modules | |
//! |---|---|---|
//! | 8 | [`cli`], [`process`] | compose the others; no logic |
//! | 7 | [`compile`], [`attack`] | a configuration file becomes a snapshot; what a proxy that asks lets in is compared with the decision |
//! | 6 | [`explain`], [`proxies`] | the decision for one request, described; configurations of proxies that ask |
//! | 5 | [`server`], [`admin`] | sockets and protocols |
//! | 4 | [`gateway`] | the request pipeline |
//! | 3 | [`identity`], [`keys`], [`revocation`] | the built-in issuer; keeping issuers' keys up to date; revocations: the list that tokens are checked against, and its table in the store |
//! | 2 | [`token`], [`store`], [`redis`] | verifying signed tokens; what outlives the process; what several gateways share at high rates |
//! | 1 | [`config`] | the file as it is written, and its problems |
//! | 0 | [`clock`], [`coalesce`], [`descriptors`], [`limit`], [`outbound`], [`priority`], [`reason`], [`tls`], [`telemetry`] | know no other module |
//!
//! To follow a request, start at [`gateway::Gateway::handle`]; to follow a configuration, start at
//! [`compile`].

pub mod admin;
pub mod attack;
pub mod cli;
pub mod clock;
pub mod coalesce;
pub mod compile;
pub mod config;
pub mod descriptors;
pub mod explain;
pub mod gateway;
pub mod identity;
pub mod keys;
pub mod limit;
pub mod outbound;
pub mod priority;
pub mod process;
pub mod proxies;
pub mod reason;
pub mod redis;
pub mod revocation;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod token;
