//! The record of one request: started with the request, written when its response or tunnel ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response};

mod recorded;

pub use self::recorded::{Look, RecordedBody};
use super::Telemetry;
use super::authenticate::Caller;
use super::body::{Body, BodyError};
use super::client::{ClientAddress, Peer};
use super::dialect::Dialect;
use super::exchange_ids::ExchangeIds;
use super::guard::Place;
use super::observer::{LimitKey, Observer};
use super::reader::Reader;
use super::refusal::Refusal;
use super::renewal::add_cookies;
use super::route::Route;
use super::second_target::SecondTarget;
use super::snapshot::Snapshot;
use super::streams::{End, Kind, Opened, Registered, Stream, StreamBytes, Streams};
use super::target::Target;
use super::token_memo::TokenMemo;
use super::upload::Upload;
use super::upstream::Upstream;
use crate::identity::Renewed;
use crate::limit::{Cell, Count, Exceeded, Limit};
use crate::reason::{Outcome, Reason};
use crate::telemetry::access::{AccessRecord, LoggedCaller};
use crate::telemetry::fold::Fold;
use crate::token::{Issuer, Remembered};

/// The status of a request whose client closed the connection before a response, as in nginx.
const CLIENT_GONE: u16 = 499;

/// The context of exchanges: one for each worker and snapshot, so that counting its users shares no
/// cache line with another core.
#[derive(Debug)]
pub struct View {
    /// The config.
    pub snapshot: Arc<Snapshot>,
    /// The destination of records.
    pub telemetry: Arc<Telemetry>,
    /// Where exchanges that run for long are registered.
    pub streams: Arc<Streams>,
    /// The index of the worker.
    pub worker: usize,
}

/// What is known about a request so far.
#[derive(Debug)]
pub struct Exchange {
    view: Arc<View>,
    begun: Instant,
    ended: Option<Instant>,
    /// Start time, since 1970.
    timestamp: Duration,
    method: Method,
    path: Option<PathAndQuery>,
    /// How a proxy asked about it, on the `[verify]` listener.
    via: Option<Dialect>,
    ids: Option<ExchangeIds>,
    client: IpAddr,
    authority: Option<HeaderValue>,
    route: Option<usize>,
    /// The origin of the page that may read the response.
    origin: Option<Box<HeaderValue>>,
    caller: Option<(Arc<Remembered<TokenMemo>>, Place)>,
    /// The person who would read a page.
    reader: Option<Box<Reader>>,
    renewed: Option<Arc<Renewed>>,
    decision: Option<Reason>,
    outcome: Outcome,
    status: Option<u16>,
    upstream_begun: Option<Instant>,
    upstream: Option<Duration>,
    upload: Option<Arc<Upload>>,
    bytes_out: u64,
    /// The body of the response. It is here because this is moved as one pointer, and a response many
    /// times.
    body: Body,
    /// What the response is, if it runs for long.
    kind: Kind,
    tunnel: Option<Arc<StreamBytes>>,
    /// Its place among the streams, once it runs for long.
    stream: Option<Registered>,
    /// The limits that counted it: rarely more than one.
    cell: Option<(Arc<Limit>, Cell)>,
    more_cells: Vec<(Arc<Limit>, Cell)>,
}

impl Exchange {
    /// Starts the record of a request.
    pub fn begin<B>(request: &Request<B>, peer: &Peer, view: Arc<View>) -> Box<Self> {
        let begun = Instant::now();
        // Boxed at once: it is large to move, and ends up inside the response body.
        Box::new(Self {
            begun,
            ended: None,
            timestamp: view.telemetry.clock.unix_time_at(begun),
            view,
            method: request.method().clone(),
            path: request.uri().path_and_query().cloned(),
            via: None,
            ids: None,
            client: peer.address,
            authority: None,
            route: None,
            origin: None,
            caller: None,
            reader: None,
            renewed: None,
            decision: None,
            outcome: Outcome::Allowed,
            status: None,
            upstream_begun: None,
            upstream: None,
            upload: None,
            bytes_out: 0,
            body: Body::Empty,
            kind: Kind::Download,
            tunnel: None,
            stream: None,
            cell: None,
            more_cells: Vec::new(),
        })
    }

    /// The ids of this exchange. A request refused before they were read gets new ones.
    fn own_ids(&mut self) -> &ExchangeIds {
        self.ids.get_or_insert_with(|| ExchangeIds::begin(self.client))
    }

