//! Requests over HTTP/2 to applications that end their connections, or do not read. The applications
//! are frames.

use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{Connection, Gateway, h2, within};

/// As over HTTP/1.1, so that no client can hold up another.
#[tokio::test]
async fn each_request_has_a_connection_until_its_response_has_ended() {
    const REQUESTS: usize = 5;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let pending = requests(&gateway, REQUESTS).await;
    let mut open = Vec::new();
    for _ in 0..REQUESTS {
        let mut stream = accept(&listener, &[]).await;
        let request = next_request(&mut stream).await;
        open.push((stream, request));
    }
    // Other connections are refused.
    drop(listener);
    // None is answered before all have arrived.
    for (mut stream, request) in open {
        stream.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        answer_all(stream);
    }
    assert_eq!(within(pending.join_all()).await, [200; REQUESTS], "{}", gateway.log().errors());
    let again = requests(&gateway, 1).await.join_all();
    assert_eq!(within(again).await, [200], "{}", gateway.log().errors());
}

#[tokio::test]
async fn a_request_is_sent_three_times_at_most() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        for is_reset in [false, true, false] {
            let mut stream = accept(&listener, &[]).await;
            let request = next_request(&mut stream).await;
            if is_reset {
                // Without an error.
                stream.write_all(&frame(RST_STREAM, 0, request, &[0; 4])).await.unwrap();
            }
        }
        answer_all(accept(&listener, &[]).await);
    });
    gateway.get("/").send().await.is(502, "upstream_failed");
    assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
    within(application).await.unwrap();
}

/// The application has ended, and a new one takes its place.
#[tokio::test]
async fn where_a_kept_connection_is_lost_no_other_one_is_tried() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let pending = requests(&gateway, 2).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = accept(&listener, &[]).await;
        let request = next_request(&mut stream).await;
        kept.push((stream, request));
    }
    for (stream, request) in &mut kept {
        stream.write_all(&frame(HEADERS, END, *request, OK)).await.unwrap();
    }
    assert_eq!(within(pending.join_all()).await, [200; 2]);
    let [(mut one, _), (mut two, _)] = kept.try_into().unwrap();
    let application = tokio::spawn(async move {
        let is_one = tokio::select! {
            _ = next_request(&mut one) => true,
            _ = next_request(&mut two) => false,
        };
        let (lost, other) = if is_one { (one, two) } else { (two, one) };
        drop(lost);
        answer_all(accept(&listener, &[]).await);
        other
    });
    let again = requests(&gateway, 1).await.join_all();
    assert_eq!(within(again).await, [200], "{}", gateway.log().errors());
    within(application).await.unwrap();
}

/// It waits in the gateway, because the application permits none yet.
#[tokio::test]
async fn a_request_that_waits_for_its_turn_is_not_lost_with_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        // MAX_CONCURRENT_STREAMS.
        let mut first = accept(&listener, &[0, 3, 0, 0, 0, 0]).await;
        // The second SETTINGS of the gateway says that it knows it.
        for _ in 0..2 {
            while next_frame(&mut first).await.0 != SETTINGS {}
        }
        drop(first);
        answer_all(accept(&listener, &[]).await);
    });
    assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
    within(application).await.unwrap();
}

/// It was not acted on, so its method does not matter.
#[tokio::test]
async fn a_refused_request_without_a_body_is_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        let mut refusing = accept(&listener, &[]).await;
        let request = next_request(&mut refusing).await;
        let refused = frame(RST_STREAM, 0, request, &REFUSED_STREAM.to_be_bytes());
        refusing.write_all(&refused).await.unwrap();
        let mut leaving = accept(&listener, &[]).await;
        next_request(&mut leaving).await;
        // Without an error, and no stream is the last one.
        leaving.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
        let mut own = accept(&listener, &[]).await;
        let request = next_request(&mut own).await;
        own.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        (refusing, leaving, own)
    });
    let response = gateway.request("POST", "/").send().await;
    assert_eq!(response.status, 200, "{}", gateway.log().errors());
    within(application).await.unwrap();
}

