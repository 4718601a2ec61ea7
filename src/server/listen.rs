//! Listening: one socket per worker on each address. A successor may listen on the same address
//! while a gateway drains.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpSocket;

use super::claim::{Claim, is_draining};
use super::given::Given;

/// The maximum number of connections per listener that wait for the gateway to accept them.
pub(super) const BACKLOG: u32 = 4096;

/// The listeners of one or more addresses.
#[derive(Debug)]
pub struct Listeners {
    /// One list per worker.
    pub sets: Vec<Vec<std::net::TcpListener>>,
    /// Keep another gateway from listening on the same addresses.
    pub claims: Vec<Claim>,
}

/// Binds one listener per worker on each address.
///
/// With SO_REUSEPORT, a second gateway on the same port would look like a second worker, and the
/// two would share the clients. So the first bind does not use it, and fails if another process
/// listens there, unless that is a draining gateway, which this one replaces. An address of which a
/// socket was given is not bound: that socket is used.
///
/// # Errors
/// Returns the address that cannot be bound, and why.
pub fn bind(
    addresses: &[SocketAddr],
    workers: usize,
    given: &mut Given,
) -> Result<Listeners, (SocketAddr, io::Error)> {
    let mut sets: Vec<Vec<std::net::TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    let mut claims = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let bound = listeners(address, workers, given).map_err(|error| (address, error))?;
        claims.extend(bound.1);
        sets.iter_mut().zip(bound.0).for_each(|(set, listener)| set.push(listener));
    }
    Ok(Listeners { sets, claims })
}

/// Binds one listener, as [`bind`] does.
pub fn bind_one(
    address: SocketAddr,
    given: &mut Given,
) -> io::Result<(std::net::TcpListener, Option<Claim>)> {
    let (mut listeners, claim) = listeners(address, 1, given)?;
    Ok((listeners.pop().ok_or(io::ErrorKind::NotFound)?, claim))
}

/// A listener on this address for each worker; a claim unless the socket was given.
fn listeners(
    address: SocketAddr,
    workers: usize,
    given: &mut Given,
) -> io::Result<(Vec<std::net::TcpListener>, Option<Claim>)> {
    if let Some(listeners) = given.take(address, workers)? {
        return Ok((listeners, None));
    }
    let (address, claim) = claimed(address)?;
    let listeners = (0..workers).map(|_| listener(address)).collect::<io::Result<_>>()?;
    Ok((listeners, Some(claim)))
}

/// The address with its actual port, if it is free or its gateway is draining.
fn claimed(address: SocketAddr) -> io::Result<(SocketAddr, Claim)> {
    let address = match socket(address, false) {
        Ok(probe) => SocketAddr::new(address.ip(), probe.local_addr()?.port()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_draining(address) => address,
        Err(error) => return Err(error),
    };
    Ok((address, Claim::new(address)?))
}

fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    socket(address, true)?.listen(BACKLOG)?.into_std()
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<TcpSocket> {
    let (socket, address) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, address),
        SocketAddr::V6(v6) => match TcpSocket::new_v6() {
            // On a machine without IPv6, the unspecified address means every IPv4 address.
            Err(error)
                if v6.ip().is_unspecified() && error.raw_os_error() == Some(EAFNOSUPPORT) =>
            {
                (TcpSocket::new_v4()?, SocketAddr::from(([0, 0, 0, 0], v6.port())))
            }
            made => (made?, address),
        },
    };
    // Sockets of a gateway that has just stopped are in TIME_WAIT. They must not block the next
    // one.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket.bind(address)?;
    Ok(socket)
}

/// The error number of "Address family not supported" on Linux.
const EAFNOSUPPORT: i32 = 97;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_shared_only_with_a_draining_gateway() {
        let mut first = bind(&["127.0.0.1:0".parse().unwrap()], 2, &mut Given::default()).unwrap();
        let address = first.sets[0][0].local_addr().unwrap();
        assert_eq!(first.sets[1][0].local_addr().unwrap(), address);
        let in_use = |result: Result<Listeners, (SocketAddr, io::Error)>| {
            result
                .is_err_and(|(at, error)| at == address && error.kind() == io::ErrorKind::AddrInUse)
        };
        assert!(in_use(bind(&[address], 1, &mut Given::default())));
        first.claims.iter_mut().for_each(Claim::leave);
        let second = bind(&[address], 1, &mut Given::default()).unwrap();
        // The second one stays, so it does not share the address.
        assert!(in_use(bind(&[address], 1, &mut Given::default())));
        drop((first, second));
        bind(&[address], 1, &mut Given::default()).unwrap();
    }

    #[tokio::test]
    async fn an_address_of_another_program_is_not_shared() {
        let other = socket("127.0.0.1:0".parse().unwrap(), true).unwrap().listen(1).unwrap();
        let address = other.local_addr().unwrap();
        assert!(bind(&[address], 1, &mut Given::default()).is_err());
    }
}
