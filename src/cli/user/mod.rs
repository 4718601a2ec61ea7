//! `portcullis user`: the accounts of the built-in issuer.

mod change;
mod import;
mod list;
mod password;
mod token;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use self::import::import;
use self::list::{Filter, list, show};
use self::password::read_password;
use super::issuer::{Issuer, Use, with_issuer};
use super::{Failure, NewStore};
use crate::config::value::CreateFiles;
use crate::identity::account::{self, AccountError, NewAccount, is_role};
use crate::identity::addresses::{Done, GONE, may_give_way};
use crate::identity::password::{Password, StoredHash};
use crate::identity::personal_tokens::PersonalTokens;
use crate::identity::second_factor::SecondFactors;
use crate::identity::strength::check_strength;
use crate::identity::{Accounts, Email, address_of, is_unconfirmed};
use crate::store::{AccountOrder, AccountRow};

#[derive(Debug, Subcommand)]
#[command(after_help = "When a command ends, every gateway that runs on the same store knows.")]
pub(super) enum Command {
    /// Add an account. The command asks for its password, or reads it from standard input.
    Add(AddArguments),
    /// List the accounts.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Show an account and its sessions.
    Show {
        /// The address of the account, or its id.
        email: String,
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Add an account without a password, and mail its owner a link that sets one. Prints the link
    /// if the file configures no mail.
    Invite {
        /// The address to log in with.
        email: String,
        /// A role; may be repeated. Default: `default_roles` of the file.
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        /// The owner's name.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        store: NewStore,
    },
    /// Print a link with which the owner of an account sets a new password. It works once, within
    /// 24 hours.
    ResetLink {
        /// The address of the account, or its id.
        email: String,
    },
    /// Set a new password. It is asked for, or read from standard input. Ends every session of the
    /// account.
    SetPassword {
        /// The address of the account, or its id.
        email: String,
        /// Read the password from the first line of standard input.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Set another address. The account's tokens are revoked; its sessions continue.
    SetEmail {
        /// The address of the account, or its id.
        email: String,
        /// The new address.
        new: String,
    },
    /// Set another name. The account's tokens are revoked; its sessions continue.
    SetName {
        /// The address of the account, or its id.
        email: String,
        /// The new name; an empty one removes it.
        name: String,
    },
    /// Delete an account and everything that belongs to it. This cannot be undone.
    Delete {
        /// The address of the account, or its id.
        email: String,
        /// Confirm the deletion.
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Replace the roles of an account. Its tokens are revoked; its sessions continue with the new
    /// roles.
    SetRoles {
        /// The address of the account, or its id.
        email: String,
        /// The roles; none removes all.
        roles: Vec<String>,
    },
    /// Disable an account: refuse its logins and end its sessions.
    Disable {
        /// The address of the account, or its id.
        email: String,
    },
    /// Enable an account: allow logins again.
    Enable {
        /// The address of the account, or its id.
        email: String,
    },
    /// Log an account out everywhere.
    EndSessions {
        /// The address of the account, or its id.
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
        /// The address of the account, or its id.
        email: String,
    },
    /// Personal access tokens of an account, for programs that cannot log in through a browser.
    #[command(subcommand)]
    Token(token::Command),
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
        Command::List { .. } | Command::Show { .. } => Use::Reads,
        Command::Token(command) if command.only_reads() => Use::Reads,
        Command::Add(AddArguments { store, .. })
        | Command::Invite { store, .. }
        | Command::Import { store, .. } => Use::Writes(store.create()),
        _ => Use::Writes(CreateFiles::Yes),
    };
    with_issuer(path, usage, async |issuer| match command {
        Command::Add(arguments) => add(issuer, arguments).await,
        Command::List { filter, json } => list(issuer, filter, *json).await,
        Command::Show { email, json } => show(issuer, email, *json).await,
        Command::Invite { email, roles, name, .. } => {
            change::invite(issuer, email, roles, name.as_deref()).await
        }
        Command::ResetLink { email } => change::reset_link(issuer, email).await,
        Command::SetPassword { email, password_stdin } => {
            change::set_password(issuer, email, *password_stdin).await
        }
        Command::SetEmail { email, new } => change::set_email(issuer, email, new).await,
        Command::SetName { email, name } => change::set_name(issuer, email, name).await,
        Command::Delete { email, .. } => change::delete(issuer, email).await,
        Command::SetRoles { email, roles } => set_roles(issuer, email, roles).await,
        Command::Disable { email } => set_disabled(issuer, email, true).await,
        Command::Enable { email } => set_disabled(issuer, email, false).await,
        Command::EndSessions { email: None, .. } => end_all_sessions(issuer).await,
        Command::EndSessions { email: Some(email), now, .. } => {
            end_sessions(issuer, email, *now).await
        }
        Command::RemoveTotp { email } => {
            let account = account_by_email(&issuer.accounts, email).await?;
            let email = called(&account);
            if !SecondFactors::new(issuer.store.clone()).remove(&account.id, None).await? {
                return Ok(format!("there was no second factor of {email}\n"));
            }
            issuer.record("totp_removed", &account.id).await?;
            Ok(format!("removed the second factor of {email}\n"))
        }
        Command::Token(command) => token::token(issuer, command).await,
        Command::Import { file, .. } => import(issuer, file).await,
    })
}

async fn add(issuer: &Issuer, arguments: &AddArguments) -> Result<String, Failure> {
    let new = new_account(issuer, &arguments.email, &arguments.roles, arguments.name.as_deref());
    let mut new = new.await?;
    let password = read_password(arguments.password_stdin)?;
    let hash = check_and_hash(issuer, &password, &new.email, new.name.as_deref())?;
    new.password = Some(hash);
    let added = insert(issuer, new).await?;
    Ok(format!(
        "added {} with {}; its tokens name it as `{}`\n",
        added.email,
        describe_roles(&added.roles),
        added.id
    ))
}

/// Adds an account whose address the operator vouches for.
async fn insert(issuer: &Issuer, new: NewAccount) -> Result<AccountRow, Failure> {
    let email = new.email.clone();
    let added = issuer.accounts.add_proved(new, &issuer.policy, issuer.now).await;
    let Done { done: added, gone } = match added {
        Err(AccountError::Taken) => return Err(address_taken(issuer, &email).await),
        added => added.map_err(failure(email.as_str()))?,
    };
    record_gone(issuer, gone, &email).await?;
    issuer.record("registered", &added.id).await?;
    Ok(added)
}

/// Reports that a registration gave way.
async fn record_gone(issuer: &Issuer, gone: Option<String>, email: &Email) -> Result<(), Failure> {
    let Some(account) = gone else { return Ok(()) };
    eprintln!("note: deleted an unconfirmed registration of {email}");
    issuer.record(GONE, &account).await
}

/// An account to be added, without a password.
async fn new_account(
    issuer: &Issuer,
    email: &str,
    roles: &[String],
    name: Option<&str>,
) -> Result<NewAccount, Failure> {
    let email = address(email)?;
    // Say so before somebody types a password in vain.
    if let Some(known) = issuer.accounts.by_email(&email).await?
        && !may_give_way(&known, &issuer.policy)
    {
        return Err(address_taken(issuer, &email).await);
    }
    let roles =
        if roles.is_empty() { issuer.policy.default_roles.clone() } else { checked(roles)? };
    let name = parse_name(name.unwrap_or_default())?;
    Ok(NewAccount { email, name, password: None, roles, email_verified: true })
}

/// Checks and hashes a new password.
fn check_and_hash(
    issuer: &Issuer,
    password: &Password,
    email: &Email,
    name: Option<&str>,
) -> Result<StoredHash, Failure> {
    let personal = [email.as_str(), name.unwrap_or_default(), &issuer.policy.issuer];
    check_strength(password, issuer.policy.password_min_length, &personal)
        .map_err(|rejected| Failure::Other(rejected.to_string()))?;
    StoredHash::hash(password).map_err(|error| Failure::Other(error.to_string()))
}

fn parse_name(written: &str) -> Result<Option<String>, Failure> {
    account::name(written).map_err(|error| Failure::Usage(error.to_string()))
}

async fn set_disabled(issuer: &Issuer, email: &str, disabled: bool) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, email).await?;
    if !disabled && account.disabled == 0 {
        // Its sessions would end.
        return Ok(format!("{} is enabled already\n", called(&account)));
    }
    issuer
        .accounts
        .set_disabled(&account.id, disabled, &issuer.policy, issuer.now)
        .await
        .map_err(failure(&account.email))?;
    let event = if disabled { "account_disabled" } else { "account_enabled" };
    issuer.record(event, &account.id).await?;
    let email = called(&account);
    Ok(if disabled {
        format!("disabled {email}: logins are refused, and every session has ended\n")
    } else {
        format!("enabled {email}\n")
    })
}

