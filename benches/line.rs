//! The request pipeline without sockets: the cost of one decision.
//!
//! `cargo bench --bench line` prints nanoseconds; `scripts/bench-line` runs it under callgrind and
//! prints instructions, which do not depend on the load of the machine. Each case runs the actual
//! functions of the data path, in the same order, once per iteration.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, Method, Request};
use portcullis::compile::CompileOptions;
use portcullis::config;
use portcullis::config::value::CreateFiles;
use portcullis::gateway::Snapshot;
use portcullis::gateway::TokenMemo;
use portcullis::gateway::authenticate::{Caller, Verifier};
use portcullis::gateway::client::{ClientAddress, Peer};
use portcullis::gateway::decide::{Decided, Decider};
use portcullis::gateway::dialect::Dialect;
use portcullis::gateway::exchange_ids::ExchangeIds;
use portcullis::gateway::observer::{LimitKey, Observer};
use portcullis::gateway::outgoing::Outgoing;
use portcullis::gateway::refusal::Refusal;
use portcullis::gateway::route::Route;
use portcullis::gateway::second_target::SecondTarget;
use portcullis::gateway::target::Target;
use portcullis::limit::Limit;
use portcullis::reason::Reason;
use portcullis::revocation::RevocationList;
use portcullis::telemetry::metrics::Metrics;
use portcullis::token::{Issuer, Minter, Revocation, RevokedBy, Scope, TokenCache, install_crypto};
use serde_json::json;

/// The time at which every token is verified, in Unix seconds.
const NOW: u64 = 1_900_000_000;

const SECRET: &[u8] = b"a benchmark's secret, long enough for HS256";

fn main() {
    install_crypto();
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let only = arguments.first().map(String::as_str);
    let iterations: u32 = arguments.get(1).and_then(|count| count.parse().ok()).unwrap_or(20_000);
    let wanted = |name: &str| only.is_none_or(|only| only == name);

    let rsa = include_bytes!("../tests/vectors/keys/rsa.pem");
    for (name, routes, case) in [
        ("nothing", 1, Case::Nothing),
        ("public, 1 route", 1, Case::Public),
        ("public, 100 routes", 100, Case::Public),
        ("public, 5000 routes", 5_000, Case::Public),
        ("public, 50000 routes", 50_000, Case::Public),
        ("HS256", 100, Case::Hs256),
        ("HS256, 500000 revoked", 100, Case::Revocations),
        ("RS256", 100, Case::Rs256),
        ("known token", 100, Case::Known),
        ("known cookie", 100, Case::KnownCookie),
        ("bad signature", 100, Case::BadSignature),
        ("no credentials", 100, Case::NoCredentials),
        ("target refused", 100, Case::Ambiguous),
    ] {
        if wanted(name) {
            let bench = Bench::new(routes, rsa);
            if case == Case::Revocations {
                bench.revoked.add(revocations());
            }
            let parts = bench.request(case);
            let begun = Instant::now();
            for _ in 0..iterations {
                let _ = black_box(bench.decide(case, black_box(&parts)));
            }
            let nanos = begun.elapsed().as_nanos() / u128::from(iterations);
            println!("{name:<24} {nanos:>9} ns");
        }
    }
    if wanted("one more revocation") {
        let list = RevocationList::default();
        list.add(revocations());
        let more: Vec<_> =
            (0..iterations).map(|index| revocation(RevokedBy::Sid, 1_000_000 + index)).collect();
        let begun = Instant::now();
        for one in more {
            list.add([one]);
        }
        let nanos = begun.elapsed().as_nanos() / u128::from(iterations);
        println!("{:<24} {nanos:>9} ns", "one more revocation");
    }
    for routes in [100, 5_000, 50_000] {
        let name = format!("compile {routes} routes");
        if wanted(&name) {
            let text = table(routes);
            let begun = Instant::now();
            black_box(compile(text));
            println!("{name:<24} {:>9} us", begun.elapsed().as_micros());
        }
    }
}

fn revocations() -> impl Iterator<Item = Revocation> {
    [RevokedBy::Jti, RevokedBy::Sid, RevokedBy::Subject]
        .into_iter()
        .flat_map(|by| (0..500_000 / 3).map(move |index| revocation(by, index)))
}

fn revocation(by: RevokedBy, index: u32) -> Revocation {
    Revocation { scope: Scope::Every, by, value: format!("{index:032x}-{index}").into(), at: NOW }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Nothing,
    Public,
    Hs256,
    /// As many revocations of each kind as a large logout causes.
    Revocations,
    Rs256,
    /// RS256, already verified and cached.
    Known,
    /// The same in the cookie of a browser that has a session.
    KnownCookie,
    BadSignature,
    NoCredentials,
    Ambiguous,
}

struct Bench {
    /// A connection has one.
    peer: Peer,
    snapshot: Snapshot,
    known: Mutex<TokenCache<TokenMemo>>,
    revoked: RevocationList,
    hs256: String,
    rs256: String,
}

