//! Passwords as they are typed, and hashes as they are stored.
//!
//! What is stored anew is argon2id (RFC 9106) in a PHC string, of the password's compatibility form
//! (NFKC, as NIST SP 800-63B asks): `é` is one password whether a keyboard sends it as one
//! character or two, and full-width letters are the plain ones. Hashes that were imported were made
//! of whatever bytes came then, so a password is also tried as it was sent, where the two differ.

use std::fmt;
use std::str::FromStr;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};
use zeroize::Zeroizing;

/// A password as somebody sent it. Leaves no copy behind, and is never shown.
#[derive(Clone)]
pub struct Password {
    sent: Zeroizing<String>,
    /// Its compatibility form, where that is another text.
    folded: Option<Zeroizing<String>>,
}

impl Password {
    /// The password. One of more than [`LONGEST_PASSWORD`] bytes can be neither stored nor right.
    pub fn new(sent: String) -> Self {
        let sent = Zeroizing::new(sent);
        let is_folded =
            sent.len() > LONGEST_PASSWORD || is_nfkc_quick(sent.chars()) == IsNormalized::Yes;
        let folded = (!is_folded).then(|| {
            // Room for the character that grows most: no copy is left where the text was before it
            // grew.
            let mut folded = Zeroizing::new(String::with_capacity(sent.len() * MOST_GROWTH));
            folded.extend(sent.nfkc());
            folded
        });
        Self { folded: folded.filter(|folded| **folded != *sent), sent }
    }

    /// Whether it is too long to be looked at.
    pub fn is_too_long(&self) -> bool {
        self.sent.len() > LONGEST_PASSWORD
    }

    /// The form that is judged and hashed.
    pub fn folded(&self) -> &str {
        self.folded.as_ref().unwrap_or(&self.sent)
    }

    /// Every form that a stored hash may be of, the likely one first.
    fn forms(&self) -> impl Iterator<Item = &str> {
        self.folded.iter().map(|folded| folded.as_str()).chain([self.sent.as_str()])
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A hash that a password can be held against, at a bounded cost.
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

/// Why a text cannot serve as the hash of a password. `Display` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableHash {
    /// Another scheme, or no hash at all.
    #[error(
        "this is no hash that can be read: bcrypt (`$2a$`, `$2b$`, `$2y$`) and argon2 (`$argon2id$`, `$argon2i$`, `$argon2d$`) can"
    )]
    Unknown,
    /// It begins like one.
    #[error("this is no whole {0} hash; was it cut, or changed by a spreadsheet?")]
    Broken(&'static str),
    /// Too expensive to be held against at each login.
    #[error(
        "this hash takes too much at each login: bcrypt's cost may be at most {LARGEST_BCRYPT_COST}, argon2's `m` at most {LARGEST_MEMORY} (KiB), `m` times `t` at most {LARGEST_WORK} and `p` at most {MOST_LANES}; import this account with an empty `password_hash`, and let its owner reset the password"
    )]
    Expensive,
    /// Argon2 with a key or data of which nothing is known here.
    #[error("this argon2 hash needs a secret or data (`keyid`, `data`) that cannot be imported")]
    Keyed,
}

impl StoredHash {
    /// Hashes a password at today's cost. Takes tens of milliseconds: for threads that may, see
    /// [`Hasher`](super::hasher::Hasher).
    ///
    /// # Errors
    /// [`HashingFailed`]
    pub fn hash(password: &Password) -> Result<Self, HashingFailed> {
        let hash: PasswordHash =
            todays().hash_password(password.folded().as_bytes()).map_err(|_| HashingFailed)?;
        Ok(Self { text: hash.to_string(), scheme: Scheme::Argon2 })
    }

