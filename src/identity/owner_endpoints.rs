//! The endpoints with which people change, export and delete their own account, and manage its
//! personal access tokens.

use super::actions::{account, personal_token, profile};
use super::endpoints::{Action, Budget, CallerNeeded, Endpoint, schema};
use crate::reason::Reason;

/// These endpoints.
pub(super) static ENDPOINTS: [Endpoint; 7] = [
    Endpoint {
        method: "PATCH",
        path: "/me",
        action: Action::ChangeAccount,
        caller: CallerNeeded::Yes,
        budget: Some(Budget::Mail),
        summary: "Change the name, or request another address, which counts once the link that is mailed to it was used.",
        request: Some(schema::<profile::ChangeAccount>),
        success: (200, Some(schema::<account::Account>)),
        reasons: &[Reason::RequestInvalid, Reason::Overloaded],
    },
    Endpoint {
        method: "DELETE",
        path: "/me",
        action: Action::DeleteAccount,
        caller: CallerNeeded::Yes,
        budget: Some(Budget::CurrentPassword),
        summary: "Delete the account. This ends its sessions and cannot be undone.",
        request: Some(schema::<profile::DeleteAccount>),
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
        path: "/me/export",
        action: Action::Export,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "Get everything that is stored about the account, except secrets, as a file.",
        request: None,
        success: (200, Some(schema::<profile::Export>)),
        reasons: &[],
    },
    Endpoint {
        method: "POST",
        path: "/email/change",
        action: Action::ChangeEmail,
        caller: CallerNeeded::No,
        budget: Some(Budget::Link),
        summary: "Change the address of an account with the token of the mailed link, and the password of the account.",
        request: Some(schema::<profile::ChangeEmail>),
        success: (204, None),
        reasons: &[
            Reason::RequestInvalid,
            Reason::LinkInvalid,
            Reason::LoginFailed,
            Reason::Overloaded,
        ],
    },
    Endpoint {
        method: "GET",
        path: "/tokens",
        action: Action::Tokens,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "List the personal access tokens of the caller.",
        request: None,
        success: (200, Some(schema::<personal_token::TokenList>)),
        reasons: &[],
    },
    Endpoint {
        method: "POST",
        path: "/tokens",
        action: Action::CreateToken,
        caller: CallerNeeded::Yes,
        budget: Some(Budget::Token),
        summary: "Make a personal access token. The response is the only one that holds it.",
        request: Some(schema::<personal_token::NewPersonalToken>),
        success: (201, Some(schema::<personal_token::CreatedPersonalToken>)),
        reasons: &[Reason::RequestInvalid, Reason::Overloaded],
    },
    Endpoint {
        method: "DELETE",
        path: "/tokens/{id}",
        action: Action::RevokeToken,
        caller: CallerNeeded::Yes,
        budget: None,
        summary: "Revoke a personal access token of the caller.",
        request: None,
        success: (204, None),
        reasons: &[Reason::RouteNotFound],
    },
];
