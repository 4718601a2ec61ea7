//! Creates rustls configurations from PEM files, for both sides.
//!
//! The aws-lc provider is always named explicitly, so nothing depends on which one the process has
//! installed. Early data (0-RTT) stays off because it can be replayed. Errors say how to fix a
//! file, and never contain any of its content.

mod certificate;
mod sni;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, ProducesTickets, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

pub use self::certificate::CertificateFacts;
use self::sni::BySni;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys, OtherError,
    RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion, version,
};

/// A certificate with its private key, and what it says.
#[derive(Debug)]
pub struct CertifiedPair {
    key: Arc<CertifiedKey>,
    facts: CertificateFacts,
}

impl CertifiedPair {
    /// Reads a certificate chain, starting with the own certificate, and its private key (PKCS #8,
    /// PKCS #1 or SEC 1), both as PEM.
    ///
    /// The certificate's dates are not checked: an expired certificate is shown, and the other side
    /// rejects it.
    pub fn new(certificate_pem: &[u8], private_key_pem: &[u8]) -> Result<Self, TlsError> {
        let key = certified_key(certificate_pem, private_key_pem)?;
        let facts = key.cert.first().and_then(|own| CertificateFacts::read(own));
        let facts = facts.ok_or_else(|| {
            let error = rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
            TlsError::CertificateUnusable(error)
        })?;
        Ok(Self { key: Arc::new(key), facts })
    }

    /// What the certificate says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }
}

/// A private key, and the chain of the certificate that it belongs to.
fn certified_key(certificate_pem: &[u8], private_key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate_pem)?;
    let key = private_key(private_key_pem)?;
    let signing_key =
        provider().key_provider.load_private_key(key).map_err(TlsError::KeyUnusable)?;
    let belongs = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], Arc::clone(&signing_key)).keys_match()
    };
    match chain.first().map(belongs) {
        None => return Err(TlsError::NoCertificate),
        // If the public half of a key cannot be determined, assume that it matches, as rustls does.
        Some(Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown))) => {}
        Some(Err(rustls::Error::InconsistentKeys(_)))
            if chain[1..].iter().any(|other| belongs(other).is_ok()) =>
        {
            return Err(TlsError::OwnCertificateNotFirst);
        }
        Some(Err(rustls::Error::InconsistentKeys(_))) => return Err(TlsError::KeyMismatch),
        Some(Err(error)) => return Err(TlsError::CertificateUnusable(error)),
    }
    Ok(CertifiedKey::new(chain, signing_key))
}

/// Verifies certificates of clients, which the certificates in `ca_pem` must have issued. A client
/// without one is rejected if it is `required`.
pub fn client_verifier(
    ca_pem: &[u8],
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(given_roots(ca_pem)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| TlsError::Library(rustls::Error::General(error.to_string())))
}

/// The TLS configuration of a listener: TLS 1.2 and 1.3 with `h2`, `http/1.1` and `http/1.0`. The
/// client's SNI chooses the certificate; `first` is for every other name. With `clients`, clients
/// are asked for a certificate.
pub fn server_config(
    first: &CertifiedPair,
    others: &[CertifiedPair],
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Library)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(Arc::new(BySni::new(first, others)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    config.ticketer = ticketer()?;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The TLS configuration for connections to upstreams and key servers: TLS 1.2 and 1.3 with
/// `http/1.1`. It trusts exactly the certificates in `ca_pem`; without it, those that the system
/// trusts, which are read from disk each time. `own` is the certificate and private key, both as
/// PEM, that are shown to servers that ask for them.
pub fn client_config(
    ca_pem: Option<&[u8]>,
    own: Option<(&[u8], &[u8])>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Library)?;
    let builder = match ca_pem {
        None => builder.with_root_certificates(system_roots()?),
        Some(pem) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(GivenCertificates::new(pem)?)),
    };
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let own = SingleCertAndKey::from(certified_key(certificate, key)?);
            builder.with_client_cert_resolver(Arc::new(own))
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.enable_early_data = false;
    Ok(config)
}

/// Trusts the given certificates: what they have issued, and a server that presents one of them
/// itself.
///
/// A self-signed certificate made with `openssl req -x509` is a CA certificate, which rustls
/// rejects as a server certificate. Naming it in `ca` means that exactly this certificate is
/// trusted.
#[derive(Debug)]
struct GivenCertificates {
    certificates: Vec<CertificateDer<'static>>,
    issued: Arc<WebPkiServerVerifier>,
}

impl GivenCertificates {
    fn new(pem: &[u8]) -> Result<Self, TlsError> {
        let issued =
            WebPkiServerVerifier::builder_with_provider(Arc::new(given_roots(pem)?), provider())
                .build()
                .map_err(|error| TlsError::Library(rustls::Error::General(error.to_string())))?;
        Ok(Self { certificates: certificates(pem)?, issued })
    }

    /// Whether the only objection to a given certificate is that it is a CA certificate. Its dates
    /// are checked before that.
    fn is_itself(&self, shown: &CertificateDer<'_>, error: &rustls::Error) -> bool {
        let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error
        else {
            return false;
        };
        cause.to_string() == "CaUsedAsEndEntity" && self.certificates.contains(shown)
    }
}

