//! The gateway, `explain` and `[[test]]` blocks make the same decisions: thousands of generated
//! requests under varied files are sent to a gateway, explained, and written as tests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use portcullis::compile::CompileOptions;
use portcullis::config;
use portcullis::config::value::CreateFiles;
use portcullis::explain::{Explanation, Question, explain};
use portcullis::gateway::Snapshot;
use portcullis::telemetry::metrics::Metrics;
use serde_json::{Value, json};

use crate::harness::{Gateway, Response, mint};

const FILES: usize = 44;
const REQUESTS: usize = 120;

/// The path of the last request to each gateway.
const END: &str = "/the-end";

/// Fields that differ each time, or that only one of the two has.
const PER_EXCHANGE: [&str; 2] = ["x-request-id", "traceparent"];

/// A sequence of choices that is the same in each run.
struct Choices(u64);

impl Choices {
    /// xorshift64* (Vigna 2016).
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.next() as usize % all.len()].clone()
    }

    /// True once in this many calls, on average.
    fn once_in(&mut self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }
}

/// A request, as text.
#[derive(Clone, Debug)]
struct Wanted {
    method: String,
    url: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Wanted {
    fn add(&mut self, name: &str, value: &str) {
        self.fields.push((name.to_owned(), value.to_owned()));
    }

    fn question(&self) -> Question {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Question {
            looked_up: None,
            method: self.method.parse().unwrap(),
            url: self.url.clone(),
            headers,
            peer: [127, 0, 0, 1].into(),
            assumed: None,
            revoked: Arc::default(),
            via: None,
        }
    }

    /// What a client sends: `Host` first, unless it is among the fields.
    fn bytes(&self) -> Vec<u8> {
        let (host, target) = match self.url.strip_prefix("http://") {
            Some(rest) => rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())),
            None => ("localhost", self.url.as_str()),
        };
        let slash = if target == "*" || target.starts_with('/') { "" } else { "/" };
        let mut head = format!("{} {slash}{target} HTTP/1.1\r\n", self.method);
        if !self.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            write!(head, "host: {host}\r\n").unwrap();
        }
        for (name, value) in &self.fields {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        head.push_str("\r\n");
        [head.into_bytes(), self.body.clone()].concat()
    }

    /// As a `[[test]]` block, as far as `[[test]]` can express it.
    fn test(&self, expected: &Live) -> Option<String> {
        let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, value) in &self.fields {
            if fields.insert(name, value).is_some() {
                return None;
            }
        }
        let mut expect = json!({ "status": expected.status });
        if let Some(reason) = &expected.reason {
            expect["reason"] = json!(reason);
        }
        if let Some(route) = &expected.route {
            expect["route"] = json!(route);
        }
        if let Some(upstream) = &expected.upstream {
            let seen = &upstream["headers"];
            let names =
                ["X-Auth-User", "X-Auth-Roles", "X-Remote-User", "Cookie", "X-Forwarded-For"];
            expect["headers"] = names
                .into_iter()
                .map(|name| {
                    let value = seen[&name.to_ascii_lowercase()].as_str().unwrap_or_default();
                    (name.to_owned(), Value::from(value))
                })
                .collect();
        }
        let test = json!({ "request": format!("{} {}", self.method, self.url), "headers": fields, "expect": expect });
        let table: toml::Table = serde_json::from_value(json!({ "test": [test] })).unwrap();
        Some(toml::to_string(&table).unwrap())
    }
}

/// What the gateway did.
#[derive(Clone, Debug)]
struct Live {
    /// 200 if the request was forwarded, whatever its response is.
    status: u16,
    /// `None`: the HTTP server refused it before the pipeline.
    reason: Option<String>,
    route: Option<String>,
    /// What the echo application received.
    upstream: Option<Value>,
}

