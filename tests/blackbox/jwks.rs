//! Fetched keys: discovery, rotation, outages, restarts, and invalid responses.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::certificates::{Authority, authority};
use crate::harness::issuer::Issuer;
use crate::harness::mint::{self, Published};
use crate::harness::upstream::write;
use crate::harness::{Gateway, Response, Step, within};

const ROUTE: &str = "[[route]]\npath = '/*'\nupstream = 'app'\n";

/// `[issuer.local]`, which needs no other server.
const LOCAL: &str = "[issuer.local]\nissuer = 'https://login.test/local'\naudience = ['reports']\nalgorithms = ['HS256']\nsecret = { file = 'corp.secret' }\n";

const METADATA: &str = "/.well-known/openid-configuration";

/// A section that discovers its keys.
fn discovered(iss: &str, more: &str) -> String {
    format!(
        "[issuer.corp]\nissuer = '{iss}'\naudience = ['reports']\nalgorithms = ['ES256']\ndiscovery = true\n{more}\n"
    )
}

async fn ask(gateway: &Gateway, token: &str) -> Response {
    gateway.get("/").bearer(token).send().await
}

fn local_token() -> String {
    mint::claims(json!({ "iss": "https://login.test/local" }))
}

/// The only file with a stored set.
fn kept(folder: &TempDir) -> PathBuf {
    let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    kept.into_iter().next().unwrap()
}

/// Waits for the event with this message, of this issuer.
async fn output(gateway: &Gateway, mark: usize, message: &str, issuer: &str) -> Value {
    gateway
        .log()
        .after(mark, message, |line| line["message"] == message && line["issuer"] == issuer)
        .await
}

/// Waits until `/readyz` returns this word.
async fn ready(gateway: &Gateway, word: &str) -> Response {
    within(async {
        loop {
            let ready = gateway.admin("/readyz").await;
            if ready.json()["status"] == word {
                return ready;
            }
        }
    })
    .await
}

#[tokio::test]
async fn keys_are_fetched_from_the_configured_url() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let gateway = Gateway::start(&format!("{ROUTE}{}", issuer.section("corp", ""))).await;
    // The very first request waits for the first fetch rather than being refused.
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    assert_eq!(issuer.asked("/keys"), 1);
    let asked = issuer.server().last();
    assert_eq!(
        (asked.header("accept-encoding"), asked.header("authorization"), asked.header("cookie")),
        (Some("identity"), None, None)
    );
    assert_eq!(
        gateway
            .metric_value("portcullis_jwks_fetch_total", &["issuer=\"corp\"", "succeeded"])
            .await,
        Some(1.0)
    );
    assert!(
        gateway.metric_value("portcullis_jwks_age_seconds", &["issuer=\"corp\""]).await.unwrap()
            < 30.0
    );
    let output = output(&gateway, 0, "keys were fetched", "corp").await;
    assert_eq!((&output["keys"], &output["kids"]), (&json!(1), &json!("\"a\"")));
    assert_eq!(ready(&gateway, "ready").await.json()["problems"], json!({}));
    ask(&gateway, &Published::new("a").token(json!({}))).await.is(401, "token_signature");
}

#[tokio::test]
async fn discovery_follows_the_specifications() {
    let key = Published::new("a");
    for (path, place) in [
        ("", "/.well-known/openid-configuration"),
        ("/", "/.well-known/openid-configuration"),
        ("/realms/main", "/realms/main/.well-known/openid-configuration"),
        ("/realms/main/", "/realms/main/.well-known/openid-configuration"),
        // Without OpenID Connect metadata (404), the path of RFC 8414 is tried, which is inserted
        // instead of appended.
        ("/realms/main", "/.well-known/oauth-authorization-server/realms/main"),
        ("", "/.well-known/oauth-authorization-server"),
    ] {
        let issuer = Issuer::start(&[&key]).await;
        let iss = format!("{}{path}", issuer.url());
        issuer.answers(
            place,
            &json!({ "issuer": iss, "jwks_uri": format!("{}/keys", issuer.url()) }),
        );
        let section = format!(
            "[issuer.corp]\nissuer = '{iss}'\naudience = ['reports']\nalgorithms = ['ES256']\ndiscovery = true\njwks_refresh = '1s'\n"
        );
        let gateway = Gateway::start(&format!("{ROUTE}{section}")).await;
        assert_eq!(ask(&gateway, &key.token(json!({ "iss": iss }))).await.status, 200, "{place}");
        assert!(issuer.asked(place) >= 1);
        // A moved set is found at the next refresh.
        issuer.answers(
            place,
            &json!({ "issuer": iss, "jwks_uri": format!("{}/moved", issuer.url()) }),
        );
        issuer.answers("/moved", &json!({ "keys": [Published::new("b").jwk()] }));
        within(async {
            while ask(&gateway, &key.token(json!({ "iss": iss }))).await.status == 200 {}
        })
        .await;
    }
}

