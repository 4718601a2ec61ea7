//! `portcullis attack`: it lists nothing for a proxy that runs from what `proxy-config` writes, and
//! what gets through where a line of it is missing.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::client::Request;
use crate::harness::{Gateway, Port, mint};
use crate::proxy::{self, Proxy};
use crate::{KINDS, futures};

const FILE: &str = r"
[verify]
trusted_proxies = ['127.0.0.1/32']
[[route]]
name = 'wiki'
host = 'wiki.test'
path = '/*'
external = true
roles = ['editor']
token_from = ['header', 'cookie']
[[route]]
name = 'open'
host = 'wiki.test'
path = '/open/*'
external = true
access = 'public'
[[route]]
name = 'remote'
host = 'part.test'
path = '/remote/*'
external = true
identity_headers = { X-Remote-User = 'sub' }
";

/// A proxy in front of the echo application that `attack` serves.
struct Target {
    gateway: Gateway,
    proxy: Proxy,
    echo: Port,
    _verify: Port,
}

impl Target {
    /// `None`, loudly, where the proxy is not installed.
    async fn start(kind: &str, edits: &[(&str, &str)]) -> Option<Self> {
        let program = proxy::program(kind)?;
        let (echo, verify) = (Port::reserve(), Port::reserve());
        let listen = format!("[verify]\nlisten = '{}'", verify.address());
        let gateway = Gateway::start(&FILE.replace("[verify]", &listen)).await;
        let url = format!("http://{}", echo.address());
        let application = ["--upstream", &url];
        let proxy = Proxy::start_edited(kind, &program, &gateway, &application, edits).await;
        // Some listen before they know their routes.
        for attempt in 0.. {
            let request = Request::new(proxy.address(), "GET", "/open/").host("wiki.test");
            if request.send().await.status >= 500 {
                break;
            }
            assert!(attempt < 200, "{kind} does not serve:\n{}", proxy.errors());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(Self { gateway, proxy, echo, _verify: verify })
    }

    /// The exit code, what it reports, and its errors.
    async fn attack(&self, arguments: &[&str]) -> (i32, Value, String) {
        let (url, echo) =
            (format!("http://{}", self.proxy.address()), self.echo.address().to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["attack", "--through", &url, "--echo", &echo, "--json", "--config"]);
        command.arg(self.gateway.path("gateway.toml")).args(arguments);
        // At most 20 requests a second take their time.
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (code, out, errors) =
            (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr));
        (code, serde_json::from_str(&out).unwrap_or_default(), errors)
    }
}

/// The requests that got through.
fn through(report: &Value) -> Vec<String> {
    let listed = |member: &str| report[member].as_array().cloned().unwrap_or_default();
    let words = |one: &Value| format!("{} ({})", one["request"], one["why"]);
    listed("through").iter().map(words).collect()
}

#[tokio::test]
async fn nothing_gets_through_what_is_written() {
    let token = &mint::token(&["editor"]);
    let tests = KINDS.map(async |kind| {
        let Some(target) = Target::start(kind, &[]).await else { return };
        let (code, report, errors) = target.attack(&["--token", token]).await;
        assert_eq!((code, through(&report)), (0, vec![]), "{kind}: {errors}");
        assert!(report["cases"].as_u64().unwrap() > 300, "{kind}: {report}");
        assert_eq!(report["application_echoes"], true, "{kind}");
        assert_eq!(report["unclear"], serde_json::json!([]), "{kind}");
    });
    Box::pin(futures(tests)).await;
}

/// Each line of the written configurations that keeps something out: without it, what gets through.
#[tokio::test]
async fn what_gets_through_a_missing_line_is_listed() {
    let token = &mint::token(&["editor"]);
    let tests = KINDS.map(async |kind| {
        let (edits, family, expected): (&[(&str, &str)], _, _) = match kind {
            "nginx" => (&[("auth_request /_portcullis;", "")], "path", "GET / of wiki.test"),
            "caddy" => (
                // Without the second line, the gateway refuses other protocols.
                &[
                    ("@other -Connection", "@other X-Other 1"),
                    ("request_header @other -Upgrade", ""),
                ],
                "identity",
                "`Connection: close, x-auth-user`",
            ),
            "traefik" => (
                &[
                    (
                        "authResponseHeadersRegex: '(?i)^(",
                        "authResponseHeaders: [X-Auth-User, X-Auth-Email] # ",
                    ),
                    ("Upgrade: \"\"", "X-Other: \"\""),
                ],
                "identity",
                "`x_auth_email` and the like",
            ),
            "envoy" => (
                &[("remove_on_match:", "remove: x-none #")],
                "identity",
                "`x.auth.email` and the like",
            ),
            _ => (
                &[(" -m reg", " -m str"), ("del-header upgrade", "del-header x-other")],
                "identity",
                "`x.auth.email` and the like",
            ),
        };
        let Some(target) = Target::start(kind, edits).await else { return };
        let (code, report, errors) = target.attack(&["--token", token]).await;
        assert_eq!(code, 1, "{kind}: {errors}");
        assert!(errors.contains("got through"), "{kind}: {errors}");
        let found = through(&report);
        assert!(found.iter().any(|case| case.contains(expected)), "{kind}: {found:#?}");
        assert!(report["through"].to_string().contains(&format!("\"family\":\"{family}\"")));
        // Traefik cannot tell the gateway about an upgrade, and nginx asks nothing at all.
        let upgraded = found.iter().any(|case| case.contains("`Upgrade: foo`"));
        assert_eq!(upgraded, ["traefik", "nginx"].contains(&kind), "{kind}: {found:#?}");
    });
    Box::pin(futures(tests)).await;
}

/// Without `[verify]`, the routes with an upstream are attacked: the gateway itself holds.
#[tokio::test]
async fn nothing_gets_through_the_gateway_itself() {
    let routes =
        FILE.split_once("[[route]]").unwrap().1.replace("external = true", "upstream = 'echo'");
    let gateway =
        Gateway::start(&format!("upstream.echo.builtin = 'echo'\n[[route]]{routes}")).await;
    let (token, url) = (mint::token(&["editor"]), format!("http://{}", gateway.address()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["attack", "--json", "--through", &url, "--token", &token, "--config"]);
    command.arg(gateway.path("gateway.toml"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), through(&report)), (Some(0), vec![]), "{errors}");
    assert!(report["cases"].as_u64().unwrap() > 300, "{report}");
    assert_eq!(report["application_echoes"], true);
}

#[tokio::test]
async fn only_this_machine_is_attacked_without_saying_so() {
    let gateway = Gateway::start(FILE).await;
    let attack = async |url: &str| {
        let (code, _, errors) = gateway.command(&["attack", "--through", url]).await;
        (code, errors)
    };
    for url in ["http://192.0.2.1", "https://[2001:db8::1]:8443/"] {
        let (code, errors) = attack(url).await;
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains("is not on this machine: give --i-own-this"), "{errors}");
    }
    for url in ["192.0.2.1", "ftp://127.0.0.1", "http://127.0.0.1/path", "http://u@127.0.0.1"] {
        assert_eq!(attack(url).await.0, 2, "{url}");
    }
    // Nothing listens there, or it is no proxy that asks.
    let (code, errors) = attack(&format!("http://{}", Port::reserve().address())).await;
    assert_eq!(code, 1);
    assert!(errors.contains("cannot connect to 127.0.0.1"), "{errors}");
    let (code, errors) = attack(&format!("http://{}", gateway.address())).await;
    assert_eq!(code, 1);
    assert!(errors.contains("GET /open/ of wiki.test should get in"), "{errors}");
}