/// A configuration file, varied by number.
fn file(choices: &mut Choices, number: usize) -> String {
    let mut text = String::from(if number % 4 == 1 {
        "[server]\ntrusted_proxies = [\"127.0.0.1/32\"]\nforwarded = \"forwarded\"\n"
    } else if number % 4 == 2 {
        "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n"
    } else {
        "[server]\n"
    });
    let (fields, bytes, body) = (
        choices.of(&[12, 40, 100]),
        choices.of(&["8KiB", "32KiB"]),
        choices.of(&["12B", "1KiB", "unlimited"]),
    );
    write!(text, "[server.limits]\nmax_headers = {fields}\nmax_header_bytes = \"{bytes}\"\nmax_body = \"{body}\"\n").unwrap();
    text.push_str("[upstream.app]\nbuiltin = \"echo\"\n");
    if choices.once_in(3) {
        text.push_str("[upstream.folding]\nbuiltin = \"echo\"\npath_case = \"insensitive\"\n[[route]]\npath = \"/Fold/*\"\nupstream = \"folding\"\n");
    }
    if number.is_multiple_of(2) {
        text.push_str(
            "[store]\n[identity]\nissuer = \"http://localhost/auth\"\nregistration = \"open\"\n[identity.login.partner]\nissuer = \"http://127.0.0.1:9\"\nclient_id = \"x\"\nclient_secret = \"y\"\ninsecure_inline_secret = true\n[[route]]\nname = \"auth\"\npath = \"/auth/*\"\nidentity = true\n",
        );
    }
    if choices.once_in(2) {
        text.push_str("[limit.each]\nrequests = 100000\nper = \"1m\"\n");
        text.push_str("[[route]]\npath = \"/limited/*\"\nupstream = \"app\"\nlimit = \"each\"\n");
    }
    if choices.once_in(3) {
        text.push_str(
            "[[route]]\npath = \"/moved/*\"\nredirect = { to = \"https://new.test{path}\", status = 301 }\naccess = \"public\"\n",
        );
        text.push_str(
            "[[route]]\npath = \"/away\"\nredirect = { to = \"/moved\" }\nroles = [\"user\"]\n",
        );
    }
    let access = [
        "access = \"public\"\n",
        "access = \"optional\"\n",
        "",
        "",
        "roles = [\"admin\"]\n",
        "roles = [\"user\", \"admin\"]\n",
        "scopes = [\"read\"]\n",
        "claims = { tenant = [\"acme\"] }\n",
        "all_roles = [\"user\", \"admin\"]\n",
        "acr = [\"phr\", \"mfa\"]\n",
        "max_age = \"10m\"\n",
        "roles = [\"user\"]\nacr = [\"mfa\"]\nmax_age = \"1h\"\n",
        if number.is_multiple_of(2) { "login = [\"partner\", \"password\"]\n" } else { "" },
    ];
    let places = [
        "",
        "",
        "token_from = [\"cookie\"]\n",
        "token_from = [\"header\", \"cookie\"]\n",
        "token_from = [\"query\"]\n",
        "token_from = [\"header\", \"cookie\", \"query\"]\n",
    ];
    let extras = [
        "",
        "",
        "enforce = false\n",
        "method_override = true\n",
        "forward_authorization = true\n",
        "insecure_path = [\"merge_slashes\"]\n",
        "insecure_path = [\"parameters\", \"encoded_slash\"]\n",
        "identity_headers = { X-Remote-User = \"email\" }\n",
        "methods = [\"GET\", \"POST\"]\n",
        "set_headers = { X-Script-Name = \"/app\", User-Agent = \"gateway\" }\n",
    ];
    for (index, path) in
        ["/a/*", "/a/b", "/b/{id}", "/b/{id}/*", "/c/*", "/d/*", "/*"].into_iter().enumerate()
    {
        let (access, mut places, extra) =
            (choices.of(&access), choices.of(&places), choices.of(&extras));
        if access.contains("public") {
            places = "";
        }
        let host = if index < 5 && choices.once_in(4) { "host = \"app.test\"\n" } else { "" };
        let strip = if path.ends_with("/*") && path.len() > 2 && choices.once_in(3) {
            "strip_prefix = true\n"
        } else {
            ""
        };
        write!(
            text,
            "[[route]]\npath = \"{path}\"\nupstream = \"app\"\n{host}{access}{places}{extra}{strip}"
        )
        .unwrap();
    }
    text
}

