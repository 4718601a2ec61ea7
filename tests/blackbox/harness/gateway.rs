//! The built binary in a temporary folder, its log, and its signals.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use toml::Table;

use super::client::Request;
use super::{Connection, Response, Upstream, mint, within};

/// A running gateway. It is killed when this is dropped.
pub struct Gateway {
    folder: TempDir,
    launch: Launch,
    upstream: Upstream,
    child: Mutex<Child>,
    log: Log,
    address: SocketAddr,
    admin: SocketAddr,
    verify: Option<SocketAddr>,
    redirect: Option<SocketAddr>,
}

/// The settings of a gateway under construction.
pub struct Setup {
    config: String,
    upstream: Option<Upstream>,
    folder: TempDir,
    launch: Launch,
}

/// The environment of a gateway process.
#[derive(Default)]
struct Launch {
    environment: Vec<(String, String)>,
    open_files: Option<u64>,
    socket: Option<TcpListener>,
}

impl Launch {
    fn command(&self) -> Command {
        let binary = binary();
        let mut command = match (self.open_files, &self.socket) {
            (None, None) => Command::new(&binary),
            (Some(limit), _) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), &binary]);
                shell
            }
            (None, Some(_)) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", PASS_SOCKET, &binary]);
                shell
            }
        };
        command.envs(self.environment.iter().cloned());
        command.stdin(match &self.socket {
            Some(socket) => Stdio::from(OwnedFd::from(socket.try_clone().unwrap())),
            None => Stdio::null(),
        });
        command
    }
}

/// The program under test: that of this build, or the one that `PORTCULLIS` names.
fn binary() -> String {
    std::env::var("PORTCULLIS").unwrap_or_else(|_| env!("CARGO_BIN_EXE_portcullis").to_owned())
}

/// Passes the socket that is standard input, as systemd does (sd_listen_fds(3)).
pub const PASS_SOCKET: &str =
    "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";

impl Setup {
    /// Puts a file next to the configuration.
    pub fn file(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.folder.path().join(name), contents).unwrap();
        self
    }

    /// Uses this application as the upstream.
    pub fn upstream(mut self, upstream: Upstream) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// Sets an environment variable.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.launch.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Passes a socket that listens, as systemd does.
    pub fn socket(mut self, socket: &TcpListener) -> Self {
        self.launch.socket = Some(socket.try_clone().unwrap());
        self
    }

    /// Limits the open files, as `ulimit -n` does.
    pub fn open_files(mut self, limit: u64) -> Self {
        self.launch.open_files = Some(limit);
        self
    }

    /// The folder of the configuration, for files that `file` cannot create.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub async fn start(self) -> Gateway {
        let upstream = match self.upstream {
            Some(upstream) => upstream,
            None => Upstream::start().await,
        };
        let folder = self.folder;
        let config = folder.path().join("gateway.toml");
        if !config.exists() {
            std::fs::write(&config, complete(&self.config, &upstream)).unwrap();
        }
        let secret = folder.path().join("corp.secret");
        std::fs::write(&secret, mint::SECRET).unwrap();
        std::fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
        let Process { child, log, address, admin, verify, redirect } =
            Process::start(&config, &self.launch).await;
        Gateway {
            folder,
            launch: self.launch,
            upstream,
            child,
            log,
            address,
            admin,
            verify,
            redirect,
        }
    }
}

/// A process that is ready, and its addresses.
struct Process {
    child: Mutex<Child>,
    log: Log,
    address: SocketAddr,
    admin: SocketAddr,
    verify: Option<SocketAddr>,
    redirect: Option<SocketAddr>,
}

