//! The request pipeline, step by step.
//!
//! [`Decider::decide`] is the whole policy, from top to bottom. Each step makes a value from the
//! previous one, and nothing else can make it: [`matched::Matched`], [`authenticate::Caller`],
//! [`authorize::Permit`], [`Outgoing`]. Only an [`Outgoing`] can be sent. Where another proxy asks and
//! forwards the request itself, the last step is an [`verdict::Allow`].

pub mod authenticate;
pub mod authorize;
pub mod body;
pub mod certificate;
pub mod client;
pub mod constant_headers;
pub mod cors;
pub mod counted;
pub mod decide;
mod dial;
pub mod dialect;
mod echo;
mod endpoint;
pub mod exchange;
pub mod exchange_ids;
pub mod framing;
mod grpc;
pub mod guard;
pub mod headers;
mod https_only;
pub mod logout;
pub mod matched;
pub mod navigation;
pub mod observer;
pub mod online;
pub mod origin;
pub mod outgoing;
pub mod personal;
mod reader;
pub mod redirect;
pub mod redirected;
pub mod refusal;
mod renewal;
pub mod route;
pub mod scheme;
pub mod second_target;
mod send;
pub mod snapshot;
pub mod step_up;
pub mod stream_rule;
pub mod streams;
pub mod target;
mod texts;
pub mod token_memo;
pub mod token_names;
mod tunnel;
pub mod upload;
pub mod upstream;
pub mod verdict;
mod watched_socket;
mod websocket;
pub mod worker;

use std::cell::RefCell;
use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::authenticate::Verifier;
use self::body::Body;
use self::client::{Door, Peer};
use self::decide::{Decided, Decider, Reply};
use self::dialect::{Dialect, VerifyFault};
use self::exchange::{Exchange, RecordedBody, View};
use self::framing::without_body;
use self::logout::{LogoutFault, ReceivedLogouts, log_out, read_logout_token, verify_logout_token};
use self::matched::LogoutRequest;
use self::online::Online;
use self::outgoing::Outgoing;
use self::refusal::Refusal;
use self::send::settle_head;
pub use self::snapshot::Snapshot;
use self::streams::{StreamBytes, Streams};
pub use self::token_memo::TokenMemo;
use self::upload::{ClientBody, Gate, RequestBody};
use self::upstream::{Application, Lease, Upstream, UpstreamBody, UpstreamFailure};
use self::worker::Worker;
use crate::clock::Clock;
use crate::reason::Reason;
use crate::revocation::Revocations;
use crate::telemetry::access::{AccessRecord, LoggedCaller};
use crate::telemetry::fold::Fold;
use crate::telemetry::log::Format;
use crate::telemetry::metrics::{Metrics, RouteMetrics};
use crate::telemetry::writer::LogWriter;
use crate::token::Remembered;

/// The gateway: the current snapshot, and the state that outlives every snapshot.
#[derive(Debug)]
pub struct Gateway {
    current: Arc<ArcSwap<Snapshot>>,
    telemetry: Arc<Telemetry>,
    revocations: Arc<Revocations>,
    /// The built-in issuer; `None`: the configuration at process start has none.
    identity: Option<Arc<crate::identity::Identity>>,
    logouts: ReceivedLogouts,
    /// The exchanges that run for long.
    streams: Arc<Streams>,
    /// Open tunnels: they have left hyper's connection, so the drain waits for them here.
    tunnels: TaskTracker,
    /// Cuts the tunnels at the drain deadline.
    cut: CancellationToken,
    draining: AtomicBool,
}

