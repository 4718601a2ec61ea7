//! A store that cannot be written: nothing is acknowledged, and nothing is lost.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sqlx::{Connection, Executor};

use crate::harness::accounts::{PASSWORD, open};
use crate::harness::{Gateway, within};

/// Statements that let the next commit after a change of these tables fail, as on a full disk: the
/// statement itself succeeds.
pub const FAIL: [&str; 7] = [
    "CREATE TABLE unmet (a TEXT REFERENCES facts (name) DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TRIGGER fail_1 AFTER INSERT ON accounts BEGIN INSERT INTO unmet VALUES ('-'); END",
    "CREATE TRIGGER fail_2 AFTER UPDATE ON sessions BEGIN INSERT INTO unmet VALUES ('-'); END",
    "CREATE TRIGGER fail_3 AFTER INSERT ON revocations BEGIN INSERT INTO unmet VALUES ('-'); END",
    "CREATE TRIGGER fail_4 AFTER UPDATE ON mail_outbox BEGIN INSERT INTO unmet VALUES ('-'); END",
    "CREATE TRIGGER fail_5 AFTER DELETE ON mail_outbox BEGIN INSERT INTO unmet VALUES ('-'); END",
    "CREATE TRIGGER fail_6 AFTER INSERT ON facts BEGIN INSERT INTO unmet VALUES ('-'); END",
];

pub const RECOVER: [&str; 7] = [
    "DROP TRIGGER fail_1",
    "DROP TRIGGER fail_2",
    "DROP TRIGGER fail_3",
    "DROP TRIGGER fail_4",
    "DROP TRIGGER fail_5",
    "DROP TRIGGER fail_6",
    "DROP TABLE unmet",
];

pub async fn run(gateway: &Gateway, statements: &[&'static str]) {
    let url = format!("sqlite://{}", gateway.path("portcullis.db").display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    for statement in statements {
        connection.execute(*statement).await.unwrap();
    }
    connection.close().await.unwrap();
}

async fn register(gateway: &Gateway, email: &str) -> crate::harness::Response {
    let body = json!({ "email": email, "password": PASSWORD });
    gateway.post("/auth/register", &body).send().await
}

#[tokio::test]
async fn a_failed_commit_is_never_acknowledged() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let refresh = json!({ "refresh_token": tokens.refresh });
    let revocation = json!({ "jti": tokens.claims()["jti"] });
    run(&gateway, &FAIL).await;

    register(&gateway, "bob@example.com").await.is(503, "store_unavailable");
    gateway.refresh(&tokens.refresh).await.is(503, "store_unavailable");
    gateway.post("/auth/logout", &refresh).send().await.is(503, "store_unavailable");
    let problem = gateway.admin("/readyz").await.json()["problems"]["store"].clone();
    assert!(
        problem.as_str().is_some_and(|output| output.contains("the database failed")),
        "{problem}"
    );
    let (code, output, error) =
        gateway.command(&["revoke", "--jti", revocation["jti"].as_str().unwrap()]).await;
    assert_eq!((code, output.as_str()), (1, ""), "{error}");
    assert!(error.contains("not revoked"), "{error}");
    let (code, output, error) = gateway.command(&["user", "end-sessions", "ann@example.com"]).await;
    assert_eq!((code, output.as_str()), (1, ""), "{error}");
    let file = gateway.path("accounts.csv");
    std::fs::write(&file, "email\ncarl@example.com\n").unwrap();
    let (code, output, error) = gateway.command(&["user", "import", file.to_str().unwrap()]).await;
    assert_eq!((code, output.as_str()), (1, ""), "{error}");
    assert_eq!(gateway.reaches(&tokens.access).await, 200, "nothing was revoked");

    run(&gateway, &RECOVER).await;
    let (_, accounts, _) = gateway.command(&["user", "list", "--json"]).await;
    let accounts: Vec<Value> = serde_json::from_str(&accounts).unwrap();
    assert_eq!(accounts.len(), 1, "nobody was added: {accounts:?}");
    assert_eq!(register(&gateway, "bob@example.com").await.status, 201);
    assert_eq!(gateway.refresh(&tokens.refresh).await.status, 200, "it was not used up");
}

/// A message whose claim is not written would be sent again each time.
#[tokio::test]
async fn mail_that_cannot_be_claimed_is_not_sent() {
    let gateway = Gateway::start(&open("mail = { folder = 'mail' }")).await;
    gateway.register("ann@example.com").await;
    run(&gateway, &FAIL).await;
    let asking = json!({ "email": "ann@example.com" });
    assert_eq!(gateway.post("/auth/password/forgot", &asking).send().await.status, 202);
    let waits = "mail delivery is delayed by an error of the store or the system";
    gateway.log().until("mail waits", |line| line["message"] == waits).await;
    assert!(!gateway.path("mail").exists() || sent(&gateway) == 0);
    run(&gateway, &RECOVER).await;
    gateway.log().until("it has left", |line| line["message"] == "mail_sent").await;
    assert_eq!(sent(&gateway), 1);
}

fn sent(gateway: &Gateway) -> usize {
    std::fs::read_dir(gateway.path("mail")).unwrap().count()
}

/// A write to a file that was deleted or renamed would be lost.
#[tokio::test]
async fn a_missing_or_replaced_database_acknowledges_nothing() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let (database, away) = (gateway.path("portcullis.db"), gateway.path("away.db"));
    let revoke = ["revoke", "--jti", "t"];
    let is_refused = async |output: &str| {
        register(&gateway, "bob@example.com").await.is(503, "store_unavailable");
        let answer = gateway.admin("/readyz").await.json();
        let problem = answer["problems"]["store"].as_str().unwrap_or_default().to_owned();
        assert!(problem.contains(output) && problem.contains("stop the gateway"), "{answer}");
        assert_eq!(answer["status"], "degraded");
    };

    std::fs::rename(&database, &away).unwrap();
    is_refused("was deleted or moved away").await;
    let (code, _, error) = gateway.command(&revoke).await;
    assert!(code == 78 && error.contains("is missing, but its key"), "{code} {error}");
    let mut anew = revoke.to_vec();
    anew.push("--new-store");
    let (code, output, error) = gateway.command(&anew).await;
    assert!(
        code == 1 && output.is_empty() && error.contains("has a different file open"),
        "{error}"
    );
    assert!(!database.exists(), "nothing was made that would take the place of the other");

    std::fs::copy(&away, gateway.path("copy.db")).unwrap();
    std::fs::rename(gateway.path("copy.db"), &database).unwrap();
    is_refused("was replaced").await;
    let (code, output, error) = gateway.command(&["user", "disable", "ann@example.com"]).await;
    assert!(
        code == 1 && output.is_empty() && error.contains("has a different file open"),
        "{error}"
    );

    std::fs::rename(&away, &database).unwrap();
    assert_eq!(register(&gateway, "bob@example.com").await.status, 201);
    assert_eq!(gateway.command(&revoke).await.0, 0);
    std::fs::OpenOptions::new().write(true).open(&database).unwrap().set_len(0).unwrap();
    is_refused("was emptied").await;
}

