//! Authentication: takes one credential, from the places that the route allows, to the caller that
//! it proves.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Map, Value};

use super::certificate::ClientCertificate;
use super::client::ClientAddress;
use super::guard::{Access, Guard, Place, TokenPlaces};
use super::origin::{changes_something, is_navigation, is_own_request, origin_of};
use super::personal::{basic_password, bearer, is_token68};
use super::route::Route;
use super::step_up::Insufficient;
use super::target::{Target, decode_form, query_values};
use super::token_memo::TokenMemo;
use super::token_names::{TokenNames, cookie_values};
use crate::config::identity::NAME;
use crate::identity::personal_tokens::{Unusable, is_personal};
use crate::identity::{IdentityError, Origin, Renewed, pages};
use crate::revocation::RevocationList;
use crate::token::{
    AssumedToken, CERTIFICATE, ClaimFault, InvalidToken, Issuer, Issuers, MAX_TOKEN_BYTES,
    Malformed, Remembered, RevokedBy, TokenCache,
};

/// Why no caller was authenticated.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// No credentials in a place that this route reads.
    #[error("no credentials")]
    Missing,
    /// `Authorization: Bearer` without a well-formed token.
    #[error("the credentials are malformed")]
    Malformed,
    /// More than one credential.
    #[error("more than one credential")]
    Ambiguous,
    /// The token is not valid.
    #[error(transparent)]
    Invalid(#[from] InvalidToken),
    /// The token cannot be verified now: its issuer does not respond, and the known keys are
    /// missing or too old.
    #[error("the keys of issuer `{issuer}` are not available")]
    KeysUnavailable {
        /// The issuer's section.
        issuer: Arc<str>,
        /// Whole seconds until a retry makes sense.
        retry_after: u64,
    },
    /// The provider of the caller cannot be asked any more whether they may still log in: they must
    /// log in there again.
    #[error("the refresh token of the caller's provider was lost, so they must log in there again")]
    MustLogInAgain(Box<Insufficient>),
    /// The built-in issuer cannot say now who is calling: the store or the signing keys failed.
    #[error("{0}")]
    Unavailable(Arc<IdentityError>),
    /// Whether the token is revoked is not known: the revoked keys of its issuer have not been read
    /// since the start.
    #[error("the revoked keys of issuer `{issuer}` have not been read from Redis yet")]
    RevocationsUnknown {
        /// The issuer's section.
        issuer: Arc<str>,
    },
    /// A personal access token that is not remembered. The data path looks it up
    /// ([`super::online::Online`]).
    #[error("the personal access token is not remembered and was not looked up")]
    NotLookedUp,
    /// Too many attempts with unknown personal access tokens by this address.
    #[error("limit `{limit}` is used up for this client")]
    Limited {
        /// The name of the limit.
        limit: String,
        /// Whole seconds until a retry makes sense.
        retry_after: u64,
    },
    /// The caller was identified by a cookie or by Basic, which a browser sends by itself, but the
    /// request came from another origin.
    #[error("a request with a cookie or a password came from another origin")]
    ForeignOrigin,
}

/// Verifies credentials: against the keys of the accepted issuers, then against the revocation
/// list.
///
/// The data path makes one with [`Verifier::new`]. One that also takes an [`AssumedToken`] for a
/// verified one comes from [`Verifier::offline`], which only `explain` calls
/// (`tests/structure.rs` checks this).
#[derive(Clone, Copy, Debug)]
pub struct Verifier<'a> {
    names: &'a TokenNames,
    issuers: &'a Arc<Issuers>,
    known: Option<&'a Mutex<TokenCache<TokenMemo>>>,
    revoked: &'a RevocationList,
    assumed: Option<&'a AssumedToken>,
    renewed: Option<&'a Arc<Renewed>>,
    looked_up: Option<&'a LookedUp>,
    certificate: Option<&'a Arc<ClientCertificate>>,
}

/// A personal access token that was looked up before the decision, for `explain`.
#[derive(Debug)]
pub struct LookedUp {
    /// The token.
    pub token: String,
    /// What it proves.
    pub found: Result<Map<String, Value>, Unusable>,
}

