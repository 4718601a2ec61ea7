//! `set_headers` and `response_headers` of a route.

use http::{HeaderName, HeaderValue};
use toml::Spanned;

use super::Compiler;
use super::issuers::Inline;
use super::routes::RESERVED;
use crate::config::Problem;
use crate::config::file::{Route as Written, Text};
use crate::config::value::TextOrSecret;
use crate::gateway::constant_headers::ConstantHeaders;
use crate::gateway::headers::{
    FoldedNames, HOP_BY_HOP, MAX_NAME, METHOD_OVERRIDES, OwnedNames, same_folded,
};

impl Compiler<'_> {
    /// The fields that the application receives. [`Self::refuse_reserved_headers`] judges their
    /// names when the identity headers of every route are known.
    pub(super) fn set_headers(&mut self, written: &Written) -> ConstantHeaders {
        let mut fields = Vec::new();
        for (name, value) in written.set_headers.iter().flat_map(Spanned::get_ref) {
            let value = match value.get_ref() {
                TextOrSecret::Text(text) => self.header_value(&Spanned::new(value.span(), text)),
                TextOrSecret::Secret(secret) => {
                    let secret = Spanned::new(value.span(), secret.clone());
                    self.secret_header_value(&secret)
                }
            };
            self.add_header(&mut fields, name, value);
        }
        ConstantHeaders::new(fields)
    }

    /// The fields that the client receives.
    pub(super) fn response_headers(&mut self, written: &Written) -> ConstantHeaders {
        let mut fields = Vec::new();
        for (name, value) in written.response_headers.iter().flat_map(Spanned::get_ref) {
            let value = self.header_value(&Spanned::new(value.span(), value.get_ref()));
            let is_reserved = HOP_BY_HOP
                .into_iter()
                .chain(RESERVED_IN_RESPONSES)
                .any(|reserved| same_folded(reserved, name.get_ref()));
            if is_reserved {
                let message = format!(
                    "`{}` depends on the response and cannot be constant",
                    name.get_ref().escape_debug()
                );
                self.error(
                    Problem::error(name.span(), message).help(
                        "remove it; the application, or the gateway, sets it where it applies",
                    ),
                );
                continue;
            }
            self.add_header(&mut fields, name, value);
        }
        ConstantHeaders::new(fields)
    }

    fn add_header(
        &mut self,
        fields: &mut Vec<(HeaderName, HeaderValue)>,
        name: &Text,
        value: Option<HeaderValue>,
    ) {
        let Ok(parsed) = HeaderName::from_bytes(name.get_ref().as_bytes()) else {
            self.error(
                Problem::error(name.span(), "not a valid header name")
                    .help("use letters, digits and `-`, such as `X-Script-Name`"),
            );
            return;
        };
        if parsed.as_str().len() > MAX_NAME {
            self.error(Problem::error(
                name.span(),
                format!(
                    "the name of a header that the gateway sets can have at most {MAX_NAME} bytes"
                ),
            ));
            return;
        }
        if fields.iter().any(|(other, _)| same_folded(other.as_str(), parsed.as_str())) {
            self.error(
                Problem::error(
                    name.span(),
                    format!(
                        "an application may mistake `{}` for another header of this table",
                        name.get_ref()
                    ),
                )
                .help("choose names that differ in more than case and punctuation"),
            );
            return;
        }
        fields.extend(value.map(|value| (parsed, value)));
    }

    fn header_value(&mut self, text: &Spanned<&String>) -> Option<HeaderValue> {
        let Some(fault) = value_fault(text.get_ref().as_bytes()) else {
            return HeaderValue::from_str(text.get_ref()).ok();
        };
        self.error(
            Problem::error(text.span(), format!("the value {fault}"))
                .help("write printable ASCII characters, without a space at either end"),
        );
        None
    }

    fn secret_header_value(
        &mut self,
        secret: &Spanned<crate::config::value::SecretRef>,
    ) -> Option<HeaderValue> {
        let bytes = self.read_secret(secret, Inline::Permitted)?;
        if let Some(fault) = value_fault(bytes.expose()) {
            self.error(
                Problem::error(
                    secret.span(),
                    format!("the secret cannot be sent in a header: it {fault}"),
                )
                .help("store printable ASCII characters, without a space at either end"),
            );
            return None;
        }
        let mut value = HeaderValue::from_bytes(bytes.expose()).ok()?;
        // Masked wherever people look, and never indexed by HPACK (RFC 7541 §7.1.3).
        value.set_sensitive(true);
        Some(value)
    }

    /// Reports names in `set_headers` that belong to the gateway, in any spelling. `names`: the
    /// identity headers of every route.
    pub(super) fn refuse_reserved_headers(&mut self, names: &[HeaderName]) {
        let (identity, owned) = (FoldedNames::new(names), OwnedNames::new(names));
        let tables = self.file.route.iter().filter_map(|row| row.get_ref().set_headers.as_ref());
        let problems: Vec<Problem> = tables
            .flat_map(|table| table.get_ref().keys())
            .filter_map(|name| reserved(name, &identity, &owned))
            .collect();
        self.problems.extend(problems);
    }
}

