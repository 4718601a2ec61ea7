//! Networks, and addresses to listen on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::words::quoted;
use crate::config::file::Text;
use crate::config::problem::Problem;

/// Parses a CIDR block. A single address is a block of one.
pub fn network(text: &Text) -> Result<IpNet, Problem> {
    let written = text.get_ref().trim();
    if let Ok(address) = written.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let problem = Problem::error(text.span(), format!("{} is not a network", quoted(written)));
    let Ok(network) = written.parse::<IpNet>() else {
        return Err(match written.split_once('/') {
            Some((address, _)) if address.parse::<Ipv4Addr>().is_ok() => {
                problem.help("an IPv4 prefix is a number from 0 to 32, as in `\"10.0.0.0/8\"`")
            }
            Some((address, _)) if address.parse::<Ipv6Addr>().is_ok() => {
                problem.help("an IPv6 prefix is a number from 0 to 128, as in `\"fd00::/8\"`")
            }
            _ => problem.help("write an address or a block: `\"192.0.2.7\"`, `\"10.0.0.0/8\"`, `\"fd00::/8\"`; host names are not resolved"),
        });
    };
    if network.trunc() != network {
        return Err(Problem::error(
            text.span(),
            format!("{} has address bits after its prefix", quoted(written)),
        )
        .help(format!(
            "write `\"{}\"` for the block, or `\"{}\"` for the address",
            network.trunc(),
            network.addr()
        )));
    }
    Ok(network)
}

/// Parses an address to listen on. `":8080"` means every address, including IPv4: it is read as
/// `[::]:8080`.
pub fn listen(text: &Text) -> Result<Vec<SocketAddr>, Problem> {
    let written = text.get_ref().trim();
    if let Ok(address) = written.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let problem =
        Problem::error(text.span(), format!("{} is not an address to listen on", quoted(written)));
    if let Some((_, rest)) = written.split_once("://") {
        let rest = rest.trim_end_matches('/');
        return Err(problem.help(format!("remove the scheme: {}", quoted(rest))));
    }
    if let Ok(address) = written.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Err(problem.help(format!("add a port: `\"{}\"`", SocketAddr::new(address, 8080))));
    }
    if written.parse::<u16>().is_ok() {
        return Err(problem.help(format!("write `\":{written}\"` for every address, or `\"127.0.0.1:{written}\"` for this machine only")));
    }
    let Some((host, port)) = written.rsplit_once(':') else {
        return Err(problem.help(
            "write an address and a port: `\"127.0.0.1:8080\"`, or `\":8080\"` for every address",
        ));
    };
    let all_digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let Some(port) = port.parse::<u16>().ok().filter(|_| all_digits) else {
        return Err(problem.help("a port is a number from 0 to 65535; 0 lets the system choose"));
    };
    if let Ok(address) = host.parse::<Ipv6Addr>() {
        return Err(
            problem.help(format!("write an IPv6 address in brackets: `\"[{address}]:{port}\"`"))
        );
    }
    match host {
        "" => Ok(vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]),
        "localhost" => Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]),
        "*" => Err(problem.help(format!("write `\":{port}\"` for every address"))),
        _ => Err(problem.help(format!("host names are not resolved: write an address of this machine, or `\":{port}\"` for every address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{message_of, text};
    use super::*;

    #[test]
    fn networks() {
        for (written, wanted) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::1", "::1/128"),
            ("fd00::/8", "fd00::/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(
                network(&text(written)).ok().map(|network| network.to_string()).as_deref(),
                Some(wanted),
                "{written}"
            );
        }
        for (written, wanted) in [
            (
                "10.1.2.3/8",
                "has address bits after its prefix; write `\"10.0.0.0/8\"` for the block, or `\"10.1.2.3\"` for the address",
            ),
            (
                "10.0.0.0/33",
                "is not a network; an IPv4 prefix is a number from 0 to 32, as in `\"10.0.0.0/8\"`",
            ),
            (
                "::/129",
                "is not a network; an IPv6 prefix is a number from 0 to 128, as in `\"fd00::/8\"`",
            ),
            (
                "proxy.local",
                "is not a network; write an address or a block: `\"192.0.2.7\"`, `\"10.0.0.0/8\"`, `\"fd00::/8\"`; host names are not resolved",
            ),
        ] {
            assert_eq!(
                message_of(network(&text(written))),
                format!("`\"{written}\"` {wanted}"),
                "{written}"
            );
        }
    }

    #[test]
    fn addresses_to_listen_on() {
        for (written, wanted) in [
            (":8080", "[::]:8080"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:0", "[::1]:0"),
            ("localhost:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(
                listen(&text(written)).ok(),
                Some(vec![wanted.parse().expect("an address")]),
                "{written}"
            );
        }
        for (written, help) in [
            (
                "8080",
                "write `\":8080\"` for every address, or `\"127.0.0.1:8080\"` for this machine only",
            ),
            ("127.0.0.1", "add a port: `\"127.0.0.1:8080\"`"),
            ("::1", "add a port: `\"[::1]:8080\"`"),
            ("*:80", "write `\":80\"` for every address"),
            ("http://127.0.0.1:80/", "remove the scheme: `\"127.0.0.1:80\"`"),
            ("127.0.0.1:99999", "a port is a number from 0 to 65535; 0 lets the system choose"),
            ("127.0.0.1:+80", "a port is a number from 0 to 65535; 0 lets the system choose"),
            (
                "app.example.com:80",
                "host names are not resolved: write an address of this machine, or `\":80\"` for every address",
            ),
            (
                "",
                "write an address and a port: `\"127.0.0.1:8080\"`, or `\":8080\"` for every address",
            ),
        ] {
            assert_eq!(
                message_of(listen(&text(written))),
                format!("`\"{written}\"` is not an address to listen on; {help}"),
                "{written}"
            );
        }
    }
}
