//! The origin of a request, as reported by the browser, and whether it is for a page.

use http::{HeaderMap, Method, header};

use super::client::ClientAddress;
use super::scheme::Scheme;
use super::target::{Target, same_authority};
use super::token_names::TokenNames;
use crate::identity::Origin;
use crate::identity::request::{is_form, is_sent_over_http};

/// Whether a request identified by its cookie was made by our own pages. This is required for
/// requests that change state, and for upgrades, which no same-origin policy restricts.
pub(super) fn is_own_request(
    method: &Method,
    headers: &HeaderMap,
    target: &Target,
    client: &ClientAddress,
    names: &TokenNames,
) -> bool {
    !changes_something(method, headers) || origin_of(headers, target, client, names) == Origin::Own
}

/// Whether a person navigates to another page. Browsers say so over https and to localhost;
/// elsewhere, they only ask for HTML.
pub(super) fn is_navigation(headers: &HeaderMap) -> bool {
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|line| line.to_str().is_ok_and(|line| line.contains("text/html"))),
    }
}

/// Whether a request may change state, or asks for an upgrade, which no same-origin policy
/// restricts.
pub(super) fn changes_something(method: &Method, headers: &HeaderMap) -> bool {
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    !safe || headers.contains_key(header::UPGRADE)
}

/// The origin of a request, as reported by the browser.
pub fn origin_of(
    headers: &HeaderMap,
    target: &Target,
    client: &ClientAddress,
    names: &TokenNames,
) -> Origin {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (Some(origin), None) if is_own_origin(origin.as_bytes(), target, client, names) => {
            Origin::Own
        }
        (Some(_), _) => Origin::Foreign,
        (None, _) => {
            let mut sites = headers.get_all("sec-fetch-site").iter();
            match (sites.next(), sites.next()) {
                (None, _) => Origin::Unsaid,
                (Some(site), None) if site == "same-origin" => Origin::Own,
                // Started by the person, for example by typing an address.
                (Some(site), None) if site == "none" => Origin::Unsaid,
                _ => Origin::Foreign,
            }
        }
    }
}

/// Whether a browser sent a login with a form of a page whose cookies it will not keep, although the
/// pages of the built-in issuer are on https: the login would seem to succeed, and be asked for again.
pub(super) fn loses_login(headers: &HeaderMap, names: &TokenNames) -> bool {
    names.issuer.as_ref().is_some_and(|own| own.scheme == Scheme::Https)
        && is_form(headers)
        && is_sent_over_http(headers)
}

/// The path and query of the page that a request came from, if it is one of our own origin.
pub(super) fn own_referer<'r>(
    headers: &'r HeaderMap,
    target: &Target,
    client: &ClientAddress,
    names: &TokenNames,
) -> Option<&'r str> {
    let url = headers.get(header::REFERER)?.to_str().ok()?;
    let (scheme, rest) = url.split_once("://")?;
    let (origin, path) = url.split_at(scheme.len() + 3 + rest.find('/')?);
    is_own_origin(origin.as_bytes(), target, client, names).then_some(path)
}

/// Whether an `Origin` (RFC 6454 §6.2) is our own: that of the built-in issuer's pages if they are
/// on the requested host, otherwise the scheme and authority that the client used.
fn is_own_origin(
    origin: &[u8],
    target: &Target,
    client: &ClientAddress,
    names: &TokenNames,
) -> bool {
    let asked = target.authority().as_bytes();
    let is = |scheme: Scheme, authority: &[u8]| {
        let written = origin
            .strip_prefix(scheme.as_str().as_bytes())
            .and_then(|rest| rest.strip_prefix(b"://"));
        written.is_some_and(|written| same_authority(written, authority, scheme == Scheme::Https))
    };
    match &names.issuer {
        Some(own)
            if same_authority(own.authority.as_bytes(), asked, own.scheme == Scheme::Https) =>
        {
            is(own.scheme, own.authority.as_bytes())
        }
        _ => is(client.scheme(), asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_requests_by_cookie_need_our_origin() {
        use super::super::client::{Peer, TrustedProxies};
        let own = |method: &str, fields: &[(&'static str, &'static str)]| {
            let mut request =
                http::Request::builder().method(method).uri("/").header("host", "a.test:8080");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let target =
                Target::parse(&parts.method, &parts.uri, parts.version, &parts.headers).unwrap();
            let peer = Peer::new([127, 0, 0, 1].into(), false);
            is_own_request(
                &parts.method,
                &parts.headers,
                &target,
                &TrustedProxies::default().client(&peer, &parts.headers),
                &TokenNames::default(),
            )
        };
        assert!(own("GET", &[]));
        assert!(!own("GET", &[("upgrade", "websocket")]));
        assert!(!own("POST", &[]));
        assert!(own("POST", &[("origin", "http://a.test:8080")]));
        assert!(own("POST", &[("origin", "http://A.test:8080")]));
        assert!(!own("POST", &[("origin", "https://a.test:8080")]));
        assert!(!own("POST", &[("origin", "http://a.test")]));
        assert!(!own("POST", &[("origin", "null"), ("sec-fetch-site", "same-origin")]));
        assert!(own("POST", &[("sec-fetch-site", "same-origin")]));
        assert!(!own("POST", &[("sec-fetch-site", "same-site")]));
        assert!(!own("POST", &[("origin", "http://a.test:8080"), ("origin", "http://evil.test")]));
    }
}
