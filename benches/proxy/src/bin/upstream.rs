//! `upstream LISTEN`: the application behind every contestant. It answers each request with the
//! same few bytes, or with N bytes if the path contains `/bytes/N`. It keeps the head of the last
//! request whose path contains `/check/`, and returns it once for `GET /last`.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bench_proxy::HEAD_LIMIT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BODY: &[u8] = br#"{"id":42,"title":"Quarterly report","owner":"finance","open":true}"#;
const LARGEST: usize = 16 * 1024 * 1024;

type Last = Arc<Mutex<Vec<u8>>>;

fn main() -> io::Result<()> {
    let address = bench_proxy::Arguments::read()?.address(0)?;
    let last = Last::default();
    bench_proxy::on_one_thread(bench_proxy::serve(address, move |stream| {
        let last = Arc::clone(&last);
        async move {
            // A proxy may close its connection at any time.
            let _ = converse(stream, &last).await;
        }
    }))
}

async fn converse(mut stream: TcpStream, last: &Last) -> io::Result<()> {
    let mut input: Vec<u8> = Vec::with_capacity(16 * 1024);
    let mut output: Vec<u8> = Vec::with_capacity(16 * 1024);
    loop {
        while let Some(request) = Head::parse(&input)? {
            while input.len() < request.length + request.body {
                if stream.read_buf(&mut input).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            answer(&request, &input[..request.length], last, &mut output)?;
            input.drain(..request.length + request.body);
        }
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
        if input.len() > HEAD_LIMIT || stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

#[derive(Debug)]
enum Wanted {
    Fixed { record: bool },
    Bytes(usize),
    Last,
}

#[derive(Debug)]
struct Head {
    length: usize,
    body: usize,
    wanted: Wanted,
}

impl Head {
    fn parse(input: &[u8]) -> io::Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(input).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let mut body = 0;
        for field in request.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                body = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        Ok(Some(Self { length, body, wanted: Wanted::from(request.path.unwrap_or_default()) }))
    }
}

impl From<&str> for Wanted {
    fn from(target: &str) -> Self {
        if target == "/last" {
            return Self::Last;
        }
        match target.split_once("/bytes/") {
            Some((_, rest)) => {
                let digits = rest.split(|sign: char| !sign.is_ascii_digit()).next().unwrap_or_default();
                Self::Bytes(digits.parse().unwrap_or(0).min(LARGEST))
            }
            None => Self::Fixed { record: target.contains("/check/") },
        }
    }
}

fn answer(request: &Head, head: &[u8], last: &Last, output: &mut Vec<u8>) -> io::Result<()> {
    match request.wanted {
        Wanted::Fixed { record } => {
            if record {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = head.to_vec();
            }
            write_head(output, BODY.len())?;
            output.extend_from_slice(BODY);
        }
        Wanted::Bytes(length) => {
            write_head(output, length)?;
            output.resize(output.len() + length, b'x');
        }
        Wanted::Last => {
            let recorded = std::mem::take(&mut *last.lock().unwrap_or_else(PoisonError::into_inner));
            write_head(output, recorded.len())?;
            output.extend_from_slice(&recorded);
        }
    }
    Ok(())
}

fn write_head(output: &mut Vec<u8>, length: usize) -> io::Result<()> {
    write!(output, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: {length}\r\n\r\n")
}
