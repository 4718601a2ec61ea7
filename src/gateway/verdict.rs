//! The answers of the `[verify]` listener: an [`Allow`], or a refusal in the form that the asking
//! proxy can pass on.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::authorize::Permit;
use super::body::Body;
use super::dialect::Dialect;
use super::exchange_ids::X_REQUEST_ID;
use super::matched::MatchedParts;
use super::outgoing::strip_cookies;
use super::refusal::Refusal;
use super::token_memo::set_identity_headers;
use super::token_names::TokenNames;

/// The answer that lets a proxy forward a request. Only [`Allow::new`] makes one, from a
/// [`Permit`], and nothing else answers 200.
///
/// ```
/// fn names(allow: &portcullis::gateway::verdict::Allow) -> &http::HeaderMap {
///     allow.headers()
/// }
/// ```
/// ```compile_fail
/// use portcullis::gateway::verdict::Allow;
/// fn forge() -> Allow {
///     Allow { headers: http::HeaderMap::new() }
/// }
/// ```
#[derive(Debug)]
pub struct Allow {
    headers: HeaderMap,
}

impl Allow {
    /// Every identity header of the route, empty where there is nothing to say: the proxy then
    /// overwrites what the client sent. So is `Cookie`, if the client sent any: the others than
    /// ours, which an application must not get.
    pub fn new(permit: Permit<'_>, names: &TokenNames) -> Self {
        let (matched, caller, _) = permit.into_parts();
        let identity = &matched.route().identity_headers;
        let MatchedParts { parts: request, .. } = *matched.into_parts();
        let mut headers = HeaderMap::new();
        if request.headers.contains_key(header::COOKIE) {
            headers.insert(header::COOKIE, other_cookies(request.headers, names));
        }
        for name in identity.names() {
            headers.insert(name.clone(), HeaderValue::from_static(""));
        }
        if let Some(caller) = &caller {
            set_identity_headers(identity, caller.token(), &mut headers);
        }
        Self { headers }
    }

    /// The identity headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The response: 200, without a body. The application gets the id of this request instead of
    /// one of the client.
    pub(super) fn into_response(self, request_id: &str) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        let mut headers = self.headers;
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let id = HeaderValue::from_str(request_id).unwrap_or(HeaderValue::from_static(""));
        headers.insert(X_REQUEST_ID, id);
        *response.headers_mut() = headers;
        response
    }
}

/// The cookies of a request without ours. Envoy joins repeated fields by commas, which may hide one
/// of ours in the value of another: then none is left.
fn other_cookies(mut headers: HeaderMap, names: &TokenNames) -> HeaderValue {
    strip_cookies(&mut headers, names);
    let left = headers.remove(header::COOKIE);
    left.filter(|cookies| {
        let mut parts = cookies.as_bytes().split(|byte| b",; \t\"".contains(byte));
        !parts.any(|part| names.own_cookie(part))
    })
    .unwrap_or(HeaderValue::from_static(""))
}

/// A refusal as this dialect can pass it on, and the status that the client gets.
pub(super) fn refused(
    dialect: Option<Dialect>,
    refusal: Refusal,
    request_id: &str,
) -> (StatusCode, Response<Body>) {
    let reason = refusal.reason();
    let response = refusal.into_response(request_id);
    let status = response.status();
    match dialect {
        Some(Dialect::Nginx) => (status, for_nginx(response, reason.as_str(), request_id)),
        _ => (status, response),
    }
}

/// nginx passes on nothing of a refusal but 401 and 403, and turns every other status into 500. The
/// written configuration puts the answer together again from these fields.
fn for_nginx(mut response: Response<Body>, reason: &'static str, id: &str) -> Response<Body> {
    let status = response.status();
    let may_log_in = status == StatusCode::UNAUTHORIZED || status.is_redirection();
    *response.status_mut() =
        if may_log_in { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
    let headers = response.headers_mut();
    for (name, moved) in MOVED {
        let mut values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
        headers.remove(&name);
        // With a 401, nginx passes one challenge on by itself: the first stays, as the only one.
        if name == header::WWW_AUTHENTICATE && status == StatusCode::UNAUTHORIZED {
            headers.extend(values.first().map(|first| (name, first.clone())));
            values = values.split_off(values.len().min(1));
        }
        headers.extend(values.into_iter().next().map(|value| (moved, value)));
    }
    headers.insert(X_PORTCULLIS_STATUS, HeaderValue::from(status.as_u16()));
    headers.insert(X_PORTCULLIS_REASON, HeaderValue::from_static(reason));
    // The body, which nginx drops, has it too.
    let id = HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static(""));
    headers.insert(X_PORTCULLIS_REQUEST_ID, id);
    response
}

const MOVED: [(HeaderName, HeaderName); 4] = [
    (header::LOCATION, HeaderName::from_static("x-portcullis-location")),
    (header::RETRY_AFTER, HeaderName::from_static("x-portcullis-retry-after")),
    (header::WWW_AUTHENTICATE, HeaderName::from_static("x-portcullis-challenge")),
    (header::ALLOW, HeaderName::from_static("x-portcullis-allow")),
];
const X_PORTCULLIS_STATUS: HeaderName = HeaderName::from_static("x-portcullis-status");
const X_PORTCULLIS_REASON: HeaderName = HeaderName::from_static("x-portcullis-reason");
const X_PORTCULLIS_REQUEST_ID: HeaderName = HeaderName::from_static("x-portcullis-request-id");
