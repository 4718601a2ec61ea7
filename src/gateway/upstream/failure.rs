//! Why an upstream gave no response.

use super::ConnectError;
use crate::gateway::dial::told;
use crate::gateway::framing::FramingFault;
use crate::gateway::upload::UploadFailure;

/// Why there was no response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamFailure {
    /// No address, no connection, or no TLS session.
    #[error("no connection: {0}")]
    Unreachable(#[source] ConnectError),
    /// The connection broke, or the received bytes were not HTTP.
    #[error("{}", describe_failure(.0))]
    Failed(#[source] hyper::Error),
    /// A response of HTTP/1.1 on an HTTP/2 connection.
    #[error(
        "the upstream responded in HTTP/1.1, but its section has http2 = true: remove that, or set url to where it accepts HTTP/2 with prior knowledge"
    )]
    NotHttp2,
    /// The HTTP/2 connection ended before the application sent anything.
    #[error(
        "the upstream closed the connection without a response in HTTP/2 ({}); if it speaks only HTTP/1.1, remove http2 = true from its section",
        told(.0)
    )]
    NoGreeting(#[source] hyper::Error),
    /// A 101 that the client did not request, or for another protocol.
    #[error("the upstream switched to a protocol that was not requested")]
    Protocol,
    /// A response whose length cannot be determined.
    #[error("the upstream's response cannot be forwarded: {0}")]
    Framing(#[from] FramingFault),
    /// No response head in time.
    #[error("the upstream did not respond within its response_timeout")]
    Timeout,
    /// The exchange took too long.
    #[error("the exchange took longer than total_timeout")]
    Total,
    /// As many requests as `max_requests` allows are in flight.
    #[error("max_requests are in flight")]
    Busy,
    /// The request body did not arrive.
    #[error("{0}")]
    Upload(#[from] UploadFailure),
}

/// The maximum size of a response head, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The maximum number of fields in a response head. This is hyper's own limit, up to which it does
/// not allocate memory for them.
const MAX_FIELDS: usize = 100;

fn describe_failure(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return format!(
            "the head of the upstream's response has more than {} KiB or {MAX_FIELDS} fields",
            MAX_HEAD / 1024
        );
    }
    let error = told(error);
    // hyper has no other error for the bytes that an HTTP/2 server sends at once.
    if error.contains("invalid HTTP version") {
        return "the upstream did not respond in HTTP/1.1; if it expects HTTP/2, set http2 = true in its section".to_owned();
    }
    format!("the upstream broke off the exchange: {error}")
}
