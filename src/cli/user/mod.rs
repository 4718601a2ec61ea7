//! `portcullis user`: the accounts of the built-in issuer.

mod import;
mod list;
mod password;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use self::import::import;
use self::list::list;
use self::password::read_password;
use super::issuer::{Issuer, Use, with_issuer};
use super::{Failure, NewStore, print};
use crate::config::value::CreateFiles;
use crate::identity::account::{self, AccountError, NewAccount, is_role};
use crate::identity::password::StoredHash;
use crate::identity::second_factor::SecondFactors;
use crate::identity::strength::judge;
use crate::identity::{Accounts, Email};
use crate::store::AccountRow;

#[derive(Debug, Subcommand)]
#[command(after_help = "When a command ends, every gateway that runs on the same store knows.")]
pub(super) enum Command {
    /// Add an account. Its password is asked for, or read from standard input.
    Add(AddArguments),
    /// List the accounts.
    List {
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Replace the roles of an account. Its tokens are revoked; its sessions continue with the new
    /// roles.
    SetRoles {
        /// The address of the account.
        email: String,
        /// The roles; none removes all.
        roles: Vec<String>,
    },
    /// Disable an account: refuse its logins and end its sessions.
    Disable {
        /// The address of the account.
        email: String,
    },
    /// Enable an account: allow logins again.
    Enable {
        /// The address of the account.
        email: String,
    },
    /// Log an account out everywhere.
    EndSessions {
        /// The address of the account.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        email: Option<String>,
        /// Log every account out, as after restoring a backup.
        #[arg(long)]
        all: bool,
        /// Allow logins at once if the account's tokens are cut off until a time ahead of this
        /// machine's clock. Use it after the clock was wrong.
        #[arg(long, conflicts_with = "all")]
        now: bool,
    },
    /// Remove the second factor of an account whose owner has lost it.
    RemoveTotp {
        /// The address of the account.
        email: String,
    },
    /// Add the accounts in a file, all or none: CSV with the header
    /// `email,password_hash,roles,name`, or JSON lines with these members.
    Import {
        /// The file; `-` reads standard input.
        file: PathBuf,
        #[command(flatten)]
        store: NewStore,
    },
}

#[derive(Debug, Args)]
pub(super) struct AddArguments {
    /// The address to log in with.
    email: String,
    /// A role; may be repeated. Default: `default_roles` of the file.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// The owner's name.
    #[arg(long)]
    name: Option<String>,
    /// Read the password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    store: NewStore,
}

pub(super) fn user(path: &Path, command: &Command) -> Result<(), Failure> {
    let usage = match command {
        Command::List { .. } => Use::Reads,
        Command::Add(AddArguments { store, .. }) | Command::Import { store, .. } => {
            Use::Writes(store.create())
        }
        _ => Use::Writes(CreateFiles::Yes),
    };
    let told = with_issuer(path, usage, async |issuer| match command {
        Command::Add(arguments) => add(issuer, arguments).await,
        Command::List { json } => list(issuer, *json).await,
        Command::SetRoles { email, roles } => set_roles(issuer, email, roles).await,
        Command::Disable { email } => {
            let account = account_by_email(&issuer.accounts, email).await?;
            issuer
                .accounts
                .set_disabled(&account.id, true, &issuer.policy, issuer.now)
                .await
                .map_err(failure(&account.email))?;
            Ok(format!(
                "disabled {}: logins are refused, and every session has ended\n",
                account.email
            ))
        }
        Command::Enable { email } => {
            let account = account_by_email(&issuer.accounts, email).await?;
            issuer
                .accounts
                .set_disabled(&account.id, false, &issuer.policy, issuer.now)
                .await
                .map_err(failure(&account.email))?;
            Ok(format!("enabled {}\n", account.email))
        }
        Command::EndSessions { email: None, .. } => end_all_sessions(issuer).await,
        Command::EndSessions { email: Some(email), now, .. } => {
            let account = account_by_email(&issuer.accounts, email).await?;
            if *now
                && issuer.accounts.end_sessions_now(&account.id, &issuer.policy, issuer.now).await?
            {
                return Ok(format!(
                    "ended every session of {}, which can log in again\n",
                    account.email
                ));
            }
            issuer
                .accounts
                .end_sessions(&account.id, &issuer.policy, issuer.now)
                .await
                .map_err(failure(&account.email))?;
            Ok(format!("ended every session of {}\n", account.email))
        }
        Command::RemoveTotp { email } => {
            let account = account_by_email(&issuer.accounts, email).await?;
            let had = SecondFactors::new(issuer.store.clone()).remove(&account.id).await?;
            let said =
                if had { "removed the second factor of" } else { "there was no second factor of" };
            Ok(format!("{said} {}\n", account.email))
        }
        Command::Import { file, .. } => import(issuer, file).await,
    })?;
    print(&told)
}

async fn add(issuer: &Issuer, arguments: &AddArguments) -> Result<String, Failure> {
    let email = address(&arguments.email)?;
    let roles = if arguments.roles.is_empty() {
        issuer.policy.default_roles.clone()
    } else {
        checked(&arguments.roles)?
    };
    let name = account::name(arguments.name.as_deref().unwrap_or_default())
        .map_err(|error| Failure::Usage(error.to_string()))?;
    if issuer.accounts.by_email(&email).await?.is_some() {
        return Err(taken(email.as_str()));
    }
    let password = read_password(arguments.password_stdin)?;
    let personal = [email.as_str(), name.as_deref().unwrap_or_default(), &issuer.policy.issuer];
    judge(&password, issuer.policy.password_min_length, &personal)
        .map_err(|rejected| Failure::Other(rejected.to_string()))?;
    let hash = StoredHash::hash(&password).map_err(|error| Failure::Other(error.to_string()))?;
    let new = NewAccount { email, name, password: Some(hash), roles, email_verified: true };
    let added = issuer.accounts.add(new, issuer.now).await.map_err(failure(&arguments.email))?;
    Ok(format!(
        "added {} with {}; its tokens name it as `{}`\n",
        added.email,
        describe_roles(&added.roles),
        added.id
    ))
}

/// Ends the sessions of all accounts, a page of them at a time: logins can come in between.
async fn end_all_sessions(issuer: &Issuer) -> Result<String, Failure> {
    let (mut count, mut page) = (0, issuer.accounts.after(None).await?);
    while let Some(last) = page.last() {
        issuer.accounts.end_sessions_of(&page, &issuer.policy, issuer.now).await.map_err(
            |error| {
                let done = if count == 0 {
                    "nothing was changed".to_owned()
                } else {
                    format!(
                        "the sessions of {} have ended, those of others have not",
                        accounts(count)
                    )
                };
                Failure::Other(format!("{error}; {done}: run the command again"))
            },
        )?;
        count += page.len();
        page = issuer.accounts.after(Some(last)).await?;
    }
    Ok(format!("ended every session of {}\n", accounts(count)))
}

fn accounts(count: usize) -> String {
    format!("{count} account{}", if count == 1 { "" } else { "s" })
}

async fn set_roles(issuer: &Issuer, email: &str, roles: &[String]) -> Result<String, Failure> {
    let roles = checked(roles)?;
    let account = account_by_email(&issuer.accounts, email).await?;
    issuer
        .accounts
        .set_roles(&account.id, &roles, &issuer.policy, issuer.now)
        .await
        .map_err(failure(email))?;
    Ok(format!(
        "{} now has {}; it had {}\n",
        account.email,
        describe_roles(&roles.join(" ")),
        describe_roles(&account.roles)
    ))
}

async fn account_by_email(accounts: &Accounts, email: &str) -> Result<AccountRow, Failure> {
    let email = address(email)?;
    accounts.by_email(&email).await?.ok_or_else(|| unknown(email.as_str()))
}

fn address(written: &str) -> Result<Email, Failure> {
    Email::parse(written).map_err(|error| Failure::Usage(format!("`{written}`: {error}")))
}

fn checked(roles: &[String]) -> Result<Vec<String>, Failure> {
    if let Some(role) = roles.iter().find(|role| !is_role(role)) {
        let why = "a role has 1 to 100 bytes, without white space; give each one separately";
        return Err(Failure::Usage(format!("`{role}` is not a valid role: {why}")));
    }
    let mut seen = BTreeSet::new();
    Ok(roles.iter().filter(|role| seen.insert(*role)).cloned().collect())
}

fn describe_roles(roles: &str) -> String {
    if roles.is_empty() {
        "no roles".to_owned()
    } else {
        format!("the roles {}", roles.split_whitespace().collect::<Vec<_>>().join(", "))
    }
}

fn failure(email: &str) -> impl Fn(AccountError) -> Failure {
    move |error| match error {
        AccountError::Taken => taken(email),
        AccountError::Unknown => unknown(email),
        AccountError::Store(error) => Failure::Other(error.to_string()),
    }
}

fn taken(email: &str) -> Failure {
    Failure::Other(format!(
        "{email} already has an account; to change its roles: portcullis user set-roles {email} ROLE…"
    ))
}

fn unknown(email: &str) -> Failure {
    Failure::Other(format!("there is no account {email}; see `portcullis user list`"))
}