/// Why a name cannot be in `set_headers`.
fn reserved(name: &Text, identity: &FoldedNames, owned: &OwnedNames) -> Option<Problem> {
    let shown = name.get_ref().escape_debug();
    let is = |other: &str| same_folded(other, name.get_ref());
    let parsed = HeaderName::from_bytes(name.get_ref().as_bytes()).ok()?;
    let problem = if identity.contains(&parsed) {
        Problem::error(name.span(), format!("`{shown}` is an identity header: its value comes from the caller's token"))
            .help("choose another name; `identity_headers` sets what the application learns about the caller")
    } else if METHOD_OVERRIDES.iter().any(|other| is(other)) {
        Problem::error(name.span(), format!("`{shown}` would change the method after the decision"))
            .help("remove it")
    } else if is("host") {
        Problem::error(name.span(), "`Host` is set for the whole upstream")
            .help("write `host = \"…\"` in its `[upstream.NAME]` section")
    } else if is("authorization") {
        Problem::error(
            name.span(),
            format!(
                "`{shown}` carries the credentials of callers: the gateway removes or forwards it"
            ),
        )
        .help("choose another name, such as `X-Api-Key`")
    } else if owned.contains(&parsed) {
        Problem::error(
            name.span(),
            format!(
                "`{shown}` is a name that the gateway removes from every request, or sets itself"
            ),
        )
        .help("choose another name; the reference lists these under \"Removed from every request\"")
    } else if RESERVED.iter().any(|other| is(other)) && !FREE.iter().any(|other| is(other)) {
        Problem::error(
            name.span(),
            format!("`{shown}` has its own meaning in HTTP and depends on the request"),
        )
        .help("choose a name such as `X-Script-Name`")
    } else {
        return None;
    };
    Some(problem)
}

/// What prevents bytes from being a header value that every application reads alike.
fn value_fault(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("is empty"),
        [b' ' | b'\t', ..] | [.., b' ' | b'\t'] => Some("begins or ends with a space"),
        _ if bytes.len() > MAX_VALUE_BYTES => Some("is longer than 8 KiB"),
        _ if bytes.iter().any(|&byte| !(b' '..=b'~').contains(&byte) && byte != b'\t') => {
            Some("contains a line break, another control character, or a character outside ASCII")
        }
        _ => None,
    }
}

/// The longest value, in bytes: applications commonly accept 8 KiB for a whole field.
const MAX_VALUE_BYTES: usize = 8192;

/// Reserved for identity headers, but a constant value is useful: it controls what the application
/// sends, such as uncompressed responses.
const FREE: [&str; 3] = ["accept", "accept-encoding", "user-agent"];

/// Response fields that frame, route, authenticate or describe one response.
const RESERVED_IN_RESPONSES: [&str; 14] = [
    "content-length",
    "content-type",
    "content-encoding",
    "content-range",
    "set-cookie",
    "www-authenticate",
    "authentication-info",
    "proxy-authentication-info",
    "date",
    "location",
    "allow",
    "retry-after",
    "sec-websocket-accept",
    "x-request-id",
];
