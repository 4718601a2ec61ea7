//! Claims on listen addresses: which gateway owns an address, and whether it is draining.
//!
//! A claim is a socket in Linux's abstract namespace. Its name belongs to the network namespace, as
//! a port does, and disappears with the process, however that ends. On other systems, a successor
//! cannot share an address.

use std::io;
use std::net::SocketAddr;

/// This gateway's claim on an address. It lasts until this is dropped.
#[derive(Debug)]
pub struct Claim {
    #[cfg(target_os = "linux")]
    address: SocketAddr,
    /// `None`: the name is not available, so the address cannot be handed over.
    #[cfg(target_os = "linux")]
    name: Option<std::os::unix::net::UnixListener>,
}

#[cfg(target_os = "linux")]
impl Claim {
    /// Claims an address.
    ///
    /// # Errors
    /// `AddrInUse` if another gateway has the address and is not draining.
    pub(super) fn new(address: SocketAddr) -> io::Result<Self> {
        match bound(address, RUNNING) {
            Ok(name) => Ok(Self { address, name: Some(name) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_ours(address, RUNNING) => {
                Err(error)
            }
            Err(error) => {
                tracing::debug!(%address, cause = %error, "the address cannot be handed over");
                Ok(Self { address, name: None })
            }
        }
    }

    /// Lets a successor listen on the same address while this gateway drains.
    pub fn leave(&mut self) {
        if self.name.is_some() {
            // This fails if an earlier gateway is still draining there: its name says the same.
            self.name = bound(self.address, LEAVING).ok();
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Claim {
    /// Claims an address.
    pub(super) fn new(_address: SocketAddr) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Lets a successor listen on the same address while this gateway drains.
    pub fn leave(&mut self) {}
}

/// Whether a gateway of this user listens there and is draining.
#[cfg(target_os = "linux")]
pub(super) fn is_draining(address: SocketAddr) -> bool {
    is_ours(address, LEAVING)
}

/// Whether a gateway of this user listens there and is draining.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_draining(_address: SocketAddr) -> bool {
    false
}

#[cfg(target_os = "linux")]
const RUNNING: &str = "running";

#[cfg(target_os = "linux")]
const LEAVING: &str = "leaving";

#[cfg(target_os = "linux")]
fn name(address: SocketAddr, state: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    std::os::unix::net::SocketAddr::from_abstract_name(format!("portcullis/{state}/{address}"))
}

#[cfg(target_os = "linux")]
fn bound(address: SocketAddr, state: &str) -> io::Result<std::os::unix::net::UnixListener> {
    std::os::unix::net::UnixListener::bind_addr(&name(address, state)?)
}

/// Whether a process of the same user holds this name: any user can bind any name.
#[cfg(target_os = "linux")]
fn is_ours(address: SocketAddr, state: &str) -> bool {
    let uid = |stream: std::os::unix::net::UnixStream| {
        stream.set_nonblocking(true)?;
        Ok::<_, io::Error>(tokio::net::UnixStream::from_std(stream)?.peer_cred()?.uid())
    };
    let owner = name(address, state)
        .and_then(|name| std::os::unix::net::UnixStream::connect_addr(&name))
        .and_then(uid);
    let own = tokio::net::UnixStream::pair().and_then(|(one, _)| Ok(one.peer_cred()?.uid()));
    matches!((owner, own), (Ok(owner), Ok(own)) if owner == own)
}
