//! The addresses of the listeners, as the system has chosen them.

use std::net::{SocketAddr, TcpListener};

use crate::gateway::client::Door;

/// The addresses that each worker listens on.
pub(super) struct ListenedAddresses {
    pub(super) public: Vec<SocketAddr>,
    pub(super) verify: Vec<SocketAddr>,
    pub(super) redirect: Vec<SocketAddr>,
}

impl ListenedAddresses {
    pub(super) fn of(sets: &[Vec<(Door, TcpListener)>]) -> Self {
        let of = |wanted: Door| {
            let first = sets.first().into_iter().flatten().filter(|(door, _)| *door == wanted);
            first.filter_map(|(_, listener)| listener.local_addr().ok()).collect()
        };
        Self { public: of(Door::Public), verify: of(Door::Verify), redirect: of(Door::Redirect) }
    }
}
