//! People who log in at an OpenID provider (CONTRACT §11): a certified provider (oidc-provider) and
//! another implementation, and browsers that follow their redirects.

mod browser;
mod recheck;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::by_mail::sqlite;
use crate::commands::done;
use crate::harness::accounts::PASSWORD;
use crate::harness::peers::Peer;
use crate::harness::{Gateway, PATIENCE, Response, Setup};

/// A provider, and a gateway where people log in at it.
struct Site {
    provider: Peer,
    gateway: Gateway,
    issuer: String,
}

/// The programs in `tests/peers` with the two implementations.
const CERTIFIED: &str = "provider.js";
const ANOTHER: &str = "mock.js";

/// What a browser ends at.
#[derive(Debug)]
struct Page(Value);

impl Page {
    fn status(&self) -> u64 {
        self.0["status"].as_u64().unwrap()
    }

    fn url(&self) -> &str {
        self.0["url"].as_str().unwrap()
    }

    fn body(&self) -> &str {
        self.0["body"].as_str().unwrap()
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        self.0["cookies"][name].as_str()
    }

    fn hops(&self) -> Vec<&str> {
        self.0["hops"].as_array().unwrap().iter().map(|hop| hop["url"].as_str().unwrap()).collect()
    }

    /// The claims of the access token in the cookie, unverified.
    #[track_caller]
    fn claims(&self) -> Value {
        claims_of(self.cookie(ACCESS).unwrap_or_else(|| panic!("no session: {self:?}")))
    }
}

/// The claims of a token, unverified.
fn claims_of(token: &str) -> Value {
    use base64::Engine;
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap())
        .unwrap()
}

const ACCESS: &str = "__Host-portcullis";
const SESSION: &str = "__Host-portcullis-session";
const LOGINS: &str = "__Host-portcullis-login";

/// A file with a provider `corp`: lines for `[identity]`, and for the provider.
fn file(issuer: &str, identity: &str, login: &str) -> String {
    format!(
        "[identity]\nissuer = 'http://app.test/auth'\n{identity}\n[identity.login.corp]\nname = 'Example Corp'\nissuer = '{issuer}'\n\
         client_id = 'portcullis'\nclient_secret = {{ file = 'login.secret' }}\n{login}\n\
         [[route]]\npath = '/*'\nupstream = 'app'\ntoken_from = ['header', 'cookie']\nissuers = ['identity']\n\
         [[route]]\npath = '/auth/*'\nidentity = true\nlimit = 'wide'\n[limit.wide]\nrequests = 100000\nper = '1s'\n"
    )
}

const SECRET: &str = "secret of the client: 100 %";

impl Site {
    async fn start(identity: &str, login: &str) -> Option<Self> {
        Self::with(&json!({ "do": "serve" }), identity, login).await
    }

    /// With this provider.
    async fn with(serve: &Value, identity: &str, login: &str) -> Option<Self> {
        let set_up = |issuer: &str| Gateway::setup(&file(issuer, identity, login));
        Self::at(CERTIFIED, serve, set_up).await
    }

    /// With this implementation, and the gateway that is set up for its issuer.
    async fn at(
        implementation: &str,
        serve: &Value,
        set_up: impl FnOnce(&str) -> Setup,
    ) -> Option<Self> {
        let mut provider = Peer::start(implementation)?;
        let served = provider.ask(serve.clone());
        let issuer = served["issuer"].as_str().unwrap().to_owned();
        let setup = set_up(&issuer)
            .file("login.secret", SECRET)
            .file("client.key", served["key"].as_str().unwrap_or_default());
        let mut site = Self { provider, gateway: setup.start().await, issuer };
        site.tell_address();
        site.person("ann", &json!({}));
        Some(site)
    }

    /// Tells the browsers and the provider where the gateway is.
    fn tell_address(&mut self) {
        let address = self.gateway.address().to_string();
        self.provider.ask(json!({ "do": "gateway", "address": address }));
    }

    /// Who logs in from now on; `claims` in addition to the usual ones.
    fn person(&mut self, account: &str, claims: &Value) {
        let mut all = json!({ "email": format!("{account}@example.com"), "email_verified": true, "name": account });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        self.provider.ask(json!({ "do": "person", "account": account, "claims": all }));
    }

    fn browse(&mut self, jar: &str, url: &str) -> Page {
        Page(self.provider.ask(json!({ "do": "browse", "jar": jar, "url": url })))
    }

    /// Stops in front of a URL that begins with this.
    fn browse_until(&mut self, jar: &str, url: &str, until: &str) -> String {
        let page = Page(
            self.provider.ask(json!({ "do": "browse", "jar": jar, "url": url, "until": until })),
        );
        assert_eq!(page.status(), 0, "{page:?}");
        page.url().to_owned()
    }

    fn submit(&mut self, jar: &str, url: &str, form: &Value) -> Page {
        Page(self.provider.ask(json!({ "do": "browse", "jar": jar, "url": url, "form": form })))
    }

    fn count(&mut self, path: &str) -> u64 {
        let counts = self.provider.ask(json!({ "do": "count" }));
        counts["counts"][path].as_u64().unwrap_or(0)
    }

    /// Logs in, and returns the page that was asked for.
    #[track_caller]
    fn log_in(&mut self, jar: &str) -> Page {
        let page = self.browse(jar, "/auth/login/corp?return_to=%2Freports%3Fq%3D1");
        assert_eq!((page.status(), page.url()), (200, "http://app.test/reports?q=1"), "{page:?}");
        page
    }

