//! Accepted issuers: chooses the issuer of a token, checks the signature, then the claims.

mod check;
mod id_token;
mod logout;
mod verified;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Map, Value, json};

use self::check::Checked;
pub use self::id_token::{IdToken, IdTokenFor};
pub use self::logout::LogoutToken;
pub use self::verified::VerifiedToken;
use super::algorithms::Algorithms;
use super::claims::ClaimPath;
use super::excerpt::Excerpt;
use super::invalid::{AlgorithmFault, ClaimFault, InvalidToken, IssuerFault, Malformed};
use super::jws::Jws;
use super::keys::KeySet;
use super::revoked_keys::RevokedKeys;

/// The settings of one issuer's section, apart from its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerSettings {
    /// The section's name, as used in logs, metrics and the `issuers` of routes.
    pub name: Arc<str>,
    /// The `iss` of its tokens, compared exactly; `None` with `insecure_any_issuer`, for tokens
    /// without `iss`.
    pub issuer: Option<String>,
    /// The accepted audiences; `None` with `insecure_any_audience`.
    pub audience: Option<Vec<String>>,
    /// The accepted audiences of logout tokens; `None` for those of its other tokens.
    pub logout_audience: Option<Vec<String>>,
    /// The algorithms that its tokens may be signed with.
    pub algorithms: Algorithms,
    /// The claim with the roles.
    pub roles: ClaimPath,
    /// The claim with the subject.
    pub subject: ClaimPath,
    /// The tolerated clock skew, in whole seconds.
    pub leeway: Duration,
    /// The maximum lifetime of its tokens, from `iat` (or now) to `exp`, in whole seconds.
    pub max_token_lifetime: Duration,
    /// Whether this is the built-in issuer. Then only the `typ` `at+jwt` is accepted, and `exp`
    /// applies without leeway, since our own clock set it.
    pub is_built_in: bool,
}

/// The current keys of one issuer. Their owner may replace them; each verification reads them once.
#[derive(Debug)]
pub struct LiveKeys(ArcSwap<KeySet>);

impl LiveKeys {
    /// Starts with these keys.
    pub fn new(keys: KeySet) -> Self {
        Self(ArcSwap::from_pointee(keys))
    }

    /// The current keys. A verification result stays valid only while this same set is current.
    pub fn load(&self) -> Arc<KeySet> {
        self.0.load_full()
    }

    /// Whether this same set is still current.
    pub fn is_current(&self, set: &Arc<KeySet>) -> bool {
        Arc::ptr_eq(&self.0.load(), set)
    }

    /// Replaces the keys.
    pub fn replace(&self, keys: KeySet) {
        self.0.store(Arc::new(keys));
    }
}

/// An issuer: its settings and its keys.
#[derive(Debug)]
pub struct Issuer {
    settings: IssuerSettings,
    keys: Arc<LiveKeys>,
    revoked_keys: Option<Arc<RevokedKeys>>,
}

impl Issuer {
    /// Creates an issuer with these keys.
    pub fn new(settings: IssuerSettings, keys: KeySet) -> Self {
        Self::with_live_keys(settings, Arc::new(LiveKeys::new(keys)))
    }

    /// Creates an issuer whose keys can change while it is in use.
    pub fn with_live_keys(settings: IssuerSettings, keys: Arc<LiveKeys>) -> Self {
        Self { settings, keys, revoked_keys: None }
    }

    /// The same issuer, whose tokens are revoked while their key exists.
    #[must_use]
    pub fn with_revoked_keys(self, revoked_keys: Option<Arc<RevokedKeys>>) -> Self {
        Self { revoked_keys, ..self }
    }

    /// The keys that revoke its tokens; `None`: there is no such list.
    pub fn revoked_keys(&self) -> Option<&Arc<RevokedKeys>> {
        self.revoked_keys.as_ref()
    }

    /// The settings of its section.
    pub fn settings(&self) -> &IssuerSettings {
        &self.settings
    }

    /// Its keys.
    pub fn keys(&self) -> &Arc<LiveKeys> {
        &self.keys
    }

    /// Whether the token names this issuer, and no other.
    fn check_iss(&self, claims: &Map<String, Value>) -> Result<(), InvalidToken> {
        match claims.get("iss") {
            Some(Value::String(iss)) if self.settings.issuer.as_ref() == Some(iss) => Ok(()),
            Some(Value::String(_)) | None => Err(not_accepted(claims)),
            Some(_) => Err(ClaimFault::not("iss", "a string").into()),
        }
    }

