//! The seam between a proxy and the gateway: what a client can write to be taken for the proxy or for
//! another client.

use super::super::spelling::{SIGNS, USUAL_SIGNS, half_spelled, spelled};
use super::{Corpus, Draft, Family, Spot};
use crate::gateway::headers::{EXACT_SPELLING, METHOD_OVERRIDES, TRACE, VIEW};

/// The address of no client (RFC 5737).
const NO_CLIENT: &str = "203.0.113.77";

/// Fields of one proxy or another that say which target was requested.
const TARGETS: [&str; 9] = [
    "X-Original-URI",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Rewrite-URI",
    "X-Forwarded-Uri",
    "X-Forwarded-Path",
    "X-Forwarded-Prefix",
    "X-Portcullis-Uri",
    "X-Envoy-Original-Path",
];

/// The same for the host.
const HOSTS: [&str; 5] =
    ["X-Forwarded-Host", "X-Original-Host", "X-Host", "X-Portcullis-Host", "X-Forwarded-Server"];

/// The same for the method.
const METHODS: [&str; 5] = [
    "X-Original-Method",
    "X-Forwarded-Method",
    "X-Portcullis-Method",
    "X-HTTP-Method-Override",
    "X-Method-Override",
];

/// Fields that name a client who might be trusted.
const CLIENTS: [&str; 5] =
    ["X-Forwarded-For", "X-Real-IP", "X-Portcullis-Client", "True-Client-IP", "Client-IP"];

/// A key of a WebSocket (RFC 6455 §1.3).
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The settings of an upgrade to HTTP/2 (RFC 7540 §3.2.1).
const HTTP2_SETTINGS: &str = "AAMAAABkAAQAAP__";

