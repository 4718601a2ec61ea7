//! The endpoints of the pages, and of the files that they use.

use super::{ICON, LOGO, Page, STYLE};
use crate::identity::actions::login::{CodeLogin, Tokens};
use crate::identity::endpoints::{Action, Budget, CallerNeeded, Endpoint, schema};
use crate::reason::Reason;

const fn page(
    path: &'static str,
    page: Page,
    caller: CallerNeeded,
    summary: &'static str,
) -> Endpoint {
    Endpoint {
        method: "GET",
        path,
        action: Action::Page(page),
        caller,
        budget: None,
        summary,
        request: None,
        success: (200, None),
        reasons: &[],
    }
}

/// A page that a mailed link leads to. It looks the link up, so it is counted.
const fn page_of_link(path: &'static str, shown: Page, summary: &'static str) -> Endpoint {
    Endpoint { budget: Some(Budget::LinkPage), ..page(path, shown, CallerNeeded::No, summary) }
}

/// A form of the account page, for what programs do in another way.
const fn form(
    path: &'static str,
    (action, budget): (Action, Budget),
    summary: &'static str,
    status: u16,
) -> Endpoint {
    Endpoint {
        method: "POST",
        path,
        action,
        caller: CallerNeeded::Yes,
        budget: Some(budget),
        summary,
        request: None,
        success: (status, None),
        reasons: &[Reason::RequestInvalid, Reason::LoginFailed, Reason::CodeRequired],
    }
}

const fn file(
    path: &'static str,
    action: Action,
    summary: &'static str,
    reasons: &'static [Reason],
) -> Endpoint {
    Endpoint {
        method: "GET",
        path,
        action,
        caller: CallerNeeded::No,
        budget: None,
        summary,
        request: None,
        success: (200, None),
        reasons,
    }
}

/// Endpoints that respond in HTML.
pub static ENDPOINTS: [Endpoint; 24] = [
    page(
        "/login",
        Page::Login,
        CallerNeeded::No,
        "The login page. `return_to` is the path on this site to go to after login.",
    ),
    Endpoint {
        reasons: &[Reason::RegistrationClosed],
        ..page("/register", Page::Register, CallerNeeded::No, "The registration page.")
    },
    page("/logout", Page::Logout, CallerNeeded::Welcome, "The logout page."),
    page(
        "/password/forgot",
        Page::Forgot,
        CallerNeeded::No,
        "The page that requests a reset link.",
    ),
    page_of_link(
        "/password/reset",
        Page::Reset,
        "The page that a mailed link leads to, with `token`.",
    ),
    page(
        "/password/change",
        Page::Change,
        CallerNeeded::Yes,
        "The page that changes the password.",
    ),
    page_of_link(
        "/email/verify",
        Page::VerifyEmail,
        "The page that a mailed link leads to, with `token`.",
    ),
    page_of_link(
        "/email/change",
        Page::ChangeEmail,
        "The page that a link to a new address leads to, with `token`.",
    ),
    Endpoint {
        reasons: &[Reason::RouteNotFound],
        ..page(
            "/totp",
            Page::Totp,
            CallerNeeded::Yes,
            "The page that turns two-factor login on or off.",
        )
    },
    Endpoint {
        method: "POST",
        path: "/login/code",
        action: Action::LoginWithCode,
        caller: CallerNeeded::No,
        budget: Some(Budget::Login),
        summary: "The second step of the login page. Programs send the code with POST /login.",
        request: Some(schema::<CodeLogin>),
        success: (200, Some(schema::<Tokens>)),
        reasons: &[Reason::RequestInvalid, Reason::LoginFailed, Reason::EmailUnverified],
    },
    page(
        "/totp/codes",
        Page::NewCodes,
        CallerNeeded::Yes,
        "The page that makes new recovery codes.",
    ),
    Endpoint {
        action: Action::Account,
        ..page(
            "/account",
            Page::Account,
            CallerNeeded::Yes,
            "The page with the account, and what its owner can do with it.",
        )
    },
    page("/account/name", Page::ChangeName, CallerNeeded::Yes, "The page that changes the name."),
    page(
        "/account/email",
        Page::AskForEmail,
        CallerNeeded::Yes,
        "The page that requests another address.",
    ),
    page(
        "/account/delete",
        Page::DeleteAccount,
        CallerNeeded::Yes,
        "The page that deletes the account.",
    ),
    form(
        "/account/name",
        (Action::ChangeAccount, Budget::Mail),
        "The same as PATCH, which HTML forms cannot send.",
        200,
    ),
    form(
        "/account/email",
        (Action::ChangeAccount, Budget::Mail),
        "The same as PATCH, which HTML forms cannot send.",
        200,
    ),
    form(
        "/account/delete",
        (Action::DeleteAccount, Budget::CurrentPassword),
        "The same as DELETE, which HTML forms cannot send.",
        204,
    ),
    Endpoint {
        method: "POST",
        path: "/sessions/{sid}",
        action: Action::EndSession,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "The same as DELETE, which HTML forms cannot send.",
        request: None,
        success: (204, None),
        reasons: &[Reason::RouteNotFound],
    },
    Endpoint {
        method: "POST",
        path: "/tokens/{id}",
        action: Action::RevokeToken,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "The same as DELETE, which HTML forms cannot send.",
        request: None,
        success: (204, None),
        reasons: &[Reason::RouteNotFound],
    },
    file(STYLE, Action::Style, "The style sheet of the pages.", &[]),
    file(LOGO, Action::Logo, "The logo above the pages.", &[Reason::RouteNotFound]),
    file(ICON, Action::Icon, "The icon of the pages.", &[]),
    Endpoint { success: (303, None), ..file("/", Action::Home, "Redirect to the account.", &[]) },
];