impl Process {
    async fn start(config: &Path, launch: &Launch) -> Self {
        let mut child = launch
            .command()
            .args(["run", "--config"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::read(child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let child = Mutex::new(child);
        let ready = log.until("the gateway is ready", |line| line["message"] == "ready").await;
        let address = |name: &str| {
            Some(ready[name].as_str()?.split(' ').next().unwrap().parse::<SocketAddr>().unwrap())
        };
        let (public, admin) = (address("listen").unwrap(), address("admin").unwrap());
        let (verify, redirect) = (address("verify"), address("redirect_http"));
        Self { child, log, address: public, admin, verify, redirect }
    }
}

impl Gateway {
    /// Starts with this configuration, in front of a recording upstream. [`complete`] adds what is
    /// missing.
    pub async fn start(config: &str) -> Self {
        Self::setup(config).start().await
    }

    pub fn setup(config: &str) -> Setup {
        Setup {
            config: config.to_owned(),
            upstream: None,
            folder: TempDir::new().unwrap(),
            launch: Launch::default(),
        }
    }

    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The address of the `[verify]` listener.
    pub fn verify_address(&self) -> SocketAddr {
        self.verify.expect("the file has a [verify] section")
    }

    /// The address of the listener that redirects to https.
    pub fn redirect_address(&self) -> SocketAddr {
        self.redirect.expect("the file has `redirect_http`")
    }

    pub fn get(&self, target: &str) -> Request {
        self.request("GET", target)
    }

    pub fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.address, method, target)
    }

    pub async fn connect(&self) -> Connection {
        Connection::open(self.address).await
    }

    /// Sends bytes on a new connection and reads one response.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> Response {
        let mut connection = self.connect().await;
        connection.write(bytes).await;
        connection.response().await
    }

    /// Sends a request to the second listener.
    pub async fn admin(&self, path: &str) -> Response {
        Request::new(self.admin, "GET", path).host("admin.test").send().await
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The lines of `/metrics` that belong to a family, without help and type.
    pub async fn metric(&self, family: &str) -> Vec<String> {
        let metrics = self.admin("/metrics").await.text();
        metrics
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(family))
            .map(str::to_owned)
            .collect()
    }

    /// The value of the one line of a family that has all of these labels.
    pub async fn metric_value(&self, family: &str, labels: &[&str]) -> Option<f64> {
        let lines = self.metric(family).await;
        let found: Vec<_> =
            lines.iter().filter(|line| labels.iter().all(|label| line.contains(label))).collect();
        assert!(found.len() < 2, "{found:?}");
        found.first().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Replaces the file that [`Gateway::start`] wrote, and does nothing else.
    pub fn write(&self, config: &str) {
        let next = self.path("gateway.toml.next");
        std::fs::write(&next, complete(config, &self.upstream)).unwrap();
        std::fs::rename(next, self.path("gateway.toml")).unwrap();
    }

    /// Replaces the file, sends SIGHUP and waits for the log event of the reload.
    pub async fn reload(&self, config: &str) -> Value {
        self.write(config);
        self.hang_up().await
    }

    /// Sends SIGHUP and waits for the log event of the reload.
    pub async fn hang_up(&self) -> Value {
        let mark = self.log.mark();
        self.signal("HUP");
        self.log.after(mark, "the reload is logged", is_reload).await
    }

    pub fn signal(&self, signal: &str) {
        super::signal(self.child.lock().unwrap().id(), signal);
    }

    /// Stops the process, and returns when none of its threads runs any more: under load, a thread
    /// goes on for a while after the signal.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.lock().unwrap().id());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            // The state follows the name, which is in parentheses (proc(5)).
            stat.is_ok_and(|stat| {
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        };
        within(async {
            while !std::fs::read_dir(&tasks).unwrap().all(is_stopped) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The process's memory, in KiB.
    pub fn resident(&self) -> usize {
        let id = self.child.lock().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Kills the process and starts another one in the same folder, on other ports.
    pub async fn kill_and_restart(&mut self) {
        {
            let mut child = self.child.lock().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let Process { child, log, address, admin, verify, redirect } =
            Process::start(&self.path("gateway.toml"), &self.launch).await;
        (self.child, self.log, self.address, self.admin) = (child, log, address, admin);
        (self.verify, self.redirect) = (verify, redirect);
    }

    /// Runs another command on the same file. Returns its exit code, standard output and standard
    /// error.
    pub fn command(
        &self,
        arguments: &[&str],
    ) -> impl Future<Output = (i32, String, String)> + use<> {
        let mut command = Command::new(binary());
        command.envs(self.launch.environment.iter().cloned());
        command.args(arguments).arg("--config").arg(self.path("gateway.toml")).stdin(Stdio::null());
        async {
            let output = tokio::task::spawn_blocking(move || command.output());
            let output = within(output).await.unwrap().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
        }
    }

    /// Waits for the end of the process.
    pub async fn exited(&self) -> ExitStatus {
        within(self.log.ended()).await;
        self.child.lock().unwrap().wait().unwrap()
    }

    /// The first line of the access log that has this path.
    pub async fn access(&self, path: &str) -> Value {
        self.log.until("the access line is written", |line| line["url.path"] == path).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Whether a log line is the event of a reload.
pub fn is_reload(line: &Value) -> bool {
    line["message"].as_str().is_some_and(|message| {
        message == "reloaded" || message.starts_with("the file was rejected")
    })
}

/// Adds what every test needs to a configuration: `$UPSTREAM` is the recording upstream, which is
/// `[upstream.app]` if there is no such section; the listeners are on port 0; `[issuer.corp]`
/// accepts tokens of `mint` if there is no other issuer; one worker; no drain delay.
pub fn complete(config: &str, upstream: &Upstream) -> String {
    let mut file: Table =
        config.replace("$UPSTREAM", &upstream.address().to_string()).parse().unwrap();
    let server = section(&mut file, "server");
    server.entry("listen").or_insert_with(|| "127.0.0.1:0".into());
    server.entry("drain_delay").or_insert_with(|| "0s".into());
    server.entry("workers").or_insert_with(|| 1.into());
    section(&mut file, "admin").entry("listen").or_insert_with(|| "127.0.0.1:0".into());
    if file.contains_key("verify") {
        section(&mut file, "verify").entry("listen").or_insert_with(|| "127.0.0.1:0".into());
    }
    let app = section(section(&mut file, "upstream"), "app");
    if app.is_empty() || !(app.contains_key("url") || app.contains_key("builtin")) {
        app.insert("url".into(), format!("http://{}", upstream.address()).into());
    }
    if !file.contains_key("issuer") {
        let corp: Table = mint::CORP.parse().unwrap();
        section(&mut file, "issuer").insert("corp".into(), corp.into());
    }
    toml::to_string(&file).unwrap()
}

fn section<'a>(table: &'a mut Table, name: &str) -> &'a mut Table {
    table.entry(name).or_insert_with(|| Table::new().into()).as_table_mut().unwrap()
}

/// The output of the gateway, as it is written.
#[derive(Clone)]
pub struct Log(watch::Receiver<Written>);

#[derive(Clone, Debug, Default)]
struct Written {
    lines: Vec<Value>,
    errors: String,
    ended: bool,
}

impl Log {
    fn read(stdout: impl Read + Send + 'static, mut stderr: impl Read + Send + 'static) -> Self {
        let sender = Arc::new(watch::Sender::<Written>::default());
        let log = Self(sender.subscribe());
        let of_errors = Arc::clone(&sender);
        let errors = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut chunk) {
                of_errors.send_modify(|written| {
                    written.errors.push_str(&String::from_utf8_lossy(&chunk[..length]));
                });
            }
        });
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                sender.send_modify(|written| written.lines.push(line));
            }
            errors.join().unwrap();
            sender.send_modify(|written| written.ended = true);
        });
        log
    }

