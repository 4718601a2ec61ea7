//! A port that no other test is given, whether or not anybody listens there.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A loopback port of the test's own: a socket that is bound and never listens. Who connects is
/// refused, and who asks for this very port, as servers do, with `SO_REUSEADDR`, may listen on it.
pub struct Port {
    socket: TcpSocket,
}

impl Port {
    pub fn reserve() -> Self {
        Self::reserve_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// That of another reservation.
    pub fn reserve_at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        Self { socket }
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub fn number(&self) -> u16 {
        self.address().port()
    }
}
