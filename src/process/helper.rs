//! Threads beside those that proxy, with a lower priority.

use std::io;

use crate::priority::lower_priority;

/// Runs something on a separate thread with a lower priority than the threads that proxy.
pub(super) async fn on_helper_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // The caller may be gone.
    start_helper_thread(move || drop(sender.send(work())))?;
    receiver.await.map_err(|_| io::Error::other("it panicked; the message is on standard error"))
}

pub(super) fn start_helper_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("reload".into());
    thread.spawn(move || {
        lower_priority("reloading");
        work();
    })?;
    Ok(())
}
