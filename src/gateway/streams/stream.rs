//! One running exchange: what it is, who has it, and whether it was told to end.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, header};

use crate::gateway::grpc;
use crate::gateway::guard::{Denied, Place};
use crate::gateway::stream_rule::StreamRule;
use crate::gateway::token_memo::TokenMemo;
use crate::gateway::upload::Upload;
use crate::reason::Reason;
use crate::token::Remembered;

/// What a stream carries, as far as its head tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tunnel.
    WebSocket,
    /// `text/event-stream`.
    EventStream,
    /// `application/grpc`.
    Grpc,
    /// Another response.
    Download,
    /// A request body whose response has not begun.
    Upload,
}

impl Kind {
    /// The kind of a response with these fields.
    pub fn of_response(headers: &HeaderMap) -> Self {
        let is = |media: &str| {
            headers.get(header::CONTENT_TYPE).is_some_and(|value| {
                let start = value.as_bytes().get(..media.len());
                start.is_some_and(|start| start.eq_ignore_ascii_case(media.as_bytes()))
            })
        };
        if is("text/event-stream") {
            Self::EventStream
        } else if grpc::has_its_type(headers) {
            Self::Grpc
        } else {
            Self::Download
        }
    }

    /// Its name for operators.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::EventStream => "event-stream",
            Self::Grpc => "grpc",
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }
}

/// Why the gateway ends a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The token, its session or its subject was revoked.
    Revoked,
    /// `streams = "token"`, and the token has expired.
    Expired,
    /// It has lasted for `stream_max_age`.
    TooOld,
    /// A reload, or a newer token of the session, and the caller no longer has access.
    NotAllowed(Reason),
    /// A reload removed the route, or a more specific route now matches.
    RouteGone,
    /// An operator ended it.
    Operator,
    /// The gateway stops.
    Draining,
}

impl End {
    /// The word for it in metrics and messages.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::TooOld => "max_age",
            Self::NotAllowed(_) => "not_allowed",
            Self::RouteGone => "route_gone",
            Self::Operator => "operator",
            Self::Draining => "draining",
        }
    }

    /// The reason, for the access log; `None`: the decision about the request stands.
    pub const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Revoked => Some(Reason::TokenRevoked),
            Self::Expired => Some(Reason::TokenExpired),
            Self::NotAllowed(reason) => Some(*reason),
            Self::RouteGone => Some(Reason::RouteNotFound),
            Self::TooOld | Self::Operator | Self::Draining => None,
        }
    }

    /// The WebSocket close code (RFC 6455 §7.4.1): 1001 "going away", or 1008 "policy violation".
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::RouteGone | Self::Draining => 1001,
            _ => 1008,
        }
    }
}

impl From<Denied> for End {
    fn from(denied: Denied) -> Self {
        Self::NotAllowed(denied.reason())
    }
}

/// The bytes that a stream has carried.
#[derive(Debug, Default)]
pub struct StreamBytes {
    /// From the client.
    pub up: AtomicU64,
    /// To the client.
    pub down: AtomicU64,
}

/// What is known about a stream when it is registered.
#[derive(Debug)]
pub struct Opened {
    /// What it carries.
    pub kind: Kind,
    /// The method of its request.
    pub method: Method,
    /// The authority as received.
    pub authority: HeaderValue,
    /// The path and query as received.
    pub path: PathAndQuery,
    /// The address of its client.
    pub client: IpAddr,
    /// When its request began, in Unix seconds.
    pub begun: u64,
    /// The name of its route.
    pub route: Arc<str>,
    /// What the route says about streams.
    pub rule: StreamRule,
    /// The caller, and where the token was.
    pub caller: Option<(Arc<Remembered<TokenMemo>>, Place)>,
    /// What it has carried, counted by the stream.
    pub bytes: Arc<StreamBytes>,
    /// Its request body, which counts itself.
    pub upload: Option<Arc<Upload>>,
}

/// What may change while a stream runs.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) kind: Kind,
    pub(super) route: Arc<str>,
    pub(super) rule: StreamRule,
    pub(super) caller: Option<(Arc<Remembered<TokenMemo>>, Place)>,
    /// When it must end, in Unix seconds, and why; `None`: time does not end it.
    pub(super) deadline: Option<(u64, End)>,
}

/// A registered stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) id: u64,
    pub(super) method: Method,
    pub(super) authority: HeaderValue,
    pub(super) path: PathAndQuery,
    pub(super) client: IpAddr,
    pub(super) begun: u64,
    held: Mutex<Held>,
    bytes: Arc<StreamBytes>,
    upload: Option<Arc<Upload>>,
    end: OnceLock<End>,
    /// The task that passes its bytes on.
    task: Mutex<Option<Waker>>,
    /// Told first when it ends: the client's socket, which may be blocked.
    socket: OnceLock<Waker>,
}

impl Stream {
    pub(super) fn new(id: u64, opened: Opened) -> Self {
        let Opened { kind, method, authority, path, client, begun, .. } = opened;
        let Opened { route, rule, caller, bytes, upload, .. } = opened;
        Self {
            id,
            method,
            authority,
            path,
            client,
            begun,
            held: Mutex::new(Held { kind, route, rule, caller, deadline: None }),
            bytes,
            upload,
            end: OnceLock::new(),
            task: Mutex::default(),
            socket: OnceLock::new(),
        }
    }

    /// Why it was told to end; `None`: it was not.
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Ready when it was told to end. The calling task is woken then.
    pub fn poll_end(&self, cx: &Context<'_>) -> Poll<&End> {
        if let Some(end) = self.end.get() {
            return Poll::Ready(end);
        }
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *task {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *task = Some(cx.waker().clone()),
        }
        drop(task);
        // It may have been told in between.
        self.end.get().map_or(Poll::Pending, Poll::Ready)
    }

    /// Sets what is told first when it ends. Only the first call has an effect.
    pub fn also_tell(&self, socket: impl FnOnce() -> Waker) {
        let socket = self.socket.get_or_init(socket);
        if self.end.get().is_some() {
            socket.wake_by_ref();
        }
    }

    /// Records how many bytes the client was sent.
    pub fn sent(&self, bytes: u64) {
        self.bytes.down.store(bytes, Ordering::Relaxed);
    }

    /// The response of an upload has begun.
    pub fn answered(&self, kind: Kind) {
        self.held().kind = kind;
    }

    /// Tells it to end. Returns whether this was the first call.
    pub(super) fn tell(&self, end: End) -> bool {
        if self.end.set(end).is_err() {
            return false;
        }
        if let Some(socket) = self.socket.get() {
            socket.wake_by_ref();
        }
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.wake();
        }
        true
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that it has carried, in both directions.
    pub(super) fn carried(&self) -> u64 {
        self.bytes.up.load(Ordering::Relaxed)
            + self.bytes.down.load(Ordering::Relaxed)
            + self.upload.as_ref().map_or(0, |upload| upload.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::STREAM_ENDS;

    #[test]
    fn every_end_has_its_series_and_its_close_code() {
        let ends = [
            (End::Revoked, 1008),
            (End::Expired, 1008),
            (End::TooOld, 1008),
            (End::NotAllowed(Reason::RoleMissing), 1008),
            (End::RouteGone, 1001),
            (End::Operator, 1008),
            (End::Draining, 1001),
        ];
        assert_eq!(ends.clone().map(|(end, _)| end.as_str()), STREAM_ENDS);
        for (end, code) in ends {
            assert_eq!(end.close_code(), code, "{end:?}");
        }
    }
}
