//! Import of accounts from CSV or JSON lines, as exported from another application's database.
//!
//! All or nothing: every line is parsed, and every problem is reported with its line, before
//! anything is written.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::account::{self, NewAccount, is_role};
use super::email::{Email, NoEmail};
use super::password::{StoredHash, UnusableHash};

/// An account in the file, and its line.
#[derive(Debug)]
pub struct Imported {
    /// The line, from 1.
    pub line: u64,
    /// The account. Its address counts as verified: whoever imports it vouches for it.
    pub account: NewAccount,
}

/// A line that cannot be imported.
#[derive(Debug)]
pub struct BadLine {
    /// The line, from 1.
    pub line: u64,
    /// Why.
    pub problem: LineProblem,
}

/// Why a line cannot be imported. `Display` says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    /// The CSV header lacks a column.
    #[error(
        "the header has no column `{0}`; the first line must be `email,password_hash,roles,name`, where `roles` and `name` are optional"
    )]
    NoColumn(&'static str),
    /// An unknown column.
    #[error(
        "the header has an unknown column `{0}`; rename it to `email`, `password_hash`, `roles` or `name`, or remove it"
    )]
    Column(String),
    /// A column that is known in lower case.
    #[error("the header has a column `{written}`; write it in lower case, `{known}`")]
    Capitals {
        /// The name in the file.
        written: String,
        /// The name that is meant.
        known: &'static str,
    },
    /// A repeated column.
    #[error("the header has two columns `{0}`; remove one of them")]
    Twice(&'static str),
    /// Columns that are not separated by commas.
    #[error("the columns are separated by {0}; separate them by commas")]
    Separator(&'static str),
    /// JSON, but not one object per line.
    #[error("expected one JSON object per line, found an array; convert it with `jq -c '.[]'`")]
    Array,
    /// A record of another length than the header.
    #[error(
        "expected {wanted} fields as in the header, found {found}; quote fields that hold a comma or a quotation mark, and double the mark"
    )]
    Fields {
        /// On this line.
        found: u64,
        /// In the header.
        wanted: u64,
    },
    /// Invalid CSV.
    #[error(
        "not valid CSV; quote fields that hold a comma or a quotation mark, and double the mark"
    )]
    Csv,
    /// Invalid JSON, or not an account.
    #[error(
        "not a valid account: {0}; write an object such as {{\"email\":\"ann@example.com\",\"password_hash\":\"$2b$…\",\"roles\":[\"user\"],\"name\":\"Ann\"}} on each line"
    )]
    Json(String),
    /// Not UTF-8.
    #[error("not UTF-8; save the file in that encoding")]
    Encoding,
    /// The address.
    #[error("{0}")]
    Email(#[from] NoEmail),
    /// The hash.
    #[error("{0}")]
    Hash(#[from] UnusableHash),
    /// A role.
    #[error(
        "`{0}` is not a valid role: use 1 to 100 bytes without white space; separate roles in CSV by spaces"
    )]
    Role(String),
    /// All roles together.
    #[error("{0}")]
    Roles(#[from] account::TooManyRoles),
    /// The name.
    #[error("{0}")]
    Name(#[from] account::NoName),
    /// The address occurs earlier in the file.
    #[error(
        "{email} is already on line {first}; remove one of the two (upper and lower case are the same)"
    )]
    Repeated {
        /// The canonical form.
        email: Email,
        /// The line of its first occurrence.
        first: u64,
    },
    /// The address already has an account.
    #[error("{0} already has an account; remove the line")]
    Taken(Email),
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

