//! The thread that writes log lines. Other threads append to a bounded buffer in memory and
//! continue.
//!
//! If the log's reader is slow or gone, lines are dropped and counted: a gateway that stops
//! responding because nobody reads its log would be worse. The buffer is swapped out as a whole, so
//! that a batch is one `write`. The thread polls for the next batch, so that a busy gateway does
//! not pay for a wake-up with every line.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Accepts log lines without blocking. Clones feed the same thread.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Shared>);

/// Keeps the thread running. Dropping it writes the remaining lines, for up to 5 seconds if the
/// target stalls. Later lines are dropped and counted.
#[derive(Debug)]
#[must_use = "dropping the guard ends the log"]
pub struct LogGuard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to write, or the guard was dropped.
    work: Condvar,
    /// The buffer was emptied.
    room: Condvar,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    lines: u64,
    /// The thread is waiting for `work`; only then does a line have to wake it.
    idle: bool,
    /// A thread waited in vain for room, and there has been none since.
    stalled: bool,
    /// No more lines are accepted: the guard was dropped, or the target is permanently gone.
    closed: bool,
}

impl LogWriter {
    /// Starts the thread that writes to `target`. Fails if the system cannot create a thread.
    pub fn start(target: impl Write + Send + 'static) -> std::io::Result<(Self, LogGuard)> {
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("log".into())
            .spawn(move || served.write_until_closed(target))?;
        Ok((Self(Arc::clone(&shared)), LogGuard { shared, thread: Some(thread) }))
    }

    /// Queues one line, including its line feed. Returns false if there was no room; the line is
    /// then dropped and counted.
    pub fn try_line(&self, line: &[u8]) -> bool {
        self.0.append(self.0.lock(), line)
    }

    /// Like [`LogWriter::try_line`], but waits up to `patience` for room, for lines that should not
    /// be lost. This blocks the thread, so one wait in vain is enough: nobody waits again until the
    /// buffer has been emptied.
    pub fn line_within(&self, line: &[u8], patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut queue = self.0.lock();
        while !queue.closed && !queue.stalled && !queue.has_room(line) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                queue.stalled = true;
                break;
            }
            queue = self.0.room.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.0.append(queue, line)
    }

    /// The number of lines dropped so far, as a live counter.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.dropped)
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        let deadline = Instant::now() + LAST_FLUSH;
        if let Some(thread) = self.thread.take() {
            // A join has no timeout, and a process must be able to exit while nobody reads its
            // output.
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(LINGER / 4);
            }
        }
    }
}

