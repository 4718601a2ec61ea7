//! The only way to send a request to an application: it must be an [`Outgoing`].

use std::sync::Arc;

use http::Response;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{ClientBody, Gate, Upload};
use super::outgoing::Outgoing;
use super::upstream::{Lease, Upstream, UpstreamFailure};

impl Upstream {
    /// Sends a request and waits for the response head. `now` is the time of the first attempt. If
    /// the upstream sends `100 Continue`, it opens `gate`. An [`UpstreamFailure`] says which side
    /// caused it.
    ///
    /// ```compile_fail
    /// // A plain request is not enough: it takes an `Outgoing`, which only a permit can become.
    /// async fn send(
    ///     upstream: &std::sync::Arc<portcullis::gateway::upstream::Upstream>,
    ///     request: http::Request<portcullis::gateway::body::ClientBody>,
    /// ) {
    ///     let _ = upstream.dispatch(0, request, None, tokio::time::Instant::now()).await;
    /// }
    /// ```
    pub fn send(
        self: &Arc<Self>,
        worker: usize,
        outgoing: Outgoing,
        body: ClientBody,
        gate: Option<Arc<Gate>>,
        upload: Option<&Upload>,
        now: Instant,
    ) -> impl Future<Output = Result<(Response<Incoming>, Lease), UpstreamFailure>> {
        self.dispatch(worker, outgoing.into_request(body, gate), upload, now)
    }
}
