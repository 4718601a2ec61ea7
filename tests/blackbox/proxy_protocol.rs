//! The PROXY protocol (CONTRACT §16 `[server] proxy_protocol`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::certificates::authority;
use crate::harness::{Connection, Gateway, Port, h2, within};

/// The tests connect from 127.0.0.1.
const FROM_PROXY: &str = "server = { trusted_proxies = ['127.0.0.1', '10.0.0.0/8'], proxy_protocol = true }\nroute = [{ path = '/*', upstream = 'app', access = 'public' }]";

const V1: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n";

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// The address that the application is told.
async fn client(gateway: &Gateway, header: &[u8], fields: &str) -> String {
    let mut connection = gateway.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n");
    connection.write([header, request.as_bytes()].concat()).await;
    assert_eq!(connection.response().await.status, 200, "{header:?}");
    gateway.upstream().last().header("x-forwarded-for").unwrap().to_owned()
}

#[tokio::test]
async fn the_header_of_a_trusted_proxy_names_the_client() {
    let gateway = Gateway::start(FROM_PROXY).await;
    let v4 = [203, 0, 113, 8, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
    let from_proxy = [10, 0, 0, 9, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
    let forged = "X-Forwarded-For: 198.51.100.66\r\nX-Forwarded-Proto: https\r\n";
    let unix = [b'x'; 216];
    for (header, expected) in [
        (V1.to_vec(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), "2001:db8::7"),
        (v2(0x21, 0x11, &v4), "203.0.113.8"),
        (v2(0x21, 0x11, &[&v4[..], &[0xea, 0x02, 0x00], &[b'x'; 0x200]].concat()), "203.0.113.8"),
        // It speaks for itself, or does not say for whom.
        (v2(0x20, 0x00, &[]), "127.0.0.1"),
        (v2(0x20, 0x11, &v4), "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x21, 0x00, &[]), "127.0.0.1"),
        (v2(0x21, 0x31, &unix), "127.0.0.1"),
    ] {
        assert_eq!(client(&gateway, &header, "").await, expected, "{header:?}");
        // Only the client can have written that.
        assert_eq!(client(&gateway, &header, forged).await, expected, "{header:?}");
        assert_eq!(gateway.upstream().last().header("x-forwarded-proto"), Some("http"));
    }
    // Another trusted proxy is in front of the one that relays.
    assert_eq!(client(&gateway, &v2(0x21, 0x11, &from_proxy), forged).await, "198.51.100.66");
    let access = gateway.access("/").await;
    assert_eq!(access["client.address"], "203.0.113.7");
}

#[tokio::test]
async fn the_header_may_arrive_byte_by_byte_before_http_1_and_http_2() {
    let gateway = Gateway::start(FROM_PROXY).await;
    let v4 = v2(0x21, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb, 4, 0, 1, 0]);
    for header in [V1, &v4] {
        let mut stream = within(tokio::net::TcpStream::connect(gateway.address())).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in header {
            tokio::io::AsyncWriteExt::write_all(&mut stream, &[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut connection = h2::Connection::over(stream).await;
        assert_eq!(connection.send(h2::get("http://app.test/")).await.status, 200);
        assert_eq!(gateway.upstream().last().header("x-forwarded-for"), Some("203.0.113.7"));
    }
}

#[tokio::test]
async fn a_trusted_proxy_without_a_valid_header_is_cut_off() {
    let config = FROM_PROXY.replace("[{", "[{ name = 'r',").replace(
        "proxy_protocol = true",
        "proxy_protocol = true, limits = { header_timeout = '300ms' }",
    );
    let gateway = Gateway::start(&config).await;
    let request = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
    for start in [
        request.to_owned(),
        format!("PROXY TCP4 203.0.113.7 10.0.0.1 56324\r\n{request}"),
        "PROXY TCP4 203.0.113.7".to_owned(),
        String::new(),
    ] {
        let mut connection = gateway.connect().await;
        connection.write(&start).await;
        assert_eq!(connection.closed().await, b"", "{start:?}");
    }
    assert_eq!(gateway.upstream().count(), 0);
    let event = gateway
        .log()
        .until("it is logged", |line| {
            line["message"].as_str().is_some_and(|text| text.contains("no valid PROXY header"))
        })
        .await;
    assert_eq!(event["peer"], "127.0.0.1");
    let counted = async || {
        gateway
            .metric_value("portcullis_requests_malformed_total", &["kind=\"proxy_header\""])
            .await
            .unwrap()
    };
    within(async { while counted().await < 4.0 {} }).await;
    // A load balancer that only tries the port.
    gateway.connect().await.shut_down().await;
    assert_eq!(client(&gateway, V1, "").await, "203.0.113.7");
    assert!((counted().await - 4.0).abs() < 0.1);
}

#[tokio::test]
async fn a_header_from_anyone_else_is_refused() {
    for config in [
        FROM_PROXY.replace("'127.0.0.1', ", ""),
        FROM_PROXY.replace("proxy_protocol = true", "proxy_protocol = false"),
    ] {
        let gateway = Gateway::start(&config).await;
        let v4 = v2(0x21, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb]);
        for header in [V1, &v4] {
            let request = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
            let response = gateway.raw([header, request.as_bytes()].concat()).await;
            assert_eq!(response.status, 400, "{header:?}");
        }
        assert_eq!(gateway.upstream().count(), 0);
        assert_eq!(gateway.get("/").send().await.status, 200);
    }
}

#[tokio::test]
async fn connections_are_counted_for_the_client_that_the_header_names() {
    let config = FROM_PROXY
        .replace("proxy_protocol", "limits = { max_connections_per_client = 1 }, proxy_protocol");
    let gateway = Gateway::start(&config).await;
    let open = async |client: &str| {
        let mut connection = gateway.connect().await;
        let header = format!("PROXY TCP4 {client} 10.0.0.1 56324 443\r\n");
        let request = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
        connection.write(format!("{header}{request}")).await;
        (connection.response().await.status, connection)
    };
    let (status, first) = open("203.0.113.7").await;
    assert_eq!(status, 200);
    assert_eq!(open("203.0.113.7").await.0, 503);
    assert_eq!(open("203.0.113.8").await.0, 200);
    drop(first);
    within(async { while open("203.0.113.7").await.0 != 200 {} }).await;
}

#[tokio::test]
async fn haproxy_relays_tls_and_cleartext_with_both_versions() {
    let Some(program) = haproxy() else { return };
    let certificate = authority().issue(&["app.test"]);
    let tls = "tls = { certificate = 'tls.crt', private_key = { file = 'tls.key' } }, ";
    for (version, is_tls) in
        [("send-proxy", false), ("send-proxy-v2", false), ("send-proxy-v2", true)]
    {
        let section = if is_tls { format!("server = {{ {tls}") } else { "server = { ".to_owned() };
        let gateway = Gateway::setup(&FROM_PROXY.replace("server = { ", &section))
            .file("tls.crt", &certificate.chain)
            .file("tls.key", &certificate.key)
            .start()
            .await;
        let proxy = Haproxy::start(&program, &gateway, version).await;
        let stream = from("127.0.0.2", proxy.port.address()).await;
        let mut connection = if is_tls {
            let client = crate::harness::certificates::Client::default();
            Connection::over(client.over(stream).await.unwrap())
        } else {
            Connection::over(stream)
        };
        let forged = gateway.get("/").header("X-Forwarded-For", "198.51.100.66");
        let status = forged.send_on(&mut connection).await.status;
        assert_eq!(status, 200, "{version}");
        // HAProxy was reached from this address, and says so.
        let received = gateway.upstream().last();
        assert_eq!(received.header("x-forwarded-for"), Some("127.0.0.2"), "{version}");
        let scheme = if is_tls { "https" } else { "http" };
        assert_eq!(received.header("x-forwarded-proto"), Some(scheme));
    }
}

/// Connects from another address of this machine, which is not a trusted proxy.
async fn from(address: &str, to: std::net::SocketAddr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    within(socket.connect(to)).await.unwrap()
}

/// Where Debian installs it. `None`, loudly, if it is missing; that is a failure in CI.
fn haproxy() -> Option<PathBuf> {
    let found = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"]
        .map(|folder| Path::new(folder).join("haproxy"))
        .into_iter()
        .find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "haproxy is missing, and CI=true");
        eprintln!("SKIPPED: haproxy is not installed; scripts/test installs it");
    }
    found
}

/// A running HAProxy in TCP mode, whose health check uses the header too.
struct Haproxy {
    child: Child,
    port: Port,
    _folder: tempfile::TempDir,
}

impl Haproxy {
    async fn start(program: &Path, gateway: &Gateway, version: &str) -> Self {
        let (folder, port) = (tempfile::TempDir::new().unwrap(), Port::reserve());
        let file = folder.path().join("haproxy.cfg");
        let (listen, to) = (port.address(), gateway.address());
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen gateway\n bind {listen}\n server one {to} {version} check check-send-proxy\n"
        );
        std::fs::write(&file, text).unwrap();
        let child = Command::new(program)
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { child, port, _folder: folder };
        within(async {
            while tokio::net::TcpStream::connect(listen).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        proxy
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
