//! `redirect`: a route that answers with the address where the client should go.
//!
//! The authority of that address is a constant of the file, or the host that the client asked for,
//! and the path follows it with exactly one `/`: a request cannot choose where it leads.

use std::fmt;

use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode, Uri};

use super::target::{Ambiguity, Target};

/// Where a route redirects to.
#[derive(Clone, Debug)]
pub struct Redirect {
    status: StatusCode,
    to: Box<[Part]>,
    /// Whether the query of the request is appended: not if the address has one.
    keeps_query: bool,
}

/// A part of the address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// `{host}`: the host of the request, without its port.
    Host,
    /// `{path}`: the received path.
    Path,
}

/// Why an address is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidAddress {
    /// What is wrong.
    pub problem: &'static str,
    /// What to do.
    pub help: &'static str,
}

impl Redirect {
    /// The statuses that a redirect may have.
    pub const STATUSES: [u16; 4] = [301, 302, 307, 308];

    /// Parses an address with placeholders, for a redirect with one of [`Self::STATUSES`].
    ///
    /// # Errors
    /// [`InvalidAddress`], also if a request could choose the host.
    pub fn parse(to: &str, status: u16) -> Result<Self, InvalidAddress> {
        let invalid = |problem, help| Err(InvalidAddress { problem, help });
        let absolute = to.strip_prefix("https://").or_else(|| to.strip_prefix("http://"));
        let rest = match absolute {
            Some(rest) => rest,
            None if to.starts_with('/') => to,
            None => {
                return invalid(
                    "neither a URL nor a path",
                    "write a URL such as \"https://dav.example.com{path}\", or a path such as \"/remote.php/dav\"",
                );
            }
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let end = rest.find("{path}").map_or(end, |path| path.min(end));
        let (authority, below) = rest.split_at(if absolute.is_some() { end } else { 0 });
        if below.contains("{host}") || authority.matches("{host}").count() > 1 {
            return invalid(
                "`{host}` can only be in the host, once",
                "write it after `https://`, such as \"https://{host}{path}\"",
            );
        }
        // The host of a request can be any that leads here.
        let is_glued = authority.split_once("{host}").is_some_and(|(before, after)| {
            !(before.is_empty() || before.ends_with('.'))
                || !(after.is_empty() || after.starts_with(['.', ':']))
        });
        if is_glued {
            return invalid(
                "`{host}` continues a name, and a request could choose how",
                "put a dot between them, such as \"https://www.{host}{path}\"",
            );
        }
        let (path, query) =
            below.split_once('?').map_or((below, ""), |(path, query)| (path, query));
        if query.contains("{path}") || path.matches("{path}").count() > 1 {
            return invalid(
                "`{path}` can only be in the path, once",
                "write it once, before any `?`",
            );
        }
        if path.contains("/{path}") {
            return invalid(
                "`{path}` begins with a slash of its own",
                "remove the slash in front of `{path}`",
            );
        }
        if absolute.is_none() && (path.starts_with("//") || path == "/" && below != "/") {
            return invalid(
                "a path that begins with `//` leads to another host",
                "write one slash, or a URL that begins with `https://`",
            );
        }
        // What is left must be a URL: no userinfo, no fragment, no other placeholder, and a port
        // that is one.
        let shown = to.replace("{host}", "host.example").replace("{path}", "/path");
        let has_authority = absolute.is_none() || is_authority(&authority.replace("{host}", "h"));
        let is_plain =
            shown.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}\\\"<>^`|#".contains(&byte));
        if !has_authority || !is_plain || shown.parse::<Uri>().is_err() {
            return invalid(
                "not a valid address",
                "write scheme, host, port, path and query, in ASCII; the placeholders are `{path}` and `{host}`",
            );
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::PERMANENT_REDIRECT);
        Ok(Self { status, to: parts(to), keeps_query: !below.contains('?') })
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The address for a request to this target, of which `sent` would be sent to an application.
    ///
    /// # Errors
    /// [`Ambiguity::HostMissing`], if the address contains the host and the request has none.
    pub fn address(&self, target: &Target, sent: &PathAndQuery) -> Result<HeaderValue, Ambiguity> {
        let mut address = String::new();
        for part in &self.to {
            match part {
                Part::Text(text) => address.push_str(text),
                Part::Host if target.host().is_empty() => return Err(Ambiguity::HostMissing),
                Part::Host => address.push_str(target.host()),
                Part::Path => {
                    address.push('/');
                    address.push_str(sent.path().trim_start_matches('/'));
                }
            }
        }
        if let (true, Some(query)) = (self.keeps_query, sent.query()) {
            address.push('?');
            address.push_str(query);
        }
        HeaderValue::try_from(address).map_err(|_| Ambiguity::PathByte)
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Host => f.write_str("{host}"),
            Part::Path => f.write_str("{path}"),
        })
    }
}

