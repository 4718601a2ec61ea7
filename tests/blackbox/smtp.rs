//! Mail to a real server (aiosmtpd): with and without TLS, with a login, and with what servers say
//! that take nothing.

use serde_json::{Value, json};

use crate::by_mail::sqlite;
use crate::harness::Gateway;
use crate::harness::accounts::open;
use crate::harness::certificates::{Authority, authority};
use crate::harness::peers::Peer;

/// A gateway that mails to `smtp`, and trusts the tests' authority.
async fn gateway(smtp: &str) -> Gateway {
    let mail = "mail = { smtp = { file = 'smtp.url' }, from = 'App <no-reply@example.com>' }";
    let setup = Gateway::setup(&open(mail)).file("smtp.url", smtp).file("ca.pem", &authority().pem);
    std::fs::set_permissions(
        setup.path().join("smtp.url"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let trusted = setup.path().join("ca.pem").display().to_string();
    setup.variable("SSL_CERT_FILE", &trusted).start().await
}

async fn forgot(gateway: &Gateway) {
    gateway.register("ann@example.com").await;
    assert_eq!(
        gateway
            .post("/auth/password/forgot", &json!({ "email": "ann@example.com" }))
            .send()
            .await
            .status,
        202
    );
}

fn is(message: &'static str) -> impl Fn(&Value) -> bool {
    move |line| line["message"] == message
}

#[tokio::test]
async fn a_message_reaches_a_server_on_this_machine() {
    let Some(mut server) = Peer::start("smtp.py") else { return };
    let port = server.ask(json!({ "start": { "login": ["app", "p@ss:word"] } }))["port"].clone();
    let gateway = gateway(&format!("smtp://app:p%40ss%3Aword@127.0.0.1:{port}")).await;
    forgot(&gateway).await;
    let mail = server.ask(json!({ "mail": 1 }));
    assert_eq!(
        (mail["from"].clone(), mail["to"].clone()),
        ("no-reply@example.com".into(), json!(["ann@example.com"]))
    );
    let text = mail["text"].as_str().unwrap();
    for part in [
        "From: App <no-reply@example.com>\r\n",
        "Auto-Submitted: auto-generated\r\n",
        "\r\nhttp://app.test/auth/password/reset?token=",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    gateway.log().until("it is told", is("mail_sent")).await;
    assert!(gateway.log().lines().iter().all(|line| !line.to_string().contains("p@ss")));
}

#[tokio::test]
async fn a_server_with_tls_is_believed_by_its_certificate_only() {
    let Some(mut server) = Peer::start("smtp.py") else { return };
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(files.path().join(name), text).unwrap();
        files.path().join(name).display().to_string()
    };
    let certificate = authority().issue(&["localhost"]);
    let (chain, key) = (write("a.crt", &certificate.chain), write("a.key", &certificate.key));
    let port = server.ask(json!({ "start": { "certificate": chain, "key": key } }))["port"].clone();
    let trusting = gateway(&format!("smtps://localhost:{port}")).await;
    forgot(&trusting).await;
    assert_eq!(server.ask(json!({ "mail": 1 }))["to"], json!(["ann@example.com"]));

    let Some(mut stranger) = Peer::start("smtp.py") else { return };
    let certificate = Authority::new().issue(&["localhost"]);
    let (chain, key) = (write("b.crt", &certificate.chain), write("b.key", &certificate.key));
    let port =
        stranger.ask(json!({ "start": { "certificate": chain, "key": key } }))["port"].clone();
    let careful = gateway(&format!("smtps://localhost:{port}")).await;
    forgot(&careful).await;
    let failed = careful.log().until("it is told", is("mail_not_sent")).await;
    assert!(failed["cause"].as_str().unwrap().contains("certificate"), "{failed}");
}

#[tokio::test]
async fn what_a_server_says_decides_whether_it_is_tried_again() {
    let Some(mut server) = Peer::start("smtp.py") else { return };
    let port = server.ask(json!({ "start": {} }))["port"].clone();
    server.ask(json!({ "answer": "451 4.3.0 come again" }));
    let mut gateway = gateway(&format!("smtp://127.0.0.1:{port}")).await;
    forgot(&gateway).await;
    let failed = gateway.log().until("it is told", is("mail_not_sent")).await;
    assert!(
        failed["cause"].as_str().unwrap().contains("come again") && failed["tries"] == 1,
        "{failed}"
    );
    // The wish outlives the process; the next one tries when its time has come, for which the test
    // does not wait.
    server.ask(json!({ "answer": "250 OK" }));
    gateway.kill_and_restart().await;
    sqlite(&gateway.path("portcullis.db"), "UPDATE mail_outbox SET next_at = 0").await;
    assert_eq!(server.ask(json!({ "mail": 1 }))["to"], json!(["ann@example.com"]));

    server.ask(json!({ "answer": "550 5.1.1 nobody here" }));
    assert_eq!(
        gateway
            .post("/auth/password/forgot", &json!({ "email": "ann@example.com" }))
            .send()
            .await
            .status,
        202
    );
    let given_up = gateway.log().until("it is told", is("mail_given_up")).await;
    assert!(given_up["cause"].as_str().unwrap().contains("nobody here"), "{given_up}");
}
