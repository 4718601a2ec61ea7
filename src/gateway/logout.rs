//! OpenID Connect back-channel logout: an issuer reports that a user has logged out there.
//!
//! Each path belongs to one issuer and is matched before the routes. Only the signature proves a
//! request: anyone who can reach the path may send one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;

use super::body::Body;
use super::target::{Relaxations, Target};
use super::upload::ClientBody;
use crate::clock::Clock;
use crate::keys::{Keys, Renewal};
use crate::revocation::Revocations;
use crate::store::{LogoutTokenRow, StoreError};
use crate::token::{InvalidToken, Issuer, LogoutToken};

/// The issuers whose logout tokens are accepted, by decoded path.
#[derive(Debug, Default)]
pub struct LogoutPaths(HashMap<String, Arc<Issuer>>);

impl LogoutPaths {
    /// These paths, each for its issuer.
    pub fn new(paths: impl IntoIterator<Item = (String, Arc<Issuer>)>) -> Self {
        Self(paths.into_iter().collect())
    }

    /// The issuer of a request's path, whatever its host and query.
    ///
    /// # Errors
    /// [`LogoutFault::Method`]: the path belongs to an issuer, but the method is not POST.
    pub fn issuer_at(
        &self,
        method: &Method,
        target: &Target,
    ) -> Result<Option<&Arc<Issuer>>, LogoutFault> {
        // A path that needs normalization is not a logout path.
        if self.0.is_empty() || !target.relaxed().within(Relaxations::NONE) {
            return Ok(None);
        }
        match self.0.get(target.path()) {
            Some(_) if *method != Method::POST => Err(LogoutFault::Method),
            found => Ok(found),
        }
    }
}

