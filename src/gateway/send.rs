//! The only way to send a request to an application: it must be an [`Outgoing`]. And what becomes of
//! the head of its response.

use std::sync::Arc;

use http::{Response, Version, header};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::framing::{FramingFault, is_without_content, may_have_extra_bytes, settle_response};
use super::outgoing::{Outgoing, fields_for_hop, strip_response};
use super::token_names::TokenNames;
use super::upload::{ClientBody, Gate, Upload};
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
    ///     request: http::Request<portcullis::gateway::upload::ClientBody>,
    /// ) {
    ///     let _ = upstream.dispatch(0, request, None, tokio::time::Instant::now()).await;
    /// }
    /// ```
    pub fn send(
        self: &Arc<Self>,
        worker: usize,
        outgoing: Outgoing<'_>,
        body: ClientBody,
        gate: Option<Arc<Gate>>,
        upload: Option<&Arc<Upload>>,
        now: Instant,
    ) -> impl Future<Output = Result<(Response<Incoming>, Lease), UpstreamFailure>> {
        self.dispatch(worker, outgoing.into_request(body, gate), upload, now)
    }
}

/// Turns the head of an upstream's response into that of the gateway's, and notes how long its
/// connection is kept.
pub(super) fn settle_head(
    response: &mut Response<Incoming>,
    lease: &mut Lease,
    is_head: bool,
    trailers_welcome: bool,
    names: &TokenNames,
) -> Result<(), FramingFault> {
    let for_hop = fields_for_hop(response.headers());
    let has_coding = for_hop.contains(&header::TRANSFER_ENCODING);
    if may_have_extra_bytes(response, is_head, has_coding) {
        lease.close_after();
    }
    if is_head || is_without_content(response.status()) {
        lease.expect_no_content();
    }
    if !for_hop.is_empty() {
        lease.observe(response.headers());
    }
    settle_response(response.status(), response.headers_mut(), has_coding)?;
    strip_response(response.headers_mut(), for_hop, names, trailers_welcome);
    *response.version_mut() = Version::HTTP_11;
    Ok(())
}
