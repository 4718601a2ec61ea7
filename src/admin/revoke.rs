//! `POST /revoke`, which changes state, for operators with the token of `[admin]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Deserialize;

use super::problem;
use crate::clock::Clock;
use crate::config::value::SecretBytes;
use crate::gateway::authenticate::bearer_token;
use crate::gateway::streams::Streams;
use crate::reason::Reason;
use crate::revocation::Revocations;
use crate::token::{Issuers, Revocation, RevokedBy, Scope};

/// What operators may change at run time.
#[derive(Debug)]
pub struct Control {
    policy: ArcSwap<Policy>,
    revocations: Arc<Revocations>,
    pub(super) streams: Arc<Streams>,
    clock: Clock,
}

/// The settings of the running configuration.
#[derive(Debug, Default)]
struct Policy {
    /// SHA-256 of the token; `None` if nothing may be changed through this listener.
    token: Option<[u8; 32]>,
    /// The issuers' sections by name.
    scopes: BTreeMap<Arc<str>, Scope>,
}

impl Control {
    /// Nothing may be changed until [`Control::permit`] is called.
    pub fn new(revocations: &Arc<Revocations>, streams: &Arc<Streams>, clock: Clock) -> Self {
        let (revocations, streams) = (Arc::clone(revocations), Arc::clone(streams));
        Self { policy: ArcSwap::default(), revocations, streams, clock }
    }

    /// Sets the token that is required from now on, and the issuers that may be named.
    pub fn permit(&self, token: Option<&SecretBytes>, issuers: &Issuers) {
        let token = token.map(|token| sha256(token.expose()));
        let scopes = issuers
            .iter()
            .chain(issuers.certificates())
            .map(|issuer| {
                (Arc::clone(&issuer.settings().name), Scope::for_issuer(issuer.settings()))
            })
            .collect();
        self.policy.store(Arc::new(Policy { token, scopes }));
    }

    /// Whether the endpoint exists.
    pub(super) fn is_enabled(&self) -> bool {
        self.policy.load().token.is_some()
    }

    /// Checks that a request is from an operator.
    pub(super) fn check_operator(&self, headers: &HeaderMap) -> Result<(), Fault> {
        self.policy.load().operator(headers).map(|Operator(())| ())
    }

    /// Answers a request for `/revoke`.
    pub(super) async fn revoke(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match self.try_revoke(request).await {
            Ok(()) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
                    .headers_mut()
                    .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            Err(fault) => fault.into_response(),
        }
    }

    async fn try_revoke(&self, request: Request<Incoming>) -> Result<(), Fault> {
        // Use one policy for the whole request: the required token, and the issuers that it may
        // name.
        let policy = self.policy.load_full();
        if request.method() != Method::POST {
            return Err(Fault::Method);
        }
        let operator = policy.operator(request.headers())?;
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
        let body = tokio::time::timeout(BODY_TIMEOUT, body)
            .await
            .map_err(|_| Fault::Request("the body did not arrive in time".to_owned()))?;
        let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(_) => Fault::TooLarge,
            Err(error) => Fault::Request(format!("the body is incomplete: {error}")),
        })?;
        let revocation =
            policy.revocation(&operator, &body.to_bytes(), self.clock.unix_seconds())?;
        let Revocation { by, value, .. } = revocation.clone();
        self.revocations.revoke(revocation).await.map_err(|error| {
            tracing::warn!(by = by.as_str(), value = &*value, cause = %error, "not revoked");
            Fault::Store
        })?;
        tracing::info!(by = by.as_str(), value = &*value, "revoked");
        Ok(())
    }
}

/// The proof that a request is from an operator. Only [`Policy::operator`] creates one.
struct Operator(());

