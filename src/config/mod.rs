//! Reads the configuration file: from bytes to [`File`], with every problem of its form found at
//! once.
//!
//! After this, values have the right keys and types; compiling checks what they mean. Nothing here
//! knows a running gateway.

pub mod file;
mod foreign;
pub mod identity;
pub mod login;
mod mask;
pub mod problem;
mod shape;
pub mod value;
pub mod verify;
mod walk;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;
use toml::de::DeTable;

pub use file::File;
pub use problem::{Problem, Problems, Severity, Source};

/// Identifies a version of a file: device, inode, length, and times of modification and change,
/// after following symbolic links. A ConfigMap's update changes the first two; the change time
/// cannot be set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileVersion {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileVersion {
    /// The current version; `None` if there is no file. Get it before reading, so that a later
    /// write counts as a new version.
    pub fn current(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.size(),
            modified,
            changed,
        })
    }
}

/// A file that could be read.
#[derive(Debug)]
pub struct Loaded {
    /// Its version from before it was read; `None` for a text that is not a file.
    pub mark: Option<FileVersion>,
    /// Its path and text.
    pub source: Source,
    /// The content.
    pub file: File,
    /// Errors that did not prevent reading, namely unknown keys. They are reported together with
    /// those of compiling.
    pub problems: Vec<Problem>,
}

/// Loads a file.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let mark = FileVersion::current(path);
    let text =
        read_text(path).map_err(|problem| Problems::new(Source::new(path, ""), vec![problem]))?;
    Ok(Loaded { mark, ..parse(path, text)? })
}

/// Parses a text as if it were the content of the file at `path`.
pub fn parse(path: &Path, text: String) -> Result<Loaded, Problems> {
    let source = Source::new(path, text);
    let (root, errors) = DeTable::parse_recoverable(source.text());
    if !errors.is_empty() {
        let problems = match foreign::language(source.text()) {
            // The parser's errors about another language are of no use.
            Some(language) => vec![language.problem()],
            None => syntax(&source, &errors),
        };
        return Err(Problems::new(source, problems));
    }
    if root.get_ref().is_empty() {
        let problem = Problem::error(None, "the file has no routes: nothing would be reachable")
            .help(MINIMAL_EXAMPLE);
        return Err(Problems::new(source, vec![problem]));
    }
    let mut root = root;
    let walk::Findings { unknown, mut wrong } = walk::check(source.text(), root.get_mut());
    if !wrong.is_empty() {
        wrong.extend(unknown);
        return Err(Problems::new(source, wrong));
    }
    match File::deserialize(toml::de::Deserializer::from(root)) {
        Ok(file) => Ok(Loaded { mark: None, source, file, problems: unknown }),
        // The walk has checked every type, so this is only reached for something new. serde's own
        // message may quote a value, so it is left out.
        Err(error) => {
            let mut problems = unknown;
            problems.push(Problem::error(error.span(), "this value is not valid here"));
            Err(Problems::new(source, problems))
        }
    }
}

/// Reads a file that a section names.
///
/// # Errors
/// The file cannot be read, is a directory, or is larger than 4 MiB.
pub fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::other("it is a directory"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_NAMED_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_NAMED_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_NAMED_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The maximum size of a file that a section names, in bytes.
const MAX_NAMED_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The JSON Schema of the file, for editors.
pub fn schema() -> serde_json::Value {
    shape::schema()
}

/// The maximum size of the configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// What to write into an empty file.
const MINIMAL_EXAMPLE: &str = "begin with one application and one route:

[upstream.app]
url = \"http://127.0.0.1:3000\"

[[route]]
path     = \"/*\"
upstream = \"app\"
access   = \"public\"";

fn read_text(path: &Path) -> Result<String, Problem> {
    let failed = |error: &io::Error| {
        match error.kind() {
        io::ErrorKind::NotFound => Problem::error(None, "there is no such file")
            .help("name another file with `--config PATH`, or create this one; `portcullis demo` runs a gateway without one"),
        io::ErrorKind::PermissionDenied => Problem::error(None, "permission denied")
            .help("give the user that runs the gateway read access to it, and access to the folders above it"),
        _ => Problem::error(None, format!("the file cannot be read: {error}")),
    }
    };
    let opened = fs::File::open(path).map_err(|error| failed(&error))?;
    if opened.metadata().map_err(|error| failed(&error))?.is_dir() {
        return Err(Problem::error(None, "this is a directory")
            .help("name the file inside it, for example `--config gateway.toml`"));
    }
    let mut bytes = Vec::new();
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Problem::error(None, "the file is larger than 32 MiB")
            .help("is this the right file? Name another with `--config PATH`"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return Problem::error(None, "the file is UTF-16; TOML must be UTF-8")
                .help("save the file as UTF-8");
        }
        let line_start =
            bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let line = bytes[..at].split(|byte| *byte == b'\n').count();
        let column = at - line_start + 1;
        Problem::error(
            None,
            format!("line {line} is not UTF-8: its byte {column} is 0x{:02x}", bytes[at]),
        )
        .help("save the file as UTF-8")
    })
}

