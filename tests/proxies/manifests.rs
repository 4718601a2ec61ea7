//! The manifests of `proxy-config gateway-api`, held against the definitions of the Gateway API and
//! of Traefik. No cluster runs here.

use serde_json::{Value, json};

use crate::harness::Gateway;
use crate::harness::peers::Peer;

const FILE: &str = r"
[verify]
listen = '127.0.0.1:9902'
trusted_proxies = ['127.0.0.1/32']
[[route]]
host = '*.apps.test'
path = '/*'
external = true
identity_headers = { X-Remote-User = 'sub' }
[[route]]
host = 'wiki.test'
path = '/*'
external = true
";

/// What `check` compiles: the address of `[verify]` is not listened on here.
async fn manifests(arguments: &[&str]) -> Result<String, String> {
    let gateway = Gateway::start(&FILE.replace("9902", "0")).await;
    let fixed = ["proxy-config", "gateway-api", "--verify", "127.0.0.1:9902"];
    let (code, text, errors) = gateway.command(&[&fixed, arguments].concat()).await;
    if code == 0 { Ok(text) } else { Err(errors) }
}

#[tokio::test]
async fn manifests_are_what_their_projects_define() {
    let Some(mut peer) = Peer::start("manifests.js") else { return };
    for (implementation, kinds) in [
        (
            "envoy-gateway",
            &["HTTPRoute", "SecurityPolicy", "EnvoyExtensionPolicy", "ClientTrafficPolicy"][..],
        ),
        ("external-auth", &["HTTPRoute"][..]),
        ("traefik", &["HTTPRoute", "Middleware"][..]),
    ] {
        for upstream in ["http://wiki:3000", "http://wiki.shop:3000", "https://wiki.shop.svc:8443"]
        {
            let text =
                manifests(&["--implementation", implementation, "--upstream", upstream]).await;
            let text = text.unwrap();
            let told = peer.ask(json!({ "manifests": text }));
            assert_eq!(told["errors"], json!([]), "{implementation}, {upstream}:\n{text}");
            let has = |member: &str, kind: &str| {
                told[member].as_array().unwrap().contains(&Value::from(kind))
            };
            assert!(kinds.iter().all(|kind| has("kinds", kind)), "{told}");
            assert!(has("checked", "HTTPRoute"), "{told}");
            assert_eq!(has("checked", "Middleware"), implementation == "traefik", "{told}");
            assert_eq!(has("checked", "BackendTLSPolicy"), upstream.starts_with("https"), "{told}");
            for name in ["x-auth-user", "x-remote-user", "cookie"] {
                assert!(
                    text.contains(name) || text.contains(&name.replace('-', "[^a-z0-9]")),
                    "{implementation}: {name}"
                );
            }
        }
    }
    // The definitions are what finds this.
    let broken =
        manifests(&["--implementation", "external-auth", "--upstream", "http://wiki:3000"]);
    let broken = broken.await.unwrap();
    for (from, to) in [("protocol: HTTP", "protocol: FTP"), ("allowedHeaders", "allowHeaders")] {
        let told = peer.ask(json!({ "manifests": broken.replace(from, to) }));
        assert_ne!(told["errors"], json!([]), "{to}");
    }
}

#[tokio::test]
async fn only_envoy_gateway_has_backends_outside_the_cluster() {
    for (implementation, is_written) in
        [("envoy-gateway", true), ("external-auth", false), ("traefik", false)]
    {
        let written =
            manifests(&["--implementation", implementation, "--upstream", "http://192.0.2.1"])
                .await;
        assert_eq!(written.is_ok(), is_written, "{implementation}");
        if let Err(errors) = written {
            assert!(errors.contains("is not a Service"), "{errors}");
        }
    }
}
