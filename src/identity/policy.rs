//! The `[identity]` section, checked.

use std::sync::Arc;
use std::time::Duration;

use super::Brand;
use super::compat::Compat;
use super::cookie::Cookies;
use super::mail::MailSettings;
use super::provider::Provider;
use super::return_to::Sites;
use super::texts::Language;
use crate::token::Algorithm;

/// How the built-in issuer behaves under one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The `iss` of its tokens, which is the URL of its mount without a trailing slash.
    pub issuer: String,
    /// The `aud` of its tokens.
    pub audience: Vec<String>,
    /// The algorithm of new keys.
    pub algorithm: Algorithm,
    /// How long an access token is valid, at most [`LONGEST_ACCESS_TOKEN`].
    pub access_token_ttl: Duration,
    /// How long a session lasts without being used.
    pub refresh_token_ttl: Duration,
    /// Within this time, a repeated refresh gets the same successor.
    pub refresh_reuse_interval: Duration,
    /// The longest lifetime of a session.
    pub session_lifetime: Duration,
    /// How long a key signs.
    pub key_rotation: Duration,
    /// Who may create an account.
    pub registration: Registration,
    /// The roles of an account that registers itself.
    pub default_roles: Vec<String>,
    /// Whether tokens contain `email`.
    pub includes_email: bool,
    /// Whether tokens contain `name`.
    pub includes_name: bool,
    /// Whether a login requires a confirmed address.
    pub verify_email: bool,
    /// Whether accounts may set up a second factor.
    pub totp: bool,
    /// Minimum length of a password in characters.
    pub password_min_length: usize,
    /// How mail is sent. `None`: no mail is sent.
    pub mail: Option<MailSettings>,
    /// Whether people log in with a password.
    pub password_login: bool,
    /// The OpenID providers that people log in at, in the order of their names.
    pub providers: Vec<Arc<Provider>>,
    /// The languages of pages and mails, at least one. The first is the default.
    pub languages: Vec<Language>,
    /// The look of the pages.
    pub brand: Arc<Brand>,
    /// The names of members in bodies.
    pub compat: Compat,
    /// The cookies of a browser's session.
    pub cookies: Cookies,
    /// The other hosts that a login may lead back to.
    pub sites: Sites,
}

impl Policy {
    /// The provider with this name.
    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| *provider.settings().name == *name)
    }

    /// The provider, if logging in there is the only way to log in.
    pub fn only_provider(&self) -> Option<&Arc<Provider>> {
        match &*self.providers {
            [only] if !self.password_login => Some(only),
            _ => None,
        }
    }

    /// The provider at which a session began: the section with this name, unless it names another
    /// issuer now; if it was renamed, the only one with this issuer.
    pub fn provider_of(&self, name: &str, issuer: &str) -> Option<&Arc<Provider>> {
        let mut same = self.providers.iter().filter(|own| own.settings().issuer == issuer);
        let named = self.provider(name).filter(|own| own.settings().issuer == issuer);
        named.or_else(|| same.next().filter(|_| same.next().is_none()))
    }

    /// Whether browsers drop the cookies of a login, because people log in without TLS and not on
    /// this machine.
    pub fn loses_logins(&self) -> bool {
        let uri = self.issuer.parse::<http::Uri>().unwrap_or_default();
        uri.scheme_str() == Some("http") && !uri.host().is_some_and(is_this_machine)
    }
}

/// Whether a host of a URL is the machine that the browser runs on.
pub fn is_this_machine(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Who may create an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Only `portcullis user add`.
    Closed,
    /// Anyone.
    Open,
}

/// The longest `access_token_ttl`. Revocations are remembered for as long.
pub const LONGEST_ACCESS_TOKEN: Duration = Duration::from_hours(24);

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::compile::CompileOptions;
    use crate::config::value::CreateFiles;
    use crate::gateway::Snapshot;
    use crate::telemetry::metrics::Metrics;

    /// The policy of an `[identity]` section that sets only its issuer.
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
