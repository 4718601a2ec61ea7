//! Actions by mail: a new password, and confirmation of addresses (CONTRACT §5, rule 15).

use std::path::Path;

use serde_json::{Value, json};

use crate::commands::{done, portcullis};
use crate::harness::{Gateway, Response};

/// An issuer that writes mail to a folder. Its route has a high limit, so that tests are not slowed
/// down.
const MAILING: &str = "
[store]
database = 'sqlite:portcullis.db'
key = { file = 'portcullis.key' }
[identity]
issuer = 'http://app.test/auth'
registration = 'open'
mail = { folder = 'mail' }
[limit.many]
requests = 100000
per = '1m'
[[route]]
path = '/auth/*'
identity = true
limit = 'many'
[[route]]
path = '/*'
upstream = 'app'
";

const PASSWORD: &str = "correct horse battery staple";

async fn post(gateway: &Gateway, path: &str, body: Value) -> Response {
    let request =
        gateway.request("POST", &format!("/auth{path}")).header("Content-Type", "application/json");
    request.body(body.to_string()).send().await
}

async fn register(gateway: &Gateway, email: &str) -> Response {
    post(gateway, "/register", json!({ "email": email, "password": PASSWORD })).await
}

async fn login(gateway: &Gateway, email: &str, password: &str) -> Response {
    post(gateway, "/login", json!({ "email": email, "password": password })).await
}

/// Waits until this many messages were sent, and returns them in order.
pub async fn mails(gateway: &Gateway, count: usize) -> Vec<String> {
    let is_sent = |line: &Value| line["message"] == "mail_sent";
    let mut mark = 0;
    for _ in 0..count {
        gateway.log().after(mark, "the messages have left", is_sent).await;
        mark += 1 + gateway.log().lines()[mark..].iter().position(is_sent).unwrap();
    }
    read(&gateway.path("mail"))
}