    /// Whether it is the hash of this password. As slow as [`StoredHash::hash`], or slower where it
    /// was imported.
    pub fn matches(&self, password: &Password) -> bool {
        if password.is_too_long() {
            return false;
        }
        match self.scheme {
            Scheme::Argon2 => PasswordHash::new(&self.text).is_ok_and(|mut hash| {
                // Absent, it is the first version's: the crate would take it for today's.
                hash.version.get_or_insert(Version::V0x10.into());
                password
                    .forms()
                    .any(|form| Argon2::default().verify_password(form.as_bytes(), &hash).is_ok())
            }),
            // It reads no more than 72 bytes, as whatever made the hash did.
            Scheme::Bcrypt => {
                password.forms().any(|form| bcrypt::verify(form, &self.text).unwrap_or(false))
            }
        }
    }

    /// Whether today's hashes are made in another way: the next one who proves to know the password
    /// is given a new hash.
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

    /// What it begins with, up to the salt: hashes that begin alike take alike long.
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

    /// A hash of no password, that takes as long as those of this `cost`. `None`: there are none
    /// of that cost.
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

/// The system has no memory for a hash, or no random numbers for its salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a password cannot be hashed: the system has no memory or no random numbers")]
pub struct HashingFailed;

/// Argon2id with 19 MiB, two passes and one lane: the crate's default, and OWASP's first
/// recommendation.
fn todays() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default())
}

/// Bytes of a password. Enough for a sentence in any script; what is longer is no password.
pub const LONGEST_PASSWORD: usize = 1024;

/// How many times as many bytes the compatibility form of a character has at most (U+FDFA).
const MOST_GROWTH: usize = 11;

/// The cheapest that bcrypt has.
const SMALLEST_BCRYPT_COST: u32 = 4;

/// About two seconds at each login, until it is renewed.
const LARGEST_BCRYPT_COST: u32 = 15;

/// 256 MiB for each hashing thread.
const LARGEST_MEMORY: u32 = 256 * 1024;

/// Memory in KiB times passes: about as slow as [`LARGEST_BCRYPT_COST`].
const LARGEST_WORK: u64 = 1024 * 1024;

/// Lanes are computed one after the other.
const MOST_LANES: u32 = 16;

/// A shorter output could be guessed instead of the password.
const SHORTEST_OUTPUT: usize = 16;

/// Salt and output of an argon2 hash, made of random numbers.
const DUMMY_ARGON2: &str = "5fQ1mCzMVQbDhVvBPlv2SA$vyJS3kbD2nCLTpHqqQYCqQQtcPIoZLFoTMEYHcJtOYo";

/// Salt and output of a bcrypt hash, made of random numbers.
const DUMMY_BCRYPT: &str = "Q3SVe0OnlyAStandIn77ueHq1lS1vQ4S2yQfK8rXb0Nn7mVj5cWdK";

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    /// The password is `hunter22` unless another is named. Made by htpasswd -B, Python's bcrypt,
    /// and argon2 of its authors.
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
        // What was imported may be of another form: the bytes as they came then.
        let decomposed = "passe\u{301}word";
        let imported = bcrypt::hash(decomposed, 4).unwrap();
        assert!(hash(&imported).matches(&password(decomposed)));
        assert!(!hash(&imported).matches(&password("pass\u{e9}word")));
        let grown = password(&"\u{fdfa}".repeat(300));
        assert_eq!(grown.folded().len(), 300 * 3 * MOST_GROWTH);
    }

    #[test]
    fn imported_hashes_are_held_against_and_outdated() {
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
        // 72 bytes are all that bcrypt has ever read.
        let long = bcrypt::hash("a".repeat(80), 4).unwrap();
        assert!(hash(&long).matches(&password(&"a".repeat(72))));
    }

    #[test]
    fn what_is_no_hash_or_too_dear_is_told() {
        for (text, told) in [
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
            assert_eq!(text.parse::<StoredHash>().unwrap_err(), told, "{text}");
        }
    }

    #[test]
    fn a_stand_in_has_the_price_of_what_it_stands_for() {
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
    fn neither_is_ever_shown() {
        let made = StoredHash::hash(&password("x")).unwrap();
        assert_eq!(format!("{:?} {made:?}", password("x")), "[secret] [secret]");
    }
}
