//! JupyterLab with a kernel in Chromium, with the files of `docs/guides/jupyterlab.md`: a notebook is
//! edited, run over the WebSocket and saved while the access token expires again and again.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::certificates::authority;
use crate::harness::{Browser, Port};
use crate::{
    EMAIL, PASSWORD, Running, accepts, add_account, behind, fence, is_installed, peers, portcullis,
    renewals, start, until_returned,
};

/// Sets the source of the first cell, runs it and saves the notebook. The result: the text that it
/// printed.
const WORK: &str = r#"
const [source, done] = arguments;
const work = async () => {
  const app = window.jupyterapp;
  const panel = app?.shell.currentWidget;
  if (!panel?.sessionContext) return null;
  await panel.context.ready;
  await panel.sessionContext.ready;
  if (!panel.sessionContext.session?.kernel) return null;
  const cell = panel.content.widgets[0];
  cell.model.sharedModel.setSource(source);
  panel.content.activeCellIndex = 0;
  await app.commands.execute("notebook:run-cell");
  await app.commands.execute("docmanager:save");
  return cell.model.outputs.toJSON().map((output) => output.text).join("");
};
work().then(done, (error) => done("failed: " + error));
"#;

fn jupyterlab(folder: &Path, port: &Port) -> Running {
    let config = fence("jupyterlab.md", "python").replace("8888", &port.number().to_string());
    std::fs::write(folder.join("jupyter_server_config.py"), config).unwrap();
    let mut command = Command::new(peers("venv/bin/jupyter-lab"));
    command.arg(format!("--config={}", folder.join("jupyter_server_config.py").display()));
    // For the test: as root, and with a way for it to reach the application in the page.
    command.args(["--allow-root", "--LabApp.expose_app_in_browser=True"]);
    command.arg(format!("--ServerApp.root_dir={}", folder.join("notebooks").display()));
    command.env("HOME", folder).env("JUPYTER_PREFER_ENV_PATH", "1").current_dir(folder);
    start(command)
}

#[tokio::test]
async fn a_notebook_is_edited_run_and_saved_past_three_lifetimes_of_the_access_token() {
    if !is_installed(peers("venv/bin/jupyter-lab")) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let notebook = folder.path().join("notebooks/a.ipynb");
    std::fs::create_dir(folder.path().join("notebooks")).unwrap();
    let cell = json!({ "cell_type": "code", "execution_count": null, "id": "c", "metadata": {}, "outputs": [], "source": "" });
    let kernel = json!({ "kernelspec": { "display_name": "Python 3", "language": "python", "name": "python3" } });
    let empty = json!({ "cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5 });
    std::fs::write(&notebook, empty.to_string()).unwrap();
    let port = Port::reserve();
    let _jupyterlab = jupyterlab(folder.path(), &port);
    accepts(port.number()).await;

    let certificate = authority().issue(&["lab.example.com"]);
    let lines = "identity.access_token_ttl = '2s'\nserver.tls = { certificate = 'tls.crt', private_key = { file = 'tls.key' } }";
    let setup = behind("jupyterlab.md", "lab", &port, lines)
        .file("tls.crt", certificate.chain)
        .file("tls.key", certificate.key);
    let gateway = setup.start().await;
    add_account(&gateway, &["lab"]).await;
    let Some(browser) = Browser::start(&gateway).await else { return };
    browser.goto("https://lab.example.com/lab/tree/a.ipynb").await;
    browser.shows("Log in").await;
    browser.fill(&[("email", EMAIL), ("password", PASSWORD)]).await;
    browser.press("Log in").await;
    browser.element(".jp-NotebookPanel").await;
    let begun = gateway.log().mark();

    let mut round = 0;
    let before = renewals(&gateway).await;
    while renewals(&gateway).await < before + 3.0 {
        round += 1;
        let source = format!("print('round', {round})");
        let printed = until_returned(&browser, WORK, source.as_str().into()).await;
        assert_eq!(printed, format!("round {round}\n"), "round {round}");
        let saved: Value = serde_json::from_slice(&std::fs::read(&notebook).unwrap()).unwrap();
        assert!(saved["cells"][0].to_string().contains(&source), "round {round}: {saved}");
    }
    let dialogs = "return document.querySelectorAll('.jp-Dialog').length";
    assert_eq!(browser.client.execute(dialogs, Vec::new()).await.unwrap(), 0);
    assert!(browser.url().await.starts_with("https://lab.example.com/lab/tree/a.ipynb"));
    // Chromium's own requests to its maker reach the gateway too.
    let is_of_lab = |line: &Value| {
        let path = line["url.path"].as_str().unwrap_or_default();
        ["/api/", "/lab", "/static/", "/files/"].iter().any(|start| path.starts_with(start))
    };
    let refused: Vec<Value> = gateway
        .log()
        .lines()
        .into_iter()
        .skip(begun)
        .filter(|line| line["outcome"] == "refused" && is_of_lab(line))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");

    portcullis(&gateway, &["user", "set-roles", EMAIL, "guest"]).await;
    assert_eq!(browser.fetch("/api/contents/a.ipynb").await, 403);
    portcullis(&gateway, &["user", "disable", EMAIL]).await;
    assert_eq!(browser.fetch("/api/contents/a.ipynb").await, 401);
    browser.goto("https://lab.example.com/lab").await;
    browser.shows("Log in").await;
    browser.close().await;
}
