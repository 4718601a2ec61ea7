//! A client's socket, with the timeouts that hyper lacks: one from the first byte of a request
//! head, one between requests, and one for a client that does not read.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Instant, Sleep};

use super::frames::Frames;
use super::per_client::ClientSlot;
use crate::coalesce::{MAX_READ, poll_read_some};
use crate::gateway::exchange::{Look, RecordedBody};

/// The state of a connection, written by the service and read by the socket.
#[derive(Debug)]
pub(super) struct ConnectionState {
    begun: Instant,
    /// The number of active exchanges.
    active: AtomicU64,
    /// Milliseconds from `begun` to the end of the last exchange.
    idle_since: AtomicU64,
    /// Milliseconds from `begun` to the last byte that the client's socket took.
    last_write: AtomicU64,
    /// Whether the last request has a body that may not have been read to its end.
    has_body: AtomicBool,
    /// Whether the process is about to end, so that no client may take long.
    lingers_briefly: AtomicBool,
    /// Whether the client's socket currently accepts no bytes.
    is_full: AtomicBool,
    /// On HTTP/1.1, the response that is being sent, if more than one frame of it is.
    response: Mutex<Option<RecordedBody>>,
    /// Whether the socket has become a tunnel.
    is_tunnel: AtomicBool,
    /// Kept here because the socket keeps this `ConnectionState` even after it has become a tunnel.
    _slot: Option<ClientSlot>,
}

impl ConnectionState {
    /// The state of a connection that was just accepted.
    pub(super) fn new(slot: Option<ClientSlot>) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            active: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            has_body: AtomicBool::new(false),
            lingers_briefly: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            response: Mutex::default(),
            is_tunnel: AtomicBool::new(false),
            _slot: slot,
        })
    }

    /// Notes that the socket has become a tunnel, whose silence no longer concerns this connection.
    pub(super) fn detach(&self) {
        self.is_tunnel.store(true, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins an exchange, or something else that keeps the connection busy, until the returned value
    /// is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Busy {
        self.active.fetch_add(1, Ordering::Relaxed);
        Busy { state: Arc::clone(self), ended: None }
    }

    /// Notes whether the request that has arrived has a body. `false` also means that its body was
    /// read to the end.
    pub(super) fn set_has_body(&self, has_body: bool) {
        self.has_body.store(has_body, Ordering::Relaxed);
    }

    /// Gives the client only a short time from now on.
    pub(super) fn shorten_linger(&self) {
        self.lingers_briefly.store(true, Ordering::Relaxed);
    }

    /// Whether bytes are waiting for the client to read them. If so, the body is not polled, since
    /// hyper would collect it in memory.
    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// The response that is being sent, if more than one frame of it is.
    fn response(&self) -> MutexGuard<'_, Option<RecordedBody>> {
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the response that the client does not read. The calling task is woken when
    /// the gateway ends it.
    fn look_at_unread(&self, cx: &Context<'_>) -> Look {
        let mut response = self.response();
        let Some(response) = &mut *response else { return Look::Told };
        let look = response.look();
        if response.poll_ended(cx).is_ready() { Look::Over } else { look }
    }

    /// When the client's socket last took a byte.
    pub(super) fn last_write(&self) -> Instant {
        self.begun + Duration::from_millis(self.last_write.load(Ordering::Relaxed))
    }

    fn note_write(&self) {
        self.last_write.store(milliseconds(self.begun.elapsed()), Ordering::Relaxed);
    }

    fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    /// Since when no exchange has been active; `None` while one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (!self.is_active())
            .then(|| self.begun + Duration::from_millis(self.idle_since.load(Ordering::Relaxed)))
    }
}

/// What keeps a connection busy, usually an active exchange. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Busy {
    state: Arc<ConnectionState>,
    ended: Option<Instant>,
}

impl Busy {
    /// Ends the exchange of this response, and is about to be dropped: the clock is read only once.
    pub(super) fn end_with(&mut self, response: &mut RecordedBody) {
        if response.has_read_request() {
            self.request_read();
        }
        self.ended = Some(response.end().into());
    }

    /// Whether bytes are waiting for the client to read them.
    pub(super) fn is_full(&self) -> bool {
        self.state.is_full()
    }

    /// Where the response is that more than one frame is sent of: the socket looks at it while the
    /// client does not read.
    pub(super) fn response(&self) -> MutexGuard<'_, Option<RecordedBody>> {
        self.state.response()
    }

    /// Notes that the request was read to its end.
    pub(super) fn request_read(&self) {
        self.state.set_has_body(false);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let ended = self.ended.unwrap_or_else(Instant::now);
        self.state.idle_since.store(
            milliseconds(ended.saturating_duration_since(self.state.begun)),
            Ordering::Relaxed,
        );
        self.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From the first byte of a request head to the last.
    pub(super) header: Duration,
    /// Between requests, and while a client does not read its response.
    pub(super) idle: Duration,
}

