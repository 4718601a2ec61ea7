//! gRPC: its requests, and refusals that its clients understand.
//!
//! A refusal is a response of status 200 without a body, whose fields say the status (gRPC over
//! HTTP/2, "Trailers-Only").

use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};

use super::body::Body;
use crate::reason::Reason;

/// Whether this is a gRPC call.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && *request.method() == Method::POST
        && has_its_type(request.headers())
}

/// Whether a message has the content type of gRPC.
pub(super) fn has_its_type(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let rest = kind.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| rest.first().is_none_or(|next| b"+; ".contains(next)))
    })
}

/// The refusal of a call, in place of the response to other clients.
pub(super) fn refused(reason: Reason, other: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from_static(status(reason.status())));
    headers.insert(MESSAGE, HeaderValue::from_static(reason.as_str()));
    for name in [CACHE_CONTROL, RETRY_AFTER] {
        if let Some(value) = other.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    response
}

/// The status code of gRPC that says most nearly what this status says.
fn status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 | 422 => "3",
        401 => "16",
        403 => "7",
        404 | 405 => "12",
        409 => "6",
        413 | 429 | 431 => "8",
        502..=504 => "14",
        _ => "2",
    }
}

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; x=y", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            assert_eq!(has_its_type(&headers), expected, "{kind}");
        }
        assert!(!has_its_type(&HeaderMap::new()));
    }
}
