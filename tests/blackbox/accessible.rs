//! Every page for people: without a fault that axe-core finds, light and dark, in both languages,
//! and with long text from right to left.

use serde_json::json;

use crate::harness::{Browser, Gateway};
use crate::pages::{PASSWORD, SITE, in_browser};
use crate::second_factor::{base32, code};

/// Long words in a script that is written from right to left, in place of every text.
const PSEUDO: &str = "document.documentElement.dir = 'rtl';
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const text = walk.currentNode.data.trim();
        if (text) walk.currentNode.data = text.replace(/[a-z]/gi, '\u{634}\u{64a}').replace(/\\s+/g, ' ');
    }
    return document.documentElement.scrollWidth <= innerWidth";

/// Checks the page that the browser shows.
async fn is_sound(browser: &Browser, name: &str) {
    for scheme in ["light", "dark"] {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.command("Emulation.setEmulatedMedia", features).await;
        browser.picture(&format!("{name}-{scheme}")).await;
        let found = browser.violations().await;
        assert!(found.is_empty(), "{name}, {scheme}: {found:#?}");
    }
    let metrics = json!({ "width": 320, "height": 760, "deviceScaleFactor": 1, "mobile": false });
    browser.command("Emulation.setDeviceMetricsOverride", metrics).await;
    let fits = browser.client.execute(PSEUDO, vec![]).await.unwrap();
    browser.picture(&format!("{name}-rtl")).await;
    assert_eq!(fits, json!(true), "{name} has to be scrolled sideways from right to left");
    browser.command("Emulation.clearDeviceMetricsOverride", json!({})).await;
}

async fn all_are_sound(gateway: &Gateway, language: &str) {
    let Some(browser) = Browser::start(gateway).await else { return };
    let headers = json!({ "headers": { "Accept-Language": language } });
    browser.command("Network.enable", json!({})).await;
    browser.command("Network.setExtraHTTPHeaders", headers).await;
    let open = async |path: &str| {
        browser.goto(&format!("https://app.test{path}")).await;
        is_sound(&browser, &format!("{language}{}", path.replace(['/', '?', '='], "-"))).await;
    };
    for path in [
        "/auth/login",
        "/auth/register",
        "/auth/password/forgot",
        "/auth/logout",
        "/auth/password/reset?token=a",
        "/auth/nothing",
    ] {
        open(path).await;
    }
    let submit = async || browser.leave_by(browser.element("main form button").await).await;
    browser.goto("https://app.test/auth/login").await;
    let email = format!("{language}@example.com");
    browser.fill(&[("email", &email), ("password", "Wr0ng-guess!")]).await;
    submit().await;
    browser.element(".errors").await;
    is_sound(&browser, &format!("{language}-login-refused")).await;
    browser.goto("https://app.test/auth/register").await;
    browser.fill(&[("email", &email), ("password", PASSWORD)]).await;
    submit().await;
    for path in [
        "/reports",
        "/admin/a",
        "/auth/account",
        "/auth/account/name",
        "/auth/account/email",
        "/auth/account/delete",
        "/auth/sessions",
        "/auth/password/change",
        "/auth/logout",
    ] {
        open(path).await;
    }
    browser.goto("https://app.test/auth/totp").await;
    browser.fill(&[("current_password", PASSWORD)]).await;
    submit().await;
    let secret = base32(&browser.text(".secret").await.replace(' ', ""));
    is_sound(&browser, &format!("{language}-totp")).await;
    browser.goto("https://app.test/auth/totp").await;
    browser.fill(&[("current_password", PASSWORD)]).await;
    submit().await;
    let secret = match browser.text(".secret").await.replace(' ', "") {
        again if again.is_empty() => secret,
        again => base32(&again),
    };
    browser.fill(&[("code", &code(&secret, 0))]).await;
    submit().await;
    browser.element(".codes").await;
    is_sound(&browser, &format!("{language}-codes")).await;
    open("/auth/account").await;
    open("/auth/totp/codes").await;
    browser.client.delete_all_cookies().await.unwrap();
    browser.goto("https://app.test/auth/login").await;
    browser.fill(&[("email", &email), ("password", PASSWORD)]).await;
    submit().await;
    browser.element("input[name=code]").await;
    is_sound(&browser, &format!("{language}-login-code")).await;
    browser.close().await;
}

#[tokio::test]
async fn no_page_has_an_accessibility_violation() {
    let site = SITE
        .replace("registration", "totp = true, registration")
        .replace("upstream = 'app',", "upstream = 'shown',")
        .replace("route = [", "upstream.shown.builtin = 'echo'\nroute = [\n    { path = '/admin/*', upstream = 'shown', token_from = ['cookie'], roles = ['admin'] },");
    let gateway = in_browser(&site).await;
    all_are_sound(&gateway, "en").await;
    all_are_sound(&gateway, "de").await;
}
