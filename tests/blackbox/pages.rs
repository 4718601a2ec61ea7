//! The pages of the built-in issuer: their HTML, and in a real browser.

use std::fmt::Write as _;

use fantoccini::Locator;
use serde_json::{Value, json};

use crate::by_mail::{mails, token};
use crate::harness::certificates::authority;
use crate::harness::{Browser, Gateway, Response, Setup, Step, within};
use crate::second_factor::{base32, code};

/// With open registration, and only the limit that a test sets.
pub const SITE: &str =
    "identity = { issuer = 'https://app.test/auth', registration = 'open', mail = { folder = 'mail' }, brand = { name = 'Example' } }
limit.wide = { requests = 1000, per = '1s' }
route = [
    { path = '/auth/*', identity = true, limit = 'wide' },
    { path = '/*', upstream = 'app', token_from = ['header', 'cookie'] },
]";

pub const PASSWORD: &str = "correct-tuba-meadow-9";

fn encoded(fields: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (name, value) in fields {
        let value: String = value.bytes().fold(String::new(), |mut text, byte| {
            write!(text, "%{byte:02X}").unwrap();
            text
        });
        write!(body, "{name}={value}&").unwrap();
    }
    body
}

async fn post(gateway: &Gateway, path: &str, fields: &[(&str, &str)]) -> Response {
    post_as(gateway, path, fields, "").await
}

/// Sends a form as a browser does.
pub async fn post_as(
    gateway: &Gateway,
    path: &str,
    fields: &[(&str, &str)],
    cookies: &str,
) -> Response {
    let request = gateway
        .request("POST", path)
        .header("Accept", ACCEPT)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .header("Origin", "https://app.test")
        .header("Sec-Fetch-Site", "same-origin")
        .header("Sec-Fetch-Mode", "navigate")
        .header("Cookie", cookies);
    request.body(encoded(fields)).send().await
}

pub async fn page(gateway: &Gateway, path: &str, cookies: &str) -> Response {
    gateway
        .get(path)
        .header("Accept", ACCEPT)
        .header("Sec-Fetch-Mode", "navigate")
        .header("Cookie", cookies)
        .send()
        .await
}

/// The `Cookie` field that a browser would send.
pub fn cookies(response: &Response) -> String {
    let pairs: Vec<&str> = response
        .headers("set-cookie")
        .iter()
        .filter_map(|cookie| cookie.split(';').next())
        .collect();
    pairs.join("; ")
}

pub async fn register(gateway: &Gateway, email: &str) -> String {
    let registered =
        post(gateway, "/auth/register", &[("email", email), ("name", ""), ("password", PASSWORD)])
            .await;
    assert_eq!(registered.status, 303, "{registered:?}");
    cookies(&registered)
}

const ACCEPT: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// Asserts that a response is a page without active content that is never cached.
#[track_caller]
pub fn is_page(response: &Response, status: u16, title: &str) -> String {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(response.header("referrer-policy"), Some("strict-origin"));
    let policy = response.header("content-security-policy").unwrap();
    for wanted in [
        "default-src 'none'",
        "style-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(wanted) && !policy.contains("unsafe"), "{policy}");
    }
    let html = String::from_utf8(response.body.clone()).unwrap();
    // Only a form that redirects to the application may submit anywhere.
    let leads_on = ["/auth/login", "/auth/login/code", "/auth/register", "/auth/email/verify"]
        .iter()
        .any(|path| html.contains(&format!(" action=\"{path}\"")));
    assert_eq!(policy.contains("form-action"), !leads_on, "{policy}: {html}");
    assert!(leads_on || policy.contains("form-action 'self'"), "{policy}");
    assert!(html.contains(&format!("<title>{title} · Example</title>")), "{html}");
    for forbidden in
        ["<script", "<style", " style=", "javascript:", " onclick", "http://", "https://"]
    {
        assert!(!html.contains(forbidden), "{forbidden}: {html}");
    }
    // Each field has a label, and an `autocomplete` for password managers.
    for input in html
        .split("<input ")
        .skip(1)
        .map(|rest| rest.split('>').next().unwrap())
        .filter(|input| !input.contains("hidden"))
    {
        let id = input.split("id=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(
            html.contains(&format!("<label for=\"{id}\">")) && input.contains("autocomplete=\""),
            "{input}"
        );
        let described = input
            .split("aria-describedby=\"")
            .nth(1)
            .map_or("", |rest| rest.split('"').next().unwrap());
        for id in described.split_whitespace() {
            assert!(html.contains(&format!("id=\"{id}\"")), "{id}: {html}");
        }
    }
    html
}

