//! What a provider says about a person.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{ProviderError, ProviderSettings};
use crate::identity::Email;
use crate::identity::account::{self, is_role};
use crate::token::{ClaimPath, Excerpt, IdToken, string_list};

/// A person who has logged in at a provider.
#[derive(Clone, PartialEq, Eq)]
pub struct Person {
    /// `sub`: their id at the provider.
    pub subject: String,
    /// The address. `None`: there is none, or the provider says that it is not verified.
    pub email: Option<Email>,
    /// Whether the provider says that it has verified the address.
    pub email_verified: bool,
    /// The display name.
    pub name: Option<String>,
    /// The roles, sorted; `None`: the provider does not decide about them.
    pub roles: Option<Vec<String>>,
    /// The roles at the first login, sorted.
    pub first_roles: Vec<String>,
    /// `acr`: how they proved who they are; empty: not said.
    pub acr: String,
    /// `auth_time`: when they did, in Unix seconds.
    pub auth_time: Option<u64>,
    /// `sid`: their session at the provider.
    pub sid: Option<String>,
    /// Whether they may log in.
    pub allowed: Result<(), NotAllowed>,
}

/// Why a person may not log in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// A claim has none of the values that `require` lists.
    #[error("`require`: the claim `{0}` is missing or has another value")]
    Claim(String),
    /// The provider sent a link in place of the groups: there are too many of them.
    #[error(
        "the provider sent a link in place of the claim `{0}`, because the person is in too many groups"
    )]
    Overage(String),
    /// With their roles, the cookies of a session would be too long.
    #[error(
        "{roles} roles make a Cookie header of {bytes} bytes, and {most} is the most: set `role_map`, which keeps only the roles that it names, or let the provider send fewer groups",
        most = LONGEST_COOKIES
    )]
    TooManyRoles {
        /// How many roles they have.
        roles: usize,
        /// How long the header would be.
        bytes: usize,
    },
}

/// The longest Cookie header of a person who is logged in, in bytes. Browsers drop a cookie above
/// 4 KiB, and every request carries all of them.
pub const LONGEST_COOKIES: usize = 2047;

/// Omits who it is.
impl std::fmt::Debug for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Person").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// The two documents about a person.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) subject: Option<&'a str>,
    id_token: Option<&'a IdToken>,
    userinfo: &'a Map<String, Value>,
}

impl<'a> Said<'a> {
    pub(super) fn new(id_token: Option<&'a IdToken>, userinfo: &'a Map<String, Value>) -> Self {
        Self { subject: id_token.map(IdToken::subject), id_token, userinfo }
    }

    /// A claim of the ID token, else of userinfo.
    fn claim(&self, path: &ClaimPath) -> Option<&'a Value> {
        let signed = self.id_token.and_then(|token| path.value_in(token.claims()));
        signed.or_else(|| path.value_in(self.userinfo)).filter(|value| !value.is_null())
    }

    fn named(&self, name: &str) -> Option<&'a Value> {
        self.claim(&ClaimPath::new([name]))
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.named(name).and_then(Value::as_str)
    }

    /// `email` and whether it is verified, both from the same document.
    fn email(&self) -> (Option<Email>, bool) {
        let signed = self.id_token.map(IdToken::claims);
        let Some(document) =
            signed.into_iter().chain([self.userinfo]).find(|claims| claims.contains_key("email"))
        else {
            return (None, false);
        };
        let verified = match document.get("email_verified") {
            Some(Value::Bool(verified)) => Some(*verified),
            Some(Value::String(word)) => Some(word.eq_ignore_ascii_case("true")),
            Some(Value::Null) | None => None,
            Some(_) => Some(false),
        };
        let email = document.get("email").and_then(Value::as_str).and_then(|email| {
            // An address that its owner never confirmed identifies nobody.
            Email::parse(email).ok().filter(|_| verified != Some(false))
        });
        let is_verified = email.is_some() && verified == Some(true);
        (email, is_verified)
    }

    /// Whether the provider names another place for this claim (OpenID Connect Core §5.6.2), as
    /// Entra ID does for more groups than fit in a token.
    fn is_elsewhere(&self, path: &ClaimPath) -> bool {
        let Some(first) = path.segments().first() else { return false };
        let is_named = self
            .named("_claim_names")
            .and_then(Value::as_object)
            .is_some_and(|names| names.contains_key(&**first));
        is_named || (&**first == "groups" && self.named("hasgroups") == Some(&Value::Bool(true)))
    }
}