/// The size of a page of the database in bytes.
const PAGE: u64 = 4096;

/// What is read from a truncated file is lost, and what is written to it soon.
#[tokio::test]
async fn a_truncated_database_acknowledges_nothing() {
    for (file, statements) in [
        ("portcullis.db", &["PRAGMA wal_checkpoint(TRUNCATE)"][..]),
        ("portcullis.db-wal", &["UPDATE facts SET value = value"]),
    ] {
        let gateway = Gateway::start(&open("")).await;
        gateway.register("ann@example.com").await;
        run(&gateway, statements).await;
        // A smaller database than before is no damage if SQLite made it so.
        run(&gateway, &["VACUUM", "PRAGMA wal_checkpoint(PASSIVE)"]).await;
        gateway.register("carl@example.com").await;
        let opened = std::fs::OpenOptions::new().write(true).open(gateway.path(file)).unwrap();
        let half = opened.metadata().unwrap().len() / 2;
        opened.set_len(if file.ends_with("-wal") { PAGE } else { half }).unwrap();
        let problem = within(async {
            loop {
                let answer = gateway.admin("/readyz").await.json();
                match answer["problems"]["store"].as_str() {
                    Some(problem) => break problem.to_owned(),
                    None => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                }
            }
        });
        let problem = problem.await;
        // A reader may find damage before the lengths are compared.
        let is_named = ["was truncated", "was damaged"]
            .iter()
            .any(|how| problem.contains(&format!("{file} {how}")));
        assert!(is_named, "{problem}");
        register(&gateway, "bob@example.com").await.is(503, "store_unavailable");
    }
}

/// SQLite does not notice it: what it has in memory counts as newer.
#[tokio::test]
async fn an_older_copy_written_over_the_database_acknowledges_nothing() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
    let database = gateway.path("portcullis.db");
    let older = std::fs::read(&database).unwrap();
    // Nothing is revoked in between.
    gateway.register("carl@example.com").await;
    run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
    assert!(gateway.admin("/readyz").await.json()["problems"]["store"].is_null());
    overwrite(&database, &older);
    is_overwritten(&gateway).await;
    // It does not count as intact because a part of it is newer again.
    run(&gateway, &["PRAGMA user_version = 1000", "PRAGMA wal_checkpoint(TRUNCATE)"]).await;
    is_overwritten(&gateway).await;
}

