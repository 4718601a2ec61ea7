//! `redirect_http`: a listener that only redirects, to the same target on https.

use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};

use super::body::Body;
use super::client::Peer;
use super::matched::read_head;
use super::observer::Observer;
use super::refusal::Refusal;
use super::snapshot::Snapshot;
use super::target::{Ambiguity, TargetError};

/// The 308 for a request.
///
/// # Errors
/// [`Refusal`]: too many fields, invalid framing, or a target without one meaning.
pub(super) fn redirect(
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
