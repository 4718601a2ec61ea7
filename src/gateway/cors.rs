//! Requests of pages from other origins (CORS, <https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! A route names the origins whose pages may read its responses. The gateway answers their
//! preflights itself, and the fields of the protocol are its own on such a route.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    CACHE_CONTROL, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::body::Body;
use super::headers::single_value;

/// The origins whose pages may read the responses of a route.
#[derive(Debug)]
pub struct Cors {
    /// As browsers write them in `Origin`.
    pub origins: Vec<HeaderValue>,
    /// The header fields that their requests may have, as a list; `None`: only simple ones.
    pub headers: Option<HeaderValue>,
    /// Whether their requests may have cookies and other credentials that the browser adds.
    pub credentials: bool,
    /// For how many seconds a browser may remember the answer to a preflight.
    pub max_age: u64,
}

impl Cors {
    /// The origin of a request, if its pages may read the response.
    pub fn permitted<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        single_value(headers, &ORIGIN).filter(|origin| self.origins.contains(origin))
    }

    /// Sets the fields of a response for a page of `origin`; `None`: the request has no permitted
    /// origin. Those of the application are removed.
    pub fn apply(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in OURS {
            headers.remove(name);
        }
        headers.append(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// The answer to a preflight for a request with this method. The fields that permit the origin
    /// come with [`Cors::apply`].
    pub(super) fn preflight(&self, method: &Method) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        // Every method is ASCII.
        if let Ok(method) = HeaderValue::from_str(method.as_str()) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method);
        }
        if let Some(names) = &self.headers {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// The method that a preflight asks about; `None`: the request is none.
pub(super) fn asked_method(parts: &Parts) -> Option<Method> {
    if parts.method != Method::OPTIONS || !parts.headers.contains_key(ORIGIN) {
        return None;
    }
    let asked = single_value(&parts.headers, &ACCESS_CONTROL_REQUEST_METHOD)?;
    Method::from_bytes(asked.as_bytes()).ok()
}

/// The fields of the protocol that a permitted response has, and no other response. `Expose` stays
/// with the application, which knows its fields.
const OURS: [HeaderName; 2] = [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS];
