//! `portcullis revoke`

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use toml::Spanned;

use super::issuer::{await_gateways, note_if_new};
use super::token::no_issuer;
use super::{Failure, NewStore, print};
use crate::clock::Clock;
use crate::compile::{CompileOptions, Compiled};
use crate::config::{self, Problem, Problems};
use crate::gateway::Snapshot;
use crate::revocation::{Retention, write_rows};
use crate::store::{Store, StoreSettings};
use crate::telemetry::metrics::Metrics;
use crate::token::{Revocation, RevokedBy, Scope};

#[derive(Debug, Args)]
#[command(
    after_help = "When the command ends, every gateway that runs on the same store refuses the tokens; a stopped gateway does so from its next start."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    store: NewStore,
    /// The issuer section of the tokens. Default: every issuer.
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// One token, by its `jti`.
    #[arg(long, value_name = "JTI")]
    jti: Option<String>,
    /// Every token of a session, by its `sid`.
    #[arg(long, value_name = "SID")]
    session: Option<String>,
    /// Every token of a subject that was issued up to now.
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
}

pub(super) fn revoke(path: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let (by, value) = arguments.what.target()?;
    let clock = Clock::system();
    let loaded = config::load(path)?;
    let source = loaded.source.clone();
    let section = loaded.file.store.as_ref().map_or(0..0, Spanned::span);
    let options = CompileOptions {
        previous: None,
        create: arguments.store.create(),
        metrics: &Metrics::new(),
        now: clock.unix_seconds(),
    };
    let Compiled { snapshot, .. } = Snapshot::compile(loaded, &options)?;
    let Some(settings) = &snapshot.start.store else {
        let problem = Problem::error(section, "there is no `[store]`, so a gateway that runs on this file cannot learn of it").help(
            "add a `[store]` section and restart the gateway; without one, `POST /revoke` of the admin listener revokes in its memory",
        );
        return Err(Problems::new(source, vec![problem]).into());
    };
    let scope = scope(&snapshot, arguments.issuer.as_deref())?;
    let retention = Retention::for_issuers(&snapshot.issuers);
    let kept = retention.seconds(&scope);
    let revocation = Revocation { scope, by, value: value.into(), at: clock.unix_seconds() };
    let (revocation, known) = write(settings, revocation, &retention)?;
    print(&report(&revocation, arguments.issuer.as_deref(), kept, known.is_ok()))?;
    known
}

impl What {
    fn target(&self) -> Result<(RevokedBy, &str), Failure> {
        let (by, value) = match (&self.jti, &self.session, &self.subject) {
            (Some(jti), ..) => (RevokedBy::Jti, jti),
            (None, Some(sid), _) => (RevokedBy::Sid, sid),
            (None, None, subject) => (
                RevokedBy::Subject,
                subject.as_ref().ok_or_else(|| Failure::Usage("name what to revoke".to_owned()))?,
            ),
        };
        if value.is_empty() {
            return Err(Failure::Usage(format!("the {by} is empty, which no token has")));
        }
        Ok((by, value))
    }
}

fn scope(snapshot: &Snapshot, name: Option<&str>) -> Result<Scope, Failure> {
    let Some(name) = name else { return Ok(Scope::Every) };
    let known = || snapshot.issuers.iter().chain(snapshot.issuers.certificates());
    let found = known().find(|issuer| &*issuer.settings().name == name);
    found.map(|issuer| Scope::for_issuer(issuer.settings())).ok_or_else(|| {
        let mut names: Vec<&str> = known().map(|issuer| &*issuer.settings().name).collect();
        names.sort_unstable();
        no_issuer(name, &names)
    })
}

/// Returns the revocation as it was written, and an error if a running gateway does not know it.
fn write(
    settings: &StoreSettings,
    revocation: Revocation,
    retention: &Retention,
) -> Result<(Revocation, Result<(), Failure>), Failure> {
    let failed = |error: &dyn std::error::Error| Failure::Other(format!("not revoked: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        Store::check_gateways(settings).map_err(|error| failed(&error))?;
        note_if_new(settings);
        let store = Store::open(settings).await.map_err(|error| failed(&error))?;
        let write = async {
            let kept = write_rows(&store, vec![revocation.clone()], retention).await;
            let written = kept.map_err(|error| failed(&error))?.pop().unwrap_or(revocation);
            Ok((written, await_gateways(&store, settings).await))
        };
        let done = write.await;
        store.close().await;
        done
    })
}

fn report(revocation: &Revocation, issuer: Option<&str>, kept: u64, is_known: bool) -> String {
    let Revocation { by, value, at, .. } = revocation;
    let whose = issuer.map_or("of every issuer".to_owned(), |name| format!("of issuer `{name}`"));
    let time =
        |seconds: u64| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds));
    let what = match by {
        RevokedBy::Jti => format!("the token with the jti `{value}` {whose}"),
        RevokedBy::Sid => format!("every token of the session `{value}` {whose}"),
        RevokedBy::Subject | RevokedBy::Sub => {
            format!(
                "every token of `{value}` {whose} that was issued up to {}, or has no `iat`",
                time(*at)
            )
        }
    };
    let until = time(at.saturating_add(kept));
    let who = if is_known {
        "Every gateway that runs on this store refuses it now"
    } else {
        "A running gateway refuses it only once it has read it"
    };
    format!(
        "revoked: {what}.\n{who}; one that is started later does so too. Kept until {until},\n\
         when no such token can still be valid.\n"
    )
}