/// At once: a reader that finds the file empty in between reports other damage.
fn overwrite(file: &Path, content: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.set_len(content.len() as u64).unwrap();
}

async fn is_overwritten(gateway: &Gateway) {
    register(gateway, "bob@example.com").await.is(503, "store_unavailable");
    let answer = gateway.admin("/readyz").await.json();
    let problem = answer["problems"]["store"].as_str().unwrap_or_default();
    // A reader that finds pages of both notices that first.
    let words = ["was overwritten while it was in use", "was damaged while it was in use"];
    assert!(words.iter().any(|words| problem.contains(words)), "{answer}");
}

/// Through SQLite, which writes its content anew: the files are intact.
#[tokio::test]
async fn an_older_copy_restored_into_the_database_acknowledges_nothing() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    gateway.register("carl@example.com").await;
    run(&gateway, &["PRAGMA user_version = 1"]).await;
    is_overwritten(&gateway).await;
}

/// Neither the end of the gateway nor the next start makes a mixture of the copy and the `-wal`.
#[tokio::test]
async fn an_older_copy_next_to_the_wal_is_refused_at_the_next_start() {
    for is_killed in [true, false] {
        let mut gateway = Gateway::start(&open("")).await;
        gateway.register("ann@example.com").await;
        run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
        let database = gateway.path("portcullis.db");
        let older = std::fs::read(&database).unwrap();
        gateway.register("carl@example.com").await;
        let ended = gateway.login("ann@example.com").await;
        let logout = json!({ "refresh_token": ended.refresh });
        assert_eq!(gateway.post("/auth/logout", &logout).send().await.status, 204);
        run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
        gateway.login("carl@example.com").await;
        let newest = std::fs::read(&database).unwrap();
        overwrite(&database, &older);
        if is_killed {
            gateway.signal("KILL");
        } else {
            is_overwritten(&gateway).await;
            gateway.signal("TERM");
            gateway.signal("TERM");
        }
        gateway.exited().await;
        for command in [&["run"][..], &["user", "list"], &["user", "disable", "ann@example.com"]] {
            let (code, output, error) = gateway.command(command).await;
            assert!(
                code == 1 && error.contains("portcullis.db-wal continues"),
                "{is_killed} {command:?}: {code} {output}{error}"
            );
        }
        assert!(std::fs::read(&database).unwrap() == older, "it is unchanged");
        std::fs::write(&database, newest).unwrap();
        gateway.kill_and_restart().await;
        assert_eq!(gateway.reaches(&ended.access).await, 401);
        gateway.login("carl@example.com").await;
    }
}

/// Ends a gateway that has noticed a copy over its database: the copy stays as it is, and nothing
/// uses it together with the `-wal`.
async fn leaves_alone(gateway: Gateway, copy: &[u8]) {
    is_overwritten(&gateway).await;
    gateway.signal("TERM");
    gateway.signal("TERM");
    gateway.exited().await;
    let database = gateway.path("portcullis.db");
    assert!(std::fs::read(&database).unwrap() == copy, "it is unchanged");
    for command in [&["run"][..], &["user", "list"], &["user", "disable", "ann@example.com"]] {
        let (code, output, error) = gateway.command(command).await;
        assert!(
            code == 1 && error.contains("portcullis.db-wal continues"),
            "{command:?}: {code} {output}{error}"
        );
    }
    assert!(std::fs::read(&database).unwrap() == copy, "it is still unchanged");
}

/// It is as old as the `-wal`, but SQLite would not copy again what it has copied before.
#[tokio::test]
async fn a_copy_from_before_a_checkpoint_is_never_written_to() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
    let database = gateway.path("portcullis.db");
    let older = std::fs::read(&database).unwrap();
    let (code, _, error) = gateway.command(&["user", "disable", "ann@example.com"]).await;
    assert_eq!(code, 0, "{error}");
    gateway.register("carl@example.com").await;
    // With a reader, the `-wal` goes on after it was copied.
    let url = format!("sqlite://{}", database.display());
    let mut reader = sqlx::SqliteConnection::connect(&url).await.unwrap();
    reader.execute("BEGIN").await.unwrap();
    reader.execute("SELECT COUNT(*) FROM accounts").await.unwrap();
    run(&gateway, &["PRAGMA wal_checkpoint(PASSIVE)"]).await;
    gateway.login("carl@example.com").await;
    reader.close().await.unwrap();
    overwrite(&database, &older);
    leaves_alone(gateway, &older).await;
}

