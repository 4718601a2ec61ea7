//! The endpoints of a provider, from its metadata: read when they are first needed, and again now
//! and then. The last good ones stay in use while the provider does not respond.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{ProviderError, ProviderSettings};
use crate::keys::Metadata;
use crate::outbound::{Outbound, Url};

/// The endpoints of a provider.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) authorization: Url,
    pub(super) token: Url,
    pub(super) userinfo: Option<Url>,
    pub(super) end_session: Option<Url>,
    /// Whether responses to browsers have `iss` (RFC 9207 §3).
    pub(super) announces_iss: bool,
}

/// What is known about the endpoints.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    good: Option<Arc<Endpoints>>,
    /// When it was last tried to read the metadata.
    read_at: Option<Instant>,
    /// Why that failed, if it did.
    failing: Option<String>,
}

/// What the endpoints are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// To send there what must not be lost on the way: a person, who learns here that the provider
    /// is away, not from their browser, or a refresh token.
    Presence,
    /// Anything else.
    Other,
}

impl State {
    /// How long to wait after the last attempt.
    fn wait(&self, need: Need) -> Duration {
        match (need, &self.failing, &self.good) {
            (Need::Presence, None, _) => KNOWN_TO_BE_THERE,
            (Need::Other, None, _) => READ_AGAIN,
            (Need::Other, Some(_), Some(_)) => RETRY_WITH_GOOD,
            (_, Some(_), _) => RETRY,
        }
    }
}

impl Known {
    /// The endpoints. Callers that arrive together wait for one fetch.
    pub(super) async fn read(
        &self,
        outbound: &Outbound,
        settings: &ProviderSettings,
        need: Need,
    ) -> Result<Arc<Endpoints>, ProviderError> {
        let mut state = self.0.lock().await;
        if state.read_at.is_none_or(|at| at.elapsed() >= state.wait(need)) {
            let read = fetch(outbound, settings).await;
            state.read_at = Some(Instant::now());
            match read {
                Ok(endpoints) => {
                    state.good = Some(Arc::new(endpoints));
                    state.failing = None;
                }
                Err(error) => {
                    let login = &*settings.name;
                    // What it becomes below says the rest.
                    let cause = match error {
                        ProviderError::Away(cause) => cause,
                        error => error.to_string(),
                    };
                    tracing::warn!(login, cause, "the metadata of a login provider cannot be read");
                    state.failing = Some(cause);
                }
            }
        }
        match (&state.good, &state.failing) {
            (Some(good), None) => Ok(Arc::clone(good)),
            (Some(good), Some(_)) if need == Need::Other => Ok(Arc::clone(good)),
            (_, cause) => Err(ProviderError::Away(cause.clone().unwrap_or_default())),
        }
    }
}

async fn fetch(
    outbound: &Outbound,
    settings: &ProviderSettings,
) -> Result<Endpoints, ProviderError> {
    let metadata = Metadata::discover(outbound, &settings.url, &settings.issuer).await?;
    let is_https = settings.url.is_https();
    let optional = |name: &'static str| {
        metadata.has(name).then(|| metadata.endpoint(name, is_https, false)).transpose()
    };
    Ok(Endpoints {
        authorization: metadata.endpoint("authorization_endpoint", is_https, false)?,
        token: metadata.endpoint("token_endpoint", is_https, false)?,
        userinfo: optional("userinfo_endpoint")?,
        end_session: optional("end_session_endpoint")?,
        announces_iss: metadata.is_true("authorization_response_iss_parameter_supported"),
    })
}

/// How often the metadata is read.
const READ_AGAIN: Duration = Duration::from_hours(1);

/// How old it may be when something is sent there that must not be lost.
const KNOWN_TO_BE_THERE: Duration = Duration::from_secs(10);

/// How soon it is read again after a failure, if good endpoints are known.
const RETRY_WITH_GOOD: Duration = Duration::from_mins(1);

/// How soon it is read again after a failure, if none are known or a person waits.
const RETRY: Duration = Duration::from_secs(2);
