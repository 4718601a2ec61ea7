//! Third-party software, which `scripts/test` installs in `tests/peers`: programs that read one
//! request per line and write one reply per line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use super::PATIENCE;

/// How often a program is started that does not become ready.
const ATTEMPTS: usize = 4;

/// How long that may take.
const START: Duration = Duration::from_secs(15);

/// A running program. It is killed when this is dropped.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Peer {
    /// Starts `tests/peers/NAME`. Returns `None` with a message if its libraries are not installed.
    /// With `CI=true`, that is a failure.
    pub fn start(name: &str) -> Option<Self> {
        let runtime = match name.rsplit_once('.') {
            Some((_, "py")) => folder().join("venv/bin/python"),
            _ => PathBuf::from("node"),
        };
        let is_installed = match name.rsplit_once('.') {
            Some((_, "py")) => runtime.exists(),
            _ => folder().join("node_modules/.package-lock.json").exists(),
        };
        if !is_installed {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "what tests/peers/{name} needs is not installed, and CI=true"
            );
            eprintln!(
                "SKIPPED: what tests/peers/{name} needs is not installed; scripts/test installs it"
            );
            return None;
        }
        // Node.js 20 sometimes hangs when it starts: all its threads then wait for each other.
        let ready = (0..ATTEMPTS).find_map(|_| {
            let peer = Self::spawn(&runtime, name);
            (runtime != Path::new("node") || peer.is_ready()).then_some(peer)
        });
        assert!(ready.is_some(), "tests/peers/{name} does not become ready");
        ready
    }

    fn spawn(runtime: &Path, name: &str) -> Self {
        let mut child = Command::new(runtime)
            .arg(folder().join(name))
            .current_dir(folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", runtime.display()));
        let (sender, answers) = channel();
        let output = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { input: child.stdin.take().unwrap(), child, answers }
    }

    /// Whether it says that it is ready.
    fn is_ready(&self) -> bool {
        while let Ok(line) = self.answers.recv_timeout(START) {
            if line == r#"{"ready":true}"# {
                return true;
            }
            println!("{line}");
        }
        false
    }

    /// Its reply. Its errors are in the output of the test.
    #[track_caller]
    pub fn ask(&mut self, request: Value) -> Value {
        writeln!(self.input, "{request}").unwrap();
        loop {
            let line = self
                .answers
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|error| panic!("no answer to {request}: {error}"));
            // Libraries write notices there as well.
            match serde_json::from_str(&line) {
                Ok(answer) => return answer,
                Err(_) => println!("{line}"),
            }
        }
    }
}

impl Peer {
    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        super::signal(self.child.id(), signal);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers"))
}
