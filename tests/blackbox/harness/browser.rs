//! A real browser: headless Chromium, controlled through its driver.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use fantoccini::elements::Element;
use fantoccini::error::CmdError;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Gateway, PATIENCE, within};

/// A browser with a new profile that resolves hosts to the gateway. It ends with the test.
pub struct Browser {
    pub client: Client,
    driver: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser that resolves every host to the gateway. If Chromium is not installed,
    /// prints a message and returns `None`, or panics if `CI=true`.
    pub async fn start(gateway: &Gateway) -> Option<Self> {
        Self::resolving("*", gateway).await
    }

    /// Like [`start`](Self::start), but resolves only hosts that match this pattern to the gateway.
    pub async fn resolving(hosts: &str, gateway: &Gateway) -> Option<Self> {
        let Some((driver, port)) = driver() else {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "Chromium is not installed, and CI=true"
            );
            eprintln!(
                "SKIPPED: Chromium is not installed; scripts/test installs it (apt-get install chromium chromium-driver)"
            );
            return None;
        };
        let profile = TempDir::new().unwrap();
        let gateway = gateway.address();
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--hide-scrollbars".to_owned(),
            "--window-size=900,860".to_owned(),
            // The certificate comes from the authority of the tests.
            "--ignore-certificate-errors".to_owned(),
            format!("--host-resolver-rules=MAP {hosts} {gateway}"),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({ "goog:chromeOptions": { "args": arguments } });
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.as_object().unwrap().clone());
        let client = within(builder.connect(&format!("http://127.0.0.1:{port}"))).await.unwrap();
        Some(Self { client, driver, _profile: profile })
    }

    pub async fn goto(&self, url: &str) {
        within(self.client.goto(url)).await.unwrap();
    }

    /// Waits until the page has this heading.
    #[track_caller]
    pub fn shows<'a>(&'a self, heading: &'a str) -> impl Future<Output = ()> + 'a {
        let quoted = format!("//h1[normalize-space()='{heading}']");
        let place = std::panic::Location::caller();
        async move {
            if let Err(error) =
                self.client.wait().at_most(PATIENCE).for_element(Locator::XPath(&quoted)).await
            {
                panic!(
                    "{place}: no page `{heading}` ({error}): {} {}",
                    self.url().await,
                    self.client.source().await.unwrap()
                );
            }
        }
    }

    /// The first element that matches a selector, once it exists.
    pub async fn element(&self, selector: &str) -> Element {
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::Css(selector)).await;
        match found {
            Ok(found) => found,
            Err(error) => {
                panic!("no `{selector}` ({error}): {}", self.client.source().await.unwrap())
            }
        }
    }

    pub async fn text(&self, selector: &str) -> String {
        self.element(selector).await.text().await.unwrap()
    }

    /// Types into the fields with these names.
    pub async fn fill(&self, fields: &[(&str, &str)]) {
        for (name, value) in fields {
            let field = self.element(&format!("input[name={name}]")).await;
            field.clear().await.unwrap();
            field.send_keys(value).await.unwrap();
        }
    }

    /// Presses the button with this text, and waits for another page.
    pub async fn press(&self, text: &str) {
        let button = format!("//button[normalize-space()='{text}']");
        let found = within(self.client.find(Locator::XPath(&button))).await;
        self.leave_by(found.unwrap_or_else(|error| panic!("no button `{text}`: {error}"))).await;
    }

    /// Follows the link with this text.
    pub async fn follow(&self, text: &str) {
        let found = within(self.client.find(Locator::LinkText(text))).await;
        self.leave_by(found.unwrap_or_else(|error| panic!("no link `{text}`: {error}"))).await;
    }

    /// Clicks, and waits until the old page is gone, so that later lookups use the new page.
    pub async fn leave_by(&self, element: Element) {
        self.leave(element.click()).await;
    }

    /// The same with Enter in a field.
    pub async fn leave_by_enter(&self, field: Element) {
        self.leave(field.send_keys("\u{e007}")).await;
    }

    async fn leave(&self, act: impl Future<Output = Result<(), CmdError>>) {
        let shown = self.client.find(Locator::Css("html")).await.unwrap();
        act.await.unwrap();
        within(async { while shown.tag_name().await.is_ok() {} }).await;
    }

    pub async fn url(&self) -> String {
        self.client.current_url().await.unwrap().to_string()
    }

    /// The response that a script of the page gets.
    pub async fn fetch(&self, path: &str) -> Value {
        let script = "fetch(arguments[0]).then(answer => arguments[1](answer.status), error => arguments[1](String(error)))";
        within(self.client.execute_async(script, vec![path.into()])).await.unwrap()
    }

    /// Sends a command of the browser's own protocol.
    pub async fn command(&self, command: &str, parameters: Value) {
        #[derive(Debug)]
        struct Command(Value);
        impl fantoccini::wd::WebDriverCompatibleCommand for Command {
            fn endpoint(
                &self,
                base: &url::Url,
                session: Option<&str>,
            ) -> Result<url::Url, url::ParseError> {
                base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
            }
            fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
                (http::Method::POST, Some(self.0.to_string()))
            }
        }
        let command = Command(json!({ "cmd": command, "params": parameters }));
        within(self.client.issue_cmd(command)).await.unwrap();
    }

    /// Saves a screenshot of the page as `target/screenshots/NAME.png`, for people.
    pub async fn picture(&self, name: &str) {
        let folder =
            std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target/screenshots"));
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(
            folder.join(format!("{name}.png")),
            within(self.client.screenshot()).await.unwrap(),
        )
        .unwrap();
    }

    /// What axe-core finds wrong with the page, and nothing where it is not installed.
    pub async fn violations(&self) -> Vec<String> {
        let axe = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/peers/node_modules/axe-core/axe.min.js");
        let Ok(axe) = std::fs::read_to_string(axe) else {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "axe-core is not installed, and CI=true"
            );
            eprintln!("SKIPPED: axe-core is not installed; scripts/test installs it");
            return Vec::new();
        };
        within(self.client.execute(&axe, vec![])).await.unwrap();
        let run = "const done = arguments[arguments.length - 1]; axe.run(document, { resultTypes: ['violations'] }).then(
            found => done(found.violations.flatMap(rule => rule.nodes.map(node => rule.id + ': ' + node.html + ' ' + node.failureSummary))),
            error => done([String(error)]))";
        let found = within(self.client.execute_async(run, vec![])).await.unwrap();
        serde_json::from_value(found).unwrap()
    }

    /// Ends the browser. After a failed test, it is killed with its driver.
    pub async fn close(self) {
        within(self.client.clone().close()).await.unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver's group: the browser would go on without its driver.
        let group = format!("-{}", self.driver.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.driver.wait();
    }
}

/// A driver and its port; `None`: it is not installed. If another process takes the chosen port
/// first, the driver ends, and a new one is started.
fn driver() -> Option<(Child, u16)> {
    for _ in 0..5 {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        if let Some(port) = port(&mut driver) {
            return Some((driver, port));
        }
        let _ = driver.kill();
        let _ = driver.wait();
    }
    panic!("the driver ends before it says where it listens");
}

/// The port that a driver prints; `None`: it has ended.
fn port(driver: &mut Child) -> Option<u16> {
    let output = driver.stdout.take().unwrap();
    let (sender, said) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let port = line
                .split("on port ")
                .nth(1)
                .and_then(|rest| rest.trim_end_matches('.').parse::<u16>().ok());
            if let Some(port) = port.filter(|port| *port != 0) {
                let _ = sender.send(port);
            }
        }
    });
    said.recv_timeout(PATIENCE).ok()
}
