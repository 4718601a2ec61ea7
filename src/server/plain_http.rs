//! The answer to plain HTTP on a port that speaks TLS.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::gateway::refusal::explained_body;
use crate::reason::Reason;
use crate::telemetry::ids;

/// What the client is told.
const DETAIL: &str = "this port speaks TLS: use https://";

/// How long the client may take to read the response and close.
const LINGER: Duration = Duration::from_secs(1);

/// The maximum number of bytes that are read of such a connection.
const MOST: usize = 64 * 1024;

/// Whether the client starts with a method of HTTP. A TLS record starts with 22 (RFC 8446 §5.1).
pub(super) async fn is_spoken(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    Ok(first[0].is_ascii_uppercase())
}

/// Responds with a 400 that says what is wrong.
pub(super) async fn refuse(stream: &mut TcpStream) -> io::Result<()> {
    let body = explained_body(Reason::RequestInvalid, ids::request_id().as_str(), DETAIL);
    stream.write_all(&super::last_response("400 Bad Request", "", &body)).await?;
    stream.shutdown().await?;
    // A socket that is closed with bytes unread is reset, and the client loses the response.
    let (mut chunk, mut left) = ([0; 4096], MOST);
    let reading = async {
        while left > 0 {
            match stream.read(&mut chunk).await {
                Ok(read @ 1..) => left = left.saturating_sub(read),
                _ => break,
            }
        }
    };
    let _ = timeout(LINGER, reading).await;
    Ok(())
}
