//! A response body with the record of its exchange, and the end of a response or an upload if access
//! is taken away.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Exchange;
use crate::gateway::body::{Body, BodyError, LONG_BYTES};
use crate::gateway::refusal::Refusal;
use crate::gateway::streams::Kind;
use crate::reason::Reason;

/// A response body with the record of its exchange.
#[derive(Debug)]
pub struct RecordedBody {
    body: Body,
    exchange: Option<Box<Exchange>>,
    kind: Kind,
}

impl RecordedBody {
    /// A body whose exchange is recorded when it ends or is dropped. `kind`: what it is, if it runs
    /// for long.
    pub(super) fn new(body: Body, exchange: Box<Exchange>, kind: Kind) -> Self {
        Self { body, exchange: Some(exchange), kind }
    }

    /// A body whose exchange is recorded elsewhere.
    pub fn unrecorded(body: Body) -> Self {
        Self { body, exchange: None, kind: Kind::Download }
    }

    /// Whether the whole body of the request was read, if it had one.
    pub fn has_read_request(&self) -> bool {
        self.exchange
            .as_ref()
            .and_then(|exchange| exchange.upload.as_ref())
            .is_some_and(|upload| upload.is_complete())
    }

    /// Has the client's socket told when the gateway ends the stream, since a socket that is blocked
    /// does not poll its body.
    pub fn also_tell(&self, socket: impl FnOnce() -> Waker) {
        if let Some(stream) = self.exchange.as_ref().and_then(|exchange| exchange.stream()) {
            stream.also_tell(socket);
        }
    }

    /// Whether the gateway has ended the stream.
    pub fn is_ended(&self) -> bool {
        let stream = self.exchange.as_ref().and_then(|exchange| exchange.stream());
        stream.is_some_and(|stream| stream.end().is_some())
    }

    /// The error of a stream that the gateway has ended. Its upstream connection is closed then.
    fn poll_ended(&mut self, cx: &Context<'_>) -> Option<BodyError> {
        let stream = self.exchange.as_ref()?.stream()?;
        match stream.poll_end(cx) {
            Poll::Pending => None,
            Poll::Ready(end) => {
                let ended = BodyError::Ended(end.as_str());
                self.body = Body::Empty;
                Some(ended)
            }
        }
    }

    /// Registers the exchange as a stream, unless it is one. Returns whether it is new.
    fn register(&mut self) -> bool {
        let Some(exchange) = &mut self.exchange else { return false };
        if let Some(stream) = exchange.stream() {
            stream.sent(exchange.bytes_out);
            return false;
        }
        exchange.runs_long(self.kind);
        true
    }

    /// Ends the exchange: records it now rather than on drop. Returns the end time.
    pub fn end(&mut self) -> Instant {
        let ended = self.body.ended().unwrap_or_else(Instant::now);
        if let Some(mut exchange) = self.exchange.take() {
            exchange.ended = Some(ended);
        }
        ended
    }
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let recorded = self.get_mut();
        if let Some(ended) = recorded.poll_ended(cx) {
            return Poll::Ready(Some(Err(ended)));
        }
        let Poll::Ready(frame) = Pin::new(&mut recorded.body).poll_frame(cx) else {
            if recorded.body.is_long() && recorded.register() {
                return recorded
                    .poll_ended(cx)
                    .map_or(Poll::Pending, |ended| Poll::Ready(Some(Err(ended))));
            }
            return Poll::Pending;
        };
        match (&frame, &mut recorded.exchange) {
            (Some(Ok(frame)), Some(exchange)) => {
                exchange.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
                if exchange.bytes_out > LONG_BYTES {
                    recorded.register();
                }
            }
            (Some(Err(error)), Some(exchange)) => exchange.broke_off(error),
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Exchange {
    /// Waits for a response, or until the exchange loses its access. The request is dropped then,
    /// which closes the connection to the upstream.
    pub(in crate::gateway) async fn unless_ended<T>(
        &mut self,
        mut sending: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Refusal> {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                return Poll::Ready(Ok(sent));
            }
            self.poll_upload_end(cx).map(|end| {
                // Another instance, or the same one later, may take the upload.
                let reason = end.reason().unwrap_or(Reason::Draining);
                Err(Refusal::Ended { reason, why: end.as_str() })
            })
        })
        .await
    }
}
