//! Attacks a proxy that asks, from outside, as a client would.
//!
//! [`corpus`] writes requests that must not get in, or that carry what must not reach the
//! application. [`sender`] sends them to one address. [`judge`] compares what happens with the
//! decision of the gateway for the same request on the same file.
//!
//! Every request is a GET without effects on the application, and carries a random mark:
//! an application that echoes its requests shows by it what has reached it.

mod corpus;
mod echo;
mod judge;
mod oracle;
mod response;
mod sender;
mod spelling;
mod targets;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::corpus::Corpus;
pub use self::corpus::{Case, Family};
pub use self::echo::Echo;
use self::judge::Judge;
pub use self::judge::Verdict;
pub use self::oracle::Oracle;
pub use self::sender::{Sender, Unreachable};

/// The time between the starts of two requests: at most 20 a second.
const PACE: Duration = Duration::from_millis(50);

/// Why an attack says nothing.
#[derive(Debug, thiserror::Error)]
pub enum Pointless {
    /// No request could be sent.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// No route of the file can be attacked through a proxy.
    #[error("no route of the file can be attacked: none that takes GET {0}")]
    NoRoute(&'static str),
    /// A request that the gateway lets in does not get in.
    #[error(
        "GET {target} of {host} should get in, but the answer is {answer}: check that the proxy, the gateway and the application run, and that --through is the URL of the proxy"
    )]
    Control {
        /// The host.
        host: String,
        /// The target.
        target: String,
        /// The status and reason.
        answer: String,
    },
    /// Nothing has shown that the gateway decides here.
    #[error(
        "no answer was the gateway's, and none has reached the application: is this the URL of a proxy that asks the gateway of this file?"
    )]
    NoGateway,
}

/// What happened to one case.
#[derive(Debug)]
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// What came of it.
    pub verdict: Verdict,
}

/// What happened to all cases.
#[derive(Debug)]
pub struct Report {
    /// In the order in which they were sent.
    pub outcomes: Vec<Outcome>,
    /// Whether the application shows what it gets.
    pub echoes: bool,
}

impl Report {
    /// The cases that got through.
    pub fn through(&self) -> impl Iterator<Item = (&Case, &str)> {
        self.outcomes.iter().filter_map(|outcome| match &outcome.verdict {
            Verdict::Through(why) => Some((&outcome.case, why.as_str())),
            _ => None,
        })
    }

    /// The cases whose answers could be the application's own.
    pub fn unclear(&self) -> impl Iterator<Item = (&Case, &str)> {
        self.outcomes.iter().filter_map(|outcome| match &outcome.verdict {
            Verdict::Unclear(why) => Some((&outcome.case, why.as_str())),
            _ => None,
        })
    }

    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        let listed = |(case, why): (&Case, &str)| {
            json!({
                "family": case.family.as_str(),
                "request": case.shown(),
                "expected": {
                    "allow": case.expected.allow,
                    "status": case.expected.status,
                    "reason": case.expected.reason.as_str(),
                },
                "why": why,
            })
        };
        json!({
            "cases": self.outcomes.len(),
            "application_echoes": self.echoes,
            "through": self.through().map(listed).collect::<Vec<_>>(),
            "unclear": self.unclear().map(listed).collect::<Vec<_>>(),
        })
    }
}

/// Sends every case, and tells `each` about its outcome. `began` is told how many there are.
///
/// # Errors
/// [`Pointless`], if the result would say nothing about the proxy.
pub async fn attack(
    oracle: &Oracle<'_>,
    sender: &Sender,
    began: impl FnOnce(usize),
    mut each: impl FnMut(&Outcome),
) -> Result<Report, Pointless> {
    let corpus = Corpus::new(oracle);
    if corpus.is_empty() {
        return Err(Pointless::NoRoute(oracle.lacking()));
    }
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut judge = Judge::new(oracle);
    for case in corpus.controls() {
        pace.tick().await;
        let answer = sender.send(case).await?;
        if let Some(answer) = judge.learn(case, answer.as_ref()) {
            let (host, target) = (case.host.clone(), case.target.clone());
            return Err(Pointless::Control { host, target, answer });
        }
    }
    let cases = corpus.cases();
    began(cases.len());
    let mut outcomes = Vec::with_capacity(cases.len());
    for case in cases {
        pace.tick().await;
        let answer = sender.send(&case).await?;
        let verdict = judge.judge(&case, answer.as_ref());
        let outcome = Outcome { case, verdict };
        each(&outcome);
        outcomes.push(outcome);
    }
    if !judge.has_seen_gateway() {
        return Err(Pointless::NoGateway);
    }
    Ok(Report { outcomes, echoes: judge.echoes() })
}

/// The time that so many requests take at least.
pub fn duration(cases: usize) -> Duration {
    PACE * u32::try_from(cases).unwrap_or(u32::MAX)
}

/// The maximum time of one exchange. A proxy waits about ten seconds for a gateway.
const PATIENCE: Duration = Duration::from_secs(20);

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}