impl Queue {
    /// A line that is longer than the buffer fits if the buffer is empty.
    fn has_room(&self, line: &[u8]) -> bool {
        self.bytes.is_empty()
            || (self.lines < MAX_QUEUED_LINES && self.bytes.len() + line.len() <= MAX_QUEUED_BYTES)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, mut queue: MutexGuard<'_, Queue>, line: &[u8]) -> bool {
        if queue.closed || !queue.has_room(line) {
            drop(queue);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        queue.bytes.extend_from_slice(line);
        queue.lines += 1;
        let wake = std::mem::take(&mut queue.idle);
        drop(queue);
        if wake {
            self.work.notify_one();
        }
        true
    }

    fn write_until_closed(&self, mut target: impl Write) {
        let mut batch = Vec::new();
        let mut looks = 0;
        loop {
            let Some(lines) = self.next_batch(&mut batch, looks >= POLLS_BEFORE_SLEEP) else {
                looks += 1;
                thread::sleep(LINGER);
                continue;
            };
            looks = 0;
            if batch.is_empty() {
                return;
            }
            if let Err(error) = write_batch(&mut target, &batch) {
                self.dropped.fetch_add(lines, Ordering::Relaxed);
                // A pipe without a reader never gets one again; a full disk may get room.
                if error.kind() == ErrorKind::BrokenPipe {
                    self.give_up();
                    return;
                }
            }
            let linger = if batch.len() > LARGE_BATCH { LINGER / 5 } else { LINGER };
            batch.clear();
            batch.shrink_to(RETAINED_CAPACITY);
            thread::sleep(linger);
        }
    }

    /// Swaps the queued lines into `batch`, which stays empty if the log was closed and nothing is
    /// left. Returns `None` if there are no lines yet and `waits` is false.
    fn next_batch(&self, batch: &mut Vec<u8>, waits: bool) -> Option<u64> {
        let mut queue = self.lock();
        while queue.bytes.is_empty() && !queue.closed {
            if !waits {
                return None;
            }
            queue.idle = true;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.idle = false;
        queue.stalled = false;
        std::mem::swap(batch, &mut queue.bytes);
        let lines = std::mem::take(&mut queue.lines);
        drop(queue);
        self.room.notify_all();
        Some(lines)
    }

    fn give_up(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        self.dropped.fetch_add(std::mem::take(&mut queue.lines), Ordering::Relaxed);
        queue.bytes = Vec::new();
        drop(queue);
        self.room.notify_all();
    }
}

/// Like `write_all`, for a target that may be a pipe that another process has set to non-blocking.
fn write_batch(target: &mut impl Write, mut batch: &[u8]) -> std::io::Result<()> {
    while !batch.is_empty() {
        match target.write(batch) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => batch = &batch[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    target.flush()
}

/// The maximum number of queued lines and bytes; the same number of bytes may be being written.
const MAX_QUEUED_LINES: u64 = 65_536;
const MAX_QUEUED_BYTES: usize = 8 << 20;
/// The memory that a buffer keeps after a burst.
const RETAINED_CAPACITY: usize = 1 << 20;
/// How long lines are collected after a batch. It bounds both the delay of a line and the number of
/// wake-ups.
const LINGER: Duration = Duration::from_millis(10);
/// After a batch larger than this, lines are collected for a fifth of the time: queued lines should
/// not evict the data of requests from the CPU's inner caches.
const LARGE_BATCH: usize = 64 << 10;
/// How often the thread polls before it waits to be woken, which takes a second in total. The
/// thread that wakes it may have to make room for it on its own core, in the middle of a response.
const POLLS_BEFORE_SLEEP: u32 = 100;
/// How long a full pipe is left alone.
const RETRY: Duration = Duration::from_millis(2);
const LAST_FLUSH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A target whose writes the test releases one by one, with an outcome of its choice.
    struct Gate {
        outcomes: mpsc::Receiver<Result<(), ErrorKind>>,
        written: Arc<Mutex<Vec<u8>>>,
        entered: mpsc::Sender<()>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.entered.send(());
            if let Ok(Err(kind)) = self.outcomes.recv() {
                return Err(kind.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    type Ends = (mpsc::Sender<Result<(), ErrorKind>>, Arc<Mutex<Vec<u8>>>, mpsc::Receiver<()>);

    fn gate() -> (Gate, Ends) {
        let (open, outcomes) = mpsc::channel();
        let (entered, entries) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        (Gate { outcomes, written: Arc::clone(&written), entered }, (open, written, entries))
    }

    #[test]
    fn accepted_lines_are_written_in_order_before_shutdown() {
        let (target, (open, written, _)) = gate();
        drop(open);
        let (log, guard) = LogWriter::start(target).unwrap();
        let expected: String = (0..50_000)
            .flat_map(|number| ["line ".to_owned(), number.to_string(), "\n".to_owned()])
            .collect();
        assert!(expected.split_inclusive('\n').all(|line| log.try_line(line.as_bytes())));
        drop(guard);
        assert!(*written.lock().unwrap() == expected.as_bytes());
        assert!(!log.try_line(b"too late\n"));
        assert_eq!(log.dropped().load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_stalled_reader_loses_lines_without_delay_or_memory_growth() {
        let (target, (open, written, entries)) = gate();
        let (log, guard) = LogWriter::start(target).unwrap();
        assert!(log.try_line(b"first\n"));
        entries.recv().unwrap();
        let line = [b'x'; 1_000];
        let taken = (0..20_000).filter(|_| log.try_line(&line)).count();
        assert_eq!(taken, MAX_QUEUED_BYTES / line.len());
        assert_eq!(log.dropped().load(Ordering::Relaxed), 20_000 - taken as u64);
        let patient = log.clone();
        let waiting =
            thread::spawn(move || patient.line_within(b"warning\n", Duration::from_mins(1)));
        drop(open);
        assert!(waiting.join().unwrap());
        drop(guard);
        assert!(written.lock().unwrap().ends_with(b"warning\n"));
    }

    #[test]
    fn a_stalled_log_delays_shutdown_only_once() {
        let (target, (open, written, entries)) = gate();
        let (log, guard) = LogWriter::start(target).unwrap();
        assert!(log.try_line(b"first\n"));
        entries.recv().unwrap();
        assert!(log.try_line(&vec![b'x'; MAX_QUEUED_BYTES]));
        assert!(!log.line_within(b"lost\n", Duration::from_millis(1)));
        assert!(!log.line_within(b"lost without a wait\n", Duration::from_hours(1)));
        open.send(Ok(())).unwrap();
        entries.recv().unwrap();
        assert!(log.line_within(b"last\n", Duration::from_hours(1)));
        drop(open);
        drop(guard);
        assert!(written.lock().unwrap().ends_with(b"last\n"));
    }

    #[test]
    fn the_number_of_lines_is_bounded_too() {
        let (target, (open, _, entries)) = gate();
        let (log, guard) = LogWriter::start(target).unwrap();
        assert!(log.try_line(b"\n"));
        entries.recv().unwrap();
        assert_eq!((0..100_000).filter(|_| log.try_line(b"\n")).count() as u64, MAX_QUEUED_LINES);
        drop(open);
        drop(guard);
    }

    #[test]
    fn a_closed_pipe_ends_only_the_log() {
        let (target, (open, _, _)) = gate();
        let (log, mut guard) = LogWriter::start(target).unwrap();
        assert!(log.try_line(b"lost\n"));
        open.send(Err(ErrorKind::BrokenPipe)).unwrap();
        guard.thread.take().unwrap().join().unwrap();
        assert!(!log.try_line(b"lost as well\n"));
        assert!(!log.line_within(b"this too, without waiting\n", Duration::from_hours(1)));
        assert_eq!(log.dropped().load(Ordering::Relaxed), 3);
    }

    #[test]
    fn other_write_failures_lose_only_one_batch() {
        let (target, (open, written, entries)) = gate();
        let (log, guard) = LogWriter::start(target).unwrap();
        assert!(log.try_line(b"lost\n"));
        entries.recv().unwrap();
        assert!(log.try_line(b"kept\n"));
        for outcome in [
            Err(ErrorKind::StorageFull),
            Err(ErrorKind::Interrupted),
            Err(ErrorKind::WouldBlock),
            Ok(()),
        ] {
            open.send(outcome).unwrap();
        }
        drop(guard);
        assert_eq!(*written.lock().unwrap(), b"kept\n");
        assert_eq!(log.dropped().load(Ordering::Relaxed), 1);
    }
}
