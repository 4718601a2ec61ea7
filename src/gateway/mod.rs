//! What a request walks through, in walking order.
//!
//! [`Gateway::pass`] is the whole policy, read from top to bottom. Each step hands the next one a
//! proof: a [`Target`] has one meaning, a [`VerifiedToken`](crate::token::VerifiedToken) was
//! verified, a [`Permit`] was granted, and only an [`Outgoing`] can be sent.

pub mod authenticate;
pub mod authorize;
pub mod body;
pub mod client;
pub mod demands;
mod dial;
mod echo;
pub mod exchange;
pub mod explain;
pub mod framing;
pub mod headers;
mod heard;
mod identity;
mod kept;
pub mod logout;
pub mod navigation;
pub mod outgoing;
mod reading_on;
pub mod reason;
pub mod refusal;
pub mod route;
pub mod snapshot;
pub mod target;
mod tunnel;
pub mod upstream;
pub mod worker;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::authenticate::{Caller, Time, Verifier, authenticate_with_newest};
use self::authorize::{Permit, authorize};
use self::body::{Body, ClientBody, Gate};
use self::client::{ClientAddress, Peer};
use self::exchange::{Exchange, RecordedBody, TunnelBytes, View};
use self::framing::{check_request, head_alone, may_be_followed, settle_response};
use self::identity::{Visit, shown};
use self::logout::{LogoutFault, ReceivedLogouts, log_out, logout_token, verified};
use self::navigation::led_or_told;
use self::outgoing::{ExchangeIds, Outgoing, strip_response};
use self::reason::Reason;
use self::refusal::Refusal;
use self::route::{Destination, Route};
pub use self::snapshot::Snapshot;
use self::target::{Target, TargetError};
use self::upstream::{Application, Lease, Upstream, UpstreamBody, UpstreamFailure};
use self::worker::Worker;
use crate::clock::Clock;
use crate::limit::{Cell, Exceeded, KeyKind, Limit};
use crate::revocation::Revocations;
use crate::telemetry::access::{AccessRecord, LoggedCaller};
use crate::telemetry::log::Format;
use crate::telemetry::metrics::{Metrics, RouteMetrics};
use crate::telemetry::writer::LogWriter;
use crate::token::{Issuer, VerifiedToken};

/// The gateway: one current snapshot, and what outlives all snapshots.
#[derive(Debug)]
pub struct Gateway {
    current: ArcSwap<Snapshot>,
    telemetry: Arc<Telemetry>,
    revocations: Arc<Revocations>,
    /// The built-in issuer; `None`: the file that the process was started with has none.
    identity: Option<Arc<crate::identity::Identity>>,
    logouts: ReceivedLogouts,
    /// Tunnels: they have left hyper's connection, so the drain waits for them here.
    tunnels: TaskTracker,
    /// Cuts the tunnels at the drain deadline.
    cut: CancellationToken,
    draining: AtomicBool,
}

thread_local! {
    /// Where a worker writes its access lines, one after the other.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where exchanges are written.
#[derive(Debug)]
pub struct Telemetry {
    /// Every metric family.
    pub metrics: Metrics,
    /// Counters of requests that no route took.
    pub unrouted: RouteMetrics,
    /// The time.
    pub clock: Clock,
    log: LogWriter,
    format: Format,
    /// The last second in which a limit was named, since 1970.
    limit_told: AtomicU64,
}

impl Telemetry {
    /// Writes access lines to `log` in this format.
    pub fn new(metrics: Metrics, clock: Clock, log: LogWriter, format: Format) -> Self {
        let unrouted = metrics.route("");
        Self { metrics, unrouted, clock, log, format, limit_told: AtomicU64::new(0) }
    }

    /// Whether a refusal of this second, by a limit, is the first one: those after it are a flood.
    fn tells_limit(&self, second: u64) -> bool {
        self.limit_told.fetch_max(second, Ordering::Relaxed) < second
    }

    /// What the log says of a caller. As JSON it is written once for a caller that is remembered.
    fn logged<'a>(&self, caller: &'a VerifiedToken) -> LoggedCaller<'a> {
        let named = || LoggedCaller {
            issuer: Some(&**caller.issuer_name()),
            subject: Some(caller.subject()),
            sid: caller.sid(),
            written: None,
        };
        match self.format {
            Format::Json => LoggedCaller {
                written: Some(caller.logged(|| named().json())),
                ..LoggedCaller::default()
            },
            Format::Text => named(),
        }
    }

    fn write(&self, record: &AccessRecord<'_>) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            record.write(self.format, line);
            // A full queue drops the line and counts it: a log must never hold a request up.
            self.log.try_line(line);
        });
    }
}

