//! Why the built-in issuer refuses a request.

use super::account::AccountError;
use super::compat::MissingMember;
use super::hasher::{HashError, NewPasswordError};
use super::issue::KeysError;
use super::outbox::EnqueueError;
use super::provider::{NotAllowed, ProviderError};
use super::second_factor::NotEnrolled;
use super::session::RefreshError;
use super::strength::RejectedPassword;
use crate::reason::Reason;
use crate::store::StoreError;

/// Why a request to an endpoint fails. The client learns only the reason; the rest is for the log.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The body or the query is not valid for this endpoint.
    #[error("{0}")]
    Request(RequestFault),
    /// The body is longer than any endpoint accepts.
    #[error("the body is too long for any endpoint")]
    TooLarge,
    /// The request came from another origin.
    #[error("a request that changes something came from another origin")]
    ForeignOrigin,
    /// No account has this address and password, or it may not log in. The client does not learn
    /// which.
    #[error("login failed: {0}")]
    Login(NoLogin),
    /// A login at a provider failed.
    #[error("{0}")]
    Provider(Box<ProviderError>),
    /// A login at a provider took too long, or began in another browser.
    #[error("the login began too long ago, or in another browser")]
    LoginExpired,
    /// The person may not log in.
    #[error("{0}")]
    NotAllowed(NotAllowed),
    /// The person has not proved who they are as the route requires.
    #[error(
        "the provider did not log the person in as recently, or in the way, that was asked for"
    )]
    StepUp,
    /// There is no such provider.
    #[error("there is no login with this name")]
    NoProvider,
    /// People do not log in with a password here.
    #[error("`password_login` is false")]
    NoPasswordLogin,
    /// The password is right, but a code is also required.
    #[error("a code is required in addition to the password")]
    CodeRequired,
    /// The owner has not yet proved that the address is theirs.
    #[error("the e-mail address is not verified")]
    EmailUnverified,
    /// Self-registration is closed.
    #[error("registration is closed")]
    RegistrationClosed,
    /// The address already has an account.
    #[error("the address already has an account")]
    AccountExists,
    /// The password is not acceptable.
    #[error("the password was rejected: {0}")]
    Password(#[from] RejectedPassword),
    /// The refresh token is not valid.
    #[error(transparent)]
    Grant(RefreshError),
    /// A refresh without a refresh token.
    #[error("no refresh token was sent: {0}")]
    NoRefreshToken(MissingMember),
    /// A logout that names no session.
    #[error("the request names no session: {0}")]
    NothingToEnd(MissingMember),
    /// A mailed link is unknown, used or expired.
    #[error("the link is unknown, used or expired")]
    Link,
    /// A link is used or expired, but its address is confirmed.
    #[error("the address is already confirmed")]
    AlreadyConfirmed,
    /// The configuration does not enable it.
    #[error("second factors are disabled: `totp` is false")]
    NotOffered,
    /// The mail queue is full.
    #[error(transparent)]
    MailFull(EnqueueError),
    /// The pages have no logo.
    #[error("there is no logo")]
    NoLogo,
    /// No such session exists.
    #[error("the account has no such session")]
    NoSession,
    /// The account has no such personal access token.
    #[error("the account has no such personal access token")]
    NoToken,
    /// The caller used a personal access token, which is not enough here.
    #[error("a personal access token does not manage its account: log in")]
    PersonalToken,
    /// No valid credentials of an account.
    #[error("no credentials of an account were sent")]
    NoCaller,
    /// The caller's token was revoked after it was accepted.
    #[error("the token was revoked while the request was handled")]
    TokenRevoked,
    /// An account has had too many wrong passwords.
    #[error("limit `{limit}` is exceeded")]
    Limited {
        /// The name of the limit.
        limit: String,
        /// Whole seconds until a retry makes sense.
        retry_after: u64,
    },
    /// The hashing queue is full.
    #[error(transparent)]
    Overloaded(HashError),
    /// More sessions of one account are to be renewed than the store can write.
    #[error("too many sessions of this account are renewed at once")]
    TooManyRenewals,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing keys failed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The process is shutting down.
    #[error("the gateway is shutting down")]
    Stopping,
}