impl Policy {
    /// Authenticates an operator by the token of `[admin]`.
    fn operator(&self, headers: &HeaderMap) -> Result<Operator, Fault> {
        let Ok(Some(sent)) = bearer_token(headers) else {
            return Err(Fault::Credentials { wrong: false });
        };
        // Compare digests, so that the time reveals nothing about how much of the token, or of its
        // length, is right.
        match &self.token {
            Some(token) if verify_slices_are_equal(token, &sha256(sent)).is_ok() => {
                Ok(Operator(()))
            }
            _ => Err(Fault::Credentials { wrong: true }),
        }
    }

    /// Parses a request body. Unknown members are rejected: with a misspelled `issuer`, the request
    /// would apply to every issuer.
    fn revocation(&self, _: &Operator, body: &[u8], at: u64) -> Result<Revocation, Fault> {
        // serde would read a list as the members in their order.
        if body.trim_ascii_start().first().is_some_and(|&byte| byte != b'{') {
            return Err(Fault::Request("invalid body: it is not a JSON object".to_owned()));
        }
        let wanted: Wanted = serde_json::from_slice(body)
            .map_err(|error| Fault::Request(format!("invalid body: {error}")))?;
        let (by, value) = match (wanted.jti, wanted.sid, wanted.subject) {
            (Some(jti), None, None) => (RevokedBy::Jti, jti),
            (None, Some(sid), None) => (RevokedBy::Sid, sid),
            (None, None, Some(subject)) => (RevokedBy::Subject, subject),
            (None, None, None) => {
                return Err(Fault::Request(
                    "one of `jti`, `sid` and `subject` is required".to_owned(),
                ));
            }
            _ => {
                return Err(Fault::Request(
                    "only one of `jti`, `sid` and `subject` is allowed".to_owned(),
                ));
            }
        };
        if value.is_empty() {
            return Err(Fault::Request(format!("`{by}` is empty")));
        }
        let scope = match wanted.issuer {
            None => Scope::Every,
            Some(name) => {
                self.scopes.get(name.as_str()).cloned().ok_or_else(|| self.unknown(&name))?
            }
        };
        Ok(Revocation { scope, by, value: value.into(), at })
    }

    fn unknown(&self, name: &str) -> Fault {
        let known = self.scopes.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
        Fault::Request(match known.as_str() {
            "" => format!("there is no [issuer.{name}]: the file has no such section"),
            known => format!("there is no [issuer.{name}]; known issuers: {known}"),
        })
    }
}

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    jti: Option<String>,
    sid: Option<String>,
    subject: Option<String>,
    issuer: Option<String>,
}

/// Why nothing was revoked. The text is for operators: only a client with the token sees it.
#[derive(Debug)]
pub(super) enum Fault {
    Method,
    Credentials { wrong: bool },
    Request(String),
    TooLarge,
    Store,
}

impl Fault {
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let (reason, detail) = match &self {
            Self::Method => (Reason::MethodNotAllowed, "only POST"),
            Self::Credentials { wrong: false } => (
                Reason::CredentialsMissing,
                "send the token of [admin] as `Authorization: Bearer …`",
            ),
            Self::Credentials { wrong: true } => {
                (Reason::CredentialsMissing, "this is not the token of [admin]")
            }
            Self::Request(detail) => (Reason::RequestInvalid, detail.as_str()),
            Self::TooLarge => (Reason::BodyTooLarge, "the body is larger than 64 KiB"),
            Self::Store => (
                Reason::StoreUnavailable,
                "the store cannot be written, so nothing was revoked; see the log",
            ),
        };
        let mut response = problem(reason, detail);
        let (name, value) = match self {
            Self::Method => (header::ALLOW, "POST"),
            Self::Credentials { wrong: false } => {
                (header::WWW_AUTHENTICATE, "Bearer realm=\"portcullis\"")
            }
            Self::Credentials { wrong: true } => {
                (header::WWW_AUTHENTICATE, "Bearer realm=\"portcullis\", error=\"invalid_token\"")
            }
            Self::Store => (header::RETRY_AFTER, "1"),
            // The rest of the body would be read as the next request.
            Self::TooLarge | Self::Request(_) => (header::CONNECTION, "close"),
        };
        response.headers_mut().insert(name, HeaderValue::from_static(value));
        response
    }
}

