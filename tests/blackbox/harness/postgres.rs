//! A real PostgreSQL server in a temporary folder, on a free port. It refuses to run as root, so it
//! runs as another user then.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server. It ends when it is dropped.
pub struct PostgresServer {
    folder: tempfile::TempDir,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    child: Option<Child>,
}

impl PostgresServer {
    /// Starts a server, and waits until it answers. `None`, with a message, if PostgreSQL is not
    /// installed; where CI=true, that is a failure.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "PostgreSQL is not installed: apt-get install postgresql"
            );
            eprintln!("SKIPPED: PostgreSQL is not installed: apt-get install postgresql");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let user = user();
        if let Some((user, group)) = user {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut server = Self { folder, programs, user, port, child: None };
        let made = server
            .command("initdb")
            .args([
                "-A",
                "trust",
                "-U",
                "portcullis",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .arg("-D")
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.run();
        Some(server)
    }

    /// Starts a standby of this server, which follows it with a short delay.
    pub fn start_standby(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let Some((user, group)) = self.user {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (programs, user) = (self.programs.clone(), self.user);
        let mut standby = Self { folder, programs, user, port, child: None };
        let copied = standby
            .command("pg_basebackup")
            .args(["-d", &self.url(), "-c", "fast", "--no-sync", "-R", "-D"])
            .arg(standby.data())
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        standby.run();
        standby
    }

    /// Starts the server again, on the same port, after it was stopped.
    pub fn run(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let socket = format!("unix_socket_directories={}", self.folder.path().display());
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", &socket])
            .args(["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(30);
        while !self.is_ready() {
            assert!(Instant::now() < until, "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_ready(&self) -> bool {
        let mut asking = self.command("pg_isready");
        asking.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-d", "postgres"]);
        asking.status().unwrap().success()
    }

    /// The URL of the server, without a database.
    pub fn url(&self) -> String {
        format!("postgres://portcullis@127.0.0.1:{}", self.port)
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes an empty database and returns its URL.
    pub fn create_database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("{}/{name}", self.url())
    }

    /// Runs a statement and returns what it prints: rows in lines, columns separated by `|`.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let url = format!("{}/{database}", self.url());
        let done =
            Command::new(self.programs.join("psql")).args([&url, "-qAtc", statement]).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// Stops the server at once, as a crash does. What it has acknowledged survives.
    pub fn crash(&mut self) {
        self.signal("-QUIT");
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// Kills every process of the server with SIGKILL. What it has acknowledged survives.
    pub fn kill(&mut self) {
        // Stopped first, so that the parent cannot react to the end of its children.
        self.pause();
        self.signal("-KILL");
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// Stops every process of the server: it keeps its connections and does not answer.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Continues after [`PostgresServer::pause`].
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Sends a signal to the server; except to end it in an orderly way, to each of its processes.
    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { return };
        let parent = child.id().to_string();
        if signal != "-QUIT" {
            let _ = Command::new("pkill").args([signal, "-P", &parent]).status();
        }
        let _ = Command::new("kill").args([signal, &parent]).status();
    }

    /// The folder with the data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Gives a folder and its files to the user of the server.
    pub fn own(&self, folder: &Path) {
        let Some((user, group)) = self.user else { return };
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        for path in files.chain([folder.to_owned()]) {
            std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
        }
    }

    /// A program of PostgreSQL, as the user of the server.
    pub fn command(&self, program: &str) -> Command {
        self.run_as_user(self.programs.join(program))
    }

    /// Runs a command of a shell that finds PostgreSQL's programs, which use this server.
    pub fn shell(&self, folder: &Path, command: &str, variables: &[(&str, &str)]) -> String {
        let mut path = vec![self.programs.clone()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let done = Command::new("sh")
            .args(["-c", command])
            .current_dir(folder)
            .env("PATH", std::env::join_paths(path).unwrap())
            .envs([("PGHOST", "127.0.0.1"), ("PGPORT", &*self.port.to_string())])
            .env("PGUSER", "portcullis")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// A program, as the user of the server.
    pub fn run_as_user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.resume();
        self.crash();
    }
}

/// The folder with PostgreSQL's programs: Debian has one for each version.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path));
    folders.into_iter().find(|folder| folder.join("initdb").is_file())
}

/// The user and group to run as: another one than root.
fn user() -> Option<(u32, u32)> {
    let is_root = std::fs::metadata("/proc/self")
        .is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0);
    if !is_root {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(str::parse);
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    };
    find("postgres").or_else(|| find("nobody"))
}
