//! The requests in flight on an HTTP/2 connection, and which others may join them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use http_body::Body as _;

use crate::gateway::grpc;
use crate::gateway::upload::{ClientBody, Window};

/// What the body of a request can do to the window that all bodies of its connection share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// There is none.
    Nothing,
    /// It is short, or a call of gRPC: many calls share a connection, and most servers open the window
    /// again whether they read or not.
    Little,
    /// It can use up the window, so it is the only one on its connection.
    Much,
}

impl Load {
    pub(super) fn of(request: &Request<ClientBody>) -> Self {
        let body = request.body();
        let is_short = || body.announced().is_some_and(|length| length <= Window::SHORT);
        if body.is_end_stream() {
            Self::Nothing
        } else if is_short() || grpc::has_its_type(request.headers()) {
            Self::Little
        } else {
            Self::Much
        }
    }
}

/// The requests in flight on a connection. Those whose upload goes on although their response is over
/// are among them: the application counts them too.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    all: AtomicUsize,
    little: AtomicUsize,
    much: AtomicUsize,
}

impl InFlight {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// Those that carry this much.
    fn with(&self, load: Load) -> Option<&AtomicUsize> {
        match load {
            Load::Nothing => None,
            Load::Little => Some(&self.little),
            Load::Much => Some(&self.much),
        }
    }

    /// Whether another body may use the same window.
    pub(super) fn admits(&self, load: Load) -> bool {
        let are_none = |count: &AtomicUsize| count.load(Ordering::Relaxed) == 0;
        match load {
            Load::Nothing => true,
            Load::Little => are_none(&self.much),
            Load::Much => are_none(&self.much) && are_none(&self.little),
        }
    }
}

/// The place of one request among those in flight, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    among: Arc<InFlight>,
    load: Load,
}

impl Place {
    pub(super) fn take(among: &Arc<InFlight>, load: Load) -> Self {
        among.all.fetch_add(1, Ordering::Relaxed);
        if let Some(count) = among.with(load) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Self { among: Arc::clone(among), load }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.among.all.fetch_sub(1, Ordering::Relaxed);
        if let Some(count) = self.among.with(self.load) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
