//! What endpoints read and answer.

use std::time::{Duration, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::password::Password;
use super::second_factor;
use crate::store::{AccountRow, SessionRow};

/// A secret on its way into the hasher: it leaves no copy behind, and is never shown.
#[derive(JsonSchema)]
#[schemars(transparent, inline, description = "")]
pub struct Secret(#[schemars(with = "String")] Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl Secret {
    /// As a password.
    pub fn password(&self) -> Password {
        Password::new(self.0.to_string())
    }

    /// As it was sent.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// An account to be made.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "email": "ann@example.com", "password": "plum orbit tenant 71", "name": "Ann Ott" }))]
pub struct Registering {
    /// The address.
    #[schemars(extend("format" = "email"))]
    pub email: String,
    /// The password.
    pub password: Secret,
    /// What to call its owner.
    pub name: Option<String>,
}

/// Who logs in.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "email": "ann@example.com", "password": "plum orbit tenant 71" }))]
pub struct Login {
    /// The address.
    #[schemars(extend("format" = "email"))]
    pub email: String,
    /// The password.
    pub password: Secret,
    /// Of the authenticator app, or a recovery code. Needed where the account has a second factor.
    pub code: Option<Secret>,
    /// true: the tokens are set as cookies, and are not in the body.
    #[serde(default, deserialize_with = "flag")]
    pub cookie: bool,
    /// Where a page leads afterwards: a path of this site.
    pub return_to: Option<String>,
}

/// The session that is to go on.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "refresh_token": REFRESH_TOKEN }))]
pub struct Refresh {
    /// The token. Absent: that of the cookie.
    pub refresh_token: Option<String>,
}

/// The session that is to end.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "refresh_token": REFRESH_TOKEN }))]
pub struct Logout {
    /// A token of the session. Absent: that of the access token, or of the cookie.
    pub refresh_token: Option<String>,
}

/// A password in place of the current one.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "current_password": "plum orbit tenant 71", "new_password": "cactus ferry lamp 12" }))]
pub struct ChangePassword {
    /// The password so far.
    pub current_password: Secret,
    /// The password from now on.
    pub new_password: Secret,
}

/// Whom a mail is for.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "email": "ann@example.com" }))]
pub struct Address {
    /// The address. Whatever it is, the answer is the same.
    pub email: String,
}

/// A password in place of one that was forgotten.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "token": LINK_TOKEN, "password": "cactus ferry lamp 12" }))]
pub struct ResetPassword {
    /// Of the mailed link.
    pub token: Secret,
    /// The password from now on.
    pub password: Secret,
}

/// An address that is confirmed: with exactly one of `password` and `new_password`.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "token": LINK_TOKEN, "password": "plum orbit tenant 71" }))]
pub struct VerifyEmail {
    /// Of the mailed link.
    pub token: Secret,
    /// The password that the account has.
    pub password: Option<Secret>,
    /// The password from now on, in place of the one that the account has.
    pub new_password: Option<Secret>,
}

/// The beginning of two-factor login.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "current_password": "plum orbit tenant 71" }))]
pub struct BeginTotp {
    /// The password of the account.
    pub current_password: Secret,
}

/// The proof that the authenticator app has the secret.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "code": "492039" }))]
pub struct ConfirmTotp {
    /// Of the authenticator app.
    pub code: Secret,
}

/// The end of two-factor login.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "current_password": "plum orbit tenant 71", "code": "492039" }))]
pub struct RemoveTotp {
    /// The password of the account.
    pub current_password: Secret,
    /// Of the authenticator app, or a recovery code.
    pub code: Option<Secret>,
}

/// What an authenticator app needs.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(example = json!({ "secret": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "qr": "<svg xmlns=\"http://www.w3.org/2000/svg\">…</svg>",
    "uri": "otpauth://totp/Example:ann%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Example" }))]
pub struct Enrolment {
    /// To be typed: base32.
    pub secret: String,
    /// To be opened: `otpauth://totp/…`.
    pub uri: String,
    /// To be scanned: an SVG image.
    pub qr: String,
}

impl Enrolment {
    /// What is told of it.
    pub fn of(enrolment: &second_factor::Enrolment) -> Self {
        Self {
            secret: enrolment.secret.to_string(),
            uri: enrolment.uri.to_string(),
            qr: enrolment.qr.to_string(),
        }
    }
}

/// Codes for the day when the app is lost.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(example = json!({ "recovery_codes": ["K7QX-2MVD-5TLN-WR3A", "P4HB-ZC6E-9SYU-GJ2F"] }))]
pub struct RecoveryCodes {
    /// Each is good for one login.
    pub recovery_codes: Vec<String>,
}

