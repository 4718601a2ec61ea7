//! Passwords as they are typed, and hashes as they are stored.
//!
//! New hashes are argon2id (RFC 9106) in a PHC string, of the password's compatibility form (NFKC,
//! as NIST SP 800-63B requires): `é` is the same password whether a keyboard sends it as one
//! character or two, and full-width letters equal the plain ones. Imported hashes were made from
//! whatever bytes arrived then, so a password is also tried as it was sent if the two differ.

use std::fmt;
use std::str::FromStr;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};
use zeroize::Zeroizing;

/// A password as received. It is zeroized on drop and never printed.
#[derive(Clone)]
pub struct Password {
    sent: Zeroizing<String>,
    /// Its compatibility form, if different.
    folded: Option<Zeroizing<String>>,
}

impl Password {
    /// Wraps a password. One of more than [`LONGEST_PASSWORD`] bytes is never stored and never
    /// matches.
    pub fn new(sent: String) -> Self {
        let sent = Zeroizing::new(sent);
        let is_folded =
            sent.len() > LONGEST_PASSWORD || is_nfkc_quick(sent.chars()) == IsNormalized::Yes;
        let folded = (!is_folded).then(|| {
            // Room for the character that grows most: a reallocation would leave a copy of the text
            // behind.
            let mut folded = Zeroizing::new(String::with_capacity(sent.len() * MOST_GROWTH));
            folded.extend(sent.nfkc());
            folded
        });
        Self { folded: folded.filter(|folded| **folded != *sent), sent }
    }

    /// Whether it is too long to be hashed or verified.
    pub fn is_too_long(&self) -> bool {
        self.sent.len() > LONGEST_PASSWORD
    }

    /// The form that is checked and hashed.
    pub fn folded(&self) -> &str {
        self.folded.as_ref().unwrap_or(&self.sent)
    }

    /// Every form that a stored hash may have been made from, the likely one first.
    fn forms(&self) -> impl Iterator<Item = &str> {
        self.folded.iter().map(|folded| folded.as_str()).chain([self.sent.as_str()])
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A password hash with a bounded cost of verification.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredHash {
    text: String,
    scheme: Scheme,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Argon2,
    Bcrypt,
}

/// Why a text is not usable as a password hash. `Display` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableHash {
    /// Another scheme, or not a hash.
    #[error(
        "not a supported password hash; use bcrypt (`$2a$`, `$2b$`, `$2y$`) or argon2 (`$argon2id$`, `$argon2i$`, `$argon2d$`)"
    )]
    Unknown,
    /// It starts like a hash.
    #[error("not a complete {0} hash; check whether it was truncated, or changed by a spreadsheet")]
    Broken(&'static str),
    /// Too expensive to verify at each login.
    #[error(
        "this hash is too expensive to verify at each login: bcrypt's cost may be at most {LARGEST_BCRYPT_COST}, argon2's `m` at most {LARGEST_MEMORY} (KiB), `m` times `t` at most {LARGEST_WORK} and `p` at most {MOST_LANES}; import this account with an empty `password_hash`, and let its owner reset the password"
    )]
    Expensive,
    /// Argon2 with a secret key or associated data, which are not known here.
    #[error("this argon2 hash needs a secret or data (`keyid`, `data`) that cannot be imported")]
    Keyed,
}

impl StoredHash {
    /// Hashes a password at the current cost. This takes tens of milliseconds, so call it on a
    /// hashing thread; see [`Hasher`](super::hasher::Hasher).
    pub fn hash(password: &Password) -> Result<Self, HashingFailed> {
        let hash: PasswordHash =
            todays().hash_password(password.folded().as_bytes()).map_err(|_| HashingFailed)?;
        Ok(Self { text: hash.to_string(), scheme: Scheme::Argon2 })
    }