impl<'a> Verifier<'a> {
    /// Verifies tokens of `issuers`, caches them in `known`, and rejects those that `revoked`
    /// lists.
    pub fn new(
        names: &'a TokenNames,
        issuers: &'a Arc<Issuers>,
        known: Option<&'a Mutex<TokenCache<TokenMemo>>>,
        revoked: &'a RevocationList,
    ) -> Self {
        Self {
            names,
            issuers,
            known,
            revoked,
            assumed: None,
            renewed: None,
            looked_up: None,
            certificate: None,
        }
    }

    /// Also knows the certificate that the client has shown, if it is from the authorities with
    /// this digest.
    #[must_use]
    pub(super) fn with_certificate(
        self,
        certificate: Option<&'a Arc<ClientCertificate>>,
        authority: Option<&[u8; 32]>,
    ) -> Self {
        Self { certificate: certificate.filter(|shown| shown.is_from(authority)), ..self }
    }

    /// Takes `assumed` as the credential of every request, as if the client had sent a token with
    /// its claims in a place that the route reads. For `explain` and `[[test]]`.
    pub fn offline(
        names: &'a TokenNames,
        issuers: &'a Arc<Issuers>,
        revoked: &'a RevocationList,
        assumed: Option<&'a AssumedToken>,
        looked_up: Option<&'a LookedUp>,
    ) -> Self {
        Self { assumed, looked_up, ..Self::new(names, issuers, None, revoked) }
    }

