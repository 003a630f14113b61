//! How often callers may ask: a bucket per key, per team and, for wrong keys, per address.
//!
//! Each is a generic cell rate algorithm, so no window begins anew for everybody at once. What a caller has left stands on
//! every answer in the `RateLimit-…` fields (the IETF draft's, as most interfaces send them).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock, Reference as _};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use orchestra_events::KeyId;
use orchestra_events::key::KeyLimits;

use super::{Caller, Who};
use crate::problem::Problem;

/// Buckets of callers and teams kept at the same time. Beyond it those go that are full again, which changes nothing, and
/// after them those that were used longest ago.
pub const MAX_BUCKETS: usize = 20_000;
/// Buckets of addresses kept at the same time: anybody can have one, so they are counted apart.
pub const MAX_ADDRESSES: usize = 20_000;
/// Of the buckets in use, the part that goes when there is no room: one in so many.
const MAKE_ROOM: usize = 10;
/// The time that rates are counted by.
const MINUTE: Duration = Duration::from_secs(60);

/// So many requests in a minute, and so many of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_minute: NonZeroU32,
    burst: NonZeroU32,
}

impl Rate {
    /// `None`: no limit, for which 0 stands. Without a burst, a minute's worth may come at once.
    pub fn new(per_minute: u32, burst: Option<u32>) -> Option<Self> {
        let per_minute = NonZeroU32::new(per_minute)?;
        Some(Self { per_minute, burst: burst.and_then(NonZeroU32::new).unwrap_or(per_minute) })
    }

    fn quota(self) -> Quota {
        Quota::per_minute(self.per_minute).allow_burst(self.burst)
    }

    /// Until a bucket that holds `remaining` is full.
    fn fills_in(self, remaining: u32) -> Duration {
        MINUTE * self.burst.get().saturating_sub(remaining) / self.per_minute.get()
    }
}

/// How often who may ask.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    /// A key that has no limit of its own, and a person.
    pub caller: Option<Rate>,
    /// All keys of a team.
    pub team: Option<Rate>,
    /// Teams that have a limit of their own, or none.
    pub teams: HashMap<String, Option<Rate>>,
    /// Wrong keys from one address.
    pub failures: Option<Rate>,
    /// Tasks of a key that are not over, where it has no limit of its own. Counted elsewhere; here it is known so that no
    /// key is issued with more.
    pub concurrent_tasks: Option<u32>,
}

/// What a caller has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    rate: Rate,
    /// Requests that may come at once now.
    pub remaining: u32,
    /// Until all of them may.
    pub resets_in: Duration,
}

impl Allowance {
    /// Writes it onto an answer.
    pub fn write(&self, headers: &mut HeaderMap) {
        let Rate { per_minute, burst } = self.rate;
        let mut set = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("ratelimit-limit", burst.to_string());
        set("ratelimit-remaining", self.remaining.to_string());
        set("ratelimit-reset", whole_seconds(self.resets_in).to_string());
        let policy = format!("{per_minute};w={}", MINUTE.as_secs());
        set("ratelimit-policy", if burst == per_minute { policy } else { format!("{policy};burst={burst}") });
    }
}

/// Rounded up, so that whoever waits so long has waited long enough.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    Key(KeyId),
    /// In all of their sessions together.
    Person(Arc<str>),
    Team(String),
    Address(IpAddr),
}

struct Bucket<C: Clock> {
    rate: Rate,
    limiter: RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>,
    used: C::Instant,
}

/// Buckets, no more than a number of them.
struct Buckets<C: Clock> {
    most: usize,
    all: Mutex<HashMap<Holder, Bucket<C>>>,
}

/// How long until the next request is taken, when this one is not.
type Taken = Result<Allowance, (Allowance, Duration)>;

impl<C: Clock + Clone> Buckets<C> {
    fn new(most: usize) -> Self {
        Self { most, all: Mutex::default() }
    }

    fn take(&self, holder: Holder, rate: Rate, clock: &C) -> Taken {
        let now = clock.now();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= self.most && !all.contains_key(&holder) {
            make_room(&mut all, now, self.most);
        }
        let bucket = || Bucket {
            rate,
            limiter: RateLimiter::direct_with_clock(rate.quota(), clock.clone()).with_middleware(),
            used: now,
        };
        let found = all.entry(holder).or_insert_with(bucket);
        if found.rate != rate {
            *found = bucket();
        }
        found.used = now;
        let allowance = |remaining| Allowance { rate, remaining, resets_in: rate.fills_in(remaining) };
        match found.limiter.check() {
            Ok(snapshot) => Ok(allowance(snapshot.remaining_burst_capacity())),
            Err(until) => Err((allowance(0), until.wait_time_from(now))),
        }
    }
}

