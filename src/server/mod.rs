//! Sockets and protocols; no policy.
//!
//! One worker is one thread with a current-thread runtime, its own listeners (SO_REUSEPORT) and its
//! own connections. It accepts, does TLS, lets hyper parse, and calls [`Gateway::handle`].

mod connection;
mod signal;
mod stalls;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::TaskTracker;

use self::signal::Signal;
use crate::gateway::Gateway;
use crate::gateway::reason::Reason;
use crate::gateway::refusal::problem_body;
use crate::gateway::worker::Worker;
use crate::telemetry::ids;

/// Sockets that wait to be accepted, for each listener.
const BACKLOG: u32 = 4096;

/// How long accepting pauses when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all workers share.
#[derive(Debug)]
pub struct Server {
    gateway: Arc<Gateway>,
    /// Open connections of all workers.
    connections: AtomicUsize,
    /// Given when nothing new is to be accepted.
    stop_accepting: Arc<Signal>,
    /// Given at the drain deadline.
    cut: Signal,
    tracker: TaskTracker,
}

impl Server {
    /// A server for this gateway.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self {
            gateway,
            connections: AtomicUsize::new(0),
            stop_accepting: Arc::default(),
            cut: Signal::default(),
            tracker: TaskTracker::new(),
        }
    }

    /// Stops accepting, and asks every connection to end after its exchanges.
    pub fn stop_accepting(&self) {
        self.stop_accepting.give();
        self.tracker.close();
        self.gateway.tunnels().close();
    }

    /// Returns when every connection and every tunnel has ended.
    pub async fn drained(&self) {
        self.tracker.wait().await;
        self.gateway.tunnels().wait().await;
    }

    /// Ends what is left, in the middle if need be.
    pub fn cut(&self) {
        self.cut.give();
        self.gateway.cut_tunnels();
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Serves these listeners on the calling worker, the one of this index, until everything has
    /// drained or been cut.
    pub async fn serve(self: &Arc<Self>, index: usize, listeners: Vec<TcpListener>) {
        let worker = Arc::new(self.gateway.worker(index));
        let accepting = TaskTracker::new();
        for listener in listeners {
            accepting.spawn(Arc::clone(self).accept(Arc::clone(&worker), listener));
        }
        accepting.close();
        let sweeping = self.tidy(&worker);
        tokio::select! {
            () = accepting.wait() => {}
            () = sweeping => {}
        }
        tokio::select! {
            () = self.drained() => {}
            () = self.cut.given() => {}
        }
    }

    async fn accept(self: Arc<Self>, worker: Arc<Worker>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop_accepting.given() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(&worker, stream, peer),
                Err(error) => pause_after(&error).await,
            }
        }
        // What the kernel has already taken would be reset by closing the socket: serve it.
        while let Ok(Ok((stream, peer))) =
            tokio::time::timeout(Duration::from_millis(1), listener.accept()).await
        {
            self.admit(&worker, stream, peer);
        }
    }

    fn admit(self: &Arc<Self>, worker: &Arc<Worker>, stream: TcpStream, peer: SocketAddr) {
        let snapshot = self.gateway.current();
        let open = self.connections.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            server: Arc::clone(self),
            _gauge: self.gateway.telemetry().metrics.connection(),
        };
        // A tunnel has left its connection's future, and is a connection all the same.
        if open + self.gateway.tunnels().len() >= snapshot.limits.max_connections {
            self.gateway.telemetry().metrics.connection_refused();
            if snapshot.tls.is_none() {
                refuse(&stream);
            }
            return;
        }
        let (gateway, worker) = (Arc::clone(&self.gateway), Arc::clone(worker));
        self.tracker.spawn(async move {
            let draining = Arc::clone(&slot.server.stop_accepting);
            tokio::select! {
                biased;
                () = connection::serve(gateway, worker, stream, peer, &snapshot, draining) => {}
                () = slot.server.cut.given() => {}
            }
        });
    }

    /// Lets go, each second, of what this worker need no longer keep.
    async fn tidy(&self, worker: &Worker) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            self.gateway.tidy(worker);
        }
    }
}

/// One of `max_connections`.
struct Slot {
    server: Arc<Server>,
    _gauge: crate::telemetry::metrics::Open,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Out of file descriptors, or a client that was gone before it was accepted: neither ends the
/// listener.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(cause = %error, "cannot accept connections; raise the limit of open files (ulimit -n) if it is reached");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Says 503 without reading: there is no room for this client.
fn refuse(stream: &TcpStream) {
    let body = problem_body(Reason::Overloaded, ids::request_id().as_str());
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&body);
    // A new socket's buffer is empty: it all fits, or the client is not worth more.
    let _ = stream.try_write(&answer);
}

/// Binds one listener a worker on each address.
///
/// The first bind is made without SO_REUSEPORT: with it, a second gateway on the same port would be
/// taken for a second worker, and the two would share the clients.
///
/// # Errors
/// The address that cannot be bound, and why.
pub fn bind(
    addresses: &[SocketAddr],
    workers: usize,
) -> Result<Vec<Vec<std::net::TcpListener>>, (SocketAddr, io::Error)> {
    let mut sets: Vec<Vec<std::net::TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for &address in addresses {
        let bound = (|| {
            let probe = socket(address, false)?;
            let address = SocketAddr::new(address.ip(), probe.local_addr()?.port());
            drop(probe);
            sets.iter_mut().try_for_each(|set| {
                let listener = socket(address, true)?.listen(BACKLOG)?.into_std()?;
                set.push(listener);
                Ok(())
            })
        })();
        bound.map_err(|error| (address, error))?;
    }
    Ok(sets)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<TcpSocket> {
    let (socket, address) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, address),
        SocketAddr::V6(v6) => match TcpSocket::new_v6() {
            // Every address, on a machine without IPv6, is every IPv4 address.
            Err(error)
                if v6.ip().is_unspecified() && error.raw_os_error() == Some(EAFNOSUPPORT) =>
            {
                (TcpSocket::new_v4()?, SocketAddr::from(([0, 0, 0, 0], v6.port())))
            }
            made => (made?, address),
        },
    };
    // Sockets of a gateway that has just stopped are in TIME_WAIT: they do not keep the next one
    // out.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket.bind(address)?;
    Ok(socket)
}

/// "Address family not supported", as Linux numbers it.
const EAFNOSUPPORT: i32 = 97;
