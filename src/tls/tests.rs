use std::io;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ProtocolVersion, ServerConnection};

use super::*;

struct Pair {
    certificate: String,
    key: String,
}

fn pair() -> Pair {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

fn refusal(certificate: &str, key: &str) -> TlsError {
    CertifiedPair::new(certificate.as_bytes(), key.as_bytes()).unwrap_err()
}

fn server_config(certificate: &[u8], key: &[u8]) -> Result<ServerConfig, TlsError> {
    super::server_config(&CertifiedPair::new(certificate, key)?, &[], None)
}

fn client_config(ca: Option<&[u8]>) -> Result<ClientConfig, TlsError> {
    super::client_config(ca, None)
}

/// Performs a handshake in memory, and returns what the two sides agreed on.
fn handshake(
    client: ClientConfig,
    server: ServerConfig,
) -> Result<(ProtocolVersion, Vec<u8>), rustls::Error> {
    let mut client =
        ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut io::Cursor::new(wire)).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut io::Cursor::new(wire)).unwrap();
        client.process_new_packets()?;
    }
    Ok((client.protocol_version().unwrap(), client.alpn_protocol().unwrap().to_vec()))
}

#[test]
fn the_handshake_works_and_unknown_certificates_are_rejected() {
    let pair = pair();
    let server = || server_config(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
    let client = || client_config(Some(pair.certificate.as_bytes())).unwrap();
    assert_eq!(
        handshake(client(), server()).unwrap(),
        (ProtocolVersion::TLSv1_3, b"http/1.1".to_vec())
    );
    let mut modern = client();
    modern.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    assert_eq!(handshake(modern, server()).unwrap().1, b"h2");
    let mut old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .with_root_certificates(given_roots(pair.certificate.as_bytes()).unwrap())
        .with_no_client_auth();
    old.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert_eq!(handshake(old, server()).unwrap().0, ProtocolVersion::TLSv1_2);
    let stranger = client_config(Some(self::pair().certificate.as_bytes())).unwrap();
    assert!(matches!(handshake(stranger, server()), Err(rustls::Error::InvalidCertificate(_))));
    assert_eq!(server().max_early_data_size, 0);
}

#[test]
fn errors_are_distinguished() {
    let (a, b) = (pair(), pair());
    assert!(matches!(refusal("", &a.key), TlsError::NoCertificate));
    assert!(matches!(refusal("garbage\0\u{fffd}", &a.key), TlsError::NoCertificate));
    assert!(matches!(refusal(&a.key, &a.certificate), TlsError::CertificateIsKey));
    assert!(matches!(refusal(&a.certificate, ""), TlsError::NoKey));
    assert!(matches!(refusal(&a.certificate, &a.certificate), TlsError::KeyIsCertificate));
    assert!(matches!(refusal(&a.certificate, &b.key), TlsError::KeyMismatch));
    assert!(matches!(
        refusal(&(b.certificate.clone() + &a.certificate), &a.key),
        TlsError::OwnCertificateNotFirst
    ));
    assert!(matches!(refusal(&a.certificate[..200], &a.key), TlsError::CertificateDamaged(_)));
    assert!(matches!(refusal(&a.certificate, &a.key[..100]), TlsError::KeyDamaged(_)));
    let nonsense = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    assert!(matches!(refusal(&nonsense("CERTIFICATE"), &a.key), TlsError::CertificateUnusable(_)));
    assert!(matches!(refusal(&a.certificate, &nonsense("PRIVATE KEY")), TlsError::KeyUnusable(_)));
    assert!(matches!(
        refusal(&a.certificate, &nonsense("ENCRYPTED PRIVATE KEY")),
        TlsError::KeyEncrypted
    ));
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    assert!(matches!(refusal(&a.certificate, old), TlsError::KeyEncrypted));
}

#[test]
fn a_ca_file_is_accepted_whole_or_not_at_all() {
    let good = pair().certificate;
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(client_config(Some(good.repeat(2).as_bytes())).is_ok());
    let error = client_config(Some((good + bad).as_bytes())).unwrap_err();
    assert!(matches!(error, TlsError::AnchorUnusable { number: 2, .. }));
    assert!(matches!(client_config(Some(b"")), Err(TlsError::NoCertificate)));
    assert!(matches!(client_config(Some(pair().key.as_bytes())), Err(TlsError::CertificateIsKey)));
}

#[test]
fn system_roots_are_loaded_or_reported_missing() {
    match client_config(None) {
        Ok(config) => assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]),
        Err(error) => assert!(error.to_string().contains("tls = { ca = \"ca.pem\" }"), "{error}"),
    }
}

#[test]
fn an_expired_certificate_is_still_served() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = date_time_ymd(2020, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    assert!(server_config(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).is_ok());
}
