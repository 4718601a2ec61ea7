//! Listening: one socket a worker on each address, and a successor that may listen beside a
//! process that drains.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpSocket;

use super::claim::{Claim, is_being_left};

/// Connections that the system has accepted and the gateway has not yet, for each listener.
pub(super) const BACKLOG: u32 = 4096;

/// The listeners of one address or several.
#[derive(Debug)]
pub struct Listeners {
    /// One list for each worker.
    pub sets: Vec<Vec<std::net::TcpListener>>,
    /// What keeps another gateway from listening beside this one.
    pub claims: Vec<Claim>,
}

/// Binds one listener a worker on each address.
///
/// With SO_REUSEPORT, a second gateway on the same port would be taken for a second worker, and the
/// two would share the clients. So the first bind is made without it, and fails where somebody
/// listens: unless that is a gateway that drains, in whose place this one comes.
///
/// # Errors
/// The address that cannot be bound, and why.
pub fn bind(
    addresses: &[SocketAddr],
    workers: usize,
) -> Result<Listeners, (SocketAddr, io::Error)> {
    let mut sets: Vec<Vec<std::net::TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    let mut claims = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let bound = claimed(address).and_then(|(address, claim)| {
            claims.push(claim);
            sets.iter_mut().try_for_each(|set| {
                set.push(listener(address)?);
                Ok(())
            })
        });
        bound.map_err(|error| (address, error))?;
    }
    Ok(Listeners { sets, claims })
}

/// Binds one listener, as [`bind`] does.
///
/// # Errors
/// Why the address cannot be bound.
pub fn bind_one(address: SocketAddr) -> io::Result<(std::net::TcpListener, Claim)> {
    let (address, claim) = claimed(address)?;
    Ok((listener(address)?, claim))
}

/// The address with its real port, if it is free or is being left.
fn claimed(address: SocketAddr) -> io::Result<(SocketAddr, Claim)> {
    let address = match socket(address, false) {
        Ok(probe) => SocketAddr::new(address.ip(), probe.local_addr()?.port()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_being_left(address) => address,
        Err(error) => return Err(error),
    };
    Ok((address, Claim::lay(address)?))
}

fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    socket(address, true)?.listen(BACKLOG)?.into_std()
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

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_shared_only_with_a_gateway_that_leaves_it() {
        let mut first = bind(&["127.0.0.1:0".parse().unwrap()], 2).unwrap();
        let address = first.sets[0][0].local_addr().unwrap();
        assert_eq!(first.sets[1][0].local_addr().unwrap(), address);
        let in_use = |result: Result<Listeners, (SocketAddr, io::Error)>| {
            result
                .is_err_and(|(at, error)| at == address && error.kind() == io::ErrorKind::AddrInUse)
        };
        assert!(in_use(bind(&[address], 1)));
        first.claims.iter_mut().for_each(Claim::leave);
        let second = bind(&[address], 1).unwrap();
        // Not with the second one as well, which stays.
        assert!(in_use(bind(&[address], 1)));
        drop((first, second));
        bind(&[address], 1).unwrap();
    }

    #[tokio::test]
    async fn an_address_of_another_program_is_not_shared() {
        let other = socket("127.0.0.1:0".parse().unwrap(), true).unwrap().listen(1).unwrap();
        let address = other.local_addr().unwrap();
        assert!(bind(&[address], 1).is_err());
    }
}
