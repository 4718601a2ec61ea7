//! The one vocabulary of decisions: response bodies, the access log, metric labels, `explain` and
//! the reference all use these words.

use http::StatusCode;

/// Why a request was allowed or refused. No variant has data: a client learns this word and nothing
/// else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The route is public.
    #[default]
    Public,
    /// The route's access is optional and the request had no token.
    Anonymous,
    /// The token is valid, and the route requires nothing else.
    Authenticated,
    /// The token is valid and has a role, scope or claim that the route requires.
    Authorized,
    /// The target or the host can be read in more than one way.
    TargetAmbiguous,
    /// The framing of the message is invalid, or its body is incomplete.
    FramingInvalid,
    /// `Authorization: Bearer` without a well-formed token.
    CredentialsMalformed,
    /// More than one credential.
    CredentialsAmbiguous,
    /// Another error in the request.
    RequestInvalid,
    /// A link from a mail is unknown, already used, or too old.
    LinkInvalid,
    /// No credentials in a place that this route reads.
    CredentialsMissing,
    /// The token is not a JWS in compact form with a JSON object as claims.
    TokenMalformed,
    /// The algorithm is unknown, `none`, or not that of the key.
    TokenAlgorithm,
    /// No key of the issuer has the token's `kid`.
    TokenKeyUnknown,
    /// The signature is wrong.
    TokenSignature,
    /// `exp` has passed.
    TokenExpired,
    /// `nbf` or `iat` is in the future.
    TokenNotYetValid,
    /// `iss` is missing or not a known issuer.
    TokenIssuer,
    /// `aud` is missing or does not match.
    TokenAudience,
    /// A claim is missing or of the wrong type.
    TokenClaims,
    /// The lifetime of the token is longer than its issuer section allows.
    TokenLifetime,
    /// The token, its session or its subject has been revoked.
    TokenRevoked,
    /// No account matches this address and password.
    LoginFailed,
    /// The refresh token is invalid, or its session has ended.
    InvalidGrant,
    /// The password is correct, but a code is also required.
    CodeRequired,
    /// A login at a provider took too long, or began in another browser.
    LoginExpired,
    /// The person does not have what `require` of the provider's section requires.
    LoginNotAllowed,
    /// The provider sent a link in place of the person's groups.
    GroupsOverage,
    /// The route, or the built-in issuer, requires another way of logging in.
    LoginMethod,
    /// The route requires a stronger or a more recent login.
    StepUpRequired,
    /// A role is missing.
    RoleMissing,
    /// A scope is missing.
    ScopeMissing,
    /// A claim has none of the required values.
    ClaimMismatch,
    /// The route does not accept callers of this issuer.
    IssuerNotAllowed,
    /// A request identified by its cookie came from another origin.
    OriginForeign,
    /// A proxy did not ask the `[verify]` listener as its written configuration does.
    VerifyRequestInvalid,
    /// A peer outside `[verify] trusted_proxies` asked the `[verify]` listener.
    VerifyPeerUntrusted,
    /// `Destination` or `If` names a resource that no route to the same upstream may write or read.
    DestinationRefused,
    /// Self-registration is closed.
    RegistrationClosed,
    /// The e-mail address has not been verified.
    EmailUnverified,
    /// The e-mail address already has an account.
    AccountExists,
    /// The password was rejected.
    PasswordRejected,
    /// No route matches this host and path.
    RouteNotFound,
    /// The path has routes, but none for this method.
    MethodNotAllowed,
    /// The body is larger than `max_body`.
    BodyTooLarge,
    /// The head is larger than `max_header_bytes`.
    HeadersTooLarge,
    /// A limit is exceeded.
    RateLimited,
    /// No connection to the upstream.
    UpstreamUnreachable,
    /// The upstream closed the connection early or did not speak HTTP.
    UpstreamFailed,
    /// The upstream did not respond in time.
    UpstreamTimeout,
    /// The issuer's keys are missing because it cannot be reached.
    KeysUnavailable,
    /// The store cannot be reached or written to.
    StoreUnavailable,
    /// More connections than `max_connections`, or more passwords than can be hashed soon.
    Overloaded,
    /// The gateway is about to stop.
    Draining,
}

impl Reason {
    /// All reasons, for the reference and its test.
    pub const ALL: [Self; 54] = [
        Self::Public,
        Self::Anonymous,
        Self::Authenticated,
        Self::Authorized,
        Self::TargetAmbiguous,
        Self::FramingInvalid,
        Self::CredentialsMalformed,
        Self::CredentialsAmbiguous,
        Self::RequestInvalid,
        Self::LinkInvalid,
        Self::CredentialsMissing,
        Self::TokenMalformed,
        Self::TokenAlgorithm,
        Self::TokenKeyUnknown,
        Self::TokenSignature,
        Self::TokenExpired,
        Self::TokenNotYetValid,
        Self::TokenIssuer,
        Self::TokenAudience,
        Self::TokenClaims,
        Self::TokenLifetime,
        Self::TokenRevoked,
        Self::LoginFailed,
        Self::InvalidGrant,
        Self::CodeRequired,
        Self::LoginExpired,
        Self::LoginNotAllowed,
        Self::GroupsOverage,
        Self::LoginMethod,
        Self::StepUpRequired,
        Self::RoleMissing,
        Self::ScopeMissing,
        Self::ClaimMismatch,
        Self::IssuerNotAllowed,
        Self::OriginForeign,
        Self::VerifyRequestInvalid,
        Self::VerifyPeerUntrusted,
        Self::DestinationRefused,
        Self::RegistrationClosed,
        Self::EmailUnverified,
        Self::AccountExists,
        Self::PasswordRejected,
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::BodyTooLarge,
        Self::HeadersTooLarge,
        Self::RateLimited,
        Self::UpstreamUnreachable,
        Self::UpstreamFailed,
        Self::UpstreamTimeout,
        Self::KeysUnavailable,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::Draining,
    ];

