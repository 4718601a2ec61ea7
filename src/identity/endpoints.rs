//! The one table of endpoints: requests are dispatched by it, and the OpenAPI description is
//! generated from it.

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::actions::{account, email, login, password, second_factor, session};
use super::owner_endpoints;
use super::pages::{self, Page};
use super::provider_endpoints;
use crate::reason::Reason;

/// An endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// `GET` or another method; `GET` includes `HEAD`.
    pub method: &'static str,
    /// The path below the mount; `{x}` is one segment.
    pub path: &'static str,
    /// What it does.
    pub action: Action,
    /// Whether it needs a caller, identified by an access token.
    pub caller: CallerNeeded,
    /// The built-in limits that count its requests.
    pub budget: Option<Budget>,
    /// One sentence for the OpenAPI description.
    pub summary: &'static str,
    /// The schema of the request body.
    pub request: Option<SchemaOf>,
    /// The status and the schema of the body on success.
    pub success: (u16, Option<SchemaOf>),
    /// The reasons specific to this endpoint. Every request may also be refused for the general
    /// ones.
    pub reasons: &'static [Reason],
}

/// Writes the schema of a body.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Creates an account.
    Register,
    /// Opens a session.
    Login,
    /// Finishes a login with a code.
    LoginWithCode,
    /// Begins a login at a provider.
    Depart,
    /// Finishes a login at a provider.
    ComeBack,
    /// Ends the sessions that a provider names.
    BackchannelLogout,
    /// Exchanges a refresh token.
    Refresh,
    /// Ends the current session.
    Logout,
    /// Ends every session of the account.
    LogoutAll,
    /// Describes the account.
    Me,
    /// Changes the account.
    ChangeAccount,
    /// Shows the account to its owner.
    Account,
    /// Deletes the account.
    DeleteAccount,
    /// Hands out everything that is stored about the account.
    Export,
    /// Changes the address, authorized by a mailed link.
    ChangeEmail,
    /// Lists its sessions.
    Sessions,
    /// Ends one of its sessions.
    EndSession,
    /// Lists its personal access tokens.
    Tokens,
    /// Makes one.
    CreateToken,
    /// Revokes one.
    RevokeToken,
    /// Changes the password.
    ChangePassword,
    /// Mails a link that sets a new password.
    ForgotPassword,
    /// Sets a new password, authorized by such a link.
    ResetPassword,
    /// Confirms an address, authorized by a mailed link.
    VerifyEmail,
    /// Has such a link mailed again.
    ResendEmail,
    /// Makes the secret of a second factor.
    BeginTotp,
    /// Has logins ask for codes of it.
    ConfirmTotp,
    /// Takes it away.
    RemoveTotp,
    /// Makes new recovery codes.
    RenewCodes,
    /// The JWK Set.
    Keys,
    /// The metadata.
    Metadata,
    /// Shows a page.
    Page(Page),
    /// The style sheet of the pages.
    Style,
    /// The logo above the pages.
    Logo,
    /// The icon for tabs and bookmarks.
    Icon,
    /// Redirects to the page that people start at.
    Home,
}

/// Whether an endpoint needs a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerNeeded {
    /// No access token is read.
    No,
    /// An access token is used if it is present and valid.
    Welcome,
    /// Requests without a valid access token are refused.
    Yes,
}

/// A built-in limit: requests per minute and client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Logins, and the failed logins of an account.
    Login,
    /// Registrations.
    Register,
    /// Refreshes by `POST /refresh`.
    Refresh,
    /// Requests for mail.
    Mail,
    /// Mailed links that are used.
    Link,
    /// Pages that a mailed link leads to, each of which looks it up.
    LinkPage,
    /// Attempts at the current password, or at a code.
    CurrentPassword,
    /// Personal access tokens that are made.
    Token,
    /// Logins that come back from a provider, each of which it is asked about.
    Callback,
}

impl Budget {
    /// Whether its requests name an account: by an address in the body, or as the caller.
    pub fn names_account(self) -> bool {
        match self {
            Self::Login | Self::Register | Self::Mail | Self::CurrentPassword => true,
            Self::Refresh | Self::Link | Self::LinkPage | Self::Token | Self::Callback => false,
        }
    }
}

