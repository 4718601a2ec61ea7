//! What a provider says later: in the background, through back-channel logout, and at the next login.
//! The same holds for both implementations, and wherever the sessions are.

use serde_json::{Value, json};

use super::{ACCESS, ANOTHER, CERTIFIED, Page, SESSION, Site, file};
use crate::by_mail::sqlite;
use crate::harness::peers::Peer;
use crate::harness::postgres::PostgresServer;
use crate::harness::{Gateway, PATIENCE, Redis, Setup, within};

/// Where the gateway keeps accounts and sessions.
enum Place {
    File,
    Postgres(PostgresServer),
    Redis(Redis),
}

impl Place {
    fn all() -> Vec<Self> {
        let postgres = PostgresServer::start().map(Self::Postgres);
        let redis = Redis::start(&[]).map(Self::Redis);
        [Some(Self::File), postgres, redis].into_iter().flatten().collect()
    }

    fn set_up(&self, config: &str) -> Setup {
        match self {
            Self::File => Gateway::setup(config),
            Self::Postgres(server) => {
                let store =
                    "[store]\ndatabase = { env = 'DATABASE_URL' }\nkey = { file = 'key' }\n";
                Gateway::setup(&format!("{store}{config}"))
                    .file("key", "a key that the database is sealed with")
                    .variable("DATABASE_URL", &server.create_database("logins"))
            }
            Self::Redis(server) => {
                let url = server.url();
                let store = format!("[store]\nredis = '{url}'\nsessions = 'redis'\n");
                Gateway::setup(&format!("{store}{config}"))
            }
        }
    }
}

const ROLES: &str = "roles = 'groups'\nrecheck = '1s'";

/// Waits for something that a provider counts.
#[track_caller]
fn soon(mut happens: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !happens() {
        assert!(std::time::Instant::now() < deadline, "this should have happened by now");
    }
}

async fn dies(site: &Site, page: &Page) {
    within(async { while site.reaches(page).await.status == 200 {} }).await;
    site.reaches(page).await.is(401, "token_revoked");
}

