//! The cookies of a renewed session on the response to the request that renewed it.

use http::{HeaderMap, HeaderValue, header};

use super::token_names::TokenNames;
use crate::identity::Renewed;

/// Adds the cookies of a renewed session to a response, unless it sets these cookies itself, as a
/// logout does. A cache that serves several people must then not store it: it would give the
/// session to others. Returns whether they are added.
pub(super) fn add_cookies(headers: &mut HeaderMap, renewed: &Renewed, names: &TokenNames) -> bool {
    let is_own = |line: &HeaderValue| {
        names.own_cookie(line.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default())
    };
    let cookies = renewed.cookies();
    if cookies.is_empty() || headers.get_all(header::SET_COOKIE).iter().any(is_own) {
        return false;
    }
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie.clone());
    }
    forbid_shared_caching(headers);
    true
}

/// Leaves what the upstream tells the browser's own cache, and removes what permits others to store
/// the response (RFC 9111 §5.2.2, RFC 9213, and the fields of caches from before it).
fn forbid_shared_caching(headers: &mut HeaderMap) {
    let mut directives = vec!["private"];
    let lines = headers.get_all(header::CACHE_CONTROL);
    let written = lines.iter().filter_map(|line| line.to_str().ok()).collect::<Vec<_>>().join(",");
    if written.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("no-store")) {
        directives = vec!["no-store"];
    }
    // A quoted value can contain commas: what is not exactly a known directive is left out.
    directives.extend(written.split(',').map(str::trim).filter(|directive| {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        FOR_ONE_PERSON.iter().any(|known| name.eq_ignore_ascii_case(known))
            && value.bytes().all(|byte| byte.is_ascii_digit())
    }));
    let value = HeaderValue::try_from(directives.join(", "));
    headers.insert(header::CACHE_CONTROL, value.unwrap_or(HeaderValue::from_static("no-store")));
    let targeted: Vec<_> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.ends_with("cdn-cache-control")
                || ["surrogate-control", "x-accel-expires", "edge-control"].contains(&name)
        })
        .cloned()
        .collect();
    for name in targeted {
        headers.remove(name);
    }
}

/// Directives that permit no other cache to store a response.
const FOR_ONE_PERSON: [&str; 7] = [
    "no-cache",
    "no-transform",
    "must-revalidate",
    "max-age",
    "immutable",
    "stale-while-revalidate",
    "stale-if-error",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_that_sets_our_cookies_is_for_one_browser() {
        for (written, kept) in [
            (&[][..], "private"),
            (&["public, max-age=60, s-maxage=600"], "private, max-age=60"),
            (&["public, No-Store"], "no-store"),
            (&["no-store"], "no-store"),
            (&["public", "immutable,max-age=1"], "private, immutable, max-age=1"),
            (&["private=\"set-cookie, max-age=9\", no-cache=\"x, public\""], "private"),
        ] {
            let mut headers = HeaderMap::new();
            for line in written {
                headers.append(header::CACHE_CONTROL, HeaderValue::from_static(line));
            }
            for name in ["cdn-cache-control", "cloudflare-cdn-cache-control", "x-accel-expires"] {
                headers.insert(name, HeaderValue::from_static("max-age=60"));
            }
            forbid_shared_caching(&mut headers);
            assert_eq!(headers[header::CACHE_CONTROL], kept, "{written:?}");
            assert_eq!(headers.len(), 1, "{headers:?}");
        }
    }
}