    /// Verifies the new access token of a renewed session where the request has an access cookie or
    /// none.
    pub(super) fn with_renewed<'b>(self, renewed: &'b Arc<Renewed>) -> Verifier<'b>
    where
        'a: 'b,
    {
        Verifier { renewed: Some(renewed), ..self }
    }

    /// The way from a credential to the caller that it proves: the token is verified, then looked
    /// up in the revocation list.
    fn caller(&self, credential: &Credential<'_>, now: u64) -> Result<Caller, Unauthenticated> {
        if let Some(token) = credential.personal()? {
            return self.remembered(token, credential.place, now);
        }
        let token = match (&credential.token, self.known) {
            (Presented::Assumed(assumed), _) => {
                Arc::new(Remembered::from(assumed.as_if_verified().clone()))
            }
            (Presented::Bytes(bytes), Some(known)) => {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                match known.get(self.issuers, bytes, now) {
                    Ok(found) => found?,
                    // Bytes that were verified before are well formed, so check the form only here.
                    Err(miss) => {
                        known.verify_and_insert(miss, self.issuers, &credential.text()?, now)?
                    }
                }
            }
            (Presented::Bytes(_), None) => {
                Arc::new(Remembered::from(self.issuers.verify(&credential.text()?, now)?))
            }
        };
        if token.revoked_keys().is_some_and(|keys| !keys.is_known()) {
            let issuer = Arc::clone(token.issuer_name());
            return Err(Unauthenticated::RevocationsUnknown { issuer });
        }
        if let Some(thumbprint) = token.bound_to()
            && !self.certificate.is_some_and(|shown| shown.has_thumbprint(thumbprint))
        {
            return Err(InvalidToken::from(ClaimFault::not_shown()).into());
        }
        self.revoked.note_if_early(&token, now);
        match self.revoked.revoked_by(&token) {
            None => {
                let renewed = self.renewed.filter(|_| credential.place == Place::Cookie);
                Ok(Caller { token, place: credential.place, renewed: renewed.cloned() })
            }
            Some(by) => Err(InvalidToken::Revoked(by).into()),
        }
    }

    /// The caller that the client's certificate proves.
    fn certificate_caller(&self, now: u64) -> Result<Caller, Unauthenticated> {
        let token = match (self.assumed, self.certificate) {
            (Some(assumed), _) if is_certificate(assumed) => {
                Arc::new(Remembered::from(assumed.as_if_verified().clone()))
            }
            (_, Some(certificate)) => certificate.caller(self.issuers, now)?,
            (_, None) => return Err(Unauthenticated::Missing),
        };
        self.unrevoked(token, Place::Certificate)
    }

    /// The caller of a token that is not revoked.
    fn unrevoked(
        &self,
        token: Arc<Remembered<TokenMemo>>,
        place: Place,
    ) -> Result<Caller, Unauthenticated> {
        match self.revoked.revoked_by(&token) {
            None => Ok(Caller { token, place, renewed: None }),
            Some(by) => Err(InvalidToken::Revoked(by).into()),
        }
    }

    /// The issuer whose missing key may be why this token was refused.
    pub(super) fn issuer_lacking_key(
        &self,
        token: &str,
        decided: &Result<Option<Caller>, Unauthenticated>,
    ) -> Option<Arc<Issuer>> {
        match decided {
            Err(Unauthenticated::Invalid(refused)) if refused.concerns_key() => {
                self.issuers.issuer_lacking_key(token, refused).cloned()
            }
            _ => None,
        }
    }

    /// The caller of a personal access token that is remembered.
    fn remembered(&self, token: &[u8], place: Place, now: u64) -> Result<Caller, Unauthenticated> {
        if let Some(LookedUp { found, .. }) =
            self.looked_up.filter(|looked_up| looked_up.token.as_bytes() == token)
        {
            return match found {
                Ok(claims) => self.found(token, place, claims.clone(), now),
                Err(unusable) => Err(unusable_token(unusable, now)),
            };
        }
        let known = self.known.ok_or(Unauthenticated::NotLookedUp)?;
        let found = {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(self.issuers, token, now)
        };
        // A known access token is not a password.
        let Some(found) = found.ok().and_then(Result::ok).filter(|found| found.is_personal())
        else {
            return Err(Unauthenticated::NotLookedUp);
        };
        match self.revoked.revoked_by(&found) {
            None => Ok(Caller { token: found, place, renewed: None }),
            Some(by @ RevokedBy::Jti) => Err(InvalidToken::Revoked(by).into()),
            // What was true of the account is over, not the token.
            Some(_) => Err(Unauthenticated::NotLookedUp),
        }
    }

    /// The caller of a personal access token whose look-up found these claims just now. Remembers
    /// them.
    pub(super) fn found(
        &self,
        token: &[u8],
        place: Place,
        claims: Map<String, Value>,
        now: u64,
    ) -> Result<Caller, Unauthenticated> {
        let found = self.issuers.found_personal(claims, now)?;
        let found = match self.known {
            Some(known) => {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert_found(token, found)
            }
            None => Arc::new(Remembered::from(found)),
        };
        self.unrevoked(found, place)
    }

    /// The caller of a request, for a second target that it names: the same caller, if the route
    /// there accepts the credential from where it is.
    pub(super) fn same_caller(
        &self,
        access: &AccessRequest<'_>,
        caller: Option<&Caller>,
    ) -> Result<Option<Caller>, Unauthenticated> {
        let caller = match (access.guard.access, caller) {
            (Access::Public, _) | (Access::Optional, None) => return Ok(None),
            (_, Some(caller)) if access.guard.takes(caller.place) => caller,
            _ => return Err(Unauthenticated::Missing),
        };
        if !self.is_own_request(access, caller.place) {
            return Err(Unauthenticated::ForeignOrigin);
        }
        Ok(Some(caller.clone()))
    }

    /// The person to name on an error page: the caller of the access cookie, if a browser asks for a
    /// page. Reads only what is in memory. The request itself stays unauthenticated. Checks for the
    /// cookie first, because floods of bad targets carry none.
    pub(super) fn person(&self, headers: &HeaderMap, now: u64) -> Option<Caller> {
        let mut values = cookie_values(headers, &self.names.cookie);
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        if !is_navigation(headers) || !pages::wanted(headers) {
            return None;
        }
        let credential = Credential { token: Presented::Bytes(value.into()), place: Place::Cookie };
        self.caller(&credential, now).ok()
    }

    /// Whether a request may use a credential from this place: not if a browser added it for a
    /// page of another site.
    fn is_own_request(&self, access: &AccessRequest<'_>, place: Place) -> bool {
        let &AccessRequest { method, headers, target, client, .. } = access;
        match place {
            Place::Cookie => is_own_request(method, headers, target, client, self.names),
            // A browser repeats a password that was typed once, and a certificate that was chosen
            // once. Programs say nothing of an origin.
            Place::Basic | Place::Certificate => {
                !changes_something(method, headers)
                    || origin_of(headers, target, client, self.names) != Origin::Foreign
            }
            Place::Header | Place::Query => true,
        }
    }

    /// The one credential of a request.
    pub(super) fn credential<'r>(
        &self,
        access: &AccessRequest<'r>,
    ) -> Result<Option<Credential<'r>>, Unauthenticated>
    where
        'a: 'r,
    {
        let places = access.guard.token_from;
        let sent = credential(places, access.headers, access.target, self.names)?;
        if let Some(renewed) = self.renewed
            && places.cookie
        {
            return match sent {
                Some(Credential { place: Place::Cookie, .. }) | None => Ok(Some(Credential {
                    token: Presented::Bytes(renewed.access_token().as_bytes().into()),
                    place: Place::Cookie,
                })),
                Some(_) => Err(Unauthenticated::Ambiguous),
            };
        }
        match (sent, self.assumed.filter(|assumed| !is_certificate(assumed))) {
            (sent, None) => Ok(sent),
            (Some(_), Some(_)) => Err(Unauthenticated::Ambiguous),
            (None, Some(assumed)) => Ok(Some(Credential {
                token: Presented::Assumed(assumed),
                place: places.assumed(access.headers),
            })),
        }
    }
}

