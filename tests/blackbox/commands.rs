//! Commands that change the accounts and keys of a gateway while it runs (CONTRACT §1, §5).

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::accounts::{PASSWORD, Tokens, open};
use crate::harness::{Gateway, PATIENCE, within};
use crate::pages::page;

/// Runs a command on the gateway's file with this standard input. Returns its exit code and both
/// outputs.
pub(crate) fn portcullis(
    gateway: &Gateway,
    arguments: &[&str],
    input: &str,
) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .arg("--config")
        .arg(gateway.path("gateway.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may already have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

pub(crate) fn done(gateway: &Gateway, arguments: &[&str], input: &str) -> String {
    let (code, output, error) = portcullis(gateway, arguments, input);
    // Tests seldom confirm the addresses of the accounts that they register.
    let error = error.replace(UNCONFIRMED, "");
    assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}: {output}");
    output
}

const UNCONFIRMED: &str = "warning: its address is unconfirmed: a stranger may have registered it and know its password\n";

fn failed(gateway: &Gateway, arguments: &[&str], input: &str) -> (i32, String) {
    let (code, output, error) = portcullis(gateway, arguments, input);
    assert_eq!(output, "", "{arguments:?}");
    (code, error)
}

/// Asserts that every worker refuses the token at once.
async fn is_dead(gateway: &Gateway, access: &str) {
    for _ in 0..8 {
        gateway.get("/reports").bearer(access).send().await.is(401, "token_revoked");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story: each step builds on the one before")]
async fn accounts_are_changed_while_the_gateway_runs() {
    let gateway = Gateway::start(&format!("server.workers = 4\n{}", open(""))).await;
    let output = done(
        &gateway,
        &["user", "add", "Ann@Example.com", "--role", "admin", "--name", "Ann", "--password-stdin"],
        &format!("{PASSWORD}\r\nrest"),
    );
    assert!(
        output.starts_with("added ann@example.com with the roles admin; its tokens name it as `"),
        "{output}"
    );
    let tokens = gateway.login("ann@example.com").await;
    assert_eq!(
        (tokens.claims()["roles"].clone(), tokens.claims()["name"].clone()),
        (serde_json::json!(["admin"]), "Ann".into())
    );

    let output =
        done(&gateway, &["user", "set-roles", "ann@example.com", "auditor", "user", "auditor"], "");
    assert_eq!(output, "ann@example.com now has the roles auditor, user; it had the roles admin\n");
    is_dead(&gateway, &tokens.access).await;
    let next = Tokens::of(&gateway.refresh(&tokens.refresh).await);
    assert_eq!(
        next.claims()["roles"],
        serde_json::json!(["auditor", "user"]),
        "the session goes on with the new roles"
    );

    done(&gateway, &["user", "end-sessions", "ann@example.com"], "");
    is_dead(&gateway, &next.access).await;
    gateway.refresh(&next.refresh).await.is(401, "invalid_grant");
    let again = gateway.login("ann@example.com").await;
    done(&gateway, &["user", "disable", "ann@example.com"], "");
    is_dead(&gateway, &again.access).await;
    gateway.try_login("ann@example.com", PASSWORD).await.is(401, "login_failed");
    assert!(
        done(&gateway, &["user", "list"], "").contains("ann@example.com  auditor user  disabled")
    );
    done(&gateway, &["user", "enable", "ann@example.com"], "");
    gateway.login("ann@example.com").await;

    for (arguments, input, code, output) in [
        (
            &["user", "add", "ann@example.com", "--password-stdin"][..],
            PASSWORD,
            1,
            "error: ann@example.com already has an account; to change its roles: ",
        ),
        (
            &["user", "add", "bob@example.com", "--password-stdin"],
            "password1",
            1,
            "error: This password is one of the most common ones.",
        ),
        (
            &["user", "add", "bob@example.com", "--password-stdin"],
            "",
            1,
            "error: there is no password on standard input\n",
        ),
        (
            &["user", "add", "bob@example.com"],
            "",
            2,
            "error: there is no terminal to ask for a password; add `--password-stdin`",
        ),
        (
            &["user", "add", "bob@example.com", "--role", "a b", "--password-stdin"],
            PASSWORD,
            2,
            "error: `a b` is not a valid role: ",
        ),
        (&["user", "add", "bob"], "", 2, "error: `bob`: not a valid e-mail address; "),
        (
            &["user", "disable", "bob@example.com"],
            "",
            1,
            "error: there is no account bob@example.com; see `portcullis user list`\n",
        ),
    ] {
        let (exit, error) = failed(&gateway, arguments, input);
        assert!(exit == code && error.starts_with(output), "{arguments:?}: {exit} {error}");
    }
    assert_eq!(
        serde_json::from_str::<Value>(&done(&gateway, &["user", "list", "--json"], ""))
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// Accounts are read and changed a thousand at a time.
#[tokio::test]
async fn any_number_of_accounts_can_be_listed_and_logged_out() {
    let gateway = Gateway::start(&open("")).await;
    let lines = (0..2500).map(|number| format!("person{number}@example.com,,,\n"));
    let csv: String =
        std::iter::once("email,password_hash,roles,name\n".to_owned()).chain(lines).collect();
    assert_eq!(portcullis(&gateway, &["user", "import", "-"], &csv).0, 0);
    // The first, the last, and one in between.
    let mut sessions = Vec::new();
    for email in ["a@example.com", "person1200x@example.com", "z@example.com"] {
        gateway.register(email).await;
        sessions.push(gateway.login(email).await);
    }
    let (code, listed, error) = portcullis(&gateway, &["user", "list", "--json"], "");
    assert_eq!(code, 0, "{error}");
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    let emails: Vec<_> = listed.iter().map(|account| account["email"].as_str().unwrap()).collect();
    assert!(emails.len() == 2503 && emails.is_sorted(), "{}", emails.len());
    let (code, table, error) = portcullis(&gateway, &["user", "list"], "");
    assert_eq!((code, table.lines().count()), (0, 2504), "{error}");

    let (code, output, error) = portcullis(&gateway, &["user", "end-sessions", "--all"], "");
    assert_eq!((code, output.as_str()), (0, "ended every session of 2503 accounts\n"), "{error}");
    for tokens in &sessions {
        is_dead(&gateway, &tokens.access).await;
        gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    }
    let again = gateway.login("a@example.com").await;
    assert_eq!(gateway.reaches(&again.access).await, 200);
    for wrong in
        [&["user", "end-sessions"][..], &["user", "end-sessions", "--all", "a@example.com"]]
    {
        assert_eq!(failed(&gateway, wrong, "").0, 2, "{wrong:?}");
    }
}

/// A gateway and commands start together: the first one creates the schema.
#[tokio::test]
async fn many_processes_can_open_a_new_database_at_once() {
    let gateway = Gateway::start(&open("")).await;
    for _ in 0..4 {
        let folder = tempfile::TempDir::new().unwrap();
        for file in ["gateway.toml", "corp.secret"] {
            std::fs::copy(gateway.path(file), folder.path().join(file)).unwrap();
        }
        let file = folder.path().join("gateway.toml");
        let start = |index: usize| {
            let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
                .args([
                    "user",
                    "add",
                    &format!("ann{index}@example.com"),
                    "--password-stdin",
                    "--config",
                ])
                .arg(&file)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(PASSWORD.as_bytes()).unwrap();
            child
        };
        for child in (0..6).map(start).collect::<Vec<_>>() {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[tokio::test]
async fn imported_accounts_log_in_and_their_hashes_are_renewed() {
    let gateway = Gateway::start(&open("")).await;
    let hash = bcrypt::hash(PASSWORD, 4).unwrap();
    let argon2 =
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    let file = format!(
        "email,password_hash,roles,name\nAnn@Example.com,{hash},admin user,Ann\nbob@example.com,{},user,\ncy@example.com,\"{argon2}\",,\ndee@example.com,,,\n",
        hash.replace("$2b$", "$2y$")
    );
    assert_eq!(
        done(&gateway, &["user", "import", "-"], &file),
        "imported 4 accounts; 1 without a password, which POST /password/forgot lets the owner set\n"
    );
    let schemes = || {
        let list: Value =
            serde_json::from_str(&done(&gateway, &["user", "list", "--json"], "")).unwrap();
        list.as_array()
            .unwrap()
            .iter()
            .map(|account| account["password"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(schemes(), ["bcrypt", "bcrypt", "argon2id", "none"]);
    gateway.try_login("ann@example.com", "another password").await.is(401, "login_failed");
    assert_eq!(schemes()[0], "bcrypt");
    let tokens = gateway.login("ann@example.com").await;
    assert_eq!(
        (tokens.claims()["roles"].clone(), gateway.reaches(&tokens.access).await),
        (serde_json::json!(["admin", "user"]), 200)
    );
    gateway.login("bob@example.com").await;
    Tokens::of(&gateway.try_login("cy@example.com", "password").await);
    gateway.try_login("dee@example.com", "").await.is(401, "login_failed");
    assert_eq!(schemes(), ["argon2id", "argon2id", "argon2id", "none"]);
    gateway.login("ann@example.com").await;

    // All or nothing, and every bad line is reported.
    let bad = format!(
        "email,password_hash\nnew@example.com,{hash}\nann@example.com,{hash}\nBOB@example.com,{hash}\n"
    );
    let (code, error) = failed(&gateway, &["user", "import", "-"], &bad);
    assert_eq!(code, 1);
    assert_eq!(
        error,
        "error: standard input: nothing was imported, because of errors in 2 lines:\n  line 3: ann@example.com already has an account; remove the line\n  \
         line 4: bob@example.com already has an account; remove the line\n"
    );
    // Also if other lines are invalid.
    let (_, error) =
        failed(&gateway, &["user", "import", "-"], "email,password_hash\nbad,\nbob@example.com,\n");
    assert!(
        error.contains("because of errors in 2 lines:\n  line 2: not a valid e-mail address")
            && error.contains("\n  line 3: bob@example.com already has an"),
        "{error}"
    );
    assert_eq!(schemes().len(), 4);
}

#[tokio::test]
async fn an_account_is_shown_changed_and_deleted_while_the_gateway_runs() {
    let gateway = Gateway::start(&format!("server.workers = 4\n{}", open(""))).await;
    let id = gateway.register("ann@example.com").await["id"].as_str().unwrap().to_owned();
    gateway.register("bob@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let output =
        done(&gateway, &["user", "set-email", "ANN@example.com", "Ann.Ott@example.com"], "");
    assert_eq!(output, "ann@example.com is now ann.ott@example.com\n");
    is_dead(&gateway, &tokens.access).await;
    let tokens = Tokens::of(&gateway.refresh(&tokens.refresh).await);
    let me = gateway.get("/auth/me").bearer(&tokens.access).send().await.json();
    assert_eq!(
        (&me["email"], &me["email_verified"]),
        (&"ann.ott@example.com".into(), &true.into())
    );
    gateway.try_login("ann@example.com", PASSWORD).await.is(401, "login_failed");
    let (code, error) =
        failed(&gateway, &["user", "set-email", "ann.ott@example.com", "bob@example.com"], "");
    assert_eq!(code, 1);
    assert!(error.starts_with("error: bob@example.com already has another account; "), "{error}");

    let (_, _, error) =
        portcullis(&gateway, &["user", "set-roles", "bob@example.com", "admin"], "");
    assert_eq!(error, UNCONFIRMED);
    for command in [&["user", "add"][..], &["user", "invite"]] {
        let (code, error) = failed(&gateway, &[command, &["bob@example.com"]].concat(), PASSWORD);
        let why = "error: bob@example.com already has an account, and its address is unconfirmed";
        assert!(code == 1 && error.starts_with(why), "{error}");
        assert!(error.ends_with("portcullis user delete bob@example.com --yes\n"), "{error}");
    }

    let output = done(&gateway, &["user", "set-name", "ann.ott@example.com", " Ann Ott "], "");
    assert_eq!(output, "ann.ott@example.com now has the name Ann Ott\n");
    let tokens = Tokens::of(&gateway.refresh(&tokens.refresh).await);
    assert_eq!(tokens.claims()["name"], "Ann Ott", "the next token has the new name");

    let shown = done(&gateway, &["user", "show", "ann.ott@example.com", "--json"], "");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["id"], &shown["name"]), (&id.clone().into(), &"Ann Ott".into()));
    assert_eq!(shown["sessions"][0]["sid"], tokens.claims()["sid"], "{shown}");
    let shown = done(&gateway, &["user", "show", "ann.ott@example.com"], "");
    assert!(shown.contains("\nsessions       1\n\nSESSION  "), "{shown}");

    done(
        &gateway,
        &["user", "set-password", "ann.ott@example.com", "--password-stdin"],
        "cactus ferry lamp 12\n",
    );
    is_dead(&gateway, &tokens.access).await;
    gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    gateway.try_login("ann.ott@example.com", PASSWORD).await.is(401, "login_failed");
    let tokens =
        Tokens::of(&gateway.try_login("ann.ott@example.com", "cactus ferry lamp 12").await);

    let (code, error) = failed(&gateway, &["user", "delete", "ann.ott@example.com"], "");
    assert!(code == 2 && error.contains("--yes"), "{error}");
    done(&gateway, &["user", "delete", "ann.ott@example.com", "--yes"], "");
    is_dead(&gateway, &tokens.access).await;
    gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
    gateway.try_login("ann.ott@example.com", "cactus ferry lamp 12").await.is(401, "login_failed");
    let again = gateway.register("ann.ott@example.com").await;
    assert_ne!(again["id"], id.as_str(), "it is another account");
    is_dead(&gateway, &tokens.access).await;
}

#[tokio::test]
async fn an_operator_creates_links_and_filters_the_list() {
    let gateway = Gateway::start(&open("")).await;
    let output = done(
        &gateway,
        &["user", "invite", "eve@example.com", "--role", "auditor", "--name", "Eve"],
        "",
    );
    assert!(
        output.starts_with("invited eve@example.com with the roles auditor; send this"),
        "{output}"
    );
    let token = |output: &str| output.trim_end().rsplit_once("?token=").unwrap().1.to_owned();
    let set = async |output: &str, password: &str| {
        let body = serde_json::json!({ "token": token(output), "password": password });
        gateway.post("/auth/password/reset", &body).send().await
    };
    gateway.try_login("eve@example.com", PASSWORD).await.is(401, "login_failed");
    // Whoever is invited has nothing to be logged out of, also after a password that was refused.
    let opened = async |output: &str| {
        let path = format!("/auth/password/reset?token={}", token(output));
        page(&gateway, &path, "").await.text()
    };
    let first = opened(&output).await;
    assert!(first.contains("<h1>Choose a password</h1>"), "{first}");
    assert!(!first.contains("logged out") && first.contains("name=\"first\""), "{first}");
    let form = format!("token={}&first=true&password=password1", token(&output));
    let refused = gateway.request("POST", "/auth/password/reset").body(form);
    let refused = refused.header("Content-Type", "application/x-www-form-urlencoded");
    let refused = refused.header("Accept", "text/html").header("Origin", "http://app.test");
    let refused = refused.send().await.text();
    assert!(refused.contains("<h1>Choose a password</h1>"), "{refused}");
    assert_eq!(set(&output, PASSWORD).await.status, 204);
    // Without mail there is no other link.
    let used = opened(&output).await;
    assert!(used.contains("already used") && !used.contains("Send another link"), "{used}");
    set(&output, "cactus ferry lamp 12").await.is(400, "link_invalid");
    let tokens = gateway.login("eve@example.com").await;
    assert_eq!(tokens.claims()["roles"], serde_json::json!(["auditor"]));

    let link = done(&gateway, &["user", "reset-link", "eve@example.com"], "");
    assert!(opened(&link).await.contains("You will be logged out everywhere."), "{link}");
    let other = done(&gateway, &["user", "reset-link", "eve@example.com"], "");
    assert_eq!(set(&link, "cactus ferry lamp 12").await.status, 204);
    is_dead(&gateway, &tokens.access).await;
    set(&other, PASSWORD).await.is(400, "link_invalid");

    gateway.register("ann@example.com").await;
    done(&gateway, &["user", "disable", "ann@example.com"], "");
    let (_, error) = failed(&gateway, &["user", "reset-link", "ann@example.com"], "");
    assert!(error.contains("is disabled"), "{error}");
    let listed = |arguments: &[&str]| {
        let list = done(&gateway, &[&["user", "list"], arguments].concat(), "");
        let rows = list.lines().skip(1).map(|row| row.split(' ').next().unwrap().to_owned());
        rows.collect::<Vec<_>>()
    };
    assert_eq!(listed(&[]), ["ann@example.com", "eve@example.com"]);
    assert_eq!(listed(&["--role", "auditor"]), ["eve@example.com"]);
    assert_eq!(listed(&["--disabled"]), ["ann@example.com"]);
    assert_eq!(
        done(&gateway, &["user", "list", "--disabled", "--role", "auditor", "--json"], ""),
        "[]\n"
    );
    assert_eq!(
        done(&gateway, &["user", "list", "--disabled", "--role", "auditor"], ""),
        "no account matches\n"
    );
}

#[tokio::test]
async fn no_links_set_passwords_where_nobody_logs_in_with_one() {
    let provider = "[identity.login.corp]\nissuer = 'http://127.0.0.1:9'\nclient_id = 'x'\nclient_secret = 'y'\ninsecure_inline_secret = true";
    let with_passwords = open(&format!("{provider}\n"));
    let gateway = Gateway::start(&with_passwords).await;
    done(&gateway, &["user", "invite", "ann@example.com"], "");
    gateway.write(&with_passwords.replace("registration = 'open'\n", "password_login = false\n"));
    for arguments in
        [["user", "invite", "bob@example.com"], ["user", "reset-link", "ann@example.com"]]
    {
        let (code, error) = failed(&gateway, &arguments, "");
        assert_eq!(code, 1, "{arguments:?}");
        assert!(error.contains("`password_login` is false"), "{error}");
    }
    assert!(!done(&gateway, &["user", "list"], "").contains("bob"), "nobody was added");
}

/// Tokens with all of them would not fit into a cookie, or be longer than the gateway accepts.
#[tokio::test]
async fn the_roles_of_an_account_fit_into_a_cookie() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let names = |count: usize| (0..count).map(|at| format!("{at:0>63}")).collect::<Vec<_>>();
    let set = |roles: &[String]| {
        let mut arguments = vec!["user", "set-roles", "ann@example.com"];
        arguments.extend(roles.iter().map(String::as_str));
        portcullis(&gateway, &arguments, "")
    };
    let (code, _, error) = set(&names(16));
    assert_eq!(code, 0, "{error}");
    let access = gateway.login("ann@example.com").await.access;
    assert_eq!(gateway.reaches(&access).await, 200);
    assert!(access.len() < 4096 - 200, "{}", access.len());
    let (code, _, error) = set(&names(17));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("the roles have 1088 bytes in all, and 1024 is the most"), "{error}");
    let line = format!("email,password_hash,roles\nbob@example.com,,{}\n", names(17).join(" "));
    let (code, _, error) = portcullis(&gateway, &["user", "import", "-"], &line);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("line 2: the roles have 1088 bytes in all"), "{error}");
}

#[tokio::test]
async fn keys_are_rotated_while_the_gateway_runs() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let before = gateway.login("ann@example.com").await;
    let published = || async {
        gateway.get("/auth/.well-known/jwks.json").send().await.json()["keys"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(published().await, 1);
    assert!(done(&gateway, &["key", "rotate"], "").contains("; it signs from "));
    assert_eq!(published().await, 2, "the command waits for the gateway");
    let list = done(&gateway, &["key", "list"], "");
    let states: Vec<&str> =
        list.lines().skip(1).map(|line| line.rsplit("  ").next().unwrap()).collect();
    assert_eq!(states, ["signs", "published, not signing yet"], "{list}");
    assert_eq!(gateway.reaches(&before.access).await, 200);

    done(&gateway, &["key", "rotate", "--compromised"], "");
    let login = gateway.login("ann@example.com").await;
    assert_eq!(gateway.reaches(&login.access).await, 200, "a login is good at once");
    gateway.get("/reports").bearer(&before.access).send().await.is(401, "token_key_unknown");
    assert_eq!(published().await, 1);
    let after = Tokens::of(&gateway.refresh(&before.refresh).await);
    assert_eq!(gateway.reaches(&after.access).await, 200, "the session goes on");
}

/// `explain` agrees with the gateway for the built-in issuer too: its keys are in the store, and
/// its endpoints require callers.
#[tokio::test]
async fn explain_agrees_with_the_gateway() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let forged = format!("{}A", tokens.access);
    for (method, path, token) in [
        ("GET", "/reports", None),
        ("GET", "/reports", Some(&tokens.access)),
        ("GET", "/reports", Some(&forged)),
        ("GET", "/auth/me", None),
        ("GET", "/auth/me", Some(&tokens.access)),
        ("GET", "/auth/me", Some(&forged)),
        ("GET", "/auth/login", None),
        ("PUT", "/auth/login", None),
        ("GET", "/auth/nope", None),
        ("POST", "/auth/logout-all", None),
        ("GET", "/auth/.well-known/jwks.json", Some(&forged)),
    ] {
        let mut arguments = vec!["explain", method, path, "--json"];
        let mut request = gateway.request(method, path);
        if let Some(token) = token {
            arguments.extend(["--token", token]);
            request = request.bearer(token);
        }
        let output: Value = serde_json::from_str(&done(&gateway, &arguments, "")).unwrap();
        let answered = request.send().await;
        assert_eq!(output["status"], answered.status, "{method} {path}: {output}");
        if answered.status != 200 {
            assert_eq!(output["reason"], answered.reason(), "{method} {path}");
        }
    }
    // A navigation is redirected, and other origins are refused.
    for (arguments, status, reason) in [
        (
            &["GET", "/auth/sessions", "-H", "Sec-Fetch-Mode: navigate"][..],
            303,
            "credentials_missing",
        ),
        (&["POST", "/auth/login", "-H", "Origin: http://evil.test"], 403, "origin_foreign"),
        (
            &["GET", "/auth/me", "--issuer", "identity", "--claims", "{\"sub\":\"u-1\"}"],
            200,
            "public",
        ),
        (
            &["GET", "/auth/me", "--issuer", "corp", "--claims", "{\"sub\":\"u-1\"}"],
            403,
            "issuer_not_allowed",
        ),
    ] {
        let output = done(&gateway, &[&["explain", "--json"], arguments].concat(), "");
        let output: Value = serde_json::from_str(&output).unwrap();
        assert_eq!(
            (&output["status"], &output["reason"]),
            (&status.into(), &reason.into()),
            "{output}"
        );
    }
}

/// The effect of a command is complete in the gateway when the command ends, and a login after that
/// gets a valid token.
#[tokio::test]
async fn a_command_ends_when_the_gateway_has_read_the_change() {
    let mut gateway = Gateway::start(&format!("server.workers = 4\n{}", open(""))).await;
    let id = gateway.register("ann@example.com").await["id"].as_str().unwrap().to_owned();
    for arguments in [
        &["revoke", "--subject", &id][..],
        &["user", "set-roles", "ann@example.com", "user"],
        &["revoke", "--subject", &id, "--issuer", "identity"],
        &["user", "end-sessions", "ann@example.com"],
        &["revoke", "--subject", &id],
    ] {
        let tokens = gateway.login("ann@example.com").await;
        assert_eq!(gateway.reaches(&tokens.access).await, 200);
        done(&gateway, arguments, "");
        is_dead(&gateway, &tokens.access).await;
        let next = gateway.login("ann@example.com").await;
        for _ in 0..8 {
            assert_eq!(gateway.reaches(&next.access).await, 200, "{arguments:?}");
        }
    }
    // A command does not wait for a killed gateway, whether or not another one runs.
    let tokens = gateway.login("ann@example.com").await;
    gateway.kill_and_restart().await;
    let started = std::time::Instant::now();
    done(&gateway, &["user", "end-sessions", "ann@example.com"], "");
    is_dead(&gateway, &tokens.access).await;
    gateway.signal("KILL");
    gateway.exited().await;
    done(&gateway, &["user", "end-sessions", "ann@example.com"], "");
    assert!(started.elapsed() < crate::harness::PATIENCE, "{:?}", started.elapsed());
    let beside = std::fs::read_dir(gateway.path(".")).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains("-gateway-")
    });
    assert_eq!(beside.count(), 0, "nothing is left of those that were killed");
}

/// If a gateway does not respond, for example because it is stopped, the command gives up and
/// reports it.
#[tokio::test]
async fn a_command_reports_a_gateway_that_does_not_respond() {
    let gateway = Gateway::start(&open("")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    gateway.freeze().await;
    let (code, output, warning) = portcullis(&gateway, &["user", "disable", "ann@example.com"], "");
    assert!(code == 1 && output.starts_with("disabled ann@example.com"), "{output}");
    let unread = "error: it is done, but a gateway that runs on this store has not read it within 2 seconds;";
    assert!(warning.starts_with(unread) && warning.contains("`/readyz`"), "{warning}");
    gateway.signal("CONT");
    within(async { while gateway.reaches(&tokens.access).await == 200 {} }).await;
    is_dead(&gateway, &tokens.access).await;
}

/// Imported hashes have another cost than current ones. Soon after the import, an address without
/// an account takes as long as one of them.
#[tokio::test]
async fn login_times_do_not_reveal_imported_accounts() {
    let gateway =
        Gateway::start(&format!("server.trusted_proxies = ['127.0.0.1/32']\n{}", open(""))).await;
    let hash = bcrypt::hash(PASSWORD, 12).unwrap();
    done(
        &gateway,
        &["user", "import", "-"],
        &(0..100).fold("email,password_hash\n".to_owned(), |lines, index| {
            lines + &format!("ann{index}@example.com,{hash}\n")
        }),
    );
    // From a new client address each time, since failures are also limited by address.
    let time_of = async |email: &str, address: usize| {
        let login = serde_json::json!({ "email": email, "password": "another password" });
        let request = gateway.post("/auth/login", &login);
        let request = request.header("X-Forwarded-For", &format!("198.51.100.{address}"));
        let began = std::time::Instant::now();
        request.send().await.is(401, "login_failed");
        began.elapsed()
    };
    // Alternates with known addresses, since the load of the machine varies and hashing has a low
    // priority.
    let alike = async {
        let mut alike = 0;
        // Each account is used once, since its failures are limited.
        for index in 0.. {
            let unknown = time_of(&format!("nobody{index}@example.com"), 2 * index).await;
            let known = time_of(&format!("ann{index}@example.com"), 2 * index + 1).await;
            alike = if unknown * 2 > known { alike + 1 } else { 0 };
            if alike == 3 {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE * 4, alike)
        .await
        .expect("an unknown address takes as long as a known one");
}

/// What an operator does is found where everything else is: in the log of the gateway.
#[tokio::test]
async fn commands_leave_audit_events_in_the_log() {
    let gateway = Gateway::start(&open("totp = true")).await;
    let ann = "ann@example.com";
    let said = done(&gateway, &["user", "add", ann, "--password-stdin"], PASSWORD);
    let id = said.split('`').nth(1).unwrap().to_owned();
    let mark = gateway.log().mark();
    for command in [
        &["set-roles", ann, "admin"][..],
        &["set-name", ann, "Ann"],
        &["disable", ann],
        &["enable", ann],
        &["end-sessions", ann],
        &["reset-link", ann],
        &["token", "add", ann, "--name", "backup"],
        &["token", "revoke", ann, "backup"],
        &["remove-totp", ann],
        &["set-email", ann, "eve@example.com"],
        &["end-sessions", "--all"],
        &["delete", "eve@example.com", "--yes"],
    ] {
        let (code, _, error) = portcullis(&gateway, &[&["user"], command].concat(), "");
        assert_eq!(code, 0, "{command:?}: {error}");
    }
    let is = |line: &Value, message: &str| line["message"] == message;
    let last = gateway.log().after(mark, "deletion", |line| is(line, "account_deleted")).await;
    let mut members: Vec<&String> = last.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["account", "at", "level", "message", "timestamp", "uid"], "{last}");
    assert_eq!(
        (last["account"].as_str(), last["level"].as_str()),
        (Some(id.as_str()), Some("info"))
    );
    assert!(last["uid"].is_u64() && last["at"].as_str().unwrap().ends_with('Z'), "{last}");
    let lines = gateway.log().lines();
    let events: Vec<&str> = lines
        .iter()
        .filter(|line| line["uid"].is_u64())
        .map(|line| line["message"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        [
            "registered",
            "roles_changed",
            "name_changed",
            "account_disabled",
            "account_enabled",
            "logged_out_everywhere",
            "password_reset_asked",
            "token_created",
            "token_revoked",
            "email_changed",
            "logged_out_everywhere",
            "account_deleted",
        ],
        "a second factor that was not there was not removed"
    );
    let all = lines.iter().find(|line| line["accounts"] == 1 && line["account"].is_null());
    assert!(all.is_some_and(|line| is(line, "logged_out_everywhere")), "{all:?}");
    assert!(!lines.iter().any(|line| line["uid"].is_u64() && line.to_string().contains('@')));
}
