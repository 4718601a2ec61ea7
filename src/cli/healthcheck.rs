//! `portcullis healthcheck`

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::Failure;
use super::admin::addresses;

/// The maximum time of a probe.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn healthcheck(path: &Path) -> Result<(), Failure> {
    let mut failed = None;
    for address in addresses(path)? {
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
    let (address, error) = failed.ok_or_else(|| {
        Failure::Other("admin.listen names no address; run `portcullis check`".into())
    })?;
    Err(Failure::Other(format!("{address}/readyz does not respond: {error}")))
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
