//! How many bytes may still move, and how many have: per connection and per task, in either direction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::record::Bytes;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Towards the sandbox.
    Received,
    /// Out of it.
    Sent,
}

impl Direction {
    const fn place(self) -> usize {
        match self {
            Self::Received => 0,
            Self::Sent => 1,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Sent => "sent",
        }
    }
}

/// A limit in either direction, and what has come of it.
#[derive(Debug)]
pub(super) struct Allowance {
    left: [AtomicU64; 2],
    moved: [AtomicU64; 2],
}

impl Allowance {
    /// So many bytes in each direction, of which these have moved before.
    pub fn new(limit: u64, spent: Bytes) -> Self {
        let left = |spent: u64| AtomicU64::new(limit.saturating_sub(spent));
        Self { left: [left(spent.received), left(spent.sent)], moved: [AtomicU64::new(0), AtomicU64::new(0)] }
    }

    /// Takes up to `want` bytes of what is left.
    fn take(&self, direction: Direction, want: u64) -> u64 {
        let left = &self.left[direction.place()];
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(want)));
        before.unwrap_or_else(|left| left).min(want)
    }

    fn settle(&self, direction: Direction, taken: u64, used: u64) {
        self.left[direction.place()].fetch_add(taken - used, Ordering::Relaxed);
        self.moved[direction.place()].fetch_add(used, Ordering::Relaxed);
    }

    /// What has moved.
    pub fn moved(&self) -> Bytes {
        Bytes { received: self.moved[0].load(Ordering::Relaxed), sent: self.moved[1].load(Ordering::Relaxed) }
    }

    /// Whether nothing is left in one direction: no new connection makes sense then.
    pub fn is_spent(&self) -> bool {
        self.left.iter().any(|left| left.load(Ordering::Relaxed) == 0)
    }
}

/// One connection's bytes, and when the last of them moved.
#[derive(Debug)]
pub(super) struct Account {
    task: Arc<Allowance>,
    own: Allowance,
    opened: Instant,
    /// Milliseconds after `opened`.
    last: AtomicU64,
}

impl Account {
    pub fn new(task: Arc<Allowance>, limit: u64) -> Self {
        let own = Allowance::new(limit, Bytes::default());
        Self { task, own, opened: Instant::now(), last: AtomicU64::new(0) }
    }

    /// So many of these bytes may be moved now. What is not used is given back with [`settle`](Self::settle), at once:
    /// nobody waits with another's share in hand.
    pub fn take(&self, direction: Direction, want: u64) -> u64 {
        let own = self.own.take(direction, want);
        let both = self.task.take(direction, own);
        self.own.left[direction.place()].fetch_add(own - both, Ordering::Relaxed);
        both
    }

    /// Of what was taken, so much has moved.
    pub fn settle(&self, direction: Direction, taken: u64, used: u64) {
        self.own.settle(direction, taken, used);
        self.task.settle(direction, taken, used);
        if used > 0 {
            metrics::counter!("orchestra_egress_bytes_total", "direction" => direction.as_str()).increment(used);
            self.touch();
        }
    }

    /// Something moved.
    pub fn touch(&self) {
        let after = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(after, Ordering::Relaxed);
    }

    /// When something moved last.
    pub fn last(&self) -> Instant {
        self.opened + std::time::Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    pub fn moved(&self) -> Bytes {
        self.own.moved()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_given_out_once_and_what_is_not_used_comes_back() {
        let task = Arc::new(Allowance::new(100, Bytes { received: 0, sent: 90 }));
        let (first, second) = (Account::new(Arc::clone(&task), 60), Account::new(Arc::clone(&task), 60));
        assert_eq!(first.take(Direction::Received, 80), 60);
        first.settle(Direction::Received, 60, 50);
        assert_eq!(second.take(Direction::Received, 80), 50);
        assert_eq!(first.take(Direction::Received, 80), 0);
        second.settle(Direction::Received, 50, 0);
        assert_eq!(first.take(Direction::Received, 80), 10);
        assert_eq!(first.take(Direction::Sent, 80), 10);
        assert!(task.is_spent());
        assert_eq!(task.moved(), Bytes { received: 50, sent: 0 });
        assert_eq!(first.moved(), Bytes { received: 50, sent: 0 });
    }
}
