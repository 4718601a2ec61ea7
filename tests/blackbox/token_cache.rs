//! Cached tokens: cheaper, but never accepted for longer.

use serde_json::json;

use crate::harness::mint::{self, claims, now};
use crate::harness::{Gateway, within};

const PROTECTED: &str = "route = [{ path = '/*', upstream = 'app' }]";

async fn counted(gateway: &Gateway) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, name) in counts.iter_mut().zip(["hits_total", "misses_total", "entries"]) {
        let family = format!("portcullis_token_cache_{name}");
        *count = gateway.metric(&family).await[0].rsplit(' ').next().unwrap().parse().unwrap();
    }
    counts
}

#[tokio::test]
async fn a_token_is_verified_once_and_refusals_are_not_cached() {
    let gateway = Gateway::start(PROTECTED).await;
    let good = claims(json!({ "jti": "1" }));
    for _ in 0..5 {
        assert_eq!(gateway.get("/").bearer(&good).send().await.status, 200);
        assert_eq!(gateway.upstream().last().header("x-auth-user"), Some("u-17"));
    }
    assert_eq!(counted(&gateway).await, [4, 1, 1]);
    let forged = format!("{}AAAA", &good[..good.len() - 4]);
    for _ in 0..5 {
        gateway.get("/").bearer(&forged).send().await.is(401, "token_signature");
    }
    assert_eq!(counted(&gateway).await, [4, 6, 1]);
}

#[tokio::test]
async fn callers_are_never_mixed_up_and_the_bound_holds() {
    let gateway =
        Gateway::start(&format!("token_cache = {{ max_entries = 10 }}\n{PROTECTED}")).await;
    let tokens: Vec<String> =
        (0..40).map(|number| claims(json!({ "sub": format!("caller-{number}") }))).collect();
    for round in 0..3 {
        for (number, token) in tokens.iter().enumerate() {
            assert_eq!(gateway.get("/").bearer(token).send().await.status, 200);
            let named = gateway.upstream().last().header("x-auth-user").map(str::to_owned);
            assert_eq!(named, Some(format!("caller-{number}")), "round {round}");
        }
    }
    let [hits, misses, entries] = counted(&gateway).await;
    assert_eq!((hits + misses, entries), (120, 10));
    assert!(misses >= 120 - 20, "in turn, few of forty are found among ten: {hits} were");
}

#[tokio::test]
async fn the_token_cache_can_be_switched_off() {
    let gateway =
        Gateway::start(&format!("token_cache = {{ max_entries = 0 }}\n{PROTECTED}")).await;
    let token = mint::token(&[]);
    for _ in 0..3 {
        assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
    }
    assert_eq!(counted(&gateway).await, [0, 0, 0]);
}

#[tokio::test]
async fn a_cached_token_expires() {
    let gateway =
        Gateway::start(&format!("{PROTECTED}\n[issuer.corp]\nleeway = '0s'\n{}", mint::CORP)).await;
    let token = claims(json!({ "exp": now() + 2 }));
    assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
    let refused = within(async {
        loop {
            let response = gateway.get("/").bearer(&token).send().await;
            if response.status != 200 {
                break response;
            }
        }
    });
    refused.await.is(401, "token_expired");
}

#[tokio::test]
async fn a_reload_that_changes_the_issuer_or_its_key_takes_effect_at_once() {
    let gateway = Gateway::start(PROTECTED).await;
    let token = mint::token(&[]);
    assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
    let elsewhere = mint::CORP.replace("[\"reports\"]", "[\"elsewhere\"]");
    gateway.reload(&format!("{PROTECTED}\n[issuer.corp]\n{elsewhere}")).await;
    gateway.get("/").bearer(&token).send().await.is(401, "token_audience");
    gateway.reload(PROTECTED).await;
    assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
    std::fs::write(gateway.path("corp.secret"), "another secret, that is long enough for the hash")
        .unwrap();
    gateway.hang_up().await;
    gateway.get("/").bearer(&token).send().await.is(401, "token_signature");
    gateway
        .reload(&format!("{PROTECTED}\n[issuer.other]\n{}", mint::CORP.replace("/corp", "/other")))
        .await;
    gateway.get("/").bearer(&token).send().await.is(401, "token_issuer");
}
