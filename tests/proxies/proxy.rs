//! A proxy that runs from what `proxy-config` wrote.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::harness::{Gateway, Port};

/// A running proxy. It is killed when this is dropped.
pub struct Proxy {
    folder: TempDir,
    child: Child,
    port: Port,
}

/// The program of a proxy, where `scripts/test` installs it. `None`, loudly, if it is missing; that
/// is a failure where every test must run.
pub fn program(kind: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxies/venv/bin").join(kind);
    let system = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"];
    let found = std::iter::once(own)
        .chain(system.iter().map(|folder| Path::new(folder).join(kind)))
        .find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{kind} is missing, and CI=true");
        eprintln!("SKIPPED: {kind} is not installed; scripts/test installs it");
    }
    found
}

impl Proxy {
    pub async fn start(
        kind: &str,
        program: &Path,
        gateway: &Gateway,
        application: SocketAddr,
    ) -> Self {
        let (folder, port) = (TempDir::new().unwrap(), Port::reserve());
        let (listen, url) = (port.address().to_string(), format!("http://{application}"));
        let out = folder.path().join("written").display().to_string();
        let arguments =
            ["proxy-config", kind, "--listen", &listen, "--upstream", &url, "--out", &out];
        let (code, told, errors) = gateway.command(&arguments).await;
        assert_eq!(code, 0, "{errors}");
        let (_, start) = told.rsplit_once(" && ").unwrap();
        let words: Vec<&str> = start.split_whitespace().collect();
        assert_eq!(words.first(), Some(&kind), "{told}");
        let log =
            || File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(&words[1..])
            .current_dir(&out)
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn()
            .unwrap();
        let proxy = Self { folder, child, port };
        for attempt in 0.. {
            if tokio::net::TcpStream::connect(proxy.address()).await.is_ok() {
                break;
            }
            assert!(attempt < 600, "{kind} does not listen:\n{}", proxy.errors());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        proxy
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// What it wrote.
    pub fn errors(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name));
        read("log").unwrap_or_default() + &read("written/error.log").unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx's workers end with their parent only if it may tell them.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        for _ in 0..50 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