/// A session from its beginning to its end by the provider, in each way that it can end.
async fn live(site: &mut Site) {
    site.person("ann", &json!({ "groups": ["editor", "reader"] }));
    let page = site.log_in("ann");
    assert_eq!(page.claims()["roles"], json!(["editor", "reader"]));
    // A role that is taken away there is gone here.
    site.person("ann", &json!({ "groups": ["reader"] }));
    dies(site, &page).await;
    let renewed = site.browse("ann", "/x");
    assert_eq!((renewed.status(), &renewed.claims()["roles"]), (200, &json!(["reader"])));
    assert_eq!(renewed.claims()["sid"], page.claims()["sid"]);
    // Nothing depends on what the process remembers.
    site.gateway.kill_and_restart().await;
    site.tell_address();
    assert_eq!(site.browse("ann", "/x").claims()["sid"], page.claims()["sid"]);
    site.person("ann", &json!({ "groups": [] }));
    dies(site, &renewed).await;
    let bare = site.browse("ann", "/x");
    assert_eq!(bare.claims()["roles"], json!([]));
    // The account is disabled there: the session ends.
    site.provider.ask(json!({ "do": "forget", "account": "ann" }));
    let ended = site
        .gateway
        .log()
        .until("the session has ended", |line| line["message"] == "ended_by_provider")
        .await;
    assert_eq!((&ended["login"], &ended["sid"]), (&json!("corp"), &page.claims()["sid"]));
    site.reaches(&bare).await.is(401, "token_revoked");
    assert!(site.browse("ann", "/x").url().contains("/auth/login"), "the session has ended");
    // Somebody logs out there.
    site.person("bob", &json!({ "groups": ["reader"] }));
    let bob = site.log_in("bob");
    let told = site.provider.ask(json!({ "do": "logout", "jar": "bob" }));
    assert_eq!(told["told"], 1, "{told}");
    site.reaches(&bob).await.is(401, "token_revoked");
    assert_eq!(site.browse("bob", "/x").cookie(ACCESS), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_follow_their_provider_wherever_they_are() {
    for place in Place::all() {
        let set_up = |issuer: &str| place.set_up(&file(issuer, "", ROLES));
        let Some(mut site) = Site::at(CERTIFIED, &json!({ "do": "serve" }), set_up).await else {
            return;
        };
        live(&mut site).await;
        if let Place::Redis(redis) = &place {
            without_redis(&mut site, redis).await;
        }
    }
}

/// A provider says once that somebody has logged out, whether Redis is there or not.
async fn without_redis(site: &mut Site, redis: &Redis) {
    site.person("carl", &json!({ "groups": [] }));
    let carl = site.log_in("carl");
    redis.signal("STOP");
    let told = site.provider.ask(json!({ "do": "logout", "jar": "carl" }));
    assert_eq!(told["told"], 1, "{told}");
    site.reaches(&carl).await.is(401, "token_revoked");
    redis.signal("CONT");
    within(async {
        while site.gateway.metric_value("portcullis_store_up", &["redis"]).await != Some(1.0) {}
    })
    .await;
    // Until Redis can be asked, the browser is told to wait; it is never let in.
    soon(|| {
        let page = site.browse("carl", "/x");
        assert_ne!((page.status(), page.url()), (200, "http://app.test/x"), "it is not continued");
        page.cookie(ACCESS).is_none()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_follow_another_implementation() {
    for claims in ["id_token", "userinfo"] {
        let set_up = |issuer: &str| Gateway::setup(&file(issuer, "", ROLES));
        let serve = json!({ "do": "serve", "claims": claims });
        let Some(mut site) = Site::at(ANOTHER, &serve, set_up).await else { return };
        live(&mut site).await;
    }
}

/// OpenID Connect Core §12.2: a refreshed token need not come with an ID token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_says_nothing_changes_nothing() {
    let lines = format!("{ROLES}\ndefault_roles = ['user']\nrequire = {{ hd = ['example.com'] }}");
    let set_up = |issuer: &str| Gateway::setup(&file(issuer, "", &lines));
    let serve = json!({ "do": "serve", "silent": true });
    let Some(mut site) = Site::at(ANOTHER, &serve, set_up).await else { return };
    site.person("ann", &json!({ "hd": "example.com", "groups": ["editor"] }));
    let page = site.log_in("ann");
    assert_eq!(page.claims()["roles"], json!(["editor", "user"]));
    let asked = site.count("/token");
    soon(|| site.count("/token") >= asked + 3);
    assert_eq!(site.reaches(&page).await.status, 200);
    assert_eq!(site.browse("ann", "/x").claims()["roles"], json!(["editor", "user"]));
}

/// The token endpoint has accepted the refresh token, and nothing else responds: the next one must
/// not be lost, since the one before ends the session there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recheck_that_fails_half_way_loses_no_token() {
    for (implementation, at) in [(CERTIFIED, "/me"), (ANOTHER, "/userinfo")] {
        let set_up = |issuer: &str| Gateway::setup(&file(issuer, "", ROLES));
        let serve = json!({ "do": "serve", "claims": "userinfo" });
        let Some(mut site) = Site::at(implementation, &serve, set_up).await else { return };
        site.person("ann", &json!({ "groups": ["editor"] }));
        let page = site.log_in("ann");
        site.provider.ask(json!({ "do": "break", "how": "unavailable", "at": at }));
        site.logged("cannot check a session at its provider; the session continues", at).await;
        site.provider.ask(json!({ "do": "break", "how": "" }));
        site.person("ann", &json!({ "groups": ["reader"] }));
        dies(&site, &page).await;
        let renewed = site.browse("ann", "/x");
        assert_eq!(renewed.claims()["roles"], json!(["reader"]), "{implementation}");
        assert_eq!(renewed.claims()["sid"], page.claims()["sid"]);
    }
}

/// The provider has accepted the refresh token, and its answer was lost: it refuses the token from
/// then on, as it refuses that of a person who is disabled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_ends_no_session_until_the_person_could_log_in_again() {
    for implementation in [CERTIFIED, ANOTHER] {
        let set_up = |issuer: &str| {
            let identity = "access_token_ttl = '1s'";
            Gateway::setup(&file(issuer, identity, "roles = 'groups'\nrecheck = '3s'"))
        };
        let serve = json!({ "do": "serve" });
        let Some(mut site) = Site::at(implementation, &serve, set_up).await else { return };
        site.person("ann", &json!({ "groups": ["editor"] }));
        let page = site.log_in("ann");
        lose_the_token(&mut site).await;
        // What a page loads, and a form, go on in the same session.
        let cookie = format!("{SESSION}={}", page.cookie(SESSION).unwrap());
        let request = site.gateway.get("/data").header("Cookie", &cookie);
        assert_eq!(request.header("Sec-Fetch-Mode", "cors").send().await.status, 200);
        let request = site.gateway.request("POST", "/form").header("Cookie", &cookie);
        let request =
            request.header("Sec-Fetch-Mode", "navigate").header("Origin", "http://app.test");
        assert_eq!(request.send().await.status, 200, "{implementation}");
        // A page leads through the provider, and back.
        let back = site.browse("ann", "/reports");
        assert_eq!((back.status(), back.url()), (200, "http://app.test/reports"), "{back:?}");
        assert_eq!(back.hops()[1], "http://app.test/auth/login/corp?return_to=%2Freports");
        assert_eq!(back.claims()["sub"], page.claims()["sub"]);
        assert_ne!(back.claims()["sid"], page.claims()["sid"], "{implementation}");
        // Everything is as before.
        site.person("ann", &json!({ "groups": ["reader"] }));
        soon(|| site.browse("ann", "/x").claims()["roles"] == json!(["reader"]));
        assert_eq!(site.browse("ann", "/x").claims()["sid"], back.claims()["sid"]);
    }
}

/// Waits until the answer about the only session was lost, and its token was refused.
async fn lose_the_token(site: &mut Site) {
    site.provider.ask(json!({ "do": "break", "how": "lost" }));
    let message = "cannot check a session at its provider; the session continues";
    site.gateway.log().until(message, |line| line["message"] == message).await;
    site.provider.ask(json!({ "do": "break", "how": "" }));
    let message = "a refresh token was lost; the person must log in at the provider again";
    site.gateway.log().until(message, |line| line["message"] == message).await;
}

/// Nor does it keep a session alive: the person may have been disabled meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_in_doubt_who_does_not_log_in_again_is_logged_out() {
    let Some(mut site) = Site::start("", "recheck = '1s'").await else { return };
    let page = site.log_in("ann");
    lose_the_token(&mut site).await;
    assert_eq!(site.reaches(&page).await.status, 200);
    dies(&site, &page).await;
    assert!(site.browse("ann", "/x").url().contains("/auth/login"), "the session has ended");
}

/// The store fails just when the session of somebody who was disabled is to end: what the provider
/// has said is not taken for an answer that was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_remembered_until_the_store_takes_it() {
    let Some(mut site) = Site::start("", "recheck = '1s'").await else { return };
    let page = site.log_in("ann");
    let database = site.gateway.path("portcullis.db");
    let refuse =
        "CREATE TRIGGER no BEFORE INSERT ON revocations BEGIN SELECT RAISE(ABORT, 'no'); END";
    sqlite(&database, refuse).await;
    site.provider.ask(json!({ "do": "forget", "account": "ann" }));
    let message = "the check of a session was not finished";
    site.gateway.log().until(message, |line| line["message"] == message).await;
    assert_eq!(site.reaches(&page).await.status, 200);
    sqlite(&database, "DROP TRIGGER no").await;
    dies(&site, &page).await;
    let ended = "ended_by_provider";
    site.gateway.log().until(ended, |line| line["message"] == ended).await;
}

