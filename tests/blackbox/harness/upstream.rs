//! An application that records every received byte and responds with configured steps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Field, Port, fields, head_end, text, values, within};

/// A step of handling a request. After the last step, the connection is kept.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reads the body to its end.
    ReadBody,
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Waits for [`Upstream::release`], or until the gateway closes.
    Hold,
    /// Reads until the gateway has closed its side; this side stays open.
    ReadToEnd,
    /// Waits.
    Wait(Duration),
    /// Sends back every byte until the end.
    Echo,
    /// Writes endlessly.
    Flood,
    /// Closes.
    Close,
    /// Resets the connection.
    Reset,
    /// Runs this step if the connection has carried another request before.
    IfKept(Box<Step>),
}

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Received {
    pub method: String,
    /// The target, byte for byte.
    pub target: String,
    pub headers: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// Whether the body was read to its end.
    pub complete: bool,
}

impl Received {
    /// The value of a field that stands there at most once.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = values(&self.headers, name);
        assert!(found.len() < 2, "{name} is repeated: {found:?}");
        found.first().copied()
    }
}

/// What the application has received so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub requests: Vec<Received>,
    pub accepted: usize,
    /// Connections that have ended.
    pub closed: usize,
}

/// The application. It ends with the test.
#[derive(Clone)]
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// Stays reserved while the application is stopped.
    _port: Port,
    listening: Mutex<Option<AbortHandle>>,
    seen: watch::Sender<Seen>,
    released: Semaphore,
    scripts: Mutex<HashMap<String, Vec<Step>>>,
    default: Mutex<Vec<Step>>,
}

impl Upstream {
    pub async fn start() -> Self {
        Self::listen(None, Port::reserve()).await
    }

    /// Starts on the port of a stopped one.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::listen(None, Port::reserve_at(address)).await
    }

    /// Starts with TLS.
    pub async fn start_tls(config: rustls::ServerConfig) -> Self {
        Self::listen(Some(TlsAcceptor::from(Arc::new(config))), Port::reserve()).await
    }

    async fn listen(tls: Option<TlsAcceptor>, port: Port) -> Self {
        let address = port.address();
        let listener = TcpListener::bind(address).await.unwrap();
        let shared = Arc::new(Shared {
            _port: port,
            listening: Mutex::default(),
            seen: watch::Sender::default(),
            released: Semaphore::new(0),
            scripts: Mutex::default(),
            default: Mutex::new(answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")),
        });
        let accepting = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, tls) = (Arc::clone(&accepting), tls.clone());
                shared.seen.send_modify(|seen| seen.accepted += 1);
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    let stream = match tls {
                        None => Some(Stream::Plain(stream)),
                        Some(tls) => tls
                            .accept(stream)
                            .await
                            .ok()
                            .map(|stream| Stream::Tls(Box::new(stream))),
                    };
                    if let Some(stream) = stream {
                        Line { stream, buffer: BytesMut::new(), shared: Arc::clone(&shared) }
                            .run()
                            .await;
                    }
                    shared.seen.send_modify(|seen| seen.closed += 1);
                });
            }
        });
        *shared.listening.lock().unwrap() = Some(listening.abort_handle());
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: connections are refused from now on.
    pub async fn stop(&self) {
        self.shared.listening.lock().unwrap().take().unwrap().abort();
        within(async { while TcpStream::connect(self.address).await.is_ok() {} }).await;
    }

    /// Reads each request and responds with these bytes from now on.
    pub fn answers(&self, response: &str) {
        self.does(answer(response));
    }

    /// Handles each request like this from now on.
    pub fn does(&self, steps: Vec<Step>) {
        *self.shared.default.lock().unwrap() = steps;
    }

    /// Handles requests for this target like this.
    pub fn does_at(&self, target: &str, steps: Vec<Step>) {
        self.shared.scripts.lock().unwrap().insert(target.to_owned(), steps);
    }

    /// Lets one [`Step::Hold`] continue, now or later.
    pub fn release(&self) {
        self.shared.released.add_permits(1);
    }

    pub fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    pub fn count(&self) -> usize {
        self.shared.seen.borrow().requests.len()
    }

    /// The latest request.
    #[track_caller]
    pub fn last(&self) -> Received {
        self.shared.seen.borrow().requests.last().expect("the upstream has seen no request").clone()
    }

    /// Waits until this condition holds.
    pub async fn until(&self, happened: impl FnMut(&Seen) -> bool) -> Seen {
        within(async { self.shared.seen.subscribe().wait_for(happened).await.unwrap().clone() })
            .await
    }
}

/// The steps of an ordinary response.
pub fn answer(response: &str) -> Vec<Step> {
    vec![Step::ReadBody, Step::Write(response.as_bytes().to_vec())]
}

/// A step that writes text.
pub fn write(text: &str) -> Step {
    Step::Write(text.as_bytes().to_vec())
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    async fn read(&mut self, buffer: &mut BytesMut) -> usize {
        buffer.reserve(16 * 1024);
        let read = match self {
            Self::Plain(stream) => stream.read_buf(buffer).await,
            Self::Tls(stream) => stream.read_buf(buffer).await,
        };
        read.unwrap_or(0)
    }

    /// Whether it could be written.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await.is_ok(),
            Self::Tls(stream) => {
                stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok()
            }
        }
    }

    fn reset(self) {
        if let Self::Plain(stream) = self {
            stream.set_zero_linger().unwrap();
        }
    }
}

