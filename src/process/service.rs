//! Tells systemd what the process is doing (sd_notify(3)). Without systemd, nothing is sent.

use sd_notify::NotifyState;

/// It serves, also after a reload that was rejected.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// It reads its file again. [`ready`] follows.
pub(super) fn reloading() {
    // `Type=notify-reload` needs both in one message.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(cause = %error, "systemd was not told of the reload"),
    }
}

/// It drains.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(cause = %error, "systemd was not told");
    }
}
