//! The body of a request, as hyper sends it to the upstream.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Gate, IdleTimer, LONG_AFTER, LONG_BYTES, RequestBody, Upload, UploadFailure};

/// The client's body on its way to the upstream.
#[derive(Debug, Default)]
pub struct ClientBody(Option<Box<Streaming>>);

#[derive(Debug)]
struct Streaming {
    upload: Arc<Upload>,
    max: u64,
    idle: Duration,
    timer: IdleTimer,
    /// Trailer fields that may be forwarded (RFC 9110 §6.5).
    trailers: Vec<HeaderName>,
    gate: Option<Arc<Gate>>,
    counts_frames: bool,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.upload.dropped();
    }
}

impl ClientBody {
    /// Creates a body of at most `max` bytes, with at most `idle` between them. Trailer fields are
    /// forwarded if they are among `trailers`.
    pub fn new(
        inner: RequestBody,
        max: u64,
        idle: Duration,
        trailers: Vec<HeaderName>,
        gate: Option<Arc<Gate>>,
    ) -> (Self, Option<Arc<Upload>>) {
        if inner.is_end_stream() {
            return (Self(None), None);
        }
        let upload = Upload::new(inner);
        let streaming = Streaming {
            upload: Arc::clone(&upload),
            max,
            idle,
            timer: IdleTimer::default(),
            trailers,
            gate,
            counts_frames: false,
        };
        (Self(Some(Box::new(streaming))), Some(upload))
    }

    /// Counts the frames that hyper has taken and not written. Over HTTP/2, it drops a body that it has
    /// read to the end although the application has not taken all of it.
    pub fn count_frames(&mut self) {
        if let Some(streaming) = &mut self.0 {
            streaming.counts_frames = true;
        }
    }

    /// Whether there is a body of unknown length.
    pub fn has_unknown_length(&self) -> bool {
        self.0.as_ref().is_some_and(|streaming| streaming.upload.size_hint().exact().is_none())
    }
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = UploadFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadFailure>>> {
        match &mut self.0 {
            None => Poll::Ready(None),
            Some(streaming) => streaming.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|streaming| streaming.upload.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |streaming| streaming.upload.size_hint())
    }
}

impl Streaming {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadFailure>>> {
        if let Some(gate) = &self.gate {
            ready!(gate.poll_open(&mut self.timer, cx));
            self.gate = None;
            self.timer.reset();
        }
        if self.upload.is_blocked() {
            // hyper flushes next, and polls again as soon as the socket has taken everything.
            self.upload.awaits_client.store(false, Ordering::Release);
            self.timer.reset();
            return Poll::Pending;
        }
        let (frame, is_last) = match self.upload.poll_inner(cx) {
            Poll::Ready(polled) => polled,
            Poll::Pending => {
                self.upload.awaits_client.store(true, Ordering::Release);
                ready!(self.poll_idle(cx));
                return Poll::Ready(Some(Err(self.upload.fail(UploadFailure::Idle))));
            }
        };
        self.timer.reset();
        self.upload.awaits_client.store(false, Ordering::Release);
        Poll::Ready(match frame {
            None => {
                self.upload.complete.store(true, Ordering::Release);
                None
            }
            Some(Err(failure)) => Some(Err(self.upload.fail(failure))),
            Some(Ok(frame)) => self.pass(frame, is_last),
        })
    }

    /// Ready once the client has sent nothing for `idle`. The one timer also finds out that the
    /// upload runs for long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.upload.is_long.load(Ordering::Relaxed) {
            ready!(self.timer.poll_long(self.upload.begun + LONG_AFTER, self.idle, cx));
            self.upload.runs_long();
        }
        self.timer.poll(self.idle, cx)
    }

    fn pass(
        &mut self,
        frame: Frame<Bytes>,
        is_last: bool,
    ) -> Option<Result<Frame<Bytes>, UploadFailure>> {
        let frame = match frame.into_data() {
            Ok(data) if self.counts_frames && !data.is_empty() => {
                Frame::data(self.upload.count(data))
            }
            Ok(data) => Frame::data(data),
            Err(trailers) => trailers,
        };
        if let Some(data) = frame.data_ref() {
            self.upload.progressed(data.len());
            if self.upload.bytes() > self.max {
                return Some(Err(self.upload.fail(UploadFailure::TooLarge)));
            }
            if self.upload.bytes() > LONG_BYTES {
                self.upload.runs_long();
            }
            if is_last {
                self.upload.complete.store(true, Ordering::Release);
            }
            return Some(Ok(frame));
        }
        let trailers = frame.into_trailers().ok()?;
        self.upload.complete.store(true, Ordering::Release);
        let mut passed = HeaderMap::new();
        for name in &self.trailers {
            for value in trailers.get_all(name) {
                passed.append(name.clone(), value.clone());
            }
        }
        if passed.is_empty() { None } else { Some(Ok(Frame::trailers(passed))) }
    }
}
