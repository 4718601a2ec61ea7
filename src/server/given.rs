//! Listening sockets that the process was started with: systemd's socket activation
//! (sd_listen_fds(3)). They stay open while no gateway runs, so that clients wait and are not
//! refused.

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;

/// The sockets that were passed to this process, until a listener of the file takes them.
#[derive(Debug, Default)]
pub struct Given(Vec<(SocketAddr, TcpListener)>);

impl Given {
    /// Takes what the environment names. Call it once, before other files are opened.
    ///
    /// # Errors
    /// One of them is not a TCP socket that listens.
    pub fn from_environment() -> io::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(passed.len());
        for index in 0..passed.len() {
            if let Some(listener) = passed.take_tcp_listener(index)? {
                listener.set_nonblocking(true)?;
                sockets.push((listener.local_addr()?, listener));
            }
        }
        Ok(Self(sockets))
    }

    /// The socket that listens on this address, for each of this many workers: all of them accept
    /// from its one queue.
    pub(super) fn take(
        &mut self,
        address: SocketAddr,
        workers: usize,
    ) -> io::Result<Option<Vec<TcpListener>>> {
        let Some(at) = self.0.iter().position(|(given, _)| *given == address) else {
            return Ok(None);
        };
        let (_, listener) = self.0.swap_remove(at);
        (0..workers).map(|_| listener.try_clone()).collect::<io::Result<_>>().map(Some)
    }

    /// A socket that no listener of the file has taken.
    pub fn unused(&self) -> Option<SocketAddr> {
        self.0.first().map(|(address, _)| *address)
    }
}
