//! What a route requires of its callers: `token_from`, `roles`, `all_roles`, `scopes`, `claims`,
//! `issuers`, `login`, `acr`, `max_age`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Compiler;
use crate::config::file::{Route as Written, Text};
use crate::config::value;
use crate::config::{self, Problem, Severity};
use crate::gateway::guard::{Access, Demands, TokenPlaces};
use crate::gateway::step_up::StepUp;
use crate::identity::session::PASSWORD_LOGIN;
use crate::token::{ClaimPath, Issuers};

impl Compiler<'_> {
    /// `roles`, `all_roles`, `scopes`, `claims` and `issuers` of a route.
    pub(super) fn demands(
        &mut self,
        written: &Written,
        issuers: &Issuers,
        access: Option<Access>,
    ) -> Option<Demands> {
        let before = self.problems.len();
        let asked = [
            &written.roles,
            &written.all_roles,
            &written.scopes,
            &written.issuers,
            &written.login,
            &written.acr,
        ];
        self.reject_empty_names(&asked);
        let spans = asked
            .into_iter()
            .flatten()
            .map(Spanned::span)
            .chain(written.claims.as_ref().map(Spanned::span))
            .chain(written.max_age.as_ref().map(Spanned::span));
        self.check_demands_without_caller(access, spans.collect());
        for text in written
            .scopes
            .iter()
            .flat_map(toml::Spanned::get_ref)
            .filter(|text| text.get_ref().contains(char::is_whitespace))
        {
            self.error(
                Problem::error(
                    text.span(),
                    "a scope cannot contain a space (RFC 6749 §3.3): no request could ever pass",
                )
                .help("write each scope as a separate item"),
            );
        }
        let claims = self.claim_values(written.claims.as_ref().map(Spanned::get_ref));
        let issuers = self.route_issuers(written, issuers);
        self.check_logins(written);
        let step_up = self.step_up(written);
        let list = |list: &Option<Spanned<Vec<Text>>>| -> Vec<String> {
            list.iter()
                .flat_map(toml::Spanned::get_ref)
                .map(|text| text.get_ref().clone())
                .collect()
        };
        let sound =
            !self.problems[before..].iter().any(|problem| problem.severity == Severity::Error);
        sound.then(|| Demands {
            any_role: list(&written.roles),
            all_roles: list(&written.all_roles),
            scopes: list(&written.scopes),
            claims,
            issuers,
            logins: list(&written.login),
            step_up,
        })
    }

    /// Each of `login` must be a way in which somebody can log in.
    fn check_logins(&mut self, written: &Written) {
        let Some(listed) = &written.login else { return };
        let Some(identity) = &self.file.identity else {
            self.error(
                Problem::error(listed.span(), "`login` needs the built-in issuer")
                    .help("add an `[identity]` section, or remove this"),
            );
            return;
        };
        let identity = identity.get_ref();
        for text in listed.get_ref() {
            let name = text.get_ref();
            let is_known = name == PASSWORD_LOGIN
                || identity.login.keys().any(|known| known.get_ref() == name);
            if !is_known && !name.is_empty() {
                self.error(
                    Problem::error(text.span(), format!("there is no login `{name}`"))
                        .help("name an `[identity.login.NAME]` section, or write \"password\""),
                );
            }
            if name == PASSWORD_LOGIN
                && let Some(flag) = identity.password_login.as_ref().filter(|flag| !flag.get_ref())
            {
                self.problems.push(
                    Problem::warning(text.span(), "nobody can log in with a password")
                        .related(flag.span(), "passwords are turned off here")
                        .help("remove it, or name an `[identity.login.NAME]` section"),
                );
            }
        }
    }

    /// `acr` and `max_age`.
    fn step_up(&mut self, written: &Written) -> StepUp {
        let mut step_up = StepUp::default();
        for text in written.acr.iter().flat_map(Spanned::get_ref) {
            let is_word = text
                .get_ref()
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
            if !is_word {
                self.error(
                    Problem::error(text.span(), "not an authentication context")
                        .help("write the `acr` that the tokens contain, such as \"phr\""),
                );
            }
            step_up.acr.push(text.get_ref().clone());
        }
        if let Some(text) = &written.max_age {
            let range = Duration::from_secs(1)..=Duration::from_hours(24 * 365);
            let age = self.ok_or_report(value::duration(text, range));
            step_up.max_age = age.map(|age| age.as_secs());
        }
        let is_identity = written.identity.as_ref().is_some_and(|identity| *identity.get_ref());
        let spans = [
            written.login.as_ref().map(Spanned::span),
            written.acr.as_ref().map(Spanned::span),
            written.max_age.as_ref().map(Spanned::span),
        ];
        for span in spans.into_iter().flatten().filter(|_| is_identity) {
            self.error(
                Problem::error(span, "the endpoints of the built-in issuer decide for themselves")
                    .help("remove this from the route with `identity = true`"),
            );
        }
        step_up
    }

    fn reject_empty_names(&mut self, asked: &[&Option<Spanned<Vec<Text>>>]) {
        for list in asked.iter().copied().flatten() {
            if list.get_ref().is_empty() {
                self.error(
                    Problem::error(list.span(), "the list is empty, so no caller could pass")
                        .help("remove it, or name at least one"),
                );
            }
            for text in list.get_ref().iter().filter(|text| text.get_ref().is_empty()) {
                self.error(
                    Problem::error(text.span(), "an empty name, which no caller can hold")
                        .help("remove it"),
                );
            }
        }
    }

    /// Reports requirements on a route that lets requests without a token pass.
    fn check_demands_without_caller(&mut self, access: Option<Access>, spans: Vec<Range<usize>>) {
        match access {
            Some(Access::Public) => {
                for span in spans {
                    self.error(
                        Problem::error(span, "a public route does not authenticate its callers")
                            .help("remove this, or `access = \"public\"`"),
                    );
                }
            }
            Some(Access::Optional) => {
                for span in spans {
                    self.problems
                        .push(Problem::warning(span, "requests without a token still pass").help(
                        "with `access = \"optional\"`, this applies only to callers with a token",
                    ));
                }
            }
            Some(Access::Authenticated | Access::Certificate | Access::Lenient) | None => {}
        }
    }

    /// Claims and their accepted values.
    pub(super) fn claim_values(
        &mut self,
        written: Option<&BTreeMap<Text, Spanned<Vec<value::Scalar>>>>,
    ) -> Vec<(ClaimPath, Vec<value::Scalar>)> {
        let mut claims = Vec::new();
        for (name, values) in written.into_iter().flatten() {
            // A TOML key cannot be a list, so a URL, which never looks like a path, is taken as one
            // exact name.
            let exact = name.get_ref().contains("://");
            let segments: Vec<String> = if exact {
                vec![name.get_ref().clone()]
            } else {
                name.get_ref().split('.').map(str::to_owned).collect()
            };
            if segments.iter().any(String::is_empty) {
                self.error(
                    Problem::error(name.span(), "the claim name has an empty part")
                        .help("write `tenant`, or `\"realm.tenant\"` for a nested claim"),
                );
            }
            if values.get_ref().is_empty() {
                self.error(
                    Problem::error(values.span(), "the list is empty, so no caller could pass")
                        .help("name at least one value"),
                );
            }
            claims.push((ClaimPath::new(segments), values.get_ref().clone()));
        }
        claims
    }

    fn route_issuers(&mut self, written: &Written, issuers: &Issuers) -> Option<Vec<Arc<str>>> {
        let listed = written.issuers.as_ref()?;
        let mut found = Vec::new();
        for text in listed.get_ref() {
            match issuers
                .iter()
                .map(|issuer| &issuer.settings().name)
                .find(|name| ***name == **text.get_ref())
            {
                Some(name) => found.push(Arc::clone(name)),
                None if self.file.issuer_names().contains(&text.get_ref().as_str()) => {}
                None => {
                    let names = self.file.issuer_names();
                    let help = value::nearest(text.get_ref(), names.iter().copied()).map_or_else(
                        || format!("the issuers are {}", names.join(", ")),
                        |near| format!("did you mean `{near}`?"),
                    );
                    self.error(
                        Problem::error(
                            text.span(),
                            format!("there is no `[issuer.{}]`", text.get_ref()),
                        )
                        .help(help),
                    );
                }
            }
        }
        Some(found)
    }

    /// Where a token may be. `is_login`: the route leads to the built-in issuer, so also in the
    /// cookie, if the file does not say.
    pub(super) fn token_places(
        &mut self,
        written: Option<&Spanned<Vec<Text>>>,
        is_login: bool,
    ) -> Option<TokenPlaces> {
        let mut places = TokenPlaces { header: false, cookie: false, query: false, basic: false };
        let Some(written) = written else {
            return Some(TokenPlaces { header: true, cookie: is_login, ..places });
        };
        for text in written.get_ref() {
            match self.ok_or_report(value::choice(
                text,
                &[("header", 'h'), ("cookie", 'c'), ("query", 'q'), ("basic", 'b')],
            ))? {
                'h' => places.header = true,
                'c' => places.cookie = true,
                'q' => places.query = true,
                _ if self.takes_passwords(text, is_login) => places.basic = true,
                _ => {}
            }
        }
        if written.get_ref().is_empty() {
            self.error(
                Problem::error(
                    written.span(),
                    "`token_from` is empty: no caller could be authenticated",
                )
                .help("remove it, or write `[\"header\"]`"),
            );
            return None;
        }
        Some(places)
    }

    /// Reports `basic` on a route that takes no callers of the built-in issuer.
    pub(super) fn warn_about_passwords(
        &mut self,
        written: &Written,
        places: Option<TokenPlaces>,
        demands: Option<&Demands>,
    ) {
        let (Some(list), Some(issuers)) =
            (&written.token_from, demands.and_then(|demands| demands.issuers.as_ref()))
        else {
            return;
        };
        let takes_ours = issuers.iter().any(|issuer| &**issuer == config::identity::NAME);
        if places.is_some_and(|places| places.basic) && !takes_ours {
            self.problems.push(
                Problem::warning(
                    list.span(),
                    "`basic` takes tokens of the built-in issuer, whose callers this route refuses",
                )
                .help("add \"identity\" to `issuers`, or remove `\"basic\"`"),
            );
        }
    }

    /// Whether a route can take personal access tokens as passwords.
    fn takes_passwords(&mut self, text: &Text, is_login: bool) -> bool {
        if self.file.identity.is_none() {
            self.error(
                Problem::error(
                    text.span(),
                    "`basic` takes personal access tokens, which only the built-in issuer makes",
                )
                .help("add `[identity]`, or remove `\"basic\"`"),
            );
        } else if is_login {
            self.problems.push(
                Problem::warning(
                    text.span(),
                    "the endpoints of the built-in issuer do not take passwords of HTTP Basic",
                )
                .help("remove `\"basic\"` here"),
            );
        }
        !is_login
    }
}
