//! `portcullis user list`.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::json;

use crate::cli::issuer::{Issuer, table};
use crate::cli::{Failure, print};
use crate::identity::Policy;
use crate::identity::bodies::time;
use crate::identity::second_factor::SecondFactors;
use crate::store::AccountRow;

pub(super) async fn list(issuer: &Issuer, as_json: bool) -> Result<String, Failure> {
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
