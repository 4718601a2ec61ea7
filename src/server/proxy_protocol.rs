//! The header of the PROXY protocol, versions 1 and 2: who has connected to the proxy in front.
//!
//! A proxy that only relays bytes cannot write a forwarding header, so it sends this one before the
//! client's first byte (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A header that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its length in bytes.
    pub length: usize,
    /// The address of the client, IPv4-mapped IPv6 folded to IPv4. `None`: the proxy speaks for
    /// itself (`LOCAL`), or cannot name the client (`UNKNOWN`).
    pub client: Option<IpAddr>,
}

/// Why there is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderFault {
    /// The connection starts with something else.
    #[error("the connection does not start with a PROXY header")]
    Absent,
    /// The header starts correctly and continues with an error.
    #[error("the PROXY header is malformed")]
    Malformed,
}

/// Parses the header at the start of `bytes`. `None`: it is not complete yet.
///
/// # Errors
/// [`ProxyHeaderFault`], as soon as no more bytes can make it a header.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderFault> {
    if starts_as(bytes, V1) {
        return parse_v1(bytes);
    }
    if starts_as(bytes, V2) {
        return parse_v2(bytes);
    }
    Err(ProxyHeaderFault::Absent)
}

/// Reads the header from a connection, and nothing after it. The caller limits the time.
///
/// # Errors
/// An error of the socket, or of the kind `InvalidData` for a [`ProxyHeaderFault`]. `UnexpectedEof`
/// if the peer closed before the end of the header.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<ProxyHeader> {
    let (mut read, mut chunk) = (Vec::new(), [0; CHUNK]);
    loop {
        // What follows the header belongs to TLS or HTTP and stays in the socket.
        let length = stream.peek(&mut chunk).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = read.len();
        read.extend_from_slice(&chunk[..length]);
        let found =
            parse(&read).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
        let taken = found.map_or(length, |header| header.length - before);
        stream.read_exact(&mut chunk[..taken]).await?;
        if let Some(header) = found {
            return Ok(header);
        }
    }
}

/// Whether these bytes start with `signature`, as far as they go.
fn starts_as(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(byte, expected)| byte == expected)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderFault> {
    let malformed = Err(ProxyHeaderFault::Malformed);
    let Some(end) = bytes.iter().take(V1_MAX).position(|&byte| byte == b'\n') else {
        return if bytes.len() < V1_MAX { Ok(None) } else { malformed };
    };
    let Some(line) = bytes[V1.len()..end].strip_suffix(b"\r") else { return malformed };
    let Ok(line) = std::str::from_utf8(line) else { return malformed };
    let mut words = line.split(' ');
    let client = match words.next() {
        // What follows is to be ignored.
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let address = |word: Option<&str>| -> Option<IpAddr> {
                match family {
                    "TCP4" => word?.parse().ok().map(IpAddr::V4),
                    _ => word?.parse().ok().map(IpAddr::V6),
                }
            };
            let (source, destination) = (address(words.next()), address(words.next()));
            let ports = [words.next(), words.next()].map(port);
            if destination.is_none() || ports.contains(&None) || words.next().is_some() {
                return malformed;
            }
            let Some(source) = source else { return malformed };
            Some(source.to_canonical())
        }
        _ => return malformed,
    };
    Ok(Some(ProxyHeader { length: end + 1, client }))
}