    /// Verifies the signature with the keys of the issuer, after its algorithm was found to be
    /// allowed. Returns the key set that was used.
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

/// Claims that passed every check except the signature. Nothing proves them: this is not a
/// [`VerifiedToken`], and only an offline verifier treats it as one.
#[derive(Clone, Debug)]
pub struct AssumedToken(VerifiedToken);

impl AssumedToken {
    /// Treats the token as if its issuer had signed it. `tests/structure.rs` checks the callers.
    pub(crate) fn as_if_verified(&self) -> &VerifiedToken {
        &self.0
    }
}

/// Two issuer sections that accept the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the issuer sections {first} and {second} accept the same tokens: {}", issuer.as_ref().map_or("both accept tokens without iss", |_| "their `issuer` is the same"))]
pub struct DuplicateIssuer {
    /// The name of the first section.
    pub first: Arc<str>,
    /// The name of the second section.
    pub second: Arc<str>,
    /// Their `issuer`; `None` when both have `insecure_any_issuer`.
    pub issuer: Option<String>,
}

/// The issuer of callers who show a client certificate, as routes, revocations and upstreams name
/// it.
pub const CERTIFICATE: &str = "certificate";

/// All accepted issuers.
#[derive(Debug, Default)]
pub struct Issuers {
    by_iss: HashMap<String, Arc<Issuer>>,
    without_iss: Option<Arc<Issuer>>,
    /// Stands for the authority of client certificates. It signs no tokens.
    certificates: Option<Arc<Issuer>>,
}

impl Issuers {
    /// Creates the table of issuers, by their `issuer`. At most one may be for tokens without
    /// `iss`.
    ///
    /// # Errors
    ///
    /// [`DuplicateIssuer`] if two sections would accept the same token.
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

    /// Accepts client certificates. While their authorities stay the same, so does their issuer:
    /// `kept`.
    #[must_use]
    pub fn with_certificates(self, kept: Option<Arc<Issuer>>) -> Self {
        if kept.is_some() {
            return Self { certificates: kept, ..self };
        }
        let settings = IssuerSettings {
            name: CERTIFICATE.into(),
            issuer: Some(CERTIFICATE.to_owned()),
            audience: None,
            logout_audience: None,
            algorithms: Algorithms::EMPTY,
            roles: ClaimPath::new(["roles"]),
            subject: ClaimPath::new(["sub"]),
            leeway: Duration::ZERO,
            max_token_lifetime: LONGEST_CERTIFICATE,
            is_built_in: false,
        };
        Self { certificates: Some(Arc::new(Issuer::new(settings, KeySet::default()))), ..self }
    }

    /// The issuer of client certificates; `None`: none are accepted. [`Issuers::iter`] leaves it
    /// out.
    pub fn certificates(&self) -> Option<&Arc<Issuer>> {
        self.certificates.as_ref()
    }

    /// What a client certificate proves: `claims` that were read from it. **Nothing is verified
    /// here.** Only the gateway's certificates call this, with one that the handshake has verified
    /// (`tests/structure.rs` checks this). `now` is in Unix seconds.
    ///
    /// # Errors
    ///
    /// No certificates are accepted; or as [`Issuers::verify`] after the signature.
    pub(crate) fn found_certificate(
        &self,
        claims: Map<String, Value>,
        now: u64,
    ) -> Result<VerifiedToken, InvalidToken> {
        let issuer = self.certificates.as_ref().ok_or_else(|| not_accepted(&claims))?;
        let checked = Checked::check(&issuer.settings, &claims, now)?;
        Ok(VerifiedToken::new(issuer, checked, claims))
    }

    /// Every issuer of tokens, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.by_iss.values().chain(&self.without_iss)
    }

    /// Verifies a bearer token. This is the only way to claims that count. `now` is in Unix
    /// seconds.
    ///
    /// The order is: length, form, header; payload; issuer by `iss`, before any key is used;
    /// algorithm; key; signature; types of the claims; audience; time; lifetime; subject and roles
    /// (RFC 7519 §7.2, RFC 8725 §3).
    ///
    /// # Errors
    ///
    /// The first check that fails, as an [`InvalidToken`].
    pub fn verify(&self, token: &str, now: u64) -> Result<VerifiedToken, InvalidToken> {
        self.verify_with_keys(token, now).map(|(token, _)| token)
    }