    /// The refusal at the end of a login.
    #[track_caller]
    fn refused(&mut self, jar: &str, url: &str, status: u64) -> Page {
        let page = self.browse(jar, url);
        assert_eq!(page.status(), status, "{page:?}");
        assert_eq!(page.cookie(ACCESS), None, "{page:?}");
        page
    }

    async fn logged(&self, message: &str, cause: &str) {
        self.gateway
            .log()
            .until(&format!("{message}: {cause}"), |line| {
                line["message"] == message && line.to_string().contains(cause)
            })
            .await;
    }

    async fn reaches(&self, page: &Page) -> Response {
        self.gateway.get("/x").bearer(page.cookie(ACCESS).unwrap()).send().await
    }
}

const CALLBACK: &str = "http://app.test/auth/login/corp/callback";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_at_a_provider_ends_in_a_session_of_ours() {
    let Some(mut site) = Site::start("password_login = false", "").await else { return };
    // With one way to log in, the page of the application leads straight there and back.
    let page = site.browse("ann", "/reports?q=1");
    assert_eq!((page.status(), page.url()), (200, "http://app.test/reports?q=1"), "{page:?}");
    let hops = page.hops();
    assert_eq!(hops[1], "http://app.test/auth/login?return_to=%2Freports%3Fq%3D1");
    assert_eq!(hops[2], "http://app.test/auth/login/corp?return_to=%2Freports%3Fq%3D1");
    assert!(hops[3].starts_with(&format!("{}/auth?", site.issuer)), "{hops:?}");
    for parameter in [
        "response_type=code",
        "client_id=portcullis",
        "redirect_uri=http%3A%2F%2Fapp.test%2Fauth%2Flogin%2Fcorp%2Fcallback",
        "scope=openid+email+profile",
        "code_challenge_method=S256",
        "state=",
        "nonce=",
    ] {
        assert!(hops[3].contains(parameter), "{parameter} {}", hops[3]);
    }
    assert_eq!(page.cookie(LOGINS), None, "the login is over");
    let claims = page.claims();
    assert_eq!(
        (&claims["idp"], &claims["acr"], &claims["email"], &claims["name"], &claims["roles"]),
        (&json!("corp"), &Value::Null, &json!("ann@example.com"), &json!("ann"), &json!([])),
        "{claims}"
    );
    assert!(claims["auth_time"].as_u64().is_some() || claims["auth_time"].is_null());
    let received = site.gateway.upstream().last();
    assert_eq!(received.header("x-auth-email"), Some("ann@example.com"));
    assert_eq!(received.header("cookie"), None);
    // The account is that of (issuer, subject), whatever the address and the name.
    site.person("ann", &json!({ "email": "ann.ott@example.com", "name": "Ann Ott" }));
    let again = site.log_in("another browser").claims();
    assert_eq!(
        (&again["sub"], &again["email"], &again["name"]),
        (&claims["sub"], &json!("ann.ott@example.com"), &json!("Ann Ott"))
    );
    assert_ne!(again["sid"], claims["sid"]);
    site.person("bob", &json!({}));
    assert_ne!(site.log_in("bob").claims()["sub"], claims["sub"]);
    // Another login in the same browser: the earlier session ends.
    let old = site.browse("bob", "/x");
    assert_eq!(site.reaches(&old).await.status, 200);
    let page = site.browse("bob", "/auth/login/corp?acr_values=pwd&return_to=%2Fx");
    assert_ne!(page.claims()["sid"], old.claims()["sid"]);
    site.reaches(&old).await.is(401, "token_revoked");

    // The page of the sessions and the operator's command say which way.
    let sessions = site.browse("bob", "/auth/sessions");
    assert!(sessions.body().contains("· logged in at Example Corp</p>"), "{sessions:?}");
    let (code, shown, _) = site.gateway.command(&["user", "show", "bob@example.com"]).await;
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains(&site.issuer) && shown.contains("  corp   "), "{shown}");
    let (_, listed, _) = site.gateway.command(&["user", "list"]).await;
    assert!(listed.contains("enabled, provider, no password"), "{listed}");

    // A program gets JSON, and no cookie.
    let response = site.gateway.get("/reports").header("Accept", "application/json").send().await;
    response.is(401, "credentials_missing");
    assert!(response.headers("set-cookie").is_empty(), "{response:?}");
    let script = site.gateway.get("/reports").header("Sec-Fetch-Mode", "cors").send().await;
    script.is(401, "credentials_missing");
    assert!(script.headers("set-cookie").is_empty(), "{script:?}");
    // Nobody logs in with a password.
    for path in ["/auth/login", "/auth/register", "/auth/password/forgot"] {
        let body = json!({ "email": "ann@example.com", "password": PASSWORD });
        site.gateway.post(path, &body).send().await.is(403, "login_method");
    }
    site.gateway.get("/auth/login/none").send().await.is(404, "route_not_found");
    site.gateway
        .log()
        .until("the login is logged", |line| line["message"] == "login_succeeded")
        .await;
}