    /// Whether this is the hash of the password. Takes as long as [`StoredHash::hash`], or longer
    /// for an imported hash.
    pub fn matches(&self, password: &Password) -> bool {
        if password.is_too_long() {
            return false;
        }
        match self.scheme {
            Scheme::Argon2 => PasswordHash::new(&self.text).is_ok_and(|mut hash| {
                // An absent version means the first one; the crate would assume the current one.
                hash.version.get_or_insert(Version::V0x10.into());
                password
                    .forms()
                    .any(|form| Argon2::default().verify_password(form.as_bytes(), &hash).is_ok())
            }),
            // bcrypt reads at most 72 bytes, as it did when the hash was made.
            Scheme::Bcrypt => {
                password.forms().any(|form| bcrypt::verify(form, &self.text).unwrap_or(false))
            }
        }
    }

    /// Whether new hashes use other parameters. The next successful login then stores a new hash.
    pub fn is_outdated(&self) -> bool {
        let is_todays = || {
            let hash = PasswordHash::new(&self.text).ok()?;
            let of = (hash.algorithm.as_str(), hash.version, Params::try_from(&hash.params).ok()?);
            let output = hash.hash.as_ref().map(argon2::password_hash::phc::Output::len);
            Some(
                of == (
                    Algorithm::Argon2id.as_str(),
                    Some(Version::V0x13.into()),
                    Params::default(),
                ) && output == Some(Params::DEFAULT_OUTPUT_LEN),
            )
        };
        self.scheme == Scheme::Bcrypt || is_todays() != Some(true)
    }

    /// As it is stored.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text up to the salt. Hashes with the same prefix take the same time to verify.
    pub fn cost(&self) -> &str {
        let salt = if self.scheme == Scheme::Bcrypt {
            3
        } else {
            self.text.matches('$').count().saturating_sub(1)
        };
        self.text
            .match_indices('$')
            .nth(salt.saturating_sub(1))
            .map_or(&self.text, |(at, _)| &self.text[..=at])
    }

    /// A hash that no password matches and that takes as long to verify as those of this `cost`.
    /// `None`: no hash has this cost.
    pub fn dummy(cost: &str) -> Option<Self> {
        let rest = if cost.starts_with("$2") { DUMMY_BCRYPT } else { DUMMY_ARGON2 };
        format!("{cost}{rest}").parse().ok()
    }
}

impl FromStr for StoredHash {
    type Err = UnusableHash;

    fn from_str(text: &str) -> Result<Self, UnusableHash> {
        let scheme = match text.split('$').nth(1).filter(|_| text.starts_with('$')) {
            Some("2a" | "2b" | "2y") => {
                let parts = bcrypt::HashParts::from_str(text)
                    .map_err(|_| UnusableHash::Broken("bcrypt"))?;
                if !(SMALLEST_BCRYPT_COST..=31).contains(&parts.get_cost()) {
                    return Err(UnusableHash::Broken("bcrypt"));
                }
                if parts.get_cost() > LARGEST_BCRYPT_COST {
                    return Err(UnusableHash::Expensive);
                }
                Scheme::Bcrypt
            }
            Some("argon2id" | "argon2i" | "argon2d") => {
                let broken = UnusableHash::Broken("argon2");
                let hash = PasswordHash::new(text).map_err(|_| broken.clone())?;
                let params = Params::try_from(&hash).map_err(|_| broken.clone())?;
                if !params.keyid().is_empty() || !params.data().is_empty() {
                    return Err(UnusableHash::Keyed);
                }
                let is_known =
                    hash.version.is_none_or(|version| Version::try_from(version).is_ok());
                let is_whole = hash.salt.is_some()
                    && hash.hash.is_some_and(|output| output.len() >= SHORTEST_OUTPUT);
                if !is_known || !is_whole {
                    return Err(broken);
                }
                let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
                if params.m_cost() > LARGEST_MEMORY
                    || work > LARGEST_WORK
                    || params.p_cost() > MOST_LANES
                {
                    return Err(UnusableHash::Expensive);
                }
                Scheme::Argon2
            }
            _ => return Err(UnusableHash::Unknown),
        };
        Ok(Self { text: text.to_owned(), scheme })
    }
}

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The system is out of memory for a hash, or of random numbers for its salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot hash a password: the system is out of memory or random numbers")]
pub struct HashingFailed;

