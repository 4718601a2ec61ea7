//! A client that sends exactly the bytes it is given.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Field, fields, head_end, text, values, within};

/// A stream of bytes, encrypted or not.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One connection of a client.
pub struct Connection {
    io: Box<dyn Io>,
    buffer: BytesMut,
}

/// A response of the gateway.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// The statuses of the 1xx responses before it.
    pub informational: Vec<u16>,
    /// Whether the body is complete according to its framing.
    pub complete: bool,
}

impl Response {
    /// The value of a field that occurs at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = values(&self.headers, name);
        assert!(found.len() < 2, "{name} is repeated: {found:?}");
        found.first().copied()
    }

    pub fn headers(&self, name: &str) -> Vec<&str> {
        values(&self.headers, name)
    }

    pub fn text(&self) -> String {
        text(&self.body)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// The reason of a refusal. Checks its form (CONTRACT §3).
    pub fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert!(
            problem["title"].is_string()
                && problem["request_id"].as_str().is_some_and(|id| !id.is_empty()),
            "{self:?}"
        );
        assert_eq!(
            matches!(self.status, 429 | 503),
            self.header("retry-after").is_some(),
            "{self:?}"
        );
        if matches!(self.status, 401 | 403) {
            let challenge =
                self.header("www-authenticate").unwrap_or_else(|| panic!("no challenge: {self:?}"));
            assert!(challenge.starts_with("Bearer realm=\"portcullis\""), "{challenge}");
            assert!(
                self.status != 403 || challenge.ends_with("error=\"insufficient_scope\""),
                "{challenge}"
            );
        }
        problem["reason"].as_str().unwrap().to_owned()
    }

    /// Status and reason of a refusal.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.reason())
    }

    /// Asserts that it is this refusal.
    #[track_caller]
    pub fn is(&self, status: u16, reason: &str) {
        assert_eq!(self.refusal(), (status, reason.to_owned()), "{self:?}");
    }
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = within(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    pub fn over(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), buffer: BytesMut::new() }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes).await.unwrap();
    }

    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within(async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        })
        .await
    }

    /// Writes as much as the other side accepts at once, without waiting.
    pub async fn write_some(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.io.write(bytes).await
    }

    pub async fn shut_down(&mut self) {
        within(self.io.shutdown()).await.unwrap();
    }

    /// One response to a request other than HEAD.
    pub async fn response(&mut self) -> Response {
        self.response_to("GET").await
    }

    pub async fn response_to(&mut self, method: &str) -> Response {
        self.try_response_to(method).await.expect("the connection was closed before a response")
    }

    /// `None` when the connection closes before a head is complete.
    pub async fn try_response_to(&mut self, method: &str) -> Option<Response> {
        within(async {
            let mut response = self.head().await?;
            self.body(method, &mut response).await;
            Some(response)
        })
        .await
    }

    /// The head of the next final response.
    pub async fn head(&mut self) -> Option<Response> {
        let mut informational = Vec::new();
        loop {
            let head = self.next_head().await?;
            if (100..200).contains(&head.status) && head.status != 101 {
                informational.push(head.status);
            } else {
                return Some(Response { informational, ..head });
            }
        }
    }

    /// The next head, informational or final.
    pub async fn next_head(&mut self) -> Option<Response> {
        within(async {
            let end = loop {
                if let Some(end) = head_end(&self.buffer) {
                    break end;
                }
                if self.fill().await == 0 {
                    assert!(self.buffer.is_empty(), "a head that is cut: {:?}", text(&self.buffer));
                    return None;
                }
            };
            let head = text(&self.buffer.split_to(end));
            let (first, rest) = head.split_once("\r\n").unwrap();
            assert!(first.starts_with("HTTP/1.1 ") || first.starts_with("HTTP/1.0 "), "{head}");
            let status = first[9..12].parse().unwrap();
            Some(Response { status, headers: fields(rest), ..Response::default() })
        })
        .await
    }

    async fn body(&mut self, method: &str, response: &mut Response) {
        if method == "HEAD" || matches!(response.status, 101 | 204 | 304) {
            response.complete = true;
        } else if response
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            while let Some(chunk) = self.chunk(response).await {
                response.body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length && self.fill().await > 0 {}
            response.complete = self.buffer.len() >= length;
            response.body = self.buffer.split_to(length.min(self.buffer.len())).to_vec();
        } else {
            while self.fill().await > 0 {}
            response.complete = true;
            response.body = self.buffer.split().to_vec();
        }
    }

    /// The next chunk of a chunked body; `None` at its end, after the trailers, or if it breaks
    /// off.
    pub async fn chunk(&mut self, response: &mut Response) -> Option<Vec<u8>> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).unwrap();
        if size == 0 {
            let mut trailers = String::new();
            loop {
                match self.line().await? {
                    line if line.is_empty() => break,
                    line => write!(trailers, "{line}\r\n").unwrap(),
                }
            }
            response.trailers = fields(&trailers);
            response.complete = true;
            return None;
        }
        let chunk = self.exactly(size).await?;
        self.exactly(2).await?;
        Some(chunk)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = text(&self.buffer.split_to(end));
                self.buffer.advance(2);
                return Some(line);
            }
            if within(self.fill()).await == 0 {
                return None;
            }
        }
    }

    /// Exactly this many bytes; `None` if fewer arrive.
    pub async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if within(self.fill()).await == 0 {
                return None;
            }
        }
        Some(self.buffer.split_to(length).to_vec())
    }

    /// Waits until the other side closes or resets the connection, and returns the bytes before
    /// that.
    pub async fn closed(&mut self) -> Vec<u8> {
        within(async { while self.fill().await > 0 {} }).await;
        self.buffer.split().to_vec()
    }

    /// Reads the available bytes; 0 at the end, or if the connection is reset.
    async fn fill(&mut self) -> usize {
        self.buffer.reserve(64 * 1024);
        self.io.read_buf(&mut self.buffer).await.unwrap_or(0)
    }
}

/// A request under construction. By default, it has only the field `Host: app.test`.
#[must_use = "it is sent by `send`"]
pub struct Request {
    address: SocketAddr,
    method: String,
    target: String,
    host: String,
    headers: String,
    body: Vec<u8>,
}

impl Request {
    pub fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        let (method, target) = (method.to_owned(), target.to_owned());
        Self {
            address,
            method,
            target,
            host: "app.test".to_owned(),
            headers: String::new(),
            body: Vec::new(),
        }
    }

    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        write!(self.headers, "{name}: {value}\r\n").unwrap();
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        let credentials = format!("Bearer {token}");
        self.header("Authorization", &credentials)
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// The bytes that are sent.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { method, target, host, headers, .. } = self;
        let mut bytes =
            format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Sends it on a new connection.
    pub async fn send(self) -> Response {
        let mut connection = Connection::open(self.address).await;
        self.send_on(&mut connection).await
    }

    /// Sends it on a new connection to a server that may end at any time. `None`: there was no
    /// complete response.
    pub async fn try_send(self) -> Option<Response> {
        let stream = within(TcpStream::connect(self.address)).await.ok()?;
        let mut connection = Connection::over(stream);
        connection.try_write(self.bytes()).await.ok()?;
        let response = connection.try_response_to(&self.method).await?;
        response.complete.then_some(response)
    }

    pub async fn send_on(self, connection: &mut Connection) -> Response {
        connection.write(self.bytes()).await;
        connection.response_to(&self.method).await
    }
}
