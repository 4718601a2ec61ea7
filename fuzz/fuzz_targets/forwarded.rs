//! A client cannot choose its own address: what it sends is to the left of what a trusted proxy
//! appends, and has no effect.
//!
//! Input: one byte of choices, then the client's value, a line feed, and the proxies' value.

#![no_main]

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use portcullis::gateway::client::{ClientAddress, ForwardingHeader, Peer, Through, TrustedProxies};

/// The trusted proxies.
const TRUSTED: [&str; 3] = ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

fuzz_target!(|data: &[u8]| {
    let Some((choices, text)) = data.split_first() else { return };
    let is_forwarded = choices & 1 != 0;
    let kind = if is_forwarded { ForwardingHeader::Forwarded } else { ForwardingHeader::XForwardedFor };
    let name = if is_forwarded { header::FORWARDED } else { X_FORWARDED_FOR };
    let networks = TRUSTED.map(|network| network.parse().expect("a network")).to_vec();
    let proxies = TrustedProxies::new(networks, kind);
    let peer: IpAddr = if choices & 2 != 0 { [10, 0, 0, 9].into() } else { [203, 0, 113, 9].into() };
    let peer = Peer::new(peer, choices & 4 != 0);
    let (client, proxy) = match text.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (&b""[..], text),
    };
    let Ok(of_proxy) = HeaderValue::from_bytes(proxy) else { return };

    let derive = |lines: &[&HeaderValue]| -> ClientAddress {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name.clone(), (*line).clone());
            headers.append(X_FORWARDED_PROTO, (*line).clone());
        }
        // The header that is not configured is ignored.
        let other = if is_forwarded { X_FORWARDED_FOR } else { header::FORWARDED };
        headers.append(other, HeaderValue::from_static("for=198.51.100.66, 198.51.100.66"));
        proxies.client(&peer, &headers)
    };
    let found = derive(&[&of_proxy]);
    assert_eq!(found.ip(), found.ip().to_canonical());
    assert!(found.peer_is_trusted() == (choices & 2 != 0));
    if !found.peer_is_trusted() {
        assert_eq!((found.ip(), found.through()), (peer.address, Through::Peer));
    }
    if found.through() == Through::ProxyAlone {
        assert_eq!(found.ip(), peer.address);
    }

    // The search has ended at a client, so nothing further left is read. An open quote would extend
    // over the comma and make the line unreadable.
    let is_trusted = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 10 || ip.octets() == [192, 0, 2, 7],
        IpAddr::V6(ip) => ip.octets()[0] == 0xfd,
    };
    if found.through() == Through::Header && !is_trusted(found.ip()) {
        if let Ok(line) = HeaderValue::from_bytes(client) {
            assert_eq!(derive(&[&line, &of_proxy]).ip(), found.ip(), "an earlier line has no effect");
        }
        if !client.contains(&b'"') {
            let joined = [client, b", ", proxy].concat();
            if let Ok(line) = HeaderValue::from_bytes(&joined) {
                assert_eq!(derive(&[&line]).ip(), found.ip(), "earlier items have no effect");
            }
        }
    }
});
