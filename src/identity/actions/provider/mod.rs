//! Login at an OpenID provider: there, back, and what becomes of the person here.

mod arrival;
mod logout;
pub mod recheck;
mod weight;

use serde::Deserialize;

use super::login::login_links;
use crate::identity::cookie;
use crate::identity::error::{IdentityError, RequestFault};
use crate::identity::outcome::{Answered, Outcome, Refused, Step};
use crate::identity::pages::{Content, Filled};
use crate::identity::provider::flight::{Flight, InFlight};
use crate::identity::provider::{Provider, ProviderError};
use crate::identity::request::Request;
use crate::identity::{Identity, Mount, Policy, return_to};
use crate::store::SessionRow;

impl Identity {
    /// Begins a login at a provider: a redirect there.
    pub(super) async fn depart(&self, request: &Request, policy: &Policy) -> Answered {
        let provider = asked_for(request, policy)?;
        if let Some(home) = on_own_host(provider, request, policy) {
            return Ok(Outcome::Step(Step::Home(home)));
        }
        let asked = request.parameter_of_query("return_to");
        let back = return_to::allowed(asked.as_deref(), policy);
        let mut flight = self.begin(provider, back)?;
        let acr = request.parameter_of_query("acr_values").unwrap_or_default();
        flight.acr = acr
            .split_ascii_whitespace()
            .filter(|word| word.len() <= 200 && word.bytes().all(|byte| byte.is_ascii_graphic()))
            .take(8)
            .map(str::to_owned)
            .collect();
        flight.max_age =
            request.parameter_of_query("max_age").and_then(|seconds| seconds.parse().ok());
        self.send_away(provider, &flight, self.in_flight(request), policy).await
    }

    fn begin(&self, provider: &Provider, back: &str) -> Result<Flight, IdentityError> {
        let now = self.clock.unix_seconds();
        let flight = self.flights.begin(&provider.settings().name, back, now);
        flight.ok_or(IdentityError::Stopping)
    }

    /// Redirects a browser to the provider, with a cookie that names the login.
    async fn send_away(
        &self,
        provider: &Provider,
        flight: &Flight,
        mut logins: InFlight,
        policy: &Policy,
    ) -> Answered {
        let (nonce, verifier) = (self.flights.nonce(flight), self.flights.verifier(flight));
        let state = self.flights.state(flight).ok_or(IdentityError::Stopping)?;
        let secrets = (state.as_str(), nonce.as_str(), verifier.as_str());
        let location = provider
            .authorization_url(flight, secrets, &callback(provider, policy))
            .await
            .map_err(|error| failed(provider, error))?;
        logins.add(flight);
        let cookie = cookie::logins(self.flights.cookie(&logins).as_deref());
        Ok(Outcome::Step(Step::Away { location, cookie }))
    }

    /// Where a provider sends the browser back to.
    pub(super) async fn come_back(&self, request: &Request, policy: &Policy) -> Answered {
        let provider = asked_for(request, policy)?;
        let mut logins = self.in_flight(request);
        let begins_others = !logins.is_empty();
        let state = request.parameter_of_query("state").unwrap_or_default();
        let flight = self.flights.open(&state, self.clock.unix_seconds());
        // A code of another provider must not reach this one.
        let flight = flight.filter(|flight| *flight.provider == *provider.settings().name);
        let session = self.session_of_browser(request, policy).await?;
        let Some(flight) = flight else {
            return match session {
                Some(_) => Ok(Outcome::Step(Step::On { to: "/".to_owned(), cookie: None })),
                None => Err(IdentityError::LoginExpired.into()),
            };
        };
        let is_from_here = logins.take(&flight);
        let value = if logins.is_empty() { None } else { self.flights.cookie(&logins) };
        let cookie = cookie::logins(value.as_deref());
        // Another tab was faster, or this one is old.
        let is_over = |session: &SessionRow| {
            let is_newer = session.created_at.cast_unsigned() >= flight.began_at;
            let proves_more = !flight.acr.is_empty() || flight.max_age.is_some();
            !is_from_here || (is_newer && !proves_more)
        };
        if session.as_ref().is_some_and(is_over) {
            let to = flight.return_to;
            return Ok(Outcome::Step(Step::On { to, cookie: is_from_here.then_some(cookie) }));
        }
        if !is_from_here {
            if begins_others && flight.repeats < REPEATS {
                // Tabs that begin together overwrite each other's cookie. This code may be
                // somebody else's, so it is not used: the login begins again.
                let next = self.begin(provider, &flight.return_to)?;
                let Flight { acr, max_age, repeats, .. } = flight;
                let next = Flight { repeats: repeats + 1, acr, max_age, ..next };
                return self.send_away(provider, &next, logins, policy).await;
            }
            let back = Some(flight.return_to.into());
            return Err(Refused { back, ..IdentityError::LoginExpired.into() });
        }
        match self.arrive(provider, &flight, request, policy).await {
            Ok(tokens) => {
                self.end_earlier(true, request, policy).await;
                Ok(Outcome::Step(Step::In { tokens, to: flight.return_to, cookie }))
            }
            Err(error) => {
                let back = Some(flight.return_to.into());
                Err(Refused { back, cookies: vec![cookie], ..error.into() })
            }
        }
    }

