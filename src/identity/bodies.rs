//! What the bodies of several endpoints have in common.

use std::time::{Duration, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::password::Password;

/// A secret on its way to the hasher. It is zeroized on drop and never printed.
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

    /// As received.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// For examples: as long as a real token, but not valid.
pub(super) const ACCESS_TOKEN: &str =
    "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiJ9.eyJzdWIiOiI1ODZjZWIyOCJ9.bm8gc2lnbmF0dXJl";
pub(super) const REFRESH_TOKEN: &str =
    "kmjU0JGqTziv0Wb3mVb2xQAAAAEAAAAAZ1m9n5Qb2l8m1o3T7dLk0v9yQe4cHs6uXaRfJpNwZ1m";
pub(super) const LINK_TOKEN: &str = "Zk3v0Qb2l8m1o3T7dLk0v9yQe4cHs6uXaRfJpNwZ1m9";

/// RFC 3339, in UTC, to the second.
pub fn time(unix_seconds: i64) -> String {
    // humantime writes the years 1970 to 9999 and fails beyond them. No real clock gets there.
    let seconds = u64::try_from(unix_seconds).unwrap_or(0).min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// A date: RFC 3339, in UTC.
pub fn day(unix_seconds: i64) -> String {
    let mut time = time(unix_seconds);
    time.truncate(10);
    time
}