/// The tokens of a session. An answer that sets cookies has them there, and `expires_in` alone.
#[derive(Serialize, JsonSchema)]
#[schemars(
    example = json!({ "access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 900, "refresh_token": REFRESH_TOKEN }),
    example = json!({ "expires_in": 900 })
)]
pub struct Tokens {
    /// For `Authorization: Bearer`.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// `Bearer`
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_type: Option<&'static str>,
    /// Seconds until the access token expires.
    pub expires_in: u64,
    /// For `POST /refresh`.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
}

/// An account, as its owner sees it.
#[derive(Serialize, JsonSchema)]
#[schemars(example = json!({ "id": "586ceb28-2a0e-4afb-a580-634b137a7c02", "email": "ann@example.com", "email_verified": true, "name": "Ann Ott",
    "roles": ["user"], "totp": false, "recovery_codes_left": null, "created_at": "2026-03-14T09:26:53Z", "last_login_at": null }))]
pub struct Account {
    /// The `sub` of its tokens.
    pub id: String,
    /// The address.
    #[schemars(extend("format" = "email"))]
    pub email: String,
    /// Whether the address was shown to be its owner's.
    pub email_verified: bool,
    /// What to call its owner.
    pub name: Option<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// Whether its logins ask for a code.
    pub totp: bool,
    /// Recovery codes that were not used yet. null: its logins ask for no code.
    pub recovery_codes_left: Option<i64>,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub created_at: String,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_login_at: Option<String>,
}

impl Account {
    /// What its owner may see of a row, and how many recovery codes are left of its second factor,
    /// where it has one.
    pub fn of(row: &AccountRow, recovery_codes_left: Option<i64>) -> Self {
        Self {
            id: row.id.clone(),
            email: row.email.clone(),
            email_verified: row.email_verified == 1,
            name: row.name.clone(),
            roles: row.roles.split_whitespace().map(str::to_owned).collect(),
            totp: recovery_codes_left.is_some(),
            recovery_codes_left,
            created_at: time(row.created_at),
            last_login_at: row.last_login_at.map(time),
        }
    }
}

/// Where the caller is logged in.
#[derive(Serialize, JsonSchema)]
#[schemars(example = json!({ "sessions": [session_example()] }))]
pub struct SessionList {
    /// The one used last in front.
    pub sessions: Vec<Session>,
}

/// Where somebody is logged in.
#[derive(Serialize, JsonSchema)]
#[schemars(example = session_example())]
pub struct Session {
    /// The `sid` of its tokens.
    pub sid: String,
    /// From where it was used last.
    pub address: String,
    /// With what it was used last.
    pub user_agent: String,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub created_at: String,
    /// RFC 3339: the login, or the last refresh.
    #[schemars(extend("format" = "date-time"))]
    pub last_used_at: String,
    /// Whether it is that of the request.
    pub current: bool,
}

impl Session {
    /// A row, seen from the session `current`.
    pub fn of(row: SessionRow, current: Option<&str>) -> Self {
        Self {
            current: current == Some(row.id.as_str()),
            sid: row.id,
            address: row.address,
            user_agent: row.user_agent,
            created_at: time(row.created_at),
            last_used_at: time(row.rotated_at / 1000),
        }
    }
}

fn session_example() -> Value {
    json!({
        "sid": "9268d4d0-91aa-4f38-af37-d84754059019",
        "address": "203.0.113.7",
        "user_agent": "curl/8.14.1",
        "created_at": "2026-03-14T09:26:53Z",
        "last_used_at": "2026-03-14T11:02:10Z",
        "current": true,
    })
}

/// Of the examples: as long as real ones, and good for nothing.
const ACCESS_TOKEN: &str =
    "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiJ9.eyJzdWIiOiI1ODZjZWIyOCJ9.bm8gc2lnbmF0dXJl";
const REFRESH_TOKEN: &str =
    "kmjU0JGqTziv0Wb3mVb2xQAAAAEAAAAAZ1m9n5Qb2l8m1o3T7dLk0v9yQe4cHs6uXaRfJpNwZ1m";
const LINK_TOKEN: &str = "Zk3v0Qb2l8m1o3T7dLk0v9yQe4cHs6uXaRfJpNwZ1m9";

/// RFC 3339, in UTC, to the second.
pub fn time(unix_seconds: i64) -> String {
    // humantime writes the years 1970 to 9999 and fails beyond: no clock stands there.
    let seconds = u64::try_from(unix_seconds).unwrap_or(0).min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// `true` in JSON, `true` or `on` in a form.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Text(String),
    }
    match Flag::deserialize(deserializer)? {
        Flag::Bool(flag) => Ok(flag),
        Flag::Text(text) if text == "true" || text == "on" => Ok(true),
        Flag::Text(text) if text == "false" || text.is_empty() => Ok(false),
        Flag::Text(_) => Err(serde::de::Error::custom("this is neither true nor false")),
    }
}
