//! A real PgBouncer in front of a PostgreSQL server, in transaction mode: it gives each transaction
//! another connection.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Port;
use super::postgres::PostgresServer;

/// A running pooler. It is killed when this is dropped.
pub struct Pooler {
    child: Child,
    port: Port,
    folder: TempDir,
}

impl Pooler {
    /// `None`, with a message, if PgBouncer is not installed; where CI=true, that is a failure.
    pub fn start(server: &PostgresServer) -> Option<Self> {
        Self::start_before(server, server.port())
    }

    /// The same, in front of what leads to the server.
    pub fn start_before(server: &PostgresServer, target: u16) -> Option<Self> {
        if program().is_none() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "PgBouncer is not installed");
            eprintln!("SKIPPED: PgBouncer is not installed: apt-get install pgbouncer");
            return None;
        }
        let (folder, port) = (tempfile::tempdir().unwrap(), Port::reserve());
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=portcullis\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             auth_type = any\npool_mode = transaction\nmax_client_conn = 500\ndefault_pool_size = 20\nserver_login_retry = 1\n\
             ignore_startup_parameters = extra_float_digits\nunix_socket_dir =\nlogfile = {}\n",
            target,
            port.number(),
            folder.path().join("log").display()
        );
        std::fs::write(folder.path().join("pgbouncer.ini"), settings).unwrap();
        server.own(folder.path());
        let child = run(server, &folder, &port);
        Some(Self { child, port, folder })
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://portcullis@{}/{database}", self.port.address())
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same port, after it was killed.
    pub fn run(&mut self, server: &PostgresServer) {
        self.child = run(server, &self.folder, &self.port);
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        super::signal(self.child.id(), signal);
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> Option<&'static str> {
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists())
}

fn run(server: &PostgresServer, folder: &TempDir, port: &Port) -> Child {
    let child = server
        .run_as_user(program().unwrap())
        .arg(folder.path().join("pgbouncer.ini"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(port.address()).is_err() {
        assert!(Instant::now() < until, "PgBouncer does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}
