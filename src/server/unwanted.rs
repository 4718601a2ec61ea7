//! Request bodies on HTTP/2 that were answered before they were read.
//!
//! A stream that is reset while its answer is under way makes clients such as curl report an error
//! in place of the answer. So the rest of the body is read for a while and forgotten: the client
//! sees the answer and stops sending.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::stream::{LINGER, UNWANTED_MOST};

/// Reads the bodies of one connection that come out of `unwanted`. Never returns.
pub(super) async fn read_on(mut unwanted: UnboundedReceiver<Incoming>) {
    let mut reading = JoinSet::new();
    loop {
        tokio::select! {
            Some(body) = unwanted.recv() => {
                reading.spawn(timeout(LINGER, forget(body)));
            }
            Some(_) = reading.join_next() => {}
            else => std::future::pending().await,
        }
    }
}

async fn forget(mut body: Incoming) {
    let mut left = UNWANTED_MOST;
    while left > 0 {
        let Some(Ok(frame)) = body.frame().await else { return };
        left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
    }
}
