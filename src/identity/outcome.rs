//! The outcome of an action. Two renderers turn it into a response: `programs` into JSON, `people`
//! into pages.

use bytes::Bytes;
use http::HeaderValue;

use super::actions::account::Account;
use super::actions::profile::Export;
use super::actions::second_factor::{Enrolment, RecoveryCodes};
use super::brand::Asset;
use super::error::IdentityError;
use super::link::Purpose;
use super::pages::{Filled, Page};
use super::personal_tokens::CreatedToken;
use super::session::Keep;
use super::ticket::Ticket;
use super::{Policy, cookie};
use crate::store::{AccountRow, PersonalTokenRow, SessionRow};

/// The outcome of an action, or the reason for its refusal.
pub(super) type Answered = Result<Outcome, Refused>;

/// The outcome of an action.
pub(super) enum Outcome {
    /// The account exists.
    Registered {
        account: Account,
        /// Set if the registration logs in: that of a person, or under `compat = "express"`. It
        /// does not if the address has to be confirmed first.
        tokens: Option<SessionTokens>,
        return_to: Option<String>,
    },
    /// A session was opened.
    LoggedIn { tokens: SessionTokens, in_cookies: bool, return_to: Option<String> },
    /// A step of a login at a provider.
    Step(Step),
    /// The provider has ended sessions.
    LoggedOutThere,
    /// The session has ended, and the browser goes to this URL of the provider to log out there.
    LoggedOutVia(String),
    /// A session was refreshed.
    Refreshed { tokens: SessionTokens, in_cookies: bool },
    /// The session has ended.
    LoggedOut,
    /// Every session of the account has ended.
    LoggedOutEverywhere,
    /// The account of the caller.
    Account(Account),
    /// The account of the caller was changed, or a mail promised that asks to confirm another
    /// address.
    AccountChanged { account: Account, asked_for_email: bool },
    /// The account of the caller no longer exists.
    AccountDeleted,
    /// The account has another address.
    EmailChanged,
    /// The page of the caller's account.
    Overview(Box<Overview>),
    /// Everything that is stored about the caller.
    Exported(Box<Export>),
    /// The sessions of the caller.
    Sessions(Box<Sessions>),
    /// A session has ended: the caller's own, or another one.
    SessionEnded { own: bool },
    /// The personal access tokens of the caller.
    Tokens(Vec<PersonalTokenRow>),
    /// A personal access token was made.
    TokenCreated(Box<CreatedToken>),
    /// A personal access token was revoked.
    TokenRevoked,
    /// A new password was set. Every session of the account has ended.
    PasswordChanged,
    /// A link will be mailed if such an account exists.
    LinkPromised(Purpose),
    /// The address is confirmed. A person is logged in at once if the password is enough.
    EmailVerified { tokens: Option<SessionTokens> },
    /// The link is used or expired, but the address is confirmed.
    AlreadyVerified,
    /// The setup of an authenticator app has started.
    TotpBegun(Enrolment),
    /// New recovery codes replace the earlier ones.
    RecoveryCodes(RecoveryCodes),
    /// Logins require codes.
    TotpConfirmed(RecoveryCodes),
    /// Logins require no codes.
    TotpRemoved,
    /// A JSON document that is the same for everyone.
    Published(Bytes),
    /// A page, filled in with these values.
    Shown(Page, Box<Filled>),
    /// A file that pages refer to.
    File(Asset),
    /// A redirect to the page of the sessions, where people start.
    Home,
}

/// A step of a login at a provider: a redirect, whatever the client says that it accepts.
pub(super) enum Step {
    /// To the endpoint that leads to the only provider.
    ToProvider(String),
    /// To the host of the issuer, where the login begins.
    Home(String),
    /// To a provider, with the cookie of the browser's logins in progress.
    Away { location: String, cookie: HeaderValue },
    /// A session was opened for a person who comes from a provider.
    In { tokens: SessionTokens, to: String, cookie: HeaderValue },
    /// The browser has a session, so it goes on.
    On { to: String, cookie: Option<HeaderValue> },
}

/// The tokens of a session.
pub(super) struct SessionTokens {
    pub(super) access_token: String,
    /// Seconds until the access token expires.
    pub(super) expires_in: u64,
    pub(super) refresh_token: String,
    pub(super) keep: Keep,
}

impl SessionTokens {
    /// The cookies that hold them.
    pub(super) fn cookies(&self, policy: &Policy) -> [HeaderValue; 2] {
        cookie::set(&self.access_token, &self.refresh_token, self.keep, policy)
    }
}

/// The account of the caller, as its page shows it.
pub(super) struct Overview {
    pub(super) account: AccountRow,
    /// `None`: logins require no code.
    pub(super) recovery_codes_left: Option<i64>,
    /// The names of the providers that its owner logs in at.
    pub(super) providers: Vec<String>,
}

/// The sessions of an account, as the caller sees them.
pub(super) struct Sessions {
    /// Most recently used first.
    pub(super) rows: Vec<SessionRow>,
    /// How many more there are.
    pub(super) more: i64,
    /// The `sid` of the caller's own session.
    pub(super) current: Option<String>,
    /// In Unix seconds.
    pub(super) now: u64,
    pub(super) account: AccountRow,
    pub(super) tokens: Vec<PersonalTokenRow>,
}

/// A refused request.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: IdentityError,
    /// `Set-Cookie`: removes cookies that are no longer valid.
    pub cookies: Vec<HeaderValue>,
    /// The second factor that still waits for its first code, to be shown again to a person.
    pub enrolment: Option<Box<Enrolment>>,
    /// With `code_required`: what the page that asks a person for the code needs.
    pub ticket: Option<Box<Ticket>>,
    /// Where the person was going, if the request itself does not say.
    pub back: Option<Box<str>>,
}

impl<E: Into<IdentityError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self { error: error.into(), cookies: Vec::new(), enrolment: None, ticket: None, back: None }
    }
}
