//! Runs the built binary in temporary folders: exit codes, messages, signals.
//!
//! The messages are reviewed snapshots. Each must meet four requirements: it reports one problem
//! once, it says what to do, it never shows a secret, and it is never a stack trace. No test
//! sleeps: it waits for a log line, or for the end of the process.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use serde_json::{Value, json};

/// An application, and one public route to it.
const APP: &str = r#"
[upstream.app]
builtin = "echo"

[[route]]
name = "app"
path = "/*"
upstream = "app"
access = "public"
"#;

/// The maximum time for any step. It is reached only if something hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// A folder in which the binary runs.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// A folder with this `gateway.toml`.
    fn with(text: &str) -> Self {
        let folder = Self::new();
        folder.write("gateway.toml", text);
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).expect("a file in the temporary folder");
        path
    }

    /// A file that only its owner may read, as keys should be.
    fn write_private(&self, name: &str, text: impl AsRef<[u8]>) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write(name, text);
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a mode");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_remove("PORTCULLIS_CONFIG")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> RunResult {
        self.result(&self.command(arguments).output().expect("the binary runs"))
    }

    fn run_with_input(&self, arguments: &[&str], input: &str) -> RunResult {
        let mut command = self.command(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(input.as_bytes())
            .expect("it reads its input");
        self.result(&child.wait_with_output().expect("it ends"))
    }

    fn result(&self, output: &Output) -> RunResult {
        let text = |bytes: &[u8]| -> String {
            // Some lines of a multi-line help end with spaces.
            let text = std::str::from_utf8(bytes)
                .expect("output is UTF-8")
                .replace(&self.path().display().to_string(), "[folder]");
            text.split('\n').map(str::trim_end).collect::<Vec<_>>().join("\n")
        };
        let result = RunResult {
            code: output.status.code().expect("it ends by itself"),
            out: text(&output.stdout),
            err: text(&output.stderr),
        };
        for trace in ["panicked", "RUST_BACKTRACE", "src/", ".rs:"] {
            assert!(
                !result.err.contains(trace) && !result.out.contains(trace),
                "a stack trace, or something like it: {result:?}"
            );
        }
        result
    }
}

/// The result of a run.
#[derive(Debug)]
struct RunResult {
    code: i32,
    out: String,
    err: String,
}

impl RunResult {
    /// Its standard output, if it succeeded.
    fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    /// The errors about a configuration.
    fn rejected(self) -> String {
        assert_eq!((self.code, self.out.as_str()), (78, ""), "{}", self.err);
        self.err
    }

    /// The messages about an accepted configuration.
    fn warned(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        assert!(self.err.starts_with("warning: "), "{}", self.err);
        self.err
    }
}

/// The output of `check` for an invalid file.
fn rejected(text: &str) -> String {
    Folder::with(text).run(&["check"]).rejected()
}

/// The warnings of `check` for a valid file.
fn warned(text: &str) -> String {
    Folder::with(text).run(&["check"]).warned()
}

fn with_app(text: &str) -> String {
    format!("{text}\n{APP}")
}

// --- the command line
// ------------------------------------------------------------------------------------------------------------------

#[test]
fn every_command_has_a_help_text() {
    let folder = Folder::new();
    let overview = folder.run(&["--help"]).ok();
    let commands = [
        &["run"][..],
        &["check"],
        &["explain"],
        &["token"],
        &["token", "mint"],
        &["token", "inspect"],
        &["demo"],
        &["healthcheck"],
        &["schema"],
        &["openapi"],
        &["completions"],
        &["man"],
    ];
    for command in commands {
        let listed = if command.len() == 1 {
            overview.clone()
        } else {
            folder.run(&[command[0], "--help"]).ok()
        };
        let name = command.last().expect("a name");
        assert!(
            listed.lines().any(|line| line.starts_with(&format!("  {name} "))),
            "`{name}` is not listed:\n{listed}"
        );
        let help = folder.run(&[command, &["--help"]].concat()).ok();
        assert!(help.contains("Usage: portcullis"), "{help}");
        assert!(help.lines().next().is_some_and(|line| line.len() > 10), "{help}");
    }
    for word in ["SIGHUP", "SIGTERM", "SIGINT", "78", "portcullis demo", "PORTCULLIS_CONFIG"] {
        assert!(overview.contains(word), "the overview does not speak of {word}:\n{overview}");
    }
}

