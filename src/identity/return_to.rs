//! Where to return to after login: a path on this site, or a page of another host that shares the
//! login. Never another site.

use std::collections::BTreeSet;

use super::policy::Policy;

/// The hosts of the file's routes that share one login, because they are within `cookie_domain`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    /// In lower case; empty: no host shares the login of another one.
    domain: Box<str>,
    /// The port of their URLs, which is that of the issuer, with its colon; empty: the default.
    port: Box<str>,
    names: BTreeSet<Box<str>>,
    /// What their names end with, each with its dot.
    suffixes: BTreeSet<Box<str>>,
}

impl Sites {
    /// The hosts within `domain` that routes name exactly, or by what their names end with. `port`
    /// is empty, or begins with a colon.
    pub fn new(
        domain: &str,
        port: &str,
        names: impl IntoIterator<Item = Box<str>>,
        suffixes: impl IntoIterator<Item = Box<str>>,
    ) -> Self {
        Self {
            domain: domain.into(),
            port: port.into(),
            names: names.into_iter().collect(),
            suffixes: suffixes.into_iter().collect(),
        }
    }

    /// The origin of the pages of a host, if it shares the login.
    pub fn origin(&self, host: &str) -> Option<String> {
        self.contain(host).then(|| format!("https://{host}{}", self.port))
    }

    fn contain(&self, host: &str) -> bool {
        let is_name = !host.is_empty()
            && host.split('.').all(|label| !label.is_empty())
            && host.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte)
            });
        let ends_with =
            |suffix: &str| host.strip_suffix(suffix).is_some_and(|rest| !rest.is_empty());
        is_name
            && within(&self.domain, host)
            && (self.names.contains(host) || self.suffixes.iter().any(|suffix| ends_with(suffix)))
    }

    /// Whether this is a URL of such a host, in exactly one spelling.
    fn have(&self, url: &str) -> bool {
        let Some(rest) = url.strip_prefix("https://") else { return false };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.strip_suffix(&*self.port).unwrap_or_default();
        self.contain(host) && (path.is_empty() || is_plain(path))
    }
}

/// Whether a host is this domain, or below it. Without a domain, no host is.
pub fn within(domain: &str, host: &str) -> bool {
    !domain.is_empty()
        && host.strip_suffix(domain).is_some_and(|below| below.is_empty() || below.ends_with('.'))
}

/// Where a browser is redirected to: the requested page if it is on this very origin or on a host
/// that shares the login, otherwise `/`.
pub fn allowed<'a>(asked: Option<&'a str>, policy: &Policy) -> &'a str {
    match asked {
        Some(url) if url.len() <= LONGEST && policy.sites.have(url) => url,
        asked => local(asked),
    }
}

/// The path and query that a browser is redirected to: the requested one if it is a path of this
/// very origin, otherwise `/`.
///
/// Browsers treat `//host` and `/\\host` as another host, and drop tabs and line breaks before
/// parsing: such values are rejected.
pub fn local(asked: Option<&str>) -> &str {
    let Some(path) = asked.filter(|path| path.len() <= LONGEST) else { return "/" };
    let bytes = path.as_bytes();
    let is_local = bytes.first() == Some(&b'/')
        && !matches!(bytes.get(1), Some(b'/' | b'\\'))
        && is_plain(path);
    if is_local { path } else { "/" }
}

/// Whether all bytes are visible and mean the same to every browser.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
}

/// The path of a page with where to return to: a path, or a URL that [`allowed`] accepts.
pub fn remembering(path: &str, return_to: &str) -> String {
    let back = if return_to.starts_with("https://") { return_to } else { local(Some(return_to)) };
    let joint = if path.contains('?') { "" } else { "?" };
    let mut query = form_urlencoded::Serializer::new(format!("{path}{joint}"));
    query.append_pair("return_to", back);
    query.finish().replacen("?&", "?", 1)
}

/// The path and query that a mailed link carries; empty: none, or too long for a mail.
pub fn in_mail(asked: Option<&str>) -> &str {
    match local(asked) {
        "/" => "",
        long if long.len() > LONGEST_IN_MAIL => "",
        path => path,
    }
}

/// The longest path and query, in bytes.
const LONGEST: usize = 4096;

