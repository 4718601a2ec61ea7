//! The ids of one exchange, for the upstream, the client and the log.

use std::cell::RefCell;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::client::ClientAddress;
use super::headers::single_value;
use crate::telemetry::ids::{self, Traceparent};
use crate::telemetry::write_address;

thread_local! {
    static TEXTS: RefCell<Texts> = RefCell::default();
}

/// The texts that a worker writes, one for each exchange. Several share a block of memory, which
/// costs less than one for each, and is free once the last of them has ended.
#[derive(Default)]
struct Texts {
    next: Vec<u8>,
    block: BytesMut,
}

/// The size of a block, in bytes: about ten texts.
const BLOCK: usize = 1024;

/// The ids of one exchange, and what else the upstream learns about its origin.
#[derive(Clone, Debug)]
pub struct ExchangeIds {
    /// `X-Request-Id`: a trusted proxy's, or ours.
    pub request_id: HeaderValue,
    /// The W3C trace that this request belongs to.
    pub trace: Traceparent,
    /// Whether a trusted proxy started the trace.
    pub trace_is_continued: bool,
    /// The other two values, one after the other: only a request that is sent needs them.
    text: Bytes,
    traced: usize,
    addressed: usize,
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
        Self::write(client.ip(), request_id, continued)
    }

    /// The ids of a request whose fields were not read.
    pub fn begin(client: IpAddr) -> Self {
        Self::write(client, None, None)
    }

    fn write(
        client: IpAddr,
        request_id: Option<HeaderValue>,
        continued: Option<Traceparent>,
    ) -> Self {
        let trace = continued.unwrap_or_else(Traceparent::begin);
        let (text, traced, addressed) = TEXTS.with_borrow_mut(|Texts { next, block }| {
            next.clear();
            next.extend_from_slice(&trace.header());
            let traced = next.len();
            write_address(next, client);
            let addressed = next.len();
            if request_id.is_none() {
                next.extend_from_slice(ids::request_id().as_bytes());
            }
            if block.capacity() < next.len() {
                *block = BytesMut::with_capacity(BLOCK);
            }
            block.extend_from_slice(next);
            (block.split().freeze(), traced, addressed)
        });
        Self {
            request_id: request_id.unwrap_or_else(|| value(text.slice(addressed..))),
            trace,
            trace_is_continued: continued.is_some(),
            text,
            traced,
            addressed,
        }
    }

    /// `traceparent`: the same as `trace`.
    pub fn traceparent(&self) -> HeaderValue {
        value(self.text.slice(..self.traced))
    }

    /// The client's address.
    pub fn address(&self) -> &str {
        std::str::from_utf8(&self.text[self.traced..self.addressed]).unwrap_or_default()
    }

    /// `X-Forwarded-For`: the client's address.
    pub fn forwarded_for(&self) -> HeaderValue {
        value(self.text.slice(self.traced..self.addressed))
    }
}

/// The value of a field, which contains only letters, digits, and the punctuation of addresses.
fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static(""))
}

/// A request id that can be logged and forwarded as it is.
fn is_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// The id of the request.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The trace that it belongs to (W3C Trace Context).
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
