//! One client connection: TLS, then HTTP/1.1 or HTTP/2, until it ends or drains.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::Accepted;
use super::frames::Frames;
use super::per_client::ClientSlot;
use super::plain_http;
use super::shutdown::Shutdown;
use super::stalls::{Stalls, StreamTasks};
use super::stream::{Busy, ClientStream, ConnectionState, MAX_DISCARDED, Timeouts};
use super::unsent::MAX_UNSENT;
use crate::coalesce::Coalescing;
use crate::gateway::certificate::ClientCertificate;
use crate::gateway::client::{Door, Peer};
use crate::gateway::exchange::RecordedBody;
use crate::gateway::snapshot::{ConnectionLimits, Tls};
use crate::gateway::upload::RequestBody;
use crate::gateway::worker::Worker;
use crate::gateway::{Gateway, Snapshot};

/// The HTTP/2 preface, which a client with prior knowledge sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long an HTTP/2 client may take to close the connection after GOAWAY, once its exchanges have
/// ended.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request may be in flight that the client sent before it could know of the drain. The
/// time counts from the opening of the connection or from its last response.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// The number of bytes that an HTTP/2 client may send of an upload ahead of the application.
const UPLOAD_WINDOW: u32 = 512 * 1024;

/// The same for all uploads of a connection. h2 ends a connection whose unread frames are many and
/// small, by a measure that grows with this: one upload in frames of 30 bytes does not reach it.
const ALL_UPLOADS_WINDOW: u32 = 16 * UPLOAD_WINDOW;

/// The maximum number of concurrent streams on one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;

/// Serves a connection until it ends. An early end is usually the client's doing, so it is logged
/// at debug level only, unless the request could not be parsed.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    worker: Arc<Worker>,
    Accepted { door, stream, peer: address, is_unnamed }: Accepted,
    slot: Option<ClientSlot>,
    snapshot: &Snapshot,
    draining: Arc<Shutdown>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(cause = %error, "the client was gone at once");
        return;
    }
    let metrics = gateway.telemetry().metrics.clone();
    let timeouts =
        Timeouts { header: snapshot.limits.header_timeout, idle: snapshot.limits.idle_timeout };
    // Proxies ask in cleartext.
    let tls = snapshot.tls.as_ref().filter(|_| door == Door::Public);
    let mut peer = Peer::new(address, tls.is_some());
    peer.is_unnamed = is_unnamed;
    // Boxed, since the future of each function that it is passed to would have space for it.
    let context = Box::new(ConnectionContext {
        gateway,
        worker,
        door,
        peer,
        state: ConnectionState::new(slot),
        timeouts,
        draining,
    });
    // Boxed, so that a connection takes up the memory of its own protocol, not of the largest one.
    let ended = match tls {
        None => context.cleartext(stream, snapshot).await,
        Some(tls) => Box::pin(context.over_tls(stream, tls, snapshot)).await,
    };
    let Err(error) = ended else { return };
    if let Some(kind) = error.downcast_ref().and_then(malformed) {
        metrics.malformed(kind);
        tracing::info!(peer = %address, kind, cause = %error, "the request could not be read");
    } else {
        tracing::debug!(peer = %address, cause = %error, "the connection ended early");
    }
}

/// Configures hyper for HTTP/1.1. [`ClientStream`] enforces the timeouts, not hyper.
pub fn http1_builder(limits: &ConnectionLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(None);
    builder.max_header_size(limits.max_header_bytes).max_headers(limits.max_headers);
    builder.max_buf_size(limits.max_header_bytes);
    builder
}

/// The kind of fault in a request head that hyper rejected. Such a request has no exchange and no
/// access log line.
fn malformed(error: &hyper::Error) -> Option<&'static str> {
    if !error.is_parse() {
        return None;
    }
    if error.is_parse_too_large() {
        return Some("too_large");
    }
    // hyper distinguishes the other kinds only by the text of the error.
    let cause = error.to_string();
    let kinds =
        [("method", "method"), ("version", "version"), ("URI", "target"), ("header", "header")];
    let kind = kinds.into_iter().find_map(|(word, kind)| cause.contains(word).then_some(kind));
    Some(kind.unwrap_or("other"))
}

