//! The token endpoint and userinfo of a provider (OpenID Connect Core 1.0 §3.1.3, §5.3, §12).

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::metadata::Need;
use super::person::Said;
use super::{ClientCredential, Person, Provider, ProviderError};
use crate::clock::Clock;
use crate::outbound::{TOTAL_TIME, Url};
use crate::token::{Excerpt, IdToken, IdTokenFor, parse_object};

/// The tokens of a provider that are kept, sealed, for as long as a session lasts.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOfTokens {
    /// What the provider is asked again with; `None`: it gave none.
    pub refresh: Option<String>,
    /// The last ID token, which says at the provider who logs out.
    pub id: Option<String>,
}

/// Omits the tokens.
impl fmt::Debug for SetOfTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetOfTokens").finish_non_exhaustive()
    }
}

/// What a provider says about a person, and its tokens.
#[derive(Debug)]
pub struct Received {
    /// The person.
    pub person: Person,
    /// The tokens.
    pub tokens: SetOfTokens,
}

/// What came of a refresh token. Keep its tokens before anything else: a provider may accept each
/// refresh token once, and end the session of one that comes again.
pub struct Renewed {
    response: Response,
    last_id: Option<String>,
}

/// Why a refresh token brought no new tokens.
#[derive(Debug)]
pub struct NotGranted {
    /// The cause.
    pub error: ProviderError,
    /// Whether the provider may have accepted the token, so that it is no longer valid.
    pub may_be_spent: bool,
}

/// What a provider says about a person who logged in earlier, and its tokens.
#[derive(Debug)]
pub struct SaidAgain {
    /// The person. `None`: it renewed its tokens, and said nothing about them.
    pub person: Option<Person>,
    /// The tokens.
    pub tokens: SetOfTokens,
}

impl Renewed {
    /// The tokens to keep. The ID token stays the last one until the new one is verified.
    pub fn tokens(&self) -> SetOfTokens {
        SetOfTokens { refresh: self.response.refresh.clone(), id: self.last_id.clone() }
    }
}

/// Omits the tokens.
impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").finish_non_exhaustive()
    }
}

/// A response of the token endpoint.
struct Response {
    access: String,
    id: Option<String>,
    refresh: Option<String>,
}

impl Response {
    fn read(url: &Url, status: u16, body: &Bytes) -> Result<Self, ProviderError> {
        let members = read(url, status, body)?;
        let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
        let Some(access) = text("access_token") else {
            return Err(invalid(url, "it has no `access_token`"));
        };
        Ok(Self { access, id: text("id_token"), refresh: text("refresh_token") })
    }
}

impl Provider {
    /// Exchanges the code of a login, and reads what the provider says about the person.
    ///
    /// # Errors
    /// The provider does not respond or refuses, or what it says is not valid for this login.
    pub async fn exchange(
        &self,
        code: &str,
        (nonce, verifier): (&str, &str),
        redirect_uri: &str,
        clock: &Clock,
    ) -> Result<Received, ProviderError> {
        let response = self
            .ask(
                &[
                    ("grant_type", "authorization_code"),
                    ("code", code),
                    ("redirect_uri", redirect_uri),
                    ("code_verifier", verifier),
                ],
                clock,
            )
            .await?;
        let Some(id_token) = &response.id else {
            return Err(ProviderError::Contradiction(
                "the provider sent no ID token, so it is not an OpenID provider",
            ));
        };
        let belongs = IdTokenFor { nonce: Some(nonce), access_token: Some(&response.access) };
        let signed = self.verify(id_token, belongs, clock).await?;
        let userinfo = self.userinfo(&response, signed.subject(), Some(&signed)).await?;
        let person = Person::new(Said::new(Some(&signed), &userinfo), self.settings())?;
        let tokens = SetOfTokens { refresh: response.refresh, id: response.id };
        Ok(Received { person, tokens })
    }

