//! Runs libgit2's blocking calls on a bounded number of threads, each with a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::error::{GitError, Operation};

/// How many blocking git calls run at once. Each holds a thread, a few open packs and up to a few hundred MiB of
/// mapped memory; a stalled forge holds its thread until the socket timeout, so there must be room beside it.
pub const MAX_BLOCKING_CALLS: usize = 16;

/// Work goes on.
const RUNNING: u8 = 0;
/// The work is at the step that makes it visible; from here on it is waited for.
const CLAIMED: u8 = 1;
/// Nobody waits for the result any more.
const STOPPED: u8 = 2;

/// What a blocking call looks at to know whether it is still wanted.
pub(super) struct Ticket {
    state: AtomicU8,
    deadline: Instant,
    limit: Duration,
}

impl Ticket {
    /// Whether the call should stop at its next callback.
    pub(super) fn expired(&self) -> bool {
        self.state.load(Ordering::SeqCst) == STOPPED || Instant::now() >= self.deadline
    }

    /// Asks for the right to make the result visible. After `true` the caller waits for it; after `false` nobody
    /// does, and a second attempt may already be under way.
    pub(super) fn claim(&self) -> bool {
        self.state.compare_exchange(RUNNING, CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The error for a call that found itself late.
    pub(super) fn exceeded(&self, operation: Operation) -> GitError {
        GitError::DeadlineExceeded { operation, limit: self.limit }
    }

    /// A ticket for a call without a pool.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn until(limit: Duration) -> Self {
        Self { state: AtomicU8::new(RUNNING), deadline: Instant::now() + limit, limit }
    }

    fn stop(&self) -> bool {
        self.state.compare_exchange(RUNNING, STOPPED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// Stops the call when its future is dropped.
struct StopOnDrop(Arc<Ticket>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What happens to a call whose deadline has passed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// It may hang in a socket: leave it behind, it ends at the socket timeout and can no longer publish anything.
    Abandon,
    /// It only touches the disk: it ends at its next callback, and its directory must be quiet before a retry.
    Await,
}

/// The threads for git.
pub(super) struct Pool {
    permits: Arc<Semaphore>,
}

impl Pool {
    pub(super) fn new(calls: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(calls.clamp(1, MAX_BLOCKING_CALLS))) }
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        limit: Duration,
        late: Late,
        call: impl FnOnce(&Ticket) -> Result<T, GitError> + Send + 'static,
    ) -> Result<T, GitError> {
        let deadline = Instant::now() + limit;
        let exceeded = || GitError::DeadlineExceeded { operation, limit };
        let permit = tokio::time::timeout_at(deadline.into(), Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| exceeded())?
            .expect("the semaphore is never closed");
        let ticket = Arc::new(Ticket { state: AtomicU8::new(RUNNING), deadline, limit });
        let guard = StopOnDrop(Arc::clone(&ticket));
        let mut thread = tokio::task::spawn_blocking({
            let ticket = Arc::clone(&ticket);
            move || {
                let _permit = permit;
                call(&ticket)
            }
        });
        let ended = match tokio::time::timeout_at(deadline.into(), &mut thread).await {
            Ok(ended) => ended,
            Err(_) => {
                let stopped = ticket.stop();
                if stopped && late == Late::Abandon {
                    return Err(exceeded());
                }
                thread.await
            }
        };
        drop(guard);
        match ended {
            Ok(result) => result,
            Err(_) => Err(GitError::Git { operation, detail: "the git thread ended without an answer".to_owned() }),
        }
    }
}
