//! What a certificate says: names, dates, and the digest that identifies it.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// What a certificate says. Whether to believe it is for a verifier to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The URIs among its subject alternative names.
    pub uris: Vec<String>,
    /// The DNS names among them.
    pub dns_names: Vec<String>,
    /// The e-mail addresses among them.
    pub emails: Vec<String>,
    /// The distinguished name of its subject (RFC 4514); may be empty.
    pub subject: String,
    /// The common name in it.
    pub common_name: Option<String>,
    /// Its first second, since 1970.
    pub not_before: u64,
    /// Its last second, since 1970.
    pub not_after: u64,
    /// The SHA-256 digest of the whole certificate (`x5t#S256`, RFC 8705 §3.1).
    pub thumbprint: [u8; 32],
}

impl CertificateFacts {
    /// Reads a certificate in DER. `None`: it is malformed.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut facts = Self {
            subject: distinguished_name(certificate.subject()),
            common_name: certificate.subject().iter_common_name().find_map(text),
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
            thumbprint: digest(&SHA256, der).as_ref().try_into().ok()?,
            ..Self::default()
        };
        let names = certificate.subject_alternative_name().ok()?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => facts.dns_names.push(name.to_ascii_lowercase()),
                GeneralName::RFC822Name(email) => facts.emails.push((*email).to_owned()),
                _ => {}
            }
        }
        Some(facts)
    }

    /// The name by which its holder is known: the first URI, DNS name or e-mail address, otherwise
    /// the subject. May be empty.
    pub fn holder(&self) -> &str {
        let names = [&self.uris, &self.dns_names, &self.emails];
        names.into_iter().find_map(|names| names.first()).unwrap_or(&self.subject)
    }
}

/// Times before 1970 count as 1970.
fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    attribute.as_str().ok().map(str::to_owned)
}

/// Writes a name so that different names are different texts (RFC 4514 §2): the last part first,
/// `CN=client,O=Example`.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let known = SHORT_NAMES.iter().find(|(known, _)| *known == oid);
    if let (Some((_, name)), Ok(value)) = (known, attribute.as_str()) {
        return format!("{name}={}", escaped(value));
    }
    // Its encoding says what it is.
    let mut text = format!("{oid}=#");
    for byte in attribute.as_slice() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The types that RFC 4514 §3 names, and `emailAddress`, which older certificates hold.
const SHORT_NAMES: [(&str, &str); 10] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// RFC 4514 §2.4.
fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (at, char) in value.chars().enumerate() {
        let is_special = matches!(char, '"' | '+' | ',' | ';' | '<' | '>' | '\\')
            || (char == '#' && at == 0)
            || (char == ' ' && (at == 0 || at == last));
        if char.is_ascii_control() {
            let _ = write!(out, "\\{:02x}", u32::from(char));
            continue;
        }
        if is_special {
            out.push('\\');
        }
        out.push(char);
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn facts(change: impl FnOnce(&mut CertificateParams)) -> CertificateFacts {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        CertificateFacts::read(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn the_holder_is_the_first_alternative_name_or_the_subject() {
        let san = |names: Vec<SanType>| {
            facts(|params| {
                params.subject_alt_names = names;
                params.distinguished_name.push(DnType::CommonName, "client");
            })
        };
        let dns = SanType::DnsName("A.example.com".try_into().unwrap());
        let email = SanType::Rfc822Name("a@example.com".try_into().unwrap());
        let uri = SanType::URI("spiffe://example.com/a".try_into().unwrap());
        for (names, holder) in [
            (vec![email.clone(), dns.clone(), uri], "spiffe://example.com/a"),
            (vec![email.clone(), dns], "a.example.com"),
            (vec![SanType::IpAddress([127, 0, 0, 1].into()), email], "a@example.com"),
            (vec![], "CN=client"),
        ] {
            assert_eq!(san(names.clone()).holder(), holder, "{names:?}");
        }
    }

    #[test]
    fn a_subject_is_written_so_that_it_cannot_pass_for_another() {
        let read = facts(|params| {
            params.distinguished_name.push(DnType::CountryName, "DE");
            params.distinguished_name.push(DnType::OrganizationName, "Example, Inc.");
            params.distinguished_name.push(DnType::CommonName, " x,CN=admin\u{7}");
            params.not_before = date_time_ymd(2026, 1, 1);
            params.not_after = date_time_ymd(2027, 1, 1);
        });
        assert_eq!(read.subject, "CN=\\ x\\,CN=admin\\07,O=Example\\, Inc.,C=DE");
        assert_eq!((read.not_before, read.not_after), (1_767_225_600, 1_798_761_600));
        assert_eq!(CertificateFacts::read(b"no certificate"), None);
    }
}
