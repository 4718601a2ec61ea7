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

mod mod_dav;

use std::path::Path;
use std::process::{Child, Command, Output};

/// Whether a program is installed.
fn is_installed(program: &str) -> bool {
    let is_there = Path::new(program).exists();
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

/// Waits until something accepts connections on a port.
async fn accepts(port: u16) {
    harness::within(async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

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