/// Argon2id with 19 MiB, two passes and one lane: the default of the crate, and OWASP's first
/// recommendation.
fn todays() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default())
}

/// The longest password in bytes: enough for a sentence in any script.
pub const LONGEST_PASSWORD: usize = 1024;

/// The largest factor by which the compatibility form of a character grows, in bytes (U+FDFA).
const MOST_GROWTH: usize = 11;

/// The lowest cost of bcrypt.
const SMALLEST_BCRYPT_COST: u32 = 4;

/// About two seconds at each login, until the hash is renewed.
const LARGEST_BCRYPT_COST: u32 = 15;

/// 256 MiB for each hashing thread.
const LARGEST_MEMORY: u32 = 256 * 1024;

/// Memory in KiB times passes: about as slow as [`LARGEST_BCRYPT_COST`].
const LARGEST_WORK: u64 = 1024 * 1024;

/// Lanes are computed one after the other.
const MOST_LANES: u32 = 16;

/// A shorter output would be easier to guess than the password.
const SHORTEST_OUTPUT: usize = 16;

/// Salt and output of an argon2 hash, from random numbers.
const DUMMY_ARGON2: &str = "5fQ1mCzMVQbDhVvBPlv2SA$vyJS3kbD2nCLTpHqqQYCqQQtcPIoZLFoTMEYHcJtOYo";

