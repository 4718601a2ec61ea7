//! ID tokens: what an OpenID provider says about a person who has just logged in there (OpenID
//! Connect Core 1.0 §2, §3.1.3.7).

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{self, SHA256, SHA384, SHA512};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::Issuer;
use super::check::{Times, audience, check_audience, subject, time};
use super::logout::is_logout_token;
use crate::token::algorithms::Algorithm;
use crate::token::invalid::{ClaimFault, InvalidToken};
use crate::token::jws::Jws;

/// An ID token that its issuer signed, that is meant for us, and that is currently valid. Only
/// [`Issuer::verify_id_token`] creates one.
///
/// ```
/// fn subject(token: &portcullis::token::IdToken) -> &str {
///     token.subject()
/// }
/// ```
/// ```compile_fail
/// fn forge(claims: serde_json::Map<String, serde_json::Value>) -> portcullis::token::IdToken {
///     portcullis::token::IdToken { subject: String::new(), auth_time: None, claims }
/// }
/// ```
#[derive(Clone)]
pub struct IdToken {
    subject: String,
    auth_time: Option<u64>,
    claims: Map<String, Value>,
}

/// What an ID token must belong to.
#[derive(Clone, Copy, Debug)]
pub struct IdTokenFor<'a> {
    /// The `nonce` of the login; `None` for a token that comes with a refreshed access token.
    pub nonce: Option<&'a str>,
    /// The access token that came with it, for `at_hash`.
    pub access_token: Option<&'a str>,
}

impl IdToken {
    /// `sub`: never empty, unique within the issuer.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// `auth_time`: when the person last proved who they are, in Unix seconds.
    pub fn auth_time(&self) -> Option<u64> {
        self.auth_time
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// A claim that is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }
}

/// Omits the claims, which are about a person.
impl std::fmt::Debug for IdToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdToken").finish_non_exhaustive()
    }
}

impl Issuer {
    /// Verifies an ID token as strictly as an access token, and that it belongs to this login
    /// (§3.1.3.7). The one audience of the issuer's settings is our client id. `now` is in Unix
    /// seconds.
    ///
    /// # Errors
    ///
    /// The first check that fails, as an [`InvalidToken`].
    pub fn verify_id_token(
        &self,
        token: &str,
        belongs: IdTokenFor<'_>,
        now: u64,
    ) -> Result<IdToken, InvalidToken> {
        let settings = &self.settings;
        let jws = Jws::parse_id_token(token)?;
        let claims = jws.claims()?;
        self.check_iss(&claims)?;
        self.check_signature(&jws)?;
        if is_logout_token(&claims) {
            return Err(ClaimFault::not("events", "absent: this is a logout token").into());
        }
        let (expires_at, not_before, issued_at) =
            (time(&claims, "exp")?, time(&claims, "nbf")?, time(&claims, "iat")?);
        let expires_at = expires_at.ok_or_else(|| ClaimFault::missing("exp"))?;
        let issued_at = Some(issued_at.ok_or_else(|| ClaimFault::missing("iat"))?);
        let named = audience(&claims)?;
        check_audience(settings.audience.as_deref(), named.as_deref())?;
        self.check_authorized_party(&claims, named.as_deref().unwrap_or_default())?;
        Times { expires_at, not_before, issued_at }.check(settings, now)?;
        if let Some(nonce) = belongs.nonce {
            check_nonce(&claims, nonce)?;
        }
        if let (Some(access_token), Some(hash)) = (belongs.access_token, claims.get("at_hash")) {
            check_hash(hash, access_token, jws.algorithm)?;
        }
        let auth_time = time(&claims, "auth_time")?;
        Ok(IdToken { subject: subject(settings, &claims)?, auth_time, claims })
    }

    /// `azp` must be ours, and must be present if the token is for several audiences: otherwise
    /// another client of the provider could use its tokens here.
    fn check_authorized_party(
        &self,
        claims: &Map<String, Value>,
        audiences: &[&str],
    ) -> Result<(), ClaimFault> {
        let is_ours = |party: &str| {
            self.settings.audience.iter().flatten().any(|client| client.as_str() == party)
        };
        match claims.get("azp") {
            Some(Value::String(party)) if is_ours(party) => Ok(()),
            None if audiences.len() == 1 => Ok(()),
            None => Err(ClaimFault::missing("azp")),
            Some(_) => Err(ClaimFault::not("azp", "our client id")),
        }
    }
}

fn check_nonce(claims: &Map<String, Value>, nonce: &str) -> Result<(), ClaimFault> {
    let found = claims.get("nonce").ok_or_else(|| ClaimFault::missing("nonce"))?;
    let found = found.as_str().unwrap_or_default();
    verify_slices_are_equal(found.as_bytes(), nonce.as_bytes())
        .map_err(|_| ClaimFault::not("nonce", "that of this login"))
}

