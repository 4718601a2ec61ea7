//! Keys in PEM files, with messages for files that contain something else.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
    ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    KeyPair, ParsedPublicKey, RsaKeyPair, RsaPublicKeyComponents,
};
use zeroize::Zeroizing;

use super::algorithms::Algorithm;
use super::excerpt::Excerpt;
use super::keys::{Key, KeyError};

/// A note for the owner of a key file, although the key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemNote {
    /// The file contains the private key, from which the public one was derived.
    #[error(
        "the file contains a private key, which a gateway that only verifies should not have; use the public key: \
         openssl pkey -in key.pem -pubout -out public.pem"
    )]
    PrivateKey,
}

/// Parses the single public key in a PEM file: `PUBLIC KEY` (SPKI, RFC 5280 §4.1.2.7) or `RSA
/// PUBLIC KEY` (RFC 8017 §A.1.1). A private key works too: its public part is derived, and the note
/// says so.
///
/// The key may be used with every algorithm that suits it; [`super::KeySet::from_keys`] restricts
/// it to the configured ones. It has no `kid`.
///
/// # Errors
///
/// A [`KeyError`] whose text says what the file is instead, and what to do.
pub fn key_from_pem(file: &[u8]) -> Result<(Key, Option<PemNote>), KeyError> {
    let block = single_block(file)?;
    if let Some(private) = PrivateKey::from_block(&block)? {
        return Ok((private.public()?, Some(PemNote::PrivateKey)));
    }
    let der = &*block.der;
    match block.label.as_str() {
        "PUBLIC KEY" | "RSA PUBLIC KEY" => Ok((public_key(der)?, None)),
        "CERTIFICATE" | "TRUSTED CERTIFICATE" | "X509 CERTIFICATE" => Err(KeyError::Certificate),
        "OPENSSH PRIVATE KEY" | "SSH2 PUBLIC KEY" => Err(KeyError::OpenSsh),
        "DSA PRIVATE KEY" => Err(KeyError::Unsupported("DSA")),
        other => Err(KeyError::Label(Excerpt::new(other))),
    }
}

/// A private key that a supported algorithm can sign with.
pub(super) enum PrivateKey {
    Rsa(RsaKeyPair),
    Elliptic(Algorithm, EcdsaKeyPair),
    Edwards(Ed25519KeyPair),
}

impl PrivateKey {
    /// Parses the single private key in a PEM file.
    pub(super) fn from_pem(file: &[u8]) -> Result<Self, KeyError> {
        let block = single_block(file)?;
        Self::from_block(&block)?.ok_or_else(|| KeyError::Label(Excerpt::new(&block.label)))
    }

    /// Parses PKCS#8 (RFC 5958, versions 1 and 2), PKCS#1 (RFC 8017) or SEC 1 (RFC 5915). Returns
    /// `None` if the block is not a private key.
    fn from_block(block: &Block) -> Result<Option<Self>, KeyError> {
        let der = &*block.der;
        let found = match block.label.as_str() {
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" if block.encrypted => {
                return Err(KeyError::EncryptedPrivateKey);
            }
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::EncryptedPrivateKey),
            "PRIVATE KEY" => RsaKeyPair::from_pkcs8(der)
                .ok()
                .map(Self::Rsa)
                .or_else(|| elliptic_pair(der))
                .or_else(|| {
                    Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok().map(Self::Edwards)
                }),
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(der).ok().map(Self::Rsa),
            "EC PRIVATE KEY" => elliptic_pair(der),
            _ => return Ok(None),
        };
        found.map(Some).ok_or_else(|| why_unreadable(der))
    }

    fn public(&self) -> Result<Key, KeyError> {
        match self {
            Self::Rsa(pair) => {
                let numbers = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                Ok(Key::rsa(&numbers.n, &numbers.e)?)
            }
            Self::Elliptic(algorithm, pair) => {
                Key::elliptic(*algorithm, pair.public_key().as_ref()).ok_or(KeyError::Unreadable)
            }
            Self::Edwards(pair) => {
                Key::edwards(pair.public_key().as_ref()).ok_or(KeyError::Unreadable)
            }
        }
    }
}

