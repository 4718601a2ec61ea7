//! `portcullis token mint` and `token inspect`

use std::fmt::Write;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::{Failure, print};
use crate::clock::Clock;
use crate::config::file::Issuer as Written;
use crate::config::identity::NAME;
use crate::config::value::CreateFiles;
use crate::config::{self, Loaded, Problems, Severity};
use crate::identity::personal_tokens::is_personal;
use crate::telemetry::ids;
use crate::token::{self, Algorithm, Algorithms, Inspected, Minter};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Sign a token with a key from the file: an HMAC secret, or a private key in `public_keys`.
    Mint(MintArguments),
    /// Decode a token without verifying it.
    Inspect {
        /// The token; `-` or nothing reads it from standard input.
        token: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct MintArguments {
    /// The issuer section of the token.
    #[arg(long, value_name = "NAME")]
    issuer: String,
    /// The subject.
    #[arg(long = "sub", value_name = "SUBJECT")]
    subject: String,
    /// A role; may be repeated.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// A claim with a JSON value; anything that is not JSON is used as text.
    #[arg(long = "claim", value_name = "NAME=JSON")]
    claims: Vec<String>,
    /// The lifetime.
    #[arg(long, value_name = "DURATION", default_value = "15m")]
    ttl: String,
    /// The algorithm, if the issuer accepts several.
    #[arg(long, value_name = "ALG")]
    algorithm: Option<String>,
}

/// The content of a token to mint.
#[derive(Debug)]
pub(super) struct MintRequest {
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) roles: Vec<String>,
    pub(super) claims: Vec<String>,
    pub(super) ttl: String,
    pub(super) algorithm: Option<String>,
}

pub(super) fn token(path: &Path, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Mint(arguments) => {
            let request = MintRequest {
                issuer: arguments.issuer.clone(),
                subject: arguments.subject.clone(),
                roles: arguments.roles.clone(),
                claims: arguments.claims.clone(),
                ttl: arguments.ttl.clone(),
                algorithm: arguments.algorithm.clone(),
            };
            print(&format!("{}\n", mint(path, &request)?))
        }
        Command::Inspect { token } => inspect(token.as_deref()),
    }
}

/// Signs a token that an issuer section of the file would accept.
pub(super) fn mint(path: &Path, request: &MintRequest) -> Result<String, Failure> {
    let Loaded { source, file, problems, .. } = config::load(path)?;
    if let (NAME, Some(identity)) = (request.issuer.as_str(), &file.identity) {
        let url = identity
            .get_ref()
            .issuer
            .as_ref()
            .map_or("https://app.example.com/auth", |issuer| issuer.get_ref());
        return Err(Failure::Usage(format!(
            "the built-in issuer only issues tokens at login; log in to get one:\n\
             curl {url}/login --data-urlencode email=ann@example.com --data-urlencode password=…\n\
             `portcullis explain --issuer {NAME} --claims …` tells a decision without one"
        )));
    }
    let Some((_, written)) = file.issuer.iter().find(|(name, _)| *name.get_ref() == request.issuer)
    else {
        let names: Vec<&str> = file.issuer.keys().map(|name| name.get_ref().as_str()).collect();
        return Err(no_issuer(&request.issuer, &names));
    };
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(Problems::new(source, problems).into());
    }
    let minter = minter(&source, written)?;
    let algorithm = algorithm(written, &minter, request.algorithm.as_deref())?;
    let claims = claims(written, request)?;
    minter.sign(algorithm, None, "JWT", &claims).map_err(|error| Failure::Other(error.to_string()))
}

/// The error for a section that does not exist.
pub(super) fn no_issuer(asked: &str, known: &[&str]) -> Failure {
    Failure::Usage(match known {
        [] => format!("there is no [issuer.{asked}]: the file has no such section; add one"),
        _ => format!("there is no [issuer.{asked}]; known issuers: {}", known.join(", ")),
    })
}

fn minter(source: &config::Source, written: &Written) -> Result<Minter, Failure> {
    if let Some(secret) = &written.secret {
        let read = secret
            .get_ref()
            .read(source.folder(), CreateFiles::Yes)
            .map_err(|problem| Problems::new(source.clone(), vec![problem]))?;
        return Minter::from_secret(read.bytes.expose())
            .map_err(|error| Failure::Other(error.to_string()));
    }
    let files = written.public_keys.iter().flat_map(toml::Spanned::get_ref);
    let mut minters = files.filter_map(|file| {
        let pem = std::fs::read(source.folder().join(file.get_ref())).ok()?;
        Minter::from_private_pem(&pem).ok()
    });
    minters.next().ok_or_else(|| {
        Failure::Other(
            "the file has no key to sign with: `token mint` needs an issuer with `secret`, or a private key in its `public_keys`"
                .to_owned(),
        )
    })
}