/// Parses a file: JSON lines if it starts with `{`, otherwise CSV; a leading `[` is rejected.
/// Accounts without `roles` get `default_roles`; addresses for which `has_account` is true are
/// rejected.
///
/// # Errors
/// Every invalid line.
pub fn parse_accounts(
    file: &[u8],
    default_roles: &[String],
    has_account: impl Fn(&Email) -> bool,
) -> Result<Vec<Imported>, Vec<BadLine>> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let lines = match file.trim_ascii_start().first() {
        Some(b'{') => json_lines(file),
        Some(b'[') => return Err(vec![BadLine { line: 1, problem: LineProblem::Array }]),
        _ => csv_lines(file).map_err(|problem| vec![problem])?,
    };
    let mut accounts: Vec<Imported> = Vec::new();
    let (mut problems, mut seen) = (Vec::new(), BTreeMap::new());
    for (line, written) in lines {
        let account =
            written.and_then(|written| written.account(default_roles)).and_then(|account| {
                let email = account.email.as_str().to_owned();
                if let Some(&first) = seen.get(&email) {
                    return Err(LineProblem::Repeated { email: account.email, first });
                }
                seen.insert(email, line);
                if has_account(&account.email) {
                    Err(LineProblem::Taken(account.email))
                } else {
                    Ok(account)
                }
            });
        match account {
            Ok(account) => accounts.push(Imported { line, account }),
            Err(problem) => problems.push(BadLine { line, problem }),
        }
    }
    if problems.is_empty() { Ok(accounts) } else { Err(problems) }
}

/// One line, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    email: String,
    /// Empty or absent: no login is possible until a password is set by mail.
    #[serde(default)]
    password_hash: Option<String>,
    #[serde(default)]
    roles: Option<Vec<String>>,
    #[serde(default)]
    name: Option<String>,
}

impl Written {
    fn account(self, default_roles: &[String]) -> Result<NewAccount, LineProblem> {
        let email = Email::parse(&self.email)?;
        let hash = self.password_hash.filter(|hash| !hash.is_empty());
        let password = hash.map(|hash| hash.trim().parse::<StoredHash>()).transpose()?;
        let mut roles = Vec::new();
        for role in self.roles.unwrap_or_else(|| default_roles.to_vec()) {
            if !is_role(&role) {
                return Err(LineProblem::Role(role));
            }
            if !roles.contains(&role) {
                roles.push(role);
            }
        }
        if let Some(problem) = account::too_long(&roles) {
            return Err(problem.into());
        }
        let name = account::name(&self.name.unwrap_or_default())?;
        Ok(NewAccount { email, name, password, roles, email_verified: true })
    }
}

type Lines = Vec<(u64, Result<Written, LineProblem>)>;

fn json_lines(file: &[u8]) -> Lines {
    let lines = file
        .split(|&byte| byte == b'\n')
        .zip(1..)
        .filter(|(line, _)| !line.trim_ascii().is_empty());
    lines.map(|(line, number)| (number, json_line(line))).collect()
}

fn json_line(line: &[u8]) -> Result<Written, LineProblem> {
    // serde would accept an array as the members in order.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(LineProblem::Json("expected an object".to_owned()));
    }
    serde_json::from_slice(line).map_err(|error| {
        // The parser sees only this line and calls it line 1, which is not its number in the file.
        let (message, place) =
            (error.to_string(), format!(" at line {} column {}", error.line(), error.column()));
        LineProblem::Json(
            message
                .strip_suffix(&place)
                .map_or(message.clone(), |what| format!("{what} at column {}", error.column())),
        )
    })
}

fn csv_lines(file: &[u8]) -> Result<Lines, BadLine> {
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).has_headers(true).from_reader(file);
    let header =
        reader.headers().map_err(|error| BadLine { line: 1, problem: problem(&error) })?.clone();
    let at_first = |problem| BadLine { line: 1, problem };
    let mut columns = BTreeMap::new();
    // A header without a comma is a single column.
    let only = if header.len() == 1 { header.get(0).unwrap_or_default() } else { "" };
    if let Some((_, separator)) = SEPARATORS.into_iter().find(|(sign, _)| only.contains(*sign)) {
        return Err(at_first(LineProblem::Separator(separator)));
    }
    for (index, name) in header.iter().enumerate() {
        let written = || name.chars().take(SHOWN).collect();
        match COLUMNS.into_iter().find(|known| name.eq_ignore_ascii_case(known)) {
            None => return Err(at_first(LineProblem::Column(written()))),
            Some(known) if known != name => {
                return Err(at_first(LineProblem::Capitals { written: written(), known }));
            }
            Some(known) => {
                if columns.insert(known, index).is_some() {
                    return Err(at_first(LineProblem::Twice(known)));
                }
            }
        }
    }
    let needed = |name: &'static str| {
        columns.get(name).copied().ok_or_else(|| at_first(LineProblem::NoColumn(name)))
    };
    let (email, hash) = (needed("email")?, needed("password_hash")?);
    let (roles, name) = (columns.get("roles"), columns.get("name"));

    let mut lines = Vec::new();
    let mut counter = LineCounter { file, at: 0, line: 1 };
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = counter.line(error.position());
                lines.push((line, Err(problem(&error))));
                continue;
            }
        };
        let line = counter.line(record.position());
        let field = |index: usize| record.get(index).unwrap_or_default();
        let written = Written {
            email: field(email).to_owned(),
            password_hash: Some(field(hash).to_owned()),
            roles: roles.map(|&roles| field(roles).split_whitespace().map(str::to_owned).collect()),
            name: name.map(|&name| field(name).to_owned()),
        };
        lines.push((line, Ok(written)));
    }
    Ok(lines)
}

