//! A real Redis in a temporary folder, on a free port. The unit tests of the scripts use it too.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running server without persistence. It is killed when this is dropped.
pub struct Redis {
    folder: TempDir,
    arguments: Vec<String>,
    port: u16,
    child: Child,
}

impl Redis {
    /// Starts a server. Returns `None` with a message if Redis is not installed. With `CI=true`,
    /// that is a failure.
    pub fn start(arguments: &[&str]) -> Option<Self> {
        if Command::new(program()).arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "redis-server is not installed, and CI=true"
            );
            eprintln!("SKIPPED: redis-server is not installed; scripts/test installs it");
            return None;
        }
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        // Another process may take the port in between.
        (0..10).find_map(|_| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let folder = TempDir::new().unwrap();
            let child = spawn(&folder, port, &arguments);
            let mut server = Self { folder, arguments: arguments.clone(), port, child };
            server.is_ready().then_some(server)
        })
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder with its data.
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a command, and returns what `redis-cli` prints.
    pub fn run(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(command)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(format!("-{signal}")).arg(id).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills it, and starts an empty one on the same port.
    pub fn restart_empty(&mut self) {
        self.kill();
        self.run_again();
    }

    /// Starts it again on the same port after it was killed, with what its arguments made it keep.
    pub fn run_again(&mut self) {
        self.child = spawn(&self.folder, self.port, &self.arguments);
        assert!(self.is_ready(), "Redis did not start again");
    }

    fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self.run(&["PING"]) == "PONG" {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `REDIS_SERVER` names another server, such as Valkey's.
fn program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

fn spawn(folder: &TempDir, port: u16, arguments: &[String]) -> Child {
    Command::new(program())
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--daemonize", "no", "--dir"])
        .arg(folder.path())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