thread_local! {
    /// The buffer in which a worker writes its access lines, one at a time.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The destination of exchange records.
#[derive(Debug)]
pub struct Telemetry {
    /// Every metric family.
    pub metrics: Metrics,
    /// Counters of requests without a route.
    pub unrouted: RouteMetrics,
    /// The time.
    pub clock: Clock,
    log: LogWriter,
    format: Format,
    /// The last second in which an event named a limit, since 1970.
    limit_logged_at: AtomicU64,
    store_unavailable: Fold,
}

impl Telemetry {
    /// Writes access lines to `log` in this format.
    pub fn new(metrics: Metrics, clock: Clock, log: LogWriter, format: Format) -> Self {
        let unrouted = metrics.route("");
        Self {
            metrics,
            unrouted,
            clock,
            log,
            format,
            limit_logged_at: AtomicU64::new(0),
            store_unavailable: Fold::default(),
        }
    }

    /// Exports how long the certificates of a snapshot are valid.
    fn show_certificates(&self, snapshot: &Snapshot) {
        let served = snapshot.tls.iter().flat_map(|tls| &tls.certificates);
        let expiries = served.map(|served| (served.name.clone(), served.expires_at));
        let clock = self.clock.clone();
        self.metrics.certificates(expiries, move || clock.unix_seconds());
    }

    /// Whether this is the first refusal by a limit in this second. Any further ones are a flood.
    fn should_log_limit(&self, second: u64) -> bool {
        self.limit_logged_at.fetch_max(second, Ordering::Relaxed) < second
    }

    /// The log fields of a caller. For a cached caller, the JSON is written only once.
    fn logged<'a>(&self, caller: &'a Remembered<TokenMemo>) -> LoggedCaller<'a> {
        let named = || LoggedCaller {
            issuer: Some(&**caller.issuer_name()),
            subject: Some(caller.subject()),
            sid: caller.sid(),
            written: None,
        };
        match self.format {
            Format::Json => LoggedCaller {
                written: Some(caller.memo().logged(|| named().json())),
                ..LoggedCaller::default()
            },
            Format::Text => named(),
        }
    }

    fn write(&self, record: &AccessRecord<'_>) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            record.write(self.format, line);
            // A full queue drops the line and counts it: logging must never delay a request.
            self.log.try_line(line);
        });
    }
}

impl Gateway {
    /// Creates a gateway that serves under this snapshot.
    pub fn new(snapshot: Snapshot, telemetry: Telemetry, revocations: Arc<Revocations>) -> Self {
        telemetry.show_certificates(&snapshot);
        let current = Arc::new(ArcSwap::from_pointee(snapshot));
        let streams = Streams::new(
            Arc::clone(&current),
            Arc::clone(revocations.list()),
            telemetry.clock.clone(),
            telemetry.metrics.clone(),
        );
        Self {
            current,
            streams,
            telemetry: Arc::new(telemetry),
            revocations,
            identity: None,
            logouts: ReceivedLogouts::default(),
            tunnels: TaskTracker::new(),
            cut: CancellationToken::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// Sets the built-in issuer.
    #[must_use]
    pub fn with_identity(self, identity: Option<Arc<crate::identity::Identity>>) -> Self {
        Self { identity, ..self }
    }

    /// The built-in issuer.
    pub fn identity(&self) -> Option<&Arc<crate::identity::Identity>> {
        self.identity.as_ref()
    }

    /// The snapshot for new requests.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Serves new requests under another snapshot. Requests in flight finish under the one they
    /// started with.
    pub fn install(&self, snapshot: Snapshot) {
        self.telemetry.show_certificates(&snapshot);
        self.current.store(Arc::new(snapshot));
    }

    /// The metrics, the clock and the log.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// Starts the drain: from now on, HTTP/1.1 responses close their connections, so that clients
    /// go elsewhere.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the gateway is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The exchanges that run for long.
    pub fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// The open tunnels.
    pub fn tunnels(&self) -> &TaskTracker {
        &self.tunnels
    }

    /// Cuts every tunnel at the drain deadline.
    pub fn cut_tunnels(&self) {
        self.cut.cancel();
    }

    /// Creates the worker with this index, from 0. Each thread that calls [`Gateway::handle`] keeps
    /// one.
    pub fn worker(&self, index: usize) -> Worker {
        Worker::new(View {
            snapshot: self.current(),
            telemetry: Arc::clone(&self.telemetry),
            streams: Arc::clone(&self.streams),
            worker: index,
        })
    }

    /// Drops what a worker no longer needs. Call it from a timer, about once a second.
    pub fn tidy(&self, worker: &Worker) {
        worker.tidy(&self.current);
    }

    /// Handles one request on the calling worker. Boxed: hyper keeps space for the future for as long
    /// as the connection is open, idle or not.
    pub fn handle<'a>(
        &'a self,
        worker: &'a Worker,
        door: Door,
        peer: &'a Peer,
        request: Request<RequestBody>,
    ) -> Pin<Box<dyn Future<Output = Response<RecordedBody>> + Send + 'a>> {
        match door {
            Door::Public => Box::pin(self.serve(worker, peer, request)),
            Door::Verify => Box::pin(self.verify(worker, peer, request)),
            Door::Redirect => Box::pin(ready(self.redirect(worker, peer, request))),
        }
    }

