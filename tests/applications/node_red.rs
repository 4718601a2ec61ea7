//! Node-RED with `adminAuth`, with the files of `docs/guides/node-red.md`: its own
//! `Authorization: Bearer` behind the cookie of the gateway.

use std::process::Command;

use serde_json::json;

use crate::harness::client::Request;
use crate::harness::jar::Jar;
use crate::harness::{Gateway, Port, Response, within};
use crate::{accepts, add_account, behind, fence, is_installed, log_in, peers, renewals, start};

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
    command.arg(peers("node_modules/node-red/red.js")).arg("--userDir").arg(folder);
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
