//! Codes of an authenticator app in addition to the password (TOTP, RFC 6238).

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use serde_json::{Value, json};

use crate::by_mail::sqlite;
use crate::harness::{Gateway, Response};

const OFFERED: &str = "
[store]
database = 'sqlite:portcullis.db'
key = { file = 'portcullis.key' }
[identity]
issuer = 'http://app.test/auth'
registration = 'open'
totp = true
[limit.many]
requests = 100000
per = '1m'
[[route]]
path = '/auth/*'
identity = true
limit = 'many'
";

const PASSWORD: &str = "correct horse battery staple";

async fn post(gateway: &Gateway, path: &str, bearer: &str, body: Value) -> Response {
    let request =
        gateway.request("POST", &format!("/auth{path}")).header("Content-Type", "application/json");
    let request = if bearer.is_empty() { request } else { request.bearer(bearer) };
    request.body(body.to_string()).send().await
}

async fn login(gateway: &Gateway, code: Option<&str>) -> Response {
    post(
        gateway,
        "/login",
        "",
        json!({ "email": "ann@example.com", "password": PASSWORD, "code": code }),
    )
    .await
}

/// An account and its access token.
async fn account(gateway: &Gateway) -> String {
    let registered =
        post(gateway, "/register", "", json!({ "email": "ann@example.com", "password": PASSWORD }))
            .await;
    assert_eq!(registered.status, 201);
    login(gateway, None).await.json()["access_token"].as_str().unwrap().to_owned()
}

/// Sets up an app. Returns its secret and the recovery codes. The code that it uses is that of the
/// previous time step.
async fn enrol(gateway: &Gateway, bearer: &str) -> (Vec<u8>, Vec<String>) {
    let begun = post(gateway, "/totp", bearer, json!({ "current_password": PASSWORD })).await;
    assert_eq!(begun.status, 200, "{begun:?}");
    let begun = begun.json();
    let (secret, uri, qr) = (
        begun["secret"].as_str().unwrap(),
        begun["uri"].as_str().unwrap(),
        begun["qr"].as_str().unwrap(),
    );
    assert_eq!(
        uri,
        format!("otpauth://totp/app%2Etest:ann%40example%2Ecom?secret={secret}&issuer=app%2Etest")
    );
    assert!(qr.starts_with("<svg "), "{qr}");
    let secret = base32(secret);
    // Again, if a time step has ended meanwhile.
    let mut tries = 0;
    let confirmed = loop {
        let confirmed =
            post(gateway, "/totp/confirm", bearer, json!({ "code": code(&secret, -1) })).await;
        tries += 1;
        if confirmed.status == 200 || tries == 3 {
            break confirmed;
        }
    };
    assert_eq!(confirmed.status, 200, "{confirmed:?}");
    let codes = confirmed.json()["recovery_codes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|code| code.as_str().unwrap().to_owned())
        .collect();
    (secret, codes)
}

pub fn base32(text: &str) -> Vec<u8> {
    let five = |letter: u8| {
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".bytes().position(|other| other == letter).unwrap()
    };
    let bits: Vec<usize> = text
        .bytes()
        .flat_map(|letter| (0..5).rev().map(move |bit| five(letter) >> bit & 1))
        .collect();
    bits.chunks_exact(8)
        .map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | u8::try_from(*bit).unwrap()))
        .collect()
}

/// The code of the time step this many steps from now.
pub fn code(secret: &[u8], from_now: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 30;
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret),
        &now.saturating_add_signed(from_now).to_be_bytes(),
    );
    let at = usize::from(tag.as_ref()[19] & 15);
    let word = u32::from_be_bytes(tag.as_ref()[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:06}", word % 1_000_000)
}

