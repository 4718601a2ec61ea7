//! Request bodies whose response was sent before they were read.
//!
//! The rest of such a body is read and discarded for a while. A connection of HTTP/1.1 stays usable,
//! so a client that repeats its request with credentials need not connect again. On HTTP/2, a
//! stream that was reset while its response is being sent would make clients such as curl report an
//! error instead of the response.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::stream::{ConnectionState, LINGER, MAX_DISCARDED};
use crate::gateway::upload::UnreadBodies;

impl UnreadBodies for ConnectionState {
    /// The task ends with the body, with the connection, or after [`LINGER`].
    fn take(self: Arc<Self>, body: Incoming) {
        // A connection that is dropped while the runtime stops has nothing to keep usable.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let busy = self.enter();
        runtime.spawn(async move {
            if timeout(LINGER, discard(body)).await == Ok(true) {
                busy.request_read();
            }
        });
    }
}

/// Returns whether the body was read to its end: not if it is too long, or the client breaks it off.
async fn discard(mut body: Incoming) -> bool {
    let mut left = MAX_DISCARDED;
    while left > 0 {
        match body.frame().await {
            None => return true,
            Some(Err(_)) => return false,
            Some(Ok(frame)) => {
                left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
            }
        }
    }
    false
}
