//! The second listener: `/livez`, `/readyz`, `/metrics`, and what changes state. Never on the public one.

mod revoke;

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
use crate::telemetry::metrics::{CONTENT_TYPE, Metrics};

/// Where the process is in its life.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

impl Readiness {
    const READY: u8 = 1;
    const DRAINING: u8 = 2;

    /// Requests are welcome.
    pub fn ready(&self) {
        self.0.store(Self::READY, Ordering::Release);
    }

    /// Requests should go elsewhere.
    pub fn draining(&self) {
        self.0.store(Self::DRAINING, Ordering::Release);
    }

    /// Whether requests are welcome, and what stands against it.
    fn state(&self) -> (bool, Option<&'static str>) {
        match self.0.load(Ordering::Acquire) {
            Self::READY => (true, None),
            Self::DRAINING => (false, Some("draining")),
            _ => (false, Some("starting")),
        }
    }
}

/// Serves the second listener until the runtime ends.
pub async fn serve(listener: TcpListener, readiness: Arc<Readiness>, metrics: Metrics, control: Arc<Control>) {
    let connections = TaskTracker::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (readiness, metrics, control) = (Arc::clone(&readiness), metrics.clone(), Arc::clone(&control));
        connections.spawn(async move {
            let service = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(match request.uri().path() {
                    "/revoke" if control.is_on() => control.revoke(request).await,
                    _ => answer(&request, &readiness, &metrics),
                })
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_mins(1));
            // A scraper that goes away is none of our business.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, readiness: &Readiness, metrics: &Metrics) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let known = matches!(path, "/livez" | "/readyz" | "/metrics");
    if known && request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/livez" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => ready(readiness),
        "/metrics" => with_type(StatusCode::OK, CONTENT_TYPE, Bytes::from(metrics.encode())),
        _ => plain(StatusCode::NOT_FOUND, "there is /livez, /readyz and /metrics\n"),
    }
}

fn ready(readiness: &Readiness) -> Response<Full<Bytes>> {
    let (is_ready, problem) = readiness.state();
    let problems: serde_json::Map<String, serde_json::Value> =
        problem.map(|problem| ("gateway".to_owned(), problem.into())).into_iter().collect();
    let body = serde_json::json!({ "status": if is_ready { "ready" } else { "unready" }, "problems": problems });
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = with_type(status, "application/json", Bytes::from(format!("{body}\n")));
    if !is_ready {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
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