fn target(choices: &mut Choices, token: &str) -> String {
    let path = choices.of(&[
        "/a/x",
        "/a/b",
        "/a/b/",
        "/b/1",
        "/b/1/2",
        "/c/d",
        "/d/e",
        "/",
        "/away",
        "/limited/x",
        "/Fold/X",
        "/fold/x",
        "/auth/me",
        "/auth/login",
        "/auth/logout",
        "/moved/x",
        "/auth/nothing",
        "/auth/.well-known/jwks.json",
        "/auth/totp",
        "/auth/register",
        "/a/../b",
        "/a/%2e%2e/c",
        "/a//b",
        "//a/x",
        "/a/x;v=1",
        "/a/%2Fx",
        "/a/%5Cx",
        "/a/%3Bx",
        "/a/%zz",
        "/a/%00",
        "/a/é",
        "/a/x%20y",
        "/a/[1]",
        "/a/x|y",
        "/a\\b",
        "/a/x\"y",
        "/A/x",
        "/a/%61",
        "*",
        "/c/%2e",
        "/d/.hidden",
        "/data/?next=https://app.example.com/x",
    ]);
    let query = choices.of(&[
        "",
        "",
        "",
        "?x=1",
        "?access_token=",
        "?access_token=TOKEN",
        "?a=1&access_token=TOKEN&b=2",
        "?access_token=a&access%5Ftoken=b",
    ]);
    let query = if path == "*" || path.contains('?') {
        String::new()
    } else {
        query.replace("TOKEN", token)
    };
    let host = choices.of(&[
        "",
        "",
        "",
        "http://app.test",
        "http://APP.test:8080",
        "http://localhost:1",
        "http://a_b.test",
        "http://user@app.test",
    ]);
    if path == "*" { path.to_owned() } else { format!("{host}{path}{query}") }
}

/// Valid and invalid tokens.
fn token(choices: &mut Choices) -> String {
    let now = mint::now();
    match choices.next() % 20 {
        0 => "a.b.c".to_owned(),
        1 => "broken".to_owned(),
        2 => mint::claims(json!({ "exp": now - 600, "iat": now - 1_200 })),
        3 => mint::claims(json!({ "iss": "https://elsewhere.test" })),
        4 => mint::claims(json!({ "aud": "others" })),
        5 => mint::claims(json!({ "sub": null })),
        6 => mint::claims(json!({ "nbf": now + 9_000 })),
        7 => mint::claims(json!({ "exp": now + 9_000_000 })),
        8 => mint::secret(
            jsonwebtoken::Algorithm::HS256,
            b"another secret that is long enough for this",
        )
        .token(json!({}), json!({})),
        9 => mint::hmac().token(json!({ "crit": ["x"] }), json!({})),
        10 => mint::hmac().token(json!({ "alg": "none" }), json!({})),
        11 => mint::claims(
            json!({ "roles": ["admin"], "email": "a@example.com", "tenant": "acme", "scope": "read write" }),
        ),
        12 => mint::claims(
            json!({ "roles": ["user", "admin"], "email": "ü, b@example.com", "email_verified": false }),
        ),
        13..=17 => {
            // Far from every limit: the two are asked within seconds.
            let ago = choices.of(&[60, 1_800, 9_000]);
            let auth_time =
                choices.of(&[json!(now - ago), json!(now - ago), json!(null), json!("now")]);
            let acr = choices.of(&[
                json!("phr"),
                json!("mfa"),
                json!("pwd"),
                json!(null),
                json!(["mfa"]),
            ]);
            mint::claims(
                json!({ "roles": ["user"], "acr": acr, "auth_time": auth_time, "idp": "partner" }),
            )
        }
        _ => mint::token(&["user"]),
    }
}

