//! Decodes a token for display, without verifying it.

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::claims::parse_object;
use super::invalid::{InvalidToken, Malformed, Part};
use super::jws::Jws;

/// The content of a token. **None of it is verified.**
#[derive(Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The header.
    pub header: Map<String, Value>,
    /// The claims; `None` for an encrypted token (JWE, five parts), whose claims only its recipient
    /// can read.
    pub claims: Option<Map<String, Value>>,
    /// Whether the token has a signature, which was not checked.
    pub signed: bool,
    /// What is wrong with the token's form, for which it would be refused with any keys.
    pub fault: Option<InvalidToken>,
}

impl Inspected {
    /// Whether this is an encrypted token (JWE), which the gateway cannot read.
    pub fn is_encrypted(&self) -> bool {
        self.claims.is_none()
    }
}

impl std::fmt::Debug for Inspected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspected")
            .field("signed", &self.signed)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

/// Decodes a token **without verifying it**, and more leniently than the gateway: surrounding white
/// space, a leading `Bearer`, quotes, padding and standard base64 are accepted here. `fault` holds
/// what the gateway would say about the token itself.
///
/// # Errors
///
/// [`InvalidToken::Malformed`] if the header or payload cannot be read even so.
pub fn inspect(token: &str) -> Result<Inspected, InvalidToken> {
    let token = bare(token);
    if token.len() > MAX_BYTES {
        return Err(Malformed::TooLong { length: token.len(), most: MAX_BYTES }.into());
    }
    let parts: Vec<&str> = token.splitn(6, '.').collect();
    match parts[..] {
        [header, _, _, _, _] => Ok(Inspected {
            header: decode_object(Part::Header, header)?,
            claims: None,
            signed: false,
            fault: Some(Malformed::Encrypted.into()),
        }),
        [header, payload, ref signature @ ..] if signature.len() <= 1 => Ok(Inspected {
            header: decode_object(Part::Header, header)?,
            claims: Some(decode_object(Part::Payload, payload)?),
            signed: signature.first().is_some_and(|signature| !signature.is_empty()),
            fault: Jws::parse(token).and_then(|jws| Ok(jws.claims()?)).err(),
        }),
        _ => Err(Malformed::Parts { count: parts.len() }.into()),
    }
}

/// Extracts the token from what people paste.
fn bare(text: &str) -> &str {
    let text = text.trim().trim_matches(['"', '\'']);
    match text.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => rest.trim(),
        _ => text,
    }
}

fn decode_object(part: Part, text: &str) -> Result<Map<String, Value>, Malformed> {
    let kind = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let alphabet = if text.contains(['+', '/']) { STANDARD } else { URL_SAFE };
    let bytes =
        GeneralPurpose::new(&alphabet, kind).decode(text).map_err(|_| Malformed::Base64(part))?;
    parse_object(&bytes).map_err(|fault| Malformed::Json(part, fault))
}

const SCHEME: &str = "Bearer ";
/// The maximum input, in bytes. It is larger than the gateway's limit so that a token that is too
/// long can still be shown.
const MAX_BYTES: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::samples::{signed, token};
    use serde_json::json;

    #[test]
    fn inspect_shows_tokens_that_a_gateway_would_refuse() {
        let good = token(json!({}));
        for pasted in [
            good.clone(),
            format!(" \"{good}\"\n"),
            format!("Bearer {good}"),
            format!("bearer  {good}"),
        ] {
            let shown = inspect(&pasted).unwrap();
            assert_eq!(
                (shown.header["alg"].as_str(), shown.fault.as_ref(), shown.signed),
                (Some("HS256"), None, true)
            );
            assert_eq!(shown.claims.unwrap()["sub"], "u-17");
        }
        let unsigned = good.rsplit_once('.').unwrap().0;
        let shown = inspect(unsigned).unwrap();
        assert!(
            !shown.signed
                && matches!(
                    shown.fault,
                    Some(InvalidToken::Malformed(Malformed::Parts { count: 2 }))
                )
        );
        let none = inspect(&signed(r#"{"alg":"none"}"#, "{}")).unwrap();
        assert!(matches!(none.fault, Some(InvalidToken::Algorithm(_))));
        let padded = inspect("eyJhbGciOiJIUzI1NiJ9.e30=.AA==").unwrap();
        assert_eq!(padded.fault, Some(Malformed::Base64(Part::Payload).into()));
    }

    #[test]
    fn an_encrypted_token_is_reported_as_encrypted() {
        let shown = inspect("eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..a.b.c").unwrap();
        assert!(shown.is_encrypted());
        assert_eq!(
            (shown.header["enc"].as_str(), shown.fault),
            (Some("A256GCM"), Some(Malformed::Encrypted.into()))
        );
    }

    #[test]
    fn unreadable_tokens_are_an_error() {
        for text in ["", "x", "a.b.c", "e30", "e30.e30.a.b", "e30.WzFd.AA"] {
            assert!(matches!(inspect(text), Err(InvalidToken::Malformed(_))), "{text}");
        }
        assert!(!format!("{:?}", inspect(&token(json!({}))).unwrap()).contains("u-17"));
    }
}