#[tokio::test]
async fn a_login_asks_for_a_code_and_accepts_each_code_once() {
    let gateway = Gateway::start(OFFERED).await;
    let bearer = account(&gateway).await;
    let me =
        || async { gateway.get("/auth/me").bearer(&bearer).send().await.json()["totp"].clone() };
    assert_eq!(me().await, false);
    // It requires the password, and logins ask for no code before one was confirmed.
    post(&gateway, "/totp", &bearer, json!({ "current_password": "wrong" }))
        .await
        .is(401, "login_failed");
    post(&gateway, "/totp", "", json!({ "current_password": PASSWORD }))
        .await
        .is(401, "credentials_missing");
    assert_eq!(
        post(&gateway, "/totp", &bearer, json!({ "current_password": PASSWORD })).await.status,
        200
    );
    post(&gateway, "/totp/confirm", &bearer, json!({ "code": "000000" }))
        .await
        .is(401, "login_failed");
    assert_eq!(login(&gateway, None).await.status, 200);

    let (secret, _) = enrol(&gateway, &bearer).await;
    assert_eq!(me().await, true);
    login(&gateway, None).await.is(401, "code_required");
    // Without the password, a login reveals nothing about codes.
    post(&gateway, "/login", "", json!({ "email": "ann@example.com", "password": "wrong" }))
        .await
        .is(401, "login_failed");
    login(&gateway, Some(&code(&secret, -1))).await.is(401, "login_failed");
    let now = code(&secret, 0);
    assert_eq!(login(&gateway, Some(&now)).await.status, 200);
    login(&gateway, Some(&now)).await.is(401, "login_failed");
    let failed =
        gateway.log().until("the replay is logged", |line| line["reason"] == "wrong_code").await;
    assert!(failed["message"] == "login_failed" && failed["account"].is_string(), "{failed}");
    post(&gateway, "/totp", &bearer, json!({ "current_password": PASSWORD }))
        .await
        .is(400, "request_invalid");

    // A session alone cannot remove it.
    post(&gateway, "/totp/remove", &bearer, json!({ "current_password": PASSWORD }))
        .await
        .is(401, "code_required");
    let removed = post(
        &gateway,
        "/totp/remove",
        &bearer,
        json!({ "current_password": PASSWORD, "code": code(&secret, 1) }),
    )
    .await;
    assert_eq!(removed.status, 204);
    assert_eq!((login(&gateway, None).await.status, me().await), (200, json!(false)));
    assert!(
        gateway.log().lines().iter().all(|line| !line.to_string().contains(&now)),
        "codes are not logged"
    );
}

#[tokio::test]
async fn recovery_codes_work_once() {
    let gateway = Gateway::start(OFFERED).await;
    let bearer = account(&gateway).await;
    let (_, codes) = enrol(&gateway, &bearer).await;
    assert_eq!(codes.len(), 10);
    let left = async || {
        let me = gateway.get("/auth/me").bearer(&bearer).send().await;
        me.json()["recovery_codes_left"].clone()
    };
    assert_eq!(left().await, 10);
    assert_eq!(login(&gateway, Some(&codes[0])).await.status, 200);
    login(&gateway, Some(&codes[0])).await.is(401, "login_failed");
    // In any spelling.
    assert_eq!(login(&gateway, Some(&codes[1].to_lowercase().replace('-', " "))).await.status, 200);
    assert_eq!(left().await, 8);
}

#[tokio::test]
async fn concurrent_logins_with_one_code_succeed_once() {
    let gateway = Gateway::start(OFFERED).await;
    let bearer = account(&gateway).await;
    let (secret, _) = enrol(&gateway, &bearer).await;
    let now = code(&secret, 0);
    // As many failures as an account may have in a minute.
    let mut logins = Vec::new();
    for _ in 0..5 {
        logins.push(login(&gateway, Some(&now)));
    }
    let mut statuses = Vec::new();
    for response in join(logins).await {
        statuses.push(response.status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200], vec![401; 4]].concat());
}

async fn join<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => {
                done.push(value);
                false
            }
            std::task::Poll::Pending => true,
        });
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

#[tokio::test]
async fn codes_are_not_checked_after_many_wrong_ones() {
    let gateway = Gateway::start(OFFERED).await;
    let bearer = account(&gateway).await;
    let (secret, codes) = enrol(&gateway, &bearer).await;
    // The built-in limit does not allow ten attempts in a minute.
    let sql = "UPDATE second_factors SET failures = 9";
    sqlite(&gateway.path("portcullis.db"), sql).await;
    login(&gateway, Some("AAAA-AAAA-AAAA-AAAA")).await.is(401, "login_failed");
    login(&gateway, Some(&code(&secret, 0))).await.is(401, "login_failed");
    login(&gateway, Some(&codes[0])).await.is(401, "login_failed");
    login(&gateway, None).await.is(401, "code_required");
}

