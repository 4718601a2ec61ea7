//! Reads the metadata of an issuer (OpenID Connect Discovery §4, RFC 8414 §3).

use serde_json::{Map, Value};

use crate::outbound::{FetchError, Outbound, Url, UrlError};
use crate::token::{Excerpt, JsonFault, parse_object};

/// An issuer's metadata. It names the issuer that it was asked for.
#[derive(Debug, Clone)]
pub struct Metadata {
    members: Map<String, Value>,
    url: Url,
}

/// Why an issuer's metadata is not available.
#[derive(Debug, thiserror::Error)]
pub enum NoMetadata {
    /// It could not be fetched.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// It was fetched and is not valid.
    #[error("the metadata at {url} cannot be used: {fault}")]
    Unusable {
        /// Where it was found.
        url: Url,
        /// What is wrong with it.
        fault: MetadataFault,
    },
}

/// What is wrong with a metadata document (OpenID Connect Discovery §4.3, RFC 8414 §3.3).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataFault {
    /// A web page.
    #[error("the document is HTML, not JSON: the address is that of a web page")]
    Html,
    /// Not one JSON object.
    #[error("it {0}")]
    Json(JsonFault),
    /// A member is missing or not a string.
    #[error("it has no string `{0}`")]
    Missing(&'static str),
    /// It is that of another issuer.
    #[error("its issuer is {0}, which is not exactly the configured one")]
    Issuer(Excerpt),
    /// A member is not a URL that can be used.
    #[error("its {0} cannot be used: {1}")]
    Endpoint(&'static str, UrlError),
    /// A member is a URL without TLS.
    #[error("its {0} is http://, so anyone on the network path could answer in its place")]
    Cleartext(&'static str),
}

impl Metadata {
    /// Fetches the metadata of `issuer`, which is also `written`: at OpenID Connect's location, or
    /// if there is none, at RFC 8414's.
    ///
    /// # Errors
    /// [`NoMetadata`] if there is none, or if it does not name exactly this issuer.
    pub async fn discover(
        outbound: &Outbound,
        issuer: &Url,
        written: &str,
    ) -> Result<Self, NoMetadata> {
        let mut places = places(issuer).into_iter();
        let mut place = places.next().unwrap_or_else(|| issuer.clone());
        loop {
            match (outbound.get(&place).await, places.next()) {
                (Err(error), Some(next)) if error.is_absent() => place = next,
                (Err(error), _) => return Err(error.into()),
                (Ok(document), _) => {
                    return match read(&document, written) {
                        Ok(members) => Ok(Self { members, url: place }),
                        Err(fault) => Err(NoMetadata::Unusable { url: place, fault }),
                    };
                }
            }
        }
    }

    /// Where it was found.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Whether a member is present.
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Whether a member is `true`.
    pub fn is_true(&self, name: &str) -> bool {
        self.members.get(name) == Some(&Value::Bool(true))
    }

    /// A member that is a URL with TLS. Without it only on this machine, for an issuer that is
    /// without it too, or with `allow_http`.
    ///
    /// # Errors
    /// A [`MetadataFault`] about this member.
    pub fn endpoint(
        &self,
        name: &'static str,
        issuer_is_https: bool,
        allow_http: bool,
    ) -> Result<Url, MetadataFault> {
        endpoint(&self.members, name, issuer_is_https, allow_http)
    }

    /// A member as text.
    ///
    /// # Errors
    /// [`MetadataFault::Missing`] if it is not a string.
    pub fn text(&self, name: &'static str) -> Result<&str, MetadataFault> {
        text(&self.members, name)
    }
}

/// The possible locations of an issuer's metadata: OpenID Connect Discovery §4.1 appends, RFC 8414
/// §3.1 inserts. Both drop a trailing slash first.
fn places(issuer: &Url) -> Vec<Url> {
    let path = issuer.path().strip_suffix('/').unwrap_or(issuer.path());
    [
        format!("{path}/.well-known/openid-configuration"),
        format!("/.well-known/oauth-authorization-server{path}"),
    ]
    .iter()
    .filter_map(|path| issuer.with_path(path))
    .collect()
}

/// A metadata document, which must be `issuer`'s own.
fn read(document: &[u8], issuer: &str) -> Result<Map<String, Value>, MetadataFault> {
    let document = document.trim_ascii();
    if document.starts_with(b"<") {
        return Err(MetadataFault::Html);
    }
    let members = parse_object(document).map_err(MetadataFault::Json)?;
    let said = text(&members, "issuer")?;
    if said != issuer {
        return Err(MetadataFault::Issuer(Excerpt::new(said)));
    }
    Ok(members)
}

fn text<'m>(members: &'m Map<String, Value>, name: &'static str) -> Result<&'m str, MetadataFault> {
    members.get(name).and_then(Value::as_str).ok_or(MetadataFault::Missing(name))
}

fn endpoint(
    members: &Map<String, Value>,
    name: &'static str,
    issuer_is_https: bool,
    allow_http: bool,
) -> Result<Url, MetadataFault> {
    let url =
        Url::parse(text(members, name)?).map_err(|error| MetadataFault::Endpoint(name, error))?;
    if !url.is_https() && !allow_http && (issuer_is_https || !url.is_loopback()) {
        return Err(MetadataFault::Cleartext(name));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    /// The examples of OpenID Connect Discovery §4.1 and RFC 8414 §3.1.
    #[test]
    fn metadata_urls_follow_the_specifications() {
        for (issuer, expected) in [
            (
                "https://example.com",
                ["/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"],
            ),
            (
                "https://example.com/",
                ["/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"],
            ),
            (
                "https://example.com/issuer1",
                [
                    "/issuer1/.well-known/openid-configuration",
                    "/.well-known/oauth-authorization-server/issuer1",
                ],
            ),
            (
                "https://example.com/a/b/",
                [
                    "/a/b/.well-known/openid-configuration",
                    "/.well-known/oauth-authorization-server/a/b",
                ],
            ),
        ] {
            let places: Vec<String> =
                places(&url(issuer)).iter().map(ToString::to_string).collect();
            assert_eq!(
                places,
                expected.map(|path| format!("https://example.com{path}")),
                "{issuer}"
            );
        }
    }

    #[test]
    fn metadata_must_name_its_own_issuer() {
        let jwks_uri = |document: &str, issuer: &str, is_https: bool, allow_http: bool| {
            endpoint(&super::read(document.as_bytes(), issuer)?, "jwks_uri", is_https, allow_http)
        };
        let read = |document: &str| jwks_uri(document, "https://a.test/x", true, false);
        assert_eq!(
            read(r#"{"issuer":"https://a.test/x","jwks_uri":"https://b.test/keys"}"#),
            Ok(url("https://b.test/keys"))
        );
        for (document, fault) in [
            ("<!doctype html>", MetadataFault::Html),
            ("", MetadataFault::Json(JsonFault::Syntax)),
            ("[]", MetadataFault::Json(JsonFault::NotAnObject)),
            (
                r#"{"issuer":"a","issuer":"b"}"#,
                MetadataFault::Json(JsonFault::Duplicate(Excerpt::new("issuer"))),
            ),
            (r#"{"jwks_uri":"https://a.test/"}"#, MetadataFault::Missing("issuer")),
            (r#"{"issuer":1,"jwks_uri":"https://a.test/"}"#, MetadataFault::Missing("issuer")),
            (r#"{"issuer":"https://a.test/x"}"#, MetadataFault::Missing("jwks_uri")),
            (
                r#"{"issuer":"https://a.test/x/","jwks_uri":"https://a.test/"}"#,
                MetadataFault::Issuer(Excerpt::new("https://a.test/x/")),
            ),
            (
                r#"{"issuer":"https://A.test/x","jwks_uri":"https://a.test/"}"#,
                MetadataFault::Issuer(Excerpt::new("https://A.test/x")),
            ),
            (
                r#"{"issuer":"https://a.test/x","jwks_uri":"file:///keys"}"#,
                MetadataFault::Endpoint("jwks_uri", UrlError::Scheme),
            ),
            (
                r#"{"issuer":"https://a.test/x","jwks_uri":"http://a.test/"}"#,
                MetadataFault::Cleartext("jwks_uri"),
            ),
            (
                r#"{"issuer":"https://a.test/x","jwks_uri":"http://127.0.0.1/"}"#,
                MetadataFault::Cleartext("jwks_uri"),
            ),
        ] {
            assert_eq!(read(document), Err(fault), "{document}");
        }
        let local = r#"{"issuer":"http://localhost/x","jwks_uri":"http://localhost/keys"}"#;
        assert!(jwks_uri(local, "http://localhost/x", false, false).is_ok());
        let far = r#"{"issuer":"http://idp.test/x","jwks_uri":"http://idp.test/keys"}"#;
        assert_eq!(
            jwks_uri(far, "http://idp.test/x", false, false),
            Err(MetadataFault::Cleartext("jwks_uri"))
        );
        assert!(jwks_uri(far, "http://idp.test/x", false, true).is_ok());
    }
}
