//! Requests over HTTP/2 to applications that end their connections. The applications are frames.

use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{Connection, Gateway, h2, within};

/// What ends connections may be another request on them.
#[tokio::test]
async fn the_last_attempt_has_a_connection_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let both = tokio::spawn(async move {
        for _ in 0..2 {
            let mut shared = accept(&listener, &[]).await;
            for _ in 0..2 {
                next_request(&mut shared).await;
            }
        }
        let mut own = [accept(&listener, &[]).await, accept(&listener, &[]).await];
        for stream in &mut own {
            let request = next_request(stream).await;
            stream.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        }
        own
    });
    let statuses = within(requests(&gateway, 2).await.join_all()).await;
    assert_eq!(statuses, [200; 2], "{}", gateway.log().errors());
    within(both).await.unwrap();
}

/// They are still open after their GOAWAY, for one request each, but take no others.
#[tokio::test]
async fn no_attempt_is_made_on_a_connection_that_was_lost() {
    const REQUESTS: usize = 8;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        let mut open = Vec::new();
        for others in [REQUESTS - 1, REQUESTS - 2] {
            let mut stream = accept(&listener, &[]).await;
            let last = next_request(&mut stream).await;
            for _ in 0..others {
                next_request(&mut stream).await;
            }
            // Without an error.
            let payload = [last.to_be_bytes(), [0; 4]].concat();
            stream.write_all(&frame(GOAWAY, 0, 0, &payload)).await.unwrap();
            open.push((stream, last));
        }
        for _ in 0..REQUESTS - 2 {
            answer_all(accept(&listener, &[]).await);
        }
        for (stream, last) in &mut open {
            stream.write_all(&frame(HEADERS, END, *last, OK)).await.unwrap();
        }
        open
    });
    let statuses = within(requests(&gateway, REQUESTS).await.join_all()).await;
    assert_eq!(statuses, [200; REQUESTS], "{}", gateway.log().errors());
    within(application).await.unwrap();
}

/// Waiting for the others, whose responses may take long, they would time out.
#[tokio::test]
async fn requests_beyond_what_an_application_permits_get_another_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let pending = requests(&gateway, 5).await;
    let mut open = Vec::new();
    for requests in [2, 2, 1] {
        // MAX_CONCURRENT_STREAMS.
        let mut stream = accept(&listener, &[0, 3, 0, 0, 0, 2]).await;
        let mut responses = Vec::new();
        for _ in 0..requests {
            responses.extend(frame(HEADERS, END, within(next_request(&mut stream)).await, OK));
        }
        open.push((stream, responses));
    }
    // None is answered before all have arrived.
    for (stream, responses) in &mut open {
        stream.write_all(responses).await.unwrap();
    }
    assert_eq!(within(pending.join_all()).await, [200; 5], "{}", gateway.log().errors());
}

/// It waits in the gateway, because the application permits none yet.
#[tokio::test]
async fn a_request_that_waits_for_its_turn_is_not_lost_with_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    // MAX_CONCURRENT_STREAMS.
    let first = tokio::spawn(async move {
        let mut first = accept(&listener, &[0, 3, 0, 0, 0, 0]).await;
        // The second SETTINGS of the gateway says that it knows it.
        for _ in 0..2 {
            while next_frame(&mut first).await.0 != SETTINGS {}
        }
        (listener, first)
    });
    // They arrive at the same worker.
    let client = h2::Connection::open(&gateway).await;
    let send = |path: &str| {
        let (mut client, request) = (client.clone(), h2::get(&format!("http://app.test{path}")));
        tokio::spawn(async move { client.send(request).await.status })
    };
    let one = send("/1");
    let (listener, first) = within(first).await.unwrap();
    let two = send("/2");
    // Once a later one has its response, the second one waits.
    for _ in 0..2 {
        assert_eq!(within(send("/echo")).await.unwrap(), 200);
    }
    drop(first);
    answer_all(accept(&listener, &[]).await);
    let statuses = (within(one).await.unwrap(), within(two).await.unwrap());
    assert_eq!(statuses, (200, 200), "{}", gateway.log().errors());
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
        next_request(&mut refusing).await;
        // Without an error, and no stream is the last one.
        refusing.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
        let mut own = accept(&listener, &[]).await;
        let request = next_request(&mut own).await;
        own.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        (refusing, own)
    });
    let response = gateway.request("POST", "/").send().await;
    assert_eq!(response.status, 200, "{}", gateway.log().errors());
    within(application).await.unwrap();
}

