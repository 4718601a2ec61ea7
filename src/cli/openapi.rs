//! `openapi`: the OpenAPI 3.1 description of the built-in issuer's endpoints, from the table that
//! dispatches requests.

use std::collections::{BTreeMap, BTreeSet};

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{Schema, SchemaGenerator};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::identity::endpoints::{self, Action, CallerNeeded, Endpoint};
use crate::identity::pages::Page;
use crate::reason::Reason;

/// The description, in reading order: the endpoints for programs come before the pages.
#[derive(Serialize)]
pub(super) struct Document {
    openapi: &'static str,
    info: Value,
    servers: Value,
    tags: Value,
    paths: Ordered<Ordered<Value>>,
    components: Value,
}

/// An object that keeps the order of its members.
struct Ordered<T>(Vec<(String, T)>);

impl<T> Ordered<T> {
    /// The member with this name, created if it does not exist.
    fn member(&mut self, name: &str, make: impl FnOnce() -> T) -> &mut T {
        let at = self.0.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.0.push((name.to_owned(), make()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The description.
pub(super) fn document() -> Document {
    let mut description = Description::new();
    let mut paths = Ordered(Vec::new());
    for endpoint in endpoints::all() {
        let methods = paths.member(endpoint.path, || Ordered(Vec::new()));
        if let Some((name, text)) = parameter(endpoint.path) {
            let parameter = json!({ "name": name, "in": "path", "required": true, "description": text, "schema": { "type": "string" } });
            methods.member("parameters", || json!([parameter]));
        }
        let method = endpoint.method.to_ascii_lowercase();
        methods.member(&method, || description.operation(endpoint));
    }
    Document {
        openapi: "3.1.0",
        info: json!({
            "title": "Portcullis, the built-in issuer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Accounts, sessions and tokens of the gateway itself. Paths are below the route with `identity = true`. Bodies are \
                JSON; a form (`application/x-www-form-urlencoded`) with the same members is also accepted. Unknown members \
                are ignored. The response to a request that accepts `text/html` is a page.",
            "license": { "name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT" },
        }),
        servers: json!([{
            "url": "https://{host}/{mount}",
            "variables": { "host": { "default": "app.example.com" }, "mount": { "default": "auth" } },
        }]),
        tags: json!([
            { "name": "accounts", "description": "For programs: JSON in, JSON out." },
            { "name": "pages", "description": "For people: HTML, and the files that it names." },
        ]),
        paths,
        components: json!({
            "schemas": description.schemas(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "An access token of this issuer." },
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "__Host-portcullis",
                    "description": "The same token in the login cookie, which `[server] token_cookie` names. A request that changes something then needs the `Origin` of this site.",
                },
            },
        }),
    }
}

/// Requests and responses have separate schema generators: a member that is optional in a request
/// is always present in a response.
struct Description {
    read: SchemaGenerator,
    answered: SchemaGenerator,
}

impl Description {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12()
                .with(|settings| settings.definitions_path = "/components/schemas".into())
                // Generators treat a member with a default as one that must be sent.
                .with_transform(RecursiveTransform(|schema: &mut Schema| {
                    schema.remove("default");
                }))
        };
        Self {
            read: settings().into_generator(),
            answered: settings().for_serialize().into_generator(),
        }
    }

    fn schemas(mut self) -> Map<String, Value> {
        let mut schemas = self.read.take_definitions(true);
        schemas.extend(self.answered.take_definitions(true));
        schemas.insert("Problem".to_owned(), problem());
        schemas
    }

    fn operation(&mut self, endpoint: &Endpoint) -> Value {
        let is_page = matches!(
            endpoint.action,
            Action::Page(_) | Action::Style | Action::Logo | Action::Home
        );
        let mut operation = json!({
            "operationId": id(endpoint),
            "summary": endpoint.summary,
            "tags": [if is_page { "pages" } else { "accounts" }],
            "responses": self.responses(endpoint),
        });
        let parameters = query(endpoint);
        if !parameters.is_empty() {
            operation["parameters"] = Value::from(parameters);
        }
        if let Some(schema) = endpoint.request {
            let schema = schema(&mut self.read).to_value();
            operation["requestBody"] = json!({
                "required": required(&schema, &self.read),
                "content": { "application/json": { "schema": schema } },
            });
        }
        match endpoint.caller {
            CallerNeeded::No => operation["security"] = json!([]),
            CallerNeeded::Welcome => {
                operation["security"] = json!([{}, { "bearer": [] }, { "cookie": [] }]);
            }
            CallerNeeded::Yes => {
                operation["security"] = json!([{ "bearer": [] }, { "cookie": [] }]);
            }
        }
        operation
    }