impl Person {
    /// Whether the ID token lacks a claim that userinfo may have.
    pub(super) fn lacks(claims: &Map<String, Value>, settings: &ProviderSettings) -> bool {
        let needed = settings.roles.iter().chain(settings.require.iter().map(|(path, _)| path));
        ["email", "name"].iter().any(|name| !claims.contains_key(*name))
            || needed.into_iter().any(|path| path.value_in(claims).is_none())
    }

    pub(super) fn new(said: Said<'_>, settings: &ProviderSettings) -> Result<Self, ProviderError> {
        let subject = said.subject.filter(|subject| is_id(subject)).ok_or(
            ProviderError::Contradiction("`sub` is missing, or is not 1 to 255 bytes of text"),
        )?;
        let (email, email_verified) = said.email();
        let name = said.text("name").and_then(|name| account::name(name).ok().flatten());
        let (roles, overage) = match &settings.roles {
            None => (None, None),
            Some(path) => match said.claim(path) {
                None if said.is_elsewhere(path) => (Some(Vec::new()), Some(path.to_string())),
                None => (Some(roles(Vec::new(), settings)), None),
                Some(value) => {
                    let values = string_list(value).map_err(|_| {
                        ProviderError::Contradiction(
                            "the claim with the roles is not a list of text",
                        )
                    })?;
                    (Some(roles(values, settings)), None)
                }
            },
        };
        let missing = settings.require.iter().find(|(path, wanted)| {
            let has = |value: &Value| wanted.iter().any(|wanted| wanted.matches(value));
            !match said.claim(path) {
                Some(Value::Array(values)) => values.iter().any(has),
                Some(value) => has(value),
                None => false,
            }
        });
        let allowed = match (missing, overage) {
            (Some((path, _)), _) => Err(NotAllowed::Claim(path.to_string())),
            (None, Some(claim)) => Err(NotAllowed::Overage(claim)),
            (None, None) => Ok(()),
        };
        let is_word = |word: &&str| {
            (1..=LONGEST_ACR).contains(&word.len())
                && word.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let first_roles = roles.clone().unwrap_or_else(|| self::roles(Vec::new(), settings));
        Ok(Self {
            subject: subject.to_owned(),
            email,
            email_verified,
            name,
            roles,
            first_roles,
            // Userinfo says nothing about this login.
            acr: said
                .id_token
                .and_then(|token| token.text("acr"))
                .filter(is_word)
                .unwrap_or_default()
                .to_owned(),
            auth_time: said.id_token.and_then(IdToken::auth_time),
            sid: said
                .id_token
                .and_then(|token| token.text("sid"))
                .filter(|sid| is_id(sid))
                .map(str::to_owned),
            allowed,
        })
    }
}

/// The roles that the values of the claim stand for, sorted, with those that everyone has.
fn roles(values: Vec<String>, settings: &ProviderSettings) -> Vec<String> {
    let mut found: BTreeSet<String> = settings.default_roles.iter().cloned().collect();
    for value in values {
        match &settings.role_map {
            Some(map) => found.extend(map.get(&value).into_iter().flatten().cloned()),
            None if is_role(&value) => {
                found.insert(value);
            }
            // Split at its space, it would be two other roles.
            None => tracing::warn!(
                login = &*settings.name,
                value = %Excerpt::new(&value),
                "a role of a login provider is ignored: it has white space or is too long; name it in role_map"
            ),
        }
    }
    found.into_iter().collect()
}

impl Person {
    /// The same person, who may not log in for this reason and has no roles: those that they have
    /// cannot be known, or cannot be kept.
    #[must_use]
    pub fn refused(self, cause: NotAllowed) -> Self {
        let roles = self.roles.map(|_| Vec::new());
        Self { roles, first_roles: Vec::new(), allowed: Err(cause), ..self }
    }
}

/// Whether an id of a provider can be kept: PostgreSQL has no text with NUL.
fn is_id(text: &str) -> bool {
    (1..=LONGEST_SUBJECT).contains(&text.len()) && !text.contains('\0')
}

/// The longest `sub` (OpenID Connect Core §2), in bytes.
const LONGEST_SUBJECT: usize = 255;

/// The longest `acr` that is kept, in bytes.
const LONGEST_ACR: usize = 200;
