//! Seals the secrets in the database: AES-256-GCM with a key that is kept outside it.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Seals secrets, and derives keys, from `[store] key`. Clones share the key.
#[derive(Clone)]
pub struct Sealer(Arc<Zeroizing<[u8; 32]>>);

/// Why sealed data cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It was sealed with another key, or was changed since.
    #[error(
        "`[store] key` cannot decrypt the secrets in the database; restore the key that belongs to this database"
    )]
    WrongKey,
    /// The cryptography or the random number generator failed.
    #[error("a cryptographic operation failed")]
    Crypto,
}

impl Sealer {
    /// Makes a sealer from a secret of any length with at least 128 bits of entropy.
    pub fn new(secret: &[u8]) -> Self {
        Self(Arc::new(derive(secret, b"portcullis store seal v1")))
    }

    /// Derives a key for another purpose, such as the MAC of refresh tokens. The same `purpose`
    /// gives the same key.
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        derive(self.0.as_ref().as_ref(), purpose.as_bytes())
    }

    /// Seals `secret` for the place `context` (a table, column and row). Moved to another place,
    /// the result does not open.
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<String, SealError> {
        let mut sealed = secret.to_vec();
        let nonce = self
            .key()?
            .seal_in_place_append_tag(Aad::from(context.as_bytes()), &mut sealed)
            .map_err(|_| SealError::Crypto)?;
        Ok(BASE64_STANDARD_NO_PAD.encode([&nonce.as_ref()[..], &sealed].concat()))
    }

    /// Opens what [`Sealer::seal`] made for the same place.
    ///
    /// # Errors
    /// [`SealError::WrongKey`] if it was sealed with another key or for another place, or was
    /// changed since.
    pub fn open(&self, context: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let mut bytes = BASE64_STANDARD_NO_PAD.decode(sealed).map_err(|_| SealError::WrongKey)?;
        if bytes.len() < NONCE {
            return Err(SealError::WrongKey);
        }
        let mut sealed = bytes.split_off(NONCE);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(|_| SealError::WrongKey)?;
        let opened = self
            .key()?
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut sealed)
            .map_err(|_| SealError::WrongKey)?
            .len();
        sealed.truncate(opened);
        Ok(Zeroizing::new(sealed))
    }

    fn key(&self) -> Result<RandomizedNonceKey, SealError> {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.as_ref().as_ref())
            .map_err(|_| SealError::Crypto)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

/// Derives a key from a high-entropy secret with HKDF (RFC 5869), one for each purpose.
fn derive(secret: &[u8], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, b"")
        .extract(secret)
        .expand(&[purpose], Length)
        .and_then(|okm| okm.fill(key.as_mut()))
        .expect("32 bytes are below HKDF's limit of 255 hashes");
    key
}

/// The length of an AES-GCM nonce in bytes.
const NONCE: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_data_opens_only_in_its_own_place() {
        let sealer = Sealer::new(b"secret");
        let closed = sealer.seal("keys/1", b"private").unwrap();
        assert_eq!(&**sealer.open("keys/1", &closed).unwrap(), b"private");
        assert_ne!(closed, sealer.seal("keys/1", b"private").unwrap());
        assert!(sealer.open("keys/2", &closed).is_err());
        assert!(Sealer::new(b"other").open("keys/1", &closed).is_err());
        for broken in ["", "AAAA", "!", &closed[1..], &closed[..closed.len() - 1]] {
            assert!(sealer.open("keys/1", broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn each_purpose_gets_its_own_key() {
        let sealer = Sealer::new(b"secret");
        assert_eq!(sealer.derive("a"), sealer.derive("a"));
        assert_ne!(sealer.derive("a"), sealer.derive("b"));
        assert_ne!(sealer.derive("a"), Sealer::new(b"other").derive("a"));
    }
}
