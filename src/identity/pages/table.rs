//! The endpoints that are pages, and the files that pages name.

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

/// They are answered in HTML.
pub static ENDPOINTS: [Endpoint; 13] = [
    page(
        "/login",
        Page::Login,
        CallerNeeded::No,
        "The page to log in at. `return_to` is a path of this site to go to then.",
    ),
    Endpoint {
        reasons: &[Reason::RegistrationClosed],
        ..page("/register", Page::Register, CallerNeeded::No, "The page to register at.")
    },
    page("/logout", Page::Logout, CallerNeeded::Welcome, "The page to log out at."),
    page("/password/forgot", Page::Forgot, CallerNeeded::No, "The page to have a link mailed at."),
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
        "The page to change the password at.",
    ),
    page(
        "/email/verify",
        Page::VerifyEmail,
        CallerNeeded::No,
        "The page that a mailed link leads to, with `token`.",
    ),
    Endpoint {
        reasons: &[Reason::RouteNotFound],
        ..page(
            "/totp",
            Page::Totp,
            CallerNeeded::Yes,
            "The page to turn two-factor login on or off at.",
        )
    },
    Endpoint {
        method: "POST",
        path: "/sessions/{sid}",
        action: Action::EndSession,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "The same as DELETE, which forms of pages cannot send.",
        request: None,
        success: (204, None),
        reasons: &[Reason::RouteNotFound],
    },
    file(STYLE, Action::Style, "The style sheet of the pages.", &[]),
    file(LOGO, Action::Logo, "The mark above the pages.", &[Reason::RouteNotFound]),
    file(ICON, Action::Icon, "The icon of the pages.", &[]),
    Endpoint {
        success: (303, None),
        ..file("/", Action::Home, "Leads to the page of one's sessions.", &[])
    },
];
