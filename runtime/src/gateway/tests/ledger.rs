//! A ledger and a clock that a test can look into.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_events::ledger::Remaining;
use orchestra_events::{CallId, Failure, FailureCode, NanoUsd};
use tokio::sync::Notify;

use super::super::clock::Clock;
use crate::meter::{Ask, Meter, MeterError, Reservation, Retried, Settlement};

/// What the ledger was told.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    Reserved(Ask, Reservation),
    Trimmed(CallId, NanoUsd, u64),
    Settled(CallId, Settlement),
    Released(CallId, Option<FailureCode>),
    Retried(CallId, Retried),
}

/// A ledger in memory, with a cap that it checks at every step.
#[derive(Default)]
pub struct Ledger {
    log: Mutex<Vec<Entry>>,
    open: Mutex<HashMap<CallId, NanoUsd>>,
    spent: Mutex<i64>,
    cap: Option<NanoUsd>,
    over: bool,
    changed: Notify,
}

impl Ledger {
    pub fn new(cap: Option<NanoUsd>, over: bool) -> Self {
        Self { cap, over, ..Self::default() }
    }

    fn note(&self, entry: Entry) {
        self.log.lock().expect("log").push(entry);
        self.changed.notify_waiters();
    }

    pub fn spent(&self) -> i64 {
        *self.spent.lock().expect("spent")
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.log.lock().expect("log").clone()
    }

    pub fn settlements(&self) -> Vec<Settlement> {
        let settled = |entry| if let Entry::Settled(_, settlement) = entry { Some(settlement) } else { None };
        self.entries().into_iter().filter_map(settled).collect()
    }

    pub fn retries(&self) -> Vec<Retried> {
        let retried = |entry| if let Entry::Retried(_, retried) = entry { Some(retried) } else { None };
        self.entries().into_iter().filter_map(retried).collect()
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    /// Until the ledger was told of something.
    pub async fn has(&self, wanted: fn(&Entry) -> bool) {
        self.until(|| self.log.lock().expect("log").iter().any(wanted)).await;
    }

    /// Until nothing is open any more, and something was reserved.
    pub async fn closed(&self) {
        let closed = self.until(|| !self.entries().is_empty() && self.open.lock().expect("open").is_empty());
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("every call is settled or released");
    }

    /// Every reservation ended exactly once.
    pub fn check(&self) {
        let mut reserved: HashMap<CallId, u32> = HashMap::new();
        for entry in self.entries() {
            match entry {
                Entry::Reserved(ask, _) => assert!(reserved.insert(ask.call, 0).is_none(), "an id is used twice"),
                Entry::Settled(call, _) | Entry::Released(call, _) => *reserved.get_mut(&call).expect("reserved") += 1,
                Entry::Trimmed(..) | Entry::Retried(..) => {}
            }
        }
        assert!(reserved.values().all(|ends| *ends == 1), "{:?}", self.entries());
    }
}

#[async_trait]
impl Meter for Ledger {
    async fn reserve(&self, ask: Ask) -> Result<Reservation, MeterError> {
        if self.over {
            return Err(MeterError::Over);
        }
        let reserved: i64 = self.open.lock().expect("open").values().map(|amount| amount.nanos()).sum();
        let left = self.cap.map(|cap| NanoUsd::from_nanos(cap.nanos() - self.spent() - reserved));
        let Some(fitted) = ask.quote.fit(Remaining { nano_usd: left, tokens: None }) else {
            let failure = Failure::new(FailureCode::BudgetExceeded, "The budget of task:t per task is used up.");
            return Err(MeterError::Refused(Box::new(failure)));
        };
        let reservation = Reservation {
            call: ask.call,
            max_output_tokens: fitted.max_output_tokens,
            nano_usd: fitted.nano_usd,
            tokens: fitted.tokens,
        };
        self.open.lock().expect("open").insert(ask.call, fitted.nano_usd);
        self.note(Entry::Reserved(ask, reservation));
        Ok(reservation)
    }

    fn trim(&self, call: CallId, nano_usd: NanoUsd, tokens: u64) {
        let mut open = self.open.lock().expect("open");
        let amount = open.get_mut(&call).expect("open");
        assert!(nano_usd.nanos() >= 0 && nano_usd <= *amount, "more than was set aside");
        *amount = amount.saturating_sub(nano_usd);
        drop(open);
        self.note(Entry::Trimmed(call, nano_usd, tokens));
    }

    async fn settle(&self, call: CallId, settlement: Settlement) -> Result<(), MeterError> {
        let held = self.open.lock().expect("open").remove(&call).expect("settled once, after it was reserved");
        assert!(settlement.cost <= held, "{settlement:?} is above what was set aside: {held}");
        *self.spent.lock().expect("spent") += settlement.cost.nanos();
        self.note(Entry::Settled(call, settlement));
        Ok(())
    }

    async fn release(&self, call: CallId, failure: Option<Failure>) -> Result<(), MeterError> {
        self.open.lock().expect("open").remove(&call).expect("released once, after it was reserved");
        self.note(Entry::Released(call, failure.map(|failure| failure.code)));
        Ok(())
    }

    async fn retried(&self, call: CallId, retried: Retried) {
        self.note(Entry::Retried(call, retried));
    }
}

/// A clock that only waiting moves.
#[derive(Default)]
pub struct TestClock {
    pub slept: Mutex<Vec<Duration>>,
    elapsed: AtomicU64,
    still: AtomicBool,
}

pub const NOW: &str = "2026-12-24T10:00:00Z";

impl TestClock {
    /// From now on, no wait comes to its end.
    pub fn stand_still(&self) {
        self.still.store(true, Ordering::SeqCst);
    }

    pub fn waits(&self) -> Vec<u64> {
        let slept = self.slept.lock().expect("slept");
        slept.iter().map(|wait| u64::try_from(wait.as_millis()).expect("short")).collect()
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let start: Timestamp = NOW.parse().expect("time");
        start + jiff::SignedDuration::try_from(self.elapsed()).expect("short")
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed.load(Ordering::SeqCst))
    }

    fn random(&self) -> u64 {
        1 << 63
    }

    async fn sleep(&self, wait: Duration) {
        if self.still.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.slept.lock().expect("slept").push(wait);
        self.elapsed.fetch_add(u64::try_from(wait.as_nanos()).expect("short"), Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}