/// Why a logout failed.
#[derive(Debug, thiserror::Error)]
pub enum LogoutFault {
    /// Not a POST.
    #[error("back-channel logout accepts only POST")]
    Method,
    /// Not a form with one `logout_token`.
    #[error("the request is not a valid back-channel logout: {0}")]
    Form(&'static str),
    /// The token is not valid.
    #[error("the logout token is not valid: {0}")]
    Token(#[from] InvalidToken),
    /// The token cannot be verified now: the issuer does not respond, and the known keys are
    /// missing or too old.
    #[error("the keys of issuer `{issuer}` are not available")]
    KeysUnavailable {
        /// The issuer's section.
        issuer: Arc<str>,
        /// Whole seconds until a retry makes sense.
        retry_after: u64,
    },
    /// The token was already received.
    #[error("the logout token was received before")]
    Repeated,
    /// The store failed.
    #[error("the logout failed: {0}")]
    Store(#[from] StoreError),
}

/// Received logout tokens, kept for as long as they could be replayed. There is one per process;
/// the store, if any, keeps them across restarts.
#[derive(Debug, Default)]
pub struct ReceivedLogouts(Mutex<Received>);

#[derive(Debug, Default)]
struct Received {
    names: HashSet<[u8; 32]>,
    by_time: BTreeSet<(u64, [u8; 32])>,
}

impl ReceivedLogouts {
    /// Remembers a token until `expires_at`. Returns false if it is already remembered.
    fn insert(&self, name: [u8; 32], expires_at: u64, now: u64) -> bool {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(time, oldest)) = received.by_time.first()
            && (time <= now || received.names.len() >= MAX_REMEMBERED)
        {
            received.by_time.remove(&(time, oldest));
            received.names.remove(&oldest);
        }
        let is_first = received.names.insert(name);
        if is_first {
            received.by_time.insert((expires_at, name));
        }
        is_first
    }

    /// Forgets a token whose logout failed, so that the issuer can send it again.
    fn remove(&self, name: [u8; 32], expires_at: u64) {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.names.remove(&name);
        received.by_time.remove(&(expires_at, name));
    }
}

/// Parses the form of a request to an issuer's path.
///
/// # Errors
/// [`LogoutFault::Form`] if it is not a complete form with exactly one token.
pub async fn read_logout_token(parts: &Parts, body: ClientBody) -> Result<String, LogoutFault> {
    let media_type =
        parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let media_type = media_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if !media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        return Err(LogoutFault::Form("its content type is not application/x-www-form-urlencoded"));
    }
    let body = tokio::time::timeout(BODY_TIMEOUT, body.collect());
    let body = body.await.map_err(|_| LogoutFault::Form("its body did not arrive in time"))?;
    let body =
        body.map_err(|_| LogoutFault::Form("its body is too large or incomplete"))?.to_bytes();
    token_from_form(&body)
}

fn token_from_form(form: &Bytes) -> Result<String, LogoutFault> {
    let mut tokens = form_urlencoded::parse(form).filter(|(name, _)| name == "logout_token");
    match (tokens.next(), tokens.next()) {
        (Some((_, token)), None) => Ok(token.into_owned()),
        (None, _) => Err(LogoutFault::Form("it has no `logout_token`")),
        _ => Err(LogoutFault::Form("it has more than one `logout_token`")),
    }
}

/// Verifies a logout token, and again with newer keys if its key is not known. Waits a few seconds
/// at most, and only in that case.
///
/// # Errors
/// [`LogoutFault::KeysUnavailable`] if the key of the token is unknown and cannot be fetched now,
/// and [`LogoutFault::Token`] if the token is not valid.
pub async fn verify_logout_token(
    issuer: &Issuer,
    token: &str,
    keys: &Keys,
    clock: &Clock,
) -> Result<LogoutToken, LogoutFault> {
    let verify = || issuer.verify_logout(token, clock.unix_seconds());
    let decided = verify();
    let Some(owner) = keys.for_issuer(issuer).filter(|_| lacks_key(&decided)) else {
        return decided.map_err(LogoutFault::from);
    };
    let (decided, renewal) = owner.with_newest(verify, lacks_key).await;
    match decided {
        Err(InvalidToken::NoKeys) => {}
        Err(InvalidToken::KeyUnknown { .. }) if renewal == Renewal::Unavailable => {}
        decided => return decided.map_err(LogoutFault::from),
    }
    Err(LogoutFault::KeysUnavailable {
        issuer: Arc::clone(&issuer.settings().name),
        retry_after: owner.retry_after(),
    })
}

fn lacks_key(decided: &Result<LogoutToken, InvalidToken>) -> bool {
    decided.as_ref().is_err_and(InvalidToken::concerns_key)
}

/// Ends what a verified logout token names, once. `now` is in Unix seconds.
///
/// # Errors
/// [`LogoutFault::Repeated`] if the token was received before. After [`LogoutFault::Store`], the
/// issuer can send it again.
pub async fn log_out(
    issuer: &Issuer,
    token: LogoutToken,
    received: &ReceivedLogouts,
    revocations: &Revocations,
    now: u64,
) -> Result<Response<Body>, LogoutFault> {
    let settings = issuer.settings();
    let name = name(settings.issuer.as_deref().unwrap_or_default(), token.jti());
    let expires_at = token.expires_at();
    let revocation = token.into_revocation();
    if !received.insert(name, expires_at, now) {
        return Err(LogoutFault::Repeated);
    }
    let (by, value) = (revocation.by.as_str(), Arc::clone(&revocation.value));
    let row =
        LogoutTokenRow { name: URL_SAFE_NO_PAD.encode(name), expires_at: expires_at.cast_signed() };
    match revocations.revoke_once(revocation, row).await {
        Ok(true) => {}
        // Received before this process started, or by another one.
        Ok(false) => return Err(LogoutFault::Repeated),
        Err(error) => {
            received.remove(name, expires_at);
            return Err(error.into());
        }
    }
    tracing::info!(issuer = &*settings.name, by, value = &*value, "logged out at the issuer");
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// An `iss` and a `jti` as one fixed-length value.
fn name(iss: &str, jti: &str) -> [u8; 32] {
    let text = format!("{}:{iss}{jti}", iss.len());
    digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap_or_default()
}

/// The longest body, in bytes.
pub const MAX_BODY: u64 = 32 * 1024;

/// The longest time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of tokens kept. If there are more, those that expire first are dropped; replaying one
/// only ends what has already ended.
const MAX_REMEMBERED: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_must_contain_exactly_one_token() {
        for (form, expected) in [
            ("logout_token=a.b.c", Some("a.b.c")),
            ("x=1&logout_token=a%2Eb.c&y", Some("a.b.c")),
            ("", None),
            ("logout_token", Some("")),
            ("Logout_token=a", None),
            ("logout_token=a&logout_token=a", None),
            ("logout%5Ftoken=a&logout_token=b", None),
        ] {
            let form = Bytes::from_static(form.as_bytes());
            assert_eq!(token_from_form(&form).ok().as_deref(), expected, "{form:?}");
        }
    }

    #[test]
    fn a_token_is_remembered_until_it_expires() {
        let received = ReceivedLogouts::default();
        assert!(received.insert(name("a", "bc"), 100, 10));
        assert!(!received.insert(name("a", "bc"), 100, 99));
        assert!(received.insert(name("ab", "c"), 100, 10));
        received.remove(name("ab", "c"), 100);
        assert!(received.insert(name("ab", "c"), 100, 10));
        assert!(
            received.insert(name("a", "bc"), 200, 100),
            "it has expired, so its time alone would refuse it"
        );
        let received = ReceivedLogouts::default();
        for index in 0..MAX_REMEMBERED + 10 {
            assert!(received.insert(name("a", &index.to_string()), 1_000 + index as u64, 10));
        }
        let inside = received.0.lock().unwrap();
        assert_eq!((inside.names.len(), inside.by_time.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
    }
}
