//! The scheme of a request: `http` or `https`.

/// How the client reached the outermost trusted gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Parses `http` or `https`, in any case.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        match text.trim_ascii() {
            scheme if scheme.eq_ignore_ascii_case(b"http") => Some(Self::Http),
            scheme if scheme.eq_ignore_ascii_case(b"https") => Some(Self::Https),
            _ => None,
        }
    }
}
