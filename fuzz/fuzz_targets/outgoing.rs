//! Whatever a client sends, the application receives only the gateway's own values for reserved
//! names, in any spelling.
//!
//! Input: one byte that selects the route and the caller, then the target, then header fields, each
//! on a line of its own.

#![no_main]

use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};
use libfuzzer_sys::fuzz_target;
use portcullis::config;
use portcullis::config::value::CreateFiles;
use portcullis::clock::Clock;
use portcullis::compile::CompileOptions;
use portcullis::gateway::Snapshot;
use portcullis::gateway::authenticate::{Caller, Verifier};
use portcullis::gateway::client::{ClientAddress, Peer};
use portcullis::gateway::dialect::Dialect;
use portcullis::gateway::decide::{Decided, Decider};
use portcullis::gateway::exchange_ids::ExchangeIds;
use portcullis::gateway::observer::{LimitKey, Observer};
use portcullis::gateway::refusal::Refusal;
use portcullis::gateway::route::Route;
use portcullis::gateway::second_target::SecondTarget;
use portcullis::gateway::target::Target;
use portcullis::limit::Limit;
use portcullis::reason::Reason;
use portcullis::telemetry::metrics::Metrics;
use portcullis::revocation::RevocationList;
use portcullis::token::Issuer;

const FILE: &str = r#"
[server]
trusted_proxies = ["10.0.0.0/8"]

[issuer.local]
issuer = "https://issuer.example"
audience = ["app"]
algorithms = ["HS256"]
secret = "a secret of more than thirty-two bytes"
insecure_inline_secret = true

[upstream.app]
builtin = "echo"

[identity_headers]
X-Auth-User = "sub"
X-Auth-Roles = "roles"
X-Tenant = "tenant"

[[route]]
name = "public"
path = "/public/*"
upstream = "app"
access = "public"

[[route]]
name = "unenforced"
path = "/unenforced/*"
upstream = "app"
enforce = false
forward_authorization = true
token_from = ["header", "cookie", "query"]

[[route]]
name = "own"
path = "/own/*"
upstream = "app"
forward_authorization = true
method_override = true
strip_prefix = true
token_from = ["cookie", "query"]
identity_headers = { X-Remote-User = "sub", X-Remote-Groups = "roles" }

[[route]]
name = "rest"
path = "/*"
upstream = "app"
"#;

/// The names that no client can send (CONTRACT §4), folded: lower case, `-` for every other
/// character. The list is a separate copy, so that a name missing in the gateway is noticed.
const OURS: [&str; 38] = [
    "authorization",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-original-url",
    "x-original-host",
    "x-rewrite-url",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "forwarded",
    "x-forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-real-ip",
    "client-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "proxy",
    "x-request-id",
    "traceparent",
    "x-auth-user",
    "x-auth-email",
    "x-auth-name",
    "x-auth-roles",
    "x-auth-issuer",
    "x-tenant",
    "x-remote-user",
    "x-remote-groups",
];

/// The fields that the gateway sets, in their spelling.
const SET: [&str; 16] = [
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "traceparent",
    "tracestate",
    "connection",
    "te",
    "upgrade",
    "trailer",
    "expect",
    "host",
    "x-auth-user",
    "x-auth-roles",
    "x-remote-user",
    "x-remote-groups",
];

/// The time of every decision, in Unix seconds.
const NOW: u64 = 1_780_000_000;

/// The results of a decision.
#[derive(Default)]
struct Watch {
    ids: Option<ExchangeIds>,
    is_known: bool,
    reason: Option<Reason>,
}

impl Observer for Watch {
    fn asked(&mut self, _: Dialect, _: &Parts) {}

    fn arrived(&mut self, client: &ClientAddress, headers: &HeaderMap) {
        self.ids = Some(ExchangeIds::new(headers, client));
    }

    fn targeted(&mut self, _: &Target) {}

    fn logout(&mut self, _: &Issuer) {}

