//! Every page for people: without a fault that axe-core finds, light and dark, in both languages;
//! with longer text in both directions; and with the keyboard alone.

use fantoccini::Locator;
use serde_json::json;

use crate::by_mail::{mails, token};
use crate::harness::{Browser, Gateway};
use crate::pages::{ACCOUNT_PAGES, PASSWORD, SITE, in_browser};
use crate::second_factor::{base32, code};

/// A tour of all pages, each of which is checked.
struct Tour<'a, C> {
    gateway: &'a Gateway,
    browser: Browser,
    language: &'static str,
    email: String,
    /// Whether Enter sends a form, and no script runs.
    by_keyboard: bool,
    check: C,
}

/// Starts a gateway whose pages have everything that a page can have.
async fn site() -> Gateway {
    let away = "login.corp = { name = 'Example Corp', issuer = 'http://127.0.0.1:1', client_id = 'a', client_secret = { file = 'tls.key' } }";
    let routes = "route = [
    { path = '/admin/*', upstream = 'shown', token_from = ['cookie'], roles = ['admin'] },
    { path = '/gone/*', upstream = 'gone', token_from = ['cookie'] },";
    let site = SITE
        .replace("registration", &format!("{away}, totp = true, verify_email = true, registration"))
        .replace("upstream = 'app',", "upstream = 'shown',")
        .replace("route = [", routes);
    let upstreams = "upstream.shown.builtin = 'echo'\nupstream.gone.url = 'http://127.0.0.1:1'\n";
    in_browser(&format!("{upstreams}{site}")).await
}

impl<'a, C: AsyncFn(&Browser, &str)> Tour<'a, C> {
    /// Visits every page, with this language of the browser.
    async fn of(gateway: &'a Gateway, language: &'static str, by_keyboard: bool, check: C) {
        let Some(browser) = Browser::start(gateway).await else { return };
        let headers = json!({ "headers": { "Accept-Language": language } });
        browser.command("Network.enable", json!({})).await;
        browser.command("Network.setExtraHTTPHeaders", headers).await;
        let disabled = json!({ "value": by_keyboard });
        browser.command("Emulation.setScriptExecutionDisabled", disabled).await;
        let email = format!("{language}@example.com");
        let tour = Self { gateway, browser, language, email, by_keyboard, check };
        tour.without_account().await;
        tour.register().await;
        tour.account().await;
        tour.token().await;
        let secret = tour.second_factor().await;
        tour.log_in_again(&secret).await;
        tour.browser.close().await;
    }

    async fn check(&self, name: &str) {
        (self.check)(&self.browser, &format!("{}-{name}", self.language)).await;
    }

    async fn goto(&self, path: &str) {
        self.browser.goto(&format!("https://app.test{path}")).await;
    }

    async fn open(&self, path: &str) {
        self.goto(path).await;
        self.check(path.trim_start_matches('/').replace(['/', '?', '=', '%'], "-").as_str()).await;
    }

    /// Sends the form with this path.
    async fn send(&self, path: &str, fields: &[(&str, &str)]) {
        let form = self.browser.element(&format!("form[action='/auth{path}']")).await;
        let within_form = async |css: &str| form.find(Locator::Css(css)).await.unwrap();
        let mut last = None;
        for (name, value) in fields {
            let field = within_form(&format!("input[name={name}]")).await;
            field.clear().await.unwrap();
            field.send_keys(value).await.unwrap();
            last = Some(field).filter(|_| self.by_keyboard);
        }
        match last {
            Some(field) => self.browser.leave_by_enter(field).await,
            None => self.browser.leave_by(within_form("button").await).await,
        }
    }

    /// The same, and checks the page that is the response.
    async fn send_and_check(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        expected: &str,
        name: &str,
    ) {
        self.send(path, fields).await;
        self.browser.element(expected).await;
        self.check(name).await;
    }

    /// The path and query of a mailed link.
    async fn mailed(&self, path: &str) -> String {
        let link = format!("https://app.test/auth{path}?token=");
        let mut count = 1;
        loop {
            let sent = mails(self.gateway, count).await;
            // German letters make it quoted-printable (RFC 2045 §6.7).
            let mut read =
                sent.iter().rev().map(|mail| mail.replace("=\r\n", "").replace("=3D", "="));
            if let Some(mail) = read.find(|mail| mail.contains(&self.email) && mail.contains(&link))
            {
                return format!("/auth{path}?token={}", token(&mail, &link));
            }
            count = sent.len().max(count) + 1;
        }
    }

