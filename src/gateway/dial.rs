//! Connects to an application by name (RFC 8305).
//!
//! A name can have an address that does not respond. The next one is tried after a short delay, in
//! parallel with those before it. From then on, the address that responded is tried first, and one
//! that accepted a connection without being of use is tried last.

use std::collections::{HashSet, VecDeque};
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustls::AlertDescription;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::descriptors;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Name resolution, TCP or TLS failed.
    #[error("{}", told(.0))]
    Io(#[from] io::Error),
    /// Connecting took longer than `connect_timeout`.
    #[error("it took longer than connect_timeout")]
    Timeout,
    /// The queue of connections at its socket stayed full for `connect_timeout`.
    #[error(
        "connections waited at its socket for connect_timeout, and its queue had no room for another: let the application accept them sooner, or listen with a larger backlog (the system limits it to net.core.somaxconn)"
    )]
    QueueFull,
    /// The last attempts took too long, and another one is under way.
    #[error("it did not respond to the last connections, and one request at a time tries again")]
    Suspended,
    /// The name does not resolve to any address.
    #[error("the name does not resolve to an address")]
    NoAddress,
    /// It did not choose HTTP/2.
    #[error(
        "it does not accept HTTP/2 over TLS (ALPN h2), but its section has http2 = true: remove that if it speaks only HTTP/1.1"
    )]
    NotHttp2,
    /// The HTTP handshake failed.
    #[error("{}", told(.0))]
    Http(#[from] hyper::Error),
}

impl ConnectError {
    /// Whether the application neither accepted nor refused the connection in time.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout | Self::QueueFull)
    }
}

/// What an error says, and what to do if the other end asked for a certificate and got none. With
/// TLS 1.3, it says so only after the handshake.
pub(super) fn told(error: &(dyn Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let alert = inner.and_then(|inner| inner.downcast_ref());
        if let Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) = alert {
            return "the upstream requires a client certificate: set tls.certificate and tls.private_key in its section".to_owned();
        }
        cause = error.source();
    }
    error.to_string()
}

/// How long an address may take to respond before the next one is tried as well (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to one application, and remembers which of its addresses responded.
#[derive(Debug, Default)]
pub(super) struct Dialer(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The address that accepted the last connection.
    preferred: Option<SocketAddr>,
    /// Those that were of no use although they had accepted a connection, the last one last.
    avoided: Vec<SocketAddr>,
    /// How many addresses the name had.
    found: usize,
}

impl Known {
    /// Forgets the addresses that the name no longer has.
    fn has_found(&mut self, found: &[SocketAddr]) {
        self.found = found.len();
        self.avoided.retain(|avoided| found.contains(avoided));
    }
}

/// A connection that an address has accepted. If it hangs, other addresses are tried first from then
/// on.
pub(super) struct Trial<'a> {
    dialer: &'a Dialer,
    address: Option<SocketAddr>,
    begun: Instant,
}

impl Trial<'_> {
    /// Notes whether the address is of use.
    pub(super) fn ended(mut self, is_of_use: bool) {
        let Some(address) = self.address.take() else { return };
        if is_of_use {
            self.dialer.known().avoided.retain(|avoided| *avoided != address);
        } else {
            self.dialer.avoid(address);
        }
    }
}

impl Drop for Trial<'_> {
    /// Clients can end it as well, at any time.
    fn drop(&mut self) {
        if let Some(address) = self.address
            && self.begun.elapsed() >= ATTEMPT_DELAY
        {
            self.dialer.avoid(address);
        }
    }
}