/// The longest path and query in a mailed link, in bytes. Some mail programs break longer links.
const LONGEST_IN_MAIL: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_leave_this_site() {
        for path in
            ["/", "/reports/q3?x=1&y=a%2Fb", "/a//b", "/?next=//evil.example", "/@evil.example"]
        {
            assert_eq!(local(Some(path)), path);
        }
        let long = format!("/{}", "a".repeat(5000));
        for path in [
            "",
            "reports",
            "//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\\/evil.example",
            "https://evil.example/",
            "javascript:alert(1)",
            "/\t/evil.example",
            "\t//evil.example",
            "/\n/evil.example",
            " //evil.example",
            "/a b",
            "/\u{e4}",
            "/a\\b",
            &long,
        ] {
            assert_eq!(local(Some(path)), "/", "{path:?}");
        }
        assert_eq!(local(None), "/");
    }

    #[test]
    fn a_mail_carries_a_path_on_this_site_that_is_not_long() {
        assert_eq!(in_mail(Some("/reports?q=3")), "/reports?q=3");
        let long = format!("/{}", "a".repeat(LONGEST_IN_MAIL));
        for path in [None, Some("/"), Some("//evil.example"), Some(long.as_str())] {
            assert_eq!(in_mail(path), "", "{path:?}");
        }
    }

    #[test]
    fn a_login_leads_back_only_to_hosts_that_share_it() {
        let boxed = |names: &[&str]| names.iter().map(|&name| name.into()).collect::<Vec<_>>();
        let names = boxed(&["example.com", "wiki.example.com", "other.test", "notexample.com"]);
        let sites =
            Sites::new("example.com", "", names.clone(), boxed(&[".apps.example.com", ".com"]));
        let policy = Policy { sites, ..crate::identity::policy::tests::policy() };
        for url in [
            "https://wiki.example.com/",
            "https://wiki.example.com",
            "https://wiki.example.com/a?b=//evil.test#c",
            "https://example.com/@evil.test",
            "https://a.apps.example.com/",
            "https://a.b.apps.example.com/x",
            "https://x.example.com/by-the-wildcard-of-com",
            "/local",
        ] {
            assert_eq!(allowed(Some(url), &policy), url);
        }
        let long = format!("https://wiki.example.com/{}", "a".repeat(5000));
        for url in [
            "http://wiki.example.com/",
            "HTTPS://wiki.example.com/",
            "https:/wiki.example.com/",
            "https:wiki.example.com/",
            "//wiki.example.com/",
            "https:///wiki.example.com/",
            "https://wiki.example.com:443/",
            "https://wiki.example.com:8443/",
            "https://wiki.example.com./",
            "https://.example.com/",
            "https://a..example.com/",
            "https://WIKI.example.com/",
            "https://user@wiki.example.com/",
            "https://wiki.example.com@evil.test/",
            "https://evil.test\\@wiki.example.com/",
            "https://evil.test#wiki.example.com/",
            "https://evil.test?wiki.example.com/",
            "https://evil.test/wiki.example.com",
            "https://wiki.example.com\\.evil.test/",
            "https://wiki.example.com%2eevil.test/",
            "https://wiki.example.com.evil.test/",
            "https://wikiexample.com/",
            "https://notexample.com/",
            "https://other.test/",
            "https://wiki.example.com?a",
            "https://wiki.example.com/a b",
            "https://wiki.example.com/\n",
            "https://wiki.example.com/\\evil.test",
            "https://wiki\u{3002}example.com/",
            "https://",
            "javascript:alert(1)//https://wiki.example.com/",
            &long,
        ] {
            assert_eq!(allowed(Some(url), &policy), "/", "{url:?}");
        }
        let ported =
            Policy { sites: Sites::new("example.com", ":8443", names, []), ..policy.clone() };
        let url = "https://wiki.example.com:8443/";
        assert_eq!(allowed(Some(url), &ported), url);
        assert_eq!(allowed(Some("https://wiki.example.com/"), &ported), "/");
        let none = Policy { sites: Sites::default(), ..policy };
        assert_eq!(allowed(Some("https://wiki.example.com/"), &none), "/");
        assert_eq!(allowed(Some("https:///"), &none), "/");
    }

    #[test]
    fn the_return_path_is_one_query_parameter() {
        assert_eq!(
            remembering("/auth/login", "/a?b=c&d=e"),
            "/auth/login?return_to=%2Fa%3Fb%3Dc%26d%3De"
        );
        assert_eq!(remembering("/auth/login", "//evil.example"), "/auth/login?return_to=%2F");
        assert_eq!(
            remembering("/auth/login?done=verify", "/a"),
            "/auth/login?done=verify&return_to=%2Fa"
        );
    }
}
