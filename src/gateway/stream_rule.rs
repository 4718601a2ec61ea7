//! What a route says about how long its streams may last.

use std::time::Duration;

/// How long the streams of a route may last: `streams` and `stream_max_age`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamRule {
    /// Whether a stream also ends when its token expires.
    pub ends_with_token: bool,
    /// The longest time since its request; `None`: any time.
    pub max_age: Option<Duration>,
}
