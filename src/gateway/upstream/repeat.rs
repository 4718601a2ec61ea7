//! What it takes to send a request again, after its connection was lost.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body::Body as _;

use super::http2::Lost;
use crate::gateway::upload::ClientBody;

/// Whether a request may be sent twice: it has no body, and its method is idempotent (RFC 9110
/// §9.2.2).
pub(super) fn is_allowed(request: &Request<ClientBody>) -> bool {
    request.method().is_idempotent() && request.body().is_end_stream()
}

/// The request whose head of HTTP/1.1 this is. `None`: the head is not complete.
pub(super) fn parsed(head: &[u8]) -> Option<Request<ClientBody>> {
    let lines = head.split(|&byte| byte == b'\n').count();
    let mut fields = vec![httparse::EMPTY_HEADER; lines];
    let mut parsed = httparse::Request::new(&mut fields);
    if parsed.parse(head).ok()?.is_partial() {
        return None;
    }
    let mut request = Request::new(ClientBody::default());
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = parsed.path?.parse().ok()?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    *request.headers_mut() = headers;
    Some(request)
}

/// A copy of a request without a body, for HTTP/2, which compresses heads.
pub(super) struct Repeat {
    method: Method,
    uri: Uri,
    /// Not a map: each request on a kept connection would pay for an index that hardly any uses.
    fields: Vec<(HeaderName, HeaderValue)>,
}

impl Repeat {
    /// Copies a request. `None`: it has a body.
    pub(super) fn of(request: &Request<ClientBody>) -> Option<Self> {
        if !request.body().is_end_stream() {
            return None;
        }
        let fields = request.headers().iter();
        Some(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            fields: fields.map(|(name, value)| (name.clone(), value.clone())).collect(),
        })
    }

    /// Whether it may be sent again after this loss.
    pub(super) fn is_allowed_after(&self, lost: Lost) -> bool {
        lost == Lost::Refused || self.method.is_idempotent()
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
        let again = Repeat::of(&request).unwrap();
        assert!(again.is_allowed_after(Lost::Refused));
        assert!(!again.is_allowed_after(Lost::Connection));
    }

    #[test]
    fn a_written_head_is_the_same_request_again() {
        let head =
            b"OPTIONS /a/%2e;b?c=[d]|e^f HTTP/1.1\r\nhost: app.test\r\naccept: a\r\naccept: b\r\n\
            x-name: \xe9\r\nx-empty: \r\n\r\n";
        let request = parsed(head).unwrap();
        assert_eq!(request.method(), "OPTIONS");
        assert_eq!(request.uri(), "/a/%2e;b?c=[d]|e^f");
        let fields: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let expected: [(&str, &[u8]); 5] = [
            ("host", b"app.test"),
            ("accept", b"a"),
            ("accept", b"b"),
            ("x-name", b"\xe9"),
            ("x-empty", b""),
        ];
        assert_eq!(fields, expected);
        assert!(parsed(b"*").is_none() && parsed(&head[..head.len() - 1]).is_none());
        assert_eq!(parsed(b"OPTIONS * HTTP/1.1\r\n\r\n").unwrap().uri(), "*");
    }
}
