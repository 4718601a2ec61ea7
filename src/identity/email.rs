//! The canonical form of an e-mail address: the one that is stored, compared, counted and mailed
//! to.

use std::fmt;

use unicode_normalization::UnicodeNormalization;

/// An address in canonical form: without surrounding space, in compatibility form (NFKC) and lower
/// case, its domain in ASCII (RFC 5891).
///
/// Writing an address in another way thus yields neither a second account nor a fresh limit. Mail
/// servers may distinguish upper and lower case before the `@` (RFC 5321 §2.4), but none in common
/// use does.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Email(String);

/// The text is not an address that mail can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid e-mail address; expected one such as ann@example.com, of at most 254 bytes")]
pub struct NoEmail;

impl Email {
    /// Parses an address in any spelling.
    ///
    /// # Errors
    /// The text is not a valid address, or is longer than 254 bytes.
    pub fn parse(written: &str) -> Result<Self, NoEmail> {
        if written.len() > 2 * LONGEST {
            return Err(NoEmail);
        }
        let folded: String =
            written.trim().nfkc().collect::<String>().to_lowercase().nfkc().collect();
        let (local, domain) = folded.rsplit_once('@').ok_or(NoEmail)?;
        let domain = idna::domain_to_ascii_strict(domain).map_err(|_| NoEmail)?;
        let is_domain = domain.contains('.') || domain == "localhost";
        if local.is_empty()
            || local.len() > LONGEST_LOCAL
            || !local.chars().all(may_stand_in_local)
            || domain.ends_with('.')
            || !is_domain
        {
            return Err(NoEmail);
        }
        if local.starts_with('.') || local.ends_with('.') || local.contains("..") {
            return Err(NoEmail);
        }
        let whole = format!("{local}@{domain}");
        if whole.len() > LONGEST { Err(NoEmail) } else { Ok(Self(whole)) }
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// RFC 5322's dot-atom with letters beyond ASCII (RFC 6532). Excludes whatever needs quotes, breaks
/// a line or is invisible.
fn may_stand_in_local(letter: char) -> bool {
    letter.is_alphanumeric() || ".!#$%&'*+-/=?^_`{|}~".contains(letter)
}

/// The longest address in bytes (RFC 5321 §4.5.3.1.3, less the brackets).
const LONGEST: usize = 254;

/// The longest local part in bytes (RFC 5321 §4.5.3.1.1).
const LONGEST_LOCAL: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_address_has_one_canonical_form() {
        for written in [
            "ann@example.com",
            " ANN@Example.COM\n",
            "Ann@EXAMPLE.com",
            "ａｎｎ@example.com",
            "ann＠example.com",
            "ann@ｅxample。com",
        ] {
            assert_eq!(Email::parse(written).unwrap().as_str(), "ann@example.com", "{written}");
        }
        assert_eq!(
            Email::parse("jörg@bücher.example").unwrap().as_str(),
            "jörg@xn--bcher-kva.example"
        );
        assert_eq!(
            Email::parse("jo\u{308}rg@BÜCHER.example"),
            Email::parse("jörg@xn--bcher-kva.example")
        );
        assert_eq!(Email::parse("a.b+tag@localhost").unwrap().as_str(), "a.b+tag@localhost");
        // Canonicalizing twice gives the same result as once.
        for written in ["İ@example.com", "ǅ@example.com", "ﬀ@example.com", "ß@example.com"] {
            let once = Email::parse(written).map(|email| email.as_str().to_owned());
            assert_eq!(
                once,
                once.clone()
                    .and_then(|once| Email::parse(&once).map(|email| email.as_str().to_owned())),
                "{written}"
            );
        }
    }

    #[test]
    fn invalid_addresses_are_rejected() {
        let long = format!("{}@example.com", "a".repeat(65));
        let longer = format!("a@{}.com", "b.".repeat(200));
        for written in [
            "",
            "@",
            "ann",
            "ann@",
            "@example.com",
            "ann@example",
            "ann@example.com.",
            "a b@example.com",
            "ann@exam ple.com",
            "ann@example.com\r\nBcc: x@y.example",
            "ann\0@example.com",
            "\"ann\"@example.com",
            "a@b@example.com",
            ".ann@example.com",
            "a..b@example.com",
            "ann@-example.com",
            "ann@[127.0.0.1]",
            "ann@exa_mple.com",
            "a\u{200b}nn@example.com",
            "<ann@example.com>",
            "ann,bob@example.com",
            &long,
            &longer,
        ] {
            assert_eq!(Email::parse(written), Err(NoEmail), "{written:?}");
        }
    }
}
