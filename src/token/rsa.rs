//! RSA public keys, and the weak ones that must not be trusted from any source.

use aws_lc_rs::signature::{
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
};

use super::algorithms::Algorithm;

/// Why an RSA public key is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RsaFault {
    /// The modulus is shorter than 2048 bits (RFC 7518 §3.3).
    #[error(
        "its RSA modulus has {bits} bits; the minimum is 2048 (RFC 7518, section 3.3). Generate a new key"
    )]
    TooShort {
        /// The length of the modulus in bits.
        bits: usize,
    },
    /// The modulus is longer than 8192 bits, which is too slow to check for every request.
    #[error("its RSA modulus has {bits} bits; the maximum is 8192")]
    TooLong {
        /// The length of the modulus in bits.
        bits: usize,
    },
    /// The public exponent is 1 (anyone could sign), even, zero, or longer than 32 bits.
    #[error("its RSA exponent is 1, even, or longer than 32 bits; use 65537 (\"AQAB\")")]
    Exponent,
    /// The modulus has the fingerprint of the Infineon key generator (CVE-2017-15361, "ROCA") and
    /// can be factored.
    #[error(
        "its RSA modulus was made by a faulty generator and can be factored (ROCA, CVE-2017-15361). Generate a new key"
    )]
    Roca,
    /// The numbers do not form an RSA key.
    #[error("its numbers do not form an RSA public key")]
    Invalid,
}

/// Parses a modulus and an exponent (big-endian; leading zeros are ignored, although RFC 7518
/// §6.3.1 forbids them) into one key per RSA algorithm.
pub(super) fn parsed(
    modulus: &[u8],
    exponent: &[u8],
) -> Result<Vec<(Algorithm, ParsedPublicKey)>, RsaFault> {
    let (n, e) = (trimmed(modulus), trimmed(exponent));
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if bits < 2048 {
        return Err(RsaFault::TooShort { bits });
    }
    if bits > 8192 {
        return Err(RsaFault::TooLong { bits });
    }
    let odd = e.last().is_some_and(|byte| byte % 2 == 1);
    if !odd || e == [1] || e.len() > 4 {
        return Err(RsaFault::Exponent);
    }
    if has_roca_fingerprint(n) {
        return Err(RsaFault::Roca);
    }
    // Check that the numbers work. The key goes through DER because only that parser runs the
    // library's check of the key.
    let numbers = RsaPublicKeyComponents { n, e };
    numbers
        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        .and_then(|key| aws_lc_rs::rsa::PublicKey::from_der(key.as_ref()))
        .map_err(|_| RsaFault::Invalid)?;
    let parsed = PARAMETERS
        .iter()
        .map(|&(algorithm, parameters)| Ok((algorithm, numbers.to_parsed_public_key(parameters)?)));
    parsed.collect::<Result<_, aws_lc_rs::error::KeyRejected>>().map_err(|_| RsaFault::Invalid)
}

/// The faulty generator made primes of the form k·M + (65537^a mod M), where M is a product of
/// small primes. A modulus of two such primes is a power of 65537 modulo each of them (Nemec et
/// al., "The Return of Coppersmith's Attack", 2017, §2.3). For these primes, a sound modulus has
/// this property with a probability of about 2^-28.
fn has_roca_fingerprint(modulus: &[u8]) -> bool {
    PRIMES.iter().all(|&prime| {
        let residue = modulus.iter().fold(0, |rest, &byte| (rest * 256 + u32::from(byte)) % prime);
        let mut power = 1;
        for _ in 0..prime {
            if power == residue {
                return true;
            }
            power = power * (65537 % prime) % prime;
        }
        false
    })
}

fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    &number[zeros..]
}

const PARAMETERS: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::RS256, &RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &RSA_PSS_2048_8192_SHA512),
];

const PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_rsa_numbers_are_refused() {
        let sound = crate::token::samples::rsa_modulus();
        let even: Vec<u8> = sound.iter().copied().take(255).chain([0]).collect();
        let fault = |n: &[u8], e: &[u8]| parsed(n, e).err();
        assert_eq!(fault(&sound, &[1, 0, 1]), None);
        assert_eq!(fault(&sound, &[3]), None);
        assert_eq!(fault(&[&[0], &sound[..]].concat(), &[0, 1, 0, 1]), None);
        assert_eq!(fault(&sound, &[1]), Some(RsaFault::Exponent));
        assert_eq!(fault(&sound, &[0, 1]), Some(RsaFault::Exponent));
        assert_eq!(fault(&sound, &[1, 0, 0]), Some(RsaFault::Exponent));
        assert_eq!(fault(&sound, &[]), Some(RsaFault::Exponent));
        assert_eq!(fault(&sound, &[1, 0, 0, 0, 1]), Some(RsaFault::Exponent));
        assert_eq!(fault(&sound[..128], &[1, 0, 1]), Some(RsaFault::TooShort { bits: 1024 }));
        assert_eq!(fault(&[], &[1, 0, 1]), Some(RsaFault::TooShort { bits: 0 }));
        assert_eq!(
            fault(&[&sound[..], &[1]].concat().repeat(5), &[1, 0, 1])
                .map(|f| matches!(f, RsaFault::TooLong { .. })),
            Some(true)
        );
        assert_eq!(fault(&even, &[1, 0, 1]), Some(RsaFault::Invalid));
    }

    #[test]
    fn powers_of_65537_have_the_roca_fingerprint() {
        assert!(has_roca_fingerprint(&[1]));
        assert!(has_roca_fingerprint(&[1, 0, 1]));
        assert!(has_roca_fingerprint(&[1, 0, 2, 0, 1]));
        assert!(!has_roca_fingerprint(&[1, 0, 3]));
        assert!(!has_roca_fingerprint(&crate::token::samples::rsa_modulus()));
    }
}
