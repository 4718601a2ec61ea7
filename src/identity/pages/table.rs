//! The endpoints of the pages, and of the files that they use.

use super::{ICON, LOGO, Page, STYLE};
use crate::identity::endpoints::{Action, CallerNeeded, Endpoint};
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
pub static ENDPOINTS: [Endpoint; 15] = [
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
    page(
        "/password/reset",
        Page::Reset,
        CallerNeeded::No,
        "The page that a mailed link leads to, with `token`.",
    ),
    page(
        "/password/change",
        Page::Change,
        CallerNeeded::Yes,
        "The page that changes the password.",
    ),
    page(
        "/email/verify",
        Page::VerifyEmail,
        CallerNeeded::No,
        "The page that a mailed link leads to, with `token`.",
    ),
    page(
        "/email/change",
        Page::ChangeEmail,
        CallerNeeded::No,
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
    Endpoint {
        success: (303, None),
        ..file("/", Action::Home, "Redirect to the list of sessions.", &[])
    },
];
