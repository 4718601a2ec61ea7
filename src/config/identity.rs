//! `[identity]` as it is written: the built-in issuer.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::file::Text;
use super::login::Login;
use super::value::SecretRef;

/// The name of the built-in issuer in the list of issuers.
pub const NAME: &str = "identity";

/// `[identity]`: the built-in issuer. Its accounts, sessions and keys are in the store.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// The `iss` of its tokens and the address that people use: the URL of the route with `identity
    /// = true`. For example `"https://app.example.com/auth"`.
    #[schemars(with = "Option<String>")]
    pub issuer: Option<Text>,
    /// The `aud` of its tokens. Default `["portcullis"]`.
    #[schemars(with = "Option<Vec<String>>")]
    pub audience: Option<Spanned<Vec<Text>>>,
    /// The algorithm of new signing keys: `"ES256"` (default), `"RS256"` or `"EdDSA"`.
    #[schemars(with = "Option<String>")]
    pub algorithm: Option<Text>,
    /// The lifetime of access tokens, at most `"24h"`. Default `"15m"`.
    #[schemars(with = "Option<String>")]
    pub access_token_ttl: Option<Text>,
    /// The idle lifetime of a session: each refresh starts it again. Default `"7d"`.
    #[schemars(with = "Option<String>")]
    pub refresh_token_ttl: Option<Text>,
    /// Within this time, a repeated refresh gets the same successor; after it, reuse ends the
    /// session. Default `"10s"`.
    #[schemars(with = "Option<String>")]
    pub refresh_reuse_interval: Option<Text>,
    /// The maximum lifetime of a session, however much it is used. Default `"30d"`.
    #[schemars(with = "Option<String>")]
    pub session_lifetime: Option<Text>,
    /// The domain whose hosts share one login, such as `"example.com"`: the cookies are set for it.
    /// It must contain the host of `issuer`. Default: none; a login is for one host.
    #[schemars(with = "Option<String>")]
    pub cookie_domain: Option<Text>,
    /// How long a key signs before the next one takes over. Default `"90d"`.
    #[schemars(with = "Option<String>")]
    pub key_rotation: Option<Text>,
    /// Who may register: `"closed"` (default), nobody; or `"open"`, everybody.
    #[schemars(with = "Option<String>")]
    pub registration: Option<Text>,
    /// The roles of an account that registers itself. Default `["user"]`.
    #[schemars(with = "Option<Vec<String>>")]
    pub default_roles: Option<Spanned<Vec<Text>>>,
    /// What tokens contain in addition to id and roles: `"email"`, `"name"`. Default both.
    #[schemars(with = "Option<Vec<String>>")]
    pub token_claims: Option<Spanned<Vec<Text>>>,
    /// Refuse logins until the user has opened the link that was mailed to the account's address.
    /// Needs `mail`. Default false.
    pub verify_email: bool,
    /// Let accounts set up an authenticator app as a second factor (TOTP, RFC 6238). Default false.
    pub totp: bool,
    /// The minimum length of a password in characters, at least 8. Default 8.
    #[schemars(with = "Option<u8>")]
    pub password_min_length: Option<Spanned<i64>>,
    /// The languages of pages and mails: `"en"`, `"de"`. `Accept-Language` chooses; the first is the
    /// default. Default `["en", "de"]`.
    #[schemars(with = "Option<Vec<String>>")]
    pub languages: Option<Spanned<Vec<Text>>>,
    /// The names of members in bodies: `"none"` (default), those of the reference; or `"express"`, for
    /// clients of an application with Express: `accessToken`, `refreshToken`, and refusals as `{error, reason}`.
    #[schemars(with = "Option<String>")]
    pub compat: Option<Text>,
    /// Let people log in with a password. false: only at the providers of `[identity.login.NAME]`;
    /// with one of them, the login page leads straight there. Default true.
    #[schemars(with = "Option<bool>")]
    pub password_login: Option<Spanned<bool>>,
    /// The OpenID providers that people log in at, by a name of your choice.
    #[schemars(with = "BTreeMap<String, Login>")]
    pub login: BTreeMap<Text, Login>,
    /// How mail is sent. Absent: no mail is sent, and passwords cannot be reset by mail.
    #[schemars(with = "Option<Mail>")]
    pub mail: Option<Spanned<Mail>>,
    /// The appearance of the pages.
    pub brand: Option<Brand>,
}

/// `[identity.brand]`: the appearance of the pages.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Brand {
    /// The name above each page, and in mails. Default: the host of `issuer`.
    #[schemars(with = "Option<String>")]
    pub name: Option<Text>,
    /// A PNG or SVG file of at most 256 KiB, shown instead of the name above each page.
    #[schemars(with = "Option<String>")]
    pub logo: Option<Text>,
    /// The colour of buttons and links: `"#rrggbb"`. Default `"#1f4fb8"`.
    #[schemars(with = "Option<String>")]
    pub colour: Option<Text>,
}

/// `mail = { … }` of `[identity]`: exactly one of `folder` and `smtp`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mail {
    /// A folder to write each message to, for testing.
    #[schemars(with = "Option<String>")]
    pub folder: Option<Text>,
    /// The mail server: `"smtps://mail.example.com"`, `"smtp://mail.example.com:587"` for STARTTLS,
    /// or a reference if the URL contains a password.
    #[schemars(with = "Option<SecretRef>")]
    pub smtp: Option<Spanned<SecretRef>>,
    /// The sender. For example `"Example <no-reply@example.com>"`. Required with `smtp`.
    #[schemars(with = "Option<String>")]
    pub from: Option<Text>,
    /// Connect to an `smtp://` server on another machine without TLS: links and passwords can then
    /// be read in transit.
    pub insecure_plaintext: bool,
}