fn make_room<C: Clock>(all: &mut HashMap<Holder, Bucket<C>>, now: C::Instant, most: usize) {
    all.retain(|_, bucket| Duration::from(now.duration_since(bucket.used)) < bucket.rate.fills_in(0));
    if all.len() < most {
        return;
    }
    let mut uses: Vec<_> = all.values().map(|bucket| bucket.used).collect();
    let (_, bar, _) = uses.select_nth_unstable(most / MAKE_ROOM);
    let bar = *bar;
    // All of one instant would stay otherwise, and with them no room.
    let mut left = most / MAKE_ROOM + 1;
    all.retain(|_, bucket| {
        let goes = bucket.used <= bar && left > 0;
        left -= usize::from(goes);
        !goes
    });
}

impl Holder {
    fn of(who: &Who) -> Self {
        match who {
            Who::Key(id) => Self::Key(*id),
            Who::Person { id, .. } => Self::Person(Arc::clone(id)),
        }
    }
}

/// Whether a request is taken, and what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For the answer, whatever it is. `None`: nothing is limited.
    pub allowance: Option<Allowance>,
    /// Why it is not taken.
    pub refused: Option<Problem>,
}

/// Who has asked how often.
pub struct Limits<C: Clock = DefaultClock> {
    rates: Rates,
    clock: C,
    callers: Buckets<C>,
    addresses: Buckets<C>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(Rates::default())
    }
}

impl Limits {
    /// Nobody has asked yet.
    pub fn new(rates: Rates) -> Self {
        Self::with_clock(rates, DefaultClock::default())
    }
}

