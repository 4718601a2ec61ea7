//! The background tasks that a gateway cannot do without.

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Background tasks. They end when this is dropped.
pub(super) struct BackgroundTasks {
    runtime: Handle,
    running: JoinSet<()>,
}

impl BackgroundTasks {
    /// None yet. They will run on this runtime.
    pub(super) fn of(runtime: &Handle) -> Self {
        Self { runtime: runtime.clone(), running: JoinSet::new() }
    }

    pub(super) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Starts a task, which may return when it has nothing to do.
    pub(super) fn start(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn_on(task, &self.runtime);
    }

    /// Waits until a task panics. Its message is then on standard error.
    pub(super) async fn panicked(&mut self) {
        while let Some(ended) = self.running.join_next().await {
            if ended.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_from_a_task_that_returns() {
        let mut tasks = BackgroundTasks::of(&Handle::current());
        tasks.start(async {});
        tasks.start(std::future::pending());
        for _ in 0..10 {
            tokio::select! {
                biased;
                () = tasks.panicked() => panic!("no task panicked"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(tasks.running.len(), 1, "one task returned");
        tasks.start(async { panic!("on purpose") });
        tasks.panicked().await;
    }
}