impl Dialer {
    /// Connects to the first address that responds. The caller limits the time.
    ///
    /// # Errors
    /// Returns the [`ConnectError`] of the last address that failed.
    pub(super) async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        if let Ok(ip) = host.parse() {
            return Ok(open(SocketAddr::new(ip, port)).await?);
        }
        let found = tokio::net::lookup_host((host, port)).await?.collect();
        self.connect(found).await
    }

    /// Begins to find out whether the other end of a new connection is of use.
    pub(super) fn trial(&self, stream: &TcpStream) -> Trial<'_> {
        Trial { dialer: self, address: stream.peer_addr().ok(), begun: Instant::now() }
    }

    /// Tries this address last from now on.
    pub(super) fn avoid(&self, address: SocketAddr) {
        let mut known = self.known();
        known.preferred.take_if(|preferred| *preferred == address);
        known.avoided.retain(|avoided| *avoided != address);
        known.avoided.push(address);
    }

    /// Whether there are addresses that are not avoided.
    pub(super) fn knows_another(&self) -> bool {
        let known = self.known();
        known.avoided.len() < known.found
    }

    async fn connect(&self, mut found: Vec<SocketAddr>) -> Result<TcpStream, ConnectError> {
        let mut seen = HashSet::new();
        found.retain(|address| seen.insert(*address));
        self.known().has_found(&found);
        let mut left = self.in_order(found);
        let mut attempts = JoinSet::new();
        let mut last = ConnectError::NoAddress;
        loop {
            match left.pop_front() {
                Some(address) => {
                    let connecting = open(address);
                    attempts.spawn(async move { Ok((connecting.await?, address)) });
                }
                None if attempts.is_empty() => return Err(last),
                None => {}
            }
            tokio::select! {
                Some(attempt) = attempts.join_next() => match attempt {
                    Ok(Ok((stream, address))) => {
                        self.known().preferred = Some(address);
                        return Ok(stream);
                    }
                    Ok(Err(error)) => last = ConnectError::Io(error),
                    Err(error) => last = ConnectError::Io(io::Error::other(error)),
                },
                () = tokio::time::sleep(ATTEMPT_DELAY), if !left.is_empty() => {}
            }
        }
    }

    /// Sorts the addresses: first the one that responded last, then both families in turn, starting
    /// with the one that the system prefers (RFC 8305 §4), and last those that are avoided.
    fn in_order(&self, found: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
        let prefers_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
        let (preferred, others): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|address| address.is_ipv6() == prefers_v6);
        let mut ordered = VecDeque::with_capacity(preferred.len() + others.len());
        let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
        loop {
            let pair = [preferred.next(), others.next()];
            if pair == [None, None] {
                break;
            }
            ordered.extend(pair.into_iter().flatten());
        }
        let known = self.known();
        let rank = |address: &SocketAddr| {
            let is_preferred = known.preferred == Some(*address);
            let avoided = known.avoided.iter().position(|avoided| avoided == address);
            (!is_preferred, avoided.map_or(0, |at| at + 1))
        };
        ordered.make_contiguous().sort_by_key(rank);
        ordered
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects to one address, unless that would take a file descriptor that probes and the store
/// need. One HTTP/2 connection of a client can carry many requests, each with an upstream
/// connection of its own.
async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if descriptors::is_among_the_last(&socket) {
        return Err(Errno::MFILE.into());
    }
    socket.connect(address).await
}

/// Connects to a socket of this machine, likewise. While its queue is full, the system refuses
/// instead of waiting as it does with TCP: so tries again for `patience`.
pub(super) async fn open_unix(path: &Path, patience: Duration) -> Result<UnixStream, ConnectError> {
    let until = Instant::now() + patience;
    let mut delay = SHORTEST_DELAY;
    let stream = loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() + delay >= until {
                    return Err(ConnectError::QueueFull);
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LONGEST_DELAY);
            }
            connected => break connected?,
        }
    };
    if descriptors::is_among_the_last(&stream) {
        return Err(io::Error::from(Errno::MFILE).into());
    }
    Ok(stream)
}

/// Has the system end a connection whose other end has been silent for too long and is gone.
///
/// HTTP/2 has PING for that, but servers of gRPC count them: to one that has sent no data in five
/// minutes, the third is too many (`ENHANCE_YOUR_CALM`), and ends all streams of the connection.
pub(super) fn notice_loss(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENT_FOR)?;
    sockopt::set_tcp_keepintvl(stream, SILENT_FOR / PROBES)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    // What was sent must be acknowledged as fast.
    let all = 2 * SILENT_FOR.as_millis();
    Ok(sockopt::set_tcp_user_timeout(stream, u32::try_from(all).unwrap_or(u32::MAX))?)
}

/// How long a connection may be silent before the system asks whether the other end is there, and
/// how long it asks.
const SILENT_FOR: Duration = Duration::from_secs(20);

/// How often it asks.
const PROBES: u32 = 4;