    /// The word for this reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Anonymous => "anonymous",
            Self::Authenticated => "authenticated",
            Self::Authorized => "authorized",
            Self::TargetAmbiguous => "target_ambiguous",
            Self::FramingInvalid => "framing_invalid",
            Self::CredentialsMalformed => "credentials_malformed",
            Self::CredentialsAmbiguous => "credentials_ambiguous",
            Self::RequestInvalid => "request_invalid",
            Self::LinkInvalid => "link_invalid",
            Self::CredentialsMissing => "credentials_missing",
            Self::TokenMalformed => "token_malformed",
            Self::TokenAlgorithm => "token_algorithm",
            Self::TokenKeyUnknown => "token_key_unknown",
            Self::TokenSignature => "token_signature",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenIssuer => "token_issuer",
            Self::TokenAudience => "token_audience",
            Self::TokenClaims => "token_claims",
            Self::TokenLifetime => "token_lifetime",
            Self::TokenRevoked => "token_revoked",
            Self::LoginFailed => "login_failed",
            Self::InvalidGrant => "invalid_grant",
            Self::CodeRequired => "code_required",
            Self::LoginExpired => "login_expired",
            Self::LoginNotAllowed => "login_not_allowed",
            Self::GroupsOverage => "groups_overage",
            Self::LoginMethod => "login_method",
            Self::StepUpRequired => "step_up_required",
            Self::RoleMissing => "role_missing",
            Self::ScopeMissing => "scope_missing",
            Self::ClaimMismatch => "claim_mismatch",
            Self::IssuerNotAllowed => "issuer_not_allowed",
            Self::OriginForeign => "origin_foreign",
            Self::VerifyRequestInvalid => "verify_request_invalid",
            Self::VerifyPeerUntrusted => "verify_peer_untrusted",
            Self::DestinationRefused => "destination_refused",
            Self::RegistrationClosed => "registration_closed",
            Self::EmailUnverified => "email_unverified",
            Self::AccountExists => "account_exists",
            Self::PasswordRejected => "password_rejected",
            Self::RouteNotFound => "route_not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadersTooLarge => "headers_too_large",
            Self::RateLimited => "rate_limited",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamFailed => "upstream_failed",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::KeysUnavailable => "keys_unavailable",
            Self::StoreUnavailable => "store_unavailable",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
        }
    }

    /// The status of a refusal with this reason; 200 for the reasons of a pass.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Public | Self::Anonymous | Self::Authenticated | Self::Authorized => {
                StatusCode::OK
            }
            Self::TargetAmbiguous
            | Self::FramingInvalid
            | Self::CredentialsMalformed
            | Self::CredentialsAmbiguous
            | Self::RequestInvalid
            | Self::LinkInvalid
            | Self::LoginExpired => StatusCode::BAD_REQUEST,
            Self::CredentialsMissing
            | Self::TokenMalformed
            | Self::TokenAlgorithm
            | Self::TokenKeyUnknown
            | Self::TokenSignature
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenIssuer
            | Self::TokenAudience
            | Self::TokenClaims
            | Self::TokenLifetime
            | Self::TokenRevoked
            | Self::LoginFailed
            | Self::InvalidGrant
            | Self::CodeRequired
            | Self::StepUpRequired => StatusCode::UNAUTHORIZED,
            Self::LoginNotAllowed
            | Self::GroupsOverage
            | Self::LoginMethod
            | Self::RoleMissing
            | Self::ScopeMissing
            | Self::ClaimMismatch
            | Self::IssuerNotAllowed
            | Self::OriginForeign
            | Self::VerifyRequestInvalid
            | Self::VerifyPeerUntrusted
            | Self::DestinationRefused
            | Self::RegistrationClosed
            | Self::EmailUnverified => StatusCode::FORBIDDEN,
            Self::AccountExists => StatusCode::CONFLICT,
            Self::PasswordRejected => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RouteNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::UpstreamUnreachable | Self::UpstreamFailed => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::KeysUnavailable | Self::StoreUnavailable | Self::Overloaded | Self::Draining => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// Whether the request had a token, and the token is the cause of the refusal.
    pub const fn is_about_token(self) -> bool {
        matches!(
            self,
            Self::TokenMalformed
                | Self::TokenAlgorithm
                | Self::TokenKeyUnknown
                | Self::TokenSignature
                | Self::TokenExpired
                | Self::TokenNotYetValid
                | Self::TokenIssuer
                | Self::TokenAudience
                | Self::TokenClaims
                | Self::TokenLifetime
                | Self::TokenRevoked
        )
    }

    /// Whether the request is allowed.
    pub const fn is_pass(self) -> bool {
        matches!(self, Self::Public | Self::Anonymous | Self::Authenticated | Self::Authorized)
    }
}

/// The result of a request, in the access log and in `auth_decisions_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request was allowed and answered.
    Allowed,
    /// The request was refused because of the client.
    Refused,
    /// The request was forwarded although it would be refused, because the route does not enforce.
    WouldRefuse,
    /// The gateway or the upstream failed.
    Failed,
}

impl Outcome {
    /// The word for this outcome.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::WouldRefuse => "would_refuse",
            Self::Failed => "failed",
        }
    }

    /// The outcome of a refusal.
    pub const fn of_refusal(reason: Reason) -> Self {
        if reason.status().as_u16() >= 500 { Self::Failed } else { Self::Refused }
    }
}
