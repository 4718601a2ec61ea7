//! The second listener: `/livez`, `/readyz`, `/metrics`, `/streams`, and requests that change state. They are
//! never served on the public listener.

mod revoke;
mod streams;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

pub use self::revoke::Control;
use crate::keys::Health;
use crate::reason::Reason;
use crate::telemetry::ids;
use crate::telemetry::metrics::{Format, Metrics};

/// The stage of the process, and what prevents it from working.
pub struct Readiness {
    stage: AtomicU8,
    health: Box<dyn Fn() -> Health + Send + Sync>,
}

impl Readiness {
    const READY: u8 = 1;
    const DRAINING: u8 = 2;

    /// A process that is starting. `health` is called on each request for the state.
    pub fn new(health: impl Fn() -> Health + Send + Sync + 'static) -> Self {
        Self { stage: AtomicU8::new(0), health: Box::new(health) }
    }

    /// Marks the process as ready for requests.
    pub fn ready(&self) {
        self.stage.store(Self::READY, Ordering::Release);
    }

    /// Marks the process as draining: requests should go elsewhere.
    pub fn draining(&self) {
        self.stage.store(Self::DRAINING, Ordering::Release);
    }

    /// The state in one word, and the problems by name.
    fn state(&self) -> (&'static str, BTreeMap<String, String>) {
        let Health { mut problems, verifies_nothing } = (self.health)();
        let stage = match self.stage.load(Ordering::Acquire) {
            Self::READY => None,
            Self::DRAINING => Some("draining"),
            _ => Some("starting"),
        };
        problems.extend(stage.map(|stage| ("gateway".to_owned(), stage.to_owned())));
        let status = match problems.is_empty() {
            _ if stage.is_some() || verifies_nothing => UNREADY,
            true => "ready",
            false => "degraded",
        };
        (status, problems)
    }
}

const UNREADY: &str = "unready";

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness").field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// Serves the second listener until the runtime ends.
pub async fn serve(
    listener: TcpListener,
    readiness: Arc<Readiness>,
    metrics: Metrics,
    control: Arc<Control>,
) {
    let connections = TaskTracker::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (readiness, metrics, control) =
            (Arc::clone(&readiness), metrics.clone(), Arc::clone(&control));
        connections.spawn(async move {
            let service = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(match request.uri().path() {
                    "/revoke" if control.is_enabled() => control.revoke(request).await,
                    path if is_below(path, streams::PATH) => control.streams(&request),
                    _ => answer(&request, &readiness, &metrics),
                })
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_mins(1));
            // If the client disconnects, that is not an error.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Whether a path is this one, or one below it.
fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn answer(
    request: &Request<Incoming>,
    readiness: &Readiness,
    metrics: &Metrics,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let known = matches!(path, "/livez" | "/readyz" | "/metrics");
    if known && request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = problem(Reason::MethodNotAllowed, "only GET and HEAD");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/livez" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => ready(readiness),
        "/metrics" => {
            let accept: Vec<&str> = request
                .headers()
                .get_all(header::ACCEPT)
                .iter()
                .filter_map(|line| line.to_str().ok())
                .collect();
            let format = Format::accepted(&accept.join(","));
            with_type(StatusCode::OK, format.content_type(), Bytes::from(metrics.encode_as(format)))
        }
        _ => problem(
            Reason::RouteNotFound,
            "the paths are /livez, /readyz, /metrics and /streams, and /revoke with the token of [admin]",
        ),
    }
}

fn ready(readiness: &Readiness) -> Response<Full<Bytes>> {
    let (word, problems) = readiness.state();
    let is_ready = word != UNREADY;
    let body = serde_json::json!({ "status": word, "problems": problems });
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = with_type(status, "application/json", Bytes::from(format!("{body}\n")));
    if !is_ready {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A refusal (RFC 9457) in the common form. The detail is for operators.
fn problem(reason: Reason, detail: &str) -> Response<Full<Bytes>> {
    let status = reason.status();
    let body = serde_json::json!({
        "title": status.canonical_reason(), "status": status.as_u16(), "reason": reason.as_str(), "detail": detail,
        "request_id": ids::request_id().as_str(),
    });
    with_type(status, "application/problem+json", Bytes::from(format!("{body}\n")))
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