#[tokio::test]
async fn every_page_is_complete_and_works_without_scripts() {
    let gateway = Gateway::start(SITE).await;
    for (path, title) in [
        ("/auth/login", "Log in"),
        ("/auth/register", "Register"),
        ("/auth/logout", "You are logged out"),
        ("/auth/password/forgot", "Reset your password"),
    ] {
        is_page(&page(&gateway, path, "").await, 200, title);
    }
    // A link that is not good says so before somebody types a password in vain.
    for (path, title) in [
        ("/auth/password/reset?token=abc", "Error: Set a new password"),
        ("/auth/email/verify?token=abc", "Error: Confirm your e-mail address"),
        ("/auth/email/change?token=abc", "Error: Confirm your new e-mail address"),
    ] {
        let html = is_page(&page(&gateway, path, "").await, 400, title);
        assert!(!html.contains("type=\"password\""), "{html}");
    }
    let cookies = register(&gateway, "ann@example.com").await;
    for (path, title) in [
        ("/auth/sessions", "Where you are logged in"),
        ("/auth/password/change", "Change your password"),
        ("/auth/account", "Your account"),
        ("/auth/account/name", "Change your name"),
        ("/auth/account/email", "Change your e-mail address"),
        ("/auth/account/delete", "Delete your account"),
        ("/auth/logout", "Log out?"),
    ] {
        is_page(&page(&gateway, path, &cookies).await, 200, title);
    }
    // The form names the account for password managers.
    let change = page(&gateway, "/auth/password/change", &cookies).await.text();
    let username = "name=\"username\" value=\"ann@example.com\" autocomplete=\"username\" hidden";
    assert!(change.contains(username), "{change}");
    assert!(change.contains("<header class=\"brand\">"), "{change}");
    for path in ["/auth/sessions", "/auth/password/change"] {
        let led = page(&gateway, path, "").await;
        assert_eq!(led.status, 303);
        assert_eq!(
            led.header("location").unwrap(),
            format!("/auth/login?return_to={}", path.replace('/', "%2F"))
        );
    }
    for path in ["/auth", "/auth/"] {
        assert_eq!(page(&gateway, path, "").await.header("location"), Some("/auth/account"));
    }
    // Second factors are offered if the file enables them.
    is_page(&page(&gateway, "/auth/totp", &cookies).await, 404, "Error: Turn on two-factor login");
    for (path, status, reason, text) in [
        ("/auth/nothing", 404, "route_not_found", "Page not found."),
        ("/auth/sessions/x", 405, "method_not_allowed", "does not accept what the browser sent"),
    ] {
        let html = is_page(&page(&gateway, path, "").await, status, "Error: Something went wrong");
        assert!(html.contains(&format!("Reason {reason}, request ")), "{html}");
        assert!(html.contains(text) && html.contains("/auth/account\">"), "{html}");
    }
    // Programs get the usual response.
    gateway.get("/auth/nothing").header("Accept", "*/*").send().await.is(404, "route_not_found");
    gateway
        .get("/auth/sessions")
        .header("Accept", "*/*")
        .send()
        .await
        .is(401, "credentials_missing");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
async fn a_refused_form_is_shown_again_with_the_error_and_the_input() {
    let gateway = Gateway::start(SITE).await;
    register(&gateway, "ann@example.com").await;
    let odd = "\"><script>alert(1)</script>@example.com";
    for (path, fields, status, title, expected) in [
        (
            "/auth/login",
            vec![
                ("email", "ann@example.com"),
                ("password", "Wr0ng-guess!"),
                ("return_to", "/reports?q=3"),
            ],
            401,
            "Error: Log in",
            "The e-mail address or the password is wrong.",
        ),
        (
            "/auth/login",
            vec![("email", odd), ("password", "Wr0ng-guess!")],
            401,
            "Error: Log in",
            "is wrong.",
        ),
        (
            "/auth/register",
            vec![("email", "ann@example.com"), ("password", PASSWORD)],
            409,
            "Error: Register",
            "This address already has an account.",
        ),
        (
            "/auth/register",
            vec![("email", "bob@example.com"), ("password", "short")],
            422,
            "Error: Register",
            "8",
        ),
        (
            "/auth/register",
            vec![("email", "nobody"), ("password", PASSWORD)],
            400,
            "Error: Register",
            "Enter an e-mail address",
        ),
        (
            "/auth/register",
            vec![("email", "bob@example.com")],
            400,
            "Error: Register",
            "Fill in every field.",
        ),
    ] {
        let refused = post(&gateway, path, &fields).await;
        let html = is_page(&refused, status, title);
        assert!(html.contains(expected) && html.contains("role=\"alert\""), "{html}");
        if status == 401 {
            assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"));
        }
        for (name, value) in fields {
            let shown = value.replace('"', "&#34;").replace('<', "&#60;").replace('>', "&#62;");
            assert_eq!(
                html.contains(&format!("value=\"{shown}\"")),
                name != "password",
                "{name}: {html}"
            );
        }
        let cookies = refused.headers("set-cookie");
        // What the login page shows next, for a browser.
        let again = "__Host-portcullis-again=reason=";
        assert_eq!(cookies.len(), usize::from(path == "/auth/login" && status == 401));
        assert!(cookies.iter().all(|cookie| cookie.starts_with(again)), "{cookies:?}");
    }
    // The same refusals for programs.
    let form = gateway
        .request("POST", "/auth/login")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .header("Accept", "*/*");
    form.body(encoded(&[("email", "ann@example.com"), ("password", "x")]))
        .send()
        .await
        .is(401, "login_failed");
}

#[tokio::test]
async fn a_login_redirects_back_and_never_to_another_host() {
    let gateway = Gateway::start(SITE).await;
    register(&gateway, "ann@example.com").await;
    for (asked, leads_to) in [
        ("/reports/q3?x=1&y=a%2Fb", "/reports/q3?x=1&y=a%2Fb"),
        ("/auth/sessions", "/auth/sessions"),
        ("", "/"),
        ("//evil.test", "/"),
        ("/\\evil.test", "/"),
        ("\\\\evil.test", "/"),
        ("https://evil.test/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\t/evil.test", "/"),
        ("/\r\nSet-Cookie: a=b", "/"),
        (" //evil.test", "/"),
        ("@evil.test", "/"),
    ] {
        let fields = [("email", "ann@example.com"), ("password", PASSWORD), ("return_to", asked)];
        let answer = post(&gateway, "/auth/login", &fields).await;
        assert_eq!((answer.status, answer.header("location")), (303, Some(leads_to)), "{asked:?}");
        assert_eq!(answer.headers("set-cookie").len(), 2, "{answer:?}");
        let shown = page(
            &gateway,
            &format!("/auth/login?return_to={}", encoded(&[("", asked)]).trim_matches(['=', '&'])),
            "",
        )
        .await;
        let html = is_page(&shown, 200, "Log in");
        assert!(
            !html.contains("evil.test") && html.contains("name=\"return_to\"") == (leads_to != "/"),
            "{asked:?}: {html}"
        );
    }
}

#[tokio::test]
async fn confirming_an_address_requires_the_password() {
    let config = SITE.replace("registration", "verify_email = true, registration");
    let gateway = Gateway::start(&config).await;
    let fields = [("email", "ann@example.com"), ("password", PASSWORD), ("return_to", "/reports")];
    let registered = post(&gateway, "/auth/register", &fields).await;
    assert_eq!(registered.header("location"), Some("/auth/login?done=verify&return_to=%2Freports"));
    let link = "https://app.test/auth/email/verify?token=";
    let mail = mails(&gateway, 1).await.remove(0);
    let token = token(&mail, link);
    // The way back is in the mail, and in the page behind its link.
    let path = format!("/auth/email/verify?token={token}&return_to=%2Freports");
    assert!(mail.contains(&format!("https://app.test{path}\r\n")), "{mail}");
    let html = is_page(&page(&gateway, &path, "").await, 200, "Confirm your e-mail address");
    assert!(html.contains("name=\"return_to\" value=\"/reports\""), "{html}");
    assert!(html.contains("value=\"ann@example.com\" autocomplete=\"username\""), "{html}");
    for (name, value, status, expected) in [
        (
            "password",
            "another password",
            401,
            "The password is wrong. If someone else created the account",
        ),
        ("new_password", "short", 422, "The password is too short"),
    ] {
        let form = [("token", token.as_str()), (name, value)];
        let refused = post(&gateway, "/auth/email/verify", &form).await;
        let html = is_page(&refused, status, "Error: Confirm your e-mail address");
        assert!(html.contains(&format!("id=\"{name}-wrong\">{expected}")), "{html}");
    }
    let right = [("token", token.as_str()), ("password", PASSWORD), ("return_to", "/reports")];
    let confirmed = post(&gateway, "/auth/email/verify", &right).await;
    assert_eq!((confirmed.status, confirmed.header("location")), (303, Some("/reports")));
    // A person who has just typed the password need not type it again.
    let session = cookies(&confirmed);
    assert_eq!(page(&gateway, "/auth/sessions", &session).await.status, 200);
    // The page of a used link says that it was used.
    for again in
        [page(&gateway, &path, "").await, post(&gateway, "/auth/email/verify", &right).await]
    {
        let login = "/auth/login?done=confirmed&return_to=%2Freports";
        assert_eq!(again.header("location"), Some(login));
    }
    let html = page(&gateway, "/auth/login?done=confirmed", "").await.text();
    assert!(html.contains("Your address is confirmed: log in."), "{html}");
}

/// A browser that came by http would not keep the cookies, and be asked for the login again.
#[tokio::test]
async fn a_login_that_the_browser_would_not_keep_is_explained() {
    let gateway = Gateway::start(SITE).await;
    register(&gateway, "ann@example.com").await;
    let login = async |host: &str, origin: &str| {
        let fields =
            [("email", "ann@example.com"), ("password", PASSWORD), ("return_to", "/reports")];
        let request = gateway
            .request("POST", "/auth/login")
            .host(host)
            .header("Accept", ACCEPT)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Origin", origin);
        request.body(encoded(&fields)).send().await
    };
    // With another port, the origin of the page is that of the request.
    for host in ["app.test", "app.test:8080", "192.0.2.7:8080"] {
        let refused = login(host, &format!("http://{host}")).await;
        let html = refused.text();
        assert!(refused.status == 403 && html.contains("<title>Error: Log in"), "{refused:?}");
        assert!(
            html.contains("begins with http") && refused.headers("set-cookie").is_empty(),
            "{html}"
        );
    }
    for host in ["localhost:8080", "127.0.0.1:8080"] {
        let kept = login(host, &format!("http://{host}")).await;
        assert_eq!((kept.status, kept.header("location")), (303, Some("/reports")), "{host}");
    }
}

/// The person who has forgotten a password was on the way somewhere, and the link is opened later.
#[tokio::test]
async fn the_way_back_survives_a_forgotten_password() {
    let gateway = Gateway::start(SITE).await;
    register(&gateway, "ann@example.com").await;
    let html = page(&gateway, "/auth/login?return_to=%2Freports", "").await.text();
    let forgot = "/auth/password/forgot?return_to=%2Freports";
    assert!(html.contains(&format!("href=\"{forgot}\"")), "{html}");
    let html = page(&gateway, forgot, "").await.text();
    assert!(html.contains("name=\"return_to\" value=\"/reports\""), "{html}");
    let link = "https://app.test/auth/password/reset?token=";
    for (count, asked, carried) in [(1, "//evil.test/", ""), (2, "/reports", REPORTS)] {
        let fields = [("email", "ann@example.com"), ("return_to", asked)];
        post(&gateway, "/auth/password/forgot", &fields).await;
        let mail = mails(&gateway, count).await.pop().unwrap();
        let token = token(&mail, link);
        assert!(mail.contains(&format!("{link}{token}{carried}\r\n")), "{mail}");
    }
    let token = token(&mails(&gateway, 2).await.pop().unwrap(), link);
    let path = format!("/auth/password/reset?token={token}{REPORTS}");
    let html = page(&gateway, &path, "").await.text();
    assert!(html.contains("name=\"return_to\" value=\"/reports\""), "{html}");
    let fields = [("token", &*token), ("password", PASSWORD), ("return_to", "/reports")];
    let reset = post(&gateway, "/auth/password/reset", &fields).await;
    let login = format!("/auth/login?done=password{REPORTS}");
    assert_eq!((reset.status, reset.header("location")), (303, Some(&*login)));
    // The link is used up, and so is the way on from its page.
    for failed in
        [page(&gateway, &path, "").await, post(&gateway, "/auth/password/reset", &fields).await]
    {
        let html = is_page(&failed, 400, "Error: Set a new password");
        for kept in [forgot, "/auth/login?return_to=%2Freports"] {
            assert!(html.contains(&format!("href=\"{kept}\"")), "{kept}: {html}");
        }
    }
}

const REPORTS: &str = "&return_to=%2Freports";

#[tokio::test]
async fn too_many_logins_are_explained() {
    let gateway =
        Gateway::start(&SITE.replace("requests = 1000, per = '1s'", "requests = 2, per = '10m'"))
            .await;
    for status in [401, 401, 429] {
        let refused =
            post(&gateway, "/auth/login", &[("email", "ann@example.com"), ("password", "x")]).await;
        let html = is_page(&refused, status, "Error: Log in");
        assert_eq!(html.contains("Try again in 5 minutes."), status == 429, "{html}");
        assert_eq!(refused.header("retry-after").is_some(), status == 429);
    }
}

/// Anybody can request these pages with any token, and each looks it up.
#[tokio::test]
async fn the_pages_of_mailed_links_are_counted() {
    let gateway = Gateway::start(&SITE.replace(", limit = 'wide'", "")).await;
    let paths = ["/auth/password/reset", "/auth/email/verify", "/auth/email/change"];
    let mut paths = paths.iter().map(|path| format!("{path}?token=x")).cycle();
    let mut next = async || page(&gateway, &paths.next().unwrap(), "").await;
    for _ in 0..60 {
        assert_eq!(next().await.status, 400);
    }
    // The budget grows back while it is used.
    let limited = within(async {
        loop {
            let response = next().await;
            if response.status != 400 {
                return response;
            }
        }
    })
    .await;
    assert_eq!(limited.status, 429, "{limited:?}");
    assert!(limited.header("retry-after").is_some() && limited.text().contains("Try again in"));
    let link = [("token", "x"), ("password", PASSWORD)];
    assert_eq!(post(&gateway, "/auth/password/reset", &link).await.status, 400);
    let metric =
        gateway.metric_value("portcullis_rate_limited_total", &["limit=\"identity-link-page\""]);
    assert_eq!(metric.await, Some(1.0));
}

#[tokio::test]
async fn sessions_are_listed_and_ended() {
    let gateway = Gateway::start(SITE).await;
    let one = register(&gateway, "ann@example.com").await;
    let another = cookies(
        &post(&gateway, "/auth/login", &[("email", "ann@example.com"), ("password", PASSWORD)])
            .await,
    );
    let html =
        is_page(&page(&gateway, "/auth/sessions", &one).await, 200, "Where you are logged in");
    assert_eq!(
        (html.matches("<li>\n<div class=\"what\">").count(), html.matches("this browser").count()),
        (2, 1),
        "{html}"
    );
    let action = html
        .split("action=\"")
        .map(|rest| rest.split('"').next().unwrap())
        .find(|action| action.starts_with("/auth/sessions/"));
    let ended = post_as(&gateway, action.unwrap(), &[], &one).await;
    assert_eq!((ended.status, ended.header("location")), (303, Some("/auth/sessions?done=ended")));
    assert!(
        is_page(
            &page(&gateway, "/auth/sessions?done=ended", &one).await,
            200,
            "Where you are logged in"
        )
        .contains("The session was ended.")
    );
    let me = gateway.get("/auth/me").header("Cookie", &another).send().await;
    me.is(401, "token_revoked");
    is_page(
        &post_as(&gateway, action.unwrap(), &[], &another).await,
        401,
        "Error: Something went wrong",
    );
    // The sessions of other accounts cannot be ended.
    let stranger = register(&gateway, "eve@example.com").await;
    let html =
        is_page(&page(&gateway, "/auth/sessions", &one).await, 200, "Where you are logged in");
    assert!(!html.contains("eve@example.com"));
    assert_eq!(post_as(&gateway, action.unwrap(), &[], &stranger).await.status, 404);
    let out = post_as(&gateway, "/auth/logout-all", &[], &one).await;
    assert_eq!((out.status, out.header("location")), (303, Some("/auth/login?done=everywhere")));
    assert_eq!(gateway.get("/auth/me").header("Cookie", &one).send().await.status, 401);
}

#[tokio::test]
async fn personal_access_tokens_are_made_and_revoked_on_the_sessions_page() {
    let gateway = Gateway::start(SITE).await;
    let ann = register(&gateway, "ann@example.com").await;
    let title = "Where you are logged in";
    let html = is_page(&page(&gateway, "/auth/sessions", &ann).await, 200, title);
    assert!(html.contains("<h2 id=\"tokens\">"), "{html}");
    let fields = [("name", "laptop <b>"), ("roles", ""), ("ttl", "90d")];
    let made = post_as(&gateway, "/auth/tokens", &fields, &ann).await;
    let html = is_page(&made, 200, "Copy your new token");
    assert!(html.contains("laptop &#60;b&#62;"), "{html}");
    let token = html.split("value=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(token.starts_with("pct_") && token.len() == 47, "{token}");
    assert_eq!(gateway.get("/reports").bearer(token).send().await.status, 200);

    // What is wrong is told at its field, and nothing that was typed is lost.
    let again = [("name", "laptop <b>"), ("roles", ""), ("ttl", "30d")];
    let refused = post_as(&gateway, "/auth/tokens", &again, &ann).await;
    let html = is_page(&refused, 400, "Error: Make a personal access token");
    assert!(html.contains("<a href=\"#name\">"), "{html}");
    assert!(html.contains("<option value=\"30d\" selected>"), "{html}");
    let nameless = post_as(&gateway, "/auth/tokens", &[("name", ""), ("ttl", "30d")], &ann).await;
    assert!(
        is_page(&nameless, 400, "Error: Make a personal access token").contains("Enter a name.")
    );

    let html = is_page(&page(&gateway, "/auth/sessions", &ann).await, 200, title);
    assert!(html.contains("laptop &#60;b&#62;") && !html.contains(token), "{html}");
    let action = html
        .split("action=\"")
        .map(|rest| rest.split('"').next().unwrap())
        .find(|action| action.starts_with("/auth/tokens/"))
        .unwrap();
    let eve = register(&gateway, "eve@example.com").await;
    assert_eq!(post_as(&gateway, action, &[], &eve).await.status, 404);
    let revoked = post_as(&gateway, action, &[], &ann).await;
    assert_eq!(
        (revoked.status, revoked.header("location")),
        (303, Some("/auth/sessions?done=revoked"))
    );
    gateway.get("/reports").bearer(token).send().await.is(401, "token_revoked");
    let html = is_page(&page(&gateway, "/auth/sessions?done=revoked", &ann).await, 200, title);
    assert!(html.contains("The token was revoked.") && !html.contains("laptop"), "{html}");
    let listed = page(&gateway, "/auth/tokens", &ann).await;
    assert_eq!(listed.header("location"), Some("/auth/sessions#tokens"));
}

#[tokio::test]
async fn a_second_factor_that_is_being_set_up_waits_for_the_right_code() {
    let gateway = Gateway::start(&SITE.replace("registration", "totp = true, registration")).await;
    let session = register(&gateway, "ann@example.com").await;
    let confirm = async |code: &str| {
        post_as(&gateway, "/auth/totp/confirm", &[("code", code)], &session).await
    };
    // Nothing is pending: the plain page without recovery codes.
    let html = is_page(&confirm("000000").await, 401, "Error: Turn on two-factor login");
    assert!(html.contains("Start again") && !html.contains("recovery"), "{html}");
    let begun =
        post_as(&gateway, "/auth/totp", &[("current_password", PASSWORD)], &session).await.text();
    let secret = |html: &str| {
        html.split("class=\"secret\">").nth(1).unwrap().split('<').next().unwrap().to_owned()
    };
    for (form, status, expected) in [
        (&[("code", "000000")][..], 401, "The code is wrong."),
        (&[("code", "")], 401, "The code is wrong."),
        (&[], 400, "Enter the code"),
    ] {
        let refused = post_as(&gateway, "/auth/totp/confirm", form, &session).await;
        let html = refused.text();
        assert_eq!(refused.status, status, "{html}");
        assert!(
            html.contains("<title>Error: ")
                && html.contains(expected)
                && html.contains("<svg ")
                && !html.contains("recovery"),
            "{html}"
        );
        assert_eq!(secret(&html), secret(&begun));
        assert!(refused.header("content-security-policy").unwrap().contains("form-action 'self'"));
    }
    let right = code(&base32(&secret(&begun).replace(' ', "")), 0);
    assert!(confirm(&right).await.text().contains("Save your recovery codes"));
    let account = page(&gateway, "/auth/account", &session).await.text();
    assert!(account.contains("Recovery codes left: 10."), "{account}");
    // Sending it twice shows success again.
    let html = is_page(&confirm(&right).await, 400, "Error: Turn on two-factor login");
    assert!(html.contains("Two-factor login is already on."), "{html}");
}

#[tokio::test]
async fn a_form_without_a_valid_login_gets_a_page_and_is_not_forwarded() {
    let gateway =
        Gateway::start(&format!("{}\n[[route]]\npath = '/api/*'\nupstream = 'app'", table(SITE)))
            .await;
    let session = register(&gateway, "ann@example.com").await;
    post_as(&gateway, "/auth/logout", &[], &session).await;
    let title = "Error: Log in and send it again";
    let login = "/auth/login?return_to=%2F";
    for (cookies, reason) in [("", "credentials_missing"), (&*session, "token_revoked")] {
        let mark = gateway.log().mark();
        let output = post_as(&gateway, "/reports/q3", &[("text", "a long one")], cookies).await;
        let html = is_page(&output, 401, title);
        assert!(html.contains(&format!("Reason {reason}, request ")), "{html}");
        assert!(
            html.contains(&format!("<a href=\"{login}\" target=\"_blank\" rel=\"noopener\">"))
                && !html.contains("<form"),
            "{html}"
        );
        assert!(output.header("www-authenticate").unwrap().starts_with("Bearer"));
        gateway
            .log()
            .after(mark, "the reason is logged", |line| {
                line["url.path"] == "/reports/q3" && line["reason"] == reason
            })
            .await;
        // Scripts get the usual response, as do clients for which a login would not help.
        let script = gateway
            .request("POST", "/reports/q3")
            .header("Accept", "text/html")
            .header("Sec-Fetch-Mode", "cors");
        script
            .header("Origin", "https://app.test")
            .header("Cookie", cookies)
            .body("text=a")
            .send()
            .await
            .is(401, reason);
        post_as(&gateway, "/api/q3", &[], cookies).await.is(401, "credentials_missing");
    }
    assert_eq!(gateway.upstream().count(), 0);
}

#[tokio::test]
async fn a_form_of_another_site_is_refused() {
    let gateway = Gateway::start(SITE).await;
    let session = register(&gateway, "ann@example.com").await;
    for (path, origin) in [
        ("/auth/login", "https://evil.test"),
        ("/auth/logout-all", "https://evil.test"),
        ("/auth/login", "null"),
        ("/auth/register", "http://app.test:81"),
    ] {
        let request = gateway
            .request("POST", path)
            .header("Accept", ACCEPT)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Origin", origin)
            .header("Cookie", &session);
        let refused = request
            .body(encoded(&[("email", "ann@example.com"), ("password", PASSWORD)]))
            .send()
            .await;
        assert_eq!(refused.status, 403, "{path} {origin}: {refused:?}");
        assert!(
            refused.text().contains("sent from another site")
                && refused.headers("set-cookie").is_empty(),
            "{refused:?}"
        );
    }
    assert_eq!(gateway.get("/auth/me").header("Cookie", &session).send().await.status, 200);
}

#[tokio::test]
async fn the_brand_is_shown_and_its_files_cannot_run_scripts() {
    let svg = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 120 24'><rect width='120' height='24' fill='#7a1fa2'/><script>alert(1)</script></svg>";
    let branded =
        SITE.replace("name = 'Example'", "name = 'Example', colour = '#7a1fa2', logo = 'logo.svg'");
    let gateway = Gateway::setup(&branded).file("logo.svg", svg).start().await;
    let html = is_page(&page(&gateway, "/auth/login", "").await, 200, "Log in");
    let named =
        |start: &str| html.split('"').find(|path| path.starts_with(start)).unwrap().to_owned();
    for (path, content_type, held) in [
        (named("/auth/style.css?v="), "text/css; charset=utf-8", "--accent: #7a1fa2;"),
        (named("/auth/logo?v="), "image/svg+xml", "<rect"),
        (named("/auth/icon?v="), "image/svg+xml", "<script>"),
    ] {
        let file = gateway.get(&path).send().await;
        assert_eq!((file.status, file.header("content-type")), (200, Some(content_type)));
        assert_eq!(file.header("cache-control"), Some("public, max-age=31536000, immutable"));
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        assert!(file.header("content-security-policy").unwrap().contains("default-src 'none'"));
        assert!(file.text().contains(held));
        let without = gateway.get(path.split('?').next().unwrap()).send().await;
        assert_eq!((without.status, without.header("cache-control")), (200, Some("no-cache")));
    }
    gateway.reload(SITE).await;
    gateway.get("/auth/logo").send().await.is(404, "route_not_found");
    assert!(
        !is_page(&page(&gateway, "/auth/login", "").await, 200, "Log in").contains("/auth/logo")
    );
    // The icon is a letter then. Without one, a browser would ask the application for
    // /favicon.ico.
    assert!(gateway.get("/auth/icon").send().await.text().contains(">E</text>"));
}

#[tokio::test]
async fn closed_registration_is_explained() {
    let gateway = Gateway::start(&SITE.replace("'open'", "'closed'")).await;
    assert!(!page(&gateway, "/auth/login", "").await.text().contains("/auth/register"));
    let html = is_page(&page(&gateway, "/auth/register", "").await, 403, "Error: Register");
    assert!(html.contains("Registration is closed") && !html.contains("<form"), "{html}");
    let refused =
        post(&gateway, "/auth/register", &[("email", "ann@example.com"), ("password", PASSWORD)])
            .await;
    is_page(&refused, 403, "Error: Register");
}

// --- in a browser
// ----------------------------------------------------------------------------------------------------------------------

/// The pages of a person who is logged in.
pub const ACCOUNT_PAGES: [&str; 7] = [
    "/auth/account",
    "/auth/account/name",
    "/auth/account/email",
    "/auth/account/delete",
    "/auth/sessions",
    "/auth/password/change",
    "/auth/logout",
];

/// Over TLS, in front of an application with pages.
pub async fn in_browser(config: &str) -> Gateway {
    let certificate = authority().issue(&["app.test"]);
    let tls = "server.tls = { certificate = 'tls.crt', private_key = { file = 'tls.key' } }\n";
    let setup: Setup = Gateway::setup(&format!("{tls}{config}"))
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key);
    let gateway = setup.start().await;
    gateway.upstream().answers(&html("<h1>Reports</h1>"));
    gateway
}

pub fn html(body: &str) -> String {
    let body = format!("<!doctype html><link rel=icon href='data:,'>{body}");
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_person_can_register_work_and_log_out_in_a_browser() {
    let gateway = in_browser(SITE).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    browser.goto("https://app.test/reports/q3?x=1").await;
    browser.shows("Log in").await;
    browser.picture("login").await;
    browser.follow("Register").await;
    browser.shows("Register").await;
    browser.picture("register").await;
    browser.fill(&[("email", "ann@example.com"), ("name", "Ann"), ("password", "password")]).await;
    browser.press("Register").await;
    browser.element(".errors").await;
    browser.picture("register-refused").await;
    assert_eq!(
        browser.element("#email").await.prop("value").await.unwrap().as_deref(),
        Some("ann@example.com")
    );
    browser.fill(&[("password", PASSWORD)]).await;
    browser.press("Register").await;
    browser.shows("Reports").await;
    assert_eq!(browser.url().await, "https://app.test/reports/q3?x=1");
    let received = gateway.upstream().last();
    assert_eq!(
        (received.header("x-auth-email"), received.header("cookie")),
        (Some("ann@example.com"), None)
    );
    assert_eq!(browser.fetch("/reports/data").await, 200);
    // A script of the page cannot read the cookies.
    assert_eq!(browser.client.execute("return document.cookie", vec![]).await.unwrap(), json!(""));
    browser.goto("https://app.test/auth/logout").await;
    browser.shows("Log out?").await;
    browser.picture("logout").await;
    browser.press("Log out").await;
    browser.shows("You are logged out").await;
    browser.picture("logged-out").await;
    browser.goto("https://app.test/reports/q3").await;
    browser.shows("Log in").await;
    browser.close().await;
}

#[tokio::test]
async fn a_wrong_password_is_reported_and_the_right_one_redirects_back_in_a_browser() {
    let gateway = in_browser(SITE).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    register_over_tls(&browser, "ann@example.com").await;
    browser.client.delete_all_cookies().await.unwrap();
    browser.goto("https://app.test/reports/q3").await;
    browser.shows("Log in").await;
    browser.fill(&[("email", "ann@example.com"), ("password", "Wr0ng-guess!")]).await;
    browser.press("Log in").await;
    assert!(browser.text(".errors").await.contains("The e-mail address or the password is wrong."));
    assert_eq!(browser.client.title().await.unwrap(), "Error: Log in · Example");
    let focused = browser.client.active_element().await.unwrap();
    assert_eq!(focused.attr("name").await.unwrap().as_deref(), Some("password"));
    assert_eq!(focused.attr("aria-describedby").await.unwrap().as_deref(), Some("password-wrong"));
    browser.picture("login-refused").await;
    for (name, width, scheme) in
        [("login-refused-dark", 900, "dark"), ("login-refused-320", 320, "light")]
    {
        let metrics =
            json!({ "width": width, "height": 760, "deviceScaleFactor": 1, "mobile": false });
        browser.command("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.command("Emulation.setEmulatedMedia", features).await;
        let overflow = browser
            .client
            .execute("return document.documentElement.scrollWidth > innerWidth", vec![])
            .await
            .unwrap();
        assert_eq!(overflow, json!(false), "{name} has to be scrolled sideways");
        browser.picture(name).await;
    }
    browser.fill(&[("password", PASSWORD)]).await;
    browser.press("Log in").await;
    browser.shows("Reports").await;
    assert_eq!(browser.url().await, "https://app.test/reports/q3");
    // Back does not ask to send the form again, and the error is not shown again.
    browser.client.back().await.unwrap();
    browser.shows("Log in").await;
    assert_eq!(browser.client.title().await.unwrap(), "Log in · Example");
    browser.close().await;
}

/// Registers, and is logged in.
async fn register_over_tls(browser: &Browser, email: &str) {
    browser.goto("https://app.test/auth/register").await;
    browser.fill(&[("email", email), ("password", PASSWORD)]).await;
    browser.press("Register").await;
    browser.shows("Reports").await;
}

#[tokio::test]
async fn an_expired_access_cookie_is_renewed_in_every_tab() {
    let gateway =
        in_browser(&SITE.replace("registration", "access_token_ttl = '1s', registration")).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    register_over_tls(&browser, "ann@example.com").await;
    let renewed =
        async || gateway.metric_value("portcullis_refresh_total", &["outcome=\"succeeded\""]).await;
    for _ in 0..2 {
        // It expires at some moment, which nobody sees.
        let before = renewed().await;
        within(async {
            while renewed().await == before {
                browser.goto("https://app.test/reports/q3").await;
                browser.shows("Reports").await;
                assert_eq!(browser.url().await, "https://app.test/reports/q3");
            }
        })
        .await;
        let tab = browser.client.new_window(true).await.unwrap();
        browser.client.switch_to_window(tab.handle).await.unwrap();
    }
    // The requests of a script are renewed as well.
    browser.goto("https://app.test/reports/q3").await;
    let before = renewed().await;
    within(async {
        while renewed().await == before {
            assert_eq!(browser.fetch("/reports/data").await, 200);
        }
    })
    .await;
    browser.close().await;
}

#[tokio::test]
async fn a_form_of_another_site_has_no_effect_in_a_browser() {
    let gateway = in_browser(&format!(
        "{}\n[[route]]\nhost = 'evil.test'\npath = '/*'\nupstream = 'app'\naccess = 'public'",
        table(SITE)
    ))
    .await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    register_over_tls(&browser, "ann@example.com").await;
    let form = "<h1>Win</h1><form method=post action='https://app.test/auth/logout-all'><button>Go</button></form>";
    gateway.upstream().does_at("/trap", vec![Step::ReadBody, Step::Write(html(form).into_bytes())]);
    browser.goto("https://evil.test/trap").await;
    browser.shows("Win").await;
    browser.press("Go").await;
    browser.shows("Log out?").await;
    assert!(browser.text(".errors").await.contains("sent from another site"));
    browser.goto("https://app.test/reports/q3").await;
    browser.shows("Reports").await;
    browser.close().await;
}

#[tokio::test]
async fn a_login_continues_if_the_application_redirects_to_another_origin_in_a_browser() {
    let gateway = in_browser(&format!(
        "{}\n[[route]]\nhost = 'other.test'\npath = '/*'\nupstream = 'app'\naccess = 'public'",
        table(SITE)
    ))
    .await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    let elsewhere = "HTTP/1.1 302 Found\r\nLocation: https://other.test:8443/there\r\nContent-Length: 0\r\n\r\n";
    gateway.upstream().does_at("/out", vec![Step::ReadBody, Step::Write(elsewhere.into())]);
    gateway.upstream().does_at(
        "/there",
        vec![Step::ReadBody, Step::Write(html("<h1>Elsewhere</h1>").into_bytes())],
    );
    browser.goto("https://app.test/out").await;
    browser.shows("Log in").await;
    browser.follow("Register").await;
    browser.fill(&[("email", "ann@example.com"), ("password", PASSWORD)]).await;
    browser.press("Register").await;
    browser.shows("Elsewhere").await;
    browser.goto("https://app.test/auth/logout").await;
    browser.press("Log out").await;
    browser.goto("https://app.test/out").await;
    browser.shows("Log in").await;
    // The page of a refusal also continues to the application.
    for password in ["Wr0ng-guess!", PASSWORD] {
        browser.fill(&[("email", "ann@example.com"), ("password", password)]).await;
        browser.press("Log in").await;
    }
    browser.shows("Elsewhere").await;
    assert_eq!(browser.url().await, "https://other.test:8443/there");
    browser.close().await;
}

/// WCAG 2.2, 1.4.4 and 1.4.10: with doubled text on the smallest screen, pages scroll down only,
/// never sideways.
#[tokio::test]
async fn pages_do_not_scroll_sideways_at_320_pixels_with_doubled_text() {
    let site = SITE
        .replace("registration", "totp = true, registration")
        .replace("Example", &"m".repeat(60));
    let gateway = in_browser(&site).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    let metrics = json!({ "width": 320, "height": 760, "deviceScaleFactor": 1, "mobile": false });
    browser.command("Emulation.setDeviceMetricsOverride", metrics).await;
    let fits = async |name: &str| {
        let script = "document.documentElement.style.fontSize = '200%'; return document.documentElement.scrollWidth";
        let width = browser.client.execute(script, vec![]).await.unwrap().as_u64().unwrap();
        browser.picture(&format!("{name}-320-twice")).await;
        assert!(width <= 320, "{name} is {width} pixels wide");
    };
    let long = format!("{}@{}.example.com", "w".repeat(60), "m".repeat(60));
    browser.goto("https://app.test/auth/login").await;
    fits("login").await;
    browser.fill(&[("email", &long), ("password", PASSWORD)]).await;
    browser.press("Log in").await;
    browser.element(".errors").await;
    fits("login-refused").await;
    browser.goto("https://app.test/auth/register").await;
    fits("register").await;
    browser.fill(&[("email", &long), ("password", PASSWORD)]).await;
    browser.press("Register").await;
    browser.shows("Reports").await;
    // Twice, from a program with a very long name.
    browser
        .command("Emulation.setUserAgentOverride", json!({ "userAgent": "W".repeat(200) }))
        .await;
    browser.client.delete_all_cookies().await.unwrap();
    browser.goto("https://app.test/auth/login").await;
    browser.fill(&[("email", &long), ("password", PASSWORD)]).await;
    browser.press("Log in").await;
    browser.shows("Reports").await;
    browser.goto("https://app.test/auth/sessions").await;
    browser.element("form[action^='/auth/sessions/'] button").await;
    fits("sessions").await;
    browser.goto("https://app.test/auth/totp").await;
    fits("totp-begin").await;
    browser.fill(&[("current_password", PASSWORD)]).await;
    browser.press("Continue").await;
    let secret = base32(&browser.text(".secret").await.replace(' ', ""));
    fits("totp").await;
    browser.fill(&[("code", &code(&secret, 0))]).await;
    browser.press("Turn on").await;
    browser.shows("Save your recovery codes").await;
    fits("recovery-codes").await;
    browser.goto("https://app.test/auth/totp").await;
    browser.shows("Turn off two-factor login").await;
    fits("totp-off").await;
    browser.client.delete_all_cookies().await.unwrap();
    browser.goto("https://app.test/auth/login").await;
    browser.fill(&[("email", &long), ("password", PASSWORD)]).await;
    browser.press("Log in").await;
    browser.element("input[name=code]").await;
    fits("login-code").await;
    browser.close().await;
}

#[tokio::test]
async fn a_form_typed_while_the_login_expired_can_be_sent_again_in_a_browser() {
    let gateway = in_browser(SITE).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    let form = "<h1>Write</h1><form method=post action='/letters'><input name=text><button>Send</button></form>";
    gateway
        .upstream()
        .does_at("/letters/new", vec![Step::ReadBody, Step::Write(html(form).into_bytes())]);
    register_over_tls(&browser, "ann@example.com").await;
    browser.goto("https://app.test/letters/new").await;
    browser.fill(&[("text", "a long letter")]).await;
    browser.client.delete_all_cookies().await.unwrap();
    browser.press("Send").await;
    browser.shows("Log in and send it again").await;
    browser.picture("unsent").await;
    let here = browser.client.window().await.unwrap();
    browser
        .client
        .find(Locator::LinkText("Log in in another tab"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    let there = within(async {
        loop {
            if let Some(tab) =
                browser.client.windows().await.unwrap().into_iter().find(|tab| *tab != here)
            {
                return tab;
            }
        }
    })
    .await;
    browser.client.switch_to_window(there).await.unwrap();
    browser.shows("Log in").await;
    browser.fill(&[("email", "ann@example.com"), ("password", PASSWORD)]).await;
    browser.press("Log in").await;
    // It leads back to the page with the form.
    browser.shows("Write").await;
    browser.client.switch_to_window(here).await.unwrap();
    within(browser.client.back()).await.unwrap();
    browser.shows("Write").await;
    assert_eq!(
        browser.element("input[name=text]").await.prop("value").await.unwrap().as_deref(),
        Some("a long letter")
    );
    browser.press("Send").await;
    browser.shows("Reports").await;
    let sent = gateway
        .upstream()
        .seen()
        .requests
        .into_iter()
        .filter(|request| request.method == "POST")
        .count();
    assert_eq!(sent, 1);
    browser.close().await;
}

/// With `[[route]]` tables instead of a list, so that another one can be added.
fn table(config: &str) -> String {
    let mut file: toml::Table = config.parse().unwrap();
    let routes = file.remove("route").unwrap();
    let rest = toml::to_string(&file).unwrap();
    let routes = toml::Table::from_iter([("route".to_owned(), routes)]);
    format!("{rest}\n{}", toml::to_string(&routes).unwrap())
}

#[tokio::test]
async fn the_sessions_page_ends_another_session_in_a_browser() {
    let gateway = in_browser(SITE).await;
    let (Some(here), Some(there)) =
        (Browser::start(&gateway).await, Browser::start(&gateway).await)
    else {
        return;
    };
    register_over_tls(&here, "ann@example.com").await;
    there.goto("https://app.test/auth/login").await;
    there.fill(&[("email", "ann@example.com"), ("password", PASSWORD)]).await;
    there.press("Log in").await;
    there.shows("Reports").await;
    here.goto("https://app.test/auth/sessions").await;
    here.shows("Where you are logged in").await;
    here.picture("sessions").await;
    here.fill(&[("name", "calendar")]).await;
    here.press("Make a token").await;
    here.shows("Copy your new token").await;
    here.picture("token").await;
    here.follow("I have copied it").await;
    here.shows("Where you are logged in").await;
    here.leave_by(here.element("form[action^='/auth/sessions/'] button").await).await;
    assert!(here.text(".notice").await.contains("The session was ended."));
    there.goto("https://app.test/reports/q3").await;
    there.shows("Log in").await;
    here.goto("https://app.test/reports/q3").await;
    here.shows("Reports").await;
    there.close().await;
    here.close().await;
}

#[tokio::test]
async fn a_forgotten_password_is_reset_by_mail_in_a_browser() {
    let gateway = in_browser(SITE).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    register_over_tls(&browser, "ann@example.com").await;
    browser.goto("https://app.test/auth/login").await;
    browser.follow("Forgot your password?").await;
    browser.shows("Reset your password").await;
    browser.picture("forgot").await;
    for email in ["nobody@example.com", "ann@example.com"] {
        browser.fill(&[("email", email)]).await;
        browser.press("Send the link").await;
        assert!(
            browser.text(".notice").await.starts_with("If this address has an account"),
            "{email}"
        );
    }
    browser.picture("forgot-sent").await;
    let mail = mails(&gateway, 1).await.remove(0);
    let link = format!(
        "https://app.test/auth/password/reset?token={}",
        token(&mail, "https://app.test/auth/password/reset?token=")
    );
    browser.goto(&link).await;
    browser.shows("Set a new password").await;
    browser.picture("reset").await;
    browser.fill(&[("password", "ann")]).await;
    browser.press("Set password").await;
    assert!(browser.text("#password-wrong").await.contains('8'));
    // The link is still valid; the form carries the parameters of the page.
    browser.fill(&[("password", "another-tuba-meadow-3")]).await;
    browser.press("Set password").await;
    browser.shows("Log in").await;
    assert!(browser.text(".notice").await.contains("Your password was changed."));
    browser.fill(&[("email", "ann@example.com"), ("password", "another-tuba-meadow-3")]).await;
    browser.press("Log in").await;
    browser.shows("Reports").await;
    browser.goto(&link).await;
    assert!(browser.text(".errors").await.contains("This link was already used or has expired."));
    browser.client.find(Locator::LinkText("Send another link")).await.unwrap();
    browser.close().await;
}

#[tokio::test]
async fn a_button_confirms_an_address_and_a_link_alone_does_not_in_a_browser() {
    let gateway =
        in_browser(&SITE.replace("registration", "verify_email = true, registration")).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    browser.goto("https://app.test/auth/register?return_to=%2Freports").await;
    browser.fill(&[("email", "ann@example.com"), ("password", PASSWORD)]).await;
    browser.press("Register").await;
    browser.shows("Log in").await;
    assert!(browser.text(".notice").await.contains("Open the link in the mail"));
    let log_in = async || {
        browser.goto("https://app.test/auth/login").await;
        browser.fill(&[("email", "ann@example.com"), ("password", PASSWORD)]).await;
        browser.press("Log in").await;
    };
    log_in().await;
    assert!(browser.text(".errors").await.contains("Your e-mail address is not confirmed yet"));
    browser.picture("unverified").await;
    browser.press("Send the mail again").await;
    browser.element(".notice").await;
    let mail = mails(&gateway, 2).await.pop().unwrap();
    let link = "https://app.test/auth/email/verify?token=";
    browser.goto(&format!("{link}{}", token(&mail, link))).await;
    browser.shows("Confirm your e-mail address").await;
    browser.picture("verify").await;
    browser.fill(&[("password", PASSWORD)]).await;
    browser.press("Confirm address").await;
    browser.shows("Reports").await;
    browser.close().await;
}

/// How many forms were sent to a path, once there are this many in the log.
async fn posts(gateway: &Gateway, mark: usize, path: &str, count: usize) -> usize {
    let is_post = |line: &Value| line["url.path"] == path && line["http.request.method"] == "POST";
    let posts = || gateway.log().count_after(mark, is_post);
    within(async {
        while posts() < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
    posts()
}

#[tokio::test]
async fn a_second_factor_is_set_up_and_used_in_a_browser() {
    let gateway = in_browser(&SITE.replace("registration", "totp = true, registration")).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    register_over_tls(&browser, "ann@example.com").await;
    browser.goto("https://app.test/auth/account").await;
    browser.picture("account").await;
    browser.leave_by(browser.element("a[href='/auth/totp']").await).await;
    browser.shows("Turn on two-factor login").await;
    browser.fill(&[("current_password", PASSWORD)]).await;
    browser.press("Continue").await;
    let secret = base32(&browser.text(".secret").await.replace(' ', ""));
    browser.element(".qr svg").await;
    browser.picture("totp").await;
    browser.fill(&[("code", "000000")]).await;
    browser.press("Turn on").await;
    assert!(browser.text("#code-wrong").await.contains("The code is wrong."));
    browser.picture("totp-refused").await;
    // After a wrong code, the same QR code is shown again, without recovery codes, which do not
    // exist yet.
    browser.element(".qr svg").await;
    assert_eq!(base32(&browser.text(".secret").await.replace(' ', "")), secret);
    assert!(!browser.text("main").await.contains("recovery"));
    // The code of this time step, then of the next: a step may end during typing.
    browser.fill(&[("code", &code(&secret, 0))]).await;
    browser.press("Turn on").await;
    browser.shows("Save your recovery codes").await;
    browser.picture("recovery-codes").await;
    let recovery = browser.text(".codes li:first-child").await;
    let another = browser.text(".codes li:last-child").await;
    browser.client.delete_all_cookies().await.unwrap();
    let begun = gateway.log().mark();
    for proof in [code(&secret, 1), recovery.clone()] {
        browser.goto("https://app.test/auth/login?return_to=%2Freports").await;
        browser.fill(&[("email", "ann@example.com"), ("password", PASSWORD)]).await;
        browser.press("Log in").await;
        browser.shows("Enter your code").await;
        assert_eq!(
            browser.client.active_element().await.unwrap().attr("name").await.unwrap().as_deref(),
            Some("code")
        );
        browser.picture("login-code").await;
        if proof == recovery {
            browser.fill(&[("code", "000000")]).await;
            browser.press("Log in").await;
            assert!(browser.text("#code-wrong").await.contains("The code is wrong"));
        }
        let passwords = browser.client.find_all(Locator::Css("[type=password]")).await.unwrap();
        assert!(passwords.is_empty(), "the password is asked for once");
        browser.fill(&[("code", &proof)]).await;
        browser.press("Log in").await;
        browser.shows("Reports").await;
        assert_eq!(browser.url().await, "https://app.test/reports");
    }
    let sent = async |path: &str, count: usize| posts(&gateway, begun, path, count).await;
    assert_eq!((sent("/auth/login/code", 3).await, sent("/auth/login", 2).await), (3, 2));
    browser.goto("https://app.test/auth/totp").await;
    browser.shows("Turn off two-factor login").await;
    browser.picture("totp-off").await;
    browser.fill(&[("current_password", PASSWORD), ("code", &another)]).await;
    browser.press("Turn off").await;
    browser.shows("Your account").await;
    assert!(browser.text(".notice").await.contains("Two-factor login is off."));
    browser.close().await;
}
