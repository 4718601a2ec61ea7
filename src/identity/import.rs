//! Accounts from a file: CSV or JSON lines, as another application's database gives them out.
//!
//! All or nothing: every line is read, and everything that is wrong is told with its line, before
//! anything is written.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::account::{self, NewAccount, is_role};
use super::email::{Email, NoEmail};
use super::password::{StoredHash, UnusableHash};

/// An account of a file, and where it stands.
#[derive(Debug)]
pub struct Imported {
    /// The line, from 1.
    pub line: u64,
    /// The account. Whoever brings it vouches for its address.
    pub account: NewAccount,
}

/// A line that cannot be imported.
#[derive(Debug)]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    /// Why.
    pub problem: LineProblem,
}

/// Why a line cannot be imported. `Display` says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    /// The first line of a CSV file.
    #[error(
        "the header names no column `{0}`; its first line must be `email,password_hash,roles,name`, of which `roles` and `name` may be left out"
    )]
    NoColumn(&'static str),
    /// A column that means nothing here.
    #[error(
        "the header names `{0}`, which is none of `email`, `password_hash`, `roles` and `name`; rename that column, or remove it"
    )]
    Column(String),
    /// A column that would mean something in lower case.
    #[error("the header names `{written}`; write it in lower case, `{known}`")]
    Capitals {
        /// As it stands there.
        written: String,
        /// As it is meant.
        known: &'static str,
    },
    /// A column that is there already.
    #[error("the header names `{0}` twice; remove one of the two columns")]
    Twice(&'static str),
    /// Columns that another sign separates.
    #[error("the columns are separated by {0}, and this reads CSV; separate them by commas")]
    Separator(&'static str),
    /// JSON, but not line by line.
    #[error(
        "the file is a JSON array, and one object a line is read; `jq -c '.[]'` makes lines of it"
    )]
    Array,
    /// A record of another length than the header.
    #[error(
        "it has {found} fields, and the header has {wanted}; quote fields that hold a comma or a quotation mark, and double the mark"
    )]
    Fields {
        /// On this line.
        found: u64,
        /// In the header.
        wanted: u64,
    },
    /// CSV that cannot be read.
    #[error(
        "this is no CSV; quote fields that hold a comma or a quotation mark, and double the mark"
    )]
    Csv,
    /// JSON that cannot be read.
    #[error(
        "this is no account in JSON: {0}; write an object such as {{\"email\":\"ann@example.com\",\"password_hash\":\"$2b$…\",\"roles\":[\"user\"],\"name\":\"Ann\"}} on each line"
    )]
    Json(String),
    /// Bytes of another encoding.
    #[error("it is not UTF-8; save the file in that encoding")]
    Encoding,
    /// The address.
    #[error("{0}")]
    Email(#[from] NoEmail),
    /// The hash.
    #[error("{0}")]
    Hash(#[from] UnusableHash),
    /// A role.
    #[error(
        "`{0}` can be no role: one has 1 to 100 bytes, without white space; roles of a CSV file are separated by spaces"
    )]
    Role(String),
    /// The name.
    #[error("{0}")]
    Name(#[from] account::NoName),
    /// The address stands in the file before.
    #[error(
        "{email} stands on line {first} already; addresses are compared without regard to upper and lower case, so remove one of the two"
    )]
    Repeated {
        /// In its one form.
        email: Email,
        /// Where.
        first: u64,
    },
    /// The address has an account.
    #[error("{0} has an account already; remove the line")]
    Taken(Email),
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

/// Reads a file: JSON lines where the first thing in it is a `{`, CSV where it is no `[`. Who has
/// no `roles` gets `default_roles`; an address that `has_account` is not taken.
///
/// # Errors
/// Every line that is wrong.
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