fn sha256(token: &[u8]) -> [u8; 32] {
    digest(&SHA256, token).as_ref().try_into().unwrap_or_default()
}

/// The maximum size of a body, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The maximum time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(token: Option<&str>) -> Policy {
        let scopes = [("corp", "https://corp.example"), ("app", "")];
        Policy {
            token: token.map(|token| sha256(token.as_bytes())),
            scopes: scopes
                .into_iter()
                .map(|(name, iss)| (name.into(), Scope::Issuer(iss.into())))
                .collect(),
        }
    }

    #[test]
    fn only_the_admin_token_is_accepted() {
        let policy = policy(Some("the-token-of-the-operators"));
        let check = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(line).unwrap());
            }
            policy.operator(&headers).is_ok()
        };
        for line in ["Bearer the-token-of-the-operators", "bearer  the-token-of-the-operators "] {
            assert!(check(&[line]), "{line}");
        }
        for lines in [
            &[][..],
            &["Bearer"],
            &["Bearer "],
            &["Bearer the-token-of-the-operator"],
            &["Bearer the-token-of-the-operatorss"],
            &["Bearer The-token-of-the-operators"],
            &["Basic the-token-of-the-operators"],
            &["the-token-of-the-operators"],
            &["Bearer the-token-of-the-operators", "Bearer the-token-of-the-operators"],
        ] {
            assert!(!check(lines), "{lines:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer "));
        assert!(
            super::Policy::default().operator(&headers).is_err(),
            "without a token, an empty one is refused"
        );
    }

    #[test]
    fn a_body_names_exactly_one_revocation() {
        let policy = policy(None);
        for (body, scope, by, value) in [
            (r#"{"jti":"t"}"#, Scope::Every, RevokedBy::Jti, "t"),
            (
                r#"{"sid":"s","issuer":"corp"}"#,
                Scope::Issuer("https://corp.example".into()),
                RevokedBy::Sid,
                "s",
            ),
            (
                r#" {"subject":"u\u002d17","jti":null,"issuer":"app"} "#,
                Scope::Issuer("".into()),
                RevokedBy::Subject,
                "u-17",
            ),
        ] {
            let revocation = policy.revocation(&Operator(()), body.as_bytes(), 7).unwrap();
            assert_eq!(revocation, Revocation { scope, by, value: value.into(), at: 7 });
        }
        for (body, expected) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("[]", "not a JSON object"),
            (r#"["t",null,null,null]"#, "not a JSON object"),
            ("17", "not a JSON object"),
            ("{}", "one of `jti`, `sid` and `subject`"),
            (r#"{"issuer":"corp"}"#, "one of `jti`, `sid` and `subject`"),
            (r#"{"jti":"a","sid":"b"}"#, "only one of"),
            (r#"{"jti":"a","jti":"b"}"#, "duplicate field `jti`"),
            (r#"{"jti":""}"#, "`jti` is empty"),
            (r#"{"subject":17}"#, "expected a string"),
            (r#"{"subject":"u","isuer":"corp"}"#, "unknown field `isuer`"),
            (
                r#"{"subject":"u","issuer":"corpp"}"#,
                "there is no [issuer.corpp]; known issuers: app, corp",
            ),
            (r#"{"subject":"u","issuer":"https://corp.example"}"#, "there is no [issuer.https"),
            (r#"{"subject":"u"} x"#, "trailing"),
        ] {
            match policy.revocation(&Operator(()), body.as_bytes(), 7) {
                Err(Fault::Request(detail)) => {
                    assert!(detail.contains(expected), "{body}: {detail}");
                }
                other => panic!("{body}: {other:?}"),
            }
        }
    }
}
