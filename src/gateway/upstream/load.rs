//! Which requests share an HTTP/2 connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use http_body::Body as _;

use crate::gateway::grpc;
use crate::gateway::upload::{ClientBody, Window};

/// What the body of a request can do to the window that all bodies of its connection share. Each kind
/// has connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// It has this many bytes, few or none. It joins others as long as all of them fit.
    Short(u64),
    /// A call of gRPC: many share a connection, and most servers open the window again whether they
    /// read or not.
    Call,
    /// It can use up the window. It has a connection for itself.
    Long,
}

impl Load {
    pub(super) fn of(request: &Request<ClientBody>) -> Self {
        let body = request.body();
        let length = if body.is_end_stream() { Some(0) } else { body.announced() };
        match length {
            _ if grpc::has_its_type(request.headers()) => Self::Call,
            Some(length) if length <= Window::SHORT => Self::Short(length),
            _ => Self::Long,
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
