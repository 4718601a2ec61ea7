//! `portcullis user import`: accounts from a file.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use super::accounts;
use crate::cli::Failure;
use crate::cli::issuer::Issuer;
use crate::identity::Email;
use crate::identity::import::{self, BadLine, LineProblem};
use crate::store::AccountOrder;

pub(super) async fn import(issuer: &Issuer, path: &Path) -> Result<String, Failure> {
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
    let mut page = issuer.accounts.after(AccountOrder::Id, None).await?;
    while let Some(last) = page.last() {
        let next = issuer.accounts.after(AccountOrder::Id, Some(last)).await?;
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
    issuer.record_several("accounts_imported", count).await?;
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
