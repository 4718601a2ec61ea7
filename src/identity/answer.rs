//! Successful responses of the endpoints.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::brand::Asset;
use super::pages::Sheet;
use super::request::Request;

/// JSON for this client only: caches must not store it.
pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response<Bytes> {
    // Our bodies contain only strings, numbers and lists of them, so serialization cannot fail.
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    with_type(status, "application/json", Bytes::from(text))
}

/// JSON that a browser stores as a file with this name.
pub(super) fn download<T: Serialize>(body: &T, name: &'static str) -> Response<Bytes> {
    let mut response = json(StatusCode::OK, body);
    let disposition = format!("attachment; filename=\"{name}\"");
    if let Ok(disposition) = HeaderValue::try_from(disposition) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
    }
    response
}

/// JSON that any cache may store for `seconds`.
pub(super) fn public(body: Bytes, max_age: HeaderValue) -> Response<Bytes> {
    let mut response = with_type(StatusCode::OK, "application/json", body);
    response.headers_mut().insert(header::CACHE_CONTROL, max_age);
    // Pages of other origins may read it: it is public, and no cookie changes it.
    response
        .headers_mut()
        .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// A page for this client only: caches must not store it.
pub(super) fn page(sheet: Sheet) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.body_mut() = sheet.answered_with(response.headers_mut());
    response
}

/// A file that pages refer to. With its version in the URL, caches may keep it for good; without,
/// its content may change tomorrow.
pub(super) fn asset(asset: &Asset, request: &Request) -> Response<Bytes> {
    let mut response = with_type(StatusCode::OK, asset.content_type, asset.bytes.clone());
    let is_this_version =
        request.parameter_of_query("v").is_some_and(|version| version == asset.version);
    let caching = if is_this_version { "public, max-age=31536000, immutable" } else { "no-cache" };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A logo can be opened by itself, and SVG can contain scripts: this policy runs none and loads
    // nothing.
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; sandbox"),
    );
    response
}

/// An empty response.
pub(super) fn done() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The request was accepted. The response does not reveal whether anything will happen.
pub(super) fn accepted() -> Response<Bytes> {
    let mut response = done();
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// Redirects a browser to a path of this site, with GET.
pub(super) fn see_other(location: &str) -> Response<Bytes> {
    let mut response = done();
    *response.status_mut() = StatusCode::SEE_OTHER;
    let location = HeaderValue::from_str(location).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// Redirects a browser to another site.
pub(super) fn found(location: &str) -> Response<Bytes> {
    let mut response = see_other(location);
    *response.status_mut() = StatusCode::FOUND;
    response
}

/// An empty response with the status that a provider expects after a logout.
pub(super) fn received() -> Response<Bytes> {
    let mut response = done();
    *response.status_mut() = StatusCode::OK;
    response
}

/// Adds cookies to a response.
pub(super) fn with_cookies(
    mut response: Response<Bytes>,
    cookies: impl IntoIterator<Item = HeaderValue>,
) -> Response<Bytes> {
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