impl ServerCertVerifier for GivenCertificates {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.issued.verify_server_cert(shown, intermediates, server_name, ocsp_response, now)
        {
            Err(error) if self.is_itself(shown, &error) => {
                verify_server_name(&ParsedCertificate::try_from(shown)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls12_signature(message, shown, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls13_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

/// Why files do not make a valid TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file contains no certificate.
    #[error(
        "the file contains no certificate: it must have a `-----BEGIN CERTIFICATE-----` block (PEM; convert DER)"
    )]
    NoCertificate,
    /// The certificate file contains a private key instead.
    #[error("expected a certificate, found a private key: are the two files swapped?")]
    CertificateIsKey,
    /// A certificate block is truncated or not base64.
    #[error("the certificate file is damaged")]
    CertificateDamaged(#[source] pem::Error),
    /// rustls cannot use a certificate in the file.
    #[error("a certificate in the file cannot be used")]
    CertificateUnusable(#[source] rustls::Error),
    /// The private key belongs to another certificate of the chain.
    #[error(
        "the private key belongs to a certificate that is not the first in the file: put the server's own first, and its issuers after it"
    )]
    OwnCertificateNotFirst,
    /// The key file contains no private key.
    #[error(
        "the file contains no private key: it must have a `-----BEGIN PRIVATE KEY-----` block (PEM; convert DER)"
    )]
    NoKey,
    /// The key file contains a certificate instead.
    #[error("expected a private key, found a certificate: are the two files swapped?")]
    KeyIsCertificate,
    /// The private key is protected by a passphrase.
    #[error(
        "the private key is encrypted, and the gateway cannot ask for its passphrase: decrypt it with `openssl pkey -in FILE -out NEW_FILE`"
    )]
    KeyEncrypted,
    /// The private key block is truncated or not base64.
    #[error("the private key file is damaged")]
    KeyDamaged(#[source] pem::Error),
    /// rustls cannot use a private key of this kind or length.
    #[error(
        "the private key cannot be used: it must be RSA of at least 2048 bits, ECDSA on P-256, P-384 or P-521, or Ed25519"
    )]
    KeyUnusable(#[source] rustls::Error),
    /// The private key and the certificate are not a pair.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// A CA certificate cannot be used as a trust anchor.
    #[error("certificate number {number} of the CA file cannot be used as a trust anchor")]
    AnchorUnusable {
        /// The number of the certificate, starting with 1.
        number: usize,
        /// The error of rustls.
        #[source]
        source: rustls::Error,
    },
    /// The system has no trusted certificates, as in an image without `ca-certificates`.
    #[error(
        "the system has no trusted certificates: install `ca-certificates`, or name trusted ones with `tls = {{ ca = \"ca.pem\" }}`"
    )]
    NoSystemRoots(#[source] Option<rustls_native_certs::Error>),
    /// The TLS library fails for a reason that no file can fix.
    #[error("TLS cannot be set up")]
    Library(#[source] rustls::Error),
}

impl TlsError {
    /// Whether the problem is in the private key's file rather than the certificate's.
    pub const fn concerns_key(&self) -> bool {
        matches!(
            self,
            Self::NoKey
                | Self::KeyIsCertificate
                | Self::KeyEncrypted
                | Self::KeyDamaged(_)
                | Self::KeyUnusable(_)
                | Self::KeyMismatch
        )
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(TlsError::CertificateDamaged)?;
    match chain.is_empty() {
        false => Ok(chain),
        true if is_encrypted(pem) || PrivateKeyDer::from_pem_slice(pem).is_ok() => {
            Err(TlsError::CertificateIsKey)
        }
        true => Err(TlsError::NoCertificate),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    if is_encrypted(pem) {
        return Err(TlsError::KeyEncrypted);
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if CertificateDer::from_pem_slice(pem).is_ok() => {
            TlsError::KeyIsCertificate
        }
        pem::Error::NoItemsFound => TlsError::NoKey,
        error => TlsError::KeyDamaged(error),
    })
}

/// PKCS #8 (RFC 7468 §11) has its own label; the older form has a header (RFC 1421 §4.6.1.1).
fn is_encrypted(pem: &[u8]) -> bool {
    let contains = |needle: &[u8]| pem.windows(needle.len()).any(|window| window == needle);
    contains(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(b"Proc-Type: 4,ENCRYPTED")
}

fn given_roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(pem)?.into_iter().enumerate() {
        roots
            .add(certificate)
            .map_err(|source| TlsError::AnchorUnusable { number: index + 1, source })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A system's store may contain certificates that rustls cannot read: use the rest.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        Err(TlsError::NoSystemRoots(found.errors.into_iter().next()))
    } else {
        Ok(roots)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Tickets let a client resume a session without memory on the server. Their keys change every few
/// hours.
fn ticketer() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    aws_lc_rs::Ticketer::new().map_err(TlsError::Library)
}

const VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

#[cfg(test)]
mod tests;