fn elliptic_pair(der: &[u8]) -> Option<PrivateKey> {
    let curves: [(Algorithm, &'static EcdsaSigningAlgorithm); 2] = [
        (Algorithm::ES256, &ECDSA_P256_SHA256_FIXED_SIGNING),
        (Algorithm::ES384, &ECDSA_P384_SHA384_FIXED_SIGNING),
    ];
    curves.into_iter().find_map(|(algorithm, curve)| {
        // This function accepts both PKCS#8 and SEC 1.
        EcdsaKeyPair::from_private_key_der(curve, der)
            .ok()
            .map(|pair| PrivateKey::Elliptic(algorithm, pair))
    })
}

fn public_key(der: &[u8]) -> Result<Key, KeyError> {
    if let Ok(key) = aws_lc_rs::rsa::PublicKey::from_der(der) {
        let numbers = RsaPublicKeyComponents::<Vec<u8>>::from(&key);
        return Ok(Key::rsa(&numbers.n, &numbers.e)?);
    }
    // Reject a raw key or point: the library would accept it, but a PEM block that contains one is
    // not what its label says.
    if der.first() != Some(&DER_SEQUENCE) {
        return Err(KeyError::Unreadable);
    }
    let elliptic = if ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, der).is_ok() {
        Key::elliptic(Algorithm::ES256, der)
    } else if ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, der).is_ok() {
        Key::elliptic(Algorithm::ES384, der)
    } else {
        None
    };
    if let Some(key) = elliptic {
        return Ok(key);
    }
    // An Ed25519 SPKI has one fixed form and ends with the 32 bytes of the key (RFC 8410 §4).
    if let (Ok(_), Some(public)) = (ParsedPublicKey::new(&ED25519, der), der.last_chunk::<32>()) {
        return Key::edwards(public).ok_or(KeyError::Unreadable);
    }
    Err(why_unreadable(der))
}

/// Identifies the kind of an unreadable key by the object identifiers in it, for the error message
/// only.
fn why_unreadable(der: &[u8]) -> KeyError {
    let holds = |oid: &[u8]| der.windows(oid.len()).any(|window| window == oid);
    OTHER_KINDS
        .iter()
        .find(|(oid, _)| holds(oid))
        .map_or(KeyError::Unreadable, |(_, kind)| KeyError::Unsupported(kind))
}

/// The single relevant PEM block of a file.
struct Block {
    label: String,
    encrypted: bool,
    der: Zeroizing<Vec<u8>>,
}

fn single_block(file: &[u8]) -> Result<Block, KeyError> {
    if file.len() > MAX_PEM_BYTES {
        return Err(KeyError::TooLarge { length: file.len(), most: MAX_PEM_BYTES });
    }
    let text = file.trim_ascii();
    match text {
        [] => return Err(KeyError::Empty),
        [b'{' | b'[', ..] => return Err(KeyError::JsonNotPem),
        // In DER the key's bit string begins with a zero byte; text contains none.
        [DER_SEQUENCE, rest @ ..] if rest.contains(&0) => return Err(KeyError::Der),
        _ if text.starts_with(b"ssh-") || text.starts_with(b"ecdsa-sha2-") => {
            return Err(KeyError::OpenSsh);
        }
        _ if text.starts_with(b"---- BEGIN SSH2") => return Err(KeyError::OpenSsh),
        _ if !text.windows(BEGIN.len()).any(|window| window == BEGIN) => {
            return Err(KeyError::NotPem);
        }
        _ => {}
    }
    // `openssl ecparam -genkey` writes the curve as a separate block before the key, which names
    // the curve again.
    let mut blocks: Vec<pem::Pem> = pem::parse_many(text).map_err(|_| KeyError::PemDamaged)?;
    blocks.retain(|block| block.tag() != "EC PARAMETERS");
    let count = blocks.len();
    match (blocks.pop(), count) {
        (Some(block), 1) => Ok(Block {
            label: block.tag().to_owned(),
            // RFC 1421 headers: the older way to encrypt a key with a password.
            encrypted: block
                .headers()
                .iter()
                .any(|(name, _)| name == "DEK-Info" || name == "Proc-Type"),
            der: Zeroizing::new(block.into_contents()),
        }),
        (Some(block), _) if block.tag() == "CERTIFICATE" => Err(KeyError::Certificate),
        (Some(_), _) => Err(KeyError::Several { count }),
        (None, _) => Err(KeyError::PemDamaged),
    }
}

const BEGIN: &[u8] = b"-----BEGIN";
const DER_SEQUENCE: u8 = 0x30;
/// The maximum size of a PEM file, in bytes.
const MAX_PEM_BYTES: usize = 64 * 1024;

