//! A request to an endpoint, as the gateway passes it on.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use percent_encoding::percent_decode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::endpoints::Endpoint;
use super::error::{IdentityError, RequestFault};
use super::mount::Mount;
use super::policy::is_this_machine;
use super::session::Device;
use super::texts::{Texts, preferred};
use super::{Email, Policy, pages};
use crate::token::VerifiedToken;

/// A request to an endpoint.
#[derive(Debug)]
pub struct Request {
    /// The endpoint.
    pub endpoint: &'static Endpoint,
    /// The value of `{…}` in its path.
    pub parameter: Option<String>,
    /// The mount of the endpoints.
    pub mount: Mount,
    /// The host that the client asked, in lower case and without a port.
    pub host: String,
    /// The query, as received.
    pub query: Option<String>,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The client's address.
    pub client: IpAddr,
    /// The origin of the request.
    pub origin: Origin,
    /// The caller, identified by the access token. Always set if the endpoint requires a caller.
    pub caller: Option<Arc<VerifiedToken>>,
}

/// The origin of a request, as far as the browser reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// One of our own pages, or a page on this very host.
    Own,
    /// Not reported: not a browser, or an old one.
    Unsaid,
    /// A page of another site.
    Foreign,
}

impl Request {
    /// Parses the body: JSON, or a form whose fields are the members. Ignores unknown members.
    ///
    /// # Errors
    /// The body is neither JSON nor a form, is malformed, or lacks a member.
    pub fn parse_body<T: DeserializeOwned>(&self) -> Result<T, IdentityError> {
        parse_body(&self.headers, &self.body).map_err(IdentityError::Request)
    }

    /// The client's address and user agent.
    pub fn device(&self) -> Device {
        Device::new(self.client, &self.headers)
    }

    /// The texts in the language of its reader.
    pub(super) fn texts(&self, policy: &Policy) -> &'static Texts {
        let accept =
            self.headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        preferred(&policy.languages, accept).texts()
    }

    /// Whether the body is a form, as pages without scripts send it.
    pub fn is_form(&self) -> bool {
        is_form(&self.headers)
    }

    /// Whether the response is for a person: the client accepts a page, or sent a form of ours.
    pub fn is_for_people(&self) -> bool {
        pages::wanted(&self.headers) && (self.endpoint.method == "GET" || self.is_form())
    }

    /// The value of a query parameter that occurs exactly once.
    pub fn parameter_of_query(&self, name: &str) -> Option<String> {
        let query = self.query.as_deref()?;
        let mut values = form_urlencoded::parse(query.as_bytes())
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned());
        let value = values.next();
        if values.next().is_some() { None } else { value }
    }
}

/// The longest body that an endpoint accepts, in bytes.
pub const LONGEST_BODY: u64 = 16 * 1024;

/// Whether a body is a form.
pub fn is_form(headers: &HeaderMap) -> bool {
    matches!(media_type(headers), Some(MediaType::Form))
}

/// Whether a browser says that it sent this from a page of this host on http, and not on its own
/// machine: it does not keep our cookies then, which are `Secure`.
pub fn is_sent_over_http(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let uri = text(header::ORIGIN).and_then(|origin| origin.parse::<http::Uri>().ok());
    uri.is_some_and(|uri| {
        uri.scheme_str() == Some("http")
            && uri.authority().map(http::uri::Authority::as_str) == text(header::HOST)
            && !uri.host().is_some_and(is_this_machine)
    })
}

/// The account named in a body, for limits. Empty for an invalid address; `None` if the body has no
/// address, in which case no endpoint does anything.
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
        // Some endpoints take everything from cookies.
        return serde_json::from_value(Value::Object(Map::new())).map_err(|error| fault(&error));
    }
    match media_type(headers) {
        // serde also takes an array, with the members in order: what only looks for one member by
        // its name, as the limits do for the account, would not see it.
        Some(MediaType::Json) if body.trim_ascii_start().starts_with(b"[") => {
            Err(RequestFault::Members)
        }
        Some(MediaType::Json) => serde_json::from_slice(body).map_err(|error| fault(&error)),
        Some(MediaType::Form) => {
            // Decoding would turn invalid UTF-8 into U+FFFD, so that many passwords became the same
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

/// Describes an invalid body without quoting it: from serde's message it takes only the name of a
/// known member.
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

/// Members that an endpoint cannot do without.
const MEMBERS: [&str; 7] =
    ["email", "password", "current_password", "new_password", "token", "code", "name"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::actions::login::Login;
    use http::HeaderValue;

    #[test]
    fn an_invalid_body_is_reported_without_quoting_it() {
        let fault_of = |content_type: &'static str, body: &str| {
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
            (json, "\r\n [\"a\",\"b\",null,false,null,null]", Some(RequestFault::Members)),
            (json, r#"{"email":"a","password":17}"#, Some(RequestFault::Members)),
            (json, r#"{"email":"a","email":"b","password":"c"}"#, Some(RequestFault::Repeated)),
            (form, "email=a&email=b&password=c", Some(RequestFault::Repeated)),
            (form, "email=a&password=%EF%BF%BD+%c3%BC\u{fc}%", None),
            (form, "email=a&password=plum+orbit+%ff+9", Some(RequestFault::Encoding)),
            (form, "email=a&password=b%c3&other=%bc", Some(RequestFault::Encoding)),
            (form, "email=a&password=b&%ff=c", Some(RequestFault::Encoding)),
            ("text/plain", "email=a", Some(RequestFault::ContentType)),
        ] {
            assert_eq!(fault_of(content_type, body), fault, "{body}");
        }
    }
}
