//! Which requests share an HTTP/2 connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use http_body::Body as _;

use crate::gateway::grpc;
use crate::gateway::upload::ClientBody;

/// What a request sends after its head. All bodies of a connection share its window, and one that is
/// not read can use it up, so each kind has connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// Nothing, so it keeps no other request from arriving.
    Nothing,
    /// A call of gRPC: many share a connection, and most servers open the window again whether they
    /// read or not.
    Call,
    /// Another body, which has a connection for itself as long as it is sent and answered.
    Body,
}

impl Load {
    pub(super) fn of(request: &Request<ClientBody>) -> Self {
        if grpc::has_its_type(request.headers()) {
            Self::Call
        } else if request.body().is_end_stream() {
            Self::Nothing
        } else {
            Self::Body
        }
    }
}

/// The place of one request among those in flight on a connection, until this is dropped. One whose
/// upload goes on although its response is over keeps it: the application counts it too.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    pub(super) fn take(in_flight: &Arc<AtomicUsize>) -> Self {
        in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(in_flight))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