/// It may be dead although new ones work.
#[tokio::test]
async fn a_connection_is_closed_at_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&impatient(&listener)).await;
    let mut client = h2::Connection::open(&gateway).await;
    let mut send = async |method: &str| {
        let request = http::Request::builder().method(method).uri("http://app.test/");
        client.send(request.body(Full::default()).unwrap()).await.status
    };
    let application = tokio::spawn(async move {
        let mut dead = accept(&listener, &[]).await;
        let request = next_request(&mut dead).await;
        dead.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        answer_all(accept(&listener, &[]).await);
        closed(dead).await;
    });
    for (method, status) in [("GET", 200), ("POST", 504), ("POST", 200), ("GET", 200)] {
        assert_eq!(send(method).await, status, "{method}");
    }
    within(application).await.unwrap();
}

#[tokio::test]
async fn a_connection_is_closed_when_its_client_gives_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    for upload in [false, true] {
        let client = if upload {
            begin_upload(&gateway, 1000).await
        } else {
            let mut client = gateway.connect().await;
            client.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
            client
        };
        let mut stream = accept(&listener, &[]).await;
        next_request(&mut stream).await;
        drop(client);
        within(closed(stream)).await;
    }
}

/// Its stream ends without an error.
#[tokio::test]
async fn a_response_whose_stream_ends_early_is_incomplete() {
    for goodbye in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::start(&config_for(&listener)).await;
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let application = tokio::spawn(async move {
            let mut stream = accept(&listener, &[]).await;
            let request = next_request(&mut stream).await;
            stream.write_all(&frame(HEADERS, END_HEADERS, request, OK)).await.unwrap();
            stream.write_all(&frame(DATA, 0, request, b"some")).await.unwrap();
            // Before, it would be a request that was not acted on.
            has_begun.await.unwrap();
            let end = if goodbye {
                frame(GOAWAY, 0, 0, &[0; 8])
            } else {
                frame(RST_STREAM, 0, request, &[0; 4])
            };
            stream.write_all(&end).await.unwrap();
            if goodbye { None } else { Some(stream) }
        });
        let mut connection = gateway.connect().await;
        connection.write("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        assert_eq!(connection.head().await.unwrap().status, 200);
        begun.send(()).unwrap();
        let body = connection.closed().await;
        assert!(!body.ends_with(b"0\r\n\r\n"), "{goodbye}: {}", body.escape_ascii());
        within(application).await.unwrap();
    }
}

/// The application needs no more of the request, and says so without an error (RFC 9113 §8.1).
#[tokio::test]
async fn a_response_to_a_part_of_a_request_is_whole_if_its_stream_ended() {
    // content-length: 10.
    let longer = [OK, b"\x0f\x0d\x0210"].concat();
    for (head, end, outcome) in
        [(longer, 0, "failed"), (OK.to_vec(), 0, "failed"), (OK.to_vec(), 1, "allowed")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::start(&config_for(&listener)).await;
        let application = tokio::spawn(async move {
            let mut stream = accept(&listener, &[]).await;
            let request = next_request(&mut stream).await;
            let head = frame(HEADERS, END_HEADERS, request, &head);
            let body = frame(DATA, end, request, b"some");
            let reset = frame(RST_STREAM, 0, request, &[0; 4]);
            stream.write_all(&[head, body, reset].concat()).await.unwrap();
            stream
        });
        let mut client = begin_upload(&gateway, 1000).await;
        assert_eq!(client.head().await.unwrap().status, 200);
        let line = gateway.access("/").await;
        assert_eq!(line["outcome"], outcome, "{line}");
        within(application).await.unwrap();
    }
}

/// The application rejects an upload, and closes its connection right behind the response.
#[tokio::test]
async fn a_response_is_whole_although_its_connection_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        for _ in 0..10 {
            let mut stream = accept(&listener, &[]).await;
            let request = next_request(&mut stream).await;
            let head = frame(HEADERS, END_HEADERS, request, OK);
            let body = frame(DATA, 1, request, b"some");
            stream.write_all(&[head, body].concat()).await.unwrap();
        }
    });
    for _ in 0..10 {
        let mut client = begin_upload(&gateway, 100_000).await;
        let response = client.response().await;
        assert_eq!((response.status, &*response.body), (200, &b"some"[..]));
    }
    within(application).await.unwrap();
}

