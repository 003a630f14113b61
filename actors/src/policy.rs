//! What follows a failed step: the supervisor's policy, pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use orchestra_events::task::command::Then;
use orchestra_events::{Failure, FailureCode};

/// The longest wait before a further attempt.
const MAX_ATTEMPT_WAIT: Duration = Duration::from_secs(15 * 60);

/// When failed steps are done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures in a row after which the attempt is given up.
    pub most_failures: u32,
    /// The first wait is drawn from zero to this; each further one from twice as much.
    pub first_wait: Duration,
    /// No wait is longer, unless the other side asked for it.
    pub longest_wait: Duration,
    /// What the other side may ask for at most; above, the attempt is given up.
    pub longest_asked: Duration,
    /// The wait before a further attempt is drawn from half of this to all of it, and doubles with each.
    pub attempt_wait: Duration,
    /// Whether an attempt that fails for the provider's or this server's fault is not billed.
    pub refund_failed: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            most_failures: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            longest_asked: Duration::from_secs(120),
            attempt_wait: Duration::from_secs(30),
            refund_failed: true,
        }
    }
}

impl RetryPolicy {
    /// Whether what an attempt cost that failed with this code is not billed.
    pub fn refunds(&self, code: FailureCode) -> bool {
        use FailureCode as Code;
        self.refund_failed
            && match code {
                // The provider's, or ours.
                Code::ModelRateLimited
                | Code::ModelOverloaded
                | Code::ModelUnavailable
                | Code::ModelTimeout
                | Code::ModelTruncated
                | Code::NetworkDropped
                | Code::SandboxStartFailed
                | Code::Internal => true,
                // The caller's: their budget, keys, limits, repository and wishes.
                Code::BudgetExceeded
                | Code::ModelAuth
                | Code::SandboxOutOfMemory
                | Code::SandboxDiskFull
                | Code::SandboxTimeout
                | Code::CloneFailed
                | Code::RepoNotFound
                | Code::GitAuth
                | Code::GitTokenScope
                | Code::BranchProtected
                | Code::BranchPolicy
                | Code::PushRejected
                | Code::PushConflict
                | Code::NothingToPush
                | Code::PullRequestFailed
                | Code::HarnessFailed
                | Code::SetupFailed
                | Code::Cancelled => false,
            }
    }

    /// When this attempt, counted from 1, begins after the one before it has failed, and how long that is in
    /// milliseconds. Half of the wait is certain: what outlasted all retries of one attempt takes a while to pass.
    pub fn before_attempt(&self, attempt: u32, now: Timestamp, random: u64) -> (Timestamp, u64) {
        let doubled = self.attempt_wait.saturating_mul(1 << attempt.saturating_sub(2).min(16)).min(MAX_ATTEMPT_WAIT);
        let half = doubled / 2;
        let jitter = u64::try_from((half.as_millis() * u128::from(random)) >> 64).unwrap_or(u64::MAX);
        let wait = half + Duration::from_millis(jitter);
        let until = SignedDuration::try_from(wait).ok().and_then(|wait| now.checked_add(wait).ok());
        (until.unwrap_or(Timestamp::MAX), u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
    }

    /// What follows this failure, which is the `failures`th in a row. `random` is uniform over all of `u64`: with
    /// full jitter, tasks that failed together do not come back together.
    pub fn after(
        &self,
        failure: &Failure,
        failures: u32,
        asked: Option<Duration>,
        now: Timestamp,
        random: u64,
    ) -> Then {
        let too_long = asked.is_some_and(|asked| asked > self.longest_asked);
        // Our own mistakes are not repeated as often: the same bug answers the same way.
        let most = if failure.code == FailureCode::Internal { 2 } else { self.most_failures };
        if !failure.retryable || failures >= most || too_long {
            return Then::GiveUp;
        }
        let doubled = self.first_wait.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest_wait);
        let jittered = u64::try_from((doubled.as_millis() * u128::from(random)) >> 64).unwrap_or(u64::MAX);
        let wait = Duration::from_millis(jittered).max(asked.unwrap_or_default());
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let until = SignedDuration::try_from(wait).ok().and_then(|wait| now.checked_add(wait).ok());
        Then::Retry { until: until.unwrap_or(Timestamp::MAX), wait_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(failure: &Failure, failures: u32, asked: Option<u64>, random: u64) -> Option<u64> {
        let asked = asked.map(Duration::from_millis);
        match RetryPolicy::default().after(failure, failures, asked, Timestamp::UNIX_EPOCH, random) {
            Then::Retry { wait_ms, until } => {
                assert_eq!(until.as_millisecond(), i64::try_from(wait_ms).expect("short"));
                Some(wait_ms)
            }
            Then::AskFor(_) | Then::GiveUp => None,
        }
    }

    #[test]
    fn a_further_attempt_waits_longer_than_a_step_and_twice_as_long_each_time() {
        let policy = RetryPolicy::default();
        let wait = |attempt, random| policy.before_attempt(attempt, Timestamp::UNIX_EPOCH, random).1;
        assert_eq!((wait(2, 0), wait(2, u64::MAX)), (15_000, 29_999));
        assert_eq!((wait(3, 0), wait(4, 0)), (30_000, 60_000));
        assert_eq!(wait(60, 0), 450_000);
    }

    #[test]
    fn waits_double_up_to_a_limit_and_then_end() {
        let dropped = Failure::new(FailureCode::NetworkDropped, "x");
        let half = 1 << 63;
        for (failures, asked, expected) in [
            (1, None, Some(250)),
            (2, None, Some(500)),
            (4, None, Some(2_000)),
            (5, None, None),
            (1, Some(3_000), Some(3_000)),
            (1, Some(120_001), None),
        ] {
            assert_eq!(wait(&dropped, failures, asked, half), expected, "{failures} {asked:?}");
        }
        assert_eq!(wait(&dropped.with_retryable(false), 1, None, half), None);
        let ours = Failure::new(FailureCode::Internal, "x");
        assert!(wait(&ours, 1, None, 0).is_some());
        assert_eq!(wait(&ours, 2, None, 0), None);
    }
}
