//! Sends the bytes of a case to one address, and to no other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::corpus::Case;
use super::deadline;
use super::response::{Response, responses};
use crate::outbound::Url;

/// What is read of an answer at most, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// How long to wait for a second answer to one request.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The name has no address.
    #[error("`{0}` has no address: {1}")]
    Name(String, io::Error),
    /// It leads to another machine.
    #[error("{0} is not on this machine: give --i-own-this if you may attack it")]
    Foreign(SocketAddr),
    /// The host is not one that a certificate can have.
    #[error("`{0}` is not the name of a TLS server")]
    ServerName(String),
    /// Connecting failed.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
}

/// Sends to one address.
#[derive(Debug)]
pub struct Sender {
    address: SocketAddr,
    tls: Option<(TlsConfig, ServerName<'static>)>,
}

type TlsConfig = Arc<rustls::ClientConfig>;

/// What arrived after a request. Empty: the connection was closed without an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) responses: Vec<Response>,
}

impl Sender {
    /// Looks the host up once: the address does not change afterwards. `tls` is used for `https`.
    ///
    /// # Errors
    /// [`Unreachable::Foreign`] for an address off this machine, unless `is_owned`; or the name has
    /// no address.
    pub async fn new(
        url: &Url,
        tls: Option<TlsConfig>,
        is_owned: bool,
    ) -> Result<Self, Unreachable> {
        let host = url.bare_host();
        let unknown = |error| Unreachable::Name(host.to_owned(), error);
        let mut found = tokio::net::lookup_host((host, url.port())).await.map_err(unknown)?;
        let address =
            found.next().ok_or_else(|| unknown(io::Error::from(io::ErrorKind::NotFound)))?;
        if !is_owned && !address.ip().to_canonical().is_loopback() {
            return Err(Unreachable::Foreign(address));
        }
        let tls = match tls.filter(|_| url.is_https()) {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|_| Unreachable::ServerName(host.to_owned()))?;
                Some((config, name))
            }
        };
        Ok(Self { address, tls })
    }

    /// Sends a case on a connection of its own. `None`: there was no answer in time.
    ///
    /// # Errors
    /// [`Unreachable::Connect`].
    pub(super) async fn send(&self, case: &Case) -> Result<Option<Answer>, Unreachable> {
        let failed = |error| Unreachable::Connect(self.address, error);
        let late = |_| failed(io::Error::from(io::ErrorKind::TimedOut));
        let until = deadline();
        let stream = timeout_at(until, TcpStream::connect(self.address)).await;
        let stream = stream.map_err(late)?.map_err(failed)?;
        let answer = match &self.tls {
            None => timeout_at(until, exchange(stream, case)).await,
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = timeout_at(until, connector.connect(name.clone(), stream)).await;
                let stream = stream.map_err(late)?.map_err(failed)?;
                timeout_at(until, exchange(stream, case)).await
            }
        };
        Ok(answer.ok())
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, case: &Case) -> Answer {
    // A proxy may refuse and close before everything is written.
    let _ = stream.write_all(&case.bytes).await;
    let (mut received, mut ended) = (Vec::new(), false);
    let mut buffer = vec![0; 16 * 1024];
    while !ended && received.len() < MAX_ANSWER {
        let (_, is_whole) = responses(&received, false);
        if is_whole && !case.has_hidden {
            break;
        }
        let reading = stream.read(&mut buffer);
        let length = if is_whole {
            // Another one may follow, or not.
            timeout(AFTERWARDS, reading).await.unwrap_or(Ok(0))
        } else {
            reading.await
        };
        match length {
            Ok(0) | Err(_) => ended = true,
            Ok(length) => received.extend_from_slice(&buffer[..length]),
        }
    }
    Answer { responses: responses(&received, ended).0 }
}
