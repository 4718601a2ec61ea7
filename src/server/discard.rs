//! Request bodies on HTTP/2 whose response was sent before they were read.
//!
//! If a stream is reset while its response is being sent, clients such as curl report an error
//! instead of the response. So the rest of the body is read and discarded for a while: the client
//! sees the response and stops sending.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::stream::{LINGER, MAX_DISCARDED};

/// Reads and discards the bodies of one connection, as received from `unread`. Never returns.
pub(super) async fn discard_bodies(mut unread: UnboundedReceiver<Incoming>) {
    let mut reading = JoinSet::new();
    loop {
        tokio::select! {
            Some(body) = unread.recv() => {
                reading.spawn(timeout(LINGER, discard(body)));
            }
            Some(_) = reading.join_next() => {}
            else => std::future::pending().await,
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut left = MAX_DISCARDED;
    while left > 0 {
        let Some(Ok(frame)) = body.frame().await else { return };
        left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
    }
}
