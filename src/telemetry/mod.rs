//! What the gateway tells its operators: log lines, metrics, and the ids that join them to those of
//! its neighbours.
//!
//! Every metric family is declared in `metrics`, every field of the access log in `access`. Tokens,
//! cookies, query values and bodies have no field here, and nothing here ever blocks a worker.

pub mod access;
pub mod fold;
pub mod ids;
pub mod log;
pub mod metrics;
pub mod writer;

mod escape;

pub use self::escape::address as write_address;
