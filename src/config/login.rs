//! `[identity.login.NAME]` as it is written: an OpenID provider that people log in at.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::file::Text;
use super::value::{ClaimName, Scalar, SecretRef};

/// `[identity.login.NAME]`: an OpenID provider that people log in at. The login ends in a session of
/// the built-in issuer.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Login {
    /// The text on the button. Default: the name of the section.
    #[schemars(with = "Option<String>")]
    pub name: Option<Text>,
    /// The `iss` of its tokens, byte for byte. Its metadata is at this URL (OpenID Connect
    /// Discovery).
    #[schemars(with = "Option<String>")]
    pub issuer: Option<Text>,
    /// The id that the provider gave this gateway.
    #[schemars(with = "Option<String>")]
    pub client_id: Option<Text>,
    /// The secret that the provider gave this gateway (`client_secret_basic`). Exactly one of this
    /// and `client_key`.
    #[schemars(with = "Option<SecretRef>")]
    pub client_secret: Option<Spanned<SecretRef>>,
    /// A private key in PEM whose public key the provider knows (`private_key_jwt`), instead of
    /// `client_secret`.
    #[schemars(with = "Option<SecretRef>")]
    pub client_key: Option<Spanned<SecretRef>>,
    /// Permit `client_secret` or `client_key` in this file itself. Default false.
    pub insecure_inline_secret: bool,
    /// What the provider is asked for. Default `["openid", "email", "profile"]`.
    #[schemars(with = "Option<Vec<String>>")]
    pub scopes: Option<Spanned<Vec<Text>>>,
    /// More parameters of the request that leads to the provider, such as `{ access_type =
    /// "offline" }`. An empty value removes one.
    #[schemars(with = "BTreeMap<String, String>")]
    pub parameters: BTreeMap<Text, Text>,
    /// The claim with the roles, in the ID token or else in userinfo. Absent: `default_roles` at the
    /// first login, and what `portcullis user` sets later.
    #[schemars(with = "Option<ClaimName>")]
    pub roles: Option<Spanned<ClaimName>>,
    /// A value of that claim = the roles that it stands for. Absent: the values are the roles.
    #[schemars(with = "Option<BTreeMap<String, Vec<String>>>")]
    pub role_map: Option<BTreeMap<Text, Spanned<Vec<Text>>>>,
    /// The roles of everyone who logs in here. Default `[]`.
    #[schemars(with = "Option<Vec<String>>")]
    pub default_roles: Option<Spanned<Vec<Text>>>,
    /// Claim = the accepted values, of which the claim must have one. Nobody gets in without. A
    /// dotted name is a path.
    #[schemars(with = "Option<BTreeMap<String, Vec<Scalar>>>")]
    pub require: Option<Spanned<BTreeMap<Text, Spanned<Vec<Scalar>>>>>,
    /// What happens if an account here already has the person's address: `"never"` (default), the
    /// login is refused; or `"verified_email"`, the login joins that account if the provider says
    /// that it verified the address and the account has proved it.
    #[schemars(with = "Option<String>")]
    pub link: Option<Text>,
    /// How often the provider is asked whether the person may still log in, and for their roles. It
    /// needs a refresh token of the provider. Default `"15m"`.
    #[schemars(with = "Option<String>")]
    pub recheck: Option<Text>,
    /// A PEM file with the certificates that are trusted instead of the system's.
    #[schemars(with = "Option<String>")]
    pub ca: Option<Text>,
}
