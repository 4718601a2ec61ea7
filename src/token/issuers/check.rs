//! Checks of the claims of a token with a valid signature (RFC 7519 §4.1): types first, then
//! values.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::IssuerSettings;
use super::logout::is_logout_token;
use crate::token::claims::{ClaimPath, digits, string_list, trusted_claim};
use crate::token::excerpt::Excerpt;
use crate::token::invalid::{AudienceFault, ClaimFault, InvalidToken};

/// The claims that the checks extract. The times are checked again each time the token is
/// presented.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Checked {
    pub(super) times: Times,
    pub(super) subject: String,
    pub(super) roles: Vec<String>,
    pub(super) scopes: Vec<String>,
    /// The certificate that must be shown with the token.
    pub(super) bound_to: Option<Box<[u8; 32]>>,
}

/// The claims that are compared with the clock, in Unix seconds.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) expires_at: u64,
    pub(super) not_before: Option<u64>,
    pub(super) issued_at: Option<u64>,
}

impl Checked {
    /// Runs every check that an issuer's section requires, at the time `now` in Unix seconds.
    pub(super) fn check(
        settings: &IssuerSettings,
        claims: &Map<String, Value>,
        now: u64,
    ) -> Result<Self, InvalidToken> {
        let expires_at = time(claims, "exp")?;
        let not_before = time(claims, "nbf")?;
        let issued_at = time(claims, "iat")?;
        for name in ["jti", "sid"] {
            if claims.get(name).is_some_and(|value| !value.is_string()) {
                return Err(ClaimFault::not(name, "a string").into());
            }
        }
        if claims.get("sub").is_some_and(|value| text(value).is_none()) {
            return Err(ClaimFault::not("sub", "a string or a whole number").into());
        }
        if is_logout_token(claims) {
            return Err(ClaimFault::not(
                "events",
                "absent: this is a logout token, which grants no access",
            )
            .into());
        }
        let named = audience(claims)?;
        let expires_at = expires_at.ok_or_else(|| ClaimFault::missing("exp"))?;
        let scopes = scopes(claims)?;
        let roles = list(claims, &settings.roles)?;

        check_audience(settings.audience.as_deref(), named.as_deref())?;
        let times = Times { expires_at, not_before, issued_at };
        times.check(settings, now)?;
        let subject = subject(settings, claims)?;
        Ok(Self { times, subject, roles, scopes, bound_to: bound_to(claims)? })
    }
}

impl Times {
    /// The only check that depends on the time. For a token that passed once, only this result can
    /// change without a new key or configuration.
    pub(super) fn check(self, settings: &IssuerSettings, now: u64) -> Result<(), InvalidToken> {
        let Self { expires_at, not_before, issued_at } = self;
        let leeway = settings.leeway.as_secs();
        // RFC 7519 §4.1.4: the token must not be accepted "on or after" exp.
        if self.accepted_until(settings) <= now {
            return Err(InvalidToken::Expired { at: expires_at, now });
        }
        for (claim, at) in [("nbf", not_before), ("iat", issued_at)] {
            if let Some(at) = at.filter(|&at| at > now.saturating_add(leeway)) {
                return Err(InvalidToken::NotYetValid { claim, at, now });
            }
        }
        let most = settings.max_token_lifetime.as_secs();
        let lifetime = expires_at.saturating_sub(issued_at.unwrap_or(now));
        if lifetime > most { Err(InvalidToken::Lifetime { lifetime, most }) } else { Ok(()) }
    }

    /// From when on it counts as expired.
    pub(super) fn accepted_until(self, settings: &IssuerSettings) -> u64 {
        let grace = if settings.is_built_in { 0 } else { settings.leeway.as_secs() };
        self.expires_at.saturating_add(grace)
    }
}

/// A NumericDate (RFC 7519 §2): a number. A fraction is cut off. Above 2^53, a double cannot
/// represent every second.
pub(super) fn time(
    claims: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<u64>, ClaimFault> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = match value {
        Value::Number(number) => {
            number.as_u64().or_else(|| number.as_f64().and_then(whole_seconds))
        }
        _ => None,
    };
    seconds
        .filter(|&seconds| seconds < TIME_LIMIT)
        .map(Some)
        .ok_or_else(|| ClaimFault::not(name, "a time in seconds since 1970"))
}

