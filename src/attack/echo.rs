//! An application that answers with what it gets, for a proxy under attack to forward to.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The application, listening.
#[derive(Debug)]
pub struct Echo(TcpListener);

impl Echo {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self)
    }

    /// Answers until it is dropped.
    pub async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            // A failed accept is a connection that has gone, or too many of them: the attack opens
            // one at a time.
            let Ok((stream, _)) = self.0.accept().await else { continue };
            let service = service_fn(async |request| Ok::<_, Infallible>(answer(request).await));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(async {
                // A client that breaks off is none of its business.
                let _ = connection.await;
            });
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, mut body) = request.into_parts();
    let mut trailers = HeaderMap::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(found) = frame.into_trailers() {
            trailers.extend(found);
        }
    }
    let text = json!({
        "method": parts.method.as_str(),
        "target": parts.uri.to_string(),
        "headers": fields(&parts.headers),
        "trailers": fields(&trailers),
    });
    let mut response = Response::new(Full::from(format!("{text:#}\n")));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn fields(headers: &HeaderMap) -> Value {
    let mut fields = Map::new();
    for name in headers.keys() {
        let values: Vec<_> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        fields.insert(name.to_string(), values.join(", ").into());
    }
    Value::Object(fields)
}
