//! The only way to an application: what is sent is an [`Outgoing`].

use std::sync::Arc;

use http::Response;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{ClientBody, Gate, Upload};
use super::outgoing::Outgoing;
use super::upstream::{Lease, Upstream, UpstreamFailure};

impl Upstream {
    /// Sends a request and waits for the response head. `now` is when it is sent first. An upstream
    /// that answers `100 Continue` opens `gate`.
    ///
    /// ```compile_fail
    /// // A plain request is not enough: an `Outgoing` is made from a permit alone.
    /// async fn send(
    ///     upstream: &std::sync::Arc<portcullis::gateway::upstream::Upstream>,
    ///     request: http::Request<portcullis::gateway::body::ClientBody>,
    /// ) {
    ///     let _ = upstream.dispatch(0, request, None, tokio::time::Instant::now()).await;
    /// }
    /// ```
    ///
    /// # Errors
    /// [`UpstreamFailure`], which says whose fault it was.
    pub async fn send(
        self: &Arc<Self>,
        worker: usize,
        outgoing: Outgoing,
        body: ClientBody,
        gate: Option<Arc<Gate>>,
        upload: Option<&Upload>,
        now: Instant,
    ) -> Result<(Response<Incoming>, Lease), UpstreamFailure> {
        self.dispatch(worker, outgoing.into_request(body, gate), upload, now).await
    }
}
