//! Who is believed, about what: choosing the issuer of a token, checking its signature, then its
//! claims.

mod check;
mod logout;
mod verified;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Map, Value, json};

use self::check::Checked;
pub use self::logout::LogoutToken;
pub use self::verified::VerifiedToken;
use super::algorithms::Algorithms;
use super::claims::ClaimPath;
use super::excerpt::Excerpt;
use super::invalid::{AlgorithmFault, ClaimFault, InvalidToken, IssuerFault, Malformed};
use super::jws::Jws;
use super::keys::KeySet;

/// What one issuer's section says, apart from its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerSettings {
    /// The section's name: it appears in logs, metrics and the `issuers` of routes.
    pub name: Arc<str>,
    /// The `iss` of its tokens, compared exactly; `None` with `insecure_any_issuer`, for tokens
    /// without `iss`.
    pub issuer: Option<String>,
    /// The audiences of which a token must name one; `None` with `insecure_any_audience`.
    pub audience: Option<Vec<String>>,
    /// The audiences of which a logout token must name one; `None`: those of its other tokens.
    pub logout_audience: Option<Vec<String>>,
    /// The algorithms that its tokens may be signed with.
    pub algorithms: Algorithms,
    /// Where its tokens list the roles.
    pub roles: ClaimPath,
    /// Where its tokens name the subject.
    pub subject: ClaimPath,
    /// How far its clock and ours may differ. Whole seconds count.
    pub leeway: Duration,
    /// The longest that its tokens may be valid, from `iat` (or now) to `exp`. Whole seconds count.
    pub max_token_lifetime: Duration,
    /// Whether it is ours: then only `typ` `at+jwt` is taken, and `exp` holds without leeway, since
    /// it was our clock that set it.
    pub is_built_in: bool,
}

/// The keys of one issuer as they are now. Whoever owns them may replace them; each verification
/// reads them once.
#[derive(Debug)]
pub struct LiveKeys(ArcSwap<KeySet>);

impl LiveKeys {
    /// Begins with these keys.
    pub fn new(keys: KeySet) -> Self {
        Self(ArcSwap::from_pointee(keys))
    }

    /// The keys that hold now. What was verified with them is good only while this very set is the
    /// one that holds.
    pub fn load(&self) -> Arc<KeySet> {
        self.0.load_full()
    }

    /// Whether this very set is the one that holds now.
    pub fn is_current(&self, set: &Arc<KeySet>) -> bool {
        Arc::ptr_eq(&self.0.load(), set)
    }

    /// From now on these keys hold, and no others.
    pub fn replace(&self, keys: KeySet) {
        self.0.store(Arc::new(keys));
    }
}

/// One issuer: its settings and its keys.
#[derive(Debug)]
pub struct Issuer {
    settings: IssuerSettings,
    keys: Arc<LiveKeys>,
}

impl Issuer {
    /// An issuer with these keys.
    pub fn new(settings: IssuerSettings, keys: KeySet) -> Self {
        Self::with_live_keys(settings, Arc::new(LiveKeys::new(keys)))
    }

    /// An issuer whose keys change while it is in use.
    pub fn with_live_keys(settings: IssuerSettings, keys: Arc<LiveKeys>) -> Self {
        Self { settings, keys }
    }

    /// What its section says.
    pub fn settings(&self) -> &IssuerSettings {
        &self.settings
    }

    /// Its keys.
    pub fn keys(&self) -> &Arc<LiveKeys> {
        &self.keys
    }

    /// The signature step, after the algorithm was found to be one of the issuer's. Returns the
    /// keys that it was made with.
    fn check_signature(&self, jws: &Jws<'_>) -> Result<Arc<KeySet>, InvalidToken> {
        if !self.settings.algorithms.contains(jws.algorithm) {
            let found = Algorithms::name(jws.algorithm);
            return Err(AlgorithmFault::NotConfigured {
                found,
                accepted: self.settings.algorithms,
            }
            .into());
        }
        let keys = self.keys.load();
        keys.verify_signature(
            jws.signing_input.as_bytes(),
            &jws.signature,
            jws.algorithm,
            jws.kid.as_deref(),
        )?;
        Ok(keys)
    }
}