/// The new URL has a new key. It is found without waiting for the next refresh, which is minutes
/// away.
#[tokio::test]
async fn a_moved_key_set_is_found_when_a_key_is_missing() {
    for old_place_is_gone in [true, false] {
        let (old, new) = (Published::new("a"), Published::new("b"));
        let issuer = Issuer::start(&[&old]).await;
        let iss = issuer.url();
        let metadata = |set: &str| json!({ "issuer": iss, "jwks_uri": format!("{iss}{set}") });
        issuer.answers(METADATA, &metadata("/keys"));
        let gateway = Gateway::start(&format!("{ROUTE}{}", discovered(&iss, ""))).await;
        assert_eq!(ask(&gateway, &old.token(json!({ "iss": iss }))).await.status, 200);
        issuer.answers(METADATA, &metadata("/moved"));
        issuer.answers("/moved", &json!({ "keys": [new.jwk()] }));
        if old_place_is_gone {
            issuer.says("/keys", "404 Not Found", "text/plain", "");
        }
        assert_eq!(
            ask(&gateway, &new.token(json!({ "iss": iss }))).await.status,
            200,
            "gone: {old_place_is_gone}"
        );
        ask(&gateway, &old.token(json!({ "iss": iss }))).await.is(401, "token_key_unknown");
        assert_eq!(
            (issuer.asked("/keys"), issuer.asked("/moved"), issuer.asked(METADATA)),
            (2, 1, 2)
        );
    }
}

#[tokio::test]
async fn after_a_failed_fetch_the_next_refresh_comes_sooner() {
    let (old, new) = (Published::new("a"), Published::new("b"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway = Gateway::start(&format!(
        "{ROUTE}{}",
        issuer.section("corp", "jwks_refetch_cooldown = '100ms'")
    ))
    .await;
    assert_eq!(ask(&gateway, &old.token(json!({}))).await.status, 200);
    issuer.says("/keys", "500 Oops", "text/plain", "");
    within(async { while ask(&gateway, &new.token(json!({}))).await.status != 503 {} }).await;
    issuer.publish(&[&new]);
    // No request needs it, and five minutes have not passed.
    output(&gateway, 0, "keys were fetched", "corp").await;
    issuer.until_asked(issuer.asked("/keys") + 1).await;
    within(async { while ask(&gateway, &old.token(json!({}))).await.status == 200 {} }).await;
    assert_eq!(ask(&gateway, &new.token(json!({}))).await.status, 200);
}

#[tokio::test]
async fn without_metadata_the_key_set_is_fetched_from_its_last_url() {
    let (old, new) = (Published::new("a"), Published::new("b"));
    let issuer = Issuer::start(&[&old]).await;
    let iss = issuer.url();
    issuer.answers(METADATA, &json!({ "issuer": iss, "jwks_uri": format!("{iss}/keys") }));
    let gateway =
        Gateway::start(&format!("{ROUTE}{}", discovered(&iss, "jwks_refresh = '1s'"))).await;
    assert_eq!(ask(&gateway, &old.token(json!({ "iss": iss }))).await.status, 200);
    issuer.says(METADATA, "500 Oops", "text/plain", "");
    let output = output(
        &gateway,
        0,
        "the metadata cannot be fetched; keys are fetched from the last known jwks_uri",
        "corp",
    )
    .await;
    assert_eq!(output["jwks_uri"], format!("{iss}/keys"));
    issuer.publish(&[&new]);
    // No request needs an unknown key, so only the schedule can find the new set.
    issuer.until_asked(issuer.asked("/keys") + 2).await;
    ask(&gateway, &old.token(json!({ "iss": iss }))).await.is(401, "token_key_unknown");
    assert_eq!(ask(&gateway, &new.token(json!({ "iss": iss }))).await.status, 200);
    assert_eq!(ready(&gateway, "ready").await.json()["problems"], json!({}));
    // Its metadata counts once it is available.
    issuer.answers(METADATA, &json!({ "issuer": "another", "jwks_uri": format!("{iss}/keys") }));
    assert!(
        ready(&gateway, "degraded").await.json()["problems"]["corp"]
            .as_str()
            .unwrap()
            .contains("not exactly the configured one")
    );
}

#[tokio::test]
async fn a_failing_issuer_is_fetched_with_back_off() {
    let issuer = Issuer::start(&[]).await;
    issuer.says("/keys", "500 Oops", "text/plain", "");
    let gateway =
        Gateway::start(&format!("{ROUTE}{}", issuer.section("corp", "jwks_refresh = '100ms'")))
            .await;
    for seconds in [0, 1, 3] {
        let output = gateway.log().after(0, "it says when it tries again", |line| {
            line["message"] == "keys cannot be fetched"
                && line["next_try_seconds"].as_u64() >= Some(seconds)
        });
        output.await;
    }
}

#[tokio::test]
async fn metadata_of_another_issuer_is_refused() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let iss = issuer.url();
    // Compared byte for byte, including a final slash.
    issuer.answers(
        "/.well-known/openid-configuration",
        &json!({ "issuer": format!("{iss}/"), "jwks_uri": format!("{iss}/keys") }),
    );
    let section = format!(
        "[issuer.corp]\nissuer = '{iss}'\naudience = ['reports']\nalgorithms = ['ES256']\ndiscovery = true\n"
    );
    let gateway = Gateway::start(&format!("{ROUTE}{section}")).await;
    ask(&gateway, &key.token(json!({ "iss": iss }))).await.is(503, "keys_unavailable");
    let output = output(&gateway, 0, "keys cannot be fetched", "corp").await;
    assert!(
        output["cause"].as_str().unwrap().contains("not exactly the configured one"),
        "{output}"
    );
    assert_eq!(issuer.asked("/keys"), 0, "what it says is not believed");
}

#[tokio::test]
async fn an_https_issuer_needs_a_trusted_certificate() {
    let key = Published::new("a");
    let issuer = Issuer::start_tls(&[&key]).await;
    let config = format!("{ROUTE}{LOCAL}{}", issuer.section("corp", "ca = 'ca.pem'"));
    let gateway = Gateway::setup(&config).file("ca.pem", &authority().pem).start().await;
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);

    let gateway = Gateway::setup(&config).file("ca.pem", Authority::new().pem).start().await;
    let refused = ask(&gateway, &key.token(json!({}))).await;
    refused.is(503, "keys_unavailable");
    let output = output(&gateway, 0, "keys cannot be fetched", "corp").await;
    assert!(output["cause"].as_str().unwrap().contains("certificate"), "{output}");
    assert!(
        gateway.metric_value("portcullis_jwks_fetch_total", &["corp", "outcome=\"tls\""]).await
            >= Some(1.0)
    );
    assert_eq!(ask(&gateway, &local_token()).await.status, 200, "nobody else is affected");
    let ready = gateway.admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("degraded")));
    assert!(
        ready.json()["problems"]["corp"].as_str().unwrap().contains("certificate"),
        "{}",
        ready.text()
    );
}