/// One connection from the gateway.
struct Line {
    stream: Stream,
    buffer: BytesMut,
    shared: Arc<Shared>,
}

impl Line {
    async fn run(mut self) {
        let mut is_kept = false;
        while let Some(index) = self.head().await {
            let target = self.shared.seen.borrow().requests[index].target.clone();
            let script = self.shared.scripts.lock().unwrap().get(&target).cloned();
            let steps = script.unwrap_or_else(|| self.shared.default.lock().unwrap().clone());
            let reads_body = steps.iter().any(|step| matches!(step, Step::ReadBody));
            for step in steps {
                let step = match step {
                    Step::IfKept(step) if is_kept => *step,
                    Step::IfKept(_) => continue,
                    step => step,
                };
                match step {
                    Step::IfKept(_) => unreachable!("a step within a step within a step"),
                    Step::ReadBody => {
                        if !self.body(index).await {
                            return;
                        }
                    }
                    Step::Write(bytes) => {
                        if !self.stream.write(&bytes).await {
                            return;
                        }
                    }
                    Step::Hold => {
                        if !self.hold().await {
                            return;
                        }
                    }
                    Step::ReadToEnd => while self.stream.read(&mut self.buffer).await > 0 {},
                    Step::Wait(time) => tokio::time::sleep(time).await,
                    Step::Echo => loop {
                        let bytes = self.buffer.split();
                        if !bytes.is_empty() && !self.stream.write(&bytes).await
                            || self.stream.read(&mut self.buffer).await == 0
                        {
                            return;
                        }
                    },
                    Step::Flood => {
                        while self.stream.write(&[b'x'; 16 * 1024]).await {}
                        return;
                    }
                    Step::Close => return,
                    Step::Reset => return self.stream.reset(),
                }
            }
            is_kept = true;
            if !reads_body && self.length(index) != Some(0) {
                while self.stream.read(&mut self.buffer).await > 0 {}
                return;
            }
        }
    }

    /// Reads and records a head.
    async fn head(&mut self) -> Option<usize> {
        let end = loop {
            if let Some(end) = head_end(&self.buffer) {
                break end;
            }
            if self.stream.read(&mut self.buffer).await == 0 {
                return None;
            }
        };
        let head = text(&self.buffer.split_to(end));
        let (first, rest) = head.split_once("\r\n").unwrap();
        let parts: Vec<&str> = first.split(' ').collect();
        let [method, target, "HTTP/1.1"] = parts[..] else { panic!("no request line: {first}") };
        let received = Received {
            method: method.into(),
            target: target.into(),
            headers: fields(rest),
            ..Received::default()
        };
        let mut index = 0;
        self.shared.seen.send_modify(|seen| {
            index = seen.requests.len();
            seen.requests.push(received);
        });
        Some(index)
    }

    /// The announced length of the body; `None` when it is chunked.
    fn length(&self, index: usize) -> Option<usize> {
        let seen = self.shared.seen.borrow();
        let received = &seen.requests[index];
        if received.header("transfer-encoding").is_some() {
            None
        } else {
            Some(received.header("content-length").map_or(0, |length| length.parse().unwrap()))
        }
    }

    fn record(&self, index: usize, change: impl FnOnce(&mut Received)) {
        self.shared.seen.send_modify(|seen| change(&mut seen.requests[index]));
    }

    /// Reads the body to its end, and records it while it arrives.
    async fn body(&mut self, index: usize) -> bool {
        match self.length(index) {
            Some(mut left) => {
                while left > 0 {
                    if self.buffer.is_empty() && self.stream.read(&mut self.buffer).await == 0 {
                        return false;
                    }
                    let bytes = self.buffer.split_to(left.min(self.buffer.len()));
                    left -= bytes.len();
                    self.record(index, |received| received.body.extend_from_slice(&bytes));
                }
            }
            None => loop {
                let Some(line) = self.line().await else { return false };
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                if size == 0 {
                    break;
                }
                while self.buffer.len() < size + 2 {
                    if self.stream.read(&mut self.buffer).await == 0 {
                        return false;
                    }
                }
                let chunk = self.buffer.split_to(size + 2);
                self.record(index, |received| received.body.extend_from_slice(&chunk[..size]));
            },
        }
        if self.length(index).is_none() {
            let mut trailers = Vec::new();
            loop {
                match self.line().await {
                    None => return false,
                    Some(line) if line.is_empty() => break,
                    Some(line) => trailers.extend(fields(&line)),
                }
            }
            self.record(index, |received| received.trailers = trailers);
        }
        self.record(index, |received| received.complete = true);
        true
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                return Some(text(&line[..end]));
            }
            if self.stream.read(&mut self.buffer).await == 0 {
                return None;
            }
        }
    }

    /// False if the gateway closed. Reads little meanwhile, so that an unread body stays in the
    /// sockets.
    async fn hold(&mut self) -> bool {
        loop {
            tokio::select! {
                permit = self.shared.released.acquire() => {
                    permit.unwrap().forget();
                    return true;
                }
                read = self.stream.read(&mut self.buffer), if self.buffer.len() < 64 * 1024 => if read == 0 { return false },
            }
        }
    }
}
