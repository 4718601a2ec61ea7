//! A real gateway on port 0, a recording upstream, a raw client, a token mint, an issuer that
//! publishes its keys, certificates, and third-party software.

pub mod accounts;
pub mod browser;
pub mod certificates;
pub mod client;
pub mod gateway;
pub mod h2;
pub mod issuer;
pub mod jar;
pub mod link;
pub mod mint;
pub mod peers;
pub mod pooler;
pub mod port;
pub mod postgres;
pub mod redis;
pub mod upstream;

use std::time::Duration;

pub use self::browser::Browser;
pub use self::client::{Connection, Request, Response};
pub use self::gateway::{Gateway, Setup};
pub use self::link::{Fate, Link};
pub use self::port::Port;
pub use self::redis::Redis;
pub use self::upstream::{Step, Upstream};

/// Waits for an event. A test that waits for longer fails.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("this should have happened by now")
}

/// Sends a signal, such as `STOP`, to a process that the test has started.
pub fn signal(process: u32, signal: &str) {
    let mut kill = std::process::Command::new("kill");
    let sent = kill.arg(format!("-{signal}")).arg(process.to_string()).status();
    assert!(sent.unwrap().success());
}

/// Long enough for a machine that runs all tests at once on two cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A field of a message: its name as it was written, and its value.
pub type Field = (String, String);

/// The fields of a head or of trailers, one per line.
fn fields(text: &str) -> Vec<Field> {
    text.split("\r\n")
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        })
        .collect()
}

/// Latin-1, so that every byte is one character and none is lost.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// The end of the first head in `bytes`, including its empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn values<'a>(fields: &'a [Field], name: &str) -> Vec<&'a str> {
    fields
        .iter()
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect()
}
