//! The path prefix of the built-in issuer's endpoints.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything except RFC 3986 §2.3's unreserved characters: the result is valid in a URL (§3.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The path of an identity route without its `/*`, percent-encoded; empty for `/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount(Arc<str>);

impl Mount {
    /// The mount below these decoded segments.
    pub fn new<'a>(segments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            path.extend(utf8_percent_encode(segment, RESERVED));
        }
        Self(path.into())
    }

    /// The mount on the issuer's own host, for pages of other hosts: its paths are URLs.
    pub fn at_issuer(issuer: &str) -> Self {
        Self(issuer.into())
    }

    /// Whether the pages that link to it are on another host.
    pub fn is_elsewhere(&self) -> bool {
        self.0.contains("://")
    }

    /// The path of an endpoint or page.
    pub fn path(&self, below: &str) -> String {
        format!("{}{below}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_percent_encoded() {
        let mount = Mount::new(["auth", "für alle;"]);
        assert_eq!(mount.path("/login"), "/auth/f%C3%BCr%20alle%3B/login");
        assert_eq!(Mount::new([]).path("/login"), "/login");
    }
}
