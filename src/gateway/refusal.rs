//! Every answer that is ours.
//!
//! A client gets a status, a reason and a request id (RFC 9457), written from [`Reason`] alone: no
//! variant's text ever leaves. What an operator needs stands in the variants, and goes to the log.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::authenticate::Unauthenticated;
use super::body::{Body, UploadFailure};
use super::framing::FramingFault;
use super::guard::Denied;
use super::logout::LogoutFault;
use super::route::NoRoute;
use super::target::{Ambiguity, TargetError};
use super::upstream::{ConnectError, UpstreamFailure};
use crate::identity::Refused;
use crate::identity::actions::second_factor::Enrolment;
use crate::identity::pages::Sheet;
use crate::reason::Reason;
use crate::token::InvalidToken;

/// Why a request is answered here.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A rewriting that cannot be made.
    #[error("the prefix cannot be cut off: {0}")]
    Rewrite(#[from] Ambiguity),
    /// The route.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// The limit.
    #[error("limit `{limit}` is used up for this client")]
    Limited {
        /// Its name.
        limit: String,
        /// Whole seconds until it is worth trying again.
        retry_after: u64,
    },
    /// Who is calling.
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// Whether they may.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Back-channel logout.
    #[error(transparent)]
    Logout(#[from] LogoutFault),
    /// A method override that is no method, or two that differ.
    #[error("the method override is not one method")]
    MethodOverride,
    /// The number of fields.
    #[error("the request has more fields than max_headers")]
    HeadersTooLarge,
    /// How the body is framed.
    #[error("{0}")]
    Framing(#[from] FramingFault),
    /// The announced length.
    #[error("the body is larger than max_body")]
    BodyTooLarge,
    /// The upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamFailure),
    /// The built-in issuer.
    #[error("{}", .0.error)]
    Identity(Box<Refused>),
    /// A browser goes to the login, or through a renewal, instead.
    #[error("{refusal}; the browser is redirected to {}", page_of(location))]
    Redirect {
        /// A path of this site. Its query names the page that was asked for, with that one's query,
        /// which is never logged.
        location: String,
        /// What anybody else is told.
        refusal: Box<Refusal>,
    },
    /// A person is shown a page instead.
    #[error("{refusal}")]
    Page {
        /// In HTML.
        page: Sheet,
        /// What anybody else is told.
        refusal: Box<Refusal>,
    },
}

impl Refusal {
    /// Its reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Target(TargetError::Ambiguous(_))
            | Self::Rewrite(_)
            | Self::NoRoute(NoRoute::Ambiguous(_) | NoRoute::NotPermitted(..)) => {
                Reason::TargetAmbiguous
            }
            Self::Target(TargetError::Method)
            | Self::NoRoute(NoRoute::Method { .. })
            | Self::Logout(LogoutFault::Method) => Reason::MethodNotAllowed,
            Self::NoRoute(NoRoute::NotFound) => Reason::RouteNotFound,
            Self::Limited { .. } => Reason::RateLimited,
            Self::Unauthenticated(unauthenticated) => match unauthenticated {
                Unauthenticated::Missing => Reason::CredentialsMissing,
                Unauthenticated::Malformed => Reason::CredentialsMalformed,
                Unauthenticated::Ambiguous => Reason::CredentialsAmbiguous,
                Unauthenticated::ForeignOrigin => Reason::OriginForeign,
                Unauthenticated::KeysUnavailable { .. } => Reason::KeysUnavailable,
                Unauthenticated::Invalid(invalid) => invalid_token(invalid),
            },
            Self::Denied(denied) => match denied {
                Denied::Nobody => Reason::CredentialsMissing,
                Denied::Issuer(_) => Reason::IssuerNotAllowed,
                Denied::Role(_) => Reason::RoleMissing,
                Denied::Scope(_) => Reason::ScopeMissing,
                Denied::Claim(_) => Reason::ClaimMismatch,
            },
            Self::Logout(LogoutFault::Store(_)) => Reason::StoreUnavailable,
            Self::Logout(LogoutFault::KeysUnavailable { .. }) => Reason::KeysUnavailable,
            Self::MethodOverride | Self::Logout(_) => Reason::RequestInvalid,
            Self::Identity(refused) => refused.error.reason(),
            Self::Redirect { refusal, .. } | Self::Page { refusal, .. } => refusal.reason(),
            Self::HeadersTooLarge => Reason::HeadersTooLarge,
            Self::Framing(_) => Reason::FramingInvalid,
            Self::BodyTooLarge
            | Self::Upstream(UpstreamFailure::Upload(UploadFailure::TooLarge)) => {
                Reason::BodyTooLarge
            }
            Self::Upstream(failure) => match failure {
                UpstreamFailure::Unreachable(ConnectError::Timeout) | UpstreamFailure::Timeout => {
                    Reason::UpstreamTimeout
                }
                UpstreamFailure::Unreachable(_) => Reason::UpstreamUnreachable,
                UpstreamFailure::Failed(_)
                | UpstreamFailure::Protocol
                | UpstreamFailure::Framing(_) => Reason::UpstreamFailed,
                UpstreamFailure::Upload(_) => Reason::FramingInvalid,
            },
        }
    }

    /// What it is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Redirect { .. } => StatusCode::SEE_OTHER,
            _ => self.reason().status(),
        }
    }

    /// What the client is told beside the reason: what is wrong with its body or its new password.
    /// Words of ours, none of the request's.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Identity(refused) => refused.error.detail(),
            _ => None,
        }
    }

    /// The second factor that still waits for its first code.
    pub(super) fn enrolment(&self) -> Option<&Enrolment> {
        match self {
            Self::Identity(refused) => refused.enrolment.as_deref(),
            _ => None,
        }
    }

    /// Whole seconds until it is worth trying again.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Limited { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The answer.
    pub fn into_response(self, request_id: &str) -> Response<Body> {
        let reason = self.reason();
        let mut response = problem(reason, request_id);
        if let Some(detail) = self.detail() {
            *response.body_mut() = Body::Bytes(detailed_body(reason, request_id, &detail));
        }
        let headers = response.headers_mut();
        match self {
            Self::NoRoute(NoRoute::Method { allow }) => {
                headers.insert(header::ALLOW, allow);
            }
            Self::Target(TargetError::Method) => {
                headers.insert(
                    header::ALLOW,
                    HeaderValue::from_static("DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
                );
            }
            Self::Logout(LogoutFault::Method) => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            Self::Logout(_) if reason == Reason::RequestInvalid => {
                // OpenID Connect Back-Channel Logout 1.0 §2.8: what the issuer looks for beside
                // what all refusals hold.
                *response.body_mut() =
                    Body::Bytes(with_error("invalid_request", &problem_body(reason, request_id)));
            }
            Self::Limited { retry_after, .. }
            | Self::Logout(LogoutFault::KeysUnavailable { retry_after, .. })
            | Self::Unauthenticated(Unauthenticated::KeysUnavailable { retry_after, .. }) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
            }
            Self::Identity(refused) => {
                for cookie in refused.cookies {
                    headers.append(header::SET_COOKIE, cookie);
                }
            }
            Self::Redirect { location, .. } => return led(&location),
            Self::Page { page, refusal } => {
                let mut response = refusal.into_response(request_id);
                *response.body_mut() = Body::Bytes(page.answered_with(response.headers_mut()));
                return response;
            }
            _ => {}
        }
        response
    }
}