    async fn without_account(&self) {
        for path in [
            "/auth/login",
            "/auth/login?done=everywhere",
            "/auth/login/corp",
            "/auth/register",
            "/auth/password/forgot",
            "/auth/logout",
            "/auth/password/reset?token=a",
            "/auth/nothing",
        ] {
            self.open(path).await;
        }
        self.goto("/auth/login").await;
        let form = "const form = document.createElement('form'); form.method = 'post';
            form.action = '/letters'; document.body.append(form); form.submit()";
        self.browser.client.execute(form, vec![]).await.unwrap();
        self.browser.element("ol").await;
        self.check("unsent").await;
    }

    async fn register(&self) {
        let email = ("email", &*self.email);
        self.goto("/auth/login").await;
        let wrong = [email, ("password", "Wr0ng-guess!")];
        self.send_and_check("/login", &wrong, ".errors", "login-refused").await;
        self.goto("/auth/register").await;
        let weak = [email, ("password", "password")];
        self.send_and_check("/register", &weak, "#password-wrong", "register-refused").await;
        let good = [email, ("password", PASSWORD)];
        self.send_and_check("/register", &good, ".notice", "registered").await;
        self.send_and_check("/login", &good, "form[action='/auth/email/resend']", "unverified")
            .await;
        self.open(&self.mailed("/email/verify").await).await;
        self.send_and_check("/email/verify", &[("password", PASSWORD)], "details", "echo").await;
        for path in ["/admin/a", "/gone/a", "/a%2Fb"] {
            self.open(path).await;
        }
    }

    async fn account(&self) {
        for path in ACCOUNT_PAGES {
            self.open(path).await;
        }
        self.goto("/auth/password/change").await;
        let wrong = [("current_password", "Wr0ng-guess!"), ("new_password", PASSWORD)];
        let place = "#current_password-wrong";
        self.send_and_check("/password/change", &wrong, place, "change-refused").await;
        self.goto("/auth/account/email").await;
        let new = format!("new-{}", self.email);
        let asked = [("email", new.as_str())];
        self.send_and_check("/account/email", &asked, ".notice", "email-asked").await;
        self.open(&self.mailed("/email/change").await).await;
    }

    async fn token(&self) {
        self.goto("/auth/sessions").await;
        let named = [("name", "calendar")];
        self.send_and_check("/tokens", &named, "#token", "token").await;
        self.open("/auth/sessions").await;
        self.send_and_check("/tokens", &named, "#name-wrong", "token-refused").await;
    }

    /// Returns the secret of the app.
    async fn second_factor(&self) -> Vec<u8> {
        self.open("/auth/totp").await;
        let password = [("current_password", PASSWORD)];
        self.send("/totp", &password).await;
        let secret = base32(&self.browser.text(".secret").await.replace(' ', ""));
        self.check("totp-begun").await;
        let wrong = [("code", "000000")];
        self.send_and_check("/totp/confirm", &wrong, "#code-wrong", "totp-refused").await;
        let right = code(&secret, 0);
        self.send_and_check("/totp/confirm", &[("code", &right)], ".codes", "codes").await;
        for path in ["/auth/account", "/auth/totp/codes", "/auth/totp"] {
            self.open(path).await;
        }
        secret
    }

    async fn log_in_again(&self, secret: &[u8]) {
        self.browser.client.delete_all_cookies().await.unwrap();
        self.goto("/auth/password/forgot").await;
        let email = ("email", &*self.email);
        self.send_and_check("/password/forgot", &[email], ".notice", "forgot-sent").await;
        self.open(&self.mailed("/password/reset").await).await;
        self.goto("/auth/login").await;
        let right = [email, ("password", PASSWORD)];
        self.send_and_check("/login", &right, "#code", "login-code").await;
        let wrong = [("code", "000000")];
        self.send_and_check("/login/code", &wrong, "#code-wrong", "login-code-refused").await;
        self.send("/login/code", &[("code", &code(secret, 1))]).await;
        self.browser.element("details").await;
    }
}

/// Sets what a style sheet may ask about.
async fn emulate(browser: &Browser, name: &str, value: &str) {
    let features = json!({ "features": [{ "name": name, "value": value }] });
    browser.command("Emulation.setEmulatedMedia", features).await;
}

