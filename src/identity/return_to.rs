//! Where to return to after login: a path on this site, never another site.

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
        && bytes.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'\\');
    if is_local { path } else { "/" }
}

/// A path below a mount with the path to return to.
pub fn remembering(path: &str, return_to: &str) -> String {
    let joint = if path.contains('?') { "" } else { "?" };
    let mut query = form_urlencoded::Serializer::new(format!("{path}{joint}"));
    query.append_pair("return_to", local(Some(return_to)));
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
