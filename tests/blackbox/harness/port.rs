//! A port that no other test gets, whether or not a server listens there.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A reserved loopback port: a socket that is bound but never listens. Connections are refused, and
/// a server that binds this port with `SO_REUSEADDR` can listen on it.
pub struct Port {
    socket: TcpSocket,
}

impl Port {
    pub fn reserve() -> Self {
        Self::reserve_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Shares another reservation.
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