async fn resize(browser: &Browser, width: u32) {
    let metrics = json!({ "width": width, "height": 760, "deviceScaleFactor": 1, "mobile": false });
    browser.command("Emulation.setDeviceMetricsOverride", metrics).await;
}

/// Checks the page that the browser shows.
pub async fn is_sound(browser: &Browser, name: &str) {
    for scheme in ["light", "dark"] {
        emulate(browser, "prefers-color-scheme", scheme).await;
        browser.picture(&format!("{name}-{scheme}")).await;
        let found = browser.violations().await;
        assert!(found.is_empty(), "{name}, {scheme}: {found:#?}");
    }
}

#[tokio::test]
async fn no_page_has_an_accessibility_violation() {
    for language in ["en", "de"] {
        // Each has a gateway of its own: both together would exceed the limits by address.
        Tour::of(&site().await, language, false, is_sound).await;
    }
}

/// WCAG 2.2, 1.4.4 and 1.4.10: nothing is cut off, overlaps or scrolls sideways.
async fn fits(browser: &Browser, name: &str) {
    let layout = include_str!("layout.js");
    for width in [320, 1280] {
        resize(browser, width).await;
        for direction in ["ltr", "rtl"] {
            for size in [100, 200] {
                let arguments = vec![direction.into(), size.into()];
                let wrong = browser.client.execute(layout, arguments).await.unwrap();
                if (direction, size) == ("rtl", 100) || wrong != json!([]) {
                    browser.picture(&format!("{name}-{direction}-{width}-{size}")).await;
                }
                assert_eq!(wrong, json!([]), "{name}, {direction}, {width} pixels, {size} %");
            }
        }
    }
    browser.client.execute(layout, vec![]).await.unwrap();
    browser.command("Emulation.clearDeviceMetricsOverride", json!({})).await;
}

#[tokio::test]
async fn longer_text_in_either_direction_fits_every_page() {
    Tour::of(&site().await, "en", false, fits).await;
}

/// What the keyboard reaches, in the order of the page, and how each of them looks with the focus.
const REACHED: &str = "
    const all = [...document.querySelectorAll('a[href], button, input:not([type=hidden], [hidden]), select, summary')];
    const { activeElement } = document;
    const style = getComputedStyle(activeElement);
    const box = activeElement.getBoundingClientRect();
    const mark = parseFloat(style.outlineWidth) + parseFloat(style.outlineOffset);
    const isSeen = box.top >= mark && box.bottom <= innerHeight - mark
        && box.left >= mark && box.right <= innerWidth - mark;
    const isMarked = style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2;
    return [all.length, all.indexOf(activeElement), isSeen && isMarked, document.getAnimations().length]";

/// Walks with the Tab key from the top of the page to its end.
async fn is_walked(browser: &Browser, name: &str) {
    let size = "return performance.getEntriesByType('navigation')[0].decodedBodySize";
    let size = browser.client.execute(size, vec![]).await.unwrap().as_u64().unwrap();
    assert!((1..10 * 1024).contains(&size), "{name} has {size} bytes");
    for (feature, value) in [("prefers-reduced-motion", "reduce"), ("forced-colors", "active")] {
        emulate(browser, feature, value).await;
        let top = "document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')";
        browser.client.execute(top, vec![]).await.unwrap();
        let mut at = 0;
        loop {
            press(browser, "Tab", 9).await;
            let reached = browser.client.execute(REACHED, vec![]).await.unwrap();
            let count = reached[0].as_i64().unwrap();
            if at == count {
                assert!(reached[1] != at - 1, "{name}: no way out of the page: {reached}");
                break;
            }
            assert_eq!(reached, json!([count, at, true, 0]), "{name}, {feature}");
            at += 1;
        }
        browser.picture(&format!("{name}-{feature}")).await;
    }
    emulate(browser, "forced-colors", "none").await;
}

async fn press(browser: &Browser, key: &str, number: u32) {
    for kind in ["rawKeyDown", "keyUp"] {
        let event =
            json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": number });
        browser.command("Input.dispatchKeyEvent", event).await;
    }
}

#[tokio::test]
async fn every_page_works_with_the_keyboard_and_without_scripts() {
    Tour::of(&site().await, "en", true, is_walked).await;
}