impl Bench {
    fn new(routes: usize, rsa: &[u8]) -> Self {
        let mint = |issuer: &str| {
            let claims = json!({ "iss": issuer, "aud": "app", "sub": "alice", "iat": NOW, "exp": NOW + 600, "email": "alice@example.com",
                "name": "Alice", "roles": ["user", "auditor"], "jti": "0123456789abcdef" });
            claims.as_object().cloned().unwrap_or_default()
        };
        let hmac = Minter::from_secret(SECRET).expect("the secret is not empty");
        let rsa = Minter::from_private_pem(rsa).expect("the key is a private key");
        let hs256 =
            hmac.sign(hmac.default_algorithm(), None, "JWT", &mint("hmac")).expect("it signs");
        let rs256 = rsa.sign(rsa.default_algorithm(), None, "JWT", &mint("rsa")).expect("it signs");
        let snapshot = compile(table(routes));
        let known = Mutex::new(TokenCache::new(snapshot.token_cache, Metrics::new().token_cache()));
        let peer = Peer::new([127, 0, 0, 1].into(), false);
        Self { peer, snapshot, known, revoked: RevocationList::default(), hs256, rs256 }
    }

    fn request(&self, case: Case) -> Parts {
        let path = match case {
            Case::Public | Case::Nothing => "/public/index.html?page=2",
            Case::Ambiguous => "/app-0/%2e%2e/admin",
            Case::KnownCookie => "/session/reports/q3?page=2",
            _ => "/app-0/reports/q3?page=2",
        };
        let cookies = match case {
            Case::KnownCookie => format!(
                "theme=dark; lang=en; __Host-portcullis={}; __Host-portcullis-session={}",
                self.rs256,
                "a".repeat(75)
            ),
            _ => "theme=dark; lang=en".to_owned(),
        };
        let mut request = Request::builder().method(Method::GET).uri(path);
        for (name, value) in [
            ("host", "app.example.com"),
            (
                "user-agent",
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            ),
            ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
            ("accept-language", "en-GB,en;q=0.7"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("connection", "keep-alive"),
            ("cookie", &*cookies),
            ("x-forwarded-for", "198.51.100.7"),
        ] {
            request = request.header(name, value);
        }
        let token = match case {
            Case::Hs256 | Case::Revocations => Some(self.hs256.clone()),
            Case::Rs256 | Case::Known => Some(self.rs256.clone()),
            Case::BadSignature => Some(format!("{}AAAA", &self.hs256[..self.hs256.len() - 4])),
            _ => None,
        };
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(()).expect("the request is well-formed").into_parts().0
    }

    /// `Decider::decide`, up to the request that would be sent. Not inlined, because callgrind
    /// counts by function name.
    #[inline(never)]
    fn decide(&self, case: Case, parts: &Parts) -> Result<Outgoing<'_>, Refusal> {
        let parts = parts.clone();
        if case == Case::Nothing {
            return Err(Refusal::BodyTooLarge);
        }
        let snapshot = &self.snapshot;
        let known = matches!(case, Case::Known | Case::KnownCookie).then_some(&self.known);
        let names = &snapshot.rules.token_names;
        let verifier = Verifier::new(names, &snapshot.issuers, known, &self.revoked);
        let decider = Decider { snapshot, verifier, now: NOW, online: None };
        let mut ids = Ids(None);
        let outcome = pin!(decider.decide(&self.peer, parts, Some(0), &mut ids));
        match outcome.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Decided::Forward(outgoing, _))) => Ok(outgoing),
            Poll::Ready(Err(refusal)) => Err(refusal),
            _ => unreachable!("nothing waits, and every route leads to an application"),
        }
    }
}

/// Provides the ids of the exchange and nothing else: this benchmark does not measure recording.
struct Ids(Option<ExchangeIds>);

impl Observer for Ids {
    fn asked(&mut self, _: Dialect, _: &Parts) {}

    fn arrived(&mut self, client: &ClientAddress, headers: &HeaderMap) {
        self.0 = Some(ExchangeIds::new(headers, client));
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

    fn authenticated(&mut self, _: &Route, _: Option<&Caller>) {}

    fn renewable(&mut self) {}
    fn tolerated(&mut self, _: &Route, _: &Refusal) {}

    fn granted(&mut self, _: &Route, _: Reason) {}

    fn ids(&mut self) -> &ExchangeIds {
        self.0.get_or_insert_with(|| ExchangeIds::begin([127, 0, 0, 1].into()))
    }
}

fn compile(text: String) -> Snapshot {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/keys/gateway.toml");
    let loaded =
        config::parse(&folder, text).unwrap_or_else(|problems| panic!("{}", problems.draw(false)));
    let options = CompileOptions {
        previous: None,
        create: CreateFiles::No,
        metrics: &Metrics::new(),
        now: NOW,
    };
    Snapshot::compile(loaded, &options)
        .unwrap_or_else(|problems| panic!("{}", problems.draw(false)))
        .snapshot
}

/// A configuration file with this many routes.
fn table(routes: usize) -> String {
    let secret = std::str::from_utf8(SECRET).expect("it is ASCII");
    let mut text = format!(
        r#"
[upstream.app]
builtin = "echo"
[issuer.hmac]
issuer = "hmac"
audience = ["app"]
algorithms = ["HS256"]
secret = "{secret}"
insecure_inline_secret = true
[issuer.rsa]
issuer = "rsa"
audience = ["app"]
algorithms = ["RS256"]
public_keys = ["rsa.pem"]
[[route]]
path = "/public/*"
upstream = "app"
access = "public"
[[route]]
path = "/session/*"
upstream = "app"
roles = ["auditor"]
token_from = ["cookie"]
issuers = ["hmac", "rsa"]
"#
    );
    for index in 1..routes.max(2) {
        let _ = write!(
            text,
            "[[route]]\npath = \"/app-{}/*\"\nupstream = \"app\"\nroles = [\"auditor\"]\nissuers = [\"hmac\", \"rsa\"]\n",
            index - 1
        );
    }
    text
}
