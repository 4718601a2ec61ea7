//! An HTTP/2 client.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;

use super::client::Io;
use super::{Gateway, within};

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    closed: watch::Receiver<()>,
}

/// A response that was read to its end.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn reason(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        problem["reason"].as_str().unwrap().to_owned()
    }
}

impl Connection {
    /// With prior knowledge, over cleartext.
    pub async fn open(gateway: &Gateway) -> Self {
        Self::over(tokio::net::TcpStream::connect(gateway.address()).await.unwrap()).await
    }

    pub async fn over(io: impl Io + 'static) -> Self {
        let (sender, connection) =
            within(handshake(TokioExecutor::new(), TokioIo::new(io))).await.unwrap();
        let (open, closed) = watch::channel(());
        tokio::spawn(async move {
            let _ = connection.await;
            drop(open);
        });
        Self { sender, closed }
    }

    /// The head of the response, before its body.
    pub async fn head(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        within(self.sender.send_request(request)).await
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let (head, body) = self.head(request).await.unwrap().into_parts();
        let body = within(body.collect()).await.unwrap();
        let trailers = body.trailers().cloned();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.to_bytes().to_vec(),
            trailers,
        }
    }

    /// Waits until the connection has ended.
    pub async fn closed(&mut self) {
        while within(self.closed.changed()).await.is_ok() {}
    }
}

/// A GET for this target, which must be absolute.
pub fn get(target: &str) -> Request<Full<Bytes>> {
    Request::get(target).body(Full::default()).unwrap()
}