/// A socket that gives up on a client that takes too long.
#[derive(Debug)]
pub(super) struct ClientStream<T> {
    io: Take<T>,
    /// Bytes that were read to detect the protocol.
    prefix: Bytes,
    state: Arc<ConnectionState>,
    timeouts: Timeouts,
    /// Whether bytes of a request head have arrived.
    head_begun: bool,
    /// When they arrived. The clock is read only if the head is incomplete; most heads arrive
    /// whole.
    head_since: Option<Instant>,
    stalled_since: Option<Instant>,
    /// When the client closed its side during an exchange, or last took a byte after that.
    half_closed: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// After our last response: until when to read what the client still sends, and how many more
    /// bytes of it.
    lingers: Option<(Instant, usize)>,
    /// For HTTP/2, where frames arrive at any time. `None` for HTTP/1.1, where a head is read only
    /// between exchanges.
    frames: Option<Box<Frames>>,
}

impl<T: AsyncRead> ClientStream<T> {
    /// Wraps a socket from which `prefix` was already read.
    pub(super) fn new(
        io: T,
        prefix: Bytes,
        state: Arc<ConnectionState>,
        timeouts: Timeouts,
        frames: Option<Box<Frames>>,
    ) -> Self {
        let head_begun = !prefix.is_empty();
        Self {
            io: io.take(MAX_READ),
            prefix,
            state,
            timeouts,
            head_begun,
            head_since: head_begun.then(Instant::now),
            stalled_since: None,
            half_closed: None,
            sleep: None,
            lingers: None,
            frames,
        }
    }

    fn forget_head(&mut self) {
        self.head_begun = false;
        self.head_since = None;
    }

    /// Ready once the client has taken too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(idle_since) = self.state.idle_since() else {
            self.forget_head();
            self.stay_awake(cx);
            return Poll::Pending;
        };
        if self.head_begun {
            self.head_since.get_or_insert_with(Instant::now);
        }
        let deadline = match self.head_since {
            Some(begun) => begun + self.timeouts.header,
            None => idle_since + self.timeouts.idle,
        };
        if self.is_woken_by(deadline) {
            return Poll::Pending;
        }
        self.poll_sleep(deadline, cx)
    }

    /// Wakes the task again while an exchange is active. hyper does not always read again after the
    /// exchange has ended, and the idle time that begins then must have a timer.
    fn stay_awake(&mut self, cx: &mut Context<'_>) {
        if self.sleep.as_ref().is_some_and(|sleep| !sleep.is_elapsed()) {
            return;
        }
        let idle = self.timeouts.idle.max(Duration::from_millis(1));
        while self.poll_sleep(Instant::now() + idle, cx).is_ready() {}
    }

    /// Whether the timer will wake the task at this time or earlier: it is polled whenever it is set,
    /// and polling it again would cost each request.
    fn is_woken_by(&self, deadline: Instant) -> bool {
        let timer = self.sleep.as_ref();
        timer.is_some_and(|sleep| sleep.deadline() <= deadline && !sleep.is_elapsed())
    }

    /// Pending while a client that has closed its side may still be reading. A client that is gone
    /// looks the same until something is written to it, so this has a limit.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_exchange = self.state.is_active() && !self.state.is_tunnel.load(Ordering::Relaxed);
        if !is_exchange || self.frames.is_some() {
            return Poll::Ready(());
        }
        let deadline = *self.half_closed.get_or_insert_with(Instant::now) + HALF_CLOSED;
        self.poll_sleep(deadline, cx)
    }

    /// Ready at this time.
    fn poll_sleep(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }

    /// Notes the result of a write. A client that takes nothing for too long ends the connection.
    fn after_write(
        &mut self,
        polled: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        // A response was sent or is being sent, so the request head is no longer awaited.
        self.forget_head();
        if let Poll::Ready(written) = polled {
            self.stalled_since = None;
            if let Some(half_closed) = &mut self.half_closed {
                *half_closed = Instant::now();
            }
            if self.frames.is_some() {
                self.state.note_write();
            }
            return Poll::Ready(written);
        }
        self.state.is_full.store(true, Ordering::Relaxed);
        self.poll_unread(cx).map(|error| Err(error.into()))
    }

    /// Whether the client may be about to send bytes that will not be read: the rest of a rejected
    /// body, or of a head. If a connection is idle, it was kept because its body had ended;
    /// otherwise it would have been closed at once.
    fn may_still_send(&self) -> bool {
        let has_just_ended = self.state.idle_since().is_none_or(|since| since.elapsed() < RECENT);
        self.frames.is_none()
            && (self.head_begun || (has_just_ended && self.state.has_body.load(Ordering::Relaxed)))
    }

    /// Ready once the client has not read for too long, or the gateway has ended the response that it
    /// does not read.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::ErrorKind> {
        let stalled = *self.stalled_since.get_or_insert_with(Instant::now) + self.timeouts.idle;
        loop {
            let deadline = match self.state.look_at_unread(cx) {
                Look::Over => return Poll::Ready(io::ErrorKind::ConnectionAborted),
                Look::Again => stalled.min(Instant::now() + LOOK_AGAIN),
                Look::Told => stalled,
            };
            ready!(self.poll_sleep(deadline, cx));
            if deadline == stalled {
                return Poll::Ready(io::ErrorKind::TimedOut);
            }
        }
    }
}

