//! Lowers the priority of threads that may wait for those that proxy.

/// Lowers the calling thread's priority below that of the threads that proxy, for when there are
/// not enough cores. `what` names its work in the warning if that fails.
///
/// On Linux, each thread has its own priority; on other systems this does nothing.
pub fn lower_priority(what: &str) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::warn!(cause = %error, "cannot lower the priority of the threads for {what}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = what;
}

/// Of 19. When every core is busy, such a thread gets about a tenth of the time of a thread that
/// proxies.
#[cfg(target_os = "linux")]
pub(crate) const NICENESS: i32 = 10;
