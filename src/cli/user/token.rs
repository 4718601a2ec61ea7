//! `portcullis user token`: the personal access tokens of an account.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{account_by_email, called};
use crate::cli::Failure;
use crate::cli::issuer::{Issuer, table};
use crate::identity::bodies::{day, time};
use crate::identity::personal_tokens::{
    DEFAULT_TTL, NewToken, PersonalTokens, TokenError, parse_ttl,
};
use crate::store::PersonalTokenRow;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Command {
    /// Make a token and print it. It cannot be shown again.
    Add(AddArguments),
    /// List the tokens of an account.
    List {
        /// The address of the account, or its id.
        email: String,
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token.
    Revoke {
        /// The address of the account, or its id.
        email: String,
        /// The name of the token.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AddArguments {
    /// The address of the account, or its id.
    email: String,
    /// The name of the token, by which people recognise it.
    #[arg(long)]
    name: String,
    /// A role that the token is limited to; may be repeated. Default: all roles of the account.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// How long the token is valid, at most 10y.
    #[arg(long, value_name = "DURATION", default_value = DEFAULT_TTL)]
    ttl: String,
}

impl Command {
    /// Whether the command only reads.
    pub(super) fn only_reads(&self) -> bool {
        matches!(self, Self::List { .. })
    }
}

/// Returns what to print on standard output.
pub(super) async fn token(issuer: &Issuer, command: &Command) -> Result<String, Failure> {
    let tokens = PersonalTokens::new(issuer.store.clone(), None);
    match command {
        Command::Add(arguments) => add(issuer, &tokens, arguments).await,
        Command::List { email, json } => {
            let account = account_by_email(&issuer.accounts, email).await?;
            let rows = tokens.of_account(&account.id).await?;
            Ok(if *json { list_as_json(&rows) } else { list(&rows, called(&account), issuer.now) })
        }
        Command::Revoke { email, name } => {
            let account = account_by_email(&issuer.accounts, email).await?;
            let rows = tokens.of_account(&account.id).await?;
            let row = rows.iter().find(|row| row.name == name.trim());
            let unknown = || {
                Failure::Other(format!(
                    "{} has no token `{name}`; see `portcullis user token list {}`",
                    called(&account),
                    called(&account)
                ))
            };
            let row = row.ok_or_else(unknown)?;
            tokens.revoke(&row.id, &account.id, &issuer.policy, issuer.now).await?;
            issuer.record("token_revoked", &account.id).await?;
            Ok(format!("revoked the token `{}` of {}\n", row.name, called(&account)))
        }
    }
}

async fn add(
    issuer: &Issuer,
    tokens: &PersonalTokens,
    arguments: &AddArguments,
) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, &arguments.email).await?;
    let roles = Some(&arguments.roles).filter(|roles| !roles.is_empty()).cloned();
    let ttl = parse_ttl(&arguments.ttl).map_err(|error| Failure::Usage(error.to_string()))?;
    let new = NewToken { name: arguments.name.clone(), roles, ttl };
    let created =
        tokens.add(&account, new, None, issuer.now).await.map_err(|error| match error {
            TokenError::Name | TokenError::Ttl => Failure::Usage(error.to_string()),
            TokenError::Roles => Failure::Other(format!(
                "{} does not have all of these roles; it has {}",
                called(&account),
                shown_roles(Some(&account.roles))
            )),
            TokenError::NoAccount => Failure::Other(format!(
                "{} is disabled; enable it first: portcullis user enable {}",
                called(&account),
                called(&account)
            )),
            error => Failure::Other(error.to_string()),
        })?;
    issuer.record("token_created", &account.id).await?;
    let row = &created.row;
    eprintln!(
        "made the token `{}` of {}, with {}, valid until {}; it is not shown again:",
        row.name,
        called(&account),
        row.roles.as_ref().map_or("all roles of the account".to_owned(), |roles| format!(
            "the roles {}",
            shown_roles(Some(roles))
        )),
        time(row.expires_at)
    );
    Ok(format!("{}\n", *created.token))
}

fn list(rows: &[PersonalTokenRow], email: &str, now: u64) -> String {
    if rows.is_empty() {
        return format!(
            "{email} has no tokens; make one: portcullis user token add {email} --name NAME\n"
        );
    }
    let mut cells =
        vec![["NAME", "ROLES", "CREATED", "LAST USED", "EXPIRES"].map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        let expired = if row.expires_at <= now.cast_signed() { " (expired)" } else { "" };
        vec![
            row.name.clone(),
            shown_roles(row.roles.as_deref()),
            day(row.created_at),
            row.last_used_at.map_or_else(|| "never".to_owned(), day),
            format!("{}{expired}", day(row.expires_at)),
        ]
    }));
    table(&cells)
}

fn list_as_json(rows: &[PersonalTokenRow]) -> String {
    let tokens: Vec<_> = rows
        .iter()
        .map(|row| {
            let roles = row.roles.as_ref();
            json!({
                "id": row.id,
                "name": row.name,
                "roles": roles.map(|roles| roles.split_whitespace().collect::<Vec<_>>()),
                "created_at": time(row.created_at),
                "last_used_on": row.last_used_at.map(day),
                "expires_at": time(row.expires_at),
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(tokens))
}

fn shown_roles(roles: Option<&str>) -> String {
    match roles {
        None => "all of the account".to_owned(),
        Some("") => "no roles".to_owned(),
        Some(roles) => roles.split_whitespace().collect::<Vec<_>>().join(", "),
    }
}