impl Corpus<'_> {
    /// All of it.
    pub(super) fn matrix(&self) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let first = |wanted: fn(&Spot) -> bool| self.spots.iter().find(|spot| wanted(spot));
        let open = first(|spot| spot.is_open);
        for spot in self.spots.iter().filter(|spot| !spot.is_open) {
            let nearby = self.spots.iter().find(|open| open.is_open && open.host == spot.host);
            let nearby = nearby.or(open).map_or("/", |open| open.root.as_str());
            drafts.extend(misnamed(spot, nearby));
        }
        if let Some(guarded) = first(|spot| !spot.is_open) {
            drafts.extend(hosts(guarded, open));
            drafts.extend(upgrades(guarded));
        }
        if let Some(open) = open {
            drafts.extend(self.spoofed(open, false));
            drafts.extend(self.claims(open));
            drafts.extend(self.credentials(open));
            drafts.extend(protocols(open));
            if let Some(guarded) = first(|spot| !spot.is_open) {
                drafts.extend(self.smuggled(open, guarded));
            }
        }
        if let Some(mine) = first(|spot| spot.is_mine) {
            drafts.extend(self.spoofed(mine, true));
            drafts.extend(self.as_caller(mine, open));
            drafts.extend(protocols(mine).into_iter().map(Draft::with_token));
        }
        drafts
    }

    /// A value that occurs nowhere else.
    fn unique(&self, number: usize) -> String {
        format!("{}-s{number}", self.nonce)
    }

    /// Identity headers in every spelling, by the names of hop-by-hop fields, and after the body.
    fn spoofed(&self, spot: &Spot, is_caller: bool) -> Vec<Draft> {
        let names: Vec<String> =
            self.oracle.identity().iter().map(|name| name.as_str().to_owned()).collect();
        let mut drafts = Vec::new();
        let base = |what: String| {
            let draft = Draft::new(Family::Identity, spot, &spot.root).what(what);
            if is_caller { draft.with_token() } else { draft }
        };
        for sign in SIGNS {
            let example = names.first().map(|name| spelled(name, sign)).unwrap_or_default();
            let mut whole = base(format!("`{example}` and the like"));
            let mut half = base(format!("half of `{example}` and the like"));
            for (number, name) in names.iter().enumerate() {
                whole = whole.secret(&spelled(name, sign), &self.unique(number));
                if let Some(name) = half_spelled(name, sign) {
                    half = half.secret(&name, &self.unique(100 + number));
                }
            }
            drafts.push(whole);
            if sign != "-" && !half.secrets.is_empty() {
                drafts.push(half);
            }
        }
        for (number, name) in names.iter().enumerate() {
            let upper = name.to_ascii_uppercase();
            let (one, two) = (self.unique(number), self.unique(100 + number));
            drafts.push(base(format!("`{name}` twice")).secret(name, &one).secret(&upper, &two));
            let hop = format!("close, {name}");
            drafts.push(base(format!("`Connection: {hop}`")).idle("Connection", &hop));
            drafts.push(
                base(format!("`{name}`, and `Connection: {hop}`"))
                    .secret(name, &one)
                    .idle("Connection", &hop),
            );
            let mut trailer = base(format!("the trailer `{name}`"))
                .idle("Transfer-Encoding", "chunked")
                .idle("Trailer", name);
            trailer.after = format!("0\r\n{name}: {one}\r\n\r\n");
            trailer.secrets.push((name.clone(), one));
            drafts.push(trailer);
        }
        drafts
    }

    /// What an application could take for the proxy's word about the request.
    fn claims(&self, open: &Spot) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let forwarded = [
            "x-forwarded-user",
            "x-forwarded-email",
            "x-forwarded-groups",
            "x-forwarded-prefix",
            "x-forwarded-scheme",
            "x-forwarded-ssl",
            "x-forwarded-client-cert",
        ];
        // The gateway itself keeps those of a trusted proxy.
        let ids: &[&str] = if self.oracle.via.is_some() { &["x-request-id"] } else { &[] };
        let traces: &[&str] = if ids.is_empty() { &[] } else { &TRACE };
        let names = VIEW.iter().chain(&METHOD_OVERRIDES).chain(&forwarded).chain(&EXACT_SPELLING);
        for (number, name) in names.chain(ids).chain(traces).enumerate() {
            // In its own spelling, it is genuine.
            let is_other = |sign: &&str| *sign != "-" || !EXACT_SPELLING.contains(name);
            for sign in USUAL_SIGNS.into_iter().filter(is_other) {
                let name = spelled(name, sign);
                let draft = Draft::new(Family::Field, open, &open.root).what(format!("`{name}`"));
                drafts.push(draft.secret(&name, &self.unique(number)));
            }
        }
        drafts.dedup_by(|one, other| one.idle == other.idle);
        for sign in USUAL_SIGNS {
            for name in ["x-forwarded-for", "x-forwarded-host"] {
                let name = spelled(name, sign);
                let draft = Draft::new(Family::Field, open, &open.root).what(format!("`{name}`"));
                let value =
                    if name.ends_with("for") { NO_CLIENT } else { "portcullis-attack.test" };
                drafts.push(draft.secret(&name, value));
            }
        }
        drafts
    }

    /// Credentials that are the gateway's, and that the application must not see.
    fn credentials(&self, open: &Spot) -> Vec<Draft> {
        let secret = self.unique(0);
        let cookie = &self.oracle.snapshot.rules.token_names.cookie;
        let session = &self.oracle.snapshot.rules.token_names.session;
        let draft = |what: &str| Draft::new(Family::Credentials, open, &open.root).what(what);
        let mut drafts = vec![
            draft("`Authorization` of the client")
                .secret("Authorization", &format!("Bearer {secret}")),
        ];
        for (number, name) in [cookie, session].into_iter().enumerate() {
            let secret = self.unique(number);
            for line in [
                format!("{name}={secret}"),
                format!("a=1; {name}={secret}; b=2"),
                format!("a=1;{name}={secret}"),
                format!("={name}={secret}"),
            ] {
                let mut draft = draft(&format!("`Cookie: {}`", line.replace(&secret, "…")));
                draft.secrets.push((format!("the cookie {name}"), secret.clone()));
                drafts.push(draft.idle("Cookie", &line));
            }
        }
        drafts
    }

    /// Requests with the token that say two things, or come from another site.
    fn as_caller(&self, mine: &Spot, open: Option<&Spot>) -> Vec<Draft> {
        let draft = |family, what: &str| {
            Draft::new(family, mine, &mine.root).what(what.to_owned()).with_token()
        };
        let mut drafts = vec![
            draft(Family::Credentials, "and another `Authorization`")
                .decisive("Authorization", "Bearer x.y.z"),
        ];
        let other = open.map_or("portcullis-attack.test", |open| open.host.as_str());
        for host in [format!("{},{other}", mine.host), format!("{other}, {}", mine.host)] {
            let mut draft = draft(Family::Host, &format!("`Host: {host}`"));
            draft.hosts = Some(vec![host]);
            drafts.push(draft);
        }
        if let Some((token, _)) = &self.oracle.token {
            let cookie = &self.oracle.snapshot.rules.token_names.cookie;
            for origin in ["https://portcullis-attack.test", "null"] {
                let draft = Draft::new(Family::Upgrade, mine, &mine.root)
                    .what(format!("a WebSocket by cookie from `Origin: {origin}`"))
                    .decisive("Cookie", &format!("{cookie}={token}"))
                    .decisive("Origin", origin);
                drafts.push(handshake(draft));
            }
        }
        drafts
    }

    /// Requests to a guarded path, hidden behind or inside one to an open path.
    fn smuggled(&self, open: &Spot, guarded: &Spot) -> Vec<Draft> {
        let secret = self.unique(0);
        let hidden = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nX-Attack-Mark: {secret}\r\nConnection: close\r\n\r\n",
            guarded.root, guarded.host
        );
        let length = hidden.len().to_string();
        let draft = |what: &str, fields: &[(&str, &str)], after: String| {
            let mut draft = Draft::new(Family::Smuggling, open, &open.root).what(what);
            for (name, value) in fields {
                draft = draft.idle(name, value);
            }
            draft.secrets.push((format!("a second request, to {}", guarded.root), secret.clone()));
            Draft { after, has_hidden: true, ..draft }
        };
        let chunks = format!("0\r\n\r\n{hidden}");
        let long = (hidden.len() + 5).to_string();
        let chunked = ("Transfer-Encoding", "chunked");
        let mut drafts = vec![
            draft("and a second one behind it", &[], hidden.clone()),
            draft(
                "a body that looks like a second one",
                &[("Content-Length", &length)],
                hidden.clone(),
            ),
            draft(
                "`Content-Length: 0`, and a second one",
                &[("Content-Length", "0")],
                hidden.clone(),
            ),
            draft(
                "two `Content-Length`",
                &[("Content-Length", &length), ("Content-Length", "0")],
                hidden.clone(),
            ),
            draft(
                "`Content-Length` and chunks",
                &[("Content-Length", &long), chunked],
                chunks.clone(),
            ),
            draft(
                "chunks and `Content-Length`",
                &[chunked, ("Content-Length", &long)],
                chunks.clone(),
            ),
            draft("a second one behind the last chunk", &[chunked], chunks.clone()),
        ];
        for coding in
            ["xchunked", "chunked, identity", "identity, chunked", "\tchunked", "\"chunked\""]
        {
            let fields = [("Content-Length", long.as_str()), ("Transfer-Encoding", coding)];
            drafts.push(draft(&format!("`Transfer-Encoding: {coding}`"), &fields, chunks.clone()));
        }
        for protocol in ["h2c", "websocket", "tls/1.2"] {
            let fields = [("Connection", "Upgrade"), ("Upgrade", protocol)];
            drafts.push(draft(&format!("`Upgrade: {protocol}`"), &fields, hidden.clone()));
        }
        drafts
    }
}

