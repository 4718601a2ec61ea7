//! `[server.tls]`, and routes whose callers show a client certificate.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use toml::Spanned;

use super::Compiler;
use super::issuers::Inline;
use crate::config::Problem;
use crate::config::file::{Issuer, Route as Written, ServerTls, Text};
use crate::config::value::{self, SecretRef};
use crate::gateway::guard::{Access, TokenPlaces};
use crate::gateway::snapshot::{ClientAuthority, ServedCertificate, Tls, TlsSource};
use crate::tls::{self, CertifiedPair, TlsError};
use crate::token::{CERTIFICATE, Issuers};

/// How long before it expires a certificate is worth a warning.
const RENEWAL_DUE: Duration = Duration::from_hours(30 * 24);

/// A certificate and its key as they are written.
pub(super) struct WrittenPair<'a> {
    pub(super) certificate: &'a Text,
    pub(super) private_key: &'a Spanned<SecretRef>,
}

impl<'a> Compiler<'a> {
    pub(super) fn server_tls(&mut self) -> Option<Arc<Tls>> {
        let section = self.file.server.tls.as_ref()?;
        let written = section.get_ref();
        let pairs = self.written_pairs(section);
        let clients = self.client_authority(written);
        let mut sources = Vec::new();
        for pair in &pairs {
            let certificate = self.read_file(
                pair.certificate,
                "a PEM file with the certificate, then its intermediates",
            );
            let key = self.read_secret(pair.private_key, Inline::Never);
            sources.push(certificate.zip(key));
        }
        let sources: Vec<_> = sources.into_iter().collect::<Option<_>>()?;
        let source = TlsSource {
            pairs: sources
                .iter()
                .map(|(certificate, key)| (certificate.clone(), sha256(key.expose())))
                .collect(),
            clients: clients?,
        };
        if let Some(kept) = self.previous.and_then(|previous| previous.tls.as_ref())
            && kept.source == source
        {
            // Unchanged certificates keep their session tickets.
            self.warn_about_expiry(&pairs, &kept.certificates);
            return Some(Arc::clone(kept));
        }
        let mut ready = Vec::new();
        for ((certificate, key), written) in sources.iter().zip(&pairs) {
            match CertifiedPair::new(certificate, key.expose()) {
                Ok(pair) => ready.push(pair),
                Err(error) => self.tls_error(&error, written),
            }
        }
        let (first, others) = ready.split_first().filter(|_| ready.len() == pairs.len())?;
        let verifier = match &source.clients {
            None => None,
            Some(clients) => match tls::client_verifier(&clients.pem, clients.required) {
                Ok(verifier) => Some(verifier),
                Err(error) => {
                    let span = written.client_ca.as_ref().map_or(section.span(), Spanned::span);
                    self.error(Problem::error(span, error.to_string()));
                    return None;
                }
            },
        };
        let certificates: Vec<_> = ready.iter().map(ServedCertificate::new).collect();
        self.warn_about_expiry(&pairs, &certificates);
        match tls::server_config(first, others, verifier) {
            Ok(config) => Some(Arc::new(Tls { config: Arc::new(config), source, certificates })),
            Err(error) => {
                self.tls_error(&error, &pairs[0]);
                None
            }
        }
    }

