//! Why the built-in issuer does not do what it was asked to.

use super::account::AccountError;
use super::hasher::{HashError, NewPasswordError};
use super::issue::KeysError;
use super::outbox::EnqueueError;
use super::second_factor::NotEnrolled;
use super::session::RefreshError;
use super::strength::RejectedPassword;
use crate::reason::Reason;
use crate::store::StoreError;

/// Why a request to an endpoint fails. What a client learns of it is one word; the rest is for the
/// log.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The body or the query is not what the endpoint reads.
    #[error("{0}")]
    Request(RequestFault),
    /// The body is longer than any that an endpoint reads.
    #[error("the body is longer than any that is read")]
    TooLarge,
    /// It came from another origin.
    #[error("a request that changes something came from another origin")]
    ForeignOrigin,
    /// No account has this address and password, or it may not log in. Which of these it is, nobody
    /// learns.
    #[error("no login with this address and password: {0}")]
    Login(NoLogin),
    /// The password was right, and a code is needed besides.
    #[error("a code is needed besides the password")]
    CodeRequired,
    /// The address was not yet shown to be its owner's.
    #[error("the e-mail address was not verified")]
    EmailUnverified,
    /// Nobody registers themselves.
    #[error("registration is closed")]
    RegistrationClosed,
    /// The address has an account.
    #[error("the address has an account")]
    AccountExists,
    /// The password cannot be taken.
    #[error("the password is not taken: {0}")]
    Password(#[from] RejectedPassword),
    /// The refresh token is no good.
    #[error(transparent)]
    Grant(RefreshError),
    /// A mailed link is unknown, used or too old.
    #[error("the link is unknown, was used, or is too old")]
    Link,
    /// A link is used or too old, and what it was for is done.
    #[error("the address is confirmed already")]
    AlreadyConfirmed,
    /// The file does not offer it.
    #[error("second factors are not offered: `totp` is false")]
    NotOffered,
    /// More mail waits than leaves.
    #[error(transparent)]
    MailFull(EnqueueError),
    /// The pages have no mark.
    #[error("there is no logo")]
    NoLogo,
    /// There is no such session.
    #[error("the account has no such session")]
    NoSession,
    /// No credentials that are good for anybody.
    #[error("there are no credentials of an account")]
    Nobody,
    /// More passwords than can be hashed soon.
    #[error(transparent)]
    Overloaded(HashError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The process ends.
    #[error("the gateway is about to stop")]
    Stopping,
}

impl IdentityError {
    /// What a client learns.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Request(_) => Reason::RequestInvalid,
            Self::TooLarge => Reason::BodyTooLarge,
            Self::ForeignOrigin => Reason::OriginForeign,
            Self::Login(_) => Reason::LoginFailed,
            Self::CodeRequired => Reason::CodeRequired,
            Self::EmailUnverified => Reason::EmailUnverified,
            Self::RegistrationClosed => Reason::RegistrationClosed,
            Self::AccountExists => Reason::AccountExists,
            Self::Password(_) => Reason::PasswordRejected,
            Self::Grant(_) => Reason::InvalidGrant,
            Self::Link | Self::AlreadyConfirmed => Reason::LinkInvalid,
            Self::NoSession | Self::NoLogo | Self::NotOffered => Reason::RouteNotFound,
            Self::Nobody => Reason::CredentialsMissing,
            Self::Overloaded(_) | Self::MailFull(_) => Reason::Overloaded,
            Self::Store(_) | Self::Keys(_) | Self::Stopping => Reason::StoreUnavailable,
        }
    }

    /// What a client is told beside the reason: what is wrong with its body or its new password.
    /// Words of ours, none of the request's.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Password(rejected) => Some(rejected.to_string()),
            Self::Request(fault) => Some(fault.to_string()),
            Self::AlreadyConfirmed => Some("The address is confirmed already.".to_owned()),
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
    /// No JSON at all, or bytes after it.
    #[error("The body is no JSON.")]
    Json,
    /// A form whose fields are no text, percent-decoded or as they are.
    #[error("The body is not UTF-8.")]
    Encoding,
    /// A member that stands there twice.
    #[error("The body names a member twice.")]
    Repeated,
    /// This member is missing.
    #[error("The member `{0}` is missing.")]
    Missing(&'static str),
    /// No object, or a member of the wrong type.
    #[error("The body is not an object whose members have the types that this endpoint reads.")]
    Members,
    /// No address.
    #[error("`email` is no e-mail address of at most 254 bytes.")]
    Email,
    /// The account has one.
    #[error("the account has a second factor already")]
    SecondFactor,
    /// Not exactly one password to confirm an address with.
    #[error(
        "Send either `password`, the one that the account has, or `new_password`, to set another."
    )]
    WhichPassword,
    /// The name is too long, or holds what no name does.
    #[error("`name` has at most 200 characters, and none that cannot be seen.")]
    Name,
}

/// Why nobody was logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLogin {
    /// The address has no account.
    #[error("there is no such account")]
    Unknown,
    /// The password is another.
    #[error("the password is wrong")]
    Password,
    /// The account is disabled.
    #[error("the account is disabled")]
    Disabled,
    /// The account was changed while its password was checked.
    #[error("the account was changed meanwhile")]
    Changed,
    /// The code is another.
    #[error("the code is wrong")]
    Code,
}

impl NoLogin {
    /// The word for it, in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_account",
            Self::Password => "wrong_password",
            Self::Disabled => "disabled",
            Self::Changed => "changed_meanwhile",
            Self::Code => "wrong_code",
        }
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
            AccountError::Unknown => Self::Nobody,
            AccountError::Store(error) => Self::Store(error),
        }
    }
}
