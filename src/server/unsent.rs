//! Bounds how many bytes of its responses an HTTP/2 connection holds if the client does not read.
//!
//! hyper asks a body for more for as long as the windows of its stream are open, whether or not the
//! socket takes anything. So the bodies of a connection share a budget. It is renewed when hyper has
//! written what it could and the socket is not full: what is still unsent then waits for a window,
//! and must not hold up streams that have one. Bodies that find the budget used up take turns.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The budget in bytes, also for a single stream.
pub(super) const MAX_UNSENT: usize = 64 * 1024;

/// The number of bytes that a turn takes at most: those of one read from an upstream.
const MAX_TURN: usize = 32 * 1024;

/// The budget of one connection, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Unsent(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What was taken from the budget since it was renewed.
    bytes: usize,
    /// The tasks of the bodies that wait, in the order in which they came.
    waiting: BTreeMap<u64, Waker>,
    last_ticket: u64,
    /// The task of the connection.
    connection: Option<Waker>,
}

/// A body's place among those that wait; 0 if it does not wait.
#[derive(Debug, Default)]
pub(super) struct Ticket(u64);

impl Unsent {
    /// Polls the connection, and renews the budget if the socket is not full then.
    pub(super) fn poll<C: Future>(
        &self,
        connection: Pin<&mut C>,
        is_full: impl FnOnce() -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<C::Output> {
        let polled = connection.poll(cx);
        let mut state = self.lock();
        match &mut state.connection {
            Some(connection) => connection.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if !is_full() {
            state.bytes = 0;
            state.pass_on();
        }
        polled
    }

    /// Ready if it is this body's turn. [`taken`](Self::taken) must follow.
    pub(super) fn poll_turn(&self, ticket: &mut Ticket, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let is_first = state.waiting.first_key_value().is_none_or(|(&first, _)| first == ticket.0);
        if is_first && state.has_room() {
            if ticket.0 > 0 {
                state.waiting.remove(&ticket.0);
                ticket.0 = 0;
            }
            return Poll::Ready(());
        }
        if ticket.0 == 0 {
            state.last_ticket += 1;
            ticket.0 = state.last_ticket;
        }
        state.waiting.insert(ticket.0, cx.waker().clone());
        state.pass_on();
        Poll::Pending
    }

    /// Takes this many bytes from the budget. The next body has its turn if there are more.
    pub(super) fn taken(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes += bytes;
        state.pass_on();
    }

    /// Gives up the place of a body that is dropped.
    pub(super) fn leave(&self, ticket: &Ticket) {
        if ticket.0 > 0 {
            let mut state = self.lock();
            state.waiting.remove(&ticket.0);
            state.pass_on();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.bytes + MAX_TURN <= MAX_UNSENT
    }

    /// Wakes the first of those that wait, or the connection, which renews the budget. They could
    /// not know: neither hyper nor the socket has news for them.
    fn pass_on(&self) {
        let Some((_, first)) = self.waiting.first_key_value() else { return };
        if self.has_room() {
            first.wake_by_ref();
        } else if let Some(connection) = &self.connection {
            connection.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicBool);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Connection and bodies, each with its task.
    #[derive(Default)]
    struct Tasks {
        unsent: Unsent,
        connection: Arc<Task>,
        bodies: [(Arc<Task>, Ticket); 3],
    }

    impl Tasks {
        fn connection_writes(&self, is_full: bool) {
            let waker = Arc::clone(&self.connection).into();
            let mut cx = Context::from_waker(&waker);
            let polled = self.unsent.poll(pin!(pending::<()>()), || is_full, &mut cx);
            assert!(polled.is_pending());
        }

        fn has_turn(&mut self, body: usize) -> bool {
            let (task, ticket) = &mut self.bodies[body];
            let waker = Arc::clone(task).into();
            self.unsent.poll_turn(ticket, &Context::from_waker(&waker)).is_ready()
        }

        /// The bodies that were woken since the last call, and whether the connection was.
        fn woken(&self) -> (Vec<usize>, bool) {
            let woken = |task: &Task| task.0.swap(false, Ordering::Relaxed);
            let bodies = (0..3).filter(|&body| woken(&self.bodies[body].0)).collect();
            (bodies, woken(&self.connection))
        }
    }

    #[test]
    fn bodies_take_turns_once_the_budget_is_used_up() {
        let mut tasks = Tasks::default();
        tasks.connection_writes(false);
        assert!(tasks.has_turn(0));
        tasks.unsent.taken(MAX_UNSENT);
        for body in [1, 2, 0, 1] {
            assert!(!tasks.has_turn(body));
        }
        assert_eq!(tasks.woken(), (vec![], true));
        tasks.connection_writes(true);
        assert_eq!(tasks.woken(), (vec![], false), "the socket is full");
        tasks.connection_writes(false);
        assert_eq!(tasks.woken(), (vec![1], false));
        assert!(!tasks.has_turn(0) && !tasks.has_turn(2) && tasks.has_turn(1));
        // It has nothing to send yet.
        tasks.woken();
        tasks.unsent.taken(0);
        assert_eq!(tasks.woken(), (vec![2], false));
        assert!(tasks.has_turn(2));
        // Its window is closed, so hyper has nothing to write.
        tasks.unsent.taken(MAX_UNSENT);
        assert_eq!(tasks.woken(), (vec![], true));
        tasks.connection_writes(false);
        assert_eq!(tasks.woken(), (vec![0], false));
    }

    #[test]
    fn a_body_that_is_dropped_passes_its_turn_on() {
        let mut tasks = Tasks::default();
        tasks.connection_writes(false);
        tasks.unsent.taken(MAX_UNSENT);
        assert!(!tasks.has_turn(0) && !tasks.has_turn(1));
        tasks.connection_writes(false);
        tasks.woken();
        tasks.unsent.leave(&tasks.bodies[0].1);
        assert_eq!(tasks.woken(), (vec![1], false));
        assert!(tasks.has_turn(1));
    }
}