    /// Answers the question of another proxy.
    async fn verify(
        &self,
        worker: &Worker,
        peer: &Peer,
        request: Request<RequestBody>,
    ) -> Response<RecordedBody> {
        let view = worker.view(&self.current);
        let snapshot = &view.snapshot;
        let is_head = *request.method() == Method::HEAD;
        let dialect = Dialect::at(request.uri().path());
        let mut exchange = Exchange::begin(&request, peer, Arc::clone(&view));
        exchange.via(dialect);
        let (parts, body) = request.into_parts();
        let announced = body.size_hint().exact();
        let decider = self.decider(snapshot, worker, Door::Verify, &exchange);
        let asker = match &snapshot.askers {
            Some(askers) => askers.asker(peer, dialect),
            None => Err(VerifyFault::Peer(peer.address)),
        };
        let verdict = match asker {
            Ok(asker) => decider.verify(asker, parts, announced, &mut *exchange).await,
            Err(fault) => Err(fault.into()),
        };
        let mut closes = self.is_draining();
        let (status, mut response) = match verdict {
            Ok(allow) => (StatusCode::OK, allow.into_response(exchange.request_id())),
            Err(refusal) => {
                exchange.refused(&refusal);
                // What follows a body that must not be there must not be read as the next question.
                let is_of_proxy = matches!(refusal, Refusal::Verify(_));
                closes |= is_of_proxy;
                let refusal = if is_of_proxy || dialect.is_none_or(Dialect::drops_bodies) {
                    refusal
                } else {
                    exchange.explained(refusal)
                };
                verdict::refused(dialect, refusal, exchange.request_id())
            }
        };
        if is_head {
            response = without_body(response);
        }
        if closes {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        exchange.finish_as(status, response)
    }

    fn serve(
        &self,
        worker: &Worker,
        peer: &Peer,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Response<RecordedBody>> {
        let (version, is_head) = (request.version(), *request.method() == Method::HEAD);
        let is_grpc = grpc::is_call(&request);
        // One configuration for this request, from its first byte to its last.
        let view = worker.view(&self.current);
        let mut exchange = Exchange::begin(&request, peer, Arc::clone(&view));
        let (parts, body) = request.into_parts();
        // An async function would keep a second copy of the request, which was taken apart.
        async move {
            let mut closes = self.is_draining();
            let mut decider = self.decider(&view.snapshot, worker, Door::Public, &exchange);
            if peer.certificate.is_some() {
                decider = decider.with_certificate(peer.certificate.as_ref());
            }
            let announced = body.size_hint().exact();
            let mut passed = match decider.decide(peer, parts, announced, &mut *exchange).await {
                Ok(Decided::Forward(outgoing, upstream)) => {
                    Self::send(&view.snapshot, worker, upstream, outgoing, body, &mut exchange)
                        .await
                }
                // The rare cases are boxed, so that the usual one keeps no space for them.
                Ok(Decided::Answer(reply)) => {
                    let answer = self.answer(&view.snapshot, reply, body, &mut exchange);
                    Box::pin(answer).await.map(Passed::Response)
                }
                Err(refusal) => Err(refusal),
            };
            // The response may have taken long.
            if let Some((renewed, online)) = exchange.old_renewal().zip(decider.online) {
                // In the rare case only, the future keeps the response while it waits.
                let kept = Box::new(passed);
                if !Box::pin(online.is_newest(&renewed)).await {
                    exchange.outdated();
                }
                passed = *kept;
            }
            let was_allowed = passed.is_ok();
            let mut response = match passed {
                Ok(Passed::Response(response)) => response,
                Ok(Passed::Tunnel(tunnel)) => return self.tunnel(*tunnel, exchange),
                Err(refusal) => {
                    exchange.refused(&refusal);
                    // The end of a request with invalid framing is unknown: the bytes that follow
                    // must not be parsed as the next request (RFC 9112 §6.3).
                    closes |= refusal.reason() == Reason::FramingInvalid;
                    exchange.refuse(refusal, is_grpc)
                }
            };
            exchange.set_response_headers(response.headers_mut(), was_allowed);
            if is_head {
                response = without_body(response);
            }
            if closes && version < Version::HTTP_2 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            exchange.finish(response)
        }
    }

    /// Answers a request that is not forwarded.
    async fn answer(
        &self,
        snapshot: &Snapshot,
        reply: Reply<'_>,
        body: RequestBody,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Refusal> {
        match reply {
            Reply::Endpoint(permit, mount) => {
                self.answer_endpoint(snapshot, permit, mount, body, exchange).await
            }
            Reply::Redirect(redirected) => Ok(redirected.into_response()),
            Reply::Preflight(preflight) => {
                exchange.completed();
                Ok(preflight.into_response())
            }
            Reply::Logout(request) => Ok(self.log_out(snapshot, &request, body, exchange).await?),
        }
    }

    /// What decides about one request.
    fn decider<'s>(
        &'s self,
        snapshot: &'s Snapshot,
        worker: &'s Worker,
        door: Door,
        exchange: &Exchange,
    ) -> Decider<'s> {
        let verifier = Verifier::new(
            &snapshot.rules.token_names,
            &snapshot.issuers,
            Some(worker.tokens()),
            self.revocations.list(),
        );
        let online = Online {
            keys: &snapshot.keys,
            clock: &self.telemetry.clock,
            identity: self.identity.as_ref().zip(snapshot.identity.as_ref()),
            renews: door == Door::Public,
        };
        Decider { snapshot, verifier, now: exchange.began_at(), online: Some(online) }
    }

    /// Ends what a logout token of this issuer names.
    async fn log_out(
        &self,
        snapshot: &Snapshot,
        request: &LogoutRequest<'_>,
        body: RequestBody,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, LogoutFault> {
        let issuer = request.issuer();
        let (body, upload) =
            ClientBody::new(body, logout::MAX_BODY, snapshot.body_idle_timeout, Vec::new(), None);
        exchange.set_upload(upload);
        let token = read_logout_token(request.parts(), body).await?;
        let token =
            verify_logout_token(issuer, &token, &snapshot.keys, &self.telemetry.clock).await?;
        let now = self.telemetry.clock.unix_seconds();
        let response = log_out(issuer, token, &self.logouts, &self.revocations, now).await?;
        exchange.completed();
        Ok(response)
    }

    /// Sends the request and turns the upstream's response into the gateway's.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function keeps a second copy of a parameter that it changes"
    )]
    fn send(
        snapshot: &Snapshot,
        worker: &Worker,
        application: &Arc<Upstream>,
        mut outgoing: Outgoing<'_>,
        body: RequestBody,
        exchange: &mut Exchange,
    ) -> impl Future<Output = Result<Passed, Refusal>> {
        async move {
            let (settings, asks) = (application.settings(), outgoing.take_asks());
            let is_echo = settings.application == Application::Echo;
            let waits = asks.expects_continue && !is_echo && !settings.http2;
            let gate = (waits && !body.is_end_stream()).then(Arc::<Gate>::default);
            // In a call of gRPC, either side may be silent while the other one sends.
            let mut body_idle_timeout = snapshot.body_idle_timeout;
            if settings.http2 && grpc::has_its_type(outgoing.headers()) {
                body_idle_timeout = body_idle_timeout.max(settings.idle_timeout);
            }
            let is_head = *outgoing.method() == Method::HEAD;
            let (body, upload) = ClientBody::new(
                body,
                snapshot.max_body,
                body_idle_timeout,
                asks.request_trailers,
                gate.clone(),
            );
            let begun = exchange.sent(upload.clone());
            if is_echo {
                let response = Box::pin(echo::answer(outgoing, body, snapshot))
                    .await
                    .map_err(UpstreamFailure::from)?;
                exchange.answered();
                return Ok(Passed::Response(response));
            }
            let on_upgrade = outgoing.take_upgrade();
            let mut sending = pin!(application.send(
                worker.index(),
                outgoing,
                body,
                gate.clone(),
                upload.as_ref(),
                begun.into(),
            ));
            let sent = match &upload {
                None => sending.as_mut().await,
                Some(_) => exchange.unless_ended(sending.as_mut()).await?,
            };
            let answered = exchange.answered();
            let (mut response, mut lease) = sent?;
            exchange.check_access()?;
            if gate.is_some_and(|gate| gate.shut()) {
                lease.close_after();
            }
            let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let to_websocket =
                switches && asks.websocket && websocket::is_accepted(response.headers());
            if switches && !to_websocket {
                return Err(UpstreamFailure::Protocol.into());
            }
            let names = &snapshot.rules.token_names;
            settle_head(&mut response, &mut lease, is_head, asks.trailers, names)
                .map_err(UpstreamFailure::from)?;
            if !to_websocket {
                return Ok(Passed::Response(response.map(|body| {
                    let (upload, now) = (upload.clone(), answered.into());
                    Body::Upstream(UpstreamBody::new(body, lease, upload, asks.trailers, now))
                })));
            }
            let upstream = hyper::upgrade::on(&mut response);
            let client = on_upgrade.ok_or(UpstreamFailure::Protocol)?;
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            Ok(Passed::Tunnel(Box::new(Tunnel {
                response: response.map(|_| Body::Empty),
                client,
                upstream,
                lease,
            })))
        }
    }

