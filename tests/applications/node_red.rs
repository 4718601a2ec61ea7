//! Node-RED with `adminAuth`, with the files of `docs/guides/node-red.md`: its own
//! `Authorization: Bearer` behind the cookie of the gateway, from a program and in Chromium.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::certificates::authority;
use crate::harness::client::Request;
use crate::harness::jar::Jar;
use crate::harness::{Browser, Gateway, Port, Response, within};
use crate::{
    EMAIL, PASSWORD, accepts, add_account, behind, fence, is_installed, log_in, peers, portcullis,
    renewals, start, until_returned,
};

const ORIGIN: &str = "http://red.example.com";

/// A page of the editor: the cookies of the gateway, and the token of Node-RED.
struct Editor {
    jar: Jar,
    token: Option<String>,
}

impl Editor {
    async fn send(&mut self, request: Request) -> Response {
        let request = request.host("red.example.com").header("Origin", ORIGIN);
        let request = self.jar.send(request);
        let request = match &self.token {
            Some(token) => request.bearer(token),
            None => request,
        };
        let response = request.send().await;
        let renewed = Jar::of(&response);
        if !renewed.session.is_empty() {
            self.jar = renewed;
        }
        response
    }
}

async fn node_red(folder: &std::path::Path, port: &Port) -> crate::Running {
    std::fs::write(folder.join("settings.js"), fence("node-red.md", "js")).unwrap();
    let mut command = Command::new("node");
    command
        .arg(peers("node_modules/node-red/red.js"))
        .arg("flows.json")
        .arg("--userDir")
        .arg(folder);
    command
        .arg("--settings")
        .arg(folder.join("settings.js"))
        .env("PORT", port.number().to_string());
    let running = start(command);
    accepts(port.number()).await;
    running
}

#[tokio::test]
async fn the_editor_keeps_its_own_login_behind_the_cookie() {
    if !is_installed(peers("node_modules/node-red")) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = Port::reserve();
    let _red = node_red(folder.path(), &port).await;
    let lines = format!("[identity]\naccess_token_ttl = '1s'\nissuer = '{ORIGIN}/account'");
    let gateway: Gateway = behind("node-red.md", "red", &port, &lines).start().await;
    add_account(&gateway, &["flows"]).await;
    let bearer = gateway.get("/settings").bearer("of Node-RED").send().await;
    assert_eq!(bearer.status, 401, "its own token is no login here: {bearer:?}");
    let mut editor = Editor { jar: log_in(&gateway).await, token: None };
    let page = editor.send(gateway.get("/").header("Accept", "text/html")).await;
    assert!(page.status == 200 && page.text().contains("Node-RED"), "{page:?}");
    let settings = editor.send(gateway.get("/settings")).await;
    assert_eq!((settings.status, settings.text().as_str()), (401, "Unauthorized"));
    let login = gateway
        .request("POST", "/auth/token")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body("client_id=node-red-editor&grant_type=password&scope=*&username=admin&password=blue+harbour+42");
    let answer = editor.send(login).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    editor.token = answer.json()["access_token"].as_str().map(str::to_owned);
    let settings = editor.send(gateway.get("/settings")).await;
    assert_eq!(settings.status, 200, "{settings:?}");
    assert_eq!(settings.json()["user"]["username"], "admin");

    // Three lifetimes of the access token: each deployment arrives.
    let flow = json!([{ "id": "t", "type": "tab", "label": "Tab" }]);
    within(async {
        while renewals(&gateway).await < 3.0 {
            let response = editor.send(gateway.post("/flows", &flow)).await;
            assert_eq!(response.status, 204, "{response:?}");
            let response = editor.send(gateway.get("/flows")).await;
            assert_eq!((response.status, &response.json()[0]["label"]), (200, &"Tab".into()));
        }
    })
    .await;
}

/// Names the tab, deploys it and presses the button of its first node. The result: what the debug
/// sidebar received over the WebSocket, once the server has the name.
const WORK: &str = r##"
const [round, done] = arguments;
const work = async () => {
  if (!window.RED?.nodes?.node("inject")) return null;
  if (!window.kept) {
    window.kept = [];
    RED.comms.subscribe("debug", (_, message) => window.kept.push(message.msg));
  }
  const until = async (happened) => {
    while (!happened()) await new Promise((resume) => setTimeout(resume, 20));
  };
  // The editor covers itself while it deploys.
  const isFree = () => $("#red-ui-header-shade").is(":hidden");
  await until(isFree);
  const tab = RED.nodes.workspace("tab");
  tab.label = `Round ${round}`;
  tab.changed = true;
  RED.nodes.node("inject").payload = `round ${round}`;
  RED.nodes.node("inject").changed = true;
  RED.nodes.dirty(true);
  document.querySelector("#red-ui-header-button-deploy").click();
  await until(() => !RED.nodes.dirty() && isFree());
  await $.post("inject/inject");
  await until(() => window.kept.length === round);
  return window.kept.at(-1);
};
work().then(done, (error) => done("failed: " + (error.status ?? error)));
"##;

