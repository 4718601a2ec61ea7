//! `[identity.login.NAME]`: the providers that people log in at.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Compiler;
use super::issuers::Inline;
use crate::config::Problem;
use crate::config::file::Text;
use crate::config::login::Login as Written;
use crate::config::value;
use crate::identity::account::is_role;
use crate::identity::provider::{ClientCredential, Linking, Provider, ProviderSettings};
use crate::keys::{IssuerKeys, KeySettings, Place, Remote, Source};
use crate::outbound::{Outbound, Url};
use crate::tls;
use crate::token::{Algorithms, Family};

impl Compiler<'_> {
    /// The providers, in the order of their names.
    pub(super) fn logins(&mut self, folder: &Path) -> Vec<Arc<Provider>> {
        let Some(section) = &self.file.identity else { return Vec::new() };
        let written = section.get_ref();
        if let Some(flag) = written.password_login.as_ref().filter(|flag| !flag.get_ref()) {
            if written.login.is_empty() {
                let problem = Problem::error(flag.span(), "no way to log in is left");
                self.error(problem.help("add an `[identity.login.NAME]` section, or remove this"));
            }
            if let Some(registration) =
                written.registration.as_ref().filter(|word| word.get_ref() == "open")
            {
                self.error(
                    Problem::error(registration.span(), "registration needs passwords")
                        .related(flag.span(), "which are turned off here")
                        .help("remove one of the two"),
                );
            }
        }
        let mut providers: Vec<Arc<Provider>> = Vec::new();
        for (name, written) in &written.login {
            let Some(provider) = self.login(name, written, folder) else { continue };
            self.warn_about_other_roles(name, &provider, &providers);
            providers.push(provider);
        }
        providers
    }

    /// Sections of one issuer lead to the same accounts.
    fn warn_about_other_roles(
        &mut self,
        name: &Text,
        provider: &Provider,
        others: &[Arc<Provider>],
    ) {
        let own = provider.settings();
        let differs = |other: &&Arc<Provider>| {
            let other = other.settings();
            other.issuer == own.issuer
                && own.roles.is_some()
                && other.roles.is_some()
                && (&own.roles, &own.role_map, &own.default_roles)
                    != (&other.roles, &other.role_map, &other.default_roles)
        };
        if let Some(other) = others.iter().find(differs) {
            let message = format!(
                "logins `{}` and `{}` give the same accounts different roles",
                other.settings().name,
                own.name
            );
            self.problems.push(Problem::warning(name.span(), message).help(
                "an account has the roles of the section that was asked last: write the same `roles`, `role_map` and `default_roles` in both",
            ));
        }
    }

    fn login(&mut self, name: &Text, written: &Written, folder: &Path) -> Option<Arc<Provider>> {
        self.check_login_name(name);
        let (url, client_id) = (self.login_issuer(name, written), self.client_id(name, written));
        let credential = self.client_credential(name, written);
        let (scopes, link) = (self.login_scopes(written), self.linking(written));
        let parameters = self.login_parameters(written);
        let roles = written.roles.as_ref().map(|roles| self.claim_path(Some(roles), "roles"));
        let role_map = self.role_map(written);
        let default_roles = self.roles_listed(written.default_roles.as_ref());
        let require = self.claim_values(written.require.as_ref().map(Spanned::get_ref));
        let recheck = match &written.recheck {
            None => Some(Duration::from_mins(15)),
            Some(text) => self.ok_or_report(value::duration(text, SHORTEST_RECHECK..=DAY)),
        };
        let ca = match &written.ca {
            None => Some(None),
            Some(text) => {
                self.read_file(text, "a PEM file with the certificates that are trusted").map(Some)
            }
        };
        let title = self.login_title(name, written);
        let settings = ProviderSettings {
            name: name.get_ref().as_str().into(),
            title: title?,
            issuer: written.issuer.as_ref()?.get_ref().clone(),
            url: url?,
            client_id: client_id?,
            credential: credential?,
            scopes: scopes?,
            parameters: parameters?,
            roles,
            role_map: role_map?,
            default_roles: default_roles?,
            require,
            link: link?,
            recheck: recheck?,
            ca: ca?,
        };
        let (keys, outbound) = self.login_keys(name, written, &settings, folder)?;
        let mut previous = self
            .previous
            .and_then(|previous| previous.identity.as_deref())
            .into_iter()
            .flat_map(|policy| &policy.providers);
        let kept = previous
            .find(|kept| *kept.settings() == settings && Arc::ptr_eq(kept.keys(), &keys))
            .cloned();
        if kept.is_some() {
            return kept;
        }
        match Provider::new(settings, keys, outbound) {
            Ok(provider) => Some(Arc::new(provider)),
            Err(error) => {
                let span = written.client_key.as_ref().map_or(name.span(), Spanned::span);
                let problem = Problem::error(span, error.to_string());
                self.error(problem.help("name a file with one private key in PEM"));
                None
            }
        }
    }

    /// The text on the button.
    fn login_title(&mut self, name: &Text, written: &Written) -> Option<String> {
        let Some(title) = &written.name else { return Some(name.get_ref().clone()) };
        if title.get_ref().trim().is_empty() {
            let problem = Problem::error(title.span(), "the button would have no text");
            self.error(problem.help("write what people know the provider by, or remove it"));
            return None;
        }
        Some(title.get_ref().clone())
    }

    /// The name is a segment of paths and a value of the claim `idp`.
    fn check_login_name(&mut self, name: &Text) {
        let text = name.get_ref();
        let is_plain = (1..=32).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if !is_plain {
            self.error(
                Problem::error(name.span(), "the name of a login is part of its URLs").help(
                    "use up to 32 letters, digits, `-` and `_`; the text on the button is `name`",
                ),
            );
        } else if ["password", "code"].contains(&text.as_str()) {
            self.error(
                Problem::error(name.span(), format!("`{text}` is a name of the built-in login"))
                    .help("choose another name"),
            );
        }
    }

    fn login_issuer(&mut self, name: &Text, written: &Written) -> Option<Url> {
        let Some(issuer) = &written.issuer else {
            self.error(
                Problem::error(name.span(), format!("login `{}` has no `issuer`", name.get_ref()))
                    .help("add `issuer = \"https://…\"`, the issuer URL of the provider"),
            );
            return None;
        };
        let problem = match Url::parse(issuer.get_ref()) {
            Ok(url) if url.query().is_some() => "an issuer's URL cannot have a query".to_owned(),
            Ok(url) if url.is_https() || url.is_loopback() => return Some(url),
            Ok(_) => "over http:// anyone on the network path could log in as anyone".to_owned(),
            Err(error) => format!("this is not the URL of a provider: {error}"),
        };
        self.error(
            Problem::error(issuer.span(), problem)
                .help("write the issuer as the provider's metadata does, with https://"),
        );
        None
    }

    fn client_id(&mut self, name: &Text, written: &Written) -> Option<String> {
        let id = written.client_id.as_ref().filter(|id| !id.get_ref().is_empty());
        if id.is_none() {
            let span = written.client_id.as_ref().map_or(name.span(), Spanned::span);
            let message = format!("login `{}` has no `client_id`", name.get_ref());
            self.error(
                Problem::error(span, message)
                    .help("register this gateway at the provider, and write the id that it gives"),
            );
        }
        id.map(|id| id.get_ref().clone())
    }

    fn client_credential(&mut self, name: &Text, written: &Written) -> Option<ClientCredential> {
        let inline =
            if written.insecure_inline_secret { Inline::Permitted } else { Inline::NotPermitted };
        if written.insecure_inline_secret {
            self.weakened.push(format!(
                "identity.login.{}.insecure_inline_secret: the secret is in the configuration file",
                name.get_ref()
            ));
        }
        match (&written.client_secret, &written.client_key) {
            (Some(secret), None) => self.read_secret(secret, inline).map(ClientCredential::Secret),
            (None, Some(key)) => self.read_secret(key, inline).map(ClientCredential::Key),
            (Some(secret), Some(key)) => {
                self.error(
                    Problem::error(key.span(), "a second way to prove who asks")
                        .related(secret.span(), "the first")
                        .help("keep `client_secret` or `client_key`"),
                );
                None
            }
            (None, None) => {
                let message = format!("login `{}` has no `client_secret`", name.get_ref());
                self.error(Problem::error(name.span(), message).help(
                    "add `client_secret = { file = \"…\" }`, or `client_key` for a private key",
                ));
                None
            }
        }
    }

    fn login_scopes(&mut self, written: &Written) -> Option<Vec<String>> {
        let Some(scopes) = &written.scopes else {
            return Some(["openid", "email", "profile"].map(str::to_owned).to_vec());
        };
        let listed: Vec<String> =
            scopes.get_ref().iter().map(|scope| scope.get_ref().clone()).collect();
        let is_scope =
            |scope: &String| !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic());
        if !listed.iter().all(is_scope) || !listed.iter().any(|scope| scope == "openid") {
            self.error(
                Problem::error(scopes.span(), "not a list of scopes with \"openid\"")
                    .help("write `[\"openid\", \"email\", \"profile\"]` and what else you need"),
            );
            return None;
        }
        Some(listed)
    }

    /// Parameters of the authorization request, without those that a login depends on.
    fn login_parameters(&mut self, written: &Written) -> Option<Vec<(String, String)>> {
        let mut all_right = true;
        for name in written.parameters.keys() {
            if OWN_PARAMETERS.contains(&name.get_ref().as_str()) {
                all_right = false;
                self.error(
                    Problem::error(name.span(), "the gateway sets this parameter itself")
                        .help("remove it"),
                );
            }
        }
        let pairs = written
            .parameters
            .iter()
            .map(|(name, value)| (name.get_ref().clone(), value.get_ref().clone()));
        all_right.then(|| pairs.collect())
    }

    #[expect(clippy::option_option, reason = "outer: a problem was found; inner: there is no map")]
    fn role_map(&mut self, written: &Written) -> Option<Option<BTreeMap<String, Vec<String>>>> {
        let Some(map) = &written.role_map else { return Some(None) };
        if written.roles.is_none()
            && let Some(name) = map.keys().next()
        {
            self.error(
                Problem::error(name.span(), "`role_map` has no effect without `roles`")
                    .help("add `roles = \"groups\"`, the claim that it maps"),
            );
            return None;
        }
        let mut mapped = BTreeMap::new();
        for (value, roles) in map {
            mapped.insert(value.get_ref().clone(), self.roles_listed(Some(roles))?);
        }
        Some(Some(mapped))
    }

    /// Roles that an account can have.
    fn roles_listed(&mut self, written: Option<&Spanned<Vec<Text>>>) -> Option<Vec<String>> {
        let mut roles = Vec::new();
        for text in written.into_iter().flat_map(Spanned::get_ref) {
            if !is_role(text.get_ref()) {
                self.error(
                    Problem::error(
                        text.span(),
                        "expected a role of 1 to 100 characters without white space",
                    )
                    .help("write a name such as \"editor\""),
                );
                return None;
            }
            roles.push(text.get_ref().clone());
        }
        Some(roles)
    }

    fn linking(&mut self, written: &Written) -> Option<Linking> {
        match &written.link {
            None => Some(Linking::Never),
            Some(text) => self.ok_or_report(value::choice(text, &LINKINGS)),
        }
    }

    /// The owner of the provider's keys, and the client that fetches everything else.
    fn login_keys(
        &mut self,
        name: &Text,
        written: &Written,
        login: &ProviderSettings,
        folder: &Path,
    ) -> Option<(Arc<IssuerKeys>, Outbound)> {
        let outbound = match tls::client_config(login.ca.as_deref(), None) {
            Ok(config) => Outbound::new(Some(Arc::new(config))),
            Err(tls::TlsError::NoSystemRoots(_)) if !login.url.is_https() => Outbound::new(None),
            Err(error) => {
                let span = written.ca.as_ref().map_or(name.span(), Spanned::span);
                let help = "set `ca = \"ca.pem\"` in this section to the trusted certificates";
                self.error(Problem::error(span, error.to_string()).help(help));
                return None;
            }
        };
        let remote = Remote {
            place: Place::Discovery(login.url.clone()),
            refresh: Duration::from_mins(5),
            cooldown: Duration::from_secs(10),
            max_stale: DAY,
            ca: login.ca.clone(),
            allow_http: false,
            folder: folder.to_owned(),
        };
        let settings = KeySettings {
            name: format!("identity.login.{}", login.name).into(),
            issuer: Some(login.issuer.clone()),
            algorithms: Algorithms::all()
                .iter()
                .filter(|algorithm| !Algorithms::of_family(Family::Hmac).contains(*algorithm))
                .collect(),
            source: Source::Remote(remote.clone()),
        };
        if let Some(kept) = self.previous_keys(&settings) {
            return Some((kept, outbound));
        }
        let last = self.last_good(name, &settings, &remote);
        Some((Arc::new(IssuerKeys::remote(settings, outbound.clone(), last)), outbound))
    }
}

const LINKINGS: [(&str, Linking); 2] =
    [("never", Linking::Never), ("verified_email", Linking::VerifiedEmail)];

/// What the gateway sends itself, and what would change how the provider answers.
const OWN_PARAMETERS: [&str; 13] = [
    "response_type",
    "response_mode",
    "client_id",
    "client_secret",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "request",
    "request_uri",
    "max_age",
];

const DAY: Duration = Duration::from_hours(24);

/// A provider is not asked more often.
const SHORTEST_RECHECK: Duration = Duration::from_secs(1);