/// It may be dead although new ones work.
#[tokio::test]
async fn a_connection_that_is_silent_until_a_timeout_gets_no_more_requests() {
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
        dead
    });
    for (method, status) in [("GET", 200), ("POST", 504), ("POST", 200), ("GET", 200)] {
        assert_eq!(send(method).await, status, "{method}");
    }
    within(application).await.unwrap();
}

/// Clients may give up before any timeout of the gateway.
#[tokio::test]
async fn a_connection_that_is_silent_while_clients_give_up_gets_no_more_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config_for(&listener)
        .replace("http2 = true", "http2 = true, response_timeout = '1s', total_timeout = '600ms'");
    let gateway = Gateway::start(&config).await;
    let mut client = h2::Connection::open(&gateway).await;
    let application = tokio::spawn(async move {
        let mut dead = accept(&listener, &[]).await;
        next_request(&mut dead).await;
        answer_all(accept(&listener, &[]).await);
        dead
    });
    let mut unanswered = 0;
    while client.send(h2::get("http://app.test/")).await.status == 504 {
        unanswered += 1;
    }
    // Two together have waited for long enough, unless SETTINGS arrived after the first.
    assert!((2..=3).contains(&unanswered), "{unanswered}");
    within(application).await.unwrap();
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
        let mut stream = accept(&listener, &[]).await;
        // 204, and 200 to HEAD.
        for head in [&[0x89][..], OK] {
            let request = next_request(&mut stream).await;
            stream.write_all(&frame(HEADERS, END_HEADERS, request, head)).await.unwrap();
            stream.write_all(&frame(DATA, 1, request, b"body")).await.unwrap();
        }
        stream
    });
    for (method, status) in [("GET", 204), ("HEAD", 200)] {
        let request = http::Request::builder().method(method).uri("http://app.test/");
        let response = client.send(request.body(Full::default()).unwrap()).await;
        assert_eq!((response.status, &*response.body), (status, &b""[..]), "{method}");
    }
    within(application).await.unwrap();
}

#[tokio::test]
async fn a_slow_response_does_not_end_the_use_of_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&impatient(&listener)).await;
    let client = h2::Connection::open(&gateway).await;
    let send = || {
        let mut client = client.clone();
        tokio::spawn(async move { client.send(h2::get("http://app.test/")).await.status })
    };
    let slow = send();
    let mut only = accept(&listener, &[]).await;
    next_request(&mut only).await;
    let fast = send();
    let request = next_request(&mut only).await;
    only.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
    assert_eq!((within(fast).await.unwrap(), within(slow).await.unwrap()), (200, 504));
    answer_all(only);
    assert_eq!(within(send()).await.unwrap(), 200);
}

#[tokio::test]
async fn an_application_may_permit_fewer_requests_later() {
    for permitted in [0, 1] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::start(&config_for(&listener)).await;
        let client = h2::Connection::open(&gateway).await;
        let send = || {
            let mut client = client.clone();
            tokio::spawn(async move { client.send(h2::get("http://app.test/")).await.status })
        };
        let one = send();
        let mut first = accept(&listener, &[]).await;
        let request = next_request(&mut first).await;
        first.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        assert_eq!(within(one).await.unwrap(), 200);
        let two = send();
        let request = next_request(&mut first).await;
        let fewer = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, permitted]);
        let answer = [fewer, frame(HEADERS, END, request, OK)].concat();
        first.write_all(&answer).await.unwrap();
        assert_eq!(within(two).await.unwrap(), 200);
        for _ in 0..permitted {
            send();
            next_request(&mut first).await;
        }
        let last = send();
        answer_all(accept(&listener, &[]).await);
        assert_eq!(within(last).await.unwrap(), 200, "{permitted} permitted");
    }
}