#[expect(clippy::cast_sign_loss, reason = "the range is checked first")]
fn whole_seconds(value: f64) -> Option<u64> {
    (value.is_finite() && (0.0..TIME_LIMIT as f64).contains(&value)).then_some(value as u64)
}

/// `aud`: one string or an array of strings (RFC 7519 §4.1.3). `None` when it is absent.
pub(super) fn audience(claims: &Map<String, Value>) -> Result<Option<Vec<&str>>, ClaimFault> {
    let wrong = || ClaimFault::not("aud", "a string or an array of strings");
    match claims.get("aud") {
        None => Ok(None),
        Some(Value::String(one)) => Ok(Some(vec![one])),
        Some(Value::Array(several)) => several
            .iter()
            .map(|one| one.as_str().ok_or_else(wrong))
            .collect::<Result<_, _>>()
            .map(Some),
        Some(_) => Err(wrong()),
    }
}

/// Whether one of the `accepted` audiences is named. `None` accepts any.
pub(super) fn check_audience(
    accepted: Option<&[String]>,
    named: Option<&[&str]>,
) -> Result<(), AudienceFault> {
    let Some(accepted) = accepted else { return Ok(()) };
    let named = named.ok_or(AudienceFault::Missing)?;
    if named.iter().any(|name| accepted.iter().any(|own| own == name)) {
        return Ok(());
    }
    Err(named
        .first()
        .map_or(AudienceFault::Empty, |other| AudienceFault::Other(Excerpt::new(other))))
}

pub(super) fn subject(
    settings: &IssuerSettings,
    claims: &Map<String, Value>,
) -> Result<String, ClaimFault> {
    let path = &settings.subject;
    let value = trusted_claim(claims, path).ok_or_else(|| ClaimFault::missing(path.to_string()))?;
    let subject = text(value)
        .ok_or_else(|| ClaimFault::not(path.to_string(), "a string or a whole number"))?;
    if subject.is_empty() {
        Err(ClaimFault::not(path.to_string(), "a non-empty string"))
    } else {
        Ok(subject)
    }
}

pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => digits(number),
        _ => None,
    }
}

fn list(claims: &Map<String, Value>, path: &ClaimPath) -> Result<Vec<String>, ClaimFault> {
    let value = trusted_claim(claims, path).unwrap_or(&Value::Null);
    string_list(value)
        .map_err(|_| ClaimFault::not(path.to_string(), "a string or an array of strings"))
}

/// The digest of the certificate to which the token is bound (RFC 8705 §3.1); `None`: it is bound
/// to none.
fn bound_to(claims: &Map<String, Value>) -> Result<Option<Box<[u8; 32]>>, ClaimFault> {
    let Some(confirmation) = claims.get("cnf") else { return Ok(None) };
    let methods = confirmation.as_object().ok_or_else(|| ClaimFault::not("cnf", "an object"))?;
    let Some(confirmation) = methods.get("x5t#S256") else { return Ok(None) };
    let digest = confirmation.as_str().and_then(|text| {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        <[u8; 32]>::try_from(bytes).ok()
    });
    match digest {
        Some(digest) => Ok(Some(Box::new(digest))),
        None => Err(ClaimFault::not("cnf.x5t#S256", "a SHA-256 digest in base64url")),
    }
}

/// All scopes without duplicates, from `scope` (RFC 8693 §4.2) and from `scp`, which some issuers
/// use instead.
fn scopes(claims: &Map<String, Value>) -> Result<Vec<String>, ClaimFault> {
    let mut all = list(claims, &ClaimPath::new(["scope"]))?;
    for scope in list(claims, &ClaimPath::new(["scp"]))? {
        if !all.contains(&scope) {
            all.push(scope);
        }
    }
    Ok(all)
}

/// The first value that is rejected as a time: 2^53.
const TIME_LIMIT: u64 = 1 << 53;
