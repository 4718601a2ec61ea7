//! Logins at providers in a real browser, with many tabs, scripts and WebSockets. The same holds for
//! both implementations.

use std::net::SocketAddr;
use std::time::Instant;

use fantoccini::wd::WindowHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;

use super::{ACCESS, ANOTHER, CERTIFIED, SESSION, Site, claims_of, file};
use crate::accessible::is_sound;
use crate::harness::{Browser, Gateway, PATIENCE, within};
use crate::pages::html;

const HOME: &str = "http://app.localhost";

/// A provider, a gateway in front of an application with pages, and a browser.
struct Place {
    site: Site,
    browser: Browser,
}

impl Place {
    /// `identity` and `login`: lines for `[identity]` and for the provider.
    async fn start(
        implementation: &str,
        serve: &Value,
        (identity, login): (&str, &str),
    ) -> Option<Self> {
        let socket = echo().await;
        let set_up = |issuer: &str| {
            let route =
                "upstream = 'app'\ntoken_from = ['header', 'cookie']\nissuers = ['identity']";
            let more = format!(
                "{login}\n[upstream.socket]\nurl = 'http://{socket}'\n\
                 [[route]]\npath = '/socket'\nupstream = 'socket'\ntoken_from = ['cookie']\nissuers = ['identity']\n\
                 [[route]]\npath = '/admin/*'\nroles = ['admin']\n{route}\n\
                 [[route]]\npath = '/password/*'\nlogin = ['password']\n{route}\n\
                 [[route]]\npath = '/open'\naccess = 'public'\nupstream = 'app'"
            );
            Gateway::setup(&file(issuer, identity, &more).replace("http://app.test", HOME))
        };
        let site = Site::at(implementation, serve, set_up).await?;
        site.gateway.upstream().answers(&html("<h1>Application</h1>"));
        let browser = Browser::resolving("app.localhost", &site.gateway).await?;
        Some(Self { site, browser })
    }

    /// Opens a page, and logs in on the way there.
    async fn log_in(&self, path: &str) {
        self.browser.goto(&format!("{HOME}{path}")).await;
        self.arrives(path).await;
    }

    /// Waits for the application's page at this path.
    async fn arrives(&self, path: &str) {
        self.browser.shows("Application").await;
        assert_eq!(self.browser.url().await, format!("{HOME}{path}"));
    }

    /// Opens these pages at once, each in a tab of its own, and waits for all of them.
    async fn all_arrive(&self, paths: &[String]) {
        let (client, first) = (&self.browser.client, self.tab().await);
        let before = client.windows().await.unwrap();
        let open = "for (const path of arguments[0]) window.open(arguments[1] + path)";
        within(client.execute(open, vec![json!(paths), json!(HOME)])).await.unwrap();
        let mut missing = paths.to_vec();
        for tab in client.windows().await.unwrap() {
            if before.contains(&tab) {
                continue;
            }
            client.switch_to_window(tab).await.unwrap();
            self.browser.shows("Application").await;
            let url = self.browser.url().await;
            missing.retain(|path| format!("{HOME}{path}") != url);
            client.close_window().await.unwrap();
        }
        assert!(missing.is_empty(), "these pages were not reached: {missing:?}");
        client.switch_to_window(first).await.unwrap();
    }

    async fn tab(&self) -> WindowHandle {
        self.browser.client.window().await.unwrap()
    }

    /// The cookies of the gateway: names and values.
    async fn cookies(&self) -> Vec<(String, String)> {
        let cookies = within(self.browser.client.get_all_cookies()).await.unwrap();
        let pairs = cookies.iter().map(|cookie| (cookie.name().into(), cookie.value().into()));
        let mut pairs: Vec<(String, String)> = pairs.collect();
        pairs.sort();
        pairs
    }

    async fn access_token(&self) -> String {
        let cookies = self.cookies().await;
        cookies.into_iter().find(|(name, _)| name == ACCESS).expect("a session").1
    }

    async fn sid(&self) -> Value {
        claims_of(&self.access_token().await)["sid"].clone()
    }