impl TokenPlaces {
    /// Where a client would have put an assumed token: the first place that is read and free.
    fn assumed(self, headers: &HeaderMap) -> Place {
        if self.header && !(self.cookie && headers.contains_key(header::AUTHORIZATION)) {
            Place::Header
        } else if self.cookie {
            Place::Cookie
        } else if self.basic {
            Place::Basic
        } else {
            Place::Query
        }
    }
}

/// A token as found in a request, and its place.
#[derive(Debug)]
pub(super) struct Credential<'a> {
    token: Presented<'a>,
    place: Place,
}

#[derive(Debug)]
enum Presented<'a> {
    Bytes(Cow<'a, [u8]>),
    Assumed(&'a AssumedToken),
}

impl Credential<'_> {
    /// Where it was found.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The token, if it is a personal access token or can only be one.
    ///
    /// # Errors
    /// [`Unauthenticated::Malformed`]
    pub(super) fn personal(&self) -> Result<Option<&[u8]>, Unauthenticated> {
        match (&self.token, self.place) {
            (Presented::Bytes(token), Place::Basic) => Ok(Some(token)),
            (Presented::Bytes(token), Place::Header) if is_personal(token) => {
                well_formed(token).map(|token| Some(token.as_bytes()))
            }
            _ => Ok(None),
        }
    }

    /// The token, if it is well formed.
    ///
    /// # Errors
    /// [`Unauthenticated::Malformed`] if it is not a `token68`, and [`Malformed::TooLong`] if it is
    /// too long.
    pub(super) fn text(&self) -> Result<Cow<'_, str>, Unauthenticated> {
        match (&self.token, self.place) {
            (Presented::Bytes(token), Place::Header) => well_formed(token).map(Cow::Borrowed),
            // The verifier expects a JWS and nothing else.
            (Presented::Bytes(token), _) => Ok(String::from_utf8_lossy(token)),
            (Presented::Assumed(_), _) => Ok(Cow::Borrowed("")),
        }
    }
}

/// A caller: the token was verified and is not revoked, and this request may use it. Only a
/// [`Verifier`] makes one.
///
/// ```
/// fn name(caller: &portcullis::gateway::authenticate::Caller) -> &str {
///     caller.token().subject()
/// }
/// ```
/// A verified token alone does not make a caller, since it may have been revoked:
/// ```compile_fail
/// use portcullis::gateway::{authenticate::Caller, guard::Place};
/// use portcullis::gateway::token_memo::TokenMemo;
/// fn forge(token: std::sync::Arc<portcullis::token::Remembered<TokenMemo>>) -> Caller {
///     Caller { token, place: Place::Header, renewed: None }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Caller {
    token: Arc<Remembered<TokenMemo>>,
    place: Place,
    renewed: Option<Arc<Renewed>>,
}

