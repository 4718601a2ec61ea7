//! Asks the admin listener of the running gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;
use crate::config::file::File;
use crate::config::{self, value};

/// The maximum time to connect, and then for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of an answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The addresses at which the admin listener of this file can be reached from here: if it listens
/// on every address, loopback, with IPv6 first if available. Only the address in the file matters:
/// a key that cannot be read here must not cause a failure.
pub(super) fn addresses(path: &Path) -> Result<Vec<SocketAddr>, Failure> {
    let loaded = config::load(path)?;
    written(&loaded.file).map(reachable)
}

fn written(file: &File) -> Result<SocketAddr, Failure> {
    match &file.admin.listen {
        None => Ok(SocketAddr::from(([127, 0, 0, 1], 9901))),
        Some(text) => value::listen(text)
            .ok()
            .and_then(|addresses| addresses.first().copied())
            .ok_or_else(|| {
                Failure::Other(format!(
                    "admin.listen `{}` is not a valid address; run `portcullis check`",
                    text.get_ref()
                ))
            }),
    }
}

fn reachable(address: SocketAddr) -> Vec<SocketAddr> {
    let on = |ip: IpAddr| SocketAddr::new(ip, address.port());
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![on(Ipv4Addr::LOCALHOST.into())],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![on(Ipv6Addr::LOCALHOST.into()), on(Ipv4Addr::LOCALHOST.into())]
        }
        _ => vec![address],
    }
}

/// An answer of the admin listener.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// Sends a request without a body, and returns the whole answer.
pub(super) fn ask(
    path: &Path,
    method: &http::Method,
    target: &str,
    token: Option<&str>,
) -> Result<Answer, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut failed = Failure::Other("the admin listener has no address".to_owned());
    for address in addresses(path)? {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(target)
            .header(header::HOST, address.to_string())
            .header(header::CONNECTION, "close");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| Failure::Other(error.to_string()))?;
        let asking = async { timeout(TIMEOUT, exchange(address, request)).await };
        match runtime.block_on(asking) {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failed = unreachable(address, &error.to_string()),
            Err(_) => failed = unreachable(address, "timed out"),
        }
    }
    Err(failed)
}

fn unreachable(address: SocketAddr, cause: &str) -> Failure {
    Failure::Other(format!(
        "the admin listener at {address} does not answer: {cause}; is a gateway running on this file?"
    ))
}

async fn exchange(
    address: SocketAddr,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answering = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?;
        let answer = Answer { status: head.status.as_u16(), body: body.to_bytes() };
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
    };
    let (answer, _) = tokio::join!(answering, connection);
    answer
}
