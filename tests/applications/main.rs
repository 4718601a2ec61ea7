//! Real applications behind the built binary, one module each, with the files that their guides
//! show.
//!
//! An application that is not installed skips its tests, loudly; where `CI=true`, it fails them.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that fails should panic, and its tasks end with its runtime"
)]

#[path = "../blackbox/harness/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::needless_pass_by_value,
    reason = "what the black box tests use of it is not used here"
)]
mod harness;

mod git;
mod jupyterlab;
mod mod_dav;
mod node_red;
mod radicale;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use toml::Table;

use harness::jar::Jar;
use harness::{Browser, Gateway, Port, Setup};

/// The account of the tests.
const EMAIL: &str = "ann@example.com";
const PASSWORD: &str = "plum orbit tenant 71";

/// Whether a program is installed.
fn is_installed(program: impl AsRef<Path>) -> bool {
    let is_there = program.as_ref().exists();
    let program = program.as_ref().display();
    if !is_there {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{program} is not installed, and CI=true"
        );
        eprintln!("SKIPPED: {program} is not installed; scripts/test installs it");
    }
    is_there
}

/// A running application. It is stopped when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Asked to stop: what is killed leaves its own processes behind.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Waits until an application accepts connections on a port. Asks now and then only: the application
/// needs the processor to start.
async fn accepts(port: u16) {
    let mut tries = tokio::time::interval(Duration::from_millis(20));
    let accepts = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tries.tick().await;
        }
    };
    tokio::time::timeout(START, accepts).await.expect("the application should have started by now");
}

/// The longest start of an application, on a machine that starts all of them at once.
const START: Duration = Duration::from_mins(2);

/// Runs a program to its end.
async fn run(mut command: Command) -> Output {
    let output = tokio::task::spawn_blocking(move || command.output());
    harness::within(output).await.unwrap().unwrap()
}

/// The fence of a guide that is marked with this word.
fn fence(guide: &str, word: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides").join(guide);
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("```{word}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// What `scripts/test` installs in `tests/peers`.
fn peers(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(path)
}

/// A gateway with the file of a guide, in front of the application on this port. `lines` are added
/// to its sections.
fn behind(guide: &str, upstream: &str, port: &Port, lines: &str) -> Setup {
    let mut file: Table = fence(guide, "toml").parse().unwrap();
    file.remove("server");
    // The guide has no issuer but its own: the harness must not add one.
    file.insert("issuer".into(), Table::new().into());
    file["upstream"][upstream]["url"] = format!("http://{}", port.address()).into();
    for (name, lines) in lines.parse::<Table>().unwrap() {
        let section = file.entry(name).or_insert_with(|| Table::new().into());
        section.as_table_mut().unwrap().extend(lines.as_table().unwrap().clone());
    }
    Gateway::setup(&toml::to_string(&file).unwrap())
}

/// The output of a command on the configuration of a gateway.
async fn portcullis(gateway: &Gateway, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(arguments).arg("--config").arg(gateway.path("gateway.toml"));
    let input = gateway.path("input");
    std::fs::write(&input, PASSWORD).unwrap();
    command.stdin(std::fs::File::open(input).unwrap());
    let output = run(command).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Adds the account with these roles.
async fn add_account(gateway: &Gateway, roles: &[&str]) {
    let mut arguments = vec!["user", "add", EMAIL, "--password-stdin"];
    arguments.extend(roles.iter().flat_map(|role| ["--role", role]));
    portcullis(gateway, &arguments).await;
}

/// A new personal access token of the account.
async fn token(gateway: &Gateway) -> String {
    let arguments = ["user", "token", "add", EMAIL, "--name", "test"];
    portcullis(gateway, &arguments).await.trim().to_owned()
}

/// The cookies of a login.
async fn log_in(gateway: &Gateway) -> Jar {
    let body = json!({ "email": EMAIL, "password": PASSWORD, "cookie": true });
    let response = gateway.post("/account/login", &body).send().await;
    assert_eq!(response.status, 200, "{response:?}");
    Jar::of(&response)
}

/// How many sessions were renewed.
async fn renewals(gateway: &Gateway) -> f64 {
    gateway.metric_value("portcullis_refresh_total", &["succeeded"]).await.unwrap_or_default()
}

/// Runs a script in the browser again and again until it returns something.
async fn until_returned(browser: &Browser, script: &str, argument: Value) -> Value {
    harness::within(async {
        loop {
            let arguments = vec![argument.clone()];
            let returned = browser.client.execute_async(script, arguments).await.unwrap();
            if !returned.is_null() {
                return returned;
            }
        }
    })
    .await
}

/// Starts an application.
fn start(mut command: Command) -> Running {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Running(spawned.unwrap())
}
