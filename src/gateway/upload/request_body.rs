//! The body of a request, as the server passes it to the gateway.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// Takes the bodies of requests that were not read to the end.
pub trait UnreadBodies: std::fmt::Debug + Send + Sync {
    /// Takes the rest of a body.
    fn take(self: Arc<Self>, body: Incoming);
}

/// The body of a request, as the server passes it to the gateway.
///
/// If the server asks for it, the unread rest goes back to it when this is dropped.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    unread: Option<Arc<dyn UnreadBodies>>,
    pub(super) is_http2: bool,
}

impl RequestBody {
    /// Creates a body whose unread rest goes to `unread`.
    pub fn with_unread(incoming: Incoming, unread: &Arc<impl UnreadBodies + 'static>) -> Self {
        let unread = (!incoming.is_end_stream()).then(|| Arc::clone(unread) as _);
        Self { incoming: Some(incoming), unread, is_http2: false }
    }

    /// Says that it came over HTTP/2.
    #[must_use]
    pub fn over_http2(mut self) -> Self {
        self.is_http2 = true;
        self
    }
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        Self { incoming: Some(incoming), unread: None, is_http2: false }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let (Some(unread), Some(incoming)) = (self.unread.take(), self.incoming.take())
            && !incoming.is_end_stream()
        {
            unread.take(incoming);
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.incoming {
            Some(incoming) => Pin::new(incoming).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
