//! The command line: one file per command.

mod admin;
mod attack;
mod check;
mod demo;
mod documents;
mod explain;
mod healthcheck;
mod issuer;
mod key;
mod openapi;
mod proxy_config;
mod revoke;
mod store;
mod stream;
mod token;
mod user;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::value::CreateFiles;
use crate::config::{self, Problems};
use crate::identity::issue::KeysError;
use crate::process::{self, ProcessError};
use crate::store::StoreError;

/// The exit code for an invalid configuration (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIG: u8 = 78;

/// An authentication gateway for applications without a login of their own. It decides who is
/// calling and whether they may, and tells the application in headers that it can trust.
///
/// Without a command, it serves (`run`). To try it: `portcullis demo`.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    after_help = "Signals: SIGHUP reloads the file; SIGTERM and SIGINT drain, a second one ends at once.\nExit codes: 0 success; 78 invalid configuration; 2 invalid command line; 1 any other error."
)]
struct CommandLine {
    #[command(flatten)]
    config: ConfigFile,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(
        long = "config",
        short = 'c',
        value_name = "FILE",
        default_value = "gateway.toml",
        env = "PORTCULLIS_CONFIG",
        global = true
    )]
    path: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the default).
    Run {
        #[command(flatten)]
        store: NewStore,
    },
    /// Check the configuration file, run its [[test]] blocks, and print every problem.
    Check(check::Arguments),
    /// Explain the whole decision for one request. Nothing is sent.
    Explain(explain::Arguments),
    /// Write a configuration for another proxy that asks the [verify] listener.
    ProxyConfig(proxy_config::Arguments),
    /// Attack a proxy that asks the gateway, and list what gets through.
    Attack(attack::Arguments),
    /// Create or decode tokens.
    #[command(subcommand)]
    Token(token::Command),
    /// Revoke access tokens before they expire, including in a running gateway.
    Revoke(revoke::Arguments),
    /// List the WebSockets and other long exchanges of the running gateway, and end one.
    #[command(subcommand)]
    Stream(stream::Command),
    /// Manage the accounts of the built-in issuer.
    #[command(subcommand)]
    User(user::Command),
    /// Manage the signing keys of the built-in issuer.
    #[command(subcommand)]
    Key(key::Command),
    /// Copy the store to another database, or show who uses it.
    #[command(subcommand)]
    Store(store::Command),
    /// Try it: run a gateway with a built-in application, two accounts, and curl commands to paste.
    Demo,
    /// Check the running gateway's /readyz; exit 0 if it is ready. For images without curl.
    Healthcheck,
    /// Print the JSON Schema of the configuration file, for editors.
    Schema,
    /// Print the OpenAPI 3.1 description of the built-in issuer's endpoints.
    Openapi,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff).
    Man,
}

/// For commands that create a database if there is none.
#[derive(Clone, Copy, Debug, Default, Args)]
struct NewStore {
    /// Start with an empty database although its key already exists.
    #[arg(long)]
    new_store: bool,
}

impl NewStore {
    fn create(self) -> CreateFiles {
        if self.new_store { CreateFiles::NewStore } else { CreateFiles::Yes }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The configuration is invalid.
    #[error("{}", .0.draw(has_colours(&std::io::stderr())))]
    Config(Box<Problems>),
    /// The gateway failed.
    #[error("error: {0}")]
    Process(ProcessError),
    /// `[store] key` is not the key of the database.
    #[error("error: {0}")]
    WrongKey(StoreError),
    /// The command's arguments are invalid.
    #[error("error: {0}")]
    Usage(String),
    /// Anything else.
    #[error("error: {0}")]
    Other(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(problems) if problems.may_pass() => 1,
            Self::Config(_) | Self::WrongKey(_) => EXIT_CONFIG,
            Self::Usage(_) => 2,
            Self::Process(_) | Self::Other(_) => 1,
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Config(Box::new(problems))
    }
}

impl From<ProcessError> for Failure {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Config(problems) => Self::Config(problems),
            ProcessError::Store(error) if error.is_wrong_key() => Self::WrongKey(error),
            other => Self::Process(other),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if error.is_wrong_key() { Self::WrongKey(error) } else { Self::Other(error.to_string()) }
    }
}

impl From<KeysError> for Failure {
    fn from(error: KeysError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Parses the command line, runs the command, prints its error, and returns the exit code.
pub fn main() -> ExitCode {
    let CommandLine { config, command } = CommandLine::parse();
    crate::token::install_crypto();
    let outcome = match command.unwrap_or(Command::Run { store: NewStore::default() }) {
        Command::Run { store } => {
            process::run(&config.path, store.create(), |_| ()).map_err(Failure::from)
        }
        Command::Check(arguments) => check::check(&config.path, &arguments),
        Command::Explain(arguments) => explain::explain(&config.path, &arguments),
        Command::ProxyConfig(arguments) => proxy_config::proxy_config(&config.path, &arguments),
        Command::Attack(arguments) => attack::attack(&config.path, &arguments),
        Command::Token(command) => token::token(&config.path, &command),
        Command::Revoke(arguments) => revoke::revoke(&config.path, &arguments),
        Command::Stream(command) => stream::stream(&config.path, &command),
        Command::User(command) => user::user(&config.path, &command),
        Command::Key(command) => key::key(&config.path, &command),
        Command::Store(command) => store::store(&config.path, &command),
        Command::Demo => demo::demo(),
        Command::Healthcheck => healthcheck::healthcheck(&config.path),
        Command::Schema => print(&format!("{:#}\n", config::schema())),
        Command::Openapi => {
            // Strings, lists and maps of them can always be serialized.
            let text = serde_json::to_string_pretty(&openapi::document()).unwrap_or_default();
            print(&format!("{text}\n"))
        }
        Command::Completions { shell } => print(&documents::completions(shell)),
        Command::Man => documents::manual().and_then(|page| print(&page)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.to_string().trim_end());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is not an error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether to use colours: on a terminal, unless the environment says otherwise
/// (<https://no-color.org>).
fn has_colours(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal()
        && !is_set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}