#[tokio::test]
async fn no_content_is_passed_on_where_none_is_allowed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let mut client = h2::Connection::open(&gateway).await;
    let application = tokio::spawn(async move {
        // 204, and 200 to HEAD.
        for head in [&[0x89][..], OK] {
            let mut stream = accept(&listener, &[]).await;
            let request = next_request(&mut stream).await;
            stream.write_all(&frame(HEADERS, END_HEADERS, request, head)).await.unwrap();
            stream.write_all(&frame(DATA, 1, request, b"body")).await.unwrap();
            closed(stream).await;
        }
    });
    for (method, status) in [("GET", 204), ("HEAD", 200)] {
        let request = http::Request::builder().method(method).uri("http://app.test/");
        let response = client.send(request.body(Full::default()).unwrap()).await;
        assert_eq!((response.status, &*response.body), (status, &b""[..]), "{method}");
    }
    within(application).await.unwrap();
}

/// What the client still sends reaches no application, and holds up no other request. The application
/// has taken all that arrived, none of it, or the first byte.
#[tokio::test]
async fn an_upload_ends_with_its_response() {
    for (window, length) in [(255, 1000), (0, 1000), (1, 2)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::start(&config_for(&listener)).await;
        let application = tokio::spawn(async move {
            // INITIAL_WINDOW_SIZE, which the gateway knows after the first request.
            let mut stream = accept(&listener, &[0, 4, 0, 0, 0, window]).await;
            let first = next_request(&mut stream).await;
            stream.write_all(&frame(HEADERS, END, first, OK)).await.unwrap();
            let upload = next_request(&mut stream).await;
            next_bytes(&mut stream, upload, usize::from(window).min(2)).await;
            stream.write_all(&frame(HEADERS, END, upload, OK)).await.unwrap();
            answer_all(accept(&listener, &[]).await);
            closed(stream).await;
        });
        assert_eq!(gateway.get("/").send().await.status, 200);
        let mut client = begin_upload(&gateway, length).await;
        assert_eq!(client.response().await.status, 200);
        assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
        within(application).await.unwrap();
    }
}

/// Many applications end a stream in a frame of its own, as Node does. A client of HTTP/1.1 has its
/// response before that.
#[tokio::test]
async fn a_connection_is_used_again_although_its_stream_ends_late() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let (answered, is_answered) = tokio::sync::oneshot::channel();
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    let application = tokio::spawn(async move {
        let mut stream = accept(&listener, &[]).await;
        // GET, with a content-length of 4, and HEAD.
        let first = next_request(&mut stream).await;
        let head = [OK, b"\x0f\x0d\x014"].concat();
        stream.write_all(&frame(HEADERS, END_HEADERS, first, &head)).await.unwrap();
        stream.write_all(&frame(DATA, 0, first, b"some")).await.unwrap();
        is_answered.await.unwrap();
        stream.write_all(&frame(DATA, 1, first, b"")).await.unwrap();
        has_arrived(&mut stream).await;
        ended.send(()).unwrap();
        for _ in 0..2 {
            let request = next_request(&mut stream).await;
            stream.write_all(&frame(HEADERS, END, request, &head)).await.unwrap();
        }
    });
    assert_eq!(gateway.get("/").send().await.body, b"some");
    answered.send(()).unwrap();
    within(has_ended).await.unwrap();
    // Nobody accepts another connection.
    for _ in 0..2 {
        assert_eq!(gateway.request("HEAD", "/").send().await.status, 200);
    }
    within(application).await.unwrap();
}

