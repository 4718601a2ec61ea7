//! Clients that were written for an Express application (CONTRACT §15): the names of members in
//! bodies, with `compat = "express"` and without.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use toml::Table;

use crate::harness::accounts::{PASSWORD, open};
use crate::harness::jar::{Jar, SESSION};
use crate::harness::peers::Peer;
use crate::harness::{Gateway, PATIENCE, Port, Response, within};

const EXPRESS: &str = "compat = 'express'";

fn ann() -> Value {
    json!({ "email": "ann@example.com", "password": PASSWORD })
}

/// The two tokens of a response, which has no other members.
#[track_caller]
fn tokens(response: &Response, status: u16) -> (String, String) {
    assert_eq!(response.status, status, "{response:?}");
    let body = response.json();
    let names: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(names, ["accessToken", "refreshToken"]);
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    (text("accessToken"), text("refreshToken"))
}

/// The response is a refusal as Express applications write it.
#[track_caller]
fn refuses(response: &Response, status: u16, reason: &str) -> String {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/json"));
    let body = response.json();
    assert_eq!(body["reason"], reason, "{body}");
    assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_express_client_registers_refreshes_and_logs_out() {
    let gateway = Gateway::start(&open(EXPRESS)).await;
    let (access, refresh) = tokens(&gateway.post("/auth/register", &ann()).send().await, 201);
    assert_eq!(gateway.reaches(&access).await, 200, "registering logs in");
    let body = json!({ "refreshToken": refresh });
    let (access, refresh) = tokens(&gateway.post("/auth/refresh", &body).send().await, 200);
    assert_eq!(gateway.reaches(&access).await, 200);
    let body = json!({ "refreshToken": refresh });
    assert_eq!(gateway.post("/auth/logout", &body).send().await.status, 204);
    assert_eq!(gateway.reaches(&access).await, 401);
    refuses(&gateway.post("/auth/refresh", &body).send().await, 401, "invalid_grant");
    let (access, _) = tokens(&gateway.post("/auth/login", &ann()).send().await, 200);
    assert_eq!(gateway.reaches(&access).await, 200);
    // Cookies hold the tokens, so the body does not.
    let mut body = ann();
    body["cookie"] = true.into();
    let response = gateway.post("/auth/login", &body).send().await;
    assert_eq!(response.json(), json!({ "expires_in": 900 }));
    let jar = Jar::of(&response);
    let request = gateway.request("POST", "/auth/refresh").header("Origin", "http://app.test");
    let response = request.header("Cookie", &format!("{SESSION}={}", jar.session)).send().await;
    assert_eq!((response.status, response.json()), (200, json!({ "expires_in": 900 })));
}

#[tokio::test]
async fn refusals_of_the_issuer_have_the_members_of_express() {
    let gateway = Gateway::start(&open(EXPRESS)).await;
    tokens(&gateway.post("/auth/register", &ann()).send().await, 201);
    let taken = gateway.post("/auth/register", &ann()).send().await;
    refuses(&taken, 409, "account_exists");
    let weak = json!({ "email": "bob@example.com", "password": "password1" });
    refuses(&gateway.post("/auth/register", &weak).send().await, 422, "password_rejected");
    let wrong = json!({ "email": "ann@example.com", "password": "wrong" });
    let said = refuses(&gateway.post("/auth/login", &wrong).send().await, 401, "login_failed");
    assert!(said.ends_with('.'), "{said}");
    let response = gateway.post("/auth/login", &json!({})).send().await;
    assert_eq!(refuses(&response, 400, "request_invalid"), "The member `email` is missing.");
    let snake = json!({ "refresh_token": "x" });
    for (path, reason) in
        [("/auth/refresh", "invalid_grant"), ("/auth/logout", "credentials_missing")]
    {
        let said = refuses(&gateway.post(path, &snake).send().await, 401, reason);
        assert_eq!(
            said,
            "Expected the member `refreshToken`, but the body contains `refresh_token`."
        );
    }
    refuses(&gateway.get("/auth/me").send().await, 401, "credentials_missing");
    refuses(&gateway.get("/auth/nothing").send().await, 404, "route_not_found");
    let response = gateway.request("DELETE", "/auth/login").send().await;
    refuses(&response, 405, "method_not_allowed");
    assert!(response.header("allow").is_some());
    // An application's routes keep the form of every gateway.
    gateway.get("/reports").send().await.is(401, "credentials_missing");
    // A person gets a page.
    let response = gateway.get("/auth/nothing").header("Accept", "text/html").send().await;
    assert!(response.text().contains("<html"), "{response:?}");
}

#[tokio::test]
async fn a_registration_that_has_to_be_confirmed_does_not_log_in() {
    let gateway = Gateway::start(&open(
        "compat = 'express'\nverify_email = true\nmail = { folder = 'mail' }",
    ))
    .await;
    let response = gateway.post("/auth/register", &ann()).send().await;
    assert_eq!(response.status, 201);
    assert_eq!(response.json()["email"], "ann@example.com");
}

#[tokio::test]
async fn a_missing_member_is_named() {
    let gateway = Gateway::start(&open("access_token_ttl = '1s'")).await;
    gateway.register("ann@example.com").await;
    let tokens = gateway.login("ann@example.com").await;
    let camel = json!({ "refreshToken": tokens.refresh });
    let misnamed = "Expected the member `refresh_token`, but the body contains `refreshToken`.";
    let missing = "The body has no member `refresh_token`.";
    for (path, reason) in
        [("/auth/refresh", "invalid_grant"), ("/auth/logout", "credentials_missing")]
    {
        for (body, detail) in [(&camel, misnamed), (&json!({}), missing)] {
            let response = gateway.post(path, body).send().await;
            response.is(401, reason);
            assert_eq!(response.json()["detail"], detail);
        }
    }
    within(async { while gateway.reaches(&tokens.access).await == 200 {} }).await;
    let logout = |body: &Value| gateway.post("/auth/logout", body).bearer(&tokens.access).send();
    let response = logout(&camel).await;
    response.is(401, "token_expired");
    assert_eq!(response.json()["detail"], misnamed);
    assert_eq!(logout(&json!({ "refresh_token": tokens.refresh })).await.status, 204);
    gateway.refresh(&tokens.refresh).await.is(401, "invalid_grant");
}

/// What the page of a client would do with the functions of the guide.
const USE: &str = r#"
const answers = {};
const refused = (error) => ({ error: error.message, reason: error.reason });
await register("ann@example.com", "plum orbit tenant 71");
answers.registered = await (await call("/orders")).json();
answers.taken = await register("ann@example.com", "plum orbit tenant 71").catch(refused);
session.accessToken += "x";
const before = session.refreshToken;
answers.renewed = await (await call("/orders")).json();
answers.rotated = session.refreshToken !== before;
const { refreshToken } = session;
await logout();
session = { refreshToken };
answers.ended = await refresh().catch(refused);
answers.wrong = await login("ann@example.com", "wrong").catch(refused);
await login("ann@example.com", "plum orbit tenant 71");
answers.again = (await call("/orders")).status;
console.log(JSON.stringify(answers));
"#;

/// The application and the client that the guide prints, as it prints them.
#[tokio::test]
async fn the_code_of_the_guide_runs() {
    let Some(mut mint) = Peer::start("sign.js") else { return };
    let page = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/guides/moving-from-express.md"
    ))
    .unwrap();
    let fences = |info: &str| -> Vec<String> {
        let begin = format!("```{info}\n");
        let rest = page.split(&begin).skip(1);
        rest.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    let [app, client] = fences("js").try_into().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let port = Port::reserve();
    let libraries = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/node_modules");
    std::os::unix::fs::symlink(libraries, folder.path().join("node_modules")).unwrap();
    std::fs::write(folder.path().join("app.mjs"), app).unwrap();
    let mut server = node(folder.path(), "app.mjs");
    let mut server = server.env("PORT", port.number().to_string()).spawn().unwrap();

    // The mail server of the guide does not exist here.
    let mut file: Table = fences("toml")[0].parse().unwrap();
    let identity = file["identity"].as_table_mut().unwrap();
    identity.remove("mail").unwrap();
    identity.remove("verify_email").unwrap();
    let upstream = file["upstream"]["app"].as_table_mut().unwrap();
    upstream.insert("url".into(), format!("http://{}", port.address()).into());
    let minted = mint.ask(json!({ "as": "jsonwebtoken", "claims": { "userId": 7, "role": "user" }, "options": { "expiresIn": "1h" } }));
    let [token, secret] = ["token", "secret"].map(|name| minted[name].as_str().unwrap());
    let setup = Gateway::setup(&file.to_string()).file("jwt.secret", secret);
    let gateway = setup.start().await;
    within(async { while tokio::net::TcpStream::connect(port.address()).await.is_err() {} }).await;

    let response = gateway.get("/orders").bearer(token).send().await;
    assert_eq!(response.status, 200, "a token of the application: {response:?}");
    let prelude = format!(
        "const fetchUrl = fetch;\nglobalThis.fetch = (path, options) => fetchUrl('http://{}' + path, options);\n",
        gateway.address()
    );
    std::fs::write(folder.path().join("client.mjs"), format!("{prelude}{client}{USE}")).unwrap();
    let client = node(folder.path(), "client.mjs").stdout(Stdio::piped()).spawn().unwrap();
    let output = tokio::time::timeout(
        PATIENCE,
        tokio::task::spawn_blocking(|| client.wait_with_output().unwrap()),
    );
    let output = output.await.unwrap().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(output.status.success());
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    let orders = json!({ "ordersOf": "ann@example.com" });
    assert_eq!(
        answers,
        json!({
            "registered": orders,
            "taken": { "error": "This e-mail address already has an account.", "reason": "account_exists" },
            "renewed": orders,
            "rotated": true,
            "ended": { "error": "Log in again.", "reason": "invalid_grant" },
            "wrong": { "error": "The e-mail address, the password or the code is wrong.", "reason": "login_failed" },
            "again": 200,
        })
    );
}

fn node(folder: &Path, file: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(folder.join(file)).current_dir(folder).stdin(Stdio::null());
    command
}
