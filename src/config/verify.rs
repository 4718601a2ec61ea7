//! The mirror of `[verify]`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::file::Text;

/// `[verify]`: the listener that other proxies ask before they forward a request to an application
/// (forward authentication).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// Address and port. Default `"127.0.0.1:9902"`. Read at start.
    #[schemars(with = "Option<String>")]
    pub listen: Option<Text>,
    /// CIDR blocks of the proxies that may ask. Required: there is no default.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<Text>,
}
