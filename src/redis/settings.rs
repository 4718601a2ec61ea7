//! `[store] redis`: where the server is.

use std::fmt;

use zeroize::Zeroizing;

/// The server, and how to log in to it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSettings {
    url: Zeroizing<String>,
    /// Host and port, for messages.
    address: String,
    holds_sessions: bool,
}

/// Why a URL does not name a server, in words for the operator. It contains no part of the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl RedisSettings {
    /// Reads a URL: `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, or `rediss://` for TLS.
    ///
    /// # Errors
    /// It is something else, or this program was built without support for Redis.
    pub fn parse(url: &str) -> Result<Self, InvalidUrl> {
        if !url.starts_with("redis://") && !url.starts_with("rediss://") {
            return Err(InvalidUrl(
                "the URL of Redis starts with `redis://` or `rediss://`".into(),
            ));
        }
        if url.contains('#') {
            return Err(InvalidUrl("the URL of Redis has no part after `#`".into()));
        }
        let address = address(url)?;
        Ok(Self { url: Zeroizing::new(url.to_owned()), address, holds_sessions: false })
    }

    /// The same server, in which the sessions of the built-in issuer are, or not.
    #[must_use]
    pub fn with_sessions(self, holds_sessions: bool) -> Self {
        Self { holds_sessions, ..self }
    }

    /// Whether the sessions of the built-in issuer are in it.
    pub fn holds_sessions(&self) -> bool {
        self.holds_sessions
    }

    /// Host and port, without the password.
    pub fn address(&self) -> &str {
        &self.address
    }

    #[cfg(feature = "redis")]
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(feature = "redis")]
fn address(url: &str) -> Result<String, InvalidUrl> {
    use redis::IntoConnectionInfo;
    let read = url.into_connection_info();
    let read = read.map_err(|error| InvalidUrl(format!("the URL of Redis is invalid: {error}")))?;
    Ok(read.addr().to_string())
}

#[cfg(not(feature = "redis"))]
fn address(_: &str) -> Result<String, InvalidUrl> {
    Err(InvalidUrl(
        "this portcullis was built without support for Redis (cargo feature `redis`)".into(),
    ))
}

#[cfg(test)]
#[cfg(feature = "redis")]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_server_and_hides_its_password() {
        for (url, address) in [
            ("redis://127.0.0.1", "127.0.0.1:6379"),
            ("redis://:hunter2@redis.example:6380/3", "redis.example:6380"),
            ("rediss://gateway:hunter2@redis.example", "redis.example:6379"),
        ] {
            let settings = RedisSettings::parse(url).unwrap();
            assert_eq!(settings.address(), address);
            assert!(!format!("{settings:?}").contains("hunter2"));
        }
        for url in [
            "",
            "127.0.0.1:6379",
            "http://127.0.0.1",
            "unix:///run/redis.sock",
            "redis://:hunter2@",
            "redis://:hunter2@redis.example/three",
            "rediss://:hunter2@redis.example/#insecure",
        ] {
            let error = RedisSettings::parse(url).unwrap_err().to_string();
            assert!(!error.is_empty() && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
