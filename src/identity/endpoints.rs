//! The one table of endpoints: what is dispatched, and what the OpenAPI description tells.

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::actions::{account, email, login, password, second_factor, session};
use super::pages::{self, Page};
use crate::reason::Reason;

/// An endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// `GET` or another method; `GET` brings `HEAD`.
    pub method: &'static str,
    /// Below the mount; `{x}` is one segment.
    pub path: &'static str,
    /// What it does.
    pub action: Action,
    /// Whether it needs to know who calls, by their access token.
    pub caller: CallerNeeded,
    /// The built-in limits that it counts against.
    pub budget: Option<Budget>,
    /// In a sentence.
    pub summary: &'static str,
    /// What it reads.
    pub request: Option<SchemaOf>,
    /// Its status, and what it answers with, when all is well.
    pub success: (u16, Option<SchemaOf>),
    /// The reasons of its own refusals. Beside these, each may be refused as every request is.
    pub reasons: &'static [Reason],
}

/// Writes the schema of a body.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes an account.
    Register,
    /// Opens a session.
    Login,
    /// Exchanges a refresh token.
    Refresh,
    /// The same for a browser that is on its way somewhere.
    Renew,
    /// Ends the session.
    Logout,
    /// Ends every session of the account.
    LogoutAll,
    /// Tells the account.
    Me,
    /// Tells its sessions.
    Sessions,
    /// Ends one of them.
    EndSession,
    /// Sets another password.
    ChangePassword,
    /// Has a link mailed that sets another password.
    ForgotPassword,
    /// Sets another password, by such a link.
    ResetPassword,
    /// Shows an address to be its owner's, by a mailed link.
    VerifyEmail,
    /// Has such a link mailed again.
    ResendEmail,
    /// Makes the secret of a second factor.
    BeginTotp,
    /// Has logins ask for codes of it.
    ConfirmTotp,
    /// Takes it away.
    RemoveTotp,
    /// The JWK Set.
    Keys,
    /// The metadata.
    Metadata,
    /// Shows a page.
    Page(Page),
    /// The style sheet of the pages.
    Style,
    /// The mark above them.
    Logo,
    /// Their icon, in tabs and bookmarks.
    Icon,
    /// Leads to the page that people begin at.
    Home,
}

/// Whether an endpoint needs to know who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerNeeded {
    /// No access token is read.
    No,
    /// One is read, where it is there and good.
    Welcome,
    /// Without a good one, the request is refused.
    Yes,
}

/// A built-in limit: so many a minute of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Logins, and failed ones of an account.
    Login,
    /// Registrations.
    Register,
    /// Refreshes, also on the way through `/renew`.
    Refresh,
    /// Mails that are asked for.
    Mail,
    /// Mailed links that are followed.
    Link,
    /// Guesses of the current password, or of a code.
    CurrentPassword,
}

impl Budget {
    /// Whether it is of requests that name an account: by an address in the body, or by the caller.
    pub fn names_account(self) -> bool {
        match self {
            Self::Login | Self::Register | Self::Mail | Self::CurrentPassword => true,
            Self::Refresh | Self::Link => false,
        }
    }
}

/// Where a request leads.
#[derive(Debug)]
pub enum Found {
    /// To this endpoint; with what stands for `{x}`.
    Endpoint(&'static Endpoint, Option<String>),
    /// There are endpoints of this path, for these methods only: a value for `Allow`.
    OtherMethods(String),
    /// Nowhere.
    Nowhere,
}

impl Endpoint {
    /// Whether it changes something: then no other origin may ask for it.
    pub fn changes_something(&self) -> bool {
        self.method != "GET"
    }
}

/// The endpoint for a method and a decoded path below the mount.
pub fn find_endpoint(method: &str, below: &str) -> Found {
    let mut allowed: Vec<&str> = Vec::new();
    let below = if below.is_empty() { "/" } else { below };
    for endpoint in all() {
        let Some(parameter) = matches(endpoint.path, below) else { continue };
        if endpoint.method == method || (endpoint.method == "GET" && method == "HEAD") {
            return Found::Endpoint(endpoint, parameter.map(str::to_owned));
        }
        allowed.push(endpoint.method);
        if endpoint.method == "GET" {
            allowed.push("HEAD");
        }
    }
    allowed.sort_unstable();
    if allowed.is_empty() { Found::Nowhere } else { Found::OtherMethods(allowed.join(", ")) }
}

/// `Some` where a path is the pattern's; inner: what stands for its parameter.
#[expect(clippy::option_option, reason = "outer: it matches; inner: its parameter, if it has one")]
fn matches<'p>(pattern: &str, path: &'p str) -> Option<Option<&'p str>> {
    match pattern.split_once('{') {
        None => (pattern == path).then_some(None),
        Some((before, _)) => {
            let parameter = path.strip_prefix(before)?;
            (!parameter.is_empty() && !parameter.contains('/')).then_some(Some(parameter))
        }
    }
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Every endpoint.
pub fn all() -> impl Iterator<Item = &'static Endpoint> {
    ENDPOINTS.iter().chain(&pages::ENDPOINTS)
}

