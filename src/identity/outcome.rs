//! What an action comes to. Two renderers make an answer of it: `programs` for whoever reads JSON,
//! `people` for whoever reads pages.

use bytes::Bytes;
use http::HeaderValue;

use super::actions::account::Account;
use super::actions::second_factor::{Enrolment, RecoveryCodes};
use super::brand::Asset;
use super::error::IdentityError;
use super::link::Purpose;
use super::pages::{Filled, Page};
use super::{Mount, Policy, cookie};
use crate::store::{AccountRow, SessionRow};

/// What an action comes to, or why it is refused.
pub(super) type Answered = Result<Outcome, Refused>;

/// What an action comes to.
pub(super) enum Outcome {
    /// There is an account.
    Registered {
        account: Account,
        /// A person is logged in at once, unless they have to confirm their address first.
        tokens: Option<SessionTokens>,
        return_to: Option<String>,
    },
    /// A session begins.
    LoggedIn { tokens: SessionTokens, in_cookies: bool, return_to: Option<String> },
    /// A session goes on.
    Refreshed { tokens: SessionTokens, in_cookies: bool },
    /// The session of a browser goes on, and the browser goes back.
    Renewed { tokens: SessionTokens, back: String },
    /// The session of a browser is over: it goes back by way of the login.
    NotRenewed { back: String },
    /// The session has ended.
    LoggedOut,
    /// Every session of the account has ended.
    LoggedOutEverywhere,
    /// The account of the caller.
    Account(Account),
    /// The sessions of the caller.
    Sessions(Box<Sessions>),
    /// A session has ended: the caller's own, or another one.
    SessionEnded { own: bool },
    /// There is a new password. Every session of the account has ended.
    PasswordChanged,
    /// A link is mailed, if there is such an account.
    LinkPromised(Purpose),
    /// The address is confirmed. A person is logged in at once, if the password is enough.
    EmailVerified { tokens: Option<SessionTokens> },
    /// The link is used or too old, and the address is confirmed.
    AlreadyVerified,
    /// An authenticator app can be set up.
    TotpBegun(Enrolment),
    /// Logins ask for codes.
    TotpConfirmed(RecoveryCodes),
    /// Logins ask for no codes.
    TotpRemoved,
    /// A JSON document that is the same for everybody.
    Published(Bytes),
    /// A page, filled in like this.
    Shown(Page, Box<Filled>),
    /// A file that pages name.
    File(Asset),
    /// People begin at the page of their sessions.
    Home,
}

/// The tokens of a session.
pub(super) struct SessionTokens {
    pub(super) access_token: String,
    /// Seconds until the access token expires.
    pub(super) expires_in: u64,
    pub(super) refresh_token: String,
}

impl SessionTokens {
    /// The cookies that hold them.
    pub(super) fn cookies(&self, policy: &Policy, mount: &Mount) -> [HeaderValue; 2] {
        cookie::set(&self.access_token, &self.refresh_token, policy, mount)
    }
}

/// The sessions of an account, as the caller sees them.
pub(super) struct Sessions {
    /// The one used last comes first.
    pub(super) rows: Vec<SessionRow>,
    /// How many more there are.
    pub(super) more: i64,
    /// The `sid` of the caller's own.
    pub(super) current: Option<String>,
    /// In Unix seconds.
    pub(super) now: u64,
    pub(super) account: AccountRow,
    /// `None`: logins ask for no code.
    pub(super) recovery_codes_left: Option<i64>,
}

/// A request that is refused.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: IdentityError,
    /// `Set-Cookie`: removes cookies that are no longer valid.
    pub cookies: Vec<HeaderValue>,
    /// The second factor that still waits for its first code: a person is shown it again.
    pub enrolment: Option<Box<Enrolment>>,
}

impl<E: Into<IdentityError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self { error: error.into(), cookies: Vec::new(), enrolment: None }
    }
}
