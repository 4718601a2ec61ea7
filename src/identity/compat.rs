//! The names of members in bodies: those of the reference, or those that applications with Express
//! usually have (`compat = "express"`). Only names change, never what an endpoint does; the one
//! exception is that a registration logs in.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::reason::Reason;

/// Whose names bodies have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    /// `access_token`, `refresh_token`, and refusals as in RFC 9457.
    None,
    /// `accessToken`, `refreshToken`, and refusals as `{error, reason}`.
    Express,
}

/// The member with the refresh token is missing from a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingMember {
    expected: &'static str,
    /// The member that other configurations read, if the body has it.
    got: Option<&'static str>,
}

/// The body of a login or refresh, and of a registration.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExpressTokens<'a> {
    pub(super) access_token: &'a str,
    pub(super) refresh_token: &'a str,
}

impl Compat {
    /// The refresh token of a body, from the member that is read. `snake` and `camel` are the
    /// values of `refresh_token` and `refreshToken`.
    pub(super) fn refresh_token<'b>(
        self,
        snake: Option<&'b str>,
        camel: Option<&'b Value>,
    ) -> Result<&'b str, MissingMember> {
        const NAMES: [&str; 2] = ["refresh_token", "refreshToken"];
        let [snake_name, camel_name] = NAMES;
        let (read, expected, got) = match self {
            Self::None => (snake, snake_name, camel.map(|_| camel_name)),
            Self::Express => (camel.and_then(Value::as_str), camel_name, snake.map(|_| snake_name)),
        };
        read.ok_or(MissingMember { expected, got })
    }
}

impl std::fmt::Display for MissingMember {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { expected, got } = self;
        match got {
            None => write!(formatter, "The body has no member `{expected}`."),
            Some(got) => {
                write!(
                    formatter,
                    "Expected the member `{expected}`, but the body contains `{got}`."
                )
            }
        }
    }
}

/// The body of a refusal with the names of Express. `detail`: a sentence of ours about the body.
pub fn express_error(reason: Reason, detail: Option<&str>, retry_after: Option<u64>) -> Bytes {
    let error = match (detail, retry_after) {
        (Some(detail), _) => detail.to_owned(),
        (None, Some(1)) => "Too many requests. Try again in a second.".to_owned(),
        (None, Some(seconds)) => format!("Too many requests. Try again in {seconds} seconds."),
        (None, None) => sentence(reason).to_owned(),
    };
    Bytes::from(format!("{}\n", json!({ "error": error, "reason": reason.as_str() })))
}

/// What a program can show to the person who uses it.
fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::LoginFailed => "The e-mail address, the password or the code is wrong.",
        Reason::CodeRequired => "Enter the code that your authenticator app shows.",
        Reason::EmailUnverified => "The e-mail address is not confirmed yet.",
        Reason::AccountExists => "This e-mail address already has an account.",
        Reason::RegistrationClosed => "Registration is closed.",
        Reason::PasswordRejected => "This password is too easy to guess.",
        Reason::LinkInvalid => "This link was already used or has expired.",
        Reason::OriginForeign => "The request came from another site.",
        Reason::BodyTooLarge => "The body is too large.",
        Reason::RouteNotFound => "Not found.",
        Reason::MethodNotAllowed => "This method is not allowed here.",
        other => match other.status().as_u16() {
            401 => "Log in again.",
            403 => "Access denied.",
            500.. => "The service is temporarily unavailable. Try again in a moment.",
            _ => "The request is not valid.",
        },
    }
}
