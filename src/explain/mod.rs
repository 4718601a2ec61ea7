//! Describes the decision for one request. Nothing is sent.
//!
//! The `explain` command prints it, and `[[test]]` blocks are compared with it. The request takes
//! the same path as every other: its bytes go through the HTTP server of the data path
//! ([`wire`](self::wire)), then through [`Decider::decide`], which a [`Narrator`] observes.

mod describe;
mod narrator;
mod via;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use self::narrator::Narrator;
use crate::gateway::Snapshot;
use crate::gateway::authenticate::{LookedUp, Verifier};
use crate::gateway::client::Peer;
use crate::gateway::decide::Decider;
use crate::gateway::dialect::{Dialect, VerifyFault};
use crate::reason::Reason;
use crate::revocation::RevocationList;
use crate::token::{AssumedToken, VerifiedToken};

/// A request to explain. It is never sent.
#[derive(Clone, Debug)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// An absolute URL, a path with a query, or `*`.
    pub url: String,
    /// The header fields.
    pub headers: HeaderMap,
    /// The address of the other end of the socket.
    pub peer: IpAddr,
    /// A caller that is assumed to be verified.
    pub assumed: Option<AssumedToken>,
    /// What the personal access token of the request proves, if it was looked up.
    pub looked_up: Option<Arc<LookedUp>>,
    /// The revoked tokens.
    pub revoked: Arc<RevocationList>,
    /// The proxy that receives the request and asks about it; `None`: the gateway receives it.
    pub via: Option<Dialect>,
}

/// The decision, and how it was made.
#[derive(Clone, Debug, Default)]
pub struct Explanation {
    /// Whether the request would be forwarded.
    pub allow: bool,
    /// 200, or the status of the redirect or refusal.
    pub status: u16,
    /// The reason.
    pub reason: Reason,
    /// The name of the route.
    pub route: Option<String>,
    /// Whether another proxy forwards the requests of the route.
    pub is_external: bool,
    /// The decoded path that was matched.
    pub target: Option<String>,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The caller.
    pub caller: Option<Arc<VerifiedToken>>,
    /// Every field that the upstream would see.
    pub sent: HeaderMap,
    /// The fields that the upstream would see and that differ from those of the client.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// The fields of the client that the upstream would not see.
    pub removed: Vec<HeaderName>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// One step of the decision.
#[derive(Clone, Debug)]
pub struct Step {
    /// The name of the step.
    pub step: &'static str,
    /// `ok`, `refused` or `skipped`.
    pub outcome: &'static str,
    /// A description.
    pub detail: String,
}

impl Explanation {
    /// The explanation as JSON (CONTRACT §1).
    pub fn to_json(&self) -> Value {
        let mut set = Map::new();
        for (name, value) in &self.set {
            set.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into());
        }
        json!({
            "verdict": if self.allow { "allow" } else { "refuse" },
            "status": self.status,
            "reason": self.reason.as_str(),
            "route": self.route,
            "target": self.target,
            "client": self.client.map(|client| client.to_string()),
            "issuer": self.caller.as_ref().map(|caller| caller.issuer_name().to_string()),
            "subject": self.caller.as_ref().map(|caller| caller.subject()),
            "roles": self.caller.as_ref().map(|caller| caller.roles()),
            "headers": { "set": set, "removed": self.removed.iter().map(HeaderName::as_str).collect::<Vec<_>>() },
            "steps": self.steps.iter().map(|step| json!({ "step": step.step, "outcome": step.outcome, "detail": step.detail })).collect::<Vec<_>>(),
        })
    }
}

/// Decides a request without sending it. `now` is in Unix seconds.
pub fn explain(snapshot: &Snapshot, question: &Question, now: u64) -> Explanation {
    let verifier = Verifier::offline(
        &snapshot.rules.token_names,
        &snapshot.issuers,
        &question.revoked,
        question.assumed.as_ref(),
        question.looked_up.as_deref(),
    );
    let decider = Decider { snapshot, verifier, now, online: None };
    let mut narrator = Narrator::new(snapshot);
    if let Some(dialect) = question.via {
        return explain_asked(&decider, question, dialect, narrator);
    }
    let head = match wire::Head::new(question) {
        Ok(head) => head,
        Err(refusal) => return narrator.refused(&refusal),
    };
    let peer = Peer::new(question.peer, head.tls);
    let outcome = wire::parse(&head, &snapshot.limits, async |parts, announced| {
        decider.decide(&peer, parts, announced, &mut narrator).await
    });
    match outcome {
        Ok(Ok(allowed)) => narrator.allowed(&allowed),
        Ok(Err(refusal)) => narrator.refused(&refusal),
        Err(malformed) => narrator.malformed(&malformed),
    }
}

/// Decides a request that another proxy asks about.
fn explain_asked(
    decider: &Decider<'_>,
    question: &Question,
    dialect: Dialect,
    mut narrator: Narrator<'_>,
) -> Explanation {
    let Some(askers) = &decider.snapshot.askers else {
        return narrator.refused(&VerifyFault::Peer(question.peer).into());
    };
    let peer = Peer::new(askers.networks().first().map_or(question.peer, IpNet::addr), false);
    let asker = match askers.asker(&peer, Some(dialect)) {
        Ok(asker) => asker,
        Err(fault) => return narrator.refused(&fault.into()),
    };
    let head = match via::head(question, dialect, askers) {
        Ok(head) => head,
        Err(refusal) => return narrator.refused(&refusal),
    };
    let outcome = wire::parse(&head, &decider.snapshot.limits, async |parts, announced| {
        decider.verify(asker, parts, announced, &mut narrator).await
    });
    match outcome {
        Ok(Ok(allow)) => narrator.answered(&allow),
        Ok(Err(refusal)) => narrator.refused(&refusal),
        Err(malformed) => narrator.malformed(&malformed),
    }
}
