//! Connections to the contestant: cleartext, or TLS 1.3 that trusts only the certificate authority
//! of the benchmark.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{HOST, Protocol};

/// A connection for requests and responses.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(crate) type Link = Box<dyn Stream>;

pub(crate) struct Connector {
    address: SocketAddr,
    tls: Option<Tls>,
    /// The result of the first handshake.
    agreed: OnceLock<String>,
}

struct Tls {
    connector: TlsConnector,
    host: ServerName<'static>,
    alpn: &'static [u8],
}

impl Connector {
    pub(crate) fn new(address: SocketAddr, authority: Option<&str>, protocol: Protocol) -> io::Result<Self> {
        let tls = authority.map(|path| Tls::new(path, protocol)).transpose()?;
        Ok(Self { address, tls, agreed: OnceLock::new() })
    }

    pub(crate) async fn connect(&self) -> io::Result<Link> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let stream = tls.connector.connect(tls.host.clone(), stream).await?;
        let agreed = tls.agreed(&stream)?;
        self.agreed.get_or_init(|| agreed);
        Ok(Box::new(stream))
    }

    /// Connects from another address of this machine: one address has too few ports for tens of
    /// thousands of connections.
    pub(crate) async fn connect_from(&self, source: Ipv4Addr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        // Closed with a reset, so that its port is free at once.
        socket.set_zero_linger()?;
        socket.bind((source, 0).into())?;
        socket.connect(self.address).await
    }

    pub(crate) fn agreed(&self) -> &str {
        self.agreed.get().map_or("", String::as_str)
    }
}

impl Tls {
    fn new(authority: &str, protocol: Protocol) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority).map_err(io::Error::other)?).map_err(io::Error::other)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_protocol_versions(&[&TLS13]).map_err(io::Error::other)?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        let alpn: &[u8] = if protocol == Protocol::H2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![alpn.to_vec()];
        let host = ServerName::try_from(HOST).map_err(io::Error::other)?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), host, alpn })
    }

    fn agreed(&self, stream: &TlsStream<TcpStream>) -> io::Result<String> {
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(self.alpn) {
            return Err(io::Error::other("another protocol than asked for was chosen"));
        }
        let version = session.protocol_version().and_then(|version| version.as_str());
        let suite = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let group = session.negotiated_key_exchange_group().and_then(|group| group.name().as_str());
        let words = [version, suite, group, std::str::from_utf8(self.alpn).ok()];
        Ok(words.map(Option::unwrap_or_default).join(" "))
    }
}
