//! The certificate of a client, which the handshake has verified, and the caller that it proves.

use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::token_memo::TokenMemo;
use crate::tls::CertificateFacts;
use crate::token::{CERTIFICATE, InvalidToken, Issuers, Remembered};

/// A certificate that a client has shown, and that its authority has issued. One for each
/// connection.
pub struct ClientCertificate {
    facts: CertificateFacts,
    /// The digest of the `client_ca` that it was verified against.
    authority: [u8; 32],
    /// Made for the first request that needs it.
    caller: OnceLock<Arc<Remembered<TokenMemo>>>,
}

impl ClientCertificate {
    /// A certificate in DER that was verified against the authorities with this digest. `None`: it
    /// cannot be read.
    pub fn verified(der: &[u8], authority: [u8; 32]) -> Option<Self> {
        let facts = CertificateFacts::read(der)?;
        Some(Self { facts, authority, caller: OnceLock::new() })
    }

    /// Whether it was verified against these authorities. A reload may have replaced them.
    pub(super) fn is_from(&self, authority: Option<&[u8; 32]>) -> bool {
        authority == Some(&self.authority)
    }

    /// Whether it has this SHA-256 digest.
    pub(super) fn has_thumbprint(&self, thumbprint: &[u8; 32]) -> bool {
        self.facts.thumbprint == *thumbprint
    }

    /// The caller that it proves. `now` is in Unix seconds.
    ///
    /// # Errors
    /// It has expired since the handshake, or it names nobody.
    pub(super) fn caller(
        &self,
        issuers: &Issuers,
        now: u64,
    ) -> Result<Arc<Remembered<TokenMemo>>, InvalidToken> {
        if self.facts.not_after < now {
            return Err(InvalidToken::Expired { at: self.facts.not_after, now });
        }
        if let Some(caller) = self.caller.get() {
            return Ok(Arc::clone(caller));
        }
        let found = issuers.found_certificate(self.claims(), now)?;
        Ok(Arc::clone(self.caller.get_or_init(|| Arc::new(Remembered::from(found)))))
    }

    /// What it says, in the terms of tokens.
    fn claims(&self) -> Map<String, Value> {
        let CertificateFacts { uris, dns_names, emails, subject, common_name, .. } = &self.facts;
        let claims = json!({
            "iss": CERTIFICATE,
            "sub": self.facts.holder(),
            "iat": self.facts.not_before,
            // Its last second is included, that of a token is not.
            "exp": self.facts.not_after.saturating_add(1),
            "name": common_name,
            "email": emails.first(),
            "subject": subject,
            "uris": uris,
            "dns_names": dns_names,
            "x5t#S256": URL_SAFE_NO_PAD.encode(self.facts.thumbprint),
        });
        let Value::Object(claims) = claims else { return Map::new() };
        claims.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("holder", &self.facts.holder())
            .finish_non_exhaustive()
    }
}