/// The result of looking up an endpoint.
#[derive(Debug)]
pub enum Found {
    /// This endpoint, with the value of `{x}`.
    Endpoint(&'static Endpoint, Option<String>),
    /// The path exists for these other methods only: a value for `Allow`.
    OtherMethods(String),
    /// No endpoint has this path.
    Nowhere,
}

impl Endpoint {
    /// Whether it changes something. Pages of other origins may then not request it.
    pub fn changes_something(&self) -> bool {
        self.method != "GET"
    }

    /// Whether it may be called with a personal access token: one must not make another, or end the
    /// sessions that could revoke it.
    pub fn takes_personal_tokens(&self) -> bool {
        self.caller != CallerNeeded::Yes || self.action == Action::Me
    }

    /// Whether it opens a session.
    pub fn opens_session(&self) -> bool {
        matches!(self.action, Action::Login | Action::LoginWithCode | Action::Register)
    }
}

/// Looks up the endpoint for a method and a decoded path below the mount.
pub fn find_endpoint(method: &str, below: &str) -> Found {
    let mut allowed: Vec<&str> = Vec::new();
    let below = if below.is_empty() { "/" } else { below };
    // `/login/code` is not a provider.
    let is_literal = all().any(|endpoint| endpoint.path == below);
    for endpoint in all().filter(|endpoint| !is_literal || endpoint.path == below) {
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

/// `Some` if the path matches the pattern; the inner option is the value of its parameter.
#[expect(clippy::option_option, reason = "outer: it matches; inner: its parameter, if it has one")]
fn matches<'p>(pattern: &str, path: &'p str) -> Option<Option<&'p str>> {
    match pattern.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?.1)))
    {
        None => (pattern == path).then_some(None),
        Some((before, after)) => {
            let parameter = path.strip_prefix(before)?.strip_suffix(after)?;
            (!parameter.is_empty() && !parameter.contains('/')).then_some(Some(parameter))
        }
    }
}

pub(super) fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// All endpoints.
pub fn all() -> impl Iterator<Item = &'static Endpoint> {
    ENDPOINTS
        .iter()
        .chain(&owner_endpoints::ENDPOINTS)
        .chain(&provider_endpoints::ENDPOINTS)
        .chain(&pages::ENDPOINTS)
}

/// The endpoints that programs use and forms are sent to.
static ENDPOINTS: [Endpoint; 18] = [
    Endpoint {
        method: "POST",
        path: "/register",
        action: Action::Register,
        caller: CallerNeeded::No,
        budget: Some(Budget::Register),
        summary: "Create an account, if registration is open.",
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
        reasons: &[Reason::RequestInvalid, Reason::InvalidGrant, Reason::EmailUnverified],
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
        summary: "Get the account of the caller.",
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
        summary: "List the sessions of the caller.",
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
        summary: "Change the password. This ends every session of the account, including this one.",
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
        summary: "Request a mail with a link that sets a new password. The response is the same if no such account exists.",
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
        summary: "Set a new password with the token of a mailed link. This ends every session of the account.",
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
        summary: "Confirm an address with the token of a mailed link, and either the password of the account or a new one.",
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
        summary: "Mail the link that confirms an address again. The response is the same if no such account exists.",
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
        summary: "Start setting up an authenticator app, if `totp` is on. The response holds its secret. Logins require codes once the first code has been confirmed.",
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
        summary: "Confirm the first code of the app; logins require codes from now on. The response holds recovery codes, each valid for one login.",
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
        summary: "Remove the second factor.",
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
        summary: "Get the public keys (RFC 7517).",
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
        summary: "Get the metadata (RFC 8414, OpenID Connect Discovery).",
        request: None,
        success: (200, None),
        reasons: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_reach_their_endpoint() {
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
            matches!(find_endpoint("PUT", "/me"), Found::OtherMethods(allow) if allow == "DELETE, GET, HEAD, PATCH")
        );
        assert!(matches!(find_endpoint("GET", "/nothing"), Found::Nowhere));
    }

    #[test]
    fn no_two_endpoints_have_the_same_method_and_path() {
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
