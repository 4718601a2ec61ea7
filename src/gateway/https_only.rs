//! `redirect_http`: a listener that only redirects, to the same target on https.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use super::Gateway;
use super::body::Body;
use super::client::Peer;
use super::exchange::{Exchange, RecordedBody};
use super::framing::without_body;
use super::matched::read_head;
use super::observer::Observer;
use super::refusal::Refusal;
use super::snapshot::Snapshot;
use super::target::{Ambiguity, TargetError};
use super::upload::RequestBody;
use super::worker::Worker;

impl Gateway {
    /// Redirects to the same target on https.
    pub(super) fn redirect(
        &self,
        worker: &Worker,
        peer: &Peer,
        request: Request<RequestBody>,
    ) -> Response<RecordedBody> {
        let view = worker.view(&self.current);
        let is_head = *request.method() == Method::HEAD;
        let mut exchange = Exchange::begin(&request, peer, Arc::clone(&view));
        let (parts, _body) = request.into_parts();
        let mut response = match answer(&view.snapshot, peer, &parts, &mut *exchange) {
            Ok(response) => {
                exchange.completed();
                response
            }
            Err(refusal) => {
                exchange.refused(&refusal);
                refusal.into_response(exchange.request_id())
            }
        };
        if is_head {
            response = without_body(response);
        }
        // Nothing more is to be had here.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        exchange.finish(response)
    }
}

/// The 308 for a request.
///
/// # Errors
/// [`Refusal`]: too many fields, invalid framing, or a target without one meaning.
fn answer(
    snapshot: &Snapshot,
    peer: &Peer,
    parts: &Parts,
    observer: &mut impl Observer,
) -> Result<Response<Body>, Refusal> {
    let client = snapshot.proxies.client(peer, &parts.headers);
    let target = read_head(snapshot, &client, parts, observer)?;
    if target.host().is_empty() {
        // HTTP/1.0 without Host.
        return Err(TargetError::from(Ambiguity::HostMissing).into());
    }
    let location = format!("https://{}{}", target.host(), target.sent());
    let location =
        HeaderValue::try_from(location).map_err(|_| TargetError::from(Ambiguity::HostMalformed))?;
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}
