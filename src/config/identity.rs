//! `[identity]` as it is written: the built-in issuer.

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::file::Text;
use super::value::SecretRef;

/// The name of the built-in issuer among the others.
pub const NAME: &str = "identity";

/// `[identity]`: the built-in issuer. Its accounts, sessions and keys are in the store.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// The `iss` of its tokens, and where people reach it: the URL of the route with `identity =
    /// true`. For example `"https://app.example.com/auth"`.
    #[schemars(with = "Option<String>")]
    pub issuer: Option<Text>,
    /// The `aud` of its tokens. Default `["portcullis"]`.
    #[schemars(with = "Option<Vec<String>>")]
    pub audience: Option<Spanned<Vec<Text>>>,
    /// What new keys sign with: `"ES256"` (default), `"RS256"` or `"EdDSA"`.
    #[schemars(with = "Option<String>")]
    pub algorithm: Option<Text>,
    /// How long an access token is valid, at most `"24h"`. Default `"15m"`.
    #[schemars(with = "Option<String>")]
    pub access_token_ttl: Option<Text>,
    /// How long a session lasts without being used: each refresh begins it anew. Default `"7d"`.
    #[schemars(with = "Option<String>")]
    pub refresh_token_ttl: Option<Text>,
    /// Within it a repeated refresh gets the same successor; after it, reuse ends the session.
    /// Default `"10s"`.
    #[schemars(with = "Option<String>")]
    pub refresh_reuse_interval: Option<Text>,
    /// How long a session lasts at most, however much it is used. Default `"30d"`.
    #[schemars(with = "Option<String>")]
    pub session_lifetime: Option<Text>,
    /// How long a key signs before the next one takes over. Default `"90d"`.
    #[schemars(with = "Option<String>")]
    pub key_rotation: Option<Text>,
    /// Who may make an account: `"closed"` (default), nobody from outside; or `"open"`, everybody.
    #[schemars(with = "Option<String>")]
    pub registration: Option<Text>,
    /// The roles of an account that registers itself. Default `["user"]`.
    #[schemars(with = "Option<Vec<String>>")]
    pub default_roles: Option<Spanned<Vec<Text>>>,
    /// What tokens tell beside id and roles: `"email"`, `"name"`. Default both.
    #[schemars(with = "Option<Vec<String>>")]
    pub token_claims: Option<Spanned<Vec<Text>>>,
    /// Refuse a login before the link that was mailed to its address was followed. Needs `mail`.
    /// Default false.
    pub verify_email: bool,
    /// Let accounts set up an authenticator app as a second factor (TOTP, RFC 6238). Default false.
    pub totp: bool,
    /// Characters of a password, at least 8. Default 8.
    #[schemars(with = "Option<u8>")]
    pub password_min_length: Option<Spanned<i64>>,
    /// How mail leaves. Absent: none does, and nobody can reset a password by mail.
    #[schemars(with = "Option<Mail>")]
    pub mail: Option<Spanned<Mail>>,
    /// How the pages look.
    pub brand: Option<Brand>,
}

/// `[identity.brand]`: whose pages these are.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Brand {
    /// The name above each page, and in mails. Default: the host of `issuer`.
    #[schemars(with = "Option<String>")]
    pub name: Option<Text>,
    /// A PNG or SVG file of at most 256 KiB, shown instead of the name above each page.
    #[schemars(with = "Option<String>")]
    pub logo: Option<Text>,
    /// Of buttons and links: `"#rrggbb"`. Default `"#1f4fb8"`.
    #[schemars(with = "Option<String>")]
    pub colour: Option<Text>,
}

/// `mail = { … }` of `[identity]`: exactly one of `folder` and `smtp`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mail {
    /// A folder that each message is written into, for trying things out.
    #[schemars(with = "Option<String>")]
    pub folder: Option<Text>,
    /// The server that takes messages: `"smtps://mail.example.com"`,
    /// `"smtp://mail.example.com:587"` for STARTTLS, or a reference where the URL holds a password.
    #[schemars(with = "Option<SecretRef>")]
    pub smtp: Option<Spanned<SecretRef>>,
    /// Whom messages are from. For example `"Example <no-reply@example.com>"`. Needed beside
    /// `smtp`.
    #[schemars(with = "Option<String>")]
    pub from: Option<Text>,
    /// Speak to an `smtp://` server on another machine without TLS: links and passwords can then be
    /// read on the way.
    pub insecure_plaintext: bool,
}
