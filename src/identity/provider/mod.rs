//! The OpenID providers that people log in at: we are the relying party (OpenID Connect Core 1.0).
//!
//! A [`Provider`] is one `[identity.login.NAME]` section. It reads the provider's metadata when
//! somebody first logs in, asks its token endpoint (`tokens`), verifies ID tokens with keys that
//! [`crate::keys`] keeps up to date, and makes a [`Person`] from what it learns (`person`). A login
//! in progress is a [`Flight`], of which nothing is stored here: it is in the browser's cookie and
//! in `state`.
//!
//! Nothing here opens a session or knows an account.

pub mod flight;
mod metadata;
mod person;
mod tokens;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::flight::Flight;
use self::metadata::{Endpoints, Need};
pub use self::person::{LONGEST_COOKIES, NotAllowed, Person};
pub use self::tokens::{NotGranted, Received, Renewed, SaidAgain, SetOfTokens};
use crate::clock::Clock;
use crate::config::value::{Scalar, SecretBytes};
use crate::keys::{IssuerKeys, MetadataFault, NoMetadata, Renewal};
use crate::outbound::{FetchError, Outbound, Url};
use crate::token::{
    ClaimPath, Excerpt, IdToken, IdTokenFor, InvalidToken, Issuer, IssuerSettings, KeyError,
    LogoutToken, Minter,
};

/// A checked `[identity.login.NAME]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderSettings {
    /// The section's name: a segment of paths, and the claim `idp`.
    pub name: Arc<str>,
    /// The text on the button.
    pub title: String,
    /// The `iss` of its tokens.
    pub issuer: String,
    /// The same as a URL.
    pub url: Url,
    /// Our id at the provider.
    pub client_id: String,
    /// What proves that we are this client.
    pub credential: ClientCredential,
    /// The scopes to request.
    pub scopes: Vec<String>,
    /// More parameters of the authorization request.
    pub parameters: Vec<(String, String)>,
    /// The claim with the roles; `None`: the provider does not decide about roles.
    pub roles: Option<ClaimPath>,
    /// The roles that each value of that claim stands for; `None`: the values are the roles.
    pub role_map: Option<BTreeMap<String, Vec<String>>>,
    /// The roles of everyone who logs in here.
    pub default_roles: Vec<String>,
    /// Claims that a person must have, each with its accepted values.
    pub require: Vec<(ClaimPath, Vec<Scalar>)>,
    /// What happens if another account has the person's address.
    pub link: Linking,
    /// How often the provider is asked about a session.
    pub recheck: Duration,
    /// The trusted certificates as PEM; `None` for the system's.
    pub ca: Option<Vec<u8>>,
}

/// What proves to a provider that we are the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCredential {
    /// `client_secret_basic`: a password.
    Secret(SecretBytes),
    /// `private_key_jwt`: a private key in PEM.
    Key(SecretBytes),
}

/// What happens if another account has a person's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linking {
    /// The login is refused.
    Never,
    /// The login joins that account, if both sides have verified the address.
    VerifiedEmail,
}

/// A provider.
pub struct Provider {
    settings: ProviderSettings,
    issuer: Issuer,
    keys: Arc<IssuerKeys>,
    outbound: Outbound,
    /// Signs the assertions of `private_key_jwt`.
    minter: Option<Minter>,
    endpoints: metadata::Known,
}

/// Why a provider did not help.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It does not respond, or says that it cannot at the moment.
    #[error("the provider does not respond: {0}")]
    Away(String),
    /// Its metadata is not valid.
    #[error("{0}")]
    Metadata(String),
    /// It refused, in the words of RFC 6749 §5.2.
    #[error("the provider refused: {error} {description}")]
    Refused {
        /// `error`, such as `invalid_grant`.
        error: Excerpt,
        /// `error_description`.
        description: Excerpt,
        /// Whether `error` is `invalid_grant`.
        is_invalid_grant: bool,
    },
    /// Its response cannot be used.
    #[error("the response of {url} cannot be used: {fault}")]
    Response {
        /// The endpoint.
        url: Url,
        /// What is wrong.
        fault: String,
    },
    /// The ID token is not valid.
    #[error("the ID token is not valid: {0}")]
    Token(#[from] InvalidToken),
    /// What it says contradicts itself or this login.
    #[error("{0}")]
    Contradiction(&'static str),
}

impl ProviderError {
    /// Whether it may help later, with nothing changed here or there.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Metadata(_))
    }

    /// Whether the provider says that a code or refresh token is not valid (any longer).
    pub fn is_invalid_grant(&self) -> bool {
        matches!(self, Self::Refused { is_invalid_grant: true, .. })
    }
}

