//! The client of a request: the socket's peer, or the address that a trusted proxy reports.
//!
//! Anyone can write a forwarding header. It counts only from peers in `trusted_proxies`, only in
//! the one header named by `forwarded`, and only up to the first address from the right that is not
//! a trusted proxy: everything to the left of that was written by the client.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;

use super::certificate::ClientCertificate;
use super::scheme::Scheme;
use super::texts;

/// The listener that accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The public one: requests are forwarded, or answered here.
    Public,
    /// `[verify]`: other proxies ask about requests that they forward themselves.
    Verify,
    /// `redirect_http`: every request is redirected to the same target on https.
    Redirect,
}

/// The other end of the socket.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address, IPv4-mapped IPv6 folded to IPv4.
    pub address: IpAddr,
    /// `address` as the value of a field: each request of the connection needs it.
    text: HeaderValue,
    /// Whether the connection is TLS.
    pub tls: bool,
    /// Whether the bytes of the connection may come from someone else: a proxy relays it without
    /// saying for whom. Forwarding headers are then not trusted.
    pub is_unnamed: bool,
    /// The certificate that it has shown and that was verified.
    pub certificate: Option<Arc<ClientCertificate>>,
}

impl Peer {
    /// The peer of an accepted connection.
    pub fn new(address: IpAddr, tls: bool) -> Self {
        let address = address.to_canonical();
        let text = texts::address(address);
        Self { address, text, tls, is_unnamed: false, certificate: None }
    }
}

/// The derived client: an address, a scheme, and whether the peer's other headers can be trusted.
#[derive(Clone, Debug)]
pub struct ClientAddress {
    ip: IpAddr,
    text: HeaderValue,
    scheme: Scheme,
    through: Through,
}

/// How the address was derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The peer is not a trusted proxy: it is the client.
    Peer,
    /// A trusted proxy named it in the forwarding header.
    Header,
    /// The peer is a trusted proxy that reported no address, or an invalid one.
    ProxyAlone,
    /// A proxy that asks the `[verify]` listener named it.
    Asker,
}

impl ClientAddress {
    /// The client that a proxy names when it asks the `[verify]` listener.
    pub(super) fn named(ip: IpAddr, scheme: Scheme) -> Self {
        Self { ip, text: texts::short_lived_address(ip), scheme, through: Through::Asker }
    }

    /// The address, never IPv4-mapped.
    pub const fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The address as the value of a field.
    pub const fn text(&self) -> &HeaderValue {
        &self.text
    }

    /// The scheme that the client used.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// How it was derived.
    pub const fn through(&self) -> Through {
        self.through
    }

    /// Whether the peer is a trusted proxy, so that its request id and trace context are kept. A
    /// proxy that only asks passes the client's own along.
    pub const fn peer_is_trusted(&self) -> bool {
        !matches!(self.through, Through::Peer | Through::Asker)
    }
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "the peer address, since the peer is not in trusted_proxies",
            Self::Header => {
                "the rightmost address in the forwarding header that is not a trusted proxy"
            }
            Self::ProxyAlone => "the peer address, since the trusted proxy named no client",
            Self::Asker => "the address that the asking proxy named",
        })
    }
}

/// The trusted proxies, and the header that they use.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    header: ForwardingHeader,
}

/// The one forwarding header that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardingHeader {
    /// `X-Forwarded-For`, and the scheme from `X-Forwarded-Proto`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

impl TrustedProxies {
    /// Trusts these networks, with this header.
    pub fn new(networks: Vec<IpNet>, header: ForwardingHeader) -> Self {
        Self { networks, header }
    }

    /// Derives the client of a request.
    pub fn client(&self, peer: &Peer, headers: &HeaderMap) -> ClientAddress {
        let socket_scheme = if peer.tls { Scheme::Https } else { Scheme::Http };
        if peer.is_unnamed || !self.contains(peer.address) {
            return ClientAddress {
                ip: peer.address,
                text: peer.text.clone(),
                scheme: socket_scheme,
                through: Through::Peer,
            };
        }
        let mut found = Found { ip: peer.address, named: false, scheme: None };
        match self.header {
            ForwardingHeader::XForwardedFor => self.walk_x_forwarded_for(headers, &mut found),
            ForwardingHeader::Forwarded => self.walk_forwarded(headers, &mut found),
        }
        let scheme = found.scheme.or_else(|| forwarded_proto(headers)).unwrap_or(socket_scheme);
        let (text, through) = if found.named {
            (texts::short_lived_address(found.ip), Through::Header)
        } else {
            (peer.text.clone(), Through::ProxyAlone)
        };
        ClientAddress { ip: found.ip, text, scheme, through }
    }

