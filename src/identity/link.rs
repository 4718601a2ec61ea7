//! Links that are mailed: good once, for a while, for one account. What the store keeps of one is a
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
    /// Another password.
    Reset,
    /// An address is shown to be its owner's.
    Verify,
}

impl Purpose {
    /// The word for it in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Verify => "verify",
        }
    }

    /// The page that it leads to, below the mount.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Reset => "/password/reset",
            Self::Verify => "/email/verify",
        }
    }

    /// How long it is good.
    pub const fn lifetime(self) -> Duration {
        match self {
            Self::Reset => Duration::from_mins(30),
            Self::Verify => Duration::from_hours(24),
        }
    }
}

/// The secret of a link: 256 random bits.
pub struct LinkToken(Zeroizing<String>);

/// The random number generator has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandom;

impl LinkToken {
    /// Another one.
    ///
    /// # Errors
    /// [`NoRandom`]
    pub fn generate() -> Result<Self, NoRandom> {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(bytes.as_mut()).map_err(|_| NoRandom)?;
        Ok(Self(Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(bytes.as_ref()))))
    }

    /// The link itself.
    pub fn url(&self, issuer: &str, purpose: Purpose) -> String {
        format!("{issuer}{}?token={}", purpose.path(), *self.0)
    }

    /// What the store keeps.
    pub fn digest(&self) -> String {
        digest_of(&self.0)
    }
}

/// What the store keeps of a token that somebody sent.
pub fn digest_of(token: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_holds_its_token_and_the_store_does_not() {
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
