//! Redis: what several gateways share at high rates, beside the database.
//!
//! There is one [`Redis`] per process. It owns the connection, knows whether the server can be
//! asked, and says so to operators. Nothing here may wait longer than a fraction of a second, and
//! nothing that lasts (accounts, keys, cut-offs of accounts) may depend on it: Redis may lose its
//! data.

#[cfg(not(feature = "redis"))]
mod absent;
#[cfg(feature = "redis")]
mod connection;
#[cfg(feature = "redis")]
mod limits;
#[cfg(feature = "redis")]
mod revoked_keys;
#[cfg(feature = "redis")]
mod sessions;
mod settings;
mod stored_session;

/// A real server, for tests.
#[cfg(test)]
#[path = "../../tests/blackbox/harness/redis.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "the black-box tests use the rest, and CI is a variable of the environment"
)]
pub(crate) mod server;

#[cfg(not(feature = "redis"))]
pub use self::absent::Redis;
#[cfg(feature = "redis")]
pub use self::connection::Redis;
pub use self::settings::{InvalidUrl, RedisSettings};
pub use self::stored_session::{SessionUse, SessionsAway, StoredSession};
