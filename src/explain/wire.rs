//! The request as a client would write it, parsed by the HTTP server of the data path.
//!
//! If that server refuses a request because of its syntax or size, the same code refuses it here.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, header};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Question;
use crate::gateway::refusal::Refusal;
use crate::gateway::snapshot::ConnectionLimits;
use crate::gateway::target::{Ambiguity, TargetError};
use crate::reason::Reason;
use crate::server::http1_builder;

/// The bytes of a request head.
pub(super) struct Head {
    bytes: Vec<u8>,
    /// Whether the request would arrive over TLS.
    pub(super) tls: bool,
}

/// A refusal by the HTTP server before there is a request.
#[derive(Debug)]
pub(super) struct MalformedRequest {
    /// The status of its response.
    pub(super) status: u16,
    /// The matching reason.
    pub(super) reason: Reason,
    /// The error message of the server.
    pub(super) cause: String,
}

impl Head {
    /// Builds the head that a client would send for a question: HTTP/1.1, origin-form, and the
    /// URL's authority as `Host` unless the fields contain one.
    ///
    /// # Errors
    /// As for [`Requested::parse`].
    pub(super) fn new(question: &Question) -> Result<Self, Refusal> {
        let Requested { tls, authority, target } = Requested::parse(question)?;
        let mut head = Self::begin(&format!("{} {target} HTTP/1.1", question.method), tls);
        if !question.headers.contains_key(header::HOST) {
            head.field("host", authority.as_bytes());
        }
        for (name, value) in &question.headers {
            head.field(name.as_str(), value.as_bytes());
        }
        Ok(head.end())
    }

    /// Starts a head with its request line.
    pub(super) fn begin(line: &str, tls: bool) -> Self {
        Self { bytes: format!("{line}\r\n").into_bytes(), tls }
    }

    /// Appends a field.
    pub(super) fn field(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.bytes.extend_from_slice(part);
        }
    }

    /// The whole head.
    pub(super) fn end(mut self) -> Self {
        self.bytes.extend_from_slice(b"\r\n");
        self
    }
}

/// What a question is about, as a client writes it.
pub(super) struct Requested<'q> {
    pub(super) tls: bool,
    pub(super) authority: &'q str,
    /// In origin-form.
    pub(super) target: String,
}

impl<'q> Requested<'q> {
    /// Splits the URL of a question.
    ///
    /// # Errors
    /// [`Refusal::Target`], if the URL has a fragment, which clients do not send, or a byte that
    /// would end the request line.
    pub(super) fn parse(question: &'q Question) -> Result<Self, Refusal> {
        let refused = |ambiguity| Refusal::Target(TargetError::Ambiguous(ambiguity));
        let url = question.url.as_str();
        // hyper drops a fragment before anything can see it, so look for it in the text.
        if url.contains('#') {
            return Err(refused(Ambiguity::Fragment));
        }
        if url.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(refused(Ambiguity::PathByte));
        }
        let absolute = match url.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => Some((scheme, rest)),
            _ => None,
        };
        let (tls, authority, target) = match absolute {
            None => (false, None, url),
            Some((scheme, rest)) => {
                let (authority, target) =
                    rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                (scheme.eq_ignore_ascii_case("https"), Some(authority), target)
            }
        };
        let slash = if target == "*" || target.starts_with('/') { "" } else { "/" };
        let authority = authority.unwrap_or("localhost");
        Ok(Self { tls, authority, target: format!("{slash}{target}") })
    }
}

/// RFC 3986 §3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Passes a head through the HTTP server, and what it parses to `decide`.
///
/// Everything is in memory and nothing waits, so the connection is polled without a runtime.
///
/// # Errors
/// [`MalformedRequest`], if the server refuses the head.
pub(super) fn parse<T>(
    head: &Head,
    limits: &ConnectionLimits,
    decide: impl AsyncFnOnce(Parts, Option<u64>) -> T,
) -> Result<T, MalformedRequest> {
    let written = Arc::new(Mutex::new(Vec::new()));
    let io = Memory { unread: Bytes::copy_from_slice(&head.bytes), written: Arc::clone(&written) };
    let outcome = Cell::new(None);
    // There is one request, so this is taken once.
    let decide = Cell::new(Some(decide));
    let service = service_fn(|request: Request<Incoming>| {
        let (outcome, decide) = (&outcome, decide.take());
        async move {
            let (parts, body) = request.into_parts();
            if let Some(decide) = decide {
                outcome.set(Some(decide(parts, body.size_hint().exact()).await));
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let builder = http1_builder(limits);
    let ended = {
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        connection.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    };
    if let Some(outcome) = outcome.into_inner() {
        return Ok(outcome);
    }
    let cause = match ended {
        Poll::Ready(Err(error)) => error.to_string(),
        _ => "the request is incomplete".to_owned(),
    };
    let written = written.lock().unwrap_or_else(PoisonError::into_inner);
    let status = status_of(&written).unwrap_or(400);
    Err(MalformedRequest { status, reason: reason_of(status, &cause), cause })
}

/// The status of an HTTP/1.1 response.
fn status_of(response: &[u8]) -> Option<u16> {
    std::str::from_utf8(response.get(9..12)?).ok()?.parse().ok()
}

fn reason_of(status: u16, cause: &str) -> Reason {
    if status == 431 {
        Reason::HeadersTooLarge
    } else if cause.contains("content-length") || cause.contains("transfer-encoding") {
        Reason::FramingInvalid
    } else if cause.contains("URI") {
        Reason::TargetAmbiguous
    } else {
        Reason::RequestInvalid
    }
}

/// A connection whose client has already written everything, and reads everything.
struct Memory {
    unread: Bytes,
    written: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Memory {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let memory = self.get_mut();
        if memory.unread.is_empty() {
            // The client keeps the connection open and waits for the response.
            return Poll::Pending;
        }
        let length = memory.unread.len().min(buf.remaining());
        buf.put_slice(&memory.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