/// The provider leads back to the host of the issuer, where the cookies of another host are missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_begins_on_another_host_moves_to_that_of_the_issuer() {
    let Some(mut site) = Site::start("", "").await else { return };
    let page = site.browse("ann", "http://alias.test/auth/login/corp?return_to=%2Freports");
    assert_eq!((page.status(), page.url()), (200, "http://app.test/reports"), "{page:?}");
    let begin = async |path: &str, host: &str| {
        let response = site.gateway.get(path).host(host).send().await;
        (response.status, response.header("location").unwrap_or_default().to_owned())
    };
    let (status, to) = begin("/auth/login/corp?return_to=%2Fa&acr_values=x", "alias.test").await;
    let home = "http://app.test/auth/login/corp?return_to=%2Fa&acr_values=x&moved=1";
    assert_eq!((status, &*to), (303, home));
    // Behind a proxy that changes the host, it happens once.
    for (path, host) in [
        ("/auth/login/corp?moved=1", "alias.test"),
        ("/auth/login/corp", "APP.test"),
        ("/auth/login/corp", "app.test:8080"),
    ] {
        let (status, to) = begin(path, host).await;
        assert_eq!(status, 302, "{path} {host}");
        assert!(to.starts_with(&site.issuer), "{path} {host}: {to}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_login_page_offers_every_way() {
    let Some(mut site) = Site::start("registration = 'open'", "").await else { return };
    let page = site.browse("ann", "/auth/login?return_to=%2Fa");
    assert!(
        page.body()
            .contains("href=\"/auth/login/corp?return_to=%2Fa\">Log in with Example Corp</a>"),
        "{page:?}"
    );
    assert!(page.body().contains("type=\"password\""));
    let german = site
        .gateway
        .get("/auth/login")
        .header("Accept", "text/html")
        .header("Accept-Language", "de")
        .send()
        .await;
    assert!(german.text().contains("Mit Example Corp anmelden"));
    // Whoever logs in with a password says so.
    site.gateway.register("dan@example.com").await;
    let claims = site.gateway.login("dan@example.com").await.claims();
    assert_eq!((&claims["idp"], &claims["acr"]), (&json!("password"), &json!("pwd")));
    assert_eq!(claims["auth_time"], claims["iat"]);
    // After a logout there is something to read.
    let done = site.browse("ann", "/auth/login?done=everywhere");
    assert_eq!(done.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_come_from_the_provider_and_go_with_it() {
    let lines = "roles = 'groups'\nrole_map = { 'wiki-editors' = ['editor', 'reader'], 'Domain Admins' = ['admin'] }\ndefault_roles = ['user']\nrequire = { hd = ['example.com'] }";
    let Some(mut site) = Site::start("", lines).await else { return };
    site.person(
        "ann",
        &json!({ "hd": "example.com", "groups": ["wiki-editors", "other", "admin"] }),
    );
    let first = site.log_in("ann");
    assert_eq!(first.claims()["roles"], json!(["editor", "reader", "user"]));
    assert_eq!(site.reaches(&first).await.status, 200);
    site.person("ann", &json!({ "hd": "example.com", "groups": ["Domain Admins"] }));
    let second = site.log_in("another browser");
    assert_eq!(second.claims()["roles"], json!(["admin", "user"]));
    site.reaches(&first).await.is(401, "token_revoked");
    let renewed = site.browse("ann", "/x");
    assert_eq!(renewed.claims()["roles"], json!(["admin", "user"]), "the session goes on");

    site.person("ann", &json!({ "hd": "example.org", "groups": ["Domain Admins"] }));
    let page = site.refused("third", "/auth/login/corp", 403);
    assert!(page.body().contains("You are not allowed to log in here."), "{page:?}");
    site.logged("a person may not log in", "`require`").await;
    site.person("ann", &json!({ "hd": "example.com", "_claim_names": { "groups": "src1" } }));
    let page = site.refused("third", "/auth/login/corp", 403);
    assert!(page.body().contains("more groups than this site can take over"), "{page:?}");
    site.logged("login_failed", "groups_overage").await;
}

/// Browsers drop long cookies, and a token that is longer than the gateway accepts is worth nothing:
/// a login with too many roles is refused, and a session that gets too many ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_with_more_roles_than_cookies_hold_is_refused() {
    let groups = |count: u32| {
        let id = |at| format!("8f3c{at:04x}-7c1d-4c7e-9a55-0b1d6e3f2a90");
        json!({ "groups": (0..count).map(id).collect::<Vec<_>>() })
    };
    let Some(mut site) = Site::start("", "roles = 'groups'\nrecheck = '1h'").await else { return };
    let mut most = 0;
    for count in [10, 14, 16, 17, 18, 19, 20, 22, 25, 40, 100, 350] {
        site.person("ann", &groups(count));
        let (jar, login) = (format!("with {count}"), "/auth/login/corp?return_to=%2Freports");
        let page = site.browse(&jar, login);
        if page.status() == 200 {
            most = count;
            // With a login in progress: somebody may have to prove more.
            site.browse_until(&jar, "/auth/login/corp?max_age=0", &site.issuer.clone());
            let longest = site.browse(&jar, "/x").0["longest"].as_u64().unwrap();
            assert!(longest < 2048, "{count} groups: {longest}");
            continue;
        }
        assert_eq!((page.status(), page.cookie(ACCESS)), (403, None), "{count}: {page:?}");
        assert!(page.body().contains("more groups than this site can take over"), "{page:?}");
    }
    assert!((16..25).contains(&most), "{most} groups fit");
    site.logged("a person may not log in", "350 roles make a Cookie header of").await;
    site.logged("a person may not log in", "set `role_map`").await;
    site.logged("login_failed", "groups_overage").await;
    let (_, shown, _) = site.gateway.command(&["user", "show", "ann@example.com", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["roles"], &shown["sessions"]), (&json!([]), &json!([])), "{shown}");

    // A map keeps what routes ask for.
    let map =
        "roles = 'groups'\nrole_map = { '8f3c0007-7c1d-4c7e-9a55-0b1d6e3f2a90' = ['editor'] }";
    let Some(mut site) = Site::start("", map).await else { return };
    site.person("ann", &groups(350));
    assert_eq!(site.log_in("ann").claims()["roles"], json!(["editor"]));
}

/// Without a map, the values are the roles; one that would be two others is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_with_a_space_is_not_two_roles() {
    let Some(mut site) = Site::start("", "roles = 'groups'").await else { return };
    site.person("ann", &json!({ "groups": ["auditor", "admin staff"] }));
    assert_eq!(site.log_in("ann").claims()["roles"], json!(["auditor"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_joined_only_if_both_sides_have_verified_the_address() {
    for (link, verified_there, verified_here, joins) in [
        ("never", true, true, false),
        ("verified_email", true, true, true),
        ("verified_email", false, true, false),
        ("verified_email", true, false, false),
    ] {
        let what = format!("{link} {verified_there} {verified_here}");
        let login = format!("link = '{link}'");
        let Some(mut site) = Site::start("registration = 'open'", &login).await else { return };
        site.gateway.register("ann@example.com").await;
        let own = site.gateway.login("ann@example.com").await.claims();
        if verified_here {
            sqlite(&site.gateway.path("portcullis.db"), "UPDATE accounts SET email_verified = 1")
                .await;
        }
        let said = if verified_there { json!(true) } else { json!(null) };
        site.person("ann", &json!({ "email_verified": said }));
        if joins {
            assert_eq!(site.log_in("ann").claims()["sub"], own["sub"], "{what}");
            assert_eq!(site.log_in("again").claims()["sub"], own["sub"], "{what}");
        } else {
            let page = site.refused("ann", "/auth/login/corp", 409);
            assert!(page.body().contains("already has an account here"), "{what} {page:?}");
        }
    }
}

/// The provider gives the address of somebody who has left, or has another name now, to a namesake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_people_of_a_provider_never_share_an_account() {
    let Some(mut site) = Site::start("", "link = 'verified_email'").await else { return };
    let ann = site.log_in("ann").claims();
    let namesake = json!({ "email": "ann@example.com" });
    site.person("anna", &namesake);
    let page = site.refused("anna", "/auth/login/corp", 409);
    assert!(
        page.body().contains("give the other account another address or delete it"),
        "{page:?}"
    );
    site.logged("account_not_joined", "other_subject").await;
    let shown = done(&site.gateway, &["user", "show", "ann@example.com"], "");
    assert!(shown.contains(&format!("{}, subject ann\n", site.issuer)), "{shown}");
    // What an operator can do.
    done(&site.gateway, &["user", "set-email", "ann@example.com", "ann.one@example.com"], "");
    let anna = site.log_in("anna").claims();
    assert_eq!((&anna["email"], anna["sub"] == ann["sub"]), (&json!("ann@example.com"), false));
    // An address that somebody else has here is not taken from them, nor is their account joined.
    site.person("ann", &json!({}));
    // In another browser: the first one has logged in, perhaps in this second.
    let again = site.log_in("later").claims();
    assert_eq!((&again["sub"], &again["email"]), (&ann["sub"], &json!("ann.one@example.com")));
    site.logged("email_not_changed", "address_taken").await;
}

/// Otherwise a stranger could lock people out by registering their addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_nobody_confirms_gives_way_to_a_person_of_a_provider() {
    let identity = "registration = 'open'\nverify_email = true\nmail = { folder = 'mail' }";
    for link in ["never", "verified_email"] {
        let Some(mut site) = Site::start(identity, &format!("link = '{link}'")).await else {
            return;
        };
        for email in ["ann@example.com", "married@example.com"] {
            site.gateway.register(email).await;
        }
        // The provider does not say that it has verified the address.
        site.person("eve", &json!({ "email": "ann@example.com", "email_verified": null }));
        site.refused("eve", "/auth/login/corp", 409);
        site.person("ann", &json!({}));
        let ann = site.log_in("ann").claims();
        assert_eq!(ann["email"], "ann@example.com");
        site.logged("registration_dropped", "account").await;
        site.person("ann", &json!({ "email": "married@example.com" }));
        let later = site.log_in("later").claims();
        assert_eq!((&later["sub"], &later["email"]), (&ann["sub"], &json!("married@example.com")));
        for email in ["ann@example.com", "married@example.com"] {
            site.gateway.try_login(email, PASSWORD).await.is(401, "login_failed");
        }
    }
}

/// The address that nobody has verified is not passed on, and the account is none the less theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_without_an_address_has_an_account() {
    let Some(mut site) = Site::start("", "").await else { return };
    for (account, claims) in [
        ("ann", json!({ "email": null, "email_verified": null })),
        ("bob", json!({ "email": "boss@example.com", "email_verified": false })),
        ("eve", json!({ "email": "someone@no-address.invalid" })),
    ] {
        site.person(account, &claims);
        let first = site.log_in(account).claims();
        assert_eq!(first["email"], Value::Null);
        assert_eq!(site.gateway.upstream().last().header("x-auth-email"), None);
        assert_eq!(site.log_in(&format!("{account} again")).claims()["sub"], first["sub"]);
        for path in ["/auth/account", "/auth/sessions"] {
            let page = site.browse(account, path);
            assert!(page.status() == 200 && !page.body().contains(".invalid"), "{page:?}");
        }
        let page = site.browse(account, "/x");
        let me = site.gateway.get("/auth/me").bearer(page.cookie(ACCESS).unwrap()).send().await;
        let me = me.json();
        assert_eq!((&me["email"], &me["email_verified"]), (&Value::Null, &false.into()), "{me}");
        // Commands find it by its id.
        let id = first["sub"].as_str().unwrap();
        for command in [
            &["user", "list"][..],
            &["user", "list", "--json"],
            &["user", "show", id],
            &["user", "show", id, "--json"],
            &["user", "set-name", id, "Somebody"],
            &["user", "set-roles", id, "reader"],
            &["user", "token", "list", id],
            &["user", "end-sessions", id],
            &["user", "disable", id],
        ] {
            let (code, output, error) = site.gateway.command(command).await;
            assert_eq!(code, 0, "{command:?}: {error}");
            assert!(output.contains(id) && !output.contains(".invalid"), "{command:?}: {output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_logins_at_once_all_arrive() {
    let Some(mut site) = Site::start("password_login = false", "").await else { return };
    // They begin one after the other and come back in another order.
    let waiting: Vec<String> = (0..8)
        .map(|tab| {
            site.browse_until("ann", &format!("/auth/login/corp?return_to=%2Ftab{tab}"), CALLBACK)
        })
        .collect();
    for tab in [3, 7, 0, 1, 2, 6, 5, 4] {
        let page = site.browse("ann", &waiting[tab]);
        assert_eq!(
            (page.status(), page.url()),
            (200, format!("http://app.test/tab{tab}").as_str()),
            "{page:?}"
        );
    }
    // Two begin together: the answer to the second overwrites the cookie of the first.
    let first = site.browse_until("bob", "/auth/login/corp?return_to=%2Ffirst", CALLBACK);
    site.provider.ask(json!({ "do": "jar", "jar": "bob", "remove": [LOGINS] }));
    let second = site.browse_until("bob", "/auth/login/corp?return_to=%2Fsecond", CALLBACK);
    let page = site.browse("bob", &first);
    assert_eq!((page.status(), page.url()), (200, "http://app.test/first"), "{page:?}");
    let page = site.browse("bob", &second);
    assert_eq!((page.status(), page.url()), (200, "http://app.test/second"), "{page:?}");
    // That happens up to three times in a row.
    let mut waiting = site.browse_until("eve", "/auth/login/corp?return_to=%2Fthird", CALLBACK);
    for _ in 0..3 {
        site.provider.ask(json!({ "do": "jar", "jar": "eve", "remove": [LOGINS] }));
        site.browse_until("eve", "/auth/login/corp?return_to=%2Fother", CALLBACK);
        waiting = site.browse_until("eve", &waiting, CALLBACK);
    }
    let page = site.browse("eve", &waiting);
    assert_eq!((page.status(), page.url()), (200, "http://app.test/third"), "{page:?}");
    // A tab that was left open long ago finds a session.
    let page = site.browse("bob", &first);
    assert_eq!((page.status(), page.url()), (200, "http://app.test/first"), "{page:?}");
    let page = site.browse("bob", &format!("{CALLBACK}?code=x&state=forged"));
    assert_eq!((page.status(), page.url()), (200, "http://app.test/"), "{page:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attacks_on_a_login_open_no_session() {
    let Some(mut site) = Site::start("", "[identity.login.other]\nissuer = 'http://127.0.0.1:9/other'\nclient_id = 'x'\nclient_secret = { file = 'login.secret' }").await else { return };
    // Login CSRF: the attacker's own login, finished in the browser of somebody else.
    site.person("attacker", &json!({}));
    let forced = site.browse_until("attacker", "/auth/login/corp?return_to=%2Fa", CALLBACK);
    let page = site.refused("victim", &forced, 400);
    assert!(page.body().contains("was started in another browser"), "{page:?}");
    assert!(page.body().contains("href=\"/auth/login?return_to=%2Fa\""), "{page:?}");
    // The victim has a login of their own in progress: it begins again, as the victim.
    site.person("victim", &json!({}));
    site.browse_until("busy", "/auth/login/corp", CALLBACK);
    let page = site.browse("busy", &forced);
    assert_eq!(page.claims()["email"], "victim@example.com", "{page:?}");
    // The code of one login in another one of the same browser: PKCE and nonce refuse it.
    let one = site.browse_until("ann", "/auth/login/corp", CALLBACK);
    let two = site.browse_until("ann", "/auth/login/corp", CALLBACK);
    let parameter = |url: &str, name: &str| {
        let query = url.split_once('?').unwrap().1;
        let found = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        found.unwrap().to_owned()
    };
    let iss = parameter(&one, "iss");
    let injected = format!(
        "{CALLBACK}?code={}&state={}&iss={iss}",
        parameter(&one, "code"),
        parameter(&two, "state")
    );
    site.refused("ann", &injected, 401);
    site.logged("a login at a provider failed", "invalid_grant").await;
    // Mix-up: the response of one provider at the path of another one, or with its name.
    let three = site.browse_until("ann", "/auth/login/corp", CALLBACK);
    site.refused("ann", &three.replace("/corp/", "/other/"), 400);
    site.refused("ann", &three.replace(&iss, "https%3A%2F%2Fevil.test"), 401);
    site.logged("a login at a provider failed", "another `iss`").await;
    let four = site.browse_until("ann", "/auth/login/corp", CALLBACK);
    site.refused("ann", &four.replace(&format!("&iss={iss}"), ""), 401);
    site.logged("a login at a provider failed", "no `iss`").await;
    // A code works once, also after a logout.
    let five = site.browse_until("carl", "/auth/login/corp?return_to=%2Fc", CALLBACK);
    assert_eq!(site.browse("carl", &five).status(), 200);
    site.provider.ask(json!({ "do": "jar", "jar": "carl", "remove": [ACCESS, SESSION] }));
    site.refused("carl", &five, 400);
    // Forged, cut, and oversized.
    let state = parameter(&one, "state");
    for state in ["", "AAAA", &state[1..], &"A".repeat(9000), &format!("{state}A")] {
        site.refused("ann", &format!("{CALLBACK}?code=x&state={state}&iss={iss}"), 400);
    }
    site.refused("ann", &format!("{CALLBACK}?code=x&iss={iss}"), 400);
    // What the provider says about a login that failed is in the log, not on the page.
    let six = site.browse_until("ann", "/auth/login/corp", CALLBACK);
    let denied = format!(
        "{CALLBACK}?error=access_denied&error_description=Not+today&state={}&iss={iss}",
        parameter(&six, "state")
    );
    let page = site.refused("ann", &denied, 401);
    assert!(!page.body().contains("Not today"), "{page:?}");
    site.logged("a login at a provider failed", "Not today").await;
    // Never to another site.
    for evil in ["https%3A%2F%2Fevil.test%2F", "%2F%2Fevil.test", "%2F%5Cevil.test"] {
        let page = site.browse("dora", &format!("/auth/login/corp?return_to={evil}"));
        assert_eq!(page.url(), "http://app.test/", "{evil}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_that_are_never_finished_cost_nothing() {
    let Some(mut site) = Site::start("", "").await else { return };
    let (mut cookie, mut sizes) = (String::new(), Vec::new());
    for _ in 0..1000 {
        let request = site.gateway.get("/auth/login/corp?return_to=%2Fa");
        let response = request.header("Cookie", &cookie).send().await;
        assert_eq!(response.status, 302, "{response:?}");
        let set = response.header("set-cookie").unwrap();
        assert!(set.ends_with("; Path=/; Max-Age=900; HttpOnly; Secure; SameSite=Lax"), "{set}");
        cookie = set.split_once(';').unwrap().0.to_owned();
        sizes.push(cookie.len());
    }
    sizes.dedup();
    assert_eq!(sizes.len(), 1, "the cookie never grows: {sizes:?}");
    assert!(sizes[0] < 350, "{sizes:?}");
    assert_eq!(site.count("/auth"), 0, "the provider was not asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_is_small_however_large_the_tokens_are() {
    let Some(mut site) = Site::with(&json!({ "do": "serve", "large": 16 * 1024 }), "", "").await
    else {
        return;
    };
    site.log_in("ann");
    for _ in 0..8 {
        site.browse_until("ann", "/auth/login/corp", &site.issuer.clone());
    }
    let page = site.browse("ann", "/x");
    let longest = page.0["longest"].as_u64().unwrap();
    assert!(longest < 2048, "{longest}");
    assert_eq!(site.gateway.upstream().last().header("cookie"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_proves_itself_with_a_key() {
    let Some(mut provider) = Peer::start("provider.js") else { return };
    let served = provider.ask(json!({ "do": "serve", "assertion": true }));
    let issuer = served["issuer"].as_str().unwrap();
    let file = file(issuer, "", "").replace(
        "client_secret = { file = 'login.secret' }",
        "client_key = { file = 'client.key' }",
    );
    let gateway =
        Gateway::setup(&file).file("client.key", served["key"].as_str().unwrap()).start().await;
    provider.ask(json!({ "do": "gateway", "address": gateway.address().to_string() }));
    provider
        .ask(json!({ "do": "person", "account": "ann", "claims": { "email": "ann@example.com" } }));
    let page = Page(
        provider
            .ask(json!({ "do": "browse", "jar": "ann", "url": "/auth/login/corp?return_to=%2Fa" })),
    );
    assert_eq!((page.status(), page.url()), (200, "http://app.test/a"), "{page:?}");
}

/// The gateway starts, says what is wrong, and goes on when the provider is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_provider_is_away_the_gateway_works() {
    let Some(mut site) = Site::start("password_login = false", "recheck = '1s'").await else {
        return;
    };
    let page = site.log_in("ann");
    site.provider.ask(json!({ "do": "down" }));
    site.gateway.kill_and_restart().await;
    site.tell_address();
    let away = site.refused("bob", "/auth/login?return_to=%2Fb", 503);
    assert!(away.body().contains("Your login provider does not respond."), "{away:?}");
    assert!(away.body().contains("href=\"/auth/login?return_to=%2Fb\""), "{away:?}");
    site.gateway.get("/auth/login/corp").send().await.is(503, "keys_unavailable");
    // Who was logged in stays logged in, although the provider cannot be asked.
    site.logged("cannot check a session at its provider; the session continues", "corp").await;
    assert_eq!(site.browse("ann", "/x").status(), 200);
    assert_eq!(site.reaches(&page).await.status, 200);
    site.provider.ask(json!({ "do": "up" }));
    let deadline = std::time::Instant::now() + PATIENCE;
    while site.browse("bob", "/auth/login?return_to=%2Fb").status() != 200 {
        assert!(std::time::Instant::now() < deadline, "the provider is back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_answers_nonsense_fails_one_login() {
    let Some(mut site) = Site::start("", "").await else { return };
    for (how, status, cause) in [
        ("html", 401, "/token cannot be used"),
        ("large", 401, "too large"),
        ("redirect", 401, "it redirects"),
        ("slow", 503, "longer than 10 s"),
    ] {
        site.provider.ask(json!({ "do": "break", "how": how }));
        site.refused(how, "/auth/login/corp", status);
        site.logged("a login at a provider failed", cause).await;
        assert_eq!(site.count("/elsewhere"), 0);
    }
    for how in ["html", "large", "redirect", "slow", "unavailable"] {
        site.provider.ask(json!({ "do": "break", "how": how, "at": "/me" }));
        let page = site.browse(how, "/auth/login/corp");
        assert!(matches!(page.status(), 401 | 503), "{how} {page:?}");
        assert_eq!((page.cookie(ACCESS), site.count("/elsewhere")), (None, 0), "{how}");
    }
    site.provider.ask(json!({ "do": "break", "how": "" }));
    site.log_in("ann");
}

/// Any page can send a browser to this address: that must not use up what logins from there need.
#[tokio::test]
async fn a_return_without_a_login_is_not_counted() {
    let file = file("http://127.0.0.1:9", "", "").replace("limit = 'wide'\n", "");
    let gateway = Gateway::setup(&file).file("login.secret", SECRET).start().await;
    for (path, status) in [("nope", 404), ("corp", 400)] {
        for _ in 0..61 {
            let path = format!("/auth/login/{path}/callback?code=x&state=y");
            assert_eq!(gateway.get(&path).send().await.status, status, "{path}");
        }
    }
}

/// Twenty tabs whose access token has expired: nothing of this reaches the provider.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_never_wait_for_the_provider() {
    let Some(mut site) = Site::start("access_token_ttl = '1s'", "recheck = '1h'").await else {
        return;
    };
    let page = site.log_in("ann");
    let asked = site.count("/token");
    let deadline = std::time::Instant::now() + PATIENCE;
    while site.reaches(&page).await.status == 200 {
        assert!(std::time::Instant::now() < deadline, "the access token expires");
    }
    let cookie = format!(
        "{ACCESS}={}; {SESSION}={}",
        page.cookie(ACCESS).unwrap(),
        page.cookie(SESSION).unwrap()
    );
    let mut tabs = JoinSet::new();
    for _ in 0..20 {
        tabs.spawn(site.gateway.get("/x").header("Cookie", &cookie).send());
    }
    for response in tabs.join_all().await {
        assert_eq!(response.status, 200, "{response:?}");
    }
    assert_eq!(site.count("/token"), asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_here_leads_to_the_provider_and_back() {
    let Some(mut site) = Site::start("", "").await else { return };
    let page = site.log_in("ann");
    let form = site.browse("ann", "/auth/logout");
    assert!(form.body().contains("action=\"/auth/logout\""), "{form:?}");
    let there = site.submit("ann", "/auth/logout", &json!({}));
    let end = &there.hops()[1];
    assert!(end.starts_with(&format!("{}/session/end?", site.issuer)), "{there:?}");
    assert!(end.contains("id_token_hint=ey") && end.contains("client_id=portcullis"), "{end}");
    assert!(
        end.contains("post_logout_redirect_uri=http%3A%2F%2Fapp.test%2Fauth%2Flogout"),
        "{end}"
    );
    assert_eq!(there.status(), 200, "{there:?}");
    assert_eq!((there.cookie(ACCESS), there.cookie(SESSION)), (None, None));
    site.reaches(&page).await.is(401, "token_revoked");
    // A program gets 204.
    let page = site.log_in("bob");
    let response = site
        .gateway
        .request("POST", "/auth/logout")
        .bearer(page.cookie(ACCESS).unwrap())
        .send()
        .await;
    assert_eq!(response.status, 204, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_at_the_provider_ends_the_session_here() {
    let Some(mut site) = Site::start("", "").await else { return };
    let (ann, elsewhere) = (site.log_in("ann"), site.log_in("elsewhere"));
    let response = site.provider.ask(json!({ "do": "logout", "jar": "ann" }));
    assert_eq!(response["told"], 1, "{response}");
    site.reaches(&ann).await.is(401, "token_revoked");
    assert_eq!(site.reaches(&elsewhere).await.status, 200, "another session there goes on");
    let logged = site
        .gateway
        .log()
        .until("the logout is logged", |line| line["message"] == "logged_out_at_provider")
        .await;
    assert_eq!(logged["account"], ann.claims()["sub"]);
    for form in ["", "logout_token=x", "logout_token=a.b.c&logout_token=a.b.c"] {
        let request = site.gateway.request("POST", "/auth/login/corp/backchannel-logout");
        let response = request
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .await;
        response.is(400, "request_invalid");
    }
}

/// Another implementation, and what a provider could lie about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_provider_and_forged_id_tokens() {
    let set_up = |issuer: &str| Gateway::setup(&file(issuer, "", "roles = 'groups'"));
    let Some(mut site) = Site::at(ANOTHER, &json!({ "do": "serve" }), set_up).await else { return };
    // It says nothing about a person but `sub`.
    site.provider.ask(json!({ "do": "person", "account": "jo", "claims": {} }));
    let bare = site.log_in("bare").claims();
    assert_eq!((&bare["email"], &bare["roles"]), (&Value::Null, &json!([])));
    site.person("jo", &json!({ "name": "Jo", "groups": ["editor"] }));
    let said = site.log_in("jo").claims();
    assert_eq!(
        (&said["sub"], &said["email"], &said["name"], &said["roles"]),
        (&bare["sub"], &json!("jo@example.com"), &json!("Jo"), &json!(["editor"]))
    );
    let out = site.submit("jo", "/auth/logout", &json!({}));
    assert!(out.hops()[1].starts_with(&format!("{}/endsession?", site.issuer)), "{out:?}");
    assert_eq!((out.status(), out.url()), (200, "http://app.test/auth/logout"), "{out:?}");
    for (how, cause) in [
        ("none", "none"),
        ("foreign key", "signature"),
        ("another client", "somebody else"),
        ("another party", "is not our client id"),
        ("nonce", "is not that of this login"),
        ("expired", "expired"),
        ("access token", "is not that of the access token"),
        ("no token", "no ID token"),
    ] {
        site.provider.ask(json!({ "do": "forge", "how": how }));
        site.refused(how, "/auth/login/corp", 401);
        site.logged("a login at a provider failed", cause).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_can_require_a_way_of_logging_in() {
    let routes = "[[route]]\npath = '/corp/*'\nupstream = 'app'\ntoken_from = ['header', 'cookie']\nissuers = ['identity']\nlogin = ['corp']\n\
         [[route]]\npath = '/strong/*'\nupstream = 'app'\ntoken_from = ['header', 'cookie']\nissuers = ['identity']\nacr = ['phr', 'mfa']\n\
         [[route]]\npath = '/recent/*'\nupstream = 'app'\ntoken_from = ['header', 'cookie']\nissuers = ['identity']\nmax_age = '2s'\n";
    let Some(mut site) = Site::start("registration = 'open'", routes).await else { return };
    let page = site.log_in("ann");
    let bearer = page.cookie(ACCESS).unwrap().to_owned();
    assert_eq!(site.gateway.get("/corp/x").bearer(&bearer).send().await.status, 200);
    site.gateway.register("dan@example.com").await;
    let dan = site.gateway.login("dan@example.com").await.access;
    site.gateway.get("/corp/x").bearer(&dan).send().await.is(403, "login_method");

    // A program gets the challenge of RFC 9470.
    for token in [&bearer, &dan] {
        let response = site.gateway.get("/strong/x").bearer(token).send().await;
        response.is(401, "step_up_required");
        assert_eq!(
            response.header("www-authenticate"),
            Some(
                "Bearer realm=\"portcullis\", error=\"insufficient_user_authentication\", error_description=\"A different authentication level is required\", acr_values=\"phr mfa\""
            )
        );
        assert!(response.headers("set-cookie").is_empty());
    }
    // A person is led to the provider, logs in more strongly, and goes on.
    let strong = site.browse("ann", "/strong/x?y=1");
    assert_eq!(
        (strong.status(), strong.url()),
        (200, "http://app.test/strong/x?y=1"),
        "{strong:?}"
    );
    assert_eq!(
        strong.hops()[1],
        "http://app.test/auth/login/corp?acr_values=phr+mfa&return_to=%2Fstrong%2Fx%3Fy%3D1"
    );
    assert_eq!(strong.claims()["acr"], "phr");
    assert_eq!(strong.claims()["sub"], page.claims()["sub"]);
    // Whoever proved who they are long ago does it again.
    let recent = site.browse("ann", "/recent/x");
    assert_eq!((recent.status(), recent.url()), (200, "http://app.test/recent/x"), "{recent:?}");
    let at = recent.claims()["auth_time"].as_u64().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let token = recent.cookie(ACCESS).unwrap().to_owned();
    let late = loop {
        let response = site.gateway.get("/recent/x").bearer(&token).send().await;
        if response.status != 200 {
            break response;
        }
        assert!(std::time::Instant::now() < deadline, "the login is too old");
    };
    late.is(401, "step_up_required");
    let challenge = late.header("www-authenticate").unwrap();
    assert!(challenge.ends_with("max_age=\"2\""), "{challenge}");
    let again = site.browse("ann", "/recent/x");
    assert!(again.claims()["auth_time"].as_u64().unwrap() > at, "{again:?}");
    // A provider that does not do as it was asked leads nowhere, and not in circles.
    let claims = json!({ "email": "ann@example.com" });
    site.provider.ask(json!({ "do": "person", "account": "ann", "claims": claims, "acr": "pwd" }));
    site.provider.ask(json!({ "do": "jar", "jar": "weak" }));
    let weak = site.browse("weak", "/auth/login/corp?acr_values=phr&return_to=%2Fstrong%2Fx");
    assert_eq!((weak.status(), weak.cookie(ACCESS)), (401, None), "{weak:?}");
    assert!(weak.body().contains("needs a stronger or a more recent login"), "{weak:?}");
    // Whoever logged in with a password sees the page.
    let page = site.submit(
        "dan",
        "/auth/login",
        &json!({ "email": "dan@example.com", "password": PASSWORD, "return_to": "/x" }),
    );
    assert_eq!(page.status(), 200, "{page:?}");
    let asked = site.browse("dan", "/strong/x");
    assert_eq!(asked.url(), "http://app.test/auth/login?done=step_up&return_to=%2Fstrong%2Fx");
    assert!(asked.body().contains("needs a stronger or a more recent login"), "{asked:?}");
    assert!(asked.cookie(ACCESS).is_some(), "the session goes on: {asked:?}");
}