/// As that of another database: its number is higher than all that the gateway has written.
#[tokio::test]
async fn a_newer_copy_written_over_the_database_is_never_written_to() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
    let mut newer = std::fs::read(gateway.path("portcullis.db")).unwrap();
    newer[60..64].copy_from_slice(&1_000_i32.to_be_bytes());
    gateway.login("ann@example.com").await;
    overwrite(&gateway.path("portcullis.db"), &newer);
    leaves_alone(gateway, &newer).await;
}

/// What the command writes gets a number that the gateway has read before.
#[tokio::test]
async fn no_command_writes_beside_a_gateway_whose_database_was_overwritten() {
    let gateway = Gateway::start(&open("")).await;
    let id = gateway.register("ann@example.com").await["id"].as_str().unwrap().to_owned();
    run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
    let older = std::fs::read(gateway.path("portcullis.db")).unwrap();
    for _ in 0..3 {
        let logout = json!({ "refresh_token": gateway.login("ann@example.com").await.refresh });
        assert_eq!(gateway.post("/auth/logout", &logout).send().await.status, 204);
    }
    run(&gateway, &["PRAGMA wal_checkpoint(TRUNCATE)"]).await;
    overwrite(&gateway.path("portcullis.db"), &older);
    // Nothing else tells that the copy is older.
    std::fs::write(gateway.path("portcullis.db-lock"), "").unwrap();
    is_overwritten(&gateway).await;
    within(async {
        while !std::fs::read_to_string(presence(&gateway)).unwrap().ends_with("/lost\n") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    for command in [&["revoke", "--subject", &id][..], &["user", "disable", "ann@example.com"]] {
        let (code, output, error) = gateway.command(command).await;
        assert!(
            code == 1 && output.is_empty() && error.contains("what it had open was overwritten"),
            "{command:?}: {code} {output}{error}"
        );
        assert!(!error.contains("it is done"), "{error}");
    }
}

/// The file through which commands know the gateway.
fn presence(gateway: &Gateway) -> PathBuf {
    let files = std::fs::read_dir(gateway.path("")).unwrap();
    let mut paths = files.map(|file| file.unwrap().path());
    paths.find(|path| path.to_str().unwrap().contains("portcullis.db-gateway-")).unwrap()
}

/// Processes that use a database see the writes of others through the first of these files, and the
/// next start learns of them through the other one.
#[tokio::test]
async fn a_revocation_that_a_gateway_cannot_read_fails() {
    for suffix in ["-shm", "-lock"] {
        let gateway = Gateway::start(&open("")).await;
        let id = gateway.register("ann@example.com").await["id"].as_str().unwrap().to_owned();
        let file = gateway.path(&format!("portcullis.db{suffix}"));
        std::fs::remove_file(&file).unwrap();
        let (code, output, error) = gateway.command(&["revoke", "--subject", &id]).await;
        assert!(
            code == 1 && output.is_empty() && error.contains("has a different file open"),
            "{output}{error}"
        );
        assert!(!file.exists(), "it was not created again");
        let answer = gateway.admin("/readyz").await.json();
        let problem = answer["problems"]["store"].as_str().unwrap_or_default();
        assert!(problem.contains(&format!("{suffix} was deleted")), "{answer}");
        register(&gateway, "bob@example.com").await.is(503, "store_unavailable");
    }
}

/// Without it, a command would take the gateway for one that has ended.
#[tokio::test]
async fn commands_wait_for_a_gateway_whose_file_was_deleted() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let deleted = presence(&gateway);
    std::fs::remove_file(&deleted).unwrap();
    let warns = |line: &Value| line["file"] == deleted.to_str().unwrap();
    let line = gateway.log().until("it is noticed", warns).await;
    assert_eq!(line["level"], "warn", "{line}");
    let (code, status, error) = gateway.command(&["store", "status"]).await;
    assert!(code == 0 && status.contains("1 running"), "{status}{error}");
    for _ in 0..5 {
        let tokens = gateway.login("ann@example.com").await;
        let (code, _, error) = gateway.command(&["user", "end-sessions", "ann@example.com"]).await;
        assert_eq!(code, 0, "{error}");
        assert_eq!(gateway.reaches(&tokens.access).await, 401);
    }
}

/// A write to a damaged database may be lost.
#[tokio::test]
async fn a_database_damaged_while_in_use_accepts_no_writes() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    // The gateway reads the pages again after another process has written.
    let touch = ["UPDATE facts SET value = value", "PRAGMA wal_checkpoint(TRUNCATE)"];
    run(&gateway, &touch).await;
    let database = std::fs::OpenOptions::new().write(true).open(gateway.path("portcullis.db"));
    let (database, page) = (database.unwrap(), 4096);
    let pages = database.metadata().unwrap().len() / page;
    for number in 1..pages {
        database.write_all_at(&[0xff; 4096], number * page).unwrap();
    }
    let output =
        "revocations by other processes cannot be read; those known so far remain in force";
    gateway.log().until("it is noticed", |line| line["message"] == output).await;
    let answer = gateway.admin("/readyz").await.json();
    let problem = answer["problems"]["store"].as_str().unwrap_or_default();
    assert!(problem.contains("was damaged while it was in use"), "{answer}");
    register(&gateway, "bob@example.com").await.is(503, "store_unavailable");
    assert_eq!(gateway.reaches(&tokens.access).await, 200, "tokens are verified without it");
}