    /// Whether this address is a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.contains(address.to_canonical())
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Takes the next address to the left; false ends the walk.
    fn step(&self, address: Option<IpAddr>, found: &mut Found) -> bool {
        // An invalid address names nothing: the last proxy named is the best known address.
        let Some(address) = address else { return false };
        found.ip = address;
        found.named = true;
        self.contains(address)
    }

    fn walk_x_forwarded_for(&self, headers: &HeaderMap, found: &mut Found) {
        let lines: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().collect();
        for line in lines.into_iter().rev() {
            for item in line.as_bytes().rsplit(|&byte| byte == b',') {
                if !self.step(address(item.trim_ascii()), found) {
                    return;
                }
            }
        }
    }

    fn walk_forwarded(&self, headers: &HeaderMap, found: &mut Found) {
        let lines: Vec<_> = headers.get_all(header::FORWARDED).iter().collect();
        for line in lines.into_iter().rev() {
            let Some(elements) = split_quoted(line.as_bytes(), b',') else { return };
            for element in elements.into_iter().rev() {
                let Some(pairs) = split_quoted(element, b';') else { return };
                let node = parameter(&pairs, b"for").and_then(|node| address(&node));
                found.scheme = parameter(&pairs, b"proto")
                    .and_then(|proto| Scheme::parse(&proto))
                    .or(found.scheme);
                if !self.step(node, found) {
                    return;
                }
            }
        }
    }
}

/// The state of the walk.
struct Found {
    ip: IpAddr,
    named: bool,
    scheme: Option<Scheme>,
}

/// The scheme that the nearest proxy reported: the last item of the last field line.
fn forwarded_proto(headers: &HeaderMap) -> Option<Scheme> {
    let line = headers.get_all(X_FORWARDED_PROTO).iter().next_back()?;
    line.as_bytes().rsplit(|&byte| byte == b',').next().and_then(Scheme::parse)
}

/// An address as proxies write it: bare, with a port, in brackets, IPv4-mapped.
pub(super) fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let ip = if let Ok(ip) = text.parse::<IpAddr>() {
        ip
    } else if let Ok(with_port) = text.parse::<SocketAddr>() {
        with_port.ip()
    } else {
        text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?.into()
    };
    Some(ip.to_canonical())
}

