//! JWS compact serialization (RFC 7515 §7.1), parsed strictly and once.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithms::{Algorithm, Algorithms};
use super::claims::parse_object;
use super::excerpt::Excerpt;
use super::invalid::{AlgorithmFault, InvalidToken, Malformed, Part};

/// A parsed token: well formed, but not verified.
pub(super) struct Jws<'t> {
    /// The first two parts with the dot between them, as received: the input of the signature.
    pub(super) signing_input: &'t str,
    /// The third part.
    pub(super) signature: Vec<u8>,
    /// `alg`.
    pub(super) algorithm: Algorithm,
    /// `kid`.
    pub(super) kid: Option<String>,
    /// Whether `typ` says `at+jwt` (RFC 9068 §2.1).
    pub(super) is_access_token: bool,
    payload: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// Parses an access token. Base64url must have no padding, white space or leftover bits (RFC
    /// 7515 §2), so that each token has exactly one spelling.
    ///
    /// Of the header, `alg`, `kid`, `typ`, `crit` and `b64` are read. `jwk`, `jku`, `x5c` and `x5u`
    /// are ignored: a token does not bring its own key (RFC 8725 §3.10).
    ///
    /// # Errors
    ///
    /// [`InvalidToken::Algorithm`] if `alg` is missing, `none` or unknown;
    /// [`InvalidToken::Malformed`] for everything else.
    pub(super) fn parse(token: &'t str) -> Result<Self, InvalidToken> {
        Self::parse_typed(token, &[UNSPECIFIED, ACCESS_TOKEN])
    }

    /// Parses a logout token as [`Jws::parse`] parses an access token: its `typ` is `logout+jwt`,
    /// `JWT` or absent (OpenID Connect Back-Channel Logout 1.0 §2.4).
    pub(super) fn parse_logout(token: &'t str) -> Result<Self, InvalidToken> {
        Self::parse_typed(token, &[UNSPECIFIED, LOGOUT_TOKEN])
    }

    /// Parses an ID token: its `typ` is `JWT` or absent. It is in the body of a response, so it may
    /// be longer than a token in a header field.
    pub(super) fn parse_id_token(token: &'t str) -> Result<Self, InvalidToken> {
        Self::parse_parts(split_within(token, MAX_ID_TOKEN_BYTES)?, &[UNSPECIFIED])
    }

    fn parse_typed(token: &'t str, types: &[&'static str]) -> Result<Self, InvalidToken> {
        Self::parse_parts(split(token)?, types)
    }

    fn parse_parts(parts: Parts<'t>, types: &[&'static str]) -> Result<Self, InvalidToken> {
        let Parts { header, payload, signature, signing_input } = parts;
        let header = object(Part::Header, header)?;
        let algorithm = algorithm(&header)?;
        let (kid, is_access_token) = check_header(header, types)?;
        let payload = decode(Part::Payload, payload)?;
        let signature = decode(Part::Signature, signature)?;
        Ok(Self { signing_input, signature, algorithm, kid, is_access_token, payload })
    }

    /// The claims: the payload as one JSON object without duplicate members (RFC 7519 §7.2).
    pub(super) fn claims(&self) -> Result<Map<String, Value>, Malformed> {
        parse_object(&self.payload).map_err(|fault| Malformed::Json(Part::Payload, fault))
    }
}

/// The three parts of a compact JWS, still encoded.
#[derive(Clone, Copy)]
pub(super) struct Parts<'t> {
    pub(super) header: &'t str,
    pub(super) payload: &'t str,
    pub(super) signature: &'t str,
    pub(super) signing_input: &'t str,
}

/// Checks the length, then splits at the dots.
pub(super) fn split(token: &str) -> Result<Parts<'_>, Malformed> {
    split_within(token, MAX_TOKEN_BYTES)
}

fn split_within(token: &str, most: usize) -> Result<Parts<'_>, Malformed> {
    if token.len() > most {
        return Err(Malformed::TooLong { length: token.len(), most });
    }
    let mut dots = token.match_indices('.').map(|(index, _)| index);
    match (dots.next(), dots.next(), dots.next()) {
        (Some(first), Some(second), None) => Ok(Parts {
            header: &token[..first],
            payload: &token[first + 1..second],
            signature: &token[second + 1..],
            signing_input: &token[..second],
        }),
        (_, _, Some(_)) if dots.next().is_some() && dots.next().is_none() => {
            Err(Malformed::Encrypted)
        }
        _ => Err(Malformed::Parts { count: token.split('.').take(6).count() }),
    }
}

/// Decodes a part and reads it as a JSON object.
pub(super) fn object(part: Part, text: &str) -> Result<Map<String, Value>, Malformed> {
    parse_object(&decode(part, text)?).map_err(|fault| Malformed::Json(part, fault))
}

fn decode(part: Part, text: &str) -> Result<Vec<u8>, Malformed> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed::Base64(part))
}

fn algorithm(header: &Map<String, Value>) -> Result<Algorithm, InvalidToken> {
    match header.get("alg") {
        None => Err(AlgorithmFault::Missing.into()),
        Some(Value::String(name)) => {
            Ok(Algorithms::parse(name)
                .ok_or_else(|| AlgorithmFault::Unknown(Excerpt::new(name)))?)
        }
        Some(_) => Err(Malformed::Header("alg").into()),
    }
}

/// Rejects members that change the meaning of the token. Returns `kid`, and whether `typ` is
/// `at+jwt`.
fn check_header(
    mut header: Map<String, Value>,
    types: &[&'static str],
) -> Result<(Option<String>, bool), Malformed> {
    if header.contains_key("crit") {
        return Err(Malformed::Critical);
    }
    // RFC 7797 §3: an unencoded payload. Such a header must also have `crit`; a token without it is
    // rejected as well.
    if header.get("b64").is_some_and(|b64| *b64 != Value::Bool(true)) {
        return Err(Malformed::Header("b64"));
    }
    let is_access_token = match header.get("typ") {
        None => false,
        Some(Value::String(typ)) => {
            match types.iter().find(|known| bare(typ).eq_ignore_ascii_case(known)) {
                Some(known) => *known == ACCESS_TOKEN,
                None => return Err(Malformed::Type(Excerpt::new(typ))),
            }
        }
        Some(_) => return Err(Malformed::Header("typ")),
    };
    match header.remove("kid") {
        None => Ok((None, is_access_token)),
        Some(Value::String(kid)) => Ok((Some(kid), is_access_token)),
        Some(_) => Err(Malformed::Header("kid")),
    }
}

/// RFC 7515 §4.1.9: media types are compared case-insensitively, and `application/` is optional.
fn bare(typ: &str) -> &str {
    match typ.split_at_checked(PREFIX.len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case(PREFIX) => rest,
        _ => typ,
    }
}

const PREFIX: &str = "application/";
const UNSPECIFIED: &str = "JWT";
const ACCESS_TOKEN: &str = "at+jwt";
const LOGOUT_TOKEN: &str = "logout+jwt";

/// The maximum length of a token, in bytes. Most servers refuse header fields of that size.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The maximum length of an ID token, in bytes: some providers list hundreds of groups in it.
const MAX_ID_TOKEN_BYTES: usize = 128 * 1024;
