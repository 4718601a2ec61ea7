//! Counts the connections of each client, if `max_connections_per_client` is set.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number of connections of each counted client.
#[derive(Debug, Default)]
pub(super) struct PerClient(Mutex<HashMap<IpAddr, usize>>);

/// A counted connection. It counts until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    clients: Arc<PerClient>,
    client: IpAddr,
}

impl PerClient {
    /// Counts one more connection of this client, if it has fewer than `most`.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Place> {
        let client = network(address);
        let mut counts = self.counts();
        let count = counts.entry(client).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Place { clients: Arc::clone(self), client })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
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
    match address.to_canonical() {
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
    fn a_client_has_as_many_places_as_it_may_and_gets_them_back() {
        let clients = Arc::<PerClient>::default();
        let enter = |address: &str| clients.enter(address.parse().unwrap(), 2);
        let held = [enter("10.0.0.1"), enter("::ffff:10.0.0.1")];
        assert!(held.iter().all(Option::is_some) && enter("10.0.0.1").is_none());
        let other = [enter("10.0.0.2"), enter("2001:db8::1"), enter("2001:db8::ffff:1")];
        assert!(other.iter().all(Option::is_some) && enter("2001:db8::2").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        drop((held, other));
        assert!(enter("10.0.0.1").is_some());
        assert!(clients.counts().is_empty());
    }
}