    /// The number of lines so far.
    pub fn mark(&self) -> usize {
        self.0.borrow().lines.len()
    }

    /// How many lines after a mark match.
    pub fn count_after(&self, mark: usize, like: impl Fn(&Value) -> bool) -> usize {
        self.0.borrow().lines.iter().skip(mark).filter(|line| like(line)).count()
    }

    pub fn lines(&self) -> Vec<Value> {
        self.0.borrow().lines.clone()
    }

    pub fn errors(&self) -> String {
        self.0.borrow().errors.clone()
    }

    /// Waits for the first matching line.
    pub async fn until(&self, what: &str, like: impl FnMut(&Value) -> bool) -> Value {
        self.after(0, what, like).await
    }

    /// Waits for the first matching line after a mark.
    pub async fn after(
        &self,
        mark: usize,
        what: &str,
        mut like: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut log = self.0.clone();
        let mut found = None;
        let looked = tokio::time::timeout(
            super::PATIENCE,
            log.wait_for(|written| {
                found = written.lines.iter().skip(mark).find(|line| like(line)).cloned();
                found.is_some() || written.ended
            }),
        )
        .await
        .map(|_| ());
        found.unwrap_or_else(|| {
            let written = self.0.borrow();
            let lines: Vec<String> = written.lines.iter().map(ToString::to_string).collect();
            panic!("{what}: {looked:?}\n{}\n{}", lines.join("\n"), written.errors)
        })
    }

    async fn ended(&self) {
        let mut log = self.0.clone();
        log.wait_for(|written| written.ended).await.unwrap();
    }
}
