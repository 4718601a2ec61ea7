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
        let url = format!("http://{application}");
        Self::start_edited(kind, program, gateway, &["--upstream", &url], &[]).await
    }

    /// `application`: the arguments about it. Replaces texts in what is written: each has to be
    /// there.
    pub async fn start_edited(
        kind: &str,
        program: &Path,
        gateway: &Gateway,
        application: &[&str],
        edits: &[(&str, &str)],
    ) -> Self {
        let (folder, port) = (TempDir::new().unwrap(), Port::reserve());
        let listen = port.address().to_string();
        let out = folder.path().join("written").display().to_string();
        let fixed = ["proxy-config", kind, "--listen", &listen, "--out", &out];
        let (code, told, errors) = gateway.command(&[&fixed, application].concat()).await;
        assert_eq!(code, 0, "{errors}");
        for (from, to) in edits {
            edit(Path::new(&out), from, to);
        }
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

/// Replaces a text wherever it is in the files of a folder.
fn edit(folder: &Path, from: &str, to: &str) {
    let mut is_found = false;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        is_found |= text.contains(from);
        std::fs::write(&path, text.replace(from, to)).unwrap();
    }
    assert!(is_found, "nothing that is written contains {from:?}");
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