impl Gateway {
    /// A gateway that serves under this snapshot.
    pub fn new(snapshot: Snapshot, telemetry: Telemetry, revocations: Arc<Revocations>) -> Self {
        Self {
            current: ArcSwap::from_pointee(snapshot),
            telemetry: Arc::new(telemetry),
            revocations,
            identity: None,
            logouts: ReceivedLogouts::default(),
            tunnels: TaskTracker::new(),
            cut: CancellationToken::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// With this built-in issuer.
    #[must_use]
    pub fn with_identity(self, identity: Option<Arc<crate::identity::Identity>>) -> Self {
        Self { identity, ..self }
    }

    /// The built-in issuer.
    pub fn identity(&self) -> Option<&Arc<crate::identity::Identity>> {
        self.identity.as_ref()
    }

    /// The snapshot that new requests begin under.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Serves new requests under another snapshot. Those in flight finish under the one they began
    /// with.
    pub fn install(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }

    /// Metrics, clock and log.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// Asks clients to go elsewhere: answers on HTTP/1.1 close their connections from now on.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the gateway is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The tunnels that are open.
    pub fn tunnels(&self) -> &TaskTracker {
        &self.tunnels
    }

    /// Cuts every tunnel: the drain deadline has come.
    pub fn cut_tunnels(&self) {
        self.cut.cancel();
    }

    /// A worker of this index, from 0: whoever calls [`Gateway::handle`] keeps one for its thread.
    pub fn worker(&self, index: usize) -> Worker {
        Worker::new(View {
            snapshot: self.current(),
            telemetry: Arc::clone(&self.telemetry),
            worker: index,
        })
    }

    /// Lets go of what a worker need no longer keep. For a timer, every second or so.
    pub fn tidy(&self, worker: &Worker) {
        worker.tidy(&self.current);
    }

    /// Answers one request, on the calling worker.
    pub async fn handle(
        &self,
        worker: &Worker,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Response<RecordedBody> {
        // One config for this request, from its first byte to its last.
        let view = worker.view(&self.current);
        let (version, is_head) = (request.version(), *request.method() == Method::HEAD);
        let mut exchange = Exchange::begin(&request, peer, Arc::clone(&view));
        let mut closes = self.is_draining();
        let mut response =
            match self.pass(&view.snapshot, worker, peer, request, &mut exchange).await {
                Ok(Passed::Response(response)) => response,
                Ok(Passed::Tunnel(tunnel)) => return self.tunnel(*tunnel, exchange),
                Err(refusal) => {
                    exchange.refused(&refusal);
                    // Nobody can say where a request ends whose framing is invalid: what follows
                    // must not be read as the next one (RFC 9112 §6.3).
                    closes |= refusal.reason() == Reason::FramingInvalid;
                    refusal.into_response(exchange.request_id())
                }
            };
        if is_head {
            response = head_alone(response);
        }
        if closes && version < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        exchange.finish(response)
    }

    async fn pass(
        &self,
        snapshot: &Snapshot,
        worker: &Worker,
        peer: &Peer,
        request: Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<Passed, Refusal> {
        let (mut parts, body) = request.into_parts();
        let client = snapshot.proxies.client(peer, &parts.headers);
        exchange.identified(client.ip(), ExchangeIds::new(&parts.headers, &client));
        // hyper counts them on HTTP/1.1 only. On HTTP/2 a client may write each cookie as a field
        // of its own (RFC 9113 §8.2.3).
        let more_cookies = parts.headers.get_all(header::COOKIE).iter().count().saturating_sub(1);
        if parts.headers.len() - more_cookies > snapshot.limits.max_headers {
            return Err(Refusal::HeadersTooLarge);
        }
        check_request(&parts.headers)?;
        let target = Target::parse(&parts.method, &parts.uri, parts.version, &parts.headers)?;
        // What is rare is boxed: hyper keeps the room of this future for as long as a connection is
        // open.
        if let Some(issuer) = snapshot.logouts.find(&parts.method, &target)? {
            return Ok(Passed::Response(
                Box::pin(self.log_out(snapshot, issuer, &parts, body, exchange)).await?,
            ));
        }
        let route = snapshot.routes.find(&parts.method, &target)?;
        exchange.routed(route.index);
        let overridden = overridden(snapshot, route, &parts, &target)?;
        Self::limit_client(route, &client, exchange)
            .map_err(|refusal| shown(snapshot, route, &parts, &target, refusal))?;
        if let Some((also, parts)) = &overridden {
            Self::limit_client(also, &client, exchange)?;
            Box::pin(self.admit(snapshot, worker, also, parts, &target, &client, exchange)).await?;
        }
        let permit =
            self.admit(snapshot, worker, route, &parts, &target, &client, exchange).await.map_err(
                |refusal| led_or_told(snapshot, route.token_from.cookie, &parts, &target, refusal),
            )?;
        exchange.permitted(&permit);
        let upstream = match &route.destination {
            Destination::Upstream(upstream) => upstream,
            Destination::Identity(mount) => {
                let (verifier, now) =
                    (self.verifier(snapshot, worker), self.telemetry.clock.unix_seconds());
                let visit = Visit {
                    snapshot,
                    route,
                    mount,
                    target: &target,
                    client: &client,
                    verifier,
                    now,
                };
                return Box::pin(self.visit(visit, parts, body, exchange))
                    .await
                    .map(Passed::Response);
            }
        };

        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let outgoing =
            Outgoing::prepare(parts, &target, &client, &permit, exchange.ids(), &snapshot.rules)?;
        self.send(snapshot, worker, upstream, outgoing, body, on_upgrade, exchange).await
    }

    /// Ends what a logout token of this issuer says.
    async fn log_out(
        &self,
        snapshot: &Snapshot,
        issuer: &Issuer,
        parts: &Parts,
        body: Incoming,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, LogoutFault> {
        let (body, upload) = ClientBody::new(
            body,
            logout::LARGEST_BODY,
            snapshot.body_idle_timeout,
            Vec::new(),
            None,
        );
        exchange.reads(upload);
        let token = logout_token(parts, body).await?;
        let token = verified(issuer, &token, &snapshot.keys, &self.telemetry.clock).await?;
        let now = self.telemetry.clock.unix_seconds();
        let response = log_out(issuer, token, &self.logouts, &self.revocations, now).await?;
        exchange.done();
        Ok(response)
    }

    /// Who is calling, and whether they may take this route.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two steps between which a limit stands, for both methods of an override"
    )]
    async fn admit<'snapshot>(
        &self,
        snapshot: &'snapshot Snapshot,
        worker: &Worker,
        route: &'snapshot Route,
        parts: &Parts,
        target: &Target,
        client: &ClientAddress,
        exchange: &mut Exchange,
    ) -> Result<Permit<'snapshot>, Refusal> {
        let verifier = self.verifier(snapshot, worker);
        let time = Time { arrived: exchange.began_at(), clock: &self.telemetry.clock };
        let caller =
            authenticate_with_newest(route, parts, target, client, verifier, &snapshot.keys, time)
                .await;
        if let Ok(Some(caller)) = &caller {
            exchange.recognised(&caller.token);
            Self::limit_subject(route, &caller.token, exchange)?;
        }
        permit(route, caller.map_err(Refusal::from))
    }

    fn verifier<'a>(&'a self, snapshot: &'a Snapshot, worker: &'a Worker) -> Verifier<'a> {
        Verifier {
            names: &snapshot.rules.token_names,
            issuers: &snapshot.issuers,
            known: Some(worker.tokens()),
            revoked: self.revocations.list(),
        }
    }

    fn limit_client(
        route: &Route,
        client: &ClientAddress,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        match &route.limit {
            Some(limit)
                if limit.settings().key == KeyKind::Client && !exchange.was_counted(limit) =>
            {
                count(|| route.count_limited(), limit, limit.take_client(client.ip()), exchange)
            }
            _ => Ok(()),
        }
    }

    fn limit_subject(
        route: &Route,
        caller: &VerifiedToken,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        match &route.limit {
            Some(limit)
                if limit.settings().key == KeyKind::Subject && !exchange.was_counted(limit) =>
            {
                count(
                    || route.count_limited(),
                    limit,
                    limit.take_subject(caller.issuer_name(), caller.subject()),
                    exchange,
                )
            }
            _ => Ok(()),
        }
    }

    /// Sends the request and makes the upstream's answer ours.
    #[expect(
        clippy::too_many_arguments,
        reason = "the last step of the line gathers what the others made"
    )]
    async fn send(
        &self,
        snapshot: &Snapshot,
        worker: &Worker,
        application: &Arc<Upstream>,
        outgoing: Outgoing,
        body: Incoming,
        on_upgrade: Option<OnUpgrade>,
        exchange: &mut Exchange,
    ) -> Result<Passed, Refusal> {
        let is_echo = application.settings().application == Application::Echo;
        let asks = outgoing.asks().clone();
        let gate =
            (asks.expects_continue && !is_echo && !body.is_end_stream()).then(Arc::<Gate>::default);
        let is_head = *outgoing.method() == Method::HEAD;
        let (body, upload) = ClientBody::new(
            body,
            snapshot.max_body,
            snapshot.body_idle_timeout,
            asks.request_trailers.clone(),
            gate.clone(),
        );
        if body.announced().is_some_and(|bytes| bytes > snapshot.max_body) {
            return Err(Refusal::BodyTooLarge);
        }
        let begun = exchange.sent(upload.clone());
        if is_echo {
            let response =
                Box::pin(echo::answer(outgoing, body)).await.map_err(UpstreamFailure::from)?;
            exchange.answered();
            return Ok(Passed::Response(response));
        }
        let ends_connection = outgoing.ends_connection(&body);
        let request = outgoing.into_request(body, gate.clone());
        let sent = application.send(worker.index(), request, upload.as_deref(), begun.into()).await;
        let answered = exchange.answered();
        let (mut response, mut lease) = sent?;
        if ends_connection
            || gate.is_some_and(|gate| gate.shut())
            || may_be_followed(&response, is_head)
        {
            lease.close_after();
        }
        lease.observe(response.headers());
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let to_websocket = switches && asks.websocket && upgrades_to_websocket(response.headers());
        if switches && !to_websocket {
            return Err(UpstreamFailure::Protocol.into());
        }
        settle_response(response.status(), response.headers_mut())
            .map_err(UpstreamFailure::from)?;
        strip_response(response.headers_mut(), &snapshot.rules.token_names, asks.trailers);
        *response.version_mut() = Version::HTTP_11;
        if !to_websocket {
            return Ok(Passed::Response(response.map(|body| {
                Body::Upstream(UpstreamBody::new(body, lease, asks.trailers, answered.into()))
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

    /// Answers 101 and splices the two streams in a task of their own.
    fn tunnel(&self, tunnel: Tunnel, mut exchange: Box<Exchange>) -> Response<RecordedBody> {
        let Tunnel { response, client, upstream, lease } = tunnel;
        let bytes = Arc::new(TunnelBytes::default());
        exchange.head(response.status().as_u16());
        exchange.tunnelled(Arc::clone(&bytes));
        let (cut, open) = (self.cut.clone(), self.telemetry.metrics.tunnel());
        self.tunnels.spawn(async move {
            cut.run_until_cancelled(tunnel::run(client, upstream, bytes, lease, exchange)).await;
            drop(open);
        });
        response.map(RecordedBody::unrecorded)
    }
}

/// What came of a request that was let through.
#[expect(
    clippy::large_enum_variant,
    reason = "a response is what nearly every request ends with: boxing it would cost each an allocation"
)]
enum Passed {
    Response(Response<Body>),
    Tunnel(Box<Tunnel>),
}

/// A WebSocket that the upstream has agreed to.
struct Tunnel {
    response: Response<Body>,
    client: OnUpgrade,
    upstream: OnUpgrade,
    lease: Lease,
}

/// What a limit says of a request: its cell is kept with the exchange, or the request goes no
/// further.
fn count(
    exceeds: impl FnOnce(),
    limit: &Arc<Limit>,
    taken: Result<Cell, Exceeded>,
    exchange: &mut Exchange,
) -> Result<(), Refusal> {
    let exceeded = match taken {
        Ok(cell) => {
            exchange.counted(Arc::clone(limit), cell);
            return Ok(());
        }
        Err(exceeded) => exceeded,
    };
    exceeds();
    if limit.observes() {
        tracing::info!(
            limit = limit.name(),
            request_id = exchange.request_id(),
            "would be limited"
        );
        return Ok(());
    }
    Err(Refusal::Limited {
        limit: limit.name().to_owned(),
        retry_after: exceeded.retry_after_seconds(),
    })
}

/// The permit for a recognised caller, or for nobody where the route only counts its refusals.
///
/// # Errors
/// The refusal of authentication or authorization.
pub fn permit(
    route: &Route,
    caller: Result<Option<Caller>, Refusal>,
) -> Result<Permit<'_>, Refusal> {
    caller
        .and_then(|caller| authorize(route, caller).map_err(Refusal::from))
        .or_else(|refusal| Permit::unenforced(route, refusal.reason()).ok_or(refusal))
}

/// The request as an application would read it that obeys an override field, and its route, where
/// the chosen route lets such fields through: it must be let through as well.
///
/// # Errors
/// [`Refusal::MethodOverride`], a method that is never forwarded, or that no route takes it.
pub fn overridden<'snapshot>(
    snapshot: &'snapshot Snapshot,
    route: &Route,
    parts: &Parts,
    target: &Target,
) -> Result<Option<(&'snapshot Route, Parts)>, Refusal> {
    if !route.method_override {
        return Ok(None);
    }
    let Some(method) = override_method(&parts.headers)? else { return Ok(None) };
    if method == Method::CONNECT || method == Method::TRACE {
        return Err(TargetError::Method.into());
    }
    let other = snapshot.routes.find(&method, target)?;
    let mut parts = parts.clone();
    parts.method = method;
    Ok(Some((other, parts)))
}

fn override_method(headers: &HeaderMap) -> Result<Option<Method>, Refusal> {
    let mut found = None;
    for (name, value) in headers {
        if !self::headers::METHOD_OVERRIDES
            .iter()
            .any(|own| self::headers::same_folded(own, name.as_str()))
        {
            continue;
        }
        let upper = value.as_bytes().trim_ascii().to_ascii_uppercase();
        let method = Method::from_bytes(&upper).map_err(|_| Refusal::MethodOverride)?;
        if found.replace(method.clone()).is_some_and(|earlier| earlier != method) {
            return Err(Refusal::MethodOverride);
        }
    }
    Ok(found)
}

fn upgrades_to_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"))
}
