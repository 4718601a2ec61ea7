//! `portcullis user list` and `user show`.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::account_by_email;
use crate::cli::issuer::{Issuer, table};
use crate::cli::{Failure, print};
use crate::identity::bodies::time;
use crate::identity::second_factor::SecondFactors;
use crate::identity::session::stale;
use crate::identity::{Policy, address_of, is_verified};
use crate::store::{AccountOrder, AccountRow, SessionRow};

/// Which accounts are listed.
#[derive(Debug, Args)]
pub(in crate::cli) struct Filter {
    /// List only accounts with this role; if repeated, with each of them.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// List only disabled accounts.
    #[arg(long)]
    disabled: bool,
}

impl Filter {
    fn has(&self, account: &AccountRow) -> bool {
        let held = |role: &String| account.roles.split_whitespace().any(|held| held == role);
        (!self.disabled || account.disabled == 1) && self.roles.iter().all(held)
    }

    fn is_off(&self) -> bool {
        !self.disabled && self.roles.is_empty()
    }
}

pub(super) async fn list(
    issuer: &Issuer,
    filter: &Filter,
    as_json: bool,
) -> Result<String, Failure> {
    let second_factors = SecondFactors::new(issuer.store.clone());
    let ways = Ways {
        have_factor: second_factors.owners().await?,
        have_provider: issuer.store.accounts_of_people().await?,
    };
    if as_json {
        return list_as_json(issuer, filter, &ways).await;
    }
    // The widths of the columns depend on all rows.
    let mut rows = vec![
        ["EMAIL", "ROLES", "STATE", "CREATED", "LAST LOGIN", "ID", "NAME"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut page = issuer.accounts.after(AccountOrder::Email, None).await?;
    while let Some(last) = page.last() {
        let next = issuer.accounts.after(AccountOrder::Email, Some(last)).await?;
        let listed = page.into_iter().filter(|account| filter.has(account));
        rows.extend(listed.map(|account| table_row(account, &ways, &issuer.policy)));
        page = next;
    }
    if rows.len() > 1 {
        return Ok(table(&rows));
    }
    Ok(if filter.is_off() {
        "there are no accounts; add one: portcullis user add EMAIL\n".to_owned()
    } else {
        "no account matches\n".to_owned()
    })
}

/// Prints a page at a time: all accounts at once could take more memory than there is.
async fn list_as_json(issuer: &Issuer, filter: &Filter, ways: &Ways) -> Result<String, Failure> {
    let mut page = issuer.accounts.after(AccountOrder::Email, None).await?;
    let mut before = "[\n";
    while let Some(last) = page.last() {
        let mut text = String::new();
        for account in page.iter().filter(|account| filter.has(account)) {
            let object = object(account, ways.of(account));
            let object = format!("{object:#}").replace('\n', "\n  ");
            let _ = write!(text, "{before}  {object}");
            before = ",\n";
        }
        print(&text)?;
        page = issuer.accounts.after(AccountOrder::Email, Some(last)).await?;
    }
    Ok(if before == "[\n" { "[]\n" } else { "\n]\n" }.to_owned())
}

pub(super) async fn show(issuer: &Issuer, email: &str, as_json: bool) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, email).await?;
    let codes = SecondFactors::new(issuer.store.clone()).recovery_codes_left(&account.id).await?;
    let people = issuer.store.people_of_account(&account.id).await?;
    let way = Way { totp: codes.is_some(), provider: !people.is_empty() };
    let too_old = stale(&issuer.policy, Duration::from_secs(issuer.now));
    let (sessions, more) = issuer.sessions.of_account(&account.id, too_old).await?;
    if as_json {
        let mut shown = object(&account, way);
        let person = |(issuer, subject): &_| json!({ "issuer": issuer, "subject": subject });
        shown["providers"] = people.iter().map(person).collect();
        shown["recovery_codes_left"] = codes.into();
        shown["sessions"] = sessions.iter().map(session_object).collect();
        shown["more_sessions"] = more.into();
        return Ok(format!("{shown:#}\n"));
    }
    // Providers choose it.
    let visible = |text: &String| text.replace(char::is_control, "");
    let person = |(issuer, subject): &_| format!("{issuer}, subject {}", visible(subject));
    let people: Vec<String> = people.iter().map(person).collect();
    let state = state(&account, way, &issuer.policy);
    let second_factor = match codes {
        Some(left) => format!("on, {left} recovery codes left"),
        None => "off".to_owned(),
    };
    let mut rows: Vec<Vec<String>> = [
        ("email", or_dash(address_of(&account).unwrap_or_default().to_owned())),
        ("id", account.id.clone()),
        ("name", or_dash(account.name.clone().unwrap_or_default())),
        ("roles", or_dash(account.roles.clone())),
        ("state", state),
        ("password", scheme(&account).to_owned()),
        ("second factor", second_factor),
        ("providers", or_dash(people.join("; "))),
        ("created", time(account.created_at)),
        ("last login", or_dash(account.last_login_at.map(time).unwrap_or_default())),
    ]
    .into_iter()
    .map(|(name, value)| vec![name.to_owned(), value])
    .collect();
    let count = i64::try_from(sessions.len()).unwrap_or(i64::MAX).saturating_add(more);
    rows.push(vec!["sessions".to_owned(), count.to_string()]);
    let mut shown = table(&rows);
    if !sessions.is_empty() {
        let heading = ["SESSION", "LOGIN", "SINCE", "LAST USED", "ADDRESS", "USER AGENT"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(sessions.into_iter().map(session_row));
        let _ = write!(shown, "\n{}", table(&rows));
    }
    Ok(shown)
}

fn session_row(session: SessionRow) -> Vec<String> {
    let (since, used) = (time(session.created_at), time(session.rotated_at / 1000));
    // Clients choose it.
    let agent = session.user_agent.chars().filter(|letter| !letter.is_control()).collect();
    vec![session.id, session.proof.idp, since, used, session.address, agent]
}

fn session_object(session: &SessionRow) -> serde_json::Value {
    json!({
        "sid": session.id,
        "idp": session.proof.idp,
        "address": session.address,
        "user_agent": session.user_agent,
        "created_at": time(session.created_at),
        "last_used_at": time(session.rotated_at / 1000),
    })
}

/// How accounts log in, apart from their passwords.
struct Ways {
    /// With codes of an authenticator app.
    have_factor: HashSet<String>,
    /// At a provider.
    have_provider: HashSet<String>,
}

/// The same of one account.
#[derive(Clone, Copy)]
struct Way {
    totp: bool,
    provider: bool,
}

impl Ways {
    fn of(&self, account: &AccountRow) -> Way {
        Way {
            totp: self.have_factor.contains(&account.id),
            provider: self.have_provider.contains(&account.id),
        }
    }
}

fn table_row(account: AccountRow, ways: &Ways, policy: &Policy) -> Vec<String> {
    let state = state(&account, ways.of(&account), policy);
    vec![
        or_dash(address_of(&account).unwrap_or_default().to_owned()),
        or_dash(account.roles),
        state,
        time(account.created_at),
        or_dash(account.last_login_at.map(time).unwrap_or_default()),
        account.id,
        account.name.unwrap_or_default(),
    ]
}

fn state(account: &AccountRow, way: Way, policy: &Policy) -> String {
    let mut state = vec![if account.disabled == 1 { "disabled" } else { "enabled" }];
    state.extend((policy.verify_email && account.email_verified == 0).then_some("unverified"));
    state.extend(way.totp.then_some("totp"));
    state.extend(way.provider.then_some("provider"));
    state.extend((scheme(account) == "none").then_some("no password"));
    state.join(", ")
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn object(account: &AccountRow, way: Way) -> serde_json::Value {
    json!({
        "id": account.id,
        "email": address_of(account),
        "name": account.name,
        "roles": account.roles.split_whitespace().collect::<Vec<_>>(),
        "disabled": account.disabled == 1,
        "email_verified": is_verified(account),
        "password": scheme(account),
        "totp": way.totp,
        "provider": way.provider,
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
