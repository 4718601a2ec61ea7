//! `portcullis explain`

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::{Map, Value};

use super::token::no_issuer;
use super::{Failure, has_colours, print};
use crate::clock::Clock;
use crate::config::value::CreateFiles;
use crate::explain::{Explanation, Question, explain as decide};
use crate::gateway::Snapshot;
use crate::gateway::authenticate::LookedUp;
use crate::gateway::dialect::Dialect;
use crate::gateway::personal::personal_token;
use crate::identity::issue::{KeysError, verifying_keys};
use crate::identity::personal_tokens::PersonalTokens;
use crate::process;
use crate::revocation::{Retention, RevocationList, Revocations};
use crate::store::Store;
use crate::telemetry::metrics::Metrics;
use crate::token::{AssumedToken, CERTIFICATE};

/// A proxy that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// nginx, with auth_request.
    Nginx,
    /// Caddy, with forward_auth.
    Caddy,
    /// Traefik, with forwardAuth.
    Traefik,
    /// Envoy, with ext_authz.
    Envoy,
    /// HAProxy, with a Lua action.
    Haproxy,
    /// Envoy Gateway in a Kubernetes cluster.
    GatewayApi,
}

impl Kind {
    pub(super) fn dialect(self) -> Dialect {
        match self {
            Self::Nginx => Dialect::Nginx,
            Self::Caddy => Dialect::Caddy,
            Self::Traefik => Dialect::Traefik,
            Self::Envoy | Self::GatewayApi => Dialect::Envoy,
            Self::Haproxy => Dialect::Haproxy,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The request method.
    #[arg(value_name = "METHOD")]
    method: String,
    /// The URL, or only the path if the host does not matter.
    #[arg(value_name = "URL")]
    url: String,
    /// A request header field; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// A bearer token, which is verified.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Claims to use as if they came from a verified token.
    #[arg(long, value_name = "JSON", conflicts_with = "token")]
    claims: Option<String>,
    /// The issuer section for the claims, or `certificate` for those of a client certificate;
    /// required if there are several and the claims have no `iss`.
    #[arg(long, value_name = "NAME", requires = "claims")]
    issuer: Option<String>,
    /// The address of the peer; with --via, the peer of the proxy.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    peer: IpAddr,
    /// The proxy that receives the request and asks the [verify] listener about it.
    #[arg(long, value_name = "KIND")]
    via: Option<Kind>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(path: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let clock = Clock::system();
    let snapshot = process::compile(path, None, CreateFiles::No, &Metrics::new(), &clock)?.snapshot;
    let question = Question {
        method: arguments
            .method
            .parse::<Method>()
            .map_err(|_| Failure::Usage(format!("`{}` is not a valid method", arguments.method)))?,
        url: arguments.url.clone(),
        headers: headers(arguments)?,
        peer: arguments.peer,
        assumed: assumed(arguments, &snapshot, clock.unix_seconds())?,
        looked_up: None,
        revoked: Arc::default(),
        via: arguments.via.map(Kind::dialect),
    };
    if question.via.is_some() && snapshot.askers.is_none() {
        let why = "the file has no [verify] section, so no proxy can ask";
        return Err(Failure::Usage(why.to_owned()));
    }
    let stored = stored(&snapshot, &clock, personal_token(&question.headers));
    let question = Question { revoked: stored.revoked, looked_up: stored.looked_up, ..question };
    let explanation = decide(&snapshot, &question, clock.unix_seconds());
    if arguments.json {
        print(&format!("{:#}\n", explanation.to_json()))
    } else {
        print(&drawn(&explanation, has_colours(&std::io::stdout())))
    }
}

/// The content of the store, as far as it can be read: revocations, and the keys of the built-in
/// issuer, which are installed for verification; and what a personal access token proves. If the
/// store cannot be read, the rest can still be explained.
fn stored(snapshot: &Snapshot, clock: &Clock, token: Option<String>) -> Stored {
    let Some(settings) = &snapshot.start.store else { return Stored::default() };
    let read = async {
        let Some(store) = Store::open_read_only(settings).await? else {
            return Ok(Stored::default());
        };
        let retention = Retention::for_issuers(&snapshot.issuers);
        let revocations =
            Revocations::load(Some(store.clone()), retention, clock.clone(), Metrics::new())
                .await?;
        if let Some(built_in) = snapshot.issuers.iter().find(|issuer| issuer.settings().is_built_in)
        {
            built_in.keys().replace(verifying_keys(&store).await?);
        }
        let looked_up = match (token, &snapshot.identity) {
            (Some(token), Some(policy)) => {
                let tokens = PersonalTokens::new(store, None);
                let found = tokens.peek(&token, policy, clock.unix_seconds()).await;
                Some(Arc::new(LookedUp { token, found }))
            }
            _ => None,
        };
        Ok::<_, KeysError>(Stored { revoked: Arc::clone(revocations.list()), looked_up })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(read).map_err(|error| error.to_string())).unwrap_or_else(
        |error| {
            eprintln!(
                "warning: the store cannot be read, so a revoked token is treated as valid, and a token of the built-in issuer \
                 cannot be verified: {error}"
            );
            Stored::default()
        },
    )
}

/// What the store holds about a request.
#[derive(Default)]
struct Stored {
    revoked: Arc<RevocationList>,
    looked_up: Option<Arc<LookedUp>>,
}

fn headers(arguments: &Arguments) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for field in &arguments.headers {
        let malformed =
            || Failure::Usage(format!("`{field}` is not a header field; write -H 'Name: value'"));
        let (name, value) = field.split_once(':').ok_or_else(malformed)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| malformed())?;
        headers.append(name, HeaderValue::from_str(value.trim()).map_err(|_| malformed())?);
    }
    if let Some(token) = &arguments.token {
        let value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Failure::Usage("the token is not ASCII".to_owned()))?;
        headers.append(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

fn assumed(
    arguments: &Arguments,
    snapshot: &Snapshot,
    now: u64,
) -> Result<Option<AssumedToken>, Failure> {
    let Some(json) = &arguments.claims else { return Ok(None) };
    let claims: Map<String, Value> = serde_json::from_str(json)
        .map_err(|error| Failure::Usage(format!("--claims is not a JSON object: {error}")))?;
    assume(claims, arguments.issuer.as_deref(), snapshot, now).map(Some)
}

/// A caller with these claims, of the issuer that is named here or in the claims, or of the only
/// one.
pub(super) fn assume(
    claims: Map<String, Value>,
    issuer: Option<&str>,
    snapshot: &Snapshot,
    now: u64,
) -> Result<AssumedToken, Failure> {
    let mut names: Vec<&str> =
        snapshot.issuers.iter().map(|issuer| &*issuer.settings().name).collect();
    names.sort_unstable();
    // A token says which issuer it is from.
    let iss = claims.get("iss").and_then(Value::as_str);
    let said =
        iss.and_then(|iss| snapshot.issuers.by_iss(iss)).map(|issuer| &*issuer.settings().name);
    let issuer = match (issuer, names.as_slice()) {
        (Some(issuer), _) if names.contains(&issuer) => issuer,
        (Some(issuer), _)
            if *issuer == *CERTIFICATE && snapshot.issuers.certificates().is_some() =>
        {
            CERTIFICATE
        }
        (Some(issuer), _) => return Err(no_issuer(issuer, &names)),
        (None, [only]) => *only,
        (None, []) => return Err(Failure::Usage("the file has no issuer that could have issued these claims".to_owned())),
        (None, several) => said.ok_or_else(|| {
            let unknown = iss.map(|iss| format!("there is no issuer `{iss}`; ")).unwrap_or_default();
            Failure::Usage(format!(
                "{unknown}name the issuer, with `iss` in the claims or with --issuer; known issuers: {}",
                several.join(", ")
            ))
        })?,
    };
    let caller = snapshot.issuers.assume(issuer, claims, now);
    caller.map_err(|error| {
        Failure::Other(format!("a token of `{issuer}` cannot have these claims: {error}"))
    })
}

fn drawn(explanation: &Explanation, has_colours: bool) -> String {
    let paint = |style: &str, text: &str| {
        if has_colours { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    };
    let mut text = String::new();
    for step in &explanation.steps {
        let mark = match step.outcome {
            "ok" => paint(GREEN, "ok"),
            "skipped" => paint(DIM, "--"),
            _ => paint(RED, "NO"),
        };
        let _ = writeln!(text, "{mark}  {:<13} {}", step.step, step.detail);
    }
    for (name, value) in &explanation.set {
        let _ = writeln!(
            text,
            "    set           {name}: {}",
            String::from_utf8_lossy(value.as_bytes())
        );
    }
    for name in &explanation.removed {
        let _ = writeln!(text, "    removed       {name}");
    }
    let (verdict, style) = if explanation.allow { ("allow", GREEN) } else { ("refuse", RED) };
    let verdict = paint(style, verdict);
    let _ = writeln!(text, "{verdict}: {} {}", explanation.status, explanation.reason.as_str());
    text
}

// Parameters of the terminal's `ESC [ … m` (ECMA-48, SGR).
const GREEN: &str = "1;32";
const RED: &str = "1;31";
const DIM: &str = "2";
