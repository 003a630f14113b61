//! Time and chance, which tests replace.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

/// The time, waiting, and randomness.
#[async_trait]
pub(super) trait Clock: Send + Sync {
    /// The time of day.
    fn now(&self) -> Timestamp;
    /// What has passed since some fixed instant.
    fn elapsed(&self) -> Duration;
    /// A uniformly drawn number.
    fn random(&self) -> u64;
    /// Waits before another attempt.
    async fn sleep(&self, wait: Duration);
}

/// The machine's.
pub(super) struct SystemClock {
    started: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn random(&self) -> u64 {
        // Without randomness the wait is the middle one: less well spread, but a wait.
        getrandom::u64().unwrap_or(u64::MAX / 2)
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}
