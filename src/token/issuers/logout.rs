//! Logout tokens, which an issuer sends when a user logs out there (OpenID Connect Back-Channel
//! Logout 1.0).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::Issuer;
use super::check::{Times, audience, check_audience, subject, text, time};
use crate::token::claims::ClaimPath;
use crate::token::invalid::{ClaimFault, InvalidToken};
use crate::token::jws::Jws;
use crate::token::revocation::{Revocation, RevokedBy, Scope};

/// A logout token that its issuer signed, that is meant for us, and that is currently valid. Only
/// [`Issuer::verify_logout`] creates one.
///
/// ```
/// fn name(token: &portcullis::token::LogoutToken) -> &str {
///     token.jti()
/// }
/// ```
/// ```compile_fail
/// fn forge(revocation: portcullis::token::Revocation) -> portcullis::token::LogoutToken {
///     portcullis::token::LogoutToken { jti: String::new(), expires_at: 0, revocation }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutToken {
    jti: String,
    expires_at: u64,
    revocation: Revocation,
}

impl LogoutToken {
    /// The token's own id.
    pub fn jti(&self) -> &str {
        &self.jti
    }

    /// `exp` plus the leeway, in Unix seconds: from then on the token is refused as expired.
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// What the token revokes.
    pub fn into_revocation(self) -> Revocation {
        self.revocation
    }
}

impl Issuer {
    /// Verifies a logout token (§2.6 of the specification), as strictly as an access token. `now`
    /// is in Unix seconds.
    ///
    /// A token with a `sid` ends that session. A token without one revokes everything that its
    /// subject holds: every token with the same `sub`.
    ///
    /// # Errors
    ///
    /// The first check that fails, as an [`InvalidToken`].
    pub fn verify_logout(&self, token: &str, now: u64) -> Result<LogoutToken, InvalidToken> {
        let settings = &self.settings;
        let jws = Jws::parse_logout(token)?;
        let claims = jws.claims()?;
        self.check_iss(&claims)?;
        self.check_signature(&jws)?;
        // What distinguishes it from every other token of the issuer: `events` must be present and
        // `nonce` absent.
        if !is_logout_token(&claims) {
            return Err(ClaimFault::not("events", "an object with the logout event").into());
        }
        if claims.contains_key("nonce") {
            return Err(ClaimFault::not("nonce", "absent, as a logout token requires").into());
        }
        let (expires_at, not_before, issued_at) =
            (time(&claims, "exp")?, time(&claims, "nbf")?, time(&claims, "iat")?);
        let expires_at = expires_at.ok_or_else(|| ClaimFault::missing("exp"))?;
        let issued_at = issued_at.ok_or_else(|| ClaimFault::missing("iat"))?;
        let accepted = settings.logout_audience.as_deref().or(settings.audience.as_deref());
        check_audience(accepted, audience(&claims)?.as_deref())?;
        Times { expires_at, not_before, issued_at: Some(issued_at) }.check(settings, now)?;
        let jti = non_empty_text(&claims, "jti")?.ok_or_else(|| ClaimFault::missing("jti"))?;
        let (by, value) = match non_empty_text(&claims, "sid")? {
            Some(sid) => (RevokedBy::Sid, sid),
            None if settings.subject == ClaimPath::new(["sub"]) => {
                (RevokedBy::Subject, subject(settings, &claims)?)
            }
            // It contains `sub` and no other claim about a person (§2.4).
            None => (RevokedBy::Sub, sub(&claims)?),
        };
        let value: Arc<str> = value.into();
        // The issuer's clock counts for its own tokens, ours for the time that the logout token
        // took to arrive.
        let revocation =
            Revocation { scope: Scope::for_issuer(settings), by, value, at: issued_at.max(now) };
        Ok(LogoutToken {
            jti,
            expires_at: expires_at.saturating_add(settings.leeway.as_secs()),
            revocation,
        })
    }
}

/// Whether the claims are those of a logout token. Such a token is never an access token, whatever
/// its `typ` says.
pub(super) fn is_logout_token(claims: &Map<String, Value>) -> bool {
    claims.get("events").and_then(|events| events.get(EVENT)).is_some_and(Value::is_object)
}

fn sub(claims: &Map<String, Value>) -> Result<String, ClaimFault> {
    let value = claims.get("sub").ok_or_else(|| ClaimFault::missing("sub"))?;
    text(value)
        .filter(|sub| !sub.is_empty())
        .ok_or_else(|| ClaimFault::not("sub", "a non-empty string or a whole number"))
}