/// Fields that name another target, method, host or client than the request itself.
fn misnamed(guarded: &Spot, open: &str) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let mut push = |what: String, fields: &[(String, &str)]| {
        let mut draft = Draft::new(Family::Field, guarded, &guarded.root).what(what);
        for (name, value) in fields {
            draft = draft.idle(name, value);
        }
        drafts.push(draft);
    };
    for (names, value) in [
        (&TARGETS[..], open),
        (&HOSTS[..], "localhost"),
        (&METHODS[..], "OPTIONS"),
        (&CLIENTS[..], "127.0.0.1"),
    ] {
        for name in names {
            for sign in USUAL_SIGNS {
                let name = spelled(name, sign);
                push(format!("`{name}: {value}`"), &[(name, value)]);
            }
        }
    }
    let all = |names: &[&str], value| {
        names.iter().map(|name| ((*name).to_owned(), value)).collect::<Vec<(String, &str)>>()
    };
    let mut together = all(&TARGETS, open);
    together.extend(all(&METHODS, "OPTIONS"));
    push("every field that names a target".to_owned(), &together);
    push("`Forwarded`".to_owned(), &[("Forwarded".to_owned(), "for=127.0.0.1;host=localhost")]);
    for name in
        ["Expect: 100-continue", "Range: bytes=0-0", "Purpose: prefetch", "Accept: text/html"]
    {
        let (name, value) = name.split_once(": ").unwrap_or_default();
        push(format!("`{name}: {value}`"), &[(name.to_owned(), value)]);
    }
    for name in ["uri", "url", "rd", "auth", "access_token", "X-Forwarded-Uri"] {
        let target = format!("{}?{name}={open}", guarded.root);
        drafts.push(Draft::new(Family::Field, guarded, &target));
    }
    drafts
}

