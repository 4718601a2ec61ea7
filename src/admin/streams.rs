//! `GET /streams` and `DELETE /streams/{id}`: the exchanges that run for long, and their end.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;

use super::revoke::{Control, Fault};
use super::{problem, with_type};
use crate::reason::Reason;

/// The path of the list, which those of single streams are below.
pub(super) const PATH: &str = "/streams";

impl Control {
    /// Answers a request for `/streams`, or for what is below it.
    pub(super) fn streams<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let id = request.uri().path().strip_prefix(PATH).and_then(|below| below.strip_prefix('/'));
        match (id, request.method()) {
            (None, &Method::GET | &Method::HEAD) => self.list_streams(),
            (None, _) => not_allowed("GET, HEAD", "only GET and HEAD"),
            (Some(id), &Method::DELETE) => self.end_stream(id, request),
            (Some(_), _) => not_allowed("DELETE", "only DELETE"),
        }
    }

    fn list_streams(&self) -> Response<Full<Bytes>> {
        let body = serde_json::to_vec(&self.streams.listed()).unwrap_or_default();
        with_type(StatusCode::OK, "application/json", Bytes::from(body))
    }

    fn end_stream<B>(&self, id: &str, request: &Request<B>) -> Response<Full<Bytes>> {
        if !self.is_enabled() {
            return problem(
                Reason::RouteNotFound,
                "to end streams, set `token` in [admin], and send it",
            );
        }
        if let Err(fault) = self.check_operator(request.headers()) {
            return Fault::into_response(fault);
        }
        if !self.streams.end(id) {
            return problem(Reason::RouteNotFound, "no stream has this id; it may have ended");
        }
        tracing::info!(stream = id, "an operator ended a stream");
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn not_allowed(methods: &'static str, detail: &str) -> Response<Full<Bytes>> {
    let mut response = problem(Reason::MethodNotAllowed, detail);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}
