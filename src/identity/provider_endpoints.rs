//! The endpoints of logins at OpenID providers.

use super::endpoints::{Action, Budget, CallerNeeded, Endpoint};
use crate::reason::Reason;

pub(super) static ENDPOINTS: [Endpoint; 3] = [
    Endpoint {
        method: "GET",
        path: "/login/{name}",
        action: Action::Depart,
        caller: CallerNeeded::No,
        budget: None,
        summary: "Log in at an OpenID provider: a redirect there. `return_to` is the path on this site to go to after login; `acr_values` and `max_age` ask for a stronger or more recent login.",
        request: None,
        success: (302, None),
        reasons: &[Reason::RouteNotFound, Reason::KeysUnavailable],
    },
    Endpoint {
        method: "GET",
        path: "/login/{name}/callback",
        action: Action::ComeBack,
        caller: CallerNeeded::No,
        budget: Some(Budget::Callback),
        summary: "Where the provider sends the browser back to: its redirect URI.",
        request: None,
        success: (303, None),
        reasons: &[
            Reason::RouteNotFound,
            Reason::LoginExpired,
            Reason::LoginFailed,
            Reason::LoginNotAllowed,
            Reason::GroupsOverage,
            Reason::StepUpRequired,
            Reason::AccountExists,
            Reason::KeysUnavailable,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/login/{name}/backchannel-logout",
        action: Action::BackchannelLogout,
        caller: CallerNeeded::No,
        budget: None,
        summary: "The provider says that a person has logged out there, with `logout_token` in a form (OpenID Connect Back-Channel Logout).",
        request: None,
        success: (200, None),
        reasons: &[Reason::RouteNotFound, Reason::RequestInvalid, Reason::KeysUnavailable],
    },
];
