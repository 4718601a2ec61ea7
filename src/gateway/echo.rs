//! The built-in application: it responds with the request that it received, to show what an
//! upstream sees.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;

use super::body::{Body, ClientBody, UploadFailure};
use super::constant_headers::shown;
use super::outgoing::Outgoing;

/// Bytes of a body that are echoed; the rest is read and counted.
const ECHOED: usize = 64 * 1024;

/// Responds with the method, target, header fields and body as JSON.
///
/// # Errors
/// [`UploadFailure`], when the body does not arrive.
pub(super) async fn answer(
    request: Outgoing,
    body: ClientBody,
) -> Result<Response<Body>, UploadFailure> {
    let (text, length) = read_body(body).await?;
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
