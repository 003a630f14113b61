//! When a delivery is tried again: full jitter over a ceiling that grows sixfold, for three days.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// How much the ceiling grows from one attempt to the next.
const GROWTH: u32 = 6;
/// The longest ceiling: a receiver that is down for a day is asked a few times in it.
const LONGEST: Duration = Duration::from_secs(8 * 60 * 60);
/// The shortest wait: chance alone must not make two attempts one.
const SHORTEST: Duration = Duration::from_millis(20);
/// Most attempts at one event, whatever chance says.
const MAX_ATTEMPTS: u32 = 100;
/// The longest that a receiver may ask to wait.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// How long receivers are borne with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The second attempt comes after a wait between nothing and this.
    pub first_wait: Duration,
    /// Counted from the first attempt at an event, the last one comes after this.
    pub give_up: Duration,
    /// With nothing taken for so long, the webhook is disabled.
    pub disable_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_secs(10),
            give_up: Duration::from_secs(72 * 60 * 60),
            disable_after: Duration::from_secs(120 * 60 * 60),
        }
    }
}

fn plus(time: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|wait| time.checked_add(wait).ok()).unwrap_or(Timestamp::MAX)
}

impl Patience {
    /// When an event is tried again whose `attempt`-th attempt (counted from 1) has failed now; `None`: not any more.
    /// `random` is any uniformly drawn number, `asked` what the receiver wants to be spared.
    pub fn next(
        &self,
        attempt: u32,
        first_at: Timestamp,
        now: Timestamp,
        asked: Option<Duration>,
        random: u64,
    ) -> Option<Timestamp> {
        let last = plus(first_at, self.give_up);
        if now >= last || attempt >= MAX_ATTEMPTS {
            return None;
        }
        let growth = GROWTH.saturating_pow(attempt.saturating_sub(1).min(12));
        let ceiling = self.first_wait.saturating_mul(growth).min(LONGEST);
        let nanos = (ceiling.as_nanos() * u128::from(random)) >> 64;
        // The product of eight hours and a fraction is far below 2^64 nanoseconds.
        let drawn = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let wait = drawn.max(SHORTEST).max(asked.unwrap_or_default().min(MAX_RETRY_AFTER));
        // The last attempt comes when the time is up, and not never.
        Some(plus(now, wait).min(last.max(plus(now, SHORTEST))))
    }

    /// Whether a webhook that has failed since then is given up now.
    pub fn is_over(&self, failing_since: Timestamp, now: Timestamp) -> bool {
        now >= plus(failing_since, self.disable_after)
    }

    /// Until when a receiver who asked for this wait is left alone.
    pub fn spared_until(now: Timestamp, asked: Duration) -> Timestamp {
        plus(now, asked.min(MAX_RETRY_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u64 = 1 << 63;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_ceiling_grows_and_the_receivers_wish_goes_before_chance() {
        let patience = Patience::default();
        let second = Duration::from_secs;
        for (attempt, asked, expected) in [
            (1, None, 5),
            (2, None, 30),
            (3, None, 180),
            (4, None, 1_080),
            (5, None, 6_480),
            (6, None, 14_400),
            (60, None, 14_400),
            (1, Some(second(60)), 60),
            (4, Some(second(60)), 1_080),
            (1, Some(second(1_000_000)), 86_400),
        ] {
            let next = patience.next(attempt, at(0), at(1), asked, HALF);
            assert_eq!(next, Some(at(1 + expected)), "{attempt} {asked:?}");
        }
        assert!(patience.next(1, at(0), at(0), None, 0) > Some(at(0)), "chance alone does not make it at once");
    }

    #[test]
    fn it_ends_after_three_days_with_one_last_attempt() {
        let patience = Patience::default();
        let three_days = 72 * 3600;
        assert_eq!(patience.next(9, at(0), at(three_days - 60), None, u64::MAX), Some(at(three_days)));
        assert_eq!(patience.next(9, at(0), at(three_days), None, HALF), None);
        assert_eq!(patience.next(MAX_ATTEMPTS, at(0), at(1), None, HALF), None);
        // Whatever chance says, the attempts of one event are few and within the time.
        for random in [HALF / 2, HALF, u64::MAX] {
            let (mut attempt, mut now) = (1, at(0));
            while let Some(next) = patience.next(attempt, at(0), now, None, random) {
                assert!(next > now && next <= at(three_days));
                (attempt, now) = (attempt + 1, next);
            }
            assert_eq!(now, at(three_days), "{random}");
            assert!(attempt <= MAX_ATTEMPTS);
        }
        assert!(!patience.is_over(at(0), at(120 * 3600 - 1)) && patience.is_over(at(0), at(120 * 3600)));
    }
}
