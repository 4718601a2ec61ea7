//! One login for several hosts (CONTRACT §10.6, §15).

use crate::harness::accounts::PASSWORD;
use crate::harness::client::Request;
use crate::harness::jar::navigates;
use crate::harness::{Gateway, Response};

const LOGIN: &str = "login.example.com";
const WIKI: &str = "wiki.example.com";
const ACCESS: &str = "__Secure-portcullis";
const SESSION: &str = "__Secure-portcullis-session";

const SITE: &str = "
identity = { issuer = 'https://login.example.com/auth', registration = 'open', cookie_domain = 'Example.com' }
limit.wide = { requests = 1000, per = '1s' }
route = [
    { host = 'login.example.com', path = '/auth/*', identity = true, limit = 'wide' },
    { host = 'wiki.example.com', path = '/*', upstream = 'app', token_from = ['cookie'] },
    { host = '*.apps.example.com', path = '/*', upstream = 'app', token_from = ['cookie'] },
]";

/// The cookies of an answer as a browser sends them; their attributes are checked on the way.
#[track_caller]
fn cookies(response: &Response) -> Vec<(String, String)> {
    let pair = |line: &&str| {
        let (pair, attributes) = line.split_once("; ").unwrap();
        assert!(attributes.starts_with("Path=/; Max-Age="), "{line}");
        assert!(
            attributes.ends_with("; Domain=example.com; HttpOnly; Secure; SameSite=Lax"),
            "{line}"
        );
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    response.headers("set-cookie").iter().map(pair).collect()
}

fn with(request: Request, cookies: &[(String, String)]) -> Request {
    let pairs: Vec<String> =
        cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    request.header("Cookie", &format!("theme=dark; {}", pairs.join("; ")))
}

async fn log_in(gateway: &Gateway, return_to: &str) -> Response {
    let body: String = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("email", "ann@example.com"), ("password", PASSWORD)])
        .append_pair("return_to", return_to)
        .append_pair("keep", "true")
        .finish();
    gateway
        .request("POST", "/auth/login")
        .host(LOGIN)
        .header("Origin", "https://login.example.com")
        .header("Accept", "text/html")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(body)
        .send()
        .await
}

async fn start() -> Gateway {
    let gateway = Gateway::start(SITE).await;
    let body = serde_json::json!({ "email": "ann@example.com", "password": PASSWORD });
    let registered = gateway.post("/auth/register", &body).host(LOGIN).send().await;
    assert_eq!(registered.status, 201, "{registered:?}");
    gateway
}

#[tokio::test]
async fn a_login_on_one_host_is_one_on_every_host() {
    let gateway = start().await;
    let page = navigates(gateway.get("/page?a=b").host(WIKI)).send().await;
    let login = "https://login.example.com/auth/login?return_to=https%3A%2F%2Fwiki.example.com%2Fpage%3Fa%3Db";
    assert_eq!((page.status, page.header("location")), (303, Some(login)));
    // The page of the login keeps where to go.
    let query = login.strip_prefix("https://login.example.com").unwrap();
    let form = navigates(gateway.get(query).host(LOGIN)).send().await.text();
    assert!(form.contains("value=\"https://wiki.example.com/page?a=b\""), "{form}");
    let back = log_in(&gateway, "https://wiki.example.com/page?a=b").await;
    assert_eq!(
        (back.status, back.header("location")),
        (303, Some("https://wiki.example.com/page?a=b"))
    );
    let jar = cookies(&back);
    assert_eq!(jar.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [ACCESS, SESSION]);
    for host in [WIKI, "a.apps.example.com"] {
        assert_eq!(with(gateway.get("/page").host(host), &jar).send().await.status, 200, "{host}");
        assert_eq!(gateway.upstream().last().header("cookie"), Some("theme=dark"));
        // A page of one host changes nothing on another one.
        for (origin, status) in
            [(format!("http://{host}"), 200), ("https://login.example.com".to_owned(), 403)]
        {
            let post = gateway.request("POST", "/page").host(host).header("Origin", &origin);
            assert_eq!(with(post, &jar).send().await.status, status, "{host} {origin}");
        }
    }
    // Renewed where the request is, for all of them.
    let renewed = with(gateway.get("/page").host(WIKI), &jar[1..]).send().await;
    assert_eq!((renewed.status, cookies(&renewed).len()), (200, 2));
    // A form that comes too late is told where to log in.
    let form = navigates(gateway.request("POST", "/page").host(WIKI)).send().await;
    assert_eq!(form.status, 401);
    assert!(
        form.text().contains("href=\"https://login.example.com/auth/login?return_to=https%3A%2F%2Fwiki.example.com%2F\""),
        "{}",
        form.text()
    );
    // And the logout is one for all of them.
    let logout = gateway
        .request("POST", "/auth/logout")
        .host(LOGIN)
        .header("Origin", "https://login.example.com");
    let ended = with(logout, &jar).body("").send().await;
    assert_eq!(ended.status, 204, "{ended:?}");
    assert!(cookies(&ended).iter().all(|(_, value)| value.is_empty()));
    let page = with(navigates(gateway.get("/page").host(WIKI)), &jar).send().await;
    assert_eq!(page.status, 303);
    assert!(cookies(&page).iter().all(|(_, value)| value.is_empty()));
}

#[tokio::test]
async fn a_login_leads_to_no_other_site() {
    let gateway = start().await;
    for elsewhere in [
        "https://evil.test/",
        "https://wiki.example.com.evil.test/",
        "https://wiki.example.com@evil.test/",
        "https://unnamed.example.com/",
        "https://.apps.example.com/",
        "http://wiki.example.com/",
        "//wiki.example.com/",
        "https://wiki.example.com:8443/",
        "https://wiki.example.com\\.evil.test/",
    ] {
        let back = log_in(&gateway, elsewhere).await;
        assert_eq!((back.status, back.header("location")), (303, Some("/")), "{elsewhere}");
    }
    for host in ["a.apps.example.com", WIKI] {
        let url = format!("https://{host}/x");
        assert_eq!(log_in(&gateway, &url).await.header("location"), Some(&*url));
    }
}
