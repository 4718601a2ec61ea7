//! Apache mod_dav, with the files of `docs/guides/webdav.md`, asked by curl: over cleartext, and
//! over TLS that ends at the gateway.

use std::fs;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use toml::Table;

use crate::harness::certificates::authority;
use crate::harness::{Gateway, Port, mint};
use crate::{Running, accepts, fence, is_installed, run};

const APACHE: &str = "/usr/sbin/apache2";
const MODULES: &str = "/usr/lib/apache2/modules";

/// Apache with mod_dav in a folder of its own.
struct Apache {
    folder: TempDir,
    port: Port,
    _running: Running,
}

impl Apache {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let root = folder.path().display();
        let port = Port::reserve();
        for name in ["files/dav", "files/dav-admin", "locks"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        // As root, Apache serves as another user, who writes here.
        let open = Command::new("chmod").args(["-R", "a+rwX"]).arg(folder.path()).status();
        assert!(open.unwrap().success());
        let guide = fence("webdav.md", "apache")
            .replace("127.0.0.1:8081", &port.address().to_string())
            .replace("/srv/files", &format!("{root}/files"))
            .replace("/var/lib/dav/locks", &format!("{root}/locks/db"));
        let modules = ["mpm_event", "authz_core", "dav", "dav_fs"]
            .map(|name| format!("LoadModule {name}_module {MODULES}/mod_{name}.so\n"));
        let config = folder.path().join("apache.conf");
        let text = format!(
            "ServerRoot {root}\nPidFile {root}/apache.pid\nErrorLog {root}/error.log\nDefaultRuntimeDir {root}\n\
             User www-data\nGroup www-data\nMutex fcntl:{root}/locks\n{}{guide}",
            modules.concat()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new(APACHE)
            .arg("-f")
            .arg(&config)
            .args(["-D", "FOREGROUND"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let running = Running(child);
        accepts(port.number()).await;
        Self { folder, port, _running: running }
    }

    fn reads(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join("files").join(name)).ok()
    }
}

/// A client of the gateway.
struct Client {
    base: String,
    token: String,
}

/// What curl got.
struct Answer {
    status: u16,
    text: String,
}

impl Client {
    async fn ask(&self, method: &str, path: &str, fields: &[&str], body: Option<&str>) -> Answer {
        let mut command = Command::new("curl");
        command.args(["--silent", "--insecure", "--include", "--max-time", "20", "--path-as-is"]);
        command.args(["--request", method, "--header"]);
        command.arg(format!("Authorization: Bearer {}", self.token));
        for field in fields {
            command.args(["--header", &field.replace("BASE", &self.base)]);
        }
        if let Some(body) = body {
            command.args(["--data-binary", body]);
        }
        let output = run_curl(command, format!("{}{path}", self.base)).await;
        let status = output.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer {
            status: status.unwrap_or_else(|| panic!("{method} {path}: {output}")),
            text: output,
        }
    }
}

async fn run_curl(mut command: Command, url: String) -> String {
    command.arg(url);
    let output = run(command).await;
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The gateway with the file of the guide; `server` is put in front of it.
async fn gateway(apache: &Apache, server: &str) -> Gateway {
    let mut file: Table = fence("webdav.md", "toml").parse().unwrap();
    file.remove("issuer");
    let url = format!("http://{}", apache.port.address());
    file["upstream"]["files"]["url"] = url.into();
    file.extend(server.parse::<Table>().unwrap());
    let certificate = authority().issue(&["localhost"]);
    let setup = Gateway::setup(&toml::to_string(&file).unwrap());
    setup.file("tls.crt", certificate.chain).file("tls.key", certificate.key).start().await
}

const TLS: &str = "server.tls = { certificate = 'tls.crt', private_key = { file = 'tls.key' } }";
const LOCK: &str = "<?xml version=\"1.0\"?><D:lockinfo xmlns:D=\"DAV:\"><D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockinfo>";

#[tokio::test]
async fn copies_moves_and_locks_over_cleartext() {
    if !is_installed(APACHE) || !is_installed("/usr/bin/curl") {
        return;
    }
    let apache = Apache::start().await;
    let gateway = gateway(&apache, "").await;
    exercise(&apache, &format!("http://localhost:{}", gateway.address().port())).await;
}

#[tokio::test]
async fn copies_moves_and_locks_over_tls_that_ends_at_the_gateway() {
    if !is_installed(APACHE) || !is_installed("/usr/bin/curl") {
        return;
    }
    let apache = Apache::start().await;
    let gateway = gateway(&apache, TLS).await;
    exercise(&apache, &format!("https://localhost:{}", gateway.address().port())).await;
}

async fn exercise(apache: &Apache, base: &str) {
    let client = |roles: &[&str]| Client { base: base.to_owned(), token: mint::token(roles) };
    let user = client(&["user"]);
    let status = async |method: &str, path: &str, fields: &[&str], body: Option<&str>| {
        user.ask(method, path, fields, body).await.status
    };
    assert_eq!(status("PUT", "/dav/a.txt", &[], Some("plan")).await, 201);
    // Overwritten, and not.
    assert_eq!(status("COPY", "/dav/a.txt", &["Destination: BASE/dav/b%20c.txt"], None).await, 201);
    assert_eq!(apache.reads("dav/b c.txt").as_deref(), Some("plan"));
    let onto = ["Destination: /dav/b%20c.txt", "Overwrite: F"];
    assert_eq!(status("COPY", "/dav/a.txt", &onto, None).await, 412);
    assert_eq!(status("MOVE", "/dav/b%20c.txt", &["Destination: BASE/dav/d.txt"], None).await, 201);
    assert_eq!(
        (apache.reads("dav/b c.txt"), apache.reads("dav/d.txt").as_deref()),
        (None, Some("plan"))
    );
    assert_eq!(status("PROPFIND", "/dav/", &["Depth: 1"], None).await, 207);

    // A locked resource is written and moved by whoever names the lock for it.
    let locked = user.ask("LOCK", "/dav/d.txt", &["Timeout: Second-600"], Some(LOCK)).await;
    assert_eq!(locked.status, 200, "{}", locked.text);
    let token = token_of(&locked.text);
    assert_eq!(status("PUT", "/dav/d.txt", &[], Some("new")).await, 423);
    let tagged = format!("If: <BASE/dav/d.txt> (<{token}>)");
    assert_eq!(status("PUT", "/dav/d.txt", &[&tagged], Some("new")).await, 204);
    let moved = ["Destination: BASE/dav/e.txt", &tagged];
    assert_eq!(status("MOVE", "/dav/d.txt", &moved, None).await, 201);
    assert_eq!(apache.reads("dav/e.txt").as_deref(), Some("new"));

    // The lock of a collection, for what is in it.
    assert_eq!(status("MKCOL", "/dav/shelf", &[], None).await, 201);
    let locked = user.ask("LOCK", "/dav/shelf/", &["Depth: infinity"], Some(LOCK)).await;
    let token = token_of(&locked.text);
    let onto = "Destination: BASE/dav/shelf/a.txt";
    // mod_dav names the lock in the body of a 424 (RFC 4918 §9.8.5).
    assert_eq!(status("COPY", "/dav/a.txt", &[onto], None).await, 424);
    let tagged = format!("If: <BASE/dav/shelf/> (<{token}>)");
    assert_eq!(status("COPY", "/dav/a.txt", &[onto, &tagged], None).await, 201);
    let unlock = format!("Lock-Token: <{token}>");
    assert_eq!(status("UNLOCK", "/dav/shelf/", &[&unlock], None).await, 204);

    // What the caller may not write, or compare, stays as it is.
    let plan = "Destination: BASE/dav-admin/plan.txt";
    for (method, fields, code, reason) in [
        ("COPY", [plan, "Overwrite: T"], 403, "role_missing"),
        ("MOVE", [plan, "Overwrite: T"], 403, "role_missing"),
        ("COPY", ["Destination: /dav/../dav-admin/plan.txt", "Depth: 0"], 400, "target_ambiguous"),
        ("COPY", ["Destination: http://elsewhere.test/dav/x", "Depth: 0"], 400, "target_ambiguous"),
        ("COPY", ["Destination: /nowhere/x", "Depth: 0"], 403, "destination_refused"),
        ("PUT", ["If: <BASE/dav-admin/> (<urn:x>)", "Depth: 0"], 403, "role_missing"),
    ] {
        let answer = user.ask(method, "/dav/a.txt", &fields, None).await;
        assert_eq!(answer.status, code, "{method} {fields:?}: {}", answer.text);
        assert!(answer.text.contains(reason), "{method} {fields:?}: {}", answer.text);
    }
    assert_eq!(
        (apache.reads("dav-admin/plan.txt"), apache.reads("dav/a.txt").as_deref()),
        (None, Some("plan"))
    );
    let admin = client(&["user", "admin"]);
    assert_eq!(admin.ask("COPY", "/dav/a.txt", &[plan], None).await.status, 201);
    assert_eq!(apache.reads("dav-admin/plan.txt").as_deref(), Some("plan"));
    let found = user.ask("PROPFIND", "/.well-known/caldav", &[], None).await;
    assert!(
        found.status == 301 && found.text.to_lowercase().contains("location: /dav/\r\n"),
        "{}",
        found.text
    );
}

/// The token of a lock that was granted.
fn token_of(answer: &str) -> String {
    let (_, rest) = answer.split_once("opaquelocktoken:").unwrap_or_else(|| panic!("{answer}"));
    let end = rest.find(['<', '>']).unwrap();
    format!("opaquelocktoken:{}", &rest[..end])
}
