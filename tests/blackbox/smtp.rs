//! Mail to a real server (aiosmtpd): with and without TLS, with a login, and with error replies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::by_mail::sqlite;
use crate::harness::Gateway;
use crate::harness::accounts::open;
use crate::harness::certificates::{Authority, authority};
use crate::harness::peers::Peer;

/// A gateway that sends mail to `smtp` and trusts the certificate authority of the tests.
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
async fn mail_reaches_a_server_on_this_machine() {
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
    gateway.log().until("it is logged", is("mail_sent")).await;
    assert!(gateway.log().lines().iter().all(|line| !line.to_string().contains("p@ss")));
}

#[tokio::test]
async fn a_mail_server_needs_a_trusted_certificate() {
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
    let failed = careful.log().until("it is logged", is("mail_not_sent")).await;
    assert!(failed["cause"].as_str().unwrap().contains("certificate"), "{failed}");
}

#[tokio::test]
async fn the_reply_of_the_mail_server_decides_about_retries() {
    let Some(mut server) = Peer::start("smtp.py") else { return };
    let port = server.ask(json!({ "start": {} }))["port"].clone();
    server.ask(json!({ "answer": "451 4.3.0 come again" }));
    let mut gateway = gateway(&format!("smtp://127.0.0.1:{port}")).await;
    forgot(&gateway).await;
    let failed = gateway.log().until("it is logged", is("mail_not_sent")).await;
    assert!(
        failed["cause"].as_str().unwrap().contains("come again") && failed["tries"] == 1,
        "{failed}"
    );
    // The queued mail survives the process. The next process sends it when it is due; the test does
    // not wait for that.
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
    let given_up = gateway.log().until("it is logged", is("mail_given_up")).await;
    assert!(given_up["cause"].as_str().unwrap().contains("nobody here"), "{given_up}");
}

/// Serves SMTP on one connection and records the recipients. For a message to `slow`, it waits for
/// a signal before it replies.
async fn serve(stream: TcpStream, taken: Arc<Mutex<BTreeMap<String, usize>>>, go_on: Arc<Notify>) {
    let mut stream = BufReader::new(stream);
    let (mut to, mut line, mut is_text) = (String::new(), String::new(), false);
    stream.write_all(b"220 mail.test\r\n").await.unwrap();
    while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
        let answer = match line.trim_end() {
            "." => {
                *taken.lock().unwrap().entry(std::mem::take(&mut to)).or_default() += 1;
                is_text = false;
                "250 OK\r\n"
            }
            _ if is_text => "",
            "DATA" => {
                is_text = true;
                "354 go on\r\n"
            }
            "QUIT" => return,
            recipient if recipient.starts_with("RCPT TO:") => {
                to = recipient.to_owned();
                if to.contains("slow") {
                    go_on.notified().await;
                }
                "250 OK\r\n"
            }
            _ => "250 OK\r\n",
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        line.clear();
    }
}

/// A server that waits for a signal before it replies to messages to `slow`; the recipients; and a
/// gateway that sends mail to it.
struct SlowServer {
    taken: Arc<Mutex<BTreeMap<String, usize>>>,
    go_on: Arc<Notify>,
    gateway: Gateway,
    server: JoinHandle<()>,
}

impl SlowServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (taken, go_on) = (Arc::<Mutex<BTreeMap<_, _>>>::default(), Arc::<Notify>::default());
        let (noted, waiting) = (Arc::clone(&taken), Arc::clone(&go_on));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&noted), Arc::clone(&waiting)));
            }
        });
        let gateway = gateway(&format!("smtp://127.0.0.1:{port}")).await;
        Self { taken, go_on, gateway, server }
    }
}

/// All names below the domain of a server that lets others wait.
#[tokio::test]
async fn mail_to_a_slow_domain_does_not_delay_mail_to_others() {
    let SlowServer { taken, gateway, server, .. } = SlowServer::start().await;
    let strangers = (0..10).map(|number| format!("p@{number}.slow.test"));
    for email in strangers.chain(["ann@example.com".to_owned()]) {
        gateway.register(&email).await;
        let asking = json!({ "email": email });
        assert_eq!(gateway.post("/auth/password/forgot", &asking).send().await.status, 202);
    }
    gateway.log().until("ann has hers", is("mail_sent")).await;
    let taken = taken.lock().unwrap();
    assert!(taken.len() == 1 && taken.keys().all(|to| to.contains("ann@")), "{taken:?}");
    server.abort();
}

#[tokio::test]
async fn a_slow_message_does_not_delay_the_others() {
    let SlowServer { taken, go_on, gateway, server } = SlowServer::start().await;
    let people: Vec<String> = std::iter::once("slow@example.com".to_owned())
        .chain((0..20).map(|number| format!("p{number}@example.com")))
        .collect();
    for email in &people {
        gateway.register(email).await;
        let asking = json!({ "email": email });
        assert_eq!(gateway.post("/auth/password/forgot", &asking).send().await.status, 202);
    }
    let mut sent = BTreeSet::new();
    let mut are_sent = |line: &Value, wanted: usize| {
        if line["message"] == "mail_sent" {
            sent.insert(line["account"].to_string());
        }
        sent.len() == wanted
    };
    gateway.log().until("the others have theirs", |line| are_sent(line, 20)).await;
    go_on.notify_one();
    gateway.log().until("the slow one is sent", |line| are_sent(line, 21)).await;
    let taken = taken.lock().unwrap();
    assert!(taken.len() == 21 && taken.values().all(|&times| times == 1), "{taken:?}");
    server.abort();
}