/// Claims that went through every check but that of a signature. Nothing proves them: it is not a
/// [`VerifiedToken`], and only a verifier that works offline takes it for one.
#[derive(Clone, Debug)]
pub struct AssumedToken(VerifiedToken);

impl AssumedToken {
    /// As if its issuer had signed it. `tests/structure.rs` checks who calls this.
    pub(crate) fn as_if_verified(&self) -> &VerifiedToken {
        &self.0
    }
}

/// Two issuer sections that the same tokens would match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the issuer sections {first} and {second} accept the same tokens: {}", issuer.as_ref().map_or("both those without iss", |_| "their `issuer` is the same"))]
pub struct DuplicateIssuer {
    /// The name of the one section.
    pub first: Arc<str>,
    /// The name of the other.
    pub second: Arc<str>,
    /// Their `issuer`; `None` when both have `insecure_any_issuer`.
    pub issuer: Option<String>,
}

/// Every issuer that is accepted.
#[derive(Debug, Default)]
pub struct Issuers {
    by_iss: HashMap<String, Arc<Issuer>>,
    without_iss: Option<Arc<Issuer>>,
}

impl Issuers {
    /// The table of these issuers, by their `issuer`; one at most may be for tokens without `iss`.
    ///
    /// # Errors
    ///
    /// [`DuplicateIssuer`] when a token would match two.
    pub fn new(issuers: Vec<Arc<Issuer>>) -> Result<Self, DuplicateIssuer> {
        let mut table = Self::default();
        for issuer in issuers {
            let second = issuer.settings.name.clone();
            let replaced = match &issuer.settings.issuer {
                Some(iss) => table.by_iss.insert(iss.clone(), issuer.clone()),
                None => table.without_iss.replace(issuer.clone()),
            };
            if let Some(first) = replaced {
                return Err(DuplicateIssuer {
                    first: first.settings.name.clone(),
                    second,
                    issuer: issuer.settings.issuer.clone(),
                });
            }
        }
        Ok(table)
    }