#[test]
fn a_wrong_command_line_exits_2() {
    let folder = Folder::with(&with_app(ISSUER));
    for arguments in [
        &["chekc"][..],
        &["check", "--confg", "gateway.toml"],
        &["check", "--config"],
        &["explain"],
        &["explain", "GET"],
        &["explain", "GE T", "/"],
        &["explain", "GET", "/", "-H", "no colon"],
        &["explain", "GET", "/", "--claims", "{"],
        &["explain", "GET", "/", "--claims", "{}", "--token", "x"],
        &["explain", "GET", "/", "--claims", "{}", "--issuer", "nobody"],
        &["explain", "GET", "/", "--peer", "localhost"],
        &["token"],
        &["token", "mint", "--issuer", "nobody", "--sub", "alice"],
        &["token", "mint", "--issuer", "local"],
        &["token", "mint", "--issuer", "local", "--sub", "alice", "--ttl", "soon"],
        &["token", "mint", "--issuer", "local", "--sub", "alice", "--claim", "role"],
        &["token", "mint", "--issuer", "local", "--sub", "alice", "--algorithm", "RS256"],
        &["completions", "teletype"],
    ] {
        let output = folder.run(arguments);
        assert_eq!((output.code, output.out.as_str()), (2, ""), "{arguments:?}: {}", output.err);
        assert!(
            output.err.starts_with("error: ") || output.err.contains("Usage: portcullis"),
            "{arguments:?}: {}",
            output.err
        );
    }
    assert_snapshot!(folder.run(&["chekc"]).err, @r"
    error: unrecognized subcommand 'chekc'

      tip: some similar subcommands exist: 'schema', 'check'

    Usage: portcullis [OPTIONS] [COMMAND]

    For more information, try '--help'.
    ");
    assert_snapshot!(folder.run(&["explain", "GET", "/", "--claims", "{}", "--issuer", "nobody"]).err, @"error: there is no [issuer.nobody]; known issuers: local");
    assert_snapshot!(folder.run(&["token", "mint", "--issuer", "local", "--sub", "alice", "--ttl", "soon"]).err, @"error: `soon` is not a duration; write, for example, 15m or 8h");
}

/// What comes from the file is another error.
#[test]
fn wrong_arguments_of_proxy_config_exit_2() {
    let file = "[verify]\ntrusted_proxies = [\"127.0.0.1/32\"]\n[[route]]\npath = \"/*\"\nhost = \"wiki.example\"\nexternal = true\n";
    let folder = Folder::with(&format!("{ISSUER}\n{file}"));
    let run = |upstream: &str, host: &str| {
        let fixed = ["proxy-config", "nginx", "--listen", ":8081", "--out", "out"];
        folder.run(&[&fixed[..], &["--upstream", upstream, "--host", host]].concat())
    };
    assert_eq!(run("http://127.0.0.1:3000", "wiki.example").code, 0);
    for (upstream, host) in [
        ("127.0.0.1:3000", "wiki.example"),
        ("http://127.0.0.1:3000/path", "wiki.example"),
        ("https://127.0.0.1:3000", "wiki.example"),
        ("http://127.0.0.1:3000", "other.example"),
    ] {
        let output = run(upstream, host);
        assert_eq!((output.code, output.out.as_str()), (2, ""), "{upstream} {host}: {output:?}");
    }
    folder.write("gateway.toml", with_app(ISSUER));
    assert_eq!(run("http://127.0.0.1:3000", "wiki.example").code, 1, "no [verify]");
}

#[test]
fn the_configuration_file_comes_from_the_argument_the_variable_or_the_default() {
    let folder = Folder::with(APP);
    folder.write(
        "other.toml",
        format!("{APP}\n[[test]]\nrequest = \"GET /\"\nexpect = {{ status = 200 }}\n"),
    );
    assert_snapshot!(folder.run(&["check"]).ok(), @"gateway.toml: ok: 1 route, 0 issuers, 1 upstream, 0 limits, no tests");
    assert_snapshot!(folder.run(&["check", "--config", "other.toml"]).ok(), @"other.toml: ok: 1 route, 0 issuers, 1 upstream, 0 limits, 1 test passed");
    assert_snapshot!(folder.run(&["-c", "other.toml", "check"]).ok(), @"other.toml: ok: 1 route, 0 issuers, 1 upstream, 0 limits, 1 test passed");
    let by_variable = folder
        .command(&["check"])
        .env("PORTCULLIS_CONFIG", "other.toml")
        .output()
        .expect("the binary runs");
    assert_snapshot!(folder.result(&by_variable).ok(), @"other.toml: ok: 1 route, 0 issuers, 1 upstream, 0 limits, 1 test passed");
}

#[test]
fn the_default_file_passes_its_own_check() {
    let folder = Folder::with(include_str!("../gateway.toml"));
    assert_snapshot!(folder.run(&["check"]).ok(), @"
    gateway.toml: ok: 5 routes, 1 issuer, 1 upstream, 1 limit, 5 tests passed
    limits of route `auth`:
      each account: 5 failed logins a minute (built in)
      each session: 4 wrong current passwords a minute (built in)
      each address: 5 logins, 5 registrations, 5 mails, 5 mailed links, 10 current passwords, 10 new tokens, 60 pages of mailed links, 60 returns from a login provider and 60 refreshes a minute (built in)
    ");
    assert!(!folder.path().join("portcullis.secret").exists(), "`check` makes no files");
}

#[test]
fn schema_is_a_json_schema_with_every_key() {
    let schema: Value = serde_json::from_str(&Folder::new().run(&["schema"]).ok()).expect("JSON");
    let properties = |name: &str| -> Vec<String> {
        let of = if name.is_empty() { &schema } else { &schema["$defs"][name] };
        of["properties"]
            .as_object()
            .unwrap_or_else(|| panic!("{name} has properties"))
            .keys()
            .cloned()
            .collect()
    };
    assert!(
        schema["$schema"].as_str().is_some_and(|dialect| dialect.contains("json-schema.org")),
        "{}",
        schema["$schema"]
    );
    let sections = "admin identity identity_headers issuer limit log route server store test token_cache upstream verify";
    assert_eq!(properties("").join(" "), sections);
    // A key of each section, from the contract.
    for (name, keys) in [
        (
            "Server",
            "listen workers trusted_proxies forwarded proxy_protocol h2c drain_delay drain_timeout watch tls limits",
        ),
        ("ServerTls", "certificate private_key client_ca"),
        (
            "ServerLimits",
            "max_connections max_connections_per_client header_timeout idle_timeout max_header_bytes max_headers max_body body_idle_timeout",
        ),
        ("Admin", "listen token"),
        ("Log", "format level access"),
        (
            "Issuer",
            "issuer audience algorithms discovery jwks_url jwks_file public_keys secret roles subject leeway insecure_any_issuer \
             insecure_any_audience max_token_lifetime jwks_refresh jwks_refetch_cooldown jwks_max_stale backchannel_logout",
        ),
        ("Limit", "requests per key ipv6_prefix count observe"),
        (
            "Upstream",
            "url builtin host connect_timeout response_timeout idle_timeout keep_idle keep_alive http2 tls path_case",
        ),
        ("UpstreamTls", "ca certificate private_key"),
        (
            "Route",
            "name host path methods upstream identity access roles all_roles scopes claims issuers limit token_from \
             forward_authorization strip_prefix insecure_path method_override enforce streams stream_max_age identity_headers \
             set_headers response_headers redirect",
        ),
        ("Test", "request claims roles issuer headers peer expect"),
        ("Expect", "status reason route headers"),
    ] {
        let found = properties(name);
        for key in keys.split_whitespace() {
            assert!(found.iter().any(|found| found == key), "{name} has no `{key}`: {found:?}");
        }
    }
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    let folder = Folder::new();
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef portcullis"),
        ("fish", "complete -c portcullis"),
        ("elvish", "edit:completion"),
    ] {
        let script = folder.run(&["completions", shell]).ok();
        assert!(script.contains(word) && script.contains("explain"), "{shell}:\n{script}");
    }
    let script = folder.run(&["completions", "bash"]).ok();
    let parsed = Command::new("bash").args(["-n", "-c", &script]).output().expect("bash runs");
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    let manual = folder.run(&["man"]).ok();
    for part in [
        ".TH portcullis 1",
        ".SH NAME",
        ".SH SYNOPSIS",
        "SIGHUP",
        ".SS \"portcullis explain\"",
        ".SS \"portcullis user add\"",
        "\\-\\-password\\-stdin",
    ] {
        assert!(manual.contains(part), "no {part}:\n{manual}");
    }
    // There is one page, which must not refer to pages of its commands.
    assert!(!manual.contains("(1)"), "{manual}");
}

/// The completions of bash for the last of these words.
fn proposals(script: &str, folder: &Folder, words: &[&str]) -> Vec<String> {
    let asked = format!(
        "{script}\nCOMP_WORDS=({}); COMP_CWORD={}; COMPREPLY=(); compopt() {{ :; }}\n\
         _portcullis portcullis \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        words.len() - 1
    );
    let output = Command::new("bash")
        .args(["-c", &asked])
        .current_dir(folder.path())
        .output()
        .expect("bash runs");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_file_names_only_for_file_arguments() {
    let folder = Folder::with(APP);
    let script = folder.run(&["completions", "bash"]).ok();
    let file = proposals(&script, &folder, &["portcullis", "check", "--config", "gate"]);
    assert_eq!(file, ["gateway.toml"]);
    for option in ["--issuer", "--token", "--peer"] {
        let name = proposals(&script, &folder, &["portcullis", "explain", option, "gate"]);
        assert!(!name.contains(&"gateway.toml".to_owned()), "{option}: {name:?}");
    }
}

#[test]
fn check_accepts_the_file_as_an_argument() {
    let folder = Folder::with("[[route]]\n");
    folder.write("other.toml", APP);
    let output = folder.run(&["check", "other.toml"]).ok();
    assert!(output.starts_with("other.toml: ok: 1 route"), "{output}");
}

/// A file with one cause for a hundred thousand bad lines fits on a screen.
#[test]
fn an_import_shows_the_first_bad_lines_and_counts_the_others() {
    let folder = Folder::with(&with_app(
        "[identity]\nissuer = \"https://app.test/auth\"\n[[route]]\npath = \"/auth/*\"\nidentity = true\n",
    ));
    folder.write("users.csv", format!("email,password_hash\n{}", "nobody,\n".repeat(100_000)));
    let output = folder.run(&["user", "import", "users.csv"]);
    assert_eq!(output.code, 1, "{}", output.err);
    assert!(
        output.err.contains("because of errors in 100000 lines:\n  line 2: "),
        "{}",
        output.err
    );
    assert_eq!(output.err.matches("\n  line ").count(), 20, "{}", output.err);
    assert!(output.err.ends_with("\n  … and 99980 more\n"), "{}", output.err);
}

/// Runs a command on a terminal, as `script` of util-linux makes one.
fn on_a_terminal(folder: &Folder, arguments: &str, variables: &[(&str, &str)]) -> String {
    let command = format!("{} {arguments}", env!("CARGO_BIN_EXE_portcullis"));
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .current_dir(folder.path())
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("script of util-linux is installed");
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

#[test]
fn colours_are_used_only_in_capable_terminals() {
    let folder = Folder::with(APP);
    folder.write("wrong.toml", "[[route]]\n");
    for arguments in ["explain GET /", "check wrong.toml"] {
        let output = on_a_terminal(&folder, arguments, &[]);
        assert!(output.contains('\u{1b}'), "{output}");
        for variable in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let output = on_a_terminal(&folder, arguments, &[variable]);
            assert!(
                !output.contains('\u{1b}') && output.contains("route"),
                "{variable:?}: {output}"
            );
        }
    }
    assert!(!folder.run(&["explain", "GET", "/"]).ok().contains('\u{1b}'));
}

#[test]
fn a_closed_standard_output_is_not_an_error() {
    let folder = Folder::new();
    let mut child = folder
        .command(&["schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = folder.result(&child.wait_with_output().expect("it ends"));
    assert_eq!((output.code, output.err.as_str()), (0, ""));
}

// --- files that cannot be read
// ---------------------------------------------------------------------------------------------------------------

#[test]
fn a_missing_file() {
    assert_snapshot!(Folder::new().run(&["check", "--config", "missing.toml"]).rejected(), @r"
    error: there is no such file
    --> missing.toml
     = help: name another file with `--config PATH`, or create this one; `portcullis demo` runs a gateway without one

    error: missing.toml: 1 problem
    ");
}

/// Every command that reads the file reports the same.
#[test]
fn every_command_that_reads_the_file_exits_78_without_it() {
    let folder = Folder::new();
    let output = folder.run(&["check"]).rejected();
    for arguments in [
        &["run"][..],
        &[],
        &["explain", "GET", "/"],
        &["token", "mint", "--issuer", "local", "--sub", "alice"],
        &["healthcheck"],
    ] {
        assert_eq!(folder.run(arguments).rejected(), output, "{arguments:?}");
    }
}

#[test]
fn a_directory() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("gateway.toml")).expect("a folder");
    assert_snapshot!(folder.run(&["check"]).rejected(), @r"
    error: this is a directory
    --> gateway.toml
     = help: name the file inside it, for example `--config gateway.toml`

    error: gateway.toml: 1 problem
    ");
}

#[test]
fn an_empty_file() {
    assert_snapshot!(rejected(""), @r#"
    error: the file has no routes: nothing would be reachable
    --> gateway.toml
     = help: begin with one application and one route:

             [upstream.app]
             url = "http://127.0.0.1:3000"

             [[route]]
             path     = "/*"
             upstream = "app"
             access   = "public"

    error: gateway.toml: 1 problem
    "#);
    assert_eq!(rejected("# nothing yet\n\n"), rejected(""));
}

#[test]
fn a_file_of_50_megabytes() {
    let folder = Folder::new();
    let file = fs::File::create(folder.path().join("gateway.toml")).expect("a file");
    file.set_len(50_000_000).expect("it may be that long");
    assert_snapshot!(folder.run(&["check"]).rejected(), @r"
    error: the file is larger than 32 MiB
    --> gateway.toml
     = help: is this the right file? Name another with `--config PATH`

    error: gateway.toml: 1 problem
    ");
}

#[test]
fn a_file_that_is_not_utf_8() {
    let folder = Folder::new();
    folder.write("gateway.toml", b"[server]\nlisten = \"\xff\xfe\"\n");
    assert_snapshot!(folder.run(&["check"]).rejected(), @r"
    error: line 2 is not UTF-8: its byte 11 is 0xff
    --> gateway.toml
     = help: save the file as UTF-8

    error: gateway.toml: 1 problem
    ");
    folder.write("gateway.toml", b"\xff\xfe[\0s\0e\0r\0v\0e\0r\0]\0");
    assert_snapshot!(folder.run(&["check"]).rejected(), @r"
    error: the file is UTF-16; TOML must be UTF-8
    --> gateway.toml
     = help: save the file as UTF-8

    error: gateway.toml: 1 problem
    ");
}

/// Reading an endless device or pipe would block the start.
#[test]
fn a_file_that_never_ends() {
    assert_snapshot!(Folder::new().run(&["check", "--config", "/dev/zero"]).rejected(), @r"
    error: the file is larger than 32 MiB
    --> /dev/zero
     = help: is this the right file? Name another with `--config PATH`

    error: /dev/zero: 1 problem
    ");
}

// --- what is not TOML, or has the wrong shape
// ------------------------------------------------------------------------------------------

#[test]
fn a_syntax_error() {
    assert_snapshot!(rejected("[server\nlisten = \"127.0.0.1:0\"\n"), @r"
    error: this is not TOML: unclosed table
     --> gateway.toml:1:8
      |
    1 | [server
      |        ^
      |
      = help: close the section's name with `]`

    error: gateway.toml: 1 problem
    ");
    assert_snapshot!(rejected("[[route]]\npath = /reports\nupstream = \"app\n"), @r#"
    error: this is not TOML: string values must be quoted
     --> gateway.toml:2:8
      |
    2 | path = /reports
      |        ^^^^^^^^
      |
      = help: put it in quotes: `key = "value"`

    error: this is not TOML: invalid basic string
     --> gateway.toml:3:16
      |
    3 | upstream = "app
      |                ^
      |
      = help: close the string with `"` on its line

    error: gateway.toml: 2 problems
    "#);
}

#[test]
fn a_repeated_section() {
    assert_snapshot!(rejected("[server]\nlisten = \"127.0.0.1:0\"\n\n[server]\nworkers = 1\n"), @r"
    error: this is not TOML: duplicate key
     --> gateway.toml:4:2
      |
    4 | [server]
      |  ^^^^^^
      |
      = help: keep one of them; a section that can occur several times is written in two brackets: `[[route]]`

    error: gateway.toml: 1 problem
    ");
}

#[test]
fn values_of_the_wrong_type() {
    assert_snapshot!(
        rejected(
            r#"
[server]
workers = "four"
h2c = "yes"
listen = 8080

[[route]]
name = "app"
path = ["/*"]
upstream = "app"
roles = "admin"
"#
        ),
        @r#"
        error: `workers`: expected a whole number, found a string
         --> gateway.toml:3:11
          |
        3 | workers = "four"
          |           ^^^^^^
          |
          = help: for example `workers = 0`

        error: `h2c`: expected `true` or `false`, found a string
         --> gateway.toml:4:7
          |
        4 | h2c = "yes"
          |       ^^^^^
          |
          = help: for example `h2c = true`

        error: `listen`: expected a string or a list of strings, found a whole number
         --> gateway.toml:5:10
          |
        5 | listen = 8080
          |          ^^^^
          |
          = help: for example `listen = "127.0.0.1:8080"`

        error: `path`: expected a string, found a list
         --> gateway.toml:9:8
          |
        9 | path = ["/*"]
          |        ^^^^^^
          |
          = help: for example `path = "…"`

        error: `roles`: expected a list of strings, found a string
          --> gateway.toml:11:9
           |
        11 | roles = "admin"
           |         ^^^^^^^
           |
           = help: write `roles = ["admin"]`

        error: gateway.toml: 5 problems
        "#
    );
}

#[test]
fn one_bracket_instead_of_two() {
    assert_snapshot!(rejected("[upstream.app]\nbuiltin = \"echo\"\n\n[route]\npath = \"/*\"\nupstream = \"app\"\n"), @r"
    error: `route`: expected a list of sections, found a table
     --> gateway.toml:4:1
      |
    4 | [route]
      | ^^^^^^^
      |
      = help: write `[[route]]`, with two brackets: there can be several

    error: gateway.toml: 1 problem
    ");
}

#[test]
fn unknown_keys_with_the_nearest_known_key() {
    assert_snapshot!(
        rejected(
            r#"
[sever]
listen = "127.0.0.1:0"

[upstream.app]
bultin = "echo"

[[route]]
name = "app"
path = "/*"
upstream = "app"
acces = "public"
role = ["admin"]
weight = "high"
"#
        ),
        @r#"
    error: unknown section `[sever]`
     --> gateway.toml:2:2
      |
    2 | [sever]
      |  ^^^^^
      |
      = help: did you mean `[server]`?

    error: unknown key `bultin` in `[upstream.app]`
     --> gateway.toml:6:1
      |
    6 | bultin = "echo"
      | ^^^^^^
      |
      = help: did you mean `builtin`?

    error: unknown key `acces` in `[[route]]`
      --> gateway.toml:12:1
       |
    12 | acces = "public"
       | ^^^^^
       |
       = help: did you mean `access`?

    error: unknown key `role` in `[[route]]`
      --> gateway.toml:13:1
       |
    13 | role = ["admin"]
       | ^^^^
       |
       = help: did you mean `roles`?

    error: a public route does not authenticate its callers
      --> gateway.toml:13:8
       |
    13 | role = ["admin"]
       |        ^^^^^^^^^
       |
       = help: remove this, or `access = "public"`

    error: unknown key `weight` in `[[route]]`
      --> gateway.toml:14:1
       |
    14 | weight = "high"
       | ^^^^^^
       |
       = help: `[[route]]` knows `access`, `acr`, `all_roles`, `claims`, `cors`, `enforce`, `external`, `forward_authorization`, `host`, `identity`, `identity_headers`, `insecure_path`, `issuers`, `limit`, `login`, `max_age`, `method_override`, `methods`, `name`, `path`, `redirect`, `response_headers`, `roles`, `scopes`, `set_headers`, `stream_max_age`, `streams`, `strip_prefix`, `token_from` and `upstream`

    error: gateway.toml: 6 problems
    "#
    );
}

/// The file is checked as if it had the key that was probably meant, so that consequences of the
/// mistake are not reported.
#[test]
fn a_misspelt_key_is_one_problem() {
    let file = "[issuer.app]\nissuer = \"https://app.test\"\naudience = [\"a\"]\nalgorithms = [\"HS256\"]\n\
                secret = { file = \"s\" }\n[upstream.app]\nbuiltin = \"echo\"\n\
                [[route]]\npath = \"/*\"\nupstream = \"app\"\n[[route]]\npath = \"/a\"\nupstream = \"app\"\n";
    for (right, wrong) in [
        ("upstream = \"app\"\n[[route]]", "upstreem = \"app\"\n[[route]]"),
        ("[upstream.app]", "[upstraem.app]"),
        ("[upstream.app]", "[upstream.ap]"),
        ("[issuer.app]", "[isuer.app]"),
        ("algorithms", "algoritms"),
        ("builtin", "built_in"),
        ("path = \"/a\"", "paht = \"/a\""),
    ] {
        let folder = Folder::with(&file.replacen(right, wrong, 1));
        folder.write_private("s", "01234567890123456789012345678901");
        let output = folder.run(&["check"]).rejected();
        assert!(output.contains("gateway.toml: 1 problem\n"), "{wrong}: {output}");
        assert!(output.contains("did you mean"), "{wrong}: {output}");
    }
}

/// The key that was probably meant is used for checking, but no file is created for it.
#[test]
fn a_start_with_a_misspelt_key_creates_no_secret() {
    let folder = Folder::with(&with_app(
        "[issuer.app]\nissuer = \"https://app.test\"\naudience = [\"a\"]\nalgorithms = [\"HS256\"]\n\
         secret = { file = \"s\", craete = true }\n",
    ));
    let output = folder.run(&["run"]);
    assert_eq!(output.code, 78, "{}", output.err);
    assert!(
        output.err.contains("did you mean `create`?") && output.err.contains("1 problem"),
        "{}",
        output.err
    );
    assert!(!folder.path().join("s").exists());
}

#[test]
fn a_misspelt_section_is_reported_as_a_section() {
    let cases = [
        ("[servr]\nworkers = 1\n", "unknown section `[servr]`", "did you mean `[server]`?"),
        (
            "[[routes]]\npath = \"/a\"\nupstream = \"app\"\n",
            "unknown section `[[routes]]`",
            "did you mean `[[route]]`?",
        ),
        ("[server.tsl]\n", "unknown section `[server.tsl]`", "did you mean `[server.tls]`?"),
        ("[isuer.corp]\n", "unknown section `[isuer]`", "did you mean `[issuer.NAME]`?"),
        ("[server]\nlisten_on = 1\n", "unknown key `listen_on` in `[server]`", "`listen`"),
        (
            "[identity_header]\nX-User = \"sub\"\n",
            "unknown section `[identity_header]`",
            "did you mean `[identity_headers]`?",
        ),
    ];
    for (text, message, help) in cases {
        let output = rejected(&with_app(text));
        assert!(output.contains(message) && output.contains(help), "{text}: {output}");
    }
}

/// They say how a site is to be protected or watched, so they are never ignored.
#[test]
fn keys_of_a_later_version_are_refused_as_such() {
    for (text, what) in [
        ("[trace]\notlp = \"http://127.0.0.1:4318\"\n", "`[trace]`"),
        (
            "[[route]]\npath = \"/mcp\"\nupstream = \"app\"\ntools = [{ names = [\"a\"] }]\n",
            "`tools` in `[[route]]`",
        ),
    ] {
        let output = rejected(&with_app(text));
        let told = format!("{what} is not supported yet");
        assert!(output.contains(&told) && output.contains("remove it"), "{text}: {output}");
        assert!(!output.contains("unknown"), "{text}: {output}");
    }
}

#[test]
fn a_file_in_another_language_is_recognised() {
    for (text, name) in [
        ("{\n  \"secret\": \"hunter2hunter2\"\n}\n", "JSON"),
        ("server:\n  secret: hunter2hunter2\n", "YAML"),
        (
            "server {\n    listen 80;\n    set $secret hunter2hunter2;\n}\n",
            "an nginx configuration",
        ),
    ] {
        let output = rejected(text);
        let wanted = format!("error: the file looks like {name}; expected TOML\n");
        assert!(output.starts_with(&wanted) && output.contains("1 problem\n"), "{output}");
        assert!(output.contains("[server]") && !output.contains("hunter2"), "{output}");
    }
}

#[test]
fn paths_in_the_syntax_of_other_routers_cause_a_warning() {
    for (path, segment, help) in [
        ("/users/:id", ":id", "write `{id}`"),
        ("/users/<int:number>/x", "<int:number>", "write `{number}`"),
        ("/api/$", "$", "write `{id}`"),
        ("/api/v1$", "v1$", "`/*` at the end"),
        ("/[a-z]+/*", "[a-z]+", "write `{id}`"),
        ("/(a|b)", "(a|b)", "write `{id}`"),
    ] {
        let route =
            format!("[[route]]\npath = \"{path}\"\nupstream = \"app\"\naccess = \"public\"\n");
        let output = warned(&with_app(&route));
        assert!(output.contains(&format!("`{segment}` matches only")), "{path}: {output}");
        assert!(output.contains(help) && output.contains("1 warning"), "{path}: {output}");
    }
    for path in ["/users/{id}", "/odata/$metadata", "/c++", "/Users(1)", "/a:b", "/"] {
        let route =
            format!("[[route]]\npath = \"{path}\"\nupstream = \"app\"\naccess = \"public\"\n");
        let output = Folder::with(&with_app(&route)).run(&["check"]);
        assert!(output.code == 0 && output.err.is_empty(), "{path}: {}", output.err);
    }
}

#[test]
fn several_problems_at_once() {
    assert_snapshot!(
        rejected(
            r#"
[server]
trusted_proxies = ["10.0.0.1/8"]
drain_delay = "5"

[limit.login]
requests = 0
per = "1 minute"
count = "failure"

[upstream.app]
url = "http://127.0.0.1:3000/app"

[[route]]
path = "/reports/../admin"
upstream = "ap"
access = "public"
limit = "logn"
"#
        ),
        @r#"
        error: `"10.0.0.1/8"` has address bits after its prefix
         --> gateway.toml:3:20
          |
        3 | trusted_proxies = ["10.0.0.1/8"]
          |                    ^^^^^^^^^^^^
          |
          = help: write `"10.0.0.0/8"` for the block, or `"10.0.0.1"` for the address

        error: `"5"` is not a duration
         --> gateway.toml:4:15
          |
        4 | drain_delay = "5"
          |               ^^^
          |
          = help: add a unit: `"5s"`, `"5ms"`, `"5m"` (minutes)

        error: 0 is out of range
         --> gateway.toml:7:12
          |
        7 | requests = 0
          |            ^
          |
          = help: write a whole number from 1 to 1000000000

        error: `"failure"` is not one of the choices
         --> gateway.toml:9:9
          |
        9 | count = "failure"
          |         ^^^^^^^^^
          |
          = help: did you mean `"failures"`? The choices are `"all"` or `"failures"`

        error: an upstream's URL cannot have a path
          --> gateway.toml:12:7
           |
        12 | url = "http://127.0.0.1:3000/app"
           |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^
           |
           = help: routes choose the path; see `strip_prefix` for a prefix that the application does not know

        error: the path has a dot segment; requests with one are refused
          --> gateway.toml:15:8
           |
        15 | path = "/reports/../admin"
           |        ^^^^^^^^^^^^^^^^^^^
           |
           = help: write a path such as `/reports`, `/reports/*` or `/reports/{id}/pages`

        error: there is no `[upstream.ap]`
          --> gateway.toml:16:12
           |
        16 | upstream = "ap"
           |            ^^^^
           |
           = help: did you mean `app`?

        error: there is no `[limit.logn]`
          --> gateway.toml:18:9
           |
        18 | limit = "logn"
           |         ^^^^^^
           |
           = help: did you mean `login`?

        error: gateway.toml: 8 problems
        "#
    );
}

// --- routes
// ----------------------------------------------------------------------------------------------------------------------------

#[test]
fn a_repeated_route() {
    assert_snapshot!(
        rejected(
            r#"
[upstream.app]
builtin = "echo"

[[route]]
name = "reports"
path = "/reports/*"
upstream = "app"
access = "public"

[[route]]
name = "reports again"
path = "/reports/*"
upstream = "app"
access = "public"
"#
        ),
        @r#"
        error: two routes match the same requests
          --> gateway.toml:13:8
           |
         7 | path = "/reports/*"
           |        ------------ already taken here
        ...
        13 | path = "/reports/*"
           |        ^^^^^^^^^^^^ this route can never match
           |
           = help: give one of them a `host`, other `methods` or a longer path

        error: gateway.toml: 1 problem
        "#
    );
}

#[test]
fn two_routes_with_the_same_name() {
    assert_snapshot!(
        rejected(&format!("{APP}\n[[route]]\nname = \"app\"\npath = \"/other\"\nupstream = \"app\"\naccess = \"public\"\n")),
        @r#"
        error: another route is already named `app`
          --> gateway.toml:12:8
           |
        12 | name = "app"
           |        ^^^^^
           |
           = help: give each route its own `name`: logs and metrics identify routes by it

        error: gateway.toml: 1 problem
        "#
    );
}

#[test]
fn no_routes() {
    assert_snapshot!(rejected("[upstream.app]\nbuiltin = \"echo\"\n"), @r"
    error: there are no routes: every request would get 404
     --> gateway.toml:1:1
      |
    1 | [upstream.app]
      | ^
      |
      = help: add a `[[route]]`

    error: gateway.toml: 1 problem
    ");
}

#[test]
fn a_route_without_path_or_upstream() {
    assert_snapshot!(rejected("[upstream.app]\nbuiltin = \"echo\"\n\n[[route]]\nname = \"app\"\naccess = \"public\"\n"), @r#"
    error: the route has no `path`
     --> gateway.toml:4:1
      |
    4 | [[route]]
      | ^^^^^^^^^
      |
      = help: add `path = "/*"` for everything, or `path = "/reports/*"`

    error: the route has no `upstream`
     --> gateway.toml:4:1
      |
    4 | [[route]]
      | ^^^^^^^^^
      |
      = help: add `upstream = "…"` with the name of an `[upstream.NAME]`, `identity = true` for the built-in issuer, `external = true` if another proxy forwards its requests, or `redirect = { to = "…" }`

    error: gateway.toml: 2 problems
    "#);
}

#[test]
fn an_upstream_that_no_route_uses() {
    let folder = Folder::with(&format!(
        "{APP}\n[upstream.old]\nurl = \"http://127.0.0.1:3000\"\n\n[limit.old]\nrequests = 5\nper = \"1m\"\n"
    ));
    let output = folder.run(&["check"]);
    assert_snapshot!(output.out, @"gateway.toml: ok: 1 route, 0 issuers, 2 upstreams, 1 limit, no tests");
    assert_snapshot!(output.warned(), @r"
    warning: no route uses upstream `old`
      --> gateway.toml:11:11
       |
    11 | [upstream.old]
       |           ^^^
       |
       = help: remove it, or name it in a route

    warning: no route uses limit `old`
      --> gateway.toml:14:8
       |
    14 | [limit.old]
       |        ^^^
       |
       = help: remove it, or name it in a route

    warning: gateway.toml: 2 warnings
    ");
}

#[test]
fn a_role_list_that_can_never_match() {
    assert_snapshot!(
        rejected(&with_protected("roles = []\nall_roles = [\"\"]\nscopes = [\"read write\"]\nclaims = { tenant = [] }\nissuers = [\"corp\"]")),
        @r#"
        error: the list is empty, so no caller could pass
          --> gateway.toml:15:9
           |
        15 | roles = []
           |         ^^
           |
           = help: remove it, or name at least one

        error: an empty name, which no caller can hold
          --> gateway.toml:16:14
           |
        16 | all_roles = [""]
           |              ^^
           |
           = help: remove it

        error: a scope cannot contain a space (RFC 6749 §3.3): no request could ever pass
          --> gateway.toml:17:11
           |
        17 | scopes = ["read write"]
           |           ^^^^^^^^^^^^
           |
           = help: write each scope as a separate item

        error: the list is empty, so no caller could pass
          --> gateway.toml:18:21
           |
        18 | claims = { tenant = [] }
           |                     ^^
           |
           = help: name at least one value

        error: there is no `[issuer.corp]`
          --> gateway.toml:19:12
           |
        19 | issuers = ["corp"]
           |            ^^^^^^
           |
           = help: the issuers are local

        error: gateway.toml: 5 problems
        "#
    );
}

#[test]
fn a_protected_route_without_an_issuer() {
    assert_snapshot!(rejected("[upstream.app]\nbuiltin = \"echo\"\n\n[[route]]\npath = \"/*\"\nupstream = \"app\"\n"), @r#"
    error: the route requires a token, but no issuer is configured
     --> gateway.toml:5:8
      |
    5 | path = "/*"
      |        ^^^^
      |
      = help: add an `[issuer.NAME]` section, or `[identity]`; or open the route with `access = "public"`

    error: gateway.toml: 1 problem
    "#);
}

#[test]
fn a_public_route_with_roles() {
    assert_snapshot!(rejected(&format!("{}roles = [\"admin\"]\n", with_app(ISSUER))), @r#"
    error: a public route does not authenticate its callers
      --> gateway.toml:17:9
       |
    17 | roles = ["admin"]
       |         ^^^^^^^^^
       |
       = help: remove this, or `access = "public"`

    error: gateway.toml: 1 problem
    "#);
}

/// Configurations that are valid but probably not intended (CONTRACT §2, rules 3 and 7).
#[test]
fn suspicious_routes() {
    let text = r#"
[issuer.one]
issuer = "https://one.example"
audience = ["app"]
algorithms = ["HS256"]
secret = { file = "one.secret", create = true }

[issuer.two]
issuer = "https://two.example"
audience = ["app"]
algorithms = ["HS256"]
secret = { file = "two.secret", create = true }

[upstream.app]
url = "http://127.0.0.1:3000"

[[route]]
name = "shop"
host = "shop.example.com"
path = "/*"
upstream = "app"
access = "public"

[[route]]
name = "assets"
path = "/assets/*"
upstream = "app"
access = "public"

[[route]]
name = "private assets"
path = "/assets/private/*"
upstream = "app"
"#;
    assert_snapshot!(warned(text), @r#"
    warning: on its host, this public route captures requests of the protected route `private assets`
      --> gateway.toml:20:8
       |
    20 | path = "/*"
       |        ^^^^
    ...
    32 | path = "/assets/private/*"
       |        ------------------- protected on every host
       |
       = help: add this host to the protected route if it should apply there

    warning: this public subtree surrounds the protected route `private assets`
      --> gateway.toml:26:8
       |
    26 | path = "/assets/*"
       |        ^^^^^^^^^^^
    ...
    32 | path = "/assets/private/*"
       |        ------------------- an application that ignores case would treat other spellings as this path
       |
       = help: set `path_case = "insensitive"` in the upstream's section if it does, or "sensitive" if it does not

    warning: route `private assets` accepts callers of every issuer
      --> gateway.toml:32:8
       |
    32 | path = "/assets/private/*"
       |        ^^^^^^^^^^^^^^^^^^^
       |
       = help: name them with `issuers = […]`: the same subject or role may mean someone else at another issuer

    warning: gateway.toml: 3 warnings
    "#);
}

#[test]
fn a_certificate_that_does_not_match_its_key() {
    let made =
        rcgen::generate_simple_self_signed(["app.example.com".to_owned()]).expect("a certificate");
    let folder = Folder::with(&with_app(
        "[server.tls]\ncertificate = \"tls.crt\"\nprivate_key = { file = \"tls.key\" }\n",
    ));
    folder.write("tls.crt", made.cert.pem());
    folder.write_private("tls.key", made.signing_key.serialize_pem());
    assert_snapshot!(folder.run(&["check"]).ok(), @"gateway.toml: ok: 1 route, 0 issuers, 1 upstream, 0 limits, no tests");
    folder.write_private("tls.key", rcgen::KeyPair::generate().expect("a key").serialize_pem());
    assert_snapshot!(folder.run(&["check"]).rejected(), @r#"
    error: the private key does not belong to the certificate
     --> gateway.toml:3:15
      |
    3 | private_key = { file = "tls.key" }
      |               ^^^^^^^^^^^^^^^^^^^^

    error: gateway.toml: 1 problem
    "#);
    folder.write_private("tls.key", made.cert.pem());
    assert_snapshot!(folder.run(&["check"]).rejected(), @r#"
    error: expected a private key, found a certificate: are the two files swapped?
     --> gateway.toml:3:15
      |
    3 | private_key = { file = "tls.key" }
      |               ^^^^^^^^^^^^^^^^^^^^

    error: gateway.toml: 1 problem
    "#);
    folder.write("tls.crt", made.signing_key.serialize_pem());
    let output = folder.run(&["check"]).rejected();
    assert!(!output.contains("PRIVATE KEY-----"), "{output}");
    assert_snapshot!(output, @r#"
    error: expected a certificate, found a private key: are the two files swapped?
     --> gateway.toml:2:15
      |
    2 | certificate = "tls.crt"
      |               ^^^^^^^^^

    error: gateway.toml: 1 problem
    "#);
}

#[test]
fn two_issuers_with_the_same_iss() {
    let text = "[identity]\nissuer = \"https://app.test/\"\n[issuer.corp]\nissuer = \"https://app.test\"\naudience = [\"a\"]\n\
                algorithms = [\"HS256\"]\nsecret = \"01234567890123456789012345678901\"\ninsecure_inline_secret = true\n";
    let output = rejected(&with_app(text));
    assert!(
        output.contains("accept the same tokens")
            && output.contains("each issuer has exactly one section"),
        "{output}"
    );
}

#[test]
fn unconfirmed_addresses_cause_a_warning() {
    let file = |lines: &str| {
        with_app(&format!(
            "[identity]\nissuer = \"https://app.test/auth\"\n{lines}\n[[route]]\npath = \"/auth/*\"\nidentity = true\n"
        ))
    };
    let output = warned(&file("registration = \"open\""));
    assert!(
        output.contains("another person's address") && output.contains("set `verify_email = true`"),
        "{output}"
    );
    for lines in [
        "",
        "registration = \"open\"\ntoken_claims = [\"name\"]",
        "registration = \"open\"\nverify_email = true\nmail = { folder = \"mail\" }",
    ] {
        let output = Folder::with(&file(lines)).run(&["check"]);
        assert!(output.code == 0 && !output.err.contains("address"), "{lines}: {}", output.err);
    }
}

/// Mailed links and `jwks_uri` are made from `issuer`, so this URL must reach the gateway.
#[test]
fn an_issuer_not_reachable_at_its_url_causes_a_warning() {
    let file = |issuer: &str, route: &str| {
        with_app(&format!("[identity]\nissuer = \"{issuer}\"\n{route}"))
    };
    assert_snapshot!(warned(&file("https://app.test/auth", "")), @r#"
    warning: no route leads to the built-in issuer: login is impossible, and its links are broken
     --> gateway.toml:1:1
      |
    1 | [identity]
      | ^^^^^^^^^^
      |
      = help: add a `[[route]]` with `path = "/auth/*"` and `identity = true`, where `issuer` ends in "/auth"

    warning: gateway.toml: 1 warning
    "#);
    assert_snapshot!(warned(&file("https://app.test/auth", "[[route]]\npath = \"/login/*\"\nidentity = true\n")), @r#"
    warning: the built-in issuer is not reachable at its URL: mailed links and `jwks_uri` are broken
     --> gateway.toml:2:10
      |
    2 | issuer = "https://app.test/auth"
      |          ^^^^^^^^^^^^^^^^^^^^^^^
    3 | [[route]]
    4 | path = "/login/*"
      |        ---------- it is reachable below this path
      |
      = help: write the URL of that route: its host, and its path without `/*`

    warning: gateway.toml: 1 warning
    "#);
    let output = warned(&file(
        "https://app.test/auth",
        "[[route]]\nhost = \"login.test\"\npath = \"/auth/*\"\nidentity = true\n",
    ));
    assert!(output.contains("is not reachable at its URL"), "{output}");
    for (issuer, route) in [
        ("https://app.test/auth", "[[route]]\npath = \"/auth/*\"\nidentity = true\n"),
        (
            "https://App.test:8443",
            "[[route]]\nhost = \"*.test\"\npath = \"/*\"\nmethods = [\"GET\", \"POST\", \"DELETE\"]\nidentity = true\n",
        ),
        ("https://app.test/f%c3%bCr/alle", "[[route]]\npath = \"/für/alle/*\"\nidentity = true\n"),
        (
            "http://[::1]:8080/auth",
            "[[route]]\npath = \"/a/*\"\nidentity = true\n[[route]]\npath = \"/auth/*\"\nidentity = true\n",
        ),
    ] {
        let output = Folder::with(&file(issuer, route)).run(&["check"]);
        assert!(
            output.code == 0 && !output.err.contains("issuer"),
            "{issuer} {route}: {}",
            output.err
        );
    }
}

/// A person who comes by http to a site on https is asked for the login again and again.
#[test]
fn an_issuer_on_https_that_nothing_serves_causes_a_warning() {
    let file = |server: &str, identity: &str, takes: &str| {
        format!(
            "{server}\n[identity]\nissuer = \"https://app.test/auth\"\n{identity}\n[[route]]\npath = \"/auth/*\"\nidentity = true\n\
             [[route]]\npath = \"/*\"\nupstream = \"app\"\ntoken_from = [{takes}]\n[upstream.app]\nbuiltin = \"echo\"\n"
        )
    };
    let warnings = |text: &str| Folder::with(text).run(&["check"]).err;
    assert_snapshot!(warned(&file("", "refresh_reuse_interval = \"0s\"", "\"cookie\"")), @r#"
    warning: the gateway serves http:// only, and no proxy in front of it is known: browsers that come this way keep no login
     --> gateway.toml:3:10
      |
    3 | issuer = "https://app.test/auth"
      |          ^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: set `[server] tls`, or list the proxy that terminates TLS in `trusted_proxies`; to try it out, write "http://localhost:8080/auth"

    warning: two requests of a browser at the same moment end its session, and the person is logged out
     --> gateway.toml:4:26
      |
    4 | refresh_reuse_interval = "0s"
      |                          ^^^^
      |
      = help: remove it for the default of 10 seconds; "0s" is for clients that send one refresh at a time

    warning: gateway.toml: 2 warnings
    "#);
    for (server, identity, takes) in [
        ("", "refresh_reuse_interval = \"0s\"", "\"header\""),
        ("[server]\ntrusted_proxies = [\"10.0.0.1/32\"]", "", "\"cookie\""),
        (
            "[server]\ntrusted_proxies = [\"10.0.0.1/32\"]",
            "refresh_reuse_interval = \"1s\"",
            "\"cookie\"",
        ),
    ] {
        assert_eq!(warnings(&file(server, identity, takes)), "", "{server} {identity} {takes}");
    }
}

/// The endpoints use several methods: a route that allows only some of them makes other endpoints
/// unreachable.
#[test]
fn methods_that_do_not_reach_the_issuer_cause_a_warning() {
    let file = |routes: &str| {
        with_app(&format!("[identity]\nissuer = \"https://app.test/auth\"\n{routes}"))
    };
    let route = |methods: &str| {
        format!("[[route]]\npath = \"/auth/*\"\nmethods = [{methods}]\nidentity = true\n")
    };
    assert_snapshot!(warned(&file(&route("\"GET\", \"POST\""))), @r#"
    warning: the built-in issuer receives no DELETE here: `/me`, `/sessions/{sid}`, `/tokens/{id}` cannot be reached
     --> gateway.toml:5:11
      |
    5 | methods = ["GET", "POST"]
      |           ^^^^^^^^^^^^^^^
      |
      = help: remove `methods`, since the endpoints check the method themselves, or add the missing ones

    warning: gateway.toml: 1 warning
    "#);
    let output = warned(&file(&route("\"GET\"")));
    assert!(
        output.contains("receives no POST here: `/")
            && output.contains("`/login`")
            && output.contains("2 warnings"),
        "{output}"
    );
    // Two routes with the same path may share the methods.
    let output =
        Folder::with(&file(&(route("\"GET\"") + &route("\"POST\", \"DELETE\"")))).run(&["check"]);
    assert!(output.code == 0 && !output.err.contains("receives no"), "{}", output.err);
}

/// The host's own `/*` would respond to the login page with another redirect.
#[test]
fn a_login_page_hidden_by_another_route_is_an_error() {
    let file = |routes: &str| {
        format!(
            "[identity]\nissuer = \"https://app.localhost/auth\"\n[upstream.app]\nbuiltin = \"echo\"\n\
             [[route]]\npath = \"/auth/*\"\nidentity = true\n{routes}"
        )
    };
    let application = |keys: &str| {
        format!("[[route]]\npath = \"/*\"\nupstream = \"app\"\ntoken_from = [\"cookie\"]\n{keys}\n")
    };
    let on_its_host = application("host = \"app.localhost\"");
    assert_snapshot!(rejected(&file(&on_its_host)), @r#"
    error: route `app.localhost/*` hides the login page `/auth/login` on its host
     --> gateway.toml:9:8
      |
    6 | path = "/auth/*"
      |        --------- the login page belongs to this route
    ...
    9 | path = "/*"
      |        ^^^^
      |
      = help: add a route with `host = "app.localhost"`, `path = "/auth/*"` and `identity = true`

    error: gateway.toml: 1 problem
    "#);
    let own_login = "[[route]]\nhost = \"app.localhost\"\npath = \"/auth/*\"\nidentity = true\n";
    for accepted in [
        application(""),
        format!("{on_its_host}{own_login}"),
        // Nothing redirects a browser on this host.
        "[[route]]\nhost = \"app.localhost\"\npath = \"/*\"\nupstream = \"app\"\n".to_owned(),
        application("host = \"app.localhost\"\naccess = \"public\""),
        application("host = \"app.localhost\"\nenforce = false"),
        application("host = \"app.localhost\"\nmethods = [\"POST\"]"),
    ] {
        let output = Folder::with(&file(&accepted)).run(&["check"]);
        assert_eq!(output.code, 0, "{accepted}: {}", output.err);
    }
    let public_below = "[[route]]\nhost = \"*.localhost\"\npath = \"/auth/*\"\nupstream = \"app\"\naccess = \"public\"\n";
    for (refused, hider) in [
        (application("host = \"*.localhost\""), "*.localhost/*"),
        // The route that redirects is not the one that hides the login page.
        (format!("{public_below}{}", application("")), "*.localhost/auth/*"),
        (
            format!("[[route]]\npath = \"/auth/login\"\nupstream = \"app\"\n{}", application("")),
            "/auth/login",
        ),
    ] {
        let output = rejected(&file(&refused));
        let wanted = format!("route `{hider}` hides the login page `/auth/login` on its host");
        assert_eq!(output.matches(&wanted).count(), 1, "{refused}: {output}");
        assert!(output.contains("1 problem"), "{output}");
    }
}

#[test]
fn a_cookie_domain_that_browsers_would_not_accept_is_an_error() {
    let file = |domain: &str, more: &str| {
        format!(
            "[identity]\nissuer = \"https://login.example.com/auth\"\ncookie_domain = \"{domain}\"\n[upstream.app]\nbuiltin = \"echo\"\n\
             [[route]]\nhost = \"login.example.com\"\npath = \"/auth/*\"\nidentity = true\n{more}"
        )
    };
    assert_snapshot!(rejected(&file("example.org", "")), @r#"
    error: `cookie_domain` does not contain `login.example.com`, where people log in
     --> gateway.toml:3:17
      |
    2 | issuer = "https://login.example.com/auth"
      |          -------------------------------- the host of the login
    3 | cookie_domain = "example.org"
      |                 ^^^^^^^^^^^^^
      |
      = help: browsers accept a cookie only for a domain that contains the host which sets it

    error: gateway.toml: 1 problem
    "#);
    for domain in [
        ".example.com",
        "com",
        "",
        "*.example.com",
        "https://example.com",
        "example.com:443",
        "127.0.0.1",
        "ple.com",
    ] {
        let told = rejected(&file(domain, ""));
        assert!(told.contains("cookie_domain") && told.contains("1 problem"), "{domain}: {told}");
    }
    let told =
        rejected(&format!("[server]\ntoken_cookie = \"__Host-a\"\n{}", file("example.com", "")));
    assert!(told.contains("cannot be set for a domain"), "{told}");
    let told = rejected(&file("example.com", "").replace("https://login", "http://login"));
    assert!(told.contains("needs an `issuer` with https://"), "{told}");
    let told = rejected(&file("example.com", "").replace("host = \"login", "host = \"other"));
    assert!(
        told.contains(
            "no route with `identity = true` answers https://login.example.com/auth/login"
        ),
        "{told}"
    );
    let outside = "[[route]]\nhost = \"app.example.org\"\npath = \"/*\"\nupstream = \"app\"\ntoken_from = [\"cookie\"]\n";
    let told = Folder::with(&file("example.com", outside)).run(&["check"]);
    assert!(told.code == 0 && told.err.contains("is outside `example.com`"), "{}", told.err);
    let inside = outside.replace("app.example.org", "*.Example.com");
    let told = Folder::with(&file("EXAMPLE.com", &inside)).run(&["check"]);
    assert!(told.code == 0 && !told.err.contains("outside"), "{}", told.err);
}

#[test]
fn invalid_identity_headers() {
    assert_snapshot!(
        rejected(&with_app("[identity_headers]\nConnection = \"sub\"\n\"X Auth\" = \"sub\"\nX-Auth-Group = \"groups..name\"\n")),
        @r#"
        error: `Connection` has its own meaning in HTTP and cannot be an identity header
         --> gateway.toml:2:1
          |
        2 | Connection = "sub"
          | ^^^^^^^^^^
          |
          = help: choose a name such as `X-Auth-User`

        error: not a valid header name
         --> gateway.toml:3:1
          |
        3 | "X Auth" = "sub"
          | ^^^^^^^^
          |
          = help: use letters, digits and `-`, such as `X-Auth-User`

        error: the claim name has an empty part
         --> gateway.toml:4:16
          |
        4 | X-Auth-Group = "groups..name"
          |                ^^^^^^^^^^^^^^
          |
          = help: write `"realm_access.roles"`, or `["one exact name"]`

        error: gateway.toml: 3 problems
        "#
    );
}

// --- issuers, keys, secrets
// ------------------------------------------------------------------------------------------------------------

/// An issuer whose key is created if it is missing.
const ISSUER: &str = r#"
[issuer.local]
issuer = "https://issuer.example"
audience = ["app"]
algorithms = ["HS256"]
secret = { file = "local.secret", create = true }
"#;

/// A file with a protected route, and these keys in it.
fn with_protected(route: &str) -> String {
    format!(
        "{ISSUER}\n[upstream.app]\nbuiltin = \"echo\"\n\n[[route]]\nname = \"app\"\npath = \"/*\"\nupstream = \"app\"\n{route}\n"
    )
}

/// A file whose issuer has public keys.
fn with_keys(keys: &str) -> String {
    format!(
        "[issuer.corp]\nissuer = \"https://corp.example\"\naudience = [\"app\"]\nalgorithms = [\"ES256\"]\n{keys}\n\n[upstream.app]\nbuiltin = \"echo\"\n\n[[route]]\nname = \"app\"\npath = \"/*\"\nupstream = \"app\"\n"
    )
}

#[test]
fn an_issuer_without_keys() {
    assert_snapshot!(rejected(&with_app("[issuer.corp]\n")), @r#"
    error: issuer `corp` has no `algorithms`
     --> gateway.toml:1:9
      |
    1 | [issuer.corp]
      |         ^^^^
      |
      = help: add `algorithms = ["RS256"]`, or what its tokens are signed with

    error: issuer `corp` has no `issuer`
     --> gateway.toml:1:9
      |
    1 | [issuer.corp]
      |         ^^^^
      |
      = help: add `issuer = "…"`, the `iss` of its tokens; for tokens without one, `insecure_any_issuer = true`

    error: issuer `corp` has no `audience`
     --> gateway.toml:1:9
      |
    1 | [issuer.corp]
      |         ^^^^
      |
      = help: add `audience = ["…"]`, the `aud` of its tokens; for tokens without one, `insecure_any_audience = true`

    error: gateway.toml: 3 problems
    "#);
}

/// URLs are not corrected: the gateway connects to exactly what is written.
#[test]
fn invalid_upstream_urls() {
    for (url, problem, help) in [
        ("app:3000", "does not begin with https:// or http://", "write scheme, host and port"),
        (
            "ftp://app:3000",
            "does not begin with https:// or http://",
            "write scheme, host and port",
        ),
        ("http://me:pw@app:3000", "it contains a user name or password", "remove it"),
        ("http://app:3000#x", "it has a `#`", "write scheme, host and port"),
        ("http://app:3000?x=1", "an upstream's URL cannot have a path", "see `strip_prefix`"),
        ("http://app:99999", "cannot be read", "write scheme, host and port"),
        ("http://app:0", "cannot be read", "write scheme, host and port"),
        ("http://app:", "cannot be read", "write scheme, host and port"),
        ("http://", "cannot be read", "write scheme, host and port"),
        (r"http:\\app", "does not begin with https:// or http://", "write scheme, host and port"),
    ] {
        let output = rejected(&format!(
            "[upstream.app]\nurl = '{url}'\n[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\n"
        ));
        assert!(output.contains(problem) && output.contains(help), "{url}: {output}");
    }
}

/// Each points at its error and says what to do.
#[test]
fn invalid_key_urls() {
    let output = |lines: &str| rejected(&with_keys(lines));
    for (lines, problem, help) in [
        (
            "jwks_url = \"login.example.com/keys\"",
            "cannot fetch keys from this `jwks_url`: it does not begin with https:// or http://",
            "\"https://login.example.com/keys\"",
        ),
        (
            "jwks_url = \"https://me:pw@login.example.com/keys\"",
            "it contains a user name or password",
            "write the complete URL",
        ),
        (
            "jwks_url = \"https://login.example.com/keys#x\"",
            "it has a `#`",
            "write the complete URL",
        ),
        (
            "jwks_url = \"http://login.example.com/keys\"",
            "keys would be fetched over http://",
            "`insecure_http_keys = true`",
        ),
        (
            "jwks_url = \"https://login.example.com/keys\"\ndiscovery = true",
            "a second source of keys",
            "keep exactly one of `discovery`, `jwks_url`",
        ),
        ("discovery = false", "has no keys", "give it one of `discovery`, `jwks_url`"),
        ("discovery = \"yes\"", "`discovery`", "true"),
        ("discovery = true\njwks_refresh = \"5\"", "is not a duration", "add a unit"),
        ("discovery = true\njwks_refresh = \"10ms\"", "is too short", "from `\"100ms\"`"),
        (
            "discovery = true\njwks_refresh = \"2m\"\njwks_max_stale = \"1m\"",
            "keys would be too old before they are fetched again",
            "`jwks_max_stale` is at least `jwks_refresh`",
        ),
        (
            "discovery = true\nca = \"no.pem\"",
            "cannot read `no.pem`: no such file",
            "relative paths start at",
        ),
        (
            "public_keys = []\nca = \"ca.pem\"",
            "`ca` has no effect here",
            "it is for `discovery` and `jwks_url`",
        ),
        (
            "public_keys = []\njwks_refetch_cooldown = \"1s\"",
            "`jwks_refetch_cooldown` has no effect here",
            "it is for `discovery` and `jwks_url`",
        ),
    ] {
        let output = output(lines);
        assert!(output.contains(problem) && output.contains(help), "{lines}: {output}");
    }
    let hmac = with_keys("discovery = true").replace("\"ES256\"", "\"HS256\"");
    assert!(rejected(&hmac).contains("an HMAC algorithm cannot be combined with public keys"));
    let no_issuer = "[issuer.corp]\ninsecure_any_issuer = true\naudience = [\"a\"]\nalgorithms = [\"ES256\"]\ndiscovery = true\n";
    assert!(rejected(&with_app(no_issuer)).contains("`discovery` needs `issuer`"));
    let query = "[issuer.corp]\nissuer = \"https://a.test/?x\"\naudience = [\"a\"]\nalgorithms = [\"ES256\"]\ndiscovery = true\n";
    assert!(rejected(&with_app(query)).contains("an issuer with a query cannot have metadata"));
}

#[test]
fn an_issuer_with_two_sources_of_keys() {
    assert_snapshot!(rejected(&with_keys("public_keys = [\"corp.pem\"]\njwks_file = \"keys.json\"")), @r#"
    error: a second source of keys
     --> gateway.toml:6:13
      |
    5 | public_keys = ["corp.pem"]
      |               ------------ the first
    6 | jwks_file = "keys.json"
      |             ^^^^^^^^^^^
      |
      = help: keep exactly one of `discovery`, `jwks_url`, `jwks_file`, `public_keys` and `secret`

    error: gateway.toml: 1 problem
    "#);
}

#[test]
fn a_key_file_that_is_missing() {
    assert_snapshot!(rejected(&with_keys("public_keys = [\"corp.pem\"]")), @r#"
    error: cannot read `corp.pem`: no such file
     --> gateway.toml:5:16
      |
    5 | public_keys = ["corp.pem"]
      |                ^^^^^^^^^^
      |
      = help: create ./corp.pem; relative paths start at the folder of the configuration file

    error: gateway.toml: 1 problem
    "#);
}

#[test]
fn a_key_file_that_is_a_certificate() {
    let made =
        rcgen::generate_simple_self_signed(["corp.example".to_owned()]).expect("a certificate");
    let folder = Folder::with(&with_keys("public_keys = [\"corp.pem\"]"));
    folder.write("corp.pem", made.cert.pem());
    assert_snapshot!(folder.run(&["check"]).rejected(), @r#"
    error: `corp.pem`: the file is a certificate, not a key; extract the public key: openssl x509 -in cert.pem -pubkey -noout > key.pem
     --> gateway.toml:5:16
      |
    5 | public_keys = ["corp.pem"]
      |                ^^^^^^^^^^

    error: gateway.toml: 1 problem
    "#);
}

#[test]
fn a_private_key_instead_of_a_public_key() {
    let folder = Folder::with(&with_keys("public_keys = [\"corp.pem\"]"));
    folder.write_private("corp.pem", rcgen::KeyPair::generate().expect("a key").serialize_pem());
    assert_snapshot!(folder.run(&["check"]).warned(), @r#"
    warning: the file contains a private key, which a gateway that only verifies should not have; use the public key: openssl pkey -in key.pem -pubout -out public.pem
     --> gateway.toml:5:16
      |
    5 | public_keys = ["corp.pem"]
      |                ^^^^^^^^^^

    warning: gateway.toml: 1 warning
    "#);
}

#[test]
fn files_that_are_not_keys() {
    let folder = Folder::with(&with_keys(
        "public_keys = [\"text.pem\", \"empty.pem\", \"folder.pem\", \"huge.pem\", \"broken.pem\"]",
    ));
    folder.write("text.pem", "not a key\n");
    folder.write("empty.pem", "");
    fs::create_dir(folder.path().join("folder.pem")).expect("a folder");
    fs::File::create(folder.path().join("huge.pem"))
        .expect("a file")
        .set_len(50_000_000)
        .expect("it may be that long");
    folder.write("broken.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
    assert_snapshot!(folder.run(&["check"]).rejected(), @r#"
    error: `text.pem`: the file is not PEM: it has no "-----BEGIN PUBLIC KEY-----"
     --> gateway.toml:5:16
      |
    5 | public_keys = ["text.pem", "empty.pem", "folder.pem", "huge.pem", "broken.pem"]
      |                ^^^^^^^^^^

    error: `empty.pem`: the file is empty
     --> gateway.toml:5:28
      |
    5 | public_keys = ["text.pem", "empty.pem", "folder.pem", "huge.pem", "broken.pem"]
      |                            ^^^^^^^^^^^

    error: cannot read `folder.pem`: it is a directory
     --> gateway.toml:5:41
      |
    5 | public_keys = ["text.pem", "empty.pem", "folder.pem", "huge.pem", "broken.pem"]
      |                                         ^^^^^^^^^^^^
      |
      = help: it must be a PEM file with a public key

    error: cannot read `huge.pem`: it is larger than 4194304 bytes
     --> gateway.toml:5:55
      |
    5 | public_keys = ["text.pem", "empty.pem", "folder.pem", "huge.pem", "broken.pem"]
      |                                                       ^^^^^^^^^^
      |
      = help: it must be a PEM file with a public key

    error: `broken.pem`: the key cannot be read: it is damaged, or of an unsupported kind (RSA, EC on P-256 or P-384, Ed25519)
     --> gateway.toml:5:67
      |
    5 | public_keys = ["text.pem", "empty.pem", "folder.pem", "huge.pem", "broken.pem"]
      |                                                                   ^^^^^^^^^^^^

    error: gateway.toml: 5 problems
    "#);
}

/// A device has length 0 but never ends. Memory is limited here, in case the gateway keeps reading.
#[test]
fn a_key_file_that_never_ends() {
    for text in [
        with_keys("public_keys = [\"/dev/zero\"]"),
        with_keys("jwks_file = \"/dev/zero\""),
        with_protected("")
            .replace("{ file = \"local.secret\", create = true }", "{ file = \"/dev/zero\" }"),
    ] {
        let folder = Folder::with(&text);
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!("ulimit -v 4000000; exec '{}' check", env!("CARGO_BIN_EXE_portcullis")),
        ]);
        let output = command
            .current_dir(folder.path())
            .env_remove("PORTCULLIS_CONFIG")
            .output()
            .expect("a shell");
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{text}\n{err}");
        assert!(err.contains("/dev/zero") && err.contains(": 1 problem"), "{err}");
    }
}

#[test]
fn a_key_that_does_not_match_its_algorithms() {
    let folder = Folder::with(&with_keys("public_keys = [\"corp.pem\"]").replace("ES256", "RS256"));
    folder.write("corp.pem", rcgen::KeyPair::generate().expect("a key").public_key_pem());
    assert_snapshot!(folder.run(&["check"]).rejected(), @r#"
    error: the key is for ES256, but the issuer's algorithms are RS256
     --> gateway.toml:5:15
      |
    5 | public_keys = ["corp.pem"]
      |               ^^^^^^^^^^^^

    error: gateway.toml: 1 problem
    "#);
}

#[test]
fn a_file_that_is_not_a_jwk_set() {
    let folder = Folder::with(&with_keys("jwks_file = \"keys.json\""));
    folder.write("keys.json", "{\"keys\": [");
    assert_snapshot!(folder.run(&["check"]).rejected(), @r#"
    error: `keys.json`: the JWK Set is not JSON
     --> gateway.toml:5:13
      |
    5 | jwks_file = "keys.json"
      |             ^^^^^^^^^^^

    error: gateway.toml: 1 problem
    "#);
    folder.write("keys.json", "{\"keys\": []}");
    let output = folder.run(&["check"]).rejected();
    assert!(output.contains("keys.json") && output.contains(": 1 problem\n"), "{output}");
    assert!(!output.contains("the warnings say"), "there are no warnings to look at:\n{output}");
    folder.write(
        "keys.json",
        r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ", "kid": "hmac"}]}"#,
    );
    let output = folder.run(&["check"]).rejected();
    assert!(!output.contains("c2VjcmV0"), "{output}");
    assert_snapshot!(output, @r#"
    error: key 0 (kid "hmac") of the set is not used: it is a shared secret (kty oct), which a key set must not publish; put a secret in `secret`
     --> gateway.toml:5:13
      |
    5 | jwks_file = "keys.json"
      |             ^^^^^^^^^^^

    error: no key of this set is usable
     --> gateway.toml:5:13
      |
    5 | jwks_file = "keys.json"
      |             ^^^^^^^^^^^
      |
      = help: the errors above say why each key was left out; also check `algorithms`

    error: gateway.toml: 2 problems
    "#);
}

#[test]
fn a_secret_that_is_shorter_than_the_hash() {
    let folder = Folder::with(&with_protected("").replace(", create = true", ""));
    folder.write_private("local.secret", "hunter2\n");
    let output = folder.run(&["check"]).rejected();
    assert!(!output.contains("hunter2"), "{output}");
    assert_snapshot!(output, @r#"
    error: the secret has 7 bytes; these algorithms need 32
     --> gateway.toml:6:10
      |
    6 | secret = { file = "local.secret" }
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: make a longer one, for example with `openssl rand -base64 48`; to use this one anyway, set `insecure_short_secret = true` (RFC 7518 §3.2)

    error: gateway.toml: 1 problem
    "#);
}

#[test]
fn a_secret_that_other_users_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::with(&with_protected("").replace(", create = true", ""));
    let secret = folder.write("local.secret", "a secret of more than thirty-two bytes\n");
    fs::set_permissions(secret, fs::Permissions::from_mode(0o644)).expect("a mode");
    let output = folder.run(&["check"]).warned();
    assert!(!output.contains("thirty-two"), "{output}");
    assert_snapshot!(output, @r#"
    warning: other users can access `./local.secret` (mode 644)
     --> gateway.toml:6:19
      |
    6 | secret = { file = "local.secret" }
      |                   ^^^^^^^^^^^^^^
      |
      = help: run `chmod 600 ./local.secret`

    warning: gateway.toml: 1 warning
    "#);
}

#[test]
fn missing_secrets() {
    let missing = with_protected("").replace(", create = true", "");
    assert_snapshot!(rejected(&missing), @r#"
    error: there is no file `./local.secret`
     --> gateway.toml:6:19
      |
    6 | secret = { file = "local.secret" }
      |                   ^^^^^^^^^^^^^^
      |
      = help: create it, or correct the path, which is relative to the folder of the configuration file

    error: gateway.toml: 1 problem
    "#);
    assert_snapshot!(rejected(&missing.replace("{ file = \"local.secret\" }", "{ env = \"PORTCULLIS_TEST_NOT_SET\" }")), @r#"
    error: the environment variable `PORTCULLIS_TEST_NOT_SET` is not set
     --> gateway.toml:6:18
      |
    6 | secret = { env = "PORTCULLIS_TEST_NOT_SET" }
      |                  ^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: set it in the gateway's environment, or write `{ file = "path" }`

    error: gateway.toml: 1 problem
    "#);
    let output =
        rejected(&missing.replace("{ file = \"local.secret\" }", "{ path = \"local.secret\" }"));
    assert!(output.contains("`{ env = \"NAME\" }` or `{ file = \"path\" }`"), "{output}");
}

/// A secret in the file is never shown, whatever is wrong with the file.
#[test]
#[expect(clippy::too_many_lines, reason = "one claim, held against several files")]
fn a_literal_secret_is_refused_and_never_shown() {
    const SECRET: &str = "correct-horse-battery-staple-and-more";
    let inline = with_protected("")
        .replace("{ file = \"local.secret\", create = true }", &format!("\"{SECRET}\""));
    let output = rejected(&inline);
    assert!(!output.contains(SECRET), "{output}");
    assert_snapshot!(output, @r#"
    error: the secret is in the configuration file
     --> gateway.toml:6:10
      |
    6 | secret = "*************************************"
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: write `{ env = "NAME" }` or `{ file = "path" }`; to keep it here, set `insecure_inline_secret = true` in this section

    error: gateway.toml: 1 problem
    "#);
    for (what, text) in [
        ("permitted", inline.replace("\naudience", "\ninsecure_inline_secret = true\naudience")),
        (
            "permitted and too short",
            inline
                .replace("\naudience", "\ninsecure_inline_secret = true\naudience")
                .replace("HS256", "HS512"),
        ),
        (
            "of a wrong algorithm",
            inline
                .replace("\naudience", "\ninsecure_inline_secret = true\naudience")
                .replace("HS256", "RS256"),
        ),
        ("before a syntax error", format!("{inline}\n[server\n")),
        (
            "in a line that is not TOML",
            inline.replace(&format!("\"{SECRET}\""), &format!("\"{SECRET}")),
        ),
        ("without quotes", inline.replace(&format!("\"{SECRET}\""), SECRET)),
        ("of the wrong type", inline.replace(&format!("\"{SECRET}\""), &format!("[\"{SECRET}\"]"))),
        (
            "in a table",
            inline.replace(&format!("\"{SECRET}\""), &format!("{{ value = \"{SECRET}\" }}")),
        ),
        (
            "as an environment variable's name",
            inline.replace(
                &format!("\"{SECRET}\""),
                &format!("{{ env = \"\", inline = \"{SECRET}\" }}"),
            ),
        ),
        ("under an unknown key", inline.replace("\nsecret =", "\nclient_secret =")),
        ("under a key with a typo", inline.replace("\nsecret =", "\nsecrte =")),
        ("as a password", format!("{}\npassword = \"{SECRET}\"\n", with_protected(""))),
        ("as an admin token", format!("{}\n[admin]\ntoken = \"{SECRET}\"\n", with_protected(""))),
        (
            "in a database URL",
            format!(
                "{}\n[store]\ndatabase = \"postgres://gateway:{SECRET}@db.example/gateway\"\n",
                with_protected("")
            ),
        ),
        (
            "in the URL of Redis",
            format!(
                "{}\n[store]\nredis = \"redis://:{SECRET}@127.0.0.1:6379\"\n",
                with_protected("")
            ),
        ),
        (
            "in an upstream's URL",
            with_protected("").replace(
                "builtin = \"echo\"",
                &format!("url = \"http://app:{SECRET}@127.0.0.1:3000\""),
            ),
        ),
        (
            "as a private key",
            format!(
                "{}\n[server.tls]\ncertificate = \"tls.crt\"\nprivate_key = \"{SECRET}\"\n",
                with_protected("")
            ),
        ),
    ] {
        let output = Folder::with(&text).run(&["check"]);
        assert!(
            !output.err.contains(SECRET) && !output.out.contains(SECRET),
            "a secret {what}: {}{}",
            output.out,
            output.err
        );
        assert!(output.code == 78 || what == "permitted", "a secret {what}: {output:?}");
        let explained = Folder::with(&text).run(&["explain", "GET", "/"]);
        assert!(
            !explained.err.contains(SECRET) && !explained.out.contains(SECRET),
            "a secret {what}: {explained:?}"
        );
    }
}

/// The URL of a server may be in the file, its password may not.
#[test]
fn a_password_in_the_url_of_a_store_is_refused() {
    let with = |lines: &str| format!("{}\n[store]\n{lines}\n", with_protected(""));
    assert_snapshot!(rejected(&with("redis = \"redis://:hunter2@127.0.0.1:6379\"")), @r#"
    error: the URL has a password, and is in the configuration file
      --> gateway.toml:18:9
       |
    18 | redis = "redis://:*******@127.0.0.1:6379"
       |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = help: write `{ env = "REDIS_URL" }` or `{ file = "path" }`; to keep it here, set `insecure_inline_secret = true` in this section

    error: gateway.toml: 1 problem
    "#);
    for url in
        ["postgres://me:hunter2@127.0.0.1/app", "postgres://me@127.0.0.1/app?password=hunter2"]
    {
        let database = format!("database = \"{url}\"");
        let refused = rejected(&with(&database));
        assert!(refused.contains("{ env = \"DATABASE_URL\" }"), "{refused}");
        let permitted = with(&format!("{database}\ninsecure_inline_secret = true"));
        let output = Folder::with(&permitted).run(&["check"]).ok();
        let listed = "store.insecure_inline_secret: a password is in the configuration file";
        assert_eq!(output.matches(listed).count(), 1, "{output}");
    }
    let without =
        with("redis = \"redis://127.0.0.1:6379\"\ndatabase = \"postgres://me@127.0.0.1/app\"");
    Folder::with(&without).run(&["check"]).ok();
}

/// With one provider, which is the only way to log in.
fn with_provider(login: &str, route: &str) -> String {
    let provider = format!(
        "[identity.login.corp]\nissuer = \"https://login.example\"\nclient_id = \"x\"\nclient_secret = \"hunter2\"\ninsecure_inline_secret = true\n{login}"
    );
    format!(
        "[identity]\nissuer = \"http://localhost:8080/auth\"\npassword_login = false\n{provider}\n[upstream.app]\nbuiltin = \"echo\"\n\
         [[route]]\npath = \"/auth/*\"\nidentity = true\n[[route]]\npath = \"/*\"\nupstream = \"app\"\n{route}\n"
    )
}

#[test]
fn a_route_for_passwords_where_they_are_turned_off_causes_a_warning() {
    let output = warned(&with_provider("", "login = [\"password\"]"));
    assert!(output.contains("warning: nobody can log in with a password"), "{output}");
    assert!(output.contains("password_login = false\n"), "{output}");
    let output = Folder::with(&with_provider("", "login = [\"corp\"]")).run(&["check"]);
    assert!(output.code == 0 && !output.err.contains("password"), "{output:?}");
}

#[test]
fn a_provider_with_an_empty_name_is_an_error() {
    for name in ["", " "] {
        let output = rejected(&with_provider(&format!("name = \"{name}\""), ""));
        assert!(output.contains("error: the button would have no text"), "{output}");
    }
}

#[test]
fn networks_with_host_bits() {
    assert_snapshot!(
        rejected(&with_app("[server]\ntrusted_proxies = [\"10.0.0.1/8\", \"2001:db8::1/32\", \"10.0.0.0/33\", \"lb.internal\", \"0.0.0.0/0\"]\n")),
        @r#"
        error: `"10.0.0.1/8"` has address bits after its prefix
         --> gateway.toml:2:20
          |
        2 | trusted_proxies = ["10.0.0.1/8", "2001:db8::1/32", "10.0.0.0/33", "lb.internal", "0.0.0.0/0"]
          |                    ^^^^^^^^^^^^
          |
          = help: write `"10.0.0.0/8"` for the block, or `"10.0.0.1"` for the address

        error: `"2001:db8::1/32"` has address bits after its prefix
         --> gateway.toml:2:34
          |
        2 | trusted_proxies = ["10.0.0.1/8", "2001:db8::1/32", "10.0.0.0/33", "lb.internal", "0.0.0.0/0"]
          |                                  ^^^^^^^^^^^^^^^^
          |
          = help: write `"2001:db8::/32"` for the block, or `"2001:db8::1"` for the address

        error: `"10.0.0.0/33"` is not a network
         --> gateway.toml:2:52
          |
        2 | trusted_proxies = ["10.0.0.1/8", "2001:db8::1/32", "10.0.0.0/33", "lb.internal", "0.0.0.0/0"]
          |                                                    ^^^^^^^^^^^^^
          |
          = help: an IPv4 prefix is a number from 0 to 32, as in `"10.0.0.0/8"`

        error: `"lb.internal"` is not a network
         --> gateway.toml:2:67
          |
        2 | trusted_proxies = ["10.0.0.1/8", "2001:db8::1/32", "10.0.0.0/33", "lb.internal", "0.0.0.0/0"]
          |                                                                   ^^^^^^^^^^^^^
          |
          = help: write an address or a block: `"192.0.2.7"`, `"10.0.0.0/8"`, `"fd00::/8"`; host names are not resolved

        error: every peer would be trusted to name the client
         --> gateway.toml:2:82
          |
        2 | trusted_proxies = ["10.0.0.1/8", "2001:db8::1/32", "10.0.0.0/33", "lb.internal", "0.0.0.0/0"]
          |                                                                                  ^^^^^^^^^^^
          |
          = help: name the networks of your load balancers, or set `insecure_trust_every_proxy = true`

        error: gateway.toml: 5 problems
        "#
    );
}

#[test]
fn keys_that_are_not_supported_yet() {
    assert_snapshot!(
        rejected(
            r#"
[server]
proxy_protocol = true

[server.tls]
certificate = "tls.crt"
private_key = { file = "tls.key" }
client_ca = "clients.pem"

[issuer.corp]
issuer = "https://login.example.com"
audience = ["app"]
algorithms = ["RS256"]
discovery = true

[limit.login]
requests = 5
per = "1m"

[upstream.app]
url = "https://127.0.0.1:3000"
http2 = true
tls = { certificate = "c.pem", private_key = { file = "c.key" } }

[[route]]
name = "login"
path = "/auth/*"
upstream = "app"
access = "public"
limit = "login"
"#
        ),
        @r#"
        error: no address is trusted to send a PROXY header
         --> gateway.toml:3:18
          |
        3 | proxy_protocol = true
          |                  ^^^^
          |
          = help: name the addresses of your load balancers in `trusted_proxies`

        error: cannot read `tls.crt`: no such file
         --> gateway.toml:6:15
          |
        6 | certificate = "tls.crt"
          |               ^^^^^^^^^
          |
          = help: create ./tls.crt; relative paths start at the folder of the configuration file

        error: there is no file `./tls.key`
         --> gateway.toml:7:24
          |
        7 | private_key = { file = "tls.key" }
          |                        ^^^^^^^^^
          |
          = help: create it, or correct the path, which is relative to the folder of the configuration file

        error: cannot read `clients.pem`: no such file
         --> gateway.toml:8:13
          |
        8 | client_ca = "clients.pem"
          |             ^^^^^^^^^^^^^
          |
          = help: create ./clients.pem; relative paths start at the folder of the configuration file

        error: cannot read `c.pem`: no such file
          --> gateway.toml:23:23
           |
        23 | tls = { certificate = "c.pem", private_key = { file = "c.key" } }
           |                       ^^^^^^^
           |
           = help: create ./c.pem; relative paths start at the folder of the configuration file

        error: there is no file `./c.key`
          --> gateway.toml:23:55
           |
        23 | tls = { certificate = "c.pem", private_key = { file = "c.key" } }
           |                                                       ^^^^^^^
           |
           = help: create it, or correct the path, which is relative to the folder of the configuration file

        error: gateway.toml: 6 problems
        "#
    );
}

#[test]
fn weakened_guarantees_are_listed() {
    let folder = Folder::with(
        r#"
[server]
trusted_proxies = ["0.0.0.0/0"]
insecure_trust_every_proxy = true

[issuer.old]
insecure_any_issuer = true
insecure_any_audience = true
algorithms = ["HS256"]
secret = "short"
insecure_short_secret = true
insecure_inline_secret = true

[upstream.app]
builtin = "echo"

[[route]]
name = "old"
path = "/old/*"
upstream = "app"
insecure_path = ["merge_slashes", "parameters", "encoded_slash"]
method_override = true
enforce = false

[[route]]
name = "perhaps"
path = "/*"
upstream = "app"
access = "optional"
"#,
    );
    assert_snapshot!(folder.run(&["check"]).ok(), @r#"
    gateway.toml: ok: 2 routes, 1 issuer, 1 upstream, 0 limits, no tests
    weakened guarantees:
      server.insecure_trust_every_proxy: any peer may name the client
      issuer.old.insecure_any_issuer: tokens without `iss` are accepted
      issuer.old.insecure_any_audience: tokens for any audience are accepted
      issuer.old.insecure_short_secret: the secret is shorter than the hash
      issuer.old.insecure_inline_secret: the secret is in the configuration file
      route `old`: insecure_path accepts merge_slashes, parameters, encoded_slash
      route `old`: enforce = false lets refused requests through without an identity
      route `old`: method_override lets the application use another method
      route `perhaps`: access = "optional" lets requests without a token through
    "#);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one file and what is printed for it")]
fn failing_tests_of_the_file() {
    assert_snapshot!(
        rejected(&format!(
            "{}{}",
            with_protected("roles = [\"admin\"]"),
            r#"
[[test]]
request = "GET /reports"
roles = ["user"]
expect = { status = 200, route = "app", headers = { X-Auth-User = "alice" } }

[[test]]
request = "GET /a/../b"
expect = { reason = "route_not_found" }

[[test]]
request = "GET /reports"
roles = ["admin"]
claims = { sub = "alice" }
issuer = "corp"
expect = { status = 200 }

[[test]]
expect = { status = 200 }
"#
        )),
        @r#"
        error: the test expects status 200, but it is 403 (role_missing)
          --> gateway.toml:20:21
           |
        18 | request = "GET /reports"
           |           -------------- this request
        19 | roles = ["user"]
        20 | expect = { status = 200, route = "app", headers = { X-Auth-User = "alice" } }
           |                     ^^^
           |
           = help: authorize: the caller lacks the role `admin`

        error: the test expects X-Auth-User to be alice, but it is absent
          --> gateway.toml:20:67
           |
        18 | request = "GET /reports"
           |           -------------- this request
        19 | roles = ["user"]
        20 | expect = { status = 200, route = "app", headers = { X-Auth-User = "alice" } }
           |                                                                   ^^^^^^^
           |
           = help: authorize: the caller lacks the role `admin`

        error: the test expects reason route_not_found, but it is target_ambiguous
          --> gateway.toml:24:21
           |
        23 | request = "GET /a/../b"
           |           ------------- this request
        24 | expect = { reason = "route_not_found" }
           |                     ^^^^^^^^^^^^^^^^^
           |
           = help: target: the path has a dot segment

        error: `roles` and `claims` contradict each other
          --> gateway.toml:28:9
           |
        28 | roles = ["admin"]
           |         ^^^^^^^^^
        29 | claims = { sub = "alice" }
           |          ----------------- the other
           |
           = help: keep one

        error: the test has no `request`
          --> gateway.toml:33:1
           |
        33 | [[test]]
           | ^^^^^^^^
           |
           = help: add `request = "GET /reports"`

        error: gateway.toml: 5 problems
        "#
    );
}

#[test]
fn a_test_cannot_look_up_a_personal_access_token() {
    let test = "[[test]]\nrequest = \"GET /\"\nheaders = { Authorization = \"Bearer pct_x\" }\nexpect = { status = 401 }\n";
    let output = rejected(&format!("{}\n{test}", with_protected("")));
    assert!(output.contains("a test cannot look up the personal access token"), "{output}");
    assert!(output.contains("with `roles` or `claims`"), "{output}");
}

#[test]
fn passing_tests_of_the_file_are_counted() {
    let folder = Folder::with(&format!(
        "{}{}",
        with_protected("roles = [\"admin\"]"),
        r#"
[[test]]
request = "GET http://app.example.com/reports"
claims = { sub = "alice", roles = ["admin"] }
headers = { X-Auth-User = "root" }
expect = { status = 200, reason = "authorized", route = "app", headers = { X-Auth-User = "alice", X-Auth-Email = "" } }

[[test]]
request = "GET /reports"
expect = { status = 401, reason = "credentials_missing" }
"#
    ));
    assert_snapshot!(folder.run(&["check"]).ok(), @"gateway.toml: ok: 1 route, 1 issuer, 1 upstream, 0 limits, 2 tests passed");
}

// --- one request, explained
// ------------------------------------------------------------------------------------------------------------

#[test]
fn explain_describes_every_step() {
    let folder = Folder::with(include_str!("../gateway.toml"));
    let output =
        folder.run(&["explain", "GET", "http://app.example.com/public/../admin/users"]).ok();
    assert_snapshot!(output, @r"
    ok  client        127.0.0.1 over http: the peer address, since the peer is not in trusted_proxies
    NO  target        the path has a dot segment
    refuse: 400 target_ambiguous
    ");
    let claims = r#"{"sub": "alice", "roles": ["user"], "email": "alice@example.com", "email_verified": false}"#;
    let output = folder.run(&["explain", "POST", "/admin/users", "--claims", claims]).ok();
    assert_snapshot!(output, @r"
    ok  client        127.0.0.1 over http: the peer address, since the peer is not in trusted_proxies
    ok  target        host `localhost`, path `/admin/users`, received as `/admin/users`
    ok  route         `admin`: any host, longest matching subtree (1 literal segment), any method
    --  route         not `app`: its path is shorter
    --  limit         the route has no limit
    ok  authenticate  `alice` of issuer `identity`, roles user
    NO  authorize     the caller lacks the role `admin`
    refuse: 403 role_missing
    ");
    // A field that the client sent with the same value counts as set by the gateway.
    let output = folder
        .run(&["explain", "GET", "/reports/q3", "--claims", claims, "-H", "X-Auth-User: alice"])
        .ok();
    assert!(
        output.contains("set           x-auth-user: alice")
            && output.contains("removed       x-auth-user"),
        "{output}"
    );
    let output = folder
        .run(&[
            "explain",
            "GET",
            "/reports/q3",
            "--claims",
            claims,
            "-H",
            "X_Auth_User: root",
            "-H",
            "Cookie: a=b",
        ])
        .ok();
    assert_snapshot!(without_ids(&output), @r"
    ok  client        127.0.0.1 over http: the peer address, since the peer is not in trusted_proxies
    ok  target        host `localhost`, path `/reports/q3`, received as `/reports/q3`
    ok  route         `app`: any host, longest matching subtree (0 literal segments), any method
    --  limit         the route has no limit
    ok  authenticate  `alice` of issuer `identity`, roles user
    ok  authorize     any authenticated caller is allowed
    ok  outgoing      GET /reports/q3 to upstream `app`
        set           x-auth-issuer: http://127.0.0.1:8080/auth
        set           x-auth-roles: user
        set           x-auth-user: alice
        set           x-request-id: [random]
        set           x-forwarded-for: 127.0.0.1
        set           x-forwarded-proto: http
        set           x-forwarded-host: localhost
        set           traceparent: [random]
        removed       x_auth_user
    allow: 200 authenticated
    ");
}

/// The ids of an exchange are random.
fn without_ids(output: &str) -> String {
    let line = |line: &str| match line.split_once(": ") {
        Some((name, _)) if name.ends_with("x-request-id") || name.ends_with("traceparent") => {
            format!("{name}: [random]\n")
        }
        _ => format!("{line}\n"),
    };
    output.lines().map(line).collect()
}

#[test]
fn explain_prints_json() {
    let folder = Folder::with(include_str!("../gateway.toml"));
    let ask = |arguments: &[&str]| -> Value {
        serde_json::from_str(&folder.run(&[&["explain", "--json"], arguments].concat()).ok())
            .expect("JSON")
    };
    let claims = r#"{"sub": "root", "roles": ["user", "admin"]}"#;
    let output = ask(&[
        "GET",
        "http://app.example.com/admin/users?page=2",
        "--claims",
        claims,
        "--peer",
        "203.0.113.7",
        "-H",
        "X_Auth_User: x",
    ]);
    let keys = |value: &Value| {
        value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        keys(&output),
        "client headers issuer reason roles route status steps subject target verdict"
    );
    assert_eq!(output["verdict"], "allow");
    assert_eq!(output["status"], 200);
    assert_eq!(output["reason"], "authorized");
    assert_eq!(output["route"], "admin");
    assert_eq!(output["client"], "203.0.113.7");
    assert_eq!(output["issuer"], "identity");
    assert_eq!(output["subject"], "root");
    assert_eq!(output["roles"], json!(["user", "admin"]));
    assert_eq!(keys(&output["headers"]), "removed set");
    assert_eq!(output["headers"]["set"]["x-auth-user"], "root");
    assert_eq!(output["headers"]["set"]["x-auth-roles"], "user,admin");
    assert_eq!(output["headers"]["removed"], json!(["x_auth_user"]));
    assert_eq!(keys(&output["steps"][0]), "detail outcome step");

    let output = ask(&["GET", "/admin/users", "--claims", r#"{"sub": "alice"}"#]);
    assert_eq!(
        (&output["verdict"], &output["status"], &output["reason"]),
        (&json!("refuse"), &json!(403), &json!("role_missing"))
    );
    assert_eq!(
        keys(&output),
        "client headers issuer reason roles route status steps subject target verdict"
    );

    let output = ask(&["GET", "/admin/users"]);
    assert_eq!(
        (&output["verdict"], &output["status"], &output["reason"]),
        (&json!("refuse"), &json!(401), &json!("credentials_missing"))
    );
    assert_eq!((&output["issuer"], &output["subject"]), (&Value::Null, &Value::Null));

    let output = ask(&["GET", "/a#b"]);
    assert_eq!(
        (&output["verdict"], &output["status"], &output["reason"]),
        (&json!("refuse"), &json!(400), &json!("target_ambiguous"))
    );

    let output = ask(&["GET", "/public/x"]);
    assert_eq!(
        (&output["verdict"], &output["status"], &output["reason"]),
        (&json!("allow"), &json!(200), &json!("public"))
    );
}

/// `explain` refuses whatever the HTTP server or an early step refuses, with the same status.
#[test]
fn explain_refuses_what_the_server_refuses() {
    let folder = Folder::with(
        r#"
[server.limits]
max_headers = 10
max_header_bytes = "8KiB"
max_body = "10B"

[upstream.app]
builtin = "echo"

[[route]]
path     = "/*"
upstream = "app"
access   = "public"
"#,
    );
    let many: Vec<String> = (0..14).map(|index| format!("X-Field-{index}: 1")).collect();
    let large = format!("X-Large: {}", "l".repeat(9_000));
    let fields = |fields: &[&str]| -> Vec<String> {
        fields.iter().map(|field| (*field).to_owned()).collect()
    };
    for (method, url, fields, status, reason) in [
        ("GET", "/", many, 431, "headers_too_large"),
        ("GET", "/", fields(&[&large]), 431, "headers_too_large"),
        ("POST", "/", fields(&["Transfer-Encoding: gzip, chunked"]), 400, "framing_invalid"),
        ("POST", "/", fields(&["Transfer-Encoding: gzip"]), 400, "framing_invalid"),
        ("POST", "/", fields(&["Content-Length: +3"]), 400, "framing_invalid"),
        ("POST", "/", fields(&["Content-Length: "]), 400, "framing_invalid"),
        ("POST", "/", fields(&["Content-Length: 3", "Content-Length: 4"]), 400, "framing_invalid"),
        ("POST", "/", fields(&["Content-Length: 11"]), 413, "body_too_large"),
        ("OPTIONS", "*", fields(&[]), 400, "target_ambiguous"),
        ("GET", "/a HTTP/1.1", fields(&[]), 400, "target_ambiguous"),
        ("GET", "/a\"b", fields(&[]), 400, "target_ambiguous"),
        ("GET", "/", fields(&["Host: a.test", "Host: b.test"]), 400, "target_ambiguous"),
    ] {
        let mut arguments = vec!["explain", "--json", method, url];
        for field in &fields {
            arguments.extend(["-H", field]);
        }
        let output: Value = serde_json::from_str(&folder.run(&arguments).ok()).expect("JSON");
        assert_eq!(
            (&output["verdict"], &output["status"], &output["reason"]),
            (&json!("refuse"), &json!(status), &json!(reason)),
            "{method} {url} {output:#}"
        );
    }
    let output = folder.run(&["explain", "--json", "GET", "/data/?next=https://app.example.com/x"]);
    let output: Value = serde_json::from_str(&output.ok()).expect("JSON");
    assert_eq!((&output["verdict"], &output["target"]), (&json!("allow"), &json!("/data/")));
}

/// Assumed claims count as a token in a place that the route reads, so the origin rule applies.
#[test]
fn an_assumed_caller_is_subject_to_the_origin_rule() {
    let test = |fields: &str, status: u16| {
        format!(
            r#"
[upstream.app]
builtin = "echo"

[issuer.corp]
issuer     = "https://login.example.com"
audience   = ["app"]
algorithms = ["HS256"]
secret     = "a secret that is long enough for the test of it"
insecure_inline_secret = true

[[route]]
path       = "/*"
upstream   = "app"
token_from = ["cookie"]

[[test]]
request = "POST /orders"
roles   = ["user"]
headers = {{ {fields} }}
expect  = {{ status = {status} }}
"#
        )
    };
    let own = r#"Origin = "http://localhost""#;
    for (fields, status) in [("", 403), (own, 200)] {
        Folder::with(&test(fields, status)).run(&["check"]).ok();
        let wrong = if status == 200 { 403 } else { 200 };
        assert_eq!(Folder::with(&test(fields, wrong)).run(&["check"]).code, 78, "{fields}");
    }
    let folder = Folder::with(&test("", 403));
    let claims = r#"{"sub": "alice"}"#;
    let printed = folder.run(&["explain", "--json", "POST", "/orders", "--claims", claims]).ok();
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((&printed["status"], &printed["reason"]), (&json!(403), &json!("origin_foreign")));
    // An assumed credential counts as a second credential.
    let sent = ["-H", "Cookie: __Host-portcullis=a.b.c"];
    let printed = folder
        .run(&[&["explain", "--json", "GET", "/orders", "--claims", claims][..], &sent].concat())
        .ok();
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(printed["reason"], "credentials_ambiguous");
}

/// The output names removed fields, also the gateway's cookies, and the caller of an overriding
/// method.
#[test]
fn explain_names_stripped_cookies_and_overriding_methods() {
    let folder = Folder::with(
        r#"
[upstream.app]
builtin = "echo"

[[route]]
path     = "/*"
upstream = "app"
access   = "public"
methods  = ["POST"]
method_override = true

[[route]]
path     = "/*"
upstream = "app"
access   = "public"
methods  = ["DELETE"]
name     = "delete"
"#,
    );
    let arguments = ["explain", "--json", "POST", "/x"];
    let cookie = ["-H", "Cookie: theme=dark; __Host-portcullis=a.b.c"];
    let output: Value =
        serde_json::from_str(&folder.run(&[&arguments[..], &cookie].concat()).ok()).expect("JSON");
    assert_eq!(output["headers"]["removed"], json!(["cookie"]));
    assert_eq!(output["headers"]["set"]["cookie"], "theme=dark");
    let override_field = ["-H", "X-HTTP-Method-Override: DELETE"];
    let output: Value =
        serde_json::from_str(&folder.run(&[&arguments[..], &override_field].concat()).ok())
            .expect("JSON");
    let steps = output["steps"].as_array().expect("steps");
    assert!(
        steps.iter().any(|step| step["detail"]
            .as_str()
            .is_some_and(|detail| detail.starts_with("route `delete`, for the overriding method"))),
        "{output:#}"
    );
}

#[test]
fn explain_chooses_the_issuer_by_iss() {
    let section = |name: &str| {
        format!(
            "[issuer.{name}]\nissuer = \"https://{name}.example\"\naudience = [\"a\"]\nalgorithms = [\"HS256\"]\nsecret = {{ file = \"secret\" }}\n"
        )
    };
    let folder = Folder::with(&format!(
        "{}{}[upstream.app]\nbuiltin = \"echo\"\n[[route]]\npath = \"/*\"\nupstream = \"app\"\nissuers = [\"one\", \"two\"]\n",
        section("two"),
        section("one")
    ));
    folder.write("secret", "s".repeat(32));
    let output = folder
        .run(&["explain", "GET", "/", "--claims", r#"{"sub": "u", "iss": "https://two.example"}"#])
        .ok();
    assert!(
        output.contains("`u` of issuer `two`") && output.ends_with("allow: 200 authenticated\n"),
        "{output}"
    );
    let why = folder.run(&["explain", "GET", "/", "--claims", r#"{"sub": "u"}"#]).err;
    assert_snapshot!(why, @"error: name the issuer, with `iss` in the claims or with --issuer; known issuers: one, two");
    let why = folder.run(&["explain", "GET", "/", "--claims", r#"{"iss": "x"}"#]).err;
    assert_snapshot!(why, @"error: there is no issuer `x`; name the issuer, with `iss` in the claims or with --issuer; known issuers: one, two");
}

#[test]
fn explain_describes_a_route_that_does_not_enforce() {
    let folder = Folder::with(&with_protected("roles = [\"admin\"]\nenforce = false"));
    let steps = |arguments: &[&str]| -> String {
        let output = folder.run(&[&["explain", "GET", "/admin/users"], arguments].concat()).ok();
        let is_asked = |line: &&str| {
            ["authenticate", "authorize", "enforce"].iter().any(|step| line[4..].starts_with(step))
        };
        output.lines().filter(is_asked).collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(steps(&[]), @r"
    NO  authenticate  no credentials
    ok  enforce       would be refused (credentials_missing), but route `app` has `enforce = false`
    ");
    assert_snapshot!(steps(&["--claims", r#"{"sub": "u", "roles": ["user"]}"#]), @r"
    ok  authenticate  `u` of issuer `local`, roles user
    NO  authorize     the caller lacks the role `admin`
    ok  enforce       would be refused (role_missing), but route `app` has `enforce = false`
    ");
    assert_snapshot!(steps(&["--claims", r#"{"sub": "u", "roles": ["admin"]}"#]), @r"
    ok  authenticate  `u` of issuer `local`, roles admin
    ok  authorize     the caller meets the requirements of the route
    ");
}

#[test]
fn explain_verifies_a_token() {
    let folder = Folder::with(&with_protected("roles = [\"admin\"]"));
    let token = folder
        .run(&["token", "mint", "--issuer", "local", "--sub", "alice", "--role", "admin"])
        .ok();
    let token = token.trim();
    let output = folder.run(&["explain", "GET", "/admin/users", "--token", token]).ok();
    assert!(output.ends_with("allow: 200 authorized\n"), "{output}");
    assert!(!output.contains(token), "a token is never shown: {output}");
    let forged = format!("{}x", &token[..token.len() - 1]);
    let output = folder.run(&["explain", "GET", "/admin/users", "--token", &forged]).ok();
    assert!(output.contains("refuse: 401 token_"), "{output}");
    assert!(!output.contains(&forged), "a token is never shown: {output}");
}

// --- tokens
// ----------------------------------------------------------------------------------------------------------------------------

#[test]
fn a_minted_token_can_be_inspected() {
    let folder = Folder::with(
        &with_protected("").replace("audience =", "roles = \"realm_access.roles\"\naudience ="),
    );
    let arguments = [
        "token",
        "mint",
        "--issuer",
        "local",
        "--sub",
        "alice",
        "--role",
        "user",
        "--role",
        "admin",
        "--claim",
        "tenant=\"acme\"",
        "--claim",
        "level=3",
        "--ttl",
        "1h",
    ];
    let token = folder.run(&arguments).ok();
    let output = folder.run(&["token", "inspect", token.trim()]).ok();
    for word in [
        "NOT VERIFIED",
        "HS256",
        "\"alice\"",
        "realm_access",
        "\"admin\"",
        "\"acme\"",
        "3",
        "https://issuer.example",
        "exp",
        "iat",
        "jti",
    ] {
        assert!(output.contains(word), "no {word}:\n{output}");
    }
    for input in [&["token", "inspect"][..], &["token", "inspect", "-"]] {
        assert_eq!(folder.run_with_input(input, &token).ok(), output);
        assert_eq!(folder.run_with_input(input, &format!("Bearer {token}\n")).ok(), output);
    }
}

#[test]
fn a_token_is_minted_with_a_private_key() {
    let folder = Folder::with(&with_keys("public_keys = [\"corp.pem\"]"));
    let key = rcgen::KeyPair::generate().expect("a key");
    folder.write_private("corp.pem", key.serialize_pem());
    let token = folder.run(&["token", "mint", "--issuer", "corp", "--sub", "alice"]).ok();
    let output = folder.run(&["explain", "GET", "/", "--token", token.trim()]).ok();
    assert!(output.ends_with("allow: 200 authenticated\n"), "{output}");

    folder.write("corp.pem", key.public_key_pem());
    let output = folder.run(&["token", "mint", "--issuer", "corp", "--sub", "alice"]);
    assert_eq!((output.code, output.out.as_str()), (1, ""));
    assert_snapshot!(output.err, @"error: the file has no key to sign with: `token mint` needs an issuer with `secret`, or a private key in its `public_keys`");
}

#[test]
fn an_invalid_token_is_reported_by_inspect() {
    let folder = Folder::new();
    for text in ["", "x", "a.b.c", "e30.bm9uZQ.e30"] {
        let output = folder.run_with_input(&["token", "inspect"], text);
        assert_eq!((output.code, output.out.as_str()), (1, ""), "{text}");
        assert!(output.err.starts_with("error: this is not a token: "), "{}", output.err);
    }
    let output = folder.run(&["token", "inspect", "x"]);
    assert!(output.err.contains("it has 1 part; a signed token has three"), "{}", output.err);
    assert_snapshot!(folder.run(&["token", "inspect", "a.b.c"]).err, @"error: this is not a token: the token cannot be read: its header is not base64url without padding");
}

#[test]
fn minting_for_an_unknown_issuer_lists_the_known_ones() {
    let folder = Folder::with(&with_protected(""));
    assert_snapshot!(folder.run(&["token", "mint", "--issuer", "corp", "--sub", "alice"]).err, @"error: there is no [issuer.corp]; known issuers: local");
    let output = Folder::with(APP).run(&["token", "mint", "--issuer", "corp", "--sub", "alice"]);
    assert!(
        output.code == 2 && !output.err.trim_end().ends_with("there is"),
        "a sentence without an end: {}",
        output.err
    );
    // The built-in issuer has no section with a key.
    let file = with_app(
        "[identity]\nissuer = \"https://app.test/auth\"\n[[route]]\npath = \"/auth/*\"\nidentity = true\n",
    );
    assert_snapshot!(Folder::with(&file).run(&["token", "mint", "--issuer", "identity", "--sub", "alice"]).err, @r"
    error: the built-in issuer only issues tokens at login; log in to get one:
    curl https://app.test/auth/login --data-urlencode email=ann@example.com --data-urlencode password=…
    `portcullis explain --issuer identity --claims …` tells a decision without one
    ");
    let output =
        Folder::with(APP).run(&["explain", "GET", "/", "--claims", "{\"sub\": \"alice\"}"]);
    assert!(
        output.code == 2 && !output.err.trim_end().ends_with("there is"),
        "a sentence without an end: {}",
        output.err
    );
}

// --- serving
// ---------------------------------------------------------------------------------------------------------------------------

/// A running gateway, and the lines of its log.
struct Running {
    child: Child,
    lines: Receiver<String>,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Running {
    /// Starts `run` and waits until it is ready.
    fn start(folder: &Folder) -> Self {
        let mut child = folder
            .command(&["run"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let lines = lines(&mut child);
        let mut running = Self {
            child,
            lines,
            listen: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
        };
        let ready = running.event("ready");
        let address = |field: &str| {
            ready[field].as_str().and_then(|text| text.parse().ok()).expect("an address")
        };
        (running.listen, running.admin) = (address("listen"), address("admin"));
        running
    }

    /// Waits for the next event with this message.
    fn event(&self, message: &str) -> Value {
        let began = Instant::now();
        let mut seen = String::new();
        loop {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("the log does not say \"{message}\":\n{seen}"));
            let event: Value = serde_json::from_str(&line)
                .unwrap_or_else(|_| panic!("a log line is not JSON: {line}"));
            if event["message"] == message {
                return event;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for its end.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut err = String::new();
        self.child
            .stderr
            .take()
            .expect("a pipe")
            .read_to_string(&mut err)
            .expect("messages are UTF-8");
        (wait(&mut self.child), err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that a child writes to standard output.
fn lines(child: &mut Child) -> Receiver<String> {
    let out = child.stdout.take().expect("a pipe");
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

/// Uses the shell's built-in `kill`, since small systems have no other.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{name} {}", child.id())])
        .status()
        .expect("a shell");
    assert!(sent.success(), "SIG{name} could not be sent");
}

/// The exit code of a child that is about to end: it has closed its standard error, so the wait is
/// short.
fn wait(child: &mut Child) -> Option<i32> {
    child.wait().expect("it ends").code()
}

/// Status and body of a request.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .expect("it reads the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no HTTP: {answer}"));
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// `APP` on free ports, with this drain delay.
fn serving(drain_delay: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ndrain_delay = \"{drain_delay}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n{APP}"
    )
}

/// Only commands that write create missing files, and a key only together with its database.
#[test]
fn a_missing_database_or_key() {
    let identity = "[[route]]\npath = '/auth/*'\nidentity = true\n[identity]\nissuer = 'http://localhost/auth'\n";
    let folder = Folder::with(identity);
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    for command in [["user", "list"], ["key", "list"]] {
        let output = folder.run(&command);
        assert_eq!((output.code, files()), (1, 1), "{}", output.err);
        assert!(
            output.err.starts_with("error: there is no database ")
                && output.err.contains("its volume is not mounted"),
            "{}",
            output.err
        );
    }
    let output = folder.run_with_input(
        &["user", "add", "ann@example.com", "--password-stdin"],
        "plum orbit tenant 9",
    );
    assert_eq!(output.code, 0, "{}", output.err);
    assert!(
        output.err.starts_with("note: there is no database ")
            && output.err.ends_with(": creating one\n"),
        "{}",
        output.err
    );
    assert!(folder.run(&["user", "list"]).ok().contains("ann@example.com"));
    let (key, away) = (folder.path().join("portcullis.key"), folder.path().join("away"));
    std::fs::rename(&key, &away).unwrap();
    for command in
        [&["check"][..], &["user", "list"], &["user", "add", "bob@example.com"], &["run"]]
    {
        let output = folder.run(command);
        assert_eq!((output.code, key.exists()), (78, false), "{}", output.err);
        assert!(
            output.err.contains("` is missing")
                && output.err.contains("restore the key from its backup"),
            "{}",
            output.err
        );
    }
    std::fs::rename(&away, &key).unwrap();
    assert!(folder.run(&["user", "list"]).ok().contains("ann@example.com"));
}

/// SQLite gives the mode of the database to the files next to it, which are not the cause.
#[test]
fn a_database_that_must_not_be_written_is_named() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    let folder = Folder::with(&with_app("[store]\n"));
    assert_eq!(folder.run(&["revoke", "--jti", "t"]).code, 0);
    let database = folder.path().join("portcullis.db");
    fs::set_permissions(&database, fs::Permissions::from_mode(0o444)).expect("a mode");
    let mut command = folder.command(&["revoke", "--jti", "t"]);
    if fs::metadata("/proc/self").expect("a process").uid() == 0 {
        // Root may write every file.
        let files =
            fs::read_dir(folder.path()).expect("a folder").map(|file| file.expect("a file").path());
        for path in files.chain([folder.path().to_owned()]) {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("root may do that");
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = folder.result(&command.output().expect("the binary runs"));
    assert_eq!(
        (output.code, output.err.as_str()),
        (
            1,
            "error: not revoked: the file ./portcullis.db cannot be opened or created: Permission denied (os error 13); allow the user that runs the gateway to write to it and to its folder\n"
        )
    );
}

/// A user who is not root.
const NOBODY: u32 = 65_534;

/// The key is created first: without the marker of a first start, the database would look lost.
#[test]
fn a_failed_first_start_is_continued() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let config = |listen: &str, more: &str| {
        let ports = format!("[server]\nlisten = \"{listen}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n");
        format!("{}\n[store]\n{more}", with_app(&ports))
    };
    let folder = Folder::with(&config("127.0.0.1:0", "database = 7\n"));
    assert_eq!(folder.run(&["run"]).code, 78);
    folder.write("gateway.toml", config("nowhere", ""));
    assert_eq!(folder.run(&["run"]).code, 78);
    folder.write("gateway.toml", config(&format!("127.0.0.1:{port}"), ""));
    for _ in 0..2 {
        let output = folder.run(&["run"]);
        assert!(
            output.code == 1 && output.err.contains("Address already in use"),
            "{}",
            output.err
        );
    }
    // A folder in place of the file cannot be opened, even by root, which may run the tests.
    std::fs::create_dir(folder.path().join("data.db")).expect("a folder");
    folder.write("gateway.toml", config("127.0.0.1:0", "database = 'sqlite:data.db'"));
    for command in [&["run"][..], &["revoke", "--jti", "t"]] {
        let output = folder.run(command);
        assert!(output.code == 1 && output.err.contains("cannot be opened"), "{}", output.err);
    }
    // A command that fails after it has created the key.
    folder.write("gateway.toml", config("127.0.0.1:0", ""));
    for command in [&["revoke", "--jti", "t", "--issuer", "nobody"][..], &["user", "list"]] {
        assert_ne!(folder.run(command).code, 0);
    }
    let key = folder.path().join("portcullis.key");
    let marker = folder.path().join("portcullis.key-first-start");
    assert!(key.exists() && marker.exists());
    let output = folder.run(&["revoke", "--jti", "t"]);
    assert!(output.code == 0 && key.exists() && !marker.exists(), "{}", output.err);
    // From now on, a missing database is a lost one.
    std::fs::remove_file(folder.path().join("portcullis.db")).expect("it exists");
    let output = folder.run(&["revoke", "--jti", "t"]);
    assert!(output.code == 78 && output.err.contains("--new-store"), "{}", output.err);
}

#[test]
fn a_first_start_that_is_killed_at_any_moment_is_a_first_start_again() {
    let begun = std::time::Instant::now();
    assert_eq!(Folder::with(&with_app("[store]\n")).run(&["revoke", "--jti", "t"]).code, 0);
    let whole = begun.elapsed();
    for moment in 0..24 {
        let folder = Folder::with(&with_app("[store]\n"));
        let mut first = folder.command(&["revoke", "--jti", "t"]);
        let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        std::thread::sleep(whole * moment / 24);
        let _ = first.kill();
        first.wait().expect("it ends");
        let output = folder.run(&["revoke", "--jti", "t"]);
        assert_eq!(output.code, 0, "{moment}: {}", output.err);
        assert!(!folder.path().join("portcullis.key-first-start").exists(), "{moment}");
    }
}

#[test]
fn an_address_belongs_to_one_listener() {
    let secure = "tls = { certificate = \"a.crt\", private_key = { file = \"a.key\" } }\n";
    for (text, pair) in [
        (
            "[server]\nlisten = \":9901\"\n[admin]\nlisten = \":9901\"\n",
            "`admin.listen` and `server.listen`",
        ),
        ("[server]\nlisten = \"127.0.0.1:9901\"\n", "`admin.listen` and `server.listen`"),
        (
            "[verify]\nlisten = \"127.0.0.1:9901\"\ntrusted_proxies = [\"127.0.0.1\"]\n",
            "`verify.listen` and `admin.listen`",
        ),
        (
            &format!("[server]\nlisten = \":8443\"\nredirect_http = \":8443\"\n{secure}"),
            "`server.redirect_http` and `server.listen`",
        ),
    ] {
        let output = rejected(&with_app(text));
        assert!(output.contains(&format!("{pair} have the same address")), "{text}: {output}");
    }
    Folder::with(&serving("0s")).run(&["check"]).ok();
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let folder =
        Folder::with(&serving("0s").replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1));
    let output = folder.run(&["run"]);
    assert_eq!(output.code, 1);
    assert_snapshot!(output.err.replace(&port, "[port]"), @r"
    error: cannot listen on 127.0.0.1:[port]: Address already in use (os error 98)
      help: another process uses this port; stop it, or choose another port in [server], [admin] or [verify]
    ");

    let folder = Folder::with(&with_app(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n\n[admin]\nlisten = \"127.0.0.1:{port}\"\n"
    )));
    let output = folder.run(&["run"]);
    assert_eq!(output.code, 1);
    assert_snapshot!(output.err.replace(&port, "[port]"), @r"
    error: cannot listen on 127.0.0.1:[port]: Address already in use (os error 98)
      help: another process uses this port; stop it, or choose another port in [server], [admin] or [verify]
    ");
}

#[test]
fn addresses_that_cannot_be_bound() {
    let output = rejected(&with_app(
        "[server]\nlisten = [\"8080\", \"app.internal:8080\", \"127.0.0.1:99999\", \"\"]\n",
    ));
    for address in ["8080", "app.internal:8080", "127.0.0.1:99999", ""] {
        assert!(
            output.contains(&format!("error: `\"{address}\"` is not an address to listen on\n")),
            "nothing of `{address}`:\n{output}"
        );
    }
    // An address of a documentation network (RFC 5737), which no machine has.
    let output = Folder::with(&with_app("[server]\nlisten = \"192.0.2.1:8080\"\n")).run(&["run"]);
    assert_eq!(output.code, 1);
    assert_snapshot!(output.err, @r"
    error: cannot listen on 192.0.2.1:8080: Cannot assign requested address (os error 99)
      help: this machine does not have that address; `ip address` lists its addresses
    ");
}

#[test]
fn an_invalid_file_prevents_the_start() {
    let folder = Folder::with(&serving("0s").replace("builtin", "bultin"));
    assert_eq!(folder.run(&["run"]).rejected(), folder.run(&["check"]).rejected());
    // Nor does a file with failing tests start.
    let folder = Folder::with(&format!(
        "{}\n[[test]]\nrequest = \"GET /\"\nexpect = {{ status = 404 }}\n",
        serving("0s")
    ));
    assert_eq!(folder.run(&["run"]).rejected(), folder.run(&["check"]).rejected());
}

#[test]
fn the_gateway_serves_drains_and_exits_with_0() {
    for name in ["TERM", "INT"] {
        let folder = Folder::with(&serving("0s"));
        let running = Running::start(&folder);
        assert_eq!(get(running.listen, "/hello").0, 200);
        assert_eq!(get(running.admin, "/livez").0, 200);
        assert_eq!(get(running.admin, "/readyz").0, 200);
        running.signal(name);
        running.event("draining");
        running.event("stopped");
        assert_eq!(running.ended(), (Some(0), String::new()), "SIG{name}");
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "INT"), ("TERM", "INT")] {
        let folder = Folder::with(&serving("10m"));
        let running = Running::start(&folder);
        running.signal(first);
        running.event("draining");
        let draining = (get(running.admin, "/readyz").0, get(running.listen, "/").0);
        assert_eq!(draining, (503, 200), "it says that it is about to stop, and still serves");
        running.signal(second);
        let (code, err) = running.ended();
        let said = "error: ended by a second signal before every exchange had finished\n";
        assert_eq!((code, err.as_str()), (Some(1), said), "SIG{first}, SIG{second}");
    }
}

#[test]
fn sighup_loads_a_valid_file() {
    let folder = Folder::with(&serving("0s"));
    let running = Running::start(&folder);
    assert_eq!(get(running.listen, "/hello").0, 200);
    folder.write("gateway.toml", serving("0s").replace("path = \"/*\"", "path = \"/other/*\""));
    running.signal("HUP");
    let event = running.event("reloaded");
    assert_eq!((&event["level"], &event["file"]), (&json!("info"), &json!("gateway.toml")));
    assert_eq!((get(running.listen, "/hello").0, get(running.listen, "/other").0), (404, 200));
    let metrics = get(running.admin, "/metrics").1;
    assert!(metrics.contains("\nportcullis_config_last_reload_success 1\n"), "{metrics}");
    assert!(
        metrics.contains("\nportcullis_config_reloads_total{outcome=\"succeeded\"} 1\n"),
        "{metrics}"
    );
}

#[test]
fn sighup_with_an_invalid_file_changes_nothing() {
    let folder = Folder::with(&serving("0s"));
    let running = Running::start(&folder);
    for (what, text) in [
        ("two problems", serving("soon").replace("builtin", "bultin")),
        ("no TOML", "[server".to_owned()),
        ("an empty file", String::new()),
        ("what is read at start", serving("0s").replace("workers = 1", "workers = 2")),
        (
            "a failing test",
            format!(
                "{}\n[[test]]\nrequest = \"GET /\"\nexpect = {{ status = 404 }}\n",
                serving("0s")
            ),
        ),
    ] {
        folder.write("gateway.toml", text);
        running.signal("HUP");
        let event = running.event("the file was rejected; the running configuration stays");
        assert_eq!(event["level"], "error", "{what}");
        // One event contains every problem with its place.
        let problems = match &event["problems"] {
            Value::String(text) => serde_json::from_str(text).expect("JSON"),
            problems => problems.clone(),
        };
        let problems = problems.as_array().expect("a list");
        assert!(
            !problems.is_empty() && problems.iter().all(|problem| problem["message"].is_string()),
            "{what}: {event}"
        );
        assert_eq!(problems.len() >= 2, what == "two problems", "{what}: {event}");
        assert_eq!(
            (get(running.listen, "/hello").0, get(running.admin, "/readyz").0),
            (200, 200),
            "{what}"
        );
    }
    fs::remove_file(folder.path().join("gateway.toml")).expect("it was there");
    running.signal("HUP");
    running.event("the file was rejected; the running configuration stays");
    let metrics = get(running.admin, "/metrics").1;
    assert!(metrics.contains("\nportcullis_config_last_reload_success 0\n"), "{metrics}");
    assert!(
        metrics.contains("\nportcullis_config_reloads_total{outcome=\"rejected\"} 6\n"),
        "{metrics}"
    );
    running.signal("TERM");
    assert_eq!(running.ended().0, Some(0));
}

#[test]
fn the_start_creates_a_secret_if_allowed() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::with(&format!("{ISSUER}\n{}", serving("0s")));
    let running = Running::start(&folder);
    let secret = fs::metadata(folder.path().join("local.secret")).expect("it was made");
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
    assert!(secret.len() >= 32);
    drop(running);
}

#[test]
fn healthcheck_queries_the_running_gateway() {
    let folder = Folder::with(&serving("10m"));
    let running = Running::start(&folder);
    folder.write("probe.toml", format!("[admin]\nlisten = \"{}\"\n{APP}", running.admin));
    assert_eq!(folder.run(&["healthcheck", "--config", "probe.toml"]).ok(), "");
    let port = running.admin.port().to_string();

    running.signal("TERM");
    running.event("draining");
    let output = folder.run(&["healthcheck", "--config", "probe.toml"]);
    assert_eq!((output.code, output.out.as_str()), (1, ""));
    assert_snapshot!(output.err.replace(&port, "[port]"), @"error: 127.0.0.1:[port]/readyz returned 503: not ready");

    drop(running);
    let output = folder.run(&["healthcheck", "--config", "probe.toml"]);
    assert_eq!((output.code, output.out.as_str()), (1, ""));
    assert_snapshot!(output.err.replace(&port, "[port]"), @"error: 127.0.0.1:[port]/readyz does not respond: Connection refused (os error 111)");
}

/// Runs every command that the demo prints, as a person would paste it.
#[test]
fn the_demo_prints_lines_that_work() {
    let folder = Folder::new();
    // A limit that has no room for the default of max_connections.
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 4096; exec \"$0\" demo", env!("CARGO_BIN_EXE_portcullis")])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let lines = lines(&mut child);
    // Ends with this function, also if an assertion fails.
    let running = Running {
        child,
        lines,
        listen: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
    };
    let mut printed = Vec::new();
    while !printed.last().is_some_and(|line: &String| line.contains("Ctrl-C")) {
        printed.push(
            running
                .lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("the demo does not say how it ends: {printed:#?}")),
        );
    }
    let made = || fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(made(), 1, "the demo has a folder of its own");
    assert!(!printed.iter().any(|line| line.contains("limit of open files")), "{printed:#?}");

    let pasted: Vec<&str> = printed.iter().map(String::as_str).collect();
    let logins: Vec<&str> = pasted
        .iter()
        .copied()
        .filter(|line| line.starts_with("export ") || line.starts_with("login()"))
        .collect();
    let pasted: Vec<&str> = pasted
        .into_iter()
        .filter(|line| line.starts_with("curl ") || line.starts_with("for "))
        .collect();
    assert_eq!((logins.len(), pasted.len()), (3, 12), "{printed:#?}");
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "curl is missing, and here every test must run");
        eprintln!("SKIPPED: curl is not installed, so the lines of the demo were not tried");
        return;
    }
    // One shell for all of them, as a person would use.
    let script: Vec<String> = pasted
        .iter()
        .map(|line| match line.strip_prefix("curl -i ") {
            Some(rest) => format!("curl -s -o /dev/null -w '%{{http_code}}\\n' {rest}"),
            None => (*line).to_owned(),
        })
        .collect();
    let script = format!("{}\n{}", logins.join("\n"), script.join("\n"));
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    let statuses =
        String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        statuses, "200 401 200 200 403 200 400 200 200 200 200 200 200 200 429 204 401",
        "{script}"
    );

    running.signal("INT");
    assert_eq!(running.ended(), (Some(0), String::new()));
    assert_eq!(made(), 0, "the demo leaves nothing behind");
}
