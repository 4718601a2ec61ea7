//! How strongly, and how recently, a caller must have proved who they are (RFC 9470).

use std::fmt::Write;

use serde_json::Value;

use crate::token::VerifiedToken;

/// What a route requires of the login behind a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepUp {
    /// `acr` must be one of these; empty: any. Each consists of visible ASCII without quotes.
    pub acr: Vec<String>,
    /// How long ago the person may have proved who they are, in seconds.
    pub max_age: Option<u64>,
}

/// A caller who has to log in again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the login of the caller is not as strong or as recent as the route requires: {}", .wanted.in_words())]
pub struct Insufficient {
    /// What the route requires.
    pub wanted: StepUp,
    /// Whether the login is strong enough, and only too long ago.
    pub is_strong: bool,
    /// How the caller logged in, if the built-in issuer says so.
    pub idp: Option<String>,
    /// What the caller recognizes their account by, if they are logged in.
    pub who: Option<String>,
}

impl Insufficient {
    /// The challenge of RFC 9470 §3, for `WWW-Authenticate`.
    pub fn challenge(&self) -> String {
        let required = if self.is_strong {
            "A more recent authentication is required"
        } else {
            "A different authentication level is required"
        };
        let mut challenge = format!(
            "Bearer realm=\"portcullis\", error=\"insufficient_user_authentication\", error_description=\"{required}\""
        );
        for (name, value) in self.wanted.parameters() {
            // Writing to a string cannot fail.
            let _ = write!(challenge, ", {name}=\"{value}\"");
        }
        challenge
    }
}

impl StepUp {
    /// Whether every login is enough.
    pub fn is_empty(&self) -> bool {
        self.acr.is_empty() && self.max_age.is_none()
    }

    /// Checks the login of a caller at `now`, in Unix seconds. A claim that is missing proves
    /// nothing. Unlike other requirements, a caller who meets it now may not meet it later.
    ///
    /// # Errors
    /// [`Insufficient`]: the caller has to log in again.
    pub fn check(&self, caller: &VerifiedToken, now: u64) -> Result<(), Box<Insufficient>> {
        let text = |name: &str| caller.claims().get(name).and_then(Value::as_str);
        let is_strong = self.acr.is_empty()
            || text("acr").is_some_and(|acr| self.acr.iter().any(|one| one == acr));
        let is_recent = self.max_age.is_none_or(|seconds| {
            let at = caller.claims().get("auth_time").and_then(Value::as_u64);
            at.is_some_and(|at| at.saturating_add(seconds) >= now)
        });
        if is_strong && is_recent {
            return Ok(());
        }
        let idp = text("idp").filter(|_| caller.is_ours()).map(str::to_owned);
        let who = Some(caller.known_as().to_owned());
        Err(Box::new(Insufficient { wanted: self.clone(), is_strong, idp, who }))
    }

    /// The parameters that ask the endpoint of a provider for such a login.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let acr = (!self.acr.is_empty()).then(|| ("acr_values", self.acr.join(" ")));
        let max_age = self.max_age.map(|seconds| ("max_age", seconds.to_string()));
        acr.into_iter().chain(max_age).collect()
    }

    fn in_words(&self) -> String {
        let pairs = self.parameters();
        let words = pairs.iter().map(|(name, value)| format!("{name} {value}"));
        words.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_says_what_is_required() {
        let of = |wanted: &StepUp, is_strong| {
            Insufficient { wanted: wanted.clone(), is_strong, idp: None, who: None }.challenge()
        };
        let both = StepUp { acr: vec!["phr".into(), "phrh".into()], max_age: Some(600) };
        let challenge = of(&both, false);
        assert!(challenge.starts_with(
            "Bearer realm=\"portcullis\", error=\"insufficient_user_authentication\", "
        ));
        assert!(challenge.ends_with(", acr_values=\"phr phrh\", max_age=\"600\""), "{challenge}");
        let age = StepUp { acr: Vec::new(), max_age: Some(5) };
        let challenge = of(&age, true);
        assert!(challenge.ends_with("A more recent authentication is required\", max_age=\"5\""));
        assert_eq!(age.in_words(), "max_age 5");
        assert!(StepUp::default().is_empty() && !age.is_empty());
    }
}