/// A claim that is absent or a non-empty string.
fn non_empty_text(
    claims: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<String>, ClaimFault> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(ClaimFault::not(name, "a non-empty string")),
    }
}

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::token::samples::*;

    /// The claims of a logout token with changes.
    fn logout(change: Value) -> Value {
        let usual = json!({"iat": NOW, "exp": NOW + 120, "jti": "l-1", "sid": "s-1", "events": {EVENT: {}}, "realm_access": null});
        let mut claims = claims_with(usual);
        for (name, value) in object(change) {
            if value.is_null() {
                claims.remove(&name);
            } else {
                claims.insert(name, value);
            }
        }
        Value::Object(claims)
    }

    fn verify(header: &str, claims: &Value) -> Result<LogoutToken, InvalidToken> {
        let issuers = issuers(|_| {});
        issuers.iter().next().unwrap().verify_logout(&signed(header, &claims.to_string()), NOW)
    }

    const LOGOUT: &str = r#"{"alg":"HS256","typ":"logout+jwt"}"#;

    #[test]
    fn a_logout_token_ends_a_session_or_a_subject() {
        let corp = || Scope::Issuer("https://corp.example".into());
        for (change, by, value) in [
            (json!({}), RevokedBy::Sid, "s-1"),
            (json!({"sub": null}), RevokedBy::Sid, "s-1"),
            (json!({"sid": null}), RevokedBy::Subject, "u-17"),
            (json!({"sid": null, "sub": 17}), RevokedBy::Subject, "17"),
        ] {
            let token = verify(LOGOUT, &logout(change)).unwrap();
            assert_eq!(
                token.revocation,
                Revocation { scope: corp(), by, value: value.into(), at: NOW }
            );
            assert_eq!((token.jti.as_str(), token.expires_at), ("l-1", NOW + 150));
        }
        // The issuer's clock may be ahead, and so are its tokens.
        assert_eq!(
            verify(LOGOUT, &logout(json!({"iat": NOW + 20}))).unwrap().revocation.at,
            NOW + 20
        );
        assert_eq!(verify(LOGOUT, &logout(json!({"iat": NOW - 60}))).unwrap().revocation.at, NOW);
    }

    /// A caller known by another claim here is known by `sub` there.
    #[test]
    fn a_logout_token_names_a_sub_even_if_the_subject_is_another_claim() {
        let issuers = issuers(|settings| settings.subject = ClaimPath::new(["email"]));
        let issuer = issuers.iter().next().unwrap();
        let verify = |change: Value| {
            issuer
                .verify_logout(&signed(LOGOUT, &logout(change).to_string()), NOW)
                .map(|token| token.revocation)
        };
        let scope = Scope::Issuer("https://corp.example".into());
        for (sub, value) in [(json!("u-17"), "u-17"), (json!(17), "17")] {
            let revocation = verify(json!({"sid": null, "sub": sub})).unwrap();
            assert_eq!(
                revocation,
                Revocation {
                    scope: scope.clone(),
                    by: RevokedBy::Sub,
                    value: value.into(),
                    at: NOW
                }
            );
        }
        assert_eq!(verify(json!({})).unwrap().by, RevokedBy::Sid);
        for sub in [json!(null), json!(""), json!(["u-17"])] {
            assert!(verify(json!({"sid": null, "sub": sub})).is_err(), "{sub}");
        }
        // Access tokens carry `sub` in addition to the other claim, so the logout token revokes
        // them.
        let list = crate::revocation::RevocationList::default();
        list.add([verify(json!({"sid": null})).unwrap()]);
        for (change, expected) in [
            (json!({"email": "ann@corp.example"}), Some(RevokedBy::Sub)),
            (json!({"email": "ann@corp.example", "iat": NOW + 1}), None),
            (json!({"email": "u-17", "sub": "u-18"}), None),
            (json!({"email": "u-17", "sub": null}), None),
        ] {
            let token = issuers.verify(&token(change.clone()), NOW).unwrap();
            assert_eq!(list.revoked_by(&token), expected, "{change}");
        }
    }

    /// The client that receives logouts need not be one whose tokens are accepted.
    #[test]
    fn logout_tokens_can_have_a_separate_audience() {
        let issuers =
            issuers(|settings| settings.logout_audience = Some(vec!["client-1".to_owned()]));
        let issuer = issuers.iter().next().unwrap();
        let verify = |audience: &str| {
            issuer
                .verify_logout(&signed(LOGOUT, &logout(json!({"aud": audience})).to_string()), NOW)
        };
        assert!(verify("client-1").is_ok());
        assert_eq!(
            verify("reports"),
            Err(InvalidToken::Audience(crate::token::AudienceFault::Other(
                crate::token::Excerpt::new("reports")
            )))
        );
        let id_token = signed(
            r#"{"alg":"HS256"}"#,
            &Value::Object(claims_with(json!({"aud": "client-1"}))).to_string(),
        );
        assert!(matches!(issuers.verify(&id_token, NOW), Err(InvalidToken::Audience(_))));
    }

    #[test]
    fn every_rule_is_enforced() {
        let event = |value: Value| json!({"events": {EVENT: value}});
        for (change, expected) in [
            (json!({"events": null}), "events"),
            (json!({"events": EVENT}), "events"),
            (json!({"events": [EVENT]}), "events"),
            (json!({"events": {"http://schemas.openid.net/event/other": {}}}), "events"),
            (event(json!(true)), "events"),
            (json!({"nonce": "n"}), "nonce"),
            (json!({"nonce": ""}), "nonce"),
            (json!({"iss": null}), "no iss"),
            (json!({"iss": "https://other.example"}), "not configured"),
            (json!({"iss": 7}), "\"iss\" is not"),
            (json!({"aud": null}), "no aud"),
            (json!({"aud": "other"}), "not an accepted"),
            (json!({"exp": null}), "\"exp\" is missing"),
            (json!({"iat": null}), "\"iat\" is missing"),
            (json!({"exp": NOW - 30}), "expired"),
            (json!({"iat": NOW + 31, "exp": NOW + 60}), "in the future"),
            (json!({"iat": "now"}), "\"iat\" is not"),
            (json!({"exp": NOW + 86_401}), "more than the"),
            (json!({"jti": null}), "\"jti\" is missing"),
            (json!({"jti": ""}), "\"jti\" is not"),
            (json!({"jti": 7}), "\"jti\" is not"),
            (json!({"sid": ""}), "\"sid\" is not"),
            (json!({"sid": 7}), "\"sid\" is not"),
            (json!({"sid": null, "sub": null}), "\"sub\" is missing"),
            (json!({"sid": null, "sub": ""}), "\"sub\" is not"),
        ] {
            let refused = verify(LOGOUT, &logout(change.clone())).unwrap_err();
            assert!(refused.to_string().contains(expected), "{change}: {refused}");
        }
        let forged = signed(LOGOUT, &logout(json!({})).to_string());
        let issuers = issuers(|_| {});
        let issuer = issuers.iter().next().unwrap();
        let (input, _) = forged.rsplit_once('.').unwrap();
        let other = signed(LOGOUT, &logout(json!({"jti": "l-2"})).to_string());
        let (_, signature) = other.rsplit_once('.').unwrap();
        assert_eq!(
            issuer.verify_logout(&format!("{input}.{signature}"), NOW),
            Err(InvalidToken::Signature)
        );
    }

    #[test]
    fn the_type_is_logout_jwt_or_absent() {
        for (header, accepted) in [
            (r#"{"alg":"HS256","typ":"logout+jwt"}"#, true),
            (r#"{"alg":"HS256","typ":"application/Logout+JWT"}"#, true),
            (r#"{"alg":"HS256","typ":"JWT"}"#, true),
            (r#"{"alg":"HS256"}"#, true),
            (r#"{"alg":"HS256","typ":"at+jwt"}"#, false),
            (r#"{"alg":"HS256","typ":"secevent+jwt"}"#, false),
            (r#"{"alg":"HS256","typ":"logout+jwt","crit":["x"],"x":1}"#, false),
            (r#"{"alg":"none","typ":"logout+jwt"}"#, false),
        ] {
            assert_eq!(verify(header, &logout(json!({}))).is_ok(), accepted, "{header}");
        }
    }

    /// An issuer signs both with one key: neither may be used as the other.
    #[test]
    fn logout_tokens_and_access_tokens_are_not_interchangeable() {
        let issuers = issuers(|_| {});
        for header in [LOGOUT, r#"{"alg":"HS256","typ":"JWT"}"#, r#"{"alg":"HS256"}"#] {
            let token = signed(header, &logout(json!({})).to_string());
            assert!(issuers.verify(&token, NOW).is_err(), "{header}");
            assert!(issuers.iter().next().unwrap().verify_logout(&token, NOW).is_ok(), "{header}");
        }
        let access = token(json!({"jti": "t", "sid": "s"}));
        assert!(issuers.verify(&access, NOW).is_ok());
        assert!(issuers.iter().next().unwrap().verify_logout(&access, NOW).is_err());
    }
}