/// The first error of each line: the parser continues after an error, and what it finds next is
/// often the same.
fn syntax(source: &Source, errors: &[toml::de::Error]) -> Vec<Problem> {
    const MAX_REPORTED: usize = 20;
    let mut problems: Vec<Problem> = Vec::new();
    let mut end_of_line = 0;
    let mut sorted: Vec<_> = errors.iter().collect();
    sorted.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    for error in sorted {
        let span = error.span().unwrap_or(0..0);
        if !problems.is_empty() && span.start <= end_of_line {
            continue;
        }
        if problems.len() == MAX_REPORTED {
            break;
        }
        end_of_line = source
            .text()
            .get(span.start..)
            .and_then(|rest| rest.find('\n'))
            .map_or(source.text().len(), |found| span.start + found);
        // The tokens that the parser expected only help those who know its grammar. If we know a
        // remedy, it is shown instead.
        let message = error.message();
        problems.push(match remedy(message) {
            Some(help) => Problem::error(
                span,
                format!(
                    "this is not TOML: {}",
                    message.split(", expected").next().unwrap_or(message)
                ),
            )
            .help(help),
            None => Problem::error(span, format!("this is not TOML: {message}")),
        });
    }
    problems
}

/// What to do about an error of the parser.
fn remedy(message: &str) -> Option<&'static str> {
    const REMEDIES: [(&str, &str); 17] = [
        ("string values must be quoted", "put it in quotes: `key = \"value\"`"),
        (
            "duplicate key",
            "keep one of them; a section that can occur several times is written in two brackets: `[[route]]`",
        ),
        ("key with no value", "write `key = value`"),
        ("missing value", "write a value after `=`"),
        ("unclosed array table", "close the section's name with `]]`"),
        ("unclosed table", "close the section's name with `]`"),
        ("unclosed array", "close the list with `]`"),
        ("unclosed inline table", "close the table with `}`"),
        (
            "missing comma between key-value",
            "close the table with `}`, or put a comma between its keys",
        ),
        ("missing comma", "put a comma between the items"),
        (
            "unexpected key or value",
            "write each key on its own line, and a `\"` inside a string as `\\\"`",
        ),
        ("missing escaped value", "write `\\` as `\\\\`, or put the string in single quotes"),
        ("invalid basic string", "close the string with `\"` on its line"),
        ("invalid literal string", "close the string with `'` on its line"),
        (
            "invalid unquoted key",
            "put a name with characters other than letters, digits, `-` and `_` in quotes",
        ),
        ("leading zero", "write the number without it; text goes in quotes"),
        ("recursion", "nest the values less deeply"),
    ];
    REMEDIES.iter().find(|(start, _)| message.contains(start)).map(|(_, help)| *help)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    fn problems(text: &str) -> Problems {
        match parse(Path::new("gateway.toml"), text.to_owned()) {
            Ok(loaded) => Problems::new(loaded.source, loaded.problems),
            Err(problems) => problems,
        }
    }

    /// As `rsync --times --inplace` does, or an attacker who wants to stay unnoticed.
    #[test]
    fn a_file_rewritten_with_the_same_length_and_time_is_another_version() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        fs::write(&path, "one").unwrap();
        let (before, modified) = (
            FileVersion::current(&path).unwrap(),
            fs::metadata(&path).unwrap().modified().unwrap(),
        );
        assert_eq!(FileVersion::current(&path), Some(before));
        // A file system's clock has a coarse resolution.
        std::thread::sleep(Duration::from_millis(50));
        fs::write(&path, "two").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let after = FileVersion::current(&path).unwrap();
        assert_eq!(
            (before.inode, before.length, before.modified),
            (after.inode, after.length, after.modified)
        );
        assert_ne!(before, after);
    }

    /// `line:column message (help)` of each problem.
    fn brief(text: &str) -> Vec<String> {
        let list = problems(text).to_json();
        let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        list.as_array()
            .expect("a list")
            .iter()
            .map(|problem| {
                format!(
                    "{}:{} {} ({})",
                    problem["line"],
                    problem["column"],
                    word(&problem["message"]),
                    word(&problem["help"])
                )
            })
            .collect()
    }

    #[test]
    fn a_complete_file_is_parsed() {
        let text = r#"
            [server]
            listen = ["127.0.0.1:8080", ":9090"]
            workers = 2
            [server.tls]
            certificate = "tls.crt"
            private_key = { file = "tls.key" }
            [store]
            database = "sqlite:portcullis.db"
            [issuer.corp]
            issuer = "https://login.example.com"
            audience = ["reports"]
            algorithms = ["RS256"]
            roles = ["https://example.com/roles"]
            subject = "user.id"
            secret = { file = "jwt.secret", create = true }
            [limit.login]
            requests = 5
            per = "1m"
            [upstream.reports]
            url = "http://127.0.0.1:3000"
            tls = { ca = "ca.pem" }
            [identity_headers]
            X-Auth-User = "sub"
            [[route]]
            path = "/reports/*"
            upstream = "reports"
            claims = { tenant = ["acme", 7, 1.5, true] }
            identity_headers = { X-Remote-User = "email" }
            streams = "session"
            [[test]]
            request = "GET /reports/q3"
            claims = { sub = "u1", at = 1979-05-27, realm_access = { roles = ["auditor"] } }
            expect = { status = 200, headers = { X-Auth-User = "u1" } }
        "#;
        let loaded =
            parse(Path::new("gateway.toml"), text.to_owned()).expect("the file is in order");
        assert_eq!(loaded.problems, []);
        let at = |span: std::ops::Range<usize>| &text[span];
        let file = loaded.file;
        let listen = file.server.listen.expect("it was given");
        assert_eq!(at(listen.span()), r#"["127.0.0.1:8080", ":9090"]"#);
        assert_eq!(at(listen.get_ref().0[1].span()), "\":9090\"");
        let issuer = &file.issuer["corp"];
        assert_eq!(at(file.issuer.keys().next().expect("one").span()), "corp");
        assert_eq!(
            issuer.roles.as_ref().expect("given").get_ref().segments(),
            ["https://example.com/roles"]
        );
        assert_eq!(issuer.subject.as_ref().expect("given").get_ref().segments(), ["user", "id"]);
        assert_eq!(
            at(issuer.secret.as_ref().expect("given").get_ref().span()),
            r#"{ file = "jwt.secret", create = true }"#
        );
        assert_eq!(at(file.route[0].span()), "[[route]]");
        let claims = file.route[0].get_ref().claims.as_ref().expect("given");
        assert_eq!(claims.get_ref()["tenant"].get_ref().len(), 4);
        assert!(file.store.is_some() && file.route[0].get_ref().streams.is_some());
    }

    #[test]
    fn a_file_with_unknown_keys_is_still_parsed() {
        let text = "[server]\ntrusted_proxy = []\nworkers = 3\n[[routes]]\npath = \"/\"\n";
        let loaded =
            parse(Path::new("gateway.toml"), text.to_owned()).expect("only keys are unknown");
        assert_eq!(loaded.file.server.workers.map(toml::Spanned::into_inner), Some(3));
        insta::assert_snapshot!(problems(text), @r"
        error: unknown key `trusted_proxy` in `[server]`
         --> gateway.toml:2:1
          |
        2 | trusted_proxy = []
          | ^^^^^^^^^^^^^
          |
          = help: did you mean `trusted_proxies`?

        error: unknown section `[[routes]]`
         --> gateway.toml:4:3
          |
        4 | [[routes]]
          |   ^^^^^^
          |
          = help: did you mean `[[route]]`?

        error: gateway.toml: 2 problems
        ");
    }

    #[test]
    fn every_wrong_type_is_reported_at_once() {
        let text = "[server]\nworkers = \"two\"\ntrusted-proxies = []\ndrain_delay = 10\nh2c = \"true\"\nroles = 1\n\
            [server.limits]\nmax_headers = \"7\"\n[admin]\nlisten = true\n\
            [issuer.a]\naudience = \"x\"\nalgorithms = [1]\nsecret = { enf = \"X\" }\nroles = 3\n\
            [limit.a]\nrequests = 1.5\n[route]\n[[log]]\n[identity]\npassword_min_length = 99999999999999999999\n";
        let wanted = [
            "2:11 `workers`: expected a whole number, found a string (for example `workers = 0`)",
            "3:1 unknown key `trusted-proxies` in `[server]` (did you mean `trusted_proxies`?)",
            "4:15 `drain_delay`: expected a string, found a whole number (for example `drain_delay = \"5s\"`)",
            "5:7 `h2c`: expected `true` or `false`, found a string (write `h2c = true`, without quotes)",
            "6:1 unknown key `roles` in `[server]` (`roles` belongs in `[identity.login.NAME]`, `[issuer.NAME]`, `[[route]]` or `[[test]]`)",
            "8:15 `max_headers`: expected a whole number, found a string (write `max_headers = 7`, without quotes)",
            "10:10 `listen`: expected a string, found a boolean (for example `listen = \"127.0.0.1:9901\"`)",
            "12:12 `audience`: expected a list of strings, found a string (write `audience = [\"x\"]`)",
            "13:15 an item of `algorithms`: expected a string, found a whole number (put it in quotes: `\"1\"`)",
            "14:12 unknown key `enf` in `[issuer.a.secret]` (did you mean `env`?)",
            "15:9 `roles`: expected a string or a list of strings, found a whole number (for example `roles = \"roles\"`)",
            "16:1 `[limit.a]` needs `per` (for example, add `per = \"1m\"`)",
            "17:12 `requests`: expected a whole number, found a number (for example `requests = 5`)",
            "18:1 `route`: expected a list of sections, found a table (write `[[route]]`, with two brackets: there can be several)",
            "19:3 `log`: expected a table, found a list (write `[log]`, with one bracket: there is only one)",
            "21:23 this number is too large (write one that fits in 64 bits)",
        ];
        assert_eq!(brief(text), wanted);
    }

    #[test]
    fn a_section_without_its_name_is_one_problem() {
        let wanted =
            "2:1 `[issuer]` needs a name (write `[issuer.NAME]`, with a name of your choice)";
        assert_eq!(brief("[issuer]\nissuer = \"x\"\naudience = [\"y\"]\n"), [wanted]);
    }

    #[test]
    fn problems_in_list_items_name_their_section() {
        let text =
            "[[test]]\nexpect = { statuss = 3 }\n[[route]]\nclaims = { a = [[1]] }\nlisten = 1\n";
        let wanted = [
            "2:12 unknown key `statuss` in `expect` of a `[[test]]` (did you mean `status`?)",
            "4:17 an item of `a`: expected a string, a number or `true` or `false`, found a list (for example `\"…\"`)",
            "5:1 unknown key `listen` in `[[route]]` (`listen` belongs in `[admin]`, `[server]` or `[verify]`)",
        ];
        assert_eq!(brief(text), wanted);
    }

    #[test]
    fn invalid_toml_is_reported_with_a_remedy() {
        for (text, wanted) in [
            (
                "path = /x\n",
                "1:8 this is not TOML: string values must be quoted (put it in quotes: `key = \"value\"`)",
            ),
            (
                "[[route]\n",
                "1:9 this is not TOML: unclosed array table (close the section's name with `]]`)",
            ),
            ("a\n", "1:2 this is not TOML: key with no value (write `key = value`)"),
            (
                "[server]\n[server]\n",
                "2:2 this is not TOML: duplicate key (keep one of them; a section that can occur several times is written in two brackets: `[[route]]`)",
            ),
            ("x = [1,\n", "1:8 this is not TOML: unclosed array (close the list with `]`)"),
            (
                "x = \"\\q\"\n",
                "1:7 this is not TOML: missing escaped value (write `\\` as `\\\\`, or put the string in single quotes)",
            ),
            (
                "x = 01\n",
                "1:5 this is not TOML: unexpected leading zero (write the number without it; text goes in quotes)",
            ),
        ] {
            assert_eq!(brief(text)[..1], [wanted], "{text}");
        }
    }

    #[test]
    fn a_syntax_error_does_not_show_a_secret() {
        for text in [
            "secret = \"hunter2\nx = 1\n",
            "secret = hunter2\n",
            "secret = \"hunter2\" hunter2\n",
            "secret = 'hunter2\n",
            "[a]\nsecret = \"\"\"hunter2\nhunter2\n",
            "secret hunter2\n",
            "secret = \"hunter2\"\nsecret = \"hunter2\"\n",
        ] {
            let drawn = problems(text).draw(false);
            assert!(drawn.starts_with("error: ") && !drawn.contains("hunter2"), "{drawn}");
        }
        let drawn = problems("[issuer.a]\nsecret = [\"hunter2\"]\nsecrt = \"hunter2\"\nissuer = [\"https://u:hunter2@h\"]\n").draw(false);
        assert!(drawn.contains("3 problems") && !drawn.contains("hunter2"), "{drawn}");
    }

    #[test]
    fn deep_nesting_is_an_error_instead_of_a_stack_overflow() {
        let names = vec!["a"; 100_000].join(".");
        for text in [
            format!("a = {}", "[".repeat(100_000)),
            format!("{names} = 1"),
            format!("[{names}]"),
            format!("a = {}", "{a=".repeat(100_000)),
        ] {
            assert!(problems(&text).has_errors(), "{}", &text[..20]);
        }
    }

    #[test]
    fn an_empty_file_gets_an_example() {
        for text in ["", "# nothing yet\n", "\u{feff}"] {
            let drawn = problems(text).draw(false);
            assert!(
                drawn.starts_with("error: the file has no routes: nothing would be reachable\n"),
                "{drawn}"
            );
        }
        let example = MINIMAL_EXAMPLE.split_once("\n\n").expect("a sentence, then the example").1;
        let loaded = parse(Path::new("x"), example.to_owned()).expect("the example is in order");
        assert_eq!((loaded.problems.len(), loaded.file.route.len()), (0, 1));
    }

    #[test]
    fn a_byte_order_mark_is_accepted() {
        assert_eq!(brief("\u{feff}[server]\nfoo = 1\n").len(), 1);
        assert!(brief("\u{feff}foo = 1\n")[0].contains("unknown key `foo`"));
    }

    #[test]
    fn unreadable_files_are_reported_with_the_cause() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("gateway.toml");
        let message = || load(&path).expect_err("it cannot be read").list[0].message.clone();
        assert_eq!(message(), "there is no such file");
        fs::create_dir(&path).expect("made");
        assert_eq!(message(), "this is a directory");
        fs::remove_dir(&path).expect("removed");
        fs::write(&path, b"a = 1\nb = \"\xff\"\n").expect("written");
        assert_eq!(message(), "line 2 is not UTF-8: its byte 6 is 0xff");
        fs::write(&path, b"\xff\xfea\0").expect("written");
        assert_eq!(message(), "the file is UTF-16; TOML must be UTF-8");
        fs::File::create(&path)
            .and_then(|file| file.set_len(MAX_FILE_BYTES + 1))
            .expect("made long");
        assert_eq!(message(), "the file is larger than 32 MiB");
        fs::remove_file(&path).expect("removed");
        fs::write(
            folder.path().join("real.toml"),
            MINIMAL_EXAMPLE.split_once("\n\n").expect("two parts").1,
        )
        .expect("written");
        symlink("real.toml", &path).expect("linked");
        assert!(load(&path).is_ok());
    }

    #[test]
    fn parsing_time_grows_linearly_with_routes() {
        let route = "[[route]]\nname = \"r\"\npath = \"/reports/*\"\nupstream = \"a\"\nroles = [\"auditor\"]\ntypo = 1\n";
        let time = |count: usize| {
            let text = route.repeat(count);
            let begun = std::time::Instant::now();
            let loaded = parse(Path::new("gateway.toml"), text).expect("only keys are unknown");
            assert_eq!((loaded.file.route.len(), loaded.problems.len()), (count, count));
            Problems::new(loaded.source, loaded.problems).draw(false);
            begun.elapsed()
        };
        let few = time(500);
        // Twenty times as many; quadratic work would take four hundred times as long.
        assert!(time(10_000) < few * 150 + Duration::from_secs(1));
    }

    #[test]
    fn the_schema_has_no_null() {
        let schema = schema();
        assert!(!schema.to_string().contains("null"));
        assert_eq!(schema["$defs"]["Server"]["properties"]["workers"]["type"], "integer");
        assert_eq!(schema["$defs"]["Server"]["properties"]["listen"]["$ref"], "#/$defs/OneOrMany");
    }
}