#[tokio::test]
async fn the_log_says_if_an_application_permits_no_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&impatient(&listener)).await;
    let application = tokio::spawn(async move { accept(&listener, &[0, 3, 0, 0, 0, 0]).await });
    gateway.get("/").send().await.is(504, "upstream_timeout");
    let output = gateway.log().until("the cause is named", |line| line["cause"].is_string()).await;
    let cause = output["cause"].as_str().unwrap();
    assert!(cause.contains("MAX_CONCURRENT_STREAMS is 0"), "{cause}");
    within(application).await.unwrap();
}

/// What the client still sends reaches no application, and holds up no other request.
#[tokio::test]
async fn an_upload_ends_with_its_response() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&config_for(&listener)).await;
    let application = tokio::spawn(async move {
        // MAX_CONCURRENT_STREAMS.
        let mut stream = accept(&listener, &[0, 3, 0, 0, 0, 1]).await;
        let upload = next_request(&mut stream).await;
        while next_frame(&mut stream).await != (DATA, upload) {}
        stream.write_all(&frame(HEADERS, END, upload, OK)).await.unwrap();
        answer_all(accept(&listener, &[]).await);
        while next_frame(&mut stream).await != (RST_STREAM, upload) {}
    });
    let mut client = begin_upload(&gateway, 1000).await;
    assert_eq!(client.response().await.status, 200);
    assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
    within(application).await.unwrap();
}

/// The application permits one request, and does not take the body of the first: none of it, or its
/// first byte. It gets no other one on that connection, which ends.
#[tokio::test]
async fn an_upload_that_is_not_taken_keeps_its_place() {
    for (window, length) in [(0, 1000), (1, 2)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::start(&config_for(&listener)).await;
        let application = tokio::spawn(async move {
            // MAX_CONCURRENT_STREAMS and INITIAL_WINDOW_SIZE.
            let settings = [0, 3, 0, 0, 0, 1, 0, 4, 0, 0, 0, window];
            let mut full = accept(&listener, &settings).await;
            let upload = next_request(&mut full).await;
            full.write_all(&frame(HEADERS, END, upload, OK)).await.unwrap();
            answer_all(accept(&listener, &[]).await);
            while full.read(&mut [0; 1024]).await.unwrap() > 0 {}
        });
        let mut client = begin_upload(&gateway, length).await;
        assert_eq!(client.response().await.status, 200);
        assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
        within(application).await.unwrap();
    }
}

/// The window of a connection serves all of its bodies, and one that is not read can use up all of it,
/// or nearly all. The others do not wait for it.
#[tokio::test]
async fn a_body_that_is_not_read_holds_up_no_other_request() {
    for (length, next) in [(200_000, 6), (40_000, 40_000)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = config_for(&listener);
        let gateway = Gateway::start(&format!("server.workers = 1\n{config}")).await;
        let (read, is_read) = tokio::sync::oneshot::channel();
        let application = tokio::spawn(async move {
            // INITIAL_WINDOW_SIZE is 1 MiB.
            let mut full = accept(&listener, &[0, 4, 0, 16, 0, 0]).await;
            let upload = next_request(&mut full).await;
            let fits = length.min(65_535);
            next_bytes(&mut full, upload, fits).await;
            read.send(()).unwrap();
            let mut other = accept(&listener, &[0, 4, 0, 16, 0, 0]).await;
            let request = next_request(&mut other).await;
            next_bytes(&mut other, request, next).await;
            other.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
            // WINDOW_UPDATE: 1 MiB.
            full.write_all(&frame(WINDOW_UPDATE, 0, 0, &[0, 16, 0, 0])).await.unwrap();
            next_bytes(&mut full, upload, length - fits).await;
            full.write_all(&frame(HEADERS, END, upload, OK)).await.unwrap();
            // It is used again.
            let request = next_request(&mut full).await;
            full.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
        });
        let mut client = begin_upload(&gateway, length).await;
        client.write(vec![b'c'; length - 2]).await;
        within(is_read).await.unwrap();
        let form = gateway.request("POST", "/").body("a".repeat(next)).send().await;
        assert_eq!(form.status, 200, "{}", gateway.log().errors());
        assert_eq!(client.response().await.status, 200);
        let long = gateway.request("POST", "/").body("a".repeat(20_000)).send().await;
        assert_eq!(long.status, 200);
        within(application).await.unwrap();
    }
}

