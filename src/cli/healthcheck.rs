//! `portcullis healthcheck`

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::Failure;
use crate::config::{self, value};

/// The maximum time of a probe.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn healthcheck(path: &Path) -> Result<(), Failure> {
    // Only the address in the file matters: a key that cannot be read here must not cause a
    // failure.
    let loaded = config::load(path)?;
    let address = match &loaded.file.admin.listen {
        None => SocketAddr::from(([127, 0, 0, 1], 9901)),
        Some(text) => value::listen(text)
            .ok()
            .and_then(|addresses| addresses.first().copied())
            .ok_or_else(|| {
                Failure::Other(format!(
                    "admin.listen `{}` is not a valid address; run `portcullis check`",
                    text.get_ref()
                ))
            })?,
    };
    let mut failed = None;
    for address in reachable(address) {
        match probe(address) {
            Ok(200) => return Ok(()),
            Ok(status) => {
                return Err(Failure::Other(format!(
                    "{address}/readyz returned {status}: not ready"
                )));
            }
            Err(error) => failed = Some((address, error)),
        }
    }
    let (address, error) = failed.unwrap_or((address, std::io::ErrorKind::AddrNotAvailable.into()));
    Err(Failure::Other(format!("{address}/readyz does not respond: {error}")))
}

/// The addresses at which the listener can be reached from here: if it listens on every address,
/// loopback, with IPv6 first if available.
fn reachable(address: SocketAddr) -> Vec<SocketAddr> {
    let on = |ip: IpAddr| SocketAddr::new(ip, address.port());
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![on(Ipv4Addr::LOCALHOST.into())],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![on(Ipv6Addr::LOCALHOST.into()), on(Ipv4Addr::LOCALHOST.into())]
        }
        _ => vec![address],
    }
}

fn probe(address: SocketAddr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(
        format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let status = std::str::from_utf8(&head)
        .ok()
        .and_then(|head| head.strip_prefix("HTTP/1.1 ")?.parse().ok());
    status.ok_or_else(|| {
        std::io::Error::other("the response is not HTTP; is this the gateway's admin listener?")
    })
}