    fn routed(&mut self, _: &Route, _: &Target, _: &HeaderMap) {}
    fn unrouted(&mut self, _: &str, _: &HeaderMap) {}
    fn second(&mut self, _: &SecondTarget<'_>) {}

    async fn confirm(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    fn count(&mut self, _: &Route, _: &Arc<Limit>, _: LimitKey<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn authenticated(&mut self, _: &Route, caller: Option<&Caller>) {
        self.is_known = caller.is_some();
    }

    fn renewable(&mut self) {}
    fn tolerated(&mut self, _: &Route, _: &Refusal) {
        self.is_known = false;
    }

    fn granted(&mut self, _: &Route, reason: Reason) {
        self.reason = Some(reason);
    }

    fn ids(&mut self) -> &ExchangeIds {
        self.ids.get_or_insert_with(|| ExchangeIds::begin([0, 0, 0, 0].into()))
    }
}

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    portcullis::token::install_crypto();
    let loaded = config::parse(Path::new("gateway.toml"), FILE.to_owned()).unwrap_or_else(|problems| panic!("{problems}"));
    let options = CompileOptions { previous: None, create: CreateFiles::No, metrics: &Metrics::new(), now: NOW };
    Snapshot::compile(loaded, &options).unwrap_or_else(|problems| panic!("{problems}")).snapshot
});

fn folded(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' }).collect()
}

fn is_ours(name: &str) -> bool {
    let folded = folded(name);
    folded.starts_with("x-forwarded") || OURS.contains(&folded.as_str())
}

fuzz_target!(|data: &[u8]| {
    let Some((choices, data)) = data.split_first() else { return };
    let mut lines = data.split(|byte| *byte == b'\n');
    let Ok(uri) = http::Uri::try_from(lines.next().unwrap_or_default()) else { return };
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    *request.method_mut() = if choices & 1 == 0 { Method::GET } else { Method::POST };
    *request.version_mut() = if choices & 2 == 0 { Version::HTTP_11 } else { Version::HTTP_2 };
    request.headers_mut().insert("host", HeaderValue::from_static("app.example.com"));
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()))
        else {
            continue;
        };
        if name != "host" {
            request.headers_mut().append(name, value);
        }
    }
    let parts = request.into_parts().0;
    let snapshot = &*SNAPSHOT;
    let Ok(target) = Target::parse(&parts.method, &parts.uri, parts.version, &parts.headers) else { return };
    let Ok(route) = snapshot.routes.find_route(&parts.method, &target) else { return };
    let from_proxy = choices & 4 != 0;
    let peer = Peer::new(if from_proxy { [10, 0, 0, 9].into() } else { [203, 0, 113, 9].into() }, choices & 8 != 0);
    let client = snapshot.proxies.client(&peer, &parts.headers);
    let claims = serde_json::from_str(r#"{"sub": "alice", "roles": ["user", "a,b"], "email": "alice@example.com"}"#).expect("claims");
    let assumed = snapshot.issuers.assume("local", claims, NOW).expect("a caller");
    let revoked = RevocationList::new(Clock::fixed(NOW));
    let known = (choices & 16 != 0).then_some(&assumed);
    let verifier = Verifier::offline(&snapshot.rules.token_names, &snapshot.issuers, &revoked, known, None);
    let decider = Decider { snapshot, verifier, now: NOW, online: None };
    let (received, before) = (target.sent().clone(), parts.headers.clone());
    let mut watch = Watch::default();
    let decided = {
        let outcome = pin!(decider.decide(&peer, parts, Some(0), &mut watch));
        outcome.poll(&mut Context::from_waker(Waker::noop()))
    };
    let Poll::Ready(Ok(Decided::Forward(outgoing, _))) = decided else { return };
    let (is_known, reason) = (watch.is_known, watch.reason.expect("an allowed request has a reason"));
    let ids = watch.ids.expect("the client was derived");

    for name in outgoing.headers().keys() {
        let values: Vec<&HeaderValue> = outgoing.headers().get_all(name).iter().collect();
        let text = name.as_str();
        let is_kept = (route.method_override && ["x-http-method-override", "x-http-method", "x-method-override"].contains(&text))
            || (text == "authorization" && route.forward_authorization && reason.is_pass());
        if is_kept {
            assert_eq!(values, before.get_all(name).iter().collect::<Vec<_>>());
            continue;
        }
        assert!(!is_ours(text) || SET.contains(&text), "`{text}` was forwarded on route `{}`", route.name);
        if SET.contains(&text) && text != "tracestate" {
            assert_eq!(values.len(), 1, "`{text}` was sent twice");
        }
        match text {
            "x-auth-user" | "x-remote-user" => assert!(is_known && values[0] == "alice", "{values:?}"),
            "x-auth-roles" | "x-remote-groups" => assert!(is_known && values[0] == "user,a%2Cb", "{values:?}"),
            "x-forwarded-for" => assert_eq!(values[0], &client.ip().to_string()),
            "x-forwarded-proto" => assert_eq!(values[0], client.scheme().as_str()),
            "x-forwarded-host" | "host" => assert_eq!(values[0], "app.example.com"),
            "x-request-id" => assert_eq!(values[0], &ids.request_id),
            "connection" => assert!(values[0] == "upgrade" || values[0] == "te", "{values:?}"),
            "upgrade" => assert_eq!(values[0], "websocket"),
            "te" => assert_eq!(values[0], "trailers"),
            _ => {}
        }
    }
    let own = route.name.as_ref() == "own";
    assert_eq!(outgoing.headers().contains_key("x-auth-user"), is_known && !own);
    assert_eq!(outgoing.headers().contains_key("x-remote-user"), is_known && own);

    // The fields that Connection names apply to this hop only.
    for line in before.get_all("connection") {
        for name in line.as_bytes().split(|byte| *byte == b',').filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()) {
            assert!(!outgoing.headers().contains_key(&name) || SET.contains(&name.as_str()), "`{name}` is named by Connection");
        }
    }
    for line in outgoing.headers().get_all("cookie") {
        let ours = |pair: &[u8]| pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii() == b"__Host-portcullis";
        assert!(!line.as_bytes().split(|byte| *byte == b';').any(ours), "the gateway's cookie was forwarded: {line:?}");
    }
    for name in &outgoing.asks().request_trailers {
        assert!(!is_ours(name.as_str()), "`{name}` is allowed as a trailer");
    }
    if route.strip_segments == 0 && !route.guard.token_from.query {
        assert_eq!(outgoing.target(), &received, "the matched target is forwarded");
    }
    if route.guard.token_from.query {
        let query = outgoing.target().query().unwrap_or_default();
        assert!(!query.split('&').any(|pair| pair.split('=').next() == Some("access_token")), "{query}");
    }
});