async fn end_sessions(issuer: &Issuer, email: &str, now: bool) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, email).await?;
    let email = called(&account);
    if now && end_sessions_now(issuer, &account.id).await? {
        issuer.record("logged_out_everywhere", &account.id).await?;
        return Ok(format!("ended every session of {email}, which can log in again\n"));
    }
    issuer
        .accounts
        .end_sessions(&account.id, &issuer.policy, issuer.now)
        .await
        .map_err(failure(email))?;
    issuer.record("logged_out_everywhere", &account.id).await?;
    let tokens = PersonalTokens::new(issuer.store.clone(), None);
    let continuing = match tokens.of_account(&account.id).await?.len() {
        0 => String::new(),
        count => format!(
            "; its personal access tokens ({count}) continue, see `portcullis user token list {email}`"
        ),
    };
    Ok(format!("ended every session of {email}{continuing}\n"))
}

async fn end_sessions_now(issuer: &Issuer, account: &str) -> Result<bool, Failure> {
    let elsewhere = issuer.sessions.ids_elsewhere(account).await?;
    let (accounts, policy) = (&issuer.accounts, &issuer.policy);
    Ok(accounts.end_sessions_now(account, &elsewhere, policy, issuer.now).await?)
}

/// Ends the sessions of all accounts, a page of them at a time: logins can come in between.
async fn end_all_sessions(issuer: &Issuer) -> Result<String, Failure> {
    let (mut count, mut page) = (0, issuer.accounts.after(AccountOrder::Id, None).await?);
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
        issuer.record_several("logged_out_everywhere", page.len()).await?;
        page = issuer.accounts.after(AccountOrder::Id, Some(last)).await?;
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
    issuer.record("roles_changed", &account.id).await?;
    if is_unconfirmed(&account) && !roles.is_empty() {
        eprintln!("warning: {UNCONFIRMED}");
    }
    Ok(format!(
        "{} now has {}; it had {}\n",
        called(&account),
        describe_roles(&roles.join(" ")),
        describe_roles(&account.roles)
    ))
}