/// Object identifiers (DER, with tag and length) of common keys that no supported algorithm uses.
const OTHER_KINDS: [(&[u8], &str); 12] = [
    (&[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01], "DSA"),
    (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a], "EC secp256k1"),
    (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23], "EC P-521"),
    (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x21], "EC P-224"),
    (&[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01], "EC P-192"),
    (&[0x06, 0x03, 0x2b, 0x65, 0x71], "Ed448"),
    (&[0x06, 0x03, 0x2b, 0x65, 0x6e], "X25519"),
    (&[0x06, 0x03, 0x2b, 0x65, 0x6f], "X448"),
    (&[0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07], "EC brainpoolP256r1"),
    (&[0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x0b], "EC brainpoolP384r1"),
    (&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a], "RSASSA-PSS-only"),
    (&[0x06, 0x08, 0x2a, 0x81, 0x1c, 0xcf, 0x55, 0x01, 0x82, 0x2d], "EC SM2"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::samples::key_file;
    use crate::token::{Algorithms, Family, RsaFault};

    #[test]
    fn keys_are_parsed_in_common_pem_forms() {
        let rsa = Algorithms::of_family(Family::Rsa);
        let cases = [
            ("rsa-public.pem", rsa, false),
            ("rsa-public-pkcs1.pem", rsa, false),
            ("rsa.pem", rsa, true),
            ("rsa-pkcs1.pem", rsa, true),
            ("p256-public.pem", Algorithm::ES256.into(), false),
            ("p256.pem", Algorithm::ES256.into(), true),
            ("p256-sec1.pem", Algorithm::ES256.into(), true),
            ("p384-public.pem", Algorithm::ES384.into(), false),
            ("p384.pem", Algorithm::ES384.into(), true),
            ("ed25519-public.pem", Algorithm::EdDSA.into(), false),
            ("ed25519.pem", Algorithm::EdDSA.into(), true),
            ("ed25519-v2.pem", Algorithm::EdDSA.into(), true),
        ];
        for (file, algorithms, private) in cases {
            let (key, note) =
                key_from_pem(&key_file(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(
                (key.algorithms(), note),
                (algorithms, private.then_some(PemNote::PrivateKey)),
                "{file}"
            );
            assert_eq!(key.kid(), None);
        }
    }

    #[test]
    fn invalid_keys_are_reported() {
        let two = [key_file("p256-public.pem"), key_file("rsa-public.pem")].concat();
        let damaged =
            String::from_utf8(key_file("p256-public.pem")).unwrap().replace("MFkw", "M!kw");
        let not_der = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        let raw_point =
            format!("-----BEGIN PUBLIC KEY-----\n{}=\n-----END PUBLIC KEY-----\n", "A".repeat(43));
        let cases = [
            (key_file("certificate.pem"), KeyError::Certificate),
            (key_file("encrypted.pem"), KeyError::EncryptedPrivateKey),
            (key_file("encrypted-traditional.pem"), KeyError::EncryptedPrivateKey),
            (key_file("secp256k1-public.pem"), KeyError::Unsupported("EC secp256k1")),
            (key_file("secp256k1.pem"), KeyError::Unsupported("EC secp256k1")),
            (key_file("p521-public.pem"), KeyError::Unsupported("EC P-521")),
            (key_file("ed448-public.pem"), KeyError::Unsupported("Ed448")),
            (key_file("x25519-public.pem"), KeyError::Unsupported("X25519")),
            (key_file("dsa-public.pem"), KeyError::Unsupported("DSA")),
            (key_file("rsa-1024-public.pem"), KeyError::Rsa(RsaFault::TooShort { bits: 1024 })),
            (key_file("ed25519-public.der"), KeyError::Der),
            (two, KeyError::Several { count: 2 }),
            (damaged.into_bytes(), KeyError::PemDamaged),
            (not_der.into(), KeyError::Unreadable),
            (raw_point.into_bytes(), KeyError::Unreadable),
            (b"".to_vec(), KeyError::Empty),
            (b" \n\t".to_vec(), KeyError::Empty),
            (b"hunter2".to_vec(), KeyError::NotPem),
            (b"0123".to_vec(), KeyError::NotPem),
            (b"{\"keys\":[]}".to_vec(), KeyError::JsonNotPem),
            (b"ssh-ed25519 AAAA me@here".to_vec(), KeyError::OpenSsh),
            (
                b"-----BEGIN PGP PUBLIC KEY-----\nAAAA\n-----END PGP PUBLIC KEY-----".to_vec(),
                KeyError::Label(Excerpt::new("PGP PUBLIC KEY")),
            ),
            (b"-----BEGIN PUBLIC KEY-----".to_vec(), KeyError::PemDamaged),
            (vec![b'x'; 70_000], KeyError::TooLarge { length: 70_000, most: 65_536 }),
        ];
        for (file, expected) in cases {
            assert_eq!(
                key_from_pem(&file).map(|_| ()),
                Err(expected),
                "{}",
                String::from_utf8_lossy(&file[..file.len().min(80)])
            );
        }
    }
}
