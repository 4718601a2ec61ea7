//! The server: sockets and protocols, without policy.
//!
//! A worker is one thread with a current-thread runtime, its own listeners (SO_REUSEPORT) and its
//! own connections. It accepts connections, terminates TLS, lets hyper parse requests, and calls
//! [`Gateway::handle`].

mod claim;
mod connection;
mod discard;
mod frames;
mod given;
mod listen;
mod per_client;
mod plain_http;
pub mod proxy_protocol;
mod shutdown;
mod stalls;
mod stream;
mod unsent;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

pub use self::claim::Claim;
pub use self::connection::http1_builder;
pub use self::given::Given;
use self::listen::BACKLOG;
pub use self::listen::{Listeners, bind, bind_one};
use self::per_client::{ClientSlot, PerClient};
use self::shutdown::Shutdown;
use crate::descriptors;
use crate::gateway::client::Door;
use crate::gateway::refusal::problem_body;
use crate::gateway::worker::Worker;
use crate::gateway::{Gateway, Snapshot};
use crate::reason::Reason;
use crate::telemetry::fold::Fold;
use crate::telemetry::ids;

/// How long a connection that was accepted before a drain may take to say whom it is from.
const LATE_HEADER: Duration = Duration::from_secs(1);

/// How long to pause accepting when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The state that all workers share.
#[derive(Debug)]
pub struct Server {
    gateway: Arc<Gateway>,
    /// The number of open connections of all workers.
    connections: AtomicUsize,
    clients: Arc<PerClient>,
    /// Triggered when the workers must stop accepting.
    stop_accepting: Arc<Shutdown>,
    /// Triggered at the drain deadline.
    cut: Shutdown,
    tracker: TaskTracker,
    cannot_accept: Fold,
    no_proxy_header: Fold,
    most_connections: usize,
}

impl Server {
    /// Creates a server for this gateway. `most_connections` is the number of connections that the
    /// limit of open files leaves room for, if that is less than `max_connections`.
    pub fn new(gateway: Arc<Gateway>, most_connections: Option<usize>) -> Self {
        Self {
            gateway,
            most_connections: most_connections.unwrap_or(usize::MAX),
            connections: AtomicUsize::new(0),
            clients: Arc::default(),
            stop_accepting: Arc::default(),
            cut: Shutdown::default(),
            tracker: TaskTracker::new(),
            cannot_accept: Fold::default(),
            no_proxy_header: Fold::default(),
        }
    }

    /// Stops accepting, and asks every connection to end after its exchanges.
    pub fn stop_accepting(&self) {
        self.stop_accepting.trigger();
        self.tracker.close();
        self.gateway.tunnels().close();
    }

    /// Returns when every connection and every tunnel has ended.
    pub async fn drained(&self) {
        self.tracker.wait().await;
        self.gateway.tunnels().wait().await;
    }

