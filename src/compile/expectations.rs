//! `[[test]]`: requests with the decision that the operator expects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::{Map, Value};
use toml::Spanned;

use super::Snapshot;
use crate::config::file::{Expect, Test, Text};
use crate::config::{File, Problem};
use crate::explain::{Explanation, Question, explain};
use crate::gateway::dialect::Dialect;
use crate::reason::Reason;
use crate::token::{AssumedToken, CERTIFICATE};

/// Runs every test and reports those whose expectation is not met.
pub(super) fn unmet(file: &File, snapshot: &Snapshot, now: u64) -> Vec<Problem> {
    file.test
        .iter()
        .flat_map(|test| run(file, test, snapshot, now).unwrap_or_else(|problem| vec![problem]))
        .collect()
}

fn run(
    file: &File,
    test: &Spanned<Test>,
    snapshot: &Snapshot,
    now: u64,
) -> Result<Vec<Problem>, Problem> {
    let written = test.get_ref();
    let Some(request) = &written.request else {
        return Err(Problem::error(test.span(), "the test has no `request`")
            .help("add `request = \"GET /reports\"`"));
    };
    let Some(expect) = &written.expect else {
        return Err(Problem::error(test.span(), "the test expects nothing")
            .help("add `expect = { status = 200 }`"));
    };
    let (method, url) = request.get_ref().split_once(' ').unwrap_or(("GET", request.get_ref()));
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| {
        Problem::error(request.span(), "not a valid request")
            .help("write a method and a target, such as \"GET /reports\"")
    })?;
    let question = Question {
        looked_up: None,
        method,
        url: url.trim().to_owned(),
        headers: headers(&written.headers)?,
        peer: peer(written.peer.as_ref())?,
        assumed: caller(file, written, snapshot, now)?,
        revoked: Arc::default(),
        via: None,
    };
    let mut explanation = explain(snapshot, &question, now);
    if explanation.is_external {
        // Every dialect decides alike. This one passes on nothing that does not decide.
        explanation = explain(snapshot, &Question { via: Some(Dialect::Traefik), ..question }, now);
    }
    let unmet = compare(expect, &explanation, request.span());
    let has_credential = written
        .headers
        .keys()
        .any(|name| name.get_ref().eq_ignore_ascii_case(header::AUTHORIZATION.as_str()));
    if !unmet.is_empty() && has_credential && explanation.reason == Reason::StoreUnavailable {
        return Err(Problem::error(
            request.span(),
            "a test cannot look up the personal access token that it sends",
        )
        .help(
            "remove `Authorization`, and say whom the token belongs to with `roles` or `claims`",
        ));
    }
    Ok(unmet)
}

fn headers(written: &BTreeMap<Text, Text>) -> Result<HeaderMap, Problem> {
    let mut headers = HeaderMap::new();
    for (name, value) in written {
        let parsed = HeaderName::from_bytes(name.get_ref().as_bytes())
            .map_err(|_| Problem::error(name.span(), "not a valid header name"))?;
        let value = HeaderValue::from_str(value.get_ref())
            .map_err(|_| Problem::error(value.span(), "not a valid header value"))?;
        headers.append(parsed, value);
    }
    Ok(headers)
}

fn peer(written: Option<&Text>) -> Result<IpAddr, Problem> {
    let Some(text) = written else { return Ok([127, 0, 0, 1].into()) };
    text.get_ref().parse().map_err(|_| {
        Problem::error(text.span(), "not a valid IP address")
            .help("write an address such as \"203.0.113.7\"")
    })
}

/// The caller that the test assumes.
fn caller(
    file: &File,
    test: &Test,
    snapshot: &Snapshot,
    now: u64,
) -> Result<Option<AssumedToken>, Problem> {
    let span = match (&test.claims, &test.roles) {
        (None, None) => return Ok(None),
        (Some(claims), Some(roles)) => {
            return Err(Problem::error(roles.span(), "`roles` and `claims` contradict each other")
                .related(claims.span(), "the other")
                .help("keep one"));
        }
        (Some(claims), None) => claims.span(),
        (None, Some(roles)) => roles.span(),
    };
    let names = file.issuer_names();
    let issuer = match (&test.issuer, names.as_slice()) {
        (Some(issuer), names) if names.contains(&issuer.get_ref().as_str()) => {
            issuer.get_ref().as_str()
        }
        (Some(issuer), _)
            if *issuer.get_ref() == *CERTIFICATE && snapshot.issuers.certificates().is_some() =>
        {
            CERTIFICATE
        }
        (Some(issuer), _) => {
            return Err(Problem::error(
                issuer.span(),
                format!("there is no `[issuer.{}]`", issuer.get_ref()),
            ));
        }
        (None, [only]) => only,
        (None, _) => {
            return Err(Problem::error(
                span,
                "the issuer of the token is ambiguous, or there is none",
            )
            .help("add `issuer = \"…\"`"));
        }
    };
    let assumed = match (&test.claims, &test.roles) {
        (Some(claims), _) => snapshot.issuers.assume(issuer, json_object(claims.get_ref()), now),
        (None, roles) => {
            let roles: Vec<String> = roles
                .iter()
                .flat_map(toml::Spanned::get_ref)
                .map(|role| role.get_ref().clone())
                .collect();
            snapshot.issuers.assume_roles(issuer, &roles, now)
        }
    };
    assumed.map(Some).map_err(|error| {
        Problem::error(span, format!("no token of `{issuer}` could hold these claims: {error}"))
    })
}

fn json_object(table: &toml::Table) -> Map<String, Value> {
    table.iter().map(|(name, value)| (name.clone(), json(value))).collect()
}

fn json(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.clone().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(flag) => (*flag).into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(items) => items.iter().map(json).collect(),
        toml::Value::Table(table) => Value::Object(json_object(table)),
    }
}

fn compare(
    expect: &Spanned<Expect>,
    explanation: &Explanation,
    request: Range<usize>,
) -> Vec<Problem> {
    let expected = expect.get_ref();
    let mut unmet = Vec::new();
    let why = explanation
        .steps
        .last()
        .map_or(String::new(), |step| format!("{}: {}", step.step, step.detail));
    let mut differs = |span: Range<usize>, what: &str, wanted: &str, found: &str| {
        unmet.push(
            Problem::error(span, format!("the test expects {what} {wanted}, but it is {found}"))
                .related(request.clone(), "this request")
                .help(why.clone()),
        );
    };
    if let Some(status) = &expected.status
        && *status.get_ref() != i64::from(explanation.status)
    {
        differs(
            status.span(),
            "status",
            &status.get_ref().to_string(),
            &format!("{} ({})", explanation.status, explanation.reason.as_str()),
        );
    }
    if let Some(reason) = &expected.reason
        && reason.get_ref() != explanation.reason.as_str()
    {
        differs(reason.span(), "reason", reason.get_ref(), explanation.reason.as_str());
    }
    if let Some(route) = &expected.route
        && Some(route.get_ref()) != explanation.route.as_ref()
    {
        differs(
            route.span(),
            "route",
            route.get_ref(),
            explanation.route.as_deref().unwrap_or("none"),
        );
    }
    for (name, value) in &expected.headers {
        let sent: Vec<_> = explanation
            .sent
            .get_all(name.get_ref().as_str())
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let sent = sent.join(", ");
        if sent != *value.get_ref() {
            let shown = if sent.is_empty() { "absent" } else { &sent };
            differs(
                value.span(),
                &format!("{} to be", name.get_ref()),
                if value.get_ref().is_empty() { "absent" } else { value.get_ref() },
                shown,
            );
        }
    }
    unmet
}
