//! Threads whose work can wait for those that proxy.

/// Lets the threads that proxy go before the calling one where there are not enough cores. `what`
/// it does is named where that fails.
///
/// On Linux each thread has a priority of its own; elsewhere nothing is changed.
pub fn lower_priority(what: &str) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::warn!(cause = %error, "the threads for {what} have the same priority as those that proxy");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = what;
}

/// Of 19: where every core is busy, a thread gets about a tenth of what one gets that proxies.
#[cfg(target_os = "linux")]
pub(crate) const NICENESS: i32 = 10;
