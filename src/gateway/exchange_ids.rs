//! The ids of one exchange, for the upstream, the client and the log.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::client::ClientAddress;
use super::headers::single_value;
use super::texts;
use crate::telemetry::ids::{self, Traceparent};

/// The ids of one exchange, and the address of its client.
#[derive(Clone, Debug)]
pub struct ExchangeIds {
    /// `X-Request-Id`: a trusted proxy's, or ours.
    pub request_id: HeaderValue,
    /// The W3C trace that this request belongs to.
    pub trace: Traceparent,
    /// Whether a trusted proxy started the trace.
    pub trace_is_continued: bool,
    /// The client's address.
    address: HeaderValue,
    /// `trace` as text: only a request that is sent needs it as a field.
    traceparent: Bytes,
}

impl ExchangeIds {
    /// Keeps the ids of a trusted proxy, and creates missing ones.
    pub fn new(headers: &HeaderMap, client: &ClientAddress) -> Self {
        let kept = |name: &HeaderName| {
            if client.peer_is_trusted() { single_value(headers, name) } else { None }
        };
        let request_id = kept(&X_REQUEST_ID).filter(|id| is_request_id(id.as_bytes())).cloned();
        let continued =
            kept(&TRACEPARENT).and_then(|value| ids::parse_traceparent(value.as_bytes()));
        Self::create(client.text().clone(), request_id, continued)
    }

    /// The ids of a request whose fields were not read.
    pub fn begin(client: IpAddr) -> Self {
        Self::create(texts::short_lived_address(client), None, None)
    }

    fn create(
        address: HeaderValue,
        request_id: Option<HeaderValue>,
        continued: Option<Traceparent>,
    ) -> Self {
        let trace = continued.unwrap_or_else(Traceparent::begin);
        let header = trace.header();
        let (request_id, traceparent) = if let Some(id) = request_id {
            (id, texts::short_lived(&[&header]))
        } else {
            let id = ids::request_id();
            let mut text = texts::short_lived(&[id.as_bytes(), &header]);
            (texts::value(text.split_to(id.as_bytes().len())), text)
        };
        Self { request_id, trace, trace_is_continued: continued.is_some(), address, traceparent }
    }

    /// `traceparent`: the same as `trace`.
    pub fn traceparent(&self) -> HeaderValue {
        texts::value(self.traceparent.clone())
    }

    /// The client's address.
    pub fn address(&self) -> &str {
        std::str::from_utf8(self.address.as_bytes()).unwrap_or_default()
    }
}

/// A request id that can be logged and forwarded as it is.
fn is_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// The id of the request.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The trace that it belongs to (W3C Trace Context).
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
