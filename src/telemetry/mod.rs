//! Telemetry for operators: log lines, metrics, and the ids that correlate them with those of
//! clients and upstreams.
//!
//! Every metric family is declared in `metrics`, and every field of the access log in `access`.
//! There are no fields for tokens, cookies, query values or bodies, and nothing here ever blocks a
//! worker.

pub mod access;
pub mod fold;
pub mod ids;
pub mod log;
pub mod metrics;
pub mod writer;

mod escape;

pub use self::escape::address as write_address;
