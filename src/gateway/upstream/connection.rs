//! One HTTP/1.1 connection to an application.

use std::net::SocketAddr;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use super::ConnectError;
use super::failure::MAX_HEAD;
use crate::gateway::upload::{ClientBody, IdleTimer, Upload};
use crate::gateway::watched_socket::{SocketState, WatchedSocket};

/// A connection to the application. Dropping it closes the connection.
pub(super) struct Connection {
    pub(super) sender: SendRequest<ClientBody>,
    /// Whether a response has begun, and whether the socket is full.
    pub(super) socket: SocketState,
    /// The timer for the response head. It is kept across exchanges, since it need not be set anew
    /// for each.
    pub(super) timer: IdleTimer,
    /// The address that accepted it.
    pub(super) peer: Option<SocketAddr>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Begins HTTP/1.1 on an open stream. Boxed, since each request moves its connection a few times:
    /// from the idle ones to the response, and back.
    pub(super) async fn new(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<SocketAddr>,
    ) -> Result<Box<Self>, ConnectError> {
        let socket = SocketState::default();
        let io = WatchedSocket::new(io, socket.clone());
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_header_size(MAX_HEAD)
            .handshake(TokioIo::new(io))
            .await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the handle is kept with the sender and ends the task with it"
        )]
        let task = tokio::spawn(async move {
            // Errors go to the task that waits for the response.
            let _ = connection.with_upgrades().await;
        });
        Ok(Box::new(Self {
            sender,
            socket,
            timer: IdleTimer::default(),
            peer,
            _task: AbortOnDropHandle::new(task),
        }))
    }

    /// Prepares the connection for a request that is about to be sent. `keeps_head`: it may be sent
    /// again.
    pub(super) fn prepare(&self, upload: Option<&Upload>, keeps_head: bool) {
        self.socket.reset(keeps_head);
        if let Some(upload) = upload {
            upload.sent_over(&self.socket);
        }
    }
}