    async fn status_with(&self, token: &str) -> u16 {
        self.site.gateway.get("/x").bearer(token).send().await.status
    }

    /// How often sessions were renewed here.
    async fn renewals(&self) -> f64 {
        let gateway = &self.site.gateway;
        let outcome = &["outcome=\"succeeded\""];
        gateway.metric_value("portcullis_refresh_total", outcome).await.unwrap_or(0.0)
    }

    /// Logs out at the provider. Returns once the gateway knows.
    async fn log_out_there(&mut self, implementation: &str) {
        if implementation == ANOTHER {
            let told = self.site.provider.ask(json!({ "do": "logout" }));
            assert_eq!(told["told"], 1, "{told}");
            return;
        }
        let (client, first) = (self.browser.client.clone(), self.tab().await);
        let tab = client.new_window(true).await.unwrap().handle;
        client.switch_to_window(tab).await.unwrap();
        self.browser.goto(&format!("{}/session/end", self.site.issuer)).await;
        let button = self.browser.element("button[name=logout]").await;
        self.browser.leave_by(button).await;
        client.close_window().await.unwrap();
        client.switch_to_window(first).await.unwrap();
    }
}

/// A WebSocket server that reads and never writes.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                use futures_util::StreamExt;
                let mut socket = accept_async(stream).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    address
}

const BOTH: [&str; 2] = [CERTIFIED, ANOTHER];