    fn responses(&mut self, endpoint: &Endpoint) -> BTreeMap<String, Value> {
        let mut responses = BTreeMap::new();
        let (status, schema) = endpoint.success;
        let content =
            schema.map(|schema| ("application/json", schema(&mut self.answered).to_value()));
        let content = content.or_else(|| {
            other_content_type(endpoint.action).map(|content_type| (content_type, json!({})))
        });
        let mut success = json!({ "description": meaning(status) });
        if let Some((content_type, schema)) = content {
            success["content"] = json!({ content_type: { "schema": schema } });
        }
        responses.insert(status.to_string(), success);
        let leads_on = Page::for_endpoint(endpoint) != Page::Other
            && (endpoint.changes_something() || endpoint.caller == CallerNeeded::Yes);
        if leads_on || status == 303 {
            let location =
                json!({ "description": "A path of this site.", "schema": { "type": "string" } });
            let description = "Where the browser continues: after a form, or to log in first.";
            responses.insert(
                "303".to_owned(),
                json!({ "description": description, "headers": { "Location": location } }),
            );
        }
        if endpoint.action == Action::Depart {
            let location = json!({ "description": "A URL.", "schema": { "type": "string" } });
            let description = "On another host than that of the issuer: the same login there.";
            responses.insert(
                "303".to_owned(),
                json!({ "description": description, "headers": { "Location": location } }),
            );
        }
        for (status, reasons) in refusals(endpoint) {
            let reasons: Vec<String> =
                reasons.into_iter().map(|reason| format!("`{reason}`")).collect();
            let mut refusal = json!({
                "description": reasons.join(", "),
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
            });
            if matches!(status, 429 | 503) {
                let retry_after =
                    json!({ "description": "Seconds.", "schema": { "type": "integer" } });
                refusal["headers"] = json!({ "Retry-After": retry_after });
            }
            responses.insert(status.to_string(), refusal);
        }
        responses
    }
}

/// The endpoint's own refusals, and those that any request may receive, by status.
fn refusals(endpoint: &Endpoint) -> BTreeMap<u16, BTreeSet<&'static str>> {
    let mut reasons = endpoint.reasons.to_vec();
    reasons.extend([
        Reason::TargetAmbiguous,
        Reason::HeadersTooLarge,
        Reason::RateLimited,
        Reason::StoreUnavailable,
        Reason::Draining,
    ]);
    if endpoint.caller == CallerNeeded::Yes && endpoint.action != Action::Me {
        // A personal access token is not enough.
        reasons.push(Reason::ScopeMissing);
    }
    if endpoint.changes_something() {
        reasons.extend([Reason::OriginForeign, Reason::FramingInvalid, Reason::BodyTooLarge]);
    }
    // A request without credentials has no caller; it gets another page instead.
    if endpoint.caller == CallerNeeded::Yes
        || (endpoint.caller == CallerNeeded::Welcome && endpoint.changes_something())
    {
        reasons.extend(Reason::ALL.into_iter().filter(|reason| reason.is_about_token()));
        reasons.extend([
            Reason::CredentialsMissing,
            Reason::CredentialsMalformed,
            Reason::CredentialsAmbiguous,
            Reason::IssuerNotAllowed,
        ]);
    }
    let mut by_status: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for reason in reasons {
        by_status.entry(reason.status().as_u16()).or_default().insert(reason.as_str());
    }
    by_status
}

/// The body of every refusal (RFC 9457).
fn problem() -> Value {
    let reasons: BTreeSet<&str> =
        Reason::ALL.into_iter().filter(|reason| !reason.is_pass()).map(Reason::as_str).collect();
    json!({
        "type": "object",
        "description": "Why the request was refused (RFC 9457).",
        "examples": [{ "title": "Unauthorized", "status": 401, "reason": "login_failed", "request_id": "01997e4d-1f4b-7c3a-9d2e-5b8f0a6c4e21" }],
        "properties": {
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "reason": { "type": "string", "enum": reasons },
            "request_id": { "type": "string" },
            "detail": { "type": "string", "description": "An explanation for people, if there is more to say." },
        },
        "required": ["title", "status", "reason", "request_id"],
    })
}