impl IdentityError {
    /// The reason that the client receives.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Request(_) => Reason::RequestInvalid,
            Self::TooLarge => Reason::BodyTooLarge,
            Self::ForeignOrigin => Reason::OriginForeign,
            Self::Provider(error) if error.is_outage() => Reason::KeysUnavailable,
            Self::Login(_) | Self::Provider(_) => Reason::LoginFailed,
            Self::LoginExpired => Reason::LoginExpired,
            Self::NotAllowed(NotAllowed::Claim(_)) => Reason::LoginNotAllowed,
            Self::NotAllowed(NotAllowed::Overage(_) | NotAllowed::TooManyRoles { .. }) => {
                Reason::GroupsOverage
            }
            Self::StepUp => Reason::StepUpRequired,
            Self::NoPasswordLogin => Reason::LoginMethod,
            Self::CodeRequired => Reason::CodeRequired,
            Self::EmailUnverified => Reason::EmailUnverified,
            Self::RegistrationClosed => Reason::RegistrationClosed,
            Self::AccountExists => Reason::AccountExists,
            Self::Password(_) => Reason::PasswordRejected,
            Self::Grant(_) | Self::NoRefreshToken(_) => Reason::InvalidGrant,
            Self::Link | Self::AlreadyConfirmed => Reason::LinkInvalid,
            Self::NoSession
            | Self::NoToken
            | Self::NoLogo
            | Self::NotOffered
            | Self::NoProvider => Reason::RouteNotFound,
            Self::PersonalToken => Reason::ScopeMissing,
            Self::NoCaller | Self::NothingToEnd(_) => Reason::CredentialsMissing,
            Self::TokenRevoked => Reason::TokenRevoked,
            Self::Limited { .. } => Reason::RateLimited,
            Self::Overloaded(_)
            | Self::MailFull(_)
            | Self::TooManyRenewals
            | Self::Store(StoreError::TooManyReads) => Reason::Overloaded,
            Self::Store(_) | Self::Keys(_) | Self::Stopping => Reason::StoreUnavailable,
        }
    }

    /// Whether the cause is an outage, here or at a provider.
    pub fn is_outage(&self) -> bool {
        self.reason().status().as_u16() == 503
    }

    /// Whole seconds until a retry makes sense.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Limited { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// What the client receives besides the reason: what is wrong with its body or its new
    /// password. The text is ours and repeats nothing from the request.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Password(rejected) => Some(rejected.to_string()),
            Self::Request(fault) => Some(fault.to_string()),
            Self::NoRefreshToken(missing) | Self::NothingToEnd(missing) => {
                Some(missing.to_string())
            }
            Self::AlreadyConfirmed => Some("The address is already confirmed.".to_owned()),
            _ => None,
        }
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Neither JSON nor a form.
    #[error("The Content-Type must be application/json or application/x-www-form-urlencoded.")]
    ContentType,
    /// Not JSON, or JSON followed by more bytes.
    #[error("The body is not valid JSON.")]
    Json,
    /// A form whose fields are not UTF-8, percent-decoded or raw.
    #[error("The body is not UTF-8.")]
    Encoding,
    /// A repeated member.
    #[error("The body contains a member twice.")]
    Repeated,
    /// A missing member.
    #[error("The member `{0}` is missing.")]
    Missing(&'static str),
    /// Not an object, or a member of the wrong type.
    #[error("The body is not an object whose members have the types that this endpoint reads.")]
    Members,
    /// Not a form with one valid logout token.
    #[error("The body is not a form with one valid `logout_token` that was not received before.")]
    LogoutToken,
    /// Not a valid address.
    #[error("`email` is not a valid e-mail address of at most 254 bytes.")]
    Email,
    /// The account already has a second factor.
    #[error("the account already has a second factor")]
    SecondFactor,
    /// Not exactly one of the two passwords that confirm an address.
    #[error("Send either `password`, the current one, or `new_password`, to set a new one.")]
    WhichPassword,
    /// Another address was requested, but no mail can be sent to it.
    #[error("This site cannot send mail, so its administrator has to change the address.")]
    NoMail,
    /// The name is too long, or contains characters that are not allowed.
    #[error("`name` must have at most 200 characters and no invisible ones.")]
    Name,
    /// The name of a personal access token is missing, too long, or contains characters that are
    /// not allowed.
    #[error("`name` must have 1 to 200 characters and no invisible ones.")]
    TokenName,
    /// The name of a personal access token is in use.
    #[error("`name` is the name of another token: choose another, or revoke that token first.")]
    TokenNameTaken,
    /// A role that the account does not have.
    #[error("`roles` must only contain roles that the account has.")]
    TokenRoles,
    /// Not a lifetime.
    #[error("`ttl` must be a duration from 1s to 10y, for example 180d.")]
    TokenTtl,
    /// The account has as many tokens as it may have.
    #[error("The account has 100 tokens: revoke one that is no longer used.")]
    TooManyTokens,
}

/// Why a login failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLogin {
    /// The address has no account.
    #[error("no such account exists")]
    Unknown,
    /// The password is wrong.
    #[error("the password is wrong")]
    Password,
    /// The account is disabled.
    #[error("the account is disabled")]
    Disabled,
    /// The account was changed while its password was checked, or its provider was asked.
    #[error("the account was changed meanwhile")]
    Changed,
    /// The code is wrong.
    #[error("the code is wrong")]
    Code,
    /// The password was entered too long ago, or the account was changed since.
    #[error("the password was entered too long ago, or the account was changed since")]
    Expired,
}

impl NoLogin {
    /// The word for it in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_account",
            Self::Password => "wrong_password",
            Self::Disabled => "disabled",
            Self::Changed => "changed_meanwhile",
            Self::Code => "wrong_code",
            Self::Expired => "too_late",
        }
    }
}

impl From<ProviderError> for IdentityError {
    fn from(error: ProviderError) -> Self {
        Self::Provider(Box::new(error))
    }
}

impl From<NewPasswordError> for IdentityError {
    fn from(error: NewPasswordError) -> Self {
        match error {
            NewPasswordError::Rejected(rejected) => Self::Password(rejected),
            NewPasswordError::NotHashed(error) => Self::Overloaded(error),
        }
    }
}

impl From<EnqueueError> for IdentityError {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::Store(error) => Self::Store(error),
            EnqueueError::Full => Self::MailFull(error),
        }
    }
}

impl From<NotEnrolled> for IdentityError {
    fn from(error: NotEnrolled) -> Self {
        match error {
            NotEnrolled::Already => Self::Request(RequestFault::SecondFactor),
            NotEnrolled::Code => Self::Login(NoLogin::Code),
            NotEnrolled::Changed => Self::TokenRevoked,
            NotEnrolled::Random(_) => Self::Overloaded(HashError::Failed),
            NotEnrolled::Store(error) => Self::Store(error),
        }
    }
}

impl From<HashError> for IdentityError {
    fn from(error: HashError) -> Self {
        Self::Overloaded(error)
    }
}

impl From<RefreshError> for IdentityError {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Store(error) => Self::Store(error),
            other => Self::Grant(other),
        }
    }
}

impl From<AccountError> for IdentityError {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::Taken => Self::AccountExists,
            AccountError::Unknown => Self::NoCaller,
            AccountError::Store(error) => Self::Store(error),
        }
    }
}