/// A gateway that has ended, and the account ann@example.com.
async fn stopped() -> Gateway {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    gateway.signal("TERM");
    gateway.signal("TERM");
    gateway.exited().await;
    gateway
}

#[tokio::test]
async fn a_missing_database_is_not_recreated_if_its_key_exists() {
    let gateway = stopped().await;
    let database = gateway.path("portcullis.db");
    for empty in [false, true] {
        let _ = std::fs::remove_file(&database);
        if empty {
            std::fs::write(&database, "").unwrap();
        }
        for command in [&["run"][..], &["revoke", "--jti", "t"], &["key", "rotate"]] {
            let (code, _, error) = gateway.command(command).await;
            assert_eq!(code, 78, "{error}");
            let state = if empty { "is empty, but its key" } else { "is missing, but its key" };
            assert!(error.contains(state) && error.contains("--new-store"), "{error}");
        }
    }
    let (code, _, error) = gateway.command(&["revoke", "--jti", "t", "--new-store"]).await;
    assert_eq!(code, 0, "{error}");
    let (_, accounts, _) = gateway.command(&["user", "list", "--json"]).await;
    assert_eq!(accounts.trim(), "[]");
}

/// A link that leads to itself cannot be followed, even by root, which may run the tests.
#[tokio::test]
async fn a_database_that_cannot_be_looked_at_does_not_count_as_missing() {
    let gateway = stopped().await;
    let database = gateway.path("portcullis.db");
    std::fs::rename(&database, gateway.path("away.db")).unwrap();
    std::os::unix::fs::symlink("portcullis.db", &database).unwrap();
    for command in [&["run"][..], &["user", "disable", "ann@example.com"]] {
        let (code, _, error) = gateway.command(command).await;
        assert_eq!(code, 78, "{error}");
        assert!(
            error.contains("portcullis.db` cannot be looked at") && !error.contains("--new-store"),
            "{error}"
        );
    }
}

/// The clock was two days ahead during a login, and is correct now.
#[tokio::test]
async fn an_account_cut_off_ahead_of_the_clock_is_reported_and_can_be_fixed() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let before = gateway.login("ann@example.com").await;
    let ahead = "UPDATE accounts SET issued_at = issued_at + 172800";
    run(&gateway, &[ahead]).await;
    let end = ["user", "end-sessions", "ann@example.com"];
    assert_eq!(gateway.command(&end).await.0, 0);
    let login = gateway.try_login("ann@example.com", PASSWORD).await;
    login.is(503, "store_unavailable");
    let answer = gateway.admin("/readyz").await.json();
    let problem = answer["problems"]["clock"].as_str().unwrap_or_default().to_owned();
    let account = before.claims()["sub"].as_str().unwrap().to_owned();
    assert!(problem.contains(&account) && problem.contains("end-sessions EMAIL --now"), "{answer}");

    let (code, output, error) = gateway.command(&[&end[..], &["--now"]].concat()).await;
    assert!(code == 0 && output.contains("can log in again"), "{output}{error}");
    let after = gateway.login("ann@example.com").await;
    assert_eq!(gateway.reaches(&after.access).await, 200);
    assert_eq!(gateway.reaches(&before.access).await, 401);
    gateway.refresh(&before.refresh).await.is(401, "invalid_grant");
    // The second time, no cut-off is ahead: the sessions end as without the option.
    let (code, output, _) = gateway.command(&[&end[..], &["--now"]].concat()).await;
    assert_eq!((code, output.as_str()), (0, "ended every session of ann@example.com\n"));
    assert_eq!(gateway.reaches(&after.access).await, 401);
    gateway.login("ann@example.com").await;
    within(async {
        while !gateway.admin("/readyz").await.json()["problems"]["clock"].is_null() {}
    })
    .await;
}