    /// Exchanges a refresh token. Without a new one, the given one stays in use. A provider may
    /// accept it once, so this waits for the response for [`PATIENCE`].
    ///
    /// # Errors
    /// The provider does not respond or refuses; [`ProviderError::is_invalid_grant`]: the token is
    /// not valid, and unless it was spent before, the person may no longer log in.
    pub async fn renew(&self, tokens: SetOfTokens, clock: &Clock) -> Result<Renewed, NotGranted> {
        let unsent = |error| NotGranted { error, may_be_spent: false };
        // A provider that hangs would accept the token when it goes on.
        let endpoints = self.endpoints.read(&self.outbound, &self.settings, Need::Presence).await;
        let url = &endpoints.map_err(unsent)?.token;
        let refresh = tokens.refresh.as_deref().unwrap_or_default();
        let fields = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
        let (form, authorization) =
            self.form(&fields, url, clock.unix_seconds()).map_err(unsent)?;
        let sent = self.outbound.post(url, form, authorization, PATIENCE).await;
        let (status, body) = sent.map_err(|error| NotGranted {
            may_be_spent: error.may_have_arrived(),
            error: error.into(),
        })?;
        // Another response than the two of RFC 6749 may come from a proxy that gave up waiting.
        let mut response = Response::read(url, status, &body).map_err(|error| NotGranted {
            may_be_spent: !matches!(error, ProviderError::Refused { .. }),
            error,
        })?;
        response.refresh = response.refresh.or(tokens.refresh);
        Ok(Renewed { response, last_id: tokens.id })
    }

    /// Reads what the provider says now about the person `subject`, who logged in earlier. Without a
    /// new ID token, the last one stays in use.
    ///
    /// # Errors
    /// As for [`Provider::exchange`].
    pub async fn ask_again(
        &self,
        renewed: Renewed,
        subject: &str,
        clock: &Clock,
    ) -> Result<SaidAgain, ProviderError> {
        let Renewed { response, last_id } = renewed;
        let verified = match &response.id {
            Some(token) => {
                let belongs = IdTokenFor { nonce: None, access_token: Some(&response.access) };
                Some(self.verify(token, belongs, clock).await?)
            }
            None => None,
        };
        if verified.as_ref().is_some_and(|token| token.subject() != subject) {
            return Err(ProviderError::Contradiction("the ID token is about another person"));
        }
        let userinfo = self.userinfo(&response, subject, verified.as_ref()).await?;
        // A claim that is missing says something only where there are claims (OpenID Connect Core
        // §12.2 does not require an ID token).
        let says_something = verified.is_some() || !userinfo.is_empty();
        let mut said = Said::new(verified.as_ref(), &userinfo);
        said.subject = Some(subject);
        let person = says_something.then(|| Person::new(said, self.settings())).transpose()?;
        let tokens = SetOfTokens { refresh: response.refresh, id: response.id.or(last_id) };
        Ok(SaidAgain { person, tokens })
    }

    /// Sends a form to the token endpoint, and proves who we are.
    async fn ask(&self, fields: &[(&str, &str)], clock: &Clock) -> Result<Response, ProviderError> {
        let endpoints = self.endpoints().await?;
        let url = &endpoints.token;
        let (form, authorization) = self.form(fields, url, clock.unix_seconds())?;
        let (status, body) = self.outbound.post(url, form, authorization, TOTAL_TIME).await?;
        Response::read(url, status, &body)
    }

    /// The fields as a form, with what proves who we are: in the form, or in a header field.
    fn form(
        &self,
        fields: &[(&str, &str)],
        url: &Url,
        now: u64,
    ) -> Result<(String, Option<HeaderValue>), ProviderError> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(fields);
        let client_id = &self.settings().client_id;
        let authorization = match (&self.settings().credential, &self.minter) {
            (ClientCredential::Secret(secret), _) => Some(basic(client_id, secret.expose())),
            (ClientCredential::Key(_), Some(minter)) => {
                let claims = assertion(client_id, &url.with_parameters(&[]), now);
                let signed = minter
                    .sign(minter.default_algorithm(), None, "JWT", &claims)
                    .map_err(|_| ProviderError::Contradiction("the key cannot sign"))?;
                form.append_pair("client_id", client_id);
                form.append_pair("client_assertion_type", ASSERTION);
                form.append_pair("client_assertion", &signed);
                None
            }
            (ClientCredential::Key(_), None) => None,
        };
        Ok((form.finish(), authorization))
    }

    /// What userinfo says, if the ID token lacks something that is needed. Empty otherwise.
    async fn userinfo(
        &self,
        response: &Response,
        subject: &str,
        id_token: Option<&IdToken>,
    ) -> Result<Map<String, Value>, ProviderError> {
        let endpoints = self.endpoints().await?;
        let lacks = id_token.is_none_or(|token| Person::lacks(token.claims(), self.settings()));
        let Some(url) = endpoints.userinfo.as_ref().filter(|_| lacks) else {
            return Ok(Map::new());
        };
        let Ok(bearer) = HeaderValue::try_from(format!("Bearer {}", response.access)) else {
            return Err(ProviderError::Contradiction("the access token is not one"));
        };
        let (status, body) = self.outbound.get_with(url, bearer).await?;
        let members = read(url, status, &body)?;
        // §5.3.2: otherwise it could be about somebody else.
        if members.get("sub").and_then(Value::as_str) != Some(subject) {
            return Err(invalid(url, "its `sub` is not that of the ID token"));
        }
        Ok(members)
    }
}