    /// Start time, in Unix seconds.
    pub fn began_at(&self) -> u64 {
        self.timestamp.as_secs()
    }

    /// Records that a proxy asks in this dialect.
    pub fn via(&mut self, dialect: Option<Dialect>) {
        self.via = dialect;
    }

    /// Records that a limit counted this request.
    pub fn counted(&mut self, limit: Arc<Limit>, cell: Cell) {
        if let Some(earlier) = self.cell.replace((limit, cell)) {
            self.more_cells.push(earlier);
        }
    }

    /// Whether a limit has counted this request: two routes that share it count once.
    pub fn was_counted(&self, limit: &Arc<Limit>) -> bool {
        self.cell.iter().chain(&self.more_cells).any(|(counted, _)| Arc::ptr_eq(counted, limit))
    }

    fn take_cells(&mut self) -> Vec<(Arc<Limit>, Cell)> {
        self.more_cells.drain(..).chain(self.cell.take()).collect()
    }

    /// Gives back what these limits have counted, as if the request had not been made.
    pub fn give_back(&mut self, limits: &[&Arc<Limit>]) {
        for (limit, cell) in self.take_cells() {
            if limits.iter().any(|returned| Arc::ptr_eq(returned, &limit)) {
                limit.give_back(cell);
            } else {
                self.counted(limit, cell);
            }
        }
    }