impl Caller {
    /// What the token proves.
    pub fn token(&self) -> &Arc<Remembered<TokenMemo>> {
        &self.token
    }

    /// The place of the token.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The session that was renewed for this request, whose cookies the response sets.
    pub fn renewed(&self) -> Option<&Arc<Renewed>> {
        self.renewed.as_ref()
    }
}

/// One access question: a request, the route that it would take with a method, and the requirements
/// there.
#[derive(Clone, Copy, Debug)]
pub(super) struct AccessRequest<'a> {
    /// The route.
    pub(super) route: &'a Route,
    /// The requirements of the route, or of its endpoint.
    pub(super) guard: &'a Guard,
    /// The method of the request, or the overriding one.
    pub(super) method: &'a Method,
    /// The fields, as received.
    pub(super) headers: &'a HeaderMap,
    /// Host and path.
    pub(super) target: &'a Target,
    /// The client.
    pub(super) client: &'a ClientAddress,
}

/// Authenticates the caller by what is in memory. `Ok(None)` on a public route, and without
/// credentials if they are optional. `now` is in Unix seconds.
pub(super) fn authenticate(
    access: &AccessRequest<'_>,
    verifier: &Verifier<'_>,
    now: u64,
) -> Result<Option<Caller>, Unauthenticated> {
    match access.guard.access {
        Access::Public => return Ok(None),
        Access::Certificate => {
            let caller = verifier.certificate_caller(now)?;
            let is_own = verifier.is_own_request(access, caller.place);
            return if is_own { Ok(Some(caller)) } else { Err(Unauthenticated::ForeignOrigin) };
        }
        Access::Optional | Access::Lenient | Access::Authenticated => {}
    }
    let credential = verifier.credential(access)?;
    let is_own = match &credential {
        Some(credential) => verifier.is_own_request(access, credential.place),
        // The session may be renewed.
        None => {
            session_cookie(access, verifier).is_none()
                || verifier.is_own_request(access, Place::Cookie)
        }
    };
    if !is_own {
        return Err(Unauthenticated::ForeignOrigin);
    }
    match credential {
        Some(credential) => Ok(Some(verifier.caller(&credential, now)?)),
        None if access.guard.access == Access::Optional => Ok(None),
        None => Err(Unauthenticated::Missing),
    }
}

/// The session cookie of a request that [`authenticate`] found no valid access token in, if a live
/// session would help (CONTRACT §15.2): there is no access token, or the access cookie has expired,
/// was revoked, or was signed by a key that is not known any more.
pub(super) fn renewable<'r>(
    access: &AccessRequest<'r>,
    verifier: &Verifier<'r>,
    decided: &Result<Option<Caller>, Unauthenticated>,
) -> Option<&'r str> {
    let is_in_cookie = || {
        let sent = verifier.credential(access);
        matches!(sent, Ok(Some(Credential { place: Place::Cookie, .. })))
    };
    let helps = match decided {
        Ok(None) | Err(Unauthenticated::Missing) => true,
        Err(Unauthenticated::Invalid(
            InvalidToken::Expired { .. }
            | InvalidToken::Revoked(_)
            | InvalidToken::KeyUnknown { .. },
        )) => is_in_cookie(),
        _ => false,
    };
    if helps { session_cookie(access, verifier) } else { None }
}

/// The one session cookie of a request, where it may be used. Endpoints that decide by themselves
/// read it themselves.
fn session_cookie<'r>(access: &AccessRequest<'r>, verifier: &Verifier<'r>) -> Option<&'r str> {
    let guard = access.guard;
    let takes_ours = || {
        let issuers = guard.demands.issuers.as_ref();
        issuers.is_none_or(|issuers| issuers.iter().any(|issuer| **issuer == *NAME))
    };
    if !guard.token_from.cookie
        || !matches!(guard.access, Access::Authenticated | Access::Optional)
        || !takes_ours()
    {
        return None;
    }
    let mut values = cookie_values(access.headers, &verifier.names.session);
    match (values.next(), values.next()) {
        (Some(value), None) => std::str::from_utf8(value).ok(),
        _ => None,
    }
}

