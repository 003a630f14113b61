//! A circuit breaker: a provider that mostly fails is left alone for a while, then asked once.
//!
//! Pure: the time comes in with every question, as what has passed since any fixed instant. One breaker is shared by all
//! tasks that call a provider, so that a hundred of them do not each find out by themselves.

use std::time::Duration;

/// Over how long failures are counted.
pub const WINDOW: Duration = Duration::from_secs(30);
/// Fewer calls in the window say nothing.
pub const MIN_CALLS: u32 = 20;
/// How long a provider is left alone at first; twice as long after each probe that fails.
pub const FIRST_REST: Duration = Duration::from_secs(5);
/// It is never left alone for longer.
pub const MAX_REST: Duration = Duration::from_secs(60);

/// The window is counted in so many parts.
const PARTS: usize = 30;

/// Whether a call may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Go,
    /// Yes, and how it ends decides for all: it must be reported, or given back with [`Breaker::forgo`].
    Probe,
    /// Not before this has passed.
    Wait(Duration),
}

/// How a call ended, as far as the provider's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answered, be it with a refusal.
    Up,
    /// A 5xx, 529, no connection, or silence.
    Down,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    /// The part's number since time began.
    number: u64,
    up: u32,
    down: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    /// Until then, nobody asks.
    Open {
        until: Duration,
        rest: Duration,
    },
    /// One call is on its way to find out.
    HalfOpen {
        rest: Duration,
    },
}

/// The health of one provider.
#[derive(Debug)]
pub struct Breaker {
    parts: [Part; PARTS],
    state: State,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { parts: [Part::default(); PARTS], state: State::Closed }
    }
}

/// How long those wait who come while a probe is on its way.
const PROBE_WAIT: Duration = Duration::from_secs(1);

impl Breaker {
    /// Asks before a call.
    pub fn admit(&mut self, now: Duration) -> Admission {
        match self.state {
            State::Closed => Admission::Go,
            State::Open { until, .. } if now < until => Admission::Wait(until - now),
            State::Open { rest, .. } => {
                self.state = State::HalfOpen { rest };
                Admission::Probe
            }
            State::HalfOpen { .. } => Admission::Wait(PROBE_WAIT),
        }
    }

    /// Reports how a call ended. `probe` says whether it was admitted as one.
    pub fn report(&mut self, now: Duration, health: Health, probe: bool) {
        match (self.state, health) {
            (State::HalfOpen { .. }, Health::Up) if probe => *self = Self::default(),
            (State::HalfOpen { rest }, Health::Down) if probe => {
                let rest = rest.saturating_mul(2).min(MAX_REST);
                self.state = State::Open { until: now.saturating_add(rest), rest };
            }
            // Calls from before it opened say nothing new.
            (State::HalfOpen { .. } | State::Open { .. }, _) => {}
            (State::Closed, _) => self.count(now, health),
        }
    }

    /// A probe that was never made, or whose end says nothing: the next call is the probe.
    pub fn forgo(&mut self, now: Duration) {
        if let State::HalfOpen { rest } = self.state {
            self.state = State::Open { until: now, rest };
        }
    }

    fn count(&mut self, now: Duration, health: Health) {
        let number = now.as_secs() * PARTS as u64 / WINDOW.as_secs();
        let part = &mut self.parts[(number % PARTS as u64) as usize];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        match health {
            Health::Up => part.up = part.up.saturating_add(1),
            Health::Down => part.down = part.down.saturating_add(1),
        }
        let recent = self.parts.iter().filter(|part| part.number + PARTS as u64 > number);
        let (up, down) = recent
            .fold((0_u32, 0_u32), |(up, down), part| (up.saturating_add(part.up), down.saturating_add(part.down)));
        if up.saturating_add(down) >= MIN_CALLS && down >= up {
            self.state = State::Open { until: now.saturating_add(FIRST_REST), rest: FIRST_REST };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn half_of_twenty_in_the_window_opens_it_and_less_does_not() {
        for (what, ups, downs, spread, opens) in [
            ("half", 10, 10, 0, true),
            ("all", 0, 20, 0, true),
            ("less than half", 11, 10, 0, false),
            ("too few", 0, 19, 0, false),
            ("over a longer time", 0, 30, 2, false),
            ("just within", 0, 20, 1, true),
        ] {
            let mut breaker = Breaker::default();
            let mut now = seconds(1_000);
            for call in 0..ups + downs {
                breaker.report(now, if call < ups { Health::Up } else { Health::Down }, false);
                now += seconds(spread);
            }
            assert_eq!(breaker.admit(now) != Admission::Go, opens, "{what}");
        }
    }

    fn opened(at: Duration) -> Breaker {
        let mut breaker = Breaker::default();
        (0..20).for_each(|_| breaker.report(at, Health::Down, false));
        breaker
    }

    #[test]
    fn one_probe_decides_for_all() {
        let mut breaker = opened(seconds(0));
        assert_eq!(breaker.admit(seconds(2)), Admission::Wait(seconds(3)));
        assert_eq!(breaker.admit(seconds(5)), Admission::Probe);
        assert_eq!(breaker.admit(seconds(5)), Admission::Wait(PROBE_WAIT), "only one");
        // A straggler from before does not decide.
        breaker.report(seconds(6), Health::Up, false);
        assert_eq!(breaker.admit(seconds(6)), Admission::Wait(PROBE_WAIT));
        breaker.report(seconds(7), Health::Down, true);
        assert_eq!(breaker.admit(seconds(7)), Admission::Wait(seconds(10)), "twice as long");
        assert_eq!(breaker.admit(seconds(17)), Admission::Probe);
        breaker.report(seconds(18), Health::Up, true);
        assert_eq!(breaker.admit(seconds(18)), Admission::Go);
        // What it failed before is forgotten.
        breaker.report(seconds(18), Health::Down, false);
        assert_eq!(breaker.admit(seconds(18)), Admission::Go);
    }

    #[test]
    fn the_rest_has_an_end_and_a_forgone_probe_blocks_nobody() {
        let (mut breaker, mut now) = (opened(seconds(0)), seconds(5));
        for _ in 0..10 {
            assert_eq!(breaker.admit(now), Admission::Probe);
            breaker.report(now, Health::Down, true);
            let Admission::Wait(rest) = breaker.admit(now) else { panic!("it rests") };
            assert!(rest <= MAX_REST);
            now += rest;
        }
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.forgo(now);
        assert_eq!(breaker.admit(now), Admission::Probe);
    }
}