#[tokio::test]
async fn one_fetch_finds_a_rotated_key_for_all_waiting_requests() {
    let (old, new) = (Published::new("a"), Published::new("b"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway =
        Gateway::start(&format!("server.workers = 2\n{ROUTE}{}", issuer.section("corp", ""))).await;
    assert_eq!(ask(&gateway, &old.token(json!({}))).await.status, 200);
    issuer.publish(&[&old, &new]);
    let tokens: Vec<String> =
        (0..50).map(|number| new.token(json!({ "jti": number.to_string() }))).collect();
    let asking = tokens.iter().map(|token| ask(&gateway, token));
    let mut answers = Vec::new();
    for answer in asking.map(Box::pin).collect::<Vec<_>>() {
        answers.push(answer);
    }
    let statuses = join_all(answers).await;
    assert!(statuses.iter().all(|response| response.status == 200), "{statuses:?}");
    assert_eq!(issuer.asked("/keys"), 2);
    assert_eq!(ask(&gateway, &old.token(json!({}))).await.status, 200);
}

/// Runs all of them concurrently.
async fn join_all<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, expected) in
            futures.iter_mut().zip(&mut outputs).filter(|(_, expected)| expected.is_none())
        {
            if let std::task::Poll::Ready(done) = std::pin::Pin::new(future).poll(cx) {
                *expected = Some(done);
            }
        }
        if outputs.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_key_without_a_kid_can_be_rotated() {
    let (old, new) = (Published::new("a"), Published::new("b"));
    let unnamed = |key: &Published| {
        let mut jwk = key.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        json!({ "keys": [jwk] })
    };
    let issuer = Issuer::start(&[]).await;
    issuer.answers("/keys", &unnamed(&old));
    let gateway = Gateway::start(&format!("{ROUTE}{}", issuer.section("corp", ""))).await;
    assert_eq!(ask(&gateway, &old.unnamed_token(json!({}))).await.status, 200);
    issuer.answers("/keys", &unnamed(&new));
    assert_eq!(ask(&gateway, &new.unnamed_token(json!({}))).await.status, 200);
    ask(&gateway, &old.unnamed_token(json!({}))).await.is(401, "token_signature");
}

/// An issuer that was set up again, or that uses one `kid` for each of its keys.
#[tokio::test]
async fn a_new_key_with_a_reused_kid_is_found() {
    let (old, new) = (Published::new("1"), Published::new("1"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway = Gateway::start(&format!("{ROUTE}{}", issuer.section("corp", ""))).await;
    assert_eq!(ask(&gateway, &old.token(json!({}))).await.status, 200);
    issuer.publish(&[&new]);
    assert_eq!(ask(&gateway, &new.token(json!({}))).await.status, 200);
    ask(&gateway, &old.token(json!({}))).await.is(401, "token_signature");
    assert_eq!(issuer.asked("/keys"), 2);
}

#[tokio::test]
async fn bad_signatures_do_not_flood_the_issuer_or_delay_requests() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let gateway = Gateway::start(&format!(
        "{ROUTE}{}",
        issuer.section("corp", "jwks_refetch_cooldown = '2s'")
    ))
    .await;
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    let forged = Published::new("a").token(json!({}));
    let (begun, mut sent) = (Instant::now(), 0);
    let mut connection = gateway.connect().await;
    while begun.elapsed() < Duration::from_secs(5) {
        gateway.get("/").bearer(&forged).send_on(&mut connection).await.is(401, "token_signature");
        sent += 1;
    }
    let fetches = issuer.asked("/keys");
    assert!((3..=5).contains(&fetches) && sent > 20, "{fetches} fetches for {sent} tokens");
    // During a fetch, requests with a known key do not wait, and after the time limit no request
    // does.
    issuer.does("/keys", vec![Step::ReadBody, Step::Wait(Duration::from_mins(1))]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut waiting = gateway.connect().await;
    waiting.write(gateway.get("/").bearer(&forged).bytes()).await;
    issuer.until_asked(fetches + 1).await;
    let begun = Instant::now();
    assert_eq!(ask(&gateway, &key.token(json!({ "jti": "another" }))).await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    waiting.response().await.is(401, "token_signature");
}

#[tokio::test]
async fn unknown_kids_do_not_flood_the_issuer() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let gateway = Gateway::start(&format!(
        "{ROUTE}{}",
        issuer.section("corp", "jwks_refetch_cooldown = '2s'")
    ))
    .await;
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    let (begun, mut sent) = (Instant::now(), 0);
    let mut connection = gateway.connect().await;
    while begun.elapsed() < Duration::from_secs(5) {
        let token = Published::new(&format!("random-{sent}")).token(json!({}));
        gateway.get("/").bearer(&token).send_on(&mut connection).await.is(401, "token_key_unknown");
        sent += 1;
    }
    // The first fetch, at most one more at once, and one after each cooldown.
    let fetches = issuer.asked("/keys");
    assert!((3..=5).contains(&fetches) && sent > 20, "{fetches} fetches for {sent} tokens");
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
}

#[tokio::test]
async fn a_key_removed_from_the_set_is_rejected_after_the_next_refresh() {
    let (old, new) = (Published::new("a"), Published::new("b"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway =
        Gateway::start(&format!("{ROUTE}{}", issuer.section("corp", "jwks_refresh = '1s'"))).await;
    let token = old.token(json!({}));
    assert_eq!(ask(&gateway, &token).await.status, 200);
    issuer.publish(&[&new]);
    issuer.until_asked(issuer.asked("/keys") + 2).await;
    // Also a token that was verified before and may be cached.
    ask(&gateway, &token).await.is(401, "token_key_unknown");
    assert_eq!(ask(&gateway, &new.token(json!({}))).await.status, 200);
    // A set without keys is valid: its former keys are removed.
    issuer.publish(&[]);
    within(async { while ask(&gateway, &new.token(json!({}))).await.status == 200 {} }).await;
    ask(&gateway, &new.token(json!({}))).await.is(503, "keys_unavailable");
    assert_eq!(ready(&gateway, "unready").await.status, 503);
}

#[tokio::test]
async fn the_gateway_starts_without_the_issuer_and_reports_it() {
    let key = Published::new("a");
    let gone = Issuer::start(&[&key]).await;
    gone.stop().await;
    let section = gone.section("corp", "jwks_refetch_cooldown = '1s'");
    let gateway = Gateway::start(&format!(
        "{ROUTE}{LOCAL}{section}[issuer.local2]\n{}",
        &LOCAL["[issuer.local]\n".len()..].replace("/local", "/local2")
    ))
    .await;
    let refused = ask(&gateway, &key.token(json!({}))).await;
    refused.is(503, "keys_unavailable");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(refused.header("www-authenticate").is_none());
    assert_eq!(ask(&gateway, &local_token()).await.status, 200);
    let ready_now = gateway.admin("/readyz").await;
    assert_eq!((ready_now.status, &ready_now.json()["status"]), (200, &json!("degraded")));
    assert!(
        ready_now.json()["problems"]["corp"]
            .as_str()
            .unwrap()
            .starts_with("no keys: cannot connect to 127.0.0.1:"),
        "{}",
        ready_now.text()
    );
    assert!(
        gateway.metric_value("portcullis_jwks_fetch_total", &["corp", "unreachable"]).await
            >= Some(1.0)
    );
    assert_eq!(gateway.metric("portcullis_jwks_age_seconds").await, Vec::<String>::new());
    // Once it is available, its callers are accepted.
    let back = Issuer::start_at(gone.address(), &[&key]).await;
    within(async { while ask(&gateway, &key.token(json!({}))).await.status != 200 {} }).await;
    assert!(back.asked("/keys") >= 1);
    assert_eq!(ready(&gateway, "ready").await.status, 200);

    let alone = Issuer::start(&[&key]).await;
    alone.stop().await;
    let gateway = Gateway::start(&format!("{ROUTE}{}", alone.section("corp", ""))).await;
    let unready = gateway.admin("/readyz").await;
    assert_eq!((unready.status, &unready.json()["status"]), (503, &json!("unready")));
    assert!(unready.json()["problems"]["corp"].is_string());
    assert_eq!(gateway.admin("/livez").await.status, 200);
}

#[tokio::test]
async fn a_route_that_does_not_enforce_forwards_without_an_identity() {
    let key = Published::new("a");
    let gone = Issuer::start(&[&key]).await;
    gone.stop().await;
    let gateway =
        Gateway::start(&format!("{ROUTE}enforce = false\n{}", gone.section("corp", ""))).await;
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-user"), None);
    assert_eq!(gateway.upstream().last().header("authorization"), None);
    let line = gateway.access("/").await;
    assert_eq!(
        (&line["outcome"], &line["reason"]),
        (&json!("would_refuse"), &json!("keys_unavailable"))
    );
}

#[tokio::test]
async fn during_an_outage_the_last_keys_are_used_until_they_are_too_old() {
    let (key, new) = (Published::new("a"), Published::new("b"));
    let issuer = Issuer::start(&[&key]).await;
    let section = issuer.section(
        "corp",
        "jwks_refresh = '1s'\njwks_max_stale = '4s'\njwks_refetch_cooldown = '1s'",
    );
    let gateway = Gateway::start(&format!("{ROUTE}{section}")).await;
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    issuer.stop().await;
    let mark = gateway.log().mark();
    output(&gateway, mark, "keys cannot be fetched", "corp").await;
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    // By now it is unknown whether there is a newer key.
    within(async {
        loop {
            let refused = ask(&gateway, &new.token(json!({}))).await;
            if refused.status == 503 {
                break refused.is(503, "keys_unavailable");
            }
            refused.is(401, "token_key_unknown");
        }
    })
    .await;
    let degraded = ready(&gateway, "degraded").await;
    assert_eq!(degraded.status, 200);
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    output(
        &gateway,
        mark,
        "the keys are older than jwks_max_stale: none of the issuer's tokens can be verified",
        "corp",
    )
    .await;
    ask(&gateway, &key.token(json!({}))).await.is(503, "keys_unavailable");
    assert_eq!(ready(&gateway, "unready").await.status, 503);
    let _back = Issuer::start_at(issuer.address(), &[&key]).await;
    within(async { while ask(&gateway, &key.token(json!({}))).await.status != 200 {} }).await;
}

#[tokio::test]
async fn tokens_are_verified_after_a_restart_during_an_outage() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let folder = TempDir::new().unwrap();
    let store = format!(
        "[store]\ndatabase = 'sqlite:{0}/p.db'\nkey = {{ file = '{0}/p.key' }}\n",
        folder.path().display()
    );
    let config = format!("{ROUTE}{}{store}", issuer.section("corp", ""));
    let token = key.token(json!({}));
    let gateway = Gateway::start(&config).await;
    assert_eq!(ask(&gateway, &token).await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.exited().await.success());
    let file = kept(&folder);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    issuer.stop().await;

    let gateway = Gateway::start(&config).await;
    assert_eq!(ask(&gateway, &token).await.status, 200);
    output(&gateway, 0, "keys cannot be fetched", "corp").await;
    assert_eq!(ask(&gateway, &token).await.status, 200);
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    assert!(gateway.metric_value("portcullis_jwks_age_seconds", &["corp"]).await.is_some());
    drop(gateway);

    // A file that another user could have written is ignored.
    let whole = std::fs::read(&file).unwrap();
    let spoil = [
        (
            "its group or others can write it",
            Box::new(|| std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap())
                as Box<dyn Fn()>,
        ),
        ("it is damaged", Box::new(|| std::fs::write(&file, &whole[..whole.len() / 2]).unwrap())),
        (
            "it is not a regular file",
            Box::new(|| {
                std::fs::rename(&file, folder.path().join("elsewhere")).unwrap();
                symlink(folder.path().join("elsewhere"), &file).unwrap();
            }),
        ),
    ];
    for (cause, spoil) in spoil {
        let _ = std::fs::remove_file(&file);
        std::fs::write(&file, &whole).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        spoil();
        let gateway = Gateway::start(&config).await;
        gateway
            .log()
            .until(cause, |line| {
                line["problem"].as_str().is_some_and(|problem| problem.contains(cause))
            })
            .await;
        ask(&gateway, &token).await.is(503, "keys_unavailable");
    }
}

/// `explain` uses the same steps, without the network.
#[tokio::test]
async fn explain_verifies_with_the_stored_keys() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let gateway = Gateway::start(&format!("{ROUTE}{}", issuer.section("corp", ""))).await;
    let token = key.token(json!({}));
    assert_eq!(ask(&gateway, &token).await.status, 200);
    gateway.signal("TERM");
    gateway.exited().await;
    let explain = || {
        let config = gateway.path("gateway.toml");
        let printed = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["explain", "GET", "/", "--json", "--token", &token, "--config"])
            .arg(config)
            .output()
            .unwrap();
        serde_json::from_slice::<Value>(&printed.stdout)
            .unwrap_or_else(|error| panic!("{error}: {printed:?}"))
    };
    let printed = explain();
    assert_eq!(
        (&printed["verdict"], &printed["subject"]),
        (&json!("allow"), &json!("u-17")),
        "{printed}"
    );
    for entry in std::fs::read_dir(gateway.path("")).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.file_name().unwrap().to_string_lossy().starts_with("jwks-") {
            std::fs::remove_file(entry).unwrap();
        }
    }
    let printed = explain();
    assert_eq!(
        (&printed["status"], &printed["reason"]),
        (&json!(503), &json!("keys_unavailable")),
        "{printed}"
    );
    assert_eq!(issuer.asked("/keys"), 1);
}

#[tokio::test]
async fn an_unwritable_folder_is_reported_once() {
    let (key, new) = (Published::new("a"), Published::new("b"));
    let issuer = Issuer::start(&[&key]).await;
    let setup =
        Gateway::setup(&format!("{ROUTE}{}", issuer.section("corp", "jwks_refresh = '1s'")));
    // Root can write anywhere, so a folder in place of the file causes the failure.
    let gateway = setup.start().await;
    let find = || {
        let mut files =
            std::fs::read_dir(gateway.path("")).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| {
            path.file_name().unwrap().to_string_lossy().starts_with("jwks-")
                && path.extension().unwrap() == "json"
        })
    };
    let file = within(async {
        loop {
            match find() {
                Some(file) => break file,
                None => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    std::fs::write(file.join("x"), "x").unwrap();
    let message = "keys cannot be stored on disk: there will be none after a restart during an outage of the issuer";
    output(&gateway, 0, message, "corp").await;
    issuer.publish(&[&key, &new]);
    issuer.until_asked(issuer.asked("/keys") + 3).await;
    assert_eq!(ask(&gateway, &new.token(json!({}))).await.status, 200);
    assert_eq!(gateway.log().lines().iter().filter(|line| line["message"] == message).count(), 1);
}

/// Each response is logged with its cause and counted; the previous keys stay, and other issuers
/// are not affected.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
async fn an_invalid_key_set_changes_nothing() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let other = Issuer::start(&[&key]).await;
    let section = issuer.section("corp", "jwks_refetch_cooldown = '100ms'");
    let gateway = Gateway::start(&format!("{ROUTE}{LOCAL}{section}")).await;
    let (token, unknown) = (key.token(json!({})), Published::new("b").token(json!({})));
    assert_eq!(ask(&gateway, &token).await.status, 200);
    // The next scheduled attempt may be a minute away; an unknown key makes it sooner.
    let fetch = async || {
        tokio::time::sleep(Duration::from_millis(150)).await;
        ask(&gateway, &unknown).await;
    };
    let many = json!({ "keys": vec![json!({}); 10_000] }).to_string();
    let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(10 << 20));
    let chunked = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
    };
    let length = |status: &str, headers: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let elsewhere = format!("Location: {}/keys\r\n", other.url());
    for (answer, outcome, cause) in [
        (
            length("200 OK", "Content-Type: text/html\r\n", "<!doctype html><html>"),
            "invalid",
            "the document is HTML",
        ),
        (length("200 OK", "", "{\"keys\": ["), "invalid", "is not JSON"),
        (length("200 OK", "", "{\"error\":\"none\"}"), "invalid", "no array \"keys\""),
        (length("200 OK", "", &many), "invalid", "10000 keys; the maximum is 1000"),
        (length("200 OK", "", &large), "too_large", "larger than 1048576 bytes"),
        (chunked(&large), "too_large", "larger than 1048576 bytes"),
        (length("200 OK", "Content-Encoding: gzip\r\n", "{\"keys\":[]}"), "invalid", "compressed"),
        (length("503 Service Unavailable", "", ""), "status", "answered 503"),
        (length("404 Not Found", "", ""), "status", "answered 404"),
        (length("302 Found", &elsewhere, ""), "redirect", "redirects elsewhere"),
        (length("302 Found", "Location: /keys\r\n", ""), "redirect", "more than 3 redirects"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"keys\":".to_owned(),
            "broken",
            "incomplete or not valid HTTP",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "broken", "incomplete or not valid HTTP"),
    ] {
        let before = gateway
            .metric_value("portcullis_jwks_fetch_total", &["corp", outcome])
            .await
            .unwrap_or_default();
        let mark = gateway.log().mark();
        issuer.does("/keys", vec![Step::ReadBody, write(&answer), Step::Close]);
        fetch().await;
        let output = gateway
            .log()
            .after(mark, cause, |line| {
                line["message"] == "keys cannot be fetched"
                    && line["cause"].as_str().is_some_and(|output| output.contains(cause))
            })
            .await;
        assert_eq!(
            (&output["level"], &output["issuer"], &output["has_keys"]),
            (&json!("warn"), &json!("corp"), &json!(true))
        );
        let after = gateway
            .metric_value("portcullis_jwks_fetch_total", &["corp", outcome])
            .await
            .unwrap_or_default();
        assert!(after > before, "{outcome}");
        assert_eq!(ask(&gateway, &token).await.status, 200, "{cause}");
        assert_eq!(ask(&gateway, &local_token()).await.status, 200, "{cause}");
    }
    assert_eq!(other.asked("/keys"), 0, "a redirect to another place is not followed");
    let mark = gateway.log().mark();
    issuer.publish(&[&key]);
    fetch().await;
    output(&gateway, mark, "keys were fetched", "corp").await;
    ready(&gateway, "ready").await;
}

#[tokio::test]
async fn a_slowly_dripping_body_is_cut_off() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let drip =
        std::iter::repeat_n([Step::Wait(Duration::from_millis(300)), write(" ")], 200).flatten();
    let head = [Step::ReadBody, write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")];
    issuer.does("/keys", head.into_iter().chain(drip).collect());
    let gateway = Gateway::start(&format!("{ROUTE}{LOCAL}{}", issuer.section("corp", ""))).await;
    // Only requests that need the key wait, for a few seconds.
    let token = key.token(json!({}));
    let (begun, waiting) = (Instant::now(), ask(&gateway, &token));
    assert_eq!(ask(&gateway, &local_token()).await.status, 200);
    waiting.await.is(503, "keys_unavailable");
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    let output = output(&gateway, 0, "keys cannot be fetched", "corp").await;
    assert_eq!(output["cause"], "it took longer than 10 s");
    assert!(
        gateway.metric_value("portcullis_jwks_fetch_total", &["corp", "timeout"]).await
            >= Some(1.0)
    );
    // No request waits for a retry of a failed issuer.
    issuer.until_asked(2).await;
    let begun = Instant::now();
    ask(&gateway, &token).await.is(503, "keys_unavailable");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // Shutdown does not wait for it either.
    gateway.signal("TERM");
    assert!(gateway.exited().await.success());
}

#[tokio::test]
async fn a_redirect_within_the_same_origin_is_followed() {
    let key = Published::new("a");
    let issuer = Issuer::start(&[]).await;
    issuer.does(
        "/keys",
        vec![
            Step::ReadBody,
            write("HTTP/1.1 307 x\r\nLocation: /v2/keys?all\r\nContent-Length: 0\r\n\r\n"),
        ],
    );
    issuer.answers("/v2/keys?all", &json!({ "keys": [key.jwk()] }));
    let gateway = Gateway::start(&format!("{ROUTE}{}", issuer.section("corp", ""))).await;
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
}

#[tokio::test]
async fn ignored_keys_are_logged_once_per_change() {
    let (key, twin) = (Published::new("a"), Published::new("b"));
    let rsa = json!({ "kty": "RSA", "kid": "weak", "n": mint::encode([0xff; 64]), "e": "AQAB" });
    let oct = json!({ "kty": "oct", "kid": "oct", "k": mint::encode(mint::SECRET) });
    let foreign = {
        let mut jwk = key.jwk();
        jwk["kid"] = json!("enc");
        jwk["use"] = json!("enc");
        jwk
    };
    let ed = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    let issuer = Issuer::start(&[]).await;
    issuer.answers("/keys", &json!({ "keys": [key.jwk(), ed, rsa, oct, foreign] }));
    let section = issuer
        .section("corp", "jwks_refresh = '1s'")
        .replace("['ES256']", "['ES256', 'EdDSA', 'RS256']");
    let gateway = Gateway::start(&format!("{ROUTE}{section}")).await;
    // Two keys of different types with the same `kid` are both used.
    assert_eq!(ask(&gateway, &key.token(json!({}))).await.status, 200);
    ask(&gateway, &mint::hmac().token(json!({ "kid": "oct" }), json!({})))
        .await
        .is(401, "token_algorithm");
    issuer.until_asked(3).await;
    let output: Vec<String> = gateway
        .log()
        .lines()
        .iter()
        .filter(|line| line["message"] == "a key is not used")
        .map(|line| line["cause"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(output.len(), 3, "{output:?}");
    for (output, kid) in output.iter().zip(["weak", "oct", "enc"]) {
        assert!(output.contains(&format!("kid \"{kid}\"")), "{output}");
    }
    // Two keys of the same type and `kid`: either could be forged, so neither is used.
    let mut same = twin.jwk();
    same["kid"] = json!("a");
    issuer.answers("/keys", &json!({ "keys": [key.jwk(), same, twin.jwk()] }));
    let mark = gateway.log().mark();
    gateway
        .log()
        .after(mark, "both are left out", |line| {
            line["cause"].as_str().is_some_and(|cause| cause.contains("same kid"))
        })
        .await;
    within(async { while ask(&gateway, &key.token(json!({}))).await.status == 200 {} }).await;
    assert_eq!(ask(&gateway, &twin.token(json!({}))).await.status, 200);
}

#[tokio::test]
async fn key_files_are_read_again_when_they_change() {
    let (old, new) = (Published::new("a"), Published::new("b"));
    let set = |keys: &[&Published]| {
        json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
    };
    let section = "[issuer.corp]\nissuer = 'https://login.test/corp'\naudience = ['reports']\nalgorithms = ['ES256']\njwks_file = 'keys.json'\n";
    let gateway =
        Gateway::setup(&format!("{ROUTE}{section}")).file("keys.json", set(&[&old])).start().await;
    assert_eq!(ask(&gateway, &old.token(json!({}))).await.status, 200);
    ask(&gateway, &new.token(json!({}))).await.is(401, "token_key_unknown");
    std::fs::write(gateway.path("keys.json"), set(&[&new])).unwrap();
    output(&gateway, 0, "the key file has changed; its new keys are in use", "corp").await;
    assert_eq!(ask(&gateway, &new.token(json!({}))).await.status, 200);
    ask(&gateway, &old.token(json!({}))).await.is(401, "token_key_unknown");

    for bad in ["{\"keys\": [", "<html>", "{\"keys\": []}"] {
        let mark = gateway.log().mark();
        std::fs::write(gateway.path("keys.json"), bad).unwrap();
        let output = output(
            &gateway,
            mark,
            "the key file cannot be used; the previous keys stay in use",
            "corp",
        )
        .await;
        assert!(output["cause"].as_str().unwrap().contains("keys.json"), "{output}");
        assert_eq!(ask(&gateway, &new.token(json!({}))).await.status, 200);
        assert!(gateway.admin("/readyz").await.json()["problems"]["corp"].is_string());
    }
    std::fs::write(gateway.path("keys.json"), set(&[&old, &new])).unwrap();
    ready(&gateway, "ready").await;
    assert_eq!(ask(&gateway, &old.token(json!({}))).await.status, 200);
}

#[tokio::test]
async fn pem_files_are_read_again_when_they_change() {
    let keys = mint::keys();
    let (p256, p384) = (
        keys.p256.signs(jsonwebtoken::Algorithm::ES256),
        keys.p384.signs(jsonwebtoken::Algorithm::ES384),
    );
    let section = "[issuer.corp]\nissuer = 'https://login.test/corp'\naudience = ['reports']\nalgorithms = ['ES256', 'ES384']\npublic_keys = ['a.pem']\n";
    let gateway =
        Gateway::setup(&format!("{ROUTE}{section}")).file("a.pem", &keys.p256.public).start().await;
    assert_eq!(ask(&gateway, &p256.token(json!({}), json!({}))).await.status, 200);
    std::fs::write(gateway.path("a.pem"), &keys.p384.public).unwrap();
    output(&gateway, 0, "the key file has changed; its new keys are in use", "corp").await;
    assert_eq!(ask(&gateway, &p384.token(json!({}), json!({}))).await.status, 200);
    ask(&gateway, &p256.token(json!({}), json!({}))).await.is(401, "token_algorithm");
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_unchanged_issuers() {
    let key = Published::new("a");
    let (kept, dropped) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let one = kept.section("corp", "");
    let other = dropped.section("other", "jwks_refresh = '1s'");
    let gateway = Gateway::start(&format!("{ROUTE}{one}{other}")).await;
    let token = key.token(json!({}));
    assert_eq!(ask(&gateway, &token).await.status, 200);
    dropped.until_asked(2).await;
    // Another claim for the roles makes another issuer with the same keys.
    let changed = one.replace("[issuer.corp]", "[issuer.corp]\nroles = 'groups'");
    assert_eq!(gateway.reload(&format!("{ROUTE}{changed}{other}")).await["message"], "reloaded");
    // It keeps the settings under which it was accepted.
    let mut idle = gateway.connect().await;
    idle.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    idle.response().await.is(401, "credentials_missing");
    assert_eq!(ask(&gateway, &token).await.status, 200);
    assert_eq!(
        gateway
            .reload(&format!("{ROUTE}{one}{}", kept.section("beside", "jwks_refresh = '1s'")))
            .await["message"],
        "reloaded"
    );
    let before = dropped.asked("/keys");
    // Three refreshes of the new one leave enough time for one of the removed one.
    kept.until_asked(kept.asked("/keys") + 3).await;
    assert!(dropped.asked("/keys") <= before + 1, "nobody needs its keys any more");
    assert_eq!(ask(&gateway, &token).await.status, 200);

    // Another schedule means another owner, which starts with the known keys.
    kept.stop().await;
    let slower = one.replace("[issuer.corp]", "[issuer.corp]\njwks_refresh = '10m'");
    assert_eq!(gateway.reload(&format!("{ROUTE}{slower}")).await["message"], "reloaded");
    assert_eq!(ask(&gateway, &token).await.status, 200);
}
