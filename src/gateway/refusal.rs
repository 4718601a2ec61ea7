//! Responses to requests that are refused or that fail.
//!
//! A client gets a status, a reason and a request id (RFC 9457), all written from [`Reason`]: the
//! text of a variant never leaves the gateway. The variants hold what an operator needs, which goes
//! to the log.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::authenticate::{Unauthenticated, Verifier};
use super::body::Body;
use super::dialect::VerifyFault;
use super::framing::FramingFault;
use super::guard::Denied;
use super::logout::LogoutFault;
use super::route::NoRoute;
use super::second_target::NoSecondTarget;
use super::step_up::Insufficient;
use super::target::{Ambiguity, TargetError};
use super::upstream::UpstreamFailure;
use crate::identity::actions::second_factor::Enrolment;
use crate::identity::compat::{MissingMember, express_error};
use crate::identity::error::RequestFault;
use crate::identity::pages::Sheet;
use crate::identity::strength::RejectedPassword;
use crate::identity::ticket::Ticket;
use crate::identity::{IdentityError, Refused};
use crate::reason::Reason;
use crate::token::InvalidToken;

/// Why the gateway sends its own response to a request.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The target was refused.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The target cannot be rewritten.
    #[error("the path prefix cannot be removed: {0}")]
    Rewrite(#[from] Ambiguity),
    /// No route takes the request.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// A limit is exceeded.
    #[error("this client has exceeded limit `{limit}`")]
    Limited {
        /// The name of the limit.
        limit: String,
        /// Whole seconds until a retry makes sense.
        retry_after: u64,
    },
    /// A proxy did not ask as it should, or may not ask.
    #[error("{0}")]
    Verify(VerifyFault),
    /// The caller could not be authenticated.
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// The same, on a route that takes passwords: the response asks for one as well.
    #[error("{0}")]
    AskForPassword(Box<Refusal>),
    /// The same, for a request whose body also lacks a member that would have been enough.
    #[error("{refusal}; {missing}")]
    Lacking {
        /// The member.
        missing: MissingMember,
        /// Why the other credentials do not count.
        refusal: Box<Refusal>,
    },
    /// The same, with the names of members that clients of an Express application expect.
    #[error("{0}")]
    ForExpress(Box<Refusal>),
    /// The same, to a person who is logged in, although the request authenticates nobody.
    #[error("{refusal}")]
    ToPerson {
        /// What they recognize their account by.
        who: String,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// The caller is not authorized.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The back-channel logout failed.
    #[error(transparent)]
    Logout(#[from] LogoutFault),
    /// The method override is not a valid method, or there are two that differ.
    #[error("the method override does not name exactly one valid method")]
    MethodOverride,
    /// A second target is not one, or has no route.
    #[error(transparent)]
    NoSecondTarget(#[from] NoSecondTarget),
    /// The caller may not have a second target.
    #[error("`{field}`: {refusal}")]
    SecondTarget {
        /// The field that names it.
        field: HeaderName,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// The request has too many fields.
    #[error("the request has more fields than max_headers")]
    HeadersTooLarge,
    /// The framing of the body is invalid.
    #[error("{0}")]
    Framing(#[from] FramingFault),
    /// The body is too large.
    #[error("the body is larger than max_body")]
    BodyTooLarge,
    /// Access was taken away before the response.
    #[error("the request was ended: {why}")]
    Ended {
        /// The reason that the client gets.
        reason: Reason,
        /// Why, in a word.
        why: &'static str,
    },
    /// The upstream failed.
    #[error(transparent)]
    Upstream(#[from] UpstreamFailure),
    /// The built-in issuer refused the request.
    #[error("{}", .0.error)]
    Identity(Box<Refused>),
    /// The browser is redirected to the login instead.
    #[error("{refusal}; the browser is redirected to {}", without_query(location))]
    Redirect {
        /// 303, or 302 where another proxy passes the redirect on.
        status: StatusCode,
        /// A path of this site, or a URL of the login. Its query contains the requested page
        /// together with the query of that page, which is never logged.
        location: String,
        /// `Set-Cookie`: removes cookies that are no longer valid.
        cookies: Vec<HeaderValue>,
        /// The refusal that other clients get.
        refusal: Box<Refusal>,
    },
    /// A person gets a page instead.
    #[error("{refusal}")]
    Page {
        /// The page, in HTML.
        page: Sheet,
        /// The refusal that other clients get.
        refusal: Box<Refusal>,
    },
}

impl Refusal {
    /// The reason of the refusal.
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
            Self::NoRoute(NoRoute::NotFound | NoRoute::OtherListener(..)) => Reason::RouteNotFound,
            Self::Verify(VerifyFault::Peer(_)) => Reason::VerifyPeerUntrusted,
            Self::Verify(_) => Reason::VerifyRequestInvalid,
            Self::Limited { .. } => Reason::RateLimited,
            Self::Unauthenticated(unauthenticated) => match unauthenticated {
                Unauthenticated::Missing => Reason::CredentialsMissing,
                Unauthenticated::Malformed => Reason::CredentialsMalformed,
                Unauthenticated::Ambiguous => Reason::CredentialsAmbiguous,
                Unauthenticated::ForeignOrigin => Reason::OriginForeign,
                Unauthenticated::NotLookedUp | Unauthenticated::RevocationsUnknown { .. } => {
                    Reason::StoreUnavailable
                }
                Unauthenticated::Limited { .. } => Reason::RateLimited,
                Unauthenticated::KeysUnavailable { .. } => Reason::KeysUnavailable,
                Unauthenticated::MustLogInAgain(_) => Reason::StepUpRequired,
                Unauthenticated::Unavailable(error) => error.reason(),
                Unauthenticated::Invalid(invalid) => invalid_token(invalid),
            },
            Self::Denied(denied) => denied.reason(),
            Self::Logout(LogoutFault::Store(_)) => Reason::StoreUnavailable,
            Self::Logout(LogoutFault::KeysUnavailable { .. }) => Reason::KeysUnavailable,
            Self::MethodOverride | Self::Logout(_) => Reason::RequestInvalid,
            Self::Identity(refused) => refused.error.reason(),
            Self::AskForPassword(refusal)
            | Self::ForExpress(refusal)
            | Self::ToPerson { refusal, .. }
            | Self::Lacking { refusal, .. }
            | Self::Redirect { refusal, .. }
            | Self::Page { refusal, .. }
            | Self::SecondTarget { refusal, .. } => refusal.reason(),
            Self::NoSecondTarget(refused) => refused.reason(),
            Self::Ended { reason, .. } => *reason,
            Self::HeadersTooLarge => Reason::HeadersTooLarge,
            Self::Framing(_) => Reason::FramingInvalid,
            Self::BodyTooLarge => Reason::BodyTooLarge,
            Self::Upstream(failure) => match failure {
                UpstreamFailure::Timeout | UpstreamFailure::Total => Reason::UpstreamTimeout,
                UpstreamFailure::Unreachable(error) if error.is_timeout() => {
                    Reason::UpstreamTimeout
                }
                UpstreamFailure::Busy => Reason::Overloaded,
                UpstreamFailure::Unreachable(_) => Reason::UpstreamUnreachable,
                UpstreamFailure::Failed(_)
                | UpstreamFailure::NotHttp2
                | UpstreamFailure::NoGreeting(_)
                | UpstreamFailure::Protocol
                | UpstreamFailure::Framing(_) => Reason::UpstreamFailed,
                UpstreamFailure::Upload(failure) => failure.reason(),
            },
        }
    }

    /// The same refusal with the name of the person who is logged in, if there is one and a browser
    /// asked for a page.
    pub(super) fn for_person(self, headers: &HeaderMap, verifier: &Verifier<'_>, now: u64) -> Self {
        match verifier.person(headers, now) {
            Some(caller) => {
                let who = caller.token().known_as().to_owned();
                Self::ToPerson { who, refusal: Box::new(self) }
            }
            None => self,
        }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Redirect { status, .. } => *status,
            _ => self.reason().status(),
        }
    }

    /// The detail that the client gets in addition to the reason: what is wrong with its body or
    /// its new password. The text is fixed and contains nothing from the request.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Identity(refused) => refused.error.detail(),
            Self::Lacking { missing, .. } => Some(missing.to_string()),
            Self::ForExpress(refusal) => refusal.detail(),
            _ => None,
        }
    }

    /// What is wrong with a request to an endpoint.
    pub(super) fn request_fault(&self) -> Option<RequestFault> {
        match self {
            Self::Identity(refused) => match refused.error {
                IdentityError::Request(fault) => Some(fault),
                _ => None,
            },
            _ => None,
        }
    }

    /// Why a new password was rejected.
    pub(super) fn rejected_password(&self) -> Option<RejectedPassword> {
        match self {
            Self::Identity(refused) => match refused.error {
                IdentityError::Password(rejected) => Some(rejected),
                _ => None,
            },
            _ => None,
        }
    }

    /// The second factor that is still waiting for its first code.
    pub(super) fn enrolment(&self) -> Option<&Enrolment> {
        match self {
            Self::Identity(refused) => refused.enrolment.as_deref(),
            _ => None,
        }
    }

    /// What the page that asks for the code of a login needs.
    pub(super) fn ticket(&self) -> Option<&Ticket> {
        match self {
            Self::Identity(refused) => refused.ticket.as_deref(),
            _ => None,
        }
    }

    /// Where the person was going, if the request does not say.
    pub(super) fn back(&self) -> Option<&str> {
        match self {
            Self::Identity(refused) => refused.back.as_deref(),
            _ => None,
        }
    }

    /// Whole seconds until a retry makes sense.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Limited { retry_after, .. }
            | Self::Unauthenticated(Unauthenticated::Limited { retry_after, .. }) => {
                Some(*retry_after)
            }
            Self::Identity(refused) => refused.error.retry_after(),
            Self::SecondTarget { refusal, .. }
            | Self::ForExpress(refusal)
            | Self::Lacking { refusal, .. } => refusal.retry_after(),
            _ => None,
        }
    }

    /// Makes the response.
    pub fn into_response(self, request_id: &str) -> Response<Body> {
        let reason = self.reason();
        let mut response = problem(reason, request_id);
        if let Some(detail) = self.detail() {
            *response.body_mut() = Body::Bytes(explained_body(reason, request_id, &detail));
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
            Self::Denied(Denied::StepUp(lacks))
            | Self::Unauthenticated(Unauthenticated::MustLogInAgain(lacks)) => {
                challenge_again(headers, &lacks);
            }
            Self::Logout(_) if reason == Reason::RequestInvalid => {
                // OpenID Connect Back-Channel Logout 1.0 §2.8: the issuer expects this in addition
                // to the members of every refusal.
                *response.body_mut() =
                    Body::Bytes(with_error("invalid_request", &problem_body(reason, request_id)));
            }
            Self::Limited { retry_after, .. }
            | Self::Logout(LogoutFault::KeysUnavailable { retry_after, .. })
            | Self::Unauthenticated(
                Unauthenticated::Limited { retry_after, .. }
                | Unauthenticated::KeysUnavailable { retry_after, .. },
            ) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
            }
            Self::Identity(refused) => {
                if let Some(retry_after) = refused.error.retry_after() {
                    headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
                }
                for cookie in refused.cookies {
                    headers.append(header::SET_COOKIE, cookie);
                }
            }
            Self::SecondTarget { refusal, .. } | Self::ToPerson { refusal, .. } => {
                return refusal.into_response(request_id);
            }
            Self::Redirect { status, location, cookies, .. } => {
                return redirect_to(status, &location, cookies);
            }
            Self::Lacking { refusal, .. } => {
                let body = response.into_body();
                return refusal.into_response(request_id).map(|_| body);
            }
            Self::ForExpress(refusal) => return for_express(*refusal, request_id),
            Self::AskForPassword(refusal) => {
                let mut response = refusal.into_response(request_id);
                response.headers_mut().append(header::WWW_AUTHENTICATE, BASIC);
                return response;
            }
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

/// A response with the members that clients of an Express application expect.
fn for_express(refusal: Refusal, request_id: &str) -> Response<Body> {
    let (detail, retry_after) = (refusal.detail(), refusal.retry_after());
    let body = express_error(refusal.reason(), detail.as_deref(), retry_after);
    let mut response = refusal.into_response(request_id);
    *response.body_mut() = Body::Bytes(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Says which login is required (RFC 9470 §3).
fn challenge_again(headers: &mut HeaderMap, lacks: &Insufficient) {
    if let Ok(challenge) = HeaderValue::try_from(lacks.challenge()) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
}

/// The challenge for a password (RFC 7617 §2).
const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"portcullis\"");

impl From<VerifyFault> for Refusal {
    fn from(fault: VerifyFault) -> Self {
        match fault {
            VerifyFault::Target(target) => Self::Target(target),
            fault => Self::Verify(fault),
        }
    }
}

/// The page of a location, without its query.
fn without_query(location: &str) -> &str {
    location.split_once('?').map_or(location, |(page, _)| page)
}

/// Redirects a browser.
fn redirect_to(status: StatusCode, location: &str, cookies: Vec<HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    let location = HeaderValue::from_str(location).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// Puts an OAuth `error` in front of the other members of a body (RFC 6749 §5.2).
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
        InvalidToken::Signature | InvalidToken::Unknown => Reason::TokenSignature,
        InvalidToken::Expired { .. } => Reason::TokenExpired,
        InvalidToken::NotYetValid { .. } => Reason::TokenNotYetValid,
        InvalidToken::Issuer(_) => Reason::TokenIssuer,
        InvalidToken::Audience(_) => Reason::TokenAudience,
        InvalidToken::Claims(_) => Reason::TokenClaims,
        InvalidToken::Lifetime { .. } => Reason::TokenLifetime,
        InvalidToken::Revoked(_) => Reason::TokenRevoked,
    }
}

/// A response that contains a reason and nothing else.
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

/// The body of such a response.
pub fn problem_body(reason: Reason, request_id: &str) -> Bytes {
    let status = reason.status();
    // A request id contains only printable ASCII; these two characters would end the string.
    let request_id = request_id.replace('\\', "\\\\").replace('"', "\\\"");
    let title = status.canonical_reason().unwrap_or("Refused");
    let (status, reason) = (status.as_u16(), reason.as_str());
    Bytes::from(format!(
        "{{\"title\":\"{title}\",\"status\":{status},\"reason\":\"{reason}\",\"request_id\":\"{request_id}\"}}\n"
    ))
}

/// The body of a response with a detail (RFC 9457 §3.1.4).
pub fn explained_body(reason: Reason, request_id: &str, detail: &str) -> Bytes {
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

/// The challenge that tells the client what to do better (RFC 6750 §3). A request without a token
/// gets no error code (§3.1). Only one of the codes is for 403.
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
        (Reason::StepUpRequired, _) => {
            "Bearer realm=\"portcullis\", error=\"insufficient_user_authentication\""
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
    async fn every_refusal_contains_only_its_reason() {
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
