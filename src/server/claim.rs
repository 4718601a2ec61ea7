//! Which gateway an address belongs to, and whether it is being left.
//!
//! The names are sockets in Linux's abstract namespace: they belong to the network namespace, as
//! ports do, and are gone with the process, however it ends. Elsewhere nothing is shared.

use std::io;
use std::net::SocketAddr;

/// An address that belongs to this gateway, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    #[cfg(target_os = "linux")]
    address: SocketAddr,
    /// `None`: the system has no such names.
    #[cfg(target_os = "linux")]
    name: Option<std::os::unix::net::UnixListener>,
}

#[cfg(target_os = "linux")]
impl Claim {
    /// Claims an address.
    ///
    /// # Errors
    /// `AddrInUse`: another gateway has it, and does not drain.
    pub(super) fn lay(address: SocketAddr) -> io::Result<Self> {
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

    /// Lets a successor listen beside this gateway, which drains.
    pub fn leave(&mut self) {
        if self.name.is_some() {
            // Where an earlier gateway still drains there, its name says the same.
            self.name = bound(self.address, LEAVING).ok();
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Claim {
    /// Claims an address.
    pub(super) fn lay(_address: SocketAddr) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Lets a successor listen beside this gateway, which drains.
    pub fn leave(&mut self) {}
}

/// Whether a gateway of this user drains that listens there.
#[cfg(target_os = "linux")]
pub(super) fn is_being_left(address: SocketAddr) -> bool {
    is_ours(address, LEAVING)
}

/// Whether a gateway of this user drains that listens there.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_being_left(_address: SocketAddr) -> bool {
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

/// Whether somebody has this name, and is the same user: anybody may take any name.
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
