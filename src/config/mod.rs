//! The configuration file: from bytes to [`File`], with every problem of its form found at once.
//!
//! What the values mean is for compiling to judge; here they have the right keys and the right types. Nothing of a running gateway is
//! known here.

pub mod file;
mod mask;
pub mod problem;
mod shape;
pub mod value;

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use toml::de::DeTable;

pub use file::File;
pub use problem::{Problem, Problems, Severity, Source};

/// A file that could be read.
#[derive(Debug)]
pub struct Loaded {
    /// Its path and text.
    pub source: Source,
    /// What is written.
    pub file: File,
    /// Errors that did not keep it from being read: unknown keys. They belong with what compiling finds.
    pub problems: Vec<Problem>,
}

/// Reads a file.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let text = read(path).map_err(|problem| Problems::new(Source::new(path, ""), vec![problem]))?;
    parse(path, text)
}

/// Reads a text as if it stood in the file at `path`.
pub fn parse(path: &Path, text: String) -> Result<Loaded, Problems> {
    let source = Source::new(path, text);
    let (root, errors) = DeTable::parse_recoverable(source.text());
    if !errors.is_empty() {
        return Err(Problems::new(source.clone(), syntax(&source, &errors)));
    }
    if root.get_ref().is_empty() {
        let problem = Problem::error(None, "the file has no routes: nothing would be reachable").help(SMALLEST);
        return Err(Problems::new(source, vec![problem]));
    }
    let mut root = root;
    let shape::Findings { unknown, mut wrong } = shape::check(source.text(), root.get_mut());
    if !wrong.is_empty() {
        wrong.extend(unknown);
        return Err(Problems::new(source, wrong));
    }
    match File::deserialize(toml::de::Deserializer::from(root)) {
        Ok(file) => Ok(Loaded { source, file, problems: unknown }),
        // The walk has seen every type, so this is for what a later key might bring. serde's own words may quote a value: they are left out.
        Err(error) => {
            let mut problems = unknown;
            problems.push(Problem::error(error.span(), "this value cannot be used here"));
            Err(Problems::new(source, problems))
        }
    }
}

/// The JSON Schema of the file, for editors.
pub fn schema() -> serde_json::Value {
    shape::schema()
}

/// The longest file that is read, in bytes.
const LONGEST: u64 = 32 << 20;

/// What to write into an empty file.
const SMALLEST: &str = "begin with one application and one route:

[upstream.app]
url = \"http://127.0.0.1:3000\"

[[route]]
path     = \"/*\"
upstream = \"app\"
access   = \"public\"";

fn read(path: &Path) -> Result<String, Problem> {
    let failed = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => Problem::error(None, "there is no such file")
            .help("name another with `--config PATH`, or make this one; `portcullis demo` shows a gateway without one"),
        io::ErrorKind::PermissionDenied => Problem::error(None, "the file may not be read")
            .help("let the user that runs the gateway read it, and enter the folders above it"),
        _ => Problem::error(None, format!("the file cannot be read: {error}")),
    };
    let opened = fs::File::open(path).map_err(|error| failed(&error))?;
    if opened.metadata().map_err(|error| failed(&error))?.is_dir() {
        return Err(Problem::error(None, "this is a directory").help("name the file in it, for example `--config gateway.toml`"));
    }
    let mut bytes = Vec::new();
    opened.take(LONGEST + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(Problem::error(None, "the file is longer than 32 MiB").help("is it the right file? `--config PATH` names another"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return Problem::error(None, "the file is UTF-16, and TOML is UTF-8").help("save it as UTF-8");
        }
        let line_start = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = at - line_start + 1;
        Problem::error(None, format!("line {line} is not UTF-8: its byte {column} is 0x{:02x}", bytes[at])).help("save the file as UTF-8")
    })
}

/// The first error of each line: the parser goes on after one, and what it finds next is often the same.
fn syntax(source: &Source, errors: &[toml::de::Error]) -> Vec<Problem> {
    const TOLD: usize = 20;
    let mut problems: Vec<Problem> = Vec::new();
    let mut end_of_line = 0;
    let mut sorted: Vec<_> = errors.iter().collect();
    sorted.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    for error in sorted {
        let span = error.span().unwrap_or(0..0);
        if !problems.is_empty() && span.start <= end_of_line {
            continue;
        }
        if problems.len() == TOLD {
            break;
        }
        end_of_line =
            source.text().get(span.start..).and_then(|rest| rest.find('\n')).map_or(source.text().len(), |found| span.start + found);
        let problem = Problem::error(span, format!("this is not TOML: {}", error.message()));
        problems.push(match remedy(error.message()) {
            Some(help) => problem.help(help),
            None => problem,
        });
    }
    problems
}

/// What to do about an error of the parser.
fn remedy(message: &str) -> Option<&'static str> {
    const REMEDIES: [(&str, &str); 12] = [
        ("string values must be quoted", "put it in quotes: `key = \"value\"`"),
        ("duplicate key", "keep one of them; a list of sections is written `[[route]]`, in two brackets"),
        ("key with no value", "write `key = value`"),
        ("missing value", "write a value after `=`"),
        ("unclosed array", "close the list with `]`"),
        ("missing comma", "put a comma between the items"),
        ("unclosed inline table", "close the table with `}`"),
        ("unclosed table", "close the section's name with `]`, or `]]`"),
        ("invalid basic string", "close the string with `\"` on its line; a `\\` in it is written `\\\\`"),
        ("invalid literal string", "close the string with `'` on its line"),
        ("invalid unquoted key", "a name with other characters than letters, digits, `-` and `_` goes in quotes"),
        ("recurs", "nest the values less deeply"),
    ];
    REMEDIES.iter().find(|(start, _)| message.contains(start)).map(|(_, help)| *help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(text: &str) -> String {
        match parse(Path::new("gateway.toml"), text.to_owned()) {
            Ok(loaded) => Problems::new(loaded.source, loaded.problems).draw(false),
            Err(problems) => problems.draw(false),
        }
    }

    #[test]
    fn x() {
        for text in [
            "",
            "\u{feff}[server]\nworkers = 1\nfoo = 1\n",
            "[server]\nworkers = \"two\"\ntrusted-proxies = []\ndrain_delay = 10\nh2c = \"true\"\nlimits = 3\nroles = 3\nbananas = 1\n[server.tls]\ncertificate = \"x\"\n[limit.x]\n",
            "[issuer]\nissuer = \"x\"\naudience = \"y\"\n",
            "[issuer.a]\naudience = \"y\"\nsecret = { enf = \"X\" }\nalgorithms = [1]\n[route]\npath = 3\n[[server]]\n[identity]\nx = 99999999999999999999\n",
            "[[route]]\npath = /x\n[[route]\nsecret = \"abc\ncd = 3\ncd = 4\nfoo\n[server]\n[server]\nx = [1 2]\ny = {a = 1\nz=\n",
            "[issuer.a]\nsecret = \"hunter2hunter\" x\nfoo = 3\n",
            "x = [1,2\n",
            "a = \"\\q\"\n",
            "a = 01\n",
            "server.limits.foo = 3\nserver.tls = {}\nlimit = { a = { requests = 1.5 } }\nroute = [{ claims = { a = [[1]] }, identity_headers = { a = 3 }}]\n[[test]]\nexpect = { statuss = 3 }\n",
        ] {
            println!("=======\n{}", draw(text));
        }
    }
}