impl From<FetchError> for ProviderError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Redirect { url } => {
                Self::Response { url, fault: "it redirects".to_owned() }
            }
            FetchError::TooLarge | FetchError::Encoded | FetchError::Redirects => {
                Self::Contradiction("the provider's response is too large or in another encoding")
            }
            error => Self::Away(error.to_string()),
        }
    }
}

impl From<NoMetadata> for ProviderError {
    fn from(error: NoMetadata) -> Self {
        match error {
            NoMetadata::Fetch(error) => Self::Away(error.to_string()),
            unusable @ NoMetadata::Unusable { .. } => Self::Metadata(unusable.to_string()),
        }
    }
}

impl From<MetadataFault> for ProviderError {
    fn from(fault: MetadataFault) -> Self {
        Self::Metadata(format!("the provider's metadata cannot be used: {fault}"))
    }
}

impl Provider {
    /// A provider whose keys have this owner.
    ///
    /// # Errors
    /// The key in [`ClientCredential::Key`] is not a private key.
    pub fn new(
        settings: ProviderSettings,
        keys: Arc<IssuerKeys>,
        outbound: Outbound,
    ) -> Result<Self, KeyError> {
        let minter = match &settings.credential {
            ClientCredential::Secret(_) => None,
            ClientCredential::Key(pem) => Some(Minter::from_private_pem(pem.expose())?),
        };
        let of_tokens = IssuerSettings {
            name: Arc::clone(&settings.name),
            issuer: Some(settings.issuer.clone()),
            audience: Some(vec![settings.client_id.clone()]),
            logout_audience: None,
            algorithms: keys.settings().algorithms,
            roles: ClaimPath::new(["roles"]),
            subject: ClaimPath::new(["sub"]),
            leeway: LEEWAY,
            max_token_lifetime: LONGEST_ID_TOKEN,
            is_built_in: false,
        };
        let issuer = Issuer::with_live_keys(of_tokens, Arc::clone(keys.live()));
        let endpoints = metadata::Known::default();
        Ok(Self { settings, issuer, keys, outbound, minter, endpoints })
    }

    /// Its section.
    pub fn settings(&self) -> &ProviderSettings {
        &self.settings
    }

    /// The owner of its keys.
    pub fn keys(&self) -> &Arc<IssuerKeys> {
        &self.keys
    }