/// The application may permit some later, but new connections work.
#[tokio::test]
async fn a_connection_without_permission_is_not_used() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        let mut first = accept(&listener, &[]).await;
        let request = next_request(&mut first).await;
        // MAX_CONCURRENT_STREAMS.
        let none = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]);
        let response = frame(HEADERS, END, request, OK);
        first.write_all(&[none, response].concat()).await.unwrap();
        answer_all(accept(&listener, &[]).await);
        first
    });
    for _ in 0..3 {
        assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
    }
    within(application).await.unwrap();
}

/// Some applications open the window of a connection only as they read.
#[tokio::test]
async fn a_body_that_is_not_read_holds_up_no_other_request() {
    const WINDOW: usize = 65_535;
    const LENGTH: usize = 200_000;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let (read, is_read) = tokio::sync::oneshot::channel();
    let application = tokio::spawn(async move {
        // INITIAL_WINDOW_SIZE is 1 MiB.
        let mut full = accept(&listener, &[0, 4, 0, 16, 0, 0]).await;
        let upload = next_request(&mut full).await;
        next_bytes(&mut full, upload, WINDOW).await;
        read.send(()).unwrap();
        let mut other = accept(&listener, &[]).await;
        let request = next_request(&mut other).await;
        other.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        // WINDOW_UPDATE: 1 MiB.
        full.write_all(&frame(WINDOW_UPDATE, 0, 0, &[0, 16, 0, 0])).await.unwrap();
        next_bytes(&mut full, upload, LENGTH - WINDOW).await;
        full.write_all(&frame(HEADERS, END, upload, OK)).await.unwrap();
        // It is used again.
        let request = next_request(&mut full).await;
        full.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        (full, other)
    });
    let mut client = begin_upload(&gateway, LENGTH).await;
    client.write(vec![b'c'; LENGTH - 2]).await;
    within(is_read).await.unwrap();
    assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
    assert_eq!(client.response().await.status, 200);
    assert_eq!(gateway.get("/").send().await.status, 200);
    within(application).await.unwrap();
}

/// h2 ends a connection with too many of them, by a measure that can be changed only by its window.
#[tokio::test]
async fn small_frames_that_the_client_does_not_read_do_not_end_a_response() {
    const FRAMES: usize = 3000;
    const EVENT: &[u8] = b"twenty bytes an event";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        let mut stream = accept(&listener, &[]).await;
        let request = next_request(&mut stream).await;
        stream.write_all(&frame(HEADERS, END_HEADERS, request, OK)).await.unwrap();
        stream.write_all(&frame(DATA, 0, request, EVENT).repeat(FRAMES)).await.unwrap();
        has_arrived(&mut stream).await;
        stream
    });
    let mut client = begin(&gateway, &[0, 4, 0, 0, 0, 0]).await;
    client.write_all(&frame(HEADERS, END, 1, GET)).await.unwrap();
    let mut stream = within(application).await.unwrap();
    stream.write_all(&frame(DATA, 1, 1, b"")).await.unwrap();
    grant(&mut client, 1).await;
    within(next_bytes(&mut client, 1, FRAMES * EVENT.len())).await;
}

/// As a stream of gRPC with short messages.
#[tokio::test]
async fn small_frames_that_the_application_does_not_read_do_not_end_the_connection() {
    const FRAMES: usize = 17_000;
    const MESSAGE: &[u8] = b"a gRPC message is 5 longer, so";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let mut client = begin(&gateway, &[]).await;
    client.write_all(&frame(HEADERS, END_HEADERS, 1, POST)).await.unwrap();
    let mut stream = accept(&listener, &[0, 4, 0, 0, 0, 0]).await;
    let request = within(next_request(&mut stream)).await;
    client.write_all(&frame(DATA, 0, 1, MESSAGE).repeat(FRAMES)).await.unwrap();
    within(has_arrived(&mut client)).await;
    grant(&mut stream, request).await;
    within(next_bytes(&mut stream, request, FRAMES * MESSAGE.len())).await;
    client.write_all(&frame(DATA, 1, 1, b"")).await.unwrap();
    stream.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
    assert_eq!(within(next_request(&mut client)).await, 1, "a response");
}

