//! What came of a case.

use http::HeaderMap;
use serde_json::Value;

use super::corpus::Case;
use super::oracle::Oracle;
use super::response::Response;
use super::sender::Answer;
use crate::explain::Explanation;
use crate::reason::Reason;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was refused, or what must not reach the application has not.
    Held,
    /// It got through: how that shows.
    Through(String),
    /// The answer may be the application's own.
    Unclear(String),
}

/// Compares answers with decisions.
pub(super) struct Judge<'o> {
    oracle: &'o Oracle<'o>,
    echoes: bool,
    has_seen_gateway: bool,
}

/// What an application says that it got.
struct Echoed {
    /// Everything but the body.
    text: String,
    target: Option<String>,
    fields: Option<serde_json::Map<String, Value>>,
}

impl<'o> Judge<'o> {
    pub(super) fn new(oracle: &'o Oracle<'o>) -> Self {
        Self { oracle, echoes: false, has_seen_gateway: false }
    }

    /// Whether the application shows what it gets.
    pub(super) fn echoes(&self) -> bool {
        self.echoes
    }

    /// Whether an answer was the gateway's, or something got through.
    pub(super) fn has_seen_gateway(&self) -> bool {
        self.has_seen_gateway
    }

    /// Learns from an ordinary request whether the application echoes. Returns the answer in words
    /// if it did not get in.
    pub(super) fn learn(&mut self, case: &Case, answer: Option<&Answer>) -> Option<String> {
        let Some(answer) = answer else { return Some("none in time".to_owned()) };
        let Some(response) = answer.responses.first() else {
            return Some("a closed connection".to_owned());
        };
        if echoed(response).text.contains(&case.mark) {
            self.echoes = true;
            return None;
        }
        match by_gateway(response) {
            // It would get in at another time.
            Some(reason) if reason == Reason::RateLimited.as_str() => None,
            Some(reason) => Some(format!("{} {reason}", response.status)),
            None if response.status >= 500 || response.status == 0 => {
                Some(response.status.to_string())
            }
            None => None,
        }
    }

    /// Judges a case.
    pub(super) fn judge(&mut self, case: &Case, answer: Option<&Answer>) -> Verdict {
        let Some(answer) = answer else { return Verdict::Unclear("no answer in time".to_owned()) };
        let by_gateway = answer.responses.iter().any(|response| by_gateway(response).is_some());
        let verdict = self.verdict(case, answer);
        self.has_seen_gateway |= by_gateway || matches!(verdict, Verdict::Through(_));
        verdict
    }

    fn verdict(&self, case: &Case, answer: &Answer) -> Verdict {
        for response in &answer.responses {
            let seen = echoed(response);
            if let Some(protocol) = upgraded(case, response, &seen) {
                return Verdict::Through(format!("the upgrade to `{protocol}`"));
            }
            let text = seen.text;
            if let Some((name, _)) = case.secrets.iter().find(|(_, value)| text.contains(value)) {
                return Verdict::Through(format!("`{name}` of the client reached the application"));
            }
        }
        // The connection was closed without an answer.
        let Some(response) = answer.responses.first() else { return Verdict::Held };
        let expected = &case.expected;
        if expected.allow {
            self.identity(expected, response)
        } else {
            self.refused(case, expected, response)
        }
    }

    /// A request that may get in: the application has to learn who it is.
    fn identity(&self, expected: &Explanation, response: &Response) -> Verdict {
        let Some(fields) = echoed(response).fields else { return Verdict::Held };
        let names = self.oracle.identity();
        for (name, value) in expected.set.iter().filter(|(name, _)| names.contains(name)) {
            let found = fields.get(name.as_str()).and_then(Value::as_str).unwrap_or_default();
            if found.as_bytes() != value.as_bytes() {
                return Verdict::Through(format!(
                    "the application got `{name}: {found}`, where the gateway says `{}`",
                    String::from_utf8_lossy(value.as_bytes())
                ));
            }
        }
        Verdict::Held
    }

    /// A request that the gateway refuses.
    fn refused(&self, case: &Case, expected: &Explanation, response: &Response) -> Verdict {
        let (status, seen) = (response.status, echoed(response));
        let is_reached = seen.text.contains(&case.mark);
        if is_reached || matches!(status, 101 | 200..=299) {
            if self.is_rewritten(case, &seen) {
                return Verdict::Held;
            }
            let refusal = format!("{} {}", expected.status, expected.reason.as_str());
            return Verdict::Through(format!("{status}, where the gateway says {refusal}"));
        }
        // An application that echoes has no other answers, and a proxy writes these itself.
        if by_gateway(response).is_some() || self.echoes || matches!(status, 502..=504) {
            return Verdict::Held;
        }
        Verdict::Unclear(format!("{status}, without the reason that the gateway would write"))
    }

    /// Whether the proxy has made another request of this one, before it asked, which the gateway
    /// lets in as the application got it.
    fn is_rewritten(&self, case: &Case, seen: &Echoed) -> bool {
        let Some(target) = &seen.target else { return false };
        let host = seen.fields.as_ref().and_then(|fields| fields.get("host")?.as_str());
        let host = host.unwrap_or(&case.host);
        let is_same = *target == case.target && host == case.host;
        !is_same && self.oracle.decide(host, target, HeaderMap::new(), case.credentials).allow
    }
}

/// The protocol of an upgrade that has passed and must not: the application has switched to it, or
/// shows that it was asked to. A proxy may make a WebSocket of several protocols.
fn upgraded(case: &Case, response: &Response, seen: &Echoed) -> Option<String> {
    let is_websocket = |protocol: &str| protocol.eq_ignore_ascii_case("websocket");
    let passed = if response.status == 101 {
        response.field("upgrade").unwrap_or_default()
    } else {
        seen.fields.as_ref()?.get("upgrade")?.as_str()?
    };
    let has_one = case.protocols.iter().any(|protocol| is_websocket(protocol));
    let is_foreign = !(case.protocols.is_empty() || has_one && is_websocket(passed));
    is_foreign.then(|| passed.to_owned())
}

/// What an application says that it got: the members of a JSON object, except the body; else the
/// text as it is.
fn echoed(response: &Response) -> Echoed {
    let text = String::from_utf8_lossy(&response.body).into_owned();
    match serde_json::from_str(&text) {
        Ok(Value::Object(mut members)) if response.status < 400 => {
            for body in ["body", "data", "form", "json"] {
                members.remove(body);
            }
            let target = members.get("target").and_then(Value::as_str).map(str::to_owned);
            let fields = members.get("headers").and_then(Value::as_object).cloned();
            // As in the texts of the fields: JSON would escape quotes.
            Echoed { text: Value::Object(members).to_string(), target, fields }
        }
        _ => Echoed { text, target: None, fields: None },
    }
}

/// The reason, if the gateway has written the answer.
fn by_gateway(response: &Response) -> Option<&'static str> {
    if response.field("location").is_some_and(|location| location.contains("return_to=")) {
        return Some("a redirect to the login");
    }
    let is_problem = response
        .field("content-type")
        .is_some_and(|kind| kind.starts_with("application/problem+json"));
    let body: Value = serde_json::from_slice(&response.body).ok().filter(|_| is_problem)?;
    let reason = body.get("reason")?.as_str()?;
    Reason::ALL.into_iter().map(Reason::as_str).find(|known| *known == reason)
}