    /// Every issuer, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.by_iss.values().chain(&self.without_iss)
    }

    /// The one way from a bearer token to claims that count. `now` is in Unix seconds.
    ///
    /// In this order: length, form, header; payload; issuer by `iss`, before any key is touched;
    /// algorithm; key; signature; types of the claims; audience; time; lifetime; subject and roles
    /// (RFC 7519 §7.2, RFC 8725 §3).
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, as an [`InvalidToken`].
    pub fn verify(&self, token: &str, now: u64) -> Result<VerifiedToken, InvalidToken> {
        self.verify_with_keys(token, now).map(|(token, _)| token)
    }

    /// [`Issuers::verify`], and the very set of keys that the signature was checked with.
    pub(super) fn verify_with_keys(
        &self,
        token: &str,
        now: u64,
    ) -> Result<(VerifiedToken, Arc<KeySet>), InvalidToken> {
        let jws = Jws::parse(token)?;
        let claims = jws.claims()?;
        let issuer = self.choose(&claims)?;
        if issuer.settings.is_built_in && !jws.is_access_token {
            return Err(Malformed::NotAnAccessToken.into());
        }
        let keys = issuer.check_signature(&jws)?;
        let checked = Checked::check(&issuer.settings, &claims, now)?;
        Ok((VerifiedToken::new(issuer, checked, claims), keys))
    }

    /// Whether this very issuer is in the table: the claims that once led to it still do.
    pub(super) fn contains(&self, issuer: &Arc<Issuer>) -> bool {
        let holds = match &issuer.settings.issuer {
            Some(iss) => self.by_iss.get(iss),
            None => self.without_iss.as_ref(),
        };
        holds.is_some_and(|holds| Arc::ptr_eq(holds, issuer))
    }

    /// The issuer whose newer keys might verify a token that was refused for this. That it has a
    /// key of the token's name says little: an issuer that is set up anew, or that calls its only
    /// key `1`, gives another key the same name.
    pub fn issuer_lacking_key(&self, token: &str, refused: &InvalidToken) -> Option<&Arc<Issuer>> {
        if !refused.concerns_key() {
            return None;
        }
        self.choose(&Jws::parse(token).ok()?.claims().ok()?).ok()
    }

    /// A stand-in for a verified token, for `explain --claims` and `[[test]]` blocks: **nothing is
    /// signed and nothing is verified, so the data path never calls this.** `iss`, `aud` and `exp`
    /// are filled in where they are absent (five minutes from `now`, in Unix seconds, or less where
    /// `max_token_lifetime` is); then the claims go through the very checks of [`Issuers::verify`].
    ///
    /// # Errors
    ///
    /// [`IssuerFault::NoSuchSection`] when no section has this name; otherwise as
    /// [`Issuers::verify`] after its signature step.
    pub fn assume(
        &self,
        issuer_name: &str,
        mut claims: Map<String, Value>,
        now: u64,
    ) -> Result<AssumedToken, InvalidToken> {
        let named = self.named(issuer_name)?;
        let settings = &named.settings;
        if let Some(iss) = &settings.issuer {
            claims.entry("iss").or_insert_with(|| json!(iss));
        }
        if let Some(audience) = settings.audience.as_ref().and_then(|audience| audience.first()) {
            claims.entry("aud").or_insert_with(|| json!(audience));
        }
        let lifetime = settings.max_token_lifetime.as_secs().min(300);
        claims.entry("exp").or_insert_with(|| json!(now.saturating_add(lifetime)));
        // Claims that name another issuer are not this one's, as on the data path.
        if !Arc::ptr_eq(self.choose(&claims)?, named) {
            return Err(not_accepted(&claims));
        }
        let checked = Checked::check(settings, &claims, now)?;
        Ok(AssumedToken(VerifiedToken::new(named, checked, claims)))
    }

    /// [`Issuers::assume`] for a caller of whom just the roles matter: its subject is `test`. The
    /// data path never calls this either.
    ///
    /// # Errors
    ///
    /// As [`Issuers::assume`].
    pub fn assume_roles(
        &self,
        issuer_name: &str,
        roles: &[String],
        now: u64,
    ) -> Result<AssumedToken, InvalidToken> {
        let settings = &self.named(issuer_name)?.settings;
        let mut claims = Map::new();
        settings.subject.insert(&mut claims, json!("test"));
        settings.roles.insert(&mut claims, json!(roles));
        self.assume(issuer_name, claims, now)
    }

    /// The issuer that the claims name. Until the signature is checked that is a choice of keys,
    /// not yet a belief.
    fn choose(&self, claims: &Map<String, Value>) -> Result<&Arc<Issuer>, InvalidToken> {
        match claims.get("iss") {
            None => self.without_iss.as_ref().ok_or_else(|| IssuerFault::Missing.into()),
            Some(Value::String(iss)) => self.by_iss.get(iss).ok_or_else(|| not_accepted(claims)),
            Some(_) => Err(ClaimFault::not("iss", "a string").into()),
        }
    }

    /// The issuer whose tokens have this `iss`.
    pub fn by_iss(&self, iss: &str) -> Option<&Arc<Issuer>> {
        self.by_iss.get(iss)
    }

    fn named(&self, name: &str) -> Result<&Arc<Issuer>, IssuerFault> {
        self.iter()
            .find(|issuer| &*issuer.settings.name == name)
            .ok_or_else(|| IssuerFault::NoSuchSection(Excerpt::new(name)))
    }
}

fn not_accepted(claims: &Map<String, Value>) -> InvalidToken {
    let iss = claims.get("iss").and_then(Value::as_str);
    iss.map_or(IssuerFault::Missing, |iss| IssuerFault::Unknown(Excerpt::new(iss))).into()
}

#[cfg(test)]
mod tests;