/// The account with this address, or with this id: some have no address.
async fn account_by_email(accounts: &Accounts, email: &str) -> Result<AccountRow, Failure> {
    if !email.contains('@')
        && let Some(account) = accounts.by_id(email).await?
    {
        return Ok(account);
    }
    let email = address(email)?;
    accounts.by_email(&email).await?.ok_or_else(|| unknown(email.as_str()))
}

/// What an account is called: its address, or its id if it has none.
fn called(account: &AccountRow) -> &str {
    address_of(account).unwrap_or(&account.id)
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
    let roles: Vec<String> = roles.iter().filter(|role| seen.insert(*role)).cloned().collect();
    match account::too_long(&roles) {
        Some(problem) => Err(Failure::Usage(problem.to_string())),
        None => Ok(roles),
    }
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
        AccountError::Taken => Failure::Other(format!("{email} already has an account")),
        AccountError::Unknown => unknown(email),
        AccountError::Store(error) => Failure::Other(error.to_string()),
    }
}

/// Why an address cannot be given to a new account, and whether its account may be a stranger's.
async fn address_taken(issuer: &Issuer, email: &Email) -> Failure {
    match issuer.accounts.by_email(email).await {
        Ok(Some(known)) if is_unconfirmed(&known) => Failure::Other(format!(
            "{email} already has an account, and {UNCONFIRMED}; to remove it: portcullis user delete {email} --yes"
        )),
        _ => Failure::Other(format!(
            "{email} already has an account; to change its roles: portcullis user set-roles {email} ROLE…"
        )),
    }
}

const UNCONFIRMED: &str =
    "its address is unconfirmed: a stranger may have registered it and know its password";

fn unknown(email: &str) -> Failure {
    Failure::Other(format!("there is no account {email}; see `portcullis user list`"))
}