/// Whether the rest of a request's body is discarded after an early response, so that the connection
/// stays usable. A client that waits for 100 (Continue) may send its body or not.
fn is_discarded(request: &Request<Incoming>) -> bool {
    !request.headers().contains_key(header::EXPECT)
        && http_body::Body::size_hint(request.body()).lower() <= MAX_DISCARDED as u64
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The context that all requests of a connection share.
struct ConnectionContext {
    gateway: Arc<Gateway>,
    worker: Arc<Worker>,
    door: Door,
    peer: Peer,
    state: Arc<ConnectionState>,
    timeouts: Timeouts,
    draining: Arc<Shutdown>,
}

impl ConnectionContext {
    /// Serves HTTP/1.1 or HTTP/2, as the client chooses by ALPN.
    async fn over_tls(
        mut self: Box<Self>,
        mut stream: TcpStream,
        tls: &Tls,
        snapshot: &Snapshot,
    ) -> Ended {
        let handshake = async {
            if plain_http::is_spoken(&stream).await? {
                self.gateway.telemetry().metrics.malformed("not_tls");
                plain_http::refuse(&mut stream).await?;
                return Ok(None);
            }
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls.config));
            acceptor.accept(stream).await.map(Some)
        };
        let shaken = timeout(self.timeouts.header, handshake)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let Some(stream) = shaken else { return Ok(()) };
        let session = stream.get_ref().1;
        if let (Some(authority), Some(shown)) = (tls.authority(), session.peer_certificates()) {
            let own = shown.first().and_then(|own| ClientCertificate::verified(own, *authority));
            self.peer.certificate = own.map(Arc::new);
        }
        if session.alpn_protocol() == Some(b"h2") {
            Box::pin(self.http2(stream, Bytes::new(), snapshot)).await
        } else {
            Box::pin(self.http1(stream, Bytes::new(), snapshot)).await
        }
    }

    /// Serves HTTP/1.1, or HTTP/2 if the client starts with its preface.
    async fn cleartext(self: Box<Self>, stream: TcpStream, snapshot: &Snapshot) -> Ended {
        if !snapshot.h2c || self.door != Door::Public {
            return Box::pin(self.http1(Coalescing(stream), Bytes::new(), snapshot)).await;
        }
        // Boxed, so that its memory is free once it is read.
        let preface = Box::pin(async {
            tokio::select! {
                biased;
                preface = read_preface(&stream, self.timeouts) => preface,
                () = self.may_close() => Ok(Preface::Nothing),
            }
        });
        match preface.await? {
            Preface::Http2(read) => Box::pin(self.http2(stream, read, snapshot)).await,
            Preface::Other(read) => Box::pin(self.http1(Coalescing(stream), read, snapshot)).await,
            Preface::Nothing => Ok(()),
        }
    }

    async fn http1<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: Box<Self>,
        io: T,
        prefix: Bytes,
        snapshot: &Snapshot,
    ) -> Ended {
        let io = ClientStream::new(io, prefix, Arc::clone(&self.state), self.timeouts, None);
        let builder = http1_builder(&snapshot.limits);
        let context = &self;
        let service = service_fn(|request: Request<Incoming>| {
            // Before anything else: from here on, the connection does not wait for the client.
            let busy = context.state.enter();
            let has_body = !http_body::Body::is_end_stream(request.body());
            context.state.set_has_body(has_body);
            let closes_if_unread = has_body && !is_discarded(&request);
            let request = request.map(|body| {
                if closes_if_unread {
                    RequestBody::from(body)
                } else {
                    RequestBody::with_unread(body, &context.state)
                }
            });
            let ConnectionContext { gateway, worker, door, peer, .. } = &**context;
            let handling = gateway.handle(worker, *door, peer, request);
            async move {
                let mut response = handling.await;
                let is_unread = closes_if_unread && !response.body().has_read_request();
                if is_unread && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(
                    context
                        .detach_if_tunnel(response)
                        .map(|body| BusyBody { body: Some(body), busy }),
                )
            }
        });
        let mut connection =
            pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = self.may_close() => {
                self.state.shorten_linger();
                connection.as_mut().graceful_shutdown();
            }
        }
        Ok(connection.await?)
    }

    async fn http2<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: Box<Self>,
        io: T,
        prefix: Bytes,
        snapshot: &Snapshot,
    ) -> Ended {
        let frames = Some(Box::new(Frames::new()));
        let io = ClientStream::new(io, prefix, Arc::clone(&self.state), self.timeouts, frames);
        let stalls = Arc::new(Stalls::new());
        let mut builder = http2::Builder::new(StreamTasks(Arc::clone(&stalls)));
        builder.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
        builder.max_header_list_size(
            u32::try_from(snapshot.limits.max_header_bytes).unwrap_or(u32::MAX),
        );
        builder
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        builder
            .max_send_buf_size(MAX_UNSENT)
            .initial_stream_window_size(UPLOAD_WINDOW)
            .initial_connection_window_size(ALL_UPLOADS_WINDOW);
        let context = Arc::<Self>::from(self);
        let (answering, watching) = (Arc::clone(&context), Arc::clone(&stalls));
        let service = service_fn(move |request: Request<Incoming>| {
            let request =
                request.map(|body| RequestBody::with_unread(body, &answering.state).over_http2());
            let (context, stalls) = (Arc::clone(&answering), Arc::clone(&watching));
            let (busy, opened) = (context.state.enter(), stalls.open());
            async move {
                let response = context
                    .gateway
                    .handle(&context.worker, context.door, &context.peer, request)
                    .await;
                Ok::<_, Infallible>(
                    context.detach_if_tunnel(response).map(|body| stalls.watch(opened, body, busy)),
                )
            }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        let is_full = || context.state.is_full();
        tokio::select! {
            ended = poll_fn(|cx| stalls.unsent.poll(connection.as_mut(), is_full, cx)) => {
                return Ok(ended?);
            }
            () = context.draining.triggered() => {}
            () = context.idle() => {}
            () = stalls.end_stalled(context.timeouts.idle) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = poll_fn(|cx| stalls.unsent.poll(connection.as_mut(), is_full, cx)) => Ok(ended?),
            () = stalls.end_stalled(context.timeouts.idle) => Ok(()),
            // Otherwise, unread streams or a client that never closes would keep the connection
            // open indefinitely.
            () = context.goaway_expired() => Ok(()),
        }
    }

    /// Returns once the drain has begun and no request is likely to be in flight. The response to a
    /// request that arrives during the drain closes the connection; if none arrives, the caller
    /// closes it.
    async fn may_close(&self) {
        self.draining.triggered().await;
        while let Some(idle_since) = self.state.idle_since() {
            let deadline = idle_since + IN_FLIGHT;
            if Instant::now() >= deadline {
                return;
            }
            // Boxed: no connection waits here before a drain, and all would keep space for it.
            Box::pin(tokio::time::sleep_until(deadline)).await;
        }
    }

    /// Returns once no exchange has been active for `idle_timeout`.
    async fn idle(&self) {
        loop {
            let now = Instant::now();
            let deadline = self.state.idle_since().unwrap_or(now) + self.timeouts.idle;
            if now >= deadline {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// Returns once the client has had enough time to close the connection after GOAWAY. The time
    /// counts from the last exchange or from the last byte that the client took, whichever is
    /// later, since the end of a response may still be in flight. It has an upper limit, since
    /// replies to pings are bytes too.
    async fn goaway_expired(&self) {
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            let deadline = match self.state.idle_since() {
                None => now + GOAWAY_TIMEOUT,
                Some(idle) => {
                    let idle = idle.max(begun);
                    (idle.max(self.state.last_write()) + GOAWAY_TIMEOUT)
                        .min(idle + self.timeouts.idle.max(GOAWAY_TIMEOUT))
                }
            };
            if now >= deadline {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// Detaches the socket if it becomes a tunnel: it then no longer concerns this connection.
    fn detach_if_tunnel(&self, response: Response<RecordedBody>) -> Response<RecordedBody> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.state.detach();
        }
        response
    }
}

/// A response body that keeps its connection busy until it ends.
struct BusyBody {
    /// `None`: its socket has it.
    body: Option<RecordedBody>,
    busy: Busy,
}

impl BusyBody {
    /// Leaves the body to its socket as well, which looks at it while the client does not read.
    fn share(&mut self) {
        if let Some(body) = self.body.take() {
            *self.busy.response() = Some(body);
        }
    }
}

impl Drop for BusyBody {
    fn drop(&mut self) {
        let body = self.body.take().or_else(|| self.busy.response().take());
        if let Some(mut body) = body {
            self.busy.end_with(&mut body);
        }
    }
}

impl http_body::Body for BusyBody {
    type Data = Bytes;
    type Error = <RecordedBody as http_body::Body>::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.busy.is_full() {
            this.share();
            // hyper flushes next, and polls again as soon as the socket has taken everything.
            return Poll::Pending;
        }
        let Some(body) = &mut this.body else {
            let mut shared = this.busy.response();
            return Pin::new(shared.get_or_insert_with(RecordedBody::unrecorded)).poll_frame(cx);
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) && !body.is_end_stream() {
            this.share();
        }
        polled
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.body {
            Some(body) => body.is_end_stream(),
            None => self.busy.response().as_ref().is_none_or(RecordedBody::is_end_stream),
        }
    }

    #[inline]
    fn size_hint(&self) -> http_body::SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => self.busy.response().as_ref().map(RecordedBody::size_hint).unwrap_or_default(),
        }
    }
}

/// How a cleartext connection starts, with the bytes read so far.
enum Preface {
    Http2(Bytes),
    Other(Bytes),
    Nothing,
}

/// Reads just enough to tell HTTP/2 with prior knowledge from HTTP/1.1.
async fn read_preface(stream: &TcpStream, timeouts: Timeouts) -> io::Result<Preface> {
    let mut read = BytesMut::new();
    let mut deadline = Instant::now() + timeouts.idle;
    loop {
        timeout_at(deadline, stream.readable()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let length = match read_arrived(stream, &mut read) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            length => length?,
        };
        if length == 0 && read.is_empty() {
            return Ok(Preface::Nothing);
        }
        let common = read.iter().zip(PREFACE).take_while(|(one, other)| one == other).count();
        if common == PREFACE.len() {
            return Ok(Preface::Http2(read.freeze()));
        }
        if common < read.len() || length == 0 {
            return Ok(Preface::Other(read.freeze()));
        }
        if length == read.len() {
            // These are the first bytes: `header_timeout` starts here.
            deadline = Instant::now() + timeouts.header;
        }
    }
}

/// Appends what has arrived to `read`. The buffer for it is on the stack: between what a connection
/// keeps, it would leave a gap in the heap that takes up 2 KiB for each connection.
fn read_arrived(stream: &TcpStream, read: &mut BytesMut) -> io::Result<usize> {
    let mut chunk = [0; 4096];
    let length = stream.try_read(&mut chunk)?;
    read.extend_from_slice(&chunk[..length]);
    Ok(length)
}
