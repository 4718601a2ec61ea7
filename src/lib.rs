//! Portcullis: an authentication gateway.
//!
//! A reverse proxy that stands in front of applications without a login of their own. It decides
//! who is calling and whether they may, and tells the application so in headers that it can trust.
//!
//! A module uses the floors below its own, never one above (`tests/structure.rs` holds this):
//!
//! | floor | modules | |
//! |---|---|---|
//! | 8 | [`cli`], [`process`] | compose; hold no logic |
//! | 7 | [`compile`] | a configuration file becomes a snapshot |
//! | 6 | [`explain`] | the decision for one request, described |
//! | 5 | [`server`], [`admin`] | sockets and protocols |
//! | 4 | [`gateway`] | what a request walks through |
//! | 3 | [`identity`], [`keys`], [`revocation`] | the built-in issuer; keeping issuers' keys up to date; what is revoked: the list that requests are held against, and its place in the store |
//! | 2 | [`token`], [`store`] | verifying what others signed; what outlives the process |
//! | 1 | [`config`] | the file as it is written, and its problems |
//! | 0 | [`clock`], [`coalesce`], [`descriptors`], [`limit`], [`outbound`], [`priority`], [`reason`], [`tls`], [`telemetry`] | nothing of ours |
//!
//! To follow a request, begin at [`gateway::Gateway::handle`]; to follow a configuration, at
//! [`compile`].

pub mod admin;
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
pub mod reason;
pub mod revocation;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod token;