/// A port in decimal, without a sign or leading zeros.
fn port(word: Option<&str>) -> Option<u16> {
    let word = word?;
    let is_plain = word == "0" || word.starts_with(|first: char| matches!(first, '1'..='9'));
    if is_plain { word.parse().ok() } else { None }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderFault> {
    // The first byte that cannot be right ends the wait for the others.
    let command = match bytes.get(12) {
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(_) => return Err(ProxyHeaderFault::Malformed),
        None => return Ok(None),
    };
    let Some(&[family, high, low]) = bytes.get(13..16) else { return Ok(None) };
    let announced = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_FIXED + announced;
    let size = match (command, family) {
        // What follows is to be ignored.
        (Command::Local, _) | (_, UNSPECIFIED) => 0,
        (_, TCP4 | UDP4) => 12,
        (_, TCP6 | UDP6) => 36,
        (_, UNIX_STREAM | UNIX_DATAGRAM) => 216,
        _ => return Err(ProxyHeaderFault::Malformed),
    };
    if announced < size {
        return Err(ProxyHeaderFault::Malformed);
    }
    if bytes.len() < length {
        return Ok(None);
    }
    let client = match (size, &bytes[V2_FIXED..]) {
        (12, &[a, b, c, d, ..]) => Some(Ipv4Addr::new(a, b, c, d).into()),
        (36, addresses) => {
            let octets: Option<[u8; 16]> = addresses.first_chunk().copied();
            octets.map(|octets| Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    };
    // Anything between the addresses and the announced end is an extension, and is skipped.
    Ok(Some(ProxyHeader { length, client }))
}

#[derive(Clone, Copy)]
enum Command {
    /// The proxy speaks for itself, as in a health check.
    Local,
    /// It relays a client.
    Proxy,
}

const V1: &[u8] = b"PROXY ";

/// The longest line of version 1, with its end.
const V1_MAX: usize = 107;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The length of version 2 before the addresses.
const V2_FIXED: usize = 16;

const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const UDP4: u8 = 0x12;
const TCP6: u8 = 0x21;
const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

/// The number of bytes to look at once: more than a header without extensions has.
const CHUNK: usize = 512;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use ppp::v2::{Addresses, Builder, IPv4, IPv6, Protocol, Version};
    use proptest::prelude::*;

    use super::*;

    /// The address of the client, or what there is instead.
    fn client(bytes: &[u8]) -> Result<String, ProxyHeaderFault> {
        Ok(match parse(bytes)? {
            Some(ProxyHeader { client: Some(client), .. }) => client.to_string(),
            Some(_) => "unnamed".to_owned(),
            None => "incomplete".to_owned(),
        })
    }

    #[test]
    fn a_line_of_version_1_names_the_client() {
        let ip = |text: &str| Ok(text.to_owned());
        let malformed = || Err(ProxyHeaderFault::Malformed);
        for (line, expected) in [
            ("PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n", ip("203.0.113.7")),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 0 65535\r\nGET", ip("203.0.113.7")),
            ("PROXY TCP6 2001:db8::7 ::1 56324 443\r\n", ip("2001:db8::7")),
            ("PROXY TCP6 ::ffff:203.0.113.7 ::1 56324 443\r\n", ip("203.0.113.7")),
            ("PROXY UNKNOWN\r\n", ip("unnamed")),
            ("PROXY UNKNOWN 203.0.113.7 10.0.0.1 56324 443\r\n", ip("unnamed")),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 56324 443", ip("incomplete")),
            ("PRO", ip("incomplete")),
            ("", ip("incomplete")),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\n", malformed()),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 56324 443 \r\n", malformed()),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 56324\r\n", malformed()),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 056324 443\r\n", malformed()),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 +1 443\r\n", malformed()),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 65536 443\r\n", malformed()),
            ("PROXY TCP4 2001:db8::7 10.0.0.1 56324 443\r\n", malformed()),
            ("PROXY TCP6 203.0.113.7 ::1 56324 443\r\n", malformed()),
            ("PROXY  TCP4 203.0.113.7 10.0.0.1 56324 443\r\n", malformed()),
            ("PROXY UDP4 203.0.113.7 10.0.0.1 56324 443\r\n", malformed()),
            ("PROXY UNKNOWNX\r\n", malformed()),
            ("GET / HTTP/1.1\r\n", Err(ProxyHeaderFault::Absent)),
            ("PROXYTCP4", Err(ProxyHeaderFault::Absent)),
        ] {
            assert_eq!(client(line.as_bytes()), expected, "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(V1_MAX));
        assert_eq!(client(&endless.as_bytes()[..V1_MAX - 1]), ip("incomplete"));
        assert_eq!(client(endless.as_bytes()), malformed());
    }

    #[test]
    fn version_2_names_the_client_of_a_relayed_connection_only() {
        let header = |command: u8, family: u8, rest: &[u8]| {
            let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
            [V2, &[command, family], &length, rest].concat()
        };
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
        let ip = |text: &str| Ok(text.to_owned());
        let named = ip("203.0.113.7");
        assert_eq!(client(&header(0x21, TCP4, &v4)), named);
        assert_eq!(client(&header(0x21, TCP4, &[&v4[..], &[4, 0, 1, 0]].concat())), named);
        assert_eq!(client(&header(0x20, TCP4, &v4)), ip("unnamed"));
        assert_eq!(client(&header(0x20, 0x77, &[])), ip("unnamed"));
        assert_eq!(client(&header(0x21, UNSPECIFIED, &[1, 2, 3])), ip("unnamed"));
        assert_eq!(client(&header(0x21, UNIX_STREAM, &[b'x'; 216])), ip("unnamed"));
        for (command, family, rest) in [
            (0x22, TCP4, &v4[..]),
            (0x11, TCP4, &v4),
            (0x21, TCP4, &v4[1..]),
            (0x21, TCP6, &v4),
            (0x21, UNIX_STREAM, &v4),
            (0x21, 0x13, &v4),
            (0x21, 0x41, &v4),
        ] {
            let header = header(command, family, rest);
            assert_eq!(client(&header), Err(ProxyHeaderFault::Malformed), "{header:?}");
        }
    }

    /// What another implementation writes, and what it reads.
    fn written(version: bool, source: SocketAddr, destination: SocketAddr, tlv: &[u8]) -> Vec<u8> {
        if version {
            return ppp::v1::Addresses::from((source, destination)).to_string().into_bytes();
        }
        let addresses = match (source, destination) {
            (SocketAddr::V4(source), SocketAddr::V4(to)) => {
                Addresses::IPv4(IPv4::new(*source.ip(), *to.ip(), source.port(), to.port()))
            }
            (SocketAddr::V6(source), SocketAddr::V6(to)) => {
                Addresses::IPv6(IPv6::new(*source.ip(), *to.ip(), source.port(), to.port()))
            }
            _ => Addresses::Unspecified,
        };
        let command = Version::Two | ppp::v2::Command::Proxy;
        let builder = Builder::with_addresses(command, Protocol::Stream, addresses);
        builder.write_tlv(ppp::v2::Type::NoOp, tlv).unwrap().build().unwrap()
    }

    proptest! {
        #[test]
        fn headers_of_another_implementation_are_read_in_any_pieces(
            is_v1: bool,
            v4: Option<([u8; 4], [u8; 4])>,
            v6: ([u8; 16], [u8; 16]),
            ports: (u16, u16),
            tlv in prop::collection::vec(any::<u8>(), 0..700),
            rest in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (source, to): (IpAddr, IpAddr) = match v4 {
                Some((source, to)) => (source.into(), to.into()),
                None => (v6.0.into(), v6.1.into()),
            };
            let header = written(is_v1, (source, ports.0).into(), (to, ports.1).into(), &tlv);
            let expected = ProxyHeader { length: header.len(), client: Some(source.to_canonical()) };
            let whole = [&header[..], &rest].concat();
            prop_assert_eq!(parse(&whole), Ok(Some(expected)));
            for cut in 0..header.len() {
                prop_assert_eq!(parse(&header[..cut]), Ok(None), "{}", cut);
            }
        }

        #[test]
        fn damaged_headers_mean_what_another_implementation_reads(
            is_v1: bool,
            source: [u8; 4],
            at: prop::sample::Index,
            byte: u8,
        ) {
            let mut header = written(is_v1, (source, 4711).into(), ([10, 0, 0, 1], 443).into(), &[]);
            let at = at.index(header.len());
            header[at] = byte;
            if let Ok(Some(ours)) = parse(&header) {
                let theirs = match ppp::HeaderResult::parse(&header) {
                    ppp::HeaderResult::V1(found) => match found.map(|found| found.addresses) {
                        Ok(ppp::v1::Addresses::Tcp4(found)) => Some(Some(found.source_address.into())),
                        Ok(ppp::v1::Addresses::Unknown) => Some(None),
                        _ => None,
                    },
                    ppp::HeaderResult::V2(found) => found.ok().map(|found| match found.addresses {
                        Addresses::IPv4(v4) if found.command == ppp::v2::Command::Proxy => {
                            Some(v4.source_address.into())
                        }
                        _ => None,
                    }),
                };
                prop_assert_eq!(Some(ours.client), theirs, "{:?}", header);
            }
        }
    }
}
