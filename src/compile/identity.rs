//! `[identity]`: the policy of the built-in issuer, and the built-in issuer as one of the accepted
//! issuers.

use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Compiler;
use crate::config::Problem;
use crate::config::file::Text;
use crate::config::identity::{Identity as Written, NAME};
use crate::config::value;
use crate::gateway::token_names::TokenNames;
use crate::identity::policy::{LONGEST_ACCESS_TOKEN, is_this_machine};
use crate::identity::return_to::Sites;
use crate::identity::texts::Language;
use crate::identity::{Compat, Policy, Registration};
use crate::token::{Algorithm, Algorithms, ClaimPath, Issuer, IssuerSettings, KeySet, LiveKeys};

impl Compiler<'_> {
    /// The policy of `[identity]`. `None` if there is no such section, or it is invalid.
    pub(super) fn identity(&mut self, names: &TokenNames) -> Option<Policy> {
        let section = self.file.identity.as_ref()?;
        let written = section.get_ref();
        let issuer = self.issuer_url(section);
        let lifetime = |least: Duration| least..=DAY * 3650;
        let access_token_ttl =
            self.lifetime(written.access_token_ttl.as_ref(), "15m", SECOND..=LONGEST_ACCESS_TOKEN);
        let refresh_token_ttl =
            self.lifetime(written.refresh_token_ttl.as_ref(), "7d", lifetime(SECOND));
        let session_lifetime =
            self.lifetime(written.session_lifetime.as_ref(), "30d", lifetime(SECOND));
        let refresh_reuse_interval = self.lifetime(
            written.refresh_reuse_interval.as_ref(),
            "10s",
            Duration::ZERO..=Duration::from_mins(5),
        );
        let key_rotation = self.lifetime(
            written.key_rotation.as_ref(),
            "90d",
            Duration::from_hours(1)..=DAY * 3650,
        );
        let algorithm = self.choice(written.algorithm.as_ref(), &ALGORITHMS);
        let registration = self.choice(written.registration.as_ref(), &REGISTRATIONS);
        let compat = self.choice(written.compat.as_ref(), &COMPATS);
        let claims = self.token_claims(written.token_claims.as_ref());
        let password_min_length = written
            .password_min_length
            .as_ref()
            .map_or(Some(8), |number| self.number(number, 8, 128));
        let mail = match &written.mail {
            None => Some(None),
            Some(mail) => self.mail(mail, issuer.as_deref()).map(Some),
        };
        let audience = self.words(written.audience.as_ref(), "audience", &["portcullis"]);
        let default_roles = self.default_roles(written);
        self.reject_verification_without_mail(section);
        let languages = self.languages(written.languages.as_ref());
        let brand = self.brand(written.brand.as_ref(), issuer.as_deref());
        let (includes_email, includes_name) = claims?;
        self.warn_about_unproven_addresses(
            section,
            registration == Some(Registration::Open),
            includes_email,
        );
        Some(Policy {
            issuer: issuer?,
            audience: audience?,
            algorithm: algorithm?,
            access_token_ttl: access_token_ttl?,
            refresh_token_ttl: refresh_token_ttl?,
            refresh_reuse_interval: refresh_reuse_interval?,
            session_lifetime: session_lifetime?,
            key_rotation: key_rotation?,
            registration: registration?,
            default_roles: default_roles?,
            includes_email,
            includes_name,
            verify_email: written.verify_email,
            totp: written.totp,
            password_min_length: password_min_length?,
            mail: mail?,
            password_login: written.password_login.as_ref().is_none_or(|flag| *flag.get_ref()),
            providers: Vec::new(),
            languages: languages?,
            brand: Arc::new(brand?),
            compat: compat?,
            cookies: names.cookies(),
            sites: Sites::default(),
        })
    }

    fn languages(&mut self, written: Option<&Spanned<Vec<Text>>>) -> Option<Vec<Language>> {
        let Some(written) = written else {
            return Some(Language::ALL.iter().map(|(_, language)| *language).collect());
        };
        if written.get_ref().is_empty() {
            let problem = Problem::error(written.span(), "`languages` is empty");
            self.error(problem.help("remove it for the default, or write `[\"en\"]`"));
            return None;
        }
        let mut languages = Vec::new();
        for text in written.get_ref() {
            let language = self.ok_or_report(value::choice(text, &Language::ALL))?;
            if languages.contains(&language) {
                self.error(Problem::error(text.span(), "this language is listed twice"));
                return None;
            }
            languages.push(language);
        }
        Some(languages)
    }

    fn reject_verification_without_mail(&mut self, section: &Spanned<Written>) {
        if section.get_ref().verify_email && section.get_ref().mail.is_none() {
            self.error(Problem::error(section.span(), "`verify_email` needs `mail`").help(
                "add `mail = { folder = \"mail\" }` to try it, or `mail = { smtp = …, from = … }`",
            ));
        }
    }

    /// The built-in issuer as an accepted issuer. A reload keeps its keys.
    pub(super) fn built_in_issuer(&mut self, policy: &Policy) -> Arc<Issuer> {
        let settings = IssuerSettings {
            name: NAME.into(),
            issuer: Some(policy.issuer.clone()),
            audience: Some(policy.audience.clone()),
            // Tokens signed by an earlier key with another algorithm are valid until they expire;
            // each key is used with its own algorithm only.
            algorithms: ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect::<Algorithms>(),
            roles: ClaimPath::new(["roles"]),
            subject: ClaimPath::new(["sub"]),
            leeway: LEEWAY,
            max_token_lifetime: LONGEST_ACCESS_TOKEN + LEEWAY,
            logout_audience: None,
            is_built_in: true,
        };
        let previous = self
            .previous
            .and_then(|previous| previous.identity.as_ref().map(|_| &previous.issuers));
        match previous
            .and_then(|issuers| issuers.iter().find(|issuer| *issuer.settings().name == *NAME))
        {
            Some(kept) if *kept.settings() == settings => Arc::clone(kept),
            Some(kept) => Arc::new(Issuer::with_live_keys(settings, Arc::clone(kept.keys()))),
            None => Arc::new(Issuer::with_live_keys(
                settings,
                Arc::new(LiveKeys::new(KeySet::default())),
            )),
        }
    }

    /// Warns if applications receive addresses that nobody has confirmed.
    fn warn_about_unproven_addresses(
        &mut self,
        section: &Spanned<Written>,
        is_open: bool,
        includes_email: bool,
    ) {
        let written = section.get_ref();
        if is_open && includes_email && !written.verify_email {
            let span = written.registration.as_ref().map_or(section.span(), Spanned::span);
            self.error(
                Problem::warning(
                    span,
                    "anyone can register with another person's address, and applications receive it as the caller's",
                )
                .help("set `verify_email = true`, or leave \"email\" out of `token_claims`"),
            );
        }
    }

    /// `issuer`: an absolute URL with a host, without the parts that an `iss` must not have (RFC
    /// 8414 §2).
    fn issuer_url(&mut self, section: &Spanned<Written>) -> Option<String> {
        let example = "write the URL of the route with `identity = true`, such as \"https://app.example.com/auth\"";
        let Some(text) = &section.get_ref().issuer else {
            self.error(
                Problem::error(section.span(), "`[identity]` has no `issuer`").help(example),
            );
            return None;
        };
        let url = text.get_ref();
        let uri: Option<http::Uri> = url.parse().ok();
        let parts = uri
            .as_ref()
            .and_then(|uri| Some((uri.scheme_str()?, uri.authority()?, uri.path(), uri.query())));
        let problem = match parts {
            None => "not an absolute URL",
            Some((scheme, ..)) if scheme != "https" && scheme != "http" => {
                "the scheme must be http or https"
            }
            Some((_, authority, ..))
                if authority.as_str().contains('@') || authority.host().is_empty() =>
            {
                "the URL has no valid host"
            }
            Some((.., Some(_))) => "an issuer's URL cannot have a query",
            Some((_, _, path, None))
                if url.contains('#') || (path.len() > 1 && path.ends_with('/')) =>
            {
                "an issuer's URL cannot end with a slash or have a fragment"
            }
            Some((scheme, authority, path, None)) => {
                if scheme == "http" && !is_this_machine(authority.host()) {
                    self.error(
                        Problem::warning(
                            text.span(),
                            "over http:// browsers keep no login except on this machine, and mailed links can be read in transit",
                        )
                        .help("write https://, even if a load balancer terminates TLS"),
                    );
                }
                return Some(if path == "/" {
                    url.trim_end_matches('/').to_owned()
                } else {
                    url.clone()
                });
            }
        };
        self.error(Problem::error(text.span(), problem).help(example));
        None
    }

    /// One of these words; the first is the default.
    fn choice<T: Copy, const N: usize>(
        &mut self,
        text: Option<&Text>,
        choices: &[(&'static str, T); N],
    ) -> Option<T> {
        match text {
            None => choices.first().map(|(_, default)| *default),
            Some(text) => self.ok_or_report(value::choice(text, choices)),
        }
    }

    fn lifetime(
        &mut self,
        text: Option<&Text>,
        default: &str,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Option<Duration> {
        match text {
            None => humantime::parse_duration(default).ok(),
            Some(text) => self.ok_or_report(value::duration(text, range)),
        }
    }

    /// A list of names, at least one.
    fn words(
        &mut self,
        written: Option<&Spanned<Vec<Text>>>,
        key: &str,
        default: &[&str],
    ) -> Option<Vec<String>> {
        let Some(written) = written else {
            return Some(default.iter().map(|&word| word.to_owned()).collect());
        };
        let words: Vec<String> =
            written.get_ref().iter().map(|text| text.get_ref().clone()).collect();
        if words.is_empty() || words.iter().any(String::is_empty) {
            self.error(
                Problem::error(
                    written.span(),
                    format!("`{key}` is empty, or contains an empty name"),
                )
                .help("remove it for the default"),
            );
            return None;
        }
        Some(words)
    }

    fn default_roles(&mut self, written: &Written) -> Option<Vec<String>> {
        let Some(roles) = &written.default_roles else { return Some(vec!["user".to_owned()]) };
        let mut found = Vec::new();
        for text in roles.get_ref() {
            if !crate::identity::account::is_role(text.get_ref()) {
                self.error(
                    Problem::error(
                        text.span(),
                        "expected a role of 1 to 100 characters without white space",
                    )
                    .help("write a name such as \"user\""),
                );
                return None;
            }
            found.push(text.get_ref().clone());
        }
        if let Some(problem) = crate::identity::account::too_long(&found) {
            let problem = Problem::error(roles.span(), problem.to_string());
            self.error(problem.help("name fewer roles, or give them shorter names"));
            return None;
        }
        Some(found)
    }

    fn token_claims(&mut self, written: Option<&Spanned<Vec<Text>>>) -> Option<(bool, bool)> {
        let Some(written) = written else { return Some((true, true)) };
        let (mut email, mut name) = (false, false);
        for text in written.get_ref() {
            match self.ok_or_report(value::choice(text, &[("email", 'e'), ("name", 'n')]))? {
                'e' => email = true,
                _ => name = true,
            }
        }
        Some((email, name))
    }
}

const REGISTRATIONS: [(&str, Registration); 2] =
    [("closed", Registration::Closed), ("open", Registration::Open)];

const COMPATS: [(&str, Compat); 2] = [("none", Compat::None), ("express", Compat::Express)];

/// The algorithms that the built-in issuer can sign with.
const ALGORITHMS: [(&str, Algorithm); 3] =
    [("ES256", Algorithm::ES256), ("RS256", Algorithm::RS256), ("EdDSA", Algorithm::EdDSA)];

/// How far another replica's clock may be ahead (ten seconds), and an `iat` that it issues after a
/// revocation ([`MAX_AHEAD`](crate::store::MAX_AHEAD)).
const LEEWAY: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);

const DAY: Duration = Duration::from_hours(24);