/// Requests without a body share a connection, and so do calls of gRPC. Each other body has one, which
/// is used again.
#[tokio::test]
async fn each_body_has_a_connection_and_calls_share_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config_for(&listener);
    let gateway = Gateway::start(&format!("server.workers = 1\n{config}")).await;
    let (next, mut is_next) = tokio::sync::mpsc::channel(4);
    let application = tokio::spawn(async move {
        let mut connections = Vec::new();
        for requests in [2, 2, 1, 1] {
            next.send(()).await.unwrap();
            let mut stream = accept(&listener, &[]).await;
            let mut taken = Vec::new();
            for _ in 0..requests {
                taken.push(next_request(&mut stream).await);
            }
            connections.push((stream, taken));
        }
        for (mut stream, taken) in connections {
            for request in taken {
                stream.write_all(&frame(HEADERS, END, request, OK)).await.unwrap();
            }
            answer_all(stream);
        }
        listener
    });
    let request = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
    let call = "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n";
    let form = "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\na form";
    let mut clients = Vec::new();
    for heads in [&[request; 2][..], &[call; 2], &[form], &[form]] {
        within(is_next.recv()).await.unwrap();
        for head in heads {
            let mut client = gateway.connect().await;
            client.write(head).await;
            clients.push(client);
        }
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    let listener = within(application).await.unwrap();
    assert_eq!(gateway.request("POST", "/").body("a form").send().await.status, 200);
    drop(listener);
}

/// The application accepts a connection for each upload, and then no more. A request without a body
/// does not wait for one.
#[tokio::test]
async fn long_uploads_keep_no_other_request_from_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config_for(&listener);
    let gateway = Gateway::start(&format!("server.workers = 1\n{config}")).await;
    let application = tokio::spawn(async move {
        answer_all(accept(&listener, &[]).await);
        let mut uploads = Vec::new();
        for _ in 0..3 {
            let mut stream = accept(&listener, &[]).await;
            next_request(&mut stream).await;
            uploads.push(stream);
        }
        uploads
    });
    assert_eq!(gateway.get("/").send().await.status, 200);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = begin_upload(&gateway, 200_000).await;
        client.write(vec![b'c'; 100_000]).await;
        clients.push(client);
    }
    let _uploads = within(application).await.unwrap();
    assert_eq!(gateway.get("/").send().await.status, 200);
}

/// The application permits one request, and neither responds to the first nor takes its body.
#[tokio::test]
async fn an_upload_that_is_given_up_keeps_its_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(&impatient(&listener)).await;
    let application = tokio::spawn(async move {
        // MAX_CONCURRENT_STREAMS and INITIAL_WINDOW_SIZE.
        let mut full = accept(&listener, &[0, 3, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0]).await;
        next_request(&mut full).await;
        answer_all(accept(&listener, &[]).await);
        while full.read(&mut [0; 1024]).await.unwrap() > 0 {}
    });
    let mut client = begin_upload(&gateway, 2).await;
    client.response().await.is(504, "upstream_timeout");
    assert_eq!(gateway.get("/").send().await.status, 200, "{}", gateway.log().errors());
    within(application).await.unwrap();
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
        "upstream.app = {{ url = 'http://{address}', http2 = true }}\nupstream.echo.builtin = 'echo'\nroute = [\
         {{ path = '/*', upstream = 'app', access = 'public' }}, {{ path = '/echo', upstream = 'echo', access = 'public' }}]"
    )
}

/// The statuses of requests that arrive at the same worker.
async fn requests(gateway: &Gateway, count: usize) -> JoinSet<u16> {
    let client = h2::Connection::open(gateway).await;
    let request = |_| {
        let mut client = client.clone();
        async move { client.send(h2::get("http://app.test/")).await.status }
    };
    (0..count).map(request).collect()
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
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// An error code.
const REFUSED_STREAM: u32 = 7;

/// `:status: 200`, in the static table of HPACK.
const OK: &[u8] = &[0x88];

/// The end of the head.
const END_HEADERS: u8 = 4;

/// The end of the head, and of the stream.
const END: u8 = 5;