    /// Has the shared limits among those that counted it count it for all gateways.
    async fn confirm_cells(&mut self) -> Result<(), Refusal> {
        let mut cells = self.take_cells().into_iter();
        while let Some((limit, cell)) = cells.next() {
            let confirmed = limit.confirm(cell).await;
            if confirmed.is_err() {
                self.view.telemetry.metrics.rate_limited(limit.name()).inc();
            }
            if let Err(refusal) = count(|| {}, &limit, confirmed, self) {
                for (limit, cell) in cells {
                    self.counted(limit, cell);
                }
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Records that its body is read here.
    pub fn set_upload(&mut self, upload: Option<Arc<Upload>>) {
        self.upload = upload;
    }

    /// Records that the gateway itself has handled the request, for any client.
    pub fn completed(&mut self) {
        self.decision = Some(Reason::Public);
    }

    /// Records that it is sent to the upstream now.
    pub fn sent(&mut self, upload: Option<Arc<Upload>>) -> Instant {
        let now = Instant::now();
        self.upstream_begun = Some(now);
        self.upload = upload;
        now
    }

    /// Records that the upstream's response has started, or failed, now.
    pub fn answered(&mut self) -> Instant {
        let now = Instant::now();
        self.upstream = self.upstream_begun.map(|begun| now.duration_since(begun));
        now
    }

    /// Records that it is handled here.
    pub fn refused(&mut self, refusal: &Refusal) {
        let reason = refusal.reason();
        self.outcome = Outcome::of_refusal(reason);
        self.decision = Some(reason);
        let request_id = self.request_id().to_owned();
        let route = self.route().map(|route| Arc::clone(&route.name));
        match reason {
            // The owner of the keys has already logged it, once and with the cause.
            Reason::KeysUnavailable => {
                tracing::debug!(reason = reason.as_str(), request_id, route = route.as_deref(), cause = %refusal, "refused");
            }
            _ if self.outcome == Outcome::Failed => {
                let what = match refusal {
                    Refusal::Identity(_) | Refusal::Unauthenticated(_)
                        if reason == Reason::StoreUnavailable =>
                    {
                        let telemetry = &self.view.telemetry;
                        let now = self.timestamp.as_secs();
                        let Some(folded) = telemetry.store_unavailable.admit(now) else { return };
                        tracing::warn!(reason = reason.as_str(), request_id, route = route.as_deref(), folded, cause = %refusal, "the built-in issuer cannot answer");
                        return;
                    }
                    Refusal::Identity(_) | Refusal::Unauthenticated(_) => {
                        "the built-in issuer cannot answer"
                    }
                    Refusal::Logout(_) => "the store is not available",
                    _ => {
                        let upstream = self.upstream_named();
                        let Some(folded) =
                            self.admit_warning(|upstream| upstream.no_response(reason))
                        else {
                            tracing::debug!(reason = reason.as_str(), request_id, route = route.as_deref(), upstream, cause = %refusal, "the upstream gave no answer");
                            return;
                        };
                        tracing::warn!(folded, reason = reason.as_str(), request_id, route = route.as_deref(), upstream, cause = %refusal, "the upstream gave no answer");
                        return;
                    }
                };
                tracing::warn!(reason = reason.as_str(), request_id, route = route.as_deref(), cause = %refusal, "{what}");
            }
            // The access line does not name the limit; one event per second does.
            Reason::RateLimited
                if self.view.telemetry.should_log_limit(self.timestamp.as_secs()) =>
            {
                tracing::info!(reason = reason.as_str(), request_id, route = route.as_deref(), cause = %refusal, "refused");
            }
            // The access line says everything else about these, and they come in floods.
            Reason::CredentialsMissing | Reason::RouteNotFound | Reason::RateLimited => {
                tracing::debug!(reason = reason.as_str(), request_id, route = route.as_deref(), cause = %refusal, "refused");
            }
            _ => {
                tracing::info!(reason = reason.as_str(), request_id, route = route.as_deref(), cause = %refusal, "refused");
            }
        }
    }

    /// The refusal, or the page that a person gets instead.
    pub fn explained(&mut self, refusal: Refusal) -> Refusal {
        let Some(reader) = self.reader.take() else { return refusal };
        let can_repeat = matches!(self.method, Method::GET | Method::HEAD);
        let again = self.path.as_ref().filter(|_| can_repeat).map(PathAndQuery::as_str);
        let ids = self.ids.get_or_insert_with(|| ExchangeIds::begin(self.client));
        let id = ids.request_id.to_str().unwrap_or_default();
        let caller = self.caller.as_ref().map(|(token, _)| &**token);
        reader.explain(refusal, again, caller, id, &self.view.snapshot)
    }

    /// The request id that the client receives.
    pub fn request_id(&mut self) -> &str {
        self.own_ids().request_id.to_str().unwrap_or_default()
    }

    /// Attaches the record to a tunnel: it is written when this is dropped. Returns the stream that
    /// the tunnel has become.
    pub fn tunnelled(&mut self, bytes: Arc<StreamBytes>) -> Option<Arc<Stream>> {
        self.tunnel = Some(Arc::clone(&bytes));
        self.register(Kind::WebSocket, bytes);
        self.stream().cloned()
    }

    /// Registers it as a stream, from which access can be taken.
    fn register(&mut self, kind: Kind, bytes: Arc<StreamBytes>) {
        let (Some(route), Some(authority), Some(path)) =
            (self.route(), &self.authority, &self.path)
        else {
            return;
        };
        let opened = Opened {
            kind,
            method: self.method.clone(),
            authority: authority.clone(),
            path: path.clone(),
            client: self.client,
            begun: self.began_at(),
            route: Arc::clone(&route.name),
            rule: route.streams,
            caller: self.caller.clone(),
            bytes,
            upload: self.upload.clone(),
        };
        let View { streams, worker, snapshot, .. } = &*self.view;
        self.stream = Some(streams.register(*worker, opened, snapshot));
    }

    /// Ready if access was taken away while the request body is on its way. The calling task is woken
    /// then, and when the upload turns out to be long.
    pub fn poll_upload_end(&mut self, cx: &Context<'_>) -> Poll<End> {
        if self.stream.is_none() {
            if !self.upload.as_ref().is_some_and(|upload| upload.is_long(cx)) {
                return Poll::Pending;
            }
            self.register(Kind::Upload, Arc::default());
        }
        let Some(stream) = self.stream() else { return Poll::Pending };
        let ended = stream.poll_end(cx).map(Clone::clone);
        if ended.is_ready() {
            // The response that says so is no part of the stream.
            self.stream = None;
        }
        ended
    }

    /// The stream that it has become.
    fn stream(&self) -> Option<&Arc<Stream>> {
        self.stream.as_ref().map(Registered::stream)
    }

    /// Records why the gateway ended its stream, if it did.
    fn note_end(&mut self) {
        let end = self.stream().and_then(|stream| stream.end());
        if let Some(reason) = end.and_then(End::reason) {
            self.outcome = Outcome::of_refusal(reason);
            self.decision = Some(reason);
        }
    }

    /// Records the status, and adds the cookies of a session that was renewed. Limits that count
    /// failures get their cells back if it is not one.
    pub fn head<B>(&mut self, response: &mut Response<B>) {
        self.answered_with(response.status().as_u16());
        let View { telemetry, snapshot, .. } = &*self.view;
        if let Some(renewed) = &self.renewed
            && add_cookies(response.headers_mut(), renewed, &snapshot.rules.token_names)
        {
            renewed.sent(telemetry.clock.running());
        }
    }

    /// Records the status.
    fn answered_with(&mut self, status: u16) {
        self.status = Some(status);
        self.settle_cells(status);
    }

    /// Gives the cells of limits that count failures back if this status is not one. Only the
    /// first call has an effect.
    pub(super) fn settle_cells(&mut self, status: u16) {
        let failed = matches!(status, 401 | 403 | 429);
        let settle = |(limit, cell): (Arc<Limit>, Cell)| {
            if limit.settings().count == Count::Failures && !failed {
                limit.give_back(cell);
            }
        };
        self.cell.take().into_iter().for_each(settle);
        self.more_cells.drain(..).for_each(settle);
    }

    /// Sets the constant header fields of the route. They replace those of the application; a
    /// response of the gateway keeps its own.
    pub fn set_response_headers(&self, headers: &mut HeaderMap, was_allowed: bool) {
        let Some(route) = self.route() else { return };
        if was_allowed && route.destination.upstream().is_some() {
            route.response_headers.replace_in(headers);
        } else {
            route.response_headers.add_to(headers);
        }
        // Last: no constant field may replace `Vary: origin`.
        if let Some(cors) = &route.cors {
            cors.apply(self.origin.as_deref(), headers);
        }
    }

    fn route(&self) -> Option<&Route> {
        self.route.and_then(|index| self.view.snapshot.routes.routes().get(index))
    }

    /// The upstream of the route as operators know it: its section and URL.
    fn upstream_named(&self) -> Option<String> {
        let settings = self.route()?.destination.upstream()?.settings();
        Some(format!("{} at {}", settings.name, settings.application))
    }

    fn broke_off(&mut self, error: &BodyError) {
        let reason = match error {
            BodyError::Upstream(_) | BodyError::Unfinished => {
                if let Some(failure) = self.upload.as_ref().and_then(|upload| upload.failure()) {
                    // The client broke off its body, with which the upstream's stream has ended.
                    self.outcome = Outcome::of_refusal(failure.reason());
                    self.decision = Some(failure.reason());
                    return;
                }
                Reason::UpstreamFailed
            }
            BodyError::Idle(_) | BodyError::Total => Reason::UpstreamTimeout,
            // Caused by the client, or by the gateway: the decision about it stands, or is changed
            // at the end.
            BodyError::Unread | BodyError::Ended(_) => return,
        };
        self.outcome = Outcome::Failed;
        self.decision = Some(reason);
        let request_id = self.request_id().to_owned();
        let upstream = self.upstream_named();
        let route = self.route().map(|route| &*route.name);
        match self.admit_warning(|upstream| upstream.broke_off(reason)) {
            Some(folded) => {
                tracing::warn!(folded, reason = reason.as_str(), request_id, route, upstream, cause = %error, "the response broke off");
            }
            None => {
                tracing::debug!(reason = reason.as_str(), request_id, route, upstream, cause = %error, "the response broke off");
            }
        }
    }

    /// Asks this fold of the route's upstream whether to warn: an upstream that is down would
    /// otherwise be reported with each request.
    fn admit_warning(&self, fold: impl FnOnce(&Upstream) -> &Fold) -> Option<u64> {
        match self.route().and_then(|route| route.destination.upstream()) {
            Some(upstream) => fold(upstream).admit(self.view.telemetry.clock.unix_seconds()),
            None => Some(0),
        }
    }
}

impl Observer for Exchange {
    fn asked(&mut self, dialect: Dialect, parts: &Parts) {
        self.via(Some(dialect));
        self.method = parts.method.clone();
        self.path = parts.uri.path_and_query().cloned();
    }

    fn arrived(&mut self, client: &ClientAddress, headers: &HeaderMap) {
        self.client = client.ip();
        self.ids = Some(ExchangeIds::new(headers, client));
    }

    fn targeted(&mut self, _: &Target) {}

    fn logout(&mut self, _: &Issuer) {}

    fn routed(&mut self, route: &Route, target: &Target, headers: &HeaderMap) {
        self.route = Some(route.index);
        self.authority = Some(target.authority().clone());
        if let Some(cors) = &route.cors {
            self.origin = cors.permitted(headers).cloned().map(Box::new);
        }
        // Other routes are for programs, which pay nothing for pages.
        if route.guard.token_from.cookie {
            self.reader = Reader::of(target.host(), headers, &self.view.snapshot);
        }
    }

    fn unrouted(&mut self, host: &str, headers: &HeaderMap) {
        let reader = Reader::of(host, headers, &self.view.snapshot);
        self.reader = reader.filter(|reader| reader.has_login());
    }

    fn count(
        &mut self,
        route: &Route,
        limit: &Arc<Limit>,
        key: LimitKey<'_>,
    ) -> Result<(), Refusal> {
        // Two routes that share a limit count once.
        if self.was_counted(limit) {
            return Ok(());
        }
        let taken = match key {
            LimitKey::Client(client) => limit.take_client(client.ip()),
            LimitKey::Subject(caller) => {
                limit.take_subject(caller.token().issuer_name(), caller.token().subject())
            }
        };
        count(|| route.count_limited(), limit, taken, self)
    }

    async fn confirm(&mut self) -> Result<(), Refusal> {
        let is_unconfirmed = |(limit, cell): &(Arc<Limit>, Cell)| limit.is_unconfirmed(cell);
        if !self.cell.iter().any(is_unconfirmed) && !self.more_cells.iter().any(is_unconfirmed) {
            return Ok(());
        }
        // The rare case is boxed: hyper keeps space for this future for as long as a connection is
        // open.
        Box::pin(self.confirm_cells()).await
    }

    fn second(&mut self, _: &SecondTarget<'_>) {}

    fn authenticated(&mut self, _: &Route, caller: Option<&Caller>) {
        if let Some(caller) = caller {
            self.caller = Some((Arc::clone(caller.token()), caller.place()));
            if caller.token().memo().is_first_use() {
                self.view.streams.follow(caller.token());
            }
            if let Some(renewed) = caller.renewed() {
                self.renewed = Some(Arc::clone(renewed));
            }
        }
    }

    fn renewable(&mut self) {}

    fn tolerated(&mut self, _: &Route, _: &Refusal) {}

    fn granted(&mut self, _: &Route, reason: Reason) {
        // A refusal that was tolerated for another method or target is what operators look for.
        if self.outcome == Outcome::WouldRefuse {
            return;
        }
        self.decision = Some(reason);
        self.outcome = if reason.is_pass() { Outcome::Allowed } else { Outcome::WouldRefuse };
    }

    fn ids(&mut self) -> &ExchangeIds {
        self.own_ids()
    }
}

/// The verdict of a limit: its cell is kept with the exchange, or the request is refused.
pub(super) fn count(
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

impl Drop for Exchange {
    fn drop(&mut self) {
        self.note_end();
        let duration =
            self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.begun);
        let status = self.status.unwrap_or(CLIENT_GONE);
        let reason = self.decision.map_or("", Reason::as_str);
        let outcome = self.outcome.as_str();
        let (bytes_in, bytes_out) = match &self.tunnel {
            Some(tunnel) => {
                (tunnel.up.load(Ordering::Relaxed), tunnel.down.load(Ordering::Relaxed))
            }
            None => (self.upload.as_ref().map_or(0, |upload| upload.bytes()), self.bytes_out),
        };
        let seconds = duration.as_secs_f64();
        let upstream_seconds = self.upstream.map(|duration| duration.as_secs_f64());
        let metrics = self.route().map_or(&self.view.telemetry.unrouted, |route| &route.metrics);
        metrics.request(self.view.worker, self.method.as_str(), status, seconds, upstream_seconds);
        metrics.decision(self.view.worker, outcome, reason);
        let via = self.via.map(Dialect::as_str);
        if let Some(dialect) = via {
            self.view.telemetry.metrics.verified(dialect, outcome);
        }
        if !self.view.snapshot.access_log {
            return;
        }
        self.own_ids();
        let Some(ids) = &self.ids else { return };
        let caller = self.caller.as_ref().map(|(token, _)| &**token);
        let trace_id = ids.trace.trace_id();
        let record = AccessRecord {
            timestamp: self.timestamp,
            // Faster than `to_str`, which looks at one byte after the other.
            request_id: std::str::from_utf8(ids.request_id.as_bytes()).unwrap_or_default(),
            trace_id: trace_id.as_str(),
            client_address: Some(ids.address()),
            method: self.method.as_str(),
            path: self.path.as_ref().map_or("", PathAndQuery::path),
            route: self.route().map(|route| &*route.name),
            status,
            duration,
            upstream: self.upstream,
            bytes_in,
            bytes_out,
            outcome,
            reason,
            via,
            caller: caller
                .map_or_else(LoggedCaller::default, |caller| self.view.telemetry.logged(caller)),
        };
        self.view.telemetry.write(&record);
    }
}