/// Splits at `separator` outside quoted strings; `None` when a quote is left open.
fn split_quoted(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(text[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim_ascii());
    (!quoted).then_some(parts)
}

/// The value of a `name=value` pair, unquoted (RFC 7239 §4).
fn parameter(pairs: &[&[u8]], name: &[u8]) -> Option<Vec<u8>> {
    pairs.iter().find_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        if !pair[..at].trim_ascii().eq_ignore_ascii_case(name) {
            return None;
        }
        let value = pair[at + 1..].trim_ascii();
        let Some(quoted) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""))
        else {
            return Some(value.to_vec());
        };
        let mut out = Vec::with_capacity(quoted.len());
        let mut bytes = quoted.iter();
        while let Some(&byte) = bytes.next() {
            out.push(if byte == b'\\' { *bytes.next()? } else { byte });
        }
        Some(out)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(header: ForwardingHeader) -> TrustedProxies {
        let networks =
            ["10.0.0.0/8", "fd00::/8"].iter().map(|network| network.parse().unwrap()).collect();
        TrustedProxies::new(networks, header)
    }

    fn client(
        header: ForwardingHeader,
        peer: &str,
        lines: &[(&'static str, &str)],
    ) -> (String, Scheme, Through) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let peer = Peer::new(peer.parse().unwrap(), false);
        let client = proxies(header).client(&peer, &headers);
        (client.ip().to_string(), client.scheme(), client.through())
    }

    #[test]
    fn forwarding_headers_of_an_untrusted_peer_are_ignored() {
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-proto"] {
            assert_eq!(
                client(
                    ForwardingHeader::XForwardedFor,
                    "203.0.113.9",
                    &[(name, "for=1.2.3.4, https")]
                ),
                ("203.0.113.9".into(), Scheme::Http, Through::Peer)
            );
        }
        assert_eq!(
            client(ForwardingHeader::XForwardedFor, "::ffff:203.0.113.9", &[]).0,
            "203.0.113.9"
        );
    }

    #[test]
    fn a_proxy_that_names_no_client_cannot_pass_on_what_the_client_wrote() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("6.6.6.6"));
        let mut peer = Peer::new("10.0.0.1".parse().unwrap(), false);
        peer.is_unnamed = true;
        let client = proxies(ForwardingHeader::XForwardedFor).client(&peer, &headers);
        assert_eq!((client.ip(), client.through()), (peer.address, Through::Peer));
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right() {
        for (lines, expected) in [
            (vec!["198.51.100.1"], "198.51.100.1"),
            (vec!["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
            (vec!["6.6.6.6, 198.51.100.1, 10.1.1.1"], "198.51.100.1"),
            (vec!["6.6.6.6", "198.51.100.1", "10.1.1.1"], "198.51.100.1"),
            (vec!["10.2.2.2, 10.1.1.1"], "10.2.2.2"),
            (vec!["198.51.100.1:4711"], "198.51.100.1"),
            (vec!["[2001:db8::1]:4711"], "2001:db8::1"),
            (vec!["[2001:db8::1]"], "2001:db8::1"),
            (vec!["::ffff:198.51.100.1"], "198.51.100.1"),
            (vec!["198.51.100.1, nonsense"], "10.0.0.1"),
            (vec!["198.51.100.1, nonsense, 10.1.1.1"], "10.1.1.1"),
            (vec![""], "10.0.0.1"),
            (vec!["198.51.100.1,"], "10.0.0.1"),
            (vec!["198.51.100.1,\t10.1.1.1 "], "198.51.100.1"),
        ] {
            let lines: Vec<_> = lines.into_iter().map(|line| ("x-forwarded-for", line)).collect();
            assert_eq!(
                client(ForwardingHeader::XForwardedFor, "10.0.0.1", &lines).0,
                expected,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn forwarded_is_read_from_the_right() {
        for (line, expected, scheme) in [
            ("for=198.51.100.1;proto=https", "198.51.100.1", Scheme::Https),
            ("for=6.6.6.6;proto=https, For=\"[2001:db8::1]:4711\"", "2001:db8::1", Scheme::Http),
            (
                "for=6.6.6.6, for=198.51.100.1;proto=https, for=10.1.1.1",
                "198.51.100.1",
                Scheme::Https,
            ),
            ("for=unknown", "10.0.0.1", Scheme::Http),
            ("for=\"_hidden\", for=10.1.1.1", "10.1.1.1", Scheme::Http),
            ("for=\"198.51.100.1", "10.0.0.1", Scheme::Http),
            ("for=\"a,b\";host=\"x;y\", for=198.51.100.1", "198.51.100.1", Scheme::Http),
        ] {
            let (ip, found, _) = client(
                ForwardingHeader::Forwarded,
                "10.0.0.1",
                &[("forwarded", line), ("x-forwarded-for", "6.6.6.6")],
            );
            assert_eq!((ip.as_str(), found), (expected, scheme), "{line}");
        }
    }

    #[test]
    fn the_other_header_is_ignored() {
        assert_eq!(
            client(
                ForwardingHeader::XForwardedFor,
                "10.0.0.1",
                &[("forwarded", "for=198.51.100.1")]
            ),
            ("10.0.0.1".into(), Scheme::Http, Through::ProxyAlone)
        );
    }

    #[test]
    fn the_scheme_comes_from_the_nearest_proxy() {
        let lines = [
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-proto", "http, HTTPS"),
        ];
        assert_eq!(client(ForwardingHeader::XForwardedFor, "fd00::1", &lines).1, Scheme::Https);
        assert_eq!(
            client(ForwardingHeader::XForwardedFor, "fd00::1", &[("x-forwarded-proto", "gopher")])
                .1,
            Scheme::Http
        );
    }
}
