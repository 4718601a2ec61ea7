//! What an `[identity]` section says, checked.

use std::sync::Arc;
use std::time::Duration;

use super::Brand;
use super::mail::MailSettings;
use crate::token::Algorithm;

/// How the built-in issuer behaves under one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `iss` of its tokens, and the URL of its mount, without a slash at the end.
    pub issuer: String,
    /// `aud` of its tokens.
    pub audience: Vec<String>,
    /// What new keys sign with.
    pub algorithm: Algorithm,
    /// How long an access token is valid, at most [`LONGEST_ACCESS_TOKEN`].
    pub access_token_ttl: Duration,
    /// How long a session lasts without being used.
    pub refresh_token_ttl: Duration,
    /// Within it a repeated refresh gets the same successor.
    pub refresh_reuse_interval: Duration,
    /// How long a session lasts at most.
    pub session_lifetime: Duration,
    /// How long a key signs.
    pub key_rotation: Duration,
    /// Who may make an account.
    pub registration: Registration,
    /// The roles of an account that registers itself.
    pub default_roles: Vec<String>,
    /// Whether tokens hold `email`.
    pub tells_email: bool,
    /// Whether tokens hold `name`.
    pub tells_name: bool,
    /// Whether a login needs an address that was shown to be its owner's.
    pub verify_email: bool,
    /// Whether accounts may set up a second factor.
    pub totp: bool,
    /// Characters of a password.
    pub password_min_length: usize,
    /// How mail leaves; `None`: none does.
    pub mail: Option<MailSettings>,
    /// How the pages look.
    pub brand: Arc<Brand>,
    /// The cookie that holds an access token: `[server] token_cookie`.
    pub access_cookie: String,
}

/// Who may make an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Nobody from outside: `portcullis user add` does.
    Closed,
    /// Everybody.
    Open,
}

/// The longest `access_token_ttl`. What is revoked is remembered for as long.
pub const LONGEST_ACCESS_TOKEN: Duration = Duration::from_hours(24);

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::compile::CompileOptions;
    use crate::config::value::CreateFiles;
    use crate::gateway::Snapshot;
    use crate::telemetry::metrics::Metrics;

    /// The policy of an `[identity]` section that says no more than its issuer.
    pub(in crate::identity) fn policy() -> Policy {
        let text = "[identity]\nissuer = 'https://app.example.com/auth'\n[[route]]\npath = '/auth/*'\nidentity = true\n";
        let loaded = crate::config::parse(Path::new("gateway.toml"), text.to_owned()).unwrap();
        let options = CompileOptions {
            previous: None,
            create: CreateFiles::No,
            metrics: &Metrics::new(),
            now: 0,
        };
        let compiled = Snapshot::compile(loaded, &options).unwrap();
        compiled.snapshot.identity.unwrap().as_ref().clone()
    }
}