/// Whether the caller is assumed to have shown a certificate, and not a token.
fn is_certificate(assumed: &AssumedToken) -> bool {
    **assumed.as_if_verified().issuer_name() == *CERTIFICATE
}

/// Why a personal access token is refused, in the terms of tokens. `now`: in Unix seconds.
pub(super) fn unusable_token(unusable: &Unusable, now: u64) -> Unauthenticated {
    match unusable {
        Unusable::Unknown => InvalidToken::Unknown.into(),
        Unusable::Expired { at } => InvalidToken::Expired { at: *at, now }.into(),
        Unusable::Revoked => InvalidToken::Revoked(RevokedBy::Jti).into(),
        Unusable::Store(_) => Unauthenticated::NotLookedUp,
    }
}

/// The one credential of a request.
///
/// # Errors
/// [`Unauthenticated::Malformed`] if a token is not well formed, and [`Unauthenticated::Ambiguous`]
/// if there is more than one.
fn credential<'a>(
    places: TokenPlaces,
    headers: &'a HeaderMap,
    target: &'a Target,
    names: &'a TokenNames,
) -> Result<Option<Credential<'a>>, Unauthenticated> {
    let mut found = None;
    let mut find = |token: Cow<'a, [u8]>, place| match found
        .replace(Credential { token: Presented::Bytes(token), place })
    {
        None => Ok(()),
        Some(_) => Err(Unauthenticated::Ambiguous),
    };
    if places.header
        && let Some(token) = bearer_token(headers)?
    {
        if places.cookie || places.query {
            // One that is malformed is reported before a second one.
            well_formed(token)?;
        }
        find(Cow::Borrowed(token), Place::Header)?;
    }
    if places.basic
        && let Some(password) = password(headers)?
    {
        find(Cow::Owned(password), Place::Basic)?;
    }
    if places.cookie {
        for value in cookie_values(headers, &names.cookie) {
            find(Cow::Borrowed(value), Place::Cookie)?;
        }
    }
    if places.query
        && let Some(query) = target.query()
    {
        for value in query_values(query, &names.query) {
            let token = decode_form(value).ok_or(Unauthenticated::Malformed)?;
            if !is_token68(&token) {
                return Err(Unauthenticated::Malformed);
            }
            find(Cow::Owned(token), Place::Query)?;
        }
    }
    Ok(found)
}

/// The bytes after `Authorization: Bearer`; `None` without that field, or with another scheme. The
/// one reader of bearer tokens, on the public listener and on the admin listener.
///
/// # Errors
/// [`Unauthenticated::Ambiguous`], when the field is repeated.
pub fn bearer_token(headers: &HeaderMap) -> Result<Option<&[u8]>, Unauthenticated> {
    Ok(authorization(headers)?.and_then(bearer))
}

/// The password of `Authorization: Basic`.
fn password(headers: &HeaderMap) -> Result<Option<Vec<u8>>, Unauthenticated> {
    match authorization(headers)?.and_then(basic_password) {
        None => Ok(None),
        Some(password) => password.map(Some).ok_or(Unauthenticated::Malformed),
    }
}

/// The one `Authorization` field.
fn authorization(headers: &HeaderMap) -> Result<Option<&[u8]>, Unauthenticated> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    match (lines.next(), lines.next()) {
        (line, None) => Ok(line.map(HeaderValue::as_bytes)),
        (_, Some(_)) => Err(Unauthenticated::Ambiguous),
    }
}