/// Of two, the one that is nearer its end.
fn nearer(one: Option<Allowance>, other: Option<Allowance>) -> Option<Allowance> {
    match (one, other) {
        (Some(one), Some(other)) if other.remaining < one.remaining => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

impl<C: Clock + Clone> Limits<C> {
    fn with_clock(rates: Rates, clock: C) -> Self {
        Self { rates, clock, callers: Buckets::new(MAX_BUCKETS), addresses: Buckets::new(MAX_ADDRESSES) }
    }

    /// What a key that says nothing itself is held to.
    pub fn of_keys(&self) -> KeyLimits {
        let rate = self.rates.caller;
        KeyLimits {
            requests_per_minute: rate.map(|rate| rate.per_minute.get()),
            burst: rate.map(|rate| rate.burst.get()),
            concurrent_tasks: self.rates.concurrent_tasks,
        }
    }

    /// Counts a request of this caller, for themselves and for their team.
    pub fn check(&self, caller: &Caller) -> Verdict {
        let own = match caller.limits.requests_per_minute {
            Some(most) => Rate::new(most, caller.limits.burst),
            None => self
                .rates
                .caller
                .and_then(|rate| Rate::new(rate.per_minute.get(), caller.limits.burst.or(Some(rate.burst.get())))),
        };
        let own = own.map(|rate| self.callers.take(Holder::of(&caller.who), rate, &self.clock));
        let own = match own {
            Some(Err((allowance, wait))) => {
                let refused = Problem::rate_limited("This key", whole_seconds(wait));
                return Verdict { allowance: Some(allowance), refused: Some(refused) };
            }
            Some(Ok(allowance)) => Some(allowance),
            None => None,
        };
        let Some(team) = &caller.team else { return Verdict { allowance: own, refused: None } };
        let rate = self.rates.teams.get(team).copied().unwrap_or(self.rates.team);
        match rate.map(|rate| self.callers.take(Holder::Team(team.clone()), rate, &self.clock)) {
            Some(Err((allowance, wait))) => {
                let refused = Problem::rate_limited("The team", whole_seconds(wait));
                Verdict { allowance: Some(allowance), refused: Some(refused) }
            }
            Some(Ok(allowance)) => Verdict { allowance: nearer(own, Some(allowance)), refused: None },
            None => Verdict { allowance: own, refused: None },
        }
    }

    /// Counts a wrong key from there; too many are told to wait. Right ones from the same place are never refused for it.
    pub fn failed(&self, from: Option<IpAddr>) -> Verdict {
        // In memory, as in tests, nobody calls from anywhere.
        let taken = from
            .zip(self.rates.failures)
            .map(|(address, rate)| self.addresses.take(Holder::Address(network_of(address)), rate, &self.clock));
        match taken {
            Some(Err((allowance, wait))) => {
                let refused = Problem::rate_limited("Your address", whole_seconds(wait));
                Verdict { allowance: Some(allowance), refused: Some(refused) }
            }
            Some(Ok(allowance)) => Verdict { allowance: Some(allowance), refused: None },
            None => Verdict { allowance: None, refused: None },
        }
    }
}

/// What one subscriber has: an IPv4 address, or the first half of an IPv6 one (RFC 6177).
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use orchestra_events::SessionId;
    use uuid::Uuid;

    use super::*;
    use crate::problem::Code;

    fn caller(number: u128, team: &str, limits: KeyLimits) -> Caller {
        let who = Who::Key(KeyId::from_uuid(Uuid::from_u128(number)));
        Caller { team: Some(team.to_owned()), limits, ..Caller::named(who, "ci") }
    }

    fn per_minute(most: u32, burst: Option<u32>) -> KeyLimits {
        KeyLimits { requests_per_minute: Some(most), burst, concurrent_tasks: None }
    }

    fn limits(rates: Rates) -> (Limits<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Limits::with_clock(rates, clock.clone()), clock)
    }

    fn taken(verdicts: impl IntoIterator<Item = Verdict>) -> usize {
        verdicts.into_iter().filter(|verdict| verdict.refused.is_none()).count()
    }

    #[test]
    fn a_key_that_has_asked_enough_waits_as_long_as_it_is_told() {
        let (limits, clock) = limits(Rates { caller: Rate::new(60, Some(5)), ..Rates::default() });
        let caller = caller(1, "platform", KeyLimits::default());
        assert_eq!(taken((0..5).map(|_| limits.check(&caller))), 5);
        let Verdict { allowance: Some(left), refused: Some(problem) } = limits.check(&caller) else { panic!("taken") };
        assert_eq!((problem.code, problem.retry_after), (Code::RateLimited, Some(1)));
        assert_eq!((left.remaining, left.resets_in), (0, Duration::from_secs(5)));
        clock.advance(Duration::from_secs(1));
        let verdict = limits.check(&caller);
        assert_eq!((verdict.refused, verdict.allowance.map(|left| left.remaining)), (None, Some(0)));
        assert!(limits.check(&caller).refused.is_some(), "one a second, and no more");
        clock.advance(MINUTE);
        assert_eq!(taken((0..20).map(|_| limits.check(&caller))), 5, "a rest gives a burst and no more");
        let mut headers = HeaderMap::new();
        left.write(&mut headers);
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        assert_eq!(text("ratelimit-limit"), Some("5"));
        assert_eq!(text("ratelimit-remaining"), Some("0"));
        assert_eq!(text("ratelimit-reset"), Some("5"));
        assert_eq!(text("ratelimit-policy"), Some("60;w=60;burst=5"));
    }

    #[test]
    fn each_key_has_its_own_bucket_and_a_team_one_for_all() {
        let teams = HashMap::from([("mobile".to_owned(), Rate::new(6, None)), ("web".to_owned(), None)]);
        let (limits, _) = limits(Rates { team: Rate::new(8, None), teams, ..Rates::default() });
        let own = per_minute(5, None);
        let asked = |number, team| taken((0..20).map(|_| limits.check(&caller(number, team, own))));
        assert_eq!((asked(1, "platform"), asked(2, "platform")), (5, 3), "eight for the team");
        assert_eq!((asked(3, "mobile"), asked(4, "mobile")), (5, 1), "six for this one");
        assert_eq!((asked(5, "web"), asked(6, "web")), (5, 5), "and none for that one");
        let free = caller(7, "web", KeyLimits::default());
        assert_eq!(limits.check(&free), Verdict { allowance: None, refused: None });
    }

    #[test]
    fn a_person_who_signs_in_again_has_no_second_bucket() {
        let (limits, _) = limits(Rates { caller: Rate::new(5, None), ..Rates::default() });
        let asked = |session: u128, person: &str| {
            let who = Who::Person { session: SessionId::from_uuid(Uuid::from_u128(session)), id: person.into() };
            taken((0..20).map(|_| limits.check(&Caller::named(who.clone(), "Ada"))))
        };
        assert_eq!((asked(1, "ada"), asked(2, "ada"), asked(3, "grace")), (5, 0, 5));
    }

    #[test]
    fn wrong_keys_are_counted_by_the_network_they_come_from() {
        let (limits, clock) = limits(Rates { failures: Rate::new(3, None), ..Rates::default() });
        let from = |text: &str| limits.failed(Some(text.parse().expect("an address")));
        assert_eq!(taken((0..10).map(|_| from("192.0.2.1"))), 3);
        assert_eq!(taken((0..10).map(|_| from("192.0.2.2"))), 3);
        assert_eq!(taken((0..10).map(|last| from(&format!("2001:db8::{last}")))), 3, "one subscriber");
        assert_eq!(
            taken((0..10).map(|last| from(&format!("2001:db8:0:{last}::1")))),
            9,
            "the first is the one from above"
        );
        clock.advance(MINUTE);
        assert_eq!(taken([from("192.0.2.1")]), 1);
    }

    #[test]
    fn there_are_never_too_many_buckets_and_the_busy_ones_stay() {
        let clock = FakeRelativeClock::default();
        let buckets = Buckets::new(100);
        let rate = Rate::new(10, None).expect("a rate");
        let holder = |number: u128| Holder::Key(KeyId::from_uuid(Uuid::from_u128(number)));
        for number in 0..1_000 {
            clock.advance(Duration::from_millis(1));
            let _ = buckets.take(holder(number), rate, &clock);
            if number % 5 == 0 {
                let _ = buckets.take(holder(0), rate, &clock);
            }
            assert!(buckets.all.lock().expect("not poisoned").len() <= 100);
        }
        assert!(buckets.take(holder(0), rate, &clock).is_err(), "who asks all the time is not forgotten");
        clock.advance(MINUTE);
        let _ = buckets.take(holder(5_000), rate, &clock);
        for number in 6_000..6_100 {
            let _ = buckets.take(holder(number), rate, &clock);
        }
        assert!(!buckets.all.lock().expect("not poisoned").contains_key(&holder(0)), "what is full again goes");
    }
}