/// If it were one, people who share an address would lock each other out by logging in.
#[tokio::test]
async fn a_right_password_without_a_code_is_no_failure() {
    let gateway = Gateway::start(OFFERED).await;
    let (secret, _) = enrol(&gateway, &account(&gateway).await).await;
    for _ in 0..6 {
        login(&gateway, None).await.is(401, "code_required");
    }
    assert_eq!(login(&gateway, Some(&code(&secret, 0))).await.status, 200);
}

/// A clock that was two days ahead refused every code of the app.
#[tokio::test]
async fn codes_are_checked_again_once_the_clock_is_right() {
    let gateway = Gateway::start(OFFERED).await;
    let bearer = account(&gateway).await;
    let (_, codes) = enrol(&gateway, &bearer).await;
    let blocked = "UPDATE second_factors SET blocked_until = unixepoch() + 172800";
    sqlite(&gateway.path("portcullis.db"), blocked).await;
    assert_eq!(login(&gateway, Some(&codes[0])).await.status, 200);
}

#[tokio::test]
async fn a_disabled_second_factor_is_hidden_except_from_its_users() {
    let gateway = Gateway::start(OFFERED).await;
    let bearer = account(&gateway).await;
    enrol(&gateway, &bearer).await;
    assert_eq!(gateway.reload(&OFFERED.replace("totp = true", "")).await["message"], "reloaded");
    login(&gateway, None).await.is(401, "code_required");
    login(&gateway, Some("")).await.is(401, "code_required");
    let other = post(&gateway, "/totp", &bearer, json!({ "current_password": PASSWORD })).await;
    other.is(404, "route_not_found");
}

/// The owner has begun a setup and left it. A stolen session must enter the password to continue.
#[tokio::test]
async fn another_session_does_not_finish_a_setup() {
    let gateway = Gateway::start(OFFERED).await;
    let own = account(&gateway).await;
    let stolen = login(&gateway, None).await.json()["access_token"].as_str().unwrap().to_owned();
    let begin = async |bearer: &str| {
        let begun = post(&gateway, "/totp", bearer, json!({ "current_password": PASSWORD })).await;
        base32(begun.json()["secret"].as_str().unwrap())
    };
    let confirm = async |bearer: &str, code: &str| {
        post(&gateway, "/totp/confirm", bearer, json!({ "code": code })).await
    };
    let secret = begin(&own).await;
    let page = gateway.request("POST", "/auth/totp/confirm").bearer(&stolen);
    let page = page
        .header("Accept", "text/html")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body("code=000000");
    let page = page.send().await;
    assert_eq!(page.status, 401);
    assert!(!page.text().contains("class=\"secret\""), "{}", page.text());
    confirm(&stolen, &code(&secret, 0)).await.is(401, "login_failed");
    assert_eq!(confirm(&own, &code(&secret, 0)).await.status, 200);
}

/// Ten minutes after it began, or with a clock that was ahead by more.
#[tokio::test]
async fn a_setup_is_not_finished_later() {
    let gateway = Gateway::start(OFFERED).await;
    let own = account(&gateway).await;
    for (moved, status) in [("- 601", 401), ("+ 630", 401), ("- 500", 200)] {
        let begun = post(&gateway, "/totp", &own, json!({ "current_password": PASSWORD })).await;
        let secret = base32(begun.json()["secret"].as_str().unwrap());
        let moving = format!("UPDATE second_factors SET created_at = created_at {moved}");
        sqlite(&gateway.path("portcullis.db"), &moving).await;
        let body = json!({ "code": code(&secret, 0) });
        let confirmed = post(&gateway, "/totp/confirm", &own, body).await;
        assert_eq!(confirmed.status, status, "{moved}: {confirmed:?}");
    }
}