    /// The URL that a browser is sent to for a login.
    ///
    /// # Errors
    /// The provider's metadata cannot be fetched now.
    pub async fn authorization_url(
        &self,
        flight: &Flight,
        (state, nonce, verifier): (&str, &str, &str),
        redirect_uri: &str,
    ) -> Result<String, ProviderError> {
        let endpoints = self.endpoints.read(&self.outbound, &self.settings, Need::Presence).await?;
        let (scope, challenge) = (self.settings.scopes.join(" "), flight::challenge(verifier));
        let mut parameters = vec![
            ("response_type", "code"),
            ("client_id", &self.settings.client_id),
            ("redirect_uri", redirect_uri),
            ("scope", &scope),
            ("state", state),
            ("nonce", nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        let max_age = flight.max_age.map(|seconds| seconds.to_string());
        parameters.extend(max_age.as_deref().map(|seconds| ("max_age", seconds)));
        let acr = flight.acr.join(" ");
        parameters.extend((!acr.is_empty()).then_some(("acr_values", acr.as_str())));
        let own = &self.settings.parameters;
        // OpenID Connect Core §11: without it, a provider may ignore the scope.
        let asks_offline = self.settings.scopes.iter().any(|scope| scope == "offline_access")
            && !own.iter().any(|(name, _)| name == "prompt");
        parameters.extend(asks_offline.then_some(("prompt", "consent")));
        for (name, value) in own {
            parameters.retain(|(known, _)| known != name);
            parameters.extend((!value.is_empty()).then_some((name.as_str(), value.as_str())));
        }
        Ok(endpoints.authorization.with_parameters(&parameters))
    }

    /// Checks the `iss` of a response to the browser (RFC 9207): a code of another provider must
    /// not be sent to this one.
    ///
    /// # Errors
    /// It is that of another provider, or missing although the provider announces it.
    pub async fn check_iss(&self, iss: Option<&str>) -> Result<(), ProviderError> {
        match iss {
            Some(iss) if iss == self.settings.issuer => Ok(()),
            Some(_) => Err(ProviderError::Contradiction("the response has another `iss`")),
            None if self.endpoints().await?.announces_iss => {
                Err(ProviderError::Contradiction("the response has no `iss`"))
            }
            None => Ok(()),
        }
    }

    /// Verifies an ID token, and again with newer keys if its key is not known.
    async fn verify(
        &self,
        token: &str,
        belongs: IdTokenFor<'_>,
        clock: &Clock,
    ) -> Result<IdToken, ProviderError> {
        let verify = || self.issuer.verify_id_token(token, belongs, clock.unix_seconds());
        self.with_newest(verify).await
    }

    /// Verifies a logout token (OpenID Connect Back-Channel Logout 1.0 §2.6).
    ///
    /// # Errors
    /// It is not valid, or the provider's keys are not available.
    pub async fn verify_logout(
        &self,
        token: &str,
        clock: &Clock,
    ) -> Result<LogoutToken, ProviderError> {
        self.with_newest(|| self.issuer.verify_logout(token, clock.unix_seconds())).await
    }

    async fn with_newest<T>(
        &self,
        verify: impl FnMut() -> Result<T, InvalidToken>,
    ) -> Result<T, ProviderError> {
        let lacks_key = |verified: &Result<T, InvalidToken>| {
            verified.as_ref().is_err_and(InvalidToken::concerns_key)
        };
        match self.keys.with_newest(verify, lacks_key).await {
            (Err(InvalidToken::NoKeys), _) => {
                Err(ProviderError::Away("its keys are not available".to_owned()))
            }
            (Err(error @ InvalidToken::KeyUnknown { .. }), Renewal::Unavailable) => {
                Err(ProviderError::Away(error.to_string()))
            }
            (verified, _) => Ok(verified?),
        }
    }

    /// Where to log out at the provider, with what says who logs out (OpenID Connect RP-Initiated
    /// Logout 1.0 §2). `None`: there is no such place, or the provider does not respond.
    pub async fn logout_url(&self, id_token: Option<&str>, back: &str) -> Option<String> {
        let there = self.endpoints().await.ok()?.end_session.clone()?;
        let mut parameters =
            vec![("client_id", &*self.settings.client_id), ("post_logout_redirect_uri", back)];
        // Servers refuse long URLs. Without it, the provider asks the person.
        let hint = id_token.filter(|token| token.len() <= LONGEST_HINT);
        parameters.extend(hint.map(|token| ("id_token_hint", token)));
        Some(there.with_parameters(&parameters))
    }

    /// Whether it responds now, or did a moment ago.
    pub async fn responds(&self) -> bool {
        self.endpoints.read(&self.outbound, &self.settings, Need::Presence).await.is_ok()
    }

    async fn endpoints(&self) -> Result<Arc<Endpoints>, ProviderError> {
        self.endpoints.read(&self.outbound, &self.settings, Need::Other).await
    }
}

/// Equal if it is the same: a reload keeps a provider whose section is unchanged.
impl PartialEq for Provider {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Provider {}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

/// How far a provider's clock may be off.
const LEEWAY: Duration = Duration::from_mins(1);

/// An ID token is used once, right after it was issued, so its lifetime matters little.
const LONGEST_ID_TOKEN: Duration = Duration::from_hours(24 * 31);

/// The longest ID token in a URL, in bytes.
const LONGEST_HINT: usize = 4096;