fn algorithm(
    written: &Written,
    minter: &Minter,
    asked: Option<&str>,
) -> Result<Algorithm, Failure> {
    let listed = written
        .algorithms
        .iter()
        .flat_map(toml::Spanned::get_ref)
        .map(|text| text.get_ref().as_str());
    let known = Algorithms::parse;
    if let Some(asked) = asked {
        return known(asked)
            .filter(|algorithm| minter.algorithms().contains(*algorithm))
            .ok_or_else(|| Failure::Usage(format!("the key cannot sign `{asked}`")));
    }
    let mut fitting =
        listed.filter_map(known).filter(|algorithm| minter.algorithms().contains(*algorithm));
    fitting
        .next()
        .ok_or_else(|| Failure::Other("none of the issuer's `algorithms` suits its key".to_owned()))
}

fn claims(written: &Written, request: &MintRequest) -> Result<Map<String, Value>, Failure> {
    let ttl = humantime::parse_duration(&request.ttl).map_err(|_| {
        Failure::Usage(format!(
            "`{}` is not a duration; write, for example, 15m or 8h",
            request.ttl
        ))
    })?;
    let now = Clock::system().unix_seconds();
    let mut claims = Map::new();
    if let Some(issuer) = &written.issuer {
        claims.insert("iss".to_owned(), issuer.get_ref().clone().into());
    }
    if let Some(audience) = written.audience.iter().flat_map(toml::Spanned::get_ref).next() {
        claims.insert("aud".to_owned(), audience.get_ref().clone().into());
    }
    claims.insert("iat".to_owned(), now.into());
    claims.insert(
        "exp".to_owned(),
        now.saturating_add(ttl.max(Duration::from_secs(1)).as_secs()).into(),
    );
    claims.insert("jti".to_owned(), ids::request_id().to_string().into());
    let path = |name: Option<&toml::Spanned<config::value::ClaimName>>, default: &str| {
        name.map_or_else(|| vec![default.to_owned()], |name| name.get_ref().segments())
    };
    set(&mut claims, &path(written.subject.as_ref(), "sub"), request.subject.clone().into())?;
    if !request.roles.is_empty() {
        set(&mut claims, &path(written.roles.as_ref(), "roles"), request.roles.clone().into())?;
    }
    for claim in &request.claims {
        let (name, json) = claim
            .split_once('=')
            .ok_or_else(|| Failure::Usage(format!("`{claim}` is not a claim; write NAME=JSON")))?;
        claims.insert(name.to_owned(), serde_json::from_str(json).unwrap_or_else(|_| json.into()));
    }
    Ok(claims)
}

/// Sets a claim, nested according to its path.
fn set(claims: &mut Map<String, Value>, path: &[String], value: Value) -> Result<(), Failure> {
    match path {
        [] => Ok(()),
        [name] => {
            claims.insert(name.clone(), value);
            Ok(())
        }
        [name, below @ ..] => match claims.entry(name.clone()).or_insert_with(|| Map::new().into())
        {
            Value::Object(nested) => set(nested, below, value),
            _ => Err(Failure::Other(format!("the claim `{name}` is not an object"))),
        },
    }
}

fn inspect(token: Option<&str>) -> Result<(), Failure> {
    let text = match token {
        Some(token) if token != "-" => token.to_owned(),
        _ => {
            let mut text = String::new();
            std::io::stdin().take(1024 * 1024).read_to_string(&mut text)?;
            text
        }
    };
    if is_personal(text.trim().as_bytes()) {
        return print(
            "This is a personal access token: random characters that mean nothing by themselves. The store of the built-in issuer has a \
             digest of it.\nTo see what it proves: portcullis explain GET /PATH --token TOKEN\n",
        );
    }
    let inspected = token::inspect(&text)
        .map_err(|error| Failure::Other(format!("this is not a token: {error}")))?;
    print(&describe(&inspected))
}

fn describe(inspected: &Inspected) -> String {
    let mut text = "NOT VERIFIED: this is what the token says; anyone can write one.\n".to_owned();
    let _ = writeln!(text, "header {:#}", Value::Object(inspected.header.clone()));
    match &inspected.claims {
        Some(claims) => {
            let _ = writeln!(text, "claims {:#}", Value::Object(claims.clone()));
            for name in ["iat", "nbf", "exp"] {
                let time = claims
                    .get(name)
                    .and_then(Value::as_u64)
                    .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
                if let Some(time) = time {
                    let _ = writeln!(text, "{name}: {}", humantime::format_rfc3339_seconds(time));
                }
            }
        }
        None => {
            text.push_str("It is encrypted (JWE): only its recipient can read the claims, and the gateway only accepts signed tokens.\n");
        }
    }
    if !inspected.signed {
        text.push_str("It has no signature.\n");
    }
    if let Some(fault) = &inspected.fault {
        let _ = writeln!(text, "It would be refused with any keys: {fault}");
    }
    text
}