/// Reads a JSON response.
fn read(url: &Url, status: u16, body: &Bytes) -> Result<Map<String, Value>, ProviderError> {
    let members = parse_object(body.trim_ascii());
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        return Err(ProviderError::Away(format!("{url} answered {}", status.as_u16())));
    }
    let text = |name: &str| {
        let said = members.as_ref().ok().and_then(|members| members.get(name)?.as_str());
        said.map(str::to_owned)
    };
    match text("error") {
        Some(error) if !status.is_success() => {
            return Err(ProviderError::Refused {
                is_invalid_grant: error == "invalid_grant",
                error: Excerpt::new(&error),
                description: Excerpt::new(&text("error_description").unwrap_or_default()),
            });
        }
        _ if !status.is_success() => {
            return Err(invalid(url, &format!("its status is {}", status.as_u16())));
        }
        _ => {}
    }
    members.map_err(|fault| invalid(url, &format!("it {fault}")))
}

fn invalid(url: &Url, fault: &str) -> ProviderError {
    ProviderError::Response { url: url.clone(), fault: fault.to_owned() }
}

/// `client_secret_basic` (RFC 6749 §2.3.1): both parts are form-encoded first.
fn basic(client_id: &str, secret: &[u8]) -> HeaderValue {
    let encoded = |bytes: &[u8]| form_urlencoded::byte_serialize(bytes).collect::<String>();
    let pair = format!("{}:{}", encoded(client_id.as_bytes()), encoded(secret));
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
        .unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// The claims of `private_key_jwt` (OpenID Connect Core §9).
fn assertion(client_id: &str, audience: &str, now: u64) -> Map<String, Value> {
    let mut id = [0; 16];
    // Without random numbers, the provider refuses the second assertion.
    let _ = rand::fill(&mut id);
    let claims = json!({
        "iss": client_id, "sub": client_id, "aud": audience, "jti": URL_SAFE_NO_PAD.encode(id), "iat": now, "exp": now + 60,
    });
    match claims {
        Value::Object(claims) => claims,
        _ => Map::new(),
    }
}

/// How long to wait for the response to a refresh token: longer than an outage usually lasts. No
/// request waits for it.
const PATIENCE: Duration = Duration::from_mins(15);

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_client_secret_are_encoded_first() {
        let decoded = |value: HeaderValue| {
            let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
            String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
        };
        assert_eq!(
            decoded(basic("s6BhdRkqt3", b"7Fjfp0ZBr1KtDRbnfVdmIw")),
            "s6BhdRkqt3:7Fjfp0ZBr1KtDRbnfVdmIw"
        );
        assert_eq!(decoded(basic("a:b", "c+d %é".as_bytes())), "a%3Ab:c%2Bd+%25%C3%A9");
    }

    #[test]
    fn an_outage_is_told_from_a_refusal() {
        let url = Url::parse("https://login.test/token").unwrap();
        let read = |status: u16, body: &'static str| {
            read(&url, status, &Bytes::from_static(body.as_bytes()))
        };
        assert!(read(200, r#"{"a":1}"#).is_ok());
        for (status, body) in
            [(500, "{}"), (503, "<html>"), (429, ""), (502, r#"{"error":"invalid_grant"}"#)]
        {
            let error = read(status, body).unwrap_err();
            assert!(error.is_outage() && !error.is_invalid_grant(), "{status} {error}");
        }
        let refused =
            read(400, r#"{"error":"invalid_grant","error_description":"gone"}"#).unwrap_err();
        assert!(refused.is_invalid_grant() && !refused.is_outage());
        for (status, body) in [
            (200, "<html>"),
            (200, "[]"),
            (200, r#"{"a":1,"a":2}"#),
            (404, "<html>"),
            (400, r#"{"error":"invalid_client"}"#),
        ] {
            let error = read(status, body).unwrap_err();
            assert!(!error.is_outage() && !error.is_invalid_grant(), "{status} {error}");
        }
    }
}
