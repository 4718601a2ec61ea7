//! A response body with the record of its exchange, and the end of a response or an upload if access
//! is taken away.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Exchange;
use crate::gateway::body::{Body, BodyError};
use crate::gateway::grpc;
use crate::gateway::refusal::Refusal;
use crate::gateway::streams::{End, Kind, StreamBytes, Unread};
use crate::gateway::upload::{LONG_AFTER, LONG_BYTES};
use crate::identity::Renewed;
use crate::reason::Reason;

/// A response body with the record of its exchange.
#[derive(Debug)]
pub struct RecordedBody {
    /// `None`: it was recorded, or is recorded elsewhere, and there is no body.
    exchange: Option<Box<Exchange>>,
}

/// What is known of a response whose client does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It has ended: the client gets no more of it.
    Over,
    /// Look again soon.
    Again,
    /// It is a stream, which is told when it must end.
    Told,
}

impl RecordedBody {
    /// A body whose exchange is recorded when it ends or is dropped.
    pub(super) fn new(body: Body, mut exchange: Box<Exchange>) -> Self {
        exchange.body = body;
        Self { exchange: Some(exchange) }
    }

    /// No body, and an exchange that is recorded elsewhere.
    pub fn unrecorded() -> Self {
        Self { exchange: None }
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

    /// Looks at the exchange while the client does not read, since nothing polls the body then: a
    /// response that takes long becomes a stream, or has taken too long.
    pub fn look(&mut self) -> Look {
        let Some(exchange) = &mut self.exchange else { return Look::Told };
        if let Err(error) = exchange.body.look() {
            exchange.broke_off(&error);
            exchange.body = Body::Empty;
            return Look::Over;
        }
        if exchange.body.is_long() {
            exchange.register_response();
        }
        if self.is_ended() {
            Look::Over
        } else if self.is_told() {
            Look::Told
        } else {
            Look::Again
        }
    }

    /// Whether it is told when it must end.
    pub fn is_told(&self) -> bool {
        self.exchange
            .as_ref()
            .is_none_or(|exchange| exchange.stream().is_some() && !exchange.body.has_deadline())
    }

    /// Has someone look at the exchange from time to time, since its client may stop reading.
    pub fn look_from_time_to_time(&self, unread: Weak<dyn Unread>) {
        if let Some(exchange) = &self.exchange {
            exchange.view.streams.look_at(exchange.view.worker, unread);
        }
    }

    /// Ready if the gateway has ended the stream. The calling task is woken then.
    pub fn poll_ended(&mut self, cx: &Context<'_>) -> Poll<()> {
        match self.exchange.as_mut().and_then(|exchange| exchange.poll_ended(cx)) {
            Some(_) => Poll::Ready(()),
            None => Poll::Pending,
        }
    }

    /// Whether the gateway has ended the stream.
    pub fn is_ended(&self) -> bool {
        let stream = self.exchange.as_ref().and_then(|exchange| exchange.stream());
        stream.is_some_and(|stream| stream.end().is_some())
    }

    /// Ends the exchange: records it now rather than on drop. Returns the end time.
    pub fn end(&mut self) -> Instant {
        let Some(mut exchange) = self.exchange.take() else { return Instant::now() };
        let ended = exchange.body.ended().unwrap_or_else(Instant::now);
        exchange.ended = Some(ended);
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
        let Some(exchange) = &mut self.get_mut().exchange else { return Poll::Ready(None) };
        if let Some(ended) = exchange.poll_ended(cx) {
            return Poll::Ready(Some(Err(ended)));
        }
        let Poll::Ready(frame) = Pin::new(&mut exchange.body).poll_frame(cx) else {
            if exchange.body.is_long() && exchange.register_response() {
                return exchange
                    .poll_ended(cx)
                    .map_or(Poll::Pending, |ended| Poll::Ready(Some(Err(ended))));
            }
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => {
                exchange.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
                if exchange.bytes_out > LONG_BYTES {
                    exchange.register_response();
                }
            }
            Some(Err(error)) => exchange.broke_off(error),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.as_ref().is_none_or(|exchange| exchange.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.exchange.as_ref().map(|exchange| &exchange.body);
        body.map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Exchange {
    /// Attaches the record to the response: it is written when the body ends or is dropped.
    pub fn finish(mut self: Box<Self>, mut response: Response<Body>) -> Response<RecordedBody> {
        self.head(&mut response);
        // A body whose length is announced is none of the special kinds.
        if response.body().size_hint().exact().is_none() {
            self.kind = Kind::of_response(response.headers());
        }
        if let Some(stream) = self.stream() {
            stream.answered(self.kind);
        }
        response.map(|body| RecordedBody::new(body, self))
    }

    /// The same for an answer that the asking proxy turns into one with this status. It sets no
    /// cookies: the proxy would lose them.
    pub fn finish_as(
        mut self: Box<Self>,
        status: StatusCode,
        response: Response<Body>,
    ) -> Response<RecordedBody> {
        self.answered_with(status.as_u16());
        response.map(|body| RecordedBody::new(body, self))
    }

    /// The response to a request that was refused.
    pub(in crate::gateway) fn refuse(&mut self, refusal: Refusal, is_grpc: bool) -> Response<Body> {
        let reason = refusal.reason();
        let refused = self.explained(refusal).into_response(self.request_id());
        if !is_grpc {
            return refused;
        }
        // Limits count what is refused, although the status will be 200.
        self.settle_cells(refused.status().as_u16());
        grpc::refused(reason, refused.headers())
    }

    /// The error of a stream that the gateway has ended. Its upstream connection is closed then.
    fn poll_ended(&mut self, cx: &Context<'_>) -> Option<BodyError> {
        match self.stream()?.poll_end(cx) {
            Poll::Pending => None,
            Poll::Ready(end) => {
                let ended = BodyError::Ended(end.as_str());
                self.body = Body::Empty;
                Some(ended)
            }
        }
    }

    /// Registers it as a stream, unless it is one. Returns whether it is new.
    fn register_response(&mut self) -> bool {
        if let Some(stream) = self.stream() {
            stream.sent(self.bytes_out);
            return false;
        }
        let bytes = Arc::new(StreamBytes::default());
        bytes.down.store(self.bytes_out, Ordering::Relaxed);
        self.register(self.kind, bytes);
        true
    }

    /// Refuses a response that took long, if its caller has lost access meanwhile.
    pub(in crate::gateway) fn check_access(&self) -> Result<(), Refusal> {
        let was_long = self.upstream.is_some_and(|waited| waited >= LONG_AFTER);
        match &self.caller {
            Some((token, _)) if was_long && self.view.streams.is_revoked(token) => {
                Err(Refusal::Ended { reason: Reason::TokenRevoked, why: End::Revoked.as_str() })
            }
            _ => Ok(()),
        }
    }

    /// The renewal whose cookies the response would set, if it is long ago that they were the newest.
    pub(in crate::gateway) fn old_renewal(&self) -> Option<Arc<Renewed>> {
        let is_old = |_: &&Arc<Renewed>| self.begun.elapsed() >= NEW_FOR;
        self.renewed.as_ref().filter(is_old).cloned()
    }

    /// Sets no cookies of a renewal: newer ones were sent since, or the session has ended.
    pub(in crate::gateway) fn outdated(&mut self) {
        self.renewed = None;
    }

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

/// How long the cookies of a renewal are taken for the newest without asking.
const NEW_FOR: Duration = Duration::from_secs(1);