/// A provider that hangs accepts what is in its queue when it goes on, although a client has long
/// given up. What it is asked is therefore waited for, and nothing more is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_hangs_ends_no_session() {
    let Some(mut site) = Site::start("", ROLES).await else { return };
    let mut pages = Vec::new();
    for account in ["ann", "bob", "carl"] {
        site.person(account, &json!({ "groups": ["editor"] }));
        pages.push(site.log_in(account));
    }
    site.provider.signal("STOP");
    // Longer than any other request would be waited for.
    let message = "a provider takes long to respond about a session; it is waited for";
    site.gateway.log().until(message, |line| line["message"] == message).await;
    site.provider.signal("CONT");
    for (account, page) in ["ann", "bob", "carl"].into_iter().zip(pages) {
        site.person(account, &json!({ "groups": ["reader"] }));
        dies(&site, &page).await;
        let renewed = site.browse(account, "/x");
        assert_eq!(renewed.claims()["roles"], json!(["reader"]), "{account}");
        assert_eq!(renewed.claims()["sid"], page.claims()["sid"], "{account}");
    }
}

/// A provider that refuses us is not asked again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_is_asked_once_an_interval_whatever_it_says() {
    let set_up = |issuer: &str| Gateway::setup(&file(issuer, "", "recheck = '4s'"));
    let Some(mut site) = Site::at(ANOTHER, &json!({ "do": "serve" }), set_up).await else { return };
    let page = site.log_in("ann");
    site.provider.ask(json!({ "do": "break", "how": "html" }));
    let begun = std::time::Instant::now();
    let before = site.count("/token");
    soon(|| site.count("/token") >= before + 3);
    assert!(begun.elapsed().as_secs() >= 7, "{:?}", begun.elapsed());
    assert_eq!(site.reaches(&page).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_who_is_refused_at_a_login_loses_what_earlier_ones_gave() {
    let lines = "roles = 'groups'\nrecheck = '1h'\nrequire = { hd = ['example.com'] }";
    let Some(mut site) = Site::start("", lines).await else { return };
    site.person("bob", &json!({ "hd": "example.com", "groups": ["admin"] }));
    let bob = site.log_in("bob");
    site.person("ann", &json!({ "hd": "example.com", "groups": ["admin"] }));
    let (one, two) = (site.log_in("ann"), site.log_in("another browser"));
    site.person("ann", &json!({ "hd": "example.org", "groups": ["reader"] }));
    site.refused("third", "/auth/login/corp", 403);
    for page in [&one, &two] {
        site.reaches(page).await.is(401, "token_revoked");
    }
    assert_eq!(site.browse("ann", "/x").cookie(ACCESS), None);
    let (_, shown, _) = site.gateway.command(&["user", "show", "ann@example.com", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["roles"], &shown["sessions"]), (&json!(["reader"]), &json!([])), "{shown}");
    assert_eq!(site.reaches(&bob).await.status, 200, "nobody else is concerned");
}

/// Whoever is disabled at a provider loses the session, also after its section was renamed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_section_that_is_renamed_still_asks() {
    let Some(mut site) = Site::start("", "recheck = '1s'").await else { return };
    let page = site.log_in("ann");
    let renamed = file(&site.issuer, "", "recheck = '1s'").replace("login.corp]", "login.company]");
    assert_eq!(site.gateway.reload(&renamed).await["message"], "reloaded");
    let asked = site.count("/token");
    soon(|| site.count("/token") > asked);
    assert_eq!(site.reaches(&page).await.status, 200);
    let again = site.browse("another", "/auth/login/company?return_to=%2Fx").claims();
    assert_eq!((&again["sub"], &again["idp"]), (&page.claims()["sub"], &json!("company")));
    site.provider.ask(json!({ "do": "forget", "account": "ann" }));
    dies(&site, &page).await;
}

