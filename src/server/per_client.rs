//! Counts the connections of each client, if `max_connections_per_client` is set.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limit::behind_translator;

/// The number of connections of each counted client.
#[derive(Debug, Default)]
pub(super) struct PerClient(Mutex<HashMap<IpAddr, usize>>);

/// A counted connection. It counts until this is dropped.
#[derive(Debug)]
pub(super) struct ClientSlot {
    clients: Arc<PerClient>,
    client: IpAddr,
}

impl PerClient {
    /// Counts one more connection of this client, if it has fewer than `most`.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<ClientSlot> {
        let client = network(address);
        let mut counts = self.counts();
        let count = counts.entry(client).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(ClientSlot { clients: Arc::clone(self), client })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        let mut counts = self.clients.counts();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// The address that identifies a client: an IPv4 address, or an IPv6 /64 network, as for limits.
fn network(address: IpAddr) -> IpAddr {
    match behind_translator(address) {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_slots_up_to_its_limit_and_can_reuse_them() {
        let clients = Arc::<PerClient>::default();
        let admit = |address: &str| clients.admit(address.parse().unwrap(), 2);
        let held = [admit("10.0.0.1"), admit("::ffff:10.0.0.1")];
        assert!(held.iter().all(Option::is_some) && admit("10.0.0.1").is_none());
        assert!(admit("64:ff9b::10.0.0.1").is_none() && admit("64:ff9b::10.0.0.3").is_some());
        let other = [admit("10.0.0.2"), admit("2001:db8::1"), admit("2001:db8::ffff:1")];
        assert!(other.iter().all(Option::is_some) && admit("2001:db8::2").is_none());
        assert!(admit("2001:db8:0:1::1").is_some());
        drop((held, other));
        assert!(admit("10.0.0.1").is_some());
        assert!(clients.counts().is_empty());
    }
}