/// What programs use, and what forms are sent to.
static ENDPOINTS: [Endpoint; 19] = [
    Endpoint {
        method: "POST",
        path: "/register",
        action: Action::Register,
        caller: CallerNeeded::No,
        budget: Some(Budget::Register),
        summary: "Make an account, where registration is open.",
        request: Some(schema::<account::Registering>),
        success: (201, Some(schema::<account::Account>)),
        reasons: &[
            Reason::RequestInvalid,
            Reason::RegistrationClosed,
            Reason::AccountExists,
            Reason::PasswordRejected,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/login",
        action: Action::Login,
        caller: CallerNeeded::No,
        budget: Some(Budget::Login),
        summary: "Log in: open a session.",
        request: Some(schema::<login::Login>),
        success: (200, Some(schema::<login::Tokens>)),
        reasons: &[
            Reason::RequestInvalid,
            Reason::LoginFailed,
            Reason::CodeRequired,
            Reason::EmailUnverified,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/refresh",
        action: Action::Refresh,
        caller: CallerNeeded::No,
        budget: Some(Budget::Refresh),
        summary: "Exchange a refresh token for its successor and a new access token.",
        request: Some(schema::<session::Refresh>),
        success: (200, Some(schema::<login::Tokens>)),
        reasons: &[Reason::RequestInvalid, Reason::InvalidGrant],
    },
    Endpoint {
        method: "GET",
        path: "/renew",
        action: Action::Renew,
        caller: CallerNeeded::No,
        budget: Some(Budget::Refresh),
        summary: "Renew the cookies of a browser, and lead it back to the path `return_to`; without a session, to the login page.",
        request: None,
        success: (303, None),
        reasons: &[],
    },
    Endpoint {
        method: "POST",
        path: "/logout",
        action: Action::Logout,
        caller: CallerNeeded::Welcome,
        budget: None,
        summary: "Log out: end the session of the access token, of the refresh token in the body, or of the cookie.",
        request: Some(schema::<session::Logout>),
        success: (204, None),
        reasons: &[Reason::RequestInvalid],
    },
    Endpoint {
        method: "POST",
        path: "/logout-all",
        action: Action::LogoutAll,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "End every session of the account.",
        request: None,
        success: (204, None),
        reasons: &[],
    },
    Endpoint {
        method: "GET",
        path: "/me",
        action: Action::Me,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "The account of the caller.",
        request: None,
        success: (200, Some(schema::<account::Account>)),
        reasons: &[],
    },
    Endpoint {
        method: "GET",
        path: "/sessions",
        action: Action::Sessions,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "Where the caller is logged in.",
        request: None,
        success: (200, Some(schema::<session::SessionList>)),
        reasons: &[],
    },
    Endpoint {
        method: "DELETE",
        path: "/sessions/{sid}",
        action: Action::EndSession,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "End one session of the caller.",
        request: None,
        success: (204, None),
        reasons: &[Reason::RouteNotFound],
    },
    Endpoint {
        method: "POST",
        path: "/password/change",
        action: Action::ChangePassword,
        caller: CallerNeeded::Yes,
        budget: Some(Budget::CurrentPassword),
        summary: "Set another password. Every session of the account ends, this one too.",
        request: Some(schema::<password::ChangePassword>),
        success: (204, None),
        reasons: &[
            Reason::RequestInvalid,
            Reason::LoginFailed,
            Reason::PasswordRejected,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/password/forgot",
        action: Action::ForgotPassword,
        caller: CallerNeeded::No,
        budget: Some(Budget::Mail),
        summary: "Have a link mailed that sets another password. The answer is the same where there is no such account.",
        request: Some(schema::<email::Address>),
        success: (202, None),
        reasons: &[Reason::RequestInvalid, Reason::Overloaded],
    },
    Endpoint {
        method: "POST",
        path: "/password/reset",
        action: Action::ResetPassword,
        caller: CallerNeeded::No,
        budget: Some(Budget::Link),
        summary: "Set another password, by the token of a mailed link. Every session of the account ends.",
        request: Some(schema::<password::ResetPassword>),
        success: (204, None),
        reasons: &[
            Reason::RequestInvalid,
            Reason::LinkInvalid,
            Reason::PasswordRejected,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/email/verify",
        action: Action::VerifyEmail,
        caller: CallerNeeded::No,
        budget: Some(Budget::Link),
        summary: "Confirm an address, by the token of a mailed link and the password of the account, or a new one in its place.",
        request: Some(schema::<email::VerifyEmail>),
        success: (204, None),
        reasons: &[
            Reason::RequestInvalid,
            Reason::LinkInvalid,
            Reason::LoginFailed,
            Reason::PasswordRejected,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/email/resend",
        action: Action::ResendEmail,
        caller: CallerNeeded::No,
        budget: Some(Budget::Mail),
        summary: "Have the link that confirms an address mailed again. The answer is the same where there is no such account.",
        request: Some(schema::<email::Address>),
        success: (202, None),
        reasons: &[Reason::RequestInvalid, Reason::Overloaded],
    },
    Endpoint {
        method: "POST",
        path: "/totp",
        action: Action::BeginTotp,
        caller: CallerNeeded::Yes,
        budget: Some(Budget::CurrentPassword),
        summary: "Begin to set up an authenticator app, where `totp` is on: its secret. Logins ask for codes after one was confirmed.",
        request: Some(schema::<second_factor::BeginTotp>),
        success: (200, Some(schema::<second_factor::Enrolment>)),
        reasons: &[
            Reason::RequestInvalid,
            Reason::LoginFailed,
            Reason::RouteNotFound,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/totp/confirm",
        action: Action::ConfirmTotp,
        caller: CallerNeeded::Yes,
        budget: Some(Budget::CurrentPassword),
        summary: "Have logins ask for codes from now on, by a code of the app. The answer holds recovery codes, each good for one login.",
        request: Some(schema::<second_factor::ConfirmTotp>),
        success: (200, Some(schema::<second_factor::RecoveryCodes>)),
        reasons: &[Reason::RequestInvalid, Reason::LoginFailed, Reason::RouteNotFound],
    },
    Endpoint {
        method: "POST",
        path: "/totp/remove",
        action: Action::RemoveTotp,
        caller: CallerNeeded::Yes,
        budget: Some(Budget::CurrentPassword),
        summary: "Take the second factor away.",
        request: Some(schema::<second_factor::RemoveTotp>),
        success: (204, None),
        reasons: &[
            Reason::RequestInvalid,
            Reason::LoginFailed,
            Reason::CodeRequired,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "GET",
        path: "/.well-known/jwks.json",
        action: Action::Keys,
        caller: CallerNeeded::No,
        budget: None,
        summary: "The public keys (RFC 7517).",
        request: None,
        success: (200, None),
        reasons: &[],
    },
    Endpoint {
        method: "GET",
        path: "/.well-known/openid-configuration",
        action: Action::Metadata,
        caller: CallerNeeded::No,
        budget: None,
        summary: "The metadata (RFC 8414, OpenID Connect Discovery).",
        request: None,
        success: (200, None),
        reasons: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lead_to_their_endpoint() {
        let action = |method: &str, below: &str| match find_endpoint(method, below) {
            Found::Endpoint(endpoint, parameter) => Some((endpoint.action, parameter)),
            _ => None,
        };
        assert_eq!(action("POST", "/login"), Some((Action::Login, None)));
        assert_eq!(action("HEAD", "/me"), Some((Action::Me, None)));
        assert_eq!(
            action("DELETE", "/sessions/a-b"),
            Some((Action::EndSession, Some("a-b".to_owned())))
        );
        for (method, below) in [
            ("POST", "/login/"),
            ("DELETE", "/sessions/"),
            ("DELETE", "/sessions/a/b"),
            ("GET", "//"),
            ("POST", "/Login"),
        ] {
            assert_eq!(action(method, below), None, "{below}");
        }
        assert!(
            matches!(find_endpoint("DELETE", "/me"), Found::OtherMethods(allow) if allow == "GET, HEAD")
        );
        assert!(matches!(find_endpoint("GET", "/nothing"), Found::Nowhere));
    }

    #[test]
    fn no_two_endpoints_are_the_same() {
        for (at, one) in all().enumerate() {
            assert!(
                all()
                    .skip(at + 1)
                    .all(|other| (one.method, one.path) != (other.method, other.path)),
                "{}",
                one.path
            );
        }
    }
}