fn read(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// The token of the link in a message.
pub fn token(mail: &str, link: &str) -> String {
    let start = mail.find(link).unwrap_or_else(|| panic!("no {link} in {mail}")) + link.len();
    let end = |byte: char| byte.is_whitespace() || byte == '&';
    mail[start..].split(end).next().unwrap().to_owned()
}

const RESET: &str = "http://app.test/auth/password/reset?token=";
const VERIFY: &str = "http://app.test/auth/email/verify?token=";

#[tokio::test]
async fn a_password_is_reset_by_mail() {
    let gateway = Gateway::start(MAILING).await;
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    let before = login(&gateway, "ann@example.com", PASSWORD).await.json();
    let bearer = before["access_token"].as_str().unwrap();
    assert_eq!(gateway.get("/reports").bearer(bearer).send().await.status, 200);

    // Links point to the issuer's URL, whatever `Host` is.
    let request = gateway
        .request("POST", "/auth/password/forgot")
        .header("Content-Type", "application/json")
        .host("evil.example");
    let asked = request.body(json!({ "email": " ANN@Example.com" }).to_string()).send().await;
    assert_eq!(
        (asked.status, asked.body.len(), asked.header("cache-control")),
        (202, 0, Some("no-store"))
    );
    let mails_sent = mails(&gateway, 1).await;
    assert!(
        mails_sent[0].contains("\r\nTo: ann@example.com\r\n") && !mails_sent[0].contains("evil"),
        "{}",
        mails_sent[0]
    );
    let token = token(&mails_sent[0], RESET);

    // A rejected password does not use up the link.
    let weak =
        post(&gateway, "/password/reset", json!({ "token": token, "password": "password" })).await;
    weak.is(422, "password_rejected");
    let reset = json!({ "token": token, "password": "another horse battery staple" });
    let done = post(&gateway, "/password/reset", reset.clone()).await;
    assert_eq!((done.status, done.body.len()), (204, 0));
    post(&gateway, "/password/reset", reset).await.is(400, "link_invalid");

    gateway.get("/reports").bearer(bearer).send().await.is(401, "token_revoked");
    let refresh = json!({ "refresh_token": before["refresh_token"] });
    post(&gateway, "/refresh", refresh).await.is(401, "invalid_grant");
    login(&gateway, "ann@example.com", PASSWORD).await.is(401, "login_failed");
    let after = login(&gateway, "ann@example.com", "another horse battery staple").await.json();
    assert_eq!(
        gateway.get("/reports").bearer(after["access_token"].as_str().unwrap()).send().await.status,
        200
    );

    // The owner is notified, and no event contains a secret.
    let mails_sent = mails(&gateway, 2).await;
    assert!(
        mails_sent[1].contains("was changed")
            && mails_sent[1].contains("http://app.test/auth/password/forgot"),
        "{}",
        mails_sent[1]
    );
    gateway
        .log()
        .until("the reset is logged", |line| {
            line["message"] == "password_reset" && line["account"].is_string()
        })
        .await;
    assert!(gateway.log().lines().iter().all(|line| !line.to_string().contains(&token)));
}

#[tokio::test]
async fn account_requests_reveal_nothing() {
    let gateway = Gateway::start(MAILING).await;
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    let known = post(&gateway, "/password/forgot", json!({ "email": "ann@example.com" })).await;
    let unknown = post(&gateway, "/password/forgot", json!({ "email": "bob@example.com" })).await;
    let without_date = |response: &Response| {
        let mut headers = response.headers.clone();
        headers.retain(|(name, _)| {
            !["date", "x-request-id"].contains(&name.to_ascii_lowercase().as_str())
        });
        (response.status, headers, response.body.clone())
    };
    assert_eq!(without_date(&known), without_date(&unknown));
    assert_eq!(mails(&gateway, 1).await.len(), 1);
    // An invalid address gets the same response as an unknown one; an invalid object does not.
    for path in ["/password/forgot", "/email/resend"] {
        for address in ["nobody", "", "a@b@c"] {
            let malformed = post(&gateway, path, json!({ "email": address })).await;
            assert_eq!(without_date(&malformed), without_date(&unknown), "{address}");
        }
        for body in [json!({}), json!([]), json!({ "email": 1 })] {
            post(&gateway, path, body).await.is(400, "request_invalid");
        }
    }
    // A person may have mistyped it, so the page says so.
    let form = gateway.request("POST", "/auth/password/forgot").header("Accept", "text/html");
    let page = form
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body("email=ann")
        .send()
        .await;
    assert!(page.status == 400 && page.text().contains("Enter an e-mail address"), "{page:?}");
    assert_eq!(mails(&gateway, 1).await.len(), 1);
    for token in ["", "x", &"A".repeat(43)] {
        post(&gateway, "/password/reset", json!({ "token": token, "password": PASSWORD }))
            .await
            .is(400, "link_invalid");
    }
}

#[tokio::test]
async fn an_address_is_confirmed_before_its_owner_logs_in() {
    let config = MAILING.replace("mail =", "verify_email = true\nmail =");
    let gateway = Gateway::start(&config).await;
    let first = register(&gateway, "ann@example.com").await;
    assert_eq!(first.status, 201);
    // A right password is not a failure, or the sixth would exceed the limit.
    for _ in 0..6 {
        login(&gateway, "ann@example.com", PASSWORD).await.is(403, "email_unverified");
    }
    login(&gateway, "ann@example.com", "wrong").await.is(401, "login_failed");
    let mail = mails(&gateway, 1).await.remove(0);
    let token = token(&mail, VERIFY);
    // A link works only for its own purpose.
    post(&gateway, "/password/reset", json!({ "token": token, "password": PASSWORD }))
        .await
        .is(400, "link_invalid");
    // Mail scanners follow links, which must not use them up.
    gateway.get(&format!("/auth/email/verify?token={token}")).send().await;
    // The link alone confirms nothing, since a stranger may have chosen the password.
    let verify = async |body: Value| post(&gateway, "/email/verify", body).await;
    let both = json!({ "token": token, "password": PASSWORD, "new_password": PASSWORD });
    for body in [json!({ "token": token }), both] {
        verify(body).await.is(400, "request_invalid");
    }
    verify(json!({ "token": token, "password": "wrong" })).await.is(401, "login_failed");
    login(&gateway, "ann@example.com", PASSWORD).await.is(403, "email_unverified");
    let right = json!({ "token": token, "password": PASSWORD });
    assert_eq!(verify(right.clone()).await.status, 204);
    let again = verify(right).await;
    again.is(400, "link_invalid");
    assert_eq!(again.json()["detail"], "The address is already confirmed.");
    assert_eq!(login(&gateway, "ann@example.com", PASSWORD).await.status, 200);

    // A second registration of the address gets the same response as the first, and the owner gets
    // a mail.
    let again = register(&gateway, "ann@example.com").await;
    let members = |response: &Response| {
        response.json().as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!((again.status, members(&again)), (201, members(&first)));
    let mails_sent = mails(&gateway, 2).await;
    assert!(mails_sent[1].contains("it already exists"), "{}", mails_sent[1]);
    assert!(!self::token(&mails_sent[1], RESET).is_empty(), "it can be used at once");
    assert_eq!(
        login(&gateway, "ann@example.com", PASSWORD).await.status,
        200,
        "nothing has changed"
    );

    // A new link can be requested, and is sent only if it is needed.
    assert_eq!(register(&gateway, "bob@example.com").await.status, 201);
    mails(&gateway, 3).await;
    for email in ["ann@example.com", "nobody@example.com", "bob@example.com"] {
        assert_eq!(post(&gateway, "/email/resend", json!({ "email": email })).await.status, 202);
    }
    assert!(mails(&gateway, 4).await[3].contains("To: bob@example.com"));
}

/// With `verify_email`, a password chosen by a stranger never works.
#[tokio::test]
async fn registering_the_address_of_another_person_first_gains_nothing() {
    let config = MAILING.replace("mail =", "verify_email = true\nmail =");
    let gateway = Gateway::start(&config).await;
    let strangers = "a stranger has chosen this 5";
    let body = json!({ "email": "ann@example.com", "password": strangers });
    assert_eq!(post(&gateway, "/register", body).await.status, 201);
    let first = token(&mails(&gateway, 1).await[0], VERIFY);
    // The owner registers too, with another password. She gets a mail to confirm the address.
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    let second = token(&mails(&gateway, 2).await[1], VERIFY);
    let verify = async |token: &str, name: &str, password: &str| {
        post(&gateway, "/email/verify", json!({ "token": token, name: password })).await
    };
    verify(&second, "password", PASSWORD).await.is(401, "login_failed");
    verify(&second, "new_password", "password").await.is(422, "password_rejected");
    assert_eq!(verify(&second, "new_password", PASSWORD).await.status, 204);
    login(&gateway, "ann@example.com", strangers).await.is(401, "login_failed");
    assert_eq!(login(&gateway, "ann@example.com", PASSWORD).await.status, 200);
    // No other link sets a password for a confirmed address.
    for name in ["password", "new_password"] {
        verify(&first, name, strangers).await.is(400, "link_invalid");
    }
    login(&gateway, "ann@example.com", strangers).await.is(401, "login_failed");
}

/// An address that somebody registers and does not confirm is still free for its owner, and for
/// operators.
#[tokio::test]
async fn a_registration_that_nobody_confirms_gives_way() {
    let config = MAILING.replace("mail =", "verify_email = true\nmail =");
    let gateway = Gateway::start(&config).await;
    let strangers = "a stranger has chosen this 5";
    let squat = async |name: &str| {
        let body = json!({ "email": format!("{name}@example.com"), "password": strangers });
        assert_eq!(post(&gateway, "/register", body).await.status, 201);
    };
    let note =
        |name: &str| format!("note: deleted an unconfirmed registration of {name}@example.com\n");
    for (name, command) in [
        ("ann", &["user", "add", "--password-stdin", "ann@example.com"][..]),
        ("bob", &["user", "invite", "bob@example.com"]),
        ("new", &["user", "set-email", "ann@example.com", "new@example.com"]),
    ] {
        squat(name).await;
        let (code, output, error) = portcullis(&gateway, command, PASSWORD);
        assert_eq!((code, error), (0, note(name)), "{output}");
        gateway.log().until("it is said", |line| line["message"] == "registration_dropped").await;
        login(&gateway, &format!("{name}@example.com"), strangers).await.is(401, "login_failed");
    }
    // Its owner opens a link that was mailed to the address.
    squat("own").await;
    let (access, _) = access(&gateway, "new@example.com").await;
    let body = json!({ "email": "own@example.com" });
    assert_eq!(as_owner(&gateway, "PATCH", body, &access).await.status, 200);
    let is_asked = |line: &Value| line["message"] == "mail_sent" && line["kind"] == "new_email";
    gateway.log().until("the link is mailed", is_asked).await;
    let all = read(&gateway.path("mail"));
    let mail = all.iter().find(|mail| mail.contains(CHANGE)).expect("a link, not a notice");
    let body = json!({ "token": token(mail, CHANGE), "password": PASSWORD });
    assert_eq!(post(&gateway, "/email/change", body).await.status, 204);
    login(&gateway, "own@example.com", strangers).await.is(401, "login_failed");
    assert_eq!(login(&gateway, "own@example.com", PASSWORD).await.status, 200);
}

/// A registration that is refused because no more mail can wait has made no account.
#[tokio::test]
async fn a_registration_without_room_for_its_mail_makes_no_account() {
    let config = MAILING.replace("mail =", "verify_email = true\nmail =");
    let gateway = Gateway::start(&config).await;
    let filling = "INSERT INTO mail_outbox (kind, email, requested_at, next_at, attempts, asked) \
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000) \
        SELECT 'invite', n || '@example.com', CAST(strftime('%s') AS INTEGER), CAST(strftime('%s') AS INTEGER) + 600, 1, 1 FROM numbers";
    sqlite(&gateway.path("portcullis.db"), filling).await;
    register(&gateway, "ann@example.com").await.is(503, "overloaded");
    assert_eq!(done(&gateway, &["user", "list", "--json"], ""), "[]\n");
    sqlite(&gateway.path("portcullis.db"), "DELETE FROM mail_outbox").await;
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
}

/// Nor can they be locked out by repeated registrations of their address.
#[tokio::test]
async fn registrations_cannot_fill_a_mailbox() {
    let config = MAILING.replace("mail =", "verify_email = true\nmail =");
    let gateway = Gateway::start(&config).await;
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    let token = token(&mails(&gateway, 1).await[0], VERIFY);
    let right = json!({ "token": token, "password": PASSWORD });
    assert_eq!(post(&gateway, "/email/verify", right).await.status, 204);
    for count in 2..=6 {
        assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
        assert_eq!(mails(&gateway, count).await.len(), count);
    }
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    gateway.log().until("the sixth is withheld", |line| line["message"] == "mail_withheld").await;
    assert_eq!(read(&gateway.path("mail")).len(), 6);
}

#[tokio::test]
async fn requests_of_others_cannot_fill_a_mailbox() {
    let gateway = Gateway::start(MAILING).await;
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    for count in 1..=5 {
        assert_eq!(
            post(&gateway, "/password/forgot", json!({ "email": "ann@example.com" })).await.status,
            202
        );
        assert_eq!(mails(&gateway, count).await.len(), count);
    }
    assert_eq!(
        post(&gateway, "/password/forgot", json!({ "email": "ann@example.com" })).await.status,
        202
    );
    gateway.log().until("the sixth is withheld", |line| line["message"] == "mail_withheld").await;
    assert_eq!(read(&gateway.path("mail")).len(), 5);
}

/// Nor do they keep an invitation from somebody whose address was registered by a stranger.
#[tokio::test]
async fn requests_of_others_withhold_no_invitation() {
    let config = MAILING.replace("mail =", "verify_email = true\nmail =");
    let gateway = Gateway::start(&config).await;
    assert_eq!(register(&gateway, "bob@example.com").await.status, 201);
    for count in 2..=6 {
        let body = json!({ "email": "bob@example.com" });
        assert_eq!(post(&gateway, "/password/forgot", body).await.status, 202);
        assert_eq!(mails(&gateway, count).await.len(), count);
    }
    let (code, ..) = portcullis(&gateway, &["user", "invite", "bob@example.com"], "");
    assert_eq!(code, 0);
    assert_eq!(mails(&gateway, 7).await.len(), 7);
}

#[tokio::test]
async fn unsent_mail_is_tried_again() {
    // A folder inside a file cannot be created.
    let setup = Gateway::setup(&MAILING.replace("'mail'", "'blocked/mail'")).file("blocked", "");
    let gateway = setup.start().await;
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    assert_eq!(
        post(&gateway, "/password/forgot", json!({ "email": "ann@example.com" })).await.status,
        202
    );
    let failed =
        gateway.log().until("it is logged", |line| line["message"] == "mail_not_sent").await;
    assert!(failed["cause"].as_str().unwrap().contains("/blocked/mail: "), "{failed}");
    std::fs::remove_file(gateway.path("blocked")).unwrap();
    // The gateway would retry after fifteen seconds; the test does not wait for that.
    let mark = gateway.log().mark();
    let database = gateway.path("portcullis.db");
    let sql = "UPDATE mail_outbox SET next_at = 0";
    sqlite(&database, sql).await;
    gateway.log().after(mark, "it leaves", |line| line["message"] == "mail_sent").await;
    assert_eq!(read(&gateway.path("blocked/mail")).len(), 1);
}

/// Also one whose time is ahead, from when the clock was.
#[tokio::test]
async fn unsent_mail_is_given_up_after_twenty_tries() {
    let setup = Gateway::setup(&MAILING.replace("'mail'", "'blocked/mail'")).file("blocked", "");
    let gateway = setup.start().await;
    assert_eq!(register(&gateway, "ann@example.com").await.status, 201);
    let ask = json!({ "email": "ann@example.com" });
    assert_eq!(post(&gateway, "/password/forgot", ask).await.status, 202);
    let is = |message: &'static str| move |line: &Value| line["message"] == message;
    gateway.log().until("it is tried", is("mail_not_sent")).await;
    let last = "UPDATE mail_outbox SET next_at = 0, attempts = 19, requested_at = 4000000000";
    sqlite(&gateway.path("portcullis.db"), last).await;
    let given_up = gateway.log().until("it is given up", is("mail_given_up")).await;
    assert_eq!(given_up["tries"], 20);
}

/// As if the clock were ahead for a moment.
#[tokio::test]
async fn mail_that_seems_too_old_waits_until_the_clock_is_right() {
    let gateway = Gateway::start(MAILING).await;
    for account in ["ann@example.com", "bob@example.com"] {
        assert_eq!(register(&gateway, account).await.status, 201);
    }
    let database = gateway.path("portcullis.db");
    let queue = "INSERT INTO mail_outbox (kind, email, requested_at, next_at, attempts, asked) \
        VALUES ('reset', 'ann@example.com', CAST(strftime('%s') AS INTEGER) - 18000, 0, 0, 1)";
    sqlite(&database, queue).await;
    let ask = json!({ "email": "bob@example.com" });
    assert_eq!(post(&gateway, "/password/forgot", ask).await.status, 202);
    assert!(mails(&gateway, 1).await[0].contains("bob@example.com"));
    sqlite(&database, "UPDATE mail_outbox SET requested_at = requested_at + 18000").await;
    assert!(mails(&gateway, 2).await.iter().any(|mail| mail.contains("To: ann@example.com")));
}

/// Runs a statement on the database of a running gateway.
pub async fn sqlite(database: &Path, sql: &str) {
    use sqlx::{Connection, Executor};
    let mut connection =
        sqlx::SqliteConnection::connect(&format!("sqlite:{}", database.display())).await.unwrap();
    connection.execute("PRAGMA busy_timeout = 5000").await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap();
    connection.close().await.unwrap();
}

const CHANGE: &str = "http://app.test/auth/email/change?token=";

/// Sends a request as the owner of an account, with an access token.
async fn as_owner(gateway: &Gateway, method: &str, body: Value, access: &str) -> Response {
    let request = gateway.request(method, "/auth/me").header("Content-Type", "application/json");
    request.bearer(access).body(body.to_string()).send().await
}

async fn access(gateway: &Gateway, email: &str) -> (String, Value) {
    let tokens = login(gateway, email, PASSWORD).await.json();
    (tokens["access_token"].as_str().unwrap().to_owned(), tokens["refresh_token"].clone())
}

#[tokio::test]
async fn a_new_address_counts_once_its_link_was_used_with_the_password() {
    let gateway = Gateway::start(MAILING).await;
    register(&gateway, "ann@example.com").await;
    register(&gateway, "bob@example.com").await;
    let (ann, refresh) = access(&gateway, "ann@example.com").await;
    let changed = as_owner(&gateway, "PATCH", json!({ "name": " Ann Ott " }), &ann).await;
    assert_eq!((changed.status, &changed.json()["name"]), (200, &"Ann Ott".into()));
    as_owner(&gateway, "PATCH", json!({ "email": "nothing" }), &ann)
        .await
        .is(400, "request_invalid");
    let changed =
        as_owner(&gateway, "PATCH", json!({ "email": "Ann.Ott@example.com" }), &ann).await;
    assert_eq!(changed.status, 200);
    let account = changed.json();
    assert_eq!(
        (&account["email"], &account["name"]),
        (&"ann@example.com".into(), &"Ann Ott".into()),
        "nothing counts yet"
    );
    let sent = mails(&gateway, 2).await;
    let to = |address: &str| {
        let line = format!("\r\nTo: {address}\r\n");
        sent.iter().find(|mail| mail.contains(&line)).unwrap()
    };
    assert!(to("ann@example.com").contains("/auth/password/forgot"), "the old one is told");
    let token = token(to("ann.ott@example.com"), CHANGE);
    let page = gateway.get(&format!("/auth/email/change?token={token}"));
    let page = page.header("Accept", "text/html").send().await;
    assert!(page.status == 200 && page.text().contains("name=\"password\""), "{page:?}");

    post(&gateway, "/email/change", json!({ "token": token })).await.is(400, "request_invalid");
    let wrong = json!({ "token": token, "password": "another horse battery staple" });
    post(&gateway, "/email/change", wrong).await.is(401, "login_failed");
    let right = json!({ "token": token, "password": PASSWORD });
    assert_eq!(post(&gateway, "/email/change", right.clone()).await.status, 204);
    post(&gateway, "/email/change", right).await.is(400, "link_invalid");
    gateway.get("/reports").bearer(&ann).send().await.is(401, "token_revoked");
    let next = post(&gateway, "/refresh", json!({ "refresh_token": refresh })).await.json();
    let ann = next["access_token"].as_str().unwrap();
    assert_eq!(
        gateway.get("/auth/me").bearer(ann).send().await.json()["email"],
        "ann.ott@example.com"
    );
    login(&gateway, "ann@example.com", PASSWORD).await.is(401, "login_failed");
    let sent = mails(&gateway, 3).await;
    assert!(sent[2].contains("\r\nTo: ann@example.com\r\n"), "{}", sent[2]);

    // That an address has an account is said to its owner only.
    let changed = as_owner(&gateway, "PATCH", json!({ "email": "bob@example.com" }), ann).await;
    assert_eq!(changed.status, 200);
    let sent = mails(&gateway, 5).await;
    let output = sent.iter().find(|mail| mail.contains("\r\nTo: bob@example.com\r\n")).unwrap();
    assert!(
        output.contains("already belongs to an account") && !output.contains("token="),
        "{output}"
    );

    // Who lost the account gets it back by mail, and an earlier link is void.
    as_owner(&gateway, "PATCH", json!({ "email": "eve@example.com" }), ann).await;
    let sent = mails(&gateway, 7).await;
    let eve = sent.iter().find(|mail| mail.contains("\r\nTo: eve@example.com\r\n")).unwrap();
    let eve = self::token(eve, CHANGE);
    post(&gateway, "/password/forgot", json!({ "email": "ann.ott@example.com" })).await;
    let sent = mails(&gateway, 8).await;
    let reset = self::token(&sent[7], RESET);
    let reset = json!({ "token": reset, "password": "another horse battery staple" });
    assert_eq!(post(&gateway, "/password/reset", reset).await.status, 204);
    let late = json!({ "token": eve, "password": "another horse battery staple" });
    post(&gateway, "/email/change", late).await.is(400, "link_invalid");
}

/// The link comes from the owner of the mailbox, the password must come from that of the account.
#[tokio::test]
async fn passwords_are_not_guessed_behind_a_link() {
    let gateway = Gateway::start(MAILING).await;
    register(&gateway, "ann@example.com").await;
    let (ann, _) = access(&gateway, "ann@example.com").await;
    as_owner(&gateway, "PATCH", json!({ "email": "thief@example.com" }), &ann).await;
    let sent = mails(&gateway, 2).await;
    let link = sent.iter().find(|mail| mail.contains(CHANGE)).unwrap();
    let guess = |password: &str| json!({ "token": token(link, CHANGE), "password": password });
    for _ in 0..5 {
        let wrong = guess("another horse battery staple");
        post(&gateway, "/email/change", wrong).await.is(401, "login_failed");
    }
    let limited = post(&gateway, "/email/change", guess(PASSWORD)).await;
    assert!(limited.header("retry-after").is_some(), "{limited:?}");
    limited.is(429, "rate_limited");
    let metric = gateway
        .metric_value("portcullis_rate_limited_total", &["limit=\"identity-login-account\""]);
    assert_eq!(metric.await, Some(1.0));
}

#[tokio::test]
async fn many_accounts_do_not_flood_a_mailbox() {
    let gateway = Gateway::start(MAILING).await;
    register(&gateway, "ann@example.com").await;
    for (victim, text) in
        [("ann@example.com", "already belongs to an account"), ("nobody@example.com", CHANGE)]
    {
        let before = read(&gateway.path("mail")).len();
        for number in 0..6 {
            let own = format!("{number}-{victim}");
            register(&gateway, &own).await;
            let (own, _) = access(&gateway, &own).await;
            as_owner(&gateway, "PATCH", json!({ "email": victim }), &own).await;
        }
        gateway.log().until("the last one", |line| line["message"] == "mail_withheld").await;
        let sent = mails(&gateway, before + 11).await;
        assert_eq!(sent.iter().filter(|mail| mail.contains(text)).count(), 5, "{sent:?}");
    }
}

#[tokio::test]
async fn people_export_and_delete_their_account() {
    let gateway = Gateway::start(MAILING).await;
    let id = register(&gateway, "ann@example.com").await.json()["id"].clone();
    let (ann, refresh) = access(&gateway, "ann@example.com").await;
    let export = gateway.get("/auth/me/export").bearer(&ann).send().await;
    assert_eq!(export.header("content-disposition"), Some("attachment; filename=\"account.json\""));
    let export = export.json();
    assert_eq!(
        (&export["account"]["id"], &export["sessions"]["sessions"][0]["current"]),
        (&id, &true.into())
    );

    as_owner(&gateway, "DELETE", json!({}), &ann).await.is(400, "request_invalid");
    let wrong = json!({ "password": "another horse battery staple" });
    as_owner(&gateway, "DELETE", wrong, &ann).await.is(401, "login_failed");
    let deleted = as_owner(&gateway, "DELETE", json!({ "password": PASSWORD }), &ann).await;
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    gateway.get("/reports").bearer(&ann).send().await.is(401, "token_revoked");
    post(&gateway, "/refresh", json!({ "refresh_token": refresh })).await.is(401, "invalid_grant");
    login(&gateway, "ann@example.com", PASSWORD).await.is(401, "login_failed");
    assert_ne!(register(&gateway, "ann@example.com").await.json()["id"], id);
    gateway.get("/reports").bearer(&ann).send().await.is(401, "token_revoked");
}

#[tokio::test]
async fn an_invitation_is_mailed_and_the_lost_address_is_told() {
    let gateway = Gateway::start(MAILING).await;
    let output = done(&gateway, &["user", "invite", "eve@example.com"], "");
    assert!(
        output.starts_with("invited eve@example.com with ") && !output.contains("token="),
        "{output}"
    );
    let sent = mails(&gateway, 1).await;
    let reset = json!({ "token": token(&sent[0], RESET), "password": PASSWORD });
    assert_eq!(post(&gateway, "/password/reset", reset).await.status, 204);
    assert_eq!(login(&gateway, "eve@example.com", PASSWORD).await.status, 200);
    mails(&gateway, 2).await;
    done(&gateway, &["user", "set-email", "eve@example.com", "eva@example.com"], "");
    let sent = mails(&gateway, 3).await;
    assert!(sent[2].contains("\r\nTo: eve@example.com\r\n"), "{}", sent[2]);
}
