//! `portcullis user`: the accounts of the built-in issuer.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::json;
use zeroize::Zeroizing;

use super::issuer::{Issuer, Use, table, with_issuer};
use super::{Failure, NewStore, print};
use crate::config::value::CreateFiles;
use crate::identity::account::{self, AccountError, NewAccount, is_role};
use crate::identity::bodies::time;
use crate::identity::import::{self, BadLine, LineProblem};
use crate::identity::password::{Password, StoredHash};
use crate::identity::second_factor::SecondFactors;
use crate::identity::strength::judge;
use crate::identity::{Accounts, Email, Policy};
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

async fn list(issuer: &Issuer, as_json: bool) -> Result<String, Failure> {
    let second_factors = SecondFactors::new(issuer.store.clone());
    let have_factor = second_factors.owners().await?;
    if as_json {
        return list_as_json(issuer, &have_factor).await;
    }
    // The widths of the columns depend on all rows.
    let mut rows = vec![
        ["EMAIL", "ROLES", "STATE", "CREATED", "LAST LOGIN", "NAME"].map(str::to_owned).to_vec(),
    ];
    let mut page = issuer.accounts.after(None).await?;
    while let Some(last) = page.last() {
        let next = issuer.accounts.after(Some(last)).await?;
        rows.extend(
            page.into_iter().map(|account| table_row(account, &have_factor, &issuer.policy)),
        );
        page = next;
    }
    if rows.len() == 1 {
        return Ok("there are no accounts; add one: portcullis user add EMAIL\n".to_owned());
    }
    Ok(table(&rows))
}

/// Prints a page at a time: all accounts at once could take more memory than there is.
async fn list_as_json(issuer: &Issuer, have_factor: &HashSet<String>) -> Result<String, Failure> {
    let mut page = issuer.accounts.after(None).await?;
    if page.is_empty() {
        return Ok("[]\n".to_owned());
    }
    let mut before = "[\n";
    while let Some(last) = page.last() {
        let mut text = String::new();
        for account in &page {
            let object = object(account, have_factor.contains(&account.id));
            let object = format!("{object:#}").replace('\n', "\n  ");
            let _ = write!(text, "{before}  {object}");
            before = ",\n";
        }
        print(&text)?;
        page = issuer.accounts.after(Some(last)).await?;
    }
    Ok("\n]\n".to_owned())
}

fn table_row(account: AccountRow, have_factor: &HashSet<String>, policy: &Policy) -> Vec<String> {
    let totp = have_factor.contains(&account.id);
    let mut state = vec![if account.disabled == 1 { "disabled" } else { "enabled" }];
    state.extend((policy.verify_email && account.email_verified == 0).then_some("unverified"));
    state.extend(totp.then_some("totp"));
    state.extend((scheme(&account) == "none").then_some("no password"));
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        account.email,
        or_dash(account.roles),
        state.join(", "),
        time(account.created_at),
        or_dash(account.last_login_at.map(time).unwrap_or_default()),
        account.name.unwrap_or_default(),
    ]
}

fn object(account: &AccountRow, totp: bool) -> serde_json::Value {
    json!({
        "id": account.id,
        "email": account.email,
        "name": account.name,
        "roles": account.roles.split_whitespace().collect::<Vec<_>>(),
        "disabled": account.disabled == 1,
        "email_verified": account.email_verified == 1,
        "password": scheme(account),
        "totp": totp,
        "created_at": time(account.created_at),
        "last_login_at": account.last_login_at.map(time),
    })
}

/// How the password is hashed: `argon2id`, or an imported hash, which the next login renews.
fn scheme(account: &AccountRow) -> &str {
    match account.password.split('$').nth(1) {
        None => "none",
        Some("2a" | "2b" | "2y") => "bcrypt",
        Some(scheme) => scheme,
    }
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

async fn import(issuer: &Issuer, path: &Path) -> Result<String, Failure> {
    let named = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let mut file = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().read_to_end(&mut file).map(drop)
    } else {
        fs::read(path).map(|bytes| file = bytes)
    };
    read.map_err(|error| Failure::Other(format!("{named} cannot be read: {error}")))?;
    let refused = |lines: &[BadLine]| {
        let mut list: Vec<String> =
            lines.iter().take(MAX_BAD_LINES_SHOWN).map(|line| format!("  {line}")).collect();
        if let Some(more) = lines.len().checked_sub(MAX_BAD_LINES_SHOWN).filter(|more| *more > 0) {
            list.push(format!("  … and {more} more"));
        }
        let lines =
            if lines.len() == 1 { "one line".to_owned() } else { format!("{} lines", lines.len()) };
        Failure::Other(format!(
            "{named}: nothing was imported, because of errors in {lines}:\n{}",
            list.join("\n")
        ))
    };
    let mut known = BTreeSet::new();
    let mut page = issuer.accounts.after(None).await?;
    while let Some(last) = page.last() {
        let next = issuer.accounts.after(Some(last)).await?;
        known.extend(page.into_iter().map(|account| account.email));
        page = next;
    }
    let has_account = |email: &Email| known.contains(email.as_str());
    let imported = import::parse_accounts(&file, &issuer.policy.default_roles, has_account)
        .map_err(|lines| refused(&lines))?;
    let places: Vec<(u64, Email)> =
        imported.iter().map(|imported| (imported.line, imported.account.email.clone())).collect();
    let without = imported.iter().filter(|imported| imported.account.password.is_none()).count();
    let count = imported.len();
    let written = issuer
        .accounts
        .add_all(imported.into_iter().map(|imported| imported.account).collect(), issuer.now)
        .await?;
    if let Err(index) = written {
        // An account was registered in the meantime.
        let taken = |(line, email): &(u64, Email)| BadLine {
            line: *line,
            problem: LineProblem::Taken(email.clone()),
        };
        let lines: Vec<BadLine> = places.get(index).map(taken).into_iter().collect();
        return Err(refused(&lines));
    }
    let without = match without {
        0 => String::new(),
        some => {
            format!("; {some} without a password, which POST /password/forgot lets the owner set")
        }
    };
    Ok(format!("imported {}{without}\n", accounts(count)))
}

/// The maximum number of bad lines that are shown. A longer list usually has one cause.
const MAX_BAD_LINES_SHOWN: usize = 20;

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

/// Reads the password from standard input, or asks for it twice on the terminal.
fn read_password(from_input: bool) -> Result<Password, Failure> {
    let none = || Failure::Other("there is no password on standard input".to_owned());
    if from_input {
        let password = read_line()?;
        return if password.is_empty() {
            Err(none())
        } else {
            Ok(Password::new(password.to_string()))
        };
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "there is no terminal to ask for a password; add `--password-stdin` and send it on standard input".to_owned(),
        ));
    }
    let (first, second) = (ask("Password: ")?, ask("Again: ")?);
    if *first != *second {
        return Err(Failure::Other("the two passwords differ; nothing was changed".to_owned()));
    }
    Ok(Password::new(first.to_string()))
}

fn read_line() -> Result<Zeroizing<String>, Failure> {
    let mut line = Zeroizing::new(String::new());
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::Other(format!("the password cannot be read: {error}")))?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

/// Asks on the terminal, which does not show what is typed.
fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let stdin = io::stdin();
    let shown = tcgetattr(&stdin).map_err(io::Error::from)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(io::Error::from)?;
    let typed = read_line();
    tcsetattr(&stdin, OptionalActions::Flush, &shown).map_err(io::Error::from)?;
    eprintln!();
    typed
}