/// A flow with a button, and with a node that shows its messages in the editor.
fn flow() -> Value {
    json!([
        { "id": "tab", "type": "tab", "label": "Tab" },
        { "id": "inject", "type": "inject", "z": "tab", "name": "", "x": 120, "y": 80,
          "props": [{ "p": "payload" }], "payload": "", "payloadType": "str", "repeat": "",
          "crontab": "", "once": false, "topic": "", "wires": [["debug"]] },
        { "id": "debug", "type": "debug", "z": "tab", "name": "", "x": 320, "y": 80, "active": true,
          "tosidebar": true, "console": false, "complete": "payload", "targetType": "msg", "wires": [] },
    ])
}

/// Logs in at the gateway, then at Node-RED.
async fn open_editor(gateway: &Gateway) -> Option<Browser> {
    let browser = Browser::start(gateway).await?;
    browser.goto("https://red.example.com/").await;
    browser.shows("Log in").await;
    browser.fill(&[("email", EMAIL), ("password", PASSWORD)]).await;
    browser.press("Log in").await;
    for (field, value) in [("username", "admin"), ("password", "blue harbour 42")] {
        let field = browser.element(&format!("#node-dialog-login-{field}")).await;
        field.send_keys(value).await.unwrap();
    }
    browser.element("#node-dialog-login-submit").await.click().await.unwrap();
    browser.element("#red-ui-header-button-deploy").await;
    gateway.access("/auth/token").await;
    Some(browser)
}

/// Of an access token.
const LIFETIME: Duration = Duration::from_secs(2);

#[tokio::test]
async fn flows_are_deployed_in_the_editor_past_three_lifetimes_of_the_access_token() {
    if !is_installed(peers("node_modules/node-red")) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("flows.json"), flow().to_string()).unwrap();
    let port = Port::reserve();
    let _red = node_red(folder.path(), &port).await;
    let certificate = authority().issue(&["red.example.com"]);
    let lines = "identity.access_token_ttl = '2s'\nserver.tls = { certificate = 'tls.crt', private_key = { file = 'tls.key' } }";
    let setup = behind("node-red.md", "red", &port, lines)
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key);
    let gateway = setup.start().await;
    add_account(&gateway, &["flows"]).await;
    let Some(browser) = open_editor(&gateway).await else { return };
    let begun = gateway.log().mark();

    let mut round = 0;
    let (before, since) = (renewals(&gateway).await, Instant::now());
    while renewals(&gateway).await < before + 3.0 || since.elapsed() < 3 * LIFETIME {
        round += 1;
        let shown = until_returned(&browser, WORK, round.into()).await;
        assert_eq!(shown, format!("round {round}"));
        let saved = std::fs::read_to_string(folder.path().join("flows.json")).unwrap();
        assert!(saved.contains(&format!("Round {round}")), "{saved}");
    }
    let dialogs = "return [$('.ui-dialog:visible').length, $('.red-ui-notification-error').length, window.kept.length]";
    let seen = browser.client.execute(dialogs, Vec::new()).await.unwrap();
    assert_eq!(
        seen,
        json!([0, 0, round]),
        "no dialog, no complaint, and the page was not reloaded"
    );
    assert_eq!(browser.url().await, "https://red.example.com/#flow/tab");
    // Chromium's own requests to its maker reach the gateway too.
    let is_of_editor = |line: &Value| {
        let path = line["url.path"].as_str().unwrap_or_default();
        ["/flows", "/inject", "/auth", "/comms", "/account/"]
            .iter()
            .any(|start| path.starts_with(start))
    };
    let is_unwanted = |line: &Value| {
        let again = ["/auth/token", "/account/login", "/comms"].map(Value::from);
        is_of_editor(line) && (line["outcome"] == "refused" || again.contains(&line["url.path"]))
    };
    // The WebSocket is logged when it ends.
    assert_eq!(gateway.log().count_after(begun, is_unwanted), 0, "{:?}", gateway.log().lines());

    // With the account, the WebSocket ends too.
    portcullis(&gateway, &["user", "disable", EMAIL]).await;
    let comms = gateway.access("/comms").await;
    assert_eq!((&comms["outcome"], &comms["reason"]), (&"refused".into(), &"token_revoked".into()));
    assert_eq!(browser.fetch("/settings").await, 401);
    browser.close().await;
}