/// `at_hash` (§3.1.3.6): the left half of a hash of the access token, with the hash function of the
/// signature.
fn check_hash(hash: &Value, access_token: &str, algorithm: Algorithm) -> Result<(), ClaimFault> {
    let function = match algorithm {
        Algorithm::HS384 | Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384 => &SHA384,
        // Ed25519 hashes with SHA-512.
        Algorithm::HS512 | Algorithm::RS512 | Algorithm::PS512 | Algorithm::EdDSA => &SHA512,
        _ => &SHA256,
    };
    let digest = digest::digest(function, access_token.as_bytes());
    let half = digest.as_ref().get(..digest.as_ref().len() / 2).unwrap_or_default();
    let found = hash.as_str().unwrap_or_default();
    verify_slices_are_equal(found.as_bytes(), URL_SAFE_NO_PAD.encode(half).as_bytes())
        .map_err(|_| ClaimFault::not("at_hash", "that of the access token"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::token::samples::*;
    use crate::token::{AlgorithmFault, IssuerSettings, KeySet};

    const ACCESS: &str = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";

    fn issuer() -> Issuer {
        let issuers = issuers(|settings| {
            settings.audience = Some(vec!["portcullis".to_owned()]);
            settings.subject = crate::token::ClaimPath::new(["sub"]);
        });
        let issuer = issuers.iter().next().unwrap();
        Issuer::with_live_keys(issuer.settings().clone(), issuer.keys().clone())
    }

    fn claims(change: &Value) -> Value {
        let mut claims = json!({
            "iss": "https://corp.example", "sub": "u-17", "aud": "portcullis", "iat": NOW, "exp": NOW + 300, "nonce": "n-1",
        });
        for (name, value) in object(change.clone()) {
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(&name);
            } else {
                claims[name] = value;
            }
        }
        claims
    }

    fn verify(change: &Value) -> Result<IdToken, InvalidToken> {
        let belongs = IdTokenFor { nonce: Some("n-1"), access_token: Some(ACCESS) };
        let token = signed(r#"{"alg":"HS256"}"#, &claims(change).to_string());
        issuer().verify_id_token(&token, belongs, NOW)
    }

    /// The hash of the example in OpenID Connect Core §A.3.
    #[test]
    fn an_access_token_matches_its_hash() {
        let hash = json!("77QmUPtjPfzWtF2AnpK9RQ");
        assert_eq!(check_hash(&hash, ACCESS, Algorithm::RS256), Ok(()));
        check_hash(&hash, ACCESS, Algorithm::RS512).unwrap_err();
        check_hash(&hash, "another", Algorithm::RS256).unwrap_err();
        check_hash(&json!(7), ACCESS, Algorithm::RS256).unwrap_err();
    }

    #[test]
    fn an_id_token_belongs_to_one_login_at_one_client() {
        for change in [
            json!({}),
            json!({ "azp": "portcullis" }),
            json!({ "aud": ["portcullis", "other"], "azp": "portcullis" }),
            json!({ "auth_time": NOW - 5, "at_hash": "77QmUPtjPfzWtF2AnpK9RQ" }),
        ] {
            let token = verify(&change).unwrap_or_else(|error| panic!("{change}: {error}"));
            assert_eq!(token.subject(), "u-17");
            assert_eq!(token.auth_time(), change["auth_time"].as_u64());
        }
        for (change, expected) in [
            (json!({ "nonce": null }), "\"nonce\" is missing"),
            (json!({ "nonce": "n-2" }), "is not that of this login"),
            (json!({ "nonce": 1 }), "is not that of this login"),
            (json!({ "iss": "https://evil.example" }), "https://evil.example"),
            (json!({ "iss": null }), "iss"),
            (json!({ "aud": "other" }), "other"),
            (json!({ "aud": null }), "aud"),
            (json!({ "aud": ["portcullis", "other"] }), "\"azp\" is missing"),
            (json!({ "azp": "other" }), "is not our client id"),
            (json!({ "at_hash": "77QmUPtjPfzWtF2AnpK9RA" }), "is not that of the access token"),
            (json!({ "exp": null }), "\"exp\" is missing"),
            (json!({ "iat": null }), "\"iat\" is missing"),
            (json!({ "exp": NOW - 60 }), "expired"),
            (json!({ "iat": NOW + 600, "exp": NOW + 900 }), "iat"),
            (json!({ "auth_time": "yesterday" }), "is not a time"),
            (json!({ "sub": null }), "\"sub\" is missing"),
            (json!({ "sub": "" }), "\"sub\" is not"),
            (
                json!({ "events": { "http://schemas.openid.net/event/backchannel-logout": {} } }),
                "logout token",
            ),
        ] {
            let error = verify(&change).expect_err(&change.to_string()).to_string();
            assert!(error.contains(expected), "{change}: {error}");
        }
    }

    #[test]
    fn its_signature_and_type_are_checked() {
        let belongs = IdTokenFor { nonce: None, access_token: None };
        let verify = |token: &str| issuer().verify_id_token(token, belongs, NOW);
        let claims = claims(&json!({})).to_string();
        verify(&signed(r#"{"alg":"HS256","typ":"JWT"}"#, &claims)).unwrap();
        for typ in ["at+jwt", "logout+jwt"] {
            let header = format!(r#"{{"alg":"HS256","typ":"{typ}"}}"#);
            assert!(matches!(verify(&signed(&header, &claims)), Err(InvalidToken::Malformed(_))));
        }
        let none = signed(r#"{"alg":"none"}"#, &claims);
        assert!(matches!(verify(&none), Err(InvalidToken::Algorithm(AlgorithmFault::Unknown(_)))));
        let good = signed(r#"{"alg":"HS256"}"#, &claims);
        let (text, _) = good.rsplit_once('.').unwrap();
        assert_eq!(verify(&format!("{text}.AAAA")).unwrap_err(), InvalidToken::Signature);
        let settings: IssuerSettings = issuer().settings().clone();
        let keyless = Issuer::new(settings, KeySet::default());
        assert_eq!(keyless.verify_id_token(&good, belongs, NOW).unwrap_err(), InvalidToken::NoKeys);
        // It is in no request, so it may be longer than a token that is.
        let long = serde_json::json!({ "iss": "https://corp.example", "sub": "u", "aud": "portcullis", "iat": NOW, "exp": NOW + 9,
            "groups": vec!["a".repeat(100); 200] });
        verify(&signed(r#"{"alg":"HS256"}"#, &long.to_string())).unwrap();
    }
}