    /// The pairs in order: `certificate` with `private_key`, then `certificates`.
    fn written_pairs(&mut self, section: &'a Spanned<ServerTls>) -> Vec<WrittenPair<'a>> {
        let written = section.get_ref();
        let mut pairs = Vec::new();
        match (&written.certificate, &written.private_key) {
            (Some(certificate), Some(private_key)) => {
                pairs.push(WrittenPair { certificate, private_key });
            }
            (Some(alone), None) => self.error(
                Problem::error(alone.span(), "the certificate has no `private_key`")
                    .help("add `private_key = { file = \"tls.key\" }`"),
            ),
            (None, Some(alone)) => self.error(
                Problem::error(alone.span(), "the private key has no `certificate`")
                    .help("add `certificate = \"tls.crt\"`"),
            ),
            (None, None) if written.certificates.is_empty() => {
                let help =
                    "add `certificate = \"tls.crt\"` and `private_key = { file = \"tls.key\" }`";
                self.error(
                    Problem::error(section.span(), "`[server.tls]` has no certificate").help(help),
                );
            }
            (None, None) => {}
        }
        pairs.extend(written.certificates.iter().map(|pair| WrittenPair {
            certificate: &pair.certificate,
            private_key: &pair.private_key,
        }));
        pairs
    }

    /// Who issues the certificates of clients; `Some(None)`: clients are not asked for one.
    #[expect(clippy::option_option, reason = "outer: a problem was found; inner: not configured")]
    fn client_authority(&mut self, written: &ServerTls) -> Option<Option<ClientAuthority>> {
        let words = [("optional", false), ("required", true)];
        let required = match &written.client_certificate {
            None => Some(false),
            Some(text) => self.ok_or_report(value::choice(text, &words)),
        };
        let Some(text) = &written.client_ca else {
            if let Some(text) = &written.client_certificate {
                self.error(
                    Problem::error(text.span(), "no authority of client certificates is named")
                        .help("add `client_ca = \"clients.pem\"`, or remove this"),
                );
            }
            return required.map(|_| None);
        };
        let pem = self.read_file(text, "a PEM file with the authorities of client certificates")?;
        let digest = sha256(&pem);
        Some(Some(ClientAuthority { pem, digest, required: required? }))
    }

    /// Reports a certificate or private key that cannot be used.
    pub(super) fn tls_error(&mut self, error: &TlsError, pair: &WrittenPair<'_>) {
        let span =
            if error.concerns_key() { pair.private_key.span() } else { pair.certificate.span() };
        self.error(Problem::error(span, error.to_string()));
    }

    /// Warns about certificates that have expired or soon will. They are served nevertheless.
    fn warn_about_expiry(&mut self, pairs: &[WrittenPair<'_>], served: &[ServedCertificate]) {
        for (pair, certificate) in pairs.iter().zip(served) {
            let at = certificate.expires_at;
            let date = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at));
            let help = "renew it, and reload";
            let span = pair.certificate.span();
            if at <= self.now {
                self.problems.push(
                    Problem::warning(span, format!("the certificate expired at {date}"))
                        .help(help)
                        .fails_check(),
                );
            } else if at <= self.now + RENEWAL_DUE.as_secs() {
                let days = (at - self.now) / 86_400;
                let message = format!("the certificate expires in {days} days, at {date}");
                self.problems.push(Problem::warning(span, message).help(help));
            }
        }
    }

    /// Accepts client certificates, if clients are asked for one.
    pub(super) fn accept_certificates(&self, issuers: Issuers, tls: Option<&Tls>) -> Issuers {
        let Some(authority) = tls.and_then(Tls::authority) else { return issuers };
        // Streams of a certificate live through a reload that keeps its authority.
        let kept = self.previous.filter(|previous| {
            previous.tls.as_ref().and_then(|tls| tls.authority()) == Some(authority)
        });
        issuers.with_certificates(kept.and_then(|kept| kept.issuers.certificates()).cloned())
    }

    /// Refuses an issuer of tokens whose callers could pass for callers with a certificate.
    pub(super) fn refuse_certificate_issuer(&mut self, name: &Text, written: &Issuer) {
        let tls = self.file.server.tls.as_ref().map(Spanned::get_ref);
        let Some(authority) = tls.and_then(|tls| tls.client_ca.as_ref()) else { return };
        for text in std::iter::once(name).chain(&written.issuer) {
            if *text.get_ref() == *CERTIFICATE {
                let message =
                    format!("`{CERTIFICATE}` is the issuer of callers with a certificate");
                self.error(
                    Problem::error(text.span(), message)
                        .related(authority.span(), "because clients may show one")
                        .help("choose another name"),
                );
            }
        }
    }

    /// Checks a route with `access = "certificate"`.
    pub(super) fn check_certificate_route(&mut self, written: &Written, access: Range<usize>) {
        let tls = self.file.server.tls.as_ref();
        if tls.is_none_or(|tls| tls.get_ref().client_ca.is_none()) {
            self.error(
                Problem::error(access.clone(), "no client can show a certificate")
                    .help("add `client_ca = \"clients.pem\"` to `[server.tls]`"),
            );
        }
        for (span, what) in [
            (written.roles.as_ref().map(Spanned::span), "`roles`"),
            (written.all_roles.as_ref().map(Spanned::span), "`all_roles`"),
            (written.scopes.as_ref().map(Spanned::span), "`scopes`"),
            (written.issuers.as_ref().map(Spanned::span), "`issuers`"),
            (written.token_from.as_ref().map(Spanned::span), "`token_from`"),
            (
                written.external.as_ref().filter(|flag| *flag.get_ref()).map(Spanned::span),
                "`external`",
            ),
        ] {
            let Some(span) = span else { continue };
            let help =
                "remove it; `claims` can require what the certificate says, such as `dns_names`";
            self.error(
                Problem::error(span, format!("{what} is for callers with a token"))
                    .related(access.clone(), "the callers of this route show a certificate")
                    .help(help),
            );
        }
    }
}

/// The places of tokens on a route whose callers show a certificate.
pub(super) fn token_places(
    access: Option<Access>,
    read: Option<TokenPlaces>,
) -> Option<TokenPlaces> {
    match access {
        Some(Access::Certificate) => {
            Some(TokenPlaces { header: false, cookie: false, query: false, basic: false })
        }
        _ => read,
    }
}

/// The SHA-256 of these bytes.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap_or_default()
}
