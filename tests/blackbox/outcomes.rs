//! What a person sees if a request to an application is refused or fails (CONTRACT §15.6).

use std::fmt::Write as _;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::harness::client::Request;
use crate::harness::{Connection, Gateway, Response, Step, mint};
use crate::pages::register;

const SITE: &str = "
identity = { issuer = 'https://app.test/auth', registration = 'open', brand = { name = 'Example' } }
server.limits.max_body = '1KiB'
limit.few = { requests = 1, per = '1m' }
upstream.gone.url = 'http://127.0.0.1:1'
upstream.slow = { url = 'http://$UPSTREAM', response_timeout = '100ms' }
upstream.busy = { url = 'http://$UPSTREAM', max_requests = 1 }
[issuer.corp]
issuer = 'https://login.test/corp'
audience = ['reports']
algorithms = ['HS256']
secret = { file = 'corp.secret' }
[issuer.away]
issuer = 'https://away.test'
audience = ['reports']
algorithms = ['ES256']
jwks_url = 'http://127.0.0.1:1/keys'
";

/// The routes of the test, each of which takes cookies.
fn site(more: &str) -> String {
    let mut site = SITE.to_owned();
    for (path, rest) in [
        ("/auth/*", "identity = true"),
        ("/admin/*", "upstream = 'app'\nroles = ['admin']"),
        ("/few/*", "upstream = 'app'\nlimit = 'few'"),
        ("/gone/*", "upstream = 'gone'"),
        ("/slow/*", "upstream = 'slow'"),
        ("/busy/*", "upstream = 'busy'"),
        ("/aged/*", "upstream = 'app'\nstream_max_age = '1s'"),
        ("/reports/*", "upstream = 'app'\nmethods = ['GET', 'POST']"),
        ("/recent/*", "upstream = 'app'\nmax_age = '1h'"),
    ] {
        let cookies = if path == "/auth/*" { "" } else { "token_from = ['header', 'cookie']\n" };
        write!(site, "[[route]]\npath = '{path}'\n{rest}\n{cookies}").unwrap();
    }
    site + more
}

fn with_token(request: Request, token: &str) -> Request {
    request.header("Cookie", &format!("__Host-portcullis={token}"))
}