/// A line, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    email: String,
    /// Empty, or absent: nobody can log in before a password is set by mail.
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
    // An array would be read as the members in their order.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(LineProblem::Json("it is no object".to_owned()));
    }
    serde_json::from_slice(line).map_err(|error| {
        // To its reader a line is all there is: it is line 1, which is not the one of the file.
        let (told, place) =
            (error.to_string(), format!(" at line {} column {}", error.line(), error.column()));
        LineProblem::Json(
            told.strip_suffix(&place)
                .map_or(told.clone(), |what| format!("{what} at column {}", error.column())),
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
    // A header without a comma is one column.
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

/// Which line a record begins on, as an editor counts. The reader's own count is one behind where
/// lines end in CRLF.
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

/// What the header may name.
const COLUMNS: [&str; 4] = ["email", "password_hash", "roles", "name"];

/// What stands between columns where it is no comma.
const SEPARATORS: [(char, &str); 2] = [(';', "semicolons"), ('\t', "tabs")];

/// Characters of an unknown column's name that are shown.
const SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";

    fn told(file: &str) -> Vec<String> {
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
    fn csv_is_read() {
        let file = format!(
            "\u{feff}email,password_hash,roles,name\r\nAnn@Example.com,{HASH},admin user admin,\"Ann, \"\"the\"\" first\"\r\n\r\n\"bob@example.com\",{HASH},,\r\n\
             cy@example.com,,user,\"two\nlines\""
        );
        assert_eq!(
            told(&file),
            ["line 5: a name has at most 200 characters, and none that cannot be see"]
        );
        let file = file.replace("two\nlines", "one line");
        assert_eq!(
            told(&file),
            [
                "2 ann@example.com $2b$05$ [admin,user] Some(\"Ann, \\\"the\\\" first\")",
                "4 bob@example.com $2b$05$ [] None",
                "5 cy@example.com none [user] Some(\"one line\")"
            ]
        );
        assert_eq!(
            told(&format!("password_hash,email\n{HASH},ann@example.com")),
            ["2 ann@example.com $2b$05$ [user] None"]
        );
        assert!(told("email,password_hash\n").is_empty());
    }

    #[test]
    fn json_lines_are_read() {
        let file = format!(
            "{{\"email\":\"ann@example.com\",\"password_hash\":\"{HASH}\",\"roles\":[\"admin\",\"user\"],\"name\":\"Ann\"}}\n\n\
             {{\"name\":null,\"email\":\"BOB@example.com\"}}\r\n{{\"email\":\"cy@example.com\",\"roles\":[]}}"
        );
        assert_eq!(
            told(&file),
            [
                "1 ann@example.com $2b$05$ [admin,user] Some(\"Ann\")",
                "3 bob@example.com none [user] None",
                "4 cy@example.com none [] None"
            ]
        );
    }

    #[test]
    fn every_bad_line_is_told() {
        let file = format!(
            "email,password_hash,roles\nann,{HASH},user\nbob@example.com,secret,user\ncy@example.com,{HASH},{}\ndee@example.com,{HASH}\n\
             ed@example.com,{HASH},\nED@example.com,{HASH},\nKnown@example.com,,\nknown@example.com,,\n",
            "r".repeat(101)
        );
        assert_eq!(
            told(&file),
            [
                "line 2: this is no e-mail address; write one such as ann@example.com, ",
                "line 3: this is no hash that can be read: bcrypt (`$2a$`, `$2b$`, `$2y",
                "line 4: `rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr",
                "line 5: it has 2 fields, and the header has 3; quote fields that hold ",
                "line 7: ed@example.com stands on line 6 already; addresses are compare",
                "line 8: known@example.com has an account already; remove the line",
                "line 9: known@example.com stands on line 8 already; addresses are comp"
            ]
        );
        let file = "{\"email\":\"ann@example.com\",\"passwordHash\":\"x\"}\n{\"email\":1}\n[]\n{\"email\":\"a@b.example\",\"roles\":[\"a b\"]}";
        assert_eq!(
            told(file),
            [
                "line 1: this is no account in JSON: unknown field `passwordHash`, expe",
                "line 2: this is no account in JSON: invalid type: integer `1`, expecte",
                "line 3: this is no account in JSON: it is no object; write an object s",
                "line 4: `a b` can be no role: one has 1 to 100 bytes, without white sp"
            ]
        );
    }

    #[test]
    fn a_line_of_json_is_told_by_the_number_of_the_file_and_its_column() {
        let file = "{\"email\":\"ann@example.com\"}\n{\"email\":ann@example.com}\n{\"email\":";
        let problems = parse_accounts(file.as_bytes(), &[], |_| false).unwrap_err();
        let told: Vec<String> = problems
            .iter()
            .map(|line| line.to_string().split(';').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            told,
            [
                "line 2: this is no account in JSON: expected value at column 10",
                "line 3: this is no account in JSON: EOF while parsing a value at column 9"
            ]
        );
    }

    #[test]
    fn a_header_that_does_not_fit_is_told() {
        for (file, problem) in [
            ("", "line 1: the header names no column `email`; its first line must be `em"),
            (
                "ann@example.com,x",
                "line 1: the header names `ann@example.com`, which is none of `email`, ",
            ),
            (
                "email,hash",
                "line 1: the header names `hash`, which is none of `email`, `password_h",
            ),
            (
                "email,email,password_hash",
                "line 1: the header names `email` twice; remove one of the two columns",
            ),
            (
                "Email,password_hash",
                "line 1: the header names `Email`; write it in lower case, `email`",
            ),
            (
                "email;password_hash\na@b.example;",
                "line 1: the columns are separated by semicolons, and this reads CSV; s",
            ),
            (
                "\"email\"\t\"password_hash\"\n",
                "line 1: the columns are separated by tabs, and this reads CSV; separat",
            ),
            (
                "\n[\n{\"email\":\"ann@example.com\"}]",
                "line 1: the file is a JSON array, and one object a line is read; `jq -",
            ),
            (
                "email,name",
                "line 1: the header names no column `password_hash`; its first line mus",
            ),
        ] {
            assert_eq!(told(file), [problem], "{file}");
        }
        let latin = b"email,password_hash,name\nann@example.com,,Andr\xe9\n";
        let problems = parse_accounts(latin, &[], |_| false).unwrap_err();
        assert_eq!(
            problems[0].to_string(),
            "line 2: it is not UTF-8; save the file in that encoding"
        );
    }
}
