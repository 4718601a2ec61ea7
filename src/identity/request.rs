//! A request to an endpoint, as the gateway hands it over.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};
use percent_encoding::percent_decode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::endpoints::Endpoint;
use super::error::{IdentityError, RequestFault};
use super::mount::Mount;
use super::session::{Device, LONGEST_USER_AGENT};
use super::{Email, pages};
use crate::token::VerifiedToken;

/// A request to an endpoint.
#[derive(Debug)]
pub struct Request {
    /// The endpoint.
    pub endpoint: &'static Endpoint,
    /// What stands for `{…}` in its path.
    pub parameter: Option<String>,
    /// Where the endpoints begin.
    pub mount: Mount,
    /// The query, as received.
    pub query: Option<String>,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The client's address.
    pub client: IpAddr,
    /// Where it was made.
    pub origin: Origin,
    /// Who calls, by their access token. There where the endpoint needs a caller.
    pub caller: Option<Arc<VerifiedToken>>,
}

/// Where a request was made, as far as a browser says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By our own pages, or by a page of this very host.
    Own,
    /// Nothing says where: no browser, or an old one.
    Unsaid,
    /// By somebody else's page.
    Foreign,
}

impl Request {
    /// Reads the body: JSON, or a form whose fields are its members. Members that are not known are
    /// ignored.
    ///
    /// # Errors
    /// [`IdentityError::Request`]
    pub fn parse_body<T: DeserializeOwned>(&self) -> Result<T, IdentityError> {
        parse_body(&self.headers, &self.body).map_err(IdentityError::Request)
    }

    /// From where and with what it comes.
    pub fn device(&self) -> Device {
        let user_agent = self
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        Device {
            address: self.client,
            user_agent: user_agent.chars().take(LONGEST_USER_AGENT).collect(),
        }
    }

    /// Whether the body is a form, as pages without scripts send it.
    pub fn is_form(&self) -> bool {
        is_form(&self.headers)
    }

    /// Whether the answer is for a person: they ask for a page, or sent a form of ours.
    pub fn is_for_people(&self) -> bool {
        pages::wanted(&self.headers) && (self.endpoint.method == "GET" || self.is_form())
    }

    /// The only value of a parameter of the query.
    pub fn parameter_of_query(&self, name: &str) -> Option<String> {
        let query = self.query.as_deref()?;
        let mut values = form_urlencoded::parse(query.as_bytes())
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned());
        let value = values.next();
        if values.next().is_some() { None } else { value }
    }
}

/// The longest body that an endpoint reads, in bytes.
pub const LONGEST_BODY: u64 = 16 * 1024;

/// Whether a body is a form.
pub fn is_form(headers: &HeaderMap) -> bool {
    matches!(media_type(headers), Some(MediaType::Form))
}

/// The account that a body names, for limits: empty for an address that no account can have, `None`
/// where the body has no address. Without one, no endpoint does anything.
pub fn account_named(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        email: String,
    }
    let named = parse_body::<Named>(headers, body).ok()?;
    Some(
        Email::parse(&named.email)
            .map_or_else(|_| String::new(), |email| email.as_str().to_owned()),
    )
}

enum MediaType {
    Json,
    Form,
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let written = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match written.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/json" => Some(MediaType::Json),
        "application/x-www-form-urlencoded" => Some(MediaType::Form),
        _ => None,
    }
}

fn parse_body<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, RequestFault> {
    if body.is_empty() {
        // Of some endpoints everything stands in cookies.
        return serde_json::from_value(Value::Object(Map::new())).map_err(|error| fault(&error));
    }
    match media_type(headers) {
        Some(MediaType::Json) => serde_json::from_slice(body).map_err(|error| fault(&error)),
        Some(MediaType::Form) => {
            // What is no UTF-8 would be read as U+FFFD, whatever it was: many passwords would be
            // one.
            if percent_decode(body).decode_utf8().is_err() {
                return Err(RequestFault::Encoding);
            }
            let mut members = Map::new();
            for (name, value) in form_urlencoded::parse(body) {
                if members.insert(name.into_owned(), Value::String(value.into_owned())).is_some() {
                    return Err(RequestFault::Repeated);
                }
            }
            serde_json::from_value(Value::Object(members)).map_err(|error| fault(&error))
        }
        None => Err(RequestFault::ContentType),
    }
}

/// What is wrong with a body, without a word of it: of serde's message only the name of a member of
/// ours is taken.
fn fault(error: &serde_json::Error) -> RequestFault {
    if !error.is_data() {
        return RequestFault::Json;
    }
    let message = error.to_string();
    let named = |what: &str| {
        MEMBERS.into_iter().find(|member| message.starts_with(&format!("{what} field `{member}`")))
    };
    match (named("missing"), named("duplicate")) {
        (Some(member), _) => RequestFault::Missing(member),
        (None, Some(_)) => RequestFault::Repeated,
        (None, None) => RequestFault::Members,
    }
}

/// Members without which an endpoint can do nothing.
const MEMBERS: [&str; 6] =
    ["email", "password", "current_password", "new_password", "token", "code"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::actions::login::Login;
    use http::HeaderValue;

    #[test]
    fn a_body_that_cannot_be_read_is_told_without_its_words() {
        let told = |content_type: &'static str, body: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            parse_body::<Login>(&headers, body.as_bytes()).err()
        };
        let json = "application/json; charset=utf-8";
        let form = "application/x-www-form-urlencoded";
        for (content_type, body, fault) in [
            (json, r#"{"email":"a","password":"b","other":[1]}"#, None),
            (form, "email=a&password=b&other=1", None),
            (json, "", Some(RequestFault::Missing("email"))),
            (json, r#"{"email":"a"}"#, Some(RequestFault::Missing("password"))),
            (form, "email=a", Some(RequestFault::Missing("password"))),
            (json, "{", Some(RequestFault::Json)),
            (json, r#"{"email":"a","password":"b"} x"#, Some(RequestFault::Json)),
            (json, "[]", Some(RequestFault::Members)),
            (json, r#"{"email":"a","password":17}"#, Some(RequestFault::Members)),
            (json, r#"{"email":"a","email":"b","password":"c"}"#, Some(RequestFault::Repeated)),
            (form, "email=a&email=b&password=c", Some(RequestFault::Repeated)),
            (form, "email=a&password=%EF%BF%BD+%c3%BC\u{fc}%", None),
            (form, "email=a&password=plum+orbit+%ff+9", Some(RequestFault::Encoding)),
            (form, "email=a&password=b%c3&other=%bc", Some(RequestFault::Encoding)),
            (form, "email=a&password=b&%ff=c", Some(RequestFault::Encoding)),
            ("text/plain", "email=a", Some(RequestFault::ContentType)),
        ] {
            assert_eq!(told(content_type, body), fault, "{body}");
        }
    }
}