/// The page of a location, without its query.
fn page_of(location: &str) -> &str {
    location.split_once('?').map_or(location, |(page, _)| page)
}

/// Leads a browser to a path of this site.
fn led(location: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SEE_OTHER;
    let location = HeaderValue::from_str(location).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A body with an OAuth `error` in front (RFC 6749 §5.2).
fn with_error(error: &str, body: &Bytes) -> Bytes {
    let rest = body.strip_prefix(b"{").unwrap_or(body);
    [format!("{{\"error\":\"{error}\",").as_bytes(), rest].concat().into()
}

fn invalid_token(invalid: &InvalidToken) -> Reason {
    match invalid {
        InvalidToken::Malformed(_) => Reason::TokenMalformed,
        InvalidToken::Algorithm(_) => Reason::TokenAlgorithm,
        InvalidToken::NoKeys => Reason::KeysUnavailable,
        InvalidToken::KeyUnknown { .. } => Reason::TokenKeyUnknown,
        InvalidToken::Signature => Reason::TokenSignature,
        InvalidToken::Expired { .. } => Reason::TokenExpired,
        InvalidToken::NotYetValid { .. } => Reason::TokenNotYetValid,
        InvalidToken::Issuer(_) => Reason::TokenIssuer,
        InvalidToken::Audience(_) => Reason::TokenAudience,
        InvalidToken::Claims(_) => Reason::TokenClaims,
        InvalidToken::Lifetime { .. } => Reason::TokenLifetime,
        InvalidToken::Revoked(_) => Reason::TokenRevoked,
    }
}

/// An answer that says a reason and nothing else.
pub fn problem(reason: Reason, request_id: &str) -> Response<Body> {
    let status = reason.status();
    let mut response = Response::new(Body::Bytes(problem_body(reason, request_id)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(challenge) = challenge(reason) {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if status.as_u16() == 503 {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The body of such an answer.
pub fn problem_body(reason: Reason, request_id: &str) -> Bytes {
    let status = reason.status();
    // A request id holds printable ASCII only; these two would end the string.
    let request_id = request_id.replace('\\', "\\\\").replace('"', "\\\"");
    let title = status.canonical_reason().unwrap_or("Refused");
    let (status, reason) = (status.as_u16(), reason.as_str());
    Bytes::from(format!(
        "{{\"title\":\"{title}\",\"status\":{status},\"reason\":\"{reason}\",\"request_id\":\"{request_id}\"}}\n"
    ))
}

/// The body of an answer that tells more (RFC 9457 §3.1.4).
fn detailed_body(reason: Reason, request_id: &str, detail: &str) -> Bytes {
    let status = reason.status();
    let problem = serde_json::json!({
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "reason": reason.as_str(),
        "detail": detail,
        "request_id": request_id,
    });
    Bytes::from(format!("{problem}\n"))
}

/// RFC 6750 §3: what the client could do better. Where no token was shown there is no error of it
/// to tell (§3.1); of its codes, 403 has one.
fn challenge(reason: Reason) -> Option<&'static str> {
    Some(match (reason, reason.status().as_u16()) {
        (
            Reason::CredentialsMissing
            | Reason::LoginFailed
            | Reason::InvalidGrant
            | Reason::CodeRequired,
            _,
        ) => "Bearer realm=\"portcullis\"",
        (Reason::CredentialsMalformed | Reason::CredentialsAmbiguous, _) => {
            "Bearer realm=\"portcullis\", error=\"invalid_request\""
        }
        (_, 401) => "Bearer realm=\"portcullis\", error=\"invalid_token\"",
        (_, 403) => "Bearer realm=\"portcullis\", error=\"insufficient_scope\"",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn every_refusal_says_its_reason_and_nothing_else() {
        for reason in Reason::ALL.into_iter().filter(|reason| !reason.is_pass()) {
            let response = problem(reason, "id\"1");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.headers()["cache-control"], "no-store");
            let status = response.status().as_u16();
            assert_eq!(
                matches!(status, 401 | 403),
                response.headers().contains_key("www-authenticate") && status != 400,
                "{reason:?}"
            );
            if status == 403 {
                assert_eq!(
                    response.headers()["www-authenticate"],
                    "Bearer realm=\"portcullis\", error=\"insufficient_scope\"",
                    "{reason:?}"
                );
            }
            assert_eq!(status == 503, response.headers().contains_key("retry-after"), "{reason:?}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["status"], status);
            assert_eq!(body["reason"], reason.as_str());
            assert_eq!(body["request_id"], "id\"1");
            assert!(body["title"].is_string());
        }
    }
}
