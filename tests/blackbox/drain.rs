//! SIGTERM: requests in flight finish, no new ones are accepted, and the process ends in time
//! (CONTRACT §1).

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::gateway::PASS_SOCKET;
use crate::harness::upstream::write;
use crate::harness::{Connection, Gateway, Port, Step, within};

const PUBLIC: &str = "route = [{ path = '/*', upstream = 'app', access = 'public' }]";

/// A gateway with one request in flight, and the connection that waits for its response.
async fn in_flight(config: &str) -> (Gateway, Connection) {
    let gateway = Gateway::start(config).await;
    gateway.upstream().does_at(
        "/slow",
        vec![Step::ReadBody, Step::Hold, write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")],
    );
    let mut connection = gateway.connect().await;
    connection.write("GET /slow HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    gateway.upstream().until(|seen| seen.requests.len() == 1).await;
    (gateway, connection)
}

/// Waits until the listener is closed.
async fn refused(gateway: &Gateway) {
    within(async {
        while let Ok(stream) = TcpStream::connect(gateway.address()).await {
            drop(stream);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_in_flight_finishes_and_the_exit_is_clean() {
    for signal in ["TERM", "INT"] {
        let (gateway, mut connection) = in_flight(PUBLIC).await;
        gateway.signal(signal);
        gateway.log().until("it drains", |line| line["message"] == "draining").await;
        refused(&gateway).await;
        gateway.upstream().release();
        let response = connection.response().await;
        assert_eq!(
            (response.status, response.text().as_str(), response.header("connection")),
            (200, "late", Some("close"))
        );
        assert!(connection.closed().await.is_empty());
        assert_eq!(gateway.exited().await.code(), Some(0));
        gateway.access("/slow").await;
    }
}

/// The drain does not wait for a client whose body was read to its end, or that has been idle
/// since.
#[tokio::test]
async fn an_answered_upload_does_not_delay_other_streams() {
    let gateway = Gateway::start(PUBLIC).await;
    let mut clients = Vec::new();
    for fields in ["", "Connection: close\r\n"] {
        let mut client = gateway.connect().await;
        client
            .write(format!(
                "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n{fields}\r\nbody"
            ))
            .await;
        assert_eq!(client.response().await.status, 200);
        // Held open from now on.
        clients.push(client);
    }
    let begun = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.exited().await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(clients);
}

#[tokio::test]
async fn an_idle_gateway_ends_at_once() {
    let gateway = Gateway::start(PUBLIC).await;
    let mut idle = gateway.connect().await;
    let mut silent = gateway.connect().await;
    assert_eq!(gateway.get("/").send_on(&mut idle).await.status, 200);
    let begun = Instant::now();
    gateway.signal("TERM");
    idle.closed().await;
    silent.closed().await;
    assert_eq!(gateway.exited().await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn during_the_drain_delay_readyz_fails_and_requests_are_served() {
    let gateway = Gateway::start(&format!("server.drain_delay = '20s'\n{PUBLIC}")).await;
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    gateway.signal("TERM");
    gateway.log().until("it drains", |line| line["message"] == "draining").await;
    let ready = gateway.admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (503, &"unready".into()));
    assert!(
        ready.header("retry-after").is_some()
            && ready.json()["problems"].to_string().contains("draining")
    );
    assert_eq!(gateway.admin("/livez").await.status, 200);
    let mut connection = gateway.connect().await;
    let response = gateway.get("/").send_on(&mut connection).await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    connection.closed().await;
}

#[tokio::test]
async fn the_drain_timeout_closes_remaining_connections() {
    let (gateway, mut connection) =
        in_flight(&format!("server.drain_timeout = '300ms'\n{PUBLIC}")).await;
    gateway.signal("TERM");
    assert!(connection.closed().await.is_empty());
    assert_eq!(gateway.exited().await.code(), Some(0));
    let line = gateway.access("/slow").await;
    assert_ne!(line["http.response.status_code"], 200, "{line}");
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_at_once() {
    let (gateway, mut connection) =
        in_flight(&format!("server.drain_delay = '1h'\n{PUBLIC}")).await;
    gateway.signal("TERM");
    gateway.log().until("it drains", |line| line["message"] == "draining").await;
    gateway.signal("INT");
    assert_eq!(gateway.exited().await.code(), Some(1));
    assert!(connection.closed().await.is_empty());
}

#[tokio::test]
async fn a_drain_waits_for_tunnels_and_cuts_them_at_the_deadline() {
    let gateway = Gateway::start(&format!("server.drain_timeout = '300ms'\n{PUBLIC}")).await;
    gateway.upstream().does(vec![
        write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ),
        Step::Echo,
    ]);
    let mut connection = gateway.connect().await;
    connection.write("GET /ws HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
    assert_eq!(connection.response().await.status, 101);
    gateway.signal("TERM");
    gateway.log().until("it drains", |line| line["message"] == "draining").await;
    connection.write("still").await;
    assert_eq!(connection.exactly(5).await.unwrap(), b"still");
    connection.closed().await;
    gateway.exited().await;
    gateway.access("/ws").await;
}

/// Two kinds of clients that cannot know about the drain: one that has just connected, and one that
/// sends its next request on a kept connection.
#[tokio::test]
async fn accepted_requests_are_answered() {
    for config in [PUBLIC.to_owned(), format!("server.h2c = false\n{PUBLIC}")] {
        let gateway = Gateway::start(&config).await;
        let mut kept = gateway.connect().await;
        assert_eq!(gateway.get("/kept").send_on(&mut kept).await.status, 200);
        let mut new = gateway.connect().await;
        gateway.signal("TERM");
        let new = within(async {
            loop {
                let response = gateway.get("/kept").send_on(&mut kept).await;
                assert_eq!(response.status, 200);
                if response.header("connection") == Some("close") {
                    break;
                }
            }
            while let Ok(stream) = TcpStream::connect(gateway.address()).await {
                new = Connection::over(stream);
                // The system resets a connection that is opened in the moment when the listener
                // closes. With pauses in between, this rarely is the last one.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            new
        });
        let mut new = new.await;
        let response = gateway.get("/new").send_on(&mut new).await;
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        assert_eq!(gateway.exited().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_successor_starts_on_the_same_addresses_while_a_stream_is_open() {
    let (public, admin) = (Port::reserve(), Port::reserve());
    let config = format!(
        "server.listen = '{}'\nadmin.listen = '{}'\nserver.drain_delay = '2s'\n{PUBLIC}",
        public.address(),
        admin.address()
    );
    let (old, mut connection) = in_flight(&config).await;
    // No second gateway can start while one is not draining.
    let (code, _, errors) = old.command(&["run"]).await;
    assert!(code == 1 && errors.contains("another process uses this port"), "{code}: {errors}");
    old.signal("TERM");
    old.log().until("it drains", |line| line["message"] == "draining").await;
    let setup = Gateway::setup(&config).upstream(old.upstream().clone());
    let new = setup.start().await;
    assert_eq!(new.address(), old.address());
    // No client is refused from now on, before and after the old gateway closes its listeners.
    let mut closing = 0;
    within(async {
        while closing < 100 {
            let response = new.get("/").send().await;
            assert_eq!(response.status, 200);
            closing = if response.header("connection").is_some() { 0 } else { closing + 1 };
        }
    })
    .await;
    old.upstream().release();
    assert_eq!(connection.response().await.text(), "late");
    assert_eq!(old.exited().await.code(), Some(0));
    assert_eq!(new.admin("/readyz").await.status, 200);
}

/// A binary is replaced ten times while clients open a connection for each request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_successors_in_a_row_refuse_no_client() {
    let (public, admin) = (Port::reserve(), Port::reserve());
    let config = format!(
        "server.listen = '{}'\nadmin.listen = '{}'\nserver.workers = 2\nserver.drain_delay = '300ms'\n{PUBLIC}",
        public.address(),
        admin.address()
    );
    let mut current = Gateway::start(&config).await;
    let (address, upstream) = (current.address(), current.upstream().clone());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let (mut served, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match one_request(address).await {
                        Ok(()) => served += 1,
                        Err(error) => failed.push(error.to_string()),
                    }
                }
                (served, failed)
            })
        })
        .collect();
    for _ in 0..10 {
        current.signal("TERM");
        current.log().until("it drains", |line| line["message"] == "draining").await;
        let next = Gateway::setup(&config).upstream(upstream.clone()).start().await;
        assert_eq!(next.admin("/livez").await.status, 200);
        assert_eq!(current.exited().await.code(), Some(0));
        current = next;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut served, mut failed) = (0, Vec::new());
    for client in clients {
        let (some, errors) = client.await.unwrap();
        served += some;
        failed.extend(errors);
    }
    assert!(served > 500, "{served}");
    // Linux resets a connection whose handshake is under way when its listener closes, unless it is
    // told to move it to another one.
    let moves = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    let may_reset = moves.is_ok_and(|moves| moves.trim() == "0");
    let is_reset = |error: &String| may_reset && error.contains("os error 104");
    assert!(failed.len() <= 2 && failed.iter().all(is_reset), "{failed:?}");
}

/// One request on a connection of its own.
async fn one_request(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(std::io::Error::other(format!("{:?}", String::from_utf8_lossy(&answer))))
}

#[tokio::test]
async fn clients_wait_while_a_gateway_with_a_given_socket_restarts() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let config = format!("server.listen = '{address}'\nserver.workers = 2\n{PUBLIC}");
    let old = Gateway::setup(&config).socket(&socket).start().await;
    assert_eq!((old.address(), old.get("/").send().await.status), (address, 200));
    old.signal("TERM");
    assert_eq!(old.exited().await.code(), Some(0));
    let mut waiting = old.connect().await;
    waiting.write("GET /waiting HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let new = Gateway::setup(&config).socket(&socket).start().await;
    assert_eq!(waiting.response().await.status, 200);
    new.access("/waiting").await;

    // A socket for which the file has no listener is a mistake in one of the two.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", PASS_SOCKET, env!("CARGO_BIN_EXE_portcullis"), "run", "--config"]);
    command.arg(new.path("gateway.toml")).stdin(OwnedFd::from(other.try_clone().unwrap()));
    std::fs::write(
        new.path("gateway.toml"),
        std::fs::read_to_string(new.path("gateway.toml"))
            .unwrap()
            .replace(&address.to_string(), "127.0.0.1:0"),
    )
    .unwrap();
    let output =
        within(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("a socket for {} was passed", other.local_addr().unwrap());
    assert!(output.status.code() == Some(1) && error.contains(&expected), "{error}");
}

#[tokio::test]
async fn systemd_is_told_what_the_gateway_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let told = async || {
        let mut message = [0; 256];
        let length = within(socket.recv(&mut message)).await.unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let setup = Gateway::setup(PUBLIC).variable("NOTIFY_SOCKET", path.to_str().unwrap());
    let gateway = setup.start().await;
    assert_eq!(told().await.trim(), "READY=1");
    gateway.signal("HUP");
    let reloading = told().await;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told().await.trim(), "READY=1");
    gateway.write("[[route]]\npath = 'wrong'\n");
    gateway.signal("HUP");
    assert!(told().await.starts_with("RELOADING=1"));
    assert_eq!(told().await.trim(), "READY=1", "the old configuration serves");
    gateway.signal("TERM");
    assert_eq!(told().await.trim(), "STOPPING=1");
    assert_eq!(gateway.exited().await.code(), Some(0));
}