fn request(choices: &mut Choices) -> Wanted {
    let token = token(choices);
    let method = choices.of(&[
        "GET", "GET", "GET", "POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE",
        "CONNECT", "PROPFIND", "COPY", "MOVE",
    ]);
    let url = target(choices, &token);
    let mut wanted =
        Wanted { method: method.to_owned(), url, fields: Vec::new(), body: Vec::new() };
    add_credentials(choices, &token, &mut wanted);
    add_browser_fields(choices, &mut wanted);
    add_framing(choices, &mut wanted);
    add_claims_of_identity(choices, &mut wanted);
    add_second_targets(choices, &mut wanted);
    add_odd_fields(choices, &mut wanted);
    wanted
}

fn add_credentials(choices: &mut Choices, token: &str, wanted: &mut Wanted) {
    let mut add = |name: &str, value: &str| wanted.add(name, value);
    match choices.next() % 8 {
        0..=2 => add("Authorization", &format!("Bearer {token}")),
        3 => add("Cookie", &format!("theme=dark; __Host-portcullis={token}; lang=en")),
        4 if choices.once_in(2) => {
            add("Cookie", &format!("__Host-portcullis={token}; __Host-portcullis-session=forged"));
        }
        4 => add("Cookie", "a=b; __Host-portcullis-session=forged"),
        5 => {
            let value = choices.of(&[
                "Basic YTpi",
                "Bearer",
                "Bearer a b",
                "bearer x.y.z",
                "",
                "Digest x=1",
            ]);
            add("Authorization", value);
        }
        6 if choices.once_in(2) => {
            add("Authorization", &format!("Bearer {token}"));
            add("Cookie", &format!("__Host-portcullis={token}"));
        }
        _ => {}
    }
}

fn add_browser_fields(choices: &mut Choices, wanted: &mut Wanted) {
    let mut add = |name: &str, value: &str| wanted.add(name, value);
    if choices.once_in(3) {
        let origin = choices.of(&[
            "http://localhost",
            "http://app.test",
            "https://app.test",
            "null",
            "http://evil.test",
            "http://app.test:80",
        ]);
        add("Origin", origin);
    }
    if choices.once_in(4) {
        add("Sec-Fetch-Site", choices.of(&["same-origin", "same-site", "cross-site", "none"]));
    }
    if choices.once_in(4) {
        add("Sec-Fetch-Mode", choices.of(&["navigate", "cors", "no-cors"]));
    }
    if choices.once_in(3) {
        add("Accept", choices.of(&["text/html,*/*;q=0.8", "application/json", "*/*"]));
    }
}

fn add_framing(choices: &mut Choices, wanted: &mut Wanted) {
    match choices.next() % 24 {
        0 => wanted.add(
            "Content-Length",
            choices.of(&["", "+3", "3, 3", "-1", "x", "99999999999999999999"]),
        ),
        1 => wanted.add(
            "Transfer-Encoding",
            choices.of(&["gzip, chunked", "identity", "chunked, chunked", "gzip", ""]),
        ),
        2 => {
            wanted.add("Content-Length", "3");
            wanted.add("Content-Length", choices.of(&["3", "4"]));
            wanted.body = b"abc".to_vec();
        }
        3 | 4 => {
            let length = choices.of(&[3, 12, 13, 1_024, 1_025, 20_000]);
            wanted.add("Content-Length", &length.to_string());
            wanted.body = vec![b'x'; length];
        }
        5 => {
            wanted.add("Transfer-Encoding", "chunked");
            wanted.body = b"3\r\nabc\r\n0\r\n\r\n".to_vec();
        }
        _ => {}
    }
}

