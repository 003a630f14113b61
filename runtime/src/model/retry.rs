//! Whether a failed call is made again, and after which wait: a pure function.

use std::time::Duration;

use super::fault::FaultClass;

/// A call is repeated at most so often.
pub const MAX_RETRIES: u32 = 4;
/// The longest wait that back-off alone asks for.
pub const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// The longest wait a provider may ask for; a longer one ends the call.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// The first wait is drawn from zero to this.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// What to do about a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Do it again after this wait.
    After {
        /// How long.
        wait: Duration,
    },
    /// Doing it again does not help, or not soon enough.
    GiveUp,
}

/// Decides about an attempt that failed. `attempt` counts from 1; `random` is any uniformly drawn number: full jitter
/// waits between nothing and twice as long each time, so that callers that failed together do not return together.
pub fn decide(class: FaultClass, attempt: u32, retry_after: Option<Duration>, random: u64) -> Retry {
    if !class.retryable() || attempt > MAX_RETRIES || retry_after.is_some_and(|asked| asked > MAX_RETRY_AFTER) {
        return Retry::GiveUp;
    }
    let doublings = attempt.saturating_sub(1).min(16);
    let ceiling = FIRST_BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    let nanos = (ceiling.as_nanos() * u128::from(random)) >> 64;
    // The product of 30 s and a fraction is far below 2^64 nanoseconds.
    let jittered = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    Retry::After { wait: jittered.max(retry_after.unwrap_or_default()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u64 = 1 << 63;

    #[test]
    fn the_wait_doubles_and_never_undercuts_the_provider() {
        let millis = Duration::from_millis;
        for (attempt, retry_after, random, expected) in [
            (1, None, 0, Some(0)),
            (1, None, HALF, Some(250)),
            (2, None, HALF, Some(500)),
            (3, None, HALF, Some(1_000)),
            (4, None, HALF, Some(2_000)),
            (5, None, HALF, None),
            (1, Some(millis(2_000)), HALF, Some(2_000)),
            (4, Some(millis(1)), HALF, Some(2_000)),
            (1, Some(millis(120_000)), HALF, Some(120_000)),
            (1, Some(millis(120_001)), HALF, None),
        ] {
            let expected = expected.map_or(Retry::GiveUp, |wait| Retry::After { wait: millis(wait) });
            assert_eq!(decide(FaultClass::RateLimited, attempt, retry_after, random), expected, "attempt {attempt}");
        }
        let Retry::After { wait } = decide(FaultClass::Overloaded, 4, None, u64::MAX) else { panic!("gave up") };
        assert!(wait < millis(4_000) && wait > millis(3_999));
    }

    #[test]
    fn only_what_may_pass_is_repeated() {
        for (class, again) in [
            (FaultClass::RateLimited, true),
            (FaultClass::SpendLimit, false),
            (FaultClass::Overloaded, true),
            (FaultClass::ServerError, true),
            (FaultClass::Connect, true),
            (FaultClass::Tls, false),
            (FaultClass::Reset, true),
            (FaultClass::FirstByteTimeout, true),
            (FaultClass::IdleTimeout, true),
            (FaultClass::Truncated, true),
            (FaultClass::Malformed, true),
            (FaultClass::Auth, false),
            (FaultClass::Rejected, false),
            (FaultClass::Cancelled, false),
            (FaultClass::Unsupported, false),
        ] {
            assert_eq!(decide(class, 1, None, 0) != Retry::GiveUp, again, "{class:?}");
        }
    }
}