/// Whether a text is a host with an optional port, and nothing else.
fn is_authority(text: &str) -> bool {
    let is_plain = !text.contains(['@', '%']);
    is_plain
        && text.parse::<http::uri::Authority>().is_ok_and(|authority| {
            let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
            !authority.host().is_empty() && (port.is_empty() || authority.port_u16().is_some())
        })
}

/// Splits an address at its placeholders.
fn parts(to: &str) -> Box<[Part]> {
    let mut parts = Vec::new();
    let mut rest = to;
    while let Some(at) = rest.find('{') {
        let (text, from) = rest.split_at(at);
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        let (part, length) = match from.strip_prefix("{host}") {
            Some(_) => (Part::Host, "{host}".len()),
            None => (Part::Path, "{path}".len()),
        };
        parts.push(part);
        rest = from.get(length..).unwrap_or_default();
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.into()));
    }
    parts.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Version, header};

    use super::*;

    fn address(to: &str, host: &str, received: &str) -> Result<String, String> {
        let redirect = Redirect::parse(to, 308).map_err(|invalid| invalid.problem.to_owned())?;
        assert_eq!(redirect.to_string(), to);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        let uri = received.parse().unwrap();
        let target = Target::parse(&Method::GET, &uri, Version::HTTP_11, &headers).unwrap();
        let address = redirect.address(&target, target.sent()).unwrap();
        Ok(address.to_str().unwrap().to_owned())
    }

    #[test]
    fn addresses_are_filled_in() {
        for (to, host, received, wanted) in [
            (
                "https://dav.example.com{path}",
                "a.test",
                "/a%20b/c?x=%2F",
                "https://dav.example.com/a%20b/c?x=%2F",
            ),
            (
                "https://dav.example.com:8443/x{path}",
                "a.test",
                "/a",
                "https://dav.example.com:8443/x/a",
            ),
            ("https://{host}{path}", "A.Test:8080", "/a?", "https://a.test/a?"),
            ("https://www.{host}:444{path}/x", "a.test", "/a", "https://www.a.test:444/a/x"),
            ("http://[::1]:80{path}", "a.test", "/", "http://[::1]:80/"),
            ("https://{host}/", "[::1]:80", "/a", "https://[::1]/"),
            ("/remote.php/dav", "a.test", "/.well-known/caldav", "/remote.php/dav"),
            ("/", "a.test", "/a?b", "/?b"),
            ("/new{path}", "a.test", "/a?b", "/new/a?b"),
            ("/login?from=old", "a.test", "/a?b", "/login?from=old"),
            ("https://dav.example.com", "a.test", "/a", "https://dav.example.com"),
            // Merged slashes never become another host.
            (
                "https://dav.example.com{path}",
                "a.test",
                "//evil.example/a",
                "https://dav.example.com/evil.example/a",
            ),
        ] {
            assert_eq!(address(to, host, received).as_deref(), Ok(wanted), "{to}");
        }
    }

    #[test]
    fn addresses_that_a_request_could_choose_are_refused() {
        for to in [
            "",
            "{path}",
            "{host}{path}",
            "//evil.example",
            "//{host}",
            "/{path}",
            "/\\evil.example",
            "dav.example.com",
            "ftp://a.test",
            "javascript:alert(1)",
            "HTTPS://a.test",
            "https://{path}",
            "https:///x",
            "https://u:p@a.test",
            "https://a.test/{path}",
            "https://a.test/x/{path}",
            "https://a.test{path}{path}",
            "https://a.test?next={path}",
            "https://a.test/{host}",
            "https://{host}{host}",
            "https://a.test{host}/",
            "https://{host}a.test/",
            "https://{host}-a.test/",
            "https://a.test/#x",
            "https://a.test/{query}",
            "https://a.test/a b",
            "https://a.test:x/",
            "https://a.test:/",
            "https://a.test:99999/",
            "https://a%2etest/",
            "/{host}",
            "https://a.test/é",
            "/?next={path}",
        ] {
            assert!(Redirect::parse(to, 302).is_err(), "{to}");
        }
    }
}