/// How long to wait before trying again while the queue of a socket is full: at first, and at most.
const SHORTEST_DELAY: Duration = Duration::from_millis(2);
const LONGEST_DELAY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::net::{TcpListener, UnixSocket};

    use super::*;

    /// An address where connecting neither succeeds nor fails, because its queue is full.
    async fn silent() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            queued.push(stream.unwrap());
        }
        (address, queued, listener)
    }

    async fn listening() -> (SocketAddr, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (listener.local_addr().unwrap(), listener)
    }

    #[tokio::test]
    async fn an_unresponsive_address_delays_only_the_first_connection() {
        let (dead, _queued, _dead_listener) = silent().await;
        let (good, _listener) = listening().await;
        let dialer = Dialer::default();
        let begun = Instant::now();
        let stream = dialer.connect(vec![dead, good]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(begun.elapsed() >= ATTEMPT_DELAY);
        assert_eq!(dialer.in_order(vec![dead, good]), [good, dead]);
    }

    /// Such as a TLS terminator that hangs.
    #[tokio::test]
    async fn an_address_that_accepts_and_is_of_no_use_is_tried_last() {
        let [(useless, _first), (good, _second)] = [listening().await, listening().await];
        let dialer = Dialer::default();
        let connect = || dialer.connect(vec![useless, good]);
        let stream = connect().await.unwrap();
        dialer.trial(&stream).ended(true);
        assert_eq!(dialer.in_order(vec![useless, good]), [useless, good]);
        // A client that gives up says nothing about it.
        drop(dialer.trial(&stream));
        assert_eq!(dialer.in_order(vec![useless, good]), [useless, good]);
        dialer.trial(&stream).ended(false);
        assert!(dialer.knows_another());
        let stream = connect().await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        dialer.trial(&stream).ended(false);
        assert!(!dialer.knows_another());
        // An address that is listed twice, beside one that the name no longer has.
        dialer.connect(vec![good, good]).await.unwrap();
        assert!(!dialer.knows_another());
        dialer.connect(vec![useless, good]).await.unwrap();
        dialer.avoid(useless);
        dialer.avoid(good);
        // What was tried last comes last.
        assert_eq!(dialer.in_order(vec![good, useless]), [useless, good]);
    }

    #[tokio::test]
    async fn after_a_refused_connection_the_next_address_is_tried_at_once() {
        let (refused, closed) = listening().await;
        drop(closed);
        let (good, listener) = listening().await;
        let dialer = Dialer::default();
        let stream = dialer.connect(vec![refused, good]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        // The remembered address may also go away.
        drop(listener);
        let error = dialer.connect(vec![refused, good]).await.unwrap_err();
        assert!(matches!(error, ConnectError::Io(_)), "{error}");
        let error = dialer.connect(Vec::new()).await.unwrap_err();
        assert!(matches!(error, ConnectError::NoAddress), "{error}");
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = UnixStream::connect(&path).await {
            queued.push(stream);
        }
        let patience = Duration::from_millis(20);
        let error = open_unix(&path, patience).await.unwrap_err();
        assert!(matches!(error, ConnectError::QueueFull), "{error}");
        let mut connecting = pin!(open_unix(&path, Duration::from_mins(1)));
        tokio::select! {
            biased;
            ended = connecting.as_mut() => panic!("it did not wait: {ended:?}"),
            accepted = listener.accept() => drop(accepted.unwrap()),
        }
        connecting.await.unwrap();
    }

    #[tokio::test]
    async fn the_system_notices_that_the_other_end_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = open(listener.local_addr().unwrap()).await.unwrap();
        notice_loss(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), SILENT_FOR);
        let asking =
            sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
        assert_eq!(asking, SILENT_FOR);
    }

    #[test]
    fn a_missing_client_certificate_is_named() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let error = ConnectError::Io(io::Error::new(io::ErrorKind::InvalidData, alert));
        assert!(error.to_string().contains("set tls.certificate"), "{error}");
        let alert = rustls::Error::AlertReceived(AlertDescription::HandshakeFailure);
        let error = io::Error::new(io::ErrorKind::InvalidData, alert);
        assert_eq!(told(&error), "received fatal alert: HandshakeFailure");
    }

    #[test]
    fn address_families_alternate() {
        let [a4, b4, a6, b6] = ["1.1.1.1:1", "2.2.2.2:1", "[::1]:1", "[::2]:1"]
            .map(|address| address.parse::<SocketAddr>().unwrap());
        let dialer = Dialer::default();
        assert_eq!(dialer.in_order(vec![a6, b6, a4, b4]), [a6, a4, b6, b4]);
        assert_eq!(dialer.in_order(vec![a4, b4, a6]), [a4, a6, b4]);
        dialer.known().preferred = Some(b4);
        assert_eq!(dialer.in_order(vec![a6, b6, a4, b4]), [b4, a6, a4, b6]);
        assert_eq!(dialer.in_order(vec![a6]), [a6]);
        dialer.avoid(b4);
        dialer.avoid(a4);
        assert_eq!(dialer.in_order(vec![b4, b6, a4, a6]), [b6, a6, b4, a4]);
    }
}