/// The access token of twenty tabs has expired, and the provider is asked every few seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_tabs_go_on_when_the_access_token_expires() {
    let (ttl, every) = (4_u32, 4_u32);
    let identity = format!("access_token_ttl = '{ttl}s'\npassword_login = false");
    let recheck = format!("recheck = '{every}s'");
    for implementation in BOTH {
        let serve = json!({ "do": "serve" });
        let lines = (&*identity, &*recheck);
        let Some(mut place) = Place::start(implementation, &serve, lines).await else { return };
        place.log_in("/first").await;
        let (sid, token) = (place.sid().await, place.access_token().await);
        within(async { while place.status_with(&token).await == 200 {} }).await;
        let (asked, renewed) = (place.site.count("/token"), place.renewals().await);
        let begun = Instant::now();
        let paths: Vec<String> = (0..20).map(|tab| format!("/page/{tab}?x={tab}")).collect();
        place.all_arrive(&paths).await;
        let (asked, renewed) =
            (place.site.count("/token") - asked, place.renewals().await - renewed);
        let took = u32::try_from(begun.elapsed().as_secs()).unwrap();
        assert!(
            asked <= u64::from(1 + took / every),
            "{implementation}: {asked} requests in {took} s"
        );
        assert!(renewed <= f64::from(1 + took / ttl), "{implementation}: {renewed} in {took} s");
        assert_eq!(place.sid().await, sid, "{implementation}: it is the same session");
        place.browser.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_logins_in_tabs_of_one_browser_all_arrive() {
    for implementation in BOTH {
        let lines = ("password_login = false", "");
        let serve = json!({ "do": "serve" });
        let Some(place) = Place::start(implementation, &serve, lines).await else { return };
        place.browser.goto(&format!("{HOME}/open")).await;
        let paths: Vec<String> = (0..8).map(|tab| format!("/page/{tab}")).collect();
        place.all_arrive(&paths).await;
        let names: Vec<String> = place.cookies().await.into_iter().map(|pair| pair.0).collect();
        for name in [ACCESS, SESSION] {
            assert!(names.iter().any(|found| found == name), "{implementation}: {names:?}");
        }
        place.browser.close().await;
    }
}

/// What a page notes about its WebSocket.
const CONNECT: &str = "const done = arguments[0];
    const socket = new WebSocket('/socket');
    socket.onopen = () => done('open');
    socket.onerror = () => done('error');
    socket.onclose = event => { window.over = [event.code, Date.now()] }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_at_the_provider_ends_everything_within_a_second() {
    for implementation in BOTH {
        let serve = json!({ "do": "serve" });
        let lines = ("password_login = false", "recheck = '1h'");
        let Some(mut place) = Place::start(implementation, &serve, lines).await else { return };
        place.log_in("/desk").await;
        let token = place.access_token().await;
        assert_eq!(place.status_with(&token).await, 200);
        let client = place.browser.client.clone();
        let opened = within(client.execute_async(CONNECT, vec![])).await.unwrap();
        assert_eq!(opened, "open", "{implementation}");
        place.log_out_there(implementation).await;
        assert_eq!(place.status_with(&token).await, 401, "{implementation}");
        let over = within(async {
            loop {
                let over = client.execute("return window.over ?? null", vec![]).await.unwrap();
                if !over.is_null() {
                    return over;
                }
            }
        })
        .await;
        let told = place
            .site
            .gateway
            .log()
            .until("the logout", |line| line["message"] == "logged_out_at_provider")
            .await;
        let told = milliseconds(told["timestamp"].as_str().unwrap());
        let after = over[1].as_i64().unwrap() - told;
        assert_eq!(over[0], 1008, "{implementation}");
        assert!(after < 1000, "{implementation}: the WebSocket went on for {after} ms");
        // A script learns it from the status; no cookie changes, so other tabs keep theirs.
        let cookies = place.cookies().await;
        assert_eq!(place.browser.fetch("/data").await, 401, "{implementation}");
        assert_eq!(place.cookies().await, cookies);
        place.browser.close().await;
    }
}

/// Of a time of the log, such as `2026-11-30T03:09:10.940125Z`: in the day.
fn milliseconds(timestamp: &str) -> i64 {
    humantime::parse_rfc3339(timestamp)
        .unwrap()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis()
        .try_into()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_the_provider_takes_away_is_gone_in_the_browser() {
    for implementation in BOTH {
        let serve = json!({ "do": "serve" });
        let lines = ("password_login = false", "roles = 'groups'\nrecheck = '1s'");
        let Some(mut place) = Place::start(implementation, &serve, lines).await else { return };
        place.site.person("ann", &json!({ "groups": ["admin"] }));
        place.log_in("/admin/people").await;
        let sid = place.sid().await;
        assert_eq!(place.browser.fetch("/admin/data").await, 200, "{implementation}");
        place.site.person("ann", &json!({ "groups": ["reader"] }));
        within(async { while place.browser.fetch("/admin/data").await == 200 {} }).await;
        assert_eq!(place.browser.fetch("/admin/data").await, 403, "{implementation}");
        place.browser.goto(&format!("{HOME}/admin/people")).await;
        place.browser.shows("You do not have access").await;
        // The provider would only log the same person in again.
        place.browser.follow("Log out").await;
        place.browser.shows("Log out?").await;
        // The person is still logged in, in the same session.
        place.log_in("/desk").await;
        assert_eq!(place.sid().await, sid, "{implementation}");
        place.browser.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_gets_a_status_and_no_cookie() {
    for implementation in BOTH {
        let serve = json!({ "do": "serve" });
        let lines = ("password_login = false", "");
        let Some(place) = Place::start(implementation, &serve, lines).await else { return };
        place.browser.goto(&format!("{HOME}/open")).await;
        assert_eq!(place.browser.fetch("/data").await, 401);
        assert_eq!(place.cookies().await, [], "{implementation}");
        // The same request, with its fields visible.
        for accept in ["*/*", "application/json", "text/html"] {
            let request = place.site.gateway.get("/data").header("Accept", accept);
            let response = request.header("Sec-Fetch-Mode", "cors").send().await;
            response.is(401, "credentials_missing");
            assert!(response.headers("set-cookie").is_empty(), "{response:?}");
            assert_eq!(response.header("location"), None);
        }
        place.browser.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_are_small_in_a_browser_however_large_the_tokens_are() {
    for implementation in BOTH {
        let serve = json!({ "do": "serve", "large": 16 * 1024 });
        let lines = ("password_login = false", "");
        let Some(place) = Place::start(implementation, &serve, lines).await else { return };
        place.log_in("/desk").await;
        // Logins that were begun and never finished are in a cookie too.
        let script = "const done = arguments[0];
            const one = tab => fetch('/auth/login/corp?return_to=/' + tab, { redirect: 'manual' });
            Promise.all([...Array(12).keys()].map(one)).then(() => done(true), error => done(String(error)))";
        let begun = within(place.browser.client.execute_async(script, vec![])).await.unwrap();
        assert_eq!(begun, true);
        place.log_in("/desk/again").await;
        let cookies = place.cookies().await;
        assert_eq!(cookies.len(), 3, "access token, session, logins: {cookies:?}");
        let field: usize = cookies.iter().map(|(name, value)| name.len() + value.len() + 3).sum();
        assert!(field < 2048, "{implementation}: {field} bytes");
        assert_eq!(place.site.gateway.upstream().last().header("cookie"), None);
        place.browser.close().await;
    }
}

/// For many intervals, and longer than an access token lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_is_lost_while_the_provider_is_away() {
    for implementation in BOTH {
        let serve = json!({ "do": "serve" });
        let lines =
            ("password_login = false\naccess_token_ttl = '1s'", "roles = 'groups'\nrecheck = '1s'");
        let Some(mut place) = Place::start(implementation, &serve, lines).await else { return };
        place.site.person("ann", &json!({ "groups": ["admin"] }));
        place.log_in("/admin/first").await;
        let sid = place.sid().await;
        place.site.provider.ask(json!({ "do": "down" }));
        place
            .site
            .logged("cannot check a session at its provider; the session continues", "corp")
            .await;
        let renewed = place.renewals().await;
        let deadline = Instant::now() + PATIENCE;
        let mut page = 0;
        while place.renewals().await < renewed + 4.0 {
            place.log_in(&format!("/admin/{page}")).await;
            assert_eq!(place.browser.fetch("/admin/data").await, 200, "{implementation}");
            page += 1;
            assert!(Instant::now() < deadline, "the access token expires");
        }
        // It is back, and its word counts again.
        place.site.provider.ask(json!({ "do": "up" }));
        place.site.person("ann", &json!({ "groups": [] }));
        within(async {
            loop {
                // An access token lasts for a second: a page renews it.
                place.log_in("/desk").await;
                if place.browser.fetch("/admin/data").await == 403 {
                    return;
                }
            }
        })
        .await;
        assert_eq!(place.sid().await, sid, "{implementation}");
        place.browser.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_of_a_person_of_a_provider_are_sound() {
    let serve = json!({ "do": "serve" });
    let lines = ("registration = 'open'", "");
    let Some(mut place) = Place::start(CERTIFIED, &serve, lines).await else { return };
    let browser = &place.browser;
    browser.goto(&format!("{HOME}/auth/login?return_to=%2Fdesk")).await;
    assert_eq!(browser.text(".or").await, "or with your password");
    is_sound(browser, "provider-login").await;
    browser.goto(&format!("{HOME}/auth/login?return_to=%2Fdesk")).await;
    browser.follow("Log in with Example Corp").await;
    place.arrives("/desk").await;
    for (path, heading, name) in [
        ("/auth/account", "Your account", "provider-account"),
        ("/auth/sessions", "Where you are logged in", "provider-sessions"),
        ("/password/x", "Log in another way", "provider-other-way"),
    ] {
        browser.goto(&format!("{HOME}{path}")).await;
        browser.shows(heading).await;
        is_sound(browser, name).await;
    }
    // Another way is one click away, and leads back.
    browser.goto(&format!("{HOME}/password/x")).await;
    browser.follow("Log in another way").await;
    browser.element("input[name=password]").await;
    assert_eq!(browser.url().await, format!("{HOME}/auth/login?return_to=%2Fpassword%2Fx"));
    place.site.provider.ask(json!({ "do": "down" }));
    place.site.gateway.kill_and_restart().await;
    let away = Browser::resolving("app.localhost", &place.site.gateway).await.unwrap();
    away.goto(&format!("{HOME}/auth/login/corp?return_to=%2Fdesk")).await;
    away.element(".errors").await;
    is_sound(&away, "provider-away").await;
    away.close().await;
    place.browser.close().await;
}