/// Parses these bytes as a token.
fn well_formed(token: &[u8]) -> Result<&str, Unauthenticated> {
    if !is_token68(token) {
        return Err(Unauthenticated::Malformed);
    }
    if token.len() > MAX_TOKEN_BYTES {
        // Not parsed: the verifier rejects it by its length.
        return Err(InvalidToken::from(Malformed::TooLong {
            length: token.len(),
            most: MAX_TOKEN_BYTES,
        })
        .into());
    }
    std::str::from_utf8(token).map_err(|_| Unauthenticated::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Version};

    const ALL: TokenPlaces = TokenPlaces { header: true, cookie: true, query: true, basic: false };
    const HEADER: TokenPlaces =
        TokenPlaces { header: true, cookie: false, query: false, basic: false };

    fn read(
        places: TokenPlaces,
        path: &str,
        fields: &[(&'static str, &str)],
    ) -> Result<Option<(String, Place)>, Unauthenticated> {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("a.test"));
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let target =
            Target::parse(&Method::GET, &path.parse().unwrap(), Version::HTTP_11, &headers)
                .unwrap();
        let names = TokenNames::default();
        let Some(found) = credential(places, &headers, &target, &names)? else { return Ok(None) };
        Ok(Some((found.text()?.into_owned(), found.place)))
    }

    #[test]
    fn the_bearer_scheme_is_case_insensitive() {
        for line in ["Bearer a.b.c", "bearer a.b.c", "BEARER   a.b.c", " bEaReR a.b.c "] {
            assert_eq!(read(HEADER, "/", &[("authorization", line)]).unwrap().unwrap().0, "a.b.c");
        }
    }

    #[test]
    fn another_scheme_is_not_a_credential() {
        for line in ["Basic YTpi", "", "Token a.b.c", "Bearerx a.b.c", "bear"] {
            assert!(read(HEADER, "/", &[("authorization", line)]).unwrap().is_none(), "{line}");
        }
    }

    #[test]
    fn an_invalid_token_is_malformed() {
        for line in [
            "Bearer",
            "Bearer ",
            "Bearer a b",
            "Bearer a,b",
            "Bearer \"a\"",
            "Bearer a.b.c, Bearer d",
            "Bearer ==",
            "Bearer a=b",
            "Bearer a\u{e9}",
        ] {
            assert!(
                matches!(
                    read(HEADER, "/", &[("authorization", line)]),
                    Err(Unauthenticated::Malformed)
                ),
                "{line}"
            );
        }
    }

    #[test]
    fn token68_accepts_exactly_the_rfc_alphabet() {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
            assert_eq!(is_token68(&[b'a', byte, b'b']), expected, "{byte}");
            assert_eq!(is_token68(&[b'a', byte]), expected || byte == b'=', "{byte}");
        }
    }

    #[test]
    fn two_credentials_are_ambiguous() {
        let bearer = ("authorization", "Bearer a.b.c");
        let cookie = ("cookie", "x=1; __Host-portcullis=a.b.c");
        for (places, path, fields) in [
            (HEADER, "/", vec![bearer, bearer]),
            (HEADER, "/", vec![bearer, ("authorization", "Basic YTpi")]),
            (ALL, "/", vec![bearer, cookie]),
            (ALL, "/", vec![cookie, cookie]),
            (ALL, "/?access_token=a.b.c", vec![cookie]),
            (ALL, "/?access_token=a.b.c", vec![bearer]),
            (ALL, "/?access_token=a&access_token=a", vec![]),
            (ALL, "/?access_token=a&access%5ftoken=a", vec![]),
        ] {
            assert!(
                matches!(read(places, path, &fields), Err(Unauthenticated::Ambiguous)),
                "{path} {fields:?}"
            );
        }
        // Places that the route does not list are not read.
        assert_eq!(
            read(HEADER, "/?access_token=d", &[bearer, cookie]).unwrap().unwrap().0,
            "a.b.c"
        );
    }

    #[test]
    fn cookie_and_query_are_read_only_if_allowed() {
        assert!(
            read(ALL, "/", &[("cookie", "a=b"), ("cookie", "__Host-portcullis=t.o.k")])
                .unwrap()
                .unwrap()
                .1
                == Place::Cookie
        );
        assert_eq!(read(ALL, "/?a=b&access_token=t%2Eo.k", &[]).unwrap().unwrap().0, "t.o.k");
        assert!(matches!(read(ALL, "/?access_token=", &[]), Err(Unauthenticated::Malformed)));
    }

    #[test]
    fn an_oversized_token_is_not_parsed() {
        let line = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        assert!(matches!(
            read(HEADER, "/", &[("authorization", &line)]),
            Err(Unauthenticated::Invalid(_))
        ));
    }
}
