//! git over smart HTTP, with the files of `docs/guides/git.md`.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::harness::Port;
use crate::{
    EMAIL, Running, accepts, add_account, behind, fence, is_installed, portcullis, run, start,
    token,
};

const APACHE: &str = "/usr/sbin/apache2";
const MODULES: &str = "/usr/lib/apache2/modules";
const BACKEND: &str = "/usr/lib/git-core/git-http-backend";

async fn git(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]);
    command.args(arguments).current_dir(folder);
    command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_GLOBAL", "/dev/null");
    run(command).await
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Apache with the repository `notes.git`.
async fn apache(folder: &TempDir) -> (Port, Running) {
    let root = folder.path().display();
    let port = Port::reserve();
    succeeds(&git(folder.path(), &["init", "--quiet", "--bare", "srv/git/notes.git"]).await);
    let guide = fence("git.md", "apache")
        .replace("127.0.0.1:8081", &port.address().to_string())
        .replace("/srv/git", &format!("{root}/srv/git"));
    let modules = ["mpm_event", "authz_core", "alias", "cgid", "env", "setenvif"]
        .map(|name| format!("LoadModule {name}_module {MODULES}/mod_{name}.so\n"));
    // As root, Apache serves as another user, whom git lets read what belongs to root.
    let text = format!(
        "ServerRoot {root}\nPidFile {root}/apache.pid\nErrorLog {root}/error.log\nDefaultRuntimeDir {root}\n\
         User www-data\nGroup www-data\n{}ScriptSock {root}/cgid.sock\n\
         SetEnv GIT_CONFIG_COUNT 1\nSetEnv GIT_CONFIG_KEY_0 safe.directory\nSetEnv GIT_CONFIG_VALUE_0 *\n{guide}",
        modules.concat()
    );
    std::fs::write(folder.path().join("apache.conf"), text).unwrap();
    let open = Command::new("chmod").args(["-R", "a+rwX"]).arg(folder.path()).status();
    assert!(open.unwrap().success());
    let mut command = Command::new(APACHE);
    command.arg("-f").arg(folder.path().join("apache.conf")).args(["-D", "FOREGROUND"]);
    let running = start(command);
    accepts(port.number()).await;
    (port, running)
}

#[tokio::test]
async fn a_repository_is_cloned_and_pushed_with_a_personal_access_token() {
    if !is_installed(APACHE) || !is_installed(BACKEND) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (port, _apache) = apache(&folder).await;
    let gateway = behind("git.md", "git", &port, "").start().await;
    add_account(&gateway, &["user"]).await;
    let token = token(&gateway).await;
    let url = |user: &str| format!("http://{user}@{}/git/notes.git", gateway.address());
    let work = TempDir::new().unwrap();
    let clone =
        async |url: &str, name: &str| git(work.path(), &["clone", "--quiet", url, name]).await;
    succeeds(&clone(&url(&format!("anyone:{token}")), "one").await);
    let refused = clone(&url("ann:wrong"), "none").await;
    assert!(!refused.status.success());

    // More than git sends in one piece, so that the body is chunked.
    let one = work.path().join("one");
    let noise: Vec<u8> = (0..400_000_u64)
        .flat_map(|n| n.wrapping_mul(n).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    std::fs::write(one.join("noise"), noise).unwrap();
    succeeds(&git(&one, &["add", "."]).await);
    succeeds(&git(&one, &["commit", "--quiet", "-m", "Make noise"]).await);
    let push = ["push", "--quiet", "origin", "HEAD:main"];
    let refused = git(&one, &push).await;
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("403"), "{said}");
    portcullis(&gateway, &["user", "set-roles", EMAIL, "user", "committer"]).await;
    succeeds(&git(&one, &push).await);
    let again = format!("ann:{token}");
    succeeds(
        &git(work.path(), &["clone", "--quiet", "--branch", "main", &url(&again), "two"]).await,
    );
    let log = succeeds(&git(&work.path().join("two"), &["log", "--format=%s"]).await);
    assert_eq!(log, "Make noise\n");
}
