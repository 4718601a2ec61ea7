//! What the gateway decides about a request, by the code of `explain`.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};

use crate::explain::{Explanation, Question, explain};
use crate::gateway::Snapshot;
use crate::gateway::dialect::Dialect;
use crate::gateway::headers::DEFAULT_IDENTITY;
use crate::token::AssumedToken;

/// The decisions of one file.
#[derive(Debug)]
pub struct Oracle<'s> {
    /// The file.
    pub snapshot: &'s Snapshot,
    /// The proxy that asks; `None`: the gateway is in the path.
    pub via: Option<Dialect>,
    /// The host of the URL, for routes that serve every host.
    pub host: String,
    /// Whether clients speak TLS with the proxy.
    pub is_https: bool,
    /// A token, and the caller that it is assumed to prove: the control requests show whether the
    /// gateway takes it.
    pub token: Option<(String, AssumedToken)>,
    /// Now, in Unix seconds.
    pub now: u64,
}

/// The credentials of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// No credentials.
    None,
    /// The operator's token.
    Token,
}

impl Oracle<'_> {
    /// Decides a GET.
    pub fn decide(
        &self,
        host: &str,
        target: &str,
        headers: HeaderMap,
        credentials: Credentials,
    ) -> Explanation {
        let scheme = if self.is_https { "https" } else { "http" };
        let absolute = target.contains("://");
        let assumed = self.token.as_ref().filter(|_| credentials == Credentials::Token);
        let question = Question {
            method: Method::GET,
            url: if absolute { target.to_owned() } else { format!("{scheme}://{host}{target}") },
            headers,
            peer: [127, 0, 0, 1].into(),
            assumed: assumed.map(|(_, assumed)| assumed.clone()),
            looked_up: None,
            revoked: Arc::default(),
            via: self.via,
        };
        explain(self.snapshot, &question, self.now)
    }

    /// The names of identity headers.
    pub fn identity(&self) -> Vec<HeaderName> {
        match &self.snapshot.askers {
            Some(askers) if self.via.is_some() => askers.names().to_vec(),
            _ => DEFAULT_IDENTITY.iter().map(|(name, _)| HeaderName::from_static(name)).collect(),
        }
    }

    /// What a route that can be attacked has.
    pub fn lacking(&self) -> &'static str {
        if self.via.is_some() { "is external" } else { "leads to an upstream" }
    }
}
