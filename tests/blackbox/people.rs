//! People look after their own account (CONTRACT §15.7), and log in step by step.

use std::time::Duration;

use crate::by_mail::{mails, sqlite, token};
use crate::harness::client::Request;
use crate::harness::{Gateway, Response};
use crate::pages::{ACCOUNT_PAGES, PASSWORD, SITE, cookies, is_page, page, post_as, register};
use crate::revocation::hold;
use crate::second_factor::{base32, code};

async fn log_in(gateway: &Gateway, more: &[(&str, &str)], jar: &str) -> Response {
    let fields = [("email", "ann@example.com"), ("password", PASSWORD)];
    post_as(gateway, "/auth/login", &[&fields, more].concat(), jar).await
}

/// The value of a hidden field.
fn hidden(html: &str, name: &str) -> String {
    let field = format!("name=\"{name}\" value=\"");
    html.split(&field).nth(1).unwrap().split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn an_account_is_changed_and_deleted_on_its_pages() {
    let gateway = Gateway::start(SITE).await;
    let jar = register(&gateway, "ann@example.com").await;
    let overview = async || page(&gateway, "/auth/account", &jar).await;
    let html = is_page(&overview().await, 200, "Your account");
    assert!(html.contains("ann@example.com") && !html.contains("Two-factor"), "{html}");
    let named = post_as(&gateway, "/auth/account/name", &[("name", " Ann <b> ")], &jar).await;
    assert_eq!((named.status, named.header("location")), (303, Some("/auth/account?done=changed")));
    assert!(overview().await.text().contains("Ann &#60;b&#62;"), "{:?}", overview().await);
    let form = page(&gateway, "/auth/account/name", &jar).await.text();
    assert!(form.contains("value=\"Ann &#60;b&#62;\""), "{form}");
    let long = "a".repeat(201);
    let refused = post_as(&gateway, "/auth/account/name", &[("name", &long)], &jar).await;
    is_page(&refused, 400, "Error: Change your name");

    let refused = post_as(&gateway, "/auth/account/email", &[("email", "nothing")], &jar).await;
    let html = is_page(&refused, 400, "Error: Change your e-mail address");
    assert!(html.contains("id=\"email-wrong\""), "{html}");
    let asked =
        post_as(&gateway, "/auth/account/email", &[("email", "eve@example.com")], &jar).await;
    assert_eq!(asked.header("location"), Some("/auth/account?done=email_asked"));
    let sent = mails(&gateway, 2).await;
    let link = "https://app.test/auth/email/change?token=";
    let token = token(sent.iter().find(|mail| mail.contains(link)).unwrap(), link);
    let path = format!("/auth/email/change?token={token}");
    is_page(&page(&gateway, &path, "").await, 200, "Confirm your new e-mail address");
    let wrong = [("token", token.as_str()), ("password", "Wr0ng-guess!")];
    let refused = post_as(&gateway, "/auth/email/change", &wrong, "").await;
    is_page(&refused, 401, "Error: Confirm your new e-mail address");
    let right = [("token", token.as_str()), ("password", PASSWORD)];
    let moved = post_as(&gateway, "/auth/email/change", &right, "").await;
    assert_eq!(moved.header("location"), Some("/auth/account?done=email"));
    is_page(&page(&gateway, &path, "").await, 400, "Error: Confirm your new e-mail address");

    let login = [("email", "eve@example.com"), ("password", PASSWORD)];
    let jar = cookies(&post_as(&gateway, "/auth/login", &login, "").await);
    let same = [("current_password", PASSWORD), ("new_password", PASSWORD)];
    let refused = post_as(&gateway, "/auth/password/change", &same, &jar).await;
    let html = is_page(&refused, 422, "Error: Change your password");
    assert!(html.contains("the same as the current one"), "{html}");
    let refused =
        post_as(&gateway, "/auth/account/delete", &[("password", "Wr0ng-guess!")], &jar).await;
    is_page(&refused, 401, "Error: Delete your account");
    let deleted =
        post_as(&gateway, "/auth/account/delete", &[("password", PASSWORD), ("code", "")], &jar)
            .await;
    assert_eq!(deleted.header("location"), Some("/auth/login?done=deleted"));
    assert_eq!(gateway.get("/auth/me").header("Cookie", &jar).send().await.status, 401);
    let told = page(&gateway, "/auth/login?done=deleted", "").await.text();
    assert!(told.contains("Your account was deleted."), "{told}");
}

#[tokio::test]
async fn a_login_with_two_factors_asks_for_the_password_once() {
    let gateway = Gateway::start(&SITE.replace("registration", "totp = true, registration")).await;
    let jar = register(&gateway, "ann@example.com").await;
    let begun =
        post_as(&gateway, "/auth/totp", &[("current_password", PASSWORD)], &jar).await.text();
    let secret = begun.split("class=\"secret\">").nth(1).unwrap().split('<').next().unwrap();
    let secret = base32(&secret.replace(' ', ""));
    let now = code(&secret, 0);
    let on = post_as(&gateway, "/auth/totp/confirm", &[("code", &now)], &jar).await;
    is_page(&on, 200, "Save your recovery codes");
    let mail = mails(&gateway, 1).await.remove(0);
    assert!(mail.contains("Two-factor login was turned on"), "{mail}");
    // A stranger who turned it on has the app, so a reset is not enough to log in again.
    assert!(mail.contains("ask the administrator of Example to turn two-factor"), "{mail}");

    let asked = log_in(&gateway, &[("return_to", "/reports")], "").await;
    let html = is_page(&asked, 401, "Enter your code");
    let shown_next = asked.headers("set-cookie").concat();
    assert!(shown_next.starts_with("__Host-portcullis-again=reason=code_required&"));
    assert!(
        !shown_next.contains("__Host-portcullis=") && !html.contains("type=\"password\""),
        "{html}"
    );
    let ticket = hidden(&html, "ticket");
    // A browser shows the same page at once, and once only.
    assert_eq!(asked.header("refresh"), Some("0; url=/auth/login?return_to=%2Freports"));
    let jar_of_login = cookies(&asked);
    let again = page(&gateway, "/auth/login?return_to=%2Freports", &jar_of_login).await;
    assert_eq!(hidden(&again.text(), "ticket"), ticket, "{again:?}");
    assert!(again.headers("set-cookie").concat().contains("Max-Age=0"), "{again:?}");
    let with_code = async |email: &str, ticket: &str, code: &str| {
        let fields =
            [("email", email), ("ticket", ticket), ("code", code), ("return_to", "/reports")];
        post_as(&gateway, "/auth/login/code", &fields, "").await
    };
    let next = code(&secret, 1);
    for (email, ticket, code) in [
        ("ann@example.com", ticket.as_str(), "000000"),
        // The limits count the address of the form.
        ("bob@example.com", ticket.as_str(), next.as_str()),
    ] {
        let html = is_page(&with_code(email, ticket, code).await, 401, "Error: Enter your code");
        assert!(html.contains("The code is wrong"), "{html}");
    }
    let done = with_code("ann@example.com", &ticket, &next).await;
    assert_eq!((done.status, done.header("location")), (303, Some("/reports")));
    assert_eq!(done.headers("set-cookie").len(), 2);

    // A ticket dies with the password that it is for; new recovery codes ask for a second factor.
    let jar = cookies(&done);
    let html = log_in(&gateway, &[], "").await.text();
    let fields = [("current_password", PASSWORD), ("code", "")];
    let refused = post_as(&gateway, "/auth/totp/codes", &fields, &jar).await;
    is_page(&refused, 401, "Error: Get new recovery codes");
    let out = post_as(&gateway, "/auth/logout-all", &[], &jar).await;
    assert_eq!(out.status, 303);
    let late = with_code("ann@example.com", &hidden(&html, "ticket"), &code(&secret, 1)).await;
    is_page(&late, 401, "Error: Enter your code");
}

/// The login waits to store a better hash while the password is changed, as by another gateway.
#[tokio::test]
async fn a_login_with_the_old_password_gets_no_ticket_for_the_new_one() {
    let gateway = Gateway::start(&SITE.replace("registration", "totp = true, registration")).await;
    let jar = register(&gateway, "ann@example.com").await;
    let begun = post_as(&gateway, "/auth/totp", &[("current_password", PASSWORD)], &jar).await;
    let begun = begun.text();
    let secret = begun.split("class=\"secret\">").nth(1).unwrap().split('<').next().unwrap();
    let secret = base32(&secret.replace(' ', ""));
    let fields = [("code", &*code(&secret, 0))];
    is_page(
        &post_as(&gateway, "/auth/totp/confirm", &fields, &jar).await,
        200,
        "Save your recovery codes",
    );
    let database = gateway.path("portcullis.db");
    let weak = bcrypt::hash(PASSWORD, 4).unwrap();
    let mut wait = Duration::from_millis(100);
    let html = loop {
        sqlite(&database, &format!("UPDATE accounts SET password = '{weak}'")).await;
        let mut changing = hold(database.to_str().unwrap()).await;
        let change = async {
            // Too short: the login finds the new password, and it is tried again.
            tokio::time::sleep(wait).await;
            let change = "UPDATE accounts SET generation = generation + 1, password = 'new'";
            for sql in [change, "COMMIT"] {
                sqlx::query(sql).execute(&mut changing).await.unwrap();
            }
        };
        let (asked, ()) = tokio::join!(log_in(&gateway, &[], ""), change);
        let html = asked.text();
        if html.contains("name=\"ticket\"") {
            break html;
        }
        wait *= 4;
        assert!(wait < Duration::from_secs(5), "{asked:?}");
    };
    let (ticket, code) = (hidden(&html, "ticket"), code(&secret, 1));
    let fields = [("email", "ann@example.com"), ("ticket", &*ticket), ("code", &*code)];
    let late = post_as(&gateway, "/auth/login/code", &fields, "").await;
    is_page(&late, 401, "Error: Enter your code");
    assert!(late.headers("set-cookie").iter().all(|cookie| !cookie.contains("__Host-portcullis=")));
}

#[tokio::test]
async fn a_login_replaces_the_session_of_its_browser_and_lasts_if_it_is_to() {
    let gateway = Gateway::start(SITE).await;
    let first = register(&gateway, "ann@example.com").await;
    let kept = log_in(&gateway, &[("keep", "true")], &first).await;
    assert!(kept.headers("set-cookie").iter().all(|cookie| cookie.contains("Max-Age=")));
    assert_eq!(gateway.get("/auth/me").header("Cookie", &first).send().await.status, 401);
    let jar = cookies(&kept);
    let sessions = gateway.get("/auth/sessions").header("Cookie", &jar).send().await.json();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1, "{sessions}");

    let short = log_in(&gateway, &[], &jar).await;
    let is_short = |response: &Response| {
        response.headers("set-cookie").iter().all(|cookie| !cookie.contains("Max-Age"))
    };
    assert!(is_short(&short), "{short:?}");
    // It stays so when it is renewed.
    let refreshed = post_as(&gateway, "/auth/refresh", &[], &cookies(&short)).await;
    assert!(refreshed.headers("set-cookie").len() == 2 && is_short(&refreshed), "{refreshed:?}");
    let login = page(&gateway, "/auth/login", "").await.text();
    assert!(
        login.contains("type=\"checkbox\" value=\"true\" autocomplete=\"off\" checked"),
        "{login}"
    );
}