fn track_frames(frames: Option<&mut Frames>, read: &[u8]) -> io::Result<()> {
    frames.map_or(Ok(()), |frames| frames.track(read)).map_err(io::Error::other)
}

impl<T: AsyncRead + Unpin> AsyncRead for ClientStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.prefix.is_empty() {
            let length = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..length]);
            track_frames(this.frames.as_deref_mut(), &this.prefix[..length])?;
            this.prefix.advance(length);
            if this.prefix.is_empty() {
                // Otherwise its memory would be kept for as long as the connection.
                this.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if let Poll::Ready(read) = poll_read_some(&mut this.io, cx, buf) {
            this.head_begun |= buf.filled().len() > before && !this.state.is_active();
            track_frames(this.frames.as_deref_mut(), &buf.filled()[before..])?;
            if read.is_ok() && buf.filled().len() == before && buf.remaining() > 0 {
                ready!(this.poll_half_closed(cx));
            }
            return Poll::Ready(read);
        }
        match &mut this.frames {
            None => ready!(this.poll_deadline(cx)),
            Some(frames) => ready!(frames.poll_overdue(this.timeouts.header, cx)),
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(self.io.get_mut()).poll_write(cx, buf);
        self.after_write(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(self.io.get_mut()).poll_write_vectored(cx, bufs);
        self.after_write(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(self.io.get_mut()).poll_flush(cx);
        self.state.is_full.store(flushed.is_pending(), Ordering::Relaxed);
        if flushed.is_pending() {
            // TLS keeps what its socket does not take.
            return self.poll_unread(cx).map(|error| Err(error.into()));
        }
        self.stalled_since = None;
        flushed
    }

    /// Closes in stages (RFC 9112 §9.6). A socket that is closed with bytes unread, or that
    /// receives more after that, resets the connection, and the client discards what it has not
    /// read yet: our response.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingers.is_none() {
            ready!(Pin::new(this.io.get_mut()).poll_shutdown(cx))?;
            if !this.may_still_send() {
                return Poll::Ready(Ok(()));
            }
        }
        let (until, left) =
            this.lingers.get_or_insert_with(|| (Instant::now() + LINGER, MAX_DISCARDED));
        if this.state.lingers_briefly.load(Ordering::Relaxed) {
            *until = (*until).min(Instant::now() + LINGER_IN_SHUTDOWN);
        }
        let until = *until;
        let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        let mut discarded = [0; DISCARD_CHUNK];
        loop {
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(this.io.get_mut()).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() && *left > 0 => {
                    *left = left.saturating_sub(buf.filled().len());
                }
                // The client has also closed, or is gone, or does not stop sending.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// How often to look at a response that its client does not read.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How long a response may pause for a client that has closed its side of the connection.
const HALF_CLOSED: Duration = Duration::from_secs(3);

/// How long a client that was rejected in the middle of its upload may take to read the response
/// and stop sending.
pub(super) const LINGER: Duration = Duration::from_secs(10);

/// The same time limit while the process shuts down.
const LINGER_IN_SHUTDOWN: Duration = Duration::from_millis(500);

/// How long after an exchange its request body may still be in flight.
const RECENT: Duration = Duration::from_secs(1);

/// The maximum number of bytes to read and discard.
pub(super) const MAX_DISCARDED: usize = 64 * 1024 * 1024;

/// The number of bytes to read and discard at once.
const DISCARD_CHUNK: usize = 8 * 1024;