/// Salt and output of a bcrypt hash, from random numbers.
const DUMMY_BCRYPT: &str = "Q3SVe0OnlyAStandIn77ueHq1lS1vQ4S2yQfK8rXb0Nn7mVj5cWdK";

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    /// The password is `hunter22` unless stated otherwise. Made with htpasswd -B, Python's bcrypt
    /// and the argon2 of its authors.
    fn hash(text: &str) -> StoredHash {
        text.parse().unwrap()
    }

    #[test]
    fn a_hash_matches_its_password_only() {
        let made = StoredHash::hash(&password("correct horse")).unwrap();
        assert!(made.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", made.as_str());
        assert_eq!(made, made.as_str().parse().unwrap());
        assert!(made.matches(&password("correct horse")) && !made.is_outdated());
        for wrong in ["", "correct hors", "Correct horse", "correct horse ", &"x".repeat(2000)] {
            assert!(!made.matches(&password(wrong)), "{wrong}");
        }
        assert_ne!(
            made,
            StoredHash::hash(&password("correct horse")).unwrap(),
            "each has a salt of its own"
        );
    }

    #[test]
    fn one_password_has_one_form_however_it_is_typed() {
        let made = StoredHash::hash(&password("pass\u{e9}word ﬁne")).unwrap();
        for typed in ["pass\u{e9}word fine", "passe\u{301}word fine", "ｐａｓｓéｗｏｒｄ ﬁne"]
        {
            assert!(made.matches(&password(typed)), "{typed}");
        }
        // An imported hash may be of another form: the bytes as they arrived then.
        let decomposed = "passe\u{301}word";
        let imported = bcrypt::hash(decomposed, 4).unwrap();
        assert!(hash(&imported).matches(&password(decomposed)));
        assert!(!hash(&imported).matches(&password("pass\u{e9}word")));
        let grown = password(&"\u{fdfa}".repeat(300));
        assert_eq!(grown.folded().len(), 300 * 3 * MOST_GROWTH);
    }

    #[test]
    fn imported_hashes_match_and_are_outdated() {
        let ten = bcrypt::hash_with_salt("U*U", 5, [7; 16]).unwrap();
        for version in [bcrypt::Version::TwoA, bcrypt::Version::TwoB, bcrypt::Version::TwoY] {
            let hash = hash(&ten.format_for_version(version));
            assert!(
                hash.matches(&password("U*U"))
                    && !hash.matches(&password("U*V"))
                    && hash.is_outdated()
            );
        }
        // Published vectors: of crypt_blowfish, and of the reference implementation of argon2 (its
        // test.c).
        for (text, of) in [
            ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U"),
            ("$2y$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK", "U*U*"),
            (
                "$argon2i$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                "password",
            ),
            (
                "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                "password",
            ),
            (
                "$argon2i$m=65536,t=2,p=1$c29tZXNhbHQ$9sTbSlTio3Biev89thdrlKKiCaYsjjYVJxGAL3swxpQ",
                "password",
            ),
        ] {
            assert!(hash(text).matches(&password(of)) && hash(text).is_outdated(), "{text}");
            assert!(!hash(text).matches(&password("another")), "{text}");
        }
        // bcrypt has only ever read 72 bytes.
        let long = bcrypt::hash("a".repeat(80), 4).unwrap();
        assert!(hash(&long).matches(&password(&"a".repeat(72))));
    }

    #[test]
    fn invalid_and_expensive_hashes_are_rejected() {
        for (text, expected) in [
            ("", UnusableHash::Unknown),
            ("hunter22", UnusableHash::Unknown),
            ("2b$05$x", UnusableHash::Unknown),
            ("$2x$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", UnusableHash::Unknown),
            ("$1$salt$hash", UnusableHash::Unknown),
            (
                "$argon2$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                UnusableHash::Unknown,
            ),
            (
                "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOe",
                UnusableHash::Broken("bcrypt"),
            ),
            (
                "$2b$03$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
                UnusableHash::Broken("bcrypt"),
            ),
            (
                "$2b$16$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
                UnusableHash::Expensive,
            ),
            (
                "$2b$99$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
                UnusableHash::Broken("bcrypt"),
            ),
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ", UnusableHash::Broken("argon2")),
            (
                "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvQ",
                UnusableHash::Broken("argon2"),
            ),
            (
                "$argon2id$v=20$m=65536,t=2,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                UnusableHash::Broken("argon2"),
            ),
            (
                "$argon2id$v=19$m=2097152,t=1,p=4$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                UnusableHash::Expensive,
            ),
            (
                "$argon2id$v=19$m=65536,t=17,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                UnusableHash::Expensive,
            ),
            (
                "$argon2id$v=19$m=65536,t=4294967295,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                UnusableHash::Expensive,
            ),
            (
                "$argon2id$v=19$m=65536,t=2,p=1,keyid=aaaa$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                UnusableHash::Keyed,
            ),
        ] {
            assert_eq!(text.parse::<StoredHash>().unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn a_dummy_hash_has_the_requested_cost() {
        for (text, cost) in [
            ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "$2a$05$"),
            (
                "$argon2i$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA",
                "$argon2i$v=19$m=65536,t=2,p=1$",
            ),
            (
                "$argon2i$m=65536,t=2,p=1$c29tZXNhbHQ$9sTbSlTio3Biev89thdrlKKiCaYsjjYVJxGAL3swxpQ",
                "$argon2i$m=65536,t=2,p=1$",
            ),
        ] {
            assert_eq!(hash(text).cost(), cost);
            assert_eq!(StoredHash::dummy(cost).unwrap().cost(), cost);
        }
        let todays = StoredHash::hash(&password("x")).unwrap();
        let dummy = StoredHash::dummy(todays.cost()).unwrap();
        assert!(dummy.cost() == todays.cost() && !dummy.is_outdated());
        assert!(StoredHash::dummy("$9$").is_none());
    }

    #[test]
    fn debug_output_hides_passwords_and_hashes() {
        let made = StoredHash::hash(&password("x")).unwrap();
        assert_eq!(format!("{:?} {made:?}", password("x")), "[secret] [secret]");
    }
}
