//! A lane: one request after another, on an HTTP/1.1 connection or as streams of an HTTP/2
//! connection.

use std::sync::PoisonError;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{HeaderMap, Method, Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use bench_proxy::HEAD_LIMIT;

use super::connect::Link;
use super::{HOST, Plan, Protocol};

pub(crate) enum Lane {
    One(One),
    Two(Box<Two>),
}

/// A response: its status and its length in bytes.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) bytes: usize,
}

impl Lane {
    /// A connection with one lane, or with as many as it has streams.
    pub(crate) async fn open(plan: &Plan) -> Result<Vec<Self>, String> {
        let link = plan.connector.connect().await.map_err(|error| error.to_string())?;
        match plan.protocol {
            Protocol::H1 => Ok(vec![Self::One(One::new(link))]),
            Protocol::H2 => {
                let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(link)).await;
                let (sender, connection) = shaken.map_err(|error| error.to_string())?;
                // It ends with its last lane. Its requests report any error.
                plan.connections.lock().unwrap_or_else(PoisonError::into_inner).spawn(connection);
                let lane = |_| Self::Two(Box::new(Two { sender: sender.clone(), request: None }));
                Ok((0..plan.streams).map(lane).collect())
            }
        }
    }

    /// Prepares the request before the time is measured.
    pub(crate) fn prepare(&mut self, plan: &Plan, number: usize) {
        match self {
            Self::One(lane) => lane.prepare(plan, number),
            Self::Two(lane) => lane.request = request(plan, number),
        }
    }

    /// Sends the prepared request and reads the whole response.
    pub(crate) async fn exchange(&mut self) -> Result<Answer, String> {
        match self {
            Self::One(lane) => lane.exchange().await,
            Self::Two(lane) => lane.exchange().await.map_err(|error| error.to_string()),
        }
    }
}

pub(crate) struct One {
    link: Link,
    output: Vec<u8>,
    input: Vec<u8>,
}

impl One {
    pub(crate) fn new(link: Link) -> Self {
        Self { link, output: Vec::with_capacity(4096), input: Vec::with_capacity(16 * 1024) }
    }

    fn prepare(&mut self, plan: &Plan, number: usize) {
        self.output.clear();
        write_request(plan, number, &mut self.output);
    }

    async fn exchange(&mut self) -> Result<Answer, String> {
        self.link.write_all(&self.output).await.map_err(|error| error.to_string())?;
        self.link.flush().await.map_err(|error| error.to_string())?;
        let input = &mut self.input;
        input.clear();
        let (status, length) = loop {
            if let Some(head) = whole_head(input)? {
                break head;
            }
            if self.link.read_buf(input).await.map_err(|error| error.to_string())? == 0 {
                return Err("closed before the answer".to_owned());
            }
        };
        // Discard the rest of a long body.
        let mut received = input.len();
        while received < length {
            input.clear();
            let read = self.link.read_buf(input).await.map_err(|error| error.to_string())?;
            if read == 0 {
                return Err("closed within the body".to_owned());
            }
            received += read;
        }
        if received == length { Ok(Answer { status, bytes: length }) } else { Err("more than the answer".to_owned()) }
    }
}

pub(crate) fn write_request(plan: &Plan, number: usize, output: &mut Vec<u8>) {
    output.extend_from_slice(if plan.upload.is_empty() { b"GET " } else { b"POST " });
    output.extend_from_slice(plan.target(number).as_bytes());
    output.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in &plan.fields {
        for part in [name.as_str(), ": ", value.as_str(), "\r\n"] {
            output.extend_from_slice(part.as_bytes());
        }
    }
    let token = plan.token(number);
    if !token.is_empty() {
        output.extend_from_slice(b"Authorization: Bearer ");
        output.extend_from_slice(token.as_bytes());
        output.extend_from_slice(b"\r\n");
    }
    if !plan.upload.is_empty() {
        output.extend_from_slice(format!("Content-Length: {}\r\n", plan.upload.len()).as_bytes());
    }
    output.extend_from_slice(if plan.anew { b"Connection: close\r\n\r\n" } else { b"\r\n" });
    output.extend_from_slice(&plan.upload);
}

/// The status, and the length of head and body, once the head has arrived.
pub(crate) fn whole_head(input: &[u8]) -> Result<Option<(u16, usize)>, String> {
    if input.is_empty() {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(input).map_err(|error| error.to_string())? else {
        return if input.len() > HEAD_LIMIT { Err("an endless head".to_owned()) } else { Ok(None) };
    };
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    let length = length.ok_or_else(|| "an answer without Content-Length".to_owned())?;
    Ok(Some((response.code.unwrap_or_default(), head + length)))
}

pub(crate) struct Two {
    sender: SendRequest<Full<Bytes>>,
    request: Option<Request<Full<Bytes>>>,
}

impl Two {
    async fn exchange(&mut self) -> hyper::Result<Answer> {
        let Some(request) = self.request.take() else { return Ok(Answer { status: 0, bytes: 0 }) };
        let response = self.sender.send_request(request).await?;
        let (status, mut body, mut bytes) = (response.status().as_u16(), response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(Answer { status, bytes })
    }
}

/// `None` if the target or the token is invalid. `Plan::read` has checked the first of each.
pub(crate) fn request(plan: &Plan, number: usize) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::new(plan.upload.clone()));
    *request.method_mut() = if plan.upload.is_empty() { Method::GET } else { Method::POST };
    *request.uri_mut() = Uri::builder().scheme("https").authority(HOST).path_and_query(plan.target(number)).build().ok()?;
    request.headers_mut().clone_from(&plan.map);
    let token = plan.token(number);
    if !token.is_empty() {
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).ok()?);
    }
    Some(request)
}

/// The same fields for HTTP/2, where the host is in the target.
pub(crate) fn map(fields: &[(String, String)]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in fields.iter().filter(|(name, _)| name != "Host") {
        map.append(name.to_lowercase().parse::<hyper::header::HeaderName>().ok()?, value.parse().ok()?);
    }
    Some(map)
}
