//! Mailed links: each is valid once, for a limited time, for one account. The store keeps only a
//! digest.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Setting a new password.
    Reset,
    /// Confirming an address.
    Verify,
    /// Changing the address of an account.
    Change,
}

impl Purpose {
    /// The word for it in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Verify => "verify",
            Self::Change => "change",
        }
    }

    /// The path of its page, below the mount.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Reset => "/password/reset",
            Self::Verify => "/email/verify",
            Self::Change => "/email/change",
        }
    }

    /// How long a link that its recipient asked for is valid.
    pub const fn lifetime(self) -> Duration {
        match self {
            Self::Reset => Duration::from_mins(30),
            Self::Verify | Self::Change => Duration::from_hours(24),
        }
    }
}

/// How long a link that an operator hands over is valid.
pub const HANDED_OVER: Duration = Duration::from_hours(24);

/// How long an invitation is valid.
pub const INVITATION: Duration = Duration::from_hours(7 * 24);

/// The secret of a link: 256 random bits.
pub struct LinkToken(Zeroizing<String>);

/// The random number generator failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system's random number generator failed")]
pub struct NoRandom;

impl LinkToken {
    /// Generates a token.
    pub fn generate() -> Result<Self, NoRandom> {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(bytes.as_mut()).map_err(|_| NoRandom)?;
        Ok(Self(Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(bytes.as_ref()))))
    }

    /// The token itself: 43 characters of base64url.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The URL of the link.
    pub fn url(&self, issuer: &str, purpose: Purpose) -> String {
        format!("{issuer}{}?token={}", purpose.path(), *self.0)
    }

    /// The digest that the store keeps.
    pub fn digest(&self) -> String {
        digest_of(&self.0)
    }
}

/// The digest of a received token.
pub fn digest_of(token: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_contains_its_token_and_the_store_only_a_digest() {
        let token = LinkToken::generate().unwrap();
        let url = token.url("https://app.example.com/auth", Purpose::Reset);
        let sent = url.strip_prefix("https://app.example.com/auth/password/reset?token=").unwrap();
        assert_eq!(sent.len(), 43);
        assert!(
            sent.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
            "{sent}"
        );
        assert_eq!(digest_of(sent), token.digest());
        assert!(!token.digest().contains(sent));
        assert_ne!(LinkToken::generate().unwrap().digest(), token.digest());
        // FIPS 180-4's example.
        assert_eq!(digest_of("abc"), "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0");
    }
}