/// Whether a body is required, because at least one member is.
fn required(schema: &Value, generator: &SchemaGenerator) -> bool {
    let name = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    generator.definitions().get(name).is_some_and(|schema| {
        schema["required"].as_array().is_some_and(|required| !required.is_empty())
    })
}

/// A name for generated code: the method and the words of the path.
fn id(endpoint: &Endpoint) -> String {
    let words = endpoint
        .path
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let mut id = endpoint.method.to_ascii_lowercase();
    for word in words {
        id.push_str(&word[..1].to_ascii_uppercase());
        id.push_str(&word[1..]);
    }
    id
}

fn parameter(path: &str) -> Option<(&str, &'static str)> {
    let (name, _) = path.split_once('{')?.1.split_once('}')?;
    Some((
        name,
        match name {
            "name" => "The name of a provider: its `[identity.login.NAME]` section.",
            "sid" => "The `sid` of a session.",
            _ => "The `id` of a personal access token.",
        },
    ))
}

fn query(endpoint: &Endpoint) -> Vec<Value> {
    let (name, description) = match endpoint.action {
        Action::Page(Page::Login | Page::Register) => {
            ("return_to", "The path on this site to go to afterwards.")
        }
        Action::Page(Page::Reset | Page::VerifyEmail) => {
            ("token", "The token from the mailed link.")
        }
        Action::Style | Action::Logo => {
            ("v", "The version: a response with the current one can be cached indefinitely.")
        }
        _ => return Vec::new(),
    };
    vec![
        json!({ "name": name, "in": "query", "description": description, "schema": { "type": "string" } }),
    ]
}

/// The content type of a response that no schema describes.
fn other_content_type(action: Action) -> Option<&'static str> {
    match action {
        Action::Page(_) => Some("text/html"),
        Action::Style => Some("text/css"),
        Action::Logo => Some("image/*"),
        Action::Keys | Action::Metadata => Some("application/json"),
        _ => None,
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        201 => "Created.",
        202 => "Accepted. The response does not reveal the outcome.",
        204 => "Done.",
        303 => "Where the browser continues.",
        _ => "Success.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_reason_is_a_refusal() {
        for endpoint in endpoints::all() {
            for reason in endpoint.reasons {
                assert!(!reason.is_pass(), "{} {}: {reason:?}", endpoint.method, endpoint.path);
            }
        }
    }

    /// What generated code and human readers can rely on.
    #[test]
    fn bodies_have_one_content_type_and_valid_examples() {
        let document = serde_json::to_value(document()).unwrap();
        for methods in document["paths"].as_object().unwrap().values() {
            for operation in methods.as_object().unwrap().values() {
                let answers = operation["responses"].as_object().into_iter().flatten();
                for body in answers.map(|(_, answer)| answer).chain([&operation["requestBody"]]) {
                    let types = body["content"].as_object().map_or(0, Map::len);
                    assert!(types <= 1, "{operation}");
                }
            }
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            let members = schema["properties"].as_object().unwrap();
            let examples = schema["examples"].as_array().unwrap_or_else(|| panic!("{name}"));
            assert!(!examples.is_empty(), "{name}");
            for example in examples {
                let example = example.as_object().unwrap();
                assert!(example.keys().all(|member| members.contains_key(member)), "{name}");
                for needed in schema["required"].as_array().into_iter().flatten() {
                    assert!(example.contains_key(needed.as_str().unwrap()), "{name}: {needed}");
                }
            }
        }
    }

    #[test]
    fn endpoints_for_programs_come_before_pages() {
        let text = serde_json::to_string_pretty(&document()).unwrap();
        let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("{word}"));
        assert!(at("\"/register\": {") < at("\"/login\": {"), "in the order of the table");
        assert!(at("\"/login\": {") < at("\"/style.css\": {"));
        assert!(at("\"postLogin\"") < at("\"getLogin\""));
    }

    #[test]
    fn operations_have_unique_names_and_existing_schemas() {
        let document = serde_json::to_value(document()).unwrap();
        let mut names = BTreeSet::new();
        for methods in document["paths"].as_object().unwrap().values() {
            for (method, operation) in
                methods.as_object().unwrap().iter().filter(|(method, _)| *method != "parameters")
            {
                assert!(
                    names.insert(operation["operationId"].as_str().unwrap().to_owned()),
                    "{method} {operation}"
                );
            }
        }
        assert_eq!(names.len(), endpoints::all().count());
        let text = document.to_string();
        for reference in
            text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap())
        {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }
}
