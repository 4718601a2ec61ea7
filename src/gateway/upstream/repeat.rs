//! What it takes to send a request again, after its connection was lost.

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body::Body as _;

use crate::gateway::body::ClientBody;

/// A copy of a request without a body.
pub(super) struct Repeat {
    method: Method,
    uri: Uri,
    /// Not a map: each request on a kept connection would pay for an index that hardly any uses.
    fields: Vec<(HeaderName, HeaderValue)>,
}

impl Repeat {
    /// Copies a request, if it may be sent twice: it has no body, and its method is idempotent (RFC
    /// 9110 §9.2.2).
    pub(super) fn of(request: &Request<ClientBody>) -> Option<Self> {
        if !request.method().is_idempotent() || !request.body().is_end_stream() {
            return None;
        }
        let fields = request.headers().iter();
        Some(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            fields: fields.map(|(name, value)| (name.clone(), value.clone())).collect(),
        })
    }

    /// The request.
    pub(super) fn rebuilt(self) -> Request<ClientBody> {
        let mut request = Request::new(ClientBody::default());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        request.headers_mut().extend(self.fields);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_request_has_every_field_of_the_first() {
        let mut request = Request::new(ClientBody::default());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = Uri::from_static("/a?b");
        for (name, value) in [("accept", "a"), ("x-own", "1"), ("accept", "b")] {
            request.headers_mut().append(name, HeaderValue::from_static(value));
        }
        let again = Repeat::of(&request).unwrap().rebuilt();
        assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
        assert_eq!(again.headers(), request.headers());
        *request.method_mut() = Method::POST;
        assert!(Repeat::of(&request).is_none());
    }
}
