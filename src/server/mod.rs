//! The server: sockets and protocols, without policy.
//!
//! A worker is one thread with a current-thread runtime, its own listeners (SO_REUSEPORT) and its
//! own connections. It accepts connections, terminates TLS, lets hyper parse requests, and calls
//! [`Gateway::handle`].

mod claim;
mod connection;
mod discard;
mod frames;
mod listen;
mod per_client;
mod shutdown;
mod stalls;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

pub use self::claim::Claim;
pub use self::connection::http1_builder;
use self::listen::BACKLOG;
pub use self::listen::{Listeners, bind, bind_one};
use self::per_client::PerClient;
use self::shutdown::Shutdown;
use crate::descriptors;
use crate::gateway::Gateway;
use crate::gateway::client::Door;
use crate::gateway::refusal::problem_body;
use crate::gateway::worker::Worker;
use crate::reason::Reason;
use crate::telemetry::fold::Fold;
use crate::telemetry::ids;

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
                Ok((stream, peer)) => self.admit(&worker, Accepted { door, stream, peer }),
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
                        self.admit(worker, Accepted { door, stream, peer });
                    }
                }
                Err(error) if is_client_error(&error) => {}
                Err(_) => return,
            }
        }
    }

    fn admit(self: &Arc<Self>, worker: &Arc<Worker>, accepted: Accepted) {
        let Accepted { door, ref stream, peer } = accepted;
        let snapshot = self.gateway.current();
        let open = self.connections.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            server: Arc::clone(self),
            _gauge: self.gateway.telemetry().metrics.connection(),
        };
        // A trusted proxy connects on behalf of many clients.
        let most = Some(snapshot.limits.max_connections_per_client)
            .filter(|&most| most > 0 && !snapshot.trusts(door, peer.ip()));
        let client_slot = most.map(|most| self.clients.admit(peer.ip(), most));
        // A tunnel has left the future of its connection, but still counts as a connection.
        let room = snapshot.limits.max_connections.min(self.most_connections);
        if matches!(client_slot, Some(None))
            || descriptors::is_among_the_last(stream)
            || open + self.gateway.tunnels().len() >= room
        {
            self.gateway.telemetry().metrics.connection_refused();
            if door == Door::Verify || snapshot.tls.is_none() {
                refuse(stream);
            }
            return;
        }
        let (gateway, worker, client_slot) =
            (Arc::clone(&self.gateway), Arc::clone(worker), client_slot.flatten());
        self.tracker.spawn(async move {
            let draining = Arc::clone(&slot.server.stop_accepting);
            tokio::select! {
                biased;
                () = connection::serve(gateway, worker, accepted, client_slot, &snapshot, draining) => {}
                () = slot.server.cut.triggered() => {}
            }
        });
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
    peer: SocketAddr,
}

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

/// Sends a 503 without reading the request: there is no room for this client.
fn refuse(stream: &TcpStream) {
    let body = problem_body(Reason::Overloaded, ids::request_id().as_str());
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&body);
    // The buffer of a new socket is empty: the response fits, or the client is not worth more
    // effort.
    let _ = stream.try_write(&answer);
}