    /// Like [`Issuers::verify`], and also returns the key set that verified the signature.
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

    /// What a personal access token proves: `claims` that the built-in issuer found in the store
    /// for it. They go through the same checks as those of its access tokens after the signature.
    /// **Nothing is verified here.** Only the gateway's verifier calls this, with the result of a
    /// look-up (`tests/structure.rs` checks this). `now` is in Unix seconds.
    ///
    /// # Errors
    ///
    /// There is no built-in issuer; or as [`Issuers::verify`] after the signature.
    pub(crate) fn found_personal(
        &self,
        claims: Map<String, Value>,
        now: u64,
    ) -> Result<VerifiedToken, InvalidToken> {
        let issuer = self.choose(&claims)?;
        if !issuer.settings.is_built_in {
            return Err(not_accepted(&claims));
        }
        let checked = Checked::check(&issuer.settings, &claims, now)?;
        Ok(VerifiedToken::new(issuer, checked, claims).personal())
    }

    /// Whether this same issuer is in the table, so that claims that once selected it still do.
    pub(super) fn contains(&self, issuer: &Arc<Issuer>) -> bool {
        let holds = match &issuer.settings.issuer {
            Some(iss) => self.by_iss.get(iss),
            None => self.without_iss.as_ref(),
        };
        holds.is_some_and(|holds| Arc::ptr_eq(holds, issuer))
    }

    /// The issuer whose newer keys might verify a token that was refused for this reason. Having a
    /// key with the token's `kid` proves little: an issuer that was reinstalled, or that always
    /// calls its only key `1`, reuses the name for another key.
    pub fn issuer_lacking_key(&self, token: &str, refused: &InvalidToken) -> Option<&Arc<Issuer>> {
        if !refused.concerns_key() {
            return None;
        }
        self.choose(&Jws::parse(token).ok()?.claims().ok()?).ok()
    }

    /// A stand-in for a verified token, for `explain --claims` and `[[test]]` blocks. **Nothing is
    /// signed or verified, so the data path never calls this.** Missing `iss`, `aud` and `exp` are
    /// filled in (five minutes from `now`, in Unix seconds, or less if `max_token_lifetime` is
    /// less); then the claims go through the same checks as in [`Issuers::verify`].
    ///
    /// # Errors
    ///
    /// [`IssuerFault::NoSuchSection`] if there is no section with this name. Otherwise it fails as
    /// [`Issuers::verify`] does after the signature.
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
        // As on the data path, claims that name another issuer do not belong to this one.
        let is_certificate =
            self.certificates().is_some_and(|certificates| Arc::ptr_eq(certificates, named));
        let is_its_own = if is_certificate {
            claims.get("iss") == Some(&json!(CERTIFICATE))
        } else {
            Arc::ptr_eq(self.choose(&claims)?, named)
        };
        if !is_its_own {
            return Err(not_accepted(&claims));
        }
        let checked = Checked::check(settings, &claims, now)?;
        Ok(AssumedToken(VerifiedToken::new(named, checked, claims)))
    }

    /// Like [`Issuers::assume`], for a caller of whom only the roles matter. Its subject is `test`.
    /// The data path never calls this either.
    ///
    /// # Errors
    ///
    /// Fails as [`Issuers::assume`] does.
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

    /// The issuer that the claims name. Until the signature is verified, this only selects keys;
    /// nothing is trusted yet.
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
            .chain(&self.certificates)
            .find(|issuer| &*issuer.settings.name == name)
            .ok_or_else(|| IssuerFault::NoSuchSection(Excerpt::new(name)))
    }
}

/// Certificates of clients are valid for as long as their authority says.
const LONGEST_CERTIFICATE: Duration = Duration::from_hours(24 * 366 * 200);

fn not_accepted(claims: &Map<String, Value>) -> InvalidToken {
    let iss = claims.get("iss").and_then(Value::as_str);
    iss.map_or(IssuerFault::Missing, |iss| IssuerFault::Unknown(Excerpt::new(iss))).into()
}

#[cfg(test)]
mod tests;
