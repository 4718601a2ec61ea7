//! The built-in application: it responds with the request that it received, to show what an
//! upstream sees.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, header};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;

use super::body::Body;
use super::constant_headers::shown;
use super::origin::is_navigation;
use super::outgoing::Outgoing;
use super::route::{Pattern, Route, Segment};
use super::snapshot::Snapshot;
use super::upload::{ClientBody, UploadFailure};
use super::upstream::Application;
use crate::identity::Mount;
use crate::identity::pages::{self, Echoed};

/// Bytes of a body that are echoed; the rest is read and counted.
const ECHOED: usize = 64 * 1024;

/// Responds with the method, target, header fields and body as JSON, or with a page that shows them
/// to a person.
///
/// # Errors
/// [`UploadFailure`], when the body does not arrive.
pub(super) async fn answer(
    request: Outgoing<'_>,
    body: ClientBody,
    snapshot: &Snapshot,
) -> Result<Response<Body>, UploadFailure> {
    let (text, length) = read_body(body).await?;
    if is_navigation(request.headers()) && pages::wanted(request.headers()) {
        return Ok(page(&request, snapshot));
    }
    let mut fields = serde_json::Map::new();
    for name in request.headers().keys() {
        let values: Vec<_> = request
            .headers()
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(shown(value).as_bytes()).into_owned())
            .collect();
        fields.insert(
            name.to_string(),
            if let [one] = values.as_slice() { one.clone().into() } else { values.into() },
        );
    }
    let answer = serde_json::json!({
        "method": request.method().as_str(),
        "target": request.target().as_str(),
        "headers": fields,
        "body": text,
        "body_bytes": length,
    });
    let mut text = serde_json::to_vec_pretty(&answer).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Body::Bytes(Bytes::from(text)));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The page for a person.
fn page(request: &Outgoing<'_>, snapshot: &Snapshot) -> Response<Body> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let routes = snapshot.routes.routes();
    let is_identity = |name: &HeaderName| {
        routes.iter().any(|route| route.identity_headers.names().any(|own| own == name))
    };
    let (caller, fields): (Vec<_>, Vec<_>) = headers
        .iter()
        .map(|(name, value)| (name, String::from_utf8_lossy(shown(value).as_bytes()).into_owned()))
        .partition(|(name, _)| is_identity(name));
    let named = |fields: Vec<(&HeaderName, String)>| {
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    };
    let languages = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let echoed = Echoed {
        request: format!("{} {}", request.method(), request.target()),
        caller: named(caller),
        fields: named(fields),
        pages: routes.iter().filter_map(|route| page_of(route, host)).collect(),
        languages: languages.map(str::to_owned),
    };
    let issuer = snapshot.identity.as_deref().zip(snapshot.routes.mount(host));
    let mut response = Response::new(Body::Empty);
    *response.body_mut() =
        Body::Bytes(pages::echo(echoed, issuer).answered_with(response.headers_mut()));
    response
}

/// A path that a person can open, and the name of its route, if the route leads here.
fn page_of(route: &Route, host: &str) -> Option<(String, String)> {
    let Pattern { host: hosts, segments, subtree, methods, .. } = &route.pattern;
    let is_here = route.destination.upstream()?.settings().application == Application::Echo;
    let texts = segments.iter().map(|segment| match segment {
        Segment::Literal(text) => Some(&**text),
        Segment::Any => None,
    });
    let path = Mount::new(texts.collect::<Option<Vec<_>>>()?).path(if *subtree { "/" } else { "" });
    (is_here && hosts.matches(host) && methods.contain(&Method::GET))
        .then(|| (path, route.name.to_string()))
}

async fn read_body(mut body: ClientBody) -> Result<(String, u64), UploadFailure> {
    let (mut kept, mut length) = (Vec::new(), 0);
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await.transpose()? else { break };
        if let Some(data) = frame.data_ref() {
            length += data.len() as u64;
            kept.extend_from_slice(&data[..data.len().min(ECHOED.saturating_sub(kept.len()))]);
        }
    }
    Ok((String::from_utf8_lossy(&kept).into_owned(), length))
}