/// Hosts with two meanings.
fn hosts(guarded: &Spot, open: Option<&Spot>) -> Vec<Draft> {
    let other = open.map_or("localhost", |open| open.host.as_str());
    let host = guarded.host.as_str();
    let mut drafts = Vec::new();
    let lines: [&[&str]; 9] = [
        &[&format!("{host}.")],
        &[&host.to_uppercase()],
        &[&format!("{host}:80")],
        &[&format!("{other}@{host}")],
        &[&format!("{host}@{other}")],
        &[&format!("{host},{other}")],
        &[&format!("{other}, {host}")],
        &[host, other],
        &[other, host],
    ];
    for lines in lines {
        let what = lines.iter().map(|line| format!("`Host: {line}`")).collect::<Vec<_>>();
        let draft = Draft::new(Family::Host, guarded, &guarded.root).what(what.join(" and "));
        let hosts = Some(lines.iter().map(|line| (*line).to_owned()).collect());
        drafts.push(Draft { hosts, ..draft });
    }
    let absolute = format!("http://{host}{}", guarded.root);
    let draft = Draft::new(Family::Host, guarded, &absolute).what(format!("`Host: {other}`"));
    drafts.push(Draft { hosts: Some(vec![other.to_owned()]), ..draft });
    drafts
}

/// WebSockets without credentials.
fn upgrades(guarded: &Spot) -> Vec<Draft> {
    let draft = Draft::new(Family::Upgrade, guarded, &guarded.root);
    let keyless = draft
        .clone()
        .what("`Upgrade: websocket` without a key")
        .idle("Connection", "Upgrade")
        .idle("Upgrade", "websocket");
    vec![handshake(draft.what("a WebSocket")), keyless]
}

/// Upgrades to anything but WebSocket, after which requests would bypass the gateway.
fn protocols(spot: &Spot) -> Vec<Draft> {
    let lines: [&[&str]; 8] = [
        &["h2c"],
        &["websocket", "h2c"],
        &["h2c", "websocket"],
        &["h2c, websocket"],
        &["websocket, h2c"],
        &["foo"],
        &["TLS/1.0"],
        &["websocket2"],
    ];
    let draft = |lines: &[&'static str]| {
        let what = lines.iter().map(|line| format!("`Upgrade: {line}`")).collect::<Vec<_>>();
        let mut draft = Draft::new(Family::Upgrade, spot, &spot.root)
            .what(what.join(" and "))
            .decisive("Sec-WebSocket-Key", KEY)
            .decisive("Sec-WebSocket-Version", "13")
            .idle("Connection", "Upgrade, HTTP2-Settings")
            .idle("HTTP2-Settings", HTTP2_SETTINGS);
        for line in lines {
            draft = draft.idle("Upgrade", line);
        }
        draft.protocols = lines.iter().flat_map(|line| line.split(", ")).collect();
        draft
    };
    lines.into_iter().map(draft).collect()
}

fn handshake(draft: Draft) -> Draft {
    draft
        .decisive("Sec-WebSocket-Key", KEY)
        .decisive("Sec-WebSocket-Version", "13")
        .idle("Connection", "Upgrade")
        .idle("Upgrade", "websocket")
}