/// Sends the head and the first two bytes of a request with a body of this length.
async fn begin_upload(gateway: &Gateway, length: usize) -> Connection {
    let mut client = gateway.connect().await;
    let head = format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: {length}\r\n\r\n");
    client.write(head + "ab").await;
    client
}

/// With a short `response_timeout`.
fn impatient(listener: &TcpListener) -> String {
    config_for(listener).replace("http2 = true", "http2 = true, response_timeout = '300ms'")
}

fn config_for(listener: &TcpListener) -> String {
    let address = listener.local_addr().unwrap();
    format!(
        "server.workers = 1\nupstream.app = {{ url = 'http://{address}', http2 = true }}\nroute = [{{ path = '/*', upstream = 'app', access = 'public' }}]"
    )
}

/// The statuses of requests at the same time.
async fn requests(gateway: &Gateway, count: usize) -> JoinSet<u16> {
    let client = h2::Connection::open(gateway).await;
    let request = |_| {
        let mut client = client.clone();
        async move { client.send(h2::get("http://app.test/")).await.status }
    };
    (0..count).map(request).collect()
}

/// A connection of a client, begun with these settings.
async fn begin(gateway: &Gateway, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
    while within(next_frame(&mut stream)).await.0 != SETTINGS {}
    // Those of the gateway are in force once they are acknowledged.
    stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
    stream
}

/// Waits until the gateway has read everything that was written here.
async fn has_arrived(stream: &mut TcpStream) {
    stream.write_all(&frame(PING, 0, 0, &[0; 8])).await.unwrap();
    while next_frame(stream).await.0 != PING {}
}

/// Accepts a mebibyte more of this stream, and of its connection.
async fn grant(stream: &mut TcpStream, id: u32) {
    for id in [0, id] {
        stream.write_all(&frame(WINDOW_UPDATE, 0, id, &[0, 16, 0, 0])).await.unwrap();
    }
}

/// A connection, begun with these settings.
async fn accept(listener: &TcpListener, settings: &[u8]) -> TcpStream {
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
    stream.read_exact(&mut [0; PREFACE]).await.unwrap();
    stream
}

/// Answers every request.
fn answer_all(mut stream: TcpStream) {
    tokio::spawn(async move {
        loop {
            let request = next_request(&mut stream).await;
            stream.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        }
    });
}

/// The stream of the next request.
async fn next_request(stream: &mut TcpStream) -> u32 {
    loop {
        if let (HEADERS, id) = next_frame(stream).await {
            return id;
        }
    }
}

/// The type and the stream of the next frame. Waits forever if the connection has ended.
async fn next_frame(stream: &mut TcpStream) -> (u8, u32) {
    let (kind, id, _) = next_frame_with_length(stream).await;
    (kind, id)
}

/// The same, and its length.
async fn next_frame_with_length(stream: &mut TcpStream) -> (u8, u32, usize) {
    let mut head = [0; 9];
    if stream.read_exact(&mut head).await.is_err() {
        std::future::pending::<()>().await;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    let length = usize::try_from(number(&head[..3])).unwrap();
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    (head[3], number(&head[5..]), length)
}

/// Waits until this many bytes of a body have arrived.
async fn next_bytes(stream: &mut TcpStream, body: u32, mut left: usize) {
    while left > 0 {
        let (kind, id, length) = next_frame_with_length(stream).await;
        left -= if (kind, id) == (DATA, body) { length } else { 0 };
    }
}

/// Waits until the gateway has closed the connection.
async fn closed(mut stream: TcpStream) {
    while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let mut frame = vec![0, 0, length, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// An error code.
const REFUSED_STREAM: u32 = 7;

/// `:status: 200`, in the static table of HPACK.
const OK: &[u8] = &[0x88];

/// `:method`, `:scheme`, `:path` and `:authority`, likewise.
const GET: &[u8] = b"\x82\x86\x84\x41\x08app.test";
const POST: &[u8] = b"\x83\x86\x84\x41\x08app.test";

/// The end of the head.
const END_HEADERS: u8 = 4;

/// The end of the head, and of the stream.
const END: u8 = 5;