/// The line on which a record begins, as an editor counts. The parser's own count is one too low
/// where lines end in CRLF.
struct LineCounter<'a> {
    file: &'a [u8],
    at: usize,
    line: u64,
}

impl LineCounter<'_> {
    fn line(&mut self, position: Option<&csv::Position>) -> u64 {
        let from = position
            .map_or(self.at, |position| usize::try_from(position.byte()).unwrap_or(usize::MAX));
        let ends =
            self.file.iter().skip(from).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let start = from.saturating_add(ends).min(self.file.len());
        let passed = self.file.get(self.at..start).unwrap_or_default();
        self.line += passed.split(|&byte| byte == b'\n').skip(1).count() as u64;
        self.at = self.at.max(start);
        self.line
    }
}

fn problem(error: &csv::Error) -> LineProblem {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => LineProblem::Encoding,
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            LineProblem::Fields { found: *len, wanted: *expected_len }
        }
        _ => LineProblem::Csv,
    }
}

/// The known columns.
const COLUMNS: [&str; 4] = ["email", "password_hash", "roles", "name"];

/// Other separators that CSV exports use.
const SEPARATORS: [(char, &str); 2] = [(';', "semicolons"), ('\t', "tabs")];

/// Characters of an unknown column name to show.
const SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";

    fn problems_in(file: &str) -> Vec<String> {
        let shown = |imported: Imported| {
            let NewAccount { email, name, password, roles, email_verified } = imported.account;
            let hash = password.map_or("none".to_owned(), |hash| hash.cost().to_owned());
            assert!(email_verified);
            format!("{} {email} {hash} [{}] {name:?}", imported.line, roles.join(","))
        };
        match parse_accounts(file.as_bytes(), &["user".to_owned()], |email| {
            email.as_str() == "known@example.com"
        }) {
            Ok(accounts) => accounts.into_iter().map(shown).collect(),
            Err(problems) => {
                problems.iter().map(|line| line.to_string().chars().take(70).collect()).collect()
            }
        }
    }

    #[test]
    fn csv_is_parsed() {
        let file = format!(
            "\u{feff}email,password_hash,roles,name\r\nAnn@Example.com,{HASH},admin user admin,\"Ann, \"\"the\"\" first\"\r\n\r\n\"bob@example.com\",{HASH},,\r\n\
             cy@example.com,,user,\"two\nlines\""
        );
        assert_eq!(
            problems_in(&file),
            ["line 5: a name must have at most 200 characters and no invisible ones"]
        );
        let file = file.replace("two\nlines", "one line");
        assert_eq!(
            problems_in(&file),
            [
                "2 ann@example.com $2b$05$ [admin,user] Some(\"Ann, \\\"the\\\" first\")",
                "4 bob@example.com $2b$05$ [] None",
                "5 cy@example.com none [user] Some(\"one line\")"
            ]
        );
        assert_eq!(
            problems_in(&format!("password_hash,email\n{HASH},ann@example.com")),
            ["2 ann@example.com $2b$05$ [user] None"]
        );
        assert!(problems_in("email,password_hash\n").is_empty());
    }

    #[test]
    fn json_lines_are_parsed() {
        let file = format!(
            "{{\"email\":\"ann@example.com\",\"password_hash\":\"{HASH}\",\"roles\":[\"admin\",\"user\"],\"name\":\"Ann\"}}\n\n\
             {{\"name\":null,\"email\":\"BOB@example.com\"}}\r\n{{\"email\":\"cy@example.com\",\"roles\":[]}}"
        );
        assert_eq!(
            problems_in(&file),
            [
                "1 ann@example.com $2b$05$ [admin,user] Some(\"Ann\")",
                "3 bob@example.com none [user] None",
                "4 cy@example.com none [] None"
            ]
        );
    }

    #[test]
    fn every_bad_line_is_reported() {
        let file = format!(
            "email,password_hash,roles\nann,{HASH},user\nbob@example.com,secret,user\ncy@example.com,{HASH},{}\ndee@example.com,{HASH}\n\
             ed@example.com,{HASH},\nED@example.com,{HASH},\nKnown@example.com,,\nknown@example.com,,\n",
            "r".repeat(101)
        );
        assert_eq!(
            problems_in(&file),
            [
                "line 2: not a valid e-mail address; expected one such as ann@example.c",
                "line 3: not a supported password hash; use bcrypt (`$2a$`, `$2b$`, `$2",
                "line 4: `rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr",
                "line 5: expected 3 fields as in the header, found 2; quote fields that",
                "line 7: ed@example.com is already on line 6; remove one of the two (up",
                "line 8: known@example.com already has an account; remove the line",
                "line 9: known@example.com is already on line 8; remove one of the two "
            ]
        );
        let file = "{\"email\":\"ann@example.com\",\"passwordHash\":\"x\"}\n{\"email\":1}\n[]\n{\"email\":\"a@b.example\",\"roles\":[\"a b\"]}";
        assert_eq!(
            problems_in(file),
            [
                "line 1: not a valid account: unknown field `passwordHash`, expected on",
                "line 2: not a valid account: invalid type: integer `1`, expected a str",
                "line 3: not a valid account: expected an object; write an object such ",
                "line 4: `a b` is not a valid role: use 1 to 100 bytes without white sp"
            ]
        );
    }

    #[test]
    fn json_errors_name_the_line_of_the_file_and_the_column() {
        let file = "{\"email\":\"ann@example.com\"}\n{\"email\":ann@example.com}\n{\"email\":";
        let problems = parse_accounts(file.as_bytes(), &[], |_| false).unwrap_err();
        let message: Vec<String> = problems
            .iter()
            .map(|line| line.to_string().split(';').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            message,
            [
                "line 2: not a valid account: expected value at column 10",
                "line 3: not a valid account: EOF while parsing a value at column 9"
            ]
        );
    }

    #[test]
    fn an_invalid_header_is_reported() {
        for (file, problem) in [
            ("", "line 1: the header has no column `email`; the first line must be `emai"),
            (
                "ann@example.com,x",
                "line 1: the header has an unknown column `ann@example.com`; rename it ",
            ),
            (
                "email,hash",
                "line 1: the header has an unknown column `hash`; rename it to `email`,",
            ),
            (
                "email,email,password_hash",
                "line 1: the header has two columns `email`; remove one of them",
            ),
            (
                "Email,password_hash",
                "line 1: the header has a column `Email`; write it in lower case, `emai",
            ),
            (
                "email;password_hash\na@b.example;",
                "line 1: the columns are separated by semicolons; separate them by comm",
            ),
            (
                "\"email\"\t\"password_hash\"\n",
                "line 1: the columns are separated by tabs; separate them by commas",
            ),
            (
                "\n[\n{\"email\":\"ann@example.com\"}]",
                "line 1: expected one JSON object per line, found an array; convert it ",
            ),
            (
                "email,name",
                "line 1: the header has no column `password_hash`; the first line must ",
            ),
        ] {
            assert_eq!(problems_in(file), [problem], "{file}");
        }
        let latin = b"email,password_hash,name\nann@example.com,,Andr\xe9\n";
        let problems = parse_accounts(latin, &[], |_| false).unwrap_err();
        assert_eq!(problems[0].to_string(), "line 2: not UTF-8; save the file in that encoding");
    }
}
