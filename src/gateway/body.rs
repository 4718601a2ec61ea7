//! The bodies of responses.
//!
//! They are not collected. A frame is passed on when the client asks for one, so a slow reader slows
//! down the writer (back-pressure).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::upstream::UpstreamBody;

/// A response body, either from the upstream or written by the gateway.
#[derive(Debug)]
pub enum Body {
    /// No body.
    Empty,
    /// Written by the gateway.
    Bytes(Bytes),
    /// From the upstream, unbuffered.
    Upstream(UpstreamBody),
}

/// Why a response body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The upstream closed the connection, or broke its framing.
    #[error("the upstream broke off its response")]
    Upstream(#[source] hyper::Error),
    /// The upstream ended its HTTP/2 stream without an error, but not its response.
    #[error("the upstream broke off its response: its stream ended before its end")]
    Unfinished,
    /// The upstream sent nothing for its `idle_timeout`.
    #[error(
        "the response was cut off: the upstream sent nothing for {}, its idle_timeout; raise idle_timeout in its section if it may pause for longer",
        humantime::format_duration(*.0)
    )]
    Idle(Duration),
    /// The exchange took too long.
    #[error("the response was cut off: the exchange took longer than total_timeout")]
    Total,
    /// The client did not read for `idle_timeout`.
    #[error("the client did not read its response")]
    Unread,
    /// The gateway has ended the stream, for this reason.
    #[error("the gateway ended the response: {0}")]
    Ended(&'static str),
}

impl Body {
    /// When the last byte from an upstream arrived, if that was just now.
    pub(super) fn ended(&self) -> Option<std::time::Instant> {
        match self {
            Self::Upstream(body) => body.ended(),
            Self::Empty | Self::Bytes(_) => None,
        }
    }

    /// Looks at the clock while nothing polls the body, because the client does not read.
    ///
    /// # Errors
    /// [`BodyError::Total`], if the exchange has taken too long.
    pub(super) fn look(&mut self) -> Result<(), BodyError> {
        match self {
            Self::Upstream(body) => body.look(Instant::now()),
            Self::Empty | Self::Bytes(_) => Ok(()),
        }
    }

    /// Whether it must have ended at some time.
    pub(super) fn has_deadline(&self) -> bool {
        matches!(self, Self::Upstream(body) if body.deadline().is_some())
    }

    /// Whether it has been waited for, some time after its head.
    pub(super) fn is_long(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_long(),
            Self::Empty | Self::Bytes(_) => false,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            body @ Self::Bytes(_) => match std::mem::replace(body, Self::Empty) {
                Self::Bytes(bytes) if !bytes.is_empty() => {
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                _ => Poll::Ready(None),
            },
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}