    /// Responds with 101 and splices the two streams in a separate task.
    fn tunnel(&self, tunnel: Tunnel, mut exchange: Box<Exchange>) -> Response<RecordedBody> {
        let Tunnel { mut response, client, upstream, lease } = tunnel;
        exchange.set_response_headers(response.headers_mut(), true);
        let bytes = Arc::new(StreamBytes::default());
        exchange.head(&mut response);
        let stream = exchange.tunnelled(Arc::clone(&bytes));
        let (cut, open) = (self.cut.clone(), self.telemetry.metrics.tunnel());
        self.tunnels.spawn(async move {
            let tunnel = tunnel::run(client, upstream, stream, bytes, lease, exchange);
            cut.run_until_cancelled(tunnel).await;
            drop(open);
        });
        response.map(|_| RecordedBody::unrecorded())
    }
}

/// The result of a request that was allowed.
#[expect(
    clippy::large_enum_variant,
    reason = "a response is what nearly every request ends with: boxing it would cost each an allocation"
)]
enum Passed {
    Response(Response<Body>),
    Tunnel(Box<Tunnel>),
}

/// A WebSocket that the upstream has accepted.
struct Tunnel {
    response: Response<Body>,
    client: OnUpgrade,
    upstream: OnUpgrade,
    lease: Lease,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// glibc keeps free blocks of up to 1,032 bytes at hand. Larger ones cost each request another 400
    /// instructions.
    #[test]
    fn the_future_of_a_request_is_small() {
        fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(Gateway::serve) <= 1032, "{} bytes", size(Gateway::serve));
    }
}
