//! Whether a failed call is made again, and after which wait: pure functions, the same for every agent.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::HeaderMap;

use super::fault::{FaultClass, retry_after};

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
fn decide(class: FaultClass, attempt: u32, retry_after: Option<Duration>, random: u64) -> Retry {
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

/// What a call has left for trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The task's own retries: one that fails again and again must not go on for ever.
    pub retries: u32,
    /// The time until the task's deadline, when it has one.
    pub time: Option<Duration>,
}

/// [`decide`], within what the task has left: a wait that ends after the deadline is not begun.
pub fn decide_within(class: FaultClass, attempt: u32, asked: Option<Duration>, random: u64, left: Left) -> Retry {
    match decide(class, attempt, asked, random) {
        Retry::After { wait } if left.retries > 0 && left.time.is_none_or(|time| wait < time) => Retry::After { wait },
        Retry::After { .. } | Retry::GiveUp => Retry::GiveUp,
    }
}

/// How long a provider's headers ask to wait: `Retry-After`, or, where it is missing, until the limits that are used up
/// are whole again (`anthropic-ratelimit-*-reset`, a time; `x-ratelimit-reset-*`, a duration such as `6m0s`).
pub fn asked_wait(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    retry_after(headers, now).or_else(|| {
        let of_anthropic = ["requests", "tokens", "input-tokens", "output-tokens"].into_iter().filter_map(|kind| {
            let used_up = text(&format!("anthropic-ratelimit-{kind}-remaining")) == Some("0");
            let reset: Timestamp = text(&format!("anthropic-ratelimit-{kind}-reset"))?.parse().ok()?;
            used_up.then(|| Duration::try_from(reset.duration_since(now)).unwrap_or_default())
        });
        let of_openai = ["requests", "tokens"].into_iter().filter_map(|kind| {
            let used_up = text(&format!("x-ratelimit-remaining-{kind}")) == Some("0");
            let reset = duration(text(&format!("x-ratelimit-reset-{kind}"))?)?;
            used_up.then_some(reset)
        });
        of_anthropic.chain(of_openai).max()
    })
}

/// Reads `1h2m3.5s`, `20ms` and their like.
fn duration(mut text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    while !text.is_empty() {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|digits| *digits > 0)?;
        let unit = text[digits..].find(|c: char| c.is_ascii_digit()).map_or(text.len(), |at| digits + at);
        let seconds = match &text[digits..unit] {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        let amount: f64 = text[..digits].parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(amount * seconds).ok()?)?;
        text = &text[unit..];
    }
    Some(sum)
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

    #[test]
    fn nothing_is_repeated_past_the_deadline_or_the_tasks_own_count() {
        let seconds = Duration::from_secs;
        for (asked, retries, time, again) in [
            (Some(seconds(10)), 1, None, true),
            (Some(seconds(10)), 0, None, false),
            (Some(seconds(10)), 1, Some(seconds(11)), true),
            (Some(seconds(10)), 1, Some(seconds(10)), false),
            (None, 1, Some(Duration::ZERO), false),
            (Some(seconds(121)), 1, None, false),
        ] {
            let decided = decide_within(FaultClass::RateLimited, 1, asked, 0, Left { retries, time });
            assert_eq!(decided != Retry::GiveUp, again, "{asked:?} {retries} {time:?}");
        }
    }

    #[test]
    fn the_headers_say_how_long_to_wait() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().expect("time");
        let left = ("anthropic-ratelimit-requests-remaining", "5");
        let none = ("anthropic-ratelimit-requests-remaining", "0");
        let reset = ("anthropic-ratelimit-requests-reset", "2026-11-22T10:00:07Z");
        let tokens = ("anthropic-ratelimit-input-tokens-remaining", "0");
        let later = ("anthropic-ratelimit-input-tokens-reset", "2026-11-22T10:00:09Z");
        let past = ("anthropic-ratelimit-requests-reset", "2026-11-22T09:00:00Z");
        let openai = ("x-ratelimit-remaining-tokens", "0");
        for (headers, expected) in [
            (&[("retry-after", "3"), none, reset][..], Some(3_000)),
            (&[none, reset], Some(7_000)),
            (&[none, reset, tokens, later], Some(9_000)),
            (&[left, reset], None),
            (&[none, past], Some(0)),
            (&[openai, ("x-ratelimit-reset-tokens", "6m0s")], Some(360_000)),
            (&[openai, ("x-ratelimit-reset-tokens", "1h2m3.5s")], Some(3_723_500)),
            (&[openai, ("x-ratelimit-reset-tokens", "20ms")], Some(20)),
            (&[openai, ("x-ratelimit-reset-tokens", "soon")], None),
            (&[openai, ("x-ratelimit-reset-tokens", "5")], None),
            (&[("x-ratelimit-remaining-tokens", "9"), ("x-ratelimit-reset-tokens", "1s")], None),
            (&[], None),
        ] {
            let map: HeaderMap = headers
                .iter()
                .map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value")))
                .collect();
            let asked = asked_wait(&map, now);
            assert_eq!(asked, expected.map(Duration::from_millis), "{headers:?}");
        }
    }
}