/// As a browser asks for a page.
fn navigates(request: Request) -> Request {
    request
        .header("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
        .header("Sec-Fetch-Mode", "navigate")
        .header("Sec-Fetch-Site", "same-origin")
        .host("app.test")
}

/// That an answer is a page with this status, which can do nothing but show itself.
#[track_caller]
fn is_page(response: &Response, status: u16, title: &str, reason: &str) -> String {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"), "{response:?}");
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert!(
        response.header("content-security-policy").unwrap().starts_with("default-src 'none'"),
        "{response:?}"
    );
    let html = response.text();
    assert!(html.len() < 10 * 1024 && !html.contains("<script"), "{html}");
    assert!(html.contains(&format!("<h1>{title}</h1>")), "{html}");
    assert!(html.contains(&format!("eason {reason}, request ")), "{html}");
    html
}

#[tokio::test]
async fn a_person_gets_a_page_and_a_script_a_problem_whatever_happens() {
    let gateway = Gateway::start(&site("")).await;
    gateway.upstream().does_at("/slow/a", vec![Step::ReadBody, Step::Hold]);
    let user = mint::claims(json!({ "roles": ["user"], "email": "ann@example.com" }));
    let away = mint::Published::new("a").token(json!({ "iss": "https://away.test" }));
    let _held = occupy(&gateway, &user).await;
    navigates(with_token(gateway.get("/few/a"), &user)).send().await;
    let long = "a".repeat(2000);
    for (method, path, token, status, title, reason) in [
        ("GET", "/reports/a%2Fb", &user, 400, "This address cannot be used", "target_ambiguous"),
        ("GET", "/admin/a", &user, 403, "You do not have access", "role_missing"),
        ("GET", "/none", &user, 404, "Page not found", "route_not_found"),
        ("PUT", "/reports/a", &user, 405, "This does not work here", "method_not_allowed"),
        ("POST", "/reports/a", &user, 413, "Too large", "body_too_large"),
        ("GET", "/few/a", &user, 429, "Too many requests", "rate_limited"),
        ("GET", "/gone/a", &user, 502, "The application does not respond", "upstream_unreachable"),
        ("GET", "/reports/a", &away, 503, "Temporarily unavailable", "keys_unavailable"),
        ("GET", "/busy/a", &user, 503, "The application is busy", "overloaded"),
        ("GET", "/slow/a", &user, 504, "The application takes too long", "upstream_timeout"),
    ] {
        let ask = || {
            let request = with_token(gateway.request(method, path), token);
            let request = request.header("Origin", "https://app.test");
            if method == "POST" { request.body(&long) } else { request }
        };
        let page = navigates(ask()).header("Referer", "https://app.test/start?a=b&c").send().await;
        let html = is_page(&page, status, title, reason);
        assert!(html.contains("<a href=\"/start?a=b&#38;c\">Back</a>"), "{html}");
        assert!(html.contains("/auth/style.css") && html.contains("· Example</title>"), "{html}");
        let is_known = status != 429 && reason != "keys_unavailable";
        assert_eq!(html.contains("You are logged in as ann@example.com."), is_known, "{html}");
        assert_eq!(html.contains(">Try again</a>"), status == 429 || status >= 502, "{html}");
        if status == 403 {
            let login = "<a href=\"/auth/login?return_to=%2Fadmin%2Fa\">Log in as someone else</a>";
            assert!(html.contains(login), "{html}");
        } else {
            assert!(!html.contains("Log in"), "another login would not help: {html}");
        }
        assert_eq!(page.header("retry-after").is_some(), matches!(status, 429 | 503));
        let script =
            ask().host("app.test").header("Accept", "*/*").header("Sec-Fetch-Mode", "cors");
        script.send().await.is(status, reason);
    }
}

/// The page says who they are, and does not offer a login to somebody whose login is fine.
#[tokio::test]
async fn a_form_that_was_not_passed_on_says_who_sent_it() {
    let gateway = Gateway::start(&site("")).await;
    let claims = json!({ "email": "ann@example.com", "auth_time": mint::now() - 7200 });
    let user = mint::claims(claims);
    let form = |path: &str, origin: &str| {
        let form = with_token(gateway.request("POST", path).body("a=b"), &user);
        navigates(form.header("Origin", origin)).header("Referer", "https://app.test/form")
    };
    let page = form("/reports/a", "https://evil.test").send().await;
    let html = is_page(&page, 403, "Sent from another site", "origin_foreign");
    assert!(html.contains("You are logged in as ann@example.com."), "{html}");
    assert!(!html.contains("Log in"), "{html}");
    let page = form("/recent/a", "https://app.test").send().await;
    let html = is_page(&page, 401, "Log in and send it again", "step_up_required");
    assert!(html.contains("You are logged in as ann@example.com."), "{html}");
    assert!(html.contains("a more recent login than yours"), "{html}");
    assert!(html.contains("/auth/login?done=step_up&#38;return_to=%2Fform"), "{html}");
    let challenge = page.header("www-authenticate").unwrap();
    assert!(challenge.contains("\"A more recent authentication is required\""), "{challenge}");
    // A token that is not valid names nobody.
    let expired = mint::claims(json!({ "email": "ann@example.com", "exp": mint::now() - 900 }));
    let page = navigates(with_token(gateway.get("/none"), &expired)).send().await;
    let html = is_page(&page, 404, "Page not found", "route_not_found");
    assert!(html.contains(">Log in</a>") && !html.contains("ann@"), "{html}");
}

/// Makes the only request that an application may have in flight.
async fn occupy(gateway: &Gateway, token: &str) -> Connection {
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    gateway.upstream().does_at("/busy/held", vec![Step::Write(begun.into()), Step::Hold]);
    let mut connection = gateway.connect().await;
    connection.write(with_token(gateway.get("/busy/held"), token).bytes()).await;
    connection.head().await.unwrap();
    connection
}

/// Of a person whose login cannot be read, or who has none that counts here.
#[tokio::test]
async fn a_page_about_a_login_shows_nothing_that_a_client_chose() {
    let gateway = Gateway::start(&site("")).await;
    let user = mint::claims(json!({ "roles": ["user"], "email": "ann@example.com" }));
    let twice = gateway.get("/reports/a").header("Cookie", &format!("__Host-portcullis={user}"));
    let page = navigates(twice).bearer(&user).send().await;
    is_page(&page, 400, "The login cannot be read", "credentials_ambiguous");
    let page = navigates(gateway.get("/reports/a")).bearer("a.b.c").send().await;
    is_page(&page, 401, "You are not logged in", "token_malformed");
    let script = gateway.get("/reports/a").header("Sec-Fetch-Mode", "cors").bearer("a.b.c");
    script.send().await.is(401, "token_malformed");
    // No answer shows what a client chose without escaping it.
    let eve = mint::claims(json!({ "email": "<b>\"eve\"</b>" }));
    let page = navigates(with_token(gateway.get("/admin/a?<b>"), &eve));
    let page = page.header("Referer", "https://app.test/\"><b>").send().await;
    assert!(!page.text().contains("<b>"), "{page:?}");
    let page = navigates(with_token(gateway.get("/admin/a"), &user));
    let page = page.header("Referer", "https://evil.test/trap").send().await;
    assert!(page.text().contains("<a href=\"/\">Back</a>"), "{page:?}");
}

/// An upload that the gateway ends, and a session that cannot be renewed while the store is away.
#[tokio::test]
async fn a_person_is_told_that_an_upload_was_cut_off_or_that_logins_cannot_be_checked() {
    let store = "store = { database = 'sqlite:portcullis.db', key = { file = 'portcullis.key' } }\nlimit.few";
    let gateway = Gateway::start(&site("").replace("limit.few", store)).await;
    let user = mint::claims(json!({ "email": "ann@example.com" }));
    gateway.upstream().does_at("/aged/a", vec![Step::Hold]);
    for mode in ["navigate", "cors"] {
        let head = format!(
            "POST /aged/a HTTP/1.1\r\nHost: app.test\r\nOrigin: https://app.test\r\nAccept: text/html\r\n\
             Sec-Fetch-Mode: {mode}\r\nCookie: __Host-portcullis={user}\r\nContent-Length: 9\r\n\r\nunfinish"
        );
        let ended = gateway.raw(head).await;
        if mode == "cors" {
            ended.is(503, "draining");
            continue;
        }
        let html = is_page(&ended, 503, "The upload was cut off", "draining");
        assert!(html.contains("check whether it has arrived"), "{html}");
    }

    let session = register(&gateway, "ann@example.com").await;
    let session = session.split("; ").find(|cookie| cookie.contains("-session=")).unwrap();
    crate::store::run(&gateway, &crate::store::FAIL).await;
    let ask = || gateway.get("/reports/a").header("Cookie", session);
    let page = navigates(ask()).send().await;
    is_page(&page, 503, "Temporarily unavailable", "store_unavailable");
    ask().header("Sec-Fetch-Mode", "cors").send().await.is(503, "store_unavailable");
}

#[tokio::test]
async fn a_page_speaks_the_language_of_its_reader() {
    let gateway = Gateway::start(&site("")).await;
    let user = mint::claims(json!({ "email": "ann@example.com" }));
    let page = navigates(with_token(gateway.get("/admin/a"), &user));
    let page = page.header("Accept-Language", "fr, de-AT;q=0.9, en;q=0.8").send().await;
    assert!(page.text().contains("<html lang=\"de\" dir=\"ltr\">"), "{page:?}");
    assert!(page.text().contains("Sie sind als ann@example.com angemeldet."), "{page:?}");
    gateway.reload(&site("").replace("registration", "languages = ['en'], registration")).await;
    let page = navigates(with_token(gateway.get("/admin/a"), &user));
    let page = page.header("Accept-Language", "de").send().await;
    is_page(&page, 403, "You do not have access", "role_missing");
}

/// Without the built-in issuer, the page contains its style sheet and has no login. Routes that
/// take no cookies are for programs.
#[tokio::test]
async fn a_page_needs_no_issuer_but_a_route_for_people() {
    let route = "[[route]]\npath = '/admin/*'\nupstream = 'app'\nroles = ['admin']\n";
    let cookies = "token_from = ['header', 'cookie']\n";
    let gateway =
        Gateway::start(&format!("{route}{cookies}{}", route.replace("admin/", "api/"))).await;
    let user = mint::token(&["user"]);
    let page = navigates(with_token(gateway.get("/admin/a"), &user)).send().await;
    let html = is_page(&page, 403, "You do not have access", "role_missing");
    assert!(!html.contains("stylesheet") && !html.contains("Log in"), "{html}");
    is_permitted_to_style_itself(&page);
    navigates(gateway.get("/api/a")).bearer(&user).send().await.is(403, "role_missing");
    navigates(gateway.get("/none")).send().await.is(404, "route_not_found");
}

/// On a host without the built-in issuer, a person's lost form and a page of an error look alike.
#[tokio::test]
async fn pages_of_hosts_without_the_issuer_have_its_look() {
    let wiki = "host = 'wiki.app.test'\npath = '/edit/*'\nupstream = 'app'\nroles = ['admin']";
    let shared = site(&format!("[[route]]\n{wiki}\ntoken_from = ['cookie']\n"))
        .replace("registration =", "cookie_domain = 'app.test', registration =")
        .replace("path = '/auth/*'", "host = 'app.test'\npath = '/auth/*'");
    let gateway = Gateway::start(&shared).await;
    let form = navigates(gateway.request("POST", "/edit/a")).host("wiki.app.test").body("a=b");
    let form = form.header("Origin", "http://wiki.app.test").send().await;
    assert_eq!(form.status, 401, "{form:?}");
    let user = mint::token(&["user"]);
    let denied = navigates(gateway.get("/edit/a")).host("wiki.app.test");
    let denied = denied.header("Cookie", &format!("__Secure-portcullis={user}")).send().await;
    is_page(&denied, 403, "You do not have access", "role_missing");
    for page in [form, denied] {
        assert!(page.text().contains("· Example</title>"), "{page:?}");
        is_permitted_to_style_itself(&page);
    }
}

/// That the content security policy permits the style sheet in the page by its digest.
#[track_caller]
fn is_permitted_to_style_itself(page: &Response) {
    let html = page.text();
    let style = html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let digest = STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains(&format!("style-src 'sha256-{digest}';")), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
}
