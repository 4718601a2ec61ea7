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
    /// When to read the metadata again.
    due: Option<Instant>,
    /// Why that failed, if it did.
    failing: Option<String>,
}

impl Known {
    /// The endpoints. Callers that arrive together wait for one fetch.
    pub(super) async fn read(
        &self,
        outbound: &Outbound,
        settings: &ProviderSettings,
    ) -> Result<Arc<Endpoints>, ProviderError> {
        let mut state = self.0.lock().await;
        if state.due.is_none_or(|due| due <= Instant::now()) {
            let read = fetch(outbound, settings).await;
            let wait = match (&read, &state.good) {
                (Ok(_), _) => READ_AGAIN,
                (Err(_), Some(_)) => RETRY_WITH_GOOD,
                (Err(_), None) => RETRY,
            };
            state.due = Some(Instant::now() + wait);
            match read {
                Ok(endpoints) => {
                    state.good = Some(Arc::new(endpoints));
                    state.failing = None;
                }
                Err(error) => {
                    let (login, cause) = (&*settings.name, error.to_string());
                    tracing::warn!(login, cause, "the metadata of a login provider cannot be read");
                    state.failing = Some(cause);
                }
            }
        }
        match (&state.good, &state.failing) {
            (Some(good), _) => Ok(Arc::clone(good)),
            (None, cause) => Err(ProviderError::Away(cause.clone().unwrap_or_default())),
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

/// How soon it is read again after a failure, if good endpoints are known.
const RETRY_WITH_GOOD: Duration = Duration::from_mins(1);

/// How soon it is read again after a failure, if none are known.
const RETRY: Duration = Duration::from_secs(2);