#[tokio::test]
async fn a_login_from_a_new_browser_is_told_by_mail() {
    let gateway = Gateway::start(SITE).await;
    register(&gateway, "ann@example.com").await;
    log_in(&gateway, &[], "").await;
    let from = async |user_agent: &str| {
        let login = serde_json::json!({ "email": "ann@example.com", "password": PASSWORD });
        let request = gateway.request("POST", "/auth/login").header("User-Agent", user_agent);
        let request = request.header("Content-Type", "application/json");
        assert_eq!(request.body(login.to_string()).send().await.status, 200);
    };
    from("curl/8.14.1").await;
    from("curl/8.14.1").await;
    from("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0").await;
    from("Mozilla/5.0 (X11; Linux x86_64; rv:141.0) Gecko/20100101 Firefox/141.0").await;
    let sent = mails(&gateway, 2).await;
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(sent[0].contains("https://app.test/auth/sessions"), "{}", sent[0]);
    assert!(sent[0].contains("revoke every access token"), "{}", sent[0]);
    for login in ["Login from: curl/8.14.1, 127.0.0.1", "Login from: Firefox on Linux, 127.0.0.1"] {
        assert!(sent.iter().any(|mail| mail.contains(login)), "{sent:?}");
    }
}

#[tokio::test]
async fn pages_and_mails_are_in_the_language_of_their_reader() {
    let config = SITE.replace("registration", "totp = true, registration");
    let gateway = Gateway::start(&config).await;
    let german = |request: Request| {
        request.header("Accept", "text/html").header("Accept-Language", "de-CH, en;q=0.5")
    };
    let jar = register(&gateway, "ann@example.com").await;
    let others = [
        "/auth/login",
        "/auth/register",
        "/auth/password/forgot",
        "/auth/totp",
        "/auth/password/reset?token=abc",
        "/auth/nothing",
    ];
    for path in others.into_iter().chain(ACCOUNT_PAGES) {
        let html = german(gateway.get(path)).header("Cookie", &jar).send().await.text();
        assert!(html.contains("<html lang=\"de\" dir=\"ltr\">"), "{path}: {html}");
        for english in [" the ", "Log in", "Log out", "Password", "Your ", "Error"] {
            assert!(!html.contains(english), "{path} says {english}: {html}");
        }
    }
    let form = german(gateway.request("POST", "/auth/password/forgot"))
        .header("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(form.body("email=ann%40example.com").send().await.status, 303);
    let mail = mails(&gateway, 1).await.remove(0);
    assert!(mail.contains("innerhalb von 30 Minuten"), "{mail}");
}
