//! The supported JWS algorithms (RFC 7518 §3.1, RFC 8037) and small sets of them.

use std::fmt;

pub use jsonwebtoken::Algorithm;
pub use jsonwebtoken::AlgorithmFamily as Family;

/// A set of JWS algorithms: those that an issuer's section allows, or those that a key may be used
/// with.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Algorithms(u16);

impl Algorithms {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Parses an `alg` name, spelled exactly as in RFC 7518 §3.1. Returns `None` for `none` and for
    /// unknown and unsupported names.
    pub fn parse(name: &str) -> Option<Algorithm> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(algorithm, _)| *algorithm)
    }

    /// The `alg` name of an algorithm.
    pub fn name(algorithm: Algorithm) -> &'static str {
        NAMES.iter().find(|(known, _)| *known == algorithm).map_or("?", |(_, name)| *name)
    }

    /// Every supported algorithm.
    pub fn all() -> Self {
        NAMES.iter().map(|(algorithm, _)| *algorithm).collect()
    }

    /// The algorithms that keys of this family can be used with.
    pub fn of_family(family: Family) -> Self {
        family.algorithms().iter().copied().collect()
    }

    /// Whether the set holds `algorithm`.
    pub fn contains(self, algorithm: Algorithm) -> bool {
        self.0 & bit(algorithm) != 0
    }

    /// The algorithms that are in both sets.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The algorithms of the set, in the order of [`Algorithms::all`].
    pub fn iter(self) -> impl Iterator<Item = Algorithm> {
        NAMES
            .iter()
            .map(|(algorithm, _)| *algorithm)
            .filter(move |algorithm| self.contains(*algorithm))
    }
}

impl FromIterator<Algorithm> for Algorithms {
    fn from_iter<I: IntoIterator<Item = Algorithm>>(algorithms: I) -> Self {
        Self(algorithms.into_iter().fold(0, |bits, algorithm| bits | bit(algorithm)))
    }
}

impl From<Algorithm> for Algorithms {
    fn from(algorithm: Algorithm) -> Self {
        Self(bit(algorithm))
    }
}

impl fmt::Display for Algorithms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, algorithm) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(Self::name(algorithm))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Algorithms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Algorithms({self})")
    }
}

/// The bit of an algorithm. An algorithm that is missing from the table has no bit: it is in no set
/// and is never accepted.
fn bit(algorithm: Algorithm) -> u16 {
    NAMES.iter().position(|(known, _)| *known == algorithm).map_or(0, |index| 1 << index)
}

const NAMES: [(Algorithm, &str); 12] = [
    (Algorithm::HS256, "HS256"),
    (Algorithm::HS384, "HS384"),
    (Algorithm::HS512, "HS512"),
    (Algorithm::RS256, "RS256"),
    (Algorithm::RS384, "RS384"),
    (Algorithm::RS512, "RS512"),
    (Algorithm::PS256, "PS256"),
    (Algorithm::PS384, "PS384"),
    (Algorithm::PS512, "PS512"),
    (Algorithm::ES256, "ES256"),
    (Algorithm::ES384, "ES384"),
    (Algorithm::EdDSA, "EdDSA"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_exactly_what_was_inserted() {
        let set: Algorithms = [Algorithm::ES256, Algorithm::RS256].into_iter().collect();
        assert!(set.contains(Algorithm::RS256) && set.contains(Algorithm::ES256));
        assert!(!set.contains(Algorithm::HS256) && !set.contains(Algorithm::PS256));
        assert_eq!(set.to_string(), "RS256, ES256");
        assert_eq!(Algorithms::EMPTY.to_string(), "none");
        assert_eq!(Algorithms::all().iter().count(), 12);
    }

    #[test]
    fn algorithm_names_are_exact() {
        assert_eq!(Algorithms::parse("EdDSA"), Some(Algorithm::EdDSA));
        for name in [
            "none", "None", "hs256", "HS256 ", "", "ES512", "ES256K", "Ed25519", "eddsa", "RSA1_5",
            "A128KW",
        ] {
            assert_eq!(Algorithms::parse(name), None, "{name:?}");
        }
    }
}