/// Two providers: the same subject is somebody else, and the word of one about an address does not
/// open the accounts of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_cannot_wait_for_the_people_of_another() {
    for (trusted, joins) in [("never", false), ("verified_email", true)] {
        let Some(mut other) = Peer::start(ANOTHER) else { return };
        let weak = other.ask(json!({ "do": "serve" }))["issuer"].as_str().unwrap().to_owned();
        let section = format!(
            "link = 'verified_email'\n[identity.login.weak]\nissuer = '{weak}'\nclient_id = 'portcullis'\n\
             client_secret = {{ file = 'login.secret' }}\nlink = '{trusted}'"
        );
        let Some(mut site) = Site::start("", &section).await else { return };
        // Somebody at the other provider claims the address of ann, before she was ever here.
        let claims = json!({ "email": "ann@example.com", "email_verified": true });
        other.ask(json!({ "do": "person", "account": "ann", "claims": claims }));
        let early = site.browse("early", "/auth/login/weak?return_to=%2Fx").claims();
        if joins {
            assert_eq!(site.log_in("ann").claims()["sub"], early["sub"]);
            continue;
        }
        site.refused("ann", "/auth/login/corp", 409);
        let claims = json!({ "email": "other@example.com", "email_verified": true });
        other.ask(json!({ "do": "person", "account": "bob", "claims": claims }));
        let there = site.browse("there", "/auth/login/weak?return_to=%2Fx").claims();
        site.person("bob", &json!({}));
        assert_ne!(site.log_in("bob").claims()["sub"], there["sub"], "another person of this name");
    }
}

/// Two sections of one issuer lead to the same account: what the stricter one refuses, the other one
/// still permits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sections_of_one_issuer_share_accounts_and_not_their_demands() {
    let set_up = |issuer: &str| {
        let other = format!(
            "roles = 'groups'\nrecheck = '1h'\n[identity.login.other]\nissuer = '{issuer}'\nclient_id = 'portcullis'\n\
             client_secret = {{ file = 'login.secret' }}\nroles = 'groups'\nrequire = {{ clearance = ['top'] }}"
        );
        Gateway::setup(&file(issuer, "", &other))
    };
    let Some(mut site) = Site::at(CERTIFIED, &json!({ "do": "serve" }), set_up).await else {
        return;
    };
    site.person("ann", &json!({ "groups": ["editor"] }));
    let page = site.log_in("ann");
    site.refused("elsewhere", "/auth/login/other", 403);
    assert_eq!(site.reaches(&page).await.status, 200);
    let (_, out, errors) = site.gateway.command(&["check"]).await;
    assert!(!format!("{out}{errors}").contains("different roles"), "{out}{errors}");
    let text = file(&site.issuer, "", "roles = 'groups'").replace(
        "[[route]]\npath = '/*'",
        &format!(
            "[identity.login.other]\nissuer = '{}'\nclient_id = 'x'\nclient_secret = {{ file = 'login.secret' }}\nroles = 'realm'\n[[route]]\npath = '/*'",
            site.issuer
        ),
    );
    site.gateway.write(&text);
    let (_, out, errors) = site.gateway.command(&["check"]).await;
    let warning = "logins `corp` and `other` give the same accounts different roles";
    assert!(format!("{out}{errors}").contains(warning), "{out}{errors}");
}