    /// The logins that this browser has begun.
    fn in_flight(&self, request: &Request) -> InFlight {
        cookie::logins_in(&request.headers).map_or_else(InFlight::default, |value| {
            self.flights.read_cookie(value, self.clock.unix_seconds())
        })
    }

    /// The live session of the browser, if it has one.
    async fn session_of_browser(
        &self,
        request: &Request,
        policy: &Policy,
    ) -> Result<Option<SessionRow>, IdentityError> {
        let Some(token) = cookie::refresh_token(&request.headers, policy) else { return Ok(None) };
        Ok(self.sessions.live(token, policy, self.clock.unix_time()).await?)
    }
}

/// The provider that the path names.
fn asked_for<'p>(request: &Request, policy: &'p Policy) -> Result<&'p Provider, IdentityError> {
    let name = request.parameter.as_deref().unwrap_or_default();
    policy.provider(name).map(|provider| &**provider).ok_or(IdentityError::NoProvider)
}

/// The redirect URI: always the same, and never made from a request.
fn callback(provider: &Provider, policy: &Policy) -> String {
    format!("{}/login/{}/callback", policy.issuer, provider.settings().name)
}

/// Where a login begins on the host of the issuer, if the browser is on another one: it comes back
/// there, without the cookies of this host, and the login could only fail.
///
/// A proxy in front may change the host of every request, so this happens once.
fn on_own_host(provider: &Provider, request: &Request, policy: &Policy) -> Option<String> {
    let issuer = policy.issuer.parse::<http::Uri>().ok()?;
    let is_own = issuer.host().is_none_or(|host| host.eq_ignore_ascii_case(&request.host));
    let is_shared = policy.cookies.domain.is_some();
    if is_own || is_shared || request.parameter_of_query(MOVED).is_some() {
        return None;
    }
    let query = request.query.as_deref().filter(|query| !query.is_empty());
    let query = query.map_or_else(String::new, |query| format!("{query}&"));
    Some(format!("{}/login/{}?{query}{MOVED}=1", policy.issuer, provider.settings().name))
}

/// How often a login begins again at most. Tabs that begin together may overwrite each other's cookie
/// more than once; browsers follow 20 redirects, of which each beginning takes two to four.
const REPEATS: u8 = 3;

/// The parameter of a login that was begun on another host.
const MOVED: &str = "moved";

/// Reports why a login failed: the client learns only the reason.
fn failed(provider: &Provider, error: ProviderError) -> IdentityError {
    let login = &*provider.settings().name;
    tracing::warn!(login, cause = %error, "a login at a provider failed");
    IdentityError::from(error)
}

/// The page for a login at a provider that failed.
pub(in crate::identity) fn failed_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    Content {
        title: &filled.texts.login.title,
        lead: None,
        ways: Vec::new(),
        forms: Vec::new(),
        links: login_links(filled, policy, mount),
    }
}

/// The form of a back-channel logout.
#[derive(Deserialize)]
struct LogoutForm {
    logout_token: String,
}

impl LogoutForm {
    fn read(request: &Request) -> Result<Self, IdentityError> {
        if !request.is_form() {
            return Err(IdentityError::Request(RequestFault::LogoutToken));
        }
        request.parse_body().map_err(|_| IdentityError::Request(RequestFault::LogoutToken))
    }
}