    /// Ends the remaining connections and tunnels, even in the middle of an exchange.
    pub fn cut(&self) {
        self.cut.trigger();
        self.gateway.cut_tunnels();
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Serves these listeners on the calling worker, which has this index, until everything has
    /// drained or been cut.
    pub async fn serve(self: &Arc<Self>, index: usize, listeners: Vec<(Door, TcpListener)>) {
        let worker = Arc::new(self.gateway.worker(index));
        for (door, listener) in listeners {
            // Tracked like a connection: the drain is not over while a connection is being
            // accepted.
            self.tracker.spawn(Arc::clone(self).accept(Arc::clone(&worker), door, listener));
        }
        tokio::select! {
            () = self.drained() => {}
            () = self.cut.triggered() => {}
            () = self.tidy(&worker) => {}
        }
    }

    async fn accept(self: Arc<Self>, worker: Arc<Worker>, door: Door, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop_accepting.triggered() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(&worker, Accepted::new(door, stream, peer.ip())),
                Err(error) => self.pause_after(&error).await,
            }
        }
        self.admit_waiting(&worker, door, listener);
    }

    /// Pauses after an error, unless the client caused it. Neither a lack of file descriptors nor a
    /// client that left before it was accepted ends the listener.
    async fn pause_after(&self, error: &io::Error) {
        if is_client_error(error) {
            return;
        }
        let now = self.gateway.telemetry().clock.unix_seconds();
        if let Some(folded) = self.cannot_accept.admit(now) {
            tracing::warn!(cause = %error, folded, "cannot accept connections; raise the limit of open files (ulimit -n) if it is reached");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    /// Closes a listener. That would reset connections which the system has already accepted, so
    /// they are taken first, without a pause in which more could arrive.
    fn admit_waiting(self: &Arc<Self>, worker: &Arc<Worker>, door: Door, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        for _ in 0..BACKLOG {
            match listener.accept() {
                Ok((stream, peer)) => {
                    let stream = stream.set_nonblocking(true).map(|()| stream);
                    if let Ok(stream) = stream.and_then(TcpStream::from_std) {
                        self.admit(worker, Accepted::new(door, stream, peer.ip()));
                    }
                }
                Err(error) if is_client_error(&error) => {}
                Err(_) => return,
            }
        }
    }

    fn admit(self: &Arc<Self>, worker: &Arc<Worker>, accepted: Accepted) {
        let Accepted { door, ref stream, peer, .. } = accepted;
        let snapshot = self.gateway.current();
        let open = self.connections.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            server: Arc::clone(self),
            _gauge: self.gateway.telemetry().metrics.connection(),
        };
        let client_slot = self.client_slot(&snapshot, door, peer);
        // A tunnel has left the future of its connection, but still counts as a connection.
        let room = snapshot.limits.max_connections.min(self.most_connections);
        if client_slot.is_err()
            || descriptors::is_among_the_last(stream)
            || open + self.gateway.tunnels().len() >= room
        {
            self.refuse(&accepted, &snapshot);
            return;
        }
        let (gateway, worker, client_slot) =
            (Arc::clone(&self.gateway), Arc::clone(worker), client_slot.ok().flatten());
        let is_relayed =
            snapshot.proxy_protocol && door != Door::Verify && snapshot.trusts(door, peer);
        self.tracker.spawn(async move {
            let draining = Arc::clone(&slot.server.stop_accepting);
            let serving = async {
                // Boxed, so that other connections keep no space for it.
                let (accepted, client_slot) = if is_relayed {
                    match Box::pin(slot.server.relayed(accepted, &snapshot)).await {
                        Some(relayed) => relayed,
                        None => return,
                    }
                } else {
                    (accepted, client_slot)
                };
                connection::serve(gateway, worker, accepted, client_slot, &snapshot, draining)
                    .await;
            };
            tokio::select! {
                biased;
                () = serving => {}
                () = slot.server.cut.triggered() => {}
            }
        });
    }

    /// Counts a connection of this client. `Ok(None)`: it is not counted.
    ///
    /// # Errors
    /// The client already has `max_connections_per_client`.
    fn client_slot(
        &self,
        snapshot: &Snapshot,
        door: Door,
        client: IpAddr,
    ) -> Result<Option<ClientSlot>, TooMany> {
        let most = snapshot.limits.max_connections_per_client;
        // A trusted proxy connects on behalf of many clients.
        if most == 0 || snapshot.trusts(door, client) {
            return Ok(None);
        }
        self.clients.admit(client, most).map(Some).ok_or(TooMany)
    }

    /// Closes a connection for which there is no room.
    fn refuse(&self, accepted: &Accepted, snapshot: &Snapshot) {
        self.gateway.telemetry().metrics.connection_refused();
        if accepted.door != Door::Public || snapshot.tls.is_none() {
            refuse(&accepted.stream);
        }
    }

    /// Reads from whom a proxy relays a connection, and counts it for that client. `None`: the
    /// connection ends here.
    async fn relayed(
        &self,
        mut accepted: Accepted,
        snapshot: &Snapshot,
    ) -> Option<(Accepted, Option<ClientSlot>)> {
        let late = async {
            self.stop_accepting.triggered().await;
            tokio::time::sleep(LATE_HEADER).await;
        };
        let reading = proxy_protocol::read(&mut accepted.stream);
        let header = tokio::select! {
            biased;
            read = timeout(snapshot.limits.header_timeout, reading) => {
                read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            () = late => return None,
        };
        match header {
            Ok(header) => {
                accepted.is_unnamed = header.client.is_none();
                accepted.peer = header.client.unwrap_or(accepted.peer);
            }
            Err(error) => {
                self.note_no_proxy_header(accepted.peer, &error);
                return None;
            }
        }
        let slot = self.client_slot(snapshot, accepted.door, accepted.peer);
        if slot.is_err() {
            self.refuse(&accepted, snapshot);
        }
        Some((accepted, slot.ok()?))
    }

    /// Logs that a proxy does not say for whom it relays.
    fn note_no_proxy_header(&self, peer: IpAddr, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::TimedOut) {
            // A load balancer only tried whether the port is open.
            tracing::debug!(%peer, cause = %error, "the connection ended early");
            return;
        }
        let telemetry = self.gateway.telemetry();
        telemetry.metrics.malformed("proxy_header");
        if let Some(folded) = self.no_proxy_header.admit(telemetry.clock.unix_seconds()) {
            tracing::warn!(%peer, cause = %error, folded, "a trusted proxy sent no valid PROXY header; let it send one, or set proxy_protocol = false");
        }
    }

    /// Every second, releases what this worker no longer needs.
    async fn tidy(&self, worker: &Worker) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            self.gateway.tidy(worker);
        }
    }
}

/// A connection that was accepted.
struct Accepted {
    door: Door,
    stream: TcpStream,
    /// The other end, or the client that a proxy relays.
    peer: IpAddr,
    /// Whether a proxy relays it without naming the client.
    is_unnamed: bool,
}

impl Accepted {
    fn new(door: Door, stream: TcpStream, peer: IpAddr) -> Self {
        Self { door, stream, peer: peer.to_canonical(), is_unnamed: false }
    }
}

/// A client has as many connections as it may have.
struct TooMany;

/// One of the `max_connections`.
struct Slot {
    server: Arc<Server>,
    _gauge: crate::telemetry::metrics::Open,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether accepting failed because the client had gone.
fn is_client_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// A whole response, after which the connection is closed. `more`: other fields, each with its end.
fn last_response(status: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n{more}connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Sends a 503 without reading the request: there is no room for this client.
fn refuse(stream: &TcpStream) {
    let body = problem_body(Reason::Overloaded, ids::request_id().as_str());
    // The buffer of a new socket is empty: the response fits, or the client is not worth more
    // effort.
    let _ =
        stream.try_write(&last_response("503 Service Unavailable", "retry-after: 1\r\n", &body));
}