fn add_claims_of_identity(choices: &mut Choices, wanted: &mut Wanted) {
    let mut add = |name: &str, value: &str| wanted.add(name, value);
    if choices.once_in(6) {
        let name =
            choices.of(&["X-HTTP-Method-Override", "X_HTTP_Method_Override", "X-Method-Override"]);
        add(name, choices.of(&["DELETE", "get", "TRACE", "no method", "POST"]));
    }
    if choices.once_in(3) {
        let name = choices.of(&[
            "X-Auth-User",
            "x_auth_user",
            "X.Auth.Roles",
            "X-Remote-User",
            "X-Forwarded-Host",
            "X-Original-URL",
            "X-Real-IP",
            "Proxy",
            "Via",
        ]);
        add(name, "root");
    }
    if choices.once_in(3) {
        let (name, value) = choices.of(&[
            ("X-Forwarded-For", "198.51.100.7"),
            ("X-Forwarded-For", "198.51.100.7, 127.0.0.9"),
            ("Forwarded", "for=192.0.2.4;proto=https"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-For", "unknown"),
        ]);
        add(name, value);
    }
}

/// Other resources that the request names (RFC 4918 §10.3, §10.4).
fn add_second_targets(choices: &mut Choices, wanted: &mut Wanted) {
    let is_webdav = matches!(wanted.method.as_str(), "COPY" | "MOVE");
    if is_webdav || choices.once_in(16) {
        let destination = choices.of(&[
            "/a/x",
            "/a/b",
            "/b/1",
            "/c/x?access_token=t&x",
            "http://app.test/c/d",
            "http://localhost/d/e",
            "https://app.test:443/c/d",
            "http://evil.test/c/d",
            "/Fold/x",
            "/auth/login",
            "/moved/x",
            "/a/%2e%2e/c",
            "/a//b",
            "//a/x",
            "c",
            "",
        ]);
        wanted.add("Destination", destination);
        if choices.once_in(12) {
            wanted.add("Destination", "/c/second");
        }
    }
    if choices.once_in(if is_webdav { 3 } else { 16 }) {
        let condition = choices.of(&[
            "(<urn:x> [\"e\"])",
            "</a/x> (<urn:x>)",
            "<http://app.test/b/1> (<urn:x>) </c/d> (Not [W/\"e\"])",
            "<http://evil.test/a> (<urn:x>)",
            "</a/../b> (<urn:x>)",
            "</c/d>",
        ]);
        wanted.add("If", condition);
    }
}

fn add_odd_fields(choices: &mut Choices, wanted: &mut Wanted) {
    let mut add = |name: &str, value: &str| wanted.add(name, value);
    if choices.once_in(8) {
        add("Connection", choices.of(&["close", "keep-alive", "X-Auth-User, close", "upgrade"]));
    }
    if choices.once_in(20) {
        add("Upgrade", choices.of(&["websocket", "h2c"]));
    }
    if choices.once_in(20) {
        add(
            "Host",
            choices.of(&["app.test", "app.test:80", "bad host", "", "[::1]:80", "app.test."]),
        );
    }
    if choices.once_in(12) {
        for index in 0..choices.of(&[10, 12, 36, 90, 110]) {
            add(&format!("X-Many-{index}"), "1");
        }
    }
    if choices.once_in(40) {
        add("X-Large", &"l".repeat(choices.of(&[7_000, 9_000, 40_000])));
    }
}

async fn send(gateway: &Gateway, wanted: &Wanted) -> Response {
    let mut connection = gateway.connect().await;
    // The gateway may respond and close before the whole request is written.
    let _ = connection.try_write(wanted.bytes()).await;
    connection
        .try_response_to(&wanted.method)
        .await
        .unwrap_or_else(|| panic!("no answer to {wanted:?}"))
}

/// The result according to the access log and the response.
fn observed(response: &Response, line: Option<&Value>) -> Live {
    let Some(line) = line else {
        return Live { status: response.status, reason: None, route: None, upstream: None };
    };
    let outcome = line["outcome"].as_str().unwrap();
    let is_let_through = matches!(outcome, "allowed" | "would_refuse");
    let is_echo = is_let_through
        && response.header("content-type") == Some("application/json")
        && response.status == 200;
    let upstream = is_echo.then(|| serde_json::from_slice::<Value>(&response.body).ok()).flatten();
    let upstream = upstream.filter(|echo| echo["target"].is_string());
    let is_redirect = matches!(response.status, 301 | 308);
    Live {
        status: if is_let_through && !is_redirect { 200 } else { response.status },
        reason: line["reason"].as_str().map(str::to_owned),
        route: line["http.route"].as_str().map(str::to_owned),
        upstream,
    }
}

/// Describes the differences.
fn difference(output: &Explanation, live: &Live, by_issuer: bool) -> Option<String> {
    // An endpoint of the built-in issuer may refuse for what is in the body or the store; one that
    // needs no caller then reports why the credentials that were sent count as none.
    let counts_as_none =
        output.steps.iter().any(|step| (step.step, step.outcome) == ("authenticate", "skipped"));
    if by_issuer && output.allow {
        if counts_as_none && live.status != 200 {
            return None;
        }
        let decided = [
            "origin_foreign",
            "credentials_missing",
            "route_not_found",
            "method_not_allowed",
            "target_ambiguous",
            "body_too_large",
        ];
        let refused =
            live.reason.as_deref().filter(|reason| decided.contains(reason) && live.status != 200);
        return refused.map(|reason| format!("explained as allowed, refused with {reason}"));
    }
    let mut words = String::new();
    if output.status != live.status {
        write!(words, "status {} and {}; ", output.status, live.status).unwrap();
    }
    if let Some(reason) = &live.reason
        && reason != output.reason.as_str()
    {
        write!(words, "reason {} and {reason}; ", output.reason.as_str()).unwrap();
    }
    if live.reason.is_some() && output.route != live.route {
        write!(words, "route {:?} and {:?}; ", output.route, live.route).unwrap();
    }
    if let Some(echo) = &live.upstream {
        let mut seen: BTreeMap<String, Value> = BTreeMap::new();
        for name in output.sent.keys() {
            let values: Vec<_> = output
                .sent
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect();
            seen.insert(
                name.to_string(),
                if let [one] = values.as_slice() { json!(one) } else { json!(values) },
            );
        }
        let mut real: BTreeMap<String, Value> =
            serde_json::from_value(echo["headers"].clone()).unwrap();
        for name in PER_EXCHANGE {
            seen.remove(name);
            real.remove(name);
        }
        if seen != real {
            write!(words, "headers {seen:?} and {real:?}; ").unwrap();
        }
        let sent = format!(
            "{} {} to upstream",
            echo["method"].as_str().unwrap(),
            echo["target"].as_str().unwrap()
        );
        if !output.steps.last().is_some_and(|step| step.detail.starts_with(&sent)) {
            write!(words, "sent {:?} and {sent}; ", output.steps.last()).unwrap();
        }
    }
    (!words.is_empty()).then_some(words)
}

fn compile(path: &Path, text: String) -> Result<Snapshot, String> {
    let loaded = config::parse(path, text).map_err(|problems| problems.draw(false))?;
    let options = CompileOptions {
        previous: None,
        create: CreateFiles::No,
        metrics: &Metrics::new(),
        now: mint::now(),
    };
    Snapshot::compile(loaded, &options)
        .map(|compiled| compiled.snapshot)
        .map_err(|problems| problems.draw(false))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_explain_and_tests_decide_alike() {
    portcullis::token::install_crypto();
    let (mut differences, mut asked, mut tested, mut refused) = (Vec::new(), 0, 0, 0);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..FILES {
        let mut choices = Choices(
            0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9),
        );
        let gateway = Gateway::start(&file(&mut choices, number)).await;
        let config = gateway.path("gateway.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let snapshot =
            compile(&config, text.clone()).unwrap_or_else(|problems| panic!("{problems}"));
        let mut exchanges = Vec::new();
        // One connection after another on one worker, so that log lines have this order.
        for _ in 0..REQUESTS {
            let wanted = request(&mut choices);
            let response = send(&gateway, &wanted).await;
            let output = explain(&snapshot, &wanted.question(), mint::now());
            exchanges.push((wanted, response, output));
        }
        let malformed =
            |output: &Explanation| output.steps.first().is_some_and(|step| step.step == "head");
        // Once the last line is written, all earlier ones are too.
        gateway.get(END).send().await;
        gateway.access(END).await;
        let is_access = |line: &Value| {
            line["http.request.method"].is_string() && line["url.path"].as_str() != Some(END)
        };
        let lines: Vec<Value> = gateway.log().lines().into_iter().filter(is_access).collect();
        let mut lines = lines.iter();
        let mut tests = String::new();
        for (wanted, response, output) in &exchanges {
            let logged = if malformed(output) { None } else { lines.next() };
            let live = observed(response, logged);
            asked += 1;
            refused += usize::from(live.status != 200);
            *reasons
                .entry(live.reason.clone().unwrap_or_else(|| format!("server {}", live.status)))
                .or_default() += 1;
            let by_issuer = output.route.as_deref() == Some("auth");
            if let Some(words) = difference(output, &live, by_issuer) {
                differences
                    .push(format!("file {number}: {words}\n  {wanted:?}\n  {:?}", output.steps));
                continue;
            }
            if let (Some(test), false) = (wanted.test(&live), by_issuer && output.allow) {
                tests.push_str(&test);
                tested += 1;
            }
        }
        if let Err(problems) = compile(&config, format!("{text}\n{tests}")) {
            differences.push(format!("file {number}: check disagrees\n{problems}"));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {asked} differ:\n{}",
        differences.len(),
        differences[..differences.len().min(12)].join("\n")
    );
    assert!(
        asked >= 5_000 && tested > 4_000 && refused > 1_500,
        "{asked} {tested} {refused} {reasons:?}"
    );
    assert!(reasons.len() > 26, "{reasons:?}");
    for reason in ["step_up_required", "login_method"] {
        assert!(reasons.get(reason).is_some_and(|&count| count > 5), "{reasons:?}");
    }
}

/// Tokens of the built-in issuer say how somebody logged in, and only theirs count for `login`.
#[tokio::test]
async fn the_login_behind_a_token_is_explained_as_it_is_decided() {
    let demands = [
        ("any", "", 200, "authenticated"),
        ("password", "login = ['password']", 200, "authorized"),
        ("partner", "login = ['partner']", 403, "login_method"),
        ("pwd", "acr = ['pwd']", 200, "authenticated"),
        ("mfa", "acr = ['mfa', 'phr']", 401, "step_up_required"),
        ("recent", "max_age = '1h'", 200, "authenticated"),
        ("both", "acr = ['pwd']\nmax_age = '1h'\nlogin = ['password']", 200, "authorized"),
    ];
    let mut text = "[identity]\nissuer = 'http://localhost/auth'\nregistration = 'open'\n\
        [identity.login.partner]\nissuer = 'http://127.0.0.1:9'\nclient_id = 'x'\nclient_secret = 'y'\ninsecure_inline_secret = true\n\
        [[route]]\npath = '/auth/*'\nidentity = true\n"
        .to_owned();
    for (name, lines, status, reason) in demands {
        write!(text, "[[route]]\npath = '/{name}'\nupstream = 'app'\nissuers = ['identity', 'corp']\n{lines}\n").unwrap();
        // `auth_time` is a time, and a test is about no particular one.
        write!(text, "[[test]]\nrequest = 'GET /{name}'\nissuer = 'identity'\n\
            claims = {{ sub = 'u', idp = 'password', acr = 'pwd', auth_time = 4102444800 }}\nexpect = {{ status = {status}, reason = '{reason}' }}\n").unwrap();
    }
    let gateway = Gateway::start(&text).await;
    gateway.register("ann@example.com").await;
    let own = gateway.login("ann@example.com").await.access;
    let foreign =
        mint::claims(json!({ "idp": "password", "acr": "pwd", "auth_time": mint::now() }));
    for (name, lines, status, reason) in demands {
        for (token, is_own) in [(&own, true), (&foreign, false)] {
            let path = format!("/{name}");
            let response = gateway.get(&path).bearer(token).send().await;
            let (code, printed, errors) =
                gateway.command(&["explain", "GET", &path, "--token", token, "--json"]).await;
            let explained: Value =
                serde_json::from_str(&printed).unwrap_or_else(|_| panic!("{code} {errors}"));
            assert_eq!(explained["status"], response.status, "{name} {is_own} {explained}");
            let expected = if is_own || !lines.contains("login") {
                (status, reason)
            } else {
                (403, "login_method")
            };
            assert_eq!(
                (explained["status"].as_u64(), explained["reason"].as_str()),
                (Some(expected.0), Some(expected.1)),
                "{name} {is_own}"
            );
        }
    }
}
